//! What each cgroup used that belongs to no pod, by its own accounting and by eBPF.

use std::fmt;

use super::write::{Labels, Writer};
use crate::reading::Reading;
use crate::source::cgroup::Cgroup;
use crate::source::ebpf::CgroupSchedule;

pub(super) fn encode(page: &mut Writer, reading: &Reading) -> fmt::Result {
    if let Some(cgroups) = &reading.cgroups {
        page.gauge("ebb_cgroups", "Cgroups that are followed, those of pods among them.", cgroups.all.len() as f64)?;
        let left_out = f64::from(u8::from(!cgroups.complete));
        page.gauge("ebb_cgroups_left_out", "Whether there are more than --max-cgroups.", left_out)?;
        let age = reading.at.saturating_duration_since(cgroups.at).as_secs_f64();
        let help = "How old the figures of pods, containers and cgroups are: they are read every --pod-interval.";
        page.gauge("ebb_cgroups_age_seconds", help, age)?;
    }
    let others = || reading.cgroups().iter().filter(|cgroup| cgroup.owner.is_none());
    type Value = fn(&Cgroup) -> Option<f64>;
    let rows = |value: Value| others().filter_map(move |cgroup| Some(([("cgroup", &*cgroup.path)], value(cgroup)?)));
    let cpu: Value = |cgroup| cgroup.figures.cpu.map(|cpu| cpu.as_secs_f64());
    page.counters("ebb_cgroup_cpu_seconds", "CPU time, as the cgroup's own accounting has it.", rows(cpu))?;
    let memory: Value = |cgroup| cgroup.figures.memory.total.map(|bytes| bytes as f64);
    page.gauges("ebb_cgroup_memory_bytes", "Memory charged to the cgroup, page cache and all.", rows(memory))?;
    let working_set: Value = |cgroup| cgroup.figures.memory.working_set().map(|bytes| bytes as f64);
    let help = "Memory without the page cache that was not touched lately, as the kubelet has it.";
    page.gauges("ebb_cgroup_memory_working_set_bytes", help, rows(working_set))?;

    type Scheduled = fn(&CgroupSchedule) -> f64;
    let rows = |value: Scheduled| {
        others().filter_map(move |cgroup| {
            let labels: Labels<1> = [("cgroup", &*cgroup.path)];
            Some((labels, value(cgroup.schedule.as_ref()?)))
        })
    };
    let help = "CPU time between switches, by eBPF: more than ebb_cgroup_cpu_seconds_total by interrupts and steal.";
    page.counters("ebb_cgroup_cpu_scheduled_seconds", help, rows(|cgroup| cgroup.run.as_secs_f64()))?;
    let help = "Time that the cgroup's tasks were ready and waited for a CPU, by eBPF.";
    page.counters("ebb_cgroup_cpu_run_queue_seconds", help, rows(|cgroup| cgroup.wait.as_secs_f64()))?;
    page.counters(
        "ebb_cgroup_switches",
        "Stints on a CPU that ended, by eBPF.",
        rows(|cgroup| cgroup.latency.count() as f64),
    )?;
    let rows = others().filter_map(|cgroup| Some(([("cgroup", &*cgroup.path)], cgroup.cuda_launches? as f64)));
    let help = "CUDA kernels and graphs launched, counted in libcuda: see --cuda-launches.";
    page.counters("ebb_cgroup_cuda_launches", help, rows)
}
