//! The coordinator: what it learns and when, and what becomes of what it decides.

use std::time::Duration;

use ebb_core::fleet::{Action, Event, Failure};
use ebb_core::reason::Reason;
use ebb_core::time::Instant;
use ebb_core::view::Level;

use super::{Happening, World};
use crate::auto_scaling::{Launch, Lifecycle};
use crate::autoscaler::Autoscaler;
use crate::faults::Reply;

/// How late a watch is, and how long a call takes: typical of a healthy control plane and of AWS' API.
const WATCH: Duration = Duration::from_millis(15);
const KUBERNETES_CALL: Duration = Duration::from_millis(15);
const AWS_CALL: Duration = Duration::from_millis(150);
/// `LaunchInstances` answers when the instances are launched. A guess: `RunInstances` takes as long.
const LAUNCH_CALL: Duration = Duration::from_secs(2);
/// Between two ticks of a coordinator whose wakeup does not move, as its driver has it.
const REST: Duration = Duration::from_millis(1);

pub(super) struct Coordinator<'a> {
    make: &'a dyn Fn() -> Box<dyn Autoscaler>,
    pub(super) autoscaler: Option<Box<dyn Autoscaler>>,
    /// Which coordinator this is: what was meant for one that crashed is lost.
    pub(super) generation: u32,
    /// Events come in order: not before the one before.
    told_until: Instant,
    tick_at: Option<Instant>,
    /// How far its clock is ahead, in milliseconds.
    clock_ahead: i64,
    /// The same of the wall clock. A coordinator looks there once, when it starts (`coordinator/src/clock.rs`): one that
    /// runs does not notice that it is set.
    wall_ahead: i64,
}

impl<'a> Coordinator<'a> {
    pub(super) fn new(make: &'a dyn Fn() -> Box<dyn Autoscaler>) -> Self {
        Self {
            make,
            autoscaler: None,
            generation: 0,
            told_until: Instant::from_millis(0),
            tick_at: None,
            clock_ahead: 0,
            wall_ahead: 0,
        }
    }
}

/// A time by another clock.
pub(super) fn shifted(instant: Instant, millis: i64) -> Instant {
    Instant::from_millis(instant.as_millis().saturating_add_signed(millis))
}

