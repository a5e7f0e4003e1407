//! The committed manifests on a real API server: it takes them without a warning, and the rights in them are enough and
//! no more. What matters most: an agent's token is worth one node, a coordinator's one annotation.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use ebb_tests::{Lab, LabOptions, binary};
use k8s_openapi::api::admissionregistration::v1::ValidatingAdmissionPolicy;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::authentication::v1::TokenReview;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Container, Node, Pod, PodTemplateSpec, Secret};
use k8s_openapi::api::events::v1::Event;
use kube::api::{
    Api, DeleteParams, EvictParams, GetParams, ListParams, Patch, PatchParams, PostParams, Request, ResourceExt,
    WatchParams,
};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Error};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(60);

#[tokio::test]
async fn manifests_are_taken_without_a_warning_and_make_their_pods() {
    let (lab, file) = lab_with_namespace().await;
    lab.kubectl(&["apply", "--dry-run=server", SERVER_SIDE, STRICT, NO_WARNINGS, "--filename", &file]).await;
    lab.kubectl(&["apply", SERVER_SIDE, STRICT, NO_WARNINGS, "--filename", &file]).await;

    let client = lab.client().await;
    let agents = Api::<DaemonSet>::namespaced(client.clone(), "ebb");
    let coordinators = Api::<Deployment>::namespaced(client.clone(), "ebb");
    lab.wait_until("an agent on both nodes, and the coordinator", SOON, async || {
        let agents = agents.get("ebb-agent").await.unwrap().status.unwrap();
        let coordinator = coordinators.get("ebb-coordinator").await.unwrap().status.unwrap();
        agents.number_ready == 2 && coordinator.available_replicas == Some(1)
    })
    .await;

    // The API server's own reading of the policy's expressions against the type of a Node.
    let policies = Api::<ValidatingAdmissionPolicy>::all(client);
    lab.wait_until("the admission policy to be checked", SOON, async || {
        let status = policies.get("ebb-coordinator").await.unwrap().status.unwrap_or_default();
        let Some(checking) = status.type_checking else { return false };
        assert_eq!(checking.expression_warnings, None);
        true
    })
    .await;
}

