use serde_json::{Value, json};

use super::*;
use crate::plan::Probed;
use crate::testing::{at, pod, state};

struct Case {
    spec: Value,
    containers: &'static [&'static str],
    old: Value,
    waiting: &'static [(&'static str, &'static str)],
    probes: Probes,
    stage: Stage,
    verdict: Option<Verdict>,
    deleted: bool,
}

fn case(spec: Value, containers: &'static [&'static str]) -> Case {
    Case { spec, containers, old: json!({}), waiting: &[], probes: Probes::new(), stage: Stage::Live, verdict: None, deleted: false }
}

fn one(policy: &str) -> Value {
    json!({"restartPolicy": policy, "containers": [{"name": "a", "image": "i"}]})
}

fn with_init(policy: &str) -> Value {
    json!({"restartPolicy": policy, "containers": [{"name": "a", "image": "i"}], "initContainers": [{"name": "x", "image": "i"}]})
}

impl Case {
    fn status(&self) -> PodStatus {
        let mut pod = pod(self.spec.clone());
        pod.metadata.deletion_timestamp = self.deleted.then(|| Time(at(1)));
        pod.status = Some(serde_json::from_value(self.old.clone()).expect("a status"));
        let state = state(&pod, self.containers);
        let waiting = self.waiting.iter().map(|(name, reason)| ((*name).to_owned(), Waiting::new(*reason, "m"))).collect();
        pod_status(&Input {
            pod: &pod,
            old: pod.status.as_ref().expect("a status"),
            state: &state,
            runtime: "docker",
            waiting: &waiting,
            probes: &self.probes,
            host_ip: [192, 168, 0, 1].into(),
            stage: self.stage,
            verdict: self.verdict.as_ref(),
            now: at(100),
        })
    }

    /// `Phase a=state[/ready] ...; condition=False(reason) ...`: what is said, without what is as usual.
    fn check(&self, expected: &str) {
        let status = self.status();
        let container = |c: &ContainerStatus| {
            let text = |t: &Option<String>| t.clone().unwrap_or_default();
            let state = |s: &ContainerState| match (&s.waiting, &s.running, &s.terminated) {
                (Some(w), ..) => format!("waiting({})", text(&w.reason)),
                (_, Some(_), _) => "running".into(),
                (.., Some(t)) => format!("{}({})", text(&t.reason), t.exit_code),
                _ => String::new(),
            };
            let last = c.last_state.as_ref().map(state).filter(|s| !s.is_empty()).map(|s| format!("<{s}")).unwrap_or_default();
            let count = if c.restart_count > 0 { format!("#{}", c.restart_count) } else { String::new() };
            let ready = if c.ready { "+" } else { "" };
            format!("{}{count}={}{last}{ready}", c.name, c.state.as_ref().map(state).unwrap_or_default())
        };
        let lists = [&status.init_container_statuses, &status.container_statuses, &status.ephemeral_container_statuses];
        let containers: Vec<_> = lists.into_iter().flat_map(|l| l.iter().flatten()).map(container).collect();
        let conditions: Vec<_> = (status.conditions.iter().flatten())
            .filter(|c| c.status != "True" || c.reason.is_some())
            .map(|c| format!("{}={}({})", c.type_, c.status, c.reason.as_deref().unwrap_or_default()))
            .collect();
        let reason = status.reason.as_deref().map(|r| format!(" {r}")).unwrap_or_default();
        let shown = format!("{}{reason} {}; {}", status.phase.as_deref().unwrap_or_default(), containers.join(" "), conditions.join(" "));
        assert_eq!(shown.trim_end_matches("; ").trim_end(), expected, "{} with {:?}", self.spec, self.containers);
    }
}

const NOT_READY: &str = "Ready=False(ContainersNotReady) ContainersReady=False(ContainersNotReady)";
const COMPLETED: &str = "Initialized=True(PodCompleted) Ready=False(PodCompleted) ContainersReady=False(PodCompleted)";
const FAILED: &str = "Ready=False(PodFailed) ContainersReady=False(PodFailed)";

#[test]
fn phases_of_one_container() {
    let check = |policy: &str, containers, expected: &str| case(one(policy), containers).check(expected);
    check("Always", &[], &format!("Pending a=waiting(ContainerCreating); {NOT_READY}"));
    check("Always", &["a created"], &format!("Pending a=waiting(); {NOT_READY}"));
    check("Always", &["a running"], "Running a=running+");
    check("Always", &["a exited 0"], &format!("Running a=Completed(0); {NOT_READY}"));
    check("OnFailure", &["a exited 1"], &format!("Running a=Error(1); {NOT_READY}"));
    check("OnFailure", &["a exited 0"], &format!("Succeeded a=Completed(0); {COMPLETED}"));
    check("Never", &["a exited 0"], &format!("Succeeded a=Completed(0); {COMPLETED}"));
    check("Never", &["a exited 1"], &format!("Failed a=Error(1); {FAILED}"));
    check("Always", &["a/0 exited 1", "a/1 running"], "Running a#1=running<Error(1)+");
}

