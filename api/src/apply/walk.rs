//! Walks over values along their schema: which fields a value has, how two values differ, merging, and taking fields
//! out. The rules are those of upstream's structured-merge-diff.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::set::{FieldSet, shown};
use crate::schema::{Kind, List, ListType, Schema};
use crate::value::is_blank;

/// How a value of a schema is walked.
enum Shape<'a> {
    /// Owned and replaced as a whole.
    Leaf,
    /// Field by field, or key by key.
    Map,
    /// Item by item.
    List(&'a List),
}

fn shape<'a>(schema: &'a Schema, value: &Value) -> Shape<'a> {
    match &schema.kind {
        _ if schema.atomic => Shape::Leaf,
        Kind::Object(_) | Kind::Map(_) => Shape::Map,
        Kind::Any if value.is_object() => Shape::Map,
        Kind::List(list) if list.list_type != ListType::Atomic => Shape::List(list),
        _ => Shape::Leaf,
    }
}

/// The schema below a key, and whether the key is a declared field.
fn child<'a>(schema: &'a Schema, key: &str) -> Option<(&'a Schema, bool)> {
    match &schema.kind {
        Kind::Object(object) => match object.property(key) {
            Some(property) => Some((&property.schema, true)),
            None if object.preserve_unknown => Some((Schema::any(), false)),
            None => None,
        },
        Kind::Map(values) => Some((values, false)),
        _ => Some((Schema::any(), false)),
    }
}

/// The edge to an item of a list.
fn item_edge(list: &List, item: &Value) -> Result<String, String> {
    match &list.list_type {
        ListType::Map(keys) => {
            let Some(map) = item.as_object() else {
                return Err("associative list with keys may not have non-map elements".into());
            };
            let mut found = Map::new();
            for key in keys {
                let default = || list.items.property(key).and_then(|p| p.default.as_ref());
                if let Some(value) = map.get(key.as_ref()).or_else(default) {
                    found.insert(key.to_string(), value.clone());
                }
            }
            if found.is_empty() {
                let names: Vec<String> = keys.iter().map(|k| format!("{k:?}")).collect();
                let words = "associative list with keys has an element that omits all key fields";
                return Err(format!("{words} [{}] (and doesn't have default values for any key fields)", names.join(" ")));
            }
            Ok(format!("k:{}", Value::Object(found)))
        }
        _ => match item {
            Value::Object(_) => Err("associative list without keys has an element that's a map type".into()),
            Value::Array(_) => Err("not supported: associative list with lists as elements".into()),
            Value::Null => Err("associative list without keys has an element that's an explicit null".into()),
            scalar => Ok(format!("v:{scalar}")),
        },
    }
}

/// The fields that a value has. An error names the place that doesn't fit the schema.
pub fn fields_of(schema: &Schema, value: &Value) -> Result<FieldSet, String> {
    let (mut set, mut path) = (FieldSet::default(), Vec::new());
    collect(schema, value, &mut path, &mut set)?;
    Ok(set)
}

fn collect(schema: &Schema, value: &Value, path: &mut Vec<String>, set: &mut FieldSet) -> Result<(), String> {
    let mismatch = |expected: &str| Err(format!("{}: expected {expected}, got {value}", shown(path)));
    match (shape(schema, value), value) {
        (Shape::Leaf, _) => {
            match (&schema.kind, value) {
                (_, Value::Null) | (Kind::Any | Kind::SchemaOr(_), _) => {}
                (Kind::Object(_) | Kind::Map(_), v) if !v.is_object() => return mismatch("map"),
                (Kind::List(_), v) if !v.is_array() => return mismatch("list"),
                (Kind::String | Kind::Bytes | Kind::Time | Kind::MicroTime, v) if !v.is_string() => return mismatch("string"),
                (Kind::Int32 | Kind::Int64 | Kind::Number, v) if !v.is_number() => return mismatch("numeric (int or float)"),
                (Kind::Boolean, v) if !v.is_boolean() => return mismatch("boolean"),
                _ => {}
            }
            set.insert(path);
        }
        (_, Value::Null) => {}
        (Shape::Map, Value::Object(map)) => {
            for (key, value) in map {
                path.push(format!("f:{key}"));
                let Some((below, declared)) = child(schema, key) else {
                    return Err(format!("{}: field not declared in schema", shown(path)));
                };
                collect(below, value, path, set)?;
                if !declared || value.is_null() || value.as_object().is_some_and(Map::is_empty) {
                    set.insert(path);
                }
                path.pop();
            }
        }
        (Shape::List(list), Value::Array(items)) => {
            let mut seen = BTreeSet::new();
            for item in items {
                let edge = item_edge(list, item).map_err(|e| format!("{}: {e}", shown(path)))?;
                path.push(edge.clone());
                if !seen.insert(edge) {
                    let (item, at) = path.split_last().map_or((String::new(), String::new()), |(i, p)| (shown(std::slice::from_ref(i)), shown(p)));
                    return Err(format!("{at}: duplicate entries for key {item}"));
                }
                collect(&list.items, item, path, set)?;
                set.insert(path);
                path.pop();
            }
        }
        (Shape::Map, _) => return mismatch("map"),
        (Shape::List(_), _) => return mismatch("list"),
    }
    Ok(())
}

