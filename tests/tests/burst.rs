//! One burst through real parts: API server, scheduler, controllers, our two binaries with the rights and the
//! configuration of the manifests; fakes are AWS and, behind the nodes, the kubelets (KWOK).
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ebb_proto::v1;
use ebb_proto::v1::reports_client::ReportsClient;
use ebb_tests::{Ebb, Lab, LabOptions, node_of};
use futures::TryStreamExt;
use k8s_openapi::api::core::v1::{Event, Node, Pod};
use kube::api::ListParams;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, ResourceExt};
use serde_json::json;
use tonic::Code;
use tonic::metadata::MetadataValue;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};

const SOON: Duration = Duration::from_secs(90);

/// The groups of the manifests' configuration.
const GROUPS: [&str; 2] = [
    "name=cpu-workers,min=2,max=10,desired=2,type=m5.xlarge",
    "name=gpu-workers,min=0,max=4,type=g4dn.xlarge,taint=nvidia.com/gpu=true:NoSchedule",
];
/// The flow's waiting times, shortened; everything else is as installed.
const FAST: [&str; 6] = ["--pending-for", "1s", "--unneeded-for", "4s", "--gpu-unneeded-for", "4s"];
const SHORT_WINDOW: &str = "\nidle: {window: 2s}\n";

async fn installed() -> Ebb {
    let groups = GROUPS.map(str::to_owned).to_vec();
    Ebb::install(Lab::up(LabOptions { groups, ..LabOptions::default() }).await).await
}

fn pod(name: &str, cpu: &str, gpus: u32) -> String {
    let mut requests = json!({"cpu": cpu});
    let mut tolerations = json!([]);
    if gpus > 0 {
        requests["nvidia.com/gpu"] = gpus.to_string().into();
        tolerations = json!([{"key": "nvidia.com/gpu", "operator": "Exists"}]);
    }
    let limits = requests.clone();
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "terminationGracePeriodSeconds": 0, "tolerations": tolerations,
            "containers": [{"name": "work", "image": "work", "resources": {"requests": requests, "limits": limits}}],
        },
    })
    .to_string()
}

async fn runs(ebb: &Ebb, pod: &str) -> bool {
    let phase = ebb.pod(pod).await.and_then(|pod| pod.status?.phase);
    phase.as_deref() == Some("Running")
}

/// (group, desired) of each accepted call.
fn set_desired(ebb: &Ebb) -> Vec<(String, u32)> {
    let accepted = ebb.lab.aws_calls("SetDesiredCapacity").into_iter().filter(|call| call.status == 200);
    let param = |params: &BTreeMap<String, String>, name: &str| params[name].clone();
    accepted
        .map(|call| {
            let desired = param(&call.params, "DesiredCapacity").parse().unwrap();
            (param(&call.params, "AutoScalingGroupName"), desired)
        })
        .collect()
}

/// Every state of every Node from now on.
fn record_nodes(ebb: &Ebb) -> Arc<Mutex<Vec<Node>>> {
    let states = Arc::new(Mutex::new(Vec::new()));
    let nodes: Api<Node> = Api::all(ebb.client.clone());
    let record = Arc::clone(&states);
    tokio::spawn(async move {
        let stream = watcher(nodes, watcher::Config::default()).default_backoff().applied_objects();
        stream
            .try_for_each(|node| {
                record.lock().unwrap().push(node);
                std::future::ready(Ok(()))
            })
            .await
    });
    states
}

fn condition(node: &Node, type_: &str) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|condition| condition.type_ == type_ && condition.status == "True")
}

