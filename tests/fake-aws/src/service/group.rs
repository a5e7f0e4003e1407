//! A group and its instances: what they are and when they are due. What happens then is the service's.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use jiff::Timestamp;
use serde_json::Value;

use super::activity::ActivityIndex;
use crate::faults::Market;

pub(super) struct Group {
    pub(super) name: String,
    pub(super) arn: String,
    pub(super) created: Timestamp,
    pub(super) min: u32,
    pub(super) max: u32,
    pub(super) desired: u32,
    pub(super) zones: Vec<String>,
    /// Whether it was given subnets rather than zones: it is described by what it was given.
    pub(super) by_subnet: bool,
    pub(super) offer: Offer,
    pub(super) tags: BTreeMap<String, Tag>,
    pub(super) hooks: BTreeMap<String, Hook>,
    pub(super) suspended: BTreeSet<String>,
    pub(super) protects_new_instances: bool,
    /// In the order of their launch.
    pub(super) instances: Vec<Instance>,
    /// When it next acts on the difference between desired and actual capacity. `None`: there is none, or nothing to be
    /// done about it.
    pub(super) acts_at: Option<Timestamp>,
    /// Who asked for the capacity, in AWS's words, for the activities that follow from it.
    pub(super) asked: String,
}

/// What a group launches.
#[derive(Clone, Debug)]
pub(super) struct Offer {
    pub(super) template: Template,
    /// In the order in which they are tried; one where there is no mixed instances policy.
    pub(super) types: Vec<String>,
    pub(super) policy: Option<Value>,
    pub(super) on_demand_base: u32,
    pub(super) on_demand_percent: u32,
}

#[derive(Clone, Debug)]
pub(super) struct Template {
    pub(super) id: String,
    pub(super) name: String,
    /// As the group asked for it: `1`, `$Default`, `$Latest`.
    pub(super) version: String,
    pub(super) instance_type: Option<String>,
}

#[derive(Clone, Debug)]
pub(super) struct Tag {
    pub(super) value: String,
    pub(super) propagate: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transition {
    Launching,
    Terminating,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HookResult {
    Continue,
    Abandon,
}

#[derive(Clone, Debug)]
pub(super) struct Hook {
    pub(super) transition: Transition,
    pub(super) heartbeat_seconds: u32,
    pub(super) default_result: HookResult,
    pub(super) metadata: Option<String>,
}

pub(super) struct Instance {
    pub(super) id: String,
    pub(super) instance_type: String,
    pub(super) zone: String,
    pub(super) market: Market,
    pub(super) ip: Ipv4Addr,
    pub(super) protected: bool,
    pub(super) lifecycle: Lifecycle,
    /// What tells of its coming, and later of its going.
    pub(super) activity: ActivityIndex,
}

/// As AWS names them. `Pending:Proceed` is left out: it passes at once.
#[derive(Clone, Debug)]
pub(super) enum Lifecycle {
    Pending { until: Timestamp },
    PendingWait { holds: Vec<Hold> },
    InService,
    Terminating { until: Timestamp },
    TerminatingWait { holds: Vec<Hold> },
    TerminatingProceed { until: Timestamp },
}

/// One hook's hold on an instance.
#[derive(Clone, Debug)]
pub(super) struct Hold {
    pub(super) hook: String,
    pub(super) token: String,
    /// Put off by each heartbeat, up to `at_most`.
    pub(super) until: Timestamp,
    pub(super) at_most: Timestamp,
}

impl Lifecycle {
    pub(super) fn as_str(&self) -> &'static str {
        match self {
            Self::Pending { .. } => "Pending",
            Self::PendingWait { .. } => "Pending:Wait",
            Self::InService => "InService",
            Self::Terminating { .. } => "Terminating",
            Self::TerminatingWait { .. } => "Terminating:Wait",
            Self::TerminatingProceed { .. } => "Terminating:Proceed",
        }
    }

    /// Whether it counts for the group's capacity.
    pub(super) fn is_live(&self) -> bool {
        matches!(self, Self::Pending { .. } | Self::PendingWait { .. } | Self::InService)
    }

    pub(super) fn holds(&mut self) -> Option<&mut Vec<Hold>> {
        match self {
            Self::PendingWait { holds } | Self::TerminatingWait { holds } => Some(holds),
            _ => None,
        }
    }

    /// When something happens to it by itself.
    pub(super) fn due(&self) -> Option<Timestamp> {
        match self {
            Self::Pending { until } | Self::Terminating { until } | Self::TerminatingProceed { until } => Some(*until),
            Self::PendingWait { holds } | Self::TerminatingWait { holds } => holds.iter().map(|hold| hold.until).min(),
            Self::InService => None,
        }
    }
}

impl Group {
    pub(super) fn live(&self) -> impl Iterator<Item = &Instance> {
        self.instances.iter().filter(|instance| instance.lifecycle.is_live())
    }

    pub(super) fn live_count(&self) -> u32 {
        u32::try_from(self.live().count()).unwrap_or(u32::MAX)
    }

    pub(super) fn live_in(&self, zone: &str) -> usize {
        self.live().filter(|instance| instance.zone == zone).count()
    }

    /// The zones, those with the fewest instances first; as the group lists them where they have as many.
    pub(super) fn zones_by_need(&self) -> Vec<String> {
        let mut zones = self.zones.clone();
        zones.sort_by_key(|zone| self.live_in(zone));
        zones
    }

    /// Whom the group would let go: in the zone with the most instances, the oldest. AWS's default policy looks at launch
    /// templates and billing hours first, and then chooses by chance.
    pub(super) fn next_to_go(&self) -> Option<usize> {
        let most = |instance: &Instance| self.live_in(&instance.zone);
        let candidates = self.instances.iter().enumerate();
        let free = candidates.filter(|(_, instance)| instance.lifecycle.is_live() && !instance.protected);
        free.max_by_key(|(index, instance)| (most(instance), std::cmp::Reverse(*index))).map(|(index, _)| index)
    }

    /// On-demand up to the base, and by its share of what comes above.
    pub(super) fn next_market(&self) -> Market {
        let on_demand = self.live().filter(|instance| instance.market == Market::OnDemand).count() as u64;
        let (base, percent) = (u64::from(self.offer.on_demand_base), u64::from(self.offer.on_demand_percent));
        let above = (u64::from(self.live_count()) + 1).saturating_sub(base);
        let wanted = base + (above * percent).div_ceil(100);
        if on_demand < wanted { Market::OnDemand } else { Market::Spot }
    }

    pub(super) fn hooks_for(&self, transition: Transition) -> impl Iterator<Item = (&String, &Hook)> {
        self.hooks.iter().filter(move |(_, hook)| hook.transition == transition)
    }
}

impl Transition {
    pub(super) const ALL: [Self; 2] = [Self::Launching, Self::Terminating];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Launching => "autoscaling:EC2_INSTANCE_LAUNCHING",
            Self::Terminating => "autoscaling:EC2_INSTANCE_TERMINATING",
        }
    }
}

impl HookResult {
    pub(super) const ALL: [Self; 2] = [Self::Continue, Self::Abandon];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Continue => "CONTINUE",
            Self::Abandon => "ABANDON",
        }
    }
}