/// What differs between two values.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Comparison {
    /// What only the new one has.
    pub added: FieldSet,
    /// What both have, with different values.
    pub modified: FieldSet,
    /// What only the old one has.
    pub removed: FieldSet,
}

impl Comparison {
    /// Takes the paths out, with all below them.
    pub fn ignore(&mut self, paths: &[&[&str]]) {
        for path in paths {
            let edges: Vec<String> = path.iter().map(|name| format!("f:{name}")).collect();
            for set in [&mut self.added, &mut self.modified, &mut self.removed] {
                set.remove_tree(&edges);
            }
        }
    }
}

/// Compares two values.
pub fn compare(schema: &Schema, old: &Value, new: &Value) -> Comparison {
    let (mut comparison, mut path) = (Comparison::default(), Vec::new());
    diff(schema, Some(old), Some(new), &mut path, &mut comparison);
    comparison
}

fn diff(schema: &Schema, old: Option<&Value>, new: Option<&Value>, path: &mut Vec<String>, out: &mut Comparison) {
    let Some(either) = new.filter(|v| !v.is_null()).or(old).or(new) else { return };
    let container = |v: Option<&Value>| match v {
        None | Some(Value::Null) => true,
        Some(v) => v.is_object() == either.is_object() && v.is_array() == either.is_array(),
    };
    let empty = |v: Option<&Value>| v.is_none_or(is_blank);
    let shape = if empty(old) && empty(new) || !container(old) || !container(new) { Shape::Leaf } else { shape(schema, either) };
    match shape {
        Shape::Map if either.is_object() => {
            let (old, new) = (old.and_then(Value::as_object), new.and_then(Value::as_object));
            let keys: BTreeSet<&String> = old.into_iter().chain(new).flat_map(Map::keys).collect();
            for key in keys {
                let below = child(schema, key).map_or(Schema::any(), |(below, _)| below);
                path.push(format!("f:{key}"));
                diff(below, old.and_then(|m| m.get(key)), new.and_then(|m| m.get(key)), path, out);
                path.pop();
            }
        }
        Shape::List(list) if either.is_array() => {
            let (old, new) = (by_edge(list, old), by_edge(list, new));
            let edges: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
            for edge in edges {
                path.push(edge.clone());
                diff(&list.items, old.get(edge).copied(), new.get(edge).copied(), path, out);
                path.pop();
            }
        }
        _ => {
            match (old, new) {
                (None, _) => out.added.insert(path),
                (_, None) => out.removed.insert(path),
                (old, new) if old != new => out.modified.insert(path),
                _ => {}
            }
            return;
        }
    }
    match (old, new) {
        (None, _) => out.added.insert(path),
        (_, None) => out.removed.insert(path),
        _ => {}
    }
}

/// The items by their edges; of repeated ones the first counts.
fn by_edge<'a>(list: &List, value: Option<&'a Value>) -> BTreeMap<String, &'a Value> {
    let mut all = BTreeMap::new();
    for item in value.and_then(Value::as_array).into_iter().flatten() {
        if let Ok(edge) = item_edge(list, item) {
            all.entry(edge).or_insert(item);
        }
    }
    all
}

/// Merges a configuration into a live value: what the configuration has wins, all else stays.
pub fn merge(schema: &Schema, live: Option<&Value>, config: Option<&Value>) -> Value {
    let (live, config) = match (live, config) {
        (Some(live), Some(config)) => (live, config),
        (one, None) | (None, one) => return one.cloned().unwrap_or(Value::Null),
    };
    match (shape(schema, config), live, config) {
        (Shape::Map, Value::Object(old), Value::Object(new)) if !(old.is_empty() && new.is_empty()) => {
            let mut merged = old.clone();
            for (key, value) in new {
                let below = child(schema, key).map_or(Schema::any(), |(below, _)| below);
                let value = merge(below, old.get(key), Some(value));
                merged.insert(key.clone(), value);
            }
            Value::Object(merged)
        }
        (Shape::Map, Value::Object(old), Value::Null) if !old.is_empty() => live.clone(),
        (Shape::List(list), Value::Array(old), Value::Array(new)) => merge_items(list, old, new),
        (Shape::List(_), Value::Array(old), Value::Null) if !old.is_empty() => live.clone(),
        _ => config.clone(),
    }
}

