//! A runtime without containers: pods live and end by the clock, thousands of them in one process.
//!
//! What a pod does is steered by annotations on it, each for all its containers or, with `.<container>` appended, for one:
//!
//! | annotation | meaning | without it |
//! |---|---|---|
//! | `skiff.dev/start-delay` | how long a container takes to start | no time |
//! | `skiff.dev/ready-delay` | how long after its start it becomes ready; `never` | no time |
//! | `skiff.dev/exit-after` | how long it runs; `never` | for ever if the pod restarts it always, else 1 s; init containers no time |
//! | `skiff.dev/exit-code` | what it then ends with | 0 |
//! | `skiff.dev/fail` | `sandbox`, `create` or `start`: the step that fails | none |
//! | `skiff.dev/log` | the text that is its log | empty |
//!
//! A delay is written `300ms`, `5s`, `2m`, `1h30m` or as bare seconds. `ready-delay` is looked up again when annotations change.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use skiff_api::{clock, random};
use tokio::sync::broadcast;

use super::{
    Capacity, Container, ContainerConfig, ContainerKind, ContainerState, Duplex, Error, Event, ExecRequest, Image, LogOptions,
    PodRef, PodState, Reality, RegistryAuth, Result, Resources, Runtime, Sandbox, SandboxConfig, SandboxState, Session, Usage, Version,
};

/// What annotations of simulated pods begin with.
pub const PREFIX: &str = "skiff.dev/";

/// How long a container runs whose pod lets it end.
const DEFAULT_RUN: Duration = Duration::from_secs(1);

/// How many events wait for a slow listener, which then looks at all pods. Few, for there may be thousands of these runtimes.
const EVENTS: usize = 64;

/// A runtime that only keeps books.
#[derive(Debug)]
pub struct Simulated {
    books: Arc<Books>,
    capacity: Capacity,
}

#[derive(Debug)]
struct Books {
    pages: Mutex<Pages>,
    events: broadcast::Sender<Event>,
}

#[derive(Debug, Default)]
struct Pages {
    /// By uid.
    pods: HashMap<String, Pod>,
    /// The uid of the pod that a container or sandbox belongs to, by its id.
    owners: HashMap<String, String>,
}

impl Pages {
    fn owner(&mut self, id: &str) -> Option<&mut Pod> {
        self.pods.get_mut(self.owners.get(id)?)
    }

    /// Forgets a container or sandbox, and its pod with the last of them.
    fn forget(&mut self, id: &str) {
        let Some(uid) = self.owners.remove(id) else { return };
        if let Some(pod) = self.pods.get_mut(&uid) {
            pod.state.sandboxes.retain(|s| s.id != id);
            pod.state.containers.retain(|c| c.id != id);
            pod.roles.remove(id);
            if pod.state.sandboxes.is_empty() && pod.state.containers.is_empty() {
                self.pods.remove(&uid);
            }
        }
    }
}

#[derive(Debug)]
struct Pod {
    state: PodState,
    annotations: BTreeMap<String, String>,
    /// What containers were made for, by container id.
    roles: HashMap<String, Role>,
}

#[derive(Clone, Copy, Debug)]
struct Role {
    kind: ContainerKind,
    may_end: bool,
}

/// When something happens: after a while or not at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Delay {
    After(Duration),
    Never,
}

impl Simulated {
    /// A runtime of a node with that capacity.
    pub fn new(capacity: Capacity) -> Self {
        let books = Books { pages: Mutex::default(), events: broadcast::channel(EVENTS).0 };
        Self { books: Arc::new(books), capacity }
    }
}

impl Default for Simulated {
    /// A node of 8 CPUs, 32 GiB of memory and 256 GiB of storage.
    fn default() -> Self {
        Self::new(Capacity { cpu_milli: 8_000, memory: 32 << 30, storage: 256 << 30 })
    }
}

impl Books {
    fn lock(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, uid: &str) {
        // Nobody listening is fine: then nobody wants to know.
        let _ = self.events.send(Event::Pod(uid.to_owned()));
    }

