//! Headroom: the real coordinator and agents against a real API server with CapacityBuffers, and our fake AWS.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::time::Duration;

use ebb_tests::{Ebb, Lab, LabOptions, node_of};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(90);
const DEFINITION: &str = include_str!("capacitybuffers.yaml");
const CONFIG: &str = "groups:
- {name: workers, min: 0, max: 6, instanceType: m5.xlarge}
idle: {window: 2s}
";
const FAST: [&str; 4] = ["--pending-for", "1s", "--unneeded-for", "4s"];

async fn scaling(definition: &str) -> Ebb {
    let groups = vec!["name=workers,type=m5.xlarge".to_owned()];
    let mut ebb = Ebb::install(Lab::up(LabOptions { groups, ..LabOptions::default() }).await).await;
    // The manifests' own coordinator would wait for a node as well.
    let deployment = ["--namespace", "ebb", "delete", "deployment", "ebb-coordinator", "--cascade=foreground"];
    ebb.lab.kubectl(&deployment).await;
    if !definition.is_empty() {
        ebb.lab.apply(definition).await;
        let established = ["wait", "--for=condition=Established", "crd/capacitybuffers.autoscaling.x-k8s.io"];
        ebb.lab.kubectl(&established).await;
    }
    ebb.start_coordinator(CONFIG, &FAST).await;
    ebb
}

/// Three cores, so a node of its own: by what it is limited to, as people write templates.
fn work() -> Value {
    json!({
        "terminationGracePeriodSeconds": 0,
        "containers": [{"name": "work", "image": "work", "resources": {"limits": {"cpu": "3"}}}],
    })
}

fn template(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": name, "namespace": "default"},
        "template": {"metadata": {"labels": {"app": name}}, "spec": work()},
    })
}

fn buffer(version: &str, name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": format!("autoscaling.x-k8s.io/{version}"), "kind": "CapacityBuffer",
        "metadata": {"name": name, "namespace": "default"}, "spec": spec,
    })
}

fn deployment(name: &str, replicas: u32) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "replicas": replicas, "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": work()},
        },
    })
}

async fn apply(ebb: &Ebb, items: &[Value]) {
    ebb.lab.apply(&json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string()).await;
}

async fn status(ebb: &Ebb, buffer: &str) -> Value {
    let object = ebb.lab.kubectl(&["get", "capacitybuffer", buffer, "--output=json"]).await;
    serde_json::from_str::<Value>(&object).unwrap()["status"].take()
}

fn condition<'a>(status: &'a Value, name: &str) -> Option<&'a Value> {
    status["conditions"].as_array()?.iter().find(|condition| condition["type"] == name)
}

async fn wait_until_told(ebb: &mut Ebb, buffer: &str, replicas: u32, reason: &str) {
    ebb.wait_until(&format!("{buffer} to have {replicas}, {reason}"), SOON, async |ebb| {
        let status = status(ebb, buffer).await;
        status["replicas"] == replicas && condition(&status, "Provisioning").is_some_and(|it| it["reason"] == reason)
    })
    .await;
}

async fn wait_until_sized(ebb: &mut Ebb, nodes: u32) {
    ebb.wait_until(&format!("{nodes} nodes"), SOON * 2, async |ebb| {
        let group = ebb.lab.group("workers").await;
        group.desired == nodes && ebb.nodes().await.len() == nodes as usize
    })
    .await;
}

