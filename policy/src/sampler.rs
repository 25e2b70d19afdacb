//! Draws tokens from logits, one independent random stream per sequence.

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore as _, SeedableRng as _},
};
use tch::{Device, Kind, Tensor};

use crate::cpu;

/// Columns of the table in which a draw comes back to the host, before the watched tokens: token,
/// log-probability drawn from, log-probability under the policy, entropy.
const SCALARS: usize = 4;

/// One drawn token.
#[derive(Clone, Debug, PartialEq)]
pub struct Draw {
    /// Token id.
    pub token: u32,
    /// Natural log of its probability under the distribution it was drawn from. Under greedy choice:
    /// under the biased softmax at temperature 1.
    pub logprob: f32,
    /// Natural log of its probability under the policy: softmax at temperature 1 of the raw logits.
    pub policy_logprob: f32,
    /// Entropy of the policy, in nats.
    pub entropy: f32,
    /// Probability of each watched token under the policy.
    pub watched: Vec<f32>,
}

/// What a sequence's tokens are drawn from, in this order: the bias is added to the logits, the
/// temperature divides them, then top-k, top-p and min-p each drop tokens, and the rest is
/// renormalised. Tokens as probable as the last one kept are kept too, so that the order of ids plays
/// no part.
#[derive(Clone, Debug, PartialEq)]
pub struct Distribution {
    /// Added to the logit of a token id; ids outside the vocabulary are ignored.
    pub logit_bias: Vec<(u32, f32)>,
    /// Softmax temperature. 0 is greedy, and then nothing is dropped.
    pub temperature: f32,
    /// Only the k most probable tokens; 0 is off.
    pub top_k: u32,
    /// Only the fewest most probable tokens that hold this share of what top-k left; 1 is off.
    pub top_p: f32,
    /// Only tokens at least this share as probable as the most probable one; 0 is off.
    pub min_p: f32,
}

/// Distribution and random stream of one sequence. Its draws depend on its seed and its own logits only, not
/// on what else is in the batch.
#[derive(Debug)]
pub struct Sampler {
    distribution: Distribution,
    rng: ChaCha8Rng,
}

impl Distribution {
    /// The softmax at a temperature, nothing added or dropped.
    #[must_use]
    pub fn plain(temperature: f32) -> Self {
        Self { logit_bias: Vec::new(), temperature, top_k: 0, top_p: 1.0, min_p: 0.0 }
    }

    fn greedy(&self) -> bool {
        self.temperature <= 0.0
    }

    fn divisor(&self) -> f32 {
        if self.greedy() { 1.0 } else { self.temperature }
    }

    fn filtered(&self) -> bool {
        !self.greedy() && (self.top_k > 0 || self.top_p < 1.0 || self.min_p > 0.0)
    }
}

impl Sampler {
    /// A stream from a seed, over the plain softmax; temperature 0 is greedy.
    #[must_use]
    pub fn new(seed: u64, temperature: f32) -> Self {
        Self::over(seed, Distribution::plain(temperature))
    }

    /// A stream from a seed.
    #[must_use]
    pub fn over(seed: u64, distribution: Distribution) -> Self {
        Self { distribution, rng: ChaCha8Rng::seed_from_u64(seed) }
    }

    /// Nothing added and nothing dropped.
    fn is_plain(&self) -> bool {
        self.distribution.logit_bias.is_empty() && !self.distribution.filtered()
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
        let logits = tch::no_grad(|| logits.to_kind(Kind::Float).contiguous());
        if logits.device() != Device::Cpu {
            return tch::no_grad(|| draw(samplers, &logits, watched));
        }
        let mut draws = vec![None; samplers.len()];
        let (mut shaped, mut shaped_rows) = (Vec::new(), Vec::new());
        for (row, sampler) in samplers.iter_mut().enumerate() {
            if sampler.is_plain() {
                let (uniform, temperature) = (sampler.uniform(), sampler.distribution.temperature);
                let choice = cpu::Choice { uniform, temperature };
                draws[row] = Some(cpu::draw_plain(choice, &logits.get(row as i64), watched));
            } else {
                shaped_rows.push(row as i64);
                shaped.push(&mut **sampler);
            }
        }
        if !shaped.is_empty() {
            let rows = Tensor::from_slice(&shaped_rows);
            let of_rows =
                tch::no_grad(|| draw(&mut shaped, &logits.index_select(0, &rows), watched));
            for (row, of_row) in shaped_rows.into_iter().zip(of_rows) {
                draws[row as usize] = Some(of_row);
            }
        }
        draws.into_iter().flatten().collect()
    }
}

