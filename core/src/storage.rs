//! Which nodes a pod's claims let it run on: kube-scheduler's filters VolumeBinding and VolumeZone. How many volumes a
//! node can have attached is not known here.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1 as api;
use k8s_openapi::api::storage::v1 as storage;
use serde::{Deserialize, Serialize};

use crate::kubernetes::{Need, Operator, Requirement, SelectorTerm, ZONE_LABEL, selector_term};

/// Labels that say a node's zone: the standard one, its predecessor, and what the EBS CSI driver puts into volumes.
pub const ZONE_LABELS: [&str; 3] =
    [ZONE_LABEL, "failure-domain.beta.kubernetes.io/zone", "topology.ebs.csi.aws.com/zone"];
/// Between the zones of a volume that is in several (`LabelMultiZoneDelimiter`).
const ZONES_DELIMITER: &str = "__";

/// A PersistentVolumeClaim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    pub namespace: String,
    pub name: String,
    /// The volume that it is bound to.
    pub volume: Option<String>,
    /// Its volume is gone for good.
    pub lost: bool,
    pub class: Option<String>,
}

/// A PersistentVolume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    pub name: String,
    /// Its claim's namespace and name.
    pub claim: Option<(String, String)>,
    /// Alternatives, of which a node must match one; empty: any node.
    pub nodes: Vec<SelectorTerm>,
}

/// A StorageClass.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Class {
    pub name: String,
    /// Whether volumes are made where the first pod is placed.
    pub waits_for_consumer: bool,
    /// Where volumes may be: as [`Volume::nodes`].
    pub nodes: Vec<SelectorTerm>,
}

/// All claims, volumes and classes, and who uses them.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Storage {
    #[serde(with = "crate::journal::pairs")]
    claims: BTreeMap<(String, String), Claim>,
    volumes: BTreeMap<String, Volume>,
    classes: BTreeMap<String, Class>,
    /// UIDs of the pods that use each claim.
    #[serde(with = "crate::journal::pairs")]
    users: BTreeMap<(String, String), BTreeSet<String>>,
}

/// What became of one of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Change {
    Claim(Claim),
    ClaimDeleted { namespace: String, name: String },
    Class(Class),
    ClassDeleted { name: String },
    Volume(Volume),
    VolumeDeleted { name: String },
}

impl Storage {
    /// Takes it in, and names the UIDs of the pods for which it may matter.
    pub fn apply(&mut self, change: Change) -> BTreeSet<String> {
        let claim = match change {
            Change::Claim(claim) => {
                let key = (claim.namespace.clone(), claim.name.clone());
                self.claims.insert(key.clone(), claim);
                Some(key)
            }
            Change::ClaimDeleted { namespace, name } => {
                let key = (namespace, name);
                self.claims.remove(&key);
                Some(key)
            }
            Change::Volume(volume) => {
                let key = volume.claim.clone();
                self.volumes.insert(volume.name.clone(), volume);
                key
            }
            Change::VolumeDeleted { name } => self.volumes.remove(&name).and_then(|volume| volume.claim),
            Change::Class(class) => {
                self.classes.insert(class.name.clone(), class);
                return self.users.values().flatten().cloned().collect();
            }
            Change::ClassDeleted { name } => {
                self.classes.remove(&name);
                return self.users.values().flatten().cloned().collect();
            }
        };
        claim.and_then(|key| self.users.get(&key)).cloned().unwrap_or_default()
    }

    pub(crate) fn uses(&mut self, uid: &str, namespace: &str, claims: &[String]) {
        for claim in claims {
            let key = (namespace.to_owned(), claim.clone());
            self.users.entry(key).or_default().insert(uid.to_owned());
        }
    }

    pub(crate) fn forgets(&mut self, uid: &str, namespace: &str, claims: &[String]) {
        for claim in claims {
            let key = (namespace.to_owned(), claim.clone());
            if let Some(users) = self.users.get_mut(&key) {
                users.remove(uid);
                if users.is_empty() {
                    self.users.remove(&key);
                }
            }
        }
    }

    /// What the claims ask of a pod's node.
    pub fn needs(&self, namespace: &str, claims: &[String]) -> Vec<Need> {
        claims.iter().filter_map(|claim| self.need(namespace, claim)).collect()
    }

    /// `None`: it may be anywhere.
    fn need(&self, namespace: &str, name: &str) -> Option<Need> {
        let claim = name.to_owned();
        let Some(known) = self.claims.get(&(namespace.to_owned(), claim.clone())) else {
            return Some(Need::Unbound { claim });
        };
        let nodes = match &known.volume {
            _ if known.lost => return Some(Need::Unbound { claim }),
            // A volume that is not known (yet) is not held against any node.
            Some(volume) => self.volumes.get(volume).map(|volume| &volume.nodes)?,
            None => match known.class.as_ref().and_then(|class| self.classes.get(class)) {
                Some(class) if class.waits_for_consumer => &class.nodes,
                // It is for somebody else to bind it: no node helps meanwhile.
                _ => return Some(Need::Unbound { claim }),
            },
        };
        (!nodes.is_empty()).then(|| Need::Nodes { claim, terms: nodes.clone() })
    }
}

impl From<&api::PersistentVolumeClaim> for Claim {
    fn from(claim: &api::PersistentVolumeClaim) -> Self {
        let spec = claim.spec.as_ref();
        Self {
            namespace: claim.metadata.namespace.clone().unwrap_or_default(),
            name: claim.metadata.name.clone().unwrap_or_default(),
            volume: spec.and_then(|spec| spec.volume_name.clone()).filter(|name| !name.is_empty()),
            lost: claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Lost"),
            class: spec.and_then(|spec| spec.storage_class_name.clone()),
        }
    }
}

