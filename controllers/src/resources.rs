//! Which resources the cluster has, custom ones included, as discovery tells.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use kube::Client;
use kube::discovery::{ApiResource, Discovery, Scope, verbs};
use tokio::sync::watch;

/// A resource, in the version that discovery recommends.
#[derive(Clone, Debug, PartialEq)]
pub struct Resource {
    /// Its names.
    pub api: ApiResource,
    /// Whether its objects are in namespaces.
    pub namespaced: bool,
    /// Whether all its objects of a namespace can be deleted at once.
    pub delete_collection: bool,
    /// Whether it can be watched.
    pub watchable: bool,
}

impl Resource {
    /// `deployments.apps`, `pods.`: how the conditions of namespaces name it.
    pub fn qualified(&self) -> String {
        format!("{}.{}", self.api.plural, self.api.group)
    }
}

/// The resources that can be listed and deleted, kept up to date by [`Catalogue::refresh`].
pub struct Catalogue {
    client: Client,
    all: RwLock<Arc<Vec<Resource>>>,
    /// Kinds of any version, by API version and kind: which resource that is.
    kinds: RwLock<HashMap<(String, String), usize>>,
    changed: watch::Sender<u64>,
}

impl Catalogue {
    /// An empty catalogue.
    pub fn new(client: Client) -> Self {
        Self { client, all: RwLock::default(), kinds: RwLock::default(), changed: watch::Sender::new(0) }
    }

    /// All resources.
    pub fn all(&self) -> Arc<Vec<Resource>> {
        self.all.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The resource of a kind, in whatever version it is named.
    pub fn of_kind(&self, api_version: &str, kind: &str) -> Option<Resource> {
        let key = (api_version.to_owned(), kind.to_owned());
        let index = *self.kinds.read().unwrap_or_else(PoisonError::into_inner).get(&key)?;
        self.all().get(index).cloned()
    }

    /// Tells when the resources changed.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Asks what resources there are.
    pub async fn refresh(&self) -> Result<(), kube::Error> {
        let discovery = match Discovery::new(crate::acting(&self.client)).run_aggregated().await {
            Ok(discovery) => discovery,
            // A server that doesn't give all at once.
            Err(_) => Discovery::new(crate::acting(&self.client)).run().await?,
        };
        let mut all = Vec::new();
        let mut kinds = HashMap::new();
        for group in discovery.groups_alphabetical() {
            let first = all.len();
            for (api, can) in group.recommended_resources() {
                if !can.supports_operation(verbs::LIST) || !can.supports_operation(verbs::DELETE) {
                    continue;
                }
                all.push(Resource {
                    api,
                    namespaced: can.scope == Scope::Namespaced,
                    delete_collection: can.supports_operation(verbs::DELETE_COLLECTION),
                    watchable: can.supports_operation(verbs::WATCH),
                });
            }
            for version in group.versions() {
                for (api, _) in group.versioned_resources(version) {
                    let same = all[first..].iter().position(|r| r.api.plural == api.plural);
                    if let Some(index) = same {
                        kinds.insert((api.api_version, api.kind), first + index);
                    }
                }
            }
        }
        let new = *self.all() != all;
        *self.kinds.write().unwrap_or_else(PoisonError::into_inner) = kinds;
        *self.all.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(all);
        if new {
            self.changed.send_modify(|n| *n += 1);
        }
        Ok(())
    }
}
