//! What a node does, what is asked of it, and why it is still here.

use anyhow::Result;
use ebb_core::classify::{Class, GpuUse, Missing, Signal, Utilization};
use ebb_core::decision::Decision;
use ebb_core::intent::Trigger;
use ebb_core::reason::Stay;
use ebb_core::resources::NVIDIA_GPU;
use ebb_core::time::Instant;
use ebb_core::units::Permille;
use ebb_core::view::{Node, Pod};
use serde::Serialize;

use super::{decisions, name, ray, warn};
use crate::ask::{Output, Told, to_json};
use crate::sheet::Align::{Left, Right};
use crate::sheet::Sheet;
use crate::text::{amount, amounts, count, moment, percent, span};

#[derive(Serialize)]
struct Explained<'a> {
    now: Instant,
    node: &'a Node,
    /// When that it stays may change.
    outlook: Option<String>,
    /// The newest first.
    decisions: Vec<&'a Decision>,
}

pub(super) fn explain(told: &Told, wanted: &str, output: Output, sheet: &mut Sheet) -> Result<String> {
    let cluster = &told.seen.cluster;
    let found = name::find("node", wanted, cluster.nodes.iter().map(|node| &*node.name))?;
    let node = cluster.nodes.iter().find(|node| node.name == found).expect("it was found among them");
    let about = told.decisions.iter().filter(|decision| decision.is_about_node(&node.name)).collect();
    let now = told.seen.now;
    let outlook = node.stays.as_ref().map(|stays| outlook(stays, now));
    let explained = Explained { now, node, outlook, decisions: about };
    if output == Output::Json {
        return to_json(&explained);
    }
    let Explained { node, outlook, decisions: about, .. } = &explained;
    let group = node.group.as_ref().map_or("of no group of Ebb's".to_owned(), |group| format!("of group {group}"));
    sheet.title(&format!("Node {} {group}", node.name));
    warn(cluster, sheet);
    sheet.labelled("state", &state(node));
    sheet.labelled("class", &class(node, now));
    match node.stays.as_ref().zip(outlook.as_ref()) {
        Some((stays, outlook)) => sheet.advice("stays", &stays.to_string(), outlook),
        None => sheet.labelled("stays", "no decision about it was taken yet"),
    }
    ray::held(node, now, sheet);
    uses(node, sheet);
    pods(node, sheet);
    ray::workers(node, now, sheet);
    decisions(now, about, sheet);
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

/// When that may change, and who can change it.
fn outlook(stays: &Stay, now: Instant) -> String {
    let until = |at: &Instant| format!("at {}, in {}", moment(*at), span(at.since(now)));
    match stays {
        Stay::Anticipated { .. } => {
            "it may go when that work is done or has found workers elsewhere; Ray's own pods for it are awaited".to_owned()
        }
        Stay::Blocked { .. } => {
            "it may go when more pods of that budget are healthy, or the budget asks for fewer".to_owned()
        }
        Stay::BlockedTwice { .. } => "it may go when that pod has ended, or is under one of them alone".to_owned(),
        Stay::Budget { most: 0, until: Some(at), .. } => format!("it may go when that window has ended, {}", until(at)),
        Stay::Budget { most: 0, until: None, .. } => "it may go when the budget is changed in the configuration".to_owned(),
        Stay::Budget { until: Some(at), .. } => {
            format!("it may go when one of those that drain has gone, or when that window has ended, {}", until(at))
        }
        Stay::Budget { until: None, .. } => "it may go when one of those that drain has gone".to_owned(),
        Stay::Buffered { .. } => {
            "it may go when the buffer is deleted or made smaller, or other nodes have as much room".to_owned()
        }
        Stay::Busy { .. } => {
            "it may go once it has been measured idle, and without work, for `unneededFor` of its group".to_owned()
        }
        Stay::Cordoned => "Ebb leaves it to whoever did that; `kubectl uncordon` gives it back".to_owned(),
        Stay::DrainedFor { by: Trigger::Person, .. } => {
            "Ebb leaves it to that person; `ebb drain --cancel` gives it back".to_owned()
        }
        Stay::DrainedFor { .. } => "its agent gives it back if that is called off".to_owned(),
        Stay::Draining { deadline } => {
            format!("it is terminated when its pods have left; the drain is given up {}", until(deadline))
        }
        Stay::GivenUp { until: at } => format!("it is tried again {}, if nobody needs it then", until(at)),
        Stay::GpuUnseen => "its agent's log says why NVML tells nothing; until then it is kept".to_owned(),
        Stay::Minimum { .. } => {
            "it may go when the group has more nodes, or with a lower `min` in the configuration and the Auto Scaling group"
                .to_owned()
        }
        Stay::NoRoomElsewhere { .. } => "it may go when another node has room for that pod, or the pod ends".to_owned(),
        Stay::NotOurs => "Ebb never removes it".to_owned(),
        Stay::Occupied { .. } => {
            "it may go when they have ended, `unneededFor` of its group later; with `scaleDown.consolidate` also when it is \
             idle and they fit on other nodes"
                .to_owned()
        }
        Stay::PodPinned { .. } => "it may go when that pod has ended, or may be moved".to_owned(),
        Stay::Protected { annotation } => format!("it may go when the annotation {annotation} is taken from the node"),
        Stay::Requested { below, .. } => format!("it may go when its pods request less than {below} of it"),
        Stay::Retried => "that is seen to in a moment".to_owned(),
        Stay::RunningOut { deadline, .. } => {
            format!("it is terminated when the last has ended; it is opened to pods again {}", until(deadline))
        }
        Stay::Silent => "is its agent's pod running? Until the agent is heard the node is kept".to_owned(),
        Stay::Starting => "it counts once it is ready; one that takes longer than `scaleUp.provisionTimeout` is no longer \
                           waited for"
            .to_owned(),
        Stay::Turn { .. } => "it goes next; `scaleDown.maxParallelDrains` says how many drain at once".to_owned(),
        Stay::Undescribed => "the coordinator's log says so if AWS does not answer".to_owned(),
        Stay::Unknown { missing: Missing::History } => "it is known once it was watched for `idle.window`".to_owned(),
        Stay::Unknown { missing: Missing::Initialization } => {
            "it is known once the newest workload is older than `idle.initializationPeriod`".to_owned()
        }
        Stay::Unknown { missing: Missing::Signal(signal) } => {
            format!("its agent's log says why {signal} cannot be had; until then it is kept")
        }
        Stay::Unneeded { until: at } => format!("it is asked to drain {}, if nobody needs it till then", until(at)),
        Stay::Wanted { .. } => "the scheduler is expected to place the pod here".to_owned(),
    }
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
        sheet.line(&format!("besides {}, for which no node is kept", count(daemons.len(), "daemon")));
    }
}
