//! The statuses of a pod's containers.

use k8s_openapi::api::core::v1::{
    Container as Spec, ContainerState as ApiState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
    ContainerStatus, VolumeMountStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{Input, last_terminated, running, terminated, waiting};
use crate::runtime::{Container, ContainerState};
use crate::{pod, security};

/// One of the three lists of containers in a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum List {
    /// `spec.initContainers`
    Init,
    /// `spec.containers`
    Regular,
    /// `spec.ephemeralContainers`
    Ephemeral,
}

/// The statuses of one list, in the order of the spec.
pub fn statuses(input: &Input<'_>, list: List) -> Vec<ContainerStatus> {
    let old = match list {
        List::Init => &input.old.init_container_statuses,
        List::Regular => &input.old.container_statuses,
        List::Ephemeral => &input.old.ephemeral_container_statuses,
    };
    let ephemeral;
    let specs: Vec<&Spec> = match list {
        List::Init => pod::init_containers(input.pod).iter().collect(),
        List::Regular => pod::containers(input.pod).iter().collect(),
        List::Ephemeral => {
            ephemeral = pod::ephemeral_containers(input.pod);
            ephemeral.iter().map(|(spec, _)| spec).collect()
        }
    };
    let status = |spec: &Spec| status(input, list, spec, old.iter().flatten().find(|c| c.name == spec.name));
    specs.into_iter().map(status).collect()
}

fn status(input: &Input<'_>, list: List, spec: &Spec, old: Option<&ContainerStatus>) -> ContainerStatus {
    let mut seen = input.state.containers.iter().filter(|c| c.name == spec.name);
    let newest = seen.next();
    let mut status = match newest {
        Some(container) => observed(input, spec, container, old),
        None => unseen(input, list, spec, old),
    };
    if let Some(before) = seen.next() {
        status.last_state = Some(state(input, before));
    }
    // What is to run and doesn't says why, if anything is known.
    let succeeded_init = list == List::Init && newest.is_some_and(|c| c.state == ContainerState::Exited && c.exit_code == 0);
    if let Some(why) = input.waiting.get(&spec.name)
        && !running(&status)
        && !succeeded_init
        && to_run(input, spec, newest)
    {
        if terminated(&status).is_some() {
            status.last_state = status.state.take();
        }
        status.state = Some(wait(&why.reason, &why.message));
    }
    settle_health(input, list, spec, newest, &mut status);
    status
}

fn to_run(input: &Input<'_>, spec: &Spec, newest: Option<&Container>) -> bool {
    let deleted = input.pod.metadata.deletion_timestamp.is_some();
    !deleted && newest.is_none_or(|c| c.state != ContainerState::Exited || pod::restarts_after(input.pod, spec, c.exit_code))
}

fn wait(reason: &str, message: &str) -> ApiState {
    let text = |s: &str| (!s.is_empty()).then(|| s.to_owned());
    ApiState { waiting: Some(ContainerStateWaiting { reason: text(reason), message: text(message) }), ..ApiState::default() }
}

fn state(input: &Input<'_>, container: &Container) -> ApiState {
    match container.state {
        ContainerState::Created | ContainerState::Unknown => wait("", ""),
        ContainerState::Running => {
            let started_at = container.started_at.map(Time);
            ApiState { running: Some(ContainerStateRunning { started_at }), ..ApiState::default() }
        }
        ContainerState::Exited => {
            let text = |s: &str| (!s.is_empty()).then(|| s.to_owned());
            let terminated = ContainerStateTerminated {
                container_id: Some(container_id(input, container)),
                exit_code: container.exit_code,
                started_at: container.started_at.map(Time),
                finished_at: container.finished_at.map(Time),
                reason: text(&container.reason),
                message: text(&container.message),
                signal: None,
            };
            ApiState { terminated: Some(terminated), ..ApiState::default() }
        }
    }
}

fn container_id(input: &Input<'_>, container: &Container) -> String {
    format!("{}://{}", input.runtime, container.id)
}

/// Whether a container is about to get other limits.
pub(super) fn is_resized(input: &Input<'_>, spec: &Spec, container: &Container) -> bool {
    container.state == ContainerState::Running && security::resize(input.pod, spec, container).is_some()
}

