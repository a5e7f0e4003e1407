//! Who decides the number of nodes: Ebb's own rules, or another's on the same workload for comparison.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use ebb_core::classify::{Class, GpuUse, Signal, Utilization};
use ebb_core::fleet::{Action, Event, Fleet};
use ebb_core::journal::{Handled, Line};
use ebb_core::policy::Policy;
use ebb_core::report::Report;
use ebb_core::time::Instant;
use ebb_core::units::Permille;
use ebb_core::view;

/// A node autoscaler: told what happens, it says what to do.
pub trait Autoscaler {
    fn handle(&mut self, now: Instant, event: Event) -> Vec<Action>;
    fn next_wakeup(&self) -> Option<Instant>;
    fn view(&self, now: Instant) -> view::Cluster;
    /// The numbers it holds itself to.
    fn policy(&self) -> &Policy;
}

impl Autoscaler for Fleet {
    fn handle(&mut self, now: Instant, event: Event) -> Vec<Action> {
        self.handle(now, event)
    }

    fn next_wakeup(&self) -> Option<Instant> {
        self.next_wakeup()
    }

    fn view(&self, now: Instant) -> view::Cluster {
        self.view(now)
    }

    fn policy(&self) -> &Policy {
        self.policy()
    }
}

/// Ebb's own rules, and a record of them as the coordinator writes it.
pub struct Recorded {
    fleet: Fleet,
    started: bool,
    /// Text, that of all coordinators of a run.
    record: Rc<RefCell<String>>,
}

impl Recorded {
    pub fn new(policy: Policy, record: Rc<RefCell<String>>) -> Self {
        Self { fleet: Fleet::new(policy), started: false, record }
    }

    fn append(&self, line: &Line) {
        let mut record = self.record.borrow_mut();
        record.push_str(&line.to_line());
        record.push('\n');
    }
}

impl Autoscaler for Recorded {
    fn handle(&mut self, now: Instant, event: Event) -> Vec<Action> {
        if !std::mem::replace(&mut self.started, true) {
            self.append(&Line::start(now, self.fleet.policy()));
        }
        let actions = self.fleet.handle(now, event.clone());
        self.append(&Line::Handled(Handled { now, event, actions: actions.clone() }));
        actions
    }

    fn next_wakeup(&self) -> Option<Instant> {
        self.fleet.next_wakeup()
    }

    fn view(&self, now: Instant) -> view::Cluster {
        self.fleet.view(now)
    }

    fn policy(&self) -> &Policy {
        self.fleet.policy()
    }
}

/// Cluster Autoscaler's rules, as far as they matter where pods come and go with their replicas: it looks every 10 s at
/// what pods *asked for*, adds nodes for pending pods at once, and removes nodes that were empty for 10 minutes, ten at
/// a time, but none within 10 minutes of the last one added.
///
/// Built of the same machine with other numbers and with requests in place of measurements. Not modelled: moving the
/// pods of a node that is used by less than half, expanders, balancing of similar groups.
///
/// Source of the numbers: Cluster Autoscaler FAQ, "What are the parameters to CA?" (`scan-interval`,
/// `scale-down-unneeded-time`, `scale-down-delay-after-add`, `scale-down-utilization-threshold`,
/// `max-empty-bulk-delete`).
pub struct ClusterAutoscalerLike {
    fleet: Fleet,
    scan_at: Option<Instant>,
    nodes: usize,
    node_added_at: Instant,
    sequence: u64,
}

const SCAN_INTERVAL: Duration = Duration::from_secs(10);
const UNNEEDED: Duration = Duration::from_secs(10 * 60);
const DELAY_AFTER_ADD: Duration = Duration::from_secs(10 * 60);
const EMPTY_AT_ONCE: u32 = 10;
/// Of what pods may ask for, how much a node gives, in thousandths: below this it is unneeded.
const UTILIZATION_BELOW: u64 = 500;

impl ClusterAutoscalerLike {
    pub fn new(mut policy: Policy) -> Self {
        policy.scale_up.pending_for = Duration::ZERO;
        policy.scale_up.batch_window = SCAN_INTERVAL;
        policy.scale_up.batch_longest = SCAN_INTERVAL;
        policy.scale_down.max_parallel_drains = EMPTY_AT_ONCE;
        for group in policy.groups.values_mut() {
            // The time is kept by the fleet, from when a node was first found empty.
            group.unneeded_for = UNNEEDED;
        }
        Self { fleet: Fleet::new(policy), scan_at: None, nodes: 0, node_added_at: Instant::from_millis(0), sequence: 0 }
    }

    /// Reports on every node, as if agents had measured what pods ask for.
    fn scan(&mut self, now: Instant) -> Vec<Action> {
        let nodes = self.fleet.view(now).nodes;
        if nodes.len() > self.nodes {
            self.node_added_at = now;
        }
        self.nodes = nodes.len();
        let quiet = now.since(self.node_added_at) < DELAY_AFTER_ADD;
        let mut actions = Vec::new();
        for node in nodes {
            let mut used = node.requested.clone();
            used.set("pods", 0);
            let needed = quiet || used.dominant_permille(&node.allocatable) >= UTILIZATION_BELOW;
            // Not since when: the fleet knows since when a node is empty.
            let since = Instant::from_millis(0);
            let class = if needed { Class::Busy { since, signal: Signal::Cpu } } else { Class::Idle { since } };
            let gpu = if node.allocatable.has_gpu() { GpuUse::Busy(Permille::ZERO) } else { GpuUse::Absent };
            self.sequence += 1;
            let report = Report {
                node: node.name,
                node_uid: node.uid,
                agent_start: Instant::from_millis(0),
                sequence: self.sequence,
                sampled_at: now,
                class,
                utilization: Utilization { gpu, ..Utilization::default() },
                gpu_waste: None,
            };
            actions.extend(self.fleet.handle(now, Event::Report(report)));
        }
        actions
    }
}

impl Autoscaler for ClusterAutoscalerLike {
    fn handle(&mut self, now: Instant, event: Event) -> Vec<Action> {
        // It has no agents.
        let mut actions = if let Event::Report(_) = event { Vec::new() } else { self.fleet.handle(now, event) };
        if self.scan_at.is_none_or(|at| now >= at) {
            self.scan_at = Some(now + SCAN_INTERVAL);
            actions.extend(self.scan(now));
        }
        actions
    }

    fn next_wakeup(&self) -> Option<Instant> {
        [self.fleet.next_wakeup(), self.scan_at].into_iter().flatten().min()
    }

    fn view(&self, now: Instant) -> view::Cluster {
        self.fleet.view(now)
    }

    fn policy(&self) -> &Policy {
        self.fleet.policy()
    }
}
