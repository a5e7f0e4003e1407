//! The scheduling model against the real kube-scheduler: what it binds must fit by the model, and what it leaves pending
//! must fit nowhere, for the same causes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ebb_core::kubernetes::{Node, Pod};
use ebb_core::resources::Resources;
use ebb_core::schedule::{Misfit, Place};
use ebb_core::time::Instant;
use ebb_sim::scheduler::{Action, Event, Scheduler};
use ebb_tests::scheduling::{Chance, bound_to, open_nodes, refusal, said};
use ebb_tests::{Lab, LabOptions};
use k8s_openapi::api::core::v1 as api;
use kube::api::{ListParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(120);
const PODS: u64 = 300;
const SEED: u64 = 1;

/// Nodes of four kinds, too few for all the pods.
const GROUPS: [&str; 4] = [
    "name=small,type=m5.large,desired=3,max=3,label=pool=cpu",
    "name=cpu,type=m5.xlarge,desired=6,max=6,label=pool=cpu",
    "name=gpu,type=g4dn.xlarge,desired=4,max=4,label=pool=gpu,taint=nvidia.com/gpu=:NoSchedule",
    "name=team,type=m5.2xlarge,desired=2,max=2,label=pool=team,taint=team=blue:NoSchedule",
];
const NODES: usize = 15;

#[tokio::test]
async fn the_scheduler_binds_what_the_model_admits_and_nothing_else() {
    let groups = GROUPS.map(str::to_owned).to_vec();
    let lab = Lab::up(LabOptions { groups, ..LabOptions::default() }).await;
    let client = lab.client().await;
    let nodes: Api<api::Node> = Api::all(client.clone());
    let pods: Api<api::Pod> = Api::namespaced(client, "default");
    open_nodes(&lab, &nodes, NODES, SOON).await;
    for number in 0..PODS {
        let pod = serde_json::from_value(pod(&mut Chance(SEED << 32 | number), number)).unwrap();
        pods.create(&PostParams::default(), &pod).await.unwrap();
    }
    let decided = async || {
        let pods = pods.list(&ListParams::default()).await.unwrap().items;
        pods.iter().all(|pod| bound_to(pod).is_some() || refusal(pod).is_some())
    };
    lab.wait_until("the scheduler to have looked at every pod", SOON, decided).await;

    let nodes = nodes.list(&ListParams::default()).await.unwrap().items;
    let nodes: Vec<Node> = nodes.iter().map(Node::from).collect();
    let seen = pods.list(&ListParams::default()).await.unwrap().items;
    let mut used: BTreeMap<&str, Resources> = BTreeMap::new();
    for pod in &seen {
        if let Some(node) = bound_to(pod) {
            used.entry(node).or_default().add(&Pod::from(pod).requests);
        }
    }
    let free_on = |node: &Node| {
        let mut free = node.allocatable.clone();
        free.subtract(used.get(node.name.as_str()).unwrap_or(&Resources::default()));
        free
    };
    let (mut bound, mut pending, mut differences) = (0, 0, Vec::new());
    for seen in &seen {
        let (pod, name) = (Pod::from(seen), seen.name_any());
        let verdict = |node: &Node, own: bool| {
            let mut free = free_on(node);
            if own {
                free.add(&pod.requests);
            }
            Place { name: Some(&node.name), labels: &node.labels, taints: &node.taints, free, zones: &[] }.admits(&pod)
        };
        if let Some(chosen) = bound_to(seen) {
            bound += 1;
            let node = nodes.iter().find(|node| node.name == chosen).unwrap();
            if let Err(misfit) = verdict(node, true) {
                differences.push(format!("{name} is on {chosen}, where the model says: {misfit}"));
            }
            continue;
        }
        pending += 1;
        let verdicts: Vec<_> = nodes.iter().map(|node| verdict(node, false)).collect();
        if verdicts.iter().any(Result::is_ok) {
            differences.push(format!("{name} is pending and fits by the model: {verdicts:?}"));
        }
        let message = refusal(seen).unwrap();
        let count =
            |of: fn(&Misfit) -> bool| verdicts.iter().filter_map(|it| it.as_ref().err()).filter(|it| of(it)).count();
        let tainted = count(|misfit| matches!(misfit, Misfit::Taint { .. }));
        let mismatched = count(|misfit| matches!(misfit, Misfit::NodeAffinity | Misfit::NodeSelector { .. }));
        let lacking = count(|misfit| matches!(misfit, Misfit::Resource { .. }));
        let theirs = (said(&message, "untolerated taint"), said(&message, "node affinity/selector"));
        if theirs != (tainted, mismatched) || message.contains("Insufficient") != (lacking > 0) {
            differences
                .push(format!("{name}: {tainted} taints, {mismatched} mismatches, {lacking} lack; it says: {message}"));
        }
    }
    let modelled = model(&nodes, &seen);
    for seen in &seen {
        let (pod, name) = (Pod::from(seen), seen.name_any());
        let anywhere = |node: &Node| {
            let (labels, taints) = (&node.labels, node.taints.as_slice());
            Place { name: Some(&node.name), labels, taints, free: node.allocatable.clone(), zones: &[] }
                .admits(&pod)
                .is_ok()
        };
        let bound = (bound_to(seen).is_some(), modelled.contains(&pod.uid));
        if !nodes.iter().any(anywhere) && bound != (false, false) {
            differences
                .push(format!("{name} fits no node, not even an empty one; bound by the real one, by ours: {bound:?}"));
        }
    }
    println!("the simulator's scheduler binds {} of them", modelled.len());
    println!("compared {} pods with the real scheduler: {bound} bound, {pending} pending", seen.len());
    assert!(bound > 30 && pending > 30, "both happen often enough to say something");
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

/// UIDs of the pods that the simulator's scheduler binds, told the same in the same order.
fn model(nodes: &[Node], pods: &[api::Pod]) -> BTreeSet<String> {
    let mut scheduler = Scheduler::new(SEED);
    let now = Instant::from_millis(0);
    for node in nodes {
        scheduler.handle(now, Event::NodeApplied(node.clone()));
    }
    let mut bound = BTreeSet::new();
    for pod in pods {
        let pod = Pod { node: None, unschedulable_since: None, unseen_since: None, ..Pod::from(pod) };
        for action in scheduler.handle(now, Event::PodApplied(pod)) {
            if let Action::Bind { uid, .. } = action {
                bound.insert(uid);
            }
        }
    }
    bound
}

/// A pod of some shape.
fn pod(chance: &mut Chance, number: u64) -> Value {
    let mut requests = json!({
        "cpu": chance.one_of(&["100m", "500m", "1", "2", "3"]),
        "memory": chance.one_of(&["128Mi", "1Gi", "3Gi", "12Gi"]),
    });
    let mut tolerations = Vec::new();
    if chance.below(5) == 0 {
        requests["nvidia.com/gpu"] = "1".into();
    }
    if chance.below(3) == 0 {
        tolerations.push(json!({"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}));
    }
    if chance.below(4) == 0 {
        let value = chance.one_of(&["blue", "red"]);
        tolerations.push(json!({"key": "team", "operator": "Equal", "value": value, "effect": "NoSchedule"}));
    }
    let selector = match chance.below(6) {
        0 => json!({"pool": "cpu"}),
        1 => json!({"pool": chance.one_of(&["gpu", "team", "nowhere"])}),
        _ => json!({}),
    };
    let zone = "topology.kubernetes.io/zone";
    let requirement = match chance.below(8) {
        0 => Some(json!({"key": zone, "operator": "In", "values": ["us-west-2a"]})),
        1 => Some(json!({"key": "pool", "operator": "NotIn", "values": ["gpu", "cpu"]})),
        2 => Some(json!({"key": "missing", "operator": chance.one_of(&["Exists", "DoesNotExist"])})),
        _ => None,
    };
    let affinity = requirement.map(|requirement| {
        json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{"matchExpressions": [requirement]}],
        }}})
    });
    json!({
        "metadata": {"name": format!("pod-{number:03}")},
        "spec": {
            "containers": [{"name": "work", "image": "work", "resources": {"requests": requests, "limits": requests}}],
            "tolerations": tolerations,
            "nodeSelector": selector,
            "affinity": affinity,
        },
    })
}
