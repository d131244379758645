//! The vocabulary of the rules: places in an object, and a list of errors that knows the common rules.

use std::collections::HashSet;

use serde_json::Value;

use crate::field::Error;
use crate::names;
use crate::quantity::Quantity;
use crate::schema::{Presence, Schema};
use crate::value::is_blank;

static NULL: Value = Value::Null;

/// A place in an object: its path, and what stands there (null when nothing does).
#[derive(Clone, Debug)]
pub(super) struct At<'a> {
    pub value: &'a Value,
    pub path: String,
    /// What the kind's schema says of the place: messages show values as Go's structs.
    pub schema: &'a Schema,
    /// Whether Go has a pointer here, so that nothing is nil and no zero value.
    pub pointer: bool,
}

impl<'a> At<'a> {
    /// A value of no known schema.
    pub fn root(value: &'a Value) -> Self {
        Self::of(value, Schema::any())
    }

    pub fn of(value: &'a Value, schema: &'a Schema) -> Self {
        Self { value, path: String::new(), schema, pointer: true }
    }

    /// The member of that name; a dotted name goes several steps.
    pub fn at(&self, name: &str) -> Self {
        let (mut value, mut schema, mut pointer) = (self.value, self.schema, true);
        for step in name.split('.') {
            value = value.get(step).unwrap_or(&NULL);
            pointer = schema.property(step).is_none_or(|p| matches!(p.presence, Presence::Given | Presence::AlwaysNull));
            schema = schema.member(step).unwrap_or(Schema::any());
        }
        Self { value, path: self.below(name), schema, pointer }
    }

    /// The path of a member.
    pub fn below(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// The same value under another path.
    pub fn called(&self, path: impl Into<String>) -> Self {
        Self { path: path.into(), ..self.clone() }
    }

    /// The entry of a map with that key.
    pub fn key(&self, key: &str) -> Self {
        let schema = self.schema.member(key).unwrap_or(Schema::any());
        Self { value: self.value.get(key).unwrap_or(&NULL), path: format!("{}[{key}]", self.path), schema, pointer: true }
    }

    /// The items of a list.
    pub fn items(&self) -> impl Iterator<Item = At<'a>> + use<'a> {
        let (path, schema) = (self.path.clone(), self.schema.items().unwrap_or(Schema::any()));
        let items = self.value.as_array().map_or(&[][..], Vec::as_slice);
        items.iter().enumerate().map(move |(i, value)| At { value, path: format!("{path}[{i}]"), schema, pointer: false })
    }

    /// The entries of a map.
    pub fn entries(&self) -> impl Iterator<Item = (&'a str, At<'a>)> + use<'a> {
        let (path, schema) = (self.path.clone(), self.schema);
        let map = self.value.as_object();
        map.into_iter().flatten().map(move |(key, value)| {
            let schema = schema.member(key).unwrap_or(Schema::any());
            (key.as_str(), At { value, path: format!("{path}[{key}]"), schema, pointer: false })
        })
    }

    /// The value as messages show it.
    fn shown(&self) -> String {
        match self.value {
            Value::String(_) => self.value.to_string(),
            value => self.schema.shown_go(value, self.pointer),
        }
    }

    /// The difference of two values of this place, line by line.
    pub fn changes(&self, was: &Value, now: &Value) -> String {
        super::diff::unified(&self.schema.shown_go_lines(was), &self.schema.shown_go_lines(now))
    }

    /// How many items or entries there are.
    pub fn len(&self) -> usize {
        self.value.as_array().map_or_else(|| self.value.as_object().map_or(0, serde_json::Map::len), Vec::len)
    }

    /// Whether something stands here.
    pub fn is_set(&self) -> bool {
        !self.value.is_null()
    }

    /// Whether nothing stands here, or something without content.
    pub fn is_empty(&self) -> bool {
        is_blank(self.value) || self.value == ""
    }

    pub fn str(&self) -> &'a str {
        self.value.as_str().unwrap_or("")
    }

    pub fn int(&self) -> Option<i64> {
        self.value.as_i64()
    }

    /// The number, 0 when there is none.
    pub fn number(&self) -> i64 {
        self.int().unwrap_or(0)
    }

    pub fn flag(&self) -> bool {
        self.value == &Value::Bool(true)
    }

    pub fn quantity(&self) -> Option<Quantity> {
        Quantity::parse(self.str()).ok()
    }

    /// The texts of a list.
    pub fn texts(&self) -> Vec<&'a str> {
        self.value.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
    }
}

/// The errors found so far. Rules on a place do nothing where nothing stands, unless they say so.
#[derive(Debug, Default)]
pub(super) struct Errors(pub Vec<Error>);

