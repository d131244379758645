//! Assigns pods to nodes.
//!
//! One task ([`scheduler`]) owns the picture of the cluster and the queue of waiting pods; watches feed it, and what it
//! decides is carried out beside it, so that no decision waits for a request. [`decide`] holds the judgement, with one
//! rule a file in [`plugins`]; nothing there does IO.

use kube::Client;
use tokio_util::sync::CancellationToken;

mod act;
mod cluster;
mod decide;
mod feed;
mod hints;
mod nominated;
mod plugins;
mod pod;
mod preempt;
mod queue;
mod resources;
mod scheduler;
#[cfg(test)]
mod tests;
mod volumes;

/// How the scheduler works.
#[derive(Clone, Debug)]
pub struct Config {
    /// The pods with this `schedulerName` are scheduled; events are reported under it.
    pub name: String,
    /// How many requests to the API may be under way at once.
    pub parallel_requests: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { name: "default-scheduler".into(), parallel_requests: 64 }
    }
}

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server refused a binding.
    #[error("binding rejected: {0}")]
    Bind(#[source] kube::Error),
    /// The reason why a pod waits could not be written.
    #[error("updating the status of a pod: {0}")]
    Report(#[source] kube::Error),
    /// A pod could not be evicted for another.
    #[error("evicting a pod for one of higher priority: {0}")]
    Evict(#[source] kube::Error),
    /// A watch came to an end, which it never does by itself.
    #[error("watching the cluster: all watches ended")]
    WatchesEnded,
}

/// Schedules until `shutdown`.
pub async fn run(config: Config, client: Client, shutdown: CancellationToken) -> Result<(), Error> {
    shutdown.run_until_cancelled(scheduler::run(config, client)).await.unwrap_or(Ok(()))
}
