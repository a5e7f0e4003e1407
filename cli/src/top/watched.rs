//! A node as it is, and what it was in the last minutes.

use std::collections::BTreeMap;

use super::history::History;
use super::node::Node;

/// The resources whose pressure is known to kernels, in the order in which they are shown.
pub(super) const PRESSURES: [&str; 4] = ["cpu", "memory", "io", "irq"];

#[derive(Debug, Default)]
pub(super) struct Watched {
    pub(super) node: Node,
    /// Shares; the run queue's are CPUs' worth of time.
    pub(super) cpu: History,
    pub(super) memory: History,
    pub(super) run_queue: History,
    pub(super) pressures: BTreeMap<&'static str, History>,
    /// Shares of time with a kernel running, by the GPU's UUID.
    pub(super) gpus: BTreeMap<String, History>,
}

impl Watched {
    /// The same sample may come more than once: whoever asks is faster than the agent samples.
    pub(super) fn take(&mut self, node: Node) {
        if self.node.sampled_at != node.sampled_at || node.sampled_at.is_none() {
            self.cpu.push(node.node_cpu.as_ref().and_then(super::node::Cpu::busy));
            self.memory.push(node.memory.as_ref().and_then(super::node::Memory::used));
            self.run_queue.push(node.run_queue_cores);
            for resource in PRESSURES {
                self.pressures.entry(resource).or_default().push(node.stalled(resource).0);
            }
            self.gpus.retain(|uuid, _| node.gpus.iter().any(|gpu| gpu.uuid == *uuid));
            for gpu in &node.gpus {
                self.gpus.entry(gpu.uuid.clone()).or_default().push(gpu.busy());
            }
        }
        self.node = node;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_sample_counts_once() {
        let node = |millis| Node {
            sampled_at: Some(ebb_core::time::Instant::from_millis(millis)),
            run_queue_cores: Some(1.0),
            ..Node::default()
        };
        let mut watched = Watched::default();
        for millis in [1000, 1000, 2000] {
            watched.take(node(millis));
        }
        assert_eq!(watched.run_queue.columns(300)[297..], [None, Some(1.0), Some(1.0)]);
    }
}
