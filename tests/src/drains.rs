//! Nodes to drain, each with an agent of its own: a lab with Ebb's rights and without its coordinator, KWOK nodes, and
//! agents that reach the API server directly or through a [`crate::Proxy`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ebb_core::intent::{INTENT_ANNOTATION, Intent, encode};
use ebb_core::time::Instant;
use hyper::Method;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};

use crate::program::{binary, free_port};
use crate::{Fault, Lab, LabOptions, Program, Seen};

const NAMESPACE: &str = "ebb";
const SOON: Duration = Duration::from_secs(120);
/// Label of a node and what is meant for it alone.
pub const PLOT: &str = "plot";

/// The clock's time, as the agents have it.
pub fn now() -> Instant {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is later than 1970");
    Instant::from_millis(u64::try_from(since.as_millis()).expect("it is earlier than that"))
}

pub struct Drains {
    pub client: Client,
    pub lab: Lab,
}

impl Drains {
    pub async fn up() -> Self {
        let lab = Lab::up(LabOptions::default()).await;
        // With the right to do the utmost that a drain may be asked for.
        let mut render = lab.command(binary("xtask"));
        let rendered = render.args(["manifests", "--set", "agent.drain.deleteAtDeadline=true"]).output();
        let rendered = rendered.expect("xtask starts");
        assert!(rendered.status.success(), "render the manifests: {}", String::from_utf8_lossy(&rendered.stderr));
        lab.apply(&String::from_utf8_lossy(&rendered.stdout)).await;
        let deployment = ["--namespace", NAMESPACE, "delete", "deployment", "ebb-coordinator"];
        lab.kubectl(&deployment).await;
        Self { client: lab.client().await, lab }
    }

    /// Makes nodes of these names, each in this plot or in one of its own, and waits until each has its agent's pod.
    pub async fn make_nodes(&self, names: &[String], plot: Option<&str>) {
        let items: Vec<_> = names.iter().map(|name| node(name, plot.unwrap_or(name))).collect();
        self.lab.apply(&json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string()).await;
        self.lab
            .wait_until("an agent's pod on each node", SOON, async || {
                let pods = self.agent_pods().await;
                let on = |name: &String| pods.iter().any(|pod| crate::node_of(pod).as_ref() == Some(name));
                names.iter().all(on)
            })
            .await;
    }

    /// Makes a node that no kubelet runs: what is bound to it never starts, and never ends.
    pub async fn make_dead_node(&self, name: &str) {
        let mut node = node(name, name);
        node["metadata"]["annotations"] = json!({});
        self.lab.apply(&node.to_string()).await;
        let agent_is_there = async || !self.pods_on(name).await.is_empty();
        self.lab.wait_until("an agent's pod on the node", SOON, agent_is_there).await;
    }

    pub async fn delete_node(&self, name: &str) {
        self.lab.kubectl(&["delete", "node", name]).await;
    }

