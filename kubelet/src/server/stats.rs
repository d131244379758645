//! Figures about the node's pods.

use std::fmt::Write;

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Json, Response};
use futures::future::join_all;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};
use skiff_api::clock;

use super::Shared;
use crate::context::Context;
use crate::pod;
use crate::runtime::{Container, ContainerState, PodRef, Usage};

/// `GET /pods`: the pods that the kubelet knows.
pub(super) async fn pods(State(ctx): Shared) -> Json<Value> {
    let items: Vec<Value> = ctx.all_pods().iter().map(|pod| serde_json::to_value(pod.as_ref()).unwrap_or_default()).collect();
    Json(json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}))
}

/// A pod's running containers with what they use, where that is measured.
struct PodUsage {
    pod: PodRef,
    containers: Vec<(Container, Usage)>,
}

async fn usage(ctx: &Context) -> Vec<PodUsage> {
    let pods = ctx.all_pods();
    let measured = pods.iter().map(|pod| async {
        // A pod whose state can't be read now has no figures now.
        let state = ctx.runtime.pod_state(pod::uid(pod)).await.unwrap_or_default();
        let running = state.containers.into_iter().filter(|c| c.state == ContainerState::Running);
        let used = join_all(running.map(|c| async { ctx.runtime.usage(&c.id).await.ok().flatten().map(|usage| (c, usage)) })).await;
        PodUsage { pod: pod::pod_ref(pod), containers: used.into_iter().flatten().collect() }
    });
    join_all(measured).await
}

/// `GET /stats/summary`
pub(super) async fn summary(State(ctx): Shared) -> Json<Value> {
    let now = Time(clock::now());
    let figures = |cpu: u64, memory: u64| json!({"cpu": {"time": now, "usageCoreNanoSeconds": cpu}, "memory": {"time": now, "workingSetBytes": memory}});
    let merged = |mut to: Value, from: Value| {
        if let (Some(to), Value::Object(from)) = (to.as_object_mut(), from) {
            to.extend(from);
        }
        to
    };
    let pods = usage(&ctx).await.into_iter().map(|PodUsage { pod, containers }| {
        let sum = |of: fn(&Usage) -> u64| containers.iter().map(|(_, u)| of(u)).sum();
        let list: Vec<Value> = containers
            .iter()
            .map(|(c, u)| merged(json!({"name": c.name, "startTime": c.started_at.map(Time)}), figures(u.cpu_ns, u.memory)))
            .collect();
        let reference = json!({"name": pod.name, "namespace": pod.namespace, "uid": pod.uid});
        merged(json!({"podRef": reference, "containers": list}), figures(sum(|u| u.cpu_ns), sum(|u| u.memory)))
    });
    let pods: Vec<Value> = pods.collect();
    Json(json!({"node": {"nodeName": ctx.config.node_name}, "pods": pods}))
}

fn text(lines: String) -> Response {
    ([(CONTENT_TYPE, "text/plain; version=0.0.4")], lines).into_response()
}

/// `GET /metrics`: upstream's names for what there is.
pub(super) async fn metrics(State(ctx): Shared) -> Response {
    let pods = ctx.all_pods();
    let running = pods.iter().filter(|p| pod::phase(p) == Some("Running")).count();
    let of = |p: &&std::sync::Arc<k8s_openapi::api::core::v1::Pod>| {
        let statuses = p.status.iter().flat_map(|s| s.container_statuses.iter().flatten());
        statuses.filter(|c| c.state.as_ref().is_some_and(|s| s.running.is_some())).count()
    };
    let containers: usize = pods.iter().map(|p| of(&p)).sum();
    let node = &ctx.config.node_name;
    text(format!(
        "# HELP kubelet_node_name [ALPHA] The node's name. The count is always 1.\n# TYPE kubelet_node_name gauge\nkubelet_node_name{{node={node:?}}} 1\n\
         # HELP kubelet_running_containers [ALPHA] Number of containers currently running\n# TYPE kubelet_running_containers gauge\n\
         kubelet_running_containers{{container_state=\"running\"}} {containers}\n\
         # HELP kubelet_running_pods [ALPHA] Number of pods that have a running pod sandbox\n# TYPE kubelet_running_pods gauge\nkubelet_running_pods {running}\n"
    ))
}

/// `GET /metrics/resource`: what metrics servers read.
pub(super) async fn resource_metrics(State(ctx): Shared) -> Response {
    let pods = usage(&ctx).await;
    let at = clock::now().as_millisecond();
    let mut lines = String::new();
    let mut family = |name: &str, help: &str, kind: &str, value: &dyn Fn(&Container, &Usage) -> String| {
        // Writing to a string doesn't fail.
        let _ = writeln!(lines, "# HELP {name} [STABLE] {help}\n# TYPE {name} {kind}");
        for PodUsage { pod, containers } in &pods {
            for (container, usage) in containers {
                let labels = format!("container={:?},namespace={:?},pod={:?}", container.name, pod.namespace, pod.name);
                let _ = writeln!(lines, "{name}{{{labels}}} {} {at}", value(container, usage));
            }
        }
    };
    let cpu = "Cumulative cpu time consumed by the container in core-seconds";
    family("container_cpu_usage_seconds_total", cpu, "counter", &|_, u| format!("{}", u.cpu_ns as f64 / 1e9));
    let memory = "Current working set of the container in bytes";
    family("container_memory_working_set_bytes", memory, "gauge", &|_, u| u.memory.to_string());
    let started = "Start time of the container since unix epoch in seconds";
    family("container_start_time_seconds", started, "gauge", &|c, _| c.started_at.map_or(0.0, |t| t.as_millisecond() as f64 / 1e3).to_string());
    text(lines)
}
