//! The latest sample as a document, with the rates between it and the one before: what `--once` prints and
//! `GET /api/v1/node` serves. Shapes and shares only; figures are read elsewhere, and judged in the core.

mod gpu;

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use ebb_core::classify::{Class, Utilization};
use ebb_core::time::Instant;
use ebb_core::units::Permille;
use serde::Serialize;

use crate::pods::PodNames;
use crate::reading::{CpuShare, Reading};
use crate::sampler::Sample;
use crate::source::cgroup;
use crate::source::kubepods::Owner;
use crate::source::proc::MODES;
use crate::workload::container_name;

pub(crate) use gpu::Gpu;

/// Its JSON is for programs of others: keys are only ever added. A figure that is missing is unknown.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Snapshot {
    /// The version of the agent that says this.
    pub(crate) version: &'static str,
    /// The name of its Node object, if the agent was told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) node: Option<String>,
    pub(crate) sampled_at: Instant,
    /// Over which the rates below were taken.
    pub(crate) interval_seconds: f64,
    pub(crate) class: Class,
    /// Why, with the figures it rests on.
    pub(crate) because: String,
    /// Since when the node has been busy without its GPUs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) gpu_waste_since: Option<Instant>,
    /// Shares in thousandths, since the reading before.
    pub(crate) utilization_permille: Utilization,
    pub(crate) sources: Vec<SourceState>,
    /// All CPUs together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) node_cpu: Option<Cpu>,
    pub(crate) cpus: Vec<Cpu>,
    /// CPUs' worth of time that tasks waited on run queues, the node's CPUs together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) run_queue_cores: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) switches_per_second: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) memory: Option<Memory>,
    pub(crate) pressure: BTreeMap<&'static str, Stalled>,
    /// In NVML's order.
    pub(crate) gpus: Vec<Gpu>,
    /// The busiest first.
    pub(crate) cgroups: Vec<Cgroup>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SourceState {
    pub(crate) source: &'static str,
    pub(crate) up: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) why: Option<String>,
    pub(crate) read_seconds: f64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Cpu {
    /// Its number; none for all together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cpu: Option<u32>,
    pub(crate) busy_permille: u16,
    /// By mode: user, nice, system, idle, iowait, irq, softirq, steal.
    pub(crate) modes_permille: BTreeMap<&'static str, u16>,
}

