//! Now, and when something is next due.

use crate::time::Instant;

#[derive(Debug)]
pub(super) struct Timer {
    pub(super) now: Instant,
    /// The first of the moments asked about that have not come.
    pub(super) next: Option<Instant>,
}

impl Timer {
    pub(super) fn new(now: Instant) -> Self {
        Self { now, next: None }
    }

    /// Whether the moment has come; if not, it will be looked at again when it does.
    pub(super) fn due(&mut self, at: Instant) -> bool {
        if self.now < at {
            self.next = self.next.map_or(Some(at), |next| Some(next.min(at)));
        }
        self.now >= at
    }
}
