//! Why something is done or not. Logs, events, metrics and pages all show this same reason.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::classify::{Missing, Signal};
use crate::intent::Trigger;
use crate::launch::Failing;
use crate::schedule::Misfit;
use crate::time::{Instant, format_duration};
use crate::units::Permille;

/// The reason of an action, or of its absence.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "reason")]
pub enum Reason {
    /// The group has fewer nodes than its configured minimum.
    BelowMinimum { min: u32 },
    /// A buffer wants room for so many more of its pods, or several do.
    BufferWanted { count: usize, first: String },
    /// A waiting pod fits the node that was being drained.
    CapacityNeeded { pod: String },
    /// The node was measured idle, little of it is asked for, and its pods fit on others.
    Consolidated { idle: Duration, pods: usize, requested: Permille },
    /// The drain did not end before its deadline, or the agent gave it up.
    DrainGivenUp,
    /// The agent has drained the node and nothing came back to it.
    Drained { took: Duration },
    /// The Auto Scaling group terminates the instance.
    GroupTerminates { group: String },
    /// The agent's pod is older than the Node of this name that it is bound to.
    LeftOver { node: String },
    /// The group would fall below its minimum.
    MinimumReached { min: u32 },
    /// No group can make a node for the pod; one entry per group.
    NoGroupFits { groups: Vec<(String, Obstacle)> },
    /// The instance has no node (any more).
    NodeGone,
    /// Pods wait for a node.
    PodsPending { count: usize, first: String, longest: Duration },
    /// The worker group has fewer workers than its minimum.
    RayMinimum { min: u32 },
    /// More waits in the Ray cluster than may.
    RayQueue { waiting: u64 },
    /// Somebody asks for so many workers.
    RayReplicasAsked { by: String, replicas: u32 },
    /// Nothing has run on the Ray worker for so long, and nothing waits for it.
    RayWorkerIdle { idle: Duration },
    /// So many Ray workers leave.
    RayWorkersLeave { count: usize },
    /// Work waits in a Ray cluster for so many workers that are no pods yet, or in several.
    RayWorkersWanted { count: usize, first: String },
    /// The node was measured idle, little of it is asked for, and its pods end by themselves.
    RunToCompletion { idle: Duration, pods: usize, requested: Permille },
    /// By this model the pod fits a node that is there; the scheduler's word is awaited.
    SchedulerToPlace { node: String },
    /// A node the pod fits is on its way.
    NodeComing { group: String },
    /// The drain that somebody else asked for may begin; so many wait after it.
    Turn { left: usize },
    /// The node ran nothing but daemons and was measured idle.
    Unneeded { idle: Duration, empty: Duration },
}

