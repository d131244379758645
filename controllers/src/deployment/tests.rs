//! Rollouts played through: plan by plan, with ReplicaSets that follow.

use std::collections::HashSet;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use serde_json::{Value, json};

use super::plan::{Observed, Plan, plan, replicas};
use super::status::condition;

/// A Deployment with its ReplicaSets, and what was told about it.
struct World {
    deployment: Deployment,
    sets: Vec<ReplicaSet>,
    now: Timestamp,
    events: Vec<String>,
    /// Whether new pods become available.
    healthy: bool,
}

impl World {
    fn new(spec: Value) -> Self {
        let mut all = json!({
            "replicas": 3, "selector": { "matchLabels": { "app": "web" } }, "progressDeadlineSeconds": 600,
            "revisionHistoryLimit": 2,
            "strategy": { "type": "RollingUpdate", "rollingUpdate": { "maxSurge": "25%", "maxUnavailable": "25%" } },
            "template": { "metadata": { "labels": { "app": "web" } },
                          "spec": { "containers": [{ "name": "c", "image": "v1" }] } },
        });
        json_patch::merge(&mut all, &spec);
        let deployment = json!({ "metadata": { "name": "web", "namespace": "default", "uid": "d", "generation": 1 }, "spec": all });
        Self {
            deployment: serde_json::from_value(deployment).expect("a deployment"),
            sets: Vec::new(),
            now: "2026-01-01T00:00:00Z".parse().expect("a time"),
            events: Vec::new(),
            healthy: true,
        }
    }

    fn change(&mut self, spec: Value) {
        let mut value = serde_json::to_value(&self.deployment).expect("JSON");
        json_patch::merge(&mut value["spec"], &spec);
        self.deployment = serde_json::from_value(value).expect("a deployment");
        self.deployment.metadata.generation = self.deployment.metadata.generation.map(|g| g + 1);
    }

    /// Makes a plan and carries it out. Whether it changed anything.
    fn step(&mut self) -> bool {
        self.now += SignedDuration::from_secs(1);
        let observed = Observed {
            deployment: &self.deployment,
            sets: self.sets.iter().cloned().map(Arc::new).collect(),
            running: HashSet::new(),
            now: self.now,
        };
        let Plan { create, patches, events, delete, revision, status, again: _ } = plan(&observed);
        let changed = create.is_some()
            || !patches.is_empty()
            || !delete.is_empty()
            || revision.is_some()
            || Some(&status) != self.deployment.status.as_ref();
        self.events.extend(events);
        self.sets.extend(create.map(|mut set| {
            set.metadata.uid = set.metadata.name.clone();
            set.metadata.generation = Some(1);
            set.metadata.creation_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(self.now));
            set
        }));
        for (meta, patch) in patches {
            for set in self.sets.iter_mut().filter(|s| s.metadata.name == meta.name) {
                let mut value = serde_json::to_value(&*set).expect("JSON");
                json_patch::merge(&mut value, &patch);
                *set = serde_json::from_value(value).expect("a set");
            }
        }
        self.sets.retain(|s| !delete.iter().any(|m| m.name == s.metadata.name));
        if let Some(revision) = revision {
            let annotations = self.deployment.metadata.annotations.get_or_insert_default();
            annotations.insert("deployment.kubernetes.io/revision".into(), revision);
        }
        self.deployment.status = Some(status);
        changed
    }

    /// Has the ReplicaSets follow their specs.
    fn follow(&mut self) {
        for set in &mut self.sets {
            let count = replicas(set);
            let image = set.spec.as_ref().and_then(|s| s.template.as_ref()?.spec.as_ref()?.containers[0].image.clone());
            let before = set.status.as_ref().and_then(|s| s.available_replicas).unwrap_or(0);
            let works = self.healthy || image.as_deref() != Some("broken");
            let status = set.status.get_or_insert_default();
            status.replicas = count;
            status.available_replicas = Some(if works { count } else { before.min(count) });
            status.ready_replicas = status.available_replicas;
            status.observed_generation = set.metadata.generation;
            status.terminating_replicas = Some(0);
        }
    }

    /// Steps until nothing changes, and checks at each step that neither too many nor too few pods are there.
    fn settle(&mut self, least: i32, most: i32) -> usize {
        for step in 0..200 {
            let changed = self.step();
            let (total, available) = self.sets.iter().fold((0, 0), |(t, a), s| {
                let status = s.status.clone().unwrap_or_default();
                (t + replicas(s), a + status.available_replicas.unwrap_or(0).min(replicas(s)))
            });
            assert!(total <= most, "step {step}: {total} pods asked for, at most {most}");
            assert!(step == 0 || available >= least, "step {step}: {available} available, at least {least}");
            if !changed {
                return step;
            }
            self.follow();
        }
        panic!("never came to rest");
    }

    fn image(&self, image: &str) -> Option<&ReplicaSet> {
        let of = |s: &ReplicaSet| s.spec.as_ref()?.template.as_ref()?.spec.as_ref()?.containers[0].image.clone();
        self.sets.iter().find(|s| of(s).as_deref() == Some(image))
    }

    fn says(&self, type_: &str) -> (String, String) {
        let status = self.deployment.status.clone().unwrap_or_default();
        condition(&status, type_).map_or_else(Default::default, |c| (c.status.clone(), c.reason.clone().unwrap_or_default()))
    }
}

