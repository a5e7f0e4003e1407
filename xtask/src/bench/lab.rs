//! The benchmarks that need a lab: programs of `tests/`, each of which prints one JSON document.

use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use serde_json::Value;

use super::{Args, Row, build};
use crate::process::{capture, root};

/// Runs one of them, with this package built before; what it found.
fn in_a_lab(bin: &str, package: &str, numbers: &[u32]) -> Result<Value> {
    const PROFILE: &str = "EBB_BUILD_PROFILE";
    let profile = std::env::var(PROFILE).unwrap_or_else(|_| "release".into());
    if profile == "release" {
        build(&[package])?;
    } else {
        eprintln!("{PROFILE}={profile}: not what is released");
    }
    let mut cargo = Command::new("cargo");
    cargo.args(["run", "--quiet", "--package", "ebb-tests", "--bin", bin, "--"]);
    cargo.args(numbers.iter().map(u32::to_string));
    // Its warnings and progress are for the one who waits.
    cargo.env(PROFILE, profile).stderr(Stdio::inherit()).current_dir(root());
    serde_json::from_str(&capture(&mut cargo)?).context("read the figures")
}

pub(super) fn burst(trials: u32) -> Result<Vec<Row>> {
    let document = in_a_lab("bench-burst", "ebb-coordinator", &[trials])?;
    let row = |what, from: &str, percentile: &str, aim| {
        let figure = |who: &str| document[who][from][percentile].as_f64().with_context(|| format!("find {percentile}"));
        anyhow::Ok(Row {
            what,
            unit: "ms",
            ours: figure("ebb")?,
            theirs: Some((figure("floor")?, "watch and call, nothing else")),
            aim,
        })
    };
    Ok(vec![
        row("unschedulable to SetDesired, p50", "fromUnschedulableMs", "p50", "below 300 ms")?,
        row("unschedulable to SetDesired, p90", "fromUnschedulableMs", "p90", "")?,
        row("unschedulable to SetDesired, max", "fromUnschedulableMs", "max", "")?,
        row("pod created to SetDesired, p50", "fromCreationMs", "p50", "")?,
        row("pod created to SetDesired, p90", "fromCreationMs", "p90", "")?,
        row("pod created to SetDesired, max", "fromCreationMs", "max", "")?,
    ])
}

pub(super) fn decide(args: &Args) -> Result<Vec<Row>> {
    let document = in_a_lab("bench-decide", "ebb-coordinator", &[args.trials, args.nodes, args.pods])?;
    eprintln!("the cluster: {} nodes, {} pods, made in {} s", args.nodes, args.pods, document["fillSeconds"]);
    let figure = |path: &str| document.pointer(path).and_then(Value::as_f64).with_context(|| format!("find {path}"));
    let row = |what, unit, ours: &str, theirs: Option<(&str, &'static str)>, aim| {
        let theirs = theirs.map(|(path, who)| anyhow::Ok((figure(path)?, who))).transpose()?;
        anyhow::Ok(Row { what, unit, ours: figure(ours)?, theirs, aim })
    };
    let scheduler = |path| Some((path, "kube-scheduler"));
    let floor = |path| Some((path, "watch and call, nothing else"));
    Ok(vec![
        row("from its start to a whole picture", "s", "/syncedSeconds", None, "")?,
        row(
            "resident memory, idle",
            "MiB",
            "/idle/ebb/rssMib",
            scheduler("/idle/scheduler/rssMib"),
            "below 200 MiB at 5000 nodes, 150 000 pods",
        )?,
        row("its peak so far", "MiB", "/idle/ebb/peakMib", scheduler("/idle/scheduler/peakMib"), "")?,
        row(
            "CPU in an idle minute, no reports",
            "s",
            "/idle/ebb/cpuSeconds",
            scheduler("/idle/scheduler/cpuSeconds"),
            "",
        )?,
        row(
            "unschedulable to SetDesired, p50",
            "ms",
            "/trials/ebb/fromUnschedulableMs/p50",
            floor("/trials/floor/fromUnschedulableMs/p50"),
            "",
        )?,
        row(
            "unschedulable to SetDesired, p99",
            "ms",
            "/trials/ebb/fromUnschedulableMs/p99",
            floor("/trials/floor/fromUnschedulableMs/p99"),
            "below 1 s",
        )?,
        row(
            "pod created to SetDesired, p50",
            "ms",
            "/trials/ebb/fromCreationMs/p50",
            floor("/trials/floor/fromCreationMs/p50"),
            "",
        )?,
        row(
            "pod created to SetDesired, p99",
            "ms",
            "/trials/ebb/fromCreationMs/p99",
            floor("/trials/floor/fromCreationMs/p99"),
            "",
        )?,
        row("the rules, over one such pod's trial", "ms", "/trials/rulesMs", None, "")?,
        row("1000 pods, first to last created", "ms", "/burst/createdMs", None, "")?,
        row(
            "last created to last SetDesired",
            "ms",
            "/burst/askedMs",
            Some(("/burst/refusedMs", "the scheduler's last refusal")),
            "within 2 s",
        )?,
        row("calls of SetDesired", "", "/burst/calls", Some(("/burst/groups", "groups that grow")), "one each")?,
        row("nodes asked for", "", "/burst/nodes", Some(("/burst/nodesNeeded", "nodes needed")), "")?,
        row("the rules, over the whole burst", "ms", "/burst/rulesMs", None, "")?,
        row("resident memory, after the burst", "MiB", "/after/rssMib", None, "")?,
    ])
}

