//! `metrics.k8s.io/v1beta1` and `custom.metrics.k8s.io/v1beta2`, behind the API server's aggregation layer: what
//! `kubectl top` and the HPA ask for, from what agents report. The API server names the user in headers and proves itself by its certificate; whether the user may is
//! asked back.

mod access;
mod custom;
mod discovery;
mod front_proxy;
mod list;
mod openapi;
mod quantity;
mod resource;
mod selector;
mod service;

use std::sync::{Arc, RwLock};

use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use ebb_core::fleet::Event;
use ebb_core::time::Instant;
use ebb_core::usage::{NodeUsage, Order, Usages};
use kube::Client;
use serde::Serialize;
use serde_json::json;
use tokio::sync::watch;

use crate::clock::Clock;
use crate::driver::Queries;
use crate::https::Peer;

pub(crate) use front_proxy::FrontProxy;
pub(crate) use service::keep as keep_service;

use access::{Access, Asked};

/// What can be served, by its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum MetricsApi {
    #[value(name = "metrics.k8s.io")]
    Resource,
    #[value(name = "custom.metrics.k8s.io")]
    Custom,
}

/// API servers keep connections open; more is somebody else's mistake.
pub(crate) const CONNECTIONS: usize = 64;

/// What is known of the use of nodes and pods, told by the watches and by agents. `None` in it: nobody is to serve it.
#[derive(Clone, Debug, Default)]
pub struct Known(Option<Arc<RwLock<Usages>>>);

impl Known {
    pub fn new(served: bool) -> Self {
        Self(served.then(Arc::default))
    }

    /// Whether agents are to tell of it.
    pub(crate) fn is_wanted(&self) -> bool {
        self.0.is_some()
    }

    pub(crate) fn note(&self, event: &Event) {
        let Some(usages) = &self.0 else { return };
        let mut usages = usages.write().expect("nobody panics while holding it");
        match event {
            Event::NodeApplied(node) => usages.node_applied(node),
            Event::NodeDeleted { name, uid } => usages.node_deleted(name, uid),
            Event::PodApplied(pod) => usages.pod_applied(pod),
            Event::PodDeleted { uid } => usages.pod_deleted(uid),
            _ => {}
        }
    }

    pub(crate) fn take(&self, clock: Clock, node: &str, order: Order, usage: NodeUsage) {
        if let Some(usages) = &self.0 {
            usages.write().expect("nobody panics while holding it").take(clock.now(), node, order, usage);
        }
    }

    pub(crate) fn read<T>(&self, read: impl FnOnce(&Usages) -> T) -> T {
        match &self.0 {
            Some(usages) => read(&usages.read().expect("nobody panics while holding it")),
            None => read(&Usages::default()),
        }
    }
}

#[derive(Clone)]
struct Shared {
    known: Known,
    queries: Queries,
    clock: Clock,
    front_proxy: watch::Receiver<Option<FrontProxy>>,
    access: Arc<Access>,
}

pub(crate) fn router(
    apis: &[MetricsApi],
    client: Client,
    known: Known,
    queries: Queries,
    clock: Clock,
    front_proxy: watch::Receiver<Option<FrontProxy>>,
) -> Router {
    let shared = Shared { known, queries, clock, front_proxy, access: Arc::new(Access::new(client)) };
    let (mut groups, mut routes) = (Vec::new(), Router::new());
    for api in apis {
        let (group, below) = match api {
            MetricsApi::Resource => (resource::group(), resource::routes()),
            MetricsApi::Custom => (custom::group(), custom::routes()),
        };
        groups.push(group);
        routes = routes.merge(below);
    }
    routes
        .merge(discovery::routes(&groups))
        .fallback(async |request: Request| not_found(&format!("{} is not served here", request.uri().path())))
        .layer(axum::middleware::from_fn_with_state(shared.clone(), admit))
        .with_state(shared)
        .merge(openapi::routes(apis))
        // As API servers are asked; whoever answers is there.
        .route("/healthz", get(async || "ok"))
        .route("/livez", get(async || "ok"))
        .route("/readyz", get(async || "ok"))
}

/// Lets a request pass whose user is known and may ask for it.
async fn admit(State(shared): State<Shared>, request: Request, next: Next) -> Response {
    let peer = request.extensions().get::<Peer>().cloned().unwrap_or_default();
    let user = shared.front_proxy.borrow().as_ref().and_then(|proxy| proxy.user(&peer, request.headers()));
    let Some(user) = user else {
        let text = "only the API server is answered, which names the user: ask it for this API";
        return failure(StatusCode::UNAUTHORIZED, "Unauthorized", text);
    };
    if request.method() != axum::http::Method::GET {
        let text = format!("{} is not understood: metrics are only read", request.method());
        return failure(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", &text);
    }
    match shared.access.review(&user, &Asked::of(request.uri().path())).await {
        Ok(true) => next.run(request).await,
        Ok(false) => {
            let text = format!("user {:?} may not read {}", user.name, request.uri().path());
            failure(StatusCode::FORBIDDEN, "Forbidden", &text)
        }
        Err(error) => {
            tracing::warn!(user = user.name, path = request.uri().path(), error, "access not reviewed");
            let text = format!("ask whether {:?} may read {}: {error}", user.name, request.uri().path());
            failure(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", &text)
        }
    }
}

/// A `Status` that says what went wrong.
fn failure(code: StatusCode, reason: &str, message: &str) -> Response {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {},
        "status": "Failure", "message": message, "reason": reason, "code": code.as_u16(),
    });
    (code, Json(status)).into_response()
}

fn not_found(message: &str) -> Response {
    failure(StatusCode::NOT_FOUND, "NotFound", message)
}

fn bad_request(message: &str) -> Response {
    failure(StatusCode::BAD_REQUEST, "BadRequest", message)
}

fn unavailable(message: &str) -> Response {
    failure(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", message)
}

fn answer(value: &impl Serialize) -> Response {
    let json = HeaderValue::from_static("application/json");
    ([(header::CONTENT_TYPE, json)], serde_json::to_vec(value).expect("keys are texts")).into_response()
}

/// Times of these APIs have no fraction.
fn seconds(at: Instant) -> String {
    Instant::from_millis(at.as_millis() / 1000 * 1000).to_string().replace(".000Z", "Z")
}

#[cfg(test)]
mod tests;
