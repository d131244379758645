use serde_json::{Value, json};

use crate::custom;
use crate::resource::Resource;
use crate::validation::{validate_create, validate_subresource_update};

fn resource(schema: &Value) -> Resource {
    let names = json!({"plural": "foos", "singular": "foo", "kind": "Foo", "listKind": "FooList"});
    let scale = json!({"specReplicasPath": ".spec.n", "statusReplicasPath": ".status.n", "labelSelectorPath": ".status.selector"});
    let definition = json!({"spec": {"group": "x.io", "scope": "Cluster", "versions": [{"name": "v1", "served": true, "storage": true,
        "schema": {"openAPIV3Schema": schema}, "subresources": {"status": {}, "scale": scale}}]}});
    custom::resources(&definition, &names, false).remove(0)
}

fn spec(properties: &Value) -> Value {
    json!({"type": "object", "properties": {"spec": {"type": "object", "properties": properties}, "status": {"type": "object", "properties": {
        "n": {"type": "integer", "maximum": 9}, "selector": {"type": "string"}}}}})
}

fn object(part: &Value) -> Value {
    let mut object = json!({"apiVersion": "x.io/v1", "kind": "Foo", "metadata": {"name": "a", "uid": "u"}});
    json_patch::merge(&mut object, part);
    object
}

fn texts(errors: &[crate::field::Error]) -> Vec<String> {
    errors.iter().map(ToString::to_string).collect()
}

/// A schema of the field `x` of a spec, its value, and the errors.
fn check(schema: Value, value: Value, expected: &[&str]) {
    let resource = resource(&spec(&json!({"x": schema})));
    let mut made = object(&json!({"spec": {}}));
    made["spec"]["x"] = value.clone();
    let errors = texts(&validate_create(&resource, &made));
    assert_eq!(errors, expected, "{schema} {value}");
}

