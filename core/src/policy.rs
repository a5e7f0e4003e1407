//! What operators decide: groups and numbers. Checked when it is read; everything behind it may rely on it.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::classify::IdlePolicy;
use crate::kubernetes::Taint;
use crate::price::Dollars;
use crate::resources::Resources;

/// Everything the coordinator's rules can be told. The defaults are the flow's numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// By the Auto Scaling group's name.
    pub groups: BTreeMap<String, Group>,
    pub scale_up: ScaleUp,
    pub scale_down: ScaleDown,
    pub idle: IdlePolicy,
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
        }
    }
}
