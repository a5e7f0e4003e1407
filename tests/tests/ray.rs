//! Real Ray, the real coordinator and agents, a real API server; fakes are AWS, the kubelets (KWOK), and the test itself,
//! which makes the workers' pods and starts what runs in them, as KubeRay and kubelets do.

use std::path::Path;
use std::time::Duration;

use ebb_tests::{Ebb, Lab, LabOptions, Ray, node_of, own_network};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(120);

/// One worker of three cores fits a node.
fn config(address: &str, token_file: Option<&Path>) -> String {
    let token_file = token_file.map(|path| format!("    tokenFile: {}\n", path.display())).unwrap_or_default();
    format!(
        "groups:
- {{name: workers, min: 0, max: 6, instanceType: m5.xlarge}}
idle: {{window: 2s}}
ray:
  clusters:
  - name: train
    namespace: default
    address: {address}
{token_file}    workerGroups:
    - {{name: cpu, maxReplicas: 3, requests: {{cpu: 3}}, resources: {{CPU: 3}}}}
"
    )
}

async fn installed() -> Ebb {
    own_network();
    let groups = vec!["name=workers,type=m5.xlarge".to_owned()];
    let ebb = Ebb::install(Lab::up(LabOptions { groups, ..LabOptions::default() }).await).await;
    // The manifests' own coordinator would wait for a node as well.
    let deployment = ["--namespace", "ebb", "delete", "deployment", "ebb-coordinator", "--cascade=foreground"];
    ebb.lab.kubectl(&deployment).await;
    ebb
}

/// As KubeRay makes them.
fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": name, "namespace": "default",
            "labels": {"ray.io/cluster": "train", "ray.io/group": "cpu", "ray.io/node-type": "worker"},
        },
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "worker", "image": "ray", "resources": {"requests": {"cpu": "3"}}}],
        },
    })
}

fn program() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/ray_burst.py")
}

/// A time that the program printed, in milliseconds since 1970.
fn told(ebb: &Ebb, log: &str, what: &str) -> Option<u64> {
    let log = ebb.lab.log(log);
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let seconds = lines.filter_map(|line| line[what].as_f64()).next_back()?;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a time of this century")]
    Some((seconds * 1000.0) as u64)
}

/// The value of a metric of the cluster.
async fn metric(ebb: &Ebb, name: &str) -> Option<f64> {
    let page = ebb.metrics().await;
    let start = format!("ebb_coordinator_ray_{name}{{cluster=\"default/train\"}} ");
    page.lines().find_map(|line| line.strip_prefix(&start)?.parse().ok())
}

async fn wait_until_metric(ebb: &mut Ebb, name: &str, value: f64) {
    ebb.wait_until(&format!("{name} to be {value}"), SOON, async |ebb| {
        ebb.listens().await && metric(ebb, name).await == Some(value)
    })
    .await;
}

async fn wait_until_sized(ebb: &mut Ebb, nodes: u32) {
    ebb.wait_until(&format!("{nodes} nodes"), SOON, async |ebb| {
        ebb.lab.group("workers").await.desired == nodes && ebb.nodes().await.len() == nodes as usize
    })
    .await;
}

fn raises(ebb: &Ebb) -> Vec<(u64, String)> {
    let calls = ebb.lab.aws_calls("SetDesiredCapacity");
    calls.into_iter().map(|call| (call.at_ms, call.params["DesiredCapacity"].clone())).collect()
}

