//! Nodes with the pods on them: what fits where, also for what pods mean for each other. Sums are kept as pods come and
//! go, and pods that a scheduler could not tell apart are one shape.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::hash::{Hash, Hasher};

use super::topology::{Demands, Topology};
use super::{Misfit, Place, has_its_claims};
use crate::kubernetes::Pod;
use crate::resources::Resources;

/// By the order in which they were added.
pub type NodeId = usize;
pub type ShapeId = usize;

#[derive(Debug, Default)]
pub struct Cluster<'a> {
    nodes: Vec<Node<'a>>,
    shapes: Vec<Shape<'a>>,
    by_features: HashMap<Features<'a>, ShapeId>,
    /// Of pods that were asked about, by their address: nearly always the same few.
    by_address: HashMap<*const Pod, ShapeId>,
    topology: Topology,
}

#[derive(Debug)]
struct Node<'a> {
    place: Place<'a>,
    /// What the place has with nothing of it taken.
    whole: Resources,
    pods: BTreeMap<ShapeId, u32>,
}

#[derive(Debug)]
pub(super) struct Shape<'a> {
    /// One of them, for what it asks for.
    pub(super) pod: &'a Pod,
    pub(super) demands: Demands,
}

/// Pods are equal that differ in nothing that filters read.
#[derive(Debug)]
struct Features<'a>(&'a Pod);

impl Features<'_> {
    fn all(&self) -> impl Hash + PartialEq {
        let pod = self.0;
        let selection = (&pod.tolerations, &pod.node_selector, &pod.node_affinity);
        let others = (&pod.pod_affinity, &pod.pod_anti_affinity, &pod.spread, &pod.needs);
        (&pod.namespace, &pod.labels, pod.terminating, &pod.requests, &pod.host_ports, selection, others)
    }
}

impl PartialEq for Features<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.all() == other.all()
    }
}

impl Eq for Features<'_> {}

impl Hash for Features<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.all().hash(state);
    }
}

impl<'a> Cluster<'a> {
    /// With nothing of it taken.
    pub fn add(&mut self, place: Place<'a>) -> NodeId {
        let id = self.nodes.len();
        self.topology.add(&place);
        let whole = place.free.clone();
        self.nodes.push(Node { place, whole, pods: BTreeMap::new() });
        id
    }

    pub fn place(&self, node: NodeId) -> &Place<'a> {
        &self.nodes[node].place
    }

    pub fn nodes(&self) -> usize {
        self.nodes.len()
    }

    pub fn shape(&mut self, pod: &'a Pod) -> ShapeId {
        if let Some(&known) = self.by_address.get(&std::ptr::from_ref(pod)) {
            return known;
        }
        let shape = self.shape_by_features(pod);
        self.by_address.insert(pod, shape);
        shape
    }

    fn shape_by_features(&mut self, pod: &'a Pod) -> ShapeId {
        if let Some(&known) = self.by_features.get(&Features(pod)) {
            return known;
        }
        let id = self.shapes.len();
        let there = self.nodes.iter().map(|node| (&node.place, &node.pods));
        let demands = self.topology.demands(pod, &mut self.shapes, there);
        self.shapes.push(Shape { pod, demands });
        self.by_features.insert(Features(pod), id);
        id
    }

    /// Whether room for pods of this shape can only shrink while others are put somewhere: a node that has refused one
    /// refuses the next.
    pub fn only_shrinks_for(&self, shape: ShapeId) -> bool {
        self.shapes[shape].demands.only_shrink()
    }

    /// Whether pods of this shape are to be spread.
    pub fn spreads(&self, shape: ShapeId) -> bool {
        !self.shapes[shape].pod.spread.is_empty()
    }

    /// Why a pod of this shape cannot run there; `Ok` if it can. Of several causes the one that kube-scheduler's filters
    /// come to first.
    pub fn admits(&self, node: NodeId, shape: ShapeId) -> Result<(), Misfit> {
        let Node { place, pods, .. } = &self.nodes[node];
        self.fits(node, place, pods, &self.shapes[shape])
    }

    /// As [`Self::admits`], of one node more.
    pub fn would_admit(&self, place: &Place<'_>, shape: ShapeId) -> Result<(), Misfit> {
        self.fits(self.nodes.len(), place, &BTreeMap::new(), &self.shapes[shape])
    }

    fn fits(
        &self,
        id: NodeId,
        place: &Place<'_>,
        pods: &BTreeMap<ShapeId, u32>,
        Shape { pod, demands }: &Shape<'_>,
    ) -> Result<(), Misfit> {
        has_its_claims(pod)?;
        place.is_meant_for(pod)?;
        let taken = || pods.keys().flat_map(|&shape| &self.shapes[shape].pod.host_ports);
        if let Some(port) = pod.host_ports.iter().find(|port| taken().any(|taken| taken.conflicts_with(port))) {
            return Err(Misfit::HostPort { port: port.port });
        }
        place.has_room_for(pod)?;
        place.has_volumes_of(pod)?;
        self.topology.admits(id, place, demands)
    }

    pub fn put(&mut self, node: NodeId, shape: ShapeId) {
        let Shape { pod, demands } = &self.shapes[shape];
        self.topology.put(node, demands);
        let node = &mut self.nodes[node];
        node.place.free.subtract(&pod.requests);
        *node.pods.entry(shape).or_default() += 1;
    }

    /// Undoes a [`Self::put`].
    pub fn take(&mut self, node: NodeId, shape: ShapeId) {
        self.topology.take(node, &self.shapes[shape].demands);
        let node = &mut self.nodes[node];
        if let Some(pods) = node.pods.get_mut(&shape) {
            *pods -= 1;
            if *pods == 0 {
                node.pods.remove(&shape);
            }
        }
        // Not by adding: of a node with more on it than it has, what is free stays at nothing for a while.
        node.place.free.clone_from(&node.whole);
        for (&shape, &pods) in &node.pods {
            (0..pods).for_each(|_| node.place.free.subtract(&self.shapes[shape].pod.requests));
        }
    }

    /// How many pods of this shape one node can hold at the most, whatever its size, as far as that is known without
    /// looking at the others: those that take a port of the node, or keep away from their like, are alone there.
    pub fn most_on_a_node(&self, shape: ShapeId) -> u64 {
        let pod = self.shapes[shape].pod;
        let alone = !pod.host_ports.is_empty() || pod.pod_anti_affinity.iter().any(|term| term.is_about(pod));
        if alone { 1 } else { u64::MAX }
    }
}
