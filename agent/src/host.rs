//! The machine the agent runs on: asks every source, one after the other, and goes on without those that fail.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant as Monotonic};

use crate::gpus::NodeGpus;
use crate::health::Healths;
use crate::reading::{Bpf, Reading, Waited};
use crate::source::cgroup::{CgroupTree, Cgroups};
use crate::source::ebpf::{CgroupSchedule, CudaLaunches, Latency, Launches, Schedule, Scheduler};
use crate::source::pressure::PressureFiles;
use crate::source::proc::Proc;
use crate::source::{Error, Source};

/// Samples come a little early or late; a reading that is due but for this is not put off to the next.
const BEAT: Duration = Duration::from_millis(50);

/// Where the kernel shows itself, and how much of it is followed.
#[derive(Clone, Debug)]
pub struct Roots {
    pub proc: PathBuf,
    pub sys: PathBuf,
    pub cgroup: PathBuf,
    pub max_cgroups: u32,
    /// How often cgroups are read.
    pub pod_interval: Duration,
    /// Where to count launches of CUDA kernels.
    pub libcuda: Option<PathBuf>,
}

pub struct Host {
    proc: Proc,
    pressure: PressureFiles,
    tree: CgroupTree,
    /// The latest reading of it, and the one before.
    cgroups: Option<Arc<Cgroups>>,
    cgroups_before: Option<Arc<Cgroups>>,
    pod_interval: Duration,
    /// `None`: could not be attached. Rights and kernel stay as they are, so it is not tried again.
    scheduler: Option<Scheduler>,
    waits: Waits,
    /// `None`: not asked for, or as with `scheduler`.
    cuda_launches: Option<CudaLaunches>,
    gpus: NodeGpus,
    /// Shared by all readers of files.
    buffer: Vec<u8>,
    pub healths: Healths,
}

impl Host {
    pub fn new(roots: &Roots, gpus: NodeGpus) -> Self {
        let mut healths = Healths::default();
        let attach = || Scheduler::attach(roots.max_cgroups).map_err(Error::from);
        let scheduler = healths.watch(Source::Ebpf, attach);
        let cuda_launches = roots.libcuda.as_ref().and_then(|libcuda| {
            let attach = || CudaLaunches::attach(libcuda, roots.max_cgroups).map_err(Error::from);
            healths.watch(Source::CudaLaunches, attach)
        });
        Self {
            proc: Proc::new(&roots.proc),
            pressure: PressureFiles::new(&roots.proc),
            tree: CgroupTree::new(&roots.cgroup, roots.max_cgroups as usize),
            cgroups: None,
            cgroups_before: None,
            pod_interval: roots.pod_interval,
            scheduler,
            waits: Waits::default(),
            cuda_launches,
            gpus,
            buffer: Vec::new(),
            healths,
        }
    }

    /// Whether the kernel programs, if there are any, can be read.
    pub fn works(&self) -> bool {
        self.scheduler.as_ref().is_none_or(|scheduler| scheduler.read().is_ok())
            && self.cuda_launches.as_ref().is_none_or(|launches| launches.read().is_ok())
    }

    pub fn read(&mut self, now: Monotonic) -> Reading {
        let mut reading = Reading::empty(now);
        let Self { proc, pressure, scheduler, cuda_launches, gpus, buffer, healths, .. } = self;
        gpus.ask(healths);
        reading.stat = healths.watch(Source::Cpu, || proc.stat(buffer));
        reading.memory = healths.watch(Source::Memory, || proc.memory(buffer));
        reading.pressure = healths.watch(Source::Pressure, || pressure.read(buffer));
        // Before the cgroups: what is known here and not found there is gone, not new.
        let schedule = scheduler.as_ref().and_then(|scheduler| {
            healths.watch(Source::Ebpf, || {
                let schedule = scheduler.read()?;
                let cost = scheduler.cost()?;
                Ok((schedule, cost))
            })
        });
        let launches =
            cuda_launches.as_ref().and_then(|launches| healths.watch(Source::CudaLaunches, || Ok(launches.read()?)));
        let fresh = self.read_cgroups(reading.at);
        reading.cuda_launches = launches.map(|launches| self.living_launches(launches, fresh.as_deref()));
        match schedule {
            Some((Schedule { cgroups, dropped, .. }, cost)) => {
                self.waits.add(&cgroups);
                reading.waited = Some(Waited { by: Source::Ebpf, total: self.waits.total });
                reading.bpf = Some(Bpf { dropped, cost, cgroups: cgroups.len(), latency: self.waits.latency });
                if let Some(fresh) = &fresh {
                    self.tell_owners(fresh);
                }
                reading.schedule = self.living(cgroups, fresh.as_deref());
            }
            None => {
                let waited = self.healths.watch(Source::Schedstat, || self.proc.waited(&mut self.buffer));
                reading.waited = waited.map(|total| Waited { by: Source::Schedstat, total });
            }
        }
        (reading.cgroups, reading.cgroups_before) = (self.cgroups.clone(), self.cgroups_before.clone());
        (reading.gpu, reading.gpus) = self.gpus.read(&mut self.healths);
        reading
    }

