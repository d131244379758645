//! Workloads in a whole cluster within this process.

use std::fmt::Debug;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Endpoints, Namespace, Node, PersistentVolumeClaim, Pod, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, PropagationPolicy};
use kube::runtime::wait::await_condition;
use kube::{Api, Client};
use serde::de::DeserializeOwned;
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
    let client = cluster.admin();
    (cluster, client)
}

fn object<K: DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).expect("an object")
}

fn deployment(name: &str, replicas: i32) -> Deployment {
    object(json!({
        "metadata": { "name": name },
        "spec": {
            "replicas": replicas, "selector": { "matchLabels": { "app": name } },
            "template": {
                "metadata": { "labels": { "app": name } },
                "spec": { "containers": [{ "name": "c", "image": "v1", "ports": [{ "name": "http", "containerPort": 8080 }] }] },
            },
        },
    }))
}

/// Waits until `holds` of the object; none when it isn't there.
async fn until<K>(api: &Api<K>, name: &str, what: &str, holds: impl Fn(Option<&K>) -> bool)
where
    K: kube::Resource + Clone + Debug + DeserializeOwned + serde::Serialize + Send + 'static,
{
    let waited = tokio::time::timeout(PATIENCE, await_condition(api.clone(), name, holds)).await;
    match waited {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => panic!("{name} could not be watched: {error}"),
        Err(_) => {
            let mut now = serde_json::to_value(api.get_opt(name).await.ok()).expect("JSON");
            skiff_api::value::remove(&mut now, &["metadata", "managedFields"]);
            panic!("{name}: not {what}: {now:#}");
        }
    }
}

async fn create<K>(api: &Api<K>, object: &K)
where
    K: kube::Resource + Clone + Debug + DeserializeOwned + serde::Serialize,
{
    api.create(&PostParams::default(), object).await.expect("created");
}

fn available(deployment: Option<&Deployment>) -> i32 {
    deployment.and_then(|d| d.status.as_ref()).and_then(|s| s.available_replicas).unwrap_or(0)
}

async fn names<K>(api: &Api<K>, labels: &str) -> Vec<String>
where
    K: kube::Resource + Clone + Debug + DeserializeOwned,
{
    let list = api.list(&ListParams::default().labels(labels)).await.expect("a list");
    list.items.iter().filter_map(|o| o.meta().name.clone()).collect()
}

