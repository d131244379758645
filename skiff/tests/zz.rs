use std::time::Duration;
use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, PostParams, WatchParams, WatchEvent};
use kube::Api;
use serde_json::json;
use skiff::{Cluster, Options};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn zz() {
    let cluster = Cluster::with(Options { nodes: 1, ..Options::default() }).await.expect("a cluster");
    let client = cluster.admin();
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let p: Pod = serde_json::from_value(json!({"metadata":{"name":"x"},"spec":{"containers":[{"name":"c","image":"v"}]}})).unwrap();
    let mut w = pods.watch(&WatchParams::default(), "0").await.unwrap().boxed();
    tokio::spawn(async move { while let Some(e) = w.next().await { match e {
        Ok(WatchEvent::Added(p)) => println!("ADD {:?} {:?}", p.metadata.resource_version, p.metadata.deletion_timestamp),
        Ok(WatchEvent::Modified(p)) => println!("MOD {:?} {:?} {:?} {:?}", p.metadata.resource_version, p.metadata.deletion_timestamp, p.metadata.deletion_grace_period_seconds, p.status.unwrap().container_statuses.map(|c| c[0].state.clone())),
        Ok(WatchEvent::Deleted(p)) => println!("DEL {:?}", p.metadata.resource_version),
        e => println!("{e:?}") } } });
    pods.create(&PostParams::default(), &p).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1000)).await;
    let d = pods.delete("x", &DeleteParams::default()).await.unwrap();
    println!("deleted: {:?}", d.left().map(|p| (p.metadata.deletion_timestamp, p.metadata.resource_version)));
    tokio::time::sleep(Duration::from_millis(5000)).await;
}
