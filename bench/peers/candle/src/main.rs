//! Tokens per second of candle on a CPU: the peer of `ballast-actor bench`, with the same weights.
//!
//! Prints {"tokens_per_s": [...], "tokens_per_cpu_s": [...]}, one value per repetition, after one to
//! warm up. fp32: candle has no bf16 products on a CPU. Sampling from the whole distribution, with the
//! log-probability of each sampled token. `RAYON_NUM_THREADS` sets its threads.

use std::{fs, path::PathBuf, time::Instant};

use anyhow::Context as _;
use candle_core::{DType, Device, Tensor};
use candle_nn::{Activation, VarBuilder};
use candle_transformers::models::qwen2::{Config, ModelForCausalLM};
use clap::Parser;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

#[derive(Parser)]
struct Options {
    #[arg(long)]
    checkpoint: PathBuf,
    #[arg(long, default_value_t = 16)]
    batch: usize,
    /// Tokens given.
    #[arg(long, default_value_t = 128)]
    prompt: usize,
    /// Tokens sampled.
    #[arg(long, default_value_t = 128)]
    new: usize,
    #[arg(long, default_value_t = 3)]
    repeat: usize,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let config = config(&options)?;
    let weights = options.checkpoint.join("model.safetensors");
    let contents = fs::read(&weights).with_context(|| format!("{}", weights.display()))?;
    let weights = VarBuilder::from_buffered_safetensors(contents, DType::F32, &Device::Cpu)?;
    let mut model = ModelForCausalLM::new(&config, weights)?;
    rollout(&mut model, &options)?;
    let (mut tokens_per_s, mut tokens_per_cpu_s) = (Vec::new(), Vec::new());
    for _ in 0..options.repeat {
        let (wall, processor) = (Instant::now(), processor_seconds());
        rollout(&mut model, &options)?;
        let tokens = (options.batch * options.new) as f64;
        tokens_per_s.push(tokens / wall.elapsed().as_secs_f64());
        tokens_per_cpu_s.push(tokens / (processor_seconds() - processor));
    }
    println!("{}", json!({"tokens_per_s": tokens_per_s, "tokens_per_cpu_s": tokens_per_cpu_s}));
    Ok(())
}

/// Every sequence from its prompt to its end.
fn rollout(model: &mut ModelForCausalLM, options: &Options) -> anyhow::Result<()> {
    let mut draws = StdRng::seed_from_u64(0);
    model.clear_kv_cache();
    let prompts: Vec<u32> = (0..options.batch)
        .flat_map(|row| (0..options.prompt).map(move |at| ((row * 31 + at * 7) % 2000) as u32))
        .collect();
    let mut input = Tensor::from_vec(prompts, (options.batch, options.prompt), &Device::Cpu)?;
    let mut position = 0;
    for _ in 0..options.new {
        let logits = model.forward(&input, position)?.squeeze(1)?;
        position += input.dim(1)?;
        let logprobs = candle_nn::ops::log_softmax(&logits, 1)?.to_vec2::<f32>()?;
        let tokens = logprobs.iter().map(|row| draw(row, draws.random())).collect();
        input = Tensor::from_vec(tokens, (options.batch, 1), &Device::Cpu)?;
    }
    Ok(())
}

/// Inverse CDF.
fn draw(logprobs: &[f32], uniform: f32) -> u32 {
    let mut left = uniform;
    for (token, logprob) in logprobs.iter().enumerate() {
        left -= logprob.exp();
        if left < 0.0 {
            return token as u32;
        }
    }
    logprobs.len() as u32 - 1
}

/// candle reads the layout of transformers 4.
fn config(options: &Options) -> anyhow::Result<Config> {
    let path = options.checkpoint.join("config.json");
    let text = fs::read_to_string(&path).with_context(|| format!("{}", path.display()))?;
    let json: Value = serde_json::from_str(&text)?;
    let number = |name: &str| {
        let number = json[name].as_u64().map(|number| number as usize);
        number.with_context(|| format!("{} has no {name}", path.display()))
    };
    let theta = json["rope_theta"].as_f64().or(json["rope_parameters"]["rope_theta"].as_f64());
    Ok(Config {
        vocab_size: number("vocab_size")?,
        hidden_size: number("hidden_size")?,
        intermediate_size: number("intermediate_size")?,
        num_hidden_layers: number("num_hidden_layers")?,
        num_attention_heads: number("num_attention_heads")?,
        num_key_value_heads: number("num_key_value_heads")?,
        max_position_embeddings: number("max_position_embeddings")?,
        sliding_window: number("max_position_embeddings")?,
        max_window_layers: number("num_hidden_layers")?,
        tie_word_embeddings: json["tie_word_embeddings"].as_bool().unwrap_or(false),
        rope_theta: theta.context("no rope_theta")?,
        rms_norm_eps: json["rms_norm_eps"].as_f64().context("no rms_norm_eps")?,
        use_sliding_window: false,
        hidden_act: Activation::Silu,
    })
}

/// Time that all threads of this process have run.
fn processor_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}
