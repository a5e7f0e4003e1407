//! What speaks as one of ours or of others', and is none of them. Fakes, and named so.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use ebb_core::classify::{Class, Missing, Utilization};
use ebb_core::report::Report;
use ebb_core::time::Instant;
use ebb_core::usage::{Amount, NodeUsage, PodUsage, Sample, Signals};
use ebb_proto::ray::autoscaler::autoscaler_state_service_server::{
    AutoscalerStateService, AutoscalerStateServiceServer,
};
use ebb_proto::ray::autoscaler::{
    ClusterResourceState, DrainNodeReply, DrainNodeRequest, GetClusterStatusReply, GetClusterStatusRequest,
    ReportAutoscalingStateReply, ReportAutoscalingStateRequest, ResourceRequest, ResourceRequestByCount,
};
use ebb_proto::v1;
use ebb_proto::v1::reports_client::ReportsClient;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{Api, ResourceExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Server};
use tonic::{Request, Response, Status};

use crate::{Ebb, node_of, now};

const SOON: Duration = Duration::from_secs(120);

/// Speaks for the agent of one node, over the real agents' stream and as one of them. What it tells is made up.
pub struct FakeAgent {
    reports: mpsc::Sender<v1::Report>,
    pub node: String,
    node_uid: String,
    started: Instant,
    sequence: u64,
    window: Duration,
}

impl FakeAgent {
    /// In the place of the first of the agents' pods that there is.
    pub async fn start(ebb: &Ebb, window: Duration) -> Self {
        let mut pods = Vec::new();
        ebb.lab
            .wait_until("the agent's pod", SOON, async || {
                pods = ebb.agent_pods().await;
                !pods.is_empty()
            })
            .await;
        Self::start_as(ebb, &pods[0], window).await
    }

    /// In the place of this pod, which is on a node.
    pub async fn start_as(ebb: &Ebb, pod: &Pod, window: Duration) -> Self {
        let name = node_of(pod).expect("it is on a node");
        let node = Api::<Node>::all(ebb.client.clone()).get(&name).await.expect("the node is there");
        let ca = Certificate::from_pem(ebb.ca().await.expect("the coordinator has published it"));
        let tls = ClientTlsConfig::new().ca_certificate(ca).domain_name("ebb-coordinator.ebb.svc");
        let endpoint = Endpoint::from_shared(format!("https://127.0.0.1:{}", ebb.reports_port)).expect("it is a URL");
        let channel = endpoint.tls_config(tls).expect("it is a CA").connect().await.expect("the coordinator listens");
        let mut client = ReportsClient::new(channel);
        let (reports, waiting) = mpsc::channel(8);
        let mut request = Request::new(ReceiverStream::new(waiting));
        let token = format!("Bearer {}", ebb.reports_token(pod).await);
        request.metadata_mut().insert("authorization", token.parse().expect("a token is ASCII"));
        let mut settings = client.stream(request).await.expect("it is taken for an agent").into_inner();
        let first = settings.message().await.expect("the stream goes on").expect("settings come first");
        assert!(first.usage, "the coordinator asks for it");
        tokio::spawn(async move { while let Ok(Some(_)) = settings.message().await {} });
        let node_uid = node.uid().expect("the API server gave it one");
        Self { reports, node: name, node_uid, started: now(), sequence: 0, window }
    }

    /// A report that says nothing of use.
    pub async fn tell_nothing(&mut self) {
        self.sequence += 1;
        self.send(None).await;
    }

    /// Tells of the node, and that each of these pods uses so many thousandths of a CPU, and so many MiB.
    pub async fn tell(&mut self, pods: &[Pod], millicores: u64, mebibytes: u64) {
        self.sequence += 1;
        self.repeat(pods, millicores, mebibytes).await;
    }

    /// The same once more, as a report that comes twice.
    pub async fn repeat(&self, pods: &[Pod], millicores: u64, mebibytes: u64) {
        let pods = pods.iter().map(|pod| self.pod(pod, millicores, mebibytes, None)).collect();
        self.send(Some(self.usage(millicores, mebibytes, pods))).await;
    }

