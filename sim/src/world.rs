//! The world around the rules: Ray, HPA, scheduler, Auto Scaling groups, nodes with their agents, and the wires between
//! them. Here: what there is, and the queue of what happens when; the rooms below hold what each part does.
//!
//! Nothing of Ebb's rules is here: the coordinator is a real `Fleet` (or another [`Autoscaler`]), each agent a real
//! `Classifier` and a real `Drain`. They learn of the world late, over watches and reports, as they would.

mod agents;
mod control;
mod invariants;
mod nodes;
mod observe;
mod workers;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::Duration;

use ebb_core::kubernetes::{Node, Pod};
use ebb_core::schedule::Misfit;
use ebb_core::time::Instant;
use ebb_core::{drain, fleet};

use crate::auto_scaling::AutoScalingGroup;
use crate::autoscaler::Autoscaler;
use crate::faults::Faults;
use crate::random::Random;
use crate::run::Run;
use crate::scenario::Scenario;
use crate::scheduler::{self, Scheduler};

use self::agents::Agent;
use self::control::Coordinator;
pub use self::invariants::Violation;
use self::observe::Observed;
use self::workers::Workers;

/// How a run is made.
#[derive(Clone, Debug)]
pub struct Options {
    pub seed: u64,
    /// Between two pictures; `None`: none are taken.
    pub snapshot_every: Option<Duration>,
    /// Things that go wrong by chance, from the seed. `None`: only what the scenario plans.
    pub faults: Option<Faults>,
}

/// Runs a scenario to its end.
///
/// `autoscaler` makes a coordinator that knows nothing; it is asked anew whenever one has crashed.
pub fn simulate(
    scenario: &Scenario,
    options: &Options,
    autoscaler: &dyn Fn() -> Box<dyn Autoscaler>,
) -> Result<Run, Box<Violation>> {
    World::new(scenario, options, autoscaler).run()
}

/// What lies ahead in the queue.
pub(crate) enum Happening {
    /// The node's agent takes a sample.
    AgentSamples {
        node: String,
        uid: String,
    },
    /// The node's agent learns of something. `version`: of the Node, where that is what it learns of.
    AgentTold {
        node: String,
        uid: String,
        version: Option<u64>,
        event: Box<drain::Event>,
    },
    /// It is silent no more.
    AgentSpeaks {
        node: String,
    },
    AgentTick {
        node: String,
        uid: String,
    },
    AgentActs {
        node: String,
        uid: String,
        version: u64,
        action: Box<drain::Action>,
    },
    /// An instance has booted; its kubelet joins.
    Booted {
        group: usize,
        instance: String,
    },
    CoordinatorStarts,
    CoordinatorTold {
        generation: u32,
        event: Box<fleet::Event>,
    },
    CoordinatorTick {
        generation: u32,
    },
    CoordinatorActs {
        generation: u32,
        action: Box<fleet::Action>,
    },
    /// A planned disturbance begins or ends, by its index.
    Disturb {
        index: usize,
        begins: bool,
    },
    Fault,
    HpaSync {
        group: usize,
    },
    InstanceGone {
        group: usize,
        instance: String,
    },
    /// The Auto Scaling group looks at what it lacks.
    Launch {
        group: usize,
    },
    MetricsRound,
    NodeReady {
        node: String,
        uid: String,
    },
    PodGone {
        uid: String,
    },
    PodReady {
        uid: String,
    },
    RayRound {
        group: usize,
    },
    Scheduler(Box<scheduler::Event>),
    Snapshot,
    Submit {
        job: usize,
        tasks: u32,
    },
    TaskDone {
        group: usize,
        worker: String,
        task: u64,
    },
    /// Somebody takes their cordon back.
    Uncordon {
        node: String,
    },
}

