//! Admission beyond single answers: quotas under pressure, and rights that can't be given away.

use serde_json::{Value, json};
use skiff::{Cluster, Options};
use skiff_e2e::{Answer, Ask, ask, ask_as};

async fn server() -> Cluster {
    Cluster::with(Options { control: false, nodes: 0, ..Options::default() }).await.expect("a server")
}

async fn send(cluster: &Cluster, method: &str, path: &str, object: Value) -> Answer {
    let body = if object.is_null() { String::new() } else { object.to_string() };
    ask(cluster, &Ask { method, path, content_type: "application/json", body, ..Ask::default() }, true).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_quota_holds_against_many_at_once() {
    let cluster = std::sync::Arc::new(server().await);
    let base = "/api/v1/namespaces/default";
    let quota = json!({"metadata": {"name": "q"}, "spec": {"hard": {"configmaps": "3"}}});
    assert_eq!(send(&cluster, "POST", &format!("{base}/resourcequotas"), quota).await.code, 201);
    let path = format!("{base}/configmaps");
    let answers = (0..8).map(|i| {
        let (cluster, path) = (std::sync::Arc::clone(&cluster), path.clone());
        tokio::spawn(async move { send(&cluster, "POST", &path, json!({"metadata": {"name": format!("c{i}")}})).await.code })
    });
    let codes: Vec<u16> = futures::future::join_all(answers).await.into_iter().map(|code| code.expect("an answer")).collect();
    assert_eq!(codes.iter().filter(|code| **code == 201).count(), 3, "{codes:?}");
    let dry = send(&cluster, "POST", &format!("{path}?dryRun=All"), json!({"metadata": {"name": "dry"}})).await;
    assert_eq!(dry.code, 403);
    // What is deleted is free again.
    let first = codes.iter().position(|code| *code == 201).unwrap_or_default();
    assert_eq!(send(&cluster, "DELETE", &format!("{path}/c{first}"), Value::Null).await.code, 200);
    assert_eq!(send(&cluster, "POST", &path, json!({"metadata": {"name": "again"}})).await.code, 201);
    let quota = send(&cluster, "GET", &format!("{base}/resourcequotas/q"), Value::Null).await;
    assert_eq!(quota.body["status"], json!({"hard": {"configmaps": "3"}, "used": {"configmaps": "3"}}));
}

#[tokio::test]
async fn rights_are_not_given_away() {
    let cluster = server().await;
    let base = "/apis/rbac.authorization.k8s.io/v1/namespaces/default";
    let subject = json!([{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "bob"}]);
    let reference = |name: &str| json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name});
    let admin = json!({"metadata": {"name": "bob"}, "subjects": subject, "roleRef": reference("admin")});
    assert_eq!(send(&cluster, "POST", &format!("{base}/rolebindings"), admin).await.code, 201);
    let bob = |path: &str, object: Value| {
        let path = format!("{base}/{path}");
        let cluster = &cluster;
        async move {
            let request = Ask { method: "POST", path: &path, content_type: "application/json", body: object.to_string(), ..Ask::default() };
            ask_as(cluster, &request, "bob").await
        }
    };
    let role = |group: &str, resource: &str| json!({"metadata": {"name": "r"}, "rules": [{"apiGroups": [group], "resources": [resource], "verbs": ["get"]}]});
    let refused = bob("roles", role("node.k8s.io", "runtimeclasses")).await;
    let why = "roles.rbac.authorization.k8s.io \"r\" is forbidden: user \"bob\" (groups=[\"system:authenticated\"]) is attempting to grant RBAC permissions not currently held:\n{APIGroups:[\"node.k8s.io\"], Resources:[\"runtimeclasses\"], Verbs:[\"get\"]}";
    assert_eq!((refused.code, refused.body["message"].as_str()), (403, Some(why)));
    assert_eq!(bob("roles", role("", "pods")).await.code, 201);
    let binding = |role: &str| json!({"metadata": {"name": format!("to-{role}")}, "subjects": subject, "roleRef": reference(role)});
    assert_eq!(bob("rolebindings", binding("view")).await.code, 201);
    assert_eq!(bob("rolebindings", binding("cluster-admin")).await.code, 403);
}
