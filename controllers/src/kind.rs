//! One watch a kind, shared by all controllers: a cache with indexes, and the writes that go through it.
//!
//! A controller must not act twice because its cache lags behind its own writes. So whatever a write returns is taken
//! into the cache at once, and watch events older than what the cache holds are passed over: when a reconciler is done,
//! the cache shows everything that it did. No expectations are kept, here or anywhere else.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use futures::StreamExt;
use futures::stream::BoxStream;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions, PropagationPolicy};
use kube::core::Request;
use kube::runtime::reflector::store::Writer;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::UnboundedReceiverStream;

use skiff_api::typed::pods::controller_of;

/// The name under which the controllers own fields.
const FIELD_MANAGER: &str = "kube-controller-manager";

/// What a kind must be to be shared.
pub trait Object: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Serialize + Send + Sync + 'static {}
impl<K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Serialize + Send + Sync + 'static> Object for K {}

/// Namespace (empty for cluster-wide kinds) and name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl Key {
    /// The key of an object.
    pub fn of(meta: &ObjectMeta) -> Self {
        Self::new(meta.namespace.as_deref().unwrap_or(""), meta.name.as_deref().unwrap_or(""))
    }

    /// A key.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.to_owned(), name: name.to_owned() }
    }

    /// The same as a reference to an object of kind `K`.
    pub fn reference<K: Object>(&self) -> ObjectRef<K> {
        let reference = ObjectRef::new(&self.name);
        if self.namespace.is_empty() { reference } else { reference.within(&self.namespace) }
    }
}

/// By what objects are found.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum By {
    /// The uid of the controlling owner.
    Owner(String),
    /// Without a controlling owner, in this namespace.
    Orphan(String),
    /// In this namespace.
    Namespace(String),
    /// On this node.
    Node(String),
}

/// What every object is found by.
pub fn by_default<K: Resource>(object: &K) -> Vec<By> {
    let meta = object.meta();
    let namespace = meta.namespace.clone().unwrap_or_default();
    let owner = match controller_of(meta) {
        Some(owner) => By::Owner(owner.uid.clone()),
        None => By::Orphan(namespace.clone()),
    };
    vec![owner, By::Namespace(namespace)]
}

/// A change of one object in the cache.
#[derive(Debug)]
pub struct Change<K> {
    /// How it was, unless it is new.
    pub old: Option<Arc<K>>,
    /// How it is, unless it is gone.
    pub new: Option<Arc<K>>,
}

impl<K> Change<K> {
    /// The old and the new state, those that there are.
    pub fn states(&self) -> impl Iterator<Item = &Arc<K>> {
        self.old.iter().chain(&self.new)
    }
}

type Handler<K> = Box<dyn Fn(&Change<K>) + Send + Sync>;

/// A kind: its cache and its writes.
pub struct Kind<K: Object> {
    client: Client,
    state: RwLock<State<K>>,
    store: Store<K>,
    /// Told of each change, after it is in the cache.
    handlers: RwLock<Vec<Handler<K>>>,
    ready: watch::Sender<bool>,
    selection: watcher::Config,
    indexes: fn(&K) -> Vec<By>,
    strip: fn(&mut K),
}

struct State<K: Object> {
    objects: HashMap<Key, Entry<K>>,
    index: HashMap<By, BTreeSet<Key>>,
    /// Uids of objects whose deletion was answered and not yet seen: late events must not bring them back.
    deleted: HashSet<String>,
    /// The newest revision that the watch has told of.
    seen: u64,
    /// Feeds the store that kube-runtime's controllers read from.
    writer: Writer<K>,
}

struct Entry<K> {
    object: Arc<K>,
    revision: u64,
}

/// Resource versions of one kind can be compared as numbers (so says the API since 1.35).
pub fn revision(meta: &ObjectMeta) -> u64 {
    meta.resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or(0)
}

impl<K: Object> Kind<K> {
    /// A kind that is watched whole and indexed by owner and namespace.
    pub fn new(client: &Client) -> Self {
        let writer = Writer::default();
        Self {
            client: client.clone(),
            store: writer.as_reader(),
            state: RwLock::new(State {
                objects: HashMap::new(),
                index: HashMap::new(),
                deleted: HashSet::new(),
                seen: 0,
                writer,
            }),
            handlers: RwLock::default(),
            ready: watch::Sender::new(false),
            selection: watcher::Config::default(),
            indexes: by_default,
            strip: |_| {},
        }
    }

    /// Watches only objects with these fields.
    pub fn fields(mut self, selector: &str) -> Self {
        self.selection = self.selection.fields(selector);
        self
    }

