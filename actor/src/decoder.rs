//! What the engine needs of a language model: many growing token sequences, one step at a time.
//!
//! Owns: the interface between the engine and a backend.
//! Does not know: text, stop strings, episodes, gRPC, torch.

#[cfg(any(feature = "torch", test))]
pub(crate) mod rows;

use std::any::Any;

use crate::weights::StagedPolicy;

/// How one sequence is sampled. What is switched on applies in the order of the fields: the bias is
/// added to the logits, the temperature divides them, and then top-k, top-p and min-p each drop
/// tokens. What remains is renormalised.
///
/// Stop tokens and stop strings belong above the decoder: it only ever appends.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Seed of the sequence's own random stream; neighbours in the batch do not touch it.
    pub seed: u64,
    /// Added to the logit of a token id. Ids outside the vocabulary are ignored.
    pub logit_bias: Vec<(u32, f32)>,
    /// Softmax temperature; 0 is greedy: the largest biased logit, and no token is dropped.
    pub temperature: f32,
    /// Only the k most probable tokens, ties with the last of them included; 0 is off.
    pub top_k: u32,
    /// Only the fewest most probable tokens that hold this share of what top-k left; 1 is off.
    pub top_p: f32,
    /// Only tokens at least this share as probable as the most probable one; 0 is off.
    pub min_p: f32,
}

impl Sampling {
    /// Plain sampling at a temperature: no bias, no token dropped.
    #[must_use]
    pub fn new(seed: u64, temperature: f32) -> Self {
        Self { seed, logit_bias: Vec::new(), temperature, top_k: 0, top_p: 1.0, min_p: 0.0 }
    }

    /// Whether a sampled token's log-probability is the policy's: nothing is biased, and either
    /// nothing is dropped at temperature 1, or the token is greedy (see [`Sampled::logprob`]).
    #[must_use]
    pub fn draws_from_policy(&self) -> bool {
        let drops = self.top_k > 0 || self.top_p < 1.0 || self.min_p > 0.0;
        let plain = self.temperature == 1.0 && !drops;
        self.logit_bias.is_empty() && (plain || self.temperature == 0.0)
    }
}

/// One sampled token. What a backend cannot tell is NaN; `logprob` it always tells.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampled {
    /// Slot of the sequence.
    pub slot: usize,
    /// Token id.
    pub token: u32,
    /// Natural log of the token's probability under the distribution it was sampled from. A greedy
    /// token has that of the biased softmax at temperature 1.
    pub logprob: f32,
    /// Natural log of its probability under the policy: softmax at temperature 1 of the raw logits.
    pub policy_logprob: f32,
    /// Entropy of the policy at this position, in nats.
    pub entropy: f32,
    /// Probability of each control token under the policy, in the order of `ControlTokens::all`.
    pub control_probs: [f32; 8],
}

/// Why a backend could not take a step or load weights.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct DecodeError(pub String);

/// What a decoder did since it was built.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DecoderWork {
    /// Forced tokens (prompts, tool results) and evicted ones that were run through the network.
    pub prefill_computed: u64,
    /// Tokens whose keys and values were there already, computed for another sequence.
    pub prefill_saved: u64,
    /// Sequences that lost their place in the cache to another one. Their tokens are run through
    /// the network again when they are next asked for.
    pub evictions: u64,
}

/// Weights that are ready to be swapped in, in whatever form the backend has them.
#[derive(Debug)]
pub struct ReadyWeights(Box<dyn Any + Send>);

/// What makes weights ready. It may run on any thread, while the decoder goes on with those it has.
pub type MakeReady = Box<dyn FnOnce() -> Result<ReadyWeights, DecodeError> + Send>;

impl ReadyWeights {
    /// Holds what a backend made.
    #[must_use]
    pub fn new(weights: impl Any + Send) -> Self {
        Self(Box::new(weights))
    }

    /// What it holds.
    ///
    /// # Errors
    /// It was made by another backend: a bug.
    pub fn take<T: Any>(self) -> Result<T, DecodeError> {
        let weights = self.0.downcast();
        weights
            .map(|weights| *weights)
            .map_err(|_| DecodeError("weights of another backend".into()))
    }
}

/// A batched sampler. Slots are numbered from 0 to below the number it was built with.
pub trait Decoder: Send {
    /// Starts an empty sequence in this slot; whatever was there is gone.
    fn open(&mut self, slot: usize, sampling: Sampling);
    /// Appends forced tokens; they are prefilled before the next sample of this slot.
    fn feed(&mut self, slot: usize, tokens: &[u32]);
    /// Ends the sequence of this slot.
    fn close(&mut self, slot: usize);
    /// Samples one token for each slot in `want` (ascending) that there is memory for, and appends
    /// it to its sequence. The answer is ascending and holds at least one slot if `want` does. A slot
    /// left out is to be asked for again: memory goes to the sequences opened first, and one that
    /// has some keeps it for as long as every step wants it.
    ///
    /// # Errors
    /// The backend failed; every open sequence is then lost.
    fn step(&mut self, want: &[usize]) -> Result<Vec<Sampled>, DecodeError>;
    /// What there is to do before the weights of a staged policy can be swapped in. A swap comes
    /// between two steps, so whatever takes long belongs here. By default it hands the policy on.
    fn make_ready(&self, staged: &StagedPolicy) -> MakeReady {
        let staged = staged.clone();
        Box::new(move || Ok(ReadyWeights::new(staged)))
    }
    /// Replaces the weights by those that [`Self::make_ready`] made; running sequences go on.
    ///
    /// # Errors
    /// The weights do not fit; the decoder keeps those it had.
    fn swap(&mut self, ready: ReadyWeights) -> Result<(), DecodeError>;
    /// Both at once, on this thread.
    ///
    /// # Errors
    /// As the two.
    fn load(&mut self, staged: &StagedPolicy) -> Result<(), DecodeError> {
        let ready = self.make_ready(staged)()?;
        self.swap(ready)
    }
    /// What it did so far; all zero where the backend does not tell.
    fn work(&self) -> DecoderWork {
        DecoderWork::default()
    }
}

/// Makes decoders of staged weights. It keeps the engine free of any backend.
pub trait DecoderFactory: Send {
    /// A decoder of `slots` sequences, each of at most `trajectory_tokens_max` tokens.
    ///
    /// # Errors
    /// The weights do not fit the configuration they came with, or the device refuses them.
    fn build(
        &mut self,
        staged: &StagedPolicy,
        slots: usize,
        trajectory_tokens_max: usize,
    ) -> Result<Box<dyn Decoder>, DecodeError>;
}
