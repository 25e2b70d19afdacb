//! Waiting between two attempts: exponential with jitter, so that a fleet that lost the same peer
//! does not come back in one wave.

use std::time::Duration;

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

/// Delays that double from `initial` up to `max`, each shortened by up to a half at random.
#[derive(Clone, Debug)]
pub struct Backoff {
    initial: Duration,
    max: Duration,
    /// Upper end of the next delay.
    ceiling: Duration,
    rng: ChaCha8Rng,
}

impl Backoff {
    /// Starts at `initial` and never exceeds `max`; equal seeds give equal delays.
    #[must_use]
    pub fn new(initial: Duration, max: Duration, seed: u64) -> Self {
        let initial = initial.min(max);
        Self { initial, max, ceiling: initial, rng: ChaCha8Rng::seed_from_u64(seed) }
    }

    /// Time to wait before the next attempt: between half the ceiling and the ceiling.
    pub fn next_delay(&mut self) -> Duration {
        let delay = self.ceiling.mul_f64(self.rng.random_range(0.5..=1.0));
        self.ceiling = self.ceiling.saturating_mul(2).min(self.max);
        delay
    }

    /// Starts over; call it after a success.
    pub fn reset(&mut self) {
        self.ceiling = self.initial;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INITIAL: Duration = Duration::from_millis(100);
    const MAX: Duration = Duration::from_secs(2);

    #[test]
    fn delays_double_within_their_jitter_and_stop_at_the_maximum() {
        let mut backoff = Backoff::new(INITIAL, MAX, 1);
        let mut ceiling = INITIAL;
        for _ in 0..100 {
            let delay = backoff.next_delay();
            assert!(delay >= ceiling / 2 && delay <= ceiling, "{delay:?} for {ceiling:?}");
            ceiling = (ceiling * 2).min(MAX);
        }
    }

    #[test]
    fn reset_starts_over() {
        let mut backoff = Backoff::new(INITIAL, MAX, 1);
        let last = (0..10).map(|_| backoff.next_delay()).last();
        assert!(last > Some(INITIAL));
        backoff.reset();
        assert!(backoff.next_delay() <= INITIAL);
    }

    #[test]
    fn seeds_spread_a_fleet() {
        let first = |seed| Backoff::new(INITIAL, MAX, seed).next_delay();
        assert_eq!(first(1), first(1));
        assert_ne!(first(1), first(2));
    }
}
