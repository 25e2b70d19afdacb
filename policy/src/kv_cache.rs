//! Keys and values of running sequences, one slot each.

use tch::{Device, Tensor};

use crate::{Dtype, ModelConfig};

/// A sequence would outgrow its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("slot {slot} is full: {tokens} tokens do not fit in its {capacity}")]
pub struct CacheFull {
    /// Slot index.
    pub slot: usize,
    /// Length the sequence would have.
    pub tokens: usize,
    /// Tokens a slot holds.
    pub capacity: usize,
}

/// A slot was asked for more tokens than it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("slot {slot} holds {held} tokens; {tokens} of them cannot be copied")]
pub struct PrefixMissing {
    /// Slot index.
    pub slot: usize,
    /// Tokens asked for.
    pub tokens: usize,
    /// Tokens in it.
    pub held: usize,
}

/// A fixed number of slots of fixed length. A sequence keeps its slot over tool calls, so a tool's
/// result is only prefilled. Memory: 2 * layers * slots * K * capacity * D numbers.
#[derive(Debug)]
pub struct KvCache {
    /// Per layer, [slots, K, capacity, D].
    pub(crate) keys: Vec<Tensor>,
    /// Per layer, [slots, K, capacity, D].
    pub(crate) values: Vec<Tensor>,
    /// Tokens in each slot.
    pub(crate) lengths: Vec<usize>,
    capacity: usize,
}

impl KvCache {
    /// Empty slots in fp32, each for `capacity` tokens.
    #[must_use]
    pub fn new(config: &ModelConfig, slots: usize, capacity: usize, device: Device) -> Self {
        Self::with_dtype(config, slots, capacity, device, Dtype::F32)
    }

    /// Empty slots for a policy that computes in `dtype`; `Policy::cache` fills in the rest.
    #[must_use]
    pub fn with_dtype(
        config: &ModelConfig,
        slots: usize,
        capacity: usize,
        device: Device,
        dtype: Dtype,
    ) -> Self {
        let shape = [slots as i64, config.kv_heads, capacity as i64, config.head_dim];
        let table =
            || (0..config.layers).map(|_| Tensor::zeros(shape, (dtype.kind(), device))).collect();
        Self { keys: table(), values: table(), lengths: vec![0; slots], capacity }
    }

    /// Empties a slot for a new sequence.
    pub fn clear(&mut self, slot: usize) {
        self.lengths[slot] = 0;
    }

    /// Drops what a slot holds after its first `tokens` tokens.
    pub fn truncate(&mut self, slot: usize, tokens: usize) {
        self.lengths[slot] = self.lengths[slot].min(tokens);
    }

    /// Makes slot `to`, which holds the same tokens so far, hold the first `tokens` tokens of `from`.
    ///
    /// # Errors
    /// `from` holds fewer; nothing is changed.
    pub fn copy_prefix(
        &mut self,
        from: usize,
        to: usize,
        tokens: usize,
    ) -> Result<(), PrefixMissing> {
        let held = self.lengths[from];
        if tokens > held {
            return Err(PrefixMissing { slot: from, tokens, held });
        }
        let start = self.lengths[to];
        if start < tokens {
            let (start, count) = (start as i64, (tokens - start) as i64);
            tch::no_grad(|| {
                for table in self.keys.iter().chain(&self.values) {
                    let source = table.get(from as i64).narrow(1, start, count);
                    table.get(to as i64).narrow(1, start, count).copy_(&source);
                }
            });
        }
        self.lengths[to] = tokens;
        Ok(())
    }

    /// Bytes of one slot of `capacity` tokens.
    #[must_use]
    pub fn slot_bytes(config: &ModelConfig, capacity: usize, dtype: Dtype) -> u64 {
        let [layers, kv_heads, dim] =
            [config.layers, config.kv_heads, config.head_dim].map(i64::unsigned_abs);
        2 * layers * kv_heads * dim * capacity as u64 * dtype.kind().elt_size_in_bytes() as u64
    }

    /// Tokens a slot holds at most.
    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Tokens in a slot.
    #[must_use]
    pub fn length(&self, slot: usize) -> usize {
        self.lengths[slot]
    }

    pub(crate) fn reserve(&self, slot: usize, tokens: usize) -> Result<usize, CacheFull> {
        let start = self.lengths[slot];
        if start + tokens > self.capacity {
            return Err(CacheFull { slot, tokens: start + tokens, capacity: self.capacity });
        }
        Ok(start)
    }
}
