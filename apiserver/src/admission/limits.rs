//! Limit ranges: what containers get that said nothing, and what they, pods and claims may ask for.

use std::collections::BTreeMap;

use async_trait::async_trait;
use serde_json::{Map, Value};
use skiff_api::pod::{self, Resources};
use skiff_api::{Quantity, Status, value};

use super::{Plugin, Request};
use crate::cache::Filter;

pub(super) struct LimitRanger;

const ANNOTATION: &str = "kubernetes.io/limit-ranger";

fn ranges(request: &Request<'_>) -> Vec<Value> {
    let filter = Filter { namespace: request.call.info.namespace.clone(), ..Filter::default() };
    let cache = request.call.server.cache.resource("/registry/limitranges/");
    cache.map_or_else(Vec::new, |c| c.list(&filter, 0).objects.iter().filter_map(|o| o.value().ok()).collect())
}

fn limits(range: &Value) -> &[Value] {
    value::items(range, &["spec", "limits"])
}

#[async_trait]
impl Plugin for LimitRanger {
    async fn mutate(&self, request: &Request<'_>, pod: &mut Value) -> Result<(), Status> {
        if request.creates("", "pods") {
            ranges(request).iter().for_each(|range| fill_in(range, pod));
        }
        Ok(())
    }

    async fn validate(&self, request: &Request<'_>, object: &Value) -> Result<(), Status> {
        let resource = &request.call.resource;
        let (plural, subresource) = (resource.plural.as_ref(), request.call.info.subresource.as_str());
        let resized = request.old.is_some() && subresource == "resize";
        let pod = plural == "pods" && (resized || request.creates("", "pods"));
        let claim = plural == "persistentvolumeclaims" && subresource.is_empty();
        if !resource.group.is_empty() || !(pod || claim) {
            return Ok(());
        }
        for range in ranges(request) {
            let faults = if pod { pod_faults(&range, object) } else { claim_faults(&range, object) };
            let why = match faults.as_slice() {
                [] => continue,
                [one] => one.clone(),
                many => format!("[{}]", many.join(", ")),
            };
            return Err(Status::forbidden(resource.group_resource(), value::text(object, &["metadata", "name"]), why));
        }
        Ok(())
    }
}

/// Gives containers the range's defaults for what they left out, and books that in an annotation.
fn fill_in(range: &Value, pod: &mut Value) {
    let mut defaults: BTreeMap<&str, Map<String, Value>> = BTreeMap::new();
    for limit in limits(range).iter().filter(|limit| limit["type"] == "Container") {
        for (kind, member) in [("requests", "defaultRequest"), ("limits", "default")] {
            defaults.entry(kind).or_default().extend(limit[member].as_object().cloned().unwrap_or_default());
        }
    }
    let mut filled = Vec::new();
    for (list, what) in [("containers", "container"), ("initContainers", "init container")] {
        let containers = pod["spec"].get_mut(list).and_then(Value::as_array_mut).into_iter().flatten();
        for container in containers {
            let name = value::text(container, &["name"]).to_owned();
            for (kind, word) in [("requests", "request"), ("limits", "limit")] {
                let Some(amounts) = defaults.get(kind).filter(|amounts| !amounts.is_empty()) else { continue };
                let own = value::object_mut(container, &["resources", kind]);
                let new: Vec<&String> = amounts.keys().filter(|resource| !own.contains_key(*resource)).collect();
                if new.is_empty() {
                    continue;
                }
                let names: Vec<&str> = new.iter().map(|n| n.as_str()).collect();
                filled.push(format!("{} {word} for {what} {name}", names.join(", ")));
                own.extend(new.into_iter().map(|resource| (resource.clone(), amounts[resource].clone())));
            }
        }
    }
    if !filled.is_empty() {
        let annotations = value::object_mut(pod, &["metadata", "annotations"]);
        annotations.insert(ANNOTATION.into(), format!("LimitRanger plugin set: {}", filled.join("; ")).into());
    }
}

/// How a pod breaks the range.
fn pod_faults(range: &Value, pod: &Value) -> Vec<String> {
    let mut faults = Vec::new();
    for limit in limits(range) {
        match value::text(limit, &["type"]) {
            "Container" => {
                for list in ["containers", "initContainers"] {
                    for container in value::items(pod, &["spec", list]) {
                        let of = |kind| pod::resource_list(value::at(container, &["resources", kind]));
                        constrain(limit, "Container", &of("requests"), &of("limits"), &mut faults);
                    }
                }
            }
            "Pod" => constrain(limit, "Pod", &pod::requests(pod), &pod::limits(pod), &mut faults),
            _ => {}
        }
    }
    faults
}

fn constrain(limit: &Value, kind: &str, requests: &Resources, limits: &Resources, faults: &mut Vec<String>) {
    let amounts = |member: &str| pod::resource_list(&limit[member]);
    for (name, least) in amounts("min") {
        faults.extend(below(kind, &name, least, requests.get(&name), limits.get(&name)));
    }
    for (name, most) in amounts("max") {
        let says = format!("maximum {name} usage per {kind} is {most}");
        match (limits.get(&name), requests.get(&name)) {
            (None, _) => faults.push(format!("{says}.  No limit is specified")),
            (Some(asked), _) if *asked > most => faults.push(format!("{says}, but limit is {asked}")),
            (_, Some(asked)) if *asked > most => faults.push(format!("{says}, but request is {asked}")),
            _ => {}
        }
    }
    for (name, most) in amounts("maxLimitRequestRatio") {
        let says = format!("{name} max limit to request ratio per {kind} is {most}");
        let positive = |amount: Option<&Quantity>| amount.filter(|a| !a.is_zero()).map(|a| a.as_f64());
        match (positive(requests.get(&name)), positive(limits.get(&name))) {
            (None, _) => faults.push(format!("{says}, but no request is specified or request is 0")),
            (_, None) => faults.push(format!("{says}, but no limit is specified or limit is 0")),
            (Some(request), Some(limit)) if limit / request > most.as_f64() => {
                faults.push(format!("{says}, but provided ratio is {:.6}", limit / request));
            }
            _ => {}
        }
    }
}

