//! The drain of one node, as its own agent carries it out: cordon, evict by UID (or leave its pods to end), wait until it
//! stays empty, say so; or give up and undo. Told the time and what happened; does no I/O.
//!
//! Level-triggered: each step compares the Node as it stands with what the intent asks for. Nothing but the Node is
//! needed to go on after a crash: the progress annotation says what was changed, and is written in the same patch as
//! the change.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::intent::{CONDITION_DRAINED, CONDITION_DRAINING, Intent, Phase, Progress};
use crate::kubernetes::{Node, Pod};
use crate::time::Instant;

/// How long a node must stay empty after its cordon was seen: the scheduler may have bound a pod just before.
/// Karpenter waits as long (its `MinDrainTime`).
const SETTLE: Duration = Duration::from_secs(5);
/// Evictions asked for at the same time. Blocked pods hold no slot, so a closed budget does not starve the others.
const EVICTIONS_IN_FLIGHT: usize = 10;
/// Pause after a patch that failed: long enough for the watch to deliver the Node that the patch collided with.
const PATCH_RETRY: Duration = Duration::from_secs(1);

/// What happened.
#[expect(clippy::large_enum_variant, reason = "only a handful exist at a time")]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Event {
    /// The own Node as it now stands: at first, after every change, and as the reply to a patch.
    Node(Node),
    /// All pods on the own node, at first and after every change. Sent only between [`Action::WatchPods`] and
    /// [`Action::UnwatchPods`].
    Pods(Vec<Pod>),
    /// The reply to an [`Action::Evict`]. Every one gets a reply.
    Evicted { uid: String, outcome: EvictionOutcome },
    /// An [`Action::Patch`] was accepted. The Node from its reply was sent just before, as [`Event::Node`].
    Patched,
    /// An [`Action::Patch`] failed, wholly or in part, or its reply was lost. Every one gets this or `Patched`.
    PatchFailed,
    /// The time that [`Drain::next_wakeup`] named has come.
    Tick,
}

/// How the API server answered an eviction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum EvictionOutcome {
    /// 200, 201: the pod is terminating.
    Accepted,
    /// 404, or 409 on the UID precondition: this pod is gone.
    Gone,
    /// 429 with the cause `DisruptionBudget`: a PodDisruptionBudget does not allow it now.
    Blocked,
    /// 429 without that cause, 5xx, no reply: nothing is known of the pod.
    Unavailable,
    /// 403, and everything else that will not change by itself soon.
    Refused,
}

impl EvictionOutcome {
    /// When to ask again, should the pod still be there. kubectl asks a blocked one every 5 s; an accepted one has
    /// its grace period of 30 s by default.
    fn retry_after(self) -> Duration {
        Duration::from_secs(match self {
            Self::Unavailable => 2,
            Self::Gone | Self::Blocked => 5,
            Self::Accepted | Self::Refused => 30,
        })
    }
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Action {
    /// Watch the pods of the own node and send [`Event::Pods`] from now on.
    WatchPods,
    UnwatchPods,
    /// Change the own Node in one request, provided it still is the one last sent as [`Event::Node`] (by resource
    /// version).
    Patch {
        change: Change,
        because: Step,
    },
    /// Evict this pod, with its UID as precondition.
    Evict {
        namespace: String,
        name: String,
        uid: String,
    },
}

/// What one request changes: the status is a resource of its own, so its conditions need another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Change {
    Conditions(Vec<Condition>),
    /// `unschedulable`: `None` leaves it as it is. `progress`: `None` removes the annotation.
    Spec {
        unschedulable: Option<bool>,
        progress: Option<Progress>,
    },
}

/// A node condition to set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    pub type_: String,
    pub status: bool,
    /// CamelCase, for machines.
    pub reason: String,
    pub message: String,
}

