use std::collections::{BTreeMap, VecDeque};

use proptest::prelude::*;

use super::*;
use crate::intent::{CONDITION_DRAINED, CONDITION_DRAINING, CONDITION_PLANNED, Permits, Trigger};
use crate::kubernetes::Controller;
use crate::notice::{Notice, Notices};
use crate::reason::Pin;
use crate::time::format_duration;

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
        awaits_turn: false,
        permits: Permits::default(),
    }
}

fn workload(uid: &str) -> Pod {
    Pod {
        uid: uid.into(),
        namespace: "default".into(),
        name: format!("pod-{uid}"),
        grace: Duration::from_secs(30),
        ..Pod::default()
    }
}

/// The API server as the agent sees it, and the agent's drain before it.
struct World {
    now: Instant,
    node: Node,
    pods: Vec<Pod>,
    drain: Drain,
    /// What the drain asked for, in words, since the last look.
    asked: Vec<String>,
    /// Evictions that the budget allows; each takes one.
    budget: usize,
    /// What is answered where it allows none.
    refusal: fn() -> Reply,
    /// What hooks answer, by name; "done" by those that are not here.
    hooks: BTreeMap<String, HookOutcome>,
    /// The message of the conditions.
    message: String,
}

impl World {
    fn new(node: Node, pods: Vec<Pod>) -> Self {
        Self {
            now: at(0),
            node,
            pods,
            drain: Drain::default(),
            asked: Vec::new(),
            budget: usize::MAX,
            refusal: blocked,
            hooks: BTreeMap::new(),
            message: String::new(),
        }
    }

    fn with(mut self, settings: Settings) -> Self {
        self.drain = Drain::new(settings);
        self
    }

    /// Tells the drain something, and does what it asks until it asks for nothing more.
    fn tell(&mut self, event: Event) {
        let mut queue = VecDeque::from([event]);
        while let Some(event) = queue.pop_front() {
            for action in self.drain.handle(self.now, event) {
                self.perform(action, &mut queue);
            }
        }
    }

    fn perform(&mut self, action: Action, queue: &mut VecDeque<Event>) {
        match action {
            Action::WatchPods => {
                self.asked.push("watch".into());
                queue.push_back(Event::Pods(self.pods.clone()));
            }
            Action::UnwatchPods => self.asked.push("unwatch".into()),
            Action::Patch { change, because } => {
                self.asked.push(because.name().into());
                self.apply(change);
                queue.push_back(Event::Node(Box::new(self.node.clone())));
                queue.push_back(Event::Patched);
            }
            Action::Check(Target { name, uid, .. }) => {
                self.asked.push(format!("check {name}"));
                let reply = if self.budget == 0 { (self.refusal)() } else { EvictionOutcome::Accepted.into() };
                queue.push_back(Event::Checked { uid, reply });
            }
            Action::Evict { pod: Target { name, uid, .. }, grace } => {
                let grace = grace.map(|grace| format!(" in {}", format_duration(grace))).unwrap_or_default();
                self.asked.push(format!("evict {name}{grace}"));
                self.check(&uid);
                let reply = if self.budget == 0 {
                    (self.refusal)()
                } else {
                    self.budget = self.budget.saturating_sub(1);
                    self.pods.retain(|pod| pod.uid != *uid);
                    EvictionOutcome::Accepted.into()
                };
                queue.push_back(Event::Evicted { uid, reply });
                queue.push_back(Event::Pods(self.pods.clone()));
            }
            Action::Delete { pod: Target { name, uid, .. }, grace } => {
                self.asked.push(format!("delete {name} in {}", format_duration(grace)));
                self.check(&uid);
                self.pods.retain(|pod| pod.uid != *uid);
                queue.push_back(Event::Evicted { uid, reply: EvictionOutcome::Accepted.into() });
                queue.push_back(Event::Pods(self.pods.clone()));
            }
            Action::RunHook { hook, phase, .. } => {
                self.asked.push(format!("{} {hook}", phase.name()));
                let outcome = self.hooks.get(&hook).cloned().unwrap_or(HookOutcome::Done);
                queue.push_back(Event::Hook { hook, phase, outcome });
            }
            Action::StopHook { hook, .. } => self.asked.push(format!("stop {hook}")),
        }
    }

    /// What must hold of whatever takes a pod away.
    fn check(&self, uid: &str) {
        let intent = self.node.intent.as_ref().expect("nothing is evicted that nobody wants to go");
        assert!(intent.evict || !intent.is_planned(), "nothing is evicted that is to run to its end");
        assert!(self.node.unschedulable, "nothing is evicted from a node that takes pods");
        assert!(self.pods.iter().any(|pod| pod.uid == *uid), "nothing is evicted twice");
    }

    fn apply(&mut self, change: Change) {
        match change {
            Change::Node(change) => {
                self.node.unschedulable = change.unschedulable.unwrap_or(self.node.unschedulable);
                self.node.excluded = change.excluded.unwrap_or(self.node.excluded);
                change.intent.apply(&mut self.node.intent);
                change.progress.apply(&mut self.node.progress);
                self.node.request = self.node.request.take().filter(|_| self.node.intent.is_none());
            }
            Change::Conditions(conditions) => {
                for condition in conditions {
                    self.message = condition.message;
                    match condition.type_.as_str() {
                        CONDITION_PLANNED => self.node.planned = condition.status,
                        CONDITION_DRAINING => self.node.draining = condition.status,
                        CONDITION_DRAINED => self.node.drained = condition.status,
                        other => panic!("unknown condition {other}"),
                    }
                }
            }
        }
    }

    fn show_node(&mut self) {
        self.tell(Event::Node(Box::new(self.node.clone())));
    }