fn draw(samplers: &mut [&mut Sampler], logits: &Tensor, watched: &[i64]) -> Vec<Draw> {
    let vocab = logits.size()[1];
    let uniforms: Vec<f32> = samplers.iter_mut().map(|sampler| sampler.uniform()).collect();
    let distributions: Vec<&Distribution> =
        samplers.iter().map(|sampler| &sampler.distribution).collect();

    let policy = logits.log_softmax(-1, Kind::Float);
    let policy_probs = policy.exp();
    let shaped = shaped_logits(&distributions, logits);
    let drawn_from = shaped.as_ref().map(|shaped| shaped.log_softmax(-1, Kind::Float));

    // Inverse CDF: the first token whose cumulative probability exceeds u * total.
    let drawn_probs = drawn_from.as_ref().map(Tensor::exp);
    let cumulative = drawn_probs.as_ref().unwrap_or(&policy_probs).cumsum(-1, Kind::Float);
    let total = cumulative.narrow(1, vocab - 1, 1);
    let threshold = total * column(&uniforms, logits.device());
    let drawn = threshold.searchsorted(&cumulative, false, true, "right", None::<&Tensor>);
    let mut tokens = drawn.clamp_max(vocab - 1);
    let greedy: Vec<bool> =
        distributions.iter().map(|distribution| distribution.greedy()).collect();
    if greedy.contains(&true) {
        let largest = shaped.as_ref().unwrap_or(logits).argmax(-1, true);
        tokens = largest.where_self(&column(&greedy, logits.device()), &tokens);
    }

    let policy_logprobs = policy.gather(1, &tokens, false);
    let logprobs = match &drawn_from {
        Some(drawn_from) => drawn_from.gather(1, &tokens, false),
        None => policy_logprobs.shallow_clone(),
    };
    // The sum skips the NaN of 0 * ln 0.
    let entropy = -(&policy_probs * &policy).nansum(-1, true, Kind::Float);
    let watched = Tensor::from_slice(watched).to(logits.device());
    let masses = policy_probs.index_select(1, &watched);
    // One table, so that a GPU is waited for once. fp32 holds ids up to 2^24 exactly.
    let tokens = tokens.to_kind(Kind::Float);
    read(&Tensor::cat(&[tokens, logprobs, policy_logprobs, entropy, masses], 1))
}

/// The logits [B, V] that are drawn from: biased, divided by the temperature, dropped tokens at -inf.
/// `None` where that changes nothing in any row.
fn shaped_logits(distributions: &[&Distribution], logits: &Tensor) -> Option<Tensor> {
    let biased = biased(distributions, logits);
    let divisors: Vec<f32> =
        distributions.iter().map(|distribution| distribution.divisor()).collect();
    let scaled = divisors
        .iter()
        .any(|divisor| *divisor != 1.0)
        .then(|| biased.as_ref().unwrap_or(logits).divide(&column(&divisors, logits.device())));
    let shaped = scaled.or(biased);
    let rows: Vec<i64> = (0..)
        .zip(distributions)
        .filter(|(_, distribution)| distribution.filtered())
        .map(|(row, _)| row)
        .collect();
    if rows.is_empty() {
        return shaped;
    }
    let filters: Vec<&Distribution> =
        distributions.iter().copied().filter(|distribution| distribution.filtered()).collect();
    let rows = Tensor::from_slice(&rows).to(logits.device());
    let shaped = shaped.unwrap_or_else(|| logits.shallow_clone());
    let kept = keep_likely(&filters, &shaped.index_select(0, &rows));
    Some(shaped.index_copy(0, &rows, &kept))
}

