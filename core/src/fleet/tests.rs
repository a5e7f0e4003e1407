//! A world of groups, nodes and pods around a fleet: what it asks for is done, late or not at all.

mod buffers;
mod drive;
mod ray;
mod ray_workers;

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::buffer::{self, Buffer};
use crate::classify::{Class, GpuUse, Missing, Signal, Utilization};
use crate::cron::Window;
use crate::disruption::{self, PodDisruptionBudget};
use crate::intent::{Permits, Phase, Progress, Trigger};
use crate::kubernetes::{Controller, Operator, Pod, Requirement, Taint, TaintEffect, Toleration};
use crate::launch::LaunchFailure;
use crate::policy::{self, Amount, Budget, Disruption};
use crate::reason::Stay;
use crate::resources::Resources;
use crate::storage;

const GPU_TAINT: &str = "nvidia.com/gpu";

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn resources(texts: &[(&str, &str)]) -> Resources {
    Resources::from_texts(texts.iter().copied()).unwrap()
}

fn group(min: u32, max: u32, allocatable: Resources) -> policy::Group {
    policy::Group {
        min,
        max,
        instance_type: "any".into(),
        labels: BTreeMap::new(),
        taints: Vec::new(),
        allocatable,
        unneeded_for: seconds(600),
        ..policy::Group::default()
    }
}

/// The flow's two groups: two to five nodes of four cores, none to three with a GPU.
fn flow() -> Policy {
    let taint = Taint { key: GPU_TAINT.into(), value: "true".into(), effect: TaintEffect::NoSchedule };
    let gpu = policy::Group {
        taints: vec![taint],
        unneeded_for: seconds(300),
        ..group(0, 3, resources(&[("cpu", "4"), ("pods", "20"), (GPU_TAINT, "1")]))
    };
    let cpu = group(2, 5, resources(&[("cpu", "4"), ("pods", "20")]));
    Policy { groups: BTreeMap::from([("cpu".into(), cpu), ("gpu".into(), gpu)]), ..Policy::default() }
}

/// What an agent says of its node.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Says {
    Busy,
    Idle,
    Nothing,
    /// Idle, but for pods that have just come.
    Starting,
    Unknown,
}

struct World {
    now: Instant,
    policy: Policy,
    fleet: Fleet,
    asgs: BTreeMap<String, GroupState>,
    nodes: BTreeMap<String, Node>,
    pods: BTreeMap<String, Pod>,
    buffers: BTreeMap<String, Buffer>,
    /// What each buffer's status has said, the latest last.
    shown: BTreeMap<String, Vec<buffer::Status>>,
    says: BTreeMap<String, Says>,
    /// Since when each node's agent says the same.
    said_since: BTreeMap<String, Instant>,
    sequence: u64,
    instances: u32,
    /// Whether a node comes and goes as soon as its instance does, and agents drain at once.
    responsive: bool,
    /// Whether the scheduler takes the emptiest node for a pod, else the first that it fits.
    spreads: bool,
    /// The next calls fail like this.
    failing: Vec<Failure>,
    /// Groups whose instances AWS has no capacity for, and zones.
    exhausted: BTreeSet<String>,
    /// Instances on their way to become nodes, with their groups.
    joining: Vec<(String, Instance)>,
    /// Of each launch that was asked for.
    tokens: Vec<String>,
    /// How many of the next calls take effect, but their reply is lost.
    replies_lost: u32,
    ray: drive::Model,
    log: Vec<String>,
}

impl World {
    /// At the groups' minimum, with every agent saying `idle`, and the first decisions made.
    fn new(policy: Policy) -> Self {
        let asgs = policy.groups.iter().map(|(name, group)| {
            let launches = policy.scale_up.launch == policy::Launch::LaunchInstances;
            let zones = if launches { vec!["z1".into(), "z2".into()] } else { vec![] };
            let state = GroupState { name: name.clone(), max: 100, desired: group.min, zones, ..GroupState::default() };
            (name.clone(), state)
        });
        let mut world = Self {
            now: Instant::from_millis(1_000_000_000),
            fleet: Fleet::new(policy.clone()),
            asgs: asgs.collect(),
            policy,
            nodes: BTreeMap::new(),
            pods: BTreeMap::new(),
            buffers: BTreeMap::new(),
            shown: BTreeMap::new(),
            says: BTreeMap::new(),
            said_since: BTreeMap::new(),
            sequence: 0,
            instances: 0,
            responsive: true,
            spreads: false,
            failing: Vec::new(),
            exhausted: BTreeSet::new(),
            joining: Vec::new(),
            tokens: Vec::new(),
            replies_lost: 0,
            ray: drive::Model::default(),
            log: Vec::new(),
        };
        world.launch();
        world.start();
        world.log.clear();
        world
    }

    /// A coordinator that knows nothing takes over.
    fn start(&mut self) {
        self.fleet = Fleet::new(self.policy.clone());
        self.tell(Event::Leading(true));
        for node in self.nodes.clone().into_values() {
            self.tell(Event::NodeApplied(node));
        }
        for pod in self.pods.clone().into_values() {
            self.tell(Event::PodApplied(pod));
        }
        for buffer in self.buffers.clone().into_values() {
            self.tell(Event::Buffer(buffer::Change::Applied(Box::new(buffer))));
        }
        self.tell(Event::Synced(true));
    }

