//! Types: of expressions, and of JSON as a schema describes it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde_json::Value;

use super::names::{escape, unescaped};
use crate::schema::{Kind, Schema};

/// A type.
#[derive(Clone, Debug, PartialEq)]
pub enum Type {
    /// Not known before the value is: anything goes.
    Dyn,
    /// The same under another name, of values that can't be gone through.
    Any,
    /// `null`
    Null,
    /// `bool`
    Bool,
    /// A whole number of 64 bits.
    Int,
    /// A whole number of 64 bits without sign.
    Uint,
    /// A number.
    Double,
    /// Text.
    String,
    /// Bytes.
    Bytes,
    /// A span of time.
    Duration,
    /// A moment.
    Timestamp,
    /// A list; how two of them are equal and are added is the second part.
    List(Arc<Type>, Arc<ListKind>),
    /// A map.
    Map(Arc<Type>, Arc<Type>),
    /// A value or none.
    Optional(Arc<Type>),
    /// A type as a value.
    Type(Arc<Type>),
    /// An object with known fields.
    Object(Arc<ObjectType>),
    /// One of Kubernetes' own: `kubernetes.Quantity`, `net.IP`.
    Opaque(&'static str),
    /// A type that isn't known yet: a parameter of a function's signature.
    Param(u32),
}

/// How a list is compared and added to.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum ListKind {
    /// Item by item.
    #[default]
    Atomic,
    /// Whatever the order.
    Set,
    /// By these keys of its items.
    Map(Vec<String>),
}

/// An object with known fields.
#[derive(Debug, Default, PartialEq)]
pub struct ObjectType {
    /// Its name, as errors show it.
    pub name: String,
    /// Its fields by the names that expressions use, each with its name in JSON and its type.
    pub fields: BTreeMap<String, (String, Type)>,
    /// Whether a literal of it may name other fields.
    pub open: bool,
}

impl ObjectType {
    /// The field that an expression calls by this name: its name in JSON, and its type.
    pub(super) fn field(&self, name: &str) -> Option<&(String, Type)> {
        self.fields.get(name).or_else(|| self.fields.get(&unescaped(name)?))
    }
}

impl Type {
    /// The type of plain values that has this name.
    pub(super) fn plain(name: &str) -> Option<Self> {
        Some(match name {
            "bool" => Self::Bool,
            "int" => Self::Int,
            "uint" => Self::Uint,
            "double" => Self::Double,
            "string" => Self::String,
            "bytes" => Self::Bytes,
            _ => return None,
        })
    }

    /// A list of items of this type, compared item by item.
    pub fn list(item: Self) -> Self {
        Self::List(Arc::new(item), Arc::default())
    }

    /// A map.
    pub fn map(key: Self, value: Self) -> Self {
        Self::Map(Arc::new(key), Arc::new(value))
    }

