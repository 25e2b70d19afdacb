//! Our logits against those that Hugging Face transformers computed once, in fp32, for the base
//! model: `cargo xtask compare-transformers --record policy/tests/transformers_logits.json`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::{fs, path::Path};

use ballast_policy::{Device, Policy, Tensor, WEIGHTS_FILE, read_config, read_weights};
use serde_json::Value;

#[test]
fn logits_of_the_base_model_are_those_of_transformers() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let directory = root.join("../examples/market/base");
    let weights = read_weights(&directory.join(WEIGHTS_FILE)).unwrap();
    let policy = Policy::new(read_config(&directory).unwrap(), &weights, Device::Cpu).unwrap();
    let recorded = fs::read_to_string(root.join("tests/transformers_logits.json")).unwrap();
    let recorded: Vec<Value> = serde_json::from_str(&recorded).unwrap();
    assert_eq!(recorded.len(), 3);
    for prompt in recorded {
        let numbers = |key: &str| prompt[key].as_array().unwrap().clone();
        let ids: Vec<i64> = numbers("token_ids").iter().map(|id| id.as_i64().unwrap()).collect();
        let expected: Vec<f64> =
            numbers("logits").iter().map(|logit| logit.as_f64().unwrap()).collect();
        let logits = policy.forward(&Tensor::from_slice(&ids).unsqueeze(0)).detach();
        let last = logits.get(0).get(ids.len() as i64 - 1);
        let difference = (last - Tensor::from_slice(&expected)).abs().max().double_value(&[]);
        assert!(difference < 1e-4, "{difference}");
    }
}
