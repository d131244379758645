//! Spans and moments.

use jiff::tz::{Offset, TimeZone};
use jiff::{SignedDuration, Timestamp, Zoned};

use super::super::eval::Evaluated;
use super::super::value::Val;
use super::fault;

/// Go's units, in nanoseconds.
const UNITS: [(&str, i128); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("μs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// Reads Go's form of a span: `1h30m`, `-1.5s`.
pub(in super::super) fn parse_duration(text: &str) -> Option<SignedDuration> {
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(SignedDuration::ZERO);
    }
    if rest.is_empty() {
        return None;
    }
    let mut nanos: i128 = 0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').filter(|end| *end > 0)?;
        let (number, after) = rest.split_at(end);
        let end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        let scale = UNITS.iter().find(|(name, _)| *name == unit)?.1;
        let (whole, part) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && part.is_empty() || part.contains('.') {
            return None;
        }
        let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        nanos = nanos.checked_add(whole.checked_mul(scale)?)?;
        let mut weight = scale;
        for digit in part.bytes() {
            weight /= 10;
            nanos = nanos.checked_add(i128::from(digit - b'0') * weight)?;
        }
        rest = after;
    }
    let nanos = i64::try_from(if negative { -nanos } else { nanos }).ok()?;
    Some(SignedDuration::from_nanos(nanos))
}

/// Reads an RFC 3339 moment, or a day.
pub(in super::super) fn parse_timestamp(text: &str) -> Option<Timestamp> {
    if text.len() == 10 {
        return text.parse::<jiff::civil::Date>().ok()?.to_zoned(TimeZone::UTC).ok().map(|z| z.timestamp());
    }
    text.parse().ok()
}

/// The span in seconds: `1.5s`.
pub(in super::super) fn show_duration(duration: SignedDuration) -> String {
    format!("{}s", duration.as_secs_f64())
}

/// The moment in RFC 3339.
pub(in super::super) fn show_timestamp(moment: Timestamp) -> String {
    moment.to_string()
}

pub(super) fn call<'a>(name: &str, args: &[Val<'a>]) -> Option<Evaluated<'a>> {
    let number = match args {
        [Val::Duration(d)] => match name {
            "getHours" => d.as_hours(),
            "getMinutes" => d.as_mins(),
            "getSeconds" => d.as_secs(),
            "getMilliseconds" => i64::try_from(d.as_millis()).ok()?,
            _ => return None,
        },
        [Val::Timestamp(t)] => part(name, &t.to_zoned(TimeZone::UTC))?,
        [Val::Timestamp(t), Val::Str(zone)] => match zone_of(zone) {
            Some(zone) => part(name, &t.to_zoned(zone))?,
            None => return Some(fault(format!("unknown time zone {zone}"))),
        },
        _ => return None,
    };
    Some(Ok(Val::Int(number)))
}

/// A zone by its name, or by its distance to UTC: `-08:00`.
fn zone_of(text: &str) -> Option<TimeZone> {
    if let Some((hours, minutes)) = text.split_once(':') {
        let negative = hours.starts_with('-');
        let (hours, minutes): (i32, i32) = (hours.trim_start_matches(['+', '-']).parse().ok()?, minutes.parse().ok()?);
        let seconds = hours.checked_mul(3600)?.checked_add(minutes.checked_mul(60)?)?;
        return Offset::from_seconds(if negative { -seconds } else { seconds }).ok().map(TimeZone::fixed);
    }
    if text.is_empty() || text == "UTC" { Some(TimeZone::UTC) } else { TimeZone::get(text).ok() }
}

fn part(name: &str, at: &Zoned) -> Option<i64> {
    Some(match name {
        "getFullYear" => at.year().into(),
        "getMonth" => i64::from(at.month()) - 1,
        "getDayOfYear" => i64::from(at.day_of_year()) - 1,
        "getDayOfMonth" => i64::from(at.day()) - 1,
        "getDate" => at.day().into(),
        "getDayOfWeek" => at.weekday().to_sunday_zero_offset().into(),
        "getHours" => at.hour().into(),
        "getMinutes" => at.minute().into(),
        "getSeconds" => at.second().into(),
        "getMilliseconds" => at.millisecond().into(),
        _ => return None,
    })
}
