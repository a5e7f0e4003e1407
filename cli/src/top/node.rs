//! What an agent says of its node: the document of `GET /api/v1/node`, as far as it is shown. Agents of other versions
//! leave things out or add some; what is missing is unknown.

use std::collections::BTreeMap;

use ebb_core::time::Instant;
use serde::{Deserialize, Deserializer};

use super::text::clean;

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Node {
    #[serde(deserialize_with = "name")]
    pub(super) version: String,
    #[serde(deserialize_with = "name")]
    pub(super) node: String,
    #[serde(deserialize_with = "moment")]
    pub(super) sampled_at: Option<Instant>,
    pub(super) interval_seconds: Option<f64>,
    pub(super) class: Class,
    #[serde(deserialize_with = "name")]
    pub(super) because: String,
    #[serde(deserialize_with = "moment")]
    pub(super) gpu_waste_since: Option<Instant>,
    pub(super) sources: Vec<Source>,
    pub(super) node_cpu: Option<Cpu>,
    pub(super) cpus: Vec<Cpu>,
    pub(super) run_queue_cores: Option<f64>,
    pub(super) switches_per_second: Option<f64>,
    pub(super) memory: Option<Memory>,
    pub(super) pressure: BTreeMap<String, Stalled>,
    pub(super) gpus: Vec<Gpu>,
    pub(super) cgroups: Vec<Cgroup>,
}

impl Node {
    /// Cgroups that are somebody's own: not those that only hold others, nor those within a container.
    pub(super) fn users(&self) -> impl Iterator<Item = &Cgroup> {
        self.cgroups.iter().filter(|cgroup| cgroup.pod.is_empty() || !cgroup.container.is_empty())
    }

