//! Why a pod waits, group by group, and what would change it.

use anyhow::Result;
use ebb_core::decision::Decision;
use ebb_core::launch::{Cause, Failing};
use ebb_core::reason::{Obstacle, Reason};
use ebb_core::schedule::Misfit;
use ebb_core::time::Instant;
use ebb_core::view::{Cluster, Node, Waiting};
use serde::Serialize;

use super::{decisions, name, warn};
use crate::ask::{Output, Told, to_json};
use crate::sheet::Sheet;
use crate::text::{amounts, moment, span, width};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Explained<'a> {
    now: Instant,
    /// `NAMESPACE/NAME`
    pod: &'a str,
    /// `None`: it waits for no node.
    waiting: Option<&'a Waiting>,
    in_the_way: Vec<InTheWay<'a>>,
    /// What is awaited.
    outlook: Option<String>,
    /// The name of the node that it is bound to.
    node: Option<&'a str>,
    /// The newest first.
    decisions: Vec<&'a Decision>,
}

#[derive(Serialize)]
struct InTheWay<'a> {
    group: &'a str,
    obstacle: &'a Obstacle,
    because: String,
    remedy: String,
}

pub(super) fn explain(told: &Told, wanted: &str, output: Output, sheet: &mut Sheet) -> Result<String> {
    let cluster = &told.seen.cluster;
    let waiting = cluster.waiting.iter().map(|waiting| &*waiting.pod);
    let bound = cluster.nodes.iter().flat_map(|node| &node.pods).map(|pod| &*pod.name);
    let pod = name::find("pod", wanted, waiting.chain(bound))?;
    let waiting = cluster.waiting.iter().find(|waiting| waiting.pod == pod);
    let explained = Explained {
        now: told.seen.now,
        pod,
        waiting,
        in_the_way: waiting.map(in_the_way).unwrap_or_default(),
        outlook: waiting.and_then(|waiting| outlook(waiting, cluster)),
        node: node_of(cluster, pod).map(|node| &*node.name),
        decisions: told.decisions.iter().filter(|decision| decision.is_about_pod(pod)).collect(),
    };
    if output == Output::Json {
        return to_json(&explained);
    }
    Ok(text(&explained, cluster, sheet))
}

fn node_of<'a>(cluster: &'a Cluster, pod: &str) -> Option<&'a Node> {
    cluster.nodes.iter().find(|node| node.pods.iter().any(|of_node| of_node.name == pod))
}

fn in_the_way(waiting: &Waiting) -> Vec<InTheWay<'_>> {
    let Some(Reason::NoGroupFits { groups }) = &waiting.because else { return Vec::new() };
    let of_group = |(group, obstacle): &'_ (String, Obstacle)| (obstacle.to_string(), remedy(group, obstacle));
    let entry = |it| {
        let (group, obstacle): &(String, Obstacle) = it;
        let (because, remedy) = of_group(it);
        InTheWay { group, obstacle, because, remedy }
    };
    groups.iter().map(entry).collect()
}

/// What somebody can do about it.
fn remedy(group: &str, obstacle: &Obstacle) -> String {
    match obstacle {
        Obstacle::Failing(Failing { cause, until, .. }) => {
            let what = match cause {
                Cause::Capacity => "give the group more zones or instance types",
                Cause::Configuration => "mend the group, its launch template or its rights",
                Cause::NeverReady => "look at an instance's console output: its kubelet does not join, or is not ready",
                Cause::NothingCame | Cause::Other => "look at the group's scaling activities",
                Cause::Quota => "ask AWS for a higher quota",
            };
            format!("{what}; it is counted on again at {}", moment(*until))
        }
        Obstacle::Maximum(_) => {
            format!("raise `max` of {group} in the configuration, and the Auto Scaling group's own")
        }
        Obstacle::Unobserved => {
            format!(
                "is there an Auto Scaling group {group} in this region, and may the coordinator describe it? Its log says"
            )
        }
        Obstacle::Misfit(misfit) => match misfit {
            Misfit::Resource { name } => format!("request less {name}, or give the group larger instances"),
            Misfit::Taint { key } => format!("let the pod tolerate the taint {key}, if it belongs there"),
            Misfit::NodeSelector { key } => {
                format!("change the pod's node selector {key}; or does `labels` of the group lack that label?")
            }
            Misfit::NodeAffinity => {
                "change the pod's node affinity; or does `labels` of the group lack a label?".to_owned()
            }
            Misfit::TopologyKey { key } => {
                format!("name the label {key} in `labels` of the group, if its nodes have it")
            }
            Misfit::Claim { claim } => {
                format!("see to the claim {claim}: `kubectl describe pvc` says what it waits for")
            }
            Misfit::Volume { claim } => format!("give the group the zones where the volume of {claim} can be used"),
            Misfit::HostPort { port } => format!("use another port than {port}, or none of the host's"),
            Misfit::PodAffinity { .. } | Misfit::PodAntiAffinity { .. } => {
                "change the pod's affinity, or make it preferred".to_owned()
            }
            Misfit::PodsAntiAffinity { .. } => "change the other pods' anti-affinity, or make it preferred".to_owned(),
            Misfit::Spread { .. } => {
                "raise `maxSkew` of the pod's spread constraint, or let it schedule anyway".to_owned()
            }
        },
    }
}

