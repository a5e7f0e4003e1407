//! A node's GPUs: a line for each, and one for each MIG instance below its GPU.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;
use ratatui::text::{Line, Span};

use super::super::history::History;
use super::super::node::{Gpu, Instance, Node, Part};
use super::super::paint::{ACCENT, BAD, BOLD, PLAIN, WARN, gauge, line, sparkline, title};
use super::super::text::{UNKNOWN, bytes_of, clip, counted, percent, width};
use super::super::watched::Watched;
use super::fit::Room;
use super::table::{Column, Layout};

/// Lines that all of them take.
pub(super) fn rows(node: &Node) -> usize {
    node.gpus.iter().map(|gpu| 1 + gpu.mig_instances.len() + usize::from(!gpu.because.is_empty())).sum()
}

/// `past`: whether there is one to show.
pub(super) fn draw(watched: &Watched, past: bool, buffer: &mut Buffer, area: Rect) {
    let node = &watched.node;
    let past = past && node.gpus.iter().any(|gpu| gpu.busy().is_some());
    let lines = |gpu| lines(gpu, watched.gpus.get(&gpu.uuid).filter(|_| past));
    let rows: Vec<Row<'_>> = node.gpus.iter().flat_map(lines).collect();
    let fits = usize::from(area.height.saturating_sub(2));
    let models: std::collections::BTreeSet<&str> = node.gpus.iter().map(|gpu| &*gpu.model).collect();
    let models = models.into_iter().collect::<Vec<_>>().join(", ");
    let shown = |is: fn(&Row<'_>) -> bool| {
        let all = rows.iter().filter(|row| is(row)).count();
        (all, counted(rows.iter().take(fits).filter(|row| is(row)).count(), all))
    };
    let plural = |all| if all == 1 { "" } else { "s" };
    let (all, gpus) = shown(|row| matches!(row, Row::Gpu(..)));
    let mut what = vec![Span::raw(format!("{gpus} GPU{} {models}", plural(all)))];
    let (all, instances) = shown(|row| matches!(row, Row::Instance(_)));
    if all > 0 {
        what.push(Span::raw(format!(", {instances} MIG instance{}", plural(all))));
    }
    title(buffer, area, 0, "GPUs", what);
    let columns = columns(&rows, past);
    let layout = Layout::new(&columns, area.width);
    line(buffer, area, 1, &layout.head());
    for (at, row) in (2..area.height).zip(&rows) {
        match row {
            Row::Verdict(text, style) => line(buffer, area, at, &Line::styled(text.clone(), *style)),
            row => line(buffer, area, at, &layout.row(row)),
        }
    }
}

enum Row<'a> {
    Gpu(&'a Gpu, Option<&'a History>),
    Instance(&'a Instance),
    /// What the GPU above is fit for.
    Verdict(String, Style),
}

fn lines<'a>(gpu: &'a Gpu, past: Option<&'a History>) -> Vec<Row<'a>> {
    let mut rows = vec![Row::Gpu(gpu, past)];
    if !gpu.because.is_empty() {
        let style = if gpu.verdict.starts_with("drain") { BAD } else { WARN };
        rows.push(Row::Verdict(format!("   {}: {}", gpu.verdict, gpu.because), style));
    }
    rows.extend(gpu.mig_instances.iter().map(Row::Instance));
    rows
}

impl Row<'_> {
    fn name(&self) -> (String, Style) {
        match self {
            Self::Gpu(gpu, _) => (gpu.index.map_or_else(|| UNKNOWN.to_owned(), |index| index.to_string()), BOLD),
            Self::Instance(instance) => (format!("  {}", instance.profile), PLAIN),
            Self::Verdict(..) => (String::new(), PLAIN),
        }
    }

    /// NVML has no such figure of a MIG instance.
    fn busy(&self) -> Option<f64> {
        if let Self::Gpu(gpu, _) = self { gpu.busy() } else { None }
    }

    fn part(&self) -> Option<&Part> {
        match self {
            Self::Gpu(gpu, _) => Some(&gpu.part),
            Self::Instance(instance) => Some(&instance.part),
            Self::Verdict(..) => None,
        }
    }

    /// Of a whole GPU: an instance has no such figures, which is not the same as unknown.
    fn of_gpu(&self, figure: fn(&Gpu) -> Option<f64>, unit: &str) -> Vec<Span<'static>> {
        let Self::Gpu(gpu, _) = self else { return Vec::new() };
        vec![Span::raw(figure(gpu).map_or_else(|| UNKNOWN.to_owned(), |figure| format!("{figure:.0} {unit}")))]
    }
}

fn columns<'a>(rows: &[Row<'a>], past: bool) -> Vec<Column<Row<'a>>> {
    // Profiles are as long as `1c.3g.40gb+me`.
    let names = rows.iter().map(|row| width(&row.name().0) + 1).max().unwrap_or(0).clamp(4, 20);
    let mut columns: Vec<Column<Row<'a>>> = vec![
        Column {
            title: " GPU",
            room: Room::fixed(0, names),
            right: false,
            cell: |row, width| {
                let (name, style) = row.name();
                vec![Span::styled(clip(&format!(" {name}"), width), style)]
            },
        },
        Column {
            title: "BUSY",
            room: Room::fixed(0, 5),
            right: true,
            cell: |row, _| vec![Span::raw(percent(row.busy()))],
        },
        Column { title: "", room: Room::fixed(7, 10), right: false, cell: |row, width| gauge(width, row.busy()) },
        Column {
            title: "SM",
            room: Room::fixed(3, 5),
            right: true,
            cell: |row, _| {
                let active = row.part().and_then(|part| part.sm_active_permille);
                vec![Span::raw(percent(active.map(|permille| permille / 1000.0)))]
            },
        },
        Column {
            title: "MEMORY",
            room: Room::fixed(1, 16),
            right: true,
            cell: |row, _| {
                let of = |part: &Part| bytes_of(part.memory_used_bytes, part.memory_total_bytes);
                vec![Span::raw(row.part().map(of).unwrap_or_default())]
            },
        },
        Column {
            title: "POWER",
            room: Room::fixed(4, 6),
            right: true,
            cell: |row, _| row.of_gpu(|gpu| gpu.power_watts, "W"),
        },
        Column {
            title: "TEMP",
            room: Room::fixed(5, 6),
            right: true,
            cell: |row, _| row.of_gpu(|gpu| gpu.temperature_celsius, "°C"),
        },
        Column {
            title: "HELD BY",
            room: Room::from(2, 12),
            right: false,
            cell: |row, width| {
                let holders = row.part().and_then(Part::holders);
                let holders = holders.map_or_else(|| UNKNOWN.to_owned(), |holders| holders.join(", "));
                vec![Span::raw(clip(&holders, width))]
            },
        },
    ];
    if past {
        let cell = |row: &Row<'a>, columns| match row {
            Row::Gpu(_, Some(past)) => sparkline(&past.columns(columns), 1.0, ACCENT),
            _ => Vec::new(),
        };
        columns.insert(3, Column { title: "HISTORY", room: Room::between(6, 8, 40), right: false, cell });
    }
    columns
}
