//! Ray clusters in the world: one head, whose workers are pods of three cores, a node each.

use super::*;
use crate::ray::{
    Amounts, Answer, Cluster, GroupSpec, Node as RayNode, NodeState, Problem, RayCluster, Reading, Template,
    WorkerGroup,
};

const NAME: &str = "ml/train";

fn amounts(cpu: f64) -> Amounts {
    let mut amounts = Amounts::default();
    assert!(amounts.set("CPU", cpu));
    amounts
}

fn worker_pod() -> Pod {
    Pod {
        namespace: "ml".into(),
        labels: [("ray.io/group".to_owned(), "cpu".to_owned())].into(),
        requests: resources(&[("cpu", "3"), ("pods", "1")]),
        ..Pod::default()
    }
}

fn world(nodes: u32) -> World {
    let workers = WorkerGroup {
        name: "cpu".into(),
        labels: worker_pod().labels,
        pod: worker_pod(),
        resources: amounts(3.0),
        min: 0,
        max: 10,
    };
    with_cluster(nodes, Cluster { address: "head:6379".into(), worker_groups: vec![workers], ..Cluster::default() })
}

fn with_cluster(nodes: u32, cluster: Cluster) -> World {
    let mut policy = pools(&["cpu"]);
    policy.groups.get_mut("cpu").unwrap().max = nodes;
    policy.ray = [(NAME.to_owned(), cluster)].into();
    World::new(policy)
}

impl World {
    /// The head tells of so many waiting tasks of a core each, and of these workers, which are all busy.
    fn ray_tells(&mut self, tasks: u32, joined: &[&str]) {
        let node = |name: &&str| {
            let node = RayNode {
                ip: String::new(),
                instance: (*name).to_owned(),
                group: "cpu".into(),
                state: NodeState::Running,
                total: amounts(3.0),
                available: Amounts::default(),
                activity: Vec::new(),
            };
            ((*name).to_owned(), node)
        };
        let pending = if tasks == 0 { BTreeMap::new() } else { [(amounts(1.0), tasks)].into() };
        let reading = Reading { nodes: joined.iter().map(node).collect(), pending, ..Reading::default() };
        self.tell(Event::Ray { cluster: NAME.into(), answer: Answer::Read(Box::new(reading)) });
    }

    fn ray_fails(&mut self, problem: Problem) {
        self.tell(Event::Ray { cluster: NAME.into(), answer: Answer::Unreadable(problem) });
    }

    /// Ray makes a worker pod, which waits.
    fn worker(&mut self, name: &str) {
        let pod = Pod { uid: name.into(), name: name.into(), unschedulable_since: Some(self.now), ..worker_pod() };
        self.pods.insert(name.into(), pod);
    }

    fn seen(&self) -> crate::view::RayCluster {
        self.fleet.view(self.now).ray.remove(0)
    }
}

#[test]
fn nodes_are_asked_for_before_any_pod_waits_and_their_number_once_it_is_known() {
    let mut world = world(8);
    world.ray_tells(10, &[]);
    world.run(1);
    assert_eq!(world.log(), ["cpu 0 -> 1: work in Ray waits for a worker of ml/train cpu"]);
    world.ray_tells(19, &[]);
    assert_eq!(world.desired("cpu"), 1, "a second has passed, and the rest may still come");
    world.run(1);
    assert_eq!(world.log(), ["cpu 1 -> 7: work in Ray waits for 6 workers, first of ml/train cpu"]);
    assert_eq!((world.seen().waiting, world.seen().anticipated), (Some(19), 7));
    // Those that are known to need no more time need none.
    world.ray_tells(24, &[]);
    world.run(1);
    assert_eq!(world.log(), ["cpu 7 -> 8: work in Ray waits for a worker of ml/train cpu"]);
}

