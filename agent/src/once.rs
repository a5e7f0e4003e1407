//! `--once`: one sample over one interval, printed for people or for programs.

mod table;

use std::collections::BTreeMap;
use std::io::Write;
use std::time::Duration;

use anyhow::Context;
use ebb_core::classify::{Class, IdlePolicy, Utilization};
use ebb_core::time::Instant;
use ebb_core::units::Permille;
use serde::Serialize;

use crate::args::{Args, Output};
use crate::clock::Clock;
use crate::reading::{CpuShare, Reading};
use crate::sampler::{Input, Sample, Sampler};
use crate::source::proc::MODES;

/// What is printed. Its JSON is for programs of others: keys are only ever added. A figure that is missing is unknown.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Snapshot {
    sampled_at: Instant,
    /// Over which the rates below were taken.
    interval_seconds: f64,
    class: Class,
    /// Why, with the figures it rests on.
    because: String,
    /// Since when the node has been busy without its GPUs.
    #[serde(skip_serializing_if = "Option::is_none")]
    gpu_waste_since: Option<Instant>,
    /// Shares in thousandths, since the reading before.
    utilization_permille: Utilization,
    sources: Vec<SourceState>,
    /// All CPUs together.
    #[serde(skip_serializing_if = "Option::is_none")]
    node_cpu: Option<Cpu>,
    cpus: Vec<Cpu>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<Memory>,
    pressure: BTreeMap<&'static str, Stalled>,
    /// The busiest first.
    cgroups: Vec<Cgroup>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct SourceState {
    source: &'static str,
    up: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
    read_seconds: f64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Cpu {
    /// Its number; none for all together.
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu: Option<u32>,
    busy_permille: u16,
    /// By mode: user, nice, system, idle, iowait, irq, softirq, steal.
    modes_permille: BTreeMap<&'static str, u16>,
}

impl Cpu {
    fn of(cpu: Option<u32>, share: CpuShare) -> Self {
        let modes_permille = MODES.into_iter().zip(share.modes.map(Permille::get)).collect();
        Self { cpu, busy_permille: share.busy.get(), modes_permille }
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Memory {
    total_bytes: u64,
    available_bytes: u64,
    free_bytes: u64,
    working_set_bytes: u64,
}

/// Shares of the interval.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Stalled {
    #[serde(skip_serializing_if = "Option::is_none")]
    some_permille: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    full_permille: Option<u16>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Cgroup {
    path: String,
    /// CPUs' worth of time that was used, and that was waited for.
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu_cores: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    run_queue_cores: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    switches_per_second: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_working_set_bytes: Option<u64>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let mut sampler = Sampler::new(Input::open(args)?, Clock::start(), IdlePolicy::default());
    let before = sampler.sample();
    std::thread::sleep(args.interval);
    let snapshot = Snapshot::of(&before.reading, &sampler.sample());
    let text = match args.output {
        Output::Table => table::print(&snapshot),
        Output::Json => serde_json::to_string_pretty(&snapshot).context("write the sample as JSON")? + "\n",
    };
    std::io::stdout().write_all(text.as_bytes()).context("print the sample")
}

impl Snapshot {
    fn of(before: &Reading, sample: &Sample) -> Self {
        let now = &sample.reading;
        let elapsed = now.at.saturating_duration_since(before.at).as_secs_f64();
        let mut cgroups = cgroups(before, now, elapsed);
        let weight = |cgroup: &Cgroup| cgroup.cpu_cores.unwrap_or(0.0) + cgroup.run_queue_cores.unwrap_or(0.0);
        cgroups.sort_by(|a, b| weight(b).total_cmp(&weight(a)).then_with(|| a.path.cmp(&b.path)));
        Self {
            sampled_at: sample.at,
            interval_seconds: elapsed,
            class: sample.verdict.class,
            because: sample.because.clone(),
            gpu_waste_since: sample.verdict.gpu_waste,
            utilization_permille: sample.utilization,
            sources: sources(sample),
            node_cpu: node_cpu(before, now),
            cpus: cpus(before, now),
            memory: now.memory.map(|memory| Memory {
                total_bytes: memory.total,
                available_bytes: memory.available,
                free_bytes: memory.free,
                working_set_bytes: memory.working_set,
            }),
            pressure: pressure(before, now, elapsed),
            cgroups,
        }
    }
}

fn sources(sample: &Sample) -> Vec<SourceState> {
    let state = |(source, health): (crate::source::Source, &crate::health::Health)| SourceState {
        source: source.name(),
        up: health.down.is_none(),
        why: health.down.clone(),
        read_seconds: health.took.as_secs_f64(),
    };
    sample.healths.iter().map(state).collect()
}

fn node_cpu(before: &Reading, now: &Reading) -> Option<Cpu> {
    let share = CpuShare::of(now.stat.as_ref()?.node, before.stat.as_ref()?.node)?;
    Some(Cpu::of(None, share))
}

fn cpus(before: &Reading, now: &Reading) -> Vec<Cpu> {
    let Some((then, now)) = before.stat.as_ref().zip(now.stat.as_ref()) else { return Vec::new() };
    let share = |(cpu, ticks): &(u32, _)| {
        let (_, then) = then.cpus.iter().find(|(number, _)| number == cpu)?;
        Some(Cpu::of(Some(*cpu), CpuShare::of(*ticks, *then)?))
    };
    now.cpus.iter().filter_map(share).collect()
}

fn pressure(before: &Reading, now: &Reading, elapsed: f64) -> BTreeMap<&'static str, Stalled> {
    let Some((then, now)) = before.pressure.zip(now.pressure) else { return BTreeMap::new() };
    let share = |now: Option<Duration>, then: Option<Duration>| {
        let stalled = now?.checked_sub(then?)?;
        Permille::from_ratio(stalled.as_secs_f64(), elapsed).map(|share| share.get())
    };
    let pairs = now.iter().filter_map(|(resource, now)| {
        let (_, then) = then.iter().find(|(name, _)| *name == resource)?;
        Some((resource, now, then))
    });
    pairs
        .map(|(resource, now, then)| {
            let stalled =
                Stalled { some_permille: share(now.some, then.some), full_permille: share(now.full, then.full) };
            (resource, stalled)
        })
        .collect()
}

fn cgroups(before: &Reading, now: &Reading, elapsed: f64) -> Vec<Cgroup> {
    let cores = |now: Duration, then: Duration| Some(now.checked_sub(then)?.as_secs_f64() / elapsed);
    let row = |cgroup: &crate::source::cgroup::CgroupUse| {
        let then = before.cgroups.iter().find(|then| then.path == cgroup.path && then.id == cgroup.id);
        let cpu = cgroup.cpu.zip(then.and_then(|then| then.cpu));
        let scheduled = cgroup.id.and_then(|id| now.schedule.get(&id).zip(before.schedule.get(&id)));
        Cgroup {
            path: cgroup.path.clone(),
            cpu_cores: cpu.and_then(|(now, then)| cores(now, then)),
            run_queue_cores: scheduled.and_then(|(now, then)| cores(now.wait, then.wait)),
            switches_per_second: scheduled
                .and_then(|(now, then)| Some(now.switches.checked_sub(then.switches)? as f64 / elapsed)),
            memory_bytes: cgroup.memory,
            memory_working_set_bytes: cgroup.memory_working_set,
        }
    };
    now.cgroups.iter().map(row).collect()
}
