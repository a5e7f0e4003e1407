//! What the node is, and what that rests on.

use std::fmt;
use std::time::Duration;

use ebb_core::classify::{Class, GpuUse, Signal, Utilization};
use ebb_core::units::Permille;

use super::write::Writer;
use crate::sampler::Sample;

pub(super) fn encode(page: &mut Writer, sample: &Sample) -> fmt::Result {
    let is = |name| (([("class", name)]), f64::from(u8::from(sample.verdict.class.name() == name)));
    page.gauges(
        "ebb_node_class",
        "What the node is: 1 for one class, 0 for the others.",
        ["busy", "idle", "unknown"].map(is),
    )?;
    let idle = match sample.verdict.class {
        Class::Idle { since } => sample.at.since(since),
        Class::Busy { .. } | Class::Unknown { .. } => Duration::ZERO,
    };
    page.gauge("ebb_node_idle_seconds", "For how long the node has been idle; 0 if it is not.", idle.as_secs_f64())?;
    let waste = sample.verdict.gpu_waste.map_or(Duration::ZERO, |since| sample.at.since(since));
    page.gauge(
        "ebb_node_gpu_waste_seconds",
        "For how long the node has been busy while none of its GPUs worked; 0 if it is not. Missing: no GPU, or unknown.",
        matches!(sample.verdict.window.gpu, GpuUse::Busy(_)).then_some(waste.as_secs_f64()),
    )?;
    let levels = levels(&sample.verdict.window);
    page.gauges(
        "ebb_node_utilization_ratio",
        "What the class rests on: means over its window, of GPUs the highest. Missing: unknown.",
        levels.into_iter().filter_map(|(signal, level)| Some(([("signal", signal)], level?.ratio()))),
    )
}

/// In the order of their names.
pub(crate) fn levels(utilization: &Utilization) -> [(&'static str, Option<Permille>); 6] {
    [
        (Signal::Cpu.name(), utilization.cpu),
        (Signal::CpuSteal.name(), utilization.cpu_steal),
        (Signal::Gpu.name(), utilization.gpu.busy()),
        ("memory", utilization.memory),
        (Signal::MemoryPressure.name(), utilization.memory_pressure),
        (Signal::RunQueue.name(), utilization.run_queue),
    ]
}
