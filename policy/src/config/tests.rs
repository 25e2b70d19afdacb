//! What is read from `config.json`, and what is refused.

use serde_json::{Map, Value, json};

use super::*;
use crate::rope_scaling::RopeScaling;

const QWEN3: &str = r#"{
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": 48,
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "max_position_embeddings": 64,
    "tie_word_embeddings": true, "hidden_act": "silu", "torch_dtype": "bfloat16"
}"#;

/// The configuration of a Qwen3 network with some keys changed; null removes a key.
fn with(changes: &Value) -> Result<ModelConfig, ConfigError> {
    let mut json: Map<String, Value> = serde_json::from_str(QWEN3).unwrap();
    for (key, value) in changes.as_object().unwrap() {
        if value.is_null() {
            json.remove(key);
        } else {
            json.insert(key.clone(), value.clone());
        }
    }
    ModelConfig::from_json(&serde_json::to_vec(&json).unwrap())
}

/// The same as a network of another family, which its `architectures` do not contradict.
fn family(model_type: &str, mut changes: Value) -> Result<ModelConfig, ConfigError> {
    let keys = changes.as_object_mut().unwrap();
    keys.insert("model_type".into(), model_type.into());
    keys.insert("architectures".into(), Value::Null);
    with(&changes)
}

#[test]
fn both_layouts_of_the_rope_base_are_read() {
    assert_eq!(with(&json!({})).unwrap().rope_theta, 10000.0);
    let parameters = json!({"rope_type": "default", "rope_theta": 5000.0});
    let config = with(&json!({"rope_parameters": parameters, "rope_theta": null})).unwrap();
    assert_eq!((config.rope_theta, config.rope_scaling), (5000.0, RopeScaling::None));
}

#[test]
fn what_the_families_differ_in_is_read() {
    let parts = |config: ModelConfig| (config.qk_norm, config.qkv_bias, config.output_bias);
    assert_eq!(parts(with(&json!({})).unwrap()), (true, false, false));
    assert_eq!(parts(with(&json!({"attention_bias": true})).unwrap()), (true, true, true));
    assert_eq!(parts(family("qwen2", json!({})).unwrap()), (false, true, false));
    assert_eq!(parts(family("llama", json!({})).unwrap()), (false, false, false));
    let bias = json!({"attention_bias": true});
    assert_eq!(parts(family("llama", bias).unwrap()), (false, true, true));
    assert!(!with(&json!({"tie_word_embeddings": null})).unwrap().tied);
}

#[test]
fn absent_widths_are_those_of_the_family() {
    let llama = family("llama", json!({"head_dim": null, "num_key_value_heads": null})).unwrap();
    assert_eq!((llama.head_dim, llama.kv_heads), (8, 4));
    assert_eq!(family("qwen2", json!({"head_dim": null})).unwrap().head_dim, 8);
    assert_eq!(family("qwen2", json!({})).unwrap().head_dim, 16);
    let error = with(&json!({"head_dim": null})).unwrap_err().to_string();
    assert!(error.contains("head_dim"), "{error}");
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let refused = [
        ("model_type", json!("qwen3_moe")),
        ("model_type", json!(7)),
        ("architectures", json!(["Qwen3ForSequenceClassification"])),
        ("hidden_act", json!("gelu")),
        ("mlp_bias", json!(true)),
        ("attention_bias", json!("yes")),
        ("use_sliding_window", json!(true)),
        ("layer_types", json!(["full_attention", "sliding_attention"])),
        ("tie_word_embeddings", json!(1)),
        ("num_key_value_heads", json!(3)),
        ("head_dim", json!(15)),
        ("vocab_size", json!(-1)),
        ("intermediate_size", json!(1i64 << 60)),
        ("num_hidden_layers", json!(1 << 24)),
        ("rope_theta", json!(0)),
        ("partial_rotary_factor", json!(0.5)),
        ("original_max_position_embeddings", json!(16)),
        ("quantization_config", json!({"bits": 4})),
        ("num_experts", json!(8)),
        ("rms_norm_eps", json!("1e-6")),
    ];
    for (key, value) in refused {
        let mut changes = Map::new();
        changes.insert(key.to_owned(), value);
        let error = with(&Value::Object(changes)).expect_err(key).to_string();
        assert!(error.contains(key), "{error}");
    }
    let error = family("qwen2", json!({"attention_bias": false})).unwrap_err().to_string();
    assert!(error.contains("attention_bias = false"), "{error}");
    let odd = json!({"head_dim": null, "num_attention_heads": 6});
    let error = family("llama", odd).unwrap_err().to_string();
    assert!(error.contains("hidden_size = 32"), "{error}");
}

#[test]
fn the_written_file_tells_the_dtype_truly_and_keeps_the_rest() {
    let config = with(&json!({})).unwrap();
    let read = |bytes: Vec<u8>| serde_json::from_slice::<Value>(&bytes).unwrap();
    assert_eq!(read(config.to_json())["torch_dtype"], "float32");
    assert_eq!(read(config.to_json())["architectures"][0], "Qwen3ForCausalLM");
    assert_eq!(read(config.to_json_of(tch::Kind::BFloat16)), read(QWEN3.into()));
}
