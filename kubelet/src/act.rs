//! Carries a plan out. The only judgement here is what an error means.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod};
use skiff_api::{clock, random};

use crate::context::Context;
use crate::events::Kind;
use crate::plan::{Backoff, Plan, Start};
use crate::runtime::{ContainerKind, PodState, Reality, SandboxConfig};
use crate::status::Waiting;
use crate::{end, images, pod, start, volumes};

/// How long after a failure the same is tried again, give or take a half.
const RETRY: Duration = Duration::from_secs(10);

/// What came of a plan.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Containers that run now, with the wait after their next end.
    pub(crate) started: Vec<(String, Option<Backoff>)>,
    /// Containers that don't, why, and when to try again.
    pub(crate) failed: Vec<(String, Waiting, Timestamp)>,
    /// Containers that run on as they were, by name, and when to try again.
    pub(crate) held: Vec<(String, Timestamp)>,
    /// The sandbox (or what it needs) failed; when to try again.
    pub(crate) held_until: Option<Timestamp>,
}

impl Outcome {
    fn hold(&mut self) {
        self.held_until = Some(retry_at());
    }
}

/// When to try again what failed now.
pub(crate) fn retry_at() -> Timestamp {
    clock::now() + RETRY.mul_f64(1.0 + random::fraction() / 2.0)
}

/// Carries the plan out, step by step, until something fails.
pub(crate) async fn act(ctx: Arc<Context>, pod: Arc<Pod>, state: PodState, plan: Plan) -> Outcome {
    let mut outcome = Outcome::default();
    if plan.reset {
        end::end_pod(&ctx, &pod, &state, pod::grace_seconds(&pod), "").await;
        return outcome;
    }
    for kill in &plan.kill {
        let grace = kill.grace_seconds.unwrap_or(pod::grace_seconds(&pod));
        if let Err(error) = end::end_container(&ctx, &pod, &kill.id, &kill.name, grace, &kill.message).await {
            tracing::warn!(pod = pod::shown(&pod), container = kill.name, %error, "ending a container failed");
            outcome.hold();
            return outcome;
        }
    }
    for resize in &plan.resize {
        if let Err(error) = ctx.runtime.update_container(&resize.id, &resize.resources).await {
            ctx.events.container(&pod, &resize.name, Kind::Warning, "ResizeError", format!("Error resizing container {}: {error}", resize.name));
            outcome.held.push((resize.name.clone(), retry_at()));
        }
    }
    for id in &plan.remove {
        if let Err(error) = ctx.runtime.remove_container(id).await {
            tracing::warn!(pod = pod::shown(&pod), container = id, %error, "removing a dead container failed");
        }
    }
    for id in &plan.remove_sandboxes {
        if let Err(error) = ctx.runtime.remove_sandbox(id).await {
            tracing::warn!(pod = pod::shown(&pod), sandbox = id, %error, "removing a dead sandbox failed");
        }
    }
    if let Some(attempt) = plan.sandbox {
        if ctx.runtime.reality() == Reality::Real
            && let Err(error) = volumes::set_up(&ctx, &pod, "").await
        {
            ctx.events.pod(&pod, Kind::Warning, "FailedMount", error.to_string());
            outcome.hold();
            return outcome;
        }
        if let Err(message) = make_sandbox(&ctx, &pod, attempt).await {
            ctx.events.pod(&pod, Kind::Warning, "FailedCreatePodSandBox", format!("Failed to create pod sandbox: {message}"));
            outcome.hold();
        }
        return outcome;
    }
    for step in &plan.start {
        match start_container(&ctx, &pod, &state, step).await {
            Ok(()) => outcome.started.push((step.name.clone(), step.backoff.clone())),
            Err(failure) => {
                outcome.failed.push((step.name.clone(), failure.waiting, failure.retry_at));
                // Those after it wait for an init container.
                if step.kind == ContainerKind::Init {
                    break;
                }
            }
        }
    }
    outcome
}

