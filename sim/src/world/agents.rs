//! The agents: each measures its machine, reports, and drains its node, late and over wires that can fail.
//!
//! They measure GPUs as an agent with NVML does.

use std::time::Duration;

use ebb_core::classify::{Class, Classifier, GpuUse, IdlePolicy, Utilization, Verdict};
use ebb_core::drain::{self, Action, Change, Drain, EvictionOutcome, Target};
use ebb_core::fleet;
use ebb_core::intent::{CONDITION_DRAINED, CONDITION_DRAINING, CONDITION_PLANNED};
use ebb_core::kubernetes::EXCLUDED_LABEL;
use ebb_core::report::Report;
use ebb_core::time::Instant;
use ebb_core::units::Permille;

use super::control::shifted;
use super::{Happening, NodeState, World};
use crate::faults::Reply;

/// Agents sample every second and report at least every 10 s; here a sample is taken with each report, because what a
/// model uses changes in steps.
const REPORT: Duration = Duration::from_secs(10);
const WATCH: Duration = Duration::from_millis(15);
const CALL: Duration = Duration::from_millis(15);
const REPORT_TRAVELS: Duration = Duration::from_millis(5);
/// What the system itself uses of a machine, in thousandths of a CPU.
const SYSTEM_CPU: u64 = 60;

pub(super) struct Agent {
    classifier: Classifier,
    drain: Drain,
    start: Instant,
    sequence: u64,
    /// The version of the Node that it last saw.
    version: u64,
    watches_pods: bool,
    tick_at: Option<Instant>,
    told_until: Instant,
    pub(super) silent: bool,
    /// How far its clock is ahead, in milliseconds.
    pub(super) clock_ahead: i64,
    started: bool,
}

impl Agent {
    pub(super) fn new(policy: IdlePolicy, now: Instant) -> Self {
        Self {
            classifier: Classifier::new(policy),
            drain: Drain::default(),
            start: now,
            sequence: 0,
            version: 0,
            watches_pods: false,
            tick_at: None,
            told_until: now,
            silent: false,
            clock_ahead: 0,
            started: false,
        }
    }
}

