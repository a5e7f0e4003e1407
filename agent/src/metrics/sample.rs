//! The latest sample as metrics, one module for each subject. Totals since boot (or, from eBPF, since the agent started)
//! are counters.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use tokio::sync::watch;

use super::write::Writer;
use super::{allocation, cgroup, class, container, gpu, node, pod, source};
use crate::sampler::Sample;
use crate::workload;

#[derive(Debug)]
pub(super) struct Latest(pub(super) watch::Receiver<Option<Arc<Sample>>>);

impl Collector for Latest {
    fn encode(&self, encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let mut page = Writer(encoder);
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        page.gauges("ebb_build_info", "The agent's build.", [(version, 1.0)])?;
        let Some(sample) = self.0.borrow().clone() else { return Ok(()) };
        page.gauge("ebb_sample_age_seconds", "How old these figures are.", sample.taken.elapsed().as_secs_f64())?;
        class::encode(&mut page, &sample)?;
        source::encode(&mut page, &sample)?;
        node::encode(&mut page, &sample.reading)?;
        let pods = workload::pods(&sample.reading, &sample.names);
        pod::encode(&mut page, &pods)?;
        container::encode(&mut page, &pods)?;
        cgroup::encode(&mut page, &sample.reading)?;
        if let Some(gpus) = &sample.reading.gpus {
            gpu::encode(&mut page, gpus, &sample.names)?;
        }
        if let Some(all) = &sample.allocations {
            let held = workload::allocations(all, &sample.reading, &sample.names, &pods);
            let gpus = sample.reading.gpus.as_ref().and_then(|reading| reading.gpus.as_deref());
            allocation::encode(&mut page, &held, gpus)?;
        }
        let dropped = sample.reading.cuda_launches_dropped.map(|count| count as f64);
        let help = "Launches that are counted for no container or cgroup: no room for one more cgroup.";
        page.counter("ebb_cuda_launches_dropped", help, dropped)?;
        sample.reading.bpf.map_or(Ok(()), |bpf| source::bpf(&mut page, bpf))
    }
}
