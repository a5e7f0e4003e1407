//! Writes families of metrics, one row each; a family without rows is left out.

use std::fmt;

use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

pub(super) type Labels<'a, const N: usize> = [(&'static str, &'a str); N];

pub(super) struct Writer<'a>(pub(super) DescriptorEncoder<'a>);

impl Writer<'_> {
    /// `name` without the `_total` that its samples get.
    pub(super) fn counters<'r, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        rows: impl IntoIterator<Item = (Labels<'r, N>, f64)>,
    ) -> fmt::Result {
        self.rows(name, help, MetricType::Counter, rows)
    }

    pub(super) fn gauges<'r, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        rows: impl IntoIterator<Item = (Labels<'r, N>, f64)>,
    ) -> fmt::Result {
        self.rows(name, help, MetricType::Gauge, rows)
    }

    pub(super) fn counter(&mut self, name: &str, help: &str, value: impl Into<Option<f64>>) -> fmt::Result {
        self.rows(name, help, MetricType::Counter, value.into().map(|value| ([], value)))
    }

    pub(super) fn gauge(&mut self, name: &str, help: &str, value: impl Into<Option<f64>>) -> fmt::Result {
        self.rows(name, help, MetricType::Gauge, value.into().map(|value| ([], value)))
    }

    fn rows<'r, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        kind: MetricType,
        rows: impl IntoIterator<Item = (Labels<'r, N>, f64)>,
    ) -> fmt::Result {
        let mut rows = rows.into_iter().peekable();
        if rows.peek().is_none() {
            return Ok(());
        }
        let mut family = self.0.encode_descriptor(name, help, None, kind)?;
        for (labels, value) in rows {
            if N == 0 {
                one(&mut family, kind, value)?;
            } else {
                one(&mut family.encode_family(&labels)?, kind, value)?;
            }
        }
        Ok(())
    }
}

fn one(encoder: &mut MetricEncoder<'_>, kind: MetricType, value: f64) -> fmt::Result {
    match kind {
        MetricType::Counter => encoder.encode_counter::<NoLabelSet, f64, f64>(&value, None),
        _ => encoder.encode_gauge(&value),
    }
}

/// A label's value as the text formats want it.
pub(super) fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
