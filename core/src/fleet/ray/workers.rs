//! Ray's workers on the nodes: what their heads say of each, for people and for drains.

use std::time::Duration;

use super::super::Fleet;
use super::super::pods::Entry;
use super::Known;
use crate::kubernetes::Controller;
use crate::ray::node_drain::{OnNode, Worker};
use crate::ray::{Cluster, Joined, NodeState};
use crate::time::Instant;
use crate::view::{RayWorker, RayWorkerState};

/// Ray's nodes, to be found by their pods.
pub(in crate::fleet) struct RayNodes<'a>(Vec<OfCluster<'a>>);

struct OfCluster<'a> {
    name: &'a str,
    cluster: &'a Cluster,
    known: Option<&'a Known>,
    joined: Joined<'a>,
}

impl<'a> OfCluster<'a> {
    fn new(name: &'a str, cluster: &'a Cluster, known: Option<&'a Known>) -> Self {
        let last = known.and_then(|known| known.last.as_ref());
        let joined = last.map(|last| last.reading.joined()).unwrap_or_default();
        Self { name, cluster, known, joined }
    }

    fn has(&self, pod: &Entry) -> bool {
        !pod.like.finished && self.cluster.worker_groups.iter().any(|group| group.is_of(&pod.like))
    }

    /// Whether a worker of this pod's was there, and no other has joined since.
    fn has_left(&self, pod: &Entry) -> bool {
        let last = self.known.and_then(|known| known.last.as_ref());
        last.is_some_and(|last| last.reading.nodes.values().any(|node| node.instance == *pod.name))
    }
}

impl Fleet {
    pub(in crate::fleet) fn ray_nodes(&self) -> RayNodes<'_> {
        let clusters = self.policy.ray.iter().map(|(name, cluster)| OfCluster::new(name, cluster, self.ray.get(name)));
        RayNodes(clusters.collect())
    }

    /// What the drain of a node has to know of Ray on it; `None`: there is no such node.
    pub fn ray_on_node(&self, name: &str, uid: &str) -> Option<OnNode> {
        self.nodes.get(name).filter(|member| member.node.uid == uid)?;
        let mut on = OnNode::default();
        for of in self.ray_nodes().0 {
            let pods: Vec<_> = self.pods.on(name).filter(|pod| of.has(pod)).collect();
            if pods.is_empty() {
                continue;
            }
            match of.known {
                Some(Known { problem: Some(problem), silent_since: Some(since), .. }) => {
                    on.silent.insert(of.name.to_owned(), (*problem, *since));
                }
                Some(Known { last: Some(_), .. }) => {}
                _ => on.unheard.push(of.name.to_owned()),
            }
            for pod in pods {
                let (cluster, joined) = (of.name.to_owned(), of.joined.in_pod(&pod.name, pod.ip.as_deref()));
                match joined {
                    Some((id, node)) => {
                        on.workers.push(Worker { cluster, pod: pod.full_name(), id: id.to_owned(), state: node.state });
                    }
                    None if of.has_left(pod) => {}
                    None => on.joining.push((cluster, pod.full_name())),
                }
            }
        }
        Some(on)
    }
}

impl RayNodes<'_> {
    /// Those of a node, and since when they alone have held it, all of them idle.
    pub(in crate::fleet) fn workers<'p>(
        &self,
        pods: impl Iterator<Item = &'p Entry>,
    ) -> (Vec<RayWorker>, Option<Instant>) {
        let mut workers = Vec::new();
        // The latest of them; `None`: something else holds the node.
        let mut idle_since = Some(None);
        for pod in pods {
            let Some(of) = self.0.iter().find(|of| of.has(pod)) else {
                idle_since = idle_since.filter(|_| pod.like.controller != Controller::Workload);
                continue;
            };
            let state = of.state(pod);
            idle_since = match state {
                RayWorkerState::Idle { since } => idle_since.map(|latest| latest.max(Some(since))),
                _ => None,
            };
            workers.push(RayWorker { pod: pod.full_name(), cluster: of.name.to_owned(), state });
        }
        (workers, idle_since.flatten())
    }
}

impl OfCluster<'_> {
    fn state(&self, pod: &Entry) -> RayWorkerState {
        let Some(Known { problem: None, last: Some(last), .. }) = self.known else { return RayWorkerState::Unknown };
        let Some((_, node)) = self.joined.in_pod(&pod.name, pod.ip.as_deref()) else {
            return RayWorkerState::NotJoined;
        };
        match node.state {
            // How long, not since when, is what a head tells: its clock does not matter.
            NodeState::Idle { millis } => RayWorkerState::Idle { since: last.at.before(Duration::from_millis(millis)) },
            NodeState::Running => RayWorkerState::Busy { because: node.activity.clone() },
            NodeState::Draining => RayWorkerState::Draining,
            NodeState::Dead => RayWorkerState::NotJoined,
        }
    }
}
