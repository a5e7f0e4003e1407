//! What people are shown: one picture of the cluster and of the flow through it. A real cluster and a simulated one give
//! the same picture, so that metrics, the live page and the demo's drawings all read this.

use serde::{Deserialize, Serialize};

use crate::classify::{Class, Utilization};
use crate::launch::Failing;
use crate::price::Cost;
use crate::ray::{Problem, Refusal};
use crate::reason::{Reason, Stay};
use crate::resources::Resources;
use crate::time::Instant;

/// Everything at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Snapshot {
    pub now: Instant,
    pub cluster: Cluster,
    /// Worker groups of Ray, with their queues; empty: none is observed.
    pub ray: Vec<WorkerGroup>,
    /// Horizontal pod autoscalers; empty: none is observed.
    pub hpas: Vec<Hpa>,
    /// Since the picture's beginning.
    pub cost: Cost,
}

/// What the fleet knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Cluster {
    pub leading: bool,
    pub synced: bool,
    /// By name.
    pub groups: Vec<Group>,
    /// By name.
    pub nodes: Vec<Node>,
    /// Pods that the scheduler finds no node for, the longest waiting first.
    pub waiting: Vec<Waiting>,
    /// Ray clusters of the configuration.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ray: Vec<RayCluster>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Group {
    pub name: String,
    pub instance_type: String,
    /// Whether the Auto Scaling API has told of it.
    pub observed: bool,
    pub min: u32,
    pub max: u32,
    pub desired: Option<u32>,
    /// In service or on their way there, whether or not they are nodes yet.
    pub instances: u32,
    /// Why it is not counted on for new nodes now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failing: Option<Failing>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Node {
    pub name: String,
    pub uid: String,
    /// `None`: of no group of ours, or not yet known whose.
    pub group: Option<String>,
    pub ready: bool,
    pub unschedulable: bool,
    /// Asked to drain.
    pub draining: bool,
    pub drained: bool,
    /// `None`: nothing heard for the report timeout.
    pub class: Option<Class>,
    /// As last reported with the class.
    pub utilization: Option<Utilization>,
    /// Since when it has been busy without its GPUs, by its agent's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_waste: Option<Instant>,
    /// Why it is still there, as of the last decision; `None`: none was taken yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stays: Option<Stay>,
    pub allocatable: Resources,
    /// The sum over its pods.
    pub requested: Resources,
    pub pods: Vec<Pod>,
    /// Those of them that are workers of Ray, as far as Ray has told.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ray_workers: Vec<RayWorker>,
    /// Since when nothing has held it but idle workers of Ray, where that is so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_ray_only: Option<Instant>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pod {
    /// `NAMESPACE/NAME`
    pub name: String,
    /// Runs on every node, or belongs to the node itself: no reason to keep the node.
    pub daemon: bool,
    pub terminating: bool,
    pub requests: Resources,
}

/// A worker of Ray on a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RayWorker {
    /// `NAMESPACE/NAME`
    pub pod: String,
    /// The same of its Ray cluster.
    pub cluster: String,
    #[serde(flatten)]
    pub state: RayWorkerState,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "state")]
pub enum RayWorkerState {
    /// Something runs there, or objects are kept that somebody holds. In Ray's words.
    Busy {
        because: Vec<String>,
    },
    Draining,
    Idle {
        since: Instant,
    },
    /// Ray does not know it yet, or no longer.
    NotJoined,
    /// Its head tells nothing.
    Unknown,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Waiting {
    /// `NAMESPACE/NAME`
    pub pod: String,
    pub since: Instant,
    pub requests: Resources,
    /// What was last said about it.
    pub because: Option<Reason>,
}

/// A Ray cluster, as far as its head has told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RayCluster {
    /// `NAMESPACE/NAME`
    pub name: String,
    /// Whether its head answered last time.
    pub readable: bool,
    pub problem: Option<Problem>,
    pub read_at: Option<Instant>,
    /// Requests that wait in it; `None`: it has told nothing yet.
    pub waiting: Option<u64>,
    /// Workers that it needs and that are no pods yet.
    pub anticipated: u32,
    /// Its worker groups are those of its RayCluster, and there is none.
    #[serde(default)]
    pub without_object: bool,
    /// Worker groups whose replicas Ebb is to set.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<RayGroup>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RayGroup {
    pub name: String,
    /// As its RayCluster has it; `None`: it does not have it.
    pub replicas: Option<u32>,
    /// Why they are left alone.
    pub refusal: Option<Refusal>,
}

/// A coordinator's answer when it is asked for its cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// By the coordinator's clock.
    pub now: Instant,
    #[serde(flatten)]
    pub cluster: Cluster,
}

/// One group of Ray workers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkerGroup {
    pub name: String,
    pub tasks_queued: u32,
    pub tasks_running: u32,
    /// Worker pods that Ray's autoscaler asks for.
    pub wanted: u32,
    /// Worker pods that run.
    pub workers: u32,
}

/// One horizontal pod autoscaler, by its status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hpa {
    pub name: String,
    pub current: u32,
    pub desired: u32,
    /// Percent of what the pods request; can exceed 100. `None`: no metrics.
    pub cpu_percent: Option<u32>,
    pub memory_percent: Option<u32>,
}

/// Who acts, by the flow's levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Level {
    /// Work is submitted or completes.
    Workload,
    /// Level 1.
    Ray,
    /// Level 2.
    Hpa,
    /// Level 3: Ebb, and its agents.
    NodeAutoscaler,
    /// Level 4.
    AutoScaling,
    /// The scheduler and the kubelets: what the levels are for.
    Kubernetes,
}

impl Level {
    pub const ALL: [Self; 6] =
        [Self::Workload, Self::Ray, Self::Hpa, Self::NodeAutoscaler, Self::AutoScaling, Self::Kubernetes];

    /// For people.
    pub fn title(self) -> &'static str {
        match self {
            Self::Workload => "Workload",
            Self::Ray => "Ray autoscaler",
            Self::Hpa => "HPA",
            Self::NodeAutoscaler => "Ebb",
            Self::AutoScaling => "AWS Auto Scaling",
            Self::Kubernetes => "Kubernetes",
        }
    }
}

/// One thing that somebody did, in words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    pub at: Instant,
    pub level: Level,
    pub what: String,
    /// Empty where the deed says it all.
    pub because: String,
}
