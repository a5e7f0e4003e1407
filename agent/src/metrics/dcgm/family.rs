//! dcgm-exporter's default metrics (`etc/default-counters.csv`): name, kind, unit, and where the value comes from.

use ebb_core::units::Permille;

use super::Entity;
use crate::source::gpu::{Activity, GpuMemory};

pub(super) struct Family {
    pub(super) name: &'static str,
    pub(super) kind: &'static str,
    pub(super) help: &'static str,
    pub(super) value: fn(&Entity<'_>) -> Option<f64>,
}

const fn gauge(name: &'static str, help: &'static str, value: fn(&Entity<'_>) -> Option<f64>) -> Family {
    Family { name, kind: "gauge", help, value }
}

const fn counter(name: &'static str, help: &'static str, value: fn(&Entity<'_>) -> Option<f64>) -> Family {
    Family { name, kind: "counter", help, value }
}

/// An instance has the clocks, power and heat of its GPU, as in dcgm-exporter.
pub(super) const FAMILIES: [Family; 23] = [
    gauge("DCGM_FI_DEV_SM_CLOCK", "Clock of the SMs in MHz.", |it| it.gpu.now.sm_clock_megahertz.map(f64::from)),
    gauge("DCGM_FI_DEV_MEM_CLOCK", "Clock of the memory in MHz.", |it| {
        it.gpu.now.memory_clock_megahertz.map(f64::from)
    }),
    gauge("DCGM_FI_DEV_MEMORY_TEMP", "Temperature of the memory in C.", |it| {
        it.gpu.now.memory_temperature_celsius.map(f64::from)
    }),
    gauge("DCGM_FI_DEV_GPU_TEMP", "Temperature of the GPU in C.", |it| it.gpu.now.temperature_celsius.map(f64::from)),
    gauge("DCGM_FI_DEV_POWER_USAGE", "Power drawn in W.", |it| {
        it.gpu.now.power_milliwatts.map(|power| f64::from(power) / 1000.0)
    }),
    counter("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", "Energy since the driver was loaded in mJ.", |it| {
        it.gpu.now.energy_millijoules.map(|energy| energy as f64)
    }),
    counter("DCGM_FI_DEV_PCIE_REPLAY_COUNTER", "Packets sent again on the PCI bus.", |it| {
        it.gpu.slow.pcie_replays.map(|count| count as f64)
    }),
    gauge("DCGM_FI_DEV_GPU_UTIL", "Share of time with a kernel running in %.", |it| {
        percent(it.gpu.now.busy.filter(|_| it.instance.is_none()).map(|busy| busy.mean))
    }),
    gauge("DCGM_FI_DEV_MEM_COPY_UTIL", "Share of time in which memory was read or written in %.", |it| {
        percent(it.gpu.now.memory_busy.filter(|_| it.instance.is_none()))
    }),
    gauge("DCGM_FI_DEV_ENC_UTIL", "Use of the video encoder in %.", |it| percent(it.gpu.slow.encoder_busy)),
    gauge("DCGM_FI_DEV_DEC_UTIL", "Use of the video decoder in %.", |it| percent(it.gpu.slow.decoder_busy)),
    gauge("DCGM_FI_DEV_XID_ERRORS", "The latest XID since the agent started; 0: none.", |it| {
        it.last_xid.map(f64::from)
    }),
    gauge("DCGM_FI_DEV_FB_FREE", "Memory that is free in MiB.", |it| {
        mebibytes(memory(it).map(|memory| memory.total.saturating_sub(memory.used).saturating_sub(memory.reserved)))
    }),
    gauge("DCGM_FI_DEV_FB_USED", "Memory that processes hold in MiB.", |it| {
        mebibytes(memory(it).map(|memory| memory.used))
    }),
    gauge("DCGM_FI_DEV_FB_RESERVED", "Memory that the driver keeps in MiB.", |it| {
        mebibytes(memory(it).map(|memory| memory.reserved))
    }),
    counter("DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS", "Rows of memory replaced after uncorrected errors.", |it| {
        it.gpu.slow.remapped_rows_uncorrected.map(|rows| rows as f64)
    }),
    counter("DCGM_FI_DEV_CORRECTABLE_REMAPPED_ROWS", "Rows of memory replaced after corrected errors.", |it| {
        it.gpu.slow.remapped_rows_corrected.map(|rows| rows as f64)
    }),
    gauge("DCGM_FI_DEV_ROW_REMAP_FAILURE", "Whether a row of memory could not be replaced.", |it| {
        it.gpu.slow.row_remap_failure.map(|failed| f64::from(u8::from(failed)))
    }),
    gauge("DCGM_FI_PROF_GR_ENGINE_ACTIVE", "Share of time in which anything ran.", |it| ratio(activity(it)?.graphics)),
    gauge("DCGM_FI_PROF_PIPE_TENSOR_ACTIVE", "Share of time in which tensor cores worked.", |it| {
        ratio(activity(it)?.tensor_active)
    }),
    gauge("DCGM_FI_PROF_DRAM_ACTIVE", "Memory bandwidth used, of what there is.", |it| {
        ratio(activity(it)?.dram_active)
    }),
    gauge("DCGM_FI_PROF_PCIE_TX_BYTES", "Bytes sent on the PCI bus per second.", |it| {
        activity(it)?.pcie_sent_bytes_per_second
    }),
    gauge("DCGM_FI_PROF_PCIE_RX_BYTES", "Bytes received on the PCI bus per second.", |it| {
        activity(it)?.pcie_received_bytes_per_second
    }),
];

fn memory(entity: &Entity<'_>) -> Option<GpuMemory> {
    entity.instance.map_or(entity.gpu.now.memory, |instance| instance.memory)
}

fn activity(entity: &Entity<'_>) -> Option<Activity> {
    entity.instance.map_or(entity.gpu.now.activity, |instance| instance.activity)
}

/// DCGM's utilizations are whole.
fn percent(share: Option<Permille>) -> Option<f64> {
    Some((share?.ratio() * 100.0).round())
}

fn ratio(share: Option<Permille>) -> Option<f64> {
    share.map(Permille::ratio)
}

fn mebibytes(bytes: Option<u64>) -> Option<f64> {
    bytes.map(|bytes| (bytes >> 20) as f64)
}
