//! A head that is no Ray: it speaks the same protocol, and has faults to switch on.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Mutex;

use ebb_core::ray::{Cluster, DrainReason, Drained, Launches, NodeState, Problem};
use ebb_proto::ray::autoscaler::autoscaler_state_service_server::{
    AutoscalerStateService, AutoscalerStateServiceServer,
};
use ebb_proto::ray::autoscaler::{
    AutoscalingState, ClusterResourceState, DrainNodeReason, DrainNodeReply, DrainNodeRequest, GetClusterStatusReply,
    GetClusterStatusRequest, NodeState as NodeMessage, NodeStatus, ReportAutoscalingStateReply,
    ReportAutoscalingStateRequest,
};
use prometheus_client::registry::Registry;
use tokio::runtime::Runtime;
use tokio::time::timeout;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use super::*;

#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Fault {
    #[default]
    None,
    /// Of another version, or no GCS at all.
    Nonsense,
    Silence,
}

#[derive(Clone, Default)]
struct FakeHead(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    fault: Fault,
    token: Option<&'static str>,
    idle_millis: i64,
    asked: u32,
    busy: bool,
    drains: Vec<DrainNodeRequest>,
    reported: Option<AutoscalingState>,
}

#[tonic::async_trait]
impl AutoscalerStateService for FakeHead {
    async fn get_cluster_status(
        &self,
        request: Request<GetClusterStatusRequest>,
    ) -> Result<Response<GetClusterStatusReply>, Status> {
        let (fault, idle_duration_ms) = {
            let mut state = self.0.lock().unwrap();
            state.asked += 1;
            state.idle_millis += 1000;
            let token = request.metadata().get("authorization").map(|value| value.to_str().unwrap());
            if token.map(str::to_owned) != state.token.map(|token| format!("Bearer {token}")) {
                return Err(Status::unauthenticated("InvalidAuthToken"));
            }
            (state.fault, state.idle_millis)
        };
        if fault == Fault::Silence {
            std::future::pending::<()>().await;
        }
        let status = if fault == Fault::Nonsense { 77 } else { NodeStatus::Idle.into() };
        let node = NodeMessage { node_id: vec![1], status, idle_duration_ms, ..NodeMessage::default() };
        let state = ClusterResourceState { node_states: vec![node], ..ClusterResourceState::default() };
        Ok(Response::new(GetClusterStatusReply { cluster_resource_state: Some(state) }))
    }

    /// As Ray does: the wrong reason ends the node and is never answered; what it does not know, it accepts.
    async fn drain_node(&self, request: Request<DrainNodeRequest>) -> Result<Response<DrainNodeReply>, Status> {
        let request = request.into_inner();
        let is_accepted = match request.reason() {
            DrainNodeReason::Unspecified => std::future::pending().await,
            DrainNodeReason::IdleTermination => !self.0.lock().unwrap().busy,
            DrainNodeReason::Preemption => true,
        };
        let rejection_reason_message = if is_accepted { String::new() } else { "no longer idle".into() };
        self.set(|state| state.drains.push(request));
        Ok(Response::new(DrainNodeReply { is_accepted, rejection_reason_message }))
    }

    async fn report_autoscaling_state(
        &self,
        request: Request<ReportAutoscalingStateRequest>,
    ) -> Result<Response<ReportAutoscalingStateReply>, Status> {
        self.set(|state| state.reported = request.into_inner().autoscaling_state);
        Ok(Response::new(ReportAutoscalingStateReply {}))
    }
}

impl FakeHead {
    fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.0.lock().unwrap());
    }

    /// In a runtime of its own, with which its connections end as well.
    fn serve(&self, address: SocketAddr) -> (SocketAddr, Runtime) {
        let listener = std::net::TcpListener::bind(address).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let server = Server::builder().add_service(AutoscalerStateServiceServer::new(self.clone()));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.spawn(async move {
            let incoming = TcpListenerStream::new(tokio::net::TcpListener::from_std(listener).unwrap());
            server.serve_with_incoming(incoming).await.unwrap();
        });
        (address, runtime)
    }
}

fn head(address: SocketAddr, token_file: Option<PathBuf>) -> Head {
    let cluster = Cluster { address: address.to_string(), token_file, ..Cluster::default() };
    let metrics = Arc::new(Metrics::register(&mut Registry::default()));
    Head { name: "ml/train".into(), gcs: Arc::new(Gcs::new(cluster)), metrics }
}

fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

async fn next(events: &mut mpsc::Receiver<Event>) -> Answer {
    let event = timeout(Duration::from_secs(30), events.recv()).await.unwrap().unwrap();
    let Event::Ray { cluster, answer } = event else { panic!("{event:?}") };
    assert_eq!(cluster, "ml/train");
    answer
}

/// What the head said before the change may still be under way.
async fn becomes(events: &mut mpsc::Receiver<Event>, is_it: impl Fn(&Answer) -> bool) {
    for _ in 0..3 {
        if is_it(&next(events).await) {
            return;
        }
    }
    panic!("not within three answers");
}

