//! The drain intent and its progress, as they stand on the Node object.
//!
//! They live in Kubernetes and never only in memory, so that either side can crash at any point, read them and go on.
//! Whoever wants a drain writes the intent (see [`Trigger`]); the agent writes the progress and the conditions.

use std::fmt;
use std::ops::Not;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::time::Instant;

/// Annotation with an [`Intent`], in JSON. Removing it cancels the drain.
pub const INTENT_ANNOTATION: &str = "ebb.dev/drain";
/// Annotation with the agent's [`Progress`], in JSON.
pub const PROGRESS_ANNOTATION: &str = "ebb.dev/drain-progress";

/// Node condition from when a drain begins until somebody ends it. The names are KEP-5683's.
pub const CONDITION_PLANNED: &str = "MaintenancePlanned";
/// Node condition while pods are being evicted.
pub const CONDITION_DRAINING: &str = "DrainInProgress";
/// Node condition once no pod that counts is left.
pub const CONDITION_DRAINED: &str = "Drained";

/// How long before a drain's deadline its node is no longer terminated: at the deadline the agent gives the node back,
/// and the two clocks may differ.
pub const DEADLINE_MARGIN: Duration = Duration::from_secs(60);

/// What is wanted of a node. Absent fields are left out of the annotation.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Intent {
    /// Names this drain in annotations, conditions, logs and hooks.
    pub id: String,
    /// Why, for people.
    pub reason: String,
    pub requested_at: Instant,
    /// When a planned drain is given up and what it changed undone; for another, when the node will be lost.
    pub deadline: Instant,
    /// Whether pods are evicted; if not, they are left to end by themselves.
    #[serde(default = "evicts", skip_serializing_if = "Clone::clone")]
    pub evict: bool,
    /// Whose wish it is.
    #[serde(default, skip_serializing_if = "Trigger::is_coordinator")]
    pub by: Trigger,
    /// Of many drains at once: after the cordon, the first eviction waits until the coordinator lets it begin.
    #[serde(default, skip_serializing_if = "Not::not")]
    pub awaits_turn: bool,
    /// What may be lost for it.
    #[serde(flatten)]
    pub permits: Permits,
}

impl Intent {
    /// Whether the node could as well stay: what speaks against it then stops the drain.
    pub fn is_planned(&self) -> bool {
        self.by.is_planned()
    }
}

fn evicts() -> bool {
    true
}

/// What a drain began with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Trigger {
    /// The node is to leave its group.
    #[default]
    Coordinator,
    /// A GPU whose driver asks for a reset or a restart.
    GpuRecovery,
    /// The Auto Scaling group is terminating the instance.
    LifecycleHook,
    /// AWS announced an event for the instance.
    Maintenance,
    Person,
    /// AWS sees an elevated risk that the spot instance is reclaimed.
    Rebalance,
    /// The operating system is going down.
    Shutdown,
    /// AWS reclaims the spot instance.
    SpotInterruption,
}

impl Trigger {
    fn is_coordinator(&self) -> bool {
        *self == Self::Coordinator
    }

    /// The name in labels and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Coordinator => "coordinator",
            Self::GpuRecovery => "gpu_recovery",
            Self::LifecycleHook => "lifecycle_hook",
            Self::Maintenance => "maintenance",
            Self::Person => "person",
            Self::Rebalance => "rebalance",
            Self::Shutdown => "shutdown",
            Self::SpotInterruption => "spot_interruption",
        }
    }

    /// Whether the node could as well stay.
    pub fn is_planned(self) -> bool {
        match self {
            Self::Coordinator | Self::Maintenance | Self::Person | Self::Rebalance => true,
            Self::GpuRecovery | Self::LifecycleHook | Self::Shutdown | Self::SpotInterruption => false,
        }
    }

    /// Whether the agent itself begins such drains, from what it sees on its node.
    pub fn is_the_agents(self) -> bool {
        match self {
            Self::GpuRecovery | Self::Maintenance | Self::Rebalance | Self::Shutdown | Self::SpotInterruption => true,
            Self::Coordinator | Self::LifecycleHook | Self::Person => false,
        }
    }
}

impl fmt::Display for Trigger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Coordinator => "the coordinator's decision",
            Self::GpuRecovery => "a GPU that must be recovered",
            Self::LifecycleHook => "its Auto Scaling group's lifecycle hook",
            Self::Maintenance => "scheduled maintenance",
            Self::Person => "a person's wish",
            Self::Rebalance => "a rebalance recommendation",
            Self::Shutdown => "the shutdown of its system",
            Self::SpotInterruption => "a spot interruption",
        })
    }
}

