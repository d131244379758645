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
        for word in text.split_inclusive(|c: char| !(c.is_ascii_alphanumeric() || c == '-')) {
            let bare = word.trim_end_matches(|c: char| !(c.is_ascii_alphanumeric() || c == '-'));
            let uid = bare.len() == 36 && bare.matches('-').count() == 4;
            let revision = (out.ends_with("current: ") || out.ends_with("in record (")) && bare.bytes().all(|b| b.is_ascii_digit());
            out.push_str(if uid || revision { "OWN" } else { word });
        }
        out
    };
    match (recorded, ours) {
        (Value::Object(recorded), Value::Object(ours)) => recorded.iter().all(|(key, value)| ours.get(key).is_some_and(|o| same(value, o))),
        _ => normal(recorded) == normal(ours),
    }
}

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
        let ok = case["code"] == answer.code && (answer.body.is_null() || same(&case["response"], &answer.body)) && (warning.is_empty() || answer.warning == warning);
        if !ok {
            wrong.push(format!("{name}\n  recorded {} {}\n  ours     {} {} {}", case["code"], case["response"], answer.code, answer.body, answer.warning));
        }
    }
    assert!(wrong.is_empty(), "{} cases differ:\n{}", wrong.len(), wrong.join("\n"));
}

/// What is stored of an object that says little, and which of it each run has of its own.
#[tokio::test]
async fn create_examples() {
    let Some(spec) = spec("golden create examples") else { return };
    let cluster = server().await;
    let default = "/api/v1/namespaces/default";
    post(&cluster, &format!("{default}/serviceaccounts"), json!({"metadata": {"name": "default"}})).await;
    let mut wrong = Vec::new();
    for case in lines(&spec.join("create-examples.jsonl")) {
        let (name, input, mut stored) = (case["name"].as_str().unwrap_or(""), case["input"].clone(), case["stored"].clone());
        let (version, kind) = (input["apiVersion"].as_str().unwrap_or(""), input["kind"].as_str().unwrap_or(""));
        let (group, short) = version.split_once('/').unwrap_or(("", version));
        let resource = skiff_api::resource::find_kind(group, short, kind).unwrap_or_else(|| panic!("{version} {kind}"));
        let base = if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{version}") };
        let scope = if resource.namespaced { "/namespaces/default" } else { "" };
        let path = format!("{base}{scope}/{}", resource.plural);
        let request = Ask { method: "POST", path: &path, content_type: "application/json", body: input.to_string(), ..Ask::default() };
        let mut answer = ask(&cluster, &request, true).await;
        own(&mut stored);
        own(&mut answer.body);
        if answer.code != 201 || stored != answer.body {
            wrong.push(format!("{name}\n  recorded {stored}\n  ours     {} {}", answer.code, answer.body));
        }
    }
    assert!(wrong.is_empty(), "{} objects differ:\n{}", wrong.len(), wrong.join("\n"));
}

/// Takes out of an object what each run has of its own, and what the account's admission adds (it was off in the record).
fn own(object: &mut Value) {
    let uid = object["metadata"]["uid"].as_str().unwrap_or("").to_owned();
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.retain(|key, _| !matches!(key.as_str(), "uid" | "creationTimestamp" | "managedFields" | "resourceVersion"));
    }
    if let Some(status) = object["status"].as_object_mut() {
        status.remove("lastPhaseTransitionTime");
    }
    let Some(spec) = object["spec"].as_object_mut() else { return };
    spec.retain(|key, _| !matches!(key.as_str(), "clusterIP" | "clusterIPs" | "serviceAccount" | "serviceAccountName" | "volumes"));
    if let Some(containers) = spec.get_mut("containers").and_then(Value::as_array_mut) {
        containers.iter_mut().filter_map(Value::as_object_mut).for_each(|c| drop(c.remove("volumeMounts")));
    }
    // A Job's selector and labels carry its uid.
    if !uid.is_empty() {
        let text = object.to_string().replace(&uid, "UID");
        *object = serde_json::from_str(&text).expect("still JSON");
    }
}

#[tokio::test]
async fn discovery() {
    let Some(spec) = spec("golden discovery") else { return };
    let cluster = server().await;
    let text = std::fs::read_to_string(spec.join("discovery.json")).expect("the file");
    let recorded: Value = serde_json::from_str(&text).expect("JSON");
    let recorded = &recorded["default"];
    let aggregated = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let mut asked = vec![
        ("/api".to_owned(), "", recorded["api"].clone()),
        ("/apis".to_owned(), "", recorded["apis"].clone()),
        ("/api".to_owned(), aggregated, recorded["agg_api"].clone()),
        ("/apis".to_owned(), aggregated, recorded["agg_apis"].clone()),
    ];
    for (version, list) in recorded["lists"].as_object().expect("lists") {
        let base = if version.contains('/') { "apis" } else { "api" };
        asked.push((format!("/{base}/{version}"), "", list.clone()));
    }
    for (path, accept, mut recorded) in asked {
        let mut answer = ask(&cluster, &Ask { method: "GET", path: &path, accept, ..Ask::default() }, true).await;
        for body in [&mut recorded, &mut answer.body] {
            if let Some(body) = body.as_object_mut() {
                body.remove("serverAddressByClientCIDRs");
            }
        }
        if let Some((at, recorded, ours)) = difference("", &recorded, &answer.body) {
            panic!("{path} {accept}: {at}: recorded {recorded}, ours {ours}");
        }
    }
}

/// The first place where two values differ.
fn difference(at: &str, recorded: &Value, ours: &Value) -> Option<(String, Value, Value)> {
    match (recorded, ours) {
        (Value::Object(r), Value::Object(o)) => {
            let keys: std::collections::BTreeSet<&String> = r.keys().chain(o.keys()).collect();
            keys.into_iter().find_map(|key| difference(&format!("{at}.{key}"), &recorded[key], &ours[key]))
        }
        (Value::Array(r), Value::Array(o)) if r.len() == o.len() => {
            r.iter().zip(o).enumerate().find_map(|(i, (r, o))| difference(&format!("{at}[{i}]"), r, o))
        }
        _ => (recorded != ours).then(|| (at.to_owned(), recorded.clone(), ours.clone())),
    }
}
