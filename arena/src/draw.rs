//! Seeded draws whose results are fixed by this file alone.
//!
//! Only the ChaCha8 key stream comes from a library, and that is a published algorithm; mapping its
//! words to ranges is done here, so that a library update can never change what a task is.

use std::ops::RangeInclusive;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// A stream of random draws.
pub(crate) struct Draw(ChaCha8Rng);

impl Draw {
    pub(crate) fn from_seed(seed: [u8; 32]) -> Self {
        Self(ChaCha8Rng::from_seed(seed))
    }

    /// Uniform in `[0, bound)`; 0 when `bound` is 0. The high word of a 64 x 64 bit product: its
    /// bias is below bound / 2^64.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.0.next_u64()) * u128::from(bound)) >> 64) as u64
    }

    /// Uniform in `range`.
    pub(crate) fn range(&mut self, range: RangeInclusive<u32>) -> u32 {
        let width = u64::from(range.end().saturating_sub(*range.start())) + 1;
        range.start() + self.below(width) as u32
    }

    /// Takes one element out, uniformly; `None` when there is none. The rest loses its order.
    pub(crate) fn take<T>(&mut self, from: &mut Vec<T>) -> Option<T> {
        let index = self.below(from.len() as u64) as usize;
        (index < from.len()).then(|| from.swap_remove(index))
    }

    /// `count` different elements in random order; fewer when there are fewer.
    pub(crate) fn sample<T>(&mut self, mut from: Vec<T>, count: usize) -> Vec<T> {
        (0..count).map_while(|_| self.take(&mut from)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_are_pinned() {
        let mut draw = Draw::from_seed([7; 32]);
        let drawn: Vec<u32> = (0..8).map(|_| draw.range(10..=99)).collect();
        let pinned = [30, 84, 36, 41, 73, 19, 68, 62];
        assert_eq!(drawn, pinned, "what a task is depends on these draws; they must never change");
    }

    #[test]
    fn sample_is_a_permutation() {
        let mut sample = Draw::from_seed([1; 32]).sample((0..90).collect(), 200);
        assert_ne!(sample, (0..90).collect::<Vec<_>>());
        sample.sort_unstable();
        assert_eq!(sample, (0..90).collect::<Vec<_>>());
    }

    #[test]
    fn range_reaches_both_ends() {
        let mut draw = Draw::from_seed([2; 32]);
        let drawn: Vec<u32> = (0..200).map(|_| draw.range(3..=5)).collect();
        assert_eq!(drawn.iter().min(), Some(&3));
        assert_eq!(drawn.iter().max(), Some(&5));
    }
}
