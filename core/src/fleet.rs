//! Everything the coordinator knows, and the rules on it. One way in ([`Fleet::handle`]), a list of actions out.
//!
//! Here: the words, and what is kept of the world. `decide` looks at that and says what to do; `place` finds room for
//! waiting pods, with `choice` of the group where a new node is needed; `shrink` says which nodes may go.

mod choice;
mod decide;
mod memory;
mod place;
mod pods;
mod shrink;
mod template;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::intent::Intent;
use crate::kubernetes::{Controller, Node, Pod};
use crate::launch::{self, Failing, LaunchFailure};
use crate::policy::Policy;
use crate::reason::{Reason, Stay};
use crate::report::Report;
use crate::resources::Resources;
use crate::storage::{self, Storage};
use crate::time::Instant;
use crate::view;
pub use memory::Memory;
use pods::Pods;
use template::Template;

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Event {
    /// An action was carried out. (An [`Action::Describe`] is answered by `Groups`, an [`Action::Launch`] by `Launched`.)
    Done(Action),
    /// An action failed; nothing is known of its effect but what a later observation shows.
    Failed {
        action: Action,
        failure: Failure,
    },
    /// The reply to an [`Action::Describe`]: every group asked for that exists. One that is missing does not.
    Groups {
        asked: Action,
        groups: Vec<GroupState>,
    },
    /// The reply to an [`Action::Launch`]: what came of it, which may be less than was asked for.
    Launched {
        asked: Action,
        instances: Vec<String>,
        /// In AWS' words.
        failures: Vec<String>,
    },
    /// Whether this coordinator leads. Only a leader acts.
    Leading(bool),
    /// What the last leader knew.
    Remembered(Memory),
    NodeApplied(Node),
    NodeDeleted {
        name: String,
        uid: String,
    },
    PodApplied(Pod),
    PodDeleted {
        uid: String,
    },
    /// A claim, a volume or a storage class.
    Storage(storage::Change),
    Report(Report),
    /// Whether the watches on nodes and pods are complete and live. Nothing is decided on a stale picture. After a
    /// gap, the events that make up for it come before `Synced(true)`.
    Synced(bool),
    /// The time that [`Fleet::next_wakeup`] named has come.
    Tick,
}

/// An Auto Scaling group as the API describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GroupState {
    pub name: String,
    pub min: u32,
    pub max: u32,
    pub desired: u32,
    pub instances: Vec<Instance>,
    /// Availability zones that it launches in.
    #[serde(default)]
    pub zones: Vec<String>,
    /// Of a mixed instances policy; empty: it has none.
    #[serde(default)]
    pub instance_types: Vec<String>,
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
    /// Its last scaling activities that failed, as far as they were asked for: while it has fewer instances than desired.
    #[serde(default)]
    pub failures: Vec<LaunchFailure>,
}

impl GroupState {
    /// The least and the most nodes, by the configuration and by the group's own bounds.
    fn bounds(&self, policy: &crate::policy::Group) -> (u32, u32) {
        let max = policy.max.min(self.max);
        (policy.min.max(self.min).min(max), max)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Instance {
    pub id: String,
    /// Whether its lifecycle state is one on the way to or in service (`Pending*`, `InService`).
    pub live: bool,
    /// Its availability zone.
    #[serde(default)]
    pub zone: Option<String>,
}

/// Why a call failed: a closed set, for the rules and for metrics' labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Failure {
    /// The object has changed or another activity is in progress; look again.
    Conflict,
    /// Credentials or rights are missing.
    Denied,
    /// The group, instance or node is not there.
    NotFound,
    /// The request was refused as wrong.
    Rejected,
    Throttled,
    /// No reply, a timeout, or a server error.
    Unavailable,
}

impl Failure {
    /// A closed set of words, for logs and metrics' labels.
    pub fn name(self) -> &'static str {
        match self {
            Self::Conflict => "conflict",
            Self::Denied => "denied",
            Self::NotFound => "not_found",
            Self::Rejected => "rejected",
            Self::Throttled => "throttled",
            Self::Unavailable => "unavailable",
        }
    }

