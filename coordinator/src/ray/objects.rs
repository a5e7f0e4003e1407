//! Ray in the API server: RayClusters of KubeRay, whose replicas are written, and RayWorkerGroups of our own, by which
//! others (an HPA) say how many they want. A cluster may have neither kind.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::pin::pin;
use std::time::Duration;

use axum::http;
use ebb_core::fleet::{Event, Failure, RayGroup};
use ebb_core::ray::{GroupSpec, RayCluster, Scale, ScaleChange, ScaleStatus, Template};
use ebb_core::time::Instant;
use futures::StreamExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{ApiResource, ListParams, Object, Patch, PatchParams};
use kube::core::GroupVersionKind;
use kube::runtime::watcher::{self, Config, watcher};
use kube::{Api, Client, ResourceExt};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::sleep;

use crate::effects::CallError;
use crate::kubernetes::{CONTROLLER, call_error};

/// Between two looks whether somebody has installed a kind's definition, or given the right to read it.
const ABSENT: Duration = Duration::from_secs(60);
const BACKOFF: Duration = Duration::from_secs(5);

/// As far as it is read. What is written is named by its place, so that the rest stays as it is.
type RayClusterObject = Object<ClusterSpec, Value>;

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
struct ClusterSpec {
    enable_in_tree_autoscaling: Option<bool>,
    suspend: Option<bool>,
    worker_group_specs: Vec<WorkerGroupSpec>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
struct WorkerGroupSpec {
    group_name: String,
    replicas: Option<u32>,
    min_replicas: Option<u32>,
    max_replicas: Option<u32>,
    num_of_hosts: Option<u32>,
    suspend: Option<bool>,
    scale_strategy: Option<ScaleStrategy>,
    ray_start_params: Option<BTreeMap<String, String>>,
    resources: Option<BTreeMap<String, String>>,
    /// Read apart, so that one that cannot be read is missed and nothing else.
    template: Value,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
struct ScaleStrategy {
    workers_to_delete: Option<BTreeSet<String>>,
}

type RayWorkerGroup = Object<GroupWish, GroupStatus>;

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct GroupWish {
    ray_cluster: String,
    group_name: String,
    #[serde(default)]
    replicas: u32,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq)]
#[serde(rename_all = "camelCase", default)]
struct GroupStatus {
    observed_generation: i64,
    replicas: u32,
    selector: String,
    conditions: Vec<Condition>,
}

fn ray_clusters() -> ApiResource {
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk("ray.io", "v1", "RayCluster"), "rayclusters")
}

fn ray_worker_groups() -> ApiResource {
    let kind = GroupVersionKind::gvk("ebb.dev", "v1alpha1", "RayWorkerGroup");
    ApiResource::from_gvk_with_plural(&kind, "rayworkergroups")
}

/// Keeps the core told of both, for ever.
pub(crate) async fn watch(client: Client, inbox: mpsc::Sender<Event>) {
    let clusters = Watch {
        api: Api::<RayClusterObject>::all_with(client.clone(), &ray_clusters()),
        what: "RayClusters",
        applied: |object| {
            let cluster = Box::new(ray_cluster(object));
            Event::RayCluster { name: full_name(object), object: Some(cluster) }
        },
        deleted: |namespace, name| Event::RayCluster { name: format!("{namespace}/{name}"), object: None },
    };
    let groups = Watch {
        api: Api::<RayWorkerGroup>::all_with(client, &ray_worker_groups()),
        what: "RayWorkerGroups",
        applied: |object| Event::RayWorkerGroup(ScaleChange::Applied(Box::new(scale(object)))),
        deleted: |namespace, name| {
            let (namespace, name) = (namespace.to_owned(), name.to_owned());
            Event::RayWorkerGroup(ScaleChange::Deleted { namespace, name })
        },
    };
    tokio::join!(clusters.run(&inbox), groups.run(&inbox));
}

fn full_name(object: &impl ResourceExt) -> String {
    format!("{}/{}", object.namespace().unwrap_or_default(), object.name_any())
}

