//! Decoding, guided by a schema: what Go's round trip through its types makes of a JSON value.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Map, Value};

use super::{Kind, Node, Object, Presence, Property, Schema};
use crate::quantity::Quantity;

impl Schema {
    /// Makes the value what Go's round trip would make of it. Fields that the schema doesn't know are dropped and
    /// their paths returned (`spec.containers[0].bogus`); nulls and empty values that Go doesn't write go, zero values
    /// that it always writes come; quantities, times and bytes get their canonical form. Doing it twice changes nothing.
    ///
    /// An error is a value of a wrong type, worded as Go's decoder words it. Custom resources are not checked here:
    /// their types are a matter of validation.
    pub fn prune(&self, value: &mut Value) -> Result<Vec<String>, String> {
        self.walk(value, Walk::default())
    }

    /// The same for what a strategic merge made: upstream reads that without a detour over JSON, and words its errors
    /// in other ways.
    pub fn prune_merged(&self, value: &mut Value) -> Result<Vec<String>, String> {
        self.walk(value, Walk { merged: true, ..Walk::default() })
    }

    fn walk(&self, value: &mut Value, mut walk: Walk) -> Result<Vec<String>, String> {
        walk.node(self, value)?;
        if let Kind::Object(object) = &self.kind
            && object.definition.is_empty()
        {
            // Of custom resources upstream tells what is unknown in metadata first, then the rest by the alphabet.
            walk.unknown.sort_by(|a, b| (!a.starts_with("metadata."), a).cmp(&(!b.starts_with("metadata."), b)));
        }
        Ok(walk.unknown)
    }

    /// Puts what the value has in its canonical form and checks its types, as [`Schema::prune`] does, but takes nothing
    /// out and fills nothing in: for a configuration to be applied, which owns exactly what it says. The paths of unknown
    /// fields are returned.
    pub fn canonicalize(&self, value: &mut Value) -> Result<Vec<String>, String> {
        let mut walk = Walk { keeps: true, ..Walk::default() };
        walk.node(self, value)?;
        Ok(walk.unknown)
    }

    /// What upstream says of a value that its converter of untyped objects can't put where this type is.
    fn unconvertible(&self, value: &Value) -> String {
        let from = match value {
            Value::Null => "invalid",
            Value::Bool(_) => "bool",
            Value::Number(n) if n.is_f64() => "float64",
            Value::Number(_) => "int64",
            Value::String(_) => "string",
            Value::Array(_) => "slice",
            Value::Object(_) => "map",
        };
        let plain = match self.kind {
            Kind::Map(_) => return format!("cannot restore map from {from}"),
            Kind::List(_) | Kind::Bytes => return format!("cannot restore slice from {from}"),
            Kind::Object(_) => return format!("cannot restore struct from: {from}"),
            Kind::Int32 => "int32",
            Kind::Int64 => "int64",
            Kind::Number => "float64",
            Kind::Boolean => "bool",
            _ => "string",
        };
        // What Go's own rules of conversion allow, and only those of JSON forbid.
        match (plain, value) {
            ("string", Value::Number(n)) if n.is_i64() => format!("cannot convert {from} to {}", self.go_type()),
            ("int32" | "int64", Value::Number(_)) => format!("cannot convert {from} to {}", self.go_type()),
            _ => format!("unrecognized type: {plain}"),
        }
    }

    /// The value that Go has for this type when none was given.
    pub fn zero(&self) -> Value {
        match &self.kind {
            Kind::Object(object) => {
                let mut map = Map::new();
                fill(object, &mut map);
                Value::Object(map)
            }
            Kind::String => "".into(),
            Kind::Quantity => "0".into(),
            Kind::IntOrString | Kind::Int32 | Kind::Int64 | Kind::Number => 0.into(),
            Kind::Boolean => false.into(),
            Kind::Bytes | Kind::Time | Kind::MicroTime | Kind::Map(_) | Kind::List(_) | Kind::Any | Kind::SchemaOr(_) => Value::Null,
        }
    }