    /// How long to wait after so many failures in a row: doubling from a second to a minute where trying again may
    /// help, a minute where somebody must act first.
    fn backoff(self, failures: u32) -> Duration {
        const LONGEST: Duration = Duration::from_secs(60);
        match self {
            Self::Conflict | Self::Throttled | Self::Unavailable => {
                Duration::from_secs(1 << (failures - 1).min(6)).min(LONGEST)
            }
            Self::Denied | Self::NotFound | Self::Rejected => LONGEST,
        }
    }
}

/// What to do. Says everything: the effect side has nothing left to choose.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Action {
    /// Remove this drain's intent from the Node, if it is still this one and the Node still this UID.
    CancelDrain {
        node: String,
        uid: String,
        id: String,
        because: Reason,
    },
    /// Ask the Auto Scaling API for the state of these groups.
    Describe {
        groups: Vec<String>,
        at: Instant,
    },
    /// Write this intent on the Node, if it has this UID and no other intent.
    Drain {
        node: String,
        uid: String,
        intent: Intent,
        because: Reason,
    },
    /// Tell people, as an Event on the pod.
    Explain {
        namespace: String,
        pod: String,
        uid: String,
        because: Reason,
    },
    /// Launch the instances from one desired capacity to the other in this zone, if that still is what it was, and say
    /// what came of it.
    Launch {
        group: String,
        zone: String,
        from: u32,
        to: u32,
        /// Asked twice under the same token, it is done once.
        token: String,
        because: Reason,
    },
    SetDesired {
        group: String,
        from: u32,
        to: u32,
        because: Reason,
    },
    /// Terminate exactly this instance and lower the group's desired capacity by one.
    Terminate {
        group: String,
        instance: String,
        node: String,
        because: Reason,
    },
}

impl Action {
    /// A closed set of words, for logs and metrics' labels.
    pub fn name(&self) -> &'static str {
        match self {
            Self::CancelDrain { .. } => "cancel_drain",
            Self::Describe { .. } => "describe",
            Self::Drain { .. } => "drain",
            Self::Explain { .. } => "explain",
            Self::Launch { .. } => "launch",
            Self::SetDesired { .. } => "set_desired",
            Self::Terminate { .. } => "terminate",
        }
    }

    /// `None` for what changes nothing and so is no decision.
    pub fn because(&self) -> Option<&Reason> {
        match self {
            Self::CancelDrain { because, .. }
            | Self::Drain { because, .. }
            | Self::Explain { because, .. }
            | Self::Launch { because, .. }
            | Self::SetDesired { because, .. }
            | Self::Terminate { because, .. } => Some(because),
            Self::Describe { .. } => None,
        }
    }

    /// In words, for people. The reason is said apart.
    pub fn describe(&self) -> String {
        match self {
            Self::CancelDrain { node, .. } => format!("calls off the drain of {node}"),
            Self::Describe { groups, .. } => format!("looks at {}", groups.join(", ")),
            Self::Drain { node, .. } => format!("asks {node} to drain"),
            Self::Explain { namespace, pod, .. } => format!("leaves pod {namespace}/{pod} waiting"),
            Self::Launch { group, zone, from, to, .. } => {
                format!("launches {} of {group} in {zone}, from {from} to {to} instances", to - from)
            }
            Self::SetDesired { group, from, to, .. } => format!("raises {group} from {from} to {to} instances"),
            Self::Terminate { group, node, .. } => format!("terminates {node} of {group}"),
        }
    }

    /// Whether a launch may have had its effect and this description not show it.
    fn may_be_unseen_in(&self, state: Option<&GroupState>) -> bool {
        matches!(self, Self::Launch { from, .. } if state.is_some_and(|state| state.desired == *from))
    }

    /// What only one call at a time may touch. A node whose instance is being terminated must not be opened to pods
    /// meanwhile.
    fn targets(&self) -> Vec<Target> {
        match self {
            Self::CancelDrain { node, .. } | Self::Drain { node, .. } => vec![Target::Node(node.clone())],
            Self::Describe { .. } => vec![Target::Describe],
            Self::Explain { .. } => Vec::new(),
            Self::Launch { group, .. } | Self::SetDesired { group, .. } => vec![Target::Group(group.clone())],
            Self::Terminate { group, node, .. } => vec![Target::Group(group.clone()), Target::Node(node.clone())],
        }
    }
}

