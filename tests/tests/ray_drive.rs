//! A Ray cluster whose workers Ebb sets: real Ray, the real coordinator and agents, a real API server; fakes are AWS, the
//! nodes' kubelets (KWOK), and KubeRay's operator.

use std::time::Duration;

use ebb_tests::{Chain, ChainOptions, Ebb, Level1};
use serde_json::json;

async fn chain(ray: &str, boot_delay: Duration) -> Chain {
    let flags = &["--unneeded-for", "5s", "--gpu-unneeded-for", "5s"];
    Chain::start(ChainOptions { level1: Level1::Ebb, ray: Some(ray), flags, boot_delay }).await
}

#[tokio::test]
async fn a_burst_makes_workers_and_nodes_and_the_idle_go_by_name_with_their_nodes() {
    // Long enough for `ray status` to be asked meanwhile.
    let mut chain = chain("    drive: {idleTimeout: 8s}", Duration::from_secs(4)).await;
    let bursty = chain.program("bursty", "ray_bursty.py", &["6", "4", "2", "12"]);
    chain.wait_until_replicas([3, 0]).await;
    let pending = chain.wait_until_pending(|pending| pending.contains("train-cpu-worker-")).await;
    println!("ray status:{pending}");
    chain.wait_until("the tasks to be done", async |ebb, _| ebb.lab.log("bursty").contains("cpu_done")).await;
    // In the pause between its bursts those go that are idle for long enough; then others come, with GPUs.
    chain.wait_until("workers with GPUs", async |_, kuberay| kuberay.group("train", "gpu").await.0 == 2).await;
    chain.wait_until("the GPU tasks to be done", async |ebb, _| ebb.lab.log("bursty").contains("gpu_done")).await;
    drop(bursty);
    for burst in ["cpu", "gpu"] {
        let printed = |what: &str| chain.printed("bursty", &format!("{burst}_{what}")).unwrap();
        let took = printed("done") - printed("submitted");
        println!("{burst}: {took:.1} s after they were submitted all tasks were done, on {} workers", printed("nodes"));
    }
    chain.wait_until_replicas([0, 0]).await;
    chain
        .wait_until("all nodes to be gone", async |ebb, _| {
            let desired = [ebb.lab.group("workers").await.desired, ebb.lab.group("gpu-workers").await.desired];
            desired == [0, 0] && ebb.nodes().await.is_empty()
        })
        .await;
    let (replicas, delete) = chain.kuberay.group("train", "cpu").await;
    assert_eq!((replicas, delete), (0, vec![]), "nobody is named any more");
    chain.wait_until_pending(|pending| pending.contains("no pending nodes")).await;
    let log = chain.ebb.decisions().join("\n");
    println!("{log}");
    assert_eq!(chain.kuberay.seen.len(), 5, "no worker was made twice: {:?}", chain.kuberay.seen);
    let asked = chain.ebb.lab.aws_calls("SetDesiredCapacity");
    let most = |group: &str| {
        let of_group = asked.iter().filter(|call| call.params["AutoScalingGroupName"] == group);
        of_group.map(|call| call.params["DesiredCapacity"].parse::<u32>().unwrap()).max()
    };
    let both = [most("workers"), most("gpu-workers")];
    assert_eq!(both, [Some(3), Some(2)], "no node for workers that the RayCluster may not have");
    assert_eq!(log.matches("drain_ray_node").count(), 5, "each was asked for at its head");
}

