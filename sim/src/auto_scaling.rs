//! An Auto Scaling group: keeps as many instances as it is asked for, in the zone that has the fewest, where there is
//! capacity.
//!
//! After the Auto Scaling user guide ("Availability Zone distribution"). Not modelled: mixed instances, warm pools,
//! lifecycle hooks, rebalancing between zones, scale-in by the group's own choice (Ebb names every instance).

use std::collections::{BTreeMap, BTreeSet};

use ebb_core::fleet;
use ebb_core::launch::LaunchFailure;
use ebb_core::time::Instant;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lifecycle {
    Pending,
    InService,
    Terminating,
}

#[derive(Clone, Debug)]
pub(crate) struct Instance {
    pub(crate) id: String,
    pub(crate) zone: String,
    pub(crate) lifecycle: Lifecycle,
}

#[derive(Debug)]
pub(crate) struct AutoScalingGroup {
    pub(crate) name: String,
    pub(crate) min: u32,
    pub(crate) max: u32,
    pub(crate) desired: u32,
    pub(crate) instances: Vec<Instance>,
    zones: Vec<String>,
    /// Zones that have no capacity now.
    pub(crate) exhausted: BTreeSet<String>,
    launched: u32,
    /// The last launch that failed, as an activity would say it.
    failure: Option<LaunchFailure>,
    /// What became of each launch that was asked for, by its token.
    asked: BTreeMap<String, Launch>,
}

/// What a round of launching did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Launch {
    pub(crate) instances: Vec<String>,
    /// Zones it would have chosen that had no capacity.
    pub(crate) refused: BTreeSet<String>,
    /// Instances that no zone had capacity for.
    pub(crate) missing: u32,
}

impl Launch {
    /// As AWS says it, where something is missing.
    pub(crate) fn failure(&self) -> Option<String> {
        let zones = self.refused.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
        (self.missing > 0).then(|| format!("We currently do not have sufficient capacity in {zones}."))
    }
}

impl AutoScalingGroup {
    pub(crate) fn new(name: &str, min: u32, max: u32, zones: &[String]) -> Self {
        Self {
            name: name.to_owned(),
            min,
            max,
            desired: min,
            instances: Vec::new(),
            zones: zones.to_vec(),
            exhausted: BTreeSet::new(),
            launched: 0,
            failure: None,
            asked: BTreeMap::new(),
        }
    }

    pub(crate) fn live(&self) -> u32 {
        let live = self.instances.iter().filter(|instance| instance.lifecycle != Lifecycle::Terminating).count();
        u32::try_from(live).unwrap_or(u32::MAX)
    }

    /// Launches what is missing.
    pub(crate) fn launch(&mut self, now: Instant) -> Launch {
        let mut launch = Launch::default();
        let mut in_zone: BTreeMap<&str, u32> = self.zones.iter().map(|zone| (zone.as_str(), 0)).collect();
        for instance in self.instances.iter().filter(|instance| instance.lifecycle != Lifecycle::Terminating) {
            if let Some(count) = in_zone.get_mut(instance.zone.as_str()) {
                *count += 1;
            }
        }
        for _ in self.live()..self.desired {
            // In the zones' own order where they have as many.
            let mut by_count: Vec<_> = self.zones.iter().map(|zone| (in_zone[zone.as_str()], zone)).collect();
            by_count.sort_by_key(|(count, _)| *count);
            let chosen = by_count.iter().map(|(_, zone)| *zone).find(|zone| {
                let exhausted = self.exhausted.contains(*zone);
                if exhausted {
                    launch.refused.insert((*zone).clone());
                }
                !exhausted
            });
            let Some(zone) = chosen else {
                launch.missing += 1;
                continue;
            };
            *in_zone.entry(zone.as_str()).or_default() += 1;
            self.launched += 1;
            let id = format!("i-{}-{:04}", self.name, self.launched);
            launch.instances.push(id.clone());
            self.instances.push(Instance { id, zone: zone.clone(), lifecycle: Lifecycle::Pending });
        }
        self.failure = launch.failure().map(|message| LaunchFailure { at: now, message }).or(self.failure.take());
        launch
    }

