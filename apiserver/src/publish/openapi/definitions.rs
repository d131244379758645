//! Definitions, written from the schemas.

use serde_json::{Map, Value, json};
use skiff_api::resource::Resource;
use skiff_api::schema::{Kind, ListType, Object, PatchStrategy, Presence, Property, Schema, enum_values};
use std::sync::Arc;

use super::{Definitions, Dialect, Used, custom, definition_name, descriptions, list_name};

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";
const QUANTITY: &str = "io.k8s.apimachinery.pkg.api.resource.Quantity";
const INT_OR_STRING: &str = "io.k8s.apimachinery.pkg.util.intstr.IntOrString";

/// The definitions of the resources, those in `used`, and all that these refer to.
pub(super) fn closure(resources: &[&Arc<Resource>], used: Used, dialect: Dialect) -> Definitions {
    let mut found = Definitions::new();
    let mut writer = Writer { dialect, wanted: used.into_iter().collect() };
    for resource in resources {
        let name = definition_name(resource);
        if let Some(own) = resource.custom() {
            writer.wanted.extend(["ObjectMeta", "ListMeta"].map(|meta| format!("{META}.{meta}")));
            let mut definition = custom::kind(resource, own, dialect);
            mark(&mut definition, &[gvk(resource, &resource.kind)]);
            found.insert(name.clone(), definition);
            let mut list = custom::list(resource, &name, dialect);
            mark(&mut list, &[gvk(resource, &resource.list_kind())]);
            found.insert(list_name(resource), list);
            continue;
        }
        if resource.verbs.has("list") {
            let mut list = writer.list(resource, &name);
            mark(&mut list, &[gvk(resource, &resource.list_kind())]);
            found.insert(list_name(resource), list);
        }
        writer.wanted.push(name);
    }
    while let Some(name) = writer.wanted.pop() {
        if found.contains_key(&name) {
            continue;
        }
        let mut definition = match Schema::builtin(&name) {
            Some(schema) => writer.definition(schema),
            None => scalar(&name, dialect),
        };
        if let Some(description) = descriptions::of(&name) {
            definition["description"] = description.clone();
        }
        let kinds: Vec<Value> = resources.iter().filter(|r| definition_name(r) == name).map(|r| gvk(r, &r.kind)).collect();
        mark(&mut definition, &kinds);
        found.insert(name, definition);
    }
    found
}

fn gvk(resource: &Resource, kind: &str) -> Value {
    json!({"group": resource.group, "version": resource.version, "kind": kind})
}

fn mark(definition: &mut Value, kinds: &[Value]) {
    if !kinds.is_empty() {
        definition["x-kubernetes-group-version-kind"] = kinds.into();
    }
}

/// Definitions that are no objects.
fn scalar(name: &str, dialect: Dialect) -> Value {
    match (name, dialect) {
        (INT_OR_STRING, Dialect::V3) => json!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]}),
        (INT_OR_STRING, Dialect::V2) => json!({"type": "string", "format": "int-or-string"}),
        (QUANTITY, Dialect::V3) => json!({"oneOf": [{"type": "string"}, {"type": "number"}]}),
        (QUANTITY, Dialect::V2) => json!({"type": "string"}),
        (name, _) if name.ends_with(".WatchEvent") => {
            let object = json!({"type": "object", "description": "The object, its last state before it was deleted, a bookmark, or a Status"});
            json!({"type": "object", "required": ["type", "object"], "properties": {"type": {"type": "string"}, "object": object}})
        }
        (name, _) if name.ends_with("Time") => json!({"type": "string", "format": "date-time"}),
        _ => json!({"type": "object"}),
    }
}

/// The text that a property is, or is a list or map of.
fn text_of(schema: &Schema) -> &Schema {
    match &schema.kind {
        Kind::List(list) => &list.items,
        Kind::Map(values) => values,
        _ => schema,
    }
}

/// With the value that Go has where there is none, as upstream's version 3 says it.
fn with_zero(schema: &Schema, written: Value) -> Value {
    let zero = match &schema.kind {
        Kind::String => json!(""),
        Kind::Int32 | Kind::Int64 | Kind::Number => json!(0),
        Kind::Boolean => json!(false),
        Kind::Object(object) if !object.definition.is_empty() => json!({}),
        _ => return written,
    };
    let mut written = if written.get("$ref").is_some() { json!({"allOf": [written]}) } else { written };
    written["default"] = zero;
    written
}

struct Writer {
    dialect: Dialect,
    /// Definitions that something refers to.
    wanted: Vec<String>,
}

impl Writer {
    fn reference(&mut self, name: &str) -> Value {
        self.wanted.push(name.to_owned());
        json!({"$ref": self.dialect.reference(name)})
    }

    fn list(&mut self, resource: &Resource, item: &str) -> Value {
        let items = json!({"$ref": self.dialect.reference(item)});
        json!({
            "type": "object", "description": format!("{}List is a list of {}", resource.kind, resource.kind), "required": ["items"],
            "properties": {
                "apiVersion": {"type": "string"}, "kind": {"type": "string"},
                "items": {"type": "array", "items": items, "description": format!("The objects of kind {}", resource.kind)},
                "metadata": self.reference(&format!("{META}.ListMeta")),
            },
        })
    }

