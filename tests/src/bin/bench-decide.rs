//! The coordinator in a cluster of size: what it takes while nothing happens, how long a decision takes, and how it
//! answers a burst. Prints one JSON document.
//!
//! The crowd are Nodes and bound Pods as objects only: neither KWOK nor a kubelet moves them, the bench itself gives the
//! nodes their heartbeats. There are no agents, so there are no reports.

use std::time::{Duration, Instant};

use ebb_tests::trials::{Trials, calls, create, summary};
use ebb_tests::{Ebb, Lab, LabOptions, binary, wait_until};
use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time::{interval, sleep};

const PATIENCE: Duration = Duration::from_secs(180);
/// Requests to the API server at once.
const AT_ONCE: usize = 64;
const CROWD: &str = "crowd";
const IDLE: Duration = Duration::from_secs(60);
/// A Prometheus'.
const SCRAPES: Duration = Duration::from_secs(15);
/// A kubelet's, while its node stays as it is.
const HEARTBEATS: Duration = Duration::from_secs(5 * 60);

/// 16 pods take a node of a pool, so that 200 need 13.
const BURST_POOLS: [&str; 5] = ["a", "b", "c", "d", "e"];
const BURST_PODS: usize = 1000;
const BURST_CPU: &str = "240m";
const BURST_NODES: u32 = 65;
/// So that nothing comes while the burst goes on, as in a cloud.
const BOOT_MS: u64 = 20_000;

#[tokio::main]
async fn main() {
    let numbers: Vec<usize> = std::env::args().skip(1).map(|it| it.parse().expect("numbers only")).collect();
    let [trials, nodes, pods] = numbers[..] else { panic!("bench-decide TRIALS NODES PODS") };
    let groups = Trials::POOLS.iter().chain(&BURST_POOLS).map(|pool| Trials::group(pool)).collect();
    // Nobody renews the crowd's Leases.
    let controller_manager_args = vec!["--node-monitor-grace-period=24h".into()];
    let lab = Lab::up(LabOptions { groups, controller_manager_args, ..LabOptions::default() }).await;
    let mut ebb = Ebb::install(lab).await;
    ebb.lab.kubectl(&["delete", "daemonset", "--namespace=ebb", "--all"]).await;
    let filling = Instant::now();
    fill(&ebb, nodes, pods).await;
    let filled = filling.elapsed().as_secs_f64();

    let _built_by_now = binary("ebb-coordinator");
    let starting = Instant::now();
    ebb.start_coordinator(&config(), &[]).await;
    let leads = async || {
        // Each look makes it draw its whole picture.
        sleep(Duration::from_secs(1)).await;
        ebb.listens().await && ebb.metrics().await.contains("ebb_coordinator_synced 1")
    };
    ebb.lab.wait_until("the coordinator to lead and see", PATIENCE, leads).await;
    let synced = starting.elapsed().as_secs_f64();
    let idle = idle(&ebb, nodes).await;
    // Said at once: in a large cluster the rest takes long.
    eprintln!("idle: {idle}");

    let mut watch = Trials::begin(&ebb);
    let before = rules_seconds(&ebb).await;
    let [ours, floor] = watch.run(trials.try_into().expect("a small number")).await;
    let rules_ms = (rules_seconds(&ebb).await - before) * 1e3 / trials as f64;
    let burst = burst(&ebb, &watch).await;
    println!(
        "{}",
        json!({
            "fillSeconds": filled,
            "syncedSeconds": synced,
            "idle": idle,
            "trials": {"ebb": summary(&ours), "floor": summary(&floor), "rulesMs": rules_ms},
            "burst": burst,
            "after": usage(ebb.coordinator().id()),
        })
    );
}

fn config() -> String {
    let group =
        |pool| format!("  - {{name: {pool}, min: 0, max: 100, instanceType: m5.xlarge, labels: {{pool: {pool}}}}}\n");
    let groups: String = BURST_POOLS.into_iter().chain(["ebb"]).map(group).collect();
    format!("groups:\n{groups}scaleUp: {{pendingFor: 0s}}\nscaleDown: {{unneededFor: 24h}}\n")
}

