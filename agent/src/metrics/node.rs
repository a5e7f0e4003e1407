//! What `/proc` says of the whole node.

use std::fmt;
use std::time::Duration;

use super::write::Writer;
use crate::reading::Reading;
use crate::source::proc::{MODES, TICKS_PER_SECOND};

pub(super) fn encode(page: &mut Writer, reading: &Reading) -> fmt::Result {
    if let Some(stat) = &reading.stat {
        let cpus: Vec<_> = stat.cpus.iter().map(|(number, ticks)| (number.to_string(), ticks)).collect();
        page.counters(
            "ebb_node_cpu_seconds",
            "Time of each CPU by what it was spent on.",
            cpus.iter().flat_map(|(number, ticks)| {
                let row = move |(mode, ticks): (&'static str, u64)| {
                    ([("cpu", number.as_str()), ("mode", mode)], ticks as f64 / TICKS_PER_SECOND)
                };
                MODES.into_iter().zip(ticks.0).map(row)
            }),
        )?;
        page.counter("ebb_node_context_switches", "Switches from task to task.", stat.context_switches as f64)?;
    }
    if let Some(memory) = reading.memory {
        page.gauge("ebb_node_memory_total_bytes", "Memory of the node.", memory.total as f64)?;
        page.gauge(
            "ebb_node_memory_available_bytes",
            "Memory that could be had without swapping.",
            memory.available as f64,
        )?;
        page.gauge("ebb_node_memory_free_bytes", "Memory that nothing uses, not even as cache.", memory.free as f64)?;
        let help = "MemTotal - MemFree - Inactive(file), as the kubelet has it.";
        page.gauge("ebb_node_memory_working_set_bytes", help, memory.working_set as f64)?;
    }
    if let Some(pressure) = reading.pressure {
        page.counters(
            "ebb_pressure_seconds",
            "Time in which some task, or all of them, could not go on for want of the resource.",
            pressure.iter().flat_map(|(resource, pressure)| {
                let row = move |(kind, stalled): (&'static str, Option<Duration>)| {
                    Some(([("resource", resource), ("kind", kind)], stalled?.as_secs_f64()))
                };
                [("some", pressure.some), ("full", pressure.full)].into_iter().filter_map(row)
            }),
        )?;
    }
    let waited = reading.waited.map(|waited| waited.total.as_secs_f64());
    page.counter("ebb_node_cpu_run_queue_seconds", "Time that tasks were ready and waited for a CPU.", waited)?;
    page.histograms(
        "ebb_node_run_queue_latency_seconds",
        "How long tasks waited for each of their stints on a CPU, by eBPF.",
        reading.bpf.as_ref().zip(reading.waited).map(|(bpf, waited)| ([], &bpf.latency, waited.total)),
    )
}
