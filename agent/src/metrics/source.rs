//! How the sources are doing, the kernel program among them.

use std::fmt;

use super::write::Writer;
use crate::reading::Bpf;
use crate::sampler::Sample;
use crate::source::ebpf::Dropped;

pub(super) fn encode(page: &mut Writer, sample: &Sample) -> fmt::Result {
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

pub(super) fn bpf(page: &mut Writer, bpf: Bpf) -> fmt::Result {
    let Dropped { full, clock, missed, time } = bpf.dropped;
    let dropped = [("full", full), ("clock", clock), ("missed", missed)];
    page.counters(
        "ebb_bpf_dropped",
        "Stints charged to no cgroup: no room for one more, a clock that went back, or an end that was not shown.",
        dropped.map(|(reason, count)| ([("reason", reason)], count as f64)),
    )?;
    page.counter("ebb_bpf_dropped_seconds", "How long these stints were.", time.as_secs_f64())?;
    page.gauges(
        "ebb_bpf_map_entries",
        "Cgroups that the kernel program counts for; --max-cgroups bounds them.",
        [([("map", "usage")], bpf.cgroups as f64)],
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