/// `None` where no row has a bias.
fn biased(distributions: &[&Distribution], logits: &Tensor) -> Option<Tensor> {
    let vocab = logits.size()[1];
    let (mut cells, mut values) = (Vec::new(), Vec::new());
    for (row, distribution) in (0..).zip(distributions) {
        for (token, bias) in &distribution.logit_bias {
            if i64::from(*token) < vocab {
                cells.push(row * vocab + i64::from(*token));
                values.push(*bias);
            }
        }
    }
    let device = logits.device();
    let (cells, values) = (Tensor::from_slice(&cells), Tensor::from_slice(&values));
    (cells.numel() > 0).then(|| {
        let flat = logits.reshape([-1]);
        flat.index_add(0, &cells.to(device), &values.to(device)).view_as(logits)
    })
}

/// Sets what the filters of each row drop to -inf. What they keep is, in the order of falling
/// logits, a first part; so one threshold per row says it all.
fn keep_likely(filters: &[&Distribution], logits: &Tensor) -> Tensor {
    let (device, vocab) = (logits.device(), logits.size()[1]);
    let numbers = |number: fn(&Distribution) -> f32| {
        column(&filters.iter().map(|distribution| number(distribution)).collect::<Vec<_>>(), device)
    };
    let last: Vec<i64> = filters
        .iter()
        .map(|distribution| if distribution.top_k == 0 { vocab } else { i64::from(distribution.top_k).min(vocab) } - 1)
        .collect();
    let last = column(&last, device);
    // Off is infinity: rounding of the cumulative sum must not drop the tail.
    let top_p = numbers(
        |distribution| if distribution.top_p < 1.0 { distribution.top_p } else { f32::INFINITY },
    );

    let (sorted, _) = logits.sort(-1, true);
    let probs = sorted.softmax(-1, Kind::Float);
    let cumulative = probs.cumsum(-1, Kind::Float);
    let ranks = Tensor::arange(vocab, (Kind::Int64, device));
    let in_top_k = ranks.le_tensor(&last);
    let share = cumulative.gather(1, &last, false) * top_p;
    // The token that crosses the share is the last one kept.
    let in_top_p = (cumulative - &probs).lt_tensor(&share);
    let in_min_p =
        probs.ge_tensor(&(probs.narrow(1, 0, 1) * numbers(|distribution| distribution.min_p)));
    let kept = in_top_k.logical_and(&in_top_p).logical_and(&in_min_p);
    let count = kept.sum_dim_intlist(-1, true, Kind::Int64).clamp_min(1);
    let threshold = sorted.gather(1, &(count - 1), false);
    logits.masked_fill(&logits.lt_tensor(&threshold), f64::NEG_INFINITY)
}

/// [B, 1]
fn column<T: tch::kind::Element>(values: &[T], device: Device) -> Tensor {
    Tensor::from_slice(values).to(device).unsqueeze(1)
}

/// Reads the table [B, `SCALARS` + watched].
fn read(table: &Tensor) -> Vec<Draw> {
    let width = usize::try_from(table.size()[1]).unwrap_or(SCALARS);
    let numbers: Vec<f32> =
        Vec::try_from(table.to(Device::Cpu).reshape([-1])).unwrap_or_else(|_| Vec::new());
    let draw = |row: &[f32]| Draw {
        token: row[0] as u32,
        logprob: row[1],
        policy_logprob: row[2],
        entropy: row[3],
        watched: row[SCALARS..].to_vec(),
    };
    numbers.chunks_exact(width).map(draw).collect()
}

#[cfg(test)]
mod tests;
