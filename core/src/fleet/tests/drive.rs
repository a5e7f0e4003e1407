//! A Ray cluster whose replicas the fleet sets: one head, and an operator that does what KubeRay's does. Each worker
//! does one task at a time.

use super::*;
use crate::ray::{
    Amounts, Answer, Cluster, Drained, Drive, GroupSpec, Launches, Launching, Node as RayNode, NodeState, Problem,
    RayCluster, Reading, Refusal, Scale, ScaleChange, ScaleStatus, WorkerGroup,
};

const NAME: &str = "ml/train";

/// The cluster as it is.
#[derive(Default)]
pub(super) struct Model {
    object: Option<RayCluster>,
    /// By pod, those that have joined: how long each task yet takes, and since when there is none.
    workers: BTreeMap<String, Work>,
    /// How often what runs in a pod has left and is started again, and when that is done.
    lives: BTreeMap<String, (u32, Instant)>,
    /// How long each task takes that waits.
    queue: Vec<u64>,
    made: u32,
    silent: bool,
    /// So many of the next changes of the RayCluster fail.
    unwritable: u32,
    shown: Vec<ScaleStatus>,
    told: Option<(u64, Launches)>,
    costs: BTreeMap<String, Option<i32>>,
}

#[derive(Clone, Copy)]
enum Work {
    Task(u64),
    Idle(Instant),
}

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

const DRIVE: Drive = Drive { queue_depth: 0, idle_timeout: Duration::from_secs(60), upscaling_speed: None };

fn world(drive: Option<Drive>) -> World {
    let workers = WorkerGroup {
        name: "cpu".into(),
        labels: worker_pod().labels,
        pod: worker_pod(),
        resources: amounts(1.0),
        min: 0,
        max: 10,
    };
    let report_launches = drive.is_some();
    let cluster = Cluster {
        address: "head:6379".into(),
        worker_groups: vec![workers],
        drive,
        report_launches,
        ..Cluster::default()
    };
    let mut policy = pools(&["cpu"]);
    policy.groups.get_mut("cpu").unwrap().max = 20;
    policy.ray = [(NAME.to_owned(), cluster)].into();
    let mut world = World::new(policy);
    let group = GroupSpec { name: "cpu".into(), min: 1, max: 8, hosts: 1, ..GroupSpec::default() };
    let object = RayCluster {
        uid: "train".into(),
        resource_version: "1".into(),
        groups: vec![GroupSpec { name: "other".into(), ..GroupSpec::default() }, group],
        ..RayCluster::default()
    };
    world.ray.object = Some(object);
    world
}

impl Model {
    fn spec(&mut self) -> &mut GroupSpec {
        &mut self.object.as_mut().unwrap().groups[1]
    }

    pub(super) fn check(&self, action: &Action) {
        let Action::ScaleRayCluster { groups, resource_version, .. } = action else { return };
        let object = self.object.as_ref().unwrap();
        for group in groups.iter().filter(|_| *resource_version == object.resource_version) {
            let spec = &object.groups[group.index];
            assert_eq!(spec.name, group.name);
            let least = spec.min.min(spec.replicas);
            assert!((least..=spec.max).contains(&group.to), "invariant_replicas_within_bounds: {action:?}");
            let named = group.delete.iter().filter(|pod| !spec.workers_to_delete.contains(*pod)).count() as u32;
            let fewer = spec.replicas.min(spec.max).saturating_sub(group.to);
            assert!(fewer <= named, "invariant_replicas_are_lowered_only_by_name: {action:?}");
        }
    }
}

