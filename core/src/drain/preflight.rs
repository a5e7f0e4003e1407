//! Whether a planned drain can succeed, asked before anything is changed: evictions as a dry run, which cost no budget.
//!
//! Of pods that are alike one is asked for, and the answer is that of all: it costs a request for each workload, not for
//! each pod. What tells two of them apart all the same is met in the drain itself, which names the pod.
//!
//! A budget that allows one eviction at a time is no obstacle, however many of its pods are there: it opens again as they
//! come up elsewhere. One that allows none now is.

use std::collections::BTreeMap;

use super::Action;
use super::causes::{Causes, cause};
use super::eviction::{EvictionOutcome, Evictions, Reply};
use super::pod::{Pod, Treatment};
use crate::agenda::Agenda;
use crate::intent::Intent;
use crate::time::Instant;

#[derive(Debug, Default)]
pub(super) struct Preflight {
    checks: Evictions,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outlook {
    /// Answers are missing.
    Open,
    Good,
    /// Why it cannot succeed.
    Bad(String),
}

impl Preflight {
    pub(super) fn look(
        &mut self,
        agenda: &mut Agenda,
        intent: &Intent,
        pods: &[Pod],
        actions: &mut Vec<Action>,
    ) -> Outlook {
        let mut causes = Causes::default();
        let mut evicted = Vec::new();
        for pod in pods {
            match pod.treatment(intent, None) {
                Treatment::Keep(pin) => causes.add(pod, pin.to_string()),
                Treatment::Evict if pod.deletion.is_none() => evicted.push(pod),
                Treatment::Evict | Treatment::Await | Treatment::Stay => {}
            }
        }
        if !causes.is_empty() {
            return Outlook::Bad(causes.words());
        }
        let mut first: BTreeMap<_, &Pod> = BTreeMap::new();
        for pod in &evicted {
            let of_its_kind = first.entry(kind(pod)).or_insert(pod);
            // Whatever order they come in, and whoever of them has gone.
            if pod.uid < of_its_kind.uid {
                *of_its_kind = pod;
            }
        }
        let open: Vec<_> = first.values().copied().filter(|pod| !self.checks.is_settled(pod)).collect();
        let asked = self.checks.take(agenda, open.iter().copied());
        actions.extend(asked.into_iter().map(|pod| Action::Check(pod.into())));
        for pod in &evicted {
            let is_stopped = |outcome| match outcome {
                // It will go in the end, whatever its budget says.
                EvictionOutcome::Blocked => !intent.permits.delete_at_deadline,
                outcome => outcome == EvictionOutcome::Refused,
            };
            if let Some(reply) = self.checks.reply(first[&kind(pod)]).filter(|reply| is_stopped(reply.outcome)) {
                causes.add(pod, cause(reply));
            }
        }
        match (open.is_empty(), causes.is_empty()) {
            (false, _) => Outlook::Open,
            (true, true) => Outlook::Good,
            (true, false) => Outlook::Bad(causes.words()),
        }
    }

    pub(super) fn answered(&mut self, now: Instant, uid: &str, reply: Reply) {
        self.checks.answered(now, uid, reply);
    }
}

fn kind(pod: &Pod) -> (&str, &str) {
    (&pod.namespace, pod.likeness.as_deref().unwrap_or(&pod.uid))
}
