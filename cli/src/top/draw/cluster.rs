//! The cluster: what it costs, its groups, its nodes with what is requested and what is used, who waits, and what was
//! decided.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::text::{Line, Span};

use ebb_core::time::Instant;

use super::super::app::{App, Order};
use super::super::cluster::{Amounts, Cluster, Node, Pod, Total};
use super::super::paint::{
    ACCENT, BAD, BOLD, GOOD, PLAIN, QUIET, WARN, bar, left, line, sparkline, title, used_and_requested,
};
use super::super::text::{bytes, clip, clip_start, cores, count, counted, dollars, percent, span};
use super::cut::Cut;
use super::table::{self, Column};

pub(super) fn draw(app: &mut App, cluster: &Cluster, buffer: &mut Buffer, area: Rect) {
    let mut cut = Cut(area);
    let name = if cluster.title.is_empty() { "cluster" } else { &cluster.title };
    super::header(app, buffer, cut.top(1), name, leading(cluster));
    if app.opened.is_some() {
        return opened(app, cluster, buffer, cut.0);
    }
    line(buffer, cut.top(1), 0, &cost(cluster));
    shares(cluster, buffer, &mut cut);
    groups(cluster, buffer, &mut cut);
    // What is decided and who waits stand below the nodes, side by side, and never take more than a third.
    let below = (area.height / 4).clamp(0, 12);
    if cut.0.height > below + 6 {
        let mut both = Cut(cut.bottom(below));
        if area.width >= 100 {
            waiting(cluster, buffer, both.left(area.width / 2 - 2));
            both.left(2);
            steps(cluster, buffer, both.0);
        } else {
            waiting(cluster, buffer, both.top(below / 2));
            steps(cluster, buffer, both.0);
        }
    }
    nodes(app, cluster, buffer, cut.0);
}

fn leading(cluster: &Cluster) -> Vec<Span<'static>> {
    let mark = |yes: bool, text: &'static str, otherwise: &'static str| {
        if yes { Span::styled(text, GOOD) } else { Span::styled(otherwise, BAD) }
    };
    let head = &cluster.head;
    vec![mark(head.leading, "leading", "not leading"), Span::raw(" "), mark(head.synced, "synced", "not synced")]
}

fn cost(cluster: &Cluster) -> Line<'static> {
    let ready = cluster.nodes.values().filter(|node| node.state.ready).count();
    let mut spans = vec![
        Span::styled(format!(" {}", count(cluster.nodes.len(), "node")), BOLD),
        Span::raw(format!(" ({ready} ready) ")),
    ];
    let top = |columns: &[Option<f64>]| columns.iter().flatten().fold(1.0, |top: f64, value| top.max(*value));
    let columns = cluster.nodes_counted.columns(20);
    spans.extend(sparkline(&columns, top(&columns), ACCENT));
    let waiting = format!("  {} waiting ", count(cluster.waiting.total, "pod"));
    spans.push(Span::styled(waiting, if cluster.waiting.total > 0 { WARN } else { PLAIN }));
    let cost = &cluster.head.cost;
    spans.push(Span::styled(format!("  {} an hour", dollars(cost.per_hour)), BOLD));
    spans.push(Span::raw(format!(", {} so far", dollars(cost.total))));
    Line::from(spans)
}

/// Of the whole cluster, what is requested and what is used.
fn shares(cluster: &Cluster, buffer: &mut Buffer, cut: &mut Cut) {
    let totals = cluster.totals();
    let row = |name: &str, total: Total, whole: String, columns: usize| {
        let mut spans = vec![Span::styled(format!(" {name:<7}"), QUIET)];
        spans.extend(used_and_requested(columns, total.used(), total.requested()));
        spans.push(Span::raw(format!(
            " {:>5} used {:>5} requested",
            percent(total.used()),
            percent(total.requested())
        )));
        spans.push(Span::styled(format!(" of {whole}"), QUIET));
        Line::from(spans)
    };
    let columns = usize::from(cut.0.width).saturating_sub(54).min(60);
    line(buffer, cut.top(1), 0, &row("CPU", totals.cpu, cores(Some(totals.cpu.allocatable)), columns));
    line(buffer, cut.top(1), 0, &row("memory", totals.memory, bytes(Some(totals.memory.allocatable)), columns));
    if totals.gpus.allocatable > 0.0 {
        let gpus = format!("{:.0}", totals.gpus.allocatable);
        line(buffer, cut.top(1), 0, &row("GPU", totals.gpus, gpus, columns));
    }
}

