//! Tables: the columns that `kubectl get` shows, and the cells of an object's row.
//!
//! What a cell shows is data (`data/columns.tsv`) where it can be: `path` (text), `path|text when empty`, and with a
//! prefix `int:`, `bool:`, `count:`, `join:` (a list), `age:`, `time:`, `names:` and `images:` (of containers),
//! `labels:` and `selector:`. `!` marks a cell that takes a function.

mod computed;
mod duration;
mod pods;

use std::borrow::Cow;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::convert;
use crate::jsonpath::JsonPath;
use crate::labels::Selector;
use crate::resource::Resource;
use crate::value::{at, items, text, time};

pub use duration::{age, human};

/// A column of a table.
#[derive(Clone, Debug, PartialEq)]
pub struct Column {
    /// The heading.
    pub name: Cow<'static, str>,
    /// The OpenAPI type of its cells.
    pub kind: Cow<'static, str>,
    /// The OpenAPI format, or `name`; may be empty.
    pub format: Cow<'static, str>,
    /// What it tells.
    pub description: Cow<'static, str>,
    /// 0 for the columns always shown, higher ones only with `-o wide`.
    pub priority: i32,
    /// What its cells show.
    pub cell: Cell,
}

/// What the cells of a column show.
#[derive(Clone, Debug, PartialEq)]
pub enum Cell {
    /// What the rule says, or what a function makes of it.
    Rule(&'static str),
    /// What the path of a custom resource's column leads to.
    Path(JsonPath),
}

/// The columns of the resource's table.
pub fn columns(resource: &Resource) -> &[Column] {
    &resource.columns
}

/// The columns of a custom resource: its name, then what `additionalPrinterColumns` of the version says, or its age.
pub fn custom_columns(version: &Value) -> Vec<Column> {
    // The words of a built-in resource's columns.
    let words = |column: &str| {
        let known = crate::resource::find("", "v1", "configmaps").and_then(|r| r.columns.iter().find(|c| c.name == column));
        known.map_or(Cow::Borrowed(""), |c| c.description.clone())
    };
    let mut columns = vec![Column {
        name: "Name".into(),
        kind: "string".into(),
        format: "name".into(),
        description: words("Name"),
        priority: 0,
        cell: Cell::Rule("metadata.name"),
    }];
    let age = [json!({"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp", "description": words("Age")})];
    let given = items(version, &["additionalPrinterColumns"]);
    for column in if given.is_empty() { &age } else { given } {
        let of = |name: &str| -> Cow<'static, str> { Cow::Owned(text(column, &[name]).to_owned()) };
        let description = match of("description") {
            empty if empty.is_empty() => format!("Custom resource definition column (in JSONPath format): {}", text(column, &["jsonPath"])).into(),
            given => given,
        };
        // A path that can't be read leads nowhere; the definition's validation has refused it.
        let path = JsonPath::parse(text(column, &["jsonPath"])).or_else(|_| JsonPath::parse(".none"));
        columns.extend(path.ok().map(|path| Column {
            name: of("name"),
            kind: of("type"),
            format: of("format"),
            description,
            priority: at(column, &["priority"]).as_i64().and_then(|p| p.try_into().ok()).unwrap_or(0),
            cell: Cell::Path(path),
        }));
    }
    columns
}

/// The cells of the object's row, one a column.
pub fn cells(resource: &Resource, object: &Value, now: Timestamp) -> Vec<Value> {
    let converted;
    let mut object = object;
    if resource.custom().is_none() && resource.stored_as != resource.api_version() {
        // The rules are written for the stored version.
        let mut copy = object.clone();
        copy["kind"] = resource.kind.as_ref().into();
        copy["apiVersion"] = resource.api_version().into();
        convert::to_version(&mut copy, &resource.stored_as);
        converted = copy;
        object = &converted;
    }
    let pod = (resource.plural == "pods" && resource.group.is_empty()).then(|| pods::summarize(object));
    let row = resource.columns.iter().map(|column| match (&column.cell, &pod) {
        (Cell::Path(path), _) => custom(column, path, object, now),
        (Cell::Rule("!"), Some(pod)) => match column.name.as_ref() {
            "Ready" => pod.ready().into(),
            "Status" => pod.reason.as_str().into(),
            "Restarts" => pod.restarts(now).into(),
            "Readiness Gates" => pods::readiness_gates(object).into(),
            _ => or(items(object, &["status", "podIPs"]).first().map_or("", |ip| text(ip, &["ip"])), "<none>"),
        },
        (Cell::Rule("!"), None) => computed::cell(&resource.plural, &column.name, object, now),
        (Cell::Rule(rule), _) => by_rule(rule, object, now),
    });
    let mut row: Vec<Value> = row.collect();
    if resource.plural == "ipaddresses" {
        // Upstream sends the age here without declaring a column for it.
        row.push(age(time(object, &["metadata", "creationTimestamp"]), now).into());
    }
    row
}

fn or(text: &str, fallback: &str) -> Value {
    if text.is_empty() { fallback.into() } else { text.into() }
}

fn by_rule(rule: &'static str, object: &Value, now: Timestamp) -> Value {
    let (form, rest) = rule.split_once(':').unwrap_or(("", rule));
    let (path, fallback) = rest.split_once('|').unwrap_or((rest, ""));
    let path: Vec<&str> = path.split('.').collect();
    let value = at(object, &path);
    match form {
        "int" if value.is_null() && !fallback.is_empty() => fallback.into(),
        "int" => value.as_i64().unwrap_or(0).into(),
        "bool" => value.as_bool().unwrap_or(fallback == "true").into(),
        "count" => count(value).into(),
        "join" => or(&join(value.as_array().into_iter().flatten()), fallback),
        "age" if value.is_null() && !fallback.is_empty() => fallback.into(),
        "age" => age(time(object, &path), now).into(),
        "time" => text(object, &path).into(),
        "names" => join(items(object, &path).iter().map(|c| &c["name"])).into(),
        "images" => join(items(object, &path).iter().map(|c| &c["image"])).into(),
        "labels" => or(&labels(value), "<none>"),
        "selector" => selector(value, "<none>", "<error>"),
        _ => or(&shown(value), fallback),
    }
}

fn count(value: &Value) -> usize {
    value.as_array().map_or_else(|| value.as_object().map_or(0, serde_json::Map::len), Vec::len)
}

/// A scalar as text; nothing for anything else.
fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Number(_) | Value::Bool(_) => value.to_string(),
        _ => String::new(),
    }
}

