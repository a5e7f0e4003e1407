//! `metrics.k8s.io` by the coordinator and by metrics-server, on one API server and under one load, which fake agents and
//! fake kubelets tell: how long until a change shows and the real HPA has acted on it, and the memory of each. Prints one
//! JSON document.
//!
//! The crowd are Nodes and bound Pods as objects only. The pods that are scaled run on a node of KWOK.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use axum::http::Request;
use ebb_tests::hpa::{RESOURCE, lab, replicas, running_now, serve};
use ebb_tests::loads::Load;
use ebb_tests::{Ebb, FakeAgent, Lab, Program, binary, free_port, node_of, wait_until};
use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::PostParams;
use kube::{Api, Client, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

const PATIENCE: Duration = Duration::from_secs(300);
/// Requests to the API server at once.
const AT_ONCE: usize = 32;
/// On which the pods run that are scaled.
const STAGE: &str = "stage";
const CROWD: &str = "crowd";
const CONFIG: &str = "groups: [{name: cpu, min: 0, max: 1, instanceType: m5.12xlarge}]";
/// Of a request of 100m, of which the HPA wants half to be used.
const LOW: f64 = 0.02;
const HIGH: f64 = 0.08;
/// Both metrics-server and the HPA's controller go round every 15 s, the agents every 10 s: changes come at other
/// moments of these each time.
const ROUND: Duration = Duration::from_secs(15);
const GOLDEN: f64 = 0.618;
const LOOK_EVERY: Duration = Duration::from_millis(50);

#[tokio::main]
async fn main() {
    let numbers: Vec<usize> = std::env::args().skip(1).map(|it| it.parse().expect("numbers only")).collect();
    let [rounds, nodes, pods] = numbers[..] else { panic!("bench-hpa ROUNDS NODES PODS") };
    let _built_by_now = (binary("ebb-coordinator"), metrics_server_program());
    // Nobody renews the crowd's Leases.
    let (mut ebb, port) = lab(&["--node-monitor-grace-period=24h"]).await;
    ebb.lab.kubectl(&["delete", "daemonset", "--namespace=ebb", "--all"]).await;
    let load = Load::new(LOW);
    let agents = fill(&ebb, &load, nodes, pods).await;
    let kubelets = load.serve_kubelets().await;

    serve(&mut ebb, CONFIG, port).await;
    let agents: Vec<FakeAgent> = stream::iter(&agents)
        .map(async |pod| {
            let mut agent = FakeAgent::start_as(&ebb, pod, Duration::from_secs(10)).await;
            agent.tell_nothing().await;
            agent
        })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    sleep(ROUND).await;
    let without = rss_mib(ebb.coordinator().id());
    let metrics_server = MetricsServer::start(&ebb.lab, kubelets);
    // Not all at the same moment.
    for agent in agents {
        sleep(Duration::from_secs(10) / u32::try_from(nodes + 1).expect("a cluster has fewer nodes")).await;
        tokio::spawn(load.clone().tell(agent));
    }
    sleep(4 * ROUND).await;
    let resident = json!({
        "ebb": rss_mib(ebb.coordinator().id()),
        "ebbForUsage": rss_mib(ebb.coordinator().id()) - without,
        "metricsServer": rss_mib(metrics_server.program.id()),
    });
    eprintln!("resident memory: {resident}");

    ebb.lab.apply(&manifests()).await;
    tokio::spawn(follow(ebb.client.clone(), load.clone()));
    let ours = Contest { ebb: &ebb, load: &load }.run(rounds).await;
    eprintln!("ebb: {ours}");
    let ours_listed = list(&ebb, ebb.coordinator().id(), pods).await;
    metrics_server.take_over(&ebb.lab).await;
    let theirs = Contest { ebb: &ebb, load: &load }.run(rounds).await;
    eprintln!("metrics-server: {theirs}");
    let theirs_listed = list(&ebb, metrics_server.program.id(), pods).await;
    println!(
        "{}",
        json!({
            "nodes": nodes, "pods": pods, "rounds": rounds, "rssMib": resident,
            "ebb": ours, "metricsServer": theirs,
            "listed": {"ebb": ours_listed, "metricsServer": theirs_listed},
        })
    );
}

fn metrics_server_program() -> PathBuf {
    let found = Command::new(binary("xtask")).args(["lab", "metrics-server"]).output().expect("xtask starts");
    assert!(found.status.success(), "{}", String::from_utf8_lossy(&found.stderr));
    String::from_utf8_lossy(&found.stdout).trim().into()
}

struct MetricsServer {
    program: Program,
    port: u16,
}

impl MetricsServer {
    /// As its own manifests start it, but for how it finds kubelets.
    fn start(lab: &Lab, kubelets: u16) -> Self {
        let port = free_port();
        let mut command = lab.command(metrics_server_program());
        let kubeconfig = lab.kubeconfig.display();
        for flag in ["kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig"] {
            command.arg(format!("--{flag}={kubeconfig}"));
        }
        command
            .args(["--metric-resolution=15s", "--bind-address=127.0.0.1"])
            .arg(format!("--secure-port={port}"))
            .arg(format!("--cert-dir={}", lab.dir.join("conf").display()))
            .args(["--deprecated-kubelet-completely-insecure", "--kubelet-preferred-address-types=InternalIP"])
            .arg(format!("--kubelet-port={kubelets}"));
        Self { program: lab.spawn("metrics-server", command), port }
    }

    /// Its Service has a name of its own: the coordinator leaves the APIService alone then.
    async fn take_over(&self, lab: &Lab) {
        let service = "{apiVersion: v1, kind: Service, metadata: {name: metrics-server, namespace: ebb}, \
            spec: {type: ExternalName, externalName: localhost}}";
        lab.apply(service).await;
        let spec = json!({"spec": {
            "service": {"name": "metrics-server", "port": self.port}, "caBundle": null, "insecureSkipTLSVerify": true,
        }});
        lab.kubectl(&["patch", "apiservice", RESOURCE, "--type=merge", "--patch", &spec.to_string()]).await;
        // The API server may ask whom it knows of for a moment more.
        sleep(ROUND).await;
        let node = format!("/apis/metrics.k8s.io/v1beta1/nodes/{STAGE}");
        let answers = async || lab.try_kubectl(&["get", "--raw", &node]).await.is_ok();
        lab.wait_until("metrics-server to answer", PATIENCE, answers).await;
    }
}

/// Nodes with pods on them; a pod of each node's agent, in the order of the nodes.
async fn fill(ebb: &Ebb, load: &Load, nodes: usize, pods: usize) -> Vec<Pod> {
    ebb.lab.kubectl(&["create", "namespace", CROWD]).await;
    let account =
        async || ebb.lab.try_kubectl(&["get", "serviceaccount", "default", "--namespace", CROWD]).await.is_ok();
    ebb.lab.wait_until("the namespace's account", PATIENCE, account).await;
    let api = Api::<Node>::all(ebb.client.clone());
    let names: Vec<String> = (0..nodes).map(|number| format!("crowd-{number:04}")).collect();
    let objects = names.iter().map(|name| node(name)).chain([stage()]);
    make("nodes", &api, objects.collect()).await;
    let crowd = Api::<Pod>::namespaced(ebb.client.clone(), CROWD);
    let objects = (0..pods).map(|number| pod(&format!("pod-{number:06}"), &names[number % nodes]));
    for pod in make("pods", &crowd, objects.collect()).await {
        let node = node_of(&pod).expect("it is bound");
        load.add(&node, CROWD, &pod.name_any(), &pod.uid().expect("the API server gave it one"));
    }
    let agents = Api::<Pod>::namespaced(ebb.client.clone(), "ebb");
    let agent = |node: &String| {
        let mut pod = pod(&format!("ebb-agent-{node}"), node);
        pod["spec"]["serviceAccountName"] = "ebb-agent".into();
        pod
    };
    make("agents", &agents, names.iter().chain([&STAGE.to_owned()]).map(agent).collect()).await
}

async fn make<K>(what: &str, api: &Api<K>, objects: Vec<Value>) -> Vec<K>
where
    K: Clone + DeserializeOwned + Serialize + std::fmt::Debug,
{
    eprintln!("making {} {what}", objects.len());
    let create = async |object: Value| {
        let object = serde_json::from_value(object).expect("this is such an object");
        api.create(&PostParams::default(), &object).await.expect("the admin may create it")
    };
    stream::iter(objects).map(create).buffered(AT_ONCE).collect().await
}

fn node(name: &str) -> Value {
    let resources = json!({"cpu": "64", "memory": "256Gi", "pods": "250"});
    json!({
        "metadata": {
            "name": name, "labels": {"kubernetes.io/hostname": name},
            "annotations": {"metrics.k8s.io/resource-metrics-path": format!("/nodes/{name}")},
        },
        "status": {
            "capacity": resources, "allocatable": resources,
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    })
}

fn stage() -> Value {
    let mut node = node(STAGE);
    node["metadata"]["annotations"]["kwok.x-k8s.io/node"] = "fake".into();
    node["metadata"]["labels"][STAGE] = "true".into();
    node["status"]["conditions"] = json!([]);
    node
}

fn pod(name: &str, node: &str) -> Value {
    json!({
        "metadata": {"name": name, "labels": {"app.kubernetes.io/name": CROWD, "pod-template-hash": "7d4f9c6b58"}},
        "spec": {"nodeName": node, "containers": [{"name": "work", "image": "work"}]},
    })
}

fn manifests() -> String {
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "work", "namespace": "default"},
        "spec": {
            "replicas": 1, "selector": {"matchLabels": {"app": "work"}},
            "template": {
                "metadata": {"labels": {"app": "work"}},
                "spec": {
                    "nodeSelector": {STAGE: "true"}, "terminationGracePeriodSeconds": 0,
                    "containers": [{"name": "work", "image": "work", "resources": {"requests": {"cpu": "100m"}}}],
                },
            },
        },
    });
    let target = json!({"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}});
    let hpa = json!({
        "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "work", "namespace": "default"},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "work"},
            "minReplicas": 1, "maxReplicas": 2, "metrics": [{"type": "Resource", "resource": target}],
            "behavior": {"scaleDown": {"stabilizationWindowSeconds": 0}},
        },
    });
    json!({"apiVersion": "v1", "kind": "List", "items": [deployment, hpa]}).to_string()
}

