//! What a node was doing, written down: one JSON object a line, so that a recording can be cut, joined and made by hand.
//! `ebb-agent record` writes it, the agent's `--source replay:FILE` plays it, `ebb classify` judges it.
//!
//! `{"at": "2026-11-24T03:00:00Z", "for": "1s", "utilization": {"cpu": 100, "gpu": "absent"}}`: shares are in
//! thousandths, and one left out is unknown. `for`, one interval if left out and a year at the most, is how long this
//! went on. `at` is for people.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::classify::Utilization;
use crate::time::{Instant, parse_duration};

/// The longest `for`. Whoever plays a recording adds these up, and steps through them sample by sample: a slip of the
/// pen must not take for ever.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

/// One line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// When it began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Instant>,
    #[serde(default, rename = "for", skip_serializing_if = "Option::is_none", with = "duration")]
    pub lasts: Option<Duration>,
    pub utilization: Utilization,
}

impl Entry {
    /// `None`: a blank line.
    pub fn parse(line: &str) -> Option<Result<Self, serde_json::Error>> {
        let line = line.trim();
        (!line.is_empty()).then(|| serde_json::from_str(line))
    }

    /// Without the end of the line.
    pub fn to_line(&self) -> String {
        serde_json::to_string(self).expect("numbers and texts always serialise")
    }
}

mod duration {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer, de};

    use super::{LONGEST, parse_duration};

    pub(super) fn serialize<S: Serializer>(duration: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
        match duration {
            Some(duration) => serializer.collect_str(&format_args!("{}ms", duration.as_millis())),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
        let text = String::deserialize(deserializer)?;
        let lasts = parse_duration(&text).map_err(de::Error::custom)?;
        if lasts > LONGEST {
            return Err(de::Error::custom(format_args!(
                "`{text}` is longer than a year (8760h), the most for one line"
            )));
        }
        Ok(Some(lasts))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::classify::GpuUse;
    use crate::units::Permille;

    #[test]
    fn a_line_made_by_hand_needs_little() {
        let entry = Entry::parse(r#"{"utilization": {"cpu": 100, "gpu": "absent"}}"#).unwrap().unwrap();
        assert_eq!((entry.at, entry.lasts, entry.utilization.cpu), (None, None, Permille::new(100)));
        assert!(Entry::parse(" \n").is_none());
        let entry = Entry::parse(r#"{"for": "1h30m", "utilization": {"gpu": {"busy": 30}}}"#).unwrap().unwrap();
        assert_eq!(entry.lasts, Some(Duration::from_secs(5400)));
        let entry = Entry::parse(r#"{"for": "8760h", "utilization": {"gpu": "absent"}}"#).unwrap().unwrap();
        assert_eq!(entry.lasts, Some(LONGEST));
    }

    #[test]
    fn what_is_no_recording_is_refused() {
        let check = |line: &str| assert!(Entry::parse(line).unwrap().is_err(), "{line}");
        check("{}");
        check("cpu");
        check(r#"{"utilization": {"gpu": "absent", "cpu": 1001}}"#);
        check(r#"{"utilization": {"gpu": "absent"}, "for": "soon"}"#);
        check(r#"{"utilization": {"gpu": "absent"}, "for": "8760h1ms"}"#);
        check(r#"{"utilization": {"gpu": "absent"}, "for": "2562047788015215h"}"#);
        check(r#"{"utilization": {"gpu": "absent"}, "since": "1s"}"#);
    }

    proptest! {
        #[test]
        fn what_is_read_is_what_was_written(
            at in prop::option::of(0..2_000_000_000_000_u64),
            millis in prop::option::of(0..100_000_000_u64),
            cpu in prop::option::of(0..=1000_u16),
            gpu in prop::option::of(0..=1000_u16),
            newest in prop::option::of(any::<u32>()),
        ) {
            let entry = Entry {
                at: at.map(Instant::from_millis),
                lasts: millis.map(Duration::from_millis),
                utilization: Utilization {
                    cpu: cpu.and_then(Permille::new),
                    gpu: gpu.and_then(Permille::new).map_or(GpuUse::Unknown, GpuUse::Busy),
                    newest_workload_seconds: newest,
                    ..Utilization::default()
                },
            };
            prop_assert_eq!(Entry::parse(&entry.to_line()).unwrap().unwrap(), entry);
        }
    }
}
