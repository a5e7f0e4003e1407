//! Drains side by side: nodes with pods that take their time to end, emptied by Ebb's agents, as a person asks for it, and
//! by `kubectl drain`, in turn on the same lab. Times are those of our own watch, requests those of the API server's audit
//! log.

mod watched;

use std::collections::BTreeMap;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ebb_core::intent::{INTENT_ANNOTATION, Intent, Permits, Trigger, encode};
use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{DeleteParams, EvictParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::audit::{Audit, Tally};
use crate::trials::now_ms;
use crate::{Ebb, Lab, LabOptions, wait_until};
use watched::Watched;

/// What the pods have for their end, and take. Few seconds, in favour of kubectl, which asks for each pod every second.
pub const GRACE: Duration = Duration::from_secs(5);
/// For everything that is not measured.
const PATIENCE: Duration = Duration::from_secs(180);
/// kubectl drains one node after the other.
const LONGEST_DRAIN: Duration = Duration::from_secs(3600);
/// Requests of our own at once.
const AT_ONCE: usize = 64;
/// Processes of kubectl at once.
const KUBECTLS: usize = 16;
const AGENT: &str = "system:serviceaccount:ebb:ebb-agent";
/// Not the lab's admin: what such a user asks for is never throttled.
const OPERATOR: &str = "system:serviceaccount:default:operator";
const ROOM: &str = "room";

/// What is drained.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub nodes: usize,
    pub pods_per_node: usize,
    /// From when a pod is made until it is ready.
    pub ready_after: Duration,
    /// Whether a PodDisruptionBudget lets one of them go at a time.
    pub has_budget: bool,
}

/// Who drains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    Ebb,
    /// All nodes by one call.
    Kubectl,
    /// A process for each node, several at once.
    Kubectls,
    /// Evictions and nothing else, many at once: what the API server and the controllers take.
    Floor,
}

/// A lab with the nodes, their pods and their agents, and a node with room for all pods.
pub struct Contest {
    shape: Shape,
    watched: Arc<Mutex<Watched>>,
    asked: usize,
    ebb: Ebb,
    audit: Audit,
}

/// By name: times over [`GRACE`] in seconds, requests per pod.
pub type Figures = BTreeMap<&'static str, f64>;

impl Contest {
    pub async fn begin(shape: Shape) -> Self {
        let audit = Audit::new(&[AGENT, OPERATOR]);
        let lab = Lab::up(LabOptions { apiserver_args: audit.apiserver_args(), ..LabOptions::default() }).await;
        let mut ebb = Ebb::install(lab).await;
        ebb.agent_interval = "1s"; // The agent's default.
        // A person asks for these drains: nobody decides about any.
        ebb.lab.kubectl(&["delete", "deployment", "--namespace=ebb", "--all"]).await;
        let nodes: Api<Node> = Api::all(ebb.client.clone());
        let names: Vec<String> = (0..shape.nodes).map(node_name).collect();
        // One place more, for the agent.
        let ours = names.iter().map(|name| node(name, shape.pods_per_node + 1));
        let room = node(ROOM, 2 * shape.nodes * shape.pods_per_node);
        for node in ours.chain([room]) {
            let node = serde_json::from_value(node).expect("this is a node");
            nodes.create(&PostParams::default(), &node).await.expect("the admin may create nodes");
        }
        let all_run = async |ebb: &Ebb| ebb.agents() == shape.nodes;
        ebb.wait_until("an agent for each node", PATIENCE, all_run).await;
        let watch = async || {
            let requests = audit.since(0);
            requests.iter().filter(|it| it.verb == "watch" && it.resource == "nodes").count() >= shape.nodes
        };
        ebb.lab.wait_until("each agent to watch its node", PATIENCE, watch).await;

        ebb.lab.apply(&operator().to_string()).await;
        ebb.lab.apply(&workload(&shape).to_string()).await;
        let token = ebb.lab.service_account_token("default", "operator", Lab::API_AUDIENCE, None).await;
        ebb.lab.write_kubeconfig("operator", &token);
        let watched = Arc::new(Mutex::new(Watched::default()));
        tokio::spawn(watched::pods(ebb.client.clone(), Arc::clone(&watched)));
        tokio::spawn(watched::nodes(ebb.client.clone(), Arc::clone(&watched)));
        let contest = Self { shape, watched, asked: 0, ebb, audit };
        // What kubectl learns of the API it keeps for the next time.
        let mut kubectl = contest.kubectl();
        let status = kubectl.args(["get", "nodes,pods,daemonsets", "--all-namespaces"]).status().await;
        assert!(status.expect("kubectl starts").success(), "kubectl get");
        contest
    }

