//! Kubernetes' protobuf, as Go clients speak it: bodies read into the JSON that they stand for ([`decode`]), and JSON
//! written as such bodies (`write`).
//!
//! The field numbers stand in `data/protobuf.txt`, a line a definition: its name, then `property=number`, or `=2.5` where
//! JSON shows inlined what is a message of its own. What a number's bytes mean is the schema's to say.

use std::collections::HashMap;
use std::sync::OnceLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use jiff::Timestamp;
use serde_json::{Map, Value};

use crate::schema::{Kind, Object, Other, Schema};

mod write;

pub use write::{encode, envelope, event, field, list_meta, message_of, partial, partial_of};

/// What every such body begins with.
pub const MAGIC: &[u8] = b"k8s\0";
/// The media type of such bodies.
pub const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";

const TEXT: &str = include_str!("../data/protobuf.txt");
/// Deeper messages than any kind has; a schema within a schema takes two levels.
const MAX_DEPTH: usize = 128;

/// A body can't be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not the bytes of a message.
    #[error("the protobuf message is cut short or malformed")]
    Malformed,
    /// It doesn't begin as Kubernetes' bodies do.
    #[error("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")]
    NoMagic,
    /// A kind that has no field numbers here.
    #[error("no kind {kind:?} is known in version {api_version:?} in protobuf")]
    UnknownKind {
        /// What the body says it is.
        kind: String,
        /// In which version.
        api_version: String,
    },
}

/// The properties of a message, each with the numbers that lead to it.
type Properties = Vec<(&'static str, Vec<u32>)>;
type Numbers = HashMap<&'static str, Properties>;

fn numbers() -> &'static Numbers {
    static NUMBERS: OnceLock<Numbers> = OnceLock::new();
    NUMBERS.get_or_init(|| TEXT.lines().filter_map(read_line).collect())
}

fn read_line(line: &'static str) -> Option<(&'static str, Properties)> {
    let mut words = line.split(' ');
    let name = words.next()?;
    let properties = words.filter_map(|word| {
        let (property, path) = word.split_once('=')?;
        Some((property, path.split('.').map(str::parse).collect::<Result<_, _>>().ok()?))
    });
    // By number, so that what belongs to one inlined message stands together.
    let mut properties: Properties = properties.collect();
    properties.sort_by(|a, b| a.1.cmp(&b.1));
    Some((name, properties))
}

/// A message with a field for each form: `JSONSchemaPropsOrArray {schema=1, jSONSchemas=2}`,
/// `JSONSchemaPropsOrBool {allows=1, schema=2}`, `JSONSchemaPropsOrStringArray {schema=1, property=2}`.
fn schema_or(other: Other, bytes: &[u8], depth: usize) -> Result<Value, Error> {
    let parts = fields(bytes)?;
    let schema = |bytes: &[u8]| message(Schema::json_schema().ok_or(Error::Malformed)?, bytes, depth);
    let number = if other == Other::Bool { 2 } else { 1 };
    if parts.iter().any(|(n, _)| *n == number) {
        return schema(bytes_at(&parts, number));
    }
    match other {
        Other::Bool => Ok((varint_at(&parts, 1) != 0).into()),
        Other::List => parts.iter().filter_map(|(n, field)| if let (2, Field::Bytes(bytes)) = (n, field) { Some(schema(bytes)) } else { None }).collect(),
        Other::Strings => texts(&parts, 2),
    }
}

