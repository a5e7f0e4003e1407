//! What the coordinator does.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{GroupState, buffers};
use crate::buffer::Status;
use crate::intent::Intent;
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
    /// Write the status of this buffer, if it still has this UID.
    ShowBuffer {
        namespace: String,
        name: String,
        uid: String,
        status: Status,
    },
    /// Terminate exactly this instance and lower the group's desired capacity by one.
    Terminate {
        group: String,
        instance: String,
        node: String,
        because: Reason,
    },
}

impl Action {
    /// A closed set of words, for logs and metrics' labels.
    pub fn name(&self) -> &'static str {
        match self {
            Self::CancelDrain { .. } => "cancel_drain",
            Self::CompleteLifecycle { .. } => "complete_lifecycle",
            Self::Describe { .. } => "describe",
            Self::Drain { .. } => "drain",
            Self::Explain { .. } => "explain",
            Self::Heartbeat { .. } => "heartbeat",
            Self::Launch { .. } => "launch",
            Self::SetDesired { .. } => "set_desired",
            Self::ShowBuffer { .. } => "show_buffer",
            Self::Terminate { .. } => "terminate",
        }
    }

    /// `None` for what changes nothing and so is no decision.
    pub fn because(&self) -> Option<&Reason> {
        match self {
            Self::CancelDrain { because, .. }
            | Self::CompleteLifecycle { because, .. }
            | Self::Drain { because, .. }
            | Self::Explain { because, .. }
            | Self::Launch { because, .. }
            | Self::SetDesired { because, .. }
            | Self::Terminate { because, .. } => Some(because),
            Self::Describe { .. } | Self::Heartbeat { .. } | Self::ShowBuffer { .. } => None,
        }
    }

    /// In words, for people. The reason is said apart.
    pub fn describe(&self) -> String {
        match self {
            Self::CancelDrain { node, .. } => format!("calls off the drain of {node}"),
            Self::CompleteLifecycle { group, instance, .. } => {
                format!("lets {group} terminate {instance}")
            }
            Self::Describe { groups, .. } => format!("looks at {}", groups.join(", ")),
            Self::Drain { node, because: Reason::Turn { .. }, .. } => format!("lets the drain of {node} begin"),
            Self::Drain { node, .. } => format!("asks {node} to drain"),
            Self::Explain { namespace, pod, .. } => format!("leaves pod {namespace}/{pod} waiting"),
            Self::Heartbeat { group, instance, .. } => format!("keeps {group} waiting to terminate {instance}"),
            Self::Launch { group, zone, from, to, .. } => {
                format!("launches {} of {group} in {zone}, from {from} to {to} instances", to - from)
            }
            Self::SetDesired { group, from, to, .. } => format!("raises {group} from {from} to {to} instances"),
            Self::ShowBuffer { namespace, name, .. } => format!("shows the status of buffer {namespace}/{name}"),
            Self::Terminate { group, node, .. } => format!("terminates {node} of {group}"),
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
    let step = |what, because| view::Step { at, level: view::Level::NodeAutoscaler, what, because };
    let mut told: BTreeMap<String, (&Action, u32)> = BTreeMap::new();
    let mut steps = Vec::new();
    for action in actions {
        let Some(because) = action.because() else { continue };
        if let Action::Explain { .. } = action {
            told.entry(because.to_string()).or_insert((action, 0)).1 += 1;
        } else {
            steps.push(step(action.describe(), because.to_string()));
        }
    }
    steps.extend(told.into_iter().map(|(because, (action, count))| {
        let what = if count == 1 { action.describe() } else { format!("leaves {count} pods waiting") };
        step(what, because)
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
}
