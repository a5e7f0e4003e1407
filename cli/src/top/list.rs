//! Where one is in a list that changes: the chosen row, what is scrolled off, the filter.

/// The chosen row is remembered by what it is, not by where: others come, go and change places around it.
#[derive(Clone, Debug, Default)]
pub(super) struct List {
    chosen: Option<String>,
    /// Where the chosen row was when last seen.
    index: usize,
    offset: usize,
    pub(super) filter: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Move {
    Up,
    Down,
    PageUp,
    PageDown,
    First,
    Last,
}

/// What of a list is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window {
    pub(super) offset: usize,
    /// Within the whole list.
    pub(super) chosen: Option<usize>,
}

impl List {
    /// `keys`: what each row is, in order, after the filter; `rows`: how many fit.
    pub(super) fn window(&mut self, keys: &[&str], rows: usize) -> Window {
        let chosen = self.chosen.as_deref().and_then(|chosen| keys.iter().position(|key| *key == chosen));
        self.index = chosen.unwrap_or(self.index).min(keys.len().saturating_sub(1));
        // It went: whoever is in its place now.
        if let (Some(chosen), Some(key)) = (&mut self.chosen, keys.get(self.index)) {
            (*key).clone_into(chosen);
        }
        if rows > 0 {
            self.offset = self.offset.clamp((self.index + 1).saturating_sub(rows), self.index);
            self.offset = self.offset.min(keys.len().saturating_sub(rows));
        }
        Window { offset: self.offset, chosen: (self.chosen.is_some() && !keys.is_empty()).then_some(self.index) }
    }

    pub(super) fn go(&mut self, to: Move, keys: &[&str], page: usize) {
        if keys.is_empty() {
            return;
        }
        let last = keys.len() - 1;
        let page = page.max(1);
        let fresh = self.chosen.is_none();
        let index = self.window(keys, 0).chosen.unwrap_or(0);
        let index = match to {
            // The first key only shows where one is.
            Move::Up | Move::Down if fresh => 0,
            Move::Up => index.saturating_sub(1),
            Move::Down => index + 1,
            Move::PageUp => index.saturating_sub(page),
            Move::PageDown => index.saturating_add(page),
            Move::First => 0,
            Move::Last => last,
        };
        self.index = index.min(last);
        self.chosen = Some(keys[self.index].to_owned());
    }

    pub(super) fn chosen(&self) -> Option<&str> {
        self.chosen.as_deref()
    }

    /// Back to the top, as after another order.
    pub(super) fn rewind(&mut self) {
        *self = Self { filter: std::mem::take(&mut self.filter), ..Self::default() };
    }

    pub(super) fn lets_through(&self, text: &str) -> bool {
        self.filter.is_empty() || text.to_lowercase().contains(&self.filter.to_lowercase())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chosen_row_is_followed_and_kept_in_sight() {
        let mut list = List::default();
        let keys = ["a", "b", "c", "d", "e"];
        assert_eq!(list.window(&keys, 2), Window { offset: 0, chosen: None });
        list.go(Move::Down, &keys, 2);
        list.go(Move::PageDown, &keys, 2);
        assert_eq!(list.window(&keys, 2), Window { offset: 1, chosen: Some(2) });
        let others = ["c", "a", "b", "d", "e"];
        assert_eq!(list.window(&others, 2), Window { offset: 0, chosen: Some(0) });
        let gone = ["a", "b"];
        assert_eq!(list.chosen(), Some("c"));
        assert_eq!(list.window(&gone, 2), Window { offset: 0, chosen: Some(0) });
        assert_eq!(list.chosen(), Some("a"));
        list.go(Move::Last, &keys, 2);
        assert_eq!(list.window(&keys, 2), Window { offset: 3, chosen: Some(4) });
        assert_eq!(list.window(&[], 2), Window { offset: 0, chosen: None });
    }
}
