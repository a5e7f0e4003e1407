//! Ray clusters: what their heads have told, and the workers that follow from it and are no pods yet. `place` finds room
//! for these after the pods that wait and before buffers.

mod workers;

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Fleet;
use super::absorb::Soon;
use super::buffers::{Reserve, Whose};
use super::pods::Entry;
use crate::agenda::Agenda;
use crate::kubernetes::Pod;
use crate::ray::{self, Amounts, Answer, Problem, Reading, Workers};
use crate::time::Instant;
use crate::view;

/// What a head has told last counts so long: unknown is not empty. After that nothing more is asked for; what is there
/// goes only as nodes without work do.
const COUNTS_FOR: Duration = Duration::from_secs(5 * 60);

/// How long the number of a new kind of request may be too low: a program asks for ten at first and tells the rest on a
/// timer of a second, which the head reads on another of a second.
const COUNTS_LAG: Duration = Duration::from_millis(1500);

/// One cluster.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Known {
    last: Option<Last>,
    /// Why there is no newer one.
    problem: Option<Problem>,
    /// Since when there has been none.
    #[serde(default)]
    silent_since: Option<Instant>,
    /// As the watch last showed it.
    #[serde(default)]
    pub(super) object: Option<ray::RayCluster>,
    /// The version that our own last change was made to, and until when the watch may not show it.
    #[serde(default)]
    pub(super) written: Option<(String, Instant)>,
    /// Pods whose workers have agreed to go.
    #[serde(default)]
    pub(super) leaving: BTreeMap<String, Leaving>,
    /// What its head was last told, of which session it was, and when.
    #[serde(default)]
    pub(super) told: Option<(ray::Launches, String, Instant)>,
}

/// A worker that has agreed to go.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Leaving {
    /// The node of Ray's that has: what runs in the pod may have started again since, as another.
    pub(super) node: String,
    /// How long that is remembered.
    pub(super) until: Instant,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Last {
    pub(super) reading: Reading,
    pub(super) at: Instant,
    /// Since when each kind of request has waited.
    #[serde(with = "crate::journal::pairs")]
    since: BTreeMap<Amounts, Instant>,
}

impl Fleet {
    pub(super) fn ray_answered(&mut self, now: Instant, cluster: String, answer: Answer) -> Option<Soon> {
        self.policy.ray.get(&cluster)?;
        let known = self.ray.entry(cluster).or_default();
        let reading = match answer {
            Answer::Read(reading) => *reading,
            Answer::Unreadable(problem) => {
                known.problem = Some(problem);
                known.silent_since.get_or_insert(now);
                return None;
            }
        };
        (known.problem, known.silent_since) = (None, None);
        let before = known.last.take();
        let counted = before.as_ref().is_some_and(|last| last.counts(now));
        let same = before.as_ref().is_some_and(|last| last.reading.says_the_same(&reading));
        let mut since = before.map(|last| last.since).unwrap_or_default();
        since.retain(|shape, _| counted && reading.pending.contains_key(shape));
        for shape in reading.pending.keys() {
            since.entry(shape.clone()).or_insert(now);
        }
        known.last = Some(Last { reading, at: now, since });
        (!(same && counted)).then_some(Soon::Batch)
    }

    /// The configuration may leave it to the RayCluster what its worker groups are.
    pub(super) fn learn_worker_groups(&mut self, name: &str) {
        let Some(cluster) = self.policy.ray.get_mut(name).filter(|cluster| cluster.learns_groups) else { return };
        let object = self.ray.get(name).and_then(|known| known.object.as_ref());
        cluster.worker_groups = object.map(|object| object.worker_groups(name)).unwrap_or_default();
    }

    /// Whether the pod is a worker of a Ray cluster that we know. What it waits for was seen before it came: there is
    /// nothing to wait for once more.
    pub(super) fn is_ray_worker(&self, pod: &Pod) -> bool {
        self.policy.ray.values().flat_map(|cluster| &cluster.worker_groups).any(|group| group.is_of(pod))
    }

