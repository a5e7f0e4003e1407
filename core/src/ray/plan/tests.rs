use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::ray::{Node, NodeState, WorkerGroup};

fn amounts(all: &[(&str, f64)]) -> Amounts {
    let mut amounts = Amounts::default();
    for (name, amount) in all {
        assert!(amounts.set(name, *amount), "{amount}");
    }
    amounts
}

fn group(name: &str, resources: &[(&str, f64)], min: u32, max: u32) -> WorkerGroup {
    let (pod, labels) = (crate::kubernetes::Pod::default(), BTreeMap::new());
    WorkerGroup { name: name.into(), pod, labels, resources: amounts(resources), min, max }
}

/// CPU workers of four cores, ten at most; GPU workers of eight cores and a GPU, three at most.
fn cluster() -> Cluster {
    let worker_groups = vec![group("gpu", &[("CPU", 8.0), ("GPU", 1.0)], 0, 3), group("cpu", &[("CPU", 4.0)], 0, 10)];
    Cluster { address: "head:6379".into(), worker_groups, ..Cluster::default() }
}

fn node(group: &str, instance: &str, total: &[(&str, f64)], available: &[(&str, f64)]) -> Node {
    Node {
        ip: String::new(),
        instance: instance.into(),
        group: group.into(),
        state: NodeState::Running,
        total: amounts(total),
        available: amounts(available),
        activity: Vec::new(),
    }
}

fn head() -> (String, Node) {
    let total = [("CPU", 4.0), ("node:__internal_head__", 1.0)];
    ("head".into(), node("", "", &total, &[("node:__internal_head__", 1.0)]))
}

fn reading(pending: &[(&[(&str, f64)], u32)]) -> Reading {
    let pending = pending.iter().map(|(shape, count)| (amounts(shape), *count)).collect();
    Reading { nodes: [head()].into(), pending, ..Reading::default() }
}

