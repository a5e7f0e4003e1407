//! One made-up load of many pods, told to two: to metrics-server by fake kubelets, and to the coordinator by fake agents. Both
//! read the same counters, as cgroups are read.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::get;
use ebb_core::usage::{Amount, NodeUsage, PodUsage, Sample};
use k8s_openapi::jiff::Timestamp;
use tokio::net::TcpListener;

use crate::{FakeAgent, now};

/// The agent's `--pod-interval`.
pub const READ_EVERY: Duration = Duration::from_secs(10);
const MEMORY: u64 = 50 << 20;

/// A pod with one container, called `work`.
#[derive(Clone, Debug)]
pub struct LoadedPod {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    /// Its CPU counter at its start.
    begin: f64,
    started: Timestamp,
}

/// What all pods use, each the same.
#[derive(Clone)]
pub struct Load(Arc<Mutex<Inner>>);

struct Inner {
    nodes: HashMap<String, BTreeMap<String, LoadedPod>>,
    /// CPU seconds of one pod up to `since`, and its CPUs from then on.
    used: f64,
    since: Instant,
    cores: f64,
}

impl Inner {
    fn counter(&self) -> f64 {
        self.used + self.cores * self.since.elapsed().as_secs_f64()
    }
}

impl Load {
    pub fn new(cores: f64) -> Self {
        Self(Arc::new(Mutex::new(Inner { nodes: HashMap::new(), used: 0.0, since: Instant::now(), cores })))
    }

    /// From now on.
    pub fn set(&self, cores: f64) {
        let mut load = self.inner();
        load.used = load.counter();
        (load.since, load.cores) = (Instant::now(), cores);
    }

    /// Adds the pod, if it is new; it starts now.
    pub fn add(&self, node: &str, namespace: &str, name: &str, uid: &str) {
        let mut load = self.inner();
        let begin = load.counter();
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        let pod = LoadedPod { namespace, name, uid: uid.to_owned(), begin, started: Timestamp::now() };
        load.nodes.entry(node.to_owned()).or_default().entry(uid.to_owned()).or_insert(pod);
    }

    /// Leaves these pods on the node.
    pub fn retain(&self, node: &str, uids: &[String]) {
        if let Some(pods) = self.inner().nodes.get_mut(node) {
            pods.retain(|uid, _| uids.contains(uid));
        }
    }

    /// Serves what the kubelets of all nodes do at `/metrics/resource`, each below its name, and gives the port.
    pub async fn serve_kubelets(&self) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has a port");
        let port = listener.local_addr().expect("it is bound").port();
        let router = Router::new().route("/nodes/{name}", get(kubelet)).with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        port
    }

    /// Reports as the agent of the node does, for ever.
    pub async fn tell(self, mut agent: FakeAgent) {
        let mut before: HashMap<String, f64> = HashMap::new();
        let (mut node_before, mut read) = (self.inner().counter(), Instant::now());
        let mut ticks = tokio::time::interval(READ_EVERY);
        loop {
            ticks.tick().await;
            let (at, since) = (now(), read.elapsed().as_secs_f64());
            read = Instant::now();
            let (counter, pods): (f64, Vec<LoadedPod>) = {
                let load = self.inner();
                (load.counter(), load.nodes.get(&agent.node).into_iter().flat_map(BTreeMap::values).cloned().collect())
            };
            let usage =
                |cpu: f64, seconds: f64| Amount { cpu_nanocores: (cpu / seconds * 1e9) as u64, memory_bytes: MEMORY };
            let told = pods.iter().filter_map(|pod| {
                let used = counter - pod.begin;
                let then = before.get(&pod.uid).copied();
                // As the agent does: what has just started is measured since then, once that is 5 s ago.
                let age = Timestamp::now().duration_since(pod.started).as_secs_f64();
                let seconds = if then.is_some() { since } else { age };
                let window = Duration::from_secs_f64(seconds);
                let containers = vec![("work".to_owned(), usage(used - then.unwrap_or(0.0), seconds))];
                let pod = PodUsage { uid: pod.uid.clone(), at, window, containers, signals: None };
                (then.is_some() || age >= 5.0).then_some(pod)
            });
            let told = told.collect();
            before = pods.iter().map(|pod| (pod.uid.clone(), counter - pod.begin)).collect();
            let amount = usage((counter - node_before) * pods.len() as f64, since);
            node_before = counter;
            // Of the first moment nothing is known.
            let window = Duration::from_secs_f64(since);
            let node = (window > Duration::from_secs(1)).then_some(Sample { at, window, amount });
            agent.tell_all(NodeUsage { node, pods: told }).await;
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect("nobody panics while holding it")
    }
}

async fn kubelet(State(load): State<Load>, Path(name): Path<String>) -> Result<String, StatusCode> {
    let load = load.inner();
    let pods = load.nodes.get(&name).ok_or(StatusCode::NOT_FOUND)?;
    let (counter, at) = (load.counter(), Timestamp::now().as_millisecond());
    let mut page = String::new();
    let mut family = |name: &str, kind: &str, value: &dyn Fn(&LoadedPod) -> f64| {
        _ = writeln!(page, "# HELP {name} Fake\n# TYPE {name} {kind}");
        for pod in pods.values() {
            let LoadedPod { namespace, name: pod_name, .. } = pod;
            let labels = format!(r#"container="work",namespace="{namespace}",pod="{pod_name}""#);
            _ = writeln!(page, "{name}{{{labels}}} {} {at}", value(pod));
        }
    };
    family("container_cpu_usage_seconds_total", "counter", &|pod| counter - pod.begin);
    family("container_memory_working_set_bytes", "gauge", &|_| MEMORY as f64);
    family("container_start_time_seconds", "gauge", &|pod| pod.started.as_millisecond() as f64 / 1e3);
    let cpu = counter * pods.len().max(1) as f64;
    let memory = MEMORY * pods.len().max(1) as u64;
    let more =
        [("node_cpu_usage_seconds_total", "counter", cpu), ("node_memory_working_set_bytes", "gauge", memory as f64)];
    for (name, kind, value) in more {
        _ = writeln!(page, "# HELP {name} Fake\n# TYPE {name} {kind}\n{name} {value} {at}");
    }
    Ok(page)
}
