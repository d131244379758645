//! A pod's conditions.

use k8s_openapi::api::core::v1::{Container, ContainerStatus, PodCondition, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::containers::is_resized;
use super::{Input, last_terminated, running, terminated};
use crate::pod;

/// The conditions that the kubelet owns, in the order it writes them.
const OWNED: [&str; 6] = ["PodResizeInProgress", "PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"];

/// A condition without its times: type, status, reason, message.
struct Finding(bool, &'static str, String);

impl Finding {
    fn yes() -> Self {
        Self(true, "", String::new())
    }
}

/// The conditions of a status that has all but them; those of others are kept.
pub fn conditions(input: &Input<'_>, status: &PodStatus) -> Vec<PodCondition> {
    let old: Vec<_> = input.old.conditions.iter().flatten().collect();
    let others = || input.pod.status.iter().flat_map(|s| s.conditions.iter().flatten()).filter(|c| !OWNED.contains(&c.type_.as_str()));
    let sandbox = input.state.ready_sandbox().is_some_and(|s| s.ip.is_some() || pod::host_network(input.pod));
    let containers_ready = containers_ready(input, status);
    let ready = match containers_ready.0 {
        true => gates(input, others),
        false => Finding(false, containers_ready.1, containers_ready.2.clone()),
    };
    let initialized = initialized(input, status);
    let resized = |spec: &&Container| input.state.container(&spec.name).is_some_and(|c| is_resized(input, spec, c));
    // There only while it is true.
    let resizing = pod::init_containers(input.pod).iter().chain(pod::containers(input.pod)).find(resized).map(|_| Finding::yes());
    let lasting = [Finding(sandbox, "", String::new()), initialized, ready, containers_ready, Finding::yes()];
    let findings = std::iter::once(resizing).chain(lasting.map(Some));
    let mut list: Vec<PodCondition> = others().cloned().collect();
    for (type_, finding) in OWNED.into_iter().zip(findings) {
        let Some(Finding(yes, reason, message)) = finding else { continue };
        let value = if yes { "True" } else { "False" };
        let before = old.iter().find(|c| c.type_ == type_);
        let since = before.filter(|c| c.status == value).and_then(|c| c.last_transition_time.clone());
        list.push(PodCondition {
            type_: type_.into(),
            status: value.into(),
            reason: (!reason.is_empty()).then(|| reason.into()),
            message: (!message.is_empty()).then_some(message),
            last_transition_time: since.or(Some(Time(input.now))),
            last_probe_time: None,
            observed_generation: input.pod.metadata.generation,
        });
    }
    list
}

fn find<'a>(list: &'a Option<Vec<ContainerStatus>>, spec: &Container) -> Option<&'a ContainerStatus> {
    list.iter().flatten().find(|c| c.name == spec.name)
}

/// Names as upstream prints a list of them: `[a b]`.
fn shown(names: &[&str]) -> String {
    format!("[{}]", names.join(" "))
}

fn sentence(unknown: &[&str], others: &[&str], what: &str) -> String {
    let mut parts = Vec::new();
    if !unknown.is_empty() {
        parts.push(format!("containers with unknown status: {}", shown(unknown)));
    }
    if !others.is_empty() {
        parts.push(format!("containers with {what} status: {}", shown(others)));
    }
    parts.join(", ")
}

fn containers_ready(input: &Input<'_>, status: &PodStatus) -> Finding {
    let sidecars = pod::init_containers(input.pod).iter().filter(|c| pod::is_sidecar(c));
    let all = sidecars
        .map(|c| (c.name.as_str(), find(&status.init_container_statuses, c)))
        .chain(pod::containers(input.pod).iter().map(|c| (c.name.as_str(), find(&status.container_statuses, c))));
    let (mut unknown, mut unready) = (Vec::new(), Vec::new());
    for (name, status) in all {
        match status {
            None => unknown.push(name),
            Some(status) if !status.ready => unready.push(name),
            Some(_) => {}
        }
    }
    match status.phase.as_deref() {
        Some("Succeeded") if unknown.is_empty() => Finding(false, "PodCompleted", String::new()),
        Some("Failed") => Finding(false, "PodFailed", String::new()),
        _ if unknown.is_empty() && unready.is_empty() => Finding::yes(),
        _ => Finding(false, "ContainersNotReady", sentence(&unknown, &unready, "unready")),
    }
}

fn gates<'a, I: Iterator<Item = &'a PodCondition>>(input: &Input<'_>, others: impl Fn() -> I) -> Finding {
    let wanted = pod::spec(input.pod).and_then(|s| s.readiness_gates.as_deref()).unwrap_or_default();
    let faults: Vec<_> = wanted
        .iter()
        .filter_map(|gate| match others().find(|c| c.type_ == gate.condition_type) {
            None => Some(format!("corresponding condition of pod readiness gate {:?} does not exist.", gate.condition_type)),
            Some(c) if c.status != "True" => {
                Some(format!("the status of pod readiness gate {:?} is not \"True\", but {}", gate.condition_type, c.status))
            }
            Some(_) => None,
        })
        .collect();
    if faults.is_empty() { Finding::yes() } else { Finding(false, "ReadinessGatesNotReady", faults.join(", ")) }
}

fn initialized(input: &Input<'_>, status: &PodStatus) -> Finding {
    let (mut unknown, mut incomplete) = (Vec::new(), Vec::new());
    for spec in pod::init_containers(input.pod) {
        match find(&status.init_container_statuses, spec) {
            None => unknown.push(spec.name.as_str()),
            Some(s) if pod::is_sidecar(spec) && s.started == Some(true) => {}
            Some(s) if !pod::is_sidecar(spec) && s.ready => {}
            Some(_) => incomplete.push(spec.name.as_str()),
        }
    }
    if status.phase.as_deref() == Some("Succeeded") && unknown.is_empty() {
        return Finding(true, "PodCompleted", String::new());
    }
    let started = |s: &ContainerStatus| s.started == Some(true) || running(s) || terminated(s).or(last_terminated(s)).is_some();
    let was = input.old.conditions.iter().flatten().any(|c| c.type_ == "Initialized" && c.status == "True");
    if (unknown.is_empty() && incomplete.is_empty()) || was || status.container_statuses.iter().flatten().any(started) {
        return Finding::yes();
    }
    Finding(false, "ContainersNotInitialized", sentence(&unknown, &incomplete, "incomplete"))
}
