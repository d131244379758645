//! What objects use of a ResourceQuota. Upstream's quota evaluators; shared by admission and by whoever keeps a quota's
//! status.

use serde_json::Value;

use crate::pod::{self, Resources};
use crate::quantity::Quantity;
use crate::value::{at, items, text};
use crate::clock;

/// What an object of the resource (group, plural) uses, by the names that quotas know it by. What a pod that has ended
/// used is free again, but for its place among the stored objects.
pub fn usage(group: &str, plural: &str, object: &Value) -> Resources {
    let one = Quantity::from_value(1);
    let mut used = Resources::from([(count_name(group, plural), one)]);
    match (group, plural) {
        ("", "pods") => pod_usage(object, &mut used),
        ("", "persistentvolumeclaims") => claim_usage(object, &mut used),
        ("", "services") => service_usage(object, &mut used),
        ("", "configmaps" | "replicationcontrollers" | "resourcequotas" | "secrets") => drop(used.insert(plural.into(), one)),
        _ => {}
    }
    used
}

fn count_name(group: &str, plural: &str) -> String {
    if group.is_empty() { format!("count/{plural}") } else { format!("count/{plural}.{group}") }
}

fn pod_usage(object: &Value, used: &mut Resources) {
    let expired = crate::value::time(object, &["metadata", "deletionTimestamp"]).is_some_and(|at| at <= clock::now());
    if pod::is_terminal(object) || expired {
        return;
    }
    used.insert("pods".into(), Quantity::from_value(1));
    for (name, amount) in pod::requests(object) {
        if matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-") {
            used.insert(format!("requests.{name}"), amount);
            used.insert(name, amount);
        } else if name.contains('/') {
            used.insert(format!("requests.{name}"), amount);
        }
    }
    for (name, amount) in pod::limits(object) {
        if matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") {
            used.insert(format!("limits.{name}"), amount);
        }
    }
}

fn claim_usage(claim: &Value, used: &mut Resources) {
    let annotation = text(claim, &["metadata", "annotations", "volume.beta.kubernetes.io/storage-class"]);
    let class = if annotation.is_empty() { text(claim, &["spec", "storageClassName"]) } else { annotation };
    let mut count = |name: &str, amount: Quantity| {
        used.insert(name.into(), amount);
        if !class.is_empty() {
            used.insert(format!("{class}.storageclass.storage.k8s.io/{name}"), amount);
        }
    };
    count("persistentvolumeclaims", Quantity::from_value(1));
    if let Some(storage) = pod::resource_list(at(claim, &["spec", "resources", "requests"])).get("storage") {
        count("requests.storage", *storage);
    }
}

fn service_usage(service: &Value, used: &mut Resources) {
    let ports = items(service, &["spec", "ports"]);
    let kind = text(service, &["spec", "type"]);
    let asked = || ports.iter().filter(|port| port["nodePort"].as_i64().unwrap_or(0) != 0).count();
    let without = at(service, &["spec", "allocateLoadBalancerNodePorts"]).as_bool() == Some(false);
    let node_ports = match kind {
        "NodePort" => ports.len(),
        "LoadBalancer" if without => asked(),
        "LoadBalancer" => ports.len(),
        _ => 0,
    };
    let number = |n: usize| Quantity::from_value(i64::try_from(n).unwrap_or(i64::MAX));
    used.insert("services".into(), number(1));
    used.insert("services.nodeports".into(), number(node_ports));
    used.insert("services.loadbalancers".into(), number(usize::from(kind == "LoadBalancer")));
}

/// Whether a quota's name of a resource is about objects of this resource.
pub fn concerns(name: &str, group: &str, plural: &str) -> bool {
    if name == count_name(group, plural) {
        return true;
    }
    match (group, plural) {
        ("", "pods") => {
            matches!(name, "pods" | "cpu" | "memory" | "ephemeral-storage" | "limits.cpu" | "limits.memory" | "limits.ephemeral-storage")
                || name.starts_with("hugepages-")
                || name.strip_prefix("requests.").is_some_and(|rest| rest != "storage")
        }
        ("", "persistentvolumeclaims") => {
            matches!(name, "persistentvolumeclaims" | "requests.storage") || name.contains(".storageclass.storage.k8s.io/")
        }
        ("", "services") => matches!(name, "services" | "services.nodeports" | "services.loadbalancers"),
        ("", "configmaps" | "replicationcontrollers" | "resourcequotas" | "secrets") => name == plural,
        _ => false,
    }
}

/// Whether the quota limits anything of this object: it names something of the resource, and its scopes take the object.
pub fn matches(quota: &Value, group: &str, plural: &str, object: &Value) -> bool {
    let hard = at(quota, &["spec", "hard"]).as_object();
    if !hard.into_iter().flatten().any(|(name, _)| concerns(name, group, plural)) {
        return false;
    }
    let is_pod = group.is_empty() && plural == "pods";
    let scopes = items(quota, &["spec", "scopes"]).iter().filter_map(Value::as_str).map(|scope| (scope, &Value::Null));
    let selected = items(quota, &["spec", "scopeSelector", "matchExpressions"]).iter().map(|e| (text(e, &["scopeName"]), e));
    scopes.chain(selected).all(|(scope, expression)| is_pod && in_scope(object, scope, expression))
}

