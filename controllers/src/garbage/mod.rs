//! Garbage collection: objects go when their last owner went, owners that ask for it go after their dependents, and
//! dependents that are to stay are set free.
//!
//! It watches the metadata of every resource that discovery names, custom ones included, save where another controller
//! watches the whole kind anyway: then it listens there.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams, Preconditions, PropagationPolicy};
use kube::core::PartialObjectMeta;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};

use crate::Context;
use crate::controller::Again;
use crate::error::Error;
use crate::kind::{Change, Kind, Object as Typed, is_conflict, is_gone};
use crate::queue::{Queue, Work};
use crate::resources::Resource;

mod graph;

use graph::{Claim, FOREGROUND, Found, Graph, ORPHAN, Object, Task, Uid, Verdict};

/// How many objects are dealt with at once.
const PARALLEL: usize = 32;
/// How long to wait after a resource definition changed before asking what resources there are: several often come
/// together, and the API server needs a moment to serve them.
const SETTLE: Duration = Duration::from_millis(200);
/// When an owner's kind isn't known to the API server, how long until it is asked for again.
const UNKNOWN_KIND: Duration = Duration::from_secs(30);
/// When an owner is there, but its watch hasn't told of it yet, how long until it is looked for again.
const UNSEEN: Duration = Duration::from_millis(500);
/// Events own nothing and are owned by nothing, and there are many.
const NOT_WATCHED: [(&str, &str); 2] = [("", "events"), ("events.k8s.io", "events")];

type Metadata = PartialObjectMeta<DynamicObject>;

/// The dependency graph, and those who are told of it.
pub struct Collector {
    graph: Mutex<Graph>,
    queue: Queue<Task>,
    /// Namespaces that an object left, for two who want to know.
    left: [mpsc::UnboundedSender<String>; 2],
}

impl Collector {
    fn graph(&self) -> MutexGuard<'_, Graph> {
        self.graph.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn observe(&self, resource: &Arc<Resource>, meta: &ObjectMeta) {
        let Some(uid) = &meta.uid else { return };
        let tasks = self.graph().observe(uid, Object::new(resource, meta));
        tasks.into_iter().for_each(|task| self.queue.add(task));
    }

    fn gone(&self, uid: &str, namespace: Option<&str>) {
        let tasks = self.graph().gone(uid);
        tasks.into_iter().for_each(|task| self.queue.add(task));
        if let Some(namespace) = namespace {
            for left in &self.left {
                // Nobody waits for it when that controller has stopped.
                let _ = left.send(namespace.to_owned());
            }
        }
    }

    /// Listens to a kind that is watched for others.
    pub fn listen<K: Typed>(self: &Arc<Self>, kind: &Kind<K>, heard: &mut Vec<(String, String)>) {
        if !kind.is_whole() {
            return;
        }
        let api = kube::discovery::ApiResource::erase::<K>(&());
        heard.push((api.group.clone(), api.plural.clone()));
        let namespaced = !K::url_path(&(), Some("x")).eq(&K::url_path(&(), None));
        let resource = Arc::new(Resource { api, namespaced, delete_collection: true, watchable: true });
        let collector = self.clone();
        kind.on_change(move |change: &Change<K>| match (&change.old, &change.new) {
            (_, Some(new)) => collector.observe(&resource, new.meta()),
            (Some(old), None) => {
                let meta = old.meta();
                collector.gone(meta.uid.as_deref().unwrap_or(""), meta.namespace.as_deref());
            }
            (None, None) => {}
        });
    }
}

/// Makes the collector: what runs it, and the namespaces that objects leave.
pub fn new() -> (Arc<Collector>, Work<Task>, [mpsc::UnboundedReceiver<String>; 2]) {
    let (queue, work) = Queue::new();
    let ((left, leaving), (also_left, also_leaving)) = (mpsc::unbounded_channel(), mpsc::unbounded_channel());
    (Arc::new(Collector { graph: Mutex::default(), queue, left: [left, also_left] }), work, [leaving, also_leaving])
}

