//! How many workers a group of a RayCluster is to have, and which of them go, where Ebb and nobody else sets that: by what
//! waits and what is idle (the flow's first level), or by the number that a [`Scale`] asks for, which an HPA may set.
//!
//! A worker goes only by its name, and one that has joined only after its head has agreed that it is idle. Where the
//! replicas alone are lowered, KubeRay's operator takes any worker, busy or not.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Template, WorkerGroup};
use crate::agenda::Agenda;
use crate::time::Instant;

/// Workers that may be on their way however few have joined: as Ray's `upscaling_speed` has it.
const ALWAYS_COMING: u32 = 5;
/// Idle workers that are asked to go at once. The rest is looked at again when these have gone.
const LEAVE_AT_ONCE: usize = 10;

/// The flow's first level: when there are more workers, and when fewer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Drive {
    /// More than so many requests have to wait.
    pub queue_depth: u32,
    /// Nothing has run on a worker for so long, and nothing waits that it could take.
    pub idle_timeout: Duration,
    /// How many workers may be on their way, as a share of those that have joined in thousandths, and
    /// [`ALWAYS_COMING`] in any case. `None`: any number.
    pub upscaling_speed: Option<u32>,
}

/// A RayCluster of KubeRay, as far as it is read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RayCluster {
    pub uid: String,
    pub resource_version: String,
    /// Its own autoscaler sets the replicas of all groups.
    pub in_tree_autoscaling: bool,
    pub suspended: bool,
    /// In the order of `workerGroupSpecs`, by which a patch names them.
    pub groups: Vec<GroupSpec>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GroupSpec {
    pub name: String,
    pub replicas: u32,
    pub min: u32,
    pub max: u32,
    /// Pods to a replica.
    pub hosts: u32,
    pub suspended: bool,
    pub workers_to_delete: BTreeSet<String>,
    /// `None`: it cannot be read.
    #[serde(default)]
    pub template: Option<Template>,
}

/// An object that an HPA can scale, for a worker group: a RayCluster has no scale subresource.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Scale {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub generation: i64,
    pub created: Instant,
    /// In its own namespace.
    pub cluster: String,
    pub group: String,
    pub replicas: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ScaleChange {
    Applied(Box<Scale>),
    Deleted { namespace: String, name: String },
}

/// What is said on a [`Scale`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ScaleStatus {
    pub generation: i64,
    /// Workers' pods.
    pub replicas: u32,
    /// The labels that these have.
    pub selector: String,
    pub refusal: Option<Refusal>,
}

/// Why a group is left alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Refusal {
    /// There is no such RayCluster.
    NoCluster,
    /// The RayCluster has no such group, or the configuration.
    NoGroup,
    /// Ray's own autoscaler sets the replicas.
    InTreeAutoscaling,
    /// Several pods are one worker, which is not modelled.
    MultiHost,
    /// Somebody else sets the replicas already.
    OtherWriter,
    Suspended,
}

impl Refusal {
    /// A closed set of CamelCase words.
    pub fn name(self) -> &'static str {
        match self {
            Self::NoCluster => "NoCluster",
            Self::NoGroup => "NoGroup",
            Self::InTreeAutoscaling => "InTreeAutoscaling",
            Self::MultiHost => "MultiHost",
            Self::OtherWriter => "OtherWriter",
            Self::Suspended => "Suspended",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoCluster => "there is no RayCluster of this name, or ray.clusters of the configuration lacks it",
            Self::NoGroup => "the RayCluster has no worker group of this name, or ray.clusters lacks it",
            Self::InTreeAutoscaling => {
                "Ray's own autoscaler sets its replicas: turn off spec.enableInTreeAutoscaling, or this"
            }
            Self::MultiHost => "its workers are of several pods each (numOfHosts), which is not supported",
            Self::OtherWriter => {
                "its replicas are set already: by `drive` in the configuration, or by an older RayWorkerGroup"
            }
            Self::Suspended => "the RayCluster is suspended",
        })
    }
}

impl Scale {
    /// `cluster`: namespace and name.
    pub(crate) fn is_of(&self, cluster: &str) -> bool {
        cluster.split_once('/') == Some((self.namespace.as_str(), self.cluster.as_str()))
    }
}

impl GroupSpec {
    /// The least and the most pods of workers that its operator makes.
    pub(super) fn workers(&self) -> (u32, u32) {
        if self.suspended {
            return (0, 0);
        }
        let pods = |replicas: u32| replicas.saturating_mul(self.hosts.max(1));
        (pods(self.min), pods(self.max))
    }
}

impl RayCluster {
    /// Its worker groups, of the RayCluster `NAMESPACE/NAME`.
    pub fn worker_groups(&self, name: &str) -> Vec<WorkerGroup> {
        self.groups.iter().filter_map(|spec| WorkerGroup::learned(name, spec)).collect()
    }

    pub fn spec(&self, group: &str) -> Option<&GroupSpec> {
        self.groups.iter().find(|spec| spec.name == group)
    }

    /// The group's place, if its replicas may be set.
    pub fn group(&self, name: &str) -> Result<usize, Refusal> {
        let index = self.groups.iter().position(|group| group.name == name).ok_or(Refusal::NoGroup)?;
        match &self.groups[index] {
            _ if self.in_tree_autoscaling => Err(Refusal::InTreeAutoscaling),
            group if self.suspended || group.suspended => Err(Refusal::Suspended),
            group if group.hosts > 1 => Err(Refusal::MultiHost),
            _ => Ok(index),
        }
    }
}

