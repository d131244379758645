//! Quantities: `500m`, `1.5Gi`, `12e6`. Exact, on 128-bit nano units.
//!
//! The grammar, the error text and the canonical form are upstream's `resource.Quantity`: three decimals of nine
//! at most, rounded up; printed in the family of suffixes the text came in, with no fraction digits.

use std::cmp::Ordering;
use std::fmt;
use std::ops::{Add, AddAssign, Neg, Sub, SubAssign};

const NANOS: i128 = 1_000_000_000;

/// The family of suffixes that a quantity is printed in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// `n u m k M G T P E`
    #[default]
    DecimalSi,
    /// `Ki Mi Gi Ti Pi Ei`
    BinarySi,
    /// `e3`, `e6`
    DecimalExponent,
}

/// An exact amount of something. Compared by amount alone.
#[derive(Clone, Copy, Debug, Default)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

/// Why a text is no quantity; the message is upstream's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// The text doesn't have the form of a quantity.
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    /// The suffix is none of those known.
    #[error("unable to parse quantity's suffix")]
    Suffix,
    /// There is a suffix without a number.
    #[error("unable to parse numeric part of quantity")]
    Numeric,
}

/// The suffixes with the power of their base.
const DECIMAL: [(&str, i32); 10] =
    [("n", -9), ("u", -6), ("m", -3), ("", 0), ("k", 3), ("M", 6), ("G", 9), ("T", 12), ("P", 15), ("E", 18)];
const BINARY: [(&str, u32); 6] = [("Ki", 10), ("Mi", 20), ("Gi", 30), ("Ti", 40), ("Pi", 50), ("Ei", 60)];

/// Upstream's ceiling: amounts are capped at the greatest 64-bit integer.
const MAX: i128 = i64::MAX as i128 * NANOS;

impl Quantity {
    /// Zero, decimal.
    pub const ZERO: Self = Self { nanos: 0, format: Format::DecimalSi };

    /// Reads a quantity.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let (negative, rest) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            Some(_) => (false, text),
            None => return Err(ParseError::Format),
        };
        let number_end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, suffix) = rest.split_at(number_end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if fraction.contains('.') {
            return Err(ParseError::Format);
        }
        let (format, power_of_ten, power_of_two) = read_suffix(suffix)?;
        if whole.is_empty() && fraction.is_empty() {
            return Err(ParseError::Numeric);
        }
        let nanos = amount(whole, fraction, power_of_ten, power_of_two);
        Ok(Self { nanos: if negative { -nanos } else { nanos }, format })
    }

    /// So many whole units, printed with decimal suffixes.
    pub fn from_value(value: i64) -> Self {
        Self { nanos: i128::from(value) * NANOS, format: Format::DecimalSi }
    }

    /// The amount in thousandths, rounded up (away from zero).
    pub fn milli_value(self) -> i64 {
        saturate(divide_up(self.nanos, 1_000_000))
    }

    /// The amount in whole units, rounded up (away from zero).
    pub fn value(self) -> i64 {
        saturate(divide_up(self.nanos, NANOS))
    }

    /// The amount as a floating-point number, for scores and ratios.
    pub fn as_f64(self) -> f64 {
        self.nanos as f64 / NANOS as f64
    }

    /// Whether it is nothing.
    pub fn is_zero(self) -> bool {
        self.nanos == 0
    }

    /// -1, 0 or 1.
    pub fn signum(self) -> i32 {
        self.nanos.signum() as i32
    }

    /// Whether it is a whole number of units.
    pub fn is_integer(self) -> bool {
        self.nanos % NANOS == 0
    }

    /// The same amount, rounded up to whole thousandths.
    pub fn round_up_to_milli(self) -> Self {
        Self { nanos: divide_up(self.nanos, 1_000_000) * 1_000_000, ..self }
    }

    /// The family of suffixes it is printed in.
    pub fn format(self) -> Format {
        self.format
    }

    /// So many times the amount.
    pub fn times(self, factor: i64) -> Self {
        Self { nanos: self.nanos.saturating_mul(i128::from(factor)), ..self }
    }
}

