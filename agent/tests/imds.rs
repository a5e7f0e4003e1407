//! Instance metadata from a fake of EC2's service whose faults can be switched on. That our reading of the service is
//! right is not shown here, where both sides are ours: `tests/tests/imds.rs` asks Amazon's own mock.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant as Monotonic};

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use ebb_agent::clock::Clock;
use ebb_agent::health::Healths;
use ebb_agent::source::imds::{Imds, ImdsArg, Requests};
use ebb_core::intent::Trigger;
use ebb_core::notice::{Document, Notices};
use futures::{StreamExt, stream};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use common::{Serving, until, wait_for};

const INTERVAL: Duration = Duration::from_millis(20);
const SOON: Duration = Duration::from_secs(20);
const TERMINATE: &str = r#"{"action": "terminate", "time": "2126-11-28T13:02:00Z"}"#;

/// A fake of the metadata service, version 2 only.
#[derive(Clone, Default)]
struct FakeImds(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    documents: BTreeMap<&'static str, String>,
    /// By a part of the path.
    faults: BTreeMap<&'static str, Fault>,
    /// The one that is taken.
    token: u32,
    /// `None`: as long as it was asked for.
    ttl: Option<u32>,
    tokens_given: u32,
    refused: u32,
    documents_given: u32,
    /// What version 1 would have been asked: never.
    without_token: u32,
}

