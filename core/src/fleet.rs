//! Everything the coordinator knows, and the rules on it. One way in ([`Fleet::handle`]), a list of actions out.
//!
//! Here: what is kept of the world. An `event` is taken in by `absorb`; `decide` looks at the whole and says which `action`s
//! to take: `place` finds room for waiting pods, with `choice` of the group where a new node is needed, and for those that
//! `buffers` and `ray` expect; `drive` sets how many Ray workers there are, where it may; `shrink` says which nodes may go, within what `budget` lets. `picture` is what people see.

mod absorb;
mod action;
mod agents;
mod budget;
mod buffers;
mod census;
mod choice;
mod decide;
mod drive;
mod event;
mod lifecycle;
mod memory;
mod picture;
mod place;
mod pods;
mod ray;
mod ray_tell;
mod shrink;
mod template;
#[cfg(test)]
mod tests;
mod turns;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use absorb::Soon;
use action::Target;
pub use action::{Action, RayGroup, steps};
pub use event::{Event, Failure, GroupState, Instance};
pub use memory::Memory;
use pods::Pods;
use template::Template;

use crate::disruption::PodDisruptionBudgets;
use crate::intent::Intent;
use crate::kubernetes::{AgentPod, Node};
use crate::launch::{self, Failing};
use crate::policy::Policy;
use crate::ray::{Scale, ScaleStatus};
use crate::reason::{Reason, Stay};
use crate::report::Report;
use crate::resources::Resources;
use crate::storage::Storage;
use crate::time::Instant;

