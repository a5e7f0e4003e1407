//! Whether a drain could begin, and what speaks against it, pod by pod: asked before anything is changed.

use crate::disruption::{Allowance, Blocked, PodDisruptionBudgets};
use crate::drain::{self, Treatment};
use crate::intent::Intent;
use crate::kubernetes::Pod;
use crate::reason::Pin;

/// What the API server said to the eviction of a pod, tried without doing it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Allowed,
    /// A PodDisruptionBudget forbids it now; in the API server's words.
    Blocked(String),
    /// It will not change by itself.
    Refused(String),
    /// Not asked, or no answer about the pod.
    Unknown,
}

/// What a drain does with a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate<'a> {
    /// Left to end by itself, as it asks for.
    AwaitsEnd,
    /// It is terminating already.
    Ending,
    Evicted,
    /// Its budget allows it not now; shortly before the deadline it is deleted all the same.
    Forced,
    /// It is over: nothing of it is left to evict.
    Finished,
    /// Of a DaemonSet, or of the node itself, or it asks to be left alone.
    Stays,
    Stopped(Obstacle<'a>),
}

/// Why a pod cannot go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Obstacle<'a> {
    /// By PodDisruptionBudgets; in the API server's words, where it has said them.
    Budget(Blocked<'a>, Option<String>),
    Pinned(Pin),
    /// In the API server's words.
    Refused(String),
}

/// A pod as the agent's drain reads it, and as budgets do.
#[derive(Clone, Debug, Default)]
pub struct Candidate {
    pub pod: Pod,
    pub drained: drain::Pod,
}

/// What becomes of it by the agent's own rules, and by what the API server says. `intent`: the drain that is thought of.
pub fn fate<'a>(
    candidate: &'a Candidate,
    intent: &Intent,
    budgets: &'a PodDisruptionBudgets,
    answer: &Answer,
) -> Fate<'a> {
    let Candidate { pod, drained } = candidate;
    match drained.treatment(intent, None) {
        Treatment::Stay if pod.finished => return Fate::Finished,
        Treatment::Stay => return Fate::Stays,
        Treatment::Await => return Fate::AwaitsEnd,
        Treatment::Keep(pin) => return Fate::Stopped(Obstacle::Pinned(pin)),
        Treatment::Evict if pod.terminating => return Fate::Ending,
        Treatment::Evict => {}
    }
    // By the numbers that the budgets' controller last counted.
    let counted = Allowance::new(budgets).covers(std::iter::once(pod));
    let is_blocked =
        matches!((answer, &counted), (Answer::Blocked(_), _) | (Answer::Unknown, Err((_, Blocked::Spent(_)))));
    if is_blocked && intent.permits.delete_at_deadline {
        return Fate::Forced;
    }
    match (answer, counted) {
        (Answer::Allowed, _) | (Answer::Unknown, Ok(())) => Fate::Evicted,
        (Answer::Unknown, Err((_, blocked))) => Fate::Stopped(Obstacle::Budget(blocked, None)),
        (Answer::Blocked(words) | Answer::Refused(words), Err((_, blocked))) => {
            Fate::Stopped(Obstacle::Budget(blocked, Some(words.clone())))
        }
        // The budget that forbids it was not among those that we were told of.
        (Answer::Blocked(words) | Answer::Refused(words), Ok(())) => Fate::Stopped(Obstacle::Refused(words.clone())),
    }
}

impl From<&k8s_openapi::api::core::v1::Pod> for Candidate {
    fn from(pod: &k8s_openapi::api::core::v1::Pod) -> Self {
        Self { pod: Pod::from(pod), drained: drain::Pod::from(pod) }
    }
}

