//! What each pod used as a whole: its containers, its sandbox, and what no container of it is charged for.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use super::write::{Labels, Writer};
use crate::workload::Pod;

/// `namespace` and `pod` are empty while nobody tells the names.
fn labels<'a>(pod: &'a Pod<'a>) -> Labels<'a, 3> {
    [("namespace", pod.namespace()), ("pod", pod.name()), ("uid", pod.uid)]
}

pub(super) fn encode(page: &mut Writer, pods: &BTreeMap<&str, Pod<'_>>) -> fmt::Result {
    type Value = fn(&Pod<'_>) -> Option<f64>;
    let rows = |value: Value| pods.values().filter_map(move |pod| Some((labels(pod), value(pod)?)));
    let cpu: Value = |pod| pod.figures?.cpu.map(|cpu| cpu.as_secs_f64());
    page.counters("ebb_pod_cpu_seconds", "CPU time, as the pod's own cgroup has it.", rows(cpu))?;
    let working_set: Value = |pod| pod.figures?.memory.working_set().map(|bytes| bytes as f64);
    let help = "Memory without the page cache that was not touched lately, as the kubelet has it.";
    page.gauges("ebb_pod_memory_working_set_bytes", help, rows(working_set))?;
    page.histograms(
        "ebb_pod_run_queue_latency_seconds",
        "How long the pod's tasks waited for each of their stints on a CPU, by eBPF.",
        pods.values().filter_map(|pod| {
            let schedule = pod.schedule.as_ref()?;
            Some((labels(pod), &schedule.latency, schedule.wait))
        }),
    )?;
    page.counters(
        "ebb_pod_pressure_seconds",
        "Time in which some task of the pod, or all of them, could not go on for want of the resource.",
        pods.values().flat_map(|pod| {
            let [namespace, name, uid] = labels(pod);
            let pressure = pod.figures.and_then(|figures| figures.pressure);
            pressure.into_iter().flat_map(move |pressure| {
                pressure.iter().flat_map(move |(resource, pressure)| {
                    let row = move |(kind, stalled): (&'static str, Option<Duration>)| {
                        Some(([namespace, name, uid, ("resource", resource), ("kind", kind)], stalled?.as_secs_f64()))
                    };
                    [("some", pressure.some), ("full", pressure.full)].into_iter().filter_map(row)
                })
            })
        }),
    )
}
