//! How fast virtual time passes with the number of nodes: `cargo xtask bench sim`. Prints one JSON object a size.
//!
//! A burst takes a group from nine tenths of its size to all of it and back, so every rule has work: an hour of virtual
//! time, in which each node's agent samples and reports.

use std::collections::BTreeMap;
use std::time::{Duration, Instant as Wall};

use ebb_core::fleet::Fleet;
use ebb_core::instance;
use ebb_core::policy::{Group, Policy};
use ebb_core::resources::Resources;
use ebb_core::time::Instant;
use ebb_core::units::Permille;
use ebb_sim::scenario::{Job, ScaledBy, Scenario, Span, Times, WorkerGroup};
use ebb_sim::{Options, simulate};

const HOUR: Duration = Duration::from_secs(3600);

fn main() {
    for nodes in std::env::args().skip(1).map(|nodes| nodes.parse().expect("the arguments are numbers of nodes")) {
        let scenario = scenario(nodes);
        let options = Options { seed: 1, snapshot_every: None, faults: None };
        let policy = scenario.policy.clone();
        let start = Wall::now();
        let run = simulate(&scenario, &options, &|| Box::new(Fleet::new(policy.clone())));
        let seconds = start.elapsed().as_secs_f64();
        let run = run.unwrap_or_else(|violation| panic!("{nodes} nodes: {violation}"));
        let peak = run.totals.groups["workers"].peak;
        assert_eq!(peak, nodes, "the burst is meant to take the whole group");
        let happenings = run.totals.happenings;
        println!("{{\"nodes\": {nodes}, \"seconds\": {seconds:.3}, \"happenings\": {happenings}}}");
    }
}

/// Each node takes three workers.
fn scenario(nodes: u32) -> Scenario {
    let mut requests = Resources::default();
    requests.set("cpu", 1000);
    requests.set("memory", 2 << 30);
    let group = Group {
        min: nodes * 9 / 10,
        max: nodes,
        instance_type: "m5.xlarge".to_owned(),
        labels: BTreeMap::new(),
        taints: Vec::new(),
        allocatable: instance::allocatable("m5.xlarge").expect("the type is in the table"),
        unneeded_for: Duration::from_secs(600),
        ..Group::default()
    };
    Scenario {
        name: format!("scale_{nodes}"),
        about: "A burst over a tenth of the nodes.".to_owned(),
        starts_at: Instant::from_millis(1_767_603_600_000),
        duration: HOUR,
        zones: vec!["a".to_owned(), "b".to_owned(), "c".to_owned()],
        policy: Policy { groups: BTreeMap::from([("workers".to_owned(), group)]), ..Policy::default() },
        worker_groups: vec![WorkerGroup {
            name: "ray".to_owned(),
            requests,
            tolerations: Vec::new(),
            slots: 1,
            min: 0,
            max: nodes * 3,
            scaled_by: ScaledBy::Ray,
            base_cpu: Permille::percent(3),
            base_memory: Permille::percent(20),
            max_unavailable: None,
        }],
        jobs: vec![Job {
            name: "burst".to_owned(),
            at: Duration::from_secs(60),
            group: "ray".to_owned(),
            tasks: nodes * 6,
            over: Duration::ZERO,
            task_time: Span::seconds(400, 700),
            cpu: Permille::percent(90),
            memory: Permille::percent(30),
        }],
        disturbances: Vec::new(),
        times: Times::default(),
    }
}
