//! Objects between the versions (and, for events, groups) that share their storage.
//!
//! Most versions of a kind have the same shape, and only `apiVersion` changes. Events and autoscalers differ.

use serde_json::{Map, Value, json};

use crate::value::{at, items, object_mut, remove, text};

/// The names that a field has in `v1` and in `events.k8s.io/v1`.
const EVENT_FIELDS: [(&str, &str); 7] = [
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];

/// Where a `v1` autoscaler keeps what its fields can't say.
const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const CURRENT_METRICS: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";

/// Puts the object into another version of its kind; `api_version` is `v1`, `apps/v1`. Nothing happens when it is in
/// that version already.
pub fn to_version(object: &mut Value, api_version: &str) {
    let from = text(object, &["apiVersion"]).to_owned();
    if from == api_version {
        return;
    }
    match (text(object, &["kind"]), from.as_str(), api_version) {
        ("Event", "v1", "events.k8s.io/v1") => rename(object, EVENT_FIELDS),
        ("Event", "events.k8s.io/v1", "v1") => rename(object, EVENT_FIELDS.map(|(core, new)| (new, core))),
        ("HorizontalPodAutoscaler", "autoscaling/v1", "autoscaling/v2") => autoscaler_to_v2(object),
        ("HorizontalPodAutoscaler", "autoscaling/v2", "autoscaling/v1") => autoscaler_to_v1(object),
        _ => {}
    }
    object_mut(object, &[]).insert("apiVersion".into(), api_version.into());
}

fn rename(object: &mut Value, fields: [(&str, &str); 7]) {
    let map = object_mut(object, &[]);
    for (from, to) in fields {
        if let Some(value) = map.remove(from) {
            map.insert(to.to_owned(), value);
        }
    }
}

fn is_cpu_utilization(metric: &Value) -> bool {
    text(metric, &["type"]) == "Resource"
        && text(metric, &["resource", "name"]) == "cpu"
        && (!at(metric, &["resource", "target", "averageUtilization"]).is_null()
            || !at(metric, &["resource", "current", "averageUtilization"]).is_null())
}

/// Splits a list of metrics into the percentage of the CPU metric and the rest.
fn split(metrics: Option<Value>, which: &str) -> (Option<Value>, Vec<Value>) {
    let mut metrics = match metrics {
        Some(Value::Array(list)) => list,
        _ => Vec::new(),
    };
    let cpu = metrics.iter().position(is_cpu_utilization).map(|i| metrics.remove(i));
    (cpu.map(|m| at(&m, &["resource", which, "averageUtilization"]).clone()), metrics)
}

fn autoscaler_to_v1(object: &mut Value) {
    let (target, others) = split(remove(object, &["spec", "metrics"]), "target");
    let (current, current_others) = split(remove(object, &["status", "currentMetrics"]), "current");
    let behavior = remove(object, &["spec", "behavior"]);
    let conditions = remove(object, &["status", "conditions"]);
    if let Some(target) = target {
        object_mut(object, &["spec"]).insert("targetCPUUtilizationPercentage".into(), target);
    }
    if let Some(current) = current {
        object_mut(object, &["status"]).insert("currentCPUUtilizationPercentage".into(), current);
    }
    let filled = |list: Vec<Value>| (!list.is_empty()).then_some(Value::Array(list));
    let kept = [(METRICS, filled(others)), (CURRENT_METRICS, filled(current_others)), (CONDITIONS, conditions), (BEHAVIOR, behavior)];
    for (name, value) in kept {
        if let Some(value) = value.filter(|v| !v.is_null()) {
            object_mut(object, &["metadata", "annotations"]).insert(name.to_owned(), value.to_string().into());
        }
    }
}

fn autoscaler_to_v2(object: &mut Value) {
    let mut kept = |name: &str| -> Option<Value> {
        let value = remove(object, &["metadata", "annotations", name])?;
        serde_json::from_str(value.as_str()?).ok()
    };
    let (metrics, current, conditions, behavior) = (kept(METRICS), kept(CURRENT_METRICS), kept(CONDITIONS), kept(BEHAVIOR));
    if at(object, &["metadata", "annotations"]).as_object().is_some_and(Map::is_empty) {
        remove(object, &["metadata", "annotations"]);
    }
    let join = |cpu: Option<Value>, others: Option<Value>| -> Vec<Value> {
        cpu.into_iter().chain(items(&others.unwrap_or_default(), &[]).to_vec()).collect()
    };
    let target = remove(object, &["spec", "targetCPUUtilizationPercentage"]).map(|percent| {
        json!({"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": percent}}})
    });
    let used = remove(object, &["status", "currentCPUUtilizationPercentage"])
        .map(|percent| json!({"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": percent}}}));
    let lists = [("spec", "metrics", join(target, metrics)), ("status", "currentMetrics", join(used, current))];
    for (parent, name, list) in lists.into_iter().filter(|(_, _, list)| !list.is_empty()) {
        object_mut(object, &[parent]).insert(name.into(), list.into());
    }
    for (parent, name, value) in [("spec", "behavior", behavior), ("status", "conditions", conditions)] {
        if let Some(value) = value {
            object_mut(object, &[parent]).insert(name.into(), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_round_trip(object: Value, there: &str, expected: &Value) {
        let mut converted = object.clone();
        to_version(&mut converted, there);
        assert_eq!(&converted, expected);
        to_version(&mut converted, text(&object, &["apiVersion"]));
        assert_eq!(converted, object);
    }

    #[test]
    fn there_and_back() {
        check_round_trip(
            json!({"apiVersion": "v1", "kind": "Event", "involvedObject": {"kind": "Pod"}, "message": "m", "reportingComponent": "c", "reason": "r"}),
            "events.k8s.io/v1",
            &json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "regarding": {"kind": "Pod"}, "note": "m", "reportingController": "c", "reason": "r"}),
        );
        check_round_trip(
            json!({"apiVersion": "autoscaling/v1", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "h"}, "spec": {"maxReplicas": 3, "targetCPUUtilizationPercentage": 50}}),
            "autoscaling/v2",
            &json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "h"}, "spec": {"maxReplicas": 3,
                "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}}]}}),
        );
        let both = json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "h"}, "spec": {
            "maxReplicas": 3, "behavior": {"scaleUp": {"stabilizationWindowSeconds": 3}}, "metrics": [
                {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}},
                {"type": "Resource", "resource": {"name": "memory", "target": {"type": "AverageValue", "averageValue": "1Gi"}}}]}});
        let mut there_and_back = both.clone();
        to_version(&mut there_and_back, "autoscaling/v1");
        assert_eq!(there_and_back["spec"], json!({"maxReplicas": 3, "targetCPUUtilizationPercentage": 50}));
        to_version(&mut there_and_back, "autoscaling/v2");
        assert_eq!(there_and_back, both);
        let memory = json!([{"type": "Resource", "resource": {"name": "memory", "target": {"type": "AverageValue", "averageValue": "1Gi"}}}]);
        check_round_trip(
            json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "h"}, "spec": {"metrics": memory}}),
            "autoscaling/v1",
            &json!({"apiVersion": "autoscaling/v1", "kind": "HorizontalPodAutoscaler",
                "metadata": {"name": "h", "annotations": {METRICS: memory.to_string()}}, "spec": {}}),
        );
    }
}
