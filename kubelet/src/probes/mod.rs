//! Probes of running containers: a task for each, from a container's start to its end.

pub mod check;

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container as Spec, ContainerStatus, Pod, Probe};
use skiff_api::clock;
use tokio::sync::{Notify, watch};
use tokio_util::task::AbortOnDropHandle;

use crate::context::Context;
use crate::events::Kind as EventKind;
use crate::plan::{Probed, Probes};
use crate::pod;
use crate::runtime::{ContainerState, PodState};
use check::Finding;

/// The three probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Startup,
    Liveness,
    Readiness,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Liveness => "Liveness",
            Self::Readiness => "Readiness",
        }
    }

    fn of(self, spec: &Spec) -> Option<&Probe> {
        match self {
            Self::Startup => spec.startup_probe.as_ref(),
            Self::Liveness => spec.liveness_probe.as_ref(),
            Self::Readiness => spec.readiness_probe.as_ref(),
        }
    }

    fn slot(self, probed: &mut Probed) -> &mut Option<bool> {
        match self {
            Self::Startup => &mut probed.startup,
            Self::Liveness => &mut probed.liveness,
            Self::Readiness => &mut probed.readiness,
        }
    }
}

/// Turns findings into a verdict: a row of the same ones, as long as the threshold says.
#[derive(Clone, Copy, Debug, Default)]
struct Row {
    last: Option<bool>,
    length: u32,
}

impl Row {
    /// Counts a finding; the verdict, once the row is long enough.
    fn count(&mut self, good: bool, probe: &Probe) -> Option<bool> {
        self.length = if self.last == Some(good) { self.length.saturating_add(1) } else { 1 };
        self.last = Some(good);
        let threshold = if good { probe.success_threshold.unwrap_or(1) } else { probe.failure_threshold.unwrap_or(3) };
        (i64::from(self.length) >= i64::from(threshold.max(1))).then_some(good)
    }
}

/// The probes of a pod's containers.
pub(crate) struct Prober {
    ctx: Arc<Context>,
    bell: Arc<Notify>,
    results: Arc<Mutex<Probes>>,
    /// By container id and probe.
    tasks: HashMap<(String, Kind), AbortOnDropHandle<()>>,
    /// By container id: whether it has started.
    started: HashMap<String, watch::Sender<bool>>,
}

impl Prober {
    pub(crate) fn new(ctx: Arc<Context>, bell: Arc<Notify>) -> Self {
        Self { ctx, bell, results: Arc::default(), tasks: HashMap::new(), started: HashMap::new() }
    }

    /// What is known now.
    pub(crate) fn results(&self) -> Probes {
        self.results.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Probes what runs and no longer what doesn't. Of an ending pod only readiness is still asked.
    pub(crate) fn sync(&mut self, pod: &Arc<Pod>, state: &PodState, ending: bool) {
        let sidecars = pod::init_containers(pod).iter().filter(|c| pod::is_sidecar(c));
        let ip = if pod::host_network(pod) { Some(self.ctx.config.node_ip) } else { state.ready_sandbox().and_then(|s| s.ip) };
        let mut wanted = HashSet::new();
        for spec in sidecars.chain(pod::containers(pod)) {
            let Some(container) = state.container(&spec.name).filter(|c| c.state == ContainerState::Running) else { continue };
            for kind in [Kind::Startup, Kind::Liveness, Kind::Readiness] {
                if kind.of(spec).is_none() || (ending && kind != Kind::Readiness) {
                    continue;
                }
                let key = (container.id.clone(), kind);
                wanted.insert(key.clone());
                if !self.tasks.contains_key(&key) {
                    let task = self.start(pod, spec, &container.id, container.started_at, ip, kind);
                    self.tasks.insert(key, AbortOnDropHandle::new(tokio::spawn(task)));
                }
            }
        }
        self.tasks.retain(|key, _| wanted.contains(key));
        self.started.retain(|id, _| wanted.iter().any(|(other, _)| other == id));
        self.results.lock().unwrap_or_else(PoisonError::into_inner).retain(|id, _| wanted.iter().any(|(other, _)| other == id));
    }

    fn start(
        &mut self,
        pod: &Arc<Pod>,
        spec: &Spec,
        id: &str,
        started_at: Option<Timestamp>,
        ip: Option<IpAddr>,
        kind: Kind,
    ) -> impl Future<Output = ()> + use<> {
        // A container that this kubelet finds running keeps what was found of it before.
        let before = known(pod, &spec.name, id);
        let was_started = before.and_then(|s| s.started).unwrap_or(false);
        let has_started = spec.startup_probe.is_none() || was_started;
        let started = self.started.entry(id.to_owned()).or_insert_with(|| watch::channel(has_started).0).clone();
        if let Some(before) = before {
            let mut results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
            let probed = results.entry(id.to_owned()).or_default();
            match kind {
                Kind::Startup if was_started => probed.startup = Some(true),
                Kind::Readiness if before.ready => probed.readiness = Some(true),
                _ => {}
            }
        }
        let probe = kind.of(spec).cloned().unwrap_or_default();
        let task = Task {
            ctx: self.ctx.clone(),
            bell: self.bell.clone(),
            results: self.results.clone(),
            pod: pod.clone(),
            spec: spec.clone(),
            id: id.to_owned(),
            ip,
            kind,
            probe,
            started,
        };
        task.run(started_at)
    }
}

/// What the API knows of a container, if it is the same one.
fn known<'a>(pod: &'a Pod, name: &str, id: &str) -> Option<&'a ContainerStatus> {
    let status = pod.status.as_ref()?;
    let all = status.init_container_statuses.iter().flatten().chain(status.container_statuses.iter().flatten());
    all.into_iter().find(|c| c.name == name && c.container_id.as_deref().is_some_and(|known| known.ends_with(id)))
}

