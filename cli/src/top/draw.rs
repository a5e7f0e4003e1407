//! The whole picture: what every view has, and which view is in it.

mod cluster;
mod cut;
mod fit;
mod gpu;
mod node;
mod table;

use std::time::Duration;

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::text::{Line, Span};

use self::cut::Cut;
use self::fit::{Piece, Room};
use super::app::{App, Subject};
use super::paint::{ACCENT, BAD, BOLD, GOOD, PLAIN, QUIET, SELECTED, line, line_right, title};
use super::text::{clip, clip_start, span};

const KEYS: [(&str, &str); 9] = [
    ("↑ ↓ PgUp PgDn Home End", "move (k and j too)"),
    ("Enter", "show a node's pods (cluster)"),
    ("Esc", "back; clear the filter"),
    ("/", "filter by name"),
    ("c", "sort by CPU"),
    ("m", "sort by memory"),
    ("w", "sort by waiting for a CPU (node), pods (cluster)"),
    ("g n", "sort by GPU; by name"),
    ("q", "quit"),
];

/// `now`: as given to [`App::take`].
pub(super) fn draw(app: &mut App, buffer: &mut Buffer, now: Duration) {
    let mut cut = Cut(buffer.area);
    if !app.plain {
        footer(app, buffer, cut.bottom(1));
    }
    if let Some((since, why)) = &app.away {
        let away = format!(" No answer for {}, trying on: {why} ", span(now.saturating_sub(*since)));
        line(buffer, cut.bottom(1), 0, &Line::styled(away, BAD.patch(SELECTED)));
    }
    if app.help {
        return help(buffer, cut.0);
    }
    app.page = 0;
    app.keys.clear();
    match std::mem::take(&mut app.subject) {
        Subject::Unknown => {
            let asking = Line::from(vec![
                Span::styled(" ebb top ", BOLD.patch(SELECTED)),
                Span::raw(" asking "),
                Span::styled(app.url.clone(), ACCENT),
            ]);
            line(buffer, cut.0, 0, &asking);
        }
        Subject::Node(watched) => {
            node::draw(app, &watched, buffer, cut.0);
            app.subject = Subject::Node(watched);
        }
        Subject::Cluster(cluster) => {
            cluster::draw(app, &cluster, buffer, cut.0);
            app.subject = Subject::Cluster(cluster);
        }
    }
}

/// The first line of every view: whose picture it is, and whether it is a live one.
fn header(app: &App, buffer: &mut Buffer, area: Rect, what: &str, state: Vec<Span<'static>>) {
    let mut pieces = vec![
        Piece::text(0, " ebb top ", BOLD.patch(SELECTED)),
        Piece::text(0, " ", PLAIN),
        Piece::clipped(0, 8, what, BOLD, clip),
        Piece::text(1, " ", PLAIN),
    ];
    for (rank, span) in (1..).zip(state) {
        pieces.push(Piece::text(rank, format!(" {}", span.content), span.style));
    }
    let spans = fit::spans(usize::from(area.width), &pieces);
    let used: usize = spans.iter().map(Span::width).sum();
    line(buffer, area, 0, &Line::from(spans));
    let room = usize::from(area.width).saturating_sub(used + 2);
    let url = clip_start(&app.url, room.saturating_sub(2));
    if url.chars().count() > 8 {
        let live = if app.away.is_some() { Span::styled("○ ", BAD) } else { Span::styled("● ", GOOD) };
        line_right(buffer, area, 0, &Line::from(vec![live, Span::styled(url, QUIET)]));
    }
}

fn footer(app: &App, buffer: &mut Buffer, area: Rect) {
    let list = if app.opened.is_some() { &app.pods } else { &app.list };
    if app.typing {
        return line(buffer, area, 0, &Line::styled(format!(" /{}▏", list.filter), BOLD));
    }
    let hint = |rank, key: &'static str, what: &'static str| {
        let spans = vec![Span::styled(format!(" {key}"), BOLD), Span::styled(format!(" {what} "), QUIET)];
        let columns = spans.iter().map(Span::width).sum();
        Piece::stretched(Room::fixed(rank, columns), move |_| spans.clone())
    };
    let filter = format!(" filter: {} ", list.filter);
    let mut pieces = vec![hint(0, "q", "quit"), hint(0, "?", "keys"), hint(2, "/", "filter")];
    if app.opened.is_some() {
        pieces.push(hint(1, "Esc", "back"));
    } else {
        for (key, what) in [("c", "CPU"), ("m", "memory"), ("w", "waiting"), ("g", "GPU"), ("n", "name")] {
            pieces.push(hint(4, key, what));
        }
        if matches!(app.subject, Subject::Cluster(_)) {
            pieces.push(hint(3, "Enter", "pods"));
        }
    }
    if !list.filter.is_empty() {
        pieces.push(Piece::clipped(1, 14, &filter, SELECTED, clip));
    }
    fit::line(buffer, area, 0, &pieces);
}

fn help(buffer: &mut Buffer, area: Rect) {
    title(buffer, area, 0, "Keys", Vec::new());
    for (row, (keys, what)) in (2..).zip(KEYS) {
        let spans = vec![Span::styled(format!("  {keys:<24}"), BOLD), Span::styled(what, PLAIN)];
        line(buffer, area, row, &Line::from(spans));
    }
    let signs = [
        "  –                       not known; never means zero",
        "  ███▒▒▒···               used, then requested and not used, then free",
    ];
    for (row, text) in (12..).zip(signs) {
        line(buffer, area, row, &Line::raw(text));
    }
}
