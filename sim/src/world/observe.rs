//! What the world's onlooker writes down: steps in words, milestones, sums. Nothing here changes the world.

use std::collections::BTreeMap;
use std::time::Duration;

use ebb_core::fleet::{self, Action};
use ebb_core::policy::Policy;
use ebb_core::price::{self, Dollars, Meter};
use ebb_core::reason::Reason;
use ebb_core::schedule::{Misfit, Place};
use ebb_core::time::Instant;
use ebb_core::view::{self, Level, Snapshot, Step};

use super::{Happening, World, millis};
use crate::auto_scaling::Lifecycle;
use crate::ray::Task;
use crate::run::{GroupTotals, Milestones, Run, Totals, Waits};
use crate::scenario::{Scenario, WorkerGroup};

/// Pods that the scheduler found no node for, shortly after one another.
struct Refusals {
    since: Instant,
    pods: u32,
    /// Why each node refused the first of them: reasons and how many nodes have them.
    first: BTreeMap<Misfit, u32>,
}

/// Pods refused within this time are told of together.
const TOGETHER: Duration = Duration::from_secs(1);

pub(super) struct Observed {
    pub(super) steps: Vec<Step>,
    snapshots: Vec<Snapshot>,
    /// By worker group.
    milestones: Vec<Milestones>,
    meter: Meter,
    meters: Vec<Meter>,
    groups: Vec<GroupTotals>,
    pub(super) pod_waits: Vec<u64>,
    task_waits: BTreeMap<u64, u64>,
    task_times: Vec<u64>,
    tasks_submitted: u64,
    pub(super) tasks_lost: u64,
    pub(super) evictions: u64,
    idle_node_seconds: u64,
    /// When each node's agent last found it idle.
    pub(super) idle_at: BTreeMap<String, Instant>,
    /// Refused and not yet told of.
    refusals: Option<Refusals>,
    /// Nodes that are the first of their group to come, and to go.
    first_up: Vec<Option<String>>,
    first_down: Vec<Option<String>>,
    pub(super) max_parallel_drains: usize,
    pub(super) tick_second: u64,
    pub(super) ticks: u32,
}

impl Observed {
    pub(super) fn new(scenario: &Scenario, policy: &Policy) -> Self {
        let groups = scenario.policy.groups.len();
        let milestones = scenario.worker_groups.iter().map(|group| Milestones {
            auto_scaling_group: home_of(scenario, group).unwrap_or_default(),
            ..Milestones::default()
        });
        Self {
            steps: Vec::new(),
            snapshots: Vec::new(),
            milestones: milestones.collect(),
            meter: Meter::new(scenario.starts_at),
            meters: vec![Meter::new(scenario.starts_at); groups],
            groups: vec![GroupTotals::default(); groups],
            pod_waits: Vec::new(),
            task_waits: BTreeMap::new(),
            task_times: Vec::new(),
            tasks_submitted: 0,
            tasks_lost: 0,
            evictions: 0,
            idle_node_seconds: 0,
            idle_at: BTreeMap::new(),
            refusals: None,
            first_up: vec![None; groups],
            first_down: vec![None; groups],
            max_parallel_drains: policy.scale_down.max_parallel_drains as usize,
            tick_second: 0,
            ticks: 0,
        }
    }

    pub(super) fn step(&mut self, at: Instant, level: Level, what: String, because: String) {
        self.steps.push(Step { at, level, what, because });
    }

    pub(super) fn refused(&mut self, now: Instant, group: usize, because: &BTreeMap<Misfit, u32>) {
        let marks = &mut self.milestones[group];
        if marks.submitted.is_some() {
            marks.pods_pending.get_or_insert(now);
        }
        let refusals = self.refusals.get_or_insert_with(|| Refusals { since: now, pods: 0, first: because.clone() });
        refusals.pods += 1;
    }

    pub(super) fn task_started(&mut self, now: Instant, task: &Task) {
        self.task_waits.insert(task.id, millis(now.since(task.submitted)));
    }

    pub(super) fn task_done(&mut self, now: Instant, task: &Task) {
        self.task_times.push(millis(now.since(task.submitted)));
    }
}

