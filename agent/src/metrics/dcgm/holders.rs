//! Who holds which GPU or instance, as far as there is one answer: dcgm-exporter's pages have room for one pod a row.

use std::collections::{BTreeMap, BTreeSet};

use crate::gpus::GpuReading;
use crate::pods::PodNames;
use crate::source::gpu::{GpuProcess, Gpus};
use crate::source::pod_resources::Allocation;

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
    /// As the kubelet says; of what it gave to nobody, by the processes of pods whose names are known.
    pub(super) fn of(
        allocations: &[&'a Allocation],
        reading: &'a GpuReading,
        gpus: &'a Gpus,
        names: &'a PodNames,
    ) -> Self {
        let mut holders = Self::default();
        for allocation in allocations {
            let Allocation { namespace, pod, container, .. } = *allocation;
            for uuid in allocation.uuids(Some(gpus)) {
                holders.0.entry(uuid).or_default().insert(Holder { namespace, pod, container });
            }
        }
        let holder = |process: &GpuProcess| {
            let owner = reading.owners.get(&process.pid)?;
            let name = names.get(&owner.pod_uid)?;
            let container = name.containers.get(owner.container_id.as_ref()?)?;
            Some(Holder { namespace: &name.namespace, pod: &name.name, container })
        };
        for gpu in &gpus.all {
            let whole = (&*gpu.identity.uuid, &gpu.processes);
            let parts = gpu.mig.iter().flatten().map(|instance| (&*instance.uuid, &instance.processes));
            for (uuid, processes) in std::iter::once(whole).chain(parts) {
                let found = || processes.iter().flatten().filter_map(holder).collect();
                holders.0.entry(uuid).or_insert_with(found);
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::pods::PodName;
    use crate::source::gpu::{Gpu, Identity, Now};
    use crate::source::kubepods;

    const UID: &str = "8f5d2c4e-1b7a-4f0e-9c3d-5a6b7c8d9e0f";
    const FIRST: &str = "GPU-d2f1a0b9-3c4d-4e5f-8a9b-0c1d2e3f4a5b";
    const SECOND: &str = "GPU-91b6e2c4-7a3d-4f0b-b1c2-8d9e0f1a2b3c";

    fn gpu(uuid: &str, minor: u32) -> Gpu {
        let identity =
            Identity { uuid: uuid.into(), index: minor, model: String::new(), pci: None, minor: Some(minor) };
        Gpu {
            identity: Arc::new(identity),
            lost: false,
            now: Now::default(),
            slow: Arc::default(),
            mig: None,
            processes: Some(vec![GpuProcess { pid: 7, memory: None, sm: None }]),
        }
    }

    fn allocation(pod: &str, id: &str) -> Allocation {
        Allocation {
            namespace: "ml".into(),
            pod: pod.into(),
            container: "main".into(),
            resource: "nvidia.com/gpu".into(),
            device_ids: vec![id.into()],
        }
    }

    /// The pods that hold the first GPU and the second, which a process of pod `reaches` uses both.
    fn holders(allocations: &[Allocation]) -> [Option<String>; 2] {
        let id = "a".repeat(64);
        let owner = kubepods::owner(&format!("/kubepods/pod{UID}/{id}")).unwrap();
        let reading = GpuReading {
            gpus: None,
            health: Vec::new(),
            policy_version: "test".into(),
            owners: BTreeMap::from([(7, owner)]),
        };
        let name = PodName {
            namespace: "ml".into(),
            name: "reaches".into(),
            uid: UID.into(),
            containers: [(id, "main".to_owned())].into(),
            ..PodName::default()
        };
        let names = PodNames::of([(UID, name)]);
        let gpus = Gpus { driver_version: String::new(), all: vec![gpu(FIRST, 0), gpu(SECOND, 1)] };
        let allocations: Vec<_> = allocations.iter().collect();
        let holders = Holders::of(&allocations, &reading, &gpus, &names);
        [FIRST, SECOND].map(|uuid| holders.only(uuid).map(|holder| holder.pod.to_owned()))
    }

    #[test]
    fn the_kubelet_s_word_comes_before_the_processes() {
        let pod = |name: &str| Some(name.to_owned());
        assert_eq!(holders(&[]), [pod("reaches"), pod("reaches")]);
        assert_eq!(holders(&[allocation("train", "nvidia0")]), [pod("train"), pod("reaches")]);
        assert_eq!(holders(&[allocation("train", SECOND)]), [pod("reaches"), pod("train")]);
    }

    #[test]
    fn a_gpu_that_two_pods_share_is_neither_s() {
        let share = |pod, number| allocation(pod, &format!("{FIRST}::{number}"));
        assert_eq!(holders(&[share("a", 0), share("b", 1)])[0], None);
        assert_eq!(holders(&[share("a", 0), share("a", 1)])[0], Some("a".to_owned()));
    }
}
