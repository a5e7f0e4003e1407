//! Who has which device, asked of a fake kubelet at a socket of its own: one that answers, one that hangs, one that
//! speaks nonsense, one that goes and comes back.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use common::Serving;

use ebb_agent::source::Source;
use ebb_agent::source::pod_resources::{self, Allocation, Error, PodResources};
use ebb_proto::podresources as v1;
use ebb_proto::podresources::pod_resources_lister_server::{PodResourcesLister, PodResourcesListerServer};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::NamedService;
use tonic::{Request, Response, Status};

const LONG: Duration = Duration::from_secs(30);

#[derive(Clone)]
enum FakeKubelet {
    Answers(v1::ListPodResourcesResponse),
    Hangs,
    Refuses,
}

#[tonic::async_trait]
impl PodResourcesLister for FakeKubelet {
    async fn list(
        &self,
        _request: Request<v1::ListPodResourcesRequest>,
    ) -> Result<Response<v1::ListPodResourcesResponse>, Status> {
        match self {
            Self::Answers(answer) => Ok(Response::new(answer.clone())),
            Self::Hangs => std::future::pending().await,
            Self::Refuses => Err(Status::resource_exhausted("rejected by rate limit")),
        }
    }
}

impl FakeKubelet {
    fn start(self, socket: &Path) -> JoinHandle<Result<(), tonic::transport::Error>> {
        let listener = UnixListener::bind(socket).unwrap();
        let server = tonic::transport::Server::builder().add_service(PodResourcesListerServer::new(self));
        tokio::spawn(server.serve_with_incoming(UnixListenerStream::new(listener)))
    }
}

fn devices(resource: &str, ids: &[&str]) -> v1::ContainerDevices {
    v1::ContainerDevices { resource_name: resource.into(), device_ids: ids.iter().map(|id| (*id).into()).collect() }
}

fn answer() -> v1::ListPodResourcesResponse {
    let container = |name: &str, devices| v1::ContainerResources { name: name.into(), devices };
    let gpus = vec![devices("nvidia.com/gpu", &["GPU-a", "GPU-b"]), devices("vpc.amazonaws.com/efa", &["rdmap0s6"])];
    let train = v1::PodResources {
        name: "train".into(),
        namespace: "ml".into(),
        containers: vec![container("main", gpus), container("sidecar", vec![])],
    };
    let idle = v1::PodResources { name: "idle".into(), namespace: "kube-system".into(), containers: vec![] };
    v1::ListPodResourcesResponse { pod_resources: vec![idle, train] }
}

fn allocation(resource: &str, ids: &[&str]) -> Allocation {
    let device_ids = ids.iter().map(|id| (*id).into()).collect();
    Allocation {
        namespace: "ml".into(),
        pod: "train".into(),
        container: "main".into(),
        resource: resource.into(),
        device_ids,
    }
}

fn expected() -> Vec<Allocation> {
    vec![allocation("nvidia.com/gpu", &["GPU-a", "GPU-b"]), allocation("vpc.amazonaws.com/efa", &["rdmap0s6"])]
}

fn check_error(error: Error, kind: &str, text: &str) {
    assert_eq!(error.kind(), kind, "{error}");
    assert!(error.to_string().contains(text), "{error}");
}

#[tokio::test]
async fn the_kubelet_says_who_has_which_device() {
    let folder = tempfile::tempdir().unwrap();
    // A path that would be no URL.
    let socket = folder.path().join("kube let%.sock");
    FakeKubelet::Answers(answer()).start(&socket);
    assert_eq!(pod_resources::list(&socket, LONG).await.unwrap(), expected());
}

#[tokio::test]
async fn a_kubelet_that_does_not_answer_well_is_an_error_that_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("kubelet.sock");
    check_error(pod_resources::list(&socket, LONG).await.unwrap_err(), "missing", "reach the kubelet at /");
    FakeKubelet::Refuses.start(&socket);
    check_error(pod_resources::list(&socket, LONG).await.unwrap_err(), "refused", "rejected by rate limit");
}

#[tokio::test]
async fn a_kubelet_that_speaks_nonsense_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("kubelet.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\nwhat?").await.unwrap();
        }
    });
    let error = pod_resources::list(&socket, LONG).await.unwrap_err();
    assert!(matches!(error.kind(), "refused" | "connect"), "{error}");
}

/// Speaks gRPC, but its messages are none.
#[derive(Clone)]
struct GarbledKubelet;

