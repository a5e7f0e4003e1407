//! An eviction's request and what its answers mean.
//!
//! The body is our own: kube's `evict` writes `delete_options`, which the API server does not know and drops, and with
//! it the UID that keeps a pod of the same name from being evicted in place of the one that was meant.

use std::time::Duration;

use ebb_core::drain::{EvictionOutcome, Reply, Target};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, PostParams, Preconditions};
use kube::core::Status;
use kube::{Client, Error};
use serde::de::IgnoredAny;
use serde_json::{Value, json};

use crate::chain;

/// Longer than the API server tries to write a PodDisruptionBudget: 20 times every 500 ms.
const TIMEOUT: Duration = Duration::from_secs(30);

pub fn body(pod: &Target, grace: Option<Duration>) -> Value {
    json!({
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": pod.name, "namespace": pod.namespace},
        "deleteOptions": {"preconditions": {"uid": pod.uid}, "gracePeriodSeconds": grace.map(|grace| grace.as_secs())},
    })
}

/// `None`: no reply in time.
fn reply<T>(namespace: &str, result: Option<&Result<T, kube::Error>>) -> Reply {
    match result {
        Some(Ok(_)) => EvictionOutcome::Accepted.into(),
        Some(Err(kube::Error::Api(status))) => Reply {
            outcome: outcome(status),
            reason: reason(status),
            budget: budget(status).map(|budget| format!("{namespace}/{budget}")),
            retry_after: retry_after(status),
        },
        Some(Err(error)) => Reply { reason: chain(error), ..EvictionOutcome::Unavailable.into() },
        None => Reply { reason: "no reply in time".into(), ..EvictionOutcome::Unavailable.into() },
    }
}

fn outcome(status: &Status) -> EvictionOutcome {
    let has_cause = |reason: &str| causes(status).any(|cause| cause.reason == reason);
    match status.code {
        404 | 409 => EvictionOutcome::Gone,
        429 if has_cause("DisruptionBudget") => EvictionOutcome::Blocked,
        429 => EvictionOutcome::Throttled,
        // Two budgets for one pod: wrong until somebody changes one of them.
        500 if status.message.contains("more than one PodDisruptionBudget") => EvictionOutcome::Refused,
        500.. => EvictionOutcome::Unavailable,
        // Its controller will delete the pod.
        403 if has_cause("NamespaceTerminating") => EvictionOutcome::Unavailable,
        _ => EvictionOutcome::Refused,
    }
}

fn causes(status: &Status) -> impl Iterator<Item = &kube::core::response::StatusCause> {
    status.details.iter().flat_map(|details| &details.causes)
}

/// The budget's own account ("needs 2 healthy pods and has 2 currently") says more than the message.
fn reason(status: &Status) -> String {
    account(status).filter(|message| !message.is_empty()).unwrap_or(&status.message).clone()
}

fn account(status: &Status) -> Option<&String> {
    causes(status).find(|cause| cause.reason == "DisruptionBudget").map(|cause| &cause.message)
}

/// "The disruption budget NAME needs …": the only place where it is named.
fn budget(status: &Status) -> Option<&str> {
    account(status)?.strip_prefix("The disruption budget ")?.split(' ').next()
}

fn retry_after(status: &Status) -> Option<Duration> {
    let seconds = status.details.as_ref()?.retry_after_seconds;
    (seconds > 0).then(|| Duration::from_secs(seconds.into()))
}

/// Evicts a pod. `grace`: less than its own.
pub async fn evict(client: &Client, pod: &Target, grace: Option<Duration>) -> Reply {
    reply(&pod.namespace, ask(client, pod, grace, false).await.as_ref())
}

/// What the API server would say to an eviction now. Nothing is evicted, and no budget spent.
///
/// # Errors
/// Where whoever asks may not: that says nothing of the pod.
pub async fn dry_run(client: &Client, pod: &Target) -> Result<Reply, Error> {
    match ask(client, pod, None, true).await {
        Some(Err(Error::Api(status))) if is_rbac(&status) => Err(Error::Api(status)),
        result => Ok(reply(&pod.namespace, result.as_ref())),
    }
}

/// Deletes a pod past its budget.
pub async fn delete(client: &Client, pod: &Target, grace: Duration) -> Reply {
    let pods: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace);
    let params = DeleteParams {
        grace_period_seconds: u32::try_from(grace.as_secs()).ok(),
        preconditions: Some(Preconditions { uid: Some(pod.uid.clone()), ..Preconditions::default() }),
        ..DeleteParams::default()
    };
    let result = tokio::time::timeout(TIMEOUT, pods.delete(&pod.name, &params)).await;
    reply(&pod.namespace, result.as_ref().ok())
}

