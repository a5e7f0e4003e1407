//! The parts of Kubernetes objects that the rules read, and how they are read from the API's own types.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1 as api;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{
    LabelSelector, LabelSelectorRequirement, ObjectMeta, OwnerReference, Time,
};
use serde::{Deserialize, Serialize};

use crate::intent::{self, Intent, Progress};
use crate::reason::Pin;
use crate::resources::Resources;
use crate::time::Instant;

/// Cluster Autoscaler's and Karpenter's annotations on a Node that is to stay; both want the value `true`.
const PROTECTION: [&str; 2] = ["cluster-autoscaler.kubernetes.io/scale-down-disabled", DO_NOT_DISRUPT];
const DO_NOT_DISRUPT: &str = "karpenter.sh/do-not-disrupt";
const SAFE_TO_EVICT: &str = "cluster-autoscaler.kubernetes.io/safe-to-evict";
/// Cluster Autoscaler's annotation on a DaemonSet's pod that is to be evicted like others.
const ENABLE_DAEMON_EVICTION: &str = "cluster-autoscaler.kubernetes.io/enable-ds-eviction";
/// Label that takes a node out of load balancers. A node may set it on itself.
pub const EXCLUDED_LABEL: &str = "node.kubernetes.io/exclude-from-external-load-balancers";
/// Label with the zone of a node.
pub const ZONE_LABEL: &str = "topology.kubernetes.io/zone";
/// Whose filters the scheduling model knows.
const DEFAULT_SCHEDULER: &str = "default-scheduler";
/// Volumes that a pod can lose, by name, separated by commas.
const SAFE_TO_EVICT_VOLUMES: &str = "cluster-autoscaler.kubernetes.io/safe-to-evict-local-volumes";

/// A Node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    pub name: String,
    pub uid: String,
    #[serde(default)]
    pub created: Option<Instant>,
    /// The instance behind the node, from a provider ID `aws:///ZONE/INSTANCE`.
    pub instance: Option<String>,
    pub labels: BTreeMap<String, String>,
    pub taints: Vec<Taint>,
    pub unschedulable: bool,
    pub ready: bool,
    pub allocatable: Resources,
    /// An annotation by which somebody keeps autoscalers away from it.
    #[serde(default)]
    pub protected_by: Option<String>,
    pub intent: Option<Intent>,
    pub progress: Option<Progress>,
    /// Whether the `MaintenancePlanned` condition stands.
    #[serde(default)]
    pub planned: bool,
    /// Whether the `DrainInProgress` condition stands.
    pub draining: bool,
    /// Whether the `Drained` condition stands.
    pub drained: bool,
}

/// A Pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Pod {
    pub uid: String,
    pub namespace: String,
    pub name: String,
    pub labels: BTreeMap<String, String>,
    /// The node it is bound to.
    pub node: Option<String>,
    /// Its own address; the node's, where it has none of its own.
    #[serde(default)]
    pub ip: Option<String>,
    pub controller: Controller,
    /// Succeeded or Failed: it asks for nothing any more.
    pub finished: bool,
    /// It has a deletion timestamp.
    pub terminating: bool,
    /// Why it is not moved for the sake of fewer nodes.
    #[serde(default)]
    pub pin: Option<Pin>,
    /// Its containers are not started again for ever, so that it ends by itself.
    #[serde(default)]
    pub completes: bool,
    pub priority: i32,
    pub requests: Resources,
    pub tolerations: Vec<Toleration>,
    pub node_selector: BTreeMap<String, String>,
    /// Alternatives, of which a node must match one; empty: any node.
    pub node_affinity: Vec<SelectorTerm>,
    pub host_ports: Vec<HostPort>,
    /// Pods to be near to, and to be far from; only what is required.
    pub pod_affinity: Vec<PodTerm>,
    pub pod_anti_affinity: Vec<PodTerm>,
    /// Only those with `whenUnsatisfiable: DoNotSchedule`.
    pub spread: Vec<Spread>,
    /// Names of the PersistentVolumeClaims that it uses.
    #[serde(default)]
    pub claims: Vec<String>,
    /// What these ask of its node, as far as that is known.
    #[serde(default)]
    pub needs: Vec<Need>,
    /// Since when the scheduler has said that it finds no node.
    pub unschedulable_since: Option<Instant>,
    /// When it was made, if kube-scheduler is to place it and has not looked at it yet.
    #[serde(default)]
    pub unseen_since: Option<Instant>,
}