impl From<&api::PersistentVolume> for Volume {
    fn from(volume: &api::PersistentVolume) -> Self {
        let spec = volume.spec.as_ref();
        let required = spec.and_then(|spec| spec.node_affinity.as_ref()?.required.as_ref());
        let mut nodes: Vec<_> =
            required.iter().flat_map(|selector| &selector.node_selector_terms).map(selector_term).collect();
        // What VolumeZone reads: labels of the volume itself, from before volumes had an affinity.
        let label = |key: &str| volume.metadata.labels.as_ref()?.get(key).cloned();
        for (key, zones) in ZONE_LABELS.iter().filter_map(|key| Some((*key, label(key)?))) {
            if nodes.is_empty() {
                nodes.push(SelectorTerm::default());
            }
            let values: Vec<_> = zones.split(ZONES_DELIMITER).map(str::to_owned).collect();
            for term in &mut nodes {
                term.labels.push(Requirement { key: key.into(), operator: Operator::In, values: values.clone() });
            }
        }
        let claim = spec.and_then(|spec| spec.claim_ref.as_ref());
        Self {
            name: volume.metadata.name.clone().unwrap_or_default(),
            claim: claim.and_then(|claim| Some((claim.namespace.clone()?, claim.name.clone()?))),
            nodes,
        }
    }
}

impl From<&storage::StorageClass> for Class {
    fn from(class: &storage::StorageClass) -> Self {
        let requirement = |it: &api::TopologySelectorLabelRequirement| Requirement {
            key: it.key.clone(),
            operator: Operator::In,
            values: it.values.clone(),
        };
        let term = |term: &api::TopologySelectorTerm| SelectorTerm {
            labels: term.match_label_expressions.iter().flatten().map(requirement).collect(),
            names: Vec::new(),
        };
        Self {
            name: class.metadata.name.clone().unwrap_or_default(),
            waits_for_consumer: class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"),
            nodes: class.allowed_topologies.iter().flatten().map(term).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn zone(zone: &str) -> Vec<SelectorTerm> {
        let requirement = Requirement { key: ZONE_LABELS[0].into(), operator: Operator::In, values: vec![zone.into()] };
        vec![SelectorTerm { labels: vec![requirement], names: vec![] }]
    }

    fn claim(volume: Option<&str>, class: &str) -> Change {
        Change::Claim(Claim {
            namespace: "ns".into(),
            name: "data".into(),
            volume: volume.map(Into::into),
            lost: false,
            class: Some(class.into()),
        })
    }

    #[test]
    fn a_claim_binds_a_pod_to_where_its_volume_is() {
        let mut storage = Storage::default();
        storage.uses("pod-1", "ns", &["data".into()]);
        let needs = |storage: &Storage| storage.needs("ns", &["data".into()]);
        let unbound = || vec![Need::Unbound { claim: "data".into() }];
        let nodes = |zone_name: &str| vec![Need::Nodes { claim: "data".into(), terms: zone(zone_name) }];
        assert_eq!(needs(&storage), unbound());
        assert_eq!(storage.apply(claim(None, "fast")).len(), 1);
        assert_eq!(needs(&storage), unbound());
        let class = |waits_for_consumer, nodes| Change::Class(Class { name: "fast".into(), waits_for_consumer, nodes });
        storage.apply(class(false, vec![]));
        assert_eq!(needs(&storage), unbound());
        storage.apply(class(true, vec![]));
        assert_eq!(needs(&storage), []);
        storage.apply(class(true, zone("a")));
        assert_eq!(needs(&storage), nodes("a"));
        storage.apply(claim(Some("pv"), "fast"));
        let volume = |nodes| {
            let claim = Some(("ns".into(), "data".into()));
            Change::Volume(Volume { name: "pv".into(), claim, nodes })
        };
        assert_eq!(storage.apply(volume(zone("b"))).into_iter().collect::<Vec<_>>(), ["pod-1"]);
        assert_eq!(needs(&storage), nodes("b"));
        storage.apply(volume(vec![]));
        assert_eq!(needs(&storage), []);
        storage.forgets("pod-1", "ns", &["data".into()]);
        assert!(storage.apply(Change::ClaimDeleted { namespace: "ns".into(), name: "data".into() }).is_empty());
        assert_eq!(needs(&storage), unbound());
    }

    #[test]
    fn objects_are_read() {
        let volume: api::PersistentVolume = serde_json::from_value(json!({
            "metadata": {"name": "pv", "labels": {ZONE_LABELS[0]: "a__b"}},
            "spec": {"claimRef": {"namespace": "ns", "name": "data"}},
        }))
        .unwrap();
        let volume = Volume::from(&volume);
        assert_eq!(volume.claim, Some(("ns".into(), "data".into())));
        assert_eq!(volume.nodes[0].labels[0].values, ["a", "b"]);
        let class: storage::StorageClass = serde_json::from_value(json!({
            "metadata": {"name": "fast"}, "provisioner": "p", "volumeBindingMode": "WaitForFirstConsumer",
            "allowedTopologies": [{"matchLabelExpressions": [{"key": ZONE_LABELS[0], "values": ["a"]}]}],
        }))
        .unwrap();
        assert_eq!(Class::from(&class), Class { name: "fast".into(), waits_for_consumer: true, nodes: zone("a") });
    }
}
