//! `drain_scenarios.yaml`, case by case.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant as Monotonic, SystemTime, UNIX_EPOCH};

use ebb_core::drain;
use ebb_core::intent::{INTENT_ANNOTATION, Intent, Permits, Phase, Trigger};
use ebb_core::time::{Instant, parse_duration};
use ebb_tests::{Drains, Fault, PLOT, Proxy, Seen, check_requests};
use futures::StreamExt;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};

/// Cases at the same time.
const AT_ONCE: usize = 9;
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Case {
    name: String,
    #[expect(dead_code, reason = "for readers")]
    like: String,
    /// A merge patch of the Node, before.
    #[serde(default)]
    node: Value,
    /// Whether there is a (KWOK) kubelet.
    #[serde(default = "yes")]
    machine: bool,
    /// Whether another node of the plot comes when the pods run.
    #[serde(default)]
    spare: bool,
    #[serde(default)]
    pods: BTreeMap<String, Work>,
    /// Labels of a DaemonSet's pod.
    daemon: Option<BTreeMap<String, String>>,
    /// PodDisruptionBudgets for pods whose `app` is the name, up to a dash: how many must be available.
    #[serde(default)]
    budgets: BTreeMap<String, u32>,
    #[serde(default)]
    objects: Vec<Value>,
    /// Pods of `objects` that must be there.
    #[serde(default)]
    wait_for: Vec<String>,
    #[serde(default)]
    intent: Wanted,
    /// In place of an intent.
    words: Option<String>,
    #[serde(default)]
    then: Vec<Then>,
    ends: End,
    /// What the condition says in the end.
    #[serde(default)]
    says: String,
    #[serde(default)]
    gone: Vec<String>,
    #[serde(default)]
    left: Vec<String>,
    /// Of these, at least one is asked to go.
    #[serde(default)]
    any_of: Vec<String>,
    /// In which order pods were asked to go.
    #[serde(default)]
    order: Vec<String>,
    evictions: Option<usize>,
    /// `gracePeriodSeconds` of the evictions; null: none says any.
    #[serde(default, deserialize_with = "is_there")]
    grace_within: Option<Option<[u64; 2]>>,
    #[serde(default)]
    daemon_stays: bool,
    /// After all is undone.
    #[serde(default)]
    still_cordoned: bool,
}

fn yes() -> bool {
    true
}

