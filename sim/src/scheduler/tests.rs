use std::collections::BTreeMap;

use ebb_core::kubernetes::{Operator, Requirement, SelectorTerm, Taint, TaintEffect, Toleration};
use ebb_core::resources::Resources;
use ebb_core::schedule::Place;
use proptest::prelude::*;

use super::*;

fn at(millis: u64) -> Instant {
    Instant::from_millis(1_000_000_000 + millis)
}

fn resources(texts: &[(&str, &str)]) -> Resources {
    Resources::from_texts(texts.iter().copied()).unwrap()
}

/// A ready node without labels.
fn node(name: &str, cpu: &str, memory: &str) -> Node {
    let allocatable = resources(&[("cpu", cpu), ("memory", memory), ("pods", "110")]);
    Node { name: name.into(), uid: name.into(), ready: true, allocatable, ..Node::default() }
}

fn pod(uid: &str, cpu: &str, memory: &str) -> Pod {
    let requests = resources(&[("cpu", cpu), ("memory", memory), ("pods", "1")]);
    Pod { uid: uid.into(), name: uid.into(), requests, ..Pod::default() }
}

fn taint(key: &str, effect: TaintEffect) -> Taint {
    Taint { key: key.into(), value: String::new(), effect }
}

/// The scheduler, driven at one moment; actions as short texts.
struct Driven {
    scheduler: Scheduler,
    now: Instant,
}

fn driven(seed: u64) -> Driven {
    Driven { scheduler: Scheduler::new(seed), now: at(0) }
}

impl Driven {
    fn send(&mut self, event: Event) -> Vec<String> {
        let short = |action| match action {
            Action::Bind { uid, node } => format!("{uid} to {node}"),
            Action::Unschedulable { uid, because } => {
                let because = because.iter().map(|(misfit, nodes)| format!(", {nodes} {misfit}"));
                format!("{uid} waits{}", because.collect::<String>())
            }
        };
        self.scheduler.handle(self.now, event).into_iter().map(short).collect()
    }

    fn node(&mut self, node: &Node) -> Vec<String> {
        self.send(Event::NodeApplied(node.clone()))
    }

    fn pod(&mut self, pod: &Pod) -> Vec<String> {
        self.send(Event::PodApplied(pod.clone()))
    }

    fn delete(&mut self, pod: &str) -> Vec<String> {
        self.send(Event::PodDeleted { uid: pod.into() })
    }
}

#[test]
fn the_emptier_node_is_chosen() {
    let mut cluster = driven(1);
    cluster.node(&node("small", "4", "16Gi"));
    cluster.node(&node("large", "8", "32Gi"));
    assert_eq!(cluster.pod(&pod("a", "1", "4Gi")), ["a to large"]);
    assert_eq!(cluster.pod(&pod("b", "2", "8Gi")), ["b to large"]);
    // 75 % of small would be left, and 50 % of large.
    assert_eq!(cluster.pod(&pod("c", "1", "4Gi")), ["c to small"]);
}

#[test]
fn among_equally_empty_nodes_the_one_that_becomes_more_even_is_chosen() {
    let mut cluster = driven(1);
    for (name, cpu, memory) in [("much-cpu", "2", "0"), ("much-memory", "0", "8Gi")] {
        cluster.node(&node(name, "4", "16Gi"));
        cluster.pod(&Pod { node: Some(name.into()), ..pod(&format!("on-{name}"), cpu, memory) });
    }
    assert_eq!(cluster.pod(&pod("a", "1", "0")), ["a to much-memory"]);
}

#[test]
fn a_soft_taint_is_avoided_while_there_is_room_elsewhere() {
    let mut cluster = driven(1);
    let soft = taint("soft", TaintEffect::PreferNoSchedule);
    cluster.node(&Node { taints: vec![soft.clone()], ..node("soft", "64", "256Gi") });
    cluster.node(&node("plain", "2", "8Gi"));
    let tolerating = |effect| vec![Toleration { key: Some("soft".into()), value: None, effect }];
    assert_eq!(cluster.pod(&pod("a", "1", "1Gi")), ["a to plain"]);
    let hard_only = Pod { tolerations: tolerating(Some(TaintEffect::NoSchedule)), ..pod("b", "500m", "1Gi") };
    assert_eq!(cluster.pod(&hard_only), ["b to plain"]);
    assert_eq!(cluster.pod(&Pod { tolerations: tolerating(None), ..pod("c", "500m", "1Gi") }), ["c to soft"]);
    assert_eq!(cluster.pod(&pod("d", "1", "1Gi")), ["d to soft"]);
}

