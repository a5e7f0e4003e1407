//! Writes for agents that may write nothing themselves (chart value `agent.rights: brokered`): serves what a drain writes to
//! under the API server's own addresses, sends it on with the coordinator's rights, and gives back what the API server says.
//!
//! Whose node it is and what may be written is said by `core::broker` and `core::admission`; here it is only looked up.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Path, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, patch, post};
use ebb_core::admission::{Eviction, may_evict};
use ebb_core::broker::{self, FIELD_MANAGER, Own, Refusal, Removal};
use ebb_kubernetes::{chain, eviction};
use kube::Client;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::metrics::{Brokered, Metrics};
use crate::token::{self, Denied, Review, Tokens};

/// Neither the API server's nor that of the agents' reports: a token that is shown here is worth nothing there.
pub(crate) const AUDIENCE: &str = "ebb-broker";
/// An agent asks for twenty evictions at a time, each on a connection: some fifty nodes that drain at once. More wait.
pub(crate) const CONNECTIONS: usize = 1024;
/// The API server takes annotations of 256 KiB in all, which JSON within JSON may double.
const BODY_BYTES: usize = 512 << 10;
/// Of a Node. The API server keeps objects of 1.5 MiB.
const ANSWER_BYTES: usize = 8 << 20;
/// Both together less than the 30 s for which an agent waits, so that what is wrong is said; and the latter longer than
/// the API server tries to write a PodDisruptionBudget.
const CHECK_TIMEOUT: Duration = Duration::from_secs(8);
const SEND_TIMEOUT: Duration = Duration::from_secs(20);

pub(crate) struct Broker<R> {
    pub(crate) tokens: Tokens<R>,
    /// Asks the API server once: a 429 is an answer, and when to ask again is the drain's to say.
    pub(crate) client: Client,
    /// The agent's full user name.
    pub(crate) account: String,
    pub(crate) metrics: Arc<Metrics>,
}

pub(crate) fn router<R: Review>(broker: Broker<R>) -> Router {
    type Shared<R> = State<Arc<Broker<R>>>;
    type Named = Path<(String, String)>;
    let node = async |State(broker): Shared<R>, Path(name): Path<String>, request: Request| {
        broker.answer(Call::PatchNode(name), request).await
    };
    let status = async |State(broker): Shared<R>, Path(name): Path<String>, request: Request| {
        broker.answer(Call::PatchStatus(name), request).await
    };
    let evict = async |State(broker): Shared<R>, Path((namespace, name)): Named, request: Request| {
        broker.answer(Call::Evict(namespace, name), request).await
    };
    let remove = async |State(broker): Shared<R>, Path((namespace, name)): Named, request: Request| {
        broker.answer(Call::Delete(namespace, name), request).await
    };
    let beyond = async |State(broker): Shared<R>, request: Request| broker.answer(Call::Other, request).await;
    Router::new()
        .route("/api/v1/nodes/{name}", patch(node))
        .route("/api/v1/nodes/{name}/status", patch(status))
        .route("/api/v1/namespaces/{namespace}/pods/{name}", delete(remove))
        .route("/api/v1/namespaces/{namespace}/pods/{name}/eviction", post(evict))
        .fallback(beyond)
        .method_not_allowed_fallback(beyond)
        .with_state(Arc::new(broker))
}

/// What is asked for, by its address.
enum Call {
    PatchNode(String),
    PatchStatus(String),
    Evict(String, String),
    Delete(String, String),
    Other,
}

impl Call {
    fn name(&self) -> &'static str {
        match self {
            Self::PatchNode(_) => "patch_node",
            Self::PatchStatus(_) => "patch_status",
            Self::Evict(..) => "evict",
            Self::Delete(..) => "delete",
            Self::Other => "other",
        }
    }
}

/// What is sent on to the API server.
type Outgoing = axum::http::Request<Vec<u8>>;

struct Checked {
    request: Outgoing,
    dry_run: bool,
}

/// Why a request is not sent on, or has no answer.
#[derive(Debug, thiserror::Error)]
enum Problem {
    #[error("{0}")]
    Unauthenticated(String),
    #[error("the coordinator does not write this for an agent: {0}")]
    Refused(String),
    #[error("the coordinator cannot read the request: {0}")]
    Malformed(String),
    #[error("the coordinator cannot write this now, ask again: {0}")]
    Unavailable(String),
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal.to_string())
    }
}

