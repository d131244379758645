//! The schemas of custom resource definitions: structural ones (`x-kubernetes-` words and all), as upstream wants them.
//!
//! A schema is structural when what says how a value is built stands outside of `allOf`, `anyOf`, `oneOf` and `not`.

use serde_json::{Value, json};

use super::check::{At, Errors};
use super::custom;
use crate::cel::Rules;
use crate::field::Error;
use crate::pattern;
use crate::schema::Schema;
use crate::value::items;

const TYPES: [&str; 6] = ["array", "boolean", "integer", "number", "object", "string"];
const META: [&str; 3] = ["apiVersion", "kind", "metadata"];
/// How deep a schema may nest before it is refused.
const MAX_DEPTH: usize = 100;

/// Where in the schema of an object a node stands.
#[derive(Clone, Copy, PartialEq)]
enum Level {
    Root,
    Item,
    Field,
}

/// What is wrong with the schema of a version. The schema's `type` is `object` at the root. One that was `stored` like this
/// is spared the limit of cost that holds for each rule.
pub(super) fn schema(e: &mut Errors, root: &At, stored: bool) {
    if depth(root.value) > MAX_DEPTH {
        return e.forbidden(root, "the schema nests too deeply");
    }
    let mut shape = violations(root);
    let before = e.0.len();
    if shape.is_empty() {
        defaults(e, root, true, false);
    } else {
        e.0.append(&mut shape);
    }
    let structural = e.0.len() == before;
    node(e, root, &Context { root: true, no_default: None, in_meta: false });
    if structural {
        let wrong: Vec<String> = e.0[before..].iter().map(|error| error.path.clone()).collect();
        let within = |path: &str, above: &str| path.strip_prefix(above).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']));
        e.0.extend(Rules::judge(root.value, &root.path, stored, &|path| !wrong.iter().any(|below| within(below, path))));
    }
}

