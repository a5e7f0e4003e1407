//! One node: what it is and why, its CPUs, memory and pressure, and who uses them.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;
use ratatui::text::{Line, Span};

use super::super::app::{App, Order};
use super::super::node::{Cgroup, Cpu, Node};
use super::super::paint::{
    ACCENT, BAD, BOLD, GOOD, OTHER, PLAIN, QUIET, WARN, bar, gauge, graph, level, line, spark, sparkline, title,
};
use super::super::text::{UNKNOWN, bytes, bytes_of, clip_start, cores, count, counted, percent, rate, span, width};
use super::super::watched::{PRESSURES, Watched};
use super::cut::Cut;
use super::fit::{self, Piece, Room};
use super::gpu;
use super::table::{self, Column};

/// Sources that are down and told of one by one.
const SOURCES: usize = 3;
/// From here on a screen has room for graphs of several rows.
const TALL: u16 = 36;

/// What GPUs leave to the table: its title, its head and three rows.
const TABLE: u16 = 5;

pub(super) fn draw(app: &mut App, watched: &Watched, buffer: &mut Buffer, area: Rect) {
    let node = &watched.node;
    let mut cut = Cut(area);
    let tall = area.height >= TALL && !app.plain;
    let name = if node.node.is_empty() { "this node" } else { &node.node };
    super::header(app, buffer, cut.top(1), name, class(node));
    reasons(node, buffer, &mut cut);
    let wide = area.width >= 72;
    let rows = if tall { 11 } else { 7 }.min(cut.0.height);
    if wide {
        let mut both = Cut(cut.top(rows));
        let cpus = both.left(area.width / 2);
        processors(watched, buffer, Rect { width: cpus.width.saturating_sub(2), ..cpus }, tall);
        memory(watched, buffer, both.0, tall);
    } else {
        processors(watched, buffer, cut.top(6), false);
        memory(watched, buffer, cut.top(4), false);
    }
    if !node.gpus.is_empty() {
        let rows = u16::try_from(gpu::rows(node)).unwrap_or(u16::MAX).saturating_add(2);
        gpu::draw(watched, !app.plain, buffer, cut.top(rows.min(cut.0.height.saturating_sub(TABLE))));
    }
    users(app, node, buffer, cut.0);
}

fn class(node: &Node) -> Vec<Span<'static>> {
    let (mark, style) = match &*node.class.class {
        "busy" => ("▲ busy", WARN),
        "idle" => ("▽ idle", GOOD),
        "unknown" => ("? unknown", BAD),
        _ => ("? no class", BAD),
    };
    let mut spans = vec![Span::styled(mark, style.patch(BOLD))];
    if let Some((now, since)) = node.sampled_at.zip(node.class.since) {
        spans.push(Span::raw(format!("for {}", span(now.since(since)))));
    }
    spans
}

fn reasons(node: &Node, buffer: &mut Buffer, cut: &mut Cut) {
    if !node.because.is_empty() {
        line(buffer, cut.top(1), 0, &Line::styled(format!(" {}", node.because), PLAIN));
    }
    if let Some((now, since)) = node.sampled_at.zip(node.gpu_waste_since) {
        let waste = format!(" busy without its GPUs for {}", span(now.since(since)));
        line(buffer, cut.top(1), 0, &Line::styled(waste, WARN));
    }
    let down: Vec<_> = node.sources.iter().filter(|source| !source.up).collect();
    for source in down.iter().take(SOURCES) {
        let why = if source.why.is_empty() { "no reason given" } else { &source.why };
        let spans = vec![
            Span::styled(format!(" ✗ {} ", source.source), BAD.patch(BOLD)),
            Span::raw("is down: "),
            Span::raw(why.to_owned()),
        ];
        line(buffer, cut.top(1), 0, &Line::from(spans));
    }
    if down.len() > SOURCES {
        let more = format!(" ✗ and {} more", count(down.len() - SOURCES, "source"));
        line(buffer, cut.top(1), 0, &Line::styled(more, BAD));
    }
}