/// Runs the controller. `heard` are the resources (group and plural) that it listens to elsewhere.
pub async fn run(context: Arc<Context>, collector: Arc<Collector>, work: Work<Task>, heard: Vec<(String, String)>) {
    let monitors = monitor(context.clone(), collector.clone(), heard);
    let judging = async {
        // Nothing is judged before the graph is whole.
        context.kinds.ready().await;
        let _ = context.monitored.subscribe().wait_for(|ready| *ready).await;
        let (context, collector) = (&context, &collector);
        work.run("garbage-collector-controller", PARALLEL, |task| async move {
            match deal(context, collector, &task).await {
                Ok(again) => Ok(again),
                // The cache is behind: the change that it lacks may be the one that settles the matter.
                Err(error) if error.cause().is_some_and(is_conflict) => Ok(Some(Duration::from_millis(50))),
                Err(error) => Err(error),
            }
        })
        .await;
    };
    futures::join!(monitors, judging);
}

/// Keeps a watch on every resource.
async fn monitor(context: Arc<Context>, collector: Arc<Collector>, heard: Vec<(String, String)>) {
    let catalogue = &context.catalogue;
    let mut changes = catalogue.changes();
    let mut watches: JoinSet<()> = JoinSet::new();
    let mut running: HashMap<String, (Resource, AbortHandle)> = HashMap::new();
    let (redefined, mut definitions) = mpsc::unbounded_channel();
    let mut delay = Duration::ZERO;
    loop {
        tokio::time::sleep(delay).await;
        while definitions.try_recv().is_ok() {}
        if let Err(error) = catalogue.refresh().await {
            tracing::warn!(%error, "asking what resources there are failed, trying again");
            delay = Duration::from_secs(1);
            continue;
        }
        delay = SETTLE;
        changes.mark_unchanged();
        let wanted: BTreeMap<String, Resource> = catalogue
            .all()
            .iter()
            .filter(|resource| is_watched(resource))
            .filter(|r| !heard.iter().any(|(group, plural)| *group == r.api.group && *plural == r.api.plural))
            .map(|r| (r.qualified(), r.clone()))
            .collect();
        running.retain(|name, (resource, watch)| {
            let stays = wanted.get(name) == Some(resource);
            if !stays {
                watch.abort();
                let of = collector.graph().uids_of(|r| r == resource);
                of.iter().for_each(|uid| collector.gone(uid, None));
            }
            stays
        });
        let mut fresh = Vec::new();
        for (name, resource) in wanted {
            if running.contains_key(&name) {
                continue;
            }
            let (ready, listed) = tokio::sync::oneshot::channel();
            let defines = (resource.api.plural == "customresourcedefinitions").then(|| redefined.clone());
            let task = watch(context.client(), Arc::new(resource.clone()), collector.clone(), ready, defines);
            running.insert(name, (resource, watches.spawn(task)));
            fresh.push(listed);
        }
        if !*context.monitored.borrow() {
            futures::future::join_all(fresh).await;
            context.monitored.send_replace(true);
        }
        // Only definitions of resources bring new ones.
        if definitions.recv().await.is_none() {
            return;
        }
    }
}

fn is_watched(resource: &Resource) -> bool {
    resource.watchable && !NOT_WATCHED.contains(&(resource.api.group.as_str(), resource.api.plural.as_str()))
}

