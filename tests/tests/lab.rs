//! Facts about the lab itself, on which every other end-to-end test relies.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use aws_sdk_autoscaling::error::ProvideErrorMetadata;
use ebb_tests::{Lab, LabOptions};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api;
use kube::api::PostParams;
use serde_json::json;

const SOON: Duration = Duration::from_secs(60);

const POD: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: work, namespace: default}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: work, image: work, resources: {requests: {cpu: "1"}}}]
"#;

#[tokio::test]
async fn labs_side_by_side_run_a_pod_each() {
    let (one, two) = tokio::join!(Lab::up(groups(&["name=cpu,desired=1"])), Lab::up(groups(&["name=cpu,desired=1"])));
    assert_ne!(one.server, two.server);
    assert_ne!(one.aws_endpoint, two.aws_endpoint);
    for lab in [&one, &two] {
        lab.apply(POD).await;
        wait_for_work(lab).await;
    }
}

#[tokio::test]
async fn launched_instance_becomes_a_node_that_the_scheduler_uses() {
    let group = "name=gpu,type=g4dn.xlarge,max=2,label=pool=gpu,taint=nvidia.com/gpu=:NoSchedule,zone=b";
    let lab = Lab::up(LabOptions { boot_delay: Duration::from_secs(1), ..groups(&[group]) }).await;
    let nodes: Api<Node> = Api::all(lab.client().await);
    lab.apply(
        &POD.replace(r#"requests: {cpu: "1"}"#, r#"requests: {cpu: "1"}, limits: {nvidia.com/gpu: 1}"#)
            .replace("spec:", "spec:\n  tolerations: [{key: nvidia.com/gpu, operator: Exists}]"),
    )
    .await;
    assert!(nodes.list(&Default::default()).await.unwrap().items.is_empty());

    lab.set_desired("gpu", 1).await;
    wait_for_work(&lab).await;

    let instance = lab.group("gpu").await.instances.remove(0);
    let node = nodes.get(&instance.node).await.unwrap();
    let spec = node.spec.unwrap();
    assert_eq!(spec.provider_id, Some(format!("aws:///us-west-2b/{}", instance.id)));
    assert_eq!(spec.taints.unwrap()[0].key, "nvidia.com/gpu");
    let labels = node.metadata.labels.unwrap();
    assert_eq!(labels["pool"], "gpu");
    assert_eq!(labels["topology.kubernetes.io/zone"], "us-west-2b");
    assert_eq!(node.status.unwrap().allocatable.unwrap()["nvidia.com/gpu"].0, "1");

    // The instance goes, and its Node with it.
    let terminate = [("InstanceId", instance.id.as_str()), ("ShouldDecrementDesiredCapacity", "true")];
    assert_eq!(lab.aws("TerminateInstanceInAutoScalingGroup", &terminate).await.0, 200);
    lab.wait_until("the node to be gone", SOON, async || nodes.get_opt(&instance.node).await.unwrap().is_none()).await;
    assert_eq!(lab.group("gpu").await.desired, 0);
}

#[tokio::test]
async fn aws_answers_as_the_sdk_expects() {
    let lab = Lab::up(groups(&["name=cpu,min=1,max=2"])).await;
    let aws = lab.autoscaling();
    let set = async |desired| {
        let reply = aws.set_desired_capacity().auto_scaling_group_name("cpu").desired_capacity(desired).send().await;
        reply.map_err(|error| error.code().unwrap_or("no code").to_owned()).err()
    };
    let terminate = async |id: &str| {
        let call = aws.terminate_instance_in_auto_scaling_group().instance_id(id);
        let reply = call.should_decrement_desired_capacity(true).send().await;
        reply.map_err(|error| error.code().unwrap_or("no code").to_owned()).err()
    };

    assert_eq!(set(3).await.as_deref(), Some("ValidationError"), "above max");
    assert_eq!(set(0).await.as_deref(), Some("ValidationError"), "below min");
    assert_eq!(terminate("i-0123456789abcdef0").await.as_deref(), Some("ValidationError"), "unknown instance");
    let last = lab.group("cpu").await.instances.remove(0);
    assert_eq!(terminate(&last.id).await.as_deref(), Some("ValidationError"), "below min by termination");

    let throttled = json!({"action": "SetDesiredCapacity", "code": "Throttling", "status": 400, "times": 2});
    lab.set_faults(&json!([throttled])).await;
    assert_eq!(set(2).await.as_deref(), Some("Throttling"));
    assert_eq!(set(2).await.as_deref(), Some("Throttling"));
    lab.set_faults(&json!([{"action": "SetDesiredCapacity", "delay_ms": 300}])).await;
    assert_eq!(set(2).await, None);

    let calls = lab.aws_calls("SetDesiredCapacity");
    assert_eq!(calls.iter().map(|call| call.status).collect::<Vec<_>>(), [400, 400, 400, 400, 200]);
    assert_eq!(calls.iter().map(|call| call.fault).collect::<Vec<_>>(), [false, false, true, true, true]);
    assert_eq!(calls[4].params["DesiredCapacity"], "2");
    assert!(calls[4].took_ms >= 300);
}

#[tokio::test]
async fn launch_without_capacity_is_told_and_tried_again() {
    let lab = Lab::up(groups(&["name=gpu"])).await;
    let aws = lab.autoscaling();
    lab.set_faults(&json!([{"action": "Launch", "group": "gpu", "code": "InsufficientInstanceCapacity"}])).await;
    lab.set_desired("gpu", 1).await;

    let group = lab.group("gpu").await;
    assert_eq!((group.desired, group.instances.len()), (1, 0));
    let told = aws.describe_scaling_activities().auto_scaling_group_name("gpu").send().await.unwrap();
    let activity = &told.activities()[0];
    assert_eq!(activity.status_code().map(|code| code.as_str()), Some("Failed"));
    assert!(activity.status_message().unwrap().starts_with("We currently do not have sufficient m5.xlarge capacity"));

    lab.set_faults(&json!([])).await;
    lab.wait_until("the launch", SOON, async || lab.group("gpu").await.instances.len() == 1).await;
}

#[tokio::test]
async fn lost_instance_is_replaced_where_there_is_capacity_by_one_that_may_never_be_a_node() {
    let lab = Lab::up(groups(&["name=cpu,zone=a,zone=b"])).await;
    let nodes: Api<Node> = Api::all(lab.client().await);
    let short = json!({"action": "Launch", "zone": "us-west-2a", "code": "InsufficientInstanceCapacity"});
    lab.set_faults(&json!([short])).await;
    lab.set_desired("cpu", 1).await;
    let first = lab.group("cpu").await.instances.remove(0);
    assert_eq!(first.zone, "us-west-2b");
    let there = async |name: &str| nodes.get_opt(name).await.unwrap().is_some();
    lab.wait_until("its node", SOON, async || there(&first.node).await).await;

    // The next one comes up as far as AWS can see; its node does not.
    lab.set_faults(&json!([{"action": "Boot", "group": "cpu", "times": 1}])).await;
    lab.lose_instance(&first.id).await;
    let second = lab.group("cpu").await.instances.remove(0);
    assert_eq!((second.id == first.id, second.state.as_str()), (false, "InService"));
    lab.wait_until("the node of what was lost to go", SOON, async || !there(&first.node).await).await;

    lab.set_timing(&json!({"launch_ms": 600_000})).await;
    lab.lose_instance(&second.id).await;
    let third = lab.group("cpu").await.instances.remove(0);
    assert_eq!(third.state, "Pending", "it takes ten minutes to InService");
    lab.wait_until("the node of the third", SOON, async || there(&third.node).await).await;
    assert!(!there(&second.node).await);
}

#[tokio::test]
async fn termination_hook_holds_an_instance_until_it_is_completed() {
    let lab = Lab::up(groups(&["name=cpu,desired=1"])).await;
    let aws = lab.autoscaling();
    let hook = aws.put_lifecycle_hook().auto_scaling_group_name("cpu").lifecycle_hook_name("drain");
    hook.lifecycle_transition("autoscaling:EC2_INSTANCE_TERMINATING").heartbeat_timeout(60).send().await.unwrap();
    let id = lab.group("cpu").await.instances.remove(0).id;
    let terminate = aws.terminate_instance_in_auto_scaling_group().instance_id(&id);
    terminate.should_decrement_desired_capacity(true).send().await.unwrap();

    let group = lab.group("cpu").await;
    assert_eq!((group.desired, group.instances[0].state.as_str()), (0, "Terminating:Wait"));
    let heartbeat = aws.record_lifecycle_action_heartbeat().auto_scaling_group_name("cpu");
    heartbeat.lifecycle_hook_name("drain").instance_id(&id).send().await.unwrap();
    let complete = aws.complete_lifecycle_action().auto_scaling_group_name("cpu").lifecycle_hook_name("drain");
    let complete = complete.lifecycle_action_result("CONTINUE").instance_id(&id);
    complete.clone().send().await.unwrap();
    assert!(lab.group("cpu").await.instances.is_empty());
    assert_eq!(complete.send().await.unwrap_err().code(), Some("ValidationError"), "nothing is held any more");
}

#[tokio::test]
async fn synchronous_launch_says_what_it_got() {
    let lab = Lab::up(groups(&["name=gpu"])).await;
    let aws = lab.autoscaling();
    let short = json!({"action": "Launch", "code": "InsufficientInstanceCapacity", "times": 1});
    lab.set_faults(&json!([short])).await;
    let launch = aws.launch_instances().auto_scaling_group_name("gpu").requested_capacity(3).client_token("one");

    let first = launch.clone().send().await.unwrap();
    assert_eq!(first.instances()[0].instance_ids().len(), 2);
    assert_eq!(first.errors()[0].error_code(), Some("InsufficientInstanceCapacity"));
    let again = launch.send().await.unwrap();
    assert_eq!(again.instances(), first.instances(), "the same token launches nothing more");
    let group = lab.group("gpu").await;
    assert_eq!((group.desired, group.instances.len()), (2, 2));
}

#[tokio::test]
async fn token_bound_to_a_pod_names_its_node() {
    let lab = Lab::up(groups(&["name=cpu,desired=1"])).await;
    lab.apply(POD).await;
    wait_for_work(&lab).await;
    let client = lab.client().await;
    let pod = Api::<Pod>::namespaced(client.clone(), "default").get("work").await.unwrap();
    let token = lab.service_account_token("default", "default", "ebb", Some(&pod)).await;

    let spec = TokenReviewSpec { audiences: Some(vec!["ebb".into()]), token };
    let review = TokenReview { spec, ..Default::default() };
    let review = Api::<TokenReview>::all(client).create(&PostParams::default(), &review).await.unwrap();
    let user = review.status.unwrap().user.unwrap();
    let node = &user.extra.unwrap()["authentication.kubernetes.io/node-name"];
    assert_eq!(*node, [pod.spec.unwrap().node_name.unwrap()]);

    let token = lab.service_account_token("default", "default", Lab::API_AUDIENCE, None).await;
    let bot = ebb_tests::client(&lab.write_kubeconfig("bot", &token)).await;
    let refused = Api::<Node>::all(bot).list(&Default::default()).await.unwrap_err();
    assert!(refused.to_string().contains("system:serviceaccount:default:default"), "{refused}");
}

#[tokio::test]
async fn spawned_program_has_the_labs_environment_and_ends_with_its_handle() {
    let lab = Lab::up(groups(&[])).await;
    let mut command = lab.command("/bin/sh");
    command.args(["-c", "echo $KUBECONFIG $AWS_ENDPOINT_URL; exec sleep 60"]);
    let mut program = lab.spawn("printer", command);
    let printed = format!("{} {}\n", lab.kubeconfig.display(), lab.aws_endpoint);
    lab.wait_until("its words", SOON, async || program.log() == printed).await;
    assert!(program.is_running());
    assert!(lab.diagnosis().await.contains(&printed));

    assert_eq!(program.terminate(SOON).await.signal(), Some(15));
    let program = lab.spawn("sleeper", {
        let mut command = lab.command("/bin/sleep");
        command.arg("60");
        command
    });
    let process = std::path::PathBuf::from(format!("/proc/{}", program.id()));
    assert!(process.exists());
    drop(program);
    assert!(!process.exists());
}

#[tokio::test]
async fn pod_takes_the_time_that_its_annotations_name() {
    let lab = Lab::up(groups(&["name=cpu,desired=1"])).await;
    let slow = r#"name: work, namespace: default, annotations: {
  pod-ready.stage.kwok.x-k8s.io/delay: 2s, pod-delete.stage.kwok.x-k8s.io/delay: 3s}"#;
    let pod = POD.replace("name: work, namespace: default", slow);
    let pods: Api<Pod> = Api::namespaced(lab.client().await, "default");
    let began = Instant::now();
    lab.apply(&pod.replace("terminationGracePeriodSeconds: 0", "terminationGracePeriodSeconds: 30")).await;
    wait_for_work(&lab).await;
    assert!(began.elapsed() >= Duration::from_secs(2));

    let began = Instant::now();
    pods.delete("work", &Default::default()).await.unwrap();
    lab.wait_until("the pod to go", SOON, async || pods.get_opt("work").await.unwrap().is_none()).await;
    assert!((3..30).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
}

#[tokio::test]
async fn down_leaves_no_process_and_no_data() {
    let lab = Lab::up(groups(&[])).await;
    let dir = lab.dir.clone();
    assert_eq!(processes_of(&dir), 6);
    drop(lab);
    assert_eq!(processes_of(&dir), 0);
    assert!(!dir.exists());
}

fn groups(groups: &[&str]) -> LabOptions {
    LabOptions { groups: groups.iter().map(ToString::to_string).collect(), ..Default::default() }
}

async fn wait_for_work(lab: &Lab) {
    let pods: Api<Pod> = Api::namespaced(lab.client().await, "default");
    lab.wait_until("the pod to run", SOON, async || {
        pods.get("work").await.unwrap().status.unwrap().phase.as_deref() == Some("Running")
    })
    .await;
}

/// Each process of a lab has the lab's folder among its arguments.
fn processes_of(dir: &std::path::Path) -> usize {
    let folder = dir.to_str().unwrap();
    let processes = std::fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path().join("cmdline"));
    processes.filter_map(|path| std::fs::read_to_string(path).ok()).filter(|line| line.contains(folder)).count()
}
