//! What there is before a drain, and what people do meanwhile.

use std::collections::BTreeMap;
use std::time::Duration;

use ebb_core::drain;
use ebb_tests::{Drains, PLOT};
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use super::case::{Case, Owner, Work};
use super::scene::PATIENCE;

pub(super) async fn set(drains: &Drains, node: &str, case: &Case) {
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
    owners.create(&PostParams::default(), &owner).await.unwrap();
    make_pods(drains, node, &case.pods).await;
    make_others(drains, node, case).await;
    wait_for_pods(drains, node, case).await;
    for (name, work) in &case.pods {
        if let Some(phase) = &work.phase {
            finish(drains, node, name, phase).await;
        }
    }
    wait_for_budgets(drains, node, case).await;
    if case.spare {
        drains.make_nodes(&[format!("{node}-spare")], Some(node)).await;
    }
    for line in &case.before {
        kubectl(drains, node, line).await;
    }
    patch(drains, node, &case.node).await;
}

async fn make_others(drains: &Drains, node: &str, case: &Case) {
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
    apply(drains, budgets.chain(daemon).chain(case.objects.iter().cloned()).collect()).await;
}

async fn apply(drains: &Drains, items: Vec<Value>) {
    if !items.is_empty() {
        drains.lab.apply(&json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string()).await;
    }
}

async fn wait_for_pods(drains: &Drains, node: &str, case: &Case) {
    let mut expected: Vec<&str> = case.pods.keys().chain(&case.wait_for).map(String::as_str).collect();
    expected.extend(case.daemon.iter().map(|_| "daemon-"));
    let is_up = |pod: &Pod| {
        let phase = pod.status.as_ref().and_then(|it| it.phase.as_deref());
        !case.machine || matches!(phase, Some("Running" | "Succeeded"))
    };
    // One of the second of the cordon may be what a DaemonSet has made since, and is not asked to go.
    let is_settled = |pod: &Pod| {
        let created = drain::Pod::from(pod).created;
        created.is_some_and(|created| created + Duration::from_secs(1) <= ebb_tests::now())
    };
    drains
        .lab
        .wait_until("the pods to run", PATIENCE, async || {
            let pods = drains.pods_on(node).await;
            expected
                .iter()
                .all(|name| pods.iter().any(|pod| pod.name_any().starts_with(*name) && is_up(pod) && is_settled(pod)))
        })
        .await;
}

async fn wait_for_budgets(drains: &Drains, node: &str, case: &Case) {
    let budgets: Api<PodDisruptionBudget> = Api::namespaced(drains.client.clone(), node);
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
}

/// A merge patch of the Node and, where it says so, of its status.
pub(super) async fn patch(drains: &Drains, node: &str, change: &Value) {
    if let Some(status) = change.get("status") {
        let nodes = Api::<Node>::all(drains.client.clone());
        let change = json!({"status": status});
        nodes.patch_status(node, &PatchParams::default(), &Patch::Merge(&change)).await.unwrap();
    } else if !change.is_null() {
        drains.patch(node, change).await;
    }
}

pub(super) async fn kubectl(drains: &Drains, node: &str, line: &str) {
    let words: Vec<&str> = ["--namespace", node].into_iter().chain(line.split_whitespace()).collect();
    drains.lab.kubectl(&words).await;
}

pub(super) async fn finish(drains: &Drains, namespace: &str, pod: &str, phase: &str) {
    let pods: Api<Pod> = Api::namespaced(drains.client.clone(), namespace);
    let change = json!({"status": {"phase": phase, "conditions": null}});
    pods.patch_status(pod, &PatchParams::default(), &Patch::Merge(&change)).await.unwrap();
}

pub(super) async fn release(drains: &Drains, namespace: &str, pod: &str) {
    let pods: Api<Pod> = Api::namespaced(drains.client.clone(), namespace);
    let change = json!({"metadata": {"finalizers": null}});
    pods.patch(pod, &PatchParams::default(), &Patch::Merge(&change)).await.unwrap();
}

/// Pods that are bound to the node from the start.
pub(super) async fn make_pods(drains: &Drains, node: &str, pods: &BTreeMap<String, Work>) {
    let owners: Api<ConfigMap> = Api::namespaced(drains.client.clone(), node);
    let owner = owners.get("owner").await.unwrap().uid();
    let machine = drains.node(node).await.uid();
    let owned_by = |kind: &str, name: &str, uid: &Option<String>| json!([{"apiVersion": "v1", "kind": kind, "name": name, "uid": uid, "controller": true}]);
    let items = pods.iter().map(|(name, work)| {
        let owners = match work.owner {
            Owner::Controller => owned_by("ConfigMap", "owner", &owner),
            Owner::Node => owned_by("Node", node, &machine),
            Owner::None => json!(null),
        };
        pod(node, name, work, owners)
    });
    apply(drains, items.collect()).await;
}

fn pod(node: &str, name: &str, work: &Work, owners: Value) -> Value {
    let mut labels = json!(work.labels);
    if let Some(app) = &work.app {
        labels["app"] = app.as_str().into();
    }
    let mut annotations = json!(work.annotations);
    if work.owner == Owner::Node {
        annotations["kubernetes.io/config.mirror"] = "mirror".into();
    }
    let scratch = work.empty_dir.then(|| json!({"name": "scratch", "emptyDir": {}}));
    let claim = work.claim.then(|| json!({"name": "claim", "persistentVolumeClaim": {"claimName": "claim"}}));
    let tolerations = work.tolerates.iter().map(|key| json!({"key": key, "operator": "Exists"}));
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": name, "namespace": node, "labels": labels, "annotations": annotations,
            "finalizers": work.finalizers, "ownerReferences": owners,
        },
        "spec": {
            "nodeName": node,
            "terminationGracePeriodSeconds": work.grace,
            "priorityClassName": work.priority,
            "tolerations": tolerations.collect::<Vec<_>>(),
            "containers": [{"name": "work", "image": "work"}],
            "volumes": scratch.into_iter().chain(claim).collect::<Vec<_>>(),
        },
    })
}
