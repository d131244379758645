//! The kubelet as a whole: watches the node's pods and keeps a worker for each.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::pin::pin;
use std::sync::{Arc, PoisonError};

use futures::TryStreamExt;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::api::Api;
use kube::runtime::watcher::{self, Event as Watched};
use kube::runtime::{WatchStreamExt, reflector, watcher as watch_objects};
use tokio::sync::{Notify, broadcast, watch};
use tokio::task::{Id, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::context::Context;
use crate::events::Recorder;
use crate::node::{self, Keeper};
use crate::runtime::{Event, PodRef, Reality, Runtime};
use crate::worker::{Update, Worker};
use crate::{end, pod, server};

/// A kubelet that failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The node's object can't be kept.
    #[error(transparent)]
    Node(#[from] node::Error),
    /// The data directory can't be used.
    #[error("make the data directory {path}")]
    DataDir {
        /// The directory.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The kubelet's server can't listen.
    #[error("listen at {address}")]
    Listen {
        /// Where.
        address: String,
        /// Why.
        source: std::io::Error,
    },
}

/// One node's agent.
pub struct Kubelet {
    ctx: Arc<Context>,
    services: reflector::store::Writer<Service>,
    shutdown: CancellationToken,
}

/// A pod's worker, as seen from outside.
struct Handle {
    updates: watch::Sender<Update>,
    bell: Arc<Notify>,
    task: Id,
}

impl Kubelet {
    /// A kubelet that runs pods on `runtime`, until `shutdown`.
    pub fn new(config: Config, client: kube::Client, runtime: Arc<dyn Runtime>, shutdown: CancellationToken) -> Self {
        let events = Recorder::start(client.clone(), &config.node_name, shutdown.clone());
        let (reader, services) = reflector::store();
        Self { ctx: Arc::new(Context::new(config, client, runtime, events, reader)), services, shutdown }
    }

    /// The kubelet's own API, to be served in process; see [`crate::serve_connection`].
    pub fn router(&self) -> axum::Router {
        server::router(self.ctx.clone())
    }

    /// Registers the node and runs its pods until shutdown. Containers live on after it.
    pub async fn run(self) -> Result<(), Error> {
        let Self { ctx, services, shutdown } = self;
        let data_dir = &ctx.config.data_dir;
        std::fs::create_dir_all(data_dir).map_err(|source| Error::DataDir { path: data_dir.display().to_string(), source })?;
        let serve = async {
            let Some(listen) = &ctx.config.listen else { return Ok(()) };
            let served = server::listen(ctx.clone(), listen, shutdown.clone()).await;
            served.map_err(|source| Error::Listen { address: listen.address.to_string(), source })
        };
        let run = run_pods(&ctx, services, &shutdown);
        tokio::try_join!(serve, run).map(|_| ())
    }
}

/// Registers the node, and runs its pods.
async fn run_pods(ctx: &Arc<Context>, services: reflector::store::Writer<Service>, shutdown: &CancellationToken) -> Result<(), Error> {
    let mut keeper = Keeper::new(ctx);
    match keeper.register(shutdown).await {
        Err(_) if shutdown.is_cancelled() => return Ok(()),
        other => other?,
    }
    let mut pods = Pods { ctx: ctx.clone(), workers: HashMap::new(), tasks: JoinSet::new(), seen: None };
    tokio::join!(keeper.run(shutdown.clone()), pods.run(shutdown), watch_services(ctx, services, shutdown));
    Ok(())
}

/// Keeps all Services known, where containers are told of them.
async fn watch_services(ctx: &Context, writer: reflector::store::Writer<Service>, shutdown: &CancellationToken) {
    if ctx.runtime.reality() == Reality::Simulated {
        return;
    }
    let changes = watch_objects(Api::<Service>::all(ctx.client.clone()), watcher::Config::default()).default_backoff();
    let changes = changes.modify(|service| {
        service.metadata.managed_fields = None;
        service.status = None;
    });
    let mut changes = pin!(reflector(writer, changes));
    loop {
        tokio::select! {
            change = changes.try_next() => match change {
                Ok(Some(_)) => {}
                Ok(None) => return,
                Err(error) => tracing::warn!(%error, "watching services failed, retrying"),
            },
            () = shutdown.cancelled() => return,
        }
    }
}

/// The workers of a node's pods.
struct Pods {
    ctx: Arc<Context>,
    /// By uid.
    workers: HashMap<String, Handle>,
    tasks: JoinSet<String>,
    /// The uids that a list in progress has told so far.
    seen: Option<HashSet<String>>,
}

impl Pods {
    async fn run(&mut self, shutdown: &CancellationToken) {
        let fields = format!("spec.nodeName={}", self.ctx.config.node_name);
        let pods: Api<Pod> = Api::all(self.ctx.client.clone());
        let changes = watch_objects(pods, watcher::Config::default().fields(&fields)).default_backoff();
        let mut changes = pin!(changes.modify(|pod| pod.metadata.managed_fields = None));
        let mut events = self.ctx.runtime.events();
        // Before any pod gets an address: which ones are taken.
        for (pod, address) in self.known().await {
            if let Some(address) = address {
                self.ctx.adopt_address(&pod.uid, address);
            }
        }
        loop {
            tokio::select! {
                change = changes.try_next() => match change {
                    Ok(Some(change)) => self.take(change).await,
                    Ok(None) => return,
                    Err(error) => tracing::warn!(%error, "watching the node's pods failed, retrying"),
                },
                event = events.recv() => match event {
                    Ok(Event::Pod(uid)) => if let Some(worker) = self.workers.get(&uid) {
                        worker.bell.notify_one();
                    },
                    Ok(Event::All) | Err(broadcast::error::RecvError::Lagged(_)) => {
                        self.workers.values().for_each(|worker| worker.bell.notify_one());
                    }
                    Err(broadcast::error::RecvError::Closed) => return,
                },
                Some(done) = self.tasks.join_next_with_id() => self.take_done(done),
                () = shutdown.cancelled() => return,
            }
        }
    }

    async fn take(&mut self, change: Watched<Pod>) {
        match change {
            Watched::Init => self.seen = Some(HashSet::new()),
            Watched::InitApply(pod) | Watched::Apply(pod) => self.apply(pod),
            Watched::Delete(pod) => self.remove(pod),
            Watched::InitDone => {
                let Some(seen) = self.seen.take() else { return };
                let missing: Vec<_> = self.workers.iter().filter(|(uid, _)| !seen.contains(*uid)).map(|(_, w)| w.updates.borrow().pod.clone()).collect();
                missing.into_iter().for_each(|pod| self.remove(Arc::unwrap_or_clone(pod)));
                self.end_strangers().await;
            }
        }
    }

    fn apply(&mut self, pod: Pod) {
        let uid = pod::uid(&pod).to_owned();
        if let Some(seen) = &mut self.seen {
            seen.insert(uid.clone());
        }
        let pod = Arc::new(pod);
        let key = (pod::namespace(&pod).to_owned(), pod::name(&pod).to_owned());
        self.ctx.pods.write().unwrap_or_else(PoisonError::into_inner).insert(key, pod.clone());
        let update = Update { pod, gone: false };
        match self.workers.get(&uid) {
            Some(worker) => {
                worker.updates.send_replace(update);
            }
            None => {
                let (updates, inbox) = watch::channel(update);
                let bell = Arc::new(Notify::new());
                let worker = Worker::new(self.ctx.clone(), inbox, bell.clone());
                let name = uid.clone();
                let task = self.tasks.spawn(async move {
                    worker.run().await;
                    name
                });
                self.workers.insert(uid, Handle { updates, bell, task: task.id() });
            }
        }
    }

    fn remove(&mut self, pod: Pod) {
        let uid = pod::uid(&pod).to_owned();
        let key = (pod::namespace(&pod).to_owned(), pod::name(&pod).to_owned());
        let mut pods = self.ctx.pods.write().unwrap_or_else(PoisonError::into_inner);
        // Another pod may have the name by now.
        if pods.get(&key).is_some_and(|known| pod::uid(known) == uid) {
            pods.remove(&key);
        }
        drop(pods);
        if let Some(worker) = self.workers.get(&uid) {
            worker.updates.send_replace(Update { pod: Arc::new(pod), gone: true });
        }
    }

    fn take_done(&mut self, done: Result<(Id, String), tokio::task::JoinError>) {
        let uid = match done {
            Ok((_, uid)) => Some(uid),
            Err(error) => {
                tracing::error!(%error, "a pod's worker failed");
                self.workers.iter().find(|(_, w)| w.task == error.id()).map(|(uid, _)| uid.clone())
            }
        };
        let Some(uid) = uid else { return };
        let Some(handle) = self.workers.remove(&uid) else { return };
        let last = handle.updates.borrow().clone();
        // A worker that died before its pod's end is replaced.
        if !last.gone && self.ctx.find_pod(pod::namespace(&last.pod), pod::name(&last.pod)).is_some_and(|p| pod::uid(&p) == uid) {
            self.apply(Arc::unwrap_or_clone(last.pod));
        }
    }

    /// What the runtime has; nothing while it can't be asked.
    async fn known(&self) -> Vec<(PodRef, Option<IpAddr>)> {
        self.ctx.runtime.pods().await.unwrap_or_else(|error| {
            tracing::warn!(%error, "listing the pods of the container runtime failed");
            Vec::new()
        })
    }

    /// Ends what the runtime has of pods that the API doesn't have: they were deleted while no kubelet ran.
    async fn end_strangers(&self) {
        for (stranger, _) in self.known().await.into_iter().filter(|(p, _)| !self.workers.contains_key(&p.uid)) {
            let ctx = self.ctx.clone();
            tokio::spawn(async move {
                tracing::info!(pod = stranger.name, namespace = stranger.namespace, uid = stranger.uid, "removing a pod that was deleted meanwhile");
                if let Err(error) = end::remove_stranger(&ctx, &stranger).await {
                    tracing::warn!(pod = stranger.name, namespace = stranger.namespace, %error, "removing a deleted pod failed");
                }
            });
        }
    }
}
