//! Kubernetes' HorizontalPodAutoscaler, told the time.
//!
//! Which replica count the controller would set from what it sees: resource metrics against requests, pods without
//! metrics or not yet ready, tolerance, stabilization windows, and scaling policies per period. The rules are those of
//! `pkg/controller/podautoscaler` of Kubernetes 1.36 (`replica_calculator.go`, `horizontal.go`); the constants are the
//! defaults of kube-controller-manager's flags.
//!
//! Not modelled: container metrics, pod metrics other than resources, per-HPA tolerances, `selectPolicy` other than
//! `Max`. A target at zero replicas counts as one that the HPA itself has scaled there (`ScaledToZero`).
//!
//! A consequence that surprises: with a resource metric the last replica never goes. A pod that uses anything at all
//! makes the metric ask for one replica (rounded up), and the highest of the metrics wins. Workers that shall come down
//! to zero are scaled by Ray alone.
//!
//! The flow also wants "below 50 % for 300 s" before replicas are reduced. An HPA cannot say that: it has one target,
//! and reduces when the metric is below the target by more than the tolerance (63 % for a target of 70 %), held back by
//! the 300 s window.

use std::time::Duration;

use ebb_core::time::{Instant, format_duration};

/// `--horizontal-pod-autoscaler-sync-period`
pub const SYNC_PERIOD: Duration = Duration::from_secs(15);
/// `--horizontal-pod-autoscaler-tolerance`: a ratio to the target this close to one changes nothing.
const TOLERANCE: f64 = 0.1;
/// `--horizontal-pod-autoscaler-cpu-initialization-period`: after its start a pod's CPU counts only once it has been
/// ready for a whole window of its metric.
const CPU_INITIALIZATION_PERIOD: Duration = Duration::from_secs(5 * 60);

/// What an HPA object says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    pub min: u32,
    pub max: u32,
    /// Target of the average use, in percent of the requests.
    pub cpu_percent: u32,
    pub memory_percent: u32,
    /// Whether there is an external metric with an `AverageValue` of 1: so many replicas as its value.
    pub demand: bool,
    pub up: Behavior,
    pub down: Behavior,
}

/// One direction of `spec.behavior`, with `selectPolicy: Max`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Behavior {
    pub stabilization: Duration,
    pub policies: Vec<Policy>,
}

/// How much the replicas may change within a period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    Percent(u32, Duration),
    Pods(u32, Duration),
}

impl Spec {
    /// The flow's numbers: 70 % CPU, 80 % memory; up after 30 s by 100 % or 2 pods in 30 s, whichever is more; down
    /// after 300 s by 50 % a minute.
    pub fn flow(min: u32, max: u32) -> Self {
        let seconds = Duration::from_secs;
        Self {
            min,
            max,
            cpu_percent: 70,
            memory_percent: 80,
            demand: false,
            up: Behavior {
                stabilization: seconds(30),
                policies: vec![Policy::Percent(100, seconds(30)), Policy::Pods(2, seconds(30))],
            },
            down: Behavior { stabilization: seconds(300), policies: vec![Policy::Percent(50, seconds(60))] },
        }
    }

    pub fn with_demand(mut self) -> Self {
        self.demand = true;
        self
    }
}

/// What the controller sees in one round.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// `spec.replicas` of the target.
    pub replicas: u32,
    pub pods: Vec<Pod>,
    /// The external metric's value; `None`: it cannot be had.
    pub demand: Option<u32>,
}

/// A pod of the target.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pod {
    /// Its phase is Running; else Pending.
    pub running: bool,
    /// `status.startTime`
    pub started: Option<Instant>,
    /// When it last became ready; `None`: it is not.
    pub ready_since: Option<Instant>,
    pub terminating: bool,
    /// Requests and use in the same unit: thousandths of a CPU, and bytes.
    pub cpu_request: u64,
    pub memory_request: u64,
    /// `None`: metrics.k8s.io has nothing of the pod.
    pub usage: Option<Usage>,
}

/// A pod's metrics.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    pub cpu: u64,
    pub memory: u64,
    /// The end of the window.
    pub at: Instant,
    pub window: Duration,
}

/// What the controller would do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub desired: u32,
    /// Average use of the pods that count, in percent of their requests. `None`: no pod counts.
    pub cpu_percent: Option<u32>,
    pub memory_percent: Option<u32>,
    pub because: String,
}

