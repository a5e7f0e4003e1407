//! Nodes and what is taken of them, kept up to date pod by pod, and the order in which they changed.

use std::collections::{BTreeMap, VecDeque};

use ebb_core::kubernetes::{Node, Pod, Taint, TaintEffect};
use ebb_core::resources::Resources;
use ebb_core::schedule::Place;

/// What kube-scheduler counts for a pod that asks for no CPU or no memory when it scores a node by what is left
/// (`DefaultMilliCPURequest`, `DefaultMemoryRequest`): 100 thousandths of a core, 200 MiB.
const UNASKED_CPU: u64 = 100;
const UNASKED_MEMORY: u64 = 200 << 20;

/// CPU in thousandths of a core and memory in bytes: what scores look at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Amounts {
    pub(super) cpu: u64,
    pub(super) memory: u64,
}

impl Amounts {
    pub(super) fn of(resources: &Resources) -> Self {
        Self { cpu: resources.amount("cpu"), memory: resources.amount("memory") }
    }

    pub(super) fn plus(self, other: Self) -> Self {
        Self { cpu: self.cpu.saturating_add(other.cpu), memory: self.memory.saturating_add(other.memory) }
    }

    fn minus(self, other: Self) -> Self {
        Self { cpu: self.cpu.saturating_sub(other.cpu), memory: self.memory.saturating_sub(other.memory) }
    }
}

/// What a pod asks for, in the two ways the scheduler counts it.
#[derive(Clone, Debug)]
pub(super) struct Demand {
    pub(super) requests: Resources,
    pub(super) asked: Amounts,
    /// With the scheduler's assumption where nothing was asked for.
    pub(super) assumed: Amounts,
}

impl Demand {
    pub(super) fn of(pod: &Pod) -> Self {
        let asked = Amounts::of(&pod.requests);
        let or = |amount, unasked| if amount == 0 { unasked } else { amount };
        let assumed = Amounts { cpu: or(asked.cpu, UNASKED_CPU), memory: or(asked.memory, UNASKED_MEMORY) };
        Self { requests: pod.requests.clone(), asked, assumed }
    }
}

/// A node by its index, which it keeps until it is gone and empty.
pub(super) type Slot = usize;

/// A node, or pods bound to a name that is no node.
#[derive(Debug, Default)]
pub(super) struct Member {
    pub(super) name: String,
    pub(super) node: Option<Node>,
    /// The node's, and before them those that its state stands for.
    taints: Vec<Taint>,
    used: Resources,
    pods: u32,
    pub(super) asked: Amounts,
    pub(super) assumed: Amounts,
    /// The position of its last change in the log.
    changed: u64,
}

impl Member {
    pub(super) fn soft_taints(&self) -> impl Iterator<Item = &Taint> {
        self.taints.iter().filter(|taint| taint.effect == TaintEffect::PreferNoSchedule)
    }

    /// `None`: there is no such node.
    pub(super) fn place(&self) -> Option<Place<'_>> {
        let node = self.node.as_ref()?;
        let mut free = node.allocatable.clone();
        free.subtract(&self.used);
        Some(Place { name: Some(&self.name), labels: &node.labels, taints: &self.taints, free, zones: &[] })
    }
}

#[derive(Debug, Default)]
pub(super) struct Cluster {
    members: Vec<Member>,
    by_name: BTreeMap<String, Slot>,
    vacant: Vec<Slot>,
    nodes: usize,
    /// The latest changes, oldest first.
    log: VecDeque<Slot>,
    /// The position of the log's first entry, counted from the beginning.
    log_starts: u64,
}

impl Cluster {
    pub(super) fn has_nodes(&self) -> bool {
        self.nodes > 0
    }

    #[cfg(test)]
    pub(super) fn slots(&self) -> usize {
        self.members.len()
    }

    pub(super) fn member(&self, slot: Slot) -> &Member {
        &self.members[slot]
    }

