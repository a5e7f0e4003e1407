//! What each cgroup did on the CPUs, counted by the kernel program in `ebpf/` at every switch.
//! Totals since attaching, no more: rates, windows and whose cgroup it is belong to the caller.

pub(crate) mod btf;
mod cuda;
mod load;
mod ongoing;
mod told;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aya::Ebpf;
use aya::maps::{HashMap as BpfHashMap, MapData, MapError, PerCpuArray, PerCpuHashMap};
use aya::programs::BtfTracePoint;
use ebb_abi::{Cpu, Preemptor, Usage};
use rustix::time::{ClockId, clock_gettime};

pub use cuda::{CudaLaunches, Launches};
pub use load::Error;
use load::load;
use ongoing::Ongoing;
use told::Told;

const SCHEDULE: &str = "ebb_schedule";
const CLOCK: &str = "ebb_clock";

/// How often to look again at cgroups whose tasks left a CPU while they were read.
const ROUNDS: usize = 4;

/// Totals since the program was attached.
#[derive(Clone, Debug, Default)]
pub struct Schedule {
    /// Every cgroup that has run, ordered by id.
    pub cgroups: Vec<CgroupSchedule>,
    /// Of all CPUs, in the idle task.
    pub idle: Duration,
    pub dropped: Dropped,
}

/// Of all cgroups, those that are gone or found no room too, before stints which have ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waits {
    /// Ready to run and waiting for a CPU.
    pub wait: Duration,
    pub latency: Latency,
}

/// What one cgroup did since the program was attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CgroupSchedule {
    /// The inode of the cgroup's folder in the version 2 hierarchy.
    pub id: u64,
    /// On a CPU, until now: stints that go on are in it, and it never falls.
    pub run: Duration,
    /// Ready to run and waiting for a CPU, before stints which have ended.
    pub wait: Duration,
    pub preemptions: Preemptions,
    pub latency: Latency,
}

impl CgroupSchedule {
    /// The id stays.
    pub fn add(&mut self, other: &Self) {
        self.run += other.run;
        self.wait += other.wait;
        self.preemptions.same_pod += other.preemptions.same_pod;
        self.preemptions.other_pod += other.preemptions.other_pod;
        self.preemptions.system += other.preemptions.system;
        self.preemptions.unknown += other.preemptions.unknown;
        self.latency.add(&other.latency);
    }

    fn new(id: u64, usage: &Usage) -> Self {
        let by = |preemptor: Preemptor| usage.preemptions[preemptor as usize];
        Self {
            id,
            run: Duration::from_nanos(usage.run_ns),
            wait: Duration::from_nanos(usage.wait_ns),
            preemptions: Preemptions {
                same_pod: by(Preemptor::SamePod),
                other_pod: by(Preemptor::OtherPod),
                system: by(Preemptor::System),
                unknown: by(Preemptor::Unknown),
            },
            latency: Latency(usage.latency),
        }
    }
}

/// Stints that ended though their task could have gone on, by whose task came next. A task that yields is among them,
/// as in the kernel's own `nonvoluntary_ctxt_switches`; one that its quota takes off an otherwise idle CPU is not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Preemptions {
    pub same_pod: u64,
    pub other_pod: u64,
    /// A task of no pod.
    pub system: u64,
    /// A task of a cgroup that [`Scheduler::set_owners`] was not told about.
    pub unknown: u64,
}

/// Stints that ended, by how long their task had waited for them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Latency([u64; ebb_abi::BUCKETS]);

impl Preemptions {
    /// With the name of each preemptor.
    pub fn by(&self) -> [(&'static str, u64); 4] {
        let Self { same_pod, other_pod, system, unknown } = *self;
        [("same_pod", same_pod), ("other_pod", other_pod), ("system", system), ("unknown", unknown)]
    }
}

impl Latency {
    /// The longest wait that belongs to each bucket, and how many did; the last has no bound. Not cumulated.
    pub fn buckets(&self) -> impl Iterator<Item = (Option<Duration>, u64)> {
        let bound = |bucket| ebb_abi::bound_ns(bucket).map(Duration::from_nanos);
        self.0.iter().enumerate().map(move |(bucket, count)| (bound(bucket), *count))
    }

    #[cfg(test)]
    pub(crate) fn of(waits: impl IntoIterator<Item = Duration>) -> Self {
        let mut latency = Self::default();
        for wait in waits {
            latency.0[ebb_abi::bucket(u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX))] += 1;
        }
        latency
    }

