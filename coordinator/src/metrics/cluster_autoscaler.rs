//! The same facts under Cluster Autoscaler's names, for dashboards and alerts that people have already. Only on request:
//! beside a Cluster Autoscaler they would be counted twice.
//!
//! Names and labels are those of Cluster Autoscaler 1.36, `metrics/metrics.go`. Left out is what Ebb has no like of.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use ebb_core::fleet::{Action, Failure};
use ebb_core::reason::{Reason, Stay};
use ebb_core::view::Cluster;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::{Durations, Labels};

type Gauges = Family<[(&'static str, &'static str); 1], Gauge>;
type PerGroup = Family<[(&'static str, String); 1], Gauge>;

#[derive(Debug)]
pub(super) struct ClusterAutoscaler {
    cluster_safe_to_autoscale: Gauge,
    nodes_count: Gauges,
    node_groups_count: Gauges,
    unschedulable_pods_count: Gauges,
    unneeded_nodes_count: Gauge,
    node_group_min_count: PerGroup,
    node_group_max_count: PerGroup,
    node_group_target_count: PerGroup,
    node_group_healthiness: PerGroup,
    scaled_up_nodes: Counter,
    scaled_down_nodes: Labels<1>,
    failed_scale_ups: Labels<1>,
    errors: Labels<1>,
    function_duration: Durations,
    /// Why each node drains that does.
    draining: Mutex<HashMap<String, &'static str>>,
}

impl ClusterAutoscaler {
    pub(super) fn register(registry: &mut Registry) -> Self {
        // Cluster Autoscaler's own buckets, up to the quarter of an hour that its loop can take.
        let seconds = || Histogram::new([0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 20.0, 60.0, 300.0, 900.0]);
        let metrics = Self {
            cluster_safe_to_autoscale: Gauge::default(),
            nodes_count: Family::default(),
            node_groups_count: Family::default(),
            unschedulable_pods_count: Family::default(),
            unneeded_nodes_count: Gauge::default(),
            node_group_min_count: Family::default(),
            node_group_max_count: Family::default(),
            node_group_target_count: Family::default(),
            node_group_healthiness: Family::default(),
            scaled_up_nodes: Counter::default(),
            scaled_down_nodes: Family::default(),
            failed_scale_ups: Family::default(),
            errors: Family::default(),
            function_duration: Family::new_with_constructor(seconds),
            draining: Mutex::default(),
        };
        let theirs = registry.sub_registry_with_prefix("cluster_autoscaler");
        let help = "Whether the picture of the cluster is complete and live";
        theirs.register("cluster_safe_to_autoscale", help, metrics.cluster_safe_to_autoscale.clone());
        theirs.register("nodes_count", "Nodes by state", metrics.nodes_count.clone());
        theirs.register("node_groups_count", "Node groups", metrics.node_groups_count.clone());
        let help = "Pods that the scheduler finds no node for";
        theirs.register("unschedulable_pods_count", help, metrics.unschedulable_pods_count.clone());
        theirs.register("unneeded_nodes_count", "Nodes that nobody needs", metrics.unneeded_nodes_count.clone());
        let help = "Least number of nodes of the group";
        theirs.register("node_group_min_count", help, metrics.node_group_min_count.clone());
        let help = "Greatest number of nodes of the group";
        theirs.register("node_group_max_count", help, metrics.node_group_max_count.clone());
        let help = "Desired capacity of the group";
        theirs.register("node_group_target_count", help, metrics.node_group_target_count.clone());
        let help = "Whether the group is counted on for new nodes";
        theirs.register("node_group_healthiness", help, metrics.node_group_healthiness.clone());
        theirs.register("scaled_up_nodes", "Nodes that were asked for", metrics.scaled_up_nodes.clone());
        theirs.register("scaled_down_nodes", "Nodes that were removed, by why", metrics.scaled_down_nodes.clone());
        theirs.register("failed_scale_ups", "Scale-ups that failed", metrics.failed_scale_ups.clone());
        theirs.register("errors", "Calls that failed", metrics.errors.clone());
        theirs.register("function_duration_seconds", "Time a decision took", metrics.function_duration.clone());
        metrics
    }

    pub(super) fn decided(&self, took: Duration) {
        self.function_duration.get_or_create(&[("function", "main")]).observe(took.as_secs_f64());
    }

    pub(super) fn decision(&self, taken: &Action) {
        let Action::Drain { node, because, .. } = taken else { return };
        let with_pods = matches!(because, Reason::Consolidated { .. } | Reason::RunToCompletion { .. });
        let reason = if with_pods { "underutilized" } else { "empty" };
        self.draining.lock().expect("nobody panics while holding it").insert(node.clone(), reason);
    }

    pub(super) fn call(&self, called: &Action, failure: Option<Failure>) {
        match (called, failure) {
            (Action::Launch { from, to, .. } | Action::SetDesired { from, to, .. }, None) => {
                self.scaled_up_nodes.inc_by((to - from).into());
            }
            (Action::Launch { .. } | Action::SetDesired { .. }, Some(_)) => {
                self.failed_scale_ups.get_or_create(&[("reason", "cloudProviderError")]).inc();
            }
            (Action::Terminate { node, .. }, None) => {
                let reason = self.draining.lock().expect("nobody panics while holding it").remove(node);
                // A drain that another replica began: that is not remembered.
                self.scaled_down_nodes.get_or_create(&[("reason", reason.unwrap_or("empty"))]).inc();
            }
            (Action::CancelDrain { node, .. }, None) => {
                self.draining.lock().expect("nobody panics while holding it").remove(node);
            }
            _ => {}
        }
        if failure.is_some() {
            let aws = matches!(
                called,
                Action::CompleteLifecycle { .. }
                    | Action::Describe { .. }
                    | Action::Heartbeat { .. }
                    | Action::Launch { .. }
                    | Action::SetDesired { .. }
                    | Action::Terminate { .. }
            );
            self.errors.get_or_create(&[("type", if aws { "cloudProviderError" } else { "apiCallError" })]).inc();
        }
    }

    pub(super) fn show(&self, view: &Cluster) {
        let count = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.cluster_safe_to_autoscale.set(view.synced.into());
        let ready = view.nodes.iter().filter(|node| node.ready).count();
        let starting = view.nodes.iter().filter(|node| matches!(node.stays, Some(Stay::Starting))).count();
        let instances: usize = view.groups.iter().map(|group| group.instances as usize).sum();
        let known = view.nodes.iter().filter(|node| node.group.is_some()).count();
        let unready = view.nodes.len().saturating_sub(ready + starting);
        for (state, nodes) in [
            ("ready", ready),
            ("unready", unready),
            ("notStarted", starting),
            ("unregistered", instances.saturating_sub(known)),
        ] {
            self.nodes_count.get_or_create(&[("state", state)]).set(count(nodes));
        }
        self.node_groups_count.get_or_create(&[("node_group_type", "autoscaled")]).set(count(view.groups.len()));
        self.unschedulable_pods_count.get_or_create(&[("type", "unschedulable")]).set(count(view.waiting.len()));
        let unneeded = |stay: &Stay| {
            matches!(
                stay,
                Stay::Budget { .. }
                    | Stay::Unneeded { .. }
                    | Stay::Turn { .. }
                    | Stay::Draining { .. }
                    | Stay::RunningOut { .. }
            )
        };
        self.unneeded_nodes_count
            .set(count(view.nodes.iter().filter(|it| it.stays.as_ref().is_some_and(unneeded)).count()));
        for group in &view.groups {
            let set = |family: &PerGroup, value: i64| {
                family.get_or_create(&[("node_group", group.name.clone())]).set(value);
            };
            set(&self.node_group_min_count, group.min.into());
            set(&self.node_group_max_count, group.max.into());
            // Zero, not unknown, is what Cluster Autoscaler says of a group that it has not seen.
            set(&self.node_group_target_count, group.desired.unwrap_or(0).into());
            set(&self.node_group_healthiness, group.failing.is_none().into());
        }
    }
}
