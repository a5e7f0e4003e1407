//! The scheduling model against the real kube-scheduler, pod by pod: nodes and pods by chance, one pod at a time, and
//! for each one the node that was chosen must be one that the model admits, and of one left pending the model must refuse
//! every node for the causes that the scheduler gives. `cargo xtask test scheduler --pods N --seed S` runs it.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeMap;
use std::time::Duration;

use ebb_core::kubernetes::{Node, Pod};
use ebb_core::schedule::{Cluster, Misfit, Place};
use ebb_core::storage::{Change, Storage};
use ebb_tests::scheduling::{Chance, bound_to, open_nodes, refusal, said};
use ebb_tests::{Lab, LabOptions};
use k8s_openapi::api::core::v1 as api;
use kube::api::{DeleteParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(60);
/// Every so many pods, one that runs goes away.
const CHURN: u64 = 4;

/// Nodes of four kinds in three zones; the last have no rack.
const GROUPS: [&str; 4] = [
    "name=small,type=m5.large,desired=4,max=4,label=rack=r1",
    "name=cpu,type=m5.xlarge,desired=4,max=4,label=rack=r2",
    "name=gpu,type=g4dn.xlarge,desired=3,max=3,label=rack=r3,taint=nvidia.com/gpu=:NoSchedule",
    "name=team,type=m5.2xlarge,desired=3,max=3,label=pool=team",
];
const NODES: usize = 14;

const ZONE: &str = "topology.kubernetes.io/zone";
const HOSTNAME: &str = "kubernetes.io/hostname";

#[tokio::test]
async fn the_model_and_the_scheduler_agree_pod_by_pod() {
    let number = |name: &str, default: u64| std::env::var(name).map_or(default, |text| text.parse().unwrap());
    let (count, seed) = (number("EBB_TEST_PODS", 300), number("EBB_TEST_SEED", 1));
    let groups = GROUPS.map(str::to_owned).to_vec();
    let lab = Lab::up(LabOptions { groups, ..LabOptions::default() }).await;
    let client = lab.client().await;
    let nodes: Api<api::Node> = Api::all(client.clone());
    let pods: Api<api::Pod> = Api::namespaced(client.clone(), "default");
    let known = open_nodes(&lab, &nodes, NODES, SOON).await;
    let storage = storage(&lab, &client).await;

    let mut there: BTreeMap<String, (usize, Pod)> = BTreeMap::new();
    let (mut refused, mut causes, mut differences) = (0, BTreeMap::<&str, u64>::new(), Vec::new());
    for number in 0..count {
        let mut chance = Chance(seed << 32 | number);
        if number % CHURN == 0 && !there.is_empty() {
            let index = usize::try_from(chance.below(there.len() as u64)).unwrap();
            let name = there.keys().nth(index).unwrap().clone();
            there.remove(&name);
            gone(&lab, &pods, &name).await;
        }
        let name = format!("pod-{number:05}");
        let object = serde_json::from_value(pod(&mut chance, &name)).unwrap();
        pods.create(&PostParams::default(), &object).await.unwrap();
        let mut seen = None;
        let decided = async || {
            let pod = pods.get(&name).await.unwrap();
            let decided = bound_to(&pod).is_some() || refusal(&pod).is_some();
            seen = Some(pod);
            decided
        };
        lab.wait_until("the scheduler to have looked at the pod", SOON, decided).await;
        let seen = seen.unwrap();
        let asked = Pod { node: None, unschedulable_since: None, unseen_since: None, ..Pod::from(&seen) };
        let needs = storage.needs("default", &asked.claims);
        let asked = Pod { needs, ..asked };
        let verdicts = verdicts(&known, &there, &asked);
        let ask = || serde_json::to_string(&object.spec.as_ref().unwrap()).unwrap();
        if let Some(chosen) = bound_to(&seen) {
            let node = known.iter().position(|node| node.name == chosen).unwrap();
            if let Err(misfit) = &verdicts[node] {
                differences.push(format!("{name} is on {chosen}, of which the model says: {misfit}\n  {}", ask()));
            }
            there.insert(name, (node, asked));
            continue;
        }
        refused += 1;
        let message = refusal(&seen).unwrap();
        if let Some(difference) = difference(&verdicts, &message) {
            differences.push(format!("{name}: {difference}; it says: {message}\n  {}", ask()));
        }
        for (cause, says) in CAUSES {
            *causes.entry(cause).or_default() += u64::from(refused_for(&message, cause, says) > 0);
        }
        gone(&lab, &pods, &name).await;
    }
    println!("compared {count} pods of seed {seed} with the real scheduler: {refused} refused; causes: {causes:?}");
    assert!(differences.is_empty(), "seed {seed}: {} differences\n{}", differences.len(), differences.join("\n"));
    // Of equal nodes the scheduler takes one by chance, so that a few pods need not show every cause.
    let never: Vec<_> = causes.iter().filter(|(_, pods)| **pods == 0 && count >= 1_000).collect();
    assert!(never.is_empty(), "nothing is said of these: {never:?}");
}

/// What the scheduler says of a node, by the model's word for it.
const CAUSES: [(&str, &[&str]); 10] = [
    ("claim", &["unbound immediate PersistentVolumeClaims", "persistentvolumeclaim"]),
    ("volume", &["PersistentVolume's node affinity", "volume node affinity conflict"]),
    ("taint", &["untolerated taint"]),
    ("selection", &["node affinity/selector"]),
    ("port", &["free ports"]),
    ("resource", &["Insufficient"]),
    ("spread", &["topology spread constraints"]),
    ("affinity", &["match pod affinity rules"]),
    ("anti-affinity", &["match pod anti-affinity rules"]),
    ("others' anti-affinity", &["existing pods anti-affinity rules"]),
];

fn cause(misfit: &Misfit) -> &'static str {
    match misfit {
        Misfit::Claim { .. } => "claim",
        Misfit::Volume { .. } => "volume",
        Misfit::HostPort { .. } => "port",
        Misfit::NodeAffinity | Misfit::NodeSelector { .. } => "selection",
        Misfit::PodAffinity { .. } => "affinity",
        Misfit::PodAntiAffinity { .. } => "anti-affinity",
        Misfit::PodsAntiAffinity { .. } => "others' anti-affinity",
        Misfit::Resource { .. } => "resource",
        Misfit::Spread { .. } | Misfit::TopologyKey { .. } => "spread",
        Misfit::Taint { .. } => "taint",
    }
}

