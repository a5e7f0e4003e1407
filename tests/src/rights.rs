//! What a token is worth: Ebb's manifests installed with a pod of somebody else's on each node, and all that an agent does
//! asked for in somebody's name.

use std::path::Path;
use std::time::Duration;

use ebb_core::drain::Target;
use ebb_core::intent::PROGRESS_ANNOTATION;
use ebb_kubernetes::eviction;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod, Secret};
use kube::api::{
    DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions, Request, ResourceExt, WatchParams,
};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Error};
use serde::de::IgnoredAny;
use serde_json::{Value, json};

use crate::program::root;
use crate::{Lab, LabOptions};

const SOON: Duration = Duration::from_secs(60);
pub const SERVER_SIDE: &str = "--server-side";
pub const STRICT: &str = "--validate=strict";
pub const NO_WARNINGS: &str = "--warnings-as-errors";
/// Of the groups that a drain takes a node's load balancers away by.
const EXCLUDE: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

/// What was asked for, and the status of the answer.
pub type Answers = Vec<(&'static str, u16)>;

/// A lab with two nodes, the manifests, and a pod of somebody else's on each node.
pub struct Installed {
    pub lab: Lab,
    pub nodes: [String; 2],
    /// Pods in `default`, one on each of the nodes.
    pub work: [Pod; 2],
}

impl Installed {
    /// In a lab of [`lab_with_namespace`].
    pub async fn on(lab: Lab, file: &str) -> Self {
        lab.kubectl(&["apply", SERVER_SIDE, "--filename", file]).await;
        let nodes = nodes(&lab).await;
        let work = [work_on(&lab, "work-0", &nodes[0]).await, work_on(&lab, "work-1", &nodes[1]).await];
        let agents = Api::<DaemonSet>::namespaced(lab.client().await, "ebb");
        lab.wait_until("an agent on both nodes", SOON, async || {
            let agents = agents.get("ebb-agent").await.expect("the manifests bring it");
            agents.status.is_some_and(|status| status.number_ready == 2)
        })
        .await;
        Self { lab, nodes, work }
    }
}

pub async fn nodes(lab: &Lab) -> [String; 2] {
    let nodes = lab.group("cpu-workers").await.instances.into_iter().map(|instance| instance.node);
    nodes.collect::<Vec<_>>().try_into().expect("two instances")
}

/// A pod of somebody else's.
pub async fn work_on(lab: &Lab, name: &str, node: &str) -> Pod {
    let pod = json!({
        "metadata": {"name": name},
        "spec": {"nodeName": node, "containers": [{"name": "work", "image": "work"}]},
    });
    let pods = Api::<Pod>::default_namespaced(lab.client().await);
    let pod = serde_json::from_value(pod).expect("a Pod");
    pods.create(&PostParams::default(), &pod).await.expect("the admin may create pods")
}

pub async fn agent_on(lab: &Lab, node: &str) -> Pod {
    let pods = Api::<Pod>::namespaced(lab.client().await, "ebb");
    let on_node =
        ListParams::default().fields(&format!("spec.nodeName={node}")).labels("app.kubernetes.io/component=agent");
    pods.list(&on_node).await.expect("the admin may list pods").items.pop().expect("an agent on the node")
}

/// Two nodes. Also the path of the manifests, whose namespace is there: what is in it can only be tried in one that exists.
pub async fn lab_with_namespace(options: LabOptions, manifests: &str) -> (Lab, String) {
    let group = "name=cpu-workers,min=2,max=10".to_owned();
    let lab = Lab::up(LabOptions { groups: vec![group], ..options }).await;
    let file = root().join("deploy/manifests").join(manifests);
    let manifests = std::fs::read_to_string(&file).expect("the manifests are there");
    let namespace = manifests.split("\n---\n").find(|document| document.contains("\nkind: Namespace\n"));
    let path = lab.dir.join("conf/namespace.yaml");
    std::fs::write(&path, namespace.expect("the manifests bring their namespace"))
        .expect("the lab's folder takes a file");
    lab.kubectl(&["apply", SERVER_SIDE, STRICT, NO_WARNINGS, "--filename", &path.to_string_lossy()]).await;
    lab.wait_until("both nodes", SOON, async || {
        let nodes = Api::<Node>::all(lab.client().await);
        nodes.list(&ListParams::default()).await.expect("the admin may list nodes").items.len() == 2
    })
    .await;
    (lab, file.to_string_lossy().into_owned())
}

/// The bearer of a kubeconfig, in the name of a node.
pub async fn impersonating(kubeconfig: &Path, node: &str) -> Client {
    let mut file = Kubeconfig::read_from(kubeconfig).expect("the kubeconfig is there");
    let user = file.auth_infos[0].auth_info.as_mut().expect("it has a user");
    user.impersonate = Some(format!("system:node:{node}"));
    let config = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await;
    Client::try_from(config.expect("the kubeconfig is complete")).expect("its certificates can be read")
}

/// All that the agent does with a node and the pods on it, reading and writing.
pub async fn all_on(client: &Client, node: &str, pod: &Pod) -> Answers {
    let nodes = Api::<Node>::all(client.clone());
    let pods = Api::<Pod>::all(client.clone());
    let name = format!("metadata.name={node}");
    let on_node = format!("spec.nodeName={node}");
    let mut answers = vec![
        ("get the node", code(nodes.get(node).await)),
        ("list the node", code(nodes.list(&ListParams::default().fields(&name)).await)),
        ("watch the node", watch(client, "/api/v1/nodes", &name).await),
        ("list its pods", code(pods.list(&ListParams::default().fields(&on_node)).await)),
        ("watch its pods", watch(client, "/api/v1/pods", &on_node).await),
    ];
    answers.extend(writes_on(client, node, pod).await);
    answers
}

/// All that the agent writes for a drain.
pub async fn writes_on(client: &Client, node: &str, pod: &Pod) -> Answers {
    let patch = async |change: Value| merge(client, node, change).await;
    let annotate = |key: &str, value: Value| json!({"metadata": {"annotations": {key: value}}});
    let condition = async |name: &str| set_condition(client, node, name).await;
    vec![
        ("annotate with progress", patch(annotate(PROGRESS_ANNOTATION, "x".into())).await),
        ("take the progress off", patch(annotate(PROGRESS_ANNOTATION, Value::Null)).await),
        ("annotate with an intent", patch(annotate("ebb.dev/drain", "x".into())).await),
        ("take the intent off", patch(annotate("ebb.dev/drain", Value::Null)).await),
        ("take it off load balancers", patch(json!({"metadata": {"labels": {EXCLUDE: "true"}}})).await),
        ("give it to load balancers", patch(json!({"metadata": {"labels": {EXCLUDE: null}}})).await),
        ("cordon", patch(json!({"spec": {"unschedulable": true}})).await),
        ("uncordon", patch(json!({"spec": {"unschedulable": null}})).await),
        ("say that a drain is planned", condition("MaintenancePlanned").await),
        ("say that it drains", condition("DrainInProgress").await),
        ("say that it is drained", condition("Drained").await),
        ("evict a pod", evict(client, pod, pod.uid().as_deref()).await),
    ]
}

/// What nobody's agent may do to a node, its own or another.
pub async fn writes_beyond_a_drain(client: &Client, node: &str, pod: &Pod) -> Answers {
    let patch = async |change: Value| merge(client, node, change).await;
    let pods = Api::<Pod>::namespaced(client.clone(), "default");
    let nodes = Api::<Node>::all(client.clone());
    vec![
        ("taint", patch(json!({"spec": {"taints": [{"key": "a", "effect": "NoSchedule"}]}})).await),
        ("label as others do", patch(json!({"metadata": {"labels": {"node-restriction.kubernetes.io/a": "b"}}})).await),
        (
            "own",
            patch(json!({"metadata": {"ownerReferences": [
            {"apiVersion": "v1", "kind": "Node", "name": "x", "uid": "x"}]}}))
            .await,
        ),
        ("delete the node", code(nodes.delete(node, &dry_delete()).await)),
        ("create a node", {
            let other = serde_json::from_value(json!({"metadata": {"name": "x"}})).expect("a Node");
            code(nodes.create(&PostParams::default(), &other).await)
        }),
        ("patch its pod's status", {
            let status = json!({"status": {"message": "x"}});
            code(pods.patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Merge(status)).await)
        }),
        ("label its pod", {
            let label = json!({"metadata": {"labels": {"a": "b"}}});
            code(pods.patch(&pod.name_any(), &PatchParams::default(), &Patch::Merge(label)).await)
        }),
    ]
}