    /// One drain of all nodes, from pods on each to none, and back.
    pub async fn measure(&mut self, who: Who) -> Figures {
        self.fill().await;
        self.asked += 1;
        let names: Vec<String> = (0..self.shape.nodes).map(node_name).collect();
        let mark = self.audit.mark();
        let began = Instant::now();
        match who {
            Who::Ebb => self.ask(&names).await,
            Who::Floor => self.evict_all(&names).await,
            Who::Kubectl => self.kubectl_drain(&["--selector=drained=true"]).await,
            Who::Kubectls => {
                let drain = async |name: &String| self.kubectl_drain(&[name]).await;
                stream::iter(&names).map(drain).buffer_unordered(KUBECTLS).collect::<Vec<()>>().await;
            }
        }
        let answered = Instant::now();
        self.wait("the nodes to be empty", |watched| watched.empty_since.is_some()).await;
        let (empty, drained) = self.see(|watched| (watched.empty_since, watched.drained.values().max().copied()));
        let empty = empty.expect("that was waited for");
        let (ended, user) = match who {
            Who::Ebb => (drained.expect("that was waited for"), AGENT),
            Who::Floor => (empty, "nobody"),
            Who::Kubectl | Who::Kubectls => (answered, OPERATOR),
        };
        let tally = Tally::of(&self.audit.since(mark), user);
        self.undo(who, &names).await;

        let over_grace = |end: Instant| (end - began).as_secs_f64() - GRACE.as_secs_f64();
        let pods = (self.shape.nodes * self.shape.pods_per_node) as f64;
        let per_pod = |count: usize| count as f64 / pods;
        BTreeMap::from([
            ("drained", over_grace(ended)),
            ("empty", over_grace(empty)),
            ("requests", per_pod(tally.all())),
            ("writes", per_pod(tally.writes)),
            ("dryRuns", per_pod(tally.dry_runs)),
            ("gets", per_pod(tally.gets)),
            ("watches", per_pod(tally.watches)),
            ("listsPerNode", tally.lists as f64 / self.shape.nodes as f64),
            ("closedBudgets", per_pod(tally.closed_budgets)),
            ("throttled", tally.throttled as f64),
        ])
    }

    /// All pods made anew, on the nodes to drain, ready; then there is room for them elsewhere.
    async fn fill(&self) {
        self.cordon(&[ROOM.to_owned()], true).await;
        let pods: Api<Pod> = Api::default_namespaced(self.ebb.client.clone());
        let at_once = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
        let crowd = ListParams::default().labels("app=crowd");
        let old: Vec<String> = self.see(|watched| watched.pods.keys().cloned().collect());
        pods.delete_collection(&at_once, &crowd).await.expect("the admin may delete pods");
        let wanted = self.shape.nodes * self.shape.pods_per_node;
        let is_filled = |watched: &Watched| {
            let is_new = !old.iter().any(|uid| watched.pods.contains_key(uid));
            is_new && watched.pods.len() == wanted && watched.pods.values().all(|&(leaves, ready)| leaves && ready)
        };
        self.wait("all pods to be ready", is_filled).await;
        if self.shape.has_budget {
            let budgets: Api<PodDisruptionBudget> = Api::default_namespaced(self.ebb.client.clone());
            let opens = async || {
                let budget = budgets.get("crowd").await.expect("the admin may read budgets");
                budget.status.is_some_and(|status| status.disruptions_allowed == Some(1))
            };
            self.ebb.lab.wait_until("the budget to allow one", PATIENCE, opens).await;
        }
        self.cordon(&[ROOM.to_owned()], false).await;
    }

    /// As a person does; ends once all nodes are called drained.
    async fn ask(&self, names: &[String]) {
        let now = ebb_core::time::Instant::from_millis(now_ms());
        let intent = Intent {
            id: format!("bench-{}", self.asked),
            reason: "measured".into(),
            requested_at: now,
            deadline: now + LONGEST_DRAIN,
            evict: true,
            awaits_turn: false,
            by: Trigger::Person,
            permits: Permits { force: true, delete_emptydir_data: true, delete_at_deadline: false },
        };
        let patch = json!({"metadata": {"annotations": {INTENT_ANNOTATION: encode(&intent)}}});
        self.patch(names, &patch).await;
        let nodes = self.shape.nodes;
        self.wait_for("all nodes to be drained", LONGEST_DRAIN, |watched| watched.drained.len() == nodes).await;
    }

    async fn evict_all(&self, names: &[String]) {
        self.cordon(names, true).await;
        let pods: Api<Pod> = Api::default_namespaced(self.ebb.client.clone());
        let crowd = pods.list(&ListParams::default().labels("app=crowd")).await.expect("the admin may list pods");
        let evict = async |pod: &Pod| {
            let evicted = pods.evict(&pod.name_any(), &EvictParams::default()).await;
            evicted.expect("no budget is in the way");
        };
        stream::iter(&crowd.items).map(evict).buffer_unordered(AT_ONCE).collect::<Vec<()>>().await;
    }

