//! `custom.metrics.k8s.io` by the coordinator, through the real aggregation layer, with the real controller of HPAs on it. Fakes
//! are the agent and the Ray head: pods of KWOK run nowhere. RayCluster is a CRD of the same name and kind as KubeRay's.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::time::Duration;

use ebb_core::units::Permille;
use ebb_core::usage::Signals;
use ebb_tests::hpa::{CUSTOM, lab, replicas, running, running_now, serve, work};
use ebb_tests::{Ebb, FakeAgent, FakeRayHead, Lab};
use kube::ResourceExt;
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(120);

async fn up(ray: &FakeRayHead) -> Ebb {
    let (mut ebb, port) = lab(&["--horizontal-pod-autoscaler-sync-period=1s"]).await;
    let address = ray.serve().await;
    let config = format!(
        "
groups: [{{name: cpu, min: 0, max: 1, instanceType: m5.12xlarge}}]
ray:
  clusters:
    - name: train
      namespace: default
      address: {address}
      workerGroups: [{{name: cpu, maxReplicas: 9, requests: {{cpu: 3}}}}]
"
    );
    serve(&mut ebb, &config, port).await;
    ebb
}

fn gpu_busy(permille: u16) -> Signals {
    Signals { window: Duration::from_secs(10), gpu_busy: Permille::new(permille), ..Signals::default() }
}

async fn get(lab: &Lab, path: &str) -> Result<Value, String> {
    let path = format!("/apis/custom.metrics.k8s.io/v1beta2{path}");
    Ok(serde_json::from_str(&lab.try_kubectl(&["get", "--raw", &path]).await?).unwrap())
}

#[tokio::test]
async fn metrics_of_pods_are_shown_to_who_may_see_them() {
    let ebb = up(&FakeRayHead::default()).await;
    let lab = &ebb.lab;
    let mut agent = FakeAgent::start(&ebb, Duration::from_secs(10)).await;
    lab.apply(&work(2)).await;
    let pods = running(lab, 2).await;
    let of_all = "/namespaces/default/pods/*/gpu_busy_ratio";
    assert_eq!(get(lab, of_all).await.unwrap()["items"], json!([]), "nobody has told");
    agent.tell_signals(&pods[..1], gpu_busy(730)).await;
    lab.wait_until("the pod to be shown", SOON, async || {
        get(lab, of_all).await.unwrap()["items"].as_array().unwrap().len() == 1
    })
    .await;

    let shown = get(lab, of_all).await.unwrap();
    assert_eq!((&shown["kind"], &shown["items"][0]["value"]), (&"MetricValueList".into(), &"730m".into()));
    assert_eq!(shown["items"][0]["describedObject"]["name"], pods[0].name_any());
    assert_eq!(shown["items"][0]["windowSeconds"], 10);
    let named = |pod: usize, metric: &str| format!("/namespaces/default/pods/{}/{metric}", pods[pod].name_any());
    assert_eq!(get(lab, &named(0, "gpu_busy_ratio")).await.unwrap()["items"], shown["items"]);
    assert_eq!(get(lab, &named(0, "DCGM_FI_DEV_GPU_UTIL")).await.unwrap()["items"][0]["value"], "73");
    let count =
        async |query: &str| get(lab, &format!("{of_all}?{query}")).await.unwrap()["items"].as_array().unwrap().len();
    assert_eq!(count("labelSelector=app%3Dwork").await, 1);
    assert_eq!(count("labelSelector=app%3Dother").await, 0);
    assert_eq!(count("metricLabelSelector=gpu%3D0").await, 0);

    let missing = async |path: &str| {
        let error = get(lab, path).await.unwrap_err();
        assert!(error.contains("NotFound"), "{path}: {error}");
        error
    };
    missing(&named(1, "gpu_busy_ratio")).await;
    missing(&named(0, "gpu_memory_used_bytes")).await;
    let unknown = missing("/namespaces/default/pods/*/requests_per_second").await;
    assert!(unknown.contains("requests_per_second"), "{unknown}");
    missing("/namespaces/default/services/web/gpu_busy_ratio").await;

    // The API server knows of the metrics, by both kinds of discovery.
    let listed = get(lab, "").await.unwrap();
    let names: Vec<_> = listed["resources"].as_array().unwrap().iter().map(|it| it["name"].clone()).collect();
    assert!(names.contains(&"pods/gpu_busy_ratio".into()), "{listed}");
    lab.wait_until("the API to be discovered", SOON, async || {
        lab.kubectl(&["get", "--raw", "/apis"]).await.contains("custom.metrics.k8s.io/v1beta2")
    })
    .await;

    let path = format!("/apis/custom.metrics.k8s.io/v1beta2{of_all}");
    let as_jane = ["--as", "jane", "get", "--raw", &path];
    let refused = lab.try_kubectl(&as_jane).await.unwrap_err();
    assert!(refused.contains("jane") && refused.contains("orbidden"), "{refused}");
    lab.kubectl(&["create", "rolebinding", "jane", "--clusterrole=view", "--user=jane"]).await;
    // A refusal is believed for ten seconds.
    lab.wait_until("the right to be noticed", SOON, async || lab.try_kubectl(&as_jane).await.is_ok()).await;

    anothers_are_left_alone(lab).await;
}

