//! Real containers: dockercoins end to end, and what kubectl does with running pods.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use serde_json::Value;
use skiff_e2e::up::{Up, eventually, needs_docker};

/// The five images, from this checkout.
fn build_images() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../dockercoins/images.sh");
    let built = Command::new(script).output().expect("build the images");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
}

/// GET by curl: the status code and the body.
fn get(url: &str) -> (String, String) {
    let output = Command::new("curl").args(["-s", "--max-time", "5", "-w", "\n%{http_code}", url]).output().expect("run curl");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (body, code) = text.rsplit_once('\n').unwrap_or(("", ""));
    (code.to_owned(), body.to_owned())
}

fn number(url: &str, key: &str) -> Result<i64, String> {
    let (code, body) = get(url);
    let json: Value = serde_json::from_str(&body).map_err(|_| format!("{code} {body}"))?;
    json[key].as_i64().ok_or(body)
}

fn hashes_in_ten_seconds(url: &str) -> i64 {
    let before = number(url, "hashes").expect("hashes");
    std::thread::park_timeout(Duration::from_secs(10));
    number(url, "hashes").expect("hashes") - before
}

#[test]
fn dockercoins_and_real_pods() {
    let Some(()) = needs_docker("dockercoins end to end") else { return };
    build_images();
    let up = Up::docker("e2e-coins", 88);
    let manifests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/dockercoins.yaml").display().to_string();
    up.ok(&["apply", "-f", &manifests]);
    for deployment in ["redis", "rng", "hasher", "worker", "webui"] {
        up.ok(&["rollout", "status", &format!("deployment/{deployment}"), "--timeout=90s"]);
    }
    let node = up.ok(&["get", "nodes", "-o", r#"jsonpath={.items[0].status.addresses[?(@.type=="InternalIP")].address}"#]);
    let port = up.ok(&["get", "svc", "webui", "-o", "jsonpath={.spec.ports[0].nodePort}"]);
    let url = format!("http://{node}:{port}/json");

    // Coins are found, and the page is there: through the NodePort, and the cluster IP.
    eventually("coins", || number(&url, "coins").and_then(|coins| if coins > 0 { Ok(()) } else { Err("none yet".into()) }));
    assert!(get(&format!("http://{node}:{port}/")).1.contains("<title>DockerCoins</title>"));
    let ip = up.ok(&["get", "svc", "webui", "-o", "jsonpath={.spec.clusterIP}"]);
    assert_eq!(get(&format!("http://{ip}/healthz")), ("200".into(), "ok\n".into()));

    // More workers and more rng make it faster.
    let slow = hashes_in_ten_seconds(&url);
    up.ok(&["scale", "deploy/rng", "--replicas=3"]);
    up.ok(&["scale", "deploy/worker", "--replicas=6"]);
    up.ok(&["rollout", "status", "deployment/rng", "--timeout=90s"]);
    up.ok(&["rollout", "status", "deployment/worker", "--timeout=90s"]);
    eventually("twice the speed", || {
        let fast = hashes_in_ten_seconds(&url);
        if fast >= 2 * slow { Ok(()) } else { Err(format!("{slow} then {fast}")) }
    });

    // Every pod that is killed is replaced, and mining goes on.
    up.ok(&["delete", "pods", "-l", "app.kubernetes.io/part-of=dockercoins", "--wait=false"]);
    for deployment in ["redis", "rng", "hasher", "worker", "webui"] {
        up.ok(&["rollout", "status", &format!("deployment/{deployment}"), "--timeout=90s"]);
    }
    eventually("mining again", || number(&url, "hashes").and_then(|hashes| if hashes > 0 { Ok(()) } else { Err("none yet".into()) }));

    rolling_update_under_load(&up, &node);
    streams(&up);
}

/// A new version takes over while requests keep coming: none fails.
fn rolling_update_under_load(up: &Up, node: &str) {
    let manifest = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: rolling}
spec:
  replicas: 2
  selector: {matchLabels: {app: rolling}}
  strategy: {rollingUpdate: {maxUnavailable: 0, maxSurge: 1}}
  template:
    metadata: {labels: {app: rolling, version: one}}
    spec:
      containers:
        - name: web
          image: dockercoins/webui:0.1.0
          readinessProbe: {httpGet: {path: /healthz, port: 80}, periodSeconds: 1}
          lifecycle: {preStop: {sleep: {seconds: 2}}}
---
apiVersion: v1
kind: Service
metadata: {name: rolling}
spec: {type: NodePort, selector: {app: rolling}, ports: [{port: 80}]}
"#;
    up.feed(&["apply", "-f", "-"], manifest);
    up.ok(&["rollout", "status", "deploy/rolling", "--timeout=90s"]);
    let port = up.ok(&["get", "svc", "rolling", "-o", "jsonpath={.spec.ports[0].nodePort}"]);
    let url = format!("http://{node}:{port}/healthz");
    eventually("the service answers", || if get(&url).0 == "200" { Ok(()) } else { Err(()) });
    let (stop, asked, failed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let clients: Vec<_> = (0..2)
        .map(|_| {
            let (stop, asked, failed, url) = (stop.clone(), asked.clone(), failed.clone(), url.clone());
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    asked.fetch_add(1, Ordering::Relaxed);
                    if get(&url).0 != "200" {
                        failed.fetch_add(1, Ordering::Relaxed);
                    }
                }
            })
        })
        .collect();
    up.feed(&["apply", "-f", "-"], &manifest.replace("version: one", "version: two"));
    up.ok(&["rollout", "status", "deploy/rolling", "--timeout=90s"]);
    up.until(&["get", "pods", "-l", "version=one", "-o", "name"], "the old pods are gone", |out| out.trim().is_empty());
    stop.store(true, Ordering::Relaxed);
    clients.into_iter().for_each(|client| client.join().expect("a client"));
    let (asked, failed) = (asked.load(Ordering::Relaxed), failed.load(Ordering::Relaxed));
    assert!(asked > 50 && failed == 0, "{failed} of {asked} requests failed");
}

/// Logs and the like of pods that run.
fn streams(up: &Up) {
    up.until(&["logs", "deploy/worker", "--tail", "5"], "the worker's log", |out| out.contains("units of work done"));
    up.shows(&["logs", "-l", "app.kubernetes.io/name=worker", "--tail", "1", "--prefix"], &["[pod/worker-"]);
    up.shows(&["describe", "pod", "-l", "app.kubernetes.io/name=redis"], &["Container ID:", "docker://", "Started:"]);
    up.shows(&["exec", "deploy/redis", "--", "/usr/bin/redis-server", "--version"], &["Redis server v="]);
    let missing = up.run(&["exec", "deploy/redis", "--", "/nothing"]);
    assert!(!missing.status.success());
}
