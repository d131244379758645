//! ReplicaSet and ReplicationController: so many pods of one template. One implementation for the two kinds.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::{
    Pod, PodTemplateSpec, ReplicationController, ReplicationControllerCondition, ReplicationControllerStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use skiff_api::clock;
use skiff_api::labels::Selector;
use skiff_api::typed::pods::{available_at, controller_of, is_active, is_finished, is_ready};
use skiff_api::typed::selector;

use crate::claim::{claim, controller_ref, selects};
use crate::controller::{Again, Controller};
use crate::error::Error;
use crate::kind::{By, Change, Key, Kind, Object, message};
use crate::{Context, pods};

/// A kind that keeps so many pods of a template.
pub trait Replicated: Object {
    /// The name that events carry.
    const SOURCE: &'static str;
    /// All objects of this kind.
    fn shared(context: &Context) -> &Arc<Kind<Self>>;
    /// The number of pods wanted.
    fn replicas(&self) -> i32;
    /// Which pods are its own.
    fn selector(&self) -> Selector;
    /// What pods are made of.
    fn template(&self) -> Option<&PodTemplateSpec>;
    /// For how many seconds a pod must be ready to count as available.
    fn min_ready_seconds(&self) -> i32;
    /// The status, in ReplicaSet's form.
    fn status(&self) -> ReplicaSetStatus;
    /// The same object with another status.
    fn with_status(&self, status: ReplicaSetStatus) -> Self;
}

impl Replicated for ReplicaSet {
    const SOURCE: &'static str = "replicaset-controller";

    fn shared(context: &Context) -> &Arc<Kind<Self>> {
        &context.kinds.replica_sets
    }

    fn replicas(&self) -> i32 {
        self.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
    }

    fn selector(&self) -> Selector {
        selector::of(self.spec.as_ref().map(|s| &s.selector))
    }

    fn template(&self) -> Option<&PodTemplateSpec> {
        self.spec.as_ref()?.template.as_ref()
    }

    fn min_ready_seconds(&self) -> i32 {
        self.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0)
    }

    fn status(&self) -> ReplicaSetStatus {
        self.status.clone().unwrap_or_default()
    }

    fn with_status(&self, status: ReplicaSetStatus) -> Self {
        Self { status: Some(status), ..self.clone() }
    }
}

impl Replicated for ReplicationController {
    const SOURCE: &'static str = "replication-controller";

    fn shared(context: &Context) -> &Arc<Kind<Self>> {
        &context.kinds.replication_controllers
    }

    fn replicas(&self) -> i32 {
        self.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
    }

    fn selector(&self) -> Selector {
        selector::of_map(self.spec.as_ref().and_then(|s| s.selector.as_ref()))
    }

    fn template(&self) -> Option<&PodTemplateSpec> {
        self.spec.as_ref()?.template.as_ref()
    }

    fn min_ready_seconds(&self) -> i32 {
        self.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0)
    }

    fn status(&self) -> ReplicaSetStatus {
        let own = self.status.clone().unwrap_or_default();
        let condition = |c: ReplicationControllerCondition| ReplicaSetCondition {
            last_transition_time: c.last_transition_time,
            message: c.message,
            reason: c.reason,
            status: c.status,
            type_: c.type_,
        };
        ReplicaSetStatus {
            available_replicas: own.available_replicas,
            conditions: own.conditions.map(|all| all.into_iter().map(condition).collect()),
            fully_labeled_replicas: own.fully_labeled_replicas,
            observed_generation: own.observed_generation,
            ready_replicas: own.ready_replicas,
            replicas: own.replicas,
            terminating_replicas: None,
        }
    }

    fn with_status(&self, status: ReplicaSetStatus) -> Self {
        let condition = |c: ReplicaSetCondition| ReplicationControllerCondition {
            last_transition_time: c.last_transition_time,
            message: c.message,
            reason: c.reason,
            status: c.status,
            type_: c.type_,
        };
        let own = ReplicationControllerStatus {
            available_replicas: status.available_replicas,
            conditions: status.conditions.map(|all| all.into_iter().map(condition).collect()),
            fully_labeled_replicas: status.fully_labeled_replicas,
            observed_generation: status.observed_generation,
            ready_replicas: status.ready_replicas,
            replicas: status.replicas,
        };
        Self { status: Some(own), ..self.clone() }
    }
}

/// Runs the controller of one of the kinds.
pub fn run<K: Replicated>(context: Arc<Context>) -> impl Future<Output = ()> {
    let kind = K::shared(&context).clone();
    let all = kind.clone();
    Controller::new(K::SOURCE, &kind)
        .owns(&*context.kinds.pods)
        .on(&*context.kinds.pods, move |change: &Change<Pod>| would_adopt(&all, change))
        .run(context, reconcile::<K>)
}

