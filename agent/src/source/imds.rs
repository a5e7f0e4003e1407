//! What EC2's instance metadata service (IMDS) tells of the instance's end, asked for again and again. What its documents
//! mean is the core's; here they are fetched, by version 2 of the service only, and what became of that is said.

mod client;
mod endpoint;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant as Monotonic};

use ebb_core::notice::{Document, Notice, Notices};
use ebb_core::time::format_duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use client::{Error, Requests};
pub use endpoint::{Endpoint, ImdsArg};

use super::Source;
use crate::clock::Clock;
use crate::health::{Healths, chain};
use client::{Client, Round};

/// Between two tries, at most, while there has not been a service yet. A machine outside EC2 never has one; one of EC2's
/// whose network takes its time must not lose a notice's two minutes.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Reads the documents each `interval`.
pub struct Imds {
    pub endpoint: Endpoint,
    pub interval: Duration,
    pub clock: Clock,
    pub notices: watch::Sender<Notices>,
    pub healths: watch::Sender<Healths>,
    pub requests: Requests,
}

impl Imds {
    /// Until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.poll() => {}
        }
    }

    async fn poll(self) {
        let mut client = Client::new(self.endpoint.clone(), self.requests.clone());
        let mut log = Log::default();
        let (mut reached, mut pause) = (false, self.interval);
        loop {
            let begin = Monotonic::now();
            let round = client.read(self.clock.now()).await;
            if client.has_token() {
                if !reached {
                    log = Log::default();
                }
                (reached, pause) = (true, self.interval);
            }
            log.compare(&round, reached, &self.endpoint, self.clock);
            self.publish(round, begin.elapsed());
            tokio::time::sleep_until((begin + pause).into()).await;
            if !reached {
                pause = (pause * 2).min(LONGEST_PAUSE.max(self.interval));
            }
        }
    }

    fn publish(&self, round: Round, took: Duration) {
        let mut failed = None;
        self.notices.send_if_modified(|notices| {
            let mut differs = false;
            for (document, result) in round {
                let read = result.map_err(|error| failed = failed.take().or(Some(error))).ok();
                differs |= notices.learn(document.trigger(), read);
            }
            differs
        });
        let failed = failed.map(super::Error::from);
        self.healths.send_modify(|healths| {
            healths.record(Source::Imds, took, failed.as_ref());
        });
    }
}

/// What was last said of each document. A line for what is new, none for what goes on.
#[derive(Default)]
struct Log {
    is_read: BTreeMap<Document, bool>,
    /// Ids.
    notices: BTreeMap<Document, BTreeSet<String>>,
}

impl Log {
    fn compare(&mut self, round: &Round, reached: bool, endpoint: &Endpoint, clock: Clock) {
        let is_new = |document: &Document, is_read| self.is_read.get(document) != Some(&is_read);
        let paths =
            |documents: Vec<&Document>| documents.iter().map(|document| document.path()).collect::<Vec<_>>().join(" ");
        let lost = round.iter().filter_map(|(document, result)| Some((document, result.as_ref().err()?)));
        let lost: Vec<_> = lost.filter(|(document, _)| is_new(document, false)).collect();
        if let Some((_, error)) = lost.first() {
            let (kind, error) = (error.kind(), chain(*error));
            if reached {
                let documents = paths(lost.iter().map(|(document, _)| *document).collect());
                tracing::warn!(documents, kind, error, "instance metadata is not read");
            } else {
                tracing::info!(
                    %endpoint, kind, error,
                    "no instance metadata: nobody tells of spot interruptions and maintenance. On EC2 the instance needs \
                     a metadata hop limit of 2, or the agent the host's network; elsewhere say --imds-endpoint none"
                );
            }
        }
        let found = round.iter().filter(|(document, result)| result.is_ok() && is_new(document, true));
        let found: Vec<_> = found.map(|(document, _)| document).collect();
        if !found.is_empty() {
            tracing::info!(documents = paths(found), "instance metadata is read");
        }
        for (document, result) in round {
            self.is_read.insert(*document, result.is_ok());
            if let Ok(notices) = result {
                self.notices(*document, notices, clock);
            }
        }
    }

    fn notices(&mut self, document: Document, notices: &[Notice], clock: Clock) {
        let (trigger, document_path) = (document.trigger().name(), document.path());
        let now: BTreeSet<_> = notices.iter().map(|notice| notice.id.clone()).collect();
        let before = self.notices.insert(document, now.clone()).unwrap_or_default();
        for notice in notices.iter().filter(|notice| !before.contains(&notice.id)) {
            let Notice { id, deadline, reason, .. } = notice;
            let left = format_duration(clock.until(*deadline));
            tracing::warn!(trigger, document = document_path, id, %deadline, left, because = reason, "notice");
        }
        for id in before.difference(&now) {
            tracing::info!(trigger, document = document_path, id, "notice is gone");
        }
    }
}
