//! Algorithms: they turn what the journal holds into per-token streams. The training step is blind
//! to them: it sums a fixed set of loss parts over the streams.

mod demonstration;
mod grpo;

pub use demonstration::supervised;
pub use grpo::{Grpo, advantages};

/// One trainable sequence of T tokens. All streams have length T.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainingSample {
    /// Token ids.
    pub token_ids: Vec<u32>,
    /// 1 on tokens that carry loss, 0 elsewhere; never 1 on the first token, which has no context.
    pub mask: Vec<f32>,
    /// Advantage of each token; 0 where the mask is 0, and everywhere in a demonstration.
    pub advantages: Vec<f32>,
    /// Log-probability under the behavior policy; 0 where the mask is 0, and in a demonstration.
    pub behavior_logprobs: Vec<f32>,
    /// Every token was sampled by the very weights that are about to be trained, so the learner's
    /// log-probabilities must equal the behavior ones up to rounding.
    pub on_policy: bool,
}

impl TrainingSample {
    /// Tokens that carry loss.
    #[must_use]
    pub fn trained_tokens(&self) -> f64 {
        self.mask.iter().map(|mask| f64::from(*mask)).sum()
    }
}
