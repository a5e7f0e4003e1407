//! Scenarios and faults by chance: deterministic simulation testing of the rules.
//!
//! Everything comes from the seed, so a failing seed is the whole report: the same command replays it.

use std::collections::BTreeMap;
use std::time::Duration;

use ebb_core::fleet::Fleet;
use ebb_core::instance;
use ebb_core::kubernetes::{Taint, TaintEffect, Toleration};
use ebb_core::policy::{Group, Launch, Policy};
use ebb_core::resources::{NVIDIA_GPU, Resources};
use ebb_core::time::Instant;
use ebb_core::units::Permille;

use crate::autoscaler::Autoscaler;
use crate::faults::Faults;
use crate::random::Random;
use crate::run::Run;
use crate::scenario::{Job, ScaledBy, Scenario, Span, Times, WorkerGroup};
use crate::{Options, Violation, simulate};

const HOUR: Duration = Duration::from_secs(3600);
/// Work and faults come in the first part; in the rest everything must come right. One drain at a time takes up to
/// three minutes, and a failed one its timeout. Work that takes longer has two hours after it.
const TROUBLE: Duration = Duration::from_secs(2 * 3600);
const CALM: Duration = Duration::from_secs(4 * 3600);

/// Runs a seed to its end.
pub fn run(seed: u64) -> Result<Run, Box<Violation>> {
    run_with(seed, &|policy| Box::new(Fleet::new(policy.clone())))
}

/// As [`run`], with other coordinators.
pub fn run_with(seed: u64, autoscaler: &dyn Fn(&Policy) -> Box<dyn Autoscaler>) -> Result<Run, Box<Violation>> {
    let scenario = scenario(seed);
    let faults = Some(Faults::drawn(seed, TROUBLE));
    simulate(&scenario, &Options { seed, snapshot_every: None, faults }, &|| autoscaler(&scenario.policy))
}

/// The scenario of a seed.
pub fn scenario(seed: u64) -> Scenario {
    let mut random = Random::new(seed, "scenario");
    let zones = ["us-east-1a", "us-east-1b", "us-east-1c"].map(str::to_owned);
    let taint = Taint { key: NVIDIA_GPU.to_owned(), value: "true".to_owned(), effect: TaintEffect::NoSchedule };
    let mut policy = Policy::default();
    policy.scale_up.pending_for = Duration::from_secs([0, 10, 30][random.below(3) as usize]);
    policy.scale_down.max_parallel_drains = [1, 1, 3][random.below(3) as usize];
    // Of its own, so that what earlier seeds drew stays.
    policy.scale_up.launch =
        [Launch::SetDesiredCapacity, Launch::LaunchInstances][Random::new(seed, "launch call").below(2) as usize];
    let min = random.below(3) as u32;
    let unneeded = Duration::from_secs(60 * (1 + random.below(10)));
    policy.groups.insert("cpu".to_owned(), group("m5.xlarge", min, min + 1 + random.below(8) as u32, vec![], unneeded));
    policy
        .groups
        .insert("gpu".to_owned(), group("g4dn.xlarge", 0, 1 + random.below(4) as u32, vec![taint], unneeded / 2));
    let worker_groups = vec![
        workers(&mut random, "ray-cpu", &[("cpu", 1000), ("memory", 3 << 30)], vec![]),
        workers(
            &mut random,
            "ray-gpu",
            &[("cpu", 3000), ("memory", 8 << 30), (NVIDIA_GPU, 1)],
            vec![Toleration { key: Some(NVIDIA_GPU.to_owned()), value: None, effect: None }],
        ),
    ];
    let jobs: Vec<_> = (0..1 + random.below(5)).map(|number| job(&mut random, number)).collect();
    let longest = worker_groups.iter().map(|group| work_time(group, &jobs, &policy)).max().unwrap_or_default();
    Scenario {
        name: format!("soak_{seed}"),
        about: "Drawn by chance.".to_owned(),
        starts_at: Instant::from_millis(1_767_603_600_000),
        duration: TROUBLE + CALM.max(longest + HOUR * 2),
        zones: zones[..1 + random.below(3) as usize].to_vec(),
        policy,
        worker_groups,
        jobs,
        disturbances: Vec::new(),
        times: Times::default(),
    }
}

/// How long a group's tasks take if each is slow and each node has but one worker.
fn work_time(group: &WorkerGroup, jobs: &[Job], policy: &Policy) -> Duration {
    let work: Duration =
        jobs.iter().filter(|job| job.group == group.name).map(|job| job.task_time.p95 * job.tasks).sum();
    let gpu = group.requests.has_gpu();
    let nodes = policy.groups.values().filter(|nodes| nodes.allocatable.has_gpu() == gpu).map(|nodes| nodes.max).sum();
    work / (group.slots * group.max.min(nodes))
}

fn group(instance_type: &str, min: u32, max: u32, taints: Vec<Taint>, unneeded_for: Duration) -> Group {
    Group {
        min,
        max,
        instance_type: instance_type.to_owned(),
        labels: BTreeMap::new(),
        taints,
        allocatable: instance::allocatable(instance_type).expect("the types used here are in the table"),
        unneeded_for,
        ..Group::default()
    }
}

fn workers(random: &mut Random, name: &str, requests: &[(&str, u64)], tolerations: Vec<Toleration>) -> WorkerGroup {
    let mut worker = Resources::default();
    requests.iter().for_each(|(resource, amount)| worker.set(resource, *amount));
    let scaled_by = [ScaledBy::Ray, ScaledBy::RayThroughHpa][random.below(2) as usize];
    WorkerGroup {
        name: name.to_owned(),
        requests: worker,
        tolerations,
        slots: 1 + random.below(3) as u32,
        min: 0,
        max: 1 + random.below(20) as u32,
        scaled_by,
        base_cpu: Permille::percent(3),
        base_memory: Permille::percent(20),
        max_unavailable: [None, Some(1), Some(0)][random.below(3) as usize],
    }
}

fn job(random: &mut Random, number: u64) -> Job {
    let median = Duration::from_secs(10 + random.below(200));
    let (group, tasks) = [("ray-cpu", 40), ("ray-gpu", 8)][random.below(2) as usize];
    Job {
        name: format!("job-{number}"),
        at: random.between(Duration::ZERO, TROUBLE - HOUR / 2),
        group: group.to_owned(),
        tasks: 1 + random.below(tasks) as u32,
        over: random.between(Duration::ZERO, HOUR / 4),
        task_time: Span { median, p95: median * 2 },
        cpu: Permille::percent(90),
        memory: Permille::percent(30),
    }
}
