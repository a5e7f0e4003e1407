//! A Ray cluster whose workers Ebb sets: real Ray, the real coordinator and agents, a real API server; fakes are AWS, the
//! nodes' kubelets (KWOK), and KubeRay's operator.

use std::path::Path;
use std::time::Duration;

use ebb_tests::{Ebb, FakeKuberay, Lab, LabOptions, Ray, Rights, WorkerGroup, own_network};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(180);

/// A lab with a Ray cluster of no workers yet, of which each takes a node.
struct Chain {
    ebb: Ebb,
    ray: Ray,
    kuberay: FakeKuberay,
}

impl Chain {
    /// `drive`: what the configuration says of it, as YAML.
    async fn start(drive: &str) -> Self {
        own_network();
        let groups = vec!["name=workers,type=m5.xlarge".to_owned()];
        let lab = Lab::up(LabOptions { groups, ..LabOptions::default() }).await;
        let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
        lab.apply_file(deploy.join("manifests/ebb-ray.yaml")).await;
        let mut ebb = Ebb::installed(lab, Rights::Impersonation).await;
        // The manifests' own coordinator would wait for a node as well.
        let deployment = ["--namespace", "ebb", "delete", "deployment", "ebb-coordinator", "--cascade=foreground"];
        ebb.lab.kubectl(&deployment).await;
        ebb.lab.apply_file(deploy.join("ray/rayworkergroups.yaml")).await;
        ebb.lab.kubectl(&["wait", "--for=condition=Established", "crd/rayworkergroups.ebb.dev"]).await;
        let kuberay = FakeKuberay::install(&ebb.lab).await;
        let group = WorkerGroup { name: "cpu", replicas: 0, max: 3, requests: json!({"cpu": "3"}) };
        kuberay.create(&ebb.lab, "train", &[group]).await;
        let ray = Ray::start(&ebb.lab, None).await;
        let config = format!(
            "groups:
- {{name: workers, min: 0, max: 6, instanceType: m5.xlarge}}
idle: {{window: 2s}}
ray:
  clusters:
  - name: train
    namespace: default
    address: {}
    workerGroups:
    - {{name: cpu, maxReplicas: 10, requests: {{cpu: 3}}, resources: {{CPU: 3}}}}
{drive}",
            ray.address()
        );
        ebb.start_coordinator(&config, &["--unneeded-for", "5s"]).await;
        Self { ebb, ray, kuberay }
    }

    async fn wait_until(&mut self, what: &str, mut condition: impl AsyncFnMut(&Ebb, &FakeKuberay) -> bool) {
        let Self { ebb, ray, kuberay } = self;
        ebb.wait_until(what, SOON, async |ebb| {
            kuberay.step(&ebb.lab, ray).await;
            condition(ebb, kuberay).await
        })
        .await;
    }

    async fn wait_until_replicas(&mut self, replicas: u64) {
        self.wait_until(&format!("{replicas} replicas"), async |_, kuberay| {
            kuberay.group("train", "cpu").await.0 == replicas
        })
        .await;
    }

    async fn wait_until_joined(&mut self, workers: usize) {
        self.wait_until(&format!("{workers} workers to have joined"), async |ebb, _| {
            let log = ebb.lab.log("nodes");
            log.lines().next_back().and_then(|line| line.parse().ok()) == Some(workers)
        })
        .await;
    }

    fn program(&self, log: &str, file: &str, words: &[&str]) -> ebb_tests::Program {
        self.ray.run(&self.ebb.lab, log, &Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(file), words)
    }

    fn printed(&self, log: &str, what: &str) -> Option<f64> {
        let log = self.ebb.lab.log(log);
        let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.filter_map(|line| line[what].as_f64()).next_back()
    }
}

#[tokio::test]
async fn a_burst_makes_workers_and_nodes_and_the_idle_go_by_name_with_their_nodes() {
    let mut chain = Chain::start("    drive: {idleTimeout: 8s}").await;
    let burst = chain.program("burst", "ray_burst.py", &["6", "3", "2"]);
    chain.wait_until_replicas(3).await;
    chain.wait_until("the tasks to be done", async |ebb, _| ebb.lab.log("burst").contains("done")).await;
    drop(burst);
    let submitted = chain.printed("burst", "submitted").unwrap();
    println!(
        "{:.1} s after they were submitted all tasks were done",
        chain.printed("burst", "done").unwrap() - submitted
    );
    chain.wait_until_replicas(0).await;
    chain
        .wait_until("all nodes to be gone", async |ebb, _| {
            ebb.lab.group("workers").await.desired == 0 && ebb.nodes().await.is_empty()
        })
        .await;
    let (replicas, delete) = chain.kuberay.group("train", "cpu").await;
    assert_eq!((replicas, delete), (0, vec![]), "nobody is named any more");
    let log = chain.ebb.decisions().join("\n");
    println!("{log}");
    assert_eq!(chain.kuberay.seen.len(), 3, "no worker was made twice: {:?}", chain.kuberay.seen);
    let asked = chain.ebb.lab.aws_calls("SetDesiredCapacity");
    let most = asked.iter().map(|call| call.params["DesiredCapacity"].parse::<u32>().unwrap()).max();
    assert_eq!(most, Some(3), "no node for workers that the RayCluster may not have");
    assert_eq!(log.matches("drain_ray_node").count(), 3, "each was asked for at its head");
}

#[tokio::test]
async fn what_scales_a_ray_worker_group_scales_the_cluster_and_takes_no_worker_that_works() {
    let mut chain = Chain::start("").await;
    let wish = json!({
        "apiVersion": "ebb.dev/v1alpha1", "kind": "RayWorkerGroup",
        "metadata": {"name": "train-cpu", "namespace": "default"},
        "spec": {"rayCluster": "train", "groupName": "cpu", "replicas": 1},
    });
    chain.ebb.lab.apply(&wish.to_string()).await;
    chain.wait_until_replicas(1).await;
    chain.ebb.lab.kubectl(&["scale", "rayworkergroup", "train-cpu", "--replicas=2"]).await;
    chain.wait_until_replicas(2).await;
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
    chain.wait_until_joined(2).await;
    let started = chain.ebb.lab.dir.join("started");
    let burst = chain.program("burst", "ray_burst.py", &["1", "3", "25", &started.to_string_lossy()]);
    chain.wait_until("the task to run", async |_, _| started.exists()).await;
    chain.ebb.lab.kubectl(&["scale", "rayworkergroup", "train-cpu", "--replicas=0"]).await;
    chain.wait_until_replicas(1).await;
    assert!(!chain.ebb.lab.log("burst").contains("done"), "the other works yet");
    chain.wait_until_replicas(0).await;
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
}
