//! Custom resources: their values against the rules of their schema.

use serde_json::Value;

use super::check::{At, Errors};
use super::meta;
use crate::field::{Error, ErrorType};
use crate::schema::{Kind, ListType, Schema};

/// A custom resource to be created.
pub(super) fn create(e: &mut Errors, schema: &Schema, object: &At, namespaced: bool) {
    meta::custom_meta(e, object, namespaced, meta::subdomain);
    e.0.extend(value_errors(schema, object.value));
}

/// A custom resource to replace another.
pub(super) fn update(e: &mut Errors, schema: &Schema, object: &At, old: &Value) {
    meta::meta_update(e, object, old);
    e.0.extend(value_errors(schema, object.value));
}

/// What is wrong with the value by its schema.
pub(super) fn value_errors(schema: &Schema, value: &Value) -> Vec<Error> {
    let mut errors = Vec::new();
    check(schema, value, "", &mut errors);
    errors
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn below(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

fn check(schema: &Schema, value: &Value, path: &str, errors: &mut Vec<Error>) {
    if value.is_null() && schema.nullable {
        return;
    }
    let expected = match (&schema.kind, value) {
        (Kind::Any, _) => None,
        (Kind::Object(object), Value::Object(_)) if !object.definition.is_empty() => return,
        (Kind::Object(_) | Kind::Map(_), v) if !v.is_object() => Some("object"),
        (Kind::List(_), v) if !v.is_array() => Some("array"),
        (Kind::String, v) if !v.is_string() => Some("string"),
        (Kind::Boolean, v) if !v.is_boolean() => Some("boolean"),
        (Kind::Int32 | Kind::Int64, v) if !v.is_i64() && !v.is_u64() && v.as_f64().is_none_or(|f| f.fract() != 0.0) => Some("integer"),
        (Kind::Number, v) if !v.is_number() => Some("number"),
        (Kind::IntOrString, v) if !v.is_string() && !v.is_i64() => Some("integer,string"),
        _ => None,
    };
    if let Some(expected) = expected {
        let found = type_name(value);
        let detail = format!("{path} in body must be of type {expected}: {found:?}");
        return errors.push(Error { kind: ErrorType::TypeInvalid, path: path.to_owned(), value: Some(format!("{found:?}")), detail });
    }
    if let Some(rules) = &schema.rules {
        rules_of(rules, value, path, errors);
    }
    match (&schema.kind, value) {
        (Kind::Object(object), Value::Object(map)) => {
            for property in &object.properties {
                match map.get(property.name.as_ref()) {
                    Some(value) => check(&property.schema, value, &below(path, &property.name), errors),
                    None if property.required => errors.push(Error::required(below(path, &property.name), "")),
                    None => {}
                }
            }
        }
        (Kind::Map(values), Value::Object(map)) => {
            map.iter().for_each(|(key, value)| check(values, value, &below(path, key), errors));
        }
        (Kind::List(list), Value::Array(items)) => {
            items.iter().enumerate().for_each(|(i, item)| check(&list.items, item, &format!("{path}[{i}]"), errors));
            distinct(&list.list_type, items, path, errors);
        }
        _ => {}
    }
}

/// Sets and maps hold each item or key once.
fn distinct(list_type: &ListType, items: &[Value], path: &str, errors: &mut Vec<Error>) {
    let id = |item: &Value| match list_type {
        ListType::Map(keys) => Value::Object(keys.iter().filter_map(|k| Some((k.to_string(), item.get(k.as_ref())?.clone()))).collect()),
        _ => item.clone(),
    };
    if *list_type != ListType::Atomic {
        for (i, item) in items.iter().enumerate() {
            if items[..i].iter().any(|earlier| id(earlier) == id(item)) {
                errors.push(Error::duplicate(format!("{path}[{i}]"), id(item)));
            }
        }
    }
}

fn rules_of(rules: &Value, value: &Value, path: &str, errors: &mut Vec<Error>) {
    let mut invalid = |detail: String| errors.push(Error::invalid(path, value.clone(), format!("{path} in body {detail}")));
    let number = |name: &str| rules[name].as_f64();
    if let Some(n) = value.as_f64() {
        let exclusive = |name: &str| rules[name] == true;
        if number("minimum").is_some_and(|min| n < min || exclusive("exclusiveMinimum") && n == min) {
            let words = if exclusive("exclusiveMinimum") { "should be greater than" } else { "should be greater than or equal to" };
            invalid(format!("{words} {}", rules["minimum"]));
        }
        if number("maximum").is_some_and(|max| n > max || exclusive("exclusiveMaximum") && n == max) {
            let words = if exclusive("exclusiveMaximum") { "should be less than" } else { "should be less than or equal to" };
            invalid(format!("{words} {}", rules["maximum"]));
        }
        if number("multipleOf").is_some_and(|factor| factor != 0.0 && (n / factor).fract() != 0.0) {
            invalid(format!("should be a multiple of {}", rules["multipleOf"]));
        }
    }
    if let Some(text) = value.as_str() {
        let length = text.chars().count() as f64;
        if number("maxLength").is_some_and(|max| length > max) {
            invalid(format!("should be at most {} chars long", rules["maxLength"]));
        }
        if number("minLength").is_some_and(|min| length < min) {
            invalid(format!("should be at least {} chars long", rules["minLength"]));
        }
        let fails = |pattern: &&str| regex::Regex::new(pattern).is_ok_and(|regex| !regex.is_match(text));
        if let Some(pattern) = rules["pattern"].as_str().filter(fails) {
            invalid(format!("should match '{pattern}'"));
        }
    }
    let counted = [("Items", value.as_array().map(Vec::len)), ("Properties", value.as_object().map(serde_json::Map::len))];
    for (what, count) in counted.into_iter().filter_map(|(what, count)| Some((what, count?))) {
        let max = rules[format!("max{what}")].as_u64();
        if let Some(max) = max.filter(|max| count as u64 > *max) {
            errors.push(Error::too_many(path, count, max as usize));
        }
        if let Some(min) = rules[format!("min{what}")].as_u64().filter(|min| (count as u64) < *min) {
            errors.push(Error::invalid(path, count, format!("{path} in body should have at least {min} {}", what.to_lowercase())));
        }
    }
    if let Some(allowed) = rules["enum"].as_array().filter(|allowed| !allowed.contains(value)) {
        let shown: Vec<String> = allowed.iter().map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned)).collect();
        errors.push(Error::not_supported(path, value.clone(), &shown.iter().map(String::as_str).collect::<Vec<_>>()));
    }
    combined(rules, value, path, errors);
}

