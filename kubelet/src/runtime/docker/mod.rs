//! Pods on Docker. A sandbox is a container of our own pause program, whose namespaces the pod's containers join.
//!
//! State lives in the labels of containers, so that a restarted kubelet finds its pods again; what doesn't carry our
//! cluster's and node's labels is never touched.

mod image;
mod make;
mod names;
mod network;
mod raw;
mod streams;
mod view;

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bollard::models::ContainerSummaryStateEnum as Summary;
use bollard::query_parameters::{
    CreateContainerOptions, EventsOptions, ListContainersOptions, RemoveContainerOptions, StatsOptions, StopContainerOptions,
};
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt, future};
use tokio::sync::{OnceCell, broadcast};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    Container, ContainerConfig, ContainerState, Duplex, Error, Event, ExecRequest, Image, LogOptions, PodRef, PodState, RegistryAuth,
    Result, Resources, Runtime, Sandbox, SandboxConfig, SandboxState, Session, Usage, Version,
};
use names::Owner;

/// Where Docker listens by default.
pub const SOCKET: &str = "/var/run/docker.sock";
/// How long a request that starts or stops nothing may take, in seconds.
const TIMEOUT: u64 = 120;
/// How much of a container's last words is kept: upstream's limits, in bytes and in lines of the log.
const LAST_WORDS: usize = 4096;
const LAST_WORDS_OF_LOG: usize = 2048;
const LAST_LINES: u64 = 80;
/// The pause before Docker's events are asked for again.
const EVENTS_PAUSE: Duration = Duration::from_secs(1);

fn failed(error: bollard::errors::Error) -> Error {
    use bollard::errors::Error as Docker;
    match error {
        Docker::DockerResponseServerError { status_code: 404, message } => Error::NotFound(message),
        Docker::DockerResponseServerError { message, .. } => Error::Failed(message),
        Docker::DockerStreamError { error } => Error::Failed(error),
        other => Error::Unreachable(other.to_string()),
    }
}

fn flag(yes: bool) -> u8 {
    u8::from(yes)
}

/// Not an error if there is nothing to do it to.
fn or_gone(result: Result<()>) -> Result<()> {
    match result {
        Err(Error::NotFound(_)) => Ok(()),
        other => other,
    }
}

/// What makes a node's containers, and tells them from those of others.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where Docker listens.
    pub socket: PathBuf,
    /// The cluster whose containers these are.
    pub cluster: String,
    /// The node.
    pub node: String,
    /// The range of all the cluster's pods.
    pub cluster_cidr: String,
}

/// Containers as inspected last, with what Docker's list said of them then: while that stays, they do. Docker tells of an end
/// before its list knows, so what an event is about is forgotten here.
type Seen = Mutex<HashMap<String, (Summary, Found)>>;

/// What a container of Docker's is to us.
#[derive(Clone, Debug)]
enum Found {
    Sandbox(Sandbox),
    Container(Box<Container>),
}

/// The containers of one node on a Docker engine.
pub struct Docker {
    docker: bollard::Docker,
    options: Options,
    owner: Owner,
    version: String,
    /// Whether processes may be made dearer to the kernel than our own.
    may_lower_oom: bool,
    /// The sandboxes' image, and the network: made when the first pod needs them.
    ground: OnceCell<String>,
    seen: Arc<Seen>,
    events: broadcast::Sender<Event>,
    _listening: DropGuard,
}

impl std::fmt::Debug for Docker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Docker").field("options", &self.options).finish_non_exhaustive()
    }
}

/// Whether this process may lower scores of the kernel's killer (`CAP_SYS_RESOURCE`); what Docker starts inherits that from it
/// on a machine that confines both.
fn may_lower_oom() -> bool {
    const CAP_SYS_RESOURCE: u32 = 24;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let set = line.and_then(|line| u64::from_str_radix(line.trim(), 16).ok()).unwrap_or(0);
    set & (1 << CAP_SYS_RESOURCE) != 0
}

