//! Roles and bindings of the first policy that somebody has changed: at each start they are given what they lack, and keep
//! what was added, as upstream's reconciliation does it. An annotation says which are to be left alone.

use serde_json::{Map, Value};
use skiff_api::value::{at, items, text};

use crate::admission::escalation::lacks;

/// Whether a role or binding is to be kept up to date.
const AUTO_UPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";

/// What is to be done about an object.
#[derive(Debug, PartialEq)]
pub(super) enum Plan {
    /// Nothing.
    Leave,
    /// It is to be this.
    Write(Value),
    /// It leads to another role, which can't be changed: it is to be made anew.
    Replace,
}

/// Decides. `known` is the object as it is stored, `wanted` as it was made first.
pub(super) fn plan(known: &Value, wanted: &Value) -> Plan {
    if text(known, &["metadata", "annotations", AUTO_UPDATE]) != "true" {
        return Plan::Leave;
    }
    if !wanted["roleRef"].is_null() && known["roleRef"] != wanted["roleRef"] {
        return Plan::Replace;
    }
    let mut repaired = known.clone();
    for part in ["labels", "annotations"] {
        let lacking: Map<String, Value> =
            at(wanted, &["metadata", part]).as_object().into_iter().flatten().filter(|(key, _)| known["metadata"][part].get(*key).is_none()).map(|(k, v)| (k.clone(), v.clone())).collect();
        if !lacking.is_empty() {
            let mut all = at(known, &["metadata", part]).as_object().cloned().unwrap_or_default();
            all.extend(lacking);
            repaired["metadata"][part] = all.into();
        }
    }
    // What such a role holds is its controller's affair.
    if !wanted["aggregationRule"].is_null() {
        let selectors = extended(at(known, &["aggregationRule", "clusterRoleSelectors"]), items(wanted, &["aggregationRule", "clusterRoleSelectors"]));
        if let Some(selectors) = selectors {
            repaired["aggregationRule"]["clusterRoleSelectors"] = selectors;
        }
    } else {
        let lacking: Vec<Value> = items(wanted, &["rules"]).iter().filter(|rule| lacks(known, rule)).cloned().collect();
        if let Some(rules) = extended(at(known, &["rules"]), &lacking) {
            repaired["rules"] = rules;
        }
    }
    if let Some(subjects) = extended(at(known, &["subjects"]), items(wanted, &["subjects"])) {
        repaired["subjects"] = subjects;
    }
    if repaired == *known { Plan::Leave } else { Plan::Write(repaired) }
}

/// The list with those of `wanted` that it lacks; `None` when it lacks none.
fn extended(known: &Value, wanted: &[Value]) -> Option<Value> {
    let mut list = known.as_array().cloned().unwrap_or_default();
    let lacking: Vec<Value> = wanted.iter().filter(|item| !list.contains(item)).cloned().collect();
    list.extend(lacking.iter().cloned());
    (!lacking.is_empty()).then_some(list.into())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn role(auto: &str, rules: Value) -> Value {
        json!({"metadata": {"name": "r", "annotations": {AUTO_UPDATE: auto}}, "rules": rules})
    }

    fn rule(verbs: &[&str]) -> Value {
        json!({"apiGroups": [""], "resources": ["pods"], "verbs": verbs})
    }

    #[test]
    fn roles_are_given_what_they_lack() {
        let wanted = role("true", json!([rule(&["get", "list"])]));
        let check = |known: Value, expected: Option<Value>| {
            let expected = expected.map_or(Plan::Leave, |rules| Plan::Write(Value::Object({
                let mut repaired = known.as_object().cloned().unwrap_or_default();
                repaired.insert("rules".into(), rules);
                repaired
            })));
            assert_eq!(plan(&known, &wanted), expected, "{known}");
        };
        check(wanted.clone(), None);
        // Holding more, however it is said, is not lacking.
        check(role("true", json!([rule(&["*"])])), None);
        check(role("true", json!([rule(&["list"]), rule(&["get"]), rule(&["delete"])])), None);
        check(role("true", json!([rule(&["get"])])), Some(json!([rule(&["get"]), rule(&["get", "list"])])));
        check(role("true", Value::Null), Some(json!([rule(&["get", "list"])])));
        check(role("false", json!([])), None);
    }

    #[test]
    fn bindings_are_given_their_subjects_and_role() {
        let binding = |role: &str, subjects: &[&str]| {
            let subjects: Vec<Value> = subjects.iter().map(|name| json!({"kind": "User", "name": name})).collect();
            json!({"metadata": {"annotations": {AUTO_UPDATE: "true"}, "labels": {"a": "b"}}, "roleRef": {"name": role}, "subjects": subjects})
        };
        assert_eq!(plan(&binding("r", &["a", "b"]), &binding("r", &["a"])), Plan::Leave);
        assert_eq!(plan(&binding("r", &["b"]), &binding("r", &["a"])), Plan::Write(binding("r", &["b", "a"])));
        assert_eq!(plan(&binding("x", &["a"]), &binding("r", &["a"])), Plan::Replace);
        let mut bare = binding("r", &["a"]);
        bare["metadata"]["labels"] = Value::Null;
        assert_eq!(plan(&bare, &binding("r", &["a"])), Plan::Write(binding("r", &["a"])));
    }
}
