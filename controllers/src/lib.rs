//! The controllers: each an independent kube-runtime reconciler.
//!
//! Every kind is watched once ([`kind`]) for all controllers. A reconciler observes the caches, decides in a pure
//! function, and acts through the client; what it wrote is in the caches when it is done.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{
    ConfigMap, Endpoints, Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, ReplicationController, ResourceQuota, Service,
    ServiceAccount,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::ClusterRole;
use k8s_openapi::api::storage::v1::VolumeAttributesClass;
use kube::Client;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

mod aggregation;
mod claim;
mod controller;
mod cronjob;
mod daemonset;
mod deployment;
mod disruption;
mod endpoints;
mod endpointslice;
mod error;
mod events;
mod garbage;
mod hash;
mod history;
mod job;
mod kind;
mod mirroring;
mod namespace;
mod nodeipam;
mod nodelifecycle;
mod podgc;
mod pods;
mod protection;
mod queue;
mod quota;
mod replicas;
mod resources;
mod scaled;
mod serviceaccount;
mod services;
mod statefulset;
mod tainteviction;

use std::pin::Pin;

use events::Recorder;
use kind::{By, Kind};

pub use error::Error;

/// How the controllers work.
#[derive(Clone, Debug)]
pub struct Config {
    /// The certificate (PEM) of the CA that signed the API server's, published in every namespace; none, and it isn't.
    pub root_ca: Option<String>,
    /// The pods' addresses, `10.244.0.0/16`, of which each node gets a share (of each family given); empty, and nodes
    /// get none.
    pub pod_cidrs: Vec<String>,
    /// How many finished pods are kept before the oldest are deleted.
    pub terminated_pods_kept: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { root_ca: None, pod_cidrs: Vec::new(), terminated_pods_kept: 12_500 }
    }
}

/// What every reconciler works with.
pub struct Context {
    /// The shared kinds.
    kinds: Kinds,
    /// Tells people what happened.
    events: Recorder,
    /// Which resources there are.
    catalogue: resources::Catalogue,
    /// Whether the metadata of all resources are watched.
    monitored: tokio::sync::watch::Sender<bool>,
    /// For what no controller of its own does.
    client: Client,
    /// How the controllers work.
    config: Config,
}

impl Context {
    /// For what isn't a shared kind: the client of the controller that asks.
    fn client(&self) -> Client {
        acting(&self.client)
    }
}

