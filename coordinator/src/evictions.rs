//! Answers the API server, which asks before an agent evicts a pod where agents act as themselves (chart value
//! `agent.rights: admission`). What is allowed is said by `core::admission`; here it is only looked up.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use ebb_core::admission::{Eviction, NODE_NAME_CLAIM, NODE_UID_CLAIM, may_evict};
use k8s_openapi::api::authentication::v1::UserInfo;
use kube::Client;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::token::{claim, look};

/// Where the chart's webhook asks.
const PATH: &str = "/evictions";
/// API servers keep connections open and there are a handful of them; more is somebody else's mistake.
pub(crate) const CONNECTIONS: usize = 64;
/// Less than the webhook's own 5 s, so that what is wrong is said.
const LOOK_TIMEOUT: Duration = Duration::from_secs(4);

/// `account`: the agent's full user name.
pub(crate) fn router(client: Client, account: String) -> Router {
    Router::new().route(PATH, post(answer)).with_state(Asked { client, account: account.into() })
}

#[derive(Clone)]
struct Asked {
    client: Client,
    /// The agent's full user name.
    account: Arc<str>,
}

/// Of an `AdmissionReview` (admission.k8s.io/v1) what is looked at.
#[derive(Deserialize)]
struct Review {
    request: Request,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Request {
    uid: String,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    user_info: UserInfo,
    #[serde(default)]
    object: Value,
}

impl Request {
    fn eviction(&self) -> Eviction {
        Eviction {
            username: self.user_info.username.clone().unwrap_or_default(),
            node: claim(&self.user_info, NODE_NAME_CLAIM),
            node_uid: claim(&self.user_info, NODE_UID_CLAIM),
            pod_uid: self.object["deleteOptions"]["preconditions"]["uid"].as_str().map(str::to_owned),
        }
    }
}

async fn answer(State(asked): State<Asked>, Json(review): Json<Review>) -> Response {
    let request = review.request;
    let eviction = request.eviction();
    let looked = timeout(LOOK_TIMEOUT, look(&asked.client, &request.namespace, &request.name)).await;
    let looked = looked.map_err(|_| "no reply in time".to_owned());
    let found = match looked.and_then(|looked| looked.map_err(|error| error.to_string())) {
        Ok(found) => found,
        Err(error) => {
            // Neither yes nor no: the API server refuses by the webhook's failure policy, and the agent asks again.
            tracing::warn!(namespace = request.namespace, pod = request.name, error, "eviction not judged");
            return (StatusCode::SERVICE_UNAVAILABLE, format!("look the pod up: {error}")).into_response();
        }
    };
    let allowed = may_evict(&asked.account, &eviction, &found);
    let mut response = json!({"uid": request.uid, "allowed": allowed.is_ok()});
    if let Err(refusal) = allowed {
        let node = eviction.node;
        tracing::warn!(namespace = request.namespace, pod = request.name, node, %refusal, "eviction refused");
        response["status"] = json!({"code": 403, "reason": "Forbidden", "message": refusal.to_string()});
    }
    Json(json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response})).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(change: impl Fn(&mut Value)) -> Eviction {
        let mut review = json!({
            "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
            "request": {
                "uid": "r", "namespace": "ml", "name": "train-0",
                "userInfo": {"username": "agent", "extra": {NODE_NAME_CLAIM: ["n"], NODE_UID_CLAIM: ["n-uid"]}},
                "object": {"kind": "Eviction", "deleteOptions": {"preconditions": {"uid": "p-uid"}}},
            },
        });
        change(&mut review["request"]);
        serde_json::from_value::<Review>(review).unwrap().request.eviction()
    }

    #[test]
    fn a_review_is_read_and_what_is_no_single_claim_is_none() {
        let text = |text: &str| Some(text.to_owned());
        let expected =
            Eviction { username: "agent".into(), node: text("n"), node_uid: text("n-uid"), pod_uid: text("p-uid") };
        assert_eq!(read(|_| {}), expected);
        let no_node = || Eviction { node: None, ..expected.clone() };
        assert_eq!(read(|it| it["userInfo"]["extra"][NODE_NAME_CLAIM] = json!([])), no_node());
        assert_eq!(read(|it| it["userInfo"]["extra"][NODE_NAME_CLAIM] = json!([""])), no_node());
        assert_eq!(read(|it| it["userInfo"]["extra"][NODE_NAME_CLAIM] = json!(["n", "m"])), no_node());
        let unbound = Eviction { node_uid: None, ..no_node() };
        assert_eq!(read(|it| it["userInfo"]["extra"] = Value::Null), unbound);
        let no_uid = Eviction { pod_uid: None, ..expected.clone() };
        assert_eq!(read(|it| it["object"] = json!({"kind": "Eviction"})), no_uid);
        assert_eq!(read(|it| it["object"] = Value::Null), no_uid);
    }
}
