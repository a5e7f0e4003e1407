//! A frame as an SVG, for pages that show what `ebb top` looks like. Bars, graphs and rules are shapes, since fonts leave
//! gaps between them; text has the length of its cells, whatever font a reader has.

use std::fmt::Write;

use ratatui::buffer::{Buffer, Cell};
use ratatui::style::{Color, Modifier};

/// Whole pixels, so that shapes side by side leave no seam; monospaced fonts are about 0.6 as wide as they are high.
const CELL: (f64, f64) = (9.0, 19.0);
const FONT: f64 = 15.0;
const MARGIN: f64 = 14.0;
const BACKGROUND: &str = "#0d1117";
const FOREGROUND: &str = "#d7dce2";

pub(super) fn svg(buffer: &Buffer) -> String {
    let (wide, high) = (f64::from(buffer.area.width) * CELL.0, f64::from(buffer.area.height) * CELL.1);
    let (width, height) = (wide + 2.0 * MARGIN, high + 2.0 * MARGIN);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
         font-family=\"ui-monospace, 'SF Mono', Menlo, Consolas, 'DejaVu Sans Mono', monospace\" font-size=\"{FONT}\">\n\
         <rect width=\"{width}\" height=\"{height}\" rx=\"8\" fill=\"{BACKGROUND}\"/>\n"
    );
    for row in buffer.area.rows() {
        let cells: Vec<&Cell> = row.positions().map(|position| &buffer[position]).collect();
        let y = MARGIN + f64::from(row.y) * CELL.1;
        let mut column = 0;
        while column < cells.len() {
            let length = run(&cells[column..]);
            draw(&mut out, &cells[column..column + length], MARGIN + column as f64 * CELL.0, y);
            column += length;
        }
    }
    out + "</svg>\n"
}

/// How many of the first cells are drawn as one: text of one style, or one shape again and again.
fn run(cells: &[&Cell]) -> usize {
    let first = cells[0];
    let style = |cell: &Cell| (cell.fg, cell.modifier);
    let alike = |cell: &&&Cell| match shape(first) {
        Some(_) => cell.symbol() == first.symbol(),
        None => shape(cell).is_none() && (cell.symbol() == " ") == (first.symbol() == " "),
    };
    cells.iter().take_while(|cell| style(cell) == style(first)).take_while(alike).count()
}

/// Of a cell, as shares of it: left, top, width, height, and how dense it is.
fn shape(cell: &Cell) -> Option<[f64; 5]> {
    let symbol = cell.symbol().chars().next()?;
    let eighths = |from: char, to: char| (f64::from(u32::from(to)) - f64::from(u32::from(from))) / 8.0;
    Some(match symbol {
        '▁'..='█' => [0.0, 1.0 - eighths('▀', symbol), 1.0, eighths('▀', symbol), 1.0],
        '▉'..='▏' => [0.0, 0.0, eighths(symbol, '▐'), 1.0, 1.0],
        '▒' => [0.0, 0.0, 1.0, 1.0, 0.5],
        '─' => [0.0, 0.47, 1.0, 0.06, 1.0],
        _ => return None,
    })
}

fn draw(out: &mut String, cells: &[&Cell], x: f64, y: f64) {
    let cell = cells[0];
    let wide = cells.len() as f64 * CELL.0;
    let colour = match cell.fg {
        Color::Red => "#ff7b72",
        Color::Green => "#56d364",
        Color::Yellow => "#e3b341",
        Color::Blue => "#6cb6ff",
        Color::Cyan => "#56d4dd",
        _ => FOREGROUND,
    };
    let is = |modifier| cell.modifier.contains(modifier);
    let reversed = is(Modifier::REVERSED);
    if reversed {
        rect(out, [x, y, wide, CELL.1], colour, 1.0);
    }
    let faint = if is(Modifier::DIM) { 0.6 } else { 1.0 };
    if let Some([left, top, width, height, dense]) = shape(cell) {
        // Bars of one line do not run into those of the next.
        let (top, height) = (0.1 + 0.9 * top, 0.9 * height);
        let width = if width < 1.0 { width * CELL.0 } else { wide };
        return rect(out, [x + left * CELL.0, y + top * CELL.1, width, height * CELL.1], colour, faint * dense);
    }
    let text: String = cells.iter().map(|cell| cell.symbol()).collect();
    if text.trim().is_empty() {
        return;
    }
    let fill = if reversed { BACKGROUND } else { colour };
    let weight = if is(Modifier::BOLD) { " font-weight=\"600\"" } else { "" };
    let opacity = if faint < 1.0 { format!(" opacity=\"{faint}\"") } else { String::new() };
    let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let _cannot_fail = writeln!(
        out,
        r#"<text x="{x:.1}" y="{:.1}" textLength="{wide:.1}" lengthAdjust="spacingAndGlyphs" fill="{fill}"{weight}{opacity}>{text}</text>"#,
        y + 14.5,
    );
}

fn rect(out: &mut String, [x, y, width, height]: [f64; 4], fill: &str, opacity: f64) {
    let opacity = if opacity < 1.0 { format!(" opacity=\"{opacity:.2}\"") } else { String::new() };
    let _cannot_fail = writeln!(
        out,
        r#"<rect x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}" fill="{fill}"{opacity}/>"#
    );
}