#[test]
fn values_against_rules() {
    let text = json!({"type": "string", "maxLength": 3, "minLength": 2, "pattern": "^[a-z]+$"});
    check(text.clone(), json!("abc"), &[]);
    check(text.clone(), json!("abcd"), &["spec.x: Too long: may not be more than 3 bytes"]);
    check(text.clone(), json!("a"), &[r#"spec.x: Invalid value: "a": spec.x in body should be at least 2 chars long"#]);
    check(text.clone(), json!("AB"), &[r#"spec.x: Invalid value: "AB": spec.x in body should match '^[a-z]+$'"#]);
    check(text, json!(5), &[r#"spec.x: Invalid value: "integer": spec.x in body must be of type string: "integer""#]);
    let number = json!({"type": "integer", "minimum": 1, "maximum": 9, "exclusiveMaximum": true, "multipleOf": 2});
    check(number.clone(), json!(4), &[]);
    check(number.clone(), json!(9), &[
        "spec.x: Invalid value: 9: spec.x in body should be a multiple of 2", "spec.x: Invalid value: 9: spec.x in body should be less than 9"]);
    check(number.clone(), json!(0), &["spec.x: Invalid value: 0: spec.x in body should be greater than or equal to 1"]);
    check(number, json!(1.5), &[
        r#"spec.x: Invalid value: "number": spec.x in body must be of type integer: "number""#,
        "spec.x: Invalid value: 1.5: spec.x in body should be a multiple of 2"]);
    check(json!({"type": "number", "multipleOf": 0.1}), json!(0.3), &[]);
    check(json!({"type": "string", "enum": ["a", "b"]}), json!("c"), &[r#"spec.x: Unsupported value: "c": supported values: "a", "b""#]);
    check(json!({"type": "string", "format": "date-time"}), json!("soon"),
        &[r#"spec.x: Invalid value: "soon": spec.x in body must be of type date-time: "soon""#]);
    check(json!({"type": "string", "format": "odd"}), json!("any"), &[]);
    check(json!({"type": "string"}), json!(null), &[r#"spec.x: Invalid value: "null": spec.x in body must be of type string: "null""#]);
    check(json!({"type": "string", "nullable": true}), json!(null), &[]);
    check(json!({"x-kubernetes-int-or-string": true}), json!("5%"), &[]);
    check(json!({"x-kubernetes-int-or-string": true}), json!(true),
        &[r#"spec.x: Invalid value: "boolean": spec.x in body must be of type integer,string: "boolean""#]);
    check(json!({"x-kubernetes-preserve-unknown-fields": true}), json!({"any": [1]}), &[]);
}

#[test]
fn objects_and_lists() {
    let map = json!({"type": "object", "minProperties": 1, "maxProperties": 2, "additionalProperties": {"type": "integer"}});
    check(map.clone(), json!({"a": 1}), &[]);
    check(map.clone(), json!({}), &["spec.x: Invalid value: 0: spec.x in body should have at least 1 properties"]);
    check(map.clone(), json!({"a": 1, "b": 2, "c": 3}), &["spec.x: Too many: 3: must have at most 2 items"]);
    check(map, json!({"a": "b"}), &[r#"spec.x.a: Invalid value: "string": spec.x.a in body must be of type integer: "string""#]);
    let list = json!({"type": "array", "minItems": 1, "maxItems": 2, "items": {"type": "object", "required": ["k"], "properties": {"k": {"type": "string"}}}});
    check(list.clone(), json!([{}]), &["spec.x[0].k: Required value"]);
    check(list.clone(), json!([]), &["spec.x: Invalid value: 0: spec.x in body should have at least 1 items"]);
    check(list, json!([{"k": ""}, {"k": ""}, {"k": ""}]), &["spec.x: Too many: 3: must have at most 2 items"]);
    let set = json!({"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}});
    check(set, json!(["a", "b", "a", "a"]), &[r#"spec.x[2]: Duplicate value: "a""#]);
    let keyed = json!({"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"], "items": {"type": "object",
        "properties": {"k": {"type": "string"}, "v": {"type": "integer"}}}});
    check(keyed, json!([{"k": "a", "v": 1}, {"k": "a", "v": 2}]), &[r#"spec.x[1]: Duplicate value: {"k":"a"}"#]);
}

#[test]
fn combinations() {
    let one = json!({"type": "object", "oneOf": [{"required": ["a"]}, {"required": ["b"]}], "properties": {"a": {"type": "string"}, "b": {"type": "string"}}});
    check(one.clone(), json!({"a": ""}), &[]);
    check(one.clone(), json!({}), &[
        r#"<nil>: Invalid value: "": "spec.x" must validate one and only one schema (oneOf). Found none valid"#, "spec.x.a: Required value"]);
    check(one, json!({"a": "", "b": ""}),
        &[r#"<nil>: Invalid value: "": "spec.x" must validate one and only one schema (oneOf). Found 2 valid alternatives"#]);
    check(json!({"type": "integer", "anyOf": [{"minimum": 5}, {"maximum": 1}]}), json!(3), &[
        r#"<nil>: Invalid value: "": "spec.x" must validate at least one schema (anyOf)"#,
        "spec.x: Invalid value: 3: spec.x in body should be greater than or equal to 5"]);
    check(json!({"type": "integer", "allOf": [{"minimum": 5}, {"maximum": 9}]}), json!(3), &[
        "spec.x: Invalid value: 3: spec.x in body should be greater than or equal to 5",
        r#"<nil>: Invalid value: "": "spec.x" must validate all the schemas (allOf)"#]);
    check(json!({"type": "integer", "not": {"enum": [3]}}), json!(3), &[r#"<nil>: Invalid value: "": "spec.x" must not validate the schema (not)"#]);
}

#[test]
fn embedded_objects_say_what_they_are() {
    let schema = json!({"type": "object", "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true});
    check(schema.clone(), json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}}), &[]);
    check(schema.clone(), json!({"kind": ""}), &["spec.x.apiVersion: Required value", r#"spec.x.kind: Invalid value: "": must not be empty"#]);
    check(schema, json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"labels": {"-": ""}}}).clone(), &[
        r#"spec.x.metadata.labels: Invalid value: "-": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"#]);
}

#[test]
fn what_was_wrong_and_is_unchanged_is_tolerated() {
    let keyed = json!({"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"], "items": {"type": "object",
        "properties": {"k": {"type": "string"}, "v": {"type": "integer", "maximum": 5}}}});
    let resource = resource(&spec(&json!({"x": {"type": "integer", "maximum": 5}, "y": {"type": "integer", "maximum": 5}, "list": keyed,
        "plain": {"type": "array", "items": {"type": "integer", "maximum": 5}}})));
    let errors = |old: Value, new: Value| {
        texts(&validate_subresource_update(&resource, "", &object(&json!({"spec": new})), &object(&json!({"spec": old}))))
    };
    assert_eq!(errors(json!({"x": 9, "y": 1}), json!({"x": 9, "y": 2})), [""; 0]);
    assert_eq!(errors(json!({"x": 9, "y": 1}), json!({"x": 8, "y": 1})), ["spec.x: Invalid value: 8: spec.x in body should be less than or equal to 5"]);
    assert_eq!(errors(json!({"list": [{"k": "a", "v": 9}]}), json!({"list": [{"k": "b"}, {"k": "a", "v": 9}]})), [""; 0]);
    assert_eq!(errors(json!({"plain": [9]}), json!({"plain": [9, 1]})).len(), 1);
    let dup = json!([{"k": "a"}, {"k": "a"}]);
    assert_eq!(errors(json!({"list": dup}), json!({"list": dup, "x": 1})), [""; 0]);
}

#[test]
fn a_status_is_checked_alone() {
    let resource = resource(&spec(&json!({"n": {"type": "integer", "maximum": 5}})));
    let old = object(&json!({"spec": {"n": 9}, "status": {"n": 1}}));
    let errors = |status: Value| texts(&validate_subresource_update(&resource, "status", &object(&json!({"spec": {"n": 9}, "status": status})), &old));
    assert_eq!(errors(json!({"n": 2})), [""; 0]);
    assert_eq!(errors(json!({"n": 12})), ["status.n: Invalid value: 12: n in body should be less than or equal to 9"]);
    assert_eq!(errors(json!({"n": -2})), [".status.n: Invalid value: -2: should be a non-negative integer"]);
}
