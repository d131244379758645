//! What the functions do. Each file takes the calls that it knows by name and arguments; the first that does answers.

mod authz;
mod convert;
pub(super) mod formats;
pub(super) mod lists;
mod net;
mod numbers;
pub mod opaque;
mod strings;
pub(super) mod time;

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use super::Fault;
use super::eval::{Evaluated, Evaluator};
use super::value::Val;

/// How many regular expressions a program keeps.
const MAX_REGEXES: usize = 16;

/// What a question to the authorizer costs: two are what an expression may ask.
pub(super) const CHECK: u64 = 350_000;

/// The regular expressions that a program has met.
#[derive(Debug, Default)]
pub(super) struct Regexes(Mutex<HashMap<String, regex::Regex>>);

impl Regexes {
    pub fn get(&self, pattern: &str) -> Result<regex::Regex, Fault> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(regex) = known.get(pattern) {
            return Ok(regex.clone());
        }
        let regex = regex::Regex::new(&crate::pattern::translated(pattern)).map_err(|_| Fault::Error(crate::pattern::go_fault(pattern)))?;
        if known.len() >= MAX_REGEXES {
            known.clear();
        }
        known.insert(pattern.to_owned(), regex.clone());
        Ok(regex)
    }
}

/// The error of arguments that no function takes.
fn no_overload<T>() -> Result<T, Fault> {
    Err(Fault::error("no such overload"))
}

fn fault<T>(why: impl AsRef<str>) -> Result<T, Fault> {
    Err(Fault::error(why.as_ref()))
}

fn bool<'a>(b: bool) -> Option<Evaluated<'a>> {
    Some(Ok(Val::Bool(b)))
}

/// A tenth of a size, rounded up: the cost of going through a text once.
fn traversal(size: u64) -> u64 {
    size.div_ceil(10)
}

/// Calls a function.
pub(super) fn call<'a>(eval: &mut Evaluator<'_, 'a>, name: &str, args: &[Val<'a>]) -> Evaluated<'a> {
    eval.spend(cost(name, args))?;
    let regexes = eval.regexes;
    let answer = operators(name, args)
        .or_else(|| convert::call(name, args))
        .or_else(|| strings::call(regexes, name, args))
        .or_else(|| lists::call(name, args))
        .or_else(|| time::call(name, args))
        .or_else(|| numbers::call(name, args))
        .or_else(|| net::call(name, args))
        .or_else(|| formats::call(name, args))
        .or_else(|| authz::call(name, args));
    let answer = answer.unwrap_or_else(no_overload)?;
    if matches!(name, "join" | "replace" | "format") {
        eval.spend(traversal(answer.cost_size()))?;
    }
    Ok(answer)
}

