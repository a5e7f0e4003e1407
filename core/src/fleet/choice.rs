//! Of which group the next node is to be: the one that is best filled by the pods that still have none.

use std::cmp::Reverse;
use std::ops::Range;

use super::place::{Claim, Room, RoomName};
use crate::kubernetes::Pod;
use crate::policy::Expander;
use crate::reason::Obstacle;
use crate::resources::{NVIDIA_GPU, Resources};
use crate::schedule::{Cluster, Place, ShapeId};

/// How many kinds of pods behind the one that needs a node are looked at for what else would go there: further down only
/// smaller ones follow, and seldom room for them.
const LOOKAHEAD: usize = 64;

/// Pods that have no node yet, in the order in which they get one.
pub(super) struct Demand<'a> {
    runs: Vec<Run<'a>>,
    /// The run that the pod at hand belongs to.
    at: usize,
    expander: Expander,
    chosen: Option<Chosen>,
}

/// Pods of one shape beside each other.
struct Run<'a> {
    shape: ShapeId,
    pod: &'a Pod,
    /// The first and one past the last.
    pods: Range<usize>,
}

impl Run<'_> {
    fn left(&self) -> u64 {
        self.pods.len() as u64
    }
}

/// What was chosen for the run, good as long as so many of its pods are left.
struct Chosen {
    run: usize,
    fills: u64,
    /// Groups that are equally good.
    rooms: Vec<usize>,
}

/// What a node of a group would be worth; less is better.
type Score = (bool, Reverse<i32>, bool, u64, u64);

