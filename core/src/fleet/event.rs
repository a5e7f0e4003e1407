//! What the coordinator is told.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Action, Memory};
use crate::buffer;
use crate::disruption;
use crate::kubernetes::{AgentPod, Node, Pod};
use crate::launch::LaunchFailure;
use crate::ray;
use crate::report::Report;
use crate::storage;

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Event {
    /// An agent's pod, which comes as `PodApplied` as well.
    AgentPodApplied(AgentPod),
    AgentPodDeleted {
        uid: String,
    },
    /// With what it refers to: it comes again when that changes.
    Buffer(buffer::Change),
    /// An action was carried out. (An [`Action::Describe`] is answered by `Groups`, an [`Action::Launch`] by `Launched`.)
    Done(Action),
    /// An action failed; nothing is known of its effect but what a later observation shows.
    Failed {
        action: Action,
        failure: Failure,
    },
    /// The reply to an [`Action::Describe`]: every group asked for that exists. One that is missing does not.
    Groups {
        asked: Action,
        groups: Vec<GroupState>,
    },
    /// The reply to an [`Action::Launch`]: what came of it, which may be less than was asked for.
    Launched {
        asked: Action,
        instances: Vec<String>,
        /// In AWS' words.
        failures: Vec<String>,
    },
    /// Whether this coordinator leads. Only a leader acts.
    Leading(bool),
    /// What the last leader knew.
    Remembered(Memory),
    NodeApplied(Node),
    NodeDeleted {
        name: String,
        uid: String,
    },
    PodApplied(Pod),
    PodDeleted {
        uid: String,
    },
    /// A PodDisruptionBudget.
    PodDisruptionBudget(disruption::Change),
    /// What the head of a Ray cluster of the policy told, or that it told nothing.
    Ray {
        cluster: String,
        answer: ray::Answer,
    },
    /// A RayCluster object of that namespace and name; `None`: there is none.
    RayCluster {
        name: String,
        object: Option<Box<ray::RayCluster>>,
    },
    /// The reply to an [`Action::DrainRayNode`].
    RayNodeDrained {
        asked: Action,
        answer: ray::Drained,
    },
    /// An object that asks for a number of Ray workers.
    RayWorkerGroup(ray::ScaleChange),
    /// A claim, a volume or a storage class.
    Storage(storage::Change),
    Report(Report),
    /// Whether the watches on nodes and pods are complete and live. Nothing is decided on a stale picture. After a
    /// gap, the events that make up for it come before `Synced(true)`.
    Synced(bool),
    /// The time that [`Fleet::next_wakeup`] named has come.
    Tick,
}

/// An Auto Scaling group as the API describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GroupState {
    pub name: String,
    pub min: u32,
    pub max: u32,
    pub desired: u32,
    pub instances: Vec<Instance>,
    /// Availability zones that it launches in.
    #[serde(default)]
    pub zones: Vec<String>,
    /// Of a mixed instances policy; empty: it has none.
    #[serde(default)]
    pub instance_types: Vec<String>,
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
    /// Its last scaling activities that failed, as far as they were asked for: while it has fewer instances than desired.
    #[serde(default)]
    pub failures: Vec<LaunchFailure>,
}

impl GroupState {
    /// The least and the most nodes, by the configuration and by the group's own bounds.
    pub(super) fn bounds(&self, policy: &crate::policy::Group) -> (u32, u32) {
        let max = policy.max.min(self.max);
        (policy.min.max(self.min).min(max), max)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Instance {
    pub id: String,
    /// Whether its lifecycle state is one on the way to or in service (`Pending*`, `InService`).
    pub live: bool,
    /// Whether a lifecycle hook holds its termination (`Terminating:Wait`).
    #[serde(default)]
    pub waits: bool,
    /// Its availability zone.
    #[serde(default)]
    pub zone: Option<String>,
}

/// Why a call failed: a closed set, for the rules and for metrics' labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Failure {
    /// The object has changed or another activity is in progress; look again.
    Conflict,
    /// Credentials or rights are missing.
    Denied,
    /// The group, instance or node is not there.
    NotFound,
    /// The request was refused as wrong.
    Rejected,
    Throttled,
    /// No reply, a timeout, or a server error.
    Unavailable,
}

impl Failure {
    /// A closed set of words, for logs and metrics' labels.
    pub fn name(self) -> &'static str {
        match self {
            Self::Conflict => "conflict",
            Self::Denied => "denied",
            Self::NotFound => "not_found",
            Self::Rejected => "rejected",
            Self::Throttled => "throttled",
            Self::Unavailable => "unavailable",
        }
    }

    /// How long to wait after so many failures in a row: doubling from a second to a minute where trying again may
    /// help, a minute where somebody must act first.
    pub(super) fn backoff(self, failures: u32) -> Duration {
        const LONGEST: Duration = Duration::from_secs(60);
        match self {
            Self::Conflict | Self::Throttled | Self::Unavailable => {
                Duration::from_secs(1 << (failures - 1).min(6)).min(LONGEST)
            }
            Self::Denied | Self::NotFound | Self::Rejected => LONGEST,
        }
    }
}
