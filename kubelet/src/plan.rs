//! Decides what to do next for a pod. Pure: all that it knows is in [`Observed`].
//!
//! The order of things: what has to end is ended before anything starts; a sandbox comes before containers; init containers
//! run one after another, sidecars among them go on; then all containers. After each step the pod is observed and decided anew.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container as Spec, Pod};

use crate::runtime::{Container, ContainerKind, ContainerState, PodState, Resources, Sandbox};
use crate::{pod, security};

/// The wait before a container's second restart; it doubles with each further one.
pub const FIRST_BACKOFF: Duration = Duration::from_secs(10);
/// The longest wait before a restart.
pub const LONGEST_BACKOFF: Duration = Duration::from_secs(300);
/// A container that ran for so long starts anew with the waits.
pub const BACKOFF_FORGOTTEN: Duration = Duration::from_secs(600);

/// What probes found out about a container, by its id.
pub type Probes = HashMap<String, Probed>;

/// What probes found out about one container; `None` where no verdict is reached, or no such probe is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Probed {
    /// It has started.
    pub startup: Option<bool>,
    /// It lives.
    pub liveness: Option<bool>,
    /// It takes requests.
    pub readiness: Option<bool>,
}

/// How long restarts of a container wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// The container's spec, for a changed one starts anew.
    pub spec_hash: String,
    /// How long after its last end it stays down.
    pub delay: Duration,
    /// When the delay was set.
    pub since: Timestamp,
}

/// All that a decision hangs on.
#[derive(Clone, Copy, Debug)]
pub struct Observed<'a> {
    /// The pod as the API has it, with the status last written.
    pub pod: &'a Pod,
    /// What the runtime has of it.
    pub state: &'a PodState,
    /// What probes say.
    pub probes: &'a Probes,
    /// Waits of containers, by name.
    pub backoffs: &'a BTreeMap<String, Backoff>,
    /// Containers that failed to start, by name: not to be tried before that time.
    pub held: &'a BTreeMap<String, Timestamp>,
    /// The sandbox isn't tried before that time.
    pub sandbox_held: Option<Timestamp>,
    /// Now.
    pub now: Timestamp,
}

/// The next steps. Empty when the pod is as it should be, until [`Plan::wake_at`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// The pod's work is over: end what still runs, for good.
    pub finished: bool,
    /// End everything, to begin anew with another sandbox.
    pub reset: bool,
    /// Make a sandbox, the how many-th.
    pub sandbox: Option<u32>,
    /// End these containers.
    pub kill: Vec<Kill>,
    /// Give these running containers other limits.
    pub resize: Vec<Resize>,
    /// Remove these containers; they ended and nobody asks for them any more.
    pub remove: Vec<String>,
    /// Remove these sandboxes; they ended.
    pub remove_sandboxes: Vec<String>,
    /// Start these containers, in order.
    pub start: Vec<Start>,
    /// Containers that wait to be restarted.
    pub waiting: Vec<Wait>,
    /// Decide again then, even if nothing happens.
    pub wake_at: Option<Timestamp>,
}

/// A container to end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kill {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Why, for the event.
    pub message: String,
    /// The seconds that it is given, where it isn't the pod's own grace period.
    pub grace_seconds: Option<i64>,
}

/// A container to run on with other limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resize {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its limits from now on.
    pub resources: Resources,
}

/// A container to start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    /// Its name.
    pub name: String,
    /// Its role.
    pub kind: ContainerKind,
    /// How often it was started before.
    pub attempt: u32,
    /// Its wait from now on; `None` when it never ended yet.
    pub backoff: Option<Backoff>,
}

/// A container that waits to be restarted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wait {
    /// Its name.
    pub name: String,
    /// How long the wait is in all.
    pub delay: Duration,
    /// When it is over.
    pub until: Timestamp,
}

