//! Selectors from typed objects. What can't be read selects nothing: the API server refuses such objects.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use crate::labels::{Operator, Requirement, Selector};

/// The selector of a LabelSelector; a missing one selects nothing, an empty one everything.
pub fn of(selector: Option<&LabelSelector>) -> Selector {
    let Some(selector) = selector else { return Selector::nothing() };
    let mut all = of_labels(selector.match_labels.iter().flatten());
    for expression in selector.match_expressions.iter().flatten() {
        let Some(operator) = Operator::from_name(&expression.operator) else { return Selector::nothing() };
        let values = expression.values.iter().flatten().cloned().collect();
        all.require(Requirement { key: expression.key.clone(), operator, values });
    }
    all
}

/// Selects what has all these labels.
pub fn of_labels<'a>(labels: impl IntoIterator<Item = (&'a String, &'a String)>) -> Selector {
    let mut all = Selector::everything();
    for (key, value) in labels {
        all.require(is(key, Operator::In, value));
    }
    all
}

/// Selects what has all labels of a map; a missing or empty map selects nothing, as in the spec of a Service.
pub fn of_map(labels: Option<&BTreeMap<String, String>>) -> Selector {
    match labels.filter(|labels| !labels.is_empty()) {
        Some(labels) => of_labels(labels),
        None => Selector::nothing(),
    }
}

/// The requirement that the label `key` is related to `value` by `operator`.
pub fn is(key: &str, operator: Operator, value: &str) -> Requirement {
    Requirement { key: key.to_owned(), operator, values: BTreeSet::from([value.to_owned()]) }
}
