//! `ebb top`: a node, or the whole cluster, live in the terminal.

mod app;
mod cluster;
mod draw;
mod events;
mod history;
mod link;
mod list;
mod node;
mod paint;
mod plain;
mod screen;
#[cfg(test)]
mod tests;
mod watched;

use std::io::{Write, stdout};
use std::time::Duration;

use anyhow::{Context, Result};
use ebb_core::time::parse_duration_within;

use crate::client::Target;
use crate::{terminal, text};

/// Watches a node or the cluster, live in the terminal.
///
/// Give it an agent's address for a node, or the coordinator's for the cluster; it finds out by itself which it is.
/// Reach them with `kubectl -n ebb port-forward POD 9482` or `kubectl -n ebb port-forward deploy/ebb-coordinator 9484`.
/// It only reads.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Where an agent or the coordinator listens
    #[arg(default_value = "http://127.0.0.1:9482")]
    url: Target,
    /// How often to ask an agent
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = parse_every)]
    interval: Duration,
    /// Prints one frame as text and ends
    #[arg(long)]
    once: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    if !args.once {
        return screen::show(args.url.clone(), args.interval);
    }
    let buffer = plain::once(&args.url, args.interval, terminal::columns())?;
    stdout().write_all(plain::text(&buffer, terminal::takes_colours()).as_bytes()).context("print the frame")
}

fn parse_every(text: &str) -> Result<Duration, String> {
    parse_duration_within(text, Duration::from_millis(100)..=Duration::from_secs(60), "100ms to 60s")
}
