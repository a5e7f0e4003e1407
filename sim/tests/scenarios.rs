//! Every scenario's run, whole: a change of a rule shows up as a change of these files, to be read before it is taken.
//! `UPDATE_GOLDEN=1 cargo test --package ebb-sim --test scenarios` writes them anew.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use ebb_core::fleet::Fleet;
use ebb_core::time::format_duration;
use ebb_sim::run::{Run, Waits, log};
use ebb_sim::{Options, scenarios, simulate};

#[test]
fn every_scenario_runs_as_written() {
    let mut changed = Vec::new();
    for name in scenarios::names() {
        let scenario = scenarios::named(name).unwrap();
        let options = Options { seed: 1, snapshot_every: None, faults: None };
        let policy = scenario.policy.clone();
        let run = simulate(&scenario, &options, &|| Box::new(Fleet::new(policy.clone())));
        let run = run.unwrap_or_else(|violation| panic!("{name}: {violation}"));
        let text = format!("{}\n{}", log(run.started, &run.steps), totals(&run));
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/{name}.txt"));
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&path, text).unwrap();
        } else if fs::read_to_string(&path).unwrap_or_default() != text {
            let actual = path.with_extension("actual.txt");
            fs::write(&actual, text).unwrap();
            changed.push(format!("{} is not as in {}", actual.display(), path.display()));
        }
    }
    assert!(changed.is_empty(), "{}", changed.join("\n"));
}

fn totals(run: &Run) -> String {
    let totals = &run.totals;
    let dollars = |dollars: Option<ebb_core::price::Dollars>| dollars.map_or("unknown".to_owned(), |it| it.to_string());
    let mut text = format!(
        "cost {} for {} node-seconds, {} of them idle\n",
        dollars(totals.cost.total),
        totals.cost.node_seconds,
        totals.idle_node_seconds
    );
    for (name, group) in &totals.groups {
        let (cost, fixed) = (dollars(group.cost.total), dollars(group.fixed_size));
        let (launched, terminated) = (group.launched, group.terminated);
        writeln!(
            text,
            "{name}: peak {}, {launched} launched, {terminated} terminated, {cost}, fixed size {fixed}",
            group.peak
        )
        .unwrap();
    }
    let mut waits = |what: &str, waits: Waits| {
        let [mean, p95, max] = [waits.mean, waits.p95, waits.max].map(format_duration);
        writeln!(text, "{what}: {}, mean {mean}, p95 {p95}, max {max}", waits.count).unwrap();
    };
    waits("tasks waited", totals.task_wait);
    waits("pods waited", totals.pod_wait);
    writeln!(
        text,
        "{} tasks, {} lost; {} evictions; {} pods waiting at the end",
        totals.tasks_submitted, totals.tasks_lost, totals.evictions, totals.pods_waiting
    )
    .unwrap();
    text
}