#[derive(Clone, Copy, Debug)]
enum Fault {
    /// The connection ends within the body.
    Cut,
    Endless,
    Hangs,
    /// Some of the body, and then no more.
    Stalls,
    Status(u16),
    Text(&'static str),
}

impl FakeImds {
    async fn start() -> (Self, String) {
        let fake = Self::default();
        fake.inner().documents.insert("autoscaling/target-lifecycle-state", "InService".to_owned());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let router = axum::Router::new().fallback(answer).with_state(fake.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        (fake, endpoint)
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }

    fn put(&self, document: Document, text: &str) {
        self.inner().documents.insert(document.path(), text.to_owned());
    }

    fn remove(&self, document: Document) {
        self.inner().documents.remove(document.path());
    }

    fn fault(&self, path: &'static str, fault: Option<Fault>) {
        let mut inner = self.inner();
        inner.faults.remove(path);
        inner.faults.extend(fault.map(|fault| (path, fault)));
    }
}

async fn answer(State(fake): State<FakeImds>, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    let fault = fake.inner().faults.iter().find(|(of, _)| path.ends_with(*of)).map(|(_, fault)| *fault);
    match fault {
        None => {}
        Some(Fault::Hangs) => std::future::pending().await,
        Some(Fault::Status(status)) => return StatusCode::from_u16(status).unwrap().into_response(),
        Some(Fault::Text(text)) => return text.into_response(),
        Some(Fault::Stalls) => {
            let some = stream::iter([Ok::<_, Infallible>(Bytes::from_static(b"{\"action\""))]);
            return Body::from_stream(some.chain(stream::pending())).into_response();
        }
        Some(Fault::Cut) => {
            let broken = std::io::Error::other("cut");
            return Body::from_stream(stream::iter([Ok(Bytes::from_static(b"{\"action\"")), Err(broken)]))
                .into_response();
        }
        Some(Fault::Endless) => {
            return Body::from_stream(stream::repeat_with(|| Ok::<_, Infallible>(Bytes::from_static(&[b' '; 4096]))))
                .into_response();
        }
    }
    let header = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok()?.parse::<u32>().ok());
    let mut inner = fake.inner();
    if path == "/latest/api/token" {
        let ttl = header("x-aws-ec2-metadata-token-ttl-seconds");
        return match ttl.filter(|ttl| request.method() == Method::PUT && (1..=21_600).contains(ttl)) {
            Some(ttl) => {
                inner.tokens_given += 1;
                let ttl = inner.ttl.unwrap_or(ttl).to_string();
                ([("x-aws-ec2-metadata-token-ttl-seconds", ttl)], inner.token.to_string()).into_response()
            }
            None => StatusCode::BAD_REQUEST.into_response(),
        };
    }
    match header("x-aws-ec2-metadata-token") {
        Some(token) if token == inner.token => {}
        Some(_) => {
            inner.refused += 1;
            return StatusCode::UNAUTHORIZED.into_response();
        }
        None => {
            inner.without_token += 1;
            return StatusCode::UNAUTHORIZED.into_response();
        }
    }
    inner.documents_given += 1;
    let document = path.strip_prefix("/latest/meta-data/").and_then(|path| inner.documents.get(path).cloned());
    document.map_or_else(|| StatusCode::NOT_FOUND.into_response(), IntoResponse::into_response)
}

/// The agent's source, asking.
struct Asking {
    notices: watch::Receiver<Notices>,
    healths: watch::Receiver<Healths>,
    requests: Requests,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Asking {
    fn start(endpoint: &str) -> Self {
        let Ok(ImdsArg::Endpoint(endpoint)) = endpoint.parse() else { panic!("{endpoint} is an endpoint") };
        let (notices_sender, notices) = watch::channel(Notices::default());
        let (healths_sender, healths) = watch::channel(Healths::default());
        let (requests, stop) = (Requests::default(), CancellationToken::new());
        let imds = Imds {
            endpoint,
            interval: INTERVAL,
            clock: Clock::start(),
            notices: notices_sender,
            healths: healths_sender,
            requests: requests.clone(),
        };
        let task = tokio::spawn(imds.run(stop.clone()));
        Self { notices, healths, requests, stop, task }
    }

    async fn until(&mut self, what: &str, mut holds: impl FnMut(&Notices) -> bool) {
        let reached = tokio::time::timeout(SOON, self.notices.wait_for(|notices| holds(notices))).await;
        assert!(reached.is_ok_and(|told| told.is_ok()), "waited for {what}: {:?}", self.notices.borrow());
    }

    /// Once all four are known, whatever they say.
    async fn until_known(&mut self) {
        self.until("all documents", |notices| notices.iter().count() == Document::ALL.len()).await;
    }

    fn count(&self, document: &'static str, result: &'static str) -> u64 {
        self.requests.get_or_create(&[("document", document), ("result", result)]).get()
    }

    async fn until_asked(&self, document: &'static str, result: &'static str, count: u64) {
        let asked = async {
            while self.count(document, result) < count {
                tokio::time::sleep(INTERVAL).await;
            }
        };
        assert!(tokio::time::timeout(SOON, asked).await.is_ok(), "{document} was not {result} {count} times");
    }

    /// Why the source is down.
    fn down(&self) -> Option<String> {
        self.healths.borrow().iter().next().and_then(|(_, health)| health.down.clone())
    }

    async fn end(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

fn count_of(notices: &Notices, trigger: Trigger) -> Option<usize> {
    notices.of(trigger).map(|of| of.len())
}

#[tokio::test]
async fn a_notice_comes_and_is_cancelled() {
    let (fake, endpoint) = FakeImds::start().await;
    let mut asking = Asking::start(&endpoint);
    asking.until_known().await;
    assert!(asking.notices.borrow().iter().all(|(_, of)| of.is_empty()));
    let texts = [
        (Document::InstanceAction, TERMINATE),
        (Document::RebalanceRecommendation, r#"{"noticeTime": "2126-11-28T13:00:00Z"}"#),
        (
            Document::ScheduledMaintenance,
            r#"[{"NotBefore": "21 Jan 2127 09:00:43 GMT", "Code": "system-reboot", "EventId": "e-1", "State": "active"}]"#,
        ),
        (Document::TargetLifecycleState, "Terminated"),
    ];
    for (document, text) in texts {
        fake.put(document, text);
        asking.until(document.path(), |notices| count_of(notices, document.trigger()) == Some(1)).await;
        let others = asking.notices.borrow().iter().map(|(_, of)| of.len()).sum::<usize>();
        assert_eq!(others, 1, "{}: the others say nothing", document.path());
        match document {
            Document::TargetLifecycleState => fake.put(document, "InService"),
            _ => fake.remove(document),
        }
        asking.until("that it is gone", |notices| count_of(notices, document.trigger()) == Some(0)).await;
    }
    asking.end().await;
    let inner = fake.inner();
    assert_eq!((inner.tokens_given, inner.refused, inner.without_token), (1, 0, 0), "one token, and none without");
}

#[tokio::test]
async fn hibernation_begins_at_once_and_is_the_same_notice_while_it_lasts() {
    let (fake, endpoint) = FakeImds::start().await;
    fake.put(Document::InstanceAction, &TERMINATE.replace("terminate", "hibernate"));
    let before = Clock::start().now();
    let mut asking = Asking::start(&endpoint);
    asking.until("the notice", |notices| count_of(notices, Trigger::SpotInterruption) == Some(1)).await;
    let first = asking.notices.borrow().of(Trigger::SpotInterruption).unwrap().first().unwrap().clone();
    assert!(before <= first.deadline && first.deadline <= before + SOON, "{first:?}");
    asking.until_asked(Document::InstanceAction.path(), "ok", 5).await;
    assert_eq!(asking.notices.borrow().of(Trigger::SpotInterruption).unwrap().first(), Some(&first));
    asking.end().await;
}

#[tokio::test]
async fn a_token_that_is_refused_is_renewed_and_nothing_is_lost_meanwhile() {
    let (fake, endpoint) = FakeImds::start().await;
    fake.put(Document::InstanceAction, TERMINATE);
    let mut asking = Asking::start(&endpoint);
    asking.until_known().await;
    asking.notices.mark_unchanged();
    for round in 1..=3 {
        fake.inner().token += 1;
        asking.until_asked("token", "ok", round + 1).await;
        let path = Document::InstanceAction.path();
        asking.until_asked(path, "unauthorized", round).await;
        // Not before the new one was used.
        asking.until_asked(path, "ok", asking.count(path, "ok") + 1).await;
    }
    assert!(!asking.notices.has_changed().unwrap(), "what was known stayed known");
    assert_eq!(asking.down(), None);
    asking.end().await;
    assert_eq!(fake.inner().without_token, 0);
}

#[tokio::test]
async fn a_token_is_renewed_before_its_end() {
    let (fake, endpoint) = FakeImds::start().await;
    fake.inner().ttl = Some(1);
    let begin = Monotonic::now();
    let asking = Asking::start(&endpoint);
    asking.until_asked("token", "ok", 3).await;
    assert!(begin.elapsed() >= Duration::from_millis(1800), "two of them had lived");
    assert!(begin.elapsed() < Duration::from_secs(10), "and not for the six hours that were asked for");
    asking.end().await;
    let inner = fake.inner();
    assert!(inner.refused == 0 && inner.documents_given > 100, "{} of {}", inner.refused, inner.documents_given);
}

#[tokio::test]
async fn without_tokens_nothing_is_known_and_version_1_is_not_tried() {
    let (fake, endpoint) = FakeImds::start().await;
    fake.put(Document::InstanceAction, TERMINATE);
    let mut asking = Asking::start(&endpoint);
    asking.until_known().await;
    for fault in [Fault::Status(401), Fault::Status(403), Fault::Status(500), Fault::Hangs, Fault::Text(" \n")] {
        fake.fault("token", Some(fault));
        // The present one is good for hours.
        fake.inner().token += 1;
        asking.until("that nothing is known", |notices| notices.iter().count() == 0).await;
        let why = asking.down().unwrap_or_default();
        assert!(why.starts_with(&format!("ask {endpoint} for a token: ")), "{fault:?}: {why}");
        fake.fault("token", None);
        asking.until_known().await;
        assert_eq!(count_of(&asking.notices.borrow(), Trigger::SpotInterruption), Some(1));
    }
    asking.end().await;
    assert_eq!(fake.inner().without_token, 0);
}

#[tokio::test]
async fn a_document_that_fails_is_not_known_and_the_others_are() {
    let (fake, endpoint) = FakeImds::start().await;
    fake.put(Document::RebalanceRecommendation, r#"{"noticeTime": "2126-11-28T13:00:00Z"}"#);
    fake.put(Document::InstanceAction, TERMINATE);
    let path = Document::InstanceAction.path();
    let mut asking = Asking::start(&endpoint);
    asking.until_known().await;
    let faults = [
        (Fault::Status(500), "it answers 500 Internal Server Error", "refused"),
        (Fault::Status(302), "it answers 302 Found", "refused"),
        (Fault::Status(401), "it answers 401 Unauthorized", "unauthorized"),
        (Fault::Hangs, "no answer for 2s", "deadline"),
        (Fault::Stalls, "no answer for 2s", "deadline"),
        (Fault::Cut, "", "read"),
        (Fault::Endless, "length limit exceeded", "read"),
        (Fault::Text(r#"{"action": "termi"#), "EOF while parsing a string at line 1 column 17", "malformed"),
        (Fault::Text("<html>"), "expected value at line 1 column 1", "malformed"),
    ];
    for (fault, expected, result) in faults {
        let before = asking.count(path, result);
        fake.fault(path, Some(fault));
        asking.until("that it is not known", |notices| count_of(notices, Trigger::SpotInterruption).is_none()).await;
        let known: Vec<_> = asking.notices.borrow().iter().map(|(trigger, of)| (trigger, of.len())).collect();
        let others = [(Trigger::LifecycleHook, 0), (Trigger::Maintenance, 0), (Trigger::Rebalance, 1)];
        assert_eq!(known, others, "{fault:?}");
        let why = asking.down().unwrap_or_default();
        assert!(why.contains(path) && why.contains(expected), "{fault:?}: {why}");
        assert!(asking.count(path, result) > before, "{fault:?} counts as {result}");
        fake.fault(path, None);
        asking.until("it again", |notices| count_of(notices, Trigger::SpotInterruption) == Some(1)).await;
    }
    asking.end().await;
}

#[tokio::test]
async fn where_there_is_no_service_it_is_asked_for_more_and_more_rarely() {
    // Of a listener that is closed again: nobody is there.
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let begin = Monotonic::now();
    let asking = Asking::start(&format!("http://{nobody}"));
    asking.until_asked("token", "connect", 6).await;
    // After 20, 40, 80, 160, 320 ms.
    assert!(begin.elapsed() >= Duration::from_millis(620), "six tries within {:?}", begin.elapsed());
    assert_eq!(asking.notices.borrow().iter().count(), 0, "nothing is known");
    assert!(asking.down().is_some_and(|why| why.contains("onnection refused")), "{:?}", asking.down());
    asking.end().await;
}

#[tokio::test]
async fn the_agent_says_once_what_is_new_and_shows_what_is_known() {
    let (fake, endpoint) = FakeImds::start().await;
    tokio::task::spawn_blocking(move || {
        let mut agent = Serving::start(&["--imds-endpoint", &endpoint, "--imds-interval", "1s"]);
        let read = until(&mut agent.log, "instance metadata is read");
        let all = "spot/instance-action events/recommendations/rebalance events/maintenance/scheduled \
                   autoscaling/target-lifecycle-state";
        assert_eq!(read["documents"], all);
        let has = |line: &str| agent.get("/metrics").2.lines().any(|of| of == line).then_some(());
        wait_for("no notice", || has("ebb_notices{trigger=\"spot_interruption\"} 0.0"));
        wait_for("the source", || has("ebb_source_up{source=\"imds\"} 1.0"));

        fake.put(Document::InstanceAction, TERMINATE);
        wait_for("the notice", || has("ebb_notices{trigger=\"spot_interruption\"} 1.0"));
        let seconds = "ebb_notice_deadline_timestamp_seconds{trigger=\"spot_interruption\"} 4951544520.0";
        wait_for("its deadline", || has(seconds));
        common::assert_documented(&agent.get("/metrics").2);
        fake.fault("instance-action", Some(Fault::Status(503)));
        wait_for("the fault", || has("ebb_source_up{source=\"imds\"} 0.0"));
        let page = agent.get("/metrics").2;
        assert!(!page.contains("ebb_notices{trigger=\"spot_interruption\"}"), "what is not known is left out");
        assert!(
            page.contains("ebb_imds_requests_total{document=\"spot/instance-action\",result=\"refused\"}"),
            "{page}"
        );
        fake.fault("instance-action", None);
        wait_for("the notice again", || has("ebb_notices{trigger=\"spot_interruption\"} 1.0"));
        fake.remove(Document::InstanceAction);
        wait_for("that it is gone", || has("ebb_notices{trigger=\"spot_interruption\"} 0.0"));

        let said = until(&mut agent.log, "notice");
        assert_eq!(said["trigger"], "spot_interruption", "{said}");
        assert_eq!(said["because"], "spot interruption: terminate at 2126-11-28T13:02:00.000Z", "{said}");
        let lost = until(&mut agent.log, "instance metadata is not read");
        assert_eq!((&lost["documents"], &lost["kind"]), (&"spot/instance-action".into(), &"refused".into()), "{lost}");
        assert_eq!(until(&mut agent.log, "instance metadata is read")["documents"], "spot/instance-action");
        // The very next: the notice that was known all the time was not told of again.
        let mut line = String::new();
        std::io::BufRead::read_line(&mut agent.log, &mut line).unwrap();
        assert!(line.contains("notice is gone"), "{line}");
    })
    .await
    .unwrap();
}
