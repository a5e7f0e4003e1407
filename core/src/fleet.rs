//! Everything the coordinator knows, and the rules on it. One way in ([`Fleet::handle`]), a list of actions out.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::intent::Intent;
use crate::kubernetes::{Node, Pod};
use crate::policy::Policy;
use crate::reason::Reason;
use crate::report::Report;
use crate::time::Instant;

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Event {
    /// An action was carried out.
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
    /// Whether this coordinator leads. Only a leader acts.
    Leading(bool),
    NodeApplied(Node),
    NodeDeleted {
        name: String,
        uid: String,
    },
    PodApplied(Pod),
    PodDeleted {
        uid: String,
    },
    Report(Report),
    /// Whether the watches on nodes and pods are complete and live. Nothing is decided on a stale picture.
    Synced(bool),
    /// The time that [`Fleet::next_wakeup`] named has come.
    Tick,
}

/// An Auto Scaling group as the API describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GroupState {
    pub name: String,
    pub min: u32,
    pub max: u32,
    pub desired: u32,
    pub instances: Vec<Instance>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Instance {
    pub id: String,
    /// Whether its lifecycle state is one on the way to or in service (`Pending*`, `InService`).
    pub live: bool,
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

/// What to do. Says everything: the effect side has nothing left to choose.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Action {
    /// Remove this drain's intent from the Node, if it is still this one and the Node still this UID.
    CancelDrain {
        node: String,
        uid: String,
        id: String,
        because: Reason,
    },
    /// Ask the Auto Scaling API for the state of these groups.
    Describe {
        groups: Vec<String>,
        at: Instant,
    },
    /// Write this intent on the Node, if it has this UID and no other intent.
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
    SetDesired {
        group: String,
        from: u32,
        to: u32,
        because: Reason,
    },
    /// Terminate exactly this instance and lower the group's desired capacity by one.
    Terminate {
        group: String,
        instance: String,
        node: String,
        because: Reason,
    },
}
