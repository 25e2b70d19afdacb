//! A new small model: a tokenizer trained on a world's transcripts, and random weights.

use std::{fs, path::Path};

use anyhow::Context as _;
use ballast_arena::{ExpertAction, open, task};
use ballast_chat::{python_json, render_call, tokenizer_config_json, train_tokenizer};
use ballast_policy::{
    CONFIG_FILE, ModelConfig, Policy, TOKENIZER_FILE, WEIGHTS_FILE, write_weights,
};
use serde_json::json;

/// Tasks whose transcripts the tokenizer is trained on, for each number of calls.
const CORPUS_TASKS: u64 = 400;

/// Shape of a new model.
#[derive(Clone, Debug, clap::Args)]
pub struct Shape {
    /// Upper bound of the vocabulary; the tokenizer may need less
    #[arg(long, default_value_t = 512)]
    pub vocab_size: usize,
    /// Width of the residual stream
    #[arg(long, default_value_t = 64)]
    pub hidden_size: i64,
    /// Width of the feed-forward layer
    #[arg(long, default_value_t = 192)]
    pub intermediate_size: i64,
    /// Layers
    #[arg(long, default_value_t = 4)]
    pub layers: i64,
    /// Query heads
    #[arg(long, default_value_t = 4)]
    pub heads: i64,
    /// Key/value heads; a divisor of the query heads
    #[arg(long, default_value_t = 2)]
    pub kv_heads: i64,
    /// Width of one head
    #[arg(long, default_value_t = 16)]
    pub head_dim: i64,
    /// Longest sequence, tokens
    #[arg(long, default_value_t = 1024)]
    pub positions_max: i64,
}

/// Writes a complete checkpoint directory with random weights for the tasks of `world`.
///
/// # Errors
/// An unknown world, a shape the network refuses, or the disk.
pub fn create(directory: &Path, world: &str, shape: &Shape, seed: u64) -> anyhow::Result<()> {
    let corpus = corpus(world)?;
    let tokenizer = train_tokenizer(corpus.into_iter(), shape.vocab_size)?;
    let config = json!({
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": tokenizer.vocab_size(),
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "max_position_embeddings": shape.positions_max,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": true,
        "hidden_act": "silu",
        "attention_bias": false,
        "use_sliding_window": false,
        "initializer_range": 0.02,
        "torch_dtype": "float32",
        "bos_token_id": null,
        "eos_token_id": tokenizer.control().im_end,
        "pad_token_id": tokenizer.control().endoftext,
    });
    let config = ModelConfig::from_json(&serde_json::to_vec(&config)?)?;
    let generation = json!({
        "do_sample": true,
        "eos_token_id": tokenizer.control().im_end,
        "pad_token_id": tokenizer.control().endoftext,
    });
    fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
    let write = |name: &str, bytes: &[u8]| {
        let path = directory.join(name);
        fs::write(&path, bytes).with_context(|| format!("write {}", path.display()))
    };
    write(CONFIG_FILE, &config.to_json())?;
    write(TOKENIZER_FILE, tokenizer.json())?;
    write("tokenizer_config.json", tokenizer_config_json().as_bytes())?;
    write("generation_config.json", &serde_json::to_vec_pretty(&generation)?)?;
    let policy = Policy::random(config, i64::try_from(seed)?, tch::Device::Cpu);
    write_weights(&directory.join(WEIGHTS_FILE), &policy.named_tensors())?;
    Ok(())
}

/// Requests, tool lists, calls, results and answers of the world's training tasks, as plain text.
fn corpus(world: &str) -> anyhow::Result<Vec<String>> {
    let mut texts = Vec::new();
    for calls in 1..=5 {
        for seed in 0..CORPUS_TASKS {
            let mut environment = open(&task(world, "train", seed, calls))?;
            if seed == 0 {
                texts.extend(environment.tools().iter().map(python_json));
            }
            texts.push(environment.prompt().to_owned());
            let mut expert = environment.expert();
            let mut result = None;
            loop {
                match expert.next(result.as_ref()) {
                    ExpertAction::Answer(text) => {
                        texts.push(text);
                        break;
                    }
                    ExpertAction::Call { name, arguments } => {
                        texts.push(render_call(&name, &arguments));
                        let outcome = environment.call(&name, &arguments)?;
                        texts.push(outcome.to_text());
                        result = outcome.into_result();
                    }
                }
            }
        }
    }
    Ok(texts)
}
