//! `ebb demo`: the whole flow, seen, on a simulated cluster.

use std::io::{self, IsTerminal, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use ebb_core::fleet::Fleet;
use ebb_sim::autoscaler::{Autoscaler, ClusterAutoscalerLike};
use ebb_sim::run::Run;
use ebb_sim::scenario::Scenario;
use ebb_sim::{Options, scenarios, simulate};

use crate::{picture, serve, show, tables};

/// Between two pictures of the run.
pub(crate) const SNAPSHOT_EVERY: Duration = Duration::from_secs(5);

/// Shows one burst through all four levels, up and down again, on a simulated cluster.
///
/// The rules are the coordinator's and the agent's own; Ray, the HPA, the scheduler, AWS and the nodes are models. It
/// prints what each level decides and why, how long things took beside the flow's typical durations, and what it cost
/// beside other ways to run the same work; then it draws the flow's seven stages. No cluster, no cloud, no root.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The folder for the pictures.
    #[arg(long, default_value = "ebb-demo")]
    out: PathBuf,
    /// What chance comes from; the same seed makes the same run.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How long the show in the terminal takes; none where the output is no terminal.
    #[arg(long, value_name = "SECONDS", default_value_t = 4)]
    seconds: u64,
    /// Then serves the live page and replays the run on it, until interrupted.
    #[arg(long, value_name = "ADDRESS", num_args = 0..=1, default_missing_value = "127.0.0.1:8080")]
    serve: Option<SocketAddr>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let scenario = scenarios::named("bursty_training").context("the demo's scenario comes with Ebb")?;
    let mut out = io::stdout().lock();
    let run = simulated(&scenario, args.seed, Some(SNAPSHOT_EVERY), ours(&scenario))?;
    let terminal = out.is_terminal();
    let colour = terminal && std::env::var_os("NO_COLOR").is_none();
    show::play(&mut out, &scenario, &run, colour, terminal.then(|| Duration::from_secs(args.seconds)))?;
    write!(out, "{}", tables::timing(&run))?;
    write!(out, "{}", tables::cost(&scenario, &run, &others(&scenario, args.seed)?))?;
    out.flush()?;
    let files = picture::draw(&scenario, &run, &args.out)?;
    writeln!(
        out,
        "\nPictures of the seven stages, a film and an animation: {} files in {}",
        files.len(),
        args.out.display()
    )?;
    drop(out);
    match args.serve {
        Some(address) => serve::run(address, run),
        None => Ok(()),
    }
}

/// The same work by other rules, for comparison.
pub(crate) fn others(scenario: &Scenario, seed: u64) -> Result<Vec<(&'static str, Run)>> {
    let mut bold = scenario.clone();
    bold.policy.scale_up.pending_for = Duration::ZERO;
    bold.policy.scale_down.max_parallel_drains = 10;
    Ok(vec![
        ("Ebb, at once and ten drains at a time", simulated(&bold, seed, None, ours(&bold))?),
        ("Rules like Cluster Autoscaler's", simulated(scenario, seed, None, cluster_autoscaler(scenario))?),
    ])
}

pub(crate) type Maker = Box<dyn Fn() -> Box<dyn Autoscaler>>;

pub(crate) fn ours(scenario: &Scenario) -> Maker {
    let policy = scenario.policy.clone();
    Box::new(move || Box::new(Fleet::new(policy.clone())))
}

pub(crate) fn cluster_autoscaler(scenario: &Scenario) -> Maker {
    let policy = scenario.policy.clone();
    Box::new(move || Box::new(ClusterAutoscalerLike::new(policy.clone())))
}

pub(crate) fn simulated(scenario: &Scenario, seed: u64, snapshot_every: Option<Duration>, maker: Maker) -> Result<Run> {
    let options = Options { seed, snapshot_every, faults: None };
    simulate(scenario, &options, &*maker).map_err(|violation| anyhow::anyhow!("{violation}")).with_context(|| {
        format!("simulate {} with seed {seed}: a rule of Ebb did not hold; please report it", scenario.name)
    })
}
