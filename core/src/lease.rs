//! Who leads, as in client-go's leader election: a Lease is somebody else's until it has not changed for its whole
//! duration by our own clock. The holder's own timestamps are never trusted, so skewed clocks cannot make two leaders.

use std::time::Duration;

use crate::time::Instant;

/// How long a Lease holds without renewal. With `RENEW_EVERY` these are client-go's defaults of 15 s and 2 s.
pub const DURATION: Duration = Duration::from_secs(15);
/// How often the holder renews, and others look.
pub const RENEW_EVERY: Duration = Duration::from_secs(2);
/// A leader that could not renew for this long steps down, before anybody else may take over (client-go: 10 s).
pub const RENEW_DEADLINE: Duration = Duration::from_secs(10);

/// What stands in the Lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub holder: String,
    /// Changes with every write, whoever makes it.
    pub resource_version: String,
}

/// What to do about the Lease now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Write our name and the time.
    Acquire,
    Renew,
    /// Somebody else leads.
    Wait,
}

/// One candidate's view.
#[derive(Debug)]
pub struct Election {
    identity: String,
    seen: Option<(Record, Instant)>,
    renewed_at: Option<Instant>,
}

impl Election {
    pub fn new(identity: String) -> Self {
        Self { identity, seen: None, renewed_at: None }
    }

    /// The Lease was read: `None` if there is none.
    pub fn observe(&mut self, now: Instant, record: Option<Record>) -> Step {
        let Some(record) = record else { return Step::Acquire };
        if record.holder == self.identity {
            // Ours, perhaps from before a crash: renewing it is as good as acquiring it.
            return Step::Renew;
        }
        self.renewed_at = None;
        let since = match &self.seen {
            Some((seen, since)) if *seen == record => *since,
            _ => now,
        };
        let free = record.holder.is_empty() || now.since(since) >= DURATION;
        self.seen = Some((record, since));
        if free { Step::Acquire } else { Step::Wait }
    }

    /// A write of ours, begun at `asked_at`, was accepted. The begin counts: the reply may have taken its time.
    pub fn renewed(&mut self, asked_at: Instant) {
        self.renewed_at = Some(asked_at);
    }

    /// Whether we may act.
    pub fn leads(&self, now: Instant) -> bool {
        self.renewed_at.is_some_and(|at| now.since(at) < RENEW_DEADLINE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: u64) -> Instant {
        Instant::from_millis(second * 1000)
    }

    fn held_by(holder: &str, version: &str) -> Option<Record> {
        Some(Record { holder: holder.into(), resource_version: version.into() })
    }

    #[test]
    fn a_lease_is_taken_over_only_after_it_stood_still_for_its_duration() {
        let mut election = Election::new("b".into());
        assert_eq!(election.observe(at(0), held_by("a", "1")), Step::Wait);
        assert_eq!(election.observe(at(14), held_by("a", "2")), Step::Wait);
        assert_eq!(election.observe(at(28), held_by("a", "2")), Step::Wait);
        assert_eq!(election.observe(at(29), held_by("a", "2")), Step::Acquire);
    }

    #[test]
    fn a_released_or_missing_lease_is_taken_at_once() {
        let mut election = Election::new("b".into());
        assert_eq!(election.observe(at(0), None), Step::Acquire);
        assert_eq!(election.observe(at(0), held_by("", "1")), Step::Acquire);
    }

    #[test]
    fn a_leader_that_cannot_renew_stops_before_another_may_start() {
        let mut election = Election::new("a".into());
        election.renewed(at(0));
        assert!(election.leads(at(9)));
        assert!(!election.leads(at(10)));
        assert!(RENEW_DEADLINE < DURATION);
    }

    #[test]
    fn seeing_another_holder_ends_our_lead() {
        let mut election = Election::new("a".into());
        election.renewed(at(0));
        assert_eq!(election.observe(at(1), held_by("b", "7")), Step::Wait);
        assert!(!election.leads(at(1)));
    }
}
