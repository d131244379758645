//! What the kubelet asks of a container runtime. Shaped like CRI: sandboxes, containers, images, streams, events.

pub mod docker;
pub mod simulated;

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use jiff::Timestamp;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{broadcast, mpsc};

/// A failure of the runtime.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What was asked for isn't there.
    #[error("{0} not found")]
    NotFound(String),
    /// This runtime can't do that at all.
    #[error("{0} is not supported by this runtime")]
    Unsupported(&'static str),
    /// The operation took longer than it was given.
    #[error("command {0:?} timed out")]
    TimedOut(String),
    /// The runtime refused or failed; its own words.
    #[error("{0}")]
    Failed(String),
    /// The runtime doesn't answer.
    #[error("the container runtime doesn't answer: {0}")]
    Unreachable(String),
}

/// The outcome of a runtime operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Which pod a sandbox or container belongs to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct PodRef {
    /// The pod's uid: the identity.
    pub uid: String,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
}

/// What a runtime is and can.
#[derive(Clone, Debug)]
pub struct Version {
    /// `docker`, `simulated`; the scheme of container ids.
    pub name: &'static str,
    /// Its version, `20.10.24`.
    pub version: String,
}

/// Whether containers of a runtime are real.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reality {
    /// Containers run: they have files, an environment, and can be probed.
    Real,
    /// Nothing runs: volumes, environment and probes are left out, and readiness comes from the runtime.
    Simulated,
}

/// What a sandbox is made of.
#[derive(Clone, Debug, Default)]
pub struct SandboxConfig {
    /// Whose sandbox.
    pub pod: PodRef,
    /// The how many-th sandbox of the pod, from 0.
    pub attempt: u32,
    /// The pod's annotations.
    pub annotations: BTreeMap<String, String>,
    /// The host name of the pod; empty with the host's network.
    pub hostname: String,
    /// The pod's address, unless it shares the host's network.
    pub ip: Option<IpAddr>,
    /// Shares the host's network.
    pub host_network: bool,
    /// Shares the host's processes.
    pub host_pid: bool,
    /// Shares the host's IPC.
    pub host_ipc: bool,
    /// All containers see the sandbox's processes.
    pub share_pid: bool,
    /// Ports to publish on the host.
    pub ports: Vec<PortMapping>,
    /// Kernel parameters of the pod's namespaces.
    pub sysctls: BTreeMap<String, String>,
}

/// A port of the host that leads into a sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortMapping {
    /// The host's address, any when `None`.
    pub host_ip: Option<String>,
    /// The host's port.
    pub host_port: u16,
    /// The sandbox's port.
    pub container_port: u16,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
}

/// The role of a container in its pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ContainerKind {
    /// Runs to its end before the next one starts.
    Init,
    /// An init container that goes on beside the others.
    Sidecar,
    /// One of `spec.containers`.
    Regular,
    /// Added to a running pod, never restarted.
    Ephemeral,
}

impl ContainerKind {
    /// The word that labels carry.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Init => "init",
            Self::Sidecar => "sidecar",
            Self::Regular => "regular",
            Self::Ephemeral => "ephemeral",
        }
    }
}

/// Where a file or directory of the host appears in a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// The host's path.
    pub source: PathBuf,
    /// The path in the container.
    pub target: String,
    /// Whether writes fail.
    pub read_only: bool,
    /// How mounts beneath spread between the host and the container.
    pub propagation: Propagation,
}

/// Mount propagation, by upstream's three words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Propagation {
    /// `None`
    #[default]
    Private,
    /// `HostToContainer`
    FromHost,
    /// `Bidirectional`
    Both,
}

/// Limits of a container's processes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// Relative weight of CPU time, 2 to 262144.
    pub cpu_shares: i64,
    /// CPU time a period, in microseconds; 0 for no limit.
    pub cpu_quota: i64,
    /// The period, in microseconds.
    pub cpu_period: i64,
    /// Memory, in bytes; 0 for no limit.
    pub memory: i64,
    /// How eagerly the kernel kills it when memory is short, -1000 to 1000.
    pub oom_score_adj: i64,
}

