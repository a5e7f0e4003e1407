//! What operators decide: groups and numbers. Checked when it is read; everything behind it may rely on it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::classify::IdlePolicy;
use crate::cron::Window;
use crate::kubernetes::Taint;
use crate::price::Dollars;
use crate::ray;
use crate::resources::Resources;
use crate::time::format_duration;
use crate::units::Permille;

/// Everything the coordinator's rules can be told. The defaults are the flow's numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// By the Auto Scaling group's name.
    pub groups: BTreeMap<String, Group>,
    pub scale_up: ScaleUp,
    pub scale_down: ScaleDown,
    pub idle: IdlePolicy,
    /// Ray clusters whose demand is read, by namespace and name.
    #[serde(default)]
    pub ray: BTreeMap<String, ray::Cluster>,
}

/// An Auto Scaling group and the nodes it makes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// Nodes never fewer than this; the Auto Scaling group's own minimum holds as well.
    pub min: u32,
    /// Nodes never more than this; the Auto Scaling group's own maximum holds as well.
    pub max: u32,
    pub instance_type: String,
    /// Labels of a new node, those of the kubelet and the cloud included.
    pub labels: BTreeMap<String, String>,
    pub taints: Vec<Taint>,
    /// What a new node offers to pods, until a node of the group has shown it.
    pub allocatable: Resources,
    /// How long a node must be unneeded before it is drained.
    pub unneeded_for: Duration,
    /// Of the groups that could make a node, those with the highest are asked.
    #[serde(default)]
    pub priority: i32,
    /// What an hour of a node costs.
    #[serde(default)]
    pub price: Option<Dollars>,
    /// Over the nodes of this group.
    #[serde(default)]
    pub budgets: Vec<Budget>,
    /// Whether its idle nodes with pods that end by themselves are closed to others, and go when the last has ended.
    #[serde(default)]
    pub run_to_completion: bool,
    /// A lifecycle hook on its terminations that waits for nobody but us.
    #[serde(default)]
    pub lifecycle_hook: Option<String>,
}

/// When nodes are added.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScaleUp {
    /// How long a pod must have been unschedulable. The flow: 30 s.
    pub pending_for: Duration,
    /// How long to collect changes before deciding. Pods that begin to wait are a burst, to be planned for as one, until
    /// no more has come for this long.
    pub batch_window: Duration,
    /// What has come of a burst that goes on for longer is planned for.
    #[serde(default = "batch_longest")]
    pub batch_longest: Duration,
    /// After this an instance that has not become a ready node is no longer waited for.
    pub provision_timeout: Duration,
    #[serde(default)]
    pub expander: Expander,
    #[serde(default)]
    pub launch: Launch,
}

/// How to choose between groups of one priority that could make a node. (Cluster Autoscaler's word.)
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Expander {
    /// The one whose node the waiting pods fill best.
    #[default]
    LeastWaste,
    /// The one whose node costs the least for what the waiting pods ask of it. Every group has a price.
    Price,
}

/// By which call of the Auto Scaling API a group gets nodes for pods that wait. (Their names are the API's.)
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Launch {
    /// In one zone, and the answer names the instances or says what is in the way. Where the API refuses it, as
    /// `SetDesiredCapacity`.
    LaunchInstances,
    /// The group launches by itself, in zones of its choice, and goes on trying.
    #[default]
    SetDesiredCapacity,
}

/// Karpenter waits for up to 10 s (`BATCH_MAX_DURATION`): the first nodes of a long burst are worth more than calls spared.
fn batch_longest() -> Duration {
    Duration::from_secs(2)
}

impl Default for ScaleUp {
    /// 15 minutes is Cluster Autoscaler's `max-node-provision-time`; 100 ms is below what a person notices and above
    /// what lies between two pods of a burst that kube-scheduler refuses on a busy machine.
    fn default() -> Self {
        Self {
            pending_for: Duration::from_secs(30),
            batch_window: Duration::from_millis(100),
            batch_longest: batch_longest(),
            provision_timeout: Duration::from_secs(15 * 60),
            expander: Expander::LeastWaste,
            launch: Launch::SetDesiredCapacity,
        }
    }
}

