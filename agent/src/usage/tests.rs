use std::collections::HashMap;

use ebb_core::classify::{Class, Missing, Utilization, Verdict};
use ebb_core::time::Instant;

use super::*;
use crate::health::Healths;
use crate::pods::{PodName, PodNames};
use crate::source::cgroup::{Cgroup, Cgroups, Memory as CgroupMemory};
use crate::source::kubepods::{Owner, Qos};
use crate::source::pressure::{Pressure, Pressures};
use crate::source::proc::{Memory, Stat};

pub(super) const UID: &str = "8f5d2c4e-1b7a-4f0e-9c3d-5a6b7c8d9e0f";

const USAGE: Wanted = Wanted { usage: true, signals: false };
pub(super) const ALL: Wanted = Wanted { usage: true, signals: true };

fn seconds(number: u64) -> Duration {
    Duration::from_secs(number)
}

/// A node with one pod, as it is after so many seconds.
pub(super) struct World {
    start: Monotonic,
    pub(super) clock: Clock,
    /// Of its containers: id, name, when it started.
    names: Vec<(&'static str, &'static str, u64)>,
}

impl World {
    pub(super) fn new() -> Self {
        let start = Monotonic::now();
        Self { start, clock: Clock::set(start, Instant::from_millis(1_000_000)), names: vec![("a", "work", 0)] }
    }

    /// `used`: CPU time of each container by its id, in milliseconds.
    pub(super) fn sample(&self, at: u64, used: &[(&str, u64)]) -> Sample {
        let taken = self.start + seconds(at);
        let cgroup = |(id, millis): &(&str, u64)| Cgroup {
            path: format!("/pod/{id}").into(),
            id: None,
            owner: Some(Arc::new(Owner {
                pod_uid: UID.into(),
                container_id: Some((*id).into()),
                is_own: true,
                qos: Qos::Burstable,
            })),
            appeared: None,
            figures: Figures {
                cpu: Some(Duration::from_millis(*millis)),
                memory: CgroupMemory { total: Some(5000), inactive_file: Some(1000), ..CgroupMemory::default() },
                ..Figures::default()
            },
            schedule: None,
            cuda_launches: None,
        };
        let all = used.iter().map(cgroup).collect();
        let cgroups = Cgroups { at: taken, all, complete: true, errors: Vec::new() };
        let ticks = CpuTicks([at * 50, 0, 0, at * 150, 0, 0, 0, 0]);
        let memory = Memory {
            total: 10_000,
            available: 1000,
            free: 1000,
            working_set: 9000,
            anon: None,
            file: None,
            swap_total: None,
            swap_free: None,
        };
        let reading = Reading {
            stat: Some(Stat { node: ticks, cpus: Vec::new(), context_switches: 0 }),
            memory: Some(memory),
            cgroups: Some(Arc::new(cgroups)),
            ..Reading::empty(taken)
        };
        let ids = |(id, name, _): &(&str, &str, u64)| ((*id).to_owned(), (*name).to_owned());
        let started = |(id, _, at): &(&str, &str, u64)| ((*id).to_owned(), self.clock.begin() + seconds(*at));
        let name = PodName {
            namespace: "ml".into(),
            name: "train-0".into(),
            uid: UID.into(),
            containers: self.names.iter().map(ids).collect::<HashMap<_, _>>(),
            started: self.names.iter().map(started).collect(),
            ..PodName::default()
        };
        let at = self.clock.at(taken);
        let class = Class::Unknown { since: at, missing: Missing::History };
        Sample {
            at,
            taken,
            reading: Arc::new(reading),
            before: None,
            names: Arc::new(PodNames::of([(UID, name)])),
            allocations: None,
            utilization: Utilization::default(),
            verdict: Verdict { class, window: Utilization::default(), gpu_waste: None },
            because: String::new(),
            healths: Healths::default(),
        }
    }
}

fn containers(usage: &NodeUsage) -> Vec<(&str, u64, u64)> {
    let all = usage.pods.iter().flat_map(|pod| &pod.containers);
    all.map(|(name, amount)| (name.as_str(), amount.cpu_nanocores, amount.memory_bytes)).collect()
}

#[test]
fn use_is_the_mean_between_two_readings() {
    let world = World::new();
    let mut meter = Meter::new(world.clock);
    assert_eq!(meter.measure(&world.sample(10, &[("a", 100)]), USAGE), None, "read once: no rate yet");
    assert_eq!(meter.measure(&world.sample(10, &[("a", 100)]), USAGE), None, "the same reading");
    let usage = meter.measure(&world.sample(20, &[("a", 5100)]), USAGE).unwrap();
    assert_eq!(containers(&usage), [("work", 500_000_000, 4000)]);
    let pod = &usage.pods[0];
    assert_eq!((&*pod.uid, pod.at, pod.window), (UID, world.clock.begin() + seconds(20), seconds(10)));
    let node = usage.node.unwrap();
    assert_eq!((node.amount.cpu_nanocores, node.amount.memory_bytes, node.window), (500_000_000, 9000, seconds(10)));
    let usage = meter.measure(&world.sample(40, &[("a", 5100)]), USAGE).unwrap();
    assert_eq!(containers(&usage), [("work", 0, 4000)], "idle is zero");
}

