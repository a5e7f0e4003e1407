//! Counts each group's nodes by what they are good for, and what is still to come.

use std::collections::BTreeMap;

use super::{Call, Fleet, Group, Member, Target};
use crate::agenda::Agenda;
use crate::intent::{Intent, Trigger};
use crate::launch::{Cause, Failing};
use crate::policy::{self, Launch};
use crate::time::Instant;

/// One group, with its nodes sorted by what they are good for.
pub(super) struct Census<'a> {
    pub(super) name: &'a str,
    pub(super) policy: &'a policy::Group,
    pub(super) desired: u32,
    pub(super) min: u32,
    pub(super) max: u32,
    /// Ready and open to pods.
    pub(super) serving: Vec<&'a Member>,
    /// With a drain's intent.
    pub(super) leaving: Vec<(&'a Member, &'a Intent, &'a str)>,
    /// There, and not ready to take pods.
    pub(super) starting: Vec<&'a Member>,
    /// By somebody else: neither room for pods nor nodes to come.
    pub(super) cordoned: Vec<&'a Member>,
    /// Asked for and not ready yet, as far as they are counted on.
    pub(super) coming: u32,
    /// The zones of those of them that are there already.
    pub(super) coming_in: Vec<&'a str>,
    /// Instances in each zone.
    pub(super) nodes_in: BTreeMap<&'a str, u32>,
    pub(super) failing: Option<Failing>,
    pub(super) failing_in: BTreeMap<&'a str, Failing>,
    /// The zones that instances are launched in one by one; empty: the group launches by itself.
    pub(super) launches_in: &'a [String],
}

impl Census<'_> {
    /// How many of its instances are nodes.
    pub(super) fn members(&self) -> usize {
        self.serving.len() + self.leaving.len() + self.starting.len() + self.cordoned.len()
    }

    /// In all, or in this zone.
    pub(super) fn nodes(&self, zone: Option<&str>) -> u32 {
        zone.map_or(self.desired, |zone| self.nodes_in.get(zone).copied().unwrap_or(0))
    }

    /// Why nothing is counted on, in all or in this zone.
    pub(super) fn failing(&self, zone: Option<&str>) -> Option<Failing> {
        zone.and_then(|zone| self.failing_in.get(zone)).or(self.failing.as_ref()).cloned()
    }
}

