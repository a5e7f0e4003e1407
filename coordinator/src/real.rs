//! The real world that actions change: which call goes to AWS, which to the API server, and which to a Ray cluster's head.

use std::collections::BTreeMap;
use std::sync::Arc;

use ebb_core::fleet::{Action, Failure};
use ebb_core::ray::Problem;
use ebb_core::reason::Reason;

use crate::autoscaling::AutoScaling;
use crate::effects::{CallError, Outcome, Outside};
use crate::kubernetes::Kubernetes;
use crate::ray::{self, Gcs};

/// AWS, the cluster and its Ray clusters.
pub struct Real {
    pub autoscaling: AutoScaling,
    pub kubernetes: Kubernetes,
    /// By the clusters' names in the configuration.
    pub(crate) ray: BTreeMap<String, Arc<Gcs>>,
}

impl Real {
    fn gcs(&self, cluster: &str) -> Result<&Gcs, CallError> {
        let gone = || CallError { failure: Failure::NotFound, detail: format!("{cluster} is not configured") };
        self.ray.get(cluster).map(AsRef::as_ref).ok_or_else(gone)
    }
}

impl From<ray::Error> for CallError {
    fn from(error: ray::Error) -> Self {
        let failure = match error.problem() {
            Problem::Late | Problem::Unreachable => Failure::Unavailable,
            Problem::Unauthenticated => Failure::Denied,
            Problem::Malformed => Failure::Rejected,
        };
        Self { failure, detail: format!("call a Ray cluster's head: {error}") }
    }
}

impl Outside for Real {
    async fn call(&self, action: &Action) -> Result<Outcome, CallError> {
        match action {
            Action::CancelDrain { node, uid, id, .. } => self.kubernetes.cancel_drain(node, uid, id).await?,
            Action::CompleteLifecycle { group, instance, hook, .. } => {
                self.autoscaling.complete(group, instance, hook).await?;
            }
            Action::DeletePod { namespace, pod, uid, .. } => {
                self.kubernetes.delete_pod(namespace, pod, uid).await?;
            }
            Action::Describe { groups, .. } => return self.autoscaling.describe(groups).await.map(Outcome::Groups),
            Action::Drain { node, uid, intent, .. } => self.kubernetes.drain(node, uid, intent).await?,
            Action::DrainRayNode { cluster, node, why, deadline, because, .. } => {
                let answer = self.gcs(cluster)?.drain(node, *why, &because.to_string(), *deadline).await?;
                return Ok(Outcome::RayNodeDrained(answer));
            }
            Action::Explain { namespace, pod, uid, because } => {
                self.kubernetes.explain(namespace, pod, uid, because).await?;
            }
            Action::Heartbeat { group, instance, hook } => self.autoscaling.heartbeat(group, instance, hook).await?,
            Action::Launch { group, zone, from, to, token, .. } => {
                return self.autoscaling.launch(group, zone, *from, *to, token).await;
            }
            Action::ReportRay { cluster, version, launches } => self.gcs(cluster)?.report(*version, launches).await?,
            Action::ScaleRayCluster { cluster, resource_version, groups, .. } => {
                self.kubernetes.scale_ray_cluster(cluster, resource_version, groups).await?;
            }
            Action::SetDesired { group, from, to, .. } => self.autoscaling.set_desired(group, *from, *to).await?,
            Action::ShowBuffer { namespace, name, uid, status } => {
                self.kubernetes.show_buffer(namespace, name, uid, status).await?;
            }
            Action::SetPodDeletionCost { namespace, pod, uid, cost } => {
                self.kubernetes.set_pod_deletion_cost(namespace, pod, uid, *cost).await?;
            }
            Action::ShowRayWorkerGroup { namespace, name, uid, status } => {
                self.kubernetes.show_ray_worker_group(namespace, name, uid, status).await?;
            }
            Action::Terminate { instance, .. } => self.autoscaling.terminate(instance).await?,
        }
        let tell = |node: &str, uid, because| self.kubernetes.tell_of_node(node, uid, &action.describe(), because);
        match action {
            Action::CancelDrain { node, uid, because, .. } | Action::Drain { node, uid, because, .. } => {
                tell(node, Some(uid.as_str()), because);
            }
            Action::DeletePod { because: because @ Reason::LeftOver { node }, .. } => tell(node, None, because),
            Action::CompleteLifecycle { node, because, .. } if !node.is_empty() => tell(node, None, because),
            Action::Terminate { node, because, .. } => tell(node, None, because),
            _ => {}
        }
        Ok(Outcome::Done)
    }
}