impl Docker {
    /// Connects to a Docker engine. Fails if it doesn't answer.
    pub async fn connect(options: Options) -> Result<Self> {
        let path = options.socket.to_string_lossy();
        let docker = bollard::Docker::connect_with_unix(&path, TIMEOUT, bollard::API_DEFAULT_VERSION).map_err(failed)?;
        let docker = docker.negotiate_version().await.map_err(failed)?;
        let version = docker.version().await.map_err(failed)?.version.unwrap_or_default();
        let owner = Owner { cluster: options.cluster.clone(), node: options.node.clone() };
        let (events, _) = broadcast::channel(1024);
        let listening = CancellationToken::new();
        let seen: Arc<Seen> = Arc::default();
        let listener = Listener { docker: docker.clone(), owner: owner.clone(), seen: seen.clone(), events: events.clone() };
        tokio::spawn(listener.run(listening.clone()));
        Ok(Self {
            docker,
            owner,
            options,
            // Debian appends its own part.
            version: version.split('+').next().unwrap_or_default().to_owned(),
            may_lower_oom: may_lower_oom(),
            ground: OnceCell::new(),
            seen,
            events,
            _listening: listening.drop_guard(),
        })
    }

    /// The same engine for another node.
    pub async fn for_node(&self, node: impl Into<String>) -> Result<Self> {
        Self::connect(Options { node: node.into(), ..self.options.clone() }).await
    }

    fn socket(&self) -> &Path {
        &self.options.socket
    }

    fn seen(&self) -> MutexGuard<'_, HashMap<String, (Summary, Found)>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The sandboxes' image; it and the network are there when this returns.
    async fn ground(&self) -> Result<&str> {
        let made = self.ground.get_or_try_init(|| async {
            network::ensure(&self.docker, &self.options.cluster, &self.options.cluster_cidr).await?;
            image::ensure_pause(&self.docker).await
        });
        made.await.map(String::as_str)
    }

    async fn remove(&self, id: &str) -> Result<()> {
        let options = RemoveContainerOptions { force: true, v: true, link: false };
        self.seen().remove(id);
        match self.docker.remove_container(id, Some(options)).await.map_err(failed) {
            Err(Error::Failed(why)) if why.contains("is already in progress") => Ok(()),
            other => or_gone(other),
        }
    }

    /// A container, inspected only if the list says something new of it.
    async fn look(&self, id: &str, summary: Summary) -> Result<Option<Found>> {
        if let Some((then, found)) = self.seen().get(id)
            && *then == summary
        {
            return Ok(Some(found.clone()));
        }
        let inspected = match self.docker.inspect_container(id, None).await.map_err(failed) {
            Err(Error::NotFound(_)) => return Ok(None),
            other => other?,
        };
        let labels = inspected.config.as_ref().and_then(|c| c.labels.clone()).unwrap_or_default();
        // What the list said may be older than what was inspected: then it is inspected again next time.
        let (found, agrees) = if view::is_sandbox(&labels) {
            let sandbox = view::sandbox(&inspected);
            let agrees = (summary == Summary::RUNNING) == (sandbox.state == SandboxState::Ready);
            (Found::Sandbox(sandbox), agrees)
        } else {
            let mut container = view::container(&inspected);
            if container.state == ContainerState::Exited && container.message.is_empty() {
                container.message = self.last_words(&container, &labels).await;
            }
            let agrees = matches!((summary, container.state), (Summary::RUNNING, ContainerState::Running) | (Summary::EXITED, ContainerState::Exited));
            (Found::Container(Box::new(container)), agrees)
        };
        if agrees {
            self.seen().insert(id.to_owned(), (summary, found.clone()));
        }
        Ok(Some(found))
    }

