//! What instances cost. Prices are data with a date: they age, and a scenario or configuration may say its own.
//!
//! Source: AWS, "Amazon EC2 On-Demand Pricing", Linux, us-east-1.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::time::Instant;

/// The month in which the table was last held against AWS's list.
pub const PRICES_OF: &str = "2025-10";

/// (name, millionths of a US dollar an hour)
const PRICES: &[(&str, u64)] = &[
    ("c5.xlarge", 170_000),
    ("c5.2xlarge", 340_000),
    ("c5.4xlarge", 680_000),
    ("g4dn.xlarge", 526_000),
    ("g4dn.2xlarge", 752_000),
    ("g4dn.4xlarge", 1_204_000),
    ("g4dn.8xlarge", 2_176_000),
    ("g4dn.12xlarge", 3_912_000),
    ("g5.xlarge", 1_006_000),
    ("g5.2xlarge", 1_212_000),
    ("g5.12xlarge", 5_672_000),
    ("m5.large", 96_000),
    ("m5.xlarge", 192_000),
    ("m5.2xlarge", 384_000),
    ("m5.4xlarge", 768_000),
    ("m5.8xlarge", 1_536_000),
    ("m5.12xlarge", 2_304_000),
    ("r5.xlarge", 252_000),
    ("r5.2xlarge", 504_000),
];

/// The on-demand price of an hour; `None` for a type not in the table.
pub fn per_hour(instance_type: &str) -> Option<Dollars> {
    let (_, micros) = PRICES.iter().find(|(name, _)| *name == instance_type)?;
    Some(Dollars::from_micros(*micros))
}

/// An amount of US dollars in millionths, so that sums are exact.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Dollars(u64);

impl Dollars {
    pub const fn from_micros(micros: u64) -> Self {
        Self(micros)
    }

    pub const fn micros(self) -> u64 {
        self.0
    }
}

impl FromStr for Dollars {
    type Err = InvalidDollars;

    /// As `0.526`, with six decimals at most.
    fn from_str(text: &str) -> Result<Self, InvalidDollars> {
        let invalid = || InvalidDollars(text.to_owned());
        let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        if !digits(whole) || !digits(decimals) || decimals.len() > 6 {
            return Err(invalid());
        }
        let whole: u64 = whole.parse().map_err(|_| invalid())?;
        let micros: u64 = format!("{decimals:0<6}").parse().map_err(|_| invalid())?;
        let sum = whole.checked_mul(1_000_000).and_then(|whole| whole.checked_add(micros));
        sum.map(Self).ok_or_else(invalid)
    }
}

#[derive(Debug, thiserror::Error)]
#[error("`{0}` is no amount of US dollars as `0.526`")]
pub struct InvalidDollars(String);

impl std::ops::Add for Dollars {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl fmt::Display for Dollars {
    /// To the cent, as prices are written.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cents = self.0.saturating_add(5000) / 10_000;
        write!(f, "${}.{:02}", cents / 100, cents % 100)
    }
}

/// What was paid for, from the first to the last moment that was metered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Cost {
    pub node_seconds: u64,
    /// `None`: the price of some instance is not known.
    pub total: Option<Dollars>,
    /// At the moment.
    pub per_hour: Option<Dollars>,
}

/// Adds up what instances cost from the moment each is there to the moment it goes.
#[derive(Clone, Debug)]
pub struct Meter {
    since: Instant,
    /// Instance-milliseconds, and millionths of a dollar times milliseconds in an hour.
    instance_millis: u64,
    priced: Option<u128>,
    count: u64,
    per_hour: Option<Dollars>,
}

const MILLIS_PER_HOUR: u128 = 3_600_000;

impl Meter {
    pub fn new(now: Instant) -> Self {
        Self { since: now, instance_millis: 0, priced: Some(0), count: 0, per_hour: Some(Dollars::default()) }
    }

    /// From now on there are these: how many instances, and the price of an hour of one.
    pub fn set(&mut self, now: Instant, instances: impl IntoIterator<Item = (u32, Option<Dollars>)>) {
        self.advance(now);
        (self.count, self.per_hour) = (0, Some(Dollars::default()));
        for (count, price) in instances {
            self.count += u64::from(count);
            if count > 0 {
                let more = price.map(|price| Dollars(price.0.saturating_mul(count.into())));
                self.per_hour = self.per_hour.zip(more).map(|(sum, more)| sum + more);
            }
        }
    }

    pub fn cost(&mut self, now: Instant) -> Cost {
        self.advance(now);
        let dollars = |priced: u128| Dollars(u64::try_from(priced / MILLIS_PER_HOUR).unwrap_or(u64::MAX));
        Cost { node_seconds: self.instance_millis / 1000, total: self.priced.map(dollars), per_hour: self.per_hour }
    }

    fn advance(&mut self, now: Instant) {
        let millis = now.as_millis().saturating_sub(self.since.as_millis());
        self.since = self.since.max(now);
        self.instance_millis += self.count * millis;
        if millis > 0 {
            let more = self.per_hour.map(|price| u128::from(price.0) * u128::from(millis));
            self.priced = self.priced.zip(more).map(|(sum, more)| sum + more);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Instant {
        Instant::from_millis(seconds * 1000)
    }

    #[test]
    fn instances_cost_while_they_are_there() {
        let mut meter = Meter::new(at(0));
        let price = per_hour("m5.xlarge");
        meter.set(at(0), [(2, price)]);
        meter.set(at(1800), [(4, price)]);
        let cost = meter.cost(at(3600));
        assert_eq!((cost.node_seconds, cost.total.unwrap().micros()), (3 * 3600, 3 * 192_000));
        assert_eq!(cost.total.unwrap().to_string(), "$0.58");
        assert_eq!(cost.per_hour.unwrap().micros(), 4 * 192_000);
    }

    #[test]
    fn amounts_are_read_to_the_millionth() {
        let check = |text: &str, micros: Option<u64>| {
            assert_eq!(text.parse::<Dollars>().ok().map(Dollars::micros), micros, "{text}");
        };
        check("0.526", Some(526_000));
        check("12", Some(12_000_000));
        check("0.000001", Some(1));
        for text in ["", ".5", "1.", "-1", "1e3", "$1", "0.0000001", "99999999999999999"] {
            check(text, None);
        }
    }

    #[test]
    fn an_unknown_price_is_not_zero() {
        let mut meter = Meter::new(at(0));
        meter.set(at(0), [(1, per_hour("x99.giant")), (1, per_hour("m5.xlarge"))]);
        let cost = meter.cost(at(60));
        assert_eq!((cost.node_seconds, cost.total, cost.per_hour), (120, None, None));
        // None of them there: nothing to pay.
        let mut meter = Meter::new(at(0));
        meter.set(at(0), [(0, per_hour("x99.giant"))]);
        assert_eq!(meter.cost(at(60)).total, Some(Dollars::default()));
    }
}
