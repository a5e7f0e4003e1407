//! Nodes and pods as our own watch shows them, with the moments that count.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use ebb_core::intent::PROGRESS_ANNOTATION;
use futures::StreamExt;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::runtime::watcher::Event;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};

use super::ROOM;

#[derive(Default)]
pub(super) struct Watched {
    /// By UID: whether it is on one of the nodes to drain, and whether it is ready.
    pub(super) pods: HashMap<String, (bool, bool)>,
    /// Since when no pod is on them.
    pub(super) empty_since: Option<Instant>,
    /// Since when each is called drained.
    pub(super) drained: BTreeMap<String, Instant>,
    /// Which are as if they had never been drained.
    pub(super) clean: BTreeMap<String, bool>,
}

/// For ever.
pub(super) async fn pods(client: Client, watched: Arc<Mutex<Watched>>) {
    let pods: Api<Pod> = Api::default_namespaced(client);
    let crowd = watcher::Config::default().labels("app=crowd");
    let mut events = watcher(pods, crowd).default_backoff().boxed();
    while let Some(Ok(event)) = events.next().await {
        let mut watched = watched.lock().expect("nobody panics while holding it");
        match event {
            Event::Apply(pod) | Event::InitApply(pod) => {
                let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
                let leaves = node.is_some_and(|node| node != ROOM);
                watched.pods.insert(pod.uid().unwrap_or_default(), (leaves, is_ready(&pod)));
            }
            Event::Delete(pod) => {
                watched.pods.remove(&pod.uid().unwrap_or_default());
            }
            Event::Init | Event::InitDone => {}
        }
        let is_empty = !watched.pods.values().any(|&(leaves, _)| leaves);
        watched.empty_since = is_empty.then(|| watched.empty_since.unwrap_or_else(Instant::now));
    }
}

fn is_ready(pod: &Pod) -> bool {
    let mut conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// For ever.
pub(super) async fn nodes(client: Client, watched: Arc<Mutex<Watched>>) {
    let nodes: Api<Node> = Api::all(client);
    let drained = watcher::Config::default().labels("drained=true");
    let mut events = watcher(nodes, drained).default_backoff().applied_objects().boxed();
    while let Some(Ok(node)) = events.next().await {
        let stands = |name: &str| {
            let mut conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
            conditions.any(|condition| condition.type_ == name && condition.status == "True")
        };
        let unschedulable = node.spec.as_ref().is_some_and(|spec| spec.unschedulable == Some(true));
        let clean = !unschedulable && !node.annotations().contains_key(PROGRESS_ANNOTATION);
        let mut watched = watched.lock().expect("nobody panics while holding it");
        let is_drained = stands("Drained");
        watched.clean.insert(node.name_any(), clean && !is_drained && !stands("MaintenancePlanned"));
        if is_drained {
            watched.drained.entry(node.name_any()).or_insert_with(Instant::now);
        } else {
            watched.drained.remove(&node.name_any());
        }
    }
}