/// Makes the client of a controller, by the name of the service account that it acts as.
pub type Accounts = Arc<dyn Fn(&'static str) -> Client + Send + Sync>;

tokio::task_local! {
    /// Who the controller of this task is.
    static ACTING: Client;
}

/// The client of the controller whose task this is; `other` outside of any.
fn acting(other: &Client) -> Client {
    ACTING.try_with(Client::clone).unwrap_or_else(|_| other.clone())
}

/// Work that acts as the controller of the task that makes it, wherever it is carried on.
fn carried<T>(work: impl Future<Output = T>) -> impl Future<Output = T> {
    let client = ACTING.try_with(Client::clone).ok();
    async move {
        match client {
            Some(client) => ACTING.scope(client, work).await,
            None => work.await,
        }
    }
}

/// Declares the shared kinds: a cache each, all of them filled before any controller runs.
macro_rules! kinds {
    ($($(#[$doc:meta])* $field:ident: $kind:ty = $make:expr;)+) => {
        /// The kinds that controllers share.
        struct Kinds {
            $($(#[$doc])* $field: Arc<Kind<$kind>>,)+
        }

        impl Kinds {
            fn new(client: &Client) -> Self {
                Self { $($field: Arc::new($make(Kind::new(client))),)+ }
            }

            /// Waits until all caches are filled.
            async fn ready(&self) {
                $(self.$field.ready().await;)+
            }

            /// Has the garbage collector listen to the kinds that are watched whole; returns these.
            fn heard(&self, collector: &Arc<garbage::Collector>) -> Vec<(String, String)> {
                let mut heard = Vec::new();
                $(collector.listen(&*self.$field, &mut heard);)+
                heard
            }

            /// Starts all watches.
            fn start(&self, tasks: &mut JoinSet<()>) {
                $({
                    let kind = self.$field.clone();
                    tasks.spawn(async move { kind.run().await });
                })+
            }
        }
    };
}

kinds! {
    pods: Pod = |kind: Kind<Pod>| kind.indexed(by_node).stripped(strip_pod);
    replica_sets: ReplicaSet = std::convert::identity;
    replication_controllers: ReplicationController = std::convert::identity;
    budgets: PodDisruptionBudget = std::convert::identity;
    stateful_sets: StatefulSet = std::convert::identity;
    volume_claims: PersistentVolumeClaim = std::convert::identity;
    volumes: PersistentVolume = std::convert::identity;
    attributes_classes: VolumeAttributesClass = std::convert::identity;
    daemon_sets: DaemonSet = std::convert::identity;
    controller_revisions: ControllerRevision = std::convert::identity;
    cron_jobs: CronJob = std::convert::identity;
    jobs: Job = std::convert::identity;
    deployments: Deployment = std::convert::identity;
    namespaces: Namespace = std::convert::identity;
    service_accounts: ServiceAccount = |kind: Kind<ServiceAccount>| kind.fields("metadata.name=default");
    root_cas: ConfigMap = |kind: Kind<ConfigMap>| kind.fields("metadata.name=kube-root-ca.crt");
    leases: Lease = std::convert::identity;
    nodes: Node = |kind: Kind<Node>| kind.stripped(strip_node);
    services: Service = std::convert::identity;
    endpoints: Endpoints = std::convert::identity;
    endpoint_slices: EndpointSlice = std::convert::identity;
    cluster_roles: ClusterRole = std::convert::identity;
    quotas: ResourceQuota = std::convert::identity;
}

/// Pods are found by their node, too.
fn by_node(pod: &Pod) -> Vec<By> {
    let mut by = kind::by_default(pod);
    by.push(By::Node(skiff_api::typed::pods::node_name(pod).to_owned()));
    by
}

/// What no controller reads of a pod.
fn strip_pod(pod: &mut Pod) {
    let Some(spec) = &mut pod.spec else { return };
    for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
        container.args = None;
        container.command = None;
        container.env = None;
        container.env_from = None;
        container.lifecycle = None;
        container.liveness_probe = None;
        container.readiness_probe = None;
        container.startup_probe = None;
        container.security_context = None;
        container.volume_mounts = None;
    }
}

/// What no controller reads of a node.
fn strip_node(node: &mut Node) {
    if let Some(status) = &mut node.status {
        status.images = None;
    }
}

/// A controller's work, until it is dropped.
type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Runs all controllers until `shutdown`. What they watch they share, by `client`; each acts by a client of its own, as
/// upstream's service account of its name (in `kube-system`).
pub async fn run(config: Config, client: Client, accounts: Accounts, shutdown: CancellationToken) -> Result<(), Error> {
    let (events, writer) = Recorder::new(client.clone());
    let context = Arc::new(Context {
        kinds: Kinds::new(&client),
        events,
        catalogue: resources::Catalogue::new(client.clone()),
        monitored: tokio::sync::watch::Sender::new(false),
        client,
        config,
    });
    let (collector, collecting, [left, left_of_quotas]) = garbage::new();
    let heard = context.kinds.heard(&collector);
    let c = || context.clone();
    let controllers: Vec<(&'static str, Work)> = vec![
        ("replicaset-controller", Box::pin(replicas::run::<ReplicaSet>(c()))),
        ("replication-controller", Box::pin(replicas::run::<ReplicationController>(c()))),
        ("deployment-controller", Box::pin(deployment::run(c()))),
        ("job-controller", Box::pin(job::run(c()))),
        ("disruption-controller", Box::pin(disruption::run(c()))),
        ("statefulset-controller", Box::pin(statefulset::run(c()))),
        ("daemon-set-controller", Box::pin(daemonset::run(c()))),
        ("cronjob-controller", Box::pin(cronjob::run(c()))),
        ("ttl-after-finished-controller", Box::pin(job::run_ttl(c()))),
        ("endpoint-controller", Box::pin(endpoints::run(c()))),
        ("endpointslice-controller", Box::pin(endpointslice::run(c()))),
        ("endpointslicemirroring-controller", Box::pin(mirroring::run(c()))),
        ("clusterrole-aggregation-controller", Box::pin(aggregation::run(c()))),
        ("resourcequota-controller", Box::pin(quota::run(c(), left_of_quotas))),
        ("service-account-controller", Box::pin(serviceaccount::run_accounts(c()))),
        ("root-ca-cert-publisher", Box::pin(serviceaccount::run_root_ca(c()))),
        ("node-controller", Box::pin(nodeipam::run(c()))),
        ("node-controller", Box::pin(nodelifecycle::run(c()))),
        ("node-controller", Box::pin(tainteviction::run(c()))),
        ("pvc-protection-controller", Box::pin(protection::run_claims(c()))),
        ("pv-protection-controller", Box::pin(protection::run_volumes(c()))),
        ("volumeattributesclass-protection-controller", Box::pin(protection::run_attributes(c()))),
        ("pod-garbage-collector", Box::pin(podgc::run(c()))),
        ("namespace-controller", Box::pin(namespace::run(c(), left))),
        ("generic-garbage-collector", Box::pin(garbage::run(c(), collector, collecting, heard))),
    ];
    // Ends with this function: the tasks of a set are aborted when it is dropped.
    let mut tasks = JoinSet::new();
    tasks.spawn(writer);
    for (account, work) in controllers {
        tasks.spawn(ACTING.scope(accounts(account), work));
    }
    // Every controller has subscribed by now, when it was made: the watches may begin.
    context.kinds.start(&mut tasks);
    shutdown.cancelled().await;
    Ok(())
}