/// Watches one resource.
async fn watch(
    client: Client,
    resource: Arc<Resource>,
    collector: Arc<Collector>,
    ready: tokio::sync::oneshot::Sender<()>,
    defines: Option<mpsc::UnboundedSender<()>>,
) {
    let api: Api<Metadata> = Api::all_with(client, &resource.api);
    let mut events = watcher(api, watcher::Config::default().streaming_lists()).default_backoff().boxed();
    let mut ready = Some(ready);
    let mut known: HashMap<String, Option<String>> = HashMap::new();
    let mut listed: HashSet<String> = HashSet::new();
    while let Some(event) = events.next().await {
        match event {
            Ok(watcher::Event::Init) => listed.clear(),
            Ok(watcher::Event::InitApply(object)) => {
                let uid = object.metadata.uid.clone().unwrap_or_default();
                listed.insert(uid.clone());
                known.insert(uid, object.metadata.namespace.clone());
                collector.observe(&resource, &object.metadata);
                // It may have come after the resources were asked for.
                tell(&defines);
            }
            Ok(watcher::Event::InitDone) => {
                known.retain(|uid, namespace| {
                    let there = listed.contains(uid);
                    if !there {
                        collector.gone(uid, namespace.as_deref());
                    }
                    there
                });
                if let Some(ready) = ready.take() {
                    // Whoever waits for the first list may have given up.
                    let _ = ready.send(());
                }
            }
            Ok(watcher::Event::Apply(object)) => {
                known.insert(object.metadata.uid.clone().unwrap_or_default(), object.metadata.namespace.clone());
                collector.observe(&resource, &object.metadata);
                tell(&defines);
            }
            Ok(watcher::Event::Delete(object)) => {
                let uid = object.metadata.uid.unwrap_or_default();
                known.remove(&uid);
                collector.gone(&uid, object.metadata.namespace.as_deref());
                tell(&defines);
            }
            // The resource is gone, with its definition; the monitor will end this watch.
            Err(watcher::Error::WatchStartFailed(error) | watcher::Error::InitialListFailed(error)) if is_gone(&error) => {
                tracing::debug!(resource = resource.qualified(), "nothing more to watch");
            }
            Err(error) => tracing::warn!(%error, resource = resource.qualified(), "watch failed, trying again"),
        }
    }
}

fn tell(defines: &Option<mpsc::UnboundedSender<()>>) {
    if let Some(defines) = defines {
        // The monitor lives as long as its watches.
        let _ = defines.send(());
    }
}

async fn deal(context: &Arc<Context>, collector: &Arc<Collector>, task: &Task) -> Result<Again, Error> {
    match task {
        Task::Judge(uid) => judge(context, collector, uid).await,
        Task::Orphan(uid) => orphan(context, collector, uid).await.map(|()| None),
    }
}

async fn judge(context: &Arc<Context>, collector: &Arc<Collector>, uid: &Uid) -> Result<Again, Error> {
    let mut verified = Vec::new();
    loop {
        let (verdict, object) = {
            let graph = collector.graph();
            (graph.judge(uid, &verified), graph.object(uid).cloned())
        };
        let Some(object) = object else { return Ok(None) };
        match verdict {
            Verdict::Leave => return Ok(None),
            Verdict::Await => return Ok(Some(UNSEEN)),
            Verdict::After(tasks) => {
                tasks.into_iter().for_each(|task| collector.queue.add(task));
                return Ok(None);
            }
            Verdict::Verify(claims) => {
                for claim in claims {
                    match find(context, &claim).await? {
                        Some(Owner::There { watched }) => verified.push(Found { claim, watched }),
                        Some(Owner::Gone) => collector.graph().note_absent(claim),
                        // Nobody can say: better keep what may be owned.
                        None => return Ok(Some(UNKNOWN_KIND)),
                    }
                }
            }
            Verdict::Release(finalizer) => return release(context, uid, &object, finalizer).await.map(|()| None),
            Verdict::Disown(owners) => return disown(context, uid, &object, &owners).await.map(|()| None),
            Verdict::Delete { way, unblock } => {
                if unblock {
                    return unblock_owners(context, uid, &object).await.map(|()| Some(Duration::from_millis(50)));
                }
                return delete(context, collector, uid, &object, way).await.map(|()| None);
            }
        }
    }
}

/// Whether an owner is there.
enum Owner {
    There { watched: bool },
    Gone,
}

/// Looks for the owner; none when its kind isn't known.
async fn find(context: &Context, claim: &Claim) -> Result<Option<Owner>, Error> {
    let find = || context.catalogue.of_kind(&claim.api_version, &claim.kind);
    let mut found = find();
    if found.is_none() {
        // Its definition may be newer than the last look at what there is.
        context.catalogue.refresh().await.map_err(Error::on("asking what resources there are"))?;
        found = find();
    }
    let Some(resource) = found else { return Ok(None) };
    if resource.namespaced && claim.namespace.is_empty() {
        // A cluster-wide object can't be owned by one in a namespace: upstream leaves it alone, too.
        return Ok(None);
    }
    let api = api(context, &resource, &claim.namespace);
    let found = api.get_metadata_opt(&claim.name).await.map_err(Error::on("looking for an owner"))?;
    let there = found.is_some_and(|o| o.metadata.uid.as_deref() == Some(claim.uid.as_str()));
    Ok(Some(if there { Owner::There { watched: is_watched(&resource) } } else { Owner::Gone }))
}

