//! A cluster's first second, in which everything comes up at once.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::PostParams;
use kube::runtime::wait::await_condition;
use serde_json::json;
use skiff::Cluster;

/// Far more than a pod takes.
const PATIENCE: Duration = Duration::from_secs(20);
/// How many clusters begin. `SKIFF_BEGINNINGS` asks for more.
const BEGINNINGS: usize = 10;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_of_the_first_moment_comes_to_run() {
    let wanted = std::env::var("SKIFF_BEGINNINGS").ok().and_then(|n| n.parse().ok()).unwrap_or(BEGINNINGS);
    for beginning in 0..wanted {
        let cluster = Cluster::start().await.expect("a cluster");
        let pods: Api<Pod> = Api::default_namespaced(cluster.admin());
        // Moments of all kinds: before the node is registered, while it is, after.
        tokio::time::sleep(Duration::from_millis(u64::try_from(2 * (beginning % 10)).expect("small"))).await;
        // The account that pods have is made by a controller, which may not have come to it.
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "early"},
            "spec": {"automountServiceAccountToken": false, "containers": [{"name": "c", "image": "x"}]},
        }))
        .expect("a pod");
        while let Err(error) = pods.create(&PostParams::default(), &pod).await {
            let kube::Error::Api(status) = &error else { panic!("{error}") };
            assert_eq!(status.code, 403, "{error}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let runs = |pod: Option<&Pod>| pod.and_then(|p| p.status.as_ref()?.phase.as_deref()) == Some("Running");
        let waited = tokio::time::timeout(PATIENCE, await_condition(pods.clone(), "early", runs)).await;
        if waited.is_err() {
            panic!("beginning {beginning}: {:#?}", pods.get("early").await);
        }
        cluster.stop().await;
    }
}
