//! A FAKE of KubeRay's operator, and of the kubelets of its workers: it makes pods from RayClusters and takes them away as
//! the operator does, and runs what runs in them, which is real Ray.

use std::collections::{BTreeMap, BTreeSet};

use ebb_core::resources::NVIDIA_GPU;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ApiResource, DeleteParams, DynamicObject, ListParams, PostParams};
use kube::core::GroupVersionKind;
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};

use crate::{Lab, Ray, node_of};

const DEFINITION: &str = include_str!("rayclusters.yaml");
const NAMESPACE: &str = "default";

/// What the fake keeps.
pub struct FakeKuberay {
    clusters: Api<DynamicObject>,
    pods: Api<Pod>,
    made: u32,
    /// When each pod was made and had its node, and its worker was started, in milliseconds since 1970.
    pub seen: BTreeMap<String, [Option<u64>; 3]>,
}

/// A worker group of a RayCluster as the tests write it.
pub struct WorkerGroup {
    pub name: &'static str,
    pub replicas: u32,
    pub max: u32,
    pub requests: Value,
}

impl FakeKuberay {
    /// With its definition installed.
    pub async fn install(lab: &Lab) -> Self {
        lab.apply(DEFINITION).await;
        lab.kubectl(&["wait", "--for=condition=Established", "crd/rayclusters.ray.io"]).await;
        let client: Client = lab.client().await;
        let kind = GroupVersionKind::gvk("ray.io", "v1", "RayCluster");
        let resource = ApiResource::from_gvk_with_plural(&kind, "rayclusters");
        Self {
            clusters: Api::namespaced_with(client.clone(), NAMESPACE, &resource),
            pods: Api::namespaced(client, NAMESPACE),
            made: 0,
            seen: BTreeMap::new(),
        }
    }

