//! `ebb status`: the cluster on one screen, as the coordinator sees it.

use std::collections::BTreeMap;
use std::io::{Write, stdout};

use anyhow::{Context, Result};
use ebb_core::classify::Class;
use ebb_core::decision::Decision;
use ebb_core::fleet::steps;
use ebb_core::reason::Stay;
use ebb_core::time::Instant;
use ebb_core::view::{Cluster, Group, Node, RayCluster, RayGroup, Seen, Step, Waiting};

use crate::ask::{self, Output, Told, ask, to_json};
use crate::sheet::Align::{Left, Right};
use crate::sheet::{Sheet, listed};
use crate::terminal;
use crate::text::{UNKNOWN, clip, count, moment, span};

/// Of what waits and what was decided.
const SHOWN: usize = 5;
/// Of a reason; `ebb explain` has all of it.
const LINES: usize = 2;

/// Shows the cluster as the coordinator sees it: groups, nodes, drains, pods that wait, the last decisions.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    ask: ask::Args,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let told = ask(&args.ask.coordinator)?;
    let printed = match args.ask.output {
        Output::Json => to_json(&told)?,
        Output::Text => text(&told, &mut Sheet::new(terminal::columns().into(), terminal::takes_colours())),
    };
    stdout().write_all(printed.as_bytes()).context("print it")
}

fn text(told: &Told, sheet: &mut Sheet) -> String {
    let Seen { now, cluster } = &told.seen;
    sheet.title(&format!("{} ({})", standing(cluster), moment(*now)));
    groups(told, sheet);
    nodes(*now, cluster, sheet);
    waiting(*now, cluster, sheet);
    ray(*now, cluster, sheet);
    let mut steps = last_steps(&told.decisions);
    if !steps.is_empty() {
        sheet.title("Decisions");
        steps.truncate(SHOWN);
        for step in &mut steps {
            step.because = shortened(&step.because, LINES * sheet.room("10m 10s ago"));
        }
        sheet.steps(*now, &steps);
    }
    sheet.take()
}

/// What this coordinator may do now.
pub(crate) fn standing(cluster: &Cluster) -> &'static str {
    match (cluster.leading, cluster.synced) {
        (true, true) => "The coordinator leads, and its watches are live",
        (true, false) => "The coordinator leads and decides nothing: its watches are not live",
        (false, true) => "The coordinator decides nothing: another replica leads, or none yet",
        (false, false) => "The coordinator decides nothing: it does not lead, and its watches are not live",
    }
}

fn groups(told: &Told, sheet: &mut Sheet) {
    let groups = &told.seen.cluster.groups;
    sheet.title(&format!("Groups {}", groups.len()));
    let head = [
        ("NAME", Left),
        ("TYPE", Left),
        ("MIN", Right),
        ("DESIRED", Right),
        ("MAX", Right),
        ("INSTANCES", Right),
        ("READY", Right),
    ];
    let row = |group: &Group| {
        let ready = told.nodes_of(group).filter(|node| node.ready && !node.draining).count();
        vec![
            group.name.clone(),
            group.instance_type.clone(),
            group.min.to_string(),
            group.desired.map_or(UNKNOWN.to_owned(), |desired| desired.to_string()),
            group.max.to_string(),
            group.instances.to_string(),
            ready.to_string(),
        ]
    };
    sheet.table(&head, &groups.iter().map(row).collect::<Vec<_>>());
    for group in groups {
        for obstacle in obstacles(group) {
            sheet.because(1, &format!("{}: {obstacle}", group.name));
        }
    }
}

/// What keeps it from growing.
pub(crate) fn obstacles(group: &Group) -> Vec<String> {
    let mut found: Vec<_> = group.failing.iter().map(ToString::to_string).collect();
    if !group.observed {
        found.push("not known to the Auto Scaling API (yet)".to_owned());
    }
    if group.desired.is_some_and(|desired| desired >= group.max) {
        found.push("at its maximum".to_owned());
    }
    found
}

fn nodes(now: Instant, cluster: &Cluster, sheet: &mut Sheet) {
    sheet.title(&format!("Nodes {}", cluster.nodes.len()));
    let mut kinds: BTreeMap<Kind, Vec<(Option<Instant>, String)>> = BTreeMap::new();
    for node in &cluster.nodes {
        let (kind, since) = kind(node);
        let age = since.map(|since| span(now.since(since)));
        let goes = match &node.stays {
            Some(Stay::Budget { until: Some(until), .. } | Stay::Unneeded { until }) => {
                Some(format!("may go in {}", span(until.since(now))))
            }
            Some(Stay::Draining { deadline } | Stay::RunningOut { deadline, .. }) => {
                Some(format!("given up in {}", span(deadline.since(now))))
            }
            _ => None,
        };
        let more: Vec<_> = age.into_iter().chain(goes).collect();
        let more = if more.is_empty() { String::new() } else { format!(" ({})", more.join(", ")) };
        kinds.entry(kind).or_default().push((since, format!("{}{more}", node.name)));
    }
    for (kind, mut nodes) in kinds {
        // What has been so the longest comes first.
        nodes.sort();
        let names: Vec<_> = nodes.into_iter().map(|(_, name)| name).collect();
        let label = format!("{:<10}{:>4}", kind.name(), names.len());
        sheet.labelled(&label, &listed(&names, sheet.room(&label)));
    }
}