/// Waits until no object has the labels.
async fn until_none<K>(api: &Api<K>, labels: &str)
where
    K: kube::Resource + Clone + Debug + DeserializeOwned + serde::Serialize + Send + 'static,
{
    for name in names(api, labels).await {
        until(api, &name, "gone", |o| o.is_none()).await;
    }
    assert_eq!(names(api, labels).await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployment_comes_up_rolls_over_and_goes() {
    let (_cluster, client) = cluster(3).await;
    let deployments: Api<Deployment> = Api::default_namespaced(client.clone());
    let sets: Api<ReplicaSet> = Api::default_namespaced(client.clone());
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    create(&deployments, &deployment("web", 5)).await;
    until(&deployments, "web", "available", |d| available(d) == 5).await;
    let image = json!({ "spec": { "template": { "spec": { "containers": [{ "name": "c", "image": "v2" }] } } } });
    deployments.patch("web", &PatchParams::default(), &Patch::Strategic(image)).await.expect("a new image");
    let rolled = |d: Option<&Deployment>| {
        let status = d.and_then(|d| d.status.clone()).unwrap_or_default();
        let observed = status.observed_generation == d.and_then(|d| d.metadata.generation);
        observed && (status.updated_replicas, status.replicas, status.available_replicas) == (Some(5), Some(5), Some(5))
    };
    until(&deployments, "web", "rolled over", rolled).await;
    let web = deployments.get("web").await.expect("web");
    assert_eq!(web.metadata.annotations.unwrap_or_default()["deployment.kubernetes.io/revision"], "2");
    let images: Vec<_> = pods
        .list(&ListParams::default().labels("app=web"))
        .await
        .expect("pods")
        .into_iter()
        .filter(|p| p.metadata.deletion_timestamp.is_none())
        .filter_map(|p| p.spec.and_then(|s| s.containers[0].image.clone()))
        .collect();
    assert_eq!(images, ["v2"; 5]);
    deployments.delete("web", &DeleteParams::background()).await.expect("deleted");
    until_none(&sets, "app=web").await;
    until_none(&pods, "app=web").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dependents_go_as_the_deletion_says() {
    let (_cluster, client) = cluster(1).await;
    let deployments: Api<Deployment> = Api::default_namespaced(client.clone());
    let sets: Api<ReplicaSet> = Api::default_namespaced(client.clone());
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
    for name in ["orphaned", "foreground"] {
        create(&deployments, &deployment(name, 2)).await;
        until(&deployments, name, "available", |d| available(d) == 2).await;
    }
    let orphan = DeleteParams { propagation_policy: Some(PropagationPolicy::Orphan), ..DeleteParams::default() };
    deployments.delete("orphaned", &orphan).await.expect("deleted");
    until(&deployments, "orphaned", "gone", |d| d.is_none()).await;
    let left = sets.list(&ListParams::default().labels("app=orphaned")).await.expect("sets");
    assert_eq!(left.items.len(), 1, "the set stays");
    assert!(left.items[0].metadata.owner_references.as_ref().is_none_or(Vec::is_empty), "and is nobody's");

    deployments.delete("foreground", &DeleteParams::foreground()).await.expect("deleted");
    until(&deployments, "foreground", "gone", |d| d.is_none()).await;
    assert_eq!(names(&sets, "app=foreground").await, Vec::<String>::new(), "its sets went before it");
    assert_eq!(names(&pods, "app=foreground").await, Vec::<String>::new(), "and their pods");

    let owner = json!([{ "apiVersion": "v1", "kind": "ConfigMap", "name": "never", "uid": "00000000-0000-4000-8000-000000000000" }]);
    create(&maps, &object(json!({ "metadata": { "name": "stray", "ownerReferences": owner } }))).await;
    until(&maps, "stray", "gone", |m| m.is_none()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_has_what_it_needs_and_goes_with_its_content() {
    let (_cluster, client) = cluster(1).await;
    let namespaces: Api<Namespace> = Api::all(client.clone());
    create(&namespaces, &object(json!({ "metadata": { "name": "work" } }))).await;
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), "work");
    until(&accounts, "default", "there", |a| a.is_some()).await;
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), "work");
    create(&deployments, &deployment("web", 3)).await;
    until(&deployments, "web", "available", |d| available(d) == 3).await;
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "work");
    let certificate = |m: &ConfigMap| m.data.as_ref().and_then(|d| d.get("ca.crt")).cloned().unwrap_or_default();
    until(&maps, "kube-root-ca.crt", "published", |m| m.is_some_and(|m| certificate(m).starts_with("-----BEGIN"))).await;
    create(&maps, &object(json!({ "metadata": { "name": "held", "finalizers": ["example.com/hold"] } }))).await;
    namespaces.delete("work", &DeleteParams::default()).await.expect("deleted");
    let held = |n: Option<&Namespace>| {
        let conditions = n.and_then(|n| n.status.as_ref()).and_then(|s| s.conditions.as_ref());
        let message = conditions.and_then(|all| all.iter().find(|c| c.type_ == "NamespaceFinalizersRemaining"));
        message.and_then(|c| c.message.as_deref())
            == Some("Some content in the namespace has finalizers remaining: example.com/hold in 1 resource instances")
    };
    until(&namespaces, "work", "held", held).await;
    let release = json!({ "metadata": { "finalizers": null } });
    maps.patch("held", &PatchParams::default(), &Patch::Merge(release)).await.expect("released");
    until(&namespaces, "work", "gone", |n| n.is_none()).await;
    let pods: Api<Pod> = Api::namespaced(client.clone(), "work");
    assert_eq!(names(&pods, "app=web").await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_finds_its_pods() {
    let (_cluster, client) = cluster(1).await;
    let services: Api<Service> = Api::default_namespaced(client.clone());
    let endpoints: Api<Endpoints> = Api::default_namespaced(client.clone());
    let slices: Api<EndpointSlice> = Api::default_namespaced(client.clone());
    let deployments: Api<Deployment> = Api::default_namespaced(client.clone());
    let service = json!({ "metadata": { "name": "web" }, "spec": { "selector": { "app": "web" }, "ports": [{ "port": 80, "targetPort": "http" }] } });
    create(&services, &object(service)).await;
    create(&deployments, &deployment("web", 4)).await;
    let ready = |e: Option<&Endpoints>| {
        let subsets = e.and_then(|e| e.subsets.clone()).unwrap_or_default();
        subsets.len() == 1
            && subsets[0].addresses.as_ref().is_some_and(|a| a.len() == 4)
            && subsets[0].ports.as_ref().is_some_and(|p| p[0].port == 8080)
    };
    until(&endpoints, "web", "complete", ready).await;
    until(&deployments, "web", "available", |d| available(d) == 4).await;
    let of_service = "kubernetes.io/service-name=web";
    let name = names(&slices, of_service).await.pop().expect("a slice");
    let complete = |s: Option<&EndpointSlice>| {
        let all = s.and_then(|s| s.endpoints.clone()).unwrap_or_default();
        all.iter().filter(|e| e.conditions.as_ref().and_then(|c| c.ready) == Some(true)).count() == 4
    };
    until(&slices, &name, "complete", complete).await;
    services.delete("web", &DeleteParams::default()).await.expect("deleted");
    until(&endpoints, "web", "gone", |e| e.is_none()).await;
    until_none(&slices, of_service).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_runs_to_its_end_and_expires() {
    let (_cluster, client) = cluster(1).await;
    let jobs: Api<Job> = Api::default_namespaced(client.clone());
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let annotations = json!({ "skiff.dev/exit-after": "1ms" });
    let template = json!({ "metadata": { "annotations": annotations },
                           "spec": { "restartPolicy": "Never", "containers": [{ "name": "c", "image": "v1" }] } });
    let spec = json!({ "completions": 5, "parallelism": 2, "completionMode": "Indexed", "template": template });
    create(&jobs, &object(json!({ "metadata": { "name": "work" }, "spec": spec }))).await;
    let complete = |j: Option<&Job>| {
        let status = j.and_then(|j| j.status.clone()).unwrap_or_default();
        status.succeeded == Some(5) && status.conditions.iter().flatten().any(|c| c.type_ == "Complete" && c.status == "True")
    };
    until(&jobs, "work", "complete", complete).await;
    let patch = json!({ "spec": { "ttlSecondsAfterFinished": 0 } });
    jobs.patch("work", &PatchParams::default(), &Patch::Merge(patch)).await.expect("patched");
    until(&jobs, "work", "gone", |j| j.is_none()).await;
    until_none(&pods, "job-name=work").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_set_is_on_every_node_and_rolls_over() {
    let (_cluster, client) = cluster(3).await;
    let sets: Api<DaemonSet> = Api::default_namespaced(client.clone());
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let template = json!({ "metadata": { "labels": { "app": "agent" } }, "spec": { "containers": [{ "name": "c", "image": "v1" }] } });
    let spec = json!({ "selector": { "matchLabels": { "app": "agent" } }, "template": template });
    create(&sets, &object(json!({ "metadata": { "name": "agent" }, "spec": spec }))).await;
    let complete = |d: Option<&DaemonSet>| {
        let status = d.and_then(|d| d.status.clone()).unwrap_or_default();
        let observed = status.observed_generation == d.and_then(|d| d.metadata.generation);
        observed && (status.updated_number_scheduled, status.number_available) == (Some(3), Some(3))
    };
    until(&sets, "agent", "complete", complete).await;
    let image = json!({ "spec": { "template": { "spec": { "containers": [{ "name": "c", "image": "v2" }] } } } });
    sets.patch("agent", &PatchParams::default(), &Patch::Strategic(image)).await.expect("a new image");
    until(&sets, "agent", "rolled over", complete).await;
    let mut nodes: Vec<_> = pods
        .list(&ListParams::default().labels("app=agent"))
        .await
        .expect("pods")
        .into_iter()
        .filter(|p| p.metadata.deletion_timestamp.is_none())
        .filter_map(|p| p.spec.and_then(|s| s.node_name))
        .collect();
    nodes.sort();
    assert_eq!(nodes, ["skiff-0", "skiff-1", "skiff-2"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stateful_set_comes_up_in_order() {
    let (_cluster, client) = cluster(2).await;
    let sets: Api<StatefulSet> = Api::default_namespaced(client.clone());
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let template = json!({ "metadata": { "labels": { "app": "db" } }, "spec": { "containers": [{ "name": "c", "image": "v1" }] } });
    let spec = json!({ "replicas": 3, "serviceName": "db", "selector": { "matchLabels": { "app": "db" } }, "template": template });
    create(&sets, &object(json!({ "metadata": { "name": "db" }, "spec": spec }))).await;
    let complete = |replicas: i32| {
        move |s: Option<&StatefulSet>| {
            let status = s.and_then(|s| s.status.clone()).unwrap_or_default();
            let observed = status.observed_generation == s.and_then(|s| s.metadata.generation);
            observed && status.replicas == replicas && status.ready_replicas == Some(replicas) && status.current_revision == status.update_revision
        }
    };
    until(&sets, "db", "complete", complete(3)).await;
    let all = pods.list(&ListParams::default().labels("app=db")).await.expect("pods");
    let names: Vec<_> = all.items.iter().filter_map(|p| p.metadata.name.as_deref()).collect();
    assert_eq!(names, ["db-0", "db-1", "db-2"]);
    let image = json!({ "spec": { "replicas": 2, "template": { "spec": { "containers": [{ "name": "c", "image": "v2" }] } } } });
    sets.patch("db", &PatchParams::default(), &Patch::Strategic(image)).await.expect("a new image");
    until(&sets, "db", "rolled over", complete(2)).await;
    for name in ["db-0", "db-1"] {
        let pod = pods.get(name).await.expect("a pod");
        assert_eq!(pod.spec.and_then(|s| s.containers[0].image.clone()).as_deref(), Some("v2"), "{name}");
    }
    until(&pods, "db-2", "gone", |p| p.is_none()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_stays_while_a_pod_uses_it() {
    let (_cluster, client) = cluster(1).await;
    let nodes: Api<Node> = Api::all(client.clone());
    let node = nodes.list(&ListParams::default()).await.expect("nodes").items.remove(0).metadata.name;
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let claims: Api<PersistentVolumeClaim> = Api::default_namespaced(client.clone());
    for name in ["free", "used"] {
        let spec = json!({ "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1Gi" } } });
        create(&claims, &object(json!({ "metadata": { "name": name }, "spec": spec }))).await;
    }
    let volume = json!({ "name": "v", "persistentVolumeClaim": { "claimName": "used" } });
    let spec = json!({ "nodeName": node, "containers": [{ "name": "c", "image": "x" }], "volumes": [volume] });
    create(&pods, &object(json!({ "metadata": { "name": "p" }, "spec": spec }))).await;
    for name in ["used", "free"] {
        claims.delete(name, &DeleteParams::default()).await.expect("deleted");
    }
    until(&claims, "free", "gone", |c| c.is_none()).await;
    assert!(claims.get("used").await.expect("a claim").metadata.deletion_timestamp.is_some());
    pods.delete("p", &DeleteParams::default().grace_period(0)).await.expect("deleted");
    until(&claims, "used", "gone", |c| c.is_none()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_cluster_writes_nothing() {
    let (_cluster, client) = cluster(2).await;
    let deployments: Api<Deployment> = Api::default_namespaced(client.clone());
    let services: Api<Service> = Api::default_namespaced(client.clone());
    create(&services, &object(json!({ "metadata": { "name": "web" }, "spec": { "selector": { "app": "web" }, "ports": [{ "port": 80 }] } }))).await;
    create(&deployments, &deployment("web", 5)).await;
    until(&deployments, "web", "available", |d| available(d) == 5).await;
    // What follows a rollout (last counts, events) comes to rest soon; from then on only leases are renewed.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let leases: Api<Lease> = Api::all(client.clone());
    let before = leases.list(&ListParams::default()).await.expect("leases");
    tokio::time::sleep(Duration::from_secs(3)).await;
    let after = leases.list(&ListParams::default()).await.expect("leases");
    let revision = |text: Option<String>| text.and_then(|t| t.parse::<u64>().ok()).expect("a revision");
    let renewed = after.items.iter().filter(|l| !before.items.iter().any(|b| b.metadata.resource_version == l.metadata.resource_version)).count();
    let written = revision(after.metadata.resource_version) - revision(before.metadata.resource_version);
    assert_eq!(written, renewed as u64, "only leases are written");
}