fn processors(watched: &Watched, buffer: &mut Buffer, area: Rect, tall: bool) {
    let node = &watched.node;
    let busy = node.node_cpu.as_ref().and_then(Cpu::busy);
    let of = if node.cpus.is_empty() { String::new() } else { format!(" of {}", count(node.cpus.len(), "CPU")) };
    title(buffer, area, 0, "CPU", vec![Span::styled(percent(busy), BOLD), Span::raw(of)]);
    let mut cut = Cut(area);
    cut.top(1);
    history(buffer, cut.top(if tall { 4 } else { 1 }), &watched.cpu);
    line(buffer, cut.top(1), 0, &modes(node, area.width));
    run_queue(watched, buffer, cut.top(1));
    each(node, buffer, cut.0);
}

fn history(buffer: &mut Buffer, area: Rect, history: &super::super::history::History) {
    let area = Rect { x: area.x.saturating_add(1), width: area.width.saturating_sub(1), ..area };
    graph(buffer, area, &history.columns(usize::from(area.width)), 1.0);
}

fn modes(node: &Node, columns: u16) -> Line<'static> {
    let share = |modes: &[&str]| node.node_cpu.as_ref().and_then(|cpu| cpu.modes(modes));
    let mut spans = vec![Span::raw(" ")];
    let wanted: [(&str, Option<f64>); 5] = [
        ("user", share(&["user", "nice"])),
        ("system", share(&["system"])),
        ("irq", share(&["irq", "softirq"])),
        ("iowait", share(&["iowait"])),
        ("steal", share(&["steal"])),
    ];
    for (name, share) in wanted {
        let style = if name == "steal" && share.is_some_and(|share| share >= 0.1) { BAD } else { PLAIN };
        let text = format!("{} ", percent(share));
        let used: usize = spans.iter().map(Span::width).sum();
        if used + name.len() + 1 + width(&text) > usize::from(columns) {
            break;
        }
        spans.extend([Span::styled(format!("{name} "), QUIET), Span::styled(text, style)]);
    }
    Line::from(spans)
}

fn run_queue(watched: &Watched, buffer: &mut Buffer, area: Rect) {
    let node = &watched.node;
    let top = node.cpus.len().max(1) as f64;
    let pieces = [
        Piece::text(0, " run queue ", QUIET),
        Piece::text(0, format!("{} waiting", cores(node.run_queue_cores)), PLAIN),
        Piece::text(2, " ", PLAIN),
        Piece::stretched(Room::between(2, 1, 30), |columns| {
            sparkline(&watched.run_queue.columns(columns), top, ACCENT)
        }),
        Piece::text(1, format!(" {} switches/s", rate(node.switches_per_second)), QUIET),
    ];
    fit::line(buffer, area, 0, &pieces);
}

/// A bar for each CPU where they fit, else a column for each, or for the busiest of some neighbours.
fn each(node: &Node, buffer: &mut Buffer, area: Rect) {
    const CELL: usize = 18;
    let (columns, rows) = (usize::from(area.width.saturating_sub(1)), usize::from(area.height));
    if node.cpus.is_empty() || columns == 0 || rows == 0 {
        return;
    }
    let across = (columns / CELL).max(1);
    if across * rows >= node.cpus.len() {
        let down = node.cpus.len().div_ceil(across);
        let cell = columns / across;
        for row in 0..down {
            let mut spans = vec![Span::raw(" ")];
            for cpu in node.cpus.iter().skip(row).step_by(down) {
                let number = cpu.cpu.map_or_else(|| UNKNOWN.to_owned(), |cpu| cpu.to_string());
                spans.push(Span::styled(format!("{number:>3} "), QUIET));
                spans.extend(gauge(cell.saturating_sub(11), cpu.busy()));
                spans.push(Span::raw(format!("{:>6} ", percent(cpu.busy()))));
            }
            line(buffer, area, u16::try_from(row).unwrap_or(u16::MAX), &Line::from(spans));
        }
        return;
    }
    let busiest = |cpus: &[Cpu]| cpus.iter().filter_map(Cpu::busy).reduce(f64::max);
    let shown: Vec<_> = node.cpus.chunks(node.cpus.len().div_ceil(columns * rows)).map(busiest).collect();
    for (row, cpus) in (0..area.height).zip(shown.chunks(columns)) {
        let columns = cpus.iter().map(|busy| {
            let style = busy.map_or(PLAIN, level);
            Span::styled(spark(*busy, 1.0).to_string(), style)
        });
        line(buffer, area, row, &Line::from_iter(std::iter::once(Span::raw(" ")).chain(columns)));
    }
}