    /// Takes a node as it is now. The slot, if that can change where a pod may run.
    pub(super) fn apply(&mut self, node: Node) -> Option<Slot> {
        let slot = self.slot(&node.name);
        let member = &mut self.members[slot];
        let same = member.node.as_ref().is_some_and(|old| {
            old.labels == node.labels
                && old.taints == node.taints
                && old.unschedulable == node.unschedulable
                && old.ready == node.ready
                && old.allocatable == node.allocatable
        });
        self.nodes += usize::from(member.node.is_none());
        member.taints = assumed_taints(&node);
        member.taints.extend_from_slice(&node.taints);
        member.node = Some(node);
        if same {
            return None;
        }
        self.touch(slot);
        Some(slot)
    }

    pub(super) fn delete(&mut self, name: &str) {
        let Some(&slot) = self.by_name.get(name) else { return };
        self.nodes -= usize::from(self.members[slot].node.take().is_some());
        self.touch(slot);
        self.vacate(slot);
    }

    /// Counts a pod on the node of this name.
    pub(super) fn take(&mut self, name: &str, demand: &Demand) -> Slot {
        let slot = self.slot(name);
        let member = &mut self.members[slot];
        member.pods += 1;
        member.used.add(&demand.requests);
        member.asked = member.asked.plus(demand.asked);
        member.assumed = member.assumed.plus(demand.assumed);
        self.touch(slot);
        slot
    }

    /// Counts a pod of the slot no more.
    pub(super) fn release(&mut self, slot: Slot, demand: &Demand) {
        let member = &mut self.members[slot];
        member.pods -= 1;
        member.used.subtract(&demand.requests);
        member.asked = member.asked.minus(demand.asked);
        member.assumed = member.assumed.minus(demand.assumed);
        self.touch(slot);
        self.vacate(slot);
    }

    /// The log's position behind its last entry.
    pub(super) fn log_ends(&self) -> u64 {
        self.log_starts + self.log.len() as u64
    }

    /// Each slot that changed at this position of the log or later, once; all slots if the log does not reach back.
    pub(super) fn changed_since(&self, position: u64) -> impl Iterator<Item = Slot> {
        let logged = position.checked_sub(self.log_starts);
        let (all, from) = match logged.and_then(|from| usize::try_from(from).ok()) {
            Some(from) => (0..0, from.min(self.log.len())),
            None => (0..self.members.len(), self.log.len()),
        };
        let is_latest = move |(at, slot): (u64, Slot)| (self.members[slot].changed == at).then_some(slot);
        let positions = position.max(self.log_starts)..;
        all.chain(positions.zip(self.log.range(from..).copied()).filter_map(is_latest))
    }

    fn slot(&mut self, name: &str) -> Slot {
        if let Some(&slot) = self.by_name.get(name) {
            return slot;
        }
        let slot = self.vacant.pop().unwrap_or_else(|| {
            self.members.push(Member::default());
            self.members.len() - 1
        });
        self.members[slot].name = name.to_owned();
        self.by_name.insert(name.to_owned(), slot);
        slot
    }

    fn vacate(&mut self, slot: Slot) {
        let member = &mut self.members[slot];
        if member.node.is_none() && member.pods == 0 {
            self.by_name.remove(&member.name);
            *member = Member { changed: member.changed, ..Member::default() };
            self.vacant.push(slot);
        }
    }

    fn touch(&mut self, slot: Slot) {
        self.members[slot].changed = self.log_ends();
        self.log.push_back(slot);
        // Whoever has seen none of so many changes is as fast looking at all nodes.
        if self.log.len() > self.members.len().max(1024) {
            self.log.pop_front();
            self.log_starts += 1;
        }
    }
}

/// The taints that a cluster's controllers and its admission put on a node for its state, whether it carries them yet
/// or not.
fn assumed_taints(node: &Node) -> Vec<Taint> {
    let states =
        [(node.unschedulable, "node.kubernetes.io/unschedulable"), (!node.ready, "node.kubernetes.io/not-ready")];
    let taint = |key: &str| Taint { key: key.to_owned(), value: String::new(), effect: TaintEffect::NoSchedule };
    states.into_iter().filter(|(holds, _)| *holds).map(|(_, key)| taint(key)).collect()
}
