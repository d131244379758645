//! The roles and bindings that upstream's clusters begin with.

use serde_json::{Value, json};

const GROUP: &str = "rbac.authorization.k8s.io";

fn rule(groups: &[&str], resources: &[&str], verbs: &[&str]) -> Value {
    json!({"apiGroups": groups, "resources": resources, "verbs": verbs})
}

fn paths(urls: &[&str]) -> Value {
    json!({"nonResourceURLs": urls, "verbs": ["get"]})
}

fn role(name: &str, rules: Vec<Value>) -> Value {
    json!({"kind": "ClusterRole", "metadata": metadata(name), "rules": rules})
}

fn metadata(name: &str) -> Value {
    json!({
        "name": name, "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
        "annotations": {"rbac.authorization.kubernetes.io/autoupdate": "true"},
    })
}

fn binding(name: &str, role: &str, subjects: &[(&str, &str)]) -> Value {
    let subjects: Vec<Value> = subjects.iter().map(|(kind, name)| json!({"apiGroup": GROUP, "kind": kind, "name": name})).collect();
    json!({"kind": "ClusterRoleBinding", "metadata": metadata(name), "roleRef": {"apiGroup": GROUP, "kind": "ClusterRole", "name": role}, "subjects": subjects})
}

/// All of them.
pub(super) fn objects() -> Vec<Value> {
    let discovery = ["/api", "/api/*", "/apis", "/apis/*", "/healthz", "/livez", "/openapi", "/openapi/*", "/readyz", "/version", "/version/"];
    vec![
        role("cluster-admin", vec![rule(&["*"], &["*"], &["*"]), json!({"nonResourceURLs": ["*"], "verbs": ["*"]})]),
        binding("cluster-admin", "cluster-admin", &[("Group", "system:masters")]),
        role("system:discovery", vec![paths(&discovery)]),
        binding("system:discovery", "system:discovery", &[("Group", "system:authenticated")]),
        role("system:public-info-viewer", vec![paths(&["/healthz", "/livez", "/readyz", "/version", "/version/"])]),
        binding(
            "system:public-info-viewer",
            "system:public-info-viewer",
            &[("Group", "system:authenticated"), ("Group", "system:unauthenticated")],
        ),
        role(
            "system:basic-user",
            vec![
                rule(&["authorization.k8s.io"], &["selfsubjectaccessreviews", "selfsubjectrulesreviews"], &["create"]),
                rule(&["authentication.k8s.io"], &["selfsubjectreviews"], &["create"]),
            ],
        ),
        binding("system:basic-user", "system:basic-user", &[("Group", "system:authenticated")]),
    ]
}
