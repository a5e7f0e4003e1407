//! Which pieces of a line have room. A piece is there whole or not at all: half a figure is a wrong figure.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;
use ratatui::text::{Line, Span};

use super::super::paint::{self, clip_line};
use super::super::text::width;

/// The columns that a piece needs, those it could use, and how soon it is left out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    /// Where there is no room for all, the highest goes first, and of equals the last.
    rank: u8,
    least: usize,
    most: usize,
}

impl Room {
    pub(super) const fn fixed(rank: u8, columns: usize) -> Self {
        Self { rank, least: columns, most: columns }
    }

    pub(super) const fn between(rank: u8, least: usize, most: usize) -> Self {
        Self { rank, least, most }
    }

    pub(super) const fn from(rank: u8, least: usize) -> Self {
        Self { rank, least, most: usize::MAX }
    }
}

/// The columns of each piece, where they stand side by side, so far apart; `None`: left out. What all leave over is
/// shared out evenly. One piece always stays, however narrow it is then.
pub(super) fn widths(columns: usize, gap: usize, rooms: &[Room]) -> Vec<Option<usize>> {
    let mut widths: Vec<Option<usize>> = rooms.iter().map(|room| Some(room.least)).collect();
    let sum = |widths: &[Option<usize>]| widths.iter().flatten().map(|width| width + gap).sum::<usize>();
    while sum(&widths) > columns + gap {
        let there = || (0..rooms.len()).filter(|index| widths[*index].is_some());
        let Some(next) = there().max_by_key(|index| rooms[*index].rank) else { break };
        widths[next] = if there().count() > 1 { None } else { Some(columns) };
    }
    let mut over = (columns + gap).saturating_sub(sum(&widths));
    while over > 0 {
        let growing = widths.iter_mut().zip(rooms);
        let growing = growing.filter_map(|(width, room)| width.as_mut().filter(|width| **width < room.most));
        let grown = growing.take(over).map(|width| *width += 1).count();
        if grown == 0 {
            break;
        }
        over -= grown;
    }
    widths
}

pub(super) struct Piece<'a> {
    room: Room,
    draw: Box<dyn Fn(usize) -> Vec<Span<'static>> + 'a>,
}

impl<'a> Piece<'a> {
    pub(super) fn text(rank: u8, text: impl Into<String>, style: Style) -> Self {
        let span = Span::styled(text.into(), style);
        Self { room: Room::fixed(rank, span.width()), draw: Box::new(move |_| vec![span.clone()]) }
    }

    /// A name or a sentence, which may be cut: `clip` says how.
    pub(super) fn clipped(
        rank: u8,
        least: usize,
        text: &'a str,
        style: Style,
        clip: fn(&str, usize) -> String,
    ) -> Self {
        let whole = width(text);
        let draw = move |columns| vec![Span::styled(clip(text, columns), style)];
        Self { room: Room::between(rank, least.min(whole), whole), draw: Box::new(draw) }
    }

    /// What takes as many columns as it is given.
    pub(super) fn stretched(room: Room, draw: impl Fn(usize) -> Vec<Span<'static>> + 'a) -> Self {
        Self { room, draw: Box::new(draw) }
    }
}

pub(super) fn spans(columns: usize, pieces: &[Piece<'_>]) -> Vec<Span<'static>> {
    let rooms: Vec<Room> = pieces.iter().map(|piece| piece.room).collect();
    let widths = widths(columns, 0, &rooms);
    let drawn = pieces.iter().zip(widths).filter_map(|(piece, width)| Some((piece.draw)(width?)));
    clip_line(&Line::from_iter(drawn.flatten()), columns).spans
}

pub(super) fn line(buffer: &mut Buffer, area: Rect, row: u16, pieces: &[Piece<'_>]) {
    paint::line(buffer, area, row, &Line::from(spans(usize::from(area.width), pieces)));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_highest_rank_goes_first_and_the_rest_is_shared() {
        let rooms = [Room::from(0, 10), Room::fixed(2, 5), Room::between(1, 5, 8), Room::fixed(2, 5)];
        let check = |columns, expected: [Option<usize>; 4]| assert_eq!(widths(columns, 1, &rooms), expected);
        check(28, [Some(10), Some(5), Some(5), Some(5)]);
        check(27, [Some(13), Some(5), Some(7), None]);
        check(40, [Some(19), Some(5), Some(8), Some(5)]);
        check(16, [Some(10), None, Some(5), None]);
        check(15, [Some(15), None, None, None]);
        check(4, [Some(4), None, None, None]);
    }

    proptest! {
        #[test]
        fn what_stays_fits(
            columns in 0..200_usize,
            gap in 0..3_usize,
            rooms in prop::collection::vec((0..9_u8, 0..40_usize, 0..80_usize), 0..12),
        ) {
            let rooms: Vec<_> = rooms.into_iter().map(|(rank, least, more)| Room::between(rank, least, least + more)).collect();
            let widths = widths(columns, gap, &rooms);
            let there: Vec<_> = widths.iter().flatten().collect();
            prop_assert!(there.iter().copied().sum::<usize>() + gap * there.len().saturating_sub(1) <= columns);
            prop_assert!(there.len() == 1 || widths.iter().zip(&rooms).all(|(width, room)| width.is_none_or(|width| (room.least..=room.most).contains(&width))));
            prop_assert!(rooms.is_empty() || !there.is_empty());
        }
    }
}
