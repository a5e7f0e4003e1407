//! A proxy between one agent and the API server that fails as it is told to. Plain HTTP on its own side.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::TryStreamExt;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::{AbortHandle, JoinSet};

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    None,
    /// It is answered with this status and never reaches the API server.
    Refuse(u16),
    /// It reaches the API server, and the answer is lost.
    LoseReply,
    /// It reaches the API server, and the answer takes so long.
    Delay(Duration),
    /// What it streams ends after so long.
    Cut(Duration),
}

/// A request, as far as faults and checks care.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: Method,
    pub path: String,
    pub query: String,
    pub body: Value,
    pub fault: Fault,
    /// What the API server answered; `None`: it was not asked, or gave no answer.
    pub status: Option<u16>,
}

impl Seen {
    pub fn is_watch(&self) -> bool {
        self.query.contains("watch=true")
    }

    pub fn is_eviction(&self) -> bool {
        self.path.ends_with("/eviction")
    }

    pub fn is_dry_run(&self) -> bool {
        self.query.contains("dryRun")
    }

    /// Of a pod, past its budget.
    pub fn is_deletion(&self) -> bool {
        self.method == Method::DELETE && self.path.contains("/pods/")
    }

    /// What an eviction or a deletion says beside the pod's name.
    pub fn options(&self) -> &Value {
        if self.is_eviction() { &self.body["deleteOptions"] } else { &self.body }
    }

    /// The only pod that an eviction or a deletion is meant for, if it says so.
    pub fn uid(&self) -> &str {
        self.options()["preconditions"]["uid"].as_str().unwrap_or_default()
    }
}

type Choose = dyn Fn(&Seen) -> Fault + Send + Sync;

pub struct Proxy {
    pub url: String,
    seen: Arc<Mutex<Vec<Seen>>>,
    task: AbortHandle,
}

impl Proxy {
    /// `upstream`: a client for the API server that shows nobody's identity. `choose` says what becomes of each request.
    pub async fn start(upstream: Client, choose: Arc<Choose>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has a free port");
        let url = format!("http://{}", listener.local_addr().expect("a listener has an address"));
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let log = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            // What is under way ends with the proxy.
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (upstream, choose, log) = (upstream.clone(), Arc::clone(&choose), Arc::clone(&log));
                let service = service_fn(move |request| {
                    let (upstream, choose, log) = (upstream.clone(), Arc::clone(&choose), Arc::clone(&log));
                    async move { forward(request, upstream, &*choose, &log).await.ok_or(Lost) }
                });
                let server = hyper::server::conn::http1::Builder::new();
                connections.spawn(async move {
                    // A client that goes, or an answer that is lost on purpose.
                    let _ = server.serve_connection(TokioIo::new(stream), service).await;
                });
                while connections.try_join_next().is_some() {}
            }
        });
        Self { url, seen, task: task.abort_handle() }
    }

    /// All requests so far that have an answer, in the order of their answers.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().expect("nobody panics with this lock").clone()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Ends the connection without an answer.
#[derive(Debug)]
struct Lost;

impl std::fmt::Display for Lost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the answer is lost on purpose")
    }
}

impl std::error::Error for Lost {}

type Answer = http_body_util::combinators::UnsyncBoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;

async fn forward(
    request: Request<Incoming>,
    upstream: Client,
    choose: &Choose,
    log: &Mutex<Vec<Seen>>,
) -> Option<Response<Answer>> {
    let (mut head, body) = request.into_parts();
    let body = body.collect().await.ok()?.to_bytes();
    let mut seen = Seen {
        method: head.method.clone(),
        path: head.uri.path().to_owned(),
        query: head.uri.query().unwrap_or_default().to_owned(),
        body: serde_json::from_slice(&body).unwrap_or_default(),
        fault: Fault::None,
        status: None,
    };
    seen.fault = choose(&seen);
    let fault = seen.fault;
    let note = |seen: Seen| log.lock().expect("nobody panics with this lock").push(seen);
    if let Fault::Refuse(status) = fault {
        note(seen);
        return Some(refusal(status));
    }
    head.headers.remove(hyper::header::HOST);
    head.headers.remove(hyper::header::CONTENT_LENGTH);
    let is_watch = seen.is_watch();
    let answer = upstream.send(Request::from_parts(head, Body::from(body.to_vec()))).await;
    seen.status = answer.as_ref().ok().map(|answer| answer.status().as_u16());
    note(seen);
    match fault {
        Fault::LoseReply => return None,
        Fault::Delay(pause) => tokio::time::sleep(pause).await,
        Fault::None | Fault::Refuse(_) | Fault::Cut(_) => {}
    }
    let (head, body) = answer.ok()?.into_parts();
    let body = match fault {
        Fault::Cut(after) if is_watch => {
            let end = Box::pin(tokio::time::sleep(after));
            let stream = body.into_data_stream().map_ok(Frame::data).map_err(Into::into);
            StreamBody::new(futures::StreamExt::take_until(stream, end)).boxed_unsync()
        }
        _ => body.map_err(Into::into).boxed_unsync(),
    };
    Some(Response::from_parts(head, body))
}

/// A refusal as the API server words it.
fn refusal(status: u16) -> Response<Answer> {
    let (reason, retry) = match status {
        409 => ("Conflict", None),
        429 => ("TooManyRequests", Some(1)),
        504 => ("Timeout", Some(1)),
        _ => ("InternalError", None),
    };
    let body = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": status, "reason": reason,
        "message": "a fault of the test's own", "details": {"retryAfterSeconds": retry},
    });
    let full = Full::new(Bytes::from(body.to_string())).map_err(|never: Infallible| match never {});
    let answer = Response::builder().status(status).header("content-type", "application/json");
    answer.body(full.boxed_unsync()).expect("the header is one")
}
