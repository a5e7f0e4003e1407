//! Worker groups: their tasks, their pods, and who sets how many there are.

use std::time::Duration;

use ebb_core::kubernetes::{Controller, Pod};
use ebb_core::time::{Instant, format_duration};
use ebb_core::units::Permille;
use ebb_core::view::{self, Level};

use super::{Happening, METRICS_RESOLUTION, PodState, World};
use crate::hpa::{self, Hpa};
use crate::ray::{Ray, Task};
use crate::scenario::{ScaledBy, Scenario, WorkerGroup};

/// The namespace of everything in a scenario.
pub(super) const NAMESPACE: &str = "ml";

pub(super) struct Workers {
    pub(super) ray: Ray,
    /// `spec.replicas`.
    pub(super) replicas: u32,
    /// What Ray last asked for, where the HPA reads that.
    pub(super) demand: u32,
    pub(super) hpa: Option<Hpa>,
    /// The HPA's last word, for people.
    pub(super) shown: Option<view::Hpa>,
    /// Not yet submitted.
    pub(super) tasks_to_come: u64,
    created: u32,
}

impl Workers {
    pub(super) fn new(scenario: &Scenario, group: &WorkerGroup) -> Self {
        let hpa = match group.scaled_by {
            ScaledBy::Ray => None,
            ScaledBy::Hpa | ScaledBy::Both => Some(Hpa::new(hpa::Spec::flow(group.min, group.max))),
            ScaledBy::RayThroughHpa => Some(Hpa::new(hpa::Spec::flow(group.min, group.max).with_demand())),
        };
        let jobs = scenario.jobs.iter().filter(|job| job.group == group.name);
        Self {
            ray: Ray::new(group.slots, scenario.times.ray_idle),
            replicas: group.min,
            demand: group.min,
            hpa,
            shown: None,
            tasks_to_come: jobs.map(|job| u64::from(job.tasks)).sum(),
            created: 0,
        }
    }
}

/// What a pod uses, and its mean since the last round of metrics.
#[derive(Clone, Debug, Default)]
pub(super) struct Usage {
    /// In thousandths of a CPU.
    pub(super) cpu: u64,
    /// In bytes.
    pub(super) memory: u64,
    since: Option<Instant>,
    /// Thousandths of a CPU times milliseconds, since the last round.
    cpu_millis: u64,
    /// What metrics-server shows: CPU, memory, and when.
    pub(super) sample: Option<(u64, u64, Instant)>,
}

impl Usage {
    pub(super) fn set(&mut self, now: Instant, cpu: u64, memory: u64) {
        if let Some(since) = self.since {
            self.cpu_millis += self.cpu * super::millis(now.since(since));
        }
        (self.cpu, self.memory, self.since) = (cpu, memory, Some(now));
    }
}

fn workers_of(count: usize) -> String {
    if count == 1 { "1 worker".to_owned() } else { format!("{count} workers") }
}

fn share_of(amount: u64, share: Permille) -> u64 {
    amount * u64::from(share.get()) / 1000
}

