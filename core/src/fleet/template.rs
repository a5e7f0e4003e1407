//! What a new node of a group would be, before it is there: by what the configuration says, what the group's tags say,
//! and what nodes of the group have shown.

use std::collections::BTreeMap;
use std::slice;

use super::GroupState;
use crate::instance;
use crate::kubernetes::{Taint, TaintEffect};
use crate::policy;
use crate::resources::Resources;
use crate::schedule::Place;
use crate::storage::ZONE_LABELS;

/// Cluster Autoscaler's convention for tags on an Auto Scaling group that has no nodes: `.../label/KEY: VALUE`,
/// `.../taint/KEY: VALUE:EFFECT`, `.../resources/NAME: AMOUNT`.
const TAGS: &str = "k8s.io/cluster-autoscaler/node-template/";

#[derive(Clone, Debug, Default)]
pub(super) struct Template {
    labels: BTreeMap<String, String>,
    taints: Vec<Taint>,
    /// Where its nodes may come up; empty: not known.
    pub(super) zones: Vec<String>,
    /// The labels of a node in each of them.
    in_zones: BTreeMap<String, BTreeMap<String, String>>,
    /// Without what daemons take.
    allocatable: Resources,
    /// Whether a node of the group has shown it, daemons and all.
    shown: bool,
}

impl Template {
    pub(super) fn configured(policy: &policy::Group) -> Self {
        Self {
            labels: policy.labels.clone(),
            taints: policy.taints.clone(),
            in_zones: BTreeMap::new(),
            zones: policy.labels.get(ZONE_LABELS[0]).cloned().into_iter().collect(),
            allocatable: policy.allocatable.clone(),
            shown: false,
        }
    }

    /// What the group's tags say outranks the configuration. `shown`: what the last node that was seen ready offered.
    pub(super) fn described(policy: &policy::Group, state: &GroupState, shown: Option<&Resources>) -> Self {
        let mut template = Self::configured(policy);
        if template.zones.is_empty() {
            template.zones.clone_from(&state.zones);
        }
        if let [zone] = template.zones.as_slice() {
            template.labels.insert(ZONE_LABELS[0].into(), zone.clone());
        }
        match least(&state.instance_types) {
            // Of several types it is not known which one comes: what is promised must hold on each.
            Some(least) => template.allocatable = least,
            None => {
                if let Some(shown) = shown {
                    template.allocatable = shown.clone();
                    template.shown = true;
                }
            }
        }
        for (key, value) in &state.tags {
            let Some(rest) = key.strip_prefix(TAGS) else { continue };
            match rest.split_once('/') {
                Some(("label", key)) => _ = template.labels.insert(key.into(), value.clone()),
                Some(("taint", key)) => template.taint(key, value),
                Some(("resources", name)) if !template.shown => {
                    if let Ok(amount) = Resources::from_texts([(name, value.as_str())]) {
                        template.allocatable.set(name, amount.amount(name));
                    }
                }
                _ => {}
            }
        }
        template.in_zones = template.zones.iter().map(|zone| (zone.clone(), template.labels_in(zone))).collect();
        template
    }

    /// A node, in this zone where one is named; all of it free.
    pub(super) fn place(&self, zone: Option<&str>) -> Place<'_> {
        let (labels, zones) = match zone.and_then(|zone| self.in_zones.get_key_value(zone)) {
            Some((zone, labels)) => (labels, slice::from_ref(zone)),
            None => (&self.labels, self.zones.as_slice()),
        };
        Place { name: None, labels, taints: &self.taints, free: self.allocatable.clone(), zones }
    }

    fn labels_in(&self, zone: &str) -> BTreeMap<String, String> {
        let mut labels = self.labels.clone();
        labels.insert(ZONE_LABELS[0].into(), zone.into());
        labels
    }

    fn taint(&mut self, key: &str, value: &str) {
        let (value, effect) = value.rsplit_once(':').unwrap_or(("", value));
        let Some(effect) = TaintEffect::parse(effect) else { return };
        self.taints.retain(|taint| taint.key != key || taint.effect != effect);
        self.taints.push(Taint { key: key.into(), value: value.into(), effect });
    }
}