    /// The name of the type in Go, as decoding errors show it.
    fn go_type(&self) -> String {
        if !self.go_type.is_empty() {
            return self.go_type.to_string();
        }
        match &self.kind {
            Kind::List(list) => format!("[]{}", list.items.go_type()),
            Kind::Map(values) if matches!(values.kind, Kind::Quantity) => "v1.ResourceList".into(),
            Kind::Map(values) => format!("map[string]{}", values.go_type()),
            Kind::String | Kind::Time | Kind::MicroTime => "string".into(),
            Kind::Bytes => "[]uint8".into(),
            Kind::Quantity => "resource.Quantity".into(),
            Kind::IntOrString | Kind::Int32 => "int32".into(),
            Kind::Int64 => "int64".into(),
            Kind::Number => "float64".into(),
            Kind::Boolean => "bool".into(),
            Kind::Object(_) | Kind::Any | Kind::SchemaOr(_) => "interface {}".into(),
        }
    }
}

/// Adds the properties that are always written.
fn fill(object: &Object, map: &mut Map<String, Value>) {
    for property in &object.properties {
        let zero = match property.presence {
            Presence::Always => Property::zero,
            Presence::AlwaysNull => |_: &Property| Value::Null,
            Presence::Given | Presence::OmitEmpty => continue,
        };
        if !map.contains_key(property.name.as_ref()) {
            map.insert(property.name.to_string(), zero(property));
        }
    }
}

impl Property {
    fn zero(&self) -> Value {
        self.schema.zero()
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(b) => !b,
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::String(s) => s.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
    }
}

/// One step of the path to the value at hand.
enum Step {
    /// A field, and the embedded struct that it belongs to.
    Field(String, &'static str),
    Key(String),
    Index(usize),
}

#[derive(Default)]
struct Walk {
    path: Vec<Step>,
    /// The Go struct that the value at hand is a field of; empty in custom resources.
    within: &'static str,
    /// Nothing is taken out or filled in.
    keeps: bool,
    /// The value is a strategic merge's.
    merged: bool,
    unknown: Vec<String>,
}

impl Walk {
    fn node(&mut self, schema: &Schema, value: &mut Value) -> Result<(), String> {
        if value.is_null() {
            if !self.within.is_empty() && !self.keeps {
                *value = schema.zero();
            }
            return Ok(());
        }
        match (&schema.kind, &mut *value) {
            (Kind::Any, _) => Ok(()),
            (Kind::SchemaOr(_), Value::Array(all)) => all.iter_mut().filter(|one| one.is_object()).try_for_each(|one| self.json_schema(one)),
            (Kind::SchemaOr(_), Value::Object(_)) => self.json_schema(value),
            (Kind::SchemaOr(_), _) => Ok(()),
            (Kind::Object(object), Value::Object(map)) => self.object(object, map),
            (Kind::Map(values), Value::Object(map)) => self.map(values, map),
            (Kind::List(list), Value::Array(items)) => {
                for (i, item) in items.iter_mut().enumerate() {
                    self.path.push(Step::Index(i));
                    self.node(&list.items, item)?;
                    self.path.pop();
                }
                Ok(())
            }
            _ => self.scalar(schema, value),
        }
    }

    /// Go reads these on their own: what isn't known there is dropped, but not told.
    fn json_schema(&mut self, value: &mut Value) -> Result<(), String> {
        let mut walk = Walk { keeps: self.keeps, path: std::mem::take(&mut self.path), ..Self::default() };
        let result = Schema::json_schema().map_or(Ok(()), |schema| walk.node(schema, value));
        self.path = walk.path;
        result
    }

