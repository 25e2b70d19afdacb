//! Supervised loss.

use tch::{Kind, Tensor};

/// Sum over tokens of -ln p(token); `logprobs` `[N]` are the learner's. A scalar.
#[must_use]
pub fn cross_entropy(logprobs: &Tensor) -> Tensor {
    -logprobs.sum(Kind::Float)
}
