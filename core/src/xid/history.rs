//! The XIDs of one GPU: each event once, although two ways tell of it, and in bursts, because one fault makes many.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::time::Instant;

/// Errors of one fault follow each other within this time (NVIDIA Fleet Intelligence's grouping).
const BURST_GAP: Duration = Duration::from_secs(180);
/// The kernel's log and NVML tell of one event within this time: both wait for the same interrupt.
const SAME_EVENT: Duration = Duration::from_secs(5);
/// Far more than a GPU that still serves has in a week; above, the oldest two become one.
const BURSTS: usize = 32;
/// More codes than NVIDIA has ever had. Counts of others go without.
const CODES: usize = 512;

/// Which way told of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Of several at once NVML repeats the last one's code.
    Nvml,
    KernelLog,
}

/// XIDs with no silence of three minutes between them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Burst {
    pub first: Instant,
    pub last: Instant,
    /// How often each code came.
    pub codes: BTreeMap<u32, u64>,
}

#[derive(Clone, Debug, Default)]
pub struct History {
    totals: BTreeMap<u32, u64>,
    bursts: VecDeque<Burst>,
    last: Option<u32>,
    /// Told by NVML, and not by the kernel's log so far.
    nvml_only: VecDeque<(Instant, u32)>,
    logged: VecDeque<(Instant, u32)>,
}

impl History {
    /// Takes in an event; false if it was known by the other way.
    pub fn record(&mut self, at: Instant, xid: u32, origin: Origin) -> bool {
        for recent in [&mut self.nvml_only, &mut self.logged] {
            recent.retain(|(told, _)| at.since(*told) <= SAME_EVENT);
        }
        match origin {
            // The log has every event with its own code, so its word stands.
            Origin::Nvml if self.logged.iter().any(|(_, logged)| *logged == xid) => return false,
            Origin::Nvml => self.nvml_only.push_back((at, xid)),
            Origin::KernelLog => {
                self.logged.push_back((at, xid));
                if let Some(known) = self.nvml_only.iter().position(|(_, told)| *told == xid) {
                    self.nvml_only.remove(known);
                    return false;
                }
            }
        }
        self.add(at, xid);
        true
    }

    /// How often each code came since the agent started.
    pub fn totals(&self) -> &BTreeMap<u32, u64> {
        &self.totals
    }

    /// The code of the latest event.
    pub fn last(&self) -> Option<u32> {
        self.last
    }

    /// The oldest first.
    pub fn bursts(&self) -> impl DoubleEndedIterator<Item = &Burst> {
        self.bursts.iter()
    }

    fn add(&mut self, at: Instant, xid: u32) {
        self.last = Some(xid);
        if self.totals.len() < CODES || self.totals.contains_key(&xid) {
            *self.totals.entry(xid).or_default() += 1;
        }
        match self.bursts.back_mut().filter(|burst| at.since(burst.last) <= BURST_GAP) {
            Some(burst) => {
                burst.last = burst.last.max(at);
                if burst.codes.len() < CODES || burst.codes.contains_key(&xid) {
                    *burst.codes.entry(xid).or_default() += 1;
                }
            }
            None => self.bursts.push_back(Burst { first: at, last: at, codes: BTreeMap::from([(xid, 1)]) }),
        }
        if self.bursts.len() > BURSTS {
            self.merge_oldest();
        }
    }

    /// Nothing is forgotten: a fault of long ago may still wait for its repair.
    fn merge_oldest(&mut self) {
        let Some(oldest) = self.bursts.pop_front() else { return };
        let Some(next) = self.bursts.front_mut() else { return };
        next.first = oldest.first;
        for (xid, count) in oldest.codes {
            *next.codes.entry(xid).or_default() += count;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: u64) -> Instant {
        Instant::from_millis(1_000_000 + seconds * 1000)
    }

    fn recorded(events: &[(u64, u32, Origin)]) -> History {
        let mut history = History::default();
        for (second, xid, origin) in events {
            history.record(at(*second), *xid, *origin);
        }
        history
    }

    #[test]
    fn an_event_told_both_ways_counts_once() {
        use Origin::{KernelLog, Nvml};
        let check = |events: &[(u64, u32, Origin)], expected: &[(u32, u64)]| {
            let totals = recorded(events).totals().clone();
            assert_eq!(totals, expected.iter().copied().collect(), "{events:?}");
        };
        check(&[(0, 79, KernelLog), (1, 79, Nvml)], &[(79, 1)]);
        check(&[(0, 79, Nvml), (1, 79, KernelLog)], &[(79, 1)]);
        check(&[(0, 79, Nvml), (6, 79, KernelLog)], &[(79, 2)]);
        check(&[(0, 13, KernelLog), (0, 13, KernelLog)], &[(13, 2)]);
        check(&[(0, 13, Nvml), (0, 13, KernelLog), (1, 13, Nvml), (1, 13, KernelLog)], &[(13, 2)]);
        // NVML repeats the last code for both events; the log knows better.
        check(&[(0, 48, KernelLog), (0, 45, KernelLog), (1, 45, Nvml), (1, 45, Nvml)], &[(45, 1), (48, 1)]);
        check(&[(0, 48, KernelLog), (1, 79, Nvml)], &[(48, 1), (79, 1)]);
    }

    #[test]
    fn three_minutes_of_silence_end_a_burst() {
        let history =
            recorded(&[(0, 48, Origin::KernelLog), (180, 45, Origin::KernelLog), (361, 48, Origin::KernelLog)]);
        let bursts: Vec<_> = history.bursts().cloned().collect();
        assert_eq!(bursts.len(), 2);
        assert_eq!(bursts[0], Burst { first: at(0), last: at(180), codes: BTreeMap::from([(45, 1), (48, 1)]) });
        assert_eq!(bursts[1].codes, BTreeMap::from([(48, 1)]));
        assert_eq!(history.last(), Some(48));
    }

    proptest! {
        #[test]
        fn memory_is_bounded_and_no_count_is_lost(
            events in prop::collection::vec((0..1000_u64, 0..40_u32), 0..300),
        ) {
            let mut history = History::default();
            let mut now = 0;
            for (pause, xid) in &events {
                now += pause;
                prop_assert!(history.record(at(now), *xid, Origin::KernelLog));
            }
            prop_assert!(history.bursts().count() <= BURSTS);
            let in_bursts: u64 = history.bursts().flat_map(|burst| burst.codes.values()).sum();
            prop_assert_eq!(in_bursts, events.len() as u64);
            prop_assert_eq!(history.totals().values().sum::<u64>(), events.len() as u64);
        }
    }
}