/// What matters most about a node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Busy,
    Idle,
    Unknown,
    Silent,
    NotReady,
    Draining,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Busy => "busy",
            Self::Idle => "idle",
            Self::Unknown => "unknown",
            Self::Silent => "silent",
            Self::NotReady => "not ready",
            Self::Draining => "draining",
        }
    }
}

/// And since when, where that is known.
fn kind(node: &Node) -> (Kind, Option<Instant>) {
    let since = node.class.map(Class::since);
    match node.class {
        _ if node.draining => (Kind::Draining, None),
        _ if !node.ready => (Kind::NotReady, None),
        None => (Kind::Silent, None),
        Some(Class::Busy { .. }) => (Kind::Busy, since),
        Some(Class::Idle { .. }) => (Kind::Idle, since),
        Some(Class::Unknown { .. }) => (Kind::Unknown, since),
    }
}

fn waiting(now: Instant, cluster: &Cluster, sheet: &mut Sheet) {
    if cluster.waiting.is_empty() {
        return;
    }
    sheet.title(&format!("Pods without a node {}", cluster.waiting.len()));
    // Pods that wait for the same reason are one entry, in the order of the longest waiting.
    let mut reasons: Vec<(String, Vec<&Waiting>)> = Vec::new();
    for pod in &cluster.waiting {
        let new = || "just come, or a group has just been raised for it".to_owned();
        let because = pod.because.as_ref().map_or_else(new, ToString::to_string);
        match reasons.iter_mut().find(|(reason, _)| *reason == because) {
            Some((_, pods)) => pods.push(pod),
            None => reasons.push((because, vec![pod])),
        }
    }
    for (because, pods) in reasons.iter().take(SHOWN) {
        let names: Vec<_> = pods.iter().map(|pod| pod.pod.clone()).collect();
        let when = format!("{:>8}", span(now.since(pods[0].since)));
        let because = shortened(because, LINES * sheet.room(&when));
        sheet.step(&when, &listed(&names, sheet.room(&when)), &because);
    }
    let rest: usize = reasons.iter().skip(SHOWN).map(|(_, pods)| pods.len()).sum();
    if rest > 0 {
        sheet.line(&format!("and {} for other reasons", count(rest, "pod")));
    }
}

/// What waits in Ray clusters, as their heads told.
fn ray(now: Instant, cluster: &Cluster, sheet: &mut Sheet) {
    if cluster.ray.is_empty() {
        return;
    }
    sheet.title(&format!("Ray clusters {}", cluster.ray.len()));
    for RayCluster { name, problem, read_at, waiting, anticipated, groups, without_object, .. } in &cluster.ray {
        let told = match (waiting, read_at) {
            (Some(waiting), Some(at)) => {
                let age =
                    if problem.is_some() { format!(", as told {} ago", span(now.since(*at))) } else { String::new() };
                format!("requests that wait: {waiting}, workers that are no pods yet: {anticipated}{age}")
            }
            _ => "has told nothing yet".to_owned(),
        };
        sheet.labelled(name, &told);
        if let Some(problem) = problem {
            sheet.because(1, &problem.to_string());
        }
        if *without_object {
            sheet.because(1, "there is no RayCluster of this name, so no worker groups of it are known");
        }
        for RayGroup { name, replicas, refusal } in groups {
            let replicas = replicas.map_or("no replicas".to_owned(), |replicas| count(replicas as usize, "replica"));
            match refusal {
                None => sheet.because(1, &format!("worker group {name}: {replicas}, set by Ebb")),
                Some(refusal) => sheet.because(1, &format!("worker group {name}: {replicas}, left alone: {refusal}")),
            }
        }
    }
    let held = cluster.nodes.iter().filter_map(|node| Some((node.idle_ray_only?, &node.name)));
    let mut held: Vec<_> = held.collect();
    // The longest first.
    held.sort();
    let held: Vec<_> = held.iter().map(|(since, name)| format!("{name} ({})", span(now.since(*since)))).collect();
    if !held.is_empty() {
        let label = format!("nodes held by idle workers alone {}", held.len());
        sheet.labelled(&label, &listed(&held, sheet.room(&label)));
    }
}