    fn object(&mut self, object: &Object, map: &mut Map<String, Value>) -> Result<(), String> {
        let outer = std::mem::replace(&mut self.within, object.name);
        let custom = object.name.is_empty();
        let mut gone: Vec<String> = Vec::new();
        for (name, value) in map.iter_mut() {
            let Some(property) = object.property(name) else {
                if !object.preserve_unknown {
                    self.path.push(Step::Field(name.clone(), ""));
                    self.unknown.push(self.shown(true));
                    self.path.pop();
                    gone.push(name.clone());
                }
                continue;
            };
            if value.is_null() && (!custom || (!property.schema.nullable && property.default.is_none())) {
                gone.push(name.clone());
                continue;
            }
            self.path.push(Step::Field(name.clone(), property.inlined));
            self.node(&property.schema, value)?;
            self.path.pop();
            let unset = is_empty(value);
            if property.off || property.presence == Presence::OmitEmpty && unset {
                gone.push(name.clone());
            } else if property.presence == Presence::Always && unset && value.is_array() && !custom {
                // Go's storage knows no difference between an empty list and none.
                *value = Value::Null;
            }
        }
        if !self.keeps {
            for name in gone {
                map.remove(&name);
            }
            fill(object, map);
        }
        self.within = outer;
        Ok(())
    }

    fn map(&mut self, values: &Node, map: &mut Map<String, Value>) -> Result<(), String> {
        if self.within.is_empty() && !self.keeps && !values.nullable {
            map.retain(|_, value| !value.is_null());
        }
        for (name, value) in map.iter_mut() {
            let scalar = !matches!(values.kind, Kind::Object(_) | Kind::Map(_) | Kind::List(_));
            if !scalar {
                self.path.push(Step::Key(name.clone()));
            }
            self.node(values, value)?;
            if scalar {
                // A list of resources is kept to thousandths, by upstream's defaulting.
                if let (Kind::Quantity, Ok(quantity)) = (&values.kind, Quantity::parse(value.as_str().unwrap_or(""))) {
                    *value = quantity.round_up_to_milli().to_string().into();
                }
            } else {
                self.path.pop();
            }
        }
        Ok(())
    }

    fn scalar(&mut self, schema: &Schema, value: &mut Value) -> Result<(), String> {
        if self.within.is_empty() {
            return Ok(());
        }
        let canonical = match (&schema.kind, &*value) {
            (Kind::String, Value::String(_)) | (Kind::Boolean, Value::Bool(_)) | (Kind::Number, Value::Number(_)) => None,
            (Kind::Int64, Value::Number(n)) if n.is_i64() => None,
            (Kind::Int32, Value::Number(n)) if is_int32(n) => None,
            (Kind::IntOrString, Value::String(_)) => None,
            (Kind::IntOrString, Value::Number(n)) if is_int32(n) => None,
            (Kind::Bytes, Value::String(text)) => decode_base64(text)?,
            (Kind::Quantity, Value::String(text)) => Some(canonical_quantity(text.trim())?),
            (Kind::Quantity, other) => Some(canonical_quantity(&other.to_string())?),
            (Kind::Time, Value::String(text)) => Some(read_time(text, "2006-01-02T15:04:05Z07:00")?.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()),
            (Kind::MicroTime, Value::String(text)) => {
                Some(read_time(text, "2006-01-02T15:04:05.000000Z07:00")?.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string())
            }
            (kind, other) if self.keeps && !matches!(kind, Kind::IntOrString) => {
                let wanted = match kind {
                    Kind::List(_) => "list",
                    Kind::Object(_) | Kind::Map(_) => "map",
                    Kind::Boolean => "boolean",
                    Kind::Int32 | Kind::Int64 | Kind::Number => "numeric (int or float)",
                    _ => "string",
                };
                let shown = match other {
                    Value::String(text) => text.clone(),
                    other => other.to_string(),
                };
                return Err(format!(".{}: expected {wanted}, got &{{{shown}}}", self.shown(true)));
            }
            // What reads itself is no field to its decoder.
            (Kind::Time | Kind::MicroTime | Kind::IntOrString, other) if self.merged => {
                return Err(format!("json: cannot unmarshal {} into Go value of type {}", shown_value(other), schema.go_type()));
            }
            (_, other) if self.merged => return Err(schema.unconvertible(other)),
            (_, other) => {
                let what = match (&schema.kind, other) {
                    (Kind::Int32 | Kind::Int64, number @ Value::Number(_)) => format!("number {number}"),
                    _ => shown_value(other).to_owned(),
                };
                let (within, field, kind) = (self.within, self.shown(false), schema.go_type());
                return Err(format!("json: cannot unmarshal {what} into Go struct field {within}.{field} of type {kind}"));
            }
        };
        if let Some(canonical) = canonical {
            *value = canonical.into();
        }
        Ok(())
    }

