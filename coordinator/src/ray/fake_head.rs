//! A head that is no Ray: it speaks the same protocol, and has faults to switch on.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ebb_proto::ray::autoscaler::autoscaler_state_service_server::{
    AutoscalerStateService, AutoscalerStateServiceServer,
};
use ebb_proto::ray::autoscaler::{
    AutoscalingState, ClusterResourceState, DrainNodeReason, DrainNodeReply, DrainNodeRequest, GetClusterStatusReply,
    GetClusterStatusRequest, NodeState as NodeMessage, NodeStatus, ReportAutoscalingStateReply,
    ReportAutoscalingStateRequest,
};
use tokio::runtime::Runtime;
use tokio::time::sleep;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

/// Less than it is given.
pub(super) const SLOW: Duration = Duration::from_millis(1500);

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) enum Fault {
    #[default]
    None,
    /// Of another version, or no GCS at all.
    Nonsense,
    Silence,
    /// It takes its time for each answer, and gives it.
    Slow,
}

#[derive(Clone)]
pub(super) struct FakeHead(pub(super) Arc<Mutex<State>>);

#[derive(Default)]
pub(super) struct State {
    pub(super) fault: Fault,
    pub(super) token: Option<&'static str>,
    pub(super) idle_millis: i64,
    pub(super) asked: u32,
    pub(super) busy: bool,
    /// The node's; `None`: there is no node.
    pub(super) status: Option<NodeStatus>,
    /// Of which pod it says that it is.
    pub(super) instance: &'static str,
    pub(super) drains: Vec<DrainNodeRequest>,
    pub(super) reported: Option<AutoscalingState>,
}

#[tonic::async_trait]
impl AutoscalerStateService for FakeHead {
    async fn get_cluster_status(
        &self,
        request: Request<GetClusterStatusRequest>,
    ) -> Result<Response<GetClusterStatusReply>, Status> {
        let (fault, node_states) = {
            let mut state = self.0.lock().unwrap();
            state.asked += 1;
            state.idle_millis += 1000;
            let token = request.metadata().get("authorization").map(|value| value.to_str().unwrap());
            if token.map(str::to_owned) != state.token.map(|token| format!("Bearer {token}")) {
                return Err(Status::unauthenticated("InvalidAuthToken"));
            }
            let (instance_id, idle_duration_ms) = (state.instance.to_owned(), state.idle_millis);
            let node = state.status.map(|status| {
                let status = if state.fault == Fault::Nonsense { 77 } else { status.into() };
                NodeMessage { node_id: vec![1], instance_id, status, idle_duration_ms, ..NodeMessage::default() }
            });
            (state.fault, node.into_iter().collect())
        };
        match fault {
            Fault::None | Fault::Nonsense => {}
            Fault::Silence => std::future::pending().await,
            Fault::Slow => sleep(SLOW).await,
        }
        let state = ClusterResourceState { node_states, ..ClusterResourceState::default() };
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
        if request.reason() == DrainNodeReason::Preemption {
            self.set(|state| state.status = Some(NodeStatus::Draining));
        }
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

impl Default for FakeHead {
    /// With one node, which is idle.
    fn default() -> Self {
        Self(Arc::new(Mutex::new(State { status: Some(NodeStatus::Idle), ..State::default() })))
    }
}

impl FakeHead {
    pub(super) fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.0.lock().unwrap());
    }

    /// In a runtime of its own, with which its connections end as well.
    pub(super) fn serve(&self, address: SocketAddr) -> (SocketAddr, Runtime) {
        self.serve_with(address, Server::builder())
    }

    pub(super) fn serve_with(&self, address: SocketAddr, mut server: Server) -> (SocketAddr, Runtime) {
        let listener = std::net::TcpListener::bind(address).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let server = server.add_service(AutoscalerStateServiceServer::new(self.clone()));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.spawn(async move {
            let incoming = TcpListenerStream::new(tokio::net::TcpListener::from_std(listener).unwrap());
            server.serve_with_incoming(incoming).await.unwrap();
        });
        (address, runtime)
    }
}