    /// Whether all objects are watched.
    pub fn is_whole(&self) -> bool {
        self.selection.field_selector.is_none()
    }

    /// Finds objects by other things.
    pub fn indexed(mut self, indexes: fn(&K) -> Vec<By>) -> Self {
        self.indexes = indexes;
        self
    }

    /// Drops from cached objects what no controller reads.
    pub fn stripped(mut self, strip: fn(&mut K)) -> Self {
        self.strip = strip;
        self
    }

    fn read(&self) -> RwLockReadGuard<'_, State<K>> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State<K>> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Watches for ever.
    pub async fn run(&self) {
        let mut events = watcher(Api::<K>::all(self.client.clone()), self.selection.clone().streaming_lists())
            .default_backoff()
            .boxed();
        let mut listed = Vec::new();
        while let Some(event) = events.next().await {
            match event {
                Ok(watcher::Event::Init) => listed.clear(),
                Ok(watcher::Event::InitApply(object)) => listed.push(object),
                Ok(watcher::Event::InitDone) => {
                    self.relisted(std::mem::take(&mut listed));
                    self.ready.send_replace(true);
                }
                Ok(watcher::Event::Apply(object)) => self.observed(object),
                Ok(watcher::Event::Delete(object)) => self.vanished(object.meta()),
                Err(error) => tracing::warn!(%error, kind = %K::kind(&()), "watch failed, trying again"),
            }
        }
    }

    /// Waits until the first list is in.
    pub async fn ready(&self) {
        // The sender lives as long as this does.
        let _ = self.ready.subscribe().wait_for(|ready| *ready).await;
    }

    fn relisted(&self, objects: Vec<K>) {
        let there: HashSet<Key> = objects.iter().map(|o| Key::of(o.meta())).collect();
        let gone: Vec<ObjectMeta> = {
            let mut state = self.write();
            let uids: HashSet<&str> = objects.iter().filter_map(|o| o.meta().uid.as_deref()).collect();
            state.deleted.retain(|uid| uids.contains(uid.as_str()));
            if !*self.ready.borrow() {
                // Tells kube-runtime's store that it is complete; what is in it comes by the same way as all later on.
                state.writer.apply_watcher_event(&watcher::Event::Init);
                state.writer.apply_watcher_event(&watcher::Event::InitDone);
            }
            let known = state.objects.iter().filter(|(key, _)| !there.contains(key));
            known.map(|(_, entry)| entry.object.meta().clone()).collect()
        };
        gone.iter().for_each(|meta| self.vanished(meta));
        objects.into_iter().for_each(|object| self.observed(object));
    }

    /// Takes in what the watch tells.
    fn observed(&self, object: K) {
        let revision = revision(object.meta());
        let change = {
            let mut state = self.write();
            state.seen = state.seen.max(revision);
            self.enter(&mut state, object, revision)
        };
        self.tell(change);
    }

    /// Takes in what a write returned, unless the watch was faster.
    fn wrote(&self, object: K) -> Arc<K> {
        let revision = revision(object.meta());
        let object_of = Arc::new(object.clone());
        let change = {
            let mut state = self.write();
            let known = state.objects.contains_key(&Key::of(object.meta()));
            // What is older than what the watch told and not in the cache was deleted meanwhile.
            if known || revision > state.seen { self.enter(&mut state, object, revision) } else { None }
        };
        self.tell(change);
        object_of
    }

    /// Puts an object into the cache unless that holds it as new or newer.
    fn enter(&self, state: &mut State<K>, mut object: K, revision: u64) -> Option<Change<K>> {
        if object.meta().uid.as_ref().is_some_and(|uid| state.deleted.contains(uid)) {
            return None;
        }
        let key = Key::of(object.meta());
        if state.objects.get(&key).is_some_and(|known| known.revision >= revision) {
            return None;
        }
        object.meta_mut().managed_fields = None;
        (self.strip)(&mut object);
        let event = watcher::Event::Apply(object);
        state.writer.apply_watcher_event(&event);
        // The store's own copy is the one that is shared.
        let stored = self.store.get(&key.reference());
        let object = stored.or(match event {
            watcher::Event::Apply(object) => Some(Arc::new(object)),
            _ => None,
        })?;
        let old = state.objects.insert(key.clone(), Entry { object: object.clone(), revision }).map(|e| e.object);
        let before: HashSet<By> = old.iter().flat_map(|o| (self.indexes)(o)).collect();
        let after: HashSet<By> = (self.indexes)(&object).into_iter().collect();
        for left in before.difference(&after) {
            state.unindex(left, &key);
        }
        for by in after {
            if !before.contains(&by) {
                state.index.entry(by).or_default().insert(key.clone());
            }
        }
        Some(Change { old, new: Some(object) })
    }

