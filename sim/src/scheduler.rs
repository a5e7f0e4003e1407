//! kube-scheduler in virtual time, as far as Ebb can tell: which pod goes to which node, and which one waits.
//!
//! After kube-scheduler 1.36 with its default profile; `docs/fidelity.md` says how it was checked.
//! Whether a pod fits is `ebb_core::schedule`'s to say, here as in the coordinator. What is here:
//!
//! - **Queue.** By priority, then by time of arrival; one pod at a time, each seeing where the ones before it went.
//! - **Retries.** A pod that fits nowhere is tried again once a node event or the end of a pod makes it fit somewhere.
//!   kube-scheduler also tries in vain, after each event that might have helped and every 5 minutes; that changes
//!   nothing but whose turn it is among pods of one priority. Its backoff does not delay either: since 1.33 a pod is
//!   taken before its backoff is over if no other waits (`SchedulerPopFromBackoffQ`).
//! - **Backoff.** It does hold a pod that was tried while there was no node at all: 1 s, doubling to 10 s, to the next
//!   whole second, whatever happens meanwhile.
//! - **Scores.** LeastAllocated and BalancedAllocation on CPU and memory, and taints with `PreferNoSchedule`, with
//!   their weights. Among equal nodes the choice is drawn from the seed; kube-scheduler leaves it to the order in which
//!   its threads looked at them.
//!
//! Not modelled: preemption (a pod of high priority waits like any other); scores of inter-pod affinity, topology
//! spread, preferred node affinity and images; that only a share of the nodes is looked at where there are 100 or more;
//! scheduling gates and other schedulers; requests for each container (a pod without CPU or memory requests counts as
//! one container). A cycle takes no time and a call succeeds at once: kube-scheduler's client makes 50 calls a second
//! after the first 100 unless told otherwise, so that a thousand binds take it 18 s.
//!
//! A cordoned node and one that is not ready count as tainted, as a cluster's controllers would have it.

mod cluster;
mod shape;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ebb_core::kubernetes::{Node, Pod};
use ebb_core::schedule::Misfit;
use ebb_core::time::Instant;

use crate::random::Random;
use cluster::{Cluster, Slot};
use shape::{ShapeId, Shapes};

/// `podInitialBackoffSeconds` and `podMaxBackoffSeconds`.
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const LONGEST_BACKOFF: Duration = Duration::from_secs(10);

/// What the scheduler is told, in the order in which it happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    NodeApplied(Node),
    NodeDeleted {
        name: String,
    },
    /// Also of pods that others have bound; a pod bound here need not be told back.
    PodApplied(Pod),
    PodDeleted {
        uid: String,
    },
    /// The time that [`Scheduler::next_wakeup`] named has come.
    Tick,
}

/// What the scheduler does to a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    Bind {
        uid: String,
        node: String,
    },
    /// Set `PodScheduled` to `False` with the reason `Unschedulable`. Once for each pod: later failures change nothing.
    Unschedulable {
        uid: String,
        /// How many nodes refuse the pod, by the first reason that each of them has; empty if there are none.
        because: BTreeMap<Misfit, u32>,
    },
}

/// The scheduler and its picture of the cluster.
#[derive(Debug)]
pub struct Scheduler {
    cluster: Cluster,
    shapes: Shapes,
    /// By UID: all that are bound or wait.
    pods: BTreeMap<String, Tracked>,
    /// Pods that wait, in order of arrival. Between events none of them fits anywhere.
    lanes: BTreeMap<Lane, BTreeSet<(u64, String)>>,
    /// Lanes whose pods may fit now.
    woken: BTreeSet<Lane>,
    /// Tried while there was no node: until when, order of arrival, UID.
    backing_off: BTreeSet<(Instant, u64, String)>,
    arrivals: u64,
    ties: Random,
}

/// Pods that differ in nothing that the scheduler looks at, but for when they came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Lane {
    priority: Reverse<i32>,
    shape: ShapeId,
}

