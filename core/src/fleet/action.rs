//! What the coordinator does.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{GroupState, buffers, drive};
use crate::buffer::Status;
use crate::intent::Intent;
use crate::ray::{DrainReason, Launches, ScaleStatus};
use crate::reason::Reason;
use crate::time::Instant;
use crate::view;

/// What to do. Says everything: the effect side has nothing left to choose.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Action {
    /// Remove this drain's intent from the Node, if it is still this one and the Node still this UID.
    CancelDrain {
        node: String,
        uid: String,
        id: String,
        because: Reason,
    },
    /// Let a lifecycle hook go: the group may terminate its instance.
    CompleteLifecycle {
        group: String,
        instance: String,
        hook: String,
        /// Empty: it has none (any more).
        node: String,
        because: Reason,
    },
    /// Delete this pod at once, if it still has this UID.
    DeletePod {
        namespace: String,
        pod: String,
        uid: String,
        because: Reason,
    },
    /// Ask the Auto Scaling API for the state of these groups.
    Describe {
        groups: Vec<String>,
        at: Instant,
    },
    /// Write this intent on the Node, if it has this UID and no other intent; one with this id is brought up to this.
    Drain {
        node: String,
        uid: String,
        intent: Intent,
        because: Reason,
    },
    /// Ask the head of a Ray cluster to let one of its nodes go.
    DrainRayNode {
        cluster: String,
        /// Its id in Ray.
        node: String,
        /// The pod that it runs in.
        pod: String,
        why: DrainReason,
        deadline: Instant,
        because: Reason,
    },
    /// Tell people, as an Event on the pod.
    Explain {
        namespace: String,
        pod: String,
        uid: String,
        because: Reason,
    },
    /// Keep a lifecycle hook waiting.
    Heartbeat {
        group: String,
        instance: String,
        hook: String,
    },
    /// Launch the instances from one desired capacity to the other in this zone, if that still is what it was, and say
    /// what came of it.
    Launch {
        group: String,
        zone: String,
        from: u32,
        to: u32,
        /// Asked twice under the same token, it is done once.
        token: String,
        because: Reason,
    },
    SetDesired {
        group: String,
        from: u32,
        to: u32,
        because: Reason,
    },
    /// Say on the pod which of its kind is to go first, the cheapest; `None`: nothing.
    SetPodDeletionCost {
        namespace: String,
        pod: String,
        uid: String,
        cost: Option<i32>,
    },
    /// Tell a Ray cluster's head what is on its way.
    ReportRay {
        cluster: String,
        /// One that is not above the last is not heard.
        version: u64,
        launches: Launches,
    },
    /// Set the replicas of these groups of a RayCluster, and the workers to delete, if it still is of this version.
    ScaleRayCluster {
        cluster: String,
        resource_version: String,
        groups: Vec<RayGroup>,
        because: Reason,
    },
    /// Write the status of this buffer, if it still has this UID.
    ShowBuffer {
        namespace: String,
        name: String,
        uid: String,
        status: Status,
    },
    /// Write the status of this object, if it still has this UID.
    ShowRayWorkerGroup {
        namespace: String,
        name: String,
        uid: String,
        status: ScaleStatus,
    },
    /// Terminate exactly this instance and lower the group's desired capacity by one.
    Terminate {
        group: String,
        instance: String,
        node: String,
        because: Reason,
    },
}

/// What a RayCluster is to say of one of its worker groups.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RayGroup {
    /// In `workerGroupSpecs`.
    pub index: usize,
    pub name: String,
    pub from: u32,
    pub to: u32,
    /// `workersToDelete`
    pub delete: Vec<String>,
}