/// An agent's Pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentPod {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    /// Empty: it has none yet.
    pub node: String,
    pub created: Option<Instant>,
}

impl Pod {
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// Whether a node is needed for this pod's sake: not for what runs on every node anyway, and not for what is over.
    pub fn holds_node(&self) -> bool {
        self.controller == Controller::Workload && !self.finished
    }

    /// Since when it waits for a node, refused by the scheduler or not looked at yet.
    pub fn waits_since(&self) -> Option<Instant> {
        let waits = self.node.is_none() && !self.finished && !self.terminating;
        self.unschedulable_since.or(self.unseen_since).filter(|_| waits)
    }
}

/// Who keeps a pod alive, as far as drains care.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Controller {
    /// A DaemonSet: one pod on every node.
    DaemonSet,
    /// The kubelet itself, from a file on the node (a mirror pod).
    Node,
    /// Anything else, or nothing.
    #[default]
    Workload,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taint {
    pub key: String,
    pub value: String,
    pub effect: TaintEffect,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum TaintEffect {
    NoExecute,
    NoSchedule,
    PreferNoSchedule,
}

impl TaintEffect {
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "NoExecute" => Some(Self::NoExecute),
            "NoSchedule" => Some(Self::NoSchedule),
            "PreferNoSchedule" => Some(Self::PreferNoSchedule),
            _ => None,
        }
    }
}

/// `None` means any.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Toleration {
    pub key: Option<String>,
    /// `None`: operator `Exists`.
    pub value: Option<String>,
    pub effect: Option<TaintEffect>,
}

/// A port of the node that a pod takes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HostPort {
    /// `None`: on all addresses of the node.
    pub ip: Option<String>,
    pub protocol: String,
    pub port: i32,
}

impl HostPort {
    pub fn conflicts_with(&self, other: &Self) -> bool {
        let meet = self.ip.is_none() || other.ip.is_none() || self.ip == other.ip;
        meet && (&self.protocol, self.port) == (&other.protocol, other.port)
    }
}

/// Pods, and the label by whose value nodes are near each other.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PodTerm {
    /// `None`: those of every namespace. A selector of namespaces by their labels is not known here, and reads as that.
    pub namespaces: Option<Vec<String>>,
    /// `None`: no pod.
    pub selector: Option<Vec<Requirement>>,
    pub topology_key: String,
}

impl PodTerm {
    pub fn is_about(&self, pod: &Pod) -> bool {
        self.namespaces.as_ref().is_none_or(|names| names.contains(&pod.namespace))
            && self.selector.as_ref().is_some_and(|all| all.iter().all(|it| it.holds(&pod.labels)))
    }
}

/// What a claim asks of a pod's node.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Need {
    /// A node must match one of these.
    Nodes { claim: String, terms: Vec<SelectorTerm> },
    /// The claim is not there, or somebody else has to bind it first: no node will do.
    Unbound { claim: String },
}

/// How evenly pods must stand over the values of a label.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Spread {
    pub max_skew: u32,
    pub min_domains: u32,
    /// As in [`PodTerm`].
    pub selector: Option<Vec<Requirement>>,
    pub topology_key: String,
    /// Whether only nodes count that the pod's node selector and affinity admit.
    pub honors_affinity: bool,
    /// Whether only nodes count whose taints the pod tolerates.
    pub honors_taints: bool,
}

/// Requirements that must all hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SelectorTerm {
    pub labels: Vec<Requirement>,
    /// On `metadata.name`, the only field a node can be selected by.
    pub names: Vec<Requirement>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Requirement {
    pub key: String,
    pub operator: Operator,
    pub values: Vec<String>,
}

impl Requirement {
    pub fn holds(&self, labels: &BTreeMap<String, String>) -> bool {
        self.meets(labels.get(&self.key).map(String::as_str))
    }