#[tokio::test]
async fn what_scales_a_ray_worker_group_scales_the_cluster_and_takes_no_worker_that_works() {
    let mut chain = chain("", Duration::ZERO).await;
    let wish = json!({
        "apiVersion": "ebb.dev/v1alpha1", "kind": "RayWorkerGroup",
        "metadata": {"name": "train-cpu", "namespace": "default"},
        "spec": {"rayCluster": "train", "groupName": "cpu", "replicas": 1},
    });
    chain.ebb.lab.apply(&wish.to_string()).await;
    chain.wait_until_replicas([1, 0]).await;
    chain.ebb.lab.kubectl(&["scale", "rayworkergroup", "train-cpu", "--replicas=2"]).await;
    chain.wait_until_replicas([2, 0]).await;
    let status = async |ebb: &Ebb, path: &str| {
        let output = format!("--output=jsonpath={{{path}}}");
        ebb.lab.kubectl(&["get", "rayworkergroup", "train-cpu", &output]).await
    };
    chain
        .wait_until("its status to tell of two pods", async |ebb, _| status(ebb, ".status.replicas").await == "2")
        .await;
    assert_eq!(status(&chain.ebb, ".status.selector").await, "ray.io/cluster=train,ray.io/group=cpu");
    assert_eq!(status(&chain.ebb, ".status.conditions[0].reason").await, "Driven");

    // One long task: one works, one is idle.
    let _nodes = chain.program("nodes", "ray_nodes.py", &[]);
    chain
        .wait_until("two workers to have joined", async |ebb, _| ebb.lab.log("nodes").lines().next_back() == Some("2"))
        .await;
    let started = chain.ebb.lab.dir.join("started");
    let burst = chain.program("burst", "ray_burst.py", &["1", "3", "25", &started.to_string_lossy()]);
    chain.wait_until("the task to run", async |_, _| started.exists()).await;
    chain.ebb.lab.kubectl(&["scale", "rayworkergroup", "train-cpu", "--replicas=0"]).await;
    chain.wait_until_replicas([1, 0]).await;
    assert!(!chain.ebb.lab.log("burst").contains("done"), "the other works yet");
    chain.wait_until_replicas([0, 0]).await;
    chain.wait_until("the task to be told done", async |ebb, _| ebb.lab.log("burst").contains("done")).await;
    assert_eq!(std::fs::read_to_string(&started).unwrap(), "0\n", "it ran once");
    drop(burst);

    // Two writers: Ray's own autoscaler comes, and the group is let alone.
    let patch = r#"{"spec": {"enableInTreeAutoscaling": true}}"#;
    chain.ebb.lab.kubectl(&["patch", "raycluster", "train", "--type=merge", "--patch", patch]).await;
    chain.ebb.lab.kubectl(&["scale", "rayworkergroup", "train-cpu", "--replicas=3"]).await;
    chain
        .wait_until("the refusal", async |ebb, _| {
            status(ebb, ".status.conditions[0].reason").await == "InTreeAutoscaling"
        })
        .await;
    assert_eq!(chain.kuberay.group("train", "cpu").await.0, 0);

    // The RayCluster is deleted while the node of a worker that has a task is drained.
    let patch = r#"{"spec": {"enableInTreeAutoscaling": false}}"#;
    chain.ebb.lab.kubectl(&["patch", "raycluster", "train", "--type=merge", "--patch", patch]).await;
    chain.ebb.lab.kubectl(&["scale", "rayworkergroup", "train-cpu", "--replicas=1"]).await;
    chain.wait_until_replicas([1, 0]).await;
    let started = chain.ebb.lab.dir.join("started-for-long");
    let _long = chain.program("long", "ray_burst.py", &["1", "3", "600", &started.to_string_lossy()]);
    chain.wait_until("the long task to run", async |_, _| started.exists()).await;
    let worker = "--selector=ray.io/cluster=train,ray.io/group=cpu";
    let node = chain.ebb.lab.kubectl(&["get", "pods", worker, "--output=jsonpath={.items[0].spec.nodeName}"]).await;
    let condition = async |ebb: &Ebb, kind: &str, field: &str| {
        let output = format!("--output=jsonpath={{.status.conditions[?(@.type==\"{kind}\")].{field}}}");
        ebb.lab.kubectl(&["get", "node", &node, &output]).await
    };
    chain.ebb.lab.kubectl(&["annotate", "node", &node, "ebb.dev/drain=new kernel"]).await;
    chain
        .wait_until("Ray to be waited for", async |ebb, _| {
            condition(ebb, "DrainInProgress", "message").await.contains("has work or objects left")
        })
        .await;
    chain.ebb.lab.kubectl(&["delete", "raycluster", "train", "--wait=false"]).await;
    chain.ray.kill_head();
    chain
        .wait_until("the node to be drained", async |ebb, _| condition(ebb, "Drained", "status").await == "True")
        .await;
    assert_eq!(chain.ebb.lab.kubectl(&["get", "pods", worker, "--output=name"]).await, "");
    chain
        .wait_until("the worker group to say so", async |ebb, _| {
            status(ebb, ".status.conditions[0].reason").await == "NoCluster"
        })
        .await;
}
