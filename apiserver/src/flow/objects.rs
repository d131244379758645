//! The FlowSchemas and PriorityLevelConfigurations that every cluster has, and what is to be written of them: pure.
//!
//! The mandatory ones are always there as they are here; the suggested ones follow too, unless their annotation says that
//! they have an owner. Upstream's objects and rules.

use std::collections::HashSet;

use serde_json::{Value, json};
use skiff_api::value::{at, items, text};

/// Whether an object's spec is to be kept as it is here.
const AUTO_UPDATE: &str = "apf.kubernetes.io/autoupdate-spec";
/// What can't be changed by anybody.
const MANDATORY: [&str; 2] = ["exempt", "catch-all"];

/// The levels of every cluster.
pub(super) fn levels() -> Vec<Value> {
    let exempt = json!({"type": "Exempt", "exempt": {"nominalConcurrencyShares": 0, "lendablePercent": 0}});
    let refusing = json!({
        "type": "Limited",
        "limited": {"nominalConcurrencyShares": 5, "lendablePercent": 0, "limitResponse": {"type": "Reject"}},
    });
    let mut all = vec![object("PriorityLevelConfiguration", "exempt", exempt), object("PriorityLevelConfiguration", "catch-all", refusing)];
    for (name, shares, lendable, queues, hand) in [
        ("system", 30, 33, 64, 6),
        ("node-high", 40, 25, 64, 6),
        ("leader-election", 10, 0, 16, 4),
        ("workload-high", 40, 50, 128, 6),
        ("workload-low", 100, 90, 128, 6),
        ("global-default", 20, 50, 128, 6),
    ] {
        let queuing = json!({"queues": queues, "handSize": hand, "queueLengthLimit": 50});
        let limited = json!({"nominalConcurrencyShares": shares, "lendablePercent": lendable, "limitResponse": {"type": "Queue", "queuing": queuing}});
        all.push(object("PriorityLevelConfiguration", name, json!({"type": "Limited", "limited": limited})));
    }
    all
}

/// The schemas of every cluster.
pub(super) fn schemas() -> Vec<Value> {
    const LEASES: (&str, &str) = ("coordination.k8s.io", "leases");
    let group = |name: &str| json!({"kind": "Group", "group": {"name": name}});
    let user = |name: &str| json!({"kind": "User", "user": {"name": name}});
    let account = |name: &str| json!({"kind": "ServiceAccount", "serviceAccount": {"namespace": "kube-system", "name": name}});
    let rule = |verbs: Value, group: &str, resources: Value, cluster: bool| {
        let mut rule = json!({"verbs": verbs, "apiGroups": [group], "resources": resources, "namespaces": ["*"]});
        if cluster {
            rule["clusterScope"] = true.into();
        }
        rule
    };
    let some = |subjects: Vec<Value>, rules: Vec<Value>| json!([{"subjects": subjects, "resourceRules": rules}]);
    let all = |subjects: Vec<Value>| {
        let others = json!([{"verbs": ["*"], "nonResourceURLs": ["*"]}]);
        json!([{"subjects": subjects, "resourceRules": [rule(json!(["*"]), "*", json!(["*"]), true)], "nonResourceRules": others}])
    };
    let everybody = || vec![group("system:unauthenticated"), group("system:authenticated")];
    let probes = json!([{
        "subjects": everybody(), "nonResourceRules": [{"verbs": ["get"], "nonResourceURLs": ["/healthz", "/readyz", "/livez"]}],
    }]);
    let writes = || json!(["get", "create", "update"]);
    let leases = || vec![rule(writes(), LEASES.0, json!([LEASES.1]), false)];
    let manager = || user("system:kube-controller-manager");
    let node = || vec![rule(json!(["*"]), "", json!(["nodes", "nodes/status"]), true), rule(json!(["*"]), LEASES.0, json!([LEASES.1]), false)];
    let endpoints = vec![rule(writes(), "", json!(["endpoints"]), false)];
    let endpoint_controllers = vec![manager(), account("endpoint-controller"), account("endpointslicemirroring-controller")];
    let electors = vec![manager(), user("system:kube-scheduler"), account("*")];
    [
        ("exempt", "exempt", 1, "", all(vec![group("system:masters")])),
        ("catch-all", "catch-all", 10_000, "ByUser", all(everybody())),
        ("probes", "exempt", 2, "", probes),
        ("system-leader-election", "leader-election", 100, "ByUser", some(electors, leases())),
        ("endpoint-controller", "workload-high", 150, "ByUser", some(endpoint_controllers, endpoints)),
        ("workload-leader-election", "leader-election", 200, "ByUser", some(vec![account("*")], leases())),
        ("system-node-high", "node-high", 400, "ByUser", some(vec![group("system:nodes")], node())),
        ("system-nodes", "system", 500, "ByUser", all(vec![group("system:nodes")])),
        ("kube-controller-manager", "workload-high", 800, "ByNamespace", all(vec![manager()])),
        ("kube-scheduler", "workload-high", 800, "ByNamespace", all(vec![user("system:kube-scheduler")])),
        ("kube-system-service-accounts", "workload-high", 900, "ByNamespace", all(vec![account("*")])),
        ("service-accounts", "workload-low", 9_000, "ByUser", all(vec![group("system:serviceaccounts")])),
        ("global-default", "global-default", 9_900, "ByUser", all(everybody())),
    ]
    .map(|(name, level, precedence, method, rules)| {
        let mut spec = json!({"priorityLevelConfiguration": {"name": level}, "matchingPrecedence": precedence, "rules": rules});
        if !method.is_empty() {
            spec["distinguisherMethod"] = json!({"type": method});
        }
        object("FlowSchema", name, spec)
    })
    .into()
}