#[tokio::test]
async fn a_burst_raises_the_right_groups_and_its_nodes_leave_when_it_is_over() {
    let mut ebb = installed().await;
    let states = record_nodes(&ebb);
    let config = ebb.config().await + SHORT_WINDOW;
    ebb.start_coordinator(&config, &FAST).await;
    ebb.wait_until("both agents to report", SOON, async |ebb| {
        ebb.ca().await.is_some() && ebb.metrics().await.contains("ebb_coordinator_streams 2")
    })
    .await;

    // Up. Two of the three fit the nodes that are there.
    for name in ["cpu-a", "cpu-b", "cpu-c"] {
        ebb.lab.apply(&pod(name, "3", 0)).await;
    }
    ebb.lab.apply(&pod("gpu-a", "1", 1)).await;
    ebb.wait_until("all pods to run", SOON, async |ebb| {
        for name in ["cpu-a", "cpu-b", "cpu-c", "gpu-a"] {
            if !runs(ebb, name).await {
                return false;
            }
        }
        true
    })
    .await;
    let raised: BTreeSet<_> = set_desired(&ebb).into_iter().collect();
    assert_eq!(raised, BTreeSet::from([("cpu-workers".to_owned(), 3), ("gpu-workers".to_owned(), 1)]));
    let gpu_node = node_of(&ebb.pod("gpu-a").await.unwrap()).unwrap();
    let gpu_instances = ebb.lab.group("gpu-workers").await.instances;
    assert_eq!(gpu_instances.iter().map(|instance| &instance.node).collect::<Vec<_>>(), [&gpu_node]);

    // Down. One pod stays: its node must, too.
    let kept = node_of(&ebb.pod("cpu-a").await.unwrap()).unwrap();
    ebb.lab.kubectl(&["delete", "pod", "cpu-b", "cpu-c", "gpu-a"]).await;
    ebb.wait_until("the nodes of the burst to leave", SOON * 2, async |ebb| {
        let groups = [ebb.lab.group("cpu-workers").await, ebb.lab.group("gpu-workers").await];
        groups.map(|group| (group.desired, group.instances.len())) == [(2, 2), (0, 0)] && ebb.nodes().await.len() == 2
    })
    .await;

    let terminated = ebb.lab.aws_calls("TerminateInstanceInAutoScalingGroup");
    assert_eq!(terminated.len(), 2, "{terminated:#?}");
    let states = states.lock().unwrap().clone();
    let events: Api<Event> = Api::default_namespaced(ebb.client.clone());
    let of_nodes = ListParams::default().fields("involvedObject.kind=Node,reportingComponent=ebb-coordinator");
    let told = events.list(&of_nodes).await.unwrap().items;
    for call in &terminated {
        assert_eq!((call.status, call.params["ShouldDecrementDesiredCapacity"].as_str()), (200, "true"));
        let instance = &call.params["InstanceId"];
        let provider = |node: &Node| node.spec.as_ref().and_then(|spec| spec.provider_id.clone()).unwrap_or_default();
        let of_node: Vec<_> = states.iter().filter(|node| provider(node).ends_with(instance.as_str())).collect();
        assert_ne!(of_node[0].name_any(), kept);
        // The intent came first, then the cordon by the agent, then its word that the node is drained.
        let first = |what: &str, holds: &dyn Fn(&Node) -> bool| {
            of_node.iter().position(|node| holds(node)).unwrap_or_else(|| panic!("{instance} was never {what}"))
        };
        let asked = first("asked", &|node| node.annotations().contains_key("ebb.dev/drain"));
        let cordoned = first("cordoned", &|node| node.spec.as_ref().unwrap().unschedulable == Some(true));
        let draining = first("draining", &|node| condition(node, "DrainInProgress"));
        let drained = first("drained", &|node| condition(node, "Drained"));
        assert!(asked < cordoned && cordoned < draining && draining < drained);
        assert!(of_node[cordoned].annotations()["ebb.dev/drain-progress"].contains(r#""cordonedByUs":true"#));
        // Who describes the node reads why it went.
        let told = told.iter().filter(|event| event.involved_object.name == of_node[0].metadata.name);
        let reasons: BTreeSet<_> = told.filter_map(|event| event.reason.as_deref()).collect();
        assert_eq!(reasons, BTreeSet::from(["Drained", "Unneeded"]));
    }

    // The coordinator ends when asked to, and gives its Lease back.
    assert!(ebb.stop_coordinator().await);
    let holder = ["--namespace", "ebb", "get", "lease", "ebb-coordinator", "--output=jsonpath={.spec.holderIdentity}"];
    assert_eq!(ebb.lab.kubectl(&holder).await, "");
    // The minimum was never touched, however idle the two that are left.
    assert!(runs(&ebb, "cpu-a").await);
    println!("what the coordinator decided, and why:\n{}", ebb.decisions().join("\n"));
}

#[tokio::test]
async fn a_drain_outlives_the_coordinator_and_a_call_outlives_throttling() {
    let mut ebb = installed().await;
    // Agents first: the coordinator they report to is not there yet, nor its certificate.
    ebb.wait_until("agents without a coordinator to be up", SOON, async |ebb| {
        let pods = ebb.agent_pods().await;
        pods.len() == 2
    })
    .await;
    let config = ebb.config().await + SHORT_WINDOW;
    let record = ebb.lab.dir.join("record").display().to_string();
    let flags = [&FAST[..], &["--record", &record]].concat();
    ebb.start_coordinator(&config, &flags).await;
    ebb.wait_until("both agents to report", SOON, async |ebb| {
        ebb.ca().await.is_some() && ebb.metrics().await.contains("ebb_coordinator_streams 2")
    })
    .await;

    ebb.lab
        .set_faults(&json!([{"action": "SetDesiredCapacity", "code": "Throttling", "status": 400, "times": 2}]))
        .await;
    ebb.lab.apply(&pod("gpu-a", "1", 1)).await;
    ebb.wait_until("the pod to run", SOON, async |ebb| runs(ebb, "gpu-a").await).await;
    let calls = ebb.lab.aws_calls("SetDesiredCapacity");
    assert_eq!(calls.iter().map(|call| call.status).collect::<Vec<_>>(), [400, 400, 200]);

    ebb.lab.kubectl(&["delete", "pod", "gpu-a"]).await;
    ebb.wait_until("a node to be asked to drain", SOON, async |ebb| {
        ebb.nodes().await.iter().any(|node| node.annotations().contains_key("ebb.dev/drain"))
    })
    .await;
    ebb.kill_coordinator();
    ebb.wait_until("the agent to finish without the coordinator", SOON, async |ebb| {
        ebb.nodes().await.iter().any(|node| condition(node, "Drained"))
    })
    .await;
    assert_eq!(ebb.lab.aws_calls("TerminateInstanceInAutoScalingGroup").len(), 0);
    ebb.start_coordinator(&config, &flags).await;
    ebb.wait_until("the next coordinator to terminate the instance", SOON, async |ebb| {
        ebb.lab.group("gpu-workers").await.desired == 0 && ebb.nodes().await.len() == 2
    })
    .await;

    // What two coordinators were told, one of which was killed, is decided again.
    assert!(ebb.stop_coordinator().await);
    let replayed = ebb.ebb(&["replay", &record]);
    println!("{replayed}");
    assert_eq!(replayed.matches("A coordinator starts").count(), 2, "{replayed}");
    assert!(replayed.contains("raises gpu-workers from 0 to 1 instances"), "{replayed}");
    assert!(replayed.contains("of gpu-workers") && replayed.contains("nothing is decided otherwise"), "{replayed}");
}

#[tokio::test]
async fn a_group_that_aws_does_not_know_is_said_on_the_pod_and_harms_no_other() {
    let mut ebb = installed().await;
    let config = ebb.config().await.replace("name: gpu-workers", "name: forgotten") + SHORT_WINDOW;
    ebb.start_coordinator(&config, &FAST).await;
    ebb.lab.apply(&pod("gpu-a", "1", 1)).await;
    ebb.lab.apply(&pod("cpu-a", "3", 0)).await;
    ebb.lab.apply(&pod("cpu-b", "3", 0)).await;
    ebb.lab.apply(&pod("cpu-c", "3", 0)).await;
    ebb.wait_until("the other group to grow", SOON, async |ebb| ebb.lab.group("cpu-workers").await.desired == 3).await;
    let events: Api<Event> = Api::default_namespaced(ebb.client.clone());
    ebb.wait_until("the pod's owner to be told", SOON, async |_| {
        let of_pod = ListParams::default().fields("involvedObject.name=gpu-a");
        let events = events.list(&of_pod).await.unwrap();
        let told = |event: &Event| {
            let message = event.message.as_deref().unwrap_or_default();
            message.contains("forgotten: not known to the Auto Scaling API")
        };
        events.items.iter().any(told)
    })
    .await;

    let status = ebb.ask(&["status"]);
    println!("{status}");
    assert!(status.contains("The coordinator leads, and its watches are live"), "{status}");
    assert!(status.contains("default/gpu-a") && status.contains("raises cpu-workers from 2 to 3"), "{status}");
    let explained = ebb.ask(&["explain", "pod", "gpu-a"]);
    println!("{explained}");
    assert!(explained.contains("is there an Auto Scaling group forgotten"), "{explained}");
    assert!(explained.contains("leaves pod default/gpu-a waiting"), "{explained}");
    let group: serde_json::Value =
        serde_json::from_str(&ebb.ask(&["explain", "group", "cpu-workers", "--output", "json"])).unwrap();
    assert_eq!(group["group"]["desired"], 3);
    assert_eq!(group["decisions"][0]["reason"], "PodsPending");
    let node = group["ready"][0].as_str().unwrap();
    let explained = ebb.ask(&["explain", "node", node]);
    println!("{explained}");
    assert!(explained.contains(&format!("Node {node} of group cpu-workers")), "{explained}");
    assert!(explained.contains(" stays  "), "{explained}");
}

#[tokio::test]
async fn a_report_is_taken_only_from_its_own_nodes_agent() {
    let mut ebb = installed().await;
    let config = ebb.config().await;
    ebb.start_coordinator(&config, &[]).await;
    ebb.wait_until("the coordinator to lead", SOON, async |ebb| {
        ebb.ca().await.is_some()
            && ebb.agent_pods().await.len() == 2
            && ebb.metrics().await.contains("ebb_coordinator_leading 1")
    })
    .await;
    let pods = ebb.agent_pods().await;
    let token = ebb.reports_token(&pods[0]).await;
    let own = report_of(&ebb, &pods[0]).await;
    let foreign = report_of(&ebb, &pods[1]).await;
    let former = v1::Report { node_uid: "00000000-0000-0000-0000-000000000000".into(), ..own.clone() };
    let malformed = v1::Report { class: None, ..own.clone() };

    assert_eq!(send(&ebb, &token, own.clone()).await, Ok(()));
    assert_eq!(send(&ebb, &token, foreign).await, Err(Code::PermissionDenied));
    assert_eq!(send(&ebb, &token, former).await, Err(Code::PermissionDenied));
    assert_eq!(send(&ebb, &token, malformed).await, Err(Code::InvalidArgument));
    assert_eq!(send(&ebb, "no-token", own.clone()).await, Err(Code::Unauthenticated));
    // Of the right ServiceAccount but bound to no pod; and for another audience.
    let unbound = ebb.lab.service_account_token("ebb", "ebb-agent", ebb_proto::TOKEN_AUDIENCE, None).await;
    assert_eq!(send(&ebb, &unbound, own.clone()).await, Err(Code::PermissionDenied));
    let for_api = ebb.lab.service_account_token("ebb", "ebb-agent", Lab::API_AUDIENCE, Some(&pods[0])).await;
    assert_eq!(send(&ebb, &for_api, own.clone()).await, Err(Code::Unauthenticated));
    let other = ebb.lab.service_account_token("ebb", "ebb-coordinator", ebb_proto::TOKEN_AUDIENCE, None).await;
    assert_eq!(send(&ebb, &other, own).await, Err(Code::PermissionDenied));
    let metrics = ebb.metrics().await;
    assert!(
        metrics.lines().any(|line| line.starts_with("ebb_coordinator_reports_total{") && line.contains("wrong_node")),
        "{metrics}"
    );
}

async fn report_of(ebb: &Ebb, pod: &Pod) -> v1::Report {
    let name = node_of(pod).unwrap();
    let node_uid = ebb.nodes().await.iter().find(|node| node.name_any() == name).unwrap().uid().unwrap();
    v1::Report {
        node: name,
        node_uid,
        agent_start_ms: 1,
        sequence: 1,
        sampled_at_ms: 2,
        class: Some(v1::report::Class::Idle(v1::Idle { since_ms: 1 })),
        utilization: Some(v1::Utilization::default()),
        gpu_waste_since_ms: None,
        usage: None,
    }
}

/// Opens a stream with this token, sends one report, and says how the coordinator took it.
async fn send(ebb: &Ebb, token: &str, report: v1::Report) -> Result<(), Code> {
    let ca = Certificate::from_pem(ebb.ca().await.unwrap());
    let tls = ClientTlsConfig::new().ca_certificate(ca).domain_name("ebb-coordinator.ebb.svc");
    let endpoint = Endpoint::from_shared(format!("https://127.0.0.1:{}", ebb.reports_port)).unwrap();
    let channel = endpoint.tls_config(tls).unwrap().connect().await.unwrap();
    let bearer: MetadataValue<_> = format!("Bearer {token}").parse().unwrap();
    let mut client = ReportsClient::with_interceptor(channel, move |mut request: tonic::Request<()>| {
        request.metadata_mut().insert("authorization", bearer.clone());
        Ok(request)
    });
    // The stream ends after the report, so that the coordinator's last word on it comes.
    let reply = client.stream(tokio_stream::once(report)).await.map_err(|status| status.code())?;
    let mut settings = reply.into_inner();
    while settings.message().await.map_err(|status| status.code())?.is_some() {}
    Ok(())
}