impl Fleet {
    /// `None`: the API has not told of the group, or not since something went wrong there.
    pub(super) fn census<'a>(
        &'a self,
        agenda: &mut Agenda,
        name: &'a str,
        policy: &'a policy::Group,
    ) -> Option<Census<'a>> {
        let group = self.groups.get(name)?;
        let observed = group.asked_at.and(group.observed.as_ref())?;
        let (min, max) = observed.bounds(policy);
        let mut census = Census {
            name,
            policy,
            desired: group.desired()?,
            min,
            max,
            serving: Vec::new(),
            leaving: Vec::new(),
            starting: Vec::new(),
            cordoned: Vec::new(),
            coming: 0,
            coming_in: Vec::new(),
            nodes_in: BTreeMap::new(),
            failing: None,
            failing_in: BTreeMap::new(),
            launches_in: if self.launches(agenda, group) { &group.template.zones } else { &[] },
        };
        let timeout = self.policy.scale_up.provision_timeout;
        let (mut live, mut accounted) = (0_u32, 0);
        let mut lost_at = None;
        for instance in group.live() {
            live += 1;
            if let Some(zone) = &instance.zone {
                *census.nodes_in.entry(zone).or_default() += 1;
            }
            let member = self.node_of.get(&instance.id).and_then(|name| self.nodes.get(name));
            match member {
                Some(member) if let Some(intent) = member.intent(agenda.now) => {
                    if intent.by == Trigger::Coordinator {
                        census.leaving.push((member, intent, &instance.id));
                    } else {
                        census.cordoned.push(member);
                    }
                }
                Some(member) if !is_starting(member, policy) => {
                    let role = if member.node.unschedulable { &mut census.cordoned } else { &mut census.serving };
                    role.push(member);
                }
                // Still coming, unless it has taken too long: then it is lost, and no longer waited for.
                starting => {
                    census.starting.extend(starting);
                    let by = group.first_seen.get(&instance.id).map(|since| *since + timeout);
                    match by {
                        Some(by) if agenda.due(by) => lost_at = lost_at.max(Some(by)),
                        _ => {
                            census.coming_in.extend(instance.zone.as_deref());
                            continue;
                        }
                    }
                }
            }
            accounted += 1;
        }
        census.coming = census.desired.saturating_sub(accounted);
        let told = group.failures_in.iter().filter_map(|(zone, memory)| Some((zone.as_str(), memory.failing()?)));
        let told = told.filter(|(_, failing)| !agenda.due(failing.until));
        census.failing_in = told.map(|(zone, failing)| (zone, failing.clone())).collect();
        census.failing = self.failing(agenda, group, lost_at).or_else(|| {
            // In each zone: the group, until the first of them is counted on again.
            let failing = census.launches_in.iter().map(|zone| census.failing_in.get(zone.as_str()));
            failing.collect::<Option<Vec<_>>>()?.into_iter().min_by_key(|failing| failing.until).cloned()
        });
        if census.failing.as_ref().is_some_and(|failing| failing.cause != Cause::NeverReady) {
            // Those that were launched may still come. AWS goes on trying to launch the rest, but that is not built upon.
            census.coming = census.coming.min(live.saturating_sub(accounted));
        }
        census.coming_in.truncate(census.coming as usize);
        Some(census)
    }

    /// Whether the group's instances are launched one by one, in zones of our choice.
    fn launches(&self, agenda: &mut Agenda, group: &Group) -> bool {
        self.policy.scale_up.launch == Launch::LaunchInstances
            && group.launches_refused_until.is_none_or(|until| agenda.due(until))
    }

    /// Why the group is not counted on for what it lacks. `lost_at`: when the last of its instances was given up that never
    /// became a ready node.
    fn failing(&self, agenda: &mut Agenda, group: &Group, lost_at: Option<Instant>) -> Option<Failing> {
        let timeout = self.policy.scale_up.provision_timeout;
        let by_itself = |cause, until| Failing { cause, message: String::new(), until };
        let told = group.failures.failing().cloned();
        // Of no activity that failed and of no instance that came: counted on for the timeout, and then for as long not.
        let silent = group.short_since.and_then(|since| {
            let rounds = agenda.now.since(since).as_millis() / (2 * timeout).as_millis().max(1);
            let begins = since + 2 * timeout * u32::try_from(rounds).unwrap_or(u32::MAX);
            agenda.due(begins + timeout).then(|| by_itself(Cause::NothingCame, begins + 2 * timeout))
        });
        let lost = lost_at.map(|at| by_itself(Cause::NeverReady, at + timeout));
        [told, lost, silent].into_iter().flatten().find(|failing| !agenda.due(failing.until))
    }

    pub(super) fn ready(&self, agenda: &mut Agenda, target: &Target) -> bool {
        match self.calls.get(target) {
            None => true,
            Some(Call { retry_at: None, .. }) => false,
            Some(Call { retry_at: Some(at), .. }) => agenda.due(*at),
        }
    }
}

/// Whether the node is still on its way to take pods. Counting it as there before would make the group grow twice for
/// one pod: nothing fits it yet, and nothing is coming any more.
pub(super) fn is_starting(member: &Member, policy: &policy::Group) -> bool {
    let node = &member.node;
    let awaits_gpu = policy.allocatable.has_gpu() && !node.allocatable.has_gpu();
    !node.ready || awaits_gpu || node.taints.iter().any(|taint| is_startup_taint(&taint.key))
}

/// Taints that a node has while it starts and loses by itself: of the kubelet, the cloud provider, and of network and
/// storage plugins, which by custom end so (`ebs.csi.aws.com/agent-not-ready`, `node.cilium.io/agent-not-ready`).
fn is_startup_taint(key: &str) -> bool {
    matches!(
        key,
        "node.kubernetes.io/not-ready"
            | "node.kubernetes.io/network-unavailable"
            | "node.cloudprovider.kubernetes.io/uninitialized"
    ) || key.ends_with("/agent-not-ready")
}
