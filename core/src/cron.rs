//! Schedules as cron writes them, in UTC, and the windows that begin at their moments.
//!
//! Read as Kubernetes reads a CronJob's schedule and Karpenter a budget's: five fields, or one of the names that stand
//! for them. Of the days of the month and of the week either is enough, unless one of the two is `*`.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::time::Instant;

const MINUTE: u64 = 60_000;
const MINUTES_A_DAY: u64 = 24 * 60;
/// The rarest date there is, the 29th of February, is this far away at most: from 2096 to 2104.
const DAYS_AHEAD: u64 = 8 * 366;

const MONTHS: [&str; 12] = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const WEEKDAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
const NAMES: [(&str, &str); 7] = [
    ("@annually", "0 0 1 1 *"),
    ("@yearly", "0 0 1 1 *"),
    ("@monthly", "0 0 1 * *"),
    ("@weekly", "0 0 * * 0"),
    ("@daily", "0 0 * * *"),
    ("@midnight", "0 0 * * *"),
    ("@hourly", "0 * * * *"),
];

/// Moments that come again and again, to the minute. There always is a next one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Schedule {
    /// As it was written.
    text: String,
    minutes: Field,
    hours: Field,
    days: Field,
    months: Field,
    weekdays: Field,
}

/// The values that are meant, one bit each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Field {
    bits: u64,
    /// Written as `*`.
    any: bool,
}

impl Field {
    fn has(self, value: u64) -> bool {
        self.bits >> value & 1 == 1
    }

    /// The first of them that is not below `from`, which is at most 63.
    fn first(self, from: u64) -> Option<u64> {
        let rest = self.bits & u64::MAX << from;
        (rest != 0).then(|| rest.trailing_zeros().into())
    }

    /// The last of them that is not above `to`, which is at most 63.
    fn last(self, to: u64) -> Option<u64> {
        let rest = self.bits & u64::MAX >> (63 - to);
        (rest != 0).then(|| rest.ilog2().into())
    }
}

impl Schedule {
    /// The first moment after this one. `None` only at the end of time.
    pub fn next(&self, after: Instant) -> Option<Instant> {
        let minute = after.as_millis() / MINUTE + 1;
        let (today, mut from) = (minute / MINUTES_A_DAY, minute % MINUTES_A_DAY);
        for day in today..=today + DAYS_AHEAD {
            if self.on(day)
                && let Some(minute) = self.first_minute(from)
            {
                let at = Instant::from_millis((day * MINUTES_A_DAY + minute) * MINUTE);
                return (at > after).then_some(at);
            }
            from = 0;
        }
        None
    }

    /// The last moment not after this one. `None` only at the beginning of time.
    pub fn last(&self, at: Instant) -> Option<Instant> {
        let minute = at.as_millis() / MINUTE;
        let (today, mut to) = (minute / MINUTES_A_DAY, minute % MINUTES_A_DAY);
        for day in (today.saturating_sub(DAYS_AHEAD)..=today).rev() {
            if self.on(day)
                && let Some(minute) = self.last_minute(to)
            {
                return Some(Instant::from_millis((day * MINUTES_A_DAY + minute) * MINUTE));
            }
            to = MINUTES_A_DAY - 1;
        }
        None
    }

    /// Whether any of its moments are on this day, counted from the epoch.
    fn on(&self, day: u64) -> bool {
        let (month, date) = month_and_day(day);
        if !self.months.has(month) {
            return false;
        }
        // The epoch was a Thursday.
        let (by_date, by_weekday) = (self.days.has(date), self.weekdays.has((day + 4) % 7));
        if self.days.any || self.weekdays.any { by_date && by_weekday } else { by_date || by_weekday }
    }

    fn first_minute(&self, from: u64) -> Option<u64> {
        let (hour, minute) = (from / 60, from % 60);
        if self.hours.has(hour)
            && let Some(minute) = self.minutes.first(minute)
        {
            return Some(hour * 60 + minute);
        }
        Some(self.hours.first(hour + 1)? * 60 + self.minutes.first(0)?)
    }

    fn last_minute(&self, to: u64) -> Option<u64> {
        let (hour, minute) = (to / 60, to % 60);
        if self.hours.has(hour)
            && let Some(minute) = self.minutes.last(minute)
        {
            return Some(hour * 60 + minute);
        }
        Some(self.hours.last(hour.checked_sub(1)?)? * 60 + self.minutes.last(59)?)
    }
}