    fn show_pods(&mut self) {
        self.tell(Event::Pods(self.pods.clone()));
    }

    /// Lets time pass until nothing is pending before `second`.
    fn run_until(&mut self, second: u64) {
        while let Some(wakeup) = self.drain.next_wakeup().filter(|wakeup| *wakeup <= at(second)) {
            assert!(wakeup >= self.now, "a wakeup in the past makes the driver spin");
            self.now = wakeup;
            self.tell(Event::Tick);
            assert!(self.drain.next_wakeup().is_none_or(|next| next > wakeup), "a tick moves the next wakeup");
        }
        self.now = at(second);
    }

    fn asked(&mut self) -> Vec<String> {
        std::mem::take(&mut self.asked)
    }

    fn phase(&self) -> Option<Phase> {
        self.node.progress.as_ref().map(|progress| progress.phase)
    }
}

fn blocked() -> Reply {
    Reply {
        reason: "needs 2 healthy pods and has 2".into(),
        budget: Some("default/web".into()),
        ..EvictionOutcome::Blocked.into()
    }
}

fn wanted_by(intent: Intent, pods: Vec<Pod>) -> World {
    let mut world = World::new(Node { intent: Some(intent), ..Node::default() }, pods);
    world.show_node();
    world
}

fn running_out(pods: Vec<Pod>) -> World {
    wanted_by(Intent { evict: false, ..intent("d") }, pods)
}

fn wanted(pods: Vec<Pod>) -> World {
    wanted_by(intent("d"), pods)
}

fn spot(pods: Vec<Pod>) -> World {
    wanted_by(Intent { by: Trigger::SpotInterruption, deadline: at(120), ..intent("spot") }, pods)
}

fn hook(name: &str, phase: HookPhase) -> Hook {
    Hook {
        name: name.into(),
        phases: [phase].into(),
        timeout: Duration::from_secs(60),
        silence: None,
        on_failure: OnFailure::Abort,
        when: When::Any,
    }
}

fn planned_with(hooks: Vec<Hook>, answers: &[(&str, HookOutcome)]) -> World {
    let node = Node { intent: Some(intent("d")), ..Node::default() };
    let mut world = World::new(node, vec![workload("a")]).with(Settings { hooks, ..Settings::default() });
    world.hooks = answers.iter().map(|(name, outcome)| ((*name).to_owned(), outcome.clone())).collect();
    world.show_node();
    world
}

/// Nothing of a drain is left but that it failed.
fn assert_given_up(world: &World, message: &str) {
    let Node { unschedulable, excluded, planned, draining, drained, .. } = world.node;
    assert_eq!([unschedulable, excluded, planned, draining, drained], [false; 5], "{:?}", world.node);
    assert_eq!(world.phase(), Some(Phase::Failed));
    assert!(world.message.contains(message), "{}", world.message);
}

#[test]
fn a_node_is_asked_about_cordoned_emptied_and_drained() {
    let daemon = Pod { controller: Controller::DaemonSet, ..workload("daemon") };
    let done = Pod { finished: true, ..workload("done") };
    let mut world = wanted(vec![workload("a"), daemon, done, workload("b")]);
    let asked = ["watch", "check pod-a", "check pod-b", "DrainStarted", "DrainStarted", "evict pod-a", "evict pod-b"];
    assert_eq!(world.asked(), asked);
    assert!(world.node.unschedulable && world.node.excluded && world.node.planned && world.node.draining);
    world.run_until(60);
    assert_eq!(world.asked(), ["DrainCompleted", "unwatch", "DrainCompleted"]);
    assert!(world.node.unschedulable && world.node.planned && world.node.drained && !world.node.draining);
    assert_eq!(world.phase(), Some(Phase::Drained));
}

#[test]
fn a_planned_drain_that_cannot_succeed_touches_nothing_and_says_why() {
    let bare = Pod { pin: Some(Pin::NotReplicated), ..workload("a") };
    let stateful = Pod { pin: Some(Pin::NotSafeToEvict), ..workload("b") };
    let local = Pod { loses_data: true, ..workload("c") };
    for (pod, why) in [
        (bare, "default/pod-a: no controller would replace it"),
        (stateful, "default/pod-b: its annotation cluster-autoscaler.kubernetes.io/safe-to-evict says so"),
        (local, "default/pod-c: it has a volume of the node's own"),
    ] {
        let mut world = wanted(vec![pod, workload("z")]);
        assert_given_up(&world, why);
        assert_eq!(world.asked(), ["watch", "PreflightFailed", "PreflightFailed", "unwatch"]);
    }
    let pods = ["a", "b", "c", "d", "e"].map(workload).to_vec();
    let mut world = World::new(Node { intent: Some(intent("d")), ..Node::default() }, pods);
    world.budget = 0;
    world.show_node();
    let why = "default/pod-a, default/pod-b, default/pod-c and 2 more: PodDisruptionBudget default/web: needs 2";
    assert_given_up(&world, why);
    assert!(!world.asked().contains(&"evict pod-a".to_owned()));
    assert_eq!(world.pods.len(), 5);
}

#[test]
fn what_may_be_lost_is_evicted_when_somebody_says_so() {
    let bare = Pod { pin: Some(Pin::NotReplicated), loses_data: true, ..workload("a") };
    let permitted = |force, delete_emptydir_data| {
        let permits = Permits { force, delete_emptydir_data, delete_at_deadline: false };
        wanted_by(Intent { by: Trigger::Person, permits, ..intent("d") }, vec![bare.clone()]).phase()
    };
    assert_eq!(permitted(true, true), Some(Phase::Draining));
    assert_eq!(permitted(true, false), Some(Phase::Failed));
    assert_eq!(permitted(false, true), Some(Phase::Failed));
}