/// The steps of a drain: what a patch stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Step {
    /// The intent is gone; what we changed is undone.
    Cancelled,
    /// The deadline passed; what we changed is undone.
    DeadlineExceeded,
    Drained,
    /// No more pods come, and those there are end by themselves.
    RunningOut,
    Started,
    /// Somebody made the node schedulable again: their word stands.
    Uncordoned,
}

impl Step {
    /// A closed set of CamelCase words, for conditions' reasons and metrics' labels.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cancelled => "DrainCancelled",
            Self::DeadlineExceeded => "DeadlineExceeded",
            Self::Drained => "DrainCompleted",
            Self::RunningOut => "RunningToCompletion",
            Self::Started => "DrainStarted",
            Self::Uncordoned => "Uncordoned",
        }
    }

    fn message(self) -> &'static str {
        match self {
            Self::Cancelled => "the drain is no longer wanted; what it changed was undone",
            Self::DeadlineExceeded => "the drain did not end before its deadline; what it changed was undone",
            Self::Drained => "no pod but those of DaemonSets and of the node itself is left",
            Self::RunningOut => "the node takes no more pods; those on it are left to end by themselves",
            Self::Started => "pods are being evicted",
            Self::Uncordoned => "somebody made the node schedulable again; the drain was given up",
        }
    }
}

/// The drain of the own node.
#[derive(Debug, Default)]
pub struct Drain {
    node: Option<Node>,
    /// `None` until the first list after `WatchPods`.
    pods: Option<Vec<Pod>>,
    watching_pods: bool,
    patch: PatchState,
    /// By pod UID.
    evictions: BTreeMap<String, Eviction>,
    /// Since when, after the cordon was seen, no pod has held the node.
    empty_since: Option<Instant>,
}

#[derive(Debug, Default, PartialEq)]
enum PatchState {
    #[default]
    Ready,
    InFlight,
    RetryAt(Instant),
}

#[derive(Debug, PartialEq)]
enum Eviction {
    InFlight,
    RetryAt(Instant),
}

impl Drain {
    pub fn new() -> Self {
        Self::default()
    }

    /// The only way in. Same state, same `now`, same event: same actions.
    pub fn handle(&mut self, now: Instant, event: Event) -> Vec<Action> {
        match event {
            Event::Node(node) => self.node = Some(node),
            Event::Pods(pods) => {
                self.evictions.retain(|uid, _| pods.iter().any(|pod| pod.uid == *uid));
                self.pods = Some(pods);
            }
            Event::Evicted { uid, outcome } => {
                if let Some(eviction) = self.evictions.get_mut(&uid) {
                    *eviction = Eviction::RetryAt(now + outcome.retry_after());
                }
            }
            Event::Patched => self.patch = PatchState::Ready,
            Event::PatchFailed => self.patch = PatchState::RetryAt(now + PATCH_RETRY),
            Event::Tick => {}
        }
        self.step(now)
    }

    /// When to send the next [`Event::Tick`]; `None` while nothing is pending. Changes after every `handle`.
    pub fn next_wakeup(&self) -> Option<Instant> {
        match self.patch {
            PatchState::InFlight => return None,
            PatchState::RetryAt(at) => return Some(at),
            PatchState::Ready => {}
        }
        let (intent, progress) = self.active()?;
        let settled = self.empty_since.filter(|_| progress.phase == Phase::Draining).map(|since| since + SETTLE);
        // With all slots taken no retry can be made: the reply that frees one is the next event.
        let free_slot = self.in_flight() < EVICTIONS_IN_FLIGHT;
        let retries = self.evictions.values().filter_map(|eviction| match eviction {
            Eviction::RetryAt(at) if free_slot => Some(*at),
            Eviction::InFlight | Eviction::RetryAt(_) => None,
        });
        retries.chain(settled).chain([intent.deadline]).min()
    }

    /// The intent being carried out.
    fn active(&self) -> Option<(&Intent, &Progress)> {
        let node = self.node.as_ref()?;
        let (intent, progress) = node.intent.as_ref().zip(node.progress.as_ref())?;
        (intent.id == progress.id && progress.phase != Phase::Failed).then_some((intent, progress))
    }

