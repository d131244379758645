//! What the functions do. Each file takes the calls that it knows by name and arguments; the first that does answers.

mod authz;
mod convert;
pub(super) mod formats;
pub(super) mod lists;
mod net;
pub(super) mod numbers;
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
pub(super) fn no_overload<T>() -> Result<T, Fault> {
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

/// Calls a function. `sure` is whether the checker knew which overload it is.
pub(super) fn call<'a>(eval: &mut Evaluator<'_, 'a>, name: &str, sure: bool, args: &[Val<'a>]) -> Evaluated<'a> {
    eval.spend(cost(name, sure, args))?;
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
    match name {
        "join" => eval.spend(traversal(2 * answer.cost_size()))?,
        "slice" => eval.spend(answer.cost_size())?,
        _ => {}
    }
    Ok(answer)
}

/// What a call costs, by the sizes of its arguments. Where several overloads may be meant, cel-go looks less closely.
pub(super) fn cost(name: &str, sure: bool, args: &[Val<'_>]) -> u64 {
    let size = |i: usize| args.get(i).map_or(0, Val::cost_size);
    let smaller = || traversal(size(0).min(size(1)));
    let regex = |i: usize| size(i).div_ceil(4);
    // A call, and a list.
    let listed = |n: u64| n.saturating_add(11);
    match name {
        "check" => CHECK,
        "fieldSelector" | "labelSelector" => 10 + traversal(size(1)) + size(1).div_ceil(2) * 50,
        "isSorted" | "sum" | "max" | "min" | "indexOf" | "lastIndexOf" => args.first().map_or(0, Val::traversal),
        "distinct" | "sort" => self_compare(args.first().and_then(Val::items).unwrap_or_default().iter()),
        "reverse" => listed(size(0)),
        "slice" => listed(0),
        "flatten" => listed(match args.get(1) {
            Some(Val::Int(depth)) => (*depth as f64 * size(0) as f64) as u64,
            _ => size(0),
        }),
        "lists.range" => listed(match args.first() {
            Some(Val::Int(n)) => u64::try_from(*n).unwrap_or(0),
            _ => 0,
        }),
        "sets.contains" | "sets.intersects" => size(0).saturating_mul(size(1)).saturating_add(1),
        "sets.equivalent" => size(0).saturating_mul(size(1)).saturating_mul(2).saturating_add(1),
        "ip" if matches!(args.first(), Some(Val::Opaque(_))) => 1,
        "url" | "lowerAscii" | "upperAscii" | "substring" | "trim" | "jsonpatch.escapeKey" | "cidr" | "isIP" | "isCIDR" | "ip" | "quantity"
        | "isQuantity" | "semver" | "isSemver" | "startsWith" | "endsWith" | "format" | "strings.quote" => traversal(size(0)),
        "bytes" | "string" if sure && matches!((name, args.first()), ("bytes", Some(Val::Str(_))) | ("string", Some(Val::Bytes(_)))) => traversal(size(0)),
        "replace" | "split" | "ip.isCanonical" => traversal(2 * size(0)),
        "join" => 0,
        "matches" if !sure => 1,
        "matches" | "find" | "findAll" => traversal(1 + size(0)).saturating_mul(regex(1)),
        "validate" => match args.first() {
            Some(Val::Opaque(format)) => traversal(1 + size(1)).saturating_mul(format.regex_size().div_ceil(4)),
            _ => 1,
        },
        "contains" => traversal(size(0)).saturating_mul(traversal(size(1))),
        "containsIP" | "containsCIDR" => {
            let own = if name == "containsIP" { 0 } else { traversal(size(0)) + 1 };
            let other = if sure && matches!(args.get(1), Some(Val::Str(_))) { traversal(size(1)) } else { 0 };
            traversal(2 * size(0)) + own + other
        }
        "@in" if sure && args.get(1).is_some_and(|list| matches!(list, Val::List(_) | Val::JsonList(..))) => size(1),
        "_==_" if matches!(args.first(), Some(Val::Opaque(_))) => 1,
        "_==_" | "_!=_" => smaller(),
        "_<_" | "_<=_" | "_>_" | "_>=_" if sure && matches!(args.first(), Some(Val::Str(_) | Val::Bytes(_))) => smaller(),
        "_+_" if sure && matches!(args.first(), Some(Val::Str(_) | Val::Bytes(_))) => traversal(size(0) + size(1)),
        _ => 1,
    }
}

/// What comparing the items of a list with each other costs.
pub(super) fn self_compare<'v, 'a: 'v>(items: impl ExactSizeIterator<Item = &'v Val<'a>>) -> u64 {
    let mut items = items.peekable();
    let text = matches!(items.peek(), Some(Val::Str(_) | Val::Bytes(_)));
    let pairs = (items.len() as u64).saturating_pow(2) as f64;
    ((pairs * if text { 2.1 } else { 2.0 }) as u64).saturating_add(11)
}

pub(super) fn operators<'a>(name: &str, args: &[Val<'a>]) -> Option<Evaluated<'a>> {
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
        ("@in", [a, b]) => match b.member(a) {
            Some(found) => bool(found.is_some()),
            None => bool(b.items()?.iter().any(|i| i.equals(a))),
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
