//! The patches of the own Node. Pure.
//!
//! Each names the resource version it was decided on, so that it fails rather than undo what somebody else did since.

use ebb_core::drain::{Condition, Edit, NodeChange};
use ebb_core::intent::{INTENT_ANNOTATION, PROGRESS_ANNOTATION, encode};
use ebb_core::kubernetes::EXCLUDED_LABEL;
use ebb_core::time::Instant;
use k8s_openapi::api::core::v1 as api;
use serde::Serialize;
use serde_json::{Map, Value, json};

/// What of the Node a patch must know.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Known {
    pub(super) uid: String,
    resource_version: String,
    conditions: Vec<api::NodeCondition>,
}

impl Known {
    /// Resource versions of one object can be compared as numbers (KEP-5504). One that is no number is taken as it
    /// comes: at worst a patch collides and is made again.
    pub(super) fn is_newer_than(&self, other: &Self) -> bool {
        match (self.resource_version.parse::<u64>(), other.resource_version.parse::<u64>()) {
            (Ok(this), Ok(other)) => this > other,
            _ => self.resource_version != other.resource_version,
        }
    }
}

impl From<&api::Node> for Known {
    fn from(node: &api::Node) -> Self {
        Self {
            uid: node.metadata.uid.clone().unwrap_or_default(),
            resource_version: node.metadata.resource_version.clone().unwrap_or_default(),
            conditions: node.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default(),
        }
    }
}

/// A merge patch of the Node: all in one, so that no cordon of ours is without its owner.
pub(super) fn node(known: &Known, change: &NodeChange) -> Value {
    let mut annotations = Map::new();
    annotate(&mut annotations, INTENT_ANNOTATION, &change.intent);
    annotate(&mut annotations, PROGRESS_ANNOTATION, &change.progress);
    let mut metadata = json!({"resourceVersion": known.resource_version, "annotations": annotations});
    if let Some(excluded) = change.excluded {
        metadata["labels"] = json!({EXCLUDED_LABEL: excluded.then_some("")});
    }
    let mut patch = json!({"metadata": metadata});
    if let Some(unschedulable) = change.unschedulable {
        patch["spec"] = json!({"unschedulable": unschedulable});
    }
    patch
}

fn annotate(annotations: &mut Map<String, Value>, key: &str, edit: &Edit<impl Serialize>) {
    let value = match edit {
        Edit::Keep => return,
        Edit::Remove => Value::Null,
        Edit::Set(value) => encode(value).into(),
    };
    annotations.insert(key.to_owned(), value);
}

/// A strategic merge patch of the Node's status: conditions are merged by type. The time of a transition is kept where
/// there is none.
pub(super) fn conditions(known: &Known, conditions: &[Condition], now: Instant) -> Value {
    let condition = |condition: &Condition| {
        let status = if condition.status { "True" } else { "False" };
        let before = known.conditions.iter().find(|old| old.type_ == condition.type_ && old.status == status);
        let transition = before.and_then(|old| old.last_transition_time.as_ref());
        json!({
            "type": condition.type_,
            "status": status,
            "reason": condition.reason,
            "message": condition.message,
            "lastHeartbeatTime": now,
            "lastTransitionTime": transition.map_or_else(|| json!(now), |time| json!(time)),
        })
    };
    let conditions: Vec<_> = conditions.iter().map(condition).collect();
    json!({"metadata": {"resourceVersion": known.resource_version}, "status": {"conditions": conditions}})
}

#[cfg(test)]
mod tests {
    use ebb_core::intent::{Phase, Progress};

    use super::*;

    fn known(node: Value) -> Known {
        Known::from(&serde_json::from_value::<api::Node>(node).unwrap())
    }

    #[test]
    fn cordon_and_progress_go_in_one_patch() {
        let known = known(json!({"metadata": {"resourceVersion": "7"}}));
        let progress =
            Progress { cordoned_by_us: true, ..Progress::new("d", Phase::Draining, Instant::from_millis(0)) };
        let change = NodeChange {
            unschedulable: Some(true),
            excluded: Some(true),
            progress: Edit::Set(progress),
            ..NodeChange::default()
        };
        let text = r#"{"id":"d","phase":"draining","since":"1970-01-01T00:00:00.000Z","cordonedByUs":true}"#;
        let expected = json!({
            "metadata": {
                "resourceVersion": "7",
                "annotations": {"ebb.dev/drain-progress": text},
                "labels": {"node.kubernetes.io/exclude-from-external-load-balancers": ""},
            },
            "spec": {"unschedulable": true},
        });
        assert_eq!(node(&known, &change), expected);
        let change = NodeChange { excluded: Some(false), progress: Edit::Remove, ..NodeChange::default() };
        let expected = json!({"metadata": {
            "resourceVersion": "7",
            "annotations": {"ebb.dev/drain-progress": null},
            "labels": {"node.kubernetes.io/exclude-from-external-load-balancers": null},
        }});
        assert_eq!(node(&known, &change), expected);
    }

    #[test]
    fn a_condition_that_stays_keeps_the_time_of_its_transition() {
        let known = known(json!({
            "metadata": {"resourceVersion": "7"},
            "status": {"conditions": [
                {"type": "Drained", "status": "False", "lastTransitionTime": "2026-01-01T00:00:00Z"},
                {"type": "DrainInProgress", "status": "False", "lastTransitionTime": "2026-01-01T00:00:00Z"},
            ]},
        }));
        let condition = |type_: &str, status| Condition {
            type_: type_.into(),
            status,
            reason: "DrainStarted".into(),
            message: "pods are being evicted".into(),
        };
        let patch = conditions(
            &known,
            &[condition("DrainInProgress", true), condition("Drained", false)],
            Instant::from_millis(1_795_489_200_000),
        );
        assert_eq!(patch["metadata"]["resourceVersion"], "7");
        let times: Vec<_> = (0..2).map(|at| &patch["status"]["conditions"][at]["lastTransitionTime"]).collect();
        assert_eq!(times, ["2026-11-24T03:00:00.000Z", "2026-01-01T00:00:00Z"]);
        assert_eq!(patch["status"]["conditions"][0]["status"], "True");
    }

    #[test]
    fn a_watch_that_is_behind_shows_nothing_newer() {
        let version = |version: &str| known(json!({"metadata": {"resourceVersion": version}}));
        assert!(version("10").is_newer_than(&version("9")));
        assert!(!version("9").is_newer_than(&version("10")));
        assert!(!version("9").is_newer_than(&version("9")));
        assert!(version("x").is_newer_than(&version("y")));
    }
}
