//! Every random choice of the engine: a function of the run's seed, what the choice is for, and its
//! two coordinates. No generator is carried along, so the order of events cannot change a draw.

use rand::RngCore as _;
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng as _};

/// What a draw is for; keeps streams with equal coordinates apart.
#[derive(Clone, Copy, Debug)]
pub(super) enum Domain {
    /// Number of calls of group `a`'s task.
    GroupTask = 1,
    /// Sampling seed of sibling `b` of group `a`.
    Sibling = 2,
    /// Order of the demonstrations in epoch `a`.
    Epoch = 3,
    /// Sampling seed of the evaluated task with seed `a`; equal in every evaluation.
    Evaluation = 4,
    /// Order of the demonstrations of failed tasks in SFT step `a`.
    Correction = 5,
}

/// Generator of one draw.
pub(super) fn rng(run_seed: u64, domain: Domain, a: u64, b: u64) -> ChaCha8Rng {
    let mut seed = [0u8; 32];
    for (bytes, value) in seed.chunks_exact_mut(8).zip([run_seed, domain as u64, a, b]) {
        bytes.copy_from_slice(&value.to_le_bytes());
    }
    ChaCha8Rng::from_seed(seed)
}

/// A seed for somebody else's generator.
pub(super) fn seed(run_seed: u64, domain: Domain, a: u64, b: u64) -> u64 {
    rng(run_seed, domain, a, b).next_u64()
}