/// The objects that would adopt a pod without owner.
fn would_adopt<K: Replicated>(all: &Kind<K>, change: &Change<Pod>) -> Vec<kube::runtime::reflector::ObjectRef<K>> {
    let Some(pod) = change.new.as_ref().filter(|p| controller_of(&p.metadata).is_none()) else { return Vec::new() };
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    let mut found = all.find(&By::Namespace(namespace));
    found.retain(|k| selects(&k.selector(), &**pod));
    found.iter().map(|k| Key::of(k.meta()).reference()).collect()
}

/// What is to be done.
#[derive(Debug, PartialEq)]
enum Plan {
    /// Nothing.
    Rest,
    /// So many pods are missing.
    Create(usize),
    /// These pods are too many.
    Delete(Vec<Arc<Pod>>),
}

/// Decides how many pods to make or which to delete. `related` are the pods of all sets of the same owner.
fn plan(wanted: i32, mut active: Vec<Arc<Pod>>, related: &[Arc<Pod>], now: Timestamp) -> Plan {
    let wanted = usize::try_from(wanted).unwrap_or(0);
    match active.len().cmp(&wanted) {
        std::cmp::Ordering::Equal => Plan::Rest,
        std::cmp::Ordering::Less => Plan::Create((wanted - active.len()).min(pods::BURST)),
        std::cmp::Ordering::Greater => {
            let surplus = (active.len() - wanted).min(pods::BURST);
            pods::sort_for_deletion(&mut active, related, now);
            active.truncate(surplus);
            Plan::Delete(active)
        }
    }
}

async fn reconcile<K: Replicated>(context: Arc<Context>, set: Arc<K>) -> Result<Again, Error> {
    let meta = set.meta();
    let wants = set.selector();
    let pods = &context.kinds.pods;
    let active = claim(&*set, pods, |pod| selects(&wants, pod), is_active).await?;
    let counted = active.len();
    let mut outcome = Ok(());
    if meta.deletion_timestamp.is_none() {
        let related = related(&context, &*set);
        match plan(set.replicas(), active, &related, clock::now()) {
            Plan::Rest => {}
            Plan::Create(missing) => {
                if let Some(template) = set.template() {
                    let namespace = meta.namespace.as_deref().unwrap_or("");
                    let pod = pods::from_template(template, namespace, controller_ref(&*set));
                    outcome = pods::create(&context, K::SOURCE, &*set, vec![pod; missing]).await;
                }
            }
            Plan::Delete(surplus) => outcome = pods::delete(&context, K::SOURCE, &*set, surplus).await,
        }
    }
    // The cache shows what was done: the status is about how things are now.
    let all = pods.controlled_by(meta);
    let current = K::shared(&context).get(meta.namespace.as_deref().unwrap_or(""), meta.name.as_deref().unwrap_or(""));
    let current = current.filter(|c| c.meta().uid == meta.uid).unwrap_or_else(|| set.clone());
    let failed = outcome.as_ref().err().map(|error| {
        let reason = if counted < usize::try_from(set.replicas()).unwrap_or(0) { "FailedCreate" } else { "FailedDelete" };
        (reason, error.cause().map_or_else(|| error.to_string(), message))
    });
    let now = clock::now();
    let (status, again) = status(&*set, current.status(), &all, failed, now);
    if status != current.status() {
        K::shared(&context).replace_status(&current.with_status(status)).await.map_err(Error::on("updating the status"))?;
    }
    outcome.map(|()| again)
}

/// The active pods of all sets that the owner of this one has.
fn related<K: Replicated>(context: &Context, set: &K) -> Vec<Arc<Pod>> {
    let sets = match controller_of(set.meta()) {
        Some(owner) => K::shared(context).find(&By::Owner(owner.uid.clone())),
        None => return context.kinds.pods.controlled_by(set.meta()),
    };
    let mut pods: Vec<_> = sets.iter().flat_map(|s| context.kinds.pods.controlled_by(s.meta())).collect();
    pods.retain(|p| is_active(p));
    pods
}

