//! The calls to a Ray cluster's head, each with its token and a deadline.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use ebb_core::ray::{ClientCertificate, Cluster, DrainReason, Drained, Launches, Problem, Reading};
use ebb_core::time::Instant;
use ebb_proto::ray::autoscaler::autoscaler_state_service_client::AutoscalerStateServiceClient;
use ebb_proto::ray::autoscaler::{GetClusterStatusRequest, ReportAutoscalingStateRequest};
use ebb_proto::ray::{autoscaling_state, drain_request, drained};
use tokio::time::timeout;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Request, Response, Status};

/// A head answers in milliseconds; one that takes longer than this is not well.
const DEADLINE: Duration = Duration::from_secs(2);
/// A node takes up half a KiB.
const LARGEST_REPLY: usize = 64 << 20;

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("use the token in {}: it holds characters that no token has", path.display())]
    Token { path: PathBuf },
    #[error("use the address or the certificates")]
    Endpoint(#[source] tonic::transport::Error),
    #[error("no reply in {} s", DEADLINE.as_secs())]
    Late(#[from] tokio::time::error::Elapsed),
    #[error("{}: {}", .0.code(), .0.message())]
    Refused(Status),
    #[error("{0}")]
    Invalid(#[from] ebb_proto::Invalid),
}

impl Error {
    pub(crate) fn problem(&self) -> Problem {
        match self {
            Self::Read { .. } | Self::Token { .. } => Problem::Unauthenticated,
            Self::Endpoint(_) => Problem::Unreachable,
            Self::Late(_) => Problem::Late,
            // The connection broke, as with a head that does not know the certificate it was shown.
            Self::Refused(status) if std::error::Error::source(status).is_some() => Problem::Unreachable,
            Self::Refused(status) => match status.code() {
                Code::Unauthenticated | Code::PermissionDenied => Problem::Unauthenticated,
                Code::DeadlineExceeded | Code::Cancelled => Problem::Late,
                Code::Unavailable => Problem::Unreachable,
                _ => Problem::Malformed,
            },
            Self::Invalid(_) => Problem::Malformed,
        }
    }
}

/// The Global Control Service of one cluster. It connects when it is used.
pub(crate) struct Gcs {
    pub(crate) cluster: Cluster,
    channel: Mutex<Option<Channel>>,
}

type Client = AutoscalerStateServiceClient<Channel>;

impl Gcs {
    pub(crate) fn new(cluster: Cluster) -> Self {
        Self { cluster, channel: Mutex::default() }
    }

    pub(crate) async fn status(&self) -> Result<Reading, Error> {
        let reply = self.call(GetClusterStatusRequest {}, Client::get_cluster_status).await?;
        Ok(Reading::try_from(reply)?)
    }

    /// That a node accepts does not say that it is there: what became of it is told by the next status.
    pub(crate) async fn drain(
        &self,
        node: &str,
        reason: DrainReason,
        message: &str,
        deadline: Instant,
    ) -> Result<Drained, Error> {
        let request = drain_request(node, reason, message, deadline)?;
        Ok(drained(self.call(request, Client::drain_node).await?))
    }

    pub(crate) async fn report(&self, version: u64, launches: &Launches) -> Result<(), Error> {
        let request = ReportAutoscalingStateRequest { autoscaling_state: Some(autoscaling_state(version, launches)) };
        self.call(request, Client::report_autoscaling_state).await?;
        Ok(())
    }

    async fn call<Q, A>(
        &self,
        message: Q,
        send: impl AsyncFnOnce(&mut Client, Request<Q>) -> Result<Response<A>, Status>,
    ) -> Result<A, Error> {
        let mut request = Request::new(message);
        if let Some(path) = &self.cluster.token_file {
            request.metadata_mut().insert("authorization", bearer(path)?);
        }
        let mut client = Client::new(self.channel()?).max_decoding_message_size(LARGEST_REPLY);
        let reply = match timeout(DEADLINE, send(&mut client, request)).await {
            Ok(reply) => reply.map_err(Error::Refused),
            Err(late) => Err(late.into()),
        };
        if reply.is_err() {
            // Its name may lead elsewhere by now.
            *self.channel.lock().expect("nobody panics while holding it") = None;
        }
        Ok(reply?.into_inner())
    }

    fn channel(&self) -> Result<Channel, Error> {
        let mut kept = self.channel.lock().expect("nobody panics while holding it");
        if let Some(channel) = &*kept {
            return Ok(channel.clone());
        }
        let Cluster { address, ca_file, client, .. } = &self.cluster;
        let endpoint = match ca_file {
            None => Endpoint::from_shared(format!("http://{address}")).map_err(Error::Endpoint)?,
            Some(path) => {
                let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(path)?));
                if let Some(ClientCertificate { cert_file, key_file }) = client {
                    tls = tls.identity(Identity::from_pem(read(cert_file)?, read(key_file)?));
                }
                let endpoint = Endpoint::from_shared(format!("https://{address}")).map_err(Error::Endpoint)?;
                endpoint.tls_config(tls).map_err(Error::Endpoint)?
            }
        };
        Ok(kept.insert(endpoint.connect_timeout(DEADLINE).connect_lazy()).clone())
    }
}

/// Read each time: whoever mounts it may write it anew.
fn bearer(path: &Path) -> Result<MetadataValue<Ascii>, Error> {
    let token = read(path)?;
    let token = str::from_utf8(&token).map_err(|_| Error::Token { path: path.to_owned() })?;
    format!("Bearer {}", token.trim()).parse().map_err(|_| Error::Token { path: path.to_owned() })
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(|source| Error::Read { path: path.to_owned(), source })
}