impl Plan {
    /// Whether there is nothing to do now.
    pub fn is_idle(&self) -> bool {
        let Self { finished, reset, sandbox, kill, resize, remove, remove_sandboxes, start, waiting: _, wake_at: _ } = self;
        !finished && !reset && sandbox.is_none() && kill.is_empty() && resize.is_empty() && remove.is_empty() && remove_sandboxes.is_empty() && start.is_empty()
    }

    fn wake(&mut self, at: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(at, |other| other.min(at)));
    }
}

/// The next steps of a pod that is meant to run.
pub fn plan(o: &Observed<'_>) -> Plan {
    let mut plan = Plan::default();
    let started = o.pod.status.as_ref().and_then(|s| s.start_time.as_ref()).map(|t| t.0);
    if let Some(deadline) = pod::deadline(o.pod, started) {
        plan.wake(deadline);
    }
    match usable_sandbox(o) {
        None => plan_sandbox(o, &mut plan),
        Some(sandbox) => plan_containers(o, sandbox, &mut plan),
    }
    if !plan.finished && !plan.reset {
        plan_removals(o, &mut plan);
    }
    plan
}

/// The sandbox that containers can be started in.
pub fn usable_sandbox<'a>(o: &Observed<'a>) -> Option<&'a Sandbox> {
    o.state.ready_sandbox().filter(|s| s.ip.is_some() || pod::host_network(o.pod))
}

fn plan_sandbox(o: &Observed<'_>, plan: &mut Plan) {
    let regular = pod::containers(o.pod);
    let former = o.state.sandboxes.first();
    let restartable = pod::restart_policy(o.pod) != "Never" || regular.iter().any(|c| pod::restarts_after_kill(o.pod, c));
    if former.is_some() && !restartable && !o.state.containers.is_empty() {
        plan.finished = true;
        return;
    }
    let to_run = |c: &&Spec| should_run(o, c);
    let initialized = regular.iter().any(|c| o.state.container(&c.name).is_some());
    if initialized && !regular.iter().any(|c| to_run(&c)) {
        plan.finished = true;
        return;
    }
    if o.state.any_running() || o.state.ready_sandbox().is_some() {
        plan.reset = true;
        return;
    }
    match o.sandbox_held.filter(|at| *at > o.now) {
        Some(at) => plan.wake(at),
        None => plan.sandbox = Some(former.map_or(0, |s| s.attempt + 1)),
    }
}

fn plan_containers(o: &Observed<'_>, sandbox: &Sandbox, plan: &mut Plan) {
    for (container, _) in pod::ephemeral_containers(o.pod) {
        if o.state.container(&container.name).is_none() {
            start(o, plan, &container, ContainerKind::Ephemeral);
        }
    }
    if !plan_init(o, sandbox, plan) {
        return;
    }
    let mut kept = 0;
    let mut wanted = 0;
    for spec in pod::containers(o.pod) {
        match o.state.container(&spec.name).filter(|c| c.state == ContainerState::Running) {
            None if should_run(o, spec) => {
                wanted += 1;
                start(o, plan, spec, ContainerKind::Regular);
            }
            None => {}
            Some(container) => match reason_to_kill(o, spec, container, "Container") {
                None => {
                    kept += 1;
                    resize(o, spec, container, plan);
                }
                Some((kill, changed)) => {
                    let again = changed || pod::restarts_after_kill(o.pod, spec);
                    wanted += usize::from(again);
                    let message = if again { format!("{}, will be restarted", kill.message) } else { kill.message };
                    plan.kill.push(Kill { message, ..kill });
                }
            },
        }
    }
    if kept == 0 && wanted == 0 && plan.kill.is_empty() {
        *plan = Plan { finished: true, ..Plan::default() };
    }
}

