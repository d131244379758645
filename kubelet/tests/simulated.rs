//! Pods on the simulated runtime, from the API's side.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::FakeApi;
use serde_json::{Value, json};
use skiff_kubelet::runtime::simulated::Simulated;
use skiff_kubelet::{Config, Kubelet};
use tokio_util::sync::CancellationToken;

/// A kubelet of node `n`; it ends with the test.
fn start(api: &FakeApi) -> Arc<Simulated> {
    skiff_api::clock::set_virtual("2026-01-01T00:00:00Z".parse().unwrap());
    let runtime = Arc::new(Simulated::default());
    let mut config = Config::new("n", "test", std::env::temp_dir().join("skiff-kubelet-test"), [192, 168, 0, 1].into());
    config.pod_cidr = Some("10.244.0.0/20".into());
    config.max_pods = 1000;
    let kubelet = Kubelet::new(config, api.client(), runtime.clone(), CancellationToken::new());
    tokio::spawn(kubelet.run());
    runtime
}

fn spec(policy: &str) -> Value {
    json!({"restartPolicy": policy, "terminationGracePeriodSeconds": 30, "containers": [{"name": "a", "image": "i"}]})
}

fn phase(pod: &Value) -> &str {
    pod["status"]["phase"].as_str().unwrap_or_default()
}

fn is_ready(pod: &Value) -> bool {
    pod["status"]["conditions"].as_array().into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True")
}

#[tokio::test(start_paused = true)]
async fn a_node_registers_and_keeps_its_lease() {
    let api = FakeApi::new();
    start(&api);
    let node = api.until("the node", |o| o.all.get("nodes//n").cloned()).await;
    assert_eq!(node["metadata"]["labels"]["kubernetes.io/hostname"], "n");
    assert_eq!(node["spec"]["podCIDR"], "10.244.0.0/20");
    assert_eq!(node["status"]["nodeInfo"]["containerRuntimeVersion"], "simulated://0.1.0");
    let lease = |o: &common::Objects| o.all.get("leases/kube-node-lease/n").cloned();
    let first = api.until("the lease", lease).await;
    api.until("a renewal", |o| lease(o).filter(|l| l["spec"]["renewTime"] != first["spec"]["renewTime"])).await;
    assert_eq!(api.with(|o| o.requests.get("PATCH nodes").copied()), None, "a status that stays is not written again");
}

#[tokio::test(start_paused = true)]
async fn a_pod_runs_is_told_once_and_is_deleted() {
    let api = FakeApi::new();
    start(&api);
    api.put_pod("n", "p", spec("Always"), json!({}));
    let pod = api.until_pod("p", "ready", is_ready).await;
    assert_eq!(phase(&pod), "Running");
    assert_eq!(pod["status"]["podIP"], "10.244.0.2");
    assert_eq!(pod["status"]["hostIP"], "192.168.0.1");
    assert_eq!(pod["status"]["observedGeneration"], 1);
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(api.with(|o| o.requests["PATCH pods"]), 1, "one write brought it up, none since");
    api.delete_pod("p", 30);
    api.until_gone("p").await;
}

#[tokio::test(start_paused = true)]
async fn pods_that_may_end_do() {
    let api = FakeApi::new();
    start(&api);
    api.put_pod("n", "good", spec("Never"), json!({}));
    api.put_pod("n", "bad", spec("Never"), json!({"skiff.dev/exit-code": "3", "skiff.dev/exit-after": "5s"}));
    api.until_pod("good", "Succeeded", |p| phase(p) == "Succeeded").await;
    let bad = api.until_pod("bad", "Failed", |p| phase(p) == "Failed").await;
    assert_eq!(bad["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"], 3);
}

