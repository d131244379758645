//! Strategic merge patch: a merge patch that knows which lists are maps or sets, by the schema's merge keys.
//!
//! Directives: `$patch: replace|delete|merge` in an object, `$retainKeys: [...]`, `$setElementOrder/list: [...]` and
//! `$deleteFromPrimitiveList/list: [...]` beside a list.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use super::Error;
use crate::schema::{PatchStrategy, Schema, shown_value};

const PATCH: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const SET_ORDER: &str = "$setElementOrder/";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";

type Object = Map<String, Value>;

/// Applies a strategic merge patch, guided by the schema's merge keys. After an error the target may be half merged:
/// patch a copy.
pub fn strategic_merge(schema: &Schema, target: &mut Value, patch: &Value) -> Result<(), Error> {
    match (target, patch) {
        (Value::Object(target), Value::Object(patch)) => merge_object(schema, target, patch),
        // To Go, null is a map without anything in it.
        (_, Value::Null) => Ok(()),
        (_, Value::Object(_)) => Err(bad("the object to patch is no JSON object".into())),
        (_, other) => Err(bad(format!("json: cannot unmarshal {} into Go value of type map[string]interface {{}}", shown_value(other)))),
    }
}

fn bad(message: String) -> Error {
    Error::BadRequest(message)
}

fn list_of<'a>(patch: &'a Object, key: &str) -> Result<&'a [Value], Error> {
    match patch.get(key) {
        Some(Value::Array(items)) => Ok(items),
        Some(other) => Err(bad(format!("the value of {key} must be a list, not {other}"))),
        None => Ok(&[]),
    }
}

fn merge_object(schema: &Schema, target: &mut Object, patch: &Object) -> Result<(), Error> {
    match patch.get(PATCH).map(|v| v.as_str().unwrap_or("")) {
        Some("replace") => {
            *target = patch.iter().filter(|(key, _)| *key != PATCH).map(|(k, v)| (k.clone(), v.clone())).collect();
            return Ok(());
        }
        Some("delete") => {
            target.clear();
            return Ok(());
        }
        Some("merge") | None => {}
        Some(other) => return Err(bad(format!("Unknown patch type found: {other}"))),
    }
    if patch.contains_key(RETAIN_KEYS) {
        retain_keys(target, patch)?;
    }
    let mut ordered: Vec<&str> = Vec::new();
    for (key, order) in patch {
        if let Some(field) = key.strip_prefix(SET_ORDER) {
            let Value::Array(order) = order else { return Err(bad(format!("the value of {key} must be a list, not {order}"))) };
            merge_ordered(schema, field, target, patch, order)?;
            ordered.push(field);
        }
    }
    for (key, value) in patch.iter().filter(|(key, _)| !is_directive(key) && !ordered.contains(&key.as_str())) {
        merge_field(schema, key, target, value)?;
    }
    for (key, _) in patch {
        if let Some(field) = key.strip_prefix(DELETE_FROM) {
            let gone: HashSet<&Value> = list_of(patch, key)?.iter().collect();
            if let Some(Value::Array(items)) = target.get_mut(field) {
                items.retain(|item| !gone.contains(item));
            }
        }
    }
    Ok(())
}

fn is_directive(key: &str) -> bool {
    key == PATCH || key == RETAIN_KEYS || key.starts_with(SET_ORDER) || key.starts_with(DELETE_FROM)
}

fn retain_keys(target: &mut Object, patch: &Object) -> Result<(), Error> {
    let kept: HashSet<&str> = list_of(patch, RETAIN_KEYS)?.iter().filter_map(Value::as_str).collect();
    let is_kept = |key: &String| kept.contains(key.as_str());
    if patch.keys().any(|key| !is_directive(key) && !is_kept(key)) {
        return Err(bad("a field in the patch is not in its $retainKeys list".into()));
    }
    target.retain(|key, _| is_kept(key));
    Ok(())
}

/// How the field is merged, and the schema below it.
fn facts<'a>(schema: &'a Schema, field: &str) -> (PatchStrategy, &'a Schema) {
    match schema.property(field) {
        Some(property) => (property.patch.clone(), &property.schema),
        None => (PatchStrategy::default(), schema.member(field).unwrap_or(Schema::any())),
    }
}

