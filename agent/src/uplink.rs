//! Tells the coordinator what the node is doing, over one gRPC stream, and takes its settings. While it is away the
//! node is sampled all the same, and it is tried again.

mod backoff;
mod url;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ebb_core::classify::{Class, IdlePolicy};
use ebb_core::report::Report;
use ebb_core::time::Instant;
use ebb_core::usage::NodeUsage;
use ebb_proto::v1;
use ebb_proto::v1::reports_client::ReportsClient;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Request;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};

use crate::clock::Clock;
use crate::health::chain;
use crate::metrics::Metrics;
use crate::sampler::Sample;
use crate::usage::{Meter, Wanted};

use backoff::pause;
pub use url::CoordinatorUrl;

/// A report is sent when the class changes, and before the last one is this old.
const REPORT_EVERY: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How a coordinator that vanished without a word is noticed.
const PING_EVERY: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// Reports on their way. A stream that does not take even these is stalled, and older reports are worth nothing.
const REPORTS_IN_FLIGHT: usize = 2;

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("use the token in {}: it holds characters that no token has", path.display())]
    Token { path: PathBuf },
    #[error("reach the coordinator")]
    Connect(#[source] tonic::transport::Error),
    /// The status' own text says code and message, and needs no more around it.
    #[error("report to the coordinator: {}: {}", .0.code(), .0.message())]
    Refused(tonic::Status),
    #[error("understand the coordinator's settings")]
    Settings(#[source] ebb_proto::Invalid),
    #[error("keep the stream: the coordinator ended it")]
    Ended,
}

pub struct Uplink {
    pub coordinator: CoordinatorUrl,
    pub ca: PathBuf,
    pub server_name: Option<String>,
    pub token_file: PathBuf,
    pub node: String,
    /// From the Node object, once that was read.
    pub node_uid: watch::Receiver<Option<String>>,
    pub samples: watch::Receiver<Option<Arc<Sample>>>,
    pub interval: Duration,
    pub clock: Clock,
    pub policy: watch::Sender<IdlePolicy>,
    /// Where others learn whether there is Ray, once the coordinator has told. It stays so while that is away.
    pub has_ray: watch::Sender<Option<bool>>,
    pub metrics: Metrics,
}

/// What goes on from one stream to the next.
struct Said {
    sequence: u64,
    meter: Meter,
}

impl Uplink {
    /// Reports until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.keep_reporting() => {}
        }
        self.metrics.coordinator_connected.set(0);
    }

    async fn keep_reporting(&self) {
        let mut said = Said { sequence: 0, meter: Meter::new(self.clock) };
        let mut failures = 0;
        loop {
            let mut accepted = false;
            let Err(error) = self.stream(&mut said, &mut accepted).await;
            self.metrics.coordinator_connected.set(0);
            if accepted {
                failures = 0;
            }
            // One line for a coordinator that went away, not one for each attempt to find it again.
            if failures == 0 {
                tracing::warn!(error = chain(&error), "coordinator away");
            } else {
                tracing::debug!(error = chain(&error), failures, "coordinator still away");
            }
            tokio::time::sleep(pause(&self.node, failures)).await;
            failures = failures.saturating_add(1);
        }
    }

    /// One stream, from connecting to its end.
    async fn stream(&self, said: &mut Said, accepted: &mut bool) -> Result<std::convert::Infallible, Error> {
        // Without the UID a report would speak of any node of this name.
        let mut known = self.node_uid.clone();
        if known.wait_for(Option::is_some).await.is_err() {
            return std::future::pending().await; // We are about to stop.
        }
        let token = self.token().await?;
        let mut client = ReportsClient::new(self.connect().await?);
        let (sender, reports) = mpsc::channel(REPORTS_IN_FLIGHT);
        let mut request = Request::new(ReceiverStream::new(reports));
        request.metadata_mut().insert("authorization", token);
        let (wants, wanted) = watch::channel(Wanted::default());
        let take_settings = async {
            let mut settings = client.stream(request).await.map_err(Error::Refused)?.into_inner();
            while let Some(message) = settings.message().await.map_err(Error::Refused)? {
                wants.send_replace(Wanted { usage: message.usage, signals: message.signals });
                self.has_ray.send_replace(Some(message.ray));
                let policy = IdlePolicy::try_from(message).map_err(Error::Settings)?;
                if !*accepted {
                    tracing::info!(coordinator = %self.coordinator, "coordinator connected");
                    self.metrics.coordinator_connected.set(1);
                    *accepted = true;
                }
                self.policy.send_if_modified(|current| {
                    let changed = *current != policy;
                    *current = policy;
                    changed
                });
            }
            Err(Error::Ended)
        };
        tokio::select! {
            ended = take_settings => ended,
            () = self.send_reports(sender, said, wanted) => Err(Error::Ended),
        }
    }

    async fn send_reports(&self, sender: mpsc::Sender<v1::Report>, said: &mut Said, wanted: watch::Receiver<Wanted>) {
        let mut samples = self.samples.clone();
        samples.mark_changed();
        let mut last: Option<(Instant, Class)> = None;
        loop {
            if samples.changed().await.is_err() {
                return std::future::pending().await; // The sampler is gone: we are about to stop.
            }
            let Some(sample) = samples.borrow_and_update().clone() else { continue };
            let Some(node_uid) = self.node_uid.borrow().clone() else { continue };
            let usage = said.meter.measure(&sample, *wanted.borrow());
            if usage.is_none() && last.is_some_and(|last| !is_due(last, &sample, self.interval)) {
                continue;
            }
            last = Some((sample.at, sample.verdict.class));
            said.sequence += 1;
            let report = Report {
                node: self.node.clone(),
                node_uid,
                agent_start: self.clock.begin(),
                sequence: said.sequence,
                sampled_at: sample.at,
                class: sample.verdict.class,
                utilization: sample.verdict.window,
                gpu_waste: sample.verdict.gpu_waste,
            };
            let message = v1::Report { usage: usage.map(NodeUsage::into), ..(&report).into() };
            if sender.send(message).await.is_err() {
                return;
            }
            self.metrics.reports_sent.inc();
        }
    }

    async fn connect(&self) -> Result<Channel, Error> {
        let mut endpoint = Endpoint::from(self.coordinator.uri().clone())
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_TIMEOUT)
            .keep_alive_while_idle(true);
        if self.coordinator.is_encrypted() {
            let ca = tokio::fs::read(&self.ca).await.map_err(|source| Error::Read { path: self.ca.clone(), source })?;
            let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca));
            if let Some(name) = &self.server_name {
                tls = tls.domain_name(name);
            }
            endpoint = endpoint.tls_config(tls).map_err(Error::Connect)?;
        }
        endpoint.connect().await.map_err(Error::Connect)
    }

    async fn token(&self) -> Result<MetadataValue<Ascii>, Error> {
        let path = || self.token_file.clone();
        let token = tokio::fs::read_to_string(&self.token_file).await;
        let token = token.map_err(|source| Error::Read { path: path(), source })?;
        let mut value: MetadataValue<Ascii> =
            format!("Bearer {}", token.trim()).parse().map_err(|_| Error::Token { path: path() })?;
        value.set_sensitive(true);
        Ok(value)
    }
}