    /// That each of these pods is loaded so.
    pub async fn tell_signals(&mut self, pods: &[Pod], signals: Signals) {
        let pods = pods.iter().map(|pod| self.pod(pod, 100, 64, Some(signals))).collect();
        self.tell_all(self.usage(100, 64, pods)).await;
    }

    pub async fn tell_all(&mut self, usage: NodeUsage) {
        self.sequence += 1;
        self.send(Some(usage)).await;
    }

    fn pod(&self, pod: &Pod, millicores: u64, mebibytes: u64, signals: Option<Signals>) -> PodUsage {
        let uid = pod.uid().expect("the API server gave it one");
        let containers = vec![("work".to_owned(), amount(millicores, mebibytes))];
        PodUsage { uid, at: now(), window: self.window, containers, signals }
    }

    fn usage(&self, millicores: u64, mebibytes: u64, pods: Vec<PodUsage>) -> NodeUsage {
        let node = Sample { at: now(), window: self.window, amount: amount(millicores, mebibytes) };
        NodeUsage { node: Some(node), pods }
    }

    async fn send(&self, usage: Option<NodeUsage>) {
        let at = now();
        let report = Report {
            node: self.node.clone(),
            node_uid: self.node_uid.clone(),
            agent_start: self.started,
            sequence: self.sequence,
            sampled_at: at,
            class: Class::Unknown { since: at, missing: Missing::History },
            utilization: Utilization::default(),
            gpu_waste: None,
        };
        let message = v1::Report { usage: usage.map(NodeUsage::into), ..v1::Report::from(&report) };
        self.reports.send(message).await.expect("the coordinator takes it");
    }
}

fn amount(millicores: u64, mebibytes: u64) -> Amount {
    Amount { cpu_nanocores: millicores * 1_000_000, memory_bytes: mebibytes << 20 }
}

/// A head of a Ray cluster that is no Ray: so many requests wait in it as it is told. Without nodes.
#[derive(Clone, Default)]
pub struct FakeRayHead {
    waiting: Arc<AtomicI64>,
}

impl FakeRayHead {
    /// Where it listens, for as long as this runtime is there.
    pub async fn serve(&self) -> SocketAddr {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("loopback has a port");
        let address = listener.local_addr().expect("it is bound");
        let server = Server::builder().add_service(AutoscalerStateServiceServer::new(self.clone()));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        address
    }

    pub fn set_waiting(&self, requests: i64) {
        self.waiting.store(requests, Ordering::Relaxed);
    }
}

#[tonic::async_trait]
impl AutoscalerStateService for FakeRayHead {
    async fn get_cluster_status(
        &self,
        _: Request<GetClusterStatusRequest>,
    ) -> Result<Response<GetClusterStatusReply>, Status> {
        let resources_bundle = HashMap::from([("CPU".to_owned(), 1.0)]);
        let request = Some(ResourceRequest { resources_bundle, ..ResourceRequest::default() });
        let count = self.waiting.load(Ordering::Relaxed);
        let waiting = (count > 0).then_some(ResourceRequestByCount { request, count });
        let state = ClusterResourceState {
            pending_resource_requests: waiting.into_iter().collect(),
            ..ClusterResourceState::default()
        };
        Ok(Response::new(GetClusterStatusReply { cluster_resource_state: Some(state) }))
    }

    async fn drain_node(&self, _: Request<DrainNodeRequest>) -> Result<Response<DrainNodeReply>, Status> {
        Err(Status::unimplemented("this fake has no nodes"))
    }

    async fn report_autoscaling_state(
        &self,
        _: Request<ReportAutoscalingStateRequest>,
    ) -> Result<Response<ReportAutoscalingStateReply>, Status> {
        Err(Status::unimplemented("this fake shows nobody what is on its way"))
    }
}
