//! Agents' pods that an earlier Node of the same name has left over.
//!
//! A token of such a pod names its Node, and constrained impersonation compares names: it would be worth the new one. It
//! ends with its pod, and where the new Node is there at once nobody else deletes that.

use super::{Action, Fleet, Target};
use crate::agenda::Agenda;
use crate::kubernetes::AgentPod;
use crate::reason::Reason;

impl Fleet {
    pub(super) fn delete_left_over(&self, agenda: &mut Agenda) -> Vec<Action> {
        let left_over = |pod: &&AgentPod| {
            let node = self.nodes.get(&pod.node).map(|member| &member.node);
            // A DaemonSet makes its pods for Nodes that are there.
            node.and_then(|node| node.created.zip(pod.created)).is_some_and(|(node, pod)| pod < node)
        };
        let mut actions = Vec::new();
        for pod in self.agents.values().filter(left_over) {
            if self.ready(agenda, &Target::Pod(pod.uid.clone())) {
                actions.push(Action::DeletePod {
                    namespace: pod.namespace.clone(),
                    pod: pod.name.clone(),
                    uid: pod.uid.clone(),
                    because: Reason::LeftOver { node: pod.node.clone() },
                });
            }
        }
        actions
    }
}