impl World<'_> {
    /// A new one takes over: it lists everything and leads.
    pub(super) fn coordinator_starts(&mut self) {
        if self.coordinator.autoscaler.is_some() {
            return;
        }
        self.coordinator.autoscaler = Some((self.coordinator.make)());
        self.coordinator.generation += 1;
        self.coordinator.tick_at = None;
        self.coordinator.clock_ahead = self.coordinator.wall_ahead;
        self.coordinator.told_until = self.now;
        self.tell_coordinator(Event::Leading(true));
        for node in self.nodes.values().map(|state| state.node.clone()).collect::<Vec<_>>() {
            self.tell_coordinator(Event::NodeApplied(node));
        }
        for pod in self.pods.values().map(|state| state.pod.clone()).collect::<Vec<_>>() {
            self.tell_coordinator(Event::PodApplied(pod));
        }
        self.tell_coordinator(Event::Synced(true));
    }

    pub(crate) fn coordinator_crashes(&mut self) {
        self.coordinator.autoscaler = None;
    }

    pub(crate) fn set_coordinator_clock(&mut self, ahead: i64) {
        self.coordinator.wall_ahead = ahead;
    }

    /// Over a watch: late, but in order.
    pub(super) fn tell_coordinator(&mut self, event: Event) {
        if self.coordinator.autoscaler.is_none() {
            return;
        }
        let late = self.faults.watch_delay(&mut self.chance.wire);
        let at = (self.now + WATCH + late).max(self.coordinator.told_until);
        self.coordinator.told_until = at;
        let generation = self.coordinator.generation;
        self.at(at, Happening::CoordinatorTold { generation, event: Box::new(event) });
    }

    pub(super) fn coordinator_told(&mut self, generation: u32, event: Event) {
        if generation != self.coordinator.generation {
            return;
        }
        let now = shifted(self.now, self.coordinator.clock_ahead);
        let Some(autoscaler) = &mut self.coordinator.autoscaler else { return };
        let actions = autoscaler.handle(now, event);
        let next = autoscaler.next_wakeup().map(|at| shifted(at, -self.coordinator.clock_ahead));
        self.observe_decisions(&actions);
        for action in actions {
            self.check_decision(&action);
            let takes = match action {
                Action::CompleteLifecycle { .. }
                | Action::Heartbeat { .. }
                | Action::Describe { .. }
                | Action::SetDesired { .. }
                | Action::Terminate { .. } => AWS_CALL,
                Action::Launch { .. } => LAUNCH_CALL,
                Action::CancelDrain { .. }
                | Action::DeletePod { .. }
                | Action::Drain { .. }
                | Action::DrainRayNode { .. }
                | Action::Explain { .. }
                | Action::ReportRay { .. }
                | Action::ScaleRayCluster { .. }
                | Action::SetPodDeletionCost { .. }
                | Action::ShowBuffer { .. }
                | Action::ShowRayWorkerGroup { .. } => KUBERNETES_CALL,
            };
            self.after(takes, Happening::CoordinatorActs { generation, action: Box::new(action) });
        }
        if let Some(next) = next {
            let next = next.max(self.now + REST);
            if self.coordinator.tick_at.is_none_or(|at| next < at || at <= self.now) {
                self.coordinator.tick_at = Some(next);
                self.at(next, Happening::CoordinatorTick { generation });
            }
        }
    }

    pub(super) fn coordinator_ticks(&mut self, generation: u32) {
        if generation == self.coordinator.generation && self.coordinator.tick_at == Some(self.now) {
            self.coordinator.tick_at = None;
            self.check_tick();
            self.coordinator_told(generation, Event::Tick);
        }
    }

    /// A call arrives where it is meant to go. One that was sent takes effect even if its sender has crashed.
    pub(super) fn coordinator_acts(&mut self, generation: u32, action: Action) {
        let reply = match self.faults.reply(&mut self.chance.wire) {
            Reply::Fails(failure) => Event::Failed { action, failure },
            Reply::IsLost => {
                self.carry_out(action.clone());
                Event::Failed { action, failure: Failure::Unavailable }
            }
            Reply::Comes => self.carry_out(action),
        };
        self.coordinator_told(generation, reply);
    }

    fn carry_out(&mut self, action: Action) -> Event {
        let failure = match &action {
            Action::Describe { groups, .. } => {
                let groups = self.groups.iter().filter(|group| groups.contains(&group.name));
                return Event::Groups { groups: groups.map(|group| group.state()).collect(), asked: action };
            }
            Action::Launch { group, zone, from, to, token, because } => {
                match self.launch_instances(group, zone, *from, *to, token, because) {
                    Ok(launch) => {
                        let failures = launch.failure().into_iter().collect();
                        return Event::Launched { asked: action, instances: launch.instances, failures };
                    }
                    Err(failure) => Some(failure),
                }
            }
            Action::SetDesired { group, from, to, because } => self.set_desired(group, *from, *to, because),
            Action::Terminate { group, instance, node, .. } => self.terminate(group, instance, node),
            Action::Drain { node, uid, intent, because } => match self.nodes.get_mut(node) {
                Some(state)
                    if state.node.uid == *uid && state.node.intent.as_ref().is_none_or(|it| it.id == intent.id) =>
                {
                    state.node.intent = Some(intent.clone());
                    let group = state.group;
                    self.node_changed(node);
                    self.observe_drain(group, node, because);
                    None
                }
                Some(_) => Some(Failure::Conflict),
                None => Some(Failure::NotFound),
            },
            Action::CancelDrain { node, uid, id, .. } => match self.nodes.get_mut(node) {
                Some(state) if state.node.uid == *uid => {
                    if state.node.intent.take_if(|intent| intent.id == *id).is_some() {
                        self.node_changed(node);
                    }
                    None
                }
                _ => Some(Failure::NotFound),
            },
            // No scenario has agents' pods, buffers, lifecycle hooks, or Ray clusters that a coordinator knows.
            Action::CompleteLifecycle { .. }
            | Action::DeletePod { .. }
            | Action::DrainRayNode { .. }
            | Action::Heartbeat { .. }
            | Action::ReportRay { .. }
            | Action::ScaleRayCluster { .. }
            | Action::SetPodDeletionCost { .. } => Some(Failure::NotFound),
            Action::Explain { .. } | Action::ShowBuffer { .. } | Action::ShowRayWorkerGroup { .. } => None,
        };
        match failure {
            None => Event::Done(action),
            Some(failure) => Event::Failed { action, failure },
        }
    }

    fn launch_instances(
        &mut self,
        name: &str,
        zone: &str,
        from: u32,
        to: u32,
        token: &str,
        because: &Reason,
    ) -> Result<Launch, Failure> {
        let index = self.may_raise(name, from, to)?;
        self.observe_capacity_asked(index, because);
        Ok(self.launch_in(index, zone, to - from, token))
    }

    fn set_desired(&mut self, name: &str, from: u32, to: u32, because: &Reason) -> Option<Failure> {
        let index = match self.may_raise(name, from, to) {
            Ok(index) => index,
            Err(failure) => return Some(failure),
        };
        self.groups[index].desired = to;
        self.observe_capacity_asked(index, because);
        self.launch(index);
        None
    }

    /// Which group it is, if its desired capacity is what it is expected to be.
    fn may_raise(&self, name: &str, from: u32, to: u32) -> Result<usize, Failure> {
        let index = self.groups.iter().position(|group| group.name == name).ok_or(Failure::NotFound)?;
        let group = &self.groups[index];
        if group.desired != from {
            return Err(Failure::Conflict);
        }
        if to < group.min || to > group.max { Err(Failure::Rejected) } else { Ok(index) }
    }

    fn terminate(&mut self, name: &str, instance: &str, node: &str) -> Option<Failure> {
        let Some(index) = self.groups.iter().position(|group| group.name == name) else {
            return Some(Failure::NotFound);
        };
        let group = &mut self.groups[index];
        let min = group.min;
        let desired = group.desired;
        let Some(found) = group.instance_mut(instance).filter(|found| found.lifecycle != Lifecycle::Terminating) else {
            return Some(Failure::NotFound);
        };
        if desired <= min {
            self.check_minimum(index);
            return Some(Failure::Rejected);
        }
        found.lifecycle = Lifecycle::Terminating;
        group.desired -= 1;
        self.check_terminated(node);
        self.observe_terminating(index, node);
        self.instance_stops(index, instance);
        None
    }

    pub(crate) fn step(&mut self, level: Level, what: impl Into<String>, because: impl Into<String>) {
        self.observed.step(self.now, level, what.into(), because.into());
    }
}