impl<'a> Demand<'a> {
    pub(super) fn new(pods: &[(ShapeId, Claim<'a>)], expander: Expander) -> Self {
        let mut runs: Vec<Run> = Vec::new();
        for (index, &(shape, claim)) in pods.iter().enumerate() {
            match runs.last_mut() {
                Some(run) if run.shape == shape => run.pods.end = index + 1,
                _ => runs.push(Run { shape, pod: claim.pod(), pods: index..index + 1 }),
            }
        }
        Self { runs, at: 0, expander, chosen: None }
    }

    /// A new node for this pod, or what is in the way at each group. Pods are asked for in their order.
    pub(super) fn open(
        &mut self,
        index: usize,
        cluster: &Cluster<'a>,
        rooms: &mut [Room<'a>],
    ) -> Result<(RoomName<'a>, Place<'a>), Vec<(String, Obstacle)>> {
        while self.runs[self.at].pods.end <= index {
            self.at += 1;
        }
        self.runs[self.at].pods.start = index;
        let run = &self.runs[self.at];
        let obstacle = |room: &Room<'a>| match (room.more, cluster.would_admit(&room.template, run.shape)) {
            (None, _) => Some(Obstacle::Unobserved),
            (Some(_), Err(misfit)) => Some(Obstacle::Misfit(misfit)),
            (Some(_), Ok(())) if room.is_hopeless() => room.failing.clone().map(Obstacle::Failing),
            (Some(0), Ok(())) => Some(Obstacle::Maximum(room.max)),
            (Some(_), Ok(())) => None,
        };
        let still_good = |chosen: &Chosen| {
            chosen.run == self.at
                && chosen.fills <= run.left()
                && chosen.rooms.iter().any(|&room| obstacle(&rooms[room]).is_none())
        };
        if !self.chosen.as_ref().is_some_and(still_good) {
            let scored = rooms.iter().enumerate().filter(|(_, room)| obstacle(room).is_none());
            let scored: Vec<_> = scored.map(|(index, room)| (self.score(cluster, room), index)).collect();
            let best = scored.iter().map(|((score, _), _)| *score).min();
            let equal = || scored.iter().filter(|((score, _), _)| Some(*score) == best);
            self.chosen = best.map(|_| Chosen {
                run: self.at,
                fills: equal().map(|((_, fills), _)| *fills).max().unwrap_or(1),
                rooms: equal().map(|(_, index)| *index).collect(),
            });
        }
        // Of equally good ones the one with the fewest nodes: zones stay even, and so do groups that differ only in theirs.
        let equal = self.chosen.iter().flat_map(|chosen| &chosen.rooms).copied();
        let best = equal
            .filter(|&room| obstacle(&rooms[room]).is_none())
            .min_by_key(|&room| (rooms[room].nodes, rooms[room].group, rooms[room].zone));
        let Some(best) = best else {
            let mut obstacles: Vec<_> =
                rooms.iter().filter_map(|room| Some((room.group.to_owned(), obstacle(room)?))).collect();
            // Zones of a group with the same in the way.
            obstacles.dedup();
            return Err(obstacles);
        };
        let group = rooms[best].group;
        for room in rooms.iter_mut().filter(|room| room.group == group) {
            room.more = room.more.map(|more| more - 1);
        }
        let room = &mut rooms[best];
        room.nodes += 1;
        Ok(((room.group, room.zone), room.template.clone()))
    }

    /// Fills one node of the group with the pods that come next, and says what that is worth, and how many of the first
    /// kind it took. A node with GPUs for pods that want none is the last resort, whatever it costs.
    fn score(&self, cluster: &Cluster<'a>, room: &Room<'a>) -> (Score, u64) {
        let mut free = room.template.free.clone();
        let mut fills = 0;
        for (index, run) in self.runs.iter().enumerate().skip(self.at).take(LOOKAHEAD) {
            let times = run.pod.requests.times_in(&free).min(run.left()).min(cluster.most_on_a_node(run.shape));
            if times == 0 || (index > self.at && room.template.is_meant_for(run.pod).is_err()) {
                continue;
            }
            free.subtract_times(&run.pod.requests, times);
            if index == self.at {
                fills = times;
            }
        }
        let whole = &room.template.free;
        let wastes_gpu = whole.has_gpu() && !self.runs[self.at].pod.requests.has_gpu();
        let worth = match self.expander {
            Expander::LeastWaste => waste(whole, &free),
            Expander::Price => {
                let mut used = whole.clone();
                used.subtract(&free);
                room.price.map_or(u64::MAX, |price| price.micros() * 1000 / value(&used).max(1))
            }
        };
        ((room.failing.is_some(), Reverse(room.priority), wastes_gpu, worth, value(whole)), fills)
    }
}

/// The share of the node that stays unused, in millionths: the mean over CPU and memory, as Cluster Autoscaler's
/// `least-waste` has it, and over GPUs where there are some.
fn waste(whole: &Resources, free: &Resources) -> u64 {
    let share = |name| free.amount(name).saturating_mul(1_000_000).checked_div(whole.amount(name));
    let shares: Vec<_> = ["cpu", "memory", NVIDIA_GPU].into_iter().filter_map(share).collect();
    shares.iter().sum::<u64>() / shares.len().max(1) as u64
}

/// What resources are worth beside each other, in thousandths of a core. By AWS' own prices (`core::price`): `c5` and `r5`
/// of one size differ in memory only, which makes a GiB worth a tenth of a core; a `g4dn` beside an `m5` of its size makes a
/// GPU worth nine.
fn value(resources: &Resources) -> u64 {
    let memory = resources.amount("memory").saturating_mul(100) >> 30;
    let gpus = resources.amount(NVIDIA_GPU).saturating_mul(9000);
    resources.amount("cpu").saturating_add(memory).saturating_add(gpus)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::price::Dollars;
    use crate::time::Instant;

    /// Name, cores, GiB, GPUs, millionths of a dollar an hour.
    type Type = (&'static str, u64, u64, u64, u64);
    const LARGE: Type = ("large", 16, 64, 0, 768_000);
    const MEDIUM: Type = ("medium", 8, 32, 0, 384_000);
    const SMALL: Type = ("small", 4, 16, 0, 192_000);
    const MEMORY: Type = ("memory", 4, 32, 0, 252_000);
    const GPU: Type = ("gpu", 4, 16, 1, 526_000);

    fn amounts(cores: u64, gib: u64, gpus: u64, pods: u64) -> Resources {
        let mut resources = Resources::default();
        resources.set("cpu", cores * 1000);
        resources.set("memory", gib << 30);
        resources.set(NVIDIA_GPU, gpus);
        resources.set("pods", pods);
        resources
    }

    fn pods(count: usize, cores: u64, gib: u64, gpus: u64) -> Vec<Pod> {
        let pod = |index| Pod {
            uid: format!("{cores}-{gib}-{index}"),
            name: format!("{cores}-{gib}-{index}"),
            requests: amounts(cores, gib, gpus, 1),
            ..Pod::default()
        };
        (0..count).map(pod).collect()
    }

    fn wanted(types: &[Type], pods: &[Pod], expander: Expander, with: fn(&mut Room)) -> Vec<(String, u32)> {
        let labels = BTreeMap::new();
        let room = |&(group, cores, gib, gpus, price): &Type| {
            let free = amounts(cores, gib, gpus, 100);
            let template = Place { name: None, labels: &labels, taints: &[], free, zones: &[] };
            let price = Some(Dollars::from_micros(price));
            let mut room = Room {
                group,
                template,
                zone: None,
                more: Some(100),
                max: 100,
                nodes: 0,
                priority: 0,
                price,
                failing: None,
            };
            with(&mut room);
            room
        };
        let pods = crate::fleet::pods::entries(pods);
        let waiting = pods.iter().map(|pod| (pod, Instant::from_millis(0))).collect();
        let placement = super::super::place::place(waiting, &[], vec![], types.iter().map(room).collect(), expander);
        placement.wanted.into_iter().map(|((group, _), wanted)| (group.to_owned(), wanted.nodes)).collect()
    }

    #[track_caller]
    fn check(types: &[Type], pods: &[Pod], expander: Expander, expected: &[(&str, u32)]) {
        let expected: Vec<_> = expected.iter().map(|(group, nodes)| ((*group).to_owned(), *nodes)).collect();
        assert_eq!(wanted(types, pods, expander, |_| {}), expected);
    }

    #[test]
    fn the_group_that_the_pods_fill_best_is_asked() {
        let all = [LARGE, MEDIUM, SMALL, MEMORY];
        check(&all, &pods(1, 4, 16, 0), Expander::LeastWaste, &[("small", 1)]);
        check(&all, &pods(1, 4, 31, 0), Expander::LeastWaste, &[("memory", 1)]);
        // Of equally full ones the smallest, as many as it takes.
        check(&all, &pods(40, 1, 4, 0), Expander::LeastWaste, &[("small", 10)]);
        // Five leave the same share of a large and of a small node, and three cores only fit so.
        check(&[LARGE, SMALL], &pods(5, 3, 12, 0), Expander::LeastWaste, &[("large", 1)]);
        // What is left in the end is asked of another.
        check(&[LARGE, SMALL], &pods(6, 3, 12, 0), Expander::LeastWaste, &[("large", 1), ("small", 1)]);
    }

    #[test]
    fn what_the_rest_of_the_pods_ask_for_counts() {
        let tight: Type = ("tight", 3, 4, 0, 192_000);
        check(&[tight, SMALL], &pods(1, 3, 3, 0), Expander::LeastWaste, &[("tight", 1)]);
        let mut both = pods(1, 3, 3, 0);
        both.extend(pods(1, 1, 13, 0));
        check(&[tight, SMALL], &both, Expander::LeastWaste, &[("small", 1)]);
    }

    #[test]
    fn a_gpu_is_the_last_resort_for_pods_that_want_none() {
        check(&[GPU, LARGE], &pods(1, 4, 16, 0), Expander::LeastWaste, &[("large", 1)]);
        check(&[GPU], &pods(1, 4, 16, 0), Expander::LeastWaste, &[("gpu", 1)]);
        check(&[GPU, LARGE], &pods(2, 1, 1, 1), Expander::LeastWaste, &[("gpu", 2)]);
    }

    #[test]
    fn prices_and_priorities_can_decide() {
        // Per core and GiB asked for the large one costs as much, but would be half empty.
        check(&[LARGE, MEMORY], &pods(2, 3, 12, 0), Expander::Price, &[("memory", 2)]);
        let dear: Type = ("dear", 4, 16, 0, 500_000);
        check(&[dear, MEMORY], &pods(1, 4, 16, 0), Expander::LeastWaste, &[("dear", 1)]);
        check(&[dear, MEMORY], &pods(1, 4, 16, 0), Expander::Price, &[("memory", 1)]);
        let first = |room: &mut Room| room.priority = i32::from(room.group == "large");
        let found = wanted(&[LARGE, SMALL], &pods(1, 1, 1, 0), Expander::LeastWaste, first);
        assert_eq!(found, [("large".to_owned(), 1)]);
    }

    #[test]
    fn a_group_that_is_full_leaves_the_rest_to_the_next() {
        let bounded = |room: &mut Room| room.more = Some(if room.group == "small" { 2 } else { 100 });
        let found = wanted(&[MEMORY, SMALL], &pods(5, 4, 16, 0), Expander::LeastWaste, bounded);
        assert_eq!(found, [("memory".to_owned(), 3), ("small".to_owned(), 2)]);
    }
}
