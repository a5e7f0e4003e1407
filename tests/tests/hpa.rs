//! `metrics.k8s.io` by the coordinator, through the real aggregation layer, with the real controller of HPAs on it. What pods
//! use is told by a fake agent, named as one: pods of KWOK run nowhere. It speaks the real agents' stream, as one of them.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::time::{Duration, Instant as Monotonic};

use ebb_tests::hpa::{RESOURCE, lab, replicas, running, running_now, serve, work};
use ebb_tests::{Ebb, FakeAgent, Lab};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use kube::{Api, ResourceExt};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(120);
const CONFIG: &str = "groups: [{name: cpu, min: 0, max: 1, instanceType: m5.12xlarge}]";

/// The HPA's controller goes round each second, so that a test need not wait for minutes.
async fn up() -> (Ebb, u16) {
    let (mut ebb, port) = lab(&["--horizontal-pod-autoscaler-sync-period=1s"]).await;
    serve(&mut ebb, CONFIG, port).await;
    (ebb, port)
}

#[tokio::test]
async fn nodes_and_pods_are_shown_to_who_may_see_them() {
    let (ebb, port) = up().await;
    let lab = &ebb.lab;
    // Only the API server is answered.
    let direct = Monotonic::now();
    let args =
        ["--silent", "--insecure", "--header", "X-Remote-User: admin", "--header", "X-Remote-Group: system:masters"];
    let url = format!("https://127.0.0.1:{port}/apis/metrics.k8s.io/v1beta1/nodes");
    let forged = lab.command("curl").args(args).arg(&url).output().unwrap();
    let forged: Value = serde_json::from_slice(&forged.stdout).unwrap();
    assert_eq!((&forged["kind"], &forged["code"]), (&"Status".into(), &401.into()), "{forged} {:?}", direct.elapsed());

    let raw = |path: &str| format!("/apis/metrics.k8s.io/v1beta1{path}");
    let get = async |path: &str| -> Value {
        serde_json::from_str(&lab.kubectl(&["get", "--raw", &raw(path)]).await).unwrap()
    };
    let nothing = get("/pods").await;
    assert_eq!((&nothing["kind"], &nothing["items"]), (&"PodMetricsList".into(), &Value::Array(Vec::new())));
    let mut agent = FakeAgent::start(&ebb, Duration::from_secs(10)).await;
    let node = agent.node.clone();
    lab.apply(&work(2)).await;
    let pods = running(lab, 2).await;
    agent.tell(&pods, 250, 64).await;
    lab.wait_until("both pods to be shown", SOON, async || get("/pods").await["items"].as_array().unwrap().len() == 2)
        .await;

    let shown = get(&format!("/namespaces/default/pods/{}", pods[0].name_any())).await;
    assert_eq!(shown["containers"], serde_json::json!([{"name": "work", "usage": {"cpu": "250m", "memory": "64Mi"}}]));
    assert_eq!(shown["window"], "10s");
    assert_eq!(shown["metadata"]["labels"]["app"], "work");
    assert_eq!(get(&format!("/nodes/{node}")).await["usage"]["cpu"], "250m");
    let of = async |path: &str| get(path).await["items"].as_array().unwrap().len();
    assert_eq!(of("/namespaces/default/pods?labelSelector=app%3Dwork").await, 2);
    assert_eq!(of("/namespaces/default/pods?labelSelector=app%20notin%20(work)").await, 0);
    assert_eq!(of("/namespaces/kube-system/pods").await, 0);
    assert_eq!(of(&format!("/pods?fieldSelector=metadata.name%3D{}", pods[1].name_any())).await, 1);
    let missing = lab.try_kubectl(&["get", "--raw", &raw("/namespaces/default/pods/none")]).await.unwrap_err();
    assert!(missing.contains("NotFound"), "{missing}");

    // What people type. The API server looks for what others serve once a minute, and kubectl keeps what it was told.
    let mut asked = 0;
    lab.wait_until("kubectl to find the API", SOON, async || {
        asked += 1;
        let cache = format!("--cache-dir={}", lab.dir.join(format!("discovery-{asked}")).display());
        lab.try_kubectl(&["top", "nodes", &cache]).await.is_ok()
    })
    .await;
    let cache = format!("--cache-dir={}", lab.dir.join(format!("discovery-{asked}")).display());
    let top = lab.kubectl(&["top", "pods", "--no-headers", &cache]).await;
    assert!(top.lines().all(|line| line.contains("250m") && line.contains("64Mi")), "{top}");
    let top = lab.kubectl(&["top", "nodes", "--no-headers", &cache]).await;
    assert!(top.contains(&node) && top.contains("250m"), "{top}");
    let table = lab.kubectl(&["get", "pods.metrics.k8s.io", &cache]).await;
    println!("{table}");
    assert!(table.starts_with("NAME") && table.contains("250m") && table.contains("64Mi"), "{table}");

    let explained =
        lab.kubectl(&["explain", "pods.containers.usage", "--api-version=metrics.k8s.io/v1beta1", &cache]).await;
    assert!(explained.contains("PodMetrics") && explained.contains("working set"), "{explained}");

    // The user is the one who asks, and not the API server.
    let as_user =
        |user: &'static str| ["--as", user, "get", "--raw", "/apis/metrics.k8s.io/v1beta1/namespaces/default/pods"];
    let refused = lab.try_kubectl(&as_user("jane")).await.unwrap_err();
    assert!(refused.contains("jane") && refused.contains("orbidden"), "{refused}");
    lab.kubectl(&["create", "rolebinding", "jane", "--clusterrole=view", "--user=jane"]).await;
    // A refusal is believed for ten seconds.
    lab.wait_until("the right to be noticed", SOON, async || lab.try_kubectl(&as_user("jane")).await.is_ok()).await;

    // What is another's is left alone.
    let theirs = r#"{"spec": {"service": {"name": "metrics-server"}, "caBundle": null}}"#;
    lab.kubectl(&["patch", "apiservice", RESOURCE, "--type=merge", "--patch", theirs]).await;
    lab.wait_until("the coordinator to say so", SOON, async || {
        lab.log("coordinator").contains("Service ebb/metrics-server")
    })
    .await;
    let bundle = lab.kubectl(&["get", "apiservice", RESOURCE, "--output", "jsonpath={.spec.caBundle}"]).await;
    assert_eq!(bundle, "");
}