impl From<Denied> for Problem {
    fn from(denied: Denied) -> Self {
        match denied {
            Denied::Unauthenticated(_) => Self::Unauthenticated(denied.to_string()),
            Denied::NotAgent(_) | Denied::Refused(_) => Self::Refused(denied.to_string()),
            Denied::Unavailable(_) => Self::Unavailable(denied.to_string()),
        }
    }
}

impl Problem {
    fn result(&self) -> Brokered {
        match self {
            Self::Unauthenticated(_) => Brokered::Unauthenticated,
            Self::Refused(_) => Brokered::Refused,
            Self::Malformed(_) => Brokered::Malformed,
            Self::Unavailable(_) => Brokered::Unavailable,
        }
    }
}

impl IntoResponse for Problem {
    /// As the API server would say it.
    fn into_response(self) -> Response {
        let (code, reason) = match self {
            Self::Unauthenticated(_) => (StatusCode::UNAUTHORIZED, "Unauthorized"),
            Self::Refused(_) => (StatusCode::FORBIDDEN, "Forbidden"),
            Self::Malformed(_) => (StatusCode::BAD_REQUEST, "BadRequest"),
            Self::Unavailable(_) => (StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable"),
        };
        let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.to_string(), "reason": reason, "code": code.as_u16()});
        (code, axum::Json(status)).into_response()
    }
}

impl<R: Review> Broker<R> {
    async fn answer(&self, call: Call, request: Request) -> Response {
        let name = call.name();
        let mut own = None;
        let checked = timeout(CHECK_TIMEOUT, self.check(call, request, &mut own)).await;
        let checked = checked.unwrap_or_else(|_| Err(Problem::Unavailable("it took too long to look at".to_owned())));
        let node = own.map(|own| own.node);
        let answer = match checked {
            Ok(Checked { request, dry_run }) => {
                let path = request.uri().path().to_owned();
                let answer = self.send(request).await;
                match &answer {
                    // The API server's own audit names us, and not who asked.
                    Ok(response) if response.status().is_success() && !dry_run => {
                        tracing::info!(node, call = name, path, "written for an agent");
                    }
                    Ok(response) => {
                        let code = response.status().as_u16();
                        tracing::debug!(node, call = name, path, code, dry_run, "asked for an agent");
                    }
                    Err(_) => {}
                }
                answer
            }
            Err(problem) => Err(problem),
        };
        let (result, response) = match answer {
            Ok(response) if response.status().is_success() => (Brokered::Done, response),
            Ok(response) => (Brokered::Answered, response),
            Err(problem) => {
                tracing::warn!(node, call = name, error = %problem, "not written for an agent");
                (problem.result(), problem.into_response())
            }
        };
        self.metrics.brokered(name, result);
        response
    }