/// One entry of the queue: in order of time, and of coming where that is the same.
struct Entry {
    at: Instant,
    number: u64,
    happening: Happening,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

/// A pod as the API server and its kubelet have it.
struct PodState {
    pod: Pod,
    /// Index of its worker group; `None`: a daemon.
    group: Option<usize>,
    ready_since: Option<Instant>,
    /// When the scheduler first refused it.
    refused_at: Option<Instant>,
    created_at: Instant,
    bound_at: Option<Instant>,
    usage: workers::Usage,
}

/// A Node object, the machine behind it and its agent.
pub(crate) struct NodeState {
    pub(crate) node: Node,
    /// Grows with each change, as a resource version does.
    version: u64,
    /// Index of its Auto Scaling group.
    pub(crate) group: usize,
    /// In thousandths of a CPU, and in bytes.
    cpu_capacity: u64,
    memory_capacity: u64,
    pods: std::collections::BTreeSet<String>,
    agent: Agent,
    /// Whether the machine runs; the object outlives it for a while.
    alive: bool,
}

pub(crate) struct World<'a> {
    scenario: &'a Scenario,
    options: &'a Options,
    pub(crate) now: Instant,
    queue: BinaryHeap<Reverse<Entry>>,
    entries: u64,
    /// For names and UIDs.
    created: u64,

    pub(crate) groups: Vec<AutoScalingGroup>,
    pub(crate) nodes: BTreeMap<String, NodeState>,
    /// By UID.
    pods: BTreeMap<String, PodState>,
    workers: Vec<Workers>,
    scheduler: Scheduler,
    scheduler_tick: Option<Instant>,
    coordinator: Coordinator<'a>,
    chance: Chance,
    pub(crate) faults: crate::faults::State,
    observed: Observed,
    violation: Option<Box<Violation>>,
}

/// Streams of chance, one for each purpose.
struct Chance {
    launch: Random,
    node: Random,
    pod: Random,
    task: Random,
    wire: Random,
}

impl<'a> World<'a> {
    fn new(scenario: &'a Scenario, options: &'a Options, autoscaler: &'a dyn Fn() -> Box<dyn Autoscaler>) -> Self {
        let stream = |purpose| Random::new(options.seed, purpose);
        let groups = scenario.policy.groups.iter();
        let groups = groups.map(|(name, group)| AutoScalingGroup::new(name, group.min, group.max, &scenario.zones));
        let mut world = Self {
            now: scenario.starts_at,
            queue: BinaryHeap::new(),
            entries: 0,
            created: 0,
            groups: groups.collect(),
            nodes: BTreeMap::new(),
            pods: BTreeMap::new(),
            workers: scenario.worker_groups.iter().map(|group| Workers::new(scenario, group)).collect(),
            scheduler: Scheduler::new(options.seed),
            scheduler_tick: None,
            coordinator: Coordinator::new(autoscaler),
            chance: Chance {
                launch: stream("launch"),
                node: stream("node"),
                pod: stream("pod"),
                task: stream("task"),
                wire: stream("wire"),
            },
            faults: crate::faults::State::new(scenario, options),
            observed: Observed::new(scenario, autoscaler().policy()),
            violation: None,
            scenario,
            options,
        };
        world.begin();
        world
    }

    /// At the groups' minimum, with nodes ready; everything that repeats is started.
    fn begin(&mut self) {
        for group in 0..self.groups.len() {
            self.found(group);
        }
        for group in 0..self.workers.len() {
            self.start_workers(group);
        }
        for (index, job) in self.scenario.jobs.iter().enumerate() {
            let each = job.over.checked_div(job.tasks).unwrap_or_default();
            if each.is_zero() {
                self.after(job.at, Happening::Submit { job: index, tasks: job.tasks });
            } else {
                for task in 0..job.tasks {
                    self.after(job.at + each * task, Happening::Submit { job: index, tasks: 1 });
                }
            }
        }
        for (index, disturbance) in self.scenario.disturbances.iter().enumerate() {
            let (from, until) = disturbance.span();
            self.after(from, Happening::Disturb { index, begins: true });
            if let Some(until) = until {
                self.after(until, Happening::Disturb { index, begins: false });
            }
        }
        self.after(METRICS_RESOLUTION, Happening::MetricsRound);
        self.after(Duration::ZERO, Happening::CoordinatorStarts);
        if self.options.snapshot_every.is_some() {
            // After what the start brings.
            self.after(Duration::from_millis(1), Happening::Snapshot);
        }
        if let Some(first) = self.faults.next(self.now) {
            self.at(first, Happening::Fault);
        }
    }

