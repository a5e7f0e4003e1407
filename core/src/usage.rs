//! What nodes and pods use, by the word of their agents: what `metrics.k8s.io` and `custom.metrics.k8s.io` are answered from.
//!
//! Agents send rates with their windows, so nothing has to be remembered here for the next one: a coordinator that has just
//! begun to lead serves the first word it hears. What nobody has told of lately is missing, and never zero.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::intern::Interner;
use crate::kubernetes;
use crate::time::Instant;
use crate::units::Permille;

/// By our clock since its arrival: as long as four reports take. An agent that is late is not missed.
pub const FRESH_FOR: Duration = Duration::from_secs(45);

/// One agent's word. Times are by the clock of the node, which is its kubelet's as well: what the HPA compares them with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeUsage {
    pub node: Option<Sample>,
    /// Only pods whose containers are all known.
    pub pods: Vec<PodUsage>,
}

/// What was used over a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sample {
    /// The window's end.
    pub at: Instant,
    pub window: Duration,
    pub amount: Amount,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Amount {
    /// Billionths of a CPU: the mean over the window.
    pub cpu_nanocores: u64,
    /// The working set at its end.
    pub memory_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodUsage {
    pub uid: String,
    pub at: Instant,
    pub window: Duration,
    /// By name.
    pub containers: Vec<(String, Amount)>,
    /// `None`: not asked for, or the pod is too new for them.
    #[serde(default)]
    pub signals: Option<Signals>,
}

/// How loaded a pod is, beyond CPU and memory. Each is missing where it does not apply or nobody can say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Signals {
    /// Up to the time of the pod's other figures.
    pub window: Duration,
    /// Share of time in which a kernel ran: the mean over the window and the pod's GPUs.
    pub gpu_busy: Option<Permille>,
    /// In use on the pod's GPUs together, at the window's end.
    pub gpu_memory_bytes: Option<u64>,
    /// Time for which its tasks waited for a CPU, in thousandths of the window: 2000 where two tasks waited all along.
    pub run_queue_wait: Option<u64>,
    /// Share of time in which some task of it waited for memory.
    pub memory_pressure: Option<Permille>,
}

/// Of one agent the later word counts: [`crate::report::Report`] says which that is.
pub type Order = (Instant, u64);

pub type Labels = BTreeMap<String, String>;

/// What is known of all of them.
#[derive(Debug, Default)]
pub struct Usages {
    nodes: BTreeMap<Arc<str>, Node>,
    /// In the order in which they are listed.
    pods: BTreeMap<Key, Pod>,
    /// By UID.
    keys: BTreeMap<Box<str>, Key>,
    namespaces: Interner<str>,
    labels: Interner<Labels>,
}

/// Namespace and name.
type Key = (Arc<str>, Arc<str>);

#[derive(Debug)]
struct Node {
    uid: String,
    labels: Arc<Labels>,
    word: Option<Word>,
}

#[derive(Debug)]
struct Word {
    order: Order,
    received: Instant,
    node: Option<Sample>,
    /// By UID.
    pods: Vec<Arc<PodUsage>>,
}

#[derive(Debug)]
struct Pod {
    uid: Box<str>,
    node: Arc<str>,
    labels: Arc<Labels>,
}

/// One entry of a list; it holds nothing up, and may be kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed<T> {
    /// Empty for nodes.
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    pub labels: Arc<Labels>,
    pub usage: T,
}

impl Usages {
    pub fn node_applied(&mut self, node: &kubernetes::Node) {
        let standing = self.nodes.remove(&*node.name).filter(|standing| standing.uid == node.uid);
        let word = standing.and_then(|standing| standing.word);
        let labels = Arc::new(node.labels.clone());
        self.nodes.insert(node.name.as_str().into(), Node { uid: node.uid.clone(), labels, word });
    }

    /// A node of the same name may be there already: only the one of this UID is gone.
    pub fn node_deleted(&mut self, name: &str, uid: &str) {
        if self.nodes.get(name).is_some_and(|node| node.uid == uid) {
            self.nodes.remove(name);
        }
    }

