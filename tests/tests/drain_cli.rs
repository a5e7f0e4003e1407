//! `ebb drain` as a person types it, on a real API server, carried out by the agents: what it says before, while and
//! after a drain, and whose word it does not override.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::time::Duration;

use ebb_core::intent::{INTENT_ANNOTATION, Intent, PROGRESS_ANNOTATION, Permits, Trigger, decode};
use ebb_tests::{Ebb, Lab, LabOptions, binary};
use k8s_openapi::api::core::v1::Node;
use kube::{Api, ResourceExt};
use serde_json::json;

const SOON: Duration = Duration::from_secs(60);

/// Exit code, and all that was printed.
fn ebb(ebb: &Ebb, words: &[&str]) -> (i32, String) {
    let output = ebb.lab.command(binary("ebb")).env("COLUMNS", "200").args(words).output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.code().unwrap(), printed)
}

#[track_caller]
fn assert_ends((code, printed): (i32, String), expected: i32, parts: &[&str]) {
    assert_eq!(code, expected, "{printed}");
    for part in parts {
        assert!(printed.contains(part), "{part} is not in: {printed}");
    }
}

/// Two nodes with their agents; on the first one a ReplicaSet's pod and, with `bare`, one without controller.
async fn installed(bare: bool) -> (Ebb, String) {
    let groups = vec!["name=cpu-workers,min=2,max=10,desired=2,type=m5.xlarge".to_owned()];
    let mut ebb = Ebb::install(Lab::up(LabOptions { groups, ..LabOptions::default() }).await).await;
    ebb.wait_until("two nodes, and their agents", SOON, async |ebb| {
        let pods = ebb.agent_pods().await;
        let runs = |phase: Option<String>| phase.as_deref() == Some("Running");
        pods.len() == 2 && pods.into_iter().all(|pod| runs(pod.status.and_then(|status| status.phase)))
    })
    .await;
    let node = ebb.nodes().await[0].name_any();
    let container = json!([{"name": "web", "image": "web"}]);
    let template = json!({"metadata": {"labels": {"app": "web"}}, "spec": {
        "nodeSelector": {"kubernetes.io/hostname": node}, "terminationGracePeriodSeconds": 0, "containers": container}});
    let web = json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": "web"}, "spec": {
        "replicas": 1, "selector": {"matchLabels": {"app": "web"}}, "template": template}});
    ebb.lab.apply(&web.to_string()).await;
    if bare {
        let notebook = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "notebook"}, "spec": {
            "nodeName": node, "terminationGracePeriodSeconds": 0, "containers": container}});
        ebb.lab.apply(&notebook.to_string()).await;
    }
    ebb.wait_until("the work to run", SOON, async |ebb| running(ebb).await == 1 + usize::from(bare)).await;
    (ebb, node)
}

async fn running(ebb: &Ebb) -> usize {
    let words = ["get", "pods", "--field-selector=status.phase=Running", "--output=name"];
    ebb.lab.kubectl(&words).await.lines().count()
}

async fn forbid_evictions(ebb: &Ebb) {
    let budget = json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "web"},
        "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "web"}}}});
    ebb.lab.apply(&budget.to_string()).await;
    ebb.lab
        .wait_until("the budget to be counted", SOON, async || {
            let words = ["get", "poddisruptionbudget", "web", "--output=jsonpath={.status.currentHealthy}"];
            ebb.lab.kubectl(&words).await == "1"
        })
        .await;
}

async fn node(ebb: &Ebb, name: &str) -> Node {
    Api::<Node>::all(ebb.client.clone()).get(name).await.unwrap()
}

async fn intent(ebb: &Ebb, name: &str) -> Option<Intent> {
    node(ebb, name).await.annotations().get(INTENT_ANNOTATION).and_then(|text| decode(text))
}

