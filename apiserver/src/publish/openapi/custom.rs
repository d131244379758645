//! Custom resources in OpenAPI: their schema as the definition has it, with what every object has beside it. Version 2
//! can't say everything, and clients of it take what it says too literally: there, much is left out, as upstream does.

use serde_json::{Map, Value, json};
use skiff_api::custom::Custom;
use skiff_api::resource::Resource;

use super::{Dialect, descriptions};

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";
const CONVENTIONS: &str = "More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md";
/// Any object: its members are the best known for the words about type and metadata.
const ANY_KIND: &str = "io.k8s.api.core.v1.ConfigMap";

/// The definition of the resource's kind.
pub(super) fn kind(resource: &Resource, custom: &Custom, dialect: Dialect) -> Value {
    let source = &custom.source;
    let loose = dialect == Dialect::V2 && source["x-kubernetes-preserve-unknown-fields"] == true;
    // A schema with properties would have clients refuse whatever else there is.
    let mut written = if source.is_object() && !loose { node(source, dialect) } else { json!({"type": "object"}) };
    if source.is_object() && !loose {
        let words = |name: &str| descriptions::of_property(ANY_KIND, name).cloned().unwrap_or_default();
        for name in ["apiVersion", "kind"] {
            written["properties"][name] = json!({"type": "string", "description": words(name)});
        }
        written["properties"]["metadata"] = meta("ObjectMeta", &format!("Standard object's metadata. {CONVENTIONS}#metadata"), dialect);
    }
    selectable(resource, &mut written);
    written
}

/// The definition of lists of it.
pub(super) fn list(resource: &Resource, item: &str, dialect: Dialect) -> Value {
    let words = |name: &str| descriptions::of_property(ANY_KIND, name).cloned().unwrap_or_default();
    let mut written = json!({
        "type": "object", "description": format!("{} is a list of {}", resource.list_kind(), resource.kind), "required": ["items"],
        "properties": {
            "apiVersion": {"type": "string", "description": words("apiVersion")}, "kind": {"type": "string", "description": words("kind")},
            "items": {"type": "array", "items": {"$ref": dialect.reference(item)}, "description": format!("List of {}. {CONVENTIONS}", resource.plural)},
            "metadata": meta("ListMeta", &format!("Standard list metadata. {CONVENTIONS}#types-kinds"), dialect),
        },
    });
    selectable(resource, &mut written);
    written
}

fn meta(name: &str, words: &str, dialect: Dialect) -> Value {
    let reference = json!({"$ref": dialect.reference(&format!("{META}.{name}"))});
    match dialect {
        Dialect::V2 => json!({"$ref": reference["$ref"], "description": words}),
        // Nothing stands beside a reference there.
        Dialect::V3 => json!({"allOf": [reference], "description": words}),
    }
}

fn selectable(resource: &Resource, written: &mut Value) {
    if !resource.selectable_fields.is_empty() {
        let fields: Vec<Value> = resource.selectable_fields.iter().map(|f| json!({"fieldPath": f.label})).collect();
        written["x-kubernetes-selectable-fields"] = fields.into();
    }
}

/// A node of a schema, and all below it.
fn node(source: &Value, dialect: Dialect) -> Value {
    let Some(source) = source.as_object() else { return json!({}) };
    let mut written: Map<String, Value> = source.clone();
    let flag = |name: &str| source.get(name) == Some(&Value::Bool(true));
    if dialect == Dialect::V2 {
        simplify(&mut written, source);
    } else if flag("x-kubernetes-int-or-string") {
        either_way(&mut written);
    }
    if let Some(properties) = written.get_mut("properties").and_then(Value::as_object_mut) {
        properties.values_mut().for_each(|property| *property = node(property, dialect));
    }
    for name in ["items", "additionalProperties"] {
        if let Some(below) = written.get_mut(name).filter(|v| v.is_object()) {
            *below = node(below, dialect);
        }
    }
    if flag("x-kubernetes-embedded-resource") && !(dialect == Dialect::V2 && flag("x-kubernetes-preserve-unknown-fields")) {
        embed(&mut written, dialect);
    }
    Value::Object(written)
}

