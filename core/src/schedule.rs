//! Whether a pod fits a node, as kube-scheduler's filters would say.
//!
//! Modelled: resources, host ports, taints and tolerations, unschedulable nodes, node selector and required node affinity,
//! required inter-pod affinity and anti-affinity, topology spread, where volumes are. [`Place`] knows one node, [`Cluster`] also what pods
//! mean for each other.
//! Not modelled yet: how many volumes a node can have attached, and namespaces selected by their labels. A pod that needs those counts as fitting here, so
//! it can be promised a node that the scheduler then refuses; it is never promised a second one, because it "fits" the
//! first.

mod cluster;
mod topology;

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::kubernetes::{Need, Pod, SelectorTerm, Taint, TaintEffect, Toleration};
use crate::resources::Resources;
use crate::storage::ZONE_LABELS;

pub use cluster::{Cluster, NodeId, ShapeId};

/// A node, real or to come, as a place for pods.
#[derive(Clone, Debug)]
pub struct Place<'a> {
    /// `None`: a node that does not exist yet.
    pub name: Option<&'a str>,
    pub labels: &'a BTreeMap<String, String>,
    pub taints: &'a [Taint],
    pub free: Resources,
    /// Of one that does not exist yet: the zones in which it may come up; empty: not known.
    pub zones: &'a [String],
}

impl Place<'_> {
    /// Why the pod cannot run here, other pods left aside; `Ok` if it can.
    pub fn admits(&self, pod: &Pod) -> Result<(), Misfit> {
        has_its_claims(pod)?;
        self.is_meant_for(pod)?;
        self.has_room_for(pod)?;
        self.has_volumes_of(pod)
    }

    /// As [`Self::admits`], but for what may be taken.
    pub(crate) fn is_meant_for(&self, pod: &Pod) -> Result<(), Misfit> {
        if let Some(taint) = self.taints.iter().find(|taint| repels(taint, &pod.tolerations)) {
            return Err(Misfit::Taint { key: taint.key.clone() });
        }
        self.is_selected_by(&pod.node_selector, &pod.node_affinity)
    }

    fn is_selected_by(&self, selector: &BTreeMap<String, String>, affinity: &[SelectorTerm]) -> Result<(), Misfit> {
        if let Some((key, _)) = selector.iter().find(|(key, value)| self.labels.get(*key) != Some(value)) {
            return Err(Misfit::NodeSelector { key: key.clone() });
        }
        if !affinity.is_empty() && !affinity.iter().any(|term| self.matches(term)) {
            return Err(Misfit::NodeAffinity);
        }
        Ok(())
    }

    fn has_room_for(&self, pod: &Pod) -> Result<(), Misfit> {
        match pod.requests.lacking_in(&self.free) {
            Some(resource) => Err(Misfit::Resource { name: resource.to_owned() }),
            None => Ok(()),
        }
    }

    /// Whether the pod's volumes can be where it would be.
    fn has_volumes_of(&self, pod: &Pod) -> Result<(), Misfit> {
        let elsewhere = |need: &Need| match need {
            Need::Nodes { claim, terms } => {
                (!terms.iter().any(|term| self.may_match(term))).then(|| Misfit::Volume { claim: claim.clone() })
            }
            Need::Unbound { .. } => None,
        };
        pod.needs.iter().find_map(elsewhere).map_or(Ok(()), Err)
    }

    /// As [`Self::matches`], in one of the zones where a node that does not exist yet may come up.
    fn may_match(&self, term: &SelectorTerm) -> bool {
        if self.name.is_some() {
            return self.matches(term);
        }
        let (zones, others): (Vec<_>, Vec<_>) =
            term.labels.iter().cloned().partition(|it| ZONE_LABELS.contains(&it.key.as_str()));
        let fits = |zone: &String| zones.iter().all(|requirement| requirement.meets(Some(zone)));
        let anywhere = self.zones.is_empty() || self.zones.iter().any(fits);
        let others = SelectorTerm { labels: others, names: term.names.clone() };
        anywhere && ((others.labels.is_empty() && others.names.is_empty()) || self.matches(&others))
    }

    fn matches(&self, term: &SelectorTerm) -> bool {
        // A term without requirements matches nothing (API reference, NodeSelectorTerm).
        !(term.labels.is_empty() && term.names.is_empty())
            && term.labels.iter().all(|requirement| requirement.holds(self.labels))
            && term.names.iter().all(|requirement| requirement.meets(self.name))
    }
}