/// Keeps the load of the stage to the pods that run there.
async fn follow(client: Client, load: Load) {
    let api: Api<Pod> = Api::default_namespaced(client);
    let params = kube::api::ListParams::default().labels("app=work");
    loop {
        let pods = api.list(&params).await.expect("the admin may list pods").items;
        let runs = |pod: &&Pod| pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running");
        let pods: Vec<&Pod> = pods.iter().filter(runs).collect();
        pods.iter().for_each(|pod| load.add(STAGE, "default", &pod.name_any(), &pod.uid().unwrap_or_default()));
        load.retain(STAGE, &pods.iter().filter_map(|pod| pod.uid()).collect::<Vec<_>>());
        sleep(Duration::from_millis(200)).await;
    }
}

struct Contest<'a> {
    ebb: &'a Ebb,
    load: &'a Load,
}

#[derive(Default)]
struct Times {
    /// More than a tenth of the change shows.
    first: Vec<f64>,
    /// All but a tenth of it does.
    whole: Vec<f64>,
    replicas: Vec<f64>,
}

impl Contest<'_> {
    async fn run(&self, rounds: usize) -> Value {
        let (mut up, mut down) = (Times::default(), Times::default());
        for round in 0..rounds {
            for (times, from, to, replicas) in [(&mut up, LOW, HIGH, 2), (&mut down, HIGH, LOW, 1)] {
                self.settle(from, 3 - replicas).await;
                sleep(ROUND.mul_f64((GOLDEN * (2 * round + replicas) as f64).fract())).await;
                self.change(times, from, to, replicas).await;
            }
        }
        json!({"up": up.json(), "down": down.json()})
    }

    /// Until so many pods are there, and all are known to be loaded so.
    async fn settle(&self, cores: f64, count: usize) {
        self.load.set(cores);
        let settled = async || {
            sleep(LOOK_EVERY).await;
            let pods = running_now(&self.ebb.lab).await;
            let mut shown = 0;
            for pod in &pods {
                let cpu = self.shown(&pod.name_any()).await;
                shown += usize::from(cpu.is_some_and(|cpu| (cpu - cores).abs() < (HIGH - LOW) / 10.0));
            }
            pods.len() == count && shown == count
        };
        wait_until("the load to settle", PATIENCE, settled, async || self.ebb.lab.diagnosis().await).await;
        // The HPA acts on it as well, if it has to.
        sleep(ROUND).await;
        wait_until("the load to settle again", PATIENCE, settled, async || self.ebb.lab.diagnosis().await).await;
    }

    async fn change(&self, times: &mut Times, from: f64, to: f64, expected: usize) {
        let pods = running_now(&self.ebb.lab).await;
        let oldest = pods.iter().min_by_key(|pod| pod.metadata.creation_timestamp.clone()).expect("one runs");
        let name = oldest.name_any();
        let began = Instant::now();
        self.load.set(to);
        let shows = async |share: f64| {
            loop {
                if let Some(cpu) = self.shown(&name).await
                    && (cpu - from) / (to - from) >= share
                {
                    return began.elapsed().as_secs_f64();
                }
                sleep(LOOK_EVERY).await;
            }
        };
        let metrics = async {
            // A pod that is scaled away no longer tells.
            let first = timeout(PATIENCE / 4, shows(0.1)).await.ok();
            let whole = timeout(PATIENCE / 4, shows(0.9)).await.ok();
            (first, whole)
        };
        let scaled = async {
            while replicas(&self.ebb.lab).await as usize != expected {
                sleep(LOOK_EVERY).await;
            }
            began.elapsed().as_secs_f64()
        };
        let ((first, whole), scaled) = tokio::join!(metrics, timeout(PATIENCE, scaled));
        times.first.extend(first);
        times.whole.extend(whole);
        times.replicas.push(scaled.expect("the HPA acts on it"));
    }

    /// CPUs of a pod, as the API shows them.
    async fn shown(&self, name: &str) -> Option<f64> {
        let path = format!("/apis/metrics.k8s.io/v1beta1/namespaces/default/pods/{name}");
        let request = Request::get(path).body(Vec::new()).expect("it is a request");
        let pod: Value = self.ebb.client.request(request).await.ok()?;
        cores(pod["containers"][0]["usage"]["cpu"].as_str()?)
    }
}

