//! All figures of one moment, and what two such moments say of the time between them. Pure.

use std::sync::Arc;
use std::time::{Duration, Instant as Monotonic};

use ebb_core::classify::{GpuUse, Utilization};
use ebb_core::units::Permille;

use crate::gpus::GpuReading;
use crate::source::Source;
use crate::source::cgroup::{Cgroup, Cgroups};
use crate::source::ebpf::{Cost, Dropped, Latency};
use crate::source::pressure::Pressures;
use crate::source::proc::{CpuTicks, Memory, Stat};

/// Everything that could be read at one moment. `None`: its source failed or is missing.
#[derive(Clone, Debug)]
pub struct Reading {
    pub at: Monotonic,
    pub stat: Option<Stat>,
    pub memory: Option<Memory>,
    pub pressure: Option<Pressures>,
    pub waited: Option<Waited>,
    /// Read more seldom than the node's own figures: the latest, and those before, for rates between the two.
    pub cgroups: Option<Arc<Cgroups>>,
    pub cgroups_before: Option<Arc<Cgroups>>,
    pub bpf: Option<Bpf>,
    /// Launches of CUDA kernels in cgroups without room to count them. `None`: not asked for.
    pub cuda_launches_dropped: Option<u64>,
    pub gpu: GpuUse,
    /// `None`: no GPUs, or nobody can say.
    pub gpus: Option<Arc<GpuReading>>,
}

/// Time that tasks have waited for a CPU, by the source that says so: two sources' totals cannot be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waited {
    pub by: Source,
    pub total: Duration,
}

/// What the kernel program says of itself.
#[derive(Clone, Copy, Debug)]
pub struct Bpf {
    pub dropped: Dropped,
    /// `None` while the kernel does not measure it.
    pub cost: Option<Cost>,
    /// How many it knows. Like `dropped`, of when the cgroups were read.
    pub cgroups: usize,
    /// Of all cgroups, those that are gone too. The sum of these waits is in [`Reading::waited`].
    pub latency: Latency,
}

impl Reading {
    pub fn empty(at: Monotonic) -> Self {
        Self {
            at,
            stat: None,
            memory: None,
            pressure: None,
            waited: None,
            cgroups: None,
            cgroups_before: None,
            bpf: None,
            cuda_launches_dropped: None,
            gpu: GpuUse::Unknown,
            gpus: None,
        }
    }

    pub fn cgroups(&self) -> &[Cgroup] {
        self.cgroups.as_ref().map_or(&[], |cgroups| &cgroups.all)
    }

    /// What the node did between `before` and this reading, however long that was.
    pub fn since(&self, before: &Self) -> Utilization {
        let elapsed = self.at.saturating_duration_since(before.at).as_secs_f64();
        let cpu =
            self.stat.as_ref().zip(before.stat.as_ref()).and_then(|(now, then)| CpuShare::of(now.node, then.node));
        let cpus = self.stat.as_ref().map(|stat| stat.cpus.len() as f64);
        let stalled = |reading: &Self| reading.pressure.and_then(|pressure| pressure.memory.some);
        Utilization {
            cpu: cpu.map(|cpu| cpu.busy),
            cpu_steal: cpu.map(|cpu| cpu.steal),
            run_queue: self
                .waited_since(before)
                .and_then(|waited| Permille::from_ratio(waited.as_secs_f64(), elapsed * cpus?)),
            memory: self.memory.and_then(|memory| Permille::from_ratio(memory.working_set as f64, memory.total as f64)),
            memory_pressure: stalled(self)
                .zip(stalled(before))
                .and_then(|(now, then)| now.checked_sub(then))
                .and_then(|stalled| Permille::from_ratio(stalled.as_secs_f64(), elapsed)),
            gpu: self.gpu,
            newest_workload_seconds: None,
        }
    }

    /// Time that tasks have waited for a CPU between `before` and this reading.
    pub fn waited_since(&self, before: &Self) -> Option<Duration> {
        let (now, then) = self.waited.zip(before.waited).filter(|(now, then)| now.by == then.by)?;
        now.total.checked_sub(then.total)
    }
}

/// Of the time of one CPU or of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuShare {
    /// All but idle, waiting for devices, and stolen.
    pub busy: Permille,
    pub steal: Permille,
    /// Of each mode, in the order of [`MODES`].
    ///
    /// [`MODES`]: crate::source::proc::MODES
    pub modes: [Permille; 8],
}

