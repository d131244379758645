//! What all parts of one node's kubelet share.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, Service};
use kube::runtime::reflector;
use tokio::sync::{Notify, watch};

use crate::admission::Admission;
use crate::config::Config;
use crate::events::Recorder;
use crate::images::Puller;
use crate::network::{self, Pool};
use crate::objects::Objects;
use crate::runtime::Runtime;
use crate::volumes::TokenCache;

/// How long a container waits until the Services are known.
const SERVICES_WAIT: Duration = Duration::from_secs(10);

/// What all parts of one node's kubelet share.
pub(crate) struct Context {
    pub(crate) config: Config,
    pub(crate) client: kube::Client,
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) events: Recorder,
    pub(crate) images: Puller,
    pub(crate) objects: Objects,
    pub(crate) tokens: TokenCache,
    /// All Services, for the variables that tell of them; known only where containers are real.
    pub(crate) services: reflector::Store<Service>,
    /// The pods of this node, by namespace and name, for the server.
    pub(crate) pods: RwLock<HashMap<(String, String), Arc<Pod>>>,
    /// Where the server listens, once it does.
    pub(crate) port: watch::Sender<Option<u16>>,
    /// Something that the node's status tells may have changed.
    pub(crate) node_changed: Notify,
    /// What the node's pods take of it.
    admission: Mutex<Admission>,
    /// The pods' addresses, once the node has a range.
    pool: Mutex<Option<Pool>>,
}

impl Context {
    pub(crate) fn new(config: Config, client: kube::Client, runtime: Arc<dyn Runtime>, events: Recorder, services: reflector::Store<Service>) -> Self {
        Self {
            config,
            objects: Objects::new(client.clone()),
            tokens: TokenCache::default(),
            services,
            client,
            runtime,
            events,
            images: Puller::default(),
            pods: RwLock::default(),
            port: watch::channel(None).0,
            node_changed: Notify::new(),
            admission: Mutex::default(),
            pool: Mutex::default(),
        }
    }

    fn pool(&self) -> MutexGuard<'_, Option<Pool>> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the node's pods take of it.
    pub(crate) fn admission(&self) -> MutexGuard<'_, Admission> {
        self.admission.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the range of pod addresses.
    pub(crate) fn set_pool(&self, pool: Pool) {
        *self.pool() = Some(pool);
    }

    /// Whether pods can have addresses.
    pub(crate) fn has_pool(&self) -> bool {
        self.pool().is_some()
    }

    /// The address of a pod.
    pub(crate) fn take_address(&self, uid: &str) -> Option<Result<IpAddr, network::Error>> {
        self.pool().as_mut().map(|pool| pool.take(uid))
    }

    /// Keeps the address of a pod that runs since before this kubelet.
    pub(crate) fn adopt_address(&self, uid: &str, address: IpAddr) {
        if let Some(pool) = self.pool().as_mut() {
            pool.adopt(uid, address);
        }
    }

    /// Gives back the address of a pod.
    pub(crate) fn release_address(&self, uid: &str) {
        if let Some(pool) = self.pool().as_mut() {
            pool.release(uid);
        }
    }

    /// All Services, once they are known.
    pub(crate) async fn services(&self) -> Option<Vec<Arc<Service>>> {
        match tokio::time::timeout(SERVICES_WAIT, self.services.wait_until_ready()).await {
            Ok(Ok(())) => Some(self.services.state()),
            _ => None,
        }
    }

    /// The pod of that name.
    pub(crate) fn find_pod(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        let pods = self.pods.read().unwrap_or_else(PoisonError::into_inner);
        pods.get(&(namespace.to_owned(), name.to_owned())).cloned()
    }

    /// All pods.
    pub(crate) fn all_pods(&self) -> Vec<Arc<Pod>> {
        self.pods.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}