impl Action {
    /// A closed set of words, for logs and metrics' labels.
    pub fn name(&self) -> &'static str {
        match self {
            Self::CancelDrain { .. } => "cancel_drain",
            Self::CompleteLifecycle { .. } => "complete_lifecycle",
            Self::DeletePod { .. } => "delete_pod",
            Self::Describe { .. } => "describe",
            Self::Drain { .. } => "drain",
            Self::DrainRayNode { .. } => "drain_ray_node",
            Self::Explain { .. } => "explain",
            Self::Heartbeat { .. } => "heartbeat",
            Self::Launch { .. } => "launch",
            Self::ReportRay { .. } => "report_ray",
            Self::ScaleRayCluster { .. } => "scale_ray_cluster",
            Self::SetDesired { .. } => "set_desired",
            Self::SetPodDeletionCost { .. } => "set_pod_deletion_cost",
            Self::ShowBuffer { .. } => "show_buffer",
            Self::ShowRayWorkerGroup { .. } => "show_ray_worker_group",
            Self::Terminate { .. } => "terminate",
        }
    }

    /// `None` for what changes nothing and so is no decision.
    pub fn because(&self) -> Option<&Reason> {
        match self {
            Self::CancelDrain { because, .. }
            | Self::CompleteLifecycle { because, .. }
            | Self::DeletePod { because, .. }
            | Self::Drain { because, .. }
            | Self::DrainRayNode { because, .. }
            | Self::Explain { because, .. }
            | Self::Launch { because, .. }
            | Self::ScaleRayCluster { because, .. }
            | Self::SetDesired { because, .. }
            | Self::Terminate { because, .. } => Some(because),
            Self::Describe { .. }
            | Self::Heartbeat { .. }
            | Self::ReportRay { .. }
            | Self::SetPodDeletionCost { .. }
            | Self::ShowBuffer { .. }
            | Self::ShowRayWorkerGroup { .. } => None,
        }
    }

    /// In words, for people. The reason is said apart.
    pub fn describe(&self) -> String {
        match self {
            Self::CancelDrain { node, .. } => format!("calls off the drain of {node}"),
            Self::CompleteLifecycle { group, instance, .. } => {
                format!("lets {group} terminate {instance}")
            }
            Self::DeletePod { namespace, pod, .. } => format!("deletes pod {namespace}/{pod}"),
            Self::Describe { groups, .. } => format!("looks at {}", groups.join(", ")),
            Self::Drain { node, because: Reason::Turn { .. }, .. } => format!("lets the drain of {node} begin"),
            Self::Drain { node, .. } => format!("asks {node} to drain"),
            Self::DrainRayNode { cluster, pod, .. } => format!("asks Ray to let worker {pod} of {cluster} go"),
            Self::Explain { namespace, pod, .. } => format!("leaves pod {namespace}/{pod} waiting"),
            Self::Heartbeat { group, instance, .. } => format!("keeps {group} waiting to terminate {instance}"),
            Self::Launch { group, zone, from, to, .. } => {
                format!("launches {} of {group} in {zone}, from {from} to {to} instances", to - from)
            }
            Self::ReportRay { cluster, .. } => format!("tells {cluster} what is on its way"),
            Self::SetPodDeletionCost { namespace, pod, .. } => format!("sets the deletion cost of {namespace}/{pod}"),
            Self::ScaleRayCluster { cluster, groups, .. } => {
                let groups = groups.iter().map(|RayGroup { name, from, to, .. }| match from.cmp(to) {
                    Ordering::Equal => format!("{name} stays at {to} workers"),
                    Ordering::Less | Ordering::Greater => format!("{name} from {from} to {to} workers"),
                });
                format!("sets {cluster}: {}", groups.collect::<Vec<_>>().join(", "))
            }
            Self::ShowRayWorkerGroup { namespace, name, .. } => {
                format!("shows the status of RayWorkerGroup {namespace}/{name}")
            }
            Self::SetDesired { group, from, to, .. } => format!("raises {group} from {from} to {to} instances"),
            Self::ShowBuffer { namespace, name, .. } => format!("shows the status of buffer {namespace}/{name}"),
            Self::Terminate { group, node, .. } => format!("terminates {node} of {group}"),
        }
    }

    /// Of the flow: whose part it is.
    fn level(&self) -> view::Level {
        match self {
            Self::DrainRayNode { .. } | Self::ScaleRayCluster { .. } => view::Level::Ray,
            _ => view::Level::NodeAutoscaler,
        }
    }

    /// Whether a launch may have had its effect and this description not show it.
    pub(super) fn may_be_unseen_in(&self, state: Option<&GroupState>) -> bool {
        matches!(self, Self::Launch { from, .. } if state.is_some_and(|state| state.desired == *from))
    }

    /// What only one call at a time may touch. A node whose instance is being terminated must not be opened to pods
    /// meanwhile.
    pub(super) fn targets(&self) -> Vec<Target> {
        match self {
            Self::CancelDrain { node, .. } | Self::Drain { node, .. } => vec![Target::Node(node.clone())],
            Self::DrainRayNode { node, .. } => vec![Target::RayNode(node.clone())],
            Self::ReportRay { cluster, .. } => vec![Target::RayReport(cluster.clone())],
            Self::ScaleRayCluster { cluster, .. } => vec![Target::RayCluster(cluster.clone())],
            Self::DeletePod { uid, .. } | Self::SetPodDeletionCost { uid, .. } => vec![Target::Pod(uid.clone())],
            Self::ShowRayWorkerGroup { namespace, name, .. } => {
                vec![Target::RayScale((namespace.clone(), name.clone()))]
            }
            Self::CompleteLifecycle { instance, .. } | Self::Heartbeat { instance, .. } => {
                vec![Target::Instance(instance.clone())]
            }
            Self::Describe { .. } => vec![Target::Describe],
            Self::Explain { .. } => Vec::new(),
            Self::ShowBuffer { namespace, name, .. } => vec![Target::Buffer((namespace.clone(), name.clone()))],
            Self::Launch { group, .. } | Self::SetDesired { group, .. } => vec![Target::Group(group.clone())],
            Self::Terminate { group, node, .. } => vec![Target::Group(group.clone()), Target::Node(node.clone())],
        }
    }
}

/// What was decided, for people. What many pods are told alike is one step, so that a burst is read in a line.
pub fn steps(at: Instant, actions: &[Action]) -> Vec<view::Step> {
    let step = |level, what, because| view::Step { at, level, what, because };
    let mut told: BTreeMap<String, (&Action, u32)> = BTreeMap::new();
    let mut steps = Vec::new();
    for action in actions {
        let Some(because) = action.because() else { continue };
        if let Action::Explain { .. } = action {
            told.entry(because.to_string()).or_insert((action, 0)).1 += 1;
        } else {
            steps.push(step(action.level(), action.describe(), because.to_string()));
        }
    }
    steps.extend(told.into_iter().map(|(because, (action, count))| {
        let what = if count == 1 { action.describe() } else { format!("leaves {count} pods waiting") };
        step(action.level(), what, because)
    }));
    steps
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Target {
    Buffer(buffers::Key),
    Describe,
    Group(String),
    Instance(String),
    Node(String),
    /// By its UID.
    Pod(String),
    /// By namespace and name.
    RayCluster(String),
    RayNode(String),
    RayReport(String),
    RayScale(drive::ScaleKey),
}