    /// `None`: there is no such label.
    pub fn meets(&self, value: Option<&str>) -> bool {
        let listed = || value.is_some_and(|value| self.values.iter().any(|wanted| wanted == value));
        let compare = |holds: fn(i64, i64) -> bool| {
            let bound = self.values.first().and_then(|bound| bound.parse().ok());
            value.and_then(|value| value.parse().ok()).zip(bound).is_some_and(|(value, bound)| holds(value, bound))
        };
        match self.operator {
            Operator::DoesNotExist => value.is_none(),
            Operator::Exists => value.is_some(),
            Operator::Gt => compare(|value, bound| value > bound),
            Operator::In => listed(),
            Operator::Lt => compare(|value, bound| value < bound),
            Operator::NotIn => !listed(),
            Operator::Unknown => false,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Operator {
    DoesNotExist,
    Exists,
    Gt,
    In,
    Lt,
    NotIn,
    /// One this version of Ebb does not know: it matches nothing.
    Unknown,
}

impl From<&api::Node> for Node {
    fn from(node: &api::Node) -> Self {
        let spec = node.spec.clone().unwrap_or_default();
        let status = node.status.clone().unwrap_or_default();
        let holds = |name| status.conditions.iter().flatten().any(|c| c.type_ == name && c.status == "True");
        let annotation = |key: &str| node.metadata.annotations.as_ref().and_then(|all| all.get(key));
        let protects = |key: &&str| annotation(key).is_some_and(|value| value == "true");
        Self {
            name: node.metadata.name.clone().unwrap_or_default(),
            uid: node.metadata.uid.clone().unwrap_or_default(),
            created: node.metadata.creation_timestamp.as_ref().map(instant),
            instance: spec.provider_id.as_deref().and_then(instance_of),
            labels: node.metadata.labels.clone().unwrap_or_default(),
            taints: spec.taints.iter().flatten().filter_map(taint).collect(),
            unschedulable: spec.unschedulable.unwrap_or(false),
            ready: holds("Ready"),
            allocatable: status
                .allocatable
                .as_ref()
                // The API server refuses malformed quantities, so an error here is an object that never was one.
                .map(|list| Resources::from_list(list).unwrap_or_default())
                .unwrap_or_default(),
            protected_by: PROTECTION.into_iter().find(protects).map(Into::into),
            intent: annotation(intent::INTENT_ANNOTATION).and_then(|text| intent::decode(text)),
            progress: annotation(intent::PROGRESS_ANNOTATION).and_then(|text| intent::decode(text)),
            planned: holds(intent::CONDITION_PLANNED),
            draining: holds(intent::CONDITION_DRAINING),
            drained: holds(intent::CONDITION_DRAINED),
        }
    }
}

/// `aws:///us-east-1a/i-0123` → `i-0123`.
fn instance_of(provider_id: &str) -> Option<String> {
    let (_, instance) = provider_id.strip_prefix("aws:///")?.rsplit_once('/')?;
    (!instance.is_empty()).then(|| instance.to_owned())
}

fn taint(taint: &api::Taint) -> Option<Taint> {
    Some(Taint {
        key: taint.key.clone(),
        value: taint.value.clone().unwrap_or_default(),
        effect: TaintEffect::parse(&taint.effect)?,
    })
}

impl From<&api::Pod> for AgentPod {
    fn from(pod: &api::Pod) -> Self {
        Self {
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            name: pod.metadata.name.clone().unwrap_or_default(),
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default(),
            created: pod.metadata.creation_timestamp.as_ref().map(instant),
        }
    }
}

impl From<&api::Pod> for Pod {
    fn from(pod: &api::Pod) -> Self {
        let spec = pod.spec.clone().unwrap_or_default();
        let status = pod.status.clone().unwrap_or_default();
        let affinity = spec.affinity.clone().unwrap_or_default();
        let required = affinity.node_affinity.and_then(|node| node.required_during_scheduling_ignored_during_execution);
        let near = affinity.pod_affinity.and_then(|it| it.required_during_scheduling_ignored_during_execution);
        let far = affinity.pod_anti_affinity.and_then(|it| it.required_during_scheduling_ignored_during_execution);
        let term = |term: &api::PodAffinityTerm| pod_term(term, &pod.metadata);
        Self {
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            name: pod.metadata.name.clone().unwrap_or_default(),
            labels: pod.metadata.labels.clone().unwrap_or_default(),
            node: spec.node_name.clone().filter(|name| !name.is_empty()),
            ip: status.pod_ip.clone().filter(|ip| !ip.is_empty()),
            controller: controller(pod),
            finished: matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")),
            terminating: pod.metadata.deletion_timestamp.is_some(),
            pin: pin(pod),
            completes: matches!(spec.restart_policy.as_deref(), Some("Never" | "OnFailure")),
            priority: spec.priority.unwrap_or(0),
            requests: requests(&spec),
            tolerations: spec.tolerations.iter().flatten().filter_map(toleration).collect(),
            node_selector: spec.node_selector.clone().unwrap_or_default(),
            node_affinity: required
                .map(|selector| selector.node_selector_terms.iter().map(selector_term).collect())
                .unwrap_or_default(),
            host_ports: host_ports(&spec),
            pod_affinity: near.iter().flatten().map(term).collect(),
            pod_anti_affinity: far.iter().flatten().map(term).collect(),
            spread: spec
                .topology_spread_constraints
                .iter()
                .flatten()
                .filter(|constraint| constraint.when_unsatisfiable == "DoNotSchedule")
                .map(|constraint| spread(constraint, &pod.metadata))
                .collect(),
            claims: claims(&spec, pod.metadata.name.as_deref().unwrap_or_default()),
            needs: Vec::new(),
            unschedulable_since: unschedulable_since(&status),
            unseen_since: unseen_since(pod),
        }
    }
}

impl Pod {
    /// One that a controller would make of this template, without name, node and claims: a claim of its own does not
    /// exist before it does. What a container is limited to and does not request, it requests: the API server sees to
    /// that for pods, and not for templates.
    pub fn of_template(template: &api::PodTemplateSpec, namespace: &str) -> Self {
        let mut spec = template.spec.clone().unwrap_or_default();
        let containers = spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten());
        for resources in containers.filter_map(|container| container.resources.as_mut()).chain(spec.resources.as_mut())
        {
            let limits = resources.limits.iter().flatten();
            let limits: Vec<_> = limits.map(|(name, amount)| (name.clone(), amount.clone())).collect();
            let requests = resources.requests.get_or_insert_default();
            limits.into_iter().for_each(|(name, amount)| _ = requests.entry(name).or_insert(amount));
        }
        let metadata = ObjectMeta {
            namespace: Some(namespace.to_owned()),
            labels: template.metadata.as_ref().and_then(|metadata| metadata.labels.clone()),
            ..ObjectMeta::default()
        };
        let pod = Self::from(&api::Pod { metadata, spec: Some(spec), status: None });
        Self { node: None, claims: Vec::new(), ..pod }
    }
}

/// One of a volume that lives as long as the pod is named after both.
fn claims(spec: &api::PodSpec, pod: &str) -> Vec<String> {
    let claim = |volume: &api::Volume| match (&volume.persistent_volume_claim, &volume.ephemeral) {
        (Some(claim), _) => Some(claim.claim_name.clone()),
        (None, Some(_)) => Some(format!("{pod}-{}", volume.name)),
        (None, None) => None,
    };
    spec.volumes.iter().flatten().filter_map(claim).collect()
}

/// In the order of Cluster Autoscaler's rules, but that a pod of any controller counts as replicated: those of custom
/// controllers (Ray's, Spark's) are made anew as well.
fn pin(pod: &api::Pod) -> Option<Pin> {
    let annotation = |key| annotation(pod, key);
    let safe = annotation(SAFE_TO_EVICT);
    match controller(pod) {
        Controller::DaemonSet | Controller::Node => None,
        Controller::Workload if annotation(DO_NOT_DISRUPT) == Some("true") => Some(Pin::DoNotDisrupt),
        Controller::Workload if safe == Some("true") => None,
        Controller::Workload if safe == Some("on-completion") => Some(Pin::OnCompletion),
        Controller::Workload if owner(pod).is_none() => Some(Pin::NotReplicated),
        Controller::Workload if pod.metadata.namespace.as_deref() == Some("kube-system") => Some(Pin::System),
        Controller::Workload if safe == Some("false") => Some(Pin::NotSafeToEvict),
        Controller::Workload => loses_data(pod).then_some(Pin::LocalStorage),
    }
}

/// Whether it has a volume of the node's own that nobody has called expendable.
pub(crate) fn loses_data(pod: &api::Pod) -> bool {
    let expendable = annotation(pod, SAFE_TO_EVICT_VOLUMES).unwrap_or_default();
    let local = |volume: &&api::Volume| {
        let in_memory = |volume: &api::EmptyDirVolumeSource| volume.medium.as_deref() == Some("Memory");
        volume.host_path.is_some() || volume.empty_dir.as_ref().is_some_and(|volume| !in_memory(volume))
    };
    let mut volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()).filter(local);
    let lost = volumes.any(|it| !expendable.split(',').any(|name| name == it.name));
    lost && annotation(pod, SAFE_TO_EVICT) != Some("true")
}

/// Whether it is to be evicted although a DaemonSet makes it.
pub(crate) fn evictable_daemon(pod: &api::Pod) -> bool {
    annotation(pod, ENABLE_DAEMON_EVICTION) == Some("true")
}

pub(crate) fn annotation<'a>(pod: &'a api::Pod, key: &str) -> Option<&'a str> {
    pod.metadata.annotations.as_ref().and_then(|all| all.get(key)).map(String::as_str)
}