/// Before any node is looked at.
fn has_its_claims(pod: &Pod) -> Result<(), Misfit> {
    let unbound = pod.needs.iter().find_map(|need| match need {
        Need::Unbound { claim } => Some(Misfit::Claim { claim: claim.clone() }),
        Need::Nodes { .. } => None,
    });
    unbound.map_or(Ok(()), Err)
}

/// Why a pod does not fit a place.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Misfit {
    /// One of its claims is not bound, and no node would change that.
    Claim {
        claim: String,
    },
    HostPort {
        port: i32,
    },
    NodeAffinity,
    NodeSelector {
        key: String,
    },
    /// Pods that it must be near to are not there.
    PodAffinity {
        key: String,
    },
    /// Pods that it must be far from are there.
    PodAntiAffinity {
        key: String,
    },
    /// Pods that must be far from it are there.
    PodsAntiAffinity {
        key: String,
    },
    Resource {
        name: String,
    },
    Spread {
        key: String,
    },
    Taint {
        key: String,
    },
    /// The volume of a claim is elsewhere.
    Volume {
        claim: String,
    },
    /// The node lacks the label of a spread constraint.
    TopologyKey {
        key: String,
    },
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Claim { claim } => write!(f, "its claim {claim} is not bound, which no node would change"),
            Self::Volume { claim } => write!(f, "is not where the volume of its claim {claim} is"),
            Self::NodeAffinity => f.write_str("does not match the pod's node affinity"),
            Self::NodeSelector { key } => write!(f, "does not match the pod's node selector {key}"),
            Self::HostPort { port } => write!(f, "its port {port} is taken"),
            Self::PodAffinity { key } => write!(f, "has no pods by {key} that the pod must be near to"),
            Self::PodAntiAffinity { key } => write!(f, "has pods by {key} that the pod must be far from"),
            Self::PodsAntiAffinity { key } => write!(f, "has pods by {key} that must be far from the pod"),
            Self::Spread { key } => write!(f, "would be uneven by {key}"),
            Self::TopologyKey { key } => write!(f, "lacks the label {key} to spread by"),
            Self::Resource { name } => write!(f, "too little {name}"),
            Self::Taint { key } => write!(f, "has the taint {key} that the pod does not tolerate"),
        }
    }
}

fn repels(taint: &Taint, tolerations: &[Toleration]) -> bool {
    taint.effect != TaintEffect::PreferNoSchedule && !tolerations.iter().any(|toleration| tolerates(toleration, taint))
}