fn groups(cluster: &Cluster, buffer: &mut Buffer, cut: &mut Cut) {
    // Most of the screen is for nodes.
    let room = (cut.0.height / 4).max(2);
    let shown = cluster.groups.len().min(usize::from(room));
    title(buffer, cut.top(1), 0, "Groups", vec![Span::raw(cluster.groups.len().to_string())]);
    let name_width =
        cluster.groups.iter().take(shown).map(|group| group.name.chars().count()).max().unwrap_or(0).min(32);
    for group in cluster.groups.iter().take(shown) {
        let desired =
            group.desired.map_or_else(|| super::super::text::UNKNOWN.to_owned(), |desired| desired.to_string());
        let share = f64::from(group.instances) / f64::from(group.max.max(1));
        let mut spans = vec![
            Span::raw(format!(" {} ", left(&group.name, name_width))),
            Span::styled(format!("{} ", left(&group.instance_type, 13)), QUIET),
        ];
        spans.extend(bar(
            usize::from(cut.0.width).saturating_sub(name_width + 70).clamp(8, 40),
            &[(share, '█', ACCENT)],
        ));
        spans.push(Span::raw(format!(" {} of {desired} desired", group.instances)));
        spans.push(Span::styled(format!("  min {} max {}", group.min, group.max), QUIET));
        if !group.observed {
            spans.push(Span::styled("  not known to AWS yet", WARN));
        }
        line(buffer, cut.top(1), 0, &Line::from(spans));
    }
}

fn waiting(cluster: &Cluster, buffer: &mut Buffer, area: Rect) {
    title(buffer, area, 0, "Waiting pods", vec![Span::raw(cluster.waiting.total.to_string())]);
    if cluster.waiting.total == 0 {
        line(buffer, area, 1, &Line::styled(" none", QUIET));
    }
    let fits = usize::from(area.height.saturating_sub(1));
    for (row, pod) in (1..).zip(cluster.waiting.pods.iter().take(fits)) {
        let mut spans = vec![Span::raw(format!(" {} ", clip_start(&pod.pod, usize::from(area.width) / 2)))];
        if let Some((now, since)) = cluster.head.now.zip(pod.since) {
            spans.push(Span::styled(format!("{} ", span(now.since(since))), WARN));
        }
        spans.push(Span::styled(format!("{} ", amounts(pod.requests)), QUIET));
        spans.push(Span::raw(pod.because.clone()));
        line(buffer, area, row, &Line::from(spans));
    }
}

fn steps(cluster: &Cluster, buffer: &mut Buffer, area: Rect) {
    title(buffer, area, 0, "Decisions", Vec::new());
    if cluster.steps.is_empty() {
        line(buffer, area, 1, &Line::styled(" none yet", QUIET));
    }
    let fits = usize::from(area.height.saturating_sub(1));
    for (row, step) in (1..).zip(cluster.steps.iter().take(fits)) {
        let ago = cluster.head.now.zip(step.at).map(|(now, at)| span(now.since(at))).unwrap_or_default();
        let mut spans = vec![
            Span::styled(format!(" {ago:>7} "), QUIET),
            Span::styled(format!("{} ", cluster.level(step)), ACCENT),
            Span::raw(step.what.clone()),
        ];
        if !step.because.is_empty() {
            spans.push(Span::styled(format!(": {}", step.because), QUIET));
        }
        line(buffer, area, row, &Line::from(spans));
    }
}

fn amounts(amounts: Amounts) -> String {
    let mut text = format!("{} CPU, {}", cores(amounts.cpu), bytes(amounts.memory));
    if let Some(gpus) = amounts.gpus.filter(|gpus| *gpus > 0.0) {
        text.push_str(&format!(", {gpus:.0} GPU"));
    }
    text
}

/// One line of the table.
struct Row<'a> {
    node: &'a Node,
    now: Option<Instant>,
}