/// Who keeps it: makes it anew, if anybody does.
pub(crate) fn owner(pod: &api::Pod) -> Option<&OwnerReference> {
    pod.metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))
}

fn controller(pod: &api::Pod) -> Controller {
    let mirror = pod.metadata.annotations.as_ref().is_some_and(|all| all.contains_key("kubernetes.io/config.mirror"));
    match owner(pod) {
        _ if mirror => Controller::Node,
        Some(owner) if owner.kind == "DaemonSet" && owner.api_version == "apps/v1" => Controller::DaemonSet,
        _ => Controller::Workload,
    }
}

/// What the scheduler reserves: the higher of all containers with their sidecars, and the widest moment of starting
/// up, plus the overhead of the runtime class, plus the pod's own slot. Resources set for the whole pod win.
///
/// Source: `k8s.io/component-helpers/resource.PodRequests` (KEP-753 sidecars, KEP-2837 pod-level resources).
fn requests(spec: &api::PodSpec) -> Resources {
    let read = |resources: Option<&api::ResourceRequirements>| {
        let list = resources.and_then(|resources| resources.requests.as_ref());
        list.and_then(|list| Resources::from_list(list).ok()).unwrap_or_default()
    };
    let mut running = Resources::default();
    for container in &spec.containers {
        running.add(&read(container.resources.as_ref()));
    }
    let mut sidecars = Resources::default();
    let mut starting = Resources::default();
    for container in spec.init_containers.iter().flatten() {
        let own = read(container.resources.as_ref());
        let mut moment = sidecars.clone();
        moment.add(&own);
        starting.raise_to(&moment);
        if container.restart_policy.as_deref() == Some("Always") {
            sidecars.add(&own);
        }
    }
    running.add(&sidecars);
    running.raise_to(&starting);
    let whole = read(spec.resources.as_ref());
    for name in ["cpu", "memory"] {
        if whole.amount(name) > 0 {
            running.set(name, whole.amount(name));
        }
    }
    if let Some(overhead) = spec.overhead.as_ref().and_then(|list| Resources::from_list(list).ok()) {
        running.add(&overhead);
    }
    running.set("pods", 1);
    running
}

