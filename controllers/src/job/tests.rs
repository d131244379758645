//! Jobs played through: plan by plan, with pods that run and end.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};
use skiff_api::typed::pods::is_active;

use super::plan::{INDEX, Observed, TRACKING, conclude, holds, is_over, plan, track};

struct World {
    job: Job,
    pods: Vec<Pod>,
    made: usize,
    now: Timestamp,
    events: Vec<String>,
}

impl World {
    fn new(spec: Value) -> Self {
        let mut all = json!({
            "parallelism": 1, "completions": 1, "backoffLimit": 6,
            "template": { "spec": { "restartPolicy": "Never", "containers": [{ "name": "c" }] } },
        });
        json_patch::merge(&mut all, &spec);
        let job = json!({ "metadata": { "name": "job", "namespace": "default", "uid": "j" }, "spec": all });
        Self {
            job: serde_json::from_value(job).expect("a job"),
            pods: Vec::new(),
            made: 0,
            now: "2026-01-01T00:00:00Z".parse().expect("a time"),
            events: Vec::new(),
        }
    }

    fn change(&mut self, spec: Value) {
        let mut value = serde_json::to_value(&self.job).expect("JSON");
        json_patch::merge(&mut value["spec"], &spec);
        self.job = serde_json::from_value(value).expect("a job");
    }

    fn arcs(&self) -> Vec<Arc<Pod>> {
        self.pods.iter().cloned().map(Arc::new).collect()
    }

    /// One reconciliation. Returns for how long nothing is to be done, if the plan says so.
    fn step(&mut self) -> Option<std::time::Duration> {
        if is_over(&self.job) {
            return None;
        }
        let pods = self.arcs();
        let made = plan(&Observed { job: &self.job, pods: &pods, now: self.now });
        for gone in &made.delete {
            let pod = self.pods.iter_mut().find(|p| p.metadata.uid == gone.metadata.uid).expect("a pod");
            if made.uncounted {
                pod.metadata.finalizers = None;
            }
            pod.metadata.deletion_timestamp = Some(Time(self.now));
        }
        self.pods.retain(|p| p.metadata.deletion_timestamp.is_none() || p.metadata.finalizers.is_some());
        for make in &made.make {
            self.made += 1;
            let mut pod = super::pod(&self.job, make);
            pod.metadata.uid = Some(format!("pod-{}", self.made));
            pod.metadata.name = pod.metadata.uid.clone();
            pod.metadata.creation_timestamp = Some(Time(self.now));
            self.pods.push(pod);
        }
        let pods = self.arcs();
        let over = !pods.iter().any(|p| is_active(p));
        let track = track(&Observed { job: &self.job, pods: &pods, now: self.now }, made.end.filter(|_| over));
        self.events.extend(track.events.into_iter().map(|(_, reason, _)| reason));
        for pod in &mut self.pods {
            if track.release.iter().any(|r| r.metadata.uid == pod.metadata.uid) {
                pod.metadata.finalizers = None;
            }
        }
        self.pods.retain(|p| p.metadata.deletion_timestamp.is_none() || p.metadata.finalizers.is_some());
        let (status, _) = conclude(&self.job, track.before, &self.arcs(), track.end.as_ref(), self.now);
        self.job.status = Some(status);
        made.again
    }

    fn active(&self) -> Vec<String> {
        let index = |p: &Pod| p.metadata.annotations.as_ref().and_then(|a| a.get(INDEX).cloned()).unwrap_or_default();
        self.pods.iter().filter(|p| is_active(p)).map(index).collect()
    }

    /// Ends the first active pod (of this index).
    fn finish(&mut self, index: Option<&str>, exit: i32) {
        let now = self.now;
        let of = |p: &&mut Pod| {
            let own = p.metadata.annotations.as_ref().and_then(|a| a.get(INDEX));
            is_active(p) && index.is_none_or(|i| own.is_some_and(|o| o == i))
        };
        let pod = self.pods.iter_mut().find(of).expect("an active pod");
        let phase = if exit == 0 { "Succeeded" } else { "Failed" };
        let terminated = json!({ "exitCode": exit, "finishedAt": now.to_string() });
        let status = json!({ "phase": phase, "containerStatuses": [
            { "name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": { "terminated": terminated } }] });
        pod.status = serde_json::from_value(status).expect("a status");
    }

    fn wait(&mut self, seconds: i64) {
        self.now += SignedDuration::from_secs(seconds);
    }

    /// succeeded, failed, what the Job came to.
    fn counts(&self) -> (i32, i32, String) {
        let status = self.job.status.clone().unwrap_or_default();
        let end = holds(&status, "Complete").or(holds(&status, "Failed"));
        let uncounted = status.uncounted_terminated_pods.clone().unwrap_or_default();
        assert!(end.is_none() || (uncounted.succeeded.is_none() && uncounted.failed.is_none()));
        let end = end.map(|c| format!("{} {}", c.type_, c.reason.clone().unwrap_or_default())).unwrap_or_default();
        (status.succeeded.unwrap_or(0), status.failed.unwrap_or(0), end)
    }
}

#[test]
fn so_many_completions_so_many_at_a_time() {
    let mut world = World::new(json!({ "parallelism": 2, "completions": 3 }));
    world.step();
    assert_eq!(world.active().len(), 2);
    assert!(world.pods.iter().all(|p| p.metadata.finalizers == Some(vec![TRACKING.into()])));
    world.finish(None, 0);
    world.step();
    assert_eq!((world.active().len(), world.counts().0), (2, 1));
    world.finish(None, 0);
    world.step();
    world.finish(None, 0);
    world.step();
    assert_eq!(world.counts(), (3, 0, "Complete CompletionsReached".into()));
    let status = world.job.status.clone().expect("a status");
    assert!(holds(&status, "SuccessCriteriaMet").is_some() && status.completion_time.is_some());
    assert!(world.pods.iter().all(|p| p.metadata.finalizers.is_none()), "all are released");
}

