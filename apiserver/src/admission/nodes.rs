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
            _ => Ok(()),
        }
    }
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
