//! HTTP as this program needs it: one connection to an agent or a coordinator, one request at a time.

use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{ACCEPT, CONTENT_TYPE, HOST};
use hyper::{Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// For a connection, or an answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Of an answer. An agent's with 10 000 cgroups is about 4 MiB, and a cluster of 1000 nodes with 30 pods each as much.
const LONGEST: usize = 64 << 20;

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("connect to {0}: {1}")]
    Connect(String, std::io::Error),
    #[error("{0} for {sec} s", sec = .1.as_secs())]
    Late(&'static str, Duration),
    #[error("ask: {0}")]
    Http(#[from] hyper::Error),
    #[error("read the answer: {0}")]
    Body(Box<dyn std::error::Error + Send + Sync>),
}

/// Where an agent or a coordinator listens.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    host: String,
    port: u16,
    /// Before the paths, as `kubectl proxy` has it.
    prefix: String,
}

impl std::str::FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || "expected http://HOST:PORT".to_owned();
        let url = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
        let url: Uri = url.parse().map_err(|_| expected())?;
        if url.scheme_str() != Some("http") {
            return Err("expected http://HOST:PORT; reach it with `kubectl port-forward`".to_owned());
        }
        let host = url.host().filter(|host| !host.is_empty()).ok_or_else(expected)?;
        Ok(Self {
            host: host.trim_matches(['[', ']']).to_owned(),
            port: url.port_u16().unwrap_or(80),
            prefix: url.path().trim_end_matches('/').to_owned(),
        })
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "http://{}{}", self.authority(), self.prefix)
    }
}

impl Target {
    fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        format!("{host}:{}", self.port)
    }

    pub(crate) async fn connect(&self) -> Result<Connection, Error> {
        let connected = timeout(PATIENCE, TcpStream::connect((&*self.host, self.port))).await;
        let stream = connected
            .map_err(|_| Error::Late("no connection", PATIENCE))?
            .map_err(|error| Error::Connect(self.authority(), error))?;
        let (requests, connection) = handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Connection { target: self.clone(), requests })
    }
}

pub(crate) struct Connection {
    target: Target,
    requests: SendRequest<Empty<Bytes>>,
}

/// A whole answer.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) kind: String,
    pub(crate) body: Bytes,
}

impl Connection {
    /// Asks, and leaves the body to be read.
    pub(crate) async fn get(&mut self, path: &str, accept: &'static str) -> Result<Response<Incoming>, Error> {
        let request = Request::get(format!("{}{path}", self.target.prefix))
            .header(HOST, self.target.authority())
            .header(ACCEPT, accept)
            .body(Empty::new())
            .expect("a path that was parsed, and texts of ours");
        let answer = timeout(PATIENCE, self.requests.send_request(request)).await;
        Ok(answer.map_err(|_| Error::Late("no answer", PATIENCE))??)
    }

    /// Asks for JSON, which is what comes if all is well.
    pub(crate) async fn ask(&mut self, path: &str) -> Result<Answer, Error> {
        let response = self.get(path, "application/json").await?;
        let (status, kind) = (response.status(), content_type(&response));
        let body = timeout(PATIENCE, Limited::new(response.into_body(), LONGEST).collect()).await;
        let body = body.map_err(|_| Error::Late("no whole answer", PATIENCE))?.map_err(Error::Body)?.to_bytes();
        Ok(Answer { status, kind, body })
    }
}

impl Answer {
    pub(crate) fn is_json(&self) -> bool {
        self.status == StatusCode::OK && self.kind.starts_with("application/json")
    }
}

pub(crate) fn content_type(response: &Response<Incoming>) -> String {
    let kind = response.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    kind.unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_written_as_people_write_them() {
        let check = |text: &str, expected: &str| assert_eq!(text.parse::<Target>().unwrap().to_string(), expected);
        check("127.0.0.1:9482", "http://127.0.0.1:9482");
        check("http://localhost:9484/", "http://localhost:9484");
        check("http://[::1]:9482", "http://[::1]:9482");
        check("http://localhost:8001/api/v1/x:9482/proxy/", "http://localhost:8001/api/v1/x:9482/proxy");
        for text in ["https://a:1", "ftp://a", "", "http://", "http://a b"] {
            assert!(text.parse::<Target>().is_err(), "{text}");
        }
    }
}
