//! Node lifecycle: notes when a node's kubelet falls silent, and taints nodes after their conditions.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Pod, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::Patch;
use serde_json::{Value, json};
use skiff_api::clock;
use skiff_api::typed::placement::taint;
use skiff_api::typed::pods::is_ready;

use crate::Context;
use crate::controller::{Again, Controller};
use crate::error::Error;
use crate::kind::{By, Change, is_gone};
use crate::services::ZONE;

const SOURCE: &str = "node-controller";
/// How long a node may be silent; upstream's `node-monitor-grace-period`.
const GRACE: SignedDuration = SignedDuration::from_secs(50);
/// How long a node that never reported may be silent.
const STARTUP_GRACE: SignedDuration = SignedDuration::from_secs(60);
/// In each zone at most one node in so many seconds loses its pods.
const EVICTION_INTERVAL: SignedDuration = SignedDuration::from_secs(10);
/// The share of silent nodes from which on a zone counts as disrupted.
const UNHEALTHY_SHARE: f64 = 0.55;
/// A disrupted zone of up to so many nodes loses no further pods.
const LARGE_ZONE: usize = 50;

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// What each condition taints a node with: type, status, taint.
const BY_CONDITION: [(&str, &str, &str); 6] = [
    ("Ready", "False", NOT_READY),
    ("Ready", "Unknown", UNREACHABLE),
    ("MemoryPressure", "True", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "True", "node.kubernetes.io/disk-pressure"),
    ("NetworkUnavailable", "True", "node.kubernetes.io/network-unavailable"),
    ("PIDPressure", "True", "node.kubernetes.io/pid-pressure"),
];
/// The conditions that only the kubelet knows.
const OF_KUBELET: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];
/// Labels of old that follow newer ones.
const OLD_LABELS: [(&str, &str); 2] =
    [("kubernetes.io/os", "beta.kubernetes.io/os"), ("kubernetes.io/arch", "beta.kubernetes.io/arch")];

/// What is remembered between looks.
#[derive(Default)]
struct Memory {
    /// When each node was last heard of, by this process's clock.
    heard: HashMap<String, Timestamp>,
    /// Nodes that were greeted.
    known: HashMap<String, String>,
    /// When a node of the zone last lost its pods.
    evicted: HashMap<String, Timestamp>,
}

type Shared = Arc<Mutex<Memory>>;

/// Runs the controller.
pub fn run(context: Arc<Context>) -> impl Future<Output = ()> {
    let memory = Shared::default();
    let (leases, nodes) = (memory.clone(), memory.clone());
    context.kinds.leases.on_change(move |change: &Change<Lease>| {
        let renewed = |lease: &Arc<Lease>| lease.spec.as_ref().and_then(|s| s.renew_time.clone());
        if let Some(new) = change.new.as_ref().filter(|l| l.metadata.namespace.as_deref() == Some("kube-node-lease"))
            && change.old.as_ref().is_none_or(|old| renewed(old) != renewed(new))
        {
            hear(&leases, new.metadata.name.as_deref().unwrap_or(""));
        }
    });
    let events = context.events.clone();
    context.kinds.nodes.on_change(move |change: &Change<Node>| {
        let beat = |node: &Arc<Node>| condition(node, "Ready").and_then(|c| c.last_heartbeat_time.clone());
        match (&change.old, &change.new) {
            (old, Some(new)) if old.as_ref().and_then(beat) != beat(new) => {
                hear(&nodes, new.metadata.name.as_deref().unwrap_or(""));
            }
            (Some(old), None) => {
                let name = old.metadata.name.as_deref().unwrap_or("");
                {
                    let mut memory = nodes.lock().unwrap_or_else(PoisonError::into_inner);
                    memory.heard.remove(name);
                    memory.known.remove(name);
                }
                let text = format!("Node {name} event: Removing Node {name} from Controller");
                events.normal(SOURCE, &**old, "RemovingNode", text);
            }
            _ => {}
        }
    });
    Controller::new(SOURCE, &context.kinds.nodes).run(context, move |context: Arc<Context>, node: Arc<Node>| {
        let memory = memory.clone();
        async move { reconcile(&context, &node, &memory).await }
    })
}

fn hear(memory: &Shared, name: &str) {
    memory.lock().unwrap_or_else(PoisonError::into_inner).heard.insert(name.to_owned(), clock::now());
}

fn condition<'a>(node: &'a Node, type_: &str) -> Option<&'a NodeCondition> {
    node.status.as_ref()?.conditions.as_ref()?.iter().find(|c| c.type_ == type_)
}

fn zone(node: &Node) -> String {
    node.metadata.labels.as_ref().and_then(|l| l.get(ZONE)).cloned().unwrap_or_default()
}

