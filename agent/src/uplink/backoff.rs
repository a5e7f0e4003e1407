//! How long to wait before the coordinator is tried again: doubled each time, and spread over the fleet by the node's
//! name, so that a coordinator that comes back does not meet all agents in the same instant.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

const FIRST: Duration = Duration::from_millis(250);
const LONGEST: Duration = Duration::from_secs(10);

/// After `failures` in a row before this one; between half of the full pause and all of it. The same for the same node.
pub(super) fn pause(node: &str, failures: u32) -> Duration {
    let full = FIRST.saturating_mul(1 << failures.min(10)).min(LONGEST);
    let mut hasher = DefaultHasher::new();
    (node, failures).hash(&mut hasher);
    let share = 500 + u32::try_from(hasher.finish() % 501).unwrap_or(0);
    full * share / 1000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_ten_seconds_and_differ_by_node() {
        for (failures, full) in [(0, 250), (1, 500), (4, 4000), (6, 10_000), (u32::MAX, 10_000)] {
            let pauses: Vec<_> = (0..100).map(|node| pause(&format!("node-{node}"), failures).as_millis()).collect();
            assert!(pauses.iter().all(|pause| (full / 2..=full).contains(pause)), "{failures}: {pauses:?}");
            assert!(pauses.iter().max() > pauses.iter().min());
            assert_eq!(pause("node-1", failures), pause("node-1", failures));
        }
    }
}