/// Month and day of the month of a day counted from the epoch. Years are counted from March, so that the day that some
/// of them have more comes last.
fn month_and_day(day: u64) -> (u64, u64) {
    // From the 1st of March of the year 0; 400 years are 146 097 days.
    let day = (day + 719_468) % 146_097;
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    // Five months from March on have 153 days, and so the next five.
    let month = (5 * day + 2) / 153;
    let date = day - (153 * month + 2) / 5 + 1;
    (if month < 10 { month + 3 } else { month - 9 }, date)
}

impl FromStr for Schedule {
    type Err = InvalidSchedule;

    fn from_str(text: &str) -> Result<Self, InvalidSchedule> {
        let text = text.trim();
        let fields = NAMES.iter().find(|(name, _)| *name == text).map_or(text, |(_, fields)| fields);
        let fields: Vec<_> = fields.split_ascii_whitespace().collect();
        let [minutes, hours, days, months, weekdays] = fields[..] else {
            let cause = "expected five fields: minute, hour, day of the month, month, day of the week";
            return Err(InvalidSchedule { text: text.to_owned(), cause: cause.to_owned() });
        };
        let field = |name, values: &str, range, names| {
            field(values, range, names)
                .map_err(|cause| InvalidSchedule { text: text.to_owned(), cause: format!("{name}: {cause}") })
        };
        let mut weekdays = field("day of the week", weekdays, 0..=7, &WEEKDAYS)?;
        // Sunday is both.
        weekdays.bits |= weekdays.bits >> 7 & 1;
        let schedule = Self {
            text: text.to_owned(),
            minutes: field("minute", minutes, 0..=59, &[])?,
            hours: field("hour", hours, 0..=23, &[])?,
            days: field("day of the month", days, 1..=31, &[])?,
            months: field("month", months, 1..=12, &MONTHS)?,
            weekdays,
        };
        if schedule.next(Instant::from_millis(0)).is_none() {
            return Err(InvalidSchedule { text: text.to_owned(), cause: "there is no such day".to_owned() });
        }
        Ok(schedule)
    }
}

/// One field: a list of values, ranges and steps. Names stand for the values from the range's first on.
fn field(text: &str, range: RangeInclusive<u64>, names: &[&str]) -> Result<Field, String> {
    let value = |text: &str| {
        let named = names.iter().position(|name| name.eq_ignore_ascii_case(text));
        let named = named.and_then(|index| Some(range.start() + u64::try_from(index).ok()?));
        let value = named.or_else(|| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?);
        let value = value.filter(|value| range.contains(value));
        value.ok_or_else(|| format!("`{text}` is none of {} to {}", range.start(), range.end()))
    };
    let mut field = Field { bits: 0, any: false };
    for part in text.split(',') {
        let (values, step) = match part.split_once('/') {
            None => (part, None),
            Some((values, step)) => match step.parse::<u64>() {
                Ok(step) if step > 0 => (values, Some(step)),
                _ => return Err(format!("`{step}` is no step of 1 or more")),
            },
        };
        let (first, last) = match values.split_once('-') {
            _ if matches!(values, "*" | "?") => (*range.start(), *range.end()),
            Some((first, last)) => (value(first)?, value(last)?),
            // With a step a single value is where it begins.
            None if step.is_some() => (value(values)?, *range.end()),
            None => (value(values)?, value(values)?),
        };
        if first > last {
            return Err(format!("`{values}` ends before it begins"));
        }
        let step = step.unwrap_or(1);
        field.any |= matches!(values, "*" | "?") && step == 1;
        let mut value = first;
        while value <= last {
            field.bits |= 1 << value;
            value = value.saturating_add(step);
        }
    }
    Ok(field)
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl From<Schedule> for String {
    fn from(schedule: Schedule) -> Self {
        schedule.text
    }
}

impl TryFrom<String> for Schedule {
    type Error = InvalidSchedule;

    fn try_from(text: String) -> Result<Self, InvalidSchedule> {
        text.parse()
    }
}

/// A text that is no schedule.
#[derive(Debug, thiserror::Error)]
#[error("`{text}` is no schedule as in `0 9 * * mon-fri`: {cause}")]
pub struct InvalidSchedule {
    text: String,
    cause: String,
}

/// From each moment of a schedule on, for a while.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    pub schedule: Schedule,
    pub duration: Duration,
}

impl Window {
    /// Whether it is open, and when that is to be asked again: at its end, or when it opens. Where it opens again before
    /// its end it is found open at that end.
    pub fn look(&self, now: Instant) -> (bool, Option<Instant>) {
        let end = self.schedule.last(now).map(|begin| begin + self.duration).filter(|end| *end > now);
        (end.is_some(), end.or_else(|| self.schedule.next(now)))
    }
}