/// What a container's processes may do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Security {
    /// `uid` or `uid:gid`, the image's own when empty.
    pub user: String,
    /// More groups of the processes.
    pub groups: Vec<i64>,
    /// Everything is allowed.
    pub privileged: bool,
    /// The image's files can't be changed.
    pub read_only_root: bool,
    /// Capabilities beyond the default ones.
    pub add_capabilities: Vec<String>,
    /// Default capabilities that are taken away.
    pub drop_capabilities: Vec<String>,
    /// Processes can't gain privileges.
    pub no_new_privileges: bool,
    /// The seccomp profile: the runtime's own, `unconfined`, or the profile's JSON.
    pub seccomp: Option<String>,
    /// `/proc` is shown without masks.
    pub unmasked_proc: bool,
}

/// What a container is made of.
#[derive(Clone, Debug)]
pub struct ContainerConfig {
    /// Whose container.
    pub pod: PodRef,
    /// Its name in the pod.
    pub name: String,
    /// Its role.
    pub kind: ContainerKind,
    /// How often it was started before: the restart count.
    pub attempt: u32,
    /// Identifies the part of the spec that this container was made from; a change calls for a new one.
    pub spec_hash: String,
    /// The image, as the spec names it.
    pub image: String,
    /// Replaces the image's entry point unless empty.
    pub command: Vec<String>,
    /// Replaces the image's arguments unless empty.
    pub args: Vec<String>,
    /// Environment, in order.
    pub env: Vec<(String, String)>,
    /// The working directory, the image's own when empty.
    pub working_dir: String,
    /// Files of the host.
    pub mounts: Vec<Mount>,
    /// Limits.
    pub resources: Resources,
    /// Permissions.
    pub security: Security,
    /// Keeps stdin open.
    pub stdin: bool,
    /// Closes stdin after the first attached client left.
    pub stdin_once: bool,
    /// Runs in a terminal.
    pub tty: bool,
    /// Shares the processes of this container (of a debugged one).
    pub target: Option<String>,
    /// Shares the processes of the pod's sandbox.
    pub share_pid: bool,
    /// Shares the processes of the host.
    pub host_pid: bool,
    /// The signal that stops it, the image's own when empty.
    pub stop_signal: String,
    /// The pod lets this container end for good; simulated ones do so by themselves.
    pub may_end: bool,
    /// The host's file that the container's last words are read from, and the policy.
    pub termination_message: Option<TerminationMessage>,
}

/// Where a container's last words come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TerminationMessage {
    /// The file on the host that is mounted at the container's `terminationMessagePath`.
    pub file: PathBuf,
    /// Whether the end of the log serves when the file is empty and the container failed.
    pub fallback_to_logs: bool,
}

/// Whether a sandbox holds its pod's namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SandboxState {
    /// It runs.
    Ready,
    /// It ended or never started.
    NotReady,
}

/// A sandbox as the runtime knows it.
#[derive(Clone, Debug, PartialEq)]
pub struct Sandbox {
    /// Its id.
    pub id: String,
    /// Whose it is.
    pub pod: PodRef,
    /// The how many-th of the pod.
    pub attempt: u32,
    /// Whether it runs.
    pub state: SandboxState,
    /// When it was made.
    pub created_at: Timestamp,
    /// Its address, unless it shares the host's network.
    pub ip: Option<IpAddr>,
}

/// The state of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContainerState {
    /// Made, not started.
    Created,
    /// Runs.
    Running,
    /// Ended.
    Exited,
    /// The runtime doesn't know.
    Unknown,
}