fn image(image: &str) -> Value {
    json!({ "template": { "spec": { "containers": [{ "name": "c", "image": image }] } } })
}

fn is(status: &str, reason: &str) -> (String, String) {
    (status.into(), reason.into())
}

#[test]
fn a_first_rollout() {
    let mut world = World::new(json!({}));
    world.step();
    assert_eq!(world.says("Progressing"), is("True", "NewReplicaSetCreated"));
    assert_eq!(world.says("Available"), is("False", "MinimumReplicasUnavailable"));
    let name = world.sets[0].metadata.name.clone().expect("a name");
    assert_eq!(world.events, [format!("Scaled up replica set {name} from 0 to 3")]);
    world.follow();
    world.settle(3, 3);
    assert_eq!(world.says("Progressing"), is("True", "NewReplicaSetAvailable"));
    assert_eq!(world.says("Available"), is("True", "MinimumReplicasAvailable"));
    assert_eq!(world.deployment.metadata.annotations.clone().unwrap_or_default()["deployment.kubernetes.io/revision"], "1");
}

#[test]
fn a_rolling_update_keeps_within_its_bounds() {
    for (replicas_wanted, surge, unavailable, least, most) in
        [(3, "25%", "25%", 3, 4), (10, "25%", "25%", 8, 13), (10, "0%", "10%", 9, 10), (1, "0%", "0%", 0, 1), (4, "100%", "0%", 4, 8)]
    {
        let strategy = json!({ "rollingUpdate": { "maxSurge": surge, "maxUnavailable": unavailable } });
        let mut world = World::new(json!({ "replicas": replicas_wanted, "strategy": strategy }));
        world.settle(0, most);
        world.change(image("v2"));
        world.settle(least, most);
        assert_eq!(world.image("v2").map(replicas), Some(replicas_wanted));
        assert_eq!(world.image("v1").map(replicas), Some(0));
        assert_eq!(world.says("Progressing"), is("True", "NewReplicaSetAvailable"));
    }
}

#[test]
fn a_broken_update_stops_and_is_undone() {
    let mut world = World::new(json!({ "replicas": 10 }));
    world.settle(0, 13);
    world.healthy = false;
    world.change(image("broken"));
    world.settle(8, 13);
    assert_eq!(world.image("broken").map(replicas), Some(5), "surge of 3 and 2 that may be missing");
    world.now += SignedDuration::from_secs(700);
    world.settle(8, 13);
    assert_eq!(world.says("Progressing"), is("False", "ProgressDeadlineExceeded"));
    world.change(image("v1"));
    world.settle(8, 13);
    let back = world.image("v1").expect("the set of v1");
    assert_eq!(replicas(back), 10);
    let annotations = back.metadata.annotations.clone().unwrap_or_default();
    assert_eq!(annotations["deployment.kubernetes.io/revision"], "3");
    assert_eq!(annotations["deployment.kubernetes.io/revision-history"], "1");
}

#[test]
fn recreate_takes_all_old_pods_away_first() {
    let mut world = World::new(json!({ "strategy": { "type": "Recreate", "rollingUpdate": null } }));
    world.settle(0, 3);
    world.change(image("v2"));
    world.step();
    assert_eq!(world.image("v1").map(replicas), Some(0));
    assert!(world.image("v2").is_none(), "not before the old pods are gone");
    world.follow();
    world.settle(0, 3);
    assert_eq!(world.image("v2").map(replicas), Some(3));
}

#[test]
fn scaling_amid_a_rollout_is_proportional() {
    let mut world = World::new(json!({ "replicas": 10, "strategy": { "rollingUpdate": { "maxSurge": 3, "maxUnavailable": 2 } } }));
    world.settle(0, 13);
    world.healthy = false;
    world.change(image("broken"));
    world.settle(8, 13);
    assert_eq!((world.image("v1").map(replicas), world.image("broken").map(replicas)), (Some(8), Some(5)));
    // Upstream's documented example: 5 more are shared out as 3 and 2.
    world.change(json!({ "replicas": 15 }));
    world.step();
    assert_eq!((world.image("v1").map(replicas), world.image("broken").map(replicas)), (Some(11), Some(7)));
}

#[test]
fn a_paused_deployment_scales_but_does_not_roll() {
    let mut world = World::new(json!({}));
    world.settle(0, 4);
    world.change(json!({ "paused": true }));
    world.change(image("v2"));
    world.change(json!({ "replicas": 5 }));
    world.settle(3, 5);
    assert!(world.image("v2").is_none());
    assert_eq!(world.image("v1").map(replicas), Some(5));
    assert_eq!(world.says("Progressing"), is("Unknown", "DeploymentPaused"));
    world.change(json!({ "paused": false }));
    world.step();
    world.follow();
    world.settle(3, 7);
    assert_eq!(world.image("v2").map(replicas), Some(5));
}

#[test]
fn history_is_kept_within_its_limit() {
    let mut world = World::new(json!({}));
    for version in ["v1", "v2", "v3", "v4", "v5"] {
        world.change(image(version));
        world.settle(0, 4);
    }
    assert_eq!(world.sets.len(), 3, "the present one and two old ones");
    assert!(world.image("v3").is_some() && world.image("v2").is_none());
}