fn nodes(app: &mut App, cluster: &Cluster, buffer: &mut Buffer, area: Rect) {
    let now = cluster.head.now;
    let text = |node: &Node| format!("{} {} {}", node.name, node.state.group, node.state.class);
    let all = cluster.nodes.values();
    let mut rows: Vec<Row<'_>> =
        all.filter(|node| app.list.lets_through(&text(node))).map(|node| Row { node, now }).collect();
    let figure = |row: &Row<'_>| match app.order {
        Order::Cpu => row.node.used.cpu,
        Order::Memory => row.node.used.memory,
        Order::Gpu => row.node.used.gpu,
        Order::Waiting => Some(row.node.pods.len() as f64),
        Order::Name => None,
    };
    table::sort(&mut rows, figure, |row| &row.node.name);
    let order =
        Span::styled(format!("by {}", if app.order == Order::Waiting { "pods" } else { app.order.title() }), QUIET);
    let counted = counted(rows.len(), cluster.nodes.len());
    title(buffer, area, 0, "Nodes", vec![Span::raw(format!("{counted} ")), order]);
    let mut cut = Cut(area);
    cut.top(1);
    let bars = (usize::from(area.width).saturating_sub(70) / 3).clamp(4, 24);
    app.page = table::draw(buffer, cut.0, &columns(bars), &rows, |row| &row.node.name, &mut app.list);
    app.keys = rows.iter().map(|row| row.node.name.clone()).collect();
}

fn columns<'a>(bars: usize) -> [Column<Row<'a>>; 9] {
    let percent_of = 12;
    [
        Column {
            title: " NODE",
            width: 0,
            right: false,
            cell: |row, width| vec![Span::raw(format!(" {}", clip(short(&row.node.name), width.saturating_sub(1))))],
        },
        Column { title: "STATE", width: 20, right: false, cell: |row, width| state(row, width) },
        Column {
            title: "CPU",
            width: bars,
            right: false,
            cell: |row, width| used_and_requested(width, row.node.used.cpu, requested(row.node, |amounts| amounts.cpu)),
        },
        Column {
            title: "USED REQ.",
            width: percent_of,
            right: true,
            cell: |row, _| both(row.node.used.cpu, requested(row.node, |amounts| amounts.cpu)),
        },
        Column {
            title: "MEMORY",
            width: bars,
            right: false,
            cell: |row, width| {
                used_and_requested(width, row.node.used.memory, requested(row.node, |amounts| amounts.memory))
            },
        },
        Column {
            title: "USED REQ.",
            width: percent_of,
            right: true,
            cell: |row, _| both(row.node.used.memory, requested(row.node, |amounts| amounts.memory)),
        },
        Column { title: "GPU", width: 9, right: true, cell: |row, _| gpu(row.node) },
        Column {
            title: "PODS",
            width: 4,
            right: true,
            cell: |row, _| vec![Span::raw(row.node.pods.len().to_string())],
        },
        Column {
            title: "GROUP",
            width: 14,
            right: false,
            cell: |row, width| vec![Span::styled(clip(&row.node.state.group, width), QUIET)],
        },
    ]
}

/// A DNS name up to its first dot; an address whole.
fn short(name: &str) -> &str {
    let address = name.chars().all(|c| c.is_ascii_digit() || c == '.');
    name.split_once('.').filter(|(first, _)| !address && !first.is_empty()).map_or(name, |(first, _)| first)
}

fn requested(node: &Node, of: fn(&Amounts) -> Option<f64>) -> Option<f64> {
    let allocatable = of(&node.state.allocatable).filter(|allocatable| *allocatable > 0.0)?;
    Some(of(&node.state.requested)? / allocatable)
}

fn both(used: Option<f64>, requested: Option<f64>) -> Vec<Span<'static>> {
    vec![Span::raw(format!("{:>5}", percent(used))), Span::styled(format!(" {:>5}", percent(requested)), QUIET)]
}

fn gpu(node: &Node) -> Vec<Span<'static>> {
    let there = node.state.allocatable.gpus.unwrap_or(0.0);
    if there <= 0.0 {
        return Vec::new();
    }
    let requested = node.state.requested.gpus.unwrap_or(0.0);
    vec![Span::raw(percent(node.used.gpu)), Span::styled(format!(" {requested:.0}/{there:.0}"), QUIET)]
}

