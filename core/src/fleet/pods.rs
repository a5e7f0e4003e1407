//! The pods, each on its node. What pods have in common is kept once: 150 000 pods come from some hundred templates, and
//! beyond their names there is little to each.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::mem;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::kubernetes::{Need, Pod};
use crate::time::Instant;

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(from = "BTreeMap<String, Pod>", into = "BTreeMap<String, Pod>")]
pub(super) struct Pods {
    /// By node, known or not, and by UID.
    bound: BTreeMap<Arc<str>, BTreeMap<Arc<str>, Entry>>,
    /// By UID.
    unbound: BTreeMap<Arc<str>, Entry>,
    /// The node of each that has one, by UID.
    nodes: HashMap<Arc<str>, Arc<str>>,
    /// What pods are like, and how many are.
    likes: HashMap<Arc<Pod>, usize>,
}

/// One pod.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) uid: Arc<str>,
    pub(super) name: Box<str>,
    pub(super) ip: Option<Box<str>>,
    unschedulable_since: Option<Instant>,
    unseen_since: Option<Instant>,
    /// All the rest: one pod for all that differ in nothing but the above and their node. Those are left empty in it.
    pub(super) like: Arc<Pod>,
}

impl Entry {
    /// Whether the scheduler has looked for a node and found none.
    pub(super) fn refused(&self) -> bool {
        self.unschedulable_since.is_some()
    }

    pub(super) fn full_name(&self) -> String {
        format!("{}/{}", self.like.namespace, self.name)
    }

    /// Taken apart, with its node.
    fn new(mut pod: Pod) -> (Self, Option<String>) {
        let (uid, name, node) = (mem::take(&mut pod.uid), mem::take(&mut pod.name), pod.node.take());
        let ip = pod.ip.take().map(Into::into);
        let (unschedulable_since, unseen_since) = (pod.unschedulable_since.take(), pod.unseen_since.take());
        let like = Arc::new(pod);
        (Self { uid: uid.into(), name: name.into(), ip, unschedulable_since, unseen_since, like }, node)
    }

    /// Since when it has waited for a node, if it does.
    pub(super) fn waits_since(&self) -> Option<Instant> {
        self.unschedulable_since.or(self.unseen_since)
    }

    fn is(&self, other: &Self) -> bool {
        let alike = Arc::ptr_eq(&self.like, &other.like) || self.like == other.like;
        let since = |entry: &Self| (entry.unschedulable_since, entry.unseen_since);
        alike && (&self.name, &self.ip, since(self)) == (&other.name, &other.ip, since(other))
    }

    /// Put together again.
    fn pod(&self, node: Option<&str>) -> Pod {
        Pod {
            uid: self.uid.as_ref().to_owned(),
            name: self.name.as_ref().to_owned(),
            node: node.map(ToOwned::to_owned),
            ip: self.ip.as_deref().map(ToOwned::to_owned),
            unschedulable_since: self.unschedulable_since,
            unseen_since: self.unseen_since,
            ..self.like.as_ref().clone()
        }
    }
}

impl Pods {
    pub(super) fn get(&self, uid: &str) -> Option<&Entry> {
        match self.nodes.get(uid) {
            Some(node) => self.bound.get(node)?.get(uid),
            None => self.unbound.get(uid),
        }
    }

    pub(super) fn is_bound(&self, uid: &str) -> bool {
        self.nodes.contains_key(uid)
    }

    /// In the order of their UIDs.
    pub(super) fn on(&self, node: &str) -> impl Iterator<Item = &Entry> + Clone {
        self.bound.get(node).into_iter().flat_map(BTreeMap::values)
    }

    /// Those that are like this.
    pub(super) fn that(&self, is: impl Fn(&Pod) -> bool) -> impl Iterator<Item = &Entry> {
        // There are few kinds of pods, and nearly always none of them is meant.
        let likes: HashSet<*const Pod> = self.likes.keys().filter(|like| is(like)).map(Arc::as_ptr).collect();
        let all = self.bound.values().chain([&self.unbound]).take(if likes.is_empty() { 0 } else { usize::MAX });
        all.flat_map(BTreeMap::values).filter(move |entry| likes.contains(&Arc::as_ptr(&entry.like)))
    }

    /// Those that wait for a node, and since when, in the order of their UIDs.
    pub(super) fn waiting(&self) -> impl Iterator<Item = (&Entry, Instant)> {
        self.unbound.values().filter_map(|entry| {
            let since = entry.waits_since()?;
            (!entry.like.finished && !entry.like.terminating).then_some((entry, since))
        })
    }

    /// Whether anything about the pod is new.
    pub(super) fn apply(&mut self, pod: Pod) -> bool {
        let (mut entry, node) = Entry::new(pod);
        let known = self.get(&entry.uid);
        if known.is_some_and(|known| known.is(&entry))
            && self.nodes.get(&entry.uid).map(AsRef::as_ref) == node.as_deref()
        {
            return false;
        }
        if let Some((before, _)) = self.remove(&entry.uid.clone()) {
            entry.uid = before.uid;
        }
        entry.like = self.share(entry.like);
        let place = match node {
            None => &mut self.unbound,
            Some(node) => {
                let known = self.bound.get_key_value(node.as_str()).map(|(known, _)| known.clone());
                let node = known.unwrap_or_else(|| node.into());
                self.nodes.insert(entry.uid.clone(), node.clone());
                self.bound.entry(node).or_default()
            }
        };
        place.insert(entry.uid.clone(), entry);
        true
    }