    /// Workers that are no pods yet.
    pub(super) fn ray_reserves(&self, agenda: &mut Agenda) -> Vec<Reserve<'_>> {
        let mut reserves = Vec::new();
        for (name, cluster) in &self.policy.ray {
            let Some(last) = self.ray.get(name).and_then(|known| known.last.as_ref()) else { continue };
            if agenda.due(last.at + COUNTS_FOR) {
                continue;
            }
            last.since.values().for_each(|since| _ = agenda.due(*since + COUNTS_LAG));
            let missing = last.missing(agenda.now, cluster, &self.workers(name, cluster));
            reserves.extend(cluster.worker_groups.iter().zip(missing).filter(|(_, count)| *count > 0).map(
                |(group, count)| Reserve {
                    whose: Whose::Ray { cluster: name, group: &group.name },
                    pod: &group.pod,
                    count,
                },
            ));
        }
        reserves
    }

    /// One that is about to go is none of them any more: Ray asks for another.
    pub(super) fn pods_of(&self, group: &ray::WorkerGroup) -> impl Iterator<Item = &Entry> {
        self.pods.that(|like| !like.finished && !like.terminating && group.is_of(like))
    }

    /// The cluster's pods, by worker group.
    pub(super) fn workers(&self, name: &str, cluster: &ray::Cluster) -> Vec<Workers<'_>> {
        let object = self.ray.get(name).and_then(|known| known.object.as_ref());
        let workers = cluster.worker_groups.iter().map(|group| {
            let (min, max) = match object {
                Some(object) if object.suspended => (0, 0),
                object => group.bounds(object.and_then(|object| object.spec(&group.name))),
            };
            Workers { names: self.pods_of(group).map(|pod| pod.name.as_ref()).collect(), min, max }
        });
        workers.collect()
    }

    /// What waits in each cluster whose head has told lately, and when it told.
    pub fn ray_waiting(&self, now: Instant) -> BTreeMap<String, (Instant, u64)> {
        let lasts = self.ray.iter().filter_map(|(name, known)| Some((name, known.last.as_ref()?)));
        let count = lasts.filter(|(_, last)| last.counts(now));
        count.map(|(name, last)| (name.clone(), (last.at, last.reading.waiting()))).collect()
    }

    pub(super) fn ray_picture(&self, now: Instant) -> Vec<view::RayCluster> {
        let clusters = self.policy.ray.iter().map(|(name, cluster)| {
            let known = self.ray.get(name);
            let last = known.and_then(|known| known.last.as_ref());
            let counts = last.filter(|last| last.counts(now));
            view::RayCluster {
                name: name.clone(),
                groups: self.driven_groups(name, cluster),
                without_object: cluster.learns_groups && known.is_none_or(|known| known.object.is_none()),
                readable: last.is_some() && known.is_some_and(|known| known.problem.is_none()),
                problem: known.and_then(|known| known.problem),
                read_at: last.map(|last| last.at),
                waiting: last.map(|last| last.reading.waiting()),
                anticipated: counts
                    .map_or(0, |last| last.missing(now, cluster, &self.workers(name, cluster)).iter().sum()),
            }
        });
        clusters.collect()
    }
}

impl Known {
    /// What the head has told, if it still tells.
    pub(super) fn fresh(&self, now: Instant) -> Option<&Last> {
        self.last.as_ref().filter(|last| self.problem.is_none() && last.counts(now))
    }
}

impl Last {
    /// Workers of each group that work waits for and that are no pods yet.
    pub(super) fn missing(&self, now: Instant, cluster: &ray::Cluster, workers: &[Workers]) -> Vec<u32> {
        let is_news = |shape: &Amounts| self.since.get(shape).is_none_or(|since| now < *since + COUNTS_LAG);
        ray::plan(cluster, &self.reading, workers, is_news)
    }

    fn counts(&self, now: Instant) -> bool {
        now < self.at + COUNTS_FOR
    }
}