/// The Auto Scaling group whose nodes suit these workers best: no GPU for workers that ask for none.
fn home_of(scenario: &Scenario, workers: &WorkerGroup) -> Option<String> {
    let pod = ebb_core::kubernetes::Pod {
        requests: workers.requests.clone(),
        tolerations: workers.tolerations.clone(),
        ..Default::default()
    };
    let fits = |group: &&(&String, &ebb_core::policy::Group)| {
        let free = group.1.allocatable.clone();
        Place { name: None, labels: &group.1.labels, taints: &group.1.taints, free, zones: &[] }.admits(&pod).is_ok()
    };
    let suitable = scenario.policy.groups.iter().collect::<Vec<_>>();
    let suitable = suitable.iter().filter(fits);
    suitable.min_by_key(|(_, group)| group.allocatable.has_gpu()).map(|(name, _)| (*name).clone())
}

impl World<'_> {
    fn marks_of(&mut self, group: usize) -> impl Iterator<Item = &mut Milestones> {
        let name = &self.groups[group].name;
        self.observed.milestones.iter_mut().filter(move |marks| marks.auto_scaling_group == *name)
    }

    /// Tells of refused pods once they have come together.
    pub(super) fn tell_of_refusals(&mut self) {
        let Some(told) = self.observed.refusals.take_if(|told| self.now.since(told.since) >= TOGETHER) else { return };
        let plural = if told.pods == 1 { "pod" } else { "pods" };
        let causes = told.first.iter().map(|(misfit, nodes)| format!("{nodes} × {misfit}"));
        let because = match told.first.is_empty() {
            true => "there is no node".to_owned(),
            false => format!("nodes: {}", causes.collect::<Vec<_>>().join(", ")),
        };
        let what = format!("finds no node for {} {plural}", told.pods);
        self.observed.step(told.since, Level::Kubernetes, what, because);
    }

    pub(super) fn observe_submitted(&mut self, job: usize, group: usize, tasks: u32) {
        let now = self.now;
        self.observed.tasks_submitted += u64::from(tasks);
        self.observed.milestones[group].submitted.get_or_insert(now);
        let scenario = self.scenario;
        let job = &scenario.jobs[job];
        if tasks == job.tasks {
            let what = format!("{} submits {tasks} tasks to {}", job.name, job.group);
            self.step(Level::Workload, what, "");
        } else if now == scenario.starts_at + job.at {
            let what = format!("{} begins to submit {} tasks to {}", job.name, job.tasks, job.group);
            self.step(Level::Workload, what, "");
        }
    }

    pub(super) fn observe_all_done(&mut self, group: usize) {
        let now = self.now;
        let marks = &mut self.observed.milestones[group];
        if marks.tasks_done.is_none() {
            marks.tasks_done = Some(now);
            let what = format!("all tasks of {} are done", self.scenario.worker_groups[group].name);
            self.step(Level::Workload, what, "");
        }
    }

    pub(super) fn observe_ray(&mut self, group: usize, up: bool) {
        let now = self.now;
        let marks = &mut self.observed.milestones[group];
        if up && marks.submitted.is_some() {
            marks.ray_asked.get_or_insert(now);
            (marks.ray_asked_fewer, marks.hpa_scaled_down) = (None, None);
        } else if !up {
            marks.ray_asked_fewer.get_or_insert(now);
            marks.ray_settled = Some(now);
        }
    }

    pub(super) fn observe_hpa(&mut self, group: usize, up: bool) {
        let now = self.now;
        let marks = &mut self.observed.milestones[group];
        if up && marks.submitted.is_some() {
            marks.hpa_scaled.get_or_insert(now);
        } else if !up && marks.ray_asked_fewer.is_some() {
            marks.hpa_scaled_down.get_or_insert(now);
        }
    }

    pub(super) fn observe_workers_ready(&mut self, group: usize) {
        let now = self.now;
        let marks = &self.observed.milestones[group];
        if marks.node_ready.is_none() || marks.pods_running.is_some() {
            return;
        }
        let ready = |state: &super::PodState| state.group != Some(group) || state.ready_since.is_some();
        if self.pods.values().all(ready) {
            self.observed.milestones[group].pods_running = Some(now);
            let what = format!("all workers of {} run", self.scenario.worker_groups[group].name);
            self.step(Level::Kubernetes, what, "");
        }
    }

    /// What one look of the autoscaler led to.
    pub(super) fn observe_decisions(&mut self, actions: &[Action]) {
        self.observed.steps.extend(fleet::steps(self.now, actions));
    }

    pub(super) fn observe_capacity_asked(&mut self, group: usize, because: &Reason) {
        let now = self.now;
        if matches!(because, Reason::PodsPending { .. }) {
            for marks in self.marks_of(group).filter(|marks| marks.pods_pending.is_some()) {
                marks.capacity_asked.get_or_insert(now);
            }
        }
    }

    pub(super) fn observe_instances(&mut self, group: usize) {
        let now = self.now;
        let count = self.groups[group].live();
        let price = |group: &str| price::per_hour(&self.scenario.policy.groups[group].instance_type);
        self.observed.meters[group].set(now, [(count, price(&self.groups[group].name))]);
        let all: Vec<_> = self.groups.iter().map(|group| (group.live(), price(&group.name))).collect();
        self.observed.meter.set(now, all);
        let totals = &mut self.observed.groups[group];
        totals.peak = totals.peak.max(count);
        let min = self.groups[group].min;
        if count == min && self.groups[group].instances.iter().all(|found| found.lifecycle == Lifecycle::InService) {
            for marks in self.marks_of(group).filter(|marks| marks.drain_asked.is_some()) {
                marks.at_minimum.get_or_insert(now);
            }
        }
    }

    pub(super) fn observe_joined(&mut self, group: usize, node: &str) {
        let now = self.now;
        self.observed.groups[group].launched += 1;
        let mut first = false;
        for marks in self.marks_of(group).filter(|marks| marks.capacity_asked.is_some()) {
            first |= marks.instance_launched.is_none();
            marks.instance_launched.get_or_insert(now);
        }
        if first {
            self.observed.first_up[group] = Some(node.to_owned());
        }
        let what = format!("{node} joins {}", self.groups[group].name);
        self.step(Level::AutoScaling, what, "the instance has booted");
    }

    pub(super) fn observe_node_ready(&mut self, node: &str) {
        let now = self.now;
        let Some(group) = self.nodes.get(node).map(|state| state.group) else { return };
        if self.observed.first_up[group].as_deref() == Some(node) {
            for marks in self.marks_of(group).filter(|marks| marks.instance_launched.is_some()) {
                marks.node_ready.get_or_insert(now);
            }
        }
        self.step(Level::Kubernetes, format!("{node} is ready"), "");
    }

    pub(super) fn observe_drain(&mut self, group: usize, node: &str, because: &Reason) {
        let now = self.now;
        let unneeded = match because {
            Reason::Unneeded { idle, empty } => now.before(*idle.min(empty)),
            _ => now,
        };
        let mut first = false;
        for marks in self.marks_of(group).filter(|marks| marks.tasks_done.is_some()) {
            first |= marks.drain_asked.is_none();
            marks.node_unneeded.get_or_insert(unneeded);
            marks.drain_asked.get_or_insert(now);
        }
        if first {
            self.observed.first_down[group] = Some(node.to_owned());
        }
        self.check_drains();
    }

    pub(super) fn observe_drained(&mut self, node: &str) {
        let now = self.now;
        self.step(Level::NodeAutoscaler, format!("{node} is drained"), "its agent found no pod left but daemons");
        let Some(group) = self.nodes.get(node).map(|state| state.group) else { return };
        if self.observed.first_down[group].as_deref() == Some(node) {
            self.marks_of(group).filter(|marks| marks.drain_asked.is_some()).for_each(|marks| {
                marks.drained.get_or_insert(now);
            });
        }
    }

    pub(super) fn observe_terminating(&mut self, group: usize, node: &str) {
        self.observed.groups[group].terminated += 1;
        let what = format!("terminates the instance of {node}");
        let desired = self.groups[group].desired;
        self.step(Level::AutoScaling, what, format!("{} is at {desired} now", self.groups[group].name));
    }

    pub(super) fn observe_node_gone(&mut self, group: usize, node: &str) {
        let now = self.now;
        if self.observed.first_down[group].as_deref() == Some(node) {
            self.marks_of(group).filter(|marks| marks.drained.is_some()).for_each(|marks| {
                marks.terminated.get_or_insert(now);
            });
        }
        self.step(Level::Kubernetes, format!("{node} is gone"), "its instance is terminated");
    }

    /// With each sample: was the machine of use?
    pub(super) fn observe_sample(&mut self, node: &str, idle: bool, every: Duration) {
        if idle {
            self.observed.idle_at.insert(node.to_owned(), self.now);
        }
        let Some(state) = self.nodes.get(node) else { return };
        let works = |uid: &String| {
            let group = self.pods.get(uid).and_then(|pod| pod.group);
            group.is_some_and(|group| !self.workers[group].ray.tasks_of(uid).is_empty())
        };
        if !state.pods.iter().any(works) {
            self.observed.idle_node_seconds += every.as_secs();
        }
    }

    pub(super) fn snapshot(&mut self) {
        let Some(every) = self.options.snapshot_every else { return };
        self.after(every, Happening::Snapshot);
        let Some(autoscaler) = &self.coordinator.autoscaler else { return };
        let groups = self.scenario.worker_groups.iter().zip(&self.workers);
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let ray = groups.clone().map(|(group, workers)| view::WorkerGroup {
            name: group.name.clone(),
            tasks_queued: count(workers.ray.queued()),
            tasks_running: count(workers.ray.running()),
            wanted: if workers.hpa.is_some() { workers.demand } else { workers.replicas },
            workers: count(workers.ray.workers()),
        });
        let snapshot = Snapshot {
            now: self.now,
            cluster: autoscaler.view(self.now),
            ray: ray.collect(),
            hpas: groups.filter_map(|(_, workers)| workers.shown.clone()).collect(),
            cost: self.observed.meter.cost(self.now),
        };
        self.observed.snapshots.push(snapshot);
    }

    pub(super) fn finish(mut self) -> Run {
        self.tell_of_refusals();
        let now = self.now;
        let lasted = millis(self.scenario.duration);
        let mut observed = self.observed;
        observed.steps.sort_by_key(|step| step.at);
        let mut groups = BTreeMap::new();
        for ((group, mut totals), mut meter) in self.groups.iter().zip(observed.groups).zip(observed.meters) {
            totals.cost = meter.cost(now);
            let price = price::per_hour(&self.scenario.policy.groups[&group.name].instance_type);
            totals.fixed_size = price.map(|price| {
                let micros = u128::from(price.micros()) * u128::from(totals.peak) * u128::from(lasted) / 3_600_000;
                Dollars::from_micros(u64::try_from(micros).unwrap_or(u64::MAX))
            });
            groups.insert(group.name.clone(), totals);
        }
        let worked = self.scenario.worker_groups.iter().zip(observed.milestones);
        let milestones = worked.filter(|(_, marks)| marks.submitted.is_some());
        Run {
            scenario: self.scenario.name.clone(),
            seed: self.options.seed,
            started: self.scenario.starts_at,
            ended: now,
            steps: observed.steps,
            snapshots: observed.snapshots,
            milestones: milestones.map(|(group, marks)| (group.name.clone(), marks)).collect(),
            totals: Totals {
                cost: observed.meter.cost(now),
                idle_node_seconds: observed.idle_node_seconds,
                groups,
                task_wait: Waits::of(observed.task_waits.into_values().collect()),
                task_done: Waits::of(observed.task_times),
                pod_wait: Waits::of(observed.pod_waits),
                tasks_submitted: observed.tasks_submitted,
                tasks_lost: observed.tasks_lost,
                evictions: observed.evictions,
                pods_waiting: self.pods.values().filter(|state| state.pod.waits_since().is_some()).count() as u64,
                happenings: self.entries,
            },
        }
    }
}
