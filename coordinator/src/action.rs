//! Actions in words, the same ones in logs and metrics.

use ebb_core::fleet::{Action, Failure};
use ebb_core::reason::Reason;

pub fn name(action: &Action) -> &'static str {
    match action {
        Action::CancelDrain { .. } => "cancel_drain",
        Action::Describe { .. } => "describe",
        Action::Drain { .. } => "drain",
        Action::Explain { .. } => "explain",
        Action::SetDesired { .. } => "set_desired",
        Action::Terminate { .. } => "terminate",
    }
}

/// The group, node or pod it is about.
pub fn about(action: &Action) -> String {
    match action {
        Action::CancelDrain { node, .. } | Action::Drain { node, .. } => node.clone(),
        Action::Describe { groups, .. } => groups.join(","),
        Action::Explain { namespace, pod, .. } => format!("{namespace}/{pod}"),
        Action::SetDesired { group, .. } | Action::Terminate { group, .. } => group.clone(),
    }
}

/// `None` for what changes nothing and so is no decision.
pub fn because(action: &Action) -> Option<&Reason> {
    match action {
        Action::CancelDrain { because, .. }
        | Action::Drain { because, .. }
        | Action::Explain { because, .. }
        | Action::SetDesired { because, .. }
        | Action::Terminate { because, .. } => Some(because),
        Action::Describe { .. } => None,
    }
}

pub fn failure(failure: Failure) -> &'static str {
    match failure {
        Failure::Conflict => "conflict",
        Failure::Denied => "denied",
        Failure::NotFound => "not_found",
        Failure::Rejected => "rejected",
        Failure::Throttled => "throttled",
        Failure::Unavailable => "unavailable",
    }
}

/// One line for each decision.
pub fn log(taken: &Action) {
    let Some(because) = because(taken) else {
        tracing::debug!(action = name(taken), groups = about(taken), "decided");
        return;
    };
    let action = name(taken);
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