    fn step(&mut self, now: Instant) -> Vec<Action> {
        match self.patch {
            PatchState::InFlight => return Vec::new(),
            PatchState::RetryAt(at) if now < at => return Vec::new(),
            PatchState::RetryAt(_) | PatchState::Ready => self.patch = PatchState::Ready,
        }
        let Some(node) = self.node.clone() else { return Vec::new() };
        let mut actions = Vec::new();
        if let Some((because, change)) = self.next_change(now, &node) {
            self.patch = PatchState::InFlight;
            actions.push(Action::Patch { change, because });
        }
        let draining = self.active().is_some_and(|(_, progress)| progress.phase == Phase::Draining);
        if draining != self.watching_pods {
            self.watching_pods = draining;
            self.pods = None;
            self.evictions.clear();
            self.empty_since = None;
            actions.push(if draining { Action::WatchPods } else { Action::UnwatchPods });
        }
        if draining && self.patch == PatchState::Ready {
            actions.extend(self.evict(now));
        }
        actions
    }

    /// What has to change on the Node next, if anything.
    fn next_change(&self, now: Instant, node: &Node) -> Option<(Step, Change)> {
        let (step, phase) = match (&node.intent, &node.progress) {
            (None, None) => (Step::Cancelled, None),
            (None, Some(_)) => return Some((Step::Cancelled, undo(node, Step::Cancelled, None))),
            (Some(intent), Some(progress)) if intent.id != progress.id => {
                return Some((Step::Cancelled, undo(node, Step::Cancelled, None)));
            }
            (_, Some(progress)) if progress.phase == Phase::Failed => (Step::DeadlineExceeded, None),
            (Some(intent), _) if now >= intent.deadline => {
                return Some((Step::DeadlineExceeded, undo(node, Step::DeadlineExceeded, Some(&intent.id))));
            }
            (Some(intent), None) => return Some((started(intent), start(node, &intent.id))),
            // The cordon came with the progress, in one request: if it is gone, somebody took it off.
            (Some(intent), Some(_)) if !node.unschedulable => {
                return Some((Step::Uncordoned, undo(node, Step::Uncordoned, Some(&intent.id))));
            }
            (Some(_), Some(progress)) if progress.phase == Phase::Draining && self.settled(now) => {
                let progress = Progress { phase: Phase::Drained, ..progress.clone() };
                return Some((Step::Drained, Change::Spec { unschedulable: None, progress: Some(progress) }));
            }
            (Some(_), Some(progress)) if progress.phase == Phase::Drained => (Step::Drained, Some(Phase::Drained)),
            (Some(intent), Some(_)) => (started(intent), Some(Phase::Draining)),
        };
        let wanted = (phase == Some(Phase::Draining), phase == Some(Phase::Drained));
        ((node.draining, node.drained) != wanted).then(|| (step, conditions(phase, step)))
    }

    fn in_flight(&self) -> usize {
        self.evictions.values().filter(|eviction| **eviction == Eviction::InFlight).count()
    }

    fn settled(&self, now: Instant) -> bool {
        self.empty_since.is_some_and(|since| now.since(since) >= SETTLE)
    }

