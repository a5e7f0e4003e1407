//! Which pods are left, and what each waits for, in words.

use std::collections::BTreeMap;

use super::eviction::{EvictionOutcome, Reply};
use super::pod::Pod;

/// Pods named for each cause; the others are counted.
const NAMED: usize = 3;

/// What a condition's message says beyond its step.
#[derive(Debug, Default)]
pub(super) struct Detail {
    pub(super) words: String,
    /// Something is in the way, and people can do something about it: that is said soon.
    pub(super) is_obstacle: bool,
}

#[derive(Debug, Default)]
pub(super) struct Causes(BTreeMap<String, Vec<String>>);

impl Causes {
    pub(super) fn add(&mut self, pod: &Pod, cause: impl Into<String>) {
        self.0.entry(cause.into()).or_default().push(pod.full_name());
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// `a/b, c/d and 3 more: why; e/f: why`
    pub(super) fn words(mut self) -> String {
        let words = self.0.iter_mut().map(|(cause, pods)| {
            pods.sort();
            let more = pods.len().saturating_sub(NAMED);
            pods.truncate(NAMED);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            format!("{}{more}: {cause}", pods.join(", "))
        });
        words.collect::<Vec<_>>().join("; ")
    }
}

/// What an answer other than yes means for its pod.
pub(super) fn cause(reply: &Reply) -> String {
    let what = match (reply.outcome, &reply.budget) {
        (EvictionOutcome::Blocked, Some(budget)) => format!("PodDisruptionBudget {budget}"),
        (EvictionOutcome::Blocked, None) => "a PodDisruptionBudget".into(),
        (EvictionOutcome::Refused, _) => "the API server refuses".into(),
        (EvictionOutcome::Throttled, _) => "the API server has too much to do".into(),
        (EvictionOutcome::Unavailable, _) => "the API server gave no answer".into(),
        (EvictionOutcome::Accepted | EvictionOutcome::Gone, _) => "it is going".into(),
    };
    if reply.reason.is_empty() { what } else { format!("{what}: {}", reply.reason) }
}
