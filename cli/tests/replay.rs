//! `ebb replay`, on a small record that is committed. `UPDATE_GOLDEN=1 cargo test --package ebb --test replay` makes it
//! anew by the rules as they are, and writes what is printed of it.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "../src/golden.rs"]
mod golden;

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use ebb_core::classify::{Class, GpuUse, Signal, Utilization};
use ebb_core::fleet::{Action, Event, Failure, Fleet, GroupState, Instance};
use ebb_core::intent::{Phase, Progress};
use ebb_core::journal::{Handled, Line};
use ebb_core::kubernetes::{Node, Pod};
use ebb_core::policy::Policy;
use ebb_core::report::Report;
use ebb_core::resources::Resources;
use ebb_core::time::Instant;

use golden::is_golden;

const CONFIG: &str = "
groups:
  - {name: cpu-workers, min: 1, max: 3, instanceType: m5.xlarge, allocatable: {cpu: '4', memory: 8Gi, pods: '10'}}
  - {name: gpu-workers, min: 0, max: 1, instanceType: g4dn.xlarge, taints: [{key: nvidia.com/gpu, effect: NoSchedule}], allocatable: {cpu: '4', memory: 8Gi, pods: '10', nvidia.com/gpu: '1'}}
scaleDown: {unneededFor: 60s}
";

/// A coordinator that records, and the little of a world that it asks for.
struct World {
    now: Instant,
    policy: Policy,
    fleet: Fleet,
    record: String,
    /// What the fleet will be told next.
    coming: VecDeque<Event>,
    instances: Vec<String>,
    sequence: u64,
    /// AWS has refused a call.
    throttled: bool,
}

impl World {
    fn new(policy: Policy) -> Self {
        let now = Instant::from_millis(1_795_575_600_000);
        let fleet = Fleet::new(policy.clone());
        let record = Line::start(now, &policy).to_line() + "\n";
        Self {
            now,
            policy,
            fleet,
            record,
            coming: VecDeque::new(),
            instances: vec!["i-1".into()],
            sequence: 0,
            throttled: false,
        }
    }

    fn tell(&mut self, event: Event) {
        self.coming.push_back(event);
        while let Some(event) = self.coming.pop_front() {
            let actions = self.fleet.handle(self.now, event.clone());
            let handled = Handled { now: self.now, event, actions: actions.clone() };
            self.record += &(Line::Handled(handled).to_line() + "\n");
            actions.into_iter().for_each(|action| self.act(action));
        }
    }

    fn act(&mut self, action: Action) {
        match &action {
            Action::Describe { groups, .. } => {
                let groups = groups.iter().map(|name| self.group(name)).collect();
                return self.coming.push_back(Event::Groups { asked: action, groups });
            }
            Action::SetDesired { .. } if !std::mem::replace(&mut self.throttled, true) => {
                return self.coming.push_back(Event::Failed { action, failure: Failure::Throttled });
            }
            Action::SetDesired { to, .. } => {
                (self.instances.len()..*to as usize).for_each(|index| self.instances.push(format!("i-{}", index + 1)));
            }
            Action::Drain { intent, .. } => {
                let node = Node { intent: Some(intent.clone()), ..self.node(2) };
                self.coming.push_back(Event::NodeApplied(node));
            }
            Action::Terminate { instance, .. } => self.instances.retain(|it| it != instance),
            _ => {}
        }
        self.coming.push_back(Event::Done(action));
    }

    fn group(&self, name: &str) -> GroupState {
        let ids = self.instances.iter().filter(|_| name == "cpu-workers");
        let instances: Vec<_> =
            ids.map(|id| Instance { id: id.clone(), live: true, waits: false, zone: None }).collect();
        GroupState { name: name.into(), max: 5, desired: instances.len() as u32, instances, ..GroupState::default() }
    }

    /// With the ticks that the fleet asks for.
    fn pass(&mut self, seconds: u64) {
        let until = self.now + Duration::from_secs(seconds);
        while let Some(at) = self.fleet.next_wakeup().filter(|at| *at <= until) {
            self.now = self.now.max(at);
            self.tell(Event::Tick);
        }
        self.now = until;
    }

    fn node(&self, number: usize) -> Node {
        Node {
            name: format!("node-{number}"),
            uid: format!("uid-{number}"),
            instance: Some(format!("i-{number}")),
            ready: true,
            allocatable: resources(&[("cpu", "4"), ("memory", "8Gi"), ("pods", "10")]),
            ..Node::default()
        }
    }