#[tokio::test]
async fn binaries_take_the_flags_and_the_configuration_that_the_manifests_give_them() {
    let (lab, file) = lab_with_namespace().await;
    lab.kubectl(&["apply", SERVER_SIDE, "--filename", &file]).await;
    let client = lab.client().await;
    let container = |template: PodTemplateSpec| template.spec.unwrap().containers.remove(0);

    let agent = Api::<DaemonSet>::namespaced(client.clone(), "ebb").get("ebb-agent").await.unwrap();
    let agent = container(agent.spec.unwrap().template);
    let mut help = lab.command(binary("ebb-agent"));
    let help = String::from_utf8(help.arg("--help").output().unwrap().stdout).unwrap();
    for arg in agent.args.unwrap() {
        let flag = arg.split('=').next().unwrap();
        assert!(help.contains(&format!("{flag} ")), "the agent has no flag {flag}");
    }

    let maps = Api::<ConfigMap>::namespaced(client.clone(), "ebb");
    let config = maps.get("ebb-coordinator").await.unwrap().data.unwrap().remove("config.yaml").unwrap();
    let path = lab.dir.join("conf/config.yaml");
    std::fs::write(&path, config).unwrap();
    let deployment = Api::<Deployment>::namespaced(client, "ebb").get("ebb-coordinator").await.unwrap();
    let Container { args, .. } = container(deployment.spec.unwrap().template);
    let args = args.unwrap().into_iter().filter(|arg| arg != "--config=/etc/ebb/config.yaml");
    let mut check = lab.command(binary("ebb-coordinator"));
    let output = check.arg("--config").arg(&path).arg("--check-config").args(args).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
async fn coordinator_is_restricted_and_the_agent_needs_the_label_of_its_namespace() {
    let (lab, file) = lab_with_namespace().await;
    lab.kubectl(&["apply", SERVER_SIDE, "--filename", &file]).await;
    for level in ["restricted", "privileged"] {
        lab.kubectl(&["create", "namespace", level]).await;
        let label = |mode: &str| format!("pod-security.kubernetes.io/{mode}={level}");
        lab.kubectl(&["label", "namespace", level, &label("enforce"), &label("warn")]).await;
    }
    let admit = async |kind: &str, name: &str, namespace: &str| {
        let object = lab.kubectl(&["get", kind, name, "--namespace=ebb", "--output=json"]).await;
        let mut object: Value = serde_json::from_str(&object).unwrap();
        object["metadata"] = json!({"name": name, "namespace": namespace});
        let file = lab.dir.join("conf").join(format!("{name}-{namespace}.json"));
        std::fs::write(&file, object.to_string()).unwrap();
        lab.try_kubectl(&["create", "--dry-run=server", NO_WARNINGS, "--filename", file.to_str().unwrap()]).await
    };

    admit("deployment", "ebb-coordinator", "restricted").await.unwrap();
    admit("daemonset", "ebb-agent", "privileged").await.unwrap();
    let refused = admit("daemonset", "ebb-agent", "restricted").await.unwrap_err();
    for reason in [r#""BPF", "PERFMON""#, "hostPath", "runAsUser=0"] {
        assert!(refused.contains(reason), "{reason} is not in: {refused}");
    }
    // And nothing else that the level forbids.
    for reason in ["hostPID", "hostNetwork", "allowPrivilegeEscalation", "seccompProfile", "privileged "] {
        assert!(!refused.contains(reason), "{reason} is in: {refused}");
    }
}

#[tokio::test]
async fn agents_token_is_worth_its_own_node_and_nothing_else() {
    let installed = Installed::up().await;
    let Installed { lab, nodes: [own, other], work: [own_work, other_work], .. } = &installed;
    let agent = installed.agent_on(own).await;
    let token = lab.service_account_token("ebb", "ebb-agent", Lab::API_AUDIENCE, Some(&agent)).await;
    let plain = lab.write_kubeconfig("agent", &token);
    let as_itself = ebb_tests::client(&plain).await;
    let as_own = impersonating(&plain, own).await;
    let as_other = impersonating(&plain, other).await;

    assert_answers("own node", all_on(&as_own, own, own_work).await, |code| code == 200);
    assert_answers("another node", all_on(&as_own, other, other_work).await, |code| code == 403);
    assert_answers("its own node as itself", all_on(&as_itself, own, own_work).await, |code| code == 403);
    assert_answers("another node as that one", all_on(&as_other, other, other_work).await, |code| code == 403);
    assert_answers("own node as another", all_on(&as_other, own, own_work).await, |code| code == 403);
    assert_answers("beyond a drain", beyond_a_drain(&as_own, own, own_work).await, |code| code == 403);

    // Not bound to a pod, it is bound to no node.
    let token = lab.service_account_token("ebb", "ebb-agent", Lab::API_AUDIENCE, None).await;
    let unbound = impersonating(&lab.write_kubeconfig("unbound", &token), own).await;
    assert_answers("a token of no pod", all_on(&unbound, own, own_work).await, |code| code == 403);
}

#[tokio::test]
async fn coordinators_token_may_change_one_annotation_of_nodes() {
    let installed = Installed::up().await;
    let Installed { lab, nodes: [node, _], work: [work, _], .. } = &installed;
    let token = lab.service_account_token("ebb", "ebb-coordinator", Lab::API_AUDIENCE, None).await;
    let client = ebb_tests::client(&lab.write_kubeconfig("coordinator", &token)).await;
    let nodes = Api::<Node>::all(client.clone());
    let patch =
        async |change: Value| nodes.patch(node, &PatchParams::default(), &Patch::Merge(change)).await.map(|_| ());
    let annotate = |value: Value| json!({"metadata": {"annotations": {"ebb.dev/drain": value}}});
    // The admission policy is not in force at once.
    let label = json!({"metadata": {"labels": {"pool": "gpu"}}});
    lab.wait_until("the admission policy", SOON, async || {
        let dry_run = PatchParams { dry_run: true, ..Default::default() };
        code(nodes.patch(node, &dry_run, &Patch::Merge(&label)).await) == 403
    })
    .await;

    let admin = Api::<Node>::all(lab.client().await);
    for value in [json!("one"), json!("two"), Value::Null] {
        patch(annotate(value.clone())).await.unwrap();
        let node = admin.get(node).await.unwrap();
        assert_eq!(node.annotations().get("ebb.dev/drain").map(String::as_str), value.as_str());
    }
    let existing = admin.get(node).await.unwrap().annotations().keys().next().cloned().expect("KWOK's annotation");
    for change in [
        json!({"spec": {"unschedulable": true}}),
        json!({"spec": {"taints": [{"key": "a", "effect": "NoExecute"}]}}),
        label,
        json!({"metadata": {"labels": {"kubernetes.io/os": null}}}),
        json!({"metadata": {"annotations": {"other": "x"}}}),
        json!({"metadata": {"annotations": {"ebb.dev/drain-progress": "x"}}}),
        json!({"metadata": {"annotations": {&existing: "x"}}}),
        json!({"metadata": {"annotations": {&existing: null}}}),
        json!({"metadata": {"annotations": {"ebb.dev/drain": "x", "other": "x"}}}),
        json!({"metadata": {"annotations": {"ebb.dev/drain": "x"}, "labels": {"pool": "x"}}}),
        json!({"metadata": {"finalizers": ["ebb.dev/x"]}}),
        json!({"metadata": {"ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "x", "uid": "x"}]}}),
    ] {
        match patch(change.clone()).await {
            Err(Error::Api(status)) if status.code == 403 && status.message.contains("the coordinator may") => {}
            answer => panic!("{change} was not refused by the admission policy: {answer:?}"),
        }
    }
    assert_answers("its work", coordinators_work(&client).await, |code| code == 200);
    assert_answers("what is not there", coordinators_look_at_buffers(&client).await, |code| code == 404);
    assert_answers("beyond its work", beyond_coordinators_work(&client, node, work).await, |code| code == 403);
}

const SERVER_SIDE: &str = "--server-side";
const STRICT: &str = "--validate=strict";
const NO_WARNINGS: &str = "--warnings-as-errors";

type Answers = Vec<(&'static str, u16)>;

/// A lab with two nodes, the manifests, and a pod of somebody else's on each node.
struct Installed {
    lab: Lab,
    nodes: [String; 2],
    /// Names of pods in `default`, one on each of the nodes.
    work: [String; 2],
}

impl Installed {
    async fn up() -> Self {
        let (lab, file) = lab_with_namespace().await;
        lab.kubectl(&["apply", SERVER_SIDE, "--filename", &file]).await;
        let nodes = lab.group("cpu-workers").await.instances.into_iter().map(|instance| instance.node);
        let nodes: [String; 2] = nodes.collect::<Vec<_>>().try_into().expect("two instances");
        let work = ["work-0".to_owned(), "work-1".to_owned()];
        for (node, name) in nodes.iter().zip(&work) {
            let pod = json!({
                "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"},
                "spec": {"nodeName": node, "containers": [{"name": "work", "image": "work"}]},
            });
            lab.apply(&pod.to_string()).await;
        }
        let agents = Api::<DaemonSet>::namespaced(lab.client().await, "ebb");
        lab.wait_until("an agent on both nodes", SOON, async || {
            agents.get("ebb-agent").await.unwrap().status.unwrap().number_ready == 2
        })
        .await;
        Self { lab, nodes, work }
    }

    async fn agent_on(&self, node: &str) -> Pod {
        let pods = Api::<Pod>::namespaced(self.lab.client().await, "ebb");
        let on_node =
            ListParams::default().fields(&format!("spec.nodeName={node}")).labels("app.kubernetes.io/component=agent");
        pods.list(&on_node).await.unwrap().items.pop().expect("an agent on the node")
    }
}

/// Also the path of the manifests, whose namespace is there: what is in it can only be tried in one that exists.
async fn lab_with_namespace() -> (Lab, String) {
    let group = "name=cpu-workers,min=2,max=10".to_owned();
    let lab = Lab::up(LabOptions { groups: vec![group], ..Default::default() }).await;
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../deploy/manifests/ebb.yaml");
    let manifests = std::fs::read_to_string(&file).unwrap();
    let namespace = manifests.split("\n---\n").find(|document| document.contains("\nkind: Namespace\n"));
    let path = lab.dir.join("conf/namespace.yaml");
    std::fs::write(&path, namespace.expect("the manifests bring their namespace")).unwrap();
    lab.kubectl(&["apply", SERVER_SIDE, STRICT, NO_WARNINGS, "--filename", path.to_str().unwrap()]).await;
    lab.wait_until("both nodes", SOON, async || {
        Api::<Node>::all(lab.client().await).list(&ListParams::default()).await.unwrap().items.len() == 2
    })
    .await;
    (lab, file.to_string_lossy().into_owned())
}

/// The bearer of a kubeconfig, in the name of a node.
async fn impersonating(kubeconfig: &Path, node: &str) -> Client {
    let mut file = Kubeconfig::read_from(kubeconfig).unwrap();
    let user = file.auth_infos[0].auth_info.as_mut().unwrap();
    user.impersonate = Some(format!("system:node:{node}"));
    let config = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.unwrap();
    Client::try_from(config).unwrap()
}

/// All that the agent does with a node and the pods on it.
async fn all_on(client: &Client, node: &str, pod: &str) -> Answers {
    let nodes = Api::<Node>::all(client.clone());
    let pods = Api::<Pod>::all(client.clone());
    let merge = async |change: Value| code(nodes.patch(node, &PatchParams::default(), &Patch::Merge(change)).await);
    let name = format!("metadata.name={node}");
    let on_node = format!("spec.nodeName={node}");
    let condition =
        json!({"status": {"conditions": [{"type": "DrainInProgress", "status": "True", "reason": "Test"}]}});
    let dry_run = PostParams { dry_run: true, ..Default::default() };
    vec![
        ("get the node", code(nodes.get(node).await)),
        ("list the node", code(nodes.list(&ListParams::default().fields(&name)).await)),
        ("watch the node", watch(client, "/api/v1/nodes", &name).await),
        ("annotate", merge(json!({"metadata": {"annotations": {"ebb.dev/drain-progress": "x"}}})).await),
        (
            "take the annotation off",
            merge(json!({"metadata": {"annotations": {"ebb.dev/drain-progress": null}}})).await,
        ),
        ("cordon", merge(json!({"spec": {"unschedulable": true}})).await),
        ("uncordon", merge(json!({"spec": {"unschedulable": null}})).await),
        ("set a condition", {
            let strategic = Patch::Strategic(condition);
            code(nodes.patch_status(node, &PatchParams::default(), &strategic).await)
        }),
        ("list its pods", code(pods.list(&ListParams::default().fields(&on_node)).await)),
        ("watch its pods", watch(client, "/api/v1/pods", &on_node).await),
        ("evict a pod", {
            let pods = Api::<Pod>::namespaced(client.clone(), "default");
            code(pods.evict(pod, &EvictParams { post_options: dry_run, ..Default::default() }).await)
        }),
    ]
}

/// What a node may do and an agent may not, or neither.
async fn beyond_a_drain(client: &Client, node: &str, pod: &str) -> Answers {
    let nodes = Api::<Node>::all(client.clone());
    let pods = Api::<Pod>::namespaced(client.clone(), "default");
    let taint = json!({"spec": {"taints": [{"key": "a", "effect": "NoSchedule"}]}});
    vec![
        ("taint", code(nodes.patch(node, &PatchParams::default(), &Patch::Merge(taint)).await)),
        ("delete the node", code(nodes.delete(node, &dry_delete()).await)),
        ("delete a pod", code(pods.delete(pod, &dry_delete()).await)),
        ("read a pod", code(pods.get(pod).await)),
        ("list all pods", code(Api::<Pod>::all(client.clone()).list(&ListParams::default()).await)),
        ("list all nodes", code(nodes.list(&ListParams::default()).await)),
        ("read the coordinator's configuration", {
            code(Api::<ConfigMap>::namespaced(client.clone(), "ebb").get("ebb-coordinator").await)
        }),
        ("list secrets", code(Api::<Secret>::all(client.clone()).list(&ListParams::default()).await)),
        ("patch its pod's status", {
            let status = json!({"status": {"message": "x"}});
            code(pods.patch_status(pod, &PatchParams::default(), &Patch::Merge(status)).await)
        }),
    ]
}

async fn coordinators_work(client: &Client) -> Answers {
    let review = json!({"metadata": {}, "spec": {"token": "x", "audiences": ["ebb-coordinator"]}});
    let event = json!({
        "metadata": {"name": "x", "namespace": "default"}, "regarding": {"kind": "Node", "name": "x"}, "action": "Test",
        "eventTime": "2026-11-24T03:00:00.000000Z", "reason": "Test", "reportingController": "ebb.dev/test",
        "reportingInstance": "x", "type": "Normal",
    });
    let named = |name: &str| json!({"metadata": {"name": name}});
    let mut answers = vec![
        ("list nodes", code(Api::<Node>::all(client.clone()).list(&ListParams::default()).await)),
        ("list pods", code(Api::<Pod>::all(client.clone()).list(&ListParams::default()).await)),
        ("watch nodes", watch(client, "/api/v1/nodes", "").await),
        ("watch pods", watch(client, "/api/v1/pods", "").await),
        ("watch claims", watch(client, "/api/v1/persistentvolumeclaims", "").await),
        ("watch volumes", watch(client, "/api/v1/persistentvolumes", "").await),
        ("watch disruption budgets", watch(client, "/apis/policy/v1/poddisruptionbudgets", "").await),
        ("watch storage classes", watch(client, "/apis/storage.k8s.io/v1/storageclasses", "").await),
        ("review a token", create(Api::<TokenReview>::all(client.clone()), review).await),
        ("create an event", create(Api::<Event>::namespaced(client.clone(), "default"), event).await),
    ];
    answers.extend(create_and_replace(Api::<Lease>::namespaced(client.clone(), "ebb"), named("ebb-coordinator")).await);
    let secrets = Api::<Secret>::namespaced(client.clone(), "ebb");
    answers.extend(create_and_replace(secrets, named("ebb-coordinator-tls")).await);
    let config_maps = Api::<ConfigMap>::namespaced(client.clone(), "ebb");
    answers.extend(create_and_replace(config_maps.clone(), named("ebb-coordinator-ca")).await);
    answers.extend(create_and_replace(config_maps, named("ebb-coordinator-status")).await);
    answers
}

/// Whose definition is not installed, and what they would refer to.
async fn coordinators_look_at_buffers(client: &Client) -> Answers {
    let buffers = "/apis/autoscaling.x-k8s.io/v1beta1";
    let status = json!({"status": {"replicas": 1}});
    let patch = Request::new(format!("{buffers}/namespaces/default/capacitybuffers"));
    let patch = patch.patch_subresource("status", "x", &PatchParams::default(), &Patch::Merge(&status)).unwrap();
    let get = async |path: &str| {
        let (path, name) = path.rsplit_once('/').unwrap();
        code(client.request_text(Request::new(path).get(name, &GetParams::default()).unwrap()).await)
    };
    vec![
        ("watch buffers", watch(client, &format!("{buffers}/capacitybuffers"), "").await),
        ("write a buffer's status", code(client.request_text(patch).await)),
        ("read a pod template", get("/api/v1/namespaces/default/podtemplates/x").await),
        ("read a replication controller", get("/api/v1/namespaces/default/replicationcontrollers/x").await),
        ("read a deployment", get("/apis/apps/v1/namespaces/default/deployments/x").await),
        ("read a replica set", get("/apis/apps/v1/namespaces/default/replicasets/x").await),
        ("read a stateful set", get("/apis/apps/v1/namespaces/default/statefulsets/x").await),
        ("read a job", get("/apis/batch/v1/namespaces/default/jobs/x").await),
    ]
}

async fn beyond_coordinators_work(client: &Client, node: &str, pod: &str) -> Answers {
    let nodes = Api::<Node>::all(client.clone());
    let pods = Api::<Pod>::namespaced(client.clone(), "default");
    let dry_run = PostParams { dry_run: true, ..Default::default() };
    let status = json!({"status": {"conditions": []}});
    vec![
        ("delete a node", code(nodes.delete(node, &dry_delete()).await)),
        ("create a node", create(nodes.clone(), json!({"metadata": {"name": "x"}})).await),
        ("patch a node's status", {
            code(nodes.patch_status(node, &PatchParams::default(), &Patch::Merge(status)).await)
        }),
        ("delete a pod", code(pods.delete(pod, &dry_delete()).await)),
        ("evict a pod", code(pods.evict(pod, &EvictParams { post_options: dry_run, ..Default::default() }).await)),
        ("list deployments", code(Api::<Deployment>::all(client.clone()).list(&ListParams::default()).await)),
        ("change a buffer", {
            let buffers = Request::new("/apis/autoscaling.x-k8s.io/v1beta1/namespaces/default/capacitybuffers");
            let change = Patch::Merge(json!({"spec": {"replicas": 9}}));
            code(client.request_text(buffers.patch("x", &PatchParams::default(), &change).unwrap()).await)
        }),
        ("list secrets", { code(Api::<Secret>::namespaced(client.clone(), "ebb").list(&ListParams::default()).await) }),
        ("read another secret", code(Api::<Secret>::namespaced(client.clone(), "ebb").get("other").await)),
        ("read another lease", code(Api::<Lease>::namespaced(client.clone(), "ebb").get("other").await)),
        ("read a secret elsewhere", {
            code(Api::<Secret>::namespaced(client.clone(), "default").get("ebb-coordinator-tls").await)
        }),
        ("change its configuration", {
            let change = Patch::Merge(json!({"data": {"config.yaml": "groups: []"}}));
            let maps = Api::<ConfigMap>::namespaced(client.clone(), "ebb");
            code(maps.patch("ebb-coordinator", &PatchParams::default(), &change).await)
        }),
    ]
}

async fn create_and_replace<K>(api: Api<K>, object: Value) -> Answers
where
    K: Clone + std::fmt::Debug + DeserializeOwned + serde::Serialize,
{
    let name = object["metadata"]["name"].as_str().unwrap().to_owned();
    let created = create(api.clone(), object).await;
    let got = api.get(&name).await;
    // An update says which version it is of.
    let replaced = match &got {
        Ok(object) => code(api.replace(&name, &PostParams::default(), object).await),
        Err(_) => 0,
    };
    vec![("create its own", created), ("get its own", code(got)), ("replace its own", replaced)]
}

async fn create<K>(api: Api<K>, object: Value) -> u16
where
    K: Clone + std::fmt::Debug + DeserializeOwned + serde::Serialize,
{
    code(api.create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await)
}

/// The answer to a watch of a second.
async fn watch(client: &Client, path: &str, fields: &str) -> u16 {
    let params = WatchParams::default().fields(fields).timeout(1);
    code(client.request_text(Request::new(path).watch(&params, "0").unwrap()).await)
}

fn dry_delete() -> DeleteParams {
    DeleteParams { dry_run: true, ..Default::default() }
}

fn code<T>(answer: kube::Result<T>) -> u16 {
    match answer {
        Ok(_) => 200,
        Err(Error::Api(status)) => status.code,
        Err(error) => panic!("no answer: {error}"),
    }
}

/// All at once, so that a failure shows which rights differ.
fn assert_answers(subject: &str, answers: Answers, expected: fn(u16) -> bool) {
    let wrong: Vec<_> = answers.iter().filter(|(_, code)| !expected(*code)).collect();
    assert!(wrong.is_empty(), "{subject}: {wrong:?}, of {} asked", answers.len());
}
