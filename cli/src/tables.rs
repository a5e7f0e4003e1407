//! What a run took and cost, beside the flow's typical durations and beside other ways to run the same work.

use std::fmt::Write as _;
use std::time::Duration;

use ebb_core::price::{Dollars, PRICES_OF};
use ebb_core::time::{Instant, format_duration, format_seconds};
use ebb_sim::run::{Milestones, Run};
use ebb_sim::scenario::Scenario;

/// One row of the flow's "Timing Summary".
struct Row {
    event: &'static str,
    layer: &'static str,
    typical: &'static str,
    /// In seconds: the typical duration's, to the second.
    range: (u64, u64),
    took: fn(&Milestones) -> Option<Duration>,
}

const UP: &[Row] = &[
    Row {
        event: "Request more workers",
        layer: "Ray",
        typical: "5-10 seconds",
        range: (5, 10),
        took: |it| between(it.submitted, it.ray_asked),
    },
    Row {
        event: "HPA scales pods",
        layer: "HPA",
        typical: "30-60 seconds",
        range: (30, 60),
        took: |it| between(it.ray_asked, it.hpa_scaled),
    },
    Row {
        event: "Node needed",
        layer: "Ebb",
        typical: "immediate, after 30 seconds pending",
        range: (30, 30),
        took: |it| between(it.pods_pending, it.capacity_asked),
    },
    Row {
        event: "EC2 launched",
        layer: "AWS",
        typical: "3-5 minutes",
        range: (180, 300),
        took: |it| between(it.capacity_asked, it.instance_launched),
    },
    Row {
        event: "Node ready",
        layer: "Kubernetes",
        typical: "30-60 seconds",
        range: (30, 60),
        took: |it| between(it.instance_launched, it.node_ready),
    },
    Row {
        event: "Total, to the first new node",
        layer: "",
        typical: "4-7 minutes",
        range: (240, 420),
        took: |it| between(it.submitted, it.node_ready),
    },
];

const DOWN: &[Row] = &[
    Row {
        event: "Workload idle",
        layer: "Ray",
        typical: "60 seconds",
        range: (60, 60),
        took: |it| between(it.tasks_done, it.ray_settled),
    },
    Row {
        event: "HPA scale down",
        layer: "HPA",
        typical: "5 minutes",
        range: (300, 300),
        took: |it| between(it.ray_asked_fewer, it.hpa_scaled_down),
    },
    Row {
        event: "Node utilization low",
        layer: "Ebb",
        typical: "10 minutes (GPU nodes sooner)",
        range: (600, 600),
        took: |it| between(it.node_unneeded, it.drain_asked),
    },
    Row {
        event: "Node terminated",
        layer: "AWS",
        typical: "2-3 minutes",
        range: (120, 180),
        took: |it| between(it.drained, it.terminated),
    },
    Row {
        event: "Total, to the first node gone",
        layer: "",
        typical: "15-20 minutes",
        range: (900, 1200),
        took: |it| between(it.tasks_done, it.terminated),
    },
    Row {
        event: "Back at the minimum",
        layer: "",
        typical: "",
        range: (0, u64::MAX),
        took: |it| between(it.tasks_done, it.at_minimum),
    },
];

fn between(from: Option<Instant>, to: Option<Instant>) -> Option<Duration> {
    from.zip(to).map(|(from, to)| to.since(from))
}

/// The flow's two tables, with what each worker group's burst took beside its typical durations.
pub(crate) fn timing(run: &Run) -> String {
    let mut text = String::new();
    for (title, rows) in [("Scale-up", UP), ("Scale-down", DOWN)] {
        let names: String = run.milestones.keys().map(|name| format!("{name:>14}")).collect();
        let _ = writeln!(text, "\n{title:<30}{:<12}{:<36}{names}", "layer", "typical");
        for row in rows {
            let took: String = run.milestones.values().map(|marks| format!("{:>14}", row.cell(marks))).collect();
            let line = format!("  {:<28}{:<12}{:<36}{took}", row.event, row.layer, row.typical);
            let _ = writeln!(text, "{}", line.trim_end());
        }
    }
    text + "  < sooner, > later than typical, – no part of this worker group's way. Ray's rounds are five seconds apart and\n  \
            the HPA's fifteen, which can add to each. A worker's 60 s count from its own last task, the row's from the\n  \
            group's. Workers that Ray scales alone spare the HPA's five minutes. Nodes leave one at a time, as the flow\n  \
            has it: who waits for others leaves later.\n"
}

impl Row {
    fn cell(&self, marks: &Milestones) -> String {
        let Some(took) = (self.took)(marks) else { return "–".to_owned() };
        let mark = match took.as_secs() {
            seconds if seconds < self.range.0 => "< ",
            seconds if seconds > self.range.1 => "> ",
            _ => "",
        };
        format!("{mark}{}", format_seconds(took))
    }
}

/// What the run cost beside other rules and a fixed size on the same workload.
pub(crate) fn cost(scenario: &Scenario, ours: &Run, others: &[(&str, Run)]) -> String {
    let hours = |seconds: u64| format!("{:.1}", seconds as f64 / 3600.0);
    let dollars = |dollars: Option<Dollars>| dollars.map_or("unknown".to_owned(), |dollars| dollars.to_string());
    let mut text = String::new();
    let _ = writeln!(
        text,
        "\n{:<42}{:>11}{:>11}{:>9}{:>7}{:>16}",
        "Cost", "node-hours", "idle hours", "cost", "", "tasks wait, p95"
    );
    let groups = ours.totals.groups.values();
    let fixed = groups.map(|group| group.fixed_size).try_fold(Dollars::default(), |sum, it| Some(sum + it?));
    let peak: u32 = ours.totals.groups.values().map(|group| group.peak).sum();
    let share = |cost: Option<Dollars>| match (cost, fixed) {
        (Some(cost), Some(fixed)) if fixed.micros() > 0 => format!("{} %", cost.micros() * 100 / fixed.micros()),
        _ => String::new(),
    };
    let others = others.iter().map(|(name, run)| (*name, run));
    for (name, run) in std::iter::once(("Ebb, as configured", ours)).chain(others) {
        let totals = &run.totals;
        let _ = writeln!(
            text,
            "  {name:<40}{:>11}{:>11}{:>9}{:>7}{:>16}",
            hours(totals.cost.node_seconds),
            hours(totals.idle_node_seconds),
            dollars(totals.cost.total),
            share(totals.cost.total),
            format_seconds(totals.task_wait.p95),
        );
    }
    let _ = writeln!(
        text,
        "  {:<40}{:>11}{:>11}{:>9}{:>7}",
        format!("Fixed size: {peak} nodes all the time"),
        hours(u64::from(peak) * scenario.duration.as_secs()),
        "",
        dollars(fixed),
        share(fixed),
    );
    let length = format_duration(scenario.duration);
    text + &format!("  {length} in all, on-demand prices of us-east-1 as of {PRICES_OF}.\n")
}
