//! A table of which only the rows in sight are drawn.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::text::{Line, Span};

use super::super::list::List;
use super::super::paint::{QUIET, SELECTED, left, line, right};

/// Of one table. Columns are left out from the last on where there is no room for them.
pub(super) struct Column<R> {
    pub(super) title: &'static str,
    /// In the terminal's columns; the first column gets what the others leave.
    pub(super) width: usize,
    /// Whether the title stands at the right, as figures do.
    pub(super) right: bool,
    pub(super) cell: fn(&R, usize) -> Vec<Span<'static>>,
}

/// The least that is left for the first column.
const NAME_WIDTH: usize = 16;

/// The highest first, then by name; what is unknown comes last.
pub(super) fn sort<R>(rows: &mut [R], figure: impl Fn(&R) -> Option<f64>, name: impl Fn(&R) -> &str) {
    let figure = |row: &R| figure(row).unwrap_or(f64::NEG_INFINITY);
    rows.sort_by(|a, b| figure(b).total_cmp(&figure(a)).then_with(|| name(a).cmp(name(b))));
}

/// Draws head and rows. Returns how many rows fit.
pub(super) fn draw<R>(
    buffer: &mut Buffer,
    area: Rect,
    columns: &[Column<R>],
    rows: &[R],
    key: fn(&R) -> &str,
    list: &mut List,
) -> usize {
    let fits = usize::from(area.height.saturating_sub(1));
    let keys: Vec<&str> = rows.iter().map(key).collect();
    let window = list.window(&keys, fits);
    let widths = widths(usize::from(area.width), columns);
    let head = columns.iter().zip(&widths).map(|(column, width)| {
        let title = if column.right { right(column.title, *width) } else { left(column.title, *width) };
        Span::styled(title + " ", QUIET)
    });
    line(buffer, area, 0, &Line::from_iter(head));
    for (row, (index, item)) in (1..).zip(rows.iter().enumerate().skip(window.offset).take(fits)) {
        let mut spans = Vec::new();
        for (column, width) in columns.iter().zip(&widths) {
            let cell = (column.cell)(item, *width);
            let used: usize = cell.iter().map(Span::width).sum();
            let pad = Span::raw(" ".repeat(width.saturating_sub(used)));
            if column.right {
                spans.push(pad);
                spans.extend(cell);
            } else {
                spans.extend(cell);
                spans.push(pad);
            }
            spans.push(Span::raw(" "));
        }
        line(buffer, area, row, &Line::from(spans));
        if window.chosen == Some(index) {
            let row = Rect { y: area.y + row, height: 1, ..area };
            buffer.set_style(row.intersection(buffer.area), SELECTED);
        }
    }
    fits
}

fn widths<R>(room: usize, columns: &[Column<R>]) -> Vec<usize> {
    let mut widths: Vec<usize> = columns.iter().map(|column| column.width).collect();
    let sum = |widths: &[usize]| widths.iter().skip(1).map(|width| width + 1).sum::<usize>();
    while widths.len() > 1 && sum(&widths) + NAME_WIDTH + 1 > room {
        widths.pop();
    }
    let rest = room.saturating_sub(sum(&widths) + 1);
    if let Some(first) = widths.first_mut() {
        *first = rest;
    }
    widths
}
