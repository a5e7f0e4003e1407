//! The GPUs of a snapshot: what each does, what it is fit for, and who uses it.

use std::collections::BTreeMap;

use ebb_core::units::Permille;
use serde::Serialize;

use crate::gpus::{GpuHealth, GpuReading};
use crate::pods::PodNames;
use crate::source::gpu::{self, Activity, GpuMemory, GpuProcess, MigInstance};
use crate::workload::User;

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Gpu {
    pub(crate) uuid: String,
    pub(crate) index: u32,
    pub(crate) model: String,
    /// Share of time with at least one kernel running: mean, and highest of the driver's samples.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) busy_permille: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) busy_max_permille: Option<u16>,
    #[serde(flatten)]
    pub(crate) part: Part,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) power_watts: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) temperature_celsius: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) sm_clock_megahertz: Option<u32>,
    /// What the GPU is fit for, and why that is less than all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) verdict: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) because: Option<String>,
    /// How often each XID came since the agent started.
    pub(crate) xids: BTreeMap<u32, u64>,
    /// Empty outside MIG mode.
    pub(crate) mig_instances: Vec<Instance>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Instance {
    pub(crate) uuid: String,
    pub(crate) profile: String,
    #[serde(flatten)]
    pub(crate) part: Part,
}

/// What a GPU and a MIG instance both have.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Part {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) sm_active_permille: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) sm_occupancy_permille: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tensor_active_permille: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) dram_active_permille: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) memory_used_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) memory_total_bytes: Option<u64>,
    /// Missing: nobody can say who holds it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) processes: Option<Vec<Process>>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Process {
    pub(crate) pid: u32,
    /// All empty for a process of no pod; the first two also while nobody tells the names.
    pub(crate) namespace: String,
    pub(crate) pod: String,
    pub(crate) container: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) sm_permille: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) memory_bytes: Option<u64>,
}

pub(super) fn gpus(reading: &GpuReading, names: &PodNames) -> Vec<Gpu> {
    let Some(gpus) = &reading.gpus else { return Vec::new() };
    let row = |gpu: &gpu::Gpu| {
        let health = reading.health.iter().find(|health| Some(health.pci) == gpu.identity.pci);
        let verdict = health.map(|health| &health.verdict);
        let now = &gpu.now;
        let whole = (now.memory, now.activity, gpu.processes.as_deref());
        let instance = |instance: &MigInstance| Instance {
            uuid: instance.uuid.to_string(),
            profile: instance.profile.to_string(),
            part: part((instance.memory, instance.activity, instance.processes.as_deref()), reading, names),
        };
        Gpu {
            uuid: gpu.identity.uuid.clone(),
            index: gpu.identity.index,
            model: gpu.identity.model.clone(),
            busy_permille: now.busy.map(|busy| busy.mean.get()),
            busy_max_permille: now.busy.map(|busy| busy.max.get()),
            part: part(whole, reading, names),
            power_watts: now.power_milliwatts.map(|power| f64::from(power) / 1000.0),
            temperature_celsius: now.temperature_celsius,
            sm_clock_megahertz: now.sm_clock_megahertz,
            verdict: verdict.map(|verdict| verdict.verdict.name()),
            because: verdict.and_then(|verdict| verdict.reason.as_ref()).map(ToString::to_string),
            xids: health.map(|GpuHealth { xids, .. }| xids.clone()).unwrap_or_default(),
            mig_instances: gpu.mig.iter().flatten().map(instance).collect(),
        }
    };
    gpus.all.iter().map(row).collect()
}

fn part(
    (memory, activity, processes): (Option<GpuMemory>, Option<Activity>, Option<&[GpuProcess]>),
    reading: &GpuReading,
    names: &PodNames,
) -> Part {
    let permille = |share: fn(Activity) -> Option<Permille>| activity.and_then(share).map(Permille::get);
    let process = |process: &GpuProcess| {
        let owner = reading.owners.get(&process.pid);
        let User { namespace, pod, container, .. } = owner.map(|owner| User::of(owner, names)).unwrap_or_default();
        Process {
            pid: process.pid,
            namespace: namespace.to_owned(),
            pod: pod.to_owned(),
            container: container.to_owned(),
            sm_permille: process.sm.map(Permille::get),
            memory_bytes: process.memory,
        }
    };
    Part {
        sm_active_permille: permille(|activity| activity.sm_active),
        sm_occupancy_permille: permille(|activity| activity.sm_occupancy),
        tensor_active_permille: permille(|activity| activity.tensor_active),
        dram_active_permille: permille(|activity| activity.dram_active),
        memory_used_bytes: memory.map(|memory| memory.used),
        memory_total_bytes: memory.map(|memory| memory.total),
        processes: processes.map(|processes| processes.iter().map(process).collect()),
    }
}
