//! Checkpoint directories as other weights of the model that is served.

use std::{path::Path, sync::Arc};

use ballast_chat::TemplateFiles;
use ballast_policy::{Device, Dtype, ModelConfig, Policy, TOKENIZER_FILE};
use ballast_proto::{ManifestHash, PolicyVersion};
use bytes::Bytes;

use super::weight_updates::ReadCheckpoint;
use crate::{model::Model, torch_decoder::wire_tensors, weights::StagedPolicy};

/// Reads directories with the network and the tokenizer of `model`, and no others.
#[must_use]
pub(super) fn reader(model: &Model) -> Arc<ReadCheckpoint> {
    let config = model.policy().config().clone();
    // Absent where it cannot be read; then there is nothing to compare with.
    let tokenizer = std::fs::read(model.directory().join(TOKENIZER_FILE)).ok();
    Arc::new(move |directory| read(directory, &config, tokenizer.as_deref()))
}

/// Reads all of it before anything is replaced; it takes the memory of two more copies in fp32.
fn read(
    directory: &Path,
    config: &ModelConfig,
    tokenizer: Option<&[u8]>,
) -> Result<StagedPolicy, String> {
    let policy = Policy::open(directory, Device::Cpu, Dtype::F32);
    let policy = policy.map_err(|error| error.to_string())?;
    if network(policy.config()) != network(config) {
        let path = directory.display();
        return Err(format!("{path} has another config.json than the served model"));
    }
    let theirs = std::fs::read(directory.join(TOKENIZER_FILE)).ok();
    if let (Some(ours), Some(theirs)) = (tokenizer, theirs)
        && ours != theirs
    {
        let path = directory.display();
        return Err(format!("{path} has another tokenizer.json than the served model"));
    }
    Ok(StagedPolicy {
        policy_version: PolicyVersion(0),
        manifest_hash: ManifestHash([0; 32]),
        tensors: wire_tensors(&policy),
        config_json: Bytes::new(),
        tokenizer_json: Bytes::new(),
        template_files: TemplateFiles::default(),
    })
}

/// What decides how weights are computed with: all of `config.json` that is more than a name or the
/// dtype they happen to be stored in.
fn network(config: &ModelConfig) -> impl PartialEq + use<> {
    let sizes = [
        config.vocab_size,
        config.hidden_size,
        config.intermediate_size,
        config.layers,
        config.heads,
        config.kv_heads,
        config.head_dim,
        config.positions_max,
    ];
    let parts = [config.qk_norm, config.qkv_bias, config.output_bias, config.tied];
    (sizes, parts, config.rms_norm_eps, config.rope_theta, config.rope_scaling.clone())
}
