//! Roles, quotas and mirrored endpoints: what keeps them true, in a whole cluster within this process.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Endpoints, Pod, ResourceQuota, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use kube::Api;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::wait::await_condition;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use skiff::{Cluster, Options};
use skiff_store::Memory;

/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(30);

fn object<K: DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).expect("an object")
}

async fn create<K>(api: &Api<K>, value: Value) -> K
where
    K: kube::Resource + Clone + Debug + DeserializeOwned + serde::Serialize,
{
    api.create(&PostParams::default(), &object(value)).await.expect("created")
}

async fn until<K>(api: &Api<K>, name: &str, what: &str, holds: impl Fn(Option<&K>) -> bool)
where
    K: kube::Resource + Clone + Debug + DeserializeOwned + serde::Serialize + Send + 'static,
{
    let waited = tokio::time::timeout(PATIENCE, await_condition(api.clone(), name, holds)).await;
    if !matches!(waited, Ok(Ok(_))) {
        panic!("{name}: not {what}: {:#?}", api.get_opt(name).await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_has_the_rules_of_its_parts() {
    let cluster = Cluster::start().await.expect("a cluster");
    let roles: Api<ClusterRole> = Api::all(cluster.admin());
    let part = json!({
        "metadata": {"name": "widgets-view", "labels": {"rbac.authorization.k8s.io/aggregate-to-view": "true"}},
        "rules": [{"apiGroups": ["example.com"], "resources": ["widgets"], "verbs": ["get"]}],
    });
    create(&roles, part).await;
    let has = |role: Option<&ClusterRole>| {
        let mut rules = role.iter().flat_map(|r| r.rules.iter().flatten());
        rules.any(|rule| rule.resources.as_ref().is_some_and(|r| r.contains(&"widgets".to_owned())))
    };
    // View is part of edit, which is part of admin.
    until(&roles, "admin", "given the rule", has).await;
    roles.delete("widgets-view", &DeleteParams::default()).await.expect("deleted");
    until(&roles, "admin", "rid of the rule", |role| !has(role)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_policy_is_repaired_at_the_next_start() {
    let store = Arc::new(Memory::new());
    let options = || Options { store: store.clone(), nodes: 0, ..Options::default() };
    let cluster = Cluster::with(options()).await.expect("a cluster");
    let roles: Api<ClusterRole> = Api::all(cluster.admin());
    let bindings: Api<ClusterRoleBinding> = Api::all(cluster.admin());
    let before = roles.get("system:node-proxier").await.expect("a role");
    let more = json!({"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]});
    let patch = |value: Value| Patch::Merge(value);
    roles.patch("system:node-proxier", &PatchParams::default(), &patch(json!({"rules": [more]}))).await.expect("changed");
    let alone = json!({"metadata": {"annotations": {"rbac.authorization.kubernetes.io/autoupdate": "false"}}, "rules": []});
    roles.patch("system:kube-dns", &PatchParams::default(), &patch(alone)).await.expect("changed");
    bindings.patch("system:kube-scheduler", &PatchParams::default(), &patch(json!({"subjects": []}))).await.expect("changed");
    cluster.stop().await;

    let cluster = Cluster::with(options()).await.expect("the cluster again");
    let roles: Api<ClusterRole> = Api::all(cluster.admin());
    let bindings: Api<ClusterRoleBinding> = Api::all(cluster.admin());
    let rules = roles.get("system:node-proxier").await.expect("a role").rules.unwrap_or_default();
    assert!(before.rules.unwrap_or_default().iter().all(|rule| rules.contains(rule)) && rules.contains(&object(more)), "{rules:?}");
    assert!(roles.get("system:kube-dns").await.expect("a role").rules.unwrap_or_default().is_empty());
    let subjects = bindings.get("system:kube-scheduler").await.expect("a binding").subjects.unwrap_or_default();
    assert_eq!(subjects.first().map(|s| s.name.as_str()), Some("system:kube-scheduler"));
    // Another start finds nothing to do.
    let versions = |roles: Vec<ClusterRole>| roles.into_iter().map(|r| r.metadata.resource_version).collect::<Vec<_>>();
    let once = versions(roles.list(&ListParams::default()).await.expect("roles").items);
    cluster.stop().await;
    let cluster = Cluster::with(options()).await.expect("the cluster once more");
    let roles: Api<ClusterRole> = Api::all(cluster.admin());
    assert_eq!(versions(roles.list(&ListParams::default()).await.expect("roles").items), once);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quota_says_what_is_used() {
    let cluster = Cluster::start().await.expect("a cluster");
    let client = cluster.admin();
    let quotas: Api<ResourceQuota> = Api::default_namespaced(client.clone());
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let pod = |name: &str| json!({
        "metadata": {"name": name},
        "spec": {"automountServiceAccountToken": false, "terminationGracePeriodSeconds": 0, "containers": [
            {"name": "c", "image": "x", "resources": {"requests": {"cpu": "500m"}}},
        ]},
    });
    let accounts: Api<k8s_openapi::api::core::v1::ServiceAccount> = Api::default_namespaced(client.clone());
    until(&accounts, "default", "made", |account| account.is_some()).await;
    create(&pods, pod("before")).await;
    create(&quotas, json!({"metadata": {"name": "q"}, "spec": {"hard": {"pods": "5", "requests.cpu": "2", "configmaps": "10"}}})).await;
    let used = |name: &'static str, amount: &'static str| {
        move |quota: Option<&ResourceQuota>| quota.and_then(|q| q.status.as_ref()?.used.as_ref()?.get(name).map(|u| u.0 == amount)).unwrap_or(false)
    };
    until(&quotas, "q", "counted", used("requests.cpu", "500m")).await;
    create(&pods, pod("after")).await;
    until(&quotas, "q", "charged", used("pods", "2")).await;
    pods.delete("before", &DeleteParams::default()).await.expect("deleted");
    until(&quotas, "q", "relieved of a pod", used("pods", "1")).await;
    until(&quotas, "q", "relieved of its share", used("requests.cpu", "500m")).await;
    // The cluster's own is one of them.
    create(&maps, json!({"metadata": {"name": "m"}})).await;
    until(&quotas, "q", "charged for a map", used("configmaps", "2")).await;
    maps.delete("m", &DeleteParams::default()).await.expect("deleted");
    until(&quotas, "q", "relieved of the map", used("configmaps", "1")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endpoints_of_ones_own_are_mirrored() {
    let cluster = Cluster::start().await.expect("a cluster");
    let client = cluster.admin();
    let services: Api<Service> = Api::default_namespaced(client.clone());
    let endpoints: Api<Endpoints> = Api::default_namespaced(client.clone());
    let slices: Api<EndpointSlice> = Api::default_namespaced(client.clone());
    create(&services, json!({"metadata": {"name": "db"}, "spec": {"ports": [{"port": 5432}]}})).await;
    let subset = json!({"addresses": [{"ip": "192.0.2.7"}], "ports": [{"port": 5432}]});
    create(&endpoints, json!({"metadata": {"name": "db"}, "subsets": [subset]})).await;
    let of = ListParams::default().labels("kubernetes.io/service-name=db,endpointslice.kubernetes.io/managed-by=endpointslicemirroring-controller.k8s.io");
    let addresses = async || -> Vec<String> {
        let list = slices.list(&of).await.expect("slices").items;
        list.into_iter().flat_map(|s| s.endpoints.unwrap_or_default()).flat_map(|e| e.addresses).collect()
    };
    let shown = async |expected: &[&str]| {
        let wait = async {
            while addresses().await != expected {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        assert!(tokio::time::timeout(PATIENCE, wait).await.is_ok(), "{:?} and not {expected:?}", addresses().await);
    };
    shown(&["192.0.2.7"]).await;
    let two = json!({"subsets": [{"addresses": [{"ip": "192.0.2.7"}, {"ip": "192.0.2.8"}], "ports": [{"port": 5432}]}]});
    endpoints.patch("db", &PatchParams::default(), &Patch::Merge(two)).await.expect("changed");
    shown(&["192.0.2.7", "192.0.2.8"]).await;
    // A Service that begins to select pods has slices of another controller's.
    services.patch("db", &PatchParams::default(), &Patch::Merge(json!({"spec": {"selector": {"app": "db"}}}))).await.expect("changed");
    shown(&[]).await;
}