#[tokio::test(start_paused = true)]
async fn crashes_back_off() {
    let api = FakeApi::new();
    start(&api);
    api.put_pod("n", "p", spec("Always"), json!({"skiff.dev/exit-code": "1", "skiff.dev/exit-after": "1s"}));
    let waiting = |pod: &Value| pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "CrashLoopBackOff";
    let pod = api.until_pod("p", "CrashLoopBackOff", waiting).await;
    assert_eq!(phase(&pod), "Running");
    let started = tokio::time::Instant::now();
    let restarts = |pod: &Value| pod["status"]["containerStatuses"][0]["restartCount"].as_i64().unwrap_or_default();
    api.until_pod("p", "five restarts", |p| restarts(p) >= 5).await;
    // 10, 20, 40 and 80 seconds of waiting, and a second of running between.
    assert!(started.elapsed() > Duration::from_secs(150), "{:?}", started.elapsed());
    let events = api.events("p");
    assert!(events.iter().any(|e| e.starts_with("BackOff: Back-off restarting failed container a in pod p_default(")), "{events:?}");
}

#[tokio::test(start_paused = true)]
async fn readiness_follows_annotations() {
    let api = FakeApi::new();
    start(&api);
    api.put_pod("n", "p", spec("Always"), json!({"skiff.dev/ready-delay": "never"}));
    let pod = api.until_pod("p", "Running", |p| phase(p) == "Running").await;
    assert!(!is_ready(&pod));
    let mut pod = pod;
    pod["metadata"]["annotations"] = json!({"skiff.dev/ready-delay": "10s"});
    api.put("pods", pod);
    api.until_pod("p", "ready", is_ready).await;
}

#[tokio::test(start_paused = true)]
async fn a_deadline_ends_a_pod() {
    let api = FakeApi::new();
    start(&api);
    let mut spec = spec("Always");
    spec["activeDeadlineSeconds"] = json!(20);
    api.put_pod("n", "p", spec, json!({}));
    let pod = api.until_pod("p", "Failed", |p| phase(p) == "Failed").await;
    assert_eq!(pod["status"]["reason"], "DeadlineExceeded");
}

#[tokio::test(start_paused = true)]
async fn failures_of_the_runtime_are_told_and_retried() {
    let api = FakeApi::new();
    start(&api);
    api.put_pod("n", "p", spec("Always"), json!({"skiff.dev/fail": "create"}));
    let waiting = |pod: &Value| pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "CreateContainerError";
    let mut pod = api.until_pod("p", "an error", waiting).await;
    pod["metadata"]["annotations"] = json!({});
    api.put("pods", pod);
    api.until_pod("p", "ready", is_ready).await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_does_not_fit_is_rejected() {
    let api = FakeApi::new();
    start(&api);
    let mut large = spec("Always");
    large["containers"][0]["resources"] = json!({"requests": {"cpu": "9"}});
    api.put_pod("n", "large", large, json!({}));
    let pod = api.until_pod("large", "Failed", |p| phase(p) == "Failed").await;
    assert_eq!(pod["status"]["reason"], "OutOfcpu");
    assert_eq!(pod["status"]["message"], "Pod was rejected: Node didn't have enough resource: cpu, requested: 9000, used: 0, capacity: 8000");
    let mut elsewhere = spec("Always");
    elsewhere["nodeSelector"] = json!({"disk": "fast"});
    api.put_pod("n", "elsewhere", elsewhere, json!({}));
    let pod = api.until_pod("elsewhere", "Failed", |p| phase(p) == "Failed").await;
    assert_eq!(pod["status"]["reason"], "NodeAffinity");
}

#[tokio::test(start_paused = true)]
async fn a_thousand_pods() {
    let api = FakeApi::new();
    start(&api);
    for n in 0..1000 {
        api.put_pod("n", &format!("p{n}"), spec("Always"), json!({}));
    }
    let ready = |o: &common::Objects| o.all.iter().filter(|(key, pod)| key.starts_with("pods/") && is_ready(pod)).count();
    api.until("all ready", |o| (ready(o) == 1000).then_some(())).await;
    assert_eq!(api.with(|o| o.requests["PATCH pods"]), 1000);
}
