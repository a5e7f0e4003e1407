use std::collections::HashMap;

use ebb_core::classify::{Class, Missing, Utilization, Verdict};
use ebb_core::time::Instant;

use super::*;
use crate::health::Healths;
use crate::pods::{PodName, PodNames};
use crate::source::cgroup::{Cgroup, Cgroups, Memory as CgroupMemory};
use crate::source::kubepods::{Owner, Qos};
use crate::source::proc::{Memory, Stat};

const UID: &str = "8f5d2c4e-1b7a-4f0e-9c3d-5a6b7c8d9e0f";

fn seconds(number: u64) -> Duration {
    Duration::from_secs(number)
}

/// A node with one pod, as it is after so many seconds.
struct World {
    start: Monotonic,
    clock: Clock,
    /// Of its containers: id, name, when it started.
    names: Vec<(&'static str, &'static str, u64)>,
}

impl World {
    fn new() -> Self {
        let start = Monotonic::now();
        Self { start, clock: Clock::set(start, Instant::from_millis(1_000_000)), names: vec![("a", "work", 0)] }
    }

    /// `used`: CPU time of each container by its id, in milliseconds.
    fn sample(&self, at: u64, used: &[(&str, u64)]) -> Sample {
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
    assert_eq!(meter.measure(&world.sample(10, &[("a", 100)])), None, "read once: no rate yet");
    assert_eq!(meter.measure(&world.sample(10, &[("a", 100)])), None, "the same reading");
    let usage = meter.measure(&world.sample(20, &[("a", 5100)])).unwrap();
    assert_eq!(containers(&usage), [("work", 500_000_000, 4000)]);
    let pod = &usage.pods[0];
    assert_eq!((&*pod.uid, pod.at, pod.window), (UID, world.clock.begin() + seconds(20), seconds(10)));
    let node = usage.node.unwrap();
    assert_eq!((node.amount.cpu_nanocores, node.amount.memory_bytes, node.window), (500_000_000, 9000, seconds(10)));
    let usage = meter.measure(&world.sample(40, &[("a", 5100)])).unwrap();
    assert_eq!(containers(&usage), [("work", 0, 4000)], "idle is zero");
}

#[test]
fn a_pod_with_a_container_that_is_not_known_is_left_out() {
    let mut world = World::new();
    world.names.push(("b", "sidecar", 0));
    let mut meter = Meter::new(world.clock);
    meter.measure(&world.sample(10, &[("a", 0), ("b", 0)]));
    assert_eq!(containers(&meter.measure(&world.sample(20, &[("a", 10), ("b", 10)])).unwrap()).len(), 2);
    assert!(containers(&meter.measure(&world.sample(30, &[("a", 10)])).unwrap()).is_empty());
    // A counter that was set back is of another container.
    meter.measure(&world.sample(40, &[("a", 10), ("b", 10)]));
    assert!(containers(&meter.measure(&world.sample(50, &[("a", 20), ("b", 5)])).unwrap()).is_empty());
}

#[test]
fn a_container_that_started_since_is_measured_from_its_start_once_that_is_long_enough_ago() {
    let mut world = World::new();
    let mut meter = Meter::new(world.clock);
    meter.measure(&world.sample(10, &[]));
    world.names = vec![("a", "work", 16)];
    assert!(containers(&meter.measure(&world.sample(20, &[("a", 4000)])).unwrap()).is_empty());
    world.names = vec![("b", "work", 25)];
    let usage = meter.measure(&world.sample(30, &[("b", 4000)])).unwrap();
    assert_eq!(containers(&usage), [("work", 800_000_000, 4000)]);
    assert_eq!(usage.pods[0].window, seconds(5));
}
