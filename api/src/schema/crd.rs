//! The schema of a custom resource, from the `openAPIV3Schema` of its definition.

use serde_json::Value;

use super::{Kind, List, ListType, Node, Object, PatchStrategy, Presence, Property, Schema, builtin};
use crate::field;
use crate::value::items;

/// How deep a schema may nest before it is refused.
const MAX_DEPTH: usize = 100;

impl Schema {
    /// Reads the `openAPIV3Schema` of a custom resource definition's version. The errors are of schemas that can't be
    /// read at all; whether the definition is valid in every detail is the business of its validation.
    pub fn from_crd(schema: &Value) -> Result<Self, Vec<field::Error>> {
        let mut errors = Vec::new();
        let mut root = read(schema, "openAPIV3Schema", 0, &mut errors);
        if !matches!(root.kind, Kind::Object(_)) {
            // Whatever the definition says or leaves out, it is about objects.
            root.kind = Kind::Object(Object { preserve_unknown: true, ..Object::default() });
        }
        if let Kind::Object(object) = &mut root.kind {
            type_meta(object);
        }
        if errors.is_empty() { Ok(root) } else { Err(errors) }
    }
}

/// Adds the properties of every Kubernetes object. What a definition says of its type (a default) stays.
fn type_meta(object: &mut Object) {
    object.embedded = true;
    for name in ["apiVersion", "kind", "metadata"] {
        let schema = match builtin::find("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta") {
            Some(meta) if name == "metadata" => Node::Named(meta),
            _ => Schema::from(Kind::String).into(),
        };
        let property = property(name, schema);
        match object.properties.binary_search_by(|p| p.name.as_ref().cmp(name)) {
            Ok(i) if name == "metadata" => object.properties[i] = property,
            Ok(_) => {}
            Err(i) => object.properties.insert(i, property),
        }
    }
}

fn property(name: &str, schema: Node) -> Property {
    Property {
        name: name.to_owned().into(),
        go_name: "",
        inlined: "",
        off: false,
        position: 0,
        schema,
        presence: Presence::Given,
        required: false,
        default: None,
        patch: PatchStrategy::default(),
    }
}

fn read(schema: &Value, path: &str, depth: usize, errors: &mut Vec<field::Error>) -> Schema {
    if depth > MAX_DEPTH {
        errors.push(field::Error::forbidden(path, "the schema nests too deeply"));
        return Schema::default();
    }
    let flag = |name: &str| schema[name].as_bool().unwrap_or(false);
    let kind = if flag("x-kubernetes-int-or-string") {
        Kind::IntOrString
    } else {
        match schema["type"].as_str().unwrap_or("") {
            "object" => read_object(schema, path, depth, errors),
            // Without a type, only what is in an object by chance is known.
            "" if schema["properties"].is_object() || schema["additionalProperties"].is_object() => read_object(schema, path, depth, errors),
            "array" => Kind::List(List {
                items: read(&schema["items"], &format!("{path}.items"), depth + 1, errors).into(),
                list_type: match schema["x-kubernetes-list-type"].as_str() {
                    Some("set") => ListType::Set,
                    Some("map") => {
                        let keys = items(schema, &["x-kubernetes-list-map-keys"]).iter().filter_map(Value::as_str);
                        ListType::Map(keys.map(|k| k.to_owned().into()).collect())
                    }
                    _ => ListType::Atomic,
                },
            }),
            "string" => Kind::String,
            "integer" => Kind::Int64,
            "number" => Kind::Number,
            "boolean" => Kind::Boolean,
            _ => Kind::Any,
        }
    };
    Schema { kind, nullable: flag("nullable"), atomic: schema["x-kubernetes-map-type"] == "atomic", ..Schema::default() }
}

