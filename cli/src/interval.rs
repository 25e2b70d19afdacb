//! Confidence interval of a success rate.

/// Quantile of the standard normal distribution for a two-sided 95% interval.
const Z95: f64 = 1.959_963_984_540_054;

/// Wilson score interval at 95% for `successes` of `trials` (Wilson 1927): honest also near 0 and 1,
/// where the textbook normal interval leaves [0, 1]. No trial says nothing: [0, 1].
pub(crate) fn wilson95(successes: u32, trials: u32) -> (f64, f64) {
    if trials == 0 {
        return (0.0, 1.0);
    }
    let n = f64::from(trials);
    let rate = f64::from(successes) / n;
    let z2 = Z95 * Z95;
    let centre = rate + z2 / (2.0 * n);
    let half = Z95 * (rate * (1.0 - rate) / n + z2 / (4.0 * n * n)).sqrt();
    let scale = 1.0 + z2 / n;
    (((centre - half) / scale).max(0.0), ((centre + half) / scale).min(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_intervals() {
        // statsmodels.stats.proportion.proportion_confint(8, 10, method="wilson")
        let (low, high) = wilson95(8, 10);
        assert!((low - 0.490_162).abs() < 1e-5 && (high - 0.943_318).abs() < 1e-5, "{low} {high}");
        let (none, all) = (wilson95(0, 400), wilson95(400, 400));
        assert!(none.0 < 1e-12 && (0.001..0.02).contains(&none.1), "{none:?}");
        assert!(all.1 > 1.0 - 1e-12 && (0.98..0.999).contains(&all.0), "{all:?}");
        assert_eq!(wilson95(0, 0), (0.0, 1.0));
    }
}
