//! Ends containers in good order: hooks, signals, sidecars after those they serve.

use std::net::IpAddr;
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared, join_all};
use k8s_openapi::api::core::v1::{Container, LifecycleHandler, Pod};
use tokio::time::Instant;

use crate::context::Context;
use crate::events::Kind;
use crate::pod;
use crate::probes::check::{self, Asker, Finding};
use crate::runtime::{self, ContainerKind, ContainerState, PodState, Reality};

/// A container gets so many seconds at least, even if its hook used up the time.
const LEAST_GRACE: Duration = Duration::from_secs(2);
/// How long a hook by HTTP may take beyond a container's grace period.
const HTTP_HOOK: Duration = Duration::from_secs(3600);

/// Ends one container within the grace period, and says why. An empty message is upstream's usual one.
pub(crate) async fn end_container(ctx: &Context, pod: &Pod, id: &str, name: &str, grace: i64, message: &str) -> runtime::Result<()> {
    end_in_turn(ctx, pod, id, name, grace, message, futures::future::ready(())).await
}

async fn end_in_turn(
    ctx: &Context,
    pod: &Pod,
    id: &str,
    name: &str,
    grace: i64,
    message: &str,
    turn: impl Future<Output = ()>,
) -> runtime::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(grace.max(0).unsigned_abs());
    let message = if message.is_empty() { format!("Stopping container {name}") } else { message.to_owned() };
    ctx.events.container(pod, name, Kind::Normal, "Killing", message);
    let spec = pod::container(pod, name).map(|(_, spec)| spec);
    let hook = spec.as_ref().and_then(|s| Some((s, s.lifecycle.as_ref()?.pre_stop.as_ref()?)));
    if let Some((spec, hook)) = hook.filter(|_| grace > 0 && ctx.runtime.reality() == Reality::Real) {
        let ip = ctx.runtime.pod_state(pod::uid(pod)).await.ok().and_then(|s| s.ready_sandbox()?.ip);
        let run = run_hook(ctx, pod, spec, id, ip, hook);
        // A hook that takes too long is left behind.
        if let Ok(Err(error)) = tokio::time::timeout_at(deadline, run).await {
            tracing::info!(pod = pod::shown(pod), container = name, error, "a preStop hook failed");
            ctx.events.container(pod, name, Kind::Warning, "FailedPreStopHook", "PreStopHook failed".into());
        }
    }
    if grace > 0 {
        // Whoever should end first has until the deadline to do so.
        let _ = tokio::time::timeout_at(deadline, turn).await;
    }
    let left = deadline.saturating_duration_since(Instant::now()).max(LEAST_GRACE);
    match ctx.runtime.stop_container(id, left).await {
        Err(runtime::Error::NotFound(_)) => Ok(()),
        other => other,
    }
}

/// Ends all that runs of a pod, containers and sandboxes. Sidecars end after the containers, the last one first.
///
/// Failures are logged: who called looks again at what still runs.
pub(crate) async fn end_pod(ctx: &Context, pod: &Pod, state: &PodState, grace: i64, message: &str) {
    let rank = |name: &str| match pod::container(pod, name) {
        Some((ContainerKind::Sidecar, _)) => pod::init_containers(pod).iter().position(|c| c.name == name).map_or(0, |i| i + 1),
        _ => usize::MAX,
    };
    let mut running: Vec<_> = state.containers.iter().filter(|c| c.state == ContainerState::Running).collect();
    running.sort_by_key(|c| std::cmp::Reverse(rank(&c.name)));
    let mut earlier: Vec<(usize, Shared<BoxFuture<'_, ()>>)> = Vec::new();
    for container in running {
        let rank = rank(&container.name);
        let before: Vec<_> = earlier.iter().filter(|(other, _)| *other > rank).map(|(_, ended)| ended.clone()).collect();
        let end = async move {
            let turn = join_all(before).map(|_| ());
            if let Err(error) = end_in_turn(ctx, pod, &container.id, &container.name, grace, message, turn).await {
                tracing::warn!(pod = pod::shown(pod), container = container.name, %error, "ending a container failed");
                ctx.events.pod(pod, Kind::Warning, "FailedKillPod", format!("error killing pod: {error}"));
            }
        };
        earlier.push((rank, end.boxed().shared()));
    }
    join_all(earlier.into_iter().map(|(_, ended)| ended)).await;
    for sandbox in state.sandboxes.iter().filter(|s| s.state == runtime::SandboxState::Ready) {
        if let Err(error) = ctx.runtime.stop_sandbox(&sandbox.id).await {
            tracing::warn!(pod = pod::shown(pod), sandbox = sandbox.id, %error, "ending a sandbox failed");
        }
    }
}

/// Runs a lifecycle hook; the error is the sentence for the container's status.
pub(crate) async fn run_hook(
    ctx: &Context,
    pod: &Pod,
    container: &Container,
    id: &str,
    ip: Option<IpAddr>,
    hook: &LifecycleHandler,
) -> Result<(), String> {
    let shown = pod::shown(pod);
    let failed = |what: String, why: String| Err(format!("{what} for Container {:?} in Pod {shown:?} failed - error: {why}", container.name));
    if let Some(exec) = &hook.exec {
        let command = exec.command.as_deref().unwrap_or_default();
        let what = format!("Exec lifecycle hook ([{}])", command.join(" "));
        return match check::run(ctx.runtime.as_ref(), id, command, None).await {
            Ok((_, 0)) => Ok(()),
            Ok((said, code)) => {
                let said = String::from_utf8_lossy(&said).into_owned();
                failed(what, format!("command '{}' exited with {code}: {said}, message: {said:?}", command.join(" ")))
            }
            Err(error) => failed(what, format!("{error}, message: \"\"")),
        };
    }
    if let Some(get) = &hook.http_get {
        let ip = if pod::host_network(pod) { Some(ctx.config.node_ip) } else { ip };
        let what = format!("HTTP lifecycle hook ({})", get.path.as_deref().unwrap_or_default());
        let ip = ip.map(|ip| ip.to_string()).unwrap_or_default();
        return match check::http_get(get, container, &ip, Asker::Lifecycle, HTTP_HOOK).await {
            // Whatever was answered: the hook was called.
            Ok(Finding::Failure(why)) if !why.starts_with("HTTP probe failed") => failed(what, why),
            Ok(_) => Ok(()),
            Err(why) => failed(what, why),
        };
    }
    if let Some(sleep) = &hook.sleep {
        tokio::time::sleep(Duration::from_secs(sleep.seconds.max(0).unsigned_abs())).await;
        return Ok(());
    }
    Err(format!("Cannot run handler: invalid handler: {hook:?}"))
}

/// Ends and removes all that the runtime has of a pod that nobody knows any more.
pub(crate) async fn remove_stranger(ctx: &Context, stranger: &runtime::PodRef) -> runtime::Result<()> {
    let state = ctx.runtime.pod_state(&stranger.uid).await?;
    let running = state.containers.iter().filter(|c| c.state == ContainerState::Running);
    let ended = join_all(running.map(|c| ctx.runtime.stop_container(&c.id, LEAST_GRACE))).await;
    ended.into_iter().collect::<runtime::Result<()>>()?;
    for container in &state.containers {
        ctx.runtime.remove_container(&container.id).await?;
    }
    for sandbox in &state.sandboxes {
        ctx.runtime.stop_sandbox(&sandbox.id).await?;
        ctx.runtime.remove_sandbox(&sandbox.id).await?;
    }
    Ok(())
}
