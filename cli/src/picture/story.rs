//! What of a run is shown: the flow's seven stages, the moments between them, and where each node stands.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ebb_core::time::Instant;
use ebb_core::view::{Level, Snapshot, Step};
use ebb_sim::run::{Milestones, Run};
use ebb_sim::scenario::Scenario;

/// A stage of the flow.
pub(super) struct Stage {
    /// In file names.
    pub(super) name: &'static str,
    /// In the row of stages.
    pub(super) short: &'static str,
    pub(super) title: &'static str,
}

pub(super) const STAGES: [Stage; 7] = [
    Stage { name: "minimal", short: "Minimal", title: "Initial state: minimal resources" },
    Stage { name: "burst", short: "Burst", title: "A burst of work triggers scale-up" },
    Stage { name: "coordinate", short: "Coordinate", title: "All autoscalers coordinate" },
    Stage { name: "peak", short: "Peak", title: "Peak capacity" },
    Stage { name: "complete", short: "Completed", title: "The workload completes" },
    Stage { name: "scale-down", short: "Scale-down", title: "Gradual scale-down" },
    Stage { name: "minimal-again", short: "Minimal again", title: "Back to minimal" },
];

/// What is older is no longer shown as being done.
const FRESH: Duration = Duration::from_secs(300);

/// A run, made ready to be drawn.
pub(super) struct Story<'a> {
    pub(super) scenario: &'a Scenario,
    pub(super) run: &'a Run,
    /// The moments that stand for the stages: indexes into the snapshots, never falling.
    pub(super) stages: [usize; 7],
    /// The same but for the scale-down, which begins before the middle of it.
    begins: [usize; 7],
    /// For each snapshot, each node's place among its group's. A node keeps its place until it is gone.
    pub(super) places: Vec<BTreeMap<&'a str, usize>>,
}

/// One picture to draw.
#[derive(Clone, Copy)]
pub(super) struct Moment {
    /// Index into the snapshots.
    pub(super) snapshot: usize,
    /// Who acted since then is shown as acting.
    pub(super) since: Instant,
}

impl<'a> Story<'a> {
    pub(super) fn new(scenario: &'a Scenario, run: &'a Run) -> anyhow::Result<Self> {
        anyhow::ensure!(!run.snapshots.is_empty(), "the run has no snapshots");
        let stages = stages(run);
        let drains = |index: &usize| drains(&run.snapshots[*index]);
        let mut begins = stages;
        begins[5] = (stages[4] + 1..stages[5]).find(drains).unwrap_or(stages[5]);
        Ok(Self { scenario, run, stages, begins, places: places(&run.snapshots) })
    }

    /// The stage that a snapshot belongs to.
    pub(super) fn stage_at(&self, snapshot: usize) -> usize {
        self.begins.iter().rposition(|first| *first <= snapshot).unwrap_or(0)
    }

    pub(super) fn stage(&self, stage: usize) -> Moment {
        let since = match stage {
            0 => self.run.started,
            // Who answered the burst answered it from its beginning on.
            1 | 2 => self.run.snapshots[self.stages[0]].now,
            _ => self.run.snapshots[self.stages[stage - 1]].now,
        };
        let snapshot = self.stages[stage];
        Moment { snapshot, since: since.max(self.run.snapshots[snapshot].now.before(FRESH)) }
    }

    /// At most so many moments, from the first stage to the last: close to each other where much happens.
    pub(super) fn moments(&self, count: usize) -> Vec<Moment> {
        let mut seen = self.stages[0];
        let mut sum = 0.0;
        let last = self.stages[6];
        let interest: Vec<f64> = (self.stages[0]..=last)
            .map(|index| {
                let steps = self.steps_between(self.run.snapshots[seen].now, self.run.snapshots[index].now);
                seen = index;
                sum += 1.0 + 3.0 * steps.count().min(3) as f64;
                sum
            })
            .collect();
        let mut chosen: BTreeSet<usize> = self.stages.into();
        let others = count.saturating_sub(chosen.len());
        chosen.extend((1..=others).map(|part| {
            let wanted = sum * part as f64 / (others + 1) as f64;
            self.stages[0] + interest.partition_point(|reached| *reached < wanted)
        }));
        let chosen: Vec<usize> = chosen.into_iter().collect();
        let now = |snapshot: usize| self.run.snapshots[snapshot].now;
        // One frame alone would be a flicker.
        let since = |index: usize| index.checked_sub(4).map_or(self.run.started, |before| now(chosen[before]));
        (0..).zip(&chosen).map(|(index, snapshot)| Moment { snapshot: *snapshot, since: since(index) }).collect()
    }

