//! What is to be done for a StatefulSet. All the judgement is here; nothing here does IO.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetSpec, StatefulSetStatus};
use k8s_openapi::api::core::v1::Pod;
use skiff_api::clock;
use skiff_api::typed::pods::{available_at, is_finished, is_ready, phase};

use crate::scaled::scaled;

/// The label with the name of the revision that a pod was made from.
pub const REVISION: &str = "controller-revision-hash";
/// The labels with a pod's own name and ordinal.
pub const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";
/// The label with a pod's ordinal.
pub const POD_INDEX: &str = "apps.kubernetes.io/pod-index";

/// A StatefulSet with its pods.
pub struct Observed<'a> {
    /// The set.
    pub set: &'a StatefulSet,
    /// Its specification.
    pub spec: &'a StatefulSetSpec,
    /// Its pods.
    pub pods: &'a [Arc<Pod>],
    /// The name of the revision that all pods were of.
    pub current: &'a str,
    /// The name of the revision that all pods are to be of.
    pub update: &'a str,
    /// The time.
    pub now: Timestamp,
}

/// What is to be done.
#[derive(Debug, Default)]
pub struct Plan {
    /// Ordinals of pods to make, and whether of the newer revision.
    pub create: Vec<(i32, bool)>,
    /// Pods to delete.
    pub delete: Vec<Arc<Pod>>,
    /// Pods that lack the labels of their identity.
    pub label: Vec<Arc<Pod>>,
    /// Ordinals whose claims must be there: their pods wait.
    pub claims: Vec<i32>,
    /// When a pod will be available by itself.
    pub again: Option<Duration>,
}

/// The ordinal at which counting starts.
pub fn start(spec: &StatefulSetSpec) -> i32 {
    spec.ordinals.as_ref().and_then(|o| o.start).unwrap_or(0)
}

/// The number of pods wanted.
pub fn replicas(spec: &StatefulSetSpec) -> i32 {
    spec.replicas.unwrap_or(1).max(0)
}

/// The ordinal in a pod's name; none when it isn't a name of this set's pods.
pub fn ordinal(set: &StatefulSet, pod: &Pod) -> Option<i32> {
    let (parent, ordinal) = pod.metadata.name.as_deref()?.rsplit_once('-')?;
    (Some(parent) == set.metadata.name.as_deref()).then(|| ordinal.parse().ok()).flatten()
}

/// The name of the revision that a pod was made from.
pub fn revision(pod: &Pod) -> &str {
    pod.metadata.labels.as_ref().and_then(|l| l.get(REVISION)).map_or("", String::as_str)
}

fn is_terminating(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

impl Observed<'_> {
    fn runs_ready(&self, pod: &Pod) -> bool {
        phase(pod) == "Running" && is_ready(pod)
    }

    fn available_at(&self, pod: &Pod) -> Option<Timestamp> {
        available_at(pod, self.spec.min_ready_seconds.unwrap_or(0)).filter(|_| self.runs_ready(pod))
    }

    fn is_available(&self, pod: &Pod) -> bool {
        self.available_at(pod).is_some_and(|at| at <= self.now)
    }

    /// Whether a pod can't be counted on.
    fn is_unavailable(&self, pod: Option<&Arc<Pod>>) -> bool {
        pod.is_none_or(|p| !self.is_available(p) || is_terminating(p))
    }

    fn rolling(&self) -> Option<(i32, i32)> {
        let strategy = self.spec.update_strategy.as_ref();
        if strategy.and_then(|s| s.type_.as_deref()) == Some("OnDelete") {
            return None;
        }
        let rolling = strategy.and_then(|s| s.rolling_update.as_ref());
        let most = rolling.and_then(|r| r.max_unavailable.as_ref()).map_or(1, |m| scaled(m, replicas(self.spec), false));
        Some((rolling.and_then(|r| r.partition).unwrap_or(0), most.max(1)))
    }

    /// Whether a pod made now is of the newer revision.
    fn is_newer(&self, index: i32) -> bool {
        let strategy = self.spec.update_strategy.as_ref();
        let kept = match strategy.and_then(|s| s.rolling_update.as_ref()) {
            Some(rolling) => rolling.partition.unwrap_or(0),
            None if strategy.and_then(|s| s.type_.as_deref()) == Some("RollingUpdate") => {
                self.set.status.as_ref().and_then(|s| s.current_replicas).unwrap_or(0)
            }
            None => 0,
        };
        index >= kept
    }

    fn has_identity(&self, pod: &Pod, ordinal: i32) -> bool {
        let label = |key: &str| pod.metadata.labels.as_ref().and_then(|l| l.get(key));
        label(POD_NAME) == pod.metadata.name.as_ref() && label(POD_INDEX) == Some(&ordinal.to_string())
    }
}

