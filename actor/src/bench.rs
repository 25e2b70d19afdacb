//! Sampling throughput on one machine, for `cargo xtask bench quickstart`.

use std::{path::Path, time::Instant};

use anyhow::Context as _;
use ballast_policy::{Policy, WEIGHTS_FILE, open_device, read_config, read_weights, set_threads};

use crate::{
    decoder::{Decoder as _, Sampling},
    torch_decoder::TorchDecoder,
};

/// Tokens at the start of a prompt that count it.
const PROMPT_DIGITS: usize = 3;

/// What one measured run does.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Sequences sampled at once.
    pub batch: usize,
    /// Sequences that start from the same prompt.
    pub group: usize,
    /// Tokens each of them starts from.
    pub prompt: usize,
    /// Tokens sampled for each of them.
    pub new: usize,
}

/// Sampled tokens per second of `repeat` runs, one number each; the prompts' prefill, sampling and
/// log-probabilities included. One run warms up.
///
/// # Errors
/// The checkpoint cannot be loaded.
pub fn tokens_per_second(
    directory: &Path,
    shape: Shape,
    repeat: usize,
    threads: u32,
) -> anyhow::Result<Vec<f64>> {
    set_threads(threads);
    let config = read_config(directory)?;
    let vocabulary = u32::try_from(config.vocab_size).context("vocab_size")?;
    let weights = read_weights(&directory.join(WEIGHTS_FILE))?;
    let policy = Policy::new(config, &weights, open_device("cpu")?)?;
    let mut decoder = TorchDecoder::new(policy, [0; 8], shape.batch, shape.prompt + shape.new);
    let slots: Vec<usize> = (0..shape.batch).collect();
    let mut prompts = 0;
    let mut run = || -> anyhow::Result<f64> {
        let started = Instant::now();
        // No prompt comes twice, or its keys would still be there.
        prompts += shape.batch;
        for slot in &slots {
            decoder.open(*slot, Sampling::new(*slot as u64, 1.0));
            decoder.feed(*slot, &prompt(prompts + slot / shape.group.max(1), shape, vocabulary));
        }
        for _ in 0..shape.new {
            decoder.step(&slots)?;
        }
        Ok((shape.batch * shape.new) as f64 / started.elapsed().as_secs_f64())
    };
    run()?;
    (0..repeat).map(|_| run()).collect()
}

/// Prompt `number`: its first tokens are its own.
fn prompt(number: usize, shape: Shape, vocabulary: u32) -> Vec<u32> {
    let digit = |at: usize| number / (vocabulary as usize).pow(at as u32);
    let token = |at: usize| if at < PROMPT_DIGITS { digit(at) } else { number * 31 + at * 7 };
    (0..shape.prompt).map(|at| (token(at) % vocabulary as usize) as u32).collect()
}