fn depth(schema: &Value) -> usize {
    match schema {
        Value::Object(map) => 1 + map.values().map(depth).max().unwrap_or(0),
        Value::Array(list) => list.iter().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

/// What keeps the schema from being structural, sorted.
pub(super) fn violations(root: &At) -> Vec<Error> {
    let mut e = Errors::default();
    shape(&mut e, root, Level::Root);
    complete(&mut e, root, root);
    e.0.sort_by_cached_key(ToString::to_string);
    e.0
}

fn flag(schema: &At, name: &str) -> bool {
    schema.value[name] == true
}

fn shape(e: &mut Errors, schema: &At, level: Level) {
    let kind = schema.at("type");
    let (items, values) = (schema.at("items"), schema.at("additionalProperties"));
    if kind.str() == "array" && !items.is_set() {
        e.required(&items, "must be specified");
    }
    if items.value.is_object() {
        shape(e, &items, Level::Item);
    }
    for (_, property) in schema.at("properties").entries() {
        shape(e, &property, Level::Field);
    }
    if values.is_set() {
        if level == Level::Root {
            e.forbidden(&values, "must not be used at the root");
        }
        if values.value.is_object() {
            shape(e, &values, Level::Field);
        }
    }
    let (embedded, preserve, either) =
        (flag(schema, "x-kubernetes-embedded-resource"), flag(schema, "x-kubernetes-preserve-unknown-fields"), flag(schema, "x-kubernetes-int-or-string"));
    for (set, name) in [(preserve, "x-kubernetes-preserve-unknown-fields"), (embedded, "x-kubernetes-embedded-resource")] {
        if either && set {
            e.invalid_value(&schema.at(name), true, "must be false if x-kubernetes-int-or-string is true");
        }
    }
    let (any, first) = (either_way(schema.value), either_way(&schema.value["allOf"][0]));
    junctors(e, schema, any, first);
    if embedded && kind.str() != "object" {
        let words = "must be object if x-kubernetes-embedded-resource is true";
        if kind.is_empty() { e.required(&kind, words) } else { e.invalid(&kind, words) }
    } else if kind.is_empty() && !either && !preserve {
        let place = match level {
            Level::Root => "must not be empty at the root",
            Level::Item => "must not be empty for specified array items",
            Level::Field => "must not be empty for specified object fields",
        };
        e.required(&kind, place);
    }
    if embedded && values.is_set() {
        e.forbidden(&values, "must not be used if x-kubernetes-embedded-resource is set");
    }
    if level == Level::Root && !kind.is_empty() && kind.str() != "object" {
        e.invalid(&kind, "must be object at the root");
    }
    metadata(e, schema, level);
    if embedded && !preserve && schema.at("properties").is_empty() {
        let words = "must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields";
        e.required(&schema.at("properties"), words);
    }
}

/// What a schema of an object may say of its type and metadata.
fn metadata(e: &mut Errors, schema: &At, level: Level) {
    let properties = schema.at("properties");
    let of_object = level == Level::Root || flag(schema, "x-kubernetes-embedded-resource");
    for name in ["kind", "apiVersion"] {
        let property = properties.key(name);
        if of_object && property.is_set() && property.at("type").str() != "string" {
            e.invalid_value(&property.at("type"), property.at("type").str(), "must be string");
        }
    }
    let metadata = properties.key("metadata");
    if !metadata.is_set() {
        return;
    }
    if of_object && metadata.at("type").str() != "object" {
        e.invalid_value(&metadata.at("type"), metadata.at("type").str(), "must be object");
    }
    let known = |name: &str| matches!(name, "name" | "generateName");
    let only_names = metadata.at("properties").entries().all(|(name, _)| known(name));
    let others = metadata.value.as_object().is_some_and(|m| m.keys().any(|k| !matches!(k.as_str(), "type" | "default" | "properties")));
    if level == Level::Root && (others || !only_names) {
        e.forbidden(&metadata, "must not specify anything other than name and generateName, but metadata is implicitly specified");
    }
}

/// Whether it says, in the way that is allowed, that a value is an integer or a string.
fn either_way(schema: &Value) -> bool {
    schema["anyOf"] == json!([{"type": "integer"}, {"type": "string"}])
}

/// The combinations of a node. The two flags excuse the one way to say that a value is an integer or a string.
fn junctors(e: &mut Errors, schema: &At, skip_any_of: bool, skip_in_first: bool) {
    if !skip_any_of {
        schema.at("anyOf").items().for_each(|one| nested(e, &one, false));
    }
    schema.at("allOf").items().enumerate().for_each(|(i, one)| nested(e, &one, skip_in_first && i == 0));
    schema.at("oneOf").items().for_each(|one| nested(e, &one, false));
    let not = schema.at("not");
    if not.is_set() {
        nested(e, &not, false);
    }
    let pattern = schema.at("pattern");
    if !pattern.is_empty() && pattern::compile(pattern.str()).is_err() {
        e.invalid(&pattern, format!("must be a valid regular expression, but isn't: {}", pattern::go_fault(pattern.str())));
    }
}

/// A schema within a combination: rules of values, nothing of structure.
fn nested(e: &mut Errors, schema: &At, skip_any_of: bool) {
    junctors(e, schema, skip_any_of, false);
    let items = schema.at("items");
    if items.value.is_object() {
        nested(e, &items, false);
    }
    for (_, property) in schema.at("properties").entries() {
        nested(e, &property, false);
    }
    for (name, words) in [
        ("type", "must be empty to be structural"),
        ("additionalProperties", "must be undefined to be structural"),
        ("default", "must be undefined to be structural"),
        ("title", "must be empty to be structural"),
        ("description", "must be empty to be structural"),
        ("nullable", "must be false to be structural"),
        ("x-kubernetes-preserve-unknown-fields", "must be false to be structural"),
        ("x-kubernetes-embedded-resource", "must be false to be structural"),
        ("x-kubernetes-int-or-string", "must be false to be structural"),
        ("x-kubernetes-list-map-keys", "must be empty to be structural"),
        ("x-kubernetes-list-type", "must be undefined to be structural"),
        ("x-kubernetes-map-type", "must be undefined to be structural"),
        ("x-kubernetes-validations", "must be empty to be structural"),
    ] {
        let at = schema.at(name);
        if at.is_set() && !at.is_empty() && at.value != &Value::Bool(false) {
            e.forbidden(&at, words);
        }
    }
    let metadata = schema.at("properties").key("metadata");
    if metadata.is_set() {
        e.forbidden(&metadata, "must not be specified in a nested context");
    }
}

/// Whatever combinations speak of is known outside of them.
fn complete(e: &mut Errors, structure: &At, rules: &At) {
    for name in ["allOf", "anyOf", "oneOf"] {
        rules.at(name).items().for_each(|one| complete_nested(e, structure, &one));
    }
    let not = rules.at("not");
    if not.is_set() {
        complete_nested(e, structure, &not);
    }
}

fn complete_nested(e: &mut Errors, structure: &At, rules: &At) {
    complete(e, structure, rules);
    let mut pair = |structure: At, rules: At| {
        if !structure.value.is_object() {
            e.required(&structure, &format!("because it is defined in {}", rules.path));
        } else {
            complete_nested(e, &structure, &rules);
        }
    };
    if rules.at("items").is_set() {
        pair(structure.at("items"), rules.at("items"));
    }
    for (name, property) in rules.at("properties").entries() {
        pair(structure.at("properties").key(name), property);
    }
}

/// Defaults are valid, and nothing in them is unknown.
fn defaults(e: &mut Errors, schema: &At, embedded: bool, in_meta: bool) {
    let embedded = embedded || flag(schema, "x-kubernetes-embedded-resource");
    let default = schema.at("default");
    if default.is_set() {
        if !in_meta && let Ok(parsed) = Schema::from_crd(&json!({"type": "object", "properties": {"value": schema.value}})) {
            let mut pruned = json!({"value": default.value});
            if parsed.prune(&mut pruned).is_ok_and(|unknown| !unknown.is_empty()) {
                e.invalid_value(&default, default.value.clone(), "must not have unknown fields");
            }
        }
        for error in custom::value_errors(schema.value, default.value) {
            let path = match error.path.as_str() {
                "" | "<nil>" => default.path.clone(),
                below => default.below(below),
            };
            e.push(Error { path, ..error });
        }
    }
    let items = schema.at("items");
    if items.value.is_object() {
        defaults(e, &items, false, in_meta);
    }
    for (name, property) in schema.at("properties").entries() {
        defaults(e, &property, false, in_meta || (embedded && META.contains(&name)));
    }
}

/// What the nodes above say of a node.
#[derive(Clone)]
struct Context {
    root: bool,
    /// Why there can't be a default here.
    no_default: Option<String>,
    in_meta: bool,
}

/// The rules of a node itself.
fn node(e: &mut Errors, schema: &At, context: &Context) {
    let kind = schema.at("type");
    if kind.str() == "null" {
        e.unsupported(&kind, &TYPES);
        e.forbidden(&kind, "type cannot be set to null, use nullable as an alternative");
    } else if !kind.is_empty() {
        e.maybe_one_of(&kind, &TYPES);
    }
    if let (true, Some(why)) = (schema.at("default").is_set(), &context.no_default) {
        e.forbidden(&schema.at("default"), format!("must not be set {why}"));
    }
    for (name, words) in [
        ("id", "id is not supported"),
        ("additionalItems", "additionalItems is not supported"),
        ("patternProperties", "patternProperties is not supported"),
        ("definitions", "definitions is not supported"),
        ("dependencies", "dependencies is not supported"),
        ("$ref", "$ref is not supported"),
    ] {
        let at = schema.at(name);
        if at.is_set() && !at.is_empty() {
            e.forbidden(&at, words);
        }
    }
    if schema.at("items").value.is_array() {
        e.forbidden(&schema.at("items"), "items must be a schema object and not an array");
    }
    if context.in_meta && flag(schema, "x-kubernetes-embedded-resource") {
        e.forbidden(&schema.at("x-kubernetes-embedded-resource"), "must not be used inside of resource meta");
    }
    if flag(schema, "uniqueItems") {
        e.forbidden(&schema.at("uniqueItems"), "uniqueItems cannot be set to true since the runtime complexity becomes quadratic");
    }
    children(e, schema, context);
    if schema.at("x-kubernetes-preserve-unknown-fields").value == &Value::Bool(false) {
        e.invalid(&schema.at("x-kubernetes-preserve-unknown-fields"), "must be true or undefined");
    }
    let (map_type, list_type) = (schema.at("x-kubernetes-map-type"), schema.at("x-kubernetes-list-type"));
    if map_type.is_set() && kind.str() != "object" {
        let words = "must be object if x-kubernetes-map-type is specified";
        if kind.is_empty() { e.required(&kind, words) } else { e.invalid(&kind, words) }
    }
    if map_type.is_set() && !matches!(map_type.str(), "atomic" | "granular") {
        e.unsupported(&map_type, &["atomic", "granular"]);
    }
    lists(e, schema, &kind, &list_type);
    written_expressions(e, schema);
}

fn children(e: &mut Errors, schema: &At, context: &Context) {
    let plain = Context { root: false, ..context.clone() };
    let (values, properties) = (schema.at("additionalProperties"), schema.at("properties"));
    if values.is_set() {
        if !properties.is_empty() && values.value != &Value::Bool(true) {
            e.forbidden(&values, "additionalProperties and properties are mutual exclusive");
        }
        if values.value.is_object() {
            let no_default = if context.in_meta { Some("inside additionalProperties applying to object metadata".into()) } else { plain.no_default.clone() };
            node(e, &values, &Context { no_default, ..plain.clone() });
        }
    }
    for (name, property) in properties.entries() {
        let mut below = plain.clone();
        if (context.root || flag(schema, "x-kubernetes-embedded-resource")) && META.contains(&name) {
            below.in_meta = true;
            if context.root {
                below.no_default = Some(format!("in top-level {name}"));
            }
        }
        node(e, &property, &below);
    }
    let not = schema.at("not");
    if not.is_set() {
        node(e, &not, &plain);
    }
    for name in ["allOf", "oneOf", "anyOf"] {
        schema.at(name).items().for_each(|one| node(e, &one, &plain));
    }
    let items = schema.at("items");
    if items.value.is_object() {
        node(e, &items, &plain);
    }
}

fn lists(e: &mut Errors, schema: &At, kind: &At, list_type: &At) {
    let (items, keys) = (schema.at("items"), schema.at("x-kubernetes-list-map-keys"));
    let item_type = items.at("type");
    if list_type.is_set() && kind.str() != "array" {
        let words = "must be array if x-kubernetes-list-type is specified";
        if kind.is_empty() { e.required(kind, words) } else { e.invalid(kind, words) }
    } else if list_type.str() == "set" && items.is_set() {
        let words = "must be atomic as item of a list with x-kubernetes-list-type=set";
        let (inner_list, inner_map) = (items.at("x-kubernetes-list-type"), items.at("x-kubernetes-map-type"));
        match item_type.str() {
            "array" if inner_list.is_set() && inner_list.str() != "atomic" => e.invalid(&inner_list, words),
            "object" if inner_map.str() != "atomic" => e.invalid_value(&inner_map, inner_list.value.clone(), words),
            _ => {}
        }
    }
    if list_type.is_set() && !matches!(list_type.str(), "atomic" | "set" | "map") {
        e.unsupported(list_type, &["atomic", "set", "map"]);
    }
    if !keys.is_empty() && list_type.str() != "map" {
        let words = "must be map if x-kubernetes-list-map-keys is non-empty";
        if list_type.is_set() { e.invalid(list_type, words) } else { e.required(list_type, words) }
    }
    if list_type.str() == "map" {
        e.wanted(&keys, "must not be empty if x-kubernetes-list-type is map");
        if !items.is_set() {
            e.required(&items, "must have a schema if x-kubernetes-list-type is map");
        } else if item_type.str() != "object" {
            e.invalid_value(&item_type, item_type.str(), "must be object if parent array's x-kubernetes-list-type is map");
        } else {
            map_keys(e, &items, &keys);
        }
    }
    if matches!(list_type.str(), "set" | "map") && items.value.is_object() {
        if flag(&items, "nullable") {
            e.forbidden(&items.at("nullable"), format!("cannot be nullable when x-kubernetes-list-type is {}", list_type.str()));
        }
        let required: Vec<&str> = items_texts(&items, "required");
        for key in keys.texts().into_iter().filter(|_| list_type.str() == "map") {
            let property = items.at("properties").key(key);
            if property.is_set() && !required.contains(&key) && !property.at("default").is_set() {
                let words = "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property";
                e.required(&property.at("default"), words);
            }
            if flag(&property, "nullable") {
                e.forbidden(&property.at("nullable"), "this property is in x-kubernetes-list-map-keys, so it cannot be nullable");
            }
        }
    }
}

fn items_texts<'a>(at: &At<'a>, name: &str) -> Vec<&'a str> {
    items(at.value, &[name]).iter().filter_map(Value::as_str).collect()
}