    fn tell(&mut self, event: Event) {
        let mut events = std::collections::VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            for action in self.fleet.handle(self.now, event) {
                self.check(&action);
                events.push_back(self.perform(action));
            }
        }
    }

    /// What must hold of every action, whatever happened before.
    fn check(&self, action: &Action) {
        match action {
            Action::Launch { group, from, to, .. } | Action::SetDesired { group, from, to, .. } => {
                let (asg, policy) = (&self.asgs[group], &self.policy.groups[group]);
                assert!(*to <= policy.max.min(asg.max), "invariant_desired_within_bounds: {action:?}");
                assert!(to > from, "invariant_capacity_is_never_lowered_by_setting_it: {action:?}");
            }
            // Another's drain, that would be anyway.
            Action::Drain { intent, .. } if intent.by != Trigger::Coordinator => {}
            Action::CompleteLifecycle { node, because: Reason::Drained { .. }, .. } => {
                assert!(!self.held(node), "invariant_no_hook_is_let_go_while_there_is_work: {action:?}");
            }
            Action::Drain { node, intent, because, .. } => {
                // The last word of an agent that fell silent holds until the report timeout.
                let silent = self.now.since(self.said_since[node]);
                let idle = match self.says[node] {
                    Says::Idle => true,
                    Says::Nothing => silent < self.policy.scale_down.report_timeout,
                    Says::Starting => !intent.evict,
                    Says::Busy | Says::Unknown => false,
                };
                assert!(idle, "invariant_no_busy_or_unknown_node_is_drained: {action:?}");
                let runs_out = matches!(because, Reason::RunToCompletion { .. });
                assert_eq!(
                    runs_out, !intent.evict,
                    "invariant_no_pod_is_evicted_that_is_to_run_to_its_end: {action:?}"
                );
                if runs_out {
                    let on = |pod: &&Pod| pod.node.as_ref() == Some(node) && pod.holds_node();
                    let endless = self.pods.values().filter(on).any(|pod| !pod.completes);
                    assert!(!endless, "invariant_no_node_waits_for_a_pod_that_never_ends: {action:?}");
                } else if self.policy.scale_down.consolidate {
                    let pinned = self.pods.values().any(|pod| pod.node.as_ref() == Some(node) && pod.pin.is_some());
                    assert!(!pinned, "invariant_no_node_with_pinned_pods_is_drained: {action:?}");
                } else {
                    assert!(!self.held(node), "invariant_no_node_with_work_is_drained: {action:?}");
                }
                self.check_drains(action, node);
            }
            Action::Terminate { group, instance, node, .. } => {
                let node = &self.nodes[node];
                assert!(node.drained && node.unschedulable, "invariant_shrink_only_after_drain: {action:?}");
                assert_eq!(node.instance.as_ref(), Some(instance));
                assert!(self.has_instance(node), "invariant_no_instance_is_terminated_twice: {action:?}");
                assert!(!self.held(&node.name), "invariant_no_instance_with_work_is_terminated: {action:?}");
                let min = self.policy.groups[group].min;
                assert!(self.asgs[group].desired > min, "invariant_never_below_minimum: {action:?}");
            }
            Action::CancelDrain { .. }
            | Action::CompleteLifecycle { .. }
            | Action::DeletePod { .. }
            | Action::Describe { .. }
            | Action::Explain { .. }
            | Action::Heartbeat { .. }
            | Action::ReportRay { .. }
            | Action::SetPodDeletionCost { .. }
            | Action::ShowBuffer { .. }
            | Action::ShowRayWorkerGroup { .. } => {}
            Action::DrainRayNode { .. } | Action::ScaleRayCluster { .. } => self.ray.check(action),
        }
    }

    /// How many others may drain while this node does.
    fn check_drains(&self, action: &Action, node: &str) {
        // The node itself may have an intent: the reply to an earlier request was lost, and this one will be refused.
        // One past its deadline is over, even if its object is still there.
        let ours = |intent: &Intent| intent.by == Trigger::Coordinator && self.now < intent.deadline;
        let drains = |other: &&Node| other.name != node && other.intent.as_ref().is_some_and(ours);
        let draining: Vec<_> = self.nodes.values().filter(drains).collect();
        let why = match action.because() {
            Some(Reason::Unneeded { .. }) => Disruption::Empty,
            Some(Reason::RunToCompletion { .. }) => Disruption::Completed,
            _ => Disruption::Consolidated,
        };
        let evicts = |node: &Node| node.intent.as_ref().is_some_and(|intent| intent.evict);
        let alike = draining.iter().filter(|other| evicts(other) == (why != Disruption::Completed)).count();
        let most = self.policy.scale_down.max_parallel_drains as usize;
        assert!(alike < most, "invariant_no_more_drains_than_allowed: {action:?}");
        let view = self.fleet.view(self.now);
        let group_of =
            |name: &str| view.nodes.iter().find(|node| node.name == name).and_then(|node| node.group.clone());
        let group = group_of(node).expect("only nodes of groups are drained");
        let budgets = self.policy.scale_down.budgets.iter().map(|budget| (budget, None));
        let of_group = self.policy.groups[&group].budgets.iter().map(|budget| (budget, Some(&group)));
        for (budget, only) in budgets.chain(of_group) {
            let within = |of: &Option<String>| of.is_some() && (only.is_none() || of.as_ref() == only);
            let nodes = view.nodes.iter().filter(|node| within(&node.group)).count();
            let draining = draining.iter().filter(|other| only.is_none() || within(&group_of(&other.name)));
            let draining = draining.filter(|other| budget.counts(evicts(other))).count();
            let holds = budget.window.as_ref().is_none_or(|window| window.look(self.now).0);
            let about = budget.is_about(why);
            let most = budget.nodes.of(nodes as u32) as usize;
            assert!(!holds || !about || draining < most, "invariant_no_more_drains_than_{budget}_allows: {action:?}");
        }
    }

    fn held(&self, node: &str) -> bool {
        self.pods.values().any(|pod| pod.node.as_deref() == Some(node) && pod.holds_node())
    }

    fn perform(&mut self, action: Action) -> Event {
        if !action.targets().is_empty() && self.replies_lost > 0 {
            self.replies_lost -= 1;
            self.carry_out(action.clone());
            return Event::Failed { action, failure: Failure::Unavailable };
        }
        self.carry_out(action)
    }

    fn carry_out(&mut self, action: Action) -> Event {
        if let Action::Launch { token, .. } = &action {
            self.tokens.push(token.clone());
        }
        if !action.targets().is_empty()
            && let Some(failure) = self.failing.pop()
        {
            self.log.push(format!("failed {failure:?}"));
            return Event::Failed { action, failure };
        }
        match &action {
            Action::Describe { groups, .. } => {
                let groups = groups.iter().filter_map(|name| self.asgs.get(name).cloned()).collect();
                return Event::Groups { asked: action, groups };
            }
            Action::Launch { group, from, .. } | Action::SetDesired { group, from, .. }
                if self.asgs[group].desired != *from =>
            {
                return Event::Failed { action, failure: Failure::Conflict };
            }
            Action::Launch { group, zone, from, to, because, .. } => {
                self.log.push(format!("{group} in {zone} {from} -> {to}: {because}"));
                if self.exhausted.contains(zone) {
                    let failures = vec![format!("InsufficientInstanceCapacity: none in {zone}")];
                    return Event::Launched { asked: action, instances: vec![], failures };
                }
                let (group, zone) = (group.clone(), zone.clone());
                let instances = (*from..*to).map(|_| self.instance(&group, Some(&zone))).collect();
                self.asgs.get_mut(&group).unwrap().desired = *to;
                return Event::Launched { asked: action, instances, failures: vec![] };
            }
            Action::SetDesired { group, from, to, because } => {
                self.log.push(format!("{group} {from} -> {to}: {because}"));
                self.asgs.get_mut(group).unwrap().desired = *to;
            }
            Action::Terminate { group, instance, node, because } => {
                self.log.push(format!("terminate {node}: {because}"));
                let asg = self.asgs.get_mut(group).unwrap();
                asg.desired -= 1;
                asg.instances.retain(|i| i.id != *instance);
            }
            Action::Drain { node, intent, .. }
                if self.nodes[node].intent.as_ref().is_some_and(|standing| standing.id != intent.id) =>
            {
                return Event::Failed { action, failure: Failure::Conflict };
            }
            Action::Drain { node, intent, because, .. } => {
                self.log.push(format!("drain {node}: {because}"));
                self.nodes.get_mut(node).unwrap().intent = Some(intent.clone());
            }
            Action::CancelDrain { node, because, .. } => {
                self.log.push(format!("cancel {node}: {because}"));
                self.nodes.get_mut(node).unwrap().intent = None;
            }
            Action::Heartbeat { instance, .. } => self.log.push(format!("heartbeat {instance}")),
            Action::CompleteLifecycle { node, instance, because, .. } => {
                self.log.push(format!("complete {node}: {because}"));
                for asg in self.asgs.values_mut() {
                    asg.instances.retain(|it| it.id != *instance);
                }
            }
            Action::DeletePod { pod, because, .. } => self.log.push(format!("delete {pod}: {because}")),
            Action::Explain { pod, because, .. } => self.log.push(format!("{pod}: {because}")),
            Action::ShowBuffer { name, status, .. } => {
                self.shown.entry(name.clone()).or_default().push(status.clone());
            }
            Action::DrainRayNode { .. }
            | Action::ReportRay { .. }
            | Action::ScaleRayCluster { .. }
            | Action::SetPodDeletionCost { .. }
            | Action::ShowRayWorkerGroup { .. } => {
                return self.carry_out_in_ray(action);
            }
        }
        Event::Done(action)
    }

    /// A new instance, whose node comes later.
    fn instance(&mut self, group: &str, zone: Option<&str>) -> String {
        self.instances += 1;
        let instance =
            Instance { id: format!("i-{}", self.instances), live: true, waits: false, zone: zone.map(str::to_owned) };
        self.asgs.get_mut(group).unwrap().instances.push(instance.clone());
        self.joining.push((group.to_owned(), instance.clone()));
        instance.id
    }

    /// The Auto Scaling service and the kubelets do their part.
    fn launch(&mut self) {
        let mut missing = Vec::new();
        for (name, asg) in &mut self.asgs {
            let short = (asg.instances.len() as u32) < asg.desired;
            if self.exhausted.contains(name) && short {
                let message = "We currently do not have sufficient capacity in us-east-1a.".to_owned();
                asg.failures = vec![LaunchFailure { at: self.now, message }];
                continue;
            }
            let count = (asg.desired as usize).saturating_sub(asg.instances.len());
            missing.extend(std::iter::repeat_n((name.clone(), asg.zones.first().cloned()), count));
        }
        for (group, zone) in missing {
            self.instance(&group, zone.as_deref());
        }
        for (group, instance) in std::mem::take(&mut self.joining) {
            if !self.asgs[&group].instances.contains(&instance) {
                continue;
            }
            let number = instance.id.trim_start_matches("i-").to_owned();
            let policy = &self.policy.groups[&group];
            let zone = instance.zone.map(|zone| (storage::ZONE_LABELS[0].to_owned(), zone));
            let node = Node {
                name: format!("{group}-{number}"),
                uid: format!("uid-{number}"),
                instance: Some(instance.id),
                labels: zone.into_iter().collect(),
                taints: policy.taints.clone(),
                ready: true,
                allocatable: policy.allocatable.clone(),
                ..Node::default()
            };
            self.says.insert(node.name.clone(), Says::Idle);
            self.said_since.insert(node.name.clone(), self.now);
            self.nodes.insert(node.name.clone(), node);
        }
    }

    /// One second of everybody else: instances, agents, scheduler.
    fn second(&mut self) {
        self.now = self.now + seconds(1);
        // What is due at this very moment is decided before anybody else acts.
        self.tell(Event::Tick);
        if self.responsive {
            self.launch();
        }
        let gone = |node: &&Node| self.responsive && !self.has_instance(node);
        let gone: Vec<_> = self.nodes.values().filter(gone).cloned().collect();
        for node in gone {
            self.nodes.remove(&node.name);
            self.pods.retain(|_, pod| pod.node.as_ref() != Some(&node.name) || pod.controller == Controller::Workload);
            self.tell(Event::NodeDeleted { name: node.name, uid: node.uid });
        }
        let mut evicting = Vec::new();
        let held: BTreeSet<_> = self.nodes.keys().filter(|name| self.held(name)).cloned().collect();
        for node in self.nodes.values_mut().filter(|_| self.responsive) {
            let evict = node.intent.as_ref().is_none_or(|intent| intent.evict);
            if evict || node.progress.is_none() || !held.contains(&node.name) {
                agent(node);
            }
            if evict && node.intent.is_some() && node.progress.is_some() {
                evicting.push(node.name.clone());
            }
        }
        self.evict(&evicting);
        self.schedule();
        for node in self.nodes.clone().into_values() {
            self.tell(Event::NodeApplied(node));
        }
        for pod in self.pods.clone().into_values() {
            self.tell(Event::PodApplied(pod));
        }
        if self.now.as_millis().is_multiple_of(10_000) {
            self.report();
        }
    }

    /// What is evicted is made anew by its controller, and waits.
    fn evict(&mut self, nodes: &[String]) {
        let evicted = |pod: &&Pod| pod.holds_node() && pod.node.as_ref().is_some_and(|node| nodes.contains(node));
        let evicted: Vec<_> = self.pods.values().filter(evicted).cloned().collect();
        for pod in evicted {
            self.delete_pod(&pod.uid);
            let name = format!("{}'", pod.name);
            self.insert(Pod { node: None, ..pod }, &name);
        }
    }

    fn has_instance(&self, node: &Node) -> bool {
        self.asgs.values().flat_map(|asg| &asg.instances).any(|instance| Some(&instance.id) == node.instance.as_ref())
    }

    fn schedule(&mut self) {
        let waiting: Vec<_> = self.pods.values().filter(|pod| pod.waits_since().is_some()).cloned().collect();
        for mut pod in waiting {
            let fits = |node: &&Node| {
                let mut free = node.allocatable.clone();
                for other in self.pods.values().filter(|other| other.node.as_ref() == Some(&node.name)) {
                    free.subtract(&other.requests);
                }
                let place = crate::schedule::Place {
                    name: Some(&node.name),
                    labels: &node.labels,
                    taints: &node.taints,
                    free,
                    zones: &[],
                };
                node.ready && !node.unschedulable && place.admits(&pod).is_ok()
            };
            let mut fitting: Vec<_> = self.nodes.values().filter(fits).map(|node| node.name.clone()).collect();
            if self.spreads {
                let taken = |name: &String| {
                    let on = self.pods.values().filter(|pod| pod.node.as_ref() == Some(name));
                    on.map(|pod| pod.requests.amount("cpu")).sum::<u64>()
                };
                fitting.sort_by_key(taken);
            }
            if let Some(name) = fitting.into_iter().next() {
                pod.node = Some(name);
                pod.unschedulable_since = None;
                self.pods.insert(pod.uid.clone(), pod);
            }
        }
    }

    fn report(&mut self) {
        for node in self.nodes.clone().into_values() {
            let since = self.said_since[&node.name];
            let class = match self.says[&node.name] {
                Says::Nothing => continue,
                Says::Busy => Class::Busy { since, signal: Signal::Cpu },
                Says::Idle => Class::Idle { since },
                Says::Starting => Class::Unknown { since, missing: Missing::Initialization },
                Says::Unknown => Class::Unknown { since, missing: Missing::Signal(Signal::Cpu) },
            };
            self.sequence += 1;
            let gpu =
                if node.allocatable.has_gpu() { GpuUse::Busy(crate::units::Permille::ZERO) } else { GpuUse::Absent };
            let report = Report {
                node: node.name,
                node_uid: node.uid,
                agent_start: Instant::from_millis(1),
                sequence: self.sequence,
                sampled_at: self.now,
                class,
                utilization: Utilization { gpu, ..Utilization::default() },
                gpu_waste: None,
            };
            self.tell(Event::Report(report));
        }
    }

    fn say(&mut self, node: &str, says: Says) {
        self.says.insert(node.into(), says);
        self.said_since.insert(node.into(), self.now);
        self.report();
    }

    fn run(&mut self, seconds: u64) {
        for _ in 0..seconds {
            let until = self.now + Duration::from_secs(1);
            while let Some(at) = self.fleet.next_wakeup().filter(|wakeup| *wakeup < until) {
                self.now = self.now.max(at);
                self.tell(Event::Tick);
                let next = self.fleet.next_wakeup();
                assert!(next.is_none_or(|next| next > self.now), "invariant_tick_moves_the_next_wakeup");
            }
            self.now = until.before(Duration::from_secs(1));
            self.second();
        }
    }

    fn pod(&mut self, name: &str, requests: &[(&str, &str)]) {
        self.insert(Pod { requests: resources(requests), ..Pod::default() }, name);
    }

    fn gpu_pod(&mut self, name: &str) {
        let toleration = Toleration { key: Some(GPU_TAINT.into()), value: None, effect: None };
        let requests = resources(&[("cpu", "1"), ("pods", "1"), (GPU_TAINT, "1")]);
        self.insert(Pod { requests, tolerations: vec![toleration], ..Pod::default() }, name);
    }

    fn insert(&mut self, pod: Pod, name: &str) {
        let pod = Pod {
            uid: name.into(),
            namespace: "ns".into(),
            name: name.into(),
            unschedulable_since: Some(self.now),
            ..pod
        };
        self.pods.insert(pod.uid.clone(), pod);
    }

    fn delete_pod(&mut self, name: &str) {
        self.pods.remove(name);
        self.tell(Event::PodDeleted { uid: name.into() });
    }

    fn desired(&self, group: &str) -> u32 {
        self.asgs[group].desired
    }

    fn log(&mut self) -> Vec<String> {
        std::mem::take(&mut self.log)
    }
}

