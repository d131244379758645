//! The ConfigMaps and Secrets that the node's pods name, each watched by its name as long as a pod names it.
//!
//! A node may read these and no others, so there is a watch for each and none for all.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{ConfigMap, Container, Pod, Secret};
use kube::api::Api;
use kube::runtime::watcher::{Error as WatchError, watch_object};
use kube::runtime::{WatchStreamExt, watcher::DefaultBackoff};
use tokio::sync::{Notify, watch};
use tokio_util::task::AbortOnDropHandle;

use crate::pod;

/// How long the first look at an object may take.
const FIRST_LOOK: Duration = Duration::from_secs(60);

/// Which of the two kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// ConfigMap
    ConfigMap,
    /// Secret
    Secret,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ConfigMap => "configmap",
            Self::Secret => "secret",
        })
    }
}

/// One object by name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// What is in an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Content {
    /// A ConfigMap's `data`, or a Secret's.
    pub data: BTreeMap<String, Vec<u8>>,
    /// A ConfigMap's `binaryData`: no environment variables come of it.
    pub binary: BTreeMap<String, Vec<u8>>,
    /// A Secret's type.
    pub type_: String,
}

impl From<ConfigMap> for Content {
    fn from(object: ConfigMap) -> Self {
        let data = object.data.unwrap_or_default().into_iter().map(|(key, text)| (key, text.into_bytes())).collect();
        let binary = object.binary_data.unwrap_or_default().into_iter().map(|(key, bytes)| (key, bytes.0)).collect();
        Self { data, binary, type_: String::new() }
    }
}

impl From<Secret> for Content {
    fn from(object: Secret) -> Self {
        let data = object.data.unwrap_or_default().into_iter().map(|(key, bytes)| (key, bytes.0)).collect();
        Self { data, binary: BTreeMap::new(), type_: object.type_.unwrap_or_default() }
    }
}

/// What is known of an object.
#[derive(Clone, Debug)]
enum Known {
    /// Nothing yet.
    Nothing,
    /// What it holds; `None` when it isn't there.
    Content(Option<Arc<Content>>),
    /// It can't be read.
    Refused(String),
}

struct Watched {
    state: watch::Receiver<Known>,
    /// Who is told of changes, by the uid of the pod.
    pods: Arc<Mutex<HashMap<String, Arc<Notify>>>>,
    _task: AbortOnDropHandle<()>,
}

