//! `x-kubernetes-validations`: the rules in a custom resource's schema.

use serde_json::Value;

use super::bounds::Bounds;
use super::budget::{self, Budget};
use super::{Activation, BUDGET, Env, Fault, Program, Type, Val};
use crate::field::{Error, ErrorType};
use crate::value::{items, text};

/// The rules of a schema, at every depth.
#[derive(Debug, Default)]
pub struct Rules(Option<Node>);

/// The rules at one node of the schema, and below.
#[derive(Debug)]
struct Node {
    rules: Vec<Rule>,
    /// `object`, `string`: what errors show for values.
    type_name: String,
    type_: Option<Type>,
    properties: Vec<(String, Node)>,
    /// Of a list's items or a map's values.
    items: Option<Box<Node>>,
    /// The keys by which items of the list are the same; empty for a list whose items can't be told apart.
    keys: Vec<String>,
}

#[derive(Debug)]
struct Rule {
    program: Result<Program, String>,
    message: String,
    /// What makes the message, with its source.
    message_expression: Option<(Program, String)>,
    /// What it is called in errors.
    shown: String,
    reason: String,
    field_path: String,
    uses_old: bool,
    optional_old: bool,
}

/// Compiles a schema's rules, and judges them where they are written.
struct Compiler<'s> {
    errors: Vec<Error>,
    judged: Option<Judged<'s>>,
}

/// How rules are judged.
struct Judged<'s> {
    budget: Budget,
    /// Whether the schema itself is sound at this path and below: rules are only looked at where it is.
    sound: &'s dyn Fn(&str) -> bool,
}

/// Where a node stands.
#[derive(Clone)]
struct Place {
    path: String,
    root: bool,
    /// The list above whose items can't be told apart, so that there are no old values below.
    lost: Option<String>,
    /// How often values like this can stand in an object, if there is a limit.
    times: Option<u64>,
}

impl Rules {
    /// Compiles the rules of an `openAPIV3Schema`. Rules with errors are kept, and fail when they are evaluated.
    pub fn compile(schema: &Value) -> Self {
        let mut compiler = Compiler { errors: Vec::new(), judged: None };
        Self(compiler.node(schema, &Place { path: String::new(), root: true, lost: None, times: None }, 0))
    }

    /// What is wrong with the rules of an `openAPIV3Schema` that stands at `path`: upstream's errors. `sound` tells whether
    /// there is nothing else wrong at a path and below. A schema that was `stored` like this is spared the limit of cost
    /// that holds for each rule.
    pub fn judge(schema: &Value, path: &str, stored: bool, sound: &dyn Fn(&str) -> bool) -> Vec<Error> {
        let mut compiler = Compiler { errors: Vec::new(), judged: Some(Judged { budget: Budget::new(stored), sound }) };
        compiler.node(schema, &Place { path: path.to_owned(), root: true, lost: None, times: Some(1) }, 0);
        let Compiler { mut errors, judged } = compiler;
        errors.extend(judged.into_iter().flat_map(|j| j.budget.close(path)));
        errors
    }

    /// Whether there are no rules.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// What the rules say of an object. `old` is the object before an update: rules about the change hold only there, and
    /// what hasn't changed isn't held against the writer.
    pub fn validate(&self, new: &Value, old: Option<&Value>) -> Vec<Error> {
        let mut run = Run { errors: Vec::new(), budget: BUDGET, over: false };
        if let Some(node) = &self.0 {
            run.node(node, new, old, old == Some(new), "");
        }
        run.errors
    }
}

/// A rule as Go prints it in an error.
fn go_rule(rule: &Value) -> String {
    let quoted = |key: &str| {
        let json = Value::from(text(rule, &[key])).to_string();
        json.replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026")
    };
    let reason = if text(rule, &["reason"]).is_empty() { "null".to_owned() } else { quoted("reason") };
    format!(
        "{{\"Rule\":{},\"Message\":{},\"MessageExpression\":{},\"Reason\":{reason},\"FieldPath\":{},\"OptionalOldSelf\":{}}}",
        quoted("rule"),
        quoted("message"),
        quoted("messageExpression"),
        quoted("fieldPath"),
        rule["optionalOldSelf"]
    )
}