fn object(kind: &str, name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": kind,
        "metadata": {"name": name, "annotations": {AUTO_UPDATE: "true"}}, "spec": spec,
    })
}

/// What is to be written.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Write {
    /// The object isn't there.
    Create(Value),
    /// It is there, and to be this.
    Update(Value),
    /// Nobody wants it any more: an earlier server's.
    Delete { kind: String, name: String },
    /// A schema's `Dangling` condition.
    Condition { name: String, condition: Value },
}

/// Decides. `levels` and `schemas` are those that there are, `now` the time as objects carry it.
pub(super) fn plan(levels: &[Value], schemas: &[Value], now: &str) -> Vec<Write> {
    let mut writes = Vec::new();
    for (wanted, known) in [(self::levels(), levels), (self::schemas(), schemas)] {
        for wanted in &wanted {
            match known.iter().find(|object| name(object) == name(wanted)) {
                None => writes.push(Write::Create(wanted.clone())),
                Some(known) => writes.extend(updated(known, wanted).map(Write::Update)),
            }
        }
        let ours: HashSet<&str> = wanted.iter().map(name).collect();
        let left = known.iter().filter(|object| text(object, &["metadata", "annotations", AUTO_UPDATE]) == "true" && !ours.contains(name(object)));
        writes.extend(left.map(|object| Write::Delete { kind: text(object, &["kind"]).into(), name: name(object).into() }));
    }
    let there: HashSet<&str> = levels.iter().map(name).collect();
    writes.extend(schemas.iter().filter_map(|schema| {
        let condition = dangling(schema, &there, now)?;
        Some(Write::Condition { name: name(schema).into(), condition })
    }));
    writes
}

fn name(object: &Value) -> &str {
    text(object, &["metadata", "name"])
}

/// The object with the spec that it is to have; `None` when nothing is to be changed.
fn updated(known: &Value, wanted: &Value) -> Option<Value> {
    let mandatory = MANDATORY.contains(&name(known));
    let said = text(known, &["metadata", "annotations", AUTO_UPDATE]);
    // Without the annotation, an object that was changed has an owner.
    let follows = mandatory || said == "true" || (said.is_empty() && at(known, &["metadata", "generation"]) == 1);
    // Of the level `exempt`, administrators may say how much it lends.
    let mut spec = wanted["spec"].clone();
    if name(known) == "exempt" && known["spec"]["exempt"].is_object() {
        spec["exempt"] = known["spec"]["exempt"].clone();
    }
    let marked = said == text(wanted, &["metadata", "annotations", AUTO_UPDATE]) || said == "false" && !mandatory;
    if !follows || (known["spec"] == spec && marked) {
        return None;
    }
    let mut updated = known.clone();
    updated["spec"] = spec;
    updated["metadata"]["annotations"][AUTO_UPDATE] = "true".into();
    Some(updated)
}