/// What a node may do to itself, NodeRestriction or not, and an agent that acts as itself may not.
pub async fn what_kubelets_write(client: &Client, node: &str) -> Answers {
    let patch = async |change: Value| merge(client, node, change).await;
    let status = async |change: Value| {
        let nodes = Api::<Node>::all(client.clone());
        code(nodes.patch_status(node, &PatchParams::default(), &Patch::Strategic(change)).await)
    };
    let labels = |key: &str| json!({"metadata": {"labels": {key: "x"}}});
    vec![
        ("label", patch(labels("pool")).await),
        ("annotate", patch(json!({"metadata": {"annotations": {"other": "x"}}})).await),
        ("annotate through its status", status(json!({"metadata": {"annotations": {"other": "x"}}})).await),
        ("label through its status", status(labels("pool")).await),
        ("say that it is ready", set_condition(client, node, "Ready").await),
        ("have another condition", set_condition(client, node, "Other").await),
        ("have more capacity", status(json!({"status": {"capacity": {"nvidia.com/gpu": "8"}}})).await),
        ("have more to give", status(json!({"status": {"allocatable": {"nvidia.com/gpu": "8"}}})).await),
        ("have another address", {
            status(json!({"status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.9"}]}})).await
        }),
        ("finalize", patch(json!({"metadata": {"finalizers": ["ebb.dev/x"]}})).await),
    ]
}

