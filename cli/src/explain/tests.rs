//! What is printed, whole, of a picture made by hand (`tests/coordinator`, as the coordinator's API gives it).
//! `UPDATE_GOLDEN=1 cargo test --package ebb explain` writes it anew.

use std::time::Duration;

use ebb_core::reason::Stay;
use ebb_core::view::{RayWorker, RayWorkerState};

use super::*;
use crate::ask::sample;
use crate::golden::is_golden;

fn explained(told: &Told, kind: Kind, name: &str, output: Output, columns: usize) -> String {
    explain(told, kind, name, output, &mut Sheet::new(columns, false)).unwrap()
}

/// At both widths that people have most.
fn check(file: &str, kind: Kind, name: &str) {
    for columns in [80, 120] {
        let printed = explained(&sample(), kind, name, Output::Text, columns);
        is_golden(&printed, &format!("tests/golden/explain-{file}-{columns}.txt"));
        let longest = printed.lines().map(|line| line.chars().count()).max();
        assert!(longest.is_some_and(|longest| longest <= columns), "{printed}");
    }
}

#[test]
fn a_pod_that_no_group_can_help_is_told_each_groups_obstacle() {
    check("pod-refused", Kind::Pod, "ml/train-gpu-0");
    check("pod-too-large", Kind::Pod, "report-20261125");
}

#[test]
fn a_pod_whose_node_comes_is_told_so() {
    check("pod-awaiting", Kind::Pod, "ml/ray-cpu-20");
    check("pod-to-place", Kind::Pod, "ml/serve-5d4f");
    check("pod-new", Kind::Pod, "batch/train-1");
}

#[test]
fn a_pod_that_runs_says_where() {
    check("pod-running", Kind::Pod, "ml/ray-cpu-5");
}

#[test]
fn a_node_says_what_it_does_and_why_it_is_still_here() {
    check("node-busy", Kind::Node, "ip-10-0-0-5");
    check("node-unneeded", Kind::Node, "ip-10-0-0-9");
    check("node-wasted", Kind::Node, "ip-10-1-0-4");
    check("node-draining", Kind::Node, "ip-10-0-0-12");
    check("node-not-ready", Kind::Node, "ip-10-0-0-14");
    check("node-of-others", Kind::Node, "ip-10-9-0-2");
}

#[test]
fn a_group_says_what_comes_and_what_is_in_the_way() {
    check("group-growing", Kind::Group, "cpu-workers");
    check("group-full", Kind::Group, "gpu-workers");
    check("group-unknown", Kind::Group, "spot-workers");
    check("group-failing", Kind::Group, "gpu-spot");
}

#[test]
fn a_coordinator_that_decides_nothing_is_said_to() {
    let mut told = sample();
    told.seen.cluster.leading = false;
    for (kind, name) in [(Kind::Pod, "ml/serve-5d4f"), (Kind::Node, "ip-10-0-0-5"), (Kind::Group, "cpu-workers")] {
        let printed = explained(&told, kind, name, Output::Text, 200);
        assert!(printed.contains("The coordinator decides nothing: another replica leads"), "{printed}");
    }
}

#[test]
fn a_node_that_a_budget_keeps_is_told_which_and_until_when() {
    let explained = |most: u32, until: Option<Instant>| {
        let mut told = sample();
        let node = told.seen.cluster.nodes.iter_mut().find(|node| node.name == "ip-10-0-0-9").unwrap();
        let budget = "{nodes: 0, schedule: 0 9 * * mon-fri, duration: 8h}".into();
        node.stays = Some(Stay::Budget { budget, group: Some("cpu-workers".into()), most, until });
        explained(&told, Kind::Node, "ip-10-0-0-9", Output::Text, 400)
    };
    let until = sample().seen.now + Duration::from_secs(3600);
    let printed = explained(0, Some(until));
    let budget =
        "the budget {nodes: 0, schedule: 0 9 * * mon-fri, duration: 8h} of group cpu-workers lets no node drain";
    assert!(printed.contains(&format!("{budget} until {until}")), "{printed}");
    assert!(
        printed.contains("it may go when that window has ended, at ") && printed.contains(", in 1h 0m\n"),
        "{printed}"
    );
    assert!(explained(2, None).contains("it may go when one of those that drain has gone\n"));
    assert!(explained(0, None).contains("it may go when the budget is changed in the configuration\n"));
}

