//! Time for the core: its `Instant`s come from here and from nowhere else in the agent.

use std::time::{Duration, Instant as Monotonic, SystemTime};

use ebb_core::time::Instant;

/// A monotonic clock, set once by the wall clock when the agent starts: a wall clock that is set while we run neither
/// shortens a window nor makes an idle node look idle for a year.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    started: Monotonic,
    wall: Instant,
}

impl Clock {
    pub fn start() -> Self {
        // Before 1970 only on a machine without a clock; the core needs differences more than dates.
        let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let wall = Instant::from_millis(u64::try_from(wall.as_millis()).unwrap_or(u64::MAX));
        Self { started: Monotonic::now(), wall }
    }

    /// A clock that began at `started`, when it was `wall`.
    #[cfg(test)]
    pub(crate) fn set(started: Monotonic, wall: Instant) -> Self {
        Self { started, wall }
    }

    pub fn now(&self) -> Instant {
        self.at(Monotonic::now())
    }

    pub fn at(&self, moment: Monotonic) -> Instant {
        self.wall + moment.saturating_duration_since(self.started)
    }

    /// When the agent started.
    pub fn begin(&self) -> Instant {
        self.wall
    }

    /// How long until then; zero if it is past.
    pub fn until(&self, then: Instant) -> Duration {
        then.since(self.now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_follow_the_monotonic_clock() {
        let clock = Clock::start();
        let later = clock.started + Duration::from_secs(90);
        assert_eq!(clock.at(later).since(clock.begin()), Duration::from_secs(90));
        assert_eq!(clock.at(clock.started), clock.begin());
        assert_eq!(clock.until(clock.begin()), Duration::ZERO);
        assert!(clock.until(clock.begin() + Duration::from_secs(60)) > Duration::from_secs(50));
    }
}
