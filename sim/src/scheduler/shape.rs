//! Pods that the scheduler cannot tell apart but by name and priority, and the nodes ranked for them.

use std::collections::{BTreeMap, BTreeSet};

use ebb_core::kubernetes::Pod;
use ebb_core::resources::Resources;
use ebb_core::schedule::{Misfit, tolerates};

use super::cluster::{Amounts, Cluster, Demand, Member, Slot};
use crate::random::Random;

/// The highest score of a plugin (`MaxNodeScore`).
const MAX_SCORE: u64 = 100;
/// Of TaintToleration among the default plugins; NodeResourcesFit and NodeResourcesBalancedAllocation weigh 1.
const TAINT_WEIGHT: u64 = 3;
/// Rankings kept at a time: one of 5 000 nodes takes half a megabyte.
const RANKINGS: usize = 64;

/// A shape by its index, which it keeps.
pub(super) type ShapeId = usize;

#[derive(Debug)]
pub(super) struct Shape {
    /// With nothing set but what filters and scores read.
    pub(super) pod: Pod,
    pub(super) demand: Demand,
    ranking: Option<Ranking>,
}

#[derive(Debug, Default)]
pub(super) struct Shapes {
    shapes: Vec<Shape>,
    by_requests: BTreeMap<Resources, Vec<ShapeId>>,
    /// Those with a ranking, the least recently used first.
    ranked: Vec<ShapeId>,
}

impl Shapes {
    pub(super) fn get(&self, id: ShapeId) -> &Shape {
        &self.shapes[id]
    }

    pub(super) fn id(&mut self, pod: &Pod) -> ShapeId {
        let alike = |id: &&ShapeId| {
            let known = &self.shapes[**id].pod;
            known.tolerations == pod.tolerations
                && known.node_selector == pod.node_selector
                && known.node_affinity == pod.node_affinity
        };
        if let Some(id) = self.by_requests.get(&pod.requests).and_then(|ids| ids.iter().find(alike)) {
            return *id;
        }
        let id = self.shapes.len();
        let pod = Pod {
            requests: pod.requests.clone(),
            tolerations: pod.tolerations.clone(),
            node_selector: pod.node_selector.clone(),
            node_affinity: pod.node_affinity.clone(),
            ..Pod::default()
        };
        self.by_requests.entry(pod.requests.clone()).or_default().push(id);
        self.shapes.push(Shape { demand: Demand::of(&pod), pod, ranking: None });
        id
    }

    /// The nodes ranked for the shape, as the cluster is now.
    pub(super) fn ranking(&mut self, id: ShapeId, cluster: &Cluster, ties: &mut Random) -> &Ranking {
        if self.ranked.last() != Some(&id) {
            self.ranked.retain(|ranked| *ranked != id);
            self.ranked.push(id);
            if self.ranked.len() > RANKINGS {
                self.shapes[self.ranked.remove(0)].ranking = None;
            }
        }
        let Shape { pod, demand, ranking } = &mut self.shapes[id];
        let ranking = ranking.get_or_insert_default();
        ranking.refresh(pod, demand, cluster, ties);
        ranking
    }
}

/// All nodes, as they are for a pod of one shape.
#[derive(Clone, Debug, Default)]
pub(super) struct Ranking {
    verdicts: Vec<Verdict>,
    /// Nodes that fit, by how many of their soft taints the pod does not tolerate; the best ones last.
    fitting: BTreeMap<u64, BTreeSet<Rank>>,
    misfits: BTreeMap<Misfit, u32>,
    /// Up to where it knows the cluster's log.
    seen: u64,
}

#[derive(Clone, Debug, Default)]
enum Verdict {
    #[default]
    NoNode,
    Fits {
        soft_taints: u64,
        rank: Rank,
    },
    Refused(Misfit),
}

/// Higher is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    /// From the plugins that look at resources.
    score: u64,
    /// Drawn: among equals one is as likely as the other.
    tie: u64,
    slot: Slot,
}

impl Ranking {
    /// The node that the scheduler would choose.
    pub(super) fn best(&self) -> Option<Slot> {
        let most_taints = *self.fitting.last_key_value()?.0;
        let best_of = |(taints, ranks): (&u64, &BTreeSet<Rank>)| {
            let tolerated = MAX_SCORE - (MAX_SCORE * taints).checked_div(most_taints).unwrap_or(0);
            ranks.last().map(|rank| Rank { score: rank.score + TAINT_WEIGHT * tolerated, ..*rank })
        };
        self.fitting.iter().filter_map(best_of).max().map(|rank| rank.slot)
    }

    /// Why nodes refuse the pod, and how many of them.
    pub(super) fn misfits(&self) -> &BTreeMap<Misfit, u32> {
        &self.misfits
    }

    fn refresh(&mut self, pod: &Pod, demand: &Demand, cluster: &Cluster, ties: &mut Random) {
        for slot in cluster.changed_since(self.seen) {
            self.look(slot, pod, demand, cluster, ties);
        }
        self.seen = cluster.log_ends();
    }

    fn look(&mut self, slot: Slot, pod: &Pod, demand: &Demand, cluster: &Cluster, ties: &mut Random) {
        let member = cluster.member(slot);
        let verdict = match member.place().map(|place| place.admits(pod)) {
            None => Verdict::NoNode,
            Some(Err(misfit)) => Verdict::Refused(misfit),
            Some(Ok(())) => {
                let intolerable = |taint| !pod.tolerations.iter().any(|toleration| tolerates(toleration, taint));
                let soft_taints = member.soft_taints().filter(|taint| intolerable(taint)).count() as u64;
                let rank = Rank { score: score(demand, member), tie: ties.below(u64::MAX), slot };
                Verdict::Fits { soft_taints, rank }
            }
        };
        self.set(slot, verdict);
    }