    /// Shares of time in which some, and in which all, tasks were stalled on this.
    pub(super) fn stalled(&self, resource: &str) -> (Option<f64>, Option<f64>) {
        let share = |permille: Option<f64>| permille.map(|permille| permille / 1000.0);
        let stalled = self.pressure.get(resource);
        stalled.map_or((None, None), |stalled| (share(stalled.some_permille), share(stalled.full_permille)))
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Class {
    #[serde(deserialize_with = "name")]
    pub(super) class: String,
    #[serde(deserialize_with = "moment")]
    pub(super) since: Option<Instant>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Source {
    #[serde(deserialize_with = "name")]
    pub(super) source: String,
    pub(super) up: bool,
    #[serde(deserialize_with = "name")]
    pub(super) why: String,
}

/// Shares of time in thousandths.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Cpu {
    pub(super) cpu: Option<u32>,
    pub(super) busy_permille: Option<f64>,
    pub(super) modes_permille: BTreeMap<String, f64>,
}

impl Cpu {
    pub(super) fn busy(&self) -> Option<f64> {
        self.busy_permille.map(|permille| permille / 1000.0)
    }

    /// Share of time in these modes together.
    pub(super) fn modes(&self, modes: &[&str]) -> Option<f64> {
        let known: Option<Vec<f64>> = modes.iter().map(|mode| self.modes_permille.get(*mode).copied()).collect();
        known.map(|permille| permille.into_iter().sum::<f64>() / 1000.0)
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Memory {
    pub(super) total_bytes: Option<f64>,
    pub(super) free_bytes: Option<f64>,
    pub(super) working_set_bytes: Option<f64>,
    pub(super) anon_bytes: Option<f64>,
    pub(super) file_bytes: Option<f64>,
    pub(super) swap_total_bytes: Option<f64>,
    pub(super) swap_free_bytes: Option<f64>,
}

impl Memory {
    /// Share that is in use: the working set.
    pub(super) fn used(&self) -> Option<f64> {
        self.share(self.working_set_bytes)
    }

    pub(super) fn share(&self, bytes: Option<f64>) -> Option<f64> {
        let total = self.total_bytes.filter(|total| *total > 0.0)?;
        Some(bytes? / total)
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Stalled {
    pub(super) some_permille: Option<f64>,
    pub(super) full_permille: Option<f64>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Cgroup {
    #[serde(deserialize_with = "name")]
    pub(super) path: String,
    /// Empty: of no pod.
    #[serde(deserialize_with = "name")]
    pub(super) pod: String,
    #[serde(deserialize_with = "name")]
    pub(super) container: String,
    pub(super) throttled_cores: Option<f64>,
    pub(super) cpu_cores: Option<f64>,
    pub(super) run_queue_cores: Option<f64>,
    /// By whose task came next.
    pub(super) preemptions_per_second: Option<BTreeMap<String, f64>>,
    pub(super) memory_bytes: Option<f64>,
    pub(super) memory_working_set_bytes: Option<f64>,
}

impl Cgroup {
    /// `NAMESPACE/POD CONTAINER`, or the path.
    pub(super) fn label(&self) -> String {
        if self.container.is_empty() {
            return self.path.clone();
        }
        // An id is long, and its beginning tells it from others.
        let is_id = self.container.len() == 64;
        let container = if is_id { self.container.get(..12).unwrap_or_default() } else { &self.container };
        format!("{} {container}", self.pod)
    }

    /// How often its tasks had to leave a CPU that they could have used, and for whom: the most frequent first.
    pub(super) fn preemptions(&self) -> Option<Vec<(f64, &'static str)>> {
        let named =
            [("same_pod", "own pod"), ("other_pod", "other pods"), ("system", "system"), ("unknown", "unknown")];
        let by = self.preemptions_per_second.as_ref()?;
        let rates = named.iter().filter_map(|(key, name)| Some((*by.get(*key)?, *name)));
        let mut rates: Vec<_> = rates.filter(|(rate, _)| *rate > 0.0).collect();
        rates.sort_by(|(a, _), (b, _)| b.total_cmp(a));
        Some(rates)
    }
}

/// One GPU, or in MIG mode all of one.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Gpu {
    #[serde(deserialize_with = "name")]
    pub(super) uuid: String,
    pub(super) index: Option<u32>,
    #[serde(deserialize_with = "name")]
    pub(super) model: String,
    pub(super) busy_permille: Option<f64>,
    #[serde(flatten)]
    pub(super) part: Part,
    pub(super) power_watts: Option<f64>,
    pub(super) temperature_celsius: Option<f64>,
    #[serde(deserialize_with = "name")]
    pub(super) verdict: String,
    #[serde(deserialize_with = "name")]
    pub(super) because: String,
    pub(super) mig_instances: Vec<Instance>,
}

impl Gpu {
    /// Share of time with a kernel running. NVML has none of a GPU that is split into MIG instances.
    pub(super) fn busy(&self) -> Option<f64> {
        self.busy_permille.map(|permille| permille / 1000.0)
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Instance {
    #[serde(deserialize_with = "name")]
    pub(super) profile: String,
    #[serde(flatten)]
    pub(super) part: Part,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Part {
    pub(super) sm_active_permille: Option<f64>,
    pub(super) memory_used_bytes: Option<f64>,
    pub(super) memory_total_bytes: Option<f64>,
    /// `None`: nobody can say who holds it.
    pub(super) processes: Option<Vec<Process>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Process {
    pub(super) pid: Option<u32>,
    #[serde(deserialize_with = "name")]
    pub(super) namespace: String,
    #[serde(deserialize_with = "name")]
    pub(super) pod: String,
}

impl Part {
    /// Pods, or processes of none, each once.
    pub(super) fn holders(&self) -> Option<Vec<String>> {
        let mut holders: Vec<String> = Vec::new();
        for process in self.processes.as_ref()? {
            let holder = if process.pod.is_empty() {
                process.pid.map_or_else(|| "?".to_owned(), |pid| format!("pid {pid}"))
            } else {
                format!("{}/{}", process.namespace, process.pod)
            };
            if !holders.contains(&holder) {
                holders.push(holder);
            }
        }
        Some(holders)
    }
}

/// A text from outside; empty where there is none.
pub(super) fn name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text = serde_json::Value::deserialize(deserializer)?;
    Ok(text.as_str().map(clean).unwrap_or_default())
}

/// A moment that cannot be read is unknown, and no reason to show nothing.
fn moment<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Instant>, D::Error> {
    let moment = serde_json::Value::deserialize(deserializer)?;
    Ok(serde_json::from_value(moment).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_another_version_leaves_out_is_unknown() {
        let node: Node = serde_json::from_str(r#"{"class": {"class": "busy", "since": 5}, "new": [1]}"#).unwrap();
        assert_eq!((&*node.class.class, node.class.since), ("busy", None));
        assert!(node.node_cpu.is_none() && node.memory.is_none() && node.cgroups.is_empty());
    }

    #[test]
    fn preemptions_are_told_by_the_most_frequent() {
        let cgroup = |json: &str| serde_json::from_str::<Cgroup>(json).unwrap();
        let by = cgroup(r#"{"preemptionsPerSecond": {"same_pod": 1.5, "other_pod": 12, "system": 0, "new": 3}}"#);
        assert_eq!(by.preemptions(), Some(vec![(12.0, "other pods"), (1.5, "own pod")]));
        assert_eq!(cgroup(r#"{"preemptionsPerSecond": {"system": 0}}"#).preemptions(), Some(vec![]));
        assert_eq!(cgroup("{}").preemptions(), None);
    }

    #[test]
    fn modes_are_summed_only_if_all_are_known() {
        let cpu: Cpu = serde_json::from_str(r#"{"modesPermille": {"user": 300, "nice": 100}}"#).unwrap();
        assert_eq!(cpu.modes(&["user", "nice"]), Some(0.4));
        assert_eq!(cpu.modes(&["user", "steal"]), None);
    }
}
