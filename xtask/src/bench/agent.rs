//! The agent beside what it stands in for on a node: Debian's prometheus-node-exporter and cAdvisor together. All three
//! watch the same 110 pods in the same time, first idle, then while the machine switches tasks 50 000 times a second.

mod load;
mod pods;
mod watched;

use std::fs;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::{Row, build};
use crate::process::root;
use crate::tools;

pub(crate) use load::{Args as LoadArgs, run as run_load};

use load::{Load, switches};
use pods::Pods;
use watched::{Watched, free_port};

const NODE_EXPORTER: &str = "prometheus-node-exporter";
const BOTH: &str = "node_exporter + cAdvisor";
/// The kubelet's own limit.
const PODS: usize = 110;
const SWITCHES_PER_SECOND: f64 = 50_000.0;
const SECOND: Duration = Duration::from_secs(1);
/// Often, for a Prometheus: it asks every 15 to 60 s.
const SCRAPE_EVERY: u32 = 5;
/// In a row, after the windows.
const SCRAPES: u32 = 200;
/// Before the window opens: loading the kernel program and first scrapes are no part of a day's work.
const WARM_UP: u32 = 12;
/// The kernel's account of its programs costs time at each switch, so it is no part of the windows.
const KERNEL_WINDOW: u32 = 8;

struct Programs {
    ours: Watched,
    node_exporter: Watched,
    cadvisor: Watched,
}

/// CPU time in one window, and the switches in it a second.
struct Window {
    ours: f64,
    theirs: f64,
    switches: f64,
}

pub(super) fn measure(seconds: u64) -> Result<Vec<Row>> {
    tools::apt_install(&[NODE_EXPORTER])?;
    let cadvisor = tools::cadvisor()?;
    build(&["ebb-agent", "--package", "fake-nvml"])?;
    let pods = Pods::make(PODS)?;
    let mut programs = start(&cadvisor)?;
    for _ in 0..WARM_UP {
        thread::sleep(SECOND);
        programs.scrape()?;
    }
    eprintln!("{PODS} idle pods: {seconds} s");
    let idle = programs.window(seconds)?;
    let load = Load::start(&pods, SWITCHES_PER_SECOND)?;
    thread::sleep(5 * SECOND);
    eprintln!("{SWITCHES_PER_SECOND} switches a second: {seconds} s");
    let loaded = programs.window(seconds)?;
    let kernel = kernel_share(&mut programs.ours)?;
    eprintln!("{SCRAPES} scrapes in a row");
    let mut rows = vec![
        cpu("CPU, idle pods", idle.ours / seconds as f64, Some(idle.theirs / seconds as f64), "below a fifth"),
        cpu("CPU, many switches", loaded.ours / seconds as f64, Some(loaded.theirs / seconds as f64), "below a fifth"),
    ];
    if let Some(kernel) = kernel {
        rows.push(cpu("its kernel program, as the kernel counts", kernel, None, ""));
        rows.push(cpu("both, many switches", loaded.ours / seconds as f64 + kernel, None, "below 1"));
    }
    rows.push(Row { what: "switches in that window", unit: "1/s", ours: loaded.switches, theirs: None, aim: "" });
    rows.extend(programs.memory()?);
    rows.extend(programs.scrapes()?);
    drop(load);
    Ok(rows)
}

/// In percent of one core.
fn cpu(what: &'static str, ours: f64, theirs: Option<f64>, aim: &'static str) -> Row {
    Row { what, unit: "% of a core", ours: ours * 100.0, theirs: theirs.map(|theirs| (theirs * 100.0, BOTH)), aim }
}

/// All watch the machine as their careful operators would have them: cAdvisor every 10 s, as the kubelet has it, and
/// without what it would count besides; the agent with eight fake GPUs.
fn start(cadvisor: &std::path::Path) -> Result<Programs> {
    let release = root().join("target/release");
    let port = free_port()?;
    let mut ours = Command::new(release.join("ebb-agent"));
    ours.args(["--standalone", "--listen", &format!("127.0.0.1:{port}"), "--log-level", "warn", "--nvml-library"])
        .arg(release.join("libfake_nvml.so"))
        .env("FAKE_NVML_SCRIPT", root().join("tests/fake-nvml/scenarios/8xh100.json"));
    let ours = Watched::start(&mut ours, port)?;
    let port = free_port()?;
    let mut command = Command::new(NODE_EXPORTER);
    let node_exporter = Watched::start(command.arg(format!("--web.listen-address=127.0.0.1:{port}")), port)?;
    let port = free_port()?;
    let mut command = Command::new(cadvisor);
    command.arg(format!("--listen=127.0.0.1:{port}")).args([
        "--housekeeping_interval=10s",
        "--max_housekeeping_interval=15s",
        "--allow_dynamic_housekeeping=true",
        "--store_container_labels=false",
    ]);
    Ok(Programs { ours, node_exporter, cadvisor: Watched::start(&mut command, port)? })
}

