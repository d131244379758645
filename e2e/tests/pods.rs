//! Real pods, from outside: what kubectl does with them, and the ways to them that only a network shows.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::time::Duration;

use skiff_e2e::kubectl::Running;
use skiff_e2e::skip;
use skiff_e2e::up::{BUSYBOX, Up, eventually, free_port, has, needs_busybox};

const PODS: &str = "
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  containers:
  - {name: httpd, image: IMAGE, imagePullPolicy: Never, command: [sh, -c, 'echo from-a-pod > /tmp/index.html; exec httpd -f -p 80 -h /tmp']}
  terminationGracePeriodSeconds: 0
---
apiVersion: v1
kind: Pod
metadata: {name: shell}
spec:
  containers:
  - {name: sh, image: IMAGE, imagePullPolicy: Never, stdin: true, command: [sh, -c, 'while read line; do echo got $line; done; sleep 1000']}
  terminationGracePeriodSeconds: 0
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: NodePort, selector: {app: web}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: udp}
spec: {ports: [{port: 5000, protocol: UDP}]}
";

#[test]
fn a_pod_is_used_in_every_way() {
    let Some(()) = needs_busybox("kubectl with real pods") else { return };
    let up = Up::docker("e2e-pods", 94);
    up.feed(&["apply", "-f", "-"], &PODS.replace("IMAGE", BUSYBOX));
    up.ok(&["wait", "--for=condition=Ready", "pod/web", "pod/shell", "--timeout=60s"]);
    attach(&up);
    copy(&up);
    debug(&up);
    forward(&up);
    from_another_machine(&up);
    udp_clients_follow_the_endpoints(&up);
}

/// What is typed reaches the container's main process, and its answer comes back.
fn attach(up: &Up) {
    let mut child = Running::start(up.command(&["attach", "-i", "shell"]).stdin(Stdio::piped()).stdout(Stdio::piped()));
    child.stdin.as_mut().expect("its input").write_all(b"a line\n").expect("type");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("its output")).read_line(&mut line).expect("read");
    assert_eq!(line, "got a line\n");
}

/// Files go in and come out whole.
fn copy(up: &Up) {
    let (there, back) = (up.dir.join("there"), up.dir.join("back"));
    let content: Vec<u8> = (0..300_000u32).flat_map(u32::to_le_bytes).collect();
    std::fs::write(&there, &content).expect("write a file");
    up.ok(&["cp", &there.display().to_string(), "web:/tmp/file"]);
    up.shows(&["exec", "web", "--", "ls", "-l", "/tmp/file"], &["1200000"]);
    up.ok(&["cp", "web:/tmp/file", &back.display().to_string()]);
    assert!(std::fs::read(&back).expect("read the copy") == content, "the copy differs");
}

/// An ephemeral container sees the processes of the one that it looks into.
fn debug(up: &Up) {
    let args = ["debug", "web", "--image", BUSYBOX, "--image-pull-policy=Never", "--target=httpd", "-c", "look", "--", "ps"];
    up.ok(&args);
    up.until(&["logs", "web", "-c", "look"], "the processes", |out| out.contains("httpd -f"));
    up.shows(&["get", "pod", "web", "-o", "jsonpath={.status.ephemeralContainerStatuses[0].name}"], &["look"]);
}

