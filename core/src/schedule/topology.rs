//! What the pods that are there mean for where others may go: kube-scheduler's filters InterPodAffinity and
//! PodTopologySpread, as sums that are kept, so that asking about a node takes a look-up for each rule.
//!
//! Of a node that is to come it may not be known in which zone it will be. Rules by a label that it lacks admit it, and
//! do not count it.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

use super::cluster::Shape;
use super::{Misfit, NodeId, Place, ShapeId, repels};
use crate::kubernetes::{Pod, PodTerm, SelectorTerm, Spread, Toleration};

/// Every node has its own: one that is to come, too.
const HOSTNAME: &str = "kubernetes.io/hostname";

#[derive(Debug, Default)]
pub(super) struct Topology {
    counters: Vec<Counter>,
    by_rule: HashMap<Rule, usize>,
}

/// What counts pods by the value that their nodes have for a label.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Rule {
    key: String,
    /// The pods that are counted: those that all of these are about.
    about: Vec<PodTerm>,
    /// `None`: on every node that has the label.
    on: Option<Eligible>,
}

/// The nodes that a spread constraint is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Eligible {
    /// Of all constraints of the pod.
    keys: Vec<String>,
    /// Of the pod, unless the constraint ignores them.
    node_selector: BTreeMap<String, String>,
    node_affinity: Vec<SelectorTerm>,
    /// `None`: it ignores taints.
    tolerations: Option<Vec<Toleration>>,
}

#[derive(Debug)]
struct Counter {
    rule: Rule,
    domains: HashMap<String, Domain>,
    /// In all domains.
    pods: u32,
    /// How many domains have so many pods.
    levels: BTreeMap<u32, u32>,
}

/// One value of a rule's label.
#[derive(Debug, Default)]
struct Domain {
    /// That the rule is about.
    pods: u32,
    /// That have the rule as their own anti-affinity.
    bearers: u32,
}

/// What a shape of pods means to counters, and they to it.
#[derive(Debug, Default)]
pub(super) struct Demands {
    counted_by: Vec<usize>,
    affinity: Vec<usize>,
    anti_affinity: Vec<usize>,
    spread: Vec<Even>,
    /// Its own affinity is for pods like itself.
    starts_itself: bool,
}

/// A spread constraint.
#[derive(Debug)]
struct Even {
    counter: usize,
    max_skew: u32,
    min_domains: u32,
    counts_itself: bool,
}

impl Demands {
    pub(super) fn only_shrink(&self) -> bool {
        self.affinity.is_empty() && self.spread.is_empty()
    }
}

impl Topology {
    pub(super) fn add(&mut self, id: NodeId, place: &Place<'_>) {
        self.counters.iter_mut().for_each(|counter| counter.count(id, place, 0));
    }

    pub(super) fn put(&mut self, id: NodeId, place: &Place<'_>, demands: &Demands) {
        for &counter in &demands.counted_by {
            self.counters[counter].count(id, place, 1);
        }
        for &counter in &demands.anti_affinity {
            if let Some(domain) = self.counters[counter].domain_mut(id, place) {
                domain.bearers += 1;
            }
        }
    }