#[test]
fn a_drain_that_is_not_planned_asks_nobody_first_and_takes_all() {
    let bare = Pod { pin: Some(Pin::NotReplicated), loses_data: true, ..workload("a") };
    let mut world = spot(vec![bare]);
    assert_eq!(world.asked(), ["DrainStarted", "watch", "DrainStarted", "evict pod-a"]);
    world.run_until(60);
    assert!(world.node.drained);
    // It never gives the node back: there is none.
    world.run_until(1000);
    assert!(world.node.drained && world.node.unschedulable);
}

#[test]
fn grace_is_shortened_only_where_the_node_is_lost_before_its_end() {
    let slow = Pod { grace: Duration::from_secs(600), ..workload("a") };
    let mut world = spot(vec![slow.clone()]);
    assert!(world.asked().contains(&"evict pod-a in 1m55s".to_owned()));
    let mut world = wanted_by(Intent { deadline: at(120), ..intent("d") }, vec![slow]);
    assert!(world.asked().contains(&"evict pod-a".to_owned()));
}

#[test]
fn shortly_before_the_deadline_a_blocked_pod_is_deleted_if_that_is_permitted() {
    for (permitted, deleted) in [(true, true), (false, false)] {
        let permits = Permits { delete_at_deadline: permitted, ..Permits::default() };
        let mut world = World::new(Node { intent: Some(Intent { permits, ..intent("d") }), ..Node::default() }, vec![]);
        // Where it is permitted, a budget that allows nothing does not keep the drain from beginning.
        world.budget = if permitted { 0 } else { usize::MAX };
        world.pods = if permitted { vec![workload("a")] } else { vec![] };
        world.show_node();
        world.pods = vec![workload("a")];
        world.budget = 0;
        world.show_pods();
        world.run_until(559);
        assert!(!world.asked().iter().any(|asked| asked.starts_with("delete")));
        world.run_until(590);
        assert_eq!(world.asked().iter().any(|asked| asked == "delete pod-a in 30s"), deleted);
        assert_eq!(world.pods.is_empty(), deleted);
    }
}

#[test]
fn tiers_go_one_after_the_other_and_daemons_last_and_by_choice() {
    let first = Pod { order: -5, ..workload("first") };
    let critical = Pod { priority: 2_000_000_000, ..workload("critical") };
    let daemon = Pod { controller: Controller::DaemonSet, ..workload("daemon") };
    let chosen = Pod { asks: Some(pod::Ask::Evict), created: Some(at(0)), ..daemon.clone() };
    let chosen = Pod { uid: "chosen".into(), name: "pod-chosen".into(), ..chosen };
    let world = World::new(Node::default(), vec![chosen, critical, workload("a"), daemon, first]);
    let mut world = World { now: at(1), ..world };
    world.node.intent = Some(intent("d"));
    world.show_node();
    let evictions: Vec<_> = world.asked().into_iter().filter(|asked| asked.starts_with("evict")).collect();
    assert_eq!(evictions, ["evict pod-first", "evict pod-a", "evict pod-critical", "evict pod-chosen"]);
    // Its controller makes it anew; it is not evicted again, and does not keep the node.
    let reborn = Pod { controller: Controller::DaemonSet, asks: Some(pod::Ask::Evict), ..workload("reborn") };
    world.pods.push(Pod { created: Some(at(1)), ..reborn });
    world.show_pods();
    world.run_until(60);
    assert!(world.node.drained);
}

#[test]
fn pods_that_ask_for_it_are_left_alone_or_waited_for() {
    let skipped = Pod { asks: Some(pod::Ask::Skip), ..workload("skipped") };
    let awaited = Pod { asks: Some(pod::Ask::WaitCompleted), ..workload("awaited") };
    let on_completion = Pod { pin: Some(Pin::OnCompletion), ..workload("on-completion") };
    let mut world = wanted(vec![skipped, awaited, on_completion]);
    world.run_until(100);
    assert!(!world.asked().iter().any(|asked| asked.starts_with("evict")));
    assert!(
        world.message.contains("2 pods are left; default/pod-awaited, default/pod-on-completion: its end is awaited")
    );
    world.pods.iter_mut().for_each(|pod| pod.finished = true);
    world.show_pods();
    world.run_until(110);
    assert!(world.node.drained);
    // Where the node is lost, it is evicted while there is time for its grace.
    let awaited = Pod { asks: Some(pod::Ask::WaitCompleted), ..workload("awaited") };
    let mut world = spot(vec![awaited]);
    world.run_until(79);
    assert!(!world.asked().contains(&"evict pod-awaited".to_owned()));
    world.run_until(80);
    assert!(world.asked().contains(&"evict pod-awaited".to_owned()));
}

#[test]
fn a_node_that_runs_out_is_cordoned_and_drained_when_its_last_pod_has_ended() {
    let mut world = running_out(vec![workload("a"), workload("b")]);
    assert_eq!(world.asked(), ["watch", "RunningToCompletion", "RunningToCompletion"]);
    assert!(world.node.unschedulable && world.node.draining);
    world.run_until(300);
    world.pods.remove(0);
    world.show_pods();
    world.run_until(400);
    assert!(!world.node.drained);
    world.pods[0].finished = true;
    world.show_pods();
    assert!(!world.node.drained);
    world.run_until(401);
    assert!(world.node.drained && world.node.unschedulable);
}

#[test]
fn a_node_that_does_not_run_out_in_time_is_given_back() {
    let mut world = running_out(vec![workload("a")]);
    world.run_until(600);
    assert_given_up(&world, "the drain did not end before its deadline; what it changed was undone: 1 pod is left");
    assert_eq!(world.pods.len(), 1);
}