    /// Takes out of the cache what the watch says is gone.
    fn vanished(&self, meta: &ObjectMeta) {
        let change = {
            let mut state = self.write();
            state.seen = state.seen.max(revision(meta));
            if let Some(uid) = &meta.uid {
                state.deleted.remove(uid);
            }
            self.leave(&mut state, meta)
        };
        self.tell(change);
    }

    /// Takes an object out of the cache, unless another has its name by now.
    fn leave(&self, state: &mut State<K>, meta: &ObjectMeta) -> Option<Change<K>> {
        let key = Key::of(meta);
        if state.objects.get(&key)?.object.meta().uid != meta.uid {
            return None;
        }
        let old = state.objects.remove(&key)?.object;
        for by in (self.indexes)(&old) {
            state.unindex(&by, &key);
        }
        state.writer.apply_watcher_event(&watcher::Event::Delete((*old).clone()));
        Some(Change { old: Some(old), new: None })
    }

    fn tell(&self, change: Option<Change<K>>) {
        if let Some(change) = change {
            let handlers = self.handlers.read().unwrap_or_else(PoisonError::into_inner);
            handlers.iter().for_each(|handler| handler(&change));
        }
    }

    /// Calls `handler` after each change.
    pub fn on_change(&self, handler: impl Fn(&Change<K>) + Send + Sync + 'static) {
        self.handlers.write().unwrap_or_else(PoisonError::into_inner).push(Box::new(handler));
    }

