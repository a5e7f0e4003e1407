//! Time as the core sees it: a number that comes in as an argument.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A moment, in milliseconds since the Unix epoch.
///
/// Our own type rather than `std`'s, so that events and actions serialise, deadlines survive a restart, and a
/// recorded log replays exactly. Written as RFC 3339.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Instant(u64);

impl Instant {
    /// The last moment of the year 9998: anything later is held to it, so that every moment can be written.
    const LAST: u64 = 253_370_764_799_999;

    /// The moment this many milliseconds after the Unix epoch.
    pub const fn from_millis(millis: u64) -> Self {
        Self(if millis > Self::LAST { Self::LAST } else { millis })
    }

    /// Milliseconds since the Unix epoch.
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// How long ago `earlier` was; zero if it is not earlier.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// The moment `duration` before this one, or the epoch.
    pub fn before(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(millis(duration)))
    }
}

impl std::ops::Add<Duration> for Instant {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self::from_millis(self.0.saturating_add(millis(duration)))
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl fmt::Display for Instant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let timestamp = i64::try_from(self.0).ok().and_then(|millis| jiff::Timestamp::from_millisecond(millis).ok());
        write!(f, "{:.3}", timestamp.expect("held to the year 9998 on creation"))
    }
}

impl From<Instant> for String {
    fn from(instant: Instant) -> Self {
        instant.to_string()
    }
}

impl FromStr for Instant {
    type Err = InvalidInstant;

    fn from_str(text: &str) -> Result<Self, InvalidInstant> {
        let timestamp: jiff::Timestamp = text.parse().map_err(|_| InvalidInstant(text.to_owned()))?;
        u64::try_from(timestamp.as_millisecond()).map(Self::from_millis).map_err(|_| InvalidInstant(text.to_owned()))
    }
}

impl TryFrom<String> for Instant {
    type Error = InvalidInstant;

    fn try_from(text: String) -> Result<Self, InvalidInstant> {
        text.parse()
    }
}

/// A text that is no RFC 3339 moment after 1970.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is no time as in 2026-11-24T03:00:00Z")]
pub struct InvalidInstant(String);

/// A duration as people write it (`90s`, `10m`, `1h30m`), to the millisecond.
pub fn parse_duration(text: &str) -> Result<Duration, InvalidDuration> {
    let invalid = || InvalidDuration(text.to_owned());
    let signed: jiff::SignedDuration = text.trim().parse().map_err(|_| invalid())?;
    Duration::try_from(signed).map_err(|_| invalid())
}

/// As [`parse_duration`], held to a range; `expected` says which, as in `1s to 1m`.
pub fn parse_duration_within(text: &str, range: RangeInclusive<Duration>, expected: &str) -> Result<Duration, String> {
    let duration = parse_duration(text).map_err(|error| error.to_string())?;
    if range.contains(&duration) { Ok(duration) } else { Err(format!("expected {expected}")) }
}

/// A text that is no duration.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is no duration as in 30s, 10m or 1h30m")]
pub struct InvalidDuration(String);

/// Writes whole seconds the way [`format_duration`] does, for where fractions would only be noise.
pub fn format_seconds(duration: Duration) -> String {
    format_duration(Duration::from_secs(duration.as_secs()))
}

/// Writes a duration the way [`parse_duration`] reads it: `90s` becomes `1m30s`. Whole seconds above a minute.
pub fn format_duration(duration: Duration) -> String {
    let millis = millis(duration);
    if millis == 0 {
        return "0s".to_owned();
    }
    if millis < 60_000 && !millis.is_multiple_of(1000) {
        return if millis < 1000 { format!("{millis}ms") } else { format!("{:.1}s", duration.as_secs_f64()) };
    }
    let seconds = millis / 1000;
    let parts = [(seconds / 86_400, "d"), (seconds / 3600 % 24, "h"), (seconds / 60 % 60, "m"), (seconds % 60, "s")];
    parts.iter().filter(|(count, _)| *count > 0).map(|(count, unit)| format!("{count}{unit}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_survive_being_written_and_read() {
        for millis in [0, 1, 1_795_489_200_123, Instant::LAST, u64::MAX] {
            let instant = Instant::from_millis(millis);
            assert_eq!(instant.to_string().parse::<Instant>().unwrap(), instant);
        }
        assert_eq!(Instant::from_millis(1_795_489_200_123).to_string(), "2026-11-24T03:00:00.123Z");
        assert!("yesterday".parse::<Instant>().is_err());
        assert!("1969-12-31T23:59:59Z".parse::<Instant>().is_err());
    }

    #[test]
    fn durations_read_as_people_write_them() {
        let check = |text, seconds: f64| assert_eq!(parse_duration(text).unwrap().as_secs_f64(), seconds, "{text}");
        check("30s", 30.0);
        check("10m", 600.0);
        check("1h30m", 5400.0);
        check("250ms", 0.25);
        check("0s", 0.0);
        for text in ["", "10", "-5s", "ten minutes", "5 parsecs"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations_print_short() {
        let check = |millis, text| assert_eq!(format_duration(Duration::from_millis(millis)), text);
        check(0, "0s");
        check(250, "250ms");
        check(1500, "1.5s");
        check(30_000, "30s");
        check(630_400, "10m30s");
        check(90_000_000, "1d1h");
    }
}
