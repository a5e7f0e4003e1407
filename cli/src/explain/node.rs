//! What a node does, what is asked of it, and why it is still here.

use anyhow::Result;
use ebb_core::classify::{Class, GpuUse, Signal, Utilization};
use ebb_core::decision::Decision;
use ebb_core::resources::NVIDIA_GPU;
use ebb_core::time::Instant;
use ebb_core::units::Permille;
use ebb_core::view::{Node, Pod};
use serde::Serialize;

use super::{decisions, name, warn};
use crate::ask::{Output, Told, to_json};
use crate::sheet::Align::{Left, Right};
use crate::sheet::Sheet;
use crate::text::{amount, amounts, count, moment, percent, span};

#[derive(Serialize)]
struct Explained<'a> {
    now: Instant,
    node: &'a Node,
    /// The newest first.
    decisions: Vec<&'a Decision>,
}

pub(super) fn explain(told: &Told, wanted: &str, output: Output, sheet: &mut Sheet) -> Result<String> {
    let cluster = &told.seen.cluster;
    let found = name::find("node", wanted, cluster.nodes.iter().map(|node| &*node.name))?;
    let node = cluster.nodes.iter().find(|node| node.name == found).expect("it was found among them");
    let about = told.decisions.iter().filter(|decision| decision.is_about_node(&node.name)).collect();
    let explained = Explained { now: told.seen.now, node, decisions: about };
    if output == Output::Json {
        return to_json(&explained);
    }
    let Explained { now, node, decisions: about } = &explained;
    let group = node.group.as_ref().map_or("of no group of Ebb's".to_owned(), |group| format!("of group {group}"));
    sheet.title(&format!("Node {} {group}", node.name));
    warn(cluster, sheet);
    sheet.labelled("state", &state(node));
    sheet.labelled("class", &class(node, *now));
    uses(node, sheet);
    pods(node, sheet);
    decisions(*now, about, sheet);
    Ok(sheet.take())
}

fn state(node: &Node) -> String {
    let mut words = vec![if node.ready { "ready" } else { "not ready" }];
    words.extend(node.unschedulable.then_some("cordoned"));
    words.extend(node.draining.then_some("asked to drain"));
    words.extend(node.drained.then_some("drained"));
    words.join(", ")
}

fn class(node: &Node, now: Instant) -> String {
    let Some(class) = node.class else {
        return "nothing is heard from its agent, so nothing is known of its use".to_owned();
    };
    let (since, age) = (moment(class.since()), span(now.since(class.since())));
    let why = match class {
        Class::Busy { signal, .. } => format!(" by {signal}"),
        Class::Unknown { missing, .. } => format!(" for lack of {missing}"),
        Class::Idle { .. } => String::new(),
    };
    let waste = node.gpu_waste.map(|since| format!("; its GPUs have done nothing for {}", span(now.since(since))));
    format!("{}{why} for {age}, since {since}{}", class.name(), waste.unwrap_or_default())
}

/// Each resource: what is really used, what its pods ask for, and of how much.
fn uses(node: &Node, sheet: &mut Sheet) {
    let used = |name: &str, utilization: &Utilization| match name {
        "cpu" => utilization.cpu,
        "memory" => utilization.memory,
        NVIDIA_GPU => match utilization.gpu {
            GpuUse::Busy(busy) => Some(busy),
            GpuUse::Absent | GpuUse::Unknown => None,
        },
        _ => None,
    };
    let measured = |name: &str| matches!(name, "cpu" | "memory" | NVIDIA_GPU);
    let share = |share: Option<Permille>| percent(share.map(Permille::ratio));
    let row = |(name, offered): (&str, u64)| {
        let requested = node.requested.amount(name);
        let ratio = requested as f64 / offered as f64;
        vec![
            name.to_owned(),
            if measured(name) { share(node.utilization.as_ref().and_then(|it| used(name, it))) } else { String::new() },
            amount(name, requested),
            percent(Some(ratio)),
            amount(name, offered),
        ]
    };
    let shown = node.allocatable.iter().filter(|(name, _)| measured(name) || node.requested.amount(name) > 0);
    let rows: Vec<_> = shown.map(row).collect();
    if rows.is_empty() {
        return;
    }
    sheet.title("Use");
    let head = [("", Left), ("USED", Right), ("REQUESTED", Right), ("", Right), ("OF", Right)];
    sheet.table(&head, &rows);
    let signals = [Signal::CpuSteal, Signal::RunQueue, Signal::MemoryPressure].map(|signal| {
        let level = node.utilization.and_then(|utilization| utilization.level(signal));
        format!("{signal} {}", share(level))
    });
    sheet.line(&format!("also {}", signals.join(", ")));
}

fn pods(node: &Node, sheet: &mut Sheet) {
    let (daemons, others): (Vec<&Pod>, Vec<&Pod>) = node.pods.iter().partition(|pod| pod.daemon);
    sheet.title(&format!("Pods that keep it {}", others.len()));
    let row = |pod: &&Pod| {
        let leaves = if pod.terminating { ", being deleted" } else { "" };
        vec![pod.name.clone(), format!("{}{leaves}", amounts(&pod.requests))]
    };
    sheet.table(&[("", Left), ("", Left)], &others.iter().map(row).collect::<Vec<_>>());
    if !daemons.is_empty() {
        sheet.line(&format!("and {}, which keep no node", count(daemons.len(), "daemon")));
    }
}