#[tokio::test]
async fn a_burst_in_ray_has_its_nodes_before_any_pod_waits_and_no_more_when_the_pods_come() {
    let mut ebb = installed().await;
    let mut ray = Ray::start(&ebb.lab, None).await;
    ebb.start_coordinator(&config(&ray.address(), None), &[]).await;
    wait_until_metric(&mut ebb, "up", 1.0).await;
    assert_eq!(metric(&ebb, "waiting_requests").await, Some(0.0));

    // Twelve tasks of three cores, for which there are three workers at most.
    let _burst = ray.run(&ebb.lab, "burst", &program(), &["12", "3", "1"]);
    wait_until_sized(&mut ebb, 3).await;
    let pods = ebb.lab.kubectl(&["get", "pods", "--output=name"]).await;
    assert_eq!(pods, "", "no pod has waited");
    let submitted = told(&ebb, "burst", "submitted").unwrap();
    for (at, desired) in raises(&ebb) {
        println!(
            "{:.2} s after the tasks were submitted: desired capacity {desired}",
            (at - submitted) as f64 / 1000.0
        );
    }
    assert_eq!(metric(&ebb, "anticipated_workers").await, Some(3.0));
    let asked = raises(&ebb);

    // The pods come one by one, and then what runs in them.
    let names = ["train-cpu-0", "train-cpu-1", "train-cpu-2"];
    for (index, name) in names.into_iter().enumerate() {
        ebb.lab.apply(&pod(name).to_string()).await;
        wait_until_metric(&mut ebb, "anticipated_workers", 2.0 - index as f64).await;
    }
    ebb.wait_until("the workers' pods to have nodes", SOON, async |ebb| {
        for name in names {
            if ebb.pod(name).await.as_ref().and_then(node_of).is_none() {
                return false;
            }
        }
        true
    })
    .await;
    names.into_iter().for_each(|name| ray.start_worker(&ebb.lab, name, "cpu", (3, 0)));
    ebb.wait_until("the tasks to be done", SOON, async |ebb| told(ebb, "burst", "done").is_some()).await;
    let took = told(&ebb, "burst", "done").unwrap() - submitted;
    println!("{:.2} s after: all tasks done", took as f64 / 1000.0);
    wait_until_metric(&mut ebb, "waiting_requests", 0.0).await;
    assert_eq!(metric(&ebb, "anticipated_workers").await, Some(0.0));
    assert_eq!(raises(&ebb), asked, "nothing is asked for twice");
    println!("{}", ebb.decisions().join("\n"));
}

#[tokio::test]
async fn a_head_that_refuses_or_dies_takes_no_node_away_and_is_heard_again() {
    let mut ebb = installed().await;
    let token = ebb.lab.dir.join("conf/ray-token");
    std::fs::write(&token, "wrong").unwrap();
    let mut ray = Ray::start(&ebb.lab, Some("0123456789abcdef0123456789abcdef")).await;
    ebb.start_coordinator(&config(&ray.address(), Some(&token)), &["--unneeded-for", "15s"]).await;
    let log = async |ebb: &mut Ebb, text: &str| {
        ebb.wait_until(text, SOON, async |ebb| ebb.lab.log("coordinator").contains(text)).await;
    };
    log(&mut ebb, "refuses the token").await;
    assert_eq!(metric(&ebb, "up").await, Some(0.0));
    std::fs::write(&token, "0123456789abcdef0123456789abcdef\n").unwrap();
    wait_until_metric(&mut ebb, "up", 1.0).await;

    let _burst = ray.run(&ebb.lab, "burst", &program(), &["12", "3", "1"]);
    wait_until_sized(&mut ebb, 3).await;
    ray.kill_head();
    wait_until_metric(&mut ebb, "up", 0.0).await;
    log(&mut ebb, "cannot be reached").await;
    // For longer than nodes stay that nobody needs, and their agents call idle.
    let since = std::time::Instant::now();
    ebb.wait_until("half a minute to pass", SOON, async |_| since.elapsed() > Duration::from_secs(30)).await;
    assert_eq!((ebb.lab.group("workers").await.desired, ebb.nodes().await.len()), (3, 3));
    assert_eq!(metric(&ebb, "anticipated_workers").await, Some(3.0), "unknown is not empty");
    ray.start_head(&ebb.lab).await;
    wait_until_metric(&mut ebb, "up", 1.0).await;
    assert_eq!(ebb.lab.aws_calls("TerminateInstanceInAutoScalingGroup").len(), 0);
    println!("{}", ebb.decisions().join("\n"));
    // What waited is gone with the head: now nobody needs the nodes.
    wait_until_metric(&mut ebb, "waiting_requests", 0.0).await;
    wait_until_sized(&mut ebb, 0).await;
}
