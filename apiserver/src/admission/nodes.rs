//! What nodes are and may do: new ones are tainted until they are ready, and each writes only about itself.

use async_trait::async_trait;
use serde_json::{Value, json};
use skiff_api::{Status, value};

use super::{Plugin, Request};
use crate::verbs::Call;

pub(super) struct TaintNodesByCondition;

#[async_trait]
impl Plugin for TaintNodesByCondition {
    async fn mutate(&self, request: &Request<'_>, node: &mut Value) -> Result<(), Status> {
        if !request.creates("", "nodes") {
            return Ok(());
        }
        let key = "node.kubernetes.io/not-ready";
        if let Value::Array(taints) = value::object_mut(node, &["spec"]).entry("taints").or_insert_with(|| json!([]))
            && !taints.iter().any(|t| t["key"] == key && t["effect"] == "NoSchedule")
        {
            taints.push(json!({"key": key, "effect": "NoSchedule"}));
        }
        Ok(())
    }
}

pub(super) struct NodeRestriction;

#[async_trait]
impl Plugin for NodeRestriction {
    async fn validate(&self, request: &Request<'_>, object: &Value) -> Result<(), Status> {
        let call = request.call;
        let Some(node) = call.user.node() else { return Ok(()) };
        let name = value::text(object, &["metadata", "name"]);
        let refuse = |why: String| Err(Status::forbidden(call.resource.group_resource(), name, why));
        match call.resource.plural.as_ref() {
            "nodes" if name != node => refuse(format!("node {node:?} is not allowed to modify node {name:?}")),
            "nodes" if request.old.is_some_and(|old| value::at(old, &["spec", "taints"]) != value::at(object, &["spec", "taints"])) => {
                refuse(format!("node {node:?} is not allowed to modify taints"))
            }
            "nodes" => {
                let labels = restricted_labels(object, request.old);
                match (labels.is_empty(), request.old) {
                    (true, _) => Ok(()),
                    (_, None) => refuse(format!("node {node:?} is not allowed to set the following labels: {}", labels.join(", "))),
                    (_, Some(_)) => refuse(format!("is not allowed to modify labels: {}", labels.join(", "))),
                }
            }
            "pods" if call.info.subresource.is_empty() && request.old.is_none() => {
                let mirror = !value::at(object, &["metadata", "annotations", "kubernetes.io/config.mirror"]).is_null();
                if mirror { Ok(()) } else { refuse(format!("pod does not have \"kubernetes.io/config.mirror\" annotation, node {node:?} can only create mirror pods")) }
            }
            "pods" if value::text(object, &["spec", "nodeName"]) != node => {
                refuse(format!("node {node:?} can only update pod status for pods with spec.nodeName set to itself"))
            }
            "leases" if call.info.namespace == "kube-node-lease" && name != node => {
                refuse("can only access node lease with the same name as the requesting node".into())
            }
            "csinodes" if name != node => refuse("can only access CSINode with the same name as the requesting node".into()),
            "resourceslices" if value::text(object, &["spec", "nodeName"]) != node => {
                refuse("can only create ResourceSlice with the same NodeName as the requesting node".into())
            }
            "podcertificaterequests" if value::text(object, &["spec", "nodeName"]) != node => {
                let other = value::text(object, &["spec", "nodeName"]);
                refuse(format!("PodCertificateRequest.Spec.NodeName={other:?}, which is not the requesting node {node:?}"))
            }
            _ => Ok(()),
        }
    }
}

/// The labels of Kubernetes' own that a node may say of itself; upstream's kubelet labels.
const OWN_LABELS: [&str; 12] = [
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "kubernetes.io/arch",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/instance-type",
    "node.kubernetes.io/instance-type",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
    "node.kubernetes.io/exclude-from-external-load-balancers",
];

/// Whether a node may give itself the label: not those by which others tell it what it is for.
fn is_own(label: &str) -> bool {
    let domain = label.split_once('/').map_or("", |(domain, _)| domain);
    let below = |parent: &str| domain == parent || domain.strip_suffix(parent).is_some_and(|rest| rest.ends_with('.'));
    if below("node-restriction.kubernetes.io") {
        return false;
    }
    let kubernetes = below("kubernetes.io") || below("k8s.io");
    !kubernetes || OWN_LABELS.contains(&label) || below("kubelet.kubernetes.io") || below("node.kubernetes.io")
}

/// The labels that differ from the node before, and that a node may not change.
fn restricted_labels(node: &Value, old: Option<&Value>) -> Vec<String> {
    let labels = |object| value::at(object, &["metadata", "labels"]);
    let (new, old) = (labels(node), old.map_or(&Value::Null, labels));
    let keys: std::collections::BTreeSet<&String> = [new, old].into_iter().filter_map(Value::as_object).flat_map(|map| map.keys()).collect();
    keys.into_iter().filter(|key| new.get(*key) != old.get(*key) && !is_own(key)).cloned().collect()
}

/// Nodes delete themselves and the pods that they run, nothing else of either.
pub(super) fn check_delete(call: &Call, current: &Value) -> Result<(), Status> {
    let Some(node) = call.user.node() else { return Ok(()) };
    let name = value::text(current, &["metadata", "name"]);
    let refuse = |why: String| Err(Status::forbidden(call.resource.group_resource(), name, why));
    match call.resource.plural.as_ref() {
        "pods" if value::text(current, &["spec", "nodeName"]) != node => {
            refuse(format!("node {node:?} can only delete pods with spec.nodeName set to itself"))
        }
        "nodes" if name != node => refuse(format!("node {node:?} is not allowed to delete node {name:?}")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(new: Value, old: Option<Value>, expected: &[&str]) {
        let node = |labels: &Value| json!({"metadata": {"labels": labels}});
        let old = old.map(|labels| node(&labels));
        assert_eq!(restricted_labels(&node(&new), old.as_ref()), expected);
    }

    #[test]
    fn a_node_says_of_itself_only_what_is_its_own() {
        check(json!({"kubernetes.io/hostname": "a", "x.io/y": "z", "plain": "1", "foo.node.kubernetes.io/a": "b"}), None, &[]);
        let roles = json!({"node-role.kubernetes.io/control-plane": "", "team.node-restriction.kubernetes.io/pci": "1"});
        check(roles.clone(), None, &["node-role.kubernetes.io/control-plane", "team.node-restriction.kubernetes.io/pci"]);
        check(roles.clone(), Some(roles.clone()), &[]);
        check(json!({}), Some(roles), &["node-role.kubernetes.io/control-plane", "team.node-restriction.kubernetes.io/pci"]);
    }
}