fn map_keys(e: &mut Errors, items: &At, keys: &At) {
    let texts = keys.texts();
    for (i, key) in texts.iter().enumerate() {
        let property = items.at("properties").key(key);
        if !property.is_set() {
            e.invalid(keys, "entries must all be names of item properties");
        } else if matches!(property.at("type").str(), "array" | "object") {
            e.invalid_value(&property.at("type"), items.at("type").str(), "must be a scalar type if parent array's x-kubernetes-list-type is map");
        }
        if texts[..i].contains(key) {
            e.invalid(keys, "must not contain duplicate entries");
        }
    }
}

/// `x-kubernetes-validations` as text.
fn written_expressions(e: &mut Errors, schema: &At) {
    const REASONS: [&str; 4] = ["FieldValueDuplicate", "FieldValueForbidden", "FieldValueInvalid", "FieldValueRequired"];
    let has_breaks = |text: &str| text.contains(['\n', '\r']);
    for rule in schema.at("x-kubernetes-validations").items() {
        let (expression, message, dynamic) = (rule.at("rule"), rule.at("message"), rule.at("messageExpression"));
        if expression.str().trim().is_empty() {
            e.required(&expression, "rule is not specified");
        } else if !message.is_empty() && message.str().trim().is_empty() {
            e.invalid(&message, "must be non-empty if specified");
        } else if has_breaks(message.str().trim()) {
            e.invalid(&message, "must not contain line breaks");
        } else if has_breaks(expression.str().trim()) && message.is_empty() {
            e.required(&message, "message must be specified if rule contains line breaks");
        }
        if !dynamic.is_empty() && dynamic.str().trim().is_empty() {
            e.required(&dynamic, "messageExpression must be non-empty if specified");
        }
        let reason = rule.at("reason");
        if reason.is_set() && !REASONS.contains(&reason.str()) {
            e.unsupported(&reason, &REASONS);
        }
        let path = rule.at("fieldPath");
        if !path.is_empty() {
            if path.str().trim().is_empty() {
                e.invalid(&path, "must be non-empty if specified");
            }
            if has_breaks(path.str()) {
                e.invalid(&path, "must not contain line breaks");
            }
            if field(schema, path.str()).is_err() {
                e.invalid(&path, "must be a valid path");
            }
        }
    }
}