/// Whether the next sample would come too late to wait for it, or the class is another one. Which signal makes a node
/// busy may change each second, and is no change of class.
fn is_due((at, class): (Instant, Class), sample: &Sample, interval: Duration) -> bool {
    let now = sample.verdict.class;
    sample.at.since(at) + interval > REPORT_EVERY || (class.name(), class.since()) != (now.name(), now.since())
}

#[cfg(test)]
mod tests {
    use ebb_core::classify::{Missing, Signal, Utilization, Verdict};

    use super::*;
    use crate::health::Healths;
    use crate::reading::Reading;

    #[test]
    fn a_report_is_due_on_another_class_and_before_ten_seconds() {
        let at = |second: u64| Instant::from_millis(second * 1000);
        let check = |second, class, due| {
            let taken = std::time::Instant::now();
            let sample = Sample {
                at: at(second),
                taken,
                reading: Reading::empty(taken).into(),
                before: None,
                utilization: Utilization::default(),
                verdict: Verdict { class, window: Utilization::default(), gpu_waste: None },
                names: Arc::default(),
                allocations: None,
                because: String::new(),
                healths: Healths::default(),
            };
            let last = (at(100), Class::Busy { since: at(50), signal: Signal::Cpu });
            assert_eq!(is_due(last, &sample, Duration::from_secs(1)), due, "{second} {class:?}");
        };
        check(101, Class::Busy { since: at(50), signal: Signal::Cpu }, false);
        check(101, Class::Busy { since: at(50), signal: Signal::RunQueue }, false);
        check(109, Class::Busy { since: at(50), signal: Signal::Cpu }, false);
        check(110, Class::Busy { since: at(50), signal: Signal::Cpu }, true);
        check(101, Class::Idle { since: at(101) }, true);
        check(101, Class::Unknown { since: at(101), missing: Missing::History }, true);
    }
}