/// Why a group makes no node for a pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Obstacle {
    /// Its last launches failed.
    Failing(Failing),
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
            Self::BufferWanted { .. } => "BufferWanted",
            Self::CapacityNeeded { .. } => "CapacityNeeded",
            Self::Consolidated { .. } => "Consolidated",
            Self::DrainGivenUp => "DrainGivenUp",
            Self::Drained { .. } => "Drained",
            Self::GroupTerminates { .. } => "GroupTerminates",
            Self::LeftOver { .. } => "LeftOver",
            Self::MinimumReached { .. } => "MinimumReached",
            Self::NoGroupFits { .. } => "NoGroupFits",
            Self::NodeGone => "NodeGone",
            Self::PodsPending { .. } => "PodsPending",
            Self::RayMinimum { .. } => "RayMinimum",
            Self::RayQueue { .. } => "RayQueue",
            Self::RayReplicasAsked { .. } => "RayReplicasAsked",
            Self::RayWorkerIdle { .. } => "RayWorkerIdle",
            Self::RayWorkersLeave { .. } => "RayWorkersLeave",
            Self::RayWorkersWanted { .. } => "RayWorkersWanted",
            Self::RunToCompletion { .. } => "RunToCompletion",
            Self::SchedulerToPlace { .. } => "SchedulerToPlace",
            Self::NodeComing { .. } => "NodeComing",
            Self::Turn { .. } => "Turn",
            Self::Unneeded { .. } => "Unneeded",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let short = |duration: &Duration| format_duration(*duration);
        match self {
            Self::BelowMinimum { min } => write!(f, "fewer nodes than the minimum of {min}"),
            Self::BufferWanted { count: 1, first } => write!(f, "buffer {first} wants room for a pod"),
            Self::BufferWanted { count, first } => write!(f, "buffers want room for {count} pods, first {first}"),
            Self::CapacityNeeded { pod } => write!(f, "pod {pod} waits and fits this node"),
            Self::Consolidated { idle, pods, requested } => {
                let pods = if *pods == 1 { "its pod fits".into() } else { format!("its {pods} pods fit") };
                write!(f, "measured idle for {}, {requested} of it asked for, {pods} on other nodes", short(idle))
            }
            Self::DrainGivenUp => f.write_str("the drain was given up"),
            Self::Drained { took } => write!(f, "drained in {}", short(took)),
            Self::GroupTerminates { group } => write!(f, "group {group} terminates its instance"),
            Self::NodeGone => f.write_str("it has no node"),
            Self::LeftOver { node } => {
                write!(f, "it is older than node {node}, which had a predecessor of that name, and so is its token")
            }
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
            Self::RayMinimum { min } => write!(f, "fewer workers than the minimum of {min}"),
            Self::RayQueue { waiting: 1 } => f.write_str("a request waits in Ray"),
            Self::RayQueue { waiting } => write!(f, "{waiting} requests wait in Ray"),
            Self::RayReplicasAsked { by, replicas } => write!(f, "RayWorkerGroup {by} asks for {replicas}"),
            Self::RayWorkerIdle { idle } => {
                write!(f, "nothing has run on it for {}, and nothing waits for it", short(idle))
            }
            Self::RayWorkersLeave { count: 0 } => f.write_str("the workers that were to go are gone"),
            Self::RayWorkersLeave { count: 1 } => f.write_str("one that was idle goes"),
            Self::RayWorkersLeave { count } => write!(f, "{count} that were idle go"),
            Self::RayWorkersWanted { count: 1, first } => write!(f, "work in Ray waits for a worker of {first}"),
            Self::RayWorkersWanted { count, first } => {
                write!(f, "work in Ray waits for {count} workers, first of {first}")
            }
            Self::RunToCompletion { idle, pods, requested } => {
                let pods = match pods {
                    1 => "its pod ends by itself".into(),
                    pods => format!("its {pods} pods end by themselves"),
                };
                write!(f, "measured idle for {}, {requested} of it asked for, {pods}", short(idle))
            }
            Self::SchedulerToPlace { node } => write!(f, "fits node {node}, the scheduler is to place it"),
            Self::NodeComing { group } => write!(f, "a node of group {group} is on its way"),
            Self::Turn { left: 0 } => f.write_str("its turn has come"),
            Self::Turn { left } => write!(f, "its turn has come, {left} more wait"),
            Self::Unneeded { idle, empty } => {
                write!(f, "measured idle for {} and without work for {}", short(idle), short(empty))
            }
        }
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failing(failing) => failing.fmt(f),
            Self::Misfit(misfit) => misfit.fmt(f),
            Self::Maximum(max) => write!(f, "at its maximum of {max}"),
            Self::Unobserved => f.write_str("not known to the Auto Scaling API (yet)"),
        }
    }
}

