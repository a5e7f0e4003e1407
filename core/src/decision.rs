//! Decisions as programs and people are told of them: what is done, and why, for the ones and in words for the others.

use serde::{Deserialize, Serialize};

use crate::fleet::Action;
use crate::reason::Reason;
use crate::time::Instant;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Decision {
    pub at: Instant,
    pub action: Action,
    /// The action in words.
    pub what: String,
    /// The reason's name ([`Reason::name`]).
    pub reason: String,
    /// The reason in words.
    pub because: String,
}

/// A coordinator's answer when it is asked for its decisions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Decisions {
    /// By the coordinator's clock.
    pub now: Instant,
    /// The newest first.
    pub decisions: Vec<Decision>,
}

impl Decision {
    /// `None`: the action changes nothing and so is no decision.
    pub fn new(at: Instant, action: &Action) -> Option<Self> {
        let because = action.because()?;
        Some(Self {
            at,
            action: action.clone(),
            what: action.describe(),
            reason: because.name().to_owned(),
            because: because.to_string(),
        })
    }

    /// Whether it changes the group, or one of these nodes of it.
    pub fn changes_group(&self, group: &str, nodes: &[&str]) -> bool {
        match &self.action {
            Action::CompleteLifecycle { group: changed, .. }
            | Action::Launch { group: changed, .. }
            | Action::SetDesired { group: changed, .. }
            | Action::Terminate { group: changed, .. } => changed == group,
            Action::CancelDrain { node, .. } | Action::Drain { node, .. } => nodes.contains(&node.as_str()),
            Action::DeletePod { .. }
            | Action::Describe { .. }
            | Action::DrainRayNode { .. }
            | Action::Explain { .. }
            | Action::Heartbeat { .. }
            | Action::ReportRay { .. }
            | Action::ScaleRayCluster { .. }
            | Action::SetPodDeletionCost { .. }
            | Action::ShowBuffer { .. }
            | Action::ShowRayWorkerGroup { .. } => false,
        }
    }

    pub fn is_about_node(&self, name: &str) -> bool {
        match &self.action {
            Action::CancelDrain { node, .. }
            | Action::CompleteLifecycle { node, .. }
            | Action::Drain { node, .. }
            | Action::Terminate { node, .. } => node == name,
            Action::DeletePod { because: Reason::LeftOver { node }, .. }
            | Action::Explain { because: Reason::SchedulerToPlace { node }, .. } => node == name,
            Action::DeletePod { .. }
            | Action::Describe { .. }
            | Action::DrainRayNode { .. }
            | Action::Explain { .. }
            | Action::Heartbeat { .. }
            | Action::Launch { .. }
            | Action::ReportRay { .. }
            | Action::ScaleRayCluster { .. }
            | Action::SetDesired { .. }
            | Action::SetPodDeletionCost { .. }
            | Action::ShowBuffer { .. }
            | Action::ShowRayWorkerGroup { .. } => false,
        }
    }

    /// `name`: `NAMESPACE/NAME`.
    pub fn is_about_pod(&self, name: &str) -> bool {
        let of_action = match &self.action {
            Action::DeletePod { namespace, pod, .. } | Action::Explain { namespace, pod, .. } => {
                name.split_once('/') == Some((namespace, pod))
            }
            Action::DrainRayNode { cluster, pod, .. } => {
                // They are of one namespace.
                let namespace = cluster.split_once('/').map(|(namespace, _)| namespace);
                name.split_once('/')
                    .is_some_and(|name| namespace.map(|namespace| (namespace, pod.as_str())) == Some(name))
            }
            _ => false,
        };
        let of_reason = match self.action.because() {
            Some(Reason::CapacityNeeded { pod } | Reason::PodsPending { first: pod, .. }) => pod == name,
            _ => false,
        };
        of_action || of_reason
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn decision(action: Action) -> Decision {
        Decision::new(Instant::from_millis(0), &action).unwrap()
    }

    #[test]
    fn a_decision_is_found_by_what_it_is_about() {
        let raise = decision(Action::SetDesired {
            group: "a".into(),
            from: 1,
            to: 2,
            because: Reason::PodsPending { count: 2, first: "default/p".into(), longest: Duration::from_secs(30) },
        });
        assert!(raise.changes_group("a", &[]) && raise.is_about_pod("default/p") && !raise.is_about_node("a"));
        let cancel = decision(Action::CancelDrain {
            node: "n".into(),
            uid: "u".into(),
            id: "d".into(),
            because: Reason::CapacityNeeded { pod: "default/p".into() },
        });
        assert!(cancel.is_about_node("n") && cancel.is_about_pod("default/p"));
        assert!(cancel.changes_group("a", &["n"]) && !cancel.changes_group("a", &["m"]));
        let told = decision(Action::Explain {
            namespace: "default".into(),
            pod: "p".into(),
            uid: "u".into(),
            because: Reason::SchedulerToPlace { node: "n".into() },
        });
        assert!(told.is_about_pod("default/p") && !told.is_about_pod("other/p") && told.is_about_node("n"));
        assert!(Decision::new(told.at, &Action::Describe { groups: Vec::new(), at: told.at }).is_none());
    }

    #[test]
    fn programs_read_the_reason_by_its_name() {
        let action = Action::Terminate {
            group: "a".into(),
            instance: "i-1".into(),
            node: "n".into(),
            because: Reason::Drained { took: Duration::from_secs(90) },
        };
        let json = serde_json::to_value(decision(action)).unwrap();
        assert_eq!((&json["reason"], &json["because"]), (&"Drained".into(), &"drained in 1m30s".into()));
        assert_eq!(json["action"]["terminate"]["node"], "n");
    }
}
