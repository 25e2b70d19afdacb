//! The network that actors sample from and the learner trains: one transformer in libtorch (through
//! `tch`), read from and written to Hugging Face checkpoint directories.
//!
//! Owns: `config.json`, safetensors, the forward pass (whole sequences, and token by token over a KV
//! cache), sampling and log-probabilities.
//! Does not know: text, tools, trajectories, losses, gRPC.
//! Invariant: the two forward passes agree; in fp32 on a CPU to 1e-4 in log-probability.
//!
//! Shapes in names and comments: B sequences, T tokens, S keys, N tokens of all sequences packed,
//! V vocabulary, H query heads, K key/value heads, G = H / K, D head width, E hidden width.

mod checkpoint;
mod config;
mod device;
mod kv_cache;
mod parameters;
mod rope;
mod sampler;
mod transformer;

pub use checkpoint::{
    CONFIG_FILE, CheckpointError, TOKENIZER_FILE, WEIGHTS_FILE, read_config, read_weights,
    tensor_bytes, tensor_from_bytes, write_weights, write_weights_bf16,
};
pub use config::{ConfigError, ModelConfig};
pub use device::{DeviceError, open_device, set_threads};
pub use kv_cache::{CacheFull, KvCache};
pub use parameters::ParameterError;
pub use sampler::{Draw, Sampler};
pub use tch::{Device, Tensor};
pub use transformer::Policy;
