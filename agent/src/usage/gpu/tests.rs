use std::sync::Arc;

use super::*;
use crate::reading::Reading;
use crate::source::gpu::{Activity, Busy, GpuMemory, Gpus, Identity, Now};
use crate::source::pod_resources::Allocation;
use crate::usage::tests::{UID, World};

const GPU: &str = "GPU-d2f1a0b9-3c4d-4e5f-8a9b-0c1d2e3f4a5b";
const OTHER: &str = "GPU-91b6e2c4-7a3d-4f0b-b1c2-8d9e0f1a2b3c";
/// A process of the pod, and one of another pod.
const OWN: u32 = 7;
const FOREIGN: u32 = 8;

fn share(raw: u16) -> Permille {
    Permille::new(raw).unwrap()
}

fn gpu(uuid: &str, busy: Option<u16>, memory: u64) -> Gpu {
    let identity = Identity { uuid: uuid.into(), index: 0, model: String::new(), pci: None, minor: None };
    let busy = busy.map(|mean| Busy { mean: share(mean), max: share(1000) });
    let memory = Some(GpuMemory { used: memory, reserved: 1, total: 1 << 40 });
    let now = Now { busy, memory, ..Now::default() };
    Gpu { identity: Arc::new(identity), lost: false, now, slow: Arc::default(), mig: None, processes: Some(Vec::new()) }
}

fn process(pid: u32, sm: Option<u16>, memory: Option<u64>) -> GpuProcess {
    GpuProcess { pid, memory, sm: sm.map(share) }
}

/// Of the pod, after one sample for each of these: what its GPUs did, and which devices the kubelet gave it.
fn mean(samples: &[&[Gpu]], given: &[&str]) -> Option<(Option<u16>, Option<u64>)> {
    let world = World::new();
    let mut meter = GpuMeter::default();
    for (at, gpus) in (10..).zip(samples) {
        let mut sample = world.sample(at, &[("a", 0)]);
        let owner = sample.reading.cgroups()[0].owner.as_deref().unwrap().clone();
        let foreign = crate::source::kubepods::Owner { pod_uid: "other".into(), ..owner.clone() };
        let reading = GpuReading {
            gpus: Some(Arc::new(Gpus { driver_version: String::new(), all: gpus.to_vec() })),
            health: Vec::new(),
            policy_version: "test".into(),
            owners: BTreeMap::from([(OWN, owner), (FOREIGN, foreign)]),
        };
        let gpus = Some(Arc::new(reading));
        sample.reading = Arc::new(Reading { gpus, ..Reading::clone(&sample.reading) });
        let allocation = Allocation {
            namespace: "ml".into(),
            pod: "train-0".into(),
            container: "work".into(),
            resource: "nvidia.com/gpu".into(),
            device_ids: given.iter().map(|id| (*id).to_owned()).collect(),
        };
        sample.allocations = Some([allocation].into());
        meter.note(&sample);
    }
    meter.of(UID).map(|mean| (mean.busy().map(Permille::get), mean.memory))
}

#[test]
fn a_pod_with_gpus_of_its_own_has_their_mean_and_the_memory_of_all() {
    let at = |busy, memory| [gpu(GPU, Some(busy), memory), gpu(OTHER, Some(0), 1)];
    assert_eq!(mean(&[&at(1000, 5), &at(200, 7)], &[GPU, OTHER]), Some((Some(300), Some(8))));
    assert_eq!(mean(&[&at(1000, 5), &at(200, 7)], &[GPU]), Some((Some(600), Some(7))));
    assert_eq!(mean(&[&at(1000, 5)], &[]), None, "a pod without GPU has no figure of any");
}

#[test]
fn what_is_unknown_of_one_gpu_is_unknown_of_all_and_never_zero() {
    let known = [gpu(GPU, Some(800), 5), gpu(OTHER, Some(400), 5)];
    let lost = Gpu { lost: true, now: Now::default(), ..gpu(OTHER, None, 0) };
    let half = [gpu(GPU, Some(0), 5), lost];
    assert_eq!(mean(&[&half], &[GPU, OTHER]), Some((None, None)));
    assert_eq!(mean(&[&known, &half], &[GPU, OTHER]), Some((Some(600), None)), "busy as far as it was known");
}

#[test]
fn a_pod_that_shares_a_gpu_has_what_its_own_processes_use() {
    let shared = |own: GpuProcess| Gpu {
        processes: Some(vec![own, process(FOREIGN, Some(500), Some(100))]),
        ..gpu(GPU, Some(900), 107)
    };
    let slice = format!("{GPU}::3");
    assert_eq!(mean(&[&[shared(process(OWN, Some(400), Some(7)))]], &[&slice]), Some((Some(400), Some(7))));
    assert_eq!(mean(&[&[shared(process(OWN, None, Some(7)))]], &[&slice]), Some((None, Some(7))));
    assert_eq!(
        mean(&[&[shared(process(1, Some(0), Some(0)))]], &[&slice]),
        Some((Some(0), Some(0))),
        "it runs nothing"
    );
    let reached = [Gpu { processes: Some(vec![process(OWN, Some(1), Some(1))]), ..gpu(GPU, Some(900), 7) }];
    assert_eq!(mean(&[&reached], &[]), Some((Some(900), Some(7))), "alone on a GPU that it did not ask for");
}

#[test]
fn a_mig_instance_counts_as_a_gpu() {
    let activity = Some(Activity { sm_active: Some(share(250)), ..Activity::default() });
    let instance = |uuid: &str, activity| MigInstance {
        uuid: uuid.into(),
        profile: "1g.10gb".into(),
        gpu_instance: Some(1),
        memory: Some(GpuMemory { used: 3, reserved: 0, total: 10 }),
        activity,
        processes: Some(vec![process(OWN, None, Some(3))]),
    };
    let uuid = GPU.replace("GPU", "MIG");
    let divided = |activity| [Gpu { mig: Some(vec![instance(&uuid, activity)]), processes: None, ..gpu(GPU, None, 9) }];
    assert_eq!(mean(&[&divided(activity)], &[&uuid]), Some((Some(250), Some(3))));
    assert_eq!(mean(&[&divided(None)], &[&uuid]), Some((None, Some(3))), "before Hopper nobody says");
}
