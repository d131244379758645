//! PodTopologyLabels: pods tell where their node stands.

use async_trait::async_trait;
use serde_json::Value;
use skiff_api::{Status, value};

use super::{Plugin, Request};
use crate::server::Server;

/// The labels of nodes that their pods get.
const COPIED: [&str; 2] = ["topology.kubernetes.io/zone", "topology.kubernetes.io/region"];

pub(super) struct PodTopologyLabels;

#[async_trait]
impl Plugin for PodTopologyLabels {
    async fn mutate(&self, request: &Request<'_>, pod: &mut Value) -> Result<(), Status> {
        if !request.is_of("", "pods") {
            return Ok(());
        }
        let node = value::text(pod, &["spec", "nodeName"]).to_owned();
        label(&request.call.server, &node, pod)
    }
}

/// Gives a pod, or what binds one, the labels of its node. A node that isn't there has none.
pub(super) fn label(server: &Server, node: &str, object: &mut Value) -> Result<(), Status> {
    if node.is_empty() {
        return Ok(());
    }
    let cache = server.cache.resource("/registry/minions/").ok_or_else(Status::no_such_resource)?;
    let Some(node) = cache.get(&format!("/registry/minions/{node}")) else { return Ok(()) };
    copy(&node.value().map_err(Status::internal)?, object);
    Ok(())
}

fn copy(node: &Value, object: &mut Value) {
    for key in COPIED {
        if let Some(place) = value::at(node, &["metadata", "labels", key]).as_str() {
            value::object_mut(object, &["metadata", "labels"]).insert(key.into(), place.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn places_are_copied() {
        let check = |labels: Value, mut pod: Value, expected: Value| {
            copy(&json!({"metadata": {"labels": labels}}), &mut pod);
            assert_eq!(pod, expected);
        };
        check(json!({"kubernetes.io/hostname": "n"}), json!({"metadata": {}}), json!({"metadata": {}}));
        let places = json!({COPIED[0]: "z", COPIED[1]: "r", "x": "y"});
        check(places.clone(), json!({}), json!({"metadata": {"labels": {COPIED[0]: "z", COPIED[1]: "r"}}}));
        let own = json!({"metadata": {"labels": {COPIED[0]: "mine", "a": "b"}}});
        check(places, own, json!({"metadata": {"labels": {COPIED[0]: "z", COPIED[1]: "r", "a": "b"}}}));
    }
}
