//! The last minutes of one figure. A moment at which it was unknown is a gap.

use std::collections::VecDeque;

/// Five minutes at one a second.
const KEPT: usize = 300;

#[derive(Clone, Debug, Default)]
pub(super) struct History {
    values: VecDeque<Option<f64>>,
    /// Of all that ever came: so that a picture moves by whole columns instead of trembling.
    count: usize,
}

impl History {
    pub(super) fn push(&mut self, value: Option<f64>) {
        if self.values.len() == KEPT {
            self.values.pop_front();
        }
        self.values.push_back(value.filter(|value| value.is_finite()));
        self.count += 1;
    }

    /// One value for each column, the newest last: the highest of the moments it covers.
    pub(super) fn columns(&self, columns: usize) -> Vec<Option<f64>> {
        if columns == 0 {
            return Vec::new();
        }
        let covers = KEPT.div_ceil(columns);
        let first = self.count - self.values.len();
        let newest = self.count.saturating_sub(1) / covers;
        let mut highest = vec![None; columns];
        for (index, value) in (first..).zip(&self.values) {
            let behind = newest - index / covers;
            if let (Some(value), true) = (*value, behind < columns) {
                let column: &mut Option<f64> = &mut highest[columns - 1 - behind];
                *column = Some(column.map_or(value, |highest| highest.max(value)));
            }
        }
        highest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_stands_on_the_right_and_gaps_stay() {
        let mut history = History::default();
        assert_eq!(history.columns(2), [None, None]);
        for value in [Some(1.0), None, Some(3.0)] {
            history.push(value);
        }
        assert_eq!(history.columns(300)[296..], [None, Some(1.0), None, Some(3.0)]);
        assert_eq!(history.columns(3), [None, None, Some(3.0)]);
    }

    #[test]
    fn columns_that_are_full_do_not_change() {
        let mut history = History::default();
        for value in 0..900 {
            history.push(Some(f64::from(value % 7)));
            if value >= 599 {
                let columns = history.columns(100);
                let mut next = history.clone();
                next.push(Some(0.0));
                let moved = next.columns(100);
                let stood = columns[1..99] == moved[1..99] || columns[1..100] == moved[..99];
                assert!(stood, "{value}");
            }
        }
        assert_eq!(history.values.len(), KEPT);
    }
}