/// A container as the runtime knows it.
#[derive(Clone, Debug, PartialEq)]
pub struct Container {
    /// Its id.
    pub id: String,
    /// Whose it is.
    pub pod: PodRef,
    /// Its name in the pod.
    pub name: String,
    /// How often it was started before.
    pub attempt: u32,
    /// The sandbox it was made in.
    pub sandbox_id: String,
    /// Its state.
    pub state: ContainerState,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was started, if it was.
    pub started_at: Option<Timestamp>,
    /// When it ended, if it did.
    pub finished_at: Option<Timestamp>,
    /// How it ended.
    pub exit_code: i32,
    /// Upstream's word for how it ended: `Completed`, `Error`, `OOMKilled`, `StartError`, `ContainerCannotRun`.
    pub reason: String,
    /// Its last words.
    pub message: String,
    /// The image as the spec named it.
    pub image: String,
    /// The image's id or digest.
    pub image_id: String,
    /// See [`ContainerConfig::spec_hash`].
    pub spec_hash: String,
    /// Readiness where the runtime itself says so (simulated containers); else probes do.
    pub ready: Option<bool>,
    /// The limits of its processes, where there are processes (all but `oom_score_adj`).
    pub resources: Option<Resources>,
}

/// All that a runtime has of one pod, the newest first.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PodState {
    /// The pod's sandboxes.
    pub sandboxes: Vec<Sandbox>,
    /// The pod's containers, dead ones too.
    pub containers: Vec<Container>,
}

impl PodState {
    /// The newest container of that name.
    pub fn container(&self, name: &str) -> Option<&Container> {
        self.containers.iter().find(|c| c.name == name)
    }

    /// The newest sandbox that runs.
    pub fn ready_sandbox(&self) -> Option<&Sandbox> {
        self.sandboxes.iter().find(|s| s.state == SandboxState::Ready)
    }

    /// Whether any container runs (or may run).
    pub fn any_running(&self) -> bool {
        self.containers.iter().any(|c| c.state == ContainerState::Running)
    }

    /// Puts the newest first.
    pub fn sort(&mut self) {
        self.sandboxes.sort_by(|a, b| b.attempt.cmp(&a.attempt).then(b.created_at.cmp(&a.created_at)));
        self.containers.sort_by(|a, b| b.created_at.cmp(&a.created_at).then(b.attempt.cmp(&a.attempt)));
    }
}

/// An image that is on the node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Image {
    /// Its id.
    pub id: String,
    /// All its names and digests.
    pub names: Vec<String>,
    /// Bytes.
    pub size: i64,
    /// The user that it says its process runs as: a number or a name, empty for root.
    pub user: String,
}

/// The name and password for a registry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RegistryAuth {
    /// The user.
    pub username: String,
    /// The password.
    pub password: String,
    /// The registry.
    pub server: String,
}

/// Which part of a container's log is wanted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LogOptions {
    /// Go on until the container ends.
    pub follow: bool,
    /// Only the last so many lines.
    pub tail: Option<u64>,
    /// Only lines from then on.
    pub since: Option<Timestamp>,
    /// Each line starts with its time.
    pub timestamps: bool,
    /// Lines of stdout.
    pub stdout: bool,
    /// Lines of stderr.
    pub stderr: bool,
}

/// Bytes of one of a process's outputs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// From stdout, or from the terminal.
    Stdout(Bytes),
    /// From stderr.
    Stderr(Bytes),
}

/// The size of a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TerminalSize {
    /// Columns.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

/// What is to be run in a container.
#[derive(Clone, Debug, Default)]
pub struct ExecRequest {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Connects stdin.
    pub stdin: bool,
    /// Connects stdout.
    pub stdout: bool,
    /// Connects stderr.
    pub stderr: bool,
    /// In a terminal.
    pub tty: bool,
}

/// A process's open streams.
pub struct Session {
    /// Its input, when it was asked for. Dropping it closes it.
    pub stdin: Option<Pin<Box<dyn AsyncWrite + Send>>>,
    /// Its outputs, until it ends.
    pub output: BoxStream<'static, Result<Output>>,
    /// Tells the size of the client's terminal.
    pub resize: Option<mpsc::Sender<TerminalSize>>,
    /// The exit code, to be asked for when the output ended; `None` when there is none (of an attached container).
    pub exit: BoxFuture<'static, Result<Option<i32>>>,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("stdin", &self.stdin.is_some()).finish_non_exhaustive()
    }
}

