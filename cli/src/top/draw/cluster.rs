//! The cluster: what it costs, its groups, its nodes with what is requested and what is used, who waits, and what was
//! decided.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::text::{Line, Span};

use ebb_core::time::Instant;

use super::super::app::{App, Order};
use super::super::cluster::{Amounts, Cluster, Group, Node, Pod, Total};
use super::super::paint::{
    ACCENT, BAD, BOLD, GOOD, PLAIN, QUIET, WARN, bar, left, line, sparkline, title, used_and_requested,
};
use super::super::text::{
    UNKNOWN, bytes, bytes_of, clip, clip_start, cores, count, counted, dollars, percent, span, width,
};
use super::cut::Cut;
use super::fit::{self, Piece, Room};
use super::table::{self, Column, Layout};

pub(super) fn draw(app: &mut App, cluster: &Cluster, buffer: &mut Buffer, area: Rect) {
    let mut cut = Cut(area);
    let name = if cluster.title.is_empty() { "cluster" } else { &cluster.title };
    super::header(app, buffer, cut.top(1), name, leading(cluster));
    if app.opened.is_some() {
        return opened(app, cluster, buffer, cut.0);
    }
    cost(cluster, buffer, cut.top(1));
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
    vec![mark(head.leading, "leading", "not leading"), mark(head.synced, "synced", "not synced")]
}

fn cost(cluster: &Cluster, buffer: &mut Buffer, area: Rect) {
    let ready = cluster.nodes.values().filter(|node| node.state.ready).count();
    let counted = |columns| {
        let values = cluster.nodes_counted.columns(columns);
        let top = values.iter().flatten().fold(1.0, |top: f64, value| top.max(*value));
        sparkline(&values, top, ACCENT)
    };
    let waiting = cluster.waiting.total;
    let cost = &cluster.head.cost;
    let pieces = [
        Piece::text(0, format!(" {}", count(cluster.nodes.len(), "node")), BOLD),
        Piece::text(2, format!(" ({ready} ready)"), PLAIN),
        Piece::text(4, " ", PLAIN),
        Piece::stretched(Room::between(4, 6, 20), counted),
        Piece::text(0, format!("  {} waiting", count(waiting, "pod")), if waiting > 0 { WARN } else { PLAIN }),
        Piece::text(1, format!("  {} an hour", dollars(cost.per_hour)), BOLD),
        Piece::text(3, format!(", {} so far", dollars(cost.total)), PLAIN),
    ];
    fit::line(buffer, area, 0, &pieces);
}

/// Of the whole cluster, what is requested and what is used.
fn shares(cluster: &Cluster, buffer: &mut Buffer, cut: &mut Cut) {
    let totals = cluster.totals();
    let mut row = |name: &str, total: Total, whole: String| {
        let pieces = [
            Piece::text(0, format!(" {name:<7}"), QUIET),
            Piece::stretched(Room::between(2, 6, 60), |columns| {
                used_and_requested(columns, total.used(), total.requested())
            }),
            Piece::text(0, format!(" {:>5} used", percent(total.used())), PLAIN),
            Piece::text(0, format!(" {:>5} requested", percent(total.requested())), PLAIN),
            // As wide in each row, so that the bars are.
            Piece::text(1, left(&format!(" of {whole}"), 13), QUIET),
        ];
        fit::line(buffer, cut.top(1), 0, &pieces);
    };
    row("CPU", totals.cpu, cores(Some(totals.cpu.allocatable)));
    row("memory", totals.memory, bytes(Some(totals.memory.allocatable)));
    if totals.gpus.allocatable > 0.0 {
        row("GPU", totals.gpus, format!("{:.0}", totals.gpus.allocatable));
    }
}

fn groups(cluster: &Cluster, buffer: &mut Buffer, cut: &mut Cut) {
    // Most of the screen is for nodes.
    let room = (cut.0.height / 4).max(2);
    let rows: Vec<&Group> = cluster.groups.iter().take(usize::from(room)).collect();
    let counted = counted(rows.len(), cluster.groups.len());
    title(buffer, cut.top(1), 0, "Groups", vec![Span::raw(counted)]);
    let columns = group_columns(&rows);
    let layout = Layout::new(&columns, cut.0.width);
    for group in &rows {
        line(buffer, cut.top(1), 0, &layout.row(group));
    }
}