#[test]
fn drained_is_said_only_after_the_cordoned_node_was_watched_for_a_while() {
    let mut world = wanted(vec![]);
    world.run_until(4);
    world.pods = vec![workload("late")];
    world.budget = 0;
    world.show_pods();
    world.run_until(30);
    assert!(!world.node.drained);
    world.pods.clear();
    world.show_pods();
    assert!(!world.node.drained);
    world.run_until(31);
    assert!(world.node.drained);
}

#[test]
fn volumes_are_waited_for_but_not_for_ever() {
    let attached = |world: &mut World, names: &[&str]| {
        world.node.attached = names.iter().map(|name| (*name).to_owned()).collect();
        world.show_node();
    };
    let mut world = wanted(vec![workload("a")]);
    attached(&mut world, &["vol-1"]);
    world.run_until(60);
    assert!(!world.node.drained && world.message.contains("1 volume is attached"), "{}", world.message);
    attached(&mut world, &[]);
    assert!(world.node.drained);

    let mut world = wanted(vec![workload("a")]);
    attached(&mut world, &["vol-1"]);
    world.run_until(119);
    assert!(!world.node.drained);
    world.run_until(126);
    assert!(world.node.drained);

    // The volume of a pod that stays is in use, and nobody's to wait for.
    let daemon = Pod { controller: Controller::DaemonSet, has_claims: true, ..workload("daemon") };
    let mut world = wanted(vec![workload("a"), daemon]);
    world.node.in_use = ["vol-1".to_owned()].into();
    attached(&mut world, &["vol-1", "vol-2"]);
    world.run_until(60);
    assert!(!world.node.drained);
    attached(&mut world, &["vol-1"]);
    assert!(world.node.drained);
}

#[test]
fn of_a_closed_budget_one_pod_is_asked_for_at_a_time_until_the_deadline_undoes_the_drain() {
    let mut world = wanted(vec![]);
    world.pods = (0..20).map(|pod| workload(&pod.to_string())).collect();
    world.budget = 0;
    world.show_pods();
    world.asked();
    world.run_until(599);
    let evictions = world.asked().iter().filter(|asked| asked.starts_with("evict")).count();
    assert!((130..=180).contains(&evictions), "{evictions}");
    let left = "20 pods are left; default/pod-0, default/pod-1, default/pod-10 and 17 more: PodDisruptionBudget";
    assert!(world.message.contains(left), "{}", world.message);
    world.run_until(600);
    assert_given_up(&world, left);
    // It does not start anew, and leaves nothing once the intent is gone.
    world.show_node();
    world.node.intent = None;
    world.show_node();
    assert_eq!(world.node, Node::default());
}

#[test]
fn what_is_refused_at_the_same_time_counts_as_one_refusal() {
    let mut world = wanted(vec![]);
    world.pods = (0..20).map(|pod| workload(&pod.to_string())).collect();
    world.budget = 0;
    world.show_pods();
    world.run_until(5);
    world.asked();
    world.run_until(10);
    let evictions = world.asked().iter().filter(|asked| asked.starts_with("evict")).count();
    assert_eq!(evictions, 3, "after 1 s, 1.5 s and 2 s, less up to a fifth");
}

#[test]
fn a_budget_that_opens_is_used_at_once() {
    let mut world = wanted(vec![]);
    world.pods = (0..20).map(|pod| workload(&pod.to_string())).collect();
    world.budget = 0;
    world.show_pods();
    world.run_until(100);
    world.asked();
    world.budget = 7;
    world.run_until(111);
    assert_eq!(world.pods.len(), 13);
    let evictions = world.asked().iter().filter(|asked| asked.starts_with("evict")).count();
    assert!(evictions <= 12, "{evictions} for the seven that could go");
}

#[test]
fn a_pod_that_came_after_the_cordon_is_given_time_to_be_told_why() {
    for uncordoned in [true, false] {
        let mut world = wanted(vec![]);
        world.pods.push(workload("late"));
        world.show_pods();
        world.run_until(4);
        if uncordoned {
            world.node.unschedulable = false;
            world.show_node();
        }
        world.run_until(20);
        let evicted = world.asked().contains(&"evict pod-late".to_owned());
        assert_eq!((evicted, world.node.drained), (!uncordoned, !uncordoned));
    }
}

#[test]
fn what_is_in_the_way_is_said_soon_and_how_far_it_is_now_and_then() {
    let lost = Intent { by: Trigger::SpotInterruption, deadline: at(120), ..intent("spot") };
    let pods = (0..3).map(|pod| workload(&pod.to_string())).collect();
    let mut world = World::new(Node { intent: Some(lost), ..Node::default() }, pods);
    world.budget = 0;
    world.show_node();
    assert_eq!(world.message, "pods are being evicted");
    world.run_until(1);
    let named =
        "pods are being evicted: 3 pods are left; default/pod-0, default/pod-1, default/pod-2: PodDisruptionBudget";
    assert!(world.message.starts_with(named), "{}", world.message);
    world.pods.pop();
    world.show_pods();
    world.run_until(10);
    assert!(world.message.starts_with(named), "{}", world.message);
    world.run_until(11);
    assert!(world.message.starts_with("pods are being evicted: 2 pods are left; "), "{}", world.message);
}