/// Why a node is still there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "stay")]
pub enum Stay {
    /// A worker that a Ray cluster waits for is to come to it.
    Anticipated { cluster: String, group: String },
    /// As many nodes drain as a budget lets (of the group, or of all). `until`: the end of its window.
    Budget { budget: String, group: Option<String>, most: u32, until: Option<Instant> },
    /// A PodDisruptionBudget lets one of its pods not be evicted now.
    Blocked { pod: String, budget: String, allowed: u32, healthy: u32, desired: u32 },
    /// One of its pods is under several PodDisruptionBudgets.
    BlockedTwice { pod: String, budgets: Vec<String> },
    /// A buffer would lack its room.
    Buffered { buffer: String },
    /// It was measured busy.
    Busy { signal: Signal },
    /// Somebody else has cordoned it.
    Cordoned,
    /// Not the coordinator has it drained, so it is not the coordinator's to terminate.
    DrainedFor { by: Trigger, why: String },
    /// It is being drained.
    Draining { deadline: Instant },
    /// Its last drain was given up.
    GivenUp { until: Instant },
    /// It has GPUs, and its agent sees none.
    GpuUnseen,
    /// The group would fall below its minimum.
    Minimum { min: u32 },
    /// One of its pods fits nowhere else.
    NoRoomElsewhere { pod: String },
    /// It belongs to no group of the configuration.
    NotOurs,
    /// Pods hold it.
    Occupied { pods: usize, first: String },
    /// A pod on it must not be moved.
    PodPinned { pod: String, pin: Pin },
    /// An annotation of the node asks for it.
    Protected { annotation: String },
    /// More of it is asked for than the threshold.
    Requested { share: Permille, below: Permille },
    /// Its last drain could not be asked for; it is tried again.
    Retried,
    /// It takes no more pods, and those on it are left to end.
    RunningOut { pods: usize, deadline: Instant },
    /// Its agent has not been heard for the report timeout.
    Silent,
    /// It is on its way to take pods.
    Starting,
    /// As many nodes drain as may at the same time.
    Turn { most: u32 },
    /// The Auto Scaling API has not told of its group yet.
    Undescribed,
    /// Its agent cannot say what it does.
    Unknown { missing: Missing },
    /// Nobody needs it, for not long enough yet.
    Unneeded { until: Instant },
    /// A waiting pod fits it.
    Wanted { pod: String },
}

impl Stay {
    /// A closed set of CamelCase words.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Anticipated { .. } => "Anticipated",
            Self::Budget { .. } => "Budget",
            Self::Blocked { .. } => "Blocked",
            Self::BlockedTwice { .. } => "BlockedTwice",
            Self::Buffered { .. } => "Buffered",
            Self::Busy { .. } => "Busy",
            Self::Cordoned => "Cordoned",
            Self::DrainedFor { .. } => "DrainedFor",
            Self::Draining { .. } => "Draining",
            Self::GivenUp { .. } => "GivenUp",
            Self::GpuUnseen => "GpuUnseen",
            Self::Minimum { .. } => "Minimum",
            Self::NoRoomElsewhere { .. } => "NoRoomElsewhere",
            Self::NotOurs => "NotOurs",
            Self::Occupied { .. } => "Occupied",
            Self::PodPinned { .. } => "PodPinned",
            Self::Protected { .. } => "Protected",
            Self::Requested { .. } => "Requested",
            Self::Retried => "Retried",
            Self::RunningOut { .. } => "RunningOut",
            Self::Silent => "Silent",
            Self::Starting => "Starting",
            Self::Turn { .. } => "Turn",
            Self::Undescribed => "Undescribed",
            Self::Unknown { .. } => "Unknown",
            Self::Unneeded { .. } => "Unneeded",
            Self::Wanted { .. } => "Wanted",
        }
    }
}

