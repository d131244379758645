//! The node authorizer: a kubelet sees what it needs for the pods that are bound to its node, and no more.

use serde_json::Value;
use skiff_api::{fields, value};

use super::{Attributes, User};
use crate::cache::Filter;
use crate::server::Server;

/// What every node may do: group, resource (with subresource), verbs. Upstream's `system:node` rules.
const RULES: &[(&str, &str, &[&str])] = &[
    ("authentication.k8s.io", "tokenreviews", &["create"]),
    ("authorization.k8s.io", "subjectaccessreviews", &["create"]),
    ("authorization.k8s.io", "localsubjectaccessreviews", &["create"]),
    ("", "services", &["get", "list", "watch"]),
    ("", "nodes", &["create", "get", "list", "watch", "update", "patch"]),
    ("", "nodes/status", &["update", "patch"]),
    ("", "events", &["create", "patch", "update"]),
    ("", "pods", &["get", "list", "watch", "create", "delete"]),
    ("", "pods/status", &["update", "patch"]),
    ("", "pods/eviction", &["create"]),
    ("coordination.k8s.io", "leases", &["create", "get", "update", "patch", "delete"]),
    ("certificates.k8s.io", "certificatesigningrequests", &["create", "get", "list", "watch"]),
    ("node.k8s.io", "runtimeclasses", &["get", "list", "watch"]),
    ("storage.k8s.io", "csidrivers", &["get", "list", "watch"]),
    ("storage.k8s.io", "csinodes", &["create", "get", "update", "patch", "delete"]),
    ("storage.k8s.io", "volumeattachments", &["get"]),
];

/// Whether the user is a node that may do that.
pub(super) fn allowed(server: &Server, user: &User, a: &Attributes<'_>) -> bool {
    let Some(node) = user.node() else { return false };
    if !a.path.is_empty() {
        return false;
    }
    let read = matches!(a.verb, "get" | "list" | "watch") && !a.name.is_empty();
    match (a.group, a.resource, a.subresource) {
        ("", "secrets" | "configmaps" | "persistentvolumeclaims", "") => read && refers(server, node, a),
        ("", "serviceaccounts", "token") => a.verb == "create" && refers(server, node, a),
        ("coordination.k8s.io", "leases", "") if a.namespace != "kube-node-lease" => false,
        // Which objects of these it may write is for the NodeRestriction plugin to say.
        (group, resource, sub) => RULES.iter().any(|(g, r, verbs)| {
            let (rule, rule_sub) = r.split_once('/').unwrap_or((r, ""));
            *g == group && rule == resource && rule_sub == sub && verbs.contains(&a.verb)
        }),
    }
}

/// Whether a pod on the node refers to the object.
fn refers(server: &Server, node: &str, a: &Attributes<'_>) -> bool {
    let Some(pods) = server.cache.resource("/registry/pods/") else { return false };
    let requirement = fields::Requirement { field: "spec.nodeName".into(), value: node.into(), equal: true };
    let filter = Filter {
        namespace: a.namespace.into(),
        fields: fields::Selector { requirements: vec![requirement] },
        ..Filter::default()
    };
    let found = pods.list(&filter, 0).objects;
    found.iter().filter_map(|pod| pod.value().ok()).any(|pod| match a.resource {
        "serviceaccounts" => value::text(&pod, &["spec", "serviceAccountName"]) == a.name,
        resource => names(&pod["spec"], resource, a.name),
    })
}

/// Whether a pod's spec names the object anywhere that objects of the resource are named.
fn names(spec: &Value, resource: &str, name: &str) -> bool {
    match spec {
        Value::Array(items) => items.iter().any(|item| names(item, resource, name)),
        Value::Object(map) => map.iter().any(|(key, member)| {
            let found = match (resource, key.as_str()) {
                ("secrets", "secret") => member["secretName"] == name || member["name"] == name,
                ("secrets", "secretKeyRef" | "secretRef" | "nodePublishSecretRef") => member["name"] == name,
                ("secrets", "imagePullSecrets") => member.as_array().is_some_and(|l| l.iter().any(|s| s["name"] == name)),
                ("configmaps", "configMap" | "configMapKeyRef" | "configMapRef") => member["name"] == name,
                ("persistentvolumeclaims", "persistentVolumeClaim") => member["claimName"] == name,
                _ => false,
            };
            found || names(member, resource, name)
        }),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references() {
        let spec = serde_json::json!({
            "imagePullSecrets": [{"name": "pull"}],
            "volumes": [{"secret": {"secretName": "s"}}, {"projected": {"sources": [{"secret": {"name": "p"}}, {"configMap": {"name": "c"}}]}}],
            "containers": [{"env": [{"valueFrom": {"secretKeyRef": {"name": "e", "key": "k"}}}], "envFrom": [{"configMapRef": {"name": "f"}}]}],
        });
        for name in ["pull", "s", "p", "e"] {
            assert!(names(&spec, "secrets", name), "{name}");
            assert!(!names(&spec, "configmaps", name), "{name}");
        }
        assert!(names(&spec, "configmaps", "c") && names(&spec, "configmaps", "f"));
    }
}
