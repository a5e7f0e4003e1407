//! STAND-IN until the model is merged.
use ebb_core::time::Instant;
use std::time::Duration;
pub const SYNC_PERIOD: Duration = Duration::from_secs(15);
#[derive(Clone, Debug)]
pub struct Spec {
    min: u32,
    max: u32,
    demand: bool,
}
impl Spec {
    pub fn flow(min: u32, max: u32) -> Self {
        Self { min, max, demand: false }
    }
    pub fn with_demand(mut self) -> Self {
        self.demand = true;
        self
    }
}
pub struct Usage {
    pub cpu: u64,
    pub memory: u64,
    pub at: Instant,
    pub window: Duration,
}
pub struct Pod {
    pub running: bool,
    pub started: Option<Instant>,
    pub ready_since: Option<Instant>,
    pub terminating: bool,
    pub cpu_request: u64,
    pub memory_request: u64,
    pub usage: Option<Usage>,
}
pub struct Observed {
    pub replicas: u32,
    pub pods: Vec<Pod>,
    pub demand: Option<u32>,
}
pub struct Outcome {
    pub desired: u32,
    pub cpu_percent: Option<u32>,
    pub memory_percent: Option<u32>,
    pub because: String,
}
#[derive(Debug)]
pub struct Hpa(Spec, Vec<(Instant, u32)>);
impl Hpa {
    pub fn new(spec: Spec) -> Self {
        Self(spec, vec![])
    }
    pub fn sync(&mut self, now: Instant, observed: &Observed) -> Outcome {
        let want = observed.demand.filter(|_| self.0.demand).unwrap_or(observed.replicas).clamp(self.0.min, self.0.max);
        self.1.push((now, want));
        self.1.retain(|(at, _)| now.since(*at) <= Duration::from_secs(300));
        let desired = self.1.iter().map(|(_, w)| *w).max().unwrap_or(want);
        Outcome { desired, cpu_percent: None, memory_percent: None, because: "stand-in".into() }
    }
}