fn ray_cluster(object: &RayClusterObject) -> RayCluster {
    let namespace = object.namespace().unwrap_or_default();
    let template = |spec: &WorkerGroupSpec| {
        let template = serde_json::from_value(spec.template.clone()).ok()?;
        let own = |map: &Option<BTreeMap<_, _>>| map.clone().unwrap_or_default();
        Some(Template::new(&template, &namespace, &own(&spec.ray_start_params), &own(&spec.resources)))
    };
    let group = |spec: &WorkerGroupSpec| GroupSpec {
        template: template(spec),
        name: spec.group_name.clone(),
        // What KubeRay takes for what is left out.
        replicas: spec.replicas.unwrap_or(0),
        min: spec.min_replicas.unwrap_or(0),
        max: spec.max_replicas.unwrap_or(u32::MAX),
        hosts: spec.num_of_hosts.unwrap_or(1),
        suspended: spec.suspend.unwrap_or(false),
        workers_to_delete: spec.scale_strategy.as_ref().and_then(|it| it.workers_to_delete.clone()).unwrap_or_default(),
    };
    RayCluster {
        uid: object.uid().unwrap_or_default(),
        resource_version: object.resource_version().unwrap_or_default(),
        in_tree_autoscaling: object.spec.enable_in_tree_autoscaling.unwrap_or(false),
        // One that is being deleted is as good as suspended: its operator makes nothing new.
        suspended: object.spec.suspend.unwrap_or(false) || object.metadata.deletion_timestamp.is_some(),
        groups: object.spec.worker_group_specs.iter().map(group).collect(),
    }
}

fn scale(object: &RayWorkerGroup) -> Scale {
    let created = object.metadata.creation_timestamp.as_ref().map_or(0, |at| at.0.as_millisecond());
    Scale {
        namespace: object.namespace().unwrap_or_default(),
        name: object.name_any(),
        uid: object.uid().unwrap_or_default(),
        generation: object.metadata.generation.unwrap_or_default(),
        created: Instant::from_millis(u64::try_from(created).unwrap_or(0)),
        cluster: object.spec.ray_cluster.clone(),
        group: object.spec.group_name.clone(),
        replicas: object.spec.replicas,
    }
}

/// Namespace and name.
type Key = (String, String);

struct Watch<K> {
    api: Api<K>,
    what: &'static str,
    applied: fn(&K) -> Event,
    deleted: fn(&str, &str) -> Event,
}

impl<K> Watch<K>
where
    K: kube::Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    async fn run(self, inbox: &mpsc::Sender<Event>) {
        let mut known = BTreeSet::new();
        let mut said = None;
        loop {
            // A watcher alone would ask for what is not there once a second.
            let (code, error) = match self.api.list_metadata(&ListParams::default().limit(1)).await {
                Ok(_) => {
                    said = None;
                    (0, self.watch(inbox, &mut known).await)
                }
                Err(kube::Error::Api(status)) => (status.code, status.message),
                Err(error) => (0, error.to_string()),
            };
            if code == 404 {
                // No such kind, so none of it.
                for (namespace, name) in std::mem::take(&mut known) {
                    tell(inbox, (self.deleted)(&namespace, &name)).await;
                }
            } else if said.replace(code) != Some(code) {
                let what = self.what;
                tracing::warn!(what, error, "not watched, so nothing is scaled by what they say until they are");
            }
            sleep(if matches!(code, 403 | 404) { ABSENT } else { BACKOFF }).await;
        }
    }

    /// Until it fails; why it did.
    async fn watch(&self, inbox: &mpsc::Sender<Event>, known: &mut BTreeSet<Key>) -> String {
        let key = |object: &K| (object.namespace().unwrap_or_default(), object.name_any());
        let mut listed = BTreeSet::new();
        let mut events = pin!(watcher(self.api.clone(), Config::default()));
        loop {
            let event = match events.next().await {
                Some(Ok(event)) => event,
                Some(Err(error)) => return error.to_string(),
                None => return "the watch has ended".into(),
            };
            match event {
                watcher::Event::Init => listed.clear(),
                watcher::Event::InitApply(object) => {
                    listed.insert(key(&object));
                    tell(inbox, (self.applied)(&object)).await;
                }
                watcher::Event::InitDone => {
                    for (namespace, name) in known.difference(&listed) {
                        tell(inbox, (self.deleted)(namespace, name)).await;
                    }
                    *known = std::mem::take(&mut listed);
                }
                watcher::Event::Apply(object) => {
                    known.insert(key(&object));
                    tell(inbox, (self.applied)(&object)).await;
                }
                watcher::Event::Delete(object) => {
                    let (namespace, name) = key(&object);
                    tell(inbox, (self.deleted)(&namespace, &name)).await;
                    known.remove(&(namespace, name));
                }
            }
        }
    }
}