#[test]
fn a_pod_with_a_container_that_is_not_known_is_left_out() {
    let mut world = World::new();
    world.names.push(("b", "sidecar", 0));
    let mut meter = Meter::new(world.clock);
    meter.measure(&world.sample(10, &[("a", 0), ("b", 0)]), USAGE);
    assert_eq!(containers(&meter.measure(&world.sample(20, &[("a", 10), ("b", 10)]), USAGE).unwrap()).len(), 2);
    assert!(containers(&meter.measure(&world.sample(30, &[("a", 10)]), USAGE).unwrap()).is_empty());
    // A counter that was set back is of another container.
    meter.measure(&world.sample(40, &[("a", 10), ("b", 10)]), USAGE);
    assert!(containers(&meter.measure(&world.sample(50, &[("a", 20), ("b", 5)]), USAGE).unwrap()).is_empty());
}

#[test]
fn a_container_that_started_since_is_measured_from_its_start_once_that_is_long_enough_ago() {
    let mut world = World::new();
    let mut meter = Meter::new(world.clock);
    meter.measure(&world.sample(10, &[]), USAGE);
    world.names = vec![("a", "work", 16)];
    assert!(containers(&meter.measure(&world.sample(20, &[("a", 4000)]), USAGE).unwrap()).is_empty());
    world.names = vec![("b", "work", 25)];
    let usage = meter.measure(&world.sample(30, &[("b", 4000)]), USAGE).unwrap();
    assert_eq!(containers(&usage), [("work", 800_000_000, 4000)]);
    assert_eq!(usage.pods[0].window, seconds(5));
}

/// The only pod's, after two samples, whose container used nothing.
fn signals(change: impl Fn(u64, &mut Vec<Cgroup>)) -> Option<Signals> {
    signals_of(["a", "a"], change)
}

/// `ids`: the container's in either sample.
fn signals_of(ids: [&'static str; 2], change: impl Fn(u64, &mut Vec<Cgroup>)) -> Option<Signals> {
    let mut world = World::new();
    let mut meter = Meter::new(world.clock);
    let mut usage = None;
    for (at, id) in [10, 20].into_iter().zip(ids) {
        world.names = vec![(id, "work", 0)];
        let mut sample = world.sample(at, &[(id, 0)]);
        let cgroups = sample.reading.cgroups.as_ref().unwrap();
        let mut all = cgroups.all.clone();
        let owner = Owner { container_id: None, ..Owner::clone(all[0].owner.as_ref().unwrap()) };
        all.push(Cgroup { owner: Some(Arc::new(owner)), ..all[0].clone() });
        change(at, &mut all);
        let cgroups = Cgroups { at: cgroups.at, all, complete: true, errors: Vec::new() };
        sample.reading = Arc::new(Reading { cgroups: Some(Arc::new(cgroups)), ..Reading::clone(&sample.reading) });
        usage = meter.measure(&sample, ALL);
    }
    usage.unwrap().pods[0].signals
}

#[test]
fn waiting_is_told_as_a_share_of_the_time_between_two_readings() {
    let stalled = |seconds| Pressure { some: Some(Duration::from_secs(seconds)), full: None };
    let found = signals(|at, all| {
        let wait = Duration::from_secs(if at == 10 { 100 } else { 115 });
        all[0].schedule = Some(CgroupSchedule { wait, ..CgroupSchedule::default() });
        all[1].figures.pressure = Some(Pressures { memory: stalled(at / 5), ..Pressures::default() });
    });
    let expected = Signals {
        window: seconds(10),
        run_queue_wait: Some(1500),
        memory_pressure: Permille::new(200),
        ..Signals::default()
    };
    assert_eq!(found, Some(expected), "two tasks can wait at a time");
}

#[test]
fn what_nobody_counts_is_missing() {
    assert_eq!(signals(|_, _| {}), None);
    let schedule = |millis| Some(CgroupSchedule { wait: Duration::from_millis(millis), ..CgroupSchedule::default() });
    let came = signals(|at, all| all[0].schedule = if at == 10 { None } else { schedule(10_000) });
    assert_eq!(came.unwrap().run_queue_wait, Some(1000), "it had not run before");
    let waits = |at: u64, all: &mut Vec<Cgroup>| all[0].schedule = schedule(at * 100);
    assert_eq!(signals(waits).unwrap().run_queue_wait, Some(100));
    assert_eq!(signals_of(["a", "b"], waits).unwrap().run_queue_wait, Some(200), "another container, from its start");
    let fell = signals(|at, all| all[0].schedule = schedule(100 - at));
    assert_eq!(fell, None, "a counter that was set back");
}