/// Whether the toleration is for this taint.
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    toleration.effect.is_none_or(|effect| effect == taint.effect)
        && toleration.key.as_ref().is_none_or(|key| *key == taint.key)
        && toleration.value.as_ref().is_none_or(|value| *value == taint.value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubernetes::{Operator, Requirement};

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn taint(key: &str, value: &str, effect: TaintEffect) -> Taint {
        Taint { key: key.into(), value: value.into(), effect }
    }

    fn check(pod: &Pod, node_labels: &[(&str, &str)], taints: &[Taint], expected: Result<(), Misfit>) {
        let labels = labels(node_labels);
        let free = Resources::from_texts([("cpu", "2"), ("pods", "10")]).unwrap();
        assert_eq!(Place { name: Some("n"), labels: &labels, taints, free, zones: &[] }.admits(pod), expected);
    }

    #[test]
    fn a_taint_repels_what_does_not_tolerate_it() {
        let gpu = taint("nvidia.com/gpu", "true", TaintEffect::NoSchedule);
        let refused = Err(Misfit::Taint { key: "nvidia.com/gpu".into() });
        let tolerating = |key: Option<&str>, value: Option<&str>, effect| Pod {
            tolerations: vec![Toleration { key: key.map(Into::into), value: value.map(Into::into), effect }],
            ..Pod::default()
        };
        let taints = std::slice::from_ref(&gpu);
        check(&Pod::default(), &[], taints, refused.clone());
        check(&tolerating(Some("nvidia.com/gpu"), None, None), &[], taints, Ok(()));
        check(&tolerating(Some("nvidia.com/gpu"), Some("true"), Some(TaintEffect::NoSchedule)), &[], taints, Ok(()));
        check(&tolerating(Some("nvidia.com/gpu"), Some("false"), None), &[], taints, refused.clone());
        check(&tolerating(Some("nvidia.com/gpu"), None, Some(TaintEffect::NoExecute)), &[], taints, refused);
        check(&tolerating(None, None, None), &[], taints, Ok(()));
        check(&Pod::default(), &[], &[taint("soft", "", TaintEffect::PreferNoSchedule)], Ok(()));
    }

    #[test]
    fn selectors_and_affinity_must_match() {
        let selecting = Pod { node_selector: labels(&[("pool", "a")]), ..Pod::default() };
        check(&selecting, &[("pool", "a")], &[], Ok(()));
        check(&selecting, &[("pool", "b")], &[], Err(Misfit::NodeSelector { key: "pool".into() }));

        let affine = |operator, values: &[&str]| {
            let values = values.iter().map(|value| (*value).to_owned()).collect();
            let requirement = Requirement { key: "cores".into(), operator, values };
            let term = SelectorTerm { labels: vec![requirement], names: vec![] };
            Pod { node_affinity: vec![SelectorTerm::default(), term], ..Pod::default() }
        };
        let no = || Err(Misfit::NodeAffinity);
        check(&affine(Operator::In, &["4", "8"]), &[("cores", "8")], &[], Ok(()));
        check(&affine(Operator::In, &["4"]), &[], &[], no());
        check(&affine(Operator::NotIn, &["4"]), &[], &[], Ok(()));
        check(&affine(Operator::NotIn, &["4"]), &[("cores", "4")], &[], no());
        check(&affine(Operator::Exists, &[]), &[("cores", "")], &[], Ok(()));
        check(&affine(Operator::DoesNotExist, &[]), &[("cores", "")], &[], no());
        check(&affine(Operator::Gt, &["4"]), &[("cores", "8")], &[], Ok(()));
        check(&affine(Operator::Gt, &["8"]), &[("cores", "8")], &[], no());
        check(&affine(Operator::Lt, &["8"]), &[("cores", "many")], &[], no());
        check(&affine(Operator::Unknown, &[]), &[("cores", "8")], &[], no());
        // Only an empty term: it matches nothing.
        check(&Pod { node_affinity: vec![SelectorTerm::default()], ..Pod::default() }, &[], &[], no());
    }

    #[test]
    fn volumes_are_where_they_are() {
        let term = |key: &str, value: &str| {
            let requirement = Requirement { key: key.into(), operator: Operator::In, values: vec![value.into()] };
            SelectorTerm { labels: vec![requirement], names: vec![] }
        };
        let needing = |terms: Vec<SelectorTerm>| Pod {
            needs: vec![Need::Nodes { claim: "data".into(), terms }],
            ..Pod::default()
        };
        let [zone, _, of_driver] = ZONE_LABELS;
        let elsewhere = || Err(Misfit::Volume { claim: "data".into() });
        check(&needing(vec![term(zone, "a")]), &[(zone, "a")], &[], Ok(()));
        check(&needing(vec![term(zone, "a")]), &[(zone, "b")], &[], elsewhere());
        check(&needing(vec![term(zone, "a"), term("rack", "1")]), &[("rack", "1")], &[], Ok(()));
        let unbound = Pod { needs: vec![Need::Unbound { claim: "data".into() }], ..Pod::default() };
        check(&unbound, &[], &[], Err(Misfit::Claim { claim: "data".into() }));
        // Of a node to come, by the zones that it may be in.
        let labels = labels(&[("pool", "x")]);
        let zones = ["a".to_owned(), "b".to_owned()];
        let place = |zones| Place { name: None, labels: &labels, taints: &[], free: Resources::default(), zones };
        assert_eq!(place(&zones).admits(&needing(vec![term(of_driver, "b")])), Ok(()));
        assert_eq!(place(&zones).admits(&needing(vec![term(zone, "c")])), elsewhere());
        assert_eq!(place(&[]).admits(&needing(vec![term(zone, "c")])), Ok(()));
        assert_eq!(place(&zones).admits(&needing(vec![term("rack", "1")])), elsewhere());
    }

    #[test]
    fn what_does_not_fit_names_the_resource() {
        let requests = Resources::from_texts([("cpu", "3")]).unwrap();
        let pod = Pod { requests, ..Pod::default() };
        check(&pod, &[], &[], Err(Misfit::Resource { name: "cpu".into() }));
    }
}
