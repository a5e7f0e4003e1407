//! Asks Ray clusters' heads what waits in them, once a second for as long as this coordinator leads, and tells the driver.
//! What follows from it is the core's.

mod gcs;
mod node_drain;
mod objects;

use std::sync::Arc;
use std::time::Duration;

use ebb_core::fleet::Event;
use ebb_core::ray::Answer;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use crate::metrics::Metrics;
use crate::standing::Standing;

pub(crate) use gcs::{Error, Gcs};
pub(crate) use node_drain::{NodeDrains, router};
pub(crate) use objects::{scale_cluster, show_group, watch};

/// The head itself hears from its nodes once a second.
const EVERY: Duration = Duration::from_secs(1);
/// Between two questions to a head that does not answer, after some of them.
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// What has not changed is told so often, as agents do.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// One cluster's.
pub(crate) struct Head {
    pub(crate) name: String,
    pub(crate) gcs: Arc<Gcs>,
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
            let mut failures = 0;
            let mut told: Option<Told> = None;
            while standing.leads() {
                let began = Instant::now();
                let answer = match self.gcs.status().await {
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

    /// One line for each problem, not one for each question.
    fn complain(&self, error: &Error, told: Option<&Told>) {
        let problem = error.problem();
        let is_known = told.is_some_and(|told| told.answer == Answer::Unreadable(problem));
        let source = std::error::Error::source(error).map(ToString::to_string);
        let (cluster, address) = (&self.name, &self.gcs.cluster.address);
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

/// From one question to the next.
fn pause(failures: u32) -> Duration {
    EVERY.saturating_mul(1 << failures.saturating_sub(1).min(6)).min(LONGEST_PAUSE)
}

#[cfg(test)]
mod fake_head;
#[cfg(test)]
mod tests;