    /// Its head's pod is there, and no scheduler's: nothing runs in it. `in_tree`: Ray's own autoscaler sets the replicas.
    pub async fn create(&self, lab: &Lab, name: &str, in_tree: bool, groups: &[WorkerGroup]) {
        let groups = groups.iter().map(|WorkerGroup { name, replicas, max, requests }| {
            json!({
                "groupName": name, "replicas": replicas, "minReplicas": 0, "maxReplicas": max,
                "rayStartParams": {}, "scaleStrategy": {}, "template": {"spec": spec(requests)},
            })
        });
        let groups: Vec<_> = groups.collect();
        let object = json!({
            "apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {
                "enableInTreeAutoscaling": in_tree, "autoscalerOptions": {"version": "v2", "idleTimeoutSeconds": 60},
                "headGroupSpec": {"rayStartParams": {"num-cpus": "0"}, "template": {"spec": spec(&json!({"cpu": "1"}))}},
                "workerGroupSpecs": groups,
            },
        });
        lab.apply(&object.to_string()).await;
        let mut head = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": format!("{name}-head"), "namespace": NAMESPACE,
                "labels": {"ray.io/cluster": name, "ray.io/group": "headgroup", "ray.io/node-type": "head"},
            },
            "spec": spec(&json!({"cpu": "1"})),
        });
        head["spec"]["schedulerName"] = "nobody".into();
        lab.apply(&head.to_string()).await;
    }

    /// Replicas, and workers to delete.
    pub async fn group(&self, cluster: &str, group: &str) -> (u64, Vec<String>) {
        let object = self.clusters.get(cluster).await.expect("it was made");
        let groups = object.data["spec"]["workerGroupSpecs"].as_array().expect("groups").clone();
        let found = groups.into_iter().find(|spec| spec["groupName"] == group).expect("it was made");
        let delete = found["scaleStrategy"]["workersToDelete"].as_array().cloned().unwrap_or_default();
        let delete = delete.iter().filter_map(|name| name.as_str().map(str::to_owned));
        (found["replicas"].as_u64().unwrap_or(0), delete.collect())
    }

    /// Whoever is named goes first, whatever the replicas say; then the number is made true, by taking any. After that the
    /// kubelets: what is to run is started, and started again where it has ended; what runs in pods that are gone ends.
    pub async fn step(&mut self, lab: &Lab, ray: &mut Ray) {
        for cluster in self.clusters.list(&ListParams::default()).await.expect("the definition is installed") {
            let groups = cluster.data["spec"]["workerGroupSpecs"].as_array().cloned().unwrap_or_default();
            for group in groups {
                self.operate(&cluster, &group).await;
            }
        }
        let pods =
            self.pods.list(&ListParams::default().labels("ray.io/node-type=worker")).await.expect("pods can be listed");
        let mut there = BTreeSet::new();
        for pod in pods.items.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()) {
            let name = pod.name_any();
            if node_of(pod).is_some() {
                let seen = self.seen.entry(name.clone()).or_default();
                seen[1].get_or_insert_with(now);
                if !ray.runs(&name) {
                    seen[2].get_or_insert_with(now);
                    let group = pod.labels()["ray.io/group"].clone();
                    ray.start_worker(lab, &name, &group, (whole(pod, "cpu"), whole(pod, NVIDIA_GPU)));
                }
            }
            there.insert(name);
        }
        ray.keep_workers(|pod| there.contains(pod));
    }

    async fn operate(&mut self, cluster: &DynamicObject, group: &Value) {
        let (name, group_name) = (cluster.name_any(), group["groupName"].as_str().unwrap_or_default());
        let labels = ListParams::default().labels(&format!("ray.io/cluster={name},ray.io/group={group_name}"));
        let pods = self.pods.list(&labels).await.expect("pods can be listed").items;
        let delete = group["scaleStrategy"]["workersToDelete"].as_array().cloned().unwrap_or_default();
        // Those that end already are counted until they are gone.
        let (mut going, staying): (Vec<_>, Vec<_>) =
            pods.into_iter().map(|pod| pod.name_any()).partition(|pod| delete.iter().any(|named| named == pod));
        let number = |field: &str| group[field].as_u64();
        let least = number("minReplicas").unwrap_or(0);
        let replicas = number("replicas").unwrap_or(0).max(least).min(number("maxReplicas").unwrap_or(u64::MAX));
        let replicas = usize::try_from(replicas).expect("a number of pods");
        // Beside Ray's own autoscaler nobody goes that is not named.
        if cluster.data["spec"]["enableInTreeAutoscaling"] != true {
            going.extend(staying.iter().take(staying.len().saturating_sub(replicas)).cloned());
        }
        for pod in going {
            // It may have gone by itself.
            let _ = self.pods.delete(&pod, &DeleteParams::default()).await;
        }
        for _ in staying.len()..replicas {
            let pod = format!("{name}-{group_name}-worker-{}", self.made);
            self.made += 1;
            self.seen.insert(pod.clone(), [Some(now()), None, None]);
            let pod = json!({
                "metadata": {
                    "name": pod,
                    "labels": {"ray.io/cluster": name, "ray.io/group": group_name, "ray.io/node-type": "worker"},
                    "ownerReferences": [{
                        "apiVersion": "ray.io/v1", "kind": "RayCluster", "name": name, "uid": cluster.uid(),
                        "controller": true,
                    }],
                },
                "spec": group["template"]["spec"],
            });
            let pod: Pod = serde_json::from_value(pod).expect("a pod");
            self.pods.create(&PostParams::default(), &pod).await.expect("pods can be made");
        }
    }
}

fn spec(requests: &Value) -> Value {
    json!({
        "terminationGracePeriodSeconds": 0,
        "containers": [{"name": "worker", "image": "ray", "resources": {"requests": requests, "limits": requests}}],
    })
}

fn now() -> u64 {
    crate::now().as_millis()
}

/// What its containers request.
fn whole(pod: &Pod, resource: &str) -> u32 {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let requests = containers.filter_map(|container| container.resources.as_ref()?.requests.as_ref()?.get(resource));
    requests.map(|amount| amount.0.parse::<u32>().expect("the tests ask for whole ones")).sum()
}