/// A connection into a pod.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// How much a container uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// CPU time since its start, in nanoseconds.
    pub cpu_ns: u64,
    /// Memory that can't be given back, in bytes.
    pub memory: u64,
    /// Bytes received and sent by its network.
    pub network: Option<(u64, u64)>,
}

/// A runtime's own word about the node's capacity.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Capacity {
    /// CPUs, in thousandths.
    pub cpu_milli: u64,
    /// Memory, in bytes.
    pub memory: u64,
    /// Local storage, in bytes.
    pub storage: u64,
}

/// Something about a pod's containers changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Look at this pod again.
    Pod(String),
    /// Events may be lost: look at all pods again.
    All,
}

/// A container runtime. All that it lists is of one cluster and one node.
#[async_trait]
pub trait Runtime: Send + Sync + 'static {
    /// What it is.
    fn version(&self) -> Version;
    /// Whether containers are real.
    fn reality(&self) -> Reality {
        Reality::Real
    }
    /// Whether it answers; the error says why not.
    async fn healthy(&self) -> Result<()>;
    /// The capacity of the node where it isn't that of this machine.
    fn capacity(&self) -> Option<Capacity> {
        None
    }

    /// Makes and starts a sandbox.
    async fn run_sandbox(&self, config: &SandboxConfig) -> Result<Sandbox>;
    /// Ends a sandbox's processes; not an error when it is gone.
    async fn stop_sandbox(&self, id: &str) -> Result<()>;
    /// Removes a sandbox; not an error when it is gone.
    async fn remove_sandbox(&self, id: &str) -> Result<()>;
    /// All that there is of a pod.
    async fn pod_state(&self, uid: &str) -> Result<PodState>;
    /// All pods that there is something of, with the addresses of those whose sandbox runs.
    async fn pods(&self) -> Result<Vec<(PodRef, Option<IpAddr>)>>;
    /// Tells that a pod's annotations changed.
    fn annotations_changed(&self, _uid: &str, _annotations: &BTreeMap<String, String>) {}

    /// Makes a container in a sandbox; its id.
    async fn create_container(&self, sandbox_id: &str, config: &ContainerConfig) -> Result<String>;
    /// Starts a container.
    async fn start_container(&self, id: &str) -> Result<()>;
    /// Gives a running container other limits (all but `oom_score_adj`).
    async fn update_container(&self, id: &str, resources: &Resources) -> Result<()>;
    /// Asks a container to end, and ends it by force after `grace`; returns when it ended.
    async fn stop_container(&self, id: &str, grace: Duration) -> Result<()>;
    /// Removes a container that ended; not an error when it is gone.
    async fn remove_container(&self, id: &str) -> Result<()>;

    /// The image of that name, if it is here.
    async fn image(&self, name: &str) -> Result<Option<Image>>;
    /// All images.
    async fn images(&self) -> Result<Vec<Image>>;
    /// Fetches an image.
    async fn pull_image(&self, name: &str, auth: Option<&RegistryAuth>) -> Result<Image>;

    /// Runs a program in a container.
    async fn exec(&self, id: &str, request: &ExecRequest) -> Result<Session>;
    /// Connects to a container's own process.
    async fn attach(&self, id: &str, request: &ExecRequest) -> Result<Session>;
    /// A container's log, bytes as they are to be shown.
    async fn logs(&self, id: &str, options: &LogOptions) -> Result<BoxStream<'static, Result<Bytes>>>;
    /// Connects to a port inside of a sandbox.
    async fn port_forward(&self, sandbox: &Sandbox, port: u16) -> Result<Box<dyn Duplex>>;
    /// How much a container uses now; `None` when it doesn't run or isn't measured.
    async fn usage(&self, id: &str) -> Result<Option<Usage>>;

    /// What happens from now on.
    fn events(&self) -> broadcast::Receiver<Event>;
}