async fn anothers_are_left_alone(lab: &Lab) {
    // An adapter's own version of the group stays the one that the HPA asks for.
    let adapters = r"
apiVersion: apiregistration.k8s.io/v1
kind: APIService
metadata: {name: v1beta1.custom.metrics.k8s.io}
spec:
  group: custom.metrics.k8s.io
  version: v1beta1
  groupPriorityMinimum: 100
  versionPriority: 100
  insecureSkipTLSVerify: true
  service: {name: prometheus-adapter, namespace: default}
";
    lab.apply(adapters).await;
    lab.wait_until("the adapter's version to be preferred", SOON, async || {
        let group = lab.kubectl(&["get", "--raw", "/apis/custom.metrics.k8s.io"]).await;
        serde_json::from_str::<Value>(&group).unwrap()["preferredVersion"]["version"] == "v1beta1"
    })
    .await;
    let theirs = r#"{"spec": {"service": {"name": "another-adapter"}, "caBundle": null}}"#;
    lab.kubectl(&["patch", "apiservice", CUSTOM, "--type=merge", "--patch", theirs]).await;
    let says = async |owner: &str| {
        lab.wait_until("the coordinator to say so", SOON, async || lab.log("coordinator").contains(owner)).await;
    };
    says("Service ebb/another-adapter").await;
    says("Service default/prometheus-adapter").await;
    for name in [CUSTOM, "v1beta1.custom.metrics.k8s.io"] {
        let bundle = lab.kubectl(&["get", "apiservice", name, "--output", "jsonpath={.spec.caBundle}"]).await;
        assert_eq!(bundle, "", "{name}");
    }
}

#[tokio::test]
async fn the_hpa_follows_gpus_and_rays_queue() {
    let ray = FakeRayHead::default();
    let ebb = up(&ray).await;
    let lab = &ebb.lab;
    let mut agent = FakeAgent::start(&ebb, Duration::from_secs(10)).await;
    lab.apply(&work(1)).await;
    lab.apply(&hpa(
        "{type: Pods, pods: {metric: {name: gpu_busy_ratio}, target: {type: AverageValue, averageValue: 700m}}}",
    ))
    .await;
    until(&mut agent, lab, 900, 2).await;
    // One that nobody knows anything of is no idle one: two of 60 % are kept.
    let pods = running(lab, 2).await;
    agent.tell_signals(&pods, gpu_busy(600)).await;
    assert_stays(lab, 2).await;
    agent.tell_signals(&pods[..1], gpu_busy(100)).await;
    assert_stays(lab, 2).await;
    until(&mut agent, lab, 100, 1).await;

    lab.apply(include_str!("../src/rayclusters.yaml")).await;
    let queue = "{type: Object, object: {describedObject: {apiVersion: ray.io/v1, kind: RayCluster, name: train}, \
        metric: {name: ray_waiting_requests}, target: {type: AverageValue, averageValue: '10'}}}";
    a_ray_worker_group(lab, queue).await;
    lab.apply(&hpa(queue)).await;
    ray.set_waiting(35);
    // The controller looks for kinds that are new every half minute.
    lab.wait_until("a worker for each ten requests", SOON, async || replicas(lab).await == 4).await;
    let shown = get(lab, "/namespaces/default/rayclusters.ray.io/train/ray_waiting_requests").await.unwrap();
    let object = json!({"kind": "RayCluster", "apiVersion": "ray.io/v1", "namespace": "default", "name": "train"});
    assert_eq!((&shown["items"][0]["value"], &shown["items"][0]["describedObject"]), (&"35".into(), &object));
    wait_until_asked(lab, "4").await;
    let of_cluster = "jsonpath={.spec.workerGroupSpecs[0].replicas}";
    lab.wait_until("the RayCluster to have them", SOON, async || {
        lab.kubectl(&["get", "raycluster", "train", "--output", of_cluster]).await == "4"
    })
    .await;
    ray.set_waiting(0);
    lab.wait_until("the queue to be empty", SOON, async || replicas(lab).await == 1).await;
    wait_until_asked(lab, "1").await;
    the_manifests_of_the_docs_are_taken(lab, &ray).await;
    let other = get(lab, "/namespaces/default/rayclusters.ray.io/other/ray_waiting_requests").await.unwrap_err();
    assert!(other.contains("NotFound") && other.contains("configuration"), "{other}");
}

