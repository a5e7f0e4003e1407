//! From what waits in a Ray cluster to the workers that Ray is going to ask for: those that are not pods yet.
//!
//! Ray's own autoscaler packs in the same order: the least workers of each group, what must find room at all times, placement
//! groups, then single requests, the largest first; on workers that are there, on those that are coming, on new ones.
//! First fit. Of several groups that could take a request the one is opened that has the fewest kinds of resources left
//! over (no GPU worker for a CPU task), then the smallest.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::{Amounts, Cluster, Gang, Reading, Togetherness};
use crate::buffer;
use crate::resources::Resources;

/// The pods of a worker group that are there, waiting or not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Workers<'a> {
    pub names: BTreeSet<&'a str>,
    /// How many there may be at least and at most.
    pub min: u32,
    pub max: u32,
}

/// How many workers each group will have that it has no pods for yet, in the order of the groups. `is_news`: whether
/// the number of such requests is not to be relied on yet, so that it leads to one worker.
pub fn plan(cluster: &Cluster, reading: &Reading, workers: &[Workers], is_news: impl Fn(&Amounts) -> bool) -> Vec<u32> {
    let coming = coming(cluster, reading, workers);
    let mut opened = Opened::new(cluster, workers);

    let open = || reading.nodes.values().filter(|node| node.is_open());
    let mut at_all_times = Packing::new(open().map(|node| &node.total), cluster, &coming, &opened);
    for (shape, count) in largest_first(&reading.floor) {
        at_all_times.fill(&mut opened, &shape.0, count.into(), buffer::MOST);
    }

    let mut now = Packing::new(open().map(|node| &node.available), cluster, &coming, &opened);
    for gang in &reading.gangs {
        let before = (now.clone(), opened.clone());
        if !now.fit(&mut opened, gang) {
            (now, opened) = before;
        }
    }
    for (shape, count) in largest_first(&reading.pending) {
        let most = if is_news(shape) { 1 } else { buffer::MOST };
        now.fill(&mut opened, &shape.0, count.into(), most);
    }
    opened.groups.into_iter().map(|group| group.opened).collect()
}

/// Pods that are not nodes of Ray's yet, by group. What Ray has and Kubernetes does not is nobody's pod.
fn coming(cluster: &Cluster, reading: &Reading, workers: &[Workers]) -> Vec<u64> {
    let is_named = |instance: &str| workers.iter().any(|workers| workers.names.contains(instance));
    // Nodes that do not say of which pod they are stand for any of their group.
    let mut nameless = vec![0_usize; workers.len()];
    for node in reading.nodes.values().filter(|node| node.is_there() && !node.is_head() && !is_named(&node.instance)) {
        let is_like = |group: &Amounts| group.0.iter().all(|(name, amount)| node.total.0.amount(name) == amount);
        let group = cluster.worker_groups.iter().position(|group| match node.group.as_str() {
            "" => is_like(&group.resources),
            name => group.name == name,
        });
        if let Some(group) = group {
            nameless[group] += 1;
        }
    }
    let there = reading.nodes.values().filter(|node| node.is_there());
    let instances: BTreeSet<_> = there.map(|node| node.instance.as_str()).collect();
    let coming = workers.iter().zip(nameless).map(|(workers, nameless)| {
        let named = workers.names.intersection(&instances).count();
        (workers.names.len() - named).saturating_sub(nameless) as u64
    });
    coming.collect()
}

/// Those with the most kinds of resources, then the most of them, first: what is special is placed while there is room.
fn largest_first(requests: &BTreeMap<Amounts, u32>) -> Vec<(&Amounts, u32)> {
    let mut requests: Vec<_> = requests.iter().map(|(shape, count)| (shape, *count)).collect();
    requests.sort_by_key(|(shape, _)| Reverse((shape.0.iter().count(), *shape)));
    requests
}

/// New workers so far.
#[derive(Clone)]
struct Opened<'a> {
    groups: Vec<Group<'a>>,
}

