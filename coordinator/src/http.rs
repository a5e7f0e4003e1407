//! `/metrics`, `/healthz`, `/readyz`, the live page at `/`, and for programs as JSON `/api/v1/cluster` and
//! `/api/v1/decisions` (`?limit=` says how many). Metrics are OpenMetrics text, which Prometheus reads.
//!
//! All of it is read-only and for whoever reaches the port; it shows the names of pods, as the API server's own metrics
//! do.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use ebb_core::decision;
use ebb_core::view::Seen;
use ebb_page::Page;
use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::decisions::Decisions;
use crate::driver::{self, Queries, Query};
use crate::metrics::Metrics;
use crate::standing::Standing;

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Clone)]
pub struct Shown {
    pub registry: Arc<Registry>,
    pub metrics: Arc<Metrics>,
    pub standing: Standing,
    pub queries: Queries,
    pub page: Page,
    pub decisions: Decisions,
    pub clock: Clock,
}

pub async fn serve(listener: TcpListener, shown: Shown, stop: CancellationToken) -> std::io::Result<()> {
    let page = shown.page.router();
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/api/v1/cluster", get(cluster))
        .route("/api/v1/decisions", get(decisions))
        .with_state(shown)
        .merge(page);
    axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await
}

async fn metrics(State(shown): State<Shown>) -> Response {
    let Some(view) = driver::ask(&shown.queries, Query::Outline).await else {
        return stuck();
    };
    shown.metrics.show(&view);
    let mut body = String::new();
    match text::encode(&mut body, &shown.registry) {
        Ok(()) => ([(header::CONTENT_TYPE, OPENMETRICS)], body).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// Alive: the one loop goes round. Whether AWS or the API server answer is not ours to mend by a restart.
async fn healthz(State(shown): State<Shown>) -> Response {
    match driver::ask(&shown.queries, Query::Alive).await {
        Some(_) => "ok\n".into_response(),
        None => stuck(),
    }
}

/// Ready means leading, so that the Service sends the agents to the one replica that listens to them.
async fn readyz(State(shown): State<Shown>) -> Response {
    if shown.standing.leads() {
        "leading\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not leading\n").into_response()
    }
}

async fn cluster(State(shown): State<Shown>) -> Response {
    match driver::ask(&shown.queries, Query::Picture).await {
        Some(cluster) => Json(Seen { now: shown.clock.now(), cluster }).into_response(),
        None => stuck(),
    }
}

async fn decisions(State(shown): State<Shown>, uri: Uri) -> Response {
    let mut limit = usize::MAX;
    for pair in uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
        match pair.strip_prefix("limit=").map(str::parse) {
            Some(Ok(number)) => limit = number,
            _ => {
                let error = format!("`{pair}` is not understood; expected limit=NUMBER\n");
                return (StatusCode::BAD_REQUEST, error).into_response();
            }
        }
    }
    Json(decision::Decisions { now: shown.clock.now(), decisions: shown.decisions.last(limit) }).into_response()
}

fn stuck() -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, "the driver does not answer\n").into_response()
}
