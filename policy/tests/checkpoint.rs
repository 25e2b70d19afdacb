//! Checkpoints on disk: round trips are exact, and damaged files are named.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use ballast_policy::{ModelConfig, Policy, read_config, read_weights, write_weights};
use tch::Device;

const CONFIG: &str = r#"{
    "model_type": "qwen3", "vocab_size": 16, "hidden_size": 8, "intermediate_size": 12,
    "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4,
    "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "max_position_embeddings": 16,
    "tie_word_embeddings": true, "hidden_act": "silu"
}"#;

fn policy(seed: i64) -> Policy {
    Policy::random(ModelConfig::from_json(CONFIG.as_bytes()).unwrap(), seed, Device::Cpu)
}

#[test]
fn weights_survive_the_disk_bit_for_bit() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.safetensors");
    let (written, other) = (policy(1), policy(2));
    write_weights(&path, &written.named_tensors()).unwrap();
    other.load(&read_weights(&path).unwrap()).unwrap();
    assert!(other.flat().equal(written.flat()));
}

#[test]
fn a_truncated_file_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.safetensors");
    write_weights(&path, &policy(1).named_tensors()).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    for length in [0, 4, 40, bytes.len() - 1] {
        std::fs::write(&path, &bytes[..length]).unwrap();
        let message = read_weights(&path).unwrap_err().to_string();
        assert!(message.contains("model.safetensors is truncated"), "{message}");
    }
}

#[test]
fn a_missing_directory_is_named() {
    let message = read_config(std::path::Path::new("/nowhere/model")).unwrap_err().to_string();
    assert!(message.starts_with("/nowhere/model/config.json"), "{message}");
}

#[test]
fn tensors_that_do_not_fit_change_nothing() {
    let policy = policy(1);
    let before = policy.flat().copy();
    let mut tensors: std::collections::BTreeMap<_, _> =
        policy.named_tensors().into_iter().map(|(name, t)| (name, t.copy() + 1.0)).collect();
    let norm = tensors.remove("model.norm.weight").unwrap();
    assert!(policy.load(&tensors).unwrap_err().to_string().contains("lacks the tensor model.norm"));
    tensors.insert("model.norm.weight".into(), norm.narrow(0, 0, 3));
    assert!(policy.load(&tensors).unwrap_err().to_string().contains("has shape [3]"));
    assert!(policy.flat().equal(&before));
}
