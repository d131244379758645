//! Cluster DNS: answers from what is known of Services ([`zone`]), and forwards the rest.

mod forward;
mod serve;
pub mod zone;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};

use futures::StreamExt;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::watcher::{Config as WatchConfig, Event};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use tokio::net::{TcpListener, UdpSocket};
use tokio_util::sync::CancellationToken;

use zone::Zone;

/// How the server works.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where it listens, UDP and TCP.
    pub listen: SocketAddr,
    /// The domain of the cluster's names: `cluster.local`.
    pub domain: String,
    /// Where other questions go, in order; empty for those of `/etc/resolv.conf`.
    pub upstream: Vec<SocketAddr>,
}

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address can't be had.
    #[error("listen on {address} for DNS: {source}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The server broke off.
    #[error("serve DNS: {0}")]
    Serve(String),
    /// A watch came to an end, which it never does by itself.
    #[error("watch services: the watch ended")]
    WatchEnded,
}

type Shared = Arc<RwLock<Zone>>;

/// Serves until `shutdown`.
pub async fn run(config: Config, client: Client, shutdown: CancellationToken) -> Result<(), Error> {
    let zone: Shared = Arc::new(RwLock::new(Zone::new(&config.domain)));
    let failed = |source| Error::Listen { address: config.listen, source };
    let udp = UdpSocket::bind(config.listen).await.map_err(failed)?;
    let tcp = TcpListener::bind(config.listen).await.map_err(failed)?;
    let upstream = if config.upstream.is_empty() { forward::system() } else { config.upstream.clone() };
    tokio::select! {
        result = serve::run(zone.clone(), upstream, udp, tcp) => result,
        result = follow(client, zone) => result,
        () = shutdown.cancelled() => Ok(()),
    }
}

/// Keeps the zone up to date.
async fn follow(client: Client, zone: Shared) -> Result<(), Error> {
    let mut services = std::pin::pin!(watcher(Api::<Service>::all(client.clone()), WatchConfig::default()).default_backoff());
    let mut slices = std::pin::pin!(watcher(Api::<EndpointSlice>::all(client), WatchConfig::default()).default_backoff());
    // What a list in progress has shown.
    let (mut seen_services, mut seen_slices) = (BTreeSet::new(), BTreeSet::new());
    let path = |namespace: Option<String>, name: String| (namespace.unwrap_or_default(), name);
    loop {
        tokio::select! {
            event = services.next() => {
                let mut zone = zone.write().unwrap_or_else(PoisonError::into_inner);
                match event.ok_or(Error::WatchEnded)? {
                    Ok(Event::Init) => seen_services.clear(),
                    Ok(Event::InitApply(service)) => {
                        seen_services.insert(path(service.namespace(), service.name_any()));
                        zone.put_service(service);
                    }
                    Ok(Event::InitDone) => {
                        let gone = zone.known().0.into_iter().filter(|key| !seen_services.contains(key));
                        gone.collect::<Vec<_>>().iter().for_each(|(namespace, name)| zone.remove_service(namespace, name));
                    }
                    Ok(Event::Apply(service)) => zone.put_service(service),
                    Ok(Event::Delete(service)) => zone.remove_service(&service.namespace().unwrap_or_default(), &service.name_any()),
                    Err(error) => tracing::debug!(%error, "watch of services broke, retrying"),
                }
            }
            event = slices.next() => {
                let mut zone = zone.write().unwrap_or_else(PoisonError::into_inner);
                match event.ok_or(Error::WatchEnded)? {
                    Ok(Event::Init) => seen_slices.clear(),
                    Ok(Event::InitApply(slice)) => {
                        seen_slices.insert(path(slice.namespace(), slice.name_any()));
                        zone.put_slice(slice);
                    }
                    Ok(Event::InitDone) => {
                        let gone = zone.known().1.into_iter().filter(|s| !seen_slices.contains(&path(s.namespace(), s.name_any())));
                        gone.collect::<Vec<_>>().iter().for_each(|slice| zone.remove_slice(slice));
                    }
                    Ok(Event::Apply(slice)) => zone.put_slice(slice),
                    Ok(Event::Delete(slice)) => zone.remove_slice(&slice),
                    Err(error) => tracing::debug!(%error, "watch of endpoints broke, retrying"),
                }
            }
        }
    }
}