#[test]
fn pods_go_by_priority_and_then_by_arrival() {
    let mut cluster = driven(1);
    cluster.node(&node("full", "1", "1Gi"));
    let shapes = [("a", 0, "2"), ("b", 0, "1500m"), ("c", 5, "2"), ("d", 5, "2"), ("e", 0, "2")];
    for (name, priority, cpu) in shapes {
        let said = cluster.pod(&Pod { priority, ..pod(name, cpu, "0") });
        assert_eq!(said, [format!("{name} waits, 1 too little cpu")]);
    }
    let bound = cluster.node(&node("new", "8", "8Gi"));
    assert_eq!(bound, ["c to new", "d to new", "a to new", "b to new"]);
    assert_eq!(cluster.delete("c"), ["e to new"]);
}

#[test]
fn a_pod_that_waits_goes_as_soon_as_something_makes_it_fit() {
    let waits = |cluster: &mut Driven, pod: &Pod| assert!(cluster.pod(pod)[0].starts_with("w waits"));
    let mut cluster = driven(1);
    let plain = node("n", "2", "8Gi");
    cluster.node(&plain);
    cluster.pod(&pod("runs", "2", "1Gi"));
    let waiting = pod("w", "1", "1Gi");

    waits(&mut cluster, &waiting);
    assert_eq!(cluster.delete("runs"), ["w to n"]);
    // Finished is as good as deleted.
    cluster.pod(&pod("x", "1", "1Gi"));
    cluster.pod(&pod("y", "2", "1Gi"));
    assert_eq!(cluster.pod(&Pod { node: Some("n".into()), finished: true, ..pod("x", "1", "1Gi") }), [""; 0]);
    assert_eq!(cluster.pod(&Pod { node: Some("n".into()), finished: true, ..pod("w", "1", "1Gi") }), ["y to n"]);
    cluster.delete("y");

    // The node: no longer cordoned, ready, without its taint, with a label, larger.
    let labelled = || [("pool".to_owned(), "a".to_owned())].into();
    let asks_label = Pod { node_selector: labelled(), ..waiting.clone() };
    let in_the_way = [
        (Node { unschedulable: true, ..plain.clone() }, &waiting),
        (Node { ready: false, ..plain.clone() }, &waiting),
        (Node { taints: vec![taint("k", TaintEffect::NoExecute)], ..plain.clone() }, &waiting),
        (plain.clone(), &asks_label),
        (node("n", "500m", "8Gi"), &waiting),
    ];
    for (obstacle, pod) in in_the_way {
        cluster.node(&obstacle);
        waits(&mut cluster, pod);
        assert_eq!(cluster.node(&Node { labels: labelled(), ..plain.clone() }), ["w to n"]);
        cluster.delete("w");
    }
    // The pod: with a toleration, with less to ask for.
    cluster.node(&Node { taints: vec![taint("k", TaintEffect::NoSchedule)], ..plain.clone() });
    waits(&mut cluster, &waiting);
    let tolerations = vec![Toleration::default()];
    assert_eq!(cluster.pod(&Pod { tolerations, ..waiting.clone() }), ["w to n"]);
    cluster.delete("w");
    cluster.node(&plain);
    waits(&mut cluster, &pod("w", "3", "1Gi"));
    assert_eq!(cluster.pod(&waiting), ["w to n"]);
}

#[test]
fn a_pod_is_said_to_be_unschedulable_once() {
    let mut cluster = driven(1);
    cluster.node(&node("n", "1", "1Gi"));
    assert_eq!(cluster.pod(&pod("a", "2", "1Gi")), ["a waits, 1 too little cpu"]);
    cluster.node(&node("m", "1", "1Gi"));
    assert_eq!(cluster.pod(&pod("a", "2", "1Gi")), [""; 0]);
    assert_eq!(cluster.pod(&pod("a", "3", "1Gi")), [""; 0]);
    // Somebody, a scheduler before this one, has said so.
    assert_eq!(cluster.pod(&Pod { unschedulable_since: Some(at(0)), ..pod("b", "2", "1Gi") }), [""; 0]);
}

