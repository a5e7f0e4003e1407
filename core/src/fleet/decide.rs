//! What to do about the picture as it stands. Reads everything, changes nothing.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::iter;
use std::time::Duration;

use super::buffers::Reserve;
use super::census::Census;
use super::place::{self, By, Origin, Placement, Room, Seat, Wanted};
use super::pods::Entry;
use super::shrink::Shrinking;
use super::{Action, Fleet, Group, Member, Target};
use crate::agenda::Agenda;
use crate::intent::{DEADLINE_MARGIN, Phase};
use crate::kubernetes::Controller;
use crate::launch::Failing;
use crate::reason::{Reason, Stay};
use crate::resources::Resources;
use crate::schedule::Place;
use crate::time::Instant;

/// How often a group in flux is described, and one that is settled. AWS allows an account some ten read calls a
/// second over all its tools; one call describes up to a hundred groups.
const DESCRIBE_IN_FLUX: Duration = Duration::from_secs(5);
const DESCRIBE_SETTLED: Duration = Duration::from_secs(60);

/// What `LaunchInstances` launches at most at once.
const LAUNCHES_AT_MOST: u32 = 100;

/// What came out.
pub(super) struct Decision {
    pub(super) actions: Vec<Action>,
    /// When to look again.
    pub(super) next: Option<Instant>,
    pub(super) failing: BTreeMap<String, Failing>,
    pub(super) stays: BTreeMap<String, Stay>,
    /// Whether it was looked for nodes whose pods fit elsewhere.
    pub(super) consolidated: bool,
}

impl Fleet {
    /// What to do now, and when to look again.
    pub(super) fn decide(&self, now: Instant) -> Decision {
        let mut agenda = Agenda::new(now);
        for member in self.nodes.values() {
            member.written.as_ref().inspect(|written| _ = agenda.due(written.until));
        }
        let census: Vec<_> =
            self.policy.groups.iter().filter_map(|(name, policy)| self.census(&mut agenda, name, policy)).collect();
        let waiting: Vec<_> = self.pods.waiting().collect();
        // A burst is planned for as one.
        let goes_on = self.burst.is_some_and(|burst| !agenda.due(burst.until));
        let due: Vec<_> = waiting
            .iter()
            .filter(|(pod, since)| {
                (self.is_ray_worker(&pod.like) || agenda.due(*since + self.policy.scale_up.pending_for)) && !goes_on
            })
            .copied()
            .collect();

        let reserves = self.reserves(&mut agenda);
        let placement = self.placement(now, &census, due, &reserves);
        let mut actions = self.grow(&mut agenda, &census, &placement);
        actions.extend(self.finish_drains(&mut agenda, &census, &placement));
        actions.extend(self.turns(&mut agenda, &census));
        actions.extend(self.hold_hooks(&mut agenda));
        let Shrinking { drains, stays, consolidated } = self.shrink(&mut agenda, &census, &waiting, &reserves);
        actions.extend(drains);
        actions.extend(self.drive_ray(&mut agenda));
        actions.extend(self.tell_of_scales(&mut agenda));
        actions.extend(self.tell_ray(&mut agenda));
        actions.extend(self.set_deletion_costs(&mut agenda));
        if self.is_settled() {
            actions.extend(self.tell_of_buffers(&mut agenda, &placement));
        }
        actions.extend(self.delete_left_over(&mut agenda));
        actions.extend(self.describe(&mut agenda, &census));
        // One call at a time on each thing: what comes first wins, the rest is decided anew once it is done.
        let mut taken = BTreeSet::new();
        actions.retain(|action| {
            let targets = action.targets();
            let free = targets.iter().all(|target| !taken.contains(target));
            taken.extend(targets.into_iter().filter(|_| free));
            free
        });
        let failing = census.iter().filter_map(|group| Some((group.name.to_owned(), group.failing.clone()?))).collect();
        Decision { actions, next: agenda.next, failing, stays, consolidated }
    }

    fn describe(&self, agenda: &mut Agenda, census: &[Census]) -> Option<Action> {
        let settled = |name: &str| {
            // One that waits for its pods to end does so for hours.
            let leaves = |group: &Census| group.leaving.iter().any(|(_, intent, _)| intent.evict);
            census.iter().any(|group| group.name == name && group.coming == 0 && !leaves(group) && !self.holds(name))
                || self.groups.get(name).is_some_and(|group| group.observed.is_none())
        };
        let newcomers = self.nodes.values().any(|member| self.is_newcomer(member));
        let due = |agenda: &mut Agenda, name: &String, group: &Group| {
            let every = if settled(name) { DESCRIBE_SETTLED } else { DESCRIBE_IN_FLUX };
            newcomers || group.asked_at.is_none_or(|asked| agenda.due(asked + every))
        };
        if !self.ready(agenda, &Target::Describe) {
            return None;
        }
        let groups: Vec<_> =
            self.groups.iter().filter(|(name, group)| due(agenda, name, group)).map(|(name, _)| name.clone()).collect();
        (!groups.is_empty()).then_some(Action::Describe { groups, at: agenda.now })
    }

