//! The cluster as a coordinator tells it on its live page's event stream: the whole once, and then what changed
//! (`page/src/wire.rs`). CPU comes in thousandths of a core, memory in MiB, use in percent, time in milliseconds.

use std::collections::{BTreeMap, VecDeque};

use ebb_core::time::Instant;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::history::History;
use super::node::name;
use super::text::clean;

/// Decisions that are kept.
const STEPS: usize = 100;

#[derive(Debug, Default)]
pub(super) struct Cluster {
    pub(super) title: String,
    /// Who acts, by the number that a step carries.
    levels: Vec<String>,
    pub(super) head: Head,
    pub(super) groups: Vec<Group>,
    pub(super) nodes: BTreeMap<u32, Node>,
    pub(super) waiting: Waiting,
    /// The newest first.
    pub(super) steps: VecDeque<Step>,
    pub(super) nodes_counted: History,
    pub(super) pods_waiting: History,
}

/// One event of the stream. Absent is unchanged.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Update {
    full: Option<Full>,
    head: Option<Head>,
    groups: Option<Vec<Group>>,
    nodes: Vec<NodeUpdate>,
    gone: Vec<u32>,
    waiting: Option<Waiting>,
    steps: Vec<Step>,
    point: Option<Point>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Full {
    #[serde(deserialize_with = "name")]
    title: String,
    levels: Vec<String>,
    points: Vec<Point>,
}

/// When; tasks queued, pods waiting, nodes.
type Point = Vec<Option<f64>>;

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Head {
    #[serde(deserialize_with = "moment")]
    pub(super) now: Option<Instant>,
    pub(super) leading: bool,
    pub(super) synced: bool,
    pub(super) cost: Cost,
}

/// In millionths of a US dollar.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Cost {
    pub(super) total: Option<f64>,
    pub(super) per_hour: Option<f64>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Group {
    #[serde(deserialize_with = "name")]
    pub(super) name: String,
    #[serde(deserialize_with = "name")]
    pub(super) instance_type: String,
    pub(super) observed: bool,
    pub(super) min: u32,
    pub(super) max: u32,
    pub(super) desired: Option<u32>,
    pub(super) instances: u32,
}

