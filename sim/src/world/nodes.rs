//! Instances and Nodes: launched, booted, joined, ready; stopped, silent, gone. And what a scenario plans to go wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ebb_core::kubernetes::{Node, Taint, TaintEffect};
use ebb_core::view::Level;

use super::agents::Agent;
use super::{Happening, NodeState, World};
use crate::auto_scaling::{Launch, Lifecycle};
use crate::scenario::Disturbance;

/// Until the node controller finds a kubelet silent (`--node-monitor-grace-period`, 50 s; 40 s before Kubernetes 1.32).
const NODE_GRACE: Duration = Duration::from_secs(50);
/// Between an Auto Scaling group's attempts where there was no capacity. AWS does not say; observed to be minutes.
const LAUNCH_RETRY: Duration = Duration::from_secs(60);
/// "Spot Instance interruption notices": two minutes before the instance goes.
const SPOT_NOTICE: Duration = Duration::from_secs(120);
/// The kubelet's own taint until it is ready.
const NOT_READY: &str = "node.kubernetes.io/not-ready";

impl World<'_> {
    /// Before the run begins: the group's minimum is there and ready.
    pub(super) fn found(&mut self, group: usize) {
        let launched = self.groups[group].launch(self.now).instances;
        for instance in &mut self.groups[group].instances {
            instance.lifecycle = Lifecycle::InService;
        }
        self.observe_instances(group);
        for instance in launched {
            let node = self.join(group, &instance);
            self.become_ready(&node);
        }
    }

    /// The Auto Scaling group launches what it lacks.
    pub(crate) fn launch(&mut self, group: usize) {
        let launch = self.groups[group].launch(self.now);
        self.tell_of_launch(group, &launch, "desired capacity is above what is there");
        if launch.missing > 0 {
            let what = format!("cannot launch {} of {}, tries again", launch.missing, self.groups[group].name);
            self.step(Level::AutoScaling, what, format!("no capacity in {}", join(&launch.refused)));
            self.after(LAUNCH_RETRY, Happening::Launch { group });
        }
        self.boot(group, launch.instances);
    }

    /// It launches what it was asked for by name of the zone.
    pub(super) fn launch_in(&mut self, group: usize, zone: &str, count: u32, token: &str) -> Launch {
        let (launch, new) = self.groups[group].launch_in(zone, count, token);
        if new {
            self.tell_of_launch(group, &launch, "asked for");
            if launch.missing > 0 {
                let what = format!("cannot launch {} of {}", launch.missing, self.groups[group].name);
                self.step(Level::AutoScaling, what, format!("no capacity in {zone}"));
            }
            self.boot(group, launch.instances.clone());
        }
        launch
    }

    fn tell_of_launch(&mut self, group: usize, launch: &Launch, because: &str) {
        let name = self.groups[group].name.clone();
        self.observe_instances(group);
        if !launch.instances.is_empty() {
            let mut zones: BTreeMap<&str, u32> = BTreeMap::new();
            for instance in &self.groups[group].instances {
                if launch.instances.contains(&instance.id) {
                    *zones.entry(&instance.zone).or_default() += 1;
                }
            }
            let zones: Vec<_> = zones.iter().map(|(zone, count)| format!("{count} in {zone}")).collect();
            let count = launch.instances.len();
            let plural = if count == 1 { "instance" } else { "instances" };
            let what = format!("launches {count} {plural} of {name}: {}", zones.join(", "));
            let because = match launch.refused.len() {
                0 => because.to_owned(),
                _ => format!("no capacity in {}", join(&launch.refused)),
            };
            self.step(Level::AutoScaling, what, because);
        }
    }

    fn boot(&mut self, group: usize, instances: Vec<String>) {
        for instance in instances {
            let boot = self.chance.launch.span(self.scenario.times.launch);
            self.after(boot, Happening::Booted { group, instance });
        }
    }

    pub(super) fn booted(&mut self, group: usize, instance: &str) {
        let pending = self.groups[group].instance_mut(instance);
        let Some(found) = pending.filter(|found| found.lifecycle == Lifecycle::Pending) else { return };
        found.lifecycle = Lifecycle::InService;
        let node = self.join(group, instance);
        self.observe_joined(group, &node);
        let uid = self.nodes[&node].node.uid.clone();
        let ready = self.chance.node.span(self.scenario.times.ready);
        self.after(ready, Happening::NodeReady { node, uid });
    }

    /// The kubelet registers its Node. Returns its name.
    fn join(&mut self, group: usize, instance: &str) -> String {
        let name = self.groups[group].name.clone();
        let policy = &self.scenario.policy.groups[&name];
        let found = self.groups[group].instance_mut(instance);
        let zone = found.map(|found| found.zone.clone()).unwrap_or_default();
        let uid = self.new_uid();
        let number: u32 = uid.parse().unwrap_or_default();
        let mut labels = policy.labels.clone();
        labels.insert("topology.kubernetes.io/zone".to_owned(), zone.clone());
        let mut taints = policy.taints.clone();
        taints.push(Taint { key: NOT_READY.to_owned(), value: String::new(), effect: TaintEffect::NoSchedule });
        let node = Node {
            // As EC2's resource names are.
            name: format!("ip-10-{}-{}-{}", group, number / 250, number % 250 + 4),
            uid,
            instance: Some(instance.to_owned()),
            labels,
            taints,
            allocatable: policy.allocatable.clone(),
            ..Node::default()
        };
        let node_name = node.name.clone();
        let state = NodeState {
            // What the node keeps for itself rounds up to whole CPUs and to an eighth more memory.
            cpu_capacity: node.allocatable.amount("cpu").next_multiple_of(1000),
            memory_capacity: node.allocatable.amount("memory") / 8 * 9,
            version: 0,
            group,
            pods: BTreeSet::new(),
            agent: Agent::new(self.scenario.policy.idle.clone(), self.now),
            alive: true,
            node,
        };
        self.nodes.insert(node_name.clone(), state);
        self.node_changed(&node_name);
        node_name
    }

    pub(super) fn node_ready(&mut self, name: &str, uid: &str) {
        let there = self.nodes.get(name).is_some_and(|state| state.node.uid == *uid && state.alive);
        if there {
            self.become_ready(name);
            self.observe_node_ready(name);
        }
    }

    fn become_ready(&mut self, name: &str) {
        let Some(state) = self.nodes.get_mut(name) else { return };
        state.node.ready = true;
        state.node.taints.retain(|taint| taint.key != NOT_READY);
        self.node_changed(name);
        self.add_daemon(name);
        self.start_agent(name);
    }

    /// AWS has begun to stop an instance: it is shut down at once, and gone after a while.
    pub(super) fn instance_stops(&mut self, group: usize, instance: &str) {
        self.observe_instances(group);
        let gone = self.chance.launch.span(self.scenario.times.terminate);
        self.after(gone, Happening::InstanceGone { group, instance: instance.to_owned() });
        self.machine_stops(instance);
    }

    /// The machine behind an instance runs no more: no kubelet, no agent, no task.
    fn machine_stops(&mut self, instance: &str) {
        let Some(name) = self.node_of(instance) else { return };
        let Some(state) = self.nodes.get_mut(&name) else { return };
        state.alive = false;
        let uids: Vec<_> = state.pods.iter().cloned().collect();
        for uid in uids {
            let group = self.pods.get(&uid).and_then(|pod| pod.group);
            if let Some(group) = group {
                let lost = self.workers[group].ray.lose(&uid);
                self.observed.tasks_lost += lost as u64;
            }
        }
    }

    fn node_of(&self, instance: &str) -> Option<String> {
        let found = self.nodes.values().find(|state| state.node.instance.as_deref() == Some(instance));
        found.map(|state| state.node.name.clone())
    }

    /// The instance is gone; the cloud's controller deletes its Node, and with it go the pods.
    pub(super) fn instance_gone(&mut self, group: usize, instance: &str) {
        self.groups[group].instances.retain(|found| found.id != *instance);
        self.observe_instances(group);
        let Some(name) = self.node_of(instance) else { return };
        self.observe_node_gone(group, &name);
        let Some(state) = self.nodes.remove(&name) else { return };
        let deleted = crate::scheduler::Event::NodeDeleted { name: name.clone() };
        self.at(self.now, Happening::Scheduler(Box::new(deleted)));
        for uid in &state.pods {
            self.pod_gone(uid);
        }
        self.tell_coordinator(ebb_core::fleet::Event::NodeDeleted { name, uid: state.node.uid });
    }

    /// An instance fails without warning: its node is found silent after a while, and the group replaces it.
    pub(crate) fn instance_fails(&mut self, group: usize, instance: &str) {
        let Some(found) = self.groups[group].instance_mut(instance) else { return };
        found.lifecycle = Lifecycle::Terminating;
        self.machine_stops(instance);
        self.observe_instances(group);
        self.after(NODE_GRACE, Happening::InstanceGone { group, instance: instance.to_owned() });
        self.after(NODE_GRACE, Happening::Launch { group });
    }

    /// Somebody else cordons a node, or takes that back. `false`: it was so already.
    pub(crate) fn cordon(&mut self, name: &str, unschedulable: bool) -> bool {
        let Some(state) = self.nodes.get_mut(name) else { return false };
        // A drain of Ebb's that found this cordon leaves it; one that made its own would lose it here.
        let ours = state.node.progress.as_ref().is_some_and(|progress| progress.cordoned_by_us);
        if state.node.unschedulable == unschedulable || ours {
            return false;
        }
        state.node.unschedulable = unschedulable;
        self.node_changed(name);
        true
    }

    pub(super) fn disturb(&mut self, index: usize, begins: bool) {
        let position = |name: &String| self.groups.iter().position(|group| group.name == *name);
        match &self.scenario.disturbances[index] {
            Disturbance::NoCapacity { group, zone, .. } => {
                let Some(at) = position(group) else { return };
                let exhausted = &mut self.groups[at].exhausted;
                let what = if begins {
                    exhausted.insert(zone.clone());
                    format!("has no capacity for {group} in {zone}")
                } else {
                    exhausted.remove(zone);
                    format!("has capacity for {group} in {zone} again")
                };
                self.step(Level::AutoScaling, what, "");
            }
            Disturbance::SpotReclaim { group, instances, .. } => {
                let Some(at) = position(group) else { return };
                let live = self.groups[at].instances.iter().filter(|found| found.lifecycle == Lifecycle::InService);
                let chosen: Vec<_> = live.take(*instances as usize).map(|found| found.id.clone()).collect();
                let what = format!("takes back {} instances of {group}", chosen.len());
                self.step(Level::AutoScaling, what, "spot capacity is wanted elsewhere");
                for instance in chosen {
                    // With today's rules nobody acts on the notice: the machine runs until it ends.
                    self.after(SPOT_NOTICE, Happening::InstanceGone { group: at, instance });
                }
                self.after(SPOT_NOTICE, Happening::Launch { group: at });
            }
            Disturbance::SilentAgent { group, .. } => {
                let Some(at) = position(group) else { return };
                let what = if begins { "falls silent" } else { "reports again" };
                let chosen = if begins {
                    self.nodes
                        .values_mut()
                        .filter(|state| state.group == at && state.alive)
                        .min_by_key(|state| state.node.uid.clone())
                } else {
                    self.nodes.values_mut().find(|state| state.group == at && state.agent.silent)
                };
                let Some(state) = chosen else { return };
                state.agent.silent = begins;
                let name = state.node.name.clone();
                self.step(Level::Kubernetes, format!("the agent of {name} {what}"), "");
            }
        }
    }
}

impl Disturbance {
    /// When it begins and ends, after the start; `None`: it does not end.
    pub(super) fn span(&self) -> (Duration, Option<Duration>) {
        match self {
            Self::NoCapacity { from, until, .. } | Self::SilentAgent { from, until, .. } => (*from, Some(*until)),
            Self::SpotReclaim { at, .. } => (*at, None),
        }
    }
}

fn join(zones: &BTreeSet<String>) -> String {
    zones.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
}
