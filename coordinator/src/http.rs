//! `/metrics`, `/healthz`, `/readyz`, and the live page at `/`. Metrics are OpenMetrics text, which Prometheus reads.
//!
//! All of it is read-only and for whoever reaches the port; the page shows the names of pods, as the API server's own
//! metrics do.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use ebb_page::Page;
use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::driver::{self, Queries};
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
}

pub async fn serve(listener: TcpListener, shown: Shown, stop: CancellationToken) -> std::io::Result<()> {
    let page = shown.page.router();
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .with_state(shown)
        .merge(page);
    axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await
}

async fn metrics(State(shown): State<Shown>) -> Response {
    let Some(view) = driver::ask(&shown.queries).await else {
        return (StatusCode::SERVICE_UNAVAILABLE, "the driver does not answer\n").into_response();
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
    match driver::ask(&shown.queries).await {
        Some(_) => "ok\n".into_response(),
        None => (StatusCode::SERVICE_UNAVAILABLE, "the driver does not answer\n").into_response(),
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
