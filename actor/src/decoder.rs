//! What the engine needs of a language model: many growing token sequences, one step at a time.
//!
//! Owns: the interface between the engine and a backend.
//! Does not know: text, episodes, gRPC, torch.

use crate::weights::StagedPolicy;

/// How one sequence is sampled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Seed from which every token of the sequence derives; neighbours in the batch change nothing.
    pub seed: u64,
    /// Softmax temperature; 0 is greedy.
    pub temperature: f32,
}

/// One sampled token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampled {
    /// Slot of the sequence.
    pub slot: usize,
    /// Token id.
    pub token: u32,
    /// Natural log of the token's probability under the distribution it was sampled from.
    pub logprob: f32,
    /// Probability of each control token under the policy (softmax at temperature 1), in the order
    /// of `ControlTokens::all`.
    pub control_probs: [f32; 8],
}

/// Why a backend could not take a step or load weights.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct DecodeError(pub String);

/// A batched sampler. Slots are numbered from 0 to below the number it was built with.
pub trait Decoder: Send {
    /// Starts an empty sequence in this slot; whatever was there is gone.
    fn open(&mut self, slot: usize, sampling: Sampling);
    /// Appends forced tokens; they are prefilled before the next sample of this slot.
    fn feed(&mut self, slot: usize, tokens: &[u32]);
    /// Ends the sequence of this slot.
    fn close(&mut self, slot: usize);
    /// Prefills everything fed, then samples one token for each slot in `want` (ascending) and
    /// appends it to its sequence.
    ///
    /// # Errors
    /// The backend failed; every open sequence is then lost.
    fn step(&mut self, want: &[usize]) -> Result<Vec<Sampled>, DecodeError>;
    /// Replaces the weights. Running sequences go on, and their KV cache, computed under the older
    /// weights, stays as it is: the usual approximation of in-flight updates. Recomputing it would
    /// stall every episode at every published version.
    ///
    /// # Errors
    /// The weights do not fit; the decoder keeps those it had.
    fn swap(&mut self, staged: &StagedPolicy) -> Result<(), DecodeError>;
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