#[test]
fn waiting_containers_say_why() {
    let check = |policy: &str, containers, waiting, expected: &str| Case { waiting, ..case(one(policy), containers) }.check(expected);
    check("Always", &[], &[("a", "ErrImagePull")], &format!("Pending a=waiting(ErrImagePull); {NOT_READY}"));
    check("Always", &["a/3 exited 1"], &[("a", "CrashLoopBackOff")], &format!("Running a#3=waiting(CrashLoopBackOff)<Error(1); {NOT_READY}"));
    // What runs doesn't wait, and what won't run again doesn't either.
    check("Always", &["a running"], &[("a", "CrashLoopBackOff")], "Running a=running+");
    check("Never", &["a exited 1"], &[("a", "CrashLoopBackOff")], &format!("Failed a=Error(1); {FAILED}"));
}

#[test]
fn init_containers() {
    let check = |policy: &str, containers, expected: &str| case(with_init(policy), containers).check(expected);
    let uninitialized = format!("Initialized=False(ContainersNotInitialized) {NOT_READY}");
    check("Always", &[], &format!("Pending x=waiting(PodInitializing) a=waiting(PodInitializing); {uninitialized}"));
    check("Always", &["x running"], &format!("Pending x=running a=waiting(PodInitializing); {uninitialized}"));
    check("Always", &["x exited 1"], &format!("Pending x=Error(1) a=waiting(PodInitializing); {uninitialized}"));
    check("Never", &["x exited 1"], &format!("Failed x=Error(1) a=waiting(PodInitializing); Initialized=False(ContainersNotInitialized) {FAILED}"));
    check("Always", &["x exited 0"], &format!("Pending x=Completed(0)+ a=waiting(PodInitializing); {NOT_READY}"));
    check("Always", &["x exited 0", "a running"], "Running x=Completed(0)+ a=running+");
    // The runtime forgot it; the pod is initialized all the same.
    check("Always", &["a running"], "Running x=Completed(0)+ a=running+");
}

#[test]
fn sidecars_do_not_hold_the_pod() {
    let spec = json!({"restartPolicy": "Never", "containers": [{"name": "a", "image": "i"}],
        "initContainers": [{"name": "s", "image": "i", "restartPolicy": "Always"}]});
    case(spec.clone(), &["s running"]).check(&format!("Pending s=running+ a=waiting(PodInitializing); {NOT_READY}"));
    case(spec.clone(), &["s running", "a running"]).check("Running s=running+ a=running+");
    case(spec.clone(), &["s exited 1", "a running"]).check(&format!("Running s=Error(1) a=running+; {NOT_READY}"));
    case(spec.clone(), &["s running", "a exited 0"]).check(&format!("Running s=running+ a=Completed(0); {NOT_READY}"));
    case(spec, &["s exited 137", "a exited 0"]).check(&format!("Succeeded s=Error(137) a=Completed(0); {COMPLETED}"));
}

#[test]
fn probes_decide_readiness() {
    let mut spec = one("Always");
    spec["containers"][0]["readinessProbe"] = json!({"tcpSocket": {"port": 1}});
    let probes = |probed| Probes::from([("a0".to_owned(), probed)]);
    let check = |spec: &Value, probed, expected: &str| Case { probes: probes(probed), ..case(spec.clone(), &["a running"]) }.check(expected);
    check(&spec, Probed::default(), &format!("Running a=running; {NOT_READY}"));
    check(&spec, Probed { readiness: Some(true), ..Probed::default() }, "Running a=running+");
    check(&spec, Probed { readiness: Some(false), ..Probed::default() }, &format!("Running a=running; {NOT_READY}"));
    let mut slow = one("Always");
    slow["containers"][0]["startupProbe"] = json!({"tcpSocket": {"port": 1}});
    check(&slow, Probed::default(), &format!("Running a=running; {NOT_READY}"));
    check(&slow, Probed { startup: Some(true), ..Probed::default() }, "Running a=running+");
}

#[test]
fn readiness_gates() {
    let mut spec = one("Always");
    spec["readinessGates"] = json!([{"conditionType": "example.com/up"}]);
    let gated = case(spec.clone(), &["a running"]);
    gated.check("Running a=running+; Ready=False(ReadinessGatesNotReady)");
    let ready = gated.status().conditions.into_iter().flatten().find(|c| c.type_ == "Ready").expect("a condition");
    assert_eq!(ready.message.as_deref(), Some("corresponding condition of pod readiness gate \"example.com/up\" does not exist."));
    let up = json!({"conditions": [{"type": "example.com/up", "status": "True"}]});
    Case { old: up, ..case(spec, &["a running"]) }.check("Running a=running+");
}

