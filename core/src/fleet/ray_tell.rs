//! What Ray and the controllers of its workers are told: heads, of what is on its way to them (`ray status` shows it);
//! ReplicaSets, which of their workers are to go first.

use std::time::Duration;

use super::{Action, Fleet, Target};
use crate::agenda::Agenda;
use crate::ray::{self, Launches, Launching, NodeState};
use crate::time::Instant;

/// A burst changes it with every look.
const TELL_EVERY: Duration = Duration::from_secs(1);
/// How far two answers of a head may be apart in the moment since when a node has been idle.
const SAME_IDLE_SECONDS: u32 = 5;

impl Fleet {
    pub(super) fn ray_told(&mut self, now: Instant, cluster: &str, launches: Launches) {
        let Some(known) = self.ray.get_mut(cluster) else { return };
        // One that has started anew since knows nothing of it.
        let session = known.fresh(now).map(|last| last.reading.session.clone()).unwrap_or_default();
        known.told = Some((launches, session, now));
    }

    pub(super) fn deletion_cost_set(&mut self, uid: String, cost: Option<i32>) {
        if self.pods.get(&uid).is_some() {
            self.deletion_costs.insert(uid, cost);
        }
    }

    /// Tells heads what is on its way to them, where that is asked for and nobody else does.
    pub(super) fn tell_ray(&self, agenda: &mut Agenda) -> Vec<Action> {
        let mut actions = Vec::new();
        for (name, cluster) in self.policy.ray.iter().filter(|(_, cluster)| cluster.report_launches) {
            let Some(known) = self.ray.get(name) else { continue };
            let Some(last) = known.fresh(agenda.now) else { continue };
            if known.object.as_ref().is_some_and(|object| object.in_tree_autoscaling) {
                continue;
            }
            let missing = last.missing(agenda.now, cluster, &self.workers(name, cluster));
            let launches = self.on_their_way(cluster, &last.reading, &missing);
            // What another coordinator told it is not known: nothing, too, is said once.
            let (told, due) = known.told.as_ref().map_or((false, true), |(told, session, at)| {
                (*session == last.reading.session && *told == launches, agenda.due(*at + TELL_EVERY))
            });
            if !told && due && self.ready(agenda, &Target::RayReport(name.clone())) {
                actions.push(Action::ReportRay { cluster: name.clone(), version: agenda.now.as_millis(), launches });
            }
        }
        actions
    }

    fn on_their_way(&self, cluster: &ray::Cluster, reading: &ray::Reading, missing: &[u32]) -> Launches {
        let joined = reading.joined();
        let mut launches = Launches::default();
        for (group, missing) in cluster.worker_groups.iter().zip(missing) {
            if *missing > 0 {
                launches.asked_for.push((group.name.clone(), *missing));
            }
            let pods = self.pods_of(group).filter(|pod| joined.in_pod(&pod.name, pod.ip.as_deref()).is_none());
            launches.pods.extend(pods.map(|pod| Launching {
                pod: pod.name.to_string(),
                group: group.name.clone(),
                placed: self.pods.is_bound(&pod.uid),
            }));
        }
        launches.pods.sort();
        launches
    }

    /// Those that have been idle the longest are the cheapest; those that work say nothing, which is dearer.
    pub(super) fn set_deletion_costs(&self, agenda: &mut Agenda) -> Vec<Action> {
        let mut actions = Vec::new();
        for (name, cluster) in self.policy.ray.iter().filter(|(_, cluster)| cluster.pod_deletion_cost) {
            let Some(last) = self.ray.get(name).and_then(|known| known.fresh(agenda.now)) else { continue };
            let joined = last.reading.joined();
            for pod in cluster.worker_groups.iter().flat_map(|group| self.pods.that(|like| group.is_of(like))) {
                let Some((_, node)) = joined.in_pod(&pod.name, pod.ip.as_deref()) else { continue };
                let cost = match node.state {
                    NodeState::Idle { millis } => Some(deletion_cost(last.at.before(Duration::from_millis(millis)))),
                    NodeState::Running | NodeState::Draining | NodeState::Dead => None,
                };
                let uid = pod.uid.as_ref();
                let same = self.deletion_costs.get(uid).is_some_and(|set| match (set, cost) {
                    (Some(set), Some(cost)) => set.abs_diff(cost) <= SAME_IDLE_SECONDS,
                    (set, cost) => *set == cost,
                });
                if !same && self.ready(agenda, &Target::Pod(uid.to_owned())) {
                    actions.push(Action::SetPodDeletionCost {
                        namespace: pod.like.namespace.clone(),
                        pod: pod.name.to_string(),
                        uid: uid.to_owned(),
                        cost,
                    });
                }
            }
        }
        actions
    }
}

/// A cost is an `i32`, and a pod without one costs 0: the seconds since 1970, less 2^31, are below that until 2106, and
/// stay what they are for as long as the worker is idle.
fn deletion_cost(idle_since: Instant) -> i32 {
    let seconds = i64::try_from(idle_since.as_millis() / 1000).unwrap_or(i64::MAX);
    i32::try_from(seconds.saturating_sub(1 << 31)).unwrap_or(-1).min(-1)
}