/// The texts of a repeated field.
fn texts(parts: &[(u32, Field<'_>)], number: u32) -> Result<Value, Error> {
    let all = parts.iter().filter_map(|(n, field)| match field {
        Field::Bytes(bytes) if *n == number => Some(text(bytes).map(Value::from)),
        _ => None,
    });
    all.collect()
}

/// One field of a message.
#[derive(Clone, Copy, Debug)]
enum Field<'a> {
    /// An integer or boolean.
    Varint(u64),
    /// A double, by its bits.
    Fixed64(u64),
    /// A float, by its bits.
    Fixed32(u32),
    /// Text, bytes, a message, or packed numbers.
    Bytes(&'a [u8]),
}

fn varint(bytes: &mut &[u8]) -> Result<u64, Error> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first().ok_or(Error::Malformed)?;
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(Error::Malformed)
}

/// The fields of a message, in the order of the bytes.
fn fields(mut bytes: &[u8]) -> Result<Vec<(u32, Field<'_>)>, Error> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes)?;
        let number = u32::try_from(key >> 3).map_err(|_| Error::Malformed)?;
        let field = match key & 7 {
            0 => Field::Varint(varint(&mut bytes)?),
            1 => {
                let (head, rest) = bytes.split_first_chunk::<8>().ok_or(Error::Malformed)?;
                bytes = rest;
                Field::Fixed64(u64::from_le_bytes(*head))
            }
            2 => {
                let length = usize::try_from(varint(&mut bytes)?).map_err(|_| Error::Malformed)?;
                let (head, rest) = bytes.split_at_checked(length).ok_or(Error::Malformed)?;
                bytes = rest;
                Field::Bytes(head)
            }
            5 => {
                let (head, rest) = bytes.split_first_chunk::<4>().ok_or(Error::Malformed)?;
                bytes = rest;
                Field::Fixed32(u32::from_le_bytes(*head))
            }
            _ => return Err(Error::Malformed),
        };
        found.push((number, field));
    }
    Ok(found)
}

/// The last field of that number that is bytes.
fn bytes_at<'a>(fields: &[(u32, Field<'a>)], number: u32) -> &'a [u8] {
    let found = fields.iter().rev().find_map(|(n, field)| match field {
        Field::Bytes(bytes) if *n == number => Some(*bytes),
        _ => None,
    });
    found.unwrap_or(b"")
}

fn varint_at(fields: &[(u32, Field<'_>)], number: u32) -> u64 {
    let found = fields.iter().rev().find_map(|(n, field)| match field {
        Field::Varint(value) if *n == number => Some(*value),
        _ => None,
    });
    found.unwrap_or(0)
}

fn text(bytes: &[u8]) -> Result<String, Error> {
    String::from_utf8(bytes.to_vec()).map_err(|_| Error::Malformed)
}

/// Reads a body: the envelope, and the object in it by its kind.
pub fn decode(body: &[u8]) -> Result<Value, Error> {
    let envelope = fields(body.strip_prefix(MAGIC).ok_or(Error::NoMagic)?)?;
    let types = fields(bytes_at(&envelope, 1))?;
    let (api_version, kind) = (text(bytes_at(&types, 1))?, text(bytes_at(&types, 2))?);
    let raw = bytes_at(&envelope, 2);
    let unknown = || Error::UnknownKind { kind: kind.clone(), api_version: api_version.clone() };
    let name = definition(&api_version, &kind).ok_or_else(unknown)?;
    let schema = Schema::builtin(name).ok_or_else(unknown)?;
    let mut object = message(schema, raw, 0)?;
    object["apiVersion"] = api_version.into();
    object["kind"] = kind.into();
    Ok(object)
}

/// The definition of a kind. Options are kinds of every group.
fn definition(api_version: &str, kind: &str) -> Option<&'static str> {
    let (group, version) = api_version.split_once('/').unwrap_or(("core", api_version));
    let group = group.split('.').next().unwrap_or(group);
    let candidates = [
        format!("io.k8s.api.{group}.{version}.{kind}"),
        format!("io.k8s.apimachinery.pkg.apis.meta.v1.{kind}"),
        format!("io.k8s.apiextensions-apiserver.pkg.apis.{group}.{version}.{kind}"),
        format!("io.k8s.kube-aggregator.pkg.apis.{group}.{version}.{kind}"),
    ];
    candidates.iter().find_map(|name| numbers().get_key_value(name.as_str()).map(|(name, _)| *name))
}

fn message(schema: &Schema, bytes: &[u8], depth: usize) -> Result<Value, Error> {
    if depth > MAX_DEPTH {
        return Err(Error::Malformed);
    }
    match &schema.kind {
        Kind::Object(object) => object_message(object, bytes, depth),
        // A named list is a message whose first field repeats.
        Kind::List(_) => {
            let all = fields(bytes)?;
            let items = all.iter().filter(|(n, _)| *n == 1).map(|(_, f)| *f).collect::<Vec<_>>();
            value(schema, &items, depth)
        }
        _ => value(schema, &[Field::Bytes(bytes)], depth),
    }
}

fn object_message(object: &Object, bytes: &[u8], depth: usize) -> Result<Value, Error> {
    let empty = Vec::new();
    let numbers = numbers().get(object.definition).unwrap_or(&empty);
    let mut made = Map::new();
    for (property, path) in numbers {
        let Some(property) = object.property(property) else { continue };
        let found = at(bytes, path)?;
        if !found.is_empty() {
            let member = value(&property.schema, &found, depth + 1)?;
            if !member.is_null() {
                made.insert(property.name.to_string(), member);
            }
        }
    }
    Ok(Value::Object(made))
}

/// The fields at a path of numbers, through messages that JSON shows inlined.
fn at<'a>(bytes: &'a [u8], path: &[u32]) -> Result<Vec<Field<'a>>, Error> {
    let Some((number, rest)) = path.split_first() else { return Ok(Vec::new()) };
    let all = fields(bytes)?;
    if rest.is_empty() {
        return Ok(all.into_iter().filter(|(n, _)| n == number).map(|(_, field)| field).collect());
    }
    match all.iter().any(|(n, _)| n == number) {
        true => at(bytes_at(&all, *number), rest),
        false => Ok(Vec::new()),
    }
}

