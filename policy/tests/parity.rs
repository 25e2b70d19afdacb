//! The two forward passes are one network: whole sequences against tokens appended over a cache.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use ballast_policy::{KvCache, ModelConfig, Policy, Sampler};
use tch::{Device, Kind, Tensor};

const CONFIG: &str = r#"{
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": 48,
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "max_position_embeddings": 64,
    "tie_word_embeddings": true, "hidden_act": "silu"
}"#;

fn policy() -> Policy {
    let config = ModelConfig::from_json(CONFIG.as_bytes()).unwrap();
    let policy = Policy::random(config, 1, Device::Cpu);
    // Weights large enough that attention is far from uniform.
    tch::no_grad(|| {
        let scaled = policy.flat() * 4.0;
        policy.flat().shallow_clone().copy_(&scaled);
    });
    policy
}

/// Log-probabilities [T, V] of one whole sequence.
fn whole(policy: &Policy, tokens: &[u32]) -> Tensor {
    let tokens: Vec<i64> = tokens.iter().map(|token| i64::from(*token)).collect();
    let logits = policy.forward(&Tensor::from_slice(&tokens).unsqueeze(0));
    logits.squeeze_dim(0).log_softmax(-1, Kind::Float).detach()
}

fn worst(a: &Tensor, b: &Tensor) -> f64 {
    (a - b).abs().max().double_value(&[])
}

#[test]
fn prefill_and_decode_agree_with_the_whole_sequence() {
    check_parity([0, 1, 2]);
}

#[test]
fn slots_with_idle_ones_between_them_agree_too() {
    check_parity([1, 2, 4]);
}

#[test]
fn slots_far_apart_agree_too() {
    check_parity([2, 9, 11]);
}

#[test]
fn slots_out_of_order_agree_too() {
    check_parity([1, 4, 2]);
}

/// Three sequences of other lengths and cuts, in the given slots of a cache that was used before.
fn check_parity(slots: [usize; 3]) {
    let policy = policy();
    let [first, second, third] = slots;
    let sequences: [(usize, Vec<u32>, Vec<usize>); 3] = [
        (first, (0..20).collect(), vec![7, 1, 1, 9, 2]),
        (second, (5..23).rev().collect(), vec![1, 1, 12, 1, 3]),
        (third, vec![3; 15], vec![3, 3, 3, 3, 3]),
    ];
    let mut cache = KvCache::new(policy.config(), 12, 32, Device::Cpu);
    for slot in 0..12 {
        let _logits = policy.extend(&mut cache, &[(slot, &[40, 41, 42, 43])]).unwrap();
        cache.clear(slot);
    }
    let mut at = [0usize; 3];
    for round in 0..5 {
        let appended: Vec<(usize, &[u32])> = sequences
            .iter()
            .enumerate()
            .map(|(row, (slot, tokens, cuts))| (*slot, &tokens[at[row]..at[row] + cuts[round]]))
            .collect();
        let logprobs = policy.extend(&mut cache, &appended).unwrap().log_softmax(-1, Kind::Float);
        for (row, (_, tokens, cuts)) in sequences.iter().enumerate() {
            at[row] += cuts[round];
            let expected = whole(&policy, tokens).get(at[row] as i64 - 1);
            let difference = worst(&logprobs.get(row as i64), &expected);
            assert!(difference < 1e-4, "row {row}, round {round}: {difference}");
        }
    }
}

#[test]
fn padding_after_a_sequence_changes_nothing_before_it() {
    let policy = policy();
    let bare = whole(&policy, &[1, 2, 3]);
    let padded = whole(&policy, &[1, 2, 3, 9, 9, 9]).narrow(0, 0, 3);
    assert!(worst(&bare, &padded) < 1e-4);
}

#[test]
fn a_full_slot_is_an_error_and_changes_nothing() {
    let policy = policy();
    let mut cache = KvCache::new(policy.config(), 2, 4, Device::Cpu);
    let _logits = policy.extend(&mut cache, &[(0, &[1, 2, 3])]).unwrap();
    let error = policy.extend(&mut cache, &[(0, &[4, 5])]).unwrap_err();
    assert_eq!(error.to_string(), "slot 0 is full: 5 tokens do not fit in its 4");
    assert_eq!(cache.length(0), 3);
}

#[test]
fn a_copied_prefix_is_as_good_as_a_computed_one() {
    let policy = policy();
    let tokens: Vec<u32> = (0..20).collect();
    let mut cache = KvCache::new(policy.config(), 3, 32, Device::Cpu);
    let _logits = policy.extend(&mut cache, &[(2, &tokens[..12])]).unwrap();
    // Slot 0 holds 5 of the tokens already, behind them others that it drops.
    let _logits = policy.extend(&mut cache, &[(0, &[0, 1, 2, 3, 4, 40, 41])]).unwrap();
    cache.truncate(0, 5);
    cache.copy_prefix(2, 0, 11).unwrap();
    assert_eq!(cache.length(0), 11);
    let logits = policy.extend(&mut cache, &[(0, &tokens[11..])]).unwrap();
    let logprobs = logits.squeeze_dim(0).log_softmax(-1, Kind::Float);
    assert!(worst(&logprobs, &whole(&policy, &tokens).get(19)) < 1e-4);
    let error = cache.copy_prefix(2, 1, 13).unwrap_err();
    assert_eq!(error.to_string(), "slot 2 holds 12 tokens; 13 of them cannot be copied");
}

#[test]
fn sampled_logprobs_are_those_of_the_whole_sequence() {
    let policy = policy();
    let mut cache = KvCache::new(policy.config(), 2, 64, Device::Cpu);
    let mut samplers = [Sampler::new(1, 1.0), Sampler::new(2, 1.0)];
    let mut sequences = [vec![1u32, 2, 3], vec![7u32]];
    let mut logprobs: [Vec<f32>; 2] = [Vec::new(), Vec::new()];
    let mut pending = sequences.clone();
    for _ in 0..30 {
        let appended: Vec<(usize, &[u32])> =
            pending.iter().enumerate().map(|(slot, tokens)| (slot, tokens.as_slice())).collect();
        let logits = policy.extend(&mut cache, &appended).unwrap();
        let mut rows: Vec<&mut Sampler> = samplers.iter_mut().collect();
        for (row, draw) in Sampler::draw(&mut rows, &logits, &[]).into_iter().enumerate() {
            sequences[row].push(draw.token);
            logprobs[row].push(draw.logprob);
            pending[row] = vec![draw.token];
        }
    }
    for (sequence, sampled) in sequences.iter().zip(&logprobs) {
        let all = whole(&policy, sequence);
        let start = sequence.len() - sampled.len();
        for (offset, logprob) in sampled.iter().enumerate() {
            let position = (start + offset) as i64;
            let expected = all.double_value(&[position - 1, i64::from(sequence[start + offset])]);
            assert!((f64::from(*logprob) - expected).abs() < 1e-4);
        }
    }
}