/// The status of a container that the runtime knows.
fn observed(input: &Input<'_>, spec: &Spec, container: &Container, old: Option<&ContainerStatus>) -> ContainerStatus {
    let id = container_id(input, container);
    // The runtime may have forgotten the container before this one.
    let last_state = old.and_then(|old| match terminated(old) {
        Some(_) if old.container_id.as_deref() != Some(&id) => old.state.clone(),
        _ => old.last_state.clone().filter(|s| s.terminated.is_some()),
    });
    let attempt = i32::try_from(container.attempt).unwrap_or(i32::MAX);
    ContainerStatus {
        restart_count: attempt.max(old.map_or(0, |old| old.restart_count)),
        image: container.image.clone(),
        image_id: container.image_id.clone(),
        container_id: Some(id),
        state: Some(state(input, container)),
        last_state: Some(last_state.unwrap_or_default()),
        resources: match old.filter(|_| is_resized(input, spec, container)) {
            Some(old) => old.resources.clone(),
            None => Some(spec.resources.clone().unwrap_or_default()),
        },
        allocated_resources: spec.resources.as_ref().and_then(|r| r.requests.clone()),
        ..fresh(input, spec)
    }
}

/// The status of a container that the runtime doesn't know: not made yet, or forgotten.
fn unseen(input: &Input<'_>, list: List, spec: &Spec, old: Option<&ContainerStatus>) -> ContainerStatus {
    let mut status = fresh(input, spec);
    if let Some(old) = old {
        if terminated(old).is_some() {
            return old.clone();
        }
        status.restart_count = old.restart_count;
        status.last_state = old.last_state.clone().or(status.last_state);
        if running(old) && last_terminated(&status).is_none() {
            // It ran and is gone: nobody can tell any more how it ended.
            let ended = ContainerStateTerminated {
                reason: Some("ContainerStatusUnknown".into()),
                message: Some("The container could not be located when the pod was deleted.  The container used to be Running".into()),
                exit_code: 137,
                ..ContainerStateTerminated::default()
            };
            status.last_state = Some(ApiState { terminated: Some(ended), ..ApiState::default() });
            status.restart_count += i32::from(input.pod.metadata.deletion_timestamp.is_none());
        }
    }
    let initialized = || pod::containers(input.pod).iter().any(|c| input.state.container(&c.name).is_some());
    if list == List::Init && !pod::is_sidecar(spec) && waiting(&status).is_some() && initialized() {
        let message = "Unable to get init container status from container runtime and pod has been initialized, treat it as exited normally";
        let ended = ContainerStateTerminated { reason: Some("Completed".into()), message: Some(message.into()), ..Default::default() };
        status.state = Some(ApiState { terminated: Some(ended), ..ApiState::default() });
    }
    status
}

/// The status of a container that was never made.
fn fresh(input: &Input<'_>, spec: &Spec) -> ContainerStatus {
    let reason = if pod::init_containers(input.pod).is_empty() { "ContainerCreating" } else { "PodInitializing" };
    let mounts = spec.volume_mounts.iter().flatten().map(|mount| VolumeMountStatus {
        name: mount.name.clone(),
        mount_path: mount.mount_path.clone(),
        read_only: mount.read_only.filter(|read_only| *read_only),
        recursive_read_only: mount.read_only.filter(|read_only| *read_only).map(|_| "Disabled".into()),
        ..VolumeMountStatus::default()
    });
    let mounts: Vec<_> = mounts.collect();
    ContainerStatus {
        name: spec.name.clone(),
        image: spec.image.clone().unwrap_or_default(),
        state: Some(wait(reason, "")),
        last_state: Some(ApiState::default()),
        volume_mounts: (!mounts.is_empty()).then_some(mounts),
        ..ContainerStatus::default()
    }
}

/// Sets `started` and `ready`.
fn settle_health(input: &Input<'_>, list: List, spec: &Spec, newest: Option<&Container>, status: &mut ContainerStatus) {
    if list == List::Ephemeral {
        return;
    }
    let probed = newest.and_then(|c| input.probes.get(&c.id)).copied().unwrap_or_default();
    let by_runtime = newest.and_then(|c| c.ready);
    let runs = running(status);
    let started = runs && (spec.startup_probe.is_none() || by_runtime.is_some() || probed.startup == Some(true));
    status.started = Some(started);
    status.ready = if list == List::Init && !pod::is_sidecar(spec) {
        terminated(status).is_some_and(|t| t.exit_code == 0)
    } else {
        started && by_runtime.unwrap_or(spec.readiness_probe.is_none() || probed.readiness == Some(true))
    };
}