impl Cpu {
    fn of(cpu: Option<u32>, share: CpuShare) -> Self {
        let modes_permille = MODES.into_iter().zip(share.modes.map(Permille::get)).collect();
        Self { cpu, busy_permille: share.busy.get(), modes_permille }
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Memory {
    pub(crate) total_bytes: u64,
    pub(crate) available_bytes: u64,
    pub(crate) free_bytes: u64,
    pub(crate) working_set_bytes: u64,
    /// Pages of processes and shared memory, and the page cache.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) anon_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) file_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) swap_total_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) swap_free_bytes: Option<u64>,
}

/// Shares of the interval.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Stalled {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) some_permille: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) full_permille: Option<u16>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Cgroup {
    pub(crate) path: String,
    /// `NAMESPACE/NAME` of the pod it belongs to; the pod's UID while nobody tells its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) pod: Option<String>,
    /// The container whose own cgroup it is, by its name, or by its id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) container: Option<String>,
    /// CPUs' worth of time that was used, and that was waited for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cpu_cores: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) run_queue_cores: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) switches_per_second: Option<f64>,
    /// By whose task came next, named as in `ebb_container_preemptions_total`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) preemptions_per_second: Option<BTreeMap<&'static str, f64>>,
    /// CPUs' worth of time that its CPU limit held it back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) throttled_cores: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) memory_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) memory_working_set_bytes: Option<u64>,
}

impl Snapshot {
    /// `node`: the name of its Node object. The first sample of all has no rates.
    pub(crate) fn of(sample: &Sample, node: Option<&str>) -> Self {
        let now = &*sample.reading;
        let nothing = Reading::empty(now.at);
        let before = sample.before.as_deref().unwrap_or(&nothing);
        let elapsed = now.at.saturating_duration_since(before.at).as_secs_f64();
        let mut cgroups = cgroups(now, &sample.names);
        let weight = |cgroup: &Cgroup| cgroup.cpu_cores.unwrap_or(0.0) + cgroup.run_queue_cores.unwrap_or(0.0);
        cgroups.sort_by(|a, b| weight(b).total_cmp(&weight(a)).then_with(|| a.path.cmp(&b.path)));
        Self {
            version: env!("CARGO_PKG_VERSION"),
            node: node.map(str::to_owned),
            sampled_at: sample.at,
            interval_seconds: elapsed,
            class: sample.verdict.class,
            because: sample.because.clone(),
            gpu_waste_since: sample.verdict.gpu_waste,
            utilization_permille: sample.utilization,
            sources: sources(sample),
            node_cpu: node_cpu(before, now),
            cpus: cpus(before, now),
            run_queue_cores: now.waited_since(before).map(|waited| waited.as_secs_f64() / elapsed),
            switches_per_second: switches(before, now, elapsed),
            memory: now.memory.map(|memory| Memory {
                total_bytes: memory.total,
                available_bytes: memory.available,
                free_bytes: memory.free,
                working_set_bytes: memory.working_set,
                anon_bytes: memory.anon,
                file_bytes: memory.file,
                swap_total_bytes: memory.swap_total,
                swap_free_bytes: memory.swap_free,
            }),
            pressure: pressure(before, now, elapsed),
            gpus: now.gpus.as_ref().map(|gpus| gpu::gpus(gpus, &sample.names)).unwrap_or_default(),
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

fn switches(before: &Reading, now: &Reading, elapsed: f64) -> Option<f64> {
    let switches = |reading: &Reading| reading.stat.as_ref().map(|stat| stat.context_switches);
    Some(switches(now)?.checked_sub(switches(before)?)? as f64 / elapsed)
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

/// Cgroups are read more seldom than the node: their rates are over a time of their own.
fn cgroups(now: &Reading, names: &PodNames) -> Vec<Cgroup> {
    let Some(latest) = &now.cgroups else { return Vec::new() };
    let former = now.cgroups_before.as_ref();
    let elapsed = former.map_or(0.0, |former| latest.at.saturating_duration_since(former.at).as_secs_f64());
    let cores = |now: Duration, then: Duration| Some(now.checked_sub(then)?.as_secs_f64() / elapsed);
    let former: HashMap<_, _> =
        former.iter().flat_map(|former| &former.all).map(|then| ((&*then.path, then.id), then)).collect();
    let row = |cgroup: &cgroup::Cgroup| {
        let figures = &cgroup.figures;
        let then = former.get(&(&*cgroup.path, cgroup.id));
        let cpu = figures.cpu.zip(then.and_then(|then| then.figures.cpu));
        let scheduled = cgroup.schedule.zip(then.and_then(|then| then.schedule));
        Cgroup {
            path: cgroup.path.to_string(),
            pod: cgroup.owner.as_ref().map(|owner| pod_of(owner, names)),
            container: cgroup.owner.as_ref().and_then(|owner| container_of(owner, names)),
            cpu_cores: cpu.and_then(|(now, then)| cores(now, then)),
            run_queue_cores: scheduled.and_then(|(now, then)| cores(now.wait, then.wait)),
            switches_per_second: scheduled
                .and_then(|(now, then)| Some(now.latency.count().checked_sub(then.latency.count())? as f64 / elapsed)),
            preemptions_per_second: scheduled.and_then(|(now, then)| {
                let pairs = now.preemptions.by().into_iter().zip(then.preemptions.by());
                pairs.map(|((by, now), (_, then))| Some((by, now.checked_sub(then)? as f64 / elapsed))).collect()
            }),
            throttled_cores: figures
                .throttling
                .zip(then.and_then(|then| then.figures.throttling))
                .and_then(|(now, then)| cores(now.throttled, then.throttled)),
            memory_bytes: figures.memory.total,
            memory_working_set_bytes: figures.memory.working_set(),
        }
    };
    latest.all.iter().map(row).collect()
}

fn pod_of(owner: &Owner, names: &PodNames) -> String {
    let name = names.get(&owner.pod_uid);
    name.map_or_else(|| owner.pod_uid.clone(), |name| format!("{}/{}", name.namespace, name.name))
}

fn container_of(owner: &Owner, names: &PodNames) -> Option<String> {
    let id = owner.container_id.as_ref().filter(|_| owner.is_own)?;
    container_name(id, names.get(&owner.pod_uid)).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Instant as Monotonic;

    use super::*;
    use crate::reading::Waited;
    use crate::source::Source;
    use crate::source::cgroup::{Cgroups, Figures};
    use crate::source::ebpf::{CgroupSchedule, Preemptions};
    use crate::source::proc::{CpuTicks, Stat};

    fn reading(at: Monotonic, busy: u64, switches: u64, waited_millis: u64) -> Reading {
        let ticks = CpuTicks([busy, 0, 0, 100, 0, 0, 0, 0]);
        let figures = Figures { cpu: Some(Duration::from_millis(busy * 10)), ..Figures::default() };
        let used = cgroup::Cgroup {
            path: "/a".into(),
            id: None,
            owner: None,
            appeared: None,
            figures,
            schedule: None,
            cuda_launches: None,
        };
        let cgroups = Arc::new(Cgroups { at, all: vec![used], complete: true, errors: Vec::new() });
        Reading {
            stat: Some(Stat { node: ticks, cpus: vec![(0, ticks)], context_switches: switches }),
            waited: Some(Waited { by: Source::Schedstat, total: Duration::from_millis(waited_millis) }),
            cgroups: Some(cgroups),
            ..Reading::empty(at)
        }
    }

    #[test]
    fn rates_are_those_since_the_reading_before() {
        let start = Monotonic::now();
        let (then, now) = (reading(start, 0, 5, 10), reading(start + Duration::from_secs(2), 100, 25, 3010));
        let elapsed = 2.0;
        let nobody = PodNames::default();
        assert_eq!(switches(&then, &now, elapsed), Some(10.0));
        assert_eq!(switches(&now, &then, elapsed), None, "set back");
        assert_eq!(node_cpu(&then, &now).unwrap().busy_permille, 1000);
        assert_eq!(cgroups(&now, &nobody)[0].cpu_cores, None, "read once: no rate yet");
        let later =
            Reading { at: now.at + Duration::from_secs(1), cgroups_before: then.cgroups.clone(), ..now.clone() };
        assert_eq!(cgroups(&later, &nobody)[0].cpu_cores, Some(0.5), "over the time between their own readings");
    }

    #[test]
    fn preemptions_are_told_apart_by_whose_task_came_next() {
        let start = Monotonic::now();
        let read = |seconds, other_pod| {
            let preemptions = Preemptions { other_pod, system: 1, ..Preemptions::default() };
            let used = cgroup::Cgroup {
                path: "/a".into(),
                id: Some(7),
                owner: None,
                appeared: None,
                figures: Figures::default(),
                schedule: Some(CgroupSchedule { preemptions, ..CgroupSchedule::default() }),
                cuda_launches: None,
            };
            let at = start + Duration::from_secs(seconds);
            Some(Arc::new(Cgroups { at, all: vec![used], complete: true, errors: Vec::new() }))
        };
        let rates = |cgroups_before, latest| {
            let reading = Reading { cgroups: latest, cgroups_before, ..Reading::empty(start) };
            cgroups(&reading, &PodNames::default()).remove(0).preemptions_per_second
        };
        let expected = [("same_pod", 0.0), ("other_pod", 15.0), ("system", 0.0), ("unknown", 0.0)];
        assert_eq!(rates(read(0, 10), read(2, 40)), Some(BTreeMap::from(expected)));
        assert_eq!(rates(read(0, 10), read(2, 4)), None, "set back");
    }
}