    /// What `map` makes of each change, as a stream that misses nothing.
    pub fn changes<T: Send + 'static>(
        &self,
        map: impl Fn(&Change<K>) -> Vec<T> + Send + Sync + 'static,
    ) -> BoxStream<'static, T> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.on_change(move |change| {
            for item in map(change) {
                // A controller that has stopped needs no telling.
                let _ = sender.send(item);
            }
        });
        UnboundedReceiverStream::new(receiver).boxed()
    }

    /// The store that kube-runtime reads from.
    pub fn store(&self) -> Store<K> {
        self.store.clone()
    }

    /// The object of this name.
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        self.read().objects.get(&Key::new(namespace, name)).map(|entry| entry.object.clone())
    }

    /// The objects found by `by`, in the order of their names.
    pub fn find(&self, by: &By) -> Vec<Arc<K>> {
        let state = self.read();
        let keys = state.index.get(by).into_iter().flatten();
        keys.filter_map(|key| state.objects.get(key)).map(|entry| entry.object.clone()).collect()
    }

    /// The objects that the owner controls.
    pub fn controlled_by(&self, owner: &ObjectMeta) -> Vec<Arc<K>> {
        owner.uid.as_ref().map(|uid| self.find(&By::Owner(uid.clone()))).unwrap_or_default()
    }

    /// All objects.
    pub fn all(&self) -> Vec<Arc<K>> {
        self.read().objects.values().map(|entry| entry.object.clone()).collect()
    }

    fn request(&self, namespace: &str) -> Request {
        Request::new(K::url_path(&(), (!namespace.is_empty()).then_some(namespace)))
    }

    /// Creates an object.
    pub async fn create(&self, object: &K) -> Result<Arc<K>, kube::Error> {
        let body = serde_json::to_vec(object).map_err(kube::Error::SerdeError)?;
        let namespace = object.meta().namespace.as_deref().unwrap_or("");
        let request = self.request(namespace).create(&post(), body).map_err(kube::Error::BuildRequest)?;
        Ok(self.wrote(crate::acting(&self.client).request(request).await?))
    }

    /// Replaces an object; refused when it was written since.
    pub async fn replace(&self, object: &K) -> Result<Arc<K>, kube::Error> {
        let body = serde_json::to_vec(object).map_err(kube::Error::SerdeError)?;
        let Key { namespace, name } = Key::of(object.meta());
        let request = self.request(&namespace).replace(&name, &post(), body).map_err(kube::Error::BuildRequest)?;
        Ok(self.wrote(crate::acting(&self.client).request(request).await?))
    }

    /// Replaces the status of an object; refused when it was written since.
    pub async fn replace_status(&self, object: &K) -> Result<Arc<K>, kube::Error> {
        let body = serde_json::to_vec(object).map_err(kube::Error::SerdeError)?;
        let Key { namespace, name } = Key::of(object.meta());
        let request = self
            .request(&namespace)
            .replace_subresource("status", &name, &post(), body)
            .map_err(kube::Error::BuildRequest)?;
        Ok(self.wrote(crate::acting(&self.client).request(request).await?))
    }

    /// Patches an object. With its uid or resource version in the patch, it is refused for another or a changed one.
    pub async fn patch<P: Serialize + Debug>(&self, of: &ObjectMeta, patch: &Patch<P>) -> Result<Arc<K>, kube::Error> {
        let Key { namespace, name } = Key::of(of);
        let params = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
        let request = self.request(&namespace).patch(&name, &params, patch).map_err(kube::Error::BuildRequest)?;
        Ok(self.wrote(crate::acting(&self.client).request(request).await?))
    }

    /// Patches the status of an object.
    pub async fn patch_status<P: Serialize + Debug>(
        &self,
        of: &ObjectMeta,
        patch: &Patch<P>,
    ) -> Result<Arc<K>, kube::Error> {
        let Key { namespace, name } = Key::of(of);
        let params = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
        let request =
            self.request(&namespace).patch_subresource("status", &name, &params, patch).map_err(kube::Error::BuildRequest)?;
        Ok(self.wrote(crate::acting(&self.client).request(request).await?))
    }

    /// Deletes this very object (not another of its name). That it is gone already is no error.
    pub async fn delete(&self, of: &ObjectMeta, propagation: Option<PropagationPolicy>) -> Result<(), kube::Error> {
        let preconditions = Some(Preconditions { uid: of.uid.clone(), ..Preconditions::default() });
        self.delete_with(of, &DeleteParams { propagation_policy: propagation, preconditions, ..DeleteParams::default() }).await
    }

    /// Deletes an object on certain terms. That it is gone already is no error.
    pub async fn delete_with(&self, of: &ObjectMeta, params: &DeleteParams) -> Result<(), kube::Error> {
        let Key { namespace, name } = Key::of(of);
        let request = self.request(&namespace).delete(&name, params).map_err(kube::Error::BuildRequest)?;
        match crate::acting(&self.client).request_status::<K>(request).await {
            Ok(answer) => match answer.left().filter(|object| is_terminating(object.meta())) {
                Some(object) => drop(self.wrote(object)),
                None => self.deleted(of, true),
            },
            Err(error) if is_gone(&error) => self.deleted(of, false),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Takes out of the cache what was deleted by us (then the watch will tell of it) or found missing.
    fn deleted(&self, meta: &ObjectMeta, by_us: bool) {
        let change = {
            let mut state = self.write();
            let change = self.leave(&mut state, meta);
            if let (Some(_), true, Some(uid)) = (&change, by_us, &meta.uid) {
                state.deleted.insert(uid.clone());
            }
            change
        };
        self.tell(change);
    }
}

impl<K: Object> State<K> {
    fn unindex(&mut self, by: &By, key: &Key) {
        if let Some(keys) = self.index.get_mut(by) {
            keys.remove(key);
            if keys.is_empty() {
                self.index.remove(by);
            }
        }
    }
}

fn post() -> PostParams {
    PostParams { field_manager: Some(FIELD_MANAGER.into()), ..PostParams::default() }
}

/// Whether a deleted object is still there for a while: in its grace period, or held by finalizers.
fn is_terminating(meta: &ObjectMeta) -> bool {
    meta.deletion_timestamp.is_some()
        && (meta.deletion_grace_period_seconds.unwrap_or(0) > 0 || meta.finalizers.as_ref().is_some_and(|f| !f.is_empty()))
}

/// Whether the error says that the object is not there (any more).
pub fn is_gone(error: &kube::Error) -> bool {
    match error {
        kube::Error::Api(status) => {
            status.code == 404 || (status.code == 409 && status.message.contains("Precondition failed: UID"))
        }
        _ => false,
    }
}

/// Whether the error says that the object was written since it was read.
pub fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409)
}

/// Whether the error says that the name is taken.
pub fn is_taken(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409 && status.reason == "AlreadyExists")
}

/// Whether the error says that the namespace is being deleted, so that nothing can be made in it.
pub fn is_namespace_terminating(error: &kube::Error) -> bool {
    let kube::Error::Api(status) = error else { return false };
    let causes = status.details.iter().flat_map(|d| &d.causes);
    causes.into_iter().any(|c| c.reason == "NamespaceTerminating")
}

/// What the API server said, without the client's words around it: that is what goes into events and conditions.
pub fn message(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}
