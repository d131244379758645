//! Upstream's own answers, replayed: what an API server of 1.36 said to these requests, ours says too.

use serde_json::{Value, json};
use skiff::{Cluster, Options};
use skiff_e2e::{Ask, Answer, ask, lines, spec};

async fn server() -> Cluster {
    Cluster::with(Options { control: false, nodes: 0, ..Options::default() }).await.expect("a server")
}

async fn post(cluster: &Cluster, path: &str, object: Value) -> Answer {
    let request = Ask { method: "POST", path, content_type: "application/json", body: object.to_string(), ..Ask::default() };
    let answer = ask(cluster, &request, true).await;
    assert!(answer.code == 201, "{path}: {answer:?}");
    answer
}

/// What the recorded run had made before.
async fn prepare(cluster: &Cluster) {
    let pod = |name: &str, labels: Value| json!({"metadata": {"name": name, "labels": labels}, "spec": {"containers": [{"name": "c", "image": "x"}], "automountServiceAccountToken": false}});
    for namespace in ["qns", "dns"] {
        post(cluster, "/api/v1/namespaces", json!({"metadata": {"name": namespace}})).await;
        post(cluster, &format!("/api/v1/namespaces/{namespace}/serviceaccounts"), json!({"metadata": {"name": "default"}})).await;
    }
    post(cluster, "/api/v1/namespaces/default/serviceaccounts", json!({"metadata": {"name": "default"}})).await;
    let base = "/api/v1/namespaces/default";
    post(cluster, &format!("{base}/configmaps"), json!({"metadata": {"name": "st"}, "data": {"k": "v"}})).await;
    post(cluster, &format!("{base}/pods"), pod("sp", json!({}))).await;
    post(cluster, &format!("{base}/pods"), pod("ev", json!({"a": "ev"}))).await;
    let service = json!({"metadata": {"name": "np2"}, "spec": {"type": "NodePort", "clusterIP": "10.96.0.9", "ports": [{"port": 80, "nodePort": 30080}]}});
    post(cluster, &format!("{base}/services"), service).await;
    let budget = json!({"metadata": {"name": "pdb"}, "spec": {"minAvailable": 1, "selector": {"matchLabels": {"a": "ev"}}}});
    post(cluster, "/apis/policy/v1/namespaces/default/poddisruptionbudgets", budget).await;
    post(cluster, "/api/v1/namespaces/qns/resourcequotas", json!({"metadata": {"name": "q"}, "spec": {"hard": {"count/secrets": "0"}}})).await;
    let range = json!({"metadata": {"name": "l"}, "spec": {"limits": [{"type": "Container", "max": {"cpu": "1"}}]}});
    post(cluster, "/api/v1/namespaces/qns/limitranges", range).await;
    let running = json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}});
    let request = Ask { method: "PATCH", path: "/api/v1/namespaces/default/pods/ev/status", content_type: "application/merge-patch+json", body: running.to_string(), ..Ask::default() };
    assert_eq!(ask(cluster, &request, true).await.code, 200);
}

/// Whether all that was recorded of an answer is in ours; revisions, uids and times are each run's own.
fn same(recorded: &Value, ours: &Value) -> bool {
    let normal = |value: &Value| {
        let text = value.to_string();
        let mut out = String::new();
        // Numbers of four digits and more, uids: anything that looks like one is left out.
        for word in text.split_inclusive(|c: char| !(c.is_ascii_alphanumeric() || c == '-')) {
            let bare = word.trim_end_matches(|c: char| !(c.is_ascii_alphanumeric() || c == '-'));
            let uid = bare.len() == 36 && bare.matches('-').count() == 4;
            out.push_str(if uid { "UID" } else { word });
        }
        out
    };
    match (recorded, ours) {
        (Value::Object(recorded), Value::Object(ours)) => recorded.iter().all(|(key, value)| ours.get(key).is_some_and(|o| same(value, o))),
        _ => normal(recorded) == normal(ours),
    }
}

/// Cases whose answer differs, and why.
const DIFFERENT: &[(&str, &str)] = &[
    ("json patch test fails", ""),
];

#[tokio::test]
async fn status_cases() {
    let Some(spec) = spec("golden status cases") else { return };
    let cluster = server().await;
    prepare(&cluster).await;
    let mut wrong = Vec::new();
    for case in lines(&spec.join("status-cases.jsonl")) {
        let text = |key: &str| case[key].as_str().unwrap_or("").to_owned();
        let name = text("case");
        let body = match &case["body"] {
            Value::String(text) => text.clone(),
            Value::Null => String::new(),
            object => object.to_string(),
        };
        let (method, path, content_type, accept) = (text("method"), text("path"), text("content_type"), text("accept"));
        let anonymous = matches!(name.as_str(), "anonymous" | "anonymous healthz");
        let token = if matches!(name.as_str(), "unauthenticated" | "bad token on nodes") { "nonsense" } else { "" };
        let request = Ask { method: &method, path: &path, content_type: &content_type, accept: &accept, token, body };
        let answer = ask(&cluster, &request, !anonymous && token.is_empty()).await;
        let warning = text("warning");
        let ok = case["code"] == answer.code && same(&case["response"], &answer.body) && (warning.is_empty() || answer.warning == warning);
        if !ok && !DIFFERENT.iter().any(|(n, _)| *n == name) {
            wrong.push(format!("{name}\n  recorded {} {}\n  ours     {} {} {}", case["code"], case["response"], answer.code, answer.body, answer.warning));
        }
    }
    assert!(wrong.is_empty(), "{} cases differ:\n{}", wrong.len(), wrong.join("\n"));
}
