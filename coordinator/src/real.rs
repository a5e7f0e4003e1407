//! The real world that actions change: which call goes to AWS, and which to the API server.

use ebb_core::fleet::Action;

use crate::autoscaling::AutoScaling;
use crate::effects::{CallError, Outcome, Outside};
use crate::kubernetes::Kubernetes;

/// AWS and the cluster.
pub struct Real {
    pub autoscaling: AutoScaling,
    pub kubernetes: Kubernetes,
}

impl Outside for Real {
    async fn call(&self, action: &Action) -> Result<Outcome, CallError> {
        match action {
            Action::CancelDrain { node, uid, id, .. } => self.kubernetes.cancel_drain(node, uid, id).await?,
            Action::CompleteLifecycle { group, instance, hook, .. } => {
                self.autoscaling.complete(group, instance, hook).await?;
            }
            Action::Describe { groups, .. } => return self.autoscaling.describe(groups).await.map(Outcome::Groups),
            Action::Drain { node, uid, intent, .. } => self.kubernetes.drain(node, uid, intent).await?,
            Action::Explain { namespace, pod, uid, because } => {
                self.kubernetes.explain(namespace, pod, uid, because).await?;
            }
            Action::Heartbeat { group, instance, hook } => self.autoscaling.heartbeat(group, instance, hook).await?,
            Action::Launch { group, zone, from, to, token, .. } => {
                return self.autoscaling.launch(group, zone, *from, *to, token).await;
            }
            Action::SetDesired { group, from, to, .. } => self.autoscaling.set_desired(group, *from, *to).await?,
            Action::ShowBuffer { namespace, name, uid, status } => {
                self.kubernetes.show_buffer(namespace, name, uid, status).await?;
            }
            Action::Terminate { instance, .. } => self.autoscaling.terminate(instance).await?,
        }
        let tell = |node: &str, uid, because| self.kubernetes.tell_of_node(node, uid, &action.describe(), because);
        match action {
            Action::CancelDrain { node, uid, because, .. } | Action::Drain { node, uid, because, .. } => {
                tell(node, Some(uid.as_str()), because);
            }
            Action::CompleteLifecycle { node, because, .. } if !node.is_empty() => tell(node, None, because),
            Action::Terminate { node, because, .. } => tell(node, None, because),
            _ => {}
        }
        Ok(Outcome::Done)
    }
}