#[test]
fn failures_are_waited_for_and_then_enough() {
    let mut world = World::new(json!({ "backoffLimit": 2 }));
    for expected in [10, 20] {
        world.step();
        assert_eq!(world.active().len(), 1);
        world.finish(None, 1);
        let wait = world.step().expect("a wait");
        assert_eq!((wait.as_secs(), world.active().len()), (expected, 0));
        world.wait(expected as i64 + 1);
    }
    world.step();
    world.finish(None, 1);
    world.step();
    assert_eq!(world.counts(), (0, 3, "Failed BackoffLimitExceeded".into()));
    let status = world.job.status.clone().expect("a status");
    assert!(holds(&status, "FailureTarget").is_some());
}

#[test]
fn without_completions_the_first_success_is_enough() {
    let mut world = World::new(json!({ "parallelism": 3, "completions": null }));
    world.step();
    assert_eq!(world.active().len(), 3);
    world.finish(None, 0);
    world.step();
    assert_eq!(world.active().len(), 2, "the others finish");
    world.finish(None, 1);
    world.finish(None, 0);
    world.step();
    assert_eq!(world.counts(), (2, 1, "Complete CompletionsReached".into()));
}

#[test]
fn indexes_are_done_once_each() {
    let mut world = World::new(json!({ "parallelism": 3, "completions": 4, "completionMode": "Indexed" }));
    world.step();
    assert_eq!(world.active(), ["0", "1", "2"]);
    let pod = &world.pods[1];
    assert_eq!(pod.metadata.generate_name.as_deref(), Some("job-1-"));
    assert_eq!(pod.spec.as_ref().and_then(|s| s.hostname.as_deref()), Some("job-1"));
    world.finish(Some("1"), 0);
    world.step();
    assert_eq!(world.active(), ["0", "2", "3"]);
    world.finish(Some("2"), 1);
    world.wait(60);
    world.step();
    assert_eq!(world.active(), ["0", "3", "2"]);
    for index in ["0", "3", "2"] {
        world.finish(Some(index), 0);
    }
    world.step();
    assert_eq!(world.counts(), (4, 1, "Complete CompletionsReached".into()));
    assert_eq!(world.job.status.and_then(|s| s.completed_indexes).as_deref(), Some("0-3"));
}

#[test]
fn an_index_fails_for_itself() {
    let mut world =
        World::new(json!({ "parallelism": 2, "completions": 2, "completionMode": "Indexed", "backoffLimitPerIndex": 1, "backoffLimit": i32::MAX }));
    world.step();
    world.finish(Some("0"), 1);
    assert_eq!(world.step().map(|d| d.as_secs()), Some(10));
    assert!(world.pods.iter().any(|p| p.metadata.finalizers.is_some() && !is_active(p)), "kept for its count");
    world.wait(11);
    world.step();
    assert_eq!(world.active(), ["1", "0"]);
    world.finish(Some("0"), 1);
    world.step();
    assert_eq!(world.job.status.as_ref().and_then(|s| s.failed_indexes.as_deref()), Some("0"));
    world.finish(Some("1"), 0);
    world.step();
    assert_eq!(world.counts(), (1, 2, "Failed FailedIndexes".into()));
}

#[test]
fn enough_indexes_end_it_early() {
    let policy = json!({ "rules": [{ "succeededIndexes": "0" }] });
    let mut world = World::new(json!({ "parallelism": 3, "completions": 3, "completionMode": "Indexed", "successPolicy": policy }));
    world.step();
    world.finish(Some("0"), 0);
    world.step();
    assert_eq!(world.counts(), (1, 0, "Complete SuccessPolicy".into()));
}

#[test]
fn a_suspended_job_has_no_pods() {
    let mut world = World::new(json!({ "parallelism": 2, "completions": 2 }));
    world.step();
    world.change(json!({ "suspend": true }));
    world.step();
    assert_eq!((world.active().len(), world.counts()), (0, (0, 0, String::new())));
    world.wait(100);
    world.change(json!({ "suspend": false }));
    world.step();
    assert_eq!(world.active().len(), 2);
    assert_eq!(world.events, ["Suspended", "Resumed"]);
    assert_eq!(world.job.status.and_then(|s| s.start_time).map(|t| t.0), Some(world.now));
}

#[test]
fn a_deadline_ends_it() {
    let mut world = World::new(json!({ "activeDeadlineSeconds": 60 }));
    world.step();
    world.wait(59);
    assert_eq!(world.step().map(|d| d.as_secs()), Some(1));
    world.wait(1);
    world.step();
    assert_eq!(world.counts(), (0, 1, "Failed DeadlineExceeded".into()));
}

#[test]
fn the_failure_policy_decides() {
    let policy = json!({ "rules": [
        { "action": "Ignore", "onExitCodes": { "operator": "In", "values": [7] } },
        { "action": "FailJob", "onExitCodes": { "operator": "In", "values": [42] } }] });
    let mut world = World::new(json!({ "podFailurePolicy": policy, "backoffLimit": 0 }));
    world.step();
    world.finish(None, 7);
    world.step();
    assert_eq!(world.counts(), (0, 0, String::new()), "it doesn't count");
    world.wait(20);
    world.step();
    world.finish(None, 42);
    world.step();
    assert_eq!(world.counts(), (0, 1, "Failed PodFailurePolicy".into()));
}