fn toleration(toleration: &api::Toleration) -> Option<Toleration> {
    let exists = toleration.operator.as_deref() == Some("Exists");
    Some(Toleration {
        key: toleration.key.clone().filter(|key| !key.is_empty()),
        value: (!exists).then(|| toleration.value.clone().unwrap_or_default()),
        effect: match toleration.effect.as_deref() {
            None | Some("") => None,
            Some(effect) => Some(TaintEffect::parse(effect)?),
        },
    })
}

/// Of init containers only sidecars hold theirs while the pod runs, and only those count for the scheduler.
fn host_ports(spec: &api::PodSpec) -> Vec<HostPort> {
    let sidecars = spec.init_containers.iter().flatten().filter(|it| it.restart_policy.as_deref() == Some("Always"));
    let ports = sidecars.chain(&spec.containers).flat_map(|container| container.ports.iter().flatten());
    let taken = ports.filter_map(|port| {
        let ip = port.host_ip.clone().filter(|ip| !ip.is_empty() && ip != "0.0.0.0");
        let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".into());
        Some(HostPort { ip, protocol, port: port.host_port.filter(|port| *port > 0)? })
    });
    taken.collect()
}

fn pod_term(term: &api::PodAffinityTerm, metadata: &ObjectMeta) -> PodTerm {
    let named = term.namespaces.clone().filter(|names| !names.is_empty());
    let namespaces = match (named, &term.namespace_selector) {
        (_, Some(_)) => None,
        (Some(names), None) => Some(names),
        (None, None) => Some(metadata.namespace.iter().cloned().collect()),
    };
    PodTerm {
        namespaces,
        // The API server has put `matchLabelKeys` and `mismatchLabelKeys` into it.
        selector: term.label_selector.as_ref().map(label_selector),
        topology_key: term.topology_key.clone(),
    }
}

