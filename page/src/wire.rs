//! What goes over the wire: the core's picture made small, and the difference of two.
//!
//! A node's parts change at different paces (its use at every report, its state and its pods seldom), so each goes by
//! itself. Memory is in MiB, CPU in thousandths of a core, time in milliseconds, use in percent; `null` is unknown.

use std::collections::BTreeMap;

use ebb_core::classify::{Class, Missing};
use ebb_core::price::Cost;
use ebb_core::resources::{NVIDIA_GPU, Resources};
use ebb_core::time::Instant;
use ebb_core::units::Permille;
use ebb_core::view::{self, Snapshot};
use serde::Serialize;

/// Waiting pods that are listed; the rest is counted. The longest waiting come first.
const LISTED: usize = 100;

/// Everything at one moment.
#[derive(Default, PartialEq)]
pub(crate) struct Picture {
    head: Head,
    groups: Vec<view::Group>,
    /// By their short names.
    nodes: BTreeMap<u32, Node>,
    waiting: Waiting,
    ray: Vec<view::WorkerGroup>,
    ray_clusters: Vec<RayCluster>,
    hpas: Vec<view::Hpa>,
}

#[derive(Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Head {
    now: u64,
    leading: bool,
    synced: bool,
    cost: Cost,
}

#[derive(PartialEq)]
struct Node {
    name: String,
    state: NodeState,
    used: Used,
    pods: Vec<Pod>,
}

#[derive(PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct NodeState {
    group: Option<String>,
    ready: bool,
    unschedulable: bool,
    draining: bool,
    drained: bool,
    class: &'static str,
    /// The signal that makes it busy, or what is missing to say.
    why: Option<&'static str>,
    since: Option<u64>,
    /// Since when it has been busy without its GPUs.
    waste: Option<u64>,
    allocatable: Amounts,
    requested: Amounts,
}

/// CPU, memory, busiest GPU, CPU steal, run queue, memory pressure.
#[derive(Default, PartialEq, Serialize)]
struct Used([Option<u16>; 6]);

/// CPU, memory, GPUs.
#[derive(PartialEq, Serialize)]
struct Amounts(u64, u64, u64);

/// Name, 1 for a daemon or 2 for one that goes or both, what it requests.
#[derive(PartialEq, Serialize)]
struct Pod(String, u8, Amounts);

#[derive(Default, PartialEq, Serialize)]
struct Waiting {
    total: usize,
    pods: Vec<WaitingPod>,
}

#[derive(PartialEq, Serialize)]
struct WaitingPod {
    pod: String,
    since: u64,
    requests: Amounts,
    because: Option<String>,
}

/// What a head has told. `waiting`: requests.
#[derive(Clone, PartialEq, Serialize)]
pub(crate) struct RayCluster {
    name: String,
    waiting: Option<u64>,
    /// Workers that are no pods yet.
    anticipated: u32,
    problem: Option<String>,
}

/// When; tasks queued (`None`: no Ray is observed), pods waiting, nodes.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Point(pub(crate) u64, Option<u64>, usize, usize);

#[derive(Serialize)]
pub(crate) struct Step<'a> {
    at: u64,
    level: usize,
    what: &'a str,
    because: &'a str,
}

/// What only a newcomer needs.
#[derive(Serialize)]
pub(crate) struct Full<'a> {
    pub(crate) title: &'a str,
    pub(crate) levels: [&'static str; 6],
    /// Of each level that has done something.
    pub(crate) last: Vec<Step<'a>>,
    pub(crate) points: Vec<Point>,
}

/// What changed; absent is unchanged. With `full`, what was before does not count.
#[derive(Default, Serialize)]
pub(crate) struct Update<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    full: Option<Full<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    head: Option<&'a Head>,
    #[serde(skip_serializing_if = "Option::is_none")]
    groups: Option<&'a [view::Group]>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    nodes: Vec<NodeUpdate<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    gone: Vec<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    waiting: Option<&'a Waiting>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ray: Option<&'a [view::WorkerGroup]>,
    #[serde(rename = "rayClusters", skip_serializing_if = "Option::is_none")]
    ray_clusters: Option<&'a [RayCluster]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hpas: Option<&'a [view::Hpa]>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    steps: Vec<Step<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    point: Option<Point>,
}

#[derive(Serialize)]
struct NodeUpdate<'a> {
    id: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<&'a NodeState>,
    #[serde(rename = "use", skip_serializing_if = "Option::is_none")]
    used: Option<&'a Used>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pods: Option<&'a [Pod]>,
}

impl<'a> Update<'a> {
    pub(crate) fn between(former: &Picture, now: &'a Picture) -> Self {
        let nodes = now.nodes.iter().filter_map(|(id, node)| node.since(*id, former.nodes.get(id)));
        Self {
            full: None,
            head: changed(&former.head, &now.head),
            groups: changed(&former.groups, &now.groups).map(Vec::as_slice),
            nodes: nodes.collect(),
            gone: former.nodes.keys().filter(|id| !now.nodes.contains_key(id)).copied().collect(),
            waiting: changed(&former.waiting, &now.waiting),
            ray: changed(&former.ray, &now.ray).map(Vec::as_slice),
            ray_clusters: changed(&former.ray_clusters, &now.ray_clusters).map(Vec::as_slice),
            hpas: changed(&former.hpas, &now.hpas).map(Vec::as_slice),
            steps: Vec::new(),
            point: None,
        }
    }

