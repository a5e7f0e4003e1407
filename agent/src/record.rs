//! `ebb-agent record`: what the machine does, as a recording ([`ebb_core::recording`]). Each line is written at once, so
//! that whatever ends it, all that was seen is there.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::thread;
use std::time::Instant as Monotonic;

use anyhow::{Context, Result};
use ebb_core::classify::IdlePolicy;
use ebb_core::recording::Entry;

use crate::args::{Args, Record};
use crate::clock::Clock;
use crate::run::give_up_rights;
use crate::sampler::{Input, Sampler, after};

pub(crate) fn run(args: &Args, record: &Record) -> Result<()> {
    let mut output = open(&record.output)?;
    let clock = Clock::start();
    let input = Input::open(args, clock)?;
    give_up_rights(&input);
    let mut sampler = Sampler::new(input, clock, IdlePolicy::default());
    let begin = Monotonic::now();
    let mut before = sampler.sample(Monotonic::now());
    let mut next = begin;
    let mut lines = 0_u64;
    while record.lasts.is_none_or(|lasts| next - begin + args.interval <= lasts) {
        next = after(next, args.interval, Monotonic::now());
        thread::sleep(next.saturating_duration_since(Monotonic::now()));
        let sample = sampler.sample(Monotonic::now());
        let lasts = Some(sample.at.since(before.at));
        let entry = Entry { at: Some(before.at), lasts, utilization: sample.utilization };
        let line = entry.to_line() + "\n";
        output.write_all(line.as_bytes()).with_context(|| format!("write to {}", record.output.display()))?;
        before = sample;
        lines += 1;
    }
    tracing::info!(samples = lines, output = %record.output.display(), "recorded");
    Ok(())
}

fn open(path: &Path) -> Result<Box<dyn Write>> {
    if path == Path::new("-") {
        return Ok(Box::new(io::stdout()));
    }
    let file = File::create_new(path).with_context(|| format!("make {}; nothing is overwritten", path.display()))?;
    Ok(Box::new(file))
}
