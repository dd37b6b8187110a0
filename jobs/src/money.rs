//! Money is counted in whole nano-dollars (10⁻⁹ USD) and nothing else: decimal text is read and written here without
//! floating point, so that a thousand small sums are what they look like.

use crate::{Error, Result};

/// Nano-dollars in a dollar.
pub const NANO_USD: u64 = 1_000_000_000;

/// A decimal number (`40`, `0.15`, `7.5e-08`) times 10^`exponent`, rounded up to a whole number: what costs is never taken for
/// less than it is. `None` if the text is no such number, is negative, or the result does not fit.
pub fn scaled(text: &str, exponent: i32) -> Option<u64> {
    let (mantissa, power) = match text.split_once(['e', 'E']) {
        Some((mantissa, power)) => (mantissa, power.parse::<i32>().ok()?),
        None => (text, 0),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let mut digits: u128 = 0;
    for digit in whole.chars().chain(fraction.chars()) {
        digits = digits.checked_mul(10)?.checked_add(u128::from(digit.to_digit(10)?))?;
    }
    if digits == 0 {
        return Some(0);
    }
    let shift = power.checked_add(exponent)?.checked_sub(i32::try_from(fraction.len()).ok()?)?;
    let ten_to = |power: u32| 10u128.checked_pow(power);
    let value = if shift >= 0 {
        digits.checked_mul(ten_to(shift.unsigned_abs())?)?
    } else {
        // Beyond what 128 bits hold, only the rounding up is left.
        ten_to(shift.unsigned_abs()).map_or(1, |divisor| digits.div_ceil(divisor))
    };
    u64::try_from(value).ok()
}

/// A sum in dollars, as a person writes it, in nano-dollars.
///
/// # Errors
/// It is no number, negative, or more than 18 billion dollars.
pub fn nano_usd(text: &str) -> Result<u64> {
    scaled(text.trim(), 9).ok_or_else(|| {
        Error::invalid(format!("{text:?} is no sum of dollars")).hint("write it as a decimal number: 40 or 0.25")
    })
}

/// Nano-dollars as dollars, with as many digits as they have and two at least: `0.25`, `0.000075`.
pub fn show(nano_usd: u64) -> String {
    let fraction = format!("{:09}", nano_usd % NANO_USD);
    let kept = fraction.trim_end_matches('0').len().max(2);
    format!("{}.{}", nano_usd / NANO_USD, &fraction[..kept])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_are_read_exactly_and_rounded_up() {
        for (text, exponent, value) in [
            ("40", 9, Some(40_000_000_000)),
            ("0.1", 9, Some(100_000_000)),
            ("7.5e-08", 15, Some(75_000_000)),
            ("1.3E-7", 15, Some(130_000_000)),
            ("2.5e+1", 0, Some(25)),
            ("0.0000000001", 9, Some(1)),
            ("1e-300", 9, Some(1)),
            ("0e-300", 9, Some(0)),
            (".5", 1, Some(5)),
            ("5.", 0, Some(5)),
            ("18446744073.709551615", 9, Some(u64::MAX)),
            ("18446744073.709551616", 9, None),
            ("", 9, None),
            (".", 9, None),
            ("-1", 9, None),
            ("1,000", 9, None),
            ("1e", 9, None),
            ("nan", 9, None),
            ("inf", 9, None),
            ("0x10", 9, None),
            ("99999999999999999999999999999999999999999999", 0, None),
        ] {
            assert_eq!(scaled(text, exponent), value, "{text}");
        }
    }

    #[test]
    fn what_is_shown_is_read_back() {
        for (nano, text) in [(0, "0.00"), (1, "0.000000001"), (250_000_000, "0.25"), (40 * NANO_USD, "40.00")] {
            assert_eq!(show(nano), text);
            assert_eq!(nano_usd(text).unwrap(), nano);
        }
        assert!(nano_usd("forty").unwrap_err().hint_text().unwrap().contains("0.25"));
    }
}
