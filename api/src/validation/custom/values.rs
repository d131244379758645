//! Values against the rules of an OpenAPI v3 schema, with the messages of upstream's validator.
//!
//! The schema is taken as the definition has it. What an update leaves as it was may stay invalid: each place is compared
//! with what stood there before, where that can be said (items of lists only by the keys of a `map`).

use serde_json::{Map, Value};

use super::format;
use crate::field::{Error, ErrorType};
use crate::pattern;
use crate::value::items;

/// What stands where `nil` stands for a path in upstream's messages: errors of combinations have none.
const NO_PATH: &str = "<nil>";

/// What is wrong with the value. `root` is where in the object the value stands, which goes before every path of an
/// error, but into no message; `old` is what the value was, when there was one.
pub(super) fn errors(schema: &Value, value: &Value, old: Option<&Value>, root: &str) -> Vec<Error> {
    let mut found = check(schema, value, old, "").errors;
    if !root.is_empty() {
        for error in &mut found {
            error.path = match error.path.as_str() {
                NO_PATH | "" => root.to_owned(),
                path => format!("{root}.{path}"),
            };
        }
    }
    found
}

/// The outcome of a check: errors, and how many rules were looked at, which upstream compares alternatives by.
#[derive(Default)]
struct Outcome {
    errors: Vec<Error>,
    looked_at: usize,
}

impl Outcome {
    fn merge(&mut self, other: Self) {
        self.errors.extend(other.errors);
        self.looked_at += other.looked_at;
    }

    fn push(&mut self, error: Error) {
        self.errors.push(error);
    }
}

/// A place: what messages call it, and the value there.
struct Place<'a> {
    path: &'a str,
    value: &'a Value,
    old: Option<&'a Value>,
}

impl Place<'_> {
    /// The path of an error here: without the dot before the first name.
    fn at(&self) -> String {
        self.path.trim_start_matches('.').to_owned()
    }

    fn below(&self, name: &str) -> String {
        format!("{}.{name}", self.path)
    }

    fn invalid(&self, words: impl std::fmt::Display) -> Error {
        Error::invalid(self.at(), self.value.clone(), format!("{} in body {words}", self.path))
    }
}

/// Checks a value, then forgives what is as it was.
fn check(schema: &Value, value: &Value, old: Option<&Value>, path: &str) -> Outcome {
    let mut outcome = rules(schema, &Place { path, value, old });
    if !outcome.errors.is_empty() && old == Some(value) {
        outcome.errors.clear();
    }
    outcome
}

fn rules(schema: &Value, place: &Place<'_>) -> Outcome {
    let mut outcome = Outcome::default();
    if let Some(error) = wrong_type(schema, place) {
        outcome.push(error);
    }
    outcome.looked_at += 1;
    if !place.value.is_null() {
        combinations(schema, place, &mut outcome);
        outcome.looked_at += 1;
        match place.value {
            Value::String(text) => {
                outcome.errors.extend(text_rules(schema, place, text));
                let format = known_format(schema).unwrap_or("");
                if !format.is_empty() && !format::fits(format, text) {
                    let (path, shown) = (place.path, place.value.to_string());
                    let detail = format!("{path} in body must be of type {}: {shown}", schema["format"].as_str().unwrap_or(""));
                    outcome.push(Error { kind: ErrorType::TypeInvalid, path: place.at(), value: Some(shown), detail });
                }
                outcome.looked_at += 2;
            }
            Value::Number(_) => {
                number_rules(schema, place, &mut outcome);
                outcome.looked_at += 1;
            }
            Value::Array(list) => {
                list_rules(schema, place, list, &mut outcome);
                outcome.looked_at += 1;
            }
            Value::Object(map) => {
                object_rules(schema, place, map, &mut outcome);
                outcome.looked_at += 1;
            }
            _ => {}
        }
    }
    if let Some(allowed) = schema["enum"].as_array().filter(|allowed| !allowed.iter().any(|v| equal(v, place.value))) {
        let shown: Vec<String> = allowed.iter().map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned)).collect();
        let shown: Vec<&str> = shown.iter().map(String::as_str).collect();
        outcome.push(Error::not_supported(place.at(), place.value.clone(), &shown));
    }
    outcome.looked_at += 1;
    outcome
}

