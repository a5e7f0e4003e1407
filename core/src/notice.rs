//! What an agent is told of its node's end, or of a time without it, and which drain that asks for.
//!
//! A notice is known by its content, never by when it was seen, so that reading the same again asks for nothing new.
//! What is not known now is not taken for gone: a notice that cannot be read any more still holds.

mod document;
mod gpu;
mod shutdown;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use document::{Document, Malformed};
pub use gpu::of_gpus;
pub use shutdown::of_shutdown;

use crate::intent::{Intent, Permits, Trigger};
use crate::time::Instant;

/// Something that will take the node away.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Notice {
    /// When the node will be lost; after a rebalance recommendation, which names no time, when its drain is given up.
    pub deadline: Instant,
    pub trigger: Trigger,
    /// Made of what the notice says: the same notice has the same id, and one with another time another.
    pub id: String,
    /// Why, for people.
    pub reason: String,
}

impl Notice {
    fn intent(&self, now: Instant, permits: Permits) -> Intent {
        Intent {
            id: self.id.clone(),
            reason: self.reason.clone(),
            requested_at: now,
            deadline: self.deadline,
            evict: true,
            by: self.trigger,
            awaits_turn: false,
            permits,
        }
    }
}

/// Which notices an agent acts on. All are shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Policy {
    /// Off: what works on the node's other GPUs would go, too.
    pub gpu_recovery: bool,
    pub lifecycle_hook: bool,
    pub maintenance: bool,
    /// How long before an event may begin its drain does. AWS announces events days before; ours to choose: long enough
    /// for a checkpoint and for pods that PodDisruptionBudgets let go one by one.
    pub maintenance_lead: Duration,
    /// Off: it says that an interruption has become likelier, and most of these nodes go on working.
    pub rebalance: bool,
    pub shutdown: bool,
    pub spot_interruption: bool,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            gpu_recovery: false,
            lifecycle_hook: true,
            maintenance: true,
            maintenance_lead: Duration::from_secs(3600),
            rebalance: false,
            shutdown: true,
            spot_interruption: true,
        }
    }
}

impl Policy {
    fn acts_on(&self, trigger: Trigger) -> bool {
        match trigger {
            Trigger::GpuRecovery => self.gpu_recovery,
            Trigger::LifecycleHook => self.lifecycle_hook,
            Trigger::Maintenance => self.maintenance,
            Trigger::Rebalance => self.rebalance,
            Trigger::Shutdown => self.shutdown,
            Trigger::SpotInterruption => self.spot_interruption,
            Trigger::Coordinator | Trigger::Person => false,
        }
    }

    /// When a notice's drain begins at the earliest; `None`: at once.
    fn begins(&self, notice: &Notice) -> Option<Instant> {
        (notice.trigger == Trigger::Maintenance).then(|| notice.deadline.before(self.maintenance_lead))
    }

    /// Whether a notice's drain could begin now. A planned one is given up at its deadline: none begins after that.
    fn is_due(&self, now: Instant, notice: &Notice) -> bool {
        let open = !notice.trigger.is_planned() || now < notice.deadline;
        self.acts_on(notice.trigger) && open && self.begins(notice).is_none_or(|begin| begin <= now)
    }
}

/// What is known now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notices {
    /// A trigger that is missing here is not known of now, so nothing follows from it having no notices.
    known: BTreeMap<Trigger, BTreeSet<Notice>>,
}

/// What the node's intent should become.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Wish {
    Keep,
    Set(Intent),
    Remove,
}

impl Notices {
    /// Takes over all there is of one trigger; `None`: that is not known now. Says whether it is another than before.
    /// A notice that is known keeps the deadline that it was first seen with: some name no time.
    pub fn learn(&mut self, trigger: Trigger, notices: Option<Vec<Notice>>) -> bool {
        let before = self.known.remove(&trigger);
        let now = notices.map(|notices| {
            let known = |notice: &Notice| before.iter().flatten().find(|known| known.id == notice.id).cloned();
            notices.into_iter().map(|notice| known(&notice).unwrap_or(notice)).collect()
        });
        let differs = now != before;
        self.known.extend(now.map(|now| (trigger, now)));
        differs
    }

    /// Those of one trigger, the earliest deadline first. `None`: not known now.
    pub fn of(&self, trigger: Trigger) -> Option<&BTreeSet<Notice>> {
        self.known.get(&trigger)
    }

    /// Each trigger that is known of, with its notices.
    pub fn iter(&self) -> impl Iterator<Item = (Trigger, &BTreeSet<Notice>)> {
        self.known.iter().map(|(trigger, notices)| (*trigger, notices))
    }

    /// What the node's intent should become, given the one that stands there. Applied, it asks for nothing more.
    pub fn intent(&self, now: Instant, policy: &Policy, standing: Option<&Intent>) -> Wish {
        let due = self.known.values().flatten().filter(|notice| policy.is_due(now, notice));
        let wanted = due.min_by_key(|notice| (notice.trigger.is_planned(), *notice));
        let Some(standing) = standing else {
            return wanted.map_or(Wish::Keep, |notice| Wish::Set(notice.intent(now, Permits::default())));
        };
        let holds = self.holds(standing);
        match wanted {
            Some(notice) if notice.id == standing.id => Wish::Keep,
            // What somebody allowed to be lost stays allowed.
            Some(notice) if !holds || outranks(now, notice, standing) => {
                Wish::Set(notice.intent(now, standing.permits))
            }
            _ if holds => Wish::Keep,
            _ => Wish::Remove,
        }
    }

    /// When [`Self::intent`] could say something else though nothing happened until then.
    pub fn next_wakeup(&self, now: Instant, policy: &Policy, standing: Option<&Intent>) -> Option<Instant> {
        let acted_on = self.known.values().flatten().filter(|notice| policy.acts_on(notice.trigger));
        let moments = acted_on.flat_map(|notice| policy.begins(notice).into_iter().chain([notice.deadline]));
        moments.chain(standing.map(|intent| intent.deadline)).filter(|moment| now < *moment).min()
    }

    /// Whether there is still a reason for an intent. Only the agent's own end with what they were made from.
    fn holds(&self, intent: &Intent) -> bool {
        let known = self.known.get(&intent.by).filter(|_| intent.by.is_the_agents());
        known.is_none_or(|notices| notices.iter().any(|notice| notice.id == intent.id))
    }
}

/// Whether a notice takes the place of an intent for which there is a reason: only if the node goes sooner, or surely
/// and not by choice. Somebody else's wish gives way to nothing that is planned, nor to news of itself.
fn outranks(now: Instant, notice: &Notice, standing: &Intent) -> bool {
    let urgency = |trigger: Trigger, deadline| (trigger.is_planned(), deadline);
    let is_sooner = urgency(notice.trigger, notice.deadline) < urgency(standing.by, standing.deadline);
    if standing.by.is_the_agents() {
        let given_up = standing.is_planned() && standing.deadline <= now;
        is_sooner || given_up
    } else {
        is_sooner && !notice.trigger.is_planned() && notice.trigger != standing.by
    }
}
