//! Takes a sample each interval and classifies the node. On a thread of its own: a kernel file that hangs must not
//! stop a drain, nor the metrics that say how old the latest sample is.

use std::convert::Infallible;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant as Monotonic};

use ebb_core::classify::{Class, Classifier, GpuUse, IdlePolicy, Utilization, Verdict};
use ebb_core::time::Instant;
use tokio::sync::watch;

use crate::args::{Args, SourceArg};
use crate::clock::Clock;
use crate::gpus::NodeGpus;
use crate::health::Healths;
use crate::host::Host;
use crate::pods::PodNames;
use crate::reading::Reading;
use crate::replay::{self, Replay};
use crate::source::Source;
use crate::source::pod_resources::{Allocation, PodResources};
use crate::workload;

/// Readers of small files and a few maps; the default of 2 MiB would be many times what is used.
const STACK: usize = 512 << 10;

/// What is known of the node at one moment.
#[derive(Debug)]
pub struct Sample {
    pub at: Instant,
    pub taken: Monotonic,
    pub reading: Arc<Reading>,
    /// The sample's before this one; `None`: this is the first.
    pub before: Option<Arc<Reading>>,
    pub names: Arc<PodNames>,
    /// Which container was given which devices. `None`: the kubelet did not say.
    pub allocations: Option<Arc<[Allocation]>>,
    /// Since the sample before.
    pub utilization: Utilization,
    pub verdict: Verdict,
    /// The verdict's reason, with its figures.
    pub because: String,
    pub healths: Healths,
}

/// Where readings come from.
pub enum Input {
    Host(Box<Host>),
    Replay(Replay),
}

impl Input {
    pub fn open(args: &Args, clock: Clock) -> Result<Self, replay::Error> {
        Ok(match &args.source {
            SourceArg::Host => {
                let roots = args.roots();
                let gpus = NodeGpus::new(roots.sys.clone(), roots.proc.clone(), args.gpus(), clock);
                Self::Host(Box::new(Host::new(&roots, gpus)))
            }
            SourceArg::Replay(file) => Self::Replay(Replay::open(file, args.interval)?),
        })
    }

    /// Whether what it holds open can be read, with the rights of the present thread.
    pub fn works(&self) -> bool {
        match self {
            Self::Host(host) => host.works(),
            Self::Replay(_) => true,
        }
    }
}

pub struct Sampler {
    input: Input,
    classifier: Classifier,
    clock: Clock,
    before: Option<Arc<Reading>>,
    /// `None`: nobody tells.
    names: Option<watch::Receiver<Arc<PodNames>>>,
    /// `None`: nobody asks the kubelet.
    pod_resources: Option<watch::Receiver<PodResources>>,
    /// Of what is asked elsewhere: instance metadata, systemd-logind.
    others: Option<watch::Receiver<Healths>>,
    /// Of a replay; a host keeps its own.
    healths: Healths,
}

impl Sampler {
    pub fn new(input: Input, clock: Clock, policy: IdlePolicy) -> Self {
        let classifier = Classifier::new(policy);
        let (names, pod_resources, others) = (None, None, None);
        Self { input, classifier, clock, before: None, names, pod_resources, others, healths: Healths::default() }
    }

    /// Takes the names of pods from there.
    pub fn with_names(self, names: watch::Receiver<Arc<PodNames>>) -> Self {
        Self { names: Some(names), ..self }
    }

    /// Takes from there what the kubelet says.
    pub fn with_pod_resources(self, pod_resources: watch::Receiver<PodResources>) -> Self {
        Self { pod_resources: Some(pod_resources), ..self }
    }

    /// Takes from there how what is asked elsewhere is doing.
    pub fn with_others(self, others: watch::Receiver<Healths>) -> Self {
        Self { others: Some(others), ..self }
    }

    pub fn sample(&mut self, now: Monotonic) -> Sample {
        let names = self.names.as_ref().map(|names| names.borrow().clone()).unwrap_or_default();
        let (reading, mut healths, utilization) = match &mut self.input {
            Input::Host(host) => {
                let reading = host.read(now);
                // With nothing before it, a reading still knows what is no rate.
                let since = reading.since(self.before.as_deref().unwrap_or(&Reading::empty(reading.at)));
                let newest = workload::newest(&reading, &names, reading.at);
                let newest_workload_seconds = newest.map(|age| u32::try_from(age.as_secs()).unwrap_or(u32::MAX));
                let utilization = Utilization { newest_workload_seconds, ..since };
                (reading, host.healths.clone(), utilization)
            }
            Input::Replay(replay) => {
                let reading = Reading::empty(now);
                let elapsed = self.clock.at(reading.at).since(self.clock.begin());
                let utilization = self.healths.watch(Source::Replay, || Ok(replay.at(elapsed)?));
                let unknown = Utilization { gpu: GpuUse::Unknown, ..Utilization::default() };
                (reading, self.healths.clone(), utilization.unwrap_or(unknown))
            }
        };
        let pod_resources = self.pod_resources.as_ref().map(|answers| answers.borrow().clone()).unwrap_or_default();
        healths.extend(&pod_resources.healths);
        if let Some(others) = &self.others {
            healths.extend(&others.borrow());
        }
        let allocations = pod_resources.allocations;
        let at = self.clock.at(reading.at);
        let verdict = self.classifier.observe(at, utilization);
        let because = verdict.because(self.classifier.policy()).to_string();
        let reading = Arc::new(reading);
        let before = self.before.replace(reading.clone());
        Sample { at, taken: reading.at, reading, before, names, allocations, utilization, verdict, because, healths }
    }

    /// Samples until the other end of `stop` is dropped.
    pub fn spawn(
        mut self,
        interval: Duration,
        mut policy: watch::Receiver<IdlePolicy>,
        samples: watch::Sender<Option<Arc<Sample>>>,
        stop: mpsc::Receiver<Infallible>,
    ) -> std::io::Result<std::thread::JoinHandle<()>> {
        let run = move || {
            let mut next = Monotonic::now();
            let mut class: Option<Class> = None;
            loop {
                if policy.has_changed().unwrap_or(false) {
                    self.classifier.set_policy(policy.borrow_and_update().clone());
                }
                let sample = self.sample(Monotonic::now());
                let found = sample.verdict;
                if class.is_none_or(|class| class.name() != found.class.name()) {
                    let because = &sample.because;
                    tracing::info!(class = found.class.name(), since = %found.class.since(), because, "reclassified");
                }
                class = Some(found.class);
                samples.send_replace(Some(Arc::new(sample)));
                next = after(next, interval, Monotonic::now());
                match stop.recv_timeout(next.saturating_duration_since(Monotonic::now())) {
                    Err(mpsc::RecvTimeoutError::Timeout) => {}
                    Err(mpsc::RecvTimeoutError::Disconnected) => return,
                }
            }
        };
        std::thread::Builder::new().name("sampler".into()).stack_size(STACK).spawn(run)
    }
}

/// The next moment of a steady beat. Those missed are left out: a burst of samples after a stall would say nothing.
pub(crate) fn after(last: Monotonic, interval: Duration, now: Monotonic) -> Monotonic {
    let next = last + interval;
    if next > now { next } else { now + interval }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_beat_is_steady_and_skips_what_was_missed() {
        let start = Monotonic::now();
        let second = Duration::from_secs(1);
        let millis = Duration::from_millis;
        assert_eq!(after(start, second, start + millis(30)), start + second);
        assert_eq!(after(start, second, start + millis(5500)), start + millis(6500));
    }
}
