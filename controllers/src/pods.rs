//! Pods made from templates, many at a time, and which of several to delete first.

use std::cmp::{Ordering, Reverse};
use std::collections::HashMap;
use std::sync::Arc;

use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use skiff_api::typed::pods::{condition, is_ready, phase};

use crate::Context;
use crate::error::Error;
use crate::kind::{Object, is_namespace_terminating, message};

/// How many pods are created at first; the next batch is four times as large, and so on. When one of a batch fails, the
/// rest isn't tried: it would most likely fail likewise.
const FIRST_BATCH: usize = 16;
/// How many requests for one owner are under way at once.
const PARALLEL: usize = 64;
/// How many pods one reconciliation creates or deletes at most.
pub const BURST: usize = 500;

/// A pod from a template. It has no name yet.
pub fn from_template(template: &PodTemplateSpec, namespace: &str, owner: OwnerReference) -> Pod {
    let meta = template.metadata.clone().unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", owner.name)),
            namespace: Some(namespace.to_owned()),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

/// Creates pods and tells of each in an event about `owner`. Fails with the first failure; what was created stays.
pub async fn create<P: Object>(
    context: &Arc<Context>,
    source: &'static str,
    owner: &P,
    pods: Vec<Pod>,
) -> Result<(), Error> {
    let mut batch = FIRST_BATCH;
    let mut rest = pods.into_iter();
    loop {
        let work: Vec<Pod> = rest.by_ref().take(batch).collect();
        if work.is_empty() {
            return Ok(());
        }
        // Each in a task of its own: with the API server in this process, all cores take part.
        let mut answers = futures::stream::iter(work.into_iter().map(|pod| {
            let context = context.clone();
            tokio::spawn(crate::carried(async move { context.kinds.pods.create(&pod).await }))
        }))
        .buffer_unordered(PARALLEL);
        let mut failure = None;
        while let Some(answer) = answers.next().await {
            match answer {
                Ok(Ok(pod)) => {
                    let name = pod.metadata.name.as_deref().unwrap_or("");
                    context.events.normal(source, owner, "SuccessfulCreate", format!("Created pod: {name}"));
                }
                Ok(Err(error)) if is_namespace_terminating(&error) => return Ok(()),
                Ok(Err(error)) => {
                    let why = format!("Error creating: {}", message(&error));
                    context.events.warning(source, owner, "FailedCreate", why);
                    failure = Some(Error::on("creating a pod")(error));
                }
                Err(error) => failure = Some(Error::Impossible(format!("creating a pod: {error}"))),
            }
        }
        if let Some(failure) = failure {
            return Err(failure);
        }
        batch = batch.saturating_mul(4);
    }
}

/// Deletes pods and tells of each in an event about `owner`. All are tried; fails with the last failure.
pub async fn delete<P: Object>(
    context: &Arc<Context>,
    source: &'static str,
    owner: &P,
    pods: Vec<Arc<Pod>>,
) -> Result<(), Error> {
    let mut answers = futures::stream::iter(pods.into_iter().map(|pod| {
        let context = context.clone();
        tokio::spawn(crate::carried(async move { (context.kinds.pods.delete(&pod.metadata, None).await, pod) }))
    }))
    .buffer_unordered(PARALLEL);
    let mut failure = None;
    while let Some(answer) = answers.next().await {
        match answer {
            Ok((Ok(()), pod)) => {
                let name = pod.metadata.name.as_deref().unwrap_or("");
                context.events.normal(source, owner, "SuccessfulDelete", format!("Deleted pod: {name}"));
            }
            Ok((Err(error), _)) => {
                let why = format!("Error deleting: {}", message(&error));
                context.events.warning(source, owner, "FailedDelete", why);
                failure = Some(Error::on("deleting a pod")(error));
            }
            Err(error) => failure = Some(Error::Impossible(format!("deleting a pod: {error}"))),
        }
    }
    failure.map_or(Ok(()), Err)
}

/// Puts the pods that are missed least first, by upstream's rules. `related` are the pods of the same owner's owner:
/// where many of them share a node, one of these is missed less.
pub fn sort_for_deletion(pods: &mut [Arc<Pod>], related: &[Arc<Pod>], now: Timestamp) {
    let mut on_node: HashMap<&str, usize> = HashMap::new();
    for pod in related {
        *on_node.entry(skiff_api::typed::pods::node_name(pod)).or_default() += 1;
    }
    let rank = |pod: &Pod| on_node.get(skiff_api::typed::pods::node_name(pod)).copied().unwrap_or(0);
    pods.sort_by(|a, b| compare(a, b, now, &rank));
}

/// As [`sort_for_deletion`], without a look at other pods and at the deletion cost.
pub fn sort_active(pods: &mut [Arc<Pod>]) {
    pods.sort_by(|a, b| {
        standing(a)
            .cmp(&standing(b))
            .then_with(|| newest_first(ready_since(a), ready_since(b)))
            .then_with(|| restarts(b).cmp(&restarts(a)))
            .then_with(|| newest_first(created(a), created(b)))
    });
}

/// Unassigned before assigned, pending before unknown before running, not ready before ready.
fn standing(pod: &Pod) -> (bool, u8, bool) {
    let phase = match phase(pod) {
        "Unknown" => 1,
        "Running" => 2,
        _ => 0,
    };
    (!skiff_api::typed::pods::node_name(pod).is_empty(), phase, is_ready(pod))
}

fn compare(a: &Pod, b: &Pod, now: Timestamp, rank: &impl Fn(&Pod) -> usize) -> Ordering {
    standing(a)
        .cmp(&standing(b))
        .then_with(|| deletion_cost(a).cmp(&deletion_cost(b)))
        .then_with(|| Reverse(rank(a)).cmp(&Reverse(rank(b))))
        .then_with(|| roughly_newest_first(ready_since(a), ready_since(b), now, a, b))
        .then_with(|| restarts(b).cmp(&restarts(a)))
        .then_with(|| roughly_newest_first(created(a), created(b), now, a, b))
}

fn created(pod: &Pod) -> Option<Timestamp> {
    pod.metadata.creation_timestamp.as_ref().map(|t| t.0)
}

fn ready_since(pod: &Pod) -> Option<Timestamp> {
    condition(pod, "Ready").filter(|c| c.status == "True")?.last_transition_time.as_ref().map(|t| t.0)
}

fn deletion_cost(pod: &Pod) -> i32 {
    let cost = pod.metadata.annotations.as_ref().and_then(|a| a.get("controller.kubernetes.io/pod-deletion-cost"));
    cost.and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// No time before any time, late before early.
fn newest_first(a: Option<Timestamp>, b: Option<Timestamp>) -> Ordering {
    match (a, b) {
        (Some(a), Some(b)) => b.cmp(&a),
        _ => a.is_some().cmp(&b.is_some()),
    }
}

/// Ages are compared by their order of magnitude, so that not always the youngest of many goes.
fn roughly_newest_first(a: Option<Timestamp>, b: Option<Timestamp>, now: Timestamp, pod_a: &Pod, pod_b: &Pod) -> Ordering {
    let (Some(at_a), Some(at_b)) = (a, b) else { return newest_first(a, b) };
    if at_a == at_b {
        return Ordering::Equal;
    }
    let magnitude = |at: Timestamp| {
        let nanos = now.duration_since(at).as_nanos();
        if nanos > 0 { i64::from(nanos.ilog2()) } else { -1 }
    };
    magnitude(at_a).cmp(&magnitude(at_b)).then_with(|| pod_a.metadata.uid.cmp(&pod_b.metadata.uid))
}

/// The most restarts of a container, then of a sidecar.
fn restarts(pod: &Pod) -> (i32, i32) {
    let status = pod.status.as_ref();
    let most = status.iter().flat_map(|s| s.container_statuses.iter().flatten()).map(|c| c.restart_count).max();
    let sidecars: Vec<&str> = pod
        .spec
        .iter()
        .flat_map(|s| s.init_containers.iter().flatten())
        .filter(|c| c.restart_policy.as_deref() == Some("Always"))
        .map(|c| c.name.as_str())
        .collect();
    let beside = status.iter().flat_map(|s| s.init_container_statuses.iter().flatten());
    let most_beside = beside.filter(|c| sidecars.contains(&c.name.as_str())).map(|c| c.restart_count).max();
    (most.unwrap_or(0), most_beside.unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn who_is_missed_least_goes_first() {
        let now: Timestamp = "2026-01-01T12:00:00Z".parse().expect("a time");
        let pod = |name: &str, node: &str, phase: &str, ready: bool, extra: serde_json::Value| -> Arc<Pod> {
            let status = if ready { "True" } else { "False" };
            let mut value = json!({
                "metadata": { "name": name, "uid": name, "creationTimestamp": "2026-01-01T10:00:00Z" },
                "spec": { "nodeName": node, "containers": [] },
                "status": { "phase": phase, "conditions": [
                    { "type": "Ready", "status": status, "lastTransitionTime": "2026-01-01T11:00:00Z" }] },
            });
            json_patch::merge(&mut value, &extra);
            Arc::new(serde_json::from_value(value).expect("a pod"))
        };
        let cheap = json!({ "metadata": { "annotations": { "controller.kubernetes.io/pod-deletion-cost": "-1" } } });
        let young = json!({ "metadata": { "creationTimestamp": "2026-01-01T11:59:00Z" } });
        let restarted = json!({ "status": { "containerStatuses": [
            { "name": "c", "image": "", "imageID": "", "ready": true, "restartCount": 3 }] } });
        let mut pods = vec![
            pod("old", "n1", "Running", true, json!({})),
            pod("young", "n1", "Running", true, young),
            pod("restarted", "n1", "Running", true, restarted),
            pod("doubled", "n2", "Running", true, json!({})),
            pod("cheap", "n1", "Running", true, cheap),
            pod("unready", "n1", "Running", false, json!({})),
            pod("pending", "n1", "Pending", false, json!({})),
            pod("unassigned", "", "Pending", false, json!({})),
        ];
        let related = vec![pods[3].clone(), pods[3].clone()];
        sort_for_deletion(&mut pods, &related, now);
        let names: Vec<&str> = pods.iter().filter_map(|p| p.metadata.name.as_deref()).collect();
        assert_eq!(
            names,
            ["unassigned", "pending", "unready", "cheap", "doubled", "restarted", "young", "old"]
        );
    }
}
