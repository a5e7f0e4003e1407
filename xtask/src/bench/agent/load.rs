//! Processes that do nothing but hand the CPU to one another, as often a second as is asked for.

use std::fs;
use std::io::{PipeReader, PipeWriter, Read, Write, pipe};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::pods::Pods;

/// Each in a pod of its own.
const PROCESSES: usize = 10;
/// How often a process looks at how many switches there are.
const ADJUST_EVERY: Duration = Duration::from_millis(200);
/// Between two bursts: far more often than anybody looks.
const PAUSE: Duration = Duration::from_millis(2);

/// One such process, for ever. Started by `cargo xtask bench`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Switches a second of the whole machine.
    rate: f64,
}

/// Killed on drop.
pub(super) struct Load(Vec<Child>);

impl Load {
    pub(super) fn start(pods: &Pods, rate: f64) -> Result<Self> {
        let own = std::env::current_exe().context("find xtask's own program")?;
        let mut load = Self(Vec::new());
        for number in 0..PROCESSES {
            let mut command = Command::new(&own);
            let child = command.args(["bench-load", &rate.to_string()]).stdin(Stdio::null()).spawn();
            load.0.push(child.context("start a process that switches")?);
            pods.put(load.0[number].id(), number * 2)?;
        }
        Ok(load)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ended_already = child.kill();
            let _status = child.wait();
        }
    }
}

/// Switches of all CPUs since boot.
pub(super) fn switches() -> Result<u64> {
    let stat = fs::read_to_string("/proc/stat").context("read /proc/stat")?;
    let count = stat.lines().find_map(|line| line.strip_prefix("ctxt "));
    count.and_then(|count| count.parse().ok()).context("find the number of context switches in /proc/stat")
}

/// Two threads pass a byte to and fro in bursts; how many there are in one follows from how many switches the machine
/// makes, so that several such processes together, and whatever else runs, come to the rate.
pub(crate) fn run(args: &Args) -> Result<()> {
    let (mut requests, mut ask) = pipe().context("make a pipe")?;
    let (mut answers, mut answer) = pipe().context("make a pipe")?;
    thread::spawn(move || while pass(&mut requests, &mut answer).is_ok() {});
    let mut burst = 1.0_f64;
    let (mut counted, mut looked) = (switches()?, Instant::now());
    loop {
        for _ in 0..(burst.round() as u32).max(1) {
            ask.write_all(&[0])?;
            answers.read_exact(&mut [0])?;
        }
        thread::sleep(PAUSE);
        if looked.elapsed() >= ADJUST_EVERY {
            let now = switches()?;
            let rate = (now - counted) as f64 / looked.elapsed().as_secs_f64();
            // By less than the whole difference, since the others do the same.
            burst = (burst * (args.rate / rate).sqrt()).clamp(0.5, 1000.0);
            (counted, looked) = (now, Instant::now());
        }
    }
}

fn pass(from: &mut PipeReader, to: &mut PipeWriter) -> std::io::Result<()> {
    from.read_exact(&mut [0])?;
    to.write_all(&[0])
}
