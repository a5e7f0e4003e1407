//! The service itself: who may speak, for which node, and how much.

use std::sync::Arc;

use ebb_core::broker::Own;
use ebb_core::fleet::Event;
use ebb_core::report::Report;
use ebb_core::usage::NodeUsage;
use ebb_proto::Invalid;
use ebb_proto::v1::{self, Settings, reports_server::Reports};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

use super::limits::{Rate, SILENCE, STREAM_LIFE};
use crate::clock::Clock;
use crate::cluster::Seen;
use crate::metrics::{Metrics, Told};
use crate::standing::Standing;
use crate::token::{Denied, Review, Tokens};

pub struct Service<R> {
    pub tokens: Arc<Tokens<R>>,
    pub gate: Gate,
    pub settings: Settings,
    /// Ends all streams, so that the server can stop.
    pub stop: CancellationToken,
}

/// What a report has to pass.
#[derive(Clone)]
pub struct Gate {
    pub seen: Seen,
    pub clock: Clock,
    pub standing: Standing,
    pub inbox: mpsc::Sender<Event>,
    pub metrics: Arc<Metrics>,
}

#[tonic::async_trait]
impl<R: Review> Reports for Service<R> {
    type StreamStream = ReceiverStream<Result<Settings, Status>>;

    async fn stream(&self, request: Request<Streaming<v1::Report>>) -> Result<Response<Self::StreamStream>, Status> {
        let peer = request.remote_addr();
        let agent = self.admit(request.metadata()).await.map_err(|(told, status)| {
            self.gate.metrics.report(told);
            if told != Told::Unavailable {
                tracing::warn!(?peer, error = status.message(), "stream refused");
            }
            status
        })?;
        let (answers, answered) = mpsc::channel(2);
        answers.try_send(Ok(self.settings)).expect("new and empty");
        let (gate, stop) = (self.gate.clone(), self.stop.clone());
        let open = gate.metrics.stream();
        tokio::spawn(async move {
            let _open = open;
            let status = tokio::select! {
                () = stop.cancelled() => Err(Status::unavailable("shutting down")),
                () = gate.standing.lost() => Err(Status::unavailable("not the leader any more")),
                // A regular end: the agent opens the next one.
                () = sleep(STREAM_LIFE) => Ok(()),
                // The agent went away; nobody is left to answer.
                () = answers.closed() => Ok(()),
                status = gate.take(request.into_inner(), &agent) => status,
            };
            if let Err(status) = status {
                let _ = answers.try_send(Err(status));
            }
        });
        Ok(Response::new(ReceiverStream::new(answered)))
    }
}

impl<R: Review> Service<R> {
    async fn admit(&self, metadata: &MetadataMap) -> Result<Own, (Told, Status)> {
        let unavailable = |why: &str| (Told::Unavailable, Status::unavailable(why));
        if !self.gate.standing.leads() {
            return Err(unavailable("not the leader"));
        }
        if !self.gate.standing.synced() {
            return Err(unavailable("the cluster is not known yet"));
        }
        let header = metadata.get("authorization").and_then(|value| value.to_str().ok());
        let token = header.and_then(|header| header.strip_prefix("Bearer "));
        let token = token.ok_or_else(|| (Told::Unauthenticated, Status::unauthenticated("expected a bearer token")))?;
        self.tokens.agent(token).await.map_err(|denied| match denied {
            Denied::Unauthenticated(_) => (Told::Unauthenticated, Status::unauthenticated(denied.to_string())),
            Denied::NotAgent(_) | Denied::Refused(_) => {
                (Told::WrongNode, Status::permission_denied(denied.to_string()))
            }
            Denied::Unavailable(_) => unavailable(&denied.to_string()),
        })
    }
}

impl Gate {
    /// Takes reports until the agent ends the stream or breaks a rule.
    async fn take(&self, mut reports: Streaming<v1::Report>, agent: &Own) -> Result<(), Status> {
        let mut rate = Rate::default();
        loop {
            let message = match timeout(SILENCE, reports.message()).await {
                Ok(Ok(Some(message))) => message,
                Ok(Ok(None)) => return Ok(()),
                // Too large or not readable; or the connection broke, and nobody hears the answer.
                Ok(Err(status)) => return Err(status),
                Err(_) => return Err(Status::deadline_exceeded("no report for too long")),
            };
            let result = if rate.allows(Instant::now()) {
                self.check(message, agent)
            } else {
                Err((Told::TooFast, Status::resource_exhausted("too many reports")))
            };
            match result {
                Ok((report, usage)) => {
                    self.metrics.report(Told::Accepted);
                    if let Some(usage) = usage {
                        let order = (report.agent_start, report.sequence);
                        self.seen.usage.take(self.clock, &report.node, order, usage);
                    }
                    // The driver is gone only when the process is about to be.
                    let _ = self.inbox.send(Event::Report(report)).await;
                }
                Err((told, status)) => {
                    self.metrics.report(told);
                    tracing::warn!(node = agent.node, ?told, error = status.message(), "report refused");
                    return Err(status);
                }
            }
        }
    }

    fn check(&self, mut message: v1::Report, agent: &Own) -> Result<(Report, Option<NodeUsage>), (Told, Status)> {
        let malformed = |invalid: Invalid| (Told::Malformed, Status::invalid_argument(invalid.to_string()));
        let usage = message.usage.take().map(NodeUsage::try_from).transpose().map_err(malformed)?;
        let report = Report::try_from(message).map_err(malformed)?;
        if (&report.node, &report.node_uid) != (&agent.node, &agent.node_uid) {
            let text = format!("the report is about {} and the token of {}", report.node, agent.node);
            return Err((Told::WrongNode, Status::permission_denied(text)));
        }
        if !self.seen.nodes.has(&report.node, &report.node_uid) {
            let text = format!("the cluster has no node {} with this UID", report.node);
            return Err((Told::UnknownNode, Status::not_found(text)));
        }
        Ok((report, usage))
    }
}

#[cfg(test)]
mod tests;
