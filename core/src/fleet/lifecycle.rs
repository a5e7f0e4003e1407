//! Instances that the Auto Scaling group itself terminates, and that its lifecycle hook holds for us: their nodes are
//! drained, the hook is kept waiting meanwhile, and let go when that is done.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Action, Fleet, Target};
use crate::agenda::Agenda;
use crate::intent::{Intent, Permits, Phase, Trigger};
use crate::reason::Reason;
use crate::time::Instant;

/// Between two heartbeats. The shortest timeout that a hook can have is 30 s (EC2 Auto Scaling API reference,
/// `PutLifecycleHook`).
const HEARTBEAT_EVERY: Duration = Duration::from_secs(15);

/// An instance that a hook of ours holds.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Held {
    since: Instant,
    heartbeat_at: Option<Instant>,
    /// The hook was let go; what still shows it waiting is old.
    #[serde(default)]
    completed: bool,
}

impl Held {
    pub(super) fn new(since: Instant) -> Self {
        Self { since, heartbeat_at: None, completed: false }
    }

    pub(super) fn has_heartbeat(&mut self, now: Instant) {
        self.heartbeat_at = Some(now);
    }

    pub(super) fn is_completed(&mut self) {
        self.completed = true;
    }
}

impl Fleet {
    pub(super) fn hold_hooks(&self, agenda: &mut Agenda) -> Vec<Action> {
        let mut actions = Vec::new();
        for (name, group) in &self.groups {
            let Some(hook) = &self.policy.groups[name].lifecycle_hook else { continue };
            for (instance, held) in group.held.iter().filter(|(_, held)| !held.completed) {
                if self.ready(agenda, &Target::Instance(instance.clone())) {
                    actions.extend(self.hold(agenda, name, hook, instance, held));
                }
            }
        }
        actions
    }

    /// Whether hooks of ours hold instances of the group.
    pub(super) fn holds(&self, group: &str) -> bool {
        self.groups.get(group).is_some_and(|group| group.held.values().any(|held| !held.completed))
    }

    fn hold(&self, agenda: &mut Agenda, group: &str, hook: &str, instance: &str, held: &Held) -> Vec<Action> {
        let deadline = held.since + self.policy.scale_down.drain_timeout;
        let complete = |node: &str, because| Action::CompleteLifecycle {
            group: group.to_owned(),
            instance: instance.to_owned(),
            hook: hook.to_owned(),
            node: node.to_owned(),
            because,
        };
        let Some(member) = self.node_of.get(instance).and_then(|name| self.nodes.get(name)) else {
            return vec![complete("", Reason::NodeGone)];
        };
        let node = &member.node;
        let progress = node.progress.as_ref().map(|progress| progress.phase);
        if node.drained && !self.pods.on(&node.name).any(|pod| pod.like.holds_node()) {
            return vec![complete(&node.name, Reason::Drained { took: agenda.now.since(held.since) })];
        }
        if agenda.due(deadline) {
            return vec![complete(&node.name, Reason::DrainGivenUp)];
        }
        let mut actions = Vec::new();
        if held.heartbeat_at.is_none_or(|at| agenda.due(at + HEARTBEAT_EVERY)) {
            actions.push(Action::Heartbeat {
                group: group.to_owned(),
                instance: instance.to_owned(),
                hook: hook.to_owned(),
            });
        }
        if !self.ready(agenda, &Target::Node(node.name.clone())) {
            return actions;
        }
        let because = Reason::GroupTerminates { group: group.to_owned() };
        match member.intent(agenda.now) {
            None => actions.push(Action::Drain {
                node: node.name.clone(),
                uid: node.uid.clone(),
                intent: Intent {
                    id: format!("lifecycle-hook-{instance}"),
                    reason: because.to_string(),
                    requested_at: agenda.now,
                    deadline,
                    evict: true,
                    by: Trigger::LifecycleHook,
                    awaits_turn: false,
                    permits: Permits::default(),
                },
                because,
            }),
            // A drain that could as well not be gave way to something that does not matter any more.
            Some(intent) if intent.by == Trigger::Coordinator && progress == Some(Phase::Failed) => {
                actions.push(Action::CancelDrain {
                    node: node.name.clone(),
                    uid: node.uid.clone(),
                    id: intent.id.clone(),
                    because,
                });
            }
            Some(_) => {}
        }
        actions
    }
}