#[test]
fn a_pod_that_tolerates_the_cordon_goes_once() {
    let mut world = wanted(vec![]);
    let created = |second| Pod { created: Some(at(second)), tolerates_cordon: true, ..workload("tolerant") };
    world.pods.push(created(3));
    world.show_pods();
    world.run_until(30);
    assert!(world.node.drained && !world.asked().contains(&"evict pod-tolerant".to_owned()), "it is its own successor");
    let mut world = planned_with(vec![], &[]);
    world.pods = vec![created(0)];
    let mut older = world.pods[0].clone();
    older.created = None;
    assert_eq!(older.treatment(&intent("d"), Some(at(0))), Treatment::Evict);
}

#[test]
fn what_is_refused_once_is_asked_again_before_it_counts() {
    let mut drain = Drain::default();
    drain.handle(at(0), Event::Node(Box::new(Node { intent: Some(intent("d")), ..Node::default() })));
    let checks = drain.handle(at(0), Event::Pods(vec![workload("a")]));
    assert!(matches!(checks[..], [Action::Check(_)]));
    let refused = || Event::Checked { uid: "a".into(), reply: EvictionOutcome::Refused.into() };
    assert_eq!(drain.handle(at(0), refused()), []);
    let again = drain.handle(at(1), Event::Tick);
    assert!(matches!(again[..], [Action::Check(_)]));
    let given_up = drain.handle(at(1), refused());
    assert!(matches!(given_up[..], [Action::Patch { because: Step::PreflightFailed, .. }]), "{given_up:?}");
}

#[test]
fn what_is_refused_goes_at_the_deadline_where_that_is_permitted() {
    for delete_at_deadline in [true, false] {
        let permits = Permits { delete_at_deadline, ..Permits::default() };
        let lost = Intent { by: Trigger::SpotInterruption, deadline: at(120), permits, ..intent("spot") };
        let mut world = World::new(Node { intent: Some(lost), ..Node::default() }, vec![workload("a")]);
        (world.budget, world.refusal) = (0, || EvictionOutcome::Refused.into());
        world.show_node();
        world.run_until(100);
        assert_eq!(world.pods.is_empty(), delete_at_deadline, "{:?}", world.asked());
    }
}

#[test]
fn of_pods_that_are_alike_one_is_checked_and_all_are_named() {
    let alike = |uid: &str, likeness: &str| Pod { likeness: Some(likeness.into()), ..workload(uid) };
    let mut other = alike("d", "web");
    other.namespace = "elsewhere".into();
    let pods = vec![alike("c", "web"), alike("b", "web"), alike("a", "database"), other, workload("bare")];
    let checks =
        |world: &mut World| world.asked().into_iter().filter(|asked| asked.starts_with("check")).collect::<Vec<_>>();
    let mut world = World::new(Node { intent: Some(intent("d")), ..Node::default() }, pods.clone());
    world.show_node();
    let mut asked = checks(&mut world);
    asked.sort();
    assert_eq!(asked, ["check pod-a", "check pod-b", "check pod-bare", "check pod-d"]);
    world.run_until(60);
    assert!(world.node.drained);
    let mut world = World::new(Node { intent: Some(intent("d")), ..Node::default() }, pods);
    world.budget = 0;
    world.show_node();
    let named = "default/pod-a, default/pod-b, default/pod-bare and 2 more";
    assert!(world.message.contains(named), "{}", world.message);
}

#[test]
fn an_api_server_that_has_too_much_to_do_is_left_in_peace() {
    let mut drain = Drain::default();
    let node = Node { intent: Some(intent("d")), ..Node::default() };
    drain.handle(at(0), Event::Node(Box::new(node)));
    let pods: Vec<_> = (0..30).map(|pod| workload(&pod.to_string())).collect();
    let checks = drain.handle(at(0), Event::Pods(pods));
    assert_eq!(checks.len(), eviction::IN_FLIGHT);
    let busy = Reply { retry_after: Some(Duration::from_secs(7)), ..EvictionOutcome::Throttled.into() };
    for check in checks {
        let Action::Check(Target { uid, .. }) = check else { panic!("{check:?}") };
        assert_eq!(drain.handle(at(1), Event::Checked { uid, reply: busy.clone() }), []);
    }
    assert_eq!(drain.next_wakeup(), Some(at(8)));
    assert_eq!(drain.handle(at(8), Event::Tick).len(), eviction::IN_FLIGHT);
}

#[test]
fn hooks_are_asked_in_their_order_each_at_its_phase() {
    use HookPhase::{PostDrain, PreCordon, PreDrain, PreTier};
    let phases = [("1", PreCordon), ("2", PreCordon), ("3", PreDrain), ("4", PreTier), ("5", PostDrain)];
    let mut world = planned_with(phases.map(|(name, phase)| hook(name, phase)).to_vec(), &[]);
    world.run_until(30);
    let asked: Vec<_> =
        world.asked().into_iter().filter(|asked| asked.starts_with(|it: char| it.is_lowercase())).collect();
    let expected = [
        "watch",
        "check pod-a",
        "pre-cordon 1",
        "pre-cordon 2",
        "pre-drain 3",
        "pre-tier 4",
        "evict pod-a",
        "post-drain 5",
        "unwatch",
    ];
    assert_eq!(asked, expected);
}

#[test]
fn a_veto_stops_a_planned_drain_and_no_other() {
    let veto = HookOutcome::Veto("a checkpoint is being written".into());
    for phase in [HookPhase::PreCordon, HookPhase::PreDrain, HookPhase::PreTier, HookPhase::PostDrain] {
        let mut world = planned_with(vec![hook("slurm", phase)], &[("slurm", veto.clone())]);
        world.run_until(30);
        assert_given_up(&world, "slurm: a checkpoint is being written");
    }
    let mut world =
        spot(vec![]).with(Settings { hooks: vec![hook("slurm", HookPhase::PreDrain)], ..Settings::default() });
    world.hooks.insert("slurm".into(), veto);
    world.show_node();
    world.run_until(30);
    assert!(world.node.drained);
}