    async fn agent_pods(&self) -> Vec<Pod> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), NAMESPACE);
        let of_agents = ListParams::default().labels("app.kubernetes.io/component=agent");
        pods.list(&of_agents).await.expect("the admin may list pods").items
    }

    /// A token as the agent on this node has it.
    pub async fn token(&self, node: &str) -> String {
        let pods = self.agent_pods().await;
        let pod = pods.iter().find(|pod| crate::node_of(pod).as_deref() == Some(node)).expect("the node has its agent");
        self.lab.service_account_token(NAMESPACE, "ebb-agent", Lab::API_AUDIENCE, Some(pod)).await
    }

    /// Starts the agent of a node; `server`: where it finds the API server.
    pub fn start_agent(&self, node: &str, token: &str, server: &str, flags: &[String]) -> Program {
        let name = format!("agent-{node}");
        let kubeconfig = self.lab.write_kubeconfig_for(&name, token, server);
        let readings = self.lab.dir.join("conf").join(format!("{name}.readings"));
        std::fs::write(&readings, r#"{"utilization": {"cpu": 20, "gpu": "absent"}}"#).expect("the folder takes a file");
        let mut command = self.lab.command(binary("ebb-agent"));
        command
            // A flag of the test's own comes first.
            .env("EBB_LISTEN", format!("127.0.0.1:{}", free_port()))
            .args(["--node-name", node])
            .arg("--kubeconfig")
            .arg(kubeconfig)
            // There is none; what it says stays unheard.
            .args(["--coordinator", "https://127.0.0.1:9", "--interval", "10s", "--source"])
            .arg(format!("replay:{}", readings.display()))
            .args(flags);
        self.lab.spawn(&name, command)
    }

    pub async fn node(&self, name: &str) -> Node {
        Api::<Node>::all(self.client.clone()).get(name).await.expect("the node is there")
    }

    /// Writes or removes the intent, as an admin.
    pub async fn ask(&self, node: &str, intent: Option<&Intent>) {
        self.patch(node, &json!({"metadata": {"annotations": {INTENT_ANNOTATION: intent.map(encode)}}})).await;
    }

    /// A merge patch of a Node, as an admin.
    pub async fn patch(&self, node: &str, change: &Value) {
        let nodes = Api::<Node>::all(self.client.clone());
        nodes.patch(node, &PatchParams::default(), &Patch::Merge(change)).await.expect("the admin may change nodes");
    }

    /// All pods that are bound to the node.
    pub async fn pods_on(&self, node: &str) -> Vec<Pod> {
        let pods: Api<Pod> = Api::all(self.client.clone());
        let on_node = ListParams::default().fields(&format!("spec.nodeName={node}"));
        pods.list(&on_node).await.expect("the admin may list pods").items
    }

    /// Those of them that are not of DaemonSets.
    pub async fn work_on(&self, node: &str) -> Vec<Pod> {
        let pods = self.pods_on(node).await;
        let is_daemon =
            |pod: &Pod| pod.metadata.owner_references.iter().flatten().any(|owner| owner.kind == "DaemonSet");
        pods.into_iter().filter(|pod| !is_daemon(pod)).collect()
    }
}

fn node(name: &str, plot: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "annotations": {"kwok.x-k8s.io/node": "fake"},
            "labels": {PLOT: plot, "kubernetes.io/os": "linux", "kubernetes.io/hostname": name},
        },
        "status": {
            "capacity": {"cpu": "32", "memory": "64Gi", "pods": "250"},
            "allocatable": {"cpu": "32", "memory": "64Gi", "pods": "250"},
        },
    })
}

/// What must hold of all that a drain has asked for: only its own node, only pods that were on it, each by UID, and none
/// evicted twice where the first answer was heard. `was_killed`: what it heard may be forgotten.
pub fn check_requests(seen: &[Seen], node: &str, there: &BTreeSet<String>, was_killed: bool) -> Result<(), String> {
    let own = format!("/api/v1/nodes/{node}");
    let mut accepted: BTreeMap<&str, usize> = BTreeMap::new();
    for request in seen.iter().filter(|request| request.method != Method::GET) {
        let is_own = request.path == own || request.path == format!("{own}/status");
        if request.method == Method::PATCH && is_own {
            continue;
        }
        let is_eviction = request.method == Method::POST && request.is_eviction();
        if !is_eviction && !request.is_deletion() {
            return Err(format!("it is not a drain's to ask for: {request:?}"));
        }
        let uid = request.uid();
        if !there.contains(uid) {
            return Err(format!("the pod was not on the node: {request:?}"));
        }
        let told = request.fault == Fault::None && !was_killed;
        if is_eviction && !request.is_dry_run() && request.status.is_some_and(|status| status < 300) && told {
            *accepted.entry(uid).or_default() += 1;
        }
    }
    match accepted.iter().find(|(_, times)| **times > 1) {
        Some((uid, times)) => Err(format!("pod {uid} was evicted {times} times")),
        None => Ok(()),
    }
}
