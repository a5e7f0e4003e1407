//! Of which Auto Scaling group the next node is: the real coordinator against a real API server and scheduler, and our
//! fake AWS. Nothing is scaled down here, so there are no agents.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::time::Duration;

use ebb_tests::{AwsCall, Ebb, Lab, LabOptions, node_of};
use k8s_openapi::api::core::v1::Event;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(90);
const FAST: [&str; 2] = ["--pending-for", "1s"];

/// A lab with these groups, and the coordinator at work there.
async fn scaling(groups: &[&str], config: &str) -> Ebb {
    let groups = groups.iter().map(|&group| group.to_owned()).collect();
    let mut ebb = Ebb::install(Lab::up(LabOptions { groups, ..LabOptions::default() }).await).await;
    // The manifests' own coordinator would wait for a node as well.
    let deployment = ["--namespace", "ebb", "delete", "deployment", "ebb-coordinator", "--cascade=foreground"];
    ebb.lab.kubectl(&deployment).await;
    ebb.start_coordinator(config, &FAST).await;
    ebb
}

/// Three cores: a node of its own. `spec` adds to that.
fn pod(name: &str, spec: &Value) -> Value {
    let work = json!({"name": "work", "image": "work", "resources": {"requests": {"cpu": "3"}}});
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [work]},
    });
    for (key, value) in spec.as_object().unwrap() {
        pod["spec"][key] = value.clone();
    }
    pod
}

async fn apply(ebb: &Ebb, items: &[Value]) {
    ebb.lab.apply(&json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string()).await;
}

async fn wait_until_running(ebb: &Ebb, pods: &[&str]) {
    ebb.lab
        .wait_until(&format!("{} to run", pods.join(", ")), SOON, async || {
            for name in pods {
                let phase = ebb.pod(name).await.and_then(|pod| pod.status?.phase);
                if phase.as_deref() != Some("Running") {
                    return false;
                }
            }
            true
        })
        .await;
}

/// A label of the node that the pod is on.
async fn label(ebb: &Ebb, pod: &str, key: &str) -> String {
    let node = node_of(&ebb.pod(pod).await.unwrap()).unwrap();
    ebb.nodes().await.into_iter().find(|found| found.name_any() == node).unwrap().labels()[key].clone()
}

async fn wait_until_told(ebb: &Ebb, pod: &str, words: &str) {
    let events: Api<Event> = Api::default_namespaced(ebb.client.clone());
    let of_pod = ListParams::default().fields(&format!("involvedObject.name={pod}"));
    ebb.lab
        .wait_until(&format!("{pod} to be told: {words}"), SOON, async || {
            let told = events.list(&of_pod).await.unwrap().items;
            told.iter().any(|event| event.message.as_deref().unwrap_or_default().contains(words))
        })
        .await;
}

async fn wait_until_failing(ebb: &Ebb, group: &str, failing: u8) {
    let line = format!("ebb_coordinator_group_failing{{group=\"{group}\"}} {failing}.0");
    ebb.lab.wait_until(&line, SOON, async || ebb.metrics().await.lines().any(|told| told == line)).await;
}

/// When each group's capacity was first raised, by Unix time in milliseconds.
fn first_raised(ebb: &Ebb, group: &str) -> u64 {
    let calls = ebb.lab.aws_calls("SetDesiredCapacity");
    let of_group = |name: &String| name == group;
    calls.iter().find(|call| call.params.get("AutoScalingGroupName").is_some_and(of_group)).unwrap().at_ms
}