#[test]
fn a_hook_that_fails_stops_a_planned_drain_unless_it_may() {
    let failed = HookOutcome::Failed("exit status 1".into());
    let aborts = hook("slurm", HookPhase::PreDrain);
    let mut world = planned_with(vec![aborts.clone()], &[("slurm", failed.clone())]);
    world.run_until(30);
    assert_given_up(&world, "slurm: exit status 1");
    let may = Hook { on_failure: OnFailure::Continue, ..aborts };
    let mut world = planned_with(vec![may], &[("slurm", failed)]);
    world.run_until(30);
    assert!(world.node.drained);
}

#[test]
fn a_hook_that_says_later_is_asked_again_until_its_time_is_up() {
    let later = HookOutcome::Later { after: Some(Duration::from_secs(20)), why: "epoch 7 of 8".into() };
    let mut world = planned_with(vec![hook("slurm", HookPhase::PreDrain)], &[("slurm", later)]);
    world.run_until(59);
    assert_eq!(world.asked().iter().filter(|asked| *asked == "pre-drain slurm").count(), 3);
    assert!(world.message.contains("hook slurm is awaited: epoch 7 of 8"), "{}", world.message);
    assert_eq!(world.pods.len(), 1);
    world.run_until(60);
    assert_given_up(&world, "slurm: it did not end in 1m: epoch 7 of 8");
}

fn unavailable() -> HookOutcome {
    HookOutcome::Unavailable { after: Some(Duration::from_secs(7)), why: "no route".into() }
}

/// One that the drain goes on without.
fn optional() -> Hook {
    let silence = Some(Duration::from_secs(30));
    Hook { silence, timeout: DEFAULT_DEADLINE, on_failure: OnFailure::Continue, ..hook("ray", HookPhase::PreTier) }
}

#[test]
fn a_hook_that_may_not_be_silent_for_so_long_is_passed_over_when_it_was() {
    let mut world = planned_with(vec![optional()], &[("ray", unavailable())]);
    world.run_until(29);
    assert_eq!(world.pods.len(), 1);
    assert_eq!(world.asked().iter().filter(|asked| *asked == "pre-tier ray").count(), 5);
    assert!(world.message.contains("hook ray is awaited: no route"), "{}", world.message);
    world.run_until(40);
    assert!(world.node.drained, "{}", world.message);
    // From when it last said something.
    let later = HookOutcome::Later { after: None, why: String::new() };
    let mut world = planned_with(vec![optional()], &[("ray", later)]);
    world.run_until(20);
    world.hooks.insert("ray".into(), unavailable());
    world.run_until(49);
    assert_eq!(world.pods.len(), 1);
    world.run_until(60);
    assert!(world.node.drained, "{}", world.message);
    // One that is not held to it is asked until its timeout.
    let patient = Hook { silence: None, timeout: Duration::from_secs(120), ..optional() };
    let mut world = planned_with(vec![patient], &[("ray", unavailable())]);
    world.run_until(119);
    assert_eq!(world.pods.len(), 1);
    world.run_until(130);
    assert!(world.node.drained, "{}", world.message);
}

#[test]
fn a_hook_that_says_later_is_not_silent_and_leaves_time_for_evictions() {
    let later = HookOutcome::Later { after: Some(Duration::from_secs(1)), why: "a task runs".into() };
    for by in [Trigger::Coordinator, Trigger::Person, Trigger::SpotInterruption] {
        let node = Node { intent: Some(Intent { by, ..intent("d") }), ..Node::default() };
        let settings = Settings { hooks: vec![optional()], ..Settings::default() };
        let mut world = World::new(node, vec![workload("a")]).with(settings);
        world.hooks.insert("ray".into(), later.clone());
        world.show_node();
        // The deadline less the pod's grace period and the margin.
        world.run_until(559);
        assert_eq!(world.pods.len(), 1, "{by:?}");
        assert!(world.message.contains("hook ray is awaited: a task runs"), "{}", world.message);
        world.run_until(570);
        assert!(world.node.drained, "{by:?}: {}", world.message);
    }
}

#[test]
fn a_hook_without_an_end_is_stopped() {
    let settings = Settings { hooks: vec![hook("slurm", HookPhase::PreDrain)], ..Settings::default() };
    let mut drain = Drain::new(settings);
    let progress = Progress::new("d", Phase::Draining, at(0));
    let node = Node {
        intent: Some(intent("d")),
        progress: Some(progress),
        unschedulable: true,
        planned: true,
        draining: true,
        ..Node::default()
    };
    let actions = drain.handle(at(0), Event::Node(Box::new(node.clone())));
    let run = Action::RunHook {
        hook: "slurm".into(),
        phase: HookPhase::PreDrain,
        until: at(60),
        about: Box::new(intent("d")),
    };
    assert!(actions.contains(&run));
    drain.handle(at(1), Event::Patched);
    let actions = drain.handle(at(60), Event::Tick);
    assert!(actions.contains(&Action::StopHook { hook: "slurm".into(), phase: HookPhase::PreDrain }));
    // So is one whose drain is cancelled.
    let mut drain = Drain::new(drain.settings);
    drain.handle(at(0), Event::Node(Box::new(node.clone())));
    let actions = drain.handle(at(1), Event::Node(Box::new(Node { intent: None, ..node })));
    assert!(actions.contains(&Action::StopHook { hook: "slurm".into(), phase: HookPhase::PreDrain }));
}

