//! The committed manifests on a real API server: it takes them without a warning, and the rights in them are enough and
//! no more for the coordinator, whose token is worth one annotation; what an agent's is worth is in `rights.rs`.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::time::Duration;

use ebb_tests::rights::{
    Answers, Installed, NO_WARNINGS, SERVER_SIDE, STRICT, assert_answers, code, delete_pod, evict, lab_with_namespace,
    watch,
};
use ebb_tests::{Lab, LabOptions, binary};
use k8s_openapi::api::admissionregistration::v1::ValidatingAdmissionPolicy;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::authentication::v1::TokenReview;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Container, Node, Pod, PodTemplateSpec, Secret};
use k8s_openapi::api::events::v1::Event;
use kube::api::{Api, DeleteParams, GetParams, ListParams, Patch, PatchParams, PostParams, Request, ResourceExt};
use kube::{Client, Error};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(60);

#[tokio::test]
async fn manifests_are_taken_without_a_warning_and_make_their_pods() {
    for manifests in ["ebb.yaml", "ebb-admission.yaml", "ebb-brokered.yaml", "ebb-metrics-api.yaml", "ebb-ray.yaml"] {
        are_taken_without_a_warning_and_make_their_pods(manifests).await;
    }
}

async fn are_taken_without_a_warning_and_make_their_pods(manifests: &str) {
    let (lab, file) = lab_with_namespace(LabOptions::default(), manifests).await;
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

    // The API server's own reading of the policies' expressions against the types of their objects.
    let policies = Api::<ValidatingAdmissionPolicy>::all(client);
    lab.wait_until("the admission policies to be checked", SOON, async || {
        policies.list(&ListParams::default()).await.unwrap().into_iter().all(|policy| {
            let Some(checking) = policy.status.unwrap_or_default().type_checking else { return false };
            assert_eq!(checking.expression_warnings, None, "{:?}", policy.metadata.name);
            true
        })
    })
    .await;
}

#[tokio::test]
async fn binaries_take_the_flags_and_the_configuration_that_the_manifests_give_them() {
    for manifests in ["ebb.yaml", "ebb-admission.yaml", "ebb-brokered.yaml", "ebb-metrics-api.yaml", "ebb-ray.yaml"] {
        binaries_take_what_these_give_them(manifests).await;
    }
}

async fn binaries_take_what_these_give_them(manifests: &str) {
    let (lab, file) = lab_with_namespace(LabOptions::default(), manifests).await;
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
    let (lab, file) = lab_with_namespace(LabOptions::default(), "ebb.yaml").await;
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
async fn coordinators_token_may_change_one_annotation_of_nodes() {
    let (lab, file) = lab_with_namespace(LabOptions::default(), "ebb.yaml").await;
    let installed = Installed::on(lab, &file).await;
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
    assert_answers("its work", &coordinators_work(&client).await, |code| code == 200);
    assert_answers("what is not there", &coordinators_look_at_buffers(&client).await, |code| code == 404);
    assert_answers("beyond its work", &beyond_coordinators_work(&client, node, work).await, |code| code == 403);
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

async fn beyond_coordinators_work(client: &Client, node: &str, pod: &Pod) -> Answers {
    let nodes = Api::<Node>::all(client.clone());
    let status = json!({"status": {"conditions": []}});
    vec![
        ("delete a node", code(nodes.delete(node, &DeleteParams::default()).await)),
        ("create a node", create(nodes.clone(), json!({"metadata": {"name": "x"}})).await),
        ("patch a node's status", {
            code(nodes.patch_status(node, &PatchParams::default(), &Patch::Merge(status)).await)
        }),
        ("delete a pod", delete_pod(client, pod).await),
        ("evict a pod", evict(client, pod, pod.uid().as_deref()).await),
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
