//! A cluster within this process: for tests, and the heart of `skiff up`.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Node;
use kube::runtime::wait::await_condition;
use kube::{Api, Client};
use serde_json::Value;
use skiff_api::value;
use skiff_apiserver::auth::User;
use skiff_apiserver::auth::pki::{Authority, SigningKey};
use skiff_apiserver::dial::{Connection, Dialer};
use skiff_apiserver::{Config as ServerConfig, Server};
use skiff_kubelet::Runtime;
use skiff_kubelet::runtime::Capacity;
use skiff_kubelet::runtime::simulated::Simulated;
use skiff_store::{Memory, Store};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::local;

/// The version that everything here reports.
pub const BUILD: &str = concat!("skiff.", env!("CARGO_PKG_VERSION"));

/// How large a simulated node is.
const SIMULATED_NODE: Capacity = Capacity { cpu_milli: 8_000, memory: 32 << 30, storage: 256 << 30 };

/// What can keep a cluster from coming up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server.
    #[error("start the API server: {0}")]
    Server(#[from] skiff_apiserver::Error),
    /// Keys and certificates.
    #[error(transparent)]
    Pki(#[from] skiff_apiserver::auth::pki::Error),
    /// A directory for the nodes' files.
    #[error("make a directory for the nodes: {0}")]
    Directory(#[source] io::Error),
    /// The nodes didn't come up in time.
    #[error("wait for the nodes to be ready: {0}")]
    Nodes(String),
}

/// What a cluster is made of. The default is a test's: everything in memory, one simulated node.
pub struct Options {
    /// The cluster's name.
    pub name: String,
    /// Where objects are kept.
    pub store: Arc<dyn Store>,
    /// How many nodes there are.
    pub nodes: usize,
    /// What runs their pods; `None` for a simulation a node.
    pub runtime: Option<Arc<dyn Runtime>>,
    /// Where nodes keep the files of pods; `None` for a temporary directory.
    pub data_dir: Option<PathBuf>,
    /// Where cluster IPs come from.
    pub service_cidr: String,
    /// Where pods' addresses come from.
    pub pod_cidr: String,
    /// The address and port that the `kubernetes` Service leads to.
    pub advertise: (IpAddr, u16),
    /// The address of the nodes.
    pub node_ip: IpAddr,
    /// The DNS service's address that pods are told.
    pub dns: Option<IpAddr>,
    /// The cluster's certificate authority and token key; `None` for new ones.
    pub keys: Option<(Authority, SigningKey)>,
    /// Whether controllers and scheduler run.
    pub control: bool,
}

impl Default for Options {
    fn default() -> Self {
        let localhost = IpAddr::V4(Ipv4Addr::LOCALHOST);
        Self {
            name: "default".into(),
            store: Arc::new(Memory::new()),
            nodes: 1,
            runtime: None,
            data_dir: None,
            service_cidr: "10.96.0.0/16".into(),
            pod_cidr: "10.244.0.0/16".into(),
            advertise: (localhost, 6443),
            node_ip: localhost,
            dns: None,
            keys: None,
            control: true,
        }
    }
}

/// A running cluster. It ends when it is dropped, or by [`Cluster::stop`].
pub struct Cluster {
    server: Arc<Server>,
    authority: Authority,
    tasks: TaskTracker,
    stop: CancellationToken,
    _guard: DropGuard,
}

impl Cluster {
    /// A cluster with one simulated node, everything in memory.
    pub async fn start() -> Result<Self, Error> {
        Self::with(Options::default()).await
    }

    /// A cluster as the options say. It is up when this returns; see [`Cluster::nodes_ready`] for its nodes.
    pub async fn with(options: Options) -> Result<Self, Error> {
        let stop = CancellationToken::new();
        let guard = stop.clone().drop_guard();
        let tasks = TaskTracker::new();
        let (authority, signing_key) = match options.keys {
            Some(keys) => keys,
            None => (Authority::generate()?, SigningKey::generate()?),
        };
        let dialer = Arc::new(LocalDialer::default());
        let config = ServerConfig {
            store: options.store,
            authority: authority.clone(),
            signing_key,
            service_cidr: options.service_cidr,
            advertise: options.advertise,
            dialer: dialer.clone(),
            build: BUILD.into(),
        };
        let server = Server::start(config, stop.clone()).await?;
        let cluster = Self { server, authority, tasks, stop, _guard: guard };
        if options.control {
            cluster.start_control(&options.pod_cidr);
        }
        let data_dir = match options.data_dir {
            Some(dir) => dir,
            None => temporary_dir().map_err(Error::Directory)?,
        };
        for index in 0..options.nodes {
            let name = format!("{}-{index}", node_prefix(&options.name));
            let mut config = skiff_kubelet::Config::new(&name, &options.name, data_dir.join(&name), options.node_ip);
            config.cluster_cidr = options.pod_cidr.clone();
            config.pod_cidr = Some(format!("10.244.{index}.0/24"));
            config.cluster_dns = options.dns;
            let runtime = options.runtime.clone().unwrap_or_else(|| Arc::new(Simulated::new(SIMULATED_NODE)));
            cluster.start_node(config, runtime, &dialer);
        }
        Ok(cluster)
    }

    fn start_control(&self, pod_cidr: &str) {
        let _ = pod_cidr;
        let (stop, controllers) = (self.stop.clone(), self.client("system:kube-controller-manager", &["system:masters"]));
        self.tasks.spawn(async move { ended("controllers", skiff_controllers::run(Default::default(), controllers, stop).await) });
        let (stop, scheduler) = (self.stop.clone(), self.client("system:kube-scheduler", &["system:masters"]));
        self.tasks.spawn(async move { ended("scheduler", skiff_scheduler::run(Default::default(), scheduler, stop).await) });
    }

    fn start_node(&self, config: skiff_kubelet::Config, runtime: Arc<dyn Runtime>, _dialer: &Arc<LocalDialer>) {
        let client = self.client(&format!("system:node:{}", config.node_name), &["system:nodes"]);
        let stop = self.stop.clone();
        self.tasks.spawn(async move { ended("kubelet", skiff_kubelet::run(config, client, runtime, stop).await) });
    }

    /// A client that is the cluster's administrator.
    pub fn admin(&self) -> Client {
        self.client("kubernetes-admin", &["system:masters"])
    }

    /// A client that is `user`, in these groups.
    pub fn client(&self, user: &str, groups: &[&str]) -> Client {
        local::client(&self.server, User::new(user, groups.iter().copied()), "skiff")
    }

    /// The API server.
    pub fn server(&self) -> &Arc<Server> {
        &self.server
    }

    /// The cluster's certificate authority.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// What ends the cluster when it is cancelled.
    pub fn stopping(&self) -> &CancellationToken {
        &self.stop
    }

    /// Waits until `count` nodes are ready.
    pub async fn nodes_ready(&self, count: usize, timeout: Duration) -> Result<(), Error> {
        let nodes: Api<Node> = Api::all(self.admin());
        let wait = async {
            let found = nodes.list(&Default::default()).await.map_err(|e| Error::Nodes(e.to_string()))?;
            let _ = found;
            for index in 0..count {
                let name = format!("{}-{index}", node_prefix("default"));
                await_condition(nodes.clone(), &name, ready).await.map_err(|e| Error::Nodes(e.to_string()))?;
            }
            Ok(())
        };
        tokio::time::timeout(timeout, wait).await.unwrap_or_else(|_| Err(Error::Nodes(format!("not within {timeout:?}"))))
    }

    /// Ends the cluster and waits for its parts.
    pub async fn stop(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

fn ready(node: Option<&Node>) -> bool {
    let conditions = node.and_then(|n| n.status.as_ref()).and_then(|s| s.conditions.as_ref());
    conditions.is_some_and(|list| list.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
}

/// What the names of a cluster's nodes begin with.
pub fn node_prefix(cluster: &str) -> String {
    if cluster == "default" { "skiff".into() } else { format!("skiff-{cluster}") }
}

fn ended<E: std::fmt::Display>(component: &str, result: Result<(), E>) {
    if let Err(error) = result {
        tracing::error!(component, %error, "component ended");
    }
}

fn temporary_dir() -> io::Result<PathBuf> {
    let dir = std::env::temp_dir().join(format!("skiff-{}-{}", std::process::id(), skiff_api::random::suffix(8)));
    std::fs::create_dir_all(&dir)?;
    Ok(dir)
}

/// Reaches the kubelets of this process.
#[derive(Default)]
pub struct LocalDialer {
    kubelets: Mutex<HashMap<String, axum::Router>>,
}

impl LocalDialer {
    /// Makes a kubelet's API reachable under its node's name.
    pub fn add(&self, node: &str, router: axum::Router) {
        self.kubelets.lock().unwrap_or_else(PoisonError::into_inner).insert(node.into(), router);
    }
}

#[async_trait]
impl Dialer for LocalDialer {
    async fn dial(&self, node: &Value) -> io::Result<Box<dyn Connection>> {
        let name = value::text(node, &["metadata", "name"]);
        let router = self.kubelets.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned();
        let router = router.ok_or_else(|| io::Error::new(io::ErrorKind::NotConnected, format!("no kubelet of node {name:?} in this process")))?;
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        tokio::spawn(async move {
            let service = hyper_util::service::TowerToHyperService::new(router);
            let connection = hyper::server::conn::http1::Builder::new().serve_connection(hyper_util::rt::TokioIo::new(theirs), service);
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "connection to a kubelet ended");
            }
        });
        Ok(Box::new(ours))
    }
}