#[tokio::test]
async fn a_group_without_capacity_is_passed_over_until_it_has_some() {
    let groups = ["name=first,type=m5.xlarge,label=pool=first", "name=second,type=m5.xlarge"];
    let config = "groups:
- {name: first, min: 0, max: 4, instanceType: m5.xlarge, priority: 1, labels: {pool: first}}
- {name: second, min: 0, max: 4, instanceType: m5.xlarge}
";
    let ebb = scaling(&groups, config).await;
    let full = json!([{"action": "Launch", "group": "first", "code": "InsufficientInstanceCapacity"}]);
    ebb.lab.set_faults(&full).await;
    apply(&ebb, &[pod("anywhere", &json!({})), pod("picky", &json!({"nodeSelector": {"pool": "first"}}))]).await;

    wait_until_running(&ebb, &["anywhere"]).await;
    let took = Duration::from_millis(first_raised(&ebb, "second") - first_raised(&ebb, "first"));
    assert!(took < Duration::from_secs(10), "the next group was raised after {took:?}");
    assert_eq!(ebb.lab.group("second").await.desired, 1, "the pod that only fits the first is not counted there");
    wait_until_told(&ebb, "picky", "first: launches fail, no capacity").await;
    wait_until_failing(&ebb, "first", 1).await;
    wait_until_failing(&ebb, "second", 0).await;

    ebb.lab.set_faults(&json!([])).await;
    wait_until_running(&ebb, &["picky"]).await;
    wait_until_failing(&ebb, "first", 0).await;
    println!("{}", ebb.decisions().join("\n"));
}

#[tokio::test]
async fn a_group_without_nodes_is_known_by_its_tags() {
    let groups =
        ["name=plain,type=m5.xlarge", "name=tagged,type=m5.xlarge,label=pool=batch,taint=dedicated=ml:NoSchedule"];
    // By what is configured, nothing would fit: one core, no label.
    let config = "groups:
- {name: plain, min: 0, max: 4, instanceType: m5.xlarge, priority: 1}
- {name: tagged, min: 0, max: 4, instanceType: m5.xlarge, allocatable: {cpu: 1, memory: 4Gi, pods: 20}}
";
    let ebb = scaling(&groups, config).await;
    let tag = [
        ("Tags.member.1.ResourceId", "tagged"),
        ("Tags.member.1.ResourceType", "auto-scaling-group"),
        ("Tags.member.1.Key", "k8s.io%2Fcluster-autoscaler%2Fnode-template%2Fresources%2Fcpu"),
        ("Tags.member.1.Value", "3920m"),
        ("Tags.member.1.PropagateAtLaunch", "false"),
    ];
    let (status, body) = ebb.lab.aws("CreateOrUpdateTags", &tag).await;
    assert_eq!(status, 200, "{body}");
    let select = json!({"pool": "batch"});
    let tolerations = json!([{"key": "dedicated", "operator": "Exists"}]);
    let welcome = pod("welcome", &json!({"nodeSelector": select, "tolerations": tolerations}));
    apply(&ebb, &[welcome, pod("repelled", &json!({"nodeSelector": select}))]).await;

    wait_until_running(&ebb, &["welcome"]).await;
    assert_eq!(label(&ebb, "welcome", "pool").await, "batch");
    wait_until_told(&ebb, "repelled", "dedicated").await;
    assert_eq!((ebb.lab.group("plain").await.desired, ebb.lab.group("tagged").await.desired), (0, 1));
}

#[tokio::test]
async fn groups_that_differ_in_their_zone_share_a_burst_and_a_volume_decides_between_them() {
    let groups = ["name=east,type=m5.xlarge,zone=a", "name=west,type=m5.xlarge,zone=b"];
    let config = "groups:
- {name: east, min: 0, max: 9, instanceType: m5.xlarge}
- {name: west, min: 0, max: 9, instanceType: m5.xlarge}
";
    let ebb = scaling(&groups, config).await;
    let burst = ["a", "b", "c", "d", "e", "f"];
    apply(&ebb, &burst.map(|name| pod(name, &json!({})))).await;
    wait_until_running(&ebb, &burst).await;
    assert_eq!((ebb.lab.group("east").await.desired, ebb.lab.group("west").await.desired), (3, 3));

    // With as many nodes in each the first would be next, if it were not for the volume.
    let zone = json!({"key": "topology.kubernetes.io/zone", "operator": "In", "values": ["us-west-2b"]});
    let volume = json!({
        "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "disk"},
        "spec": {
            "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "storageClassName": "",
            "csi": {"driver": "ebs.csi.aws.com", "volumeHandle": "vol-0"},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [zone]}]}},
        },
    });
    let claim = json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "disk", "namespace": "default"},
        "spec": {
            "accessModes": ["ReadWriteOnce"], "storageClassName": "", "volumeName": "disk",
            "resources": {"requests": {"storage": "1Gi"}},
        },
    });
    let volumes = json!({"volumes": [{"name": "disk", "persistentVolumeClaim": {"claimName": "disk"}}]});
    apply(&ebb, &[volume, claim, pod("stateful", &volumes)]).await;
    wait_until_running(&ebb, &["stateful"]).await;
    assert_eq!(label(&ebb, "stateful", "topology.kubernetes.io/zone").await, "us-west-2b");
    assert_eq!((ebb.lab.group("east").await.desired, ebb.lab.group("west").await.desired), (3, 4));
}

