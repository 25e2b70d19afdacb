//! Every family and variant of config.json, against what transformers computes: `models/` is made by
//! `bench/make_model_fixtures.py`, which says what is in it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::{fs, path::PathBuf};

use ballast_policy::{Device, Dtype, Policy, Tensor, set_threads};
use serde::Deserialize;
use tch::Kind;

/// Promised of two fp32 computations of one logit.
const LOGIT_TOLERANCE: f64 = 1e-4;

/// Promised of bf16 against fp32: mean absolute difference of a token's log-probability.
const BF16_TOLERANCE: f64 = 2e-2;

/// What transformers computes from a fixture's checkpoint.
#[derive(Deserialize)]
struct Expected {
    tokens: Vec<u32>,
    positions: Vec<i64>,
    logits: Vec<Vec<f64>>,
    prompt: Vec<u32>,
    greedy: Vec<u32>,
    bf16_gap: f64,
}

struct Fixture {
    name: String,
    directory: PathBuf,
    expected: Expected,
}

fn fixtures() -> Vec<Fixture> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/models");
    let mut fixtures: Vec<Fixture> = fs::read_dir(root)
        .unwrap()
        .map(|entry| {
            let directory = entry.unwrap().path();
            let text = fs::read(directory.join("expected.json")).unwrap();
            let name = directory.file_name().unwrap().to_str().unwrap().to_owned();
            Fixture { name, directory, expected: serde_json::from_slice(&text).unwrap() }
        })
        .collect();
    fixtures.sort_by(|one, other| one.name.cmp(&other.name));
    assert!(fixtures.len() >= 23, "{} fixtures", fixtures.len());
    fixtures
}

impl Fixture {
    fn open(&self, dtype: Dtype) -> Policy {
        set_threads(1);
        Policy::open(&self.directory, Device::Cpu, dtype)
            .unwrap_or_else(|error| panic!("{}: {error}", self.name))
    }

    fn assert_close(&self, what: &str, ours: &Tensor, theirs: &Tensor) {
        let difference = (ours - theirs).abs().max().double_value(&[]);
        assert!(difference < LOGIT_TOLERANCE, "{}, {what}: {difference}", self.name);
    }
}

fn grid(sequence: &[u32]) -> Tensor {
    let tokens: Vec<i64> = sequence.iter().map(|token| i64::from(*token)).collect();
    Tensor::from_slice(&tokens).unsqueeze(0)
}

/// Logits [T, V] of one whole sequence.
fn whole(policy: &Policy, sequence: &[u32]) -> Tensor {
    tch::no_grad(|| policy.forward(&grid(sequence)).squeeze_dim(0))
}

/// Log-probabilities `[T - 1]` of the tokens of a sequence after its first.
fn logprobs(policy: &Policy, sequence: &[u32]) -> Tensor {
    let all = whole(policy, sequence).log_softmax(-1, Kind::Float);
    let targets = grid(&sequence[1..]).squeeze_dim(0).unsqueeze(1);
    all.narrow(0, 0, sequence.len() as i64 - 1).gather(1, &targets, false).squeeze_dim(1)
}

#[test]
fn logits_are_those_of_transformers() {
    for fixture in fixtures() {
        let Expected { tokens, positions, logits, .. } = &fixture.expected;
        let ours = whole(&fixture.open(Dtype::F32), tokens);
        for (position, theirs) in positions.iter().zip(logits) {
            let what = format!("position {position}");
            fixture.assert_close(&what, &ours.get(*position), &Tensor::from_slice(theirs));
        }
    }
}

#[test]
fn greedy_tokens_are_those_of_transformers() {
    for fixture in fixtures() {
        let policy = fixture.open(Dtype::F32);
        let Expected { prompt, greedy, .. } = &fixture.expected;
        let mut cache = policy.cache(1, prompt.len() + greedy.len());
        let mut pending = prompt.clone();
        let mut ours = Vec::new();
        for _ in 0..greedy.len() {
            let logits = policy.extend(&mut cache, &[(0, &pending)]).unwrap();
            let best = logits.argmax(-1, false).int64_value(&[0]);
            pending = vec![u32::try_from(best).unwrap()];
            ours.extend_from_slice(&pending);
        }
        assert_eq!(ours, *greedy, "{}", fixture.name);
    }
}

