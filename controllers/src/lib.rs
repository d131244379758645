//! The controllers: each an independent kube-runtime reconciler.
//!
//! Every kind is watched once ([`kind`]) for all controllers. A reconciler observes the caches, decides in a pure
//! function, and acts through the client; what it wrote is in the caches when it is done.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{Pod, ReplicationController};
use kube::Client;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

mod claim;
mod controller;
mod deployment;
mod error;
mod events;
mod hash;
mod kind;
mod pods;
mod replicas;
mod scaled;

use events::Recorder;
use kind::{By, Kind};

pub use error::Error;

/// How the controllers work.
#[derive(Clone, Debug, Default)]
pub struct Config {}

/// What every reconciler works with.
pub struct Context {
    /// The shared kinds.
    kinds: Kinds,
    /// Tells people what happened.
    events: Recorder,
    /// For what isn't a shared kind.
    #[allow(dead_code)]
    client: Client,
    /// How the controllers work.
    #[allow(dead_code)]
    config: Config,
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
    deployments: Deployment = std::convert::identity;
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

/// Runs all controllers until `shutdown`.
pub async fn run(config: Config, client: Client, shutdown: CancellationToken) -> Result<(), Error> {
    let (events, writer) = Recorder::new(client.clone());
    let context = Arc::new(Context { kinds: Kinds::new(&client), events, client, config });
    // Ends with this function: the tasks of a set are aborted when it is dropped.
    let mut tasks = JoinSet::new();
    tasks.spawn(writer);
    tasks.spawn(replicas::run::<ReplicaSet>(context.clone()));
    tasks.spawn(replicas::run::<ReplicationController>(context.clone()));
    tasks.spawn(deployment::run(context.clone()));
    // Every controller has subscribed by now, when it was made: the watches may begin.
    context.kinds.start(&mut tasks);
    shutdown.cancelled().await;
    Ok(())
}
