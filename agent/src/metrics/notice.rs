//! What is known of the node's end, and how it is asked for.

use std::fmt;

use ebb_core::notice::Notices;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use tokio::sync::watch;

use super::write::Writer;

#[derive(Debug)]
pub(super) struct Latest(pub(super) watch::Receiver<Notices>);

impl Collector for Latest {
    fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
        let (mut page, notices) = (Writer(encoder), self.0.borrow());
        page.gauges(
            "ebb_notices",
            "Notices that the node will go, or be away, by what they are of. Missing: not known.",
            notices.iter().map(|(trigger, of)| ([("trigger", trigger.name())], of.len() as f64)),
        )?;
        let deadlines = notices.iter().filter_map(|(trigger, of)| Some((trigger, of.first()?.deadline)));
        page.gauges(
            "ebb_notice_deadline_timestamp_seconds",
            "When the node will be lost by the first of these notices, or its drain given up; since the Unix epoch.",
            deadlines.map(|(trigger, deadline)| ([("trigger", trigger.name())], deadline.as_millis() as f64 / 1000.0)),
        )
    }
}
