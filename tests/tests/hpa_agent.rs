//! What metrics-server's own end-to-end tests expect of `metrics.k8s.io`, of the real agent and the real coordinator: how much a pod
//! uses, by which containers, within a minute. The test is the kubelet: it names containers, and moves the counters of
//! their cgroups, which are files. Nodes and pods are KWOK's.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use ebb_tests::hpa::{lab, serve};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(120);
/// metrics-server's tests wait no longer.
const SHOWN_WITHIN: Duration = Duration::from_secs(60);
const CONFIG: &str = "groups: [{name: cpu, min: 0, max: 1, instanceType: m5.12xlarge}]";
/// In thousandths of a CPU, and MiB: what the consumers of those tests use.
const MILLICORES: u64 = 50;
const MEBIBYTES: u64 = 50;

/// One pod: its containers, those before them, and whether these go on (sidecars).
struct Shape {
    name: &'static str,
    init: &'static [&'static str],
    init_goes_on: bool,
    containers: &'static [&'static str],
}

const SHAPES: [Shape; 4] = [
    Shape { name: "one", init: &[], init_goes_on: false, containers: &["one"] },
    Shape { name: "with-init", init: &["setup"], init_goes_on: false, containers: &["main"] },
    Shape { name: "two", init: &[], init_goes_on: false, containers: &["first", "second"] },
    Shape { name: "with-sidecar", init: &["sidecar"], init_goes_on: true, containers: &["main"] },
];

impl Shape {
    fn pod(&self) -> Value {
        let container = |name: &&str| json!({"name": name, "image": "work"});
        let init = |name: &&str| {
            let mut container = container(name);
            if self.init_goes_on {
                container["restartPolicy"] = "Always".into();
            }
            container
        };
        json!({
            "metadata": {"name": self.name, "namespace": "default"},
            "spec": {
                "initContainers": self.init.iter().map(init).collect::<Vec<_>>(),
                "containers": self.containers.iter().map(container).collect::<Vec<_>>(),
            },
        })
    }

    /// Those that the API is to show.
    fn running(&self) -> Vec<&'static str> {
        let mut running = self.containers.to_vec();
        running.extend(self.init.iter().filter(|_| self.init_goes_on));
        running.sort_unstable();
        running
    }

    fn id(&self, container: &str) -> String {
        // 64 digits, as runtimes have them.
        format!(
            "{:0>64}",
            self.name.bytes().chain(container.bytes()).map(|byte| format!("{byte:02x}")).collect::<String>()
        )
    }

    /// As the kubelet tells it.
    fn status(&self, started: &str) -> Value {
        let status = |name: &str, runs: bool| {
            let state = match runs {
                true => json!({"running": {"startedAt": started}}),
                false => json!({"terminated": {"exitCode": 0, "startedAt": started, "finishedAt": started}}),
            };
            json!({
                "name": name, "image": "work", "imageID": "work", "ready": runs, "restartCount": 0, "state": state,
                "containerID": format!("containerd://{}", self.id(name)),
            })
        };
        let all: Vec<_> = self.containers.iter().map(|name| status(name, true)).collect();
        let init: Vec<_> = self.init.iter().map(|name| status(name, self.init_goes_on)).collect();
        json!({"status": {"containerStatuses": all, "initContainerStatuses": init}})
    }
}

/// Cgroups of pods, as files.
struct Cgroups {
    began: Instant,
    cpu: Vec<File>,
}

impl Cgroups {
    fn of(root: &Path, pods: &[(&Shape, String)]) -> Self {
        fs::create_dir_all(root).unwrap();
        fs::write(root.join("cgroup.controllers"), "cpu memory\n").unwrap();
        let mut cpu = Vec::new();
        for (shape, uid) in pods {
            let pod = root.join("kubepods/besteffort").join(format!("pod{uid}"));
            // The sandbox is nobody's container.
            let sandbox = "f".repeat(64);
            for id in shape.running().iter().map(|name| shape.id(name)).chain([sandbox]) {
                let folder = pod.join(id);
                fs::create_dir_all(&folder).unwrap();
                fs::write(folder.join("memory.current"), format!("{}\n", (MEBIBYTES + 7) << 20)).unwrap();
                fs::write(folder.join("memory.stat"), format!("anon 0\ninactive_file {}\n", 7 << 20)).unwrap();
                cpu.push(File::create(folder.join("cpu.stat")).unwrap());
            }
        }
        let cgroups = Self { began: Instant::now(), cpu };
        cgroups.advance();
        cgroups
    }