    /// All stints on a CPU which have ended.
    pub fn count(&self) -> u64 {
        self.0.iter().sum()
    }

    pub fn add(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0).for_each(|(sum, count)| *sum += count);
    }
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
    /// How long they all were.
    pub time: Duration,
}

/// What the kernel itself spent in the program while its `bpf_stats` were on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    pub run_time: Duration,
    pub run_count: u64,
}

/// Counts while it lives; dropping it takes the program out of the kernel.
pub struct Scheduler {
    programs: Ebpf,
    cpus: PerCpuArray<MapData, Plain<Cpu>>,
    tables: Mutex<Tables>,
}

/// Locked also to read: a key which goes away under an iteration makes the kernel start again at the first.
struct Tables {
    usage: PerCpuHashMap<MapData, u64, Plain<Usage>>,
    owner: BpfHashMap<MapData, u64, u64>,
    /// What `owner` holds.
    owners: HashMap<u64, u64>,
    told: Told,
}

impl Scheduler {
    /// Counts up to `max_cgroups` cgroups from now on; what goes on in any more is in [`Schedule::dropped`].
    /// The kernel sets aside 144 bytes for each cgroup and possible CPU, and half a MiB to remember tasks by.
    /// While it reads the kernel's types, for some 50 ms, this takes 40 MiB of memory: call it once, at the start.
    pub fn attach(max_cgroups: u32) -> Result<Self, Error> {
        let mut programs = load(SCHEDULE, max_cgroups)?;
        let of = |map| move |source| Error::Map { map, source };
        let mut take = |name| programs.take_map(name).expect("the object defines this map");
        let cpus = take("CPU").try_into().map_err(of("CPU"))?;
        let usage = take("USAGE").try_into().map_err(of("USAGE"))?;
        let owner = take("OWNER").try_into().map_err(of("OWNER"))?;
        let tables = Tables { usage, owner, owners: HashMap::new(), told: Told::default() };
        Ok(Self { programs, cpus, tables: Mutex::new(tables) })
    }

    /// Everything up to now. The kernel goes on counting meanwhile, and this is the order that keeps time from being
    /// told twice: what runs on each CPU, then the counters, then again what runs. A stint seen both times was open all
    /// the while and is in no counter, so its length is added. One that ended in between may or may not be in a counter:
    /// it is left out, and its cgroup is read again if it was long, a few times at most. So each figure is at most the
    /// truth, what is missing is in the next reading, and no total falls (see [`Told::next`]).
    pub fn read(&self) -> Result<Schedule, Error> {
        let mut tables = self.tables();
        let mut before = self.slots()?;
        let mut cgroups = BTreeMap::new();
        let mut idle_ns = 0;
        let mut again: Option<BTreeSet<u64>> = None;
        for _ in 0..ROUNDS {
            let mut counted = match &again {
                None => tables.all()?,
                Some(ids) => tables.some(ids)?,
            };
            let now = now_ns();
            let after = self.slots()?;
            let ongoing = Ongoing::between(&before, &after, now);
            for (&id, &run_ns) in &ongoing.run_ns {
                if again.as_ref().is_none_or(|ids| ids.contains(&id)) {
                    counted.entry(id).or_default().run_ns += run_ns;
                }
            }
            cgroups.append(&mut counted);
            idle_ns = ongoing.idle_ns;
            before = after;
            if ongoing.ended.is_empty() {
                break;
            }
            again = Some(ongoing.ended);
        }
        let mut lost_ns = before.iter().map(|cpu| cpu.lost_ns).sum();
        tables.told.next(&mut cgroups, &mut idle_ns, &mut lost_ns);
        Ok(Schedule {
            cgroups: cgroups.iter().map(|(&id, usage)| CgroupSchedule::new(id, usage)).collect(),
            idle: Duration::from_nanos(idle_ns),
            dropped: dropped(&before, lost_ns),
        })
    }

    /// What all cgroups waited: cheap, whereas [`Self::read`] asks the kernel for each of them.
    pub fn waits(&self) -> Result<Waits, Error> {
        let mut sum = Waits::default();
        for cpu in self.slots()? {
            sum.wait += Duration::from_nanos(cpu.wait_ns);
            sum.latency.add(&Latency(cpu.latency));
        }
        Ok(sum)
    }

