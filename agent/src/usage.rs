//! What the node and its pods used between two readings of their cgroups, for the coordinator to serve.

use std::sync::Arc;
use std::time::{Duration, Instant as Monotonic};

use ebb_core::usage::{Amount, NodeUsage, PodUsage, Sample as Used};

use crate::clock::Clock;
use crate::reading::Reading;
use crate::sampler::Sample;
use crate::source::cgroup::Figures;
use crate::source::proc::{CpuTicks, TICKS_PER_SECOND};
use crate::workload::{self, Pod};

/// A container that was not there at the reading before is measured since its start, which the kubelet tells by the second:
/// when that second is no more than a fifth.
const FRESH: Duration = Duration::from_secs(5);

/// Measures each time that cgroups were read anew.
pub(crate) struct Meter {
    clock: Clock,
    before: Option<Arc<Reading>>,
}

impl Meter {
    pub(crate) fn new(clock: Clock) -> Self {
        Self { clock, before: None }
    }

    /// `None`: nothing new is known.
    pub(crate) fn measure(&mut self, sample: &Sample) -> Option<NodeUsage> {
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
        let pods = pods.iter().filter_map(|(uid, pod)| self.pod(pod, cgroups.at, former.get(uid), window)).collect();
        let usage = NodeUsage { node: self.node(before, now), pods };
        self.before = Some(now.clone());
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
        (!containers.is_empty()).then(|| PodUsage { uid: pod.uid.to_owned(), at, window: shortest, containers })
    }
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
