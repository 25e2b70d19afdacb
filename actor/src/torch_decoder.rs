//! The decoder on libtorch: one network in this process, its KV cache, and a sampler for each
//! sequence.
//!
//! What is promised of a seed: a sequence's random stream is its own, so its tokens do not depend on
//! what else is in the batch, but for numeric ties: libtorch sums in another order for another batch,
//! so log-probabilities differ in the last bits (1e-4 at most in fp32), and a draw that falls into
//! that gap goes the other way.

use std::{collections::BTreeMap, mem, thread};

use ballast_chat::Tokenizer;
use ballast_policy::{
    Device, Distribution, Draw, Dtype, KvCache, ModelConfig, Policy, Sampler, Tensor, open_device,
    set_threads, tensor_bytes, tensor_from_bytes, threads,
};

use ballast_proto::v1::TensorEntry;
use bytes::Bytes;

use crate::{
    decoder::{
        DecodeError, Decoder, DecoderFactory, DecoderWork, MakeReady, ReadyWeights, Sampled,
        Sampling,
        rows::{Entry, Fill, Plan, Rows},
    },
    weights::StagedPolicy,
};

/// Tokens of one forward pass of a prefill, padding aside: bounds the memory of its activations.
const PREFILL_TOKENS_MAX: usize = 4096;
/// Tokens of one sequence in such a pass: bounds the attention scores, which grow with their number
/// times the length of the sequence.
const PREFILL_ROW_TOKENS_MAX: usize = 512;

/// How the KV cache is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheConfig {
    /// Most memory it takes; `None`: room for every slot.
    pub bytes_max: Option<u64>,
    /// What happens to the keys and values of running sequences when the weights are swapped.
    /// False: they stay as the older weights computed them, the usual approximation of in-flight
    /// updates; a token's log-probability is then exact for the distribution it was drawn from,
    /// which is that of the new weights over the older keys. True: they are computed again before
    /// the next token, and every token's log-probability is that of its version alone.
    pub recompute_on_swap: bool,
}

impl CacheConfig {
    /// As `actor.kv_cache_mib` (0: room for every slot) and `actor.recompute_on_swap` say.
    #[must_use]
    pub fn from_mib(mib: u32, recompute_on_swap: bool) -> Self {
        Self { bytes_max: (mib > 0).then_some(u64::from(mib) << 20), recompute_on_swap }
    }
}

/// Builds [`TorchDecoder`]s on one device.
#[derive(Clone, Copy, Debug)]
pub struct TorchDecoderFactory {
    device: Device,
    threads: u32,
    /// `None`: whichever is faster, found out when the decoder is built.
    dtype: Option<Dtype>,
    cache: CacheConfig,
}

impl TorchDecoderFactory {
    /// Opens "cpu" or "cuda"; `threads` is what libtorch may use inside one operation.
    ///
    /// # Errors
    /// The device is unknown or absent.
    pub fn new(device: &str, threads: u32) -> Result<Self, ballast_policy::DeviceError> {
        let device = open_device(device)?;
        Ok(Self { device, threads, dtype: Some(Dtype::F32), cache: CacheConfig::default() })
    }

    /// The same with a network that computes in "fp32" or "bf16", or in whichever is clearly faster
    /// ("auto").
    ///
    /// # Errors
    /// The dtype is unknown.
    pub fn with_dtype(self, dtype: &str) -> Result<Self, ballast_policy::DeviceError> {
        let dtype = if dtype == "auto" { None } else { Some(dtype.parse()?) };
        Ok(Self { dtype, ..self })
    }

    /// The same with another use of the KV cache.
    #[must_use]
    pub fn with_cache(self, cache: CacheConfig) -> Self {
        Self { cache, ..self }
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
        let tokenizer = Tokenizer::of_checkpoint(&staged.tokenizer_json, &staged.config_json)
            .map_err(refused)?;
        let dtype = self.dtype.unwrap_or_else(|| Dtype::fastest(self.device));
        let policy =
            Policy::with_dtype(config, &tensors(staged)?, self.device, dtype).map_err(refused)?;
        let control = tokenizer.control().all();
        let decoder =
            TorchDecoder::bounded(policy, control, slots, trajectory_tokens_max, self.cache)?;
        Ok(Box::new(decoder))
    }
}

