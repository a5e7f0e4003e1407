//! What an agent's token is worth on a real API server: one node, whichever way the agent is held to it. Everything
//! else is tried, and refused.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::time::Duration;

use ebb_tests::rights::{
    Installed, SERVER_SIDE, agent_on, all_on, assert_answers, code, delete_pod, evict, impersonating,
    lab_with_namespace, nodes, reads_beyond_a_drain, what_kubelets_write, work_on, writes_beyond_a_drain, writes_on,
};
use ebb_tests::{Ebb, Lab, LabOptions, Rights, binary, client};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, PostParams};
use kube::{Api, Client, ResourceExt};
use serde_json::json;

const SOON: Duration = Duration::from_secs(60);
/// For how long the API server believes a token that it has looked at.
const BELIEVED: Duration = Duration::from_secs(30);

#[tokio::test]
async fn as_its_node_an_agents_token_is_worth_that_node_and_nothing_else() {
    let (lab, file) = lab_with_namespace(LabOptions::default(), "ebb.yaml").await;
    let installed = Installed::on(lab, &file).await;
    let Installed { lab, nodes: [own, other], work: [own_work, other_work] } = &installed;
    let agent = agent_on(lab, own).await;
    let token = lab.service_account_token("ebb", "ebb-agent", Lab::API_AUDIENCE, Some(&agent)).await;
    let plain = lab.write_kubeconfig("agent", &token);
    let as_itself = client(&plain).await;
    let as_own = impersonating(&plain, own).await;
    let as_other = impersonating(&plain, other).await;

    assert_answers("own node", &all_on(&as_own, own, own_work).await, |code| code == 200);
    assert_answers("another node", &all_on(&as_own, other, other_work).await, |code| code == 403);
    assert_answers("its own node as itself", &all_on(&as_itself, own, own_work).await, |code| code == 403);
    assert_answers("another node as that one", &all_on(&as_other, other, other_work).await, |code| code == 403);
    assert_answers("own node as another", &all_on(&as_other, own, own_work).await, |code| code == 403);
    for (node, work) in [(own, own_work), (other, other_work)] {
        let beyond = writes_beyond_a_drain(&as_own, node, work).await;
        assert_answers(&format!("beyond a drain, on {node}"), &beyond, |code| code == 403);
        assert_eq!(delete_pod(&as_own, work).await, 403, "evictions only, without agent.drain.deleteAtDeadline");
    }
    assert_answers("another node's figures", &what_kubelets_write(&as_own, other).await, |code| code == 403);
    assert_answers("reads", &reads_beyond_a_drain(&as_own, own_work).await, |code| code == 403);

    // Not bound to a pod, it is bound to no node.
    let token = lab.service_account_token("ebb", "ebb-agent", Lab::API_AUDIENCE, None).await;
    let unbound = impersonating(&lab.write_kubeconfig("unbound", &token), own).await;
    assert_answers("a token of no pod", &all_on(&unbound, own, own_work).await, |code| code == 403);

    // The API server compares names: until the pod of the token is collected, it is worth the new node of that name.
    let bound = agents_pod(lab, "left-over", other).await;
    let token = lab.service_account_token("ebb", "ebb-agent", Lab::API_AUDIENCE, Some(&bound)).await;
    let left_over = impersonating(&lab.write_kubeconfig("left-over", &token), other).await;
    recreate(lab, other).await;
    assert_answers("the node of that name", &writes_on(&left_over, other, other_work).await, |code| code == 200);
    is_worth_nothing_without_its_pod(lab, &left_over, &bound, other, other_work).await;

    // The check sees the same.
    let said = check(lab, &[]);
    assert_says(said, 0, &["Agents act as their nodes", "it reaches its own node, and no other"], &["not known"]);

    is_worth_nothing_without_its_pod(lab, &as_own, &agent, own, own_work).await;

    // A plain role reaches all nodes, whatever else holds.
    let role = "--verb=patch,create";
    lab.kubectl(&["create", "clusterrole", "careless", role, "--resource=nodes,pods/eviction"]).await;
    let account = "--serviceaccount=ebb:ebb-agent";
    lab.kubectl(&["create", "clusterrolebinding", "careless", "--clusterrole=careless", account]).await;
    let beyond = "UNSAFE with a token of one node it may, on all: patch nodes, create nodes, create pods/eviction";
    let reached = "a token of one node's agent reaches another node and a pod on another node";
    assert_says(check(lab, &[]), 1, &[beyond, "find what grants it", reached], &[]);
}

