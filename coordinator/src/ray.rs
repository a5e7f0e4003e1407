//! Asks Ray clusters' heads what waits in them, once a second for as long as this coordinator leads, and tells the driver.
//! What follows from it is the core's.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ebb_core::fleet::Event;
use ebb_core::ray::{Answer, Cluster, Problem, Reading};
use ebb_proto::ray::autoscaler::GetClusterStatusRequest;
use ebb_proto::ray::autoscaler::autoscaler_state_service_client::AutoscalerStateServiceClient;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Status};

use crate::metrics::Metrics;
use crate::standing::Standing;

/// The head itself hears from its nodes once a second.
const EVERY: Duration = Duration::from_secs(1);
/// A head answers in milliseconds; one that takes longer than this is not well.
const DEADLINE: Duration = Duration::from_secs(2);
/// Between two questions to a head that does not answer, after some of them.
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// What has not changed is told so often, as agents do.
const TELL_EVERY: Duration = Duration::from_secs(10);
/// A node takes up half a KiB.
const LARGEST_REPLY: usize = 64 << 20;

#[derive(Debug, thiserror::Error)]
enum Error {
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
    #[error("understand the reply")]
    Reply(#[source] ebb_proto::Invalid),
}

impl Error {
    fn problem(&self) -> Problem {
        match self {
            Self::Read { .. } | Self::Token { .. } => Problem::Unauthenticated,
            Self::Endpoint(_) => Problem::Unreachable,
            Self::Late(_) => Problem::Late,
            Self::Refused(status) => match status.code() {
                Code::Unauthenticated | Code::PermissionDenied => Problem::Unauthenticated,
                Code::DeadlineExceeded | Code::Cancelled => Problem::Late,
                Code::Unavailable => Problem::Unreachable,
                _ => Problem::Malformed,
            },
            Self::Reply(_) => Problem::Malformed,
        }
    }
}

/// One cluster's.
pub(crate) struct Head {
    pub(crate) name: String,
    pub(crate) cluster: Cluster,
    pub(crate) metrics: Arc<Metrics>,
}

/// What the driver was told last.
struct Told {
    answer: Answer,
    at: Instant,
}

impl Told {
    fn is_news(&self, answer: &Answer) -> bool {
        match (&self.answer, answer) {
            (Answer::Read(told), Answer::Read(reading)) => {
                !told.says_the_same(reading) || self.at.elapsed() >= TELL_EVERY
            }
            (told, answer) => told != answer,
        }
    }
}

impl Head {
    /// For ever.
    pub(crate) async fn keep_asking(self, standing: Standing, inbox: mpsc::Sender<Event>) {
        loop {
            standing.won().await;
            let mut channel = None;
            let mut failures = 0;
            let mut told: Option<Told> = None;
            while standing.leads() {
                let began = Instant::now();
                let answer = match self.ask(&mut channel).await {
                    Ok(reading) => {
                        if failures > 0 {
                            tracing::info!(cluster = self.name, "the Ray cluster's head answers again");
                        }
                        failures = 0;
                        Answer::Read(Box::new(reading))
                    }
                    Err(error) => {
                        self.complain(&error, told.as_ref());
                        failures += 1;
                        // Its name may lead elsewhere by now.
                        channel = None;
                        Answer::Unreadable(error.problem())
                    }
                };
                self.metrics.ray_poll(match answer {
                    Answer::Read(_) => None,
                    Answer::Unreadable(problem) => Some(problem),
                });
                if told.as_ref().is_none_or(|told| told.is_news(&answer)) {
                    told = Some(Told { answer: answer.clone(), at: began });
                    // The driver is gone only when the process is about to be.
                    let _ = inbox.send(Event::Ray { cluster: self.name.clone(), answer }).await;
                }
                sleep(pause(failures).saturating_sub(began.elapsed())).await;
            }
        }
    }

    async fn ask(&self, channel: &mut Option<Channel>) -> Result<Reading, Error> {
        let mut request = Request::new(GetClusterStatusRequest {});
        if let Some(path) = &self.cluster.token_file {
            request.metadata_mut().insert("authorization", bearer(path)?);
        }
        let channel = match channel {
            Some(channel) => channel,
            None => channel.insert(self.connect()?),
        };
        let mut client = AutoscalerStateServiceClient::new(channel.clone()).max_decoding_message_size(LARGEST_REPLY);
        let reply = timeout(DEADLINE, client.get_cluster_status(request)).await?.map_err(Error::Refused)?;
        Reading::try_from(reply.into_inner()).map_err(Error::Reply)
    }

    /// It connects when it is used.
    fn connect(&self) -> Result<Channel, Error> {
        let Cluster { address, ca_file, .. } = &self.cluster;
        let endpoint = match ca_file {
            None => Endpoint::from_shared(format!("http://{address}")).map_err(Error::Endpoint)?,
            Some(path) => {
                let pem = fs::read(path).map_err(|source| Error::Read { path: path.clone(), source })?;
                let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem));
                let endpoint = Endpoint::from_shared(format!("https://{address}")).map_err(Error::Endpoint)?;
                endpoint.tls_config(tls).map_err(Error::Endpoint)?
            }
        };
        Ok(endpoint.connect_timeout(DEADLINE).connect_lazy())
    }

    /// One line for each problem, not one for each question.
    fn complain(&self, error: &Error, told: Option<&Told>) {
        let problem = error.problem();
        let is_known = told.is_some_and(|told| told.answer == Answer::Unreadable(problem));
        let source = std::error::Error::source(error).map(ToString::to_string);
        let (cluster, address) = (&self.name, &self.cluster.address);
        if is_known {
            tracing::debug!(cluster, address, %error, source, "{problem}");
        } else {
            tracing::warn!(
                cluster, address, %error, source,
                "{problem}; what the Ray cluster last told counts for some minutes, then nothing is anticipated for it"
            );
        }
    }
}

/// Read each time: whoever mounts it may write it anew.
fn bearer(path: &Path) -> Result<MetadataValue<Ascii>, Error> {
    let token = fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
    format!("Bearer {}", token.trim()).parse().map_err(|_| Error::Token { path: path.to_owned() })
}

/// From one question to the next.
fn pause(failures: u32) -> Duration {
    EVERY.saturating_mul(1 << failures.saturating_sub(1).min(6)).min(LONGEST_PAUSE)
}

#[cfg(test)]
mod tests;