/// What was decided, for people. What many pods are told alike is one step, so that a burst is read in a line.
pub fn steps(at: Instant, actions: &[Action]) -> Vec<view::Step> {
    let step = |what, because| view::Step { at, level: view::Level::NodeAutoscaler, what, because };
    let mut told: BTreeMap<String, (&Action, u32)> = BTreeMap::new();
    let mut steps = Vec::new();
    for action in actions {
        let Some(because) = action.because() else { continue };
        if let Action::Explain { .. } = action {
            told.entry(because.to_string()).or_insert((action, 0)).1 += 1;
        } else {
            steps.push(step(action.describe(), because.to_string()));
        }
    }
    steps.extend(told.into_iter().map(|(because, (action, count))| {
        let what = if count == 1 { action.describe() } else { format!("leaves {count} pods waiting") };
        step(what, because)
    }));
    steps
}

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
    decide_at: Option<Instant>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Target {
    Describe,
    Group(String),
    Node(String),
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
    /// Until when it is not drained again, because its last drain was given up.
    spared_until: Option<Instant>,
}

/// How long a node whose drain was given up is left in peace: Cluster Autoscaler's `unremovable-node-recheck-timeout`.
const SPARED: Duration = Duration::from_secs(5 * 60);

/// The intent, or its absence, that a write of ours left on a Node.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Written {
    intent: Option<Intent>,
    /// From then on the watch is believed again, whatever it shows.
    until: Instant,
}

/// How long instances are not launched one by one in a group where the API has refused it: it has no launch template, or
/// rights are missing, and somebody may mend that.
const LAUNCHES_REFUSED: Duration = Duration::from_secs(60 * 60);

/// How long a watch may lag behind our own writes. Seconds are rare even on a loaded API server.
const WATCH_LAG: Duration = Duration::from_secs(10);

impl Member {
    fn intent(&self, now: Instant) -> Option<&Intent> {
        let written = self.written.as_ref().filter(|written| now < written.until);
        written.map_or(&self.node.intent, |written| &written.intent).as_ref()
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
            storage: Storage::default(),
            node_of: HashMap::new(),
            calls: BTreeMap::new(),
            explained: BTreeMap::new(),
            failing: BTreeMap::new(),
            stays: BTreeMap::new(),
            memory: None,
            consolidated_at: None,
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
            let at = now + if soon == Soon::Now { Duration::ZERO } else { self.policy.scale_up.batch_window };
            self.decide_at = Some(self.decide_at.map_or(at, |decide_at| decide_at.min(at)));
        }
        if !(self.leading && self.synced) || self.decide_at.is_none_or(|at| now < at) {
            return None;
        }
        let decide::Decision { actions, next, failing, stays, consolidated } = self.decide(now);
        (self.decide_at, self.failing, self.stays) = (next, failing, stays);
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

    /// The picture for people and pages.
    pub fn view(&self, now: Instant) -> view::Cluster {
        self.picture(now, true)
    }

    /// As [`Self::view`], but for the nodes' pods, which are most of the picture.
    pub fn outline(&self, now: Instant) -> view::Cluster {
        self.picture(now, false)
    }

    fn picture(&self, now: Instant, with_pods: bool) -> view::Cluster {
        let mut group_of = BTreeMap::new();
        let groups = self.groups.iter().map(|(name, group)| {
            group_of.extend(group.live().map(|instance| (instance.id.as_str(), name)));
            let policy = &self.policy.groups[name];
            let bounds = group.observed.as_ref().map(|observed| observed.bounds(policy));
            let (min, max) = bounds.unwrap_or((policy.min, policy.max));
            view::Group {
                name: name.clone(),
                instance_type: policy.instance_type.clone(),
                observed: group.observed.is_some(),
                min,
                max,
                desired: group.desired(),
                instances: u32::try_from(group.live().count()).unwrap_or(u32::MAX),
                failing: self.failing.get(name).cloned(),
            }
        });
        let groups = groups.collect();
        let timeout = self.policy.scale_down.report_timeout;
        let nodes = self.nodes.values().map(|member| {
            let node = &member.node;
            let mut requested = Resources::default();
            let running = self.pods.on(&node.name).filter(|pod| !pod.like.finished);
            running.clone().for_each(|pod| requested.add(&pod.like.requests));
            let pods = running.filter(|_| with_pods).map(|pod| view::Pod {
                name: pod.full_name(),
                daemon: pod.like.controller != Controller::Workload,
                terminating: pod.like.terminating,
                requests: pod.like.requests.clone(),
            });
            let pods = pods.collect();
            let heard = member.heard(now, timeout);
            view::Node {
                name: node.name.clone(),
                uid: node.uid.clone(),
                group: node.instance.as_deref().and_then(|instance| group_of.get(instance)).map(|name| (*name).clone()),
                ready: node.ready,
                unschedulable: node.unschedulable,
                draining: member.intent(now).is_some(),
                drained: node.drained,
                class: heard.map(|heard| heard.report.class),
                utilization: heard.map(|heard| heard.report.utilization),
                gpu_waste: heard.and_then(|heard| heard.report.gpu_waste),
                stays: self.stays.get(&node.name).cloned(),
                allocatable: node.allocatable.clone(),
                requested,
                pods,
            }
        });
        let waiting = self.pods.waiting().map(|(pod, since)| view::Waiting {
            pod: pod.full_name(),
            since,
            requests: pod.like.requests.clone(),
            because: self.explained.get(pod.uid.as_ref()).cloned(),
        });
        let mut waiting: Vec<_> = waiting.collect();
        waiting.sort_by(|a, b| (a.since, &a.pod).cmp(&(b.since, &b.pod)));
        view::Cluster { leading: self.leading, synced: self.synced, groups, nodes: nodes.collect(), waiting }
    }

