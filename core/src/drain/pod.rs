//! A pod on the own node, as far as its drain cares: whether it is evicted, when, or what becomes of it instead.

use std::time::Duration;

use k8s_openapi::api::core::v1 as api;
use serde::{Deserialize, Serialize};

use crate::intent::Intent;
use crate::kubernetes::{
    self, Controller, Taint, TaintEffect, Toleration, annotation, evictable_daemon, loses_data, owner,
};
use crate::reason::Pin;
use crate::schedule::tolerates;
use crate::time::Instant;

/// Label with what is to become of a pod. Cluster API's is read as well.
const DRAIN_LABELS: [&str; 2] = ["ebb.dev/drain", "cluster.x-k8s.io/drain"];
/// Annotation with the place of a pod in the drain's order: a whole number, 0 if absent; lower ones are gone first. No
/// label: its value could not be below zero.
const ORDER_ANNOTATION: &str = "ebb.dev/drain-order";
/// The API server's default of `terminationGracePeriodSeconds`.
const DEFAULT_GRACE: Duration = Duration::from_secs(30);
/// The lowest priority of what a cluster cannot do without: that of the class `system-cluster-critical`.
const CRITICAL: i32 = 2_000_000_000;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pod {
    pub uid: String,
    pub namespace: String,
    pub name: String,
    pub controller: Controller,
    pub finished: bool,
    /// When it should be gone, once it is terminating.
    pub deletion: Option<Instant>,
    pub finalizers: Vec<String>,
    pub created: Option<Instant>,
    pub grace: Duration,
    pub priority: i32,
    pub order: i32,
    pub asks: Option<Ask>,
    pub pin: Option<Pin>,
    /// Whether what is in a volume of the node's own is lost with it.
    pub loses_data: bool,
    /// Whether it uses a PersistentVolumeClaim.
    pub has_claims: bool,
    /// Whether the scheduler may put it on a cordoned node.
    pub tolerates_cordon: bool,
    /// What an eviction of it is judged by, as far as budgets and policies can tell: its controller, its labels and how it
    /// is. `None`: it has no controller, and is like no other.
    pub likeness: Option<String>,
}

/// What a pod's label asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Ask {
    /// To be evicted although it is a DaemonSet's.
    Evict,
    /// To be left alone, and not waited for.
    Skip,
    /// To be waited for until it ends by itself.
    WaitCompleted,
}

/// What becomes of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Treatment {
    /// It neither goes nor keeps the node.
    Stay,
    Evict,
    /// Its end is waited for.
    Await,
    /// It must not go, and so the node must not.
    Keep(Pin),
}

/// The order in which pods go; all of one tier are gone before the next begins. Daemons come last: others may need them
/// to end in peace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Tier {
    daemon: bool,
    order: i32,
    critical: bool,
}

impl Pod {
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    pub(super) fn tier(&self) -> Tier {
        let (daemon, critical) = (self.controller == Controller::DaemonSet, self.priority >= CRITICAL);
        Tier { daemon, order: self.order, critical }
    }

    /// `began`: when the node was cordoned, if it was.
    pub fn treatment(&self, intent: &Intent, began: Option<Instant>) -> Treatment {
        if self.finished || self.asks == Some(Ask::Skip) {
            return Treatment::Stay;
        }
        match self.controller {
            Controller::Node => return Treatment::Stay,
            // Its controller makes it anew on the same node, cordoned or not: evicted once is enough.
            Controller::DaemonSet if self.asks == Some(Ask::Evict) && self.is_older_than(began) => {
                return Treatment::Evict;
            }
            Controller::DaemonSet => return Treatment::Stay,
            Controller::Workload if self.tolerates_cordon && !self.is_older_than(began) => return Treatment::Stay,
            Controller::Workload => {}
        }
        if !intent.evict || self.asks == Some(Ask::WaitCompleted) {
            return Treatment::Await;
        }
        // What the pod asks for is that nobody takes its node away. That is not asked any more.
        if !intent.is_planned() {
            return Treatment::Evict;
        }
        match self.pin {
            Some(Pin::OnCompletion) => Treatment::Await,
            Some(pin @ (Pin::DoNotDisrupt | Pin::NotSafeToEvict)) => Treatment::Keep(pin),
            Some(pin @ Pin::NotReplicated) if !intent.permits.force => Treatment::Keep(pin),
            _ if self.loses_data && !intent.permits.delete_emptydir_data => Treatment::Keep(Pin::LocalStorage),
            _ => Treatment::Evict,
        }
    }