struct Task {
    ctx: Arc<Context>,
    bell: Arc<Notify>,
    results: Arc<Mutex<Probes>>,
    pod: Arc<Pod>,
    spec: Spec,
    id: String,
    ip: Option<IpAddr>,
    kind: Kind,
    probe: Probe,
    started: watch::Sender<bool>,
}

impl Task {
    async fn run(self, started_at: Option<Timestamp>) {
        if self.kind == Kind::Startup && *self.started.borrow() {
            return;
        }
        let seconds = |n: Option<i32>, default: i32| Duration::from_secs(n.unwrap_or(default).max(0).unsigned_abs().into());
        let first = started_at.unwrap_or_else(clock::now) + seconds(self.probe.initial_delay_seconds, 0);
        tokio::time::sleep(clock::until(first)).await;
        if self.kind != Kind::Startup {
            let mut started = self.started.subscribe();
            if started.wait_for(|started| *started).await.is_err() {
                return;
            }
        }
        let mut ticks = tokio::time::interval(seconds(self.probe.period_seconds, 10).max(Duration::from_secs(1)));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut row = Row::default();
        loop {
            ticks.tick().await;
            let Some(good) = self.look().await else { continue };
            let Some(verdict) = row.count(good, &self.probe) else { continue };
            self.tell(verdict);
            match (self.kind, verdict) {
                (Kind::Startup, true) => {
                    self.started.send_replace(true);
                    return;
                }
                // It is going to be ended; a new one has new probes.
                (Kind::Startup | Kind::Liveness, false) => return,
                _ => {}
            }
        }
    }

    /// Looks once; nothing when nobody can tell.
    async fn look(&self) -> Option<bool> {
        let tell = |reason, message| self.ctx.events.container(&self.pod, &self.spec.name, EventKind::Warning, reason, message);
        let kind = self.kind.as_str();
        match check::check(self.ctx.runtime.as_ref(), &self.probe, &self.spec, &self.id, self.ip).await {
            Finding::Success => Some(true),
            Finding::Warning(why) => {
                tell("ProbeWarning", format!("{kind} probe warning: {why}"));
                Some(true)
            }
            Finding::Failure(why) => {
                tell("Unhealthy", format!("{kind} probe failed: {why}"));
                Some(false)
            }
            Finding::Unknown(why) => {
                tell("Unhealthy", format!("{kind} probe errored and resulted in unknown state: {why}"));
                None
            }
        }
    }

    fn tell(&self, verdict: bool) {
        let mut results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = self.kind.slot(results.entry(self.id.clone()).or_default());
        let changed = *slot != Some(verdict);
        *slot = Some(verdict);
        drop(results);
        if changed {
            self.bell.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_need_a_row() {
        let check = |success: i32, failure: i32, findings: &[bool], expected: &[Option<bool>]| {
            let probe = Probe { success_threshold: Some(success), failure_threshold: Some(failure), ..Probe::default() };
            let mut row = Row::default();
            let verdicts: Vec<_> = findings.iter().map(|good| row.count(*good, &probe)).collect();
            assert_eq!(verdicts, expected);
        };
        check(1, 3, &[true, false, false, false], &[Some(true), None, None, Some(false)]);
        check(2, 1, &[true, true, false, true], &[None, Some(true), Some(false), None]);
        check(1, 3, &[false, false, true, false], &[None, None, Some(true), None]);
    }
}