/// The status of the set as it was acted on, made from the latest status, and when it will change without anything
/// happening.
fn status<K: Replicated>(
    set: &K,
    mut status: ReplicaSetStatus,
    pods: &[Arc<Pod>],
    failed: Option<(&str, String)>,
    now: Timestamp,
) -> (ReplicaSetStatus, Again) {
    let wants = set.selector();
    let labels = set.template().and_then(|t| t.metadata.as_ref()).and_then(|m| m.labels.as_ref());
    let own_labels = selector::of_labels(labels.into_iter().flatten());
    let min_ready = set.min_ready_seconds();
    let (mut replicas, mut labeled, mut ready, mut available, mut terminating) = (0, 0, 0, 0, 0);
    let mut again: Option<Duration> = None;
    for pod in pods.iter().filter(|p| selects(&wants, &***p)) {
        if !is_active(pod) {
            terminating += i32::from(!is_finished(pod) && pod.metadata.deletion_timestamp.is_some());
            continue;
        }
        replicas += 1;
        labeled += i32::from(selects(&own_labels, &**pod));
        ready += i32::from(is_ready(pod));
        match available_at(pod, min_ready) {
            Some(at) if at <= now => available += 1,
            Some(at) => again = again.into_iter().chain([clock::until(at)]).min(),
            None => {}
        }
    }
    let conditions = status.conditions.get_or_insert_default();
    let known = conditions.iter().any(|c| c.type_ == "ReplicaFailure");
    match failed {
        Some((reason, message)) if !known => conditions.push(ReplicaSetCondition {
            type_: "ReplicaFailure".into(),
            status: "True".into(),
            reason: Some(reason.into()),
            message: Some(message),
            last_transition_time: Some(Time(now)),
        }),
        None => conditions.retain(|c| c.type_ != "ReplicaFailure"),
        Some(_) => {}
    }
    if conditions.is_empty() {
        status.conditions = None;
    }
    // Counts that are zero are left out of the object, as upstream's `omitempty` has it.
    let unless_zero = |count: i32| (count != 0).then_some(count);
    status.replicas = replicas;
    status.fully_labeled_replicas = unless_zero(labeled);
    status.ready_replicas = unless_zero(ready);
    status.available_replicas = unless_zero(available);
    status.observed_generation = set.meta().generation;
    if K::SOURCE == ReplicaSet::SOURCE {
        status.terminating_replicas = Some(terminating);
    }
    (status, again)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(name: &str, phase: &str, ready_at: Option<&str>, terminating: bool) -> Arc<Pod> {
        let mut value = json!({
            "metadata": { "name": name, "uid": name, "labels": { "app": "web" } },
            "spec": { "nodeName": "n", "containers": [] },
            "status": { "phase": phase },
        });
        if let Some(at) = ready_at {
            value["status"]["conditions"] = json!([{ "type": "Ready", "status": "True", "lastTransitionTime": at }]);
        }
        if terminating {
            value["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        }
        Arc::new(serde_json::from_value(value).expect("a pod"))
    }

    fn now() -> Timestamp {
        "2026-01-01T00:01:00Z".parse().expect("a time")
    }

    #[test]
    fn how_many_to_make_or_delete() {
        let running = |n: usize| (0..n).map(|i| pod(&i.to_string(), "Running", None, false)).collect::<Vec<_>>();
        let check = |wanted, have, expected: i64| {
            let change = match plan(wanted, running(have), &[], now()) {
                Plan::Rest => 0,
                Plan::Create(n) => n as i64,
                Plan::Delete(pods) => -(pods.len() as i64),
            };
            assert_eq!(change, expected, "{wanted} wanted, {have} there");
        };
        check(3, 3, 0);
        check(3, 0, 3);
        check(0, 2, -2);
        check(1000, 0, 500);
        check(0, 600, -500);
    }

    #[test]
    fn counts_and_conditions() {
        let set: ReplicaSet = serde_json::from_value(json!({
            "metadata": { "generation": 2 },
            "spec": { "minReadySeconds": 30, "selector": { "matchLabels": { "app": "web" } },
                      "template": { "metadata": { "labels": { "app": "web", "x": "y" } } } },
        }))
        .expect("a set");
        let pods = [
            pod("long ready", "Running", Some("2026-01-01T00:00:00Z"), false),
            pod("just ready", "Running", Some("2026-01-01T00:00:50Z"), false),
            pod("starting", "Pending", None, false),
            pod("going", "Running", Some("2026-01-01T00:00:00Z"), true),
            pod("failed", "Failed", None, false),
        ];
        let (status, again) = status(&set, set.status(), &pods, Some(("FailedCreate", "no".into())), now());
        assert_eq!((status.replicas, status.ready_replicas, status.available_replicas), (3, Some(2), Some(1)));
        assert_eq!((status.terminating_replicas, status.fully_labeled_replicas), (Some(1), None));
        assert_eq!(status.conditions.map(|c| c.len()), Some(1));
        assert!(again.is_some(), "the second pod will be available by itself");
    }
}
