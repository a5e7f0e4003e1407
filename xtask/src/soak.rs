//! `cargo xtask soak`: the rules in simulated clusters under faults by chance, for as long as you like.

use std::process::Command;

use anyhow::Result;

use crate::process::{root, run as run_command};

/// Simulates clusters under faults, a seed each, in a release build; without arguments 2000 seeds.
///
/// `--minutes N` runs for that long, `--seed N` replays one with its whole log, `-- --help` says the rest. A seed that
/// fails is printed and its log kept under target/soak.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// What the soak itself is told.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let mut cargo = Command::new("cargo");
    cargo.args(["run", "--quiet", "--release", "--package", "ebb-sim", "--example", "soak", "--"]);
    run_command(cargo.args(&args.arguments).current_dir(root()))
}