    async fn last_words(&self, container: &Container, labels: &HashMap<String, String>) -> String {
        let Some(from) = names::termination_message(labels) else { return String::new() };
        // No file: nothing was said.
        let words = tokio::fs::read(&from.file).await.unwrap_or_default();
        if !words.is_empty() || !from.fallback_to_logs || container.exit_code == 0 {
            return String::from_utf8_lossy(&words[..words.len().min(LAST_WORDS)]).into_owned();
        }
        let options = LogOptions { tail: Some(LAST_LINES), stdout: true, stderr: true, ..LogOptions::default() };
        let log = async { self.logs(&container.id, &options).await?.try_collect::<Vec<_>>().await };
        match log.await {
            Ok(parts) => {
                let log = parts.concat();
                String::from_utf8_lossy(&log[log.len().saturating_sub(LAST_WORDS_OF_LOG)..]).into_owned()
            }
            Err(error) => {
                tracing::debug!(container = container.name, %error, "reading the end of a container's log failed");
                String::new()
            }
        }
    }
}

/// Passes on what Docker tells of our containers.
struct Listener {
    docker: bollard::Docker,
    owner: Owner,
    seen: Arc<Seen>,
    events: broadcast::Sender<Event>,
}

impl Listener {
    async fn run(self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = self.listen() => {}
                () = stop.cancelled() => return,
            }
            tokio::select! {
                () = tokio::time::sleep(EVENTS_PAUSE) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// Listens until the connection ends.
    async fn listen(&self) {
        let mut filters = self.owner.filter(None);
        filters.insert("type".into(), vec!["container".into()]);
        filters.insert("event".into(), ["start", "die", "oom", "destroy"].map(str::to_owned).into());
        let mut stream = Box::pin(self.docker.events(Some(EventsOptions { filters: Some(filters), ..EventsOptions::default() })));
        // Something may have happened while nobody listened. That nobody takes events is fine.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clear();
        let _ = self.events.send(Event::All);
        loop {
            let actor = match stream.next().await {
                Some(Ok(event)) => event.actor.unwrap_or_default(),
                Some(Err(error)) => return tracing::debug!(%error, "listening to Docker failed"),
                None => return,
            };
            if let Some(id) = &actor.id {
                self.seen.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
            }
            if let Some(uid) = actor.attributes.and_then(|mut labels| labels.remove(names::POD_UID)) {
                let _ = self.events.send(Event::Pod(uid));
            }
        }
    }
}

#[async_trait]
impl Runtime for Docker {
    fn version(&self) -> Version {
        Version { name: "docker", version: self.version.clone() }
    }

    async fn healthy(&self) -> Result<()> {
        self.docker.ping().await.map(|_| ()).map_err(failed)
    }

    async fn run_sandbox(&self, config: &SandboxConfig) -> Result<Sandbox> {
        let image = self.ground().await?;
        let network = names::network_name(&self.options.cluster);
        let body = make::sandbox(&self.owner, &network, image, config, self.may_lower_oom);
        let name = names::container_name(&config.pod, names::SANDBOX, config.attempt);
        let id = self.create(&name, body).await?;
        let started = self.docker.start_container(&id, None).await.map_err(failed);
        let inspected = match started {
            Ok(()) => self.docker.inspect_container(&id, None).await.map_err(failed),
            Err(error) => Err(error),
        };
        match inspected {
            Ok(inspected) => {
                if !config.host_network {
                    network::allow_hairpins(&self.options.cluster);
                }
                Ok(view::sandbox(&inspected))
            }
            Err(error) => {
                // One that didn't start is of no use; the next attempt takes its name.
                self.remove(&id).await?;
                Err(error)
            }
        }
    }

    async fn stop_sandbox(&self, id: &str) -> Result<()> {
        let options = StopContainerOptions { t: Some(2), signal: None };
        or_gone(self.docker.stop_container(id, Some(options)).await.map_err(failed))
    }

    async fn remove_sandbox(&self, id: &str) -> Result<()> {
        self.remove(id).await
    }

