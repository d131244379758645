//! Conversions between types.

use std::sync::Arc;

use super::super::Fault;
use super::super::eval::Evaluated;
use super::super::value::Val;
use super::time::{parse_duration, parse_timestamp};
use super::{fault, shown};

fn cannot<T>(from: &Val<'_>, to: &str) -> Result<T, Fault> {
    fault(format!("type conversion error from '{}' to '{to}'", from.type_name()))
}

pub(super) fn call<'a>(name: &str, args: &[Val<'a>]) -> Option<Evaluated<'a>> {
    let [arg] = args else { return None };
    let int = |n: Option<i64>| n.map_or_else(|| fault("integer overflow"), |n| Ok(Val::Int(n)));
    let uint = |n: Option<u64>| n.map_or_else(|| fault("unsigned integer overflow"), |n| Ok(Val::Uint(n)));
    Some(match (name, arg) {
        ("int", Val::Int(n)) => Ok(Val::Int(*n)),
        ("int", Val::Uint(n)) => int(i64::try_from(*n).ok()),
        ("int", Val::Double(d)) => int((d.is_finite() && *d > i64::MIN as f64 && *d < -(i64::MIN as f64)).then_some(*d as i64)),
        ("int", Val::Str(s)) => s.parse().map_or_else(|_| cannot(arg, "int"), |n| Ok(Val::Int(n))),
        ("int", Val::Timestamp(t)) => Ok(Val::Int(t.as_second())),
        ("int", Val::Duration(d)) => int(i64::try_from(d.as_nanos()).ok()),
        ("uint", Val::Uint(n)) => Ok(Val::Uint(*n)),
        ("uint", Val::Int(n)) => uint(u64::try_from(*n).ok()),
        ("uint", Val::Double(d)) => uint((d.is_finite() && *d >= 0.0 && *d < 1.844_674_407_370_955_2e19).then_some(*d as u64)),
        ("uint", Val::Str(s)) => s.parse().map_or_else(|_| cannot(arg, "uint"), |n| Ok(Val::Uint(n))),
        ("double", Val::Double(d)) => Ok(Val::Double(*d)),
        ("double", Val::Int(n)) => Ok(Val::Double(*n as f64)),
        ("double", Val::Uint(n)) => Ok(Val::Double(*n as f64)),
        ("double", Val::Str(s)) => s.parse().map_or_else(|_| cannot(arg, "double"), |d| Ok(Val::Double(d))),
        ("bool", Val::Bool(b)) => Ok(Val::Bool(*b)),
        ("bool", Val::Str(s)) => match &**s {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(Val::Bool(true)),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(Val::Bool(false)),
            _ => cannot(arg, "bool"),
        },
        ("string", Val::Bytes(b)) => match std::str::from_utf8(b) {
            Ok(text) => Ok(Val::text(text)),
            Err(_) => fault("invalid UTF-8 in bytes, cannot convert to string"),
        },
        (
            "string",
            Val::Str(_) | Val::Bool(_) | Val::Int(_) | Val::Uint(_) | Val::Double(_) | Val::Timestamp(_) | Val::Duration(_) | Val::Opaque(_),
        ) => Ok(Val::text(shown(arg))),
        ("bytes", Val::Bytes(_)) => Ok(arg.clone()),
        ("bytes", Val::Str(s)) => Ok(Val::Bytes(Arc::from(s.as_bytes()))),
        ("timestamp", Val::Timestamp(_)) | ("duration", Val::Duration(_)) => Ok(arg.clone()),
        ("timestamp", Val::Str(s)) => parse_timestamp(s).map_or_else(|| cannot(arg, "google.protobuf.Timestamp"), |t| Ok(Val::Timestamp(t))),
        ("timestamp", Val::Int(n)) => jiff::Timestamp::from_second(*n).map_or_else(|_| fault("timestamp overflow"), |t| Ok(Val::Timestamp(t))),
        ("duration", Val::Str(s)) => parse_duration(s).map_or_else(|| cannot(arg, "google.protobuf.Duration"), |d| Ok(Val::Duration(d))),
        ("duration", Val::Int(_)) => cannot(arg, "google.protobuf.Duration"),
        _ => return None,
    })
}

/// A number as Go prints it shortest (`%g`).
pub(in super::super) fn show_double(d: f64) -> String {
    if d.is_nan() {
        return "NaN".into();
    }
    if d.is_infinite() {
        return if d > 0.0 { "+Inf" } else { "-Inf" }.into();
    }
    let magnitude = if d == 0.0 { 0 } else { d.abs().log10().floor() as i32 };
    if (-4..21).contains(&magnitude) {
        return format!("{d}");
    }
    let text = format!("{d:e}");
    match text.split_once('e') {
        Some((mantissa, exponent)) => {
            let (sign, digits) = exponent.strip_prefix('-').map_or(('+', exponent), |digits| ('-', digits));
            format!("{mantissa}e{sign}{digits:0>2}")
        }
        None => text,
    }
}