/// What a plan is made from.
struct Observed<'a> {
    node: &'a Node,
    /// When it was last heard of.
    heard: Timestamp,
    /// Whether its pods may be driven away, once it is known to be unhealthy.
    may_evict: bool,
    now: Timestamp,
}

/// What is to be done.
#[derive(Debug, PartialEq)]
struct Plan {
    /// Conditions to write.
    conditions: Vec<NodeCondition>,
    /// Taints to write, if they changed.
    taints: Option<Vec<Taint>>,
    /// Labels to write.
    labels: Vec<(&'static str, String)>,
    /// Whether the node just fell silent.
    fell_silent: bool,
    /// Whether its pods are to be counted as not ready.
    silent: bool,
    /// When it counts as silent if nothing is heard.
    deadline: Option<Timestamp>,
}

fn plan(observed: &Observed<'_>) -> Plan {
    let Observed { node, heard, may_evict, now } = *observed;
    let ready = condition(node, "Ready");
    let deadline = heard + if ready.is_some() { GRACE } else { STARTUP_GRACE };
    let silent = now > deadline;
    let conditions = if silent { silenced(node, now) } else { Vec::new() };
    let status = if silent { "Unknown" } else { ready.map_or("", |c| c.status.as_str()) };
    let was = ready.map_or("Unknown", |c| c.status.as_str());
    let own = node.spec.iter().flat_map(|s| s.taints.iter().flatten());
    let own: Vec<Taint> = own.cloned().collect();
    let taints = tainted(node, &own, status, may_evict, now);
    let have = node.metadata.labels.clone().unwrap_or_default();
    let follow = OLD_LABELS.iter().filter_map(|(new, old)| {
        let value = have.get(*new).filter(|value| have.get(*old) != Some(value))?;
        Some((*old, value.clone()))
    });
    Plan {
        taints: (taints != own).then_some(taints),
        labels: follow.collect(),
        fell_silent: silent && was == "True",
        silent: status == "Unknown",
        deadline: (!silent).then_some(deadline),
        conditions,
    }
}

/// The kubelet's conditions, unknown from now on.
fn silenced(node: &Node, now: Timestamp) -> Vec<NodeCondition> {
    let unknown = |type_: &&str| match condition(node, type_) {
        None => Some(NodeCondition {
            type_: (*type_).into(),
            status: "Unknown".into(),
            reason: Some("NodeStatusNeverUpdated".into()),
            message: Some("Kubelet never posted node status.".into()),
            last_heartbeat_time: node.metadata.creation_timestamp.clone(),
            last_transition_time: Some(Time(now)),
        }),
        Some(current) if current.status != "Unknown" => Some(NodeCondition {
            status: "Unknown".into(),
            reason: Some("NodeStatusUnknown".into()),
            message: Some("Kubelet stopped posting node status.".into()),
            last_transition_time: Some(Time(now)),
            ..current.clone()
        }),
        Some(_) => None,
    };
    OF_KUBELET.iter().filter_map(unknown).collect()
}

/// The node's taints as its conditions have them; those of others stay.
fn tainted(node: &Node, own: &[Taint], ready: &str, may_evict: bool, now: Timestamp) -> Vec<Taint> {
    let status_of = |type_: &str| match type_ {
        "Ready" => Some(ready.to_owned()),
        other => condition(node, other).map(|c| c.status.clone()),
    };
    let mut wanted: Vec<Taint> = BY_CONDITION
        .iter()
        .filter(|(type_, status, _)| status_of(type_).as_deref() == Some(*status))
        .map(|(_, _, key)| taint(key, "NoSchedule"))
        .collect();
    if node.spec.as_ref().and_then(|s| s.unschedulable).unwrap_or(false) {
        wanted.push(taint(UNSCHEDULABLE, "NoSchedule"));
    }
    let same = |a: &Taint, b: &Taint| a.key == b.key && a.effect == b.effect;
    let driving = |t: &Taint| t.effect == "NoExecute" && (t.key == NOT_READY || t.key == UNREACHABLE);
    let driven = own.iter().any(driving);
    let drive = match ready {
        "False" => Some(taint(NOT_READY, "NoExecute")),
        "Unknown" => Some(taint(UNREACHABLE, "NoExecute")),
        _ => None,
    };
    // Whose pods are being driven away already, only changes the reason.
    wanted.extend(drive.filter(|_| may_evict || driven));
    let ours = |t: &Taint| {
        driving(t)
            || (t.effect == "NoSchedule" && (t.key == UNSCHEDULABLE || BY_CONDITION.iter().any(|(_, _, key)| t.key == *key)))
    };
    let mut taints: Vec<Taint> = own.iter().filter(|t| !ours(t) || wanted.iter().any(|w| same(w, t))).cloned().collect();
    for mut new in wanted {
        if !taints.iter().any(|t| same(t, &new)) {
            new.time_added = Some(Time(now));
            taints.push(new);
        }
    }
    taints
}

/// Whether a node of this zone may lose its pods now: not when no node at all is well (then it is rather the control
/// plane that is cut off), and not too many at a time.
fn may_evict(nodes: &[Arc<Node>], zone_of_node: &str, last: Option<Timestamp>, now: Timestamp) -> Result<(), Option<Timestamp>> {
    let well = |n: &Node| condition(n, "Ready").is_some_and(|c| c.status == "True");
    let excluded = |n: &Node| n.metadata.labels.as_ref().is_some_and(|l| l.contains_key("node.kubernetes.io/exclude-disruption"));
    let counted: Vec<&Arc<Node>> = nodes.iter().filter(|n| !excluded(n)).collect();
    if !counted.iter().any(|n| well(n)) {
        return Err(None);
    }
    let in_zone: Vec<_> = counted.iter().filter(|n| zone(n) == zone_of_node).collect();
    let ill = in_zone.iter().filter(|n| !well(n)).count();
    let disrupted = ill > 2 && ill < in_zone.len() && ill as f64 / in_zone.len() as f64 >= UNHEALTHY_SHARE;
    let interval = match (disrupted, in_zone.len() > LARGE_ZONE) {
        (false, _) => EVICTION_INTERVAL,
        (true, true) => EVICTION_INTERVAL * 10,
        (true, false) => return Err(None),
    };
    match last.map(|at| at + interval) {
        Some(next) if next > now => Err(Some(next)),
        _ => Ok(()),
    }
}

async fn reconcile(context: &Arc<Context>, node: &Node, memory: &Shared) -> Result<Again, Error> {
    let now = clock::now();
    let name = node.metadata.name.clone().unwrap_or_default();
    let zone = zone(node);
    let (heard, greeted, last) = {
        let mut memory = memory.lock().unwrap_or_else(PoisonError::into_inner);
        let heard = *memory.heard.entry(name.clone()).or_insert(now);
        let uid = node.metadata.uid.clone().unwrap_or_default();
        let greeted = memory.known.insert(name.clone(), uid.clone()) == Some(uid);
        (heard, greeted, memory.evicted.get(&zone).copied())
    };
    if !greeted {
        let text = format!("Node {name} event: Registered Node {name} in Controller");
        context.events.normal(SOURCE, node, "RegisteredNode", text);
    }
    let well = condition(node, "Ready").is_some_and(|c| c.status == "True") && now <= heard + GRACE;
    // Others matter only to a node that isn't well.
    let allowed = if well { Ok(()) } else { may_evict(&context.kinds.nodes.all(), &zone, last, now) };
    let plan = plan(&Observed { node, heard, may_evict: allowed.is_ok(), now });
    let drives = |taints: &[Taint]| taints.iter().any(|t| t.effect == "NoExecute" && [NOT_READY, UNREACHABLE].contains(&t.key.as_str()));
    let driven = node.spec.as_ref().and_then(|s| s.taints.as_ref()).is_some_and(|t| drives(t));
    let drives_now = plan.taints.as_deref().is_some_and(drives) && !driven;
    if drives_now {
        memory.lock().unwrap_or_else(PoisonError::into_inner).evicted.insert(zone, now);
    }
    let wait = match (allowed, driven || drives_now) {
        (Err(Some(next)), false) if plan.silent => Some(clock::until(next)),
        _ => None,
    };
    let deadline = plan.deadline.map(|at| clock::until(at) + std::time::Duration::from_millis(1));
    act(context, node, plan).await?;
    Ok(deadline.into_iter().chain(wait).min())
}

async fn act(context: &Arc<Context>, node: &Node, plan: Plan) -> Result<(), Error> {
    let nodes = &context.kinds.nodes;
    let name = node.metadata.name.clone().unwrap_or_default();
    if !plan.conditions.is_empty() {
        let patch = json!({ "metadata": { "uid": node.metadata.uid }, "status": { "conditions": plan.conditions } });
        nodes
            .patch_status(&node.metadata, &Patch::Strategic(patch))
            .await
            .map_err(Error::on("noting that a node is silent"))?;
    }
    if plan.fell_silent {
        let text = format!("Node {name} status is now: NodeNotReady");
        context.events.normal(SOURCE, node, "NodeNotReady", text);
    }
    let mut patch = json!({});
    for (label, value) in plan.labels {
        patch["metadata"]["labels"][label] = Value::String(value);
    }
    if let Some(taints) = plan.taints {
        // Taints are written whole: not over what somebody else wrote meanwhile.
        let current = nodes.get("", &name).map(|n| n.metadata.clone()).unwrap_or_default();
        let ObjectMeta { resource_version, .. } = if plan.conditions.is_empty() { node.metadata.clone() } else { current };
        patch["metadata"]["resourceVersion"] = json!(resource_version);
        patch["spec"]["taints"] = json!(taints);
    }
    if patch.as_object().is_some_and(|p| !p.is_empty()) {
        nodes.patch(&node.metadata, &Patch::Merge(patch)).await.map_err(Error::on("tainting a node"))?;
    }
    if plan.silent {
        for pod in context.kinds.pods.find(&By::Node(name)).iter().filter(|p| is_ready(p)) {
            mark_not_ready(context, pod).await?;
        }
    }
    Ok(())
}

/// Nobody knows how a pod on a silent node does: it gets no more traffic.
async fn mark_not_ready(context: &Arc<Context>, pod: &Arc<Pod>) -> Result<(), Error> {
    let condition = json!({ "type": "Ready", "status": "False", "lastTransitionTime": Time(clock::now()) });
    let patch = json!({ "metadata": { "uid": pod.metadata.uid }, "status": { "conditions": [condition] } });
    match context.kinds.pods.patch_status(&pod.metadata, &Patch::Strategic(patch)).await {
        Err(error) if is_gone(&error) => return Ok(()),
        other => drop(other.map_err(Error::on("noting that a pod is not ready"))?),
    }
    context.events.warning(SOURCE, &**pod, "NodeNotReady", "Node is not ready");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        "2026-01-01T00:00:00Z".parse::<Timestamp>().expect("a time") + SignedDuration::from_secs(seconds)
    }

