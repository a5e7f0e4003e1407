//! Takes events into the picture.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::lifecycle::Held;
use super::{
    Action, Decided, Event, Failure, Fleet, GroupState, Heard, Instance, Member, Target, Written, buffers, census,
};
use crate::buffer;
use crate::classify::{Class, Missing};
use crate::intent::Intent;
use crate::kubernetes::{Node, Pod};
use crate::launch::LaunchFailure;
use crate::reason::Reason;
use crate::report::Report;
use crate::time::Instant;

/// How long a node whose drain was given up is left in peace: Cluster Autoscaler's `unremovable-node-recheck-timeout`.
const SPARED: Duration = Duration::from_secs(5 * 60);

/// How long instances are not launched one by one in a group where the API has refused it: it has no launch template, or
/// rights are missing, and somebody may mend that.
const LAUNCHES_REFUSED: Duration = Duration::from_secs(60 * 60);

/// How long a watch may lag behind our own writes. Seconds are rare even on a loaded API server.
pub(super) const WATCH_LAG: Duration = Duration::from_secs(10);

/// When the rules should look at what has changed.
#[derive(PartialEq)]
pub(super) enum Soon {
    /// With what else comes within the batch window.
    Batch,
    /// A pod has begun to wait: when no more follows.
    Burst,
    Now,
}

impl Fleet {
    /// Takes the event into the picture. `None`: it changes nothing that the rules look at.
    pub(super) fn absorb(&mut self, now: Instant, event: Event) -> Option<Soon> {
        match event {
            Event::Buffer(change) => self.buffer_changed(change),
            Event::Done(action) => self.done(now, action),
            Event::Failed { action, failure } => {
                self.failed(now, action, failure);
                Some(Soon::Now)
            }
            Event::Groups { asked, groups } => self.described(now, &asked, groups),
            Event::Launched { asked, instances, failures } => self.launched(now, &asked, instances, failures),
            Event::Leading(leading) => {
                self.leading = leading;
                Some(Soon::Now)
            }
            Event::Remembered(memory) => {
                self.memory = Some(memory);
                self.recall(now);
                Some(Soon::Now)
            }
            Event::AgentPodApplied(pod) => {
                self.agents.insert(pod.uid.clone(), pod);
                Some(Soon::Batch)
            }
            Event::AgentPodDeleted { uid } => {
                self.agents.remove(&uid);
                None
            }
            Event::NodeApplied(node) => self.node_applied(now, node),
            Event::NodeDeleted { name, uid } => {
                let gone = self.nodes.get(&name).is_some_and(|member| member.node.uid == uid);
                let member = gone.then(|| self.nodes.remove(&name))??;
                self.forget_instance(&member.node);
                Some(Soon::Batch)
            }
            Event::PodApplied(pod) => self.pod_applied(now, pod),
            Event::PodDeleted { uid } => self.pod_deleted(now, &uid),
            Event::PodDisruptionBudget(change) => self.pod_disruption_budgets.apply(change).then_some(Soon::Batch),
            Event::Ray { cluster, answer } => self.ray_answered(now, cluster, answer),
            Event::RayCluster { name, object } => {
                self.ray_cluster_changed(&name, object);
                Some(Soon::Batch)
            }
            Event::RayNodeDrained { asked, answer } => {
                self.ray_node_drained(now, &asked, &answer);
                Some(Soon::Now)
            }
            Event::RayWorkerGroup(change) => {
                self.ray_scale_changed(change);
                Some(Soon::Batch)
            }
            Event::Storage(change) => {
                let mut matters = false;
                for uid in self.storage.apply(change) {
                    let Some(pod) = self.pods.get(&uid) else { continue };
                    let needs = self.storage.needs(&pod.like.namespace, &pod.like.claims);
                    matters |= self.pods.set_needs(&uid, needs);
                }
                matters.then_some(Soon::Batch)
            }
            Event::Report(report) => self.reported(now, report),
            Event::Synced(synced) => {
                self.synced = synced;
                // Whether a node stayed empty through the gap is not known.
                let names: Vec<_> = self.nodes.keys().cloned().collect();
                for name in names {
                    self.forget_emptiness(now, &name);
                }
                self.recall(now);
                Some(Soon::Now)
            }
            Event::Tick => None,
        }
    }

    fn recall(&mut self, now: Instant) {
        if let Some(memory) = self.memory.take_if(|_| self.synced) {
            self.remember(now, &memory);
        }
    }

