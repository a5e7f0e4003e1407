//! What is known of the terminal that is printed to, if it is one.

use std::io::{IsTerminal, stdout};

/// Where there is no terminal to ask, and none says how wide it is.
const COLUMNS: u16 = 120;

pub(crate) fn columns() -> u16 {
    let told = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
    let asked = || stdout().is_terminal().then(ratatui::crossterm::terminal::size)?.ok().map(|(columns, _)| columns);
    told.or_else(asked).unwrap_or(COLUMNS).clamp(20, 500)
}

pub(crate) fn takes_colours() -> bool {
    stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}