fn state(row: &Row<'_>, width: usize) -> Vec<Span<'static>> {
    let state = &row.node.state;
    let since = row.now.zip(state.since).map(|(now, since)| format!(" {}", span(now.since(since)))).unwrap_or_default();
    let (text, style) = match &*state.class {
        _ if state.drained => ("drained".to_owned(), WARN),
        _ if state.draining => ("draining".to_owned(), WARN),
        _ if !state.ready => ("not ready".to_owned(), BAD),
        "busy" if state.waste.is_some() => (format!("busy, GPUs idle{since}"), BAD),
        "busy" => (format!("▲ busy{since} {}", state.why), PLAIN),
        "idle" => (format!("▽ idle{since}"), GOOD),
        "silent" => ("? agent silent".to_owned(), BAD),
        _ => (format!("? unknown: {}", state.why), BAD),
    };
    let cordoned = if state.unschedulable && !state.draining { " cordoned" } else { "" };
    vec![Span::styled(clip(&format!("{text}{cordoned}"), width), style)]
}

/// The pods of one node.
fn opened(app: &mut App, cluster: &Cluster, buffer: &mut Buffer, area: Rect) {
    let name = app.opened.clone().unwrap_or_default();
    let mut cut = Cut(area);
    let Some(node) = cluster.nodes.values().find(|node| node.name == name) else {
        return line(buffer, cut.top(1), 0, &Line::raw(format!(" {name} is gone. Esc goes back.")));
    };
    let row = Row { node, now: cluster.head.now };
    let mut spans = vec![Span::styled(format!(" {name}  "), BOLD)];
    spans.extend(state(&row, 40));
    spans.push(Span::styled(format!("  {}", node.state.group), QUIET));
    line(buffer, cut.top(1), 0, &Line::from(spans));
    let bars = usize::from(area.width).saturating_sub(60).min(60);
    type Pick = fn(&Amounts) -> Option<f64>;
    type Written = fn(Option<f64>) -> String;
    let resources: [(&str, Option<f64>, Pick, Written); 2] = [
        ("CPU", node.used.cpu, |amounts| amounts.cpu, cores),
        ("memory", node.used.memory, |amounts| amounts.memory, bytes),
    ];
    for (title, used, pick, written) in resources {
        let share = requested(node, pick);
        let mut spans = vec![Span::styled(format!(" {title:<7}"), QUIET)];
        spans.extend(used_and_requested(bars, used, share));
        let figures = format!(
            " {:>5} used, {} of {} requested",
            percent(used),
            written(pick(&node.state.requested)),
            written(pick(&node.state.allocatable))
        );
        spans.push(Span::raw(figures));
        line(buffer, cut.top(1), 0, &Line::from(spans));
    }
    let rows: Vec<&Pod> = node.pods.iter().filter(|pod| app.pods.lets_through(&pod.name)).collect();
    title(buffer, cut.top(1), 0, "Pods", vec![Span::raw(rows.len().to_string())]);
    app.page = table::draw(buffer, cut.0, &pod_columns(), &rows, |pod| &pod.name, &mut app.pods);
    app.keys = rows.iter().map(|pod| pod.name.clone()).collect();
}

fn pod_columns<'a>() -> [Column<&'a Pod>; 5] {
    [
        Column {
            title: " POD",
            width: 0,
            right: false,
            cell: |pod, width| vec![Span::raw(format!(" {}", clip_start(&pod.name, width.saturating_sub(1))))],
        },
        Column {
            title: "CPU REQUEST",
            width: 11,
            right: true,
            cell: |pod, _| vec![Span::raw(cores(pod.requests.cpu))],
        },
        Column {
            title: "MEMORY REQUEST",
            width: 14,
            right: true,
            cell: |pod, _| vec![Span::raw(bytes(pod.requests.memory))],
        },
        Column {
            title: "GPUS",
            width: 4,
            right: true,
            cell: |pod, _| vec![Span::raw(pod.requests.gpus.map_or_else(String::new, |gpus| format!("{gpus:.0}")))],
        },
        Column {
            title: "",
            width: 22,
            right: false,
            cell: |pod, _| {
                let daemon = if pod.daemon { "daemon " } else { "" };
                let going = if pod.terminating { "terminating" } else { "" };
                vec![Span::styled(format!("{daemon}{going}"), QUIET)]
            },
        },
    ]
}
