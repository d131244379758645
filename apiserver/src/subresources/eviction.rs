//! `pods/eviction`: a deletion that asks the disruption budgets first.

use bytes::Bytes;
use serde_json::{Value, json};
use skiff_api::status::{Cause, Details, GroupResource};
use skiff_api::{Status, labels, pod, value};

use crate::admission::{self, Operation};
use crate::cache::Filter;
use crate::http::body::Reply;
use crate::http::encode::answer;
use crate::strategy::Claims;
use crate::verbs::{Call, DeleteOptions, Transaction, Write, decode_as, delete_object, namespace_matches, now_text, transact};

/// How many evictions a budget's controller may be behind with; upstream's figure.
const MAX_DISRUPTED: usize = 2_000;

/// Carries out an eviction.
pub(super) async fn evict(call: &Call, body: &Bytes) -> Result<Reply, Status> {
    let mut eviction = decode_as(call, body, "Eviction", "policy/v1", "io.k8s.api.policy.v1.Eviction")?;
    if value::text(&eviction, &["metadata", "name"]) != call.info.name {
        return Err(Status::bad_request("name in URL does not match name in Eviction object"));
    }
    namespace_matches(call, &eviction)?;
    let given: Bytes = eviction.get("deleteOptions").map(Value::to_string).unwrap_or_default().into();
    let mut options = DeleteOptions::read(call, &given)?;
    let current = call.read().await?.value()?;
    admission::validate_other(call, Operation::Create, &mut eviction, options.dry_run).await?;
    let free = pod::is_terminal(&current) || pod::is_terminating(&current) || value::text(&current, &["status", "phase"]) == "Pending";
    if !free {
        allow(call, &current, options.dry_run).await?;
    }
    if !options.dry_run {
        mark(call, &current).await?;
    }
    options.uid = options.uid.or_else(|| Some(value::text(&current, &["metadata", "uid"]).to_owned()));
    delete_object(call, &call.info.name, &options).await?;
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
    Ok(answer(201, &status, call.shape.whole(), call.encoder().pretty))
}

/// Takes one disruption from the pod's budget, or refuses.
async fn allow(call: &Call, current: &Value, dry_run: bool) -> Result<(), Status> {
    let Some(budget) = budget_of(call, current)? else { return Ok(()) };
    let ready = pod::is_ready(current);
    let always = value::text(&budget, &["spec", "unhealthyPodEvictionPolicy"]) == "AlwaysAllow";
    let healthy = value::at(&budget, &["status", "currentHealthy"]).as_i64().unwrap_or(0);
    let desired = value::at(&budget, &["status", "desiredHealthy"]).as_i64().unwrap_or(0);
    // A pod that isn't healthy disrupts nothing, as long as enough others are.
    if !ready && (always || (desired > 0 && healthy >= desired)) {
        return Ok(());
    }
    let name = value::text(&budget, &["metadata", "name"]).to_owned();
    let resource = skiff_api::resource::find("policy", "v1", "poddisruptionbudgets").ok_or_else(Status::no_such_resource)?;
    let call = call.about(resource, &call.info.namespace, &name, "status");
    let mut write = Write::new(&call, "UpdateOptions")?;
    write.options.dry_run |= dry_run;
    let pod_name = value::text(current, &["metadata", "name"]).to_owned();
    transact!(write, |budget, entry| Transaction::Put(spend(budget, &pod_name)?, Claims::default()));
    Ok(())
}

/// The budget with one disruption less.
fn spend(mut budget: Value, pod: &str) -> Result<Value, Status> {
    let number = |path: &[&str]| value::at(&budget, path).as_i64().unwrap_or(0);
    let name = value::text(&budget, &["metadata", "name"]);
    let message = "Cannot evict pod as it would violate the pod's disruption budget.";
    let refuse = |why: String, retry: u32| {
        let causes = vec![Cause { reason: "DisruptionBudget".into(), message: why, ..Cause::default() }];
        let details = Details { causes, retry_after_seconds: retry, ..Details::default() };
        Err(Status { details: Some(Box::new(details)), ..Status::new(429, "TooManyRequests", message) })
    };
    if number(&["status", "observedGeneration"]) < number(&["metadata", "generation"]) {
        return refuse(format!("The disruption budget {name} is still being processed by the server."), 10);
    }
    if value::at(&budget, &["status", "disruptedPods"]).as_object().is_some_and(|pods| pods.len() > MAX_DISRUPTED) {
        let gr = GroupResource { group: "policy", resource: "poddisruptionbudget" };
        return Err(Status::forbidden(gr, name, "DisruptedPods map too big - too many evictions not confirmed by PDB controller"));
    }
    let allowed = number(&["status", "disruptionsAllowed"]);
    if allowed <= 0 {
        let (desired, healthy) = (number(&["status", "desiredHealthy"]), number(&["status", "currentHealthy"]));
        return refuse(format!("The disruption budget {name} needs {desired} healthy pods and has {healthy} currently"), 0);
    }
    let status = value::object_mut(&mut budget, &["status"]);
    status.insert("disruptionsAllowed".into(), json!(allowed - 1));
    value::object_mut(&mut budget, &["status", "disruptedPods"]).insert(pod.into(), now_text().into());
    Ok(budget)
}

fn budget_of(call: &Call, pod: &Value) -> Result<Option<Value>, Status> {
    let cache = call.server.cache.resource("/registry/poddisruptionbudgets/").ok_or_else(Status::no_such_resource)?;
    let filter = Filter { namespace: call.info.namespace.clone(), ..Filter::default() };
    let budgets = cache.list(&filter, 0).whole()?.objects;
    let mut matching = budgets.iter().filter_map(|o| o.value().ok()).filter(|b| {
        labels::Selector::from_label_selector(&b["spec"]["selector"]).is_ok_and(|s| s.matches_object(pod))
    });
    let first = matching.next();
    if matching.next().is_some() {
        return Err(Status::new(
            500,
            "InternalError",
            "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
        ));
    }
    Ok(first)
}

/// Says in the pod's status why it goes.
async fn mark(call: &Call, current: &Value) -> Result<(), Status> {
    if pod::is_terminating(current) || value::text(current, &["spec", "nodeName"]).is_empty() {
        return Ok(());
    }
    let mut write = Write::new(call, "UpdateOptions")?;
    transact!(write, |pod, entry| {
        let mut pod = pod;
        let generation = value::at(&pod, &["metadata", "generation"]).as_i64();
        let condition = json!({
            "type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI", "message": "Eviction API: evicting",
            "observedGeneration": generation, "lastProbeTime": null, "lastTransitionTime": now_text(),
        });
        if let Value::Array(conditions) = value::object_mut(&mut pod, &["status"]).entry("conditions").or_insert_with(|| json!([])) {
            conditions.retain(|c| c["type"] != "DisruptionTarget");
            conditions.push(condition);
        }
        Transaction::Put(pod, Claims::default())
    });
    Ok(())
}
