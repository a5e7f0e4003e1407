//! What the pods that are there mean for where others may go: kube-scheduler's filters InterPodAffinity and
//! PodTopologySpread, as sums that are kept, so that asking about a node takes a look-up for each rule.
//!
//! Of a node that is to come it may not be known in which zone it will be. Rules by a label that it lacks admit it, and
//! do not count it.

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
    domains: Vec<Domain>,
    by_value: HashMap<String, usize>,
    /// Of each node.
    seats: Vec<Seat>,
    /// In all domains.
    pods: u32,
    /// Of the domains that have nodes the rule is about: how many have so many pods.
    levels: BTreeMap<u32, usize>,
}

#[derive(Clone, Copy, Debug)]
struct Seat {
    /// `None`: the node lacks the label, or it is not known yet.
    domain: Option<usize>,
    /// Whether the rule is about the node.
    counts: bool,
}

/// One value of a rule's label.
#[derive(Clone, Copy, Debug, Default)]
struct Domain {
    /// That the rule is about.
    pods: u32,
    /// That have the rule as their own anti-affinity.
    bearers: u32,
    /// Whether it has a node that the rule is about.
    counts: bool,
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
    /// The next node.
    pub(super) fn add(&mut self, place: &Place<'_>) {
        self.counters.iter_mut().for_each(|counter| counter.add(place));
    }

    pub(super) fn put(&mut self, node: NodeId, demands: &Demands) {
        for &counter in &demands.counted_by {
            self.counters[counter].count(node, |pods| pods + 1);
        }
        self.bear(node, demands, |bearers| bearers + 1);
    }

    /// Undoes a [`Self::put`].
    pub(super) fn take(&mut self, node: NodeId, demands: &Demands) {
        for &counter in &demands.counted_by {
            self.counters[counter].count(node, |pods| pods - 1);
        }
        self.bear(node, demands, |bearers| bearers - 1);
    }

    fn bear(&mut self, node: NodeId, demands: &Demands, change: fn(u32) -> u32) {
        for &counter in &demands.anti_affinity {
            let counter = &mut self.counters[counter];
            if let Some(domain) = counter.seats[node].domain {
                counter.domains[domain].bearers = change(counter.domains[domain].bearers);
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
                let mut counter = Counter::new(rule.clone());
                let counted: Vec<bool> = shapes.iter().map(|shape| rule.counts(shape.pod)).collect();
                for (node, (place, pods)) in there.clone().enumerate() {
                    let more: u32 = pods.iter().filter(|(shape, _)| counted[**shape]).map(|(_, pods)| pods).sum();
                    counter.add(place);
                    counter.count(node, |pods| pods + more);
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

    /// `node`: one that was added, or the next one.
    pub(super) fn admits(&self, node: NodeId, place: &Place<'_>, demands: &Demands) -> Result<(), Misfit> {
        let domain = |index: usize| self.counters[index].domain(node, place);
        let key = |index: usize| self.counters[index].rule.key.clone();
        for even in &demands.spread {
            match domain(even.counter) {
                None if place.name.is_some() => return Err(Misfit::TopologyKey { key: key(even.counter) }),
                Some(domain) if !self.counters[even.counter].stays_even(even, domain) => {
                    return Err(Misfit::Spread { key: key(even.counter) });
                }
                _ => {}
            }
        }
        // The first of pods that must be near each other finds none to be near to.
        let is_first = demands.starts_itself && demands.affinity.iter().all(|&index| self.counters[index].pods == 0);
        let is_near = |&&index: &&usize| match domain(index) {
            None => place.name.is_none(),
            Some(domain) => domain.pods > 0 || is_first,
        };
        if let Some(&index) = demands.affinity.iter().find(|index| !is_near(index)) {
            return Err(Misfit::PodAffinity { key: key(index) });
        }
        let has = |index: usize, pods: fn(Domain) -> u32| domain(index).is_some_and(|domain| pods(domain) > 0);
        if let Some(&index) = demands.anti_affinity.iter().find(|&&index| has(index, |domain| domain.pods)) {
            return Err(Misfit::PodAntiAffinity { key: key(index) });
        }
        if let Some(&index) = demands.counted_by.iter().find(|&&index| has(index, |domain| domain.bearers)) {
            return Err(Misfit::PodsAntiAffinity { key: key(index) });
        }
        Ok(())
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
}

impl Eligible {
    fn has(&self, place: &Place<'_>) -> bool {
        let has_key = |key: &String| place.labels.contains_key(key) || names_itself(key, place);
        self.keys.iter().all(has_key)
            && place.is_selected_by(&self.node_selector, &self.node_affinity).is_ok()
            && self.tolerations.as_ref().is_none_or(|own| !place.taints.iter().any(|taint| repels(taint, own)))
    }
}

impl Counter {
    fn new(rule: Rule) -> Self {
        let (by_value, levels) = (HashMap::new(), BTreeMap::new());
        Self { rule, domains: Vec::new(), by_value, seats: Vec::new(), pods: 0, levels }
    }

    fn add(&mut self, place: &Place<'_>) {
        let Self { rule, domains, by_value, .. } = self;
        let another = || {
            domains.push(Domain::default());
            domains.len() - 1
        };
        let domain = match place.labels.get(&rule.key) {
            Some(value) => Some(*by_value.entry(value.clone()).or_insert_with(another)),
            None => names_itself(&rule.key, place).then(another),
        };
        let counts = domain.is_some() && rule.on.as_ref().is_none_or(|nodes| nodes.has(place));
        if let Some(domain) = domain.map(|domain| &mut self.domains[domain]).filter(|domain| counts && !domain.counts) {
            domain.counts = true;
            *self.levels.entry(domain.pods).or_default() += 1;
        }
        self.seats.push(Seat { domain, counts });
    }

    fn count(&mut self, node: NodeId, change: impl Fn(u32) -> u32) {
        let Seat { domain: Some(domain), counts: true } = self.seats[node] else { return };
        let pods = &mut self.domains[domain].pods;
        let before = *pods;
        *pods = change(before);
        self.pods = self.pods - before + *pods;
        *self.levels.entry(*pods).or_default() += 1;
        if let Some(domains) = self.levels.get_mut(&before) {
            *domains -= 1;
            if *domains == 0 {
                self.levels.remove(&before);
            }
        }
    }

    /// `None`: the node lacks the label, or it is not known yet. Of the next node: as if it were there.
    fn domain(&self, node: NodeId, place: &Place<'_>) -> Option<Domain> {
        match self.seats.get(node) {
            Some(seat) => seat.domain.map(|domain| self.domains[domain]),
            None => match place.labels.get(&self.rule.key) {
                Some(value) => Some(self.by_value.get(value).map_or(Domain::default(), |&domain| self.domains[domain])),
                None => names_itself(&self.rule.key, place).then(Domain::default),
            },
        }
    }

    /// With one more in that domain.
    fn stays_even(&self, even: &Even, domain: Domain) -> bool {
        let fewest = self.levels.first_key_value().map_or(0, |(pods, _)| *pods);
        let domains = self.levels.values().sum::<usize>();
        let fewest = if domains < even.min_domains as usize { 0 } else { fewest };
        domain.pods + u32::from(even.counts_itself) <= fewest.saturating_add(even.max_skew)
    }
}

/// Whether it is to get a value of its own for this label, which it does not show yet.
fn names_itself(key: &str, place: &Place<'_>) -> bool {
    key == HOSTNAME && place.name.is_none()
}