fn get(address: &str, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// port-forward to a pod, and the API by `kubectl proxy` with the pod behind it.
fn forward(up: &Up) {
    let port = free_port();
    let forward = Running::start(up.command(&["port-forward", "pod/web", &format!("{port}:80")]).stdout(Stdio::null()));
    let answer = eventually("port-forward", || get(&format!("127.0.0.1:{port}"), "/"));
    assert!(answer.contains("from-a-pod"), "{answer}");
    drop(forward);
    let port = free_port();
    let _proxy = Running::start(up.command(&["proxy", "--port", &port.to_string()]).stdout(Stdio::null()));
    let path = "/api/v1/namespaces/default/services/web/proxy/index.html";
    let answer = eventually("kubectl proxy", || get(&format!("127.0.0.1:{port}"), path));
    assert!(answer.contains("from-a-pod"), "{answer}");
}

/// A machine beside this one: a network namespace on a wire of its own.
struct Neighbour;

impl Neighbour {
    const NAME: &str = "skiff-e2e-out";

    fn new() -> Self {
        let neighbour = Self;
        neighbour.remove();
        let wire = "ip link add skiff-e2e0 type veth peer name eth0 netns skiff-e2e-out";
        for command in [
            "ip netns add skiff-e2e-out",
            wire,
            "ip addr add 10.201.77.1/24 dev skiff-e2e0",
            "ip link set skiff-e2e0 up",
            "ip -n skiff-e2e-out addr add 10.201.77.2/24 dev eth0",
            "ip -n skiff-e2e-out link set eth0 up",
            "ip -n skiff-e2e-out route add default via 10.201.77.1",
        ] {
            let words: Vec<&str> = command.split(' ').collect();
            let done = Command::new(words[0]).args(&words[1..]).output().expect("run ip");
            assert!(done.status.success(), "{command}: {}", String::from_utf8_lossy(&done.stderr));
        }
        neighbour
    }

    fn remove(&self) {
        // The wire goes with either end.
        let _ = Command::new("ip").args(["netns", "del", Self::NAME]).stderr(Stdio::null()).status();
        let _ = Command::new("ip").args(["link", "del", "skiff-e2e0"]).stderr(Stdio::null()).status();
    }

    fn get(&self, url: &str) -> Result<String, String> {
        let args = ["netns", "exec", Self::NAME, "curl", "-sS", "--max-time", "3", url];
        let output = Command::new("ip").args(args).output().expect("run curl");
        if output.status.success() { Ok(String::from_utf8_lossy(&output.stdout).into_owned()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        self.remove();
    }
}

/// A node port answers to other machines, although Docker drops what it didn't publish itself.
fn from_another_machine(up: &Up) {
    if !has("ip") || !has("curl") {
        return skip("node ports from another machine", "there is no ip or no curl (packages iproute2, curl)");
    }
    let port = up.ok(&["get", "svc", "web", "-o", "jsonpath={.spec.ports[0].nodePort}"]);
    let neighbour = Neighbour::new();
    let url = format!("http://10.201.77.1:{port}/");
    assert_eq!(eventually("the node port, from outside", || neighbour.get(&url)), "from-a-pod\n");
    // The client's own address is seen where the policy says so.
    up.ok(&["patch", "svc", "web", "-p", r#"{"spec":{"externalTrafficPolicy":"Local"}}"#]);
    assert_eq!(eventually("the node port, policy Local", || neighbour.get(&url)), "from-a-pod\n");
}

/// A client that goes on talking from one port is led to the new endpoint once the old one is gone.
fn udp_clients_follow_the_endpoints(up: &Up) {
    let ip = up.ok(&["get", "svc", "udp", "-o", "jsonpath={.spec.clusterIP}"]);
    let gateway = up.ok(&["get", "nodes", "-o", r#"jsonpath={.items[0].status.addresses[?(@.type=="InternalIP")].address}"#]);
    let socket = || UdpSocket::bind((gateway.as_str(), 0)).expect("a socket");
    let (client, servers) = (socket(), [socket(), socket()]);
    servers.iter().for_each(|server| server.set_read_timeout(Some(Duration::from_millis(50))).expect("a timeout"));
    for server in &servers {
        let port = server.local_addr().expect("an address").port();
        let slice = format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
             metadata: {{name: udp, labels: {{kubernetes.io/service-name: udp}}}}\n\
             endpoints: [{{addresses: [{gateway}]}}]\nports: [{{name: '', port: {port}, protocol: UDP}}]\n"
        );
        up.feed(&["apply", "-f", "-"], &slice);
        eventually("the endpoint is reached", || {
            client.send_to(b"hello", format!("{ip}:5000")).map_err(|e| e.to_string())?;
            server.recv(&mut [0; 16]).map_err(|e| e.to_string())
        });
    }
}
