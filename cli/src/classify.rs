//! `ebb classify`: what a recorded node would have been called, and why; to try thresholds on what really happened.

use std::fmt;
use std::io::{self, BufRead, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use ebb_config::Overrides;
use ebb_core::classify::{Class, Classifier, IdlePolicy, Utilization, Verdict};
use ebb_core::recording::Entry;
use ebb_core::time::{Instant, format_duration, format_seconds, parse_duration};
use serde::Serialize;

use crate::input;
use crate::lines::{Output, write_json};

/// Judges a recording of a node, made by `ebb-agent record`: when it was busy, idle or unknown, and by which figures.
///
/// The rules are the agent's own; with --config, under the thresholds of your configuration.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The recording; `-`: the standard input.
    recording: PathBuf,
    /// The coordinator's configuration, whose `idle` section holds the thresholds.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// How often a line that lasts longer counts as a sample.
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = parse_interval)]
    interval: Duration,
    /// `table`: each change and a summary; `json`: each change, one a line.
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
}

fn parse_interval(text: &str) -> Result<Duration, String> {
    let interval = parse_duration(text).map_err(|error| error.to_string())?;
    if interval.is_zero() { Err("expected a duration above zero".into()) } else { Ok(interval) }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let policy = match &args.config {
        Some(path) => ebb_config::read(path, &Overrides::default())?.idle,
        None => IdlePolicy::default(),
    };
    let mut out = io::BufWriter::new(io::stdout().lock());
    let mut show = |change: &Change<'_>| match args.output {
        Output::Table => writeln!(out, "{change}").context("print a change"),
        Output::Json => write_json(&mut out, change),
    };
    let times = judge(input::open(&args.recording)?, &args.recording, policy, args.interval, &mut show)?;
    if args.output == Output::Table {
        write!(out, "\n{times}").context("print the summary")?;
    }
    out.flush().context("print to the end")
}

/// The class, or the waste, is another one from here on.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Change<'a> {
    at: Instant,
    /// Since the recording's beginning.
    #[serde(skip)]
    elapsed: Duration,
    class: Class,
    because: &'a str,
    window: Utilization,
    #[serde(skip_serializing_if = "Option::is_none")]
    gpu_waste: Option<Instant>,
}

impl fmt::Display for Change<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>12}  {:<8} {}", format_seconds(self.elapsed), self.class.name(), self.because)
    }
}

/// How long the node was what.
#[derive(Default)]
struct Times {
    busy: Duration,
    idle: Duration,
    unknown: Duration,
    gpu_waste: Duration,
    longest_idle: Duration,
    changes: u64,
}

impl Times {
    fn add(&mut self, verdict: &Verdict, now: Instant, lasts: Duration) {
        let of = match verdict.class {
            Class::Busy { .. } => &mut self.busy,
            Class::Unknown { .. } => &mut self.unknown,
            Class::Idle { since } => {
                self.longest_idle = self.longest_idle.max(now.since(since) + lasts);
                &mut self.idle
            }
        };
        *of += lasts;
        if verdict.gpu_waste.is_some() {
            self.gpu_waste += lasts;
        }
    }
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = self.busy + self.idle + self.unknown;
        let share = |part: Duration| 100.0 * part.as_secs_f64() / all.as_secs_f64();
        writeln!(f, "{} in all, {} changes", format_duration(all), self.changes.saturating_sub(1))?;
        for (name, time) in [("busy", self.busy), ("idle", self.idle), ("unknown", self.unknown)] {
            writeln!(f, "{name:>12}  {:>5.1} %  {}", share(time), format_seconds(time))?;
        }
        writeln!(f, "{:>12}           {}", "longest idle", format_seconds(self.longest_idle))?;
        if !self.gpu_waste.is_zero() {
            let (share, time) = (share(self.gpu_waste), format_seconds(self.gpu_waste));
            writeln!(f, "{:>12}  {share:>5.1} %  {time} busy while no GPU worked", "GPU waste")?;
        }
        Ok(())
    }
}

fn judge(
    mut recording: impl BufRead,
    path: &Path,
    policy: IdlePolicy,
    interval: Duration,
    show: &mut dyn FnMut(&Change<'_>) -> Result<()>,
) -> Result<Times> {
    let mut classifier = Classifier::new(policy);
    let mut times = Times::default();
    let mut last = None;
    // Without times of its own a recording begins at the epoch.
    let (mut now, mut elapsed) = (Instant::from_millis(0), Duration::ZERO);
    let mut line = String::new();
    let mut number = 0_u64;
    loop {
        line.clear();
        if recording.read_line(&mut line).with_context(|| format!("read {}", path.display()))? == 0 {
            break;
        }
        number += 1;
        let Some(entry) = Entry::parse(&line) else { continue };
        let entry = entry.with_context(|| format!("understand line {number} of {}", path.display()))?;
        now = entry.at.unwrap_or(now);
        let mut rest = entry.lasts.unwrap_or(interval);
        while !rest.is_zero() {
            let lasts = rest.min(interval);
            rest -= lasts;
            // A sample says what was until it was taken.
            now = now + lasts;
            elapsed += lasts;
            let verdict = classifier.observe(now, entry.utilization);
            times.add(&verdict, now, lasts);
            let found = (verdict.class.name(), verdict.gpu_waste.is_some());
            if last.replace(found) != Some(found) {
                times.changes += 1;
                let because = verdict.because(classifier.policy()).to_string();
                let Verdict { class, window, gpu_waste } = verdict;
                show(&Change { at: now, elapsed, class, because: &because, window, gpu_waste })?;
            }
        }
    }
    if last.is_none() {
        bail!("find a reading in {}: a line for each is expected", path.display());
    }
    Ok(times)
}