fn memory(watched: &Watched, buffer: &mut Buffer, area: Rect, tall: bool) {
    let Some(memory) = &watched.node.memory else {
        title(buffer, area, 0, "Memory", vec![Span::raw(UNKNOWN)]);
        return pressure(
            watched,
            buffer,
            Rect { y: area.y + 1.min(area.height), height: area.height.saturating_sub(1), ..area },
        );
    };
    let working = format!(", {}", bytes_of(memory.working_set_bytes, memory.total_bytes));
    title(buffer, area, 0, "Memory", vec![Span::styled(percent(memory.used()), BOLD), Span::raw(working)]);
    let mut cut = Cut(area);
    cut.top(1);
    history(buffer, cut.top(if tall { 3 } else { 1 }), &watched.memory);
    let parts: [(&str, Option<f64>, char, Style); 2] =
        [("anon", memory.anon_bytes, '█', ACCENT), ("file", memory.file_bytes, '▒', OTHER)];
    let shares: Vec<_> =
        parts.iter().map(|(_, part, fill, style)| (memory.share(*part).unwrap_or(0.0), *fill, *style)).collect();
    let mut split = vec![Span::raw(" ")];
    split.extend(bar(usize::from(area.width.saturating_sub(2)), &shares));
    line(buffer, cut.top(1), 0, &Line::from(split));
    let mut legend = Vec::new();
    let mut name = |rank, fill: char, style, name: &str, figure: String| {
        let spans = vec![
            Span::styled(format!(" {fill}"), style),
            Span::styled(format!(" {name} "), QUIET),
            Span::raw(format!("{figure} ")),
        ];
        let columns = spans.iter().map(Span::width).sum();
        legend.push(Piece::stretched(Room::fixed(rank, columns), move |_| spans.clone()));
    };
    for (part, bytes_of_it, fill, style) in parts {
        name(0, fill, style, part, bytes(bytes_of_it));
    }
    name(2, '·', QUIET, "free", bytes(memory.free_bytes));
    if let Some((total, free)) = memory.swap_total_bytes.zip(memory.swap_free_bytes).filter(|(total, _)| *total > 0.0) {
        name(1, ' ', QUIET, "swap", bytes_of(Some(total - free), Some(total)));
    }
    fit::line(buffer, cut.top(1), 0, &legend);
    pressure(watched, buffer, cut.0);
}

/// Time in which tasks were stalled.
fn pressure(watched: &Watched, buffer: &mut Buffer, area: Rect) {
    let known = PRESSURES.into_iter().filter(|name| *name != "irq" || watched.node.pressure.contains_key(*name));
    let known: Vec<_> = known.collect();
    if usize::from(area.height) < known.len() {
        let mut pieces = vec![Piece::text(0, " stalled", QUIET)];
        for (rank, name) in (0..).zip(known) {
            let (some, _) = watched.node.stalled(name);
            pieces.push(Piece::text(rank, format!(" {name} {}", percent(some)), PLAIN));
        }
        return fit::line(buffer, area, 0, &pieces);
    }
    for (row, name) in (0..).zip(known) {
        let (some, full) = watched.node.stalled(name);
        let mut pieces = vec![
            Piece::text(0, format!(" stalled on {name:<7}"), QUIET),
            Piece::text(0, format!("{:>5} ", percent(some)), PLAIN),
        ];
        if let Some(history) = watched.pressures.get(name) {
            let draw = |columns| sparkline(&history.columns(columns), 1.0, ACCENT);
            pieces.push(Piece::stretched(Room::between(2, 1, 40), draw));
        }
        pieces.push(Piece::text(1, format!(" all {:>5}", percent(full)), QUIET));
        fit::line(buffer, area, row, &pieces);
    }
}