    fn steps_between(&self, after: Instant, until: Instant) -> impl Iterator<Item = &'a Step> {
        let steps = &self.run.steps;
        let from = steps.partition_point(|step| step.at <= after);
        steps[from..].iter().take_while(move |step| step.at <= until)
    }

    /// What a level did last. That pods are left waiting is said only where nothing was done.
    pub(super) fn last_step(&self, level: Level, moment: Moment) -> Option<&'a Step> {
        let now = self.run.snapshots[moment.snapshot].now;
        let steps = &self.run.steps;
        let done = &steps[..steps.partition_point(|step| step.at <= now)];
        let of_level = || done.iter().rev().filter(|step| step.level == level);
        let deed = of_level().find(|step| !step.what.starts_with("leaves"));
        match of_level().next() {
            Some(word) if word.at > moment.since && deed.is_none_or(|deed| deed.at <= moment.since) => Some(word),
            word => deed.or(word),
        }
    }
}

fn stages(run: &Run) -> [usize; 7] {
    let snapshots = &run.snapshots;
    let last = snapshots.len() - 1;
    let earliest = |mark: fn(&Milestones) -> Option<Instant>| run.milestones.values().filter_map(mark).min();
    let latest = |mark: fn(&Milestones) -> Option<Instant>| run.milestones.values().filter_map(mark).max();
    let at = |instant: Option<Instant>| {
        let at = instant.map(|instant| snapshots.partition_point(|snapshot| snapshot.now < instant));
        at.map(|index| index.min(last))
    };
    let ready = |snapshot: &Snapshot| snapshot.cluster.nodes.iter().filter(|node| node.ready).count();
    let working = |snapshot: &Snapshot| snapshot.ray.iter().map(|group| group.tasks_running).sum::<u32>();

    let minimal = earliest(|marks| marks.submitted)
        .map_or(0, |submitted| snapshots.partition_point(|snapshot| snapshot.now < submitted).saturating_sub(1));
    let burst = at(earliest(|marks| marks.ray_asked.or(marks.hpa_scaled))).unwrap_or(minimal).max(minimal);
    let coordinate = at(latest(|marks| marks.capacity_asked)).unwrap_or(burst).max(burst);
    // Of the fullest moments the first.
    let peak = (coordinate..=last).rev().max_by_key(|index| {
        let snapshot = &snapshots[*index];
        (ready(snapshot), working(snapshot))
    });
    let peak = peak.unwrap_or(coordinate);
    let complete = at(latest(|marks| marks.tasks_done)).unwrap_or(peak).max(peak);
    // Instances may be gone before their nodes.
    let again = at(latest(|marks| marks.at_minimum)).unwrap_or(last).max(complete);
    let least = |snapshot: &Snapshot| snapshot.cluster.groups.iter().map(|group| group.min as usize).sum::<usize>();
    let minimal_again = |index: &usize| snapshots[*index].cluster.nodes.len() <= least(&snapshots[*index]);
    let again = (again..=last).find(minimal_again).unwrap_or(last);
    let drains: Vec<usize> = (complete..=again).filter(|index| drains(&snapshots[*index])).collect();
    let scale_down = drains.get(drains.len() / 2).copied().unwrap_or(usize::midpoint(complete, again));
    [minimal, burst, coordinate, peak, complete, scale_down, again]
}

fn drains(snapshot: &Snapshot) -> bool {
    snapshot.cluster.nodes.iter().any(|node| node.draining && !node.drained)
}

fn places(snapshots: &[Snapshot]) -> Vec<BTreeMap<&str, usize>> {
    let mut kept: BTreeMap<&str, usize> = BTreeMap::new();
    let mut places = Vec::with_capacity(snapshots.len());
    for snapshot in snapshots {
        let nodes = &snapshot.cluster.nodes;
        let mut now = BTreeMap::new();
        for group in &snapshot.cluster.groups {
            let of_group = || nodes.iter().filter(|node| node.group.as_ref() == Some(&group.name));
            let mut taken: BTreeSet<usize> =
                of_group().filter_map(|node| kept.get(node.name.as_str()).copied()).collect();
            for node in of_group() {
                let place = kept.get(node.name.as_str()).copied();
                let place = place.unwrap_or_else(|| (0..).find(|place| !taken.contains(place)).unwrap_or_default());
                taken.insert(place);
                now.insert(node.name.as_str(), place);
            }
        }
        kept.clone_from(&now);
        places.push(now);
    }
    places
}