impl CpuShare {
    /// `None` if no time passed, or a counter was set back.
    pub fn of(now: CpuTicks, then: CpuTicks) -> Option<Self> {
        let passed: [Option<f64>; 8] =
            std::array::from_fn(|mode| now.0[mode].checked_sub(then.0[mode]).map(|ticks| ticks as f64));
        let [user, nice, system, idle, iowait, irq, softirq, steal] = passed;
        let busy = user? + nice? + system? + irq? + softirq?;
        // The kernel may set these two back a little: it estimates them for a CPU that sleeps (proc_stat(5)).
        let all = busy + idle.unwrap_or(0.0) + iowait.unwrap_or(0.0) + steal?;
        let share = |ticks| Permille::from_ratio(ticks, all);
        let mut modes = [Permille::ZERO; 8];
        for (mode, ticks) in modes.iter_mut().zip(passed) {
            *mode = share(ticks.unwrap_or(0.0))?;
        }
        Some(Self { busy: share(busy)?, steal: share(steal?)?, modes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::pressure::Pressure;

    fn reading(at: Monotonic, ticks: [u64; 8]) -> Reading {
        let cpus = vec![(0, CpuTicks::default()), (1, CpuTicks::default())];
        Reading { stat: Some(Stat { node: CpuTicks(ticks), cpus, context_switches: 0 }), ..Reading::empty(at) }
    }

    fn waited(by: Source, millis: u64) -> Option<Waited> {
        Some(Waited { by, total: Duration::from_millis(millis) })
    }

    #[test]
    fn cpu_use_leaves_out_waiting_for_io_and_the_hypervisor() {
        let check = |then, now, busy: u16, steal: u16| {
            let share = CpuShare::of(CpuTicks(now), CpuTicks(then)).unwrap();
            assert_eq!((share.busy.get(), share.steal.get()), (busy, steal), "{now:?}");
        };
        let zero = [0; 8];
        check(zero, [10, 10, 10, 20, 20, 10, 10, 10], 500, 100);
        check(zero, [0, 0, 0, 50, 50, 0, 0, 0], 0, 0);
        check([100; 8], [200, 100, 100, 99, 100, 100, 100, 100], 1000, 0);
    }

    #[test]
    fn counters_that_stand_still_or_fall_say_nothing() {
        assert_eq!(CpuShare::of(CpuTicks([5; 8]), CpuTicks([5; 8])), None);
        assert_eq!(CpuShare::of(CpuTicks([1, 0, 0, 9, 0, 0, 0, 0]), CpuTicks([2, 0, 0, 1, 0, 0, 0, 0])), None);
    }

    #[test]
    fn rates_hold_over_whatever_time_passed() {
        let start = Monotonic::now();
        for seconds in [1, 60] {
            let then = Reading {
                waited: waited(Source::Ebpf, 100),
                pressure: Some(Pressures::default()),
                ..reading(start, [0; 8])
            };
            let stalled = Pressure { some: Some(Duration::from_millis(250 * seconds)), full: None };
            let mut now = Reading {
                waited: waited(Source::Ebpf, 100 + 1000 * seconds),
                pressure: Some(Pressures { memory: stalled, ..Pressures::default() }),
                memory: Some(Memory { total: 1000, working_set: 400, ..Memory::default() }),
                ..reading(start + Duration::from_secs(seconds), [30, 0, 0, 70, 0, 0, 0, 0])
            };
            let unknown_before = now.since(&then);
            assert_eq!(unknown_before.memory_pressure, None, "the kernel had not said");
            let then = Reading {
                pressure: Some(Pressures {
                    memory: Pressure { some: Some(Duration::ZERO), full: None },
                    ..Pressures::default()
                }),
                ..then
            };
            let use_ = now.since(&then);
            assert_eq!(use_.cpu, Permille::new(300));
            assert_eq!(use_.run_queue, Permille::new(500), "one of two CPUs' time was waited for");
            assert_eq!(use_.memory, Permille::new(400));
            assert_eq!(use_.memory_pressure, Permille::new(250));
            now.waited = waited(Source::Schedstat, 5000);
            assert_eq!(now.since(&then).run_queue, None, "two sources do not compare");
            now.waited = waited(Source::Ebpf, 50);
            assert_eq!(now.since(&then).run_queue, None, "set back");
        }
    }

    #[test]
    fn what_was_not_read_is_unknown() {
        let start = Monotonic::now();
        let blind = Reading::empty(start + Duration::from_secs(1));
        let expected = Utilization { gpu: GpuUse::Unknown, ..Utilization::default() };
        assert_eq!(blind.since(&reading(start, [1; 8])), expected);
    }
}