/// The schema's condition, when it isn't what it should be.
fn dangling(schema: &Value, levels: &HashSet<&str>, now: &str) -> Option<Value> {
    let level = text(schema, &["spec", "priorityLevelConfiguration", "name"]);
    let found = levels.contains(level);
    let (status, reason) = if found { ("False", "Found") } else { ("True", "NotFound") };
    let rest = if found { "and it exists" } else { "but there is no such object" };
    let message = format!("This FlowSchema references the PriorityLevelConfiguration object named {level:?} {rest}");
    let known = items(schema, &["status", "conditions"]).iter().find(|condition| text(condition, &["type"]) == "Dangling");
    let same = |key: &str, wanted: &str| known.is_some_and(|known| text(known, &[key]) == wanted);
    if same("status", status) && same("reason", reason) && same("message", &message) {
        return None;
    }
    let since = if same("status", status) { known.map_or(now, |known| text(known, &["lastTransitionTime"])) } else { now };
    Some(json!({"type": "Dangling", "status": status, "reason": reason, "message": message, "lastTransitionTime": since}))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "2026-01-01T00:00:00Z";

    /// What there is after the writes.
    fn carried_out(known: Vec<Value>, writes: &[Write], kind: &str) -> Vec<Value> {
        let mut known = known;
        for write in writes {
            match write {
                Write::Create(object) if object["kind"] == kind => known.push(object.clone()),
                Write::Update(object) if object["kind"] == kind => {
                    known.iter_mut().filter(|k| name(k) == name(object)).for_each(|k| *k = object.clone());
                }
                Write::Delete { kind: of, name: gone } if of == kind => known.retain(|k| name(k) != gone),
                Write::Condition { name: of, condition } if kind == "FlowSchema" => {
                    known.iter_mut().filter(|k| name(k) == of).for_each(|k| k["status"] = json!({"conditions": [condition]}));
                }
                _ => {}
            }
        }
        known
    }

    /// Plans until nothing is left to be done; answers the writes of the first round.
    fn settle(levels: Vec<Value>, schemas: Vec<Value>) -> (Vec<Write>, Vec<Value>, Vec<Value>) {
        let first = plan(&levels, &schemas, NOW);
        let (mut levels, mut schemas, mut writes) = (levels, schemas, first.clone());
        for _ in 0..3 {
            levels = carried_out(levels, &writes, "PriorityLevelConfiguration");
            schemas = carried_out(schemas, &writes, "FlowSchema");
            writes = plan(&levels, &schemas, NOW);
            if writes.is_empty() {
                return (first, levels, schemas);
            }
        }
        panic!("it doesn't come to rest: {writes:?}");
    }

    #[test]
    fn an_empty_cluster_gets_all_of_them() {
        let (writes, levels, schemas) = settle(Vec::new(), Vec::new());
        assert_eq!((writes.len(), levels.len(), schemas.len()), (21, 8, 13));
        let condition = &schemas[0]["status"]["conditions"][0];
        assert_eq!((&condition["status"], &condition["reason"], &condition["lastTransitionTime"]), (&json!("False"), &json!("Found"), &json!(NOW)));
    }

    #[test]
    fn what_somebody_changed_follows_or_stays() {
        let (_, levels, schemas) = settle(Vec::new(), Vec::new());
        let check = |change: &dyn Fn(&mut Vec<Value>), expected: &str| {
            let mut levels = levels.clone();
            change(&mut levels);
            let shown: Vec<String> = plan(&levels, &schemas, NOW)
                .iter()
                .map(|write| match write {
                    Write::Create(object) => format!("create {}", name(object)),
                    Write::Update(object) => format!("update {}", name(object)),
                    Write::Delete { name, .. } => format!("delete {name}"),
                    Write::Condition { name, condition } => format!("{name} {}", text(condition, &["reason"])),
                })
                .collect();
            assert_eq!(shown.join(", "), expected);
            settle(levels, schemas.clone());
        };
        let at = |name: &'static str| move |levels: &mut Vec<Value>| levels.iter_mut().position(|l| self::name(l) == name).expect("a level");
        check(&|levels| levels.retain(|level| name(level) != "system"), "create system, system-nodes NotFound");
        check(&|levels| { let i = at("system")(levels); levels[i]["spec"]["limited"]["nominalConcurrencyShares"] = 1.into() }, "update system");
        check(&|levels| { let i = at("catch-all")(levels); levels[i]["metadata"]["annotations"][AUTO_UPDATE] = "false".into(); levels[i]["spec"]["limited"]["nominalConcurrencyShares"] = 1.into() }, "update catch-all");
        check(&|levels| { let i = at("exempt")(levels); levels[i]["spec"]["exempt"]["lendablePercent"] = 1.into() }, "");
        check(&|levels| {
            let i = at("system")(levels);
            levels[i]["spec"]["limited"]["nominalConcurrencyShares"] = 1.into();
            levels[i]["metadata"]["annotations"][AUTO_UPDATE] = "false".into();
        }, "");
        check(&|levels| levels.push(object("PriorityLevelConfiguration", "old", json!({}))), "delete old");
    }
}
