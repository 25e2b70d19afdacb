//! The decoder on libtorch: one network in this process, one KV cache slot per sequence.

use std::collections::BTreeMap;

use ballast_chat::Tokenizer;
use ballast_policy::{
    Device, Draw, KvCache, ModelConfig, Policy, Sampler, Tensor, open_device, set_threads,
    tensor_from_bytes,
};

use crate::{
    decoder::{DecodeError, Decoder, DecoderFactory, Sampled, Sampling},
    weights::StagedPolicy,
};

/// Builds [`TorchDecoder`]s on one device.
#[derive(Clone, Copy, Debug)]
pub struct TorchDecoderFactory {
    device: Device,
    threads: u32,
}

impl TorchDecoderFactory {
    /// Opens "cpu" or "cuda"; `threads` is what libtorch may use inside one operation.
    ///
    /// # Errors
    /// The device is unknown or absent.
    pub fn new(device: &str, threads: u32) -> Result<Self, ballast_policy::DeviceError> {
        let device = open_device(device)?;
        Ok(Self { device, threads })
    }
}

impl DecoderFactory for TorchDecoderFactory {
    fn build(
        &mut self,
        staged: &StagedPolicy,
        slots: usize,
        trajectory_tokens_max: usize,
    ) -> Result<Box<dyn Decoder>, DecodeError> {
        // Here, because the setting belongs to the thread that decodes.
        set_threads(self.threads);
        let config = ModelConfig::from_json(&staged.config_json).map_err(|error| {
            DecodeError(format!("config.json of the published policy: {error}"))
        })?;
        let tokenizer = Tokenizer::from_bytes(&staged.tokenizer_json).map_err(refused)?;
        let policy = Policy::new(config, &tensors(staged)?, self.device).map_err(refused)?;
        let control = tokenizer.control().all();
        Ok(Box::new(TorchDecoder::new(policy, control, slots, trajectory_tokens_max)))
    }
}

/// One sequence in its slot.
#[derive(Debug)]
struct Sequence {
    sampler: Sampler,
    /// Tokens that are not in the KV cache yet: fed ones and the newest sample.
    pending: Vec<u32>,
}

/// A network, its KV cache and the sequences in it.
#[derive(Debug)]
pub struct TorchDecoder {
    policy: Policy,
    cache: KvCache,
    sequences: Vec<Option<Sequence>>,
    /// Control tokens, in the order of `ControlTokens::all`.
    control: [i64; 8],
}

impl TorchDecoder {
    /// Empty slots for `slots` sequences of at most `trajectory_tokens_max` tokens.
    #[must_use]
    pub fn new(
        policy: Policy,
        control: [u32; 8],
        slots: usize,
        trajectory_tokens_max: usize,
    ) -> Self {
        let cache = KvCache::new(policy.config(), slots, trajectory_tokens_max, policy.device());
        let sequences = std::iter::repeat_with(|| None).take(slots).collect();
        Self { policy, cache, sequences, control: control.map(i64::from) }
    }
}

impl Decoder for TorchDecoder {
    fn open(&mut self, slot: usize, sampling: Sampling) {
        self.cache.clear(slot);
        let sampler = Sampler::new(sampling.seed, sampling.temperature);
        self.sequences[slot] = Some(Sequence { sampler, pending: Vec::new() });
    }

    fn feed(&mut self, slot: usize, tokens: &[u32]) {
        if let Some(sequence) = &mut self.sequences[slot] {
            sequence.pending.extend_from_slice(tokens);
        }
    }

    fn close(&mut self, slot: usize) {
        self.sequences[slot] = None;
    }

    fn step(&mut self, want: &[usize]) -> Result<Vec<Sampled>, DecodeError> {
        let mut rows: Vec<(usize, &mut Sequence)> = self
            .sequences
            .iter_mut()
            .enumerate()
            .filter_map(|(slot, sequence)| Some((slot, sequence.as_mut()?)))
            .filter(|(slot, _)| want.binary_search(slot).is_ok())
            .collect();
        if rows.len() != want.len() || rows.iter().any(|(_, row)| row.pending.is_empty()) {
            return Err(DecodeError("a slot without a fed sequence was asked for a token".into()));
        }
        let appended: Vec<(usize, &[u32])> =
            rows.iter().map(|(slot, row)| (*slot, row.pending.as_slice())).collect();
        let logits = self.policy.extend(&mut self.cache, &appended).map_err(refused)?;
        let mut samplers: Vec<&mut Sampler> =
            rows.iter_mut().map(|(_, row)| &mut row.sampler).collect();
        let draws = Sampler::draw(&mut samplers, &logits, &self.control);
        let sampled = rows.into_iter().zip(draws).map(|((slot, row), draw)| {
            let Draw { token, logprob, watched } = draw;
            row.pending.clear();
            row.pending.push(token);
            let control_probs = std::array::from_fn(|index| watched[index]);
            Sampled { slot, token, logprob, control_probs }
        });
        Ok(sampled.collect())
    }

    fn swap(&mut self, staged: &StagedPolicy) -> Result<(), DecodeError> {
        self.policy.load(&tensors(staged)?).map_err(refused)
    }
}

fn tensors(staged: &StagedPolicy) -> Result<BTreeMap<String, Tensor>, DecodeError> {
    staged
        .tensors
        .iter()
        .map(|(entry, bytes)| {
            let shape: Vec<i64> =
                entry.shape.iter().map(|dim| i64::try_from(*dim).unwrap_or(i64::MAX)).collect();
            let tensor = tensor_from_bytes(&entry.dtype, &shape, bytes).map_err(refused)?;
            Ok((entry.name.clone(), tensor))
        })
        .collect()
}

fn refused(error: impl std::fmt::Display) -> DecodeError {
    DecodeError(error.to_string())
}
