//! Why something is done or not. Logs, events, metrics and pages all show this same reason.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::schedule::Misfit;
use crate::time::format_duration;

/// The reason of an action, or of its absence.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "reason")]
pub enum Reason {
    /// The group has fewer nodes than its configured minimum.
    BelowMinimum { min: u32 },
    /// A waiting pod fits the node that was being drained.
    CapacityNeeded { pod: String },
    /// The drain did not end before its deadline, or the agent gave it up.
    DrainGivenUp,
    /// The agent has drained the node and nothing came back to it.
    Drained { took: Duration },
    /// The group would fall below its minimum.
    MinimumReached { min: u32 },
    /// No group can make a node for the pod; one entry per group.
    NoGroupFits { groups: Vec<(String, Obstacle)> },
    /// Pods wait for a node.
    PodsPending { count: usize, first: String, longest: Duration },
    /// By this model the pod fits a node that is there; the scheduler's word is awaited.
    SchedulerToPlace { node: String },
    /// A node the pod fits is on its way.
    NodeComing { group: String },
    /// The node ran nothing but daemons and was measured idle.
    Unneeded { idle: Duration, empty: Duration },
}

/// Why a group makes no node for a pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Obstacle {
    /// A node of the group would not take it.
    Misfit(Misfit),
    /// The group is at its maximum.
    Maximum(u32),
    /// The Auto Scaling API has not told of the group, or does not know it.
    Unobserved,
}

impl Reason {
    /// A closed set of CamelCase words, for metrics' labels and Kubernetes Events.
    pub fn name(&self) -> &'static str {
        match self {
            Self::BelowMinimum { .. } => "BelowMinimum",
            Self::CapacityNeeded { .. } => "CapacityNeeded",
            Self::DrainGivenUp => "DrainGivenUp",
            Self::Drained { .. } => "Drained",
            Self::MinimumReached { .. } => "MinimumReached",
            Self::NoGroupFits { .. } => "NoGroupFits",
            Self::PodsPending { .. } => "PodsPending",
            Self::SchedulerToPlace { .. } => "SchedulerToPlace",
            Self::NodeComing { .. } => "NodeComing",
            Self::Unneeded { .. } => "Unneeded",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let short = |duration: &Duration| format_duration(*duration);
        match self {
            Self::BelowMinimum { min } => write!(f, "fewer nodes than the minimum of {min}"),
            Self::CapacityNeeded { pod } => write!(f, "pod {pod} waits and fits this node"),
            Self::DrainGivenUp => f.write_str("the drain was given up"),
            Self::Drained { took } => write!(f, "drained in {}", short(took)),
            Self::MinimumReached { min } => write!(f, "the group is at its minimum of {min}"),
            Self::NoGroupFits { groups } if groups.is_empty() => f.write_str("no group is configured"),
            Self::NoGroupFits { groups } => {
                let causes = groups.iter().map(|(group, obstacle)| format!("{group}: {obstacle}"));
                write!(f, "no group can make a node for it: {}", causes.collect::<Vec<_>>().join("; "))
            }
            Self::PodsPending { count: 1, first, longest } => {
                write!(f, "pod {first} unschedulable for {}", short(longest))
            }
            Self::PodsPending { count, first, longest } => {
                write!(f, "{count} pods unschedulable for up to {}, first {first}", short(longest))
            }
            Self::SchedulerToPlace { node } => write!(f, "fits node {node}, the scheduler is to place it"),
            Self::NodeComing { group } => write!(f, "a node of group {group} is on its way"),
            Self::Unneeded { idle, empty } => {
                write!(f, "measured idle for {} and without work for {}", short(idle), short(empty))
            }
        }
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Misfit(misfit) => misfit.fmt(f),
            Self::Maximum(max) => write!(f, "at its maximum of {max}"),
            Self::Unobserved => f.write_str("not known to the Auto Scaling API (yet)"),
        }
    }
}