#[test]
fn pods_that_appear_one_by_one_are_not_counted_twice() {
    let mut world = world(8);
    world.responsive = false;
    world.ray_tells(12, &[]);
    world.run(3);
    world.log();
    assert_eq!(world.desired("cpu"), 4);
    for name in ["a", "b", "c", "d"] {
        world.worker(name);
        world.ray_tells(12, &[]);
        world.run(3);
        assert_eq!(world.desired("cpu"), 4, "{name}");
    }
    // Others that wait besides do so as ever, and do not take the workers' nodes for theirs.
    world.worker("e");
    world.ray_tells(15, &[]);
    world.run(2);
    assert_eq!(world.desired("cpu"), 5, "a worker's pod is not waited for again");
    world.responsive = true;
    world.run(5);
    assert!(world.pods.values().all(|pod| pod.node.is_some()));
    // They join, one after the other, and take three tasks each.
    let names = ["a", "b", "c", "d", "e"];
    for joined in 1..=5 {
        world.ray_tells(15 - 3 * joined as u32, &names[..joined]);
        world.run(2);
    }
    assert_eq!((world.desired("cpu"), world.seen().anticipated), (5, 0));
}

#[test]
fn what_is_done_asks_for_nothing_more_and_its_nodes_go_as_any_others() {
    let mut world = world(8);
    world.ray_tells(9, &[]);
    world.run(3);
    assert_eq!(world.desired("cpu"), 3);
    world.log();
    world.ray_tells(0, &[]);
    world.run(500);
    assert_eq!((world.desired("cpu"), world.log()), (3, vec![]));
    world.run(300);
    assert_eq!(world.desired("cpu"), 0);
}

#[test]
fn a_head_that_tells_nothing_keeps_what_was_asked_for_a_while_and_asks_for_nothing_new() {
    let mut world = world(8);
    world.ray_tells(9, &[]);
    world.run(3);
    world.log();
    world.ray_fails(Problem::Unreachable);
    assert!(!world.seen().readable);
    world.run(290);
    assert_eq!((world.seen().anticipated, world.seen().problem), (3, Some(Problem::Unreachable)));
    world.run(10);
    assert_eq!((world.seen().anticipated, world.seen().waiting), (0, Some(9)));
    assert_eq!((world.desired("cpu"), world.log()), (3, vec![]), "the nodes are there all the same");
    // After a restart its first reading is news again.
    world.ray_tells(30, &[]);
    assert!(world.seen().readable);
    world.run(1);
    assert_eq!(world.desired("cpu"), 3, "one worker has room");
    world.run(1);
    assert_eq!(world.desired("cpu"), 8);
}

#[test]
fn nodes_that_nobody_came_to_go_in_the_end_though_the_head_stays_silent() {
    let mut world = world(8);
    world.ray_tells(9, &[]);
    world.run(3);
    world.ray_fails(Problem::Late);
    world.worker("a");
    world.run(590);
    assert_eq!(world.desired("cpu"), 3, "as any node that is idle and empty they have ten minutes");
    world.run(60);
    let left: Vec<_> = world.nodes.keys().filter(|node| world.held(node)).cloned().collect();
    assert_eq!((world.desired("cpu"), left.len()), (1, 1), "the worker's node stays");
}

#[test]
fn a_node_that_a_worker_is_to_come_to_stays() {
    let mut world = world(2);
    world.ray_tells(6, &[]);
    for _ in 0..80 {
        world.run(10);
        world.ray_tells(6, &[]);
    }
    let stays: Vec<_> = world.fleet.view(world.now).nodes.into_iter().map(|node| node.stays.unwrap()).collect();
    let anticipated = Stay::Anticipated { cluster: NAME.into(), group: "cpu".into() };
    assert_eq!((world.desired("cpu"), stays), (2, vec![anticipated.clone(), anticipated]));
}