fn spread(constraint: &api::TopologySpreadConstraint, metadata: &ObjectMeta) -> Spread {
    let at_least_one = |number: Option<i32>| number.and_then(|number| u32::try_from(number).ok()).unwrap_or(1).max(1);
    let mut selector = constraint.label_selector.as_ref().map(label_selector);
    if let Some(selector) = &mut selector {
        for key in constraint.match_label_keys.iter().flatten() {
            let value = metadata.labels.as_ref().and_then(|labels| labels.get(key));
            selector.extend(value.map(|value| equals(key, value)));
        }
    }
    Spread {
        max_skew: at_least_one(Some(constraint.max_skew)),
        min_domains: at_least_one(constraint.min_domains),
        selector,
        topology_key: constraint.topology_key.clone(),
        honors_affinity: constraint.node_affinity_policy.as_deref() != Some("Ignore"),
        honors_taints: constraint.node_taints_policy.as_deref() == Some("Honor"),
    }
}

fn equals(key: &str, value: &str) -> Requirement {
    Requirement { key: key.to_owned(), operator: Operator::In, values: vec![value.to_owned()] }
}

/// One without requirements is about every pod.
pub(crate) fn label_selector(selector: &LabelSelector) -> Vec<Requirement> {
    let expression = |it: &LabelSelectorRequirement| Requirement {
        key: it.key.clone(),
        operator: operator(&it.operator),
        values: it.values.clone().unwrap_or_default(),
    };
    let labels = selector.match_labels.iter().flatten().map(|(key, value)| equals(key, value));
    labels.chain(selector.match_expressions.iter().flatten().map(expression)).collect()
}

pub(crate) fn selector_term(term: &api::NodeSelectorTerm) -> SelectorTerm {
    let requirements =
        |list: &Option<Vec<api::NodeSelectorRequirement>>| list.iter().flatten().map(requirement).collect::<Vec<_>>();
    SelectorTerm { labels: requirements(&term.match_expressions), names: requirements(&term.match_fields) }
}

fn requirement(requirement: &api::NodeSelectorRequirement) -> Requirement {
    Requirement {
        key: requirement.key.clone(),
        operator: operator(&requirement.operator),
        values: requirement.values.clone().unwrap_or_default(),
    }
}

fn operator(text: &str) -> Operator {
    match text {
        "DoesNotExist" => Operator::DoesNotExist,
        "Exists" => Operator::Exists,
        "Gt" => Operator::Gt,
        "In" => Operator::In,
        "Lt" => Operator::Lt,
        "NotIn" => Operator::NotIn,
        _ => Operator::Unknown,
    }
}

fn unschedulable_since(status: &api::PodStatus) -> Option<Instant> {
    let condition = status.conditions.iter().flatten().find(|condition| {
        condition.type_ == "PodScheduled"
            && condition.status == "False"
            && condition.reason.as_deref() == Some("Unschedulable")
    })?;
    condition.last_transition_time.as_ref().map(instant)
}

/// Not of one with scheduling gates: these stand as a condition from the start.
fn unseen_since(pod: &api::Pod) -> Option<Instant> {
    let spec = pod.spec.as_ref()?;
    let ours = spec.scheduler_name.as_deref().is_none_or(|name| name == DEFAULT_SCHEDULER);
    let mut conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let seen = spec.node_name.is_some() || conditions.any(|condition| condition.type_ == "PodScheduled");
    pod.metadata.creation_timestamp.as_ref().filter(|_| ours && !seen).map(instant)
}