    fn done(&mut self, now: Instant, action: Action) -> Option<Soon> {
        for target in action.targets() {
            self.calls.remove(&target);
        }
        match action {
            Action::SetDesired { group, to, .. } => {
                let group = self.groups.get_mut(&group)?;
                group.decided = Some(Decided { desired: to, at: now });
                group.short_since = Some(now);
            }
            Action::Terminate { group, instance, .. } => {
                let group = self.groups.get_mut(&group)?;
                let desired = group.desired()?.saturating_sub(1);
                group.decided = Some(Decided { desired, at: now });
                group.terminated.insert(instance);
            }
            Action::Drain { node, uid, intent, .. } => self.written(now, &node, &uid, Some(intent)),
            Action::CancelDrain { node, uid, because, .. } => {
                // One that runs out is no less idle for having been needed: asked again at once, it would come and go.
                let ran_out = self.nodes.get(&node).is_some_and(|member| member.runs_out(now));
                self.written(now, &node, &uid, None);
                let spare = ran_out || because == Reason::DrainGivenUp;
                if let Some(member) = self.nodes.get_mut(&node).filter(|_| spare) {
                    member.spared_until = Some(now + SPARED);
                }
            }
            Action::Heartbeat { group, instance, .. } => {
                self.groups.get_mut(&group)?.held.get_mut(&instance)?.has_heartbeat(now);
            }
            Action::CompleteLifecycle { group, instance, .. } => {
                self.groups.get_mut(&group)?.held.get_mut(&instance)?.is_completed();
            }
            Action::DeletePod { uid, .. } => _ = self.agents.remove(&uid),
            Action::Describe { .. } | Action::DrainRayNode { .. } | Action::Launch { .. } => {}
            Action::ScaleRayCluster { cluster, resource_version, .. } => {
                self.ray_scaled(now, &cluster, &resource_version);
            }
            Action::ReportRay { cluster, launches, .. } => {
                self.ray_told(now, &cluster, launches);
                return Some(Soon::Batch);
            }
            Action::SetPodDeletionCost { uid, cost, .. } => {
                self.deletion_cost_set(uid, cost);
                return Some(Soon::Batch);
            }
            Action::ShowRayWorkerGroup { namespace, name, uid, status } => {
                let (scale, told) = self.ray_scales.get_mut(&(namespace, name))?;
                if scale.uid == uid {
                    *told = Some(status);
                }
                return Some(Soon::Batch);
            }
            Action::Explain { .. } => return None,
            Action::ShowBuffer { namespace, name, uid, status } => {
                let known = self.buffers.get_mut(&(namespace, name)).filter(|known| known.buffer.uid == uid)?;
                known.told = Some((status, now));
                return Some(Soon::Batch);
            }
        }
        Some(Soon::Now)
    }

    fn buffer_changed(&mut self, change: buffer::Change) -> Option<Soon> {
        match change {
            buffer::Change::Applied(buffer) => {
                let key = (buffer.namespace.clone(), buffer.name.clone());
                let known = self.buffers.get(&key);
                if known.is_some_and(|known| known.buffer == *buffer) {
                    return None;
                }
                let told = known.filter(|known| known.buffer.uid == buffer.uid).and_then(|known| known.told.clone());
                self.buffers.insert(key, buffers::Known { buffer: *buffer, told });
            }
            buffer::Change::Deleted { namespace, name } => {
                let key = (namespace, name);
                self.buffers.remove(&key)?;
                self.calls.remove(&Target::Buffer(key));
            }
        }
        Some(Soon::Batch)
    }

    fn failed(&mut self, now: Instant, action: Action, failure: Failure) {
        self.forget_what_was_said(&action);
        for target in action.targets() {
            if let Target::Group(name) = &target
                && let Some(group) = self.groups.get_mut(name)
            {
                if matches!(action, Action::Launch { .. }) && matches!(failure, Failure::Denied | Failure::Rejected) {
                    // There is another way to ask.
                    group.launches_refused_until = Some(now + LAUNCHES_REFUSED);
                    self.calls.remove(&target);
                    continue;
                }
                // It is not as we thought, or the call took effect and only its reply was lost.
                if !matches!(failure, Failure::Denied | Failure::Throttled) {
                    group.asked_at = None;
                }
                if matches!(failure, Failure::Conflict | Failure::Unavailable) {
                    group.unanswered = Some(action.clone());
                }
            }
            let call = self.calls.entry(target).or_default();
            call.failures += 1;
            call.retry_at = Some(now + failure.backoff(call.failures));
        }
        if let Action::Drain { node, uid, intent, .. } = action
            && matches!(failure, Failure::Conflict | Failure::Unavailable)
        {
            // It may stand there, now or from an earlier try: until the watch must have shown it, no other
            // node is asked in its place.
            self.written(now, &node, &uid, Some(intent));
        }
    }

