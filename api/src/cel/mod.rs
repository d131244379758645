//! The Common Expression Language, as Kubernetes has it: its environment of 1.36, with its types, functions, costs and
//! messages. An expression is compiled once, against the types of what it is given, and evaluated on JSON as it is.
//!
//! No expression whatever may panic or run for long: how deep and long one may be is limited when it is read, and every
//! step of an evaluation is paid for from a budget.

pub mod admission;
mod ast;
mod bounds;
mod budget;
mod check;
mod cost;
mod device;
mod eval;
mod functions;
mod lex;
mod lib;
mod names;
mod parse;
mod rules;
#[cfg(test)]
mod tests;
mod types;
mod unify;
mod value;

use std::fmt;

pub use device::{SelectorFault, selector};
pub use functions::{AUTHORIZER, RESOURCE_CHECK};
pub use lib::opaque::{Authorizer, Check, Decision, Opaque, Query};
pub(crate) use lib::numbers::Semver;
pub use names::escape;
pub use rules::Rules;
pub use types::{ListKind, ObjectType, Type};
pub use value::{Key, Val};

use ast::Expr;
use bounds::Bounds;
use eval::Evaluator;
use lib::Regexes;

/// What one evaluation may cost. Upstream's `PerCallLimit`.
pub const CALL_LIMIT: u64 = 1_000_000;
/// What all rules of an object, or all expressions of a policy, may cost together. Upstream's `RuntimeCELCostBudget`.
pub const BUDGET: u64 = 10_000_000;
/// The same for the match conditions of one webhook.
pub const CONDITIONS_BUDGET: u64 = 2_500_000;

/// Something wrong in the source.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Issue {
    /// The character that it is about.
    at: usize,
    message: String,
}

/// The variables that an expression may use.
#[derive(Clone, Debug, Default)]
pub struct Env {
    variables: Vec<(String, Type)>,
    /// Whether expressions may make patches: `Object{...}`, `JSONPatch{...}`.
    pub patch_types: bool,
    /// Whether expressions may name values: `cel.bind(x, self.a, x + x)`.
    pub binds: bool,
}

impl Env {
    /// Declares a variable.
    pub fn with(mut self, name: &str, type_: Type) -> Self {
        self.variables.push((name.to_owned(), type_));
        self
    }

    fn variable(&self, name: &str) -> Option<&Type> {
        self.variables.iter().rev().find(|(n, _)| n == name).map(|(_, t)| t)
    }
}

/// What an expression is given.
pub trait Activation<'a> {
    /// A variable's value; `None` when there is none, an error when it can't be had.
    fn variable(&self, name: &str) -> Option<Result<Val<'a>, String>>;

    /// The value of `variables.name`, made when it is first asked for.
    fn composed(&self, _name: &str) -> Option<Result<Val<'a>, String>> {
        None
    }
}

impl<'a> Activation<'a> for &[(&str, Val<'a>)] {
    fn variable(&self, name: &str) -> Option<Result<Val<'a>, String>> {
        self.iter().find(|(n, _)| *n == name).map(|(_, val)| Ok(val.clone()))
    }
}

/// An evaluation came to nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The expression failed: `no such key: a`.
    Error(String),
    /// It cost more than it may.
    TooExpensive,
}

impl Fault {
    fn error(why: &str) -> Self {
        Self::Error(why.to_owned())
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Error(why) => f.write_str(why),
            Self::TooExpensive => f.write_str("operation cancelled: actual cost limit exceeded"),
        }
    }
}

/// A compiled expression.
#[derive(Debug)]
pub struct Program {
    expr: Expr,
    /// The type of its value.
    pub type_: Type,
    regexes: Regexes,
}

impl Program {
    /// Compiles an expression. The error is cel-go's report: `ERROR: <input>:1:5: undefined field 'zz'` and the line with
    /// a mark below.
    pub fn compile(env: &Env, source: &str) -> Result<Self, String> {
        let mut expr = parse::parse(source, env.binds).map_err(|issues| report(source, &issues))?;
        let type_ = check::check(env, &mut expr).map_err(|issues| report(source, &issues))?;
        Ok(Self { expr, type_, regexes: Regexes::default() })
    }

    /// Compiles an expression as far as it can be told that it makes sense. The error says what came in the way.
    pub fn build(env: &Env, source: &str) -> Result<Self, String> {
        let program = Self::compile(env, source).map_err(|why| format!("compilation failed: {why}"))?;
        match program.flaw(&program.expr) {
            Some(why) => Err(format!("program instantiation failed: {why}")),
            None => Ok(program),
        }
    }

