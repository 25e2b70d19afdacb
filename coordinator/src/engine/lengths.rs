//! Whether training sees the lengths that were sampled.
//!
//! A system that drops the late episodes drops the long ones, and learns to be short. Nothing here
//! drops an episode for being late; this is the proof, kept up while the run goes on: histograms of
//! the explored trajectories that were finished, of those of them that were trained on, and of every
//! episode that did not get that far, by reason.

use std::collections::BTreeMap;

use ballast_proto::v1::{DroppedLengths, LengthDistribution, LengthsResponse};
use serde::{Deserialize, Serialize};

/// Upper bound of the first bin, tokens.
const FIRST_BOUND: f64 = 16.0;
/// Each bin reaches this much further than the one before.
const GROWTH: f64 = 1.25;
/// The last one reaches beyond a million tokens.
const BINS: usize = 51;

/// How many of what length.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Histogram {
    bins: Vec<u64>,
    count: u64,
    tokens: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { bins: vec![0; BINS], count: 0, tokens: 0 }
    }
}

impl Histogram {
    fn add(&mut self, tokens: u32) {
        let bin = upper_bounds().position(|bound| tokens <= bound).unwrap_or(BINS - 1);
        self.bins[bin] += 1;
        self.count += 1;
        self.tokens += u64::from(tokens);
    }

    fn to_wire(&self) -> LengthDistribution {
        let mean = if self.count == 0 { 0.0 } else { self.tokens as f64 / self.count as f64 };
        LengthDistribution { count: self.count, mean, bins: self.bins.clone() }
    }
}

/// Episodes that did not reach a batch.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Dropped {
    known: Histogram,
    /// Their actor died with them.
    unknown: u64,
}

/// Lengths of the run so far.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Lengths {
    sampled: Histogram,
    trained: Histogram,
    dropped: BTreeMap<String, Dropped>,
}

impl Lengths {
    /// An explored trajectory is finished and can be used.
    pub(super) fn sample(&mut self, tokens: u32) {
        self.sampled.add(tokens);
    }

    /// It is in a batch.
    pub(super) fn train(&mut self, tokens: u32) {
        self.trained.add(tokens);
    }

    /// An explored episode will not be in a batch.
    pub(super) fn drop_one(&mut self, reason: &str, tokens: Option<u32>) {
        let dropped = self.dropped.entry(reason.to_owned()).or_default();
        match tokens {
            Some(tokens) => dropped.known.add(tokens),
            None => dropped.unknown += 1,
        }
    }

    /// All of it, with the test.
    pub(super) fn report(&self) -> LengthsResponse {
        let statistic = kolmogorov_smirnov(&self.sampled, &self.trained);
        let dropped = self.dropped.iter().map(|(reason, dropped)| DroppedLengths {
            reason: reason.clone(),
            count: dropped.known.count + dropped.unknown,
            unknown: dropped.unknown,
            known: Some(dropped.known.to_wire()),
        });
        LengthsResponse {
            sampled: Some(self.sampled.to_wire()),
            trained: Some(self.trained.to_wire()),
            statistic,
            p_value: p_value(statistic, self.sampled.count, self.trained.count),
            dropped: dropped.collect(),
            upper_bounds: upper_bounds().collect(),
        }
    }
}

fn upper_bounds() -> impl Iterator<Item = u32> {
    (0..BINS as i32).map(|bin| (FIRST_BOUND * GROWTH.powi(bin)) as u32)
}

/// The largest difference of the two empirical distribution functions at the bounds of the bins; 0
/// when one is empty.
fn kolmogorov_smirnov(a: &Histogram, b: &Histogram) -> f64 {
    if a.count == 0 || b.count == 0 {
        return 0.0;
    }
    let (mut of_a, mut of_b, mut largest) = (0, 0, 0.0f64);
    for (in_a, in_b) in a.bins.iter().zip(&b.bins) {
        of_a += in_a;
        of_b += in_b;
        let difference = of_a as f64 / a.count as f64 - of_b as f64 / b.count as f64;
        largest = largest.max(difference.abs());
    }
    largest
}

/// Probability of a statistic at least as large if both samples of these sizes came from one
/// distribution: Kolmogorov's limit, with Stephens' correction for finite samples,
/// `Q(x) = 2 sum_k (-1)^(k-1) exp(-2 k^2 x^2)`.
fn p_value(statistic: f64, n: u64, m: u64) -> f64 {
    /// Below this the sum is 1 to more digits than a float has, and does not converge.
    const SMALL: f64 = 0.2;
    const TERMS: i32 = 100;
    if n == 0 || m == 0 {
        return 1.0;
    }
    let size = (n as f64 * m as f64 / (n as f64 + m as f64)).sqrt();
    let x = (size + 0.12 + 0.11 / size) * statistic;
    if x < SMALL {
        return 1.0;
    }
    let term = |k: i32| {
        let sign = if k % 2 == 1 { 2.0 } else { -2.0 };
        sign * (-2.0 * f64::from(k * k) * x * x).exp()
    };
    (1..=TERMS).map(term).sum::<f64>().clamp(0.0, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn histogram(lengths: impl IntoIterator<Item = u32>) -> Histogram {
        let mut histogram = Histogram::default();
        lengths.into_iter().for_each(|tokens| histogram.add(tokens));
        histogram
    }

    #[test]
    fn every_length_has_a_bin_and_the_bounds_rise() {
        let bounds: Vec<u32> = upper_bounds().collect();
        assert!(bounds.windows(2).all(|pair| pair[0] < pair[1]));
        assert!(bounds[BINS - 1] > 1_000_000);
        assert_eq!(histogram([0, 16]).bins[0], 2);
        assert_eq!(histogram([17]).bins[1], 1);
        assert_eq!(histogram([u32::MAX]).bins[BINS - 1], 1);
    }

    /// Values of the limiting distribution as in the tables of textbooks: 0.05 at 1.358.
    #[test]
    fn the_p_value_is_that_of_the_tables() {
        let n = 1_000_000_000;
        let size = f64::sqrt(n as f64 / 2.0);
        for (x, p) in [(1.2238, 0.10), (1.3581, 0.05), (1.6276, 0.01)] {
            assert!((p_value(x / size, n, n) - p).abs() < 1e-3, "{x}");
        }
        assert_eq!(p_value(0.0, 10, 10), 1.0);
    }

    #[test]
    fn a_system_that_drops_the_long_ones_is_found_out() {
        let mut honest = Lengths::default();
        let mut biased = Lengths::default();
        for tokens in (0..2000).map(|i| 50 + (i * 37) % 400) {
            for lengths in [&mut honest, &mut biased] {
                lengths.sample(tokens);
            }
            honest.train(tokens);
            if tokens < 400 {
                biased.train(tokens);
            } else {
                biased.drop_one("late", Some(tokens));
            }
        }
        assert_eq!(honest.report().p_value, 1.0);
        let report = biased.report();
        assert!(report.p_value < 0.01, "{report:?}");
        assert_eq!(report.dropped[0].reason, "late");
        assert!(report.dropped[0].known.as_ref().is_some_and(|known| known.mean >= 400.0));
    }
}