/// The schema of the field that a path (`.spec.x`, `.spec['a.b']`) leads to from here; an error says why it leads nowhere.
pub(super) fn field<'a>(schema: &At<'a>, path: &str) -> Result<At<'a>, String> {
    let mut here = schema.clone();
    let mut rest = path;
    while !rest.is_empty() {
        let (name, tail) = if let Some(quoted) = rest.strip_prefix("['") {
            quoted.split_once("']").ok_or("unterminated string")?
        } else {
            let name = rest.strip_prefix('.').ok_or_else(|| format!("expected [ or . but got: {rest}"))?;
            name.split_at(name.find(['.', '[']).unwrap_or(name.len()))
        };
        if name.is_empty() {
            return Err("unexpected end of JSON path".into());
        }
        let values = here.at("additionalProperties");
        let next = here.at("properties").key(name);
        here = match (next.is_set(), values.value.is_object()) {
            (true, _) => next,
            (false, true) => values,
            (false, false) => return Err("does not refer to a valid field".into()),
        };
        rest = tail;
    }
    Ok(here)
}

/// What clients are warned of in a schema: formats that mean nothing, and sets that can't be merged. Sorted, each once.
pub(super) fn warnings(schema: &Value, found: &mut Vec<String>) {
    let kind = schema["type"].as_str().unwrap_or("");
    if let Some(format) = schema["format"].as_str().filter(|f| !f.is_empty()) {
        let known = match kind {
            "" | "string" => custom::known_format(format),
            "integer" => matches!(format, "int32" | "int64"),
            "number" => matches!(format, "float" | "double"),
            _ => false,
        };
        if !known {
            found.push(format!("unrecognized format {format:?}"));
        }
    }
    let item = schema["items"]["type"].as_str().unwrap_or("");
    if schema["x-kubernetes-list-type"] == "set" && matches!(item, "object" | "array") {
        found.push(format!("x-kubernetes-list-type: set for items of type {item:?} is not supported by server-side apply or CEL validation rules"));
    }
    ["items", "additionalProperties", "not"].into_iter().for_each(|name| warnings_below(&schema[name], found));
    for one in ["allOf", "anyOf", "oneOf"].iter().flat_map(|name| items(schema, &[name])) {
        warnings_below(one, found);
    }
    schema["properties"].as_object().into_iter().flatten().for_each(|(_, property)| warnings_below(property, found));
}

