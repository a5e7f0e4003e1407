//! Now, and when to look again.

use crate::time::Instant;

/// Tells what is due, and remembers when to look again.
#[derive(Debug)]
pub(crate) struct Agenda {
    pub(crate) now: Instant,
    /// The first of the moments asked about that have not come.
    pub(crate) next: Option<Instant>,
}

impl Agenda {
    pub(crate) fn new(now: Instant) -> Self {
        Self { now, next: None }
    }

    /// Whether the time has come; if not, it is looked at again then.
    pub(crate) fn due(&mut self, at: Instant) -> bool {
        if at > self.now {
            self.next = Some(self.next.map_or(at, |next| next.min(at)));
        }
        at <= self.now
    }
}
