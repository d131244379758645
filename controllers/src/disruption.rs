//! PodDisruptionBudget: how many of its pods may be evicted now.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, OwnerReference, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::Api;
use kube::api::DynamicObject;
use kube::runtime::reflector::ObjectRef;
use skiff_api::clock;
use skiff_api::typed::pods::{controller_of, is_finished, is_ready};
use skiff_api::typed::selector;

use crate::Context;
use crate::claim::selects;
use crate::controller::{Again, Controller};
use crate::error::Error;
use crate::kind::{By, Change, Key};
use crate::scaled::scaled;

/// The name that events carry.
const SOURCE: &str = "controllermanager";
/// How long an evicted pod may take to be marked as deleted.
const EVICTION: SignedDuration = SignedDuration::from_mins(2);

/// Runs the controller.
pub fn run(context: Arc<Context>) -> impl Future<Output = ()> {
    let budgets = context.kinds.budgets.clone();
    Controller::new("disruption-controller", &context.kinds.budgets)
        .on(&*context.kinds.pods, move |change: &Change<Pod>| {
            let facts = |p: &Arc<Pod>| (is_ready(p), is_finished(p), p.metadata.deletion_timestamp.is_some(), p.metadata.labels.clone());
            if change.old.as_ref().map(facts) == change.new.as_ref().map(facts) {
                return Vec::new();
            }
            let mut found: Vec<ObjectRef<PodDisruptionBudget>> = Vec::new();
            for pod in change.states() {
                for budget in budgets.find(&By::Namespace(pod.metadata.namespace.clone().unwrap_or_default())) {
                    if covers(&budget, pod) {
                        found.push(Key::of(&budget.metadata).reference());
                    }
                }
            }
            found
        })
        .run(context, reconcile)
}

fn covers(budget: &PodDisruptionBudget, pod: &Pod) -> bool {
    let wanted = budget.spec.as_ref().and_then(|s| s.selector.as_ref());
    selects(&selector::of(wanted), pod)
}

async fn reconcile(context: Arc<Context>, budget: Arc<PodDisruptionBudget>) -> Result<Again, Error> {
    let Some(spec) = &budget.spec else { return Ok(None) };
    let namespace = budget.metadata.namespace.clone().unwrap_or_default();
    let mut pods = context.kinds.pods.find(&By::Namespace(namespace.clone()));
    pods.retain(|p| covers(&budget, p));
    if pods.is_empty() {
        context.events.normal(SOURCE, &*budget, "NoPods", "No matching pods found");
    }
    let now = clock::now();
    let (status, again) = match expected(&context, spec, &pods).await {
        Ok(expected) => plan(&budget, spec, &pods, expected, now),
        Err(why) => {
            let text = format!("Failed to calculate the number of expected pods: {why}");
            context.events.warning(SOURCE, &*budget, "CalculateExpectedPodCountFailed", text);
            (failed(&budget, &why.to_string(), now), None)
        }
    };
    if Some(&status) != budget.status.as_ref() {
        let updated = PodDisruptionBudget { status: Some(status), ..(*budget).clone() };
        let written = context.kinds.budgets.replace_status(&updated).await;
        written.map_err(Error::on("updating the status of a disruption budget"))?;
    }
    Ok(again)
}

/// How many pods there should be: as many as the controllers of these want, unless the budget names a plain number.
async fn expected(context: &Context, spec: &PodDisruptionBudgetSpec, pods: &[Arc<Pod>]) -> Result<i32, Error> {
    if spec.max_unavailable.is_none() && matches!(spec.min_available, None | Some(IntOrString::Int(_))) {
        return Ok(pods.len() as i32);
    }
    let mut scales: HashMap<String, i32> = HashMap::new();
    for pod in pods {
        let Some(owner) = controller_of(&pod.metadata) else { continue };
        let namespace = pod.metadata.namespace.as_deref().unwrap_or("");
        if scales.contains_key(&owner.uid) {
            continue;
        }
        let Some((uid, scale)) = scale(context, namespace, owner).await? else {
            let name = pod.metadata.name.as_deref().unwrap_or("");
            return Err(Error::Impossible(format!("found no controllers for pod {name:?}")));
        };
        scales.insert(uid, scale);
    }
    Ok(scales.values().sum())
}

