//! The last decisions, for whoever asks over HTTP.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use ebb_core::decision::Decision;
use ebb_core::fleet::Action;
use ebb_core::time::Instant;

/// Of each kind. A burst tells a thousand pods that they wait: that must not push out why the groups grew.
const KEPT: usize = 1000;

/// A handle; clones are the same list.
#[derive(Clone, Default)]
pub struct Decisions(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// Of all that were ever told.
    count: u64,
    /// With their number, the oldest first.
    changes: VecDeque<(u64, Decision)>,
    explanations: VecDeque<(u64, Decision)>,
}

impl Decisions {
    pub fn tell(&self, at: Instant, action: &Action) {
        let Some(decision) = Decision::new(at, action) else { return };
        let mut state = self.state();
        state.count += 1;
        let count = state.count;
        let kept = if let Action::Explain { .. } = action { &mut state.explanations } else { &mut state.changes };
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back((count, decision));
    }

    /// The newest first.
    pub fn last(&self, limit: usize) -> Vec<Decision> {
        let state = self.state();
        let mut all: Vec<_> = state.changes.iter().chain(&state.explanations).collect();
        all.sort_by_key(|(number, _)| std::cmp::Reverse(*number));
        all.into_iter().take(limit).map(|(_, decision)| decision.clone()).collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("nobody panics while holding it")
    }
}

#[cfg(test)]
mod tests {
    use ebb_core::reason::Reason;

    use super::*;

    #[test]
    fn what_pods_are_told_pushes_out_nothing_else() {
        let decisions = Decisions::default();
        let at = Instant::from_millis;
        let because = Reason::BelowMinimum { min: 2 };
        decisions.tell(at(0), &Action::SetDesired { group: "a".into(), from: 1, to: 2, because });
        decisions.tell(at(1), &Action::Describe { groups: vec!["a".into()], at: at(1) });
        for pod in 0..2 * KEPT {
            let because = Reason::NodeComing { group: "a".into() };
            let (namespace, pod, uid) = ("default".into(), format!("p-{pod}"), pod.to_string());
            decisions.tell(at(2), &Action::Explain { namespace, pod, uid, because });
        }
        let all = decisions.last(usize::MAX);
        assert_eq!(all.len(), KEPT + 1);
        assert_eq!((all[0].what.as_str(), all[KEPT].at), ("leaves pod default/p-1999 waiting", at(0)));
        assert_eq!(decisions.last(2).len(), 2);
    }
}