/// What may be lost for a drain, named as `kubectl drain` names it. Nothing, unless somebody says so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Permits {
    /// Pods without a controller, which nobody makes anew.
    #[serde(skip_serializing_if = "Not::not")]
    pub force: bool,
    /// What is in volumes of the node's own.
    #[serde(skip_serializing_if = "Not::not")]
    pub delete_emptydir_data: bool,
    /// Shortly before the deadline, the pods that PodDisruptionBudgets still hold.
    #[serde(skip_serializing_if = "Not::not")]
    pub delete_at_deadline: bool,
}

/// How far the agent is, and what it changed and so must undo.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Progress {
    /// The [`Intent::id`] this is about.
    pub id: String,
    pub phase: Phase,
    /// When that phase began; of what is drained, when it was.
    #[serde(default = "long_ago")]
    pub since: Instant,
    /// Whether it was the agent that made the node unschedulable. A cordon of somebody else's stays.
    pub cordoned_by_us: bool,
    /// Whether it was the agent that took the node out of load balancers.
    #[serde(default, skip_serializing_if = "Not::not")]
    pub excluded_by_us: bool,
}

impl Progress {
    /// Without having changed anything.
    pub fn new(id: &str, phase: Phase, since: Instant) -> Self {
        Self { id: id.to_owned(), phase, since, cordoned_by_us: false, excluded_by_us: false }
    }
}

fn long_ago() -> Instant {
    Instant::from_millis(0)
}

/// The steps of a drain, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Phase {
    /// Hooks and blockers are waited for; nothing is changed yet.
    Preparing,
    /// Load balancers are given time to forget the node.
    Detaching,
    Draining,
    Drained,
    /// Given up and undone; the reason is on the `DrainInProgress` condition.
    Failed,
}

/// Writes an annotation's value.
pub fn encode(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("plain structs always serialise")
}

/// Reads an annotation's value. Somebody else may have written there: a value that does not parse counts as absent.
pub fn decode<T: serde::de::DeserializeOwned>(text: &str) -> Option<T> {
    serde_json::from_str(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_annotations_keep_their_form() {
        let intent = Intent {
            id: "d-1".into(),
            reason: "idle".into(),
            requested_at: Instant::from_millis(0),
            deadline: Instant::from_millis(60_000),
            evict: true,
            by: Trigger::Coordinator,
            awaits_turn: false,
            permits: Permits::default(),
        };
        let text = r#"{"id":"d-1","reason":"idle","requestedAt":"1970-01-01T00:00:00.000Z","deadline":"1970-01-01T00:01:00.000Z"}"#;
        assert_eq!(encode(&intent), text);
        assert_eq!(decode(text), Some(intent.clone()));
        let intent = Intent { evict: false, ..intent };
        let text = r#"{"id":"d-1","reason":"idle","requestedAt":"1970-01-01T00:00:00.000Z","deadline":"1970-01-01T00:01:00.000Z","evict":false}"#;
        assert_eq!(encode(&intent), text);
        assert_eq!(decode(text), Some(intent.clone()));
        let permits = Permits { force: true, ..Permits::default() };
        let intent = Intent { evict: true, by: Trigger::SpotInterruption, permits, ..intent };
        let text = r#"{"id":"d-1","reason":"idle","requestedAt":"1970-01-01T00:00:00.000Z","deadline":"1970-01-01T00:01:00.000Z","by":"spotInterruption","force":true}"#;
        assert_eq!(encode(&intent), text);
        assert_eq!(decode(text), Some(intent));
        let progress =
            Progress { cordoned_by_us: true, ..Progress::new("d-1", Phase::Draining, Instant::from_millis(0)) };
        let text = r#"{"id":"d-1","phase":"draining","since":"1970-01-01T00:00:00.000Z","cordonedByUs":true}"#;
        assert_eq!(encode(&progress), text);
        assert_eq!(decode(text), Some(progress));
    }

    #[test]
    fn a_value_somebody_else_wrote_counts_as_absent() {
        assert_eq!(decode::<Intent>("yes please"), None);
        assert_eq!(decode::<Intent>(r#"{"id":"x"}"#), None);
    }
}
