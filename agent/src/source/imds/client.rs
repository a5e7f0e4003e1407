//! The service's protocol, version 2: a token by PUT, and with it documents by GET. Version 1, which needs no token, is
//! never used: whoever can make a program of the machine send a GET could then read what only the machine should.

use std::io;
use std::time::Duration;

use ebb_core::notice::{Document, Malformed, Notice};
use ebb_core::time::Instant;
use futures::future::join_all;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::handshake;
use hyper::header::{HOST, HeaderValue};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use tokio::net::TcpStream;
use tokio::time::Instant as Moment;
use tokio_util::task::AbortOnDropHandle;

use super::endpoint::Endpoint;
use crate::health::chain;

/// For a request, from the connection to the last byte. The service is on the machine's own host and answers within
/// milliseconds.
const DEADLINE: Duration = Duration::from_secs(2);
/// The longest life that the service gives a token.
const TOKEN_TTL_SECONDS: u32 = 21_600;
/// Of an answer. A document is some hundred bytes.
const LONGEST: usize = 64 << 10;

const TOKEN_PATH: &str = "/latest/api/token";
const TTL_HEADER: &str = "x-aws-ec2-metadata-token-ttl-seconds";
const TOKEN_HEADER: &str = "x-aws-ec2-metadata-token";

/// Requests, by what was asked for and how that went.
pub type Requests = Family<[(&'static str, &'static str); 2], Counter>;

/// What became of each document.
pub(super) type Round = Vec<(Document, Result<Vec<Notice>, Error>)>;

#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    #[error("ask {endpoint} for {what}: no answer for {deadline:?}")]
    Deadline { endpoint: Endpoint, what: &'static str, deadline: Duration },
    #[error("ask {endpoint} for {what}: {why}")]
    Failed { endpoint: Endpoint, what: &'static str, why: Failure },
    #[error("ask {endpoint} for {what}: it answers {status}")]
    Refused { endpoint: Endpoint, what: &'static str, status: StatusCode },
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

/// Why a request failed. In words: one failure is told of each document, and the causes themselves cannot be copied.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Failure {
    #[error("{0}")]
    Connect(String),
    #[error("{0}")]
    Read(String),
}

impl Error {
    /// A label for metrics, from a closed set.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Deadline { .. } => "deadline",
            Self::Failed { why: Failure::Connect(_), .. } => "connect",
            Self::Failed { why: Failure::Read(_), .. } => "read",
            Self::Refused { status: StatusCode::UNAUTHORIZED, .. } => "unauthorized",
            Self::Refused { .. } => "refused",
            Self::Malformed(_) => "malformed",
        }
    }

    /// Whether the service no longer knows the token.
    fn is_unauthorized(&self) -> bool {
        matches!(self, Self::Refused { status: StatusCode::UNAUTHORIZED, .. })
    }
}

pub(super) struct Client {
    endpoint: Endpoint,
    requests: Requests,
    token: Option<Token>,
}

#[derive(Clone)]
struct Token {
    value: HeaderValue,
    renew_at: Moment,
}

/// A whole answer.
struct Answer {
    status: StatusCode,
    ttl: Option<HeaderValue>,
    body: Bytes,
}

impl Client {
    pub(super) fn new(endpoint: Endpoint, requests: Requests) -> Self {
        Self { endpoint, requests, token: None }
    }

    pub(super) fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// Asks for all documents. With a new token where the old one is near its end, or is refused: then once.
    pub(super) async fn read(&mut self, now: Instant) -> Round {
        let mut round = self.ask_for(&Document::ALL, now).await;
        let is_refused =
            |(_, result): &(Document, Result<_, Error>)| result.as_ref().is_err_and(Error::is_unauthorized);
        let refused: Vec<_> = round.iter().filter(|asked| is_refused(asked)).map(|(document, _)| *document).collect();
        if self.has_token() && !refused.is_empty() {
            self.token = None;
            for (document, again) in self.ask_for(&refused, now).await {
                round.retain(|(asked, _)| *asked != document);
                round.push((document, again));
            }
        }
        round
    }

    async fn ask_for(&mut self, documents: &[Document], now: Instant) -> Round {
        let token = match self.token().await {
            Ok(token) => token,
            Err(error) => return documents.iter().map(|document| (*document, Err(error.clone()))).collect(),
        };
        let asked = documents.iter().map(|document| {
            let token = token.clone();
            async { (*document, self.document(*document, token, now).await) }
        });
        join_all(asked).await
    }