fn api(context: &Context, resource: &Resource, namespace: &str) -> Api<DynamicObject> {
    match resource.namespaced && !namespace.is_empty() {
        true => Api::namespaced_with(context.client(), namespace, &resource.api),
        false => Api::all_with(context.client(), &resource.api),
    }
}

/// Patches the metadata of an object, unless it has changed since.
async fn patch(context: &Context, uid: &Uid, object: &Object, mut meta: Value, what: &'static str) -> Result<(), Error> {
    meta["uid"] = json!(**uid);
    meta["resourceVersion"] = json!(object.version);
    let patch = Patch::Merge(json!({ "metadata": meta }));
    let api = api(context, &object.resource, &object.key.namespace);
    match api.patch_metadata(&object.key.name, &PatchParams::default(), &patch).await {
        Err(error) if !is_gone(&error) => Err(Error::on(what)(error)),
        _ => Ok(()),
    }
}

async fn release(context: &Context, uid: &Uid, object: &Object, finalizer: &str) -> Result<(), Error> {
    let rest: Vec<&String> = object.finalizers.iter().filter(|f| *f != finalizer).collect();
    patch(context, uid, object, json!({ "finalizers": rest }), "taking off a finalizer").await
}

async fn disown(context: &Context, uid: &Uid, object: &Object, owners: &[String]) -> Result<(), Error> {
    let rest: Vec<_> = object.owners.iter().filter(|o| !owners.contains(&o.uid)).collect();
    patch(context, uid, object, json!({ "ownerReferences": rest }), "taking off an owner").await
}

async fn unblock_owners(context: &Context, uid: &Uid, object: &Object) -> Result<(), Error> {
    let mut owners = object.owners.clone();
    owners.iter_mut().for_each(|o| o.block_owner_deletion = Some(false));
    patch(context, uid, object, json!({ "ownerReferences": owners }), "unblocking an owner").await
}

async fn delete(
    context: &Context,
    collector: &Collector,
    uid: &Uid,
    object: &Object,
    way: Option<&str>,
) -> Result<(), Error> {
    let policy = match way {
        Some(FOREGROUND) => PropagationPolicy::Foreground,
        Some(ORPHAN) => PropagationPolicy::Orphan,
        _ => PropagationPolicy::Background,
    };
    let params = DeleteParams {
        propagation_policy: Some(policy),
        preconditions: Some(Preconditions { uid: Some(uid.to_string()), resource_version: object.version.clone() }),
        ..DeleteParams::default()
    };
    tracing::debug!(resource = object.resource.qualified(), key = ?object.key, "deleting what nobody owns any more");
    let api = api(context, &object.resource, &object.key.namespace);
    match api.delete(&object.key.name, &params).await {
        Err(error) if is_gone(&error) => {
            collector.gone(uid, (!object.key.namespace.is_empty()).then_some(object.key.namespace.as_str()));
            Ok(())
        }
        Err(error) => Err(Error::on("deleting what nobody owns any more")(error)),
        Ok(_) => Ok(()),
    }
}

/// Sets the dependents of an object free, then lets it go.
async fn orphan(context: &Arc<Context>, collector: &Arc<Collector>, uid: &Uid) -> Result<(), Error> {
    let (object, dependents) = {
        let graph = collector.graph();
        let dependents = graph.dependents(uid).into_iter();
        let with = dependents.filter_map(|d| graph.object(&d).map(|o| (d.clone(), o.clone())));
        (graph.object(uid).cloned(), with.collect::<Vec<_>>())
    };
    let Some(object) = object.filter(|o| o.deleting && o.finalizers.iter().any(|f| f == ORPHAN)) else { return Ok(()) };
    for (dependent, what) in &dependents {
        disown(context, dependent, what, &[uid.to_string()]).await?;
    }
    release(context, uid, &object, ORPHAN).await
}