/// When nodes are removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScaleDown {
    /// For groups that say nothing of their own. The flow: 10 min.
    pub unneeded_for: Duration,
    /// The same for groups with GPUs, which the flow wants to leave sooner ("aggressive scale-down").
    pub gpu_unneeded_for: Duration,
    /// Nodes draining at the same time. The flow: one.
    pub max_parallel_drains: u32,
    /// How long a drain may take before it is given up and undone.
    pub drain_timeout: Duration,
    /// A report older than this says nothing.
    pub report_timeout: Duration,
    /// Whether nodes with pods are drained as well, if they are idle, little of them is asked for, and the pods fit on
    /// other nodes.
    #[serde(default)]
    pub consolidate: bool,
    /// Over the nodes of all groups. `max_parallel_drains` holds besides.
    #[serde(default)]
    pub budgets: Vec<Budget>,
    /// For groups that say nothing of their own.
    #[serde(default)]
    pub run_to_completion: bool,
    /// How long a node's pods may take to end before the node is given back.
    #[serde(default = "run_to_completion_timeout")]
    pub run_to_completion_timeout: Duration,
}

/// Longer than most trainings take, and a day has two of them.
fn run_to_completion_timeout() -> Duration {
    Duration::from_secs(12 * 3600)
}

impl Default for ScaleDown {
    /// 15 minutes is the drain timeout of EKS managed node groups; 30 s is three missed reports of 10 s.
    fn default() -> Self {
        Self {
            unneeded_for: Duration::from_secs(10 * 60),
            gpu_unneeded_for: Duration::from_secs(5 * 60),
            max_parallel_drains: 1,
            drain_timeout: Duration::from_secs(15 * 60),
            report_timeout: Duration::from_secs(30),
            consolidate: false,
            budgets: Vec::new(),
            run_to_completion: false,
            run_to_completion_timeout: run_to_completion_timeout(),
        }
    }
}

/// How many nodes may drain at the same time, always or in a window. Of several the least holds. (Karpenter's word, and
/// its form.)
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Budget {
    pub nodes: Amount,
    /// `None`: always.
    pub window: Option<Window>,
    /// Drains that it is about; empty: all.
    pub reasons: BTreeSet<Disruption>,
}

impl Budget {
    pub fn is_about(&self, why: Disruption) -> bool {
        self.reasons.is_empty() || self.reasons.contains(&why)
    }

    /// Whether a node that drains counts: one that runs out is no drain to a budget that is not about that, nor the
    /// other way round.
    pub fn counts(&self, evicts: bool) -> bool {
        let evicting = |why: &Disruption| (*why != Disruption::Completed) == evicts;
        self.reasons.is_empty() || self.reasons.iter().any(evicting)
    }
}

/// So many of some nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Amount {
    Count(u32),
    Share(Permille),
}

impl Amount {
    /// A share is rounded up, as Karpenter does: 10% of three nodes is one.
    pub fn of(self, nodes: u32) -> u32 {
        match self {
            Self::Count(count) => count,
            Self::Share(share) => {
                let exact = u64::from(nodes) * u64::from(share.get());
                u32::try_from(exact.div_ceil(1000)).unwrap_or(u32::MAX)
            }
        }
    }
}

/// Why a node is drained, as budgets tell it apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Disruption {
    /// It is idle, and its pods run to their end.
    Completed,
    /// It is idle, and its pods fit on others.
    Consolidated,
    /// It is idle and runs nothing but daemons.
    Empty,
}

impl Disruption {
    pub const ALL: [Self; 3] = [Self::Completed, Self::Consolidated, Self::Empty];

    pub fn name(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Consolidated => "consolidated",
            Self::Empty => "empty",
        }
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(count) => count.fmt(f),
            Self::Share(share) => share.fmt(f),
        }
    }
}

impl fmt::Display for Budget {
    /// As in the configuration, so that it is found there.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{nodes: {}", self.nodes)?;
        if let Some(Window { schedule, duration }) = &self.window {
            write!(f, ", schedule: {schedule}, duration: {}", format_duration(*duration))?;
        }
        if !self.reasons.is_empty() {
            let reasons: Vec<_> = self.reasons.iter().map(|reason| reason.name()).collect();
            write!(f, ", reasons: [{}]", reasons.join(", "))?;
        }
        f.write_str("}")
    }
}
