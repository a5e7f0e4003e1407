//! The latest sample as metrics. Totals since boot (or, from eBPF, since the agent started) are counters.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use ebb_core::classify::{Class, Signal, Utilization};
use ebb_core::units::Permille;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use tokio::sync::watch;

use super::write::{Labels, Writer};
use crate::reading::{Bpf, Reading};
use crate::sampler::Sample;
use crate::source::cgroup::CgroupUse;
use crate::source::ebpf::{CgroupSchedule, Dropped};
use crate::source::proc::{MODES, TICKS_PER_SECOND};

#[derive(Debug)]
pub(super) struct Latest(pub(super) watch::Receiver<Option<Arc<Sample>>>);

impl Collector for Latest {
    fn encode(&self, encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let mut page = Writer(encoder);
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        page.gauges("ebb_build_info", "The agent's build.", [(version, 1.0)])?;
        let Some(sample) = self.0.borrow().clone() else { return Ok(()) };
        page.gauge("ebb_sample_age_seconds", "How old these figures are.", sample.taken.elapsed().as_secs_f64())?;
        class(&mut page, &sample)?;
        sources(&mut page, &sample)?;
        node(&mut page, &sample.reading)?;
        cgroups(&mut page, &sample.reading)?;
        sample.reading.bpf.map_or(Ok(()), |bpf| program(&mut page, bpf))
    }
}

fn class(page: &mut Writer, sample: &Sample) -> fmt::Result {
    let is = |name| (([("class", name)]), f64::from(u8::from(sample.class.name() == name)));
    page.gauges(
        "ebb_node_class",
        "What the node is: 1 for one class, 0 for the others.",
        ["busy", "idle", "unknown"].map(is),
    )?;
    let idle = match sample.class {
        Class::Idle { since } => sample.at.since(since),
        Class::Busy { .. } | Class::Unknown { .. } => Duration::ZERO,
    };
    page.gauge("ebb_node_idle_seconds", "For how long the node has been idle; 0 if it is not.", idle.as_secs_f64())?;
    let levels = levels(&sample.window);
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

fn sources(page: &mut Writer, sample: &Sample) -> fmt::Result {
    let healths = || sample.healths.iter();
    page.gauges(
        "ebb_source_up",
        "Whether the source's latest read was good.",
        healths().map(|(source, health)| ([("source", source.name())], f64::from(u8::from(health.down.is_none())))),
    )?;
    page.counters(
        "ebb_source_errors",
        "Reads of the source that failed.",
        healths().flat_map(|(source, health)| {
            let row = move |(kind, count): (&&'static str, &u64)| {
                ([("source", source.name()), ("kind", *kind)], *count as f64)
            };
            health.errors.iter().map(row)
        }),
    )?;
    page.gauges(
        "ebb_collector_duration_seconds",
        "How long the source's latest read took.",
        healths().map(|(source, health)| ([("collector", source.name())], health.took.as_secs_f64())),
    )
}

fn node(page: &mut Writer, reading: &Reading) -> fmt::Result {
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
    page.counter("ebb_node_cpu_run_queue_seconds", "Time that tasks were ready and waited for a CPU.", waited)
}

fn cgroups(page: &mut Writer, reading: &Reading) -> fmt::Result {
    type Value = fn(&CgroupUse) -> Option<f64>;
    let rows = |value: Value| {
        reading.cgroups.iter().filter_map(move |cgroup| Some(([("cgroup", cgroup.path.as_str())], value(cgroup)?)))
    };
    page.gauge("ebb_cgroups", "Cgroups that are followed.", reading.cgroups.len() as f64)?;
    page.gauge(
        "ebb_cgroups_left_out",
        "Whether there are more than --max-cgroups.",
        f64::from(u8::from(!reading.cgroups_complete)),
    )?;
    let cpu: Value = |cgroup| cgroup.cpu.map(|cpu| cpu.as_secs_f64());
    page.counters("ebb_cgroup_cpu_seconds", "CPU time, as the cgroup's own accounting has it.", rows(cpu))?;
    let memory: Value = |cgroup| cgroup.memory.map(|bytes| bytes as f64);
    page.gauges("ebb_cgroup_memory_bytes", "Memory charged to the cgroup, page cache and all.", rows(memory))?;
    let working_set: Value = |cgroup| cgroup.memory_working_set.map(|bytes| bytes as f64);
    let help = "Memory without the page cache that was not touched lately, as the kubelet has it.";
    page.gauges("ebb_cgroup_memory_working_set_bytes", help, rows(working_set))?;

    type Scheduled = fn(&CgroupSchedule) -> f64;
    let rows = |value: Scheduled| {
        let of = move |cgroup: &'_ CgroupUse| Some(value(reading.schedule.get(&cgroup.id?)?));
        reading.cgroups.iter().filter_map(move |cgroup| {
            let labels: Labels<1> = [("cgroup", cgroup.path.as_str())];
            Some((labels, of(cgroup)?))
        })
    };
    let help = "CPU time between switches, by eBPF: more than ebb_cgroup_cpu_seconds_total by interrupts and steal.";
    page.counters("ebb_cgroup_cpu_scheduled_seconds", help, rows(|cgroup| cgroup.run.as_secs_f64()))?;
    let help = "Time that the cgroup's tasks were ready and waited for a CPU, by eBPF.";
    page.counters("ebb_cgroup_cpu_run_queue_seconds", help, rows(|cgroup| cgroup.wait.as_secs_f64()))?;
    page.counters("ebb_cgroup_switches", "Stints on a CPU that ended, by eBPF.", rows(|cgroup| cgroup.switches as f64))
}

fn program(page: &mut Writer, bpf: Bpf) -> fmt::Result {
    let Dropped { full, clock, missed } = bpf.dropped;
    let dropped = [("full", full), ("clock", clock), ("missed", missed)];
    page.counters(
        "ebb_bpf_dropped",
        "Stints charged to no cgroup: no room for one more, a clock that went back, or an end that was not shown.",
        dropped.map(|(reason, count)| ([("reason", reason)], count as f64)),
    )?;
    let run = bpf.cost.map(|cost| cost.run_time.as_secs_f64());
    page.counter(
        "ebb_bpf_run_seconds",
        "Time in the kernel program; only while kernel.bpf_stats_enabled is set.",
        run,
    )?;
    let runs = bpf.cost.map(|cost| cost.run_count as f64);
    page.counter("ebb_bpf_runs", "Runs of the kernel program; only while kernel.bpf_stats_enabled is set.", runs)
}