#[cfg(test)]
mod tests {
    use jiff::{Timestamp, tz::TimeZone};
    use proptest::prelude::*;

    use super::*;

    fn at(text: &str) -> Instant {
        text.parse().unwrap()
    }

    fn schedule(text: &str) -> Schedule {
        text.parse().unwrap()
    }

    #[test]
    fn a_schedule_says_its_next_moment() {
        let check = |text: &str, after: &str, next: &str| {
            assert_eq!(schedule(text).next(at(after)).unwrap(), at(next), "{text} after {after}");
        };
        // A Saturday.
        let now = "2026-11-28T10:15:30Z";
        check("* * * * *", now, "2026-11-28T10:16:00Z");
        check("*/20 * * * *", now, "2026-11-28T10:20:00Z");
        check("5/20 * * * *", now, "2026-11-28T10:25:00Z");
        check("15 10 * * *", now, "2026-11-29T10:15:00Z");
        check("0 9 * * mon-fri", now, "2026-11-30T09:00:00Z");
        check("0 9 * * MON,3", "2026-11-30T09:00:00Z", "2026-12-02T09:00:00Z");
        check("0 0 * * 0", now, "2026-11-29T00:00:00Z");
        check("0 0 * * 7", now, "2026-11-29T00:00:00Z");
        check("0 0 * * 5-7", "2026-11-28T00:00:00Z", "2026-11-29T00:00:00Z");
        check("0 0 31 * *", now, "2026-12-31T00:00:00Z");
        check("0 0 29 feb *", now, "2028-02-29T00:00:00Z");
        check("0 0 29 2 ?", "2096-02-29T00:00:00Z", "2104-02-29T00:00:00Z");
        // Either is enough, unless one of them is any day.
        check("0 0 13 * fri", now, "2026-12-04T00:00:00Z");
        check("0 0 13 * fri", "2026-12-11T00:00:00Z", "2026-12-13T00:00:00Z");
        check("0 0 13 * *", now, "2026-12-13T00:00:00Z");
        check("@monthly", now, "2026-12-01T00:00:00Z");
        assert_eq!(schedule("@yearly").next(at("9998-12-31T23:59:59.999Z")), None);
    }

    #[test]
    fn what_is_no_schedule_says_why() {
        let check = |text: &str, cause: &str| {
            let said = text.parse::<Schedule>().unwrap_err().to_string();
            assert!(said.ends_with(cause), "{text}: {said}");
        };
        for text in ["", "* * * *", "* * * * * *", "@reboot", "0 0 * * mon 2026"] {
            check(text, "expected five fields: minute, hour, day of the month, month, day of the week");
        }
        check("60 * * * *", "minute: `60` is none of 0 to 59");
        check("* 24 * * *", "hour: `24` is none of 0 to 23");
        check("* * 0 * *", "day of the month: `0` is none of 1 to 31");
        check("* * * jane *", "month: `jane` is none of 1 to 12");
        check("* * * * 8", "day of the week: `8` is none of 0 to 7");
        check("+1 * * * *", "minute: `+1` is none of 0 to 59");
        check("1, * * * *", "minute: `` is none of 0 to 59");
        check("*/0 * * * *", "minute: `0` is no step of 1 or more");
        check("30-10 * * * *", "minute: `30-10` ends before it begins");
        check("0 0 30 2 *", "there is no such day");
        check("0 0 31 4,6,9,11 *", "there is no such day");
    }

    #[test]
    fn a_window_is_open_from_each_moment_on_and_shut_at_its_end() {
        let window = Window { schedule: schedule("0 9 * * mon-fri"), duration: Duration::from_secs(8 * 3600) };
        let check = |now: &str, open: bool, then: &str| {
            assert_eq!(window.look(at(now)), (open, Some(at(then))), "at {now}");
        };
        check("2026-11-27T08:59:59.999Z", false, "2026-11-27T09:00:00Z");
        check("2026-11-27T09:00:00Z", true, "2026-11-27T17:00:00Z");
        check("2026-11-27T16:59:59.999Z", true, "2026-11-27T17:00:00Z");
        check("2026-11-27T17:00:00Z", false, "2026-11-30T09:00:00Z");
        // Each begins before the one before it ends.
        let window = Window { duration: Duration::from_secs(36 * 3600), schedule: schedule("@daily") };
        assert_eq!(window.look(at("2026-11-28T10:00:00Z")), (true, Some(at("2026-11-29T12:00:00Z"))));
        assert_eq!(window.look(at("2026-11-29T12:00:00Z")), (true, Some(at("2026-11-30T12:00:00Z"))));
    }