    /// Changes the container of that id, with the pod's annotations and its role at hand.
    fn change<T>(&self, id: &str, change: impl FnOnce(&mut Container, &BTreeMap<String, String>, Role) -> T) -> Result<T> {
        let mut pages = self.lock();
        if let Some(pod) = pages.owner(id)
            && let Some(role) = pod.roles.get(id).copied()
            && let Some(container) = pod.state.containers.iter_mut().find(|c| c.id == id)
        {
            return Ok(change(container, &pod.annotations, role));
        }
        Err(Error::NotFound(format!("container {id}")))
    }

    /// Ends the container if it still runs.
    fn end(&self, id: &str, exit_code: i32) {
        let ended = self.change(id, |container, _, _| {
            (container.state == ContainerState::Running).then(|| {
                container.state = ContainerState::Exited;
                container.finished_at = Some(clock::now());
                container.exit_code = exit_code;
                container.reason = if exit_code == 0 { "Completed" } else { "Error" }.into();
                container.ready = Some(false);
                container.pod.uid.clone()
            })
        });
        if let Ok(Some(uid)) = ended {
            self.tell(&uid);
        }
    }

    /// Sets a running container's readiness by its pod's annotations as they are now.
    fn settle_readiness(self: &Arc<Self>, id: &str) {
        let due = self.change(id, |container, annotations, _| {
            if container.state != ContainerState::Running {
                return None;
            }
            let since = container.started_at.unwrap_or(container.created_at);
            let (ready, again) = match delay(annotations, "ready-delay", &container.name) {
                None => (true, None),
                Some(Delay::Never) => (false, None),
                Some(Delay::After(delay)) => match clock::until(since + delay) {
                    Duration::ZERO => (true, None),
                    wait => (false, Some(wait)),
                },
            };
            let changed = container.ready != Some(ready);
            container.ready = Some(ready);
            Some((changed.then(|| container.pod.uid.clone()), again))
        });
        let Ok(Some((changed, again))) = due else { return };
        if let Some(uid) = changed {
            self.tell(&uid);
        }
        if let Some(wait) = again {
            let (books, id) = (self.clone(), id.to_owned());
            tokio::spawn(async move {
                tokio::time::sleep(wait).await;
                books.settle_readiness(&id);
            });
        }
    }
}

/// The annotation `skiff.dev/<key>` of a container: its own one before the pod's.
fn setting<'a>(annotations: &'a BTreeMap<String, String>, key: &str, container: &str) -> Option<&'a str> {
    let own = annotations.get(&format!("{PREFIX}{key}.{container}"));
    own.or_else(|| annotations.get(&format!("{PREFIX}{key}"))).map(String::as_str)
}

/// A delay among the annotations; one that can't be read counts as absent.
fn delay(annotations: &BTreeMap<String, String>, key: &str, container: &str) -> Option<Delay> {
    let text = setting(annotations, key, container)?.trim();
    if text == "never" {
        return Some(Delay::Never);
    }
    parse_duration(text).map(Delay::After)
}

/// Reads `1h30m`, `5s`, `300ms`, or bare seconds.
fn parse_duration(text: &str) -> Option<Duration> {
    let seconds = |value: f64| Duration::try_from_secs_f64(value).ok();
    if let Ok(bare) = text.parse::<f64>() {
        return seconds(bare);
    }
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let number = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let unit = rest[number..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |i| number + i);
        let scale = match &rest[number..unit] {
            "ms" => 0.001,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        total = total.checked_add(seconds(rest[..number].parse::<f64>().ok()? * scale)?)?;
        rest = &rest[unit..];
    }
    Some(total)
}

/// When a container ends by itself.
fn exit_delay(annotations: &BTreeMap<String, String>, name: &str, role: Role) -> Delay {
    let given = delay(annotations, "exit-after", name);
    match role.kind {
        ContainerKind::Init => given.unwrap_or(Delay::After(Duration::ZERO)),
        // Meant for the whole pod, the annotation doesn't end what goes on beside the others.
        ContainerKind::Sidecar | ContainerKind::Ephemeral if !annotations.contains_key(&format!("{PREFIX}exit-after.{name}")) => Delay::Never,
        ContainerKind::Sidecar | ContainerKind::Ephemeral => given.unwrap_or(Delay::Never),
        ContainerKind::Regular => given.unwrap_or(if role.may_end { Delay::After(DEFAULT_RUN) } else { Delay::Never }),
    }
}

