//! How large values can be, by the schema that they keep and by what fits into a request: what costs are estimated by.
//! The figures are upstream's, whose declarations of types carry them.

use std::collections::BTreeMap;

use serde_json::Value;

use super::names::escape;
use crate::value::{items, text};

/// The largest request, in bytes.
pub(crate) const REQUEST: u64 = 3 * 1024 * 1024;
/// The longest durations and moments, as JSON.
const MOMENT: u64 = 32;
const DATE: u64 = 12;

/// How large values of a node of a schema can be.
#[derive(Debug, Default)]
pub(crate) struct Bounds {
    /// The most characters, items or entries; 0 where values have no size.
    max: u64,
    /// The least that a value takes as JSON, in bytes.
    least: u64,
    below: Below,
}

#[derive(Debug, Default)]
enum Below {
    #[default]
    Nothing,
    List(Box<Bounds>),
    /// The bounds of keys and values, and whether a field may be named without brackets.
    Map(Box<Bounds>, Box<Bounds>, bool),
    Fields(BTreeMap<String, Bounds>),
    /// What the only variable of that name is.
    Variable(&'static str, Box<Bounds>),
}

impl Bounds {
    fn plain(max: u64, least: u64) -> Self {
        Self { max, least, below: Below::Nothing }
    }

    /// The bounds of what an `openAPIV3Schema` node describes; `None` for what expressions can't see. `root` is whether it
    /// is a whole Kubernetes object.
    pub fn of_schema(schema: &Value, root: bool) -> Option<Self> {
        Self::read(schema, root, 0)
    }

    fn read(schema: &Value, root: bool, depth: usize) -> Option<Self> {
        if depth > 100 {
            return None;
        }
        let limit = |name: &str| schema[name].as_i64().map(|n| u64::try_from(n).unwrap_or(0));
        let length = limit("maxLength").map(|n| n.saturating_mul(4));
        if schema["x-kubernetes-int-or-string"] == true {
            return Some(Self::plain(length.unwrap_or(REQUEST - 2), 1));
        }
        let child = |schema: &Value| Self::read(schema, schema["x-kubernetes-embedded-resource"] == true, depth + 1);
        Some(match text(schema, &["type"]) {
            "array" => {
                let item = child(&schema["items"])?;
                let max = limit("maxItems").unwrap_or((REQUEST - 2) / (item.least + 1));
                Self { max, least: 2, below: Below::List(Box::new(item)) }
            }
            "object" if schema["additionalProperties"].is_object() => {
                let value = child(&schema["additionalProperties"])?;
                let max = limit("maxProperties").unwrap_or((REQUEST - 2) / (value.least + 6));
                Self { max, least: 2, below: Below::Map(Box::default(), Box::new(value), false) }
            }
            "object" => {
                let required: Vec<&str> = items(schema, &["required"]).iter().filter_map(Value::as_str).collect();
                let (mut fields, mut least) = (BTreeMap::new(), 2);
                let text_or = |known: Option<Self>| known.unwrap_or_else(|| Self::plain(REQUEST - 2, 2));
                let is = |path: &[&str], kind: &str| path.iter().try_fold(schema, |s, step| s["properties"].get(step)).is_some_and(|s| s["type"] == kind);
                let whole = is(&["kind"], "string") && is(&["apiVersion"], "string") && is(&["metadata"], "object");
                let whole = whole && is(&["metadata", "name"], "string") && is(&["metadata", "generateName"], "string");
                let own = schema["properties"].as_object().into_iter().flatten();
                let own = own.filter(|(name, _)| !root || whole || !matches!(name.as_str(), "kind" | "apiVersion" | "metadata"));
                let mut all: Vec<(&str, Self, bool)> = own.filter_map(|(name, schema)| Some((name.as_str(), child(schema)?, schema.get("default").is_some_and(|d| !d.is_null())))).collect();
                if root && !whole {
                    let names = ["name", "generateName"].map(|name| (name.to_owned(), text_or(None)));
                    let metadata = Self { max: 0, least: 2, below: Below::Fields(names.into()) };
                    all.extend([("kind", text_or(None), false), ("apiVersion", text_or(None), false), ("metadata", metadata, false)]);
                }
                for (name, bounds, defaulted) in all {
                    if required.contains(&name) && !defaulted {
                        least += name.len() as u64 + bounds.least + 4;
                    }
                    if let Some(escaped) = escape(name) {
                        fields.insert(escaped, bounds);
                    }
                }
                Self { max: 0, least, below: Below::Fields(fields) }
            }
            "string" => match text(schema, &["format"]) {
                "byte" => Self::plain(limit("maxLength").unwrap_or(REQUEST - 2), 2),
                "duration" => Self::plain(MOMENT, 3),
                "date" => Self::plain(DATE, 12),
                "date-time" => Self::plain(MOMENT, 21),
                _ => {
                    let choices = items(schema, &["enum"]);
                    let longest = || choices.iter().filter_map(Value::as_str).map(str::len).max().unwrap_or(0) as u64;
                    let max = length.unwrap_or_else(|| if choices.is_empty() { REQUEST - 2 } else { longest() });
                    Self::plain(max, 2)
                }
            },
            "boolean" => Self::plain(0, 4),
            "number" | "integer" => Self::plain(0, 1),
            _ => return None,
        })
    }

    /// The bounds of `device`, as selectors of devices are given it.
    pub fn of_device() -> Self {
        let map = |key: u64, value: Self, named: bool| Self { max: 32, least: 2, below: Below::Map(Box::new(Self::plain(key, 2)), Box::new(value), named) };
        let of_domains = |values: Self| map(63, values, false);
        let fields = [
            ("driver", Self::plain(63, 2)),
            ("allowMultipleAllocations", Self::plain(1, 4)),
            ("attributes", of_domains(map(32, Self::plain(64, 1), true))),
            ("capacity", of_domains(map(32, Self::plain(0, 8), false))),
        ];
        let fields = fields.map(|(name, bounds)| (name.to_owned(), bounds));
        let device = Self { max: 0, least: 2, below: Below::Fields(fields.into()) };
        Self { max: 0, least: 0, below: Below::Variable("device", Box::new(device)) }
    }

    /// How large what these steps lead to can be. The first is a variable, of which all are the same unless one is named.
    pub fn at(&self, steps: &[&str]) -> Option<u64> {
        let (variable, steps) = steps.split_first()?;
        let start = match &self.below {
            Below::Variable(name, bounds) => (name == variable).then_some(&**bounds)?,
            _ => self,
        };
        let end = steps.iter().try_fold(start, |here, step| match (&here.below, *step) {
            (Below::List(item), "@items" | "@values") => Some(&**item),
            (Below::Map(_, value, _), "@items" | "@values") => Some(&**value),
            (Below::Map(key, ..), "@keys") => Some(&**key),
            (Below::Map(_, value, true), name) if !name.starts_with('@') => Some(&**value),
            (Below::Fields(fields), name) => fields.get(name),
            _ => None,
        });
        end.map(|bounds| bounds.max)
    }

    /// How often a value like this can stand in an object at most.
    pub fn most_in_object(&self) -> u64 {
        REQUEST / (self.least + 1)
    }
}