    fn report(&mut self, number: usize, class: Class) {
        self.sequence += 1;
        let utilization = Utilization { gpu: GpuUse::Absent, ..Utilization::default() };
        self.tell(Event::Report(Report {
            node: format!("node-{number}"),
            node_uid: format!("uid-{number}"),
            agent_start: Instant::from_millis(0),
            sequence: self.sequence,
            sampled_at: self.now,
            class,
            utilization,
            gpu_waste: None,
        }));
    }

    fn pod(&self, name: &str, requests: &[(&str, &str)]) -> Pod {
        let (uid, namespace) = (format!("uid-{name}"), "ml".to_owned());
        Pod {
            uid,
            namespace,
            name: name.into(),
            requests: resources(requests),
            unschedulable_since: Some(self.now),
            ..Pod::default()
        }
    }

    /// Another coordinator takes over, and is told all there is.
    fn restart(&mut self, nodes: &[usize]) {
        self.fleet = Fleet::new(self.policy.clone());
        self.record += &(Line::start(self.now, &self.policy).to_line() + "\n");
        self.tell(Event::Leading(true));
        for number in nodes {
            self.tell(Event::NodeApplied(self.node(*number)));
        }
        self.tell(Event::Synced(true));
    }
}

fn resources(texts: &[(&str, &str)]) -> Resources {
    Resources::from_texts(texts.iter().copied()).unwrap()
}

/// Two pods get a node each, though AWS throttles the first call, and end; one asks for more than there is. A coordinator restarts; a node leaves.
fn recorded() -> String {
    let policy = ebb_config::parse(CONFIG, &ebb_config::Overrides::default()).unwrap();
    let mut world = World::new(policy);
    world.tell(Event::Leading(true));
    world.tell(Event::NodeApplied(world.node(1)));
    world.tell(Event::Synced(true));
    let since = world.now;
    world.report(1, Class::Busy { since, signal: Signal::Cpu });
    world.pass(5);
    let work: Vec<_> =
        (1..=2).map(|number| world.pod(&format!("work-{number}"), &[("cpu", "3"), ("pods", "1")])).collect();
    let busy = Pod {
        node: Some("node-1".into()),
        unschedulable_since: None,
        ..world.pod("old", &[("cpu", "3"), ("pods", "1")])
    };
    for pod in work.iter().chain([&busy, &world.pod("huge", &[("cpu", "3"), ("nvidia.com/gpu", "4"), ("pods", "1")])]) {
        world.tell(Event::PodApplied(pod.clone()));
    }
    for _ in 0..4 {
        world.pass(10);
        world.report(1, Class::Busy { since, signal: Signal::Cpu });
    }
    for (number, pod) in (2..).zip(&work) {
        world.tell(Event::NodeApplied(world.node(number)));
        let bound = Pod { node: Some(format!("node-{number}")), unschedulable_since: None, ..pod.clone() };
        world.tell(Event::PodApplied(bound));
    }
    world.pass(20);
    world.tell(Event::PodDeleted { uid: "uid-work-1".into() });
    world.tell(Event::PodDeleted { uid: "uid-huge".into() });
    let idle = world.now;
    world.restart(&[1, 2, 3]);
    world.tell(Event::PodApplied(busy.clone()));
    world.tell(Event::PodApplied(Pod { node: Some("node-3".into()), unschedulable_since: None, ..work[1].clone() }));
    for _ in 0..4 {
        world.pass(20);
        world.report(2, Class::Idle { since: idle });
        world.report(3, Class::Busy { since, signal: Signal::Cpu });
    }
    // The agent drains it.
    let intent = world.record.lines().rev().find_map(|line| match Line::parse(line).unwrap() {
        Line::Handled(Handled { event: Event::Done(Action::Drain { intent, .. }), .. }) => Some(intent),
        _ => None,
    });
    let intent = intent.expect("it was asked to drain");
    let progress =
        Some(Progress { cordoned_by_us: true, ..Progress::new(&intent.id, Phase::Drained, intent.requested_at) });
    world.pass(5);
    let node = Node { unschedulable: true, drained: true, progress, intent: Some(intent), ..world.node(2) };
    world.tell(Event::NodeApplied(node));
    world.pass(10);
    world.tell(Event::NodeDeleted { name: "node-2".into(), uid: "uid-2".into() });
    world.pass(5);
    world.record
}

fn committed() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recordings/coordinator.jsonl")
}

/// The record that is committed, made anew if that was asked for.
fn record() -> String {
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        // Tests run beside each other: none may see half of it.
        let made = tempfile::NamedTempFile::new_in(committed().parent().unwrap()).unwrap();
        fs::write(made.path(), recorded()).unwrap();
        made.persist(committed()).unwrap();
    }
    fs::read_to_string(committed()).unwrap()
}

