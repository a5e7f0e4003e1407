//! An eviction's request and what its answers mean. Pure.
//!
//! The body is our own: kube's `evict` writes `delete_options`, which the API server does not know and drops, and with
//! it the UID that keeps a pod of the same name from being evicted in place of the one that was meant.

use ebb_core::drain::EvictionOutcome;
use kube::core::Status;
use serde_json::{Value, json};

pub(super) fn body(namespace: &str, name: &str, uid: &str) -> Value {
    json!({
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": name, "namespace": namespace},
        "deleteOptions": {"preconditions": {"uid": uid}},
    })
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) outcome: EvictionOutcome,
    /// The API server's own words; empty if it said yes, or nothing.
    pub(super) reason: String,
}

/// `None`: no reply in time.
pub(super) fn answer<T>(result: Option<&Result<T, kube::Error>>) -> Answer {
    match result {
        Some(Ok(_)) => Answer { outcome: EvictionOutcome::Accepted, reason: String::new() },
        Some(Err(kube::Error::Api(status))) => Answer { outcome: outcome(status), reason: reason(status) },
        Some(Err(error)) => Answer { outcome: EvictionOutcome::Unavailable, reason: crate::health::chain(error) },
        None => Answer { outcome: EvictionOutcome::Unavailable, reason: "no reply in time".into() },
    }
}

fn outcome(status: &Status) -> EvictionOutcome {
    let budget = || causes(status).any(|cause| cause.reason == "DisruptionBudget");
    match status.code {
        404 | 409 => EvictionOutcome::Gone,
        429 if budget() => EvictionOutcome::Blocked,
        429 => EvictionOutcome::Unavailable,
        // Two budgets for one pod: wrong until somebody changes one of them.
        500 if status.message.contains("more than one PodDisruptionBudget") => EvictionOutcome::Refused,
        500.. => EvictionOutcome::Unavailable,
        _ => EvictionOutcome::Refused,
    }
}

fn causes(status: &Status) -> impl Iterator<Item = &kube::core::response::StatusCause> {
    status.details.iter().flat_map(|details| &details.causes)
}

/// The budget's own account ("needs 2 healthy pods and has 2 currently") says more than the message.
fn reason(status: &Status) -> String {
    let cause = causes(status).find(|cause| cause.reason == "DisruptionBudget").map(|cause| &cause.message);
    cause.filter(|message| !message.is_empty()).unwrap_or(&status.message).clone()
}

/// A closed set, for metrics and logs.
pub(super) fn label(outcome: EvictionOutcome) -> &'static str {
    match outcome {
        EvictionOutcome::Accepted => "accepted",
        EvictionOutcome::Blocked => "blocked",
        EvictionOutcome::Gone => "gone",
        EvictionOutcome::Refused => "refused",
        EvictionOutcome::Unavailable => "unavailable",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_body_names_the_pod_by_uid_as_the_api_spells_it() {
        let expected = r#"{"apiVersion":"policy/v1","deleteOptions":{"preconditions":{"uid":"u-1"}},"kind":"Eviction","metadata":{"name":"web-0","namespace":"shop"}}"#;
        assert_eq!(body("shop", "web-0", "u-1").to_string(), expected);
    }

    #[test]
    fn every_answer_of_the_eviction_api_has_its_meaning() {
        let check = |json: Value, expected: EvictionOutcome, reason: &str| {
            let status: Status = serde_json::from_value(json.clone()).unwrap();
            let result: Result<(), _> = Err(kube::Error::Api(status.boxed()));
            let expected = Answer { outcome: expected, reason: reason.into() };
            assert_eq!(answer(Some(&result)), expected, "{json}");
        };
        let budget = json!({"causes": [{"reason": "DisruptionBudget", "message": "needs 2 healthy pods and has 2"}]});
        let message = "Cannot evict pod as it would violate the pod's disruption budget.";
        check(
            json!({"code": 429, "message": message, "details": budget}),
            EvictionOutcome::Blocked,
            "needs 2 healthy pods and has 2",
        );
        check(json!({"code": 429, "message": "slow down"}), EvictionOutcome::Unavailable, "slow down");
        check(json!({"code": 404, "message": "not found"}), EvictionOutcome::Gone, "not found");
        check(json!({"code": 409, "message": "uid"}), EvictionOutcome::Gone, "uid");
        let two = "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.";
        check(json!({"code": 500, "message": two}), EvictionOutcome::Refused, two);
        check(json!({"code": 500, "message": "etcd"}), EvictionOutcome::Unavailable, "etcd");
        check(json!({"code": 503, "message": "later"}), EvictionOutcome::Unavailable, "later");
        check(json!({"code": 504, "message": "timeout"}), EvictionOutcome::Unavailable, "timeout");
        check(json!({"code": 403, "message": "not your node"}), EvictionOutcome::Refused, "not your node");
        check(json!({"code": 422, "message": "invalid"}), EvictionOutcome::Refused, "invalid");
        assert_eq!(answer(Some(&Ok(()))).outcome, EvictionOutcome::Accepted);
        assert_eq!(answer::<()>(None).outcome, EvictionOutcome::Unavailable);
    }
}
