//! What `/metrics` shows. Gauges are recomputed from the fleet's picture at every scrape, so that what left falls away.

mod cluster_autoscaler;

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use ebb_core::classify::Class;
use ebb_core::fleet::{Action, Failure};
use ebb_core::ray::Problem;
use ebb_core::view::{Cluster, Node};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use cluster_autoscaler::ClusterAutoscaler;

type Labels<const N: usize> = Family<[(&'static str, &'static str); N], Counter>;
type PerGroup = Family<[(&'static str, String); 1], Gauge<f64, AtomicU64>>;
type Durations = Family<[(&'static str, &'static str); 1], Histogram, fn() -> Histogram>;

/// What became of a report, or of a stream before its first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    Accepted,
    Malformed,
    TooFast,
    Unauthenticated,
    Unavailable,
    UnknownNode,
    WrongNode,
}

impl Told {
    fn name(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Malformed => "malformed",
            Self::TooFast => "too_fast",
            Self::Unauthenticated => "unauthenticated",
            Self::Unavailable => "unavailable",
            Self::UnknownNode => "unknown_node",
            Self::WrongNode => "wrong_node",
        }
    }
}

/// What a Ray head said to draining one of its nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RayDrain {
    Accepted,
    /// It was not reached, or made no sense.
    Failed,
    Refused,
}

/// What became of an agent's request to write for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Brokered {
    /// Written.
    Done,
    /// The API server said something else.
    Answered,
    Refused,
    Unauthenticated,
    Malformed,
    Unavailable,
}

impl Brokered {
    fn name(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Answered => "answered",
            Self::Refused => "refused",
            Self::Unauthenticated => "unauthenticated",
            Self::Malformed => "malformed",
            Self::Unavailable => "unavailable",
        }
    }
}

#[derive(Debug)]
pub struct Metrics {
    decisions: Labels<2>,
    decision_duration: Histogram,
    calls: Labels<2>,
    aws_calls: Labels<2>,
    call_duration: Durations,
    reports: Labels<1>,
    brokered: Labels<2>,
    streams: Gauge,
    leading: Gauge,
    synced: Gauge,
    pods_waiting: Gauge,
    nodes: Family<[(&'static str, &'static str); 1], Gauge>,
    nodes_draining: Gauge,
    nodes_gpu_waste: Gauge,
    group_observed: PerGroup,
    group_failing: PerGroup,
    group_min: PerGroup,
    group_max: PerGroup,
    group_desired: PerGroup,
    group_instances: PerGroup,
    ray_drains: Labels<1>,
    ray_polls: Labels<1>,
    ray_up: PerGroup,
    ray_waiting_requests: PerGroup,
    ray_anticipated_workers: PerGroup,
    cluster_autoscaler: Option<ClusterAutoscaler>,
}

impl Metrics {
    /// The same facts under Cluster Autoscaler's names as well.
    pub fn register_both(registry: &mut Registry) -> Self {
        Self { cluster_autoscaler: Some(ClusterAutoscaler::register(registry)), ..Self::register(registry) }
    }

