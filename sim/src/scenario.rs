//! A scenario: a cluster with its policy, the work that comes to it, and what goes wrong.

use std::time::Duration;

use ebb_core::kubernetes::Toleration;
use ebb_core::policy::Policy;
use ebb_core::resources::Resources;
use ebb_core::time::Instant;
use ebb_core::units::Permille;

/// Everything that a run needs but its seed and the autoscaler.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// In snake case, as its file is named.
    pub name: String,
    /// What it shows, in a sentence or two.
    pub about: String,
    pub starts_at: Instant,
    pub duration: Duration,
    /// Availability zones of every Auto Scaling group.
    pub zones: Vec<String>,
    /// The coordinator's own configuration.
    pub policy: Policy,
    pub worker_groups: Vec<WorkerGroup>,
    pub jobs: Vec<Job>,
    pub disturbances: Vec<Disturbance>,
    pub times: Times,
}

/// Ray workers of one shape, each a pod.
#[derive(Clone, Debug)]
pub struct WorkerGroup {
    pub name: String,
    /// Of one worker.
    pub requests: Resources,
    pub tolerations: Vec<Toleration>,
    /// Tasks that one worker runs at the same time.
    pub slots: u32,
    /// Workers.
    pub min: u32,
    pub max: u32,
    pub scaled_by: ScaledBy,
    /// Of the worker's requests, what it uses without a task.
    pub base_cpu: Permille,
    pub base_memory: Permille,
    /// `maxUnavailable` of a PodDisruptionBudget over the group; `None`: there is no budget.
    pub max_unavailable: Option<u32>,
}

/// Who sets the number of a group's workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScaledBy {
    /// Ray's autoscaler alone, which picks the idle workers to remove.
    Ray,
    /// An HPA on CPU (70 %) and memory (80 %) alone.
    Hpa,
    /// Ray's demand is one more metric of the HPA, which takes the highest: the flow's levels 1 and 2 in a row.
    RayThroughHpa,
    /// Both write the same field, each as if it were alone.
    Both,
}

/// Tasks submitted to a worker group.
#[derive(Clone, Debug)]
pub struct Job {
    pub name: String,
    /// After the start.
    pub at: Duration,
    /// The worker group.
    pub group: String,
    pub tasks: u32,
    /// The tasks come evenly over this time; zero: all at once.
    pub over: Duration,
    pub task_time: Span,
    /// What a worker uses for all its slots busy, of its requests, beyond what it uses idle.
    pub cpu: Permille,
    pub memory: Permille,
}

/// Something that goes wrong, by plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Disturbance {
    /// The zone has no capacity for the Auto Scaling group.
    NoCapacity { group: String, zone: String, from: Duration, until: Duration },
    /// AWS takes back this many of the group's instances, the longest running first, with two minutes' notice.
    SpotReclaim { group: String, at: Duration, instances: u32 },
    /// The agent of one of the group's nodes, the longest running, says nothing.
    SilentAgent { group: String, from: Duration, until: Duration },
}

/// How long something takes: a log-normal distribution, cut at its 99th percentile; fixed where both are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub median: Duration,
    pub p95: Duration,
}

impl Span {
    pub const fn fixed(duration: Duration) -> Self {
        Self { median: duration, p95: duration }
    }

    pub const fn seconds(median: u64, p95: u64) -> Self {
        Self { median: Duration::from_secs(median), p95: Duration::from_secs(p95) }
    }
}

/// How long what the models do takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Times {
    /// From the desired capacity to an instance that has booted and whose kubelet starts to join.
    pub launch: Span,
    /// From the Node object to a node that is ready.
    pub ready: Span,
    /// From the call to an instance that is gone.
    pub terminate: Span,
    /// From bound to ready: image there, container and Ray worker start.
    pub pod_start: Span,
    /// From the deletion to a pod that is gone.
    pub pod_stop: Span,
    /// Between two rounds of Ray's autoscaler.
    pub ray_update: Duration,
    /// For how long a worker has no task before Ray removes it.
    pub ray_idle: Duration,
}

impl Default for Times {
    /// Launch, ready and terminate are the flow's typical durations (3 to 5 min, 30 to 60 s, 2 to 3 min); Ray's are its
    /// defaults (`AUTOSCALER_UPDATE_INTERVAL_S` 5 s, `idleTimeoutSeconds` 60 s).
    fn default() -> Self {
        Self {
            launch: Span::seconds(225, 290),
            ready: Span::seconds(42, 58),
            terminate: Span::seconds(145, 175),
            pod_start: Span::seconds(6, 12),
            pod_stop: Span::seconds(2, 5),
            ray_update: Duration::from_secs(5),
            ray_idle: Duration::from_secs(60),
        }
    }
}