#[derive(Clone, Debug)]
struct Tracked {
    lane: Lane,
    /// Its place among all arrivals.
    order: u64,
    /// Its condition says that it is unschedulable.
    told: bool,
    /// Attempts in a row for which there was no node at all.
    errors: u32,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    BackingOff {
        until: Instant,
    },
    Bound(Slot),
    /// Deleted before it was bound; it is not tried again.
    Leaving,
    Waiting,
}

impl Scheduler {
    /// `seed` decides among nodes that score the same, and nothing else.
    pub fn new(seed: u64) -> Self {
        Self {
            cluster: Cluster::default(),
            shapes: Shapes::default(),
            pods: BTreeMap::new(),
            lanes: BTreeMap::new(),
            woken: BTreeSet::new(),
            backing_off: BTreeSet::new(),
            arrivals: 0,
            ties: Random::new(seed, "scheduler"),
        }
    }

    /// The only way in. Same events at the same times, same seed: same actions.
    pub fn handle(&mut self, now: Instant, event: Event) -> Vec<Action> {
        let mut arrived = None;
        match event {
            Event::NodeApplied(node) => {
                if let Some(slot) = self.cluster.apply(node) {
                    self.wake(slot);
                }
            }
            Event::NodeDeleted { name } => self.cluster.delete(&name),
            Event::PodApplied(pod) => {
                arrived = Some(pod.uid.clone());
                self.on_pod(pod);
            }
            Event::PodDeleted { uid } => self.forget(&uid),
            Event::Tick => {}
        }
        self.end_backoffs(now);
        let mut actions = self.run(now);
        actions.extend(arrived.and_then(|uid| self.tell(uid)));
        actions
    }

    /// When to send the next `Tick`; changes after every `handle`.
    pub fn next_wakeup(&self) -> Option<Instant> {
        self.backing_off.first().map(|(until, ..)| *until)
    }

    fn on_pod(&mut self, pod: Pod) {
        if pod.finished {
            return self.forget(&pod.uid);
        }
        let lane = Lane { priority: Reverse(pod.priority), shape: self.shapes.id(&pod) };
        let before = self.pods.get(&pod.uid);
        let bound = before.and_then(|before| match before.state {
            State::Bound(slot) => Some(slot),
            _ => None,
        });
        // An update from before the binding was seen does not undo it.
        let node = pod.node.clone().or_else(|| bound.map(|slot| self.cluster.member(slot).name.clone()));
        let told = pod.unschedulable_since.is_some() || before.is_some_and(|before| before.told);
        if let Some(before) = before
            && before.lane == lane
            && node.as_deref() == bound.map(|slot| self.cluster.member(slot).name.as_str())
            && (bound.is_some() || pod.terminating == (before.state == State::Leaving))
        {
            return;
        }
        let order = before.map_or(self.arrivals, |before| before.order);
        self.arrivals += 1;

        // Counted anew before the old count goes, so that nobody sees the node without it.
        let state = match &node {
            Some(node) => State::Bound(self.cluster.take(node, &self.shapes.get(lane.shape).demand)),
            None if pod.terminating => State::Leaving,
            None => State::Waiting,
        };
        self.forget(&pod.uid);
        let tracked = Tracked { lane, order, told, errors: 0, state };
        if state == State::Waiting {
            self.enqueue(lane, order, pod.uid.clone());
        }
        self.pods.insert(pod.uid, tracked);
    }

    fn forget(&mut self, uid: &str) {
        let Some(pod) = self.pods.remove(uid) else { return };
        match pod.state {
            State::BackingOff { until } => {
                self.backing_off.remove(&(until, pod.order, uid.to_owned()));
            }
            State::Bound(slot) => {
                self.cluster.release(slot, &self.shapes.get(pod.lane.shape).demand);
                self.wake(slot);
            }
            State::Leaving => {}
            State::Waiting => self.dequeue(pod.lane, &(pod.order, uid.to_owned())),
        }
    }

    fn enqueue(&mut self, lane: Lane, order: u64, uid: String) {
        self.lanes.entry(lane).or_default().insert((order, uid));
        self.woken.insert(lane);
    }