impl Compiler<'_> {
    /// The node, if it or anything below has rules.
    fn node(&mut self, schema: &Value, place: &Place, depth: usize) -> Option<Node> {
        if depth > 100 || !schema.is_object() {
            return None;
        }
        let list_map = text(schema, &["x-kubernetes-list-type"]) == "map";
        let keys = items(schema, &["x-kubernetes-list-map-keys"]).iter().filter(|_| list_map).filter_map(Value::as_str);
        let keys: Vec<String> = keys.map(str::to_owned).collect();
        let times = budget::below(schema, place.times);
        let at = |path: String| Place { path: format!("{}.{path}", place.path), root: false, lost: place.lost.clone(), times };
        let mut below = if schema["items"].is_object() { None } else { self.node(&schema["additionalProperties"], &at("additionalProperties".into()), depth + 1) };
        let mut properties = Vec::new();
        for (name, child) in schema["properties"].as_object().into_iter().flatten() {
            if let Some(node) = self.node(child, &at(format!("properties[{name}]")), depth + 1) {
                properties.push((name.clone(), node));
            }
        }
        if schema["items"].is_object() {
            let lost = place.lost.clone().or_else(|| (!list_map).then(|| place.path.clone()));
            below = self.node(&schema["items"], &Place { lost, ..at("items".into()) }, depth + 1);
        }
        let root = place.root || schema["x-kubernetes-embedded-resource"] == true;
        let given = items(schema, &["x-kubernetes-validations"]);
        let type_ = if given.is_empty() { None } else { Type::of_schema(schema, root) };
        let rules = self.rules(schema, given, root, type_.as_ref(), place);
        if rules.is_empty() && properties.is_empty() && below.is_none() {
            return None;
        }
        let type_name = text(schema, &["type"]).to_owned();
        Some(Node { rules, type_name, type_, properties, items: below.map(Box::new), keys })
    }

    fn rules(&mut self, schema: &Value, given: &[Value], root: bool, type_: Option<&Type>, place: &Place) -> Vec<Rule> {
        if given.is_empty() || self.judged.as_ref().is_some_and(|j| !(j.sound)(&place.path)) {
            return Vec::new();
        }
        let bounds = if self.judged.is_some() { Bounds::of_schema(schema, root) } else { None };
        if self.judged.is_some() && bounds.is_none() {
            let path = format!("{}.x-kubernetes-validations", place.path);
            let detail = "internal error: failed to construct type information for x-kubernetes-validations rules: unable to convert structural schema to CEL declarations";
            self.errors.push(Error { kind: ErrorType::Internal, path, value: None, detail: detail.into() });
            return Vec::new();
        }
        given.iter().enumerate().map(|(i, rule)| self.rule(rule, type_, bounds.as_ref(), &format!("{}.x-kubernetes-validations[{i}]", place.path), place)).collect()
    }

    fn rule(&mut self, rule: &Value, type_: Option<&Type>, bounds: Option<&Bounds>, path: &str, place: &Place) -> Rule {
        let source = text(rule, &["rule"]);
        let optional_old = rule["optionalOldSelf"] == true;
        let self_type = type_.cloned().unwrap_or(Type::Dyn);
        let old_type = if optional_old { Type::Optional(self_type.clone().into()) } else { self_type.clone() };
        let env = Env::default().with("self", self_type).with("oldSelf", old_type);
        let invalid = |at: &str, detail: String| Error { kind: ErrorType::Invalid, path: format!("{path}.{at}"), value: Some(go_rule(rule)), detail };
        let program = Program::build(&env, source).and_then(|program| {
            if program.type_ == Type::Bool { Ok(program) } else { Err("cel expression must evaluate to a bool".to_owned()) }
        });
        match &program {
            Ok(program) => self.spend("estimated rule cost", format!("{path}.rule"), program, bounds, Some(place)),
            Err(detail) if !source.trim().is_empty() => self.errors.push(invalid("rule", detail.clone())),
            Err(_) => {}
        }
        let message_source = text(rule, &["messageExpression"]);
        let mut message_expression = None;
        if program.is_ok() && !message_source.is_empty() {
            match Program::build(&env, message_source) {
                Ok(program) if program.type_ == Type::String => {
                    self.spend("estimated messageExpression cost", format!("{path}.messageExpression"), &program, bounds, None);
                    message_expression = Some((program, message_source.to_owned()));
                }
                Ok(_) => self.errors.push(invalid("messageExpression", "messageExpression must evaluate to a string".into())),
                Err(why) => {
                    let why = why.strip_prefix("program ").unwrap_or(&why);
                    self.errors.push(invalid("messageExpression", format!("messageExpression {why}")));
                }
            }
        }
        let uses_old = program.as_ref().is_ok_and(|p| p.mentions("oldSelf"));
        if let (true, Some(list)) = (uses_old, &place.lost) {
            let detail = format!("oldSelf cannot be used on the uncorrelatable portion of the schema within {list}");
            self.errors.push(Error::invalid(format!("{path}.rule"), source, detail));
        }
        if !uses_old && rule["optionalOldSelf"].is_boolean() {
            let detail = "may not be set if oldSelf is not used in rule";
            self.errors.push(Error::invalid(format!("{path}.optionalOldSelf"), rule["optionalOldSelf"].clone(), detail));
        }
        let message = text(rule, &["message"]).trim();
        let shown = if message.is_empty() { source.trim() } else { message };
        Rule {
            program,
            message: message.to_owned(),
            message_expression,
            shown: shown.to_owned(),
            reason: text(rule, &["reason"]).to_owned(),
            field_path: text(rule, &["fieldPath"]).trim_start_matches('.').to_owned(),
            uses_old,
            optional_old,
        }
    }

    /// Counts what an expression may cost: as often as values of its place can stand in an object, where one is given.
    fn spend(&mut self, name: &str, path: String, program: &Program, bounds: Option<&Bounds>, place: Option<&Place>) {
        let (Some(judged), Some(bounds)) = (&mut self.judged, bounds) else { return };
        let times = place.map_or(1, |place| place.times.unwrap_or_else(|| bounds.most_in_object()));
        let cost = program.most(bounds).saturating_mul(times);
        self.errors.extend(judged.budget.spend(name, path, cost));
    }
}

