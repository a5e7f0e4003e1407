//! Runs the fuzzers in `fuzz/`: builds them once for all targets, gives each its share of the time, and keeps what they
//! learnt and found in the cache.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use crate::process::{cache, root, run as show};
use crate::tools;

/// Feeds the readers of outside text with text made to break them.
///
/// libFuzzer runs each target in turn for its share of the time, under AddressSanitizer, from the seeds in fuzz/seeds
/// and what earlier runs learnt, which lies in the cache ($EBB_CACHE, or `ebb` in the user's cache folder). An input
/// that breaks a target is kept there too, and fails the run. The first run installs cargo-fuzz into the cache and
/// builds the agent for libFuzzer: minutes. Needs no root and no nightly compiler.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// How long to fuzz in all, after the build.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// What to fuzz, by the names in fuzz/seeds; nothing: everything.
    targets: Vec<String>,
    /// Run a target once, with this input.
    #[arg(long, value_name = "FILE", conflicts_with = "seconds")]
    input: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let known = targets()?;
    let targets = if args.targets.is_empty() { known.clone() } else { args.targets.clone() };
    if let Some(unknown) = targets.iter().find(|target| !known.contains(target)) {
        bail!("find a target `{unknown}`: there are {}", known.join(", "));
    }
    let program = build()?;
    if let Some(input) = &args.input {
        ensure!(targets.len() == 1, "an input needs its target: cargo xtask fuzz --input FILE TARGET");
        return show(Command::new(program).arg(input).env("EBB_FUZZ_TARGET", &targets[0]));
    }
    let begin = Instant::now();
    let runs = fuzz(&program, &targets, args.seconds)?;
    let (executed, broken) = (runs.iter().map(|run| run.executed).sum::<u64>(), runs.iter().filter(|run| run.broken));
    let broken: Vec<_> = broken.map(|run| run.target.as_str()).collect();
    println!("{} targets, {executed} inputs, {:.0?}", runs.len(), begin.elapsed());
    if !broken.is_empty() {
        bail!("broken: {}", broken.join(", "));
    }
    Ok(())
}

/// How a target went.
struct Run {
    target: String,
    executed: u64,
    broken: bool,
}

/// As many at a time as there are CPUs, each for its share.
fn fuzz(program: &Path, targets: &[String], seconds: u64) -> Result<Vec<Run>> {
    let workers = thread::available_parallelism().context("count the CPUs")?.get().min(targets.len());
    // libFuzzer counts whole seconds.
    let share = (seconds * workers as u64 / targets.len() as u64).max(1);
    let mut runs = Vec::new();
    for batch in targets.chunks(workers) {
        let finished: Vec<Result<Run>> = thread::scope(|scope| {
            let started = batch.iter().map(|target| scope.spawn(move || one(program, target, share)));
            let started: Vec<_> = started.collect();
            started.into_iter().map(|run| run.join().expect("a run returns its errors")).collect()
        });
        for run in finished {
            runs.push(run?);
        }
    }
    Ok(runs)
}

fn one(program: &Path, target: &str, seconds: u64) -> Result<Run> {
    let kept = cache()?.join("fuzz").join(target);
    let (corpus, findings) = (kept.join("corpus"), kept.join("findings"));
    for folder in [&corpus, &findings] {
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    }
    // What was found and not yet mended comes first.
    let earlier = files(&findings)?;
    if let Some(found) = earlier.iter().find(|input| !is_good(program, target, input)) {
        report(target, found, "still breaks it");
        return Ok(Run { target: target.to_owned(), executed: 1, broken: true });
    }
    let output = Command::new(program)
        .args(["-print_final_stats=1", "-rss_limit_mb=1024", "-timeout=10"])
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-artifact_prefix={}/", findings.display()))
        .arg(&corpus)
        .arg(seeds().join(target))
        .env("EBB_FUZZ_TARGET", target)
        .output()
        .with_context(|| format!("start {}", program.display()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    let number = |name: &str| said.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
    let executed = number("stat::number_of_executed_units:").unwrap_or_default();
    let coverage = said.lines().rev().find_map(|line| line.split_once(" cov: ")?.1.split(' ').next());
    println!("{target:<16}{executed:>10} inputs in {seconds} s, {} places reached", coverage.unwrap_or("?"));
    if !output.status.success() {
        println!("{}", said.trim_end());
        match files(&findings)?.iter().find(|file| !earlier.contains(file)) {
            Some(found) => report(target, found, "breaks it"),
            None => println!("{target}: libFuzzer ended with {} and kept no input", output.status),
        }
    }
    Ok(Run { target: target.to_owned(), executed, broken: !output.status.success() })
}

fn report(target: &str, input: &Path, what: &str) {
    println!("{target}: {} {what}; again: cargo xtask fuzz --input {} {target}", input.display(), input.display());
}

fn is_good(program: &Path, target: &str, input: &Path) -> bool {
    let mut command = Command::new(program);
    command.arg(input).env("EBB_FUZZ_TARGET", target).output().is_ok_and(|output| output.status.success())
}

/// The program with all targets. Unstable flags of the pinned compiler are allowed, as for the kernel program.
fn build() -> Result<PathBuf> {
    let folder = root().join("target/fuzz");
    eprintln!("building the fuzzers");
    show(
        Command::new(tools::cargo_fuzz()?)
            .args(["build", "--fuzz-dir"])
            .arg(root().join("fuzz"))
            .arg("--target-dir")
            .arg(&folder)
            .current_dir(root())
            .env("RUSTC_BOOTSTRAP", "1"),
    )?;
    let host = crate::ebpf::host()?;
    Ok(folder.join(host).join("release/readers"))
}

/// In the order of their names.
fn targets() -> Result<Vec<String>> {
    let folders = files(&seeds())?;
    Ok(folders.iter().filter_map(|folder| Some(folder.file_name()?.to_string_lossy().into_owned())).collect())
}

fn seeds() -> PathBuf {
    root().join("fuzz/seeds")
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))?;
    let mut files = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    files.sort();
    Ok(files)
}