fn below(kind: &str, name: &str, least: Quantity, request: Option<&Quantity>, limit: Option<&Quantity>) -> Option<String> {
    let says = format!("minimum {name} usage per {kind} is {least}");
    match (request, limit) {
        (None, _) => Some(format!("{says}.  No request is specified")),
        (Some(asked), _) if *asked < least => Some(format!("{says}, but request is {asked}")),
        (_, Some(asked)) if *asked < least => Some(format!("{says}, but limit is {asked}")),
        _ => None,
    }
}

/// How a claim breaks the range: only what it requests counts.
fn claim_faults(range: &Value, claim: &Value) -> Vec<String> {
    const KIND: &str = "PersistentVolumeClaim";
    let requests = pod::resource_list(value::at(claim, &["spec", "resources", "requests"]));
    let mut faults = Vec::new();
    for limit in limits(range).iter().filter(|limit| limit["type"] == KIND) {
        for (name, least) in pod::resource_list(&limit["min"]) {
            faults.extend(below(KIND, &name, least, requests.get(&name), None));
        }
        for (name, most) in pod::resource_list(&limit["max"]) {
            let says = format!("maximum {name} usage per {KIND} is {most}");
            match requests.get(&name) {
                None => faults.push(format!("{says}.  No request is specified")),
                Some(asked) if *asked > most => faults.push(format!("{says}, but request is {asked}")),
                _ => {}
            }
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(limit: Value, resources: Value, expected: &[&str]) {
        let pod = json!({"spec": {"containers": [{"name": "c", "resources": resources}]}});
        assert_eq!(pod_faults(&json!({"spec": {"limits": [limit]}}), &pod), expected, "{limit} {pod}");
    }

    #[test]
    fn what_pods_may_ask_for() {
        let max = json!({"type": "Container", "max": {"cpu": "1"}});
        check(max.clone(), json!({}), &["maximum cpu usage per Container is 1.  No limit is specified"]);
        check(max.clone(), json!({"limits": {"cpu": "2"}}), &["maximum cpu usage per Container is 1, but limit is 2"]);
        check(max, json!({"limits": {"cpu": "1"}, "requests": {"cpu": "2"}}), &["maximum cpu usage per Container is 1, but request is 2"]);
        let min = json!({"type": "Pod", "min": {"memory": "1Gi"}});
        check(min.clone(), json!({}), &["minimum memory usage per Pod is 1Gi.  No request is specified"]);
        check(min.clone(), json!({"requests": {"memory": "1Mi"}}), &["minimum memory usage per Pod is 1Gi, but request is 1Mi"]);
        check(min, json!({"requests": {"memory": "1Gi"}}), &[]);
        let ratio = json!({"type": "Container", "maxLimitRequestRatio": {"cpu": "2"}});
        check(ratio.clone(), json!({"requests": {"cpu": "1"}, "limits": {"cpu": "2"}}), &[]);
        check(
            ratio,
            json!({"requests": {"cpu": "1"}, "limits": {"cpu": "3"}}),
            &["cpu max limit to request ratio per Container is 2, but provided ratio is 3.000000"],
        );
    }

    #[test]
    fn what_claims_may_ask_for() {
        let range = json!({"spec": {"limits": [{"type": "PersistentVolumeClaim", "min": {"storage": "1Gi"}, "max": {"storage": "2Gi"}}]}});
        let claim = |storage: &str| json!({"spec": {"resources": {"requests": {"storage": storage}}}});
        assert_eq!(claim_faults(&range, &claim("3Gi")), ["maximum storage usage per PersistentVolumeClaim is 2Gi, but request is 3Gi"]);
        assert_eq!(claim_faults(&range, &claim("1Mi")), ["minimum storage usage per PersistentVolumeClaim is 1Gi, but request is 1Mi"]);
        assert!(claim_faults(&range, &claim("2Gi")).is_empty());
    }

    #[test]
    fn what_was_left_out_is_filled_in() {
        let range = json!({"spec": {"limits": [{"type": "Container", "default": {"cpu": "1", "memory": "1Gi"}, "defaultRequest": {"cpu": "500m"}}]}});
        let mut pod = json!({"spec": {"containers": [{"name": "a", "resources": {"limits": {"cpu": "2"}}}, {"name": "b"}]}});
        fill_in(&range, &mut pod);
        let containers = json!([
            {"name": "a", "resources": {"limits": {"cpu": "2", "memory": "1Gi"}, "requests": {"cpu": "500m"}}},
            {"name": "b", "resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}}},
        ]);
        assert_eq!(pod["spec"]["containers"], containers);
        let said = "LimitRanger plugin set: cpu request for container a; memory limit for container a; cpu request for container b; cpu, memory limit for container b";
        assert_eq!(pod["metadata"]["annotations"][ANNOTATION], said);
    }
}
