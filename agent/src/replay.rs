//! Recorded readings in place of the host's, for tests of everything behind the sampler.
//!
//! One JSON object a line: `{"for": "30s", "utilization": {"cpu": 100, "gpu": "absent"}}`. Shares are in thousandths;
//! one left out is unknown. `for` is how long the line lasts, one interval if left out. The last line holds for ever.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ebb_core::classify::Utilization;
use ebb_core::time::parse_duration;
use serde::Deserialize;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("read recorded readings from {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("understand line {line} of {}", path.display())]
    Line { path: PathBuf, line: usize, source: serde_json::Error },
    #[error("find a reading in {}: a line for each is expected", path.display())]
    Empty { path: PathBuf },
}

#[derive(Debug)]
pub struct Replay {
    /// With the time, since the beginning, at which each ends. Never empty.
    lines: Vec<(Duration, Utilization)>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    #[serde(default, rename = "for", deserialize_with = "duration")]
    lasts: Option<Duration>,
    utilization: Utilization,
}

impl Replay {
    pub fn open(path: &Path, interval: Duration) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
        let mut lines = Vec::new();
        let mut end = Duration::ZERO;
        for (number, line) in (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty()) {
            let line: Line = serde_json::from_str(line).map_err(|source| Error::Line {
                path: path.to_owned(),
                line: number,
                source,
            })?;
            end += line.lasts.unwrap_or(interval);
            lines.push((end, line.utilization));
        }
        if lines.is_empty() {
            return Err(Error::Empty { path: path.to_owned() });
        }
        Ok(Self { lines })
    }

    pub fn at(&self, elapsed: Duration) -> Utilization {
        let current = self.lines.iter().find(|(end, _)| elapsed < *end).or(self.lines.last());
        current.expect("never empty").1
    }
}

fn duration<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse_duration(&text).map(Some).map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(text: &str) -> Result<Replay, Error> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Replay::open(file.path(), Duration::from_secs(1))
    }

    #[test]
    fn each_line_lasts_as_long_as_it_says_and_the_last_for_ever() {
        let replay = open(
            "{\"for\": \"10s\", \"utilization\": {\"cpu\": 900, \"gpu\": \"absent\"}}\n\n\
             {\"utilization\": {\"cpu\": 500, \"gpu\": {\"busy\": 30}}}\n\
             {\"utilization\": {\"gpu\": \"unknown\"}}\n",
        )
        .unwrap();
        let check = |millis, cpu: Option<u16>| {
            assert_eq!(replay.at(Duration::from_millis(millis)).cpu.map(|cpu| cpu.get()), cpu, "{millis}");
        };
        check(0, Some(900));
        check(9_999, Some(900));
        check(10_000, Some(500));
        check(11_000, None);
        check(1_000_000, None);
    }

    #[test]
    fn a_broken_recording_is_refused_with_its_line() {
        let check = |text, expected: &str| {
            let error = open(text).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        };
        check("", "find a reading");
        check("{\"utilization\": {\"gpu\": \"absent\"}}\n{}\n", "understand line 2");
        check("{\"utilization\": {\"gpu\": \"absent\", \"cpu\": 1001}}", "understand line 1");
        check("{\"utilization\": {\"gpu\": \"absent\"}, \"for\": \"soon\"}", "understand line 1");
    }
}
