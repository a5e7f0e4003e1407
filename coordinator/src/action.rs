//! Actions in log lines.

use ebb_core::fleet::{Action, RayGroup};

/// The group, node, pod or buffer it is about.
pub fn about(action: &Action) -> String {
    match action {
        Action::CancelDrain { node, .. } | Action::Drain { node, .. } => node.clone(),
        Action::CompleteLifecycle { instance, .. } | Action::Heartbeat { instance, .. } => instance.clone(),
        Action::Describe { groups, .. } => groups.join(","),
        Action::DrainRayNode { cluster, pod, .. } => format!("{cluster} {pod}"),
        Action::ReportRay { cluster, .. } | Action::ScaleRayCluster { cluster, .. } => cluster.clone(),
        Action::DeletePod { namespace, pod, .. } | Action::SetPodDeletionCost { namespace, pod, .. } => {
            format!("{namespace}/{pod}")
        }
        Action::Explain { namespace, pod, .. } => format!("{namespace}/{pod}"),
        Action::ShowBuffer { namespace, name, .. } | Action::ShowRayWorkerGroup { namespace, name, .. } => {
            format!("{namespace}/{name}")
        }
        Action::Launch { group, .. } | Action::SetDesired { group, .. } | Action::Terminate { group, .. } => {
            group.clone()
        }
    }
}

/// One line for each decision.
pub fn log(taken: &Action) {
    let Some(because) = taken.because() else {
        tracing::debug!(action = taken.name(), about = about(taken), "decided");
        return;
    };
    let action = taken.name();
    match taken {
        Action::Launch { group, zone, from, to, token, .. } => {
            tracing::info!(action, %group, %zone, from, to, %token, %because, "decided");
        }
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
        Action::CompleteLifecycle { group, instance, hook, node, .. } => {
            tracing::info!(action, %group, %instance, %hook, %node, %because, "decided");
        }
        Action::DrainRayNode { cluster, node, pod, .. } => {
            tracing::info!(action, %cluster, ray_node = %node, %pod, %because, "decided");
        }
        Action::ScaleRayCluster { cluster, groups, .. } => {
            for group in groups {
                let RayGroup { name, from, to, delete, .. } = group;
                tracing::info!(action, %cluster, group = %name, from, to, ?delete, %because, "decided");
            }
        }
        Action::DeletePod { .. }
        | Action::Explain { .. }
        | Action::Describe { .. }
        | Action::Heartbeat { .. }
        | Action::ReportRay { .. }
        | Action::SetPodDeletionCost { .. }
        | Action::ShowBuffer { .. }
        | Action::ShowRayWorkerGroup { .. } => {
            tracing::info!(action, pod = about(taken), %because, "decided");
        }
    }
}