/// At most this wide, with whole words.
fn shortened(text: &str, columns: usize) -> String {
    let clipped = clip(text, columns);
    match clipped.rsplit_once(' ') {
        Some((words, _)) if clipped != text => format!("{words} …"),
        _ => clipped,
    }
}

/// The newest first; what many pods were told at once is one.
pub(crate) fn last_steps(decisions: &[Decision]) -> Vec<Step> {
    let of_a_moment = decisions.chunk_by(|a, b| a.at == b.at);
    let steps = of_a_moment.flat_map(|decisions| {
        let actions: Vec<_> = decisions.iter().rev().map(|decision| decision.action.clone()).collect();
        decisions.first().map(|decision| steps(decision.at, &actions)).unwrap_or_default()
    });
    steps.collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ebb_core::ray::{Problem, Refusal};

    use super::*;
    use crate::ask::sample;
    use crate::golden::is_golden;

    #[test]
    fn the_cluster_fits_one_screen() {
        for columns in [80, 120] {
            let printed = text(&sample(), &mut Sheet::new(columns, false));
            is_golden(&printed, &format!("tests/golden/status-{columns}.txt"));
            assert!(printed.lines().all(|line| line.chars().count() <= columns), "{printed}");
            assert!(printed.lines().count() <= 50, "{printed}");
        }
    }

    #[test]
    fn programs_get_cluster_and_decisions_in_one() {
        let json: serde_json::Value = serde_json::from_str(&to_json(&sample()).unwrap()).unwrap();
        assert_eq!(json["now"], "2026-11-25T12:00:00.000Z");
        assert_eq!(json["groups"][0]["name"], "cpu-workers");
        assert_eq!(json["decisions"][0]["reason"], "SchedulerToPlace");
    }

    #[test]
    fn what_waits_in_ray_is_told_with_its_age_where_its_head_is_silent() {
        let mut told = sample();
        let now = told.seen.now;
        let cluster = |name: &str, problem: Option<Problem>, ago: Option<u64>, waiting, anticipated| RayCluster {
            name: name.into(),
            readable: problem.is_none(),
            problem,
            read_at: ago.map(|ago| now.before(Duration::from_secs(ago))),
            waiting,
            anticipated,
            without_object: false,
            groups: vec![],
        };
        told.seen.cluster.ray = vec![
            cluster("ml/a", None, Some(0), Some(19), 7),
            cluster("ml/b", Some(Problem::Late), Some(60), Some(2), 0),
            cluster("ml/c", None, None, None, 0),
        ];
        told.seen.cluster.ray[2].without_object = true;
        told.seen.cluster.ray[0].groups = vec![
            RayGroup { name: "cpu".into(), replicas: Some(3), refusal: None },
            RayGroup { name: "gpu".into(), replicas: None, refusal: Some(Refusal::NoGroup) },
        ];
        let printed = text(&told, &mut Sheet::new(200, false));
        let (_, section) = printed.split_once("Ray clusters 3\n").unwrap();
        let expected = [
            " ml/a  requests that wait: 19, workers that are no pods yet: 7",
            " ↳ worker group cpu: 3 replicas, set by Ebb",
            " ↳ worker group gpu: no replicas, left alone: the RayCluster has no worker group of this name, or ray.clusters lacks it",
            " ml/b  requests that wait: 2, workers that are no pods yet: 0, as told 1m 0s ago",
            " ↳ its GCS does not answer in time",
            " ml/c  has told nothing yet",
            " ↳ there is no RayCluster of this name, so no worker groups of it are known",
        ];
        assert_eq!(section.lines().take(7).collect::<Vec<_>>(), expected);
        assert!(!section.contains("held by"), "{section}");
        let since = |ago| Some(now.before(Duration::from_secs(ago)));
        let nodes = &mut told.seen.cluster.nodes;
        (nodes[0].idle_ray_only, nodes[1].idle_ray_only) = (since(60), since(600));
        let names = [&nodes[1].name, &nodes[0].name].map(ToString::to_string);
        let expected = format!(" nodes held by idle workers alone 2  {} (10m 0s), {} (1m 0s)", names[0], names[1]);
        let printed = text(&told, &mut Sheet::new(200, false));
        assert!(printed.lines().any(|line| line == expected), "{printed}");
    }

    #[test]
    fn an_empty_cluster_is_said_to_be_empty() {
        let mut told = sample();
        told.seen.cluster =
            Cluster { leading: false, synced: false, groups: vec![], nodes: vec![], waiting: vec![], ray: vec![] };
        told.decisions.clear();
        let expected = "The coordinator decides nothing: it does not lead, and its watches are not live \
                        (2026-11-25T12:00:00Z)\n\nGroups 0\n NAME  TYPE  MIN  DESIRED  MAX  INSTANCES  READY\n\nNodes 0\n";
        assert_eq!(text(&told, &mut Sheet::new(200, false)), expected);
    }
}
