//! Label and node selectors, compiled once per pod.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// How a key's value is judged.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
    Gt,
    Lt,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Requirement {
    key: String,
    operator: Operator,
    values: Vec<String>,
}

impl Requirement {
    fn new(key: &str, operator: &str, values: &[String]) -> Option<Self> {
        let operator = match operator {
            "In" => Operator::In,
            "NotIn" => Operator::NotIn,
            "Exists" => Operator::Exists,
            "DoesNotExist" => Operator::DoesNotExist,
            "Gt" => Operator::Gt,
            "Lt" => Operator::Lt,
            _ => return None,
        };
        Some(Self { key: key.to_owned(), operator, values: values.to_vec() })
    }

    fn holds(&self, value: Option<&str>) -> bool {
        let listed = |value: &str| self.values.iter().any(|v| v == value);
        let number = |text: &str| text.parse::<i64>().ok();
        let against = |value: Option<&str>, judge: fn(&i64, &i64) -> bool| {
            match (value.and_then(number), self.values.first().and_then(|v| number(v))) {
                (Some(have), Some(bound)) => judge(&have, &bound),
                _ => false,
            }
        };
        match self.operator {
            Operator::In => value.is_some_and(listed),
            Operator::NotIn => !value.is_some_and(listed),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::Gt => against(value, i64::gt),
            Operator::Lt => against(value, i64::lt),
        }
    }
}

/// A label selector: all its requirements must hold. Without any it selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    /// `None` selects nothing.
    requirements: Option<Vec<Requirement>>,
}

impl Selector {
    /// Compiles a label selector; an absent one, or one that can't be read, selects nothing.
    pub fn new(selector: Option<&LabelSelector>) -> Self {
        let Some(selector) = selector else { return Self { requirements: None } };
        let mut all = Self::from_labels(selector.match_labels.iter().flatten());
        for r in selector.match_expressions.iter().flatten() {
            all.push(Requirement::new(&r.key, &r.operator, r.values.as_deref().unwrap_or_default()));
        }
        all
    }

    /// Selects what has all these labels.
    pub fn from_labels<'a>(labels: impl IntoIterator<Item = (&'a String, &'a String)>) -> Self {
        let mut all = Self { requirements: Some(Vec::new()) };
        for (key, value) in labels {
            all.push(Some(Requirement { key: key.clone(), operator: Operator::In, values: vec![value.clone()] }));
        }
        all
    }

    /// Also asks that `key` has one of `values` (or none of them, with `within` false).
    pub fn require(&mut self, key: &str, value: &str, within: bool) {
        let operator = if within { Operator::In } else { Operator::NotIn };
        self.push(Some(Requirement { key: key.to_owned(), operator, values: vec![value.to_owned()] }));
    }

    /// Asks for everything that `other` asks for, too.
    pub fn and(&mut self, other: &Self) {
        match (&mut self.requirements, &other.requirements) {
            (Some(all), Some(more)) => all.extend(more.iter().cloned()),
            _ => self.requirements = None,
        }
    }

    fn push(&mut self, requirement: Option<Requirement>) {
        match (&mut self.requirements, requirement) {
            (Some(all), Some(one)) => all.push(one),
            _ => self.requirements = None,
        }
    }

    /// Whether there is no requirement at all.
    pub fn is_empty(&self) -> bool {
        self.requirements.as_ref().is_some_and(Vec::is_empty)
    }

    /// Whether the labels are selected.
    pub fn matches(&self, labels: &Labels) -> bool {
        let Some(all) = &self.requirements else { return false };
        all.iter().all(|r| r.holds(labels.get(&r.key).map(String::as_str)))
    }
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
        let compile = |list: Option<&Vec<NodeSelectorRequirement>>| {
            list.into_iter()
                .flatten()
                .map(|r| Requirement::new(&r.key, &r.operator, r.values.as_deref().unwrap_or_default()))
                .collect()
        };
        Self { labels: compile(term.match_expressions.as_ref()), fields: compile(term.match_fields.as_ref()) }
    }

    /// Whether a node of this name and with these labels is selected.
    pub fn matches(&self, name: &str, labels: &Labels) -> bool {
        let (Some(wanted), Some(fields)) = (&self.labels, &self.fields) else { return false };
        if wanted.is_empty() && fields.is_empty() {
            return false;
        }
        wanted.iter().all(|r| r.holds(labels.get(&r.key).map(String::as_str)))
            && fields.iter().all(|r| r.key == "metadata.name" && r.holds(Some(name)))
    }

    /// The only nodes that this term can select, if it names them.
    pub fn names(&self) -> Option<Vec<&str>> {
        let mut named = self.fields.iter().flatten().filter(|r| r.key == "metadata.name" && r.operator == Operator::In);
        let mut names: Vec<&str> = named.next()?.values.iter().map(String::as_str).collect();
        for more in named {
            names.retain(|name| more.values.iter().any(|v| v == name));
        }
        Some(names)
    }
}
