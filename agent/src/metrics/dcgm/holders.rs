//! Who holds which GPU or instance, as far as there is one answer: dcgm-exporter's pages have room for one pod a row.

use std::collections::{BTreeMap, BTreeSet};

use crate::gpus::GpuReading;
use crate::pods::PodNames;
use crate::source::gpu::{GpuProcess, Gpus};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Holder<'a> {
    pub(super) namespace: &'a str,
    pub(super) pod: &'a str,
    pub(super) container: &'a str,
}

/// By UUID of GPU or instance.
#[derive(Debug, Default)]
pub(super) struct Holders<'a>(BTreeMap<&'a str, BTreeSet<Holder<'a>>>);

impl<'a> Holders<'a> {
    /// By the processes that hold GPUs: those of pods whose names are known.
    pub(super) fn of(reading: &'a GpuReading, gpus: &'a Gpus, names: &'a PodNames) -> Self {
        let holder = |process: &GpuProcess| {
            let owner = reading.owners.get(&process.pid)?;
            let name = names.get(&owner.pod_uid)?;
            let container = name.containers.get(owner.container_id.as_ref()?)?;
            Some(Holder { namespace: &name.namespace, pod: &name.name, container })
        };
        let mut holders = Self::default();
        for gpu in &gpus.all {
            let whole = (&*gpu.identity.uuid, &gpu.processes);
            let parts = gpu.mig.iter().flatten().map(|instance| (&*instance.uuid, &instance.processes));
            for (uuid, processes) in std::iter::once(whole).chain(parts) {
                holders.0.entry(uuid).or_default().extend(processes.iter().flatten().filter_map(holder));
            }
        }
        holders
    }

    /// `None` if nobody holds it, or several do.
    pub(super) fn only(&self, uuid: &str) -> Option<Holder<'a>> {
        let holders = self.0.get(uuid)?;
        holders.first().copied().filter(|_| holders.len() == 1)
    }
}
