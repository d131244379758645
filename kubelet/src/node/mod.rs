//! The node's own object: registration, lease, status.

mod facts;

use std::collections::BTreeMap;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeSpec, NodeStatus, ObjectReference,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference, Time};
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use skiff_api::{clock, random};
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::context::Context;
use crate::events::Kind;
use crate::network::{Pool, Range};
use crate::runtime::{Capacity, Image, Reality, Version};

/// How long a lease holds; upstream's `nodeLeaseDurationSeconds`.
const LEASE_SECONDS: i32 = 40;
/// How often it is renewed: a quarter of that.
const RENEW_EVERY: Duration = Duration::from_secs(10);
/// How often the status is written though nothing changed; upstream's `nodeStatusReportFrequency`.
const REPORT_EVERY: Duration = Duration::from_secs(300);
/// How many images a status names; upstream's `nodeStatusMaxImages`.
const MAX_IMAGES: usize = 50;
/// Memory that pods can't have; upstream's default threshold of eviction.
const RESERVED_MEMORY: u64 = 100 << 20;

/// All that a node's status hangs on.
struct Observed<'a> {
    config: &'a Config,
    /// Where the kubelet's server listens, if it does.
    port: Option<u16>,
    runtime: Version,
    capacity: Capacity,
    huge_pages: Vec<(String, u64)>,
    /// The images, where the runtime told them.
    images: Option<Vec<Image>>,
    /// Why pods can't run here, if so.
    fault: Option<String>,
    now: Timestamp,
}

/// Sets conditions and facts, keeping what others wrote.
fn status(o: &Observed<'_>, old: &NodeStatus) -> NodeStatus {
    let address = |type_: &str, address: String| NodeAddress { type_: type_.into(), address };
    let images = o.images.as_ref().map(|images| {
        let mut images: Vec<_> = images.iter().filter(|i| !i.names.is_empty()).collect();
        images.sort_by(|a, b| b.size.cmp(&a.size).then(a.id.cmp(&b.id)));
        let named = |i: &Image| ContainerImage { names: Some(i.names.clone()), size_bytes: Some(i.size) };
        images.into_iter().take(MAX_IMAGES).map(named).collect()
    });
    NodeStatus {
        addresses: Some(vec![address("InternalIP", o.config.node_ip.to_string()), address("Hostname", o.config.node_name.clone())]),
        capacity: Some(capacity_of(o.config, &o.capacity, &o.huge_pages)),
        allocatable: Some(allocatable_of(o.config, &o.capacity, &o.huge_pages)),
        conditions: Some(conditions(o, old)),
        daemon_endpoints: o.port.map(|port| NodeDaemonEndpoints { kubelet_endpoint: Some(DaemonEndpoint { port: port.into() }) }),
        images: images.or_else(|| old.images.clone()),
        node_info: Some(facts::system_info(&o.runtime, &o.config.kube_version)),
        ..old.clone()
    }
}

type Amounts = BTreeMap<String, Quantity>;

/// All that the node has.
fn capacity_of(config: &Config, capacity: &Capacity, huge_pages: &[(String, u64)]) -> Amounts {
    // Upstream prints the storage in Ki, and what is left of it for pods in bytes.
    amounts(config, capacity, capacity.memory, format!("{}Ki", capacity.storage / 1024), huge_pages)
}

/// What pods may have of it: upstream's thresholds of eviction are kept back.
fn allocatable_of(config: &Config, capacity: &Capacity, huge_pages: &[(String, u64)]) -> Amounts {
    let storage = capacity.storage / 100 * 90;
    amounts(config, capacity, capacity.memory.saturating_sub(RESERVED_MEMORY), storage.to_string(), huge_pages)
}

