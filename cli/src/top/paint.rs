//! What views are drawn with: styles, bars, and small graphs. The terminal's own sixteen colours, which people have
//! made readable on their background; nothing is told by colour alone.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};

use super::text::{clip, width};

/// Share from which a figure is worth a look, and from which it is worth a worry.
const HIGH: f64 = 0.75;
const FULL: f64 = 0.9;

pub(super) const PLAIN: Style = Style::new();
pub(super) const BOLD: Style = Style::new().add_modifier(Modifier::BOLD);
/// Dimmed text instead of a grey, which some palettes make invisible.
pub(super) const QUIET: Style = Style::new().add_modifier(Modifier::DIM);
pub(super) const GOOD: Style = Style::new().fg(Color::Green);
pub(super) const BAD: Style = Style::new().fg(Color::Red);
pub(super) const WARN: Style = Style::new().fg(Color::Yellow);
pub(super) const ACCENT: Style = Style::new().fg(Color::Cyan);
pub(super) const OTHER: Style = Style::new().fg(Color::Blue);
pub(super) const SELECTED: Style = Style::new().add_modifier(Modifier::REVERSED);

/// How full something is.
pub(super) fn level(share: f64) -> Style {
    match share {
        share if share >= FULL => BAD,
        share if share >= HIGH => WARN,
        _ => GOOD,
    }
}

/// One line within `area`, which may be anything. What does not fit is cut, and seen to be cut.
pub(super) fn line(buffer: &mut Buffer, area: Rect, row: u16, line: &Line<'_>) {
    let area = area.intersection(buffer.area);
    if row < area.height {
        let line = clip_line(line, usize::from(area.width));
        buffer.set_line(area.x, area.y + row, &line, area.width);
    }
}

/// As [`clip`] does it, each piece in its own style.
pub(super) fn clip_line(line: &Line<'_>, columns: usize) -> Line<'static> {
    let text: String = line.spans.iter().map(|span| &*span.content).collect();
    let clipped = clip(&text, columns);
    let mut rest = &*clipped;
    let mut spans = Vec::new();
    for span in &line.spans {
        // The ellipsis has the style of what it stands for.
        let (part, after) = match rest.strip_prefix(&*span.content) {
            Some(after) => (&*span.content, after),
            None => (rest, ""),
        };
        spans.push(Span::styled(part.to_owned(), span.style));
        rest = after;
    }
    Line { spans, style: line.style, alignment: line.alignment }
}

/// One line that ends at the right edge.
pub(super) fn line_right(buffer: &mut Buffer, area: Rect, row: u16, text: &Line<'_>) {
    let room = usize::from(area.width);
    let shift = room.saturating_sub(text.width());
    let shift = u16::try_from(shift).unwrap_or(0);
    line(buffer, Rect { x: area.x.saturating_add(shift), width: area.width - shift, ..area }, row, text);
}

/// The title of a section, and a rule to its end: `── CPU ── 63 % of 8 ────`. Of `more`, each is there whole, or it and
/// those after it are not.
pub(super) fn title(buffer: &mut Buffer, area: Rect, row: u16, name: &str, more: Vec<Span<'static>>) {
    let mut spans = vec![Span::styled("── ", QUIET), Span::styled(name.to_owned(), BOLD), Span::raw(" ")];
    let mut used: usize = spans.iter().map(Span::width).sum();
    let rule = Span::styled("── ", QUIET);
    let room = usize::from(area.width).saturating_sub(used + rule.width() + 1);
    let mut fits = more;
    while fits.iter().map(Span::width).sum::<usize>() > room {
        fits.pop();
    }
    if !fits.is_empty() {
        spans.push(rule);
        spans.extend(fits);
        spans.push(Span::raw(" "));
        used = spans.iter().map(Span::width).sum();
    }
    spans.push(Span::styled("─".repeat(usize::from(area.width).saturating_sub(used)), QUIET));
    line(buffer, area, row, &Line::from(spans));
}

/// A bar of parts from the left, each a share of the whole; to an eighth of a column where a part ends the bar.
/// Without colours, the parts are told apart by their fill.
pub(super) fn bar(columns: usize, parts: &[(f64, char, Style)]) -> Vec<Span<'static>> {
    let mut spans = Vec::new();
    let mut drawn = 0;
    let mut sum = 0.0;
    for (index, (share, fill, style)) in parts.iter().enumerate() {
        sum += if share.is_finite() { share.max(0.0) } else { 0.0 };
        let until = (sum.min(1.0) * columns as f64 * 8.0).round() as usize;
        let last = index + 1 == parts.len();
        let eighths = if last && *fill == '█' { until % 8 } else { 0 };
        let whole = if last && *fill == '█' { until / 8 } else { (until + 4) / 8 };
        let mut text: String = std::iter::repeat_n(*fill, whole.saturating_sub(drawn)).collect();
        drawn = drawn.max(whole);
        if eighths > 0 && drawn < columns {
            text.push(EIGHTHS_RIGHT[eighths - 1]);
            drawn += 1;
        }
        spans.push(Span::styled(text, *style));
    }
    spans.push(Span::styled("·".repeat(columns.saturating_sub(drawn)), QUIET));
    spans
}

