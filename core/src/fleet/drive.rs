//! Worker groups of RayClusters whose replicas Ebb sets: who sets them, what is asked for, and who was let go.

use std::collections::BTreeSet;
use std::time::Duration;

use super::absorb::WATCH_LAG;
use super::action::RayGroup;
use super::ray::{Known, Leaving};
use super::{Action, Fleet, Target};
use crate::agenda::Agenda;
use crate::ray::{
    self, Amounts, DrainReason, Drained, Joined, NodeState, Queue, Reading, Refusal, Scale, ScaleChange, ScaleStatus,
    Standing, Step, Worker, WorkerState, Workers,
};
use crate::reason::Reason;
use crate::time::Instant;
use crate::view;

/// Whoever has agreed to go is not counted on for so long, or until it has joined anew. By then it is named in the
/// RayCluster, unless that cannot be written.
const LEAVING_FOR: Duration = Duration::from_secs(60);
/// A head that has refused to let a worker go is asked again about it after so long, if it still calls it idle.
const REFUSED_FOR: Duration = Duration::from_secs(5);

/// Namespace and name.
pub(super) type ScaleKey = (String, String);

/// Who sets a group's replicas.
#[derive(Clone, Copy)]
enum Writer<'a> {
    /// The configuration.
    Queue(&'a ray::Drive),
    Scale(&'a Scale),
}

/// One cluster, with all that is known of it.
struct Driven<'a> {
    cluster: &'a ray::Cluster,
    known: &'a Known,
    object: &'a ray::RayCluster,
    /// Its workers, each with what it does.
    standing: Vec<Standing<'a>>,
    /// What its head tells, if it does, and how many workers of each group follow from it that are no pods yet.
    told: Option<(&'a Reading, Vec<u32>)>,
}

impl Fleet {
    pub(super) fn ray_cluster_changed(&mut self, name: &str, object: Option<Box<ray::RayCluster>>) {
        if self.policy.ray.contains_key(name) {
            self.ray.entry(name.to_owned()).or_default().object = object.map(|object| *object);
            self.learn_worker_groups(name);
        }
    }

    pub(super) fn ray_scale_changed(&mut self, change: ScaleChange) {
        match change {
            ScaleChange::Applied(scale) => {
                let key = (scale.namespace.clone(), scale.name.clone());
                let told = self.ray_scales.remove(&key).filter(|(known, _)| known.uid == scale.uid);
                self.ray_scales.insert(key, (*scale, told.and_then(|(_, told)| told)));
            }
            ScaleChange::Deleted { namespace, name } => _ = self.ray_scales.remove(&(namespace, name)),
        }
    }

    pub(super) fn ray_node_drained(&mut self, now: Instant, asked: &Action, answer: &Drained) {
        let Action::DrainRayNode { cluster, node, pod, .. } = asked else { return };
        let target = Target::RayNode(node.clone());
        self.calls.remove(&target);
        match answer {
            Drained::Accepted => {
                if let Some(known) = self.ray.get_mut(cluster) {
                    known.leaving.retain(|_, leaving| now < leaving.until);
                    known.leaving.insert(pod.clone(), Leaving { node: node.clone(), until: now + LEAVING_FOR });
                }
            }
            Drained::Refused(_) => {
                let call = self.calls.entry(target).or_default();
                (call.failures, call.retry_at) = (1, Some(now + REFUSED_FOR));
            }
        }
    }

    /// What was just written shows on the object in a moment.
    pub(super) fn ray_scaled(&mut self, now: Instant, cluster: &str, resource_version: &str) {
        if let Some(known) = self.ray.get_mut(cluster) {
            known.written = Some((resource_version.to_owned(), now + WATCH_LAG));
        }
    }

    /// Sets replicas, and asks heads to let idle workers go.
    pub(super) fn drive_ray(&self, agenda: &mut Agenda) -> Vec<Action> {
        let mut actions = Vec::new();
        for (name, cluster) in &self.policy.ray {
            let Some(driven) = self.driven(agenda.now, name, cluster) else { continue };
            if driven
                .known
                .written
                .as_ref()
                .is_some_and(|(version, until)| *version == driven.object.resource_version && !agenda.due(*until))
                || !self.ready(agenda, &Target::RayCluster(name.clone()))
            {
                continue;
            }
            let mut groups = Vec::new();
            let mut because = None;
            for (index, writer) in self.ray_writers(name, cluster) {
                let Ok((place, writer)) = writer else { continue };
                let Some(step) = driven.step(agenda, index, writer) else { continue };
                let spec = &driven.object.groups[place];
                if step.changes(spec) {
                    because.get_or_insert_with(|| driven.because(index, writer, &step));
                    groups.push(RayGroup {
                        index: place,
                        name: spec.name.clone(),
                        from: spec.replicas,
                        to: step.replicas,
                        delete: step.delete.iter().map(|&pod| pod.to_owned()).collect(),
                    });
                }
                for worker in step.drain {
                    let WorkerState::Idle { node, since } = worker.state else { continue };
                    if self.ready(agenda, &Target::RayNode(node.to_owned())) {
                        actions.push(Action::DrainRayNode {
                            cluster: name.clone(),
                            node: node.to_owned(),
                            pod: worker.pod.to_owned(),
                            why: DrainReason::IdleTermination,
                            deadline: agenda.now,
                            because: Reason::RayWorkerIdle { idle: agenda.now.since(since) },
                        });
                    }
                }
            }
            if let Some(because) = because {
                actions.push(Action::ScaleRayCluster {
                    cluster: name.clone(),
                    resource_version: driven.object.resource_version.clone(),
                    groups,
                    because,
                });
            }
        }
        actions
    }

    fn driven<'a>(&'a self, now: Instant, name: &'a str, cluster: &'a ray::Cluster) -> Option<Driven<'a>> {
        let known = self.ray.get(name)?;
        let object = known.object.as_ref()?;
        let reading = known.fresh(now).map(|last| (&last.reading, last.at));
        let joined = reading.map(|(reading, _)| reading.joined()).unwrap_or_default();
        let standing = cluster.worker_groups.iter().map(|group| {
            let spec = object.spec(&group.name).unwrap_or(&NO_GROUP);
            self.standing(now, known, spec, group, &joined, reading.map(|(_, at)| at))
        });
        let mut driven = Driven { cluster, known, object, standing: standing.collect(), told: None };
        driven.told = known.fresh(now).map(|last| {
            let missing = last.missing(now, cluster, &driven.workers(&BTreeSet::new()));
            (&last.reading, missing)
        });
        Some(driven)
    }

    fn standing<'a>(
        &'a self,
        now: Instant,
        known: &'a Known,
        spec: &'a ray::GroupSpec,
        group: &'a ray::WorkerGroup,
        joined: &Joined<'a>,
        read_at: Option<Instant>,
    ) -> Standing<'a> {
        let (mut workers, mut leaving) = (Vec::new(), BTreeSet::new());
        for pod in self.pods.that(|like| group.is_of(like)) {
            let name = pod.name.as_ref();
            let node = joined.in_pod(name, pod.ip.as_deref());
            let let_go = known
                .leaving
                .get(name)
                .is_some_and(|leaving| now < leaving.until && node.is_none_or(|(id, _)| id == leaving.node));
            if let_go || spec.workers_to_delete.contains(name) {
                leaving.insert(name);
            } else if !pod.like.terminating && !pod.like.finished {
                let idle = |millis| read_at.map(|at| at.before(Duration::from_millis(millis)));
                let state = match node {
                    Some((id, node)) => match node.state {
                        NodeState::Idle { millis } => {
                            idle(millis).map_or(WorkerState::Busy, |since| WorkerState::Idle { node: id, since })
                        }
                        NodeState::Running | NodeState::Draining | NodeState::Dead => WorkerState::Busy,
                    },
                    None if self.pods.is_bound(&pod.uid) => WorkerState::Starting,
                    None => WorkerState::Unplaced { since: pod.waits_since() },
                };
                workers.push(Worker { pod: name, state });
            }
        }
        let (min, max) = group.bounds(Some(spec));
        Standing { spec, min, max, workers, leaving }
    }

    /// Who sets the replicas of each group, and where in the RayCluster it stands; of those for which somebody wants to.
    fn ray_writers<'a>(
        &'a self,
        name: &'a str,
        cluster: &'a ray::Cluster,
    ) -> impl Iterator<Item = (usize, Result<(usize, Writer<'a>), Refusal>)> + use<'a> {
        cluster.worker_groups.iter().enumerate().filter_map(move |(index, group)| {
            let writer = match &cluster.drive {
                Some(drive) => Writer::Queue(drive),
                None => Writer::Scale(self.scale_of(name, &group.name)?),
            };
            Some((index, self.ray_group(name, &group.name).map(|place| (place, writer))))
        })
    }

    /// Its place in the RayCluster, if its replicas may be set.
    fn ray_group(&self, cluster: &str, group: &str) -> Result<usize, Refusal> {
        let object = self.ray.get(cluster).and_then(|known| known.object.as_ref());
        object.ok_or(Refusal::NoCluster)?.group(group)
    }

    /// The oldest counts.
    fn scale_of(&self, cluster: &str, group: &str) -> Option<&Scale> {
        let scales = self.ray_scales.values().map(|(scale, _)| scale);
        scales
            .filter(|scale| scale.is_of(cluster) && scale.group == group)
            .min_by_key(|scale| (scale.created, &scale.uid))
    }

    fn refusal(&self, scale: &Scale) -> Option<Refusal> {
        let Some((name, cluster)) = self.policy.ray.iter().find(|(name, _)| scale.is_of(name)) else {
            return Some(Refusal::NoCluster);
        };
        let object = self.ray.get(name).and_then(|known| known.object.as_ref());
        if cluster.learns_groups && object.is_none() {
            return Some(Refusal::NoCluster);
        }
        if !cluster.worker_groups.iter().any(|group| group.name == scale.group) {
            return Some(Refusal::NoGroup);
        }
        if cluster.drive.is_some() || self.scale_of(name, &scale.group).is_some_and(|first| first.uid != scale.uid) {
            return Some(Refusal::OtherWriter);
        }
        self.ray_group(name, &scale.group).err()
    }

    /// Says on each [`Scale`] how it stands, if that is news.
    pub(super) fn tell_of_scales(&self, agenda: &mut Agenda) -> Vec<Action> {
        let mut actions = Vec::new();
        for (key, (scale, told)) in &self.ray_scales {
            let status = self.scale_status(scale);
            if told.as_ref() != Some(&status) && self.ready(agenda, &Target::RayScale(key.clone())) {
                let (namespace, name) = key.clone();
                actions.push(Action::ShowRayWorkerGroup { namespace, name, uid: scale.uid.clone(), status });
            }
        }
        actions
    }

    fn scale_status(&self, scale: &Scale) -> ScaleStatus {
        let cluster = self.policy.ray.iter().find(|(name, _)| scale.is_of(name)).map(|(_, cluster)| cluster);
        let group =
            cluster.into_iter().flat_map(|cluster| &cluster.worker_groups).find(|group| group.name == scale.group);
        let labels = group.into_iter().flat_map(|group| &group.labels);
        let labels: Vec<_> = labels.map(|(key, value)| format!("{key}={value}")).collect();
        let pods = group.map_or(0, |group| self.pods.that(|like| !like.finished && group.is_of(like)).count());
        ScaleStatus {
            generation: scale.generation,
            replicas: super::count(pods),
            selector: labels.join(","),
            refusal: self.refusal(scale),
        }
    }

    /// For people.
    pub(super) fn driven_groups(&self, name: &str, cluster: &ray::Cluster) -> Vec<view::RayGroup> {
        let object = self.ray.get(name).and_then(|known| known.object.as_ref());
        let groups = self.ray_writers(name, cluster).map(|(index, writer)| {
            let name = cluster.worker_groups[index].name.clone();
            let spec = object.and_then(|object| object.spec(&name));
            view::RayGroup { name, replicas: spec.map(|spec| spec.replicas), refusal: writer.err() }
        });
        groups.collect()
    }
}

/// What a group that is not there looks like.
static NO_GROUP: ray::GroupSpec = ray::GroupSpec {
    name: String::new(),
    replicas: 0,
    min: 0,
    max: u32::MAX,
    hosts: 1,
    suspended: false,
    workers_to_delete: BTreeSet::new(),
    template: None,
};

impl<'a> Driven<'a> {
    /// Of each group, those that stay but these.
    fn workers(&self, without: &BTreeSet<&str>) -> Vec<Workers<'a>> {
        let names = |standing: &Standing<'a>| {
            let pods = standing.workers.iter().map(|worker| worker.pod);
            pods.filter(|pod| !without.contains(pod)).collect()
        };
        self.standing
            .iter()
            .map(|standing| Workers { names: names(standing), min: standing.min, max: standing.max })
            .collect()
    }

    /// `None`: nothing is known to go by.
    fn step(&self, agenda: &mut Agenda, index: usize, writer: Writer<'_>) -> Option<Step<'a>> {
        let standing = &self.standing[index];
        let drive = match writer {
            Writer::Scale(scale) => return Some(standing.by_number(scale.replicas)),
            Writer::Queue(drive) => drive,
        };
        let (reading, missing) = self.told.as_ref()?;
        let needed = |without: &BTreeSet<&str>| {
            let nodes = reading.nodes.iter().filter(|(_, node)| !without.contains(node.instance.as_str()));
            let nodes = nodes.map(|(id, node)| (id.clone(), node.clone())).collect();
            let reading = Reading { nodes, ..Reading::clone(reading) };
            let workers = self.workers(without);
            ray::plan(self.cluster, &reading, &workers, |_| false).iter().any(|count| *count > 0)
        };
        Some(standing.by_queue(agenda, drive, self.queue(index, reading, missing), needed))
    }

    fn queue(&self, index: usize, reading: &Reading, missing: &[u32]) -> Queue {
        let worker = &self.cluster.worker_groups[index].resources;
        let bundles = reading.gangs.iter().flat_map(|gang| &gang.bundles);
        let could_take = |shape: &Amounts| shape.fit_in(worker);
        Queue {
            depth: reading.waiting(),
            missing: missing[index],
            at_all_times: !reading.floor.is_empty(),
            could_take: reading.pending.keys().chain(bundles).any(could_take),
        }
    }

    fn because(&self, index: usize, writer: Writer<'_>, step: &Step<'_>) -> Reason {
        let standing = &self.standing[index];
        match writer {
            Writer::Scale(scale) => {
                Reason::RayReplicasAsked { by: format!("{}/{}", scale.namespace, scale.name), replicas: scale.replicas }
            }
            Writer::Queue(_) if step.replicas > standing.spec.replicas && step.replicas == standing.min => {
                Reason::RayMinimum { min: standing.min }
            }
            Writer::Queue(_) if step.replicas > standing.spec.replicas => {
                Reason::RayQueue { waiting: self.told.as_ref().map_or(0, |(reading, _)| reading.waiting()) }
            }
            Writer::Queue(_) => Reason::RayWorkersLeave { count: step.delete.len() },
        }
    }
}
