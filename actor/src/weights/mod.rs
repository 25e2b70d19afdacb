//! The policies the learner publishes: followed, fetched, verified, staged.
//!
//! Owns: everything between a manifest on the wire and verified tensors in memory.
//! Does not know: torch, episodes. It stages; the engine adopts, between two decode steps.
//! Invariant (W1): what is staged matches its manifest byte for byte. A wrong hash, a partial fetch or
//! a lost connection stages nothing, so the policy in use stays in use.

mod download;
mod subscriber;

use ballast_chat::TemplateFiles;
use ballast_proto::{ManifestHash, PolicyVersion, v1::TensorEntry};
use bytes::Bytes;

pub use self::{
    download::{CHUNK_BYTES_MAX, POLICY_BYTES_MAX, WeightsError},
    subscriber::subscribe,
};

/// File of a checkpoint that describes the network.
pub const CONFIG_FILE: &str = "config.json";
/// File of a checkpoint that holds the tokenizer.
pub const TOKENIZER_FILE: &str = "tokenizer.json";

/// One verified policy version, ready to be adopted.
#[derive(Clone, Debug)]
pub struct StagedPolicy {
    /// Its version.
    pub policy_version: PolicyVersion,
    /// Its identity.
    pub manifest_hash: ManifestHash,
    /// Tensors sorted by name, each with its bytes: row-major, little-endian.
    pub tensors: Vec<(TensorEntry, Bytes)>,
    /// Contents of `config.json`.
    pub config_json: Bytes,
    /// Contents of `tokenizer.json`.
    pub tokenizer_json: Bytes,
    /// The chat template, if the checkpoint has one.
    pub template_files: TemplateFiles,
}

#[cfg(test)]
mod tests;