/// The least that any of several types offers; `None` for one type, and where one of them is not known.
fn least(types: &[String]) -> Option<Resources> {
    let [first, others @ ..] = types else { return None };
    let mut least = instance::allocatable(first).filter(|_| !others.is_empty())?;
    for other in others {
        least.lower_to(&instance::allocatable(other)?);
    }
    Some(least)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn policy() -> policy::Group {
        policy::Group {
            min: 0,
            max: 9,
            instance_type: "m5.xlarge".into(),
            labels: BTreeMap::from([("pool".into(), "a".into())]),
            taints: Vec::new(),
            allocatable: instance::allocatable("m5.xlarge").unwrap(),
            unneeded_for: Duration::from_secs(600),
            ..policy::Group::default()
        }
    }

    fn state(tags: &[(&str, &str)]) -> GroupState {
        let tags = tags.iter().map(|(key, value)| (format!("{TAGS}{key}"), (*value).to_owned()));
        GroupState { tags: tags.collect(), ..GroupState::default() }
    }

    #[test]
    fn tags_say_what_a_group_without_nodes_would_make() {
        let tags = [
            ("label/pool", "b"),
            ("label/nvidia.com/gpu.product", "T4"),
            ("taint/dedicated", "ml:NoSchedule"),
            ("taint/soft", "PreferNoSchedule"),
            ("taint/broken", "ml:Sometimes"),
            ("resources/ephemeral-storage", "100Gi"),
            ("resources/cpu", "nonsense"),
        ];
        let template = Template::described(&policy(), &state(&tags), None);
        assert_eq!(template.labels["pool"], "b");
        assert_eq!(template.labels["nvidia.com/gpu.product"], "T4");
        let taint = |key: &str, value: &str, effect| Taint { key: key.into(), value: value.into(), effect };
        let expected =
            [taint("dedicated", "ml", TaintEffect::NoSchedule), taint("soft", "", TaintEffect::PreferNoSchedule)];
        assert_eq!(template.taints, expected);
        assert_eq!(template.allocatable.amount("ephemeral-storage"), 100 << 30);
        assert_eq!(template.allocatable.amount("cpu"), 3920);
    }

    #[test]
    fn what_a_node_has_shown_outranks_what_tags_say() {
        let shown = Resources::from_texts([("cpu", "3"), ("pods", "20")]).unwrap();
        let template = Template::described(&policy(), &state(&[("resources/cpu", "64")]), Some(&shown));
        assert_eq!((template.allocatable, template.shown), (shown, true));
    }

    #[test]
    fn of_mixed_types_the_least_is_promised_and_of_zones_only_a_single_one() {
        let types = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let mixed = |names: &[&str]| GroupState {
            instance_types: types(names),
            zones: vec!["us-east-1a".into(), "us-east-1b".into()],
            ..GroupState::default()
        };
        let template = Template::described(&policy(), &mixed(&["m5.2xlarge", "r5.xlarge"]), None);
        assert_eq!(template.allocatable.amount("cpu"), 3920);
        let least = instance::allocatable("m5.2xlarge").unwrap().amount("memory");
        assert_eq!(
            template.allocatable.amount("memory"),
            least.min(instance::allocatable("r5.xlarge").unwrap().amount("memory"))
        );
        assert!(!template.labels.contains_key(ZONE_LABELS[0]));
        // One that is not known: the configuration holds.
        let template = Template::described(&policy(), &mixed(&["m5.2xlarge", "x99.giant"]), None);
        assert_eq!(template.allocatable, policy().allocatable);
        let single = GroupState { zones: vec!["us-east-1a".into()], ..GroupState::default() };
        assert_eq!(Template::described(&policy(), &single, None).labels[ZONE_LABELS[0]], "us-east-1a");
    }
}