/// The format, where upstream knows it for the schema's type.
fn known_format(schema: &Value) -> Option<&str> {
    let format = schema["format"].as_str()?;
    matches!(schema["type"].as_str(), None | Some("string")).then_some(format).filter(|f| format::known(f))
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn wrong_type(schema: &Value, place: &Place<'_>) -> Option<Error> {
    let wanted: &[&str] = match schema["type"].as_str() {
        _ if schema["x-kubernetes-int-or-string"] == true => &["integer", "string"],
        Some(kind) if !kind.is_empty() => &[kind],
        _ => return None,
    };
    let found = type_name(place.value);
    let fits = match place.value {
        Value::Null => schema["nullable"] == true,
        Value::Number(n) => {
            wanted.contains(&found) || wanted.contains(&"number") || (wanted.contains(&"integer") && n.as_f64().is_some_and(|f| f.fract() == 0.0))
        }
        _ => wanted.contains(&found),
    };
    (!fits).then(|| Error {
        kind: ErrorType::TypeInvalid,
        path: place.at(),
        value: Some(format!("{found:?}")),
        detail: format!("{} in body must be of type {}: {found:?}", place.path, wanted.join(",")),
    })
}

/// JSON's equality: 1 and 1.0 are the same number.
fn equal(a: &Value, b: &Value) -> bool {
    a == b || (a.is_number() && a.as_f64() == b.as_f64())
}

/// `allOf`, `anyOf`, `oneOf`, `not`.
fn combinations(schema: &Value, place: &Place<'_>, outcome: &mut Outcome) {
    let Place { path, value, old } = *place;
    // The alternatives are no places of their own: what they find isn't forgiven by them, but by the whole.
    let each = |name: &str| -> Vec<Outcome> { items(schema, &[name]).iter().map(|s| rules(s, &Place { path, value, old })).collect() };
    let composite = |words: String| Error { kind: ErrorType::Invalid, path: NO_PATH.into(), value: Some("\"\"".into()), detail: format!("{path:?} {words}") };
    for (name, words) in [("anyOf", "must validate at least one schema (anyOf)"), ("oneOf", "must validate one and only one schema (oneOf).")] {
        let all = each(name);
        let (total, passed) = (all.len(), all.iter().filter(|o| o.errors.is_empty()).count());
        let failed = match (name, total, passed) {
            (_, 0, _) | ("oneOf", _, 1) => continue,
            ("anyOf", _, 1..) => continue,
            ("anyOf", ..) => words.to_owned(),
            (_, _, 0) => format!("{words} Found none valid"),
            (_, _, many) => format!("{words} Found {many} valid alternatives"),
        };
        outcome.push(composite(failed));
        if passed == 0 {
            all.into_iter().reduce(|a, b| if b.looked_at > a.looked_at { b } else { a }).into_iter().for_each(|best| outcome.merge(best));
        }
    }
    let all = each("allOf");
    let (total, passed) = (all.len(), all.iter().filter(|o| o.errors.is_empty()).count());
    all.into_iter().for_each(|one| outcome.merge(one));
    if passed != total {
        let none = if passed == 0 { ". None validated" } else { "" };
        outcome.push(composite(format!("must validate all the schemas (allOf){none}")));
    }
    let not = &schema["not"];
    if not.is_object() && rules(not, &Place { path, value, old }).errors.is_empty() {
        outcome.push(composite("must not validate the schema (not)".into()));
    }
}

fn text_rules(schema: &Value, place: &Place<'_>, text: &str) -> Option<Error> {
    let length = text.chars().count() as u64;
    if let Some(max) = schema["maxLength"].as_u64().filter(|max| length > *max) {
        return Some(Error::too_long(place.at(), usize::try_from(max).unwrap_or(usize::MAX)));
    }
    if let Some(min) = schema["minLength"].as_u64().filter(|min| length < *min) {
        return Some(place.invalid(format_args!("should be at least {min} chars long")));
    }
    let fails = |pattern: &&str| pattern::compile(pattern).is_ok_and(|regex| !regex.is_match(text));
    schema["pattern"].as_str().filter(fails).map(|pattern| place.invalid(format_args!("should match '{pattern}'")))
}

fn number_rules(schema: &Value, place: &Place<'_>, outcome: &mut Outcome) {
    let Some(number) = place.value.as_f64() else { return };
    let bound = |name: &str| schema[name].as_f64();
    if let Some(factor) = bound("multipleOf").filter(|f| *f != 0.0 && !is_whole(number / f)) {
        outcome.push(place.invalid(format_args!("should be a multiple of {factor}")));
    }
    let exclusive = |name: &str| schema[name] == true;
    if let Some(max) = bound("maximum") {
        let (strict, words) = if exclusive("exclusiveMaximum") { (true, "less than") } else { (false, "less than or equal to") };
        if number > max || (strict && number >= max) {
            outcome.push(place.invalid(format_args!("should be {words} {max}")));
        }
    }
    if let Some(min) = bound("minimum") {
        let (strict, words) = if exclusive("exclusiveMinimum") { (true, "greater than") } else { (false, "greater than or equal to") };
        if number < min || (strict && number <= min) {
            outcome.push(place.invalid(format_args!("should be {words} {min}")));
        }
    }
    let format = schema["format"].as_str().unwrap_or("");
    let integer = schema["type"] == "integer";
    if integer && format == "int32" && i32::try_from(place.value.as_i64().unwrap_or(i64::MAX)).is_err() {
        let detail = format!("Checked value must be of type integer with format int32 in {}", place.path);
        outcome.push(Error { kind: ErrorType::Invalid, path: NO_PATH.into(), value: Some("\"\"".into()), detail });
    }
}

/// Whether the quotient is a whole number, as far as floating point can say.
fn is_whole(quotient: f64) -> bool {
    (quotient - quotient.round()).abs() < 1e-9
}

fn list_rules(schema: &Value, place: &Place<'_>, list: &[Value], outcome: &mut Outcome) {
    if schema["items"].is_object() {
        let before = Before::of(schema, place.old);
        for (i, item) in list.iter().enumerate() {
            outcome.merge(check(&schema["items"], item, before.of_item(item), &format!("{}[{i}]", place.path)));
        }
    }
    let size = list.len() as u64;
    if let Some(min) = schema["minItems"].as_u64().filter(|min| size < *min) {
        outcome.push(counted(place, size, format_args!("should have at least {min} items")));
    }
    if let Some(max) = schema["maxItems"].as_u64().filter(|max| size > *max) {
        outcome.push(Error::too_many(place.at(), list.len(), usize::try_from(max).unwrap_or(usize::MAX)));
    }
    if schema["uniqueItems"] == true && list.iter().enumerate().any(|(i, item)| list[..i].iter().any(|earlier| equal(earlier, item))) {
        outcome.push(place.invalid("shouldn't contain duplicates"));
    }
}

fn counted(place: &Place<'_>, count: u64, words: std::fmt::Arguments<'_>) -> Error {
    Error::invalid(place.at(), count, format!("{} in body {words}", place.path))
}

/// The items of a list before, found by their keys.
struct Before<'a> {
    keys: Vec<&'a str>,
    list: &'a [Value],
}