/// All objects that are watched.
pub(crate) struct Objects {
    client: kube::Client,
    watched: Mutex<HashMap<Key, Watched>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Objects {
    pub(crate) fn new(client: kube::Client) -> Self {
        Self { client, watched: Mutex::default() }
    }

    /// Watches what a pod names, and rings its bell when any of it changes.
    pub(crate) fn register(&self, pod: &Pod, bell: &Arc<Notify>) {
        let named = references(pod);
        let uid = pod::uid(pod);
        let mut watched = lock(&self.watched);
        for key in named {
            let entry = watched.entry(key.clone()).or_insert_with(|| self.watch(key));
            lock(&entry.pods).insert(uid.to_owned(), bell.clone());
        }
    }

    /// Forgets a pod, and what no other pod names.
    pub(crate) fn unregister(&self, uid: &str) {
        lock(&self.watched).retain(|_, watched| {
            let mut pods = lock(&watched.pods);
            pods.remove(uid);
            !pods.is_empty()
        });
    }

    /// What an object holds now, `None` when it isn't there. Only what a pod named is known.
    pub(crate) async fn get(&self, key: &Key) -> Result<Option<Arc<Content>>, String> {
        let state = lock(&self.watched).get(key).map(|w| w.state.clone());
        let Some(mut state) = state else { return Err(format!("{} {:?} is not among what the pod names", key.kind, key.name)) };
        let known = tokio::time::timeout(FIRST_LOOK, state.wait_for(|known| !matches!(known, Known::Nothing))).await;
        match known.map(|known| known.map(|known| known.clone())) {
            Ok(Ok(Known::Content(content))) => Ok(content),
            Ok(Ok(Known::Refused(why))) => Err(why),
            _ => Err(format!("failed to sync {} cache: timed out waiting for the condition", key.kind)),
        }
    }

    fn watch(&self, key: Key) -> Watched {
        let (sender, state) = watch::channel(Known::Nothing);
        let pods: Arc<Mutex<HashMap<String, Arc<Notify>>>> = Arc::default();
        let (client, bells) = (self.client.clone(), pods.clone());
        let task = tokio::spawn(async move {
            match key.kind {
                Kind::ConfigMap => follow::<ConfigMap>(client, key, sender, &bells).await,
                Kind::Secret => follow::<Secret>(client, key, sender, &bells).await,
            }
        });
        Watched { state, pods, _task: AbortOnDropHandle::new(task) }
    }
}

async fn follow<K>(client: kube::Client, key: Key, sender: watch::Sender<Known>, bells: &Mutex<HashMap<String, Arc<Notify>>>)
where
    K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + fmt::Debug
        + Send
        + serde::de::DeserializeOwned
        + Into<Content>
        + 'static,
{
    let api: Api<K> = Api::namespaced(client, &key.namespace);
    let mut changes = watch_object(api, &key.name).backoff(DefaultBackoff::default()).boxed();
    while let Some(change) = changes.next().await {
        let known = match change {
            Ok(object) => Known::Content(object.map(|object| Arc::new(object.into()))),
            Err(error) => {
                // What was known stays; what wasn't is said to be refused if it is.
                let refused = match &error {
                    WatchError::InitialListFailed(kube::Error::Api(status)) | WatchError::WatchStartFailed(kube::Error::Api(status)) => {
                        (status.code == 403).then(|| status.message.clone())
                    }
                    _ => None,
                };
                tracing::debug!(kind = %key.kind, namespace = key.namespace, name = key.name, %error, "watching failed, retrying");
                match refused {
                    Some(why) if !matches!(*sender.borrow(), Known::Content(_)) => Known::Refused(why),
                    _ => continue,
                }
            }
        };
        sender.send_replace(known);
        lock(bells).values().for_each(|bell| bell.notify_one());
    }
}

/// All that a pod names, in its environment, its volumes and for its images.
pub fn references(pod: &Pod) -> BTreeSet<Key> {
    let mut named = BTreeSet::new();
    let namespace = pod::namespace(pod).to_owned();
    let mut add = |kind, name: &str| {
        if !name.is_empty() {
            named.insert(Key { kind, namespace: namespace.clone(), name: name.to_owned() });
        }
    };
    let ephemeral: Vec<Container> = pod::ephemeral_containers(pod).into_iter().map(|(c, _)| c).collect();
    for container in pod::init_containers(pod).iter().chain(pod::containers(pod)).chain(&ephemeral) {
        for source in container.env_from.iter().flatten() {
            source.config_map_ref.iter().for_each(|r| add(Kind::ConfigMap, &r.name));
            source.secret_ref.iter().for_each(|r| add(Kind::Secret, &r.name));
        }
        for source in container.env.iter().flatten().filter_map(|e| e.value_from.as_ref()) {
            source.config_map_key_ref.iter().for_each(|r| add(Kind::ConfigMap, &r.name));
            source.secret_key_ref.iter().for_each(|r| add(Kind::Secret, &r.name));
        }
    }
    let Some(spec) = pod::spec(pod) else { return named };
    spec.image_pull_secrets.iter().flatten().for_each(|r| add(Kind::Secret, &r.name));
    for volume in spec.volumes.iter().flatten() {
        volume.config_map.iter().for_each(|v| add(Kind::ConfigMap, &v.name));
        volume.secret.iter().for_each(|v| add(Kind::Secret, v.secret_name.as_deref().unwrap_or_default()));
        for source in volume.projected.iter().flat_map(|v| v.sources.iter().flatten()) {
            source.config_map.iter().for_each(|s| add(Kind::ConfigMap, &s.name));
            source.secret.iter().for_each(|s| add(Kind::Secret, &s.name));
        }
    }
    named
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn all_that_a_pod_names_is_found() {
        let pod = crate::testing::pod(json!({
            "imagePullSecrets": [{"name": "pull"}],
            "initContainers": [{"name": "x", "envFrom": [{"secretRef": {"name": "from"}}]}],
            "containers": [{"name": "a", "env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "key", "key": "k"}}}]}],
            "volumes": [{"name": "v", "secret": {"secretName": "vol"}}, {"name": "p", "projected": {"sources": [{"configMap": {"name": "pro"}}]}}],
        }));
        let named: Vec<_> = references(&pod).into_iter().map(|key| format!("{} {}", key.kind, key.name)).collect();
        assert_eq!(named, ["configmap key", "configmap pro", "secret from", "secret pull", "secret vol"]);
    }
}
