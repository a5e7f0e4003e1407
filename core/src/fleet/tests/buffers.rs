//! Buffers in the world.

use super::*;
use crate::buffer::{Change, Problem, Room, Source};

impl World {
    /// Room for so many pods of so many cores.
    pub(super) fn buffer(&mut self, name: &str, count: u32, cpu: &str) {
        let pod = Pod { requests: resources(&[("cpu", cpu), ("pods", "1")]), ..Pod::default() };
        self.insert_buffer(name, count, pod);
    }

    fn insert_buffer(&mut self, name: &str, count: u32, pod: Pod) {
        let buffer = Buffer {
            namespace: "ns".into(),
            name: name.into(),
            uid: format!("uid-{name}"),
            generation: 1,
            replicas: Some(count),
            percentage: None,
            limits: None,
            source: Ok(Source { pod, replicas: None, template: None }),
        };
        self.buffers.insert(name.into(), buffer.clone());
        self.tell(Event::Buffer(Change::Applied(Box::new(buffer))));
    }

    pub(super) fn delete_buffer(&mut self, name: &str) {
        self.buffers.remove(name);
        self.shown.remove(name);
        self.tell(Event::Buffer(Change::Deleted { namespace: "ns".into(), name: name.into() }));
    }

    fn bind(&mut self, pod: &str, node: &str) {
        let pod = self.pods.get_mut(pod).unwrap();
        (pod.node, pod.unschedulable_since) = (Some(node.into()), None);
    }

    fn stay(&self, node: &str) -> Stay {
        let view = self.fleet.view(self.now);
        view.nodes.into_iter().find(|seen| seen.name == node).unwrap().stays.unwrap()
    }

    fn room(&self, buffer: &str) -> &Room {
        &self.shown[buffer].last().unwrap().room
    }
}

#[test]
fn room_is_there_before_any_pod_waits_and_comes_back_when_it_is_taken() {
    let mut world = World::new(pools(&["cpu"]));
    world.buffer("b", 3, "2");
    world.run(10);
    assert_eq!(world.log(), ["cpu 0 -> 2: buffers want room for 3 pods, first ns/b"]);
    assert_eq!(*world.room("b"), Room::There);
    world.run(7200);
    assert_eq!(world.log(), [""; 0]);
    // Two of them take the first node; the other has room for two more.
    for pod in ["x", "y"] {
        world.pod(pod, &[("cpu", "2"), ("pods", "1")]);
    }
    world.run(1);
    assert!(["x", "y"].iter().all(|pod| world.pods[*pod].node.as_deref() == Some("cpu-1")));
    world.run(10);
    assert_eq!(world.log(), ["cpu 2 -> 3: buffer ns/b wants room for a pod"]);
    assert_eq!(*world.room("b"), Room::There);
    // Nobody is told of pods that do not exist.
    world.delete_buffer("b");
    world.run(3600);
    let log = world.log();
    assert!(log.iter().all(|line| line.starts_with("drain") || line.starts_with("terminate")), "{log:?}");
    assert_eq!(world.desired("cpu"), 1);
}

#[test]
fn a_node_that_a_buffer_needs_stays_and_says_so_and_one_more_goes() {
    let mut world = packed(false, &[&[], &[], &[]]);
    world.buffer("b", 2, "4");
    world.run(70);
    assert!(matches!(world.stay("cpu-1"), Stay::Unneeded { .. }));
    assert_eq!(world.stay("cpu-3"), Stay::Buffered { buffer: "ns/b".into() });
    world.run(7200);
    let log = world.log();
    assert!(log.len() == 2 && log[0].starts_with("drain cpu-1") && log[1].starts_with("terminate cpu-1"), "{log:?}");
    for node in ["cpu-2", "cpu-3"] {
        assert_eq!(world.stay(node), Stay::Buffered { buffer: "ns/b".into() });
    }
    world.buffer("b", 1, "4");
    world.run(60);
    assert_eq!(world.desired("cpu"), 1);
}

