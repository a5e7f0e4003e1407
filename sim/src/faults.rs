//! What goes wrong by chance: drawn from the seed, so that a run with faults repeats to the millisecond.
//!
//! Each seed draws which kinds of faults it has and how often (swarm testing: a run with everything at once seldom gets
//! anywhere). After a while they end, so that what must come right in the end can be checked.

use std::time::Duration;

use ebb_core::fleet::Failure;
use ebb_core::time::Instant;
use ebb_core::view::Level;

use crate::auto_scaling::Lifecycle;
use crate::random::Random;
use crate::scenario::Scenario;
use crate::world::Options;

/// Kinds and rates. Rates are shares of calls, reports or watch events.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Faults {
    /// After the start: then they end.
    pub until: Duration,
    pub call_fails: f64,
    pub reply_lost: f64,
    pub report_lost: f64,
    pub report_doubled: f64,
    pub report_late: f64,
    pub watch_late: f64,
    /// Between two faults of the kinds below, on average; zero: none of them.
    pub every: Duration,
    pub kinds: Vec<Kind>,
}

/// Faults that happen at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    AgentRestarts,
    /// For up to three minutes.
    AgentSilent,
    AgentClockJumps,
    /// Another takes over half a minute later, at most.
    CoordinatorCrashes,
    /// For the next coordinator: one that runs keeps to its monotonic clock.
    CoordinatorClockJumps,
    /// Somebody cordons a node, and takes it back minutes later.
    CordonedByOther,
    /// Somebody raises a group's desired capacity by one.
    DesiredRaisedByOther,
    InstanceFails,
}

impl Kind {
    const ALL: [Self; 8] = [
        Self::AgentRestarts,
        Self::AgentSilent,
        Self::AgentClockJumps,
        Self::CoordinatorCrashes,
        Self::CoordinatorClockJumps,
        Self::CordonedByOther,
        Self::DesiredRaisedByOther,
        Self::InstanceFails,
    ];
}

/// The longest that anything on a wire is late.
pub(crate) const LATEST: Duration = Duration::from_secs(8);
/// Clocks differ by no more than this, one way or the other. Drains keep a margin of 60 s for two of them.
const CLOCKS_DIFFER: Duration = Duration::from_secs(25);

impl Faults {
    /// The faults of a seed.
    pub fn drawn(seed: u64, until: Duration) -> Self {
        let mut random = Random::new(seed, "kinds of faults");
        let mut rate = |most: f64| if random.chance(0.5) { most * random.below(1000) as f64 / 1000.0 } else { 0.0 };
        let mut faults = Self {
            until,
            call_fails: rate(0.4),
            reply_lost: rate(0.3),
            report_lost: rate(0.6),
            report_doubled: rate(0.3),
            report_late: rate(0.5),
            watch_late: rate(0.2),
            ..Self::default()
        };
        faults.kinds = Kind::ALL.into_iter().filter(|_| random.chance(0.4)).collect();
        faults.every = random.between(Duration::from_secs(20), Duration::from_secs(600));
        faults
    }
}

/// What becomes of a call.
pub(crate) enum Reply {
    Comes,
    /// It never took effect.
    Fails(Failure),
    /// It took effect, and nobody was told.
    IsLost,
}

/// The faults of one run.
pub(crate) struct State {
    faults: Option<Faults>,
    until: Instant,
    now: Instant,
    random: Random,
}

impl State {
    pub(crate) fn new(scenario: &Scenario, options: &Options) -> Self {
        let until = options.faults.as_ref().map_or(scenario.starts_at, |faults| scenario.starts_at + faults.until);
        let random = Random::new(options.seed, "faults");
        Self { faults: options.faults.clone(), until, now: scenario.starts_at, random }
    }

    fn active(&self) -> Option<&Faults> {
        self.faults.as_ref().filter(|_| self.now < self.until)
    }

    pub(crate) fn any(&self) -> bool {
        self.faults.is_some()
    }

    pub(crate) fn pass_to(&mut self, now: Instant) {
        self.now = now;
    }

    pub(crate) fn reply(&self, wire: &mut Random) -> Reply {
        let Some(faults) = self.active() else { return Reply::Comes };
        if wire.chance(faults.call_fails) {
            let failures = [Failure::Conflict, Failure::Throttled, Failure::Unavailable, Failure::NotFound];
            return Reply::Fails(failures[wire.below(failures.len() as u64) as usize]);
        }
        if wire.chance(faults.reply_lost) { Reply::IsLost } else { Reply::Comes }
    }