    /// What is wrong with a call whose arguments are known: conversions of literals, and regular expressions.
    fn flaw(&self, expr: &Expr) -> Option<String> {
        let mut found = None;
        ast::each_child(&expr.node, &mut |child| found = found.take().or_else(|| self.flaw(child)));
        let ast::Node::Call { name, args, .. } = &expr.node else { return found };
        let literal = |i: usize| args.get(i).and_then(|arg| if let ast::Node::Literal(val) = &arg.node { Some(val) } else { None });
        found.or_else(|| match (name.as_str(), literal(0), literal(1)) {
            ("matches" | "find" | "findAll", _, Some(Val::Str(pattern))) => self.regexes.get(pattern).err().map(|fault| fault.to_string()),
            (name, Some(_), None) if args.len() == 1 && eval::CONVERSIONS.contains(&name) => eval::alone(expr).err().map(|fault| fault.to_string()),
            _ => None,
        })
    }

    /// Compiles an expression that must be of one of these types (dyn is any of them, if it is among them). The error is
    /// the detail of upstream's refusal.
    pub fn compile_to(env: &Env, source: &str, types: &[Type]) -> Result<Self, String> {
        let program = Self::build(env, source)?;
        if types.contains(&program.type_) || types.contains(&Type::Dyn) {
            return Ok(program);
        }
        let shown: Vec<String> = types.iter().map(declared).collect();
        Err(match shown.as_slice() {
            [only] => format!("must evaluate to {only} but got {}", declared(&program.type_)),
            several => format!("must evaluate to one of [{}] but got {}", several.join(" "), declared(&program.type_)),
        })
    }

    /// Whether the expression uses the variable.
    pub fn mentions(&self, variable: &str) -> bool {
        self.expr.mentions(variable)
    }

    /// What it costs at most, where `bounds` says how large its variables can be.
    fn most(&self, bounds: &Bounds) -> u64 {
        cost::most(&self.expr, bounds)
    }

    /// Evaluates, at most for what [`CALL_LIMIT`] and the rest of the budget allow. Gives the value and what it cost.
    pub fn eval<'a>(&self, given: &dyn Activation<'a>) -> (Result<Val<'a>, Fault>, u64) {
        let mut evaluator = Evaluator { outside: given, regexes: &self.regexes, cost: 0, limit: CALL_LIMIT, locals: Vec::new() };
        let result = evaluator.eval(&self.expr);
        (result, evaluator.cost)
    }
}

/// How long the text that a `messageExpression` makes may be, in bytes.
const MAX_MESSAGE: usize = 5 * 1024;

/// What a `messageExpression` has made, if that can be shown.
fn message(made: Option<Val<'_>>) -> Option<String> {
    let Some(Val::Str(text)) = made else { return None };
    Some(text.trim()).filter(|text| !text.is_empty() && text.len() <= MAX_MESSAGE && !text.contains('\n')).map(str::to_owned)
}

/// The type as it is declared, where cel-go's other messages have a shorter name.
fn declared(type_: &Type) -> String {
    match type_ {
        Type::List(item, _) => format!("list({})", declared(item)),
        Type::Map(key, value) => format!("map({}, {})", declared(key), declared(value)),
        Type::Optional(inner) => format!("optional_type({})", declared(inner)),
        Type::Type(inner) => format!("type({})", declared(inner)),
        Type::Any => "google.protobuf.Any".into(),
        Type::Null => "null_type".into(),
        Type::Duration => "google.protobuf.Duration".into(),
        Type::Timestamp => "google.protobuf.Timestamp".into(),
        other => other.to_string(),
    }
}

/// How much of what is wrong is reported: cel-go's figure. Each line of a report shows the whole line of the source.
const REPORTED: usize = 100;

/// cel-go's report of what is wrong.
fn report(source: &str, issues: &[Issue]) -> String {
    let chars: Vec<char> = source.chars().collect();
    let shown = issues.iter().take(REPORTED).map(|issue| {
        let at = issue.at.min(chars.len());
        let start = chars[..at].iter().rposition(|c| *c == '\n').map_or(0, |i| i + 1);
        let end = chars[start..].iter().position(|c| *c == '\n').map_or(chars.len(), |i| start + i);
        let number = chars[..at].iter().filter(|c| **c == '\n').count() + 1;
        let line = String::from_iter(&chars[start..end]).replace('\t', " ");
        let dots: String = chars[start..at].iter().map(|c| if c.is_ascii() { '.' } else { '．' }).collect();
        let mark = if chars.get(at).is_none_or(char::is_ascii) { '^' } else { '＾' };
        format!("ERROR: <input>:{number}:{}: {}\n | {line}\n | {dots}{mark}", at - start + 1, issue.message)
    });
    let more = issues.len().checked_sub(REPORTED).filter(|more| *more > 0).map(|more| format!("{more} more errors were truncated"));
    shown.chain(more).collect::<Vec<_>>().join("\n")
}