/// The driver is gone only when the process is about to be.
async fn tell(inbox: &mpsc::Sender<Event>, event: Event) {
    let _ = inbox.send(event).await;
}

/// Sets replicas and workers to delete, if the RayCluster still is of this version.
pub(crate) async fn scale_cluster(
    client: &Client,
    cluster: &str,
    resource_version: &str,
    groups: &[RayGroup],
) -> Result<(), CallError> {
    let (namespace, name) = cluster.split_once('/').unwrap_or_default();
    let body = serde_json::to_vec(&patch(resource_version, groups)).expect("JSON can be written");
    let url = format!("/apis/ray.io/v1/namespaces/{namespace}/rayclusters/{name}?fieldManager={CONTROLLER}");
    let request = http::Request::patch(url).header("content-type", "application/json-patch+json").body(body);
    let request = request.map_err(|error| CallError { failure: Failure::Rejected, detail: error.to_string() })?;
    let answer = client.request::<Value>(request).await;
    answer
        .map(drop)
        .map_err(|error| CallError { detail: format!("scale RayCluster {cluster}: {error}"), ..call_error(&error) })
}

/// The version that is written in makes the API server refuse it where there is a newer one: operators write by the
/// groups' places, and these may have been moved.
fn patch(resource_version: &str, groups: &[RayGroup]) -> Value {
    let mut patch = vec![json!({"op": "replace", "path": "/metadata/resourceVersion", "value": resource_version})];
    for RayGroup { index, name, to, delete, .. } in groups {
        let group = format!("/spec/workerGroupSpecs/{index}");
        patch.push(json!({"op": "test", "path": format!("{group}/groupName"), "value": name}));
        // Adds it or replaces it.
        patch.push(json!({"op": "add", "path": format!("{group}/replicas"), "value": to}));
        let strategy = json!({"workersToDelete": delete});
        patch.push(json!({"op": "add", "path": format!("{group}/scaleStrategy"), "value": strategy}));
    }
    patch.into()
}

/// Writes the status, if the object has this UID and its status is another.
pub(crate) async fn show_group(
    client: &Client,
    namespace: &str,
    name: &str,
    uid: &str,
    status: &ScaleStatus,
) -> Result<(), CallError> {
    let api: Api<RayWorkerGroup> = Api::namespaced_with(client.clone(), namespace, &ray_worker_groups());
    let found = api.get(name).await.map_err(|error| call_error(&error))?;
    if found.uid().as_deref() != Some(uid) {
        let detail = format!("there is no RayWorkerGroup {namespace}/{name} {uid} any more");
        return Err(CallError { failure: Failure::NotFound, detail });
    }
    let before = found.status.clone().unwrap_or_default();
    let after = group_status(&before, status, Timestamp::now());
    if after == before {
        return Ok(());
    }
    let patch = json!({"metadata": {"uid": uid, "resourceVersion": found.resource_version()}, "status": after});
    let params = PatchParams { field_manager: Some(CONTROLLER.into()), ..PatchParams::default() };
    api.patch_status(name, &params, &Patch::Merge(patch)).await.map_err(|error| call_error(&error))?;
    Ok(())
}

/// The time since when the condition is what it is stays.
fn group_status(before: &GroupStatus, status: &ScaleStatus, now: Timestamp) -> GroupStatus {
    let (state, reason, message) = match status.refusal {
        None => {
            ("True", "Driven", "the RayCluster gets these replicas; workers that are busy are waited for".to_owned())
        }
        Some(refusal) => ("False", refusal.name(), refusal.to_string()),
    };
    let known = before.conditions.iter().find(|known| known.type_ == "Accepted" && known.status == state);
    let condition = Condition {
        last_transition_time: known.map_or(Time(now), |known| known.last_transition_time.clone()),
        message,
        observed_generation: Some(status.generation),
        reason: reason.into(),
        status: state.into(),
        type_: "Accepted".into(),
    };
    GroupStatus {
        observed_generation: status.generation,
        replicas: status.replicas,
        selector: status.selector.clone(),
        conditions: vec![condition],
    }
}