#[test]
fn a_node_with_ray_says_what_each_worker_does_and_when_all_of_them_are_idle() {
    let now = sample().seen.now;
    let since = now.before(Duration::from_secs(720));
    let explained = |states: Vec<RayWorkerState>, idle_ray_only| {
        let mut told = sample();
        let node = told.seen.cluster.nodes.iter_mut().find(|node| node.name == "ip-10-0-0-5").unwrap();
        let workers = states.into_iter().enumerate().map(|(number, state)| {
            let (pod, cluster) = (format!("ml/train-cpu-{number}"), "ml/train".to_owned());
            RayWorker { pod, cluster, state }
        });
        (node.ray_workers, node.idle_ray_only) = (workers.collect(), idle_ray_only);
        explained(&told, Kind::Node, "ip-10-0-0-5", Output::Text, 200)
    };
    let busy = |because: &[&str]| RayWorkerState::Busy { because: because.iter().map(ToString::to_string).collect() };
    let states = vec![
        busy(&["Busy workers on node.", "Resource: CPU currently in use."]),
        busy(&["Resource: object_store_memory currently in use."]),
        RayWorkerState::Idle { since },
        RayWorkerState::Draining,
        RayWorkerState::NotJoined,
        RayWorkerState::Unknown,
    ];
    let printed = explained(states, None);
    let (_, section) = printed.split_once("Ray workers 6\n").unwrap();
    let said = section.lines().skip(1).take(6).map(|line| line.split_once("  ml/train  ").unwrap().1);
    let expected = [
        "busy: Busy workers on node, CPU currently in use",
        "nothing runs there, but it has objects that a program still refers to",
        "idle for 12m 0s",
        "draining: it goes when what runs there has ended",
        "not in Ray, which it has not joined yet or has left",
        "unknown: the head tells nothing (`ebb status` says why)",
    ];
    assert_eq!(said.collect::<Vec<_>>(), expected, "{printed}");
    assert!(!printed.contains("of Ray alone"), "{printed}");
    let printed = explained(vec![RayWorkerState::Idle { since }], Some(since));
    let held = format!("by idle workers of Ray alone, for 12m 0s, since {}", crate::text::moment(since));
    assert!(printed.contains(&held), "{printed}");
}

#[test]
fn programs_get_the_same_as_json() {
    let json = |kind, name| {
        let printed = explained(&sample(), kind, name, Output::Json, 80);
        serde_json::from_str::<serde_json::Value>(&printed).unwrap()
    };
    let pod = json(Kind::Pod, "ml/train-gpu-0");
    assert_eq!((&pod["pod"], &pod["inTheWay"][2]["group"]), (&"ml/train-gpu-0".into(), &"gpu-workers".into()));
    assert_eq!(pod["inTheWay"][2]["obstacle"]["maximum"], 2);
    assert_eq!(pod["decisions"][0]["reason"], "NoGroupFits");
    assert_eq!(json(Kind::Pod, "ml/ray-cpu-5")["node"], "ip-10-0-0-7");
    assert_eq!(json(Kind::Node, "ip-10-0-0-12")["node"]["draining"], true);
    let group = json(Kind::Group, "cpu-workers");
    assert_eq!((&group["booting"], &group["podsAwaiting"]), (&1.into(), &12.into()));
}

#[test]
fn what_is_unknown_is_answered_with_what_is_close() {
    let error =
        |kind, name| explain(&sample(), kind, name, Output::Text, &mut Sheet::new(80, false)).unwrap_err().to_string();
    assert!(error(Kind::Pod, "train-1").contains("say which of batch/train-1, default/train-1"));
    assert!(error(Kind::Node, "ip-10-0-0-6").contains("close to it: ip-10-0-0-5"));
    assert!(error(Kind::Group, "cpu-worker").contains("close to it: cpu-workers"));
}