/// What an agent does to its node within a second.
fn agent(node: &mut Node) {
    match (&node.intent, &node.progress) {
        (Some(intent), None) => {
            node.progress = Some(Progress {
                cordoned_by_us: !node.unschedulable,
                ..Progress::new(&intent.id, Phase::Draining, intent.requested_at)
            });
            node.unschedulable = true;
            node.draining = true;
        }
        (Some(_), Some(progress)) if progress.phase == Phase::Draining => {
            node.progress = Some(Progress { phase: Phase::Drained, ..progress.clone() });
            node.draining = false;
            node.drained = true;
        }
        (None, Some(progress)) => {
            node.unschedulable = node.unschedulable && !progress.cordoned_by_us;
            node.progress = None;
            node.draining = false;
            node.drained = false;
        }
        _ => {}
    }
}

#[test]
fn a_burst_goes_up_and_comes_down_again() {
    let mut world = World::new(flow());
    for pod in ["a", "b", "c"] {
        world.pod(pod, &[("cpu", "4"), ("pods", "1")]);
    }
    world.run(29);
    // Two fit the two nodes that are there; the third has not waited long enough.
    assert_eq!(world.log(), [""; 0]);
    world.run(2);
    assert_eq!(world.log(), ["cpu 2 -> 3: pod ns/c unschedulable for 30s", "c: a node of group cpu is on its way"]);
    world.run(60);
    assert_eq!(world.pods["c"].node.as_deref(), Some("cpu-3"));
    world.run(7200);
    assert_eq!(world.log(), [""; 0]);
    for pod in ["a", "b", "c"] {
        world.delete_pod(pod);
    }
    world.run(590);
    assert_eq!(world.log(), [""; 0]);
    world.run(60);
    let log = world.log();
    assert_eq!(log.len(), 2, "{log:?}");
    assert!(log[0].starts_with("drain cpu-1: measured idle for 2h"), "{log:?}");
    assert!(log[0].ends_with("without work for 10m"), "{log:?}");
    assert!(log[1].starts_with("terminate cpu-1: drained in"), "{log:?}");
    world.run(7200);
    assert_eq!((world.log().len(), world.desired("cpu")), (0, 2));
}

#[test]
fn gpu_pods_raise_the_gpu_group_and_cpu_pods_never_do() {
    let mut world = World::new(flow());
    world.gpu_pod("train");
    world.run(40);
    assert_eq!((world.desired("cpu"), world.desired("gpu")), (2, 1));
    let tolerating = Toleration { key: None, value: None, effect: None };
    let requests = resources(&[("cpu", "4"), ("pods", "1")]);
    for name in ["a", "b", "c"] {
        world.insert(Pod { requests: requests.clone(), tolerations: vec![tolerating.clone()], ..Pod::default() }, name);
    }
    world.run(60);
    assert_eq!((world.desired("cpu"), world.desired("gpu")), (3, 1));
}

#[test]
fn pods_are_packed_and_a_node_that_is_coming_is_not_asked_for_twice() {
    let mut world = World::new(flow());
    world.responsive = false;
    for number in 0..14 {
        world.pod(&format!("p{number}"), &[("cpu", "1"), ("pods", "1")]);
    }
    world.run(60);
    let set: Vec<_> = world.log().into_iter().filter(|line| line.contains("->")).collect();
    assert_eq!(set, ["cpu 2 -> 4: 6 pods unschedulable for up to 30s, first ns/p4"]);
}

#[test]
fn an_instance_that_never_joins_is_replaced_after_the_timeout() {
    let mut world = World::new(flow());
    world.responsive = false;
    world.gpu_pod("train");
    world.run(31);
    assert_eq!(world.desired("gpu"), 1);
    world.asgs.get_mut("gpu").unwrap().instances.push(Instance {
        id: "i-dead".into(),
        live: true,
        waits: false,
        zone: None,
    });
    world.run(14 * 60);
    assert_eq!(world.desired("gpu"), 1);
    world.run(3 * 60);
    assert_eq!(world.desired("gpu"), 2);
}

#[test]
fn a_node_that_is_still_starting_is_not_asked_for_again() {
    let startup = |key: &str| Taint { key: key.into(), value: String::new(), effect: TaintEffect::NoSchedule };
    let states: [&dyn Fn(&mut Node); 4] = [
        &|node| node.ready = false,
        &|node| node.allocatable.set(GPU_TAINT, 0),
        &|node| node.taints.push(startup("node.kubernetes.io/not-ready")),
        &|node| node.taints.push(startup("ebs.csi.aws.com/agent-not-ready")),
    ];
    for state in states {
        let mut world = World::new(flow());
        world.gpu_pod("train");
        world.run(31);
        world.launch();
        state(world.nodes.values_mut().find(|node| node.allocatable.has_gpu()).unwrap());
        world.run(300);
        assert_eq!(world.desired("gpu"), 1);
    }
}

#[test]
fn why_a_pod_cannot_be_helped_is_said_once() {
    let mut world = World::new(flow());
    world.pod("huge", &[("cpu", "64"), ("pods", "1")]);
    world.run(600);
    assert_eq!(
        world.log(),
        [
            "huge: no group can make a node for it: cpu: too little cpu; gpu: has the taint nvidia.com/gpu that the pod does not tolerate"
        ]
    );
    for number in 0..5 {
        world.gpu_pod(&format!("train{number}"));
    }
    world.run(600);
    assert_eq!(world.desired("gpu"), 3);
    let log = world.log();
    let at_maximum = log.iter().filter(|line| line.contains("gpu: at its maximum of 3")).count();
    assert_eq!(at_maximum, 2, "{:#?}", log);
}

#[test]
fn a_capacity_that_somebody_else_raised_is_not_lowered() {
    let mut world = World::new(flow());
    world.run(100);
    world.asgs.get_mut("cpu").unwrap().desired = 4;
    world.responsive = false;
    for number in 0..13 {
        world.pod(&format!("p{number}"), &[("cpu", "1"), ("pods", "1")]);
    }
    // The last description is up to a minute old and says 2.
    world.run(50);
    assert_eq!(world.desired("cpu"), 4);
    world.pod("one-more", &[("cpu", "4"), ("pods", "1")]);
    world.run(50);
    assert!(world.log().iter().find(|line| line.contains("->")).unwrap().starts_with("cpu 4 -> 5: "));
}

#[test]
fn a_group_below_its_minimum_is_raised() {
    let mut world = World::new(flow());
    world.asgs.get_mut("cpu").unwrap().desired = 0;
    world.asgs.get_mut("cpu").unwrap().instances.clear();
    world.run(70);
    assert_eq!(world.log(), ["cpu 0 -> 2: fewer nodes than the minimum of 2"]);
}

/// A world with one node too many, idle and empty for ten minutes less some seconds.
fn almost_unneeded() -> World {
    let mut world = World::new(flow());
    world.asgs.get_mut("cpu").unwrap().desired = 3;
    world.run(540);
    world.log.clear();
    world
}

#[test]
fn only_a_node_known_to_be_idle_is_drained() {
    let drained = |says: &[Says]| {
        let mut world = almost_unneeded();
        let names: Vec<_> = world.nodes.keys().cloned().collect();
        for (name, says) in names.iter().zip(says) {
            world.say(name, *says);
        }
        world.run(120);
        world.log().into_iter().find_map(|line| Some(line.strip_prefix("drain ")?[..5].to_owned()))
    };
    use Says::{Busy, Idle, Nothing, Unknown};
    let _ = Idle;
    assert_eq!(drained(&[]).as_deref(), Some("cpu-1"));
    assert_eq!(drained(&[Busy]).as_deref(), Some("cpu-2"));
    assert_eq!(drained(&[Unknown, Nothing]).as_deref(), Some("cpu-3"));
    assert_eq!(drained(&[Busy, Busy, Busy]), None);
    assert_eq!(drained(&[Nothing, Nothing, Nothing]), None);
}

#[test]
fn a_gpu_node_whose_agent_sees_no_gpu_is_not_drained() {
    let mut world = World::new(flow());
    world.asgs.get_mut("gpu").unwrap().desired = 1;
    world.run(200);
    let (name, uid) =
        world.nodes.values().find(|n| n.allocatable.has_gpu()).map(|n| (n.name.clone(), n.uid.clone())).unwrap();
    world.say(&name, Says::Nothing);
    for _ in 0..600 {
        world.run(1);
        world.sequence += 1;
        let report = Report {
            node: name.clone(),
            node_uid: uid.clone(),
            agent_start: Instant::from_millis(1),
            sequence: world.sequence,
            sampled_at: world.now,
            class: Class::Idle { since: world.now.before(seconds(500)) },
            utilization: Utilization::default(),
            gpu_waste: None,
        };
        world.tell(Event::Report(report));
    }
    assert_eq!(world.log(), [""; 0]);
}

#[test]
fn a_daemons_pod_does_not_keep_a_node_and_a_bare_pod_does() {
    let mut world = almost_unneeded();
    for name in ["cpu-1", "cpu-2", "cpu-3"] {
        let bare = Pod { node: Some(name.into()), ..Pod::default() };
        let daemon = Pod { controller: Controller::DaemonSet, ..bare.clone() };
        world.insert(daemon, &format!("daemon-{name}"));
        if name != "cpu-2" {
            world.insert(bare, &format!("bare-{name}"));
        }
    }
    world.run(120);
    assert!(world.log().iter().any(|line| line.starts_with("drain cpu-2")));
}

#[test]
fn a_pod_that_waits_and_fits_stops_the_drain() {
    let mut world = almost_unneeded();
    world.responsive = false;
    world.run(70);
    assert!(world.log()[0].starts_with("drain cpu-1"));
    agent(world.nodes.get_mut("cpu-1").unwrap());
    for pod in ["a", "b", "c"] {
        world.pod(pod, &[("cpu", "4"), ("pods", "1")]);
    }
    world.run(40);
    let log = world.log();
    assert_eq!(
        log,
        ["c: fits node cpu-1, the scheduler is to place it", "cancel cpu-1: pod ns/c waits and fits this node"]
    );
}

#[test]
fn a_new_coordinator_finishes_what_the_old_one_began() {
    let mut world = almost_unneeded();
    while !world.log.iter().any(|line| line.starts_with("drain")) {
        world.run(1);
    }
    world.start();
    world.run(30);
    assert!(world.log().last().unwrap().starts_with("terminate cpu-1"), "{:?}", world.log);
    assert_eq!(world.desired("cpu"), 2);
}

