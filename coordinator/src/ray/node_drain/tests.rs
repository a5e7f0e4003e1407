use std::collections::BTreeMap;

use ebb_core::admission::Found;
use ebb_core::fleet::{Event, Fleet};
use ebb_core::kubernetes::{Node, Pod};
use ebb_core::policy::Policy;
use ebb_core::ray::{Amounts, Cluster, WorkerGroup};
use ebb_page::Page;
use ebb_proto::ray::autoscaler::NodeStatus;
use k8s_openapi::api::authentication::v1::TokenReviewStatus;
use prometheus_client::registry::Registry;
use serde_json::json;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};
use tower::ServiceExt;

use super::super::Head;
use super::super::fake_head::FakeHead;
use super::*;
use crate::decisions::Decisions;
use crate::driver::{Driver, INBOX};

const NAME: &str = "ml/train";
const UNTIL: &str = "2026-11-29T03:00:00Z";

/// Tokens are the names of the nodes they are bound to; `nobody` is refused, and of `down` nothing is known.
struct Fake;

impl Review for Fake {
    async fn review(&self, token: &str, audience: &str) -> Result<TokenReviewStatus, String> {
        if token == "down" {
            return Err("no route".to_owned());
        }
        let extra = json!({"authentication.kubernetes.io/node-name": [token],
            "authentication.kubernetes.io/node-uid": [format!("{token}-uid")]});
        let user = json!({"username": "agent", "extra": extra});
        let status = json!({"authenticated": token != "nobody", "audiences": [audience], "user": user});
        serde_json::from_value(status).map_err(|error| error.to_string())
    }

    async fn find(&self, _: &str) -> Result<Found, String> {
        Err("the tokens say it".to_owned())
    }
}

/// A coordinator that leads, with a Ray cluster whose head is a fake. Its worker is on node `a`, and none on `b`.
struct Lab {
    router: Router,
    fake: FakeHead,
    standing: Standing,
    /// The head's.
    serving: Option<Runtime>,
    address: std::net::SocketAddr,
    _stop: DropGuard,
}

async fn lab() -> Lab {
    let fake = FakeHead::default();
    fake.set(|state| (state.status, state.instance) = (Some(NodeStatus::Running), "train-cpu-0"));
    let (address, serving) = fake.serve(std::net::SocketAddr::from(([127, 0, 0, 1], 0)));
    let labels: BTreeMap<_, _> = [("ray.io/group".to_owned(), "cpu".to_owned())].into();
    let pod = Pod { namespace: "ml".into(), labels: labels.clone(), ..Pod::default() };
    let group =
        WorkerGroup { name: "cpu".into(), labels, pod: pod.clone(), resources: Amounts::default(), min: 0, max: 1 };
    let worker_groups = vec![group];
    let cluster = Cluster { address: address.to_string(), worker_groups, ..Cluster::default() };
    let policy = Policy { ray: [(NAME.to_owned(), cluster.clone())].into(), ..Policy::default() };

    let (inbox, events) = mpsc::channel(INBOX);
    let (queries, asked) = mpsc::channel(4);
    let (outbox, mut actions) = mpsc::unbounded_channel();
    let metrics = Arc::new(Metrics::register(&mut Registry::default()));
    let (clock, standing, stop) = (Clock::start(), Standing::new(inbox.clone()), CancellationToken::new());
    let (fleet, page, decisions) = (Fleet::new(policy), Page::new("test"), Decisions::default());
    let driver = Driver {
        fleet,
        clock,
        inbox: events,
        queries: asked,
        outbox,
        metrics: metrics.clone(),
        page,
        decisions,
        record: None,
    };
    tokio::spawn(driver.run(stop.clone()));
    tokio::spawn(async move { while actions.recv().await.is_some() {} });
    for name in ["a", "b"] {
        let node = Node { name: name.into(), uid: format!("{name}-uid"), ..Node::default() };
        inbox.send(Event::NodeApplied(node)).await.unwrap();
    }
    let (uid, name, node) = ("uid".to_owned(), "train-cpu-0".to_owned(), Some("a".to_owned()));
    inbox.send(Event::PodApplied(Pod { uid, name, node, ..pod })).await.unwrap();
    standing.set_leading(true).await;
    standing.set_synced(true).await;
    let gcs = Arc::new(Gcs::new(cluster));
    let head = Head { name: NAME.into(), gcs: gcs.clone(), metrics: metrics.clone() };
    tokio::spawn(stop.clone().run_until_cancelled_owned(head.keep_asking(standing.clone(), inbox)));
    let drains = NodeDrains {
        tokens: Arc::new(Tokens::new(Fake, "ebb-coordinator", "agent".into())),
        heads: [(NAME.to_owned(), gcs)].into(),
        queries,
        standing: standing.clone(),
        clock,
        in_vain: Mutex::default(),
        metrics,
    };
    let router = router(drains);
    Lab { router, fake, standing, serving: Some(serving), address, _stop: stop.drop_guard() }
}

