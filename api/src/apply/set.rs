//! Sets of field paths, in the form of `fieldsV1`: a tree whose edges are `f:name`, `k:{"key":"value"}` or `v:"value"`.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::{Map, Value};

use crate::schema::Schema;

/// A set of field paths: this node's path if it is a member, and the paths below it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSet {
    /// Whether the path to this node is in the set.
    pub member: bool,
    /// The sets below, by edge. None is empty.
    pub children: BTreeMap<String, FieldSet>,
}

impl FieldSet {
    /// Reads `fieldsV1`.
    pub fn from_json(value: &Value) -> Self {
        let Some(map) = value.as_object() else { return Self::default() };
        let children = map.iter().filter(|(edge, _)| *edge != ".").map(|(edge, below)| {
            let mut child = Self::from_json(below);
            child.member |= child.children.is_empty();
            (edge.clone(), child)
        });
        Self { member: map.contains_key("."), children: children.collect() }
    }

    /// Writes `fieldsV1`.
    pub fn to_json(&self) -> Value {
        let mut map = Map::new();
        if self.member && !self.children.is_empty() {
            map.insert(".".into(), Value::Object(Map::new()));
        }
        map.extend(self.children.iter().map(|(edge, child)| (edge.clone(), child.to_json())));
        Value::Object(map)
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        !self.member && self.children.is_empty()
    }

    /// The node at the path, made where it is missing.
    fn node(&mut self, path: &[String]) -> &mut Self {
        path.iter().fold(self, |node, edge| node.children.entry(edge.clone()).or_default())
    }

    /// Puts a path in.
    pub fn insert(&mut self, path: &[String]) {
        self.node(path).member = true;
    }

    /// Takes a path out, and with it all below.
    pub fn remove_tree(&mut self, path: &[String]) {
        match path {
            [] => *self = Self::default(),
            [edge, rest @ ..] => {
                if let Some(child) = self.children.get_mut(edge) {
                    child.remove_tree(rest);
                    if child.is_empty() {
                        self.children.remove(edge);
                    }
                }
            }
        }
    }

    /// Whether the path is in it.
    pub fn has(&self, path: &[String]) -> bool {
        path.iter().try_fold(self, |node, edge| node.children.get(edge)).is_some_and(|node| node.member)
    }

    /// What is in one or the other.
    pub fn union(&self, other: &Self) -> Self {
        let mut all = self.clone();
        all.member |= other.member;
        for (edge, theirs) in &other.children {
            let child = all.children.entry(edge.clone()).or_default();
            *child = child.union(theirs);
        }
        all
    }

    /// What is in this one and not in the other.
    pub fn difference(&self, other: &Self) -> Self {
        let children = self.children.iter().map(|(edge, mine)| match other.children.get(edge) {
            Some(theirs) => (edge.clone(), mine.difference(theirs)),
            None => (edge.clone(), mine.clone()),
        });
        Self { member: self.member && !other.member, children: children.filter(|(_, c)| !c.is_empty()).collect() }
    }

    /// What is in both.
    pub fn intersection(&self, other: &Self) -> Self {
        let common = self.children.iter().filter_map(|(edge, mine)| Some((edge.clone(), mine.intersection(other.children.get(edge)?))));
        Self { member: self.member && other.member, children: common.filter(|(_, c)| !c.is_empty()).collect() }
    }

    /// The set with the paths of all declared fields that stand above a member put in.
    pub fn with_named_fields(&self, schema: &Schema) -> Self {
        let children = self.children.iter().map(|(edge, child)| {
            let named = edge.strip_prefix("f:").and_then(|name| schema.property(name));
            let below = match (edge.strip_prefix("f:"), named) {
                (_, Some(property)) => &*property.schema,
                (Some(name), None) => schema.member(name).unwrap_or(Schema::any()),
                (None, _) => schema.items().unwrap_or(Schema::any()),
            };
            let mut child = child.with_named_fields(below);
            child.member |= named.is_some();
            (edge.clone(), child)
        });
        Self { member: self.member, children: children.collect() }
    }

    /// All paths, parents before children.
    pub fn paths(&self) -> Vec<Vec<String>> {
        fn walk(set: &FieldSet, path: &mut Vec<String>, all: &mut Vec<Vec<String>>) {
            if set.member {
                all.push(path.clone());
            }
            for (edge, child) in &set.children {
                path.push(edge.clone());
                walk(child, path, all);
                path.pop();
            }
        }
        let mut all = Vec::new();
        walk(self, &mut Vec::new(), &mut all);
        all
    }
}

/// The path as messages show it: `.spec.containers[name="a"].image`.
pub fn shown(path: &[String]) -> String {
    let mut text = String::new();
    for edge in path {
        if let Some(name) = edge.strip_prefix("f:") {
            let _ = write!(text, ".{name}");
        } else if let Some(keys) = edge.strip_prefix("k:").and_then(|k| serde_json::from_str::<Map<String, Value>>(k).ok()) {
            let keys: Vec<String> = keys.iter().map(|(key, value)| format!("{key}={value}")).collect();
            let _ = write!(text, "[{}]", keys.join(","));
        } else if let Some(value) = edge.strip_prefix("v:") {
            let _ = write!(text, "[={value}]");
        } else {
            let _ = write!(text, "[{}]", edge.strip_prefix("i:").unwrap_or(edge));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn algebra_on_the_wire_form() {
        let a = FieldSet::from_json(&json!({"f:a": {".": {}, "f:b": {}}, "f:c": {}}));
        let b = FieldSet::from_json(&json!({"f:a": {"f:b": {}}, "f:d": {}}));
        assert_eq!(a.to_json(), json!({"f:a": {".": {}, "f:b": {}}, "f:c": {}}));
        assert_eq!(a.union(&b).to_json(), json!({"f:a": {".": {}, "f:b": {}}, "f:c": {}, "f:d": {}}));
        assert_eq!(a.difference(&b).to_json(), json!({"f:a": {}, "f:c": {}}));
        assert_eq!(a.intersection(&b).to_json(), json!({"f:a": {"f:b": {}}}));
        let path = ["f:spec", "k:{\"name\":\"x\",\"port\":80}", "v:\"z\""].map(str::to_owned);
        assert_eq!(shown(&path), ".spec[name=\"x\",port=80][=\"z\"]");
    }
}