/// One line of the table, with what its shares are of.
struct User<'a> {
    cgroup: &'a Cgroup,
    label: String,
    cpus: f64,
    memory: Option<f64>,
}

fn users(app: &mut App, node: &Node, buffer: &mut Buffer, area: Rect) {
    let cpus = node.cpus.len().max(1) as f64;
    let memory = node.memory.as_ref().and_then(|memory| memory.total_bytes);
    let mut rows: Vec<User<'_>> = node
        .users()
        .map(|cgroup| User { cgroup, label: cgroup.label(), cpus, memory })
        .filter(|user| app.list.lets_through(&user.label))
        .collect();
    sort(&mut rows, app.order);
    let order = Span::styled(format!("by {}", app.order.title()), QUIET);
    let all = node.users().count();
    let counted = counted(rows.len(), all);
    title(buffer, area, 0, "Containers and other cgroups", vec![Span::raw(format!("{counted} ")), order]);
    let mut cut = Cut(area);
    cut.top(1);
    app.page = table::draw(buffer, cut.0, &columns(), &rows, |user| &user.cgroup.path, &mut app.list);
    app.keys = rows.iter().map(|user| user.cgroup.path.clone()).collect();
}

fn sort(rows: &mut [User<'_>], order: Order) {
    let figure = |user: &User<'_>| match order {
        Order::Cpu | Order::Gpu => user.cgroup.cpu_cores,
        Order::Waiting => user.cgroup.run_queue_cores,
        Order::Memory => user.cgroup.memory_working_set_bytes,
        Order::Name => None,
    };
    table::sort(rows, figure, |user| &user.cgroup.path);
}

fn columns<'a>() -> [Column<User<'a>>; 8] {
    [
        Column {
            title: " NAME",
            room: Room::from(0, 20),
            right: false,
            cell: |user, width| vec![Span::raw(format!(" {}", clip_start(&user.label, width.saturating_sub(1))))],
        },
        Column {
            title: "CPU",
            room: Room::fixed(1, 6),
            right: true,
            cell: |user, _| vec![Span::raw(cores(user.cgroup.cpu_cores))],
        },
        Column {
            title: "OF NODE",
            room: Room::fixed(5, 10),
            right: false,
            cell: |user, width| gauge(width, user.cgroup.cpu_cores.map(|cores| cores / user.cpus)),
        },
        Column {
            title: "WAITING",
            room: Room::fixed(3, 7),
            right: true,
            cell: |user, _| vec![Span::raw(cores(user.cgroup.run_queue_cores))],
        },
        Column {
            title: "HELD BACK",
            room: Room::fixed(4, 9),
            right: true,
            cell: |user, _| vec![Span::raw(cores(user.cgroup.throttled_cores))],
        },
        Column {
            title: "MEMORY",
            room: Room::fixed(2, 9),
            right: true,
            cell: |user, _| vec![Span::raw(bytes(user.cgroup.memory_working_set_bytes))],
        },
        Column {
            title: "OF NODE",
            room: Room::fixed(5, 10),
            right: false,
            cell: |user, width| {
                let share = user.cgroup.memory_working_set_bytes.zip(user.memory).map(|(used, whole)| used / whole);
                gauge(width, share)
            },
        },
        Column { title: "PREEMPTED/S BY", room: Room::between(6, 16, 32), right: false, cell: preempted },
    ]
}

fn preempted(user: &User<'_>, width: usize) -> Vec<Span<'static>> {
    let Some(rates) = user.cgroup.preemptions() else { return vec![Span::raw(UNKNOWN)] };
    if rates.is_empty() {
        return vec![Span::raw(rate(Some(0.0)))];
    }
    let texts = (0..).zip(rates).map(|(rank, (often, whom))| {
        let comma = if rank == 0 { "" } else { ", " };
        Piece::text(rank, format!("{comma}{} {whom}", rate(Some(often))), PLAIN)
    });
    fit::spans(width, &texts.collect::<Vec<_>>())
}
