//! Custom resources: their metadata, their values against the rules of their schema, and what no schema can say.

mod format;
mod values;

use serde_json::{Map, Value};

use super::check::{At, Errors};
use super::meta;
use crate::custom::{Custom, Scale};
use crate::field::{Error, ErrorType};
use crate::schema::{Kind, List, ListType, Schema};

pub(in crate::validation) use format::known as known_format;

/// A custom resource to be created.
pub(super) fn create(e: &mut Errors, custom: &Custom, object: &At, namespaced: bool) {
    meta::custom_meta(e, object, namespaced, meta::subdomain);
    e.0.extend(values::errors(&custom.source, object.value, None, ""));
    if let Some(scale) = &custom.scale {
        replicas(e, object.value, &scale.spec);
        scale_status(e, scale, object.value);
    }
    structure(e, custom, object.value, None);
    rules(e, custom, object.value, None);
}

/// A custom resource to replace another, or through `status` another's status.
pub(super) fn update(e: &mut Errors, custom: &Custom, subresource: &str, object: &At, old: &Value) {
    meta::meta_update(e, object, old);
    let status = subresource == "status";
    if !status {
        e.0.extend(values::errors(&custom.source, object.value, Some(old), ""));
    } else if let Some(value) = object.value.get("status") {
        e.0.extend(values::errors(&custom.source["properties"]["status"], value, old.get("status"), "status"));
    }
    if let Some(scale) = &custom.scale {
        if !status {
            replicas(e, object.value, &scale.spec);
        }
        scale_status(e, scale, object.value);
    }
    structure(e, custom, object.value, Some(old));
    rules(e, custom, object.value, Some(old));
}

/// Embedded objects, and lists that hold each item once. Lists that were wrong before may stay so.
fn structure(e: &mut Errors, custom: &Custom, new: &Value, old: Option<&Value>) {
    let mut embedded = Errors::default();
    walk(&custom.schema, new, "", &mut embedded, &|e, schema, value, path| {
        if let (Kind::Object(object), Value::Object(map), false) = (&schema.kind, value, path.is_empty())
            && object.embedded
        {
            embedded_object(e, map, value, path);
        }
    });
    e.0.append(&mut embedded.0);
    let repeated = |object: &Value| {
        let mut found = Errors::default();
        walk(&custom.schema, object, "", &mut found, &|e, schema, value, path| {
            if let (Kind::List(list), Value::Array(items)) = (&schema.kind, value) {
                distinct(e, list, items, path);
            }
        });
        found.0
    };
    if old.is_none_or(|old| repeated(old).is_empty()) {
        e.0.extend(repeated(new));
    }
}

/// `x-kubernetes-validations`, after everything else. They are not checked while there are errors that make their values
/// unfit for it.
fn rules(e: &mut Errors, custom: &Custom, new: &Value, old: Option<&Value>) {
    let rules = custom.rules();
    if rules.is_empty() {
        return;
    }
    let blocking = |error: &Error| {
        matches!(error.kind, ErrorType::NotSupported | ErrorType::Required | ErrorType::TooLong | ErrorType::TooMany | ErrorType::TypeInvalid)
    };
    if e.0.iter().any(blocking) {
        let detail = "some validation rules were not checked because the object was invalid; correct the existing errors to complete validation";
        return e.0.push(Error::invalid("<nil>", Value::Null, detail));
    }
    e.0.extend(rules.validate(new, old));
}

/// What is wrong with the value by a schema as definitions have it.
pub(super) fn value_errors(schema: &Value, value: &Value) -> Vec<Error> {
    values::errors(schema, value, None, "")
}

type Visit<'a> = &'a dyn Fn(&mut Errors, &Schema, &Value, &str);

/// Visits every place of a value that the schema knows.
fn walk(schema: &Schema, value: &Value, path: &str, e: &mut Errors, visit: Visit<'_>) {
    visit(e, schema, value, path);
    match (&schema.kind, value) {
        (Kind::Object(object), Value::Object(map)) if object.definition.is_empty() => {
            for (name, value) in map {
                if let Some(property) = object.property(name) {
                    let below = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                    walk(&property.schema, value, &below, e, visit);
                }
            }
        }
        (Kind::Map(values), Value::Object(map)) => {
            map.iter().for_each(|(key, value)| walk(values, value, &format!("{path}[{key}]"), e, visit));
        }
        (Kind::List(list), Value::Array(items)) => {
            items.iter().enumerate().for_each(|(i, item)| walk(&list.items, item, &format!("{path}[{i}]"), e, visit));
        }
        _ => {}
    }
}