fn merge_field(schema: &Schema, field: &str, target: &mut Object, patch: &Value) -> Result<(), Error> {
    if patch.is_null() {
        target.remove(field);
        return Ok(());
    }
    let (strategy, below) = facts(schema, field);
    match (target.get_mut(field), patch) {
        (Some(Value::Object(old)), Value::Object(new)) if !strategy.replace => merge_object(below, old, new),
        (Some(Value::Array(old)), Value::Array(new)) if strategy.merge => {
            *old = merge_list(below, &strategy.key, std::mem::take(old), new)?;
            Ok(())
        }
        _ => {
            if let Some(plain) = without_directives(patch) {
                target.insert(field.to_owned(), plain);
            }
            Ok(())
        }
    }
}

/// What a patch makes where nothing was: itself, without directives and nulls.
fn without_directives(patch: &Value) -> Option<Value> {
    match patch {
        Value::Object(map) if map.get(PATCH).is_some_and(|p| p == "delete") => None,
        Value::Object(map) => {
            let plain = map.iter().filter(|(key, value)| !is_directive(key) && !value.is_null());
            Some(Value::Object(plain.filter_map(|(k, v)| Some((k.clone(), without_directives(v)?))).collect()))
        }
        Value::Array(items) => {
            let marker = |v: &Value| v.as_object().is_some_and(|m| m.len() == 1 && m.contains_key(PATCH));
            Some(items.iter().filter(|v| !marker(v)).filter_map(without_directives).collect())
        }
        other => Some(other.clone()),
    }
}

fn merge_key<'a>(item: &'a Value, key: &str) -> Result<&'a Value, Error> {
    item.get(key).ok_or_else(|| bad(format!("map: {item} does not contain declared merge key: {key}")))
}

/// The items of a list as one map or set. Those of the patch stand in its order, the target's others where they stood among them.
fn merge_list(schema: &Schema, key: &str, mut target: Vec<Value>, patch: &[Value]) -> Result<Vec<Value>, Error> {
    if !patch.iter().chain(&target).all(Value::is_object) {
        if patch.iter().any(Value::is_object) {
            return Err(bad("a list can't hold objects beside other values".into()));
        }
        let id = |item: &Value| Some(item.clone());
        let (served, ordered, mut known) = (places(&target, id), places(patch, id), HashSet::new());
        target.extend_from_slice(patch);
        target.retain(|item| known.insert(item.clone()));
        return Ok(in_order(target, id, &ordered, &served));
    }
    if key.is_empty() {
        return Err(bad(format!("cannot merge lists without merge key for type {}", schema.items().map_or("", |s| s.go_type.as_ref()))));
    }
    let (mut plain, mut gone, mut replace) = (Vec::new(), HashSet::new(), false);
    for item in patch {
        match item.get(PATCH).map(|v| v.as_str().unwrap_or("")) {
            None => plain.push(item),
            Some("replace") => replace = true,
            Some("delete") => drop(gone.insert(merge_key(item, key)?)),
            Some("merge") => return Err(bad("merge patch directive isn't supported in a list".into())),
            Some(other) => return Err(bad(format!("Unknown patch type found: {other}"))),
        }
    }
    if replace {
        return Ok(plain.into_iter().filter_map(without_directives).collect());
    }
    target.retain(|old| old.get(key).is_none_or(|id| !gone.contains(id)));
    let below = schema.items().unwrap_or(Schema::any());
    let id = |item: &Value| item.get(key).cloned();
    let (served, ordered) = (places(&target, id), places(plain.iter().copied(), id));
    let mut known = served.clone();
    for item in plain {
        let wanted = merge_key(item, key)?;
        match (known.get(wanted).and_then(|at| target.get_mut(*at)), item) {
            (Some(Value::Object(old)), Value::Object(new)) => merge_object(below, old, new)?,
            _ => {
                if let Some(made) = without_directives(item) {
                    known.insert(wanted.clone(), target.len());
                    target.push(made);
                }
            }
        }
    }
    Ok(in_order(target, id, &ordered, &served))
}

/// Where in the list each item stands first, by what identifies it: lists may be long, and are not searched item by item.
fn places<'a>(list: impl IntoIterator<Item = &'a Value>, id: impl Fn(&Value) -> Option<Value>) -> HashMap<Value, usize> {
    let mut places = HashMap::new();
    for (at, item) in list.into_iter().enumerate() {
        if let Some(id) = id(item) {
            places.entry(id).or_insert(at);
        }
    }
    places
}

