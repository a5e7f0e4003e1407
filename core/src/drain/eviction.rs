//! What was asked of the API server for each pod, what it answered, and when to ask again.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::pod::Pod;
use crate::agenda::Agenda;
use crate::time::Instant;

/// Requests under way at once. A pod that waits for its next turn holds no slot, so a closed budget does not starve the
/// others. API servers queue 300 of one node before they refuse any (`system-nodes` of API Priority and Fairness: six
/// queues of 50).
pub(super) const IN_FLIGHT: usize = 20;
/// Between two requests for the pods of a budget that allows none: the first, so much longer each time, up to the longest.
/// kubectl asks for each pod every 5 s, Karpenter every 0.1 to 10 s.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGER: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// After an answer that says nothing of the pod.
const UNAVAILABLE_PAUSE: Duration = Duration::from_secs(2);
/// What the API server asks for where it answers 429 without saying how long.
const THROTTLED_PAUSE: Duration = Duration::from_secs(1);
/// For the watch to show that a pod is gone.
const GONE_PAUSE: Duration = Duration::from_secs(5);
/// For the watch to show what the answer said; and before what is refused is tried once more.
const LONG_PAUSE: Duration = Duration::from_secs(30);

/// How the API server answered an eviction or a deletion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum EvictionOutcome {
    /// 200, 201: the pod is terminating.
    Accepted,
    /// 429 with the cause `DisruptionBudget`: a PodDisruptionBudget does not allow it now.
    Blocked,
    /// 404, or 409 on the UID precondition: this pod is gone.
    Gone,
    /// 403, two budgets for one pod, and everything else that will not change by itself soon.
    Refused,
    /// 429 without that cause: the API server has too much to do.
    Throttled,
    /// 5xx, no reply, a namespace that is going: nothing is known of the pod.
    Unavailable,
}

impl EvictionOutcome {
    /// A closed set of words, for metrics' labels and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Blocked => "blocked",
            Self::Gone => "gone",
            Self::Refused => "refused",
            Self::Throttled => "throttled",
            Self::Unavailable => "unavailable",
        }
    }
}

/// An answer, with what it said besides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Reply {
    pub outcome: EvictionOutcome,
    /// The API server's words; empty if it said yes, or nothing.
    pub reason: String,
    /// The PodDisruptionBudget that it named, with its namespace.
    pub budget: Option<String>,
    pub retry_after: Option<Duration>,
}

impl From<EvictionOutcome> for Reply {
    fn from(outcome: EvictionOutcome) -> Self {
        Self { outcome, reason: String::new(), budget: None, retry_after: None }
    }
}

#[derive(Debug, Default)]
pub(super) struct Evictions {
    /// By UID.
    pods: BTreeMap<String, Asked>,
    /// Budgets that allowed no eviction when last asked. One pod is asked for at a time, not all of them.
    budgets: BTreeMap<String, Closed>,
    /// When anything may be asked again.
    throttled_until: Option<Instant>,
}

#[derive(Debug)]
struct Asked {
    /// `None`: a request is under way.
    again_at: Option<Instant>,
    at: Instant,
    reply: Option<Reply>,
    /// Whether that says what becomes of the pod.
    is_settled: bool,
}

#[derive(Debug)]
struct Closed {
    refusals: u32,
    again_at: Instant,
}

impl Evictions {
    /// Forgets pods that are not among these.
    pub(super) fn retain(&mut self, pods: &[Pod]) {
        let left: BTreeSet<&str> = pods.iter().map(|pod| pod.uid.as_str()).collect();
        self.pods.retain(|uid, _| left.contains(uid.as_str()));
    }

