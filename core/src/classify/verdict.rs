//! What was found of a node at one moment, with the figures it rests on, and how to say so.

use std::fmt;
use std::time::Duration;

use super::{Class, IdlePolicy, Missing, Signal, Utilization};
use crate::time::{Instant, format_duration};
use crate::units::Permille;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub class: Class,
    /// Means over the classifier's window (of GPUs the highest).
    pub window: Utilization,
    /// Since when the node has been busy without its GPUs: the dearest part of it is paid for and does nothing.
    pub gpu_waste: Option<Instant>,
}

impl Verdict {
    /// The class' reason with its figures, as in `cpu 72% >= 60%`. `policy` is the one it was found by.
    pub fn because<'a>(&'a self, policy: &'a IdlePolicy) -> impl fmt::Display + 'a {
        Because { verdict: self, policy }
    }
}

impl Utilization {
    /// `None`: unknown.
    pub fn level(&self, signal: Signal) -> Option<Permille> {
        match signal {
            Signal::Cpu => self.cpu,
            Signal::CpuSteal => self.cpu_steal,
            Signal::Gpu => self.gpu.busy(),
            Signal::MemoryPressure => self.memory_pressure,
            Signal::RunQueue => self.run_queue,
        }
    }
}

struct Because<'a> {
    verdict: &'a Verdict,
    policy: &'a IdlePolicy,
}

impl fmt::Display for Because<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Verdict { class, window, gpu_waste } = self.verdict;
        match class {
            Class::Busy { signal, .. } => {
                let band = self.policy.band(*signal);
                match window.level(*signal) {
                    // Between the two it was busy, or is not low enough to be called anything else.
                    Some(level) if level < band.busy_from => write!(f, "{signal} {level} >= {}", band.idle_below)?,
                    Some(level) => write!(f, "{signal} {level} >= {}", band.busy_from)?,
                    None => write!(f, "{signal}")?,
                }
            }
            Class::Idle { .. } => self.idle(f)?,
            Class::Unknown { missing: Missing::History, .. } => {
                write!(f, "not watched for {} yet", format_duration(self.policy.window))?;
            }
            Class::Unknown { missing: Missing::Initialization, .. } => {
                let age = Duration::from_secs(window.newest_workload_seconds.unwrap_or_default().into());
                let (age, period) = (format_duration(age), format_duration(self.policy.initialization_period));
                write!(f, "a workload started {age} ago, less than {period}")?;
            }
            Class::Unknown { missing: Missing::Signal(signal), .. } => write!(f, "nothing is known of {signal}")?,
        }
        match gpu_waste {
            Some(since) => write!(f, "; no GPU has worked since {since}"),
            None => Ok(()),
        }
    }
}

impl Because<'_> {
    /// Every figure, since one alone could have prevented it.
    fn idle(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = Signal::ALL.into_iter().filter_map(|it| Some((it, self.verdict.window.level(it)?)));
        for (index, (signal, level)) in known.enumerate() {
            let band = self.policy.band(signal);
            // Between the two it was idle and stays so.
            let bound = if level < band.idle_below { band.idle_below } else { band.busy_from };
            let comma = if index > 0 { ", " } else { "" };
            write!(f, "{comma}{signal} {level} < {bound}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::classify::GpuUse;

    #[test]
    fn each_verdict_says_why_with_its_figures() {
        let since = Instant::from_millis(0);
        let cpu = |permille| Utilization { cpu: Permille::new(permille), ..Utilization::default() };
        let check = |class, window, expected: &str| {
            let verdict = Verdict { class, window, gpu_waste: None };
            assert_eq!(verdict.because(&IdlePolicy::default()).to_string(), expected);
        };
        let busy = Class::Busy { since, signal: Signal::Cpu };
        check(busy, cpu(723), "cpu 72.3% >= 60%");
        check(busy, cpu(550), "cpu 55% >= 50%");
        let idle = Class::Idle { since };
        check(idle, cpu(30), "cpu 3% < 50%");
        let gpu = GpuUse::Busy(Permille::ZERO);
        check(idle, Utilization { gpu, ..cpu(550) }, "cpu 55% < 60%, gpu 0% < 5%");
        let unknown = |missing| Class::Unknown { since, missing };
        check(unknown(Missing::History), cpu(0), "not watched for 30s yet");
        check(unknown(Missing::Signal(Signal::Gpu)), cpu(0), "nothing is known of gpu");
        let young = Utilization { newest_workload_seconds: Some(7), ..cpu(0) };
        check(unknown(Missing::Initialization), young, "a workload started 7s ago, less than 1m");
    }

    #[test]
    fn waste_is_said_beside_the_class() {
        let since = Instant::from_millis(0);
        let window = Utilization { cpu: Permille::new(900), ..Utilization::default() };
        let verdict = Verdict { class: Class::Busy { since, signal: Signal::Cpu }, window, gpu_waste: Some(since) };
        let expected = "cpu 90% >= 60%; no GPU has worked since 1970-01-01T00:00:00.000Z";
        assert_eq!(verdict.because(&IdlePolicy::default()).to_string(), expected);
    }
}