#[derive(Debug, Deserialize)]
struct NodeUpdate {
    id: u32,
    name: Option<String>,
    state: Option<State>,
    #[serde(rename = "use")]
    used: Option<Used>,
    pods: Option<Vec<Pod>>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Node {
    pub(super) name: String,
    pub(super) state: State,
    pub(super) used: Used,
    pub(super) pods: Vec<Pod>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct State {
    #[serde(deserialize_with = "name")]
    pub(super) group: String,
    pub(super) ready: bool,
    pub(super) unschedulable: bool,
    pub(super) draining: bool,
    pub(super) drained: bool,
    #[serde(deserialize_with = "name")]
    pub(super) class: String,
    #[serde(deserialize_with = "name")]
    pub(super) why: String,
    #[serde(deserialize_with = "moment")]
    pub(super) since: Option<Instant>,
    /// Since when it has been busy without its GPUs.
    #[serde(deserialize_with = "moment")]
    pub(super) waste: Option<Instant>,
    pub(super) allocatable: Amounts,
    pub(super) requested: Amounts,
}

/// Shares of CPU, memory and the busiest GPU, 1 is all.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(from = "Vec<Option<f64>>")]
pub(super) struct Used {
    pub(super) cpu: Option<f64>,
    pub(super) memory: Option<f64>,
    pub(super) gpu: Option<f64>,
}

impl From<Vec<Option<f64>>> for Used {
    fn from(percent: Vec<Option<f64>>) -> Self {
        let share = |index| percent.get(index).copied().flatten().map(|percent: f64| percent / 100.0);
        Self { cpu: share(0), memory: share(1), gpu: share(2) }
    }
}

/// Cores, bytes, and whole GPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(from = "Vec<Option<f64>>")]
pub(super) struct Amounts {
    pub(super) cpu: Option<f64>,
    pub(super) memory: Option<f64>,
    pub(super) gpus: Option<f64>,
}

impl From<Vec<Option<f64>>> for Amounts {
    fn from(amounts: Vec<Option<f64>>) -> Self {
        let amount = |index| amounts.get(index).copied().flatten();
        let bytes = |mebibytes| mebibytes * 1024.0 * 1024.0;
        Self { cpu: amount(0).map(|millicores| millicores / 1000.0), memory: amount(1).map(bytes), gpus: amount(2) }
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(from = "Vec<Value>")]
pub(super) struct Pod {
    pub(super) name: String,
    pub(super) daemon: bool,
    pub(super) terminating: bool,
    pub(super) requests: Amounts,
}

impl From<Vec<Value>> for Pod {
    fn from(parts: Vec<Value>) -> Self {
        let flags = parts.get(1).and_then(Value::as_u64).unwrap_or(0);
        Self {
            name: parts.first().and_then(Value::as_str).map(clean).unwrap_or_default(),
            daemon: flags & 1 != 0,
            terminating: flags & 2 != 0,
            requests: parts.get(2).and_then(|amounts| serde_json::from_value(amounts.clone()).ok()).unwrap_or_default(),
        }
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Waiting {
    pub(super) total: usize,
    /// The longest waiting first; not all where there are many.
    pub(super) pods: Vec<WaitingPod>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct WaitingPod {
    #[serde(deserialize_with = "name")]
    pub(super) pod: String,
    #[serde(deserialize_with = "moment")]
    pub(super) since: Option<Instant>,
    pub(super) requests: Amounts,
    #[serde(deserialize_with = "name")]
    pub(super) because: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Step {
    #[serde(deserialize_with = "moment")]
    pub(super) at: Option<Instant>,
    level: usize,
    #[serde(deserialize_with = "name")]
    pub(super) what: String,
    #[serde(deserialize_with = "name")]
    pub(super) because: String,
}

impl Cluster {
    pub(super) fn take(&mut self, update: Update) {
        if let Some(full) = update.full {
            *self = Self {
                title: full.title,
                levels: full.levels.iter().map(|level| clean(level)).collect(),
                ..Self::default()
            };
            for point in full.points {
                self.count(&point);
            }
        }
        self.head = update.head.unwrap_or(std::mem::take(&mut self.head));
        self.groups = update.groups.unwrap_or(std::mem::take(&mut self.groups));
        self.waiting = update.waiting.unwrap_or(std::mem::take(&mut self.waiting));
        for change in update.nodes {
            let node = self.nodes.entry(change.id).or_default();
            node.name = change.name.map_or(std::mem::take(&mut node.name), |name| clean(&name));
            node.state = change.state.unwrap_or(std::mem::take(&mut node.state));
            node.used = change.used.unwrap_or(node.used);
            node.pods = change.pods.unwrap_or(std::mem::take(&mut node.pods));
        }
        for id in update.gone {
            self.nodes.remove(&id);
        }
        for step in update.steps {
            self.steps.push_front(step);
        }
        self.steps.truncate(STEPS);
        if let Some(point) = update.point {
            self.count(&point);
        }
    }

    fn count(&mut self, point: &[Option<f64>]) {
        self.pods_waiting.push(point.get(2).copied().flatten());
        self.nodes_counted.push(point.get(3).copied().flatten());
    }

    pub(super) fn level(&self, step: &Step) -> &str {
        self.levels.get(step.level).map_or("", String::as_str)
    }

    /// Of all nodes that serve: what there is, what is requested of it, and what is used where that is known.
    pub(super) fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for node in self.nodes.values() {
            let State { allocatable, requested, .. } = &node.state;
            totals.cpu.add(allocatable.cpu, requested.cpu, node.used.cpu);
            totals.memory.add(allocatable.memory, requested.memory, node.used.memory);
            totals.gpus.add(allocatable.gpus, requested.gpus, node.used.gpu);
        }
        totals
    }
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Totals {
    pub(super) cpu: Total,
    pub(super) memory: Total,
    pub(super) gpus: Total,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Total {
    pub(super) allocatable: f64,
    requested: f64,
    used: f64,
    /// The part of what is allocatable whose use is known.
    observed: f64,
}

impl Total {
    fn add(&mut self, allocatable: Option<f64>, requested: Option<f64>, used: Option<f64>) {
        let allocatable = allocatable.unwrap_or(0.0);
        self.allocatable += allocatable;
        self.requested += requested.unwrap_or(0.0);
        if let Some(used) = used {
            self.used += used * allocatable;
            self.observed += allocatable;
        }
    }

    pub(super) fn requested(self) -> Option<f64> {
        (self.allocatable > 0.0).then(|| self.requested / self.allocatable)
    }

    /// Mean over the nodes whose agents say so.
    pub(super) fn used(self) -> Option<f64> {
        (self.observed > 0.0).then(|| self.used / self.observed)
    }
}

fn moment<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Instant>, D::Error> {
    let millis = Value::deserialize(deserializer)?;
    Ok(millis.as_u64().map(Instant::from_millis))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn update(json: &str) -> Update {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn what_is_absent_is_unchanged_and_a_whole_begins_anew() {
        let mut cluster = Cluster::default();
        cluster.take(update(
            r#"{"full": {"title": "t", "levels": ["Ebb"]}, "nodes": [
                {"id": 1, "name": "a", "state": {"class": "idle", "allocatable": [4000, 1024, 0]}, "use": [50, null],
                 "pods": [["ns/p", 3, [500, 64, 0]]]},
                {"id": 2, "name": "b"}]}"#,
        ));
        cluster.take(update(r#"{"nodes": [{"id": 1, "use": [100]}], "gone": [2], "steps": [{"level": 0}]}"#));
        let node = &cluster.nodes[&1];
        assert_eq!((&*node.name, &*node.state.class), ("a", "idle"));
        assert_eq!((node.used.cpu, node.used.memory), (Some(1.0), None));
        assert!(node.pods[0].daemon && node.pods[0].terminating);
        assert_eq!(node.pods[0].requests.cpu, Some(0.5));
        assert_eq!((cluster.nodes.len(), cluster.level(&cluster.steps[0])), (1, "Ebb"));
        assert_eq!(cluster.totals().cpu.used(), Some(1.0));
        assert_eq!(cluster.totals().gpus.used(), None);
        cluster.take(update(r#"{"full": {"title": "other"}}"#));
        assert!(cluster.nodes.is_empty() && cluster.steps.is_empty());
    }
}
