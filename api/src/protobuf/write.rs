//! JSON written as Kubernetes' protobuf.
//!
//! What the JSON has is written, and nothing else: Go clients make zero values of all that isn't there, and tell a
//! pointer's absence from its zero value by that. (Upstream also writes the zero values of what is no pointer, which
//! reads the same.)

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use jiff::Timestamp;
use serde_json::{Map, Value};

use super::{Error, MAGIC, definition, numbers};
use crate::schema::{Kind, Object, Other, Schema};

/// A whole body: the envelope with the object in it.
pub fn encode(object: &Value) -> Result<Vec<u8>, Error> {
    let text = |key: &str| object.get(key).and_then(Value::as_str).unwrap_or("");
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    Ok(envelope(api_version, kind, &message_of(api_version, kind, object)?))
}

/// The message of an object, as it stands within an envelope or a list.
pub fn message_of(api_version: &str, kind: &str, object: &Value) -> Result<Vec<u8>, Error> {
    let schema = definition(api_version, kind).and_then(Schema::builtin);
    let schema = schema.ok_or_else(|| Error::UnknownKind { kind: kind.to_owned(), api_version: api_version.to_owned() })?;
    let mut out = Vec::with_capacity(1024);
    message(schema, object, &mut out);
    Ok(out)
}

/// The message of a `PartialObjectMetadata`.
pub fn partial(metadata: &Value) -> Vec<u8> {
    let mut out = Vec::with_capacity(512);
    meta("ObjectMeta", metadata, &mut out);
    out
}

/// The same, cut from the message of a whole object: its metadata is the first field of each.
pub fn partial_of(message: &[u8]) -> Option<&[u8]> {
    let mut rest = message.strip_prefix(&[1 << 3 | 2])?;
    let length = usize::try_from(super::varint(&mut rest).ok()?).ok()?;
    message.get(..message.len() - rest.len() + length)
}

/// The first field of a list's message: its metadata. The items follow, each a field of number 2.
pub fn list_meta(metadata: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    meta("ListMeta", metadata, &mut out);
    out
}

fn meta(kind: &str, metadata: &Value, out: &mut Vec<u8>) {
    if let Some(schema) = Schema::builtin(&format!("io.k8s.apimachinery.pkg.apis.meta.v1.{kind}")) {
        nested(1, out, |out| message(schema, metadata, out));
    }
}

/// Puts a message into the envelope that says what it is: `runtime.Unknown` behind the magic bytes.
pub fn envelope(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(raw.len() + 64);
    out.extend_from_slice(MAGIC);
    nested(1, &mut out, |out| {
        field(1, api_version.as_bytes(), out);
        field(2, kind.as_bytes(), out);
    });
    field(2, raw, &mut out);
    out
}

/// Appends a watch's frame: four bytes of length, then a `WatchEvent` whose object is a whole body.
pub fn event(kind: &str, body: &[u8], out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    field(1, kind.as_bytes(), out);
    nested(2, out, |out| field(1, body, out));
    let length = u32::try_from(out.len() - start - 4).unwrap_or(u32::MAX);
    out[start..start + 4].copy_from_slice(&length.to_be_bytes());
}

fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn key(number: u32, wire: u8, out: &mut Vec<u8>) {
    varint(u64::from(number) << 3 | u64::from(wire), out);
}