/// The format and the powers of ten and two that a suffix stands for.
fn read_suffix(suffix: &str) -> Result<(Format, i32, u32), ParseError> {
    if let Some((_, power)) = DECIMAL.iter().find(|(s, _)| *s == suffix) {
        return Ok((Format::DecimalSi, *power, 0));
    }
    if let Some((_, power)) = BINARY.iter().find(|(s, _)| *s == suffix) {
        return Ok((Format::BinarySi, 0, *power));
    }
    let known = |c: char| "eEinumkKMGTP".contains(c);
    let letters = suffix.find(|c: char| !known(c)).unwrap_or(suffix.len());
    let digits = suffix[letters..].trim_start_matches(['+', '-']);
    let signs = suffix.len() - letters - digits.len();
    if signs > 1 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(ParseError::Format);
    }
    match &suffix[..letters] {
        "e" | "E" => match suffix[letters..].parse::<i32>() {
            Ok(power) => Ok((Format::DecimalExponent, power, 0)),
            Err(_) => Err(ParseError::Suffix),
        },
        _ => Err(ParseError::Suffix),
    }
}

/// The number in nano units, rounded up, capped.
fn amount(whole: &str, fraction: &str, power_of_ten: i32, power_of_two: u32) -> i128 {
    let digits: String = whole.chars().chain(fraction.chars()).collect();
    let digits = digits.trim_start_matches('0');
    if digits.is_empty() {
        return 0;
    }
    // value = digits * 10^exponent * 2^power_of_two, wanted times 10^9
    let exponent = i64::from(power_of_ten) - fraction.len() as i64 + 9;
    // 38 digits is the most that i128 holds; what has more before its point is over the cap anyway.
    if digits.len() as i64 + exponent > 30 {
        return MAX;
    }
    let mut mantissa: i128 = 0;
    let mut dropped = false;
    let keep = if exponent < 0 && power_of_two == 0 { (digits.len() as i64 + exponent).max(0) as usize } else { digits.len() };
    let keep = keep.min(28);
    for (i, b) in digits.bytes().enumerate() {
        if i < keep {
            mantissa = mantissa * 10 + i128::from(b - b'0');
        } else if b != b'0' {
            dropped = true;
        }
    }
    let mut exponent = exponent + (digits.len() - keep) as i64;
    // What binary suffixes scale by (at most 2^60) fits beside 28 digits only when the point is far left: scale in steps.
    for _ in 0..power_of_two {
        if mantissa > i128::MAX / 4 && exponent < 0 {
            dropped |= mantissa % 10 != 0;
            mantissa /= 10;
            exponent += 1;
        }
        mantissa = mantissa.saturating_mul(2);
    }
    while exponent > 0 {
        mantissa = mantissa.saturating_mul(10);
        exponent -= 1;
    }
    // An exponent may be as far below as an integer goes: nothing is left to divide long before.
    while exponent < 0 && mantissa != 0 {
        dropped |= mantissa % 10 != 0;
        mantissa /= 10;
        exponent += 1;
    }
    (mantissa + i128::from(dropped)).min(MAX)
}

fn divide_up(n: i128, by: i128) -> i128 {
    let quotient = n / by;
    if n % by == 0 { quotient } else { quotient + n.signum() }
}

