//! A pod's status from what is observed of it. Pure; the rules are upstream's, so that every client reads what it expects.

mod conditions;
mod containers;
mod phase;

use std::collections::BTreeMap;
use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerState, ContainerStateTerminated, ContainerStatus, HostIP, Pod, PodIP, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Map, Value, json};

use crate::plan::Probes;
use crate::pod;
use crate::runtime::PodState;

/// Why a container doesn't run though it should.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Upstream's word: `CrashLoopBackOff`, `ErrImagePull`, ...
    pub reason: String,
    /// The sentence for people.
    pub message: String,
}

impl Waiting {
    /// A reason with its sentence.
    pub fn new(reason: impl Into<String>, message: impl Into<String>) -> Self {
        Self { reason: reason.into(), message: message.into() }
    }
}

/// Why the kubelet ended a pod that would have gone on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// `DeadlineExceeded`, `OutOfcpu`, ...
    pub reason: String,
    /// The sentence for people.
    pub message: String,
}

/// How far the pod is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Containers run or may still run: the phase isn't moved to a final one.
    Live,
    /// All containers ended and none will run again.
    Ended,
}

/// All that a status hangs on.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// The pod's metadata and spec.
    pub pod: &'a Pod,
    /// The status written last.
    pub old: &'a PodStatus,
    /// What the runtime has.
    pub state: &'a PodState,
    /// The scheme of container ids.
    pub runtime: &'a str,
    /// Why containers don't run, by name.
    pub waiting: &'a BTreeMap<String, Waiting>,
    /// What probes say.
    pub probes: &'a Probes,
    /// The node's address.
    pub host_ip: IpAddr,
    /// How far the pod is.
    pub stage: Stage,
    /// Why it was ended, if it was.
    pub verdict: Option<&'a Verdict>,
    /// Now.
    pub now: Timestamp,
}

/// The status of a pod.
pub fn pod_status(input: &Input<'_>) -> PodStatus {
    let Input { pod, old, state, .. } = *input;
    let mut status = PodStatus {
        observed_generation: pod.metadata.generation,
        qos_class: old.qos_class.clone(),
        start_time: old.start_time.clone().or(Some(Time(input.now))),
        host_ip: Some(input.host_ip.to_string()),
        host_ips: Some(vec![HostIP { ip: input.host_ip.to_string() }]),
        nominated_node_name: old.nominated_node_name.clone(),
        resize: old.resize.clone(),
        resources: old.resources.clone(),
        allocated_resources: old.allocated_resources.clone(),
        resource_claim_statuses: old.resource_claim_statuses.clone(),
        extended_resource_claim_status: old.extended_resource_claim_status.clone(),
        node_allocatable_resource_claim_statuses: old.node_allocatable_resource_claim_statuses.clone(),
        ..PodStatus::default()
    };
    let statuses = |kind| Some(containers::statuses(input, kind)).filter(|list: &Vec<_>| !list.is_empty());
    status.init_container_statuses = statuses(containers::List::Init);
    status.container_statuses = statuses(containers::List::Regular);
    status.ephemeral_container_statuses = statuses(containers::List::Ephemeral);

    let ip = if pod::host_network(pod) { Some(input.host_ip) } else { state.ready_sandbox().and_then(|s| s.ip) };
    // The address of a pod whose sandbox ended is still told: who deletes its traces elsewhere needs it.
    let ip = ip.map(|ip| ip.to_string()).or_else(|| old.pod_ip.clone().filter(|_| input.stage == Stage::Ended || pod::is_final(old.phase.as_deref())));
    status.pod_ips = ip.clone().map(|ip| vec![PodIP { ip }]);
    status.pod_ip = ip;

    settle_phase(input, &mut status);
    if input.stage == Stage::Ended {
        end_containers(pod, old, &mut status);
    }
    status.conditions = Some(conditions::conditions(input, &status));
    status
}

/// The status of a pod that never ran for it may not: upstream says no more than that.
pub fn rejected(pod: &Pod, verdict: &Verdict) -> PodStatus {
    let old = pod.status.clone().unwrap_or_default();
    PodStatus {
        phase: Some("Failed".into()),
        reason: Some(verdict.reason.clone()),
        message: Some(verdict.message.clone()),
        observed_generation: pod.metadata.generation,
        ..old
    }
}

fn settle_phase(input: &Input<'_>, status: &mut PodStatus) {
    let old = input.old;
    let observed = phase::phase(input, status);
    let old_phase = old.phase.as_deref();
    let ended = input.stage == Stage::Ended;
    let next = if pod::is_final(old_phase) {
        old_phase.unwrap_or_default()
    } else if input.verdict.is_some() && ended {
        "Failed"
    } else if pod::is_final(Some(observed)) && input.state.any_running() {
        // A final phase frees what the pod holds, so it waits for the last container.
        old_phase.unwrap_or("Pending")
    } else if ended && !pod::is_final(Some(observed)) {
        "Failed"
    } else {
        observed
    };
    if let Some(verdict) = input.verdict {
        status.reason = Some(verdict.reason.clone());
        status.message = Some(verdict.message.clone());
    } else if Some(next) == old_phase {
        status.reason = old.reason.clone();
        status.message = old.message.clone();
    }
    status.phase = Some(next.into());
}

