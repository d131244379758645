//! The formats of text that schemas of custom resources may ask for, as go-openapi's registry knows them.

use std::net::{Ipv4Addr, Ipv6Addr};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use jiff::civil::Date;

use crate::{names, pattern};

/// The formats, without dashes, as upstream compares them. Others say nothing.
const FORMATS: [&str; 26] = [
    "bsonobjectid", "uri", "email", "hostname", "ipv4", "ipv6", "cidr", "mac", "uuid", "uuid3", "uuid4", "uuid5", "isbn", "isbn10", "isbn13",
    "creditcard", "ssn", "hexcolor", "rgbcolor", "byte", "password", "date", "duration", "datetime", "k8sshortname", "k8slongname",
];

fn normal(format: &str) -> String {
    format.replace('-', "")
}

/// Whether the format means something.
pub(in crate::validation) fn known(format: &str) -> bool {
    FORMATS.contains(&normal(format).as_str())
}

/// Whether the text has the format. Every text has a format that isn't known.
pub(super) fn fits(format: &str, text: &str) -> bool {
    let matches = |expression: &str| pattern::compile(expression).is_ok_and(|regex| regex.is_match(text));
    match normal(format).as_str() {
        "bsonobjectid" => matches("^[0-9a-fA-F]{24}$"),
        "uri" => uri(text),
        "email" => email(text),
        "hostname" => hostname(text),
        "ipv4" => text.parse::<Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<Ipv6Addr>().is_ok(),
        "cidr" => cidr(text),
        "mac" => matches("^([0-9a-fA-F]{2}[:-]){5}([0-9a-fA-F]{2}[:-]){0,2}([0-9a-fA-F]{2})$|^([0-9a-fA-F]{4}\\.){2,3}[0-9a-fA-F]{4}$"),
        "uuid" => matches("^(?i)[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}$"),
        "uuid3" => matches("^(?i)[0-9a-f]{8}-?[0-9a-f]{4}-?3[0-9a-f]{3}-?[0-9a-f]{4}-?[0-9a-f]{12}$"),
        "uuid4" => matches("^(?i)[0-9a-f]{8}-?[0-9a-f]{4}-?4[0-9a-f]{3}-?[89ab][0-9a-f]{3}-?[0-9a-f]{12}$"),
        "uuid5" => matches("^(?i)[0-9a-f]{8}-?[0-9a-f]{4}-?5[0-9a-f]{3}-?[89ab][0-9a-f]{3}-?[0-9a-f]{12}$"),
        "isbn" => isbn(text, 10) || isbn(text, 13),
        "isbn10" => isbn(text, 10),
        "isbn13" => isbn(text, 13),
        "creditcard" => credit_card(text),
        "ssn" => matches("^[0-9]{3}[- ]?[0-9]{2}[- ]?[0-9]{4}$"),
        "hexcolor" => matches("^#?([0-9a-fA-F]{3}|[0-9a-fA-F]{6})$"),
        "rgbcolor" => rgb(text),
        "byte" => STANDARD.decode(text.replace(['\r', '\n'], "")).is_ok(),
        "date" => text.len() == 10 && text.parse::<Date>().is_ok(),
        "duration" => duration(text),
        "datetime" => text.len() >= 20 && text.as_bytes().get(10).is_some_and(|b| matches!(b, b'T' | b't')) && text.parse::<Timestamp>().is_ok(),
        "k8sshortname" => names::dns_label(text).is_empty(),
        "k8slongname" => names::dns_subdomain(text).is_empty(),
        _ => true,
    }
}

/// Go's `url.ParseRequestURI`: an absolute URI or an absolute path.
fn uri(text: &str) -> bool {
    if text.is_empty() || text.chars().any(|c| c.is_ascii_control() || c == ' ') {
        return false;
    }
    if text.starts_with('/') {
        return true;
    }
    let Some((scheme, rest)) = text.split_once(':') else { return false };
    let mut letters = scheme.chars();
    let named = letters.next().is_some_and(|c| c.is_ascii_alphabetic()) && letters.all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
    let port = rest.strip_prefix("//").map_or("", |authority| {
        let host = authority.split(['/', '?', '#']).next().unwrap_or("");
        host.rsplit_once(':').filter(|(_, port)| !port.contains(']')).map_or("", |(_, port)| port)
    });
    named && !rest.is_empty() && port.chars().all(|c| c.is_ascii_digit())
}

/// An address as in a mail's header, with or without a name before it.
fn email(text: &str) -> bool {
    let address = match text.trim().strip_suffix('>') {
        Some(rest) => rest.rsplit_once('<').map_or("", |(_, address)| address),
        None => text.trim(),
    };
    let Some((local, domain)) = address.rsplit_once('@') else { return false };
    let atom = |c: char| c.is_alphanumeric() || "!#$%&'*+-/=?^_`{|}~.".contains(c);
    let dotted = |part: &str| !part.is_empty() && part.chars().all(atom) && !part.starts_with('.') && !part.ends_with('.') && !part.contains("..");
    let quoted = local.len() > 2 && local.starts_with('"') && local.ends_with('"');
    (dotted(local) || quoted) && dotted(domain)
}

