//! The drain of one node, as its own agent carries it out. Told the time and what happened; does no I/O.
//!
//! A planned drain that cannot succeed changes nothing. Otherwise: hooks and blockers, out of the load balancers, cordon,
//! hooks, evictions by UID and tier, volumes detached, hooks, `Drained`. One that is not planned, because the node will
//! be lost whatever anybody says, cordons first and lets nothing stop it. Whatever ends a drain early undoes what it
//! changed, and no more.
//!
//! Level-triggered: each step compares the Node as it stands with what the intent asks for. Nothing but the Node is
//! needed to go on after a crash: the progress annotation says what was changed, and is written in the same patch as
//! the change. What is kept here beside is only what may be asked or said twice.

mod causes;
mod change;
mod empty;
mod eviction;
mod hook;
mod node;
mod plan;
mod pod;
mod preflight;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::intent::{Intent, Phase, Progress};
use crate::notice::{self, Notices};
use crate::time::Instant;

use crate::agenda::Agenda;
pub use change::{Change, Condition, Edit, NodeChange, Step};
use eviction::Evictions;
pub use eviction::{EvictionOutcome, Reply};
pub use hook::{ASK_AGAIN, Hook, HookOutcome, HookPhase, OnFailure, When};
use hook::{Ask, Hooks, Verdict};
pub use node::{Blocker, Node};
pub use pod::{Pod, Tier, Treatment};
use preflight::Preflight;

/// How long after its cordon a node must have been watched: the scheduler may have bound a pod just before. Karpenter
/// waits as long (its `MinDrainTime`).
const SETTLE: Duration = Duration::from_secs(5);
/// How long it must then have been seen empty.
const QUIET: Duration = Duration::from_millis(500);
/// How long an empty node waits for its volumes to be detached: the attach-detach controller itself gives up waiting
/// for a kubelet after six minutes, but then the pods that need them elsewhere are not helped by a node that stays.
const DETACH_VOLUMES: Duration = Duration::from_secs(120);
/// What is left between the end of the longest grace period and the deadline.
const MARGIN: Duration = Duration::from_secs(10);
/// How long past its time a pod may be terminating before somebody should look why.
const STUCK: Duration = Duration::from_secs(60);
/// Between the first message and one that names what is in the way.
const SAY_SOON: Duration = Duration::from_secs(1);
/// Between two writes of a message that changes with each pod.
const SAY_EVERY: Duration = Duration::from_secs(10);
/// Pause after a patch that failed: long enough for the watch to deliver the Node that the patch collided with.
const PATCH_RETRY: Duration = Duration::from_secs(1);
/// What a person who names no deadline gets: that of `ebb drain`.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(3600);

/// What operators set.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// How long load balancers get to forget the node before its cordon. ELBs take two to three minutes
    /// (aws-node-termination-handler #316).
    pub leave_load_balancers: Duration,
    pub hooks: Vec<Hook>,
    /// Which notices of the node's end begin a drain.
    pub notices: notice::Policy,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Event {
    /// The own Node as it now stands: at first, after every change, and as the reply to a patch.
    Node(Box<Node>),
    /// All pods on the own node, at first and after every change. Sent only between [`Action::WatchPods`] and
    /// [`Action::UnwatchPods`].
    Pods(Vec<Pod>),
    /// What is known of the node's end, at first and after every change.
    Notices(Notices),
    /// The reply to an [`Action::Check`]. Every one gets a reply.
    Checked { uid: String, reply: Reply },
    /// The reply to an [`Action::Evict`] or [`Action::Delete`]. Every one gets a reply.
    Evicted { uid: String, reply: Reply },
    /// The end of an [`Action::RunHook`], unless it was stopped.
    Hook { hook: String, phase: HookPhase, outcome: HookOutcome },
    /// An [`Action::Patch`] was accepted. The Node from its reply was sent just before, as [`Event::Node`].
    Patched,
    /// An [`Action::Patch`] failed, wholly or in part, or its reply was lost. Every one gets this or `Patched`.
    PatchFailed,
    /// The time that [`Drain::next_wakeup`] named has come.
    Tick,
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
    /// Ask whether this pod could be evicted: an eviction as a dry run.
    Check(Target),
    /// Evict this pod, with its UID as precondition. `grace`: less than its own, where there is no time for that.
    Evict {
        pod: Target,
        grace: Option<Duration>,
    },
    /// Delete this pod past its budget, with its UID as precondition.
    Delete {
        pod: Target,
        grace: Duration,
    },
    /// `about`: the drain it is asked about; of one that is cancelled, what it was.
    RunHook {
        hook: String,
        phase: HookPhase,
        until: Instant,
        about: Box<Intent>,
    },
    StopHook {
        hook: String,
        phase: HookPhase,
    },
}

/// A pod to ask for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Target {
    pub namespace: String,
    pub name: String,
    pub uid: String,
}

impl From<&Pod> for Target {
    fn from(pod: &Pod) -> Self {
        Self { namespace: pod.namespace.clone(), name: pod.name.clone(), uid: pod.uid.clone() }
    }
}

/// The drain of the own node.
#[derive(Debug, Default)]
pub struct Drain {
    settings: Settings,
    node: Option<Node>,
    notices: Notices,
    /// `None` until the first list after `WatchPods`.
    pods: Option<Vec<Pod>>,
    watching_pods: bool,
    patch: PatchState,
    /// What the conditions last said of this drain.
    said: Option<Said>,
    /// Of the intent that stands.
    course: Course,
    /// The last intent that stood.
    last: Option<Intent>,
    /// Those hooks that nothing waits for.
    aftermath: Option<(HookPhase, Hooks)>,
    next: Option<Instant>,
}

