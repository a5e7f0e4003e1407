//! What has to change on the Node next: the drain's course, phase by phase.

use serde::Deserialize;

use super::causes::Detail;
use super::change::{Change, Edit, NodeChange, Standing, Step, cordon, undo};
use super::hook::{self, Ask, HookPhase, Hooks, Verdict};
use super::pod::Pod;
use super::preflight::Outlook;
use super::{Action, DEFAULT_DEADLINE, Drain, MARGIN, Node, SAY_EVERY, SAY_SOON, Said};
use crate::agenda::Agenda;
use crate::intent::{self, Intent, Permits, Phase, Progress, Trigger};
use crate::notice::Wish;
use crate::time::Instant;

/// What is to be changed on the Node.
pub(super) type Plan = Option<(Step, Change)>;

/// What is waited for, if anything is; or why the drain must end.
type Awaited = Result<Option<String>, (Step, String)>;

impl Drain {
    /// What has to change on the Node next, if anything.
    pub(super) fn plan(&mut self, agenda: &mut Agenda, node: &Node, actions: &mut Vec<Action>) -> Plan {
        let now = agenda.now;
        if let Some(plan) = self.heed(agenda, node) {
            return Some(plan);
        }
        let Some(intent) = &node.intent else {
            return match (&node.progress, &node.request) {
                (None, Some(reason)) => Some(requested(now, reason)),
                (None, None) => self.show(agenda, node, Standing::default(), Step::Cancelled, &Detail::default()),
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
            return self.show(agenda, node, Standing::default(), Step::DeadlineExceeded, &Detail::default());
        }
        if ends_at_deadline(intent, phase) && agenda.due(intent.deadline) {
            let reached = phase.unwrap_or(Phase::Failed);
            let left = self.left(agenda, intent, progress);
            return self.end(node, now, Step::DeadlineExceeded, &left.words, Some(id), reached);
        }
        let Some(progress) = progress else { return self.begin(agenda, node, intent, actions) };
        match progress.phase {
            Phase::Preparing | Phase::Detaching => self.prepare(agenda, node, intent, progress, actions),
            Phase::Draining => self.drain(agenda, node, intent, progress, actions),
            Phase::Drained => self.show(agenda, node, Standing::at(Phase::Drained), Step::Drained, &Detail::default()),
            Phase::Failed => None,
        }
    }

    /// What the node's end, or that it is called off, makes of its intent.
    fn heed(&self, agenda: &mut Agenda, node: &Node) -> Plan {
        // A person's words come first: they are an intent in a moment.
        let standing = node.intent.as_ref();
        if node.request.is_some() {
            return None;
        }
        let policy = &self.settings.notices;
        if let Some(at) = self.notices.next_wakeup(agenda.now, policy, standing) {
            agenda.due(at);
        }
        let (step, intent) = match self.notices.intent(agenda.now, policy, standing) {
            Wish::Keep => return None,
            Wish::Set(intent) => (Step::Noticed, Edit::Set(intent)),
            Wish::Remove => (Step::Cancelled, Edit::Remove),
        };
        Some((step, Change::Node(NodeChange { intent, ..NodeChange::default() })))
    }

    /// Nothing is changed yet.
    fn begin(&mut self, agenda: &mut Agenda, node: &Node, intent: &Intent, actions: &mut Vec<Action>) -> Plan {
        if !intent.is_planned() {
            return Some((Step::Started, cordon(agenda.now, node, &intent.id)));
        }
        let pods = self.pods.as_deref()?;
        match self.course.preflight.look(agenda, intent, pods, actions) {
            Outlook::Open => None,
            Outlook::Bad(why) => {
                self.end(node, agenda.now, Step::PreflightFailed, &why, Some(&intent.id), Phase::Failed)
            }
            Outlook::Good if self.is_awaited(agenda, node, intent) => {
                let progress = Progress::new(&intent.id, Phase::Preparing, agenda.now);
                Some((Step::Preparing, set(progress)))
            }
            Outlook::Good => Some((started(intent), cordon(agenda.now, node, &intent.id))),
        }
    }

    /// Whether anything is to happen before the cordon.
    fn is_awaited(&self, agenda: &mut Agenda, node: &Node, intent: &Intent) -> bool {
        !self.settings.leave_load_balancers.is_zero()
            || self.settings.hooks.iter().any(|hook| hook.phases.contains(&HookPhase::PreCordon))
            || blocker(agenda, node, intent, HookPhase::PreCordon).is_some()
    }

    fn prepare(
        &mut self,
        agenda: &mut Agenda,
        node: &Node,
        intent: &Intent,
        progress: &Progress,
        actions: &mut Vec<Action>,
    ) -> Plan {
        let standing = Standing::at(progress.phase);
        if !intent.is_planned() {
            return Some((Step::Started, cordon(agenda.now, node, &intent.id)));
        }
        if progress.phase == Phase::Preparing {
            let awaited = match self.hooks(agenda, intent, (HookPhase::PreCordon, None), actions) {
                Ok(awaited) => awaited.or_else(|| blocker(agenda, node, intent, HookPhase::PreCordon)),
                Err((step, why)) => return self.end(node, agenda.now, step, &why, Some(&intent.id), progress.phase),
            };
            if let Some(awaited) = awaited {
                return self.show(agenda, node, standing, Step::Preparing, &obstacle(awaited));
            }
            if !self.settings.leave_load_balancers.is_zero() {
                let excluded = NodeChange { excluded: (!node.excluded).then_some(true), ..NodeChange::default() };
                let progress = Progress {
                    excluded_by_us: !node.excluded,
                    ..Progress::new(&intent.id, Phase::Detaching, agenda.now)
                };
                let change = NodeChange { progress: Edit::Set(progress), ..excluded };
                return Some((Step::Detaching, Change::Node(change)));
            }
        } else if !agenda.due(progress.since + self.settings.leave_load_balancers) {
            return self.show(agenda, node, standing, Step::Detaching, &Detail::default());
        }
        Some((started(intent), cordon(agenda.now, node, &intent.id)))
    }

    /// The node is cordoned, and to be emptied.
    fn drain(
        &mut self,
        agenda: &mut Agenda,
        node: &Node,
        intent: &Intent,
        progress: &Progress,
        actions: &mut Vec<Action>,
    ) -> Plan {
        // The cordon came with the progress, in one request: if it is gone, somebody took it off.
        if !node.unschedulable {
            return self.end(node, agenda.now, Step::Uncordoned, "", Some(&intent.id), progress.phase);
        }
        self.course.cordoned_at.get_or_insert(agenda.now);
        let mut awaited = match self.gate(agenda, node, intent, progress, actions) {
            Ok(awaited) => awaited,
            Err((step, why)) => return self.end(node, agenda.now, step, &why, Some(&intent.id), progress.phase),
        };
        if awaited.is_none() && self.is_empty(agenda, node, intent, progress) {
            awaited = match self.hooks(agenda, intent, (HookPhase::PostDrain, None), actions) {
                Ok(awaited) => awaited.or_else(|| blocker(agenda, node, intent, HookPhase::PostDrain)),
                Err((step, why)) => return self.end(node, agenda.now, step, &why, Some(&intent.id), progress.phase),
            };
            if awaited.is_none() {
                let progress = Progress { phase: Phase::Drained, since: agenda.now, ..progress.clone() };
                return Some((Step::Drained, set(progress)));
            }
        }
        let left = awaited.map_or_else(|| self.left(agenda, intent, Some(progress)), obstacle);
        self.show(agenda, node, Standing::at(Phase::Draining), started(intent), &left)
    }

    /// Opens tier after tier, as hooks and blockers let it. Says what is waited for, or why the drain must end.
    fn gate(
        &mut self,
        agenda: &mut Agenda,
        node: &Node,
        intent: &Intent,
        progress: &Progress,
        actions: &mut Vec<Action>,
    ) -> Awaited {
        let tier = self.holding(intent, progress).map(Pod::tier).min();
        // Where nobody gives turns away, it takes its own while there is time left for it.
        let half = intent.requested_at + intent.deadline.since(intent.requested_at) / 2;
        if intent.awaits_turn && intent.is_planned() && tier.is_some() && !agenda.due(half) {
            return Ok(Some("its turn is awaited".into()));
        }
        let points = [
            (!intent.is_planned()).then_some((HookPhase::PreCordon, None)),
            Some((HookPhase::PreDrain, None)),
            tier.map(|tier| (HookPhase::PreTier, Some(tier))),
        ];
        for point in points.into_iter().flatten() {
            if let Some(awaited) = self.hooks(agenda, intent, point, actions)? {
                return Ok(Some(awaited));
            }
            if point.0 == HookPhase::PreDrain
                && let Some(blocked) = blocker(agenda, node, intent, HookPhase::PreDrain)
            {
                return Ok(Some(blocked));
            }
        }
        self.course.open = tier.max(self.course.open);
        Ok(None)
    }

    /// Goes on with the hooks of a point.
    fn hooks(
        &mut self,
        agenda: &mut Agenda,
        intent: &Intent,
        point: hook::Point,
        actions: &mut Vec<Action>,
    ) -> Awaited {
        let grace = self.pods.iter().flatten().map(|pod| pod.grace).max().unwrap_or_default();
        let evict_by = intent.deadline.before(grace + MARGIN);
        let until = if intent.is_planned() { intent.deadline } else { evict_by };
        let ask = Ask { hooks: &self.settings.hooks, intent, until, evict_by };
        match self.course.hooks.advance(agenda, ask, point, actions) {
            Verdict::Done => Ok(None),
            Verdict::Waits(words) => Ok(Some(words)),
            Verdict::Stop(step, why) => Err((step, why)),
        }
    }

    /// Sets the conditions, if they are not as they should be or say something else.
    fn show(&mut self, agenda: &mut Agenda, node: &Node, standing: Standing, step: Step, detail: &Detail) -> Plan {
        let message = step.say(&detail.words);
        let as_wanted = Standing::of(node) == standing;
        // What stands there of a drain that is over is for good.
        let is_over = !standing.draining && (standing.drained || !standing.planned);
        let news = match &self.said {
            _ if is_over => false,
            Some(said) if said.message == message => false,
            Some(said) if detail.is_obstacle && !said.is_obstacle => agenda.due(said.at + SAY_SOON),
            Some(said) => agenda.due(said.at + SAY_EVERY),
            None => true,
        };
        (!as_wanted || news).then(|| {
            let is_obstacle = detail.is_obstacle;
            self.said = Some(Said { step, message: message.clone(), at: agenda.now, is_obstacle });
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
        let is_said = failed.is_none() || self.said.as_ref().is_some_and(|said| said.step == step);
        if Standing::of(node) != Standing::default() || !is_said {
            self.said = Some(Said { step, message: message.clone(), at: now, is_obstacle: true });
            return Some((step, Standing::default().change(step, &message)));
        }
        Some((step, undo(now, node, failed)))
    }
}

/// The node is given back then. What is drained for a person stays so, and of what will be lost there is nothing to give.
fn ends_at_deadline(intent: &Intent, phase: Option<Phase>) -> bool {
    let stays = phase == Some(Phase::Drained) && matches!(intent.by, Trigger::Maintenance | Trigger::Person);
    intent.is_planned() && !stays
}

fn obstacle(words: String) -> Detail {
    Detail { words, is_obstacle: true }
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
struct Request {
    reason: String,
    deadline: Option<Instant>,
    #[serde(flatten)]
    permits: Permits,
}

/// A person's words become an intent.
fn requested(now: Instant, words: &str) -> (Step, Change) {
    let plain = || Request { reason: words.to_owned(), deadline: None, permits: Permits::default() };
    let Request { reason, deadline, permits } = intent::decode(words).unwrap_or_else(plain);
    let intent = Intent {
        id: format!("person-{}", now.as_millis()),
        reason,
        requested_at: now,
        deadline: deadline.unwrap_or(now + DEFAULT_DEADLINE),
        evict: true,
        by: Trigger::Person,
        awaits_turn: false,
        permits,
    };
    (Step::Requested, Change::Node(NodeChange { intent: Edit::Set(intent), ..NodeChange::default() }))
}

/// Who blocks a phase, in words. A drain that is not planned waits for nobody.
fn blocker(agenda: &mut Agenda, node: &Node, intent: &Intent, phase: HookPhase) -> Option<String> {
    if !intent.is_planned() {
        return None;
    }
    let blockers = node.blockers.iter().filter(|it| it.phase == phase);
    let blocker = blockers.filter(|it| it.until.is_some_and(|until| !agenda.due(until))).last()?;
    let until = blocker.until.map(|until| format!(" until {until}")).unwrap_or_default();
    Some(format!("annotation {}.ebb.dev/{} asks to wait{until}", phase.name(), blocker.owner))
}