fn outlook(waiting: &Waiting, cluster: &Cluster) -> Option<String> {
    Some(match &waiting.because {
        None => "Nothing was said about it yet. A pod is looked at once it has waited for `scaleUp.pendingFor`; a group that \
                 was raised for it is among the decisions, as is the pod if it was the first of several."
            .to_owned(),
        Some(Reason::NodeComing { group }) => {
            let group = cluster.groups.iter().find(|it| it.name == *group);
            let counts = group.and_then(|group| Some((group.instances, group.desired?)));
            let counts = counts.map_or(String::new(), |(instances, desired)| {
                format!(" The group has {instances} of {desired} instances.")
            });
            format!(
                "It gets its place when the node is ready.{counts} A node that is not ready within \
                 `scaleUp.provisionTimeout` is no longer waited for, and another one is asked for."
            )
        }
        Some(Reason::SchedulerToPlace { node }) => format!(
            "The scheduler has the last word: it is expected to place the pod on {node}. If it does not, `kubectl describe \
             pod` says why; how many volumes a node can attach, for one, is not known here."
        ),
        Some(_) => return None,
    })
}

fn text(explained: &Explained<'_>, cluster: &Cluster, sheet: &mut Sheet) -> String {
    let Explained { now, pod, waiting, in_the_way, outlook, node, decisions: about } = explained;
    match (waiting, node_of(cluster, pod)) {
        (Some(waiting), _) => {
            let (since, age) = (moment(waiting.since), span(now.since(waiting.since)));
            sheet.title(&format!("Pod {pod} waits for a node"));
            warn(cluster, sheet);
            sheet.labelled("for     ", &format!("{age}, since {since}"));
            sheet.labelled("requests", &amounts(&waiting.requests));
            if let Some(because) = waiting.because.as_ref().filter(|_| in_the_way.is_empty()) {
                sheet.labelled("because ", &because.to_string());
            }
        }
        (None, Some(on)) => {
            sheet.title(&format!("Pod {pod} is on node {}", on.name));
            warn(cluster, sheet);
            if let Some(here) = on.pods.iter().find(|of_node| of_node.name == *pod) {
                sheet.labelled("requests", &amounts(&here.requests));
                if here.terminating {
                    sheet.line("It is being deleted.");
                } else if here.daemon {
                    sheet.line("It runs on every node, and keeps none.");
                } else {
                    sheet.line(&format!("It keeps the node: see `ebb explain node {}`.", node.unwrap_or_default()));
                }
            }
        }
        (None, None) => {}
    }
    if !in_the_way.is_empty() {
        sheet.title("No group can make a node for it (→ what would change that)");
        let widest = in_the_way.iter().map(|it| width(it.group)).max().unwrap_or(0);
        for InTheWay { group, because, remedy, .. } in in_the_way {
            sheet.advice(&format!("{group:widest$}"), because, remedy);
        }
    }
    if let Some(outlook) = outlook {
        sheet.title("What is awaited");
        sheet.line(outlook);
    }
    decisions(*now, about, sheet);
    sheet.take()
}
