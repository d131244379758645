//! `"%d of %s".format([1, "x"])`, and the named formats that texts are validated by.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::super::Fault;
use super::super::ast::Expr;
use super::super::eval::Evaluated;
use super::super::types::Type;
use super::super::value::Val;
use super::net::Url;
use super::opaque::Opaque;
use super::time::parse_timestamp;
use super::{fault, shown};
use crate::names;

/// The longest precision that `%.Nf` takes.
const MAX_PRECISION: usize = 1_000;

/// A named format.
#[derive(Clone, Copy)]
pub struct Format {
    /// Its name.
    pub name: &'static str,
    /// What is wrong with a text by it.
    check: fn(&str) -> Vec<String>,
}

fn all_fine(fine: bool, why: &str) -> Vec<String> {
    if fine { Vec::new() } else { vec![why.to_owned()] }
}

/// A prefix of a name may end where a name may not.
fn masked(text: &str) -> String {
    if text.len() > 1 && text.ends_with('-') { format!("{}a", &text[..text.len() - 1]) } else { text.to_owned() }
}

fn is_uuid(text: &str) -> bool {
    let dashes = [8, 13, 18, 23];
    let plain: Vec<u8> = text.bytes().filter(|b| *b != b'-').collect();
    let placed = text.len() == 32 || text.len() == 36 && dashes.iter().all(|i| text.as_bytes()[*i] == b'-');
    plain.len() == 32 && plain.iter().all(u8::is_ascii_hexdigit) && placed
}

const FORMATS: [(&str, Format); 13] = [
    ("dns1123Label", Format { name: "DNS1123Label", check: names::dns_label }),
    ("dns1123Subdomain", Format { name: "DNS1123Subdomain", check: names::dns_subdomain }),
    ("dns1035Label", Format { name: "DNS1035Label", check: names::dns1035_label }),
    ("qualifiedName", Format { name: "QualifiedName", check: names::qualified_name }),
    ("dns1123LabelPrefix", Format { name: "DNS1123LabelPrefix", check: |s| names::dns_label(&masked(s)) }),
    ("dns1123SubdomainPrefix", Format { name: "DNS1123SubdomainPrefix", check: |s| names::dns_subdomain(&masked(s)) }),
    ("dns1035LabelPrefix", Format { name: "DNS1035LabelPrefix", check: |s| names::dns1035_label(&masked(s)) }),
    ("labelValue", Format { name: "LabelValue", check: names::label_value }),
    ("uri", Format { name: "URI", check: |s| Url::parse(s).err().into_iter().collect() }),
    ("uuid", Format { name: "uuid", check: |s| all_fine(is_uuid(s), "does not match the UUID format") }),
    ("byte", Format { name: "byte", check: |s| all_fine(STANDARD.decode(s).is_ok(), "invalid base64") }),
    ("date", Format { name: "date", check: |s| all_fine(s.len() == 10 && parse_timestamp(s).is_some(), "invalid date") }),
    ("datetime", Format { name: "datetime", check: |s| all_fine(s.len() > 10 && parse_timestamp(s).is_some(), "invalid datetime") }),
];

fn named<'a>(name: &str) -> Option<Val<'a>> {
    FORMATS.iter().find(|(n, _)| *n == name).map(|(_, format)| Val::Opaque(Arc::new(Opaque::Format(*format))))
}

pub(super) fn call<'a>(name: &str, args: &[Val<'a>]) -> Option<Evaluated<'a>> {
    match (name, args) {
        ("format.named", [Val::Str(s)]) => Some(Ok(named(s).map_or(Val::Optional(None), Val::some))),
        ("validate", [Val::Opaque(format), Val::Str(s)]) => {
            let Opaque::Format(format) = &**format else { return None };
            let faults = (format.check)(s);
            Some(Ok(if faults.is_empty() { Val::Optional(None) } else { Val::list(faults.into_iter().map(Val::text).collect()).some() }))
        }
        (name, []) => named(name.strip_prefix("format.")?).map(Ok),
        _ => None,
    }
}

