//! What the GPUs of each pod did: those that the kubelet gave it, and those that its processes are seen on.

use std::collections::{BTreeMap, BTreeSet};

use ebb_core::units::Permille;

use crate::gpus::GpuReading;
use crate::pods::PodNames;
use crate::sampler::Sample;
use crate::source::gpu::{Gpu, GpuProcess, MigInstance};
use crate::workload;

/// Of pods with GPUs, by UID, over samples.
#[derive(Debug, Default)]
pub(super) struct GpuMeter(BTreeMap<String, Mean>);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Mean {
    /// Added up over the samples in which it was known.
    busy_permille: u64,
    samples: u64,
    /// In the latest sample, on all of its GPUs together.
    pub(super) memory: Option<u64>,
}

impl Mean {
    pub(super) fn busy(self) -> Option<Permille> {
        let mean = (self.busy_permille + self.samples / 2).checked_div(self.samples)?;
        u16::try_from(mean).ok().and_then(Permille::new)
    }
}

impl GpuMeter {
    pub(super) fn of(&self, uid: &str) -> Option<Mean> {
        self.0.get(uid).copied()
    }

    pub(super) fn note(&mut self, sample: &Sample) {
        for (uid, used) in used(sample) {
            let mean = self.0.entry(uid.to_owned()).or_default();
            if let Some(busy) = used.busy {
                mean.busy_permille += (u64::from(busy) + used.parts / 2) / used.parts;
                mean.samples += 1;
            }
            mean.memory = used.memory;
        }
    }
}

/// What is given out as one: a GPU, or in MIG mode each of its instances.
struct Part<'a> {
    uuid: &'a str,
    busy: Option<Permille>,
    memory: Option<u64>,
    processes: Option<&'a [GpuProcess]>,
}

impl<'a> Part<'a> {
    fn of_gpu(gpu: &'a Gpu) -> Vec<Self> {
        match &gpu.mig {
            Some(instances) => instances.iter().map(Self::of_instance).collect(),
            None => vec![Self {
                uuid: &gpu.identity.uuid,
                busy: gpu.now.busy.map(|busy| busy.mean),
                memory: gpu.now.memory.map(|memory| memory.used),
                processes: gpu.processes.as_deref(),
            }],
        }
    }

    fn of_instance(instance: &'a MigInstance) -> Self {
        Self {
            uuid: &instance.uuid,
            busy: instance.busy(),
            memory: instance.memory.map(|memory| memory.used),
            processes: instance.processes.as_deref(),
        }
    }
}

/// Of one pod in one sample. What is unknown of one of its parts is unknown of all of them together.
struct Used {
    parts: u64,
    /// In thousandths, added up over the parts.
    busy: Option<u32>,
    memory: Option<u64>,
}

fn used(sample: &Sample) -> BTreeMap<&str, Used> {
    let mut all: BTreeMap<&str, Used> = BTreeMap::new();
    let Some((reading, gpus)) = sample.reading.gpus.as_ref().and_then(|it| Some((it, it.gpus.as_ref()?))) else {
        return all;
    };
    let pods = workload::pods(&sample.reading, &sample.names);
    let allocations = sample.allocations.as_deref().unwrap_or_default();
    let allocations = workload::allocations(allocations, &sample.reading, &sample.names, &pods);
    let mut given: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for allocation in allocations {
        let is_its =
            |pod: &&workload::Pod<'_>| (pod.namespace(), pod.name()) == (&*allocation.namespace, &*allocation.pod);
        let Some(pod) = pods.values().find(is_its) else { continue };
        allocation.uuids(Some(gpus)).for_each(|uuid| _ = given.entry(uuid).or_default().insert(pod.uid));
    }
    for part in gpus.all.iter().flat_map(Part::of_gpu) {
        let mut holders = given.remove(part.uuid).unwrap_or_default();
        let processes = part.processes.unwrap_or_default();
        holders.extend(processes.iter().filter_map(|process| owner(process, reading, &sample.names)));
        let is_shared = holders.len() > 1;
        for uid in holders {
            // What the device says of itself is about all of them.
            let (busy, memory) = if is_shared {
                let own = || processes.iter().filter(|it| owner(it, reading, &sample.names) == Some(uid));
                let busy = own().try_fold(0, |sum, it| Some(sum + u32::from(it.sm?.get()))).map(|sum| sum.min(1000));
                let memory = own().try_fold(0_u64, |sum, it| Some(sum.saturating_add(it.memory?)));
                (busy.filter(|_| part.processes.is_some()), memory.filter(|_| part.processes.is_some()))
            } else {
                (part.busy.map(|busy| busy.get().into()), part.memory)
            };
            let so_far = all.entry(uid).or_insert(Used { parts: 0, busy: Some(0), memory: Some(0) });
            so_far.parts += 1;
            so_far.busy = so_far.busy.zip(busy).map(|(so_far, busy)| so_far + busy);
            so_far.memory = so_far.memory.zip(memory).map(|(so_far, memory)| so_far.saturating_add(memory));
        }
    }
    all
}

/// The UID of the pod of a process.
fn owner<'a>(process: &GpuProcess, reading: &'a GpuReading, names: &'a PodNames) -> Option<&'a str> {
    let owner = reading.owners.get(&process.pid)?;
    Some(names.get(&owner.pod_uid).map_or(&*owner.pod_uid, |name| &name.uid))
}

#[cfg(test)]
mod tests;