#[test]
fn a_termination_whose_reply_was_lost_is_not_asked_for_again() {
    let mut world = almost_unneeded();
    world.responsive = false;
    while world.nodes["cpu-1"].intent.is_none() {
        world.run(1);
    }
    for _ in 0..2 {
        agent(world.nodes.get_mut("cpu-1").unwrap());
    }
    world.replies_lost = 1;
    world.run(120);
    let terminated = world.log().iter().filter(|line| line.starts_with("terminate")).count();
    assert_eq!((terminated, world.desired("cpu")), (1, 2));
}

#[test]
fn a_drain_is_not_called_off_while_its_instance_is_being_terminated() {
    let mut world = almost_unneeded();
    world.responsive = false;
    while world.nodes["cpu-1"].intent.is_none() {
        world.run(1);
    }
    for _ in 0..2 {
        agent(world.nodes.get_mut("cpu-1").unwrap());
    }
    // No call is answered from here on.
    let mut now = world.now;
    let mut tell = |fleet: &mut Fleet, event| {
        now = now + seconds(1);
        let mut actions = fleet.handle(now, event);
        now = now + seconds(1);
        actions.extend(fleet.handle(now, Event::Tick));
        actions
    };
    let actions = tell(&mut world.fleet, Event::NodeApplied(world.nodes["cpu-1"].clone()));
    let terminate = actions.into_iter().find(|action| matches!(action, Action::Terminate { .. }));
    let terminate = terminate.expect("the node is drained");
    for pod in ["a", "b", "c"] {
        world.pod(pod, &[("cpu", "4"), ("pods", "1")]);
        let pod = Pod { unschedulable_since: Some(world.now.before(seconds(60))), ..world.pods[pod].clone() };
        let actions = tell(&mut world.fleet, Event::PodApplied(pod));
        assert!(!actions.iter().any(|action| matches!(action, Action::CancelDrain { .. })), "{actions:?}");
    }
    // It was refused, so the instance stays and the pod can have it.
    let actions = tell(&mut world.fleet, Event::Failed { action: terminate, failure: Failure::Throttled });
    assert!(actions.iter().any(|action| matches!(action, Action::CancelDrain { .. })), "{actions:?}");
}

#[test]
fn what_somebody_else_drains_is_not_ours_to_end_and_takes_no_turn() {
    for by in [Trigger::Person, Trigger::SpotInterruption] {
        let mut world = World::new(flow());
        world.asgs.get_mut("cpu").unwrap().desired = 4;
        world.run(540);
        world.log.clear();
        let node = world.nodes.get_mut("cpu-1").unwrap();
        node.intent = Some(Intent {
            id: "theirs".into(),
            reason: "theirs".into(),
            requested_at: world.now,
            deadline: world.now + seconds(60),
            evict: true,
            by,
            awaits_turn: false,
            permits: Permits::default(),
        });
        world.run(120);
        let log = world.log();
        assert!(log.iter().any(|line| line.starts_with("drain cpu-2")), "{log:?}");
        assert!(!log.iter().any(|line| line.contains("cpu-1")), "{log:?}");
        assert!(world.nodes["cpu-1"].drained);
        let stay = world.fleet.outline(world.now).nodes.into_iter().find(|node| node.name == "cpu-1").unwrap().stays;
        assert_eq!(stay, Some(Stay::DrainedFor { by, why: "theirs".into() }));
    }
}

#[test]
fn a_node_whose_group_terminates_it_is_drained_while_the_hook_is_kept_waiting() {
    let holding = |drained_by: u64| {
        let mut policy = flow();
        policy.groups.get_mut("cpu").unwrap().lifecycle_hook = Some("ebb".into());
        let mut world = World::new(policy);
        world.run(60);
        world.log.clear();
        world.responsive = drained_by == 0;
        let instance = world.nodes["cpu-1"].instance.clone().unwrap();
        let asg = world.asgs.get_mut("cpu").unwrap();
        let held = asg.instances.iter_mut().find(|it| it.id == instance).unwrap();
        (held.live, held.waits) = (false, true);
        world.run(100);
        let node = world.nodes.get("cpu-1").cloned().unwrap_or_default();
        (world.log(), node, world)
    };
    let (log, node, mut world) = holding(1);
    let intent = node.intent.unwrap();
    assert_eq!((intent.by, intent.reason.as_str()), (Trigger::LifecycleHook, "group cpu terminates its instance"));
    let beats = log.iter().filter(|line| line.starts_with("heartbeat")).count();
    assert!((3..=7).contains(&beats), "{log:?}");
    assert!(!log.iter().any(|line| line.starts_with("complete")), "{log:?}");
    // Not for ever: at the deadline the group gets its way.
    world.run(1000);
    let log = world.log();
    assert_eq!(log.last().unwrap(), "complete cpu-1: the drain was given up");

    let (log, ..) = holding(0);
    let completed = log.iter().position(|line| line.starts_with("complete cpu-1: drained in")).unwrap();
    assert!(!log[completed..].iter().any(|line| line.starts_with("heartbeat") || line.contains("complete cpu-2")));
}

#[test]
fn of_many_drains_at_once_one_zone_begins_when_all_are_cordoned() {
    let mut policy = flow();
    policy.scale_down.max_parallel_drains = 2;
    let mut world = World::new(policy);
    world.asgs.get_mut("cpu").unwrap().desired = 6;
    world.run(60);
    world.log.clear();
    world.responsive = false;
    let names: Vec<String> = world.nodes.keys().filter(|name| name.starts_with("cpu")).cloned().collect();
    for (index, name) in names.iter().enumerate() {
        let zone = if index % 2 == 0 { "a" } else { "b" };
        let node = world.nodes.get_mut(name).unwrap();
        node.labels.insert("topology.kubernetes.io/zone".into(), zone.into());
        node.intent = Some(Intent {
            id: "theirs".into(),
            reason: "theirs".into(),
            requested_at: world.now,
            deadline: world.now + seconds(3600),
            evict: true,
            by: Trigger::Person,
            awaits_turn: true,
            permits: Permits::default(),
        });
    }
    // All but one are cordoned: the others wait for that.
    names[1..].iter().for_each(|name| agent(world.nodes.get_mut(name).unwrap()));
    world.run(5);
    assert_eq!(world.log(), [""; 0]);
    agent(world.nodes.get_mut(&names[0]).unwrap());
    world.run(5);
    let begun = |world: &mut World| {
        let begun = world.log().into_iter().filter_map(|line| Some(line.strip_prefix("drain ")?[..5].to_owned()));
        begun.collect::<Vec<_>>()
    };
    assert_eq!(begun(&mut world), ["cpu-1", "cpu-3"]);
    // Whoever is done makes room, for another of the zone; the next zone begins when this one is done.
    for (done, next) in [("cpu-1", vec!["cpu-5"]), ("cpu-3", vec![]), ("cpu-5", vec!["cpu-2", "cpu-4"])] {
        agent(world.nodes.get_mut(done).unwrap());
        world.run(5);
        assert_eq!(begun(&mut world), next);
    }
}

#[test]
fn a_drain_that_is_late_is_given_up_and_not_terminated() {
    let mut world = almost_unneeded();
    world.responsive = false;
    world.run(70);
    let deadline = world.nodes["cpu-1"].intent.as_ref().unwrap().deadline;
    while world.now + seconds(59) < deadline {
        world.run(1);
    }
    // Drained with less than the margin left: the agent may already be giving the node back.
    for _ in 0..2 {
        agent(world.nodes.get_mut("cpu-1").unwrap());
    }
    world.run(58);
    assert_eq!(world.log().len(), 1);
    world.run(3);
    assert!(world.log()[0].starts_with("cancel cpu-1: the drain was given up"));
    assert_eq!(world.desired("cpu"), 3);
}

#[test]
fn failures_back_off_and_are_tried_again() {
    let mut world = World::new(flow());
    world.gpu_pod("train");
    world.run(29);
    world.failing = vec![Failure::Throttled, Failure::Unavailable, Failure::Conflict];
    world.run(12);
    assert_eq!(world.desired("gpu"), 1);
    assert_eq!(world.log().iter().filter(|line| line.starts_with("failed")).count(), 3);
    assert_eq!(Failure::Throttled.backoff(1), seconds(1));
    assert_eq!(Failure::Throttled.backoff(100), seconds(60));
    assert_eq!(Failure::Denied.backoff(1), seconds(60));
}

#[test]
fn a_follower_and_a_stale_picture_decide_nothing() {
    for event in [Event::Leading(false), Event::Synced(false)] {
        let mut world = almost_unneeded();
        world.tell(event);
        world.gpu_pod("train");
        world.run(300);
        assert_eq!(world.log(), [""; 0]);
        assert_eq!(world.fleet.next_wakeup(), None);
    }
}

#[test]
fn emptiness_is_counted_anew_after_a_gap_in_the_watch() {
    let mut world = almost_unneeded();
    world.tell(Event::Synced(false));
    world.run(5);
    world.tell(Event::Synced(true));
    world.run(590);
    assert_eq!(world.log(), [""; 0]);
    world.run(20);
    assert!(world.log()[0].starts_with("drain cpu-1"));
}

#[test]
fn an_unknown_group_is_said_to_be_so_and_harms_no_other() {
    let mut world = World::new(flow());
    world.asgs.remove("gpu");
    world.start();
    world.gpu_pod("train");
    for pod in ["a", "b", "c"] {
        world.pod(pod, &[("cpu", "4"), ("pods", "1")]);
    }
    world.run(40);
    let log = world.log();
    assert!(log.iter().any(|line| line.contains("gpu: not known to the Auto Scaling API")), "{log:?}");
    assert_eq!(world.desired("cpu"), 3);
}

#[test]
fn reports_that_come_twice_late_or_from_a_former_node_change_nothing() {
    let mut world = almost_unneeded();
    let heard = world.fleet.nodes["cpu-1"].heard.as_ref().unwrap().report.clone();
    let busy = Class::Busy { since: world.now, signal: Signal::Cpu };
    for wrong in [
        Report { class: busy, ..heard.clone() },
        Report { class: busy, sequence: heard.sequence - 1, ..heard.clone() },
        Report { class: busy, sequence: heard.sequence + 1, node_uid: "former".into(), ..heard.clone() },
        Report { class: busy, sequence: heard.sequence + 1, node: "nobody".into(), ..heard.clone() },
    ] {
        world.tell(Event::Report(wrong));
    }
    assert_eq!(world.fleet.nodes["cpu-1"].heard.as_ref().unwrap().report, heard);
}

#[test]
fn idleness_is_taken_from_the_agents_own_clock() {
    let mut world = almost_unneeded();
    let heard = world.fleet.nodes["cpu-1"].heard.as_ref().unwrap();
    let ahead = |instant: Instant| instant + seconds(86_400);
    let skewed = Heard {
        report: Report {
            sampled_at: ahead(heard.report.sampled_at),
            class: Class::Idle { since: ahead(heard.report.class.since()) },
            ..heard.report.clone()
        },
        at: heard.at,
    };
    let since = |heard: &Heard| heard.by_our_clock(heard.report.class.since());
    assert_eq!(since(&skewed), since(heard));
    world.run(1);
}