impl<'a> Before<'a> {
    fn of(schema: &'a Value, old: Option<&'a Value>) -> Self {
        let is_map = schema["x-kubernetes-list-type"] == "map";
        let list = old.filter(|_| is_map).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        Self { keys: items(schema, &["x-kubernetes-list-map-keys"]).iter().filter_map(Value::as_str).collect(), list }
    }

    fn of_item(&self, item: &Value) -> Option<&'a Value> {
        self.list.iter().find(|old| self.keys.iter().all(|key| old.get(key) == item.get(key)))
    }
}

fn object_rules(schema: &Value, place: &Place<'_>, map: &Map<String, Value>, outcome: &mut Outcome) {
    let count = map.len() as u64;
    if let Some(min) = schema["minProperties"].as_u64().filter(|min| count < *min) {
        return outcome.push(counted(place, count, format_args!("should have at least {min} properties")));
    }
    if let Some(max) = schema["maxProperties"].as_u64().filter(|max| count > *max) {
        return outcome.push(Error::too_many(place.at(), map.len(), usize::try_from(max).unwrap_or(usize::MAX)));
    }
    let properties = schema["properties"].as_object();
    let known = |name: &str| properties.is_some_and(|p| p.contains_key(name));
    let before = |name: &str| place.old.and_then(|old| old.get(name));
    match &schema["additionalProperties"] {
        Value::Bool(false) => {
            for name in map.keys().filter(|name| !known(name)) {
                let words = format!("{} in body is a forbidden property", place.below(name));
                outcome.push(Error::invalid(place.at(), "", words));
            }
        }
        values @ Value::Object(_) => {
            for (name, value) in map.iter().filter(|(name, _)| !known(name)) {
                outcome.merge(check(values, value, before(name), &place.below(name)));
            }
        }
        _ => {}
    }
    for (name, property) in properties.into_iter().flatten() {
        if let Some(value) = map.get(name) {
            let path = if place.path.is_empty() { name.clone() } else { place.below(name) };
            // Types change with the version asked for, so the type of the whole object is never forgiven.
            let old = before(name).filter(|_| !place.path.is_empty() || !matches!(name.as_str(), "apiVersion" | "kind"));
            outcome.merge(check(property, value, old, &path));
        }
    }
    for name in items(schema, &["required"]).iter().filter_map(Value::as_str).filter(|name| !map.contains_key(*name)) {
        outcome.push(Error::required(place.below(name).trim_start_matches('.'), ""));
    }
}
