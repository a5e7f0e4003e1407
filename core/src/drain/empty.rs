//! Emptying the node: which pods hold it, which are asked to go now, and what is left.

use std::time::Duration;

use super::causes::{Causes, Detail, cause};
use super::eviction::EvictionOutcome;
use super::pod::{Pod, Treatment};
use super::{Action, Course, DETACH_VOLUMES, Drain, MARGIN, Node, QUIET, SETTLE, STUCK};
use crate::agenda::Agenda;
use crate::intent::{Intent, Progress};
use crate::time::{Instant, format_duration};

impl Drain {
    /// The pods for whose sake the node is not drained yet.
    pub(super) fn holding<'a>(&'a self, intent: &'a Intent, progress: &'a Progress) -> impl Iterator<Item = &'a Pod> {
        let began = Some(progress.since);
        self.pods.iter().flatten().filter(move |pod| pod.treatment(intent, began) != Treatment::Stay)
    }

    /// Whether the node has been watched long enough to know that it is empty, and its volumes are elsewhere.
    pub(super) fn is_empty(&mut self, agenda: &mut Agenda, node: &Node, intent: &Intent, progress: &Progress) -> bool {
        if self.pods.is_none() || self.holding(intent, progress).next().is_some() {
            self.course.empty_since = None;
            return false;
        }
        let since = *self.course.empty_since.get_or_insert(agenda.now);
        let cordoned_at = self.course.cordoned_at.unwrap_or(agenda.now);
        if !(agenda.due(cordoned_at + SETTLE) & agenda.due(since + QUIET)) {
            return false;
        }
        self.attached(node).next().is_none() || agenda.due(since + DETACH_VOLUMES)
    }

    /// Volumes of pods that have gone. Where one that stays has volumes, too, only those count that the kubelet has
    /// unmounted.
    fn attached<'a>(&'a self, node: &'a Node) -> impl Iterator<Item = &'a String> {
        let stays = self.pods.iter().flatten().any(|pod| pod.has_claims && !pod.finished);
        node.attached.iter().filter(move |volume| !stays || !node.in_use.contains(*volume))
    }

    pub(super) fn evict(
        &mut self,
        agenda: &mut Agenda,
        intent: &Intent,
        progress: &Progress,
        actions: &mut Vec<Action>,
    ) {
        let Some(pods) = &self.pods else { return };
        let Course { evictions, forced, open, late, .. } = &mut self.course;
        let forces = intent.permits.delete_at_deadline;
        let mut chosen = Vec::new();
        for pod in pods {
            // While there is just time for its grace, order and patience end.
            let waits_longer = intent.is_planned() && !forces;
            let in_time = waits_longer || !agenda.due(intent.deadline.before(pod.grace + MARGIN));
            // Whoever let it in may have taken off the cordon, and the word of that be on its way.
            let is_fresh = late.get(&pod.uid).is_some_and(|came| !agenda.due(*came + SETTLE));
            let goes = match pod.treatment(intent, Some(progress.since)) {
                Treatment::Evict => !in_time || !is_fresh && open.is_some_and(|open| pod.tier() <= open),
                Treatment::Await => !in_time && !intent.is_planned(),
                Treatment::Keep(_) | Treatment::Stay => false,
            };
            // Terminating, it needs no second request, unless its end would come too late.
            let is_late = pod.deletion.is_some_and(|at| at > intent.deadline);
            let is_blocked = evictions
                .reply(pod)
                .is_some_and(|it| matches!(it.outcome, EvictionOutcome::Blocked | EvictionOutcome::Refused));
            let is_forced = goes && forces && !in_time && (is_late || is_blocked);
            if is_forced && forced.insert(pod.uid.clone()) {
                let grace = left(agenda.now, intent).min(pod.grace);
                actions.push(Action::Delete { pod: pod.into(), grace });
            } else if goes && pod.deletion.is_none() {
                chosen.push(pod);
            }
        }
        chosen.sort_by_key(|pod| pod.tier());
        for pod in evictions.take(agenda, chosen.into_iter()) {
            let left = left(agenda.now, intent);
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
    pub(super) fn left(&self, agenda: &mut Agenda, intent: &Intent, progress: Option<&Progress>) -> Detail {
        let Some(progress) = progress else { return Detail::default() };
        let mut causes = Causes::default();
        let mut count = 0;
        for pod in self.holding(intent, progress) {
            count += 1;
            let reply = self.course.evictions.reply(pod);
            match (pod.deletion, pod.treatment(intent, Some(progress.since)), reply) {
                (Some(deletion), ..) if agenda.due(deletion + STUCK) => causes.add(pod, stuck(pod)),
                (Some(_), ..) => {}
                (None, Treatment::Keep(pin), _) => causes.add(pod, pin.to_string()),
                (None, Treatment::Await, _) => causes.add(pod, "its end is awaited"),
                (None, _, Some(reply)) if reply.outcome != EvictionOutcome::Accepted => causes.add(pod, cause(reply)),
                (None, ..) => {}
            }
        }
        if count == 0 {
            let volumes = self.node.as_ref().map_or(0, |node| self.attached(node).count());
            let words = match volumes {
                0 => String::new(),
                1 => "1 volume is attached".into(),
                _ => format!("{volumes} volumes are attached"),
            };
            return Detail { words, is_obstacle: false };
        }
        let pods = if count == 1 { "1 pod is left".to_owned() } else { format!("{count} pods are left") };
        let is_obstacle = !causes.is_empty();
        let words = if is_obstacle { format!("{pods}; {}", causes.words()) } else { pods };
        Detail { words, is_obstacle }
    }
}

/// The time that a pod has that is asked to go now, without being killed with its node. Never none: that would take it
/// from the API server while it still runs.
fn left(now: Instant, intent: &Intent) -> Duration {
    intent.deadline.since(now).saturating_sub(MARGIN / 2).max(Duration::from_secs(1))
}

fn stuck(pod: &Pod) -> String {
    if pod.finalizers.is_empty() {
        format!("terminating for more than {} past its time, its kubelet does not end it", format_duration(STUCK))
    } else {
        format!("terminating, held by finalizers: {}", pod.finalizers.join(", "))
    }
}