impl NamedService for GarbledKubelet {
    const NAME: &'static str = "v1.PodResourcesLister";
}

impl Service<http::Request<Body>> for GarbledKubelet {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _request: http::Request<Body>) -> Self::Future {
        // Not compressed, four bytes, and a tag that begins but does not end.
        let frame: &[u8] = &[0, 0, 0, 0, 4, 0xff, 0xff, 0xff, 0xff];
        let reply = http::Response::builder().header("content-type", "application/grpc");
        std::future::ready(Ok(reply.body(Body::new(http_body_util::Full::from(frame))).unwrap()))
    }
}

#[tokio::test]
async fn a_message_that_is_none_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("kubelet.sock");
    let listener = UnixListenerStream::new(UnixListener::bind(&socket).unwrap());
    tokio::spawn(tonic::transport::Server::builder().add_service(GarbledKubelet).serve_with_incoming(listener));
    check_error(pod_resources::list(&socket, LONG).await.unwrap_err(), "refused", "decode");
}

#[tokio::test]
async fn metrics_say_who_has_which_gpu() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("kubelet.sock");
    let (gpu, mig) = ("GPU-e1f0b2c3-0a1b-4c5d-8e9f-001122334455", "MIG-00000000-0a1b-4c5d-8e9f-001122334455");
    let mut shared = answer();
    let given = &mut shared.pod_resources[1].containers[0].devices[0].device_ids;
    *given = vec![format!("{gpu}::0"), format!("{gpu}::1"), mig.into()];
    FakeKubelet::Answers(shared).start(&socket);
    let socket = socket.to_str().unwrap().to_owned();
    let page = tokio::task::spawn_blocking(move || {
        let serving = Serving::start(&["--interval", "100ms", "--pod-resources-socket", &socket]);
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let page = serving.get("/metrics").2;
            if page.contains("ebb_source_up{source=\"pod_resources\"} 1.0\n") {
                return page;
            }
            assert!(Instant::now() < deadline, "the kubelet was not asked within 10 s");
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    let page = page.await.unwrap();
    let found: Vec<_> = page.lines().filter(|line| line.starts_with("ebb_gpu_allocation_info")).collect();
    let row = |uuid: &str| {
        format!("ebb_gpu_allocation_info{{gpu_uuid=\"{uuid}\",namespace=\"ml\",pod=\"train\",container=\"main\"}} 1.0")
    };
    assert_eq!(found, [row(gpu), row(mig)]);
}

#[tokio::test]
async fn a_kubelet_that_hangs_is_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("kubelet.sock");
    FakeKubelet::Hangs.start(&socket);
    check_error(
        pod_resources::list(&socket, Duration::from_millis(200)).await.unwrap_err(),
        "deadline",
        "no answer for 200ms",
    );
}

#[tokio::test]
async fn a_kubelet_that_goes_takes_its_word_with_it_and_is_asked_again() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("kubelet.sock");
    let (sender, mut answers) = watch::channel(PodResources::default());
    let stop = CancellationToken::new();
    let running = tokio::spawn(pod_resources::run(socket.clone(), Duration::from_millis(20), sender, stop.clone()));
    let is_down = |answer: &PodResources| {
        answer.healths.iter().any(|(source, health)| source == Source::PodResources && health.down.is_some())
    };
    let mut wait = async |is_met: &dyn Fn(&PodResources) -> bool| {
        let waited = tokio::time::timeout(Duration::from_secs(10), answers.wait_for(|answer| is_met(answer))).await;
        waited.unwrap().unwrap().clone()
    };
    assert_eq!(wait(&is_down).await.allocations, None, "no socket yet");

    let kubelet = FakeKubelet::Answers(answer()).start(&socket);
    let found = wait(&|answer| answer.allocations.is_some()).await;
    assert_eq!(found.allocations, Some(Arc::from(expected())));
    assert!(!is_down(&found));

    kubelet.abort();
    std::fs::remove_file(&socket).unwrap();
    assert_eq!(wait(&is_down).await.allocations, None, "what it said is no longer known to be true");
    FakeKubelet::Answers(v1::ListPodResourcesResponse::default()).start(&socket);
    let found = wait(&|answer| answer.allocations.is_some()).await;
    assert_eq!(found.allocations, Some(Arc::from([])), "nobody has any");

    stop.cancel();
    running.await.unwrap();
}