    /// Takes the event into the picture. `None`: it changes nothing that the rules look at.
    fn absorb(&mut self, now: Instant, event: Event) -> Option<Soon> {
        match event {
            Event::Done(action) => self.done(now, action),
            Event::Failed { action, failure } => {
                self.failed(now, action, failure);
                Some(Soon::Now)
            }
            Event::Groups { asked, groups } => self.described(now, &asked, groups),
            Event::Launched { asked, instances, failures } => self.launched(now, &asked, instances, failures),
            Event::Leading(leading) => {
                self.leading = leading;
                Some(Soon::Now)
            }
            Event::Remembered(memory) => {
                self.memory = Some(memory);
                self.recall(now);
                Some(Soon::Now)
            }
            Event::NodeApplied(node) => self.node_applied(now, node),
            Event::NodeDeleted { name, uid } => {
                let gone = self.nodes.get(&name).is_some_and(|member| member.node.uid == uid);
                let member = gone.then(|| self.nodes.remove(&name))??;
                self.forget_instance(&member.node);
                Some(Soon::Batch)
            }
            Event::PodApplied(pod) => self.pod_applied(now, pod),
            Event::PodDeleted { uid } => self.pod_deleted(now, &uid),
            Event::Storage(change) => {
                let mut matters = false;
                for uid in self.storage.apply(change) {
                    let Some(pod) = self.pods.get(&uid) else { continue };
                    let needs = self.storage.needs(&pod.like.namespace, &pod.like.claims);
                    matters |= self.pods.set_needs(&uid, needs);
                }
                matters.then_some(Soon::Batch)
            }
            Event::Report(report) => self.reported(now, report),
            Event::Synced(synced) => {
                self.synced = synced;
                // Whether a node stayed empty through the gap is not known.
                let names: Vec<_> = self.nodes.keys().cloned().collect();
                for name in names {
                    self.forget_emptiness(now, &name);
                }
                self.recall(now);
                Some(Soon::Now)
            }
            Event::Tick => None,
        }
    }

    fn recall(&mut self, now: Instant) {
        if let Some(memory) = self.memory.take_if(|_| self.synced) {
            self.remember(now, &memory);
        }
    }

    fn done(&mut self, now: Instant, action: Action) -> Option<Soon> {
        for target in action.targets() {
            self.calls.remove(&target);
        }
        match action {
            Action::SetDesired { group, to, .. } => {
                let group = self.groups.get_mut(&group)?;
                group.decided = Some(Decided { desired: to, at: now });
                group.short_since = Some(now);
            }
            Action::Terminate { group, instance, .. } => {
                let group = self.groups.get_mut(&group)?;
                let desired = group.desired()?.saturating_sub(1);
                group.decided = Some(Decided { desired, at: now });
                group.terminated.insert(instance);
            }
            Action::Drain { node, uid, intent, .. } => self.written(now, &node, &uid, Some(intent)),
            Action::CancelDrain { node, uid, because, .. } => {
                self.written(now, &node, &uid, None);
                if let Some(member) = self.nodes.get_mut(&node).filter(|_| because == Reason::DrainGivenUp) {
                    member.spared_until = Some(now + SPARED);
                }
            }
            Action::Describe { .. } | Action::Launch { .. } => {}
            Action::Explain { .. } => return None,
        }
        Some(Soon::Now)
    }

