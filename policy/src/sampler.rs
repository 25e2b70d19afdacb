//! Draws tokens from logits, one independent random stream per sequence.

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore as _, SeedableRng as _},
};
use tch::{Kind, Tensor};

/// One drawn token.
#[derive(Clone, Debug, PartialEq)]
pub struct Draw {
    /// Token id.
    pub token: u32,
    /// Natural log of its probability under the distribution it was drawn from: softmax at the
    /// sequence's temperature. Under greedy choice: under the softmax at temperature 1.
    pub logprob: f32,
    /// Probability of each watched token under the policy (softmax at temperature 1).
    pub watched: Vec<f32>,
}

/// Temperature and random stream of one sequence. Its draws depend on its seed and its own logits
/// only, not on what else is in the batch.
#[derive(Debug)]
pub struct Sampler {
    temperature: f32,
    rng: ChaCha8Rng,
}

impl Sampler {
    /// A stream from a seed; temperature 0 is greedy.
    #[must_use]
    pub fn new(seed: u64, temperature: f32) -> Self {
        Self { temperature: temperature.max(0.0), rng: ChaCha8Rng::seed_from_u64(seed) }
    }

    /// Uniform in [0, 1 - 2^-23]: at most 23 bits, so that its product with a positive fp32 total
    /// rounds to less than the total.
    fn uniform(&mut self) -> f32 {
        (self.rng.next_u32() >> 9) as f32 / (1u32 << 23) as f32
    }

    /// Draws one token for each row of `logits` [B, V] from that row's sampler, and reads the
    /// probabilities of the `watched` token ids in the same pass.
    #[must_use]
    pub fn draw(samplers: &mut [&mut Self], logits: &Tensor, watched: &[i64]) -> Vec<Draw> {
        tch::no_grad(|| draw(samplers, &logits.to_kind(Kind::Float), watched))
    }
}

fn draw(samplers: &mut [&mut Sampler], logits: &Tensor, watched: &[i64]) -> Vec<Draw> {
    let device = logits.device();
    let vocab = logits.size()[1];
    let greedy: Vec<bool> = samplers.iter().map(|sampler| sampler.temperature == 0.0).collect();
    let temperatures: Vec<f32> = samplers
        .iter()
        .map(|sampler| if sampler.temperature == 0.0 { 1.0 } else { sampler.temperature })
        .collect();
    let uniforms: Vec<f32> = samplers.iter_mut().map(|sampler| sampler.uniform()).collect();

    let policy = logits.log_softmax(-1, Kind::Float);
    let plain = temperatures.iter().all(|temperature| *temperature == 1.0);
    let sampled_from = if plain {
        policy.shallow_clone()
    } else {
        (logits / Tensor::from_slice(&temperatures).to(device).unsqueeze(1))
            .log_softmax(-1, Kind::Float)
    };
    // Inverse CDF: the first token whose cumulative probability exceeds u * total.
    let cumulative = sampled_from.exp().cumsum(-1, Kind::Float);
    let total = cumulative.narrow(1, vocab - 1, 1);
    let threshold = total * Tensor::from_slice(&uniforms).to(device).unsqueeze(1);
    let drawn = cumulative.le_tensor(&threshold).sum_dim_intlist(-1, false, Kind::Int64);
    let mut tokens = drawn.clamp_max(vocab - 1);
    if greedy.contains(&true) {
        let mask = Tensor::from_slice(&greedy).to(device);
        tokens = logits.argmax(-1, false).where_self(&mask, &tokens);
    }
    let logprobs = sampled_from.gather(1, &tokens.unsqueeze(1), false).squeeze_dim(1);
    let watched_ids = Tensor::from_slice(watched).to(device);
    let masses = policy.index_select(1, &watched_ids).exp();

    let tokens: Vec<i64> = read(&tokens);
    let logprobs: Vec<f32> = read(&logprobs);
    let masses: Vec<f32> = read(&masses.reshape([-1]));
    let width = watched.len();
    tokens
        .into_iter()
        .zip(logprobs)
        .enumerate()
        .map(|(row, (token, logprob))| Draw {
            token: u32::try_from(token).unwrap_or(0),
            logprob,
            watched: masses[row * width..(row + 1) * width].to_vec(),
        })
        .collect()
}

fn read<T: tch::kind::Element + Copy>(tensor: &Tensor) -> Vec<T>
where
    Vec<T>: TryFrom<Tensor>,
{
    let flat = tensor.to(tch::Device::Cpu).contiguous();
    Vec::try_from(flat).unwrap_or_else(|_| Vec::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(count: i64) -> Tensor {
        Tensor::from_slice(&[0.0f32, 1.0, 2.0, f32::NEG_INFINITY]).unsqueeze(0).repeat([count, 1])
    }

    #[test]
    fn frequencies_follow_the_softmax_and_impossible_tokens_never_come() {
        let mut sampler = Sampler::new(7, 1.0);
        let logits = rows(1);
        let mut counts = [0u32; 4];
        for _ in 0..4000 {
            let draws = Sampler::draw(&mut [&mut sampler], &logits, &[2]);
            counts[draws[0].token as usize] += 1;
            assert!((draws[0].watched[0] - 0.665_24).abs() < 1e-4);
        }
        assert_eq!(counts[3], 0);
        // Softmax of (0, 1, 2) is (.0900, .2447, .6652); 4 standard deviations of 4000 draws.
        for (count, expected) in counts.iter().zip([0.0900, 0.2447, 0.6652]) {
            assert!((f64::from(*count) / 4000.0 - expected).abs() < 0.03, "{counts:?}");
        }
    }

    #[test]
    fn a_row_does_not_depend_on_its_neighbours() {
        let alone: Vec<Draw> = {
            let mut one = Sampler::new(3, 0.7);
            (0..50).map(|_| Sampler::draw(&mut [&mut one], &rows(1), &[0])[0].clone()).collect()
        };
        let (mut one, mut other) = (Sampler::new(3, 0.7), Sampler::new(4, 1.3));
        for expected in alone {
            let draws = Sampler::draw(&mut [&mut other, &mut one], &rows(2), &[0]);
            assert_eq!(draws[1], expected);
        }
    }

    #[test]
    fn temperature_zero_is_greedy() {
        let mut greedy = Sampler::new(0, 0.0);
        assert_eq!(Sampler::draw(&mut [&mut greedy], &rows(1), &[])[0].token, 2);
    }
}