    /// `LaunchInstances`: so many in this zone, or none. What fails is not desired. A token that was used before launches
    /// nothing more; `true`: it is new.
    pub(crate) fn launch_in(&mut self, zone: &str, count: u32, token: &str) -> (Launch, bool) {
        if let Some(launch) = self.asked.get(token) {
            return (launch.clone(), false);
        }
        let mut launch = Launch::default();
        if self.exhausted.contains(zone) {
            launch.missing = count;
            launch.refused.insert(zone.to_owned());
        } else {
            self.desired += count;
            for _ in 0..count {
                self.launched += 1;
                let id = format!("i-{}-{:04}", self.name, self.launched);
                launch.instances.push(id.clone());
                self.instances.push(Instance { id, zone: zone.to_owned(), lifecycle: Lifecycle::Pending });
            }
        }
        self.asked.insert(token.to_owned(), launch.clone());
        (launch, true)
    }

    pub(crate) fn instance_mut(&mut self, id: &str) -> Option<&mut Instance> {
        self.instances.iter_mut().find(|instance| instance.id == id)
    }

    /// As the API describes it.
    pub(crate) fn state(&self) -> fleet::GroupState {
        let instance = |instance: &Instance| fleet::Instance {
            id: instance.id.clone(),
            waits: false,
            live: instance.lifecycle != Lifecycle::Terminating,
            zone: Some(instance.zone.clone()),
        };
        fleet::GroupState {
            name: self.name.clone(),
            min: self.min,
            max: self.max,
            desired: self.desired,
            instances: self.instances.iter().map(instance).collect(),
            zones: self.zones.clone(),
            failures: self.failure.iter().filter(|_| self.live() < self.desired).cloned().collect(),
            ..fleet::GroupState::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(desired: u32) -> AutoScalingGroup {
        let zones = ["a", "b", "c"].map(str::to_owned);
        AutoScalingGroup { desired, ..AutoScalingGroup::new("g", 0, 10, &zones) }
    }

    fn zones(group: &AutoScalingGroup) -> String {
        group.instances.iter().map(|instance| instance.zone.as_str()).collect()
    }

    #[test]
    fn the_zone_with_the_fewest_instances_is_next() {
        let mut group = group(4);
        group.launch(Instant::from_millis(0));
        assert_eq!(zones(&group), "abca");
        group.instances.remove(1);
        group.desired = 5;
        group.launch(Instant::from_millis(0));
        assert_eq!(zones(&group), "acabb");
    }

    #[test]
    fn a_zone_without_capacity_is_passed_over_and_named() {
        let mut group = group(2);
        group.exhausted = BTreeSet::from(["a".into()]);
        let launch = group.launch(Instant::from_millis(0));
        assert_eq!((zones(&group).as_str(), launch.refused.len(), launch.missing), ("bc", 1, 0));
        group.exhausted = ["a", "b", "c"].map(str::to_owned).into();
        group.desired = 4;
        assert_eq!(group.launch(Instant::from_millis(0)).missing, 2);
    }

    #[test]
    fn a_launch_in_a_zone_is_done_once_for_a_token_or_not_at_all() {
        let mut group = group(0);
        group.exhausted = BTreeSet::from(["a".into()]);
        let (launch, _) = group.launch_in("a", 2, "one");
        assert_eq!((launch.missing, group.desired, zones(&group).as_str()), (2, 0, ""));
        let (launch, new) = group.launch_in("b", 2, "two");
        assert_eq!((launch.instances.len(), new, group.desired), (2, true, 2));
        assert_eq!(group.launch_in("b", 2, "two"), (launch, false));
        assert_eq!((zones(&group).as_str(), group.launch(Instant::from_millis(0))), ("bb", Launch::default()));
    }

    #[test]
    fn an_instance_that_is_terminating_is_replaced_if_it_is_still_desired() {
        let mut group = group(1);
        group.launch(Instant::from_millis(0));
        group.instances[0].lifecycle = Lifecycle::Terminating;
        assert_eq!(group.launch(Instant::from_millis(0)).instances.len(), 1);
        assert_eq!(group.state().instances.iter().filter(|instance| instance.live).count(), 1);
    }
}
