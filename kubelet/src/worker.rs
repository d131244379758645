//! One task a pod: looks at the pod's spec and at what the runtime has, decides, acts, tells the API.
//!
//! The task never blocks: acting and writing are futures that it polls beside its sources of news, so that a deletion ends a
//! pull of an image at once, and a status is written while a container starts.

use std::collections::BTreeMap;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use skiff_api::clock;
use tokio::sync::{Notify, watch};
use tokio_util::task::AbortOnDropHandle;

use crate::act::{self, Outcome};
use crate::context::Context;
use crate::events::Kind;
use crate::plan::{self, Backoff, Observed, Probes};
use crate::pod;
use crate::probes::Prober;
use crate::runtime::{PodState, Reality};
use crate::status::{self, Stage, Verdict, Waiting};
use crate::{admission, end, start, volumes};

/// How long a status waits for the act under way, so that a quick start is told once.
const SETTLE: Duration = Duration::from_millis(50);
/// The pause after a failure of the API or the runtime.
const PAUSE: Duration = Duration::from_secs(1);

/// What a worker is told about its pod.
#[derive(Clone, Debug)]
pub(crate) struct Update {
    /// The pod as the API has it, or had it last.
    pub(crate) pod: Arc<Pod>,
    /// The API has it no more.
    pub(crate) gone: bool,
}

/// How far a pod's life is.
#[derive(Debug, PartialEq, Eq)]
enum Life {
    /// The pod runs as its spec says. Left when it is deleted, finished, or judged.
    Running,
    /// Its containers are being ended, with so many seconds to do so. Left when none runs.
    Ending { grace: i64 },
    /// Nothing runs; volumes and sandbox are being removed. Left when they are.
    Ended,
    /// Nothing is left but dead containers, kept for their logs. Left when the API has the pod no more.
    Over,
    /// Those are being removed. Left when they are, with the worker.
    Leaving,
    /// There is nothing left of the pod.
    Left,
}

type Job = BoxFuture<'static, Outcome>;
type Write = BoxFuture<'static, Result<Written, kube::Error>>;

/// What came of a write.
enum Written {
    /// The pod as the API has it now.
    Status(Box<Pod>),
    /// Its deletion was asked for.
    Deleted,
    /// The API has it no more, or another one of its name.
    Gone,
}

/// The task of one pod.
pub(crate) struct Worker {
    ctx: Arc<Context>,
    inbox: watch::Receiver<Update>,
    /// Rings when the runtime or a probe has news.
    bell: Arc<Notify>,
    /// Rings when an object that the pod names changed.
    named: Arc<Notify>,
    /// Rings for who keeps the volumes up to date, and that is its task.
    volumes_bell: Arc<Notify>,
    volumes: Option<AbortOnDropHandle<()>>,
    prober: Prober,
    /// The pod as the API has it, with the status written last.
    pod: Arc<Pod>,
    gone: bool,
    state: PodState,
    life: Life,
    verdict: Option<Verdict>,
    /// The verdict fell before anything was made.
    rejected: bool,
    probes: Probes,
    backoffs: BTreeMap<String, Backoff>,
    waiting: BTreeMap<String, Waiting>,
    held: BTreeMap<String, Timestamp>,
    sandbox_held: Option<Timestamp>,
    /// What is being done.
    job: Option<Job>,
    /// It runs hooks of containers that count as started only after them: until then the status stays as it is.
    hooking: bool,
    /// What is being written.
    write: Option<Write>,
    /// The status that is being written.
    writing: Option<PodStatus>,
    /// The status that the API should have.
    wanted: Option<PodStatus>,
    /// What the API left out of the last write: it isn't asked for again and again.
    left_out: Option<serde_json::Value>,
    /// As long as something is being done, nothing is written before that time.
    settled_at: Option<Timestamp>,
    /// After a failure, nothing is written before that time.
    write_held: Option<Timestamp>,
    /// The deletion of the API's object was asked for.
    deleted: bool,
    wake_at: Option<Timestamp>,
}

impl Worker {
    pub(crate) fn new(ctx: Arc<Context>, inbox: watch::Receiver<Update>, bell: Arc<Notify>) -> Self {
        let Update { pod, gone } = inbox.borrow().clone();
        Self {
            prober: Prober::new(ctx.clone(), bell.clone()),
            ctx,
            inbox,
            bell,
            named: Arc::default(),
            volumes_bell: Arc::default(),
            volumes: None,
            pod,
            gone,
            state: PodState::default(),
            life: Life::Running,
            verdict: None,
            rejected: false,
            probes: Probes::new(),
            backoffs: BTreeMap::new(),
            waiting: BTreeMap::new(),
            held: BTreeMap::new(),
            sandbox_held: None,
            job: None,
            hooking: false,
            write: None,
            writing: None,
            wanted: None,
            left_out: None,
            settled_at: None,
            write_held: None,
            deleted: false,
            wake_at: None,
        }
    }