    async fn kubectl_drain(&self, which: &[&str]) {
        let mut kubectl = self.kubectl();
        let flags = ["--ignore-daemonsets", "--delete-emptydir-data", "--force"];
        kubectl.arg("drain").args(which).args(flags).arg(format!("--timeout={}s", LONGEST_DRAIN.as_secs()));
        let output = kubectl.output().await.expect("kubectl starts");
        assert!(output.status.success(), "kubectl drain: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn kubectl(&self) -> Command {
        let lab = &self.ebb.lab;
        let mut kubectl = Command::new(lab.bin.join("kubectl"));
        kubectl.arg("--kubeconfig").arg(lab.dir.join("conf/operator.kubeconfig")).kill_on_drop(true);
        kubectl.env("KUBECACHEDIR", lab.dir.join("conf/kubectl-cache")).stdout(Stdio::null()).stdin(Stdio::null());
        kubectl
    }

    async fn undo(&self, who: Who, names: &[String]) {
        match who {
            Who::Ebb => self.patch(names, &json!({"metadata": {"annotations": {INTENT_ANNOTATION: null}}})).await,
            Who::Floor | Who::Kubectl | Who::Kubectls => self.cordon(names, false).await,
        }
        self.wait("the nodes to be as before", |watched| watched.clean.values().all(|clean| *clean)).await;
    }

    async fn cordon(&self, names: &[String], unschedulable: bool) {
        self.patch(names, &json!({"spec": {"unschedulable": unschedulable}})).await;
    }

    async fn patch(&self, names: &[String], patch: &Value) {
        let nodes: Api<Node> = Api::all(self.ebb.client.clone());
        let patch = Patch::Merge(patch);
        let patched = async |name: &String| {
            nodes.patch(name, &PatchParams::default(), &patch).await.expect("the admin may patch nodes");
        };
        stream::iter(names).map(patched).buffer_unordered(AT_ONCE).collect::<Vec<()>>().await;
    }

    async fn wait(&self, what: &str, condition: impl Fn(&Watched) -> bool) {
        self.wait_for(what, PATIENCE, condition).await;
    }

    async fn wait_for(&self, what: &str, within: Duration, condition: impl Fn(&Watched) -> bool) {
        wait_until(what, within, async || self.see(&condition), async || self.ebb.lab.diagnosis().await).await;
    }

    fn see<T>(&self, look: impl FnOnce(&Watched) -> T) -> T {
        look(&self.watched.lock().expect("nobody panics while holding it"))
    }
}

fn node_name(number: usize) -> String {
    format!("drained-{number:03}")
}

fn node(name: &str, pods: usize) -> Value {
    let mut labels = json!({"kubernetes.io/hostname": name});
    if name != ROOM {
        // The agents' DaemonSet asks for this system.
        labels["kubernetes.io/os"] = "linux".into();
        labels["drained"] = "true".into();
    }
    let resources = json!({"cpu": "1000", "memory": "1Ti", "pods": pods.to_string()});
    json!({
        "metadata": {"name": name, "labels": labels, "annotations": {"kwok.x-k8s.io/node": "fake"}},
        "status": {"capacity": resources, "allocatable": resources},
    })
}

/// A ServiceAccount that may do everything.
fn operator() -> Value {
    json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "operator", "namespace": "default"}},
        {
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
            "metadata": {"name": "operator"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
            "subjects": [{"kind": "ServiceAccount", "name": "operator", "namespace": "default"}],
        },
    ]})
}

fn workload(shape: &Shape) -> Value {
    let selector = json!({"matchLabels": {"app": "crowd"}});
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "crowd", "namespace": "default"},
        "spec": {
            "replicas": shape.nodes * shape.pods_per_node,
            "selector": selector,
            "template": {
                "metadata": {"labels": {"app": "crowd"}, "annotations": {
                    "pod-delete.stage.kwok.x-k8s.io/delay": format!("{}s", GRACE.as_secs()),
                    "pod-ready.stage.kwok.x-k8s.io/delay": format!("{}ms", shape.ready_after.as_millis()),
                }},
                "spec": {
                    "terminationGracePeriodSeconds": GRACE.as_secs(),
                    "containers": [{"name": "work", "image": "work"}],
                },
            },
        },
    });
    let budget = json!({
        "apiVersion": "policy/v1", "kind": "PodDisruptionBudget",
        "metadata": {"name": "crowd", "namespace": "default"},
        "spec": {"maxUnavailable": 1, "selector": selector},
    });
    let items = if shape.has_budget { vec![deployment, budget] } else { vec![deployment] };
    json!({"apiVersion": "v1", "kind": "List", "items": items})
}