    /// A built-in definition.
    fn definition(&mut self, schema: &Schema) -> Value {
        match &schema.kind {
            Kind::Object(object) => self.object(object, schema.atomic),
            _ => self.schema(schema),
        }
    }

    fn object(&mut self, object: &Object, atomic: bool) -> Value {
        let mut definition = Map::from_iter([("type".to_owned(), json!("object"))]);
        let mut required: Vec<&Property> = object.properties.iter().filter(|p| p.required).collect();
        required.sort_by_key(|p| p.position);
        let required: Vec<&str> = required.iter().map(|p| p.name.as_ref()).collect();
        if !required.is_empty() {
            definition.insert("required".into(), json!(required));
        }
        if atomic {
            definition.insert("x-kubernetes-map-type".into(), "atomic".into());
        }
        if object.preserve_unknown {
            definition.insert("x-kubernetes-preserve-unknown-fields".into(), true.into());
        }
        if object.embedded {
            definition.insert("x-kubernetes-embedded-resource".into(), true.into());
        }
        if !object.properties.is_empty() {
            let properties: Map<String, Value> =
                object.properties.iter().map(|p| (p.name.to_string(), self.property(object.definition, p))).collect();
            definition.insert("properties".into(), properties.into());
        }
        definition.into()
    }

    fn property(&mut self, definition: &str, property: &Property) -> Value {
        let mut written = self.schema(&property.schema);
        if let Some(values) = enum_values(definition, &text_of(&property.schema).go_type) {
            match &property.schema.kind {
                Kind::List(_) => written["items"]["enum"] = values.clone(),
                Kind::Map(_) => written["additionalProperties"]["enum"] = values.clone(),
                _ => written["enum"] = values.clone(),
            }
        }
        if property.default.is_none() && property.presence == Presence::Always && self.dialect == Dialect::V3 {
            written = with_zero(&property.schema, written);
        }
        let description = descriptions::of_property(definition, &property.name);
        // In version 3, what stands beside a reference is ignored.
        if self.dialect == Dialect::V3 && written.get("$ref").is_some() && (description.is_some() || property.default.is_some()) {
            written = json!({"allOf": [written]});
        }
        if let Some(description) = description {
            written["description"] = description.clone();
        }
        if let Some(default) = &property.default {
            written["default"] = default.clone();
        }
        let PatchStrategy { merge, retain_keys, replace, key } = &property.patch;
        let strategies: Vec<&str> =
            [(*merge, "merge"), (*retain_keys, "retainKeys"), (*replace, "replace")].iter().filter(|(set, _)| *set).map(|(_, name)| *name).collect();
        if !strategies.is_empty() {
            written["x-kubernetes-patch-strategy"] = strategies.join(",").into();
        }
        if !key.is_empty() {
            written["x-kubernetes-patch-merge-key"] = key.as_ref().into();
        }
        written
    }

    /// What a list or map is of.
    fn part(&mut self, schema: &Schema) -> Value {
        let written = self.schema(schema);
        if self.dialect == Dialect::V3 { with_zero(schema, written) } else { written }
    }

    /// A schema where it is used: built-in objects and Kubernetes' own scalars are referred to.
    fn schema(&mut self, schema: &Schema) -> Value {
        match &schema.kind {
            Kind::Any | Kind::SchemaOr(_) => json!({"type": "object"}),
            Kind::Object(object) if !object.definition.is_empty() => self.reference(object.definition),
            Kind::Object(object) => self.object(object, schema.atomic),
            Kind::Map(values) => {
                let mut written = json!({"type": "object", "additionalProperties": self.part(values)});
                if schema.atomic {
                    written["x-kubernetes-map-type"] = "atomic".into();
                }
                written
            }
            Kind::List(list) => {
                let mut written = json!({"type": "array", "items": self.part(&list.items)});
                match &list.list_type {
                    ListType::Atomic => written["x-kubernetes-list-type"] = "atomic".into(),
                    ListType::Set => written["x-kubernetes-list-type"] = "set".into(),
                    ListType::Map(keys) => {
                        written["x-kubernetes-list-type"] = "map".into();
                        written["x-kubernetes-list-map-keys"] = json!(keys);
                    }
                }
                written
            }
            Kind::String => json!({"type": "string"}),
            Kind::Bytes => json!({"type": "string", "format": "byte"}),
            Kind::Quantity => self.reference(QUANTITY),
            Kind::Time => self.reference(&format!("{META}.Time")),
            Kind::MicroTime => self.reference(&format!("{META}.MicroTime")),
            Kind::IntOrString => self.reference(INT_OR_STRING),
            Kind::Int32 => json!({"type": "integer", "format": "int32"}),
            Kind::Int64 => json!({"type": "integer", "format": "int64"}),
            Kind::Number => json!({"type": "number", "format": "double"}),
            Kind::Boolean => json!({"type": "boolean"}),
        }
    }
}