    /// An object with these fields.
    pub fn object<'a>(name: &str, fields: impl IntoIterator<Item = (&'a str, Self)>) -> Self {
        let fields = fields.into_iter().map(|(name, type_)| (name.to_owned(), (name.to_owned(), type_))).collect();
        Self::Object(Arc::new(ObjectType { name: name.to_owned(), fields, open: false }))
    }

    /// The type of what an `openAPIV3Schema` node describes; `None` for what expressions can't see. `root` is whether it
    /// is a whole Kubernetes object.
    pub fn of_schema(schema: &Value, root: bool) -> Option<Self> {
        Self::read(schema, root, "object", 0)
    }

    fn read(schema: &Value, root: bool, name: &str, depth: usize) -> Option<Self> {
        if depth > 100 {
            return None;
        }
        if schema["x-kubernetes-int-or-string"] == true {
            return Some(Self::Dyn);
        }
        Some(match schema["type"].as_str().unwrap_or("") {
            "array" => {
                let items = Self::read(&schema["items"], embedded(&schema["items"]), &format!("{name}.@idx"), depth + 1)?;
                let keys = schema["x-kubernetes-list-map-keys"].as_array();
                let kind = match schema["x-kubernetes-list-type"].as_str() {
                    Some("set") => ListKind::Set,
                    Some("map") => ListKind::Map(keys.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()),
                    _ => ListKind::Atomic,
                };
                Self::List(Arc::new(items), Arc::new(kind))
            }
            "object" => {
                if schema["additionalProperties"].is_object() {
                    let values = &schema["additionalProperties"];
                    return Some(Self::map(Self::String, Self::read(values, embedded(values), &format!("{name}.@elem"), depth + 1)?));
                }
                let mut fields = BTreeMap::new();
                for (property, child) in schema["properties"].as_object().into_iter().flatten() {
                    if let (Some(type_), Some(escaped)) = (Self::read(child, embedded(child), &format!("{name}.{property}"), depth + 1), escape(property)) {
                        fields.insert(escaped, (property.clone(), type_));
                    }
                }
                if root {
                    for name in ["apiVersion", "kind"] {
                        fields.insert(name.into(), (name.into(), Self::String));
                    }
                    let metadata = Self::object("metadata", [("name", Self::String), ("generateName", Self::String)]);
                    fields.insert("metadata".into(), ("metadata".into(), metadata));
                }
                Self::Object(Arc::new(ObjectType { name: name.to_owned(), fields, open: false }))
            }
            "string" => match schema["format"].as_str().unwrap_or("") {
                "byte" => Self::Bytes,
                "duration" => Self::Duration,
                "date" | "date-time" => Self::Timestamp,
                _ => Self::String,
            },
            "boolean" => Self::Bool,
            "number" => Self::Double,
            "integer" => Self::Int,
            _ => return None,
        })
    }

    /// The type of a built-in kind, as its OpenAPI schema has it.
    pub fn of_builtin(schema: &Schema) -> Self {
        Self::walk(schema, &mut Vec::new())
    }

    fn walk(schema: &Schema, above: &mut Vec<&'static str>) -> Self {
        match &schema.kind {
            Kind::Any | Kind::SchemaOr(_) | Kind::IntOrString => Self::Dyn,
            Kind::String | Kind::Quantity => Self::String,
            Kind::Bytes => Self::Bytes,
            Kind::Time | Kind::MicroTime => Self::Timestamp,
            Kind::Int32 | Kind::Int64 => Self::Int,
            Kind::Number => Self::Double,
            Kind::Boolean => Self::Bool,
            Kind::Map(values) => Self::map(Self::String, Self::walk(values, above)),
            Kind::List(list) => Self::list(Self::walk(&list.items, above)),
            // Schemas that hold themselves have no end.
            Kind::Object(object) if above.contains(&object.definition) && !object.definition.is_empty() => Self::Dyn,
            Kind::Object(object) => {
                above.push(object.definition);
                let fields = object.properties.iter().filter_map(|property| {
                    let type_ = Self::walk(&property.schema, above);
                    Some((escape(&property.name)?, (property.name.to_string(), type_)))
                });
                let fields = fields.collect();
                above.pop();
                Self::Object(Arc::new(ObjectType { name: object.name.to_owned(), fields, open: false }))
            }
        }
    }

    /// Whether anything goes.
    pub(super) fn is_dyn(&self) -> bool {
        matches!(self, Self::Dyn | Self::Any)
    }

    /// Whether the types are the same, however lists are compared. Objects are what they are called.
    pub(super) fn same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::List(a, _), Self::List(b, _)) | (Self::Optional(a), Self::Optional(b)) | (Self::Type(a), Self::Type(b)) => a.same(b),
            (Self::Map(ak, av), Self::Map(bk, bv)) => ak.same(bk) && av.same(bv),
            (Self::Object(a), Self::Object(b)) => Arc::ptr_eq(a, b) || a.name == b.name && a.fields.len() == b.fields.len(),
            (a, b) => a == b,
        }
    }

    /// The type with its parameters counted on from this one: as no other has them.
    pub(super) fn shifted(&self, by: u32) -> Self {
        match self {
            Self::Param(i) => Self::Param(i + by),
            Self::List(item, kind) => Self::List(Arc::new(item.shifted(by)), Arc::clone(kind)),
            Self::Map(key, value) => Self::map(key.shifted(by), value.shifted(by)),
            Self::Optional(inner) => Self::Optional(Arc::new(inner.shifted(by))),
            Self::Type(inner) => Self::Type(Arc::new(inner.shifted(by))),
            other => other.clone(),
        }
    }
}

fn embedded(schema: &Value) -> bool {
    schema["x-kubernetes-embedded-resource"] == true
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dyn => "dyn",
            Self::Any => "any",
            Self::Null => "null",
            Self::Bool => "bool",
            Self::Int => "int",
            Self::Uint => "uint",
            Self::Double => "double",
            Self::String => "string",
            Self::Bytes => "bytes",
            Self::Duration => "duration",
            Self::Timestamp => "timestamp",
            Self::List(item, _) => return write!(f, "list({item})"),
            Self::Map(key, value) => return write!(f, "map({key}, {value})"),
            Self::Optional(inner) => return write!(f, "optional_type({inner})"),
            Self::Type(inner) => return write!(f, "type({inner})"),
            Self::Object(object) => &object.name,
            Self::Opaque(name) => name,
            Self::Param(i) => return write!(f, "_var{i}"),
        })
    }
}
