use super::*;
use crate::testing::{network, tokenizer};

fn decoder(slots: usize, rows: usize) -> TorchDecoder {
    let policy = network(1);
    let cache = CacheConfig {
        bytes_max: Some(KvCache::slot_bytes(policy.config(), 256, Dtype::F32) * rows as u64),
        ..CacheConfig::default()
    };
    TorchDecoder::bounded(policy, tokenizer().control().all(), slots, 256, cache).expect("room")
}

fn prompt(seed: u32, tokens: u32) -> Vec<u32> {
    (0..tokens).map(|at| (seed * 97 + at * 31) % tokenizer().vocab_size() as u32).collect()
}

/// Samples `count` tokens of one slot alone: token and log-probability of each.
fn alone(decoder: &mut TorchDecoder, slot: usize, count: usize) -> Vec<(u32, f32)> {
    (0..count)
        .map(|_| {
            let sampled = decoder.step(&[slot]).expect("a step");
            (sampled[0].token, sampled[0].logprob)
        })
        .collect()
}

/// The same tokens, and log-probabilities to 1e-4.
fn assert_same(one: &[(u32, f32)], other: &[(u32, f32)]) {
    assert_eq!(one.len(), other.len());
    for (index, ((token, logprob), (expected, near))) in one.iter().zip(other).enumerate() {
        assert_eq!(token, expected, "token {index}");
        assert!((logprob - near).abs() < 1e-4, "token {index}: {logprob} {near}");
    }
}

#[test]
fn a_seed_gives_the_same_tokens_alone_and_among_others() {
    let mut lonely = decoder(1, 1);
    lonely.open(0, Sampling::new(3, 1.0));
    lonely.feed(0, &prompt(3, 20));
    let expected = alone(&mut lonely, 0, 40);

    let mut crowded = decoder(32, 32);
    let all: Vec<usize> = (0..32).collect();
    for slot in 0..32u32 {
        // Neighbours of other lengths and other ways to sample; half of them siblings of slot 17.
        let seed = if slot == 17 { 3 } else { 100 + u64::from(slot) };
        let filtered =
            Sampling { top_k: slot % 4 * 5, ..Sampling::new(seed, 0.5 + slot as f32 / 20.0) };
        let sampling = if slot == 17 { Sampling::new(3, 1.0) } else { filtered };
        crowded.open(slot as usize, sampling);
        let tokens = if slot % 2 == 1 { prompt(3, 20) } else { prompt(slot, 5 + 3 * slot) };
        crowded.feed(slot as usize, &tokens);
    }
    let among: Vec<(u32, f32)> = (0..40)
        .map(|_| {
            let sampled = crowded.step(&all).expect("a step");
            assert_eq!(sampled.len(), 32);
            (sampled[17].token, sampled[17].logprob)
        })
        .collect();
    assert_same(&among, &expected);
}

#[test]
fn an_evicted_sequence_goes_on_as_if_nothing_had_happened() {
    let run = |rows: usize| {
        let mut decoder = decoder(3, rows);
        let mut parts = vec![Vec::new(); 3];
        for slot in 0..3 {
            decoder.open(slot, Sampling::new(slot as u64, 1.0));
            decoder.feed(slot, &prompt(slot as u32, 30));
        }
        // In turns: the others wait for a tool.
        for round in 0..4 {
            for (slot, part) in parts.iter_mut().enumerate() {
                decoder.feed(slot, &prompt(40 + round, 12));
                part.extend(alone(&mut decoder, slot, 5));
            }
        }
        (parts, decoder.work())
    };
    let (roomy, unbothered) = run(3);
    let (tight, work) = run(1);
    assert_eq!(unbothered.evictions, 0);
    assert_eq!(work.evictions, 11, "every turn but the first takes the row of another");
    assert!(work.prefill_computed > 2 * unbothered.prefill_computed, "{work:?}");
    for (tight, roomy) in tight.iter().zip(&roomy) {
        assert_same(tight, roomy);
    }
}

#[test]
fn borrowed_keys_give_the_log_probabilities_of_own_ones() {
    let mut decoder = decoder(2, 2);
    decoder.open(0, Sampling::new(1, 1.0));
    decoder.feed(0, &prompt(1, 60));
    alone(&mut decoder, 0, 3);
    decoder.open(1, Sampling::new(9, 1.0));
    decoder.feed(1, &prompt(1, 60));
    let borrowed = alone(&mut decoder, 1, 20);
    assert_eq!(decoder.work().prefill_saved, 59);

    let mut other = self::decoder(1, 1);
    other.open(0, Sampling::new(9, 1.0));
    other.feed(0, &prompt(1, 60));
    assert_same(&borrowed, &alone(&mut other, 0, 20));
    assert_eq!(other.work().prefill_saved, 0);
}

#[test]
fn a_long_prefill_in_pieces_is_the_same_network() {
    let tokens = 3 * PREFILL_ROW_TOKENS_MAX as u32 + 7;
    let policy = network(1);
    let control = tokenizer().control().all();
    let mut decoder = TorchDecoder::new(policy, control, 1, tokens as usize + 1);
    decoder.open(0, Sampling::new(1, 1.0));
    decoder.feed(0, &prompt(5, tokens));
    let sampled = decoder.step(&[0]).expect("a step")[0];
    let all = prompt(5, tokens).iter().map(|token| i64::from(*token)).collect::<Vec<_>>();
    let logits = decoder.policy.forward(&Tensor::from_slice(&all).unsqueeze(0));
    let last = logits.get(0).get(i64::from(tokens) - 1).log_softmax(-1, None);
    let expected = last.double_value(&[i64::from(sampled.token)]);
    assert!((f64::from(sampled.logprob) - expected).abs() < 1e-4);
}

#[test]
fn memory_for_not_even_one_sequence_is_refused_with_the_remedy() {
    let cache = CacheConfig { bytes_max: Some(1000), ..CacheConfig::default() };
    let control = tokenizer().control().all();
    let error = TorchDecoder::bounded(network(1), control, 2, 256, cache).expect_err("too little");
    assert!(error.0.contains("raise actor.kv_cache_mib"), "{error}");
}
