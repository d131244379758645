//! Short ways into a Pod's spec, and the rules that hang on the spec alone.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use sha2::{Digest, Sha256};

use crate::runtime::{ContainerKind, PodRef};

static NO_CONTAINERS: Vec<Container> = Vec::new();

/// The identity of a pod.
pub fn pod_ref(pod: &Pod) -> PodRef {
    PodRef { uid: uid(pod).into(), namespace: namespace(pod).into(), name: name(pod).into() }
}

/// `metadata.uid`
pub fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

/// `metadata.namespace`
pub fn namespace(pod: &Pod) -> &str {
    pod.metadata.namespace.as_deref().unwrap_or_default()
}

/// `metadata.name`
pub fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

/// The pod as upstream's messages show it: `name_namespace(uid)`.
pub fn shown(pod: &Pod) -> String {
    format!("{}_{}({})", name(pod), namespace(pod), uid(pod))
}

/// `spec.initContainers`
pub fn init_containers(pod: &Pod) -> &[Container] {
    spec(pod).and_then(|s| s.init_containers.as_ref()).unwrap_or(&NO_CONTAINERS)
}

/// `spec.containers`
pub fn containers(pod: &Pod) -> &[Container] {
    spec(pod).map_or(&NO_CONTAINERS, |s| &s.containers)
}

/// `spec.ephemeralContainers`, each as a container and the name of the container that it debugs.
pub fn ephemeral_containers(pod: &Pod) -> Vec<(Container, Option<String>)> {
    let list = spec(pod).and_then(|s| s.ephemeral_containers.as_deref()).unwrap_or_default();
    list.iter()
        .map(|e| {
            let container = Container {
                args: e.args.clone(),
                command: e.command.clone(),
                env: e.env.clone(),
                env_from: e.env_from.clone(),
                image: e.image.clone(),
                image_pull_policy: e.image_pull_policy.clone(),
                name: e.name.clone(),
                security_context: e.security_context.clone(),
                stdin: e.stdin,
                stdin_once: e.stdin_once,
                termination_message_path: e.termination_message_path.clone(),
                termination_message_policy: e.termination_message_policy.clone(),
                tty: e.tty,
                volume_mounts: e.volume_mounts.clone(),
                working_dir: e.working_dir.clone(),
                ..Container::default()
            };
            (container, e.target_container_name.clone())
        })
        .collect()
}

/// The container of that name, and its role.
pub fn container(pod: &Pod, name: &str) -> Option<(ContainerKind, Container)> {
    let init = init_containers(pod).iter().find(|c| c.name == name).map(|c| (init_kind(c), c.clone()));
    init.or_else(|| containers(pod).iter().find(|c| c.name == name).map(|c| (ContainerKind::Regular, c.clone())))
        .or_else(|| ephemeral_containers(pod).into_iter().find(|(c, _)| c.name == name).map(|(c, _)| (ContainerKind::Ephemeral, c)))
}

/// `spec`
pub fn spec(pod: &Pod) -> Option<&PodSpec> {
    pod.spec.as_ref()
}

/// Whether an init container is a sidecar: `restartPolicy: Always`.
pub fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// The role of an init container.
pub fn init_kind(container: &Container) -> ContainerKind {
    if is_sidecar(container) { ContainerKind::Sidecar } else { ContainerKind::Init }
}

/// `spec.restartPolicy`
pub fn restart_policy(pod: &Pod) -> &str {
    spec(pod).and_then(|s| s.restart_policy.as_deref()).unwrap_or("Always")
}

/// `spec.hostNetwork`
pub fn host_network(pod: &Pod) -> bool {
    spec(pod).and_then(|s| s.host_network).unwrap_or(false)
}

/// Whether a container that ended with that code is to run again: its own rules first, then its own policy, then the pod's.
///
/// Init containers take the pod's policy as "not Never".
pub fn restarts_after(pod: &Pod, container: &Container, exit_code: i32) -> bool {
    for rule in container.restart_policy_rules.iter().flatten() {
        let matches = rule.exit_codes.as_ref().is_some_and(|codes| {
            let listed = codes.values.iter().flatten().any(|v| *v == exit_code);
            match codes.operator.as_str() {
                "In" => listed,
                "NotIn" => !listed,
                _ => false,
            }
        });
        if matches {
            // Both actions there are, `Restart` and `RestartAllContainers`, restart this one.
            return true;
        }
    }
    match container.restart_policy.as_deref().unwrap_or(restart_policy(pod)) {
        "Never" => false,
        "OnFailure" => exit_code != 0,
        _ => true,
    }
}

/// Whether a failing probe leads to a restart.
pub fn restarts_after_kill(pod: &Pod, container: &Container) -> bool {
    container.restart_policy.as_deref().unwrap_or(restart_policy(pod)) != "Never"
}

/// Identifies what a container was made from: as upstream, its name and image, the only parts that can change in place.
pub fn spec_hash(container: &Container) -> String {
    let mut hash = Sha256::new();
    hash.update(&container.name);
    hash.update([0]);
    hash.update(container.image.as_deref().unwrap_or_default());
    hash.finalize().iter().take(4).map(|byte| format!("{byte:02x}")).collect()
}

/// The seconds that the pod's containers are given to end.
pub fn grace_seconds(pod: &Pod) -> i64 {
    pod.metadata
        .deletion_grace_period_seconds
        .or(spec(pod).and_then(|s| s.termination_grace_period_seconds))
        .unwrap_or(30)
}

/// When the pod's `activeDeadlineSeconds` are over.
pub fn deadline(pod: &Pod, started: Option<Timestamp>) -> Option<Timestamp> {
    let seconds = spec(pod)?.active_deadline_seconds?;
    started?.checked_add(jiff::SignedDuration::from_secs(seconds)).ok()
}

/// Whether a phase is final.
pub fn is_final(phase: Option<&str>) -> bool {
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// The phase that the API has.
pub fn phase(pod: &Pod) -> Option<&str> {
    pod.status.as_ref()?.phase.as_deref()
}
