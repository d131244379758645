//! PodResizeValidator: a pod doesn't ask for more than its node could ever give it.

use async_trait::async_trait;
use serde_json::Value;
use skiff_api::status::Cause;
use skiff_api::{Status, pod, value};

use super::{Plugin, Request};

pub(super) struct PodResizeValidator;

#[async_trait]
impl Plugin for PodResizeValidator {
    async fn validate(&self, request: &Request<'_>, object: &Value) -> Result<(), Status> {
        let call = request.call;
        let resizes = call.info.subresource == "resize" && call.resource.group.is_empty() && call.resource.plural == "pods";
        let node = value::text(object, &["spec", "nodeName"]);
        if !resizes || node.is_empty() || request.old.is_some_and(|old| old["spec"] == object["spec"]) {
            return Ok(());
        }
        let refuse = |why: String| Status::forbidden(call.resource.group_resource(), value::text(object, &["metadata", "name"]), why);
        let cache = call.server.cache.resource("/registry/minions/").ok_or_else(Status::no_such_resource)?;
        let found = cache.get(&format!("/registry/minions/{node}")).ok_or_else(|| refuse(format!("node {node:?} not found")))?;
        judge(object, &found.value().map_err(Status::internal)?).map_err(|(cause, why)| {
            let mut status = refuse(why);
            if let Some(details) = &mut status.details {
                details.causes.push(Cause { reason: cause.into(), message: String::new(), field: String::new() });
            }
            status
        })
    }
}

/// Why the node can't have the pod so large: the cause's word, and the sentence.
fn judge(pod: &Value, node: &Value) -> Result<(), (&'static str, String)> {
    let system = value::text(node, &["metadata", "labels", "kubernetes.io/os"]);
    if !matches!(system, "" | "linux") {
        let name = value::text(node, &["metadata", "name"]);
        return Err(("UnsupportedPlatform", format!("pod resize is only supported on linux nodes, node {name:?} is {system:?}")));
    }
    let (wanted, given) = (pod::requests(pod), pod::resource_list(value::at(node, &["status", "allocatable"])));
    let mut lacking = Vec::new();
    for (what, milli) in [("cpu", true), ("memory", false)] {
        let amount = |of: &pod::Resources| of.get(what).map_or(0, |q| if milli { q.milli_value() } else { q.value() });
        let (wanted, given) = (amount(&wanted), amount(&given));
        if wanted > given {
            lacking.push(format!("{what}, requested: {wanted}, allocatable: {given}"));
        }
    }
    if lacking.is_empty() { Ok(()) } else { Err(("NodeCapacity", format!("node didn't have enough allocatable resources: {}", lacking.join("; ")))) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pods_stay_within_their_node() {
        let check = |system: &str, cpu: &str, memory: &str, expected: &str| {
            let pod = json!({"spec": {"containers": [{"resources": {"requests": {"cpu": cpu, "memory": memory}}}]}});
            let node = json!({"metadata": {"name": "n", "labels": {"kubernetes.io/os": system}}, "status": {"allocatable": {"cpu": "2", "memory": "1Ki"}}});
            assert_eq!(judge(&pod, &node).err().map(|(_, why)| why).unwrap_or_default(), expected);
        };
        check("linux", "2", "1Ki", "");
        check("", "2500m", "1Ki", "node didn't have enough allocatable resources: cpu, requested: 2500, allocatable: 2000");
        check("linux", "3", "2Ki", "node didn't have enough allocatable resources: cpu, requested: 3000, allocatable: 2000; memory, requested: 2048, allocatable: 1024");
        check("windows", "1", "1Ki", "pod resize is only supported on linux nodes, node \"n\" is \"windows\"");
    }
}
