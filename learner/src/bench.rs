//! Training throughput on one machine, for `cargo xtask bench quickstart`.

use std::path::Path;

use ballast_policy::{open_device, set_threads};

use crate::{
    algorithm::TrainingSample,
    optimizer::{AdamW, MomentsByLoss},
    train::{LossKind, Part, Trainer},
    worker::{self, load_policy},
};

/// Tokens per second of `repeat` optimizer steps, one number each: forward, backward and AdamW over
/// `batch` sequences of `tokens` tokens, cross-entropy on every token. One step warms up.
///
/// # Errors
/// The checkpoint cannot be loaded.
pub fn tokens_per_second(
    directory: &Path,
    batch: usize,
    tokens: usize,
    repeat: usize,
    threads: u32,
) -> Result<Vec<f64>, worker::Error> {
    set_threads(threads);
    let policy = load_policy(directory, open_device("cpu")?)?;
    let vocabulary = u32::try_from(policy.config().vocab_size).unwrap_or(u32::MAX);
    let optimizer = AdamW::new(0.9, 0.95, 0.0, MomentsByLoss::new());
    let mut trainer = Trainer::new(policy, optimizer, 1.0, batch * tokens);
    let samples: Vec<TrainingSample> = (0..batch)
        .map(|row| TrainingSample {
            token_ids: (0..tokens).map(|at| (row * 31 + at * 7) as u32 % vocabulary).collect(),
            mask: (0..tokens).map(|at| if at == 0 { 0.0 } else { 1.0 }).collect(),
            advantages: vec![0.0; tokens],
            behavior_logprobs: vec![0.0; tokens],
            on_policy: false,
        })
        .collect();
    let parts = [Part::whole(samples, LossKind::CrossEntropy)];
    let mut step = || {
        let report = trainer.step(&parts, 1e-4);
        (batch * tokens) as f64 / report.seconds
    };
    step();
    Ok((0..repeat).map(|_| step()).collect())
}
