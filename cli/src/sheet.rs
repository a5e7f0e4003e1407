//! Text that is printed for people: titles, columns, lines that wrap within a terminal's width. Names in it come from
//! others, and are made harmless here.

use ebb_core::time::Instant;
use ebb_core::view::Step;

use crate::text::{clean, width};

/// Between two columns.
const GAP: usize = 2;
/// A column that wraps keeps at least this much.
const NARROWEST: usize = 24;

/// Lines as they are added. All but titles are indented by one.
pub(crate) struct Sheet {
    columns: usize,
    colours: bool,
    text: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Align {
    Left,
    Right,
}

impl Sheet {
    pub(crate) fn new(columns: usize, colours: bool) -> Self {
        Self { columns, colours, text: String::new() }
    }

    /// What was added, which is then forgotten.
    pub(crate) fn take(&mut self) -> String {
        std::mem::take(&mut self.text)
    }

    /// For text after a label.
    pub(crate) fn room(&self, label: &str) -> usize {
        self.columns.saturating_sub(width(label) + 3)
    }

    /// After an empty line, unless it is the first.
    pub(crate) fn title(&mut self, title: &str) {
        if !self.text.is_empty() {
            self.text.push('\n');
        }
        self.wrapped("", title, "1");
    }

    pub(crate) fn line(&mut self, text: &str) {
        self.wrapped(" ", text, "");
    }

    /// After a label; further lines begin where the text does.
    pub(crate) fn labelled(&mut self, label: &str, text: &str) {
        self.wrapped(&format!(" {label}  "), text, "");
    }

    /// As [`Self::labelled`], and under it what follows from that.
    pub(crate) fn advice(&mut self, label: &str, text: &str, advice: &str) {
        self.labelled(label, text);
        self.wrapped(&format!("{}→ ", " ".repeat(width(label) + 3)), advice, "");
    }

    /// What was done when, and under it why.
    pub(crate) fn step(&mut self, when: &str, what: &str, because: &str) {
        self.labelled(when, what);
        if !because.is_empty() {
            self.because(width(when) + 3, because);
        }
    }

    /// Why what stands above it is so.
    pub(crate) fn because(&mut self, indent: usize, because: &str) {
        self.wrapped(&format!("{}↳ ", " ".repeat(indent)), because, "2");
    }

    /// Steps by their age, the newest first.
    pub(crate) fn steps(&mut self, now: Instant, steps: &[Step]) {
        let ages: Vec<_> = steps.iter().map(|step| format!("{} ago", crate::text::span(now.since(step.at)))).collect();
        let widest = ages.iter().map(|age| width(age)).max().unwrap_or(0);
        for (age, step) in ages.iter().zip(steps) {
            self.step(&format!("{age:>widest$}"), &step.what, &step.because);
        }
    }

    /// Columns as wide as what is in them; what does not fit in the last one wraps.
    pub(crate) fn table(&mut self, head: &[(&str, Align)], rows: &[Vec<String>]) {
        let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(|cell| clean(cell)).collect()).collect();
        let titles: Vec<String> = head.iter().map(|(title, _)| (*title).to_owned()).collect();
        let widest = |column: usize| {
            let cells = rows.iter().chain([&titles]).filter_map(|row| row.get(column));
            cells.map(|cell| width(cell)).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..head.len()).map(widest).collect();
        let titled = titles.iter().any(|title| !title.is_empty());
        for (number, row) in titled.then_some(&titles).into_iter().chain(&rows).enumerate() {
            let mut start = " ".to_owned();
            let Some((last, others)) = row.split_last() else { continue };
            for ((cell, wide), (_, align)) in others.iter().zip(&widths).zip(head) {
                let blank = " ".repeat(wide.saturating_sub(width(cell)));
                let gap = " ".repeat(GAP);
                match align {
                    Align::Left => start += &format!("{cell}{blank}{gap}"),
                    Align::Right => start += &format!("{blank}{cell}{gap}"),
                }
            }
            if let (Some((_, Align::Right)), Some(wide)) = (head.last(), widths.last()) {
                start += &" ".repeat(wide.saturating_sub(width(last)));
            }
            self.wrapped(&start, last, if titled && number == 0 { "2" } else { "" });
        }
    }

    /// `start` as it is, and after it the text. Words are kept whole: a name must not be cut.
    fn wrapped(&mut self, start: &str, text: &str, style: &str) {
        let indent = width(start);
        let room = self.columns.saturating_sub(indent).max(NARROWEST);
        let text = clean(text);
        let mut lines = vec![String::new()];
        for word in text.split(' ') {
            match lines.last_mut() {
                Some(line) if line.is_empty() => line.push_str(word),
                Some(line) if width(line) + 1 + width(word) <= room => *line += &format!(" {word}"),
                _ => lines.push(word.to_owned()),
            }
        }
        for (number, line) in lines.iter().enumerate() {
            let start = if number == 0 { clean(start) } else { " ".repeat(indent) };
            let whole = format!("{start}{line}");
            let whole = whole.trim_end();
            match style {
                "" => self.text += whole,
                style if self.colours => self.text += &format!("\u{1b}[{style}m{whole}\u{1b}[0m"),
                _ => self.text += whole,
            }
            self.text.push('\n');
        }
    }
}

/// As many as fit in one line of this width, and how many more there are.
pub(crate) fn listed(names: &[String], columns: usize) -> String {
    let more =
        |shown: usize| if shown == names.len() { String::new() } else { format!(", {} more", names.len() - shown) };
    let fitting = (1..=names.len()).rev().find(|shown| {
        let listed: usize = names[..*shown].iter().map(|name| width(name) + 2).sum();
        listed - 2 + more(*shown).len() <= columns
    });
    let shown = fitting.unwrap_or_else(|| names.len().min(1));
    names[..shown].join(", ") + &more(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_wrap_under_their_beginning_and_words_stay_whole() {
        let mut sheet = Sheet::new(40, false);
        sheet.labelled("why", "no group can make a node for it: a-group-with-a-very-long-name-of-its-own: too little");
        let expected = " why  no group can make a node for it:\n      \
                        a-group-with-a-very-long-name-of-its-own:\n      too little\n";
        assert_eq!(sheet.take(), expected);
        assert_eq!(sheet.take(), "");
    }

    #[test]
    fn columns_are_as_wide_as_what_is_in_them() {
        let mut sheet = Sheet::new(40, false);
        let head = [("NAME", Align::Left), ("MIN", Align::Right), ("", Align::Left)];
        let row = |cells: [&str; 3]| cells.map(str::to_owned).to_vec();
        sheet.table(&head, &[row(["a", "2", "at its maximum, and some more words"]), row(["a-long\u{1b}", "10", ""])]);
        let expected =
            " NAME     MIN\n a          2  at its maximum, and some\n               more words\n a-long\u{fffd}   10\n";
        assert_eq!(sheet.take(), expected);
    }

    #[test]
    fn a_list_says_how_much_of_it_is_left_out() {
        let names = ["a", "b", "c"].map(str::to_owned);
        assert_eq!(listed(&names, 20), "a, b, c");
        assert_eq!(listed(&names, 6), "a, 2 more");
        assert_eq!(listed(&names, 1), "a, 2 more", "one is always said");
        assert_eq!(listed(&[], 5), "");
    }
}