/// What is wrong with a pattern, given the items that it is for: which of them it is about, if one.
pub(in super::super) fn check(pattern: &str, items: &[&Expr]) -> Result<(), (Option<usize>, String)> {
    let mut rest = pattern;
    let mut seen = 0;
    while let Some((_, clause)) = rest.split_once('%') {
        if let Some(after) = clause.strip_prefix('%') {
            rest = after;
            continue;
        }
        let fail = |why: &str| Err((None, why.to_owned()));
        if clause.is_empty() {
            return fail("unexpected end of string");
        }
        let Some(item) = items.get(seen) else { return fail(&format!("index {seen} out of range")) };
        let digits = clause.strip_prefix('.').map(|d| d.trim_start_matches(|c: char| c.is_ascii_digit()));
        let mut chars = digits.unwrap_or(clause).chars();
        let Some(verb) = chars.next() else {
            return fail("could not parse formatting clause: error while parsing precision: could not find end of precision specifier");
        };
        let words = match verb {
            's' => "string clause can only be used on strings, bools, bytes, ints, doubles, maps, lists, types, durations, and timestamps",
            'd' => "decimal clause can only be used on integers",
            'f' => "fixed-point clause can only be used on doubles",
            'e' => "scientific clause can only be used on doubles",
            'b' => "only integers and bools can be formatted as binary",
            'x' | 'X' => "only integers, byte buffers, and strings can be formatted as hex",
            'o' => "octal clause can only be used on integers",
            other => return fail(&format!("could not parse formatting clause: unrecognized formatting clause \"{other}\"")),
        };
        let fine = match (verb, &item.type_) {
            (_, Type::Dyn) | ('d' | 'b' | 'x' | 'X' | 'o', Type::Int | Type::Uint) | ('f' | 'e', Type::Double | Type::String) => true,
            ('b', Type::Bool) | ('x' | 'X', Type::String | Type::Bytes) => true,
            ('s', other) => !matches!(other, Type::Object(_) | Type::Opaque(_) | Type::Optional(_) | Type::Any),
            _ => false,
        };
        if !fine {
            let shown = super::super::declared(&item.type_);
            let name = shown.split('(').next().unwrap_or(&shown);
            return Err((Some(seen), format!("error during formatting: {words}, was given {name}")));
        }
        seen += 1;
        rest = chars.as_str();
    }
    if items.len() > seen {
        return Err((None, format!("too many arguments supplied to string.format (expected {seen}, got {})", items.len())));
    }
    Ok(())
}

/// Go's way with verbs: `%s %d %f %e %b %o %x %X %%`.
pub(super) fn format<'a>(pattern: &str, args: &[Val<'a>]) -> Evaluated<'a> {
    let mut out = String::new();
    let mut args = args.iter().enumerate();
    let mut chars = pattern.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        if chars.peek() == Some(&'%') {
            chars.next();
            out.push('%');
            continue;
        }
        let mut precision = None;
        if chars.peek() == Some(&'.') {
            chars.next();
            let mut digits = String::new();
            while let Some(d) = chars.next_if(char::is_ascii_digit) {
                digits.push(d);
            }
            precision = Some(digits.parse::<usize>().ok().filter(|p| *p <= MAX_PRECISION).map_or_else(|| fault("could not parse formatting clause: invalid precision"), Ok)?);
        }
        let Some(verb) = chars.next() else { return fault("could not parse formatting clause: unexpected end of string") };
        let Some((i, arg)) = args.next() else {
            return fault(format!("index {} out of range", args.len()));
        };
        let text = clause(verb, precision.unwrap_or(6), arg);
        out.push_str(&text.map_err(|why| Fault::error(&format!("error during formatting: {why} (argument {i})")))?);
    }
    Ok(Val::text(out))
}

fn clause(verb: char, precision: usize, arg: &Val<'_>) -> Result<String, String> {
    let number = |arg: &Val<'_>| match arg {
        Val::Double(d) => Some(*d),
        Val::Int(n) => Some(*n as f64),
        Val::Uint(n) => Some(*n as f64),
        _ => None,
    };
    let sign = |n: i64| if n < 0 { "-" } else { "" };
    let found = match (verb, arg) {
        ('s', arg) => Some(shown(arg)),
        ('d', Val::Int(_) | Val::Uint(_)) => Some(shown(arg)),
        ('d', Val::Double(d)) if d.is_nan() || d.is_infinite() => Some(if d.is_nan() { "NaN" } else if *d > 0.0 { "Infinity" } else { "-Infinity" }.into()),
        ('f', arg) => number(arg).map(|n| format!("{n:.precision$}")),
        ('e', arg) => number(arg).map(|n| {
            let text = format!("{n:.precision$e}");
            let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
            let (sign, digits) = exponent.strip_prefix('-').map_or(('+', exponent), |digits| ('-', digits));
            format!("{mantissa}e{sign}{digits:0>2}")
        }),
        ('b', Val::Int(n)) => Some(format!("{}{:b}", sign(*n), n.unsigned_abs())),
        ('b', Val::Uint(n)) => Some(format!("{n:b}")),
        ('b', Val::Bool(b)) => Some(u8::from(*b).to_string()),
        ('o', Val::Int(n)) => Some(format!("{}{:o}", sign(*n), n.unsigned_abs())),
        ('o', Val::Uint(n)) => Some(format!("{n:o}")),
        ('x', Val::Int(n)) => Some(format!("{}{:x}", sign(*n), n.unsigned_abs())),
        ('X', Val::Int(n)) => Some(format!("{}{:X}", sign(*n), n.unsigned_abs())),
        ('x', Val::Uint(n)) => Some(format!("{n:x}")),
        ('X', Val::Uint(n)) => Some(format!("{n:X}")),
        ('x' | 'X', Val::Str(_) | Val::Bytes(_)) => {
            let bytes = match arg {
                Val::Str(s) => s.as_bytes(),
                Val::Bytes(b) => b,
                _ => &[],
            };
            let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
            Some(if verb == 'X' { hex.to_uppercase() } else { hex })
        }
        ('d' | 'b' | 'o' | 'x' | 'X', _) => None,
        (other, _) => return Err(format!("unrecognized formatting clause {other:?}")),
    };
    found.ok_or_else(|| format!("the verb %{verb} does not take a value of type {}", arg.type_name()))
}
