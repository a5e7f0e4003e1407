//! Writes families of metrics, one row each; a family without rows is left out.

use std::fmt;
use std::time::Duration;

use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

use crate::source::ebpf::Latency;

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

    /// With the sum of what was observed.
    pub(super) fn histograms<'r, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        rows: impl IntoIterator<Item = (Labels<'r, N>, &'r Latency, Duration)>,
    ) -> fmt::Result {
        let mut rows = rows.into_iter().peekable();
        if rows.peek().is_none() {
            return Ok(());
        }
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for (labels, latency, sum) in rows {
            // The encoder adds them up.
            let bucket =
                |(bound, count): (Option<Duration>, u64)| (bound.map_or(f64::INFINITY, |it| it.as_secs_f64()), count);
            let buckets: Vec<_> = latency.buckets().map(bucket).collect();
            let write = |mut encoder: MetricEncoder<'_>| {
                encoder.encode_histogram::<NoLabelSet>(sum.as_secs_f64(), latency.count(), &buckets, None)
            };
            if N == 0 {
                write(family)?;
                return Ok(());
            } else {
                write(family.encode_family(&labels)?)?
            }
        }
        Ok(())
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

#[cfg(test)]
mod tests {
    use prometheus_client::collector::Collector;
    use prometheus_client::registry::Registry;

    use super::*;
    use crate::metrics::exposition::classic;

    #[derive(Debug)]
    struct Waits;

    impl Collector for Waits {
        fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
            let waits = [Duration::from_micros(3), Duration::from_secs(2)];
            let latency = Latency::of(waits);
            Writer(encoder).histograms("waits_seconds", "Waits.", [([("pod", "a")], &latency, waits.iter().sum())])
        }
    }

    #[test]
    fn a_histogram_ends_with_a_bucket_for_everything() {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Waits));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for text in [classic(&text), text] {
            let mut buckets = text.lines().filter(|line| line.contains("_bucket{"));
            assert_eq!(buckets.next(), Some("waits_seconds_bucket{le=\"0.000001\",pod=\"a\"} 0"));
            assert_eq!(buckets.next(), Some("waits_seconds_bucket{le=\"0.000004\",pod=\"a\"} 1"));
            assert_eq!(buckets.next_back(), Some("waits_seconds_bucket{le=\"+Inf\",pod=\"a\"} 2"));
            assert!(text.contains("waits_seconds_sum{pod=\"a\"} 2.000003\n"), "{text}");
        }
    }
}