#[test]
fn prefill_then_decode_is_the_whole_sequence_alone_and_in_a_batch() {
    for fixture in fixtures() {
        let policy = fixture.open(Dtype::F32);
        let tokens = &fixture.expected.tokens;
        let expected = whole(&policy, tokens);
        let mut alone = policy.cache(1, tokens.len());
        let mut batch = policy.cache(3, tokens.len());
        let mut at = 0;
        for step in [40, 1, 1, 13, 1, 24] {
            let appended = &tokens[at..at + step];
            at += step;
            let single = policy.extend(&mut alone, &[(0, appended)]).unwrap().get(0);
            // Neighbours of other lengths: one that prefills, one that decodes.
            let rows = [(0, &tokens[..3]), (1, appended), (2, &tokens[at - 1..at])];
            let batched = policy.extend(&mut batch, &rows).unwrap().get(1);
            fixture.assert_close("extend", &single, &expected.get(at as i64 - 1));
            fixture.assert_close("batched", &batched, &single);
        }
        assert_eq!(at, tokens.len());
    }
}

#[test]
fn a_batch_of_whole_sequences_is_each_alone() {
    for fixture in fixtures() {
        let policy = fixture.open(Dtype::F32);
        let tokens = &fixture.expected.tokens;
        let (one, other) = (&tokens[..30], &tokens[30..60]);
        let both = Tensor::cat(&[grid(one), grid(other)], 0);
        let both = tch::no_grad(|| policy.forward(&both));
        fixture.assert_close("first", &both.get(0), &whole(&policy, one));
        fixture.assert_close("second", &both.get(1), &whole(&policy, other));
    }
}

#[test]
fn bf16_is_near_fp32() {
    let mut worst: (f64, String) = (0.0, String::new());
    for fixture in fixtures() {
        let (exact, fast) = (fixture.open(Dtype::F32), fixture.open(Dtype::Bf16));
        assert_eq!(fast.flat().kind(), Kind::BFloat16);
        let sequence = [&fixture.expected.prompt[..], &fixture.expected.greedy[..]].concat();
        let expected = logprobs(&exact, &sequence);
        let gap = |ours: &Tensor| (ours - &expected).abs().mean(Kind::Float).double_value(&[]);
        let forward = gap(&logprobs(&fast, &sequence));
        // The same tokens through the cache: a prefill, then one by one.
        let mut cache = fast.cache(1, sequence.len());
        let rows: Vec<Tensor> = sequence[..sequence.len() - 1]
            .iter()
            .map(|token| fast.extend(&mut cache, &[(0, &[*token])]).unwrap())
            .collect();
        let targets = grid(&sequence[1..]).squeeze_dim(0).unsqueeze(1);
        let decoded = Tensor::cat(&rows, 0).log_softmax(-1, Kind::Float);
        let decoded = gap(&decoded.gather(1, &targets, false).squeeze_dim(1));
        println!(
            "{:24} mean |dlogprob| forward {forward:.5}, decode {decoded:.5}, transformers {:.5}",
            fixture.name, fixture.expected.bf16_gap
        );
        for gap in [forward, decoded] {
            assert!(gap < BF16_TOLERANCE, "{}: {gap}", fixture.name);
            if gap > worst.0 {
                worst = (gap, fixture.name.clone());
            }
        }
    }
    println!("worst: {} in {}", worst.0, worst.1);
    assert!(worst.0 > 0.0, "bf16 rounds");
}

#[test]
fn what_is_opened_and_saved_is_the_same_bit_for_bit() {
    for fixture in fixtures() {
        let saved = tempfile::tempdir().unwrap();
        let policy = fixture.open(Dtype::F32);
        policy.save(saved.path()).unwrap();
        let again = Policy::open(saved.path(), Device::Cpu, Dtype::F32).unwrap();
        assert!(again.flat().equal(policy.flat()), "{}", fixture.name);
        assert_eq!(again.config(), policy.config(), "{}", fixture.name);
        assert_eq!(policy.save_rounds(), fixture.name != "qwen3_float32", "{}", fixture.name);
        if !fixture.name.contains("sharded") {
            let read = |directory: &std::path::Path| {
                fs::read(directory.join(ballast_policy::WEIGHTS_FILE)).unwrap()
            };
            assert!(read(saved.path()) == read(&fixture.directory), "{}", fixture.name);
        }
    }
}

#[test]
fn gradients_reach_every_leaf() {
    for fixture in fixtures() {
        let policy = fixture.open(Dtype::F32);
        policy.train();
        let logits = policy.forward(&grid(&fixture.expected.tokens));
        (&logits * &logits).sum(Kind::Float).backward();
        for (index, leaf) in policy.leaves().iter().enumerate() {
            let reached = leaf.grad().defined() && leaf.grad().abs().max().double_value(&[]) > 0.0;
            assert!(reached, "{}: leaf {index}", fixture.name);
        }
    }
}
