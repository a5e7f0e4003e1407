//! Answers agents that drain their node and ask about Ray on it, and has the heads drain Ray's nodes there. Served beside
//! the reports, to the same agents, by the same tokens. What is asked and how long is waited is the core's to say.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use ebb_core::broker::Own;
use ebb_core::ray::node_drain::{Answer, InVain, OnNode, Worker};
use ebb_core::ray::{DrainReason, Drained};
use ebb_core::time::Instant;
use ebb_proto::RAY_HOOK;
use futures::future::join_all;
use serde::Deserialize;

use super::Gcs;
use crate::clock::Clock;
use crate::driver::{self, Queries, Query};
use crate::metrics::{Metrics, RayDrain};
use crate::standing::Standing;
use crate::token::{Denied, Review, Tokens};

/// What an agent sends is some hundred bytes and a person's reason.
const BODY_BYTES: usize = 64 << 10;
/// Heads are asked once a second, so news of them are as old.
const ASK_AGAIN: Duration = Duration::from_secs(1);

pub(crate) struct NodeDrains<R> {
    pub(crate) tokens: Arc<Tokens<R>>,
    /// By cluster.
    pub(crate) heads: BTreeMap<String, Arc<Gcs>>,
    pub(crate) queries: Queries,
    pub(crate) standing: Standing,
    pub(crate) clock: Clock,
    pub(crate) in_vain: Mutex<InVain>,
    pub(crate) metrics: Arc<Metrics>,
}

/// Of what hooks are told.
#[derive(Deserialize)]
struct Asked {
    node: String,
    reason: String,
    /// What is left then is evicted.
    until: Instant,
}

#[derive(Debug, thiserror::Error)]
enum Problem {
    #[error("the coordinator does not tell this agent: {0}")]
    Denied(#[from] Denied),
    #[error("the coordinator is asked about node {asked} with a token of {own}")]
    WrongNode { asked: String, own: String },
    #[error("the coordinator cannot say now: {0}")]
    Unavailable(&'static str),
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = match &self {
            Self::Denied(Denied::Unauthenticated(_)) => StatusCode::UNAUTHORIZED,
            Self::Denied(Denied::NotAgent(_) | Denied::Refused(_)) | Self::WrongNode { .. } => StatusCode::FORBIDDEN,
            Self::Denied(Denied::Unavailable(_)) | Self::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
        };
        (status, self.to_string()).into_response()
    }
}

pub(crate) fn router<R: Review>(drains: NodeDrains<R>) -> Router {
    type Shared<R> = State<Arc<NodeDrains<R>>>;
    let answer = async |State(drains): Shared<R>, headers: HeaderMap, Json(asked): Json<Asked>| match drains
        .answer(&headers, &asked)
        .await
    {
        Ok(answer) => respond(answer),
        Err(problem) => {
            tracing::warn!(node = asked.node, error = %problem, "not told about Ray");
            problem.into_response()
        }
    };
    Router::new().route(RAY_HOOK, post(answer)).layer(DefaultBodyLimit::max(BODY_BYTES)).with_state(Arc::new(drains))
}

fn respond(answer: Answer) -> Response {
    match answer {
        Answer::Done => StatusCode::NO_CONTENT.into_response(),
        Answer::Wait(why) => (StatusCode::ACCEPTED, [(header::RETRY_AFTER, ASK_AGAIN.as_secs())], why).into_response(),
        Answer::PassOver(why) => (StatusCode::BAD_GATEWAY, why).into_response(),
    }
}

impl<R: Review> NodeDrains<R> {
    async fn answer(&self, headers: &HeaderMap, asked: &Asked) -> Result<Answer, Problem> {
        if !self.standing.leads() || !self.standing.synced() {
            return Err(Problem::Unavailable("another leads, or it has not seen the whole cluster yet"));
        }
        let header = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let token = header.and_then(|header| header.strip_prefix("Bearer "));
        let token = token.ok_or_else(|| Denied::Unauthenticated("expected a bearer token".into()))?;
        let own = self.tokens.agent(token).await?;
        if own.node != asked.node {
            return Err(Problem::WrongNode { asked: asked.node.clone(), own: own.node });
        }
        let on = self.look(own).await?;
        let decision = self.in_vain.lock().expect("nobody panics while holding it").decide(self.clock.now(), &on);
        join_all(decision.ask.iter().map(|worker| self.drain(worker, asked))).await;
        if let Answer::PassOver(why) = &decision.answer {
            tracing::warn!(node = asked.node, why, "node drained without waiting for Ray");
        }
        Ok(decision.answer)
    }

    async fn look(&self, Own { node, node_uid }: Own) -> Result<OnNode, Problem> {
        let on = driver::ask(&self.queries, |reply| Query::RayOnNode { node, uid: node_uid, reply }).await;
        let on = on.ok_or(Problem::Unavailable("its driver does not answer"))?;
        on.ok_or(Problem::Unavailable("it does not know the node"))
    }

    async fn drain(&self, Worker { cluster, pod, id, .. }: &Worker, asked: &Asked) {
        let Asked { node, reason, until } = asked;
        let Some(head) = self.heads.get(cluster) else { return };
        let message = format!("Kubernetes node {node} is drained: {reason}");
        let drained = head.drain(id, DrainReason::Preemption, &message, *until).await;
        let (result, why) = match drained {
            Ok(Drained::Accepted) => {
                tracing::info!(node, cluster, pod, id, until = %until, "Ray drains a worker");
                return self.metrics.ray_drain(RayDrain::Accepted);
            }
            Ok(Drained::Refused(why)) => (RayDrain::Refused, format!("its head refuses: {why}")),
            Err(error) => (RayDrain::Failed, format!("{}: {error}", error.problem())),
        };
        tracing::warn!(node, cluster, pod, id, why, "Ray does not drain a worker");
        self.metrics.ray_drain(result);
        self.in_vain.lock().expect("nobody panics while holding it").failed(id, why);
    }
}

#[cfg(test)]
mod tests;