/// Of `gpu` and `cpu`, with these pods there.
fn planned(reading: &Reading, pods: [&[&'static str]; 2]) -> Vec<u32> {
    plan(&cluster(), reading, &workers(&cluster(), pods), |_| false)
}

fn workers(cluster: &Cluster, pods: [&[&'static str]; 2]) -> Vec<Workers<'static>> {
    let workers = cluster.worker_groups.iter().zip(pods).map(|(group, names)| Workers {
        names: names.iter().copied().collect(),
        min: group.min,
        max: group.max,
    });
    workers.collect()
}

#[test]
fn what_waits_becomes_workers_of_the_group_that_it_leaves_the_least_of() {
    let check = |pending: &[(&[(&str, f64)], u32)], expected: [u32; 2]| {
        assert_eq!(planned(&reading(pending), [&[], &[]]), expected, "{pending:?}");
    };
    check(&[], [0, 0]);
    check(&[(&[("CPU", 1.0)], 1)], [0, 1]);
    check(&[(&[("CPU", 1.0)], 9)], [0, 3]);
    check(&[(&[("CPU", 0.5)], 8)], [0, 1]);
    check(&[(&[("GPU", 0.25)], 5)], [2, 0]);
    // Only a GPU worker is large enough, and small tasks go along on it.
    check(&[(&[("CPU", 5.0)], 1), (&[("CPU", 3.0)], 1)], [1, 0]);
    // Nobody has it.
    check(&[(&[("TPU", 1.0)], 4)], [0, 0]);
    // Never above the maximum, and what CPU workers cannot take GPU workers can.
    check(&[(&[("CPU", 4.0)], 13)], [2, 10]);
    check(&[(&[("CPU", 4.0)], 1_000_000)], [3, 10]);
    // Nothing is asked of a worker, and the head is there.
    check(&[(&[], 3)], [0, 0]);
}

#[test]
fn what_is_free_or_coming_is_used_first() {
    let tasks = |count| reading(&[(&[("CPU", 1.0)], count)]);
    // Two pods that are no nodes of Ray's yet are eight cores.
    assert_eq!(planned(&tasks(9), [&[], &["a", "b"]]), [0, 1]);
    let mut joined = tasks(9);
    joined.nodes.insert("n1".into(), node("cpu", "a", &[("CPU", 4.0)], &[("CPU", 1.0)]));
    assert_eq!(planned(&joined, [&[], &["a", "b"]]), [0, 1], "one free core, and four that come");
    assert_eq!(planned(&tasks(4), [&[], &["a"]]), [0, 0]);
    // Its nodes do not say of which pod they are, nor of which group.
    joined.nodes.get_mut("n1").unwrap().instance.clear();
    assert_eq!(planned(&joined, [&[], &["a", "b"]]), [0, 1]);
    joined.nodes.get_mut("n1").unwrap().group.clear();
    assert_eq!(planned(&joined, [&[], &["a", "b"]]), [0, 1]);
    // One that drains takes nothing; one that is dead is as if it were not, and its pod comes again.
    joined.nodes.get_mut("n1").unwrap().state = NodeState::Draining;
    assert_eq!(planned(&joined, [&[], &["a", "b"]]), [0, 2]);
    joined.nodes.get_mut("n1").unwrap().state = NodeState::Dead;
    assert_eq!(planned(&joined, [&[], &["a", "b"]]), [0, 1]);
}

#[test]
fn news_leads_to_one_worker_until_its_number_is_known() {
    let tasks = reading(&[(&[("CPU", 2.0)], 20), (&[("GPU", 1.0)], 2)]);
    let news = amounts(&[("CPU", 2.0)]);
    assert_eq!(plan(&cluster(), &tasks, &workers(&cluster(), [&[], &[]]), |shape| *shape == news), [2, 1]);
    assert_eq!(planned(&tasks, [&[], &[]]), [2, 6], "eight of them go to the GPU workers' other cores");
}

#[test]
fn a_placement_group_finds_room_as_a_whole_or_not_at_all() {
    let check = |togetherness, bundles: &[&[(&str, f64)]], expected: [u32; 2]| {
        let bundles = bundles.iter().map(|bundle| amounts(bundle)).collect();
        let reading = Reading { gangs: vec![Gang { bundles, togetherness }], ..reading(&[]) };
        assert_eq!(planned(&reading, [&[], &[]]), expected, "{reading:?}");
    };
    let one: &[(&str, f64)] = &[("CPU", 1.0)];
    let four: &[(&str, f64)] = &[("CPU", 4.0)];
    check(Togetherness::Any, &[one, one, one], [0, 1]);
    check(Togetherness::Apart, &[one, one, one], [0, 3]);
    check(Togetherness::OneWorker, &[four, one], [1, 0]);
    check(Togetherness::OneWorker, &[four, four, one], [0, 0]);
    let gpu: &[(&str, f64)] = &[("GPU", 1.0)];
    check(Togetherness::Any, &[gpu; 3], [3, 0]);
    check(Togetherness::Any, &[gpu; 4], [0, 0]);
    check(Togetherness::Apart, &[gpu, gpu, gpu, gpu], [0, 0]);
}

#[test]
fn a_floor_holds_whether_or_not_it_is_used_and_the_least_of_a_group_always() {
    let mut reading = reading(&[]);
    reading.nodes.insert("n1".into(), node("cpu", "a", &[("CPU", 4.0)], &[]));
    reading.floor = [(amounts(&[("CPU", 4.0)]), 4)].into();
    assert_eq!(planned(&reading, [&[], &["a"]]), [0, 2], "the head, the worker, and two more");
    // The two that come for it take what waits as well.
    reading.pending = [(amounts(&[("CPU", 1.0)]), 9)].into();
    assert_eq!(planned(&reading, [&[], &["a"]]), [0, 3]);

    let mut least = cluster();
    least.worker_groups[1].min = 3;
    let none = super::tests::reading(&[]);
    assert_eq!(plan(&least, &none, &workers(&least, [&[], &["a"]]), |_| false), [0, 2]);
    assert_eq!(plan(&least, &none, &workers(&least, [&[], &["a", "b", "c", "d"]]), |_| false), [0, 0]);
}

proptest! {
    /// The pods that Ray asks for appear one by one, join one by one, and take what waits: what is there and what is
    /// planned is the same all the way.
    #[test]
    fn pods_that_appear_are_never_counted_twice(tasks in 1..60_u32, cores in 1..5_u32, waits in 0..12_usize) {
        const NAMES: [&str; 10] = ["p0", "p1", "p2", "p3", "p4", "p5", "p6", "p7", "p8", "p9"];
        let mut cluster = cluster();
        cluster.worker_groups.remove(0);
        let shape = amounts(&[("CPU", f64::from(cores))]);
        let per_worker = 4 / cores;
        let wanted = tasks.div_ceil(per_worker).min(10);
        let mut reading = Reading { nodes: [head()].into(), pending: [(shape.clone(), tasks)].into(), ..Reading::default() };
        let planned = |reading: &Reading, pods: &[&'static str]| {
            plan(&cluster, reading, &workers(&cluster, [pods, &[]]), |_| false)[0]
        };
        let mut left = tasks;
        for there in 0..=wanted as usize {
            // Some of the pods have joined; those that did took their work.
            prop_assert_eq!(planned(&reading, &NAMES[..there]), wanted - u32::try_from(there).unwrap());
            if there > waits {
                let name = NAMES[there - waits - 1];
                let took = per_worker.min(left);
                let available = f64::from(4 - took * cores);
                let worker = node("cpu", name, &[("CPU", 4.0)], &[("CPU", available)]);
                reading.nodes.insert(name.into(), worker);
                left -= took;
                if left == 0 {
                    reading.pending.remove(&shape);
                } else {
                    reading.pending.insert(shape.clone(), left);
                }
                prop_assert_eq!(planned(&reading, &NAMES[..there]), wanted - u32::try_from(there).unwrap());
            }
        }
    }

    /// Of one kind. More of another may need fewer workers in all: one with a GPU has room for tasks without.
    #[test]
    fn more_of_the_same_never_leads_to_fewer_workers(
        cpu in 0..5_u32, gpu in 0..2_u32, count in 0..40_u32, more in 1..20_u32,
    ) {
        let shape = amounts(&[("CPU", f64::from(cpu)), ("GPU", f64::from(gpu))]);
        let of = |count| {
            let pending = [(shape.clone(), count)].into();
            planned(&Reading { nodes: [head()].into(), pending, ..Reading::default() }, [&[], &[]])
        };
        let (before, after) = (of(count), of(count + more));
        prop_assert!(before.iter().zip(&after).all(|(before, after)| before <= after), "{before:?} {after:?}");
    }

    #[test]
    fn no_group_gets_more_than_its_maximum(
        shapes in prop::collection::vec((0..5_u32, 0..2_u32, 0..60_u32), 0..5),
    ) {
        let amount = |(cpu, gpu)| amounts(&[("CPU", f64::from(cpu)), ("GPU", f64::from(gpu))]);
        let pending = shapes.into_iter().map(|(cpu, gpu, count)| (amount((cpu, gpu)), count)).collect();
        let planned = planned(&Reading { nodes: [head()].into(), pending, ..Reading::default() }, [&[], &[]]);
        prop_assert!(planned[0] <= 3 && planned[1] <= 10, "{planned:?}");
    }
}