    /// The path to the value at hand. Go's strict errors name list items and keys, its decoding errors embedded structs.
    fn shown(&self, strict: bool) -> String {
        let mut path = String::new();
        for step in &self.path {
            let parts = match step {
                Step::Field(name, inlined) => [if strict { "" } else { inlined }, name],
                Step::Key(name) if strict => ["", name],
                Step::Index(i) if strict => {
                    path.push_str(&format!("[{i}]"));
                    continue;
                }
                Step::Key(_) | Step::Index(_) => continue,
            };
            for part in parts.into_iter().filter(|part| !part.is_empty()) {
                if !path.is_empty() {
                    path.push('.');
                }
                path.push_str(part);
            }
        }
        path
    }
}

fn is_int32(number: &serde_json::Number) -> bool {
    number.as_i64().is_some_and(|n| i32::try_from(n).is_ok())
}

/// What Go calls a JSON value of this sort.
pub fn shown_value(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn canonical_quantity(text: &str) -> Result<String, String> {
    Quantity::parse(text).map(|q| q.to_string()).map_err(|e| e.to_string())
}

/// The text in canonical base64 where it isn't yet. The offset of a fault is the one that Go's decoder reports.
fn decode_base64(text: &str) -> Result<Option<String>, String> {
    if STANDARD.decode(text).is_ok() {
        return Ok(None);
    }
    let plain: String = text.chars().filter(|c| !matches!(c, '\r' | '\n')).collect();
    match STANDARD.decode(&plain) {
        Ok(bytes) => Ok(Some(STANDARD.encode(bytes))),
        Err(e) => {
            let offset = match e {
                base64::DecodeError::InvalidByte(offset, _) | base64::DecodeError::InvalidLastSymbol(offset, _) => offset,
                base64::DecodeError::InvalidLength(_) | base64::DecodeError::InvalidPadding => plain.len() / 4 * 4,
            };
            Err(format!("illegal base64 data at input byte {offset}"))
        }
    }
}

fn read_time(text: &str, layout: &str) -> Result<Timestamp, String> {
    // jiff takes a space or a lower-case t between date and time, and no seconds: Go's layout doesn't.
    let formed = text.len() >= 20 && text.as_bytes()[10] == b'T' && text.as_bytes()[16] == b':' && !text.contains('[');
    let micros = layout.contains(".000000");
    let exact = !micros || text.get(19..26).is_some_and(|part| part.starts_with('.') && part[1..].bytes().all(|b| b.is_ascii_digit()));
    if let Some(time) = (formed && exact).then(|| text.parse::<Timestamp>().ok()).flatten() {
        return Ok(time);
    }
    if let Some(rest) = text.get(20..).filter(|_| formed && !micros && text.as_bytes()[19] == b'Z') {
        return Err(format!("parsing time {text:?}: extra text: {rest:?}"));
    }
    let (rest, element) = unreadable_part(text);
    let element = if micros && element == "Z07:00" && !exact { ".000000" } else { element };
    Err(format!("parsing time {text:?} as {layout:?}: cannot parse {rest:?} as {element:?}"))
}

/// The rest of the text where it leaves RFC 3339, and the element of Go's layout that it should have had there.
fn unreadable_part(text: &str) -> (&str, &'static str) {
    let mut rest = text;
    for (element, digits) in [("2006", 4), ("-", 0), ("01", 2), ("-", 0), ("02", 2), ("T", 0), ("15", 2), (":", 0), ("04", 2), (":", 0), ("05", 2)] {
        let len = if digits == 0 { 1 } else { digits };
        let good = rest.is_char_boundary(len.min(rest.len()))
            && rest.len() >= len
            && if digits == 0 { rest.starts_with(element) } else { rest[..len].bytes().all(|b| b.is_ascii_digit()) };
        if !good {
            return (rest, element);
        }
        rest = &rest[len..];
    }
    (rest, "Z07:00")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn prune(definition: &str, mut value: Value) -> Result<(Value, Vec<String>), String> {
        let unknown = Schema::builtin(definition).expect(definition).prune(&mut value)?;
        Ok((value, unknown))
    }

    #[test]
    fn schemas_within_schemas() {
        let given = json!({
            "format": "", "x": 1,
            "items": {"type": "object", "format": "", "x": 1},
            "additionalProperties": {"additionalProperties": {"title": "", "type": "string"}},
            "dependencies": {"a": ["b"], "c": {"id": "", "type": "string"}},
        });
        let expected = json!({
            "items": {"type": "object"},
            "additionalProperties": {"additionalProperties": {"type": "string"}},
            "dependencies": {"a": ["b"], "c": {"type": "string"}},
        });
        let (schema, unknown) = prune("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps", given).expect("pruned");
        assert_eq!((schema, unknown), (expected, vec!["x".to_owned()]));
    }

    #[test]
    fn what_the_round_trip_makes() {
        let (pod, unknown) = prune(
            "io.k8s.api.core.v1.Pod",
            json!({
                "metadata": {"name": "p", "labels": {}, "annotations": null, "creationTimestamp": null, "x": 1},
                "spec": {"containers": [{"name": "c", "image": "", "bogus": 1, "resources": {"limits": {"cpu": "1000m", "memory": 1024}},
                    "stdin": false, "securityContext": {"privileged": false}}], "nodeName": ""},
            }),
        )
        .expect("pruned");
        assert_eq!(unknown, ["metadata.x", "spec.containers[0].bogus"]);
        let expected = json!({
            "metadata": {"name": "p"},
            "spec": {"containers": [{"name": "c", "resources": {"limits": {"cpu": "1", "memory": "1024"}}, "securityContext": {"privileged": false}}]},
            "status": {},
        });
        assert_eq!(pod, expected);
    }

    #[test]
    fn a_configuration_keeps_its_fields() {
        let schema = Schema::builtin("io.k8s.api.core.v1.Pod").expect("pod");
        let mut config = json!({"metadata": {"labels": null}, "spec": {"x": 1, "containers": [{"name": "c", "image": "",
            "resources": {"limits": {"cpu": "1000m"}}}]}});
        assert_eq!(schema.canonicalize(&mut config), Ok(vec!["spec.x".into()]));
        let secret = Schema::builtin("io.k8s.api.core.v1.Secret").expect("secret");
        assert_eq!(secret.canonicalize(&mut json!({"data": {"k": "dg=="}, "metadata": {"deletionTimestamp": "2026-01-02T03:04:05Z"}})), Ok(Vec::new()));
        assert_eq!(secret.canonicalize(&mut json!({"data": 5})), Err(".data: expected map, got &{5}".to_owned()));
        let expected = json!({"metadata": {"labels": null}, "spec": {"x": 1, "containers": [{"name": "c", "image": "",
            "resources": {"limits": {"cpu": "1"}}}]}});
        assert_eq!(config, expected);
    }

    #[test]
    fn times() {
        let lease = |t: &str| {
            prune("io.k8s.api.coordination.v1.Lease", json!({"metadata": {"deletionTimestamp": t}, "spec": {"renewTime": t.replace("+", ".000000+")}})).map(|(v, _)| {
                format!("{} {}", v["metadata"]["deletionTimestamp"].as_str().unwrap_or(""), v["spec"]["renewTime"].as_str().unwrap_or(""))
            })
        };
        assert_eq!(lease("2026-01-02T03:04:05+01:00").as_deref(), Ok("2026-01-02T02:04:05Z 2026-01-02T02:04:05.000000Z"));
        let error = "parsing time \"2026-1-2\" as \"2006-01-02T15:04:05Z07:00\": cannot parse \"1-2\" as \"01\"";
        assert_eq!(lease("2026-1-2"), Err(error.into()));
    }

    #[test]
    fn wrong_types() {
        for (definition, value, expected) in [
            ("io.k8s.api.apps.v1.Deployment", json!({"spec": {"replicas": "x"}}), "json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32"),
            ("io.k8s.api.apps.v1.Deployment", json!({"spec": {"replicas": 1.5}}), "json: cannot unmarshal number 1.5 into Go struct field DeploymentSpec.spec.replicas of type int32"),
            ("io.k8s.api.core.v1.ConfigMap", json!({"data": {"k": 5}}), "json: cannot unmarshal number into Go struct field ConfigMap.data of type string"),
            ("io.k8s.api.core.v1.Pod", json!({"spec": {"containers": [{"imagePullPolicy": true}]}}), "json: cannot unmarshal bool into Go struct field Container.spec.containers.imagePullPolicy of type v1.PullPolicy"),
            ("io.k8s.api.core.v1.Pod", json!({"spec": {"containers": {}}}), "json: cannot unmarshal object into Go struct field PodSpec.spec.containers of type []v1.Container"),
            ("io.k8s.api.core.v1.Secret", json!({"data": {"k": "!!"}}), "illegal base64 data at input byte 0"),
            ("io.k8s.api.core.v1.Pod", json!({"spec": {"ephemeralContainers": [{"image": 5}]}}), "json: cannot unmarshal number into Go struct field EphemeralContainer.spec.ephemeralContainers.EphemeralContainerCommon.image of type string"),
            ("io.k8s.api.core.v1.Pod", json!({"spec": []}), "json: cannot unmarshal array into Go struct field Pod.spec of type v1.PodSpec"),
        ] {
            assert_eq!(prune(definition, value).map(|_| ()), Err(expected.to_owned()));
        }
    }

    #[test]
    fn configurations_may_have_bytes_and_times() {
        let check = |definition: &str, mut value: Value, expected: Result<Value, &str>| {
            let read = Schema::builtin(definition).expect(definition).canonicalize(&mut value);
            assert_eq!(read.map(|_| value), expected.map_err(str::to_owned));
        };
        check("io.k8s.api.core.v1.Secret", json!({"data": {"k": "dg=="}}), Ok(json!({"data": {"k": "dg=="}})));
        check("io.k8s.api.core.v1.Secret", json!({"data": {"k": 5}}), Err(".data: expected string, got &{5}"));
        let renewed = |time: &str| json!({"spec": {"renewTime": time}});
        check("io.k8s.api.coordination.v1.Lease", renewed("2026-01-01T00:00:00.000000Z"), Ok(renewed("2026-01-01T00:00:00.000000Z")));
    }

    #[test]
    fn merged_values_are_refused_in_the_converters_words() {
        let check = |value: Value, expected: &str| {
            let schema = Schema::builtin("io.k8s.api.core.v1.Namespace").expect("namespaces");
            assert_eq!(schema.prune_merged(&mut value.clone()), Err(expected.to_owned()), "{value}");
        };
        check(json!({"metadata": {"labels": "x"}}), "cannot restore map from string");
        check(json!({"spec": {"finalizers": 3}}), "cannot restore slice from int64");
        check(json!({"spec": 3}), "cannot restore struct from: int64");
        check(json!({"status": {"phase": 3}}), "cannot convert int64 to v1.NamespacePhase");
        check(json!({"status": {"phase": 1.5}}), "unrecognized type: string");
        check(json!({"metadata": {"generation": "x"}}), "unrecognized type: int64");
        check(json!({"metadata": {"generation": 1.5}}), "cannot convert float64 to int64");
        check(json!({"metadata": {"creationTimestamp": 3}}), "json: cannot unmarshal number into Go value of type string");
    }
}