/// Ours, the peer's, and whose that is; the aim.
type Compared = (&'static str, &'static str, &'static str, Option<(&'static str, &'static str)>, &'static str);

const ONE_CALL: &str = "kubectl drain, one call";
const EACH_A_CALL: &str = "a kubectl a node, 16 at once";
const FLOOR: &str = "64 evictions at once";

/// By their places in the document.
const DRAINS: [Compared; 26] = [
    (
        "110 pods: to drained, over their grace",
        "s",
        "/full/ebb/drained",
        Some(("/full/kubectl/drained", ONE_CALL)),
        "below 2 s",
    ),
    ("to the last pod gone, over it", "s", "/full/ebb/empty", Some(("/full/kubectl/empty", ONE_CALL)), ""),
    ("the same", "s", "/full/ebb/empty", Some(("/full/floor/empty", FLOOR)), ""),
    ("requests, a pod", "", "/full/ebb/requests", Some(("/full/kubectl/requests", ONE_CALL)), "a third"),
    ("writes, a pod", "", "/full/ebb/writes", Some(("/full/kubectl/writes", ONE_CALL)), "at most 3"),
    ("dry runs among them, a pod", "", "/full/ebb/dryRuns", None, ""),
    ("GETs, a pod", "", "/full/ebb/gets", Some(("/full/kubectl/gets", ONE_CALL)), ""),
    ("LISTs", "", "/full/ebb/listsPerNode", Some(("/full/kubectl/listsPerNode", ONE_CALL)), ""),
    (
        "20 pods, one at a time: to drained, over it",
        "s",
        "/budget/ebb/drained",
        Some(("/budget/kubectl/drained", ONE_CALL)),
        "",
    ),
    ("the same", "s", "/budget/ebb/drained", Some(("/budgetsOwnPace", "their replacements' starts")), ""),
    ("requests, a pod", "", "/budget/ebb/requests", Some(("/budget/kubectl/requests", ONE_CALL)), "a third"),
    ("writes, a pod", "", "/budget/ebb/writes", Some(("/budget/kubectl/writes", ONE_CALL)), ""),
    ("dry runs among them, a pod", "", "/budget/ebb/dryRuns", None, ""),
    (
        "429 of the budget, a pod",
        "",
        "/budget/ebb/closedBudgets",
        Some(("/budget/kubectl/closedBudgets", ONE_CALL)),
        "",
    ),
    ("GETs, a pod", "", "/budget/ebb/gets", Some(("/budget/kubectl/gets", ONE_CALL)), ""),
    ("LISTs", "", "/budget/ebb/listsPerNode", Some(("/budget/kubectl/listsPerNode", ONE_CALL)), "1, for all retries"),
    ("nodes at once, 10 pods each", "", "/nodes", None, ""),
    (
        "to all drained, over the grace",
        "s",
        "/many/ebb/drained",
        Some(("/many/kubectl/drained", ONE_CALL)),
        "below 2 s",
    ),
    ("the same", "s", "/many/ebb/drained", Some(("/many/kubectls/drained", EACH_A_CALL)), ""),
    ("to the last pod gone, over it", "s", "/many/ebb/empty", Some(("/many/floor/empty", FLOOR)), ""),
    ("requests, a pod", "", "/many/ebb/requests", Some(("/many/kubectl/requests", ONE_CALL)), "a third"),
    ("the same", "", "/many/ebb/requests", Some(("/many/kubectls/requests", EACH_A_CALL)), "a third"),
    ("writes, a pod", "", "/many/ebb/writes", Some(("/many/kubectls/writes", EACH_A_CALL)), "at most 3"),
    ("dry runs among them, a pod", "", "/many/ebb/dryRuns", None, ""),
    ("LISTs, a node", "", "/many/ebb/listsPerNode", Some(("/many/kubectls/listsPerNode", EACH_A_CALL)), ""),
    (
        "429 that no budget is the cause of",
        "",
        "/many/ebb/throttled",
        Some(("/many/kubectls/throttled", EACH_A_CALL)),
        "none",
    ),
];

pub(super) fn drain(args: &Args) -> Result<Vec<Row>> {
    eprintln!("{} rounds; {} nodes at once (--drained-nodes)", args.rounds, args.drained_nodes);
    let document = in_a_lab("bench-drain", "ebb-agent", &[args.rounds, args.drained_nodes])?;
    compare(&document, &DRAINS)
}