fn replay(record: &str, more: &[&str]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    // Messages name it.
    fs::write(folder.path().join("record"), record).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_ebb"));
    command.current_dir(&folder).env("COLUMNS", "100").args(["replay", "record"]).args(more).output().unwrap()
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap()
}

#[test]
fn decisions_are_shown_with_their_reasons_and_are_the_same_again() {
    let output = replay(&record(), &[]);
    assert!(output.status.success(), "{}{}", text(output.stdout), text(output.stderr));
    is_golden(&text(output.stdout), "tests/golden/replay.txt");
}

#[test]
fn what_is_decided_otherwise_is_shown_and_ends_in_failure() {
    let tampered = record()
        .replace(r#""from":1,"to":3,"#, r#""from":1,"to":2,"#)
        .replace(r#""deadline":"2026"#, r#""deadline":"2027"#);
    let output = replay(&tampered, &[]);
    assert_eq!(output.status.code(), Some(1));
    is_golden(&text(output.stdout), "tests/golden/replay-differences.txt");
    let error = text(output.stderr);
    assert!(error.contains("record is no longer decided as it was recorded, in "), "{error}");
}

#[test]
fn another_policy_shows_what_it_would_have_decided_and_succeeds() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("config.yaml");
    fs::write(&config, CONFIG.replace("max: 3", "max: 2") + "scaleUp: {pendingFor: 10s}\n").unwrap();
    let output = replay(&record(), &["--policy", config.to_str().unwrap()]);
    assert!(output.status.success(), "{}", text(output.stderr));
    is_golden(&text(output.stdout), "tests/golden/replay-policy.txt");
}

#[test]
fn programs_get_an_object_a_line() {
    let printed = text(replay(&record(), &["--output", "json"]).stdout);
    let entries: Vec<serde_json::Value> = printed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((&entries[0]["start"]["line"], &entries[0]["start"]["groups"]), (&1.into(), &2.into()));
    let reasons = entries.iter().filter_map(|entry| entry["decided"]["decisions"][0]["reason"].as_str());
    let mut seen = BTreeMap::new();
    reasons.for_each(|reason| *seen.entry(reason.to_owned()).or_insert(0) += 1);
    for (reason, times) in [("PodsPending", 2), ("Unneeded", 1), ("Drained", 1)] {
        assert_eq!(seen.get(reason), Some(&times), "{seen:?}");
    }
    let failed = entries.iter().find_map(|entry| entry["failed"]["failure"].as_str());
    assert_eq!(failed, Some("throttled"));
    assert_eq!(entries.last().unwrap()["summary"]["differences"], 0);
}

#[test]
fn a_last_line_that_was_cut_is_noted_and_passed_over() {
    let record = record();
    let cut = &record[..record.len() - 20];
    let output = replay(cut, &[]);
    assert!(output.status.success(), "{}", text(output.stderr));
    let last = cut.lines().count();
    let printed = text(output.stdout);
    assert!(printed.contains(&format!(" Line {last} is passed over: it ends in the middle")), "{printed}");
}

#[test]
fn what_is_no_record_is_refused_with_its_line() {
    let record = record();
    let lines: Vec<_> = record.lines().collect();
    let check = |text_of_record: String, expected: &str| {
        let output = replay(&text_of_record, &[]);
        let error = text(output.stderr);
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(error.contains(expected), "{error}");
    };
    check(format!("{}\nnonsense\n{}\n", lines[0], lines[1]), "understand line 2 of record");
    check(format!("{}\n\n{}\n", lines[0], r#"{"utilization": {"gpu": "absent"}}"#), "understand line 3 of record");
    check(lines[1].to_owned(), "a record begins with a `start` line");
    check(format!("{}\n{}\n{}\n", lines[0], &lines[1][..30], lines[2]), "the line before it ends in the middle");
    let later = lines[0].replace(r#""format":1"#, r#""format":2"#);
    check(later, "in format 2, and this is Ebb");
    check(String::new(), "find an event in record");
    let output = Command::new(env!("CARGO_BIN_EXE_ebb")).args(["replay", "no-such-file"]).output().unwrap();
    assert!(text(output.stderr).contains("no-such-file"));
}

#[test]
fn a_simulation_is_recorded_and_replayed() {
    let folder = tempfile::tempdir().unwrap();
    let record = folder.path().join("record");
    let mut simulate = Command::new(env!("CARGO_BIN_EXE_ebb"));
    let output = simulate.args(["simulate", "steady", "--record", record.to_str().unwrap()]).output().unwrap();
    assert!(output.status.success(), "{}", text(output.stderr));
    let output = replay(&fs::read_to_string(&record).unwrap(), &[]);
    assert!(output.status.success(), "{}{}", text(output.stdout), text(output.stderr));
}
