//! `--once`: one sample over one interval, printed for people or for programs.

mod table;

use std::io::Write;
use std::time::Instant as Monotonic;

use anyhow::Context;
use ebb_core::classify::IdlePolicy;

use crate::args::{Args, Output};
use crate::clock::Clock;
use crate::sampler::{Input, Sampler};
use crate::snapshot::Snapshot;

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let clock = Clock::start();
    let mut sampler = Sampler::new(Input::open(args, clock)?, clock, IdlePolicy::default());
    sampler.sample(Monotonic::now());
    std::thread::sleep(args.interval);
    let snapshot = Snapshot::of(&sampler.sample(Monotonic::now()), args.node_name.as_deref());
    let text = match args.output {
        Output::Table => table::print(&snapshot),
        Output::Json => serde_json::to_string_pretty(&snapshot).context("write the sample as JSON")? + "\n",
    };
    std::io::stdout().write_all(text.as_bytes()).context("print the sample")
}
