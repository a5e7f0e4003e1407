//! Turns what was measured into a class per node. Pure: no clock, no I/O, no fleet knowledge.
//! Hysteresis lives here; what to do about an idle node lives in `fleet`.

mod verdict;

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::time::Instant;
use crate::units::Permille;

pub use verdict::Verdict;

/// What a node was doing at one moment. `None` is unknown: a source that failed or is missing, never zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Utilization {
    /// Share of all CPUs' time spent in user, nice, system, irq and softirq.
    pub cpu: Option<Permille>,
    /// Share of all CPUs' time the hypervisor kept for others.
    pub cpu_steal: Option<Permille>,
    /// Time tasks waited on run queues, per CPU and second, held to 1000.
    pub run_queue: Option<Permille>,
    /// Working set over memory in all. Shown, not judged: a full page cache is no work.
    pub memory: Option<Permille>,
    /// Share of time in which some task was stalled on memory (PSI).
    pub memory_pressure: Option<Permille>,
    pub gpu: GpuUse,
    /// How long ago the newest workload on the node started. `None`: none runs, or nobody can say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub newest_workload_seconds: Option<u32>,
}

/// What the node's GPUs were doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum GpuUse {
    /// The node has no GPU.
    #[default]
    Absent,
    /// The node has GPUs and nothing can be said about their use.
    Unknown,
    /// The busiest GPU's share of time with a kernel running.
    Busy(Permille),
}

impl GpuUse {
    /// `None`: there is no GPU, or nothing is known of its use.
    pub fn busy(self) -> Option<Permille> {
        match self {
            Self::Busy(busy) => Some(busy),
            Self::Absent | Self::Unknown => None,
        }
    }
}

/// What is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Signal {
    Cpu,
    CpuSteal,
    Gpu,
    MemoryPressure,
    RunQueue,
}

impl Signal {
    pub const ALL: [Self; 5] = [Self::Cpu, Self::CpuSteal, Self::Gpu, Self::MemoryPressure, Self::RunQueue];

    /// The name in labels and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::CpuSteal => "cpu_steal",
            Self::Gpu => "gpu",
            Self::MemoryPressure => "memory_pressure",
            Self::RunQueue => "run_queue",
        }
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One signal's two thresholds. Between them a node stays what it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Band {
    /// Below this the signal lets the node be idle.
    pub idle_below: Permille,
    /// At or above this the signal makes the node busy.
    pub busy_from: Permille,
}

impl Band {
    const fn percent(idle_below: u16, busy_from: u16) -> Self {
        Self { idle_below: Permille::percent(idle_below), busy_from: Permille::percent(busy_from) }
    }
}

/// When a node counts as idle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdlePolicy {
    /// Over how long the signals are averaged (the GPU's: its highest).
    pub window: Duration,
    /// A node on which a workload started less than this ago is not called idle: it may still load its data or wait for
    /// its peers. The term is the HPA's (`--horizontal-pod-autoscaler-cpu-initialization-period`).
    pub initialization_period: Duration,
    pub cpu: Band,
    pub cpu_steal: Band,
    pub gpu: Band,
    pub memory_pressure: Band,
    pub run_queue: Band,
}

impl Default for IdlePolicy {
    /// CPU from the flow's "node_utilization < 50 %". The GPU's band is far lower, because its figure says only that
    /// some kernel ran (NVML, `nvmlUtilization_t`); the pressures' bands are where waiting starts to be work held back.
    fn default() -> Self {
        Self {
            window: Duration::from_secs(30),
            initialization_period: Duration::from_secs(60),
            cpu: Band::percent(50, 60),
            cpu_steal: Band::percent(10, 20),
            gpu: Band::percent(5, 10),
            memory_pressure: Band::percent(10, 20),
            run_queue: Band::percent(20, 30),
        }
    }
}

impl IdlePolicy {
    pub fn band(&self, signal: Signal) -> Band {
        match signal {
            Signal::Cpu => self.cpu,
            Signal::CpuSteal => self.cpu_steal,
            Signal::Gpu => self.gpu,
            Signal::MemoryPressure => self.memory_pressure,
            Signal::RunQueue => self.run_queue,
        }
    }
}

/// What a node is, and since when.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "class")]
pub enum Class {
    Busy { since: Instant, signal: Signal },
    Idle { since: Instant },
    Unknown { since: Instant, missing: Missing },
}

impl Class {
    pub fn since(self) -> Instant {
        match self {
            Self::Busy { since, .. } | Self::Idle { since } | Self::Unknown { since, .. } => since,
        }
    }

    /// The name in labels and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Busy { .. } => "busy",
            Self::Idle { .. } => "idle",
            Self::Unknown { .. } => "unknown",
        }
    }
}