/// What the fields of one number mean by the schema: several make a list or a map, of others the last one counts.
fn value(schema: &Schema, found: &[Field<'_>], depth: usize) -> Result<Value, Error> {
    match &schema.kind {
        Kind::List(list) => {
            let mut items = Vec::new();
            for field in found {
                match (&list.items.kind, field) {
                    (Kind::Int32 | Kind::Int64, Field::Bytes(packed)) => {
                        let mut packed = *packed;
                        while !packed.is_empty() {
                            items.push((varint(&mut packed)? as i64).into());
                        }
                    }
                    _ => items.push(value(&list.items, &[*field], depth + 1)?),
                }
            }
            Ok(items.into())
        }
        Kind::Map(values) => {
            let mut map = Map::new();
            for field in found {
                let Field::Bytes(entry) = field else { return Err(Error::Malformed) };
                let entry = fields(entry)?;
                let key = text(bytes_at(&entry, 1))?;
                let member = match &values.kind {
                    Kind::Int32 | Kind::Int64 | Kind::Boolean => scalar(values, Field::Varint(varint_at(&entry, 2)), depth)?,
                    _ => message(values, bytes_at(&entry, 2), depth + 1)?,
                };
                map.insert(key, member);
            }
            Ok(map.into())
        }
        _ => found.last().map_or(Ok(Value::Null), |field| scalar(schema, *field, depth)),
    }
}

fn scalar(schema: &Schema, field: Field<'_>, depth: usize) -> Result<Value, Error> {
    Ok(match (&schema.kind, field) {
        (Kind::String, Field::Bytes(bytes)) => text(bytes)?.into(),
        (Kind::Bytes, Field::Bytes(bytes)) => BASE64.encode(bytes).into(),
        (Kind::Quantity, Field::Bytes(bytes)) => match text(bytes_at(&fields(bytes)?, 1))? {
            empty if empty.is_empty() => "0".into(),
            quantity => quantity.into(),
        },
        (Kind::Time | Kind::MicroTime, Field::Bytes(bytes)) => {
            let parts = fields(bytes)?;
            // No time at all is an empty message.
            if parts.is_empty() {
                return Ok(Value::Null);
            }
            let nanos = if matches!(schema.kind, Kind::Time) { 0 } else { varint_at(&parts, 2) as i32 / 1_000 * 1_000 };
            let time = Timestamp::new(varint_at(&parts, 1) as i64, nanos).map_err(|_| Error::Malformed)?;
            let format = if matches!(schema.kind, Kind::Time) { "%Y-%m-%dT%H:%M:%SZ" } else { "%Y-%m-%dT%H:%M:%S.%6fZ" };
            time.strftime(format).to_string().into()
        }
        (Kind::IntOrString, Field::Bytes(bytes)) => {
            let parts = fields(bytes)?;
            match varint_at(&parts, 1) {
                0 => (varint_at(&parts, 2) as i32).into(),
                _ => text(bytes_at(&parts, 3))?.into(),
            }
        }
        (Kind::Int32, Field::Varint(value)) => (value as i32).into(),
        (Kind::Int64, Field::Varint(value)) => (value as i64).into(),
        (Kind::Boolean, Field::Varint(value)) => (value != 0).into(),
        (Kind::Number, Field::Fixed64(bits)) => f64::from_bits(bits).into(),
        (Kind::Number, Field::Fixed32(bits)) => f64::from(f32::from_bits(bits)).into(),
        // Raw JSON within a message: RawExtension, FieldsV1, JSON.
        (Kind::Any, Field::Bytes(bytes)) => match bytes_at(&fields(bytes)?, 1) {
            b"" => Value::Null,
            raw => serde_json::from_slice(raw).map_err(|_| Error::Malformed)?,
        },
        (Kind::SchemaOr(other), Field::Bytes(bytes)) => schema_or(*other, bytes, depth + 1)?,
        (Kind::Object(_), Field::Bytes(bytes)) => message(schema, bytes, depth + 1)?,
        _ => return Err(Error::Malformed),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A field of bytes.
    fn b(number: u8, bytes: &[u8]) -> Vec<u8> {
        [&[number << 3 | 2, bytes.len() as u8][..], bytes].concat()
    }

    fn envelope(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
        let types = [b(1, api_version.as_bytes()), b(2, kind.as_bytes())].concat();
        [MAGIC.to_vec(), b(1, &types), b(2, raw)].concat()
    }

    #[test]
    fn a_config_map() {
        let entry = [b(1, b"k"), b(2, b"v")].concat();
        let metadata = [b(1, b"a"), b(8, b"")].concat();
        let raw = [b(1, &metadata), b(2, &entry)].concat();
        let expected = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"k": "v"}});
        assert_eq!(decode(&envelope("v1", "ConfigMap", &raw)), Ok(expected));
    }

    #[test]
    fn inlined_messages_and_numbers() {
        // Volume{name, volumeSource{emptyDir{sizeLimit}}} in PodSpec.volumes, and ServicePort's numbers.
        let volume = [b(1, b"x"), b(2, &b(2, &b(2, &b(1, b"1Gi"))))].concat();
        let pod = b(2, &b(1, &volume));
        let decoded = decode(&envelope("v1", "Pod", &pod)).expect("a pod");
        assert_eq!(decoded["spec"]["volumes"], json!([{"name": "x", "emptyDir": {"sizeLimit": "1Gi"}}]));
        let port = [vec![3 << 3, 80], b(4, &[1 << 3, 0, 2 << 3, 8])].concat();
        let decoded = decode(&envelope("v1", "Service", &b(2, &b(1, &port)))).expect("a service");
        assert_eq!(decoded["spec"]["ports"], json!([{"port": 80, "targetPort": 8}]));
    }

    #[test]
    fn nonsense_is_refused() {
        assert_eq!(decode(b"{}"), Err(Error::NoMagic));
        assert_eq!(decode(&[MAGIC, b"\x0a\xff"].concat()), Err(Error::Malformed));
        assert!(matches!(decode(&envelope("v1", "Nothing", b"")), Err(Error::UnknownKind { .. })));
        let deep = (0..300).fold(Vec::new(), |inner: Vec<u8>, _| if inner.len() > 100 { inner } else { b(4, &inner) });
        assert!(decode(&envelope("v1", "Pod", &deep)).is_ok());
    }
}
