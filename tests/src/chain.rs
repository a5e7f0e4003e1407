//! All levels at once: real Ray, its workers' pods made by a FAKE of KubeRay's operator, the real coordinator and agents, the
//! fake AWS and KWOK's nodes.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::{Ebb, FakeKuberay, Lab, LabOptions, Program, Ray, Rights, WorkerGroup, own_network};

const SOON: Duration = Duration::from_secs(180);

/// Who sets how many workers there are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Level1 {
    /// Ray's own autoscaler for KubeRay, in its second version. Ebb only reads.
    Ray,
    /// Ebb, as far as its configuration says.
    Ebb,
}

/// How a chain is made.
pub struct ChainOptions<'a> {
    pub level1: Level1,
    /// More of the cluster in the configuration of the coordinator, as YAML; `None`: it does not know of the cluster.
    pub ray: Option<&'a str>,
    pub flags: &'a [&'a str],
    /// From the launch of an instance to its Node.
    pub boot_delay: Duration,
}

/// A lab with a Ray cluster of no workers yet: three with CPUs and two with a GPU at most, of which each takes a node.
pub struct Chain {
    pub ebb: Ebb,
    pub ray: Ray,
    pub kuberay: FakeKuberay,
}

impl Chain {
    /// From here on this thread has a network of its own ([`own_network`]).
    pub async fn start(options: ChainOptions<'_>) -> Self {
        own_network();
        let groups = ["name=workers,type=m5.xlarge", "name=gpu-workers,type=g4dn.xlarge"].map(str::to_owned).to_vec();
        let lab = Lab::up(LabOptions { groups, boot_delay: options.boot_delay, ..LabOptions::default() }).await;
        let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
        lab.apply_file(deploy.join("manifests/ebb-ray.yaml")).await;
        let mut ebb = Ebb::installed(lab, Rights::Impersonation).await;
        // The manifests' own coordinator would wait for a node as well.
        let deployment = ["--namespace", "ebb", "delete", "deployment", "ebb-coordinator", "--cascade=foreground"];
        ebb.lab.kubectl(&deployment).await;
        ebb.lab.apply_file(deploy.join("ray/rayworkergroups.yaml")).await;
        ebb.lab.kubectl(&["wait", "--for=condition=Established", "crd/rayworkergroups.ebb.dev"]).await;
        let kuberay = FakeKuberay::install(&ebb.lab).await;
        let worker_groups = [
            WorkerGroup { name: "cpu", replicas: 0, max: 3, requests: json!({"cpu": "3"}) },
            WorkerGroup { name: "gpu", replicas: 0, max: 2, requests: json!({"cpu": "1", "nvidia.com/gpu": "1"}) },
        ];
        let in_tree = options.level1 == Level1::Ray;
        kuberay.create(&ebb.lab, "train", in_tree, &worker_groups).await;
        let ray =
            if in_tree { Ray::start_autoscaled(&ebb.lab, "train").await } else { Ray::start(&ebb.lab, None).await };
        let cluster = options.ray.map(|more| {
            format!(
                "ray:
  clusters:
  - name: train
    namespace: default
    address: {}
{more}",
                ray.address()
            )
        });
        let groups = "groups:
- {name: workers, min: 0, max: 6, instanceType: m5.xlarge}
- {name: gpu-workers, min: 0, max: 6, instanceType: g4dn.xlarge}
idle: {window: 2s}
";
        let config = format!("{groups}{}", cluster.unwrap_or_default());
        ebb.start_coordinator(&config, options.flags).await;
        let mut chain = Self { ebb, ray, kuberay };
        chain
            .wait_until("the coordinator to lead", async |ebb, _| {
                ebb.listens().await && ebb.metrics().await.contains("ebb_coordinator_synced 1")
            })
            .await;
        chain
    }

    /// Waits for a condition while pods, agents and workers come and go.
    pub async fn wait_until(&mut self, what: &str, mut condition: impl AsyncFnMut(&Ebb, &FakeKuberay) -> bool) {
        let Self { ebb, ray, kuberay } = self;
        ebb.wait_until(what, SOON, async |ebb| {
            kuberay.step(&ebb.lab, ray).await;
            condition(ebb, kuberay).await
        })
        .await;
    }

    /// Of the workers with CPUs, and with GPUs.
    pub async fn wait_until_replicas(&mut self, replicas: [u64; 2]) {
        self.wait_until(&format!("{replicas:?} replicas"), async |_, kuberay| {
            [kuberay.group("train", "cpu").await.0, kuberay.group("train", "gpu").await.0] == replicas
        })
        .await;
    }

    /// Waits for what `ray status` says of nodes that are pending, and gives it back.
    pub async fn wait_until_pending(&mut self, holds: impl Fn(&str) -> bool) -> String {
        let Self { ebb, ray, kuberay } = self;
        let mut pending = String::new();
        ebb.wait_until("other pending nodes in `ray status`", SOON, async |ebb| {
            kuberay.step(&ebb.lab, ray).await;
            let status = ray.status(&ebb.lab).await;
            let (_, rest) = status.split_once("Pending:").unwrap_or_default();
            pending = rest.split("Recent failures:").next().unwrap_or_default().trim_end().to_owned();
            holds(&pending)
        })
        .await;
        pending
    }

    /// A program of the tests' that runs in Ray. What it prints is the log of this name.
    pub fn program(&self, log: &str, file: &str, words: &[&str]) -> Program {
        self.ray.run(&self.ebb.lab, log, &Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(file), words)
    }

    /// The last number that a program printed under this name.
    pub fn printed(&self, log: &str, what: &str) -> Option<f64> {
        let log = self.ebb.lab.log(log);
        let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.filter_map(|line| line[what].as_f64()).next_back()
    }
}
