//! Finds out whether an agent or a coordinator is at the other end, follows it, and comes back when it was lost.

use std::time::Duration;

use http_body_util::BodyExt;
use hyper::StatusCode;
use hyper::body::Bytes;
use tokio::time::{sleep, timeout};

use super::app::News;
use super::events::{Events, TooLong};
use crate::client::{self, Target, content_type};

/// A coordinator sends something every 15 s; after three times that, nobody is there.
const SILENCE: Duration = Duration::from_secs(45);
/// Between two tries. Whoever watches wants to see the other end come back.
const AGAIN: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Client(#[from] client::Error),
    #[error("nothing heard for {} s", SILENCE.as_secs())]
    Silent,
    #[error("the other end is another version: {0}")]
    Malformed(#[from] serde_json::Error),
    #[error(transparent)]
    TooLong(#[from] TooLong),
    #[error("the agent says: {0}")]
    Refused(StatusCode),
    #[error("neither an agent with /api/v1/node nor a coordinator with /events is there (it says {0})")]
    Stranger(StatusCode),
    #[error("the coordinator ended the stream")]
    Ended,
}

/// Follows for ever; `tell` is told everything.
pub(super) async fn follow(target: &Target, every: Duration, mut tell: impl FnMut(News)) {
    loop {
        if let Err(error) = session(target, every, &mut tell).await {
            tell(News::Away(error.to_string()));
        }
        sleep(AGAIN).await;
    }
}

async fn session(target: &Target, every: Duration, tell: &mut impl FnMut(News)) -> Result<(), Error> {
    let mut connection = target.connect().await?;
    loop {
        let answer = connection.ask("/api/v1/node").await?;
        if answer.is_json() {
            tell(News::Node(serde_json::from_slice(&answer.body)?));
        } else if answer.status == StatusCode::SERVICE_UNAVAILABLE {
            return Err(Error::Refused(answer.status));
        } else {
            return stream(target, tell).await;
        }
        sleep(every).await;
    }
}

async fn stream(target: &Target, tell: &mut impl FnMut(News)) -> Result<(), Error> {
    let response = target.connect().await?.get("/events", "text/event-stream").await?;
    if response.status() != StatusCode::OK || !content_type(&response).starts_with("text/event-stream") {
        return Err(Error::Stranger(response.status()));
    }
    let mut body = response.into_body();
    let mut events = Events::default();
    loop {
        let frame = timeout(SILENCE, body.frame()).await.map_err(|_| Error::Silent)?;
        let frame = frame.ok_or(Error::Ended)?.map_err(client::Error::from)?;
        for event in events.push(frame.data_ref().unwrap_or(&Bytes::new()))? {
            tell(News::Cluster(serde_json::from_str(&event)?));
        }
    }
}
