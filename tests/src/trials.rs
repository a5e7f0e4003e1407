//! How long from a pod that finds no node to `SetDesiredCapacity` at the fake AWS: Ebb beside the least that could do
//! it, a loop that watches pods and makes the call at once. In turn, on the same lab.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::api::PostParams;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::{AwsCall, Ebb};

const PATIENCE: Duration = Duration::from_secs(60);

pub struct Trials<'a> {
    ebb: &'a Ebb,
    /// When each pod was first seen to be unschedulable.
    seen: Arc<Mutex<HashMap<String, u64>>>,
    /// Names of those for the floor, as they come.
    floor: mpsc::UnboundedReceiver<String>,
}

/// From each beginning to the call, in milliseconds. Below zero: the call came before our own watch had seen the pod.
#[derive(Clone, Copy)]
pub struct Times {
    pub from_unschedulable: i64,
    pub from_creation: i64,
}

impl<'a> Trials<'a> {
    /// The group that Ebb grows, and the one that the loop grows.
    pub const POOLS: [&'static str; 2] = ["ebb", "floor"];

    /// As for [`crate::LabOptions::groups`].
    pub fn group(pool: &str) -> String {
        format!("name={pool},min=0,max=100,type=m5.xlarge,label=pool={pool}")
    }

    /// Watches from now on.
    pub fn begin(ebb: &'a Ebb) -> Self {
        let seen = Arc::new(Mutex::new(HashMap::new()));
        let (sender, floor) = mpsc::unbounded_channel();
        tokio::spawn(watch(ebb.client.clone(), Arc::clone(&seen), sender));
        Self { ebb, seen, floor }
    }

    /// Ebb's times and the floor's.
    pub async fn run(&mut self, trials: u32) -> [Vec<Times>; 2] {
        let mut times = [Vec::new(), Vec::new()];
        for trial in 1..=trials {
            for (pool, times) in Self::POOLS.iter().zip(&mut times) {
                times.push(self.trial(pool, trial).await);
            }
            eprintln!("trial {trial} of {trials}");
        }
        times
    }

    async fn trial(&mut self, pool: &str, number: u32) -> Times {
        let ebb = self.ebb;
        let name = format!("{pool}-{number}");
        // It needs most of a node.
        let created = create(&ebb.client, &name, pool, "3").await;
        if pool == "floor" {
            self.floor.recv().await.expect("the watch goes on");
            ebb.lab.set_desired(pool, number).await;
        }
        let runs = async || ebb.pod(&name).await.and_then(|pod| pod.status?.phase).as_deref() == Some("Running");
        ebb.lab.wait_until(&format!("{name} to run"), PATIENCE, runs).await;
        let calls = calls(ebb, pool);
        let arrived = calls.last().expect("there is a node, so there was a call").at_ms.cast_signed();
        let from = |start: u64| arrived - start.cast_signed();
        let unschedulable = self.unschedulable(&name).expect("it ran on a node that there was not");
        Times { from_unschedulable: from(unschedulable), from_creation: from(created) }
    }

    /// When the pod was first seen to be unschedulable, if it was.
    pub fn unschedulable(&self, name: &str) -> Option<u64> {
        self.seen.lock().expect("nobody panics while holding it").get(name).copied()
    }
}

/// Writes down who is unschedulable, for ever.
async fn watch(client: Client, seen: Arc<Mutex<HashMap<String, u64>>>, floor: mpsc::UnboundedSender<String>) {
    let pods: Api<Pod> = Api::default_namespaced(client);
    let mut stream = watcher(pods, watcher::Config::default()).default_backoff().applied_objects().boxed();
    while let Some(Ok(pod)) = stream.next().await {
        let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
        let mut reasons = conditions.filter_map(|condition| condition.reason.as_deref());
        if !reasons.any(|reason| reason == "Unschedulable") {
            continue;
        }
        let (name, now) = (pod.name_any(), now_ms());
        let mut seen = seen.lock().expect("nobody panics while holding it");
        if !seen.contains_key(&name) {
            seen.insert(name.clone(), now);
            if name.starts_with("floor") {
                let _ended = floor.send(name);
            }
        }
    }
}

/// The calls that set a group's desired capacity so far.
pub fn calls(ebb: &Ebb, group: &str) -> Vec<AwsCall> {
    let mut calls = ebb.lab.aws_calls("SetDesiredCapacity");
    calls.retain(|call| call.params["AutoScalingGroupName"] == group);
    calls
}

/// A pod for the nodes of one pool; when the API server had taken it.
pub async fn create(client: &Client, name: &str, pool: &str, cpu: &str) -> u64 {
    let pod = json!({
        "metadata": {"name": name},
        "spec": {
            "nodeSelector": {"pool": pool},
            "containers": [{"name": "work", "image": "work", "resources": {"requests": {"cpu": cpu}}}],
        },
    });
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let pod = serde_json::from_value(pod).expect("this is a pod");
    pods.create(&PostParams::default(), &pod).await.expect("the admin may create pods");
    now_ms()
}

pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970");
    u64::try_from(since.as_millis()).expect("and before the year 500 million")
}

/// Percentiles by nearest rank, as JSON.
pub fn summary(times: &[Times]) -> Value {
    let of = |field: fn(&Times) -> i64| {
        let mut sorted: Vec<_> = times.iter().map(field).collect();
        sorted.sort_unstable();
        let at = |percent: usize| sorted[(sorted.len() * percent).div_ceil(100) - 1];
        json!({"p50": at(50), "p90": at(90), "p99": at(99), "max": at(100)})
    };
    json!({"fromUnschedulableMs": of(|times| times.from_unschedulable), "fromCreationMs": of(|times| times.from_creation)})
}
