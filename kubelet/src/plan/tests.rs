use serde_json::{Value, json};

use super::*;
use crate::runtime::SandboxState;
use crate::testing::{at, pod, sandbox, state};

/// A plan in words, to compare and to read.
fn shown(plan: &Plan) -> String {
    let mut words: Vec<String> = Vec::new();
    if plan.finished {
        words.push("finished".into());
    }
    if plan.reset {
        words.push("reset".into());
    }
    words.extend(plan.sandbox.map(|n| format!("sandbox {n}")));
    words.extend(plan.kill.iter().map(|k| format!("kill {} ({}{})", k.id, k.message, k.grace_seconds.map_or(String::new(), |g| format!(", {g}s")))));
    words.extend(plan.remove.iter().map(|id| format!("remove {id}")));
    words.extend(plan.remove_sandboxes.iter().map(|id| format!("remove {id}")));
    let wait = |b: &Option<Backoff>| b.as_ref().map_or(String::new(), |b| format!(" then {}s", b.delay.as_secs()));
    words.extend(plan.start.iter().map(|s| format!("start {}/{}{}", s.name, s.attempt, wait(&s.backoff))));
    words.extend(plan.waiting.iter().map(|w| format!("wait {} {}s", w.name, w.delay.as_secs())));
    words.extend(plan.wake_at.map(|t| format!("wake {}", t.duration_since(at(0)).as_secs())));
    words.join("; ")
}

/// What a case changes of an observation.
#[derive(Default)]
struct Case {
    probes: Probes,
    backoffs: BTreeMap<String, Backoff>,
    held: BTreeMap<String, Timestamp>,
    sandbox_held: Option<Timestamp>,
    status: Option<Value>,
    now: i64,
}

fn check_case(spec: &Value, containers: &[&str], case: Case, change: impl FnOnce(&mut PodState), expected: &str) {
    let mut pod = pod(spec.clone());
    pod.status = case.status.map(|s| serde_json::from_value(s).expect("a status"));
    let mut state = state(&pod, containers);
    change(&mut state);
    let plan = plan(&Observed {
        pod: &pod,
        state: &state,
        probes: &case.probes,
        backoffs: &case.backoffs,
        held: &case.held,
        sandbox_held: case.sandbox_held,
        now: at(case.now),
    });
    assert_eq!(shown(&plan), expected, "{spec} with {containers:?}");
}

/// With a sandbox and these containers, the plan is...
fn check(spec: &Value, containers: &[&str], expected: &str) {
    check_case(spec, containers, Case { now: 1000, ..Case::default() }, |_| {}, expected);
}

fn one(policy: &str) -> Value {
    json!({"restartPolicy": policy, "containers": [{"name": "a", "image": "i"}]})
}

fn no_sandbox(state: &mut PodState) {
    state.sandboxes.clear();
}

fn dead_sandbox(state: &mut PodState) {
    state.sandboxes[0].state = SandboxState::NotReady;
}

#[test]
fn sandboxes() {
    let case = Case::default;
    check_case(&one("Always"), &[], case(), no_sandbox, "sandbox 0");
    check_case(&one("Always"), &[], case(), dead_sandbox, "sandbox 1");
    check_case(&one("Always"), &["a running"], case(), dead_sandbox, "reset");
    check_case(&one("Always"), &["a exited 1"], case(), dead_sandbox, "sandbox 1");
    check_case(&one("OnFailure"), &["a exited 1"], case(), dead_sandbox, "sandbox 1");
    check_case(&one("OnFailure"), &["a exited 0"], case(), dead_sandbox, "finished");
    check_case(&one("Never"), &["a exited 1"], case(), dead_sandbox, "finished");
    check_case(&one("Never"), &["a running"], case(), dead_sandbox, "finished");
    check_case(&one("Never"), &[], case(), dead_sandbox, "sandbox 1");
    let held = Case { sandbox_held: Some(at(10)), ..Case::default() };
    check_case(&one("Always"), &[], held, no_sandbox, "wake 10");
    // A sandbox without an address is of no use, unless none is needed.
    check_case(&one("Always"), &[], case(), |s| s.sandboxes[0].ip = None, "reset");
    let mut host = one("Always");
    host["hostNetwork"] = json!(true);
    check_case(&host, &[], case(), |s| s.sandboxes[0].ip = None, "start a/0");
    // Old sandboxes go when a new one runs.
    let two = |s: &mut PodState| {
        dead_sandbox(s);
        s.sandboxes.insert(0, sandbox(1));
    };
    check_case(&one("Always"), &["a running"], case(), two, "remove s0");
}