#[tokio::test(flavor = "multi_thread")]
async fn dry_run_changes_nothing_and_names_what_speaks_against_a_drain() {
    let (ebb_, name) = installed(true).await;
    forbid_evictions(&ebb_).await;
    let before = node(&ebb_, &name).await;

    let said = ebb(&ebb_, &["drain", &name, "--dry-run"]);
    let budget = "PodDisruptionBudget web allows no eviction now";
    let verdict = format!("Node {name}: a drain could not begin, for 2 reasons");
    assert_ends(said, 1, &[&verdict, budget, "needs 1 healthy pods and has 1 currently", "run one replica more"]);
    assert_ends(ebb(&ebb_, &["drain", &name, "--dry-run"]), 1, &["default/notebook", "--force evicts it all the same"]);
    assert_ends(ebb(&ebb_, &["drain", &name, "--dry-run", "--force"]), 1, &[budget, "a drain could not begin\n"]);
    ebb_.lab.kubectl(&["delete", "poddisruptionbudget", "web"]).await;
    ebb_.lab.kubectl(&["delete", "pod", "notebook"]).await;
    assert_ends(ebb(&ebb_, &["drain", &name, "--dry-run"]), 0, &["a drain could begin", "a DaemonSet's  stays"]);

    let after = node(&ebb_, &name).await;
    assert_eq!((before.annotations(), &before.spec), (after.annotations(), &after.spec));
    assert_eq!(running(&ebb_).await, 1);

    // Who may only look is told what by the numbers, and what is not known.
    ebb_.lab.kubectl(&["create", "serviceaccount", "reader"]).await;
    ebb_.lab.kubectl(&["create", "clusterrole", "reader", "--verb=get,list", "--resource=nodes,pods"]).await;
    ebb_.lab
        .kubectl(&["create", "clusterrolebinding", "reader", "--clusterrole=reader", "--serviceaccount=default:reader"])
        .await;
    let token = ebb_.lab.service_account_token("default", "reader", Lab::API_AUDIENCE, None).await;
    let reader = ebb_.lab.write_kubeconfig("reader", &token);
    let words = ["drain", &name, "--dry-run", "--kubeconfig", reader.to_str().unwrap()];
    assert_ends(ebb(&ebb_, &words), 0, &["you may not evict pods", "you may not list PodDisruptionBudgets"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_is_followed_to_its_end_and_taken_back() {
    let (mut ebb_, name) = installed(false).await;
    let said = ebb(&ebb_, &["drain", &name, "--reason", "kernel update", "--force", "--timeout", "10m"]);
    assert_ends(said, 0, &["asked to drain", &format!("{name}  draining"), &format!("{name}  drained: no pod")]);
    let wanted = intent(&ebb_, &name).await.unwrap();
    assert_eq!((wanted.by, wanted.reason.as_str()), (Trigger::Person, "kernel update"));
    assert_eq!(wanted.permits, Permits { force: true, ..Permits::default() });
    assert_eq!(wanted.deadline.since(wanted.requested_at), Duration::from_secs(600));
    assert_eq!(node(&ebb_, &name).await.spec.unwrap().unschedulable, Some(true));
    assert_eq!(running(&ebb_).await, 0);

    let said = ebb(&ebb_, &["drain", &name]);
    assert_ends(said, 1, &["a person (person-", "kernel update) already asked for the drain of node", "--replace"]);
    assert_eq!(intent(&ebb_, &name).await.as_ref(), Some(&wanted));

    assert_ends(ebb(&ebb_, &["drain", &name, "--cancel"]), 0, &["no drain of a person's stands"]);
    let given_back = node(&ebb_, &name).await;
    assert_eq!(given_back.spec.clone().unwrap().unschedulable, None);
    let ours = |key: &&String| [INTENT_ANNOTATION, PROGRESS_ANNOTATION].contains(&key.as_str());
    assert_eq!(given_back.annotations().keys().find(ours), None);
    ebb_.wait_until("the work to be back", SOON, async |ebb| running(ebb).await == 1).await;

    // What cannot succeed is not begun.
    forbid_evictions(&ebb_).await;
    let said = ebb(&ebb_, &["drain", &name]);
    assert_ends(said, 1, &["given up (PreflightFailed)", "default/web", "needs 1 healthy pods and has 1 currently"]);
    assert_eq!(node(&ebb_, &name).await.spec.unwrap().unschedulable, None);
    assert_ends(ebb(&ebb_, &["drain", &name, "--cancel"]), 0, &["no drain of a person's stands"]);
    ebb_.lab.kubectl(&["delete", "poddisruptionbudget", "web"]).await;

    // Somebody else takes it back while it is followed.
    ebb_.lab.kubectl(&["label", "pods", "--selector=app=web", "ebb.dev/drain=wait-completed"]).await;
    let mut follow = ebb_.lab.command(binary("ebb"));
    follow.args(["drain", &name]);
    let follower = ebb_.lab.spawn("follower", follow);
    let draining = format!("{name}  draining");
    ebb_.lab.wait_until("the drain", SOON, async || ebb_.lab.log("follower").contains(&draining)).await;
    ebb_.lab.kubectl(&["annotate", "node", &name, &format!("{INTENT_ANNOTATION}-")]).await;
    let taken = "the drain was taken back";
    ebb_.lab.wait_until("it to say so", SOON, async || ebb_.lab.log("follower").contains(taken)).await;
    drop(follower);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_asked_for_is_replaced_only_on_demand() {
    let (ebb_, name) = installed(false).await;
    let theirs = r#"{"id":"d-1","reason":"measured idle","requestedAt":"2026-11-28T12:00:00Z","deadline":"2099-01-01T00:00:00Z"}"#;
    let annotate = format!("{INTENT_ANNOTATION}={theirs}");
    ebb_.lab.kubectl(&["annotate", "node", &name, &annotate]).await;

    let said = ebb(&ebb_, &["drain", &name]);
    assert_ends(said, 1, &["the coordinator (d-1, since 2026-11-28T12:00:00Z: measured idle) already asked"]);
    assert_ends(
        ebb(&ebb_, &["drain", &name, "--dry-run"]),
        1,
        &["a drain could not begin", "measured idle) asked for its drain already"],
    );
    assert_ends(ebb(&ebb_, &["drain", &name, "--cancel"]), 1, &["It is not a person's to take back"]);
    assert_eq!(intent(&ebb_, &name).await.unwrap().id, "d-1");

    assert_ends(ebb(&ebb_, &["drain", &name, "--replace", "--no-wait"]), 0, &["asked to drain"]);
    let mine = intent(&ebb_, &name).await.unwrap();
    assert_eq!((mine.by, mine.reason.as_str()), (Trigger::Person, "admin asked for it"));
    ebb_.lab.kubectl(&["annotate", "--overwrite", "node", &name, &annotate]).await;
    assert_ends(ebb(&ebb_, &["drain", &name, "--cancel", "--replace"]), 0, &["nothing is left of one"]);
    assert_eq!(intent(&ebb_, &name).await, None);

    let said = ebb(&ebb_, &["drain", "no-such-node", &name]);
    assert_ends(said, 1, &["there is no Node no-such-node in this cluster"]);
    assert_eq!(intent(&ebb_, &name).await, None, "with a wrong name nothing is asked of the others");
    for wrong in [&["drain"][..], &["drain", "a", "--timeout", "1s"], &["drain", "a", "--cancel", "--dry-run"]] {
        assert_eq!(ebb(&ebb_, wrong).0, 2, "{wrong:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_nodes_all_are_asked_for_and_taken_back_at_once() {
    let (mut ebb_, name) = installed(false).await;
    let other = ebb_.nodes().await.iter().map(ResourceExt::name_any).find(|other| *other != name).unwrap();
    let said = ebb(&ebb_, &["drain", &name, &other, "--no-wait", "--reason", "new racks"]);
    assert_ends(said, 0, &[&format!("{name}  asked to drain"), &format!("{other}  asked to drain")]);
    let is_cordoned = |node: &Node| node.spec.as_ref().is_some_and(|spec| spec.unschedulable == Some(true));
    ebb_.wait_until("both cordons", SOON, async |ebb| ebb.nodes().await.iter().all(is_cordoned)).await;
    for name in [&name, &other] {
        assert!(intent(&ebb_, name).await.is_some_and(|intent| intent.awaits_turn && intent.reason == "new racks"));
    }
    // Nobody gives turns away here.
    assert_eq!(running(&ebb_).await, 1);

    let said = ebb(&ebb_, &["drain", &name, "no-such-node", "--cancel"]);
    assert_ends(said, 1, &["there is no Node no-such-node in this cluster"]);
    assert!(intent(&ebb_, &name).await.is_some(), "with a wrong name nothing is taken back of the others");
    let nothing_left = [&name, &other].map(|name| format!("{name}  no drain of a person's stands"));
    let nothing_left = nothing_left.each_ref().map(String::as_str);
    // Again: what is taken back already is no mistake.
    for _ in 0..2 {
        assert_ends(ebb(&ebb_, &["drain", &name, &other, "--cancel"]), 0, &nothing_left);
        assert!(!ebb_.nodes().await.iter().any(is_cordoned));
    }
}