    pub fn register(registry: &mut Registry) -> Self {
        let decision_seconds = || Histogram::new([1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0]);
        let metrics = Self {
            decisions: Family::default(),
            decision_duration: decision_seconds(),
            calls: Family::default(),
            aws_calls: Family::default(),
            call_duration: Family::new_with_constructor(|| Histogram::new([0.01, 0.03, 0.1, 0.3, 1.0, 3.0])),
            reports: Family::default(),
            brokered: Family::default(),
            streams: Gauge::default(),
            leading: Gauge::default(),
            synced: Gauge::default(),
            pods_waiting: Gauge::default(),
            nodes: Family::default(),
            nodes_draining: Gauge::default(),
            nodes_gpu_waste: Gauge::default(),
            group_observed: Family::default(),
            group_failing: Family::default(),
            group_min: Family::default(),
            group_max: Family::default(),
            group_desired: Family::default(),
            group_instances: Family::default(),
            ray_drains: Family::default(),
            ray_polls: Family::default(),
            ray_up: Family::default(),
            ray_waiting_requests: Family::default(),
            ray_anticipated_workers: Family::default(),
            cluster_autoscaler: None,
        };
        let ebb = registry.sub_registry_with_prefix("ebb_coordinator");
        ebb.register("decisions", "Decisions by action and reason", metrics.decisions.clone());
        let help = "Time the rules took for one event";
        ebb.register_with_unit("decision_duration", help, Unit::Seconds, metrics.decision_duration.clone());
        ebb.register("calls", "Actions carried out at AWS and the API server, by result", metrics.calls.clone());
        ebb.register("aws_calls", "Calls of the AWS API by operation and result", metrics.aws_calls.clone());
        let help = "Time such a call took";
        ebb.register_with_unit("call_duration", help, Unit::Seconds, metrics.call_duration.clone());
        ebb.register("reports", "Agents' reports by what became of them", metrics.reports.clone());
        let help = "Writes that agents asked for (agent.rights: brokered), by what became of them";
        ebb.register("brokered", help, metrics.brokered.clone());
        ebb.register("streams", "Agents connected", metrics.streams.clone());
        ebb.register("leading", "Whether this replica leads", metrics.leading.clone());
        ebb.register("synced", "Whether the picture of the cluster is complete and live", metrics.synced.clone());
        ebb.register("pods_waiting", "Pods the scheduler finds no node for", metrics.pods_waiting.clone());
        ebb.register("nodes", "Nodes by what they were last reported to be", metrics.nodes.clone());
        ebb.register("nodes_draining", "Nodes with a drain intent", metrics.nodes_draining.clone());
        ebb.register("nodes_gpu_waste", "Nodes that are busy without their GPUs", metrics.nodes_gpu_waste.clone());
        let help = "Whether the Auto Scaling API knows the group";
        ebb.register("group_observed", help, metrics.group_observed.clone());
        let help = "Whether the group is not counted on for new nodes, because its launches fail";
        ebb.register("group_failing", help, metrics.group_failing.clone());
        ebb.register("group_min", "Least number of nodes, by configuration and group", metrics.group_min.clone());
        ebb.register("group_max", "Greatest number of nodes, by configuration and group", metrics.group_max.clone());
        ebb.register("group_desired", "Desired capacity", metrics.group_desired.clone());
        ebb.register("group_instances", "Instances in service or on their way", metrics.group_instances.clone());
        ebb.register(
            "ray_drains",
            "Ray workers whose heads were asked to drain them, by result",
            metrics.ray_drains.clone(),
        );
        ebb.register("ray_polls", "Questions to Ray clusters' heads by result", metrics.ray_polls.clone());
        ebb.register("ray_up", "Whether the Ray cluster's head answered the last question", metrics.ray_up.clone());
        let help = "Tasks, actors and placement groups' bundles that wait in the Ray cluster";
        ebb.register("ray_waiting_requests", help, metrics.ray_waiting_requests.clone());
        let help = "Workers that the Ray cluster needs and that are no pods yet";
        ebb.register("ray_anticipated_workers", help, metrics.ray_anticipated_workers.clone());
        metrics
    }

    pub fn decision(&self, taken: &Action) {
        self.cluster_autoscaler.iter().for_each(|theirs| theirs.decision(taken));
        if let Some(because) = taken.because() {
            self.decisions.get_or_create(&[("action", taken.name()), ("reason", because.name())]).inc();
        }
    }

    pub fn decided(&self, took: Duration) {
        self.decision_duration.observe(took.as_secs_f64());
        self.cluster_autoscaler.iter().for_each(|theirs| theirs.decided(took));
    }

    pub fn call(&self, called: &Action, failure: Option<Failure>, took: Duration) {
        let (call, result) = (("call", called.name()), failure.map_or("ok", Failure::name));
        self.calls.get_or_create(&[call, ("result", result)]).inc();
        self.call_duration.get_or_create(&[call]).observe(took.as_secs_f64());
        self.cluster_autoscaler.iter().for_each(|theirs| theirs.call(called, failure));
    }

