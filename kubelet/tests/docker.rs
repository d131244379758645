//! Pods on a real Docker engine, from the API's side.
//!
//! Needs Docker and Debian's static busybox; where they are missing each test says so and counts as skipped.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use common::FakeApi;
use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use skiff_kubelet::runtime::docker::{self, Docker, Options};
use skiff_kubelet::{Config, Kubelet, Runtime};
use tempfile::TempDir;
use tokio::io::DuplexStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_util::sync::CancellationToken;

/// The image of all tests: busybox and nothing else.
const IMAGE: &str = "skiff-test/busybox:1";
const BUSYBOX: &str = "/bin/busybox";

/// A node of its own, with a cluster of its own, so that tests don't see each other.
struct Node {
    api: FakeApi,
    runtime: Arc<Docker>,
    cluster: String,
    data: TempDir,
    stop: CancellationToken,
    router: axum::Router,
}

/// Why Docker tests can't run here.
fn missing() -> Option<&'static str> {
    if std::os::unix::net::UnixStream::connect(docker::SOCKET).is_err() {
        return Some("no Docker engine answers");
    }
    if !Path::new(BUSYBOX).exists() {
        return Some("no /bin/busybox (package busybox-static)");
    }
    None
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Imports the test image unless it is there.
fn ensure_image() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        if Command::new("docker").args(["image", "inspect", IMAGE]).output().is_ok_and(|o| o.status.success()) {
            return;
        }
        let dir = TempDir::new().unwrap();
        std::fs::create_dir_all(dir.path().join("bin")).unwrap();
        std::fs::create_dir_all(dir.path().join("tmp")).unwrap();
        std::fs::copy(BUSYBOX, dir.path().join("bin/busybox")).unwrap();
        for name in ["sh", "cat", "sleep", "echo", "true", "false", "ls", "wget", "httpd", "nc", "id", "env", "touch", "mkdir", "ps", "kill", "hostname", "stat", "test", "head", "printf", "sync", "date", "tar", "readlink"] {
            std::os::unix::fs::symlink("busybox", dir.path().join("bin").join(name)).unwrap();
        }
        let tar = dir.path().with_extension("tar");
        run(Command::new("tar").arg("-C").arg(dir.path()).arg("-cf").arg(&tar).arg("."));
        run(Command::new("docker").args(["import", "-c", "ENV PATH=/bin"]).arg(&tar).arg(IMAGE));
        std::fs::remove_file(tar).unwrap();
    });
}

impl Node {
    /// A kubelet on Docker, with a range of addresses of its own; `None` (and why, on stderr) where that can't be.
    async fn start(index: u8) -> Option<Self> {
        if let Some(why) = missing() {
            eprintln!("SKIPPED: {why}");
            return None;
        }
        ensure_image();
        let cluster = format!("test{index}");
        let options = Options { socket: docker::SOCKET.into(), cluster: cluster.clone(), node: "n".into(), cluster_cidr: format!("10.199.{index}.0/24") };
        let runtime = Arc::new(Docker::connect(options).await.unwrap());
        let mut node = Self { api: FakeApi::new(), runtime, cluster, data: TempDir::new().unwrap(), stop: CancellationToken::new(), router: axum::Router::new() };
        node.clean();
        node.launch(index);
        node.api.put("services", json!({"metadata": {"name": "kubernetes", "namespace": "default"},
            "spec": {"clusterIP": "10.96.0.1", "ports": [{"name": "https", "port": 443}]}}));
        Some(node)
    }

    fn launch(&mut self, index: u8) {
        let mut config = Config::new("n", &self.cluster, self.data.path(), [192, 168, 0, 1].into());
        config.pod_cidr = Some(format!("10.199.{index}.0/24"));
        config.cluster_cidr = config.pod_cidr.clone().unwrap();
        config.cluster_dns = Some([10, 96, 0, 10].into());
        let kubelet = Kubelet::new(config, self.api.client(), self.runtime.clone(), self.stop.clone());
        self.router = kubelet.router();
        tokio::spawn(kubelet.run());
    }

    /// A WebSocket to the kubelet's own API.
    async fn socket(&self, path: &str, protocol: &str) -> WebSocketStream<DuplexStream> {
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        tokio::spawn(skiff_kubelet::serve_connection(self.router.clone(), theirs));
        let mut request = format!("ws://kubelet{path}").into_client_request().unwrap();
        request.headers_mut().insert("sec-websocket-protocol", protocol.parse().unwrap());
        let (socket, response) = tokio_tungstenite::client_async(request, ours).await.unwrap();
        assert_eq!(response.headers()["sec-websocket-protocol"], protocol);
        socket
    }