    /// Runs until there is nothing left of the pod.
    pub(crate) async fn run(mut self) {
        self.begin().await;
        let mut news = true;
        loop {
            if news {
                self.turn().await;
                if self.life == Life::Left {
                    return;
                }
            }
            // Asked once: were it held at one look and free at the next, nothing would wake us to write.
            let held = self.write_hold();
            if held.is_none() {
                self.start_writing();
            }
            let next = [self.wake_at, held].into_iter().flatten().min();
            news = tokio::select! {
                changed = self.inbox.changed() => {
                    if changed.is_err() {
                        // The kubelet ends; its pods live on.
                        return;
                    }
                    self.take_update()
                }
                () = self.bell.notified() => true,
                () = self.named.notified() => {
                    // What failed for want of it may do now.
                    self.held.clear();
                    self.sandbox_held = None;
                    self.volumes_bell.notify_one();
                    true
                }
                outcome = poll(&mut self.job) => {
                    self.job = None;
                    self.take_outcome(outcome);
                    true
                }
                written = poll(&mut self.write) => {
                    self.write = None;
                    self.take_written(written)
                }
                () = sleep_until(next) => true,
            };
        }
    }

    /// Looks for the first time: what of the pod is there already, and may it run at all?
    async fn begin(&mut self) {
        if self.ctx.runtime.reality() == Reality::Real {
            self.ctx.objects.register(&self.pod, &self.named);
        }
        let final_phase = pod::is_final(pod::phase(&self.pod));
        if final_phase {
            self.life = Life::Ending { grace: pod::grace_seconds(&self.pod) };
            return;
        }
        match self.ctx.runtime.pod_state(pod::uid(&self.pod)).await {
            Ok(state) => self.state = state,
            Err(error) => tracing::warn!(pod = pod::shown(&self.pod), %error, "reading the pod's containers failed"),
        }
        let fresh = self.state.containers.is_empty() && self.state.sandboxes.is_empty();
        if !fresh {
            admission::adopt(&self.ctx, &self.pod);
        } else if self.pod.metadata.deletion_timestamp.is_none()
            && let Some(verdict) = admission::admit(&self.ctx, &self.pod).await
        {
            // The words are the event's; what they are about is the status's.
            self.ctx.events.pod(&self.pod, Kind::Warning, verdict.reason.clone(), verdict.message.clone());
            self.rejected = true;
            self.verdict = Some(Verdict { message: format!("Pod was rejected: {}", verdict.message), ..verdict });
        }
    }

    fn take_update(&mut self) -> bool {
        let Update { pod, gone } = self.inbox.borrow_and_update().clone();
        self.gone |= gone;
        // The answer to a write is often newer than what the watch brings.
        if version(&pod) >= version(&self.pod) {
            if pod.metadata.annotations != self.pod.metadata.annotations {
                self.ctx.runtime.annotations_changed(pod::uid(&pod), &pod.metadata.annotations.clone().unwrap_or_default());
            }
            let same = pod.metadata.resource_version == self.pod.metadata.resource_version;
            self.pod = pod;
            return gone || !same;
        }
        gone
    }

    fn take_outcome(&mut self, outcome: Outcome) {
        for (name, backoff) in outcome.started {
            self.waiting.remove(&name);
            self.held.remove(&name);
            match backoff {
                Some(backoff) => self.backoffs.insert(name, backoff),
                None => self.backoffs.remove(&name),
            };
        }
        for (name, why, retry_at) in outcome.failed {
            self.waiting.insert(name.clone(), why);
            self.held.insert(name, retry_at);
        }
        self.held.extend(outcome.held);
        self.sandbox_held = outcome.held_until;
    }

    /// Observes, decides, and starts what is to be done.
    async fn turn(&mut self) {
        self.wake_at = None;
        match self.ctx.runtime.pod_state(pod::uid(&self.pod)).await {
            Ok(state) => self.state = state,
            Err(error) => {
                tracing::warn!(pod = pod::shown(&self.pod), %error, "reading the pod's containers failed");
                self.wake_at = Some(clock::now() + PAUSE);
                return;
            }
        }
        if self.life == Life::Running {
            self.turn_running();
        } else if self.state.any_running() && !matches!(self.life, Life::Ending { .. }) {
            // A start that was under way when the end came.
            self.life = Life::Ending { grace: pod::grace_seconds(&self.pod) };
        }
        if let Life::Ending { grace } = self.life {
            self.turn_ending(grace);
        }
        if self.life == Life::Ended {
            self.turn_ended();
        }
        if self.life == Life::Over && self.gone && self.job.is_none() {
            self.life = Life::Leaving;
        }
        if self.life == Life::Leaving && self.job.is_none() {
            self.turn_leaving();
        }
    }