#[test]
fn those_who_ask_to_be_told_are_told_of_the_end() {
    let hooks = vec![hook("told", HookPhase::OnCancel), hook("blamed", HookPhase::OnFailure)];
    let mut world = planned_with(hooks.clone(), &[]);
    world.node.intent = None;
    world.show_node();
    assert!(world.asked().contains(&"on-cancel told".to_owned()));
    let mut world = planned_with(hooks, &[]);
    world.node.unschedulable = false;
    world.show_node();
    assert!(world.asked().contains(&"on-failure blamed".to_owned()));
}

#[test]
fn an_annotation_makes_a_phase_wait_until_it_is_gone_or_its_time_has_come() {
    let blocker = |phase, until| Blocker { phase, owner: "postgres".into(), until };
    for phase in HookPhase::BLOCKABLE {
        for removed in [true, false] {
            let node = Node {
                intent: Some(intent("d")),
                blockers: vec![blocker(phase, Some(at(100))), blocker(phase, None)],
                ..Node::default()
            };
            let mut world = World::new(node, vec![workload("a")]);
            world.show_node();
            world.run_until(50);
            let said = format!("annotation {}.ebb.dev/postgres asks to wait until", phase.name());
            assert!(world.message.contains(&said), "{}", world.message);
            assert!(!world.node.drained && world.node.unschedulable == (phase != HookPhase::PreCordon));
            if removed {
                world.node.blockers.clear();
                world.show_node();
            }
            world.run_until(99);
            assert_eq!(world.node.drained, removed);
            world.run_until(120);
            assert!(world.node.drained);
        }
    }
    let until = Some(at(100));
    let mut world = spot(vec![]);
    world.node.blockers = HookPhase::BLOCKABLE.map(|phase| blocker(phase, until)).into();
    world.show_node();
    world.run_until(10);
    assert!(world.node.drained, "what will be lost waits for nobody");
}

#[test]
fn load_balancers_get_time_to_forget_a_node_that_has_it() {
    let settings = Settings { leave_load_balancers: Duration::from_secs(180), ..Settings::default() };
    let node = Node { intent: Some(intent("d")), ..Node::default() };
    let mut world = World::new(node, vec![workload("a")]).with(settings.clone());
    world.show_node();
    assert!(world.node.excluded && !world.node.unschedulable);
    world.run_until(179);
    assert!(!world.node.unschedulable);
    world.run_until(180);
    assert!(world.node.unschedulable && world.pods.is_empty());
    world.node.intent = None;
    world.show_node();
    assert_eq!(world.node, Node::default());
    // Somebody else's label stays.
    let node = Node { intent: Some(intent("d")), excluded: true, ..Node::default() };
    let mut world = World::new(node, vec![]).with(settings);
    world.show_node();
    world.run_until(200);
    world.node.intent = None;
    world.show_node();
    assert_eq!(world.node, Node { excluded: true, ..Node::default() });
}

fn noticed(second: u64) -> Notices {
    let mut notices = Notices::default();
    let notice = Notice {
        deadline: at(second),
        trigger: Trigger::SpotInterruption,
        id: format!("spot-{second}"),
        reason: "AWS reclaims it".into(),
    };
    notices.learn(Trigger::SpotInterruption, Some(vec![notice]));
    notices
}

#[test]
fn a_node_that_will_be_lost_is_drained_and_given_back_when_that_is_called_off() {
    let mut world = World::new(Node::default(), vec![workload("a")]);
    world.show_node();
    world.tell(Event::Notices(noticed(120)));
    let intent = world.node.intent.clone().unwrap();
    assert_eq!((intent.id.as_str(), intent.by), ("spot-120", Trigger::SpotInterruption));
    world.run_until(30);
    assert!(world.node.drained);
    // That nothing can be read now does not mean that nothing is announced.
    world.tell(Event::Notices(Notices::default()));
    assert!(world.node.drained);
    let mut none = Notices::default();
    none.learn(Trigger::SpotInterruption, Some(Vec::new()));
    world.tell(Event::Notices(none));
    assert_eq!(world.node, Node::default());
}

#[test]
fn a_planned_drain_becomes_one_that_nothing_stops() {
    let mut world = wanted(vec![]);
    world.pods = vec![workload("a")];
    world.budget = 0;
    world.show_pods();
    world.tell(Event::Notices(noticed(120)));
    assert_eq!(world.node.intent.as_ref().unwrap().id, "spot-120");
    assert!(world.node.unschedulable && world.node.draining);
    let Progress { id, cordoned_by_us, .. } = world.node.progress.clone().unwrap();
    assert_eq!((id.as_str(), cordoned_by_us), ("spot-120", true));
}

#[test]
fn one_of_many_is_cordoned_at_once_and_evicts_when_it_is_let_or_nobody_does_in_half_its_time() {
    for let_begin in [true, false] {
        let mut world =
            wanted_by(Intent { by: Trigger::Person, awaits_turn: true, ..intent("d") }, vec![workload("a")]);
        assert!(world.node.unschedulable && world.node.draining);
        assert!(world.message.contains("its turn is awaited"), "{}", world.message);
        world.run_until(299);
        assert_eq!(world.pods.len(), 1);
        if let_begin {
            world.node.intent = Some(Intent { by: Trigger::Person, ..intent("d") });
            world.show_node();
            assert_eq!(world.pods, []);
        }
        world.run_until(310);
        assert!(world.node.drained);
    }
}

