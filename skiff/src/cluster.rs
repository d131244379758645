//! A cluster within this process: for tests, and the heart of `skiff up`.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::future::Future;
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
use skiff_kubelet::runtime::docker::{self, Docker};
use skiff_kubelet::runtime::simulated::Simulated;
use skiff_store::{Memory, Store};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::cli::Cidr;
use crate::dialer::{self, TlsDialer};
use crate::local;

/// What the server's version says behind upstream's.
pub const BUILD: &str = concat!("skiff.", env!("CARGO_PKG_VERSION"));
/// The version that everything here reports.
pub const VERSION: &str = concat!("v1.36.2+skiff.", env!("CARGO_PKG_VERSION"));

/// How large a simulated node is.
pub const SIMULATED_NODE: Capacity = Capacity { cpu_milli: 8_000, memory: 32 << 30, storage: 256 << 30 };

/// What can keep a cluster from coming up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server.
    #[error("start the API server: {0}")]
    Server(#[from] skiff_apiserver::Error),
    /// Keys and certificates.
    #[error(transparent)]
    Pki(#[from] skiff_apiserver::auth::pki::Error),
    /// The way to kubelets of other processes.
    #[error(transparent)]
    Dialer(#[from] dialer::Error),
    /// A directory for the nodes' files.
    #[error("make a directory for the nodes: {0}")]
    Directory(#[source] io::Error),
    /// Docker.
    #[error("use Docker: {0}")]
    Docker(#[from] skiff_kubelet::runtime::Error),
    /// The nodes didn't come up in time.
    #[error("wait for the nodes to be ready: {0}")]
    Nodes(String),
}

/// What runs the pods.
#[derive(Clone, Debug)]
pub enum Nodes {
    /// Nothing: pods only live through their phases.
    Simulated,
    /// Docker.
    Docker {
        /// Where it listens.
        socket: PathBuf,
    },
}

/// A cluster's addresses.
#[derive(Clone, Copy, Debug)]
pub struct Network {
    /// Where pods' addresses come from.
    pub pods: Cidr,
    /// Where Services' addresses come from.
    pub services: Cidr,
    /// The pods' gateway, which is an address of this machine; `None` when pods are simulated.
    pub gateway: Option<IpAddr>,
    /// Where the API server listens.
    pub listen: SocketAddr,
}

impl Network {
    /// Makes the network that pods will be in, so that this machine has the address of their gateway.
    pub async fn prepare(cluster: &str, nodes: &Nodes, pods: Cidr, services: Cidr, listen: SocketAddr) -> Result<Self, Error> {
        let gateway = match nodes {
            Nodes::Simulated => None,
            Nodes::Docker { socket } => {
                docker::prepare_network(socket, cluster, &pods.to_string()).await?;
                Some(IpAddr::V4(pods.nth(1)))
            }
        };
        Ok(Self { pods, services, gateway, listen })
    }

    /// The address of the nodes: one that pods reach, too.
    fn node(&self) -> IpAddr {
        let localhost = IpAddr::V4(Ipv4Addr::LOCALHOST);
        self.gateway.unwrap_or(if self.listen.ip().is_unspecified() { localhost } else { self.listen.ip() })
    }

    /// The address of the DNS service, upstream's customary tenth.
    fn dns(&self) -> Ipv4Addr {
        self.services.nth(10)
    }

    /// The addresses under which clients may know the API server.
    pub fn certificate_addresses(&self, listen: IpAddr) -> Vec<IpAddr> {
        let mut addresses = vec![IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V4(self.services.nth(1))];
        addresses.extend(self.gateway);
        if !listen.is_unspecified() && !addresses.contains(&listen) {
            addresses.push(listen);
        }
        addresses
    }
}

/// What a cluster is made of. The default is a test's: everything in memory, one simulated node.
pub struct Options {
    /// The cluster's name.
    pub name: String,
    /// Where objects are kept.
    pub store: Arc<dyn Store>,
    /// How many nodes there are.
    pub nodes: usize,
    /// What runs their pods.
    pub kind: Nodes,
    /// Where nodes keep the files of pods; `None` for a temporary directory.
    pub data_dir: Option<PathBuf>,
    /// The addresses.
    pub network: Network,
    /// The cluster's certificate authority and token key; `None` for new ones.
    pub keys: Option<(Authority, SigningKey)>,
    /// Whether controllers and scheduler run.
    pub control: bool,
    /// Who may do what, what is told of it, and what is encrypted.
    pub apiserver: skiff_apiserver::options::Options,
}

impl Default for Options {
    fn default() -> Self {
        let range = |a: u8, b: u8| Cidr { first: Ipv4Addr::new(10, a, b, 0).into(), bits: 16 };
        let listen = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 6443);
        Self {
            name: "default".into(),
            store: Arc::new(Memory::new()),
            nodes: 1,
            kind: Nodes::Simulated,
            data_dir: None,
            network: Network { pods: range(244, 0), services: range(96, 0), gateway: None, listen },
            keys: None,
            control: true,
            apiserver: Default::default(),
        }
    }
}

/// A running cluster. It ends when it is dropped, or by [`Cluster::stop`].
pub struct Cluster {
    server: Arc<Server>,
    authority: Authority,
    node_names: Vec<String>,
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
        let dialer = Arc::new(LocalDialer { kubelets: Mutex::default(), remote: TlsDialer::new(&authority)? });
        let config = ServerConfig {
            store: options.store,
            authority: authority.clone(),
            signing_key,
            service_cidr: options.network.services.to_string(),
            advertise: (options.network.node(), options.network.listen.port()),
            dialer: dialer.clone(),
            options: options.apiserver,
            build: BUILD.into(),
        };
        let server = Server::start(config, stop.clone()).await?;
        let node_names = (0..options.nodes).map(|index| format!("{}-{index}", node_prefix(&options.name))).collect();
        let cluster = Self { server, authority, node_names, tasks, stop, _guard: guard };
        if options.control {
            cluster.start_control(options.network.pods);
        }
        let data_dir = match options.data_dir {
            Some(dir) => dir,
            None => temporary_dir().map_err(Error::Directory)?,
        };
        let network = &options.network;
        for (index, name) in (0u32..).zip(&cluster.node_names) {
            let mut config = skiff_kubelet::Config::new(name, &options.name, data_dir.join(name), network.node());
            config.cluster_cidr = network.pods.to_string();
            config.pod_cidr = network.pods.node(index).map(|range| range.to_string());
            config.cluster_dns = network.gateway.map(|_| IpAddr::V4(network.dns()));
            config.kube_version = VERSION.into();
            let runtime: Arc<dyn Runtime> = match &options.kind {
                Nodes::Simulated => Arc::new(Simulated::new(SIMULATED_NODE)),
                Nodes::Docker { socket } => {
                    let (cluster, node, cluster_cidr) = (options.name.clone(), name.clone(), network.pods.to_string());
                    Arc::new(Docker::connect(docker::Options { socket: socket.clone(), cluster, node, cluster_cidr }).await?)
                }
            };
            cluster.start_node(config, runtime, &dialer);
        }
        if let (Some(gateway), Some(first)) = (network.gateway, cluster.node_names.first()) {
            cluster.start_network(&options.name, first, network, gateway);
        }
        Ok(cluster)
    }

    /// Service proxy and DNS, for pods that are real.
    fn start_network(&self, name: &str, node_name: &str, network: &Network, gateway: IpAddr) {
        let config = skiff_proxy::Config { node_name: node_name.into(), cluster: name.into(), pod_cidr: network.pods.to_string() };
        let (stop, proxy) = (self.stop.clone(), self.client("system:kube-proxy", &[]));
        self.spawn(async move { ended("proxy", skiff_proxy::run(config, proxy, stop).await) });
        let listen = SocketAddr::new(gateway, crate::network::DNS_PORT);
        let (stop, dns) = (self.stop.clone(), self.account("coredns"));
        self.spawn(async move { ended("dns", crate::network::dns(dns, listen, stop).await) });
        let (admin, ip) = (self.admin(), IpAddr::V4(network.dns()));
        self.spawn(async move { ended("dns service", crate::network::publish_dns(admin, ip, listen).await) });
    }

    /// Runs something until the cluster stops, which waits for its end.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(task);
    }

    fn start_control(&self, pods: Cidr) {
        let (stop, controllers) = (self.stop.clone(), self.client("system:kube-controller-manager", &[]));
        let server = self.server.clone();
        let accounts: skiff_controllers::Accounts = Arc::new(move |name| account(&server, name));
        let config = skiff_controllers::Config {
            root_ca: Some(self.authority.pair.certificate.clone()),
            pod_cidrs: vec![pods.to_string()],
            ..skiff_controllers::Config::default()
        };
        let task = self.tasks.spawn(async move { ended("controllers", skiff_controllers::run(config, controllers, accounts, stop).await) });
        self.server.add_component("controller-manager", task.abort_handle());
        let (stop, scheduler) = (self.stop.clone(), self.client("system:kube-scheduler", &[]));
        let task = self.tasks.spawn(async move { ended("scheduler", skiff_scheduler::run(Default::default(), scheduler, stop).await) });
        self.server.add_component("scheduler", task.abort_handle());
    }

    fn start_node(&self, config: skiff_kubelet::Config, runtime: Arc<dyn Runtime>, dialer: &Arc<LocalDialer>) {
        let client = self.client(&format!("system:node:{}", config.node_name), &["system:nodes"]);
        let name = config.node_name.clone();
        let kubelet = skiff_kubelet::Kubelet::new(config, client, runtime, self.stop.clone());
        dialer.add(&name, kubelet.router());
        self.spawn(async move { ended("kubelet", kubelet.run().await) });
    }

    /// A client that is the cluster's administrator.
    pub fn admin(&self) -> Client {
        self.client("kubernetes-admin", &["system:masters"])
    }

    /// A client that is `user`, in these groups.
    pub fn client(&self, user: &str, groups: &[&str]) -> Client {
        local::client(&self.server, User::new(user, groups.iter().copied()), "skiff")
    }

    /// A client that is a service account of `kube-system`.
    fn account(&self, name: &str) -> Client {
        account(&self.server, name)
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

    /// Waits until all nodes are ready.
    pub async fn nodes_ready(&self, timeout: Duration) -> Result<(), Error> {
        let nodes: Api<Node> = Api::all(self.admin());
        let wait = async {
            for name in &self.node_names {
                let ready = |node: Option<&Node>| node.is_some_and(is_ready);
                await_condition(nodes.clone(), name, ready).await.map_err(|e| Error::Nodes(e.to_string()))?;
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

/// A client that is a service account of `kube-system`, whether or not there is such an object: rules go by names.
fn account(server: &Arc<Server>, name: &str) -> Client {
    let user = User::new(format!("system:serviceaccount:kube-system:{name}"), ["system:serviceaccounts", "system:serviceaccounts:kube-system"]);
    local::client(server, user, "skiff")
}

/// Whether the node's `Ready` condition is true.
pub fn is_ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_ref());
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

/// Reaches the kubelets of this process, and others over the network.
pub struct LocalDialer {
    kubelets: Mutex<HashMap<String, axum::Router>>,
    remote: TlsDialer,
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
        let Some(router) = router else { return self.remote.dial(node).await };
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