fn warnings_below(schema: &Value, found: &mut Vec<String>) {
    if schema.is_object() {
        warnings(schema, found);
    }
}

/// What the root of a schema may say when the status is written apart: it must not be lost for the status alone.
pub(super) fn root_with_status(e: &mut Errors, root: &At) {
    const ALLOWED: [(&str, &str); 22] = [
        ("description", "Description"), ("type", "Type"), ("format", "Format"), ("title", "Title"), ("maximum", "Maximum"),
        ("exclusiveMaximum", "ExclusiveMaximum"), ("minimum", "Minimum"), ("exclusiveMinimum", "ExclusiveMinimum"), ("maxLength", "MaxLength"),
        ("minLength", "MinLength"), ("pattern", "Pattern"), ("maxItems", "MaxItems"), ("minItems", "MinItems"), ("uniqueItems", "UniqueItems"),
        ("multipleOf", "MultipleOf"), ("required", "Required"), ("items", "Items"), ("properties", "Properties"), ("externalDocs", "ExternalDocs"),
        ("example", "Example"), ("x-kubernetes-preserve-unknown-fields", "XPreserveUnknownFields"), ("x-kubernetes-validations", "XValidations"),
    ];
    let empty = |value: &Value| At::root(value).is_empty() || value == &Value::Bool(false);
    let odd = root.value.as_object().is_some_and(|m| m.iter().any(|(key, value)| !empty(value) && !ALLOWED.iter().any(|(name, _)| name == key)));
    if odd {
        let names: Vec<&str> = ALLOWED.iter().map(|(_, name)| *name).collect();
        let words = format!("only [{}] fields are allowed at the root of the schema if the status subresource is enabled", names.join(" "));
        e.invalid(root, words);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The errors of a schema with the property `a`.
    fn check(property: Value, expected: &[&str]) {
        check_root(json!({"type": "object", "properties": {"a": property}}), expected);
    }

    fn check_root(root: Value, expected: &[&str]) {
        let mut e = Errors::default();
        schema(&mut e, &At::root(&root).called("s"), false);
        assert_eq!(e.0.iter().map(ToString::to_string).collect::<Vec<_>>(), expected, "{root}");
    }

    #[test]
    fn structure() {
        check(json!({"type": "string"}), &[]);
        check(json!({}), &["s.properties[a].type: Required value: must not be empty for specified object fields"]);
        check(json!({"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]}), &[]);
        check(json!({"x-kubernetes-int-or-string": true, "allOf": [{"anyOf": [{"type": "integer"}, {"type": "string"}]}, {"minimum": 1}]}), &[]);
        check(json!({"type": "integer", "anyOf": [{"type": "integer"}]}), &["s.properties[a].anyOf[0].type: Forbidden: must be empty to be structural"]);
        check(json!({"type": "object", "x-kubernetes-embedded-resource": true}),
            &["s.properties[a].properties: Required value: must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields"]);
        check(json!({"x-kubernetes-int-or-string": true, "x-kubernetes-preserve-unknown-fields": true}),
            &["s.properties[a].x-kubernetes-preserve-unknown-fields: Invalid value: true: must be false if x-kubernetes-int-or-string is true"]);
        check_root(json!({"type": "object", "allOf": [{"properties": {"b": {"minimum": 1}}}]}),
            &["s.properties[b]: Required value: because it is defined in s.allOf[0].properties[b]"]);
        check_root(json!({"type": "object", "properties": {"metadata": {"type": "object", "properties": {"labels": {"type": "object"}}}}}),
            &["s.properties[metadata]: Forbidden: must not specify anything other than name and generateName, but metadata is implicitly specified"]);
        check_root(json!({"type": "object", "properties": {"metadata": {"type": "object", "properties": {"name": {"type": "string", "maxLength": 5}}}}}), &[]);
        check_root(json!({"type": "object", "additionalProperties": {"type": "string"}}), &["s.additionalProperties: Forbidden: must not be used at the root"]);
    }

    #[test]
    fn nodes() {
        check(json!({"type": "string", "default": 5}), &[r#"s.properties[a].default: Invalid value: "integer":  in body must be of type string: "integer""#]);
        check(json!({"type": "object", "default": {"x": 1}}), &[r#"s.properties[a].default: Invalid value: {"x":1}: must not have unknown fields"#]);
        check(json!({"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "map"}), &[
            "s.properties[a].x-kubernetes-list-map-keys: Required value: must not be empty if x-kubernetes-list-type is map",
            r#"s.properties[a].items.type: Invalid value: "string": must be object if parent array's x-kubernetes-list-type is map"#]);
        let keyed = |key: Value| json!({"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"], "items": {"type": "object", "properties": {"k": key}}});
        check(keyed(json!({"type": "string", "default": ""})), &[]);
        check(keyed(json!({"type": "string"})), &[
            "s.properties[a].items.properties[k].default: Required value: this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property"]);
        check(json!({"type": "string", "x-kubernetes-map-type": "odd"}), &[
            r#"s.properties[a].type: Invalid value: "string": must be object if x-kubernetes-map-type is specified"#,
            r#"s.properties[a].x-kubernetes-map-type: Unsupported value: "odd": supported values: "atomic", "granular""#]);
        check(json!({"type": "object", "$ref": "x"}), &["s.properties[a].$ref: Forbidden: $ref is not supported"]);
        check(json!({"type": "object", "x-kubernetes-validations": [{"rule": " "}, {"rule": "true", "reason": "Odd", "fieldPath": ".b"}]}), &[
            "s.properties[a].x-kubernetes-validations[0].rule: Required value: rule is not specified",
            r#"s.properties[a].x-kubernetes-validations[1].reason: Unsupported value: "Odd": supported values: "FieldValueDuplicate", "FieldValueForbidden", "FieldValueInvalid", "FieldValueRequired""#,
            r#"s.properties[a].x-kubernetes-validations[1].fieldPath: Invalid value: ".b": must be a valid path"#]);
    }
}
