//! What binds pods to nodes: taints and node affinity.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm, Pod, Taint, Toleration};

use crate::labels::{Operator, Requirement};

/// Whether one of the tolerations tolerates the taint.
pub fn tolerates(tolerations: &[Toleration], taint: &Taint) -> bool {
    tolerations.iter().any(|t| tolerates_one(t, taint))
}

/// Whether the toleration tolerates the taint.
pub fn tolerates_one(toleration: &Toleration, taint: &Taint) -> bool {
    let any = |wanted: &Option<String>, have: &str| wanted.as_deref().is_none_or(|w| w.is_empty() || w == have);
    any(&toleration.effect, &taint.effect)
        && any(&toleration.key, &taint.key)
        && match toleration.operator.as_deref() {
            Some("Exists") => true,
            None | Some("" | "Equal") => toleration.value.as_deref().unwrap_or("") == taint.value.as_deref().unwrap_or(""),
            Some(_) => false,
        }
}

/// The first taint with one of the effects that isn't tolerated.
pub fn untolerated<'a>(tolerations: &[Toleration], taints: &'a [Taint], effects: &[&str]) -> Option<&'a Taint> {
    taints.iter().find(|t| effects.contains(&t.effect.as_str()) && !tolerates(tolerations, t))
}

/// A taint without a value.
pub fn taint(key: &str, effect: &str) -> Taint {
    Taint { key: key.to_owned(), effect: effect.to_owned(), ..Taint::default() }
}

/// One term of a node selector: labels and fields, all of which must hold. An empty one selects nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeTerm {
    labels: Option<Vec<Requirement>>,
    fields: Option<Vec<Requirement>>,
}

impl NodeTerm {
    /// Compiles a term.
    pub fn new(term: &NodeSelectorTerm) -> Self {
        let compile = |list: Option<&Vec<NodeSelectorRequirement>>| -> Option<Vec<Requirement>> {
            list.into_iter()
                .flatten()
                .map(|r| {
                    let values = r.values.iter().flatten().cloned().collect();
                    Operator::from_name(&r.operator).map(|operator| Requirement { key: r.key.clone(), operator, values })
                })
                .collect()
        };
        Self { labels: compile(term.match_expressions.as_ref()), fields: compile(term.match_fields.as_ref()) }
    }

    /// Whether a node of this name and with these labels is selected.
    pub fn matches(&self, name: &str, labels: &BTreeMap<String, String>) -> bool {
        let (Some(wanted), Some(fields)) = (&self.labels, &self.fields) else { return false };
        if wanted.is_empty() && fields.is_empty() {
            return false;
        }
        let own = BTreeMap::from([("metadata.name".to_owned(), name.to_owned())]);
        wanted.iter().all(|r| r.matches(labels)) && fields.iter().all(|r| own.contains_key(&r.key) && r.matches(&own))
    }

    /// The only nodes that this term can select, if it names them.
    pub fn names(&self) -> Option<Vec<&str>> {
        let mut named = self.fields.iter().flatten().filter(|r| r.key == "metadata.name" && r.operator == Operator::In);
        let mut names: Vec<&str> = named.next()?.values.iter().map(String::as_str).collect();
        for more in named {
            names.retain(|name| more.values.contains(*name));
        }
        Some(names)
    }
}

/// A pod's node selector and required node affinity.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeRules {
    /// Labels that the node must have.
    pub selector: BTreeMap<String, String>,
    /// Terms of which one must hold; `None` without affinity.
    pub terms: Option<Vec<NodeTerm>>,
}

impl NodeRules {
    /// The rules of a pod.
    pub fn new(pod: &Pod) -> Self {
        let spec = pod.spec.as_ref();
        Self {
            selector: spec.and_then(|s| s.node_selector.clone()).unwrap_or_default(),
            terms: spec
                .and_then(|s| s.affinity.as_ref())
                .and_then(|a| a.node_affinity.as_ref())
                .and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref())
                .map(|required| required.node_selector_terms.iter().map(NodeTerm::new).collect()),
        }
    }

    /// Whether every node will do.
    pub fn is_empty(&self) -> bool {
        self.selector.is_empty() && self.terms.is_none()
    }

    /// Whether a node of this name and with these labels will do.
    pub fn allow(&self, name: &str, labels: &BTreeMap<String, String>) -> bool {
        self.selector.iter().all(|(key, value)| labels.get(key) == Some(value))
            && self.terms.as_ref().is_none_or(|terms| terms.iter().any(|t| t.matches(name, labels)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tolerations() {
        fn check(toleration: (Option<&str>, Option<&str>, Option<&str>, Option<&str>), expected: bool) {
            let own = |text: Option<&str>| text.map(str::to_owned);
            let (key, operator, value, effect) = toleration;
            let t = Toleration {
                key: own(key), operator: own(operator), value: own(value), effect: own(effect), ..Toleration::default()
            };
            let taint = Taint { value: Some("v".into()), ..taint("k", "NoSchedule") };
            assert_eq!(tolerates(&[t], &taint), expected, "{toleration:?}");
        }
        check((Some("k"), None, Some("v"), None), true);
        check((Some("k"), Some("Equal"), Some("w"), None), false);
        check((Some("k"), Some("Exists"), None, Some("NoSchedule")), true);
        check((Some("k"), Some("Exists"), None, Some("NoExecute")), false);
        check((None, Some("Exists"), None, None), true);
        check((Some("other"), Some("Exists"), None, None), false);
    }

    #[test]
    fn node_terms() {
        let labels = BTreeMap::from([("zone".to_owned(), "a".to_owned()), ("gpus".to_owned(), "4".to_owned())]);
        let check = |expressions: &[(&str, &str, &str)], fields: &[(&str, &str, &str)], expected: bool| {
            let list = |of: &[(&str, &str, &str)]| {
                let one = |(key, operator, value): &(&str, &str, &str)| NodeSelectorRequirement {
                    key: (*key).to_owned(),
                    operator: (*operator).to_owned(),
                    values: Some(value.split(',').map(str::to_owned).collect()),
                };
                Some(of.iter().map(one).collect())
            };
            let term = NodeSelectorTerm { match_expressions: list(expressions), match_fields: list(fields) };
            assert_eq!(NodeTerm::new(&term).matches("n1", &labels), expected, "{expressions:?} {fields:?}");
        };
        check(&[], &[], false);
        check(&[("zone", "In", "a,b")], &[], true);
        check(&[("zone", "NotIn", "a,b")], &[], false);
        check(&[("gpus", "Gt", "3")], &[], true);
        check(&[("gpus", "Lt", "3")], &[], false);
        check(&[("gpus", "Huh", "3")], &[], false);
        check(&[("zone", "Exists", "")], &[("metadata.name", "In", "n1")], true);
        check(&[], &[("metadata.name", "In", "n2")], false);
        check(&[], &[("metadata.uid", "NotIn", "n2")], false);
    }
}