#[test]
fn what_a_buffer_cannot_have_keeps_no_node() {
    let mut world = packed(false, &[&[], &[]]);
    world.buffer("huge", 1, "8");
    world.run(7200);
    assert_eq!(world.desired("cpu"), 0);
    let Room::Refused { there: 0, groups } = world.room("huge") else { panic!("{:?}", world.shown) };
    assert_eq!(groups[0].1.to_string(), "too little cpu");
}

#[test]
fn a_pod_that_waits_comes_before_all_buffers() {
    let mut world = World::new(pools(&["cpu"]));
    world.policy.groups.get_mut("cpu").unwrap().max = 1;
    world.start();
    world.pod("a", &[("cpu", "1"), ("pods", "1")]);
    world.run(29);
    world.responsive = false;
    // Larger and more important, and yet it gets what the pod leaves.
    let pod = Pod { priority: 1000, requests: resources(&[("cpu", "3500m"), ("pods", "1")]), ..Pod::default() };
    world.insert_buffer("b", 1, pod);
    world.run(40);
    assert_eq!(world.desired("cpu"), 1);
    assert!(world.log().contains(&"a: a node of group cpu is on its way".to_owned()));
    let Room::Refused { there: 0, groups } = world.room("b") else { panic!("{:?}", world.shown) };
    assert_eq!(groups[0].1.to_string(), "at its maximum of 1");
}

#[test]
fn where_pods_wait_is_launched_before_where_buffers_want_more() {
    let mut policy = pools(&["only"]);
    policy.groups.get_mut("only").unwrap().max = 20;
    policy.scale_up.launch = policy::Launch::LaunchInstances;
    let mut world = World::new(policy);
    let in_zone = |zone: &str| BTreeMap::from([(storage::ZONE_LABELS[0].to_owned(), zone.to_owned())]);
    let requests = resources(&[("cpu", "4"), ("pods", "1")]);
    let picky = Pod { requests: requests.clone(), node_selector: in_zone("z2"), ..Pod::default() };
    world.insert(picky, "picky");
    world.run(29);
    // Not yet due: the same moment is.
    let pod = Pod { requests, node_selector: in_zone("z1"), ..Pod::default() };
    world.failing = vec![Failure::Throttled];
    world.insert_buffer("b", 9, pod);
    world.run(10);
    let launches: Vec<_> = world.log().into_iter().filter(|line| line.contains("->")).collect();
    assert!(launches[0].starts_with("only in z2 0 -> 1: pod ns/picky"), "{launches:?}");
    assert!(launches[1].starts_with("only in z1 1 -> 10: buffers want room for 9 pods"), "{launches:?}");
}

#[test]
fn a_drain_is_called_off_for_a_buffer() {
    let mut world = almost_unneeded();
    world.responsive = false;
    world.run(70);
    assert!(world.log()[0].starts_with("drain cpu-1"));
    agent(world.nodes.get_mut("cpu-1").unwrap());
    world.buffer("b", 3, "4");
    world.run(2);
    assert_eq!(world.log(), ["cancel cpu-1: buffer ns/b wants room for a pod"]);
}

#[test]
fn pods_are_not_moved_to_where_a_buffer_would_miss_the_room() {
    let stays = |nodes: &[&[&str]], count| {
        let mut world = packed(true, nodes);
        // Where a buffer's room is, is where the scheduler puts the next pod.
        world.spreads = true;
        world.buffer("b", count, "1");
        world.run(3600);
        let log = world.log();
        let moved = log.iter().filter(|line| line.starts_with("drain")).count();
        (moved, log.iter().filter(|line| line.contains("->")).count())
    };
    // Three cores and four are free beside it: five are enough for four and the one that moves.
    assert_eq!(stays(&[&["1"], &["3"], &[]], 4), (1, 0));
    assert_eq!(stays(&[&["1"], &["3"], &[]], 5), (0, 0));
    assert_eq!(stays(&[&["1"], &["3"], &[]], 8), (0, 0));
}