impl World<'_> {
    fn worker_group(&self, group: usize) -> &WorkerGroup {
        &self.scenario.worker_groups[group]
    }

    pub(super) fn start_workers(&mut self, group: usize) {
        self.reconcile(group);
        let ray_update = self.scenario.times.ray_update;
        // Rounds have phases of their own, from the seed.
        let phase = self.chance.task.between(Duration::ZERO, ray_update);
        if self.worker_group(group).scaled_by != ScaledBy::Hpa {
            self.after(phase, Happening::RayRound { group });
        }
        if self.workers[group].hpa.is_some() {
            let phase = self.chance.task.between(Duration::ZERO, hpa::SYNC_PERIOD);
            self.after(phase, Happening::HpaSync { group });
        }
    }

    pub(super) fn submit(&mut self, job: usize, tasks: u32) {
        let scenario = self.scenario;
        let spec = &scenario.jobs[job];
        let Some(group) = scenario.worker_groups.iter().position(|group| group.name == spec.group) else { return };
        for _ in 0..tasks {
            let length = self.chance.task.span(spec.task_time);
            self.created += 1;
            self.workers[group].ray.submit(Task { id: self.created, job, submitted: self.now, length });
        }
        self.workers[group].tasks_to_come -= u64::from(tasks);
        self.observe_submitted(job, group, tasks);
        self.assign(group);
    }

    fn assign(&mut self, group: usize) {
        for started in self.workers[group].ray.assign() {
            self.observed.task_started(self.now, &started.task);
            let done = Happening::TaskDone { group, worker: started.worker.clone(), task: started.task.id };
            self.after(started.task.length, done);
            self.update_usage(&started.worker);
        }
    }

    pub(super) fn task_done(&mut self, group: usize, worker: &str, task: u64) {
        let Some(task) = self.workers[group].ray.finish(self.now, worker, task) else { return };
        self.observed.task_done(self.now, &task);
        self.update_usage(worker);
        self.assign(group);
        let workers = &self.workers[group];
        if workers.ray.queued() + workers.ray.running() == 0 && workers.tasks_to_come == 0 {
            self.observe_all_done(group);
        }
    }

    /// Sets what the pod uses from what runs on it.
    fn update_usage(&mut self, uid: &str) {
        let Some(state) = self.pods.get_mut(uid) else { return };
        let Some(group) = state.group else { return };
        let spec = &self.scenario.worker_groups[group];
        let mut cpu = share_of(spec.requests.amount("cpu"), spec.base_cpu);
        let mut memory = share_of(spec.requests.amount("memory"), spec.base_memory);
        for task in self.workers[group].ray.tasks_of(uid) {
            let job = &self.scenario.jobs[task.job];
            cpu += share_of(spec.requests.amount("cpu"), job.cpu) / u64::from(spec.slots);
            memory += share_of(spec.requests.amount("memory"), job.memory) / u64::from(spec.slots);
        }
        state.usage.set(self.now, cpu, memory);
    }

    pub(super) fn pod_ready(&mut self, uid: &str) {
        let now = self.now;
        let Some(state) = self.pods.get_mut(uid).filter(|state| !state.pod.terminating) else { return };
        state.ready_since = Some(now);
        let Some(group) = state.group else { return };
        self.workers[group].ray.join(now, uid);
        self.update_usage(uid);
        self.assign(group);
        self.observe_workers_ready(group);
    }

    pub(super) fn worker_gone(&mut self, group: usize, uid: &str) {
        let lost = self.workers[group].ray.lose(uid);
        if lost > 0 {
            self.observed.tasks_lost += lost as u64;
            let name = self.worker_group(group).name.clone();
            self.step(Level::Ray, format!("puts {lost} tasks of {name} back into the queue"), "their worker is gone");
        }
        self.assign(group);
        self.reconcile(group);
    }

    /// What a controller of replicas does: creates what lacks, deletes what is too much.
    fn reconcile(&mut self, group: usize) {
        let spec = &self.scenario.worker_groups[group];
        let standing = |state: &&PodState| state.group == Some(group) && !state.pod.terminating;
        let count = u32::try_from(self.pods.values().filter(standing).count()).unwrap_or(u32::MAX);
        let replicas = self.workers[group].replicas;
        for _ in count..replicas {
            let uid = self.new_uid();
            let workers = &mut self.workers[group];
            workers.created += 1;
            let pod = Pod {
                uid: uid.clone(),
                namespace: NAMESPACE.to_owned(),
                name: format!("{}-{}", spec.name, workers.created),
                requests: spec.requests.clone(),
                tolerations: spec.tolerations.clone(),
                ..Pod::default()
            };
            self.add_pod(pod, Some(group));
        }
        // The order of a ReplicaSet: not bound, not ready, ready for the shortest time (`ActivePodsWithRanks`; not
        // modelled: deletion cost, the rank by pods on the same node).
        let mut standing: Vec<_> = self.pods.values().filter(standing).collect();
        standing.sort_by_key(|state| {
            let ready = state.ready_since.map(std::cmp::Reverse);
            (state.pod.node.is_some(), ready.is_some(), ready, std::cmp::Reverse(state.created_at))
        });
        let surplus = count.saturating_sub(replicas) as usize;
        let surplus: Vec<_> = standing.into_iter().take(surplus).map(|state| state.pod.uid.clone()).collect();
        for uid in surplus {
            self.delete_pod(&uid);
        }
    }

    pub(super) fn add_pod(&mut self, mut pod: Pod, group: Option<usize>) {
        let uid = pod.uid.clone();
        pod.requests.set("pods", 1);
        let state = PodState {
            pod,
            group,
            ready_since: None,
            refused_at: None,
            created_at: self.now,
            bound_at: None,
            usage: Usage::default(),
        };
        self.pods.insert(uid.clone(), state);
        self.pod_changed(&uid);
    }

    /// One pod of every node: this agent, kube-proxy and the network plugin, with what they usually ask for together.
    pub(super) fn add_daemon(&mut self, node: &str) {
        let uid = self.new_uid();
        let mut pod = Pod {
            uid: uid.clone(),
            namespace: "kube-system".to_owned(),
            name: format!("daemons-{node}"),
            node: Some(node.to_owned()),
            controller: Controller::DaemonSet,
            ..Pod::default()
        };
        pod.requests.set("cpu", 150);
        pod.requests.set("memory", 300 << 20);
        if let Some(home) = self.nodes.get_mut(node) {
            home.pods.insert(uid);
        }
        self.add_pod(pod, None);
    }

    pub(super) fn ray_round(&mut self, group: usize) {
        self.after(self.scenario.times.ray_update, Happening::RayRound { group });
        let spec = self.worker_group(group);
        let (name, min, max, scaled_by) = (spec.name.clone(), spec.min, spec.max, spec.scaled_by);
        let workers = &self.workers[group];
        let demand = workers.ray.round(self.now);
        let wanted = demand.workers.clamp(min, max);
        let queue = format!("{} tasks queued, {} running", workers.ray.queued(), workers.ray.running());
        let idle = format!("without a task for {}", format_duration(self.scenario.times.ray_idle));
        if scaled_by == ScaledBy::RayThroughHpa {
            let before = workers.demand;
            if wanted == before {
                return;
            }
            self.workers[group].demand = wanted;
            if wanted > before {
                self.step(Level::Ray, format!("asks for {wanted} workers of {name}, was {before}"), queue);
                self.observe_ray(group, true);
            } else {
                let because = format!("{} {idle}", workers_of(demand.idle.len()));
                self.step(Level::Ray, format!("needs only {wanted} workers of {name}, was {before}"), because);
                self.observe_ray(group, false);
            }
            return;
        }
        let replicas = workers.replicas;
        if wanted > replicas {
            self.workers[group].replicas = wanted;
            self.step(Level::Ray, format!("asks for {wanted} workers of {name}, was {replicas}"), queue);
            self.observe_ray(group, true);
            self.reconcile(group);
        } else if !demand.idle.is_empty() && replicas > wanted {
            let surplus: Vec<_> = demand.idle.into_iter().take((replicas - wanted) as usize).collect();
            let count = u32::try_from(surplus.len()).unwrap_or(u32::MAX);
            self.workers[group].replicas = replicas - count;
            self.step(
                Level::Ray,
                format!("removes {} of {name}, leaves {}", workers_of(count as usize), replicas - count),
                idle,
            );
            self.observe_ray(group, false);
            for uid in surplus {
                self.delete_pod(&uid);
            }
        }
    }

    pub(super) fn metrics_round(&mut self) {
        self.after(METRICS_RESOLUTION, Happening::MetricsRound);
        let now = self.now;
        for state in self.pods.values_mut() {
            let Some(ready) = state.ready_since.filter(|_| state.group.is_some()) else { continue };
            let usage = &mut state.usage;
            let (cpu, memory) = (usage.cpu, usage.memory);
            usage.set(now, cpu, memory);
            let span = super::millis(METRICS_RESOLUTION);
            // The first rate needs a whole span.
            if now.since(ready) >= METRICS_RESOLUTION {
                usage.sample = Some((usage.cpu_millis / span, memory, now));
            }
            usage.cpu_millis = 0;
        }
    }

    pub(super) fn hpa_syncs(&mut self, group: usize) {
        self.after(hpa::SYNC_PERIOD, Happening::HpaSync { group });
        let spec = &self.scenario.worker_groups[group];
        let now = self.now;
        let pods = self.pods.values().filter(|state| state.group == Some(group)).map(|state| hpa::Pod {
            running: state.ready_since.is_some(),
            started: state.bound_at,
            ready_since: state.ready_since,
            terminating: state.pod.terminating,
            cpu_request: spec.requests.amount("cpu"),
            memory_request: spec.requests.amount("memory"),
            usage: state.usage.sample.map(|(cpu, memory, at)| hpa::Usage {
                cpu,
                memory,
                at,
                window: METRICS_RESOLUTION,
            }),
        });
        let pods = pods.collect();
        let workers = &mut self.workers[group];
        let current = workers.replicas;
        let Some(hpa) = &mut workers.hpa else { return };
        let outcome = hpa.sync(now, &hpa::Observed { replicas: current, pods, demand: Some(workers.demand) });
        let desired = outcome.desired;
        workers.shown = Some(view::Hpa {
            name: spec.name.clone(),
            current,
            desired,
            cpu_percent: outcome.cpu_percent,
            memory_percent: outcome.memory_percent,
        });
        if desired != current {
            workers.replicas = desired;
            let what = format!("scales {} from {current} to {desired} workers", spec.name);
            self.step(Level::Hpa, what, outcome.because);
            self.observe_hpa(group, desired > current);
            self.reconcile(group);
        }
    }
}
