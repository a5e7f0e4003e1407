//! Actions in log lines, and in words for the live page.

use std::collections::BTreeMap;

use ebb_core::fleet::Action;
use ebb_core::time::Instant;
use ebb_core::view::{Level, Step};

/// The group, node or pod it is about.
pub fn about(action: &Action) -> String {
    match action {
        Action::CancelDrain { node, .. } | Action::Drain { node, .. } => node.clone(),
        Action::Describe { groups, .. } => groups.join(","),
        Action::Explain { namespace, pod, .. } => format!("{namespace}/{pod}"),
        Action::SetDesired { group, .. } | Action::Terminate { group, .. } => group.clone(),
    }
}

/// One line for each decision.
pub fn log(taken: &Action) {
    let Some(because) = taken.because() else {
        tracing::debug!(action = taken.name(), groups = about(taken), "decided");
        return;
    };
    let action = taken.name();
    match taken {
        Action::SetDesired { group, from, to, .. } => {
            tracing::info!(action, %group, from, to, %because, "decided");
        }
        Action::Terminate { group, instance, node, .. } => {
            tracing::info!(action, %group, %instance, %node, %because, "decided");
        }
        Action::Drain { node, intent, .. } => {
            tracing::info!(action, %node, drain = intent.id, deadline = %intent.deadline, %because, "decided");
        }
        Action::CancelDrain { node, id, .. } => tracing::info!(action, %node, drain = id, %because, "decided"),
        Action::Explain { .. } | Action::Describe { .. } => {
            tracing::info!(action, pod = about(taken), %because, "decided");
        }
    }
}

/// What was decided, for the live page. What many pods are told alike is one step, so that a burst is read in a line.
pub fn steps(at: Instant, actions: &[Action]) -> Vec<Step> {
    let mut told: BTreeMap<String, (&Action, u32)> = BTreeMap::new();
    let step = |what, because| Step { at, level: Level::NodeAutoscaler, what, because };
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

#[cfg(test)]
mod tests {
    use ebb_core::reason::Reason;

    use super::*;

    #[test]
    fn a_burst_of_explanations_is_one_step() {
        let explain = |pod: &str, group: &str| Action::Explain {
            namespace: "default".into(),
            pod: pod.into(),
            uid: pod.into(),
            because: Reason::NodeComing { group: group.into() },
        };
        let raise = Action::SetDesired { group: "a".into(), from: 1, to: 2, because: Reason::BelowMinimum { min: 2 } };
        let steps = steps(Instant::from_millis(0), &[explain("p", "a"), raise, explain("q", "a"), explain("r", "b")]);
        let whats: Vec<_> = steps.iter().map(|step| step.what.as_str()).collect();
        assert_eq!(whats, ["raises a from 1 to 2 instances", "leaves 2 pods waiting", "leaves pod default/r waiting"]);
        assert_eq!(steps[1].because, "a node of group a is on its way");
    }
}