    fn failed(&mut self, now: Instant, action: Action, failure: Failure) {
        for target in action.targets() {
            if let Target::Group(name) = &target
                && let Some(group) = self.groups.get_mut(name)
            {
                if matches!(action, Action::Launch { .. }) && matches!(failure, Failure::Denied | Failure::Rejected) {
                    // There is another way to ask.
                    group.launches_refused_until = Some(now + LAUNCHES_REFUSED);
                    self.calls.remove(&target);
                    continue;
                }
                // It is not as we thought, or the call took effect and only its reply was lost.
                if !matches!(failure, Failure::Denied | Failure::Throttled) {
                    group.asked_at = None;
                }
                if matches!(failure, Failure::Conflict | Failure::Unavailable) {
                    group.unanswered = Some(action.clone());
                }
            }
            let call = self.calls.entry(target).or_default();
            call.failures += 1;
            call.retry_at = Some(now + failure.backoff(call.failures));
        }
        if let Action::Drain { node, uid, intent, .. } = action
            && matches!(failure, Failure::Conflict | Failure::Unavailable)
        {
            // It may stand there, now or from an earlier try: until the watch must have shown it, no other
            // node is asked in its place.
            self.written(now, &node, &uid, Some(intent));
        }
    }

    fn launched(
        &mut self,
        now: Instant,
        asked: &Action,
        instances: Vec<String>,
        failures: Vec<String>,
    ) -> Option<Soon> {
        let Action::Launch { group, zone, from, .. } = asked else { return None };
        self.calls.remove(&Target::Group(group.clone()));
        let group = self.groups.get_mut(group)?;
        group.unanswered = None;
        let failures: Vec<_> = failures.into_iter().map(|message| LaunchFailure { at: now, message }).collect();
        group.failures_in.entry(zone.clone()).or_default().told(now, &failures, !instances.is_empty());
        if instances.is_empty() {
            return Some(Soon::Now);
        }
        let desired = from + u32::try_from(instances.len()).unwrap_or(u32::MAX);
        group.decided = Some(Decided { desired, at: now });
        // They are there, though no description shows them yet.
        if let Some(observed) = &mut group.observed {
            for id in instances {
                group.first_seen.entry(id.clone()).or_insert(now);
                observed.instances.push(Instance { id, live: true, zone: Some(zone.clone()) });
            }
        }
        Some(Soon::Now)
    }

    fn written(&mut self, now: Instant, node: &str, uid: &str, intent: Option<Intent>) {
        if let Some(member) = self.nodes.get_mut(node).filter(|member| member.node.uid == uid) {
            member.written = Some(Written { intent, until: now + WATCH_LAG });
        }
    }

    fn described(&mut self, now: Instant, asked: &Action, states: Vec<GroupState>) -> Option<Soon> {
        let Action::Describe { groups, at } = asked else { return None };
        self.calls.remove(&Target::Describe);
        let mut states: BTreeMap<_, _> = states.into_iter().map(|state| (state.name.clone(), state)).collect();
        for name in groups {
            let Some(group) = self.groups.get_mut(name) else { continue };
            let state = states.remove(name);
            let described: BTreeSet<_> = state.iter().flat_map(|state| &state.instances).map(|i| &i.id).collect();
            group.first_seen.retain(|id, _| described.contains(id));
            group.terminated.retain(|id| described.contains(id));
            let mut came = false;
            for instance in state.iter().flat_map(|state| &state.instances) {
                came |= !group.first_seen.contains_key(&instance.id);
                group.first_seen.entry(instance.id.clone()).or_insert(now);
            }
            group.observed = state;
            group.asked_at = Some(*at);
            group.unanswered.take_if(|call| !call.may_be_unseen_in(group.observed.as_ref()));
            let Some(state) = &group.observed else { continue };
            group.failures.told(now, &state.failures, came);
            let short = group.live().count() < group.desired().unwrap_or(0) as usize;
            group.short_since = short.then(|| group.short_since.filter(|_| !came).unwrap_or(now));
            let policy = &self.policy.groups[name];
            let nodes = group.live().filter_map(|instance| self.nodes.get(self.node_of.get(&instance.id)?));
            if let Some(member) = nodes.filter(|member| !decide::is_starting(member, policy)).last() {
                group.shown = Some(member.node.allocatable.clone());
            }
            group.learn_template(policy);
        }
        Some(Soon::Now)
    }