/// One validation.
struct Run {
    errors: Vec<Error>,
    budget: u64,
    /// Whether the budget is gone, so that nothing more is evaluated.
    over: bool,
}

/// A rule's variables.
struct Given<'a>(Val<'a>, Option<Val<'a>>);

impl<'a> Activation<'a> for Given<'a> {
    fn variable(&self, name: &str) -> Option<Result<Val<'a>, String>> {
        match name {
            "self" => Some(Ok(self.0.clone())),
            "oldSelf" => self.1.clone().map(Ok),
            _ => None,
        }
    }
}

fn shown_path(path: &str) -> String {
    if path.is_empty() { "<nil>".to_owned() } else { path.to_owned() }
}

fn below(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

impl Run {
    /// `same` is whether this, or the nearest above that has a value before, is what it was.
    fn node(&mut self, node: &Node, new: &Value, old: Option<&Value>, same: bool, path: &str) {
        if self.over || new.is_null() {
            return;
        }
        let old = old.filter(|o| !o.is_null());
        self.rules(node, new, old, same, path);
        match new {
            Value::Object(map) => {
                for (name, child) in &node.properties {
                    if let Some(value) = map.get(name) {
                        let before = old.and_then(|o| o.get(name));
                        self.node(child, value, before, before == Some(value), &below(path, name));
                    }
                }
                if let Some(values) = &node.items {
                    for (key, value) in map.iter().filter(|(key, _)| !node.properties.iter().any(|(name, _)| name == *key)) {
                        let before = old.and_then(|o| o.get(key));
                        self.node(values, value, before, before == Some(value), &format!("{path}[{key}]"));
                    }
                }
            }
            Value::Array(list) => {
                let Some(child) = &node.items else { return };
                for (i, item) in list.iter().enumerate() {
                    let keyed = |other: &&Value| node.keys.iter().all(|key| other.get(key) == item.get(key));
                    let before = if node.keys.is_empty() { None } else { old.and_then(Value::as_array).and_then(|o| o.iter().find(keyed)) };
                    let same = if node.keys.is_empty() { same } else { before == Some(item) };
                    self.node(child, item, before, same, &format!("{path}[{i}]"));
                }
            }
            _ => {}
        }
    }

    fn out_of_budget(&mut self, node: &Node, path: &str) {
        self.over = true;
        let detail = "validation failed due to running out of cost budget, no further validation rules will be run";
        self.errors.push(Error::invalid(shown_path(path), node.type_name.as_str(), detail));
    }

    fn rules(&mut self, node: &Node, new: &Value, old: Option<&Value>, same: bool, path: &str) {
        if node.rules.is_empty() {
            return;
        }
        if self.budget == 0 {
            return self.out_of_budget(node, path);
        }
        let type_ = node.type_.clone().unwrap_or(Type::Dyn);
        let value = Val::json(new, &type_);
        let before = old.map(|old| Val::json(old, &type_));
        for rule in &node.rules {
            let invalid = |detail: String| Error::invalid(shown_path(path), node.type_name.as_str(), detail);
            let program = match &rule.program {
                Ok(program) => program,
                Err(_) if rule.shown.is_empty() => continue,
                Err(why) => {
                    self.errors.push(invalid(format!("rule compile error: {why}")));
                    continue;
                }
            };
            if rule.uses_old && old.is_none() && !rule.optional_old {
                continue;
            }
            let old_self = if rule.optional_old { Some(before.clone().map_or(Val::Optional(None), Val::some)) } else { before.clone() };
            let given = Given(value.clone(), old_self);
            let (result, cost) = program.eval(&given);
            let Some(left) = self.budget.checked_sub(cost) else { return self.out_of_budget(node, path) };
            self.budget = left;
            match result {
                Ok(Val::Bool(true)) => {}
                Ok(_) => {
                    if same && !rule.uses_old {
                        continue;
                    }
                    // Messages see the old value as it is, also where rules see an optional.
                    match self.message(rule, &Given(value.clone(), before.clone())) {
                        Ok(detail) => self.errors.push(refusal(node, rule, new, path, detail)),
                        Err(why) => {
                            self.over = true;
                            self.errors.push(Error::invalid(refused_path(rule, path), node.type_name.as_str(), why));
                            return;
                        }
                    }
                }
                Err(Fault::TooExpensive) => {
                    let why = format!("'{}': no further validation rules will be run due to call cost exceeds limit for rule: {}", Fault::TooExpensive, rule.shown);
                    self.over = true;
                    return self.errors.push(invalid(why));
                }
                Err(Fault::Error(why)) if why.starts_with("no such overload") => {
                    let detail = format!("'{why}': call arguments did not match a supported operator, function or macro signature for rule: {}", rule.shown);
                    self.errors.push(invalid(detail));
                }
                Err(Fault::Error(why)) => self.errors.push(invalid(format!("{why} evaluating rule: {}", rule.shown))),
            }
        }
    }

    /// What is said of a broken rule; an error is one that ends the validation.
    fn message(&mut self, rule: &Rule, given: &Given<'_>) -> Result<String, String> {
        if let Some((program, source)) = &rule.message_expression {
            let (result, cost) = program.eval(given);
            let Some(left) = self.budget.checked_sub(cost) else {
                return Err("messageExpression evaluation failed due to running out of cost budget, no further validation rules will be run".into());
            };
            if matches!(result, Err(Fault::TooExpensive)) {
                let why = "no further validation rules will be run due to call cost exceeds limit for messageExpression";
                return Err(format!("{why}: {source:?}"));
            }
            self.budget = left;
            if let Some(text) = super::message(result.ok()) {
                return Ok(text);
            }
        }
        Ok(if rule.message.is_empty() { format!("failed rule: {}", rule.shown) } else { rule.message.clone() })
    }
}

fn refused_path(rule: &Rule, path: &str) -> String {
    if rule.field_path.is_empty() { shown_path(path) } else { below(path, &rule.field_path) }
}

fn refusal(node: &Node, rule: &Rule, value: &Value, path: &str, detail: String) -> Error {
    let path = refused_path(rule, path);
    let shown = (!matches!(node.type_name.as_str(), "object" | "array")).then(|| crate::field::shown(value));
    let (kind, value, detail) = match rule.reason.as_str() {
        "FieldValueForbidden" => (ErrorType::Forbidden, None, detail),
        "FieldValueRequired" => (ErrorType::Required, None, detail),
        "FieldValueDuplicate" => (ErrorType::Duplicate, shown, String::new()),
        _ => (ErrorType::Invalid, shown, detail),
    };
    Error { kind, path, value, detail }
}