/// Decides what is to be done: in order and one at a time, or (with parallel management) all at once.
pub fn plan(observed: &Observed<'_>) -> Plan {
    let mut plan = Plan::default();
    if is_deleted(observed.set) {
        return plan;
    }
    let ordered = observed.spec.pod_management_policy.as_deref() != Some("Parallel");
    let first = start(observed.spec);
    let mut slots: Vec<Option<Arc<Pod>>> = vec![None; usize::try_from(replicas(observed.spec)).unwrap_or(0)];
    let mut condemned: Vec<(i32, Arc<Pod>)> = Vec::new();
    for pod in observed.pods {
        let Some(ordinal) = ordinal(observed.set, pod) else { continue };
        match usize::try_from(ordinal - first).ok().and_then(|i| slots.get_mut(i)) {
            Some(slot) => *slot = Some(pod.clone()),
            None => condemned.push((ordinal, pod.clone())),
        }
    }
    condemned.sort_by_key(|(ordinal, _)| std::cmp::Reverse(*ordinal));

    for (i, slot) in slots.iter().enumerate() {
        let index = i as i32;
        if keep(observed, &mut plan, index, first + index, slot.as_ref()) && ordered {
            return plan;
        }
    }
    // The first pod, in order, that can't be counted on: that one may go although it isn't well.
    let lowest = condemned.iter().rev().map(|(_, pod)| pod).find(|pod| observed.is_unavailable(Some(pod)));
    let excused = if slots.iter().any(|slot| observed.is_unavailable(slot.as_ref())) { None } else { lowest.cloned() };
    for (_, pod) in condemned {
        if is_terminating(&pod) {
            if ordered {
                return plan;
            }
            continue;
        }
        let excused = excused.as_ref().is_some_and(|e| e.metadata.uid == pod.metadata.uid);
        if ordered && !excused && !observed.is_available(&pod) {
            wait_for(observed, &mut plan, &pod);
            return plan;
        }
        plan.delete.push(pod);
        if ordered {
            return plan;
        }
    }
    roll(observed, &mut plan, &slots);
    plan
}

/// Sees to one pod that is wanted. Whether the next one must wait for it.
fn keep(observed: &Observed<'_>, plan: &mut Plan, index: i32, ordinal: i32, slot: Option<&Arc<Pod>>) -> bool {
    let Some(pod) = slot else {
        plan.create.push((ordinal, observed.is_newer(index)));
        return true;
    };
    if is_finished(pod) {
        if !is_terminating(pod) {
            plan.delete.push(pod.clone());
        }
        return true;
    }
    if phase(pod) == "Pending" {
        plan.claims.push(ordinal);
    }
    if is_terminating(pod) {
        return true;
    }
    if !observed.has_identity(pod, ordinal) {
        plan.label.push(pod.clone());
    }
    if !observed.is_available(pod) {
        wait_for(observed, plan, pod);
        return true;
    }
    false
}

