//! The machine the agent runs on: asks every source, one after the other, and goes on without those that fail.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant as Monotonic};

use crate::gpus::NodeGpus;
use crate::health::Healths;
use crate::reading::{Bpf, Reading, Waited};
use crate::source::cgroup::{CgroupTree, Cgroups};
use crate::source::ebpf::{CgroupSchedule, CudaLaunches, Dropped, Schedule, Scheduler, Waits};
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
    /// Of its latest reading, as is how many cgroups its table holds.
    dropped: Dropped,
    table: usize,
    /// `None`: not asked for, or as with `scheduler`.
    cuda_launches: Option<CudaLaunches>,
    cuda_launches_dropped: Option<u64>,
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
            dropped: Dropped::default(),
            table: 0,
            cuda_launches,
            cuda_launches_dropped: None,
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
        let are_due = self.cgroups.as_ref().is_none_or(|latest| now - latest.at + BEAT >= self.pod_interval);
        let Self { proc, pressure, scheduler, gpus, buffer, healths, .. } = self;
        gpus.ask(healths);
        reading.stat = healths.watch(Source::Cpu, || proc.stat(buffer));
        reading.memory = healths.watch(Source::Memory, || proc.memory(buffer));
        reading.pressure = healths.watch(Source::Pressure, || pressure.read(buffer));
        let counted = scheduler.as_ref().and_then(|scheduler| {
            healths.watch(Source::Ebpf, || {
                // Before the cgroups: what is known here and not found there is gone, not new.
                let schedule = are_due.then(|| scheduler.read()).transpose()?;
                Ok((schedule, scheduler.waits()?, scheduler.cost()?))
            })
        });
        let mut by_id = None;
        match counted {
            Some((schedule, Waits { wait, latency }, cost)) => {
                if let Some(Schedule { cgroups, dropped, .. }) = schedule {
                    (self.dropped, self.table) = (dropped, cgroups.len());
                    by_id = Some(cgroups.into_iter().map(|cgroup| (cgroup.id, cgroup)).collect());
                }
                reading.waited = Some(Waited { by: Source::Ebpf, total: wait });
                reading.bpf = Some(Bpf { dropped: self.dropped, cost, cgroups: self.table, latency });
            }
            None => {
                let waited = self.healths.watch(Source::Schedstat, || self.proc.waited(&mut self.buffer));
                reading.waited = waited.map(|total| Waited { by: Source::Schedstat, total });
            }
        }
        if are_due {
            self.read_cgroups(now, by_id);
        }
        (reading.cgroups, reading.cgroups_before) = (self.cgroups.clone(), self.cgroups_before.clone());
        reading.cuda_launches_dropped = self.cuda_launches_dropped;
        (reading.gpu, reading.gpus) = self.gpus.read(&mut self.healths);
        reading
    }

    /// The tree, with what the kernel programs counted for each cgroup. Where it cannot be read, the figures of before
    /// are no longer true.
    fn read_cgroups(&mut self, now: Monotonic, schedule: Option<HashMap<u64, CgroupSchedule>>) {
        let Self { tree, cuda_launches, buffer, healths, .. } = self;
        let launches =
            cuda_launches.as_ref().and_then(|launches| healths.watch(Source::CudaLaunches, || Ok(launches.read()?)));
        self.cuda_launches_dropped = launches.as_ref().map(|launches| launches.dropped);
        let fresh = healths.watch(Source::Cgroup, || tree.read(now, buffer));
        for error in fresh.iter().flat_map(|fresh| &fresh.errors) {
            healths.count(Source::Cgroup, error);
        }
        self.cgroups_before = self.cgroups.take();
        if let Some(mut fresh) = fresh {
            self.join(&mut fresh, schedule.unwrap_or_default(), launches.map(|launches| launches.cgroups));
            self.tell_owners(&fresh);
            self.cgroups = Some(Arc::new(fresh));
        }
    }

    /// The kernel programs forget the cgroups that are not there any more.
    fn join(
        &mut self,
        fresh: &mut Cgroups,
        mut schedule: HashMap<u64, CgroupSchedule>,
        mut launches: Option<HashMap<u64, u64>>,
    ) {
        let are_the_hosts = fresh.are_the_hosts();
        for cgroup in &mut fresh.all {
            let Some(id) = cgroup.id else { continue };
            cgroup.schedule = schedule.remove(&id);
            cgroup.cuda_launches = launches.as_mut().map(|launches| launches.remove(&id).unwrap_or(0));
        }
        if !are_the_hosts {
            return;
        }
        for id in schedule.into_keys() {
            if let Some(Err(error)) = self.scheduler.as_ref().map(|scheduler| scheduler.forget(id)) {
                self.healths.count(Source::Ebpf, &error.into());
            }
        }
        for id in launches.into_iter().flat_map(HashMap::into_keys) {
            if let Some(Err(error)) = self.cuda_launches.as_mut().map(|launches| launches.forget(id)) {
                self.healths.count(Source::CudaLaunches, &error.into());
            }
        }
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
}