    /// `nothing`: an empty picture.
    pub(crate) fn whole(full: Full<'a>, nothing: &Picture, now: &'a Picture) -> Self {
        Self { full: Some(full), ..Self::between(nothing, now) }
    }

    pub(crate) fn with(self, steps: impl IntoIterator<Item = &'a view::Step>) -> Self {
        Self { steps: Step::all(steps), ..self }
    }

    pub(crate) fn at(self, point: Point) -> Self {
        Self { point: Some(point), ..self }
    }

    pub(crate) fn to_json(&self) -> String {
        serde_json::to_string(self).expect("plain numbers and texts always serialise")
    }
}

fn changed<'a, T: PartialEq>(former: &T, now: &'a T) -> Option<&'a T> {
    (former != now).then_some(now)
}

impl Picture {
    pub(crate) fn of(snapshot: &Snapshot, ids: &BTreeMap<String, u32>) -> Self {
        let Snapshot { now, cluster, ray, hpas, cost } = snapshot;
        let waiting = cluster.waiting.iter().take(LISTED).map(|waiting| WaitingPod {
            pod: waiting.pod.clone(),
            since: waiting.since.as_millis(),
            requests: Amounts::of(&waiting.requests),
            because: waiting.because.as_ref().map(ToString::to_string),
        });
        Self {
            head: Head { now: now.as_millis(), leading: cluster.leading, synced: cluster.synced, cost: *cost },
            groups: cluster.groups.clone(),
            nodes: cluster.nodes.iter().map(|node| (ids[&node.uid], Node::of(node))).collect(),
            waiting: Waiting { total: cluster.waiting.len(), pods: waiting.collect() },
            ray: ray.clone(),
            ray_clusters: cluster.ray.iter().map(RayCluster::of).collect(),
            hpas: hpas.clone(),
        }
    }

    pub(crate) fn point(&self) -> Point {
        let tasks = self.ray.iter().map(|group| Some(group.tasks_queued.into()));
        let told = tasks.chain(self.ray_clusters.iter().map(|cluster| cluster.waiting));
        let queued = told.flatten().reduce(|all: u64, more| all.saturating_add(more));
        Point(self.head.now, queued, self.waiting.total, self.nodes.len())
    }
}

impl RayCluster {
    fn of(cluster: &view::RayCluster) -> Self {
        Self {
            name: cluster.name.clone(),
            waiting: cluster.waiting,
            anticipated: cluster.anticipated,
            problem: cluster.problem.map(|problem| problem.to_string()),
        }
    }
}

impl Node {
    fn of(node: &view::Node) -> Self {
        let pods = node.pods.iter().map(|pod| {
            let flags = u8::from(pod.daemon) | u8::from(pod.terminating) << 1;
            Pod(pod.name.clone(), flags, Amounts::of(&pod.requests))
        });
        Self {
            name: node.name.clone(),
            state: NodeState {
                group: node.group.clone(),
                ready: node.ready,
                unschedulable: node.unschedulable,
                draining: node.draining,
                drained: node.drained,
                class: node.class.map_or("silent", Class::name),
                why: node.class.and_then(why),
                since: node.class.map(Class::since).map(Instant::as_millis),
                waste: node.gpu_waste.map(Instant::as_millis),
                allocatable: Amounts::of(&node.allocatable),
                requested: Amounts::of(&node.requested),
            },
            used: node
                .utilization
                .map(|used| {
                    let gpu = used.gpu.busy();
                    let shares = [used.cpu, used.memory, gpu, used.cpu_steal, used.run_queue, used.memory_pressure];
                    Used(shares.map(|share| share.map(percent)))
                })
                .unwrap_or_default(),
            pods: pods.collect(),
        }
    }

    fn since(&self, id: u32, former: Option<&Self>) -> Option<NodeUpdate<'_>> {
        let Some(former) = former else {
            let (state, used) = (Some(&self.state), Some(&self.used));
            return Some(NodeUpdate { id, name: Some(&self.name), state, used, pods: Some(&self.pods) });
        };
        (self != former).then(|| NodeUpdate {
            id,
            name: None,
            state: changed(&former.state, &self.state),
            used: changed(&former.used, &self.used),
            pods: changed(&former.pods, &self.pods).map(Vec::as_slice),
        })
    }
}

fn why(class: Class) -> Option<&'static str> {
    match class {
        Class::Busy { signal, .. } | Class::Unknown { missing: Missing::Signal(signal), .. } => Some(signal.name()),
        Class::Unknown { missing: Missing::History, .. } => Some("history"),
        Class::Unknown { missing: Missing::Initialization, .. } => Some("initialization"),
        Class::Idle { .. } => None,
    }
}

fn percent(share: Permille) -> u16 {
    (share.get() + 5) / 10
}

impl Amounts {
    fn of(resources: &Resources) -> Self {
        Self(resources.amount("cpu"), resources.amount("memory") >> 20, resources.amount(NVIDIA_GPU))
    }
}

impl<'a> Step<'a> {
    pub(crate) fn all(steps: impl IntoIterator<Item = &'a view::Step>) -> Vec<Self> {
        let step = |step: &'a view::Step| Self {
            at: step.at.as_millis(),
            level: step.level as usize,
            what: &step.what,
            because: &step.because,
        };
        steps.into_iter().map(step).collect()
    }
}