/// Plans init containers and sidecars; whether the others may run.
///
/// Read from the last to the first: the last one that ran tells how far initialization came, for the ones before it may
/// have been removed since. Only containers of this sandbox count: a new sandbox is initialized anew.
fn plan_init(o: &Observed<'_>, sandbox: &Sandbox, plan: &mut Plan) -> bool {
    let specs = pod::init_containers(o.pod);
    if specs.is_empty() {
        return true;
    }
    let here = |name: &str| o.state.container(name).filter(|c| c.sandbox_id == sandbox.id);
    let mut initialized = pod::containers(o.pod).iter().any(|c| here(&c.name).is_some_and(|c| c.state != ContainerState::Exited));
    let mut later_ran = initialized;
    let mut to_start: Vec<&Spec> = Vec::new();
    for (index, spec) in specs.iter().enumerate().rev() {
        let sidecar = pod::is_sidecar(spec);
        let last = index + 1 == specs.len();
        let Some(container) = here(&spec.name) else {
            if later_ran && sidecar {
                to_start.push(spec);
            }
            continue;
        };
        if later_ran && !sidecar {
            continue;
        }
        let next = specs.get(index + 1).filter(|_| !later_ran);
        match container.state {
            ContainerState::Running if sidecar => {
                let probed = o.probes.get(&container.id).copied().unwrap_or_default();
                if let Some((kill, _)) = reason_to_kill(o, spec, container, "Init container") {
                    plan.kill.push(kill);
                } else {
                    resize(o, spec, container, plan);
                    if spec.startup_probe.is_none() || probed.startup == Some(true) {
                        initialized |= last;
                        to_start.extend(next);
                    }
                }
            }
            ContainerState::Running => {}
            ContainerState::Exited if sidecar => to_start.push(spec),
            ContainerState::Exited if container.exit_code == 0 => {
                initialized |= last;
                to_start.extend(next);
            }
            ContainerState::Exited if !pod::restarts_after(o.pod, spec, container.exit_code) => {
                *plan = Plan { finished: true, ..Plan::default() };
                return false;
            }
            ContainerState::Exited | ContainerState::Created => to_start.push(spec),
            ContainerState::Unknown => plan.kill.push(unknown(container)),
        }
        later_ran = true;
    }
    if !later_ran {
        to_start.extend(specs.first());
    }
    for spec in to_start.into_iter().rev() {
        start(o, plan, spec, pod::init_kind(spec));
    }
    initialized
}

fn unknown(container: &Container) -> Kill {
    let message = "Container is in \"unknown\" state, try killing it before restart".to_owned();
    Kill { id: container.id.clone(), name: container.name.clone(), message, grace_seconds: None }
}

/// Why a running container has to end, and whether that is because its spec changed.
fn reason_to_kill(o: &Observed<'_>, spec: &Spec, container: &Container, what: &str) -> Option<(Kill, bool)> {
    let probed = o.probes.get(&container.id).copied().unwrap_or_default();
    let grace_of = |probe: Option<&k8s_openapi::api::core::v1::Probe>| probe.and_then(|p| p.termination_grace_period_seconds);
    let restarts = || security::resize(o.pod, spec, container).is_some_and(|(_, restarts)| restarts);
    let (why, changed, grace_seconds) = if container.spec_hash != pod::spec_hash(spec) {
        ("definition changed", true, None)
    } else if restarts() {
        ("resize requires restart", true, None)
    } else if probed.liveness == Some(false) {
        ("failed liveness probe", false, grace_of(spec.liveness_probe.as_ref()))
    } else if probed.startup == Some(false) {
        ("failed startup probe", false, grace_of(spec.startup_probe.as_ref()))
    } else {
        return None;
    };
    let message = format!("{what} {} {why}", spec.name);
    Some((Kill { id: container.id.clone(), name: spec.name.clone(), message, grace_seconds }, changed))
}

/// Plans other limits of a running container, if that is called for.
fn resize(o: &Observed<'_>, spec: &Spec, container: &Container, plan: &mut Plan) {
    let Some((resources, _)) = security::resize(o.pod, spec, container) else { return };
    match o.held.get(&spec.name).filter(|at| **at > o.now) {
        Some(at) => plan.wake(*at),
        None => plan.resize.push(Resize { id: container.id.clone(), name: spec.name.clone(), resources }),
    }
}