    /// In place, and always as long: who reads meanwhile reads one or the other.
    fn advance(&self) {
        let microseconds = self.began.elapsed().as_micros() as u64 * MILLICORES / 1000;
        for file in &self.cpu {
            file.write_all_at(format!("usage_usec {microseconds:020}\n").as_bytes(), 0).unwrap();
        }
    }
}

#[tokio::test]
async fn pods_are_shown_with_what_their_running_containers_use_within_a_minute() {
    let (mut ebb, port) = lab(&[]).await;
    let root = ebb.lab.dir.join("cgroup");
    let pods: Api<Pod> = Api::default_namespaced(ebb.client.clone());
    for shape in &SHAPES {
        pods.create(&PostParams::default(), &serde_json::from_value(shape.pod()).unwrap()).await.unwrap();
    }
    let mut known = Vec::new();
    ebb.lab
        .wait_until("the pods to run", SOON, async || {
            known.clear();
            for shape in &SHAPES {
                let pod = pods.get(shape.name).await.unwrap();
                if pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running") {
                    known.push((shape, pod.uid().unwrap()));
                }
            }
            known.len() == SHAPES.len()
        })
        .await;
    let started = k8s_openapi::jiff::Timestamp::now().to_string();
    for shape in &SHAPES {
        let status = Patch::Merge(shape.status(&started));
        pods.patch_status(shape.name, &PatchParams::default(), &status).await.unwrap();
    }
    let cgroups = Cgroups::of(&root, &known);
    tokio::spawn(async move {
        loop {
            cgroups.advance();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    ebb.agent_flags = vec![format!("--cgroup-root={}", root.display()), "--pod-interval=2s".into()];
    serve(&mut ebb, CONFIG, port).await;
    ebb.wait_until("the agent to run", SOON, async |ebb| ebb.agents() == 1).await;

    let began = Instant::now();
    let lab = &ebb.lab;
    let get = async |path: &str| -> Option<Value> {
        let path = format!("/apis/metrics.k8s.io/v1beta1{path}");
        serde_json::from_str(&lab.try_kubectl(&["get", "--raw", &path]).await.ok()?).ok()
    };
    for shape in &SHAPES {
        let path = format!("/namespaces/default/pods/{}", shape.name);
        let mut shown = None;
        lab.wait_until(shape.name, SHOWN_WITHIN, async || {
            shown = get(&path).await;
            shown.is_some()
        })
        .await;
        let shown = shown.unwrap();
        let containers = shown["containers"].as_array().unwrap();
        let names: Vec<_> = containers.iter().map(|container| container["name"].as_str().unwrap()).collect();
        assert_eq!(names, shape.running(), "{shown}");
        for container in containers {
            let cpu = container["usage"]["cpu"].as_str().unwrap();
            let nanocores: u64 = cpu.strip_suffix('n').unwrap_or_else(|| panic!("{cpu}")).parse().unwrap();
            assert!((40_000_000..=60_000_000).contains(&nanocores), "{shown}");
            assert_eq!(container["usage"]["memory"], format!("{MEBIBYTES}Mi"), "{shown}");
        }
    }
    println!("all pods are shown {:.1} s after the agent began", began.elapsed().as_secs_f64());
    // All nodes, and more than one pod.
    for node in ebb.nodes().await {
        assert!(get(&format!("/nodes/{}", node.name_any())).await.is_some(), "{}", node.name_any());
    }
    assert_eq!(get("/pods").await.unwrap()["items"].as_array().unwrap().len(), SHAPES.len());
}
