//! The agent beside Debian's prometheus-node-exporter: both sampled and scraped once a second in the same minute.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::{Row, build};
use crate::process::root;
use crate::tools;

const PEER: &str = "prometheus-node-exporter";
const SECOND: Duration = Duration::from_secs(1);
/// Before the window opens: loading the kernel program and first scrapes are no part of a day's work.
const WARM_UP: u32 = 5;
/// `USER_HZ`, the unit of /proc/PID/stat.
const TICKS_PER_SECOND: f64 = 100.0;

pub(super) fn measure(seconds: u64) -> Result<Vec<Row>> {
    tools::apt_install(&[PEER])?;
    build(&["ebb-agent"])?;
    let port = free_port()?;
    let mut ours = Command::new(root().join("target/release/ebb-agent"));
    ours.args(["--standalone", "--listen", &format!("127.0.0.1:{port}"), "--log-level", "warn"]);
    let mut ours = Watched::start(&mut ours, port)?;
    let port = free_port()?;
    let mut peer = Command::new(PEER);
    let mut peer = Watched::start(peer.arg(format!("--web.listen-address=127.0.0.1:{port}")), port)?;

    for _ in 0..WARM_UP {
        thread::sleep(SECOND);
        ours.scrape()?;
        peer.scrape()?;
    }
    let before = (ours.cpu_seconds()?, peer.cpu_seconds()?);
    ours.scrapes.clear();
    peer.scrapes.clear();
    let start = Instant::now();
    for second in 1..=seconds {
        thread::sleep((start + SECOND * u32::try_from(second)?).saturating_duration_since(Instant::now()));
        ours.scrape()?;
        peer.scrape()?;
        if second % 10 == 0 {
            eprintln!("{second} of {seconds} s");
        }
    }
    let row = |what, unit, of: &dyn Fn(&Watched) -> Result<f64>, aim| {
        anyhow::Ok(Row { what, unit, ours: of(&ours)?, theirs: Some((of(&peer)?, PEER)), aim })
    };
    let cpu = Row {
        what: "CPU time in the window",
        unit: "s",
        ours: ours.cpu_seconds()? - before.0,
        theirs: Some((peer.cpu_seconds()? - before.1, PEER)),
        aim: "below the peer's",
    };
    let mut rows = vec![
        cpu,
        row("resident memory", "MiB", &|program| program.mib("status", "VmRSS"), "below 20 MiB")?,
        row("of that anonymous", "MiB", &|program| program.mib("status", "RssAnon"), "")?,
        row("of that pages of files", "MiB", &|program| program.mib("status", "RssFile"), "")?,
        row("its proportional share (Pss)", "MiB", &|program| program.mib("smaps_rollup", "Pss"), "")?,
        row("peak resident memory, since the start", "MiB", &|program| program.mib("status", "VmHWM"), "")?,
        row("scrape, p50", "ms", &|program| Ok(program.scrape_ms(50)), "")?,
        row("scrape, p99", "ms", &|program| Ok(program.scrape_ms(99)), "")?,
        row("scrape", "KiB", &|program| Ok(program.bytes as f64 / 1024.0), "")?,
    ];
    if let Some(share) = kernel_share(&mut ours)? {
        // The peer has no part in the kernel. Ours is charged to whatever task was switched out.
        rows.insert(
            1,
            Row {
                what: "and in its kernel program, to scale",
                unit: "s",
                ours: share * seconds as f64,
                theirs: None,
                aim: "",
            },
        );
    }
    Ok(rows)
}

/// CPU time per second in the agent's kernel program, by the kernel's own account. That account costs time at each
/// switch and is kept only while its sysctl is set, so this is no part of the window. `None`: nothing was counted.
fn kernel_share(ours: &mut Watched) -> Result<Option<f64>> {
    let _stats = BpfStats::on()?;
    thread::sleep(2 * SECOND);
    let Some(before) = ours.metric("ebb_bpf_run_seconds_total")? else { return Ok(None) };
    let start = Instant::now();
    thread::sleep(8 * SECOND);
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

/// A program that serves metrics. Killed on drop.
struct Watched {
    child: Child,
    port: u16,
    scrapes: Vec<Duration>,
    /// Of the last scrape.
    bytes: usize,
}

impl Watched {
    fn start(command: &mut Command, port: u16) -> Result<Self> {
        let name = command.get_program().display().to_string();
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let mut program =
            Self { child: child.with_context(|| format!("start {name}"))?, port, scrapes: Vec::new(), bytes: 0 };
        let deadline = Instant::now() + 20 * SECOND;
        while program.scrape().is_err() {
            if Instant::now() > deadline || program.child.try_wait()?.is_some() {
                bail!("{name} serves no metrics on port {port}");
            }
            thread::sleep(SECOND / 10);
        }
        Ok(program)
    }

    fn scrape(&mut self) -> Result<String> {
        let start = Instant::now();
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).context("connect")?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
        let mut reply = Vec::new();
        stream.read_to_end(&mut reply)?;
        if !reply.windows(7).take(20).any(|window| window == b" 200 OK") {
            bail!("no metrics from port {}: {}", self.port, String::from_utf8_lossy(&reply[..reply.len().min(200)]));
        }
        self.scrapes.push(start.elapsed());
        self.bytes = reply.len();
        String::from_utf8(reply).context("read metrics as text")
    }

    /// A metric without labels.
    fn metric(&mut self, name: &str) -> Result<Option<f64>> {
        let page = self.scrape()?;
        let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.map(str::parse).transpose().with_context(|| format!("read {name}"))
    }

    /// By nearest rank.
    fn scrape_ms(&self, percent: usize) -> f64 {
        let mut sorted = self.scrapes.clone();
        sorted.sort_unstable();
        sorted[(sorted.len() * percent).div_ceil(100) - 1].as_secs_f64() * 1000.0
    }

    /// User and system time of all threads, and of children waited for, since the start.
    fn cpu_seconds(&self) -> Result<f64> {
        let path = format!("/proc/{}/stat", self.child.id());
        let stat = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        // The name, in brackets, may hold anything; utime, stime, cutime and cstime are the 12th field behind it and on.
        let (_, fields) = stat.rsplit_once(')').with_context(|| format!("understand {path}"))?;
        let ticks = fields.split_whitespace().skip(11).take(4).map(str::parse::<f64>).sum::<Result<f64, _>>()?;
        Ok(ticks / TICKS_PER_SECOND)
    }

    fn mib(&self, file: &str, field: &str) -> Result<f64> {
        let path = format!("/proc/{}/{file}", self.child.id());
        let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        let kib = line.and_then(|line| line.split_whitespace().next()).with_context(|| format!("find {field}"))?;
        Ok(kib.parse::<f64>()? / 1024.0)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        // It may have ended by itself; either way nothing is left after the wait.
        let _ended = self.child.kill();
        let _status = self.child.wait();
    }
}

fn free_port() -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").context("find a free port")?;
    Ok(listener.local_addr()?.port())
}
