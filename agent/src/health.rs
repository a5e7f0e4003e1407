//! How a source is doing: up or down and why, what went wrong so far, how long reading it takes.

use std::collections::BTreeMap;
use std::time::{Duration, Instant as Monotonic};

pub use ebb_kubernetes::chain;

use crate::source::{Error, Source};

#[derive(Clone, Debug, Default)]
pub struct Health {
    /// `None`: up.
    pub down: Option<String>,
    /// By [`Error::kind`].
    pub errors: BTreeMap<&'static str, u64>,
    /// The latest read.
    pub took: Duration,
}

/// All sources that were asked so far.
#[derive(Clone, Debug, Default)]
pub struct Healths(BTreeMap<Source, Health>);

impl Healths {
    pub fn iter(&self) -> impl Iterator<Item = (Source, &Health)> {
        self.0.iter().map(|(source, health)| (*source, health))
    }

    /// Reads a source and notes how that went. A failure leaves its figures unknown, and nothing else.
    pub fn watch<T>(&mut self, source: Source, read: impl FnOnce() -> Result<T, Error>) -> Option<T> {
        let begin = Monotonic::now();
        let result = read();
        self.note(source, begin.elapsed(), result)
    }

    /// Notes how a read went that was done elsewhere, and how long it took.
    pub fn note<T>(&mut self, source: Source, took: Duration, result: Result<T, Error>) -> Option<T> {
        let was_up = self.record(source, took, result.as_ref().err());
        match result {
            Ok(value) => {
                if !was_up {
                    tracing::info!(source = source.name(), "source is back");
                }
                Some(value)
            }
            Err(error) => {
                if was_up {
                    tracing::warn!(
                        source = source.name(),
                        kind = error.kind(),
                        error = chain(&error),
                        "source is down"
                    );
                }
                None
            }
        }
    }

    /// As [`Self::note`], for who says more than that in the log. Whether the source was up before.
    pub fn record(&mut self, source: Source, took: Duration, error: Option<&Error>) -> bool {
        if let Some(error) = error {
            self.count(source, error);
        }
        let health = self.0.entry(source).or_default();
        health.took = took;
        std::mem::replace(&mut health.down, error.map(|error| chain(error))).is_none()
    }

    /// Takes over how sources are doing that somebody else reads.
    pub fn extend(&mut self, others: &Self) {
        self.0.extend(others.0.iter().map(|(source, health)| (*source, health.clone())));
    }

    /// Notes an error that leaves the source up.
    pub fn count(&mut self, source: Source, error: &Error) {
        *self.0.entry(source).or_default().errors.entry(error.kind()).or_default() += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Malformed;

    #[test]
    fn a_source_goes_down_and_comes_back() {
        let broken = || Err(Error::Malformed { path: "/proc/stat".into(), malformed: Malformed("line for all CPUs") });
        let mut healths = Healths::default();
        assert_eq!(healths.watch::<()>(Source::Cpu, broken), None);
        assert_eq!(healths.watch::<()>(Source::Cpu, broken), None);
        let (_, health) = healths.iter().next().unwrap();
        assert_eq!(health.down.as_deref(), Some("understand /proc/stat: no line for all CPUs"));
        assert_eq!(health.errors["malformed"], 2);
        assert_eq!(healths.watch(Source::Cpu, || Ok(7)), Some(7));
        let (_, health) = healths.iter().next().unwrap();
        assert_eq!((health.down.clone(), health.errors["malformed"]), (None, 2));
    }
}