fn failure(annotations: &BTreeMap<String, String>, step: &str, container: &str) -> Result<()> {
    match setting(annotations, "fail", container) {
        Some(failing) if failing == step => Err(Error::Failed(format!("simulated failure of {step}"))),
        _ => Ok(()),
    }
}

fn new_id() -> String {
    let (a, b) = (random::uid(), random::uid());
    format!("{a}{b}").replace('-', "")
}

#[async_trait]
impl Runtime for Simulated {
    fn version(&self) -> Version {
        Version { name: "simulated", version: env!("CARGO_PKG_VERSION").into() }
    }

    fn reality(&self) -> Reality {
        Reality::Simulated
    }

    async fn healthy(&self) -> Result<()> {
        Ok(())
    }

    fn capacity(&self) -> Option<Capacity> {
        Some(self.capacity.clone())
    }

    async fn run_sandbox(&self, config: &SandboxConfig) -> Result<Sandbox> {
        failure(&config.annotations, "sandbox", "")?;
        let sandbox = Sandbox {
            id: new_id(),
            pod: config.pod.clone(),
            attempt: config.attempt,
            state: SandboxState::Ready,
            created_at: clock::now(),
            ip: config.ip,
        };
        let mut pages = self.books.lock();
        pages.owners.insert(sandbox.id.clone(), config.pod.uid.clone());
        let pod = pages.pods.entry(config.pod.uid.clone()).or_insert_with(|| Pod {
            state: PodState::default(),
            annotations: BTreeMap::new(),
            roles: HashMap::new(),
        });
        pod.annotations = config.annotations.clone();
        pod.state.sandboxes.push(sandbox.clone());
        pod.state.sort();
        Ok(sandbox)
    }

    async fn stop_sandbox(&self, id: &str) -> Result<()> {
        let mut ended = Vec::new();
        if let Some(pod) = self.books.lock().owner(id) {
            pod.state.sandboxes.iter_mut().filter(|s| s.id == id).for_each(|s| s.state = SandboxState::NotReady);
            ended.extend(pod.state.containers.iter().filter(|c| c.sandbox_id == id).map(|c| c.id.clone()));
        }
        ended.iter().for_each(|id| self.books.end(id, 137));
        Ok(())
    }

    async fn remove_sandbox(&self, id: &str) -> Result<()> {
        self.books.lock().forget(id);
        Ok(())
    }

    async fn pod_state(&self, uid: &str) -> Result<PodState> {
        Ok(self.books.lock().pods.get(uid).map(|pod| pod.state.clone()).unwrap_or_default())
    }

    async fn pods(&self) -> Result<Vec<(PodRef, Option<IpAddr>)>> {
        let pages = self.books.lock();
        let known = pages.pods.values().filter_map(|pod| {
            let of = pod.state.sandboxes.first().map(|s| &s.pod).or(pod.state.containers.first().map(|c| &c.pod))?;
            Some((of.clone(), pod.state.ready_sandbox().and_then(|s| s.ip)))
        });
        Ok(known.collect())
    }

    fn annotations_changed(&self, uid: &str, annotations: &BTreeMap<String, String>) {
        let mut running = Vec::new();
        if let Some(pod) = self.books.lock().pods.get_mut(uid)
            && pod.annotations != *annotations
        {
            pod.annotations = annotations.clone();
            running.extend(pod.state.containers.iter().map(|c| c.id.clone()));
        }
        running.iter().for_each(|id| self.books.settle_readiness(id));
    }

    async fn create_container(&self, sandbox_id: &str, config: &ContainerConfig) -> Result<String> {
        let id = new_id();
        let mut pages = self.books.lock();
        let pod = pages.owner(sandbox_id).ok_or_else(|| Error::NotFound(format!("sandbox {sandbox_id}")))?;
        failure(&pod.annotations, "create", &config.name)?;
        pod.state.containers.push(Container {
            id: id.clone(),
            pod: config.pod.clone(),
            name: config.name.clone(),
            attempt: config.attempt,
            sandbox_id: sandbox_id.into(),
            state: ContainerState::Created,
            created_at: clock::now(),
            started_at: None,
            finished_at: None,
            exit_code: 0,
            reason: String::new(),
            message: String::new(),
            image: config.image.clone(),
            image_id: String::new(),
            spec_hash: config.spec_hash.clone(),
            ready: Some(false),
            resources: None,
        });
        pod.roles.insert(id.clone(), Role { kind: config.kind, may_end: config.may_end });
        pod.state.sort();
        pages.owners.insert(id.clone(), config.pod.uid.clone());
        Ok(id)
    }

