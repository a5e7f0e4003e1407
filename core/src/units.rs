//! Values that carry their unit, and the text forms people and Kubernetes write them in.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A share in thousandths, never above 1000. Integers, so that two reports compare exactly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u16", into = "u16")]
pub struct Permille(u16);

impl Permille {
    pub const ZERO: Self = Self(0);

    /// `None` above 1000.
    pub const fn new(raw: u16) -> Option<Self> {
        if raw <= 1000 { Some(Self(raw)) } else { None }
    }

    /// For constants: `percent` must not be above 100, checked when compiled.
    pub const fn percent(percent: u16) -> Self {
        assert!(percent <= 100);
        Self(percent * 10)
    }

    /// The share `part / whole`, rounded to the nearest thousandth and held to 0..=1000; `None` if it is no number.
    pub fn from_ratio(part: f64, whole: f64) -> Option<Self> {
        let share = part / whole;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "held to 0..=1000 just before")]
        share.is_finite().then(|| Self((share.clamp(0.0, 1.0) * 1000.0).round() as u16))
    }

    pub const fn get(self) -> u16 {
        self.0
    }

    /// As a ratio between 0 and 1, the way Prometheus wants it.
    pub fn ratio(self) -> f64 {
        f64::from(self.0) / 1000.0
    }
}

impl TryFrom<u16> for Permille {
    type Error = InvalidShare;

    fn try_from(raw: u16) -> Result<Self, InvalidShare> {
        Self::new(raw).ok_or_else(|| InvalidShare(format!("{raw}‰")))
    }
}

impl From<Permille> for u16 {
    fn from(share: Permille) -> Self {
        share.0
    }
}

impl FromStr for Permille {
    type Err = InvalidShare;

    /// Reads a percentage: `50%` or `2.5%`. The sign is needed: a bare number says nothing of its unit.
    fn from_str(text: &str) -> Result<Self, InvalidShare> {
        let invalid = || InvalidShare(text.to_owned());
        let percent: f64 = text.trim().strip_suffix('%').and_then(|p| p.trim().parse().ok()).ok_or_else(invalid)?;
        if !(0.0..=100.0).contains(&percent) {
            return Err(invalid());
        }
        Self::from_ratio(percent, 100.0).ok_or_else(invalid)
    }
}

impl fmt::Display for Permille {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_multiple_of(10) {
            write!(f, "{}%", self.0 / 10)
        } else {
            write!(f, "{}.{}%", self.0 / 10, self.0 % 10)
        }
    }
}

/// A text or number that is no share.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is no share as in 50% or 2.5%, between 0% and 100%")]
pub struct InvalidShare(String);

/// Reads a Kubernetes quantity in thousandths of its unit, rounded up as Kubernetes does: `250m` is 250, `2` is 2000,
/// `1Ki` is 1 024 000.
///
/// Grammar: `k8s.io/apimachinery/pkg/api/resource.Quantity`.
pub fn parse_quantity_milli(text: &str) -> Result<u128, InvalidQuantity> {
    let invalid = || InvalidQuantity(text.to_owned());
    let digits = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || number.matches('.').count() > 1 || number.len() > 24 {
        return Err(invalid());
    }
    let mantissa: u128 = format!("{whole}{fraction}").parse().map_err(|_| invalid())?;
    // Every suffix as `numerator` over `denominator`, in thousandths.
    let (numerator, mut denominator): (u128, u128) = match suffix {
        "n" => (1, 1_000_000),
        "u" => (1, 1000),
        "m" => (1, 1),
        "" => (1000, 1),
        "k" => (1_000_000, 1),
        "M" => (1_000_000_000, 1),
        "G" => (1_000_000_000_000, 1),
        "T" => (1_000_000_000_000_000, 1),
        "P" => (1_000_000_000_000_000_000, 1),
        "E" => (1_000_000_000_000_000_000_000, 1),
        "Ki" => (1000 << 10, 1),
        "Mi" => (1000 << 20, 1),
        "Gi" => (1000 << 30, 1),
        "Ti" => (1000 << 40, 1),
        "Pi" => (1000 << 50, 1),
        "Ei" => (1000 << 60, 1),
        _ => {
            let exponent: i32 = suffix.strip_prefix(['e', 'E']).and_then(|e| e.parse().ok()).ok_or_else(invalid)?;
            match exponent {
                0..=18 => (1000 * 10_u128.pow(exponent.unsigned_abs()), 1),
                -18..0 => (1000, 10_u128.pow(exponent.unsigned_abs())),
                _ => return Err(invalid()),
            }
        }
    };
    denominator *= 10_u128.pow(u32::try_from(fraction.len()).map_err(|_| invalid())?);
    Ok(mantissa.checked_mul(numerator).ok_or_else(invalid)?.div_ceil(denominator))
}

/// A text that is no Kubernetes quantity of zero or more.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is no Kubernetes quantity as in 500m, 4 or 16Gi")]
pub struct InvalidQuantity(String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_read_as_kubernetes_does() {
        let check = |text, milli: u128| assert_eq!(parse_quantity_milli(text).unwrap(), milli, "{text}");
        check("0", 0);
        check("2", 2000);
        check("250m", 250);
        check("0.1", 100);
        check(".5", 500);
        check("1.", 1000);
        check("1Ki", 1_024_000);
        check("16Gi", 16 * (1 << 30) * 1000);
        check("1.5Gi", 3 * (1 << 29) * 1000);
        check("12e6", 12_000_000_000);
        check("1E3", 1_000_000);
        check("2E", 2_000_000_000_000_000_000_000);
        check("100e-3", 100);
        check("1n", 1);
        check("1500u", 2);
        for text in ["", "m", "-1", "1.2.3", "1 Gi", "Gi", "1gi", "1e", "1e99", "0x10", "99999999999999999999999999"] {
            assert!(parse_quantity_milli(text).is_err(), "{text}");
        }
    }

    #[test]
    fn shares_read_and_print_as_percentages() {
        let check = |text: &str, raw| assert_eq!(text.parse::<Permille>().unwrap().get(), raw, "{text}");
        check("50%", 500);
        check(" 2.5 %", 25);
        check("100%", 1000);
        for text in ["50", "101%", "-1%", "%", "half", "NaN%"] {
            assert!(text.parse::<Permille>().is_err(), "{text}");
        }
        assert_eq!(Permille::percent(50).to_string(), "50%");
        assert_eq!(Permille(25).to_string(), "2.5%");
    }

    #[test]
    fn a_ratio_of_nothing_is_unknown() {
        assert_eq!(Permille::from_ratio(0.0, 0.0), None);
        assert_eq!(Permille::from_ratio(3.0, 2.0), Some(Permille(1000)));
        assert_eq!(Permille::from_ratio(-1.0, 2.0), Some(Permille(0)));
    }
}