/// The items that are `ordered` in that order; each other before the first of them that it stood before where it was `served`.
fn in_order(
    items: Vec<Value>,
    id: impl Fn(&Value) -> Option<Value>,
    ordered: &HashMap<Value, usize>,
    served: &HashMap<Value, usize>,
) -> Vec<Value> {
    let place = |places: &HashMap<Value, usize>, item: &Value| id(item).and_then(|id| places.get(&id).copied());
    let mut all = Vec::with_capacity(items.len());
    let (mut listed, unlisted): (Vec<Value>, Vec<Value>) = items.into_iter().partition(|item| place(ordered, item).is_some());
    listed.sort_by_cached_key(|item| place(ordered, item));
    let (mut left, mut right) = (unlisted.into_iter().peekable(), listed.into_iter().peekable());
    while let (Some(l), Some(r)) = (left.peek(), right.peek()) {
        let before = place(served, l).zip(place(served, r)).is_some_and(|(l, r)| l < r);
        all.extend(if before { left.next() } else { right.next() });
    }
    all.extend(left);
    all.extend(right);
    all
}

/// Merges a list whose order the patch sets.
fn merge_ordered(schema: &Schema, field: &str, target: &mut Object, patch: &Object, order: &[Value]) -> Result<(), Error> {
    let (strategy, below) = facts(schema, field);
    let of_patch = list_of(patch, field)?;
    if patch.get(field).is_some_and(Value::is_null) || (!target.contains_key(field) && of_patch.is_empty()) {
        target.remove(field);
        return Ok(());
    }
    let key = strategy.key.as_ref();
    let id = |item: &Value| if item.is_object() { item.get(key).cloned() } else { Some(item.clone()) };
    let place = |places: &HashMap<Value, usize>, item: &Value| id(item).and_then(|id| places.get(&id).copied());
    let ordered = places(order, id);
    let mut last = None;
    for item in of_patch.iter().filter(|item| item.get(PATCH).is_none()) {
        let found = place(&ordered, item);
        if found.is_none() || found < last {
            let (patch, order) = (Value::from(of_patch), Value::from(order));
            return Err(bad(format!("The order in patch list:\n{patch}\n doesn't match {SET_ORDER}{field} list:\n{order}\n")));
        }
        last = found;
    }
    let server = match target.remove(field) {
        Some(Value::Array(items)) => items,
        _ => Vec::new(),
    };
    let served = places(&server, id);
    let mut merged = if strategy.merge { merge_list(below, key, server, of_patch)? } else { of_patch.to_vec() };
    if let Some(Value::Array(gone)) = patch.get(&format!("{DELETE_FROM}{field}")) {
        let gone: HashSet<&Value> = gone.iter().collect();
        merged.retain(|item| !gone.contains(item));
    }
    let all = in_order(merged, id, &ordered, &served);
    target.insert(field.to_owned(), Value::Array(all));
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(target: Value, patch: Value, expected: Value) {
        let schema = Schema::builtin("io.k8s.api.core.v1.Pod").expect("the pod's schema");
        let mut merged = target;
        let result = strategic_merge(schema, &mut merged, &patch).map_or_else(|e| json!(e.to_string()), |()| merged);
        assert_eq!(result, expected, "{patch}");
    }

    #[test]
    fn lists_merge_by_key() {
        let pod = || json!({"spec": {"containers": [{"name": "a", "image": "1", "args": ["x"]}, {"name": "b"}]}});
        check(
            pod(),
            json!({"spec": {"containers": [{"name": "a", "image": "2"}, {"name": "c"}]}}),
            json!({"spec": {"containers": [{"name": "a", "image": "2", "args": ["x"]}, {"name": "c"}, {"name": "b"}]}}),
        );
        check(
            pod(),
            json!({"spec": {"containers": [{"name": "a", "$patch": "delete"}, {"name": "b", "args": ["y"]}]}}),
            json!({"spec": {"containers": [{"name": "b", "args": ["y"]}]}}),
        );
        check(
            pod(),
            json!({"spec": {"containers": [{"$patch": "replace"}, {"name": "z"}]}}),
            json!({"spec": {"containers": [{"name": "z"}]}}),
        );
        check(pod(), json!({"spec": {"containers": null}}), json!({"spec": {}}));
        check(
            pod(),
            json!({"spec": {"containers": [{"image": "2"}]}}),
            json!("map: {\"image\":\"2\"} does not contain declared merge key: name"),
        );
    }

    #[test]
    fn directives() {
        check(
            json!({"metadata": {"finalizers": ["a", "b"], "labels": {"x": "1", "y": "2"}}}),
            json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"], "finalizers": ["c"], "labels": {"x": null, "$patch": "merge"}}}),
            json!({"metadata": {"finalizers": ["c", "b"], "labels": {"y": "2"}}}),
        );
        check(
            json!({"metadata": {"labels": {"x": "1"}}}),
            json!({"metadata": {"labels": {"$patch": "replace", "z": "3"}}}),
            json!({"metadata": {"labels": {"z": "3"}}}),
        );
        check(
            json!({"spec": {"volumes": [{"name": "v", "emptyDir": {}}]}}),
            json!({"spec": {"volumes": [{"name": "v", "$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/x"}}]}}),
            json!({"spec": {"volumes": [{"name": "v", "hostPath": {"path": "/x"}}]}}),
        );
        check(json!({}), json!({"metadata": {"$patch": "odd"}}), json!({"metadata": {}}));
        check(json!({"metadata": {}}), json!({"metadata": {"$patch": "odd"}}), json!("Unknown patch type found: odd"));
        check(json!({}), json!({"spec": {"containers": [{"name": "a", "image": null}, {"name": "b", "$patch": "delete"}]}}), json!({"spec": {"containers": [{"name": "a"}]}}));
        check(json!({"spec": {}}), Value::Null, json!({"spec": {}}));
        check(json!({}), json!([]), json!("json: cannot unmarshal array into Go value of type map[string]interface {}"));
    }

    #[test]
    fn long_lists_take_no_longer_than_their_length() {
        const ITEMS: usize = 20_000;
        let schema = Schema::builtin("io.k8s.api.core.v1.Service").expect("the schema of services");
        let ports: Vec<Value> = (0..ITEMS).map(|port| json!({"port": port})).collect();
        let order = json!({"spec": {"ports": ports, "$setElementOrder/ports": ports}, "metadata": {"finalizers": (0..ITEMS).collect::<Vec<_>>()}});
        let mut target = json!({"spec": {"ports": ports}, "metadata": {"finalizers": (ITEMS..2 * ITEMS).collect::<Vec<_>>()}});
        let began = std::time::Instant::now();
        strategic_merge(schema, &mut target, &order).expect("merged");
        // Item by item, this takes minutes.
        assert!(began.elapsed() < std::time::Duration::from_secs(10), "{:?}", began.elapsed());
        assert_eq!(target["spec"]["ports"].as_array().map(Vec::len), Some(ITEMS));
    }

    #[test]
    fn the_patch_sets_the_order() {
        let names = |names: &[&str]| names.iter().map(|n| json!({"name": n})).collect::<Vec<_>>();
        let pod = |list: &[&str]| json!({"spec": {"containers": names(list)}});
        let order = |order: &[&str], patch: &[&str]| json!({"spec": {"$setElementOrder/containers": names(order), "containers": names(patch)}});
        // As recorded from upstream's server 1.36.2.
        let patched = |list: &[&str], patch: &[&str], expected: &[&str]| {
            check(pod(list), pod(patch), pod(expected));
            check(json!({"metadata": {"finalizers": list}}), json!({"metadata": {"finalizers": patch}}), json!({"metadata": {"finalizers": expected}}));
        };
        patched(&["a", "b"], &["a", "c"], &["a", "c", "b"]);
        patched(&["a", "c", "b"], &["d"], &["d", "a", "c", "b"]);
        patched(&["d", "a", "c", "b"], &["b", "a"], &["d", "c", "b", "a"]);
        patched(&["c", "a", "b"], &["b", "d", "c"], &["a", "b", "d", "c"]);
        patched(&["a", "b"], &[], &["a", "b"]);
        check(pod(&["a", "b", "s", "c"]), order(&["c", "b", "n"], &["n"]), pod(&["a", "s", "c", "b", "n"]));
        check(pod(&["a", "b"]), order(&["b", "a"], &[]), pod(&["b", "a"]));
        let refused = strategic_merge(Schema::builtin("io.k8s.api.core.v1.Pod").expect("pod"), &mut pod(&["a"]), &order(&["a"], &["z"]));
        assert!(refused.is_err_and(|e| e.to_string().contains("doesn't match $setElementOrder/containers list")));
    }
}