    fn observed<'a>(&'a self, now: Timestamp) -> Observed<'a> {
        Observed {
            pod: &self.pod,
            state: &self.state,
            probes: &self.probes,
            backoffs: &self.backoffs,
            held: &self.held,
            sandbox_held: self.sandbox_held,
            now,
        }
    }

    /// Probes what runs, and keeps volumes up to date as long as something does.
    fn tend(&mut self) {
        if self.ctx.runtime.reality() == Reality::Simulated {
            return;
        }
        self.prober.sync(&self.pod, &self.state, self.life != Life::Running);
        self.probes = self.prober.results();
        match self.state.ready_sandbox() {
            Some(sandbox) if self.volumes.is_none() => {
                let ip = sandbox.ip.map(|ip| ip.to_string()).unwrap_or_default();
                let keep = volumes::keep(self.ctx.clone(), self.inbox.clone(), self.volumes_bell.clone(), ip);
                self.volumes = Some(AbortOnDropHandle::new(tokio::spawn(keep)));
            }
            Some(_) => {}
            None => self.volumes = None,
        }
    }

    fn turn_running(&mut self) {
        let now = clock::now();
        let deleted = self.gone || self.pod.metadata.deletion_timestamp.is_some();
        let started = self.pod.status.as_ref().and_then(|s| s.start_time.as_ref()).map(|t| t.0);
        if !deleted && self.verdict.is_none() && pod::deadline(&self.pod, started).is_some_and(|deadline| deadline <= now) {
            let message = "Pod was active on the node longer than the specified deadline".to_owned();
            self.ctx.events.pod(&self.pod, Kind::Normal, "DeadlineExceeded", message.clone());
            self.verdict = Some(Verdict { reason: "DeadlineExceeded".into(), message });
        }
        if deleted || self.verdict.is_some() {
            self.job = None;
            self.life = Life::Ending { grace: pod::grace_seconds(&self.pod) };
            return;
        }
        if self.hooking && self.job.is_some() {
            return;
        }
        self.tend();
        let plan = plan::plan(&self.observed(now));
        self.wake_at = plan.wake_at;
        for wait in &plan.waiting {
            let delay = shown_delay(wait.delay);
            let shown = pod::shown(&self.pod);
            let why = Waiting::new("CrashLoopBackOff", format!("back-off {delay} restarting failed container={} pod={shown}", wait.name));
            if self.waiting.get(&wait.name) != Some(&why) {
                let message = format!("Back-off restarting failed container {} in pod {shown}", wait.name);
                self.ctx.events.container(&self.pod, &wait.name, Kind::Warning, "BackOff", message);
                self.waiting.insert(wait.name.clone(), why);
            }
        }
        self.settle_status(Stage::Live, now);
        if plan.finished && self.job.is_none() {
            self.life = Life::Ending { grace: pod::grace_seconds(&self.pod) };
        } else if !plan.finished && !plan.is_idle() && self.job.is_none() {
            if self.settled_at.is_none_or(|at| at < now) {
                self.settled_at = Some(now + SETTLE);
            }
            let hooked = |step: &plan::Start| pod::container(&self.pod, &step.name).is_some_and(|(_, c)| c.lifecycle.is_some_and(|l| l.post_start.is_some()));
            self.hooking = plan.start.iter().any(hooked);
            self.job = Some(act::act(self.ctx.clone(), self.pod.clone(), self.state.clone(), plan).boxed());
        }
    }

    fn turn_ending(&mut self, grace: i64) {
        let now = clock::now();
        self.tend();
        // A later deletion may leave less time.
        let wanted = if self.gone { grace.min(1) } else { grace.min(pod::grace_seconds(&self.pod)) };
        if wanted < grace {
            self.job = None;
        }
        self.life = Life::Ending { grace: wanted };
        if self.job.is_some() || self.sandbox_held.is_some_and(|at| at > now) {
            self.wake_at = self.sandbox_held.filter(|at| *at > now);
            self.settle_status(Stage::Live, now);
            return;
        }
        if self.state.any_running() || self.state.ready_sandbox().is_some() {
            self.settle_status(Stage::Live, now);
            let (ctx, pod, state) = (self.ctx.clone(), self.pod.clone(), self.state.clone());
            self.job = Some(
                async move {
                    end::end_pod(&ctx, &pod, &state, wanted, "").await;
                    let left = ctx.runtime.pod_state(pod::uid(&pod)).await;
                    let running = left.is_ok_and(|s| s.any_running() || s.ready_sandbox().is_some());
                    Outcome { held_until: running.then(|| clock::now() + PAUSE), ..Outcome::default() }
                }
                .boxed(),
            );
            return;
        }
        self.life = Life::Ended;
    }

    fn turn_ended(&mut self) {
        let now = clock::now();
        if self.job.is_some() {
            return;
        }
        if self.sandbox_held.is_some_and(|at| at > now) {
            self.wake_at = self.sandbox_held;
            return;
        }
        let (ctx, pod, state) = (self.ctx.clone(), self.pod.clone(), self.state.clone());
        if state.sandboxes.is_empty() && !start::has_files(&ctx, &pod) {
            self.settle_status(Stage::Ended, now);
            self.ctx.release_address(pod::uid(&self.pod));
            self.ctx.admission().release(pod::uid(&self.pod));
            self.ctx.images.forget(pod::uid(&self.pod));
            self.ctx.tokens.forget(pod::uid(&self.pod));
            self.ctx.objects.unregister(pod::uid(&self.pod));
            self.life = Life::Over;
            return;
        }
        self.settle_status(Stage::Ended, now);
        self.volumes = None;
        self.job = Some(
            async move {
                let mut failed = false;
                for sandbox in &state.sandboxes {
                    if let Err(error) = ctx.runtime.remove_sandbox(&sandbox.id).await {
                        tracing::warn!(pod = pod::shown(&pod), sandbox = sandbox.id, %error, "removing a sandbox failed");
                        failed = true;
                    }
                }
                // An empty directory can be full.
                let (ctx, of) = (ctx.clone(), pod.clone());
                let removed = tokio::task::spawn_blocking(move || start::remove_files(&ctx, &of)).await;
                if let Err(error) = removed.map_err(std::io::Error::other).and_then(|r| r) {
                    tracing::warn!(pod = pod::shown(&pod), %error, "removing the pod's files failed");
                    failed = true;
                }
                Outcome { held_until: failed.then(|| clock::now() + PAUSE), ..Outcome::default() }
            }
            .boxed(),
        );
    }

    fn turn_leaving(&mut self) {
        let now = clock::now();
        if self.state.containers.is_empty() && self.state.sandboxes.is_empty() {
            self.life = Life::Left;
            return;
        }
        if self.sandbox_held.is_some_and(|at| at > now) {
            self.wake_at = self.sandbox_held;
            return;
        }
        let (ctx, pod, state) = (self.ctx.clone(), self.pod.clone(), self.state.clone());
        self.job = Some(
            async move {
                let mut failed = false;
                for container in &state.containers {
                    if let Err(error) = ctx.runtime.remove_container(&container.id).await {
                        tracing::warn!(pod = pod::shown(&pod), container = container.name, %error, "removing a dead container failed");
                        failed = true;
                    }
                }
                Outcome { held_until: failed.then(|| clock::now() + PAUSE), ..Outcome::default() }
            }
            .boxed(),
        );
    }

    /// Computes the status that the API should have.
    fn settle_status(&mut self, stage: Stage, now: Timestamp) {
        let none = PodStatus::default();
        let runtime = self.ctx.runtime.version().name;
        if let Some(verdict) = self.verdict.as_ref().filter(|_| self.rejected) {
            self.wanted = Some(status::rejected(&self.pod, verdict));
            return;
        }
        self.wanted = Some(status::pod_status(&status::Input {
            pod: &self.pod,
            old: self.pod.status.as_ref().unwrap_or(&none),
            state: &self.state,
            runtime,
            waiting: &self.waiting,
            probes: &self.probes,
            host_ip: self.ctx.config.node_ip,
            stage,
            verdict: self.verdict.as_ref(),
            now,
        }));
    }

    /// The patch that is still to be written.
    fn unwritten(&self) -> Option<serde_json::Value> {
        let none = PodStatus::default();
        let wanted = self.wanted.as_ref().filter(|_| !self.gone)?;
        let patch = status::patch(pod::uid(&self.pod), self.pod.status.as_ref().unwrap_or(&none), wanted);
        patch.filter(|patch| Some(patch) != self.left_out.as_ref())
    }

    /// Until when nothing is to be written.
    fn write_hold(&self) -> Option<Timestamp> {
        let settling = self.settled_at.filter(|_| self.job.is_some());
        settling.max(self.write_held).filter(|at| *at > clock::now())
    }

    /// Writes the status if it changed; when all is written and over, deletes the API's object if that was asked for.
    fn start_writing(&mut self) {
        if self.write.is_some() || self.gone {
            return;
        }
        let pods: Api<Pod> = Api::namespaced(self.ctx.client.clone(), pod::namespace(&self.pod));
        let name = pod::name(&self.pod).to_owned();
        if let Some(patch) = self.unwritten() {
            self.writing = self.wanted.clone();
            let uid = self.pod.metadata.uid.clone();
            self.write = Some(
                async move {
                    match pods.patch_status(&name, &PatchParams::default(), &Patch::Strategic(patch)).await {
                        Ok(pod) => Ok(Written::Status(Box::new(pod))),
                        Err(error) => gone_or(error, &pods, &name, uid).await,
                    }
                }
                .boxed(),
            );
        } else if self.life == Life::Over && self.pod.metadata.deletion_timestamp.is_some() && !self.deleted {
            let uid = self.pod.metadata.uid.clone();
            let params = DeleteParams {
                grace_period_seconds: Some(0),
                preconditions: Some(Preconditions { uid: uid.clone(), resource_version: None }),
                ..DeleteParams::default()
            };
            self.deleted = true;
            self.write = Some(
                async move {
                    match pods.delete(&name, &params).await {
                        Ok(_) => Ok(Written::Deleted),
                        Err(error) => gone_or(error, &pods, &name, uid).await,
                    }
                }
                .boxed(),
            );
        }
    }

    fn take_written(&mut self, written: Result<Written, kube::Error>) -> bool {
        match written {
            Ok(Written::Status(mut pod)) => {
                let outdated = self.writing != self.wanted;
                let begins = self.pod.status.as_ref().is_none_or(|s| s.start_time.is_none());
                pod.metadata.managed_fields = None;
                if version(&pod) >= version(&self.pod) {
                    self.pod = Arc::new(*pod);
                }
                let none = PodStatus::default();
                let kept = self.pod.status.as_ref().unwrap_or(&none);
                self.left_out = self.writing.take().and_then(|wanted| status::patch(pod::uid(&self.pod), kept, &wanted));
                if let Some(patch) = &self.left_out {
                    tracing::debug!(pod = pod::shown(&self.pod), %patch, "the API took only a part of the pod's status");
                }
                // A deadline counts from the start time that was written now; and a status that was computed meanwhile took its
                // times from the one before.
                begins || outdated
            }
            Ok(Written::Deleted) => false,
            Ok(Written::Gone) => !std::mem::replace(&mut self.gone, true),
            Err(error) => {
                tracing::warn!(pod = pod::shown(&self.pod), %error, "writing the pod's status failed");
                self.deleted = false;
                self.write_held = Some(clock::now() + PAUSE);
                false
            }
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.ctx.objects.unregister(pod::uid(&self.pod));
    }
}