async fn make_sandbox(ctx: &Context, pod: &Pod, attempt: u32) -> Result<(), String> {
    if attempt > 0 {
        ctx.events.pod(pod, Kind::Normal, "SandboxChanged", "Pod sandbox changed, it will be killed and re-created.".into());
    }
    let host_network = pod::host_network(pod);
    let ip = match (host_network, ctx.take_address(pod::uid(pod))) {
        (true, _) => None,
        (false, Some(address)) => Some(address.map_err(|e| e.to_string())?),
        (false, None) => return Err("the node has no range of pod addresses yet".into()),
    };
    let config: SandboxConfig = start::sandbox_config(ctx, pod, attempt, ip);
    ctx.runtime.run_sandbox(&config).await.map(|_| ()).map_err(|error| {
        // Another one next time: this one may be somebody else's.
        ctx.release_address(pod::uid(pod));
        error.to_string()
    })
}

/// Why a container doesn't run.
pub(crate) struct Failure {
    pub(crate) waiting: Waiting,
    pub(crate) retry_at: Timestamp,
}

impl From<images::NoImage> for Failure {
    fn from(no: images::NoImage) -> Self {
        Self { waiting: no.waiting, retry_at: no.retry_at }
    }
}

async fn start_container(ctx: &Context, pod: &Pod, state: &PodState, step: &Start) -> Result<(), Failure> {
    let failed = |reason: &str, message: String| Failure { waiting: Waiting::new(reason, message), retry_at: retry_at() };
    let Some((spec, target)) = find(pod, step) else {
        return Err(failed("CreateContainerConfigError", format!("container {} is not in the pod's spec any more", step.name)));
    };
    let Some(sandbox) = state.ready_sandbox() else {
        return Err(failed("CreateContainerError", "the pod has no sandbox".into()));
    };
    let tell = |kind, reason, message: String| ctx.events.container(pod, &spec.name, kind, reason, message);
    let image = match images::ensure(ctx, pod, &spec).await {
        Ok(image) => image,
        Err(no) => {
            tell(Kind::Warning, "Failed", format!("Error: {}", no.waiting.reason));
            return Err(no.into());
        }
    };
    let target = match target {
        None => None,
        Some(name) => match state.container(&name) {
            Some(container) => Some(container.id.clone()),
            None => {
                let message = format!("unable to find target container {name}");
                tell(Kind::Warning, "Failed", format!("Error: {message}"));
                return Err(failed("CreateContainerConfigError", message));
            }
        },
    };
    let config = match start::container_config(ctx, pod, sandbox, &spec, step, &image, target).await {
        Ok(config) => config,
        Err(error) => {
            tell(Kind::Warning, "Failed", format!("Error: {error}"));
            return Err(failed("CreateContainerConfigError", error.to_string()));
        }
    };
    let id = match ctx.runtime.create_container(&sandbox.id, &config).await {
        Ok(id) => id,
        Err(error) => {
            tell(Kind::Warning, "Failed", format!("Error: {error}"));
            return Err(failed("CreateContainerError", error.to_string()));
        }
    };
    tell(Kind::Normal, "Created", "Container created".into());
    if let Err(error) = ctx.runtime.start_container(&id).await {
        // The id would make each failure an event of its own.
        let message = error.to_string().replace(&id, &spec.name);
        tell(Kind::Warning, "Failed", format!("Error: {message}"));
        return Err(failed("RunContainerError", error.to_string()));
    }
    tell(Kind::Normal, "Started", "Container started".into());
    let hook = spec.lifecycle.as_ref().and_then(|l| l.post_start.as_ref());
    if let Some(hook) = hook.filter(|_| ctx.runtime.reality() == Reality::Real)
        && let Err(error) = end::run_hook(ctx, pod, &spec, &id, sandbox.ip, hook).await
    {
        // Nothing of the message goes into the event: it may hold secrets.
        tell(Kind::Warning, "FailedPostStartHook", "PostStartHook failed".into());
        let ended = end::end_container(ctx, pod, &id, &spec.name, pod::grace_seconds(pod), "FailedPostStartHook").await;
        if let Err(error) = ended {
            tracing::warn!(pod = pod::shown(pod), container = spec.name, %error, "ending a container after its failed hook failed");
        }
        return Err(Failure { waiting: Waiting::new("PostStartHookError", error), retry_at: clock::now() });
    }
    Ok(())
}

/// The spec of the container to start, and the container that it debugs.
fn find(pod: &Pod, step: &Start) -> Option<(Container, Option<String>)> {
    match step.kind {
        ContainerKind::Ephemeral => pod::ephemeral_containers(pod).into_iter().find(|(c, _)| c.name == step.name),
        _ => pod::container(pod, &step.name).map(|(_, c)| (c, None)),
    }
}