/// Takes out what clients of version 2 can't read, or read as more than is meant.
fn simplify(written: &mut Map<String, Value>, source: &Map<String, Value>) {
    let flag = |name: &str| source.get(name) == Some(&Value::Bool(true));
    for name in ["allOf", "anyOf", "oneOf", "not", "nullable"] {
        written.remove(name);
    }
    let (nullable, preserve) = (flag("nullable"), flag("x-kubernetes-preserve-unknown-fields"));
    if nullable || preserve {
        written.remove("items");
        written.remove("properties");
    }
    let kind = source.get("type").and_then(Value::as_str).unwrap_or("");
    if nullable || (kind == "array" && !written.contains_key("items")) || (kind == "object" && preserve) {
        written.remove("type");
    }
    let nullable_property = |name: &str| source.get("properties").is_some_and(|p| p[name]["nullable"] == true);
    let nullable_values = source.get("additionalProperties").is_some_and(|values| values["nullable"] == true);
    if let Some(required) = written.get_mut("required").and_then(Value::as_array_mut) {
        required.retain(|name| !nullable_values && !nullable_property(name.as_str().unwrap_or("")));
        if required.is_empty() {
            written.remove("required");
        }
    }
}

/// Says what an integer or a string is, unless the definition has said so.
fn either_way(written: &mut Map<String, Value>) {
    let either = json!([{"type": "integer"}, {"type": "string"}]);
    match written.get("anyOf") {
        _ if written.get("allOf").is_some_and(|all| all[0]["anyOf"] == either) => {}
        Some(any) if *any == either => {}
        None => drop(written.insert("anyOf".into(), either)),
        Some(_) => {
            let mut all = vec![json!({"anyOf": either})];
            all.extend(written.get("allOf").and_then(Value::as_array).into_iter().flatten().cloned());
            written.insert("allOf".into(), all.into());
        }
    }
}

/// An object within another has a type and metadata too.
fn embed(written: &mut Map<String, Value>, dialect: Dialect) {
    let version = "apiVersion defines the versioned schema of this representation of an object.";
    let kind = "kind is a string value representing the type of this object. In CamelCase.";
    let properties = written.entry("properties").or_insert_with(|| json!({}));
    properties["apiVersion"] = json!({"type": "string", "description": format!("{version} {CONVENTIONS}#resources")});
    properties["kind"] = json!({"type": "string", "description": format!("{kind} {CONVENTIONS}#types-kinds")});
    properties["metadata"] = meta("ObjectMeta", &format!("Standard object's metadata. {CONVENTIONS}#metadata"), dialect);
    let required = written.entry("required").or_insert_with(|| json!([]));
    if let Some(list) = required.as_array_mut() {
        for name in ["kind", "apiVersion"] {
            if !list.iter().any(|r| r == name) {
                list.push(name.into());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_each_version_can_say() {
        let check = |source: Value, v2: Value, v3: Value| {
            assert_eq!((node(&source, Dialect::V2), node(&source, Dialect::V3)), (v2, v3), "{source}");
        };
        let either = json!([{"type": "integer"}, {"type": "string"}]);
        check(json!({"x-kubernetes-int-or-string": true}), json!({"x-kubernetes-int-or-string": true}), json!({"x-kubernetes-int-or-string": true, "anyOf": either}));
        check(json!({"type": "string", "nullable": true, "description": "d"}), json!({"description": "d"}), json!({"type": "string", "nullable": true, "description": "d"}));
        let free = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {"a": {"type": "string"}}});
        check(free.clone(), json!({"x-kubernetes-preserve-unknown-fields": true}), free);
        let required = json!({"type": "object", "required": ["a", "b"], "properties": {"a": {"type": "string", "nullable": true}, "b": {"type": "string", "oneOf": []}}});
        let simple = json!({"type": "object", "required": ["b"], "properties": {"a": {}, "b": {"type": "string"}}});
        check(required.clone(), simple, required);
        let inner = node(&json!({"type": "object", "x-kubernetes-embedded-resource": true, "properties": {"spec": {"type": "object"}}}), Dialect::V3);
        assert_eq!(inner["required"], json!(["kind", "apiVersion"]));
        assert!(inner["properties"]["metadata"]["allOf"][0]["$ref"].as_str().is_some_and(|r| r.ends_with("ObjectMeta")));
    }
}