    fn evict(&mut self, now: Instant) -> Vec<Action> {
        let Some(pods) = &self.pods else { return Vec::new() };
        let holding: Vec<_> = pods.iter().filter(|pod| pod.holds_node()).collect();
        if holding.is_empty() {
            self.evictions.clear();
            self.empty_since.get_or_insert(now);
            return Vec::new();
        }
        self.empty_since = None;
        if !self.active().is_some_and(|(intent, _)| intent.evict) {
            return Vec::new();
        }
        let due = |pod: &&&Pod| match self.evictions.get(&pod.uid) {
            None => true,
            Some(Eviction::InFlight) => false,
            Some(Eviction::RetryAt(at)) => now >= *at,
        };
        let chosen: Vec<_> = holding
            .iter()
            .filter(|pod| !pod.terminating)
            .filter(due)
            .take(EVICTIONS_IN_FLIGHT.saturating_sub(self.in_flight()))
            .map(|pod| (pod.namespace.clone(), pod.name.clone(), pod.uid.clone()))
            .collect();
        // A pod that is terminating needs no second request.
        self.evictions.retain(|uid, _| holding.iter().any(|pod| pod.uid == *uid && !pod.terminating));
        chosen
            .into_iter()
            .map(|(namespace, name, uid)| {
                self.evictions.insert(uid.clone(), Eviction::InFlight);
                Action::Evict { namespace, name, uid }
            })
            .collect()
    }
}

fn started(intent: &Intent) -> Step {
    if intent.evict { Step::Started } else { Step::RunningOut }
}

fn start(node: &Node, id: &str) -> Change {
    let cordoned_by_us = !node.unschedulable;
    Change::Spec {
        unschedulable: cordoned_by_us.then_some(true),
        progress: Some(Progress { id: id.to_owned(), phase: Phase::Draining, cordoned_by_us }),
    }
}

/// Takes back what we did and no more; the conditions first, so that no schedulable node is called drained.
/// `failed`: the drain to mark as failed, so that it does not start anew.
fn undo(node: &Node, because: Step, failed: Option<&str>) -> Change {
    if node.draining || node.drained {
        return conditions(None, because);
    }
    let ours = node.progress.as_ref().is_some_and(|progress| progress.cordoned_by_us);
    Change::Spec {
        unschedulable: (ours && node.unschedulable).then_some(false),
        progress: failed.map(|id| Progress { id: id.to_owned(), phase: Phase::Failed, cordoned_by_us: false }),
    }
}

