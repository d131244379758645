//! Values. What came as JSON stays JSON until it is looked into, and is read by its type then.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value};

use super::lib::opaque::Opaque;
use super::lib::time;
use super::types::{ListKind, Type};

/// A value.
#[derive(Clone, Debug)]
pub enum Val<'a> {
    /// `null`
    Null,
    /// `true`, `false`
    Bool(bool),
    /// `1`
    Int(i64),
    /// `1u`
    Uint(u64),
    /// `1.0`
    Double(f64),
    /// `"a"`
    Str(Arc<str>),
    /// `b"a"`
    Bytes(Arc<[u8]>),
    /// A span of time.
    Duration(SignedDuration),
    /// A moment.
    Timestamp(Timestamp),
    /// A list that an expression made.
    List(Arc<Vec<Val<'a>>>),
    /// A map that an expression made.
    Map(Arc<BTreeMap<Key, Val<'a>>>),
    /// An object that an expression made, with its type's name.
    Object(Arc<str>, Arc<BTreeMap<Key, Val<'a>>>),
    /// A JSON list, the type of its items and how it is compared.
    JsonList(&'a [Value], Arc<Type>, Arc<ListKind>),
    /// A JSON object of this type.
    JsonMap(&'a Map<String, Value>, Type),
    /// A value or none.
    Optional(Option<Arc<Val<'a>>>),
    /// A type.
    Type(Arc<str>),
    /// One of Kubernetes' own.
    Opaque(Arc<Opaque>),
}

/// What maps are keyed by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// `true`
    Bool(bool),
    /// `1`
    Int(i64),
    /// `1u`
    Uint(u64),
    /// `"a"`
    Str(Arc<str>),
}

impl Key {
    /// The key as a value.
    pub fn val<'a>(&self) -> Val<'a> {
        match self {
            Self::Bool(b) => Val::Bool(*b),
            Self::Int(n) => Val::Int(*n),
            Self::Uint(n) => Val::Uint(*n),
            Self::Str(s) => Val::Str(Arc::clone(s)),
        }
    }
}

impl<'a> Val<'a> {
    /// Text.
    pub fn text(text: impl AsRef<str>) -> Self {
        Self::Str(text.as_ref().into())
    }

    /// A list.
    pub fn list(items: Vec<Self>) -> Self {
        Self::List(Arc::new(items))
    }

    /// A value in an optional.
    pub fn some(self) -> Self {
        Self::Optional(Some(Arc::new(self)))
    }

    /// JSON, read by its type. What doesn't fit the type is read as what it is.
    pub fn json(value: &'a Value, type_: &Type) -> Self {
        match (value, type_) {
            (Value::Null, _) => Self::Null,
            (Value::Bool(b), _) => Self::Bool(*b),
            (Value::Number(n), Type::Double) => Self::Double(n.as_f64().unwrap_or(0.0)),
            (Value::Number(n), Type::Int) => match n.as_i64() {
                Some(i) => Self::Int(i),
                None => Self::Int(n.as_f64().unwrap_or(0.0) as i64),
            },
            (Value::Number(n), _) => match (n.as_i64(), n.as_u64()) {
                (Some(i), _) => Self::Int(i),
                (_, Some(u)) => Self::Uint(u),
                _ => Self::Double(n.as_f64().unwrap_or(0.0)),
            },
            (Value::String(s), Type::Bytes) => STANDARD.decode(s).map_or_else(|_| Self::text(s), |b| Self::Bytes(b.into())),
            (Value::String(s), Type::Duration) => time::parse_duration(s).map_or_else(|| Self::text(s), Self::Duration),
            (Value::String(s), Type::Timestamp) => time::parse_timestamp(s).map_or_else(|| Self::text(s), Self::Timestamp),
            (Value::String(s), _) => Self::text(s),
            (Value::Array(items), Type::List(item, kind)) => Self::JsonList(items, Arc::clone(item), Arc::clone(kind)),
            (Value::Array(items), _) => Self::JsonList(items, Arc::new(Type::Dyn), Arc::default()),
            (Value::Object(map), Type::Object(_) | Type::Map(..)) => Self::JsonMap(map, type_.clone()),
            (Value::Object(map), _) => Self::JsonMap(map, Type::Dyn),
        }
    }

    /// The value as a map's key.
    pub fn key(&self) -> Option<Key> {
        Some(match self {
            Self::Bool(b) => Key::Bool(*b),
            Self::Int(n) => Key::Int(*n),
            Self::Uint(n) => Key::Uint(*n),
            Self::Double(d) if d.fract() == 0.0 && d.abs() < 9e15 => Key::Int(*d as i64),
            Self::Str(s) => Key::Str(Arc::clone(s)),
            _ => return None,
        })
    }

    /// The items, if this is a list.
    pub fn items(&self) -> Option<Vec<Val<'a>>> {
        match self {
            Self::List(items) => Some(items.to_vec()),
            Self::JsonList(items, type_, _) => Some(items.iter().map(|i| Val::json(i, type_)).collect()),
            _ => None,
        }
    }

    /// The keys and values, if this is a map or an object.
    pub fn entries(&self) -> Option<Vec<(Val<'a>, Val<'a>)>> {
        match self {
            Self::Map(map) | Self::Object(_, map) => Some(map.iter().map(|(k, v)| (k.val(), v.clone())).collect()),
            Self::JsonMap(map, type_) => Some(match type_ {
                Type::Object(object) => object
                    .fields
                    .iter()
                    .filter_map(|(name, (json, type_))| Some((Val::text(name), Val::json(map.get(json)?, type_))))
                    .collect(),
                Type::Map(_, value) => map.iter().map(|(k, v)| (Val::text(k), Val::json(v, value))).collect(),
                _ => map.iter().map(|(k, v)| (Val::text(k), Val::json(v, &Type::Dyn))).collect(),
            }),
            _ => None,
        }
    }

    /// The member of a map or object. The outer `None` is for what has no members.
    pub fn member(&self, key: &Val<'a>) -> Option<Option<Val<'a>>> {
        Some(match self {
            Self::Map(map) | Self::Object(_, map) => {
                let key = key.key()?;
                map.get(&key).or_else(|| map.get(&other_number(&key)?)).cloned()
            }
            Self::JsonMap(map, type_) => match key {
                Self::Str(name) => match type_ {
                    // A null in a known field is as good as none.
                    Type::Object(object) => {
                        let field = object.field(name);
                        field.and_then(|(json, type_)| Some(Val::json(map.get(json).filter(|v| !v.is_null())?, type_)))
                    }
                    Type::Map(_, value) => map.get(&**name).map(|v| Val::json(v, value)),
                    _ => map.get(&**name).map(|v| Val::json(v, &Type::Dyn)),
                },
                _ => None,
            },
            _ => return None,
        })
    }

    /// How many characters, bytes, items or entries it has.
    pub fn size(&self) -> Option<usize> {
        Some(match self {
            Self::Str(s) => s.chars().count(),
            Self::Bytes(b) => b.len(),
            Self::List(items) => items.len(),
            Self::JsonList(items, ..) => items.len(),
            Self::Map(map) => map.len(),
            Self::JsonMap(map, Type::Object(object)) => object.fields.values().filter(|(json, _)| map.contains_key(json)).count(),
            Self::JsonMap(map, _) => map.len(),
            _ => return None,
        })
    }

    /// The size that costs are reckoned by.
    pub(super) fn cost_size(&self) -> u64 {
        match self {
            Self::Optional(Some(inner)) => inner.cost_size(),
            Self::Opaque(opaque) => opaque.cost_size(),
            other => other.size().map_or(1, |n| n as u64),
        }
    }

    /// What going through it costs, item by item.
    pub(super) fn traversal(&self) -> u64 {
        match self {
            Self::Str(s) => s.len() as u64 / 10,
            Self::Bytes(b) => b.len() as u64 / 10,
            other => match (other.items(), other.entries()) {
                (Some(items), _) => items.iter().map(Val::traversal).sum(),
                (_, Some(entries)) => entries.iter().map(|(key, value)| key.traversal() + value.traversal()).sum(),
                _ => 1,
            },
        }
    }

    /// The name of its type at run time.
    pub fn type_name(&self) -> &str {
        match self {
            Self::Null => "null_type",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Uint(_) => "uint",
            Self::Double(_) => "double",
            Self::Str(_) => "string",
            Self::Bytes(_) => "bytes",
            Self::Duration(_) => "google.protobuf.Duration",
            Self::Timestamp(_) => "google.protobuf.Timestamp",
            Self::List(_) | Self::JsonList(..) => "list",
            Self::JsonMap(_, Type::Object(object)) => &object.name,
            Self::Map(_) | Self::JsonMap(..) => "map",
            Self::Object(name, _) => name,
            Self::Optional(_) => "optional_type",
            Self::Type(_) => "type",
            Self::Opaque(opaque) => opaque.type_name(),
        }
    }

    /// Whether it is the zero value of its type.
    pub fn is_zero(&self) -> bool {
        match self {
            Self::Null | Self::Optional(None) => true,
            Self::Bool(b) => !b,
            Self::Int(n) => *n == 0,
            Self::Uint(n) => *n == 0,
            Self::Double(n) => *n == 0.0,
            Self::Duration(d) => d.is_zero(),
            other => other.size() == Some(0),
        }
    }

    /// Equality, by value: numbers whatever their type, sets whatever their order.
    pub fn equals(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Null, Self::Null) => true,
            (Self::Bool(a), Self::Bool(b)) => a == b,
            (Self::Str(a), Self::Str(b)) | (Self::Type(a), Self::Type(b)) => a == b,
            (Self::Bytes(a), Self::Bytes(b)) => a == b,
            (Self::Duration(a), Self::Duration(b)) => a == b,
            (Self::Timestamp(a), Self::Timestamp(b)) => a == b,
            (Self::Optional(a), Self::Optional(b)) => match (a, b) {
                (Some(a), Some(b)) => a.equals(b),
                (None, None) => true,
                _ => false,
            },
            (Self::Opaque(a), Self::Opaque(b)) => a.equals(b),
            (Self::Int(_) | Self::Uint(_) | Self::Double(_), Self::Int(_) | Self::Uint(_) | Self::Double(_)) => {
                self.compare(other) == Some(Ordering::Equal)
            }
            _ => {
                if let (Some(a), Some(b)) = (self.items(), other.items()) {
                    return self.items_equal(&a, &b);
                }
                match (self.entries(), other.entries()) {
                    (Some(a), Some(b)) => {
                        a.len() == b.len() && a.iter().all(|(k, v)| matches!(other.member(k), Some(Some(w)) if v.equals(&w)))
                    }
                    _ => false,
                }
            }
        }
    }

    fn items_equal(&self, a: &[Self], b: &[Self]) -> bool {
        let same = |same: &dyn Fn(&Self, &Self) -> bool| {
            a.len() == b.len() && a.iter().all(|x| b.iter().any(|y| same(x, y))) && b.iter().all(|y| a.iter().any(|x| same(x, y)))
        };
        match self {
            Self::JsonList(_, _, kind) => match &**kind {
                ListKind::Atomic => a.len() == b.len() && a.iter().zip(b).all(|(x, y)| x.equals(y)),
                ListKind::Set | ListKind::Map(_) => same(&|x, y| x.equals(y)),
            },
            _ => a.len() == b.len() && a.iter().zip(b).all(|(x, y)| x.equals(y)),
        }
    }

    /// What this list and another make together: sets hold each item once, maps take the later item of a key.
    pub fn joined(&self, other: &Self) -> Option<Self> {
        let (mut all, more) = (self.items()?, other.items()?);
        let kind = match self {
            Self::JsonList(_, _, kind) => Arc::clone(kind),
            _ => Arc::default(),
        };
        for item in more {
            let place = match &*kind {
                ListKind::Atomic => None,
                ListKind::Set => all.iter().position(|x| x.equals(&item)),
                ListKind::Map(keys) => {
                    let id = |x: &Self, key: &String| x.member(&Val::text(key)).flatten();
                    all.iter().position(|x| {
                        keys.iter().all(|key| match (id(x, key), id(&item, key)) {
                            (Some(a), Some(b)) => a.equals(&b),
                            (None, None) => true,
                            _ => false,
                        })
                    })
                }
            };
            match place {
                Some(i) => all[i] = item,
                None => all.push(item),
            }
        }
        Some(Self::list(all))
    }

    /// Order, where there is one.
    pub fn compare(&self, other: &Self) -> Option<Ordering> {
        match (self, other) {
            (Self::Bool(a), Self::Bool(b)) => Some(a.cmp(b)),
            (Self::Int(a), Self::Int(b)) => Some(a.cmp(b)),
            (Self::Uint(a), Self::Uint(b)) => Some(a.cmp(b)),
            (Self::Int(a), Self::Uint(b)) => Some(i128::from(*a).cmp(&i128::from(*b))),
            (Self::Uint(a), Self::Int(b)) => Some(i128::from(*a).cmp(&i128::from(*b))),
            (Self::Double(a), Self::Double(b)) => a.partial_cmp(b),
            (Self::Double(a), Self::Int(b)) => a.partial_cmp(&(*b as f64)),
            (Self::Int(a), Self::Double(b)) => (*a as f64).partial_cmp(b),
            (Self::Double(a), Self::Uint(b)) => a.partial_cmp(&(*b as f64)),
            (Self::Uint(a), Self::Double(b)) => (*a as f64).partial_cmp(b),
            (Self::Str(a), Self::Str(b)) => Some(a.cmp(b)),
            (Self::Bytes(a), Self::Bytes(b)) => Some(a.cmp(b)),
            (Self::Duration(a), Self::Duration(b)) => Some(a.cmp(b)),
            (Self::Timestamp(a), Self::Timestamp(b)) => Some(a.cmp(b)),
            _ => None,
        }
    }

    /// The JSON that it is; an error names what JSON can't hold.
    pub fn to_json(&self) -> Result<Value, String> {
        Ok(match self {
            Self::Null => Value::Null,
            Self::Bool(b) => (*b).into(),
            Self::Int(n) => (*n).into(),
            Self::Uint(n) => (*n).into(),
            Self::Double(n) => (*n).into(),
            Self::Str(s) => (**s).into(),
            Self::Bytes(b) => STANDARD.encode(b).into(),
            Self::Duration(d) => time::show_duration(*d).into(),
            Self::Timestamp(t) => time::show_timestamp(*t).into(),
            Self::Opaque(opaque) => opaque.to_string().into(),
            Self::Optional(_) | Self::Type(_) => return Err(format!("a value of type {} has no JSON form", self.type_name())),
            other => {
                if let Some(items) = other.items() {
                    return items.iter().map(Self::to_json).collect::<Result<Vec<_>, _>>().map(Value::Array);
                }
                let mut map = Map::new();
                for (key, value) in other.entries().unwrap_or_default() {
                    let Val::Str(key) = key else { return Err("JSON objects have text for keys".into()) };
                    map.insert(key.to_string(), value.to_json()?);
                }
                Value::Object(map)
            }
        })
    }
}

/// The same number as a key of the other integer type.
fn other_number(key: &Key) -> Option<Key> {
    match key {
        Key::Int(n) => u64::try_from(*n).ok().map(Key::Uint),
        Key::Uint(n) => i64::try_from(*n).ok().map(Key::Int),
        _ => None,
    }
}