    fn node_applied(&mut self, now: Instant, node: Node) -> Option<Soon> {
        let name = node.name.clone();
        if let Some(before) = self.nodes.get(&name).filter(|member| member.node.instance != node.instance) {
            let before = before.node.clone();
            self.forget_instance(&before);
        }
        if let Some(instance) = &node.instance {
            self.node_of.insert(instance.clone(), name.clone());
        }
        match self.nodes.get_mut(&name) {
            Some(member) if member.node == node => return None,
            Some(member) if member.node.uid == node.uid => {
                member.written.take_if(|written| written.intent == node.intent);
                member.node = node;
            }
            // New, or another node of the same name, of which nothing has been heard.
            _ => {
                let member =
                    Member { node, first_seen: now, written: None, heard: None, empty_since: None, spared_until: None };
                self.nodes.insert(name.clone(), member);
                self.forget_emptiness(now, &name);
            }
        }
        Some(Soon::Batch)
    }

    fn forget_instance(&mut self, node: &Node) {
        if let Some(instance) = &node.instance
            && self.node_of.get(instance) == Some(&node.name)
        {
            self.node_of.remove(instance);
        }
    }

    fn pod_applied(&mut self, now: Instant, mut pod: Pod) -> Option<Soon> {
        pod.needs = self.storage.needs(&pod.namespace, &pod.claims);
        self.storage.uses(&pod.uid, &pod.namespace, &pod.claims);
        if pod.waits_since().is_none() {
            self.explained.remove(&pod.uid);
        }
        let node = pod.node.clone();
        if !self.pods.apply(pod) {
            return None;
        }
        if let Some(node) = node {
            self.update_emptiness(now, &node);
        }
        Some(Soon::Batch)
    }

    fn pod_deleted(&mut self, now: Instant, uid: &str) -> Option<Soon> {
        let (pod, node) = self.pods.remove(uid)?;
        self.storage.forgets(uid, &pod.like.namespace, &pod.like.claims);
        self.explained.remove(uid);
        if let Some(node) = node {
            self.update_emptiness(now, &node);
        }
        Some(Soon::Batch)
    }

    fn reported(&mut self, now: Instant, report: Report) -> Option<Soon> {
        let timeout = self.policy.scale_down.report_timeout;
        let member = self.nodes.get_mut(&report.node).filter(|member| member.node.uid == report.node_uid)?;
        let before = member.heard.replace(Heard { report, at: now });
        let Some(before) = before else { return Some(Soon::Batch) };
        let heard = member.heard.as_ref()?;
        if !heard.report.is_newer_than(&before.report) {
            member.heard = Some(before);
            return None;
        }
        // Most reports only say that nothing has changed.
        let same = heard.report.class == before.report.class && now.since(before.at) < timeout;
        (!same).then_some(Soon::Batch)
    }

    /// Whether the node came after the groups were last described, so that it is not known whose it is.
    fn is_newcomer(&self, member: &Member) -> bool {
        let Some(instance) = &member.node.instance else { return false };
        !self.groups.values().any(|group| group.first_seen.contains_key(instance))
            && self.groups.values().any(|group| group.asked_at.is_none_or(|asked| asked < member.first_seen))
    }

    fn update_emptiness(&mut self, now: Instant, node: &str) {
        let held = self.pods.on(node).any(|pod| pod.like.holds_node());
        if let Some(member) = self.nodes.get_mut(node) {
            member.empty_since = if held { None } else { Some(member.empty_since.unwrap_or(now)) };
        }
    }

    fn forget_emptiness(&mut self, now: Instant, node: &str) {
        if let Some(member) = self.nodes.get_mut(node) {
            member.empty_since = None;
        }
        self.update_emptiness(now, node);
    }
}

/// When the rules should look at what has changed.
#[derive(PartialEq)]
enum Soon {
    /// With what else comes within the batch window.
    Batch,
    Now,
}