    /// Says which pod each cgroup belongs to: any number but 0 that is the pod's own; 0 for a cgroup of no pod. Cgroups
    /// that are not named belong to nobody knows whom. At most `max_cgroups` of them.
    pub fn set_owners(&self, owners: impl IntoIterator<Item = (u64, u64)>) -> Result<(), Error> {
        let owners: HashMap<u64, u64> = owners.into_iter().collect();
        let tables = &mut *self.tables();
        let failed = |source| Error::Map { map: "OWNER", source };
        // First those that go, so that there is room.
        for id in tables.owners.keys().filter(|id| !owners.contains_key(id)) {
            absent_is_fine(tables.owner.remove(id)).map_err(failed)?;
        }
        tables.owners.retain(|id, _| owners.contains_key(id));
        for (id, pod) in owners {
            if tables.owners.get(&id) != Some(&pod) {
                tables.owner.insert(id, pod, 0).map_err(failed)?;
                tables.owners.insert(id, pod);
            }
        }
        Ok(())
    }

    /// Gives back the room of a cgroup that is gone; forgetting one that was never seen is no error. One with tasks
    /// could be written to at this moment, after its room went to another.
    pub fn forget(&self, id: u64) -> Result<(), Error> {
        let mut tables = self.tables();
        tables.told.forget(id);
        absent_is_fine(tables.usage.remove(&id)).map_err(|source| Error::Map { map: "USAGE", source })
    }

    /// `None` while the kernel has not measured: `bpf_stats` are off unless someone asks for them.
    pub fn cost(&self) -> Result<Option<Cost>, Error> {
        cost(&self.programs, SCHEDULE)
    }

    fn slots(&self) -> Result<Vec<Cpu>, Error> {
        let slots = self.cpus.get(&0, 0).map_err(|source| Error::Map { map: "CPU", source })?;
        Ok(slots.iter().map(|Plain(cpu)| *cpu).collect())
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tables {
    fn all(&self) -> Result<BTreeMap<u64, Usage>, Error> {
        let entries = self.usage.iter().map(|entry| entry.map(|(id, cpus)| (id, total(cpus.iter()))));
        entries.collect::<Result<_, _>>().map_err(|source| Error::Map { map: "USAGE", source })
    }

    fn some(&self, ids: &BTreeSet<u64>) -> Result<BTreeMap<u64, Usage>, Error> {
        let entries = ids.iter().filter_map(|id| match self.usage.get(id, 0) {
            Ok(cpus) => Some(Ok((*id, total(cpus.iter())))),
            Err(MapError::KeyNotFound) => None,
            Err(source) => Some(Err(Error::Map { map: "USAGE", source })),
        });
        entries.collect()
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

/// The programs' clock (`bpf_ktime_get_ns`).
fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    // Neither part of a monotonic time is negative.
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}

fn absent_is_fine(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn total<'a>(cpus: impl Iterator<Item = &'a Plain<Usage>>) -> Usage {
    let mut sum = Usage::default();
    for Plain(cpu) in cpus {
        sum.run_ns += cpu.run_ns;
        sum.wait_ns += cpu.wait_ns;
        sum.preemptions.iter_mut().zip(cpu.preemptions).for_each(|(sum, count)| *sum += count);
        sum.latency.iter_mut().zip(cpu.latency).for_each(|(sum, count)| *sum += count);
    }
    sum
}

fn dropped(cpus: &[Cpu], lost_ns: u64) -> Dropped {
    let sum = |count: fn(&Cpu) -> u64| cpus.iter().map(count).sum();
    Dropped {
        full: sum(|cpu| cpu.full),
        clock: sum(|cpu| cpu.backwards),
        missed: sum(|cpu| cpu.missed),
        time: Duration::from_nanos(lost_ns),
    }
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
unsafe impl aya::Pod for Plain<Cpu> {}
unsafe impl aya::Pod for Plain<Usage> {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_is_the_sum_of_its_cpus() {
        let cpu = |run_ns, wait_ns, bucket: usize, preemptor: Preemptor| {
            let mut usage = Usage { run_ns, wait_ns, ..Usage::default() };
            usage.latency[bucket] += 1;
            usage.preemptions[preemptor as usize] += 1;
            Plain(usage)
        };
        let cpus = [cpu(1_000, 5, 0, Preemptor::System), cpu(500, 0, 11, Preemptor::System)];
        let Usage { run_ns, wait_ns, preemptions, latency } = total(cpus.iter());
        assert_eq!((run_ns, wait_ns, preemptions), (1_500, 5, [0, 0, 2, 0]));
        assert_eq!(latency, [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    }
}