/// Tells null from absence.
fn is_there<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<[u64; 2]>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Work {
    app: Option<String>,
    owner: Owner,
    phase: Option<String>,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    empty_dir: bool,
    grace: Option<u64>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
enum Owner {
    #[default]
    Controller,
    None,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Wanted {
    by: Trigger,
    deadline: String,
    evict: bool,
    #[serde(flatten)]
    permits: Permits,
}

impl Default for Wanted {
    fn default() -> Self {
        Self { by: Trigger::Person, deadline: "60s".into(), evict: true, permits: Permits::default() }
    }
}

/// Something that happens so long after what was before it.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Then {
    after: String,
    #[serde(default)]
    cancel: bool,
    delete_budget: Option<String>,
    finish: Option<String>,
    /// A merge patch.
    #[serde(default)]
    node: Value,
    /// What the condition must say by then, and whether the node must be cordoned.
    holds: Option<String>,
    cordoned: Option<bool>,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
enum End {
    Cancelled,
    Drained,
    Failed,
}

#[tokio::test(flavor = "multi_thread")]
async fn every_case_ends_as_it_says() {
    let text = include_str!("drain_scenarios.yaml");
    let all: Vec<Value> = serde_saphyr::from_str(text).unwrap();
    let only = std::env::var("EBB_TEST_CASE").unwrap_or_default();
    let drains = Drains::up().await;
    let cases = all.into_iter().enumerate().map(|(index, case)| {
        let node = format!("case-{index}");
        let case: Case = serde_json::from_str(&case.to_string().replace("$NODE", &node)).unwrap();
        (node, case)
    });
    let cases: Vec<_> = cases.filter(|(_, case)| case.name.contains(&only)).collect();
    let count = cases.len();
    let runs = cases.into_iter().map(|(node, case)| {
        let drains = &drains;
        async move {
            let end = run(drains, &node, &case).await;
            println!("{}: {}", case.name, end.as_ref().err().map_or("as it says", String::as_str));
            end.is_ok()
        }
    });
    let ends: Vec<bool> = futures::stream::iter(runs).buffer_unordered(AT_ONCE).collect().await;
    let failed = ends.iter().filter(|ok| !**ok).count();
    assert_eq!(failed, 0, "of {count} cases");
}

async fn run(drains: &Drains, node: &str, case: &Case) -> Result<(), String> {
    prepare(drains, node, case).await;
    let found = drain::Node::from(&drains.node(node).await);
    let mut uids = BTreeMap::new();
    for pod in drains.pods_on(node).await {
        uids.insert(pod.uid().unwrap(), pod.name_any());
    }
    let proxy = Proxy::start(drains.lab.anonymous_client().await, Arc::new(|_: &Seen| Fault::None)).await;
    let token = drains.token(node).await;
    let _agent = drains.start_agent(node, &token, &proxy.url, &[]);
    let deadline = parse_duration(&case.intent.deadline).unwrap();
    match &case.words {
        Some(words) => drains.patch(node, &json!({"metadata": {"annotations": {INTENT_ANNOTATION: words}}})).await,
        None => drains.ask(node, Some(&intent(&case.intent, deadline))).await,
    }
    for then in &case.then {
        tokio::time::sleep(parse_duration(&then.after).unwrap()).await;
        happen(drains, node, then).await?;
    }
    let began = Monotonic::now();
    let is = loop {
        let is = drains.node(node).await;
        if has_ended(&drain::Node::from(&is), case.ends) {
            break is;
        }
        if began.elapsed() > deadline + PATIENCE {
            return Err(format!("no such end: {:?}, {}", drain::Node::from(&is), message(&is)));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    if !message(&is).contains(&case.says) {
        return Err(format!("it says: {}", message(&is)));
    }
    let there: BTreeSet<String> = uids.keys().cloned().collect();
    check_requests(&proxy.seen(), node, &there, false)?;
    check_pods(drains, node, case, &uids, &proxy.seen()).await?;
    drains.ask(node, None).await;
    let began = Monotonic::now();
    loop {
        let is = drain::Node::from(&drains.node(node).await);
        // Its annotations and volumes are other people's.
        let expected = drain::Node {
            unschedulable: case.still_cordoned,
            blockers: is.blockers.clone(),
            attached: is.attached.clone(),
            ..found.clone()
        };
        if is == expected {
            return Ok(());
        }
        if began.elapsed() > PATIENCE {
            return Err(format!("it is not as it was found, {expected:?}, but {is:?}"));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn check_pods(
    drains: &Drains,
    node: &str,
    case: &Case,
    uids: &BTreeMap<String, String>,
    seen: &[Seen],
) -> Result<(), String> {
    let evictions = seen.iter().filter(|seen| seen.is_eviction() && !seen.is_dry_run());
    let accepted: Vec<_> = evictions.filter(|seen| seen.status.is_some_and(|status| status < 300)).collect();
    let name = |seen: &Seen| {
        let uid = seen.body["deleteOptions"]["preconditions"]["uid"].as_str().unwrap_or_default();
        uids.get(uid).cloned().unwrap_or_default()
    };
    let went: Vec<String> = accepted.iter().map(|seen| name(seen)).collect();
    let work: Vec<_> = went.iter().filter(|name| !name.starts_with("daemon-")).cloned().collect();
    let all_gone: BTreeSet<_> = case.gone.iter().chain(&case.any_of).cloned().collect();
    let as_said = if case.any_of.is_empty() && case.evictions.is_none() && case.ends != End::Cancelled {
        work.iter().cloned().collect::<BTreeSet<_>>() == all_gone
    } else {
        case.evictions.is_none_or(|count| work.len() == count)
            && (case.any_of.is_empty() || work.iter().any(|name| case.any_of.contains(name)))
    };
    if !as_said {
        return Err(format!("asked to go: {went:?}"));
    }
    let order: Vec<_> = went.iter().map(|name| if name.starts_with("daemon-") { "daemon" } else { name }).collect();
    if !case.order.is_empty() && order != case.order {
        return Err(format!("asked to go in this order: {order:?}"));
    }
    let here: BTreeSet<String> = drains.pods_on(node).await.iter().map(ResourceExt::name_any).collect();
    if let Some(lost) = case.left.iter().find(|name| !here.contains(*name)) {
        return Err(format!("{lost} is gone"));
    }
    if case.daemon_stays && !here.iter().any(|name| name.starts_with("daemon-")) {
        return Err("the daemon's pod is gone".into());
    }
    if let Some(expected) = case.grace_within {
        for seen in &accepted {
            let grace = seen.body["deleteOptions"]["gracePeriodSeconds"].as_u64();
            let fits = match expected {
                Some([least, most]) => grace.is_some_and(|grace| (least..=most).contains(&grace)),
                None => grace.is_none(),
            };
            if !fits {
                return Err(format!("evicted with a grace of {grace:?}"));
            }
        }
    }
    Ok(())
}

fn has_ended(node: &drain::Node, end: End) -> bool {
    let phase = node.progress.as_ref().map(|progress| progress.phase);
    let rests = !node.planned && !node.draining && !node.drained;
    match end {
        End::Cancelled => node.intent.is_none() && phase.is_none() && rests,
        End::Drained => phase == Some(Phase::Drained) && node.drained && !node.draining,
        End::Failed => phase == Some(Phase::Failed) && rests,
    }
}

fn message(node: &Node) -> String {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let mut messages = conditions.filter(|it| it.type_ == "DrainInProgress").filter_map(|it| it.message.clone());
    messages.next().unwrap_or_default()
}

fn intent(wanted: &Wanted, deadline: Duration) -> Intent {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let now = Instant::from_millis(u64::try_from(since.as_millis()).unwrap());
    Intent {
        id: format!("case-{}", now.as_millis()),
        reason: "a test".into(),
        requested_at: now,
        deadline: now + deadline,
        evict: wanted.evict,
        by: wanted.by,
        awaits_turn: false,
        permits: wanted.permits,
    }
}

async fn happen(drains: &Drains, node: &str, then: &Then) -> Result<(), String> {
    let is = drains.node(node).await;
    let cordoned = drain::Node::from(&is).unschedulable;
    if then.holds.as_ref().is_some_and(|words| !message(&is).contains(words)) {
        return Err(format!("it says: {}", message(&is)));
    }
    if then.cordoned.is_some_and(|expected| cordoned != expected) {
        return Err(format!("cordoned: {cordoned}"));
    }
    if then.cancel {
        drains.ask(node, None).await;
    }
    if let Some(budget) = &then.delete_budget {
        drains.lab.kubectl(&["--namespace", node, "delete", "poddisruptionbudget", budget]).await;
    }
    if let Some(pod) = &then.finish {
        finish(drains, node, pod, "Succeeded").await;
    }
    patch(drains, node, &then.node).await;
    Ok(())
}

async fn patch(drains: &Drains, node: &str, change: &Value) {
    if let Some(status) = change.get("status") {
        let nodes = Api::<Node>::all(drains.client.clone());
        let change = json!({"status": status});
        nodes.patch_status(node, &PatchParams::default(), &Patch::Merge(&change)).await.unwrap();
    } else if !change.is_null() {
        drains.patch(node, change).await;
    }
}

async fn finish(drains: &Drains, namespace: &str, pod: &str, phase: &str) {
    let pods: Api<Pod> = Api::namespaced(drains.client.clone(), namespace);
    let change = json!({"status": {"phase": phase, "conditions": null}});
    pods.patch_status(pod, &PatchParams::default(), &Patch::Merge(&change)).await.unwrap();
}

async fn prepare(drains: &Drains, node: &str, case: &Case) {
    if case.machine {
        drains.make_nodes(&[node.to_owned()], None).await;
    } else {
        drains.make_dead_node(node).await;
    }
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": node}});
    drains.lab.apply(&namespace.to_string()).await;
    // What makes a pod replicated is an owner, whoever that is; this one lets its pods be.
    let owners: Api<ConfigMap> = Api::namespaced(drains.client.clone(), node);
    let owner: ConfigMap = serde_json::from_value(json!({"metadata": {"name": "owner"}})).unwrap();
    let owner = owners.create(&PostParams::default(), &owner).await.unwrap();
    let pods = case.pods.iter().map(|(name, work)| pod(node, name, work, &owner));
    let budgets = case.budgets.iter().map(|(name, healthy)| {
        let app = name.split('-').next();
        json!({
            "apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": name, "namespace": node},
            "spec": {"minAvailable": healthy, "selector": {"matchLabels": {"app": app}}},
        })
    });
    let daemon = case.daemon.as_ref().map(|labels| {
        let mut labels = json!(labels);
        labels["daemon"] = node.into();
        json!({
            "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "daemon", "namespace": node},
            "spec": {"selector": {"matchLabels": {"daemon": node}}, "template": {
                "metadata": {"labels": labels},
                "spec": {"nodeSelector": {PLOT: node}, "containers": [{"name": "work", "image": "work"}]},
            }},
        })
    });
    let items: Vec<_> = pods.chain(budgets).chain(daemon).chain(case.objects.iter().cloned()).collect();
    if !items.is_empty() {
        drains.lab.apply(&json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string()).await;
    }
    let mut expected: Vec<&str> = case.pods.keys().chain(&case.wait_for).map(String::as_str).collect();
    expected.extend(case.daemon.iter().map(|_| "daemon-"));
    drains
        .lab
        .wait_until("the pods to run", PATIENCE, async || {
            let pods = drains.pods_on(node).await;
            let is_up = |name: &&str| {
                let mut found = pods.iter().filter(|pod| pod.name_any().starts_with(*name));
                found.any(|pod| {
                    !case.machine || pod.status.as_ref().and_then(|it| it.phase.as_deref()) == Some("Running")
                })
            };
            expected.iter().all(is_up)
        })
        .await;
    for (name, work) in &case.pods {
        if let Some(phase) = &work.phase {
            finish(drains, node, name, phase).await;
        }
    }
    let budgets: Api<k8s_openapi::api::policy::v1::PodDisruptionBudget> = Api::namespaced(drains.client.clone(), node);
    for (name, least) in &case.budgets {
        drains
            .lab
            .wait_until("the budget to be counted", PATIENCE, async || {
                let status = budgets.get(name).await.unwrap().status;
                status.is_some_and(|status| {
                    let healthy = status.current_healthy.and_then(|count| u32::try_from(count).ok());
                    healthy >= Some(*least) && status.expected_pods > Some(0)
                })
            })
            .await;
    }
    if case.spare {
        drains.make_nodes(&[format!("{node}-spare")], Some(node)).await;
    }
    patch(drains, node, &case.node).await;
}

fn pod(node: &str, name: &str, work: &Work, owner: &ConfigMap) -> Value {
    let mut labels = json!(work.labels);
    if let Some(app) = &work.app {
        labels["app"] = app.as_str().into();
    }
    let owner = json!([{
        "apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner.uid(), "controller": true,
    }]);
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": name, "namespace": node, "labels": labels, "annotations": work.annotations,
            "ownerReferences": (work.owner == Owner::Controller).then_some(owner),
        },
        "spec": {
            "nodeName": node,
            "terminationGracePeriodSeconds": work.grace,
            "containers": [{"name": "work", "image": "work"}],
            "volumes": work.empty_dir.then(|| json!([{"name": "scratch", "emptyDir": {}}])),
        },
    })
}
