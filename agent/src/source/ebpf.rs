//! What each cgroup did on the CPUs, counted by the kernel program in `ebpf/` at every switch.
//! Totals since attaching, no more: rates, windows and whose cgroup it is belong to the caller.

mod btf;

use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use std::{fs, io};

use aya::maps::{MapData, MapError, PerCpuArray, PerCpuHashMap};
use aya::programs::{BtfTracePoint, ProgramError};
use aya::{Btf, BtfError, Ebpf, EbpfError, EbpfLoader, Endianness};

/// Rebuilt and compared by `cargo xtask ebpf`.
const OBJECT: &[u8] = aya::include_bytes_aligned!("../../../ebpf/ebb.bpf.o");
const SCHEDULE: &str = "ebb_schedule";
const CLOCK: &str = "ebb_clock";

/// What one cgroup did since the program was attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CgroupSchedule {
    /// As in `bpf_get_current_cgroup_id`: the inode of the cgroup's folder in the version 2 hierarchy.
    pub id: u64,
    pub run: Duration,
    /// Time spent ready to run, waiting for a CPU.
    pub wait: Duration,
    /// Stints on a CPU which have ended.
    pub switches: u64,
}

/// Stints that no cgroup was charged for, since the program was attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dropped {
    /// The table had no room for their cgroup.
    pub full: u64,
    /// They ended before they began.
    pub clock: u64,
    /// The kernel did not show the program their end.
    pub missed: u64,
}

/// What the kernel itself spent in the program while its `bpf_stats` were on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    pub run_time: Duration,
    pub run_count: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "read the kernel's types from {}: eBPF needs a kernel with CONFIG_DEBUG_INFO_BTF, and /sys mounted",
        btf::PATH
    )]
    Types(#[source] io::Error),
    #[error("parse the kernel's types in {}", btf::PATH)]
    Parse(#[source] BtfError),
    #[error("find {of}.{member} in the kernel's types: eBPF needs a kernel with CONFIG_SCHED_INFO")]
    Field { of: &'static str, member: &'static str },
    #[error(
        "load a kernel program without {missing}: grant the capabilities BPF and PERFMON (before Linux 5.8: SYS_ADMIN)"
    )]
    Rights { missing: &'static str },
    #[error(
        "load the kernel program on Linux {kernel}: it needs 5.10 or later (before 5.11 with the \
         capability SYS_RESOURCE, or room to lock memory), and neither lockdown nor seccomp in its way"
    )]
    Load { kernel: String, source: Box<EbpfError> },
    #[error("attach the kernel program {program}")]
    Attach { program: &'static str, source: Box<ProgramError> },
    #[error("read or change the kernel program's {map}")]
    Map { map: &'static str, source: MapError },
    #[error("ask the kernel what its program costs")]
    Cost(#[source] Box<ProgramError>),
}

impl Error {
    /// A label for metrics, from a closed set.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Types(_) | Self::Parse(_) => "btf",
            Self::Field { .. } => "field",
            Self::Rights { .. } => "rights",
            Self::Load { .. } => "load",
            Self::Attach { .. } => "attach",
            Self::Map { .. } => "map",
            Self::Cost(_) => "cost",
        }
    }
}

/// Counts while it lives; dropping it takes the program out of the kernel.
pub struct Scheduler {
    programs: Ebpf,
    cpus: PerCpuArray<MapData, Plain<ebb_abi::Cpu>>,
    /// Locked also to read: a key which goes away under an iteration makes the kernel start again at the first.
    usage: Mutex<PerCpuHashMap<MapData, u64, Plain<ebb_abi::Usage>>>,
}

impl Scheduler {
    /// Counts up to `max_cgroups` cgroups from now on; what goes on in any more is in [`Scheduler::dropped`].
    /// While it reads the kernel's types, for some 50 ms, this takes 40 MiB of memory: call it once, at the start.
    pub fn attach(max_cgroups: u32) -> Result<Self, Error> {
        let mut programs = load(SCHEDULE, max_cgroups)?;
        let of = |map| move |source| Error::Map { map, source };
        let mut take = |name| programs.take_map(name).expect("the object defines this map");
        let cpus = take("CPU").try_into().map_err(of("CPU"))?;
        let usage = Mutex::new(take("USAGE").try_into().map_err(of("USAGE"))?);
        Ok(Self { programs, cpus, usage })
    }

    /// Every cgroup that has run, ordered by id. A stint counts when it ends, so a task alone on its CPU comes late by
    /// as long as nothing else wants that CPU: `cpu.stat` is the truth about one cgroup's use.
    pub fn read(&self) -> Result<Vec<CgroupSchedule>, Error> {
        let usage = self.usage.lock().unwrap_or_else(PoisonError::into_inner);
        let mut cgroups = usage
            .iter()
            .map(|entry| entry.map(|(id, cpus)| total(id, cpus.iter().map(|Plain(usage)| usage))))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|source| Error::Map { map: "USAGE", source })?;
        cgroups.sort_unstable_by_key(|cgroup| cgroup.id);
        Ok(cgroups)
    }

    /// Gives back the room of a cgroup that is gone; forgetting one that was never seen is no error. One with tasks
    /// could be written to at this moment, after its room went to another.
    pub fn forget(&self, id: u64) -> Result<(), Error> {
        match self.usage.lock().unwrap_or_else(PoisonError::into_inner).remove(&id) {
            Err(MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result.map_err(|source| Error::Map { map: "USAGE", source }),
        }
    }

    pub fn dropped(&self) -> Result<Dropped, Error> {
        let cpus = self.cpus.get(&0, 0).map_err(|source| Error::Map { map: "CPU", source })?;
        Ok(cpus.iter().fold(Dropped::default(), |sum, Plain(cpu)| Dropped {
            full: sum.full + cpu.full,
            clock: sum.clock + cpu.backwards,
            missed: sum.missed + cpu.missed,
        }))
    }

    /// `None` while the kernel has not measured: `bpf_stats` are off unless someone asks for them.
    pub fn cost(&self) -> Result<Option<Cost>, Error> {
        cost(&self.programs, SCHEDULE)
    }
}