fn amounts(config: &Config, capacity: &Capacity, memory: u64, storage: String, huge_pages: &[(String, u64)]) -> Amounts {
    let cpu = capacity.cpu_milli;
    let cpu = if cpu.is_multiple_of(1000) { (cpu / 1000).to_string() } else { format!("{cpu}m") };
    let mut all = BTreeMap::from([
        ("cpu".to_owned(), Quantity(cpu)),
        ("memory".to_owned(), Quantity(format!("{}Ki", memory / 1024))),
        ("ephemeral-storage".to_owned(), Quantity(storage)),
        ("pods".to_owned(), Quantity(config.max_pods.to_string())),
    ]);
    all.extend(huge_pages.iter().map(|(name, bytes)| (name.clone(), Quantity(bytes.to_string()))));
    all
}

fn conditions(o: &Observed<'_>, old: &NodeStatus) -> Vec<NodeCondition> {
    let old: Vec<_> = old.conditions.iter().flatten().collect();
    let ready = match &o.fault {
        None => ("Ready", "True", "KubeletReady", "kubelet is posting ready status".to_owned()),
        Some(fault) => ("Ready", "False", "KubeletNotReady", fault.clone()),
    };
    let good = |type_, reason, message: &str| (type_, "False", reason, message.to_owned());
    let ours = [
        good("MemoryPressure", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
        good("DiskPressure", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        good("PIDPressure", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        ready,
    ];
    let others = old.iter().filter(|c| ours.iter().all(|(type_, ..)| c.type_ != *type_)).map(|c| (*c).clone());
    let mut list: Vec<_> = others.collect();
    for (type_, status, reason, message) in ours.clone() {
        let since = old.iter().find(|c| c.type_ == type_ && c.status == status).and_then(|c| c.last_transition_time.clone());
        list.push(NodeCondition {
            type_: type_.into(),
            status: status.into(),
            reason: Some(reason.into()),
            message: Some(message),
            last_heartbeat_time: Some(Time(o.now)),
            last_transition_time: since.or(Some(Time(o.now))),
        });
    }
    list
}

/// What the node has.
pub(crate) fn capacity(ctx: &Context) -> Capacity {
    ctx.runtime.capacity().unwrap_or_else(|| facts::capacity(&ctx.config.data_dir))
}

/// What pods may have of the node.
pub(crate) fn allocatable(ctx: &Context) -> Amounts {
    allocatable_of(&ctx.config, &capacity(ctx), &huge_pages(ctx))
}

fn huge_pages(ctx: &Context) -> Vec<(String, u64)> {
    if ctx.runtime.capacity().is_some() { Vec::new() } else { facts::huge_pages() }
}

/// Whether two statuses say the same, heartbeats aside.
fn same(a: &NodeStatus, b: &NodeStatus) -> bool {
    let still = |status: &NodeStatus| {
        let mut status = status.clone();
        status.conditions.iter_mut().flatten().for_each(|c| c.last_heartbeat_time = None);
        serde_json::to_value(status).unwrap_or_default()
    };
    still(a) == still(b)
}

/// The labels that every node has.
fn labels(config: &Config) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::new();
    for (key, value) in [("os", std::env::consts::OS), ("arch", facts::architecture())] {
        labels.insert(format!("kubernetes.io/{key}"), value.to_owned());
        labels.insert(format!("beta.kubernetes.io/{key}"), value.to_owned());
    }
    labels.insert("kubernetes.io/hostname".into(), config.node_name.clone());
    labels.extend(config.labels.clone());
    labels
}

/// A failure to keep the node's object.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API refused or failed.
    #[error("register the node {node}")]
    Register {
        /// The node.
        node: String,
        /// Why.
        source: Box<kube::Error>,
    },
    /// A range of addresses makes no sense.
    #[error("use the node's range of pod addresses")]
    Range(#[from] crate::network::Error),
}

/// Keeps the node's object and lease.
pub(crate) struct Keeper<'a> {
    ctx: &'a Context,
    nodes: Api<Node>,
    leases: Api<Lease>,
    /// The status as the API has it.
    written: NodeStatus,
    written_at: Timestamp,
    uid: String,
    /// Whether there is a lease.
    leased: bool,
    /// The node's images, and when they were asked for.
    images: Option<(Vec<Image>, Timestamp)>,
    /// Whether readiness was told by an event.
    told_ready: bool,
}

impl<'a> Keeper<'a> {
    pub(crate) fn new(ctx: &'a Context) -> Self {
        Self {
            ctx,
            nodes: Api::all(ctx.client.clone()),
            leases: Api::namespaced(ctx.client.clone(), "kube-node-lease"),
            written: NodeStatus::default(),
            written_at: Timestamp::UNIX_EPOCH,
            uid: String::new(),
            leased: false,
            images: None,
            told_ready: false,
        }
    }

    /// Registers the node, again and again until the API takes it.
    pub(crate) async fn register(&mut self, shutdown: &CancellationToken) -> Result<(), Error> {
        if let Some(cidr) = &self.ctx.config.pod_cidr {
            self.ctx.set_pool(Pool::new(Range::parse(cidr)?));
        }
        let mut pause = Duration::from_millis(100);
        loop {
            match self.try_register().await {
                Ok(()) => break,
                Err(error) if shutdown.is_cancelled() => return Err(error),
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "retrying");
                    tokio::select! {
                        () = tokio::time::sleep(pause) => {}
                        () = shutdown.cancelled() => return Err(error),
                    }
                    // Upstream's pauses: doubled, 7 s at most.
                    pause = (pause * 2).min(Duration::from_secs(7));
                }
            }
        }
        if self.ctx.runtime.reality() == Reality::Real {
            self.tell(Kind::Normal, "Starting", "Starting kubelet.".into());
        }
        self.tell_ready();
        Ok(())
    }

    async fn try_register(&mut self) -> Result<(), Error> {
        let config = &self.ctx.config;
        let failed = |source| Error::Register { node: config.node_name.clone(), source: Box::new(source) };
        self.refresh_images().await;
        let wanted = self.observe(&NodeStatus::default()).await;
        let node = Node {
            metadata: ObjectMeta { name: Some(config.node_name.clone()), labels: Some(labels(config)), ..ObjectMeta::default() },
            spec: Some(NodeSpec {
                pod_cidr: config.pod_cidr.clone(),
                pod_cidrs: config.pod_cidr.clone().map(|cidr| vec![cidr]),
                taints: (!config.taints.is_empty()).then(|| config.taints.clone()),
                ..NodeSpec::default()
            }),
            status: Some(wanted.clone()),
        };
        let existing = match config.register_node {
            true => match self.nodes.create(&PostParams::default(), &node).await {
                Ok(created) => created,
                Err(kube::Error::Api(status)) if status.code == 409 => self.nodes.get(&config.node_name).await.map_err(failed)?,
                Err(error) => return Err(failed(error)),
            },
            false => self.nodes.get(&config.node_name).await.map_err(failed)?,
        };
        let stale = labels(config).into_iter().filter(|(key, value)| existing.metadata.labels.as_ref().and_then(|l| l.get(key)) != Some(value));
        let stale: BTreeMap<_, _> = stale.collect();
        if !stale.is_empty() {
            let patch = Patch::Strategic(json!({"metadata": {"labels": stale}}));
            self.nodes.patch(&config.node_name, &PatchParams::default(), &patch).await.map_err(failed)?;
        }
        self.uid = existing.metadata.uid.clone().unwrap_or_default();
        self.take_range(&existing)?;
        self.written = existing.status.unwrap_or_default();
        self.written_at = clock::now();
        self.report().await.map_err(failed)?;
        self.renew().await.map_err(failed)
    }

    /// Takes the range of pod addresses from the node, where the configuration has none.
    fn take_range(&self, node: &Node) -> Result<bool, Error> {
        let cidr = node.spec.as_ref().and_then(|s| s.pod_cidr.as_deref()).filter(|cidr| !cidr.is_empty());
        let (Some(cidr), None) = (cidr, &self.ctx.config.pod_cidr) else { return Ok(false) };
        self.ctx.set_pool(Pool::new(Range::parse(cidr)?));
        Ok(true)
    }

    async fn observe(&self, old: &NodeStatus) -> NodeStatus {
        let ctx = self.ctx;
        let runtime_fault = ctx.runtime.healthy().await.err().map(|e| format!("container runtime is down: {e}"));
        let no_range = || {
            "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady message:node has no pod CIDR yet".to_owned()
        };
        let fault = runtime_fault.or_else(|| (!ctx.has_pool()).then(no_range));
        let port = *ctx.port.borrow();
        let images = self.images.as_ref().map(|(images, _)| images.clone());
        let observed = Observed {
            config: &ctx.config,
            port,
            runtime: ctx.runtime.version(),
            huge_pages: huge_pages(ctx),
            capacity: capacity(ctx),
            images,
            fault,
            now: clock::now(),
        };
        status(&observed, old)
    }

    /// Asks for the node's images, if that was long ago; a runtime that doesn't tell has those it had.
    async fn refresh_images(&mut self) {
        if self.images.as_ref().is_none_or(|(_, at)| clock::since(*at).unsigned_abs() >= REPORT_EVERY)
            && let Ok(images) = self.ctx.runtime.images().await
        {
            self.images = Some((images, clock::now()));
        }
    }

    /// Writes the status if it says something new, or if it was long ago.
    async fn report(&mut self) -> Result<(), kube::Error> {
        self.refresh_images().await;
        let wanted = self.observe(&self.written).await;
        let due = clock::since(self.written_at).unsigned_abs() >= REPORT_EVERY;
        if same(&wanted, &self.written) && !due {
            return Ok(());
        }
        let name = &self.ctx.config.node_name;
        let patch = json!({"status": replacing(serde_json::to_value(&wanted).map_err(kube::Error::SerdeError)?)});
        let node = self.nodes.patch_status(name, &PatchParams::default(), &Patch::Strategic(patch)).await?;
        self.written = node.status.unwrap_or_default();
        self.written_at = clock::now();
        Ok(())
    }

    /// Renews the lease, or makes it where there is none.
    async fn renew(&mut self) -> Result<(), kube::Error> {
        let name = &self.ctx.config.node_name;
        let now = MicroTime(clock::now());
        let owner = OwnerReference { api_version: "v1".into(), kind: "Node".into(), name: name.clone(), uid: self.uid.clone(), ..Default::default() };
        let lease = Lease {
            metadata: ObjectMeta { name: Some(name.clone()), owner_references: Some(vec![owner]), ..ObjectMeta::default() },
            spec: Some(LeaseSpec {
                holder_identity: Some(name.clone()),
                lease_duration_seconds: Some(LEASE_SECONDS),
                renew_time: Some(now),
                ..LeaseSpec::default()
            }),
        };
        if !self.leased {
            match self.leases.create(&PostParams::default(), &lease).await {
                // It is there from a life before: then it is renewed.
                Err(kube::Error::Api(status)) if status.code == 409 => self.leased = true,
                made => {
                    self.leased = made.is_ok();
                    return made.map(|_| ());
                }
            }
        }
        let renewed = self.leases.patch(name, &PatchParams::default(), &Patch::Merge(json!({"spec": lease.spec}))).await;
        if matches!(&renewed, Err(kube::Error::Api(status)) if status.code == 404) {
            self.leased = false;
        }
        renewed.map(|_| ())
    }

    /// Renews the lease and tells what changes, until shutdown.
    pub(crate) async fn run(mut self, shutdown: CancellationToken) {
        let mut port = self.ctx.port.subscribe();
        loop {
            // Nodes that started together needn't renew together.
            let pause = RENEW_EVERY.mul_f64(1.0 + 0.04 * random::fraction());
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.ctx.node_changed.notified() => self.images = None,
                changed = port.changed() => if changed.is_err() { return },
                found = self.await_range(), if !self.ctx.has_pool() => if let Err(error) = found {
                    tracing::warn!(error = &error as &dyn std::error::Error, "watching the node for its pod CIDR failed");
                },
                () = shutdown.cancelled() => return,
            }
            if let Err(error) = self.renew().await {
                tracing::warn!(%error, "renewing the node's lease failed");
            }
            if let Err(error) = self.report().await {
                tracing::warn!(%error, "writing the node's status failed");
            }
            self.tell_ready();
        }
    }

    /// Waits until the node has a range of pod addresses.
    async fn await_range(&self) -> Result<(), Error> {
        let name = &self.ctx.config.node_name;
        let mut changes = kube::runtime::watcher::watch_object(self.nodes.clone(), name).boxed();
        loop {
            match changes.try_next().await {
                Ok(Some(Some(node))) if self.take_range(&node)? => return Ok(()),
                Ok(_) => {}
                // The stream goes on by itself; give it a moment.
                Err(_) => tokio::time::sleep(Duration::from_secs(1)).await,
            }
        }
    }

    fn tell(&self, kind: Kind, reason: &'static str, message: String) {
        let name = Some(self.ctx.config.node_name.clone());
        // Upstream names the node as its own uid.
        let node = ObjectReference { kind: Some("Node".into()), uid: name.clone(), name, ..ObjectReference::default() };
        self.ctx.events.about(node, kind, reason, message);
    }

    fn tell_ready(&mut self) {
        let ready = self.written.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True");
        if ready == self.told_ready || self.ctx.runtime.reality() == Reality::Simulated {
            return;
        }
        self.told_ready = ready;
        let reason = if ready { "NodeReady" } else { "NodeNotReady" };
        self.tell(Kind::Normal, reason, format!("Node {} status is now: {reason}", self.ctx.config.node_name));
    }
}

