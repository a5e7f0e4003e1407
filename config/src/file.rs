//! The file's own form: which keys there are. What their values mean is read in `check`, because a value that is
//! read there says what is wrong with it together with all others, and one that fails here ends the reading.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_saphyr::{Error, RenderOptions, SnippetMode, Spanned, UserMessageFormatter};

use super::{Problem, Text};

/// The reader's words for what a person writes.
const WORDS: [(&str, &str); 3] =
    [("mapping start", "keys with values"), ("sequence start", "a list"), ("string scalar", "a single value")];

pub(super) fn problem(error: &Error) -> Problem {
    let mut options = RenderOptions::new(&UserMessageFormatter);
    options.snippets = SnippetMode::Off;
    let message = error.render_with_options(options);
    let (line, column) = error.location().map_or((1, 1), |at| (at.line(), at.column()));
    // The place stands in front of the message already.
    let message = message.trim_end_matches(&format!(" at line {line}, column {column}")).to_owned();
    let message = WORDS.iter().fold(message, |message, (theirs, ours)| message.replace(theirs, ours));
    Problem { line, column, message }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct File {
    pub(super) groups: Spanned<Vec<Group>>,
    #[serde(default)]
    pub(super) scale_up: ScaleUp,
    #[serde(default)]
    pub(super) scale_down: ScaleDown,
    #[serde(default)]
    pub(super) idle: Idle,
    #[serde(default)]
    pub(super) ray: super::ray::Ray,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Group {
    pub(super) name: Text,
    pub(super) min: Text,
    pub(super) max: Text,
    pub(super) instance_type: Text,
    #[serde(default)]
    pub(super) labels: BTreeMap<String, Text>,
    #[serde(default)]
    pub(super) taints: Vec<Taint>,
    pub(super) allocatable: Option<Spanned<BTreeMap<String, Text>>>,
    pub(super) unneeded_for: Option<Text>,
    pub(super) priority: Option<Text>,
    pub(super) price: Option<Text>,
    #[serde(default)]
    pub(super) budgets: Vec<Budget>,
    pub(super) run_to_completion: Option<Text>,
    pub(super) lifecycle_hook: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Budget {
    pub(super) nodes: Text,
    pub(super) schedule: Option<Text>,
    pub(super) duration: Option<Text>,
    pub(super) reasons: Option<Spanned<Vec<Text>>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Taint {
    pub(super) key: Text,
    #[serde(default)]
    pub(super) value: String,
    pub(super) effect: Text,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ScaleUp {
    pub(super) pending_for: Option<Text>,
    pub(super) batch_window: Option<Text>,
    pub(super) batch_longest: Option<Text>,
    pub(super) provision_timeout: Option<Text>,
    pub(super) expander: Option<Text>,
    pub(super) launch: Option<Text>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ScaleDown {
    pub(super) utilization_below: Option<Text>,
    pub(super) unneeded_for: Option<Text>,
    pub(super) gpu_unneeded_for: Option<Text>,
    pub(super) max_parallel_drains: Option<Text>,
    pub(super) drain_timeout: Option<Text>,
    pub(super) report_timeout: Option<Text>,
    pub(super) consolidate: Option<Text>,
    #[serde(default)]
    pub(super) budgets: Vec<Budget>,
    pub(super) run_to_completion: Option<Text>,
    pub(super) run_to_completion_timeout: Option<Text>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Idle {
    pub(super) window: Option<Text>,
    pub(super) initialization_period: Option<Text>,
    pub(super) cpu: Option<Band>,
    pub(super) cpu_steal: Option<Band>,
    pub(super) gpu: Option<Band>,
    pub(super) memory_pressure: Option<Band>,
    pub(super) run_queue: Option<Band>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Band {
    pub(super) idle_below: Option<Text>,
    pub(super) busy_from: Option<Text>,
}