#[test]
fn a_drain_whose_reply_was_lost_keeps_others_from_starting_until_the_watch_must_have_shown_it() {
    let mut world = World::new(flow());
    world.asgs.get_mut("cpu").unwrap().desired = 4;
    world.run(590);
    let asked = |actions: Vec<Action>| actions.into_iter().find(|action| matches!(action, Action::Drain { .. }));
    // From here on the watch shows nothing and no call succeeds; agents are still heard.
    let later = |world: &mut World, event| {
        world.now = world.now + seconds(1);
        let now = world.now;
        for heard in world.fleet.nodes.values_mut().filter_map(|member| member.heard.as_mut()) {
            (heard.at, heard.report.sampled_at) = (now, now);
        }
        asked(world.fleet.handle(now, event))
    };
    let first = (0..60).find_map(|_| later(&mut world, Event::Tick)).expect("a node is unneeded");
    assert_eq!(later(&mut world, Event::Failed { action: first, failure: Failure::Unavailable }), None);
    let quiet = (1..60).take_while(|_| later(&mut world, Event::Tick).is_none()).count();
    assert!((9..15).contains(&quiet), "asked again after {quiet} s");
}

#[test]
fn an_agents_pod_that_is_older_than_its_node_is_deleted_until_that_succeeds() {
    let mut world = World::new(flow());
    world.nodes.get_mut("cpu-1").unwrap().created = Some(Instant::from_millis(5000));
    world.tell(Event::NodeApplied(world.nodes["cpu-1"].clone()));
    let pod = |name: &str, node: &str, second: u64| AgentPod {
        namespace: "ebb".into(),
        name: name.into(),
        uid: name.into(),
        node: node.into(),
        created: Some(Instant::from_millis(second * 1000)),
    };
    // Times of creation are whole seconds; a node whose own is not known, or that is not there, tells nothing.
    for pod in [pod("same", "cpu-1", 5), pod("later", "cpu-1", 6), pod("unknown", "cpu-2", 1), pod("none", "", 1)] {
        world.tell(Event::AgentPodApplied(pod));
    }
    world.run(60);
    assert_eq!(world.log(), [""; 0]);
    world.failing.push(Failure::Unavailable);
    world.tell(Event::AgentPodApplied(pod("older", "cpu-1", 4)));
    world.run(60);
    let why = "it is older than node cpu-1, which had a predecessor of that name, and so is its token";
    let deleted: Vec<_> = world.log().into_iter().filter(|line| line.starts_with("delete")).collect();
    assert_eq!(deleted, [format!("delete older: {why}")]);
}

/// What chance does to the world.
#[derive(Clone, Debug)]
enum Chance {
    Buffer(u32),
    Crash,
    DeletePods,
    /// One of those that end by themselves.
    End(usize),
    Fail(Failure),
    Foreign(u32),
    GpuPod,
    Lose,
    LoseReply,
    /// Whether they end by themselves.
    Pods(u8, bool),
    Responsive(bool),
    Say(usize, Says),
    Wait(u16),
}

fn chance() -> impl Strategy<Value = Chance> {
    let failure = prop_oneof![
        Just(Failure::Conflict),
        Just(Failure::NotFound),
        Just(Failure::Throttled),
        Just(Failure::Unavailable)
    ];
    let says =
        prop_oneof![4 => Just(Says::Idle), 1 => Just(Says::Busy), 1 => Just(Says::Nothing), 1 => Just(Says::Unknown)];
    prop_oneof![
        2 => (0..5_u32).prop_map(Chance::Buffer),
        1 => Just(Chance::Crash),
        2 => Just(Chance::DeletePods),
        2 => (0..12_usize).prop_map(Chance::End),
        2 => failure.prop_map(Chance::Fail),
        1 => (0..6_u32).prop_map(Chance::Foreign),
        2 => Just(Chance::GpuPod),
        1 => Just(Chance::Lose),
        2 => Just(Chance::LoseReply),
        2 => (1..12_u8, any::<bool>()).prop_map(|(count, completes)| Chance::Pods(count, completes)),
        2 => any::<bool>().prop_map(Chance::Responsive),
        3 => (0..8_usize, says).prop_map(|(node, says)| Chance::Say(node, says)),
        4 => (1..400_u16).prop_map(Chance::Wait),
    ]
}

/// Those that hold now and then come and go every quarter of an hour, so that nothing waits for ever.
fn budget() -> impl Strategy<Value = Budget> {
    let share = |percent| Amount::Share(crate::units::Permille::percent(percent));
    let nodes = prop_oneof![(0..3_u32).prop_map(Amount::Count), (0..60_u16).prop_map(share)];
    let reasons = prop_oneof![
        2 => Just(BTreeSet::new()),
        1 => Just(BTreeSet::from([Disruption::Empty])),
        1 => Just(BTreeSet::from([Disruption::Completed])),
        1 => Just(BTreeSet::from([Disruption::Consolidated])),
    ];
    let window = prop::option::of(
        (0..15_u64, 1..13_u64).prop_map(|(minute, minutes)| window(&format!("{minute}/15 * * * *"), minutes * 60)),
    );
    (nodes, window, reasons).prop_map(|(nodes, window, reasons)| {
        let nodes = if window.is_none() && nodes.of(10) == 0 { Amount::Count(1) } else { nodes };
        Budget { nodes, window, reasons }
    })
}

fn window(schedule: &str, duration: u64) -> Window {
    Window { schedule: schedule.parse().unwrap(), duration: seconds(duration) }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The invariants of `World::check` hold through all of it; once it is over, everything settles: pods that can be
    /// helped run, and with the work gone the groups come back to their minimum.
    #[test]
    fn the_fleet_settles_whatever_happened(
        chances in prop::collection::vec(chance(), 0..25),
        launches in any::<bool>(),
        parallel in 1..4_u32,
        run_to_completion in any::<bool>(),
        budgets in prop::collection::vec((budget(), any::<bool>()), 0..4),
    ) {
        let mut policy = flow();
        policy.scale_down.max_parallel_drains = parallel;
        policy.groups.values_mut().for_each(|group| group.run_to_completion = run_to_completion);
        for (budget, ours) in budgets {
            let group = policy.groups.get_mut("cpu").unwrap();
            if ours { &mut policy.scale_down.budgets } else { &mut group.budgets }.push(budget);
        }
        if launches {
            policy.scale_up.launch = policy::Launch::LaunchInstances;
        }
        let mut world = World::new(policy);
        for (number, chance) in chances.into_iter().enumerate() {
            match chance {
                Chance::Buffer(0) => world.delete_buffer("b"),
                Chance::Buffer(count) => world.buffer("b", count, "2"),
                Chance::Crash => world.start(),
                Chance::DeletePods => {
                    let names: Vec<_> = world.pods.keys().cloned().collect();
                    names.iter().for_each(|name| world.delete_pod(name));
                }
                Chance::End(pod) => {
                    let mut ending = world.pods.values().filter(|pod| pod.completes);
                    if let Some(name) = ending.nth(pod).map(|pod| pod.name.clone()) {
                        world.delete_pod(&name);
                    }
                }
                Chance::Fail(failure) => world.failing.push(failure),
                Chance::Foreign(desired) => {
                    let cpu = world.asgs.get_mut("cpu").unwrap();
                    // Another's scale-in takes whatever instance it likes: not ours to prevent, so only upwards.
                    cpu.desired = cpu.desired.max(desired);
                }
                Chance::GpuPod => world.gpu_pod(&format!("gpu-{number}")),
                Chance::Lose => {
                    let node = world.nodes.values().next().cloned();
                    if let Some(node) = node {
                        world.asgs.values_mut().for_each(|asg| asg.instances.retain(|i| Some(&i.id) != node.instance.as_ref()));
                        world.pods.retain(|_, pod| pod.node.as_ref() != Some(&node.name));
                    }
                }
                Chance::LoseReply => world.replies_lost += 1,
                Chance::Pods(count, completes) => {
                    for pod in 0..count {
                        // More than half of a node keeps it.
                        let requests = resources(&[("cpu", if completes { "500m" } else { "2" }), ("pods", "1")]);
                        world.insert(Pod { requests, completes, ..Pod::default() }, &format!("p-{number}-{pod}"));
                    }
                }
                Chance::Responsive(responsive) => world.responsive = responsive,
                Chance::Say(node, says) => {
                    if let Some(name) = world.nodes.keys().nth(node).cloned() {
                        world.say(&name, says);
                    }
                }
                Chance::Wait(seconds) => world.run(seconds.into()),
            }
        }
        world.failing.clear();
        world.replies_lost = 0;
        world.responsive = true;
        world.run(120);
        let names: Vec<_> = world.nodes.keys().cloned().collect();
        for name in names {
            world.say(&name, Says::Idle);
        }
        world.run(1200);
        for pod in world.pods.values().filter(|pod| pod.waits_since().is_some()) {
            let at_maximum = ["cpu", "gpu"].iter().any(|group| world.desired(group) >= world.policy.groups[*group].max);
            prop_assert!(at_maximum, "{} still waits", pod.name);
        }
        if let Some((count, status)) = world.buffers.get("b").map(|it| it.replicas).zip(world.shown.get("b").and_then(|told| told.last())) {
            let full = world.desired("cpu") >= world.policy.groups["cpu"].max;
            prop_assert!(status.replicas == count && (full || status.room == buffer::Room::There), "{:?}", status);
        }
        world.delete_buffer("b");
        let names: Vec<_> = world.pods.keys().cloned().collect();
        names.iter().for_each(|name| world.delete_pod(name));
        world.run(8000);
        prop_assert_eq!((world.desired("cpu"), world.desired("gpu")), (2, 0));
        prop_assert_eq!(world.nodes.values().filter(|node| node.unschedulable).count(), 0);
    }
}

#[test]
fn a_burst_of_explanations_is_one_step() {
    let explain = |pod: &str, group: &str| Action::Explain {
        namespace: "default".into(),
        pod: pod.into(),
        uid: pod.into(),
        because: Reason::NodeComing { group: group.into() },
    };
    let raise = Action::SetDesired { group: "a".into(), from: 1, to: 2, because: Reason::BelowMinimum { min: 2 } };
    let steps = steps(Instant::from_millis(0), &[explain("p", "a"), raise, explain("q", "a"), explain("r", "b")]);
    let whats: Vec<_> = steps.iter().map(|step| step.what.as_str()).collect();
    assert_eq!(whats, ["raises a from 1 to 2 instances", "leaves 2 pods waiting", "leaves pod default/r waiting"]);
    assert_eq!(steps[1].because, "a node of group a is on its way");
}

/// Groups of four cores: some that may be asked for nodes.
fn pools(names: &[&str]) -> Policy {
    let group = |name: &&str| ((*name).to_owned(), group(0, 3, resources(&[("cpu", "4"), ("pods", "20")])));
    Policy { groups: names.iter().map(group).collect(), ..Policy::default() }
}

