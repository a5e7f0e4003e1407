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
mod eviction;
mod hook;
mod node;
mod pod;
mod preflight;
#[cfg(test)]
mod tests;
mod timer;

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::intent::{self, Intent, Permits, Phase, Progress, Trigger};
use crate::time::{Instant, format_duration};

use causes::{Causes, cause};
pub use change::{Change, Condition, Edit, NodeChange, Step};
use change::{Standing, cordon, undo};
use eviction::Evictions;
pub use eviction::{EvictionOutcome, Reply};
use hook::{Ask, Hooks, Verdict};
pub use hook::{Hook, HookOutcome, HookPhase, OnFailure, When};
pub use node::{Blocker, Node};
pub use pod::{Pod, Tier, Treatment};
use preflight::{Outlook, Preflight};
use timer::Timer;

/// How long after its cordon a node must have been watched: the scheduler may have bound a pod just before. Karpenter
/// waits as long (its `MinDrainTime`).
const SETTLE: Duration = Duration::from_secs(5);
/// How long it must then have been seen empty.
const QUIET: Duration = Duration::from_secs(1);
/// How long an empty node waits for its volumes to be detached: the attach-detach controller itself gives up waiting
/// for a kubelet after six minutes, but then the pods that need them elsewhere are not helped by a node that stays.
const DETACH_VOLUMES: Duration = Duration::from_secs(120);
/// What is left between the end of the longest grace period and the deadline.
const MARGIN: Duration = Duration::from_secs(10);
/// How long past its time a pod may be terminating before somebody should look why.
const STUCK: Duration = Duration::from_secs(60);
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
    /// `None` until the first list after `WatchPods`.
    pods: Option<Vec<Pod>>,
    watching_pods: bool,
    patch: PatchState,
    /// What the conditions last said, and since when.
    said: Option<(String, Instant)>,
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
    /// Pods of this tier and those before it may be evicted; `None`: none yet.
    open: Option<Tier>,
}

#[derive(Debug, Default, PartialEq)]
enum PatchState {
    #[default]
    Ready,
    InFlight,
    RetryAt(Instant),
}

/// What is to be changed on the Node.
type Plan = Option<(Step, Change)>;

impl Drain {
    pub fn new(settings: Settings) -> Self {
        Self { settings, ..Self::default() }
    }