#[tokio::test]
async fn the_check_tells_what_a_cluster_lacks() {
    let options = LabOptions {
        apiserver_args: vec!["--feature-gates=ConstrainedImpersonation=false".into()],
        ..Default::default()
    };
    let (lab, file) = lab_with_namespace(options, "ebb.yaml").await;
    let nothing = "No agent is installed that is held to its own node";
    let best = "This cluster can have the chart's agent.rights=admission";
    assert_says(check(&lab, &[]), 1, &[nothing, best], &[]);

    let installed = Installed::on(lab, &file).await;
    let lab = &installed.lab;
    let off = "the API server has it switched off";
    let lost = "an agent's token does not reach its own node: no drain works";
    // It does not take the agents to say whether NodeRestriction is on.
    let restricted = "NodeRestriction ok in the name of a node";
    assert_says(check(lab, &[]), 1, &[off, "agent.rights=admission", lost, restricted], &["UNSAFE", "not known"]);

    // By hand, as no chart of ours: the agents work, and so does a thief.
    let role = ["--verb=get,list,watch,patch,create", "--resource=nodes,nodes/status,pods,pods/eviction"];
    lab.kubectl(&["create", "clusterrole", "careless", role[0], role[1]]).await;
    let account = "--serviceaccount=ebb:ebb-agent";
    lab.kubectl(&["create", "clusterrolebinding", "careless", "--clusterrole=careless", account]).await;
    lab.kubectl(&["delete", "clusterrolebinding", "ebb-agent"]).await;
    let reached = "a token of one node's agent reaches another node and a pod on another node";
    assert_says(check(lab, &[]), 1, &[reached, "with a token of one node it may, on all: patch nodes"], &[]);

    // Who may nothing learns nothing, and is told what to ask for.
    lab.kubectl(&["create", "serviceaccount", "nobody"]).await;
    let token = lab.service_account_token("default", "nobody", Lab::API_AUDIENCE, None).await;
    let nobody = lab.write_kubeconfig("nobody", &token);
    let said = check(lab, &["--kubeconfig", nobody.to_str().unwrap()]);
    assert_says(said, 0, &["not known you may not review others' rights", "subjectaccessreviews"], &["UNSAFE"]);
}