/// Of how many nodes the message says this. Of claims it speaks before it looks at nodes, and so counts none.
fn refused_for(message: &str, cause: &str, says: &[&str]) -> usize {
    match cause {
        "claim" if says.iter().any(|says| message.contains(says)) => NODES,
        "claim" => 0,
        _ => says.iter().map(|says| said(message, says)).sum(),
    }
}

fn difference(verdicts: &[Result<(), Misfit>], message: &str) -> Option<String> {
    let mut ours: BTreeMap<&str, usize> = BTreeMap::new();
    for verdict in verdicts {
        match verdict {
            Ok(()) => return Some("it fits by the model".into()),
            Err(misfit) => *ours.entry(cause(misfit)).or_default() += 1,
        }
    }
    let mut theirs: BTreeMap<&str, usize> = BTreeMap::new();
    for (cause, says) in CAUSES {
        let nodes = refused_for(message, cause, says);
        // A node may lack several resources, and each is told.
        let nodes = if cause == "resource" { nodes.min(ours.get(cause).copied().unwrap_or(nodes)) } else { nodes };
        if nodes > 0 {
            theirs.insert(cause, nodes);
        }
    }
    (ours != theirs).then(|| format!("the model refuses nodes for {ours:?}, the scheduler for {theirs:?}"))
}

fn verdicts(nodes: &[Node], there: &BTreeMap<String, (usize, Pod)>, pod: &Pod) -> Vec<Result<(), Misfit>> {
    let mut cluster = Cluster::default();
    for Node { name, labels, taints, allocatable, .. } in nodes {
        cluster.add(Place { name: Some(name), labels, taints, free: allocatable.clone(), zones: &[] });
    }
    for (node, pod) in there.values() {
        let shape = cluster.shape(pod);
        cluster.put(*node, shape);
    }
    let shape = cluster.shape(pod);
    (0..nodes.len()).map(|node| cluster.admits(node, shape)).collect()
}

async fn gone(lab: &Lab, pods: &Api<api::Pod>, name: &str) {
    pods.delete(name, &DeleteParams::default().grace_period(0)).await.unwrap();
    let gone = async || pods.get_opt(name).await.unwrap().is_none();
    lab.wait_until("a deleted pod to be gone", SOON, gone).await;
}

/// A claim in each zone, one that is bound to nothing, and one that is for any node.
async fn storage(lab: &Lab, client: &Client) -> Storage {
    let mut storage = Storage::default();
    let volumes: Api<api::PersistentVolume> = Api::all(client.clone());
    let claims: Api<api::PersistentVolumeClaim> = Api::namespaced(client.clone(), "default");
    for (name, zone) in [("in-a", Some("a")), ("in-b", Some("b")), ("anywhere", None), ("unbound", None)] {
        let common = json!({"accessModes": ["ReadWriteMany"], "storageClassName": ""});
        let mut claim = json!({"metadata": {"name": name}, "spec": common.clone()});
        claim["spec"]["resources"] = json!({"requests": {"storage": "1Gi"}});
        if name != "unbound" {
            let mut volume = json!({"metadata": {"name": name}, "spec": common});
            volume["spec"]["capacity"] = json!({"storage": "1Gi"});
            volume["spec"]["nfs"] = json!({"server": "nowhere", "path": "/"});
            volume["spec"]["claimRef"] = json!({"namespace": "default", "name": name});
            if let Some(zone) = zone {
                let zone = json!({"key": ZONE, "operator": "In", "values": [format!("us-east-1{zone}")]});
                let terms = json!({"nodeSelectorTerms": [{"matchExpressions": [zone]}]});
                volume["spec"]["nodeAffinity"] = json!({"required": terms});
            }
            let volume = serde_json::from_value(volume).unwrap();
            let volume = volumes.create(&PostParams::default(), &volume).await.unwrap();
            storage.apply(Change::Volume((&volume).into()));
            claim["spec"]["volumeName"] = name.into();
        }
        let claim = serde_json::from_value(claim).unwrap();
        let mut claim = claims.create(&PostParams::default(), &claim).await.unwrap();
        let bound = async || {
            claim = claims.get(name).await.unwrap();
            claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound")
        };
        if name != "unbound" {
            lab.wait_until("the controller to have bound the claim", SOON, bound).await;
        }
        storage.apply(Change::Claim((&claim).into()));
    }
    storage
}