    /// Of a pod whose shape is new. Counts for it, where nobody has yet, all that is `there`: nodes with so many pods of
    /// each shape.
    pub(super) fn demands<'n>(
        &mut self,
        pod: &Pod,
        shapes: &mut [Shape<'_>],
        there: impl Iterator<Item = (&'n Place<'n>, &'n BTreeMap<ShapeId, u32>)> + Clone,
    ) -> Demands {
        let mut counter = |rule: Rule| {
            *self.by_rule.entry(rule).or_insert_with_key(|rule| {
                let index = self.counters.len();
                let mut counter =
                    Counter { rule: rule.clone(), domains: HashMap::new(), pods: 0, levels: BTreeMap::new() };
                let counted: Vec<bool> = shapes.iter().map(|shape| rule.counts(shape.pod)).collect();
                for (id, (place, pods)) in there.clone().enumerate() {
                    let pods = pods.iter().filter(|(shape, _)| counted[**shape]).map(|(_, pods)| pods).sum();
                    counter.count(id, place, pods);
                }
                for (shape, _) in shapes.iter_mut().zip(counted).filter(|(_, counted)| *counted) {
                    shape.demands.counted_by.push(index);
                }
                self.counters.push(counter);
                index
            })
        };
        let near = |term: &PodTerm| Rule { key: term.topology_key.clone(), about: pod.pod_affinity.clone(), on: None };
        let far = |term: &PodTerm| Rule { key: term.topology_key.clone(), about: vec![term.clone()], on: None };
        let affinity = pod.pod_affinity.iter().map(near).map(&mut counter).collect();
        let anti_affinity = pod.pod_anti_affinity.iter().map(far).map(&mut counter).collect();
        let even = |spread: &Spread| {
            let rule = Rule::of_spread(spread, pod);
            let counts_itself = rule.is_about(pod);
            Even { counter: counter(rule), max_skew: spread.max_skew, min_domains: spread.min_domains, counts_itself }
        };
        let spread = pod.spread.iter().map(even).collect();
        let counted_by = (0..self.counters.len()).filter(|&index| self.counters[index].rule.counts(pod)).collect();
        let starts_itself = pod.pod_affinity.iter().all(|term| term.is_about(pod));
        Demands { counted_by, affinity, anti_affinity, spread, starts_itself }
    }

    pub(super) fn admits(&self, id: NodeId, place: &Place<'_>, demands: &Demands) -> Result<(), Misfit> {
        for even in &demands.spread {
            let counter = &self.counters[even.counter];
            let key = || counter.rule.key.clone();
            match counter.rule.value(id, place) {
                None if place.name.is_some() => return Err(Misfit::TopologyKey { key: key() }),
                Some(value) if !counter.stays_even(even, &value) => return Err(Misfit::Spread { key: key() }),
                _ => {}
            }
        }
        let pods = |counter: &Counter, of: fn(&Domain) -> u32| {
            let value = counter.rule.value(id, place)?;
            Some(counter.domains.get(&*value).map_or(0, of))
        };
        // The first of pods that must be near each other finds none to be near to.
        let is_first = demands.starts_itself && demands.affinity.iter().all(|&index| self.counters[index].pods == 0);
        for &index in &demands.affinity {
            let counter = &self.counters[index];
            let is_near = match pods(counter, |domain| domain.pods) {
                None => place.name.is_none(),
                Some(pods) => pods > 0 || is_first,
            };
            if !is_near {
                return Err(Misfit::PodAffinity { key: counter.rule.key.clone() });
            }
        }
        let meets = |indices: &[usize], of: fn(&Domain) -> u32| {
            let found = indices.iter().find(|&&index| pods(&self.counters[index], of).is_some_and(|pods| pods > 0));
            found.map(|&index| self.counters[index].rule.key.clone())
        };
        if let Some(key) = meets(&demands.anti_affinity, |domain| domain.pods) {
            return Err(Misfit::PodAntiAffinity { key });
        }
        match meets(&demands.counted_by, |domain| domain.bearers) {
            Some(key) => Err(Misfit::PodsAntiAffinity { key }),
            None => Ok(()),
        }
    }
}

impl Rule {
    fn of_spread(spread: &Spread, pod: &Pod) -> Self {
        let (node_selector, node_affinity) = if spread.honors_affinity {
            (pod.node_selector.clone(), pod.node_affinity.clone())
        } else {
            Default::default()
        };
        let term = PodTerm {
            namespaces: Some(vec![pod.namespace.clone()]),
            selector: spread.selector.clone(),
            topology_key: spread.topology_key.clone(),
        };
        Self {
            key: spread.topology_key.clone(),
            about: vec![term],
            on: Some(Eligible {
                keys: pod.spread.iter().map(|spread| spread.topology_key.clone()).collect(),
                node_selector,
                node_affinity,
                tolerations: spread.honors_taints.then(|| pod.tolerations.clone()),
            }),
        }
    }

    fn is_about(&self, pod: &Pod) -> bool {
        self.about.iter().all(|term| term.is_about(pod))
    }

    /// Spread leaves out pods that are about to go, and with a selector without requirements it counts no pod but the one
    /// that is to be placed (`countPodsMatchSelector` in kube-scheduler 1.36).
    fn counts(&self, pod: &Pod) -> bool {
        let selects_all = || self.about.iter().all(|term| term.selector.as_ref().is_some_and(Vec::is_empty));
        self.is_about(pod) && !(self.on.is_some() && (pod.terminating || selects_all()))
    }

    /// `None`: the node lacks the label, or it is not known yet.
    fn value<'p>(&self, id: NodeId, place: &Place<'p>) -> Option<Cow<'p, str>> {
        value(&self.key, id, place)
    }
}

impl Eligible {
    fn has(&self, id: NodeId, place: &Place<'_>) -> bool {
        self.keys.iter().all(|key| value(key, id, place).is_some())
            && place.is_selected_by(&self.node_selector, &self.node_affinity).is_ok()
            && self.tolerations.as_ref().is_none_or(|own| !place.taints.iter().any(|taint| repels(taint, own)))
    }
}

impl Counter {
    /// `None`: the rule is not about this node.
    fn domain_mut(&mut self, id: NodeId, place: &Place<'_>) -> Option<&mut Domain> {
        let value = self.rule.value(id, place)?;
        if !self.rule.on.as_ref().is_none_or(|nodes| nodes.has(id, place)) {
            return None;
        }
        if !self.domains.contains_key(&*value) {
            *self.levels.entry(0).or_default() += 1;
        }
        Some(self.domains.entry(value.into_owned()).or_default())
    }

    fn count(&mut self, id: NodeId, place: &Place<'_>, more: u32) {
        let Some(domain) = self.domain_mut(id, place) else { return };
        let before = domain.pods;
        domain.pods += more;
        self.pods += more;
        *self.levels.entry(before + more).or_default() += 1;
        if let Some(domains) = self.levels.get_mut(&before) {
            *domains -= 1;
            if *domains == 0 {
                self.levels.remove(&before);
            }
        }
    }

    /// With one more in that domain.
    fn stays_even(&self, even: &Even, value: &str) -> bool {
        let fewest = self.levels.first_key_value().map_or(0, |(pods, _)| *pods);
        let fewest = if self.domains.len() < even.min_domains as usize { 0 } else { fewest };
        let pods = self.domains.get(value).map_or(0, |domain| domain.pods) + u32::from(even.counts_itself);
        pods <= fewest.saturating_add(even.max_skew)
    }
}

fn value<'p>(key: &str, id: NodeId, place: &Place<'p>) -> Option<Cow<'p, str>> {
    match place.labels.get(key) {
        Some(value) => Some(Cow::Borrowed(value)),
        None if key == HOSTNAME && place.name.is_none() => Some(Cow::Owned(format!("to come: {id}"))),
        None => None,
    }
}
