//! The node agent: pods on Docker, or simulated.
//!
//! [`Kubelet`] registers a node and keeps a worker (a task) for each of its pods. A worker looks at the pod's spec and at
//! what the [`runtime`] has of it, lets [`plan`] decide the next steps, carries them out, and writes the [`status`] that
//! follows from what it sees. It talks to the API through a `kube::Client` and to nothing else of the cluster.

mod act;
mod admission;
pub mod certificates;
pub mod config;
mod context;
mod end;
pub mod env;
pub mod events;
mod images;
pub mod keyring;
mod kubelet;
pub mod network;
pub mod node;
pub mod objects;
pub mod plan;
pub mod pod;
pub mod probes;
pub mod resolv;
pub mod runtime;
pub mod security;
mod server;
mod start;
pub mod status;
pub mod streams;
#[cfg(test)]
mod testing;
pub mod volumes;
mod worker;

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

pub use config::{Config, Listen};
pub use kubelet::{Error, Kubelet};
pub use runtime::Runtime;
pub use server::serve_connection;

/// Runs a node's kubelet until shutdown. Who needs its server in process makes a [`Kubelet`] instead.
pub async fn run(config: Config, client: kube::Client, runtime: Arc<dyn Runtime>, shutdown: CancellationToken) -> Result<(), Error> {
    Kubelet::new(config, client, runtime, shutdown).run().await
}