    fn node(ready: Option<&str>, taints: &[(&str, &str)]) -> Node {
        let conditions: Vec<Value> = ready.map(|status| json!({ "type": "Ready", "status": status })).into_iter().collect();
        let taints: Vec<Value> = taints.iter().map(|(key, effect)| json!({ "key": key, "effect": effect })).collect();
        serde_json::from_value(json!({ "metadata": { "name": "n" }, "spec": { "taints": taints }, "status": { "conditions": conditions } }))
            .expect("a node")
    }

    fn check(node: &Node, seconds: i64, may_evict: bool, silent: bool, expected: Option<&[(&str, &str)]>) {
        let plan = plan(&Observed { node, heard: at(0), may_evict, now: at(seconds) });
        assert_eq!(plan.silent, silent);
        let taints = plan.taints.map(|all| all.iter().map(|t| (t.key.clone(), t.effect.clone())).collect::<Vec<_>>());
        let expected = expected.map(|all| all.iter().map(|(k, e)| ((*k).to_owned(), (*e).to_owned())).collect::<Vec<_>>());
        assert_eq!(taints, expected);
    }

    #[test]
    fn taints_follow_the_conditions() {
        let (no_schedule, no_execute) = ("NoSchedule", "NoExecute");
        check(&node(Some("True"), &[]), 10, true, false, None);
        check(&node(Some("True"), &[]), 51, true, true, Some(&[(UNREACHABLE, no_schedule), (UNREACHABLE, no_execute)]));
        check(&node(Some("True"), &[]), 51, false, true, Some(&[(UNREACHABLE, no_schedule)]));
        check(&node(Some("False"), &[]), 10, true, false, Some(&[(NOT_READY, no_schedule), (NOT_READY, no_execute)]));
        let silent = [("own", no_schedule), (UNREACHABLE, no_schedule), (UNREACHABLE, no_execute)];
        check(&node(Some("Unknown"), &silent), 60, false, true, None);
        check(&node(Some("True"), &silent), 10, true, false, Some(&[("own", no_schedule)]));
        let swapped = [("own", no_schedule), (NOT_READY, no_schedule), (NOT_READY, no_execute)];
        check(&node(Some("False"), &silent), 10, false, false, Some(&swapped));
        check(&node(None, &[]), 55, true, false, None);
        check(&node(None, &[]), 61, true, true, Some(&[(UNREACHABLE, no_schedule), (UNREACHABLE, no_execute)]));
    }

    #[test]
    fn not_all_nodes_lose_their_pods_at_once() {
        let nodes = |well: usize, ill: usize| -> Vec<Arc<Node>> {
            let of = |status, n| std::iter::repeat_n(Arc::new(node(Some(status), &[])), n);
            of("True", well).chain(of("Unknown", ill)).collect()
        };
        assert_eq!(may_evict(&nodes(1, 1), "", None, at(0)), Ok(()));
        assert_eq!(may_evict(&nodes(0, 1), "", None, at(0)), Err(None), "nobody is well");
        assert_eq!(may_evict(&nodes(1, 3), "", None, at(0)), Err(None), "most of a small zone is ill");
        assert_eq!(may_evict(&nodes(5, 1), "", Some(at(0)), at(3)), Err(Some(at(10))));
        assert_eq!(may_evict(&nodes(5, 1), "", Some(at(0)), at(10)), Ok(()));
    }
}