    /// How late each copy of a report arrives; none: it is lost.
    pub(crate) fn report_delays(&self, wire: &mut Random) -> Vec<Duration> {
        let Some(faults) = self.active() else { return vec![Duration::ZERO] };
        if wire.chance(faults.report_lost) {
            return Vec::new();
        }
        let copies = if wire.chance(faults.report_doubled) { 2 } else { 1 };
        let late = |wire: &mut Random| match wire.chance(faults.report_late) {
            true => wire.between(Duration::ZERO, LATEST),
            false => Duration::ZERO,
        };
        (0..copies).map(|_| late(wire)).collect()
    }

    pub(crate) fn watch_delay(&self, wire: &mut Random) -> Duration {
        match self.active() {
            Some(faults) if wire.chance(faults.watch_late) => wire.between(Duration::ZERO, LATEST),
            _ => Duration::ZERO,
        }
    }

    /// When the next fault happens; `None`: no more.
    pub(crate) fn next(&mut self, now: Instant) -> Option<Instant> {
        let faults = self.faults.as_ref().filter(|faults| !faults.kinds.is_empty())?;
        let at = now + self.random.between(Duration::from_secs(1), faults.every * 2);
        (at < self.until).then_some(at)
    }

    fn draw(&mut self) -> Option<Kind> {
        let kinds = &self.faults.as_ref()?.kinds;
        let index = self.random.below(kinds.len() as u64) as usize;
        kinds.get(index).copied()
    }
}

impl crate::world::World<'_> {
    pub(crate) fn fault(&mut self) {
        if let Some(next) = self.faults.next(self.now) {
            self.at(next, crate::world::Happening::Fault);
        }
        let Some(kind) = self.faults.draw() else { return };
        let count = self.nodes.len() as u64;
        let chosen = if count == 0 { 0 } else { self.faults.random.below(count) as usize };
        let Some(node) = self.nodes.keys().nth(chosen).cloned() else { return };
        let jump = self.faults.random.between(Duration::ZERO, CLOCKS_DIFFER * 2).as_millis() as i64
            - CLOCKS_DIFFER.as_millis() as i64;
        let lasts = self.faults.random.between(Duration::from_secs(5), Duration::from_secs(180));
        let what = match kind {
            Kind::AgentRestarts => {
                self.restart_agent(&node);
                format!("fault: the agent of {node} starts anew")
            }
            Kind::AgentSilent => {
                self.silence(&node, true);
                self.after(lasts, crate::world::Happening::AgentSpeaks { node: node.clone() });
                format!("fault: the agent of {node} falls silent")
            }
            Kind::AgentClockJumps => {
                self.set_agent_clock(&node, jump);
                format!("fault: the clock of {node} is {jump} ms ahead")
            }
            Kind::CoordinatorCrashes => {
                self.coordinator_crashes();
                let back = lasts.min(Duration::from_secs(30));
                self.after(back, crate::world::Happening::CoordinatorStarts);
                "fault: the coordinator crashes".to_owned()
            }
            Kind::CoordinatorClockJumps => {
                self.set_coordinator_clock(jump);
                format!("fault: the next coordinator's clock is {jump} ms ahead")
            }
            Kind::CordonedByOther => {
                if !self.cordon(&node, true) {
                    return;
                }
                self.after(lasts, crate::world::Happening::Uncordon { node: node.clone() });
                format!("fault: somebody cordons {node}")
            }
            Kind::DesiredRaisedByOther => {
                let index = self.faults.random.below(self.groups.len() as u64) as usize;
                let group = &mut self.groups[index];
                if group.desired >= group.max {
                    return;
                }
                group.desired += 1;
                let what = format!("fault: somebody raises {} to {}", group.name, group.desired);
                self.launch(index);
                what
            }
            Kind::InstanceFails => {
                let state = &self.nodes[&node];
                let (group, instance) = (state.group, state.node.instance.clone().unwrap_or_default());
                let found = self.groups[group].instance_mut(&instance);
                if found.is_none_or(|found| found.lifecycle != Lifecycle::InService) {
                    return;
                }
                self.instance_fails(group, &instance);
                format!("fault: instance {instance} fails")
            }
        };
        self.step(Level::Kubernetes, what, "");
    }
}
