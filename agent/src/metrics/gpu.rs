//! What each GPU and MIG instance does, how its memory and links hold, and who uses it. Native units; a figure that a
//! GPU does not have is not there.

mod health;
mod process;

use std::fmt;

use ebb_core::units::Permille;

use super::write::{Labels, Writer};
use crate::gpus::GpuReading;
use crate::pods::PodNames;
use crate::source::gpu::{Activity, Gpu, GpuMemory, Gpus, MigInstance, THROTTLE_REASONS};

/// A GPU, or one of its instances, with its labels' values.
struct Subject<'a> {
    uuid: &'a str,
    index: String,
    gpu: &'a Gpu,
    instance: Option<&'a MigInstance>,
}

pub(super) fn encode(page: &mut Writer, reading: &GpuReading, names: &PodNames) -> fmt::Result {
    if let Some(gpus) = &reading.gpus {
        let subjects = subjects(gpus);
        info(page, gpus, &subjects)?;
        shares(page, &subjects)?;
        memory(page, &subjects)?;
        body(page, &subjects)?;
        process::encode(page, reading, names, &subjects)?;
    }
    health::encode(page, reading)
}

fn subjects<'a>(gpus: &'a Gpus) -> Vec<Subject<'a>> {
    let of_gpu = |gpu: &'a Gpu| {
        let Gpu { identity, mig, .. } = gpu;
        let index = identity.index.to_string();
        let whole = Subject { uuid: &identity.uuid, index: index.clone(), gpu, instance: None };
        let part = move |instance: &'a MigInstance| Subject {
            uuid: &instance.uuid,
            index: index.clone(),
            gpu,
            instance: Some(instance),
        };
        std::iter::once(whole).chain(mig.iter().flatten().map(part))
    };
    gpus.all.iter().flat_map(of_gpu).collect()
}

impl<'a> Subject<'a> {
    fn labels(&'a self) -> Labels<'a, 2> {
        [("gpu_uuid", self.uuid), ("gpu", &self.index)]
    }

    fn labels_and(&'a self, name: &'static str, value: &'a str) -> Labels<'a, 3> {
        let [uuid, index] = self.labels();
        [uuid, index, (name, value)]
    }

    /// Of a GPU in MIG mode its instances' only: sums over all series are to hold nothing twice.
    fn memory(&self) -> Option<GpuMemory> {
        self.instance.map_or(self.undivided()?.now.memory, |instance| instance.memory)
    }

    fn activity(&self) -> Option<Activity> {
        self.instance.map_or(self.undivided()?.now.activity, |instance| instance.activity)
    }

    /// `None` for a GPU in MIG mode itself.
    fn undivided(&self) -> Option<&'a Gpu> {
        (self.instance.is_some() || self.gpu.mig.is_none()).then_some(self.gpu)
    }

    /// `None` for an instance: these figures are the whole GPU's.
    fn whole(&self) -> Option<&'a Gpu> {
        self.instance.is_none().then_some(self.gpu)
    }
}

/// One row for each subject that has a value.
fn rows<'a>(
    subjects: &'a [Subject<'a>],
    value: impl Fn(&'a Subject<'a>) -> Option<f64>,
) -> impl Iterator<Item = (Labels<'a, 2>, f64)> {
    subjects.iter().filter_map(move |subject| Some((subject.labels(), value(subject)?)))
}

/// One row for each whole GPU and name that has a value.
fn named<'a, N: Iterator<Item = (&'static str, f64)>>(
    subjects: &'a [Subject<'a>],
    name: &'static str,
    values: impl Fn(&'a Gpu) -> N,
) -> impl Iterator<Item = (Labels<'a, 3>, f64)> {
    let whole = subjects.iter().filter_map(|subject| Some((subject, subject.whole()?)));
    let labelled = whole.flat_map(move |(subject, gpu)| values(gpu).map(move |row| (subject, row)));
    labelled.map(move |(subject, (label, value))| (subject.labels_and(name, label), value))
}

fn info(page: &mut Writer, gpus: &Gpus, subjects: &[Subject<'_>]) -> fmt::Result {
    let places: Vec<_> = subjects
        .iter()
        .map(|subject| subject.gpu.identity.pci.map(|pci| pci.to_string()).unwrap_or_default())
        .collect();
    let rows = subjects.iter().zip(&places).map(|(subject, pci)| {
        let [uuid, index] = subject.labels();
        let labels: Labels<'_, 6> = [
            uuid,
            index,
            ("model", &subject.gpu.identity.model),
            ("pci_bus_id", pci),
            ("driver_version", &gpus.driver_version),
            ("mig_profile", subject.instance.map_or("", |instance| &instance.profile)),
        ];
        (labels, 1.0)
    });
    page.gauges("ebb_gpu_info", "The node's GPUs and their MIG instances.", rows)
}

