//! What a case is made of, as `drain_scenarios.yaml` writes it.

use std::collections::BTreeMap;
use std::time::Duration;

use ebb_core::intent::{Intent, Permits, Trigger};
use ebb_core::time::parse_duration;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Case {
    pub(super) name: String,
    #[serde(default, rename = "like")]
    _like: String,

    // What there is before.
    /// A merge patch of the Node.
    #[serde(default)]
    pub(super) node: Value,
    /// Whether there is a (KWOK) kubelet.
    #[serde(default = "yes")]
    pub(super) machine: bool,
    /// Whether another node of the plot comes when the pods run.
    #[serde(default)]
    pub(super) spare: bool,
    #[serde(default)]
    pub(super) pods: BTreeMap<String, Work>,
    /// Labels of a DaemonSet's pod, which is then called `daemon`.
    pub(super) daemon: Option<BTreeMap<String, String>>,
    /// PodDisruptionBudgets for pods whose `app` is the name, up to a dash: how many must be available.
    #[serde(default)]
    pub(super) budgets: BTreeMap<String, u32>,
    #[serde(default)]
    pub(super) objects: Vec<Value>,
    /// How the names begin of the pods that `objects` make; each is waited for, and then called so.
    #[serde(default)]
    pub(super) wait_for: Vec<String>,
    /// Lines for kubectl, when the pods run.
    #[serde(default)]
    pub(super) before: Vec<String>,
    /// More flags of the agent.
    #[serde(default)]
    pub(super) flags: Vec<String>,

    // What begins the drain.
    #[serde(default)]
    pub(super) intent: Wanted,
    /// In place of an intent.
    pub(super) words: Option<String>,
    /// In place of both, what instance metadata tells: arguments of Amazon's mock of that service.
    pub(super) metadata: Option<Vec<String>>,

    #[serde(default)]
    pub(super) then: Vec<Then>,

    // How it ends.
    pub(super) ends: End,
    /// How long it takes until then, at least.
    pub(super) takes: Option<String>,
    /// What the condition says in the end.
    #[serde(default)]
    pub(super) says: String,
    /// Exactly these pods were asked to go, except of drains that are cancelled.
    #[serde(default)]
    pub(super) gone: Vec<String>,
    /// These of them, past their budgets.
    #[serde(default)]
    pub(super) deleted: Vec<String>,
    #[serde(default)]
    pub(super) left: Vec<String>,
    /// In the place of `gone`: of these, at least one was asked to go.
    #[serde(default)]
    pub(super) any_of: Vec<String>,
    /// In which order pods were asked to go.
    #[serde(default)]
    pub(super) order: Vec<String>,
    /// `gracePeriodSeconds` of the requests; null: none says any.
    #[serde(default, deserialize_with = "is_there")]
    pub(super) grace_within: Option<Option<[u64; 2]>>,
    /// After all is undone.
    #[serde(default)]
    pub(super) still_cordoned: bool,
}

fn yes() -> bool {
    true
}

/// Tells null from absence.
fn is_there<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<[u64; 2]>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Work {
    pub(super) app: Option<String>,
    pub(super) owner: Owner,
    pub(super) phase: Option<String>,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) annotations: BTreeMap<String, String>,
    pub(super) finalizers: Vec<String>,
    pub(super) empty_dir: bool,
    /// Whether it uses a PersistentVolumeClaim.
    pub(super) claim: bool,
    pub(super) grace: Option<u64>,
    /// `priorityClassName`
    pub(super) priority: Option<String>,
    /// Keys of taints.
    pub(super) tolerates: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub(super) enum Owner {
    #[default]
    Controller,
    /// It mirrors a static pod.
    Node,
    None,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Wanted {
    pub(super) by: Trigger,
    pub(super) deadline: String,
    pub(super) evict: bool,
    pub(super) awaits_turn: bool,
    #[serde(flatten)]
    pub(super) permits: Permits,
}

impl Default for Wanted {
    fn default() -> Self {
        Self {
            by: Trigger::Person,
            deadline: "60s".into(),
            evict: true,
            awaits_turn: false,
            permits: Permits::default(),
        }
    }
}

impl Wanted {
    pub(super) fn duration(&self) -> Duration {
        parse_duration(&self.deadline).unwrap()
    }

    pub(super) fn intent(&self) -> Intent {
        let now = ebb_tests::now();
        Intent {
            id: format!("case-{}", now.as_millis()),
            reason: "a test".into(),
            requested_at: now,
            deadline: now + self.duration(),
            evict: self.evict,
            by: self.by,
            awaits_turn: self.awaits_turn,
            permits: self.permits,
        }
    }
}

/// Something that happens once something is seen.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Then {
    /// A pause before: for what must not have happened meanwhile.
    pub(super) after: Option<String>,

    // What is waited for, all of it at the same time.
    /// For how long, at most.
    #[serde(default = "a_minute")]
    pub(super) within: String,
    /// What the condition says.
    pub(super) holds: Option<String>,
    pub(super) cordoned: Option<bool>,
    /// Whether the node is out of load balancers.
    pub(super) excluded: Option<bool>,
    /// Exactly these pods were asked to go so far, in this order.
    pub(super) asked: Option<Vec<String>>,
    /// A line of the page with the agent's metrics, its value in whole numbers.
    pub(super) metrics: Option<String>,

    // What is done.
    #[serde(default)]
    pub(super) cancel: bool,
    pub(super) finish: Option<String>,
    /// Takes a pod's finalizers away.
    pub(super) release: Option<String>,
    /// More pods, bound to the node.
    #[serde(default)]
    pub(super) pods: BTreeMap<String, Work>,
    /// A merge patch.
    #[serde(default)]
    pub(super) node: Value,
    /// A line for kubectl.
    pub(super) kubectl: Option<String>,
    /// What instance metadata tells from now on; an empty list: nothing.
    pub(super) metadata: Option<Vec<String>>,
    /// The agent is killed before, and started after.
    #[serde(default)]
    pub(super) restart: bool,
}

fn a_minute() -> String {
    "1m".into()
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub(super) enum End {
    Cancelled,
    Drained,
    Failed,
    /// Nobody asked for anything.
    Untouched,
}