    /// Kubernetes keeps the second in which it was made, not the moment.
    fn is_older_than(&self, began: Option<Instant>) -> bool {
        began.zip(self.created).is_none_or(|(began, created)| created + Duration::from_secs(1) <= began)
    }
}

impl From<&api::Pod> for Pod {
    fn from(pod: &api::Pod) -> Self {
        let metadata = &pod.metadata;
        let instant = |time: &k8s_openapi::apimachinery::pkg::apis::meta::v1::Time| {
            u64::try_from(time.0.as_millisecond()).map(Instant::from_millis).ok()
        };
        let grace = pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds);
        let grace = grace.and_then(|seconds| u64::try_from(seconds).ok()).map_or(DEFAULT_GRACE, Duration::from_secs);
        let label = |key: &str| metadata.labels.as_ref().and_then(|labels| labels.get(key)).map(String::as_str);
        let asks = DRAIN_LABELS.into_iter().find_map(|key| label(key).and_then(Ask::parse));
        Self {
            deletion: metadata.deletion_timestamp.as_ref().and_then(instant),
            finalizers: metadata.finalizers.clone().unwrap_or_default(),
            created: metadata.creation_timestamp.as_ref().and_then(instant),
            grace,
            order: annotation(pod, ORDER_ANNOTATION).and_then(|order| order.parse().ok()).unwrap_or(0),
            asks: asks.or_else(|| evictable_daemon(pod).then_some(Ask::Evict)),
            loses_data: loses_data(pod),
            likeness: likeness(pod),
            ..Self::from(&kubernetes::Pod::from(pod))
        }
    }
}

fn tolerates_cordon(tolerations: &[Toleration]) -> bool {
    let cordon = Taint {
        key: "node.kubernetes.io/unschedulable".to_owned(),
        value: String::new(),
        effect: TaintEffect::NoSchedule,
    };
    tolerations.iter().any(|toleration| tolerates(toleration, &cordon))
}

/// A budget looks at labels, at the phase, and at whether the pod is ready.
fn likeness(pod: &api::Pod) -> Option<String> {
    let controller = owner(pod)?;
    let status = pod.status.as_ref();
    let phase = status.and_then(|status| status.phase.as_deref()).unwrap_or_default();
    let conditions = status.and_then(|status| status.conditions.as_ref());
    let ready = conditions.into_iter().flatten().any(|it| it.type_ == "Ready" && it.status == "True");
    let labels = pod.metadata.labels.iter().flatten().map(|(key, value)| format!(" {key}={value}"));
    Some(format!("{} {phase} {ready}{}", controller.uid, labels.collect::<String>()))
}

/// What can be told of it from there: its grace period is the default one.
impl From<&kubernetes::Pod> for Pod {
    fn from(pod: &kubernetes::Pod) -> Self {
        Self {
            uid: pod.uid.clone(),
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            controller: pod.controller,
            finished: pod.finished,
            deletion: pod.terminating.then_some(Instant::from_millis(u64::MAX)),
            grace: DEFAULT_GRACE,
            priority: pod.priority,
            pin: pod.pin,
            loses_data: pod.pin == Some(Pin::LocalStorage),
            has_claims: !pod.claims.is_empty(),
            tolerates_cordon: tolerates_cordon(&pod.tolerations),
            ..Self::default()
        }
    }
}

impl Ask {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "evict" => Some(Self::Evict),
            "skip" => Some(Self::Skip),
            "wait-completed" => Some(Self::WaitCompleted),
            _ => None,
        }
    }
}