impl World<'_> {
    fn agent(&mut self, node: &str, uid: &str) -> Option<&mut NodeState> {
        self.nodes.get_mut(node).filter(|state| state.node.uid == *uid && state.alive && state.agent.started)
    }

    pub(super) fn start_agent(&mut self, node: &str) {
        let phase = self.chance.node.between(Duration::ZERO, REPORT);
        let Some(state) = self.nodes.get_mut(node) else { return };
        state.agent.started = true;
        state.agent.start = self.now;
        let (uid, version, seen) = (state.node.uid.clone(), state.version, state.node.clone());
        self.tell_agent(node, Some(version), drain::Event::Node(Box::new((&seen).into())));
        self.after(phase, Happening::AgentSamples { node: node.to_owned(), uid });
    }

    /// The agent's process ends and starts again: what it knew is lost.
    pub(crate) fn restart_agent(&mut self, node: &str) {
        let Some(state) = self.nodes.get_mut(node).filter(|state| state.alive && state.agent.started) else { return };
        let fresh = Agent::new(self.scenario.policy.idle.clone(), self.now);
        // Samples go on in their rhythm; what was under way to the old process is harmless to the new one.
        state.agent = Agent { started: true, clock_ahead: state.agent.clock_ahead, ..fresh };
        let (version, seen) = (state.version, state.node.clone());
        self.tell_agent(node, Some(version), drain::Event::Node(Box::new((&seen).into())));
    }

    pub(crate) fn silence(&mut self, node: &str, silent: bool) {
        if let Some(state) = self.nodes.get_mut(node) {
            state.agent.silent = silent;
        }
    }

    pub(crate) fn set_agent_clock(&mut self, node: &str, ahead: i64) {
        if let Some(state) = self.nodes.get_mut(node) {
            state.agent.clock_ahead = ahead;
        }
    }

    pub(super) fn agent_samples(&mut self, node: &str, uid: &str) {
        let Some(utilization) = self.nodes.get(node).map(|state| self.utilization(state)) else { return };
        let now = self.now;
        let Some(state) = self.agent(node, uid) else { return };
        let by_its_clock = shifted(now, state.agent.clock_ahead);
        let Verdict { class, gpu_waste, .. } = state.agent.classifier.observe(by_its_clock, utilization);
        state.agent.sequence += 1;
        let report = Report {
            node: node.to_owned(),
            node_uid: uid.to_owned(),
            agent_start: state.agent.start,
            sequence: state.agent.sequence,
            sampled_at: by_its_clock,
            class,
            utilization,
            gpu_waste,
        };
        let silent = state.agent.silent;
        self.after(REPORT, Happening::AgentSamples { node: node.to_owned(), uid: uid.to_owned() });
        self.observe_sample(node, matches!(class, Class::Idle { .. }), REPORT);
        if !silent {
            self.send(report);
        }
    }

    fn send(&mut self, report: Report) {
        let generation = self.coordinator.generation;
        for delay in self.faults.report_delays(&mut self.chance.wire) {
            let event = Box::new(fleet::Event::Report(report.clone()));
            self.after(REPORT_TRAVELS + delay, Happening::CoordinatorTold { generation, event });
        }
    }

    /// What the machine is doing now.
    fn utilization(&self, state: &NodeState) -> Utilization {
        let (mut cpu, mut memory, mut gpu_busy) = (SYSTEM_CPU, state.memory_capacity / 10, false);
        for uid in &state.pods {
            let Some(pod) = self.pods.get(uid) else { continue };
            cpu += pod.usage.cpu;
            memory += pod.usage.memory;
            if let Some(group) = pod.group.filter(|_| pod.pod.requests.has_gpu()) {
                gpu_busy |= !self.workers[group].ray.tasks_of(uid).is_empty();
            }
        }
        let share = |part: u64, whole: u64| Permille::from_ratio(part as f64, whole as f64);
        let gpu = match (state.node.allocatable.has_gpu(), gpu_busy) {
            (false, _) => GpuUse::Absent,
            (true, false) => GpuUse::Busy(Permille::ZERO),
            (true, true) => GpuUse::Busy(Permille::percent(92)),
        };
        Utilization {
            cpu: share(cpu, state.cpu_capacity),
            cpu_steal: Some(Permille::ZERO),
            // Nobody waits until the CPUs are full.
            run_queue: share(cpu.saturating_sub(state.cpu_capacity), state.cpu_capacity),
            memory: share(memory, state.memory_capacity),
            memory_pressure: Some(Permille::ZERO),
            gpu,
            // No rule in the model needs it: a node with a workload is not idle here, however young that is.
            newest_workload_seconds: None,
        }
    }

    /// Over its watch: late, but in order.
    pub(super) fn tell_agent(&mut self, node: &str, version: Option<u64>, event: drain::Event) {
        let late = self.faults.watch_delay(&mut self.chance.wire);
        let now = self.now;
        let Some(state) = self.nodes.get_mut(node).filter(|state| state.alive && state.agent.started) else { return };
        let at = (now + WATCH + late).max(state.agent.told_until);
        state.agent.told_until = at;
        let uid = state.node.uid.clone();
        self.at(at, Happening::AgentTold { node: node.to_owned(), uid, version, event: Box::new(event) });
    }

    pub(super) fn tell_agent_of_pods(&mut self, node: &str) {
        let Some(state) = self.nodes.get(node).filter(|state| state.agent.watches_pods) else { return };
        let pods = state.pods.iter().filter_map(|uid| self.pods.get(uid)).map(|state| (&state.pod).into()).collect();
        self.tell_agent(node, None, drain::Event::Pods(pods));
    }

    pub(super) fn agent_told(&mut self, node: &str, uid: &str, version: Option<u64>, event: drain::Event) {
        let now = self.now;
        let Some(state) = self.agent(node, uid) else { return };
        if matches!(event, drain::Event::Pods(_)) && !state.agent.watches_pods {
            return;
        }
        if let Some(version) = version {
            // A watch never goes back behind the reply to a write.
            if version < state.agent.version {
                return;
            }
            state.agent.version = version;
        }
        let by_its_clock = shifted(now, state.agent.clock_ahead);
        let actions = state.agent.drain.handle(by_its_clock, event);
        let next = state.agent.drain.next_wakeup().map(|at| shifted(at, -state.agent.clock_ahead));
        let next = next.map(|at| at.max(now + Duration::from_millis(1)));
        let tick = next.filter(|next| state.agent.tick_at.is_none_or(|at| *next < at || at <= now));
        if tick.is_some() {
            state.agent.tick_at = tick;
        }
        let seen = state.agent.version;
        for action in actions {
            match action {
                Action::WatchPods => {
                    if let Some(state) = self.agent(node, uid) {
                        state.agent.watches_pods = true;
                    }
                    self.tell_agent_of_pods(node);
                }
                Action::UnwatchPods => {
                    if let Some(state) = self.agent(node, uid) {
                        state.agent.watches_pods = false;
                    }
                }
                Action::RunHook { .. } | Action::StopHook { .. } => {}
                action @ (Action::Check(_) | Action::Delete { .. } | Action::Evict { .. } | Action::Patch { .. }) => {
                    let (node, uid) = (node.to_owned(), uid.to_owned());
                    self.after(CALL, Happening::AgentActs { node, uid, version: seen, action: Box::new(action) });
                }
            }
        }
        if let Some(at) = tick {
            self.at(at, Happening::AgentTick { node: node.to_owned(), uid: uid.to_owned() });
        }
    }

    pub(super) fn agent_ticks(&mut self, node: &str, uid: &str) {
        let now = self.now;
        if self.agent(node, uid).is_some_and(|state| state.agent.tick_at == Some(now)) {
            if let Some(state) = self.agent(node, uid) {
                state.agent.tick_at = None;
            }
            self.agent_told(node, uid, None, drain::Event::Tick);
        }
    }

    pub(super) fn agent_acts(&mut self, node: &str, uid: &str, version: u64, action: Action) {
        let fate = self.faults.reply(&mut self.chance.wire);
        match action {
            Action::Patch { change, .. } => {
                let current = self.nodes.get(node).filter(|state| state.node.uid == *uid);
                let accepted =
                    !matches!(fate, Reply::Fails(_)) && current.is_some_and(|state| state.version == version);
                if accepted {
                    self.apply(node, change);
                }
                if accepted && matches!(fate, Reply::Comes) {
                    // The reply carries the Node as it now stands.
                    let seen = self.nodes.get(node).map(|state| (state.version, state.node.clone()));
                    if let Some((version, seen)) = seen {
                        self.agent_told(node, uid, Some(version), drain::Event::Node(Box::new((&seen).into())));
                    }
                    self.agent_told(node, uid, None, drain::Event::Patched);
                } else {
                    self.agent_told(node, uid, None, drain::Event::PatchFailed);
                }
            }
            Action::Check(Target { uid: pod, .. }) => {
                let outcome = match fate {
                    Reply::Fails(_) | Reply::IsLost => EvictionOutcome::Unavailable,
                    Reply::Comes => self.may_evict(&pod),
                };
                self.agent_told(node, uid, None, drain::Event::Checked { uid: pod, reply: outcome.into() });
            }
            Action::Delete { pod: Target { uid: pod, .. }, .. }
            | Action::Evict { pod: Target { uid: pod, .. }, .. } => {
                let outcome = match fate {
                    Reply::Fails(_) => EvictionOutcome::Unavailable,
                    Reply::IsLost => {
                        self.evict(node, &pod);
                        EvictionOutcome::Unavailable
                    }
                    Reply::Comes => self.evict(node, &pod),
                };
                self.agent_told(node, uid, None, drain::Event::Evicted { uid: pod, reply: outcome.into() });
            }
            // No hooks are modelled.
            Action::RunHook { .. } | Action::StopHook { .. } | Action::WatchPods | Action::UnwatchPods => {}
        }
    }

    fn apply(&mut self, name: &str, change: Change) {
        let Some(state) = self.nodes.get_mut(name) else { return };
        let node = &mut state.node;
        let drained = node.drained;
        match change {
            Change::Node(change) => {
                node.unschedulable = change.unschedulable.unwrap_or(node.unschedulable);
                match change.excluded {
                    Some(true) => _ = node.labels.insert(EXCLUDED_LABEL.into(), String::new()),
                    Some(false) => _ = node.labels.remove(EXCLUDED_LABEL),
                    None => {}
                }
                change.intent.apply(&mut node.intent);
                change.progress.apply(&mut node.progress);
            }
            Change::Conditions(conditions) => {
                for condition in conditions {
                    match condition.type_.as_str() {
                        CONDITION_DRAINED => node.drained = condition.status,
                        CONDITION_DRAINING => node.draining = condition.status,
                        CONDITION_PLANNED => node.planned = condition.status,
                        _ => {}
                    }
                }
            }
        }
        let now_drained = node.drained && !drained;
        self.node_changed(name);
        if now_drained {
            self.observe_drained(name);
        }
    }

    /// The Eviction API: a pod goes if its budget allows it.
    fn evict(&mut self, node: &str, uid: &str) -> EvictionOutcome {
        self.check_eviction(node, uid);
        let outcome = self.may_evict(uid);
        if outcome == EvictionOutcome::Accepted && self.pods.get(uid).is_some_and(|state| !state.pod.terminating) {
            self.observed.evictions += 1;
            self.delete_pod(uid);
        }
        outcome
    }

    fn may_evict(&self, uid: &str) -> EvictionOutcome {
        let Some(state) = self.pods.get(uid) else { return EvictionOutcome::Gone };
        if state.pod.terminating {
            return EvictionOutcome::Accepted;
        }
        if let Some(group) = state.group
            && let Some(allowed) = self.scenario.worker_groups[group].max_unavailable
        {
            let ready = |state: &&super::PodState| {
                state.group == Some(group) && state.ready_since.is_some() && !state.pod.terminating
            };
            let ready = u32::try_from(self.pods.values().filter(ready).count()).unwrap_or(u32::MAX);
            let unavailable = self.workers[group].replicas.saturating_sub(ready);
            if unavailable >= allowed {
                return EvictionOutcome::Blocked;
            }
        }
        EvictionOutcome::Accepted
    }
}