    /// What is to be sent on, where it may be. `known`: whose it is, as soon as that is known.
    async fn check(&self, call: Call, request: Request, known: &mut Option<Own>) -> Result<Checked, Problem> {
        let authorization = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let token = authorization.and_then(|text| text.strip_prefix("Bearer "));
        let token = token.ok_or_else(|| Problem::Unauthenticated("expected a bearer token".to_owned()))?;
        let own = known.insert(self.tokens.agent_now(token).await?).clone();
        let query = request.uri().query().unwrap_or_default();
        let mut dry_run = broker::is_dry_run(form_urlencoded::parse(query.as_bytes()))?;
        let content_type = request.headers().get(header::CONTENT_TYPE).cloned();
        let body = to_bytes(request.into_body(), BODY_BYTES).await;
        let body =
            body.map_err(|error| Problem::Malformed(format!("{}, of {BODY_BYTES} bytes at most", chain(&error))))?;
        // Of a key that is there twice only one is seen here, so what was read is sent on, and not what was sent.
        let read = || serde_json::from_slice::<Value>(&body).map_err(|error| Problem::Malformed(error.to_string()));

        let parameters =
            PatchParams { dry_run, field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        let nodes = kube::api::Request::new("/api/v1/nodes");
        let request = match call {
            Call::PatchNode(name) => {
                let patch = Patch::Merge(broker::node_patch(&own, &name, read()?)?);
                nodes.patch(&own.node, &parameters, &patch)
            }
            Call::PatchStatus(name) => {
                let patch = Patch::Strategic(broker::status_patch(&own, &name, read()?)?);
                nodes.patch_subresource("status", &own.node, &parameters, &patch)
            }
            Call::Evict(namespace, name) => {
                let Removal { pod, grace_seconds, .. } = broker::eviction(&namespace, &name, &read()?)?;
                self.is_on_node(&own, &pod).await?;
                let body = eviction::body(&pod, grace_seconds.map(|seconds| Duration::from_secs(seconds.into())));
                let parameters = PostParams { dry_run, ..PostParams::default() };
                pods(&pod.namespace).create_subresource(
                    "eviction",
                    &pod.name,
                    &parameters,
                    body.to_string().into_bytes(),
                )
            }
            Call::Delete(namespace, name) => {
                let removal = broker::deletion(&namespace, &name, &read()?)?;
                self.is_on_node(&own, &removal.pod).await?;
                dry_run |= removal.dry_run;
                let parameters = DeleteParams {
                    dry_run,
                    grace_period_seconds: removal.grace_seconds,
                    preconditions: Some(Preconditions { uid: Some(removal.pod.uid), ..Preconditions::default() }),
                    ..DeleteParams::default()
                };
                pods(&removal.pod.namespace).delete(&removal.pod.name, &parameters)
            }
            Call::Other => return Err(Problem::Refused("a drain does not write there".to_owned())),
        };
        let request = request.map_err(|error| Problem::Malformed(chain(&error)))?;
        // The same body as another type of patch would mean something else.
        let expected = request.headers().get(header::CONTENT_TYPE);
        if expected != content_type.as_ref() {
            let expected = expected.and_then(|value| value.to_str().ok()).unwrap_or_default();
            return Err(Problem::Malformed(format!("expected the content type {expected}")));
        }
        Ok(Checked { request, dry_run })
    }

    async fn is_on_node(&self, own: &Own, pod: &ebb_core::drain::Target) -> Result<(), Problem> {
        let found = token::look(&self.client, &pod.namespace, &pod.name).await;
        let found = found.map_err(|error| Problem::Unavailable(format!("look the pod up: {}", chain(&error))))?;
        let eviction = Eviction {
            username: self.account.clone(),
            node: Some(own.node.clone()),
            node_uid: Some(own.node_uid.clone()),
            pod_uid: Some(pod.uid.clone()),
        };
        Ok(may_evict(&self.account, &eviction, &found).map_err(Refusal::from)?)
    }

    async fn send(&self, request: Outgoing) -> Result<Response, Problem> {
        let unavailable = |why: Cow<str>| Problem::Unavailable(format!("send it on to the API server: {why}"));
        let send = async {
            let answer = self.client.send(request.map(kube::client::Body::from)).await;
            let (head, body) = answer.map_err(|error| unavailable(chain(&error).into()))?.into_parts();
            if head.status == StatusCode::UNAUTHORIZED {
                return Err(unavailable("it does not take the coordinator's own token".into()));
            }
            let body = to_bytes(Body::new(body), ANSWER_BYTES).await;
            let body = body.map_err(|error| unavailable(chain(&error).into()))?;
            let mut response = (head.status, body).into_response();
            response.headers_mut().remove(header::CONTENT_TYPE);
            for name in [header::CONTENT_TYPE, header::RETRY_AFTER, header::WARNING] {
                let values = head.headers.get_all(&name).iter().cloned();
                values.for_each(|value| _ = response.headers_mut().append(&name, value));
            }
            Ok(response)
        };
        timeout(SEND_TIMEOUT, send).await.unwrap_or_else(|_| Err(unavailable("no reply in time".into())))
    }
}

fn pods(namespace: &str) -> kube::api::Request {
    kube::api::Request::new(format!("/api/v1/namespaces/{namespace}/pods"))
}

#[cfg(test)]
mod tests;
