//! PodDisruptionBudgets: whether a node's pods may be evicted now.

use std::collections::BTreeMap;

use k8s_openapi::api::policy::v1 as api;
use serde::{Deserialize, Serialize};

use crate::kubernetes::{Pod, Requirement, label_selector};

/// A PodDisruptionBudget, with the numbers that its controller last counted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodDisruptionBudget {
    pub namespace: String,
    pub name: String,
    /// `None`: it is about no pod.
    pub selector: Option<Vec<Requirement>>,
    /// How many pods may be evicted now.
    pub allowed: u32,
    pub healthy: u32,
    /// How many must stay healthy.
    pub desired: u32,
}

/// What became of one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Change {
    Applied(PodDisruptionBudget),
    Deleted { namespace: String, name: String },
}

impl From<&api::PodDisruptionBudget> for PodDisruptionBudget {
    fn from(budget: &api::PodDisruptionBudget) -> Self {
        let selector = budget.spec.as_ref().and_then(|spec| spec.selector.as_ref());
        // One whose controller has not counted yet allows nothing: so the API server reads it.
        let number = |number: Option<i32>| number.and_then(|number| u32::try_from(number).ok()).unwrap_or(0);
        let status = budget.status.as_ref();
        let allowed = status.filter(|status| status.observed_generation >= budget.metadata.generation);
        Self {
            namespace: budget.metadata.namespace.clone().unwrap_or_default(),
            name: budget.metadata.name.clone().unwrap_or_default(),
            selector: selector.map(label_selector),
            allowed: number(allowed.and_then(|status| status.disruptions_allowed)),
            healthy: number(status.and_then(|status| status.current_healthy)),
            desired: number(status.and_then(|status| status.desired_healthy)),
        }
    }
}

impl PodDisruptionBudget {
    fn is_about(&self, pod: &Pod) -> bool {
        self.selector.as_ref().is_some_and(|selector| selector.iter().all(|it| it.holds(&pod.labels)))
    }
}

/// All of them, by namespace and name.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PodDisruptionBudgets(BTreeMap<String, BTreeMap<String, PodDisruptionBudget>>);

impl PodDisruptionBudgets {
    /// Whether other pods may be evicted than before.
    pub fn apply(&mut self, change: Change) -> bool {
        match change {
            Change::Applied(budget) => {
                let (selector, allowed) = (budget.selector.clone(), budget.allowed);
                let budgets = self.0.entry(budget.namespace.clone()).or_default();
                let before = budgets.insert(budget.name.clone(), budget);
                before.is_none_or(|before| (before.selector, before.allowed) != (selector, allowed))
            }
            Change::Deleted { namespace, name } => {
                let Some(budgets) = self.0.get_mut(&namespace) else { return false };
                let known = budgets.remove(&name).is_some();
                if budgets.is_empty() {
                    self.0.remove(&namespace);
                }
                known
            }
        }
    }

    /// How many of these pods each is about, where that is any: what they take of it if they all go.
    pub fn needed_by<'a>(&'a self, pods: impl Iterator<Item = &'a Pod>) -> Vec<(&'a PodDisruptionBudget, u32)> {
        let mut needed = BTreeMap::<_, (&PodDisruptionBudget, u32)>::new();
        for budget in pods.flat_map(|pod| self.over(pod)) {
            needed.entry((&budget.namespace, &budget.name)).or_insert((budget, 0)).1 += 1;
        }
        needed.into_values().collect()
    }

    /// Those that a pod is under.
    fn over<'a>(&'a self, pod: &'a Pod) -> impl Iterator<Item = &'a PodDisruptionBudget> {
        let budgets = self.0.get(&pod.namespace).into_iter().flat_map(BTreeMap::values);
        budgets.filter(|budget| budget.is_about(pod))
    }
}

/// What keeps a pod from being evicted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Blocked<'a> {
    /// Nothing of it is left: it allows no eviction, or other nodes' pods take what it allows.
    Spent(&'a PodDisruptionBudget),
    /// The API server evicts no pod that is under several.
    Several(Vec<&'a PodDisruptionBudget>),
}

/// What is left of the budgets in one look, so that no two nodes are drained on the same.
pub struct Allowance<'a> {
    budgets: &'a PodDisruptionBudgets,
    /// By namespace and name.
    spent: BTreeMap<(&'a str, &'a str), u32>,
}

impl<'a> Allowance<'a> {
    pub fn new(budgets: &'a PodDisruptionBudgets) -> Self {
        Self { budgets, spent: BTreeMap::new() }
    }

    /// Whether the eviction of these pods can begin: the rest of one budget's pods go when the first are well elsewhere.
    /// Names which of the pods cannot go.
    pub fn covers(&self, pods: impl Iterator<Item = &'a Pod>) -> Result<(), (usize, Blocked<'a>)> {
        for (index, pod) in pods.enumerate() {
            let budgets: Vec<_> = self.budgets.over(pod).collect();
            match budgets[..] {
                [] => {}
                [budget] if self.spent(budget) < budget.allowed => {}
                [budget] => return Err((index, Blocked::Spent(budget))),
                _ => return Err((index, Blocked::Several(budgets))),
            }
        }
        Ok(())
    }

    /// These pods are evicted.
    pub fn spend(&mut self, pods: impl Iterator<Item = &'a Pod>) {
        for budget in pods.flat_map(|pod| self.budgets.over(pod)) {
            *self.spent.entry((&budget.namespace, &budget.name)).or_default() += 1;
        }
    }

    fn spent(&self, budget: &PodDisruptionBudget) -> u32 {
        self.spent.get(&(budget.namespace.as_str(), budget.name.as_str())).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: serde_json::Value) -> PodDisruptionBudget {
        PodDisruptionBudget::from(&serde_json::from_value::<api::PodDisruptionBudget>(json).unwrap())
    }

    #[test]
    fn a_budget_is_read_with_the_numbers_of_its_last_generation() {
        let budget = |observed: i64| {
            read(serde_json::json!({
                "metadata": {"name": "web", "namespace": "ns", "generation": 2},
                "spec": {"selector": {"matchLabels": {"app": "web"}}},
                "status": {"observedGeneration": observed, "disruptionsAllowed": 1, "currentHealthy": 3,
                    "desiredHealthy": 2, "expectedPods": 3},
            }))
        };
        let PodDisruptionBudget { allowed, healthy, desired, .. } = budget(2);
        assert_eq!((allowed, healthy, desired, budget(1).allowed), (1, 3, 2, 0));
        let pod = |app: &str| Pod { labels: [("app".into(), app.into())].into(), ..Pod::default() };
        assert!(budget(2).is_about(&pod("web")) && !budget(2).is_about(&pod("other")));
        let over = |spec: serde_json::Value| read(serde_json::json!({"metadata": {"name": "x"}, "spec": spec}));
        assert!(over(serde_json::json!({"selector": {}})).is_about(&pod("any")));
        assert!(!over(serde_json::json!({})).is_about(&pod("any")));
        assert_eq!(over(serde_json::json!({})).allowed, 0);
    }
}