/// Why nothing can be said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Missing {
    /// The node has not been watched for a whole window yet.
    History,
    /// A workload started a moment ago, and its use so far says nothing of what it will do.
    Initialization,
    /// A signal without which no node is called idle.
    Signal(Signal),
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::History => f.write_str("history"),
            Self::Initialization => f.write_str("initialization"),
            Self::Signal(signal) => signal.fmt(f),
        }
    }
}

/// No sampler takes longer between two samples, so that a window shorter than it is still watched.
const LONGEST_INTERVAL: Duration = Duration::from_secs(10);

/// Watches one node. Told every sample, in order of time.
#[derive(Clone, Debug)]
pub struct Classifier {
    policy: IdlePolicy,
    /// Not older than the policy's window, except the first, which is kept to know that the window is covered.
    samples: VecDeque<(Instant, Utilization)>,
    class: Option<Class>,
    gpu_waste: Option<Instant>,
}

impl Classifier {
    pub fn new(policy: IdlePolicy) -> Self {
        Self { policy, samples: VecDeque::new(), class: None, gpu_waste: None }
    }

    pub fn policy(&self) -> &IdlePolicy {
        &self.policy
    }

    /// Takes other thresholds from the next sample on; what was seen is kept.
    pub fn set_policy(&mut self, policy: IdlePolicy) {
        self.policy = policy;
    }

    /// Adds a sample and says what the node is now. A clock that went back, or a time in which nobody looked, starts the
    /// window anew.
    pub fn observe(&mut self, now: Instant, utilization: Utilization) -> Verdict {
        let longest = self.policy.window + LONGEST_INTERVAL;
        if self.samples.back().is_some_and(|(last, _)| *last > now || now.since(*last) > longest) {
            self.samples.clear();
        }
        self.samples.push_back((now, utilization));
        let opens = now.before(self.policy.window);
        while self.samples.get(1).is_some_and(|(second, _)| *second <= opens) {
            self.samples.pop_front();
        }
        let levels = Levels(Signal::ALL.map(|signal| self.level(signal)));
        let class = self.judge(now, opens, &levels);
        self.class = Some(class);
        self.gpu_waste = self.gpus_are_wasted(class, &levels).then(|| self.gpu_waste.unwrap_or(now));
        Verdict { class, window: self.window(&levels), gpu_waste: self.gpu_waste }
    }

    /// Means over the window (the GPU: the highest).
    fn window(&self, levels: &Levels) -> Utilization {
        let level = |signal| levels.of(signal);
        let gpu = match self.samples.back().map(|(_, newest)| newest.gpu) {
            None | Some(GpuUse::Absent) => GpuUse::Absent,
            Some(_) => level(Signal::Gpu).map_or(GpuUse::Unknown, GpuUse::Busy),
        };
        Utilization {
            cpu: level(Signal::Cpu),
            cpu_steal: level(Signal::CpuSteal),
            run_queue: level(Signal::RunQueue),
            memory: self.samples.back().and_then(|(_, newest)| newest.memory),
            memory_pressure: level(Signal::MemoryPressure),
            gpu,
            newest_workload_seconds: self.newest_workload_seconds(),
        }
    }

    fn newest_workload_seconds(&self) -> Option<u32> {
        self.samples.back().and_then(|(_, newest)| newest.newest_workload_seconds)
    }

    /// Whether the node is busy with something else while its GPUs, which it is paid for, do nothing. As with the
    /// class, between the band's bounds it stays what it was.
    fn gpus_are_wasted(&self, class: Class, levels: &Levels) -> bool {
        let band = self.policy.gpu;
        let bound = if self.gpu_waste.is_some() { band.busy_from } else { band.idle_below };
        matches!(class, Class::Busy { .. }) && levels.of(Signal::Gpu).is_some_and(|level| level < bound)
    }

    fn judge(&self, now: Instant, opens: Instant, levels: &Levels) -> Class {
        let unknown = |missing| match self.class {
            Some(Class::Unknown { since, .. }) => Class::Unknown { since, missing },
            _ => Class::Unknown { since: now, missing },
        };
        if self.samples.front().is_none_or(|(first, _)| *first > opens) {
            return unknown(Missing::History);
        }
        // Unknown outranks busy: a node whose GPUs cannot be seen is not "busy by CPU" to those who ask why.
        let gpu_absent = self.samples.iter().all(|(_, sample)| sample.gpu == GpuUse::Absent);
        for required in [Signal::Cpu, Signal::Gpu] {
            if levels.of(required).is_none() && !(required == Signal::Gpu && gpu_absent) {
                return unknown(Missing::Signal(required));
            }
        }
        let busy = levels.known().find(|(signal, level)| *level >= self.policy.band(*signal).busy_from);
        let not_idle = levels.known().find(|(signal, level)| *level >= self.policy.band(*signal).idle_below);
        let initializing = self
            .newest_workload_seconds()
            .is_some_and(|seconds| Duration::from_secs(seconds.into()) < self.policy.initialization_period);
        match (busy, not_idle, self.class) {
            (Some((signal, _)), _, Some(Class::Busy { since, .. })) => Class::Busy { since, signal },
            (Some((signal, _)), ..) => Class::Busy { since: now, signal },
            (None, Some(_), Some(same @ Class::Busy { .. })) => same,
            _ if initializing => unknown(Missing::Initialization),
            (None, None, Some(Class::Idle { since })) => Class::Idle { since },
            (None, None, _) => Class::Idle { since: now },
            (None, Some(_), Some(same @ Class::Idle { .. })) => same,
            // Between the bands with no past: not low enough to be called idle.
            (None, Some((signal, _)), _) => Class::Busy { since: now, signal },
        }
    }

