//! Ray clusters: what their head says of what waits (a [`Reading`]), and what kinds of worker pods they grow by.
//! How many of these a reading leads to is found out in `plan`; what is done about them, in the fleet.

mod drive;
pub mod node_drain;
mod plan;
mod template;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use drive::{Drive, GroupSpec, RayCluster, Refusal, Scale, ScaleChange, ScaleStatus};
pub(crate) use drive::{Queue, Standing, Step, Worker, WorkerState};
pub use plan::{Workers, plan};
pub use template::{CLUSTER_LABEL, GROUP_LABEL, Template};

use crate::kubernetes::Pod;
use crate::resources::Resources;

/// Ray counts in ten-thousandths itself.
const UNIT: f64 = 10_000.0;
/// Far more than any amount of bytes, and exact as a float.
const LARGEST: f64 = (1_u64 << 52) as f64;
/// What only the head has.
const HEAD: &str = "node:__internal_head__";

/// A Ray cluster as the configuration has it. `NAMESPACE/NAME` is its key there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Cluster {
    /// Host and port of its GCS.
    pub address: String,
    /// With the token that its head asks for; `None`: it asks for none.
    pub token_file: Option<PathBuf>,
    /// Certificates that the head's own must lead to, in PEM; `None`: it speaks without TLS.
    pub ca_file: Option<PathBuf>,
    /// What the head knows its client by; `None`: it asks for no certificate.
    #[serde(default)]
    pub client: Option<ClientCertificate>,
    pub worker_groups: Vec<WorkerGroup>,
    /// Whether these are those of its RayCluster, whatever they are.
    #[serde(default)]
    pub learns_groups: bool,
    /// Set: Ebb sets the replicas of all these groups.
    #[serde(default)]
    pub drive: Option<Drive>,
    /// Whether its head is told what is on its way, as by Ray's own autoscaler.
    #[serde(default)]
    pub report_launches: bool,
    /// Whether its workers' pods say which of them is to go first (`controller.kubernetes.io/pod-deletion-cost`).
    #[serde(default)]
    pub pod_deletion_cost: bool,
}

/// Both in PEM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClientCertificate {
    pub cert_file: PathBuf,
    pub key_file: PathBuf,
}

/// Worker pods that are alike.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkerGroup {
    pub name: String,
    /// One of its pods, without name and node.
    pub pod: Pod,
    /// The labels by which its pods are known.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// What one worker brings to Ray.
    pub resources: Amounts,
    /// Workers that Ray keeps at all times, and never exceeds.
    pub min: u32,
    pub max: u32,
}

impl WorkerGroup {
    /// As the RayCluster `NAMESPACE/NAME` has it; `None`: what its workers are like cannot be read.
    fn learned(cluster: &str, spec: &GroupSpec) -> Option<Self> {
        let (namespace, cluster) = cluster.split_once('/')?;
        let Template { pod, resources } = spec.template.clone()?;
        let labels = [(CLUSTER_LABEL, cluster), (GROUP_LABEL, spec.name.as_str())];
        let labels: BTreeMap<_, _> = labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let all = pod.labels.iter().chain(&labels).map(|(key, value)| (key.clone(), value.clone())).collect();
        let pod = Pod { namespace: namespace.to_owned(), labels: all, ..pod };
        let (min, max) = spec.workers();
        Some(Self { name: spec.name.clone(), pod, labels, resources, min, max })
    }

    /// The narrower of its own bounds and of those that its RayCluster has, if there is one.
    pub(crate) fn bounds(&self, spec: Option<&GroupSpec>) -> (u32, u32) {
        let (min, max) = spec.map_or((0, u32::MAX), GroupSpec::workers);
        let max = self.max.min(max);
        (self.min.max(min).min(max), max)
    }

    pub fn is_of(&self, pod: &Pod) -> bool {
        pod.namespace == self.pod.namespace && self.labels.iter().all(|(key, value)| pod.labels.get(key) == Some(value))
    }
}

/// Amounts of Ray's resources (`CPU`, `GPU`, `memory`, any other name), in ten-thousandths.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Amounts(Resources);

impl Amounts {
    /// Whether it is an amount.
    #[must_use]
    pub fn set(&mut self, name: &str, amount: f64) -> bool {
        let scaled = (amount * UNIT).round();
        let is_amount = (0.0..=LARGEST).contains(&scaled);
        if is_amount {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "its bounds were just checked"
            )]
            self.0.set(name, scaled as u64);
        }
        is_amount
    }

    /// Whether a worker that has so much could take it.
    pub(crate) fn fit_in(&self, worker: &Self) -> bool {
        self.0.lacking_in(&worker.0).is_none()
    }
}

/// What a head has told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Reading {
    /// Another one after a restart that has lost what was before.
    pub session: String,
    /// By id.
    pub nodes: BTreeMap<String, Node>,
    /// Requests that wait, and how many are alike.
    #[serde(with = "crate::journal::pairs")]
    pub pending: BTreeMap<Amounts, u32>,
    /// Placement groups that wait.
    pub gangs: Vec<Gang>,
    /// What must find room at all times, used or not.
    #[serde(with = "crate::journal::pairs")]
    pub floor: BTreeMap<Amounts, u32>,
    /// Requests that ask for more than this model knows (labels of nodes), which are not planned for.
    pub not_modelled: u32,
}

impl Reading {
    /// Whether the two lead to the same: how long a node has been idle does not matter, nor why one is not.
    pub fn says_the_same(&self, other: &Self) -> bool {
        let nodes = self.nodes.len() == other.nodes.len()
            && self.nodes.iter().zip(&other.nodes).all(|((id, a), (other_id, b))| id == other_id && a.is_like(b));
        nodes
            && self.session == other.session
            && self.pending == other.pending
            && self.gangs == other.gangs
            && self.floor == other.floor
            && self.not_modelled == other.not_modelled
    }

