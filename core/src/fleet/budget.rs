//! How many more nodes may be drained now.

use super::census::Census;
use super::{Fleet, Member};
use crate::agenda::Agenda;
use crate::policy::{Budget, Disruption};
use crate::reason::Stay;
use crate::time::Instant;

/// The budgets whose time it is.
pub(super) struct Budgets<'a>(Vec<Held<'a>>);

struct Held<'a> {
    budget: &'a Budget,
    /// Over this group alone.
    group: Option<&'a str>,
    most: u32,
    draining: u32,
    until: Option<Instant>,
}

impl Held<'_> {
    fn is_about(&self, group: &str) -> bool {
        self.group.is_none_or(|only| only == group)
    }
}

impl Budgets<'_> {
    /// The least of those that let no other node of this group drain for this reason, and what it lets.
    pub(super) fn forbid(&self, group: &str, why: Disruption) -> Option<(u32, Stay)> {
        let about = |held: &&Held| held.is_about(group) && held.budget.is_about(why);
        let spent = self.0.iter().filter(about).filter(|held| held.draining >= held.most);
        let least = spent.min_by_key(|held| held.most)?;
        let stay = Stay::Budget {
            budget: least.budget.to_string(),
            group: least.group.map(ToOwned::to_owned),
            most: least.most,
            until: least.until,
        };
        Some((least.most, stay))
    }

    /// A node of this group is drained.
    pub(super) fn spend(&mut self, group: &str, why: Disruption) {
        let evicts = why != Disruption::Completed;
        let spent = self.0.iter_mut().filter(|held| held.is_about(group) && held.budget.counts(evicts));
        spent.for_each(|held| held.draining += 1);
    }
}

impl Fleet {
    /// Those that hold now, with what of each is taken by nodes that drain already.
    pub(super) fn budgets<'a>(
        &'a self,
        agenda: &mut Agenda,
        census: &[Census<'a>],
        draining: &[&Member],
    ) -> Budgets<'a> {
        let all: usize = census.iter().map(Census::members).sum();
        let ours = self.policy.scale_down.budgets.iter().map(|budget| (budget, None, all));
        let groups = census.iter().flat_map(|group| {
            let budgets = group.policy.budgets.iter();
            budgets.map(|budget| (budget, Some(group.name), group.members()))
        });
        let held = ours.chain(groups).filter_map(|(budget, group, nodes)| {
            let mut until = None;
            if let Some(window) = &budget.window {
                let (open, then) = window.look(agenda.now);
                then.inspect(|then| _ = agenda.due(*then));
                until = open.then_some(then)?;
            }
            let most = budget.nodes.of(u32::try_from(nodes).unwrap_or(u32::MAX));
            let counts = |member: &&&Member| {
                // Of one that is only being asked it is not known.
                let intent = member.intent(agenda.now);
                let counts = intent.is_none_or(|intent| budget.counts(intent.evict));
                counts && group.is_none_or(|group| self.is_of(group, member))
            };
            let draining = draining.iter().filter(counts).count();
            Some(Held { budget, group, most, draining: u32::try_from(draining).unwrap_or(u32::MAX), until })
        });
        Budgets(held.collect())
    }

    /// Whether the group has told of the node's instance, which may be terminated by now.
    fn is_of(&self, group: &str, member: &Member) -> bool {
        let instance = member.node.instance.as_ref();
        instance.is_some_and(|instance| self.groups[group].first_seen.contains_key(instance))
    }
}