    async fn update_container(&self, _id: &str, _resources: &Resources) -> Result<()> {
        Ok(())
    }

    async fn start_container(&self, id: &str) -> Result<()> {
        let wait = self.books.change(id, |container, annotations, _| {
            failure(annotations, "start", &container.name).map(|()| delay(annotations, "start-delay", &container.name))
        })??;
        match wait {
            None => {}
            Some(Delay::After(wait)) => tokio::time::sleep(wait).await,
            Some(Delay::Never) => std::future::pending().await,
        }
        let (exit, code) = self.books.change(id, |container, annotations, role| {
            container.state = ContainerState::Running;
            container.started_at = Some(clock::now());
            let code = setting(annotations, "exit-code", &container.name).and_then(|c| c.trim().parse().ok()).unwrap_or(0);
            (exit_delay(annotations, &container.name, role), code)
        })?;
        match exit {
            Delay::After(Duration::ZERO) => self.books.end(id, code),
            Delay::After(run) => {
                let (books, id) = (self.books.clone(), id.to_owned());
                tokio::spawn(async move {
                    tokio::time::sleep(run).await;
                    books.end(&id, code);
                });
            }
            Delay::Never => {}
        }
        self.books.settle_readiness(id);
        Ok(())
    }

    async fn stop_container(&self, id: &str, _grace: Duration) -> Result<()> {
        self.books.end(id, 0);
        Ok(())
    }

    async fn remove_container(&self, id: &str) -> Result<()> {
        self.books.lock().forget(id);
        Ok(())
    }

    async fn image(&self, name: &str) -> Result<Option<Image>> {
        // Any image is there, for none is needed.
        Ok(Some(Image { names: vec![name.into()], ..Image::default() }))
    }

    async fn images(&self) -> Result<Vec<Image>> {
        Ok(Vec::new())
    }

    async fn pull_image(&self, name: &str, _auth: Option<&RegistryAuth>) -> Result<Image> {
        Ok(Image { names: vec![name.into()], ..Image::default() })
    }

    async fn exec(&self, _id: &str, _request: &ExecRequest) -> Result<Session> {
        Err(Error::Unsupported("exec in a simulated container"))
    }

    async fn attach(&self, _id: &str, _request: &ExecRequest) -> Result<Session> {
        Err(Error::Unsupported("attaching to a simulated container"))
    }

    async fn logs(&self, id: &str, _options: &LogOptions) -> Result<BoxStream<'static, Result<Bytes>>> {
        let text = self.books.change(id, |container, annotations, _| {
            setting(annotations, "log", &container.name).unwrap_or_default().to_owned()
        })?;
        Ok(stream::iter((!text.is_empty()).then(|| Ok(Bytes::from(text)))).boxed())
    }

    async fn port_forward(&self, _sandbox: &Sandbox, _port: u16) -> Result<Box<dyn Duplex>> {
        Err(Error::Unsupported("a port of a simulated pod"))
    }

    async fn usage(&self, _id: &str) -> Result<Option<Usage>> {
        Ok(None)
    }

    fn events(&self) -> broadcast::Receiver<Event> {
        self.books.events.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let check = |text: &str, expected: Option<u64>| assert_eq!(parse_duration(text), expected.map(Duration::from_millis), "{text}");
        check("5", Some(5_000));
        check("0.5", Some(500));
        check("300ms", Some(300));
        check("1h30m", Some(5_400_000));
        check("2m1s", Some(121_000));
        check("", Some(0));
        check("x", None);
        check("5y", None);
        check("-1", None);
        check("1e300", None);
    }

    #[test]
    fn annotations_of_one_container_come_before_the_pods() {
        let annotations = BTreeMap::from([
            ("skiff.dev/exit-code".to_owned(), "1".to_owned()),
            ("skiff.dev/exit-code.worker".to_owned(), "2".to_owned()),
        ]);
        assert_eq!(setting(&annotations, "exit-code", "worker"), Some("2"));
        assert_eq!(setting(&annotations, "exit-code", "other"), Some("1"));
        assert_eq!(setting(&annotations, "log", "other"), None);
    }
}
