//! The own Node, as far as its drain cares.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1 as api;
use serde::{Deserialize, Serialize};

use super::hook::HookPhase;
use crate::intent::{INTENT_ANNOTATION, Intent, Phase, Progress};
use crate::kubernetes::{self, EXCLUDED_LABEL};
use crate::time::Instant;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Node {
    pub unschedulable: bool,
    /// Whether the label stands that takes it out of load balancers.
    pub excluded: bool,
    pub intent: Option<Intent>,
    /// What stands in the intent's place and is none: a person's words.
    pub request: Option<String>,
    pub progress: Option<Progress>,
    /// Whether the conditions `MaintenancePlanned`, `DrainInProgress` and `Drained` stand.
    pub planned: bool,
    pub draining: bool,
    pub drained: bool,
    pub blockers: Vec<Blocker>,
    /// Volumes that the attach-detach controller has attached to it, by name.
    pub attached: BTreeSet<String>,
    /// Of these, the ones that its kubelet has not unmounted.
    pub in_use: BTreeSet<String>,
}

/// An annotation `PHASE.ebb.dev/OWNER: TIME`: somebody's word that a phase is to wait, until it is removed or its time
/// has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Blocker {
    pub phase: HookPhase,
    pub owner: String,
    /// `None`: it names no time. It then blocks nothing, so that nothing is blocked for ever.
    pub until: Option<Instant>,
}

impl From<&api::Node> for Node {
    fn from(node: &api::Node) -> Self {
        let annotations = node.metadata.annotations.iter().flatten();
        let status = node.status.iter();
        let attached = status.clone().flat_map(|status| status.volumes_attached.iter().flatten());
        let in_use = status.flat_map(|status| status.volumes_in_use.iter().flatten());
        let known = Self::from(&kubernetes::Node::from(node));
        let said = node.metadata.annotations.as_ref().and_then(|all| all.get(INTENT_ANNOTATION));
        Self {
            request: said.filter(|_| known.intent.is_none()).cloned(),
            blockers: annotations.filter_map(|(key, value)| blocker(key, value)).collect(),
            attached: attached.map(|volume| volume.name.clone()).collect(),
            in_use: in_use.cloned().collect(),
            ..known
        }
    }
}

impl From<&kubernetes::Node> for Node {
    fn from(node: &kubernetes::Node) -> Self {
        Self {
            unschedulable: node.unschedulable,
            excluded: node.labels.contains_key(EXCLUDED_LABEL),
            intent: node.intent.clone(),
            progress: node.progress.clone(),
            planned: node.planned,
            draining: node.draining,
            drained: node.drained,
            ..Self::default()
        }
    }
}

impl Node {
    /// Whether its system need not be held up any longer. A drain that somebody planned is not the one for its shutdown,
    /// even if it is done.
    pub fn may_go_down(&self) -> bool {
        let is_for_loss = self.intent.as_ref().is_some_and(|intent| !intent.is_planned());
        is_for_loss && self.progress.as_ref().is_some_and(|progress| progress.phase == Phase::Drained)
    }
}

fn blocker(key: &str, value: &str) -> Option<Blocker> {
    let (phase, owner) = key.split_once(".ebb.dev/")?;
    let phase = HookPhase::BLOCKABLE.into_iter().find(|it| it.name() == phase)?;
    Some(Blocker { phase, owner: owner.to_owned(), until: value.parse().ok() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: serde_json::Value) -> Node {
        Node::from(&serde_json::from_value::<api::Node>(json).unwrap())
    }

    #[test]
    fn a_node_is_read_with_who_blocks_it_and_what_is_attached_to_it() {
        let node = read(serde_json::json!({
            "metadata": {
                "annotations": {
                    "ebb.dev/drain": "new kernel",
                    "pre-cordon.ebb.dev/postgres": "2026-11-24T03:00:00Z",
                    "pre-drain.ebb.dev/slurm": "true",
                    "on-cancel.ebb.dev/x": "2026-11-24T03:00:00Z",
                    "ebb.dev/other": "2026-11-24T03:00:00Z",
                },
                "labels": {"node.kubernetes.io/exclude-from-external-load-balancers": ""},
            },
            "status": {
                "volumesAttached": [{"name": "csi^vol-1", "devicePath": ""}, {"name": "csi^vol-2", "devicePath": ""}],
                "volumesInUse": ["csi^vol-2"],
                "conditions": [{"type": "MaintenancePlanned", "status": "True"}],
            },
        }));
        let at = Instant::from_millis(1_795_489_200_000);
        let blocker = |phase, owner: &str, until| Blocker { phase, owner: owner.to_owned(), until };
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let expected = Node {
            excluded: true,
            request: Some("new kernel".into()),
            planned: true,
            blockers: vec![
                blocker(HookPhase::PreCordon, "postgres", Some(at)),
                blocker(HookPhase::PreDrain, "slurm", None),
            ],
            attached: set(&["csi^vol-1", "csi^vol-2"]),
            in_use: set(&["csi^vol-2"]),
            ..Node::default()
        };
        assert_eq!(node, expected);
    }
}
