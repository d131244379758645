//! Quantities and semantic versions.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

use super::super::eval::Evaluated;
use super::super::value::Val;
use super::opaque::Opaque;
use super::{bool, fault};
use crate::quantity::Quantity;

/// A semantic version. Build metadata doesn't count in comparisons.
#[derive(Clone, Debug, Eq)]
pub struct Semver {
    numbers: [u64; 3],
    pre: Vec<String>,
    build: String,
}

impl PartialEq for Semver {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl PartialOrd for Semver {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Semver {
    fn cmp(&self, other: &Self) -> Ordering {
        let numbers = self.numbers.cmp(&other.numbers);
        let released = self.pre.is_empty().cmp(&other.pre.is_empty());
        let parts = self.pre.iter().zip(&other.pre).map(|(a, b)| match (a.parse::<u64>(), b.parse::<u64>()) {
            (Ok(a), Ok(b)) => a.cmp(&b),
            (Ok(_), Err(_)) => Ordering::Less,
            (Err(_), Ok(_)) => Ordering::Greater,
            _ => a.cmp(b),
        });
        let parts = parts.fold(Ordering::Equal, Ordering::then);
        numbers.then(released).then(parts).then(self.pre.len().cmp(&other.pre.len()))
    }
}

impl fmt::Display for Semver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [major, minor, patch] = self.numbers;
        write!(f, "{major}.{minor}.{patch}")?;
        if !self.pre.is_empty() {
            write!(f, "-{}", self.pre.join("."))?;
        }
        if !self.build.is_empty() {
            write!(f, "+{}", self.build)?;
        }
        Ok(())
    }
}

impl Semver {
    pub(crate) fn parse(text: &str) -> Result<Self, &'static str> {
        let (rest, build) = text.split_once('+').unwrap_or((text, ""));
        let (core, pre) = rest.split_once('-').unwrap_or((rest, ""));
        let parts: Vec<&str> = core.split('.').collect();
        let [major, minor, patch] = parts.as_slice() else { return Err("No Major.Minor.Patch elements found") };
        let mut numbers = [0; 3];
        for (number, text) in numbers.iter_mut().zip([major, minor, patch]) {
            if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
                return Err("Invalid character(s) found in version number");
            }
            if text.len() > 1 && text.starts_with('0') {
                return Err("Version number must not contain leading zeroes");
            }
            *number = text.parse().map_err(|_| "Version number is too large")?;
        }
        let well_formed = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        let has_pre = rest.contains('-');
        if (has_pre && !pre.split('.').all(well_formed)) || (text.contains('+') && !build.split('.').all(well_formed)) {
            return Err("Prerelease or build metadata is empty or has invalid characters");
        }
        if has_pre && pre.split('.').any(|p| p.len() > 1 && p.starts_with('0') && p.bytes().all(|b| b.is_ascii_digit())) {
            return Err("Numeric PreRelease version must not contain leading zeroes");
        }
        let pre = if has_pre { pre.split('.').map(str::to_owned).collect() } else { Vec::new() };
        Ok(Self { numbers, pre, build: build.to_owned() })
    }

    /// Takes `v1.2` and `01.2.3`, too.
    fn parse_loosely(text: &str) -> Result<Self, &'static str> {
        let text = text.strip_prefix('v').unwrap_or(text);
        let mut parts: Vec<String> = text.splitn(3, '.').map(str::to_owned).collect();
        for part in &mut parts {
            if part.len() > 1 {
                let trimmed = part.trim_start_matches('0');
                *part = if trimmed.starts_with(|c: char| c.is_ascii_digit()) { trimmed.to_owned() } else { format!("0{trimmed}") };
            }
        }
        if parts.len() < 3 && parts.last().is_some_and(|p| p.contains(['+', '-'])) {
            return Err("short version cannot contain PreRelease/Build meta data");
        }
        parts.resize(3, "0".into());
        Self::parse(&parts.join("."))
    }
}

fn quantity<'a>(quantity: Quantity) -> Val<'a> {
    Val::Opaque(Arc::new(Opaque::Quantity(quantity)))
}

/// The two sides of an operation, if they are of these types.
enum Sides<'v> {
    Quantities(Quantity, Quantity),
    Versions(&'v Semver, &'v Semver),
}

fn sides<'v>(a: &'v Val<'_>, b: &'v Val<'_>) -> Option<Sides<'v>> {
    let Val::Opaque(left) = a else { return None };
    match (&**left, b) {
        (Opaque::Quantity(a), Val::Int(n)) => Some(Sides::Quantities(*a, Quantity::from_value(*n))),
        (Opaque::Quantity(a), Val::Opaque(right)) => match &**right {
            Opaque::Quantity(b) => Some(Sides::Quantities(*a, *b)),
            _ => None,
        },
        (Opaque::Semver(a), Val::Opaque(right)) => match &**right {
            Opaque::Semver(b) => Some(Sides::Versions(a, b)),
            _ => None,
        },
        _ => None,
    }
}

pub(super) fn call<'a>(name: &str, args: &[Val<'a>]) -> Option<Evaluated<'a>> {
    match (name, args) {
        ("quantity", [Val::Str(s)]) => return Some(Quantity::parse(s).map_or_else(|e| fault(e.to_string()), |q| Ok(quantity(q)))),
        ("isQuantity", [Val::Str(s)]) => return bool(Quantity::parse(s).is_ok()),
        ("semver" | "isSemver", [Val::Str(s), rest @ ..]) => {
            let parsed = match rest {
                [] | [Val::Bool(false)] => Semver::parse(s),
                [Val::Bool(true)] => Semver::parse_loosely(s),
                _ => return None,
            };
            if name == "isSemver" {
                return bool(parsed.is_ok());
            }
            return Some(parsed.map_or_else(fault, |v| Ok(Val::Opaque(Arc::new(Opaque::Semver(v))))));
        }
        _ => {}
    }
    if let [a, b] = args {
        let order = match sides(a, b)? {
            Sides::Quantities(a, b) => match name {
                "add" => return Some(Ok(quantity(a + b))),
                "sub" => return Some(Ok(quantity(a - b))),
                _ => a.cmp(&b),
            },
            Sides::Versions(a, b) => a.cmp(b),
        };
        return match name {
            "compareTo" => Some(Ok(Val::Int(order as i64))),
            "isGreaterThan" => bool(order == Ordering::Greater),
            "isLessThan" => bool(order == Ordering::Less),
            _ => None,
        };
    }
    let [Val::Opaque(of)] = args else { return None };
    match (&**of, name) {
        (Opaque::Quantity(q), "sign") => Some(Ok(Val::Int(q.signum().into()))),
        (Opaque::Quantity(q), "isInteger") => bool(q.is_integer()),
        (Opaque::Quantity(q), "asInteger") => Some(if q.is_integer() { Ok(Val::Int(q.value())) } else { fault("cannot convert value to integer") }),
        (Opaque::Quantity(q), "asApproximateFloat") => Some(Ok(Val::Double(q.as_f64()))),
        (Opaque::Semver(v), "major" | "minor" | "patch") => {
            let i = ["major", "minor", "patch"].iter().position(|n| *n == name)?;
            Some(i64::try_from(v.numbers[i]).map_or_else(|_| fault("integer overflow"), |n| Ok(Val::Int(n))))
        }
        _ => None,
    }
}