/// What a refusal means: that the pod is gone, if asking says so too; else it is what it is.
async fn gone_or(error: kube::Error, pods: &Api<Pod>, name: &str, uid: Option<String>) -> Result<Written, kube::Error> {
    if matches!(&error, kube::Error::Api(status) if matches!(status.code, 404 | 409)) {
        let found = pods.get_opt(name).await?;
        if found.is_none_or(|pod| pod.metadata.uid != uid) {
            return Ok(Written::Gone);
        }
    }
    Err(error)
}

/// The revision that an object has; revisions of one resource can be compared since Kubernetes 1.35.
fn version(pod: &Pod) -> u128 {
    pod.metadata.resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or(0)
}

/// A delay as upstream prints it: `10s`, `1m20s`, `5m0s`.
fn shown_delay(delay: Duration) -> String {
    let seconds = delay.as_secs();
    if seconds < 60 { format!("{seconds}s") } else { format!("{}m{}s", seconds / 60, seconds % 60) }
}

/// Waits for the future, or for ever when there is none.
async fn poll<T>(future: &mut Option<BoxFuture<'static, T>>) -> T {
    match future {
        Some(future) => future.await,
        None => pending().await,
    }
}

async fn sleep_until(at: Option<Timestamp>) {
    match at {
        Some(at) => tokio::time::sleep(clock::until(at)).await,
        None => pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_are_printed_as_upstream_does() {
        let check = |seconds, expected| assert_eq!(shown_delay(Duration::from_secs(seconds)), expected);
        check(10, "10s");
        check(80, "1m20s");
        check(300, "5m0s");
    }
}