    /// `None`: it is not time yet, or they cannot be read; then those of before are no longer true.
    fn read_cgroups(&mut self, now: Monotonic) -> Option<Arc<Cgroups>> {
        let is_due = self.cgroups.as_ref().is_none_or(|latest| now - latest.at + BEAT >= self.pod_interval);
        if !is_due {
            return None;
        }
        let Self { tree, buffer, healths, .. } = self;
        let fresh = healths.watch(Source::Cgroup, || tree.read(now, buffer)).map(Arc::new);
        for error in fresh.iter().flat_map(|fresh| &fresh.errors) {
            healths.count(Source::Cgroup, error);
        }
        self.cgroups_before = self.cgroups.take();
        self.cgroups = fresh.clone();
        fresh
    }

    /// Tells the kernel program which cgroups are one pod's, so that it knows who preempts whom. A pod goes by the id of
    /// its own cgroup, or of the first of its cgroups if that is not followed.
    fn tell_owners(&mut self, cgroups: &Cgroups) {
        let Some(scheduler) = &self.scheduler else { return };
        let mut pods: HashMap<&str, u64> = HashMap::new();
        let owners = cgroups.all.iter().filter_map(|cgroup| {
            let id = cgroup.id?;
            Some((id, cgroup.owner.as_ref().map_or(0, |owner| *pods.entry(&*owner.pod_uid).or_insert(id))))
        });
        if let Err(error) = scheduler.set_owners(owners) {
            self.healths.count(Source::Ebpf, &error.into());
        }
    }

    /// Those cgroups that are still there, by id; the kernel program forgets the others. Who is there is only known
    /// when the tree has just been read.
    fn living(&mut self, schedule: Vec<CgroupSchedule>, cgroups: Option<&Cgroups>) -> BTreeMap<u64, CgroupSchedule> {
        let mut schedule: BTreeMap<_, _> = schedule.into_iter().map(|cgroup| (cgroup.id, cgroup)).collect();
        let Some(cgroups) = cgroups.filter(|cgroups| cgroups.are_the_hosts()) else { return schedule };
        let mut living: BTreeMap<u64, CgroupSchedule> = BTreeMap::new();
        for id in cgroups.all.iter().filter_map(|cgroup| cgroup.id) {
            if let Some(cgroup) = schedule.remove(&id) {
                living.insert(id, cgroup);
            }
        }
        if let Some(scheduler) = &self.scheduler {
            for id in schedule.into_keys() {
                self.waits.forget(id);
                if let Err(error) = scheduler.forget(id) {
                    self.healths.count(Source::Ebpf, &error.into());
                }
            }
        }
        living
    }

    /// As [`Self::living`].
    fn living_launches(&mut self, mut launches: Launches, cgroups: Option<&Cgroups>) -> Launches {
        let Some(cgroups) = cgroups.filter(|cgroups| cgroups.are_the_hosts()) else { return launches };
        let living: HashSet<u64> = cgroups.all.iter().filter_map(|cgroup| cgroup.id).collect();
        for (id, _) in launches.cgroups.extract_if(.., |id, _| !living.contains(id)) {
            if let Some(Err(error)) = self.cuda_launches.as_mut().map(|launches| launches.forget(id)) {
                self.healths.count(Source::CudaLaunches, &error.into());
            }
        }
        launches
    }
}

/// Adds up what all cgroups have waited. Their present totals would not do: each that goes away would take its share.
#[derive(Debug, Default)]
struct Waits {
    total: Duration,
    latency: Latency,
    last: HashMap<u64, (Duration, Latency)>,
}

impl Waits {
    fn add(&mut self, schedule: &[CgroupSchedule]) {
        for cgroup in schedule {
            let (wait, latency) = self.last.insert(cgroup.id, (cgroup.wait, cgroup.latency)).unwrap_or_default();
            self.total += cgroup.wait.saturating_sub(wait);
            self.latency.add(&cgroup.latency.since(&latency));
        }
    }

    fn forget(&mut self, id: u64) {
        self.last.remove(&id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_of_a_cgroup_that_left_still_counts() {
        let row = |id, seconds| {
            let wait = Duration::from_secs(seconds);
            CgroupSchedule { id, wait, latency: Latency::of([wait]), ..CgroupSchedule::default() }
        };
        let mut waits = Waits::default();
        let mut check = |rows: &[CgroupSchedule], gone: Option<u64>, seconds, count| {
            gone.into_iter().for_each(|id| waits.forget(id));
            waits.add(rows);
            assert_eq!((waits.total, waits.latency.count()), (Duration::from_secs(seconds), count));
        };
        check(&[row(1, 5), row(2, 10)], None, 15, 2);
        check(&[row(1, 6), row(2, 10)], None, 16, 2);
        check(&[row(1, 8)], Some(2), 18, 2);
        check(&[row(1, 8), row(2, 1)], None, 19, 3);
    }
}
