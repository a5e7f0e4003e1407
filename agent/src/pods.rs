//! What the pods and containers on the own node are called, from the API server: a cgroup's name holds only a UID or an
//! id. Names only; whose cgroup is whose is told by its path, and drains have a watch of their own, which begins anew
//! with each.

use std::collections::HashMap;
use std::sync::Arc;

use ebb_core::time::Instant;
use futures::StreamExt;
use k8s_openapi::api::core::v1 as api;
use kube::runtime::watcher::Event;
use kube::{Client, ResourceExt};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::watching;

/// On the mirror of a static pod: the UID by which the kubelet and its cgroups know it.
const CONFIG_HASH: &str = "kubernetes.io/config.hash";

/// A pod, by the UID in its cgroup's name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodName {
    pub namespace: String,
    pub name: String,
    /// The UID of its object.
    pub uid: String,
    /// Of a DaemonSet, or static: it comes with the node, and keeps no node from being idle.
    pub is_daemon: bool,
    /// Names of containers by their ids, the sandbox left out.
    pub containers: HashMap<String, String>,
    /// When those that run were started, by their ids.
    pub started: HashMap<String, Instant>,
}

/// By the UID in a pod's cgroup's name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodNames(HashMap<String, Arc<PodName>>);

impl PodNames {
    pub fn get(&self, cgroup_uid: &str) -> Option<&PodName> {
        self.0.get(cgroup_uid).map(Arc::as_ref)
    }

    /// Whether there is a pod of this name.
    pub fn contains(&self, namespace: &str, name: &str) -> bool {
        self.0.values().any(|pod| pod.namespace == namespace && pod.name == name)
    }

    #[cfg(test)]
    pub(crate) fn of<const N: usize>(pods: [(&str, PodName); N]) -> Self {
        Self(pods.into_iter().map(|(uid, name)| (uid.to_owned(), Arc::new(name))).collect())
    }

    fn insert(&mut self, pod: &api::Pod) {
        let Some(uid) = pod.uid() else { return };
        let key = pod.annotations().get(CONFIG_HASH).unwrap_or(&uid).clone();
        self.0.insert(key, Arc::new(PodName::from(pod)));
    }

    fn remove(&mut self, pod: &api::Pod) {
        let uid = pod.uid();
        // Its successor of the same manifest may have taken the key already.
        self.0.retain(|_, name| Some(&name.uid) != uid.as_ref());
    }
}

impl From<&api::Pod> for PodName {
    fn from(pod: &api::Pod) -> Self {
        let owned =
            pod.owner_references().iter().any(|owner| owner.kind == "DaemonSet" && owner.controller == Some(true));
        let status = pod.status.as_ref();
        let of = |statuses: fn(&api::PodStatus) -> &Option<Vec<api::ContainerStatus>>| {
            status.and_then(|status| statuses(status).as_deref()).unwrap_or_default()
        };
        let all = of(|status| &status.container_statuses)
            .iter()
            .chain(of(|status| &status.init_container_statuses))
            .chain(of(|status| &status.ephemeral_container_statuses));
        let (mut containers, mut started) = (HashMap::new(), HashMap::new());
        for container in all {
            // `containerd://<id>`
            let id = container.container_id.as_deref().and_then(|id| id.split_once("://"));
            let Some((_, id)) = id else { continue };
            containers.insert(id.to_owned(), container.name.clone());
            started.extend(started_at(container).map(|at| (id.to_owned(), at)));
        }
        Self {
            namespace: pod.namespace().unwrap_or_default(),
            name: pod.name_any(),
            uid: pod.uid().unwrap_or_default(),
            is_daemon: owned || pod.annotations().contains_key(CONFIG_HASH),
            containers,
            started,
        }
    }
}

fn started_at(container: &api::ContainerStatus) -> Option<Instant> {
    let time = container.state.as_ref()?.running.as_ref()?.started_at.as_ref()?;
    u64::try_from(time.0.as_millisecond()).ok().map(Instant::from_millis)
}