impl From<Pod> for Candidate {
    fn from(pod: Pod) -> Self {
        Self { drained: drain::Pod::from(&pod), pod }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disruption::{Change, PodDisruptionBudget};
    use crate::intent::{Permits, Trigger};
    use crate::kubernetes::Controller;
    use crate::time::Instant;

    fn pod() -> Pod {
        Pod { namespace: "ns".into(), labels: [("app".into(), "web".into())].into(), ..Pod::default() }
    }

    fn budget(name: &str, allowed: u32) -> Change {
        let (namespace, name) = ("ns".into(), name.into());
        Change::Applied(PodDisruptionBudget {
            namespace,
            name,
            selector: Some(Vec::new()),
            allowed,
            healthy: 2,
            desired: 2,
        })
    }

    fn budgets(all: &[(&str, u32)]) -> PodDisruptionBudgets {
        let mut budgets = PodDisruptionBudgets::default();
        all.iter().for_each(|(name, allowed)| _ = budgets.apply(budget(name, *allowed)));
        budgets
    }

    fn intent(permits: Permits) -> Intent {
        let at = Instant::from_millis(0);
        let (id, reason) = (String::new(), String::new());
        Intent {
            id,
            reason,
            requested_at: at,
            deadline: at,
            evict: true,
            by: Trigger::Person,
            awaits_turn: false,
            permits,
        }
    }

    #[test]
    fn what_is_not_to_be_lost_stops_a_drain_unless_it_is_permitted() {
        let (nothing, all) =
            (Permits::default(), Permits { force: true, delete_emptydir_data: true, delete_at_deadline: true });
        let force = Permits { force: true, ..nothing };
        let check = |pod: Pod, permits, expected: Fate<'_>| {
            let candidate = Candidate::from(pod);
            let none = PodDisruptionBudgets::default();
            let found = fate(&candidate, &intent(permits), &none, &Answer::Allowed);
            assert_eq!(found, expected, "{candidate:?}, {permits:?}");
        };
        let pinned = |pin| Pod { pin: Some(pin), ..pod() };
        let stopped = |pin| Fate::Stopped(Obstacle::Pinned(pin));
        check(pod(), nothing, Fate::Evicted);
        check(Pod { controller: Controller::DaemonSet, ..pod() }, nothing, Fate::Stays);
        check(Pod { controller: Controller::Node, ..pod() }, nothing, Fate::Stays);
        check(Pod { finished: true, ..pinned(Pin::NotReplicated) }, nothing, Fate::Finished);
        check(Pod { terminating: true, ..pod() }, nothing, Fate::Ending);
        check(pinned(Pin::System), nothing, Fate::Evicted);
        check(pinned(Pin::OnCompletion), nothing, Fate::AwaitsEnd);
        check(pinned(Pin::NotReplicated), nothing, stopped(Pin::NotReplicated));
        check(pinned(Pin::NotReplicated), force, Fate::Evicted);
        check(pinned(Pin::LocalStorage), force, stopped(Pin::LocalStorage));
        check(pinned(Pin::LocalStorage), all, Fate::Evicted);
        // Whoever wrote these meant people, too.
        check(pinned(Pin::DoNotDisrupt), all, stopped(Pin::DoNotDisrupt));
        check(pinned(Pin::NotSafeToEvict), all, stopped(Pin::NotSafeToEvict));
    }

    #[test]
    fn the_api_server_s_answer_counts_before_the_budgets_numbers() {
        let check = |all: &[(&str, u32)], answer: Answer, expected: &str| {
            let (budgets, candidate) = (budgets(all), Candidate::from(pod()));
            let found = match fate(&candidate, &intent(Permits::default()), &budgets, &answer) {
                Fate::Evicted => "evicted".to_owned(),
                Fate::Stopped(Obstacle::Budget(Blocked::Spent(budget), words)) => format!("{}: {words:?}", budget.name),
                Fate::Stopped(Obstacle::Budget(Blocked::Several(all), _)) => format!("{} budgets", all.len()),
                Fate::Stopped(Obstacle::Refused(words)) => words,
                other => format!("{other:?}"),
            };
            assert_eq!(found, expected, "{all:?}, {answer:?}");
        };
        let blocked = || Answer::Blocked("has 2".into());
        check(&[], Answer::Unknown, "evicted");
        check(&[("a", 1)], Answer::Unknown, "evicted");
        check(&[("a", 0)], Answer::Unknown, "a: None");
        check(&[("a", 1), ("b", 1)], Answer::Unknown, "2 budgets");
        check(&[("a", 0)], blocked(), "a: Some(\"has 2\")");
        check(&[("a", 1), ("b", 1)], Answer::Refused("more than one".into()), "2 budgets");
        // A pod that is not ready may go where `unhealthyPodEvictionPolicy` says so, one that has not started always.
        check(&[("a", 0)], Answer::Allowed, "evicted");
        // A budget that is new to us.
        check(&[], blocked(), "has 2");
        check(&[("a", 1)], Answer::Refused("webhook".into()), "webhook");
    }

    #[test]
    fn a_budget_is_no_obstacle_to_a_drain_that_may_delete_in_the_end() {
        let permits = Permits { delete_at_deadline: true, ..Permits::default() };
        let fate_under = |all: &[(&str, u32)], answer| {
            fate(&Candidate::from(pod()), &intent(permits), &budgets(all), &answer) == Fate::Forced
        };
        assert!(fate_under(&[("a", 0)], Answer::Unknown));
        assert!(fate_under(&[("a", 0)], Answer::Blocked("has 2".into())));
        assert!(!fate_under(&[("a", 1)], Answer::Allowed));
        assert!(!fate_under(&[("a", 1), ("b", 1)], Answer::Refused("more than one".into())));
    }
}