#[test]
fn a_pod_tried_while_there_is_no_node_waits_out_its_backoff() {
    let mut cluster = driven(1);
    cluster.now = at(300);
    assert_eq!(cluster.pod(&pod("a", "1", "1Gi")), ["a waits"]);
    let mut tried = Vec::new();
    for _ in 0..6 {
        cluster.now = cluster.scheduler.next_wakeup().unwrap();
        tried.push(cluster.now.since(at(0)).as_secs());
        assert_eq!(cluster.send(Event::Tick), [""; 0]);
    }
    // 1, 2, 4, 8, 10 and 10 s after the attempt, and then at the next whole second.
    assert_eq!(tried, [2, 5, 10, 19, 30, 41]);
    // Not earlier for a node; but a pod that has not been tried goes at once.
    cluster.now = at(41_100);
    assert_eq!(cluster.node(&node("n", "4", "8Gi")), [""; 0]);
    assert_eq!(cluster.pod(&pod("b", "1", "1Gi")), ["b to n"]);
    cluster.now = at(51_900);
    assert_eq!(cluster.send(Event::Tick), [""; 0]);
    cluster.now = at(52_000);
    assert_eq!(cluster.scheduler.next_wakeup(), Some(cluster.now));
    assert_eq!(cluster.send(Event::Tick), ["a to n"]);
    assert_eq!(cluster.scheduler.next_wakeup(), None);
}

#[test]
fn what_others_bind_counts_and_late_news_undo_nothing() {
    let mut cluster = driven(1);
    cluster.node(&node("n", "2", "8Gi"));
    // Bound to a node that is not there yet.
    cluster.pod(&Pod { node: Some("m".into()), ..pod("early", "2", "1Gi") });
    cluster.node(&node("m", "2", "8Gi"));
    assert_eq!(cluster.pod(&pod("a", "2", "1Gi")), ["a to n"]);
    // From before the binding was seen.
    assert_eq!(cluster.pod(&pod("a", "2", "1Gi")), [""; 0]);
    assert_eq!(cluster.pod(&pod("b", "2", "1Gi")), ["b waits, 2 too little cpu"]);
    // Somebody moves the pod that is bound: what it had is free, what it has is not.
    assert_eq!(cluster.pod(&Pod { node: Some("m".into()), ..pod("a", "2", "1Gi") }), ["b to n"]);
    cluster.send(Event::NodeDeleted { name: "n".into() });
    cluster.node(&node("n", "3", "8Gi"));
    assert_eq!(cluster.pod(&pod("c", "1500m", "1Gi")), ["c waits, 2 too little cpu"]);
}

#[test]
fn a_pod_deleted_before_it_was_bound_is_not_bound() {
    let mut cluster = driven(1);
    cluster.node(&node("full", "1", "1Gi"));
    cluster.pod(&pod("a", "2", "1Gi"));
    assert_eq!(cluster.pod(&Pod { terminating: true, ..pod("a", "2", "1Gi") }), [""; 0]);
    assert_eq!(cluster.pod(&Pod { terminating: true, ..pod("b", "1", "1Gi") }), [""; 0]);
    assert_eq!(cluster.node(&node("new", "8", "8Gi")), [""; 0]);
}

#[test]
fn seeds_decide_among_equals_only() {
    let choose = |seed| {
        let mut cluster = driven(seed);
        for name in ["a", "b", "c"] {
            cluster.node(&node(name, "4", "16Gi"));
        }
        cluster.node(&node("busier", "2", "8Gi"));
        cluster.pod(&pod("p", "1", "4Gi"))
    };
    let chosen: BTreeSet<_> = (0..50).flat_map(choose).collect();
    assert_eq!(chosen.into_iter().collect::<Vec<_>>(), ["p to a", "p to b", "p to c"]);
    assert_eq!(choose(7), choose(7));
}

/// More shapes than rankings are kept, and more changes between two pods of a shape than the log remembers.
#[test]
fn a_ranking_that_was_forgotten_is_made_again() {
    let mut cluster = driven(1);
    cluster.node(&node("n", "1000", "1000Gi"));
    cluster.pod(&pod("first", "1m", "0"));
    for round in 0..200 {
        for cpu in 1..=70 {
            let name = format!("p-{round}-{cpu}");
            assert_eq!(cluster.pod(&pod(&name, &format!("{cpu}m"), "0")).len(), 1);
            cluster.delete(&name);
        }
    }
    for (rank, fresh) in cluster.scheduler.shapes.rankings(&cluster.scheduler.cluster) {
        assert_eq!(rank, fresh);
    }
    cluster.node(&node("m", "1", "1Gi"));
    assert_eq!(cluster.pod(&pod("last", "999500m", "0")), ["last to n"]);
}

