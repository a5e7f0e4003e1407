//! The picture for people, metrics and pages.

use std::collections::BTreeMap;

use super::Fleet;
use crate::kubernetes::Controller;
use crate::resources::Resources;
use crate::time::Instant;
use crate::view;

impl Fleet {
    /// The picture for people and pages.
    pub fn view(&self, now: Instant) -> view::Cluster {
        self.picture(now, true)
    }

    /// As [`Self::view`], but for the nodes' pods, which are most of the picture.
    pub fn outline(&self, now: Instant) -> view::Cluster {
        self.picture(now, false)
    }

    fn picture(&self, now: Instant, with_pods: bool) -> view::Cluster {
        let mut group_of = BTreeMap::new();
        let groups = self.groups.iter().map(|(name, group)| {
            group_of.extend(group.live().map(|instance| (instance.id.as_str(), name)));
            let policy = &self.policy.groups[name];
            let bounds = group.observed.as_ref().map(|observed| observed.bounds(policy));
            let (min, max) = bounds.unwrap_or((policy.min, policy.max));
            view::Group {
                name: name.clone(),
                instance_type: policy.instance_type.clone(),
                observed: group.observed.is_some(),
                min,
                max,
                desired: group.desired(),
                instances: u32::try_from(group.live().count()).unwrap_or(u32::MAX),
                failing: self.failing.get(name).cloned(),
            }
        });
        let groups = groups.collect();
        let timeout = self.policy.scale_down.report_timeout;
        let ray_nodes = self.ray_nodes();
        let nodes = self.nodes.values().map(|member| {
            let node = &member.node;
            let mut requested = Resources::default();
            let running = self.pods.on(&node.name).filter(|pod| !pod.like.finished);
            running.clone().for_each(|pod| requested.add(&pod.like.requests));
            let (ray_workers, idle_ray_only) = ray_nodes.workers(running.clone());
            let pods = running.filter(|_| with_pods).map(|pod| view::Pod {
                name: pod.full_name(),
                daemon: pod.like.controller != Controller::Workload,
                terminating: pod.like.terminating,
                requests: pod.like.requests.clone(),
            });
            let pods = pods.collect();
            let heard = member.heard(now, timeout);
            view::Node {
                name: node.name.clone(),
                uid: node.uid.clone(),
                group: node.instance.as_deref().and_then(|instance| group_of.get(instance)).map(|name| (*name).clone()),
                ready: node.ready,
                unschedulable: node.unschedulable,
                draining: member.intent(now).is_some(),
                drained: node.drained,
                class: heard.map(|heard| heard.report.class),
                utilization: heard.map(|heard| heard.report.utilization),
                gpu_waste: heard.and_then(|heard| heard.report.gpu_waste),
                stays: self.stays.get(&node.name).cloned(),
                allocatable: node.allocatable.clone(),
                requested,
                pods,
                ray_workers,
                idle_ray_only,
            }
        });
        let waiting = self.pods.waiting().filter(|(pod, _)| pod.refused()).map(|(pod, since)| view::Waiting {
            pod: pod.full_name(),
            since,
            requests: pod.like.requests.clone(),
            because: self.explained.get(pod.uid.as_ref()).cloned(),
        });
        let mut waiting: Vec<_> = waiting.collect();
        waiting.sort_by(|a, b| (a.since, &a.pod).cmp(&(b.since, &b.pod)));
        let (leading, synced, nodes, ray) = (self.leading, self.synced, nodes.collect(), self.ray_picture(now));
        view::Cluster { leading, synced, groups, nodes, waiting, ray }
    }
}
