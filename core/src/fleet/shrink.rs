//! Which nodes may go, and why each of the others stays.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use super::buffers::{Kept, Reserve};
use super::census::Census;
use super::place::{Origin, Seat};
use super::pods::Entry;
use super::{Action, Fleet, Member, Target, count};
use crate::agenda::Agenda;
use crate::classify::{Class, GpuUse, Missing};
use crate::disruption::{Allowance, Blocked};
use crate::intent::{Intent, Permits, Trigger};
use crate::policy::{self, Disruption};
use crate::reason::{Reason, Stay};
use crate::schedule::{Cluster, NodeId, ShapeId};
use crate::time::Instant;
use crate::units::Permille;

/// Between two looks for nodes whose pods fit elsewhere, which cost more than the rest together. Cluster Autoscaler's
/// `scan-interval`.
const CONSOLIDATE_EVERY: Duration = Duration::from_secs(10);

/// What came out.
#[derive(Default)]
pub(super) struct Shrinking {
    pub(super) drains: Vec<Action>,
    pub(super) stays: BTreeMap<String, Stay>,
    /// Whether it was looked for nodes whose pods fit elsewhere.
    pub(super) consolidated: bool,
}

/// A node that nobody needs.
struct Candidate<'a> {
    member: &'a Member,
    /// Which of the census' groups.
    group: usize,
    why: Disruption,
    idle: Instant,
    /// `None`: there are pods on it.
    empty: Option<Instant>,
    pods: usize,
    requested: Permille,
}

impl Candidate<'_> {
    fn since(&self) -> Instant {
        self.empty.map_or(self.idle, |empty| empty.max(self.idle))
    }

    fn because(&self, now: Instant) -> Reason {
        let idle = now.since(self.idle);
        let (pods, requested) = (self.pods, self.requested);
        match self.empty {
            Some(empty) => Reason::Unneeded { idle, empty: now.since(empty) },
            None if self.why == Disruption::Completed => Reason::RunToCompletion { idle, pods, requested },
            None => Reason::Consolidated { idle, pods, requested },
        }
    }
}