/// Appends a field of bytes.
pub fn field(number: u32, bytes: &[u8], out: &mut Vec<u8>) {
    key(number, 2, out);
    varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

fn number(field: u32, value: u64, out: &mut Vec<u8>) {
    key(field, 0, out);
    varint(value, out);
}

/// Appends a field that is a message. Most are short, so that their length takes the one byte left for it.
fn nested(number: u32, out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    key(number, 2, out);
    let start = out.len();
    out.push(0);
    write(out);
    let length = out.len() - start - 1;
    if length < 0x80 {
        out[start] = length as u8;
    } else {
        let mut bytes = Vec::with_capacity(5);
        varint(length as u64, &mut bytes);
        out.splice(start..=start, bytes);
    }
}

/// The content of a message.
fn message(schema: &Schema, value: &Value, out: &mut Vec<u8>) {
    match (&schema.kind, value) {
        (Kind::Object(object), Value::Object(map)) => {
            if let Some(numbers) = numbers().get(object.definition) {
                members(object, map, numbers, 0, out);
            }
        }
        // A named list is a message whose first field repeats.
        (Kind::List(_), _) => member(schema, 1, value, out),
        (Kind::Quantity, Value::String(text)) => field(1, text.as_bytes(), out),
        (Kind::Quantity, _) => field(1, value.to_string().as_bytes(), out),
        (Kind::IntOrString, Value::String(text)) => {
            number(1, 1, out);
            number(2, 0, out);
            field(3, text.as_bytes(), out);
        }
        (Kind::IntOrString, _) => {
            number(1, 0, out);
            number(2, value.as_i64().unwrap_or(0) as u64, out);
            field(3, b"", out);
        }
        (Kind::Time | Kind::MicroTime, Value::String(text)) => {
            if let Ok(time) = text.parse::<Timestamp>() {
                number(1, time.as_second() as u64, out);
                number(2, i64::from(time.subsec_nanosecond()) as u64, out);
            }
        }
        (Kind::SchemaOr(other), _) => schema_or(*other, value, out),
        // Raw JSON within a message: RawExtension, FieldsV1, JSON.
        (Kind::Any, _) => field(1, value.to_string().as_bytes(), out),
        _ => {}
    }
}

/// The members of an object whose paths of numbers are these, from the `depth`th number on.
fn members(object: &Object, map: &Map<String, Value>, mut paths: &[(&'static str, Vec<u32>)], depth: usize, out: &mut Vec<u8>) {
    while let Some((name, path)) = paths.first() {
        let Some(number) = path.get(depth) else { return };
        if path.len() == depth + 1 {
            paths = &paths[1..];
            if let (Some(value), Some(property)) = (map.get(*name).filter(|v| !v.is_null()), object.property(name)) {
                member(&property.schema, *number, value, out);
            }
            continue;
        }
        let together = paths.iter().take_while(|(_, p)| p.get(depth) == Some(number)).count();
        let (inlined, rest) = paths.split_at(together);
        if inlined.iter().any(|(name, _)| map.contains_key(*name)) {
            nested(*number, out, |out| members(object, map, inlined, depth + 1, out));
        }
        paths = rest;
    }
}

/// One property, as one field or several.
fn member(schema: &Schema, number_: u32, value: &Value, out: &mut Vec<u8>) {
    match (&schema.kind, value) {
        (Kind::List(list), Value::Array(items)) => items.iter().for_each(|item| member(&list.items, number_, item, out)),
        (Kind::Map(values), Value::Object(map)) => {
            for (name, value) in map {
                nested(number_, out, |out| {
                    field(1, name.as_bytes(), out);
                    match &values.kind {
                        Kind::List(_) => nested(2, out, |out| message(values, value, out)),
                        _ => member(values, 2, value, out),
                    }
                });
            }
        }
        (Kind::String, Value::String(text)) => field(number_, text.as_bytes(), out),
        (Kind::Bytes, Value::String(text)) => field(number_, &BASE64.decode(text).unwrap_or_default(), out),
        (Kind::Boolean, Value::Bool(value)) => number(number_, u64::from(*value), out),
        (Kind::Int32 | Kind::Int64, Value::Number(value)) => {
            let value = value.as_i64().or_else(|| value.as_f64().map(|f| f as i64)).unwrap_or(0);
            number(number_, value as u64, out);
        }
        (Kind::Number, Value::Number(value)) => {
            key(number_, 1, out);
            out.extend_from_slice(&value.as_f64().unwrap_or(0.0).to_bits().to_le_bytes());
        }
        (Kind::Object(_), Value::Object(_)) | (Kind::Quantity | Kind::IntOrString | Kind::Time | Kind::MicroTime | Kind::Any | Kind::SchemaOr(_), _) => {
            nested(number_, out, |out| message(schema, value, out));
        }
        _ => {}
    }
}

/// The content of a message with a field for each form.
fn schema_or(other: Other, value: &Value, out: &mut Vec<u8>) {
    let schema = |number: u32, value: &Value, out: &mut Vec<u8>| {
        if let Some(schema) = Schema::json_schema() {
            nested(number, out, |out| message(schema, value, out));
        }
    };
    match (other, value) {
        (Other::Bool, Value::Bool(allows)) => number(1, u64::from(*allows), out),
        (Other::Bool, _) => {
            number(1, 1, out);
            schema(2, value, out);
        }
        (Other::List, Value::Array(all)) => all.iter().for_each(|one| schema(2, one, out)),
        (Other::Strings, Value::Array(all)) => all.iter().filter_map(Value::as_str).for_each(|text| field(2, text.as_bytes(), out)),
        (Other::List | Other::Strings, _) => schema(1, value, out),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::decode;
    use super::*;

    /// What is written reads as what it was.
    fn check(object: Value) {
        let bytes = encode(&object).expect("bytes");
        assert_eq!(decode(&bytes).expect("an object"), object);
    }

    #[test]
    fn every_sort_of_field_comes_back() {
        let time = "2026-01-02T03:04:05Z";
        let fields = json!({"f:metadata": {"f:labels": {".": {}}}});
        let managed = json!([{"manager": "m", "operation": "Apply", "apiVersion": "v1", "time": time, "fieldsType": "FieldsV1", "fieldsV1": fields}]);
        check(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "a", "creationTimestamp": time, "generation": 3, "labels": {"x": "", "y": "z"}, "managedFields": managed},
            "spec": {
                "containers": [{
                    "name": "c", "resources": {"limits": {"cpu": "100m"}}, "args": ["", "-v"],
                    "livenessProbe": {"httpGet": {"port": "web"}, "periodSeconds": 0},
                    "readinessProbe": {"tcpSocket": {"port": -1}}, "env": [{"name": "E", "value": "v".repeat(300)}],
                }],
                "volumes": [{"name": "v", "emptyDir": {}}, {"name": "w", "configMap": {"name": "cm", "optional": false}}],
                "securityContext": {"supplementalGroups": [1, 2, -3]}, "terminationGracePeriodSeconds": 30, "hostNetwork": false,
            },
        }));
        check(json!({"apiVersion": "v1", "kind": "Secret", "metadata": {}, "data": {"k": "AAECAw=="}, "type": "Opaque"}));
        check(json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "l"},
            "spec": {"renewTime": "2026-01-02T03:04:05.678901Z", "leaseDurationSeconds": 15},
        }));
        check(json!({"apiVersion": "apps/v1", "kind": "ControllerRevision", "metadata": {}, "data": {"spec": [1, null]}, "revision": 1}));
        check(json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": {"extra": {"k": ["a", "b"]}}}));
        let details = json!({"name": "x", "kind": "pods", "causes": [{"reason": "FieldValueInvalid", "field": "spec"}]});
        check(json!({"apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure", "code": 404, "details": details}));
    }

    #[test]
    fn definitions_of_custom_resources() {
        let schema = json!({
            "type": "object", "default": {"a": [1]}, "enum": ["x", null, 2.5], "maximum": 1.5,
            "properties": {
                "a": {"type": "array", "items": {"type": "string"}}, "b": {"items": [{"type": "string"}, {"type": "integer"}]},
                "c": {"additionalProperties": true}, "d": {"additionalProperties": {"type": "string"}}, "e": {"additionalItems": false},
                "f": {"dependencies": {"x": ["y", "z"], "s": {"type": "object"}}},
            },
        });
        check(json!({
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "a.b"},
            "spec": {"group": "b", "versions": [{
                "name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema},
                "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.replicas"}},
            }]},
        }));
    }

    #[test]
    fn metadata_alone() {
        let object = json!({"metadata": {"name": "a", "labels": {"x": "y".repeat(200)}}, "data": {"k": "v"}});
        let message = message_of("v1", "ConfigMap", &object).expect("a message");
        assert_eq!(partial_of(&message), Some(&partial(&object["metadata"])[..]));
        assert_eq!(partial_of(b""), None);
    }

    #[test]
    fn every_property_has_a_number() {
        for name in crate::schema::definition_names() {
            let Some(Kind::Object(object)) = Schema::builtin(name).map(|s| &s.kind) else { panic!("{name} is no object") };
            let known = numbers().get(name).map_or(&[][..], Vec::as_slice);
            let missing = object.properties.iter().map(|p| p.name.as_ref()).filter(|p| !matches!(*p, "kind" | "apiVersion"));
            let missing: Vec<&str> = missing.filter(|property| !known.iter().any(|(name, _)| name == property)).collect();
            assert!(missing.is_empty(), "{name}: {missing:?}");
        }
    }

    #[test]
    fn every_kind_has_a_message() {
        for resource in crate::resource::catalogue() {
            assert!(message_of(&resource.api_version(), &resource.kind, &json!({})).is_ok(), "{}", resource.kind);
        }
        assert!(message_of("autoscaling/v1", "Scale", &json!({})).is_ok());
    }

    #[test]
    fn frames() {
        let mut out = Vec::new();
        event("ADDED", b"body", &mut out);
        assert_eq!(out, b"\0\0\0\x0f\x0a\x05ADDED\x12\x06\x0a\x04body");
    }
}