/// The controller's memory of one HPA.
#[derive(Clone, Debug)]
pub struct Hpa {
    spec: Spec,
    /// What the metrics alone asked for, within the longer of the two windows.
    recommendations: Vec<(Instant, u32)>,
    /// By how much replicas were added and removed, and when.
    added: Vec<(Instant, u32)>,
    removed: Vec<(Instant, u32)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Resource {
    Cpu,
    Memory,
}

/// One metric's word: its value, and the replicas that it asks for.
struct Proposal {
    replicas: u32,
    says: String,
}

impl Hpa {
    pub fn new(spec: Spec) -> Self {
        Self { spec, recommendations: Vec::new(), added: Vec::new(), removed: Vec::new() }
    }

    /// One round of the controller. Whoever calls sets the target to `desired` at once.
    pub fn sync(&mut self, now: Instant, observed: &Observed) -> Outcome {
        let current = observed.replicas;
        if self.recommendations.is_empty() {
            self.recommendations.push((now, current));
        }
        let cpu = self.resource(now, observed, Resource::Cpu);
        let memory = self.resource(now, observed, Resource::Memory);
        let cpu_percent = cpu.as_ref().map(|(percent, _)| *percent);
        let memory_percent = memory.as_ref().map(|(percent, _)| *percent);
        let (desired, because) = if current > self.spec.max {
            (self.spec.max, format!("above the maximum of {}", self.spec.max))
        } else if current < self.spec.min && current > 0 {
            (self.spec.min, format!("below the minimum of {}", self.spec.min))
        } else {
            let mut proposals = vec![cpu.map(|(_, proposal)| proposal), memory.map(|(_, proposal)| proposal)];
            if self.spec.demand {
                proposals.push(self.demand(observed));
            }
            self.follow(now, current, proposals)
        };
        if desired > current {
            self.added.push((now, desired - current));
        } else if desired < current {
            self.removed.push((now, current - desired));
        }
        Outcome { desired, cpu_percent, memory_percent, because }
    }

    /// The highest proposal, held by windows and policies. A metric that cannot be had forbids a reduction.
    fn follow(&mut self, now: Instant, current: u32, proposals: Vec<Option<Proposal>>) -> (u32, String) {
        let invalid = proposals.iter().any(Option::is_none);
        // The first of those that ask for the same: it is the one that the controller names.
        let highest = proposals.into_iter().flatten().reduce(|a, b| if b.replicas > a.replicas { b } else { a });
        let Some(highest) = highest.filter(|highest| !invalid || highest.replicas >= current) else {
            return (current, "some metrics are missing".to_owned());
        };
        let stable = self.stabilize(now, current, highest.replicas);
        let desired = self.limit(now, current, stable);
        let mut because = highest.says;
        if desired < stable && desired > current {
            because += ", no faster than its policies";
        } else if desired > stable && desired < current {
            because += ", no faster than its policies allow";
        } else if stable != highest.replicas {
            let (up, down) = (self.spec.up.stabilization, self.spec.down.stabilization);
            let window = if highest.replicas > current { up } else { down };
            because += &format!(", held by the last {}", format_duration(window));
        }
        (desired, because)
    }

    /// No more than the lowest recommendation of the way up's window, no less than the highest of the way down's.
    fn stabilize(&mut self, now: Instant, current: u32, recommended: u32) -> u32 {
        let (up, down) = (self.spec.up.stabilization, self.spec.down.stabilization);
        let within = |window: Duration, at: Instant| at > now.before(window);
        let recent = |window| {
            let recent = self.recommendations.iter().filter(move |(at, _)| within(window, *at));
            recent.map(|(_, recommendation)| *recommendation).chain([recommended])
        };
        let lowest = recent(up).min().unwrap_or(recommended);
        let highest = recent(down).max().unwrap_or(recommended);
        self.recommendations.retain(|(at, _)| within(up.max(down), *at));
        self.recommendations.push((now, recommended));
        current.max(lowest).min(highest)
    }

    fn limit(&mut self, now: Instant, current: u32, wanted: u32) -> u32 {
        let longest = |behavior: &Behavior| behavior.policies.iter().map(|policy| policy.period()).max();
        let keep = longest(&self.spec.up).max(longest(&self.spec.down)).unwrap_or_default();
        for events in [&mut self.added, &mut self.removed] {
            events.retain(|(at, _)| *at > now.before(keep));
        }
        // Replicas at the start of a policy's period.
        let before = |period: Duration| {
            let sum = |events: &[(Instant, u32)]| {
                events.iter().filter(|(at, _)| *at > now.before(period)).map(|(_, change)| *change).sum::<u32>()
            };
            (current + sum(&self.removed)).saturating_sub(sum(&self.added))
        };
        if wanted > current {
            let most = self.spec.up.policies.iter().map(|policy| match *policy {
                Policy::Percent(percent, period) => (before(period) * (100 + percent)).div_ceil(100),
                Policy::Pods(pods, period) => before(period) + pods,
            });
            wanted.min(most.max().unwrap_or(u32::MAX).max(current)).min(self.spec.max)
        } else if wanted < current {
            let least = self.spec.down.policies.iter().map(|policy| match *policy {
                Policy::Percent(percent, period) => before(period) * (100 - percent.min(100)) / 100,
                Policy::Pods(pods, period) => before(period).saturating_sub(pods),
            });
            wanted.max(least.min().unwrap_or(0).min(current)).max(self.spec.min)
        } else {
            wanted
        }
    }