fn shares(page: &mut Writer, subjects: &[Subject<'_>]) -> fmt::Result {
    type Share = fn(&Subject<'_>) -> Option<Permille>;
    let families: [(&str, &str, Share); 9] = [
        (
            "ebb_gpu_busy_ratio",
            "Share of time with at least one kernel running, mean since the sample before.",
            |subject| Some(subject.whole()?.now.busy?.mean),
        ),
        (
            "ebb_gpu_busy_max_ratio",
            "Share of time with at least one kernel running, highest of the driver's samples since the sample before.",
            |subject| Some(subject.whole()?.now.busy?.max),
        ),
        ("ebb_gpu_memory_busy_ratio", "Share of time in which memory was read or written.", |subject| {
            subject.whole()?.now.memory_busy
        }),
        ("ebb_gpu_encoder_busy_ratio", "Share of time in which the video encoder worked.", |subject| {
            subject.whole()?.slow.encoder_busy
        }),
        ("ebb_gpu_decoder_busy_ratio", "Share of time in which the video decoder worked.", |subject| {
            subject.whole()?.slow.decoder_busy
        }),
        ("ebb_gpu_sm_active_ratio", "Share of time in which an SM had work, over all SMs; by GPM.", |subject| {
            subject.activity()?.sm_active
        }),
        ("ebb_gpu_sm_occupancy_ratio", "Warps that were resident, of those that could be; by GPM.", |subject| {
            subject.activity()?.sm_occupancy
        }),
        ("ebb_gpu_tensor_active_ratio", "Share of time in which tensor cores worked; by GPM.", |subject| {
            subject.activity()?.tensor_active
        }),
        ("ebb_gpu_dram_active_ratio", "Memory bandwidth used, of what there is; by GPM.", |subject| {
            subject.activity()?.dram_active
        }),
    ];
    for (name, help, share) in families {
        page.gauges(name, help, rows(subjects, |subject| share(subject).map(Permille::ratio)))?;
    }
    Ok(())
}

fn memory(page: &mut Writer, subjects: &[Subject<'_>]) -> fmt::Result {
    type Bytes = fn(GpuMemory) -> u64;
    let families: [(&str, &str, Bytes); 3] = [
        ("ebb_gpu_memory_used_bytes", "Memory that processes hold.", |memory| memory.used),
        ("ebb_gpu_memory_reserved_bytes", "Memory that the driver keeps for itself.", |memory| memory.reserved),
        ("ebb_gpu_memory_total_bytes", "Memory in all.", |memory| memory.total),
    ];
    for (name, help, bytes) in families {
        page.gauges(name, help, rows(subjects, |subject| subject.memory().map(|memory| bytes(memory) as f64)))?;
    }
    Ok(())
}

/// Power, clocks, heat, and what holds the clocks down.
fn body(page: &mut Writer, subjects: &[Subject<'_>]) -> fmt::Result {
    let power = |subject: &Subject<'_>| Some(f64::from(subject.whole()?.now.power_milliwatts?) / 1000.0);
    page.gauges("ebb_gpu_power_watts", "Power drawn.", rows(subjects, power))?;
    let energy = |subject: &Subject<'_>| Some(subject.whole()?.now.energy_millijoules? as f64 / 1000.0);
    page.counters("ebb_gpu_energy_joules", "Energy used since the driver was loaded.", rows(subjects, energy))?;
    let pairs = |names: [&'static str; 2], values: [Option<u32>; 2], unit: f64| {
        names.into_iter().zip(values).filter_map(move |(name, value)| Some((name, f64::from(value?) * unit)))
    };
    let temperatures = named(subjects, "sensor", |gpu| {
        pairs(["gpu", "memory"], [gpu.now.temperature_celsius, gpu.now.memory_temperature_celsius], 1.0)
    });
    page.gauges("ebb_gpu_temperature_celsius", "Temperature.", temperatures)?;
    let clocks = named(subjects, "clock", |gpu| {
        pairs(["sm", "memory"], [gpu.now.sm_clock_megahertz, gpu.now.memory_clock_megahertz], 1e6)
    });
    page.gauges("ebb_gpu_clock_hertz", "Clock frequency.", clocks)?;
    let throttled = named(subjects, "reason", |gpu| {
        let is_on = |(bit, name): (u64, &'static str), on: u64| (name, f64::from(u8::from(on & bit != 0)));
        let of = move |on: u64| THROTTLE_REASONS.map(|reason| is_on(reason, on));
        gpu.now.throttle_reasons.into_iter().flat_map(of)
    });
    page.gauges("ebb_gpu_throttled", "Whether the clocks are held down, by what does.", throttled)?;
    let time =
        named(subjects, "reason", |gpu| gpu.slow.throttled.iter().map(|(reason, time)| (*reason, time.as_secs_f64())));
    page.counters("ebb_gpu_throttle_seconds", "Time for which the clocks were held down, by what did.", time)
}