impl Lab {
    /// The answer to a hook's question about the node, and its words.
    async fn ask(&self, token: &str, node: &str) -> (StatusCode, String) {
        let facts = json!({"node": node, "reason": "reclaimed", "until": UNTIL, "trigger": "spot_interruption"});
        let request = axum::http::Request::post(RAY_HOOK)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::AUTHORIZATION, format!("Bearer {token}"))
            .body(axum::body::Body::from(facts.to_string()))
            .unwrap();
        let response = self.router.clone().oneshot(request).await.unwrap();
        let status = response.status();
        let again = response.headers().get(header::RETRY_AFTER).map(|value| value.to_str().unwrap().to_owned());
        assert_eq!(again.as_deref(), (status == StatusCode::ACCEPTED).then_some("1"));
        let body = axum::body::to_bytes(response.into_body(), 4096).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    /// Asks again and again, as an agent does.
    async fn ask_until(&self, is_it: impl Fn(&(StatusCode, String)) -> bool) {
        let mut answer = self.ask("a", "a").await;
        for _ in 0..100 {
            if is_it(&answer) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
            answer = self.ask("a", "a").await;
        }
        panic!("{answer:?}");
    }

    fn serving(&mut self) -> Runtime {
        self.serving.take().unwrap()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.serving.take().into_iter().for_each(Runtime::shutdown_background);
    }
}

#[tokio::test]
async fn a_drain_has_ray_drain_its_node_and_waits_until_it_is_gone() {
    let lab = lab().await;
    lab.ask_until(|(status, said)| *status == StatusCode::ACCEPTED && said.ends_with("is asked to drain")).await;
    lab.ask_until(|(_, said)| said == "ml/train-cpu-0 of Ray cluster ml/train has work or objects left").await;
    let drains = lab.fake.0.lock().unwrap().drains.clone();
    for drain in &drains {
        // Preemption, never the reason that ends the node at once.
        assert_eq!((&*drain.node_id, drain.reason), (&[1][..], 2));
        assert_eq!(drain.reason_message, "Kubernetes node a is drained: reclaimed");
        assert_eq!(drain.deadline_timestamp_ms, 1_795_921_200_000);
    }
    lab.ask("a", "a").await;
    assert_eq!(lab.fake.0.lock().unwrap().drains.len(), drains.len(), "it is not asked once it drains");
    lab.fake.set(|state| state.status = Some(NodeStatus::Dead));
    lab.ask_until(|(status, _)| *status == StatusCode::NO_CONTENT).await;
    // Where nothing of Ray's is, nothing is waited for.
    assert_eq!(lab.ask("b", "b").await.0, StatusCode::NO_CONTENT);
}

#[tokio::test]
async fn only_the_nodes_own_agent_may_ask_and_only_the_leader_answers() {
    let lab = lab().await;
    assert_eq!(lab.ask("b", "a").await.0, StatusCode::FORBIDDEN);
    assert_eq!(lab.ask("nobody", "nobody").await.0, StatusCode::UNAUTHORIZED);
    assert_eq!(lab.ask("down", "down").await.0, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(lab.ask("gone", "gone").await.0, StatusCode::SERVICE_UNAVAILABLE);
    lab.standing.set_synced(false).await;
    assert_eq!(lab.ask("a", "a").await.0, StatusCode::SERVICE_UNAVAILABLE);
    lab.standing.set_synced(true).await;
    lab.standing.set_leading(false).await;
    assert_eq!(lab.ask("a", "a").await.0, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(lab.fake.0.lock().unwrap().drains.len(), 0);
}

#[tokio::test]
async fn a_head_that_is_started_anew_during_a_drain_is_waited_for_and_what_it_has_lost_is_not() {
    let mut lab = lab().await;
    lab.ask_until(|(_, said)| said.ends_with("has work or objects left")).await;
    lab.serving().shutdown_background();
    lab.ask_until(|(status, said)| *status == StatusCode::ACCEPTED && said.contains("cannot be reached")).await;
    // As Ray without fault tolerance: it knows none of its nodes any more, and these end themselves.
    lab.fake.set(|state| state.status = None);
    lab.serving = Some(lab.fake.serve(lab.address).1);
    lab.ask_until(|(status, _)| *status == StatusCode::NO_CONTENT).await;
}