impl Errors {
    pub fn push(&mut self, error: Error) {
        self.0.push(error);
    }

    pub fn required(&mut self, at: &At, detail: &str) {
        self.push(Error::required(&at.path, detail));
    }

    pub fn invalid(&mut self, at: &At, detail: impl Into<String>) {
        self.push(Error { value: Some(at.shown()), ..Error::invalid(&at.path, Value::Null, detail) });
    }

    pub fn invalid_value(&mut self, at: &At, value: impl Into<Value>, detail: impl Into<String>) {
        self.push(Error::invalid(&at.path, value, detail));
    }

    pub fn unsupported(&mut self, at: &At, supported: &[&str]) {
        self.push(Error { value: Some(at.shown()), ..Error::not_supported(&at.path, Value::Null, supported) });
    }

    pub fn forbidden(&mut self, at: &At, detail: impl Into<String>) {
        self.push(Error::forbidden(&at.path, detail));
    }

    pub fn duplicate(&mut self, at: &At) {
        self.push(Error { value: Some(at.shown()), ..Error::duplicate(&at.path, Value::Null) });
    }

    pub fn not_found(&mut self, at: &At) {
        self.push(Error { value: Some(at.shown()), ..Error::not_found(&at.path, Value::Null) });
    }

    pub fn too_long(&mut self, at: &At, max: usize) {
        self.push(Error::too_long(&at.path, max));
    }

    /// A text of so many bytes at the most.
    pub fn no_longer(&mut self, at: &At, max: usize) {
        if at.str().len() > max {
            self.too_long(at, max);
        }
    }

    /// Whether there are more items than that, which is an error.
    pub fn too_many(&mut self, list: &At, max: usize) -> bool {
        if list.len() > max {
            self.push(Error::too_many(&list.path, list.len(), max));
        }
        list.len() > max
    }

    pub fn immutable(&mut self, at: &At) {
        self.invalid(at, "field is immutable");
    }

    /// Says more of the last error.
    pub fn detail(&mut self, detail: &str) {
        if let Some(last) = self.0.last_mut() {
            detail.clone_into(&mut last.detail);
        }
    }

    /// A text (the empty one where nothing stands) of the form that the rule checks.
    pub fn form(&mut self, at: &At, rule: fn(&str) -> Vec<String>) {
        self.text_form(at, at.str(), rule);
    }

    /// A text of this place, though not all that stands there, of the form that the rule checks.
    pub fn text_form(&mut self, at: &At, text: &str, rule: fn(&str) -> Vec<String>) {
        rule(text).into_iter().for_each(|fault| self.invalid_value(at, text, fault));
    }

    /// A text, empty or not, of the form that the rule checks, where there is one.
    pub fn given_form(&mut self, at: &At, rule: fn(&str) -> Vec<String>) {
        if at.is_set() {
            self.form(at, rule);
        }
    }

    /// A text that must be there, of the form that the rule checks.
    pub fn required_form(&mut self, at: &At, rule: fn(&str) -> Vec<String>) {
        if at.str().is_empty() {
            self.required(at, "");
        } else {
            self.form(at, rule);
        }
    }

    /// A text of the form that the rule checks, unless it is empty.
    pub fn optional_form(&mut self, at: &At, rule: fn(&str) -> Vec<String>) {
        if !at.str().is_empty() {
            self.form(at, rule);
        }
    }

    /// Something must stand here, and not be empty.
    pub fn filled(&mut self, at: &At) {
        self.wanted(at, "");
    }

    /// The same, with a word on why.
    pub fn wanted(&mut self, at: &At, detail: &str) {
        if at.is_empty() {
            self.required(at, detail);
        }
    }

    /// One of the values; an empty text is one that is missing.
    pub fn one_of(&mut self, at: &At, supported: &[&str]) {
        if at.is_empty() {
            self.required(at, "");
        } else {
            self.maybe_one_of(at, supported);
        }
    }

    /// One of the values, where there is one.
    pub fn maybe_one_of(&mut self, at: &At, supported: &[&str]) {
        if at.is_set() && !supported.contains(&at.str()) {
            self.unsupported(at, supported);
        }
    }

    pub fn non_negative(&mut self, at: &At) {
        self.at_least(at, 0, "must be greater than or equal to 0");
    }

    /// A number, where there is one, of at least that.
    pub fn at_least(&mut self, at: &At, low: i64, detail: &str) {
        if at.int().is_some_and(|n| n < low) {
            self.invalid(at, detail);
        }
    }

    /// A number, where it is missing 0, of at most that.
    pub fn at_most(&mut self, at: &At, high: i64, detail: impl Into<String>) {
        if at.number() > high {
            self.invalid(at, detail);
        }
    }

