//! The router: assets from the binary, and the stream of events.

use std::convert::Infallible;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderName, StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures::stream;
use tokio::sync::broadcast::error::RecvError;

use crate::{News, Page};

/// Who looks at once. Each costs an open connection and the whole picture at its start.
const WATCHERS: usize = 64;
/// Below the idle timeouts of usual proxies (60 s).
const HEARTBEAT: Duration = Duration::from_secs(15);
/// A browser comes back after this long when the stream ends.
const RETRY: Duration = Duration::from_secs(1);

/// Only what comes from here runs and is asked for. The page is text from a cluster in which others name things.
const POLICY: &str = "default-src 'none'; connect-src 'self'; img-src 'self'; script-src 'self'; style-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const INDEX: &str = include_str!("../assets/index.html");
const STYLE: &str = include_str!("../assets/page.css");
const SCRIPT: &str = include_str!("../assets/page.js");
const ICON: &str = include_str!("../assets/icon.svg");

pub(crate) fn router(page: Page) -> Router {
    let asset = |kind, text| get(move || async move { served(kind, text) });
    Router::new()
        .route("/", asset("text/html; charset=utf-8", INDEX))
        .route("/page.css", asset("text/css; charset=utf-8", STYLE))
        .route("/page.js", asset("text/javascript; charset=utf-8", SCRIPT))
        .route("/icon.svg", asset("image/svg+xml", ICON))
        .route("/events", get(events))
        .with_state(page)
}

fn served(kind: &'static str, text: &'static str) -> Response {
    let headers: [(HeaderName, &str); 5] = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        // A new version of the binary brings new assets.
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, text).into_response()
}

/// The whole first, then what changes. A reader that fell behind gets the whole again.
async fn events(State(page): State<Page>) -> Response {
    if page.watchers() >= WATCHERS {
        return (StatusCode::SERVICE_UNAVAILABLE, "too many look at it already\n").into_response();
    }
    // At once, so that whoever is told of the arrival counts this reader.
    let (full, updates) = page.look();
    page.0.arrived.notify_one();
    let first = Some(event(&full).retry(RETRY));
    let stream = stream::unfold((page, updates, first), |(page, mut updates, first)| async move {
        if let Some(first) = first {
            return Some((first, (page, updates, None)));
        }
        match updates.recv().await {
            Ok(News::Update(text)) => Some((event(&text), (page, updates, None))),
            Ok(News::Anew) | Err(RecvError::Lagged(_)) => {
                let (full, updates) = page.look();
                Some((event(&full), (page, updates, None)))
            }
            Err(RecvError::Closed) => None,
        }
    });
    let stream = futures::StreamExt::map(stream, Ok::<_, Infallible>);
    let heartbeat = KeepAlive::new().interval(HEARTBEAT).text("here");
    ([(header::X_CONTENT_TYPE_OPTIONS, "nosniff")], Sse::new(stream).keep_alive(heartbeat)).into_response()
}

fn event(json: &str) -> Event {
    Event::default().data(json)
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use ebb_core::time::Instant;
    use ebb_core::view::{Level, Step};
    use http_body_util::BodyExt;

    use super::*;
    use crate::BEHIND;

    async fn next(body: &mut Body) -> String {
        let frame = body.frame().await.unwrap().unwrap();
        String::from_utf8(frame.into_data().unwrap().to_vec()).unwrap()
    }

    fn step(what: String) -> Step {
        Step { at: Instant::from_millis(0), level: Level::Ray, what, because: String::new() }
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_reader_gets_the_whole_instead_of_a_queue() {
        let page = Page::new("test");
        let mut body = events(State(page.clone())).await.into_body();
        assert!(next(&mut body).await.contains(r#"{"full":"#));
        page.tell(step("one".into()));
        assert!(next(&mut body).await.contains("one"));
        for number in 0..BEHIND * 2 {
            page.tell(step(format!("step {number}")));
        }
        let whole = next(&mut body).await;
        assert!(whole.contains(r#"{"full":"#) && whole.contains("step 0") && whole.contains("step 63"), "{whole}");
        page.clear();
        assert!(!next(&mut body).await.contains("step 0"));
        // Nothing happens: the connection is kept, and seen to be.
        assert_eq!(next(&mut body).await.trim(), ": here");
        drop(body);
        assert_eq!(page.watchers(), 0);
    }

    #[tokio::test]
    async fn only_so_many_look_at_once() {
        let page = Page::new("test");
        let mut bodies = Vec::new();
        for _ in 0..WATCHERS {
            let mut body = events(State(page.clone())).await.into_body();
            next(&mut body).await;
            bodies.push(body);
        }
        assert_eq!(events(State(page.clone())).await.status(), StatusCode::SERVICE_UNAVAILABLE);
        bodies.pop();
        assert_eq!(events(State(page)).await.status(), StatusCode::OK);
    }

    #[test]
    fn nothing_is_inline_and_nothing_comes_from_elsewhere() {
        for word in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("] {
            assert!(!SCRIPT.contains(word), "{word}");
        }
        for word in ["<style", " style=", " onclick", "http:", "https:"] {
            assert!(!INDEX.contains(word), "{word}");
        }
        assert_eq!(INDEX.matches("<script").count(), 1);
    }
}