fn wait_for(observed: &Observed<'_>, plan: &mut Plan, pod: &Pod) {
    let wait = observed.available_at(pod).map(clock::until);
    plan.again = plan.again.into_iter().chain(wait).min();
}

/// Replaces pods of the earlier revision, the highest ordinal first.
fn roll(observed: &Observed<'_>, plan: &mut Plan, slots: &[Option<Arc<Pod>>]) {
    let Some((partition, most)) = observed.rolling() else { return };
    let down = slots.iter().filter(|slot| observed.is_unavailable(slot.as_ref())).count() as i32;
    let mut room = most - down;
    for (_, slot) in slots.iter().enumerate().rev().take_while(|(i, _)| *i as i32 >= partition) {
        if room <= 0 {
            return;
        }
        if let Some(pod) = slot.as_ref().filter(|p| revision(p) != observed.update && !is_terminating(p)) {
            plan.delete.push(pod.clone());
            room -= 1;
        }
    }
}

fn is_deleted(set: &StatefulSet) -> bool {
    set.metadata.deletion_timestamp.is_some()
}

/// The status, and when it will change by itself.
pub fn status(observed: &Observed<'_>) -> (StatefulSetStatus, Option<Duration>) {
    let wanted = replicas(observed.spec);
    let (mut total, mut ready, mut available, mut current, mut updated) = (0, 0, 0, 0, 0);
    let mut again: Option<Duration> = None;
    for pod in observed.pods.iter().filter(|p| ordinal(observed.set, p).is_some() && !phase(p).is_empty()) {
        total += 1;
        ready += i32::from(observed.runs_ready(pod));
        match observed.available_at(pod) {
            Some(at) if at <= observed.now => available += 1,
            Some(at) => again = again.into_iter().chain([clock::until(at)]).min(),
            None => {}
        }
        if !is_terminating(pod) {
            current += i32::from(revision(pod) == observed.current);
            updated += i32::from(revision(pod) == observed.update);
        }
    }
    let mut current_revision = observed.current;
    if observed.rolling().is_some() && (updated, ready, total) == (wanted, wanted, wanted) {
        (current, current_revision) = (updated, observed.update);
    }
    let unless_zero = |count: i32| (count != 0).then_some(count);
    let old = observed.set.status.clone().unwrap_or_default();
    let status = StatefulSetStatus {
        observed_generation: observed.set.metadata.generation,
        replicas: total,
        ready_replicas: unless_zero(ready),
        available_replicas: Some(available),
        current_replicas: unless_zero(current),
        updated_replicas: unless_zero(updated),
        current_revision: Some(current_revision.to_owned()),
        update_revision: Some(observed.update.to_owned()),
        collision_count: Some(old.collision_count.unwrap_or(0)),
        conditions: old.conditions,
    };
    (status, again)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// A pod `web-N` in a state: `ready`, `starting`, `failed`, `going`; of revision `old` with `~` before it.
    fn pod(ordinal: i32, state: &str) -> Arc<Pod> {
        let revision = if state.starts_with('~') { "old" } else { "new" };
        let state = state.trim_start_matches('~');
        let (phase, ready) = match state {
            "ready" | "going" => ("Running", "True"),
            "failed" => ("Failed", "False"),
            _ => ("Pending", "False"),
        };
        let name = format!("web-{ordinal}");
        let mut value = json!({
            "metadata": { "name": name, "uid": name, "labels": {
                "controller-revision-hash": revision, "statefulset.kubernetes.io/pod-name": name,
                "apps.kubernetes.io/pod-index": ordinal.to_string() } },
            "status": { "phase": phase, "conditions": [{ "type": "Ready", "status": ready, "lastTransitionTime": "2026-01-01T00:00:00Z" }] },
        });
        if state == "going" {
            value["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        }
        Arc::new(serde_json::from_value(value).expect("a pod"))
    }

    /// The steps: `+N` a pod of the new revision, `+~N` of the old one, `-N` a deletion.
    fn check(spec: Value, states: &[(i32, &str)], expected: &[&str]) {
        let mut all = json!({ "replicas": 3, "selector": {}, "template": {}, "serviceName": "web",
                              "updateStrategy": { "type": "RollingUpdate", "rollingUpdate": { "partition": 0 } } });
        json_patch::merge(&mut all, &spec);
        let set: StatefulSet = serde_json::from_value(json!({ "metadata": { "name": "web" }, "spec": all })).expect("a set");
        let spec = set.spec.clone().expect("a spec");
        let pods: Vec<_> = states.iter().map(|(ordinal, state)| pod(*ordinal, state)).collect();
        let now = "2026-01-01T01:00:00Z".parse().expect("a time");
        let plan = plan(&Observed { set: &set, spec: &spec, pods: &pods, current: "old", update: "new", now });
        let mut steps: Vec<String> =
            plan.create.iter().map(|(ordinal, newer)| format!("+{}{ordinal}", if *newer { "" } else { "~" })).collect();
        steps.extend(plan.delete.iter().filter_map(|p| ordinal(&set, p)).map(|ordinal| format!("-{ordinal}")));
        assert_eq!(steps, expected, "{states:?}");
    }

    #[test]
    fn one_after_the_other() {
        let none = || json!({});
        check(none(), &[], &["+0"]);
        check(none(), &[(0, "starting")], &[]);
        check(none(), &[(0, "ready")], &["+1"]);
        check(none(), &[(0, "ready"), (1, "ready"), (2, "ready")], &[]);
        check(none(), &[(0, "failed"), (1, "ready"), (2, "ready")], &["-0"]);
        check(none(), &[(0, "going"), (1, "ready")], &[]);
        let two = || json!({ "replicas": 2 });
        check(two(), &[(0, "ready"), (1, "ready"), (2, "ready"), (3, "ready")], &["-3"]);
        check(two(), &[(0, "ready"), (1, "ready"), (2, "ready"), (3, "going")], &[]);
        check(two(), &[(0, "ready"), (1, "ready"), (2, "starting")], &["-2"]);
        check(two(), &[(0, "starting"), (1, "ready"), (2, "ready")], &[]);
    }

    #[test]
    fn all_at_once() {
        let parallel = |replicas: i32| json!({ "podManagementPolicy": "Parallel", "replicas": replicas });
        check(parallel(3), &[], &["+0", "+1", "+2"]);
        check(parallel(3), &[(0, "starting")], &["+1", "+2"]);
        check(parallel(1), &[(0, "ready"), (1, "starting"), (2, "ready")], &["-2", "-1"]);
    }

    #[test]
    fn from_the_last_to_the_first() {
        let rolling = |partition: i32, most: Value| json!({ "updateStrategy": { "rollingUpdate": { "partition": partition, "maxUnavailable": most } } });
        let old = [(0, "~ready"), (1, "~ready"), (2, "~ready")];
        check(json!({}), &old, &["-2"]);
        check(json!({}), &[(0, "~ready"), (1, "~ready"), (2, "ready")], &["-1"]);
        check(json!({}), &[(0, "~ready"), (1, "~ready"), (2, "going")], &[]);
        check(rolling(2, json!(1)), &[(0, "~ready"), (1, "~ready"), (2, "ready")], &[]);
        check(rolling(2, json!(1)), &[(0, "~ready"), (2, "ready")], &["+~1"]);
        check(rolling(0, json!(2)), &old, &["-2", "-1"]);
        check(json!({ "updateStrategy": { "type": "OnDelete", "rollingUpdate": null } }), &old, &[]);
    }

    #[test]
    fn ordinals_may_start_elsewhere() {
        check(json!({ "ordinals": { "start": 5 }, "replicas": 2 }), &[(5, "ready")], &["+6"]);
        check(json!({ "ordinals": { "start": 5 }, "replicas": 1 }), &[(4, "ready"), (5, "ready")], &["-4"]);
    }
}
