//! A cluster whose components are processes of their own, each of which may die.

use std::path::Path;
use std::process::Command;

use skiff_e2e::alone::Process;
use skiff_e2e::kubectl::Kubectl;
use skiff_e2e::skip;
use skiff_e2e::up::{BUSYBOX, Up, binary, eventually, free_port, has, needs_busybox, needs_kubectl};

/// Where pods' addresses come from.
const PODS: [&str; 2] = ["--pod-cidr", "10.92.0.0/16"];

struct Cluster {
    dir: tempfile::TempDir,
    name: String,
    port: u16,
    store: String,
    kubectl: Kubectl,
}

impl Cluster {
    fn new(name: &str, store: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let kubectl = Kubectl { kubeconfig: dir.path().join("data/kubeconfig"), dir: dir.path().into() };
        Self { dir, name: name.into(), port: free_port(), store: store.into(), kubectl }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn api_server(&self) -> Process {
        let listen = format!("127.0.0.1:{}", self.port);
        let process = Process::skiff(self.path(), &["apiserver", "--name", &self.name, "--data-dir", "data", "--store", &self.store, "--listen", &listen]);
        process.says("API server at");
        process
    }

    /// Writes the kubeconfig of a component; its file.
    fn kubeconfig(&self, user: &str) -> String {
        let args = ["kubeconfig", "--name", &self.name, "--data-dir", "data", "--user", user];
        let output = Command::new(binary()).args(args).current_dir(self.path()).output().expect("run skiff");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let file = format!("{user}.kubeconfig");
        std::fs::write(self.path().join(&file), output.stdout).expect("write a kubeconfig");
        file
    }

    fn component(&self, name: &str) -> Process {
        let pods: &[&str] = if name == "controllers" { &PODS } else { &[] };
        Process::skiff(self.path(), &[&[name, "--kubeconfig", &self.kubeconfig(name)], pods].concat())
    }

    fn kubelet(&self, node: &str, runtime: &str) -> Process {
        let kubeconfig = self.kubeconfig("kubelet");
        let args = ["kubelet", "--kubeconfig", &kubeconfig, "--node-name", node, "--cluster", &self.name, "--runtime", runtime, "--data-dir", node];
        let process = Process::skiff(self.path(), &[&args[..], &PODS].concat());
        process.says(&format!("node {node} runs"));
        process
    }

    fn rolled_out(&self, replicas: usize) {
        self.kubectl.ok(&["scale", "deploy/web", &format!("--replicas={replicas}")]);
        self.kubectl.ok(&["rollout", "status", "deploy/web", "--timeout=90s"]);
        // A rollout is over for kubectl when no pod is missing: those that are too many may still be there.
        self.kubectl.ok(&["wait", "deploy/web", &format!("--for=jsonpath={{.status.replicas}}={replicas}"), "--timeout=90s"]);
    }
}

fn etcd(cluster: &Path, client: u16) -> Process {
    let (url, peers) = (format!("http://127.0.0.1:{client}"), format!("http://127.0.0.1:{}", free_port()));
    let mut command = Command::new("etcd");
    let data = cluster.join("etcd").display().to_string();
    command.args(["--data-dir", &data, "--listen-client-urls", &url, "--advertise-client-urls", &url, "--listen-peer-urls", &peers]);
    command.args(["--initial-advertise-peer-urls", &peers, "--initial-cluster", &format!("default={peers}")]);
    let process = Process::start("etcd", command);
    eventually("etcd answers", || std::net::TcpStream::connect(("127.0.0.1", client)));
    process
}

#[test]
fn each_component_may_die() {
    let Some(()) = needs_kubectl("components alone over etcd") else { return };
    if !has("etcd") {
        return skip("components alone over etcd", "there is no etcd");
    }
    let port = free_port();
    let cluster = Cluster::new("e2e-alone", &format!("etcd://127.0.0.1:{port}"));
    let kubectl = cluster.kubectl.clone();
    let mut store = etcd(cluster.path(), port);
    let mut api = cluster.api_server();
    let mut controllers = [cluster.component("controllers"), cluster.component("controllers")];
    let mut schedulers = [cluster.component("scheduler"), cluster.component("scheduler")];
    let mut nodes = [cluster.kubelet("one", "simulated"), cluster.kubelet("two", "simulated")];
    kubectl.ok(&["create", "deployment", "web", "--image=x", "--replicas=2"]);
    cluster.rolled_out(4);

    // Certificates were asked for and signed, and the way to kubelets is open: both listen, at ports of their own.
    kubectl.shows(&["get", "csr"], &["kube-apiserver-client-kubelet", "kubelet-serving", "system:node:one", "Approved,Issued"]);
    for node in ["one", "two"] {
        eventually("the kubelet answers", || {
            let output = kubectl.run(&["get", "--raw", &format!("/api/v1/nodes/{node}/proxy/healthz")]);
            if output.stdout == b"ok" { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
        });
    }
    let pods = kubectl.ok(&["get", "pods", "-o", "name"]);
    for pod in pods.lines() {
        kubectl.ok(&["logs", pod]);
    }
    kubectl.shows(&["describe", "pods"], &["Scheduled", "default-scheduler", "Started"]);

    // One of each leads, and another takes over when it dies.
    kubectl.shows(&["-n", "kube-system", "get", "lease"], &["kube-controller-manager", "kube-scheduler"]);
    for pair in [&mut controllers, &mut schedulers] {
        let leads = |process: &Process| process.said().lines().any(|line| line.ends_with(" runs") || line.ends_with(" run"));
        eventually("one leads", || if pair.iter().any(leads) { Ok(()) } else { Err(()) });
        assert_eq!(pair.iter().filter(|p| leads(p)).count(), 1, "one leads");
        pair.iter_mut().find(|p| leads(p)).expect("a leader").kill();
    }
    cluster.rolled_out(6);
    kubectl.shows(&["-n", "kube-system", "get", "events"], &["LeaderElection", "became leader"]);

    api.kill();
    let _api = cluster.api_server();
    cluster.rolled_out(3);
    store.kill();
    let _store = etcd(cluster.path(), port);
    eventually("the API server is ready again", || {
        let output = kubectl.run(&["get", "--raw", "/readyz"]);
        if output.stdout == b"ok" { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
    });
    cluster.rolled_out(5);
    // A node that comes back is the same node, without asking for another certificate.
    let requests = kubectl.ok(&["get", "csr", "-o", "name"]).lines().count();
    nodes[0].kill();
    nodes[0] = cluster.kubelet("one", "simulated");
    cluster.rolled_out(7);
    assert_eq!(kubectl.ok(&["get", "csr", "-o", "name"]).lines().count(), requests);
}

#[test]
fn a_node_on_docker_is_reached_over_the_network() {
    let Some(()) = needs_busybox("components alone with Docker") else { return };
    let cluster = Cluster::new("e2e-alone-docker", "embedded");
    let kubectl = cluster.kubectl.clone();
    let _api = cluster.api_server();
    let (_controllers, _scheduler) = (cluster.component("controllers"), cluster.component("scheduler"));
    let mut node = cluster.kubelet("real", "docker");
    let removed = Removed(cluster.name.clone(), cluster.path().join("data"));
    kubectl.ok(&["run", "box", "--image", BUSYBOX, "--image-pull-policy=Never", "--", "sh", "-c", "echo hello; exec sleep 1000"]);
    kubectl.ok(&["wait", "--for=condition=Ready", "pod/box", "--timeout=60s"]);
    assert_eq!(kubectl.until(&["logs", "box"], "the log", |out| !out.is_empty()), "hello\n");
    assert_eq!(kubectl.ok(&["exec", "box", "--", "echo", "inside"]), "inside\n");
    let failed = kubectl.run(&["exec", "box", "--", "sh", "-c", "exit 7"]);
    assert_eq!(failed.status.code(), Some(7));

    // Killed and started again, the kubelet takes up its container.
    let started = kubectl.ok(&["get", "pod", "box", "-o", "jsonpath={.status.containerStatuses[0].containerID}"]);
    node.kill();
    let _node = cluster.kubelet("real", "docker");
    eventually("exec through the new kubelet", || {
        let output = kubectl.run(&["exec", "box", "--", "echo", "again"]);
        if output.stdout == b"again\n" { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
    });
    assert_eq!(kubectl.ok(&["get", "pod", "box", "-o", "jsonpath={.status.containerStatuses[0].containerID}"]), started);
    drop(removed);
}

#[test]
fn another_machine_joins_a_cluster_of_one_process() {
    let Some(()) = needs_kubectl("a machine joins") else { return };
    let up = Up::simulated("e2e-join", 1);
    // By a bootstrap token, as kubeadm's users have them.
    up.feed(&["apply", "-f", "-"], "
apiVersion: v1
kind: Secret
metadata: {name: bootstrap-token-abcdef, namespace: kube-system}
type: bootstrap.kubernetes.io/token
stringData: {token-id: abcdef, token-secret: 0123456789abcdef, usage-bootstrap-authentication: 'true'}
");
    let join = up.dir().join("join").display().to_string();
    std::fs::copy(&up.kubeconfig, &join).expect("copy the kubeconfig");
    for args in [
        &["config", "set-credentials", "bootstrap", "--token=abcdef.0123456789abcdef"][..],
        &["config", "set-context", "--current", "--user=bootstrap"],
    ] {
        let done = up.command(args).env("KUBECONFIG", &join).output().expect("run kubectl");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }
    let args = ["kubelet", "--kubeconfig", &join, "--node-name", "second", "--runtime", "simulated", "--data-dir", "second"];
    let _second = Process::skiff(up.dir(), &args);
    up.until(&["get", "node", "second"], "the node", |out| out.contains(" Ready "));
    up.shows(&["get", "csr"], &["system:bootstrap:abcdef", "Approved,Issued"]);
    up.ok(&["run", "there", "--image=x", "--overrides", r#"{"spec":{"nodeName":"second"}}"#]);
    up.ok(&["wait", "--for=condition=Ready", "pod/there", "--timeout=60s"]);
    eventually("its log", || {
        let output = up.run(&["logs", "there"]);
        if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
    });
    // It may read what its own pods need, and no other's secrets.
    let own = up.dir().join("second/pki/kubelet.kubeconfig");
    let read = up.command(&["get", "secrets", "-A"]).env("KUBECONFIG", &own).output().expect("run kubectl");
    assert!(String::from_utf8_lossy(&read.stderr).contains("User \"system:node:second\" cannot list resource \"secrets\""), "{read:?}");
}

/// Removes a cluster's containers when a test ends.
struct Removed(String, std::path::PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        let _ = Command::new(binary()).args(["down", "--name", &self.0, "--data-dir"]).arg(&self.1).output();
    }
}

#[test]
fn what_is_wrong_is_said_in_a_line() {
    let Some(()) = needs_kubectl("components alone: errors") else { return };
    let cluster = Cluster::new("e2e-wrong", "memory");
    let check = |args: &[&str], expected: &str| {
        let output = Command::new(binary()).args(args).current_dir(cluster.path()).env("HOME", cluster.path()).env_remove("KUBECONFIG").output();
        let output = output.expect("run skiff");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(matches!(output.status.code(), Some(1 | 2)) && said.contains(expected), "{args:?}: {said}");
        assert!(output.status.code() == Some(2) || said.lines().count() == 1, "more than a line: {said}");
    };
    check(&["kubelet", "--kubeconfig", "none"], "there is no kubeconfig none: print one by `skiff kubeconfig --user kubelet`");
    check(&["scheduler", "--kubeconfig", "none"], "read the kubeconfig none");
    check(&["kubelet", "--node-name", "A_B"], "it can't be a node's name");
    check(&["kubeconfig", "--name", "never"], "has never been up");
    check(&["kubeconfig", "--server", "here"], "it must be like https://192.168.1.5:6443");
    check(&["apiserver", "--data-dir", "x", "--store", "etcd://127.0.0.1:1"], "etcd");
    let _api = cluster.api_server();
    let (kubelet, scheduler) = (cluster.kubeconfig("kubelet"), cluster.kubeconfig("scheduler"));
    check(&["controllers", "--kubeconfig", &scheduler], "use a kubeconfig of `skiff kubeconfig --user controllers`");
    check(&["kubelet", "--kubeconfig", &scheduler, "--runtime", "simulated", "--data-dir", "n"], "ask for the node's certificate");
    check(&["scheduler", "--kubeconfig", &kubelet], "use a kubeconfig of `skiff kubeconfig --user`");
    drop(_api);
    check(&["scheduler", "--kubeconfig", &scheduler], "reach the API server of scheduler.kubeconfig");
}
