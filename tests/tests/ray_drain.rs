//! The drain of a node with workers of Ray: real Ray, the real coordinator and agents, a real API server; fakes are AWS, the
//! kubelets (KWOK), and the test itself, which makes the workers' pods and starts what runs in them.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ebb_core::intent::{INTENT_ANNOTATION, Intent, Permits, Trigger, encode};
use ebb_tests::{Ebb, Lab, LabOptions, Program, Ray, Tls, node_of, now, own_network};
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;

const SOON: Duration = Duration::from_secs(120);
const PODS: [&str; 2] = ["train-cpu-0", "train-cpu-1"];

/// Two nodes, which stay.
fn config(address: &str, tls: Option<&Tls>) -> String {
    let tls = tls.map(|Tls { ca, cert, key }| {
        let [ca, cert, key] = [ca, cert, key].map(|path| path.display());
        format!("    caFile: {ca}\n    certFile: {cert}\n    keyFile: {key}\n")
    });
    format!(
        "groups:
- {{name: workers, min: 2, max: 2, instanceType: m5.xlarge}}
idle: {{window: 2s}}
ray:
  clusters:
  - name: train
    namespace: default
    address: {address}
{}    workerGroups:
    - {{name: cpu, maxReplicas: 2, requests: {{cpu: 3}}, resources: {{CPU: 3}}}}
",
        tls.unwrap_or_default()
    )
}

/// As KubeRay makes them. No kubelet is there to kill anything.
fn pod(name: &str) -> String {
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
    .to_string()
}

async fn lab() -> Ebb {
    own_network();
    let groups = vec!["name=workers,min=2,max=2,desired=2,type=m5.xlarge".to_owned()];
    let ebb = Ebb::install(Lab::up(LabOptions { groups, ..LabOptions::default() }).await).await;
    // The manifests' own coordinator would wait for a node as well.
    let deployment = ["--namespace", "ebb", "delete", "deployment", "ebb-coordinator", "--cascade=foreground"];
    ebb.lab.kubectl(&deployment).await;
    ebb
}

/// Two workers of Ray that have joined, a node each.
async fn installed() -> (Ebb, Ray) {
    let mut ebb = lab().await;
    let mut ray = Ray::start(&ebb.lab, None).await;
    ebb.start_coordinator(&config(&ray.address(), None), &[]).await;
    for name in PODS {
        ebb.lab.apply(&pod(name)).await;
        ray.start_worker(&ebb.lab, name, "cpu", (3, 0));
    }
    for name in PODS {
        ebb.wait_until("the workers to be idle", SOON, async |ebb| {
            let Some(node) = ebb.pod(name).await.as_ref().and_then(node_of) else { return false };
            ebb.listens().await
                && ebb.metrics().await.contains("_streams 2")
                && explained(ebb, &node).contains("idle for")
        })
        .await;
    }
    (ebb, ray)
}

fn explained(ebb: &Ebb, node: &str) -> String {
    ebb.ask(&["explain", "node", node])
}

/// Starts tasks that take so many seconds, and keep or drop what they make; their words are in this folder.
fn run(ebb: &Ebb, ray: &Ray, name: &str, objects: &str, seconds: &[&str]) -> (Program, PathBuf) {
    let folder = ebb.lab.dir.join(name);
    std::fs::create_dir_all(&folder).unwrap();
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/ray_tasks.py");
    let words = [&[folder.to_str().unwrap(), objects], seconds].concat();
    (ray.run(&ebb.lab, name, &program, &words), folder)
}

/// On which pod the task did this, once it did.
fn pod_of(folder: &Path, what: &str) -> Option<String> {
    std::fs::read_to_string(folder.join(what)).ok()
}

async fn node_of_pod(ebb: &Ebb, pod: &str) -> String {
    node_of(&ebb.pod(pod).await.unwrap()).unwrap()
}