    /// Finds room for the pods that have waited long enough, and for buffers.
    fn placement<'a>(
        &'a self,
        now: Instant,
        census: &[Census<'a>],
        due: Vec<(&'a Entry, Instant)>,
        reserves: &[Reserve<'a>],
    ) -> Placement<'a> {
        if due.is_empty() && reserves.iter().all(|reserve| reserve.count == 0) {
            return Placement::default();
        }
        let daemons = self.daemons();
        let rooms = self.policy.groups.iter().flat_map(|(name, policy)| {
            let known = census.iter().find(|group| group.name == name);
            let room = |zone: Option<&'a str>| Room {
                group: name,
                zone,
                template: self.template(name, zone, known, &daemons),
                more: known.map(|group| group.max.saturating_sub(group.desired)),
                max: known.map_or(policy.max, |group| group.max),
                nodes: known.map_or(0, |group| group.nodes(zone)),
                priority: policy.priority,
                price: policy.price,
                failing: known.and_then(|group| group.failing(zone)),
            };
            match known.map(|group| group.launches_in) {
                None | Some([]) => vec![room(None)],
                Some(zones) => zones.iter().map(|zone| room(Some(zone))).collect(),
            }
        });
        let rooms: Vec<_> = rooms.collect();
        let mut seats = self.seats(now, census);
        for group in census {
            let zones = group.coming_in.iter().copied().map(Some).chain(iter::repeat(None));
            let place = |zone| self.template(group.name, zone, Some(group), &daemons);
            let seat = |zone| Seat { place: place(zone), pods: Vec::new(), origin: Origin::Coming(group.name) };
            seats.extend(zones.take(group.coming as usize).map(seat));
        }
        place::place(due, reserves, seats, rooms, self.policy.scale_up.expander)
    }

