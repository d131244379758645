//! The schema of a custom resource, from the `openAPIV3Schema` of its definition.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::{Kind, List, ListType, Node, Object, PatchStrategy, Presence, Property, Schema, builtin};
use crate::field;
use crate::value::items;

/// How deep a schema may nest before it is refused.
const MAX_DEPTH: usize = 100;

/// The keywords that say something of the value and not of its structure.
const RULES: [&str; 21] = [
    "enum", "format", "maximum", "exclusiveMaximum", "minimum", "exclusiveMinimum", "maxLength", "minLength", "pattern", "maxItems",
    "minItems", "uniqueItems", "maxProperties", "minProperties", "multipleOf", "allOf", "anyOf", "oneOf", "not", "required", "type",
];

impl Schema {
    /// Reads the `openAPIV3Schema` of a custom resource definition's version. The errors are of schemas that can't be
    /// read at all; whether the definition is valid in every detail is the business of its validation.
    pub fn from_crd(schema: &Value) -> Result<Self, Vec<field::Error>> {
        let mut errors = Vec::new();
        let mut root = read(schema, "openAPIV3Schema", 0, &mut errors);
        if let Kind::Object(object) = &mut root.kind {
            type_meta(object);
        }
        if errors.is_empty() { Ok(root) } else { Err(errors) }
    }
}

/// Adds the properties of every Kubernetes object.
fn type_meta(object: &mut Object) {
    object.embedded = true;
    for name in ["apiVersion", "kind", "metadata"] {
        let schema = match builtin::find("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta") {
            Some(meta) if name == "metadata" => Node::Named(meta),
            _ => Schema::from(Kind::String).into(),
        };
        let property = property(name, schema);
        match object.properties.binary_search_by(|p| p.name.as_ref().cmp(name)) {
            Ok(i) => object.properties[i] = property,
            Err(i) => object.properties.insert(i, property),
        }
    }
}

fn property(name: &str, schema: Node) -> Property {
    Property {
        name: name.to_owned().into(),
        go_name: "",
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
    let preserve_unknown = flag("x-kubernetes-preserve-unknown-fields");
    let kind = if flag("x-kubernetes-int-or-string") {
        Kind::IntOrString
    } else {
        match schema["type"].as_str().unwrap_or("") {
            "object" => read_object(schema, preserve_unknown, path, depth, errors),
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
    let rules: Map<String, Value> = schema
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(key, _)| RULES.contains(&key.as_str()))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    Schema {
        kind,
        nullable: flag("nullable"),
        atomic: schema["x-kubernetes-map-type"] == "atomic",
        rules: (!rules.is_empty()).then(|| Arc::new(Value::Object(rules))),
        ..Schema::default()
    }
}

fn read_object(schema: &Value, preserve_unknown: bool, path: &str, depth: usize, errors: &mut Vec<field::Error>) -> Kind {
    let embedded = schema["x-kubernetes-embedded-resource"] == true;
    let Some(properties) = schema["properties"].as_object().filter(|p| !p.is_empty()) else {
        return match &schema["additionalProperties"] {
            values @ Value::Object(_) => {
                Kind::Map(read(values, &format!("{path}.additionalProperties"), depth + 1, errors).into())
            }
            Value::Bool(true) => Kind::Map(Schema::default().into()),
            _ if preserve_unknown && !embedded => Kind::Any,
            _ => {
                let mut object = Object { preserve_unknown, ..Object::default() };
                if embedded {
                    type_meta(&mut object);
                }
                Kind::Object(object)
            }
        };
    };
    let required: Vec<&str> = items(schema, &["required"]).iter().filter_map(Value::as_str).collect();
    let mut object = Object { preserve_unknown, ..Object::default() };
    for (name, child) in properties {
        let node = read(child, &format!("{path}.properties[{name}]"), depth + 1, errors);
        object.properties.push(Property {
            required: required.contains(&name.as_str()),
            default: child.get("default").cloned(),
            ..property(name, node.into())
        });
    }
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
}