/// What can happen, on few names so that it happens to the same ones.
#[derive(Clone, Debug)]
enum Happening {
    Node {
        name: u8,
        shape: u8,
        taint: Option<TaintEffect>,
        unschedulable: bool,
        ready: bool,
    },
    NodeGone(u8),
    Pod {
        uid: u8,
        shape: u8,
        priority: i32,
        tolerates: bool,
        selects: bool,
    },
    /// The world tells back what the scheduler did, as it does sooner or later.
    Told(u8),
    Terminating(u8),
    Finished(u8),
    PodGone(u8),
    Elapse(u16),
}

fn happening() -> impl Strategy<Value = Happening> {
    let effect = prop_oneof![
        4 => Just(None),
        1 => Just(Some(TaintEffect::NoSchedule)),
        1 => Just(Some(TaintEffect::PreferNoSchedule)),
    ];
    let node = (0..5u8, 0..3u8, effect, prop::bool::weighted(0.1), prop::bool::weighted(0.9)).prop_map(
        |(name, shape, taint, unschedulable, ready)| Happening::Node { name, shape, taint, unschedulable, ready },
    );
    let pod = (0..30u8, 0..4u8, 0..2i32, any::<bool>(), prop::bool::weighted(0.2)).prop_map(
        |(uid, shape, priority, tolerates, selects)| Happening::Pod { uid, shape, priority, tolerates, selects },
    );
    prop_oneof![
        4 => node,
        1 => (0..5u8).prop_map(Happening::NodeGone),
        10 => pod,
        3 => (0..30u8).prop_map(Happening::Told),
        1 => (0..30u8).prop_map(Happening::Terminating),
        2 => (0..30u8).prop_map(Happening::Finished),
        3 => (0..30u8).prop_map(Happening::PodGone),
        2 => (0..20_000u16).prop_map(Happening::Elapse),
    ]
}

/// The world as it is, kept apart from the scheduler's picture of it.
#[derive(Default)]
struct World {
    nodes: BTreeMap<String, Node>,
    pods: BTreeMap<String, Pod>,
}