    async fn document(&self, document: Document, token: HeaderValue, now: Instant) -> Result<Vec<Notice>, Error> {
        let read = self.fetch(document, token, now).await;
        let result = match &read {
            Ok(Some(_)) => "ok",
            Ok(None) => "not_found",
            Err(error) => error.kind(),
        };
        self.requests.get_or_create(&[("document", document.path()), ("result", result)]).inc();
        read.map(Option::unwrap_or_default)
    }

    /// `None`: there is no such document, which is what the service says of most while there is no notice.
    async fn fetch(&self, document: Document, token: HeaderValue, now: Instant) -> Result<Option<Vec<Notice>>, Error> {
        let what = document.path();
        let path = format!("/latest/meta-data/{what}");
        let Answer { status, body, .. } = self.ask(Method::GET, &path, what, (TOKEN_HEADER, token)).await?;
        match status {
            StatusCode::OK => Ok(Some(document.read(&String::from_utf8_lossy(&body), now)?)),
            StatusCode::NOT_FOUND => Ok(None),
            _ => Err(self.refused(what, status)),
        }
    }

    async fn token(&mut self) -> Result<HeaderValue, Error> {
        if let Some(token) = self.token.as_ref().filter(|token| Moment::now() < token.renew_at) {
            return Ok(token.value.clone());
        }
        let asked = self.new_token().await;
        let result = asked.as_ref().map_or_else(Error::kind, |_| "ok");
        self.requests.get_or_create(&[("document", "token"), ("result", result)]).inc();
        self.token = asked.as_ref().ok().cloned();
        asked.map(|token| token.value)
    }

    async fn new_token(&self) -> Result<Token, Error> {
        const WHAT: &str = "a token";
        let ttl = HeaderValue::from(TOKEN_TTL_SECONDS);
        let answer = self.ask(Method::PUT, TOKEN_PATH, WHAT, (TTL_HEADER, ttl)).await?;
        if answer.status != StatusCode::OK {
            return Err(self.refused(WHAT, answer.status));
        }
        let value = HeaderValue::from_bytes(answer.body.trim_ascii()).ok().filter(|token| !token.is_empty());
        let no_token = || self.failed(WHAT, Failure::Read("no token in the answer".to_owned()));
        let mut value = value.ok_or_else(no_token)?;
        value.set_sensitive(true);
        let told = answer.ttl.and_then(|ttl| ttl.to_str().ok()?.parse::<u32>().ok());
        let life = Duration::from_secs(told.unwrap_or(TOKEN_TTL_SECONDS).into());
        // Before its end, so that no document has to be asked for twice.
        Ok(Token { value, renew_at: Moment::now() + life * 9 / 10 })
    }

    /// A connection for each request: they are few, and one that hangs takes nothing with it.
    async fn ask(
        &self,
        method: Method,
        path: &str,
        what: &'static str,
        (header, value): (&'static str, HeaderValue),
    ) -> Result<Answer, Error> {
        let Endpoint { host, port } = &self.endpoint;
        let request = Request::builder().method(method).uri(path).header(HOST, self.endpoint.authority());
        let request = request.header(header, value).body(Empty::<Bytes>::new()).expect("paths and headers of ours");
        let exchange = async {
            let connect = |error: io::Error| Failure::Connect(error.to_string());
            let stream = TcpStream::connect((host.as_str(), *port)).await.map_err(connect)?;
            let read = |error: hyper::Error| Failure::Read(chain(&error));
            let (mut requests, connection) = handshake(TokioIo::new(stream)).await.map_err(read)?;
            let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
            let response = requests.send_request(request).await.map_err(read)?;
            let (status, ttl) = (response.status(), response.headers().get(TTL_HEADER).cloned());
            let body = Limited::new(response.into_body(), LONGEST).collect().await;
            let body = body.map_err(|error| Failure::Read(chain(&*error)))?.to_bytes();
            Ok(Answer { status, ttl, body })
        };
        match tokio::time::timeout(DEADLINE, exchange).await {
            Ok(answer) => answer.map_err(|why| self.failed(what, why)),
            Err(_) => Err(Error::Deadline { endpoint: self.endpoint.clone(), what, deadline: DEADLINE }),
        }
    }

    fn failed(&self, what: &'static str, why: Failure) -> Error {
        Error::Failed { endpoint: self.endpoint.clone(), what, why }
    }

    fn refused(&self, what: &'static str, status: StatusCode) -> Error {
        Error::Refused { endpoint: self.endpoint.clone(), what, status }
    }
}
