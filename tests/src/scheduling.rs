//! Pods by chance, and what kube-scheduler says of each, for the tests that hold a model against it.

use std::time::Duration;

use ebb_core::kubernetes::Node;
use k8s_openapi::api::core::v1::{self as api, Pod, PodCondition};
use kube::Api;
use kube::api::ListParams;

use crate::Lab;

/// So many nodes, once all of them are open to pods.
pub async fn open_nodes(lab: &Lab, nodes: &Api<api::Node>, count: usize, within: Duration) -> Vec<Node> {
    let mut known: Vec<Node> = Vec::new();
    let open = async || {
        let listed = nodes.list(&ListParams::default()).await.expect("the API server lists nodes").items;
        known = listed.iter().map(Node::from).collect();
        let starts = |node: &Node| node.taints.iter().any(|taint| taint.key.starts_with("node.kubernetes.io/"));
        known.len() == count && known.iter().all(|node| node.ready && !starts(node))
    };
    lab.wait_until("all nodes to be open", within, open).await;
    known
}

pub fn bound_to(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref()
}

/// What the scheduler last said of a pod that it found no node for.
pub fn refusal(pod: &Pod) -> Option<String> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let refused = |it: &&PodCondition| it.type_ == "PodScheduled" && it.reason.as_deref() == Some("Unschedulable");
    conditions.iter().find(refused)?.message.clone()
}

/// The number of nodes of which `0/15 nodes are available: 4 node(s) had untolerated taint {…}, 3 Insufficient cpu.` says
/// this.
pub fn said(message: &str, cause: &str) -> usize {
    let causes = message.split(" preemption: ").next().unwrap_or_default();
    let causes = causes.split_once(": ").map_or("", |(_, causes)| causes).split(", ");
    let counts = causes.filter(|it| it.contains(cause)).filter_map(|it| it.split(' ').next()?.parse::<usize>().ok());
    counts.sum()
}

/// SplitMix64: enough to mix shapes, and the same everywhere.
pub struct Chance(pub u64);

impl Chance {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }

    pub fn one_of(&mut self, choices: &[&'static str]) -> &'static str {
        choices[usize::try_from(self.below(choices.len() as u64)).expect("it is below a usize")]
    }
}
