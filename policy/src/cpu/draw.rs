//! Draws from the plain softmax of logits on a CPU: the log-probabilities, the entropy and the token
//! of a row come from two readings of it.

use tch::Tensor;

use super::{
    element::elements,
    exp::exp,
    isa::{Kernel, add_product, vectorised},
};
use crate::Draw;

/// Logits whose probabilities are summed together: the sums tell which of them hold the token.
const BLOCK: usize = 256;
/// Partial sums.
const LANES: usize = 16;

/// How one row is drawn from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Choice {
    /// Uniform in [0, 1).
    pub(crate) uniform: f32,
    /// Softmax temperature; 0 is greedy.
    pub(crate) temperature: f32,
}

/// One token of a row of logits `[V]`, on a CPU in fp32 and contiguous, and the probabilities of the
/// `watched` token ids.
pub(crate) fn draw_plain(choice: Choice, logits: &Tensor, watched: &[i64]) -> Draw {
    let logits = elements::<f32>(logits);
    let (best, largest) = vectorised(Largest { logits });
    let policy = vectorised(Softmax { logits, largest, divisor: 1.0 });
    let policy_logprob = |token: usize| logits[token] - largest - policy.total.ln();
    let Choice { uniform, temperature } = choice;
    let (token, logprob) = if temperature <= 0.0 {
        (best, policy_logprob(best))
    } else if temperature == 1.0 {
        let token = policy.token_at(logits, uniform);
        (token, policy_logprob(token))
    } else {
        let softmax = vectorised(Softmax { logits, largest, divisor: temperature });
        let token = softmax.token_at(logits, uniform);
        (token, (logits[token] - largest) / temperature - softmax.total.ln())
    };
    let mass = |token: &i64| {
        let logit = usize::try_from(*token).ok().and_then(|token| logits.get(token));
        logit.map_or(0.0, |logit| exp(logit - largest) / policy.total)
    };
    Draw {
        token: u32::try_from(token).unwrap_or(u32::MAX),
        logprob,
        policy_logprob: policy_logprob(token),
        // -sum of p ln p, with ln p = (logit - largest) - ln total.
        entropy: policy.total.ln() - policy.weighted / policy.total,
        watched: watched.iter().map(mass).collect(),
    }
}

/// The largest logit and its index.
struct Largest<'a> {
    logits: &'a [f32],
}

impl Kernel for Largest<'_> {
    type Output = (usize, f32);

    #[inline(always)]
    fn run<const FUSED: bool>(self) -> (usize, f32) {
        let mut tops = [f32::NEG_INFINITY; LANES];
        let chunks = self.logits.chunks_exact(LANES);
        let rest = chunks.remainder().iter().copied().fold(f32::NEG_INFINITY, f32::max);
        for chunk in chunks {
            for lane in 0..LANES {
                tops[lane] = if chunk[lane] > tops[lane] { chunk[lane] } else { tops[lane] };
            }
        }
        let largest = tops.iter().copied().fold(rest, f32::max);
        let at = self.logits.iter().position(|logit| *logit == largest);
        (at.unwrap_or(0), largest)
    }
}

/// Numerators of a softmax: e^((logit - largest) / divisor).
struct Softmax<'a> {
    logits: &'a [f32],
    largest: f32,
    divisor: f32,
}

struct Summed {
    largest: f32,
    divisor: f32,
    /// Sum of the numerators.
    total: f32,
    /// Sum of the numerators times their exponents.
    weighted: f32,
    /// Sums of the numerators of the blocks.
    blocks: Vec<f32>,
}

impl Kernel for Softmax<'_> {
    type Output = Summed;

    #[inline(always)]
    fn run<const FUSED: bool>(self) -> Summed {
        let Self { logits, largest, divisor } = self;
        let mut blocks = Vec::with_capacity(logits.len().div_ceil(BLOCK));
        let mut weighted = [0.0; LANES];
        for block in logits.chunks(BLOCK) {
            let mut sums = [0.0; LANES];
            let mut chunks = block.chunks_exact(LANES);
            for chunk in &mut chunks {
                for lane in 0..LANES {
                    let exponent = (chunk[lane] - largest) / divisor;
                    let numerator = exp(exponent);
                    sums[lane] += numerator;
                    weighted[lane] =
                        add_product::<FUSED>(weighted[lane], numerator, finite(exponent));
                }
            }
            let mut sum = sums.iter().sum::<f32>();
            for logit in chunks.remainder() {
                let exponent = (logit - largest) / divisor;
                sum += exp(exponent);
                weighted[0] += exp(exponent) * finite(exponent);
            }
            blocks.push(sum);
        }
        let (total, weighted) = (blocks.iter().sum(), weighted.iter().sum());
        Summed { largest, divisor, total, weighted, blocks }
    }
}

/// So that a probability of zero counts nothing: e^-100 times anything is next to nothing.
#[inline(always)]
fn finite(exponent: f32) -> f32 {
    if exponent < -100.0 { -100.0 } else { exponent }
}

impl Summed {
    /// Inverse CDF: the first token whose cumulative numerators exceed `uniform` of their total.
    fn token_at(&self, logits: &[f32], uniform: f32) -> usize {
        let mut left = uniform * self.total;
        let last = self.blocks.len().saturating_sub(1);
        let mut block = 0;
        while block < last && left >= self.blocks[block] {
            left -= self.blocks[block];
            block += 1;
        }
        let start = block * BLOCK;
        let numerators = logits[start..logits.len().min(start + BLOCK)]
            .iter()
            .map(|logit| exp((logit - self.largest) / self.divisor));
        let mut likely = start;
        for (token, numerator) in (start..).zip(numerators) {
            if numerator > left {
                return token;
            }
            left -= numerator;
            // Rounding may leave something at the end of the block: then the last token that has
            // any probability to speak of.
            if numerator > f32::MIN_POSITIVE * 4.0 {
                likely = token;
            }
        }
        likely
    }
}
