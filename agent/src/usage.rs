//! What the node and its pods used between two readings of their cgroups, for the coordinator to serve.

mod gpu;

use std::sync::Arc;
use std::time::{Duration, Instant as Monotonic};

use ebb_core::units::Permille;
use ebb_core::usage::{Amount, NodeUsage, PodUsage, Sample as Used, Signals};

use crate::clock::Clock;
use crate::reading::Reading;
use crate::sampler::Sample;
use crate::source::cgroup::Figures;
use crate::source::ebpf::CgroupSchedule;
use crate::source::proc::{CpuTicks, TICKS_PER_SECOND};
use crate::workload::{self, Pod};

use gpu::GpuMeter;

/// A container that was not there at the reading before is measured since its start, which the kubelet tells by the second:
/// when that second is no more than a fifth.
const FRESH: Duration = Duration::from_secs(5);

/// What the coordinator wants to be told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) usage: bool,
    /// Pods' signals as well.
    pub(crate) signals: bool,
}

/// Measures each time that cgroups were read anew.
pub(crate) struct Meter {
    clock: Clock,
    before: Option<Arc<Reading>>,
    /// GPUs are read with each sample.
    gpus: GpuMeter,
}

impl Meter {
    pub(crate) fn new(clock: Clock) -> Self {
        Self { clock, before: None, gpus: GpuMeter::default() }
    }

    /// `None`: nothing new is known.
    pub(crate) fn measure(&mut self, sample: &Sample, wanted: Wanted) -> Option<NodeUsage> {
        if !wanted.usage {
            return None;
        }
        if wanted.signals {
            self.gpus.note(sample);
        }
        let now = &sample.reading;
        let cgroups = now.cgroups.as_ref()?;
        let read_at = |reading: &Reading| reading.cgroups.as_ref().map(|cgroups| cgroups.at);
        let Some(before) = &self.before else {
            self.before = Some(now.clone());
            return None;
        };
        if read_at(before) == Some(cgroups.at) {
            return None;
        }
        let former = workload::pods(before, &sample.names);
        let window = read_at(before).map(|at| cgroups.at.saturating_duration_since(at)).unwrap_or_default();
        let pods = workload::pods(now, &sample.names);
        let pods = pods.iter().filter_map(|(uid, pod)| {
            let former = former.get(uid);
            let usage = self.pod(pod, cgroups.at, former, window)?;
            let signals = wanted.signals.then(|| self.signals(pod, former, window)).flatten();
            Some(PodUsage { signals, ..usage })
        });
        let usage = NodeUsage { pods: pods.collect(), node: self.node(before, now) };
        self.before = Some(now.clone());
        self.gpus = GpuMeter::default();
        Some(usage)
    }

    fn node(&self, before: &Reading, now: &Reading) -> Option<Used> {
        let (then, stat) = before.stat.as_ref().zip(now.stat.as_ref())?;
        let window = now.at.saturating_duration_since(before.at);
        let cpu_nanocores = nanocores(used(stat.node).checked_sub(used(then.node))?, window)?;
        let memory_bytes = now.memory?.working_set;
        Some(Used { at: self.clock.at(now.at), window, amount: Amount { cpu_nanocores, memory_bytes } })
    }

    /// `former`: as it was read before, a window ago. `None`: one of its containers is not known, and the others' sum would
    /// say too little.
    fn pod(&self, pod: &Pod<'_>, at: Monotonic, former: Option<&Pod<'_>>, window: Duration) -> Option<PodUsage> {
        let name = pod.name?;
        let mut shortest = window;
        let mut containers = Vec::with_capacity(name.started.len());
        for (id, started) in &name.started {
            let called = name.containers.get(id)?;
            let now = figures(pod, called, id)?;
            let (cpu, over) = match former.and_then(|former| figures(former, called, id)) {
                Some(then) => (now.cpu?.checked_sub(then.cpu?)?, window),
                None => (now.cpu?, Some(self.clock.at(at).since(*started)).filter(|age| *age >= FRESH)?),
            };
            let amount = Amount { cpu_nanocores: nanocores(cpu, over)?, memory_bytes: now.memory.working_set()? };
            shortest = shortest.min(over);
            containers.push((called.clone(), amount));
        }
        containers.sort_by(|(a, _), (b, _)| a.cmp(b));
        let at = self.clock.at(at);
        let uid = pod.uid.to_owned();
        (!containers.is_empty()).then_some(PodUsage { uid, at, window: shortest, containers, signals: None })
    }

    fn signals(&self, pod: &Pod<'_>, former: Option<&Pod<'_>>, window: Duration) -> Option<Signals> {
        let gpus = self.gpus.of(pod.uid);
        let over = window.as_secs_f64();
        let signals = Signals {
            window,
            gpu_busy: gpus.and_then(gpu::Mean::busy),
            gpu_memory_bytes: gpus.and_then(|gpus| gpus.memory),
            run_queue_wait: former.and_then(|former| waited(pod, former)).and_then(|wait| thousandths(wait, window)),
            memory_pressure: former
                .and_then(|former| stalled(pod)?.checked_sub(stalled(former)?))
                .and_then(|stalled| Permille::from_ratio(stalled.as_secs_f64(), over)),
        };
        let is_something = signals != Signals { window, ..Signals::default() };
        (is_something && !window.is_zero()).then_some(signals)
    }
}

/// For a CPU, by all tasks of the pod's containers together. One that has not run since the agent came is not known, and
/// waited for nothing. `None`: nobody counts.
fn waited(pod: &Pod<'_>, former: &Pod<'_>) -> Option<Duration> {
    pod.schedule.as_ref()?;
    let mut sum = Duration::ZERO;
    for (name, container) in &pod.containers {
        let wait = |schedule: &Option<CgroupSchedule>| schedule.as_ref().map_or(Duration::ZERO, |it| it.wait);
        let then = former.containers.get(name).filter(|then| then.id == container.id);
        sum += wait(&container.schedule).checked_sub(then.map_or(Duration::ZERO, |then| wait(&then.schedule)))?;
    }
    Some(sum)
}

/// For how long some task of the pod waited for memory, since it was made.
fn stalled(pod: &Pod<'_>) -> Option<Duration> {
    pod.figures?.pressure?.memory.some
}

fn thousandths(part: Duration, whole: Duration) -> Option<u64> {
    let thousandths = part.as_secs_f64() / whole.as_secs_f64() * 1e3;
    thousandths.is_finite().then_some(thousandths.round() as u64)
}

/// Of the container of this name, unless it is another one by now.
fn figures<'a>(pod: &Pod<'a>, name: &str, id: &str) -> Option<&'a Figures> {
    pod.containers.get(name).filter(|container| container.id == id)?.figures
}

/// What the root cgroup's `cpu.stat` says, which the kubelet shows: the kernel makes it of these, and older kernels of
/// steal as well (`root_cgroup_cputime` in `kernel/cgroup/rstat.c`). `/proc` has them also where the root is out of sight.
pub(crate) fn used(ticks: CpuTicks) -> Duration {
    let CpuTicks([user, nice, system, _idle, _iowait, irq, softirq, _steal]) = ticks;
    Duration::from_secs_f64((user + nice + system + irq + softirq) as f64 / TICKS_PER_SECOND)
}

fn nanocores(cpu: Duration, over: Duration) -> Option<u64> {
    let cores = cpu.as_secs_f64() / over.as_secs_f64();
    cores.is_finite().then_some((cores * 1e9) as u64)
}

#[cfg(test)]
mod tests;