/// As the coordinator, or the agent itself, writes it.
async fn drain(ebb: &Ebb, node: &str, by: Trigger, within: Duration) -> Intent {
    let requested_at = now();
    let permits = Permits { force: true, ..Permits::default() };
    let (id, reason, deadline) = ("test".to_owned(), "a new kernel".to_owned(), requested_at + within);
    let intent = Intent { id, reason, requested_at, deadline, evict: true, by, awaits_turn: false, permits };
    let change = json!({"metadata": {"annotations": {INTENT_ANNOTATION: encode(&intent)}}});
    let nodes: Api<Node> = Api::all(ebb.client.clone());
    nodes.patch(node, &PatchParams::default(), &Patch::Merge(change)).await.unwrap();
    intent
}

async fn condition(ebb: &Ebb, node: &str, kind: &str) -> Option<String> {
    let node = Api::<Node>::all(ebb.client.clone()).get(node).await.unwrap();
    let conditions = node.status?.conditions?;
    let condition = conditions.into_iter().find(|it| it.type_ == kind && it.status == "True")?;
    Some(condition.message.unwrap_or_default())
}

async fn wait_until_gone(ebb: &mut Ebb, pod: &str) {
    ebb.wait_until("the pod to be evicted", SOON, async |ebb| ebb.pod(pod).await.is_none()).await;
}

async fn wait_until_drained(ebb: &mut Ebb, node: &str) {
    ebb.wait_until("the node to be drained", SOON, async |ebb| condition(ebb, node, "Drained").await.is_some()).await;
}

#[tokio::test]
async fn a_task_ends_and_its_worker_leaves_before_the_pod_is_evicted_and_new_tasks_go_elsewhere() {
    let (mut ebb, ray) = installed().await;
    let (_tasks, tasks) = run(&ebb, &ray, "tasks", "drop", &["40", "4"]);
    ebb.wait_until("both tasks to run", SOON, async |_| {
        pod_of(&tasks, "0.began").is_some() && pod_of(&tasks, "1.began").is_some()
    })
    .await;
    let began = Instant::now();
    // A program that joins Ray while it drains takes its time for that.
    let wait = ebb.lab.dir.join("late/wait");
    std::fs::create_dir_all(wait.parent().unwrap()).unwrap();
    std::fs::write(&wait, "").unwrap();
    let (keeps, late) = run(&ebb, &ray, "late", "keep", &["0"]);
    ebb.wait_until("another program to join", SOON, async |ebb| ebb.lab.log("late").contains("joined")).await;
    let (pod, other) = (pod_of(&tasks, "0.began").unwrap(), pod_of(&tasks, "1.began").unwrap());
    let node = node_of_pod(&ebb, &pod).await;
    ebb.wait_until("what it does to be known", SOON, async |ebb| explained(ebb, &node).contains("  busy: ")).await;
    drain(&ebb, &node, Trigger::Person, Duration::from_secs(600)).await;
    ebb.wait_until("the worker to drain", SOON, async |ebb| {
        explained(ebb, &node).contains("draining: it goes when what runs there has ended")
    })
    .await;
    ebb.wait_until("the condition to name the hook", SOON, async |ebb| {
        let said = condition(ebb, &node, "DrainInProgress").await;
        said.is_some_and(|said| said.contains("hook ebb.dev/ray is awaited"))
    })
    .await;

    // The other worker takes what is new.
    std::fs::remove_file(&wait).unwrap();
    ebb.wait_until("a new task to be done", SOON, async |_| pod_of(&late, "0.ended").is_some()).await;
    assert_eq!(pod_of(&late, "0.ended").unwrap(), other);
    assert_eq!(pod_of(&tasks, "0.ended"), None, "the first task runs on");
    assert!(ebb.pod(&pod).await.is_some());

    wait_until_gone(&mut ebb, &pod).await;
    assert_eq!(pod_of(&tasks, "0.ended").as_ref(), Some(&pod), "the task has ended before");
    println!("{:.1} s after a task of 40 s began: its pod is gone", began.elapsed().as_secs_f64());
    wait_until_drained(&mut ebb, &node).await;
    let (agent, coordinator) = (ebb.lab.log(&format!("agent-{node}")), ebb.lab.log("coordinator"));
    assert!(agent.contains("hook answered") && agent.contains("outcome=Done"), "{agent}");
    assert!(coordinator.contains("Ray drains a worker"), "{coordinator}");
    assert!(!coordinator.contains("without waiting for Ray"), "{coordinator}");
    let metrics = ebb.metrics().await;
    assert!(metrics.contains("ebb_coordinator_ray_drains_total{result=\"accepted\"} "), "{metrics}");

    // Nothing runs on the other one, and it is not idle.
    let node = node_of_pod(&ebb, &other).await;
    let objects = "nothing runs there, but it has objects that a program still refers to";
    ebb.wait_until("objects to be told of", SOON, async |ebb| explained(ebb, &node).contains(objects)).await;
    drop(keeps);
    ebb.wait_until("the worker to be idle", SOON, async |ebb| {
        explained(ebb, &node).contains("by idle workers of Ray alone, for")
    })
    .await;
    assert!(ebb.ask(&["status"]).contains(&format!("nodes held by idle workers alone 1  {node} (")));
}