#[test]
fn a_node_that_stays_for_another_cause_has_room_for_buffers() {
    let mut world = packed(true, &[&["1"], &["500m"], &["2"]]);
    world.pods.get_mut("pod-0-0").unwrap().node_selector.insert("pool".into(), "gone".into());
    world.buffer("b", 1, "1");
    world.run(900);
    assert!(world.log()[0].starts_with("drain cpu-2"));
}

#[test]
fn pods_that_are_still_to_move_are_reckoned_with() {
    let mut world = packed(true, &[&["1"], &["1"], &[], &["3"]]);
    world.policy.scale_down.max_parallel_drains = 2;
    world.start();
    world.buffer("b", 4, "1");
    world.say("cpu-3", Says::Busy);
    world.run(300);
    world.say("cpu-2", Says::Busy);
    world.say("cpu-2", Says::Idle);
    world.responsive = false;
    world.run(900);
    let log = world.log();
    let drains: Vec<_> = log.iter().filter(|line| line.starts_with("drain")).collect();
    assert!(drains.len() == 1 && drains[0].starts_with("drain cpu-1"), "{log:?}");
    assert_eq!(world.stay("cpu-2"), Stay::Buffered { buffer: "ns/b".into() });
}

#[test]
fn a_buffer_of_what_no_pod_is_yet_makes_the_nodes_it_would_need() {
    let mut world = World::new(flow());
    let toleration = Toleration { key: Some(GPU_TAINT.into()), value: None, effect: None };
    let requests = resources(&[("cpu", "1"), ("pods", "1"), (GPU_TAINT, "1")]);
    world.insert_buffer("gpu", 2, Pod { requests, tolerations: vec![toleration], ..Pod::default() });
    world.run(1200);
    assert_eq!((world.desired("cpu"), world.desired("gpu")), (2, 2));
    assert_eq!(*world.room("gpu"), Room::There);
}

#[test]
fn a_status_is_told_when_it_changes_and_not_with_every_pod_of_a_burst() {
    let mut world = World::new(pools(&["cpu"]));
    world.buffer("b", 8, "500m");
    world.run(60);
    for number in 0..4 {
        let pod = format!("p{number}");
        world.pod(&pod, &[("cpu", "500m"), ("pods", "1")]);
        world.bind(&pod, "cpu-1");
        // The next node is long in coming.
        world.responsive = false;
        world.run(1);
    }
    world.run(60);
    world.launch();
    world.run(60);
    let told: Vec<_> = world.shown["b"].iter().map(|status| status.room.clone()).collect();
    let coming = |there| Room::Coming { there };
    assert_eq!(told, [coming(0), Room::There, coming(7), coming(4), Room::There]);
}

#[test]
fn what_is_wrong_with_a_buffer_is_told_and_others_go_on() {
    let mut world = World::new(pools(&["cpu"]));
    world.buffer("good", 1, "1");
    let wrong = Buffer { replicas: None, ..world.buffers["good"].clone() };
    let wrong = Buffer { name: "wrong".into(), uid: "wrong".into(), ..wrong };
    world.tell(Event::Buffer(Change::Applied(Box::new(wrong))));
    world.run(10);
    assert_eq!((world.room("good"), world.room("wrong")), (&Room::There, &Room::Unknown(Problem::NoCount)));
}

#[test]
fn buffers_are_written_down_with_the_fleet() {
    let mut world = World::new(pools(&["cpu"]));
    world.buffer("b", 3, "2");
    world.run(60);
    let text = serde_json::to_string(&world.fleet).unwrap();
    let again: Fleet = serde_json::from_str(&text).unwrap();
    world.fleet = again.with_policy(world.policy.clone());
    world.log();
    world.shown.clear();
    world.run(3600);
    assert_eq!((world.log(), world.shown.len(), world.desired("cpu")), (vec![], 0, 2));
}