impl Fleet {
    /// The nodes that are asked to drain now: the least disruption first, then those that have been unneeded for the
    /// longest.
    pub(super) fn shrink<'a>(
        &'a self,
        agenda: &mut Agenda,
        census: &[Census<'a>],
        waiting: &[(&'a Entry, Instant)],
        reserves: &[Reserve<'a>],
    ) -> Shrinking {
        let mut shrinking = Shrinking { stays: self.stays_of_others(agenda, census), ..Shrinking::default() };
        // Neither by what is asked for, nor by what is really there.
        let spare = |group: &Census| {
            let remaining = group.desired.saturating_sub(count(group.leaving.len()));
            remaining.min(count(group.serving.len())).saturating_sub(group.min)
        };
        let mut spare: Vec<_> = census.iter().map(spare).collect();
        let mut candidates = Vec::new();
        let mut early = Vec::new();
        for (index, group) in census.iter().enumerate() {
            for member in &group.serving {
                let stay = match self.candidate(agenda.now, index, group.policy, member) {
                    Err(stay) => {
                        if let Stay::GivenUp { until } = stay {
                            agenda.due(until);
                        }
                        stay
                    }
                    Ok(_) if spare[index] == 0 => Stay::Minimum { min: group.min },
                    Ok(candidate) => {
                        let until = candidate.since() + group.policy.unneeded_for;
                        if agenda.due(until) {
                            candidates.push(candidate);
                            continue;
                        }
                        early.extend(candidate.empty.is_some().then_some((member, until)));
                        Stay::Unneeded { until }
                    }
                };
                shrinking.stays.insert(member.node.name.clone(), stay);
            }
        }
        candidates.sort_by_key(|it| (it.pods, it.since(), &it.member.node.name));

        let most = self.policy.scale_down.max_parallel_drains;
        let draining = self.draining(agenda);
        let turns = |evict: bool| {
            let as_well = |member: &&&Member| member.intent(agenda.now).is_none_or(|intent| intent.evict == evict);
            most.saturating_sub(count(draining.iter().filter(as_well).count()))
        };
        // A node that waits for its pods to end does so for hours: it must not keep others from draining.
        let (mut to_drain, mut to_run_out) = (turns(true), turns(false));
        let mut budgets = self.budgets(agenda, census, &draining);
        let may_consolidate = self.consolidated_at.is_none_or(|at| agenda.due(at + CONSOLIDATE_EVERY));
        let none = candidates.is_empty() || (to_drain == 0 && to_run_out == 0);
        let wanted_by = if none { Vec::new() } else { distinct(waiting) };
        let mut elsewhere = None;
        let mut allowance = None;
        let mut kept = Kept::default();
        if !(reserves.is_empty() || (candidates.is_empty() && early.is_empty())) {
            kept = self.kept(agenda.now, census, waiting, reserves);
        }
        for candidate in &candidates {
            let name = &candidate.member.node.name;
            let place = self.place_on(candidate.member);
            let to_move = self.pods.on(name).filter(|pod| pod.like.holds_node()).map(|pod| &*pod.like);
            let is_looked_at = candidate.empty.is_some() || may_consolidate;
            let turns = if candidate.why == Disruption::Completed { &mut to_run_out } else { &mut to_drain };
            let forbidden = budgets.forbid(census[candidate.group].name, candidate.why);
            let stay = if spare[candidate.group] == 0 {
                Some(Stay::Minimum { min: census[candidate.group].min })
            } else if is_looked_at && let Err(stay) = kept.release(name, &to_move.collect::<Vec<_>>()) {
                Some(stay)
            } else if let Some((_, stay)) = forbidden.filter(|(least, _)| *turns > 0 || *least < most) {
                Some(stay)
            } else if *turns == 0 {
                Some(Stay::Turn { most })
            } else if let Some(pod) = wanted_by.iter().find(|pod| place.admits(&pod.like).is_ok()) {
                Some(Stay::Wanted { pod: pod.full_name() })
            } else if !self.ready(agenda, &Target::Node(name.clone())) {
                Some(Stay::Retried)
            } else if candidate.empty.is_some() {
                None
            } else if may_consolidate {
                shrinking.consolidated = true;
                let evicts = candidate.why != Disruption::Completed;
                let allowance = allowance.get_or_insert_with(|| self.allowance(agenda.now));
                let blocked = if evicts { self.blocked(allowance, name) } else { None };
                blocked.or_else(|| {
                    let elsewhere = elsewhere.get_or_insert_with(|| self.elsewhere(agenda.now, &candidates, waiting));
                    let no_room = elsewhere.empty(name).err().map(|pod| Stay::NoRoomElsewhere { pod });
                    if evicts && no_room.is_none() {
                        allowance.spend(self.evicted_from(name).map(|pod| &*pod.like));
                    }
                    no_room
                })
            } else {
                // As it was found last time, or not looked at yet.
                let until = agenda.now;
                Some(self.stays.get(name).cloned().unwrap_or(Stay::Unneeded { until }))
            };
            match stay {
                Some(stay) => {
                    if !matches!(
                        stay,
                        Stay::Anticipated { .. } | Stay::Budget { .. } | Stay::Buffered { .. } | Stay::Turn { .. }
                    ) {
                        kept.reopen(name);
                    }
                    shrinking.stays.insert(name.clone(), stay);
                }
                None => {
                    *turns -= 1;
                    budgets.spend(census[candidate.group].name, candidate.why);
                    spare[candidate.group] -= 1;
                    let (deadline, stay) = self.drained_as(agenda.now, candidate);
                    shrinking.stays.insert(name.clone(), stay);
                    shrinking.drains.push(drain(agenda.now, deadline, candidate));
                }
            }
        }
        // Those that are not due yet: nothing is done about them, but what is said of them should be right.
        early.sort_by_key(|(member, until)| (*until, &member.node.name));
        for (member, _) in early {
            if let Err(stay) = kept.release(&member.node.name, &[]) {
                shrinking.stays.insert(member.node.name.clone(), stay);
            }
        }
        shrinking
    }

    /// What PodDisruptionBudgets leave besides the pods of nodes that drain, which may not have been evicted yet.
    fn allowance(&self, now: Instant) -> Allowance<'_> {
        let mut allowance = Allowance::new(&self.pod_disruption_budgets);
        let drains = |member: &&Member| member.intent(now).is_some_and(|intent| intent.evict);
        for member in self.nodes.values().filter(drains) {
            allowance.spend(self.evicted_from(&member.node.name).map(|pod| &*pod.like));
        }
        allowance
    }

    fn evicted_from(&self, node: &str) -> impl Iterator<Item = &Entry> + Clone {
        self.pods.on(node).filter(|pod| pod.like.holds_node() && !pod.like.terminating)
    }

    /// What lets the node's pods not be evicted now.
    fn blocked(&self, allowance: &Allowance, node: &str) -> Option<Stay> {
        let (index, blocked) = allowance.covers(self.evicted_from(node).map(|pod| &*pod.like)).err()?;
        let pod = self.evicted_from(node).nth(index)?.full_name();
        Some(match blocked {
            Blocked::Spent(budget) => Stay::Blocked {
                pod,
                budget: budget.name.clone(),
                allowed: budget.allowed,
                healthy: budget.healthy,
                desired: budget.desired,
            },
            Blocked::Several(budgets) => {
                Stay::BlockedTwice { pod, budgets: budgets.into_iter().map(|budget| budget.name.clone()).collect() }
            }
        })
    }

    /// The nodes that drain. One counts from when it is asked until it is gone; but one whose object nobody deletes must
    /// not stop all others for ever.
    fn draining(&self, agenda: &mut Agenda) -> Vec<&Member> {
        let draining = self.nodes.values().filter(|member| match member.intent(agenda.now) {
            // What others drain takes no turn of ours: it may stay so for as long as they like.
            Some(intent) => intent.by == Trigger::Coordinator && !agenda.due(intent.deadline),
            None => !self.ready(agenda, &Target::Node(member.node.name.clone())),
        });
        draining.collect()
    }

    /// Why nodes stay that are no candidates by what they are.
    fn stays_of_others(&self, agenda: &Agenda, census: &[Census]) -> BTreeMap<String, Stay> {
        let undescribed = self.groups.values().any(|group| group.asked_at.is_none());
        let stay = |member: &Member| match member.intent(agenda.now) {
            Some(&Intent { evict, deadline, .. }) => {
                match self.pods.on(&member.node.name).filter(|pod| pod.like.holds_node()).count() {
                    pods if pods > 0 && !evict => Stay::RunningOut { pods, deadline },
                    _ => Stay::Draining { deadline },
                }
            }
            None if undescribed || self.is_newcomer(member) => Stay::Undescribed,
            None => Stay::NotOurs,
        };
        let mut stays: BTreeMap<_, _> =
            self.nodes.values().map(|member| (member.node.name.clone(), stay(member))).collect();
        for group in census {
            stays.extend(group.starting.iter().map(|member| (member.node.name.clone(), Stay::Starting)));
            stays.extend(group.cordoned.iter().map(|member| {
                let stay = match member.intent(agenda.now) {
                    Some(intent) => Stay::DrainedFor { by: intent.by, why: intent.reason.clone() },
                    None => Stay::Cordoned,
                };
                (member.node.name.clone(), stay)
            }));
        }
        stays
    }

    /// Whether nobody needs the node, or what speaks against that.
    fn candidate<'a>(
        &'a self,
        now: Instant,
        group: usize,
        policy: &policy::Group,
        member: &'a Member,
    ) -> Result<Candidate<'a>, Stay> {
        let scale_down = &self.policy.scale_down;
        let node = &member.node;
        if let Some(annotation) = &node.protected_by {
            return Err(Stay::Protected { annotation: annotation.clone() });
        }
        if let Some(until) = member.spared_until.filter(|until| now < *until) {
            return Err(Stay::GivenUp { until });
        }
        let pods: Vec<_> = self.pods.on(&node.name).filter(|pod| pod.like.holds_node()).collect();
        let completes = policy.run_to_completion && pods.iter().all(|pod| pod.like.completes);
        let why = match member.empty_since {
            Some(_) => Disruption::Empty,
            None if completes => Disruption::Completed,
            None => Disruption::Consolidated,
        };
        if let Some(first) = pods.first().filter(|_| why == Disruption::Consolidated && !scale_down.consolidate) {
            return Err(Stay::Occupied { pods: pods.len(), first: first.full_name() });
        }
        let heard = member.heard(now, scale_down.report_timeout).ok_or(Stay::Silent)?;
        // A node that has GPUs and an agent that sees none: nothing is known of their use.
        if node.allocatable.has_gpu() && heard.report.utilization.gpu == GpuUse::Absent {
            return Err(Stay::GpuUnseen);
        }
        let idle = match heard.report.class {
            Class::Busy { signal, .. } => return Err(Stay::Busy { signal }),
            // Where pods keep coming, each lets idleness begin anew.
            Class::Idle { .. } | Class::Unknown { missing: Missing::Initialization, .. }
                if let Some(quiet) = member.quiet_since
                    && why == Disruption::Completed =>
            {
                quiet
            }
            Class::Idle { since } => heard.by_our_clock(since),
            Class::Unknown { missing, .. } => return Err(Stay::Unknown { missing }),
        };
        let requested = self.requested(member, &pods);
        let below = self.policy.idle.cpu.idle_below;
        if requested >= below && !pods.is_empty() {
            return Err(Stay::Requested { share: requested, below });
        }
        let pinned = pods.iter().find_map(|pod| Some((pod, pod.like.pin?)));
        if let Some((pod, pin)) = pinned.filter(|_| why == Disruption::Consolidated) {
            return Err(Stay::PodPinned { pod: pod.full_name(), pin });
        }
        Ok(Candidate { member, group, why, idle, empty: member.empty_since, pods: pods.len(), requested })
    }