    /// The answer to a GET of the kubelet's own API.
    async fn get(&self, path: &str) -> (u16, String) {
        let request = http::Request::get(path).body(axum::body::Body::empty()).unwrap();
        let response = tower::ServiceExt::oneshot(self.router.clone(), request).await.unwrap();
        let code = response.status().as_u16();
        let body = http_body_util::BodyExt::collect(response.into_body()).await.unwrap().to_bytes();
        (code, String::from_utf8_lossy(&body).into_owned())
    }

    fn clean(&self) {
        let label = format!("label=dev.skiff.cluster={}", self.cluster);
        let ids = run(Command::new("docker").args(["ps", "-aq", "--filter", &label]));
        if !ids.trim().is_empty() {
            run(Command::new("docker").args(["rm", "-f"]).args(ids.split_whitespace()));
        }
    }

    async fn running(&self, name: &str) -> Value {
        self.api.until_pod(name, "ready", ready).await
    }

    async fn ended(&self, name: &str) -> Value {
        self.api.until_pod(name, "its end", |p| matches!(phase(p), "Succeeded" | "Failed")).await
    }

    /// What a container said.
    fn logs(&self, pod: &Value, container: &str) -> String {
        let all = pod["status"]["initContainerStatuses"].as_array().into_iter().flatten().chain(pod["status"]["containerStatuses"].as_array().into_iter().flatten());
        let id = all.into_iter().find(|c| c["name"] == container).unwrap()["containerID"].as_str().unwrap().replace("docker://", "");
        let output = Command::new("docker").args(["logs", &id]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
    }

    fn pod_dir(&self, pod: &Value) -> PathBuf {
        self.data.path().join("pods").join(pod["metadata"]["uid"].as_str().unwrap())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop.cancel();
        self.clean();
        let _ = Command::new("docker").args(["network", "rm", &format!("skiff-{}", self.cluster)]).output();
    }
}

fn phase(pod: &Value) -> &str {
    pod["status"]["phase"].as_str().unwrap_or_default()
}

fn ready(pod: &Value) -> bool {
    pod["status"]["conditions"].as_array().into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True")
}

/// A container that runs a shell script.
fn shell(name: &str, script: &str) -> Value {
    json!({"name": name, "image": IMAGE, "imagePullPolicy": "IfNotPresent", "command": ["sh", "-c", script]})
}

fn spec(policy: &str, containers: Value) -> Value {
    json!({"restartPolicy": policy, "terminationGracePeriodSeconds": 2, "containers": containers})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_runs_to_its_end_and_goes() {
    let Some(node) = Node::start(1).await else { return };
    let mut container = shell("a", "echo $(GREETING) $KUBERNETES_SERVICE_HOST; echo last words > /dev/termination-log; exit 3");
    container["env"] = json!([{"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}, {"name": "GREETING", "value": "hello $(NAME)"}]);
    node.api.put_pod("n", "p", spec("Never", json!([container])), json!({}));
    let pod = node.ended("p").await;
    assert_eq!(phase(&pod), "Failed");
    let ended = &pod["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!((ended["exitCode"].as_i64(), ended["reason"].as_str(), ended["message"].as_str()), (Some(3), Some("Error"), Some("last words\n")));
    assert_eq!(node.logs(&pod, "a"), "hello p 10.96.0.1\n");
    let expected = ["Pulled: Container image \"skiff-test/busybox:1\" already present on machine and can be accessed by the pod", "Created: Container created", "Started: Container started"];
    let events = node.api.until("three events", |o| Some(o.said("p")).filter(|said| said.len() >= 3)).await;
    assert_eq!(events, expected);
    node.api.delete_pod("p", 2);
    node.api.until_gone("p").await;
    assert!(!node.pod_dir(&pod).exists(), "its files are gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_share_network_and_volumes() {
    let Some(node) = Node::start(2).await else { return };
    let mut writer = shell("writer", "echo shared > /data/file; mkdir /tmp/www; echo page > /tmp/www/index.html; exec httpd -f -p 8080 -h /tmp/www");
    let mut reader = shell("reader", "until cat /data/file 2>/dev/null; do sleep 0.1; done; until wget -qO- http://localhost:8080/; do sleep 0.1; done; hostname; cat /etc/hosts /etc/resolv.conf; sleep 1000");
    writer["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
    writer["readinessProbe"] = json!({"httpGet": {"port": 8080, "path": "/"}, "periodSeconds": 1});
    reader["volumeMounts"] = json!([{"name": "data", "mountPath": "/data", "readOnly": true}]);
    let mut spec = spec("Always", json!([writer, reader]));
    spec["volumes"] = json!([{"name": "data", "emptyDir": {}}]);
    spec["hostAliases"] = json!([{"ip": "1.2.3.4", "hostnames": ["alias"]}]);
    node.api.put_pod("n", "p", spec, json!({}));
    let pod = node.running("p").await;
    let ip = pod["status"]["podIP"].as_str().unwrap().to_owned();
    assert!(ip.starts_with("10.199.2."), "{ip}");
    let mut logs = String::new();
    for _ in 0..100 {
        logs = node.logs(&pod, "reader");
        if logs.contains("ndots") {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    assert!(logs.starts_with("shared\npage\np\n# Kubernetes-managed hosts file.\n"), "{logs}");
    assert!(logs.contains(&format!("{ip}\tp\n")) && logs.contains("1.2.3.4\talias\n"), "{logs}");
    assert!(logs.contains("search default.svc.cluster.local svc.cluster.local cluster.local") && logs.contains("nameserver 10.96.0.10\noptions ndots:5\n"), "{logs}");
    // The pod's page is reached from the node.
    assert_eq!(run(Command::new("curl").args(["-sf", &format!("http://{ip}:8080/")])), "page\n");
    node.api.delete_pod("p", 2);
    node.api.until_gone("p").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn init_containers_sidecars_and_signals() {
    let Some(node) = Node::start(3).await else { return };
    let mut spec = spec("Never", json!([shell("a", "echo main; sleep 1")]));
    let mut sidecar = shell("side", "trap 'echo told to end; exit 0' TERM; echo side; while true; do sleep 0.1; done");
    sidecar["restartPolicy"] = json!("Always");
    spec["initContainers"] = json!([shell("first", "echo first"), sidecar]);
    node.api.put_pod("n", "p", spec, json!({}));
    let pod = node.ended("p").await;
    assert_eq!(phase(&pod), "Succeeded", "{pod:#}");
    assert_eq!((node.logs(&pod, "first"), node.logs(&pod, "a")), ("first\n".into(), "main\n".into()));
    assert_eq!(node.logs(&pod, "side"), "side\ntold to end\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_start_says_why() {
    let Some(node) = Node::start(4).await else { return };
    let waiting = |pod: &Value, reason: &str| pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == reason;
    let mut absent = shell("a", "true");
    absent["image"] = json!("skiff-test/none:1");
    node.api.put_pod("n", "absent", spec("Always", json!([absent])), json!({}));
    node.api.until_pod("absent", "ErrImagePull", |p| waiting(p, "ErrImagePull")).await;
    node.api.until_pod("absent", "ImagePullBackOff", |p| waiting(p, "ImagePullBackOff")).await;
    let mut never = shell("a", "true");
    never["image"] = json!("skiff-test/none:1");
    never["imagePullPolicy"] = json!("Never");
    node.api.put_pod("n", "never", spec("Always", json!([never])), json!({}));
    node.api.until_pod("never", "ErrImageNeverPull", |p| waiting(p, "ErrImageNeverPull")).await;
    let mut env = shell("a", "true");
    env["envFrom"] = json!([{"configMapRef": {"name": "late"}}]);
    node.api.put_pod("n", "env", spec("Never", json!([env])), json!({}));
    let pod = node.api.until_pod("env", "CreateContainerConfigError", |p| waiting(p, "CreateContainerConfigError")).await;
    assert_eq!(pod["status"]["containerStatuses"][0]["state"]["waiting"]["message"], "configmap \"late\" not found");
    node.api.put("configmaps", json!({"metadata": {"name": "late", "namespace": "default"}, "data": {"A": "1"}}));
    node.ended("env").await;
    let mut typo = shell("a", "true");
    typo["command"] = json!(["/bin/none"]);
    node.api.put_pod("n", "typo", spec("Never", json!([typo])), json!({}));
    let pod = node.ended("typo").await;
    let ended = &pod["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!((ended["reason"].as_str(), ended["exitCode"].as_i64()), (Some("StartError"), Some(128)), "{ended}");
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_of_api_data_follow_their_objects() {
    let Some(node) = Node::start(5).await else { return };
    let map = |value: &str| json!({"metadata": {"name": "cm", "namespace": "default", "uid": "cm"}, "data": {"key": value}});
    node.api.put("configmaps", map("one"));
    node.api.put("secrets", json!({"metadata": {"name": "s", "namespace": "default"}, "data": {"password": "aGlkZGVu"}}));
    let mut container = shell("a", "cat /cm/key /s/password /pod/name; stat -c %a /s/..data/password; id -u; id -G; touch /s/x; until test \"$(cat /cm/key)\" = two; do sleep 0.1; done; cat /pod/token");
    container["volumeMounts"] = json!([{"name": "cm", "mountPath": "/cm"}, {"name": "s", "mountPath": "/s"}, {"name": "pod", "mountPath": "/pod"}]);
    container["securityContext"] = json!({"runAsUser": 1000, "runAsGroup": 1001});
    let mut spec = spec("Never", json!([container]));
    spec["securityContext"] = json!({"fsGroup": 2000});
    spec["volumes"] = json!([{"name": "cm", "configMap": {"name": "cm"}}, {"name": "s", "secret": {"secretName": "s", "defaultMode": 0o400}},
        {"name": "pod", "projected": {"sources": [{"downwardAPI": {"items": [{"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}]}},
            {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}}]}}]);
    node.api.put_pod("n", "p", spec, json!({}));
    node.running("p").await;
    node.api.put("configmaps", map("two"));
    let pod = node.ended("p").await;
    assert_eq!(phase(&pod), "Succeeded", "{}", node.logs(&pod, "a"));
    let logs = node.logs(&pod, "a");
    assert!(logs.starts_with("onehiddenp440\n1000\n1001 2000\n"), "{logs}");
    assert!(logs.contains("Read-only file system") && logs.contains("a-token"), "{logs}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_volume_holds_the_pod_until_it_is_there() {
    let Some(node) = Node::start(6).await else { return };
    let mut spec = spec("Never", json!([shell("a", "true")]));
    spec["volumes"] = json!([{"name": "v", "secret": {"secretName": "late"}}]);
    node.api.put_pod("n", "p", spec, json!({}));
    let told = "FailedMount: MountVolume.SetUp failed for volume \"v\" : secret \"late\" not found";
    node.api.until("the event", |o| o.said("p").contains(&told.to_owned()).then_some(())).await;
    node.api.put("secrets", json!({"metadata": {"name": "late", "namespace": "default"}, "data": {}}));
    node.ended("p").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn liveness_restarts_and_limits_kill() {
    let Some(node) = Node::start(7).await else { return };
    let mut sick = shell("a", "sleep 1000");
    sick["livenessProbe"] = json!({"exec": {"command": ["false"]}, "periodSeconds": 1, "failureThreshold": 1});
    let mut hungry = shell("a", "x=a; while true; do x=$x$x; done");
    hungry["resources"] = json!({"limits": {"memory": "16Mi"}});
    let mut sick = spec("Always", json!([sick]));
    sick["terminationGracePeriodSeconds"] = json!(0);
    node.api.put_pod("n", "sick", sick, json!({}));
    node.api.put_pod("n", "hungry", spec("Never", json!([hungry])), json!({}));
    let pod = node.api.until_pod("sick", "a restart", |p| p["status"]["containerStatuses"][0]["restartCount"].as_i64() >= Some(1)).await;
    assert_eq!(pod["status"]["containerStatuses"][0]["lastState"]["terminated"]["exitCode"], 137);
    let events = node.api.events("sick");
    assert!(events.iter().any(|e| e == "Killing: Container a failed liveness probe, will be restarted"), "{events:?}");
    let pod = node.ended("hungry").await;
    assert_eq!(pod["status"]["containerStatuses"][0]["state"]["terminated"]["reason"], "OOMKilled", "{pod:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_kubelet_adopts_its_pods_and_ends_those_of_nobody() {
    let Some(mut node) = Node::start(8).await else { return };
    node.api.put_pod("n", "stays", spec("Always", json!([shell("a", "sleep 1000")])), json!({}));
    node.api.put_pod("n", "goes", spec("Always", json!([shell("a", "sleep 1000")])), json!({}));
    let before = node.running("stays").await;
    node.running("goes").await;
    node.stop.cancel();
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    node.api.delete_pod("goes", 0);
    node.stop = CancellationToken::new();
    node.launch(8);
    let runtime: Arc<dyn Runtime> = node.runtime.clone();
    let uid = before["metadata"]["uid"].as_str().unwrap();
    for _ in 0..200 {
        if runtime.pods().await.unwrap().len() == 1 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    let left = runtime.pods().await.unwrap();
    assert_eq!(left.iter().map(|(p, _)| p.uid.as_str()).collect::<Vec<_>>(), [uid]);
    let after = node.api.get("pods/default/stays").unwrap();
    assert_eq!(after["status"]["containerStatuses"], before["status"]["containerStatuses"], "the same container runs on");
}

/// All that comes on a socket until it is closed, by channel; and the close code.
async fn drain(socket: &mut WebSocketStream<DuplexStream>) -> (Vec<Vec<u8>>, Option<u16>) {
    let mut channels = vec![Vec::new(); 256];
    while let Some(Ok(message)) = socket.next().await {
        match message {
            Message::Binary(data) => channels[usize::from(data[0])].extend_from_slice(&data[1..]),
            Message::Close(frame) => return (channels, frame.map(|f| f.code.into())),
            _ => {}
        }
    }
    (channels, None)
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_attach_logs_and_ports_by_websocket() {
    let Some(node) = Node::start(9).await else { return };
    let mut container = shell("a", "mkdir -p /tmp/www; echo page > /tmp/www/index.html; httpd -p 127.0.0.1:8080 -h /tmp/www; echo one; echo two; cat; echo bye; exit 4");
    container["stdin"] = json!(true);
    container["stdinOnce"] = json!(true);
    node.api.put_pod("n", "p", spec("Never", json!([container])), json!({}));
    node.running("p").await;

    // A program that reads to the end of its input, and its exit code.
    let command = "command=sh&command=-c&command=cat%3B+echo+err+%3E%262%3B+exit+3";
    let mut socket = node.socket(&format!("/exec/default/p/a?{command}&stdin=true&stdout=true&stderr=true"), "v5.channel.k8s.io").await;
    socket.send(Message::Binary(b"\0hello".to_vec().into())).await.unwrap();
    socket.send(Message::Binary(vec![255, 0].into())).await.unwrap();
    let (channels, code) = drain(&mut socket).await;
    let status: Value = serde_json::from_slice(&channels[3]).unwrap();
    assert_eq!((channels[1].as_slice(), channels[2].as_slice(), code), (&b"hello"[..], &b"err\n"[..], Some(1000)));
    assert_eq!((status["reason"].as_str(), status["details"]["causes"][0]["message"].as_str()), (Some("NonZeroExitCode"), Some("3")));

    // The names of upstream's own kubelet API, and a terminal with a size.
    let mut socket = node.socket("/exec/default/p/a?command=sh&input=1&output=1&tty=1", "v4.channel.k8s.io").await;
    socket.send(Message::Binary(b"\x04{\"Width\":91,\"Height\":17}".to_vec().into())).await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    socket.send(Message::Binary(b"\0busybox stty size; exit\n".to_vec().into())).await.unwrap();
    let (channels, _) = drain(&mut socket).await;
    assert!(String::from_utf8_lossy(&channels[1]).contains("17 91"), "{}", String::from_utf8_lossy(&channels[1]));
    assert_eq!(serde_json::from_slice::<Value>(&channels[3]).unwrap()["status"], "Success");

    // A port on the pod's own localhost.
    let mut socket = node.socket("/portForward/default/p?ports=8080&ports=9", "v4.channel.k8s.io").await;
    socket.send(Message::Binary(b"\0GET / HTTP/1.0\r\n\r\n".to_vec().into())).await.unwrap();
    let (channels, _) = drain(&mut socket).await;
    assert_eq!(channels[0][..2], 8080u16.to_le_bytes());
    assert!(channels[0].ends_with(b"page\n"), "{}", String::from_utf8_lossy(&channels[0]));
    assert!(String::from_utf8_lossy(&channels[3][2..]).contains("connection refused") || String::from_utf8_lossy(&channels[3][2..]).contains("Connection refused"));

    // Following a log ends with its container, which ends with the input of who is attached.
    assert_eq!(node.get("/containerLogs/default/p/a?tailLines=1").await, (200, "two\n".into()));
    assert_eq!(node.get("/containerLogs/default/p/a?limitBytes=2&stream=Stdout").await, (200, "on".into()));
    assert_eq!(node.get("/containerLogs/default/p/a?previous=true").await.0, 400);
    assert_eq!(node.get("/containerLogs/default/p/none").await.0, 404);
    let router = node.router.clone();
    let followed = tokio::spawn(async move {
        let request = http::Request::get("/containerLogs/default/p/a?follow=true").body(axum::body::Body::empty()).unwrap();
        let response = tower::ServiceExt::oneshot(router, request).await.unwrap();
        http_body_util::BodyExt::collect(response.into_body()).await.unwrap().to_bytes()
    });
    let mut socket = node.socket("/attach/default/p/a?stdin=true&stdout=true&stderr=true", "v5.channel.k8s.io").await;
    socket.send(Message::Binary(b"\0typed\n".to_vec().into())).await.unwrap();
    socket.send(Message::Binary(vec![255, 0].into())).await.unwrap();
    let (channels, _) = drain(&mut socket).await;
    assert_eq!(channels[1], b"typed\nbye\n");
    assert_eq!(followed.await.unwrap(), "one\ntwo\ntyped\nbye\n");
    let pod = node.ended("p").await;
    assert_eq!(pod["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"], 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn host_namespaces_ports_hooks_and_last_words() {
    let Some(node) = Node::start(10).await else { return };
    let mut host = spec("Never", json!([shell("a", "hostname; ls /proc | head -1; exit 0")]));
    host["hostNetwork"] = json!(true);
    node.api.put_pod("n", "host", host, json!({}));
    let pod = node.ended("host").await;
    assert_eq!((pod["status"]["podIP"].as_str(), pod["status"]["hostIP"].as_str()), (Some("192.168.0.1"), Some("192.168.0.1")));
    assert!(node.logs(&pod, "a").starts_with(run(&mut Command::new("hostname")).trim()));

    let mut shared = spec("Never", json!([shell("a", "sleep 1000"), shell("b", "until ps | grep -q 'sleep 1000'; do sleep 0.1; done; echo seen; kill $(ps | grep 'sleep 1000' | grep -v grep | head -1 | { read pid rest; echo $pid; })")]));
    shared["shareProcessNamespace"] = json!(true);
    node.api.put_pod("n", "shared", shared, json!({}));
    let pod = node.ended("shared").await;
    assert_eq!(node.logs(&pod, "b"), "seen\n");

    let mut words = shell("a", "echo the last; echo words; exit 1");
    words["terminationMessagePolicy"] = json!("FallbackToLogsOnError");
    node.api.put_pod("n", "words", spec("Never", json!([words])), json!({}));
    let pod = node.ended("words").await;
    assert_eq!(pod["status"]["containerStatuses"][0]["state"]["terminated"]["message"], "the last\nwords\n");

    let mut web = shell("a", "mkdir -p /tmp/www; exec httpd -f -p 8080 -h /tmp/www");
    web["ports"] = json!([{"containerPort": 8080, "hostPort": 18099}]);
    web["lifecycle"] = json!({"postStart": {"exec": {"command": ["sh", "-c", "until mkdir /tmp/www/x; do sleep 0.1; done; echo hooked > /tmp/www/index.html"]}},
        "preStop": {"exec": {"command": ["sh", "-c", "echo stopping > /proc/1/fd/1"]}}});
    node.api.put_pod("n", "web", spec("Always", json!([web])), json!({}));
    let pod = node.running("web").await;
    assert_eq!(run(Command::new("curl").args(["-sf", "http://127.0.0.1:18099/"])), "hooked\n");
    let id = pod["status"]["containerStatuses"][0]["containerID"].as_str().unwrap().replace("docker://", "");
    let mut follow = Command::new("docker").args(["logs", "-f", &id]).stdout(std::process::Stdio::piped()).spawn().unwrap();
    node.api.delete_pod("web", 10);
    node.api.until_gone("web").await;
    let mut said = String::new();
    std::io::Read::read_to_string(follow.stdout.as_mut().unwrap(), &mut said).unwrap();
    follow.wait().unwrap();
    assert_eq!(said, "stopping\n");
}
