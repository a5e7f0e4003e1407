//! A table of which only the rows in sight are drawn.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::text::{Line, Span};

use super::super::list::List;
use super::super::paint::{QUIET, SELECTED, clip_line, line};
use super::fit::{self, Room};

/// Of one table.
pub(super) struct Column<R> {
    pub(super) title: &'static str,
    pub(super) room: Room,
    /// Whether the title stands at the right, as figures do.
    pub(super) right: bool,
    pub(super) cell: fn(&R, usize) -> Vec<Span<'static>>,
}

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
    let columns = Layout::new(columns, area.width);
    line(buffer, area, 0, &columns.head());
    for (row, (index, item)) in (1..).zip(rows.iter().enumerate().skip(window.offset).take(fits)) {
        line(buffer, area, row, &columns.row(item));
        if window.chosen == Some(index) {
            let row = Rect { y: area.y + row, height: 1, ..area };
            buffer.set_style(row.intersection(buffer.area), SELECTED);
        }
    }
    fits
}

/// The columns that have room, with their widths.
pub(super) struct Layout<'a, R>(Vec<(&'a Column<R>, usize)>);

impl<'a, R> Layout<'a, R> {
    pub(super) fn new(columns: &'a [Column<R>], width: u16) -> Self {
        let rooms: Vec<Room> = columns.iter().map(|column| column.room).collect();
        let widths = fit::widths(usize::from(width), 1, &rooms);
        Self(columns.iter().zip(widths).filter_map(|(column, width)| Some((column, width?))).collect())
    }

    pub(super) fn head(&self) -> Line<'static> {
        self.line(|column, _| vec![Span::styled(column.title, QUIET)])
    }

    pub(super) fn row(&self, row: &R) -> Line<'static> {
        self.line(|column, width| (column.cell)(row, width))
    }

    fn line(&self, cell: impl Fn(&Column<R>, usize) -> Vec<Span<'static>>) -> Line<'static> {
        let mut spans = Vec::new();
        for (column, width) in &self.0 {
            let cell = clip_line(&Line::from(cell(column, *width)), *width);
            let pad = Span::raw(" ".repeat(width.saturating_sub(cell.width())));
            let (before, after) = if column.right { (Some(pad), None) } else { (None, Some(pad)) };
            spans.extend(before.into_iter().chain(cell.spans).chain(after));
            spans.push(Span::raw(" "));
        }
        // Nothing stands beside the last one.
        spans.pop();
        Line::from(spans)
    }
}
