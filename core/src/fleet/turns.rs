//! Which of the drains that others asked for, many at once, may begin.

use std::collections::BTreeMap;
use std::time::Duration;

use super::census::Census;
use super::{Action, Fleet, Member, Target, count};
use crate::agenda::Agenda;
use crate::intent::{Intent, Phase, Trigger};
use crate::kubernetes::ZONE_LABEL;
use crate::reason::Reason;

/// How long the first of them waits for the last to be cordoned, so that no pod goes from one to the next.
const CORDONS: Duration = Duration::from_secs(10);

/// One node of those.
struct Guest<'a> {
    member: &'a Member,
    intent: &'a Intent,
    zone: &'a str,
    phase: Option<Phase>,
}

impl Fleet {
    /// In each group as many at once as of our own, and all of one zone: what is spread over zones bears that.
    pub(super) fn turns(&self, agenda: &mut Agenda, census: &[Census]) -> Vec<Action> {
        let mut groups: BTreeMap<&str, Vec<Guest>> = BTreeMap::new();
        for member in self.nodes.values() {
            let Some(intent) = member.intent(agenda.now) else { continue };
            if intent.by == Trigger::Coordinator || !intent.is_planned() {
                continue;
            }
            let is_it = |other: &&Member| other.node.name == member.node.name;
            let group = census.iter().find(|group| group.cordoned.iter().any(is_it)).map_or("", |group| group.name);
            let zone = member.node.labels.get(ZONE_LABEL).map_or("", String::as_str);
            let phase = member.node.progress.as_ref().filter(|it| it.id == intent.id).map(|it| it.phase);
            groups.entry(group).or_default().push(Guest { member, intent, zone, phase });
        }
        groups.into_values().flat_map(|guests| self.turns_of(agenda, guests)).collect()
    }

    fn turns_of(&self, agenda: &mut Agenda, mut guests: Vec<Guest>) -> Vec<Action> {
        guests.sort_by_key(|it| (it.intent.requested_at, it.zone, &it.member.node.name));
        let (waiting, begun): (Vec<_>, Vec<_>) = guests.into_iter().partition(|it| it.intent.awaits_turn);
        let uncordoned = |it: &&Guest| !matches!(it.phase, Some(Phase::Draining | Phase::Drained | Phase::Failed));
        let latest = waiting.iter().filter(uncordoned).map(|it| it.intent.requested_at).max();
        if latest.is_some_and(|requested| !agenda.due(requested + CORDONS)) {
            return Vec::new();
        }
        let active: Vec<_> =
            begun.iter().filter(|it| !matches!(it.phase, Some(Phase::Drained | Phase::Failed))).collect();
        let ready: Vec<_> = waiting.iter().filter(|it| it.phase == Some(Phase::Draining)).collect();
        let Some(zone) = active.first().or(ready.first().as_ref().copied()).map(|it| it.zone) else {
            return Vec::new();
        };
        let most = self.policy.scale_down.max_parallel_drains.saturating_sub(count(active.len()));
        let mut left = ready.len();
        let next = ready.into_iter().filter(|it| it.zone == zone).take(most as usize);
        let next: Vec<_> = next.filter(|it| self.ready(agenda, &Target::Node(it.member.node.name.clone()))).collect();
        next.into_iter()
            .map(|it| {
                left -= 1;
                Action::Drain {
                    node: it.member.node.name.clone(),
                    uid: it.member.node.uid.clone(),
                    intent: Intent { awaits_turn: false, ..it.intent.clone() },
                    because: Reason::Turn { left },
                }
            })
            .collect()
    }
}