async fn fill(ebb: &Ebb, nodes: usize, pods: usize) {
    ebb.lab.kubectl(&["create", "namespace", CROWD]).await;
    let account =
        async || ebb.lab.try_kubectl(&["get", "serviceaccount", "default", "--namespace", CROWD]).await.is_ok();
    ebb.lab.wait_until("the namespace's account", PATIENCE, account).await;
    make("nodes", nodes, Api::<Node>::all(ebb.client.clone()), node).await;
    make("pods", pods, Api::<Pod>::namespaced(ebb.client.clone(), CROWD), move |number| pod(number, nodes)).await;
}

/// Creates so many objects, in parallel.
async fn make<K>(what: &str, count: usize, api: Api<K>, object: impl Fn(usize) -> Value + Send + Sync + Clone + 'static)
where
    K: Clone + DeserializeOwned + serde::Serialize + std::fmt::Debug + Send + Sync + 'static,
{
    let create = |number| {
        let (api, object) = (api.clone(), object.clone());
        tokio::spawn(async move {
            let object = serde_json::from_value(object(number)).expect("this is such an object");
            api.create(&PostParams::default(), &object).await.expect("the admin may create it");
        })
    };
    let mut made = stream::iter(0..count).map(create).buffer_unordered(AT_ONCE).enumerate();
    while let Some((number, created)) = made.next().await {
        created.expect("it did not panic");
        if (number + 1) % 5000 == 0 {
            eprintln!("{} of {count} {what}", number + 1);
        }
    }
}

/// Full, and of no group.
fn node(number: usize) -> Value {
    let name = node_name(number);
    let resources = json!({"cpu": "3920m", "memory": "15Gi", "pods": "58", "ephemeral-storage": "18Gi"});
    json!({
        "metadata": {"name": name, "labels": {
            "kubernetes.io/arch": "amd64",
            "kubernetes.io/hostname": name,
            "kubernetes.io/os": "linux",
            "node.kubernetes.io/instance-type": "m5.xlarge",
            "pool": CROWD,
            "topology.kubernetes.io/region": "us-west-2",
            "topology.kubernetes.io/zone": format!("us-west-2{}", ['a', 'b', 'c'][number % 3]),
        }},
        "spec": {"providerID": format!("aws:///us-west-2a/i-{number:017x}")},
        "status": {"capacity": resources, "allocatable": resources, "conditions": [ready()]},
    })
}

fn node_name(number: usize) -> String {
    format!("ip-10-128-{}-{}.us-west-2.compute.internal", number / 250, number % 250)
}

fn ready() -> Value {
    json!({"type": "Ready", "status": "True", "reason": "KubeletReady", "lastHeartbeatTime": Timestamp::now().to_string()})
}

/// Of one of a hundred applications.
fn pod(number: usize, nodes: usize) -> Value {
    let app = format!("application-{:02}", number % 100);
    json!({
        "metadata": {
            "name": format!("{app}-7d4f9c6b58-{number:06}"),
            "labels": {"app.kubernetes.io/name": app, "app.kubernetes.io/part-of": "shop", "pod-template-hash": "7d4f9c6b58"},
        },
        "spec": {
            "nodeName": node_name(number % nodes),
            "containers": [{"name": "work", "image": "work", "resources": {"requests": {"cpu": "125m", "memory": "256Mi"}}}],
        },
    })
}

/// A minute in which nodes give signs of life and somebody scrapes, beside kube-scheduler, which watches the same.
async fn idle(ebb: &Ebb, nodes: usize) -> Value {
    let pid = std::fs::read_to_string(ebb.lab.dir.join("pid/kube-scheduler")).expect("the lab runs one");
    let scheduler = pid.split(' ').next().and_then(|pid| pid.parse().ok()).expect("the file begins with its pid");
    let before = [usage(ebb.coordinator().id()), usage(scheduler)];
    let beats = tokio::spawn(heartbeats(ebb.client.clone(), nodes));
    for _ in 0..IDLE.as_secs() / SCRAPES.as_secs() {
        sleep(SCRAPES).await;
        ebb.metrics().await;
    }
    beats.abort();
    let after = [usage(ebb.coordinator().id()), usage(scheduler)];
    let [ours, theirs] = [0, 1].map(|who| {
        let mut usage = after[who].clone();
        usage["cpuSeconds"] = json!(
            after[who]["cpuSeconds"]
                .as_f64()
                .zip(before[who]["cpuSeconds"].as_f64())
                .map(|(after, before)| after - before)
        );
        usage
    });
    json!({"ebb": ours, "scheduler": theirs})
}

/// One node after the other, for ever.
async fn heartbeats(client: Client, nodes: usize) {
    let api: Api<Node> = Api::all(client);
    let mut turn = interval(HEARTBEATS / u32::try_from(nodes).expect("a cluster has fewer nodes"));
    for number in (0..nodes).cycle() {
        turn.tick().await;
        let patch = Patch::Strategic(json!({"status": {"conditions": [ready()]}}));
        api.patch_status(&node_name(number), &PatchParams::default(), &patch).await.expect("the admin may patch it");
    }
}

/// Memory of a process in MiB, and its CPU time so far.
fn usage(pid: u32) -> Value {
    let read = |file| std::fs::read_to_string(format!("/proc/{pid}/{file}")).expect("it runs");
    let (status, stat) = (read("status"), read("stat"));
    let mib = |key| {
        let line = status.lines().find(|line| line.starts_with(key)).expect("Linux tells it");
        line.split_whitespace().nth(1).and_then(|kib| kib.parse::<f64>().ok()).expect("in KiB") / 1024.0
    };
    // After the name, which may hold anything: the state is the third field, utime and stime the 14th and 15th.
    let (_, fields) = stat.rsplit_once(')').expect("the name is in brackets");
    let ticks = fields.split_whitespace().skip(11).take(2).map(|it| it.parse::<u64>().expect("ticks")).sum::<u64>();
    let seconds = ticks as f64 / rustix::param::clock_ticks_per_second() as f64;
    json!({"rssMib": mib("VmRSS:"), "peakMib": mib("VmHWM:"), "cpuSeconds": seconds})
}

/// How long the rules have taken in all.
async fn rules_seconds(ebb: &Ebb) -> f64 {
    let metrics = ebb.metrics().await;
    let sum = metrics.lines().find_map(|line| line.strip_prefix("ebb_coordinator_decision_duration_seconds_sum "));
    sum.and_then(|sum| sum.parse().ok()).expect("the coordinator counts it")
}

/// Many pods at once. Times from the last one's creation, in milliseconds.
async fn burst(ebb: &Ebb, watch: &Trials<'_>) -> Value {
    ebb.lab.set_faults(&json!([{"action": "Boot", "delay_ms": BOOT_MS}])).await;
    let rules = rules_seconds(ebb).await;
    let name = |number: usize| format!("burst-{number:04}");
    let create = |number: usize| {
        let client = ebb.client.clone();
        let pool = BURST_POOLS[number % BURST_POOLS.len()];
        tokio::spawn(async move { create(&client, &name(number), pool, BURST_CPU).await })
    };
    let created: Vec<_> = stream::iter(0..BURST_PODS).map(create).buffer_unordered(AT_ONCE).collect().await;
    let created: Vec<u64> = created.into_iter().map(|created| created.expect("it did not panic")).collect();
    let first = created.iter().min().expect("there are some").cast_signed();
    let last = created.iter().max().expect("there are some").cast_signed();
    eprintln!("the burst is there");

    let pods: Api<Pod> = Api::default_namespaced(ebb.client.clone());
    let unbound = ListParams::default().fields("spec.nodeName=").limit(1);
    let placed = async || pods.list(&unbound).await.expect("the admin may list pods").items.is_empty();
    wait_until("the burst to be placed", PATIENCE, placed, async || ebb.decisions().join("\n")).await;

    let calls: Vec<_> = BURST_POOLS.iter().flat_map(|pool| calls(ebb, pool)).collect();
    let asked = calls.iter().map(|call| call.at_ms).max().expect("they are placed").cast_signed();
    let refused = (0..BURST_PODS).filter_map(|number| watch.unschedulable(&name(number))).max();
    let refused = refused.expect("there was no node").cast_signed();
    let mut nodes = 0;
    for pool in BURST_POOLS {
        nodes += ebb.lab.group(pool).await.desired;
    }
    json!({
        "createdMs": last - first,
        "refusedMs": refused - last,
        "askedMs": asked - last,
        "calls": calls.len(),
        "groups": BURST_POOLS.len(),
        "nodes": nodes,
        "nodesNeeded": BURST_NODES,
        "rulesMs": (rules_seconds(ebb).await - rules) * 1e3,
    })
}
