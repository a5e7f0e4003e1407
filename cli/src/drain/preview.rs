//! `ebb drain --dry-run`: asks the API server what a drain would meet, and changes nothing.

use std::io::{Write, stdout};

use anyhow::{Context, Result};
use ebb_core::disruption::{Change, PodDisruptionBudget, PodDisruptionBudgets};
use ebb_core::drain::{EvictionOutcome, Target};
use ebb_core::intent::{INTENT_ANNOTATION, Intent};
use ebb_core::preflight::{Answer, Candidate, Fate, fate};
use ebb_kubernetes::eviction;
use futures::stream::{self, StreamExt};
use k8s_openapi::api::core::v1 as api;
use k8s_openapi::api::policy::v1 as policy;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};

use super::want::Stands;
use super::{Args, sheet};
use crate::kubernetes::is_forbidden;
use crate::sheet::Sheet;
use crate::terminal;

/// Questions asked of the API server at the same time.
const QUESTIONS: usize = 8;

/// What was found.
pub(super) struct Preview {
    pub(super) nodes: Vec<Previewed>,
    pub(super) budgets: PodDisruptionBudgets,
    /// The drain that is thought of.
    pub(super) intent: Intent,
    /// Why the API server was not asked about evictions, or about budgets.
    pub(super) notes: Vec<String>,
}

pub(super) struct Previewed {
    pub(super) name: String,
    /// Who wants its drain already.
    pub(super) stands: Option<Stands>,
    /// Whether an agent that could drain it runs there.
    pub(super) has_agent: bool,
    /// By namespace and name, with what the API server said to the eviction of each.
    pub(super) pods: Vec<(Candidate, Answer)>,
}

/// Whether a drain of all of them could begin.
pub(super) async fn run(client: &Client, args: &Args, intent: Intent) -> Result<bool> {
    let mut preview =
        Preview { nodes: Vec::new(), budgets: PodDisruptionBudgets::default(), intent, notes: Vec::new() };
    let mut nodes = Vec::new();
    for name in &args.nodes {
        nodes.push(super::node(client, name).await?);
    }
    match Api::<policy::PodDisruptionBudget>::all(client.clone()).list(&ListParams::default()).await {
        Ok(budgets) => budgets
            .iter()
            .for_each(|budget| _ = preview.budgets.apply(Change::Applied(PodDisruptionBudget::from(budget)))),
        Err(error) if is_forbidden(&error) => {
            preview.notes.push("you may not list PodDisruptionBudgets: what they forbid is not summed".to_owned());
        }
        Err(error) => return Err(error).context("list PodDisruptionBudgets"),
    }
    for node in nodes {
        let name = node.name_any();
        let on_node = ListParams::default().fields(&format!("spec.nodeName={name}"));
        let pods = Api::<api::Pod>::all(client.clone()).list(&on_node).await;
        let pods = pods.with_context(|| format!("list the pods of node {name}"))?;
        let has_agent = pods.iter().any(is_agent);
        let mut pods: Vec<_> = pods.iter().map(Candidate::from).collect();
        pods.sort_by_cached_key(|candidate| candidate.pod.full_name());
        let pods = answers(client, pods, &mut preview).await?;
        let stands = node.annotations().get(INTENT_ANNOTATION).map(|text| Stands::read(text));
        preview.nodes.push(Previewed { name, stands, has_agent, pods });
    }
    let mut sheet = Sheet::new(terminal::columns().into(), terminal::takes_colours());
    let (text, begins) = sheet::text(&preview, &mut sheet);
    stdout().write_all(text.as_bytes()).context("print it")?;
    Ok(begins)
}

/// As the chart labels it.
fn is_agent(pod: &api::Pod) -> bool {
    let labels = pod.metadata.labels.clone().unwrap_or_default();
    let is = |key: &str, value: &str| labels.get(key).is_some_and(|it| it == value);
    let runs = pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running");
    is("app.kubernetes.io/name", "ebb") && is("app.kubernetes.io/component", "agent") && runs
}

/// Only those are asked about that would be evicted by what is known of them.
async fn answers(client: &Client, pods: Vec<Candidate>, preview: &mut Preview) -> Result<Vec<(Candidate, Answer)>> {
    let none = PodDisruptionBudgets::default();
    let asked = stream::iter(pods.into_iter().map(|pod| {
        let would_go = fate(&pod, &preview.intent, &none, &Answer::Unknown) == Fate::Evicted;
        async move {
            let target = Target::from(&pod.drained);
            let answer = if would_go { Some(eviction::dry_run(client, &target).await) } else { None };
            (pod, answer)
        }
    }));
    let asked: Vec<_> = asked.buffered(QUESTIONS).collect().await;
    let mut answers = Vec::new();
    for (pod, answer) in asked {
        let answer = match answer.transpose() {
            Ok(Some(answer)) => match answer.outcome {
                // Gone in the meantime: nothing to evict.
                EvictionOutcome::Gone => continue,
                EvictionOutcome::Accepted => Answer::Allowed,
                EvictionOutcome::Blocked => Answer::Blocked(answer.reason),
                EvictionOutcome::Refused => Answer::Refused(answer.reason),
                EvictionOutcome::Throttled | EvictionOutcome::Unavailable => Answer::Unknown,
            },
            Ok(None) => Answer::Unknown,
            Err(error) if is_forbidden(&error) => {
                let note = "you may not evict pods, not even to try: what is said of them is by the numbers of their \
                            PodDisruptionBudgets";
                if !preview.notes.iter().any(|told| told == note) {
                    preview.notes.push(note.to_owned());
                }
                Answer::Unknown
            }
            Err(error) => {
                return Err(error).with_context(|| format!("try the eviction of pod {}", pod.pod.full_name()));
            }
        };
        answers.push((pod, answer));
    }
    Ok(answers)
}