/// What can't be told any more counts as failed: of a pod that is over, every container that could have run ended.
fn end_containers(pod: &Pod, old: &PodStatus, status: &mut PodStatus) {
    let unknown = || ContainerState {
        terminated: Some(ContainerStateTerminated {
            reason: Some("ContainerStatusUnknown".into()),
            message: Some("The container could not be located when the pod was terminated".into()),
            exit_code: 137,
            ..ContainerStateTerminated::default()
        }),
        ..ContainerState::default()
    };
    let end = |list: &mut [ContainerStatus]| {
        for container in list.iter_mut().filter(|c| terminated(c).is_none()) {
            container.state = Some(unknown());
            container.ready = false;
            container.started = Some(false);
        }
    };
    if initialized(pod, old, status) {
        end(status.container_statuses.as_deref_mut().unwrap_or_default());
    }
    let init = status.init_container_statuses.as_deref_mut().unwrap_or_default();
    let tried = init.iter().rposition(|c| waiting(c).is_none() || last_terminated(c).is_some()).map_or(1, |i| i + 1).min(init.len());
    end(&mut init[..tried]);
}

/// Whether regular containers can have run.
fn initialized(pod: &Pod, old: &PodStatus, status: &PodStatus) -> bool {
    let Some(last) = pod::init_containers(pod).last() else { return true };
    let ran = |c: &ContainerStatus| last_terminated(c).is_some() || waiting(c).is_none();
    let known = [old, status].into_iter().flat_map(|s| s.container_statuses.iter().flatten());
    if known.into_iter().any(ran) {
        return true;
    }
    let status = status.init_container_statuses.iter().flatten().find(|c| c.name == last.name);
    status.is_some_and(|c| match pod::is_sidecar(last) {
        true => c.state.as_ref().is_some_and(|s| s.running.is_some()) && c.started == Some(true),
        false => terminated(c).or(last_terminated(c)).is_some_and(|t| t.exit_code == 0),
    })
}

fn terminated(status: &ContainerStatus) -> Option<&ContainerStateTerminated> {
    status.state.as_ref()?.terminated.as_ref()
}

fn last_terminated(status: &ContainerStatus) -> Option<&ContainerStateTerminated> {
    status.last_state.as_ref()?.terminated.as_ref()
}

fn running(status: &ContainerStatus) -> bool {
    status.state.as_ref().is_some_and(|s| s.running.is_some())
}

fn waiting(status: &ContainerStatus) -> Option<()> {
    status.state.as_ref()?.waiting.as_ref().map(|_| ())
}

/// The strategic merge patch that turns one status into another, `None` when they are the same.
///
/// Conditions are merged by type, so those of others stay; every other list is replaced as a whole.
pub fn patch(uid: &str, old: &PodStatus, new: &PodStatus) -> Option<Value> {
    let as_map = |status: &PodStatus| match serde_json::to_value(status) {
        Ok(Value::Object(map)) => map,
        _ => Map::new(),
    };
    let (old, new) = (as_map(old), as_map(new));
    let mut changes = Map::new();
    for (key, value) in &new {
        let before = old.get(key).unwrap_or(&Value::Null);
        if before == value {
            continue;
        }
        let items = |v: &Value| v.as_array().cloned().unwrap_or_default();
        let change = match key.as_str() {
            "conditions" => {
                let before = items(before);
                let changed = items(value).into_iter().filter(|c| !before.contains(c));
                let changed: Vec<_> = changed.map(|c| merging(before.iter().find(|b| b["type"] == c["type"]), c)).collect();
                if changed.is_empty() {
                    // The server may keep them in another order.
                    continue;
                }
                Value::Array(changed)
            }
            // Merged by their key, unless told otherwise.
            "podIPs" | "hostIPs" if !before.is_null() => {
                let mut list = items(value);
                list.push(json!({"$patch": "replace"}));
                Value::Array(list)
            }
            _ => value.clone(),
        };
        changes.insert(key.clone(), change);
    }
    for key in old.keys().filter(|key| !new.contains_key(*key)) {
        changes.insert(key.clone(), Value::Null);
    }
    (!changes.is_empty()).then(|| json!({"metadata": {"uid": uid}, "status": changes}))
}

/// What is to be merged into an old object so that it becomes the new one: what goes is null.
fn merging(old: Option<&Value>, mut new: Value) -> Value {
    if let (Some(Value::Object(old)), Value::Object(new)) = (old, &mut new) {
        for key in old.keys() {
            new.entry(key).or_insert(Value::Null);
        }
    }
    new
}

#[cfg(test)]
mod tests;
