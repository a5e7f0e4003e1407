//! The own Node and the pods bound to it, as they are now: watches that resume, and after a gap list anew.

use std::collections::BTreeMap;
use std::fmt::Debug;

use ebb_core::drain::Pod;
use futures::stream::{BoxStream, Stream, StreamExt};
use k8s_openapi::api::core::v1 as api;
use kube::Client;
use kube::api::Api;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Config, Event, watcher};
use serde::de::DeserializeOwned;

use crate::health::chain;

/// The own Node: there, or not.
pub(crate) enum NodeState {
    Is(Box<api::Node>),
    Gone,
}

/// Never ends.
pub(crate) fn node(client: Client, name: &str) -> BoxStream<'static, NodeState> {
    let nodes: Api<api::Node> = Api::all(client);
    let mut listed = false;
    events(nodes, format!("metadata.name={name}"), "node")
        .filter_map(move |event| {
            let state = match event {
                Event::Init => {
                    listed = false;
                    None
                }
                Event::InitApply(node) | Event::Apply(node) => {
                    listed = true;
                    Some(NodeState::Is(Box::new(node)))
                }
                Event::InitDone => (!listed).then_some(NodeState::Gone),
                Event::Delete(_) => Some(NodeState::Gone),
            };
            std::future::ready(state)
        })
        .boxed()
}

/// All pods bound to the node, after each change of one. Never ends.
pub(crate) fn pods(client: Client, node: &str) -> BoxStream<'static, Vec<Pod>> {
    let mut current = Pods::default();
    pod_events(client, node).filter_map(move |event| std::future::ready(current.apply(event))).boxed()
}

/// Each change of a pod bound to the node, after all there are. Never ends.
pub(crate) fn pod_events(client: Client, node: &str) -> impl Stream<Item = Event<api::Pod>> + Send + 'static {
    let pods: Api<api::Pod> = Api::all(client);
    events(pods, format!("spec.nodeName={node}"), "pods")
}

#[derive(Default)]
struct Pods {
    /// By full name: a name is held by one pod at a time.
    pods: BTreeMap<String, Pod>,
    /// A list is under way: until it is complete, a pod that is missing may be yet to come.
    listing: bool,
}

impl Pods {
    fn apply(&mut self, event: Event<api::Pod>) -> Option<Vec<Pod>> {
        match event {
            Event::Init => {
                self.listing = true;
                self.pods.clear();
            }
            Event::InitApply(pod) | Event::Apply(pod) => {
                let pod = Pod::from(&pod);
                self.pods.insert(pod.full_name(), pod);
            }
            Event::InitDone => self.listing = false,
            Event::Delete(pod) => {
                self.pods.remove(&Pod::from(&pod).full_name());
            }
        }
        (!self.listing).then(|| self.pods.values().cloned().collect())
    }
}

/// One line when a watch fails and one when it is back; in between it is tried again, ever more slowly.
fn events<K>(api: Api<K>, selector: String, what: &'static str) -> impl Stream<Item = Event<K>> + use<K>
where
    K: kube::Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let mut failing = false;
    watcher(api, Config::default().fields(&selector)).default_backoff().filter_map(move |event: watcher::Result<_>| {
        let event = match event {
            Ok(event) => {
                if std::mem::take(&mut failing) {
                    tracing::info!(what, "watch is back");
                }
                Some(event)
            }
            Err(error) => {
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(what, error = chain(&error), "watch failed");
                }
                None
            }
        };
        std::future::ready(event)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str) -> api::Pod {
        let metadata = serde_json::json!({"metadata": {"name": name, "namespace": "n", "uid": name}});
        serde_json::from_value(metadata).unwrap()
    }

    #[test]
    fn pods_are_told_once_the_list_is_complete_and_after_each_change() {
        let mut pods = Pods::default();
        let mut check = |event, expected: Option<&[&str]>| {
            let names = pods.apply(event).map(|pods| pods.into_iter().map(|pod| pod.name).collect::<Vec<_>>());
            assert_eq!(names, expected.map(|names| names.iter().map(|name| (*name).to_owned()).collect()));
        };
        check(Event::Init, None);
        check(Event::InitApply(pod("a")), None);
        check(Event::InitDone, Some(&["a"]));
        check(Event::Apply(pod("b")), Some(&["a", "b"]));
        check(Event::Delete(pod("a")), Some(&["b"]));
        // The watch was cut off; `b` went away meanwhile.
        check(Event::Init, None);
        check(Event::InitDone, Some(&[]));
    }
}