    /// When the drain is given up, and what it is called.
    fn drained_as(&self, now: Instant, candidate: &Candidate) -> (Instant, Stay) {
        let scale_down = &self.policy.scale_down;
        match candidate.why {
            Disruption::Completed => {
                let deadline = now + scale_down.run_to_completion_timeout;
                (deadline, Stay::RunningOut { pods: candidate.pods, deadline })
            }
            Disruption::Consolidated | Disruption::Empty => {
                let deadline = now + scale_down.drain_timeout;
                (deadline, Stay::Draining { deadline })
            }
        }
    }

    /// The larger share of CPU or memory (of GPUs, where there are some) that the pods ask for, of what the node offers.
    fn requested(&self, member: &Member, pods: &[&Entry]) -> Permille {
        let whole = &member.node.allocatable;
        let share = |name: &str| {
            let asked: u64 = pods.iter().map(|pod| pod.like.requests.amount(name)).sum();
            (asked * 1000).checked_div(whole.amount(name)).unwrap_or(0)
        };
        let most = ["cpu", "memory", crate::resources::NVIDIA_GPU].map(share).into_iter().max().unwrap_or(0);
        u16::try_from(most).ok().and_then(Permille::new).unwrap_or(Permille::percent(100))
    }

    /// The nodes that take pods, with what is on them and what waits for them. Those that stay in any case come first,
    /// then the candidates, the last first: so that pods go to where they are the least likely to have to go from again.
    fn elsewhere<'a>(
        &'a self,
        now: Instant,
        candidates: &[Candidate<'a>],
        waiting: &[(&'a Entry, Instant)],
    ) -> Elsewhere<'a> {
        let mut elsewhere = Elsewhere::default();
        let name = |member: &Member| member.node.name.clone();
        let going: BTreeSet<_> = candidates.iter().map(|candidate| name(candidate.member)).collect();
        let staying = self.nodes.values().filter(|member| !going.contains(&member.node.name));
        for member in staying.chain(candidates.iter().rev().map(|candidate| candidate.member)) {
            let node = &member.node;
            let open = node.ready && !node.unschedulable && member.intent(now).is_none();
            elsewhere.add(self.seat(member, Origin::Closed), &node.name, open);
        }
        // Such pods as theirs come again, to other nodes.
        for member in self.nodes.values().filter(|member| member.runs_out(now)) {
            let _ = elsewhere.empty(&member.node.name);
        }
        for (pod, _) in waiting {
            let shape = elsewhere.cluster.shape(&pod.like);
            if let Some(node) = elsewhere.find(shape) {
                elsewhere.cluster.put(node, shape);
            }
        }
        elsewhere
    }
}

/// Where pods of nodes that go could go.
#[derive(Default)]
struct Elsewhere<'a> {
    cluster: Cluster<'a>,
    ids: BTreeMap<&'a str, NodeId>,
    /// Which nodes take pods.
    open: Vec<bool>,
    /// Pods on each node that hold it, those that were moved there included.
    tenants: Vec<Vec<(ShapeId, &'a Entry)>>,
    /// Nodes before this have no room for pods of this shape, as long as room only shrinks.
    start: HashMap<ShapeId, NodeId>,
}

impl<'a> Elsewhere<'a> {
    fn add(&mut self, seat: Seat<'a>, name: &'a str, open: bool) {
        let id = self.cluster.add(seat.place);
        let mut tenants = Vec::new();
        for pod in seat.pods {
            let shape = self.cluster.shape(&pod.like);
            self.cluster.put(id, shape);
            if pod.like.holds_node() {
                tenants.push((shape, pod));
            }
        }
        self.ids.insert(name, id);
        self.open.push(open);
        self.tenants.push(tenants);
    }