/// The coordinator's picture of the world, and its rules. Written down it is all but its policy, which stands beside it
/// (`journal`).
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Fleet {
    #[serde(skip)]
    policy: Policy,
    leading: bool,
    synced: bool,
    /// One for each group of the policy.
    groups: BTreeMap<String, Group>,
    nodes: BTreeMap<String, Member>,
    pods: Pods,
    #[serde(default)]
    pod_disruption_budgets: PodDisruptionBudgets,
    #[serde(default, with = "crate::journal::pairs")]
    buffers: BTreeMap<buffers::Key, buffers::Known>,
    /// By namespace and name; those of the policy that were heard of.
    #[serde(default)]
    ray: BTreeMap<String, ray::Known>,
    /// With what was last said on each.
    #[serde(default, with = "crate::journal::pairs")]
    ray_scales: BTreeMap<drive::ScaleKey, (Scale, Option<ScaleStatus>)>,
    /// What was last written on workers of Ray, by UID.
    #[serde(default)]
    deletion_costs: BTreeMap<String, Option<i32>>,
    /// Agents' pods, by UID.
    #[serde(default)]
    agents: BTreeMap<String, AgentPod>,
    storage: Storage,
    /// The node of each instance.
    node_of: HashMap<String, String>,
    #[serde(with = "crate::journal::pairs")]
    calls: BTreeMap<Target, Call>,
    /// What was last said about each waiting pod, by UID.
    explained: BTreeMap<String, Reason>,
    /// Groups that were not counted on at the last decision.
    failing: BTreeMap<String, Failing>,
    /// Why each node was still there at the last decision.
    stays: BTreeMap<String, Stay>,
    /// The last leader's, until the picture is complete.
    memory: Option<Memory>,
    /// When it was last looked for nodes whose pods fit elsewhere.
    consolidated_at: Option<Instant>,
    /// Pods that have begun to wait, and of which no more may come.
    #[serde(default)]
    burst: Option<Burst>,
    decide_at: Option<Instant>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Burst {
    since: Instant,
    /// Until then it may go on, and is not planned for.
    until: Instant,
}

#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Call {
    /// In a row.
    failures: u32,
    /// `None`: in flight.
    retry_at: Option<Instant>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Group {
    /// Follows from the policy and what is below.
    #[serde(skip)]
    template: Template,
    /// What the last of its nodes that was seen ready offers.
    shown: Option<Resources>,
    failures: launch::Memory,
    /// What is remembered of launches in one zone.
    failures_in: BTreeMap<String, launch::Memory>,
    /// Until when instances are not launched one by one, because the API has refused that.
    launches_refused_until: Option<Instant>,
    /// A call that may have had an effect which no description has shown yet.
    unanswered: Option<Action>,
    /// Since when it has fewer instances than desired, with none that came meanwhile.
    short_since: Option<Instant>,
    /// `None`: not yet described, or unknown to the API.
    observed: Option<GroupState>,
    /// When the last description that we have was asked for; `None`: it must be asked for again before anything is
    /// done about the group.
    asked_at: Option<Instant>,
    /// Our own last change, which a description asked for earlier does not show.
    decided: Option<Decided>,
    /// When each instance was first described to us; those that are still described, and no others.
    first_seen: BTreeMap<String, Instant>,
    /// Instances that a lifecycle hook of ours holds.
    #[serde(default)]
    held: BTreeMap<String, lifecycle::Held>,
    /// Instances whose termination was accepted and that are still described.
    terminated: BTreeSet<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Decided {
    desired: u32,
    at: Instant,
}

impl Group {
    fn new(policy: &crate::policy::Group) -> Self {
        Self {
            template: Template::configured(policy),
            shown: None,
            failures: launch::Memory::default(),
            failures_in: BTreeMap::new(),
            launches_refused_until: None,
            unanswered: None,
            short_since: None,
            observed: None,
            asked_at: None,
            decided: None,
            first_seen: BTreeMap::new(),
            held: BTreeMap::new(),
            terminated: BTreeSet::new(),
        }
    }

    fn learn_template(&mut self, policy: &crate::policy::Group) {
        self.template = match &self.observed {
            Some(state) => Template::described(policy, state, self.shown.as_ref()),
            None => Template::configured(policy),
        };
    }

    fn desired(&self) -> Option<u32> {
        let observed = self.observed.as_ref()?;
        let newer = self.decided.as_ref().filter(|decided| self.asked_at.is_none_or(|asked| asked <= decided.at));
        Some(newer.map_or(observed.desired, |decided| decided.desired))
    }

    fn live(&self) -> impl Iterator<Item = &Instance> {
        let instances = self.observed.iter().flat_map(|observed| &observed.instances);
        instances.filter(|instance| instance.live && !self.terminated.contains(&instance.id))
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Member {
    /// As the watch last showed it.
    node: Node,
    first_seen: Instant,
    /// What a write of ours left there that the watch may not show yet.
    written: Option<Written>,
    heard: Option<Heard>,
    /// Since when no pod has held the node, as far as we have watched.
    empty_since: Option<Instant>,
    /// Since when its agent has called it idle, or idle but for pods that have just come.
    #[serde(default)]
    quiet_since: Option<Instant>,
    /// Until when it is not drained again, because its last drain was given up.
    spared_until: Option<Instant>,
}

/// The intent, or its absence, that a write of ours left on a Node.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Written {
    intent: Option<Intent>,
    /// From then on the watch is believed again, whatever it shows.
    until: Instant,
}

impl Member {
    fn intent(&self, now: Instant) -> Option<&Intent> {
        let written = self.written.as_ref().filter(|written| now < written.until);
        written.map_or(&self.node.intent, |written| &written.intent).as_ref()
    }

    /// Whether it is to go when its pods have ended by themselves.
    fn runs_out(&self, now: Instant) -> bool {
        self.intent(now).is_some_and(|intent| !intent.evict)
    }

    /// The last report, unless it is too old to say anything.
    fn heard(&self, now: Instant, timeout: Duration) -> Option<&Heard> {
        self.heard.as_ref().filter(|heard| now.since(heard.at) < timeout)
    }
}

/// A report, and when it came by our clock.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Heard {
    report: Report,
    at: Instant,
}

impl Heard {
    /// A time of the agent's by our clock: the two may differ, so only the agent's difference is taken.
    fn by_our_clock(&self, since: Instant) -> Instant {
        self.at.before(self.report.sampled_at.since(since))
    }
}

impl Fleet {
    pub fn new(policy: Policy) -> Self {
        let groups = policy.groups.iter().map(|(name, policy)| (name.clone(), Group::new(policy))).collect();
        Self {
            policy,
            leading: false,
            synced: false,
            groups,
            nodes: BTreeMap::new(),
            pods: Pods::default(),
            pod_disruption_budgets: PodDisruptionBudgets::default(),
            buffers: BTreeMap::new(),
            ray: BTreeMap::new(),
            ray_scales: BTreeMap::new(),
            deletion_costs: BTreeMap::new(),
            agents: BTreeMap::new(),
            storage: Storage::default(),
            node_of: HashMap::new(),
            calls: BTreeMap::new(),
            explained: BTreeMap::new(),
            failing: BTreeMap::new(),
            stays: BTreeMap::new(),
            memory: None,
            consolidated_at: None,
            burst: None,
            decide_at: None,
        }
    }

    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// The same world under another policy.
    pub fn with_policy(mut self, policy: Policy) -> Self {
        let mut groups = std::mem::take(&mut self.groups);
        for (name, policy) in &policy.groups {
            let mut group = groups.remove(name).unwrap_or_else(|| Group::new(policy));
            group.learn_template(policy);
            self.groups.insert(name.clone(), group);
        }
        self.policy = policy;
        let clusters: Vec<_> = self.ray.keys().cloned().collect();
        clusters.iter().for_each(|name| self.learn_worker_groups(name));
        self
    }

    /// The only way in. Same state, same `now`, same event: same actions.
    pub fn handle(&mut self, now: Instant, event: Event) -> Vec<Action> {
        let actions = self.look(now, event, false).unwrap_or_default();
        self.begin(&actions);
        actions
    }

    /// As [`Self::handle`], on a course that a record shows: these actions are under way, whatever is decided. `again`:
    /// something was decided and not done, so it is to be decided again. `None`: it was not the time to decide.
    pub fn follow(&mut self, now: Instant, event: Event, taken: &[Action], again: bool) -> Option<Vec<Action>> {
        let actions = self.look(now, event, again);
        self.begin(taken);
        actions
    }

    fn look(&mut self, now: Instant, event: Event, again: bool) -> Option<Vec<Action>> {
        let soon = self.absorb(now, event);
        if let Some(soon) = soon.or(again.then_some(Soon::Now)) {
            let scale_up = &self.policy.scale_up;
            let batch = now + scale_up.batch_window;
            let at = match soon {
                Soon::Now => now,
                Soon::Batch => batch,
                Soon::Burst => {
                    let since = self.burst.map_or(now, |burst| burst.since);
                    let until = batch.min(since + scale_up.batch_longest);
                    self.burst = Some(Burst { since, until });
                    until
                }
            };
            self.decide_at = Some(self.decide_at.map_or(at, |decide_at| decide_at.min(at)));
        }
        if !(self.leading && self.synced) || self.decide_at.is_none_or(|at| now < at) {
            return None;
        }
        let decide::Decision { actions, next, failing, stays, consolidated } = self.decide(now);
        (self.decide_at, self.failing, self.stays) = (next, failing, stays);
        self.burst.take_if(|burst| burst.until <= now);
        if consolidated {
            self.consolidated_at = Some(now);
        }
        Some(actions)
    }

    fn begin(&mut self, actions: &[Action]) {
        for action in actions {
            for target in action.targets() {
                self.calls.entry(target).or_default().retry_at = None;
            }
            if let Action::Explain { uid, because, .. } = action {
                self.explained.insert(uid.clone(), because.clone());
            }
        }
    }

    /// When to send the next [`Event::Tick`]; `None` while nothing is pending. Changes after every `handle`.
    pub fn next_wakeup(&self) -> Option<Instant> {
        self.decide_at.filter(|_| self.leading && self.synced)
    }
}

/// Nobody has more than that.
fn count(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