    async fn pod_state(&self, uid: &str) -> Result<PodState> {
        let options = ListContainersOptions { all: true, filters: Some(self.owner.filter(Some(uid))), ..Default::default() };
        let list = self.docker.list_containers(Some(options)).await.map_err(failed)?;
        let looks = list.into_iter().filter_map(|c| Some((c.id?, c.state.unwrap_or(Summary::EMPTY))));
        let looks = looks.map(|(id, summary)| async move { self.look(&id, summary).await });
        let mut state = PodState::default();
        for found in future::try_join_all(looks).await?.into_iter().flatten() {
            match found {
                Found::Sandbox(sandbox) => state.sandboxes.push(sandbox),
                Found::Container(container) => state.containers.push(*container),
            }
        }
        state.sort();
        Ok(state)
    }

    async fn pods(&self) -> Result<Vec<(PodRef, Option<IpAddr>)>> {
        let options = ListContainersOptions { all: true, filters: Some(self.owner.filter(None)), ..Default::default() };
        let list = self.docker.list_containers(Some(options)).await.map_err(failed)?;
        let mut pods: HashMap<PodRef, Option<IpAddr>> = HashMap::new();
        for container in &list {
            let Some(labels) = &container.labels else { continue };
            let networks = container.network_settings.as_ref().and_then(|s| s.networks.as_ref());
            let address = pods.entry(names::pod_ref(labels)).or_default();
            *address = address.or_else(|| view::address(networks?));
        }
        Ok(pods.into_iter().collect())
    }

    async fn create_container(&self, sandbox_id: &str, config: &ContainerConfig) -> Result<String> {
        let body = make::container(&self.owner, sandbox_id, config, self.may_lower_oom);
        self.create(&names::container_name(&config.pod, &config.name, config.attempt), body).await
    }

    async fn start_container(&self, id: &str) -> Result<()> {
        self.docker.start_container(id, None).await.map_err(failed)
    }

    async fn update_container(&self, id: &str, resources: &Resources) -> Result<()> {
        self.docker.update_container(id, make::update(resources)).await.map_err(failed)?;
        // What it looked like says nothing any more.
        self.seen().remove(id);
        Ok(())
    }

    async fn stop_container(&self, id: &str, grace: Duration) -> Result<()> {
        let seconds = i32::try_from(grace.as_secs()).unwrap_or(i32::MAX);
        let path = format!("/containers/{id}/stop?t={seconds}");
        // Waits as long as it takes: the client's own requests end after a while.
        or_gone(raw::post(self.socket(), &path).await)
    }

    async fn remove_container(&self, id: &str) -> Result<()> {
        self.remove(id).await
    }

    async fn image(&self, name: &str) -> Result<Option<Image>> {
        image::get(&self.docker, name).await
    }

    async fn images(&self) -> Result<Vec<Image>> {
        image::list(&self.docker).await
    }

    async fn pull_image(&self, name: &str, auth: Option<&RegistryAuth>) -> Result<Image> {
        image::pull(&self.docker, name, auth).await
    }

    async fn exec(&self, id: &str, request: &ExecRequest) -> Result<Session> {
        streams::exec(&self.docker, self.socket(), id, request).await
    }

    async fn attach(&self, id: &str, request: &ExecRequest) -> Result<Session> {
        streams::attach(&self.docker, self.socket(), id, request).await
    }

    async fn logs(&self, id: &str, options: &LogOptions) -> Result<BoxStream<'static, Result<Bytes>>> {
        streams::logs(&self.docker, self.socket(), id, options).await
    }

    async fn port_forward(&self, sandbox: &Sandbox, port: u16) -> Result<Box<dyn Duplex>> {
        let inspected = self.docker.inspect_container(&sandbox.id, None).await.map_err(failed)?;
        let pid = inspected.state.and_then(|s| s.pid).filter(|pid| *pid > 0);
        let host = inspected.host_config.and_then(|c| c.network_mode).is_some_and(|mode| mode == "host");
        match pid {
            _ if host => streams::connect_host(port).await,
            Some(pid) => streams::connect_inside(pid, port).await,
            None => Err(Error::Failed("the pod's sandbox doesn't run".into())),
        }
    }

