//! An eviction's request and what its answers mean.
//!
//! The body is our own: kube's `evict` writes `delete_options`, which the API server does not know and drops, and with
//! it the UID that keeps a pod of the same name from being evicted in place of the one that was meant.

use ebb_core::drain::EvictionOutcome;
use ebb_core::kubernetes::Pod;
use k8s_openapi::api::core::v1 as api;
use kube::api::{Api, PostParams};
use kube::core::Status;
use kube::{Client, Error};
use serde::de::IgnoredAny;
use serde_json::{Value, json};

pub fn body(namespace: &str, name: &str, uid: &str) -> Value {
    json!({
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": name, "namespace": namespace},
        "deleteOptions": {"preconditions": {"uid": uid}},
    })
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub outcome: EvictionOutcome,
    /// The API server's own words; empty if it said yes.
    pub reason: String,
}

/// What the API server would say to an eviction now. Nothing is evicted, and no budget spent.
///
/// # Errors
/// Where it gave no answer about the pod: it could not be reached, or whoever asks may not.
pub async fn dry_run(client: &Client, pod: &Pod) -> Result<Answer, Error> {
    let pods: Api<api::Pod> = Api::namespaced(client.clone(), &pod.namespace);
    let body = body(&pod.namespace, &pod.name, &pod.uid);
    let params = PostParams { dry_run: true, ..PostParams::default() };
    match pods.create_subresource::<_, IgnoredAny>("eviction", &pod.name, &params, &body).await {
        Ok(_) => Ok(Answer { outcome: EvictionOutcome::Accepted, reason: String::new() }),
        Err(Error::Api(status)) if !is_rbac(&status) => {
            Ok(Answer { outcome: outcome(&status), reason: reason(&status) })
        }
        Err(error) => Err(error),
    }
}

/// Whether the asker was refused, and not the eviction: admission comes later, and words it otherwise.
fn is_rbac(status: &Status) -> bool {
    status.code == 401 || status.code == 403 && status.message.contains(" cannot create resource ")
}

pub fn outcome(status: &Status) -> EvictionOutcome {
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
pub fn reason(status: &Status) -> String {
    let cause = causes(status).find(|cause| cause.reason == "DisruptionBudget").map(|cause| &cause.message);
    cause.filter(|message| !message.is_empty()).unwrap_or(&status.message).clone()
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
        let check = |json: Value, expected: EvictionOutcome, text: &str| {
            let status: Status = serde_json::from_value(json.clone()).unwrap();
            assert_eq!((outcome(&status), reason(&status).as_str()), (expected, text), "{json}");
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
        check(json!({"code": 403, "message": "no"}), EvictionOutcome::Refused, "no");
    }

    #[test]
    fn who_may_not_ask_is_told_from_what_may_not_be_evicted() {
        let check = |code: u16, message: &str, expected| {
            let status: Status = serde_json::from_value(json!({"code": code, "message": message})).unwrap();
            assert_eq!(is_rbac(&status), expected, "{message}");
        };
        let rbac = r#"pods "a" is forbidden: User "jane" cannot create resource "pods/eviction" in API group "" in the namespace "ml""#;
        check(403, rbac, true);
        check(403, r#"pods "a" is forbidden: node "x" can only evict pods with spec.nodeName set to itself"#, false);
        check(401, "Unauthorized", true);
    }
}
