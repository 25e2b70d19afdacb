//! Every random choice of a simulated run. Each part of the world has dice of its own, so that what one
//! of them draws more or less does not change what the others draw.

use std::time::Duration;

use rand::{Rng as _, RngCore as _};
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng as _};

/// Who draws.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Part {
    Scenario = 1,
    Network,
    Faults,
    Disk,
    Election,
    Coordinators,
    Actors,
    Learner,
    Person,
}

/// The dice of one part.
#[derive(Debug)]
pub(crate) struct Dice(ChaCha8Rng);

impl Dice {
    pub(crate) fn new(seed: u64, part: Part, index: usize) -> Self {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        bytes[8] = part as u8;
        bytes[16..24].copy_from_slice(&(index as u64).to_le_bytes());
        Self(ChaCha8Rng::from_seed(bytes))
    }

    pub(crate) fn number(&mut self) -> u64 {
        self.0.next_u64()
    }

    pub(crate) fn chance(&mut self, probability: f64) -> bool {
        self.0.random_bool(probability)
    }

    /// Both ends count.
    pub(crate) fn between(&mut self, low: u64, high: u64) -> u64 {
        self.0.random_range(low..=high)
    }

    /// An index below `count`, which is not 0.
    pub(crate) fn index(&mut self, count: usize) -> usize {
        self.0.random_range(0..count)
    }

    pub(crate) fn pick<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.index(all.len())]
    }

    /// Both ends count; in whole microseconds.
    pub(crate) fn time(&mut self, low: Duration, high: Duration) -> Duration {
        Duration::from_micros(self.between(low.as_micros() as u64, high.as_micros() as u64))
    }

    pub(crate) fn millis(&mut self, low: u64, high: u64) -> Duration {
        self.time(Duration::from_millis(low), Duration::from_millis(high))
    }
}
