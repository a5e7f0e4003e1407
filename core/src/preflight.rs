//! Whether a drain could begin, and what speaks against it, pod by pod: asked before anything is changed.

use crate::disruption::{Allowance, Blocked, PodDisruptionBudgets};
use crate::intent::Permits;
use crate::kubernetes::{Controller, Pod};
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
    /// Left to end by itself, as its annotation asks.
    AwaitsEnd,
    /// A PodDisruptionBudget forbids its eviction, and if it still does shortly before the deadline, it is deleted.
    DeletedInTheEnd,
    /// It is terminating already.
    Ending,
    Evicted,
    /// It is over: nothing of it is left to evict.
    Finished,
    /// Of a DaemonSet, or of the node itself.
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

/// A drain that a person asked for; what may be lost is what they permit. A pod of kube-system with a controller goes as
/// any other: it is not moved only for the sake of fewer nodes.
pub fn fate<'a>(pod: &'a Pod, permits: Permits, budgets: &'a PodDisruptionBudgets, answer: &Answer) -> Fate<'a> {
    if pod.controller != Controller::Workload {
        return Fate::Stays;
    }
    if pod.finished {
        return Fate::Finished;
    }
    if pod.terminating {
        return Fate::Ending;
    }
    match pod.pin {
        Some(Pin::OnCompletion) => return Fate::AwaitsEnd,
        Some(pin @ (Pin::DoNotDisrupt | Pin::NotSafeToEvict)) => return Fate::Stopped(Obstacle::Pinned(pin)),
        Some(pin @ Pin::NotReplicated) if !permits.force => return Fate::Stopped(Obstacle::Pinned(pin)),
        Some(pin @ Pin::LocalStorage) if !permits.delete_emptydir_data => {
            return Fate::Stopped(Obstacle::Pinned(pin));
        }
        Some(Pin::NotReplicated | Pin::LocalStorage | Pin::System) | None => {}
    }
    // By the numbers that the budgets' controller last counted.
    let counted = Allowance::new(budgets).covers(std::iter::once(pod));
    let held = |blocked, words| match permits.delete_at_deadline {
        true => Fate::DeletedInTheEnd,
        false => Fate::Stopped(Obstacle::Budget(blocked, words)),
    };
    match (answer, counted) {
        (Answer::Allowed, _) | (Answer::Unknown, Ok(())) => Fate::Evicted,
        (Answer::Unknown, Err((_, blocked))) => held(blocked, None),
        (Answer::Blocked(words) | Answer::Refused(words), Err((_, blocked))) => held(blocked, Some(words.clone())),
        // The budget that forbids it was not among those that we were told of.
        (Answer::Blocked(words) | Answer::Refused(words), Ok(())) => Fate::Stopped(Obstacle::Refused(words.clone())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disruption::{Change, PodDisruptionBudget};

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

    #[test]
    fn what_is_not_to_be_lost_stops_a_drain_unless_it_is_permitted() {
        let (nothing, all) =
            (Permits::default(), Permits { force: true, delete_emptydir_data: true, delete_at_deadline: true });
        let force = Permits { force: true, ..nothing };
        let check = |pod: Pod, permits, expected: Fate<'_>| {
            assert_eq!(fate(&pod, permits, &budgets(&[]), &Answer::Allowed), expected, "{pod:?}, {permits:?}");
        };
        let pinned = |pin| Pod { pin: Some(pin), ..pod() };
        let stopped = |pin| Fate::Stopped(Obstacle::Pinned(pin));
        check(pod(), nothing, Fate::Evicted);
        check(Pod { controller: Controller::DaemonSet, ..pod() }, nothing, Fate::Stays);
        check(Pod { controller: Controller::Node, ..pod() }, nothing, Fate::Stays);
        check(Pod { finished: true, ..pinned(Pin::NotReplicated) }, nothing, Fate::Finished);
        check(Pod { terminating: true, ..pinned(Pin::NotReplicated) }, nothing, Fate::Ending);
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
            let (budgets, pod) = (budgets(all), pod());
            let found = match fate(&pod, Permits::default(), &budgets, &answer) {
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
        let permits = Permits { delete_at_deadline: true, ..Permits::default() };
        assert_eq!(fate(&pod(), permits, &budgets(&[("a", 0)]), &blocked()), Fate::DeletedInTheEnd);
        assert_eq!(fate(&pod(), permits, &budgets(&[("a", 1)]), &Answer::Allowed), Fate::Evicted);
        // A budget that is new to us.
        check(&[], blocked(), "has 2");
        check(&[("a", 1)], Answer::Refused("webhook".into()), "webhook");
    }
}