impl World {
    pub(super) fn carry_out_in_ray(&mut self, action: Action) -> Event {
        match &action {
            Action::DrainRayNode { pod, because, .. } => {
                let answer = match self.ray.workers.get(pod) {
                    Some(Work::Task(_)) => Drained::Refused("The node to be idle terminated is no longer idle.".into()),
                    Some(Work::Idle(_)) | None => Drained::Accepted,
                };
                if answer == Drained::Accepted {
                    self.ray.workers.remove(pod);
                    let (lives, again) = self.ray.lives.entry(pod.clone()).or_insert((0, self.now));
                    (*lives, *again) = (*lives + 1, self.now + seconds(3));
                    self.log.push(format!("{pod} leaves Ray: {because}"));
                }
                return Event::RayNodeDrained { asked: action, answer };
            }
            Action::ScaleRayCluster { resource_version, groups, because, .. } => {
                let object = self.ray.object.as_mut().unwrap();
                if self.ray.unwritable > 0 {
                    self.ray.unwritable -= 1;
                    return Event::Failed { action, failure: Failure::Unavailable };
                }
                if *resource_version != object.resource_version {
                    return Event::Failed { action, failure: Failure::Conflict };
                }
                object.resource_version = (object.resource_version.parse::<u32>().unwrap() + 1).to_string();
                for group in groups {
                    let spec = &mut object.groups[group.index];
                    spec.replicas = group.to;
                    spec.workers_to_delete = group.delete.iter().cloned().collect();
                    let delete = group.delete.join(" ");
                    self.log.push(format!("{} -> {} [{delete}]: {because}", group.from, group.to));
                }
            }
            Action::ReportRay { version, launches, .. } => {
                let newer = self.ray.told.as_ref().is_none_or(|(last, _)| version > last);
                assert!(newer, "invariant_versions_rise: {action:?}");
                self.ray.told = Some((*version, launches.clone()));
            }
            Action::SetPodDeletionCost { pod, cost, .. } => _ = self.ray.costs.insert(pod.clone(), *cost),
            Action::ShowRayWorkerGroup { status, .. } => self.ray.shown.push(status.clone()),
            _ => unreachable!("{action:?}"),
        }
        Event::Done(action)
    }

    /// As KubeRay's operator: who is named goes first, whatever the replicas say; then the number is made true.
    fn operator(&mut self) {
        let Some(object) = &self.ray.object else { return };
        let spec = object.groups[1].clone();
        let ours = |world: &Self| -> Vec<String> {
            world.pods.values().filter(|pod| pod.namespace == "ml").map(|pod| pod.name.clone()).collect()
        };
        let there = ours(self);
        let mut going: Vec<_> = there.iter().filter(|pod| spec.workers_to_delete.contains(*pod)).cloned().collect();
        let stay = there.len() - going.len();
        let replicas = spec.replicas.min(spec.max) as usize;
        for _ in stay..replicas {
            let name = format!("w{}", self.ray.made);
            self.ray.made += 1;
            let pod =
                Pod { uid: name.clone(), name: name.clone(), unschedulable_since: Some(self.now), ..worker_pod() };
            self.pods.insert(name, pod);
        }
        let blindly = stay.saturating_sub(replicas);
        going.extend(there.iter().filter(|pod| !spec.workers_to_delete.contains(*pod)).take(blindly).cloned());
        for pod in going {
            let works = matches!(self.ray.workers.remove(&pod), Some(Work::Task(_)));
            assert!(!works, "invariant_no_worker_goes_that_works: {pod}");
            self.delete_pod(&pod);
        }
    }

    fn work(&mut self) {
        for pod in self.pods.values().filter(|pod| pod.namespace == "ml" && pod.node.is_some()) {
            // The operator is quick, else what is named would start again as well.
            let named = self.ray.object.as_ref().is_some_and(|it| it.groups[1].workers_to_delete.contains(&pod.name));
            let starts = self.ray.lives.get(&pod.name).is_some_and(|(_, again)| self.now < *again);
            if !named && !starts {
                self.ray.workers.entry(pod.name.clone()).or_insert(Work::Idle(self.now));
            }
        }
        for work in self.ray.workers.values_mut() {
            *work = match *work {
                Work::Task(left) if left > 1 => Work::Task(left - 1),
                Work::Task(_) => self.ray.queue.pop().map_or(Work::Idle(self.now), Work::Task),
                Work::Idle(since) => self.ray.queue.pop().map_or(Work::Idle(since), Work::Task),
            };
        }
    }