    /// Its nodes that have not left, by the pods that they run in.
    pub(crate) fn joined(&self) -> Joined<'_> {
        let mut joined = Joined::default();
        for (id, node) in self.nodes.iter().filter(|(_, node)| node.is_there() && !node.is_head()) {
            match node.instance.as_str() {
                "" => joined.by_ip.insert(node.ip.as_str(), (id, node)),
                instance => joined.by_instance.insert(instance, (id, node)),
            };
        }
        joined
    }

    /// Requests that wait, with the bundles of placement groups.
    pub fn waiting(&self) -> u64 {
        let pending: u64 = self.pending.values().copied().map(u64::from).sum();
        pending + self.gangs.iter().map(|gang| gang.bundles.len() as u64).sum::<u64>() + u64::from(self.not_modelled)
    }
}

/// Ray's nodes, to be found by their pods.
#[derive(Default)]
pub(crate) struct Joined<'a> {
    /// With their ids. Of a pod in which Ray has started again, its newest life.
    by_instance: HashMap<&'a str, (&'a str, &'a Node)>,
    /// Those that do not say of which pod they are.
    by_ip: HashMap<&'a str, (&'a str, &'a Node)>,
}

impl<'a> Joined<'a> {
    /// The id and the node of Ray's in this pod.
    pub(crate) fn in_pod(&self, name: &str, ip: Option<&str>) -> Option<(&'a str, &'a Node)> {
        let by_ip = || self.by_ip.get(ip?);
        self.by_instance.get(name).or_else(by_ip).copied()
    }
}

/// A node of Ray's, which is a worker or the head.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Node {
    pub ip: String,
    /// With KubeRay its pod's name, else empty.
    pub instance: String,
    /// With KubeRay its worker group, else empty.
    pub group: String,
    pub state: NodeState,
    pub total: Amounts,
    pub available: Amounts,
    /// Why it is not idle, in Ray's words. Those of an idle node are of an earlier time, and are left out.
    #[serde(default)]
    pub activity: Vec<String>,
}

impl Node {
    fn is_like(&self, other: &Self) -> bool {
        let idle = matches!((self.state, other.state), (NodeState::Idle { .. }, NodeState::Idle { .. }));
        (idle || self.state == other.state)
            && self.ip == other.ip
            && self.instance == other.instance
            && self.group == other.group
            && self.total == other.total
            && self.available == other.available
    }

    /// Whether it takes new work.
    fn is_open(&self) -> bool {
        matches!(self.state, NodeState::Idle { .. } | NodeState::Running)
    }

    /// Whether it has joined, and not left.
    pub(crate) fn is_there(&self) -> bool {
        self.state != NodeState::Dead
    }

    pub(crate) fn is_head(&self) -> bool {
        self.total.0.amount(HEAD) > 0
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum NodeState {
    /// Dead nodes are told of for a while.
    Dead,
    /// It takes no new work.
    Draining,
    Idle {
        millis: u64,
    },
    Running,
}

/// A placement group: all of it finds room, or nothing.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Gang {
    pub bundles: Vec<Amounts>,
    pub togetherness: Togetherness,
}

/// Where its bundles may be, each seen from the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Togetherness {
    /// `PACK` and `SPREAD`, which are wishes.
    #[default]
    Any,
    /// `STRICT_SPREAD`
    Apart,
    /// `STRICT_PACK`
    OneWorker,
}

/// Why a head is asked to drain one of its nodes. There is no third: a reason that is not said ends the node at once,
/// with all that runs on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum DrainReason {
    /// It goes at once, if it still is idle by then; else it is refused, and nothing has changed.
    IdleTermination,
    /// It takes nothing new, and goes when what runs on it has ended. Ray does nothing at the deadline.
    Preemption,
}

/// What a head answers. It accepts also for nodes that it does not know: whether one goes is told by the next reading.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Drained {
    Accepted,
    /// In its words.
    Refused(String),
}

/// What is on its way to a Ray cluster, for `ray status`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Launches {
    /// Workers that are no pods yet, by group.
    pub asked_for: Vec<(String, u32)>,
    /// Pods that have not joined.
    pub pods: Vec<Launching>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Launching {
    pub pod: String,
    pub group: String,
    /// Whether it has a node.
    pub placed: bool,
}

/// What came of asking a head.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Answer {
    Read(Box<Reading>),
    Unreadable(Problem),
}

/// Why a head tells nothing: a closed set, for metrics' labels and people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Problem {
    /// What it says makes no sense.
    Malformed,
    /// It did not answer in time.
    Late,
    /// Without a token, or with another than it wants.
    Unauthenticated,
    /// Nobody answers.
    Unreachable,
}

impl Problem {
    pub const ALL: [Self; 4] = [Self::Late, Self::Malformed, Self::Unauthenticated, Self::Unreachable];

    pub fn name(self) -> &'static str {
        match self {
            Self::Late => "late",
            Self::Malformed => "malformed",
            Self::Unauthenticated => "unauthenticated",
            Self::Unreachable => "unreachable",
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Late => "its GCS does not answer in time",
            Self::Malformed => "what its GCS says makes no sense to this version of Ebb",
            Self::Unauthenticated => "its GCS refuses the token: tokenFile must hold that of RAY_AUTH_TOKEN",
            Self::Unreachable => "its GCS cannot be reached at its address",
        })
    }
}