/// Tells who is on the node, after each change, until `stop`.
pub async fn run(client: Client, node: String, names: watch::Sender<Arc<PodNames>>, stop: CancellationToken) {
    let mut events = std::pin::pin!(watching::pod_events(client, &node));
    // While a list is under way what was known stays.
    let mut listing: Option<PodNames> = None;
    loop {
        let event = tokio::select! {
            () = stop.cancelled() => return,
            Some(event) = events.next() => event,
        };
        match event {
            Event::Init => listing = Some(PodNames::default()),
            Event::InitApply(pod) => listing.get_or_insert_default().insert(&pod),
            Event::InitDone => {
                if let Some(complete) = listing.take() {
                    names.send_replace(Arc::new(complete));
                }
            }
            Event::Apply(pod) => names.send_modify(|names| Arc::make_mut(names).insert(&pod)),
            Event::Delete(pod) => names.send_modify(|names| Arc::make_mut(names).remove(&pod)),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(value: serde_json::Value) -> api::Pod {
        serde_json::from_value(value).unwrap()
    }

    fn worker() -> api::Pod {
        pod(json!({
            "metadata": {"namespace": "ml", "name": "train-0", "uid": "u-1"},
            "status": {
                "containerStatuses": [
                    {
                        "name": "main", "containerID": "containerd://aa", "image": "", "imageID": "", "ready": true,
                        "restartCount": 0, "state": {"running": {"startedAt": "2026-11-24T10:00:00Z"}},
                    },
                    {"name": "waiting", "image": "", "imageID": "", "ready": false, "restartCount": 0},
                ],
                "initContainerStatuses": [
                    {"name": "setup", "containerID": "cri-o://bb", "image": "", "imageID": "", "ready": true, "restartCount": 0},
                ],
            },
        }))
    }

    #[test]
    fn containers_are_known_by_their_ids() {
        let mut names = PodNames::default();
        names.insert(&worker());
        let found = names.get("u-1").unwrap();
        assert_eq!((&*found.namespace, &*found.name, found.is_daemon), ("ml", "train-0", false));
        assert_eq!(found.containers.get("aa").map(String::as_str), Some("main"));
        assert_eq!(found.containers.get("bb").map(String::as_str), Some("setup"));
        assert_eq!(found.containers.len(), 2);
        let at = Instant::from_millis(1_795_514_400_000);
        assert_eq!(found.started, HashMap::from([("aa".to_owned(), at)]), "of what runs");
        names.remove(&worker());
        assert_eq!(names, PodNames::default());
    }

    #[test]
    fn a_static_pod_is_known_by_its_manifests_hash() {
        let mirror = |uid: &str| {
            pod(json!({"metadata": {
                "namespace": "kube-system", "name": "etcd-a", "uid": uid,
                "annotations": {"kubernetes.io/config.hash": "0123456789abcdef0123456789abcdef"},
            }}))
        };
        let mut names = PodNames::default();
        names.insert(&mirror("u-2"));
        let found = names.get("0123456789abcdef0123456789abcdef").unwrap();
        assert_eq!((&*found.name, &*found.uid, found.is_daemon), ("etcd-a", "u-2", true));
        // The mirror is made anew; the old one's end is told late.
        names.insert(&mirror("u-3"));
        names.remove(&mirror("u-2"));
        assert!(names.get("0123456789abcdef0123456789abcdef").is_some());
    }

    #[test]
    fn only_a_daemon_sets_own_pods_are_daemons() {
        let owned = |kind: &str, controller: bool| {
            let owner =
                json!([{"kind": kind, "name": "x", "uid": "y", "apiVersion": "apps/v1", "controller": controller}]);
            PodName::from(&pod(json!({"metadata": {"name": "p", "uid": "u", "ownerReferences": owner}}))).is_daemon
        };
        assert!(owned("DaemonSet", true));
        assert!(!owned("DaemonSet", false));
        assert!(!owned("ReplicaSet", true));
    }
}
