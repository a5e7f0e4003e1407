//! What is left of a run: who did what and why, pictures along the way, how long things took, what it cost.

use std::collections::BTreeMap;
use std::time::Duration;

use ebb_core::price::{Cost, Dollars};
use ebb_core::time::{Instant, format_duration};
use ebb_core::view::{Snapshot, Step};
use serde::Serialize;

/// A finished run.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Run {
    /// The scenario's name.
    pub scenario: String,
    pub seed: u64,
    pub started: Instant,
    pub ended: Instant,
    /// In order of time.
    pub steps: Vec<Step>,
    /// In order of time, evenly spaced, the first at the start; none if none were asked for.
    pub snapshots: Vec<Snapshot>,
    /// By worker group, for those that had work.
    pub milestones: BTreeMap<String, Milestones>,
    pub totals: Totals,
}

/// One step a line: how long after the start, who, what and why.
pub fn log(started: Instant, steps: &[Step]) -> String {
    let line = |step: &Step| {
        let after = format_duration(step.at.since(started));
        let because = if step.because.is_empty() { String::new() } else { format!(": {}", step.because) };
        format!("{after:>9}  {:<16}  {}{because}\n", step.level.title(), step.what)
    };
    steps.iter().map(line).collect()
}

/// When the first burst of a worker group passed each level on its way up, and the group's last work on its way down.
/// `None`: it never did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Milestones {
    /// The Auto Scaling group that makes nodes for these workers; empty: none does.
    pub auto_scaling_group: String,
    pub submitted: Option<Instant>,
    /// Ray's autoscaler asked for more workers.
    pub ray_asked: Option<Instant>,
    /// The HPA raised the replicas.
    pub hpa_scaled: Option<Instant>,
    /// The scheduler first found no node for a worker.
    pub pods_pending: Option<Instant>,
    /// The Auto Scaling group's desired capacity was raised.
    pub capacity_asked: Option<Instant>,
    /// The first new instance had booted and its kubelet joined.
    pub instance_launched: Option<Instant>,
    /// That node was ready.
    pub node_ready: Option<Instant>,
    /// No worker waited for a node any more, and all were ready.
    pub pods_running: Option<Instant>,
    /// The last task was done.
    pub tasks_done: Option<Instant>,
    /// Ray's autoscaler first asked for fewer workers, after it had last asked for more.
    pub ray_asked_fewer: Option<Instant>,
    /// The HPA first lowered the replicas after that.
    pub hpa_scaled_down: Option<Instant>,
    /// Ray's autoscaler asked for fewer workers for the last time.
    pub ray_settled: Option<Instant>,
    /// The first node to leave became unneeded.
    pub node_unneeded: Option<Instant>,
    /// It was asked to drain.
    pub drain_asked: Option<Instant>,
    pub drained: Option<Instant>,
    /// Its instance was gone.
    pub terminated: Option<Instant>,
    /// The Auto Scaling group was back at its minimum.
    pub at_minimum: Option<Instant>,
}

/// Sums over the whole run.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Totals {
    /// From launch to gone, booting included, as AWS counts it.
    pub cost: Cost,
    /// Of that, nodes' time without any task.
    pub idle_node_seconds: u64,
    /// By Auto Scaling group.
    pub groups: BTreeMap<String, GroupTotals>,
    /// From submitted to started for the last time.
    pub task_wait: Waits,
    /// From submitted to done.
    pub task_done: Waits,
    /// From the scheduler's first refusal to bound, of pods that it refused.
    pub pod_wait: Waits,
    pub tasks_submitted: u64,
    /// Tasks that started anew because their worker went away.
    pub tasks_lost: u64,
    /// Pods that ran and were evicted by drains.
    pub evictions: u64,
    /// Pods still waiting for a node at the end.
    pub pods_waiting: u64,
    /// Happenings that the simulator worked through.
    pub happenings: u64,
}

/// One Auto Scaling group over the whole run.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GroupTotals {
    pub cost: Cost,
    /// The most instances at once.
    pub peak: u32,
    pub launched: u32,
    pub terminated: u32,
    /// What as many instances as the peak would have cost all the time. `None`: the price is not known.
    pub fixed_size: Option<Dollars>,
}

/// How long things waited, by nearest rank.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Waits {
    pub count: u64,
    pub mean: Duration,
    pub p50: Duration,
    pub p95: Duration,
    pub max: Duration,
}

impl Waits {
    pub(crate) fn of(mut millis: Vec<u64>) -> Self {
        if millis.is_empty() {
            return Self::default();
        }
        millis.sort_unstable();
        let at = |percent: usize| Duration::from_millis(millis[(millis.len() * percent).div_ceil(100).max(1) - 1]);
        let count = millis.len() as u64;
        let mean = Duration::from_millis(millis.iter().sum::<u64>() / count);
        Self { count, mean, p50: at(50), p95: at(95), max: at(100) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_by_nearest_rank() {
        let waits = Waits::of((1..=20).rev().collect());
        let millis = |duration: Duration| duration.as_millis();
        assert_eq!((waits.count, millis(waits.p50), millis(waits.p95), millis(waits.max)), (20, 10, 19, 20));
        assert_eq!(Waits::of(vec![5]).p50, Duration::from_millis(5));
        assert_eq!(Waits::of(vec![]).count, 0);
    }
}
