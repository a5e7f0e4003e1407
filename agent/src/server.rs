//! The agent's HTTP side: `/metrics`, `/api/v1/node`, `/healthz`, `/readyz` and, from this machine only,
//! `PUT /log-level`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use crate::health::chain;
use crate::logging;
use crate::metrics::{Dcgm, Exposition, Page, ResourceMetrics};
use crate::sampler::Sample;
use crate::snapshot::Snapshot;

/// Scrapers and probes need a handful; more is somebody else's mistake, and must not take our memory.
const CONNECTIONS: usize = 64;
/// A client that has not sent its request's head by then holds a place that others need.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// A log filter is short.
const BODY_MAX: usize = 4096;
/// The sampler is alive while its latest sample is at most this many intervals old, or `ALIVE_AT_LEAST`.
const ALIVE_INTERVALS: u32 = 10;
const ALIVE_AT_LEAST: Duration = Duration::from_secs(30);

pub struct Server {
    pub page: Page,
    pub samples: watch::Receiver<Option<Arc<Sample>>>,
    /// `None`: not served.
    pub dcgm: Option<Dcgm>,
    /// `None`: not served.
    pub resource: Option<ResourceMetrics>,
    /// The name of this machine's Node object.
    pub node: Option<String>,
    pub interval: Duration,
    pub log: logging::Handle,
    /// The sampler's own beginning, until there is a sample.
    pub started: std::time::Instant,
}

impl Server {
    /// Serves until `stop`.
    pub async fn run(self: Arc<Self>, listener: TcpListener, stop: CancellationToken) {
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let place = Arc::clone(&places).acquire_owned().await.expect("the semaphore is never closed");
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of descriptors, or a client that left early: either passes.
                    tracing::debug!(error = chain(&error), "connection not accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let server = Arc::clone(&self);
            let stop = stop.clone();
            tokio::spawn(async move {
                let answer = service_fn(|request| {
                    let server = Arc::clone(&server);
                    async move { Ok::<_, std::convert::Infallible>(server.answer(request, peer).await) }
                });
                let connection = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEADER_TIMEOUT)
                    .serve_connection(TokioIo::new(stream), answer);
                tokio::select! {
                    () = stop.cancelled() => {}
                    result = connection => if let Err(error) = result {
                        tracing::debug!(%peer, error = chain(&error), "connection failed");
                    }
                }
                drop(place);
            });
        }
    }

    async fn answer(&self, request: Request<Incoming>, peer: SocketAddr) -> Response<Full<Bytes>> {
        match (request.method(), request.uri().path()) {
            (&Method::GET | &Method::HEAD, "/metrics") => self.metrics(&request),
            (&Method::GET | &Method::HEAD, "/api/v1/node") => self.node(),
            (&Method::GET | &Method::HEAD, "/compat/dcgm") => self.dcgm(),
            (&Method::GET | &Method::HEAD, "/metrics/resource") => self.resource(),
            (&Method::GET | &Method::HEAD, "/healthz") => self.alive(),
            (&Method::GET | &Method::HEAD, "/readyz") => self.ready(),
            (&Method::PUT, "/log-level") if peer.ip().to_canonical().is_loopback() => self.log_level(request).await,
            (&Method::PUT, "/log-level") => text(StatusCode::FORBIDDEN, "only from this machine\n"),
            (
                _,
                "/metrics" | "/api/v1/node" | "/compat/dcgm" | "/metrics/resource" | "/healthz" | "/readyz"
                | "/log-level",
            ) => text(StatusCode::METHOD_NOT_ALLOWED, "GET, or PUT for /log-level\n"),
            (_, "/") => text(StatusCode::OK, "ebb-agent: /metrics /api/v1/node /healthz /readyz, PUT /log-level\n"),
            _ => text(StatusCode::NOT_FOUND, "there are /metrics, /api/v1/node, /healthz, /readyz and /log-level\n"),
        }
    }

    fn metrics(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let accept = request.headers().get(ACCEPT).and_then(|accept| accept.to_str().ok());
        let exposition = Exposition::wanted(accept);
        match self.page.render(exposition) {
            Ok(page) => {
                let mut response = text(StatusCode::OK, page);
                let content_type = HeaderValue::from_static(exposition.content_type());
                response.headers_mut().insert(CONTENT_TYPE, content_type);
                response
            }
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        }
    }

    fn dcgm(&self) -> Response<Full<Bytes>> {
        self.compatible(self.dcgm.as_ref().map(|page| |sample: &Sample| page.render(sample)), "--serve-dcgm")
    }

    fn resource(&self) -> Response<Full<Bytes>> {
        let page = self.resource.as_ref().map(|page| |sample: &Sample| page.render(sample));
        self.compatible(page, "--serve-resource-metrics")
    }

    /// A page of somebody else's form, in the classic format; only with its flag.
    fn compatible(&self, page: Option<impl Fn(&Sample) -> String>, flag: &str) -> Response<Full<Bytes>> {
        let Some(page) = page else {
            return text(StatusCode::NOT_FOUND, format!("only with {flag}\n"));
        };
        let Some(sample) = self.samples.borrow().clone() else {
            return text(StatusCode::SERVICE_UNAVAILABLE, "no sample yet\n");
        };
        let mut response = text(StatusCode::OK, page(&sample));
        let content_type = HeaderValue::from_static(Exposition::Classic.content_type());
        response.headers_mut().insert(CONTENT_TYPE, content_type);
        response
    }

    /// The latest sample as JSON, as `--once -o json` prints it.
    fn node(&self) -> Response<Full<Bytes>> {
        let Some(sample) = self.samples.borrow().clone() else {
            return text(StatusCode::SERVICE_UNAVAILABLE, "no sample yet\n");
        };
        match serde_json::to_vec(&Snapshot::of(&sample, self.node.as_deref())) {
            Ok(body) => {
                let mut response = text(StatusCode::OK, body);
                response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
                response
            }
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        }
    }

    fn alive(&self) -> Response<Full<Bytes>> {
        let latest = self.samples.borrow().as_ref().map_or(self.started, |sample| sample.taken);
        let age = latest.elapsed();
        if age <= ALIVE_AT_LEAST.max(self.interval * ALIVE_INTERVALS) {
            text(StatusCode::OK, "ok\n")
        } else {
            text(StatusCode::SERVICE_UNAVAILABLE, format!("no sample for {} s\n", age.as_secs()))
        }
    }

    fn ready(&self) -> Response<Full<Bytes>> {
        if self.samples.borrow().is_some() {
            text(StatusCode::OK, "ok\n")
        } else {
            text(StatusCode::SERVICE_UNAVAILABLE, "no sample yet\n")
        }
    }

    async fn log_level(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let Ok(body) = Limited::new(request.into_body(), BODY_MAX).collect().await else {
            return text(StatusCode::BAD_REQUEST, "expected a filter as in `info` or `info,kube=debug`\n");
        };
        let body = String::from_utf8_lossy(&body.to_bytes()).trim().to_owned();
        match logging::parse_filter(&body) {
            Ok(filter) => {
                self.log.set(filter);
                tracing::info!(filter = body, "log level changed");
                text(StatusCode::OK, format!("{body}\n"))
            }
            Err(expected) => text(StatusCode::BAD_REQUEST, format!("{expected}\n")),
        }
    }
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}
