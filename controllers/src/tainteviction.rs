//! Drives pods from nodes with taints that they don't tolerate, or tolerate for a while only.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Node, Pod, Taint, Toleration};
use kube::api::Patch;
use kube::runtime::reflector::ObjectRef;
use serde_json::json;
use skiff_api::clock;
use skiff_api::typed::placement::tolerates_one;
use skiff_api::typed::pods::node_name;

use crate::Context;
use crate::controller::{Again, Controller};
use crate::error::Error;
use crate::kind::{By, Change, is_gone};
use crate::podgc::disruption;

const SOURCE: &str = "taint-eviction-controller";

/// Since when each pod endures taints, by uid.
type Since = Arc<Mutex<HashMap<String, Timestamp>>>;

/// Runs the controller.
pub fn run(context: Arc<Context>) -> impl Future<Output = ()> {
    let since = Since::default();
    let (nodes, forget) = (context.kinds.nodes.clone(), since.clone());
    Controller::new(SOURCE, &context.kinds.nodes)
        .on(&*context.kinds.pods, move |change: &Change<Pod>| {
            let Some(pod) = &change.new else {
                let uid = change.old.as_ref().and_then(|p| p.metadata.uid.as_ref());
                uid.map(|uid| forget.lock().unwrap_or_else(PoisonError::into_inner).remove(uid));
                return Vec::new();
            };
            let endures = |pod: &Pod| pod.spec.as_ref().map(|s| (s.node_name.clone(), s.tolerations.clone()));
            let news = change.old.as_ref().is_none_or(|old| endures(old) != endures(pod));
            let node = nodes.get("", node_name(pod)).filter(|n| news && !driving(n).is_empty());
            node.map(|n| ObjectRef::from_obj(&*n)).into_iter().collect()
        })
        .run(context, move |context: Arc<Context>, node: Arc<Node>| {
            let since = since.clone();
            async move { reconcile(&context, &node, &since).await }
        })
}

/// The taints that drive pods away.
fn driving(node: &Node) -> Vec<Taint> {
    let taints = node.spec.iter().flat_map(|s| s.taints.iter().flatten());
    taints.filter(|t| t.effect == "NoExecute").cloned().collect()
}

/// For how long the taints are endured: not at all, for so many seconds, or for ever (`None`).
fn endured(taints: &[Taint], tolerations: &[Toleration]) -> Option<i64> {
    let mut used = Vec::new();
    for taint in taints {
        match tolerations.iter().find(|t| tolerates_one(t, taint)) {
            Some(toleration) => used.push(toleration),
            None => return Some(0),
        }
    }
    used.iter().filter_map(|t| t.toleration_seconds).map(|seconds| seconds.max(0)).min()
}

async fn reconcile(context: &Arc<Context>, node: &Node, since: &Since) -> Result<Again, Error> {
    let taints = driving(node);
    let now = clock::now();
    let mut again: Option<Duration> = None;
    for pod in context.kinds.pods.find(&By::Node(node.metadata.name.clone().unwrap_or_default())) {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let endured = match taints.is_empty() || pod.metadata.deletion_timestamp.is_some() {
            true => None,
            false => endured(&taints, pod.spec.as_ref().and_then(|s| s.tolerations.as_deref()).unwrap_or_default()),
        };
        let due = {
            let mut since = since.lock().unwrap_or_else(PoisonError::into_inner);
            match endured {
                Some(seconds) => Some(*since.entry(uid).or_insert(now) + SignedDuration::from_secs(seconds)),
                None => {
                    if since.remove(&uid).is_some() && pod.metadata.deletion_timestamp.is_none() {
                        tell(context, &pod, "Cancelling deletion of Pod");
                    }
                    None
                }
            }
        };
        match due {
            Some(at) if at <= now => evict(context, &pod).await?,
            Some(at) => again = again.into_iter().chain([clock::until(at)]).min(),
            None => {}
        }
    }
    Ok(again)
}

fn tell(context: &Context, pod: &Pod, what: &str) {
    let (namespace, name) = (pod.metadata.namespace.as_deref().unwrap_or(""), pod.metadata.name.as_deref().unwrap_or(""));
    context.events.normal(SOURCE, pod, "TaintManagerEviction", format!("{what} {namespace}/{name}"));
}

async fn evict(context: &Context, pod: &Pod) -> Result<(), Error> {
    tell(context, pod, "Marking for deletion Pod");
    let condition = disruption(pod, "DeletionByTaintManager", "Taint manager: deleting due to NoExecute taint");
    let patch = json!({ "metadata": { "uid": pod.metadata.uid }, "status": { "conditions": [condition] } });
    match context.kinds.pods.patch_status(&pod.metadata, &Patch::Strategic(patch)).await {
        Err(error) if is_gone(&error) => return Ok(()),
        other => drop(other.map_err(Error::on("noting why a pod is deleted"))?),
    }
    context.kinds.pods.delete(&pod.metadata, None).await.map_err(Error::on("driving a pod from its node"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use skiff_api::typed::placement::taint;

    #[test]
    fn how_long_taints_are_endured() {
        let toleration = |key: &str, seconds: Option<i64>| Toleration {
            key: Some(key.into()), operator: Some("Exists".into()), toleration_seconds: seconds, ..Toleration::default()
        };
        let check = |tolerations: &[Toleration], expected| {
            assert_eq!(endured(&[taint("a", "NoExecute"), taint("b", "NoExecute")], tolerations), expected);
        };
        check(&[], Some(0));
        check(&[toleration("a", None)], Some(0));
        check(&[toleration("a", None), toleration("b", None)], None);
        check(&[toleration("a", Some(300)), toleration("b", Some(20))], Some(20));
        check(&[toleration("a", None), toleration("b", Some(20))], Some(20));
        check(&[toleration("a", Some(-1)), toleration("b", None)], Some(0));
    }
}