async fn ask(
    client: &Client,
    pod: &Target,
    grace: Option<Duration>,
    dry_run: bool,
) -> Option<Result<IgnoredAny, Error>> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace);
    let params = PostParams { dry_run, ..PostParams::default() };
    let body = body(pod, grace);
    let request = pods.create_subresource("eviction", &pod.name, &params, &body);
    tokio::time::timeout(TIMEOUT, request).await.ok()
}

/// Whether the asker was refused, and not the eviction: admission comes later, and words it otherwise.
fn is_rbac(status: &Status) -> bool {
    status.code == 401 || status.code == 403 && status.message.contains(" cannot create resource ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_body_names_the_pod_by_uid_as_the_api_spells_it() {
        let pod = Target { namespace: "shop".into(), name: "web-0".into(), uid: "u-1".into() };
        let expected = r#"{"apiVersion":"policy/v1","deleteOptions":{"gracePeriodSeconds":null,"preconditions":{"uid":"u-1"}},"kind":"Eviction","metadata":{"name":"web-0","namespace":"shop"}}"#;
        assert_eq!(body(&pod, None).to_string(), expected);
        assert_eq!(body(&pod, Some(Duration::from_secs(7)))["deleteOptions"]["gracePeriodSeconds"], 7);
    }

    fn read(json: &Value) -> Reply {
        let status: Status = serde_json::from_value(json.clone()).unwrap();
        reply("shop", Some(&Err::<(), _>(kube::Error::Api(status.boxed()))))
    }

    /// As `pkg/registry/core/pod/storage/eviction.go` of Kubernetes answers.
    #[test]
    fn every_answer_of_the_eviction_api_has_its_meaning() {
        let check = |json: Value, expected: EvictionOutcome, reason: &str| {
            let Reply { outcome, reason: said, .. } = read(&json);
            assert_eq!((outcome, said.as_str()), (expected, reason), "{json}");
        };
        let cause = |reason: &str, message: &str| json!({"causes": [{"reason": reason, "message": message}]});
        let message = "Cannot evict pod as it would violate the pod's disruption budget.";
        let account = "The disruption budget web needs 2 healthy pods and has 2 currently";
        check(
            json!({"code": 429, "message": message, "details": cause("DisruptionBudget", account)}),
            EvictionOutcome::Blocked,
            account,
        );
        check(json!({"code": 429, "message": "slow down"}), EvictionOutcome::Throttled, "slow down");
        check(json!({"code": 404, "message": "not found"}), EvictionOutcome::Gone, "not found");
        check(json!({"code": 409, "message": "uid"}), EvictionOutcome::Gone, "uid");
        let two = "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.";
        check(json!({"code": 500, "message": two}), EvictionOutcome::Refused, two);
        check(json!({"code": 500, "message": "etcd"}), EvictionOutcome::Unavailable, "etcd");
        check(json!({"code": 503, "message": "later"}), EvictionOutcome::Unavailable, "later");
        check(json!({"code": 504, "message": "timeout"}), EvictionOutcome::Unavailable, "timeout");
        check(json!({"code": 403, "message": "not your node"}), EvictionOutcome::Refused, "not your node");
        let going = cause("NamespaceTerminating", "namespace shop is being terminated");
        check(json!({"code": 403, "message": "going", "details": going}), EvictionOutcome::Unavailable, "going");
        check(json!({"code": 422, "message": "invalid"}), EvictionOutcome::Refused, "invalid");
        assert_eq!(reply("shop", Some(&Ok(()))).outcome, EvictionOutcome::Accepted);
        assert_eq!(reply::<()>("shop", None).outcome, EvictionOutcome::Unavailable);
    }

    #[test]
    fn a_budget_is_known_by_name_and_a_pause_that_is_asked_for_is_kept() {
        let account = "The disruption budget web is still being processed by the server.";
        let details = json!({"causes": [{"reason": "DisruptionBudget", "message": account}], "retryAfterSeconds": 10});
        let Reply { budget, retry_after, .. } = read(&json!({"code": 429, "message": "no", "details": details}));
        assert_eq!((budget.as_deref(), retry_after), (Some("shop/web"), Some(Duration::from_secs(10))));
        let Reply { budget, retry_after, .. } =
            read(&json!({"code": 429, "message": "no", "details": {"retryAfterSeconds": 1}}));
        assert_eq!((budget, retry_after), (None, Some(Duration::from_secs(1))));
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
