//! Runs seed after seed of `ebb_sim::soak`, on all CPUs, for a number of seeds or of minutes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;
use ebb_core::time::format_seconds;
use ebb_sim::run::log;
use ebb_sim::{Violation, soak};

/// Simulates clusters under faults by chance, a seed each, and checks what must always hold.
///
/// A seed that fails is printed, and its log is written to --logs; the same seed replays it. Seeds that failed once
/// are kept in --kept and always run first.
#[derive(Parser)]
struct Args {
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// How many seeds.
    #[arg(long, default_value_t = 2000)]
    seeds: u64,
    /// For how long, instead of a number of seeds.
    #[arg(long, conflicts_with = "seeds")]
    minutes: Option<u64>,
    /// Just this one, with its whole log on standard output.
    #[arg(long, conflicts_with_all = ["from", "seeds", "minutes"])]
    seed: Option<u64>,
    /// Seeds that failed once, one a line; `#` begins a comment.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/soak-seeds.txt"))]
    kept: PathBuf,
    #[arg(long, default_value = "target/soak")]
    logs: PathBuf,
}

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    if let Some(seed) = args.seed {
        return Ok(replay(seed));
    }
    let kept = read_kept(&args.kept)?;
    let start = Instant::now();
    let (next, done, failed) = (AtomicU64::new(args.from), AtomicU64::new(0), AtomicU64::new(0));
    let (happenings, virtual_seconds) = (AtomicU64::new(0), AtomicU64::new(0));
    let broken = AtomicBool::new(false);
    let end = args.from.saturating_add(args.seeds);
    let over = || match args.minutes {
        Some(minutes) => start.elapsed() >= Duration::from_secs(minutes * 60),
        None => next.load(Ordering::Relaxed) >= end,
    };
    let try_seed = |seed: u64| {
        match soak::run(seed) {
            Ok(run) => {
                happenings.fetch_add(run.totals.happenings, Ordering::Relaxed);
                virtual_seconds.fetch_add(run.ended.since(run.started).as_secs(), Ordering::Relaxed);
            }
            Err(violation) => {
                failed.fetch_add(1, Ordering::Relaxed);
                println!("seed {seed}: {violation}");
                if let Err(error) = write_log(&args.logs, seed, &violation) {
                    eprintln!("{error:#}");
                    broken.store(true, Ordering::Relaxed);
                }
            }
        }
        done.fetch_add(1, Ordering::Relaxed);
    };
    kept.iter().copied().for_each(try_seed);
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, Into::into) {
            scope.spawn(|| {
                while !over() {
                    try_seed(next.fetch_add(1, Ordering::Relaxed));
                }
            });
        }
    });
    let (done, failed) = (done.into_inner(), failed.into_inner());
    let hours = virtual_seconds.into_inner() / 3600;
    println!(
        "{done} seeds ({} of them kept), {failed} failed: {hours} virtual hours, {} happenings in {}",
        kept.len(),
        happenings.into_inner(),
        format_seconds(start.elapsed()),
    );
    if failed > 0 {
        println!("logs are in {}; add the seeds to {}", args.logs.display(), args.kept.display());
    }
    Ok(if failed > 0 || broken.into_inner() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn replay(seed: u64) -> ExitCode {
    match soak::run(seed) {
        Ok(run) => {
            print!("{}", log(run.started, &run.steps));
            println!("seed {seed}: everything held");
            ExitCode::SUCCESS
        }
        Err(violation) => {
            print!("{}", log(violation.started, &violation.steps));
            println!("seed {seed}: {violation}");
            ExitCode::FAILURE
        }
    }
}

fn read_kept(path: &Path) -> Result<Vec<u64>> {
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let seeds = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    let seeds = seeds.filter(|line| !line.is_empty());
    seeds.map(|line| line.parse().with_context(|| format!("read the seed `{line}` in {}", path.display()))).collect()
}

fn write_log(folder: &Path, seed: u64, violation: &Violation) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    let path = folder.join(format!("seed-{seed}.log"));
    let text = format!(
        "# replay with: cargo xtask soak --seed {seed}\n{}seed {seed}: {violation}\n",
        log(violation.started, &violation.steps)
    );
    fs::write(&path, text).with_context(|| format!("write {}", path.display()))
}
