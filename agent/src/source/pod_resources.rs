//! Which container was given which devices, from the kubelet's socket. Asked over gRPC on the asynchronous
//! side, so that a kubelet that hangs keeps neither the sampler nor a scrape waiting. It says what was allocated, not
//! what is used: a container that reaches a GPU without having asked for it is not seen here.

mod device;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant as Monotonic};

use ebb_proto::podresources as v1;
use ebb_proto::podresources::pod_resources_lister_client::PodResourcesListerClient;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::transport::{self, Endpoint};

use super::Source;
use super::gpu::Gpus;
use crate::health::Healths;

use device::Device;

/// A kubelet answers within milliseconds. One that starts, or waits for its own locks, is asked again next time.
const DEADLINE: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("reach the kubelet at {}", socket.display())]
    Connect { socket: PathBuf, source: transport::Error },
    /// The status' own text says code and message, and needs no more around it.
    #[error("ask the kubelet at {} who has which devices: {}: {}", socket.display(), status.code(), status.message())]
    Refused { socket: PathBuf, status: Box<Status> },
    #[error("ask the kubelet at {} who has which devices: no answer for {deadline:?}", socket.display())]
    Deadline { socket: PathBuf, deadline: Duration },
}

impl Error {
    /// A label for metrics, from a closed set.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Connect { source, .. } => match io_kind(source) {
                Some(io::ErrorKind::NotFound) => "missing",
                Some(io::ErrorKind::PermissionDenied) => "permission",
                _ => "connect",
            },
            Self::Refused { .. } => "refused",
            Self::Deadline { .. } => "deadline",
        }
    }
}

/// Devices of one resource that a container has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allocation {
    pub namespace: String,
    pub pod: String,
    pub container: String,
    /// As in a pod's requests: `nvidia.com/gpu`, `nvidia.com/mig-1g.10gb`, `vpc.amazonaws.com/efa`.
    pub resource: String,
    /// As the device plugin calls them; [`Self::uuids`] understands those of GPUs.
    pub device_ids: Vec<String>,
}

impl Allocation {
    /// The UUIDs of the GPUs and MIG instances among them. `gpus`: as NVML has them, for ids that are no UUIDs.
    pub fn uuids<'a>(&'a self, gpus: Option<&'a Gpus>) -> impl Iterator<Item = &'a str> {
        self.device_ids.iter().filter_map(move |id| Device::parse(id)?.uuid(gpus))
    }
}

/// What the kubelet said last.
#[derive(Clone, Debug, Default)]
pub struct PodResources {
    /// `None`: it was not asked yet, or did not say.
    pub allocations: Option<Arc<[Allocation]>>,
    pub healths: Healths,
}

/// Asks each `interval` until `stop`.
pub async fn run(socket: PathBuf, interval: Duration, answers: watch::Sender<PodResources>, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let poll = async {
        loop {
            ticks.tick().await;
            let begin = Monotonic::now();
            let result = list(&socket, DEADLINE).await;
            answers.send_modify(|answer| {
                let result = result.map_err(super::Error::from);
                answer.allocations = answer.healths.note(Source::PodResources, begin.elapsed(), result).map(Arc::from);
            });
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = poll => {}
    }
}

/// All allocations on the node, in the kubelet's order.
pub async fn list(socket: &Path, deadline: Duration) -> Result<Vec<Allocation>, Error> {
    let asked = tokio::time::timeout(deadline, ask(socket)).await;
    asked.unwrap_or_else(|_| Err(Error::Deadline { socket: socket.to_owned(), deadline }))
}

/// Over a connection of its own: the kubelet makes the socket anew each time it starts, and is asked seldom.
async fn ask(socket: &Path) -> Result<Vec<Allocation>, Error> {
    let connect = |source| Error::Connect { socket: socket.to_owned(), source };
    let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display())).map_err(connect)?;
    let mut client = PodResourcesListerClient::new(endpoint.connect().await.map_err(connect)?);
    let answer = client.list(v1::ListPodResourcesRequest {}).await;
    let refused = |status| Error::Refused { socket: socket.to_owned(), status: Box::new(status) };
    Ok(allocations(answer.map_err(refused)?.into_inner()))
}

fn allocations(answer: v1::ListPodResourcesResponse) -> Vec<Allocation> {
    let pods = answer.pod_resources.into_iter();
    let containers = pods.flat_map(|pod| {
        let v1::PodResources { name, namespace, containers } = pod;
        containers.into_iter().map(move |container| (namespace.clone(), name.clone(), container))
    });
    let devices = containers.flat_map(|(namespace, pod, container)| {
        let v1::ContainerResources { name, devices } = container;
        devices.into_iter().map(move |devices| Allocation {
            namespace: namespace.clone(),
            pod: pod.clone(),
            container: name.clone(),
            resource: devices.resource_name,
            device_ids: devices.device_ids,
        })
    });
    devices.collect()
}

/// What the operating system said, at the end of the causes.
fn io_kind(error: &dyn std::error::Error) -> Option<io::ErrorKind> {
    let mut causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.find_map(|cause| cause.downcast_ref::<io::Error>().map(io::Error::kind))
}
