//! What is known of Ray's workers on a node, for people and for drains.

use super::*;
use crate::kubernetes::Controller;
use crate::ray::node_drain::{OnNode, Worker};
use crate::ray::{Amounts, Answer, Cluster, Node as RayNode, NodeState, Problem, Reading, WorkerGroup};
use crate::view::{RayWorker, RayWorkerState};

const NAME: &str = "ml/train";
const NODE: &str = "node-1";

fn at(second: u64) -> Instant {
    Instant::from_millis(second * 1000)
}

fn fleet() -> Fleet {
    let labels: BTreeMap<_, _> = [("ray.io/group".to_owned(), "cpu".to_owned())].into();
    let pod = Pod { namespace: "ml".into(), labels: labels.clone(), ..Pod::default() };
    let resources = Amounts::default();
    let worker_groups = vec![WorkerGroup { name: "cpu".into(), labels, pod, resources, min: 0, max: 9 }];
    let cluster = Cluster { address: "head:6379".into(), worker_groups, ..Cluster::default() };
    let mut fleet = Fleet::new(Policy { ray: [(NAME.to_owned(), cluster)].into(), ..Policy::default() });
    let node = Node { name: NODE.into(), uid: "uid".into(), ready: true, ..Node::default() };
    fleet.handle(at(0), Event::NodeApplied(node));
    fleet
}

fn pod(name: &str) -> Pod {
    let node = Some(NODE.to_owned());
    let (namespace, name) = ("ml".to_owned(), name.to_owned());
    Pod { uid: name.clone(), namespace, name, node, controller: Controller::Workload, ..Pod::default() }
}

fn worker(name: &str, ip: &str) -> Pod {
    let labels = [("ray.io/group".to_owned(), "cpu".to_owned())].into();
    Pod { labels, ip: Some(ip.to_owned()), ..pod(name) }
}

fn ray_node(instance: &str, ip: &str, state: NodeState) -> RayNode {
    RayNode {
        ip: ip.into(),
        instance: instance.into(),
        group: String::new(),
        state,
        total: Amounts::default(),
        available: Amounts::default(),
        activity: vec!["Busy workers on node.".into()],
    }
}

fn tell(fleet: &mut Fleet, second: u64, nodes: &[(&str, RayNode)]) {
    let nodes = nodes.iter().map(|(id, node)| ((*id).to_owned(), node.clone())).collect();
    let answer = Answer::Read(Box::new(Reading { nodes, ..Reading::default() }));
    fleet.handle(at(second), Event::Ray { cluster: NAME.into(), answer });
}

fn states(fleet: &Fleet) -> Vec<(String, RayWorkerState)> {
    let node = fleet.outline(at(100)).nodes.remove(0);
    node.ray_workers.into_iter().map(|RayWorker { pod, state, .. }| (pod, state)).collect()
}

fn on_node(fleet: &Fleet) -> OnNode {
    fleet.ray_on_node(NODE, "uid").unwrap()
}

#[test]
fn a_worker_is_found_by_its_pods_name_or_else_its_address() {
    let mut fleet = fleet();
    for pod in [worker("a", "10.0.0.1"), worker("b", "10.0.0.2"), worker("c", "10.0.0.3"), pod("web")] {
        fleet.handle(at(0), Event::PodApplied(pod));
    }
    // A pod of another node, one that is of no group, and the dead are nobody here.
    let elsewhere = Pod { node: Some("node-2".into()), ..worker("d", "10.0.0.4") };
    fleet.handle(at(0), Event::PodApplied(elsewhere));
    let nodes = [
        ("1", ray_node("a", "", NodeState::Dead)),
        ("2", ray_node("a", "", NodeState::Running)),
        ("3", ray_node("", "10.0.0.2", NodeState::Draining)),
        ("4", ray_node("web", "", NodeState::Running)),
        ("5", ray_node("d", "", NodeState::Running)),
    ];
    tell(&mut fleet, 1, &nodes);
    let told = |name: &str, state| (format!("ml/{name}"), state);
    let busy = RayWorkerState::Busy { because: vec!["Busy workers on node.".into()] };
    let expected = [told("a", busy), told("b", RayWorkerState::Draining), told("c", RayWorkerState::NotJoined)];
    assert_eq!(states(&fleet), expected);

    let worker = |name: &str, id: &str, state| {
        let (cluster, pod, id) = (NAME.to_owned(), format!("ml/{name}"), id.to_owned());
        Worker { cluster, pod, id, state }
    };
    let workers = vec![worker("a", "2", NodeState::Running), worker("b", "3", NodeState::Draining)];
    let joining = vec![(NAME.to_owned(), "ml/c".to_owned())];
    assert_eq!(on_node(&fleet), OnNode { workers, joining, ..OnNode::default() });
    assert_eq!(fleet.ray_on_node(NODE, "another"), None);
    assert_eq!(fleet.ray_on_node("node-9", "uid"), None);
}

