//! The classic text format with a time for each sample, which `prometheus-client` does not write.

use std::fmt::Write;

use ebb_core::time::Instant;

use crate::metrics::write::escaped;

pub(super) type Labels<'a, const N: usize> = [(&'static str, &'a str); N];

/// Labels, value, and when it was read. Without a time it holds for when the page is asked for.
pub(super) type Row<'a, const N: usize> = (Labels<'a, N>, f64, Option<Instant>);

#[derive(Debug, Default)]
pub(super) struct Text(String);

impl Text {
    /// `name` with the `_total` of its samples: in this format the family is called the same.
    pub(super) fn counters<'r, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        rows: impl IntoIterator<Item = Row<'r, N>>,
    ) {
        self.rows(name, help, "counter", rows);
    }

    pub(super) fn gauges<'r, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        rows: impl IntoIterator<Item = Row<'r, N>>,
    ) {
        self.rows(name, help, "gauge", rows);
    }

    /// A family without rows is left out.
    fn rows<'r, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        kind: &str,
        rows: impl IntoIterator<Item = Row<'r, N>>,
    ) {
        let mut rows = rows.into_iter().peekable();
        if rows.peek().is_none() {
            return;
        }
        self.0 += &format!("# HELP {name} {help}\n# TYPE {name} {kind}\n");
        for (labels, value, at) in rows {
            self.row(name, labels, value, at);
        }
    }

    fn row<const N: usize>(&mut self, name: &str, labels: Labels<'_, N>, value: f64, at: Option<Instant>) {
        self.0 += name;
        for (number, (label, value)) in labels.into_iter().enumerate() {
            let before = if number == 0 { '{' } else { ',' };
            write!(self.0, "{before}{label}=\"{}\"", escaped(value)).expect(GROWS);
        }
        if N > 0 {
            self.0.push('}');
        }
        write!(self.0, " {value}").expect(GROWS);
        if let Some(at) = at {
            write!(self.0, " {}", at.as_millis()).expect(GROWS);
        }
        self.0.push('\n');
    }
}

const GROWS: &str = "a String takes all that is written to it";

impl From<Text> for String {
    fn from(text: Text) -> Self {
        text.0
    }
}