/// A pod of some shape. Few labels, so that rules are about something.
fn pod(chance: &mut Chance, name: &str) -> Value {
    const APPS: [&str; 4] = ["cache", "train", "web", "worker"];
    const KEYS: [&str; 3] = [ZONE, "rack", HOSTNAME];
    let one_in = |chance: &mut Chance, of| chance.below(of) == 0;
    // The API server refuses a key that both of them name.
    let is_about_tier = |rule: &Value| rule["labelSelector"].to_string().contains("tier");
    let selector = |chance: &mut Chance| match chance.below(8) {
        0 => json!({}),
        1 => json!({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["web", "cache"]}]}),
        2 => json!({"matchExpressions": [{"key": "tier", "operator": "Exists"}]}),
        _ => json!({"matchLabels": {"app": chance.one_of(&APPS)}}),
    };
    let term = |chance: &mut Chance| {
        let mut term = json!({"labelSelector": selector(chance), "topologyKey": chance.one_of(&KEYS)});
        match chance.below(8) {
            0 => term["namespaceSelector"] = json!({}),
            1 => term["namespaces"] = json!(["elsewhere"]),
            2 if !is_about_tier(&term) => term["matchLabelKeys"] = json!(["tier"]),
            _ => {}
        }
        term
    };
    let terms = |chance: &mut Chance, of| {
        let count = if one_in(chance, of) { 1 + chance.below(2) } else { 0 };
        (0..count).map(|_| term(chance)).collect::<Vec<_>>()
    };
    let mut labels = json!({"app": chance.one_of(&APPS)});
    if one_in(chance, 3) {
        labels["tier"] = chance.one_of(&["front", "back"]).into();
    }
    let requests = json!({
        "cpu": chance.one_of(&["50m", "100m", "500m", "2"]),
        "memory": chance.one_of(&["64Mi", "256Mi", "1Gi", "6Gi"]),
    });
    let ports: Vec<_> = (0..u64::from(one_in(chance, 5)))
        .map(|_| {
            let port = 8000 + chance.below(2);
            let mut port = json!({"containerPort": port, "hostPort": port, "protocol": chance.one_of(&["TCP", "UDP"])});
            if one_in(chance, 2) {
                port["hostIP"] = chance.one_of(&["10.0.0.1", "10.0.0.2", "0.0.0.0"]).into();
            }
            port
        })
        .collect();
    let tolerations = if one_in(chance, 2) { json!([{"operator": "Exists"}]) } else { json!([]) };
    let mut spread = Vec::new();
    for key in KEYS {
        if one_in(chance, 7) {
            let mut constraint = json!({
                "maxSkew": 1 + chance.below(2),
                "topologyKey": key,
                "whenUnsatisfiable": if one_in(chance, 5) { "ScheduleAnyway" } else { "DoNotSchedule" },
                "labelSelector": selector(chance),
                "nodeAffinityPolicy": chance.one_of(&["Honor", "Ignore"]),
                "nodeTaintsPolicy": chance.one_of(&["Honor", "Ignore"]),
            });
            if constraint["whenUnsatisfiable"] == "DoNotSchedule" && one_in(chance, 3) {
                constraint["minDomains"] = (1 + chance.below(5)).into();
            }
            if one_in(chance, 4) && !is_about_tier(&constraint) {
                constraint["matchLabelKeys"] = json!(["tier"]);
            }
            spread.push(constraint);
        }
    }
    let node_selector = if one_in(chance, 8) { json!({"rack": chance.one_of(&["r1", "r2"])}) } else { json!({}) };
    let mut affinity = json!({
        "podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms(chance, 6)},
        "podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms(chance, 3)},
    });
    if one_in(chance, 8) {
        let rule = json!({"key": "pool", "operator": chance.one_of(&["Exists", "DoesNotExist"])});
        affinity["nodeAffinity"] = json!({"requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{"matchExpressions": [rule]}],
        }});
    }
    let volumes: Vec<_> = (0..u64::from(one_in(chance, 6)))
        .map(|_| {
            let claim = chance.one_of(&["in-a", "in-a", "in-b", "in-b", "anywhere", "unbound", "missing"]);
            json!({"name": "data", "persistentVolumeClaim": {"claimName": claim}})
        })
        .collect();
    json!({
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "containers": [{
                "name": "work", "image": "work", "ports": ports,
                "resources": {"requests": requests, "limits": requests},
            }],
            "tolerations": tolerations,
            "volumes": volumes,
            "nodeSelector": node_selector,
            "topologySpreadConstraints": spread,
            "affinity": affinity,
        },
    })
}
