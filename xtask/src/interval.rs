//! Confidence interval of a success rate.

/// Normal quantile of a two-sided 95% interval.
const Z: f64 = 1.959_963_984_540_054;

/// 95% interval of `successes` out of `episodes` (Wilson 1927), which stays inside [0, 1] and is
/// sound near both ends. No episodes: nothing is known.
pub(crate) fn wilson(successes: u64, episodes: u64) -> [f64; 2] {
    if episodes == 0 {
        return [0.0, 1.0];
    }
    let n = episodes as f64;
    let rate = successes as f64 / n;
    let scale = 1.0 + Z * Z / n;
    let center = (rate + Z * Z / (2.0 * n)) / scale;
    let reach = Z / scale * (rate * (1.0 - rate) / n + Z * Z / (4.0 * n * n)).sqrt();
    [(center - reach).max(0.0), (center + reach).min(1.0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_match_published_values() {
        // Newcombe 1998, table I, method 3 (Wilson without continuity correction).
        let published = [
            (81, 263, [0.2553, 0.3662]),
            (15, 148, [0.0624, 0.1605]),
            (0, 20, [0.0, 0.1611]),
            (1, 29, [0.0061, 0.1718]),
        ];
        for (successes, episodes, expected) in published {
            let interval = wilson(successes, episodes);
            for (ours, theirs) in interval.iter().zip(expected) {
                assert!((ours - theirs).abs() < 5e-5, "{successes}/{episodes}: {interval:?}");
            }
        }
    }

    #[test]
    fn the_ends_stay_probabilities() {
        assert_eq!(wilson(0, 0), [0.0, 1.0]);
        let [low, high] = wilson(400, 400);
        assert!(low > 0.99 && high > 0.999_999 && high <= 1.0, "{low} {high}");
    }
}
