//! Kinds that are served in several versions: from the stored version to the one asked for, and back.

use serde_json::Value;
use skiff_api::resource::Resource;

/// The object in the resource's version. What is in that version already stays as it is.
pub fn to_version(resource: &Resource, object: Value) -> Value {
    let wanted = resource.api_version();
    convert(object, &wanted)
}

/// The object in the version that the resource is stored as.
pub fn to_stored(resource: &Resource, object: Value) -> Value {
    if resource.stored_as.is_empty() { object } else { convert(object, &resource.stored_as) }
}

fn convert(mut object: Value, wanted: &str) -> Value {
    let from = object.get("apiVersion").and_then(Value::as_str).unwrap_or("").to_owned();
    if from == wanted || from.is_empty() {
        return object;
    }
    match (from.as_str(), wanted) {
        ("v1", "events.k8s.io/v1") => rename(&mut object, EVENT_FIELDS.iter().map(|(core, new)| (*core, *new))),
        ("events.k8s.io/v1", "v1") => rename(&mut object, EVENT_FIELDS.iter().map(|(core, new)| (*new, *core))),
        ("autoscaling/v2", "autoscaling/v1") => hpa::to_v1(&mut object),
        ("autoscaling/v1", "autoscaling/v2") => hpa::to_v2(&mut object),
        _ => {}
    }
    object["apiVersion"] = wanted.into();
    object
}

/// The members of an event that have other names in core/v1 and in events.k8s.io/v1.
const EVENT_FIELDS: [(&str, &str); 7] = [
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];

fn rename<'a>(object: &mut Value, names: impl Iterator<Item = (&'a str, &'a str)>) {
    let Some(map) = object.as_object_mut() else { return };
    for (from, to) in names {
        if let Some(member) = map.remove(from) {
            map.insert(to.into(), member);
        }
    }
}

/// autoscaling/v1 knows one metric, the pods' CPU; the rest of v2 travels in annotations.
mod hpa {
    use serde_json::{Value, json};
    use skiff_api::value;

    const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
    const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";
    const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
    const CURRENT: &str = "autoscaling.alpha.kubernetes.io/current-metrics";

    fn is_cpu(metric: &Value) -> bool {
        value::text(metric, &["type"]) == "Resource" && value::text(metric, &["resource", "name"]) == "cpu"
    }

    fn utilization<'a>(metric: &'a Value, side: &str) -> &'a Value {
        value::at(metric, &["resource", side, "averageUtilization"])
    }

    pub(super) fn to_v1(hpa: &mut Value) {
        let mut carried = Vec::new();
        if let Some(Value::Array(metrics)) = value::remove(hpa, &["spec", "metrics"]) {
            let (cpu, rest): (Vec<_>, Vec<_>) =
                metrics.into_iter().partition(|m| is_cpu(m) && !utilization(m, "target").is_null());
            if let Some(metric) = cpu.first() {
                hpa["spec"]["targetCPUUtilizationPercentage"] = utilization(metric, "target").clone();
            }
            carried.push((METRICS, Value::Array(rest)));
        }
        if let Some(current) = value::remove(hpa, &["status", "currentMetrics"]) {
            if let Some(metric) = current.as_array().into_iter().flatten().find(|m| is_cpu(m)) {
                hpa["status"]["currentCPUUtilizationPercentage"] = utilization(metric, "current").clone();
            }
            carried.push((CURRENT, current));
        }
        carried.extend(value::remove(hpa, &["spec", "behavior"]).map(|v| (BEHAVIOR, v)));
        carried.extend(value::remove(hpa, &["status", "conditions"]).map(|v| (CONDITIONS, v)));
        for (annotation, member) in carried {
            let empty = member.is_null() || member.as_array().is_some_and(Vec::is_empty);
            if !empty {
                value::object_mut(hpa, &["metadata", "annotations"]).insert(annotation.into(), member.to_string().into());
            }
        }
    }

    pub(super) fn to_v2(hpa: &mut Value) {
        let mut take = |annotation: &str| {
            let text = value::remove(hpa, &["metadata", "annotations", annotation])?;
            serde_json::from_str::<Value>(text.as_str()?).ok()
        };
        let (metrics, behavior, conditions, current) = (take(METRICS), take(BEHAVIOR), take(CONDITIONS), take(CURRENT));
        let mut metrics = metrics.and_then(|m| m.as_array().cloned()).unwrap_or_default();
        if let Some(percent) = value::remove(hpa, &["spec", "targetCPUUtilizationPercentage"]) {
            let target = json!({"type": "Utilization", "averageUtilization": percent});
            metrics.insert(0, json!({"type": "Resource", "resource": {"name": "cpu", "target": target}}));
        }
        if !metrics.is_empty() {
            hpa["spec"]["metrics"] = metrics.into();
        }
        value::remove(hpa, &["status", "currentCPUUtilizationPercentage"]);
        for (path, member) in [(["spec", "behavior"], behavior), (["status", "conditions"], conditions), (["status", "currentMetrics"], current)] {
            if let Some(member) = member {
                value::object_mut(hpa, &path[..1]).insert(path[1].into(), member);
            }
        }
        if value::at(hpa, &["metadata", "annotations"]).as_object().is_some_and(|a| a.is_empty()) {
            value::remove(hpa, &["metadata", "annotations"]);
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_round_trip_through_v1_loses_nothing() {
            let v2 = json!({
                "apiVersion": "autoscaling/v2", "metadata": {"name": "a"},
                "spec": {
                    "maxReplicas": 3, "behavior": {"scaleUp": {"stabilizationWindowSeconds": 3}},
                    "metrics": [
                        {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}},
                        {"type": "Resource", "resource": {"name": "memory", "target": {"type": "AverageValue", "averageValue": "1Gi"}}},
                    ],
                },
            });
            let v1 = super::super::convert(v2.clone(), "autoscaling/v1");
            assert_eq!(v1["spec"]["targetCPUUtilizationPercentage"], 50);
            assert!(v1["spec"].get("metrics").is_none());
            assert_eq!(super::super::convert(v1, "autoscaling/v2"), v2);
        }
    }
}