fn in_scope(pod: &Value, scope: &str, expression: &Value) -> bool {
    let terminating = at(pod, &["spec", "activeDeadlineSeconds"]).as_i64().is_some_and(|s| s >= 0);
    match scope {
        "Terminating" => terminating,
        "NotTerminating" => !terminating,
        "BestEffort" => pod::qos_class(pod) == "BestEffort",
        "NotBestEffort" => pod::qos_class(pod) != "BestEffort",
        "PriorityClass" => {
            let class = text(pod, &["spec", "priorityClassName"]);
            let named = items(expression, &["values"]).iter().any(|v| v == class);
            match text(expression, &["operator"]) {
                "In" => named,
                "NotIn" => !named,
                "DoesNotExist" => class.is_empty(),
                _ => !class.is_empty(),
            }
        }
        "CrossNamespacePodAffinity" => ["podAffinity", "podAntiAffinity"].iter().any(|kind| {
            let required = items(pod, &["spec", "affinity", kind, "requiredDuringSchedulingIgnoredDuringExecution"]).iter();
            let preferred = items(pod, &["spec", "affinity", kind, "preferredDuringSchedulingIgnoredDuringExecution"]).iter();
            let mut terms = required.chain(preferred.map(|p| &p["podAffinityTerm"]));
            terms.any(|term| !items(term, &["namespaces"]).is_empty() || term["namespaceSelector"].is_object())
        }),
        _ => false,
    }
}

/// What the containers of a pod must say when the quota limits processor or memory, in upstream's words. Quotas on
/// anything else ask for nothing.
pub fn unsaid(quota: &Value, pod: &Value) -> Option<String> {
    if at(pod, &["spec", "resources"]).as_object().is_some_and(|r| r.contains_key("requests") || r.contains_key("limits")) {
        return None;
    }
    const MUST: [&str; 6] = ["cpu", "limits.cpu", "limits.memory", "memory", "requests.cpu", "requests.memory"];
    let hard = at(quota, &["spec", "hard"]).as_object()?;
    let unsaid = MUST.iter().filter(|name| hard.contains_key(**name)).filter_map(|name| {
        let (kind, resource) = name.split_once('.').unwrap_or(("requests", name));
        let containers = ["containers", "initContainers"].into_iter().flat_map(|list| items(pod, &["spec", list]));
        let silent = containers.filter(|c| at(c, &["resources", kind, resource]).is_null()).map(|c| text(c, &["name"]));
        let silent: std::collections::BTreeSet<&str> = silent.collect();
        (!silent.is_empty()).then(|| format!("{name} for: {}", silent.into_iter().collect::<Vec<_>>().join(",")))
    });
    let unsaid: Vec<String> = unsaid.collect();
    (!unsaid.is_empty()).then(|| format!("must specify {}", unsaid.join("; ")))
}

/// The amounts as upstream's messages show them: `a=1,b=2`.
pub fn shown(amounts: &Resources) -> String {
    amounts.iter().map(|(name, amount)| format!("{name}={amount}")).collect::<Vec<_>>().join(",")
}

/// The amounts that a quota names.
pub fn masked(amounts: &Resources, quota: &Value) -> Resources {
    let hard = at(quota, &["spec", "hard"]).as_object();
    amounts.iter().filter(|(name, _)| hard.is_some_and(|h| h.contains_key(*name))).map(|(n, a)| (n.clone(), *a)).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(plural: &str, object: &Value, expected: &str) {
        assert_eq!(shown(&usage("", plural, object)), expected, "{object}");
    }

    #[test]
    fn what_objects_use() {
        let container = json!({"name": "c", "resources": {"requests": {"cpu": "500m", "x.io/gpu": "2"}, "limits": {"memory": "1Gi"}}});
        let pod = json!({"spec": {"containers": [container]}});
        check("pods", &pod, "count/pods=1,cpu=500m,limits.memory=1Gi,pods=1,requests.cpu=500m,requests.x.io/gpu=2");
        check("pods", &json!({"spec": pod["spec"], "status": {"phase": "Succeeded"}}), "count/pods=1");
        check("secrets", &json!({}), "count/secrets=1,secrets=1");
        let service = json!({"spec": {"type": "NodePort", "ports": [{}, {}]}});
        check("services", &service, "count/services=1,services=1,services.loadbalancers=0,services.nodeports=2");
        let claim = json!({"spec": {"storageClassName": "fast", "resources": {"requests": {"storage": "5Gi"}}}});
        check(
            "persistentvolumeclaims",
            &claim,
            "count/persistentvolumeclaims=1,fast.storageclass.storage.k8s.io/persistentvolumeclaims=1,fast.storageclass.storage.k8s.io/requests.storage=5Gi,persistentvolumeclaims=1,requests.storage=5Gi",
        );
    }

    #[test]
    fn which_quotas_match() {
        let pod = json!({"spec": {"priorityClassName": "high", "containers": [{"name": "c"}]}});
        let check = |spec: Value, expected: bool| assert_eq!(matches(&json!({"spec": spec}), "", "pods", &pod), expected, "{spec}");
        check(json!({"hard": {"pods": "1"}}), true);
        check(json!({"hard": {"count/pods": "1"}}), true);
        check(json!({"hard": {"secrets": "1"}}), false);
        check(json!({"hard": {"pods": "1"}, "scopes": ["BestEffort", "NotTerminating"]}), true);
        check(json!({"hard": {"pods": "1"}, "scopes": ["Terminating"]}), false);
        let class = |values: Value| json!({"hard": {"pods": "1"}, "scopeSelector": {"matchExpressions": [{"scopeName": "PriorityClass", "operator": "In", "values": values}]}});
        check(class(json!(["high"])), true);
        check(class(json!(["low"])), false);
    }

    #[test]
    fn what_must_be_said() {
        let quota = json!({"spec": {"hard": {"limits.cpu": "1", "requests.memory": "1", "pods": "1"}}});
        let pod = json!({"spec": {"containers": [{"name": "b"}, {"name": "a", "resources": {"limits": {"cpu": "1"}}}]}});
        assert_eq!(unsaid(&quota, &pod).as_deref(), Some("must specify limits.cpu for: b; requests.memory for: a,b"));
    }
}
