//! `config.json` of a Hugging Face checkpoint, for the architecture Ballast runs: Qwen3.

use serde_json::{Map, Value};

/// Largest width, count or length that is believed; keeps products of two within an i64.
const DIMENSION_MAX: i64 = 1 << 24;

/// Largest network that is believed: nine times what one GPU of the largest kind can train.
const PARAMETERS_MAX: f64 = (1u64 << 36) as f64;

/// Shape and constants of the network, read from `config.json` and never guessed.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Tokens the embedding has rows for (V).
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
    /// Added to the mean square in RMSNorm.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
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
    Key(&'static str, &'static str),
    /// A key has a value this network does not implement.
    #[error("{key} = {value} is not supported; supported: {supported}")]
    Unsupported {
        /// Key.
        key: &'static str,
        /// Its value.
        value: String,
        /// What would be accepted.
        supported: &'static str,
    },
}

impl ModelConfig {
    /// Reads `config.json`. Both layouts are understood: transformers 4 (`rope_theta`) and 5
    /// (`rope_parameters`).
    ///
    /// # Errors
    /// The first key that is missing, mistyped or not supported, by name.
    pub fn from_json(bytes: &[u8]) -> Result<Self, ConfigError> {
        let json: Map<String, Value> =
            serde_json::from_slice(bytes).map_err(|error| ConfigError::Json(error.to_string()))?;
        refuse_unsupported(&json)?;
        let integer = |key| {
            let value = json.get(key).and_then(Value::as_i64);
            let value = value.filter(|value| (1..=DIMENSION_MAX).contains(value));
            value.ok_or(ConfigError::Key(key, "positive integer of at most 2^24"))
        };
        let config = Self {
            vocab_size: integer("vocab_size")?,
            hidden_size: integer("hidden_size")?,
            intermediate_size: integer("intermediate_size")?,
            layers: integer("num_hidden_layers")?,
            heads: integer("num_attention_heads")?,
            kv_heads: integer("num_key_value_heads")?,
            head_dim: integer("head_dim")?,
            positions_max: integer("max_position_embeddings")?,
            rms_norm_eps: json
                .get("rms_norm_eps")
                .and_then(Value::as_f64)
                .filter(|epsilon| *epsilon >= 0.0)
                .ok_or(ConfigError::Key("rms_norm_eps", "number from 0"))?,
            rope_theta: rope_theta(&json)?,
            json: json.clone(),
        };
        if config.heads % config.kv_heads != 0 {
            return Err(ConfigError::Unsupported {
                key: "num_key_value_heads",
                value: config.kv_heads.to_string(),
                supported: "a divisor of num_attention_heads",
            });
        }
        if config.parameters() > PARAMETERS_MAX {
            return Err(ConfigError::Unsupported {
                key: "num_hidden_layers",
                value: config.layers.to_string(),
                supported: "a network of at most 2^36 parameters",
            });
        }
        if config.head_dim % 2 != 0 {
            return Err(ConfigError::Unsupported {
                key: "head_dim",
                value: config.head_dim.to_string(),
                supported: "an even number",
            });
        }
        Ok(config)
    }