    pub fn pod_applied(&mut self, pod: &kubernetes::Pod) {
        self.pod_deleted(&pod.uid);
        let Some(node) = pod.node.as_deref().filter(|_| !pod.finished) else { return };
        let known = self.nodes.get_key_value(node).map(|(name, _)| name.clone());
        let node = known.unwrap_or_else(|| node.into());
        let key: Key = (self.namespaces.share(pod.namespace.as_str().into()), pod.name.as_str().into());
        let labels = self.labels.share(Arc::new(pod.labels.clone()));
        self.keys.insert(pod.uid.as_str().into(), key.clone());
        let former = self.pods.insert(key, Pod { uid: pod.uid.as_str().into(), node, labels });
        if let Some(former) = former {
            self.release(&pod.namespace, &former);
        }
    }

    pub fn pod_deleted(&mut self, uid: &str) {
        let Some(key) = self.keys.remove(uid) else { return };
        // Its successor of the same name may have come before its end was told.
        if self.pods.get(&key).is_some_and(|pod| &*pod.uid == uid)
            && let Some(pod) = self.pods.remove(&key)
        {
            self.release(&key.0, &pod);
        }
    }

    fn release(&mut self, namespace: &str, pod: &Pod) {
        self.namespaces.release(namespace);
        self.labels.release(&pod.labels);
    }

    /// Takes an agent's word on its own node; one that is not later than what it said before changes nothing.
    pub fn take(&mut self, now: Instant, node: &str, order: Order, usage: NodeUsage) {
        let Some(known) = self.nodes.get_mut(node) else { return };
        if known.word.as_ref().is_some_and(|word| word.order >= order) {
            return;
        }
        let NodeUsage { node, mut pods } = usage;
        pods.sort_by(|a, b| a.uid.cmp(&b.uid));
        known.word = Some(Word { order, received: now, node, pods: pods.into_iter().map(Arc::new).collect() });
    }

    /// The nodes of which something is known, by name.
    pub fn nodes(&self, now: Instant) -> impl Iterator<Item = Listed<Sample>> {
        self.nodes.iter().filter_map(move |(name, node)| listed_node(now, name, node))
    }

    pub fn node(&self, now: Instant, name: &str) -> Option<Listed<Sample>> {
        let (name, node) = self.nodes.get_key_value(name)?;
        listed_node(now, name, node)
    }

    /// Those of which something is known, by namespace and name. `None`: of all namespaces.
    pub fn pods(&self, now: Instant, namespace: Option<&str>) -> impl Iterator<Item = Listed<Arc<PodUsage>>> + use<'_> {
        let all = namespace.is_none();
        let namespace: Arc<str> = namespace.unwrap_or_default().into();
        let pods = self.pods.range((namespace.clone(), Arc::from(""))..);
        let pods = pods.take_while(move |((of, _), _)| all || *of == namespace);
        pods.filter_map(move |(key, pod)| self.listed_pod(now, key, pod))
    }

    pub fn pod(&self, now: Instant, namespace: &str, name: &str) -> Option<Listed<Arc<PodUsage>>> {
        let (key, pod) = self.pods.get_key_value(&(Arc::from(namespace), Arc::from(name)))?;
        self.listed_pod(now, key, pod)
    }

    fn listed_pod(&self, now: Instant, (namespace, name): &Key, pod: &Pod) -> Option<Listed<Arc<PodUsage>>> {
        // Only the agent of the node that it is bound to can speak of a pod.
        let word = fresh(now, self.nodes.get(&pod.node)?)?;
        let index = word.pods.binary_search_by(|usage| (*usage.uid).cmp(&pod.uid)).ok()?;
        let (namespace, name, labels) = (namespace.clone(), name.clone(), pod.labels.clone());
        Some(Listed { namespace, name, labels, usage: word.pods[index].clone() })
    }
}

fn listed_node(now: Instant, name: &Arc<str>, node: &Node) -> Option<Listed<Sample>> {
    let usage = fresh(now, node)?.node?;
    Some(Listed { namespace: "".into(), name: name.clone(), labels: node.labels.clone(), usage })
}

fn fresh(now: Instant, node: &Node) -> Option<&Word> {
    node.word.as_ref().filter(|word| now < word.received + FRESH_FOR)
}

#[cfg(test)]
mod tests;