#[cfg(test)]
mod tests {
    use ebb_core::ray::{Amounts, Refusal};

    use super::*;

    #[test]
    fn a_ray_cluster_is_read_with_what_kuberay_takes_for_what_is_left_out() {
        let object: RayClusterObject = serde_json::from_value(json!({
            "apiVersion": "ray.io/v1", "kind": "RayCluster",
            "metadata": {"name": "train", "namespace": "ml", "uid": "u", "resourceVersion": "7"},
            "spec": {
                "enableInTreeAutoscaling": true, "headGroupSpec": {"rayStartParams": {}},
                "workerGroupSpecs": [
                    {"groupName": "cpu", "template": {"spec": {"containers": [{"name": "ray", "resources": {
                        "limits": {"cpu": "3"}}}]}}, "rayStartParams": {"num-gpus": "1"}, "resources": {"memory": "1k"}},
                    {"groupName": "gpu", "replicas": 2, "minReplicas": 1, "maxReplicas": 4, "numOfHosts": 2,
                     "suspend": true, "scaleStrategy": {"workersToDelete": ["b", "a"]}, "template": {"spec": 7}},
                ],
            },
        }))
        .unwrap();
        let read = ray_cluster(&object);
        assert_eq!((full_name(&object).as_str(), read.resource_version.as_str()), ("ml/train", "7"));
        assert!(read.in_tree_autoscaling && !read.suspended);
        let template = read.groups[0].template.clone().unwrap();
        assert_eq!((template.pod.requests.amount("cpu"), template.pod.namespace.as_str()), (3000, "ml"));
        let mut brought = Amounts::default();
        assert!([("CPU", 3.0), ("GPU", 1.0), ("memory", 1000.0)].into_iter().all(|(name, it)| brought.set(name, it)));
        assert_eq!(template.resources, brought);
        let template = Some(template);
        let cpu = GroupSpec { name: "cpu".into(), max: u32::MAX, hosts: 1, template, ..GroupSpec::default() };
        let gpu = GroupSpec {
            name: "gpu".into(),
            replicas: 2,
            min: 1,
            max: 4,
            hosts: 2,
            suspended: true,
            workers_to_delete: ["a".to_owned(), "b".to_owned()].into(),
            // It makes no pod, and is missed for nothing else.
            template: None,
        };
        assert_eq!(read.groups, [cpu, gpu]);
    }

    #[test]
    fn a_change_names_its_version_and_its_groups() {
        let group = RayGroup { index: 1, name: "gpu".into(), from: 3, to: 2, delete: vec!["w1".into()] };
        let expected = json!([
            {"op": "replace", "path": "/metadata/resourceVersion", "value": "7"},
            {"op": "test", "path": "/spec/workerGroupSpecs/1/groupName", "value": "gpu"},
            {"op": "add", "path": "/spec/workerGroupSpecs/1/replicas", "value": 2},
            {"op": "add", "path": "/spec/workerGroupSpecs/1/scaleStrategy", "value": {"workersToDelete": ["w1"]}},
        ]);
        assert_eq!(patch("7", &[group]), expected);
    }

    #[test]
    fn a_condition_keeps_the_time_since_when_it_holds() {
        let status = |refusal| ScaleStatus { generation: 3, replicas: 2, selector: "a=b".into(), refusal };
        let at = |second| Timestamp::from_second(second).unwrap();
        let first = group_status(&GroupStatus::default(), &status(None), at(1));
        let second = group_status(&first, &status(None), at(2));
        assert_eq!(first, second);
        let third = group_status(&second, &status(Some(Refusal::MultiHost)), at(3));
        let [condition] = &third.conditions[..] else { panic!("{third:?}") };
        assert_eq!((condition.status.as_str(), condition.reason.as_str()), ("False", "MultiHost"));
        assert_eq!(condition.last_transition_time, Time(at(3)));
    }
}