/// How many pods an owner wants, and the uid of who really decides that.
async fn scale(context: &Context, namespace: &str, owner: &OwnerReference) -> Result<Option<(String, i32)>, Error> {
    let kinds = &context.kinds;
    let uid = Some(&owner.uid);
    let one = |replicas: Option<i32>| Ok(Some((owner.uid.clone(), replicas.unwrap_or(1))));
    match (owner.api_version.as_str(), owner.kind.as_str()) {
        ("apps/v1", "ReplicaSet") => {
            let Some(set) = kinds.replica_sets.get(namespace, &owner.name).filter(|s| s.metadata.uid.as_ref() == uid) else {
                return Ok(None);
            };
            let above = controller_of(&set.metadata).filter(|o| o.kind == "Deployment");
            let deployment = above.and_then(|o| kinds.deployments.get(namespace, &o.name).filter(|d| d.metadata.uid.as_ref() == Some(&o.uid)));
            match deployment {
                Some(d) => {
                    let replicas = d.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1);
                    Ok(Some((d.metadata.uid.clone().unwrap_or_default(), replicas)))
                }
                None => one(set.spec.as_ref().and_then(|s| s.replicas)),
            }
        }
        ("apps/v1", "StatefulSet") => {
            let set = kinds.stateful_sets.get(namespace, &owner.name).filter(|s| s.metadata.uid.as_ref() == uid);
            set.map_or(Ok(None), |s| one(s.spec.as_ref().and_then(|s| s.replicas)))
        }
        ("v1", "ReplicationController") => {
            let set = kinds.replication_controllers.get(namespace, &owner.name).filter(|s| s.metadata.uid.as_ref() == uid);
            set.map_or(Ok(None), |s| one(s.spec.as_ref().and_then(|s| s.replicas)))
        }
        (version, kind) => {
            // Anything else that can be scaled tells by its scale.
            let Some(resource) = context.catalogue.of_kind(version, kind) else { return Ok(None) };
            let api: Api<DynamicObject> = Api::namespaced_with(context.client(), namespace, &resource.api);
            match api.get_scale(&owner.name).await {
                Ok(scale) => one(scale.spec.and_then(|s| s.replicas)),
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 405) => Ok(None),
                Err(error) => Err(Error::on("reading the scale of a pod's controller")(error)),
            }
        }
    }
}

/// The status, and when to look again.
fn plan(
    budget: &PodDisruptionBudget,
    spec: &PodDisruptionBudgetSpec,
    pods: &[Arc<Pod>],
    expected: i32,
    now: Timestamp,
) -> (PodDisruptionBudgetStatus, Option<Duration>) {
    let desired = match (&spec.max_unavailable, &spec.min_available) {
        (Some(most), _) => (expected - scaled(most, expected, true)).max(0),
        (None, Some(least)) => scaled(least, expected, true),
        (None, None) => 0,
    };
    let old = budget.status.clone().unwrap_or_default();
    let going = old.disrupted_pods.unwrap_or_default();
    let mut disrupted: BTreeMap<String, Time> = BTreeMap::new();
    let mut again: Option<Duration> = None;
    let mut healthy = 0;
    for pod in pods.iter().filter(|p| p.metadata.deletion_timestamp.is_none()) {
        let name = pod.metadata.name.clone().unwrap_or_default();
        if let Some(since) = going.get(&name).filter(|since| since.0 + EVICTION >= now) {
            again = again.into_iter().chain([clock::until(since.0 + EVICTION)]).min();
            disrupted.insert(name, since.clone());
        } else if is_ready(pod) {
            healthy += 1;
        }
    }
    let allowed = if expected <= 0 { 0 } else { (healthy - desired).max(0) };
    let mut status = PodDisruptionBudgetStatus {
        current_healthy: Some(healthy),
        desired_healthy: Some(desired),
        expected_pods: Some(expected),
        disruptions_allowed: Some(allowed),
        disrupted_pods: (!disrupted.is_empty()).then_some(disrupted),
        observed_generation: budget.metadata.generation,
        conditions: old.conditions,
    };
    let (is, reason) = if allowed > 0 { ("True", "SufficientPods") } else { ("False", "InsufficientPods") };
    set_condition(&mut status, is, reason, "", now);
    (status, again)
}