    /// An action can take several; a call that was given up for its time is not seen here.
    pub fn aws_call(&self, operation: &'static str, failure: Option<Failure>) {
        let result = failure.map_or("ok", Failure::name);
        self.aws_calls.get_or_create(&[("operation", operation), ("result", result)]).inc();
    }

    pub fn report(&self, told: Told) {
        self.reports.get_or_create(&[("result", told.name())]).inc();
    }

    pub fn brokered(&self, call: &'static str, result: Brokered) {
        self.brokered.get_or_create(&[("call", call), ("result", result.name())]).inc();
    }

    pub fn ray_drain(&self, result: RayDrain) {
        let name = match result {
            RayDrain::Accepted => "accepted",
            RayDrain::Failed => "failed",
            RayDrain::Refused => "refused",
        };
        self.ray_drains.get_or_create(&[("result", name)]).inc();
    }

    /// `None`: it answered.
    pub fn ray_poll(&self, problem: Option<Problem>) {
        self.ray_polls.get_or_create(&[("result", problem.map_or("ok", Problem::name))]).inc();
    }

    /// Counts a stream for as long as the guard lives.
    pub fn stream(&self) -> impl Drop + Send + 'static {
        struct Open(Gauge);
        impl Drop for Open {
            fn drop(&mut self) {
                self.0.dec();
            }
        }
        self.streams.inc();
        Open(self.streams.clone())
    }

    pub fn show(&self, view: &Cluster) {
        self.cluster_autoscaler.iter().for_each(|theirs| theirs.show(view));
        self.leading.set(view.leading.into());
        self.synced.set(view.synced.into());
        self.pods_waiting.set(i64::try_from(view.waiting.len()).unwrap_or(i64::MAX));
        self.nodes_draining.set(view.nodes.iter().filter(|node| node.draining).map(|_| 1).sum());
        let mut classes = BTreeMap::from(["busy", "idle", "silent", "unknown"].map(|class| (class, 0)));
        for node in &view.nodes {
            *classes.entry(class(node)).or_default() += 1;
        }
        for (class, nodes) in classes {
            self.nodes.get_or_create(&[("class", class)]).set(nodes);
        }
        let wasted = view.nodes.iter().filter(|node| node.gpu_waste.is_some()).count();
        self.nodes_gpu_waste.set(i64::try_from(wasted).unwrap_or(i64::MAX));
        // Groups come from the configuration, so none ever leaves.
        for group in &view.groups {
            let set = |family: &PerGroup, value: f64| {
                family.get_or_create(&[("group", group.name.clone())]).set(value);
            };
            set(&self.group_observed, u8::from(group.observed).into());
            set(&self.group_failing, u8::from(group.failing.is_some()).into());
            set(&self.group_min, group.min.into());
            set(&self.group_max, group.max.into());
            // Not known is not zero.
            set(&self.group_desired, group.desired.map_or(f64::NAN, f64::from));
            set(&self.group_instances, group.instances.into());
        }
        for cluster in &view.ray {
            let set = |family: &PerGroup, value: f64| {
                family.get_or_create(&[("cluster", cluster.name.clone())]).set(value);
            };
            set(&self.ray_up, u8::from(cluster.readable).into());
            #[expect(clippy::cast_precision_loss, reason = "it is a float on the wire")]
            set(&self.ray_waiting_requests, cluster.waiting.map_or(f64::NAN, |waiting| waiting as f64));
            set(&self.ray_anticipated_workers, cluster.anticipated.into());
        }
    }
}

fn class(node: &Node) -> &'static str {
    match node.class {
        None => "silent",
        Some(Class::Busy { .. }) => "busy",
        Some(Class::Idle { .. }) => "idle",
        Some(Class::Unknown { .. }) => "unknown",
    }
}

#[cfg(test)]
mod tests;