    fn dequeue(&mut self, lane: Lane, pod: &(u64, String)) {
        if let Some(waiting) = self.lanes.get_mut(&lane) {
            waiting.remove(pod);
            if waiting.is_empty() {
                self.lanes.remove(&lane);
            }
        }
    }

    /// Something was set free on a node, or changed: pods that fit there now are to be tried.
    fn wake(&mut self, slot: Slot) {
        let Some(place) = self.cluster.member(slot).place() else { return };
        let fitting = self.lanes.keys().filter(|lane| place.admits(&self.shapes.get(lane.shape).pod).is_ok());
        self.woken.extend(fitting);
    }

    fn end_backoffs(&mut self, now: Instant) {
        while self.backing_off.first().is_some_and(|(until, ..)| *until <= now)
            && let Some((_, order, uid)) = self.backing_off.pop_first()
            && let Some(pod) = self.pods.get_mut(&uid)
        {
            pod.state = State::Waiting;
            let lane = pod.lane;
            self.enqueue(lane, order, uid);
        }
    }

    /// Tries pod after pod until no one that waits fits anywhere.
    fn run(&mut self, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        let first = |(lane, pods): (Lane, &BTreeSet<(u64, String)>)| {
            pods.first().map(|(order, _)| (lane.priority, *order, lane.shape))
        };
        let woken = std::mem::take(&mut self.woken).into_iter();
        let mut queue: BTreeSet<_> =
            woken.filter_map(|lane| self.lanes.get(&lane).and_then(|pods| first((lane, pods)))).collect();
        while let Some((priority, _, shape)) = queue.pop_first() {
            let lane = Lane { priority, shape };
            if !self.cluster.has_nodes() {
                self.back_off(now, lane);
                continue;
            }
            let ranking = self.shapes.ranking(shape, &self.cluster, &mut self.ties);
            // Room only shrinks until the queue is empty: what holds for the first of the lane holds for the rest.
            let Some(slot) = ranking.best() else { continue };
            let Some(pods) = self.lanes.get_mut(&lane) else { continue };
            if let Some((_, uid)) = pods.pop_first() {
                let node = self.cluster.member(slot).name.clone();
                self.cluster.take(&node, &self.shapes.get(shape).demand);
                if let Some(pod) = self.pods.get_mut(&uid) {
                    pod.state = State::Bound(slot);
                }
                actions.push(Action::Bind { uid, node });
            }
            match first((lane, pods)) {
                Some(next) => _ = queue.insert(next),
                None => _ = self.lanes.remove(&lane),
            }
        }
        actions
    }

    /// There is no node to try: for kube-scheduler this is an error, and an error's backoff is waited out.
    fn back_off(&mut self, now: Instant, lane: Lane) {
        for (order, uid) in self.lanes.remove(&lane).unwrap_or_default() {
            if let Some(pod) = self.pods.get_mut(&uid) {
                let backoff = FIRST_BACKOFF.saturating_mul(2u32.saturating_pow(pod.errors)).min(LONGEST_BACKOFF);
                pod.errors += 1;
                // Backoffs end by whole seconds, and are looked at once a second.
                let until = Instant::from_millis(((now + backoff).as_millis() / 1000 + 1) * 1000);
                pod.state = State::BackingOff { until };
                self.backing_off.insert((until, order, uid));
            }
        }
    }

    /// What is to be said of a pod that has just come, if it waits and nobody has said so yet.
    fn tell(&mut self, uid: String) -> Option<Action> {
        let pod = self.pods.get_mut(&uid)?;
        if pod.told || !matches!(pod.state, State::BackingOff { .. } | State::Waiting) {
            return None;
        }
        pod.told = true;
        let because = match pod.state {
            State::Waiting => self.shapes.ranking(pod.lane.shape, &self.cluster, &mut self.ties).misfits().clone(),
            _ => BTreeMap::new(),
        };
        Some(Action::Unschedulable { uid, because })
    }
}