    /// Which of these may be asked for now, in their order; each then counts as being asked for.
    pub(super) fn take<'a>(&mut self, agenda: &mut Agenda, pods: impl Iterator<Item = &'a Pod>) -> Vec<&'a Pod> {
        let mut slots = IN_FLIGHT.saturating_sub(self.pods.values().filter(|asked| asked.again_at.is_none()).count());
        // With all slots taken nothing can be asked: the answer that frees one is the next event.
        if slots == 0 || self.throttled_until.is_some_and(|at| !agenda.due(at)) {
            return Vec::new();
        }
        let mut taken = Vec::new();
        // Of each closed budget's pods, the one that was not asked for for the longest: others of its pods may be free
        // to go, such as those that are not healthy.
        let mut longest: BTreeMap<String, (Instant, &Pod)> = BTreeMap::new();
        for pod in pods {
            match self.pods.get(&pod.uid) {
                None if slots > 0 => taken.push(pod),
                Some(Asked { again_at: Some(_), reply: Some(reply), at, .. })
                    if let Some(budget) = self.closed(reply) =>
                {
                    let other = longest.get(budget);
                    if other.is_none_or(|(before, _)| at < before) {
                        longest.insert(budget.to_owned(), (*at, pod));
                    }
                    continue;
                }
                Some(Asked { again_at: Some(at), .. }) if slots > 0 && agenda.due(*at) => taken.push(pod),
                _ => continue,
            }
            slots -= 1;
        }
        for (budget, (_, pod)) in longest {
            let is_asked = self.pods.values().any(|asked| asked.again_at.is_none() && asked.is_about(&budget));
            let due = self.budgets.get(&budget).is_none_or(|closed| agenda.due(closed.again_at));
            if !is_asked && due && slots > 0 {
                slots -= 1;
                taken.push(pod);
            }
        }
        for pod in &taken {
            let asked = self.pods.entry(pod.uid.clone());
            let asked = asked.or_insert(Asked { again_at: None, at: agenda.now, reply: None, is_settled: false });
            (asked.again_at, asked.at) = (None, agenda.now);
        }
        taken
    }

    fn closed<'a>(&self, reply: &'a Reply) -> Option<&'a str> {
        reply.budget.as_deref().filter(|budget| self.budgets.contains_key(*budget))
    }

    pub(super) fn answered(&mut self, now: Instant, uid: &str, reply: Reply) {
        if reply.outcome == EvictionOutcome::Throttled {
            self.throttled_until = Some(now + reply.retry_after.unwrap_or(THROTTLED_PAUSE));
        }
        let Some(asked) = self.pods.get_mut(uid) else { return };
        // Once is not for good: NodeRestriction looks pods up in a cache, and refuses one that has just been bound.
        let is_refused_again = asked.reply.as_ref().is_some_and(|before| before.outcome == EvictionOutcome::Refused);
        asked.is_settled = match reply.outcome {
            EvictionOutcome::Throttled | EvictionOutcome::Unavailable => false,
            EvictionOutcome::Refused => is_refused_again,
            EvictionOutcome::Accepted | EvictionOutcome::Blocked | EvictionOutcome::Gone => true,
        };
        let pause = match reply.outcome {
            EvictionOutcome::Accepted => LONG_PAUSE,
            EvictionOutcome::Refused if is_refused_again => LONG_PAUSE,
            EvictionOutcome::Refused => FIRST_PAUSE,
            EvictionOutcome::Gone => GONE_PAUSE,
            EvictionOutcome::Throttled => Duration::ZERO,
            EvictionOutcome::Unavailable => reply.retry_after.unwrap_or(UNAVAILABLE_PAUSE),
            EvictionOutcome::Blocked => {
                let key = reply.budget.clone().unwrap_or_else(|| uid.to_owned());
                let closed = self.budgets.entry(key).or_insert(Closed { refusals: 0, again_at: now });
                // What was asked for at the same time is refused for the same reason, which counts once.
                if closed.again_at <= now {
                    let pause = pause(uid, closed.refusals).max(reply.retry_after.unwrap_or_default());
                    closed.refusals = closed.refusals.saturating_add(1);
                    closed.again_at = now + pause;
                }
                closed.again_at.since(now)
            }
        };
        asked.again_at = Some(now + pause);
        // It has room: the next of its pods is asked for at once, and only one, for that may have been all.
        if reply.outcome == EvictionOutcome::Accepted
            && let Some(budget) = asked.reply.as_ref().and_then(|before| before.budget.as_ref())
            && let Some(closed) = self.budgets.get_mut(budget)
        {
            *closed = Closed { refusals: 0, again_at: now };
        }
        asked.reply = Some(reply);
    }

    pub(super) fn is_settled(&self, pod: &Pod) -> bool {
        self.pods.get(&pod.uid).is_some_and(|asked| asked.is_settled)
    }

    /// What was last answered for a pod.
    pub(super) fn reply(&self, pod: &Pod) -> Option<&Reply> {
        self.pods.get(&pod.uid)?.reply.as_ref()
    }
}

impl Asked {
    fn is_about(&self, budget: &str) -> bool {
        self.reply.as_ref().is_some_and(|reply| reply.budget.as_deref() == Some(budget))
    }
}

/// After so many refusals before this one; between four fifths of the full pause and all of it, so that the nodes that
/// wait for the same budget do not ask in the same instant.
fn pause(uid: &str, refusals: u32) -> Duration {
    let full = (FIRST_PAUSE + LONGER.saturating_mul(refusals)).min(LONGEST_PAUSE);
    let mut hasher = DefaultHasher::new();
    (uid, refusals).hash(&mut hasher);
    full * (800 + u32::try_from(hasher.finish() % 201).unwrap_or(0)) / 1000
}