/// The status when nobody knows how many pods there should be: none may go.
fn failed(budget: &PodDisruptionBudget, why: &str, now: Timestamp) -> PodDisruptionBudgetStatus {
    let mut status = budget.status.clone().unwrap_or_default();
    status.disruptions_allowed = Some(0);
    set_condition(&mut status, "False", "SyncFailed", why, now);
    status
}

fn set_condition(status: &mut PodDisruptionBudgetStatus, is: &str, reason: &str, message: &str, now: Timestamp) {
    let all = status.conditions.get_or_insert_default();
    let old = all.iter().find(|c| c.type_ == "DisruptionAllowed");
    let since = old.filter(|c| c.status == is).map_or(Time(now), |c| c.last_transition_time.clone());
    let new = Condition {
        type_: "DisruptionAllowed".into(),
        status: is.into(),
        reason: reason.into(),
        message: message.into(),
        observed_generation: status.observed_generation,
        last_transition_time: since,
    };
    match all.iter_mut().find(|c| c.type_ == "DisruptionAllowed") {
        Some(old) => *old = new,
        None => all.push(new),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn how_many_may_go() {
        let check = |spec: Value, ready: usize, unready: usize, expected: i32, result: (i32, i32)| {
            let value = json!({ "metadata": { "generation": 1 }, "spec": spec,
                                "status": { "currentHealthy": 0, "desiredHealthy": 0, "disruptionsAllowed": 0, "expectedPods": 0,
                                            "disruptedPods": { "r0": "2026-01-01T00:00:00Z" } } });
            let budget: PodDisruptionBudget = serde_json::from_value(value).expect("a budget");
            let pod = |name: String, ready: &str| {
                let value = json!({ "metadata": { "name": name }, "status": { "conditions": [{ "type": "Ready", "status": ready }] } });
                Arc::new(serde_json::from_value::<Pod>(value).expect("a pod"))
            };
            let mut pods: Vec<_> = (0..ready).map(|i| pod(format!("r{i}"), "True")).collect();
            pods.extend((0..unready).map(|i| pod(format!("u{i}"), "False")));
            let spec = budget.spec.clone().expect("a spec");
            let later = "2026-01-01T01:00:00Z".parse().expect("a time");
            let (status, _) = plan(&budget, &spec, &pods, expected, later);
            assert_eq!((status.desired_healthy, status.disruptions_allowed), (Some(result.0), Some(result.1)), "{spec:?}");
            let soon = "2026-01-01T00:01:00Z".parse().expect("a time");
            let (status, again) = plan(&budget, &spec, &pods, expected, soon);
            assert_eq!((status.current_healthy, again.is_some()), (Some(ready.saturating_sub(1) as i32), ready > 0), "one is on its way");
        };
        check(json!({ "minAvailable": 2 }), 3, 0, 3, (2, 1));
        check(json!({ "minAvailable": 2 }), 2, 1, 3, (2, 0));
        check(json!({ "minAvailable": "50%" }), 5, 0, 5, (3, 2));
        check(json!({ "maxUnavailable": 1 }), 3, 0, 3, (2, 1));
        check(json!({ "maxUnavailable": "30%" }), 10, 0, 10, (7, 3));
        check(json!({ "maxUnavailable": 1 }), 0, 0, 0, (0, 0));
    }
}