#[tokio::test]
async fn as_itself_an_agents_token_is_worth_its_node_and_nothing_else() {
    let mut ebb = admission().await;
    let lab = &ebb.lab;
    let [own, other] = nodes(lab).await;
    let [own_work, other_work] = [work_on(lab, "work-0", &own).await, work_on(lab, "work-1", &other).await];
    let agent = agent_on(lab, &own).await;
    let token = lab.service_account_token("ebb", "ebb-agent", Lab::API_AUDIENCE, Some(&agent)).await;
    let plain = lab.write_kubeconfig("agent", &token);
    let as_itself = client(&plain).await;
    in_force(lab, &as_itself, &own, &own_work).await;

    assert_answers("own node", &all_on(&as_itself, &own, &own_work).await, |code| code == 200);
    assert_answers("another node", &writes_on(&as_itself, &other, &other_work).await, |code| code == 403);
    for (node, work) in [(&own, &own_work), (&other, &other_work)] {
        let beyond = writes_beyond_a_drain(&as_itself, node, work).await;
        assert_answers(&format!("beyond a drain, on {node}"), &beyond, |code| code == 403);
        let figures = what_kubelets_write(&as_itself, node).await;
        assert_answers(&format!("what kubelets write, on {node}"), &figures, |code| code == 403);
        assert_eq!(delete_pod(&as_itself, work).await, 403, "evictions only, without agent.drain.deleteAtDeadline");
    }
    assert_eq!(evict(&as_itself, &own_work, None).await, 403, "an eviction without UID");
    assert_eq!(evict(&as_itself, &own_work, Some("of-another")).await, 409, "an eviction of one that is not there");
    let gone =
        Pod { metadata: ObjectMeta { name: Some("gone".into()), ..own_work.metadata.clone() }, ..Pod::default() };
    assert_eq!(evict(&as_itself, &gone, gone.uid().as_deref()).await, 404, "an eviction of none of that name");
    let as_node = impersonating(&plain, &own).await;
    assert_answers("as its node", &all_on(&as_node, &own, &own_work).await, |code| code == 403);

    // Not bound to a pod, it is bound to no node.
    let token = lab.service_account_token("ebb", "ebb-agent", Lab::API_AUDIENCE, None).await;
    let unbound = client(&lab.write_kubeconfig("unbound", &token)).await;
    assert_answers("a token of no pod", &writes_on(&unbound, &own, &own_work).await, |code| code == 403);
    // Others' evictions are nobody's business here.
    assert_eq!(evict(&lab.client().await, &other_work, None).await, 200);

    // The node is made anew under its name, while the pod of the token is still there.
    let bound = agents_pod(lab, "left-over", &other).await;
    let token = lab.service_account_token("ebb", "ebb-agent", Lab::API_AUDIENCE, Some(&bound)).await;
    let left_over = client(&lab.write_kubeconfig("left-over", &token)).await;
    assert_answers("the node that was", &writes_on(&left_over, &other, &other_work).await, |code| code == 200);
    recreate(lab, &other).await;
    assert_answers("the node of that name", &writes_on(&left_over, &other, &other_work).await, |code| code == 403);

    let said = check(lab, &[]);
    assert_says(said, 0, &["held by admission", "it reaches its own node, and no other"], &["not known"]);

    is_worth_nothing_without_its_pod(lab, &as_itself, &agent, &own, &own_work).await;

    // Without a coordinator nobody knows where a pod is, and none is evicted; the node can still be cordoned.
    let agent = agents_pod(&ebb.lab, "second", &own).await;
    let token = ebb.lab.service_account_token("ebb", "ebb-agent", Lab::API_AUDIENCE, Some(&agent)).await;
    let as_itself = client(&ebb.lab.write_kubeconfig("second", &token)).await;
    assert_eq!(evict(&as_itself, &own_work, own_work.uid().as_deref()).await, 200);
    ebb.kill_coordinator();
    assert_eq!(evict(&as_itself, &own_work, own_work.uid().as_deref()).await, 500);
    let rest = writes_on(&as_itself, &own, &own_work).await;
    assert_answers("the rest", rest.split_last().unwrap().1, |code| code == 200);

    ebb.lab.kubectl(&["delete", "validatingwebhookconfiguration", "ebb-agent"]).await;
    let unheld = "agent: held to its pods UNSAFE not there";
    let reached = "a token of one node's agent reaches a pod on another node";
    ebb.lab
        .wait_until("the API server to forget the webhook", SOON, async || check(&ebb.lab, &[]).1.contains(reached))
        .await;
    assert_says(check(&ebb.lab, &[]), 1, &[unheld, "on all: create pods/eviction"], &[]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_acts_as_itself_drains_its_node() {
    let mut ebb = admission().await;
    let node = nodes(&ebb.lab).await[0].clone();
    let agents = "an agent on both nodes";
    ebb.wait_until(agents, SOON, async |ebb| ebb.agent_pods().await.len() == 2).await;
    let set = json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": "web"}, "spec": {
        "replicas": 1, "selector": {"matchLabels": {"app": "web"}},
        "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"terminationGracePeriodSeconds": 0,
            "nodeSelector": {"kubernetes.io/hostname": node}, "containers": [{"name": "web", "image": "web"}]}}}});
    ebb.lab.apply(&set.to_string()).await;
    let running = async |ebb: &Ebb| {
        let words = ["get", "pods", "--field-selector=status.phase=Running", "--output=name"];
        ebb.lab.kubectl(&words).await.lines().count()
    };
    ebb.wait_until("the work to run", SOON, async |ebb| running(ebb).await == 1).await;

    let mut drain = ebb.lab.command(binary("ebb"));
    let output = drain.args(["drain", &node, "--timeout", "2m"]).output().unwrap();
    assert!(output.status.success(), "{output:?}\n{}", ebb.lab.log(&format!("agent-{node}")));
    assert_eq!(running(&ebb).await, 0);
    let drained = Api::<Node>::all(ebb.client.clone()).get(&node).await.unwrap();
    assert_eq!(drained.spec.unwrap().unschedulable, Some(true));
    assert!(ebb.ebb(&["drain", &node, "--cancel"]).contains("nothing is left of one"));
}