/// A group as it stands.
#[derive(Clone, Debug)]
pub(crate) struct Standing<'a> {
    pub spec: &'a GroupSpec,
    pub min: u32,
    pub max: u32,
    /// Those that stay so far.
    pub workers: Vec<Worker<'a>>,
    /// Pods that were let go, and are there yet.
    pub leaving: BTreeSet<&'a str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Worker<'a> {
    pub pod: &'a str,
    pub state: WorkerState<'a>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WorkerState<'a> {
    /// Its pod waits for a node.
    Unplaced { since: Option<Instant> },
    /// Its pod has a node, and it has not joined yet.
    Starting,
    /// It works, holds what others need, or leaves by itself.
    Busy,
    /// `node`: its id in Ray.
    Idle { node: &'a str, since: Instant },
}

impl Worker<'_> {
    fn has_joined(&self) -> bool {
        matches!(self.state, WorkerState::Busy | WorkerState::Idle { .. })
    }
}

/// What to do about a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Step<'a> {
    pub replicas: u32,
    pub delete: BTreeSet<&'a str>,
    /// Those that go if their head agrees.
    pub drain: Vec<Worker<'a>>,
}

/// What the head says waits for the group's workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Queue {
    /// Requests, of whatever kind.
    pub depth: u64,
    /// Workers that are no pods yet.
    pub missing: u32,
    /// Whether there must be so many at all times (`request_resources`), whatever waits.
    pub at_all_times: bool,
    /// Whether something waits that one of its workers could take.
    pub could_take: bool,
}

impl<'a> Standing<'a> {
    /// By what waits and what is idle. `needed`: whether these workers would be made anew if they went.
    pub(crate) fn by_queue(
        &self,
        agenda: &mut Agenda,
        drive: &Drive,
        queue: Queue,
        mut needed: impl FnMut(&BTreeSet<&'a str>) -> bool,
    ) -> Step<'a> {
        let joined = self.workers.iter().filter(|worker| worker.has_joined()).count();
        let (joined, workers) = (count(joined), count(self.workers.len()));
        let base = self.base();
        let mut replicas = base.max(self.min);
        if queue.depth > drive.queue_depth.into() || queue.at_all_times {
            let coming = drive.upscaling_speed.map_or(u32::MAX, |speed| {
                let share = u64::from(joined) * u64::from(speed) / 1000;
                u32::try_from(share).unwrap_or(u32::MAX).max(ALWAYS_COMING)
            });
            let wanted = workers.saturating_add(queue.missing).min(joined.saturating_add(coming));
            replicas = replicas.max(wanted.min(self.max));
        }
        let mut step = self.keep(replicas);
        if replicas > base || queue.could_take {
            return step;
        }
        let spare = base.min(workers).saturating_sub(self.min) as usize;
        let mut without = BTreeSet::new();
        for worker in self.least_needed_first() {
            let since = match worker.state {
                WorkerState::Unplaced { since } => since,
                WorkerState::Idle { since, .. } => Some(since),
                WorkerState::Busy | WorkerState::Starting => None,
            };
            if !since.is_some_and(|since| agenda.due(since + drive.idle_timeout)) {
                continue;
            }
            without.insert(worker.pod);
            // Those of one group are alike: where one is needed, so is the next.
            if without.len() > spare.min(LEAVE_AT_ONCE) || needed(&without) {
                break;
            }
            step.release(worker);
        }
        step
    }

    /// By a number that is asked for.
    pub(crate) fn by_number(&self, wanted: u32) -> Step<'a> {
        let (base, wanted) = (self.base(), wanted.clamp(self.min, self.max));
        let mut step = self.keep(base.max(wanted));
        // Those that the operator has not made yet are named once they are there; in their place nobody has to go.
        let surplus = base.min(count(self.workers.len())).saturating_sub(wanted) as usize;
        let free = self
            .least_needed_first()
            .into_iter()
            .filter(|worker| matches!(worker.state, WorkerState::Idle { .. } | WorkerState::Unplaced { .. }));
        free.take(surplus.min(LEAVE_AT_ONCE)).for_each(|worker| step.release(worker));
        step
    }

    /// The replicas without those that were let go since they were set. Of what is above its maximum the operator makes
    /// nothing.
    fn base(&self) -> u32 {
        let new = self.leaving.iter().filter(|pod| !self.spec.workers_to_delete.contains(**pod)).count();
        self.spec.replicas.min(self.spec.max).saturating_sub(count(new))
    }

    fn keep(&self, replicas: u32) -> Step<'a> {
        Step { replicas, delete: self.leaving.clone(), drain: Vec::new() }
    }

    /// Those without a node, then those that have been idle the longest.
    fn least_needed_first(&self) -> Vec<Worker<'a>> {
        let mut workers = self.workers.clone();
        workers.sort_by_key(|worker| match worker.state {
            WorkerState::Unplaced { since } => (0, since),
            WorkerState::Idle { since, .. } => (1, Some(since)),
            WorkerState::Starting | WorkerState::Busy => (2, None),
        });
        workers
    }
}

impl<'a> Step<'a> {
    fn release(&mut self, worker: Worker<'a>) {
        if let WorkerState::Idle { .. } = worker.state {
            self.drain.push(worker);
        } else {
            self.delete.insert(worker.pod);
            self.replicas = self.replicas.saturating_sub(1);
        }
    }

    /// Whether the RayCluster says something else.
    pub(crate) fn changes(&self, spec: &GroupSpec) -> bool {
        self.replicas != spec.replicas
            || !self.delete.iter().copied().eq(spec.workers_to_delete.iter().map(String::as_str))
    }
}

fn count(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
