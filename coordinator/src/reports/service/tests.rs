//! The real server and client over loopback, without TLS: what is tested is who may say what.

use std::time::Duration;

use ebb_core::admission::Found;
use ebb_core::classify::{Class, IdlePolicy, Utilization};
use ebb_core::kubernetes::Node;
use ebb_core::time::Instant as Moment;
use ebb_proto::TOKEN_AUDIENCE;
use ebb_proto::v1::reports_server::ReportsServer;
use k8s_openapi::api::authentication::v1::TokenReviewStatus;
use prometheus_client::registry::Registry;
use serde_json::json;
use tonic::Code;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Endpoint, Server};

use super::*;
use crate::cluster::Nodes;
use crate::metrics_api::Known;

/// Tokens are the names of the nodes they are bound to; `nobody` is refused.
struct Fake;

impl Review for Fake {
    async fn review(&self, token: &str, audience: &str) -> Result<TokenReviewStatus, String> {
        let extra = json!({"authentication.kubernetes.io/node-name": [token],
            "authentication.kubernetes.io/node-uid": [format!("{token}-uid")]});
        let user = json!({"username": "system:serviceaccount:ebb:ebb-agent", "extra": extra});
        let status = json!({"authenticated": token != "nobody", "audiences": [audience], "user": user});
        serde_json::from_value(status).map_err(|error| error.to_string())
    }

    async fn find(&self, _: &str) -> Result<Found, String> {
        Err("the tokens say it".to_owned())
    }
}

struct Lab {
    endpoint: Endpoint,
    standing: Standing,
    events: mpsc::Receiver<Event>,
    seen: Seen,
    clock: Clock,
    _stop: tokio_util::sync::DropGuard,
}

/// A coordinator that leads, and a cluster with the nodes `a` and `b`.
async fn lab() -> Lab {
    let (inbox, mut events) = mpsc::channel(64);
    let standing = Standing::new(inbox.clone());
    standing.set_leading(true).await;
    standing.set_synced(true).await;
    while events.try_recv().is_ok() {}
    let seen = Seen { nodes: Nodes::default(), usage: Known::new(true) };
    for name in ["a", "b"] {
        seen.note(&Event::NodeApplied(Node { name: name.into(), uid: format!("{name}-uid"), ..Node::default() }));
    }
    let metrics = Arc::new(Metrics::register(&mut Registry::default()));
    let clock = Clock::start();
    let gate = Gate { seen: seen.clone(), clock, standing: standing.clone(), inbox, metrics };
    let stop = CancellationToken::new();
    let tokens = Arc::new(Tokens::new(Fake, TOKEN_AUDIENCE, "system:serviceaccount:ebb:ebb-agent".into()));
    let settings = Settings::from(&IdlePolicy::default());
    let service = Service { tokens, gate, settings, stop: stop.clone() };
    let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = incoming.local_addr().unwrap();
    let server = Server::builder().add_service(ReportsServer::new(service));
    tokio::spawn(server.serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned()));
    let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
    Lab { endpoint, standing, events, seen, clock, _stop: stop.drop_guard() }
}

fn report(node: &str) -> v1::Report {
    v1::Report::from(&Report {
        node: node.into(),
        node_uid: format!("{node}-uid"),
        agent_start: Moment::from_millis(1),
        sequence: 1,
        sampled_at: Moment::from_millis(2),
        class: Class::Idle { since: Moment::from_millis(1) },
        utilization: Utilization::default(),
        gpu_waste: None,
    })
}

