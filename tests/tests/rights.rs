//! What an agent's token is worth on a real API server: one node, whichever way the agent is held to it. Everything
//! else is tried, and refused.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::time::Duration;

use ebb_core::drain::{EvictionOutcome, Target};
use ebb_kubernetes::eviction;
use ebb_tests::rights::{
    Installed, SERVER_SIDE, agent_on, all_on, assert_answers, code, delete_pod, evict, impersonating,
    lab_with_namespace, nodes, reads_beyond_a_drain, what_kubelets_write, work_on, writes_beyond_a_drain, writes_on,
};
use ebb_tests::{BROKER_AUDIENCE, Ebb, Lab, LabOptions, Rights, binary, client, client_that_asks_once};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
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
async fn a_token_that_an_earlier_node_of_the_same_name_left_over_ends() {
    let ebb = with_coordinator(Rights::Impersonation).await;
    let lab = &ebb.lab;
    let [_, node] = nodes(lab).await;
    let work = work_on(lab, "work", &node).await;
    let bound = agents_pod(lab, "left-over", &node).await;
    let token = lab.service_account_token("ebb", "ebb-agent", Lab::API_AUDIENCE, Some(&bound)).await;
    let left_over = impersonating(&lab.write_kubeconfig("left-over", &token), &node).await;
    assert_answers("the node that was", &writes_on(&left_over, &node, &work).await, |code| code == 200);

    recreate_after(lab, &node, &bound).await;
    let nodes = Api::<Node>::all(left_over.clone());
    lab.wait_until("the token to end", BELIEVED, async || code(nodes.get(&node).await) == 401).await;
    assert_answers("the node of that name", &writes_on(&left_over, &node, &work).await, |code| code == 401);

    // The DaemonSet's was left over as well, and has been made anew.
    lab.wait_until("an agent of the new node", SOON, async || {
        let made = |object: &ObjectMeta| object.creation_timestamp.clone();
        let of_node = made(&Api::<Node>::all(lab.client().await).get(&node).await.unwrap().metadata);
        let pods = ebb.agent_pods().await;
        pods.iter()
            .any(|pod| pod.spec.as_ref().unwrap().node_name.as_ref() == Some(&node) && made(&pod.metadata) >= of_node)
    })
    .await;
    let events = lab.kubectl(&["get", "events", "--all-namespaces", "--field-selector=reason=LeftOver"]).await;
    assert!(events.contains("deletes pod ebb/left-over"), "{events}");
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
    let mut ebb = with_coordinator(Rights::Admission).await;
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
    let after = writes_on(&left_over, &other, &other_work).await;
    // The coordinator may have deleted its pod by now.
    assert_answers("the node of that name", &after, |code| code == 403 || code == 401);

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

#[tokio::test]
async fn by_the_coordinator_an_agents_token_is_worth_its_node_and_nothing_else() {
    let mut ebb = with_coordinator(Rights::Brokered).await;
    let [own, other] = nodes(&ebb.lab).await;
    let [own_work, other_work] = [work_on(&ebb.lab, "work-0", &own).await, work_on(&ebb.lab, "work-1", &other).await];
    let agent = agent_on(&ebb.lab, &own).await;
    let token = async |ebb: &Ebb, account: &str, audience: &str, pod: Option<&Pod>| {
        ebb.lab.service_account_token("ebb", account, audience, pod).await
    };
    let api_token = token(&ebb, "ebb-agent", Lab::API_AUDIENCE, Some(&agent)).await;
    let as_itself = client(&ebb.lab.write_kubeconfig("agent", &api_token)).await;
    let all = all_on(&as_itself, &own, &own_work).await;
    let (reads, writes) = all.split_at(5);
    assert_answers("reads of its own node", reads, |code| code == 200);
    assert_answers("writes by itself", writes, |code| code == 403);
    let as_node = impersonating(&ebb.lab.dir.join("conf/agent.kubeconfig"), &own).await;
    assert_answers("as its node", &all_on(&as_node, &own, &own_work).await, |code| code == 403);

    let broker_token = token(&ebb, "ebb-agent", BROKER_AUDIENCE, Some(&agent)).await;
    let bearer = ebb.broker(&broker_token).await;
    // The policy that holds the coordinator is not in force at once, and forbids nothing of this.
    assert_answers("own node", &writes_on(&bearer, &own, &own_work).await, |code| code == 200);
    assert_answers("another node", &writes_on(&bearer, &other, &other_work).await, |code| code == 403);
    assert_eq!(evict(&bearer, &other_work, other_work.uid().as_deref()).await, 403, "a pod on another node");
    for (node, work) in [(&own, &own_work), (&other, &other_work)] {
        let beyond = writes_beyond_a_drain(&bearer, node, work).await;
        assert_answers(&format!("beyond a drain, on {node}"), &beyond, |code| code == 403);
        let figures = what_kubelets_write(&bearer, node).await;
        assert_answers(&format!("what kubelets write, on {node}"), &figures, |code| code == 403);
        assert_eq!(delete_pod(&bearer, work).await, 403, "evictions only, without agent.drain.deleteAtDeadline");
    }
    assert_answers("reads", &all_on(&bearer, &own, &own_work).await[..5], |code| code == 403);
    assert_answers("more reads", &reads_beyond_a_drain(&bearer, &own_work).await, |code| code == 403);

    // The API server's own answers come back as they are.
    assert_eq!(evict(&bearer, &own_work, None).await, 403, "an eviction without UID");
    assert_eq!(evict(&bearer, &own_work, Some("of-another")).await, 409, "an eviction of one that is not there");
    let gone =
        Pod { metadata: ObjectMeta { name: Some("gone".into()), ..own_work.metadata.clone() }, ..Pod::default() };
    assert_eq!(evict(&bearer, &gone, gone.uid().as_deref()).await, 404, "an eviction of none of that name");
    let stale = json!({"metadata": {"resourceVersion": "1"}, "spec": {"unschedulable": true}});
    assert_eq!(ebb_tests::rights::merge(&bearer, &own, stale).await, 409, "a Node that has changed since");
    ebb.lab.kubectl(&["label", "pod", "work-0", "app=held"]).await;
    ebb.lab.kubectl(&["create", "pdb", "held", "--selector=app=held", "--min-available=1"]).await;
    let target = Target { namespace: "default".into(), name: "work-0".into(), uid: own_work.uid().unwrap() };
    let admin = client_that_asks_once(&ebb.lab.kubeconfig).await;
    ebb.lab
        .wait_until("the budget to forbid it", SOON, async || {
            eviction::dry_run(&admin, &target).await.unwrap().outcome == EvictionOutcome::Blocked
        })
        .await;
    let said = eviction::dry_run(&bearer, &target).await.unwrap();
    assert_eq!(said, eviction::dry_run(&admin, &target).await.unwrap());
    assert_eq!(said.budget.as_deref(), Some("default/held"));
    ebb.lab.kubectl(&["delete", "pdb", "held"]).await;

    // Whose token it is, and for whom.
    let worth = async |ebb: &Ebb, token: &str| {
        let bearer = ebb.broker(token).await;
        writes_on(&bearer, &own, &own_work).await
    };
    assert_answers("for the API server", &worth(&ebb, &api_token).await, |code| code == 401);
    let reports = ebb.reports_token(&agent).await;
    assert_answers("for reports", &worth(&ebb, &reports).await, |code| code == 401);
    assert_answers("made up", &worth(&ebb, "x.y.z").await, |code| code == 401);
    let at_api = client(&ebb.lab.write_kubeconfig("broker", &broker_token)).await;
    assert_answers("at the API server", &all_on(&at_api, &own, &own_work).await, |code| code == 401);
    let unbound = token(&ebb, "ebb-agent", BROKER_AUDIENCE, None).await;
    assert_answers("of no pod", &worth(&ebb, &unbound).await, |code| code == 403);
    let of_another = token(&ebb, "ebb-coordinator", BROKER_AUDIENCE, None).await;
    assert_answers("of another account", &worth(&ebb, &of_another).await, |code| code == 403);
    ebb.lab.kubectl(&["create", "serviceaccount", "ebb-agent", "--namespace=default"]).await;
    let elsewhere = ebb.lab.service_account_token("default", "ebb-agent", BROKER_AUDIENCE, None).await;
    assert_answers("of another namespace", &worth(&ebb, &elsewhere).await, |code| code == 403);

    // The node is made anew under its name, while the pod of the token is still there.
    let bound = agents_pod(&ebb.lab, "left-over", &other).await;
    // As before Kubernetes 1.30, its token does not know its node: the pod had none then.
    let early = agents_pod(&ebb.lab, "early", "").await;
    let mut bearers = Vec::new();
    for pod in [&bound, &early] {
        let token = token(&ebb, "ebb-agent", BROKER_AUDIENCE, Some(pod)).await;
        bearers.push(ebb.broker(&token).await);
    }
    assert_answers("no node yet", &writes_on(&bearers[1], &other, &other_work).await, |code| code == 403);
    bind(&ebb.lab, "early", &other).await;
    for bearer in &bearers {
        assert_answers("the node that was", &writes_on(bearer, &other, &other_work).await, |code| code == 200);
        assert_answers("another", &writes_on(bearer, &own, &own_work).await, |code| code == 403);
    }
    recreate_after(&ebb.lab, &other, &early).await;
    for bearer in &bearers {
        let after = writes_on(bearer, &other, &other_work).await;
        assert_answers("the node of that name", &after, |code| code == 403 || code == 401);
    }

    let metrics = ebb.metrics().await;
    for row in [r#"call="evict",result="done""#, r#"call="patch_node",result="refused""#, r#"result="unauthenticated""#]
    {
        assert!(
            metrics.lines().any(|line| line.starts_with("ebb_coordinator_brokered_total{") && line.contains(row)),
            "{metrics}"
        );
    }
    let said = check(&ebb.lab, &[]);
    assert_says(said, 0, &["The coordinator writes for agents", "by itself it writes to no node"], &["not known"]);

    // Believed for a while is who it is of; that its pod is there is looked up each time.
    let pods = Api::<Pod>::namespaced(admin.clone(), "ebb");
    pods.delete(&agent.name_any(), &DeleteParams::default().grace_period(0)).await.unwrap();
    let after = writes_on(&bearer, &own, &own_work).await;
    assert_answers("a token whose pod is gone", &after, |code| code == 403 || code == 401);

    ebb.kill_coordinator();
    let agent = agents_pod(&ebb.lab, "second", &own).await;
    let by_itself = token(&ebb, "ebb-agent", Lab::API_AUDIENCE, Some(&agent)).await;
    let by_itself = client(&ebb.lab.write_kubeconfig("second", &by_itself)).await;
    assert_answers("without a coordinator", &writes_on(&by_itself, &own, &own_work).await, |code| code == 403);
}

#[tokio::test]
async fn the_coordinator_that_writes_for_agents_writes_to_nodes_only_what_a_drain_changes() {
    let (lab, file) = lab_with_namespace(LabOptions::default(), "ebb-brokered.yaml").await;
    let installed = Installed::on(lab, &file).await;
    let Installed { lab, nodes: [node, _], work: [work, _] } = &installed;
    let token = lab.service_account_token("ebb", "ebb-coordinator", Lab::API_AUDIENCE, None).await;
    let coordinator = client(&lab.write_kubeconfig("coordinator", &token)).await;
    let label = Patch::Merge(json!({"metadata": {"labels": {"pool": "gpu"}}}));
    let all = Api::<Node>::all(coordinator.clone());
    lab.wait_until("the admission policy", SOON, async || {
        let dry_run = PatchParams { dry_run: true, ..PatchParams::default() };
        code(all.patch(node, &dry_run, &label).await) == 403
    })
    .await;
    assert_answers("a drain", &writes_on(&coordinator, node, work).await, |code| code == 200);
    assert_answers("beyond", &writes_beyond_a_drain(&coordinator, node, work).await, |code| code == 403);
    assert_answers("what kubelets write", &what_kubelets_write(&coordinator, node).await, |code| code == 403);
    assert_eq!(delete_pod(&coordinator, work).await, 403, "evictions only, without agent.drain.deleteAtDeadline");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_acts_as_itself_drains_its_node() {
    an_agent_drains_its_node(Rights::Admission).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_only_reads_drains_its_node_by_the_coordinator() {
    an_agent_drains_its_node(Rights::Brokered).await;
}

async fn an_agent_drains_its_node(rights: Rights) {
    let mut ebb = with_coordinator(rights).await;
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

    let ask = ["drain", &node, "--timeout", "2m"];
    let mut drain = ebb.lab.command(binary("ebb"));
    if rights == Rights::Brokered {
        // It waits for who writes for it, saying so, and goes on.
        let config = ebb.config().await;
        ebb.kill_coordinator();
        drain.args(ask);
        let mut drain = ebb.lab.spawn("drain", drain);
        let log = format!("agent-{node}");
        let asked = async |ebb: &Ebb| {
            let log = ebb.lab.log(&log);
            log.contains("ask the coordinator to write to the API server: ") && log.contains("Connection refused")
        };
        ebb.wait_until("the agent to miss the coordinator", SOON, asked).await;
        assert_eq!(running(&ebb).await, 1);
        ebb.start_coordinator(&config, &[]).await;
        ebb.wait_until("the drain to end", SOON, async |_| !drain.is_running()).await;
        assert!(drain.log().contains("drained: no pod"), "{}", drain.log());
    } else {
        let output = drain.args(ask).output().unwrap();
        assert!(output.status.success(), "{output:?}\n{}", ebb.lab.log(&format!("agent-{node}")));
    }
    assert_eq!(running(&ebb).await, 0);
    let drained = Api::<Node>::all(ebb.client.clone()).get(&node).await.unwrap();
    assert_eq!(drained.spec.unwrap().unschedulable, Some(true));
    assert!(ebb.ebb(&["drain", &node, "--cancel"]).contains("nothing is left of one"));
}

#[tokio::test]
async fn pods_of_its_own_node_are_deleted_only_where_the_operator_wants_it() {
    let lab = LabOptions::default;
    let delete = "agent.drain.deleteAtDeadline=true";
    for rights in ["impersonation", "admission", "brokered"] {
        let (lab, _) = lab_with_namespace(lab(), "ebb.yaml").await;
        let mut render = lab.command(binary("xtask"));
        let output = render.args(["manifests", "--set", delete, "--set", &format!("agent.rights={rights}")]).output();
        let file = lab.dir.join("conf/manifests.yaml");
        std::fs::write(&file, output.unwrap().stdout).unwrap();
        let Installed { lab, nodes: [own, _], work: [own_work, other_work] } =
            Installed::on(lab, file.to_str().unwrap()).await;
        let agent = agent_on(&lab, &own).await;
        let token = lab.service_account_token("ebb", "ebb-agent", Lab::API_AUDIENCE, Some(&agent)).await;
        let plain = lab.write_kubeconfig("agent", &token);
        let mut ebb = None;
        let (as_own, lab) = match rights {
            "admission" => (client(&plain).await, &lab),
            "brokered" => {
                let token = lab.service_account_token("ebb", "ebb-agent", BROKER_AUDIENCE, Some(&agent)).await;
                let ebb = ebb.insert(Ebb::installed(lab, Rights::Brokered).await);
                let config = ebb.config().await;
                ebb.start_coordinator(&config, &[]).await;
                (ebb.broker(&token).await, &ebb.lab)
            }
            _ => (impersonating(&plain, &own).await, &lab),
        };
        lab.wait_until("the admission policy", SOON, async || delete_pod(&as_own, &other_work).await == 403).await;
        assert_eq!(delete_pod(&as_own, &own_work).await, 200, "{rights}");
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

/// Two nodes, the manifests for these rights, and the coordinator.
async fn with_coordinator(rights: Rights) -> Ebb {
    let manifests = match rights {
        Rights::Impersonation => "ebb.yaml",
        Rights::Admission => "ebb-admission.yaml",
        Rights::Brokered => "ebb-brokered.yaml",
    };
    let (lab, file) = lab_with_namespace(LabOptions::default(), manifests).await;
    lab.kubectl(&["apply", SERVER_SIDE, "--filename", &file]).await;
    let mut ebb = Ebb::install_with(lab, rights).await;
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

/// A pod of the agent's ServiceAccount that no DaemonSet looks after; without a node it waits for [`bind`].
async fn agents_pod(lab: &Lab, name: &str, node: &str) -> Pod {
    let pod = json!({"metadata": {"name": name}, "spec": {"nodeName": node, "serviceAccountName": "ebb-agent",
        "schedulerName": "nobody", "containers": [{"name": "agent", "image": "agent"}]}});
    let pods = Api::<Pod>::namespaced(lab.client().await, "ebb");
    pods.create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap()
}

/// The scheduler's part.
async fn bind(lab: &Lab, pod: &str, node: &str) {
    let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": pod, "namespace": "ebb"},
        "target": {"apiVersion": "v1", "kind": "Node", "name": node}});
    let file = lab.dir.join("conf/binding.json");
    std::fs::write(&file, binding.to_string()).unwrap();
    let path = format!("/api/v1/namespaces/ebb/pods/{pod}/binding");
    lab.kubectl(&["create", "--raw", &path, "--filename", file.to_str().unwrap()]).await;
}

/// As [`recreate`], in a later second than that of the pod: times of creation are whole seconds.
async fn recreate_after(lab: &Lab, name: &str, pod: &Pod) {
    let made = |object: &ObjectMeta| object.creation_timestamp.clone().unwrap();
    let nodes = Api::<Node>::all(lab.client().await);
    lab.wait_until("a node that is younger than the pod", SOON, async || {
        recreate(lab, name).await;
        made(&nodes.get(name).await.unwrap().metadata) > made(&pod.metadata)
    })
    .await;
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