/// Whether one of `spec.containers` is to be started, if it doesn't run.
fn should_run(o: &Observed<'_>, spec: &Spec) -> bool {
    match o.state.container(&spec.name) {
        Some(container) if container.state == ContainerState::Exited => pod::restarts_after(o.pod, spec, container.exit_code),
        _ => true,
    }
}

/// Plans a start, or the wait for it.
fn start(o: &Observed<'_>, plan: &mut Plan, spec: &Spec, kind: ContainerKind) {
    if let Some(at) = o.held.get(&spec.name).filter(|at| **at > o.now) {
        plan.wake(*at);
        return;
    }
    let hash = pod::spec_hash(spec);
    let exited = o.state.containers.iter().find(|c| c.name == spec.name && c.state == ContainerState::Exited);
    let mut backoff = None;
    if let Some(exited) = exited {
        let ended = exited.finished_at.unwrap_or(exited.created_at);
        let known = o.backoffs.get(&spec.name).filter(|b| b.spec_hash == hash && !forgotten(b, ended));
        if let Some(known) = known {
            let until = ended + known.delay;
            if until > o.now {
                plan.waiting.push(Wait { name: spec.name.clone(), delay: known.delay, until });
                plan.wake(until);
                return;
            }
        }
        let delay = known.map_or(FIRST_BACKOFF, |b| (b.delay * 2).min(LONGEST_BACKOFF));
        backoff = Some(Backoff { spec_hash: hash, delay, since: o.now });
    }
    plan.start.push(Start { name: spec.name.clone(), kind, attempt: next_attempt(o, spec, kind), backoff });
}

/// Whether a container ran for so long after its last restart that the wait begins anew.
fn forgotten(backoff: &Backoff, ended: Timestamp) -> bool {
    ended.duration_since(backoff.since) > jiff::SignedDuration::try_from(BACKOFF_FORGOTTEN).unwrap_or_default()
}

/// The number of the next start: one more than the newest container's, or than what the status says if the runtime forgot it.
fn next_attempt(o: &Observed<'_>, spec: &Spec, kind: ContainerKind) -> u32 {
    if let Some(container) = o.state.container(&spec.name) {
        // One that was made and never started is replaced, not counted.
        return container.attempt + u32::from(container.state != ContainerState::Created);
    }
    let status = o.pod.status.as_ref();
    let list = match kind {
        ContainerKind::Init | ContainerKind::Sidecar => status.and_then(|s| s.init_container_statuses.as_ref()),
        ContainerKind::Regular => status.and_then(|s| s.container_statuses.as_ref()),
        ContainerKind::Ephemeral => None,
    };
    let known = list.into_iter().flatten().find(|c| c.name == spec.name);
    let ran = |c: &&k8s_openapi::api::core::v1::ContainerStatus| c.container_id.as_deref().is_some_and(|id| !id.is_empty());
    known.filter(ran).and_then(|c| u32::try_from(c.restart_count + 1).ok()).unwrap_or(0)
}

/// Of each container, the newest and the dead one before it are kept (for `--previous`); the others go, and dead sandboxes too.
fn plan_removals(o: &Observed<'_>, plan: &mut Plan) {
    let mut seen: HashMap<&str, usize> = HashMap::new();
    for container in &o.state.containers {
        let count = seen.entry(&container.name).or_default();
        *count += 1;
        let superseded = *count > 2 && container.state != ContainerState::Running;
        let replaced = container.state == ContainerState::Created && plan.start.iter().any(|s| s.name == container.name);
        if superseded || replaced {
            plan.remove.push(container.id.clone());
        }
    }
    let current = o.state.ready_sandbox().map(|s| s.id.as_str());
    let dead = o.state.sandboxes.iter().skip(usize::from(current.is_none())).filter(|s| Some(s.id.as_str()) != current);
    plan.remove_sandboxes.extend(dead.map(|s| s.id.clone()));
}

#[cfg(test)]
mod tests;
