//! What one agent may ask of us. An agent sends a report of some hundred bytes every 10 s, on one stream; these are
//! generous to it, and keep one that misbehaves from costing the others anything.

use std::time::Duration;

use tokio::time::Instant;

/// A report is below 300 bytes with the longest names that Kubernetes allows a node; what pods use takes some 60 bytes each,
/// and as many for each container. Room for 500 pods of five containers with the longest names.
pub(super) const MESSAGE_BYTES: usize = 256 << 10;
/// Room for one token of the API server's largest sort and the other headers.
pub(super) const HEADER_BYTES: u32 = 16 << 10;
/// An agent needs one, and another while it replaces the first.
pub(super) const STREAMS_PER_CONNECTION: u32 = 4;
/// Notices a node that vanished without a word, in about the time its reports need to be too old.
pub(super) const KEEPALIVE_EVERY: Duration = Duration::from_secs(10);
pub(super) const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Six reports missed: the agent is stuck, and may open another stream when it no longer is.
pub(super) const SILENCE: Duration = Duration::from_secs(60);
/// After this an agent has to show its token again, which may have been revoked since.
pub(super) const STREAM_LIFE: Duration = Duration::from_secs(15 * 60);
/// Two hundred times what an agent sends when nothing changes.
const REPORTS_PER_SECOND: u32 = 20;

/// Counts reports in seconds that begin with the first one.
#[derive(Debug, Default)]
pub(super) struct Rate {
    second: Option<(Instant, u32)>,
}

impl Rate {
    /// Whether one more is within the limit.
    pub(super) fn allows(&mut self, now: Instant) -> bool {
        let (start, count) = match self.second {
            Some((start, count)) if now.duration_since(start) < Duration::from_secs(1) => (start, count + 1),
            _ => (now, 1),
        };
        self.second = Some((start, count));
        count <= REPORTS_PER_SECOND
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_has_room_for_so_many_and_the_next_one_again() {
        let start = Instant::now();
        let mut rate = Rate::default();
        assert!((0..REPORTS_PER_SECOND).all(|_| rate.allows(start)));
        assert!(!rate.allows(start + Duration::from_millis(999)));
        assert!(rate.allows(start + Duration::from_secs(1)));
    }
}
