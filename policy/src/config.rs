//! `config.json` of a Hugging Face checkpoint: Qwen2 and Qwen2.5, Qwen3, Llama 3, in the layouts of
//! transformers 4 and 5. What the network does not implement is refused by name.

use serde_json::{Map, Value};

use crate::rope_scaling::{self, RopeScaling};

/// Largest width, count or length that is believed; keeps products of two within an i64.
const DIMENSION_MAX: i64 = 1 << 24;

/// Largest network that is believed: nine times what one GPU of the largest kind can train.
const PARAMETERS_MAX: f64 = (1u64 << 36) as f64;

/// Shape and constants of the network, read from `config.json` and never guessed.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Tokens the embedding has rows for (V); may exceed the tokenizer's, for padding.
    pub vocab_size: i64,
    /// Width of the residual stream (E).
    pub hidden_size: i64,
    /// Width of the feed-forward layer.
    pub intermediate_size: i64,
    /// Number of transformer layers.
    pub layers: i64,
    /// Query heads (H).
    pub heads: i64,
    /// Key/value heads (K); divides `heads`.
    pub kv_heads: i64,
    /// Width of one head (D).
    pub head_dim: i64,
    /// Whether queries and keys are normalised per head (Qwen3).
    pub qk_norm: bool,
    /// Whether the query, key and value projections have a bias (Qwen2, or `attention_bias`).
    pub qkv_bias: bool,
    /// Whether the projection after attention has a bias (`attention_bias`).
    pub output_bias: bool,
    /// Whether the embedding is the head too; otherwise `lm_head.weight` is.
    pub tied: bool,
    /// Added to the mean square in RMSNorm.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// How the rotary frequencies are stretched to longer contexts.
    pub rope_scaling: RopeScaling,
    /// Longest sequence, in tokens.
    pub positions_max: i64,
    /// The file as read; written back with only the dtype changed.
    json: Map<String, Value>,
}

/// What is wrong with a `config.json`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The file is not a JSON object.
    #[error("not a JSON object: {0}")]
    Json(String),
    /// A key is absent or has the wrong type.
    #[error("{0} is missing or not a {1}")]
    Key(String, &'static str),
    /// A key has a value this network does not implement.
    #[error("{key} = {value} is not supported; supported: {supported}")]
    Unsupported {
        /// Key.
        key: String,
        /// Its value.
        value: String,
        /// What would be accepted.
        supported: &'static str,
    },
}

impl ConfigError {
    pub(crate) fn unsupported(
        key: impl Into<String>,
        value: impl ToString,
        supported: &'static str,
    ) -> Self {
        Self::Unsupported { key: key.into(), value: value.to_string(), supported }
    }
}

/// What `model_type` settles.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    /// Qwen2 and Qwen2.5: a bias on queries, keys and values.
    Qwen2,
    /// Qwen3: norms on queries and keys.
    Qwen3,
    /// Llama 3.
    Llama,
}

/// A key that changes what the network computes, what is supported, and whether a value is.
type Rule = (&'static str, &'static str, fn(&Value) -> bool);

/// A key that is absent or null passes.
const RULES: [Rule; 9] = [
    ("hidden_act", "\"silu\"", |value| value == "silu"),
    ("mlp_bias", "false", |value| value == false),
    ("use_sliding_window", "false: every layer attends to all tokens before it", |value| {
        value == false
    }),
    ("layer_types", "\"full_attention\" for every layer", |value| {
        value.as_array().is_some_and(|types| types.iter().all(|kind| kind == "full_attention"))
    }),
    ("partial_rotary_factor", "1", |value| value.as_f64() == Some(1.0)),
    ("original_max_position_embeddings", "absent here, given within rope_scaling", |_| false),
    ("quantization_config", "absent: weights in F32, F16 or BF16", |_| false),
    ("num_experts", "absent: dense networks only", |_| false),
    ("num_local_experts", "absent: dense networks only", |_| false),
];

impl ModelConfig {
    /// Reads `config.json`.
    ///
    /// # Errors
    /// The first key that is missing, mistyped or not supported, by name.
    pub fn from_json(bytes: &[u8]) -> Result<Self, ConfigError> {
        let json: Map<String, Value> =
            serde_json::from_slice(bytes).map_err(|error| ConfigError::Json(error.to_string()))?;
        let family = family(&json)?;
        for (key, supported, accepts) in RULES {
            if let Some(value) = present(&json, key).filter(|value| !accepts(value)) {
                return Err(ConfigError::unsupported(key, value, supported));
            }
        }
        let attention_bias = flag(&json, "attention_bias")?;
        if family == Family::Qwen2 && attention_bias == Some(false) {
            return Err(ConfigError::unsupported("attention_bias", false, "true for qwen2"));
        }
        let attention_bias = attention_bias.unwrap_or(false);
        let heads = integer(&json, "num_attention_heads")?;
        let hidden_size = integer(&json, "hidden_size")?;
        let positions_max = integer(&json, "max_position_embeddings")?;
        let (rope_theta, rope_scaling) = rope_scaling::read(&json, positions_max)?;
        let config = Self {
            vocab_size: integer(&json, "vocab_size")?,
            hidden_size,
            intermediate_size: integer(&json, "intermediate_size")?,
            layers: integer(&json, "num_hidden_layers")?,
            heads,
            kv_heads: kv_heads(&json, family, heads)?,
            head_dim: head_dim(&json, family, hidden_size, heads)?,
            qk_norm: family == Family::Qwen3,
            qkv_bias: family == Family::Qwen2 || attention_bias,
            output_bias: family != Family::Qwen2 && attention_bias,
            // Absent means false in all three families.
            tied: flag(&json, "tie_word_embeddings")?.unwrap_or(false),
            rms_norm_eps: json
                .get("rms_norm_eps")
                .and_then(Value::as_f64)
                .filter(|epsilon| *epsilon >= 0.0)
                .ok_or(ConfigError::Key("rms_norm_eps".into(), "number from 0"))?,
            rope_theta,
            rope_scaling,
            positions_max,
            json,
        };
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), ConfigError> {
        if self.heads % self.kv_heads != 0 {
            let supported = "a divisor of num_attention_heads";
            return Err(ConfigError::unsupported("num_key_value_heads", self.kv_heads, supported));
        }
        if self.parameters() > PARAMETERS_MAX {
            let supported = "a network of at most 2^36 parameters";
            return Err(ConfigError::unsupported("num_hidden_layers", self.layers, supported));
        }
        if self.head_dim % 2 != 0 {
            return Err(ConfigError::unsupported("head_dim", self.head_dim, "an even number"));
        }
        Ok(())
    }