/// One share as a bar in the colour of its level. Unknown: an empty track without its dots.
pub(super) fn gauge(columns: usize, share: Option<f64>) -> Vec<Span<'static>> {
    match share {
        Some(share) => bar(columns, &[(share, '█', level(share))]),
        None => vec![Span::raw(" ".repeat(columns))],
    }
}

/// What is used and what is requested of one thing, in one bar: used is filled, requested and not used is shaded.
pub(super) fn used_and_requested(columns: usize, used: Option<f64>, requested: Option<f64>) -> Vec<Span<'static>> {
    match (used, requested) {
        (None, None) => vec![Span::raw(" ".repeat(columns))],
        (None, Some(requested)) => bar(columns, &[(requested, '▒', OTHER)]),
        (Some(used), requested) => {
            let more = (requested.unwrap_or(0.0) - used).max(0.0);
            bar(columns, &[(used, '█', level(used)), (more, '▒', OTHER)])
        }
    }
}

const EIGHTHS_RIGHT: [char; 7] = ['▏', '▎', '▍', '▌', '▋', '▊', '▉'];
const EIGHTHS_UP: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// One value as a column of an eighth to a whole row. Unknown is a gap; zero is not.
pub(super) fn spark(value: Option<f64>, top: f64) -> char {
    let Some(value) = value else { return ' ' };
    let share = if top > 0.0 { (value / top).clamp(0.0, 1.0) } else { 0.0 };
    EIGHTHS_UP[((share * 8.0).ceil() as usize).clamp(1, 8) - 1]
}

/// A line of columns, each in the colour of its level if `top` is all there can be.
pub(super) fn sparkline(values: &[Option<f64>], top: f64, style: Style) -> Vec<Span<'static>> {
    let text: String = values.iter().map(|value| spark(*value, top)).collect();
    vec![Span::styled(text, style)]
}

/// Columns several rows high. Unknown is a gap; zero is the lowest line.
pub(super) fn graph(buffer: &mut Buffer, area: Rect, values: &[Option<f64>], top: f64) {
    let area = area.intersection(buffer.area);
    for (column, value) in (0..area.width).zip(values) {
        let Some(value) = *value else { continue };
        let share = if top > 0.0 { (value / top).clamp(0.0, 1.0) } else { 0.0 };
        let eighths = ((share * f64::from(area.height) * 8.0).round() as u16).max(1);
        for row in 0..area.height {
            let filled = eighths.saturating_sub(row * 8).min(8);
            if filled > 0 {
                let cell = &mut buffer[(area.x + column, area.bottom() - 1 - row)];
                cell.set_char(EIGHTHS_UP[usize::from(filled) - 1]).set_style(level(share));
            }
        }
    }
}

/// `text` in a field of this many columns, beginning at its left.
pub(super) fn left(text: &str, columns: usize) -> String {
    let text = clip(text, columns);
    format!("{text}{}", " ".repeat(columns.saturating_sub(width(&text))))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(spans: &[Span<'_>]) -> String {
        spans.iter().map(|span| span.content.as_ref()).collect()
    }

    #[test]
    fn bars_show_shares() {
        assert_eq!(text(&gauge(8, Some(0.5))), "████····");
        assert_eq!(text(&gauge(8, Some(0.55))), "████▍···");
        assert_eq!(text(&gauge(8, Some(7.0))), "████████");
        assert_eq!(text(&gauge(4, None)), "    ", "unknown is not empty");
        assert_eq!(text(&used_and_requested(8, Some(0.25), Some(0.5))), "██▒▒····");
        assert_eq!(text(&used_and_requested(8, Some(0.5), Some(0.25))), "████····");
        assert_eq!(text(&used_and_requested(8, None, Some(0.5))), "▒▒▒▒····");
    }

    #[test]
    fn unknown_is_a_gap_and_zero_is_a_line() {
        let values = [Some(0.0), None, Some(0.5), Some(1.0)];
        assert_eq!(text(&sparkline(&values, 1.0, PLAIN)), "▁ ▄█");
    }

    proptest! {
        #[test]
        fn bars_are_as_wide_as_they_should_be(columns in 0_usize..60, used in any::<f64>(), requested in any::<f64>()) {
            let wide = |spans: Vec<Span<'_>>| text(&spans).chars().count();
            prop_assert_eq!(wide(used_and_requested(columns, Some(used), Some(requested))), columns);
            prop_assert_eq!(wide(gauge(columns, Some(used))), columns);
        }
    }
}