/// What a call costs, by the sizes of its arguments.
fn cost(name: &str, args: &[Val<'_>]) -> u64 {
    let size = |i: usize| args.get(i).map_or(0, Val::cost_size);
    match name {
        "check" => CHECK,
        "fieldSelector" | "labelSelector" => 10 + traversal(size(1)) + size(1) / 2 * 50,
        "isSorted" | "sum" | "max" | "min" | "indexOf" | "lastIndexOf" | "distinct" | "reverse" | "flatten" | "slice" => size(0),
        "sort" => size(0).saturating_mul(size(0).max(2).ilog2().into()),
        "lists.range" => match args.first() {
            Some(Val::Int(n)) => 10 + u64::try_from(*n).unwrap_or(0),
            _ => 10,
        },
        "sets.contains" | "sets.intersects" => size(0).saturating_mul(size(1)),
        "sets.equivalent" => size(0).saturating_mul(size(1)).saturating_mul(2),
        "url" | "isURL" | "lowerAscii" | "upperAscii" | "substring" | "trim" | "jsonpatch.escapeKey" | "cidr" | "isIP" | "isCIDR" | "ip"
        | "quantity" | "isQuantity" | "semver" | "isSemver" | "startsWith" | "endsWith" | "bytes" | "format" | "strings.quote" => traversal(size(0)),
        "replace" | "split" | "ip.isCanonical" => traversal(2 * size(0)),
        "matches" | "find" | "findAll" => traversal(1 + size(0)).saturating_mul(size(1).div_ceil(4).max(1)),
        "validate" => traversal(1 + size(1)).saturating_mul(15),
        "contains" => traversal(size(0)).saturating_mul(traversal(size(1))),
        "containsIP" | "containsCIDR" => traversal(3 * size(0)) + traversal(size(1)),
        "@in" => size(1),
        "_==_" | "_!=_" if !matches!(args.first(), Some(Val::Opaque(_))) => traversal(size(0).min(size(1))),
        "_<_" | "_<=_" | "_>_" | "_>=_" => traversal(size(0).min(size(1))),
        "_+_" if matches!(args.first(), Some(Val::Str(_) | Val::Bytes(_))) => traversal(size(0) + size(1)),
        _ => 1,
    }
}

fn operators<'a>(name: &str, args: &[Val<'a>]) -> Option<Evaluated<'a>> {
    use Val::{Bool, Double, Duration, Int, Str, Timestamp, Uint};
    let int = |n: Option<i64>| Some(n.map_or_else(|| fault("integer overflow"), |n| Ok(Int(n))));
    let uint = |n: Option<u64>| Some(n.map_or_else(|| fault("unsigned integer overflow"), |n| Ok(Uint(n))));
    let duration = |d: Option<jiff::SignedDuration>| Some(d.map_or_else(|| fault("duration overflow"), |d| Ok(Duration(d))));
    let moment = |t: Result<jiff::Timestamp, jiff::Error>| Some(t.map_or_else(|_| fault("timestamp overflow"), |t| Ok(Timestamp(t))));
    match (name, args) {
        ("_==_", [a, b]) => bool(a.equals(b)),
        ("_!=_", [a, b]) => bool(!a.equals(b)),
        ("_<_" | "_<=_" | "_>_" | "_>=_", [a, b]) => {
            let Some(order) = a.compare(b) else {
                // A number that is none compares with nothing.
                return if matches!((a, b), (Double(_), _) | (_, Double(_))) { bool(false) } else { None };
            };
            bool(match name {
                "_<_" => order == Ordering::Less,
                "_<=_" => order != Ordering::Greater,
                "_>_" => order == Ordering::Greater,
                _ => order != Ordering::Less,
            })
        }
        ("!_", [Bool(b)]) => bool(!b),
        ("-_", [Int(n)]) => int(n.checked_neg()),
        ("-_", [Double(n)]) => Some(Ok(Double(-n))),
        ("_+_", [Int(a), Int(b)]) => int(a.checked_add(*b)),
        ("_-_", [Int(a), Int(b)]) => int(a.checked_sub(*b)),
        ("_*_", [Int(a), Int(b)]) => int(a.checked_mul(*b)),
        ("_/_", [Int(_), Int(0)] | [Uint(_), Uint(0)]) => Some(fault("division by zero")),
        ("_%_", [Int(_), Int(0)] | [Uint(_), Uint(0)]) => Some(fault("modulus by zero")),
        ("_/_", [Int(a), Int(b)]) => int(a.checked_div(*b)),
        ("_%_", [Int(a), Int(b)]) => int(a.checked_rem(*b)),
        ("_+_", [Uint(a), Uint(b)]) => uint(a.checked_add(*b)),
        ("_-_", [Uint(a), Uint(b)]) => uint(a.checked_sub(*b)),
        ("_*_", [Uint(a), Uint(b)]) => uint(a.checked_mul(*b)),
        ("_/_", [Uint(a), Uint(b)]) => uint(a.checked_div(*b)),
        ("_%_", [Uint(a), Uint(b)]) => uint(a.checked_rem(*b)),
        ("_+_", [Double(a), Double(b)]) => Some(Ok(Double(a + b))),
        ("_-_", [Double(a), Double(b)]) => Some(Ok(Double(a - b))),
        ("_*_", [Double(a), Double(b)]) => Some(Ok(Double(a * b))),
        ("_/_", [Double(a), Double(b)]) => Some(Ok(Double(a / b))),
        ("_+_", [Str(a), Str(b)]) => Some(Ok(Val::text(format!("{a}{b}")))),
        ("_+_", [Val::Bytes(a), Val::Bytes(b)]) => Some(Ok(Val::Bytes([&a[..], &b[..]].concat().into()))),
        ("_+_", [Duration(a), Duration(b)]) => duration(a.checked_add(*b)),
        ("_-_", [Duration(a), Duration(b)]) => duration(a.checked_sub(*b)),
        ("_+_", [Timestamp(t), Duration(d)] | [Duration(d), Timestamp(t)]) => moment(t.checked_add(*d)),
        ("_-_", [Timestamp(t), Duration(d)]) => moment(t.checked_sub(*d)),
        ("_-_", [Timestamp(a), Timestamp(b)]) => Some(Ok(Duration(a.duration_since(*b)))),
        ("_+_", [a, b]) => a.joined(b).map(Ok),
        ("@in", [a, b]) => match (b.items(), b.entries()) {
            (Some(items), _) => bool(items.iter().any(|i| i.equals(a))),
            (_, Some(_)) => bool(b.member(a).flatten().is_some()),
            _ => None,
        },
        ("size", [a]) => a.size().map(|n| Ok(Int(n as i64))),
        ("type", [a]) => Some(Ok(Val::Type(a.type_name().into()))),
        ("dyn", [a]) => Some(Ok(a.clone())),
        ("optional.of", [a]) => Some(Ok(a.clone().some())),
        ("optional.ofNonZeroValue", [a]) => Some(Ok(if a.is_zero() { Val::Optional(None) } else { a.clone().some() })),
        ("optional.none", []) => Some(Ok(Val::Optional(None))),
        ("hasValue", [Val::Optional(a)]) => bool(a.is_some()),
        ("value", [Val::Optional(a)]) => Some(a.as_ref().map_or_else(|| fault("optional.none() dereference"), |v| Ok((**v).clone()))),
        _ => None,
    }
}

/// A value as texts made of it show it.
pub(super) fn shown(val: &Val<'_>) -> String {
    match val {
        Val::Null => "null".into(),
        Val::Str(s) => s.to_string(),
        Val::Type(name) => name.to_string(),
        Val::Bytes(b) => String::from_utf8_lossy(b).into_owned(),
        Val::Double(d) => convert::show_double(*d),
        Val::Opaque(opaque) => opaque.to_string(),
        Val::Optional(None) => "optional.none()".into(),
        Val::Optional(Some(inner)) => format!("optional({})", shown(inner)),
        Val::Duration(d) => time::show_duration(*d),
        Val::Timestamp(t) => time::show_timestamp(*t),
        Val::Bool(b) => b.to_string(),
        Val::Int(n) => n.to_string(),
        Val::Uint(n) => n.to_string(),
        other => match (other.items(), other.entries()) {
            (Some(items), _) => format!("[{}]", items.iter().map(shown).collect::<Vec<_>>().join(", ")),
            (_, entries) => {
                let entries = entries.unwrap_or_default();
                format!("{{{}}}", entries.iter().map(|(k, v)| format!("{}: {}", shown(k), shown(v))).collect::<Vec<_>>().join(", "))
            }
        },
    }
}