    fn tell_of_ray(&mut self) {
        let object = self.ray.object.clone().map(Box::new);
        self.tell(Event::RayCluster { name: NAME.into(), object });
        if self.ray.silent {
            let answer = Answer::Unreadable(Problem::Unreachable);
            return self.tell(Event::Ray { cluster: NAME.into(), answer });
        }
        let nodes = self.ray.workers.iter().map(|(pod, work)| {
            let (state, available) = match work {
                Work::Task(_) => (NodeState::Running, Amounts::default()),
                Work::Idle(since) => {
                    (NodeState::Idle { millis: self.now.since(*since).as_millis() as u64 }, amounts(1.0))
                }
            };
            let node = RayNode {
                ip: String::new(),
                instance: pod.clone(),
                group: "cpu".into(),
                state,
                total: amounts(1.0),
                available,
                activity: Vec::new(),
            };
            let life = self.ray.lives.get(pod).map_or(0, |(lives, _)| *lives);
            (format!("{life}-{pod}"), node)
        });
        let waiting = self.ray.queue.len() as u32;
        let pending = if waiting == 0 { BTreeMap::new() } else { [(amounts(1.0), waiting)].into() };
        let reading = Reading { nodes: nodes.collect(), pending, ..Reading::default() };
        self.tell(Event::Ray { cluster: NAME.into(), answer: Answer::Read(Box::new(reading)) });
    }

    fn drive(&mut self, seconds: u64) {
        for _ in 0..seconds {
            self.tell_of_ray();
            // What was told is old by the time something is done about it.
            self.work();
            self.run(1);
            self.operator();
        }
    }

    fn replicas(&mut self) -> u32 {
        self.ray.spec().replicas
    }

    fn ask_for(&mut self, name: &str, replicas: u32) {
        let scale = Scale {
            namespace: "ml".into(),
            name: name.into(),
            uid: name.into(),
            generation: 1,
            created: Instant::from_millis(u64::from(name.as_bytes()[0])),
            cluster: "train".into(),
            group: "cpu".into(),
            replicas,
        };
        self.tell(Event::RayWorkerGroup(ScaleChange::Applied(Box::new(scale))));
    }

    fn seen_anticipated(&self) -> u32 {
        self.fleet.view(self.now).ray[0].anticipated
    }

    fn ray_log(&mut self) -> Vec<String> {
        let log = self.log();
        log.into_iter().filter(|line| line.contains(" [") || line.contains("leaves Ray")).collect()
    }
}

#[test]
fn a_burst_raises_the_replicas_and_the_idle_go_by_name_after_their_head_agreed() {
    let mut world = world(Some(DRIVE));
    world.drive(3);
    assert_eq!(world.ray_log(), ["0 -> 1 []: fewer workers than the minimum of 1"]);
    world.drive(20);
    world.ray.queue = vec![30; 4];
    world.drive(8);
    assert_eq!(world.ray_log(), ["1 -> 2 []: 4 requests wait in Ray", "2 -> 4 []: 3 requests wait in Ray"]);
    world.drive(40);
    assert!(world.ray.queue.is_empty());
    assert_eq!(world.replicas(), 4, "all tasks are done, and nobody has been idle for a minute");
    world.drive(60);
    let log = world.ray_log();
    assert_eq!(world.replicas(), 1);
    assert_eq!(log.iter().filter(|line| line.contains("leaves Ray")).count(), 3, "{log:#?}");
    let (leaves, named) =
        (log.iter().position(|line| line.contains("leaves Ray")), log.iter().position(|l| l.contains(" [w")));
    assert!(leaves < named, "{log:#?}");
    world.drive(300);
    assert!(world.ray.spec().workers_to_delete.is_empty(), "the list is cleared when they are gone");
    let settled = world.ray_log();
    world.drive(300);
    assert_eq!(world.ray_log(), Vec::<String>::new(), "nothing is written twice after {settled:#?}");
}