    /// The signal over the window, from the samples that know it.
    fn level(&self, signal: Signal) -> Option<Permille> {
        let known = self.samples.iter().filter_map(|(_, sample)| sample.level(signal));
        if signal == Signal::Gpu {
            return known.max();
        }
        let (sum, count) = known.fold((0_u64, 0_u64), |(sum, count), level| (sum + u64::from(level.get()), count + 1));
        Permille::new(u16::try_from(sum.checked_div(count)?).ok()?)
    }
}

/// Each signal over the window, in the order of [`Signal::ALL`], which is that of their numbers.
struct Levels([Option<Permille>; Signal::ALL.len()]);

impl Levels {
    fn of(&self, signal: Signal) -> Option<Permille> {
        self.0[signal as usize]
    }

    fn known(&self) -> impl Iterator<Item = (Signal, Permille)> {
        Signal::ALL.into_iter().filter_map(|signal| Some((signal, self.of(signal)?)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cpu(permille: u16) -> Utilization {
        Utilization { cpu: Permille::new(permille), ..Utilization::default() }
    }

    fn at(second: u64) -> Instant {
        Instant::from_millis(1_000_000 + second * 1000)
    }

    /// Feeds one sample a second and returns the class after each.
    fn classes(samples: impl IntoIterator<Item = Utilization>) -> Vec<Class> {
        let mut classifier = Classifier::new(IdlePolicy::default());
        (0..).zip(samples).map(|(second, sample)| classifier.observe(at(second), sample).class).collect()
    }

    fn last(samples: impl IntoIterator<Item = Utilization>) -> Class {
        *classes(samples).last().unwrap()
    }

    #[test]
    fn nothing_is_said_before_a_whole_window_was_watched() {
        let classes = classes(vec![cpu(0); 31]);
        assert_eq!(classes[29], Class::Unknown { since: at(0), missing: Missing::History });
        assert_eq!(classes[30], Class::Idle { since: at(30) });
    }

    #[test]
    fn idle_keeps_its_start_while_use_stays_low() {
        assert_eq!(last(vec![cpu(100); 600]), Class::Idle { since: at(30) });
    }

    #[test]
    fn one_busy_second_does_not_end_idleness() {
        let mut samples = vec![cpu(20); 120];
        samples[100] = cpu(1000);
        assert_eq!(last(samples), Class::Idle { since: at(30) });
    }

    #[test]
    fn between_the_bands_a_node_stays_what_it_was() {
        let idle_then_between = [vec![cpu(100); 60], vec![cpu(550); 60]].concat();
        assert_eq!(last(idle_then_between), Class::Idle { since: at(30) });
        let busy_then_between = [vec![cpu(900); 60], vec![cpu(550); 60]].concat();
        assert_eq!(last(busy_then_between), Class::Busy { since: at(30), signal: Signal::Cpu });
        assert_eq!(last(vec![cpu(550); 60]), Class::Busy { since: at(30), signal: Signal::Cpu });
    }

    #[test]
    fn unknown_is_never_idle() {
        let blind = Utilization::default();
        assert!(matches!(last(vec![blind; 60]), Class::Unknown { missing: Missing::Signal(Signal::Cpu), .. }));
        let no_gpu_figures = Utilization { gpu: GpuUse::Unknown, ..cpu(0) };
        let class = last(vec![no_gpu_figures; 60]);
        assert!(matches!(class, Class::Unknown { missing: Missing::Signal(Signal::Gpu), .. }), "{class:?}");
    }

    #[test]
    fn a_failed_reading_within_the_window_is_bridged() {
        let mut samples = vec![cpu(100); 60];
        samples[45] = Utilization::default();
        assert_eq!(last(samples), Class::Idle { since: at(30) });
    }

    #[test]
    fn one_gpu_kernel_in_the_window_keeps_the_node_busy() {
        let gpu = |permille| Utilization { gpu: GpuUse::Busy(Permille::new(permille).unwrap()), ..cpu(0) };
        let mut samples = vec![gpu(0); 60];
        samples[40] = gpu(300);
        assert_eq!(last(samples), Class::Busy { since: at(40), signal: Signal::Gpu });
    }

    #[test]
    fn waiting_for_memory_or_for_the_hypervisor_is_not_idleness() {
        let stalled = Utilization { memory_pressure: Permille::new(300), ..cpu(0) };
        assert!(matches!(last(vec![stalled; 60]), Class::Busy { signal: Signal::MemoryPressure, .. }));
        let stolen = Utilization { cpu_steal: Permille::new(300), ..cpu(0) };
        assert!(matches!(last(vec![stolen; 60]), Class::Busy { signal: Signal::CpuSteal, .. }));
    }

    #[test]
    fn a_clock_that_jumps_makes_the_class_unknown() {
        let mut classifier = Classifier::new(IdlePolicy::default());
        for second in 100..200 {
            classifier.observe(at(second), cpu(0));
        }
        let class = classifier.observe(at(50), cpu(0)).class;
        assert!(matches!(class, Class::Unknown { missing: Missing::History, .. }), "{class:?}");
    }

    #[test]
    fn nobody_knows_what_a_node_did_while_nobody_looked() {
        let mut classifier = Classifier::new(IdlePolicy::default());
        for second in 0..100 {
            classifier.observe(at(second), cpu(0));
        }
        let class = classifier.observe(at(200), cpu(0)).class;
        assert!(matches!(class, Class::Unknown { missing: Missing::History, .. }), "{class:?}");
    }

    #[test]
    fn a_workload_that_has_just_started_is_not_called_idle() {
        let age = |seconds| Utilization { newest_workload_seconds: Some(seconds), ..cpu(0) };
        let idle_then_started = [vec![cpu(0); 40], (0..=60).map(age).collect()].concat();
        let classes = classes(idle_then_started);
        assert_eq!(classes[39], Class::Idle { since: at(30) });
        assert_eq!(classes[40], Class::Unknown { since: at(40), missing: Missing::Initialization });
        assert_eq!(classes[99], Class::Unknown { since: at(40), missing: Missing::Initialization });
        assert_eq!(classes[100], Class::Idle { since: at(100) }, "idleness begins anew");
        let busy = Utilization { cpu: Permille::new(900), ..age(1) };
        assert!(matches!(last(vec![busy; 60]), Class::Busy { .. }), "what works is busy, however young");
    }

    #[test]
    fn a_busy_node_whose_gpus_do_nothing_is_wasteful() {
        let gpu = |cpu_permille, permille| Utilization {
            gpu: GpuUse::Busy(Permille::new(permille).unwrap()),
            ..cpu(cpu_permille)
        };
        let waste = |samples: Vec<Utilization>| {
            let mut classifier = Classifier::new(IdlePolicy::default());
            let verdicts = (0..).zip(samples).map(|(second, sample)| classifier.observe(at(second), sample));
            verdicts.last().unwrap().gpu_waste
        };
        assert_eq!(waste(vec![gpu(900, 0); 90]), Some(at(30)));
        assert_eq!(waste(vec![gpu(900, 60); 90]), None, "not low enough to begin");
        assert_eq!(waste([vec![gpu(900, 0); 60], vec![gpu(900, 60); 60]].concat()), Some(at(30)), "nor to end");
        assert_eq!(waste([vec![gpu(900, 0); 60], vec![gpu(900, 500); 1]].concat()), None);
        assert_eq!(waste(vec![gpu(0, 0); 90]), None, "an idle node is idle, all of it");
        assert_eq!(waste(vec![cpu(900); 90]), None, "no GPU");
        let unseen = Utilization { gpu: GpuUse::Unknown, ..cpu(900) };
        assert_eq!(waste(vec![unseen; 90]), None, "unknown is never idle");
    }

    proptest! {
        #[test]
        fn an_idle_verdict_always_rests_on_a_low_mean(levels in prop::collection::vec(prop::option::of(0..=1000_u16), 1..200)) {
            let policy = IdlePolicy::default();
            let mut classifier = Classifier::new(policy.clone());
            for (second, level) in (0..).zip(levels) {
                let sample = Utilization { cpu: level.and_then(Permille::new), ..Utilization::default() };
                let Verdict { class, window, .. } = classifier.observe(at(second), sample);
                let mean = window.cpu;
                match class {
                    Class::Idle { since } => {
                        prop_assert!(mean.is_some_and(|mean| mean < policy.cpu.busy_from));
                        prop_assert!(since >= at(30) && since <= at(second));
                    }
                    Class::Busy { .. } => prop_assert!(mean.is_some_and(|mean| mean >= policy.cpu.idle_below)),
                    Class::Unknown { missing: Missing::History, .. } => prop_assert!(second < 30),
                    Class::Unknown { .. } => prop_assert_eq!(mean, None),
                }
            }
        }
    }
}
