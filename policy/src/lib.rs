//! The network that actors sample from and the learner trains: a transformer in libtorch (through
//! `tch`), read from and written to Hugging Face checkpoint directories.
//!
//! Owns: `config.json`, safetensors, the forward pass over whole sequences, the one over a KV cache (in
//! libtorch, and without it on a CPU: `cpu`), sampling and log-probabilities.
//! Does not know: text, tools, trajectories, losses, gRPC.
//! Invariant: all forward passes agree; in fp32 to 1e-4 in log-probability.
//!
//! Shapes in names and comments: B sequences, T tokens, S keys, N tokens of all sequences packed,
//! V vocabulary, H query heads, K key/value heads, G = H / K, D head width, E hidden width.

mod checkpoint;
mod config;
mod cpu;
mod device;
mod dtype;
mod extension;
mod kv_cache;
mod packing;
mod parameters;
mod policy;
mod rope;
mod rope_scaling;
mod sampler;
mod shards;
mod transformer;
mod weights;

pub use checkpoint::{
    CONFIG_FILE, CheckpointError, INDEX_FILE, TOKENIZER_FILE, WEIGHTS_FILE, read_config,
    read_weights, tensor_bytes, tensor_from_bytes,
};
pub use config::{ConfigError, ModelConfig};
pub use device::{DeviceError, open_device, set_threads, threads};
pub use dtype::Dtype;
pub use kv_cache::{CacheFull, KvCache, PrefixMissing};
pub use parameters::ParameterError;
pub use policy::Policy;
pub use rope_scaling::RopeScaling;
pub use sampler::{Distribution, Draw, Sampler};
pub use shards::{SHARD_BYTES_MAX, write_weights, write_weights_bf16};
pub use tch::{Device, Tensor};
pub use weights::Weights;