fn cores(quantity: &str) -> Option<f64> {
    let units = [("n", 1e9), ("u", 1e6), ("m", 1e3)];
    let unit = units.iter().find_map(|(unit, per_core)| Some((quantity.strip_suffix(unit)?, *per_core)));
    let (number, per_core) = unit.unwrap_or((quantity, 1.0));
    Some(number.parse::<f64>().ok()? / per_core)
}

impl Times {
    fn json(&mut self) -> Value {
        let [first, whole, replicas] = [&mut self.first, &mut self.whole, &mut self.replicas].map(|times| {
            times.sort_by(f64::total_cmp);
            json!({"median": times.get(times.len() / 2), "max": times.last(), "count": times.len()})
        });
        json!({"firstSeconds": first, "wholeSeconds": whole, "replicasSeconds": replicas})
    }
}

/// One list of all pods: how long it takes, how many there are, and the memory at most until then.
async fn list(ebb: &Ebb, pid: u32, at_least: usize) -> Value {
    let began = Instant::now();
    let request = Request::get("/apis/metrics.k8s.io/v1beta1/pods").body(Vec::new()).expect("it is a request");
    let text = ebb.client.request_text(request).await.expect("the admin may list them");
    let seconds = began.elapsed().as_secs_f64();
    let count = text.matches("\"containers\"").count();
    assert!(count >= at_least, "{count} of {at_least} pods are shown");
    json!({"seconds": seconds, "pods": count, "peakMib": mib(pid, "VmHWM:")})
}

fn rss_mib(pid: u32) -> f64 {
    mib(pid, "VmRSS:")
}

fn mib(pid: u32, key: &str) -> f64 {
    let status = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("status")).expect("it runs");
    let line = status.lines().find(|line| line.starts_with(key)).expect("Linux tells it");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<f64>().ok()).expect("in KiB") / 1024.0
}