    /// The only way in. Same state, same `now`, same event: same actions.
    pub fn handle(&mut self, now: Instant, event: Event) -> Vec<Action> {
        match event {
            Event::Node(node) => self.node = Some(*node),
            Event::Pods(pods) => {
                self.course.evictions.retain(&pods);
                self.pods = Some(pods);
            }
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
        let mut timer = Timer::new(now);
        let actions = self.step(&mut timer);
        self.next = timer.next;
        actions
    }

    /// When to send the next [`Event::Tick`]; `None` while nothing is pending. Changes after every `handle`.
    pub fn next_wakeup(&self) -> Option<Instant> {
        self.next
    }

    fn step(&mut self, timer: &mut Timer) -> Vec<Action> {
        let mut actions = Vec::new();
        let Some(node) = self.node.clone() else { return actions };
        self.follow(&node, &mut actions);
        let may_patch = match self.patch {
            PatchState::InFlight => false,
            PatchState::RetryAt(at) => timer.due(at),
            PatchState::Ready => true,
        };
        if may_patch {
            self.patch = PatchState::Ready;
            if let Some((because, change)) = self.plan(timer, &node, &mut actions) {
                self.patch = PatchState::InFlight;
                actions.push(Action::Patch { change, because });
            }
        }
        if let Some((phase, mut hooks)) = self.aftermath.take()
            && let Some(intent) = &self.last
        {
            let ask = Ask { hooks: &self.settings.hooks, intent, until: Instant::from_millis(u64::MAX) };
            let verdict = hooks.advance(timer, ask, (phase, None), &mut actions);
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
            self.evict(timer, intent, progress, &mut actions);
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
        }
    }

    /// What has to change on the Node next, if anything.
    fn plan(&mut self, timer: &mut Timer, node: &Node, actions: &mut Vec<Action>) -> Plan {
        let now = timer.now;
        let Some(intent) = &node.intent else {
            return match (&node.progress, &node.request) {
                (None, Some(reason)) => Some(requested(now, reason)),
                (None, None) => self.show(timer, node, Standing::default(), Step::Cancelled, ""),
                (Some(progress), _) => self.end(node, now, Step::Cancelled, "", None, progress.phase),
            };
        };
        let id = intent.id.as_str();
        let progress = match &node.progress {
            Some(progress) if progress.id == id => Some(progress),
            // It takes over what another drain has changed, so that nothing is undone only to be done again.
            Some(other) if other.phase != Phase::Failed => {
                return Some((Step::Started, take_over(node, intent, other)));
            }
            _ => None,
        };
        let phase = progress.map(|progress| progress.phase);
        if phase == Some(Phase::Failed) {
            return self.show(timer, node, Standing::default(), Step::DeadlineExceeded, "");
        }
        if ends_at_deadline(intent, phase) && timer.due(intent.deadline) {
            let reached = phase.unwrap_or(Phase::Failed);
            let left = self.left(timer, intent, progress);
            return self.end(node, now, Step::DeadlineExceeded, &left, Some(id), reached);
        }
        let Some(progress) = progress else { return self.begin(timer, node, intent, actions) };
        match progress.phase {
            Phase::Preparing | Phase::Detaching => self.prepare(timer, node, intent, progress, actions),
            Phase::Draining => self.drain(timer, node, intent, progress, actions),
            Phase::Drained => self.show(timer, node, Standing::at(Phase::Drained), Step::Drained, ""),
            Phase::Failed => None,
        }
    }

    /// Nothing is changed yet.
    fn begin(&mut self, timer: &mut Timer, node: &Node, intent: &Intent, actions: &mut Vec<Action>) -> Plan {
        if !intent.is_planned() {
            return Some((Step::Started, cordon(timer.now, node, &intent.id)));
        }
        let pods = self.pods.as_deref()?;
        match self.course.preflight.look(timer, intent, pods, actions) {
            Outlook::Open => None,
            Outlook::Bad(why) => {
                self.end(node, timer.now, Step::PreflightFailed, &why, Some(&intent.id), Phase::Failed)
            }
            Outlook::Good if self.is_awaited(timer, node) => {
                let progress = Progress::new(&intent.id, Phase::Preparing, timer.now);
                Some((Step::Preparing, set(progress)))
            }
            Outlook::Good => Some((started(intent), cordon(timer.now, node, &intent.id))),
        }
    }

    /// Whether anything is to happen before the cordon.
    fn is_awaited(&self, timer: &mut Timer, node: &Node) -> bool {
        !self.settings.leave_load_balancers.is_zero()
            || self.settings.hooks.iter().any(|hook| hook.phases.contains(&HookPhase::PreCordon))
            || blocker(timer, node, HookPhase::PreCordon).is_some()
    }

    fn prepare(
        &mut self,
        timer: &mut Timer,
        node: &Node,
        intent: &Intent,
        progress: &Progress,
        actions: &mut Vec<Action>,
    ) -> Plan {
        let standing = Standing::at(progress.phase);
        if !intent.is_planned() {
            return Some((Step::Started, cordon(timer.now, node, &intent.id)));
        }
        if progress.phase == Phase::Preparing {
            match self.hooks(timer, intent, (HookPhase::PreCordon, None), actions) {
                Verdict::Done => {}
                Verdict::Waits(hook) => {
                    return self.show(timer, node, standing, Step::Preparing, &format!("hook {hook} is awaited"));
                }
                Verdict::Stop(step, why) => {
                    return self.end(node, timer.now, step, &why, Some(&intent.id), progress.phase);
                }
            }
            if let Some(blocked) = blocker(timer, node, HookPhase::PreCordon) {
                return self.show(timer, node, standing, Step::Preparing, &blocked);
            }
            if !self.settings.leave_load_balancers.is_zero() {
                let excluded = NodeChange { excluded: (!node.excluded).then_some(true), ..NodeChange::default() };
                let progress = Progress {
                    excluded_by_us: !node.excluded,
                    ..Progress::new(&intent.id, Phase::Detaching, timer.now)
                };
                let change = NodeChange { progress: Edit::Set(progress), ..excluded };
                return Some((Step::Detaching, Change::Node(change)));
            }
        } else if !timer.due(progress.since + self.settings.leave_load_balancers) {
            return self.show(timer, node, standing, Step::Detaching, "");
        }
        Some((started(intent), cordon(timer.now, node, &intent.id)))
    }

    /// The node is cordoned, and to be emptied.
    fn drain(
        &mut self,
        timer: &mut Timer,
        node: &Node,
        intent: &Intent,
        progress: &Progress,
        actions: &mut Vec<Action>,
    ) -> Plan {
        // The cordon came with the progress, in one request: if it is gone, somebody took it off.
        if !node.unschedulable {
            return self.end(node, timer.now, Step::Uncordoned, "", Some(&intent.id), progress.phase);
        }
        self.course.cordoned_at.get_or_insert(timer.now);
        let mut awaited = match self.gate(timer, node, intent, progress, actions) {
            Ok(awaited) => awaited,
            Err((step, why)) => return self.end(node, timer.now, step, &why, Some(&intent.id), progress.phase),
        };
        if awaited.is_none() && self.is_empty(timer, node, intent, progress) {
            match self.hooks(timer, intent, (HookPhase::PostDrain, None), actions) {
                Verdict::Done => awaited = blocker(timer, node, HookPhase::PostDrain),
                Verdict::Waits(hook) => awaited = Some(format!("hook {hook} is awaited")),
                Verdict::Stop(step, why) => {
                    return self.end(node, timer.now, step, &why, Some(&intent.id), progress.phase);
                }
            }
            if awaited.is_none() {
                let progress = Progress { phase: Phase::Drained, since: timer.now, ..progress.clone() };
                return Some((Step::Drained, set(progress)));
            }
        }
        let left = awaited.unwrap_or_else(|| self.left(timer, intent, Some(progress)));
        self.show(timer, node, Standing::at(Phase::Draining), started(intent), &left)
    }

    /// Opens tier after tier, as hooks and blockers let it. Says what is waited for, or why the drain must end.
    fn gate(
        &mut self,
        timer: &mut Timer,
        node: &Node,
        intent: &Intent,
        progress: &Progress,
        actions: &mut Vec<Action>,
    ) -> Result<Option<String>, (Step, String)> {
        let tier = self.holding(intent, progress).map(Pod::tier).min();
        let points = [
            (!intent.is_planned()).then_some((HookPhase::PreCordon, None)),
            Some((HookPhase::PreDrain, None)),
            tier.map(|tier| (HookPhase::PreTier, Some(tier))),
        ];
        for point in points.into_iter().flatten() {
            match self.hooks(timer, intent, point, actions) {
                Verdict::Done => {}
                Verdict::Waits(hook) => return Ok(Some(format!("hook {hook} is awaited"))),
                Verdict::Stop(step, why) => return Err((step, why)),
            }
            if point.0 == HookPhase::PreDrain
                && intent.is_planned()
                && let Some(blocked) = blocker(timer, node, HookPhase::PreDrain)
            {
                return Ok(Some(blocked));
            }
        }
        self.course.open = tier.max(self.course.open);
        Ok(None)
    }

    fn hooks(&mut self, timer: &mut Timer, intent: &Intent, point: hook::Point, actions: &mut Vec<Action>) -> Verdict {
        let grace = self.pods.iter().flatten().map(|pod| pod.grace).max().unwrap_or_default();
        let until = if intent.is_planned() { intent.deadline } else { intent.deadline.before(grace + MARGIN) };
        let ask = Ask { hooks: &self.settings.hooks, intent, until };
        self.course.hooks.advance(timer, ask, point, actions)
    }

    /// The pods for whose sake the node is not drained yet.
    fn holding<'a>(&'a self, intent: &'a Intent, progress: &'a Progress) -> impl Iterator<Item = &'a Pod> {
        let began = Some(progress.since);
        self.pods.iter().flatten().filter(move |pod| pod.treatment(intent, began) != Treatment::Stay)
    }

    /// Whether the node has been watched long enough to know that it is empty, and its volumes are elsewhere.
    fn is_empty(&mut self, timer: &mut Timer, node: &Node, intent: &Intent, progress: &Progress) -> bool {
        if self.pods.is_none() || self.holding(intent, progress).next().is_some() {
            self.course.empty_since = None;
            return false;
        }
        let since = *self.course.empty_since.get_or_insert(timer.now);
        let cordoned_at = self.course.cordoned_at.unwrap_or(timer.now);
        if !(timer.due(cordoned_at + SETTLE) & timer.due(since + QUIET)) {
            return false;
        }
        self.attached(node).next().is_none() || timer.due(since + DETACH_VOLUMES)
    }

    /// Volumes of pods that have gone. Where one that stays has volumes, too, only those count that the kubelet has
    /// unmounted.
    fn attached<'a>(&'a self, node: &'a Node) -> impl Iterator<Item = &'a String> {
        let stays = self.pods.iter().flatten().any(|pod| pod.has_claims && !pod.finished);
        node.attached.iter().filter(move |volume| !stays || !node.in_use.contains(*volume))
    }

    fn evict(&mut self, timer: &mut Timer, intent: &Intent, progress: &Progress, actions: &mut Vec<Action>) {
        let Some(pods) = &self.pods else { return };
        let Course { evictions, forced, open, .. } = &mut self.course;
        let forces = intent.permits.delete_at_deadline;
        let mut chosen = Vec::new();
        for pod in pods {
            // While there is just time for its grace, order and patience end.
            let waits_longer = intent.is_planned() && !forces;
            let in_time = waits_longer || !timer.due(intent.deadline.before(pod.grace + MARGIN));
            let goes = match pod.treatment(intent, Some(progress.since)) {
                Treatment::Evict => !in_time || open.is_some_and(|open| pod.tier() <= open),
                Treatment::Await => !in_time && !intent.is_planned(),
                Treatment::Keep(_) | Treatment::Stay => false,
            };
            // Terminating, it needs no second request, unless its end would come too late.
            let is_late = pod.deletion.is_some_and(|at| at > intent.deadline);
            let is_blocked = evictions.reply(pod).is_some_and(|it| it.outcome == EvictionOutcome::Blocked);
            let is_forced = goes && forces && !in_time && (is_late || is_blocked);
            if is_forced && forced.insert(pod.uid.clone()) {
                let grace = left(timer.now, intent).min(pod.grace);
                actions.push(Action::Delete { pod: pod.into(), grace });
            } else if goes && pod.deletion.is_none() {
                chosen.push(pod);
            }
        }
        chosen.sort_by_key(|pod| pod.tier());
        for pod in evictions.take(timer, chosen.into_iter()) {
            let left = left(timer.now, intent);
            actions.push(if forced.contains(&pod.uid) {
                Action::Delete { pod: pod.into(), grace: left.min(pod.grace) }
            } else {
                // A planned drain never shortens it: checkpoints are written in that time.
                let grace = (!intent.is_planned() && left < pod.grace).then_some(left);
                Action::Evict { pod: pod.into(), grace }
            });
        }
    }

    /// What is left to do, in words.
    fn left(&self, timer: &mut Timer, intent: &Intent, progress: Option<&Progress>) -> String {
        let Some(progress) = progress else { return String::new() };
        let mut causes = Causes::default();
        let mut count = 0;
        for pod in self.holding(intent, progress) {
            count += 1;
            let reply = self.course.evictions.reply(pod);
            match (pod.deletion, pod.treatment(intent, Some(progress.since)), reply) {
                (Some(deletion), ..) if timer.due(deletion + STUCK) => causes.add(pod, stuck(pod)),
                (Some(_), ..) => {}
                (None, Treatment::Keep(pin), _) => causes.add(pod, pin.to_string()),
                (None, Treatment::Await, _) => causes.add(pod, "its end is awaited"),
                (None, _, Some(reply)) if reply.outcome != EvictionOutcome::Accepted => causes.add(pod, cause(reply)),
                (None, ..) => {}
            }
        }
        if count == 0 {
            let volumes = self.node.as_ref().map_or(0, |node| self.attached(node).count());
            return if volumes == 0 { String::new() } else { format!("{volumes} volumes are attached") };
        }
        let pods = if count == 1 { "1 pod is left".to_owned() } else { format!("{count} pods are left") };
        if causes.is_empty() { pods } else { format!("{pods}; {}", causes.words()) }
    }

    /// Sets the conditions, if they are not as they should be or say something else.
    fn show(&mut self, timer: &mut Timer, node: &Node, standing: Standing, step: Step, detail: &str) -> Plan {
        let message = step.say(detail);
        let as_wanted = Standing::of(node) == standing;
        // What stands there of a drain that is over is for good.
        let is_over = !standing.draining && (standing.drained || !standing.planned);
        let news = match &self.said {
            _ if is_over => false,
            Some((said, _)) if *said == message => false,
            Some((_, at)) => timer.due(*at + SAY_EVERY),
            None => true,
        };
        (!as_wanted || news).then(|| {
            self.said = Some((message.clone(), timer.now));
            (step, standing.change(step, &message))
        })
    }

    /// Takes back what we did; the conditions first, so that no schedulable node is called drained, and so that the
    /// reason stands there before the drain is called failed. `reached`: the phase that it had come to.
    fn end(
        &mut self,
        node: &Node,
        now: Instant,
        step: Step,
        detail: &str,
        failed: Option<&str>,
        reached: Phase,
    ) -> Plan {
        if reached != Phase::Failed {
            let phase = if step == Step::Cancelled { HookPhase::OnCancel } else { HookPhase::OnFailure };
            // What it was about is not known to one that has just started.
            let asked = self.last.is_some() && self.settings.hooks.iter().any(|hook| hook.phases.contains(&phase));
            if asked && self.aftermath.is_none() && Standing::of(node) != Standing::default() {
                self.aftermath = Some((phase, Hooks::default()));
            }
        }
        let message = step.say(detail);
        let is_said = failed.is_none() || self.said.as_ref().is_some_and(|(said, _)| *said == message);
        if Standing::of(node) != Standing::default() || !is_said {
            self.said = Some((message.clone(), now));
            return Some((step, Standing::default().change(step, &message)));
        }
        Some((step, undo(now, node, failed)))
    }
}