    /// The file to write beside fp32 weights: as read, with the dtype told truly.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        let mut json = self.json.clone();
        for key in ["dtype", "torch_dtype"] {
            if json.contains_key(key) {
                json.insert(key.to_owned(), Value::from("float32"));
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
        vocab * hidden + layers * hidden * (2.0 * heads * dim + 3.0 * wide)
    }

    /// Query heads that share one key/value head (G).
    #[must_use]
    pub fn group(&self) -> i64 {
        self.heads / self.kv_heads
    }
}

fn refuse_unsupported(json: &Map<String, Value>) -> Result<(), ConfigError> {
    let refuse =
        |key: &'static str, supported: &'static str, accepted: fn(&Value) -> bool| match json
            .get(key)
        {
            Some(value) if !accepted(value) => {
                Err(ConfigError::Unsupported { key, value: value.to_string(), supported })
            }
            _ => Ok(()),
        };
    if json.get("model_type").is_none() {
        return Err(ConfigError::Key("model_type", "string"));
    }
    refuse("model_type", "\"qwen3\"", |value| value == "qwen3")?;
    refuse("hidden_act", "\"silu\"", |value| value == "silu")?;
    refuse("attention_bias", "false", |value| value == false)?;
    refuse("use_sliding_window", "false", |value| value == false)?;
    refuse("rope_scaling", "null", Value::is_null)?;
    match json.get("tie_word_embeddings") {
        Some(Value::Bool(true)) => Ok(()),
        other => Err(ConfigError::Unsupported {
            key: "tie_word_embeddings",
            value: other.map_or_else(|| "absent (false)".to_owned(), Value::to_string),
            supported: "true",
        }),
    }
}

fn rope_theta(json: &Map<String, Value>) -> Result<f64, ConfigError> {
    let missing = ConfigError::Key("rope_theta (or rope_parameters.rope_theta)", "number above 0");
    let positive = |value: Option<&Value>| value.and_then(Value::as_f64).filter(|base| *base > 0.0);
    let Some(parameters) = json.get("rope_parameters") else {
        return positive(json.get("rope_theta")).ok_or(missing);
    };
    match parameters.get("rope_type").and_then(Value::as_str) {
        None | Some("default") => positive(parameters.get("rope_theta")).ok_or(missing),
        Some(other) => Err(ConfigError::Unsupported {
            key: "rope_parameters.rope_type",
            value: other.to_owned(),
            supported: "\"default\"",
        }),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) const TINY: &str = r#"{
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": 48,
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "max_position_embeddings": 64,
        "tie_word_embeddings": true, "hidden_act": "silu", "torch_dtype": "bfloat16"
    }"#;

    fn with(key: &str, value: Value) -> Result<ModelConfig, ConfigError> {
        let mut json: Map<String, Value> = serde_json::from_str(TINY).unwrap();
        json.insert(key.to_owned(), value);
        ModelConfig::from_json(&serde_json::to_vec(&json).unwrap())
    }

    #[test]
    fn both_layouts_of_the_rope_base_are_read() {
        let old = ModelConfig::from_json(TINY.as_bytes()).unwrap();
        assert_eq!(old.rope_theta, 10000.0);
        let parameters = serde_json::json!({"rope_type": "default", "rope_theta": 5000.0});
        assert_eq!(with("rope_parameters", parameters).unwrap().rope_theta, 5000.0);
    }

    #[test]
    fn what_is_not_supported_is_refused_by_name() {
        let refused = [
            ("model_type", Value::from("gpt2")),
            ("hidden_act", Value::from("gelu")),
            ("attention_bias", Value::from(true)),
            ("use_sliding_window", Value::from(true)),
            ("tie_word_embeddings", Value::from(false)),
            ("num_key_value_heads", Value::from(3)),
            ("head_dim", Value::from(15)),
            ("vocab_size", Value::from(-1)),
            ("intermediate_size", Value::from(1i64 << 60)),
            ("num_hidden_layers", Value::from(1 << 24)),
            ("rope_theta", Value::from(0)),
            ("rope_scaling", serde_json::json!({"type": "yarn"})),
        ];
        for (key, value) in refused {
            let error = with(key, value).expect_err(key).to_string();
            assert!(error.contains(key), "{error}");
        }
    }

    #[test]
    fn the_written_file_tells_the_dtype_truly_and_keeps_the_rest() {
        let config = ModelConfig::from_json(TINY.as_bytes()).unwrap();
        let written: Value = serde_json::from_slice(&config.to_json()).unwrap();
        assert_eq!(written["torch_dtype"], "float32");
        assert_eq!(written["architectures"][0], "Qwen3ForCausalLM");
    }
}
