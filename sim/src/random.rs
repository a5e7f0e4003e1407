//! Chance, from a seed. Each purpose has a stream of its own, so that a draw more in one place changes no other.

use std::time::Duration;

use rand::RngExt;
use rand_distr::{Distribution, StandardNormal};
use rand_pcg::Pcg64;

use crate::scenario::Span;

/// A stream of draws.
#[derive(Clone, Debug)]
pub(crate) struct Random(Pcg64);

impl Random {
    pub(crate) fn new(seed: u64, purpose: &str) -> Self {
        // FNV-1a: any mapping will do that never changes.
        let stream = purpose
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
        Self(Pcg64::new(seed.into(), stream.into()))
    }

    /// A whole number below `bound`, which must not be zero.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0.random_range(0..bound)
    }

    pub(crate) fn chance(&mut self, probability: f64) -> bool {
        self.0.random_bool(probability)
    }

    /// Evenly between the two, to the millisecond.
    pub(crate) fn between(&mut self, from: Duration, to: Duration) -> Duration {
        let (from, to) = (millis(from), millis(to));
        Duration::from_millis(self.0.random_range(from..=to.max(from)))
    }

    /// From the log-normal distribution that a [`Span`] describes.
    pub(crate) fn span(&mut self, span: Span) -> Duration {
        // Standard deviations from the median to the 95th percentile, and to the 99th, where the tails are cut.
        const P95: f64 = 1.644_854;
        const CUT: f64 = 2.326_348;
        let normal: f64 = StandardNormal.sample(&mut self.0);
        if span.p95 <= span.median {
            return span.median;
        }
        let sigma = (span.p95.as_secs_f64() / span.median.as_secs_f64()).ln() / P95;
        let seconds = span.median.as_secs_f64() * (sigma * normal.clamp(-CUT, CUT)).exp();
        Duration::from_millis(millis(Duration::from_secs_f64(seconds)))
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_has_its_median_and_its_95th_percentile() {
        let span = Span::seconds(100, 200);
        let mut random = Random::new(1, "test");
        let mut drawn: Vec<_> = (0..10_000).map(|_| random.span(span).as_secs_f64()).collect();
        drawn.sort_by(f64::total_cmp);
        assert!((95.0..105.0).contains(&drawn[5000]), "{}", drawn[5000]);
        assert!((185.0..215.0).contains(&drawn[9500]), "{}", drawn[9500]);
        assert!(drawn[9999] < 270.0, "{}", drawn[9999]);
        assert_eq!(random.span(Span::seconds(7, 7)), Duration::from_secs(7));
    }

    #[test]
    fn purposes_draw_apart_and_seeds_repeat() {
        let draws = |seed, purpose| {
            let mut random = Random::new(seed, purpose);
            (0..8).map(|_| random.below(1000)).collect::<Vec<_>>()
        };
        assert_eq!(draws(7, "a"), draws(7, "a"));
        assert_ne!(draws(7, "a"), draws(7, "b"));
        assert_ne!(draws(7, "a"), draws(8, "a"));
    }
}