#[test]
fn a_persons_words_become_a_drain() {
    let mut world = World::new(Node { request: Some("new kernel".into()), ..Node::default() }, vec![workload("a")]);
    world.show_node();
    let intent = world.node.intent.clone().unwrap();
    assert_eq!((intent.reason.as_str(), intent.by, intent.deadline), ("new kernel", Trigger::Person, at(3600)));
    world.run_until(7200);
    assert!(world.node.drained && world.node.unschedulable, "what a person has drained stays so");

    let words = r#"{"reason": "new kernel", "force": true}"#;
    let mut world = World::new(Node { request: Some(words.into()), ..Node::default() }, vec![]);
    world.show_node();
    let intent = world.node.intent.unwrap();
    assert_eq!((intent.reason.as_str(), intent.permits.force), ("new kernel", true));
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
    let mut world = wanted(vec![workload("a")]);
    world.node.unschedulable = false;
    world.show_node();
    assert_given_up(&world, "somebody made the node schedulable again");
    world.run_until(700);
    assert!(!world.node.unschedulable && !world.node.drained);
}

#[test]
fn a_new_intent_takes_over_what_the_old_one_has_changed() {
    let mut world = wanted(vec![]);
    world.run_until(60);
    world.asked();
    let spot = Intent { by: Trigger::SpotInterruption, deadline: at(180), ..intent("spot") };
    world.node.intent = Some(spot);
    world.show_node();
    assert!(world.node.unschedulable);
    world.run_until(120);
    assert!(world.node.drained && world.node.unschedulable);
    let Progress { id, cordoned_by_us, excluded_by_us, .. } = world.node.progress.clone().unwrap();
    assert_eq!((id.as_str(), cordoned_by_us, excluded_by_us), ("spot", true, true));
}

#[test]
fn an_intent_that_comes_after_its_deadline_does_nothing() {
    let mut world = World::new(Node { intent: Some(intent("d")), ..Node::default() }, vec![workload("a")]);
    world.now = at(601);
    world.show_node();
    assert_given_up(&world, "the drain did not end before its deadline");
    assert_eq!(world.pods.len(), 1);
}

/// What chance does to a drain.
#[derive(Clone, Debug)]
enum Chance {
    Crash,
    /// A request whose reply never comes; whether it took effect.
    LosePatch(bool),
    Cancel,
    /// Whether to evict, and whose wish it is.
    Ask(bool, Trigger),
    Pod,
    /// A pod ends by itself.
    End,
    Budget(usize),
    Hook(HookOutcome),
    Wait(u64),
}

fn chance() -> impl Strategy<Value = Chance> {
    use Trigger::{Coordinator, Person, SpotInterruption};
    let outcome = prop_oneof![
        Just(HookOutcome::Done),
        Just(HookOutcome::Failed("broken".into())),
        Just(HookOutcome::Later { after: None, why: String::new() }),
        Just(HookOutcome::Unavailable { after: None, why: "not reached".into() }),
        Just(HookOutcome::Veto("no".into())),
    ];
    let trigger = prop_oneof![Just(Coordinator), Just(Person), Just(SpotInterruption)];
    prop_oneof![
        Just(Chance::Crash),
        any::<bool>().prop_map(Chance::LosePatch),
        Just(Chance::Cancel),
        (any::<bool>(), trigger).prop_map(|(evict, by)| Chance::Ask(evict, by)),
        Just(Chance::Pod),
        Just(Chance::End),
        (0..4_usize).prop_map(Chance::Budget),
        outcome.prop_map(Chance::Hook),
        (1..30_u64).prop_map(Chance::Wait),
    ]
}

proptest! {
    /// Whatever happens in between, once all is calm a wanted drain ends drained, or a cancelled one leaves the
    /// node as it was found.
    #[test]
    fn a_drain_survives_crashes_and_lost_patches(
        cordoned in any::<bool>(),
        phase in prop::sample::select(vec![HookPhase::PreCordon, HookPhase::PreDrain, HookPhase::PreTier, HookPhase::PostDrain]),
        chances in prop::collection::vec(chance(), 0..30),
        calm in any::<bool>(),
    ) {
        let settings = || Settings { hooks: vec![hook("hook", phase)], ..Settings::default() };
        let found = Node { unschedulable: cordoned, ..Node::default() };
        let mut world = World::new(found.clone(), vec![]).with(settings());
        let mut uids = 0..;
        let mut second = 0;
        for (number, chance) in chances.into_iter().enumerate() {
            match chance {
                Chance::Crash => world.drain = Drain::new(settings()),
                Chance::LosePatch(takes_effect) => {
                    world.drain = Drain::new(settings());
                    for action in world.drain.handle(world.now, Event::Node(Box::new(world.node.clone()))) {
                        if let Action::Patch { change, .. } = action
                            && takes_effect
                        {
                            world.apply(change);
                        }
                    }
                    world.tell(Event::PatchFailed);
                }
                Chance::Cancel => world.node.intent = None,
                Chance::Ask(evict, by) => {
                    let deadline = world.now + Duration::from_secs(10_000);
                    world.node.intent = Some(Intent { deadline, evict, by, ..intent(&format!("d{number}")) });
                }
                Chance::End => _ = world.pods.pop(),
                Chance::Pod if !world.node.unschedulable => world.pods.push(workload(&format!("u{}", uids.next().unwrap()))),
                Chance::Pod => {}
                Chance::Budget(budget) => world.budget = budget,
                Chance::Hook(outcome) => _ = world.hooks.insert("hook".into(), outcome),
                Chance::Wait(seconds) => second += seconds,
            }
            world.show_node();
            if world.drain.watching_pods {
                world.show_pods();
            }
            world.run_until(second);
            // No cordon of ours without an owner; never drained with pods on the node.
            prop_assert!(world.node.unschedulable == cordoned || world.node.progress.is_some());
            prop_assert!(!world.node.drained || world.pods.is_empty());
        }
        world.budget = usize::MAX;
        world.hooks.clear();
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
