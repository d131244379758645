//! What is true of a pod: readiness, requests, quality of service; and which nodes it selects.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::labels::{Operator, Requirement};
use crate::quantity::Quantity;
use crate::value::{at, condition, items, text};

/// Amounts by the name of their resource: `cpu`, `memory`, `pods`.
pub type Resources = BTreeMap<String, Quantity>;

/// Whether the pod's `Ready` condition is true.
pub fn is_ready(pod: &Value) -> bool {
    condition(pod, "Ready").is_some_and(|c| c["status"] == "True")
}

/// Whether it has run to its end: `Succeeded` or `Failed`.
pub fn is_terminal(pod: &Value) -> bool {
    matches!(text(pod, &["status", "phase"]), "Succeeded" | "Failed")
}

/// Whether it is being deleted.
pub fn is_terminating(pod: &Value) -> bool {
    !at(pod, &["metadata", "deletionTimestamp"]).is_null()
}

/// Whether it counts for its controller: neither run to its end nor being deleted.
pub fn is_active(pod: &Value) -> bool {
    !is_terminal(pod) && !is_terminating(pod)
}

/// Whether an init container is a sidecar, which goes on running.
pub fn is_sidecar(container: &Value) -> bool {
    container["restartPolicy"] == "Always"
}

/// The amounts of a resource list; what isn't a quantity is left out.
pub fn resource_list(list: &Value) -> Resources {
    let entries = list.as_object().into_iter().flatten();
    entries.filter_map(|(name, amount)| Some((name.clone(), amount.as_str()?.parse().ok()?))).collect()
}

/// Adds the amounts.
pub fn add(to: &mut Resources, amounts: &Resources) {
    for (name, amount) in amounts {
        *to.entry(name.clone()).or_default() += *amount;
    }
}

fn raise(to: &mut Resources, amounts: &Resources) {
    for (name, amount) in amounts {
        let present = to.entry(name.clone()).or_insert(*amount);
        *present = (*present).max(*amount);
    }
}

/// What the scheduler reckons the pod needs: its containers and sidecars together, or the greediest moment of its
/// start, whichever is more; amounts set for the pod as a whole stand in for them; and the overhead.
pub fn requests(pod: &Value) -> Resources {
    amounts(pod, "requests")
}

/// What the pod may use at most, by the same rules.
pub fn limits(pod: &Value) -> Resources {
    amounts(pod, "limits")
}

fn amounts(pod: &Value, which: &str) -> Resources {
    let of = |container: &Value| resource_list(at(container, &["resources", which]));
    let mut total = Resources::new();
    for container in items(pod, &["spec", "containers"]) {
        add(&mut total, &of(container));
    }
    let (mut sidecars, mut start) = (Resources::new(), Resources::new());
    for container in items(pod, &["spec", "initContainers"]) {
        let mut moment = of(container);
        if is_sidecar(container) {
            add(&mut total, &moment);
            add(&mut sidecars, &moment);
            moment.clone_from(&sidecars);
        } else {
            add(&mut moment, &sidecars);
        }
        raise(&mut start, &moment);
    }
    raise(&mut total, &start);
    total.extend(resource_list(at(pod, &["spec", "resources", which])));
    let overhead = resource_list(at(pod, &["spec", "overhead"]));
    if which == "requests" {
        add(&mut total, &overhead);
    } else {
        for (name, amount) in overhead {
            total.entry(name).and_modify(|limit| *limit += amount);
        }
    }
    total
}

/// The quality-of-service class: `Guaranteed`, `Burstable` or `BestEffort`.
pub fn qos_class(pod: &Value) -> &'static str {
    let counted = |list: &Value| -> Resources {
        let positive = resource_list(list).into_iter().filter(|(name, amount)| matches!(name.as_str(), "cpu" | "memory") && amount.signum() > 0);
        positive.collect()
    };
    let whole = at(pod, &["spec", "resources"]);
    let holders: Vec<&Value> = if at(whole, &["requests"]).is_null() && at(whole, &["limits"]).is_null() {
        items(pod, &["spec", "containers"]).iter().chain(items(pod, &["spec", "initContainers"])).map(|c| &c["resources"]).collect()
    } else {
        vec![whole]
    };
    let (mut requests, mut limits, mut guaranteed) = (Resources::new(), Resources::new(), true);
    for holder in holders {
        let limit = counted(&holder["limits"]);
        guaranteed &= limit.len() == 2;
        add(&mut requests, &counted(&holder["requests"]));
        add(&mut limits, &limit);
    }
    if requests.is_empty() && limits.is_empty() {
        "BestEffort"
    } else if guaranteed && requests == limits {
        "Guaranteed"
    } else {
        "Burstable"
    }
}

