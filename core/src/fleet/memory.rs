//! What a coordinator knows only from having watched. It is kept outside, so that a restart or another leader does not
//! begin all timers anew.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Fleet;
use crate::launch;
use crate::time::Instant;

/// A predecessor's word counts only so long: after that too much may have happened that nobody saw.
const LONGEST_GAP: Duration = Duration::from_secs(5 * 60);

/// All of it, at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Memory {
    pub at: Instant,
    /// Since when no pod has held a node, by the Node's UID.
    #[serde(default)]
    pub empty_since: BTreeMap<String, Instant>,
    /// Until when a node is not drained again, by the Node's UID.
    #[serde(default)]
    pub spared_until: BTreeMap<String, Instant>,
    /// By group.
    #[serde(default)]
    pub failures: BTreeMap<String, launch::Memory>,
    /// By group and zone.
    #[serde(default)]
    pub failures_in: BTreeMap<String, BTreeMap<String, launch::Memory>>,
}

impl Fleet {
    /// What a successor should know.
    pub fn memory(&self, now: Instant) -> Memory {
        let of = |time: fn(&super::Member) -> Option<Instant>| {
            let times = self.nodes.values().filter_map(|member| Some((member.node.uid.clone(), time(member)?)));
            times.collect()
        };
        let failures = self.groups.iter().filter(|(_, group)| group.failures != launch::Memory::default());
        let zones = self.groups.iter().filter(|(_, group)| !group.failures_in.is_empty());
        Memory {
            at: now,
            empty_since: of(|member| member.empty_since),
            spared_until: of(|member| member.spared_until),
            failures: failures.map(|(name, group)| (name.clone(), group.failures.clone())).collect(),
            failures_in: zones.map(|(name, group)| (name.clone(), group.failures_in.clone())).collect(),
        }
    }

    /// Takes over a predecessor's memory, where nothing that was seen since speaks against it.
    pub(super) fn remember(&mut self, now: Instant, memory: &Memory) {
        if now.since(memory.at) > LONGEST_GAP {
            return;
        }
        for member in self.nodes.values_mut() {
            let uid = &member.node.uid;
            // One that has pods now is not empty, whatever it was.
            if let (Some(empty), Some(earlier)) = (&mut member.empty_since, memory.empty_since.get(uid)) {
                *empty = (*empty).min(*earlier);
            }
            member.spared_until = member.spared_until.max(memory.spared_until.get(uid).copied());
        }
        // What happened since is in the next description.
        for (name, failures) in &memory.failures {
            if let Some(group) = self.groups.get_mut(name) {
                group.failures = failures.clone();
            }
        }
        for (name, failures) in &memory.failures_in {
            if let Some(group) = self.groups.get_mut(name) {
                group.failures_in.clone_from(failures);
            }
        }
    }
}