fn conditions(phase: Option<Phase>, step: Step) -> Change {
    let conditions =
        [(CONDITION_DRAINING, phase == Some(Phase::Draining)), (CONDITION_DRAINED, phase == Some(Phase::Drained))];
    Change::Conditions(
        conditions
            .map(|(type_, status)| Condition {
                type_: type_.to_owned(),
                status,
                reason: step.name().to_owned(),
                message: step.message().to_owned(),
            })
            .to_vec(),
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::intent::{Permits, Trigger};
    use crate::kubernetes::Controller;

    const BEGIN: Instant = Instant::from_millis(1_000_000);

    fn at(second: u64) -> Instant {
        BEGIN + Duration::from_secs(second)
    }

    fn intent(id: &str) -> Intent {
        Intent {
            id: id.into(),
            reason: "idle".into(),
            requested_at: at(0),
            deadline: at(600),
            evict: true,
            by: Trigger::Coordinator,
            permits: Permits::default(),
        }
    }

    fn workload(uid: &str) -> Pod {
        Pod { uid: uid.into(), namespace: "default".into(), name: format!("pod-{uid}"), ..Pod::default() }
    }

    /// The API server as the agent sees it, and the agent's drain before it.
    struct World {
        now: Instant,
        node: Node,
        pods: Vec<Pod>,
        drain: Drain,
        /// What the drain asked for, in words, since the last look.
        asked: Vec<String>,
        blocked: bool,
    }

    impl World {
        fn new(node: Node, pods: Vec<Pod>) -> Self {
            Self { now: at(0), node, pods, drain: Drain::new(), asked: Vec::new(), blocked: false }
        }

        /// Tells the drain something, and does what it asks until it asks for nothing more.
        fn tell(&mut self, event: Event) {
            let mut queue = std::collections::VecDeque::from([event]);
            while let Some(event) = queue.pop_front() {
                for action in self.drain.handle(self.now, event) {
                    self.perform(&action, &mut queue);
                }
            }
        }

        fn perform(&mut self, action: &Action, queue: &mut std::collections::VecDeque<Event>) {
            match action {
                Action::WatchPods => {
                    self.asked.push("watch".into());
                    queue.push_back(Event::Pods(self.pods.clone()));
                }
                Action::UnwatchPods => self.asked.push("unwatch".into()),
                Action::Patch { change, because } => {
                    self.asked.push(because.name().into());
                    self.apply(change);
                    queue.push_back(Event::Node(self.node.clone()));
                    queue.push_back(Event::Patched);
                }
                Action::Evict { name, uid, .. } => {
                    let evict = self.node.intent.as_ref().is_some_and(|intent| intent.evict);
                    assert!(evict, "nothing is evicted that is to run to its end");
                    self.asked.push(format!("evict {name}"));
                    let outcome = if self.blocked {
                        EvictionOutcome::Blocked
                    } else {
                        self.pods.retain(|pod| pod.uid != *uid);
                        EvictionOutcome::Accepted
                    };
                    queue.push_back(Event::Evicted { uid: uid.clone(), outcome });
                    queue.push_back(Event::Pods(self.pods.clone()));
                }
            }
        }

        fn apply(&mut self, change: &Change) {
            match change {
                Change::Spec { unschedulable, progress } => {
                    self.node.unschedulable = unschedulable.unwrap_or(self.node.unschedulable);
                    self.node.progress.clone_from(progress);
                }
                Change::Conditions(conditions) => {
                    for condition in conditions {
                        match condition.type_.as_str() {
                            CONDITION_DRAINING => self.node.draining = condition.status,
                            CONDITION_DRAINED => self.node.drained = condition.status,
                            other => panic!("unknown condition {other}"),
                        }
                    }
                }
            }
        }

        fn show_node(&mut self) {
            self.tell(Event::Node(self.node.clone()));
        }

        /// Lets time pass until nothing is pending before `second`.
        fn run_until(&mut self, second: u64) {
            while let Some(at) = self.drain.next_wakeup().filter(|wakeup| *wakeup <= at(second)) {
                assert!(at >= self.now, "a wakeup in the past makes the driver spin");
                self.now = at;
                self.tell(Event::Tick);
                assert!(self.drain.next_wakeup().is_none_or(|next| next > at), "a tick moves the next wakeup");
            }
            self.now = at(second);
        }

        fn asked(&mut self) -> Vec<String> {
            std::mem::take(&mut self.asked)
        }
    }

    fn running_out(pods: Vec<Pod>) -> World {
        let intent = Intent { evict: false, ..intent("d") };
        let mut world = World::new(Node { intent: Some(intent), ..Node::default() }, pods);
        world.show_node();
        world
    }

    fn wanted(pods: Vec<Pod>) -> World {
        let mut world = World::new(Node { intent: Some(intent("d")), ..Node::default() }, pods);
        world.show_node();
        world
    }

    #[test]
    fn a_node_is_cordoned_emptied_and_drained() {
        let daemon = Pod { controller: Controller::DaemonSet, ..workload("daemon") };
        let done = Pod { finished: true, ..workload("done") };
        let mut world = wanted(vec![workload("a"), daemon, done, workload("b")]);
        assert_eq!(world.asked(), ["DrainStarted", "DrainStarted", "watch", "evict pod-a", "evict pod-b"]);
        assert!(world.node.unschedulable && world.node.draining && !world.node.drained);
        world.run_until(60);
        assert_eq!(world.asked(), ["DrainCompleted", "DrainCompleted", "unwatch"]);
        assert!(world.node.unschedulable && world.node.drained && !world.node.draining);
        assert_eq!(world.node.progress.as_ref().unwrap().phase, Phase::Drained);
    }

    #[test]
    fn a_node_that_runs_out_is_cordoned_and_drained_when_its_last_pod_has_ended() {
        let mut world = running_out(vec![workload("a"), workload("b")]);
        assert_eq!(world.asked(), ["RunningToCompletion", "RunningToCompletion", "watch"]);
        assert!(world.node.unschedulable && world.node.draining);
        world.run_until(300);
        world.pods.remove(0);
        world.tell(Event::Pods(world.pods.clone()));
        world.run_until(400);
        assert!(!world.node.drained);
        world.pods[0].finished = true;
        world.tell(Event::Pods(world.pods.clone()));
        world.run_until(404);
        assert!(!world.node.drained);
        world.run_until(405);
        assert_eq!(world.asked(), ["DrainCompleted", "DrainCompleted", "unwatch"]);
        assert!(world.node.drained && world.node.unschedulable);
    }

    #[test]
    fn a_node_that_does_not_run_out_in_time_is_given_back() {
        let mut world = running_out(vec![workload("a")]);
        world.asked();
        world.run_until(600);
        assert_eq!(world.asked(), ["DeadlineExceeded", "DeadlineExceeded", "unwatch"]);
        assert!(!world.node.unschedulable && !world.node.draining);
        assert_eq!(world.pods.len(), 1);
    }

    #[test]
    fn drained_is_said_only_after_the_node_stayed_empty() {
        let mut world = wanted(vec![]);
        world.run_until(4);
        world.pods = vec![workload("late")];
        world.blocked = true;
        world.tell(Event::Pods(world.pods.clone()));
        world.run_until(30);
        assert!(!world.node.drained);
        world.pods.clear();
        world.tell(Event::Pods(vec![]));
        world.run_until(34);
        assert!(!world.node.drained);
        world.run_until(35);
        assert!(world.node.drained);
    }

    #[test]
    fn a_blocked_pod_is_asked_for_again_until_the_deadline_undoes_the_drain() {
        let mut world = wanted(vec![workload("a")]);
        world.pods = vec![workload("a")];
        world.blocked = true;
        world.tell(Event::Pods(world.pods.clone()));
        world.run_until(599);
        let evictions = world.asked().iter().filter(|asked| *asked == "evict pod-a").count();
        assert!((100..=121).contains(&evictions), "{evictions}");
        assert!(world.node.unschedulable);
        world.run_until(600);
        assert_eq!(world.asked(), ["DeadlineExceeded", "DeadlineExceeded", "unwatch"]);
        assert!(!world.node.unschedulable && !world.node.draining && !world.node.drained);
        assert_eq!(world.node.progress.as_ref().unwrap().phase, Phase::Failed);
        // It does not start anew, and leaves nothing once the intent is gone.
        world.show_node();
        world.node.intent = None;
        world.show_node();
        assert_eq!(world.node.progress, None);
        assert!(!world.node.unschedulable);
    }

    #[test]
    fn a_cancelled_drain_is_undone() {
        let mut world = wanted(vec![]);
        world.run_until(60);
        world.node.intent = None;
        world.show_node();
        assert_eq!(world.node, Node::default());
    }

    #[test]
    fn somebody_elses_cordon_stays() {
        let mut world = World::new(Node { intent: Some(intent("d")), unschedulable: true, ..Node::default() }, vec![]);
        world.show_node();
        world.run_until(60);
        assert!(world.node.drained);
        world.node.intent = None;
        world.show_node();
        assert_eq!(world.node, Node { unschedulable: true, ..Node::default() });
    }

    #[test]
    fn somebody_elses_uncordon_stops_the_drain() {
        let mut world = wanted(vec![]);
        world.node.unschedulable = false;
        world.show_node();
        assert_eq!(world.node.progress.as_ref().unwrap().phase, Phase::Failed);
        assert!(!world.node.unschedulable && !world.node.draining);
        world.run_until(700);
        assert!(!world.node.unschedulable && !world.node.drained);
    }

    #[test]
    fn a_new_intent_replaces_the_old_one() {
        let mut world = wanted(vec![]);
        world.run_until(60);
        world.node.intent = Some(intent("e"));
        world.show_node();
        world.run_until(120);
        assert_eq!(world.node.progress, Some(Progress { id: "e".into(), phase: Phase::Drained, cordoned_by_us: true }));
        assert!(world.node.unschedulable && world.node.drained);
    }

    #[test]
    fn an_intent_that_comes_after_its_deadline_does_nothing() {
        let mut world = World::new(Node { intent: Some(intent("d")), ..Node::default() }, vec![workload("a")]);
        world.now = at(601);
        world.show_node();
        assert!(!world.node.unschedulable);
        assert_eq!(world.pods.len(), 1);
        assert_eq!(world.node.progress.as_ref().unwrap().phase, Phase::Failed);
    }

    /// What chance does to a drain.
    #[derive(Clone, Debug)]
    enum Chance {
        Crash,
        /// A request whose reply never comes; whether it took effect.
        LosePatch(bool),
        Cancel,
        /// Whether to evict.
        Ask(bool),
        Pod,
        /// A pod ends by itself.
        End,
        Block(bool),
        Wait(u64),
    }

    fn chance() -> impl Strategy<Value = Chance> {
        prop_oneof![
            Just(Chance::Crash),
            any::<bool>().prop_map(Chance::LosePatch),
            Just(Chance::Cancel),
            any::<bool>().prop_map(Chance::Ask),
            Just(Chance::Pod),
            Just(Chance::End),
            any::<bool>().prop_map(Chance::Block),
            (1..30_u64).prop_map(Chance::Wait),
        ]
    }

    proptest! {
        /// Whatever happens in between, once all is calm a wanted drain ends drained, or a cancelled one leaves the
        /// node as it was found.
        #[test]
        fn a_drain_survives_crashes_and_lost_patches(
            cordoned in any::<bool>(),
            chances in prop::collection::vec(chance(), 0..30),
            calm in any::<bool>(),
        ) {
            let found = Node { unschedulable: cordoned, ..Node::default() };
            let mut world = World::new(found.clone(), vec![]);
            let mut uids = 0..;
            let mut second = 0;
            for (number, chance) in chances.into_iter().enumerate() {
                match chance {
                    Chance::Crash => world.drain = Drain::new(),
                    Chance::LosePatch(takes_effect) => {
                        world.drain = Drain::new();
                        for action in world.drain.handle(world.now, Event::Node(world.node.clone())) {
                            if let Action::Patch { change, .. } = action
                                && takes_effect
                            {
                                world.apply(&change);
                            }
                        }
                        world.tell(Event::PatchFailed);
                    }
                    Chance::Cancel => world.node.intent = None,
                    Chance::Ask(evict) => {
                        let deadline = world.now + Duration::from_secs(10_000);
                        world.node.intent = Some(Intent { deadline, evict, ..intent(&format!("d{number}")) });
                    }
                    Chance::End => _ = world.pods.pop(),
                    Chance::Pod if !world.node.unschedulable => world.pods.push(workload(&format!("u{}", uids.next().unwrap()))),
                    Chance::Pod => {}
                    Chance::Block(blocked) => world.blocked = blocked,
                    Chance::Wait(seconds) => second += seconds,
                }
                world.show_node();
                if world.drain.watching_pods {
                    world.tell(Event::Pods(world.pods.clone()));
                }
                world.run_until(second);
                // No cordon of ours without an owner; never drained with pods on the node.
                prop_assert!(world.node.unschedulable == cordoned || world.node.progress.is_some());
                prop_assert!(!world.node.drained || world.pods.is_empty());
            }
            world.blocked = false;
            if calm {
                world.node.intent = None;
                world.show_node();
                world.run_until(second + 100);
                world.pods.clear();
                prop_assert_eq!(world.node, found);
            } else {
                world.node.intent = Some(Intent { deadline: world.now + Duration::from_secs(10_000), ..intent("last") });
                world.show_node();
                world.run_until(second + 100);
                prop_assert!(world.node.drained && world.node.unschedulable && world.pods.is_empty());
            }
        }
    }
}