#[tokio::test]
async fn each_fault_of_a_head_is_told_once_and_its_end_as_well() {
    let fake = FakeHead::default();
    let (address, serving) = fake.serve(loopback());
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    fs::write(&token, "right\n").unwrap();
    fake.set(|state| state.token = Some("right"));
    let (inbox, mut events) = mpsc::channel(8);
    let (rest, _kept) = mpsc::channel(8);
    let standing = Standing::new(rest);
    let asking = tokio::spawn(head(address, Some(token.clone())).keep_asking(standing.clone(), inbox));
    sleep(Duration::from_millis(200)).await;
    assert_eq!(fake.0.lock().unwrap().asked, 0, "only the leader asks");
    standing.set_leading(true).await;
    let is_read = |answer: &Answer| matches!(answer, Answer::Read(_));
    let Answer::Read(reading) = next(&mut events).await else { panic!("nothing is wrong") };
    assert_eq!(reading.nodes["01"].state, NodeState::Idle { millis: 1000 });

    let cases = [(Fault::Nonsense, Problem::Malformed), (Fault::Silence, Problem::Late)];
    for (fault, problem) in cases {
        fake.set(|state| state.fault = fault);
        assert_eq!(next(&mut events).await, Answer::Unreadable(problem), "{fault:?}");
        fake.set(|state| state.fault = Fault::None);
        assert!(is_read(&next(&mut events).await), "{fault:?}");
    }
    fs::write(&token, "wrong").unwrap();
    assert_eq!(next(&mut events).await, Answer::Unreadable(Problem::Unauthenticated));
    fs::write(&token, "right").unwrap();
    assert!(is_read(&next(&mut events).await), "the file is read again");
    fs::remove_file(&token).unwrap();
    becomes(&mut events, |answer| *answer == Answer::Unreadable(Problem::Unauthenticated)).await;
    asking.abort();
    serving.shutdown_background();
}

#[tokio::test]
async fn a_head_that_comes_back_at_the_same_address_is_found_again() {
    let fake = FakeHead::default();
    let (address, serving) = fake.serve(loopback());
    let (inbox, mut events) = mpsc::channel(8);
    let (rest, _kept) = mpsc::channel(8);
    let standing = Standing::new(rest);
    standing.set_leading(true).await;
    let asking = tokio::spawn(head(address, None).keep_asking(standing.clone(), inbox));
    becomes(&mut events, |answer| matches!(answer, Answer::Read(_))).await;
    serving.shutdown_background();
    becomes(&mut events, |answer| *answer == Answer::Unreadable(Problem::Unreachable)).await;
    let (_, serving) = fake.serve(address);
    becomes(&mut events, |answer| matches!(answer, Answer::Read(_))).await;
    // Nothing has changed but how long it has been idle, which is not told each second.
    let before = fake.0.lock().unwrap().asked;
    let quiet = timeout(Duration::from_millis(3500), next(&mut events)).await;
    assert!(quiet.is_err(), "{quiet:?}");
    let asked = fake.0.lock().unwrap().asked - before;
    assert!((2..=4).contains(&asked), "{asked} in three and a half seconds");
    asking.abort();
    serving.shutdown_background();
}

#[tokio::test]
async fn a_node_is_drained_with_a_reason_and_what_was_launched_is_told() {
    let fake = FakeHead::default();
    let (address, serving) = fake.serve(loopback());
    let gcs = head(address, None).gcs;
    let deadline = ebb_core::time::Instant::from_millis(1_000);
    let idle = || gcs.drain("0aff", DrainReason::IdleTermination, "nobody needs it", deadline);
    assert_eq!(idle().await.unwrap(), Drained::Accepted);
    fake.set(|state| state.busy = true);
    assert_eq!(idle().await.unwrap(), Drained::Refused("no longer idle".into()));
    let lost = gcs.drain("0aff", DrainReason::Preemption, "spot", deadline).await.unwrap();
    assert_eq!(lost, Drained::Accepted);
    let drains = fake.0.lock().unwrap().drains.clone();
    let seen = drains.iter().map(|drain| (drain.node_id.clone(), drain.reason, drain.deadline_timestamp_ms));
    assert_eq!(seen.collect::<Vec<_>>(), [1, 1, 2].map(|reason| (vec![0x0a, 0xff], reason, 1_000)));
    for nonsense in ["", "0", "zz", "äb"] {
        let error = gcs.drain(nonsense, DrainReason::Preemption, "", deadline).await.unwrap_err();
        assert!(error.to_string().contains("id"), "{error}");
    }
    assert_eq!(fake.0.lock().unwrap().drains.len(), 3, "nonsense is not sent");

    let launches = Launches { asked_for: vec![("cpu".into(), 2)], pods: vec![] };
    gcs.report(7, &launches).await.unwrap();
    let reported = fake.0.lock().unwrap().reported.clone().unwrap();
    assert_eq!((reported.autoscaler_state_version, reported.pending_instance_requests.len()), (7, 2));
    serving.shutdown_background();
}

#[test]
fn pauses_grow_and_end() {
    let pauses = [0, 1, 2, 3, 4, 5, 6, 99].map(|failures| pause(failures).as_secs());
    assert_eq!(pauses, [1, 1, 2, 4, 8, 15, 15, 15]);
}
