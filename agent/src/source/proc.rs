//! What `/proc` says of the node: CPU time, memory, context switches, time waited on run queues.

use std::path::Path;
use std::time::Duration;

use super::polled::Polled;
use super::{Error, Malformed};

/// The unit of `/proc/stat`. `USER_HZ` is 100 on every architecture that Ebb is built for, whatever the kernel's own.
pub const TICKS_PER_SECOND: f64 = 100.0;

/// What a CPU can spend time on, in the order of `/proc/stat`. Time in guests is part of `user` and `nice`.
pub const MODES: [&str; 8] = ["user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal"];

/// Ticks since boot by mode, in the order of [`MODES`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuTicks(pub [u64; 8]);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stat {
    /// All CPUs together.
    pub node: CpuTicks,
    /// By number. A CPU that is offline is not there.
    pub cpus: Vec<(u32, CpuTicks)>,
    pub context_switches: u64,
}

/// In bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    pub total: u64,
    pub available: u64,
    pub free: u64,
    /// `MemTotal - MemFree - Inactive(file)`: what is in use, without the part of the page cache that was not touched
    /// lately. The kubelet's formula for a node, so that both show the same figure.
    pub working_set: u64,
    /// What processes hold that no file backs: anonymous pages and shared memory.
    pub anon: Option<u64>,
    /// The page cache without shared memory.
    pub file: Option<u64>,
    pub swap_total: Option<u64>,
    pub swap_free: Option<u64>,
}

/// The files of `/proc` that are read each time.
#[derive(Debug)]
pub struct Proc {
    stat: Polled,
    meminfo: Polled,
    schedstat: Polled,
}

impl Proc {
    pub fn new(root: &Path) -> Self {
        Self {
            stat: Polled::new(root.join("stat")),
            meminfo: Polled::new(root.join("meminfo")),
            schedstat: Polled::new(root.join("schedstat")),
        }
    }

    pub fn stat(&mut self, buffer: &mut Vec<u8>) -> Result<Stat, Error> {
        self.stat.read(buffer, parse_stat)
    }

    pub fn memory(&mut self, buffer: &mut Vec<u8>) -> Result<Memory, Error> {
        self.meminfo.read(buffer, parse_meminfo)
    }

    /// Time that tasks have waited on the run queues of all CPUs since boot.
    pub fn waited(&mut self, buffer: &mut Vec<u8>) -> Result<Duration, Error> {
        self.schedstat.read(buffer, parse_schedstat)
    }
}

/// `proc_stat(5)`.
pub(crate) fn parse_stat(text: &str) -> Result<Stat, Malformed> {
    let mut node = None;
    let mut cpus = Vec::new();
    let mut context_switches = None;
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("cpu") {
            let (number, ticks) = rest.split_once(' ').ok_or(Malformed("figures of a CPU"))?;
            let ticks = parse_ticks(ticks)?;
            if number.is_empty() {
                node = Some(ticks);
            } else {
                cpus.push((number.parse().map_err(|_| Malformed("number of a CPU"))?, ticks));
            }
        } else if let Some(count) = line.strip_prefix("ctxt ") {
            context_switches = Some(count.parse().map_err(|_| Malformed("number of context switches"))?);
        }
    }
    Ok(Stat {
        node: node.ok_or(Malformed("line for all CPUs"))?,
        cpus,
        context_switches: context_switches.ok_or(Malformed("number of context switches"))?,
    })
}

fn parse_ticks(text: &str) -> Result<CpuTicks, Malformed> {
    let mut words = text.split_ascii_whitespace();
    let mut ticks = [0; 8];
    for slot in &mut ticks {
        let word = words.next().ok_or(Malformed("time for every mode of a CPU"))?;
        *slot = word.parse().map_err(|_| Malformed("time for every mode of a CPU"))?;
    }
    Ok(CpuTicks(ticks))
}

/// `proc_meminfo(5)`. Its `kB` are 1024 bytes.
pub(crate) fn parse_meminfo(text: &str) -> Result<Memory, Malformed> {
    let bytes = |name: &'static str| {
        let rest = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).ok_or(Malformed(name))?;
        let kib = rest.trim().strip_suffix(" kB").and_then(|kib| kib.parse::<u64>().ok());
        kib.and_then(|kib| kib.checked_mul(1024)).ok_or(Malformed(name))
    };
    let (total, free) = (bytes("MemTotal")?, bytes("MemFree")?);
    let optional = |name| bytes(name).ok();
    let shared = optional("Shmem");
    Ok(Memory {
        total,
        available: bytes("MemAvailable")?,
        free,
        working_set: total.saturating_sub(free).saturating_sub(bytes("Inactive(file)")?),
        anon: optional("AnonPages").zip(shared).map(|(anon, shared)| anon.saturating_add(shared)),
        // Shared memory is counted in `Cached`.
        file: optional("Cached")
            .zip(optional("Buffers"))
            .zip(shared)
            .map(|((cached, buffers), shared)| cached.saturating_add(buffers).saturating_sub(shared)),
        swap_total: optional("SwapTotal"),
        swap_free: optional("SwapFree"),
    })
}

