//! Services to packets.
//!
//! Services and EndpointSlices are watched; [`plan`] makes of them the one set of rules that there should be, and
//! [`nft`] carries the difference to the kernel in one transaction.

mod conntrack;
mod forward;
pub mod nft;
pub mod plan;

use std::collections::BTreeMap;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch};
use kube::{Api, Client, ResourceExt};
use tokio_util::sync::CancellationToken;

use nft::Table;
use plan::Rules;

/// How long changes are gathered before rules are written.
const GATHER: Duration = Duration::from_millis(20);
/// How long to wait before rules that the kernel refused are tried again.
const RETRY: Duration = Duration::from_secs(5);

/// How the proxy works.
#[derive(Clone, Debug)]
pub struct Config {
    /// The node whose packets these are.
    pub node_name: String,
    /// The cluster's name; the kernel's table is named after it.
    pub cluster: String,
    /// Where pods' addresses come from; what comes from elsewhere is masqueraded.
    pub pod_cidr: String,
}

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The rules can't be written.
    #[error(transparent)]
    Nft(#[from] nft::Error),
    /// A watch came to an end, which it never does by itself.
    #[error("watch services: the watch ended")]
    WatchEnded,
}

/// Whether this process can write rules: has the privilege, and `nft` is installed.
pub async fn available() -> Result<(), Error> {
    Ok(nft::probe().await?)
}

/// What is known of the cluster.
#[derive(Debug, Default)]
struct Observed {
    services: BTreeMap<String, Service>,
    slices: BTreeMap<String, EndpointSlice>,
    /// Which of the two have been listed completely. Before that, rules would tear down what works.
    listed: (bool, bool),
}

fn key<K: ResourceExt>(object: &K) -> String {
    format!("{}/{}", object.namespace().unwrap_or_default(), object.name_any())
}

/// Takes in one event of a watch. `fresh` gathers a list until it is whole.
fn take_in<K: ResourceExt + Clone>(map: &mut BTreeMap<String, K>, fresh: &mut BTreeMap<String, K>, listed: &mut bool, event: Event<K>) {
    match event {
        Event::Apply(object) => drop(map.insert(key(&object), object)),
        Event::Delete(object) => drop(map.remove(&key(&object))),
        Event::Init => fresh.clear(),
        Event::InitApply(object) => drop(fresh.insert(key(&object), object)),
        Event::InitDone => {
            *map = std::mem::take(fresh);
            *listed = true;
        }
    }
}

/// Takes all rules of a cluster out of the kernel.
pub async fn remove(cluster: &str) -> Result<(), Error> {
    forward::close(cluster).await?;
    Ok(Table::new(cluster).remove().await?)
}

/// Keeps the rules up to date until `shutdown`, then takes them away. After a crash they stay, and the next run takes them up.
pub async fn run(config: Config, client: Client, shutdown: CancellationToken) -> Result<(), Error> {
    nft::let_bridges_be_seen();
    if let Err(error) = forward::open(&config.cluster, &config.pod_cidr).await {
        tracing::warn!(%error, "node ports may not answer to other machines");
    }
    let cluster = config.cluster.clone();
    let result = follow(config, client, shutdown).await;
    let removed = remove(&cluster).await;
    result.and(removed)
}

async fn follow(config: Config, client: Client, shutdown: CancellationToken) -> Result<(), Error> {
    let mut table = Table::new(&config.cluster);
    let mut observed = Observed::default();
    let (mut fresh_services, mut fresh_slices) = (BTreeMap::new(), BTreeMap::new());
    let quiet = |error: &watcher::Error| tracing::debug!(%error, "watch of services broke, retrying");
    let services = watch(Api::<Service>::all(client.clone()), watcher::Config::default()).default_backoff();
    let slices = watch(Api::<EndpointSlice>::all(client), watcher::Config::default()).default_backoff();
    let mut services = std::pin::pin!(services.map_err(|e| quiet(&e)));
    let mut slices = std::pin::pin!(slices.map_err(|e| quiet(&e)));
    let mut due: Option<tokio::time::Instant> = None;
    loop {
        let write = async {
            match due {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            event = services.next() => match event.ok_or(Error::WatchEnded)? {
                Ok(event) => take_in(&mut observed.services, &mut fresh_services, &mut observed.listed.0, event),
                Err(()) => continue,
            },
            event = slices.next() => match event.ok_or(Error::WatchEnded)? {
                Ok(event) => take_in(&mut observed.slices, &mut fresh_slices, &mut observed.listed.1, event),
                Err(()) => continue,
            },
            () = write => {
                let rules: Rules = plan::plan(&config, observed.services.values(), observed.slices.values());
                due = match table.apply(rules).await {
                    Ok(()) => None,
                    Err(error) => {
                        tracing::error!(%error, "service rules could not be written, retrying");
                        Some(tokio::time::Instant::now() + RETRY)
                    }
                };
                continue;
            }
            () = shutdown.cancelled() => return Ok(()),
        }
        if observed.listed == (true, true) && due.is_none() {
            due = Some(tokio::time::Instant::now() + GATHER);
        }
    }
}
