//! Clears away pods that nobody else will: of nodes that are gone, deleted before they got a node, long finished.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{DeleteParams, Patch, Preconditions};
use kube::Api;
use serde_json::json;
use skiff_api::clock;
use skiff_api::typed::pods::{is_finished, node_name};

use crate::Context;
use crate::controller::Again;
use crate::error::Error;
use crate::kind::{By, Change, is_gone};
use crate::queue::Queue;

/// How long a node may be missing before its pods are deleted.
const QUARANTINE: Duration = Duration::from_secs(40);
/// How many requests are under way at once.
const PARALLEL: usize = 16;

/// What is to be looked at.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Item {
    /// A node that may be gone.
    Node(String),
    /// A deleted pod without a node, or on one that is out of service: namespace and name.
    Pod(String, String),
    /// All finished pods.
    Finished,
}

/// Runs the controller.
pub fn run(context: Arc<Context>) -> impl Future<Output = ()> {
    let (queue, work) = Queue::new();
    let (of_pods, of_nodes, nodes) = (queue.clone(), queue, context.kinds.nodes.clone());
    context.kinds.pods.on_change(move |change: &Change<Pod>| {
        let Some(pod) = &change.new else { return };
        let meta = &pod.metadata;
        let key = Item::Pod(meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default());
        let node = node_name(pod);
        if meta.deletion_timestamp.is_some() {
            of_pods.add(key);
        }
        if is_finished(pod) && change.old.as_ref().is_none_or(|o| !is_finished(o)) {
            of_pods.add_after(Item::Finished, Duration::from_secs(1));
        }
        if !node.is_empty() && change.old.as_ref().is_none_or(|o| node_name(o) != node) && nodes.get("", node).is_none() {
            of_pods.add_after(Item::Node(node.to_owned()), QUARANTINE);
        }
    });
    let pods = context.kinds.pods.clone();
    context.kinds.nodes.on_change(move |change: &Change<Node>| match (&change.old, &change.new) {
        (Some(old), None) => {
            of_nodes.add_after(Item::Node(old.metadata.name.clone().unwrap_or_default()), QUARANTINE);
        }
        (_, Some(node)) if is_out_of_service(node) => {
            for pod in pods.find(&By::Node(node.metadata.name.clone().unwrap_or_default())) {
                let meta = &pod.metadata;
                of_nodes.add(Item::Pod(meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default()));
            }
        }
        _ => {}
    });
    async move {
        context.kinds.ready().await;
        let act = |item| collect(context.clone(), item);
        work.run("pod-garbage-collector", PARALLEL, act).await;
    }
}

fn is_out_of_service(node: &Node) -> bool {
    let ready = node.status.iter().flat_map(|s| s.conditions.iter().flatten()).any(|c| c.type_ == "Ready" && c.status == "True");
    let mut taints = node.spec.iter().flat_map(|s| s.taints.iter().flatten());
    !ready && taints.any(|t| t.key == "node.kubernetes.io/out-of-service")
}

async fn collect(context: Arc<Context>, item: Item) -> Result<Again, Error> {
    let kinds = &context.kinds;
    match item {
        Item::Node(name) => {
            if kinds.nodes.get("", &name).is_some() {
                return Ok(None);
            }
            // The cache may be behind: ask before pods are deleted that may be running.
            let api: Api<Node> = Api::all(context.client());
            if api.get_opt(&name).await.map_err(Error::on("looking for a node"))?.is_none() {
                for pod in kinds.pods.find(&By::Node(name)) {
                    let why = Some(("DeletionByPodGC", "PodGC: node no longer exists"));
                    remove(&context, &pod, why).await?;
                }
            }
        }
        Item::Pod(namespace, name) => {
            let Some(pod) = kinds.pods.get(&namespace, &name).filter(|p| p.metadata.deletion_timestamp.is_some()) else {
                return Ok(None);
            };
            let node = kinds.nodes.get("", node_name(&pod));
            if node_name(&pod).is_empty() || node.is_some_and(|n| is_out_of_service(&n)) {
                remove(&context, &pod, None).await?;
            }
        }
        Item::Finished => {
            for pod in surplus(kinds.pods.all(), context.config.terminated_pods_kept) {
                remove(&context, &pod, None).await?;
            }
        }
    }
    Ok(None)
}

/// The finished pods beyond those that are kept: evicted ones first, then the oldest.
fn surplus(mut pods: Vec<Arc<Pod>>, kept: usize) -> Vec<Arc<Pod>> {
    pods.retain(|p| is_finished(p));
    let surplus = pods.len().saturating_sub(kept);
    if surplus > 0 {
        let evicted = |p: &Pod| p.status.as_ref().and_then(|s| s.reason.as_deref()) == Some("Evicted");
        pods.sort_by_cached_key(|p| {
            (!evicted(p), p.metadata.creation_timestamp.as_ref().map(|t| t.0), p.metadata.name.clone())
        });
    }
    pods.truncate(surplus);
    pods
}

/// Notes that the pod failed, as nobody else will, and deletes it at once.
async fn remove(context: &Context, pod: &Pod, why: Option<(&str, &str)>) -> Result<(), Error> {
    let pods = &context.kinds.pods;
    if !is_finished(pod) {
        let mut status = json!({ "phase": "Failed" });
        if let Some((reason, message)) = why {
            status["conditions"] = json!([disruption(pod, reason, message)]);
        }
        let patch = json!({ "metadata": { "uid": pod.metadata.uid }, "status": status });
        match pods.patch_status(&pod.metadata, &Patch::Strategic(patch)).await {
            Err(error) if is_gone(&error) => return Ok(()),
            other => drop(other.map_err(Error::on("noting that a pod failed"))?),
        }
    }
    let params = DeleteParams {
        grace_period_seconds: Some(0),
        preconditions: Some(Preconditions { uid: pod.metadata.uid.clone(), ..Preconditions::default() }),
        ..DeleteParams::default()
    };
    pods.delete_with(&pod.metadata, &params).await.map_err(Error::on("deleting a pod that is left over"))
}

/// The condition that a pod is deleted for a reason that isn't its own.
pub fn disruption(pod: &Pod, reason: &str, message: &str) -> serde_json::Value {
    let now = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(clock::now());
    let mut condition = json!({
        "type": "DisruptionTarget", "status": "True", "reason": reason, "message": message,
        "lastProbeTime": null, "lastTransitionTime": now,
    });
    if let Some(generation) = pod.metadata.generation {
        condition["observedGeneration"] = generation.into();
    }
    condition
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_finished_pods_are_too_many() {
        let pod = |name: &str, phase: &str, reason: &str, day: u8| {
            let value = json!({ "metadata": { "name": name, "creationTimestamp": format!("2026-01-{day:02}T00:00:00Z") },
                                "status": { "phase": phase, "reason": reason } });
            Arc::new(serde_json::from_value::<Pod>(value).expect("a pod"))
        };
        let pods = || vec![
            pod("new", "Succeeded", "", 4), pod("evicted", "Failed", "Evicted", 3), pod("old", "Succeeded", "", 1),
            pod("older but running", "Running", "", 1),
        ];
        let names = |kept| surplus(pods(), kept).iter().filter_map(|p| p.metadata.name.clone()).collect::<Vec<_>>();
        assert_eq!(names(3), Vec::<String>::new());
        assert_eq!(names(2), ["evicted"]);
        assert_eq!(names(1), ["evicted", "old"]);
    }
}
