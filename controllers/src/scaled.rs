//! Numbers that may be percentages.

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// The number, or the percentage of `total` rounded up or down. What can't be read counts as 0.
pub fn scaled(value: &IntOrString, total: i32, round_up: bool) -> i32 {
    match value {
        IntOrString::Int(number) => *number,
        IntOrString::String(text) => {
            let percent = text.strip_suffix('%').and_then(|p| p.parse::<i64>().ok());
            let hundredths = percent.unwrap_or(0).saturating_mul(total.into());
            let whole = if round_up { (hundredths + 99).div_euclid(100) } else { hundredths.div_euclid(100) };
            i32::try_from(whole).unwrap_or(i32::MAX)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages() {
        let check = |text: &str, total, up, expected| {
            assert_eq!(scaled(&IntOrString::String(text.into()), total, up), expected, "{text} of {total}");
        };
        check("25%", 10, true, 3);
        check("25%", 10, false, 2);
        check("100%", 7, false, 7);
        check("0%", 7, true, 0);
        check("x", 7, true, 0);
        assert_eq!(scaled(&IntOrString::Int(3), 7, true), 3);
    }
}
