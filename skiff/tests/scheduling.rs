//! The scheduler in a whole cluster within this process.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::api::scheduling::v1::PriorityClass;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::runtime::wait::await_condition;
use kube::{Api, Client};
use serde_json::{Value, json};
use skiff::{Cluster, Options};

/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

async fn cluster(nodes: usize) -> (Cluster, Client) {
    let _ = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_test_writer()
        .try_init();
    let cluster = Cluster::with(Options { nodes, ..Options::default() }).await.expect("a cluster");
    cluster.nodes_ready(PATIENCE).await.expect("nodes");
    let client = cluster.admin();
    (cluster, client)
}

fn pod(name: &str, spec: Value) -> Pod {
    let mut value = json!({ "metadata": { "name": name }, "spec": { "containers": [{ "name": "c", "image": "i" }] } });
    json_patch::merge(&mut value["spec"], &spec);
    serde_json::from_value(value).expect("a pod")
}

fn asks(cpu: &str) -> Value {
    json!({ "containers": [{ "name": "c", "image": "i", "resources": { "requests": { "cpu": cpu } } }] })
}

async fn until(api: &Api<Pod>, name: &str, what: &str, holds: impl Fn(Option<&Pod>) -> bool) {
    let waited = tokio::time::timeout(PATIENCE, await_condition(api.clone(), name, holds)).await;
    match waited {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => panic!("{name} could not be watched: {error}"),
        Err(_) => {
            let now = api.get_opt(name).await.ok().flatten();
            panic!("{name}: not {what}: {:#?}", now.map(|p| (p.spec.and_then(|s| s.node_name), p.status)));
        }
    }
}

fn condition(pod: Option<&Pod>, type_: &str) -> (String, String) {
    let found = pod.and_then(|p| skiff_api::typed::pods::condition(p, type_));
    found.map(|c| (c.reason.clone().unwrap_or_default(), c.message.clone().unwrap_or_default())).unwrap_or_default()
}

fn is_assigned(pod: Option<&Pod>) -> bool {
    pod.is_some_and(|p| !skiff_api::typed::pods::node_name(p).is_empty())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_waits_until_something_helps() {
    let (_cluster, client) = cluster(2).await;
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let nodes: Api<Node> = Api::all(client.clone());
    pods.create(&PostParams::default(), &pod("picky", json!({ "nodeSelector": { "disk": "ssd" } }))).await.expect("created");
    let why = "0/2 nodes are available: 2 node(s) didn't match Pod's node affinity/selector. \
               preemption: 0/2 nodes are available: 2 Preemption is not helpful for scheduling.";
    let refused = |p: Option<&Pod>| condition(p, "PodScheduled") == ("Unschedulable".into(), why.into());
    until(&pods, "picky", "refused", refused).await;
    // The event is written beside the condition.
    tokio::time::sleep(Duration::from_millis(50)).await;
    let events: Api<Event> = Api::default_namespaced(client.clone());
    let told = events.list(&ListParams::default()).await.expect("events");
    let told = told.items.iter().find(|e| e.note.as_deref() == Some(why)).expect("an event");
    let by = (told.reason.as_deref(), told.reporting_controller.as_deref());
    assert_eq!(by, (Some("FailedScheduling"), Some("default-scheduler")));
    let label = json!({ "metadata": { "labels": { "disk": "ssd" } } });
    nodes.patch("skiff-1", &PatchParams::default(), &Patch::Merge(label)).await.expect("labelled");
    until(&pods, "picky", "assigned", is_assigned).await;
    let node = pods.get("picky").await.expect("a pod").spec.and_then(|s| s.node_name);
    assert_eq!(node.as_deref(), Some("skiff-1"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_important_pod_gets_room() {
    let (_cluster, client) = cluster(1).await;
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let classes: Api<PriorityClass> = Api::all(client.clone());
    let class = json!({ "metadata": { "name": "high" }, "value": 1000 });
    classes.create(&PostParams::default(), &serde_json::from_value(class).expect("a class")).await.expect("created");
    pods.create(&PostParams::default(), &pod("low", asks("6"))).await.expect("created");
    until(&pods, "low", "assigned", is_assigned).await;
    let mut high = asks("6");
    high["priorityClassName"] = json!("high");
    pods.create(&PostParams::default(), &pod("high", high)).await.expect("created");
    until(&pods, "low", "gone", |p| p.is_none()).await;
    until(&pods, "high", "assigned", is_assigned).await;
    let events: Api<Event> = Api::default_namespaced(client.clone());
    let told = events.list(&ListParams::default()).await.expect("events");
    let told = told.items.iter().find(|e| e.reason.as_deref() == Some("Preempted")).expect("an event");
    let uid = pods.get("high").await.expect("a pod").metadata.uid.unwrap_or_default();
    assert_eq!(told.note, Some(format!("Preempted by pod {uid} on node skiff-0")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gated_pod_is_held_back() {
    let (_cluster, client) = cluster(1).await;
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    pods.create(&PostParams::default(), &pod("gated", json!({ "schedulingGates": [{ "name": "example.com/wait" }] }))).await.expect("created");
    pods.create(&PostParams::default(), &pod("free", json!({}))).await.expect("created");
    until(&pods, "free", "assigned", is_assigned).await;
    assert!(!is_assigned(pods.get_opt("gated").await.expect("a pod").as_ref()));
    let open = json!({ "spec": { "schedulingGates": [] } });
    pods.patch("gated", &PatchParams::default(), &Patch::Merge(open)).await.expect("opened");
    until(&pods, "gated", "assigned", is_assigned).await;
}

/// Not a benchmark: only tells when something is slower by an order of magnitude.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_pods_are_placed_on_many_nodes() {
    let (_cluster, client) = cluster(0).await;
    let nodes: Api<Node> = Api::all(client.clone());
    for i in 0..200 {
        let value = json!({ "metadata": { "name": format!("n{i}"), "labels": { "kubernetes.io/hostname": format!("n{i}") } },
                            "status": { "allocatable": { "cpu": "8", "memory": "32Gi", "pods": "110" },
                                        "conditions": [{ "type": "Ready", "status": "True" }] } });
        nodes.create(&PostParams::default(), &serde_json::from_value(value).expect("a node")).await.expect("created");
    }
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let start = Instant::now();
    for i in 0..400 {
        pods.create(&PostParams::default(), &pod(&format!("p{i}"), asks("100m"))).await.expect("created");
    }
    for i in 0..400 {
        until(&pods, &format!("p{i}"), "assigned", is_assigned).await;
    }
    println!("400 pods created and placed in {:?}", start.elapsed());
}