    fn find(&mut self, shape: ShapeId) -> Option<NodeId> {
        let start = self.start.get(&shape).copied().unwrap_or(0);
        let takes = |&node: &NodeId| self.open[node] && self.cluster.admits(node, shape).is_ok();
        let found = (start..self.cluster.nodes()).find(takes);
        if self.cluster.only_shrinks_for(shape) {
            self.start.insert(shape, found.unwrap_or(self.cluster.nodes()));
        }
        found
    }

    /// Moves the pods away from the node and closes it, or says which of them fits nowhere, and changes nothing.
    fn empty(&mut self, node: &str) -> Result<(), String> {
        let Some(&from) = self.ids.get(node) else { return Ok(()) };
        let open = std::mem::take(&mut self.open[from]);
        let tenants = std::mem::take(&mut self.tenants[from]);
        let mut moved = Vec::new();
        for &(shape, pod) in &tenants {
            self.cluster.take(from, shape);
            let Some(to) = self.find(shape) else {
                self.cluster.put(from, shape);
                for (to, shape) in moved {
                    self.cluster.take(to, shape);
                    self.tenants[to].pop();
                    self.cluster.put(from, shape);
                }
                // Room has grown again.
                self.start.clear();
                self.open[from] = open;
                self.tenants[from] = tenants;
                return Err(pod.full_name());
            };
            self.cluster.put(to, shape);
            self.tenants[to].push((shape, pod));
            moved.push((to, shape));
        }
        Ok(())
    }
}

fn drain(now: Instant, deadline: Instant, candidate: &Candidate) -> Action {
    let because = candidate.because(now);
    let node = &candidate.member.node;
    Action::Drain {
        node: node.name.clone(),
        uid: node.uid.clone(),
        intent: Intent {
            id: format!("scale-down-{}", now.as_millis()),
            reason: because.to_string(),
            requested_at: now,
            deadline,
            evict: candidate.why != Disruption::Completed,
            by: Trigger::Coordinator,
            awaits_turn: false,
            permits: Permits::default(),
        },
        because,
    }
}

/// One of each kind that filters cannot tell apart.
fn distinct<'a>(pods: &[(&'a Entry, Instant)]) -> Vec<&'a Entry> {
    let mut shapes = Cluster::default();
    let mut distinct = Vec::new();
    for (pod, _) in pods {
        // They are numbered as they come.
        if shapes.shape(&pod.like) == distinct.len() {
            distinct.push(*pod);
        }
    }
    distinct
}