fn instant(time: &Time) -> Instant {
    Instant::from_millis(u64::try_from(time.0.as_millisecond()).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(json: serde_json::Value) -> Pod {
        Pod::from(&serde_json::from_value::<api::Pod>(json).unwrap())
    }

    fn container(cpu: &str) -> serde_json::Value {
        serde_json::json!({"name": "c", "resources": {"requests": {"cpu": cpu}}})
    }

    #[test]
    fn a_provider_id_names_the_instance() {
        assert_eq!(instance_of("aws:///us-east-1a/i-0123").as_deref(), Some("i-0123"));
        assert_eq!(instance_of("aws:///us-east-1a/"), None);
        assert_eq!(instance_of("kwok://node-1"), None);
    }

    #[test]
    fn a_pod_asks_for_its_widest_moment() {
        let mut sidecar = container("200m");
        sidecar["restartPolicy"] = "Always".into();
        let spec = serde_json::json!({
            "containers": [container("500m"), container("500m")],
            "initContainers": [sidecar, container("1500m")],
            "overhead": {"cpu": "10m"},
        });
        // Starting: sidecar 200m + init 1500m; running: 1000m + sidecar 200m.
        assert_eq!(pod(serde_json::json!({"spec": spec})).requests.amount("cpu"), 1710);
        let whole = serde_json::json!({"containers": [container("500m")], "resources": {"requests": {"cpu": "3"}}});
        assert_eq!(pod(serde_json::json!({"spec": whole})).requests.amount("cpu"), 3000);
    }

    #[test]
    fn a_pod_of_a_template_requests_what_it_is_limited_to() {
        let template = serde_json::json!({
            "metadata": {"labels": {"app": "train"}},
            "spec": {"nodeName": "n", "containers": [{"name": "c", "resources": {
                "requests": {"cpu": "1"}, "limits": {"cpu": "2", "nvidia.com/gpu": "1"}}}],
                "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]},
        });
        let pod = Pod::of_template(&serde_json::from_value(template).unwrap(), "ml");
        assert_eq!((pod.requests.amount("cpu"), pod.requests.amount("nvidia.com/gpu")), (1000, 1));
        assert_eq!(
            (pod.namespace.as_str(), pod.labels["app"].as_str(), pod.node, pod.claims.len()),
            ("ml", "train", None, 0)
        );
    }

    #[test]
    fn daemons_and_finished_pods_hold_no_node() {
        let owned = |kind: &str| {
            serde_json::json!({"metadata": {"ownerReferences": [
                {"apiVersion": "apps/v1", "kind": kind, "name": "x", "uid": "u", "controller": true}]}})
        };
        assert!(!pod(owned("DaemonSet")).holds_node());
        assert!(pod(owned("ReplicaSet")).holds_node());
        assert!(pod(serde_json::json!({})).holds_node());
        let mirror = serde_json::json!({"metadata": {"annotations": {"kubernetes.io/config.mirror": "x"}}});
        assert!(!pod(mirror).holds_node());
        assert!(!pod(serde_json::json!({"status": {"phase": "Succeeded"}})).holds_node());
    }

    #[test]
    fn annotations_owners_and_volumes_say_what_must_not_be_moved() {
        let check = |metadata: serde_json::Value, volumes: serde_json::Value, expected: Option<Pin>| {
            let json = serde_json::json!({"metadata": metadata, "spec": {"containers": [], "volumes": volumes}});
            assert_eq!(pod(json.clone()).pin, expected, "{json}");
        };
        let owner = || serde_json::json!([{"apiVersion": "ray.io/v1", "kind": "RayCluster", "name": "x", "uid": "u", "controller": true}]);
        let annotated =
            |key: &str, value: &str| serde_json::json!({"ownerReferences": owner(), "annotations": {key: value}});
        let none = || serde_json::json!([]);
        let local = || serde_json::json!([{"name": "scratch", "emptyDir": {}}]);
        check(serde_json::json!({"ownerReferences": owner()}), none(), None);
        check(serde_json::json!({}), none(), Some(Pin::NotReplicated));
        check(serde_json::json!({"annotations": {SAFE_TO_EVICT: "true"}}), local(), None);
        check(annotated(SAFE_TO_EVICT, "false"), none(), Some(Pin::NotSafeToEvict));
        check(annotated(SAFE_TO_EVICT, "on-completion"), none(), Some(Pin::OnCompletion));
        check(annotated(DO_NOT_DISRUPT, "true"), none(), Some(Pin::DoNotDisrupt));
        check(annotated("other", "true"), local(), Some(Pin::LocalStorage));
        check(annotated(SAFE_TO_EVICT_VOLUMES, "scratch"), local(), None);
        let memory = serde_json::json!([{"name": "shm", "emptyDir": {"medium": "Memory"}}]);
        check(serde_json::json!({"ownerReferences": owner()}), memory, None);
        let system = serde_json::json!({"ownerReferences": owner(), "namespace": "kube-system"});
        check(system, none(), Some(Pin::System));
    }

    #[test]
    fn a_pod_whose_containers_are_not_always_started_again_ends() {
        let completes = |spec: serde_json::Value| pod(serde_json::json!({"spec": spec})).completes;
        for (policy, expected) in [("Never", true), ("OnFailure", true), ("Always", false)] {
            assert_eq!(completes(serde_json::json!({"containers": [], "restartPolicy": policy})), expected);
        }
        assert!(!completes(serde_json::json!({"containers": []})));
    }

    #[test]
    fn waiting_starts_when_the_scheduler_said_so() {
        let condition = |reason: &str| {
            serde_json::json!({"status": {"conditions": [{"type": "PodScheduled", "status": "False",
                "reason": reason, "lastTransitionTime": "2026-11-24T03:00:00Z"}]}})
        };
        let since = pod(condition("Unschedulable")).waits_since();
        assert_eq!(since, Some("2026-11-24T03:00:00Z".parse().unwrap()));
        // A scheduling gate is somebody's wish that the pod should wait.
        assert_eq!(pod(condition("SchedulingGated")).waits_since(), None);
        let mut terminating = condition("Unschedulable");
        terminating["metadata"] = serde_json::json!({"deletionTimestamp": "2026-11-24T03:00:01Z"});
        assert_eq!(pod(terminating).waits_since(), None);
    }

    #[test]
    fn a_drained_node_is_read_back() {
        let node: api::Node = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "n", "uid": "u", "annotations": {
                "ebb.dev/drain-progress": r#"{"id":"d","phase":"drained","cordonedByUs":true}"#,
                "ebb.dev/drain": "not ours",
            }},
            "spec": {"providerID": "aws:///z/i-1", "taints": [{"key": "k", "effect": "NoSchedule"}]},
            "status": {"conditions": [
                {"type": "Ready", "status": "True"}, {"type": "Drained", "status": "True"}],
                "allocatable": {"cpu": "3920m"}},
        }))
        .unwrap();
        let node = Node::from(&node);
        assert!(node.ready && node.drained && node.intent.is_none());
        assert_eq!(node.progress.unwrap().id, "d");
        assert_eq!(node.allocatable.amount("cpu"), 3920);
        assert_eq!(node.taints, [Taint { key: "k".into(), value: String::new(), effect: TaintEffect::NoSchedule }]);
    }

    #[test]
    fn a_pod_that_the_scheduler_has_not_looked_at_waits_from_its_creation() {
        let made = |spec: serde_json::Value, status: serde_json::Value| {
            let metadata = serde_json::json!({"creationTimestamp": "2026-11-28T10:00:00Z"});
            pod(serde_json::json!({"metadata": metadata, "spec": spec, "status": status})).waits_since()
        };
        let spec = |key: &str, value: &str| {
            let mut spec = serde_json::json!({"containers": []});
            spec[key] = value.into();
            spec
        };
        let created = "2026-11-28T10:00:00Z".parse().ok();
        assert_eq!(made(spec("schedulerName", "default-scheduler"), serde_json::json!({})), created);
        assert_eq!(made(spec("schedulerName", "volcano"), serde_json::json!({})), None);
        assert_eq!(made(spec("nodeName", "n"), serde_json::json!({})), None);
        let gated = serde_json::json!({"conditions": [
            {"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}]});
        assert_eq!(made(spec("schedulerName", "default-scheduler"), gated), None);
    }
}
