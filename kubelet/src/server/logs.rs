//! `GET /containerLogs/{namespace}/{pod}/{container}`

use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use skiff_api::clock;

use super::{Query, Refusal, Shared, find};
use crate::pod;
use crate::runtime::{self, Container, ContainerState, LogOptions, PodState};

/// Answers with a container's log.
pub(super) async fn logs(State(ctx): Shared, Path((namespace, name, container)): Path<(String, String, String)>, request: Request) -> Result<Response, Refusal> {
    let query = Query::of(&request);
    let options = options(&query)?;
    let limit = query.number::<u64>("limitBytes")?;
    let (pod, state) = find(&ctx, &namespace, &name).await?;
    if pod::container(&pod, &container).is_none() {
        return Err(Refusal::not_found(format!("container {container:?} not found in pod {name:?}")));
    }
    let of = choose(&pod, &state, &container, query.on(&["previous"]))?;
    let log = ctx.runtime.logs(&of.id, &options).await.map_err(Refusal::internal)?;
    let log = match limit {
        Some(limit) => cut(log, limit),
        None => log,
    };
    let body = Body::from_stream(log.map_err(std::io::Error::other));
    Ok(([(CONTENT_TYPE, "text/plain")], body).into_response())
}

fn options(query: &Query) -> Result<LogOptions, Refusal> {
    let since_seconds = query.number::<u64>("sinceSeconds")?.map(|seconds| clock::now() - Duration::from_secs(seconds));
    let since_time = query.number::<Timestamp>("sinceTime")?;
    let stream = query.get("stream").unwrap_or("All");
    Ok(LogOptions {
        follow: query.on(&["follow"]),
        tail: query.number("tailLines")?,
        since: since_seconds.or(since_time),
        timestamps: query.on(&["timestamps"]),
        stdout: stream != "Stderr",
        stderr: stream != "Stdout",
    })
}

/// Which of the containers of that name is meant; the refusals are upstream's.
fn choose<'a>(pod: &Pod, state: &'a PodState, name: &str, previous: bool) -> Result<&'a Container, Refusal> {
    let mut all = state.containers.iter().filter(|c| c.name == name);
    let newest = all.next();
    let status = status(pod, name);
    let waiting = status.and_then(|s| s.state.as_ref()).and_then(|s| s.waiting.as_ref()).and_then(|w| w.reason.as_deref());
    let of = pod::name(pod);
    if previous {
        // What ended and is not running again is its own predecessor.
        let ended = newest.filter(|c| c.state == ContainerState::Exited && waiting.is_some());
        let before = ended.or_else(|| all.find(|c| c.state == ContainerState::Exited));
        return before.ok_or_else(|| Refusal::bad_request(format!("previous terminated container {name:?} in pod {of:?} not found")));
    }
    match (newest, waiting) {
        (Some(container), _) if matches!(container.state, ContainerState::Running | ContainerState::Exited) => Ok(container),
        (_, Some("ErrImagePull" | "ImagePullBackOff" | "ImageInspectError" | "ErrImageNeverPull" | "RegistryUnavailable" | "InvalidImageName")) => {
            let why = match waiting {
                Some("ErrImagePull") => "image can't be pulled".to_owned(),
                Some("ImagePullBackOff") => "trying and failing to pull image".to_owned(),
                Some(reason) => reason.to_owned(),
                None => String::new(),
            };
            Err(Refusal::bad_request(format!("container {name:?} in pod {of:?} is waiting to start: {why}")))
        }
        (_, Some(reason)) => Err(Refusal::bad_request(format!("container {name:?} in pod {of:?} is waiting to start: {reason}"))),
        (_, None) => Err(Refusal::bad_request(format!("container {name:?} in pod {of:?} is not available"))),
    }
}

fn status<'a>(pod: &'a Pod, name: &str) -> Option<&'a ContainerStatus> {
    let status = pod.status.as_ref()?;
    let lists = [&status.init_container_statuses, &status.container_statuses, &status.ephemeral_container_statuses];
    lists.into_iter().flat_map(|list| list.iter().flatten()).find(|c| c.name == name)
}

/// No more than so many bytes.
fn cut(log: BoxStream<'static, runtime::Result<Bytes>>, limit: u64) -> BoxStream<'static, runtime::Result<Bytes>> {
    let cut = log.scan(limit, |left, piece| {
        let piece = match piece {
            _ if *left == 0 => None,
            Ok(mut bytes) => {
                bytes.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= bytes.len() as u64;
                Some(Ok(bytes))
            }
            Err(error) => Some(Err(error)),
        };
        futures::future::ready(piece)
    });
    cut.boxed()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn which_container_is_meant() {
        let check = |containers: &[&str], waiting: Option<&str>, previous: bool, expected: Result<&str, &str>| {
            let mut pod = crate::testing::pod(json!({"containers": [{"name": "a"}]}));
            let state = waiting.map_or(json!({}), |reason| json!({"waiting": {"reason": reason}}));
            pod.status = serde_json::from_value(json!({"containerStatuses": [{"name": "a", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": state}]})).ok();
            let state = crate::testing::state(&pod, containers);
            let chosen = choose(&pod, &state, "a", previous).map(|c| c.id.clone()).map_err(|r| r.0.message);
            assert_eq!(chosen, expected.map(str::to_owned).map_err(str::to_owned));
        };
        check(&["a running"], None, false, Ok("a0"));
        check(&["a/0 exited 1", "a/1 running"], None, false, Ok("a1"));
        check(&["a/0 exited 1", "a/1 running"], None, true, Ok("a0"));
        check(&["a/0 exited 1"], Some("CrashLoopBackOff"), false, Ok("a0"));
        check(&["a/0 exited 1", "a/1 exited 1"], Some("CrashLoopBackOff"), true, Ok("a1"));
        check(&["a/0 exited 1"], None, true, Err("previous terminated container \"a\" in pod \"p\" not found"));
        check(&[], Some("ContainerCreating"), false, Err("container \"a\" in pod \"p\" is waiting to start: ContainerCreating"));
        check(&[], Some("ImagePullBackOff"), false, Err("container \"a\" in pod \"p\" is waiting to start: trying and failing to pull image"));
    }
}