    /// A number, where it is missing 0, above 0.
    pub fn positive(&mut self, at: &At, detail: &str) {
        if at.number() <= 0 {
            self.invalid_value(at, at.number(), detail);
        }
    }

    /// Within bounds, both included.
    pub fn in_range(&mut self, at: &At, low: i64, high: i64) {
        if at.int().is_some_and(|n| !(low..=high).contains(&n)) {
            self.invalid(at, names::range_error(low, high));
        }
    }

    /// The number of a port, where it is missing 0.
    pub fn port_number(&mut self, at: &At) {
        for fault in names::port_number(at.number()) {
            self.invalid_value(at, at.number(), fault);
        }
    }

    /// The number or the name of a port.
    pub fn port(&mut self, at: &At) {
        if at.value.is_string() { self.form(at, names::port_name) } else { self.port_number(at) }
    }

    /// Neither above 2^31 nor negative.
    pub fn user_id(&mut self, at: &At) {
        self.in_range(at, 0, i32::MAX.into());
    }

    /// A file mode.
    pub fn mode(&mut self, at: &At) {
        if at.int().is_some_and(|mode| !(0..=0o777).contains(&mode)) {
            self.invalid(at, "must be a number between 0 and 0777 (octal), both inclusive");
        }
    }

    /// An amount that isn't negative.
    pub fn non_negative_quantity(&mut self, at: &At) {
        if at.quantity().is_some_and(|q| q.signum() < 0) {
            self.invalid(at, "must be greater than or equal to 0");
        }
    }

    /// An absolute count or a percentage, not negative.
    pub fn int_or_percent(&mut self, at: &At) {
        if at.value.is_string() { self.form(at, names::percent) } else { self.non_negative(at) }
    }

    /// Not more than everything.
    pub fn at_most_all(&mut self, at: &At) {
        if percent(at).is_some_and(|percent| percent > 100) {
            self.invalid(at, "must not be greater than 100%");
        }
    }

    /// A relative path without steps back.
    pub fn relative_path(&mut self, at: &At) {
        if at.str().starts_with('/') {
            self.invalid(at, "must be a relative path");
        }
        self.no_backsteps(at);
    }

    pub fn no_backsteps(&mut self, at: &At) {
        if at.str().split('/').any(|part| part == "..") {
            self.invalid(at, "must not contain '..'");
        }
    }

    /// A relative path whose first part doesn't begin with two dots.
    pub fn local_path(&mut self, at: &At) {
        self.relative_path(at);
        if at.str().starts_with("..") && !at.str().starts_with("../") {
            self.invalid(at, "must not start with '..'");
        }
    }

    /// A text that hasn't been `seen` before.
    pub fn once<'a>(&mut self, at: &At<'a>, seen: &mut HashSet<&'a str>) {
        if !seen.insert(at.str()) {
            self.duplicate(at);
        }
    }

    /// Each of the texts of a list at most once. What is empty is wrong for that already.
    pub fn unique<'a>(&mut self, items: impl Iterator<Item = At<'a>>) {
        let mut seen = HashSet::new();
        for at in items {
            if !at.is_empty() && !seen.insert(at.value.to_string()) {
                self.duplicate(&at);
            }
        }
    }

    /// Fields of which none may change. `old` is the object that these stand in before.
    pub fn unchanged(&mut self, new: &At, old: &Value, names: &[&str]) {
        for name in names {
            let at = new.at(name);
            if !same(at.value, At::root(old).at(name).value) {
                self.immutable(&at);
            }
        }
    }

    /// Whether there are more errors than the number there were.
    pub fn has_since(&self, start: usize) -> bool {
        self.0.len() > start
    }
}

/// Equal, an empty list or map being as good as none.
pub(super) fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Object(x), Value::Object(y)) => {
            let shared = x.iter().all(|(key, value)| y.get(key).map_or_else(|| is_blank(value), |other| same(value, other)));
            shared && y.iter().all(|(key, value)| x.contains_key(key) || is_blank(value))
        }
        (Value::Array(x), Value::Array(y)) => x.len() == y.len() && x.iter().zip(y).all(|(a, b)| same(a, b)),
        _ => a == b || is_blank(a) && is_blank(b),
    }
}

/// The percentage of `25%`.
pub(super) fn percent(at: &At) -> Option<i64> {
    at.value.as_str()?.strip_suffix('%')?.parse().ok()
}

/// The whole number of `25%` or `3`.
pub(super) fn int_or_percent_value(at: &At) -> i64 {
    percent(at).unwrap_or_else(|| at.number())
}