#[test]
fn where_there_is_no_capacity_the_next_group_is_asked_at_once() {
    let mut policy = pools(&["cheap", "dear"]);
    policy.groups.get_mut("cheap").unwrap().priority = 1;
    let mut world = World::new(policy);
    world.exhausted.insert("cheap".into());
    world.pod("a", &[("cpu", "4"), ("pods", "1")]);
    world.run(40);
    let log = world.log();
    assert_eq!(log[..2], ["cheap 0 -> 1: pod ns/a unschedulable for 30s", "a: a node of group cheap is on its way"]);
    assert!(log[2].starts_with("dear 0 -> 1: pod ns/a unschedulable for "), "{log:?}");
    assert_eq!(world.pods["a"].node.as_deref(), Some("dear-1"));
    // What AWS was asked for stays asked for: once it has capacity again the node comes, is not needed, and goes.
    world.exhausted.clear();
    world.run(1200);
    assert_eq!((world.desired("cheap"), world.desired("dear")), (0, 1));
}

#[test]
fn a_pod_that_only_a_failing_group_fits_is_told_so_and_gets_its_node_later() {
    let mut world = World::new(pools(&["only"]));
    world.exhausted.insert("only".into());
    world.pod("a", &[("cpu", "4"), ("pods", "1")]);
    world.run(60);
    let log = world.log();
    let expected = "a: no group can make a node for it: only: launches fail, no capacity; not counted on until ";
    assert!(log.last().unwrap().starts_with(expected), "{log:?}");
    assert_eq!(world.fleet.view(world.now).groups[0].failing.as_ref().unwrap().cause, launch::Cause::Capacity);
    world.run(3600);
    // Asked once: AWS goes on trying by itself.
    assert_eq!(world.desired("only"), 1);
    world.exhausted.clear();
    world.run(2);
    assert_eq!(world.pods["a"].node.as_deref(), Some("only-1"));
}

#[test]
fn a_group_whose_instances_never_become_nodes_is_left_for_another() {
    let mut policy = pools(&["first", "second"]);
    policy.groups.get_mut("first").unwrap().priority = 1;
    let mut world = World::new(policy);
    world.responsive = false;
    world.pod("a", &[("cpu", "4"), ("pods", "1")]);
    world.run(31);
    let asg = world.asgs.get_mut("first").unwrap();
    asg.instances.push(Instance { id: "i-mute".into(), live: true, waits: false, zone: None });
    world.run(14 * 60);
    assert_eq!((world.desired("first"), world.desired("second")), (1, 0));
    world.run(2 * 60);
    assert_eq!((world.desired("first"), world.desired("second")), (1, 1));
    let failing = world.fleet.view(world.now).groups[0].failing.clone().unwrap();
    assert_eq!(failing.cause, launch::Cause::NeverReady);
}

#[test]
fn a_group_that_nothing_comes_of_is_left_for_another() {
    let mut policy = pools(&["first", "second"]);
    policy.groups.get_mut("first").unwrap().priority = 1;
    let mut world = World::new(policy);
    world.responsive = false;
    world.pod("a", &[("cpu", "4"), ("pods", "1")]);
    world.run(14 * 60);
    assert_eq!((world.desired("first"), world.desired("second")), (1, 0));
    world.run(2 * 60);
    assert_eq!((world.desired("first"), world.desired("second")), (1, 1));
}

#[test]
fn groups_that_differ_in_their_zone_only_are_kept_even() {
    let mut world = World::new(pools(&["a", "b", "c"]));
    for pod in 0..6 {
        world.pod(&format!("pod-{pod}"), &[("cpu", "3"), ("pods", "1")]);
    }
    world.run(31);
    assert_eq!(["a", "b", "c"].map(|group| world.desired(group)), [2, 2, 2]);
}

/// Two groups of two zones each, the first to be asked first, whose instances are launched one by one.
fn launching() -> World {
    let mut policy = pools(&["first", "second"]);
    policy.groups.get_mut("first").unwrap().priority = 1;
    policy.scale_up.launch = policy::Launch::LaunchInstances;
    World::new(policy)
}

#[test]
fn launches_are_even_over_zones_and_go_where_a_pod_can_be() {
    let mut world = launching();
    for pod in 0..2 {
        world.pod(&format!("pod-{pod}"), &[("cpu", "4"), ("pods", "1")]);
    }
    world.run(31);
    let log = world.log();
    assert!(log[0].starts_with("first in z1 0 -> 1: "), "{log:?}");
    assert!(log[1].starts_with("first in z2 1 -> 2: "), "{log:?}");
    let in_zone = [(storage::ZONE_LABELS[0].to_owned(), "z2".to_owned())].into();
    let requests = resources(&[("cpu", "4"), ("pods", "1")]);
    world.insert(Pod { requests, node_selector: in_zone, ..Pod::default() }, "picky");
    world.run(40);
    assert!(world.log().iter().any(|line| line.starts_with("first in z2 2 -> 3: ")));
    assert_eq!(world.pods["picky"].node.as_deref(), Some("first-3"));
}

#[test]
fn a_zone_without_capacity_is_passed_over_at_once_and_so_is_a_group_without_any() {
    let mut world = launching();
    world.exhausted.insert("z1".into());
    world.pod("a", &[("cpu", "4"), ("pods", "1")]);
    world.run(31);
    let asked = |log: Vec<String>| {
        log.iter().filter_map(|line| line.split_once(':').map(|(head, _)| head.to_owned())).collect::<Vec<_>>()
    };
    assert_eq!(asked(world.log()), ["first in z1 0 -> 1", "first in z2 0 -> 1", "a"]);
    world.exhausted.insert("z2".into());
    world.pod("b", &[("cpu", "4"), ("pods", "1")]);
    world.run(40);
    let log = world.log();
    let told = "first: launches fail, no capacity; not counted on until";
    assert!(log.iter().any(|line| line.starts_with("b: ") && line.contains(told)), "{log:?}");
    assert_eq!(asked(log), ["first in z2 1 -> 2", "second in z1 0 -> 1", "second in z2 0 -> 1", "b"]);
    let failing =
        |world: &World| world.fleet.view(world.now).groups.iter().filter(|group| group.failing.is_some()).count();
    assert_eq!(failing(&world), 2);
    world.exhausted.clear();
    world.run(6 * 60);
    assert_eq!(failing(&world), 0);
    assert!(world.pods["b"].node.is_some());
}

#[test]
fn a_launch_whose_reply_was_lost_is_asked_for_again_under_its_token_if_nothing_came_of_it() {
    let mut world = launching();
    world.run(29);
    world.pod("a", &[("cpu", "4"), ("pods", "1")]);
    world.run(29);
    world.failing.push(Failure::Unavailable);
    world.run(10);
    assert_eq!((world.tokens.len(), world.desired("first")), (2, 1));
    assert_eq!(world.tokens[0], world.tokens[1]);
    // Something came of it.
    world.pod("b", &[("cpu", "4"), ("pods", "1")]);
    world.run(29);
    world.replies_lost = 1;
    world.run(60);
    assert_eq!((world.tokens.len(), world.desired("first")), (3, 2));
    assert_ne!(world.tokens[1], world.tokens[2]);
}

#[test]
fn no_other_group_is_raised_while_it_is_not_known_what_a_call_did() {
    let mut policy = pools(&["first", "second"]);
    policy.groups.get_mut("first").unwrap().priority = 1;
    let mut world = World::new(policy);
    world.pod("a", &[("cpu", "4"), ("pods", "1")]);
    world.run(29);
    world.replies_lost = 1;
    world.run(40);
    assert_eq!((world.desired("first"), world.desired("second")), (1, 0));
}

#[test]
fn where_launches_are_refused_the_desired_capacity_is_set() {
    for failure in [Failure::Denied, Failure::Rejected] {
        let mut world = launching();
        world.pod("a", &[("cpu", "4"), ("pods", "1")]);
        world.run(29);
        world.failing.push(failure);
        world.run(3);
        let log = world.log();
        assert_eq!(log[0], format!("failed {failure:?}"));
        assert!(log[1].starts_with("first 0 -> 1: "), "{log:?}");
        world.run(60 * 60);
        world.pod("b", &[("cpu", "4"), ("pods", "1")]);
        world.run(40);
        assert!(world.log().iter().any(|line| line.starts_with("first in z2 1 -> 2: ")));
    }
}

/// Nodes that are there, each with pods of so many cores.
fn packed(consolidate: bool, cores: &[&[&str]]) -> World {
    let mut policy = pools(&["cpu"]);
    policy.scale_down.consolidate = consolidate;
    packed_under(policy, cores)
}

/// The same with pods that end by themselves, and nodes that wait for that.
fn running_out(cores: &[&[&str]]) -> World {
    let mut policy = pools(&["cpu"]);
    policy.groups.get_mut("cpu").unwrap().run_to_completion = true;
    let mut world = packed_under(policy, cores);
    world.pods.values_mut().for_each(|pod| pod.completes = true);
    world
}

fn packed_under(mut policy: Policy, cores: &[&[&str]]) -> World {
    policy.groups.get_mut("cpu").unwrap().max = 10;
    let mut world = World::new(policy);
    world.asgs.get_mut("cpu").unwrap().desired = cores.len() as u32;
    world.launch();
    for (index, cores) in cores.iter().enumerate() {
        for (pod, cpu) in cores.iter().enumerate() {
            let name = format!("pod-{index}-{pod}");
            world.pod(&name, &[("cpu", cpu), ("pods", "1")]);
            let pod = world.pods.get_mut(&name).unwrap();
            (pod.node, pod.unschedulable_since) = (Some(format!("cpu-{}", index + 1)), None);
        }
    }
    world.report();
    world
}

#[test]
fn nodes_whose_pods_fit_elsewhere_go_where_that_is_wished() {
    let mut world = packed(true, &[&["1"], &["1", "500m"], &["3"]]);
    world.run(599);
    assert_eq!(world.log(), [""; 0]);
    world.run(120);
    let log = world.log();
    let expected = "drain cpu-1: measured idle for 10m, 25% of it asked for, its pod fits on other nodes";
    assert_eq!(log.first().map(String::as_str), Some(expected));
    // Then cpu-2 has 2.5 cores of 4: more than half, so it stays.
    world.run(7200);
    assert_eq!(world.desired("cpu"), 2);
    let stays = |world: &World, node: usize| world.fleet.view(world.now).nodes[node].stays.clone().unwrap();
    assert!(matches!(stays(&world, 0), Stay::Requested { .. }), "{:?}", stays(&world, 0));
    let mut world = packed(false, &[&["1"], &["1", "500m"], &["3"]]);
    world.run(7200);
    assert_eq!(world.log(), [""; 0]);
    assert_eq!(stays(&world, 0), Stay::Occupied { pods: 1, first: "ns/pod-0-0".into() });
}

#[test]
fn what_must_not_be_moved_keeps_its_node_and_what_fits_nowhere_too() {
    let mut world = packed(true, &[&["1"], &["1800m"], &["3500m"]]);
    world.pods.get_mut("pod-0-0").unwrap().pin = Some(crate::reason::Pin::LocalStorage);
    world.pods.get_mut("pod-1-0").unwrap().node_selector.insert("pool".into(), "gone".into());
    world.run(900);
    assert_eq!(world.log(), [""; 0]);
    let stays: Vec<_> = world.fleet.view(world.now).nodes.into_iter().map(|node| node.stays.unwrap().name()).collect();
    assert_eq!(stays, ["PodPinned", "NoRoomElsewhere", "Requested"]);
}