/// A status as a strategic merge patch that replaces the lists which are merged by key otherwise.
fn replacing(mut status: Value) -> Value {
    if let Some(list) = status.get_mut("addresses").and_then(Value::as_array_mut) {
        list.push(json!({"$patch": "replace"}));
    }
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    fn observed(config: &Config) -> Observed<'_> {
        Observed {
            config,
            port: Some(10250),
            runtime: Version { name: "docker", version: "20.10.24".into() },
            capacity: Capacity { cpu_milli: 2000, memory: 8 << 30, storage: 100 << 30 },
            huge_pages: vec![("hugepages-2Mi".into(), 0)],
            images: Some(vec![Image { id: "a".into(), names: vec!["a:1".into()], size: 1, ..Image::default() }]),
            fault: None,
            now: "2026-01-01T00:00:00Z".parse().expect("a timestamp"),
        }
    }

    #[test]
    fn heartbeats_alone_are_no_change() {
        let config = Config::new("n", "c", "/tmp", [127, 0, 0, 1].into());
        let mut observed = observed(&config);
        let first = status(&observed, &NodeStatus::default());
        observed.now += Duration::from_secs(60);
        let second = status(&observed, &first);
        assert!(same(&first, &second));
        assert_ne!(first, second, "the heartbeat moved");
        observed.fault = Some("container runtime is down".into());
        let third = status(&observed, &second);
        assert!(!same(&second, &third));
        let ready = third.conditions.iter().flatten().find(|c| c.type_ == "Ready").expect("a Ready condition");
        assert_eq!((ready.status.as_str(), ready.last_transition_time.as_ref().map(|t| t.0)), ("False", Some(observed.now)));
    }

    #[test]
    fn capacity_is_printed_as_upstream_does() {
        let config = Config::new("n", "c", "/tmp", [127, 0, 0, 1].into());
        let status = status(&observed(&config), &NodeStatus::default());
        let text = |list: &Option<BTreeMap<String, Quantity>>, key: &str| list.as_ref().and_then(|l| l.get(key)).map(|q| q.0.clone()).unwrap_or_default();
        assert_eq!(text(&status.capacity, "cpu"), "2");
        assert_eq!(text(&status.capacity, "memory"), "8388608Ki");
        assert_eq!(text(&status.allocatable, "memory"), "8286208Ki");
        assert_eq!(text(&status.capacity, "ephemeral-storage"), "104857600Ki");
        assert_eq!(text(&status.allocatable, "pods"), "110");
        assert_eq!(text(&status.capacity, "hugepages-2Mi"), "0");
    }
}
