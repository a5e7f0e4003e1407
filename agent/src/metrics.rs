//! What `/metrics` shows. Counters of our own deeds are handles; all else is made from the latest sample at each
//! scrape, so that a cgroup that left is gone from the page.

mod allocation;
mod cgroup;
mod class;
mod container;
mod dcgm;
mod exposition;
mod gpu;
mod node;
mod notice;
mod pod;
mod process;
mod resource;
mod sample;
mod source;
mod write;

use std::fmt;
use std::sync::Arc;

use ebb_core::notice::Notices;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::sync::watch;

pub(crate) use class::levels;
pub use dcgm::{Dcgm, HostnameLabel};
pub use exposition::Exposition;
pub use resource::ResourceMetrics;

use crate::sampler::Sample;
use crate::source::imds::Requests;

/// Labels from closed sets.
type Labelled = Family<[(&'static str, &'static str); 1], Counter>;

/// What the agent did. Clones count together.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    pub reports_sent: Counter,
    pub coordinator_connected: Gauge,
    evictions: Labelled,
    steps: Labelled,
    pub patches_failed: Counter,
}

impl Metrics {
    pub fn evicted(&self, outcome: &'static str) {
        self.evictions.get_or_create(&[("outcome", outcome)]).inc();
    }

    pub fn stepped(&self, step: &'static str) {
        self.steps.get_or_create(&[("step", step)]).inc();
    }

    pub fn register(&self, registry: &mut Registry) {
        registry.register("ebb_reports_sent", "Reports sent to the coordinator", self.reports_sent.clone());
        registry.register(
            "ebb_coordinator_connected",
            "Whether a stream to the coordinator is open",
            self.coordinator_connected.clone(),
        );
        registry.register("ebb_drain_evictions", "Evictions asked for, by the answer", self.evictions.clone());
        registry.register("ebb_drain_steps", "Changes of the own Node, by what they stand for", self.steps.clone());
        registry.register(
            "ebb_drain_patches_failed",
            "Changes of the own Node that failed",
            self.patches_failed.clone(),
        );
    }
}

/// Everything there is to show.
#[derive(Debug)]
pub struct Page(Registry);

impl Page {
    /// `metrics`: only with something to report to.
    pub fn new(samples: watch::Receiver<Option<Arc<Sample>>>, metrics: Option<&Metrics>) -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(sample::Latest(samples)));
        registry.register_collector(Box::new(process::Process::new()));
        if let Some(metrics) = metrics {
            metrics.register(&mut registry);
        }
        Self(registry)
    }

    /// And what is known of the node's end, by `requests` for instance metadata.
    pub fn with_notices(mut self, notices: watch::Receiver<Notices>, requests: Requests) -> Self {
        self.0.register_collector(Box::new(notice::Latest(notices)));
        let help = "Requests to EC2's instance metadata service, by what was asked for and how that went";
        self.0.register("ebb_imds_requests", help, requests);
        self
    }

    pub fn render(&self, exposition: Exposition) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.0)?;
        Ok(match exposition {
            Exposition::OpenMetrics => text,
            Exposition::Classic => exposition::classic(&text),
        })
    }
}