/// (zone, client token, status) of each launch of one group.
fn launches(ebb: &Ebb, group: &str) -> Vec<(String, String, u16)> {
    let calls = ebb.lab.aws_calls("LaunchInstances").into_iter();
    let param = |call: &AwsCall, name: &str| call.params[name].clone();
    let calls = calls.filter(|call| param(call, "AutoScalingGroupName") == group);
    calls.map(|call| (param(&call, "AvailabilityZones.member.1"), param(&call, "ClientToken"), call.status)).collect()
}

#[tokio::test]
async fn instances_are_launched_where_a_pod_can_be_and_what_is_in_the_way_is_known_at_once() {
    let groups = ["name=first,type=m5.xlarge,zone=a,zone=b", "name=second,type=m5.xlarge,zone=a,zone=b"];
    let config = "groups:
- {name: first, min: 0, max: 9, instanceType: m5.xlarge, priority: 1}
- {name: second, min: 0, max: 9, instanceType: m5.xlarge}
scaleUp: {launch: launchInstances}
";
    let ebb = scaling(&groups, config).await;
    apply(&ebb, &["a", "b"].map(|name| pod(name, &json!({})))).await;
    wait_until_running(&ebb, &["a", "b"]).await;
    let mut zones: Vec<_> = launches(&ebb, "first").into_iter().map(|(zone, ..)| zone).collect();
    zones.sort();
    assert_eq!(zones, ["us-west-2a", "us-west-2b"]);

    // A zone of the pod's choice; of the first try nobody hears, and nothing comes of it.
    ebb.lab.set_faults(&json!([{"action": "LaunchInstances", "drop": true, "times": 1}])).await;
    let in_b = json!({"nodeSelector": {"topology.kubernetes.io/zone": "us-west-2b"}});
    apply(&ebb, &[pod("picky", &in_b)]).await;
    wait_until_running(&ebb, &["picky"]).await;
    let asked = launches(&ebb, "first").split_off(2);
    let [(lost_in, lost, 0), (zone, token, 200)] = asked.as_slice() else { panic!("{asked:?}") };
    assert_eq!((lost_in.as_str(), lost), ("us-west-2b", token));
    assert_eq!((zone.as_str(), ebb.lab.group("first").await.desired), ("us-west-2b", 3));

    // No capacity here, and no such call there.
    let faults = json!([
        {"action": "Launch", "group": "first", "code": "InsufficientInstanceCapacity"},
        {"action": "LaunchInstances", "group": "second", "code": "ValidationError", "message": "There is no launch template"},
    ]);
    ebb.lab.set_faults(&faults).await;
    apply(&ebb, &[pod("late", &json!({}))]).await;
    wait_until_running(&ebb, &["late"]).await;
    let failed = launches(&ebb, "first").split_off(4);
    assert_eq!(failed.iter().map(|(_, _, status)| *status).collect::<Vec<_>>(), [200, 200], "both zones were tried");
    let tried = ebb.lab.aws_calls("LaunchInstances").into_iter().rev().nth(2).unwrap().at_ms;
    let took = Duration::from_millis(first_raised(&ebb, "second") - tried);
    assert!(took < Duration::from_secs(2), "the next group was raised after {took:?}");
    assert_eq!((ebb.lab.group("first").await.desired, ebb.lab.group("second").await.desired), (3, 1));
    wait_until_failing(&ebb, "first", 1).await;
    println!("{}", ebb.decisions().join("\n"));
}