#[test]
fn restart_policies() {
    check(&one("Always"), &[], "start a/0");
    check(&one("Always"), &["a running"], "");
    check(&one("Always"), &["a exited 0"], "start a/1 then 10s");
    check(&one("Always"), &["a exited 1"], "start a/1 then 10s");
    check(&one("OnFailure"), &["a exited 1"], "start a/1 then 10s");
    check(&one("OnFailure"), &["a exited 0"], "finished");
    check(&one("Never"), &["a exited 1"], "finished");
    check(&one("Never"), &["a running"], "");
    // Made and never started: the kubelet ended between the two.
    check(&one("Never"), &["a created"], "remove a0; start a/0");
    check(&one("Always"), &["a unknown"], "start a/1");
}

#[test]
fn containers_have_rules_of_their_own() {
    let rules = json!({"restartPolicy": "Never", "containers": [{"name": "a", "image": "i", "restartPolicy": "Never",
        "restartPolicyRules": [{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]}]});
    check(&rules, &["a exited 42"], "start a/1 then 10s");
    check(&rules, &["a exited 1"], "finished");
    let own = json!({"restartPolicy": "Always", "containers": [{"name": "a", "image": "i", "restartPolicy": "OnFailure"}]});
    check(&own, &["a exited 0"], "finished");
    check(&own, &["a exited 3"], "start a/1 then 10s");
}

#[test]
fn several_containers() {
    let two = json!({"restartPolicy": "Never", "containers": [{"name": "a", "image": "i"}, {"name": "b", "image": "i"}]});
    check(&two, &[], "start a/0; start b/0");
    check(&two, &["a exited 0"], "start b/0");
    check(&two, &["a exited 0", "b running"], "");
    check(&two, &["a exited 1", "b exited 0"], "finished");
}

#[test]
fn waits_double_and_are_forgotten() {
    let spec = one("Always");
    let hash = crate::pod::spec_hash(&crate::pod::containers(&pod(spec.clone()))[0]);
    let known = |delay, since| {
        BTreeMap::from([("a".to_owned(), Backoff { spec_hash: hash.clone(), delay: Duration::from_secs(delay), since: at(since) })])
    };
    let check = |delay: u64, since: i64, ended: i64, now: i64, expected: &str| {
        let case = Case { backoffs: known(delay, since), now, ..Case::default() };
        check_case(&spec, &[&format!("a/1 exited 1 at {ended}")], case, |_| {}, expected);
    };
    check(10, 0, 5, 6, "wait a 10s; wake 15");
    check(10, 0, 5, 15, "start a/2 then 20s");
    check(160, 0, 5, 100, "wait a 160s; wake 165");
    check(160, 0, 5, 165, "start a/2 then 300s");
    check(300, 0, 5, 305, "start a/2 then 300s");
    // It ran for more than ten minutes since its last restart.
    check(300, 0, 605, 606, "start a/2 then 10s");
    // Another image begins anew.
    let mut other = known(300, 0);
    other.get_mut("a").expect("a").spec_hash = "other".into();
    check_case(&spec, &["a/1 exited 1 at 5"], Case { backoffs: other, now: 6, ..Case::default() }, |_| {}, "start a/2 then 10s");
    // A failed start is held.
    let held = Case { held: BTreeMap::from([("a".to_owned(), at(20))]), now: 6, ..Case::default() };
    check_case(&spec, &[], held, |_| {}, "wake 20");
}

#[test]
fn init_containers_run_in_turn() {
    let spec = json!({"restartPolicy": "Always", "containers": [{"name": "a", "image": "i"}],
        "initContainers": [{"name": "x", "image": "i"}, {"name": "y", "image": "i"}]});
    check(&spec, &[], "start x/0");
    check(&spec, &["x running"], "");
    check(&spec, &["x exited 0"], "start y/0");
    check(&spec, &["x exited 0", "y running"], "");
    check(&spec, &["x exited 0", "y exited 0"], "start a/0");
    check(&spec, &["y exited 0"], "start a/0");
    check(&spec, &["x exited 0", "y exited 1"], "start y/1 then 10s");
    check(&spec, &["x exited 0", "y exited 0", "a running"], "");
    check(&spec, &["a running"], "");
    check(&spec, &["x exited 0", "y exited 0", "a exited 1"], "start a/1 then 10s");
    let mut never = spec.clone();
    never["restartPolicy"] = json!("Never");
    check(&never, &["x exited 1"], "finished");
    check(&never, &["x exited 0", "y exited 0", "a exited 0"], "finished");
    // A new sandbox is initialized anew.
    let anew = |s: &mut PodState| {
        dead_sandbox(s);
        s.sandboxes.insert(0, sandbox(1));
    };
    check_case(&spec, &["x exited 0", "y exited 0", "a exited 1"], Case::default(), anew, "remove s0; start x/1 then 10s");
}

#[test]
fn sidecars_go_on() {
    let spec = json!({"restartPolicy": "Never", "containers": [{"name": "a", "image": "i"}],
        "initContainers": [{"name": "s", "image": "i", "restartPolicy": "Always"}, {"name": "y", "image": "i"}]});
    check(&spec, &[], "start s/0");
    check(&spec, &["s running"], "start y/0");
    check(&spec, &["s running", "y running"], "");
    check(&spec, &["s running", "y exited 0"], "start a/0");
    check(&spec, &["s exited 1", "y exited 0", "a running"], "start s/1 then 10s");
    check(&spec, &["s running", "y exited 0", "a exited 0"], "finished");
    check(&spec, &["y exited 0", "a running"], "start s/0");
    // One with a startup probe is waited for.
    let mut probed = spec.clone();
    probed["initContainers"][0]["startupProbe"] = json!({"exec": {"command": ["true"]}});
    check(&probed, &["s running"], "");
    let case = |startup| Case { probes: Probes::from([("s0".to_owned(), Probed { startup, ..Probed::default() })]), ..Case::default() };
    check_case(&probed, &["s running"], case(Some(true)), |_| {}, "start y/0");
    check_case(&probed, &["s running"], case(Some(false)), |_| {}, "kill s0 (Init container s failed startup probe)");
    // The last one that runs makes the pod initialized.
    let last = json!({"containers": [{"name": "a", "image": "i"}], "initContainers": [{"name": "s", "image": "i", "restartPolicy": "Always"}]});
    check(&last, &["s running"], "start a/0");
}

#[test]
fn probes_and_changes_kill() {
    let case = |probed| Case { probes: Probes::from([("a0".to_owned(), probed)]), now: 5, ..Case::default() };
    let dead = Probed { liveness: Some(false), ..Probed::default() };
    let late = Probed { startup: Some(false), ..Probed::default() };
    let mut spec = one("Always");
    spec["containers"][0]["livenessProbe"] = json!({"terminationGracePeriodSeconds": 3});
    check_case(&spec, &["a running"], case(dead), |_| {}, "kill a0 (Container a failed liveness probe, will be restarted, 3s)");
    check_case(&one("Always"), &["a running"], case(late), |_| {}, "kill a0 (Container a failed startup probe, will be restarted)");
    check_case(&one("Never"), &["a running"], case(dead), |_| {}, "kill a0 (Container a failed liveness probe)");
    check_case(&one("Always"), &["a running"], case(Probed { liveness: Some(true), ..dead }), |_| {}, "");
    let changed = |s: &mut PodState| s.containers[0].spec_hash = "other".into();
    check_case(&one("Never"), &["a running"], Case::default(), changed, "kill a0 (Container a definition changed, will be restarted)");
}

#[test]
fn ephemeral_containers_start_once() {
    let spec = json!({"containers": [{"name": "a", "image": "i"}], "ephemeralContainers": [{"name": "e", "image": "i"}]});
    check(&spec, &["a running"], "start e/0");
    check(&spec, &["a running", "e running"], "");
    check(&spec, &["a running", "e exited 1"], "");
}

#[test]
fn the_last_two_of_a_container_are_kept() {
    check(&one("Always"), &["a/0 exited 1", "a/1 exited 1", "a/2 exited 1", "a/3 running"], "remove a1; remove a0");
    check(&one("Always"), &["a/2 exited 1", "a/3 running"], "");
}

#[test]
fn forgotten_containers_count_by_the_status() {
    let status = json!({"containerStatuses": [{"name": "a", "image": "i", "imageID": "", "ready": true, "restartCount": 4, "containerID": "docker://x"}]});
    let case = Case { status: Some(status), now: 1000, ..Case::default() };
    check_case(&one("Always"), &[], case, |_| {}, "start a/5");
}

#[test]
fn deadlines_wake() {
    let mut spec = one("Never");
    spec["activeDeadlineSeconds"] = json!(60);
    let case = Case { status: Some(json!({"startTime": "2026-01-01T00:00:00Z"})), now: 5, ..Case::default() };
    check_case(&spec, &["a running"], case, |_| {}, "wake 60");
}