/// The intent that is being carried out, or is to be, and how far it is.
fn under_way(node: &Node) -> Option<(&Intent, Option<&Progress>)> {
    let intent = node.intent.as_ref()?;
    let progress = node.progress.as_ref().filter(|progress| progress.id == intent.id);
    progress.is_none_or(|progress| progress.phase != Phase::Failed).then_some((intent, progress))
}

/// The node is given back then. What is drained for a person stays so, and of what will be lost there is nothing to give.
fn ends_at_deadline(intent: &Intent, phase: Option<Phase>) -> bool {
    let stays = phase == Some(Phase::Drained) && matches!(intent.by, Trigger::Maintenance | Trigger::Person);
    intent.is_planned() && !stays
}

/// The time that a pod has that is asked to go now, without being killed with its node. Never none: that would take it
/// from the API server while it still runs.
fn left(now: Instant, intent: &Intent) -> Duration {
    intent.deadline.since(now).saturating_sub(MARGIN / 2).max(Duration::from_secs(1))
}

fn started(intent: &Intent) -> Step {
    if intent.evict { Step::Started } else { Step::RunningOut }
}

fn set(progress: Progress) -> Change {
    Change::Node(NodeChange { progress: Edit::Set(progress), ..NodeChange::default() })
}

fn take_over(node: &Node, intent: &Intent, other: &Progress) -> Change {
    let phase = if other.phase == Phase::Drained { Phase::Draining } else { other.phase };
    // Somebody made it schedulable since: it is cordoned anew, as by a drain that begins.
    let phase = if node.unschedulable { phase } else { phase.min(Phase::Preparing) };
    set(Progress { id: intent.id.clone(), phase, ..other.clone() })
}