impl Programs {
    fn scrape(&mut self) -> Result<()> {
        self.ours.scrape()?;
        self.node_exporter.scrape()?;
        self.cadvisor.scrape().map(drop)
    }

    fn cpu_seconds(&self) -> Result<(f64, f64)> {
        Ok((self.ours.cpu_seconds()?, self.node_exporter.cpu_seconds()? + self.cadvisor.cpu_seconds()?))
    }

    fn window(&mut self, seconds: u64) -> Result<Window> {
        let (before, counted, start) = (self.cpu_seconds()?, switches()?, Instant::now());
        for second in 1..=u32::try_from(seconds)? {
            thread::sleep((start + SECOND * second).saturating_duration_since(Instant::now()));
            if second.is_multiple_of(SCRAPE_EVERY) {
                self.scrape()?;
            }
        }
        let (after, switches) = (self.cpu_seconds()?, switches()? - counted);
        let switches = switches as f64 / start.elapsed().as_secs_f64();
        Ok(Window { ours: after.0 - before.0, theirs: after.1 - before.1, switches })
    }

    fn memory(&self) -> Result<Vec<Row>> {
        let row = |what, field: &str, aim| {
            let theirs = self.node_exporter.mib("status", field)? + self.cadvisor.mib("status", field)?;
            anyhow::Ok(Row {
                what,
                unit: "MiB",
                ours: self.ours.mib("status", field)?,
                theirs: Some((theirs, BOTH)),
                aim,
            })
        };
        Ok(vec![
            row("resident memory", "VmRSS", "below 30 MiB")?,
            row("of that anonymous", "RssAnon", "")?,
            row("peak resident memory, since the start", "VmHWM", "")?,
        ])
    }

    fn scrapes(&mut self) -> Result<Vec<Row>> {
        for program in [&mut self.ours, &mut self.node_exporter, &mut self.cadvisor] {
            program.scrapes.clear();
            for _ in 0..SCRAPES {
                program.scrape()?;
            }
        }
        let (ours, one, other) = (&self.ours, &self.node_exporter, &self.cadvisor);
        let row = |what, unit, of: &dyn Fn(&Watched) -> f64, aim| Row {
            what,
            unit,
            ours: of(ours),
            theirs: Some((of(one) + of(other), BOTH)),
            aim,
        };
        Ok(vec![
            row("scrape, p50", "ms", &|program| program.scrape_ms(50), ""),
            row("scrape, p99", "ms", &|program| program.scrape_ms(99), "below 5 ms"),
            row("scrape", "KiB", &|program| program.bytes as f64 / 1024.0, ""),
            row("scrape", "series", &|program| program.series as f64, ""),
        ])
    }
}

/// CPU time per second in the agent's kernel program, by the kernel's own account, which counts its own two looks at
/// the clock for each run. It is charged to whatever task was switched out. `None`: nothing was counted.
fn kernel_share(ours: &mut Watched) -> Result<Option<f64>> {
    let _stats = BpfStats::on()?;
    thread::sleep(2 * SECOND);
    let Some(before) = ours.metric("ebb_bpf_run_seconds_total")? else { return Ok(None) };
    let start = Instant::now();
    thread::sleep(KERNEL_WINDOW * SECOND);
    let after = ours.metric("ebb_bpf_run_seconds_total")?;
    Ok(after.map(|after| (after - before) / start.elapsed().as_secs_f64()))
}

/// Puts the sysctl back on drop.
struct BpfStats {
    before: String,
}

impl BpfStats {
    const FILE: &str = "/proc/sys/kernel/bpf_stats_enabled";

    fn on() -> Result<Self> {
        let before = fs::read_to_string(Self::FILE).with_context(|| format!("read {}", Self::FILE))?;
        fs::write(Self::FILE, "1").with_context(|| format!("write {}", Self::FILE))?;
        Ok(Self { before })
    }
}

impl Drop for BpfStats {
    fn drop(&mut self) {
        if let Err(error) = fs::write(Self::FILE, &self.before) {
            eprintln!("{} was not put back to {}: {error}", Self::FILE, self.before.trim());
        }
    }
}