#[test]
fn a_node_that_an_annotation_protects_stays_empty_as_it_is() {
    let mut world = packed(false, &[&[], &[]]);
    let key = "cluster-autoscaler.kubernetes.io/scale-down-disabled";
    world.nodes.get_mut("cpu-1").unwrap().protected_by = Some(key.into());
    world.run(1800);
    assert_eq!(world.desired("cpu"), 1);
    assert!(world.nodes.contains_key("cpu-1"));
    let stays = world.fleet.view(world.now).nodes[0].stays.clone();
    assert_eq!(stays, Some(Stay::Protected { annotation: key.into() }));
}

#[test]
fn a_node_whose_drain_was_given_up_is_left_in_peace_for_a_while() {
    let mut world = packed(false, &[&[]]);
    world.responsive = false;
    world.run(601);
    assert!(world.log()[0].starts_with("drain cpu-1"));
    world.run(15 * 60);
    assert_eq!(world.log(), ["cancel cpu-1: the drain was given up"]);
    world.run(4 * 60);
    assert_eq!(world.log(), [""; 0]);
    world.run(2 * 60);
    assert!(world.log()[0].starts_with("drain cpu-1"));
}

proptest! {
    // Hours of many nodes each.
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Under a load that stays the same, what one rule does the other must not undo: once the cluster has come to rest,
    /// nothing is asked for any more.
    #[test]
    fn growing_and_shrinking_do_not_undo_each_other(
        cores in prop::collection::vec(prop::collection::vec(1..16_u32, 0..4), 1..7),
        waiting in prop::collection::vec(1..16_u32, 0..6),
        consolidate in any::<bool>(),
        run_to_completion in any::<bool>(),
        buffers in prop::collection::vec((1..16_u32, 0..6_u32), 0..3),
        spreads in any::<bool>(),
    ) {
        let texts: Vec<Vec<String>> =
            cores.iter().map(|node| node.iter().map(|quarters| format!("{}m", quarters * 250)).collect()).collect();
        let fits = |node: &Vec<u32>| node.iter().sum::<u32>() <= 16;
        let texts: Vec<Vec<&str>> = texts.iter().zip(&cores).map(|(node, quarters)| if fits(quarters) { node.iter().map(String::as_str).collect() } else { vec![] }).collect();
        let texts: Vec<&[&str]> = texts.iter().map(Vec::as_slice).collect();
        let mut world = if run_to_completion { running_out(&texts) } else { packed(consolidate, &texts) };
        world.spreads = spreads;
        for (index, (quarters, count)) in buffers.iter().enumerate() {
            world.buffer(&format!("buffer-{index}"), *count, &format!("{}m", quarters * 250));
        }
        for (index, quarters) in waiting.iter().enumerate() {
            world.pod(&format!("late-{index}"), &[("cpu", &format!("{}m", quarters * 250)), ("pods", "1")]);
        }
        let mut changes = Vec::new();
        for _ in 0..6 {
            world.run(1800);
            let log = world.log();
            changes.push(log.iter().filter(|line| line.starts_with("drain") || line.contains("->")).count());
        }
        prop_assert_eq!(changes.last(), Some(&0), "{:?}", changes);
        let kept: u32 = buffers.iter().map(|(_, count)| count).sum();
        let most = 2 * (texts.len() + waiting.len() + kept as usize);
        prop_assert!(changes.iter().sum::<usize>() <= most, "{:?}", changes);
        for (name, buffer) in &world.buffers {
            let full = world.desired("cpu") >= world.policy.groups["cpu"].max;
            let status = world.shown[name].last().unwrap();
            prop_assert!(status.replicas == buffer.replicas && (full || status.room == buffer::Room::There), "{:?}", status);
        }
        // A buffer is as good as its word.
        if let [(quarters, count)] = buffers[..] && world.shown["buffer-0"].last().unwrap().room == buffer::Room::There {
            let desired = world.desired("cpu");
            let running = |world: &World| world.pods.values().filter(|pod| pod.node.is_some()).count();
            let before = running(&world);
            for pod in 0..count {
                world.pod(&format!("burst-{pod}"), &[("cpu", &format!("{}m", quarters * 250)), ("pods", "1")]);
            }
            world.schedule();
            prop_assert_eq!((running(&world), world.desired("cpu")), (before + count as usize, desired));
        }
    }
}

/// A coordinator that knows what the last one knew takes over.
fn succeed(world: &mut World, after: Duration) {
    let memory = world.fleet.memory(world.now);
    let memory: Memory = serde_json::from_str(&serde_json::to_string(&memory).unwrap()).unwrap();
    world.now = world.now + after;
    world.start();
    world.tell(Event::Remembered(memory));
    world.report();
}

#[test]
fn timers_survive_a_restart_but_not_a_long_gap() {
    let mut world = packed(false, &[&[]]);
    world.run(500);
    succeed(&mut world, seconds(60));
    world.run(39);
    assert_eq!(world.log(), [""; 0]);
    world.run(2);
    assert!(world.log()[0].starts_with("drain cpu-1"));
    let mut world = packed(false, &[&[]]);
    world.run(290);
    succeed(&mut world, seconds(301));
    world.run(15);
    assert_eq!(world.log(), [""; 0]);
}

#[test]
fn a_node_that_got_a_pod_meanwhile_begins_anew() {
    let mut world = packed(false, &[&[]]);
    world.run(500);
    world.pod("a", &[("cpu", "1"), ("pods", "1")]);
    let pod = world.pods.get_mut("a").unwrap();
    (pod.node, pod.unschedulable_since) = (Some("cpu-1".into()), None);
    succeed(&mut world, seconds(60));
    world.run(60);
    world.delete_pod("a");
    world.run(590);
    assert_eq!(world.log(), [""; 0]);
    world.run(20);
    assert!(world.log()[0].starts_with("drain cpu-1"));
}

#[test]
fn a_zone_without_capacity_is_still_known_after_a_restart() {
    let mut world = launching();
    world.exhausted.insert("z1".into());
    world.pod("a", &[("cpu", "4"), ("pods", "1")]);
    world.run(31);
    assert!(world.log()[0].starts_with("first in z1 0 -> 1"));
    succeed(&mut world, seconds(5));
    world.pod("b", &[("cpu", "4"), ("pods", "1")]);
    world.run(40);
    let log = world.log();
    assert!(log.iter().any(|line| line.starts_with("first in z2 1 -> 2")), "{log:?}");
    assert!(!log.iter().any(|line| line.contains("in z1")), "{log:?}");
}

#[test]
fn a_failing_group_is_still_known_after_a_restart() {
    let mut world = World::new(pools(&["only"]));
    world.exhausted.insert("only".into());
    world.pod("a", &[("cpu", "4"), ("pods", "1")]);
    world.run(60);
    let until = |world: &World| world.fleet.view(world.now).groups[0].failing.clone().unwrap().until;
    let before = until(&world);
    succeed(&mut world, seconds(5));
    world.run(2);
    assert_eq!(until(&world), before);
}

#[test]
fn a_burst_is_asked_for_at_its_end_and_a_long_one_now_and_then() {
    // One pod every so many milliseconds, four of which take a node.
    let check = |every: u64, pods: u64, expected: &[&str]| {
        let mut policy = flow();
        policy.scale_up = policy::ScaleUp {
            pending_for: Duration::ZERO,
            batch_window: Duration::from_millis(100),
            batch_longest: Duration::from_millis(1000),
            ..policy.scale_up
        };
        policy.groups.get_mut("cpu").unwrap().max = 100;
        policy.groups.get_mut("cpu").unwrap().min = 0;
        let mut world = World::new(policy);
        world.responsive = false;
        let start = world.now;
        let end = start + Duration::from_millis(every * pods + 5000);
        let mut next = (0..pods).map(|number| (start + Duration::from_millis(every * number), format!("pod-{number}")));
        let mut pod = next.next();
        while world.now < end {
            let wakeup = world.fleet.next_wakeup().unwrap_or(end);
            world.now = pod.as_ref().map_or(wakeup, |(at, _)| wakeup.min(*at)).max(world.now);
            match pod.take_if(|(at, _)| *at == world.now) {
                Some((_, name)) => {
                    world.pod(&name, &[("cpu", "1"), ("pods", "1")]);
                    let waiting = world.pods[&name].clone();
                    world.tell(Event::PodApplied(waiting));
                    pod = next.next();
                }
                None => world.tell(Event::Tick),
            }
        }
        let calls = world.log().into_iter().filter(|line| line.starts_with("cpu "));
        let calls: Vec<_> = calls.map(|line| line.split(':').next().unwrap().to_owned()).collect();
        assert_eq!(calls, expected, "one pod every {every} ms");
    };
    check(1, 400, &["cpu 0 -> 100"]);
    check(50, 16, &["cpu 0 -> 4"]);
    check(50, 60, &["cpu 0 -> 6", "cpu 6 -> 11", "cpu 11 -> 15"]);
    // Far between, they are no burst.
    check(200, 8, &["cpu 0 -> 1", "cpu 1 -> 2"]);
}

#[test]
fn a_burst_is_asked_for_before_a_slow_scheduler_has_refused_it() {
    let mut policy = flow();
    policy.scale_up.pending_for = Duration::ZERO;
    let mut world = World::new(policy);
    // As it is right after their creation: eight fit the two nodes that are there.
    let unseen = |pod: &Pod| Pod { unseen_since: pod.unschedulable_since, unschedulable_since: None, ..pod.clone() };
    for number in 0..12 {
        world.pod(&format!("pod-{number:02}"), &[("cpu", "1"), ("pods", "1")]);
    }
    let pods: Vec<_> = world.pods.values().map(unseen).collect();
    pods.iter().for_each(|pod| world.tell(Event::PodApplied(pod.clone())));
    world.now = world.fleet.next_wakeup().unwrap();
    world.tell(Event::Tick);
    // Nobody is told anything of pods that may be placed in a moment, nor shown them.
    assert_eq!(world.log(), ["cpu 2 -> 3: 4 pods unschedulable for up to 100ms, first ns/pod-08"]);
    assert_eq!(world.fleet.view(world.now).waiting, []);
    // The scheduler comes to the last one.
    let refused = world.pods["pod-11"].clone();
    world.tell(Event::PodApplied(refused));
    world.now = world.fleet.next_wakeup().unwrap();
    world.tell(Event::Tick);
    assert_eq!(world.log(), ["pod-11: a node of group cpu is on its way"]);
}

/// Six empty nodes of the group that may all drain at once, as far as these budgets let; the first is protected.
fn budgeted(budgets: Vec<Budget>, of_group: Vec<Budget>) -> World {
    let mut policy = pools(&["cpu", "other"]);
    policy.groups.get_mut("cpu").unwrap().max = 10;
    policy.groups.get_mut("cpu").unwrap().budgets = of_group;
    policy.scale_down.max_parallel_drains = 10;
    policy.scale_down.budgets = budgets;
    let mut world = World::new(policy);
    world.asgs.get_mut("cpu").unwrap().desired = 6;
    world.asgs.get_mut("other").unwrap().desired = 2;
    world.launch();
    world.nodes.get_mut("cpu-1").unwrap().protected_by = Some("theirs".into());
    world.responsive = false;
    world.report();
    world
}