    async fn usage(&self, id: &str) -> Result<Option<Usage>> {
        let options = StatsOptions { stream: false, one_shot: true };
        let Some(stats) = self.docker.stats(id, Some(options)).try_next().await.map_err(failed)? else { return Ok(None) };
        let Some(cpu_ns) = stats.cpu_stats.and_then(|c| c.cpu_usage).and_then(|u| u.total_usage).filter(|cpu| *cpu > 0) else { return Ok(None) };
        let memory = stats.memory_stats.unwrap_or_default();
        let inactive = memory.stats.as_ref().and_then(|s| s.get("inactive_file").or_else(|| s.get("total_inactive_file"))).copied();
        let network = stats.networks.map(|all| {
            all.values().fold((0, 0), |(rx, tx), n| (rx + n.rx_bytes.unwrap_or(0), tx + n.tx_bytes.unwrap_or(0)))
        });
        Ok(Some(Usage { cpu_ns, memory: memory.usage.unwrap_or(0).saturating_sub(inactive.unwrap_or(0)), network }))
    }

    fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }
}

impl Docker {
    /// Makes a container; one of the same name that is left from an attempt that was broken off is replaced.
    async fn create(&self, name: &str, body: bollard::models::ContainerCreateBody) -> Result<String> {
        let options = || Some(CreateContainerOptions { name: Some(name.to_owned()), ..CreateContainerOptions::default() });
        match self.docker.create_container(options(), body.clone()).await.map_err(failed) {
            Err(Error::Failed(why)) if why.contains("is already in use by container") => {
                let holder = self.docker.inspect_container(name, None).await.map_err(failed)?;
                let labels = holder.config.and_then(|c| c.labels).unwrap_or_default();
                if !self.owner.owns(&labels) {
                    return Err(Error::Failed(why));
                }
                self.remove(name).await?;
                self.docker.create_container(options(), body).await.map_err(failed).map(|made| made.id)
            }
            other => other.map(|made| made.id),
        }
    }
}

/// Connects to Docker if it answers at the usual place, for callers that take another runtime if it doesn't.
pub async fn available(socket: &Path) -> bool {
    let docker = bollard::Docker::connect_with_unix(&socket.to_string_lossy(), 5, bollard::API_DEFAULT_VERSION);
    match docker {
        Ok(docker) => docker.ping().await.is_ok(),
        Err(_) => false,
    }
}

/// A runtime that can be shared.
impl From<Docker> for Arc<dyn Runtime> {
    fn from(docker: Docker) -> Self {
        Arc::new(docker)
    }
}

/// Makes the network of a cluster's pods before there is a pod, so that the machine has its gateway's address.
pub async fn prepare_network(socket: &Path, cluster: &str, cidr: &str) -> Result<()> {
    let docker = bollard::Docker::connect_with_unix(&socket.to_string_lossy(), TIMEOUT, bollard::API_DEFAULT_VERSION).map_err(failed)?;
    let docker = docker.negotiate_version().await.map_err(failed)?;
    network::ensure(&docker, cluster, cidr).await
}

/// Removes all containers of a cluster, and its network. Answers how many containers there were.
pub async fn remove_cluster(socket: &Path, cluster: &str) -> Result<usize> {
    let docker = bollard::Docker::connect_with_unix(&socket.to_string_lossy(), TIMEOUT, bollard::API_DEFAULT_VERSION).map_err(failed)?;
    let docker = docker.negotiate_version().await.map_err(failed)?;
    let filters = HashMap::from([("label".to_owned(), vec![format!("{}={cluster}", names::CLUSTER)])]);
    let options = ListContainersOptions { all: true, filters: Some(filters), ..ListContainersOptions::default() };
    let found = docker.list_containers(Some(options)).await.map_err(failed)?;
    for id in found.iter().filter_map(|c| c.id.as_deref()) {
        let options = RemoveContainerOptions { force: true, v: true, ..RemoveContainerOptions::default() };
        or_gone(docker.remove_container(id, Some(options)).await.map_err(failed))?;
    }
    or_gone(docker.remove_network(&names::network_name(cluster)).await.map_err(failed))?;
    Ok(found.len())
}
