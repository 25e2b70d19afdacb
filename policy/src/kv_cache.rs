//! Keys and values of running sequences, one slot each.

use tch::{Device, Kind, Tensor};

use crate::ModelConfig;

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

/// A fixed number of slots of fixed length. A sequence keeps its slot over tool calls, so a tool's
/// result is only prefilled. Memory: 2 * layers * slots * K * capacity * D fp32 numbers.
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
    /// Empty slots, each for `capacity` tokens.
    #[must_use]
    pub fn new(config: &ModelConfig, slots: usize, capacity: usize, device: Device) -> Self {
        let shape = [slots as i64, config.kv_heads, capacity as i64, config.head_dim];
        let table =
            || (0..config.layers).map(|_| Tensor::zeros(shape, (Kind::Float, device))).collect();
        Self { keys: table(), values: table(), lengths: vec![0; slots], capacity }
    }

    /// Empties a slot for a new sequence.
    pub fn clear(&mut self, slot: usize) {
        self.lengths[slot] = 0;
    }

    /// Tokens in a slot.
    #[must_use]
    pub fn length(&self, slot: usize) -> usize {
        self.lengths[slot]
    }

    pub(crate) fn reserve(&mut self, slot: usize, tokens: usize) -> Result<usize, CacheFull> {
        let start = self.lengths[slot];
        if start + tokens > self.capacity {
            return Err(CacheFull { slot, tokens: start + tokens, capacity: self.capacity });
        }
        Ok(start)
    }
}
