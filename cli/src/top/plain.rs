//! One frame as text: for a bug report, a file, a test.

use std::fmt::Write;
use std::time::Duration;

use anyhow::{Result, bail};
use ratatui::buffer::{Buffer, Cell};
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier};

use super::app::{App, Subject};
use super::draw::draw;
use super::link::follow;
use crate::client::Target;

/// Until there is something to print.
const PATIENCE: Duration = Duration::from_secs(10);
/// Rows beside those of the table.
const AROUND: usize = 48;
const HIGHEST: usize = 1000;

/// Asks once and draws everything there is, however long.
pub(super) fn once(target: &Target, every: Duration, columns: u16) -> Result<Buffer> {
    let mut app = App { plain: true, ..App::new(&target.to_string()) };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (sender, mut news) = tokio::sync::mpsc::channel(1);
    runtime.block_on(async {
        let tell = |news| drop(sender.try_send(news));
        let seen = async {
            while let Some(news) = news.recv().await {
                app.take(news, Duration::ZERO);
                if app.away.is_some() || !matches!(app.subject, Subject::Unknown) {
                    break;
                }
            }
        };
        tokio::select! {
            () = seen => {}
            () = follow(target, every, tell) => {}
            () = tokio::time::sleep(PATIENCE) => {}
        }
    });
    let rows = match (&app.subject, &app.away) {
        (Subject::Unknown, Some((_, why))) => bail!("{why}"),
        (Subject::Unknown, None) => bail!("nothing heard from {target} for {} s", PATIENCE.as_secs()),
        (Subject::Node(watched), _) => watched.node.cgroups.len(),
        (Subject::Cluster(cluster), _) => cluster.nodes.len() + cluster.groups.len(),
    };
    let rows = u16::try_from((rows + AROUND).min(HIGHEST))?;
    let mut buffer = Buffer::empty(Rect::new(0, 0, columns, rows));
    draw(&mut app, &mut buffer, Duration::ZERO);
    Ok(buffer)
}

/// Without what is blank at the ends of lines, and with one blank line where there are more.
pub(super) fn text(buffer: &Buffer, colours: bool) -> String {
    let mut out = String::new();
    let mut blank = false;
    for row in buffer.area.rows() {
        let mut line = String::new();
        let mut style = None;
        let mut skip = 0;
        for position in row.positions() {
            let cell = &buffer[position];
            // A wide character stands in two cells, of which the second is empty.
            if skip > 0 {
                skip -= 1;
                continue;
            }
            skip = super::text::width(cell.symbol()).saturating_sub(1);
            let wanted = Some((cell.fg, cell.modifier));
            if colours && style != wanted {
                style = wanted;
                line.push_str(&escape(cell));
            }
            line.push_str(cell.symbol());
        }
        if row.positions().all(|position| buffer[position].symbol() == " ") {
            blank = true;
            continue;
        }
        let end = if colours { "\u{1b}[0m" } else { "" };
        let gap = if std::mem::take(&mut blank) && !out.is_empty() { "\n" } else { "" };
        let _cannot_fail = writeln!(out, "{gap}{}{end}", line.trim_end());
    }
    out
}

/// Select Graphic Rendition (ECMA-48, 8.3.117).
fn escape(cell: &Cell) -> String {
    let colour = match cell.fg {
        Color::Red => ";31",
        Color::Green => ";32",
        Color::Yellow => ";33",
        Color::Blue => ";34",
        Color::Magenta => ";35",
        Color::Cyan => ";36",
        _ => "",
    };
    let modifiers = [(Modifier::BOLD, ";1"), (Modifier::DIM, ";2"), (Modifier::REVERSED, ";7")];
    let set = modifiers.iter().filter(|(modifier, _)| cell.modifier.contains(*modifier)).map(|(_, code)| *code);
    format!("\u{1b}[0{}{colour}m", set.collect::<String>())
}