/// How many drain.
fn drained(world: &mut World) -> [usize; 2] {
    let log = world.log();
    ["drain cpu", "drain other"].map(|drain| log.iter().filter(|line| line.starts_with(drain)).count())
}

fn always(nodes: Amount) -> Budget {
    Budget { nodes, window: None, reasons: BTreeSet::new() }
}

#[test]
fn the_least_budget_holds_over_all_nodes_or_those_of_its_group() {
    let share = |percent| always(Amount::Share(crate::units::Permille::percent(percent)));
    let check = |budgets: Vec<Budget>, of_group: Vec<Budget>, expected: [usize; 2]| {
        let mut world = budgeted(budgets, of_group);
        world.run(660);
        assert_eq!(drained(&mut world), expected, "{:?}", world.policy.scale_down.budgets);
    };
    check(vec![], vec![], [5, 2]);
    // A share of eight nodes, rounded up; the order is that of the names.
    check(vec![share(26)], vec![], [3, 0]);
    check(vec![always(Amount::Count(4)), share(100)], vec![], [4, 0]);
    check(vec![], vec![always(Amount::Count(2))], [2, 2]);
    check(vec![], vec![share(50), share(90)], [3, 2]);
    check(vec![always(Amount::Count(3))], vec![share(10)], [1, 2]);
    let about = |reason| Budget { reasons: BTreeSet::from([reason]), ..always(Amount::Count(0)) };
    check(vec![about(Disruption::Consolidated)], vec![], [5, 2]);
    check(vec![about(Disruption::Empty)], vec![], [0, 0]);
}

#[test]
fn a_budget_holds_in_its_windows_and_the_fleet_wakes_at_their_end() {
    // The world begins at 13:46:40.
    let none = Budget { window: Some(window("0 13-14 * * *", 45 * 60)), ..always(Amount::Count(0)) };
    let mut world = budgeted(vec![none.clone()], vec![]);
    let at = |text: &str| format!("1970-01-12T{text}.000Z").parse::<Instant>().unwrap();
    assert_eq!(world.fleet.next_wakeup().map(|wakeup| wakeup <= at("14:00:00")), Some(true));
    world.run(660);
    assert_eq!(drained(&mut world), [5, 2]);
    let mut world = budgeted(vec![none.clone()], vec![]);
    for name in ["cpu-2", "cpu-3", "cpu-4", "cpu-5", "cpu-6", "other-7", "other-8"] {
        world.say(name, Says::Busy);
    }
    world.run(600);
    for name in world.nodes.keys().cloned().collect::<Vec<_>>() {
        world.say(&name, Says::Idle);
    }
    while world.now < at("14:44:59") {
        world.run(1);
    }
    assert_eq!(drained(&mut world), [0, 0]);
    let stays = world.fleet.view(world.now).nodes[1].stays.clone().unwrap();
    let until = Some(at("14:45:00"));
    assert_eq!(stays, Stay::Budget { budget: none.to_string(), group: None, most: 0, until });
    let said = "it may go, but the budget {nodes: 0, schedule: 0 13-14 * * *, duration: 45m} lets no node drain until \
                1970-01-12T14:45:00.000Z";
    assert_eq!(stays.to_string(), said);
    world.now = at("14:45:00");
    assert!(world.fleet.next_wakeup().is_some_and(|wakeup| wakeup <= world.now));
    world.tell(Event::Tick);
    assert_eq!(drained(&mut world), [5, 2]);
}

#[test]
fn a_node_whose_pods_end_by_themselves_takes_no_more_and_goes_after_the_last() {
    let mut world = running_out(&[&["1", "500m"], &["2500m"]]);
    // Nothing else would let it go.
    world.pods.get_mut("pod-0-0").unwrap().pin = Some(crate::reason::Pin::NotReplicated);
    world.run(599);
    assert_eq!(world.log(), [""; 0]);
    world.run(5);
    let expected = "drain cpu-1: measured idle for 10m, 37.5% of it asked for, its 2 pods end by themselves";
    assert_eq!(world.log(), [expected]);
    world.pod("next", &[("cpu", "500m"), ("pods", "1")]);
    world.run(2 * 3600);
    assert_eq!(world.pods["next"].node.as_deref(), Some("cpu-2"));
    world.delete_pod("pod-0-0");
    world.run(3600);
    let stays = world.fleet.view(world.now).nodes[0].stays.clone();
    assert!(matches!(stays, Some(Stay::RunningOut { pods: 1, .. })), "{stays:?}");
    assert_eq!(world.pods["pod-0-1"].node.as_deref(), Some("cpu-1"));
    world.delete_pod("pod-0-1");
    world.run(10);
    let log = world.log();
    assert!(log.len() == 1 && log[0].starts_with("terminate cpu-1: drained in 3h"), "{log:?}");
}

#[test]
fn a_node_runs_out_only_if_all_its_pods_end_and_such_pods_find_room_elsewhere() {
    let mut world = running_out(&[&["1", "500m"], &["3"]]);
    world.pods.get_mut("pod-0-1").unwrap().completes = false;
    world.run(3600);
    let mut crowded = running_out(&[&["1500m"], &["3"]]);
    crowded.run(3600);
    let stays = [&world, &crowded].map(|world| world.fleet.view(world.now).nodes[0].stays.clone().unwrap().name());
    assert_eq!((stays, world.log(), crowded.log()), (["Occupied", "NoRoomElsewhere"], vec![], vec![]));
}

#[test]
fn a_node_that_runs_out_is_opened_when_a_pod_needs_it_and_left_in_peace_for_a_while() {
    let mut world = running_out(&[&["1"], &["2500m"]]);
    world.run(605);
    assert!(world.log()[0].starts_with("drain cpu-1"));
    world.pod("large", &[("cpu", "2500m"), ("pods", "1")]);
    world.run(40);
    let log = world.log();
    assert_eq!(log.last().map(String::as_str), Some("cancel cpu-1: pod ns/large waits and fits this node"));
    assert_eq!(world.pods["large"].node.as_deref(), Some("cpu-1"));
    world.delete_pod("large");
    world.run(4 * 60);
    assert_eq!(world.log(), [""; 0]);
    world.run(70);
    assert!(world.log()[0].starts_with("drain cpu-1"));
    // It is given back when its pods take too long.
    world.run(12 * 3600);
    assert_eq!(world.log(), ["cancel cpu-1: the drain was given up"]);
    assert!(world.pods["pod-0-0"].node.is_some());
}

#[test]
fn a_node_that_runs_out_does_not_keep_others_from_draining() {
    let mut world = running_out(&[&["1"], &["3"], &["3"]]);
    world.run(605);
    assert!(world.log()[0].starts_with("drain cpu-1"));
    world.delete_pod("pod-1-0");
    world.run(620);
    let log = world.log();
    assert!(log.len() == 2 && log[0].starts_with("drain cpu-2") && log[1].starts_with("terminate cpu-2"), "{log:?}");
}

#[test]
fn pods_that_keep_coming_do_not_make_idleness_begin_anew_where_they_may_end() {
    let streamed = |mut world: World, broken: Option<Says>| {
        for minute in 0..15 {
            // Each is called young for a minute.
            let says = match minute % 3 {
                0 => Says::Starting,
                _ => Says::Idle,
            };
            world.say("cpu-1", broken.filter(|_| minute == 8).unwrap_or(says));
            world.run(60);
        }
        world.log().into_iter().find(|line| line.starts_with("drain cpu-1"))
    };
    assert!(streamed(running_out(&[&["1"], &["3"]]), None).is_some());
    for broken in [Says::Busy, Says::Unknown, Says::Nothing] {
        assert_eq!(streamed(running_out(&[&["1"], &["3"]]), Some(broken)), None, "{broken:?}");
    }
    // One without pods has to be idle all the time.
    assert_eq!(streamed(packed(false, &[&[], &["3"]]), None), None);
}

/// A budget over pods of this app, whose controller has counted this.
fn pod_budget(world: &mut World, app: &str, allowed: u32) {
    let selector = Requirement { key: "app".into(), operator: Operator::In, values: vec![app.into()] };
    let budget = PodDisruptionBudget {
        namespace: "ns".into(),
        name: format!("{app}-{allowed}"),
        selector: Some(vec![selector]),
        allowed,
        healthy: 3,
        desired: 3 - allowed,
    };
    world.tell(Event::PodDisruptionBudget(disruption::Change::Applied(budget)));
}

/// Nodes with a pod of one app each, and room for all of these on the last.
fn served(nodes: usize, parallel: u32) -> World {
    let mut cores: Vec<&[&str]> = vec![&["250m"]; nodes];
    cores.push(&["2500m"]);
    let mut policy = pools(&["cpu"]);
    policy.scale_down.consolidate = true;
    policy.scale_down.max_parallel_drains = parallel;
    let mut world = packed_under(policy, &cores);
    world.pods.values_mut().for_each(|pod| _ = pod.labels.insert("app".into(), "web".into()));
    world
}

#[test]
fn a_node_stays_whose_pods_a_disruption_budget_keeps() {
    let mut world = served(1, 1);
    pod_budget(&mut world, "other", 0);
    pod_budget(&mut world, "web", 0);
    world.run(900);
    assert_eq!(world.log(), [""; 0]);
    let stays = |world: &World| world.fleet.view(world.now).nodes[0].stays.clone().unwrap().to_string();
    let said =
        "pod ns/pod-0-0 may not be evicted: PodDisruptionBudget web-0 allows none now (3 pods are healthy, 3 must be)";
    assert_eq!(stays(&world), said);
    pod_budget(&mut world, "web", 1);
    world.run(20);
    let said = "pod ns/pod-0-0 cannot be evicted: it is under several PodDisruptionBudgets (web-0, web-1)";
    assert_eq!((stays(&world).as_str(), world.log()), (said, vec![]));
    let gone = disruption::Change::Deleted { namespace: "ns".into(), name: "web-0".into() };
    world.tell(Event::PodDisruptionBudget(gone));
    world.run(20);
    assert!(world.log()[0].starts_with("drain cpu-1"));
}

#[test]
fn nodes_do_not_drain_on_the_same_disruption_budget() {
    let drained = |allowed: Option<u32>| {
        let mut world = served(4, 10);
        allowed.inspect(|allowed| pod_budget(&mut world, "web", *allowed));
        // None of them evicts anything, so the numbers do not change.
        world.responsive = false;
        world.run(900);
        let said =
            world.fleet.view(world.now).nodes.iter().map(|node| node.stays.clone().unwrap().name()).collect::<Vec<_>>();
        (world.log().iter().filter(|line| line.starts_with("drain")).count(), said)
    };
    assert_eq!(drained(None).0, 4);
    assert_eq!(drained(Some(3)).0, 3);
    assert_eq!(drained(Some(1)), (1, vec!["Draining", "Blocked", "Blocked", "Blocked", "Requested"]));
}