/// `allOf`, `anyOf`, `oneOf`, `not`: schemas of rules alone.
fn combined(rules: &Value, value: &Value, path: &str, errors: &mut Vec<Error>) {
    let faults = |schema: &Value| {
        let mut found = Vec::new();
        partial(schema, value, path, &mut found);
        found
    };
    let list = |name: &str| rules[name].as_array().map_or(&[][..], Vec::as_slice);
    for schema in list("allOf") {
        errors.extend(faults(schema));
    }
    let mut invalid = |words: &str| errors.push(Error::invalid(path, value.clone(), format!("{path:?} {words}")));
    let passing = |name: &str| list(name).iter().filter(|schema| faults(schema).is_empty()).count();
    if !list("anyOf").is_empty() && passing("anyOf") == 0 {
        invalid("must validate at least one schema (anyOf)");
    }
    if !list("oneOf").is_empty() && passing("oneOf") != 1 {
        invalid("must validate one and only one schema (oneOf)");
    }
    if rules["not"].is_object() && faults(&rules["not"]).is_empty() {
        invalid("must not validate the schema (not)");
    }
}

/// A schema within a combination says nothing of the structure, only of what is required and of values.
fn partial(schema: &Value, value: &Value, path: &str, errors: &mut Vec<Error>) {
    rules_of(schema, value, path, errors);
    let wanted = schema["type"].as_str().unwrap_or("");
    let found = type_name(value);
    if !wanted.is_empty() && wanted != found && !(wanted == "number" && found == "integer") {
        errors.push(Error::invalid(path, found, format!("{path} in body must be of type {wanted}: {found:?}")));
    }
    for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if value.is_object() && value.get(name).is_none() {
            errors.push(Error::required(below(path, name), ""));
        }
    }
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        if let Some(value) = value.get(name) {
            partial(property, value, &below(path, name), errors);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_against_rules() {
        let schema = Schema::from_crd(&json!({"type": "object", "properties": {"spec": {"type": "object", "required": ["size"], "properties": {
            "size": {"type": "integer", "minimum": 1, "maximum": 5},
            "mode": {"type": "string", "enum": ["a", "b"]},
            "name": {"type": "string", "maxLength": 3, "pattern": "^[a-z]+$"},
            "port": {"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]},
            "list": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
        }}}}))
        .expect("a schema");
        let errors = |spec: Value| value_errors(&schema, &json!({"spec": spec})).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(errors(json!({"size": 1, "mode": "a", "name": "abc", "port": "x", "list": ["a"]})), [""; 0]);
        assert_eq!(errors(json!({})), ["spec.size: Required value"]);
        assert_eq!(errors(json!({"size": "x"})), ["spec.size: Invalid value: \"string\": spec.size in body must be of type integer: \"string\""]);
        assert_eq!(errors(json!({"size": 9})), ["spec.size: Invalid value: 9: spec.size in body should be less than or equal to 5"]);
        assert_eq!(errors(json!({"size": 1, "mode": "c"})), ["spec.mode: Unsupported value: \"c\": supported values: \"a\", \"b\""]);
        assert_eq!(errors(json!({"size": 1, "name": "ABCD"})).len(), 2);
        assert_eq!(errors(json!({"size": 1, "list": ["a", "a"]})), ["spec.list[1]: Duplicate value: \"a\""]);
    }
}