    /// The external metric; the ratio is to the pods there are, whether or not they are ready.
    fn demand(&self, observed: &Observed) -> Option<Proposal> {
        let demand = observed.demand?;
        let pods = observed.pods.iter().filter(|pod| !pod.terminating).count();
        let pods = u32::try_from(pods).unwrap_or(u32::MAX);
        let ratio = f64::from(demand) / f64::from(pods);
        let replicas = if within_tolerance(ratio) { pods } else { demand };
        Some(Proposal { replicas, says: format!("Ray needs {demand} workers") })
    }

    /// Average use in percent of the requests, and the replicas that it asks for. `None`: no pod counts.
    fn resource(&self, now: Instant, observed: &Observed, resource: Resource) -> Option<(u32, Proposal)> {
        let (mut counted, mut unready, mut missing) = (Vec::new(), Vec::new(), Vec::new());
        for pod in observed.pods.iter().filter(|pod| !pod.terminating) {
            let request = match resource {
                Resource::Cpu => pod.cpu_request,
                Resource::Memory => pod.memory_request,
            };
            match pod.usage {
                _ if !pod.running => unready.push(request),
                None => missing.push(request),
                Some(usage) if resource == Resource::Cpu && !counts(now, pod, &usage) => unready.push(request),
                Some(usage) => {
                    counted.push((if resource == Resource::Cpu { usage.cpu } else { usage.memory }, request))
                }
            }
        }
        let (name, target) = match resource {
            Resource::Cpu => ("CPU", self.spec.cpu_percent),
            Resource::Memory => ("memory", self.spec.memory_percent),
        };
        let percent = percent(&counted)?;
        let ratio = f64::from(percent) / f64::from(target);
        let up_with_unready = !unready.is_empty() && ratio > 1.0;
        let says = format!("{name} at {percent} % of requests, target {target} %");
        let propose = |replicas| Some((percent, Proposal { replicas, says: says.clone() }));
        if !up_with_unready && missing.is_empty() {
            let replicas = if within_tolerance(ratio) { observed.replicas } else { times(ratio, counted.len()) };
            return propose(replicas);
        }
        // What is not known is taken to speak against the change: all of the request on the way down, nothing on the
        // way up.
        if ratio < 1.0 {
            let all = u64::from(target.max(100));
            counted.extend(missing.iter().map(|request| (request * all / 100, *request)));
        } else if ratio > 1.0 {
            counted.extend(missing.iter().map(|request| (0, *request)));
        }
        if up_with_unready {
            counted.extend(unready.iter().map(|request| (0, *request)));
        }
        let new = f64::from(self::percent(&counted)?) / f64::from(target);
        let turns = (ratio < 1.0 && new > 1.0) || (ratio > 1.0 && new < 1.0);
        let replicas = times(new, counted.len());
        let against = (new < 1.0 && replicas > observed.replicas) || (new > 1.0 && replicas < observed.replicas);
        propose(if within_tolerance(new) || turns || against { observed.replicas } else { replicas })
    }
}

impl Policy {
    fn period(self) -> Duration {
        match self {
            Self::Percent(_, period) | Self::Pods(_, period) => period,
        }
    }
}

/// Whether a running pod's CPU sample counts: what a pod uses while it starts says nothing of its work.
fn counts(now: Instant, pod: &Pod, usage: &Usage) -> bool {
    let Some((started, ready)) = pod.started.zip(pod.ready_since) else { return false };
    started + CPU_INITIALIZATION_PERIOD <= now || usage.at >= ready + usage.window
}

fn within_tolerance(ratio: f64) -> bool {
    (1.0 - TOLERANCE..=1.0 + TOLERANCE).contains(&ratio)
}

/// Rounded down, as the controller does. `None` where nothing is requested.
fn percent(pods: &[(u64, u64)]) -> Option<u32> {
    let used: u64 = pods.iter().map(|(used, _)| used).sum();
    let requested: u64 = pods.iter().map(|(_, requested)| requested).sum();
    u32::try_from(used.checked_mul(100)?.checked_div(requested)?).ok()
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "replicas are small and never negative")]
fn times(ratio: f64, pods: usize) -> u32 {
    (ratio * pods as f64).ceil() as u32
}

#[cfg(test)]
mod tests;