#[test]
fn a_worker_that_agreed_to_go_and_came_back_before_it_was_named_works_like_any_other() {
    let mut world = world(Some(DRIVE));
    world.ray.queue = vec![5; 2];
    world.drive(20);
    assert_eq!(world.ray.workers.len(), 2);
    world.ray.unwritable = 4;
    world.drive(60);
    assert!(world.ray_log().iter().any(|line| line.contains("leaves Ray")));
    world.ray.queue = vec![60; 2];
    // The operator checks that nobody goes that works.
    world.drive(60);
    assert_eq!((world.replicas(), world.ray.unwritable), (2, 0));
    world.drive(90);
    assert_eq!(world.replicas(), 1);
}

#[test]
fn nothing_is_lowered_while_the_head_is_silent() {
    let mut world = world(Some(DRIVE));
    world.ray.queue = vec![5; 4];
    world.drive(30);
    assert_eq!(world.replicas(), 4);
    world.ray.silent = true;
    world.drive(900);
    assert_eq!(world.replicas(), 4);
    world.ray.silent = false;
    world.drive(70);
    assert_eq!(world.replicas(), 1);
}

#[test]
fn a_number_that_is_asked_for_is_kept_and_waits_for_those_that_work() {
    let mut world = world(None);
    world.ask_for("scale", 4);
    world.drive(20);
    assert_eq!((world.replicas(), world.ray.workers.len()), (4, 4));
    world.ray.queue = vec![50, 50];
    world.drive(3);
    world.ask_for("scale", 1);
    world.drive(10);
    assert_eq!(world.replicas(), 2, "two work");
    world.drive(60);
    assert_eq!(world.replicas(), 1);
    world.ask_for("scale", 100);
    world.drive(2);
    assert_eq!(world.replicas(), 8, "the RayCluster's own maximum");
    world.ray.queue = vec![50; 30];
    world.drive(30);
    assert_eq!((world.desired("cpu"), world.seen_anticipated()), (8, 0), "no node for workers that may not be");
    let last = world.ray.shown.last().unwrap();
    assert_eq!((last.selector.as_str(), last.refusal), ("ray.io/group=cpu", None));
}

#[test]
fn one_writes_and_whoever_may_not_is_told_why() {
    let refusal = |world: &mut World| {
        world.drive(3);
        world.ray.shown.last().unwrap().refusal
    };
    let mut world = world(None);
    world.ask_for("b", 3);
    assert_eq!(refusal(&mut world), None);
    world.ask_for("a", 5);
    world.drive(3);
    assert_eq!(world.replicas(), 5, "the older counts");
    assert_eq!(world.ray.shown.last().unwrap().refusal, Some(Refusal::OtherWriter));
    world.tell(Event::RayWorkerGroup(ScaleChange::Deleted { namespace: "ml".into(), name: "a".into() }));
    assert_eq!(refusal(&mut world), None);

    world.ray.object.as_mut().unwrap().in_tree_autoscaling = true;
    assert_eq!(refusal(&mut world), Some(Refusal::InTreeAutoscaling));
    world.ask_for("b", 8);
    world.drive(3);
    assert_eq!(world.replicas(), 3, "it was the one that is left, and may not any more");
    world.ray.object.as_mut().unwrap().in_tree_autoscaling = false;
    world.ray.spec().hosts = 2;
    assert_eq!(refusal(&mut world), Some(Refusal::MultiHost));
    world.ray.object = None;
    assert_eq!(refusal(&mut world), Some(Refusal::NoCluster));

    let mut driven = self::world(Some(DRIVE));
    driven.ask_for("b", 3);
    assert_eq!(refusal(&mut driven), Some(Refusal::OtherWriter));
    assert_eq!(driven.replicas(), 1);
}