impl World {
    fn place<'a>(&'a self, node: &'a Node, taints: &'a [Taint]) -> Place<'a> {
        let mut free = node.allocatable.clone();
        for pod in self.pods.values().filter(|pod| pod.node.as_ref() == Some(&node.name) && !pod.finished) {
            free.subtract(&pod.requests);
        }
        Place { name: Some(&node.name), labels: &node.labels, taints, free, zones: &[] }
    }

    /// The taints with those that stand for a cordon and for not being ready.
    fn taints(node: &Node) -> Vec<Taint> {
        let mut taints = node.taints.clone();
        for (holds, key) in [(node.unschedulable, "unschedulable"), (!node.ready, "not-ready")] {
            if holds {
                taints.push(taint(&format!("node.kubernetes.io/{key}"), TaintEffect::NoSchedule));
            }
        }
        taints
    }

    fn admits(&self, node: &str, pod: &Pod) -> bool {
        let node = &self.nodes[node];
        self.place(node, &Self::taints(node)).admits(pod).is_ok()
    }

    /// Makes it happen; the event that tells of it, unless nothing happened.
    fn happen(&mut self, now: &mut Instant, happening: Happening) -> Option<Event> {
        let uid = |uid: u8| format!("pod-{uid:02}");
        let change = |pods: &mut BTreeMap<String, Pod>, of: u8, how: fn(&mut Pod)| {
            let pod = pods.get_mut(&uid(of))?;
            how(pod);
            Some(Event::PodApplied(pod.clone()))
        };
        match happening {
            Happening::Elapse(millis) => {
                *now = *now + Duration::from_millis(millis.into());
                Some(Event::Tick)
            }
            Happening::Finished(of) => change(&mut self.pods, of, |pod| pod.finished = pod.node.is_some()),
            Happening::Node { name, shape, taint: effect, unschedulable, ready } => {
                let (cpu, memory) = [("2", "4Gi"), ("4", "16Gi"), ("8", "8Gi")][usize::from(shape)];
                let node = Node {
                    labels: [("shape".to_owned(), shape.to_string())].into(),
                    taints: effect.map(|effect| taint("t", effect)).into_iter().collect(),
                    unschedulable,
                    ready,
                    ..node(&format!("node-{name}"), cpu, memory)
                };
                self.nodes.insert(node.name.clone(), node.clone());
                Some(Event::NodeApplied(node))
            }
            Happening::NodeGone(name) => {
                let node = self.nodes.remove(&format!("node-{name}"))?;
                Some(Event::NodeDeleted { name: node.name })
            }
            Happening::Pod { uid: of, shape, priority, tolerates, selects } => {
                if self.pods.contains_key(&uid(of)) {
                    return None;
                }
                let (cpu, memory) = [("500m", "1Gi"), ("1", "0"), ("2", "6Gi"), ("0", "0")][usize::from(shape)];
                let values = vec!["1".to_owned(), "2".to_owned()];
                let requirement = Requirement { key: "shape".into(), operator: Operator::In, values };
                let term = SelectorTerm { labels: vec![requirement], names: Vec::new() };
                let pod = Pod {
                    priority,
                    tolerations: tolerates.then(Toleration::default).into_iter().collect(),
                    node_affinity: selects.then_some(term).into_iter().collect(),
                    ..pod(&uid(of), cpu, memory)
                };
                self.pods.insert(pod.uid.clone(), pod.clone());
                Some(Event::PodApplied(pod))
            }
            Happening::PodGone(of) => Some(Event::PodDeleted { uid: self.pods.remove(&uid(of))?.uid }),
            Happening::Terminating(of) => change(&mut self.pods, of, |pod| pod.terminating = true),
            Happening::Told(of) => change(&mut self.pods, of, |_| {}),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn pods_go_where_they_fit_and_only_wait_where_they_do_not(
        seed in any::<u64>(),
        happenings in prop::collection::vec(happening(), 1..120),
    ) {
        let mut world = World::default();
        let mut scheduler = Scheduler::new(seed);
        let mut twin = Scheduler::new(seed);
        let mut now = at(0);
        let mut told = BTreeSet::new();
        for happening in happenings {
            let Some(event) = world.happen(&mut now, happening) else { continue };
            if let Event::PodDeleted { uid } = &event {
                told.remove(uid);
            }
            let actions = scheduler.handle(now, event.clone());
            prop_assert_eq!(&actions, &twin.handle(now, event), "same input, same output");
            let mut waiting: BTreeSet<_> = world.pods.values().filter(|pod| pod.node.is_none()).cloned().map(|pod| pod.uid).collect();
            let mut priorities = Vec::new();
            for action in actions {
                match action {
                    Action::Bind { uid, node } => {
                        prop_assert!(waiting.remove(&uid), "{} was bound, finished or gone", uid);
                        let pod = &world.pods[&uid];
                        prop_assert!(!pod.terminating);
                        prop_assert!(world.admits(&node, pod), "{} refuses {}", node, uid);
                        priorities.push(pod.priority);
                        world.pods.get_mut(&uid).unwrap().node = Some(node);
                    }
                    Action::Unschedulable { uid, because } => {
                        prop_assert!(waiting.contains(&uid) && told.insert(uid.clone()), "{} was told for nothing", uid);
                        prop_assert_eq!(because.values().sum::<u32>() as usize, world.nodes.len());
                    }
                }
            }
            prop_assert!(priorities.is_sorted_by(|a, b| a >= b), "{:?}", priorities);
            let backing_off: BTreeSet<_> = scheduler.backing_off.iter().map(|(_, _, uid)| uid.clone()).collect();
            for uid in waiting {
                let pod = &world.pods[&uid];
                if !pod.terminating && !pod.finished {
                    prop_assert!(told.contains(&uid), "{} waits and nobody knows", uid);
                    let room = world.nodes.keys().find(|node| world.admits(node, pod));
                    prop_assert!(room.is_none() || backing_off.contains(&uid), "{} waits, fits {:?}", uid, room);
                }
            }
            prop_assert!(scheduler.next_wakeup().is_none_or(|next| next > now));
            for (rank, fresh) in scheduler.shapes.rankings(&scheduler.cluster) {
                prop_assert_eq!(rank, fresh);
            }
        }
    }
}
