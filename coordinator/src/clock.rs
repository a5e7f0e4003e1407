//! The time, for the core: monotonic, anchored to the wall clock once, so that a clock that is set makes no timer fire.

use std::time::SystemTime;

use ebb_core::time::Instant;

#[derive(Clone, Copy, Debug)]
pub struct Clock {
    wall: Instant,
    start: tokio::time::Instant,
}

impl Clock {
    /// Anchored now.
    pub fn start() -> Self {
        let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self { wall: Instant::from_millis(0) + since_epoch, start: tokio::time::Instant::now() }
    }

    pub fn now(&self) -> Instant {
        self.wall + self.start.elapsed()
    }

    /// Returns at `deadline`, at once if it has passed, and never without one.
    pub async fn sleep_until(&self, deadline: Option<Instant>) {
        match deadline {
            Some(deadline) => tokio::time::sleep_until(self.start + deadline.since(self.wall)).await,
            None => std::future::pending().await,
        }
    }
}
