//! Whether a text is a cron schedule, with the faults that upstream's parser finds.

/// A field of a schedule: its bounds and the names its values have.
struct Field {
    low: u32,
    high: u32,
    names: &'static [&'static str],
}

const MONTHS: [&str; 12] = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

const FIELDS: [Field; 5] = [
    Field { low: 0, high: 59, names: &[] },
    Field { low: 0, high: 23, names: &[] },
    Field { low: 1, high: 31, names: &[] },
    Field { low: 1, high: 12, names: &MONTHS },
    Field { low: 0, high: 6, names: &DAYS },
];

/// Checks a schedule of five fields, or one of the words that stand for one.
pub(super) fn check(text: &str) -> Result<(), String> {
    let mut spec = text;
    if text.starts_with("TZ=") || text.starts_with("CRON_TZ=") {
        spec = text.split_once(' ').map_or("", |(_, rest)| rest).trim();
    }
    if spec.starts_with('@') {
        return descriptor(spec);
    }
    let fields: Vec<&str> = spec.split_whitespace().collect();
    if fields.len() != FIELDS.len() {
        return Err(format!("expected exactly 5 fields, found {}: [{}]", fields.len(), fields.join(" ")));
    }
    for (text, field) in fields.iter().zip(&FIELDS) {
        for range in text.split(',').filter(|r| !r.is_empty()) {
            check_range(range, field)?;
        }
    }
    Ok(())
}

fn descriptor(text: &str) -> Result<(), String> {
    const WORDS: [&str; 7] = ["@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly"];
    let is_duration = |d: &str| !d.is_empty() && d.starts_with(|c: char| c.is_ascii_digit()) && d.ends_with(['s', 'm', 'h']);
    match text.strip_prefix("@every ") {
        Some(duration) if is_duration(duration) => Ok(()),
        Some(duration) => Err(format!("failed to parse duration {text}: time: invalid duration {duration:?}")),
        None if WORDS.contains(&text) => Ok(()),
        None => Err(format!("unrecognized descriptor: {text}")),
    }
}

fn check_range(range: &str, field: &Field) -> Result<(), String> {
    let mut by_step = range.split('/');
    let (span, step) = (by_step.next().unwrap_or(""), by_step.next());
    if by_step.next().is_some() {
        return Err(format!("too many slashes: {range}"));
    }
    let mut ends = span.split('-');
    let (first, last) = (ends.next().unwrap_or(""), ends.next());
    if ends.next().is_some() {
        return Err(format!("too many hyphens: {range}"));
    }
    let (start, end) = match (first, last) {
        ("*" | "?", _) => (field.low, field.high),
        (first, None) => {
            let start = number(first, field)?;
            (start, if step.is_some() { field.high } else { start })
        }
        (first, Some(last)) => (number(first, field)?, number(last, field)?),
    };
    let step = step.map_or(Ok(1), plain_number)?;
    if start < field.low {
        return Err(format!("beginning of range ({start}) below minimum ({}): {range}", field.low));
    }
    if end > field.high {
        return Err(format!("end of range ({end}) above maximum ({}): {range}", field.high));
    }
    if start > end {
        return Err(format!("beginning of range ({start}) beyond end of range ({end}): {range}"));
    }
    if step == 0 {
        return Err(format!("step of range should be a positive number: {range}"));
    }
    Ok(())
}

fn number(text: &str, field: &Field) -> Result<u32, String> {
    match field.names.iter().position(|name| name.eq_ignore_ascii_case(text)) {
        Some(position) => Ok(position as u32 + u32::from(field.low == 1)),
        None => plain_number(text),
    }
}

fn plain_number(text: &str) -> Result<u32, String> {
    let number: i64 = text.parse().map_err(|_| format!("failed to parse int from {text}: strconv.Atoi: parsing {text:?}: invalid syntax"))?;
    u32::try_from(number).map_err(|_| format!("negative number ({number}) not allowed: {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules() {
        for good in ["* * * * *", "*/5 0-6,12 1 jan-mar MON", "@hourly", "@every 1h30m", "TZ=UTC 0 0 * * *", "0 0 ? * 0"] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for (bad, fault) in [
            ("bad", "expected exactly 5 fields, found 1: [bad]"),
            ("60 * * * *", "end of range (60) above maximum (59): 60"),
            ("x * * * *", "failed to parse int from x: strconv.Atoi: parsing \"x\": invalid syntax"),
            ("5-1 * * * *", "beginning of range (5) beyond end of range (1): 5-1"),
            ("*/0 * * * *", "step of range should be a positive number: */0"),
            ("* * 0 * *", "beginning of range (0) below minimum (1): 0"),
            ("@never", "unrecognized descriptor: @never"),
        ] {
            assert_eq!(check(bad), Err(fault.to_owned()), "{bad}");
        }
    }
}