/// A network, its KV cache and the sequences in it.
#[derive(Debug)]
pub struct TorchDecoder {
    policy: Policy,
    cache: KvCache,
    rows: Rows,
    /// By slot; `None` where no sequence is open.
    samplers: Vec<Option<Sampler>>,
    /// Control tokens, in the order of `ControlTokens::all`.
    control: [i64; 8],
    recompute_on_swap: bool,
    retiring: Retiring,
}

/// A thread that gives the memory of older weights back. Whoever drops this waits for it: a process
/// must not end while libtorch is at work.
#[derive(Debug, Default)]
struct Retiring(Option<thread::JoinHandle<()>>);

impl Drop for Retiring {
    fn drop(&mut self) {
        if let Some(thread) = self.0.take() {
            let _ended = thread.join();
        }
    }
}

impl TorchDecoder {
    /// Empty slots for `slots` sequences of at most `tokens_max` tokens, with cache rows for all.
    #[must_use]
    pub fn new(policy: Policy, control: [u32; 8], slots: usize, tokens_max: usize) -> Self {
        Self::with_rows(policy, control, slots, tokens_max, slots)
    }

    /// The same within bounded memory: as many rows as it holds, and at most one for each slot.
    ///
    /// # Errors
    /// Not even one row fits.
    pub fn bounded(
        policy: Policy,
        control: [u32; 8],
        slots: usize,
        tokens_max: usize,
        cache: CacheConfig,
    ) -> Result<Self, DecodeError> {
        let row_bytes = KvCache::slot_bytes(policy.config(), tokens_max, policy.dtype());
        let rows = cache.bytes_max.map_or(slots as u64, |bytes| bytes / row_bytes.max(1));
        if rows == 0 && slots > 0 {
            return Err(DecodeError(format!(
                "the KV cache of one sequence of {tokens_max} tokens takes {row_bytes} bytes, more \
                 than it may; raise actor.kv_cache_mib or lower episode.trajectory_tokens_max"
            )));
        }
        let rows = usize::try_from(rows).unwrap_or(usize::MAX).min(slots);
        let decoder = Self::with_rows(policy, control, slots, tokens_max, rows);
        Ok(Self { recompute_on_swap: cache.recompute_on_swap, ..decoder })
    }

    fn with_rows(
        policy: Policy,
        control: [u32; 8],
        slots: usize,
        tokens_max: usize,
        rows: usize,
    ) -> Self {
        Self {
            cache: policy.cache(rows, tokens_max),
            policy,
            rows: Rows::new(slots, rows),
            samplers: std::iter::repeat_with(|| None).take(slots).collect(),
            control: control.map(i64::from),
            recompute_on_swap: false,
            retiring: Retiring::default(),
        }
    }

    fn run(&mut self, plan: &Plan) -> Result<Vec<Sampled>, DecodeError> {
        for wave in &plan.waves {
            self.fill(wave)?;
        }
        if plan.batch.is_empty() {
            return Ok(Vec::new());
        }
        let appended: Vec<(usize, &[u32])> = plan
            .batch
            .iter()
            .map(|entry| (entry.row, std::slice::from_ref(&entry.token)))
            .collect();
        let logits = self.policy.extend(&mut self.cache, &appended).map_err(refused)?;
        let mut by_slot: Vec<Option<&mut Sampler>> =
            self.samplers.iter_mut().map(Option::as_mut).collect();
        let mut samplers: Vec<&mut Sampler> =
            plan.batch.iter().filter_map(|entry| by_slot[entry.slot].take()).collect();
        let draws = Sampler::draw(&mut samplers, &logits, &self.control);
        if draws.len() != plan.batch.len() {
            return Err(DecodeError(format!(
                "{} sequences gave {} samples",
                plan.batch.len(),
                draws.len()
            )));
        }
        let mut sampled: Vec<Sampled> =
            plan.batch.iter().zip(draws).map(|(entry, draw)| answer(*entry, &draw)).collect();
        sampled.sort_unstable_by_key(|sampled| sampled.slot);
        Ok(sampled)
    }

