//! The processes of a lab: started in the background, recorded by pid and start time, stopped by that record only.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

const POLL: Duration = Duration::from_millis(50);
/// How long a process may take to end before it is killed.
const GRACE: Duration = Duration::from_secs(10);
/// A control plane on a busy machine takes a while; what is broken mostly ends by itself much earlier.
const READY_WITHIN: Duration = Duration::from_secs(120);

/// A process as recorded in `DIR/pid/NAME`.
pub(super) struct Daemon {
    pub(super) name: String,
    pub(super) pid: i32,
    /// Clock ticks from boot to its start: tells it from a later process with the same pid.
    start_ticks: u64,
}

pub(super) struct Usage {
    pub(super) rss_mib: f64,
    pub(super) peak_mib: f64,
    pub(super) cpu_seconds: f64,
}

/// Starts a process that outlives us, with its output in `DIR/log/NAME.log`.
pub(super) fn start(dir: &Path, name: &str, command: &mut Command) -> Result<()> {
    let log = File::create(dir.join("log").join(format!("{name}.log"))).with_context(|| format!("log of {name}"))?;
    let child = command
        .stdin(Stdio::null())
        .stdout(log.try_clone().context("share the log")?)
        .stderr(log)
        .process_group(0) // Ctrl-C in the terminal that ran `up` is not meant for the lab.
        .spawn()
        .with_context(|| format!("start {name}"))?;
    let pid = child.id();
    let start_ticks =
        Stat::read(pid.cast_signed()).with_context(|| format!("find {name} after its start"))?.start_ticks;
    fs::write(dir.join("pid").join(name), format!("{pid} {start_ticks}\n")).with_context(|| format!("record {name}"))
}

/// Waits for a condition of a process that was started; gives up early when the process has ended.
pub(super) fn wait_ready(dir: &Path, name: &str, mut ready: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + READY_WITHIN;
    let daemon = Daemon::read(dir, name)?;
    loop {
        if ready() {
            return Ok(());
        }
        if !daemon.is_alive() {
            bail!("{name} ended; its last words:\n{}", log_tail(dir, name));
        }
        if Instant::now() > deadline {
            bail!("{name} was not ready after {} s; its last words:\n{}", READY_WITHIN.as_secs(), log_tail(dir, name));
        }
        sleep(POLL);
    }
}

pub(super) fn list(dir: &Path) -> Result<Vec<Daemon>> {
    let Ok(files) = fs::read_dir(dir.join("pid")) else { return Ok(Vec::new()) };
    let mut names = Vec::new();
    for file in files {
        names.push(file.context("list the pids")?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    names.iter().map(|name| Daemon::read(dir, name)).collect()
}

/// Stops all but etcd at once, then etcd: an API server that has lost its etcd takes long to give up.
pub(super) fn stop_all(dir: &Path) -> Result<()> {
    let (etcd, others): (Vec<Daemon>, Vec<Daemon>) = list(dir)?.into_iter().partition(|daemon| daemon.name == "etcd");
    stop(&others)?;
    stop(&etcd)
}

fn stop(daemons: &[Daemon]) -> Result<()> {
    for daemon in daemons {
        daemon.signal(Signal::TERM)?;
    }
    let deadline = Instant::now() + GRACE;
    while daemons.iter().any(Daemon::is_alive) && Instant::now() < deadline {
        sleep(POLL);
    }
    for daemon in daemons {
        daemon.signal(Signal::KILL)?;
    }
    while daemons.iter().any(Daemon::is_alive) {
        sleep(POLL);
    }
    Ok(())
}

impl Daemon {
    fn read(dir: &Path, name: &str) -> Result<Self> {
        let text = fs::read_to_string(dir.join("pid").join(name)).with_context(|| format!("read the pid of {name}"))?;
        let (pid, start_ticks) = text.trim().split_once(' ').with_context(|| format!("pid file of {name}"))?;
        Ok(Self { name: name.to_owned(), pid: pid.parse()?, start_ticks: start_ticks.parse()? })
    }

    pub(super) fn is_alive(&self) -> bool {
        // A zombie waits for its parent only; nothing of it runs.
        Stat::read(self.pid).is_some_and(|stat| stat.start_ticks == self.start_ticks && stat.state != "Z")
    }

    /// Signals the process that was recorded, or nobody.
    fn signal(&self, signal: Signal) -> Result<()> {
        // The descriptor is opened before the check: it keeps meaning the process that was checked.
        let Some(pid) = Pid::from_raw(self.pid) else { return Ok(()) };
        let Ok(handle) = pidfd_open(pid, PidfdFlags::empty()) else { return Ok(()) };
        if !self.is_alive() {
            return Ok(());
        }
        match pidfd_send_signal(handle, signal) {
            Err(rustix::io::Errno::SRCH) => Ok(()),
            result => result.with_context(|| format!("signal {}", self.name)),
        }
    }

    pub(super) fn usage(&self) -> Option<Usage> {
        if !self.is_alive() {
            return None;
        }
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).ok()?;
        let mib = |key: &str| {
            let line = status.lines().find(|line| line.starts_with(key))?;
            Some(line.split_whitespace().nth(1)?.parse::<f64>().ok()? / 1024.0)
        };
        let ticks = Stat::read(self.pid)?.cpu_ticks;
        let cpu_seconds = ticks as f64 / rustix::param::clock_ticks_per_second() as f64;
        Some(Usage { rss_mib: mib("VmRSS:")?, peak_mib: mib("VmHWM:")?, cpu_seconds })
    }
}

/// The fields of `/proc/PID/stat` that we use; see proc_pid_stat(5).
struct Stat {
    state: String,
    cpu_ticks: u64,
    start_ticks: u64,
}

impl Stat {
    fn read(pid: i32) -> Option<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name before it is in parentheses and may hold anything; field 3 (state) is the first after the last one.
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
        let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
        Some(Self {
            state: fields.first()?.to_string(),
            cpu_ticks: number(14)? + number(15)?,
            start_ticks: number(22)?,
        })
    }
}

fn log_tail(dir: &Path, name: &str) -> String {
    const LINES: usize = 12;
    let text = fs::read(dir.join("log").join(format!("{name}.log"))).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let tail = &lines[lines.len().saturating_sub(LINES)..];
    tail.iter().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stop_ends_what_was_recorded_and_spares_a_later_process_with_the_same_pid() {
        let dir = std::env::temp_dir().join(format!("ebb-daemon-test-{}", std::process::id()));
        for folder in ["log", "pid"] {
            fs::create_dir_all(dir.join(folder)).unwrap();
        }
        start(&dir, "sleeper", Command::new("sleep").arg("60")).unwrap();
        let sleeper = Daemon::read(&dir, "sleeper").unwrap();
        let record = dir.join("pid/sleeper");

        fs::write(&record, format!("{} {}\n", sleeper.pid, sleeper.start_ticks - 1)).unwrap();
        stop_all(&dir).unwrap();
        assert!(sleeper.is_alive());

        fs::write(&record, format!("{} {}\n", sleeper.pid, sleeper.start_ticks)).unwrap();
        stop_all(&dir).unwrap();
        assert!(!sleeper.is_alive());
        fs::remove_dir_all(&dir).unwrap();
    }
}