    /// What others were told last is not known after a call that failed: it may have taken effect.
    fn forget_what_was_said(&mut self, action: &Action) {
        match action {
            Action::ReportRay { cluster, .. } => {
                if let Some(known) = self.ray.get_mut(cluster) {
                    known.told = None;
                }
            }
            Action::SetPodDeletionCost { uid, .. } => {
                self.deletion_costs.remove(uid);
            }
            Action::ShowBuffer { namespace, name, .. } => {
                if let Some(known) = self.buffers.get_mut(&(namespace.clone(), name.clone())) {
                    known.told = None;
                }
            }
            Action::ShowRayWorkerGroup { namespace, name, .. } => {
                if let Some((_, told)) = self.ray_scales.get_mut(&(namespace.clone(), name.clone())) {
                    *told = None;
                }
            }
            _ => {}
        }
    }

    fn launched(
        &mut self,
        now: Instant,
        asked: &Action,
        instances: Vec<String>,
        failures: Vec<String>,
    ) -> Option<Soon> {
        let Action::Launch { group, zone, from, .. } = asked else { return None };
        self.calls.remove(&Target::Group(group.clone()));
        let group = self.groups.get_mut(group)?;
        group.unanswered = None;
        let failures: Vec<_> = failures.into_iter().map(|message| LaunchFailure { at: now, message }).collect();
        group.failures_in.entry(zone.clone()).or_default().told(now, &failures, !instances.is_empty());
        if instances.is_empty() {
            return Some(Soon::Now);
        }
        let desired = from + u32::try_from(instances.len()).unwrap_or(u32::MAX);
        group.decided = Some(Decided { desired, at: now });
        // They are there, though no description shows them yet.
        if let Some(observed) = &mut group.observed {
            for id in instances {
                group.first_seen.entry(id.clone()).or_insert(now);
                observed.instances.push(Instance { id, live: true, waits: false, zone: Some(zone.clone()) });
            }
        }
        Some(Soon::Now)
    }

    fn written(&mut self, now: Instant, node: &str, uid: &str, intent: Option<Intent>) {
        if let Some(member) = self.nodes.get_mut(node).filter(|member| member.node.uid == uid) {
            member.written = Some(Written { intent, until: now + WATCH_LAG });
        }
    }

    fn described(&mut self, now: Instant, asked: &Action, states: Vec<GroupState>) -> Option<Soon> {
        let Action::Describe { groups, at } = asked else { return None };
        self.calls.remove(&Target::Describe);
        let mut states: BTreeMap<_, _> = states.into_iter().map(|state| (state.name.clone(), state)).collect();
        for name in groups {
            let Some(group) = self.groups.get_mut(name) else { continue };
            let state = states.remove(name);
            let described: BTreeSet<_> = state.iter().flat_map(|state| &state.instances).map(|i| &i.id).collect();
            group.first_seen.retain(|id, _| described.contains(id));
            group.terminated.retain(|id| described.contains(id));
            let mut came = false;
            for instance in state.iter().flat_map(|state| &state.instances) {
                came |= !group.first_seen.contains_key(&instance.id);
                group.first_seen.entry(instance.id.clone()).or_insert(now);
            }
            let waits = state.iter().flat_map(|state| &state.instances).filter(|instance| instance.waits);
            let waits: BTreeSet<_> = waits.map(|instance| instance.id.clone()).collect();
            group.held.retain(|id, _| waits.contains(id));
            waits.into_iter().for_each(|id| _ = group.held.entry(id).or_insert(Held::new(now)));
            group.observed = state;
            group.asked_at = Some(*at);
            group.unanswered.take_if(|call| !call.may_be_unseen_in(group.observed.as_ref()));
            let Some(state) = &group.observed else { continue };
            group.failures.told(now, &state.failures, came);
            let short = group.live().count() < group.desired().unwrap_or(0) as usize;
            group.short_since = short.then(|| group.short_since.filter(|_| !came).unwrap_or(now));
            let policy = &self.policy.groups[name];
            let nodes = group.live().filter_map(|instance| self.nodes.get(self.node_of.get(&instance.id)?));
            if let Some(member) = nodes.filter(|member| !census::is_starting(member, policy)).last() {
                group.shown = Some(member.node.allocatable.clone());
            }
            group.learn_template(policy);
        }
        Some(Soon::Now)
    }

