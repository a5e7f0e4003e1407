//! Waiting for a condition, and saying what was waited for when it does not come.

use std::time::{Duration, Instant};

/// Often enough that a test does not notice, seldom enough that two cores do not either.
const POLL: Duration = Duration::from_millis(100);

/// Asks again and again until the condition holds. Panics after `timeout` with `what` and what `diagnosis` returns.
pub async fn wait_until(
    what: &str,
    timeout: Duration,
    mut condition: impl AsyncFnMut() -> bool,
    diagnosis: impl AsyncFnOnce() -> String,
) {
    let deadline = Instant::now() + timeout;
    while !condition().await {
        if Instant::now() > deadline {
            panic!("waited {timeout:?} for {what}\n{}", diagnosis().await);
        }
        tokio::time::sleep(POLL).await;
    }
}

pub(crate) fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].iter().map(|line| format!("{line}\n")).collect()
}