fn saturate(n: i128) -> i64 {
    n.clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        let mut format = self.format;
        if format == Format::BinarySi && (self.nanos.abs() < 1024 * NANOS || self.nanos % NANOS != 0) {
            format = Format::DecimalSi;
        }
        if format == Format::BinarySi {
            let mut units = self.nanos / NANOS;
            let mut suffix = "";
            for (name, _) in BINARY {
                if units % 1024 != 0 {
                    break;
                }
                units /= 1024;
                suffix = name;
            }
            return write!(f, "{units}{suffix}");
        }
        let mut mantissa = self.nanos;
        let mut exponent = -9;
        while mantissa % 1000 == 0 && exponent < 18 {
            mantissa /= 1000;
            exponent += 3;
        }
        match format {
            Format::DecimalExponent if exponent == 0 => write!(f, "{mantissa}"),
            Format::DecimalExponent => write!(f, "{mantissa}e{exponent}"),
            _ => {
                let suffix = DECIMAL.iter().find(|(_, power)| *power == exponent).map_or("", |(s, _)| s);
                write!(f, "{mantissa}{suffix}")
            }
        }
    }
}

impl std::str::FromStr for Quantity {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        Self::parse(text)
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

impl Add for Quantity {
    type Output = Self;

    /// The sum, in the format of the first that isn't zero.
    fn add(self, other: Self) -> Self {
        let format = if self.is_zero() { other.format } else { self.format };
        Self { nanos: self.nanos.saturating_add(other.nanos), format }
    }
}

impl Sub for Quantity {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        self + -other
    }
}

impl Neg for Quantity {
    type Output = Self;

    fn neg(self) -> Self {
        Self { nanos: -self.nanos, ..self }
    }
}

impl AddAssign for Quantity {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl SubAssign for Quantity {
    fn sub_assign(&mut self, other: Self) {
        *self = *self - other;
    }
}

impl std::iter::Sum for Quantity {
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        iter.fold(Self::ZERO, Add::add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &str) {
        let shown = Quantity::parse(text).map_or_else(|e| format!("error {e:?}"), |q| q.to_string());
        assert_eq!(shown, expected, "{text}");
    }

    #[test]
    fn canonical_form() {
        for (text, expected) in [
            ("0", "0"), ("1000m", "1"), ("1.5", "1500m"), ("0.1", "100m"), (".5", "500m"), ("5.", "5"), ("+1", "1"), ("-1", "-1"),
            ("1.5Gi", "1536Mi"), ("1024", "1024"), ("1024Ki", "1Mi"), ("0.5Ki", "512"), ("1Ei", "1Ei"), ("1.1Ki", "1126400m"),
            ("1e3", "1e3"), ("1e-2147483648", "1e-9"), ("0e-2147483648", "0"), ("12e6", "12e6"), ("1E3", "1e3"), ("1e-3", "1e-3"), ("1500e0", "1500"), ("1E", "1E"), ("100000", "100k"),
            ("1n", "1n"), ("0.1n", "1n"), ("-0.1n", "-1n"), ("123456789012345678901234567890", "9223372036854775807"),
            ("1000000k", "1G"), ("1Mi", "1Mi"), ("2047Mi", "2047Mi"), ("0.0000000001Gi", "107374183n"), ("9223372036854775807", "9223372036854775807"),
        ] {
            check(text, expected);
        }
    }

    #[test]
    fn what_is_no_quantity() {
        for (text, expected) in [
            ("", "error Format"), ("abc", "error Format"), ("1.2.3", "error Format"), (".", "error Numeric"), ("1 ", "error Format"),
            ("1Q", "error Format"), ("1mm", "error Suffix"), ("1ki", "error Suffix"), ("1e", "error Suffix"), ("--1", "error Suffix"),
        ] {
            check(text, expected);
        }
    }

    #[test]
    fn arithmetic() {
        let q = |t| Quantity::parse(t).expect(t);
        assert_eq!((q("1") + q("500m")).to_string(), "1500m");
        assert_eq!((q("1Gi") - q("1Mi")).to_string(), "1023Mi");
        assert_eq!(q("1001u").milli_value(), 2);
        assert_eq!(q("1500m").value(), 2);
        assert!(q("1Gi") > q("1G"));
        assert_eq!(q("1Ki"), q("1024"));
    }
}