    fn node_applied(&mut self, now: Instant, node: Node) -> Option<Soon> {
        let name = node.name.clone();
        if let Some(before) = self.nodes.get(&name).filter(|member| member.node.instance != node.instance) {
            let before = before.node.clone();
            self.forget_instance(&before);
        }
        if let Some(instance) = &node.instance {
            self.node_of.insert(instance.clone(), name.clone());
        }
        match self.nodes.get_mut(&name) {
            Some(member) if member.node == node => return None,
            Some(member) if member.node.uid == node.uid => {
                member.written.take_if(|written| written.intent == node.intent);
                member.node = node;
            }
            // New, or another node of the same name, of which nothing has been heard.
            _ => {
                let member = Member {
                    node,
                    first_seen: now,
                    written: None,
                    heard: None,
                    empty_since: None,
                    quiet_since: None,
                    spared_until: None,
                };
                self.nodes.insert(name.clone(), member);
                self.forget_emptiness(now, &name);
            }
        }
        Some(Soon::Batch)
    }

    fn forget_instance(&mut self, node: &Node) {
        if let Some(instance) = &node.instance
            && self.node_of.get(instance) == Some(&node.name)
        {
            self.node_of.remove(instance);
        }
    }

    fn pod_applied(&mut self, now: Instant, mut pod: Pod) -> Option<Soon> {
        // Of 150 000 pods' addresses only these are ever looked for.
        if !self.is_ray_worker(&pod) {
            pod.ip = None;
        }
        pod.needs = self.storage.needs(&pod.namespace, &pod.claims);
        self.storage.uses(&pod.uid, &pod.namespace, &pod.claims);
        if pod.waits_since().is_none() {
            self.explained.remove(&pod.uid);
        }
        let (node, waits) = (pod.node.clone(), pod.waits_since().is_some());
        if !self.pods.apply(pod) {
            return None;
        }
        if let Some(node) = node {
            self.update_emptiness(now, &node);
        }
        Some(if waits { Soon::Burst } else { Soon::Batch })
    }

    fn pod_deleted(&mut self, now: Instant, uid: &str) -> Option<Soon> {
        let (pod, node) = self.pods.remove(uid)?;
        self.storage.forgets(uid, &pod.like.namespace, &pod.like.claims);
        self.explained.remove(uid);
        self.deletion_costs.remove(uid);
        if let Some(node) = node {
            self.update_emptiness(now, &node);
        }
        Some(Soon::Batch)
    }

    fn reported(&mut self, now: Instant, report: Report) -> Option<Soon> {
        let timeout = self.policy.scale_down.report_timeout;
        let member = self.nodes.get_mut(&report.node).filter(|member| member.node.uid == report.node_uid)?;
        let before = member.heard.take();
        if before.as_ref().is_some_and(|before| !report.is_newer_than(&before.report)) {
            member.heard = before;
            return None;
        }
        let before = before.filter(|before| now.since(before.at) < timeout);
        let heard = member.heard.insert(Heard { report, at: now });
        let quiet_since = member.quiet_since.filter(|_| before.is_some());
        member.quiet_since = match heard.report.class {
            Class::Idle { since } => Some(quiet_since.unwrap_or_else(|| heard.by_our_clock(since))),
            Class::Unknown { missing: Missing::Initialization, .. } => quiet_since,
            Class::Busy { .. } | Class::Unknown { .. } => None,
        };
        // Most reports only say that nothing has changed.
        let same = before.is_some_and(|before| before.report.class == heard.report.class);
        (!same).then_some(Soon::Batch)
    }

    /// Whether the node came after the groups were last described, so that it is not known whose it is.
    pub(super) fn is_newcomer(&self, member: &Member) -> bool {
        let Some(instance) = &member.node.instance else { return false };
        !self.groups.values().any(|group| group.first_seen.contains_key(instance))
            && self.groups.values().any(|group| group.asked_at.is_none_or(|asked| asked < member.first_seen))
    }

    fn update_emptiness(&mut self, now: Instant, node: &str) {
        let held = self.pods.on(node).any(|pod| pod.like.holds_node());
        if let Some(member) = self.nodes.get_mut(node) {
            member.empty_since = if held { None } else { Some(member.empty_since.unwrap_or(now)) };
        }
    }

    fn forget_emptiness(&mut self, now: Instant, node: &str) {
        if let Some(member) = self.nodes.get_mut(node) {
            member.empty_since = None;
        }
        self.update_emptiness(now, node);
    }
}