#[test]
fn a_head_is_told_what_is_on_its_way_and_when_nothing_is_any_more() {
    let mut world = world(Some(DRIVE));
    world.responsive = false;
    world.ray.queue = vec![30; 2];
    world.drive(6);
    let (_, told) = world.ray.told.clone().unwrap();
    let waits = |pod: &str| Launching { pod: pod.into(), group: "cpu".into(), placed: false };
    assert_eq!(told, Launches { asked_for: vec![], pods: vec![waits("w0"), waits("w1")] });
    world.responsive = true;
    world.drive(30);
    assert_eq!(world.ray.told.as_ref().unwrap().1, Launches::default());
    world.ray.object.as_mut().unwrap().in_tree_autoscaling = true;
    world.ray.queue = vec![30; 9];
    world.drive(5);
    assert_eq!(world.ray.told.as_ref().unwrap().1, Launches::default(), "its own autoscaler tells");
}

#[test]
fn those_that_have_been_idle_longest_are_the_cheapest_and_those_that_work_cost_most() {
    let mut policy = world(None).policy;
    policy.ray.get_mut(NAME).unwrap().pod_deletion_cost = true;
    let mut world = World { ray: world(None).ray, ..World::new(policy) };
    world.ask_for("scale", 3);
    world.drive(20);
    world.ray.queue = vec![40, 10];
    world.drive(2);
    let costs = |world: &World| world.ray.costs.values().copied().collect::<Vec<_>>();
    let [None, None, Some(idle)] = costs(&world)[..] else { panic!("{:?}", world.ray.costs) };
    world.drive(20);
    let [.., Some(same)] = costs(&world)[..] else { panic!("{:?}", world.ray.costs) };
    assert_eq!(same, idle, "it is not written each time");
    let mut between: Vec<_> = costs(&world).into_iter().map(|cost| cost.unwrap_or(0)).collect();
    between.sort_unstable();
    assert!(between[0] == idle && idle < between[1] && between[1] < between[2], "{between:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// With calls that fail and replies that are lost, and coordinators that start anew.
    #[test]
    fn no_worker_goes_that_works_and_all_comes_to_rest(
        steps in prop::collection::vec((0..12_u8, 1..40_u64), 5..30),
        by_number: bool,
    ) {
        let mut world = world((!by_number).then_some(DRIVE));
        for (what, amount) in steps {
            match what {
                0..=3 => world.ray.queue.extend(vec![amount; 1 + amount as usize % 4]),
                4 => world.failing.extend(vec![
                    if amount % 2 == 0 { Failure::Conflict } else { Failure::Unavailable };
                    amount as usize % 5
                ]),
                5 => world.replies_lost += 1,
                6 => world.ray.silent = !world.ray.silent,
                7 => world.start(),
                8 if by_number => world.ask_for("scale", amount as u32 % 9),
                // Above the maximum, too.
                9 => world.ray.spec().replicas = amount as u32 % 12,
                _ => {}
            }
            if what == 9 {
                // Another's hand, which lowers blindly only here: as if nobody worked.
                world.ray.workers.values_mut().for_each(|work| *work = Work::Idle(world.now));
                world.operator();
            }
            world.drive(amount);
        }
        world.ray.silent = false;
        world.failing.clear();
        world.replies_lost = 0;
        if by_number {
            world.ask_for("scale", 2);
        }
        world.drive(900);
        prop_assert_eq!(world.replicas(), if by_number { 2 } else { 1 });
        prop_assert_eq!(world.ray.workers.len(), world.replicas() as usize);
        let told = world.ray.told.map(|(_, told)| told);
        prop_assert_eq!(told, (!by_number).then(Launches::default), "the head's last word is stale");
        let shown = world.ray.shown.last().map(|status| status.replicas);
        prop_assert_eq!(shown, by_number.then_some(2), "the object's last word is stale");
    }
}
