//! What a drain changes on its Node, and how each step is called.

use serde::{Deserialize, Serialize};

use super::Node;
use crate::intent::{CONDITION_DRAINED, CONDITION_DRAINING, CONDITION_PLANNED, Intent, Phase, Progress};
use crate::time::Instant;

/// What one request changes: the status is a resource of its own, so its conditions need another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Change {
    Conditions(Vec<Condition>),
    Node(NodeChange),
}

/// A change of labels, annotations and `unschedulable`; what says `None` or `Keep` stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeChange {
    pub unschedulable: Option<bool>,
    /// The label that takes the node out of load balancers.
    pub excluded: Option<bool>,
    pub intent: Edit<Intent>,
    pub progress: Edit<Progress>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Edit<T> {
    #[default]
    Keep,
    Remove,
    Set(T),
}

impl<T> Edit<T> {
    /// What then stands there.
    pub fn apply(self, to: &mut Option<T>) {
        match self {
            Self::Keep => {}
            Self::Remove => *to = None,
            Self::Set(value) => *to = Some(value),
        }
    }
}

/// A node condition to set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    pub type_: String,
    pub status: bool,
    /// CamelCase, for machines.
    pub reason: String,
    pub message: String,
}

/// The steps of a drain: what a patch stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Step {
    /// The intent is gone; what we changed is undone.
    Cancelled,
    /// The deadline passed; what we changed is undone.
    DeadlineExceeded,
    /// Load balancers are given time to forget the node.
    Detaching,
    Drained,
    /// A hook failed that must not.
    HookFailed,
    /// It is known that the node will go.
    Noticed,
    /// It could not have succeeded.
    PreflightFailed,
    /// Hooks and their like are waited for before anything is changed.
    Preparing,
    /// A person's wish is written down in full.
    Requested,
    /// No more pods come, and those there are end by themselves.
    RunningOut,
    Started,
    /// Somebody made the node schedulable again: their word stands.
    Uncordoned,
    /// A hook said no.
    Vetoed,
}

impl Step {
    /// A closed set of CamelCase words, for conditions' reasons and metrics' labels.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cancelled => "DrainCancelled",
            Self::DeadlineExceeded => "DeadlineExceeded",
            Self::Detaching => "LeavingLoadBalancers",
            Self::Drained => "DrainCompleted",
            Self::HookFailed => "HookFailed",
            Self::Noticed => "DrainNoticed",
            Self::PreflightFailed => "PreflightFailed",
            Self::Preparing => "DrainPlanned",
            Self::Requested => "DrainRequested",
            Self::RunningOut => "RunningToCompletion",
            Self::Started => "DrainStarted",
            Self::Uncordoned => "Uncordoned",
            Self::Vetoed => "HookVetoed",
        }
    }

    fn message(self) -> &'static str {
        match self {
            Self::Cancelled => "the drain is no longer wanted; what it changed was undone",
            Self::DeadlineExceeded => "the drain did not end before its deadline; what it changed was undone",
            Self::Detaching => "load balancers are given time to forget the node",
            Self::Drained => "no pod but those of DaemonSets and of the node itself is left",
            Self::HookFailed => "a hook failed; what the drain changed was undone",
            Self::Noticed => "the node will go",
            Self::PreflightFailed => "the drain could not succeed and was not begun",
            Self::Preparing => "the drain is being prepared",
            Self::Requested => "somebody asked for a drain",
            Self::RunningOut => "the node takes no more pods; those on it are left to end by themselves",
            Self::Started => "pods are being evicted",
            Self::Uncordoned => "somebody made the node schedulable again; the drain was given up",
            Self::Vetoed => "a hook forbade the drain; what it changed was undone",
        }
    }

    /// `detail`: what there is to say beyond that, or nothing.
    pub(super) fn say(self, detail: &str) -> String {
        if detail.is_empty() { self.message().to_owned() } else { format!("{}: {detail}", self.message()) }
    }
}

/// Which of a drain's conditions stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Standing {
    pub(super) planned: bool,
    pub(super) draining: bool,
    pub(super) drained: bool,
}

impl Standing {
    pub(super) fn of(node: &Node) -> Self {
        Self { planned: node.planned, draining: node.draining, drained: node.drained }
    }

    /// Maintenance stays planned until it is over, which is for others to say.
    pub(super) fn at(phase: Phase) -> Self {
        Self { planned: true, draining: phase == Phase::Draining, drained: phase == Phase::Drained }
    }

    pub(super) fn change(self, step: Step, message: &str) -> Change {
        let conditions =
            [(CONDITION_PLANNED, self.planned), (CONDITION_DRAINING, self.draining), (CONDITION_DRAINED, self.drained)];
        let condition = |(type_, status): (&str, bool)| Condition {
            type_: type_.to_owned(),
            status,
            reason: step.name().to_owned(),
            message: message.to_owned(),
        };
        Change::Conditions(conditions.map(condition).to_vec())
    }
}

/// Makes the node unschedulable, and notes in the same request that it was us, if it was.
pub(super) fn cordon(now: Instant, node: &Node, id: &str) -> Change {
    let before = node.progress.as_ref();
    Change::Node(NodeChange {
        unschedulable: (!node.unschedulable).then_some(true),
        excluded: (!node.excluded).then_some(true),
        progress: Edit::Set(Progress {
            cordoned_by_us: !node.unschedulable || before.is_some_and(|it| it.cordoned_by_us),
            excluded_by_us: !node.excluded || before.is_some_and(|it| it.excluded_by_us),
            ..Progress::new(id, Phase::Draining, now)
        }),
        ..NodeChange::default()
    })
}

/// Takes back what we did and no more. `failed`: the drain to mark as failed, so that it does not start anew.
pub(super) fn undo(now: Instant, node: &Node, failed: Option<&str>) -> Change {
    let ours = |done: fn(&Progress) -> bool| node.progress.as_ref().is_some_and(done);
    Change::Node(NodeChange {
        unschedulable: (ours(|it| it.cordoned_by_us) && node.unschedulable).then_some(false),
        excluded: (ours(|it| it.excluded_by_us) && node.excluded).then_some(false),
        progress: failed.map_or(Edit::Remove, |id| Edit::Set(Progress::new(id, Phase::Failed, now))),
        ..NodeChange::default()
    })
}
