//! `ebb explain`: one pod, node or group: what happens with it, why, and what would change that.

mod group;
mod name;
mod node;
mod pod;
mod ray;
#[cfg(test)]
mod tests;

use std::io::{Write, stdout};

use anyhow::{Context, Result};
use clap::ValueEnum;
use ebb_core::decision::Decision;
use ebb_core::time::Instant;
use ebb_core::view::Cluster;

use crate::ask::{self, Output, Told, ask};
use crate::sheet::Sheet;
use crate::status::{last_steps, standing};
use crate::terminal;

/// Of the decisions about it.
const SHOWN: usize = 10;

/// Says of a pod, node or group what happens with it, why, and what would change that.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// What it is
    #[arg(value_enum)]
    kind: Kind,
    /// Its name; a pod's with its namespace, as in `default/train-1`, unless it is the only one of that name
    name: String,
    #[command(flatten)]
    ask: ask::Args,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    #[value(alias = "pods", alias = "po")]
    Pod,
    #[value(alias = "nodes", alias = "no")]
    Node,
    #[value(alias = "groups", alias = "asg")]
    Group,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let told = ask(&args.ask.coordinator)?;
    let mut sheet = Sheet::new(terminal::columns().into(), terminal::takes_colours());
    let printed = explain(&told, args.kind, &args.name, args.ask.output, &mut sheet)?;
    stdout().write_all(printed.as_bytes()).context("print it")
}

fn explain(told: &Told, kind: Kind, name: &str, output: Output, sheet: &mut Sheet) -> Result<String> {
    match kind {
        Kind::Pod => pod::explain(told, name, output, sheet),
        Kind::Node => node::explain(told, name, output, sheet),
        Kind::Group => group::explain(told, name, output, sheet),
    }
}

/// When what is decided about it is nothing at all.
fn warn(cluster: &Cluster, sheet: &mut Sheet) {
    if !(cluster.leading && cluster.synced) {
        sheet.line(&format!("{}.", standing(cluster)));
    }
}

fn decisions(now: Instant, about: &[&Decision], sheet: &mut Sheet) {
    sheet.title("Decisions");
    let about: Vec<_> = about.iter().copied().cloned().collect();
    let steps = last_steps(&about);
    if steps.is_empty() {
        sheet.line("none about it, as far as this coordinator remembers");
    }
    sheet.steps(now, &steps[..steps.len().min(SHOWN)]);
    if steps.len() > SHOWN {
        sheet.line(&format!("and {} more before", steps.len() - SHOWN));
    }
}
