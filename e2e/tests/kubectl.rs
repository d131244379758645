//! The tour with plain `kubectl`, on a simulated cluster: what a tutorial types.

use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use serde_json::Value;
use skiff_e2e::kubectl::Running;
use skiff_e2e::up::{Up, eventually, free_port, needs_kubectl};

const WEB: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web}}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: web, image: 'nginx:1', ports: [{containerPort: 80}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80}]}
";

#[test]
fn looking_around() {
    let Some(()) = needs_kubectl("kubectl: looking around") else { return };
    let up = Up::simulated("tour-look", 2);
    up.shows(&["get", "nodes", "-o", "wide"], &["STATUS", "Ready", "v1.36.2+skiff", "INTERNAL-IP", "CONTAINER-RUNTIME"]);
    let conditions = "jsonpath={range .items[*]}{@.metadata.name}:{range @.status.conditions[*]}{@.type}={@.status};{end}{end}";
    up.shows(&["get", "nodes", "-o", conditions], &["MemoryPressure=False", "Ready=True;"]);
    up.shows(&["describe", "node"], &["Roles:", "Conditions:", "Capacity:", "Allocatable:", "System Info:", "PodCIDR:", "Non-terminated Pods:"]);
    up.shows(&["cluster-info"], &["is running at"]);
    up.shows(&["version"], &["Server Version: v1.36.2+skiff"]);
    up.shows(&["api-resources"], &["deployments", "deploy", "apps/v1", "Deployment", "customresourcedefinitions"]);
    up.shows(&["api-versions"], &["apps/v1", "batch/v1", "networking.k8s.io/v1"]);
    up.shows(&["explain", "deployment.spec.strategy", "--recursive"], &["FIELDS:", "rollingUpdate", "maxSurge"]);
    up.shows(&["explain", "pod.spec.containers.livenessProbe"], &["httpGet", "Periodic probe of container liveness"]);
    up.shows(&["get", "namespaces"], &["default", "kube-system", "kube-public", "kube-node-lease", "Active"]);
    up.shows(&["get", "svc"], &["kubernetes", "ClusterIP", "10.96.0.1", "443/TCP"]);
    up.ok(&["-n", "kube-system", "get", "pods"]);
    up.shows(&["get", "all", "-A"], &["service/kubernetes"]);
    up.shows(&["auth", "can-i", "--list"], &["*.*", "[*]"]);
    up.shows(&["auth", "whoami"], &["kubernetes-admin", "system:masters"]);
    up.shows(&["get", "--raw", "/readyz"], &["ok"]);
    up.fails(&["get", "nothing"], "the server doesn't have a resource type \"nothing\"");
    up.fails(&["get", "pod", "nope"], "pods \"nope\" not found");
    up.fails(&["get", "pods", "--as", "nobody"], "User \"nobody\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\"");
}

#[test]
fn deployments_from_birth_to_death() {
    let Some(()) = needs_kubectl("kubectl: deployments") else { return };
    let up = Up::simulated("tour-deploy", 2);
    up.shows(&["create", "deployment", "pingpong", "--image=alpine:3", "--", "ping", "localhost"], &["deployment.apps/pingpong created"]);
    up.ok(&["wait", "--for=condition=Available", "deployment/pingpong", "--timeout=60s"]);
    up.ok(&["scale", "deploy/pingpong", "--replicas", "8"]);
    up.ok(&["rollout", "status", "deploy/pingpong", "--timeout=60s"]);
    let pods = up.ok(&["get", "pods", "-l", "app=pingpong", "-o", "name"]);
    assert_eq!(pods.lines().count(), 8, "{pods}");
    // A pod that is deleted is replaced.
    let victim = pods.lines().next().expect("a pod").to_owned();
    up.ok(&["delete", &victim]);
    up.until(&["get", "pods", "-l", "app=pingpong", "--field-selector", "status.phase=Running", "-o", "name"], "eight pods again", |out| {
        out.lines().count() == 8 && !out.contains(&victim)
    });
    up.shows(&["describe", "deployment", "pingpong"], &["8 desired", "Available", "MinimumReplicasAvailable", "ScalingReplicaSet"]);
    up.ok(&["set", "image", "deploy/pingpong", "alpine=alpine:4"]);
    up.shows(&["rollout", "status", "deploy/pingpong", "--timeout=60s"], &["successfully rolled out"]);
    up.shows(&["rollout", "history", "deploy/pingpong"], &["REVISION", "1", "2"]);
    up.shows(&["rollout", "undo", "deploy/pingpong"], &["rolled back"]);
    up.ok(&["rollout", "status", "deploy/pingpong", "--timeout=60s"]);
    up.shows(&["get", "deploy", "pingpong", "-o", "jsonpath={.spec.template.spec.containers[0].image}"], &["alpine:3"]);
    up.ok(&["rollout", "pause", "deploy/pingpong"]);
    up.ok(&["set", "image", "deploy/pingpong", "alpine=alpine:5"]);
    up.shows(&["get", "rs", "-l", "app=pingpong", "-o", "wide"], &["alpine:3", "alpine:4"]);
    up.ok(&["rollout", "resume", "deploy/pingpong"]);
    up.ok(&["rollout", "restart", "deploy/pingpong"]);
    up.ok(&["rollout", "status", "deploy/pingpong", "--timeout=60s"]);
    up.ok(&["autoscale", "deployment", "pingpong", "--min=2", "--max=9", "--cpu-percent=50"]);
    up.shows(&["get", "hpa"], &["Deployment/pingpong", "2", "9"]);
    up.ok(&["delete", "deployment", "pingpong"]);
    up.until(&["get", "pods,rs", "-l", "app=pingpong", "-o", "name"], "nothing left", |out| out.trim().is_empty());
}

