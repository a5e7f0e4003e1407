//! What each container used, by its cgroup's own accounting and by eBPF.

use std::collections::BTreeMap;
use std::fmt;

use super::write::{Labels, Writer};
use crate::source::cgroup::Throttling;
use crate::workload::{Container, Pod};

/// `container` is the id, and `namespace` and `pod` are empty, while nobody tells the names.
fn labels<'a>(pod: &'a Pod<'a>, container: &'a str) -> Labels<'a, 4> {
    [("namespace", pod.namespace()), ("pod", pod.name()), ("container", container), ("uid", pod.uid)]
}

pub(super) fn encode(page: &mut Writer, pods: &BTreeMap<&str, Pod<'_>>) -> fmt::Result {
    type Value = fn(&Container<'_>) -> Option<f64>;
    let rows = |value: Value| {
        pods.values().flat_map(move |pod| {
            let containers = pod.containers.iter();
            containers.filter_map(move |(name, container)| Some((labels(pod, name), value(container)?)))
        })
    };
    let help = "CPU time, as the cgroup's own accounting has it.";
    let cpu: Value = |it| it.figures?.cpu.map(|cpu| cpu.as_secs_f64());
    page.counters("ebb_container_cpu_seconds", help, rows(cpu))?;
    let help = "CPU time between switches, by eBPF: more than ebb_container_cpu_seconds_total by interrupts and steal.";
    page.counters("ebb_container_cpu_scheduled_seconds", help, rows(|it| Some(it.schedule?.run.as_secs_f64())))?;
    let help = "Time that the container's tasks were ready and waited for a CPU, by eBPF.";
    page.counters("ebb_container_cpu_run_queue_seconds", help, rows(|it| Some(it.schedule?.wait.as_secs_f64())))?;
    let help = "Stints on a CPU that ended, by eBPF.";
    page.counters("ebb_container_switches", help, rows(|it| Some(it.schedule?.latency.count() as f64)))?;
    page.counters(
        "ebb_container_preemptions",
        "Stints that ended though their task could have gone on, by whose task came next, by eBPF.",
        pods.values().flat_map(|pod| {
            pod.containers.iter().flat_map(move |(name, container)| {
                let [namespace, pod, container_name, uid] = labels(pod, name);
                let by = container.schedule.map(|schedule| schedule.preemptions.by());
                by.into_iter()
                    .flatten()
                    .map(move |(by, count)| ([namespace, pod, container_name, uid, ("by", by)], count as f64))
            })
        }),
    )?;

    let help = "CUDA kernels and graphs launched, counted in libcuda: see --cuda-launches.";
    page.counters("ebb_container_cuda_launches", help, rows(|it| it.cuda_launches.map(|it| it as f64)))?;

    fn throttling(container: &Container<'_>) -> Option<Throttling> {
        container.figures?.throttling
    }
    let help = "Time in which the container was held back by its CPU limit.";
    let throttled: Value = |it| throttling(it).map(|it| it.throttled.as_secs_f64());
    page.counters("ebb_container_cpu_throttled_seconds", help, rows(throttled))?;
    let help = "Enforcement intervals of the CPU limit in which the container wanted to run.";
    page.counters("ebb_container_cpu_periods", help, rows(|it| throttling(it).map(|it| it.periods as f64)))?;
    let help = "Enforcement intervals of the CPU limit in which it was used up.";
    let periods: Value = |it| throttling(it).map(|it| it.throttled_periods as f64);
    page.counters("ebb_container_cpu_throttled_periods", help, rows(periods))?;

    let help = "Memory without the page cache that was not touched lately, as the kubelet has it.";
    let working_set: Value = |it| it.figures?.memory.working_set().map(|bytes| bytes as f64);
    page.gauges("ebb_container_memory_working_set_bytes", help, rows(working_set))?;
    let help = "Memory of the container's own, without a file behind it.";
    page.gauges("ebb_container_memory_anon_bytes", help, rows(|it| it.figures?.memory.anon.map(|it| it as f64)))?;
    let help = "Page cache that is charged to the container.";
    page.gauges("ebb_container_memory_file_bytes", help, rows(|it| it.figures?.memory.file.map(|it| it as f64)))?;
    let help = "Memory of the kernel for the container: stacks, page tables, slab.";
    page.gauges("ebb_container_memory_kernel_bytes", help, rows(|it| it.figures?.memory.kernel.map(|it| it as f64)))?;
    let help = "Memory of the container that was swapped out.";
    page.gauges("ebb_container_memory_swap_bytes", help, rows(|it| it.figures?.memory.swap.map(|it| it as f64)))?;
    let help = "Processes of the container that the kernel killed for want of memory.";
    page.counters("ebb_container_oom_kills", help, rows(|it| it.figures?.memory.oom_kills.map(|it| it as f64)))
}