/// What the controller asks for of the worker group.
async fn wait_until_asked(lab: &Lab, replicas: &str) {
    let words = ["get", "rayworkergroup", "train-cpu", "--output", "jsonpath={.spec.replicas}"];
    lab.wait_until("the HPA to scale the worker group", SOON, async || lab.kubectl(&words).await == replicas).await;
}

/// A RayCluster of no workers, whose operator is not there, and who scales it.
async fn a_ray_worker_group(lab: &Lab, metric: &str) {
    lab.apply_file(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/ray/rayworkergroups.yaml")).await;
    for definition in ["crd/rayclusters.ray.io", "crd/rayworkergroups.ebb.dev"] {
        lab.kubectl(&["wait", "--for=condition=Established", definition]).await;
    }
    let cluster = json!({
        "apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": {"name": "train", "namespace": "default"},
        "spec": {"workerGroupSpecs": [{"groupName": "cpu", "replicas": 1, "minReplicas": 0, "maxReplicas": 9}]},
    });
    lab.apply(&cluster.to_string()).await;
    let group = json!({
        "apiVersion": "ebb.dev/v1alpha1", "kind": "RayWorkerGroup",
        "metadata": {"name": "train-cpu", "namespace": "default"},
        "spec": {"rayCluster": "train", "groupName": "cpu", "replicas": 1},
    });
    lab.apply(&group.to_string()).await;
    let hpa = hpa(metric).replace("name: work", "name: train-cpu").replace("apps/v1", "ebb.dev/v1alpha1");
    lab.apply(&hpa.replace("kind: Deployment", "kind: RayWorkerGroup")).await;
}

/// By the API server, and by the controller: it finds the second of the two metrics, while no worker tells the first.
async fn the_manifests_of_the_docs_are_taken(lab: &Lab, ray: &FakeRayHead) {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/ray/gpu-workers.yaml");
    lab.kubectl(&["apply", "--server-side", "--validate=strict", "--filename", file]).await;
    ray.set_waiting(11);
    let current = "jsonpath={.status.currentMetrics[?(@.type==\"Object\")].object.current.value}";
    lab.wait_until("the controller to see the queue", SOON, async || {
        // There is no list to look into before its first round.
        lab.try_kubectl(&["get", "hpa", "ray-gpu-workers", "--output", current]).await.is_ok_and(|value| value == "11")
    })
    .await;
    lab.kubectl(&["delete", "--filename", file]).await;
}

/// Tells that all pods are so busy until there are so many.
async fn until(agent: &mut FakeAgent, lab: &Lab, permille: u16, expected: u32) {
    lab.wait_until("other replicas", SOON, async || {
        agent.tell_signals(&running_now(lab).await, gpu_busy(permille)).await;
        replicas(lab).await == expected
    })
    .await;
}

/// For longer than the HPA holds a lower number back, and many of its rounds.
async fn assert_stays(lab: &Lab, expected: u32) {
    let began = std::time::Instant::now();
    while began.elapsed() < Duration::from_secs(10) {
        assert_eq!(replicas(lab).await, expected);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn hpa(metric: &str) -> String {
    format!(
        "
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {{name: work, namespace: default}}
spec:
  scaleTargetRef: {{apiVersion: apps/v1, kind: Deployment, name: work}}
  minReplicas: 1
  maxReplicas: 5
  metrics: [{metric}]
  behavior:
    scaleUp: {{stabilizationWindowSeconds: 0}}
    scaleDown: {{stabilizationWindowSeconds: 5}}
"
    )
}
