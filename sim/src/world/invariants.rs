//! What must hold of every decision and every effect, whatever goes wrong; and what must have come right at the end.

use std::fmt;
use std::time::Duration;

use ebb_core::fleet::Action;
use ebb_core::time::{Instant, format_duration};
use ebb_core::view::Step;

use super::World;
use crate::faults::LATEST;

/// An invariant that did not hold, and what led there.
#[derive(Clone, Debug)]
pub struct Violation {
    pub invariant: &'static str,
    pub detail: String,
    pub at: Instant,
    pub started: Instant,
    pub steps: Vec<Step>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let after = format_duration(self.at.since(self.started));
        write!(f, "{} after {after}: {}", self.invariant, self.detail)
    }
}

impl std::error::Error for Violation {}

/// A coordinator that ticks more often than this in a second turns round without getting anywhere.
const TICKS_PER_SECOND: u32 = 250;

impl World<'_> {
    fn violated(&mut self, invariant: &'static str, detail: String) {
        if self.violation.is_none() {
            self.violation = Some(Box::new(Violation {
                invariant,
                detail,
                at: self.now,
                started: self.scenario.starts_at,
                steps: self.observed.steps.clone(),
            }));
        }
    }

    pub(super) fn check_decision(&mut self, action: &Action) {
        match action {
            Action::Launch { group, from, to, .. } | Action::SetDesired { group, from, to, .. } => {
                let max = self.scenario.policy.groups[group].max;
                if to <= from || *to > max {
                    self.violated("invariant_desired_only_grows_and_within_bounds", format!("{action:?}"));
                }
            }
            Action::Drain { node, .. } => {
                // The last word of an agent holds for the report timeout, and comes late at worst.
                let slack = self.scenario.policy.scale_down.report_timeout + LATEST + Duration::from_secs(10);
                let idle = self.observed.idle_at.get(node).is_some_and(|at| self.now.since(*at) <= slack);
                if !idle {
                    self.violated("invariant_no_busy_or_unknown_node_is_drained", format!("{action:?}"));
                }
            }
            _ => {}
        }
    }

    /// After an intent was written.
    pub(super) fn check_drains(&mut self) {
        let live = |state: &&super::NodeState| {
            state.node.intent.as_ref().is_some_and(|intent| self.now + Duration::from_secs(60) < intent.deadline)
        };
        let draining: Vec<_> = self.nodes.values().filter(live).map(|state| state.node.name.clone()).collect();
        let most = self.observed.max_parallel_drains;
        if draining.len() > most {
            self.violated("invariant_no_more_drains_than_allowed", format!("{draining:?} drain, {most} may"));
        }
    }

    /// When an instance is terminated at Ebb's word.
    pub(super) fn check_terminated(&mut self, node: &str) {
        let Some(state) = self.nodes.get(node) else { return };
        let working = state.pods.iter().filter_map(|uid| self.pods.get(uid)).find(|state| state.pod.holds_node());
        let detail = match working {
            Some(pod) => format!("pod {} is on {node}", pod.pod.full_name()),
            None if !state.node.drained => format!("{node} is not drained"),
            None if !state.node.unschedulable => format!("{node} is open to pods"),
            None => return,
        };
        self.violated("invariant_only_empty_and_drained_nodes_are_terminated", detail);
    }

    pub(super) fn check_minimum(&mut self, group: usize) {
        let group = &self.groups[group];
        if group.desired <= group.min {
            let detail = format!("{} is at {}, its minimum", group.name, group.desired);
            self.violated("invariant_never_below_minimum", detail);
        }
    }

    pub(super) fn check_eviction(&mut self, node: &str, uid: &str) {
        let elsewhere = self.pods.get(uid).is_some_and(|state| state.pod.node.as_deref() != Some(node));
        if elsewhere {
            self.violated("invariant_an_agent_evicts_from_its_own_node_only", format!("{uid} is not on {node}"));
        }
    }

    pub(super) fn check_tick(&mut self) {
        let second = self.now.as_millis() / 1000;
        if self.observed.tick_second != second {
            (self.observed.tick_second, self.observed.ticks) = (second, 0);
        }
        self.observed.ticks += 1;
        if self.observed.ticks > TICKS_PER_SECOND {
            self.violated("invariant_a_tick_moves_the_next_wakeup", format!("{} ticks", self.observed.ticks));
        }
    }

    /// With faults by chance, a scenario must be long enough for all to come right after them.
    pub(super) fn check_end(&mut self) -> Result<(), Box<Violation>> {
        if !self.faults.any() {
            return Ok(());
        }
        let waiting = self.pods.values().filter(|state| state.pod.node.is_none()).map(|state| state.pod.full_name());
        let waiting: Vec<_> = waiting.collect();
        let left: usize = self.workers.iter().map(|workers| workers.ray.queued() + workers.ray.running()).sum();
        // An HPA that has a resource metric keeps a last worker (see `hpa`), and that worker keeps its node.
        let works = |uid: &String| self.pods.get(uid).is_some_and(|pod| pod.group.is_some());
        let working = |group: usize| {
            let working = self.nodes.values().filter(|state| state.alive && state.group == group);
            u32::try_from(working.filter(|state| state.pods.iter().any(works)).count()).unwrap_or(u32::MAX)
        };
        let big =
            self.groups.iter().enumerate().filter(|(index, group)| group.desired > group.min.max(working(*index)));
        let big: Vec<_> = big.map(|(_, group)| format!("{} at {}", group.name, group.desired)).collect();
        let marked = self.nodes.values().filter(|state| {
            let node = &state.node;
            state.alive && (node.unschedulable || node.intent.is_some() || node.draining || node.drained)
        });
        let marked: Vec<_> = marked.map(|state| state.node.name.clone()).collect();
        if !waiting.is_empty() {
            self.violated("liveness_pods_run_in_the_end", format!("{waiting:?} wait for a node"));
        } else if left > 0 {
            self.violated("liveness_work_is_done_in_the_end", format!("{left} tasks are left"));
        } else if !big.is_empty() {
            self.violated("liveness_idle_nodes_go_in_the_end", big.join(", "));
        } else if !marked.is_empty() {
            self.violated("liveness_no_cordon_is_left_behind", format!("{marked:?}"));
        }
        self.violation.take().map_or(Ok(()), Err)
    }
}