/// As wide as what stands in them.
fn group_columns<'a>(rows: &[&Group]) -> [Column<&'a Group>; 6] {
    fn desired(group: &Group) -> String {
        let desired = group.desired.map_or_else(|| UNKNOWN.to_owned(), |desired| desired.to_string());
        format!("{} of {desired} desired", group.instances)
    }
    fn bounds(group: &Group) -> String {
        format!("min {} max {}", group.min, group.max)
    }
    fn unobserved(group: &Group) -> &'static str {
        if group.observed { "" } else { "not known to AWS yet" }
    }
    let widest = |width_of: &dyn Fn(&Group) -> usize| rows.iter().map(|group| width_of(group)).max().unwrap_or(0);
    fn column<'a>(room: Room, cell: fn(&&'a Group, usize) -> Vec<Span<'static>>) -> Column<&'a Group> {
        Column { title: "", room, right: false, cell }
    }
    [
        column(Room::fixed(0, widest(&|group| width(&group.name) + 1).min(33)), |group, width| {
            vec![Span::raw(format!(" {}", clip(&group.name, width.saturating_sub(1))))]
        }),
        column(Room::fixed(4, widest(&|group| width(&group.instance_type)).min(20)), |group, width| {
            vec![Span::styled(clip(&group.instance_type, width), QUIET)]
        }),
        column(Room::between(3, 8, 40), |group, columns| {
            bar(columns, &[(f64::from(group.instances) / f64::from(group.max.max(1)), '█', ACCENT)])
        }),
        column(Room::fixed(0, widest(&|group| width(&desired(group)))), |group, _| vec![Span::raw(desired(group))]),
        column(Room::fixed(2, widest(&|group| width(&bounds(group)))), |group, _| {
            vec![Span::styled(bounds(group), QUIET)]
        }),
        column(Room::fixed(1, widest(&|group| width(unobserved(group)))), |group, _| {
            vec![Span::styled(unobserved(group), WARN)]
        }),
    ]
}

fn waiting(cluster: &Cluster, buffer: &mut Buffer, area: Rect) {
    let fits = usize::from(area.height.saturating_sub(1));
    let shown = cluster.waiting.pods.len().min(fits);
    title(buffer, area, 0, "Waiting pods", vec![Span::raw(counted(shown, cluster.waiting.total))]);
    if cluster.waiting.total == 0 {
        line(buffer, area, 1, &Line::styled(" none", QUIET));
    }
    for (row, pod) in (1..).zip(cluster.waiting.pods.iter().take(fits)) {
        let since = cluster.head.now.zip(pod.since).map(|(now, since)| format!(" {}", span(now.since(since))));
        let pieces = [
            Piece::text(0, " ", PLAIN),
            Piece::clipped(0, 16, &pod.pod, PLAIN, clip_start),
            Piece::text(1, since.unwrap_or_default(), WARN),
            Piece::text(3, format!(" {}", amounts(pod.requests)), QUIET),
            Piece::text(2, " ", PLAIN),
            Piece::clipped(2, 40, &pod.because, PLAIN, clip),
        ];
        fit::line(buffer, area, row, &pieces);
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
    app.page = table::draw(buffer, cut.0, &columns(), &rows, |row| &row.node.name, &mut app.list);
    app.keys = rows.iter().map(|row| row.node.name.clone()).collect();
}

fn columns<'a>() -> [Column<Row<'a>>; 9] {
    const BAR: Room = Room::between(6, 8, 24);
    const BOTH: usize = 11;
    [
        Column {
            title: " NODE",
            room: Room::from(0, 16),
            right: false,
            cell: |row, width| vec![Span::raw(format!(" {}", clip(short(&row.node.name), width.saturating_sub(1))))],
        },
        Column {
            title: "STATE",
            room: Room::between(0, 16, 28),
            right: false,
            cell: |row, width| state(row.node, row.now, width),
        },
        Column {
            title: "CPU  REQ.",
            room: Room::fixed(1, BOTH),
            right: true,
            cell: |row, _| both(row.node.used.cpu, requested(row.node, |amounts| amounts.cpu)),
        },
        Column {
            title: "",
            room: BAR,
            right: false,
            cell: |row, width| used_and_requested(width, row.node.used.cpu, requested(row.node, |amounts| amounts.cpu)),
        },
        Column {
            title: "MEM  REQ.",
            room: Room::fixed(2, BOTH),
            right: true,
            cell: |row, _| both(row.node.used.memory, requested(row.node, |amounts| amounts.memory)),
        },
        Column {
            title: "",
            room: BAR,
            right: false,
            cell: |row, width| {
                used_and_requested(width, row.node.used.memory, requested(row.node, |amounts| amounts.memory))
            },
        },
        Column { title: "GPU", room: Room::fixed(3, 11), right: true, cell: |row, _| gpu(row.node) },
        Column {
            title: "PODS",
            room: Room::fixed(4, 4),
            right: true,
            cell: |row, _| vec![Span::raw(row.node.pods.len().to_string())],
        },
        Column {
            title: "GROUP",
            room: Room::between(5, 11, 20),
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
    share(of(&node.state.requested), of(&node.state.allocatable))
}

fn share(part: Option<f64>, whole: Option<f64>) -> Option<f64> {
    Some(part? / whole.filter(|whole| *whole > 0.0)?)
}

fn both(used: Option<f64>, requested: Option<f64>) -> Vec<Span<'static>> {
    vec![Span::raw(percent(used)), Span::styled(format!(" {:>5}", percent(requested)), QUIET)]
}

fn gpu(node: &Node) -> Vec<Span<'static>> {
    let there = node.state.allocatable.gpus.unwrap_or(0.0);
    if there <= 0.0 {
        return Vec::new();
    }
    let requested = node.state.requested.gpus.unwrap_or(0.0);
    vec![Span::raw(percent(node.used.gpu)), Span::styled(format!(" {requested:.0}/{there:.0}"), QUIET)]
}