#[test]
fn a_head_that_tells_nothing_leaves_its_workers_unknown_and_says_since_when() {
    let mut fleet = fleet();
    assert_eq!(on_node(&fleet), OnNode::default(), "there are no pods of Ray");
    fleet.handle(at(0), Event::PodApplied(worker("a", "10.0.0.1")));
    assert_eq!(on_node(&fleet).unheard, [NAME]);
    tell(&mut fleet, 1, &[("1", ray_node("a", "", NodeState::Running))]);
    for (second, problem) in [(5, Problem::Late), (6, Problem::Unreachable)] {
        fleet.handle(at(second), Event::Ray { cluster: NAME.into(), answer: Answer::Unreadable(problem) });
    }
    assert_eq!(states(&fleet), [("ml/a".to_owned(), RayWorkerState::Unknown)]);
    let OnNode { workers, silent, unheard, .. } = on_node(&fleet);
    assert_eq!((workers.len(), unheard.len()), (1, 0));
    assert_eq!(silent[NAME], (Problem::Unreachable, at(5)));
    tell(&mut fleet, 7, &[("1", ray_node("a", "", NodeState::Dead))]);
    assert_eq!(on_node(&fleet), OnNode::default(), "its pod is nothing that Ray could let go of");
}

#[test]
fn a_node_that_only_idle_workers_hold_is_told_by_how_long_not_by_the_heads_clock() {
    let mut fleet = fleet();
    let daemon = Pod { controller: Controller::DaemonSet, ..pod("agent") };
    for pod in [worker("a", "10.0.0.1"), worker("b", "10.0.0.2"), daemon] {
        fleet.handle(at(0), Event::PodApplied(pod));
    }
    let idle = |millis| NodeState::Idle { millis };
    let since = |fleet: &Fleet| fleet.outline(at(100)).nodes[0].idle_ray_only;
    tell(&mut fleet, 60, &[("1", ray_node("a", "", idle(50_000))), ("2", ray_node("b", "", idle(20_000)))]);
    assert_eq!(since(&fleet), Some(at(40)), "since the last has nothing to do");
    // Ten seconds later it is the same, whatever the head's clock says: it tells how long.
    tell(&mut fleet, 70, &[("1", ray_node("a", "", idle(60_000))), ("2", ray_node("b", "", idle(30_000)))]);
    assert_eq!(since(&fleet), Some(at(40)));
    tell(&mut fleet, 71, &[("1", ray_node("a", "", idle(60_000))), ("2", ray_node("b", "", NodeState::Running))]);
    assert_eq!(since(&fleet), None, "one works");
    tell(&mut fleet, 72, &[("1", ray_node("a", "", idle(60_000)))]);
    assert_eq!(since(&fleet), None, "one has not joined");
    tell(&mut fleet, 73, &[("1", ray_node("a", "", idle(60_000))), ("2", ray_node("b", "", idle(0)))]);
    assert!(since(&fleet).is_some());
    fleet.handle(at(74), Event::PodApplied(pod("web")));
    assert_eq!(since(&fleet), None, "another pod holds it");
    fleet.handle(at(75), Event::PodDeleted { uid: "web".into() });
    for uid in ["a", "b"] {
        fleet.handle(at(75), Event::PodDeleted { uid: uid.into() });
    }
    assert_eq!(since(&fleet), None, "nothing holds it");
}