    fn run(mut self) -> Result<Run, Box<Violation>> {
        let end = self.scenario.starts_at + self.scenario.duration;
        while let Some(Reverse(entry)) = self.queue.pop() {
            if entry.at > end {
                break;
            }
            self.pass_to(entry.at);
            self.happen(entry.happening);
            if let Some(violation) = self.violation.take() {
                return Err(violation);
            }
        }
        self.pass_to(end);
        self.check_end()?;
        Ok(self.finish())
    }

    fn pass_to(&mut self, at: Instant) {
        if at > self.now {
            self.now = at;
            self.faults.pass_to(at);
            self.tell_of_refusals();
        }
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::AgentSamples { node, uid } => self.agent_samples(&node, &uid),
            Happening::AgentTold { node, uid, version, event } => self.agent_told(&node, &uid, version, *event),
            Happening::AgentSpeaks { node } => self.silence(&node, false),
            Happening::AgentTick { node, uid } => self.agent_ticks(&node, &uid),
            Happening::AgentActs { node, uid, version, action } => self.agent_acts(&node, &uid, version, *action),
            Happening::Booted { group, instance } => self.booted(group, &instance),
            Happening::CoordinatorStarts => self.coordinator_starts(),
            Happening::CoordinatorTold { generation, event } => self.coordinator_told(generation, *event),
            Happening::CoordinatorTick { generation } => self.coordinator_ticks(generation),
            Happening::CoordinatorActs { generation, action } => self.coordinator_acts(generation, *action),
            Happening::Disturb { index, begins } => self.disturb(index, begins),
            Happening::Fault => self.fault(),
            Happening::HpaSync { group } => self.hpa_syncs(group),
            Happening::InstanceGone { group, instance } => self.instance_gone(group, &instance),
            Happening::Launch { group } => self.launch(group),
            Happening::MetricsRound => self.metrics_round(),
            Happening::NodeReady { node, uid } => self.node_ready(&node, &uid),
            Happening::PodGone { uid } => self.pod_gone(&uid),
            Happening::PodReady { uid } => self.pod_ready(&uid),
            Happening::RayRound { group } => self.ray_round(group),
            Happening::Scheduler(event) => self.schedule(*event),
            Happening::Snapshot => self.snapshot(),
            Happening::Submit { job, tasks } => self.submit(job, tasks),
            Happening::TaskDone { group, worker, task } => self.task_done(group, &worker, task),
            Happening::Uncordon { node } => _ = self.cordon(&node, false),
        }
    }

    pub(crate) fn at(&mut self, at: Instant, happening: Happening) {
        self.entries += 1;
        self.queue.push(Reverse(Entry { at: at.max(self.now), number: self.entries, happening }));
    }

    pub(crate) fn after(&mut self, delay: Duration, happening: Happening) {
        self.at(self.now + delay, happening);
    }

    fn new_uid(&mut self) -> String {
        self.created += 1;
        format!("{:08}", self.created)
    }

    /// A change on a Node object: everybody who watches it learns of it.
    fn node_changed(&mut self, name: &str) {
        let Some(state) = self.nodes.get_mut(name) else { return };
        state.version += 1;
        let (node, version) = (state.node.clone(), state.version);
        self.at(self.now, Happening::Scheduler(Box::new(scheduler::Event::NodeApplied(node.clone()))));
        self.tell_agent(name, Some(version), drain::Event::Node(Box::new((&node).into())));
        self.tell_coordinator(fleet::Event::NodeApplied(node));
    }

    /// A change on a pod, or a new one.
    fn pod_changed(&mut self, uid: &str) {
        let Some(state) = self.pods.get(uid) else { return };
        let pod = state.pod.clone();
        self.at(self.now, Happening::Scheduler(Box::new(scheduler::Event::PodApplied(pod.clone()))));
        if let Some(node) = pod.node.clone() {
            self.tell_agent_of_pods(&node);
        }
        self.tell_coordinator(fleet::Event::PodApplied(pod));
    }

    fn schedule(&mut self, event: scheduler::Event) {
        for action in self.scheduler.handle(self.now, event) {
            match action {
                scheduler::Action::Bind { uid, node } => self.bind(&uid, &node),
                scheduler::Action::Unschedulable { uid, because } => self.refuse(&uid, &because),
            }
        }
        if let Some(next) = self.scheduler.next_wakeup()
            && self.scheduler_tick.is_none_or(|at| next < at || at <= self.now)
        {
            self.scheduler_tick = Some(next);
            self.at(next, Happening::Scheduler(Box::new(scheduler::Event::Tick)));
        }
    }

    fn bind(&mut self, uid: &str, node: &str) {
        let Some(state) = self.pods.get_mut(uid).filter(|state| !state.pod.terminating) else { return };
        let Some(home) = self.nodes.get_mut(node) else { return };
        state.pod.node = Some(node.to_owned());
        state.bound_at = Some(self.now);
        state.pod.unschedulable_since = None;
        home.pods.insert(uid.to_owned());
        if let Some(refused) = state.refused_at {
            self.observed.pod_waits.push(millis(self.now.since(refused)));
        }
        let start = self.chance.pod.span(self.scenario.times.pod_start);
        self.after(start, Happening::PodReady { uid: uid.to_owned() });
        self.pod_changed(uid);
    }

    fn refuse(&mut self, uid: &str, because: &BTreeMap<Misfit, u32>) {
        let now = self.now;
        let Some(state) = self.pods.get_mut(uid).filter(|state| state.pod.node.is_none()) else { return };
        // The condition's transition time stays when it is said again.
        if state.pod.unschedulable_since.is_some() {
            return;
        }
        state.pod.unschedulable_since = Some(now);
        state.refused_at.get_or_insert(now);
        let group = state.group;
        self.pod_changed(uid);
        if let Some(group) = group {
            self.observed.refused(now, group, because);
        }
    }

    /// Asks for a pod's end. One that nobody runs is gone at once.
    fn delete_pod(&mut self, uid: &str) {
        let Some(state) = self.pods.get_mut(uid).filter(|state| !state.pod.terminating) else { return };
        state.pod.terminating = true;
        let (bound, group) = (state.pod.node.is_some(), state.group);
        if let Some(group) = group {
            self.workers[group].ray.leave(uid);
        }
        self.pod_changed(uid);
        let stop = if bound { self.chance.pod.span(self.scenario.times.pod_stop) } else { Duration::ZERO };
        self.after(stop, Happening::PodGone { uid: uid.to_owned() });
    }

    fn pod_gone(&mut self, uid: &str) {
        let Some(state) = self.pods.remove(uid) else { return };
        self.at(self.now, Happening::Scheduler(Box::new(scheduler::Event::PodDeleted { uid: uid.to_owned() })));
        if let Some(node) = &state.pod.node {
            if let Some(home) = self.nodes.get_mut(node) {
                home.pods.remove(uid);
            }
            self.tell_agent_of_pods(node);
        }
        self.tell_coordinator(fleet::Event::PodDeleted { uid: uid.to_owned() });
        if let Some(group) = state.group {
            self.worker_gone(group, uid);
        }
    }
}

/// metrics-server's default `--metric-resolution`.
const METRICS_RESOLUTION: Duration = Duration::from_secs(15);

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
