//! An Auto Scaling group terminates an instance by itself: its node is drained while the lifecycle hook is kept waiting.
//! Real coordinator, agents, API server; our fake AWS, whose hooks time out as AWS's do.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::time::Duration;

use ebb_core::drain;
use ebb_core::intent::Trigger;
use ebb_tests::{Ebb, Lab, LabOptions, node_of};
use kube::ResourceExt;
use serde_json::json;

const SOON: Duration = Duration::from_secs(120);
/// The shortest that a hook can have.
const HOOK_SECONDS: i32 = 30;

#[tokio::test]
async fn a_group_that_terminates_an_instance_waits_until_its_node_is_drained() {
    let groups = vec!["name=cpu-workers,min=0,max=3,desired=1".to_owned()];
    let mut ebb = Ebb::install(Lab::up(LabOptions { groups, ..LabOptions::default() }).await).await;
    let deployment = ["--namespace", "ebb", "delete", "deployment", "ebb-coordinator", "--cascade=foreground"];
    ebb.lab.kubectl(&deployment).await;
    let aws = ebb.lab.autoscaling();
    let hook = aws.put_lifecycle_hook().auto_scaling_group_name("cpu-workers").lifecycle_hook_name("ebb");
    let hook = hook.lifecycle_transition("autoscaling:EC2_INSTANCE_TERMINATING").heartbeat_timeout(HOOK_SECONDS);
    hook.default_result("ABANDON").send().await.unwrap();
    let config = "groups: [{name: cpu-workers, min: 0, max: 3, instanceType: m5.xlarge, lifecycleHook: ebb}]";
    ebb.start_coordinator(config, &[]).await;
    ebb.wait_until("the agent to report", SOON, async |ebb| ebb.metrics().await.contains("ebb_coordinator_streams 1"))
        .await;

    // A pod that its budget keeps for longer than the hook waits by itself.
    let work = json!({
        "apiVersion": "v1", "kind": "List", "items": [
            {
                "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "work", "namespace": "default"},
                "spec": {"replicas": 1, "selector": {"matchLabels": {"app": "work"}}, "template": {
                    "metadata": {"labels": {"app": "work"}},
                    "spec": {"containers": [{"name": "work", "image": "work"}]},
                }},
            },
            {
                "apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "work", "namespace": "default"},
                "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "work"}}},
            },
        ],
    });
    ebb.lab.apply(&work.to_string()).await;
    let lab = &ebb.lab;
    let first = lab.group("cpu-workers").await.instances.remove(0);
    lab.wait_until("the pod to run", SOON, async || works_on(lab).await == Some(first.node.clone())).await;

    let terminate = aws.terminate_instance_in_auto_scaling_group().instance_id(&first.id);
    terminate.should_decrement_desired_capacity(false).send().await.unwrap();
    ebb.wait_until("the node to be drained", SOON, async |ebb| {
        let node = ebb.nodes().await.into_iter().find(|node| node.name_any() == first.node).unwrap();
        let node = drain::Node::from(&node);
        node.draining && node.intent.is_some_and(|intent| intent.by == Trigger::LifecycleHook)
    })
    .await;
    // For longer than the hook would wait without us.
    ebb.wait_until("heartbeats for longer than the hook's timeout", SOON, async |ebb| {
        let beats = ebb.lab.aws_calls("RecordLifecycleActionHeartbeat");
        let span = beats.first().zip(beats.last()).map_or(0, |(first, last)| last.at_ms - first.at_ms);
        span > u64::try_from(HOOK_SECONDS).unwrap() * 1000
    })
    .await;
    let state = async |ebb: &Ebb| {
        let instances = ebb.lab.group("cpu-workers").await.instances;
        instances.into_iter().find(|instance| instance.id == first.id).map(|instance| instance.state)
    };
    assert_eq!(state(&ebb).await.as_deref(), Some("Terminating:Wait"));
    assert_eq!(works_on(&ebb.lab).await, Some(first.node.clone()));

    ebb.lab.kubectl(&["delete", "poddisruptionbudget", "work"]).await;
    ebb.wait_until("the instance to go", SOON, async |ebb| state(ebb).await.is_none()).await;
    let completed = ebb.lab.aws_calls("CompleteLifecycleAction");
    let completed: Vec<_> = completed.iter().map(|call| &call.params["LifecycleActionResult"]).collect();
    assert_eq!(completed, ["CONTINUE"]);
    // Its group has made another in the meantime, and the pod is there.
    ebb.wait_until("the pod to run elsewhere", SOON, async |ebb| {
        works_on(&ebb.lab).await.is_some_and(|node| node != first.node)
    })
    .await;
    assert_eq!(ebb.lab.aws_calls("SetDesiredCapacity").len(), 0);
}

/// The node on which the one pod of the deployment runs.
async fn works_on(lab: &Lab) -> Option<String> {
    use k8s_openapi::api::core::v1::Pod;
    let pods = kube::Api::<Pod>::default_namespaced(lab.client().await);
    let pods = pods.list(&kube::api::ListParams::default().labels("app=work")).await.unwrap().items;
    let runs = |pod: &&Pod| pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running");
    pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).find(runs).and_then(node_of)
}