    /// With its node.
    pub(super) fn remove(&mut self, uid: &str) -> Option<(Entry, Option<Arc<str>>)> {
        let node = self.nodes.remove(uid);
        let entry = match &node {
            None => self.unbound.remove(uid)?,
            Some(node) => {
                let pods = self.bound.get_mut(node)?;
                let entry = pods.remove(uid)?;
                if pods.is_empty() {
                    self.bound.remove(node);
                }
                entry
            }
        };
        if let Some(count) = self.likes.get_mut(&entry.like) {
            *count -= 1;
            if *count == 0 {
                self.likes.remove(&entry.like);
            }
        }
        Some((entry, node))
    }

    /// Whether these are other needs than the pod had.
    pub(super) fn set_needs(&mut self, uid: &str, needs: Vec<Need>) -> bool {
        let Some(entry) = self.get(uid).filter(|entry| entry.like.needs != needs) else { return false };
        let node = self.nodes.get(uid).map(AsRef::as_ref);
        self.apply(Pod { needs, ..entry.pod(node) })
    }

    fn share(&mut self, like: Arc<Pod>) -> Arc<Pod> {
        let like = self.likes.get_key_value(&like).map_or(like, |(known, _)| known.clone());
        *self.likes.entry(like.clone()).or_default() += 1;
        like
    }
}

impl From<BTreeMap<String, Pod>> for Pods {
    fn from(all: BTreeMap<String, Pod>) -> Self {
        let mut pods = Self::default();
        for pod in all.into_values() {
            pods.apply(pod);
        }
        pods
    }
}

impl From<Pods> for BTreeMap<String, Pod> {
    fn from(pods: Pods) -> Self {
        let bound = pods.bound.iter().flat_map(|(node, pods)| pods.values().map(|entry| entry.pod(Some(node))));
        let unbound = pods.unbound.values().map(|entry| entry.pod(None));
        bound.chain(unbound).map(|pod| (pod.uid.clone(), pod)).collect()
    }
}

#[cfg(test)]
pub(super) fn entries(pods: &[Pod]) -> Vec<Entry> {
    pods.iter().map(|pod| Entry::new(pod.clone()).0).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pod() -> impl Strategy<Value = Pod> {
        let node = prop_oneof![Just(None), (0..3_u8).prop_map(|node| Some(format!("node-{node}")))];
        let since = || prop_oneof![Just(None), (0..3_u64).prop_map(|at| Some(Instant::from_millis(at)))];
        (0..6_u8, node, any::<bool>(), 0..2_i32, since(), since()).prop_map(
            |(uid, node, terminating, priority, unschedulable_since, unseen_since)| Pod {
                uid: format!("uid-{uid}"),
                name: format!("pod-{uid}"),
                ip: terminating.then(|| format!("10.0.0.{uid}")),
                node,
                terminating,
                priority,
                unschedulable_since,
                unseen_since,
                ..Pod::default()
            },
        )
    }

    #[derive(Clone, Debug)]
    enum Step {
        Apply(Box<Pod>),
        Needs(u8, bool),
        Remove(u8),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => pod().prop_map(|pod| Step::Apply(Box::new(pod))),
            1 => (0..6_u8, any::<bool>()).prop_map(|(uid, unbound)| Step::Needs(uid, unbound)),
            2 => (0..6_u8).prop_map(Step::Remove),
        ]
    }

    proptest! {
        #[test]
        fn pods_are_what_a_plain_map_of_them_would_be(steps in prop::collection::vec(step(), 0..40)) {
            let mut model: BTreeMap<String, Pod> = BTreeMap::new();
            let mut pods = Pods::default();
            for step in steps {
                match step {
                    Step::Apply(pod) => {
                        let before = model.insert(pod.uid.clone(), *pod.clone());
                        prop_assert_eq!(pods.apply(*pod.clone()), before != Some(*pod));
                    }
                    Step::Needs(uid, unbound) => {
                        let uid = format!("uid-{uid}");
                        let needs = if unbound { vec![Need::Unbound { claim: "data".into() }] } else { vec![] };
                        let before = model.get(&uid).map(|pod| pod.needs.clone());
                        model.entry(uid.clone()).and_modify(|pod| pod.needs.clone_from(&needs));
                        prop_assert_eq!(pods.set_needs(&uid, needs.clone()), before.is_some_and(|it| it != needs));
                    }
                    Step::Remove(uid) => {
                        let uid = format!("uid-{uid}");
                        let removed = pods.remove(&uid).map(|(entry, node)| entry.pod(node.as_deref()));
                        prop_assert_eq!(removed, model.remove(&uid));
                    }
                }
                let waiting: Vec<_> = pods.waiting().map(|(entry, since)| (entry.uid.to_string(), since)).collect();
                let expected: Vec<_> =
                    model.values().filter_map(|pod| Some((pod.uid.clone(), pod.waits_since()?))).collect();
                prop_assert_eq!(waiting, expected);
                for node in ["node-0", "node-1", "node-2"] {
                    let on: Vec<_> = pods.on(node).map(|entry| entry.pod(Some(node))).collect();
                    let expected = model.values().filter(|pod| pod.node.as_deref() == Some(node));
                    prop_assert_eq!(on, expected.cloned().collect::<Vec<_>>());
                }
                // Nothing is kept that no pod is like.
                prop_assert_eq!(pods.likes.values().sum::<usize>(), model.len());
            }
            prop_assert_eq!(BTreeMap::from(pods), model);
        }
    }
}