    /// One field by the same rules, as a list of its values and whether it is `*`.
    #[derive(Clone, Debug)]
    struct Written {
        text: String,
        values: Vec<u64>,
    }

    fn part(first: u64, last: u64) -> impl Strategy<Value = Written> {
        let from_to = (first..=last, first..=last).prop_map(|(a, b)| (a.min(b), a.max(b)));
        prop_oneof![
            (first..=last).prop_map(|it| Written { text: it.to_string(), values: vec![it] }),
            from_to.prop_map(|(a, b)| Written { text: format!("{a}-{b}"), values: (a..=b).collect() }),
            (2..=last).prop_map(move |step| Written {
                text: format!("*/{step}"),
                values: (first..=last).filter(|it| (it - first).is_multiple_of(step)).collect(),
            }),
        ]
    }

    fn written(first: u64, last: u64) -> impl Strategy<Value = Written> {
        let list = prop::collection::vec(part(first, last), 1..3).prop_map(|parts| Written {
            text: parts.iter().map(|part| part.text.as_str()).collect::<Vec<_>>().join(","),
            values: parts.into_iter().flat_map(|part| part.values).collect(),
        });
        prop_oneof![Just(Written { text: "*".into(), values: (first..=last).collect() }), list,]
    }

    /// Whether a moment is one of the schedule's, by the calendar.
    fn matches(fields: &[Written; 5], minute: u64) -> bool {
        let zoned = Timestamp::from_second(i64::try_from(minute * 60).unwrap()).unwrap().to_zoned(TimeZone::UTC);
        let has = |field: usize, value: i8| fields[field].values.contains(&u64::try_from(value).unwrap());
        let weekday = zoned.weekday().to_sunday_zero_offset();
        let (date, weekday) = (has(2, zoned.day()), has(4, weekday));
        let any = fields[2].text == "*" || fields[4].text == "*";
        let day = if any { date && weekday } else { date || weekday };
        has(0, zoned.minute()) && has(1, zoned.hour()) && has(3, zoned.month()) && day
    }

    proptest! {
        /// Minute by minute, over three days, the same moments.
        #[test]
        fn a_schedule_is_what_the_calendar_says(
            fields in (written(0, 59), written(0, 23), written(1, 31), written(1, 12), written(0, 6)),
            from in 0..60_000_000_u64,
            millis in 0..60_000_u64,
        ) {
            let fields = [fields.0, fields.1, fields.2, fields.3, fields.4];
            let text = fields.iter().map(|field| field.text.as_str()).collect::<Vec<_>>().join(" ");
            let Ok(schedule) = text.parse::<Schedule>() else {
                // The 30th of February and its like.
                prop_assert!(fields[4].text == "*" && fields[2].values.iter().all(|day| *day > 28));
                return Ok(());
            };
            let now = Instant::from_millis(from * MINUTE + millis);
            let span = 3 * MINUTES_A_DAY;
            let is_one = |minute: &u64| matches(&fields, *minute);
            let instant = |minute| Instant::from_millis(minute * MINUTE);
            let within = |it: &Instant| it.as_millis().abs_diff(from * MINUTE) / MINUTE <= span;
            prop_assert_eq!(schedule.next(now).filter(within), (from + 1..=from + span).find(is_one).map(instant));
            prop_assert_eq!(schedule.last(now).filter(within), (from.saturating_sub(span)..=from).rev().find(is_one).map(instant));
            prop_assert_eq!(String::from(schedule.clone()).parse::<Schedule>().unwrap(), schedule);
        }

        /// The calendar of every day there is.
        #[test]
        fn days_are_the_calendars(day in 0..2_932_000_u64) {
            let zoned = Timestamp::from_second(i64::try_from(day * 86_400).unwrap()).unwrap().to_zoned(TimeZone::UTC);
            let (month, date) = month_and_day(day);
            prop_assert_eq!((month, date), (u64::try_from(zoned.month()).unwrap(), u64::try_from(zoned.day()).unwrap()));
        }

        /// Whatever is written, it is a schedule with a next moment or it is refused.
        #[test]
        fn any_text_is_read_or_refused(text in "[-*/,?0-9a-z @]{0,24}") {
            if let Ok(schedule) = text.parse::<Schedule>() {
                prop_assert!(schedule.next(at("2026-11-28T10:00:00Z")).is_some());
            }
        }
    }
}