    /// The file to write beside fp32 weights: as read, with the dtype told truly.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        self.to_json_of(tch::Kind::Float)
    }

    /// The file to write beside weights of a kind: as read, with the dtype told truly.
    pub(crate) fn to_json_of(&self, kind: tch::Kind) -> Vec<u8> {
        let dtype = match kind {
            tch::Kind::BFloat16 => "bfloat16",
            tch::Kind::Half => "float16",
            _ => "float32",
        };
        let mut json = self.json.clone();
        for key in ["dtype", "torch_dtype"] {
            if json.contains_key(key) {
                json.insert(key.to_owned(), Value::from(dtype));
            }
        }
        let mut bytes = serde_json::to_vec_pretty(&json).expect("a JSON map always serialises");
        bytes.push(b'\n');
        bytes
    }

    /// Numbers in the weights, near enough to refuse a network that cannot be meant.
    fn parameters(&self) -> f64 {
        let [vocab, hidden, wide, layers, heads, dim] = [
            self.vocab_size,
            self.hidden_size,
            self.intermediate_size,
            self.layers,
            self.heads + self.kv_heads,
            self.head_dim,
        ]
        .map(|size| size as f64);
        let ends = if self.tied { 1.0 } else { 2.0 };
        ends * vocab * hidden + layers * hidden * (2.0 * heads * dim + 3.0 * wide)
    }

    /// Query heads that share one key/value head (G).
    #[must_use]
    pub fn group(&self) -> i64 {
        self.heads / self.kv_heads
    }
}

/// A value that is there and not null.
pub(crate) fn present<'a>(json: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    json.get(key).filter(|value| !value.is_null())
}

fn family(json: &Map<String, Value>) -> Result<Family, ConfigError> {
    let missing = || ConfigError::Key("model_type".into(), "string");
    let (family, architecture) = match json.get("model_type").ok_or_else(missing)?.as_str() {
        Some("qwen2") => (Family::Qwen2, "Qwen2ForCausalLM"),
        Some("qwen3") => (Family::Qwen3, "Qwen3ForCausalLM"),
        Some("llama") => (Family::Llama, "LlamaForCausalLM"),
        _ => {
            let supported = "\"qwen2\" (Qwen2, Qwen2.5), \"qwen3\", \"llama\" (Llama 3)";
            return Err(ConfigError::unsupported("model_type", &json["model_type"], supported));
        }
    };
    match present(json, "architectures") {
        Some(listed) if *listed != serde_json::json!([architecture]) => {
            let supported = "the ...ForCausalLM of the model_type: it predicts the next token";
            Err(ConfigError::unsupported("architectures", listed, supported))
        }
        _ => Ok(family),
    }
}

fn integer(json: &Map<String, Value>, key: &str) -> Result<i64, ConfigError> {
    let value = json.get(key).and_then(Value::as_i64);
    let value = value.filter(|value| (1..=DIMENSION_MAX).contains(value));
    value.ok_or_else(|| ConfigError::Key(key.to_owned(), "positive integer of at most 2^24"))
}

fn flag(json: &Map<String, Value>, key: &str) -> Result<Option<bool>, ConfigError> {
    let wrong = || ConfigError::Key(key.to_owned(), "boolean");
    present(json, key).map(|value| value.as_bool().ok_or_else(wrong)).transpose()
}

/// Null means one for each query head; absent means so for Llama only.
fn kv_heads(json: &Map<String, Value>, family: Family, heads: i64) -> Result<i64, ConfigError> {
    match json.get("num_key_value_heads") {
        Some(Value::Null) => Ok(heads),
        None if family == Family::Llama => Ok(heads),
        _ => integer(json, "num_key_value_heads"),
    }
}

/// Qwen3 always says how wide its heads are; the others share out the hidden width where they do
/// not.
fn head_dim(
    json: &Map<String, Value>,
    family: Family,
    hidden_size: i64,
    heads: i64,
) -> Result<i64, ConfigError> {
    if present(json, "head_dim").is_some() || family == Family::Qwen3 {
        return integer(json, "head_dim");
    }
    if hidden_size % heads != 0 {
        let supported = "a multiple of num_attention_heads, where head_dim is absent";
        return Err(ConfigError::unsupported("hidden_size", hidden_size, supported));
    }
    Ok(hidden_size / heads)
}

#[cfg(test)]
mod tests;