#[derive(Clone)]
struct Group<'a> {
    worker: &'a Resources,
    opened: u32,
    /// How many more it may have.
    left: u32,
}

impl<'a> Opened<'a> {
    /// With the least of each group.
    fn new(cluster: &'a Cluster, workers: &[Workers]) -> Self {
        let groups = cluster.worker_groups.iter().zip(workers).map(|(group, workers)| {
            let pods = u32::try_from(workers.names.len()).unwrap_or(u32::MAX);
            let most = workers.max.saturating_sub(pods).min(buffer::MOST);
            let opened = workers.min.saturating_sub(pods).min(most);
            Group { worker: &group.resources.0, opened, left: most - opened }
        });
        Self { groups: groups.collect() }
    }

    /// One more worker that takes such a request.
    fn open(&mut self, shape: &Resources) -> Option<Resources> {
        let takes = |group: &&mut Group| group.left > 0 && shape.lacking_in(group.worker).is_none();
        let group = self.groups.iter_mut().filter(takes).min_by_key(|group| {
            let unused = group.worker.iter().filter(|(name, _)| shape.amount(name) == 0).count();
            (unused, Reverse(shape.dominant_permille(group.worker)))
        })?;
        group.opened += 1;
        group.left -= 1;
        Some(group.worker.clone())
    }
}

/// What is free on each worker.
#[derive(Clone)]
struct Packing(Vec<Resources>);

impl Packing {
    fn new<'a>(there: impl Iterator<Item = &'a Amounts>, cluster: &Cluster, coming: &[u64], opened: &Opened) -> Self {
        let mut free: Vec<_> = there.map(|amounts| amounts.0.clone()).collect();
        for ((group, coming), opened) in cluster.worker_groups.iter().zip(coming).zip(&opened.groups) {
            free.extend((0..coming + u64::from(opened.opened)).map(|_| group.resources.0.clone()));
        }
        Self(free)
    }

    /// Finds room for so many, or as many as there can be; opens no more than `most` workers for them.
    fn fill(&mut self, opened: &mut Opened, shape: &Resources, mut count: u64, most: u32) -> u64 {
        let put = |free: &mut Resources, count: &mut u64| {
            let fits = shape.times_in(free).min(*count);
            free.subtract_times(shape, fits);
            *count -= fits;
        };
        self.0.iter_mut().for_each(|free| put(free, &mut count));
        for _ in 0..most {
            if count == 0 {
                break;
            }
            let Some(mut free) = opened.open(shape) else { break };
            put(&mut free, &mut count);
            self.0.push(free);
        }
        count
    }

    /// Whether all of it found room.
    fn fit(&mut self, opened: &mut Opened, gang: &Gang) -> bool {
        let mut bundles: Vec<_> = gang.bundles.iter().map(|bundle| &bundle.0).collect();
        bundles.sort_by_key(|bundle| Reverse((bundle.iter().count(), *bundle)));
        match gang.togetherness {
            Togetherness::Any => bundles.iter().all(|bundle| self.fill(opened, bundle, 1, 1) == 0),
            Togetherness::OneWorker => {
                let mut sum = Resources::default();
                bundles.iter().for_each(|bundle| sum.add(bundle));
                self.fill(opened, &sum, 1, 1) == 0
            }
            Togetherness::Apart => {
                let mut taken = BTreeSet::new();
                bundles.iter().all(|bundle| {
                    let takes = |index: &usize| !taken.contains(index) && bundle.lacking_in(&self.0[*index]).is_none();
                    let index = match (0..self.0.len()).find(takes) {
                        Some(index) => index,
                        None => {
                            let Some(free) = opened.open(bundle) else { return false };
                            self.0.push(free);
                            self.0.len() - 1
                        }
                    };
                    self.0[index].subtract(bundle);
                    taken.insert(index)
                })
            }
        }
    }
}

#[cfg(test)]
mod tests;