/// The paths in `config` of lists, maps and objects that are replaced as a whole.
pub fn atomics(schema: &Schema, config: &Value, path: &str, found: &mut Vec<String>) {
    let whole = match &schema.kind {
        Kind::List(list) => config.is_array() && list.list_type == ListType::Atomic,
        _ => schema.atomic && config.is_object(),
    };
    if whole {
        found.push(path.to_owned());
    }
    match (&schema.kind, config) {
        (Kind::List(list), Value::Array(items)) => {
            items.iter().enumerate().for_each(|(i, item)| atomics(&list.items, item, &format!("{path}[{i}]"), found));
        }
        (_, Value::Object(map)) => {
            for (key, value) in map {
                if let Some(child) = schema.member(key) {
                    atomics(child, value, &format!("{path}.{key}"), found);
                }
            }
        }
        _ => {}
    }
}

/// Merges two lists: the configuration's order holds, items that only the live list has keep their place beside the
/// ones they followed.
fn merge_items(list: &List, old: &[Value], new: &[Value]) -> Value {
    let edges = |items: &[Value]| items.iter().map(|item| item_edge(list, item).unwrap_or_default()).collect::<Vec<_>>();
    let (left, right) = (edges(old), edges(new));
    let of_new: BTreeSet<&String> = right.iter().collect();
    let mut of_old: BTreeMap<&String, usize> = BTreeMap::new();
    for (i, edge) in left.iter().enumerate() {
        of_old.entry(edge).or_insert(i);
    }
    let mut shared = right.iter().filter(|edge| of_old.contains_key(edge));
    let mut next_shared = shared.next();
    let mut merged_edges: BTreeSet<&String> = BTreeSet::new();
    let mut out = Vec::with_capacity(old.len().max(new.len()));
    let (mut l, mut r) = (0, 0);
    let merged = |r: usize| {
        let counterpart = of_old.get(&right[r]).map(|i| &old[*i]);
        merge(&list.items, counterpart, Some(&new[r]))
    };
    while l < old.len() || r < new.len() {
        if l < old.len() && r < new.len() {
            if left[l] == right[r] {
                out.push(merged(r));
                merged_edges.insert(&right[r]);
                (l, r) = (l + 1, r + 1);
                next_shared = shared.next();
                continue;
            }
            if of_new.contains(&left[l]) && next_shared.is_some_and(|next| *next != left[l]) {
                // Shared, but not the one whose turn it is.
                l += 1;
                continue;
            }
        }
        if l < old.len() {
            if !of_new.contains(&left[l]) {
                out.push(old[l].clone());
                l += 1;
                continue;
            }
            if merged_edges.contains(&left[l]) {
                l += 1;
            }
        }
        if r < new.len() {
            out.push(merged(r));
            merged_edges.insert(&right[r]);
            if next_shared == Some(&right[r]) {
                next_shared = shared.next();
            }
            r += 1;
        }
    }
    Value::Array(out)
}

/// The value without the fields of the set. A container that loses all it had goes too.
pub fn remove(schema: &Schema, value: &Value, set: &FieldSet) -> Value {
    let keep = |below: &Schema, edge: &str, value: &Value| match set.children.get(edge) {
        Some(gone) if gone.member => None,
        Some(gone) => match remove(below, value, gone) {
            Value::Null => None,
            left => Some(left),
        },
        None => Some(value.clone()),
    };
    match (shape(schema, value), value) {
        (Shape::Map, Value::Object(map)) if !map.is_empty() => {
            let left = map.iter().filter_map(|(key, value)| {
                let below = child(schema, key).map_or(Schema::any(), |(below, _)| below);
                Some((key.clone(), keep(below, &format!("f:{key}"), value)?))
            });
            let left: Map<_, _> = left.collect();
            if left.is_empty() { Value::Null } else { Value::Object(left) }
        }
        (Shape::List(list), Value::Array(items)) if !items.is_empty() => {
            let left = items.iter().filter_map(|item| match item_edge(list, item) {
                Ok(edge) => keep(&list.items, &edge, item),
                Err(_) => Some(item.clone()),
            });
            let left: Vec<Value> = left.collect();
            if left.is_empty() { Value::Null } else { Value::Array(left) }
        }
        _ => value.clone(),
    }
}