    /// Copies what a wave borrows, then runs the rest of it.
    fn fill(&mut self, wave: &[Fill]) -> Result<(), DecodeError> {
        for fill in wave {
            self.cache.truncate(fill.row, fill.kept);
            if let Some(loan) = fill.copied {
                self.cache.copy_prefix(loan.from, fill.row, loan.until).map_err(refused)?;
            }
        }
        let mut rest: Vec<(usize, &[u32])> =
            wave.iter().map(|fill| (fill.row, fill.computed.as_slice())).collect();
        loop {
            rest.retain(|(_, tokens)| !tokens.is_empty());
            if rest.is_empty() {
                return Ok(());
            }
            let mut room = PREFILL_TOKENS_MAX;
            let mut pass = Vec::with_capacity(rest.len());
            for (row, tokens) in &mut rest {
                let piece = tokens.len().min(PREFILL_ROW_TOKENS_MAX).min(room);
                if piece == 0 {
                    break;
                }
                let (now, later) = tokens.split_at(piece);
                pass.push((*row, now));
                *tokens = later;
                room -= piece;
            }
            self.policy.prefill(&mut self.cache, &pass).map_err(refused)?;
        }
    }
}

impl Decoder for TorchDecoder {
    fn open(&mut self, slot: usize, sampling: Sampling) {
        self.rows.open(slot);
        let Sampling { seed, logit_bias, temperature, top_k, top_p, min_p } = sampling;
        let distribution = Distribution { logit_bias, temperature, top_k, top_p, min_p };
        self.samplers[slot] = Some(Sampler::over(seed, distribution));
    }

    fn feed(&mut self, slot: usize, tokens: &[u32]) {
        self.rows.feed(slot, tokens);
    }

    fn close(&mut self, slot: usize) {
        self.rows.close(slot);
        self.samplers[slot] = None;
    }

    fn step(&mut self, want: &[usize]) -> Result<Vec<Sampled>, DecodeError> {
        let plan = self.rows.plan(want)?;
        let sampled = self.run(&plan).inspect_err(|_| self.rows.swapped(true))?;
        for Sampled { slot, token, .. } in &sampled {
            self.rows.sampled(*slot, *token);
        }
        Ok(sampled)
    }

    fn make_ready(&self, staged: &StagedPolicy) -> MakeReady {
        let (config, device, dtype) =
            (self.policy.config().clone(), self.policy.device(), self.policy.dtype());
        let (staged, threads) = (staged.clone(), threads());
        Box::new(move || {
            // The policy keeps this number for the steps that it takes.
            set_threads(threads);
            let policy =
                Policy::with_dtype(config, &tensors(&staged)?, device, dtype).map_err(refused)?;
            policy.lay_out();
            Ok(ReadyWeights::new(policy))
        })
    }

    fn swap(&mut self, ready: ReadyWeights) -> Result<(), DecodeError> {
        let retired = mem::replace(&mut self.policy, ready.take()?);
        self.rows.swapped(self.recompute_on_swap);
        // Giving a large piece of memory back takes milliseconds. If there is no thread for it, the
        // closure and the policy in it are dropped here.
        let retire = thread::Builder::new().name("retire".into()).spawn(move || drop(retired));
        self.retiring = Retiring(retire.ok());
        Ok(())
    }

    fn work(&self) -> DecoderWork {
        self.rows.work()
    }
}

/// [`Sampled`] from a draw.
fn answer(entry: Entry, draw: &Draw) -> Sampled {
    Sampled {
        slot: entry.slot,
        token: draw.token,
        logprob: draw.logprob,
        policy_logprob: draw.policy_logprob,
        entropy: draw.entropy,
        control_probs: std::array::from_fn(|index| draw.watched[index]),
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

/// The tensors of a policy in fp32, as they travel.
pub(crate) fn wire_tensors(policy: &Policy) -> Vec<(TensorEntry, Bytes)> {
    let entry = |(name, tensor): (String, Tensor)| {
        let shape = tensor.size().into_iter().map(i64::unsigned_abs).collect();
        let entry = TensorEntry { name, dtype: "F32".into(), shape, hash: Vec::new() };
        (entry, Bytes::from(tensor_bytes(&tensor)))
    };
    policy.named_tensors().into_iter().map(entry).collect()
}

fn refused(error: impl std::fmt::Display) -> DecodeError {
    DecodeError(error.to_string())
}

#[cfg(test)]
mod tests;
