//! How long from a pod that finds no node to `SetDesiredCapacity` at the fake AWS: Ebb beside the least that could do
//! it, a loop that watches pods and makes the call at once. In turn, on the same lab. Prints one JSON document.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ebb_tests::{Ebb, Lab, LabOptions};
use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::api::PostParams;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, ResourceExt};
use serde_json::json;
use tokio::sync::mpsc;

const PATIENCE: Duration = Duration::from_secs(60);
const CONFIG: &str = "
groups: [{name: ebb, min: 0, max: 100, instanceType: m5.xlarge, labels: {pool: ebb}}]
scaleUp: {pendingFor: 0s}
scaleDown: {unneededFor: 24h}
";

#[tokio::main]
async fn main() {
    let trials: u32 = std::env::args().nth(1).and_then(|trials| trials.parse().ok()).unwrap_or(20);
    let groups = ["ebb", "floor"].map(|pool| format!("name={pool},min=0,max=100,type=m5.xlarge,label=pool={pool}"));
    let mut ebb = Ebb::install(Lab::up(LabOptions { groups: groups.to_vec(), ..LabOptions::default() }).await).await;
    ebb.start_coordinator(CONFIG, &[]).await;
    let leads = async || ebb.listens().await && ebb.metrics().await.contains("ebb_synced 1");
    ebb.lab.wait_until("the coordinator to lead and see", PATIENCE, leads).await;

    let (unschedulable, mut floor_pods) = watch(&ebb);
    let (mut ours, mut floor) = (Vec::new(), Vec::new());
    for trial in 1..=trials {
        for (pool, times) in [("ebb", &mut ours), ("floor", &mut floor)] {
            let name = format!("{pool}-{trial}");
            let created = create(&ebb, &name, pool).await;
            if pool == "floor" {
                floor_pods.recv().await.expect("the watch goes on");
                ebb.lab.set_desired("floor", trial).await;
            }
            let runs = async || ebb.pod(&name).await.and_then(|pod| pod.status?.phase).as_deref() == Some("Running");
            ebb.lab.wait_until(&format!("{name} to run"), PATIENCE, runs).await;
            let calls = ebb.lab.aws_calls("SetDesiredCapacity");
            let mut of_pool = calls.iter().filter(|call| call.params["AutoScalingGroupName"] == pool);
            let arrived = of_pool.next_back().expect("there is a node, so there was a call").at_ms;
            let seen = unschedulable.lock().expect("nobody panics while holding it")[&name];
            times.push([seen, created].map(|start| arrived.cast_signed() - start.cast_signed()));
        }
        eprintln!("trial {trial} of {trials}");
    }
    println!(
        "{}",
        json!({
            "trials": trials,
            "ebb": {"fromUnschedulableMs": summary(&ours, 0), "fromCreationMs": summary(&ours, 1)},
            "floor": {"fromUnschedulableMs": summary(&floor, 0), "fromCreationMs": summary(&floor, 1)},
        })
    );
}

/// When each pod was first seen to be unschedulable, and the names of those for the floor as they come.
fn watch(ebb: &Ebb) -> (Arc<Mutex<HashMap<String, u64>>>, mpsc::UnboundedReceiver<String>) {
    let seen = Arc::new(Mutex::new(HashMap::new()));
    let (sender, receiver) = mpsc::unbounded_channel();
    let pods: Api<Pod> = Api::default_namespaced(ebb.client.clone());
    let record = Arc::clone(&seen);
    tokio::spawn(async move {
        let mut stream = watcher(pods, watcher::Config::default()).default_backoff().applied_objects().boxed();
        while let Some(Ok(pod)) = stream.next().await {
            let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
            let mut reasons = conditions.filter_map(|condition| condition.reason.as_deref());
            if reasons.any(|reason| reason == "Unschedulable") {
                let (name, now) = (pod.name_any(), now_ms());
                let mut record = record.lock().expect("nobody panics while holding it");
                if !record.contains_key(&name) {
                    record.insert(name.clone(), now);
                    if name.starts_with("floor") {
                        let _ended = sender.send(name);
                    }
                }
            }
        }
    });
    (seen, receiver)
}

/// When the API server had taken the pod. It needs most of a node.
async fn create(ebb: &Ebb, name: &str, pool: &str) -> u64 {
    let pod = json!({
        "metadata": {"name": name},
        "spec": {
            "nodeSelector": {"pool": pool},
            "containers": [{"name": "work", "image": "work", "resources": {"requests": {"cpu": "3"}}}],
        },
    });
    let pods: Api<Pod> = Api::default_namespaced(ebb.client.clone());
    let pod = serde_json::from_value(pod).expect("this is a pod");
    pods.create(&PostParams::default(), &pod).await.expect("the admin may create pods");
    now_ms()
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970");
    u64::try_from(since.as_millis()).expect("and before the year 500 million")
}

/// Of one column. A figure below zero: the call came before our own watch had seen the pod.
fn summary(times: &[[i64; 2]], column: usize) -> serde_json::Value {
    let mut sorted: Vec<i64> = times.iter().map(|row| row[column]).collect();
    sorted.sort_unstable();
    // By nearest rank.
    let at = |percent: usize| sorted[(sorted.len() * percent).div_ceil(100) - 1];
    json!({"p50": at(50), "p90": at(90), "max": at(100)})
}