fn join<'a>(values: impl Iterator<Item = &'a Value>) -> String {
    values.map(|v| v.as_str().unwrap_or("")).collect::<Vec<_>>().join(",")
}

fn labels(map: &Value) -> String {
    let pairs = map.as_object().into_iter().flatten().map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or("")));
    pairs.collect::<Vec<_>>().join(",")
}

fn selector(value: &Value, everything: &str, unparsable: &str) -> Value {
    match Selector::from_label_selector(value) {
        Ok(selector) => or(&selector.to_string(), everything),
        Err(_) => unparsable.into(),
    }
}

/// The cell of a custom resource's column.
fn custom(column: &Column, path: &JsonPath, object: &Value, now: Timestamp) -> Value {
    let Some(value) = path.first(object).filter(|v| !v.is_null()) else { return Value::Null };
    match column.kind.as_ref() {
        "integer" => value.as_i64().or_else(|| value.as_f64().map(|n| n as i64)).map_or(Value::Null, Value::from),
        "number" => if value.is_number() { value.clone() } else { Value::Null },
        "boolean" => value.as_bool().map_or(Value::Null, Value::from),
        "string" => value.as_str().map_or_else(|| value.to_string(), str::to_owned).into(),
        "date" => match value.as_str() {
            Some(text) => text.parse().map_or_else(|_| "<invalid>".into(), |since| age(Some(since), now).into()),
            None => Value::Null,
        },
        _ => Value::Null,
    }
}

/// The conditions of the object's row: a pod that ran to its end is marked.
pub fn row_conditions(resource: &Resource, object: &Value) -> Vec<Value> {
    let (reason, message) = match text(object, &["status", "phase"]) {
        "Succeeded" => ("Succeeded", "The pod has completed successfully."),
        "Failed" => ("Failed", "The pod failed."),
        _ => return Vec::new(),
    };
    if resource.plural != "pods" || !resource.group.is_empty() {
        return Vec::new();
    }
    vec![json!({"type": "Completed", "status": "True", "reason": reason, "message": message})]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_custom_resources_row() {
        let version = json!({"additionalPrinterColumns": [
            {"name": "Size", "type": "integer", "jsonPath": ".spec.size"},
            {"name": "Ready", "type": "string", "jsonPath": ".status.conditions[?(@.type==\"Ready\")].status", "priority": 1},
            {"name": "Since", "type": "date", "jsonPath": ".spec.since"},
            {"name": "None", "type": "string", "jsonPath": ".spec.none"},
        ]});
        let columns = custom_columns(&version);
        assert_eq!(columns.iter().map(|c| c.name.as_ref()).collect::<Vec<_>>(), ["Name", "Size", "Ready", "Since", "None"]);
        assert_eq!(columns[2].priority, 1);
        let base = crate::resource::find("", "v1", "configmaps").expect("configmaps");
        let resource = Resource { kind: "Foo".into(), plural: "foos".into(), group: "example.com".into(), columns: columns.into(), ..(**base).clone() };
        let object = json!({"metadata": {"name": "x"}, "spec": {"size": 3, "since": "2026-01-01T00:00:00Z"},
            "status": {"conditions": [{"type": "Ready", "status": "True"}]}});
        let now = "2026-01-01T00:05:03Z".parse().expect("a time");
        assert_eq!(cells(&resource, &object, now), [json!("x"), json!(3), json!("True"), json!("5m3s"), Value::Null]);
        assert_eq!(custom_columns(&json!({})).len(), 2);
    }
}