/// Whether the node is one that the pod's `nodeSelector` and required node affinity allow.
pub fn matches_node(pod: &Value, node: &Value) -> bool {
    let labels = at(node, &["metadata", "labels"]);
    let selector = at(pod, &["spec", "nodeSelector"]).as_object();
    if selector.into_iter().flatten().any(|(key, value)| labels.get(key) != Some(value)) {
        return false;
    }
    let required = at(pod, &["spec", "affinity", "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution"]);
    required.is_null() || matches_node_selector(required, node)
}

/// Whether the node matches one of the terms of a NodeSelector.
fn matches_node_selector(selector: &Value, node: &Value) -> bool {
    items(selector, &["nodeSelectorTerms"]).iter().any(|term| matches_node_term(term, node))
}

/// Whether the node matches all expressions of a NodeSelectorTerm; a term without any matches no node.
fn matches_node_term(term: &Value, node: &Value) -> bool {
    let (expressions, fields) = (items(term, &["matchExpressions"]), items(term, &["matchFields"]));
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    let labels = at(node, &["metadata", "labels"]);
    let name = BTreeMap::from([("metadata.name".to_owned(), text(node, &["metadata", "name"]).to_owned())]);
    expressions.iter().all(|e| node_requirement(e).is_some_and(|r| r.matches(labels)))
        && fields.iter().all(|e| node_requirement(e).is_some_and(|r| r.matches(&name)))
}

fn node_requirement(expression: &Value) -> Option<Requirement> {
    let operator = Operator::from_name(text(expression, &["operator"]))?;
    let values = items(expression, &["values"]).iter().filter_map(Value::as_str).map(str::to_owned).collect();
    Some(Requirement { key: text(expression, &["key"]).to_owned(), operator, values })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn container(cpu: &str, sidecar: bool) -> Value {
        let mut container = json!({"resources": {"requests": {"cpu": cpu}}});
        if sidecar {
            container["restartPolicy"] = "Always".into();
        }
        container
    }

    fn check_requests(containers: &[&str], init: &[(&str, bool)], expected: &str) {
        let pod = json!({"spec": {
            "containers": containers.iter().map(|c| container(c, false)).collect::<Vec<_>>(),
            "initContainers": init.iter().map(|(c, s)| container(c, *s)).collect::<Vec<_>>(),
            "overhead": {"cpu": "10m"},
        }});
        assert_eq!(requests(&pod)["cpu"].to_string(), expected);
    }

    #[test]
    fn requests_of_a_pod() {
        check_requests(&["100m", "200m"], &[], "310m");
        check_requests(&["100m"], &[("500m", false)], "510m");
        check_requests(&["100m"], &[("50m", true)], "160m");
        check_requests(&["100m"], &[("50m", true), ("500m", false)], "560m");
        check_requests(&["100m"], &[("500m", false), ("50m", true)], "510m");
    }

    #[test]
    fn quality_of_service() {
        let check = |resources: Value, expected| {
            assert_eq!(qos_class(&json!({"spec": {"containers": [{"resources": resources}]}})), expected);
        };
        check(json!({}), "BestEffort");
        check(json!({"requests": {"cpu": "1"}}), "Burstable");
        check(json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1", "memory": "1Gi"}}), "Guaranteed");
        check(json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m", "memory": "1Gi"}}), "Burstable");
        check(json!({"requests": {"example.com/x": "1"}}), "BestEffort");
    }

    #[test]
    fn which_nodes() {
        let node = json!({"metadata": {"name": "n", "labels": {"zone": "a", "cores": "8"}}});
        let matches = |term: Value| matches_node_term(&term, &node);
        assert!(matches(json!({"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}, {"key": "cores", "operator": "Gt", "values": ["4"]}]})));
        assert!(matches(json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n"]}]})));
        assert!(!matches(json!({})));
        assert!(matches_node(&json!({"spec": {"nodeSelector": {"zone": "a"}}}), &node));
        assert!(!matches_node(&json!({"spec": {"nodeSelector": {"zone": "b"}}}), &node));
    }
}