const METRICS_SERVER: &str = "metrics-server";

/// By their places in the document.
const HPA: [Compared; 11] = [
    (
        "more load to PodMetrics that show some of it",
        "s",
        "/ebb/up/firstSeconds/median",
        Some(("/metricsServer/up/firstSeconds/median", METRICS_SERVER)),
        "",
    ),
    (
        "the longest of them",
        "s",
        "/ebb/up/firstSeconds/max",
        Some(("/metricsServer/up/firstSeconds/max", METRICS_SERVER)),
        "",
    ),
    (
        "to PodMetrics that show all of it",
        "s",
        "/ebb/up/wholeSeconds/median",
        Some(("/metricsServer/up/wholeSeconds/median", METRICS_SERVER)),
        "",
    ),
    (
        "to more replicas, by the real HPA",
        "s",
        "/ebb/up/replicasSeconds/median",
        Some(("/metricsServer/up/replicasSeconds/median", METRICS_SERVER)),
        "",
    ),
    (
        "less load to PodMetrics that show all of it",
        "s",
        "/ebb/down/wholeSeconds/median",
        Some(("/metricsServer/down/wholeSeconds/median", METRICS_SERVER)),
        "",
    ),
    (
        "to fewer replicas, by the real HPA",
        "s",
        "/ebb/down/replicasSeconds/median",
        Some(("/metricsServer/down/replicasSeconds/median", METRICS_SERVER)),
        "",
    ),
    ("resident memory", "MiB", "/rssMib/ebb", Some(("/rssMib/metricsServer", METRICS_SERVER)), ""),
    (
        "of it, since agents told what pods use",
        "MiB",
        "/rssMib/ebbForUsage",
        Some(("/rssMib/metricsServer", METRICS_SERVER)),
        "",
    ),
    ("all pods in one list", "s", "/listed/ebb/seconds", Some(("/listed/metricsServer/seconds", METRICS_SERVER)), ""),
    ("pods in it", "", "/listed/ebb/pods", Some(("/listed/metricsServer/pods", METRICS_SERVER)), ""),
    (
        "memory at most, with that list",
        "MiB",
        "/listed/ebb/peakMib",
        Some(("/listed/metricsServer/peakMib", METRICS_SERVER)),
        "",
    ),
];

pub(super) fn hpa(args: &Args) -> Result<Vec<Row>> {
    eprintln!("{} nodes, {} pods (--nodes, --pods); {} rounds (--rounds)", args.nodes, args.pods, args.rounds);
    let document = in_a_lab("bench-hpa", "ebb-coordinator", &[args.rounds, args.nodes, args.pods])?;
    compare(&document, &HPA)
}

const PENDING: &str = "through pending pods";

/// By their places in the document. The aims are the flow's typical durations.
const RAY: [Compared; 11] = [
    (
        "tasks to the first node asked for, ahead of Ray",
        "s",
        "/anticipated/firstAsked",
        Some(("/pending/firstAsked", PENDING)),
        "",
    ),
    ("to the third of three", "s", "/anticipated/allAsked", Some(("/pending/allAsked", PENDING)), ""),
    ("the same", "s", "/anticipated/allAsked", Some(("/pendingFor/allAsked", "the flow's: pending for 30 s")), ""),
    ("Ebb sets the workers: tasks to three replicas", "s", "/driven/replicas", None, "5-10 s"),
    ("to the pods", "s", "/driven/podsMade", None, "30-60 s"),
    ("to three nodes asked for", "s", "/driven/allAsked", None, "at once after the pods"),
    ("to the pods on ready nodes, with a boot of 10 s", "s", "/driven/placed", None, "4-7 min with boots of 3-5"),
    ("to all tasks done", "s", "/driven/done", None, ""),
    ("tasks done to the first worker that goes", "s", "/driven/fewer", None, "60 s"),
    ("to the first node terminated, unneeded for 20 s", "s", "/driven/firstTerminated", None, "10 min and more"),
    ("to the last node gone", "s", "/driven/gone", None, "15-20 min with 10 min unneeded"),
];

pub(super) fn ray() -> Result<Vec<Row>> {
    compare(&in_a_lab("bench-ray", "ebb-coordinator", &[])?, &RAY)
}

fn compare(document: &Value, rows: &[Compared]) -> Result<Vec<Row>> {
    let figure = |path: &str| document.pointer(path).and_then(Value::as_f64).with_context(|| format!("find {path}"));
    let row = |&(what, unit, ours, theirs, aim): &Compared| {
        // Not every peer is measured with very many nodes.
        let theirs = theirs.and_then(|(path, who)| Some((figure(path).ok()?, who)));
        anyhow::Ok(Row { what, unit, ours: figure(ours)?, theirs, aim })
    };
    rows.iter().map(row).collect()
}