fn read_object(schema: &Value, path: &str, depth: usize, errors: &mut Vec<field::Error>) -> Kind {
    let flag = |name: &str| schema[name] == true;
    let (embedded, preserve_unknown) = (flag("x-kubernetes-embedded-resource"), flag("x-kubernetes-preserve-unknown-fields"));
    let properties = schema["properties"].as_object().filter(|p| !p.is_empty());
    match (&schema["additionalProperties"], properties) {
        (values @ Value::Object(_), None) => return Kind::Map(read(values, &format!("{path}.additionalProperties"), depth + 1, errors).into()),
        // Any key, but nothing is known of what is in objects below.
        (Value::Bool(true), None) if !preserve_unknown => return Kind::Map(Schema::from(Kind::Object(Object::default())).into()),
        (_, None) if preserve_unknown && !embedded && depth > 0 => return Kind::Any,
        _ => {}
    }
    let required: Vec<&str> = items(schema, &["required"]).iter().filter_map(Value::as_str).collect();
    let mut object = Object { preserve_unknown, ..Object::default() };
    for (name, child) in properties.into_iter().flatten() {
        let node = read(child, &format!("{path}.properties[{name}]"), depth + 1, errors);
        object.properties.push(Property {
            required: required.contains(&name.as_str()),
            default: child.get("default").cloned(),
            ..property(name, node.into())
        });
    }
    object.properties.sort_by(|a, b| a.name.cmp(&b.name));
    if embedded {
        type_meta(&mut object);
    }
    Kind::Object(object)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn unknown_fields_go_and_defaults_are_known() {
        let schema = Schema::from_crd(&json!({"type": "object", "properties": {
            "spec": {"type": "object", "required": ["size"], "properties": {
                "size": {"type": "integer", "default": 1, "minimum": 0},
                "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
                "ports": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["port"], "items": {
                    "type": "object", "properties": {"port": {"x-kubernetes-int-or-string": true}}}},
            }},
        }}))
        .expect("a schema");
        let mut object = json!({"apiVersion": "a/v1", "kind": "A", "metadata": {"name": "x", "bogus": 1},
            "spec": {"size": "kept for validation", "free": {"a": 1}, "ports": [{"port": 1, "x": 2}], "y": 1}});
        let unknown = schema.prune(&mut object).expect("pruned");
        assert_eq!(unknown, ["metadata.bogus", "spec.ports[0].x", "spec.y"]);
        assert_eq!(object["spec"], json!({"size": "kept for validation", "free": {"a": 1}, "ports": [{"port": 1}]}));
        let size = schema.at(&["spec"]).and_then(|s| s.property("size")).expect("size");
        assert!(size.required && size.default == Some(json!(1)));
    }

    #[test]
    fn what_is_kept_and_what_goes() {
        let check = |schema: Value, value: Value, expected: Value, gone: &[&str]| {
            let schema = Schema::from_crd(&json!({"type": "object", "properties": {"x": schema}})).expect("a schema");
            let mut object = json!({"x": value});
            let unknown = schema.prune(&mut object).expect("pruned");
            assert_eq!((object, unknown), (json!({"x": expected}), gone.iter().map(|p| (*p).to_owned()).collect()));
        };
        let known = json!({"a": {"type": "string"}, "n": {"type": "string", "nullable": true}, "d": {"type": "string", "default": ""}});
        check(json!({"type": "object", "properties": known}), json!({"a": null, "n": null, "d": null, "z": null}), json!({"n": null, "d": null}), &["x.z"]);
        check(json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {"k": {"type": "object", "properties": known}}}),
            json!({"k": {"a": "", "z": 1}, "z": {"y": null}}), json!({"k": {"a": ""}, "z": {"y": null}}), &["x.k.z"]);
        check(json!({"x-kubernetes-preserve-unknown-fields": true, "properties": {"k": {"type": "object"}}}),
            json!({"k": {"z": 1}, "z": 1}), json!({"k": {}, "z": 1}), &["x.k.z"]);
        check(json!({"x-kubernetes-preserve-unknown-fields": true}), json!([{"z": 1}]), json!([{"z": 1}]), &[]);
        check(json!({"type": "object", "additionalProperties": {"type": "object", "properties": known}}),
            json!({"k": {"a": "", "z": 1}, "l": null}), json!({"k": {"a": ""}}), &["x.k.z"]);
        check(json!({"type": "object", "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true}),
            json!({"kind": "Pod", "metadata": {"name": "p", "z": 1}, "spec": {"z": 1}}),
            json!({"kind": "Pod", "metadata": {"name": "p"}, "spec": {"z": 1}}), &["x.metadata.z"]);
        check(json!({"type": "object", "x-kubernetes-embedded-resource": true, "properties": {"spec": {"type": "object"}}}),
            json!({"kind": "Pod", "apiVersion": "v1", "spec": {"z": 1}, "z": 1}), json!({"kind": "Pod", "apiVersion": "v1", "spec": {}}), &["x.spec.z", "x.z"]);
    }
}