/// What is known of one drain beside what its Node says; lost in a crash, and made anew.
#[derive(Debug, Default)]
struct Course {
    /// [`Intent::id`].
    id: String,
    preflight: Preflight,
    evictions: Evictions,
    /// UIDs of pods that were deleted past their budget.
    forced: BTreeSet<String>,
    hooks: Hooks,
    /// When its cordon was seen.
    cordoned_at: Option<Instant>,
    /// Since when, after that, nothing has held the node.
    empty_since: Option<Instant>,
    /// Pods that came after that, by UID, and when.
    late: BTreeMap<String, Instant>,
    /// Pods of this tier and those before it may be evicted; `None`: none yet.
    open: Option<Tier>,
}

#[derive(Debug)]
struct Said {
    step: Step,
    message: String,
    at: Instant,
    is_obstacle: bool,
}

#[derive(Debug, Default, PartialEq)]
enum PatchState {
    #[default]
    Ready,
    InFlight,
    RetryAt(Instant),
}

impl Course {
    fn arrived(&mut self, now: Instant, before: Option<&[Pod]>, pods: &[Pod]) {
        self.evictions.retain(pods);
        if let Some(before) = before.filter(|_| self.cordoned_at.is_some()) {
            let known: BTreeSet<_> = before.iter().map(|pod| &pod.uid).collect();
            let new = pods.iter().filter(|pod| !known.contains(&pod.uid));
            self.late.extend(new.map(|pod| (pod.uid.clone(), now)));
        }
    }
}

impl Drain {
    pub fn new(settings: Settings) -> Self {
        Self { settings, ..Self::default() }
    }

    /// The only way in. Same state, same `now`, same event: same actions.
    pub fn handle(&mut self, now: Instant, event: Event) -> Vec<Action> {
        match event {
            Event::Node(node) => self.node = Some(*node),
            Event::Pods(pods) => {
                self.course.arrived(now, self.pods.as_deref(), &pods);
                self.pods = Some(pods);
            }
            Event::Notices(notices) => self.notices = notices,
            Event::Checked { uid, reply } => self.course.preflight.answered(now, &uid, reply),
            Event::Evicted { uid, reply } => self.course.evictions.answered(now, &uid, reply),
            Event::Hook { hook, phase, outcome } => {
                let hooks = match &mut self.aftermath {
                    Some((of, hooks)) if *of == phase => hooks,
                    _ => &mut self.course.hooks,
                };
                hooks.ended(&self.settings.hooks, &hook, phase, outcome);
            }
            Event::Patched => self.patch = PatchState::Ready,
            Event::PatchFailed => {
                self.patch = PatchState::RetryAt(now + PATCH_RETRY);
                self.said = None;
            }
            Event::Tick => {}
        }
        let mut agenda = Agenda::new(now);
        let actions = self.step(&mut agenda);
        self.next = agenda.next;
        actions
    }

    /// When to send the next [`Event::Tick`]; `None` while nothing is pending. Changes after every `handle`.
    pub fn next_wakeup(&self) -> Option<Instant> {
        self.next
    }

    fn step(&mut self, agenda: &mut Agenda) -> Vec<Action> {
        let mut actions = Vec::new();
        let Some(node) = self.node.clone() else { return actions };
        self.follow(&node, &mut actions);
        let may_patch = match self.patch {
            PatchState::InFlight => false,
            PatchState::RetryAt(at) => agenda.due(at),
            PatchState::Ready => true,
        };
        if may_patch {
            self.patch = PatchState::Ready;
            if let Some((because, change)) = self.plan(agenda, &node, &mut actions) {
                self.patch = PatchState::InFlight;
                actions.push(Action::Patch { change, because });
            }
        }
        if let Some((phase, mut hooks)) = self.aftermath.take()
            && let Some(intent) = &self.last
        {
            let never = Instant::from_millis(u64::MAX);
            let ask = Ask { hooks: &self.settings.hooks, intent, until: never, evict_by: never };
            let verdict = hooks.advance(agenda, ask, (phase, None), &mut actions);
            self.aftermath = matches!(verdict, Verdict::Waits(_)).then_some((phase, hooks));
        }
        let under_way = under_way(&node);
        let watches = under_way.is_some_and(|(_, progress)| progress.is_none_or(|it| it.phase < Phase::Drained));
        if watches != self.watching_pods {
            self.watching_pods = watches;
            self.pods = None;
            actions.push(if watches { Action::WatchPods } else { Action::UnwatchPods });
        }
        // The conditions can wait for their turn, the cordon must be there.
        if let Some((intent, Some(progress))) = under_way
            && progress.phase == Phase::Draining
            && node.unschedulable
        {
            self.evict(agenda, intent, progress, &mut actions);
        }
        actions
    }

    /// Another drain than before, or none: what was known of the last is of no use.
    fn follow(&mut self, node: &Node, actions: &mut Vec<Action>) {
        if let Some(intent) = &node.intent {
            self.last = Some(intent.clone());
        }
        let id = under_way(node).map_or("", |(intent, _)| intent.id.as_str());
        if self.course.id != id {
            self.course.hooks.stop(&self.settings.hooks, actions);
            self.course = Course { id: id.to_owned(), ..Course::default() };
            self.said = None;
        }
    }
}

/// The intent that is being carried out, or is to be, and how far it is.
fn under_way(node: &Node) -> Option<(&Intent, Option<&Progress>)> {
    let intent = node.intent.as_ref()?;
    let progress = node.progress.as_ref().filter(|progress| progress.id == intent.id);
    progress.is_none_or(|progress| progress.phase != Phase::Failed).then_some((intent, progress))
}