/// `Documentation/scheduler/sched-stats.rst`: the eighth figure of a CPU is the time its tasks have waited to run.
/// The format's version changes what domains show, not this; in nanoseconds since version 15 (Linux 2.6.30).
pub(crate) fn parse_schedstat(text: &str) -> Result<Duration, Malformed> {
    let waited = text.lines().filter(|line| line.starts_with("cpu")).map(|line| {
        let nanos = line.split_ascii_whitespace().nth(8).and_then(|word| word.parse::<u64>().ok());
        nanos.ok_or(Malformed("time waited for a CPU"))
    });
    let nanos: Vec<u64> = waited.collect::<Result<_, _>>()?;
    if nanos.is_empty() {
        return Err(Malformed("line for any CPU"));
    }
    Ok(nanos.into_iter().map(Duration::from_nanos).sum())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STAT: &str = "cpu  10 2 30 400 5 6 7 8 9 0\n\
        cpu0 4 1 10 200 2 3 3 4 5 0\n\
        cpu3 6 1 20 200 3 3 4 4 4 0\n\
        intr 2139673 0 0 0\n\
        ctxt 9111864\n\
        btime 1795489200\n";

    #[test]
    fn stat_is_read_by_cpu_and_mode() {
        let stat = parse_stat(STAT).unwrap();
        assert_eq!(stat.node, CpuTicks([10, 2, 30, 400, 5, 6, 7, 8]));
        assert_eq!(stat.cpus, [(0, CpuTicks([4, 1, 10, 200, 2, 3, 3, 4])), (3, CpuTicks([6, 1, 20, 200, 3, 3, 4, 4]))]);
        assert_eq!(stat.context_switches, 9_111_864);
    }

    #[test]
    fn a_broken_stat_is_refused_with_what_is_missing() {
        let check = |text: &str, missing| assert_eq!(parse_stat(text), Err(Malformed(missing)), "{text}");
        check("", "line for all CPUs");
        check("ctxt 1\n", "line for all CPUs");
        check("cpu  1 2 3 4 5 6 7 8\n", "number of context switches");
        check("cpu  1 2 3 4 5 6 7\nctxt 1\n", "time for every mode of a CPU");
        check("cpu  1 2 3 x 5 6 7 8\nctxt 1\n", "time for every mode of a CPU");
        check("cpu  1 2 3 -4 5 6 7 8\nctxt 1\n", "time for every mode of a CPU");
        check("cpux 1 2 3 4 5 6 7 8\nctxt 1\n", "number of a CPU");
        check("cpu\n", "figures of a CPU");
        check("cpu  1 2 3 4 5 6 7 8\nctxt many\n", "number of context switches");
    }

    #[test]
    fn memory_is_in_bytes_and_the_working_set_leaves_out_cold_cache() {
        let text =
            "MemTotal:       1000 kB\nMemFree:         200 kB\nMemAvailable:    700 kB\nInactive(file):  300 kB\n";
        let expected =
            Memory { total: 1_024_000, available: 716_800, free: 204_800, working_set: 512_000, ..Memory::default() };
        assert_eq!(parse_meminfo(text), Ok(expected));
        let more = "AnonPages: 200 kB\nShmem: 50 kB\nCached: 300 kB\nBuffers: 10 kB\nSwapTotal: 0 kB\nSwapFree: 0 kB\n";
        let split = parse_meminfo(&format!("{text}{more}")).unwrap();
        assert_eq!((split.anon, split.file), (Some(250 << 10), Some(260 << 10)), "shared memory is no cache");
        assert_eq!((split.swap_total, split.swap_free), (Some(0), Some(0)));
        assert_eq!(parse_meminfo(&text.replace("MemAvailable", "Other")), Err(Malformed("MemAvailable")));
        assert_eq!(parse_meminfo(&text.replace("1000 kB", "1000")), Err(Malformed("MemTotal")));
        assert_eq!(parse_meminfo(&text.replace("1000", "99999999999999999999")), Err(Malformed("MemTotal")));
    }

    #[test]
    fn waiting_is_summed_over_cpus() {
        let text =
            "version 17\ntimestamp 4295\ncpu0 0 0 0 0 0 0 900 100 5\ndomain0 MC 3 1 2\ncpu1 0 0 0 0 0 0 800 50 6\n";
        assert_eq!(parse_schedstat(text), Ok(Duration::from_nanos(150)));
        assert_eq!(parse_schedstat("version 17\n"), Err(Malformed("line for any CPU")));
        assert_eq!(parse_schedstat("cpu0 0 0\n"), Err(Malformed("time waited for a CPU")));
    }

    proptest! {
        #[test]
        fn what_is_parsed_is_what_was_written(
            node in prop::array::uniform8(any::<u64>()),
            cpus in prop::collection::vec((any::<u32>(), prop::array::uniform8(any::<u64>())), 0..5),
            switches in any::<u64>(),
        ) {
            let line = |name: String, ticks: &[u64; 8]| {
                let ticks: Vec<_> = ticks.iter().map(u64::to_string).collect();
                format!("cpu{name} {} 0 0\n", ticks.join(" "))
            };
            let mut text = line(String::new(), &node);
            text.extend(cpus.iter().map(|(number, ticks)| line(number.to_string(), ticks)));
            let text = format!("{text}ctxt {switches}\n");
            let cpus = cpus.into_iter().map(|(number, ticks)| (number, CpuTicks(ticks))).collect();
            prop_assert_eq!(parse_stat(&text), Ok(Stat { node: CpuTicks(node), cpus, context_switches: switches }));
        }

        #[test]
        fn no_text_makes_a_parser_panic(text in "(cpu|MemTotal|MemFree:|[0-9]{0,25}|kB|[ \n\t:]|\\PC){0,60}") {
            let _any_answer = (parse_stat(&text), parse_meminfo(&text), parse_schedstat(&text));
        }
    }
}
