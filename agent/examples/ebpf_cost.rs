//! What the kernel program costs at each switch, over a program that only reads the clock, by the kernel's own account,
//! and what counting costs a launch of a CUDA kernel, beside a system call.
//! Prints one JSON line per round and one with the medians. `cargo xtask bench ebpf` runs it.

use std::num::NonZero;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use aya::sys::{Stats, enable_stats};
use clap::Parser;
use ebb_agent::source::ebpf::{Clock, Cost, CudaLaunches, Error, Scheduler};
use serde::Serialize;

/// Measures the kernel program against one that only reads the clock, in turn and under the same load.
#[derive(Parser)]
struct Args {
    /// How often each program is measured.
    #[arg(long, default_value = "9")]
    rounds: NonZero<usize>,
    /// How long each measurement lasts.
    #[arg(long, default_value_t = 2)]
    seconds: u64,
}

#[derive(Serialize)]
struct Round {
    clock_ns_per_event: f64,
    program_ns_per_event: f64,
    over_ns: f64,
    events: u64,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let (launch_ns, system_call_ns) = launches()?;
    let _stats = enable_stats(Stats::RunTime).context("turn the kernel's bpf_stats on (needs CAP_SYS_ADMIN)")?;
    start_load()?;
    let span = Duration::from_secs(args.seconds);

    let mut rounds = Vec::new();
    for _ in 0..args.rounds.get() {
        let clock = measure(span, Clock::attach()?, Clock::cost)?;
        let program = measure(span, Scheduler::attach(4096)?, Scheduler::cost)?;
        let (clock_ns_per_event, program_ns_per_event) = (per_event(clock), per_event(program));
        let over_ns = program_ns_per_event - clock_ns_per_event;
        rounds.push(Round { clock_ns_per_event, program_ns_per_event, over_ns, events: program.run_count });
        println!("{}", serde_json::to_string(&rounds.last())?);
    }
    let medians = Round {
        clock_ns_per_event: median(&rounds, |round| round.clock_ns_per_event),
        program_ns_per_event: median(&rounds, |round| round.program_ns_per_event),
        over_ns: median(&rounds, |round| round.over_ns),
        events: rounds.iter().map(|round| round.events).sum(),
    };
    let more = serde_json::json!({ "median": medians, "launch_ns": launch_ns, "system_call_ns": system_call_ns });
    println!("{more}");
    Ok(())
}

/// A launch that is counted, and a system call, in nanoseconds: medians of many short runs, in turn.
fn launches() -> Result<(f64, f64)> {
    const CALLS: u32 = 1_000;
    let library = std::env::current_exe()?.with_file_name("../deps/libfake_cuda.so");
    let _launches = CudaLaunches::attach(&library, 1)?;
    // SAFETY: nothing in it runs as it is loaded, and so the function is declared.
    let cuda = unsafe { libloading::Library::new(&library) }?;
    let launch = unsafe { cuda.get::<extern "C" fn(*const ()) -> i32>(b"cuLaunchKernel") }?;
    let per_call = |call: &dyn Fn()| {
        let start = Instant::now();
        (0..CALLS).for_each(|_| call());
        start.elapsed().as_nanos() as f64 / f64::from(CALLS)
    };
    let mut pairs = Vec::new();
    for _ in 0..51 {
        let launch = per_call(&|| _ = launch(std::ptr::null()));
        pairs.push((launch, per_call(&|| _ = rustix::process::getppid())));
    }
    Ok((median(&pairs, |pair| pair.0), median(&pairs, |pair| pair.1)))
}

fn measure<P>(span: Duration, program: P, cost: impl Fn(&P) -> Result<Option<Cost>, Error>) -> Result<Cost> {
    thread::sleep(span);
    cost(&program)?.context("the kernel counted no run of the program: are its bpf_stats on?")
}

fn per_event(cost: Cost) -> f64 {
    cost.run_time.as_nanos() as f64 / cost.run_count as f64
}

fn median<T>(rounds: &[T], value: impl Fn(&T) -> f64) -> f64 {
    let mut values: Vec<f64> = rounds.iter().map(value).collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Pairs of threads, one per CPU, that wake each other for ever: nearly all they do is switch.
fn start_load() -> Result<()> {
    for _ in 0..thread::available_parallelism()?.get() {
        let (ping, pinged) = mpsc::sync_channel(0);
        let (pong, ponged) = mpsc::sync_channel(0);
        thread::spawn(move || while ping.send(()).is_ok() && ponged.recv().is_ok() {});
        thread::spawn(move || while pinged.recv().is_ok() && pong.send(()).is_ok() {});
    }
    Ok(())
}
