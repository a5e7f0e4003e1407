//! An Auto Scaling group: how large it may be, is and will be, and what keeps it from growing.

use std::collections::BTreeMap;

use anyhow::Result;
use ebb_core::decision::Decision;
use ebb_core::reason::Reason;
use ebb_core::time::Instant;
use ebb_core::view::{Group, Node};
use serde::Serialize;

use super::{decisions, name, warn};
use crate::ask::{Output, Told, to_json};
use crate::sheet::Sheet;
use crate::status::obstacles;
use crate::text::{UNKNOWN, count};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Explained<'a> {
    now: Instant,
    group: &'a Group,
    /// Names.
    ready: Vec<&'a str>,
    not_ready: Vec<&'a str>,
    draining: Vec<&'a str>,
    /// Instances that are no nodes yet.
    booting: usize,
    /// What keeps it from growing.
    obstacles: Vec<String>,
    /// Of pods that no group can help: why this one does not, and how many.
    pods_refused: BTreeMap<String, usize>,
    /// Pods that wait for a node of it that is on its way.
    pods_awaiting: usize,
    /// The newest first.
    decisions: Vec<&'a Decision>,
}

pub(super) fn explain(told: &Told, wanted: &str, output: Output, sheet: &mut Sheet) -> Result<String> {
    let cluster = &told.seen.cluster;
    let found = name::find("group", wanted, cluster.groups.iter().map(|group| &*group.name))?;
    let group = cluster.groups.iter().find(|group| group.name == found).expect("it was found among them");
    let nodes: Vec<_> = told.nodes_of(group).collect();
    let names = |of: &dyn Fn(&Node) -> bool| nodes.iter().filter(|it| of(it)).map(|it| &*it.name).collect::<Vec<_>>();
    let mut pods_refused = BTreeMap::new();
    let mut pods_awaiting = 0;
    for waiting in &cluster.waiting {
        match &waiting.because {
            Some(Reason::NoGroupFits { groups }) => {
                for (_, obstacle) in groups.iter().filter(|(name, _)| *name == group.name) {
                    *pods_refused.entry(obstacle.to_string()).or_insert(0) += 1;
                }
            }
            Some(Reason::NodeComing { group: coming }) if *coming == group.name => pods_awaiting += 1,
            _ => {}
        }
    }
    let all_nodes = names(&|_| true);
    let explained = Explained {
        now: told.seen.now,
        group,
        ready: names(&|node| node.ready && !node.draining),
        not_ready: names(&|node| !node.ready && !node.draining),
        draining: names(&|node| node.draining),
        booting: (group.instances as usize).saturating_sub(nodes.len()),
        obstacles: obstacles(group),
        pods_refused,
        pods_awaiting,
        decisions: told.decisions.iter().filter(|it| it.changes_group(&group.name, &all_nodes)).collect(),
    };
    if output == Output::Json {
        return to_json(&explained);
    }
    sheet.title(&format!("Group {} of {}", group.name, group.instance_type));
    warn(cluster, sheet);
    text(&explained, sheet);
    Ok(sheet.take())
}

fn text(explained: &Explained<'_>, sheet: &mut Sheet) {
    let Explained { group, ready, not_ready, draining, booting, obstacles, .. } = explained;
    let desired = group.desired.map_or(UNKNOWN.to_owned(), |desired| desired.to_string());
    sheet.labelled("size     ", &format!("{desired} desired, at least {}, at most {}", group.min, group.max));
    let mut there = vec![format!("{} ready", ready.len())];
    let further = [(not_ready.len(), "not ready"), (draining.len(), "draining"), (*booting, "not a node yet")];
    there.extend(further.iter().filter(|(number, _)| *number > 0).map(|(number, what)| format!("{number} {what}")));
    sheet.labelled("instances", &format!("{}: {}", group.instances, there.join(", ")));
    let asked = group.desired.map_or(0, |desired| desired.saturating_sub(group.instances));
    if asked > 0 {
        let plural = if asked == 1 { "is" } else { "are" };
        sheet.labelled("coming   ", &format!("{asked} {plural} asked for and not launched by AWS yet"));
    }
    for (label, names) in [("not ready", not_ready), ("draining ", draining)] {
        if !names.is_empty() {
            sheet.labelled(label, &names.join(", "));
        }
    }
    if !obstacles.is_empty() {
        sheet.labelled("obstacles", &obstacles.join("; "));
    }
    if explained.pods_awaiting > 0 {
        let pods = count(explained.pods_awaiting, "pod");
        sheet.labelled("awaited  ", &format!("by {pods} that will find room on what is coming"));
    }
    if !explained.pods_refused.is_empty() {
        sheet.title("Waiting pods that it cannot help");
        for (because, pods) in &explained.pods_refused {
            sheet.labelled(&format!("{:>8}", count(*pods, "pod")), because);
        }
    }
    decisions(explained.now, &explained.decisions, sheet);
}
