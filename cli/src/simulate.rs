//! `ebb simulate`: one's own numbers, tried before they touch a cluster.

use std::cell::RefCell;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context, Result};
use clap::ValueEnum;
use ebb_config::Error;
use ebb_sim::autoscaler::Recorded;
use ebb_sim::run::{Run, log};
use ebb_sim::scenario::Scenario;
use ebb_sim::{file, scenarios};

use crate::demo::{Maker, SNAPSHOT_EVERY, others, ours, simulated};
use crate::tables;

/// Runs a scenario in virtual time: what is decided and why, how long it takes, what it costs.
///
/// A scenario holds the coordinator's configuration beside the work, so that thresholds can be tried on it.
/// docs/scenarios.md describes the file; without one, the scenarios that come with Ebb are listed.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// A scenario's file, or the name of one that comes with Ebb.
    scenario: Option<PathBuf>,
    /// What chance comes from; the same seed makes the same run.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// `table`: every step, the timing and the cost; `json`: the whole run; `csv`: how it was, every five seconds.
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
    /// Also writes what the coordinator was told and decided to this file, for `ebb replay`.
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
    Csv,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let mut out = io::stdout().lock();
    let Some(name) = &args.scenario else {
        for name in scenarios::names() {
            let about = scenarios::named(name).map(|scenario| scenario.about).unwrap_or_default();
            writeln!(out, "{name}\n    {about}")?;
        }
        return Ok(());
    };
    let scenario = read(name)?;
    let snapshots = (args.output != Output::Table).then_some(SNAPSHOT_EVERY);
    let run = match &args.record {
        Some(path) => {
            let record = Rc::new(RefCell::new(String::new()));
            let run = simulated(&scenario, args.seed, snapshots, recorded(&scenario, &record))?;
            fs::write(path, &*record.borrow()).with_context(|| format!("write the record {}", path.display()))?;
            run
        }
        None => simulated(&scenario, args.seed, snapshots, ours(&scenario))?,
    };
    match args.output {
        Output::Json => {
            serde_json::to_writer(&mut out, &run).context("write the run as JSON")?;
            writeln!(out)?;
        }
        Output::Csv => write!(out, "{}", csv(&scenario, &run))?,
        Output::Table => {
            let others = others(&scenario, args.seed)?;
            writeln!(out, "{}, seed {}: {}\n", scenario.name, args.seed, scenario.about)?;
            write!(out, "{}{}", log(run.started, &run.steps), tables::timing(&run))?;
            write!(out, "{}", tables::cost(&scenario, &run, &others))?;
        }
    }
    Ok(())
}

fn recorded(scenario: &Scenario, record: &Rc<RefCell<String>>) -> Maker {
    let (policy, record) = (scenario.policy.clone(), record.clone());
    Box::new(move || Box::new(Recorded::new(policy.clone(), record.clone())))
}

fn read(path: &Path) -> Result<Scenario> {
    if let Some(scenario) = path.to_str().and_then(scenarios::named) {
        return Ok(scenario);
    }
    let text = fs::read_to_string(path).with_context(|| {
        let names: Vec<_> = scenarios::names().collect();
        format!("read {}; with Ebb come {}", path.display(), names.join(", "))
    })?;
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    Ok(file::parse(&name, &text).map_err(|problems| Error::Invalid { path: path.to_owned(), problems })?)
}

/// One line a snapshot. Names of groups are in the header; none of them holds a comma, AWS and Kubernetes see to that.
fn csv(scenario: &Scenario, run: &Run) -> String {
    let mut header = vec!["seconds".to_owned(), "tasks_queued".to_owned(), "tasks_running".to_owned()];
    header.extend(scenario.worker_groups.iter().map(|group| format!("{}_workers", group.name)));
    header.push("pods_waiting".to_owned());
    for group in scenario.policy.groups.keys() {
        header.extend(["desired", "instances"].map(|what| format!("{group}_{what}")));
    }
    header.extend(["nodes_ready".to_owned(), "node_seconds".to_owned(), "dollars".to_owned()]);
    let mut text = header.join(",") + "\n";
    for snapshot in &run.snapshots {
        let sum = |of: fn(&ebb_core::view::WorkerGroup) -> u32| snapshot.ray.iter().map(of).sum::<u32>().to_string();
        let mut row = vec![snapshot.now.since(run.started).as_secs().to_string()];
        row.extend([sum(|ray| ray.tasks_queued), sum(|ray| ray.tasks_running)]);
        row.extend(snapshot.ray.iter().map(|ray| ray.workers.to_string()));
        row.push(snapshot.cluster.waiting.len().to_string());
        for group in &snapshot.cluster.groups {
            // Not known is empty, not zero.
            row.extend([
                group.desired.map_or(String::new(), |desired| desired.to_string()),
                group.instances.to_string(),
            ]);
        }
        row.push(snapshot.cluster.nodes.iter().filter(|node| node.ready).count().to_string());
        row.push(snapshot.cost.node_seconds.to_string());
        let dollars =
            |it: ebb_core::price::Dollars| format!("{}.{:06}", it.micros() / 1_000_000, it.micros() % 1_000_000);
        row.push(snapshot.cost.total.map_or(String::new(), dollars));
        text += &(row.join(",") + "\n");
    }
    text
}