/// What a person may write in place of an intent: this as JSON, or just the reason.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wish {
    reason: String,
    deadline: Option<Instant>,
    #[serde(flatten)]
    permits: Permits,
}

/// A person's words become an intent.
fn requested(now: Instant, words: &str) -> (Step, Change) {
    let plain = || Wish { reason: words.to_owned(), deadline: None, permits: Permits::default() };
    let Wish { reason, deadline, permits } = intent::decode(words).unwrap_or_else(plain);
    let intent = Intent {
        id: format!("person-{}", now.as_millis()),
        reason,
        requested_at: now,
        deadline: deadline.unwrap_or(now + DEFAULT_DEADLINE),
        evict: true,
        by: Trigger::Person,
        permits,
    };
    (Step::Requested, Change::Node(NodeChange { intent: Edit::Set(intent), ..NodeChange::default() }))
}

/// Who blocks a phase, in words.
fn blocker(timer: &mut Timer, node: &Node, phase: HookPhase) -> Option<String> {
    let blockers = node.blockers.iter().filter(|it| it.phase == phase);
    let blocker = blockers.filter(|it| it.until.is_some_and(|until| !timer.due(until))).last()?;
    let until = blocker.until.map(|until| format!(" until {until}")).unwrap_or_default();
    Some(format!("annotation {}.ebb.dev/{} asks to wait{until}", phase.name(), blocker.owner))
}

fn stuck(pod: &Pod) -> String {
    if pod.finalizers.is_empty() {
        format!("terminating for more than {} past its time, its kubelet does not end it", format_duration(STUCK))
    } else {
        format!("terminating, held by finalizers: {}", pod.finalizers.join(", "))
    }
}
