//! The uplink against a coordinator of a few lines: what it sends, what it takes, and that it comes back.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant as Monotonic};

use ebb_agent::clock::Clock;
use ebb_agent::metrics::Metrics;
use ebb_agent::replay::Replay;
use ebb_agent::sampler::{Input, Sampler};
use ebb_agent::uplink::Uplink;
use ebb_core::classify::IdlePolicy;
use ebb_core::report::Report;
use ebb_proto::v1;
use ebb_proto::v1::reports_server::{Reports, ReportsServer};
use futures::{Stream, StreamExt};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

/// Hands on each first report with its token, then ends the stream as `UNAVAILABLE`.
struct Coordinator {
    policy: IdlePolicy,
    heard: mpsc::Sender<(String, Report)>,
}

#[tonic::async_trait]
impl Reports for Coordinator {
    type StreamStream = Pin<Box<dyn Stream<Item = Result<v1::Settings, Status>> + Send>>;

    async fn stream(&self, request: Request<Streaming<v1::Report>>) -> Result<Response<Self::StreamStream>, Status> {
        let token = request.metadata().get("authorization").unwrap().to_str().unwrap().to_owned();
        let mut reports = request.into_inner();
        let heard = self.heard.clone();
        let settings = futures::stream::iter([Ok(v1::Settings::from(&self.policy))]);
        let end = futures::stream::once(async move {
            let report = reports.message().await?.unwrap();
            heard.send((token, Report::try_from(report).unwrap())).await.unwrap();
            Err(Status::unavailable("not the leader"))
        });
        Ok(Response::new(Box::pin(settings.chain(end))))
    }
}

#[tokio::test]
async fn reports_carry_the_token_and_streams_are_opened_again() {
    let dir = tempfile::tempdir().unwrap();
    let token_file = dir.path().join("token");
    let recording = dir.path().join("recording");
    std::fs::write(&token_file, "first\n").unwrap();
    std::fs::write(&recording, "{\"utilization\": {\"cpu\": 20, \"gpu\": \"absent\"}}").unwrap();

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let policy = IdlePolicy { window: Duration::from_secs(7), ..IdlePolicy::default() };
    let (heard, mut reports) = mpsc::channel(1);
    let service = ReportsServer::new(Coordinator { policy: policy.clone(), heard });
    let server = tonic::transport::Server::builder().add_service(service);
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));

    let clock = Clock::start();
    let interval = Duration::from_secs(1);
    let replay = Input::Replay(Replay::open(&recording, interval).unwrap());
    let sample = Sampler::new(replay, clock, IdlePolicy::default()).sample(Monotonic::now());
    let (_samples, sample_receiver) = watch::channel(Some(Arc::new(sample)));
    let (uid, node_uid) = watch::channel(None);
    let (policy_sender, mut policy_receiver) = watch::channel(IdlePolicy::default());
    let stop = CancellationToken::new();
    let metrics = Metrics::default();
    let uplink = Uplink {
        coordinator: format!("http://{address}").parse().unwrap(),
        ca: dir.path().join("none"),
        server_name: None,
        token_file: token_file.clone(),
        node: "n".into(),
        node_uid,
        samples: sample_receiver,
        interval,
        clock,
        policy: policy_sender,
        has_ray: watch::Sender::new(None),
        metrics: metrics.clone(),
    };
    let running = tokio::spawn(uplink.run(stop.clone()));

    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(reports.try_recv().is_err(), "nothing is said of a node whose UID is not known");
    uid.send_replace(Some("u".into()));
    let (token, first) = reports.recv().await.unwrap();
    assert_eq!((token.as_str(), first.node.as_str(), first.node_uid.as_str()), ("Bearer first", "n", "u"));
    let settings = policy_receiver.wait_for(|current| *current == policy);
    assert!(tokio::time::timeout(Duration::from_secs(5), settings).await.is_ok(), "the coordinator's settings hold");

    std::fs::write(&token_file, "second\n").unwrap();
    let (token, second) = tokio::time::timeout(Duration::from_secs(5), reports.recv()).await.unwrap().unwrap();
    assert_eq!(token, "Bearer second", "the token is read for every stream");
    assert!(second.is_newer_than(&first));

    stop.cancel();
    running.await.unwrap();
    assert!(metrics.reports_sent.get() >= 2);
    assert_eq!(metrics.coordinator_connected.get(), 0);
}