    /// The nodes that are there: those that take pods, those that leave, the others.
    pub(super) fn seats<'a>(&'a self, now: Instant, census: &[Census<'a>]) -> Vec<Seat<'a>> {
        // Nodes of no group of ours take pods as well (one that has just come is counted with its group's coming nodes,
        // until it is known whose it is); so does, in a moment, a node whose drain was cancelled.
        let timeout = self.policy.scale_down.report_timeout;
        let returning = |member: &Member| {
            let ours = member.node.progress.as_ref().is_some_and(|progress| progress.cordoned_by_us);
            ours && member.heard(now, timeout).is_some()
        };
        let serves = |member: &&Member| {
            let open = !member.node.unschedulable || returning(member);
            member.node.ready && open && member.intent(now).is_none() && !self.is_newcomer(member)
        };
        let name = |member: &'a Member| member.node.name.as_str();
        let leaving: Vec<&Member> =
            census.iter().flat_map(|group| &group.leaving).map(|(member, ..)| *member).collect();
        let leaves = |member: &Member| leaving.iter().any(|leaving| leaving.node.name == member.node.name);
        let (serving, others): (Vec<_>, Vec<_>) = self.nodes.values().partition(serves);
        let closed = others.into_iter().filter(|member| !leaves(member));
        let seats = serving.into_iter().map(|member| self.seat(member, Origin::Serving(name(member))));
        let seats = seats.chain(leaving.iter().map(|member| self.seat(member, Origin::Leaving(name(member)))));
        seats.chain(closed.map(|member| self.seat(member, Origin::Closed))).collect()
    }

    /// Whether it is known what is there and what was asked for: what people are told before is soon wrong.
    fn is_settled(&self) -> bool {
        let awaited = self.groups.values().any(|group| group.asked_at.is_none());
        !awaited && !self.nodes.values().any(|member| self.is_newcomer(member))
    }

    /// Raises groups for waiting pods and to their minimum; tells each pod what is happening.
    fn grow(&self, agenda: &mut Agenda, census: &[Census], placement: &Placement) -> Vec<Action> {
        let mut actions = Vec::new();
        // What pods wait for may have been asked for: no other group is raised in its place before that is known.
        let unsure = self.groups.values().any(|group| group.asked_at.is_none() && group.unanswered.is_some());
        for group in census {
            // Zone after zone: where pods wait first, then where the most are wanted.
            let wanted = placement.wanted.iter().filter(|((name, _), _)| *name == group.name && !unsure);
            let spare = |wanted: &Wanted| matches!(wanted.by, By::Buffers { .. });
            let wanted = wanted.min_by_key(|((_, zone), wanted)| (spare(wanted), Reverse(wanted.nodes), *zone));
            let to = (group.desired + wanted.map_or(0, |(_, wanted)| wanted.nodes)).clamp(group.min, group.max);
            if to <= group.desired || !self.ready(agenda, &Target::Group(group.name.to_owned())) {
                continue;
            }
            let (name, from) = (group.name.to_owned(), group.desired);
            actions.push(match wanted {
                Some(((_, Some(zone)), wanted)) => self.launch(agenda.now, group, zone, wanted),
                Some(((_, None), wanted)) => {
                    Action::SetDesired { group: name, from, to, because: wanted.by.because(agenda.now) }
                }
                None => Action::SetDesired { group: name, from, to, because: Reason::BelowMinimum { min: group.min } },
            });
        }
        // While a description is awaited, it will tell better.
        let settled = self.is_settled();
        // What the scheduler has not refused yet it may place in a moment.
        for (pod, because) in placement.explained.iter().filter(|(pod, _)| settled && pod.refused()) {
            if self.explained.get(pod.uid.as_ref()).is_none_or(|said| is_news(said, because)) {
                actions.push(Action::Explain {
                    namespace: pod.like.namespace.clone(),
                    pod: pod.name.as_ref().to_owned(),
                    uid: pod.uid.as_ref().to_owned(),
                    because: because.clone(),
                });
            }
        }
        actions
    }

    /// A launch in this zone. One of which no reply came is asked for again as it was, under its token, before anything
    /// else is.
    fn launch(&self, now: Instant, group: &Census, zone: &str, wanted: &Wanted) -> Action {
        let from = group.desired;
        let to = (from + wanted.nodes.min(LAUNCHES_AT_MOST)).min(group.max);
        let repeats = |launch: &&Action| {
            matches!(launch, Action::Launch { zone: lost, from: before, to: lost_to, .. }
                if lost == zone && *before == from && *lost_to <= to)
        };
        if let Some(lost) = self.groups[group.name].unanswered.as_ref().filter(repeats) {
            return lost.clone();
        }
        // No other launch is decided on at this time, from this capacity, in this group and zone.
        let number = self.policy.groups.keys().position(|name| name == group.name).unwrap_or_default();
        Action::Launch {
            group: group.name.to_owned(),
            zone: zone.to_owned(),
            from,
            to,
            token: format!("ebb-{}-{number}-{from}-{zone}", now.as_millis()),
            because: wanted.by.because(now),
        }
    }

    /// What a new node of the group would have for pods: what is known of it, less what daemons take.
    fn template<'a>(
        &'a self,
        name: &str,
        zone: Option<&str>,
        known: Option<&Census>,
        daemons: &Resources,
    ) -> Place<'a> {
        let mut place = self.groups[name].template.place(zone);
        match known.and_then(|group| group.serving.first()) {
            Some(member) => place.free.subtract(&self.taken_by_daemons(member)),
            None => place.free.subtract(daemons),
        }
        place
    }

    /// What daemons take on a node of which nothing is known: the most that they take on any.
    fn daemons(&self) -> Resources {
        let mut most = Resources::default();
        self.nodes.values().for_each(|member| most.raise_to(&self.taken_by_daemons(member)));
        most
    }

    fn taken_by_daemons(&self, member: &Member) -> Resources {
        let mut taken = Resources::default();
        let daemons = self.pods.on(&member.node.name).filter(|pod| pod.like.controller != Controller::Workload);
        daemons.for_each(|pod| taken.add(&pod.like.requests));
        taken
    }

    /// Ends drains: terminates what is drained, cancels what failed or is needed again.
    fn finish_drains(&self, agenda: &mut Agenda, census: &[Census], placement: &Placement) -> Vec<Action> {
        let mut actions = Vec::new();
        for group in census {
            for (member, intent, instance) in &group.leaving {
                let node = &member.node;
                if !self.ready(agenda, &Target::Node(node.name.clone())) {
                    continue;
                }
                let progress = node.progress.as_ref().filter(|progress| progress.id == intent.id);
                let cancel = if agenda.due(intent.deadline) || progress.is_some_and(|p| p.phase == Phase::Failed) {
                    Some(Reason::DrainGivenUp)
                } else if let Some(because) = placement.kept.get(node.name.as_str()) {
                    Some(because.clone())
                } else if group.desired <= group.min {
                    Some(Reason::MinimumReached { min: group.min })
                } else {
                    None
                };
                if let Some(because) = cancel {
                    actions.push(Action::CancelDrain {
                        node: node.name.clone(),
                        uid: node.uid.clone(),
                        id: intent.id.clone(),
                        because,
                    });
                    continue;
                }
                // The agent's word, the condition, and what we see ourselves must all agree.
                let drained = node.drained
                    && progress.is_some_and(|progress| progress.phase == Phase::Drained)
                    && !self.pods.on(&node.name).any(|pod| pod.like.holds_node());
                let in_time = agenda.now + DEADLINE_MARGIN < intent.deadline;
                if drained && in_time && self.ready(agenda, &Target::Group(group.name.to_owned())) {
                    actions.push(Action::Terminate {
                        group: group.name.to_owned(),
                        instance: (*instance).to_owned(),
                        node: node.name.clone(),
                        because: Reason::Drained { took: agenda.now.since(intent.requested_at) },
                    });
                }
            }
        }
        actions
    }
}

/// Whether a pod's owner wants to hear this after what was said before. Which node the model has in mind may change
/// with every look.
fn is_news(said: &Reason, because: &Reason) -> bool {
    match (said, because) {
        (Reason::SchedulerToPlace { .. }, Reason::SchedulerToPlace { .. }) => false,
        _ => said != because,
    }
}
