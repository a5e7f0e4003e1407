//! A service: gets a POST with the facts as JSON, and answers 2xx for done, 202 or 503 for later (`Retry-After` says
//! when), 409 for a veto, anything else for a failure. The same `Idempotency-Key` comes with every repetition.

use std::time::Duration;

use ebb_core::drain::HookOutcome;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderMap, RETRY_AFTER};
use hyper::{Request, Response, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::{Map, Value};

use super::{Asked, tail};
use crate::health::chain;

/// For one answer. A hook that needs longer says 202.
const PATIENCE: Duration = Duration::from_secs(30);
const LONGEST_ANSWER: usize = 64 << 10;

pub(super) async fn run(url: String, asked: Asked) -> HookOutcome {
    match tokio::time::timeout(PATIENCE, ask(&url, &asked)).await {
        Ok(Ok(response)) => outcome(response).await,
        // Whoever does not answer may do so later; for how long that is tried, its timeout says.
        Ok(Err(error)) => {
            tracing::warn!(url, error, "hook not reached");
            HookOutcome::Later(None)
        }
        Err(_) => {
            tracing::warn!(url, "hook not answered in {PATIENCE:?}");
            HookOutcome::Later(None)
        }
    }
}

async fn ask(url: &str, asked: &Asked) -> Result<Response<Incoming>, String> {
    let facts: Map<String, Value> =
        asked.facts().into_iter().map(|(fact, value)| (fact.into(), value.into())).collect();
    let request = Request::post(url)
        .header(CONTENT_TYPE, "application/json")
        .header("idempotency-key", format!("{}/{}", asked.about.id, asked.phase.name()))
        .body(Full::new(Bytes::from(Value::Object(facts).to_string())))
        .map_err(|error| error.to_string())?;
    let client = Client::builder(TokioExecutor::new()).build_http();
    client.request(request).await.map_err(|error| chain(&error))
}

async fn outcome(response: Response<Incoming>) -> HookOutcome {
    let status = response.status();
    let later = retry_after(response.headers());
    let body = Limited::new(response.into_body(), LONGEST_ANSWER).collect().await;
    let said = body.map(|body| tail(&body.to_bytes())).unwrap_or_default();
    match status {
        StatusCode::ACCEPTED | StatusCode::SERVICE_UNAVAILABLE => HookOutcome::Later(later),
        StatusCode::CONFLICT => HookOutcome::Veto(said),
        status if status.is_success() => HookOutcome::Done,
        status if said.is_empty() => HookOutcome::Failed(status.to_string()),
        status => HookOutcome::Failed(format!("{status}: {said}")),
    }
}

/// In seconds; the form with a date is nobody's who means a pause.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get(RETRY_AFTER)?.to_str().ok()?.parse().ok().map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use ebb_core::drain::HookPhase;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::super::tests::asked;
    use super::*;

    /// What a service was sent, and what its answer meant.
    async fn served(answer: &'static str) -> (String, HookOutcome) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/ebb", listener.local_addr().unwrap());
        let service = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"}") {
                stream.read_buf(&mut request).await.unwrap();
            }
            stream.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8(request).unwrap()
        });
        let outcome = run(url, asked(HookPhase::PostDrain)).await;
        (service.await.unwrap(), outcome)
    }

    #[tokio::test]
    async fn the_status_is_the_answer_and_the_body_the_reason() {
        let seconds = |seconds| HookOutcome::Later(Some(Duration::from_secs(seconds)));
        for (answer, expected) in [
            ("HTTP/1.1 204 No Content\r\n\r\n", HookOutcome::Done),
            ("HTTP/1.1 202 Accepted\r\nretry-after: 7\r\ncontent-length: 0\r\n\r\n", seconds(7)),
            ("HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n", HookOutcome::Later(None)),
            ("HTTP/1.1 503 Busy\r\nretry-after: 60\r\ncontent-length: 0\r\n\r\n", seconds(60)),
            ("HTTP/1.1 409 Conflict\r\ncontent-length: 4\r\n\r\nbusy", HookOutcome::Veto("busy".into())),
            (
                "HTTP/1.1 500 Oops\r\ncontent-length: 6\r\n\r\nbroken",
                HookOutcome::Failed("500 Internal Server Error: broken".into()),
            ),
        ] {
            assert_eq!(served(answer).await.1, expected, "{answer}");
        }
    }

    #[tokio::test]
    async fn a_service_is_told_the_facts_and_can_know_a_repetition() {
        let (request, _) = served("HTTP/1.1 204 No Content\r\n\r\n").await;
        let (head, body) = request.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("POST /ebb HTTP/1.1\r\n") && head.contains("idempotency-key: d/post-drain"), "{head}");
        let facts: Value = serde_json::from_str(body).unwrap();
        assert_eq!((&facts["node"], &facts["trigger"]), (&"node-1".into(), &"spot_interruption".into()));
    }

    #[tokio::test]
    async fn a_service_that_is_not_there_may_come_yet() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        drop(listener);
        assert_eq!(run(url, asked(HookPhase::PreDrain)).await, HookOutcome::Later(None));
    }
}
