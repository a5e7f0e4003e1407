//! An area from which parts are cut off until it is empty. Asking for more than there is gives what there is.

use ratatui::layout::Rect;

#[derive(Clone, Copy, Debug)]
pub(super) struct Cut(pub(super) Rect);

impl Cut {
    pub(super) fn top(&mut self, rows: u16) -> Rect {
        let rows = rows.min(self.0.height);
        let part = Rect { height: rows, ..self.0 };
        self.0.y += rows;
        self.0.height -= rows;
        part
    }

    pub(super) fn bottom(&mut self, rows: u16) -> Rect {
        let rows = rows.min(self.0.height);
        self.0.height -= rows;
        Rect { y: self.0.bottom(), height: rows, ..self.0 }
    }

    pub(super) fn left(&mut self, columns: u16) -> Rect {
        let columns = columns.min(self.0.width);
        let part = Rect { width: columns, ..self.0 };
        self.0.x += columns;
        self.0.width -= columns;
        part
    }
}
