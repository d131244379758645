//! Where pods may run: affinity, taints and tolerations, spreading.

use super::check::{At, Errors};
use super::meta::{label_selector, operator_values};
use crate::field::Error;
use crate::names;

const EFFECTS: [&str; 3] = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

/// All of a pod's affinity.
pub(super) fn affinity(e: &mut Errors, at: &At) {
    let node = at.at("nodeAffinity");
    if node.at(REQUIRED).is_set() {
        node_selector(e, &node.at(REQUIRED));
    }
    for term in node.at(PREFERRED).items() {
        weight(e, &term);
        node_term(e, &term.at("preference"), false);
    }
    for name in ["podAffinity", "podAntiAffinity"] {
        let pods = at.at(name);
        pods.at(REQUIRED).items().for_each(|term| pod_term(e, &term));
        for term in pods.at(PREFERRED).items() {
            weight(e, &term);
            pod_term(e, &term.at("podAffinityTerm"));
        }
    }
}

fn weight(e: &mut Errors, term: &At) {
    let weight = term.at("weight");
    if !(1..=100).contains(&weight.number()) {
        e.invalid_value(&weight, weight.number(), "must be in the range 1-100");
    }
}

/// A NodeSelector.
pub(super) fn node_selector(e: &mut Errors, at: &At) {
    let terms = at.at("nodeSelectorTerms");
    if terms.is_empty() {
        return e.required(&terms, "must have at least one node selector term");
    }
    terms.items().for_each(|term| node_term(e, &term, true));
}

fn node_term(e: &mut Errors, term: &At, check_values: bool) {
    for expression in term.at("matchExpressions").items() {
        let (operator, values) = (expression.at("operator"), expression.at("values"));
        match (operator.str(), values.len()) {
            ("Gt" | "Lt", 1) => {}
            ("Gt" | "Lt", _) => e.required(&values, "must be specified single value when `operator` is 'Lt' or 'Gt'"),
            _ if operator_values(e, &expression) => {}
            _ => e.invalid_value(&operator, operator.str(), "not a valid selector operator"),
        }
        e.form(&expression.at("key"), names::qualified_name);
        values.items().filter(|_| check_values).for_each(|value| e.form(&value, names::label_value));
    }
    for expression in term.at("matchFields").items() {
        let (operator, values, key) = (expression.at("operator"), expression.at("values"), expression.at("key"));
        match operator.str() {
            "In" | "NotIn" if values.len() != 1 => {
                e.required(&values, "must be only one value when `operator` is 'In' or 'NotIn' for node field selector");
            }
            "In" | "NotIn" => {}
            _ => e.invalid_value(&operator, operator.str(), "not a valid selector operator"),
        }
        if key.str() == "metadata.name" {
            values.items().for_each(|value| e.form(&value, names::dns_subdomain));
        } else {
            e.invalid_value(&key, key.str(), "not a valid field selector key");
        }
    }
}

fn pod_term(e: &mut Errors, term: &At) {
    label_selector(e, &term.at("labelSelector"));
    label_selector(e, &term.at("namespaceSelector"));
    term.at("namespaces").items().for_each(|name| e.form(&name.called(term.below("namespace")), names::dns_label));
    label_keys(e, term);
    let key = term.at("topologyKey");
    e.wanted(&key, "can not be empty");
    e.form(&key, names::qualified_name);
}

/// `matchLabelKeys` and `mismatchLabelKeys` beside a label selector.
fn label_keys(e: &mut Errors, term: &At) {
    let selector = term.at("labelSelector");
    for name in ["matchLabelKeys", "mismatchLabelKeys"] {
        let keys = term.at(name);
        if !keys.is_empty() && !selector.is_set() {
            e.forbidden(&keys, "must not be specified when labelSelector is not set");
            continue;
        }
        keys.items().for_each(|key| e.form(&key, names::qualified_name));
    }
    let mismatch = term.at("mismatchLabelKeys").texts();
    for key in term.at("matchLabelKeys").items().filter(|key| mismatch.contains(&key.str())) {
        e.invalid(&key, "exists in both matchLabelKeys and mismatchLabelKeys");
    }
}

/// The tolerations of a pod.
pub(super) fn tolerations(e: &mut Errors, list: &At) {
    for toleration in list.items() {
        let (key, operator, value, effect) = (toleration.at("key"), toleration.at("operator"), toleration.at("value"), toleration.at("effect"));
        e.optional_form(&key, names::qualified_name);
        if key.is_empty() && operator.str() != "Exists" {
            let words = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            e.invalid_value(&operator, operator.str(), words);
        }
        if toleration.at("tolerationSeconds").is_set() && effect.str() != "NoExecute" {
            e.invalid_value(&effect, effect.str(), "effect must be 'NoExecute' when `tolerationSeconds` is set");
        }
        match operator.str() {
            "" | "Equal" => {
                let faults = names::label_value(value.str());
                if !faults.is_empty() {
                    e.invalid_value(&operator, value.str(), faults.join(";"));
                }
            }
            "Exists" if !value.is_empty() => e.invalid_value(&operator, value.str(), "value must be empty when `operator` is 'Exists'"),
            "Exists" => {}
            // Of a feature that is off.
            "Lt" | "Gt" => e.unsupported(&operator, &["Equal", "Exists", "Lt", "Gt"]),
            _ => e.unsupported(&operator, &["Equal", "Exists"]),
        }
        if !effect.is_empty() {
            e.maybe_one_of(&effect, &EFFECTS);
        }
    }
}

/// The taints of a node.
pub(super) fn taints(e: &mut Errors, list: &At) {
    let mut seen = Vec::new();
    for taint in list.items() {
        e.form(&taint.at("key"), names::qualified_name);
        let (value, effect) = (taint.at("value"), taint.at("effect"));
        let faults = names::label_value(value.str());
        if !faults.is_empty() {
            e.invalid(&value, faults.join(";"));
        }
        e.one_of(&effect, &EFFECTS);
        let id = (taint.at("key").str(), effect.str());
        if seen.contains(&id) {
            e.duplicate(&taint);
            e.detail("taints must be unique by key and effect pair");
        }
        seen.push(id);
    }
}

/// How a pod's like are spread.
pub(super) fn spread(e: &mut Errors, list: &At) {
    let all: Vec<At> = list.items().collect();
    for (i, constraint) in all.iter().enumerate() {
        let (skew, key, action) = (constraint.at("maxSkew"), constraint.at("topologyKey"), constraint.at("whenUnsatisfiable"));
        e.positive(&skew, "must be greater than zero");
        e.wanted(&key, "can not be empty");
        if !matches!(action.str(), "DoNotSchedule" | "ScheduleAnyway") {
            e.push(Error::not_supported(&action.path, action.str(), &["DoNotSchedule", "ScheduleAnyway"]));
        }
        let same = |other: &At| other.at("topologyKey").value == key.value && other.at("whenUnsatisfiable").value == action.value;
        if all[i + 1..].iter().any(same) {
            let path = constraint.below("{topologyKey, whenUnsatisfiable}");
            e.push(Error::duplicate(path, format!("{{{}, {}}}", key.str(), action.str())));
        }
        let domains = constraint.at("minDomains");
        e.at_least(&domains, 1, "must be greater than zero");
        if domains.is_set() && action.str() != "DoNotSchedule" {
            e.invalid(&domains, format!("can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {}", action.str()));
        }
        for policy in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
            e.maybe_one_of(&constraint.at(policy), &["Honor", "Ignore"]);
        }
        label_keys(e, constraint);
        label_selector(e, &constraint.at("labelSelector"));
    }
}
