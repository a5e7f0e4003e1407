//! What an agent tells the coordinator about its node.

use serde::{Deserialize, Serialize};

use crate::classify::{Class, Utilization};
use crate::time::Instant;

/// One agent's word on its node at one moment. Times are by the agent's clock: only differences between them mean
/// anything elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    pub node: String,
    /// The Node object's UID: a re-created node of the same name is another node.
    pub node_uid: String,
    /// Changes when the agent starts; within it `sequence` only grows.
    pub agent_start: Instant,
    pub sequence: u64,
    pub sampled_at: Instant,
    pub class: Class,
    /// Means over the classifier's window.
    pub utilization: Utilization,
    /// Since when the node has been busy without its GPUs.
    pub gpu_waste: Option<Instant>,
}

impl Report {
    /// Whether this was said after `other`: reports can come twice and out of order.
    pub fn is_newer_than(&self, other: &Self) -> bool {
        (self.agent_start, self.sequence) > (other.agent_start, other.sequence)
    }
}