/// An object within another: it must say what it is.
fn embedded_object(e: &mut Errors, map: &Map<String, Value>, value: &Value, path: &str) {
    let at = At::root(value).called(path);
    for name in ["apiVersion", "kind"].into_iter().filter(|name| !map.contains_key(*name)) {
        e.required(&at.at(name), "");
    }
    let (version, kind) = (at.at("apiVersion"), at.at("kind"));
    for field in [&version, &kind].into_iter().filter(|f| f.value.is_string()) {
        if field.is_empty() {
            e.invalid_value(field, "", "must not be empty");
        }
    }
    if version.str().matches('/').count() > 1 {
        e.invalid(&version, format!("unexpected GroupVersion string: {}", version.str()));
    }
    if !kind.is_empty() {
        meta::kind_name(e, &kind);
    }
    if at.at("metadata").value.is_object() {
        meta::embedded_meta(e, &at);
    }
}

/// Sets and maps hold each item or key once. The first repetition of each is told.
fn distinct(e: &mut Errors, list: &List, items: &[Value], path: &str) {
    let id = |item: &Value| match &list.list_type {
        ListType::Map(keys) => Value::Object(keys.iter().filter_map(|k| Some((k.to_string(), item.get(k.as_ref())?.clone()))).collect()),
        _ => item.clone(),
    };
    if list.list_type == ListType::Atomic {
        return;
    }
    if let ListType::Map(_) = list.list_type
        && let Some((i, odd)) = items.iter().enumerate().find(|(_, item)| !item.is_object() && !item.is_null())
    {
        let words = "must be an object for an array of list-type map";
        return e.push(Error::invalid(format!("{path}[{i}]"), odd.clone(), words));
    }
    let mut seen: std::collections::HashMap<String, usize> = std::collections::HashMap::new();
    for (i, item) in items.iter().enumerate() {
        let id = id(item);
        let times = seen.entry(id.to_string()).or_default();
        *times += 1;
        if *times == 2 {
            e.push(Error::duplicate(format!("{path}[{i}]"), id));
        }
    }
}

/// The value at a path of a scale; an error when it isn't of the type.
fn scaled<'a>(object: &'a Value, path: &[String], fits: fn(&Value) -> bool, wanted: &str) -> Result<Option<&'a Value>, String> {
    let mut here = object;
    for (depth, step) in path.iter().enumerate() {
        match here.as_object() {
            Some(map) => match map.get(step) {
                Some(value) => here = value,
                None => return Ok(None),
            },
            None => {
                let at = format!(".{}", path[..depth].join("."));
                return Err(format!("{at} accessor error: {here} is of the type {}, expected map[string]interface{{}}", go_type(here)));
            }
        }
    }
    if fits(here) {
        return Ok(Some(here));
    }
    Err(format!(".{} accessor error: {} is of the type {}, expected {wanted}", path.join("."), go_shown(here), go_type(here)))
}

fn go_shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "<nil>".into(),
        other => other.to_string(),
    }
}

fn go_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "<nil>",
        Value::Bool(_) => "bool",
        Value::Number(n) if n.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}

fn replicas(e: &mut Errors, object: &Value, path: &[String]) {
    let shown = format!(".{}", path.join("."));
    match scaled(object, path, Value::is_i64, "int64") {
        Err(why) => e.push(Error::invalid(shown, 0, why)),
        Ok(count) => {
            let count = count.and_then(Value::as_i64).unwrap_or(0);
            if count < 0 {
                e.push(Error::invalid(shown, count, "should be a non-negative integer"));
            } else if count > i64::from(i32::MAX) {
                e.push(Error::invalid(shown, count, format!("should be less than or equal to {}", i32::MAX)));
            }
        }
    }
}

fn scale_status(e: &mut Errors, scale: &Scale, object: &Value) {
    replicas(e, object, &scale.status);
    if let Some(path) = &scale.selector
        && let Err(why) = scaled(object, path, Value::is_string, "string")
    {
        e.push(Error::invalid(format!(".{}", path.join(".")), "", why));
    }
}

#[cfg(test)]
mod tests;