/// The yardstick: a program on the same tracepoint that only reads the clock.
pub struct Clock(Ebpf);

impl Clock {
    pub fn attach() -> Result<Self, Error> {
        load(CLOCK, 1).map(Self)
    }

    /// As [`Scheduler::cost`].
    pub fn cost(&self) -> Result<Option<Cost>, Error> {
        cost(&self.0, CLOCK)
    }
}

fn load(program: &'static str, max_cgroups: u32) -> Result<Ebpf, Error> {
    let types = fs::read(btf::PATH).map_err(Error::Types)?;
    let offset = |of, member| btf::offset(&types, of, member).ok_or(Error::Field { of, member });
    let pid = offset("task_struct", "pid")?;
    let run_delay = offset("task_struct", "sched_info")? + offset("sched_info", "run_delay")?;
    let types = Btf::parse(&types, Endianness::default()).map_err(Error::Parse)?;
    if let Some(missing) = fs::read_to_string("/proc/self/status").ok().and_then(|status| missing_rights(&status)) {
        return Err(Error::Rights { missing });
    }

    let mut programs = EbpfLoader::new()
        .btf(None) // Nothing in the object is relocated by BTF.
        .override_global("PID", &pid, true)
        .override_global("RUN_DELAY", &run_delay, true)
        .map_max_entries("USAGE", max_cgroups)
        .load(OBJECT)
        .map_err(refused)?;
    let tracepoint: &mut BtfTracePoint =
        programs.program_mut(program).expect("the object holds this program").try_into().expect("on a tracepoint");
    tracepoint.load("sched_switch", &types).map_err(|source| refused(source.into()))?;
    tracepoint.attach().map_err(|source| Error::Attach { program, source: source.into() })?;
    Ok(programs)
}

fn refused(source: EbpfError) -> Error {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_else(|_| "of unknown release".into());
    Error::Load { kernel: kernel.trim_end().into(), source: source.into() }
}

/// Which of the needed rights the effective set in `/proc/<pid>/status` lacks. `None` also when it does not say.
fn missing_rights(status: &str) -> Option<&'static str> {
    const SYS_ADMIN: u64 = 1 << 21;
    const PERFMON: u64 = 1 << 38;
    const BPF: u64 = 1 << 39;
    let set = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    let set = u64::from_str_radix(set.trim(), 16).ok()?;
    // SYS_ADMIN stands for both.
    match (set & (SYS_ADMIN | BPF) != 0, set & (SYS_ADMIN | PERFMON) != 0) {
        (true, true) => None,
        (true, false) => Some("CAP_PERFMON"),
        (false, true) => Some("CAP_BPF"),
        (false, false) => Some("CAP_BPF and CAP_PERFMON"),
    }
}

fn total<'a>(id: u64, cpus: impl Iterator<Item = &'a ebb_abi::Usage>) -> CgroupSchedule {
    let mut sum = ebb_abi::Usage::default();
    for cpu in cpus {
        sum.run_ns += cpu.run_ns;
        sum.wait_ns += cpu.wait_ns;
        sum.switches += cpu.switches;
    }
    let (run, wait) = (Duration::from_nanos(sum.run_ns), Duration::from_nanos(sum.wait_ns));
    CgroupSchedule { id, run, wait, switches: sum.switches }
}

fn cost(programs: &Ebpf, program: &str) -> Result<Option<Cost>, Error> {
    let tracepoint: &BtfTracePoint =
        programs.program(program).expect("the object holds this program").try_into().expect("on a tracepoint");
    let told = tracepoint.info().map_err(|source| Error::Cost(source.into()))?;
    let cost = Cost { run_time: told.run_time(), run_count: told.run_count() };
    Ok((cost.run_count > 0).then_some(cost))
}

/// A value that any bytes make.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Plain<T>(T);

// SAFETY: `ebb-abi` lays both out in C's way, as `u64`s without padding.
unsafe impl aya::Pod for Plain<ebb_abi::Cpu> {}
unsafe impl aya::Pod for Plain<ebb_abi::Usage> {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_rights_are_named() {
        let check = |set: &str, missing| {
            assert_eq!(missing_rights(&format!("Name:\tebb-agent\nCapEff:\t{set}\nCapBnd:\t0\n")), missing, "{set}")
        };
        check("0000000000000000", Some("CAP_BPF and CAP_PERFMON"));
        check("0000008000000000", Some("CAP_PERFMON"));
        check("0000004000000000", Some("CAP_BPF"));
        check("000000c000000000", None);
        check("0000000000200000", None);
        check("000001ffffffffff", None);
        assert_eq!(missing_rights("Name:\tebb-agent\n"), None);
    }

    #[test]
    fn a_cgroup_is_the_sum_of_its_cpus() {
        let cpus = [
            ebb_abi::Usage { run_ns: 1_000_000_000, wait_ns: 5, switches: 2 },
            ebb_abi::Usage { run_ns: 500_000_000, wait_ns: 0, switches: 1 },
        ];
        let expected =
            CgroupSchedule { id: 7, run: Duration::from_millis(1_500), wait: Duration::from_nanos(5), switches: 3 };
        assert_eq!(total(7, cpus.iter()), expected);
    }
}
