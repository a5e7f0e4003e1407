//! What nodes and pods use, by the word of their agents: what `metrics.k8s.io` is answered from.
//!
//! Agents send rates with their windows, so nothing has to be remembered here for the next one: a coordinator that has just
//! begun to lead serves the first word it hears. What nobody has told of lately is missing, and never zero.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::kubernetes;
use crate::time::Instant;

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
}

/// Of one agent the later word counts: [`crate::report::Report`] says which that is.
pub type Order = (Instant, u64);

/// What is known of all of them.
#[derive(Debug, Default)]
pub struct Usages {
    nodes: BTreeMap<String, Node>,
    /// By namespace and name, in the order in which they are listed.
    pods: BTreeMap<(Arc<str>, Box<str>), Pod>,
    names: BTreeMap<Box<str>, (Arc<str>, Box<str>)>,
}

#[derive(Debug)]
struct Node {
    uid: String,
    labels: BTreeMap<String, String>,
    word: Option<Word>,
}

#[derive(Debug)]
struct Word {
    order: Order,
    received: Instant,
    node: Option<Sample>,
    /// By UID.
    pods: Vec<PodUsage>,
}

#[derive(Debug)]
struct Pod {
    uid: Box<str>,
    node: Box<str>,
    labels: BTreeMap<String, String>,
}

/// One entry of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listed<'a, T> {
    /// Empty for nodes.
    pub namespace: &'a str,
    pub name: &'a str,
    pub labels: &'a BTreeMap<String, String>,
    pub usage: T,
}

impl Usages {
    pub fn node_applied(&mut self, node: &kubernetes::Node) {
        let standing = self.nodes.remove(&node.name).filter(|standing| standing.uid == node.uid);
        let word = standing.and_then(|standing| standing.word);
        self.nodes.insert(node.name.clone(), Node { uid: node.uid.clone(), labels: node.labels.clone(), word });
    }

    /// A node of the same name may be there already: only the one of this UID is gone.
    pub fn node_deleted(&mut self, name: &str, uid: &str) {
        if self.nodes.get(name).is_some_and(|node| node.uid == uid) {
            self.nodes.remove(name);
        }
    }

    pub fn pod_applied(&mut self, pod: &kubernetes::Pod) {
        let Some(node) = pod.node.as_deref().filter(|_| !pod.finished) else { return self.pod_deleted(&pod.uid) };
        let key = (Arc::from(&*pod.namespace), Box::from(&*pod.name));
        let uid: Box<str> = pod.uid.as_str().into();
        self.names.insert(uid.clone(), key.clone());
        self.pods.insert(key, Pod { uid, node: node.into(), labels: pod.labels.clone() });
    }

    pub fn pod_deleted(&mut self, uid: &str) {
        let Some(key) = self.names.remove(uid) else { return };
        // Its successor of the same name may have come before its end was told.
        if self.pods.get(&key).is_some_and(|pod| &*pod.uid == uid) {
            self.pods.remove(&key);
        }
    }

    /// Takes an agent's word on its own node; one that is not later than what it said before changes nothing.
    pub fn take(&mut self, now: Instant, node: &str, order: Order, usage: NodeUsage) {
        let Some(known) = self.nodes.get_mut(node) else { return };
        if known.word.as_ref().is_some_and(|word| word.order >= order) {
            return;
        }
        let NodeUsage { node, mut pods } = usage;
        pods.sort_by(|a, b| a.uid.cmp(&b.uid));
        known.word = Some(Word { order, received: now, node, pods });
    }

    /// The nodes of which something is known, by name.
    pub fn nodes(&self, now: Instant) -> impl Iterator<Item = Listed<'_, Sample>> {
        self.nodes.iter().filter_map(move |(name, node)| listed_node(now, name, node))
    }

    pub fn node(&self, now: Instant, name: &str) -> Option<Listed<'_, Sample>> {
        let (name, node) = self.nodes.get_key_value(name)?;
        listed_node(now, name, node)
    }

    /// Those of which something is known, by namespace and name. `None`: of all namespaces.
    pub fn pods(&self, now: Instant, namespace: Option<&str>) -> impl Iterator<Item = Listed<'_, &PodUsage>> + use<'_> {
        let all = namespace.is_none();
        let namespace: Arc<str> = namespace.unwrap_or_default().into();
        let pods = self.pods.range((namespace.clone(), Box::default())..);
        let pods = pods.take_while(move |((of, _), _)| all || *of == namespace);
        pods.filter_map(move |(key, pod)| self.listed_pod(now, key, pod))
    }

    pub fn pod(&self, now: Instant, namespace: &str, name: &str) -> Option<Listed<'_, &PodUsage>> {
        let (key, pod) = self.pods.get_key_value(&(Arc::from(namespace), Box::from(name)))?;
        self.listed_pod(now, key, pod)
    }

    fn listed_pod<'a>(
        &'a self,
        now: Instant,
        (namespace, name): &'a (Arc<str>, Box<str>),
        pod: &'a Pod,
    ) -> Option<Listed<'a, &'a PodUsage>> {
        // Only the agent of the node that it is bound to can speak of a pod.
        let word = fresh(now, self.nodes.get(&*pod.node)?)?;
        let index = word.pods.binary_search_by(|usage| (*usage.uid).cmp(&pod.uid)).ok()?;
        Some(Listed { namespace, name, labels: &pod.labels, usage: &word.pods[index] })
    }
}

fn listed_node<'a>(now: Instant, name: &'a str, node: &'a Node) -> Option<Listed<'a, Sample>> {
    let usage = fresh(now, node)?.node?;
    Some(Listed { namespace: "", name, labels: &node.labels, usage })
}

fn fresh(now: Instant, node: &Node) -> Option<&Word> {
    node.word.as_ref().filter(|word| now < word.received + FRESH_FOR)
}

#[cfg(test)]
mod tests;