#[tokio::test]
async fn the_hpa_follows_the_load_and_nothing_else() {
    let (ebb, _) = up().await;
    let lab = &ebb.lab;
    let mut agent = FakeAgent::start(&ebb, Duration::from_secs(1)).await;
    the_hpa_of_the_flow_is_taken(lab).await;
    lab.apply(&work(1)).await;
    lab.apply(HPA).await;
    let mut pods = running(lab, 1).await;

    // Six pods use 70 % of their requests then.
    let began = Monotonic::now();
    lab.wait_until("the HPA to see the load", SOON, async || {
        agent.tell(&pods, 420, 16).await;
        replicas(lab).await > 1
    })
    .await;
    println!("from a change of the load to more replicas: {:.1} s, at a round a second", began.elapsed().as_secs_f64());
    lab.wait_until("six pods", SOON, async || {
        pods = running_now(lab).await;
        agent.tell(&pods, 420 / pods.len().max(1) as u64, 16).await;
        replicas(lab).await == 6
    })
    .await;
    let pods = running(lab, 6).await;
    agent.tell(&pods, 70, 16).await;

    // A report that comes twice, one of less, one without some pods, none for a while, an agent that began anew: the same.
    agent.repeat(&pods, 1, 1).await;
    assert_stays(lab, 6, "a report that came twice").await;
    agent.tell(&pods[..5], 70, 16).await;
    assert_stays(lab, 6, "a pod of which nothing is said").await;
    agent.tell(&pods, 70, 16).await;
    drop(agent);
    assert_stays(lab, 6, "an agent that is gone").await;
    let mut agent = FakeAgent::start(&ebb, Duration::from_secs(1)).await;
    agent.tell(&[], 70, 16).await;
    assert_stays(lab, 6, "an agent that knows nothing yet").await;

    let began = Monotonic::now();
    agent.tell(&pods, 10, 16).await;
    lab.wait_until("fewer replicas", SOON, async || replicas(lab).await < 6).await;
    println!("from a change of the load to fewer: {:.1} s", began.elapsed().as_secs_f64());
}

async fn the_hpa_of_the_flow_is_taken(lab: &Lab) {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/ray/workers.yaml");
    lab.kubectl(&["apply", "--server-side", "--validate=strict", "--filename", file]).await;
    let get = async |path: &str| {
        let path = format!("jsonpath={path}");
        lab.kubectl(&["get", "hpa", "ray-workers", "--output", &path]).await
    };
    assert_eq!(get("{.spec.behavior.scaleDown.tolerance}").await, "286m", "what makes it below 50 %");
    lab.wait_until("the controller to look after it", SOON, async || {
        get(r#"{.status.conditions[?(@.type=="AbleToScale")].status}"#).await == "True"
    })
    .await;
    lab.kubectl(&["delete", "--filename", file]).await;
}

/// For longer than the HPA holds a lower number back, and many of its rounds.
async fn assert_stays(lab: &Lab, expected: u32, what: &str) {
    let began = Monotonic::now();
    while began.elapsed() < Duration::from_secs(10) {
        assert_eq!(replicas(lab).await, expected, "{what}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let hpas: Api<HorizontalPodAutoscaler> = Api::default_namespaced(lab.client().await);
    let status = hpas.get("work").await.unwrap().status.unwrap();
    assert_eq!(status.desired_replicas, i32::try_from(expected).unwrap(), "{what}");
}

const HPA: &str = r"
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: work, namespace: default}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: work}
  minReplicas: 1
  maxReplicas: 10
  metrics:
    - {type: Resource, resource: {name: cpu, target: {type: Utilization, averageUtilization: 70}}}
    - {type: Resource, resource: {name: memory, target: {type: Utilization, averageUtilization: 80}}}
  behavior:
    scaleUp: {stabilizationWindowSeconds: 0}
    scaleDown: {stabilizationWindowSeconds: 5}
";