    fn set(&mut self, slot: Slot, verdict: Verdict) {
        if self.verdicts.len() <= slot {
            self.verdicts.resize(slot + 1, Verdict::NoNode);
        }
        match std::mem::take(&mut self.verdicts[slot]) {
            Verdict::NoNode => {}
            Verdict::Fits { soft_taints, rank } => {
                if let Some(ranks) = self.fitting.get_mut(&soft_taints) {
                    ranks.remove(&rank);
                    if ranks.is_empty() {
                        self.fitting.remove(&soft_taints);
                    }
                }
            }
            Verdict::Refused(misfit) => {
                if let Some(nodes) = self.misfits.get_mut(&misfit) {
                    *nodes -= 1;
                    if *nodes == 0 {
                        self.misfits.remove(&misfit);
                    }
                }
            }
        }
        match &verdict {
            Verdict::NoNode => {}
            Verdict::Fits { soft_taints, rank } => {
                self.fitting.entry(*soft_taints).or_default().insert(*rank);
            }
            Verdict::Refused(misfit) => *self.misfits.entry(misfit.clone()).or_default() += 1,
        }
        self.verdicts[slot] = verdict;
    }
}

/// NodeResourcesFit (LeastAllocated) and NodeResourcesBalancedAllocation on CPU and memory: 0 to 200.
fn score(demand: &Demand, member: &Member) -> u64 {
    let allocatable = member.node.as_ref().map(|node| Amounts::of(&node.allocatable)).unwrap_or_default();
    let least = least_allocated(member.assumed.plus(demand.assumed), allocatable);
    if demand.asked == Amounts::default() {
        // Best effort: the plugin keeps out, or all such pods would go to one node.
        return least;
    }
    let with = evenness(member.asked.plus(demand.asked), allocatable);
    let without = evenness(member.asked, allocatable);
    least + MAX_SCORE / 2 + (MAX_SCORE / 2 + with - without) / 2
}

/// The mean of the shares left.
fn least_allocated(used: Amounts, allocatable: Amounts) -> u64 {
    let left = |used: u64, all: u64| (all > 0).then(|| all.saturating_sub(used) * MAX_SCORE / all);
    let shares = [left(used.cpu, allocatable.cpu), left(used.memory, allocatable.memory)];
    let counted = shares.iter().flatten().count() as u64;
    shares.iter().flatten().sum::<u64>().checked_div(counted).unwrap_or(0)
}

/// One minus the standard deviation of the shares taken, 50 to 100.
#[expect(clippy::cast_precision_loss, reason = "as kube-scheduler computes it")]
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 100, and cut as kube-scheduler does")]
fn evenness(used: Amounts, allocatable: Amounts) -> u64 {
    let share = |used: u64, all: u64| (used as f64 / all as f64).min(1.0);
    let deviation = if allocatable.cpu == 0 || allocatable.memory == 0 {
        0.0
    } else {
        ((share(used.cpu, allocatable.cpu) - share(used.memory, allocatable.memory)) / 2.0).abs()
    };
    ((1.0 - deviation) * MAX_SCORE as f64) as u64
}

#[cfg(test)]
impl Shapes {
    /// For each shape with a ranking: what the ranking says, and what one made from nothing says. Ties left out.
    pub(super) fn rankings(&self, cluster: &Cluster) -> Vec<(Summary, Summary)> {
        let mut ties = Random::new(0, "test");
        let ranked = self.shapes.iter().filter_map(|shape| {
            let mut ranking = shape.ranking.clone()?;
            ranking.refresh(&shape.pod, &shape.demand, cluster, &mut ties);
            let mut fresh = Ranking::default();
            (0..cluster.slots()).for_each(|slot| fresh.look(slot, &shape.pod, &shape.demand, cluster, &mut ties));
            Some((ranking.summary(), fresh.summary()))
        });
        ranked.collect()
    }
}

#[cfg(test)]
pub(super) type Summary = (BTreeSet<(u64, u64, Slot)>, BTreeMap<Misfit, u32>);

#[cfg(test)]
impl Ranking {
    fn summary(&self) -> Summary {
        let ranks =
            self.fitting.iter().flat_map(|(taints, ranks)| ranks.iter().map(|rank| (*taints, rank.score, rank.slot)));
        (ranks.collect(), self.misfits.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_kube_schedulers() {
        // Worked by hand from least_allocated.go and balanced_allocation.go.
        let amounts = |cpu, memory| Amounts { cpu, memory };
        assert_eq!(least_allocated(amounts(1000, 1 << 30), amounts(4000, 16 << 30)), (75 + 93) / 2);
        assert_eq!(least_allocated(amounts(5000, 1), amounts(4000, 0)), 0);
        assert_eq!(evenness(amounts(1000, 1 << 30), amounts(4000, 4 << 30)), 100);
        assert_eq!(evenness(amounts(4000, 0), amounts(4000, 4 << 30)), 50);
        // The share is held to 1: an overcommitted node is no less even than a full one.
        assert_eq!(evenness(amounts(9000, 0), amounts(4000, 4 << 30)), 50);
    }
}