#[tokio::test]
async fn a_buffer_has_its_room_before_a_pod_waits_and_again_after_a_burst() {
    let mut ebb = scaling(DEFINITION).await;
    let spec = json!({"podTemplateRef": {"name": "train"}, "replicas": 2});
    apply(&ebb, &[template("train"), buffer("v1beta1", "headroom", &spec)]).await;
    wait_until_sized(&mut ebb, 2).await;
    wait_until_told(&mut ebb, "headroom", 2, "RoomThere").await;
    let first = status(&ebb, "headroom").await;
    assert_eq!(condition(&first, "ReadyForProvisioning").unwrap()["status"], "True");
    assert_eq!((&first["podTemplateRef"]["name"], &first["podTemplateGeneration"]), (&json!("train"), &json!(1)));

    // The nodes are empty and idle, and yet they stay.
    let spared: Vec<_> = ebb.nodes().await.into_iter().map(|node| node.metadata.name.unwrap()).collect();
    for node in &spared {
        ebb.wait_until(&format!("{node} to be explained"), SOON, async |ebb| {
            ebb.ask(&["explain", "node", node]).contains("buffer default/headroom has its room on it")
        })
        .await;
    }

    apply(&ebb, &[deployment("train", 2)]).await;
    let pods = async |ebb: &Ebb| {
        let pods = ebb.lab.kubectl(&["get", "pods", "--selector=app=train", "--output=json"]).await;
        let pods: Value = serde_json::from_str(&pods).unwrap();
        serde_json::from_value::<Vec<k8s_openapi::api::core::v1::Pod>>(pods["items"].clone()).unwrap()
    };
    ebb.wait_until("the burst to run", SOON, async |ebb| {
        let pods = pods(ebb).await;
        let running = |pod: &&k8s_openapi::api::core::v1::Pod| {
            pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running")
        };
        pods.iter().filter(running).count() == 2
    })
    .await;
    let mut taken: Vec<_> = pods(&ebb).await.iter().filter_map(node_of).collect();
    taken.sort();
    assert_eq!(taken, spared, "the burst took the room that was kept");
    wait_until_sized(&mut ebb, 4).await;
    wait_until_told(&mut ebb, "headroom", 2, "RoomThere").await;

    ebb.lab.kubectl(&["delete", "capacitybuffer", "headroom"]).await;
    wait_until_sized(&mut ebb, 2).await;
    let left: Vec<_> = ebb.nodes().await.into_iter().map(|node| node.metadata.name.unwrap()).collect();
    assert_eq!(left, spared);
    println!("{}", ebb.decisions().join("\n"));
}

#[tokio::test]
async fn buffers_follow_what_they_are_of_and_say_what_is_wrong_with_them() {
    // As served by those who have only the first version.
    let definition = DEFINITION.replace("name: v1beta1", "name: v1alpha1");
    let (only, _) = definition.split_once("    - {<<").unwrap();
    let mut ebb = scaling(&only.replace("&version", "")).await;
    let scalable = json!({"apiGroup": "apps", "kind": "Deployment", "name": "web"});
    let percentage = json!({"scalableRef": scalable, "percentage": 50});
    let limited = json!({"podTemplateRef": {"name": "late"}, "limits": {"cpu": 7}});
    let foreign =
        json!({"provisioningStrategy": "example.com/standby", "podTemplateRef": {"name": "late"}, "replicas": 9});
    let scaled = deployment("web", 2);
    let version = "v1alpha1";
    apply(
        &ebb,
        &[
            scaled,
            buffer(version, "half", &percentage),
            buffer(version, "limited", &limited),
            buffer(version, "foreign", &foreign),
        ],
    )
    .await;
    wait_until_told(&mut ebb, "half", 1, "RoomThere").await;
    wait_until_sized(&mut ebb, 3).await;
    let wrong = status(&ebb, "limited").await;
    let ready = condition(&wrong, "ReadyForProvisioning").unwrap();
    assert_eq!(
        (&ready["status"], &ready["message"]),
        (&json!("False"), &json!("there is no PodTemplate late in its namespace"))
    );

    // Seven cores are two pods of three, and then nobody can make more.
    apply(&ebb, &[template("late")]).await;
    wait_until_told(&mut ebb, "limited", 2, "RoomThere").await;
    wait_until_sized(&mut ebb, 5).await;
    ebb.lab.kubectl(&["scale", "deployment", "web", "--replicas=4"]).await;
    wait_until_told(&mut ebb, "limited", 2, "NoGroupFits").await;
    wait_until_sized(&mut ebb, 6).await;
    assert_eq!(status(&ebb, "foreign").await, Value::Null);
    println!("{}", ebb.decisions().join("\n"));
}

#[tokio::test]
async fn without_the_definition_nothing_is_missed() {
    let mut ebb = scaling("").await;
    apply(&ebb, &[deployment("web", 1)]).await;
    wait_until_sized(&mut ebb, 1).await;
    let log = ebb.lab.log("coordinator");
    assert!(!log.contains("buffer"), "{log}");
}