/// What it is matters most, then since when, then why.
fn state(node: &Node, now: Option<Instant>, width: usize) -> Vec<Span<'static>> {
    let state = &node.state;
    let since = now.zip(state.since).map(|(now, since)| format!(" {}", span(now.since(since)))).unwrap_or_default();
    let (what, since, why, style) = match &*state.class {
        _ if state.drained => ("drained", String::new(), String::new(), WARN),
        _ if state.draining => ("draining", String::new(), String::new(), WARN),
        _ if !state.ready => ("not ready", String::new(), String::new(), BAD),
        "busy" if state.waste.is_some() => ("busy, GPUs idle", since, String::new(), BAD),
        "busy" => ("▲ busy", since, format!(" {}", state.why), PLAIN),
        "idle" => ("▽ idle", since, String::new(), GOOD),
        "silent" => ("? agent silent", String::new(), String::new(), BAD),
        _ => ("? unknown", String::new(), format!(": {}", state.why), BAD),
    };
    let cordoned = if state.unschedulable && !state.draining { " cordoned" } else { "" };
    let pieces = [
        Piece::text(0, what, style),
        Piece::text(2, since, style),
        Piece::clipped(3, 4, &why, style, clip),
        Piece::text(1, cordoned, style),
    ];
    fit::spans(width, &pieces)
}

/// The pods of one node.
fn opened(app: &mut App, cluster: &Cluster, buffer: &mut Buffer, area: Rect) {
    let name = app.opened.clone().unwrap_or_default();
    let mut cut = Cut(area);
    let Some(node) = cluster.nodes.values().find(|node| node.name == name) else {
        return line(buffer, cut.top(1), 0, &Line::raw(format!(" {name} is gone. Esc goes back.")));
    };
    let state = state(node, cluster.head.now, 40);
    let mut pieces = vec![Piece::clipped(0, 16, &name, BOLD, clip), Piece::text(0, "  ", PLAIN)];
    pieces.extend(state.into_iter().map(|span| Piece::text(1, span.content, span.style)));
    pieces.push(Piece::text(2, format!("  {}", node.state.group), QUIET));
    pieces.insert(0, Piece::text(0, " ", PLAIN));
    fit::line(buffer, cut.top(1), 0, &pieces);
    let amounts = |pick: fn(&Amounts) -> Option<f64>| (pick(&node.state.requested), pick(&node.state.allocatable));
    let (cpu, memory) = (amounts(|amounts| amounts.cpu), amounts(|amounts| amounts.memory));
    let resources = [
        ("CPU", node.used.cpu, cpu, format!("{} of {}", cores(cpu.0), cores(cpu.1))),
        ("memory", node.used.memory, memory, bytes_of(memory.0, memory.1)),
    ];
    for (title, used, (requested, allocatable), of) in resources {
        let share = share(requested, allocatable);
        let pieces = [
            Piece::text(0, format!(" {title:<7}"), QUIET),
            Piece::stretched(Room::between(2, 6, 60), |columns| used_and_requested(columns, used, share)),
            Piece::text(0, format!(" {:>5} used", percent(used)), PLAIN),
            // As wide in each row, so that the bars are.
            Piece::text(1, left(&format!(", {of} requested"), 28), PLAIN),
        ];
        fit::line(buffer, cut.top(1), 0, &pieces);
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
            room: Room::from(0, 16),
            right: false,
            cell: |pod, width| vec![Span::raw(format!(" {}", clip_start(&pod.name, width.saturating_sub(1))))],
        },
        Column {
            title: "CPU REQUEST",
            room: Room::fixed(1, 11),
            right: true,
            cell: |pod, _| vec![Span::raw(cores(pod.requests.cpu))],
        },
        Column {
            title: "MEMORY REQUEST",
            room: Room::fixed(2, 14),
            right: true,
            cell: |pod, _| vec![Span::raw(bytes(pod.requests.memory))],
        },
        Column {
            title: "GPUS",
            room: Room::fixed(3, 4),
            right: true,
            cell: |pod, _| vec![Span::raw(pod.requests.gpus.map_or_else(String::new, |gpus| format!("{gpus:.0}")))],
        },
        Column {
            title: "",
            room: Room::between(4, 18, 22),
            right: false,
            cell: |pod, _| {
                let daemon = if pod.daemon { "daemon " } else { "" };
                let going = if pod.terminating { "terminating" } else { "" };
                vec![Span::styled(format!("{daemon}{going}"), QUIET)]
            },
        },
    ]
}