#[tokio::test]
async fn what_never_ends_is_evicted_in_time_and_a_dead_head_holds_up_nothing() {
    let (mut ebb, mut ray) = installed().await;
    let (_tasks, tasks) = run(&ebb, &ray, "tasks", "drop", &["600"]);
    ebb.wait_until("the task to run", SOON, async |_| pod_of(&tasks, "0.began").is_some()).await;
    let pod = pod_of(&tasks, "0.began").unwrap();
    let node = node_of_pod(&ebb, &pod).await;
    let intent = drain(&ebb, &node, Trigger::SpotInterruption, Duration::from_secs(75)).await;
    wait_until_gone(&mut ebb, &pod).await;
    let left = intent.deadline.since(now());
    println!("{:.1} s before the deadline: the pod is gone", left.as_secs_f64());
    // When there is just time for the pods' grace periods, and some: 20 s before it here.
    assert!((10..=40).contains(&left.as_secs()), "{left:?}");
    wait_until_drained(&mut ebb, &node).await;

    let other = PODS.into_iter().find(|it| *it != pod).unwrap();
    let node = node_of_pod(&ebb, other).await;
    ray.kill_head();
    let began = Instant::now();
    drain(&ebb, &node, Trigger::Person, Duration::from_secs(600)).await;
    wait_until_gone(&mut ebb, other).await;
    println!("{:.1} s after the head died: the pod is gone", began.elapsed().as_secs_f64());
    assert!(began.elapsed() < Duration::from_secs(45), "{:?}", began.elapsed());
    wait_until_drained(&mut ebb, &node).await;
    let coordinator = ebb.lab.log("coordinator");
    assert!(coordinator.contains("without waiting for Ray"), "{coordinator}");
}

#[tokio::test]
async fn a_head_that_asks_for_a_certificate_is_read_with_one_and_not_without() {
    let mut ebb = lab().await;
    let tls = Tls::make(&ebb.lab.dir.join("conf"));
    let ray = Ray::start_encrypted(&ebb.lab, &tls).await;
    ebb.start_coordinator(&config(&ray.address(), Some(&tls)), &[]).await;
    let polled = async |ebb: &mut Ebb, results: &[&str]| {
        let lines = results.iter().map(|result| format!("ebb_coordinator_ray_polls_total{{result=\"{result}\"}}"));
        let lines: Vec<_> = lines.collect();
        ebb.wait_until("the head to be asked", SOON, async |ebb| {
            let page = if ebb.listens().await { ebb.metrics().await } else { String::new() };
            lines.iter().any(|line| page.contains(line))
        })
        .await;
    };
    polled(&mut ebb, &["ok"]).await;
    assert!(ebb.stop_coordinator().await);
    let without = config(&ray.address(), Some(&tls)).replace("    certFile:", "    #").replace("    keyFile:", "    #");
    ebb.start_coordinator(&without, &[]).await;
    polled(&mut ebb, &["late", "unreachable"]).await;
    let page = ebb.metrics().await;
    assert!(!page.contains("ebb_coordinator_ray_polls_total{result=\"ok\"}"), "{page}");
    println!("{}", ebb.ask(&["status"]));
}
