//! `x-kubernetes-validations`: the rules in a custom resource's schema.

use serde_json::Value;

use super::{BUDGET, Activation, Env, Fault, Program, Type, Val};
use crate::field::{Error, ErrorType};
use crate::value::{items, text};

/// How long the text that a `messageExpression` makes may be, in bytes.
const MAX_MESSAGE: usize = 5 * 1024;

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
    /// What `allOf` adds.
    all_of: Vec<Node>,
}

#[derive(Debug)]
struct Rule {
    program: Result<Program, String>,
    message: String,
    message_expression: Option<Program>,
    /// What it is called in errors.
    shown: String,
    reason: String,
    field_path: String,
    uses_old: bool,
    optional_old: bool,
}

/// Compiles a schema's rules.
struct Compiler {
    errors: Vec<Error>,
}

impl Rules {
    /// Compiles the rules of an `openAPIV3Schema`. `path` is where the schema stands, for the errors, which are upstream's.
    /// Rules with errors are kept, and fail when they are evaluated.
    pub fn compile(schema: &Value, path: &str) -> (Self, Vec<Error>) {
        let mut compiler = Compiler { errors: Vec::new() };
        let node = compiler.node(schema, schema, path, true, false, 0);
        (Self(node), compiler.errors)
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
            run.node(node, new, old, old == Some(new), "", true);
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

impl Compiler {
    /// The node, if it or anything below has rules. `spine` is the structural node, which for what stands in `allOf` is
    /// another than `schema`. `lost` is whether old values can't be told for what is here.
    fn node(&mut self, schema: &Value, spine: &Value, path: &str, root: bool, lost: bool, depth: usize) -> Option<Node> {
        if depth > 100 || !schema.is_object() {
            return None;
        }
        let type_ = Type::of_schema(spine, root || spine["x-kubernetes-embedded-resource"] == true);
        let given = items(schema, &["x-kubernetes-validations"]);
        let rules: Vec<Rule> = given.iter().enumerate().map(|(i, rule)| self.rule(rule, type_.as_ref(), &format!("{path}.x-kubernetes-validations[{i}]"), lost)).collect();
        let mut properties = Vec::new();
        for (name, child) in schema["properties"].as_object().into_iter().flatten() {
            let spine = &spine["properties"][name];
            if let Some(node) = self.node(child, spine, &format!("{path}.properties[{name}]"), false, lost, depth + 1) {
                properties.push((name.clone(), node));
            }
        }
        let keys: Vec<String> = match text(spine, &["x-kubernetes-list-type"]) {
            "map" => items(spine, &["x-kubernetes-list-map-keys"]).iter().filter_map(Value::as_str).map(str::to_owned).collect(),
            _ => Vec::new(),
        };
        let items_node = if schema["items"].is_object() {
            self.node(&schema["items"], &spine["items"], &format!("{path}.items"), false, lost || keys.is_empty(), depth + 1)
        } else {
            let key = "additionalProperties";
            self.node(&schema[key], &spine[key], &format!("{path}.{key}"), false, lost, depth + 1)
        };
        let mut all_of = Vec::new();
        for (i, part) in items(schema, &["allOf"]).iter().enumerate() {
            all_of.extend(self.node(part, spine, &format!("{path}.allOf[{i}]"), root, lost, depth + 1));
        }
        if rules.is_empty() && properties.is_empty() && items_node.is_none() && all_of.is_empty() {
            return None;
        }
        let type_name = text(spine, &["type"]).to_owned();
        Some(Node { rules, type_name, type_, properties, items: items_node.map(Box::new), keys, all_of })
    }

    fn rule(&mut self, rule: &Value, type_: Option<&Type>, path: &str, lost: bool) -> Rule {
        let source = text(rule, &["rule"]);
        let optional_old = rule["optionalOldSelf"] == true;
        let self_type = type_.cloned().unwrap_or(Type::Dyn);
        let old_type = if optional_old { Type::Optional(self_type.clone().into()) } else { self_type.clone() };
        let env = Env::default().with("self", self_type).with("oldSelf", old_type);
        let mut invalid = |at: &str, detail: &str| {
            let error = Error { kind: ErrorType::Invalid, path: format!("{path}.{at}"), value: Some(go_rule(rule)), detail: detail.into() };
            self.errors.push(error);
        };
        let program = Program::compile(&env, source).map_err(|why| format!("compilation failed: {why}")).and_then(|program| {
            if program.type_ == Type::Bool { Ok(program) } else { Err("cel expression must evaluate to a bool".to_owned()) }
        });
        if let Err(detail) = &program
            && !source.trim().is_empty()
        {
            invalid("rule", detail);
        }
        let message_source = text(rule, &["messageExpression"]);
        let message_expression = if message_source.is_empty() {
            None
        } else {
            match Program::compile(&env, message_source) {
                Ok(program) if program.type_ == Type::String => Some(program),
                Ok(_) => {
                    invalid("messageExpression", "messageExpression must evaluate to a string");
                    None
                }
                Err(why) => {
                    invalid("messageExpression", &format!("messageExpression compilation failed: {why}"));
                    None
                }
            }
        };
        let uses_old = program.as_ref().is_ok_and(|p| p.mentions("oldSelf"));
        if uses_old && lost {
            let detail = "oldSelf cannot be used on the uncorrelatable portion of the schema";
            self.errors.push(Error::invalid(format!("{path}.rule"), source, detail));
        }
        if program.is_ok() && !uses_old && rule["optionalOldSelf"].is_boolean() {
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
    fn node(&mut self, node: &Node, new: &Value, old: Option<&Value>, same: bool, path: &str, main: bool) {
        if self.over || new.is_null() {
            return;
        }
        let old = old.filter(|o| !o.is_null());
        self.rules(node, new, old, same, path);
        for part in &node.all_of {
            self.node(part, new, old, same && main, path, main);
        }
        match new {
            Value::Object(map) => {
                for (name, child) in &node.properties {
                    if let Some(value) = map.get(name) {
                        let before = old.and_then(|o| o.get(name));
                        self.node(child, value, before, before == Some(value), &below(path, name), main);
                    }
                }
                if let Some(values) = &node.items {
                    for (key, value) in map.iter().filter(|(key, _)| !node.properties.iter().any(|(name, _)| name == *key)) {
                        let before = old.and_then(|o| o.get(key));
                        self.node(values, value, before, before == Some(value), &format!("{path}[{key}]"), main);
                    }
                }
            }
            Value::Array(list) => {
                let Some(child) = &node.items else { return };
                for (i, item) in list.iter().enumerate() {
                    let keyed = |other: &&Value| node.keys.iter().all(|key| other.get(key) == item.get(key));
                    let before = if node.keys.is_empty() { None } else { old.and_then(Value::as_array).and_then(|o| o.iter().find(keyed)) };
                    let same = if node.keys.is_empty() { same } else { before == Some(item) };
                    self.node(child, item, before, same, &format!("{path}[{i}]"), main);
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
                    let detail = match self.message(rule, &given) {
                        Ok(detail) => detail,
                        Err(why) => {
                            self.over = true;
                            self.errors.push(invalid(why));
                            return;
                        }
                    };
                    self.errors.push(refusal(node, rule, new, path, detail));
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
        if let Some(program) = &rule.message_expression {
            let (result, cost) = program.eval(given);
            let Some(left) = self.budget.checked_sub(cost) else {
                return Err("messageExpression evaluation failed due to running out of cost budget, no further validation rules will be run".into());
            };
            self.budget = left;
            if let Ok(Val::Str(text)) = result {
                let text = text.trim();
                if !text.is_empty() && text.len() <= MAX_MESSAGE && !text.contains('\n') {
                    return Ok(text.to_owned());
                }
            }
        }
        Ok(if rule.message.is_empty() { format!("failed rule: {}", rule.shown) } else { rule.message.clone() })
    }
}

fn refusal(node: &Node, rule: &Rule, value: &Value, path: &str, detail: String) -> Error {
    let path = if rule.field_path.is_empty() { shown_path(path) } else { below(path, &rule.field_path) };
    let shown = (!matches!(node.type_name.as_str(), "object" | "array")).then(|| crate::field::shown(value));
    let (kind, value, detail) = match rule.reason.as_str() {
        "FieldValueForbidden" => (ErrorType::Forbidden, None, detail),
        "FieldValueRequired" => (ErrorType::Required, None, detail),
        "FieldValueDuplicate" => (ErrorType::Duplicate, shown, String::new()),
        _ => (ErrorType::Invalid, shown, detail),
    };
    Error { kind, path, value, detail }
}