#[test]
fn applying_labelling_and_choosing() {
    let Some(()) = needs_kubectl("kubectl: apply") else { return };
    let up = Up::simulated("tour-apply", 1);
    let created = up.feed(&["apply", "-f", "-"], WEB);
    assert!(created.contains("deployment.apps/web created") && created.contains("service/web created"), "{created}");
    assert!(up.feed(&["apply", "-f", "-"], WEB).contains("deployment.apps/web unchanged"));
    let changed = WEB.replace("replicas: 2", "replicas: 3");
    let file = up.dir().join("changed.yaml");
    std::fs::write(&file, &changed).expect("write");
    let diff = up.run(&["diff", "-f", &file.display().to_string()]);
    assert_eq!(diff.status.code(), Some(1), "a difference");
    assert!(String::from_utf8_lossy(&diff.stdout).contains("+  replicas: 3"));
    assert!(up.feed(&["apply", "-f", "-"], &changed).contains("deployment.apps/web configured"));
    assert!(up.feed(&["apply", "--server-side", "--force-conflicts", "-f", "-"], &changed).contains("serverside-applied"));
    up.ok(&["rollout", "status", "deploy/web", "--timeout=60s"]);
    up.ok(&["label", "deploy", "web", "env=a"]);
    up.ok(&["annotate", "deploy", "web", "note=kept"]);
    up.shows(&["get", "deploy", "-l", "env in (a,b),!x", "-o", "name"], &["deployment.apps/web"]);
    assert_eq!(up.ok(&["get", "deploy", "-l", "env notin (a,b)", "-o", "name"]), "");
    up.until(&["get", "endpointslices", "-l", "kubernetes.io/service-name=web"], "endpoints", |out| out.contains("10.244."));
    up.shows(&["describe", "svc", "web"], &["Selector:", "app=web", "ClusterIP", "Endpoints:"]);
    up.ok(&["expose", "deploy", "web", "--name=web2", "--port=80", "--type=NodePort"]);
    let ip = up.ok(&["get", "svc", "web2", "-o", "go-template", "--template", "{{ .spec.clusterIP }}"]);
    assert!(ip.starts_with("10.96."), "{ip}");
    up.ok(&["patch", "deploy", "web", "-p", r#"{"spec":{"template":{"spec":{"containers":[{"name":"web","image":"nginx:2"}]}}}}"#]);
    up.shows(&["get", "deploy", "web", "-o", "yaml"], &["containerPort: 80", "image: nginx:2"]);
    let bad = WEB.replace("replicas: 2", "replicaz: 2");
    std::fs::write(&file, bad).expect("write");
    up.fails(&["apply", "-f", &file.display().to_string()], "unknown field \"spec.replicaz\"");
    up.ok(&["apply", "--prune", "-l", "app=web", "-f", &{
        std::fs::write(&file, &changed).expect("write");
        file.display().to_string()
    }]);
}

#[test]
fn jobs_nodes_and_namespaces() {
    let Some(()) = needs_kubectl("kubectl: jobs, nodes, namespaces") else { return };
    let up = Up::simulated("tour-jobs", 2);
    up.ok(&["run", "once", "--restart=Never", "--image=alpine:3", "--", "true"]);
    up.until(&["get", "pod", "once", "-o", "jsonpath={.status.phase}"], "the pod completes", |out| out == "Succeeded");
    up.shows(&["get", "pods"], &["once", "Completed"]);
    up.ok(&["create", "job", "pi", "--image=perl", "--", "perl"]);
    up.ok(&["wait", "--for=condition=Complete", "job/pi", "--timeout=60s"]);
    up.shows(&["describe", "job", "pi"], &["SuccessfulCreate", "Completed", "1 Succeeded"]);
    up.ok(&["create", "cronjob", "tick", "--image=alpine", "--schedule=*/1 * * * *", "--", "date"]);
    up.shows(&["get", "cronjobs"], &["tick", "*/1 * * * *"]);
    up.ok(&["create", "job", "now", "--from=cronjob/tick"]);
    up.ok(&["wait", "--for=condition=Complete", "job/now", "--timeout=60s"]);

    up.feed(&["apply", "-f", "-"], WEB);
    up.ok(&["rollout", "status", "deploy/web", "--timeout=60s"]);
    let node = up.ok(&["get", "nodes", "-o", "jsonpath={.items[0].metadata.name}"]);
    up.ok(&["taint", "nodes", &node, "a=b:NoSchedule"]);
    up.ok(&["taint", "nodes", &node, "a-"]);
    up.ok(&["cordon", &node]);
    up.shows(&["get", "node", &node], &["SchedulingDisabled"]);
    up.ok(&["drain", &node, "--ignore-daemonsets", "--force", "--timeout=60s"]);
    up.until(&["get", "pods", "-l", "app=web", "-o", "wide"], "the pods are elsewhere", |out| !out.contains(&format!(" {node} ")) && out.matches("Running").count() == 2);
    up.ok(&["uncordon", &node]);
    by_hand(&up);
    up.shows(&["events", "--for", "deployment/web"], &["ScalingReplicaSet"]);

    up.ok(&["create", "namespace", "gone"]);
    up.ok(&["-n", "gone", "create", "deployment", "x", "--image=x", "--replicas=3"]);
    up.ok(&["-n", "gone", "create", "configmap", "c", "--from-literal=a=b"]);
    up.ok(&["-n", "gone", "wait", "--for=condition=Available", "deployment/x", "--timeout=60s"]);
    up.ok(&["delete", "namespace", "gone", "--timeout=60s"]);
    up.fails(&["get", "namespace", "gone"], "not found");
    // Too large for any node: said as upstream says it.
    up.ok(&["run", "big", "--image=x", "--overrides", r#"{"spec":{"containers":[{"name":"big","image":"x","resources":{"requests":{"cpu":"1000"}}}]}}"#]);
    up.until(&["describe", "pod", "big"], "an explanation", |out| out.contains("0/2 nodes are available: 2 Insufficient cpu."));
}

/// What a person does to one object.
fn by_hand(up: &Up) {
    // An editor is a program that changes the file that it is given.
    let script = up.dir().join("editor");
    let editor = |change: &str| {
        std::fs::write(&script, format!("#!/bin/sh\nexec sed -i '{change}' \"$1\"\n")).expect("write the editor");
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).expect("make the editor a program");
        up.command(&["edit", "deployment", "web"]).env("EDITOR", &script).output().expect("kubectl edit")
    };
    let edited = editor("s/replicas: 2/replicas: 3/");
    assert!(String::from_utf8_lossy(&edited.stdout).contains("deployment.apps/web edited"), "{}", String::from_utf8_lossy(&edited.stderr));
    up.shows(&["get", "deployment", "web", "-o", "jsonpath={.spec.replicas}"], &["3"]);
    let unchanged = editor("s/nothing/nothing/");
    assert!(String::from_utf8_lossy(&unchanged.stderr).contains("Edit cancelled"), "{}", String::from_utf8_lossy(&unchanged.stderr));

    up.shows(&["autoscale", "deployment", "web", "--min=2", "--max=5", "--cpu-percent=80"], &["horizontalpodautoscaler.autoscaling/web autoscaled"]);
    up.shows(&["get", "hpa", "web"], &["Deployment/web", "MINPODS", "2", "5"]);
    up.ok(&["delete", "hpa", "web"]);

    let port = free_port();
    let _proxy = Running::start(up.command(&["proxy", "--port", &port.to_string()]).stdout(Stdio::null()));
    let url = format!("http://127.0.0.1:{port}/apis/apps/v1/namespaces/default/deployments/web");
    let answer = eventually("kubectl proxy", || {
        let output = Command::new("curl").args(["-sf", "--max-time", "5", &url]).output().map_err(|e| e.to_string())?;
        if output.status.success() { Ok(String::from_utf8_lossy(&output.stdout).into_owned()) } else { Err(output.status.to_string()) }
    });
    let answer: Value = serde_json::from_str(&answer).expect("an object");
    assert_eq!(answer["kind"], "Deployment");
}

#[test]
fn what_was_stored_is_there_after_a_restart() {
    let Some(()) = needs_kubectl("kubectl: restart") else { return };
    let mut up = Up::simulated("tour-again", 1);
    up.feed(&["apply", "-f", "-"], WEB);
    up.ok(&["rollout", "status", "deploy/web", "--timeout=60s"]);
    let (uid, ip) = (["get", "deploy", "web", "-o", "jsonpath={.metadata.uid}"], ["get", "svc", "web", "-o", "jsonpath={.spec.clusterIP}"]);
    let before = (up.ok(&uid), up.ok(&ip));
    up.restart(&["--runtime", "simulated"]);
    assert_eq!((up.ok(&uid), up.ok(&ip)), before);
    up.ok(&["scale", "deploy/web", "--replicas=4"]);
    up.ok(&["rollout", "status", "deploy/web", "--timeout=60s"]);
}
