use std::time::Duration;

use ebb_core::classify::IdlePolicy;
use ebb_core::kubernetes::TaintEffect;
use ebb_core::policy::{Budget, Launch, ScaleDown, ScaleUp};

use super::*;

/// The smallest file, for cases that are about something else.
const GROUP: &str = "groups: [{name: a, min: 0, max: 1, instanceType: m5.xlarge}]\n";

fn parse(text: &str) -> Result<Policy, Vec<Problem>> {
    super::parse(text, &Overrides::default())
}

fn refused(text: &str, expected: &[&str]) {
    let problems = parse(text).expect_err("should have been refused");
    let listed = Listed { path: Path::new("f"), problems: &problems }.to_string();
    assert_eq!(listed.lines().collect::<Vec<_>>(), expected, "{text}");
}

#[test]
fn the_example_says_the_defaults() {
    let policy = read(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/example.yaml")), &Overrides::default()).unwrap();
    assert_eq!(policy.scale_up, ScaleUp::default());
    assert_eq!(policy.scale_down, ScaleDown::default());
    assert_eq!(policy.idle, IdlePolicy::default());
    let [cpu, gpu, huge] = ["cpu-workers", "gpu-workers", "huge-workers"].map(|name| &policy.groups[name]);
    assert_eq!((cpu.min, cpu.max, cpu.unneeded_for), (2, 10, Duration::from_secs(600)));
    assert_eq!(cpu.labels["pool"], "cpu");
    assert_eq!(cpu.labels["node.kubernetes.io/instance-type"], "m5.xlarge");
    assert_eq!(gpu.taints[0].effect, TaintEffect::NoSchedule);
    assert_eq!(huge.unneeded_for, policy.scale_down.gpu_unneeded_for);
    assert_eq!((huge.allocatable.amount("cpu"), huge.allocatable.amount("nvidia.com/gpu")), (63_770, 8));
}

#[test]
fn a_file_with_groups_only_means_the_flow() {
    let policy = parse(GROUP).unwrap();
    assert_eq!((policy.scale_up, policy.idle), (ScaleUp::default(), IdlePolicy::default()));
    assert!(policy.groups["a"].allocatable.amount("cpu") > 3000);
}

#[test]
fn a_threshold_left_out_keeps_its_distance() {
    let cpu = parse(&format!("{GROUP}scaleDown: {{utilizationBelow: 95%}}")).unwrap().idle.cpu;
    assert_eq!((cpu.idle_below.get(), cpu.busy_from.get()), (950, 1000));
    let gpu = parse(&format!("{GROUP}idle: {{gpu: {{idleBelow: 20%}}}}")).unwrap().idle.gpu;
    assert_eq!((gpu.idle_below.get(), gpu.busy_from.get()), (200, 250));
}

#[test]
fn prices_are_known_or_given_where_they_are_compared() {
    let group = |price: &str| {
        let capacity = "allocatable: {cpu: 4, memory: 16Gi}";
        format!(
            "groups: [{{name: a, min: 0, max: 1, instanceType: x, {capacity}{price}}}]\nscaleUp: {{expander: price}}"
        )
    };
    refused(
        &group(""),
        &["f:1:50: no price is known for x: give its price (of an hour, in US dollars), or choose another expander"],
    );
    refused(&group(", price: cheap"), &["f:1:97: `cheap` is no amount of US dollars as `0.526`"]);
    let policy = parse(&group(", price: 0.1, priority: -3")).unwrap();
    assert_eq!((policy.groups["a"].price.unwrap().micros(), policy.groups["a"].priority), (100_000, -3));
    assert_eq!(parse(GROUP).unwrap().groups["a"].price.unwrap().micros(), 192_000);
    refused(
        &format!("{GROUP}scaleUp: {{expander: random}}\nscaleDown: {{consolidate: perhaps}}"),
        &["f:2:21: `random` is no expander: leastWaste or price", "f:3:26: `perhaps` is neither true nor false"],
    );
    refused(
        &format!("{GROUP}scaleUp: {{launch: rockets}}"),
        &["f:2:19: `rockets` is no way to launch: setDesiredCapacity or launchInstances"],
    );
    let policy = parse(&format!("{GROUP}scaleUp: {{launch: launchInstances}}")).unwrap();
    assert_eq!(policy.scale_up.launch, Launch::LaunchInstances);
}

#[test]
fn budgets_are_read_and_wrong_ones_are_refused() {
    let with = |ours: &str, groups: &str| {
        let group = "groups:\n  - {name: a, min: 0, max: 1, instanceType: m5.xlarge, budgets: [";
        format!("{group}{groups}]}}\nscaleDown: {{budgets: [{ours}]}}\n")
    };
    let nights = "{nodes: 0, schedule: 0 9 * * mon-fri, duration: 8h, reasons: [consolidated, empty]}";
    let policy = parse(&with(&format!("{nights}, {{nodes: 10%}}"), "{nodes: 2}")).unwrap();
    let written = |budgets: &[Budget]| budgets.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(written(&policy.scale_down.budgets), [nights, "{nodes: 10%}"]);
    assert_eq!(written(&policy.groups["a"].budgets), ["{nodes: 2}"]);
    let refused = |budget: &str, expected: &str| refused(&with(budget, ""), &[expected]);
    refused("{nodes: few}", "f:3:31: `few` is neither a whole number of 0 or more nor a share of the nodes as in 10%");
    refused("{nodes: 101%}", "f:3:31: `101%` is no share as in 50% or 2.5%, between 0% and 100%");
    refused("{nodes: 0}", "f:3:31: expected a schedule or reasons: with 0 no node would ever be removed");
    refused("{nodes: 0.0%}", "f:3:31: expected a schedule or reasons: with 0 no node would ever be removed");
    refused(
        "{nodes: 1, schedule: '@daily'}",
        "f:3:44: expected a duration as well: for how long the budget holds each time",
    );
    refused("{nodes: 1, duration: 1h}", "f:3:44: expected a schedule as well: when the budget begins to hold");
    refused("{nodes: 1, schedule: '@daily', duration: 0s}", "f:3:64: expected a duration above zero");
    refused(
        "{nodes: 1, schedule: 0 25 * * *, duration: 1h}",
        "f:3:44: `0 25 * * *` is no schedule as in `0 9 * * mon-fri`: hour: `25` is none of 0 to 23",
    );
    refused(
        "{nodes: 1, schedule: 0 0 30 2 *, duration: 1h}",
        "f:3:44: `0 0 30 2 *` is no schedule as in `0 9 * * mon-fri`: there is no such day",
    );
    refused("{nodes: 1, reasons: []}", "f:3:43: expected at least one reason; left out, the budget is about all");
    refused(
        "{nodes: 1, reasons: [drifted]}",
        "f:3:44: `drifted` is no reason for a drain: completed, consolidated or empty",
    );
    refused(
        "{nodes: 1, when: never}",
        "f:3:34: unknown field `when`, expected one of nodes, schedule, duration, reasons",
    );
    // A group may be kept as it is.
    assert!(parse(&with("", "{nodes: 0}")).is_ok());
}

#[test]
fn a_group_may_run_to_completion_other_than_the_rest() {
    let groups = "groups:\n  - {name: a, min: 0, max: 1, instanceType: m5.xlarge}\n  \
                  - {name: b, min: 0, max: 1, instanceType: m5.xlarge, runToCompletion: false}\n";
    let scale_down = "scaleDown: {runToCompletion: true, runToCompletionTimeout: 2h}";
    let policy = parse(&format!("{groups}{scale_down}")).unwrap();
    assert_eq!(["a", "b"].map(|group| policy.groups[group].run_to_completion), [true, false]);
    assert_eq!(policy.scale_down.run_to_completion_timeout, Duration::from_secs(7200));
    refused(
        &format!("{GROUP}scaleDown: {{runToCompletion: maybe, runToCompletionTimeout: 0s}}"),
        &["f:2:30: `maybe` is neither true nor false", "f:2:61: expected a duration above zero"],
    );
}

#[test]
fn capacity_without_pods_has_the_kubelets_default() {
    let text = "groups: [{name: a, min: 0, max: 1, instanceType: x, allocatable: {cpu: 4, memory: 16Gi}}]";
    assert_eq!(parse(text).unwrap().groups["a"].allocatable.amount("pods"), 110);
}

#[test]
fn all_problems_are_listed_in_the_files_order() {
    refused(
        "\
groups:
  - {name: a, min: 3, max: 2, instanceType: x99.giant}
  - {name: a, min: 0, max: 0, instanceType: m5.xlarge, unneededFor: soon}
  - name: b
    min: 0
    max: 1
    instanceType: t
    allocatable: {cpu: four}
    labels: {node.kubernetes.io/instance-type: u}
    taints: [{key: k, effect: Never}]
scaleUp: {pendingFor: 30, provisionTimeout: 0s}
scaleDown: {utilizationBelow: 70%, maxParallelDrains: 0}
idle: {window: 0s, cpu: {idleBelow: 50%, busyFrom: 60%}, gpu: {busyFrom: 101%}, runQueue: {idleBelow: 0.5}}
",
        &[
            "f:2:20: min 3 is above max 2",
            "f:2:45: unknown instance type x99.giant: give its allocatable resources",
            "f:3:12: a second group a",
            "f:3:28: expected at least 1: a group with 0 nodes at most is no group",
            "f:3:69: `soon` is no duration as in 30s, 10m or 1h30m",
            "f:8:18: expected memory: a node without it runs no pods",
            "f:8:24: `four` is no Kubernetes quantity as in 500m, 4 or 16Gi",
            "f:9:48: label u contradicts instance type t",
            "f:10:31: `Never` is no taint effect: NoExecute, NoSchedule or PreferNoSchedule",
            "f:11:23: `30` is no duration as in 30s, 10m or 1h30m",
            "f:11:45: expected a duration above zero",
            "f:12:55: expected at least 1: with 0 no node would ever be removed",
            "f:13:16: expected a duration above zero",
            "f:13:37: idle.cpu.idleBelow is said as scaleDown.utilizationBelow",
            "f:13:52: busy from 60% is below idle below 70%: a node would be both",
            "f:13:74: `101%` is no share as in 50% or 2.5%, between 0% and 100%",
            "f:13:103: `0.5` is no share as in 50% or 2.5%, between 0% and 100%",
        ],
    );
}

#[test]
fn what_is_no_configuration_says_what_was_expected() {
    refused("groups: []", &["f:1:9: expected at least one group"]);
    refused("", &["f:1:1: unexpected end of file"]);
    refused("scaleUp: {}", &["f:1:1: missing field `groups`"]);
    refused("groups: 3", &["f:1:9: expected a list"]);
    refused("groups: [{name: a, min: 1}]", &["f:1:20: missing field `max`"]);
    refused("groups: [", &["f:1:9: unclosed bracket '['"]);
    refused(
        "groups: [{name: a, min: -1, max: two, instanceType: m5.xlarge}]",
        &["f:1:25: `-1` is no whole number of 0 or more", "f:1:34: `two` is no whole number of 0 or more"],
    );
    refused(
        &format!("{GROUP}scaleup: {{}}"),
        &["f:2:1: unknown field `scaleup`, expected one of groups, scaleUp, scaleDown, idle, ray"],
    );
    refused(
        &format!("{GROUP}scaleUp: {{pendingFor: 1s, pendingFor: 2s}}"),
        &["f:2:27: duplicate mapping key `pendingFor` is not allowed here"],
    );
    refused(&format!("{GROUP}scaleUp: [1]"), &["f:2:10: expected keys with values"]);
    refused(&format!("{GROUP}scaleUp: {{pendingFor: [1]}}"), &["f:2:23: expected a single value"]);
}

#[test]
fn the_command_line_wins_over_the_file() {
    let overrides = Overrides { unneeded_for: Some(Duration::from_secs(1)), ..Overrides::default() };
    let policy = super::parse(&format!("{GROUP}scaleDown: {{unneededFor: 1h}}"), &overrides).unwrap();
    assert_eq!(policy.scale_down.unneeded_for, Duration::from_secs(1));
    assert_eq!(policy.groups["a"].unneeded_for, Duration::from_secs(1));
}
