//! A node's GPUs: a line for each, and one for each MIG instance below its GPU.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;
use ratatui::text::{Line, Span};

use super::super::node::{Gpu, Node, Part};
use super::super::paint::{BAD, BOLD, PLAIN, QUIET, WARN, gauge, left, line, title};
use super::super::text::{UNKNOWN, bytes_of, clip, count, percent, width};

/// The columns before those who hold it, and their widths.
const HEAD: [(&str, usize); 7] =
    [("GPU", 5), ("BUSY", 12), ("", 6), ("SM", 6), ("MEMORY", 19), ("POWER", 7), ("TEMP", 6)];

/// Lines that all of them take.
pub(super) fn rows(node: &Node) -> usize {
    node.gpus.iter().map(|gpu| 1 + gpu.mig_instances.len() + usize::from(!gpu.because.is_empty())).sum()
}

pub(super) fn draw(node: &Node, buffer: &mut Buffer, area: Rect) {
    let models: std::collections::BTreeSet<&str> = node.gpus.iter().map(|gpu| &*gpu.model).collect();
    let models = models.into_iter().collect::<Vec<_>>().join(", ");
    let what = Span::raw(format!("{} {models}", count(node.gpus.len(), "GPU")));
    title(buffer, area, 0, "GPUs", vec![what]);
    let mut head: Vec<_> = HEAD.iter().map(|(name, columns)| Span::styled(left(name, *columns) + " ", QUIET)).collect();
    head.insert(0, Span::raw(" "));
    head.push(Span::styled("HELD BY", QUIET));
    line(buffer, area, 1, &Line::from(head));
    let lines = node.gpus.iter().flat_map(|gpu| lines(gpu, usize::from(area.width)));
    for (row, spans) in (2..area.height).zip(lines) {
        line(buffer, area, row, &Line::from(spans));
    }
}

fn lines(gpu: &Gpu, columns: usize) -> Vec<Vec<Span<'static>>> {
    let index = gpu.index.map_or_else(|| UNKNOWN.to_owned(), |index| index.to_string());
    let busy = gpu.busy_permille.map(|permille| permille / 1000.0);
    let power = gpu.power_watts.map_or_else(|| UNKNOWN.to_owned(), |watts| format!("{watts:.0} W"));
    let warmth = gpu.temperature_celsius.map_or_else(|| UNKNOWN.to_owned(), |celsius| format!("{celsius:.0} °C"));
    let mut lines = vec![one((&index, BOLD), busy, &gpu.part, (&power, &warmth), columns)];
    if !gpu.because.is_empty() {
        let style = if gpu.verdict.starts_with("drain") { BAD } else { WARN };
        lines.push(vec![Span::styled(clip(&format!("       {}: {}", gpu.verdict, gpu.because), columns), style)]);
    }
    for instance in &gpu.mig_instances {
        let busy = instance.part.sm_active_permille.map(|permille| permille / 1000.0);
        lines.push(one((&instance.profile, PLAIN), busy, &instance.part, ("", ""), columns));
    }
    lines
}

fn one(
    (name, style): (&str, Style),
    busy: Option<f64>,
    part: &Part,
    (power, warmth): (&str, &str),
    columns: usize,
) -> Vec<Span<'static>> {
    let [name_width, bar, share, sm, memory, watts, celsius] = HEAD.map(|(_, columns)| columns);
    let active = part.sm_active_permille.map(|permille| permille / 1000.0);
    let mut spans = vec![Span::raw(" "), Span::styled(left(&clip(name, name_width), name_width) + " ", style)];
    spans.extend(gauge(bar, busy));
    spans.push(Span::raw(" "));
    for (text, columns) in [
        (percent(busy), share),
        (percent(active), sm),
        (bytes_of(part.memory_used_bytes, part.memory_total_bytes), memory),
        (power.to_owned(), watts),
        (warmth.to_owned(), celsius),
    ] {
        spans.push(Span::raw(left(&text, columns) + " "));
    }
    let used: usize = spans.iter().map(|span| width(&span.content)).sum();
    let holders = part.holders().map_or_else(|| UNKNOWN.to_owned(), |holders| holders.join(", "));
    spans.push(Span::raw(clip(&holders, columns.saturating_sub(used))));
    spans
}
