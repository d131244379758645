//! The phase, by upstream's count of what waits, runs and ended.

use k8s_openapi::api::core::v1::{Container, ContainerStatus, PodStatus};

use super::{Input, Stage, last_terminated, running, terminated, waiting};
use crate::pod;
use crate::runtime::ContainerState;

/// The phase that the containers' statuses amount to.
pub fn phase(input: &Input<'_>, status: &PodStatus) -> &'static str {
    let pod = input.pod;
    let find = |list: &Option<Vec<ContainerStatus>>, name: &str| list.iter().flatten().find(|c| c.name == name).cloned();
    let mut n = Count::default();
    for spec in pod::init_containers(pod) {
        let status = find(&status.init_container_statuses, &spec.name);
        if pod::is_sidecar(spec) {
            n.sidecar(status.as_ref());
        } else {
            n.init(status.as_ref(), |code| pod::restarts_after(pod, spec, code));
        }
    }
    for spec in pod::containers(pod) {
        let status = find(&status.container_statuses, &spec.name);
        n.regular(status.as_ref(), |code| pod::restarts_after(pod, spec, code));
    }
    n.phase(input.stage == Stage::Ended, has_started(input))
}

/// Whether any regular container runs or waits in the runtime.
fn has_started(input: &Input<'_>) -> bool {
    let active = |spec: &Container| {
        input.state.container(&spec.name).is_some_and(|c| matches!(c.state, ContainerState::Running | ContainerState::Created))
    };
    pod::containers(input.pod).iter().any(active)
}

#[derive(Default)]
struct Count {
    pending_init: u32,
    pending_sidecars: u32,
    failed_for_good: u32,
    unknown: u32,
    running: u32,
    waiting: u32,
    stopped: u32,
    stopped_for_good: u32,
    succeeded: u32,
}

impl Count {
    fn init(&mut self, status: Option<&ContainerStatus>, restarts: impl Fn(i32) -> bool) {
        let ended = status.and_then(|s| terminated(s).or_else(|| waiting(s).and(last_terminated(s))));
        match ended {
            Some(ended) if ended.exit_code != 0 => self.failed_for_good += u32::from(!restarts(ended.exit_code)),
            // Ended well: only as the present state does that count, not as the last one of a container that waits.
            Some(_) => {}
            None => self.pending_init += 1,
        }
    }

    fn sidecar(&mut self, status: Option<&ContainerStatus>) {
        match status {
            None => self.unknown += 1,
            Some(s) if running(s) => {
                self.pending_sidecars += u32::from(s.started != Some(true));
                self.running += 1;
            }
            Some(s) if terminated(s).is_some() || last_terminated(s).is_some() => {}
            Some(_) => {
                self.pending_sidecars += 1;
                self.waiting += 1;
            }
        }
    }

    fn regular(&mut self, status: Option<&ContainerStatus>, restarts: impl Fn(i32) -> bool) {
        match status {
            None => self.unknown += 1,
            Some(s) if running(s) => self.running += 1,
            Some(s) => match (terminated(s), last_terminated(s)) {
                (Some(ended), _) => {
                    self.stopped += 1;
                    self.stopped_for_good += u32::from(!restarts(ended.exit_code));
                    self.succeeded += u32::from(ended.exit_code == 0);
                }
                (None, Some(ended)) => {
                    self.stopped += 1;
                    self.stopped_for_good += u32::from(!restarts(ended.exit_code));
                }
                (None, None) => self.waiting += 1,
            },
        }
    }

    fn phase(&self, ended: bool, started: bool) -> &'static str {
        let outcome = || if self.stopped == self.succeeded { "Succeeded" } else { "Failed" };
        if self.failed_for_good > 0 {
            "Failed"
        } else if self.pending_init > 0 || (self.pending_sidecars > 0 && !started) || self.waiting > 0 {
            "Pending"
        } else if self.running > 0 && self.unknown == 0 {
            "Running"
        } else if self.running == 0 && self.stopped > 0 && self.unknown == 0 {
            if !ended && self.stopped != self.stopped_for_good { "Running" } else { outcome() }
        } else {
            "Pending"
        }
    }
}