#[tokio::test]
async fn pods_of_its_own_node_are_deleted_only_where_the_operator_wants_it() {
    let lab = LabOptions::default;
    let delete = "agent.drain.deleteAtDeadline=true";
    for rights in ["impersonation", "admission"] {
        let (lab, _) = lab_with_namespace(lab(), "ebb.yaml").await;
        let mut render = lab.command(binary("xtask"));
        let output = render.args(["manifests", "--set", delete, "--set", &format!("agent.rights={rights}")]).output();
        let file = lab.dir.join("conf/manifests.yaml");
        std::fs::write(&file, output.unwrap().stdout).unwrap();
        let installed = Installed::on(lab, file.to_str().unwrap()).await;
        let Installed { lab, nodes: [own, _], work: [own_work, other_work] } = &installed;
        let agent = agent_on(lab, own).await;
        let token = lab.service_account_token("ebb", "ebb-agent", Lab::API_AUDIENCE, Some(&agent)).await;
        let plain = lab.write_kubeconfig("agent", &token);
        let as_own = match rights {
            "admission" => client(&plain).await,
            _ => impersonating(&plain, own).await,
        };
        lab.wait_until("the admission policy", SOON, async || delete_pod(&as_own, other_work).await == 403).await;
        assert_eq!(delete_pod(&as_own, own_work).await, 200, "{rights}");
        let all = Api::<Pod>::namespaced(as_own, "default");
        let dry_run = DeleteParams { dry_run: true, ..DeleteParams::default() };
        assert_eq!(code(all.delete_collection(&dry_run, &Default::default()).await), 403, "{rights}");
    }
}

/// What `ebb rbac check` ends with, and all it prints.
fn check(lab: &Lab, words: &[&str]) -> (i32, String) {
    let mut command = lab.command(binary("ebb"));
    let output = command.env("COLUMNS", "200").args(["rbac", "check"]).args(words).output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.code().unwrap(), printed)
}

/// Columns are as wide as what is in them: any blank is one.
#[track_caller]
fn assert_says((code, printed): (i32, String), expected: i32, parts: &[&str], none_of: &[&str]) {
    assert_eq!(code, expected, "{printed}");
    let printed = printed.split_whitespace().collect::<Vec<_>>().join(" ");
    for part in parts {
        assert!(printed.contains(part), "{part} is not in: {printed}");
    }
    for part in none_of {
        assert!(!printed.contains(part), "{part} is in: {printed}");
    }
}

/// Two nodes, the manifests for `agent.rights: admission`, and the coordinator.
async fn admission() -> Ebb {
    let (lab, file) = lab_with_namespace(LabOptions::default(), "ebb-admission.yaml").await;
    lab.kubectl(&["apply", SERVER_SIDE, "--filename", &file]).await;
    let mut ebb = Ebb::install_with(lab, Rights::Admission).await;
    let config = ebb.config().await;
    ebb.start_coordinator(&config, &[]).await;
    let agents = "the agents' pods on both nodes";
    ebb.lab.wait_until(agents, SOON, async || ebb.agent_pods().await.len() == 2).await;
    ebb
}

/// Neither policy nor webhook are in force at once.
async fn in_force(lab: &Lab, agent: &Client, own: &str, work: &Pod) {
    lab.wait_until("policy and webhook", SOON, async || {
        let writes = writes_on(agent, own, work).await;
        let label = json!({"metadata": {"labels": {"pool": "gpu"}}});
        writes.iter().all(|(_, code)| *code == 200) && ebb_tests::rights::merge(agent, own, label).await == 403
    })
    .await;
}

/// A token is of a pod, and ends with it, wherever it was carried.
async fn is_worth_nothing_without_its_pod(lab: &Lab, bearer: &Client, pod: &Pod, node: &str, work: &Pod) {
    let pods = Api::<Pod>::namespaced(lab.client().await, "ebb");
    pods.delete(&pod.name_any(), &DeleteParams::default().grace_period(0)).await.unwrap();
    let nodes = Api::<Node>::all(bearer.clone());
    lab.wait_until("the token to end", BELIEVED, async || code(nodes.get(node).await) == 401).await;
    assert_answers("a token whose pod is gone", &all_on(bearer, node, work).await, |code| code == 401);
}

/// A pod of the agent's ServiceAccount that no DaemonSet looks after.
async fn agents_pod(lab: &Lab, name: &str, node: &str) -> Pod {
    let pod = json!({"metadata": {"name": name}, "spec": {"nodeName": node, "serviceAccountName": "ebb-agent",
        "containers": [{"name": "agent", "image": "agent"}]}});
    let pods = Api::<Pod>::namespaced(lab.client().await, "ebb");
    pods.create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap()
}

/// The same name, another UID.
async fn recreate(lab: &Lab, name: &str) {
    let nodes = Api::<Node>::all(lab.client().await);
    let mut node = nodes.get(name).await.unwrap();
    let old = node.uid();
    nodes.delete(name, &DeleteParams::default()).await.unwrap();
    (node.metadata.uid, node.metadata.resource_version) = (None, None);
    node.metadata.creation_timestamp = None;
    let new = nodes.create(&PostParams::default(), &node).await.unwrap();
    assert_ne!(new.uid(), old);
}