#[test]
fn who_is_not_configured_is_not_heard_and_a_fleet_that_knows_ray_can_be_written_down() {
    let mut world = world(8);
    let reading = Reading { pending: [(amounts(1.0), 5)].into(), ..Reading::default() };
    let event = Event::Ray { cluster: "ml/other".into(), answer: Answer::Read(Box::new(reading)) };
    world.tell(event);
    world.run(3);
    assert_eq!(world.desired("cpu"), 0);
    world.ray_tells(9, &["a"]);
    world.run(3);
    let text = serde_json::to_string(&world.fleet).unwrap();
    let read: Fleet = serde_json::from_str(&text).unwrap();
    let read = read.with_policy(world.policy.clone());
    assert_eq!(read.view(world.now), world.fleet.view(world.now));
    let event = Event::Ray { cluster: NAME.into(), answer: Answer::Unreadable(Problem::Late) };
    assert_eq!(serde_json::from_str::<Event>(&serde_json::to_string(&event).unwrap()).unwrap(), event);
}

#[test]
fn worker_groups_may_be_those_of_the_ray_cluster() {
    let mut world = with_cluster(8, Cluster { address: "head:6379".into(), learns_groups: true, ..Cluster::default() });
    world.ray_tells(9, &[]);
    world.run(3);
    assert_eq!((world.desired("cpu"), world.seen().without_object), (0, true), "nobody says what a worker is");
    let template = Template { pod: Pod { labels: BTreeMap::new(), ..worker_pod() }, resources: amounts(3.0) };
    let group = GroupSpec { name: "cpu".into(), max: 1, hosts: 2, template: Some(template), ..GroupSpec::default() };
    let unreadable = GroupSpec { name: "other".into(), max: 9, hosts: 1, ..GroupSpec::default() };
    let mut object = RayCluster { groups: vec![unreadable, group], suspended: true, ..RayCluster::default() };
    let tell = |world: &mut World, object: Option<&RayCluster>| {
        world.tell(Event::RayCluster { name: NAME.into(), object: object.map(|object| Box::new(object.clone())) });
        world.ray_tells(9, &[]);
        world.run(3);
    };
    tell(&mut world, Some(&object));
    assert_eq!((world.desired("cpu"), world.seen().without_object), (0, false), "it is suspended");
    object.suspended = false;
    tell(&mut world, Some(&object));
    assert_eq!(world.desired("cpu"), 2, "one replica at most, of two hosts");

    // Its pods are known by KubeRay's labels, whatever their template says by now.
    let labels = [("ray.io/cluster", "train"), ("ray.io/group", "cpu"), ("team", "a")];
    let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    world.worker("w0");
    world.pods.get_mut("w0").unwrap().labels = labels;
    assert!(world.fleet.is_ray_worker(&world.pods["w0"]));
    object.groups[1].template.as_mut().unwrap().pod.labels = [("team".to_owned(), "b".to_owned())].into();
    tell(&mut world, Some(&object));
    assert_eq!((world.desired("cpu"), world.seen().anticipated), (2, 1));

    let text = serde_json::to_string(&world.fleet).unwrap();
    let read: Fleet = serde_json::from_str(&text).unwrap();
    assert_eq!(read.with_policy(world.policy.clone()).view(world.now), world.fleet.view(world.now));
    tell(&mut world, None);
    assert_eq!((world.seen().anticipated, world.seen().without_object), (0, true));
}

#[test]
fn what_waits_is_told_for_as_long_as_the_heads_last_word_counts() {
    let mut world = world(1);
    let waiting = |world: &World| world.fleet.ray_waiting(world.now).get(NAME).copied();
    assert_eq!(waiting(&world), None);
    world.ray_tells(19, &[]);
    let told = world.now;
    world.ray_fails(Problem::Late);
    assert_eq!(waiting(&world), Some((told, 19)));
    while world.now < told + Duration::from_secs(299) {
        world.run(1);
    }
    assert_eq!(waiting(&world), Some((told, 19)));
    world.run(1);
    assert_eq!(waiting(&world), None, "unknown is not empty");
}
