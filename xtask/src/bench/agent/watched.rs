//! A program that serves metrics, scraped and watched from outside.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

const SECOND: Duration = Duration::from_secs(1);
/// `USER_HZ`, the unit of /proc/PID/stat.
const TICKS_PER_SECOND: f64 = 100.0;

/// A program that serves metrics. Killed on drop.
pub(super) struct Watched {
    child: Child,
    port: u16,
    pub(super) scrapes: Vec<Duration>,
    /// Of the last scrape.
    pub(super) bytes: usize,
    /// The same.
    pub(super) series: usize,
}

impl Watched {
    pub(super) fn start(command: &mut Command, port: u16) -> Result<Self> {
        let name = command.get_program().display().to_string();
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let mut program = Self {
            child: child.with_context(|| format!("start {name}"))?,
            port,
            scrapes: Vec::new(),
            bytes: 0,
            series: 0,
        };
        let deadline = Instant::now() + 20 * SECOND;
        while program.scrape().is_err() {
            if Instant::now() > deadline || program.child.try_wait()?.is_some() {
                bail!("{name} serves no metrics on port {port}");
            }
            thread::sleep(SECOND / 10);
        }
        Ok(program)
    }

    pub(super) fn scrape(&mut self) -> Result<String> {
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
        let page = String::from_utf8(reply).context("read metrics as text")?;
        let body = page.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        self.series = body.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).count();
        Ok(page)
    }

    /// A metric without labels.
    pub(super) fn metric(&mut self, name: &str) -> Result<Option<f64>> {
        let page = self.scrape()?;
        let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.map(str::parse).transpose().with_context(|| format!("read {name}"))
    }

    /// By nearest rank.
    pub(super) fn scrape_ms(&self, percent: usize) -> f64 {
        let mut sorted = self.scrapes.clone();
        sorted.sort_unstable();
        sorted[(sorted.len() * percent).div_ceil(100) - 1].as_secs_f64() * 1000.0
    }

    /// User and system time of all threads, and of children waited for, since the start.
    pub(super) fn cpu_seconds(&self) -> Result<f64> {
        let path = format!("/proc/{}/stat", self.child.id());
        let stat = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        // The name, in brackets, may hold anything; utime, stime, cutime and cstime are the 12th field behind it and on.
        let (_, fields) = stat.rsplit_once(')').with_context(|| format!("understand {path}"))?;
        let ticks = fields.split_whitespace().skip(11).take(4).map(str::parse::<f64>).sum::<Result<f64, _>>()?;
        Ok(ticks / TICKS_PER_SECOND)
    }

    pub(super) fn mib(&self, file: &str, field: &str) -> Result<f64> {
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

pub(super) fn free_port() -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").context("find a free port")?;
    Ok(listener.local_addr()?.port())
}