/// An eviction as the agent asks for it, without doing it; `uid`: the pod's, which it makes a condition.
pub async fn evict(client: &Client, pod: &Pod, uid: Option<&str>) -> u16 {
    let namespace = pod.namespace().unwrap_or_default();
    let pods = Api::<Pod>::namespaced(client.clone(), &namespace);
    let target = Target { namespace: namespace.clone(), name: pod.name_any(), uid: uid.unwrap_or_default().to_owned() };
    let mut body = eviction::body(&target, None);
    if uid.is_none() {
        body["deleteOptions"] = Value::Null;
    }
    let params = PostParams { dry_run: true, ..PostParams::default() };
    code(pods.create_subresource::<_, IgnoredAny>("eviction", &pod.name_any(), &params, &body).await)
}

/// A deletion as the agent asks for it, without doing it.
pub async fn delete_pod(client: &Client, pod: &Pod) -> u16 {
    let pods = Api::<Pod>::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
    let preconditions = Some(Preconditions { uid: pod.uid(), ..Preconditions::default() });
    code(pods.delete(&pod.name_any(), &DeleteParams { preconditions, ..dry_delete() }).await)
}

pub async fn merge(client: &Client, node: &str, change: Value) -> u16 {
    let nodes = Api::<Node>::all(client.clone());
    code(nodes.patch(node, &PatchParams::default(), &Patch::Merge(change)).await)
}

async fn set_condition(client: &Client, node: &str, name: &str) -> u16 {
    let nodes = Api::<Node>::all(client.clone());
    // Another one each time: what changes nothing is asked of nobody.
    let message = format!("{:?}", std::time::SystemTime::now());
    let condition = json!({"type": name, "status": "True", "reason": "Test", "message": message});
    let patch = Patch::Strategic(json!({"status": {"conditions": [condition]}}));
    code(nodes.patch_status(node, &PatchParams::default(), &patch).await)
}

/// What a node may read and an agent may not, or neither.
pub async fn reads_beyond_a_drain(client: &Client, pod: &Pod) -> Answers {
    let pods = Api::<Pod>::namespaced(client.clone(), "default");
    vec![
        ("read a pod", code(pods.get(&pod.name_any()).await)),
        ("list all pods", code(Api::<Pod>::all(client.clone()).list(&ListParams::default()).await)),
        ("list all nodes", code(Api::<Node>::all(client.clone()).list(&ListParams::default()).await)),
        ("read the coordinator's configuration", {
            code(Api::<ConfigMap>::namespaced(client.clone(), "ebb").get("ebb-coordinator").await)
        }),
        ("list secrets", code(Api::<Secret>::all(client.clone()).list(&ListParams::default()).await)),
    ]
}

/// The answer to a watch of a second.
pub async fn watch(client: &Client, path: &str, fields: &str) -> u16 {
    let params = WatchParams::default().fields(fields).timeout(1);
    code(client.request_text(Request::new(path).watch(&params, "0").expect("a request")).await)
}

pub fn dry_delete() -> DeleteParams {
    DeleteParams { dry_run: true, ..Default::default() }
}

pub fn code<T>(answer: kube::Result<T>) -> u16 {
    match answer {
        Ok(_) => 200,
        Err(Error::Api(status)) => status.code,
        Err(error) => panic!("no answer: {error}"),
    }
}

/// All at once, so that a failure shows which rights differ.
#[track_caller]
pub fn assert_answers(subject: &str, answers: &[(&str, u16)], expected: fn(u16) -> bool) {
    let wrong: Vec<_> = answers.iter().filter(|(_, code)| !expected(*code)).collect();
    assert!(wrong.is_empty(), "{subject}: {wrong:?}, of {} asked", answers.len());
}