#[test]
fn final_phases_wait_for_the_last_container_and_then_stay() {
    let two = json!({"restartPolicy": "Never", "containers": [{"name": "a", "image": "i"}], "initContainers": [{"name": "x", "image": "i"}]});
    // An init container failed for good while another container still ends.
    Case { old: json!({"phase": "Pending"}), ..case(two, &["x exited 1", "a running"]) }
        .check("Pending x=Error(1) a=running+");
    Case { old: json!({"phase": "Succeeded"}), ..case(one("Always"), &["a running"]) }
        .check("Succeeded a=running+; Initialized=True(PodCompleted) Ready=False(PodCompleted) ContainersReady=False(PodCompleted)");
}

#[test]
fn ended_pods() {
    let ended = |spec, containers| Case { stage: Stage::Ended, deleted: true, ..case(spec, containers) };
    ended(one("Always"), &["a exited 0"]).check(&format!("Succeeded a=Completed(0); {COMPLETED}"));
    ended(one("Always"), &["a exited 137"]).check(&format!("Failed a=Error(137); {FAILED}"));
    ended(one("Always"), &[]).check(&format!("Failed a=ContainerStatusUnknown(137); {FAILED}"));
    // What never could run isn't said to have failed.
    ended(with_init("Always"), &["x exited 1"]).check(&format!(
        "Failed x=Error(1) a=waiting(PodInitializing); Initialized=False(ContainersNotInitialized) {FAILED}"
    ));
    let late = Verdict { reason: "DeadlineExceeded".into(), message: "m".into() };
    Case { verdict: Some(late), deleted: false, ..ended(one("Always"), &["a exited 0"]) }
        .check(&format!("Failed DeadlineExceeded a=Completed(0); {FAILED}"));
}

#[test]
fn a_forgotten_container_that_ran_is_told_as_lost() {
    let old = json!({"phase": "Running", "containerStatuses":
        [{"name": "a", "image": "i", "imageID": "", "ready": true, "restartCount": 2, "containerID": "docker://x", "state": {"running": {}}}]});
    Case { old, ..case(one("Always"), &[]) }
        .check(&format!("Running a#3=waiting(ContainerCreating)<ContainerStatusUnknown(137); {NOT_READY}"));
}

#[test]
fn transition_times_move_with_the_status_only() {
    let old = json!({"conditions": [
        {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:05Z"},
        {"type": "ContainersReady", "status": "False", "lastTransitionTime": "2026-01-01T00:00:05Z"},
        {"type": "DisruptionTarget", "status": "True", "lastTransitionTime": "2026-01-01T00:00:05Z"}]});
    let status = Case { old, ..case(one("Always"), &["a running"]) }.status();
    let time = |type_: &str| status.conditions.iter().flatten().find(|c| c.type_ == type_).and_then(|c| c.last_transition_time.clone()).map(|t| t.0);
    assert_eq!(time("Ready"), Some(at(5)));
    assert_eq!(time("ContainersReady"), Some(at(100)));
    assert_eq!(time("DisruptionTarget"), Some(at(5)), "conditions of others are kept");
}

#[test]
fn patches_say_what_changed_and_nothing_else() {
    let old = case(one("Always"), &[]).status();
    assert_eq!(patch("u", &old, &old), None);
    let mut new = case(one("Always"), &["a running"]).status();
    new.start_time = old.start_time.clone();
    let change = patch("u", &old, &new).expect("a patch");
    assert_eq!(change["metadata"], json!({"uid": "u"}));
    let status = change["status"].as_object().expect("a status");
    let keys: Vec<_> = status.keys().map(String::as_str).collect();
    assert_eq!(keys, ["conditions", "containerStatuses", "phase"]);
    let types: Vec<_> = status["conditions"].as_array().expect("a list").iter().map(|c| c["type"].as_str().unwrap_or_default()).collect();
    assert_eq!(types, ["Ready", "ContainersReady"], "conditions that stay are left out");
    assert_eq!(status["conditions"][0]["reason"], Value::Null);
    assert!(status["conditions"][0].as_object().is_some_and(|c| c.contains_key("reason")), "what goes is said");
    let mut gone = new.clone();
    gone.pod_ip = None;
    gone.pod_ips = Some(vec![PodIP { ip: "10.0.0.9".into() }]);
    let change = patch("u", &new, &gone).expect("a patch");
    assert_eq!(change["status"], json!({"podIP": null, "podIPs": [{"ip": "10.0.0.9"}, {"$patch": "replace"}]}));
}