impl fmt::Display for Stay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anticipated { cluster, group } => {
                write!(f, "work in the Ray cluster {cluster} waits for a worker of {group}, which fits it")
            }
            Self::Budget { budget, group, most, until } => {
                let whose = group.as_ref().map(|group| format!(" of group {group}")).unwrap_or_default();
                let until = until.map(|until| format!(" until {until}")).unwrap_or_default();
                let how_many = match most {
                    0 => "no node drain".to_owned(),
                    1 => "one node drain at a time".to_owned(),
                    most => format!("{most} nodes drain at a time"),
                };
                write!(f, "it may go, but the budget {budget}{whose} lets {how_many}{until}")
            }
            Self::Blocked { pod, budget, allowed: 0, healthy, desired } => {
                let numbers = format!("{healthy} pods are healthy, {desired} must be");
                write!(f, "pod {pod} may not be evicted: PodDisruptionBudget {budget} allows none now ({numbers})")
            }
            Self::Blocked { pod, budget, allowed, .. } => {
                let taken = format!("the {allowed} that it allows are taken by pods of nodes that drain");
                write!(f, "pod {pod} may not be evicted: of PodDisruptionBudget {budget}, {taken}")
            }
            Self::BlockedTwice { pod, budgets } => {
                let budgets = budgets.join(", ");
                write!(f, "pod {pod} cannot be evicted: it is under several PodDisruptionBudgets ({budgets})")
            }
            Self::Buffered { buffer } => write!(f, "buffer {buffer} has its room on it"),
            Self::Busy { signal } => write!(f, "measured busy by its {signal}"),
            Self::Cordoned => f.write_str("somebody else has cordoned it"),
            Self::DrainedFor { by, why } => write!(f, "it is drained because of {by}: {why}"),
            Self::Draining { deadline } => write!(f, "it is being drained, until {deadline} at the latest"),
            Self::GivenUp { until } => write!(f, "its last drain was given up; not tried again before {until}"),
            Self::GpuUnseen => f.write_str("it has GPUs and its agent sees none, so nothing is known of their use"),
            Self::Minimum { min } => write!(f, "its group is at its minimum of {min}"),
            Self::NoRoomElsewhere { pod } => write!(f, "pod {pod} fits on no other node"),
            Self::NotOurs => f.write_str("it belongs to no group of the configuration"),
            Self::Occupied { pods: 1, first } => write!(f, "pod {first} holds it"),
            Self::Occupied { pods, first } => write!(f, "{pods} pods hold it, first {first}"),
            Self::PodPinned { pod, pin } => write!(f, "pod {pod} must not be moved: {pin}"),
            Self::Protected { annotation } => write!(f, "its annotation {annotation} asks for it"),
            Self::Requested { share, below } => write!(f, "{share} of it is asked for, not less than {below}"),
            Self::Retried => f.write_str("a call about it failed or is under way"),
            Self::RunningOut { pods, deadline } => {
                let pods = if *pods == 1 { "its pod".into() } else { format!("its {pods} pods") };
                write!(f, "it takes no more pods and waits for {pods} to end, until {deadline} at the latest")
            }
            Self::Silent => f.write_str("its agent is silent, so nothing is known of what it does"),
            Self::Starting => f.write_str("it is starting"),
            Self::Turn { most: 1 } => f.write_str("it may go, after the node that drains now"),
            Self::Turn { most } => write!(f, "it may go, after one of the {most} nodes that drain now"),
            Self::Undescribed => f.write_str("the Auto Scaling API has not told of its group yet"),
            Self::Unknown { missing } => write!(f, "its agent cannot tell what it does: {missing}"),
            Self::Unneeded { until } => write!(f, "nobody needs it; it may go at {until}"),
            Self::Wanted { pod } => write!(f, "the waiting pod {pod} fits it"),
        }
    }
}

/// What makes a pod one that is not moved for the sake of fewer nodes.
///
/// The rules, and their order, are Cluster Autoscaler's for drainability; `karpenter.sh/do-not-disrupt` is Karpenter's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Pin {
    DoNotDisrupt,
    /// A volume of the node's own: its content would be lost.
    LocalStorage,
    NotReplicated,
    NotSafeToEvict,
    /// `safe-to-evict: on-completion`: the node waits for its end.
    OnCompletion,
    /// Of kube-system, and on fewer nodes than all.
    System,
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::DoNotDisrupt => "its annotation karpenter.sh/do-not-disrupt says so",
            Self::LocalStorage => "it has a volume of the node's own",
            Self::NotReplicated => "no controller would replace it",
            Self::NotSafeToEvict => "its annotation cluster-autoscaler.kubernetes.io/safe-to-evict says so",
            Self::OnCompletion => "its annotation asks to wait for its end",
            Self::System => "it is of kube-system",
        })
    }
}