fn hostname(text: &str) -> bool {
    let label = |l: &str| {
        (1..=63).contains(&l.len()) && !l.starts_with('-') && !l.ends_with('-') && l.chars().all(|c| c.is_alphanumeric() || c == '-' || c == '_')
    };
    let name = text.strip_suffix('.').unwrap_or(text);
    !name.is_empty() && name.len() <= 255 && name.split('.').all(label)
}

fn cidr(text: &str) -> bool {
    let Some((address, bits)) = text.split_once('/') else { return false };
    let most = match (address.parse::<Ipv4Addr>(), address.parse::<Ipv6Addr>()) {
        (Ok(_), _) => 32,
        (_, Ok(_)) => 128,
        _ => return false,
    };
    (bits.len() == 1 || !bits.starts_with('0')) && bits.chars().all(|c| c.is_ascii_digit()) && bits.parse::<u8>().is_ok_and(|b| b <= most)
}

/// A book number of that length whose check digit is right.
fn isbn(text: &str, length: usize) -> bool {
    let plain: Vec<char> = text.chars().filter(|c| !matches!(c, '-' | ' ')).collect();
    if plain.len() != length {
        return false;
    }
    let digit = |(i, c): (usize, &char)| if *c == 'X' && length == 10 && i == 9 { Some(10) } else { c.to_digit(10) };
    let Some(digits) = plain.iter().enumerate().map(digit).collect::<Option<Vec<u32>>>() else { return false };
    if length == 10 {
        digits.iter().zip(1..).map(|(d, i)| d * i).sum::<u32>() % 11 == 0
    } else {
        digits.iter().enumerate().map(|(i, d)| if i % 2 == 0 { *d } else { d * 3 }).sum::<u32>() % 10 == 0
    }
}

/// A card number of one of the known forms with the right check digit.
fn credit_card(text: &str) -> bool {
    const FORM: &str = "^(?:4[0-9]{12}(?:[0-9]{3})?|5[1-5][0-9]{14}|6(?:011|5[0-9][0-9])[0-9]{12}|3[47][0-9]{13}|3(?:0[0-5]|[68][0-9])[0-9]{11}|(?:2131|1800|35[0-9]{3})[0-9]{11})$";
    let plain: String = text.chars().filter(char::is_ascii_digit).collect();
    let luhn = |(i, c): (usize, char)| {
        let digit = c.to_digit(10).unwrap_or(0);
        let doubled = if i % 2 == 1 { digit * 2 } else { digit };
        if doubled > 9 { doubled - 9 } else { doubled }
    };
    pattern::compile(FORM).is_ok_and(|form| form.is_match(&plain)) && plain.chars().rev().enumerate().map(luhn).sum::<u32>() % 10 == 0
}

fn rgb(text: &str) -> bool {
    let Some(inner) = text.strip_prefix("rgb(").and_then(|t| t.strip_suffix(')')) else { return false };
    let parts: Vec<&str> = inner.split(',').map(str::trim).collect();
    parts.len() == 3 && parts.iter().all(|p| p.parse::<u8>().is_ok())
}

/// Go's durations (`1h30m`, `1.5s`), and Scala's (`22 ns`, `3 days`).
fn duration(text: &str) -> bool {
    const GO: &str = r"^[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)(([0-9]+(\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h))*$";
    const SCALA: &str = r"^([0-9]+(\.[0-9]+)?)\s*(nanos?|nanoseconds?|ns|micros?|microseconds?|us|µs|millis?|milliseconds?|ms|seconds?|secs?|s|minutes?|mins?|m|hours?|hrs?|h|days?|d|weeks?|w)$";
    text == "0" || [GO, SCALA].iter().any(|form| pattern::compile(form).is_ok_and(|regex| regex.is_match(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats() {
        for (format, good, bad) in [
            ("date-time", "2026-01-02T03:04:05Z", "2026-01-02"),
            ("date", "2026-01-02", "2026-13-02"),
            ("ipv4", "10.0.0.1", "10.0.0.256"),
            ("ipv6", "::1", "1.2.3.4"),
            ("cidr", "10.0.0.0/8", "10.0.0.0/33"),
            ("uuid", "123e4567-e89b-12d3-a456-426614174000", "123e4567"),
            ("uuid4", "123e4567-e89b-42d3-a456-426614174000", "123e4567-e89b-12d3-a456-426614174000"),
            ("byte", "aGVsbG8=", "???"),
            ("uri", "https://a.b:80/c?d", "a b"),
            ("uri", "/path", "relative"),
            ("email", "Bob <bob@example.com>", "bob"),
            ("hostname", "a-b.example.com", "-a"),
            ("mac", "01:23:45:67:89:ab", "01:23"),
            ("duration", "1h30m", "soon"),
            ("duration", "3 days", "3 moons"),
            ("isbn", "978-0321751041", "978-0321751042"),
            ("isbn10", "0321751043", "0321751044"),
            ("creditcard", "4111 1111 1111 1111", "4111 1111 1111 1112"),
            ("ssn", "111-22-3333", "111-22"),
            ("hexcolor", "#FFFFFF", "#FFFF"),
            ("rgbcolor", "rgb(255,0,1)", "rgb(256,0,1)"),
            ("k8s-short-name", "a-b", "A"),
        ] {
            assert!(known(format) && fits(format, good) && !fits(format, bad), "{format}: {good}, {bad}");
        }
        assert!(fits("something", "else") && !known("something"));
    }
}