impl Lab {
    /// Opens a stream with this token, says these, and gives what came back: settings, then how it ended.
    async fn say(&self, token: &str, reports: Vec<v1::Report>) -> (bool, Code) {
        let mut client = Grpc::new(self.endpoint.connect().await.unwrap());
        client.ready().await.unwrap();
        let mut request = Request::new(tokio_stream::iter(reports));
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        let path = PathAndQuery::from_static("/ebb.v1.Reports/Stream");
        let codec = tonic_prost::ProstCodec::<v1::Report, Settings>::default();
        let mut answers = match client.streaming(request, path, codec).await {
            Ok(response) => response.into_inner(),
            Err(status) => return (false, status.code()),
        };
        let settings = answers.message().await.unwrap();
        assert_eq!(IdlePolicy::try_from(settings.unwrap()).unwrap(), IdlePolicy::default());
        (true, answers.message().await.map_or_else(|status| status.code(), |_| Code::Ok))
    }

    async fn reported(&mut self) -> Option<String> {
        match tokio::time::timeout(Duration::from_millis(200), self.events.recv()).await {
            Ok(Some(Event::Report(report))) => Some(report.node),
            Ok(other) => panic!("expected a report, not {other:?}"),
            Err(_) => None,
        }
    }
}

#[tokio::test]
async fn an_agent_is_given_settings_and_heard_about_its_own_node() {
    let mut lab = lab().await;
    assert_eq!(lab.say("a", vec![report("a"), report("a")]).await, (true, Code::Ok));
    assert_eq!(lab.reported().await.as_deref(), Some("a"));
    assert_eq!(lab.reported().await.as_deref(), Some("a"));
}

#[tokio::test]
async fn nobody_is_heard_about_another_node() {
    let mut lab = lab().await;
    assert_eq!(lab.say("a", vec![report("b")]).await, (true, Code::PermissionDenied));
    let recreated = v1::Report { node_uid: "other".into(), ..report("a") };
    assert_eq!(lab.say("a", vec![recreated]).await, (true, Code::PermissionDenied));
    assert_eq!(lab.say("gone", vec![report("gone")]).await, (true, Code::NotFound));
    assert_eq!(lab.say("a", vec![v1::Report { class: None, ..report("a") }]).await, (true, Code::InvalidArgument));
    assert_eq!(lab.say("nobody", vec![report("a")]).await, (false, Code::Unauthenticated));
    assert_eq!(lab.reported().await, None);
}

#[tokio::test]
async fn a_flood_ends_the_stream() {
    let lab = lab().await;
    assert_eq!(lab.say("a", vec![report("a"); 50]).await, (true, Code::ResourceExhausted));
}

#[tokio::test]
async fn only_a_leader_with_a_whole_picture_listens() {
    let lab = lab().await;
    lab.standing.set_synced(false).await;
    assert_eq!(lab.say("a", vec![report("a")]).await, (false, Code::Unavailable));
    lab.standing.set_synced(true).await;
    lab.standing.set_leading(false).await;
    assert_eq!(lab.say("a", vec![report("a")]).await, (false, Code::Unavailable));
}

#[tokio::test]
async fn what_is_used_is_known_at_once_and_passes_the_same_gate() {
    let lab = lab().await;
    let used = |node: &str, window_ms| {
        let amount = v1::Amount { cpu_nanocores: 7, memory_bytes: 8 };
        let sample = v1::Sample { at_ms: 2, window_ms, amount: Some(amount) };
        v1::Report { usage: Some(v1::Usage { node: Some(sample), pods: Vec::new() }), ..report(node) }
    };
    let known = || {
        lab.seen.usage.read(|usages| {
            let nodes = usages.nodes(lab.clock.now());
            nodes.map(|node| (node.name.to_string(), node.usage.amount.cpu_nanocores)).collect::<Vec<_>>()
        })
    };
    assert_eq!(lab.say("a", vec![used("b", 10)]).await, (true, Code::PermissionDenied));
    assert_eq!(lab.say("a", vec![used("a", 0)]).await, (true, Code::InvalidArgument));
    assert_eq!(known(), []);
    assert_eq!(lab.say("a", vec![used("a", 10)]).await, (true, Code::Ok));
    assert_eq!(known(), [("a".to_owned(), 7)]);
}
