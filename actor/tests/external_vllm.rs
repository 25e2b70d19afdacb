//! The external decoder against what a real vLLM answered, recorded by `bench/record_vllm.py`: a
//! message, another one after a tool's result, and two changes of weights.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[expect(dead_code, reason = "nothing is cut or left here")]
mod double;

use std::{
    collections::VecDeque,
    fs,
    path::Path,
    sync::{Arc, Mutex},
};

use ballast_actor::{
    decoder::{Decoder, DecoderFactory as _, Sampled, Sampling},
    external::ExternalDecoderFactory,
    weights::StagedPolicy,
};
use ballast_proto::{ManifestHash, PolicyVersion, v1::TensorEntry};
use ballast_runtime::config::ActorEngine;
use serde::Deserialize;
use serde_json::{Value, json};

use double::{Asked, Double, End, Reply};

/// As the recording's `TOKENS_MAX`.
const TOKENS_MAX: usize = 72;

#[derive(Deserialize)]
struct Recording {
    prompt: Vec<u32>,
    tool: Vec<u32>,
    control: [u32; 8],
    exchanges: VecDeque<Exchange>,
}

#[derive(Clone, Deserialize)]
struct Exchange {
    method: String,
    path: String,
    body: Value,
    status: u16,
    answer: String,
}

/// What a recorded completion says: token, log-probability, and the control tokens by their ids.
type Spoken = (u32, f64, Value);

impl Exchange {
    fn spoken(&self) -> Vec<Spoken> {
        let data = self.answer.lines().filter_map(|line| line.strip_prefix("data: {"));
        let choice = |data: &str| -> Value {
            let event: Value = serde_json::from_str(&format!("{{{data}")).unwrap();
            event["choices"][0].clone()
        };
        // A server that is faster than its client tells several tokens at once.
        let spoken = |choice: Value| -> Vec<Spoken> {
            let (ids, told) = (choice["token_ids"].as_array().unwrap(), &choice["logprobs"]);
            let one = |(at, id): (usize, &Value)| {
                let logprob = told["token_logprobs"][at].as_f64().unwrap();
                (id.as_u64().unwrap() as u32, logprob, told["top_logprobs"][at].clone())
            };
            ids.iter().enumerate().map(one).collect()
        };
        data.map(choice).flat_map(spoken).collect()
    }

    /// Whether this is what was recorded. Where the weights lie and how requests are seeded is ours.
    fn matches(&self, asked: &Asked) -> bool {
        let mut body = asked.body.clone();
        if let Some(path) = body.pointer_mut("/kwargs/weights_path") {
            let directory = Path::new(path.as_str().unwrap()).to_owned();
            for file in ["config.json", "tokenizer.json", "model.safetensors"] {
                assert!(directory.join(file).is_file(), "{} has no {file}", directory.display());
            }
            *path = json!("SPOOL");
        }
        if let Some(seed) = body.as_object_mut().and_then(|body| body.remove("seed")) {
            assert!(seed.as_i64().is_some_and(|seed| seed >= 0), "{seed}");
        }
        let mut recorded = self.body.clone();
        recorded.as_object_mut().map(|body| body.remove("seed"));
        (&self.method, &self.path, &recorded) == (&asked.method, &asked.path, &body)
    }
}

fn recording() -> Recording {
    serde_json::from_str(include_str!("external_vllm.json")).unwrap()
}

/// A version whose head is not its embedding, as the recorded ones.
fn staged(version: u64) -> StagedPolicy {
    let name = "lm_head.weight".into();
    let head = TensorEntry { name, dtype: "F32".into(), shape: vec![1], hash: Vec::new() };
    let base = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/market/base"));
    StagedPolicy {
        policy_version: PolicyVersion(version),
        manifest_hash: ManifestHash([version as u8; 32]),
        tensors: vec![(head, vec![0; 4].into())],
        config_json: fs::read(base.join("config.json")).unwrap().into(),
        tokenizer_json: fs::read(base.join("tokenizer.json")).unwrap().into(),
        template_files: ballast_chat::TemplateFiles::default(),
    }
}

/// Answers with the recording, and with nothing else; the version may be asked for at any time.
fn replay(mut left: VecDeque<Exchange>, asked: &Asked, version: &Mutex<String>) -> Reply {
    if asked.path == "/weight_info" {
        return Reply::new(200, version.lock().unwrap().clone());
    }
    let next = left.pop_front().expect("an exchange");
    assert!(next.matches(asked), "{asked:?}\nis not {} {} {}", next.method, next.path, next.body);
    let pieces = cut_anywhere(&next.answer);
    Reply { status: next.status, pieces, end: End::Whole, gate: None }
}

/// Pieces whose borders have nothing to do with the events'.
fn cut_anywhere(text: &str) -> Vec<String> {
    let characters: Vec<char> = text.chars().collect();
    characters.chunks(97).map(|piece| piece.iter().collect()).collect()
}

fn say(decoder: &mut dyn Decoder, count: usize) -> Vec<Sampled> {
    (0..count).map(|_| decoder.step(&[0]).unwrap()[0]).collect()
}

fn assert_same(sampled: &[Sampled], spoken: &[Spoken], control: &[u32; 8]) {
    assert_eq!(sampled.len(), spoken.len());
    for (sampled, (token, logprob, top)) in sampled.iter().zip(spoken) {
        assert_eq!(sampled.token, *token);
        assert!((f64::from(sampled.logprob) - logprob).abs() < 1e-6, "{sampled:?}");
        assert_eq!(sampled.logprob, sampled.policy_logprob);
        assert!(sampled.entropy.is_nan(), "vLLM does not tell it");
        for (prob, id) in sampled.control_probs.iter().zip(control) {
            let expected = top[format!("token_id:{id}")].as_f64().unwrap().exp();
            assert!((f64::from(*prob) - expected).abs() < 1e-6, "{sampled:?}");
        }
    }
}

#[test]
fn an_episode_with_a_tool_and_two_versions_is_what_vllm_said() {
    let Recording { prompt, tool, control, exchanges } = recording();
    let completions: Vec<Vec<Spoken>> = exchanges
        .iter()
        .filter(|exchange| exchange.path == "/v1/completions" && exchange.status == 200)
        .map(Exchange::spoken)
        .collect();
    let [first, second, under_v2, under_v1] = &completions[..] else { panic!("another recording") };
    let stops = [control[1], control[2]];
    assert!(stops.contains(&first.last().unwrap().0), "the first message ends by itself");
    assert!(under_v1.iter().map(|s| s.0).ne(under_v2.iter().map(|s| s.0)), "weights matter");

    // Versions are told after each change; the rest comes in its order.
    let versions = |exchange: &&Exchange| exchange.path == "/weight_info";
    let told: VecDeque<String> =
        exchanges.iter().filter(versions).map(|exchange| exchange.answer.clone()).collect();
    let told = Arc::new(Mutex::new(told));
    let left: VecDeque<Exchange> =
        exchanges.iter().filter(|exchange| !versions(exchange)).cloned().collect();
    let left = Arc::new(Mutex::new(left));
    let version = Arc::new(Mutex::new(String::new()));
    let (rest, replayed) = (Arc::clone(&left), Arc::clone(&version));
    let server = Double::start(move |asked| {
        let mut left = left.lock().unwrap();
        let reply = replay(left.clone(), asked, &version);
        if asked.path != "/weight_info" {
            left.pop_front();
        }
        if asked.path == "/resume" {
            *version.lock().unwrap() = told.lock().unwrap().pop_front().unwrap();
        }
        reply
    });
    let spool = tempfile::tempdir().unwrap();
    let engine =
        ActorEngine { kind: "vllm".into(), url: server.url.clone(), ..ActorEngine::default() };
    let factory = ExternalDecoderFactory::new(&engine, spool.path().to_owned(), None);
    let mut decoder = factory.unwrap().build(&staged(1), 1, TOKENS_MAX).unwrap();

    decoder.open(0, Sampling::new(3, 1.0));
    decoder.feed(0, &prompt);
    assert_same(&say(&mut *decoder, first.len()), first, &control);
    decoder.feed(0, &tool);
    assert_same(&say(&mut *decoder, second.len()), second, &control);
    decoder.close(0);
    for (weights, spoken) in [(2, under_v2), (1, under_v1)] {
        decoder.load(&staged(weights)).unwrap();
        decoder.open(0, Sampling::new(3, 0.0));
        decoder.feed(0, &prompt);
        assert_same(&say(&mut *decoder, spoken.len()), spoken, &control);
        decoder.close(0);
    }
    assert_eq!(rest.lock().unwrap().len(), 2, "only the refusals are left");
    assert!(replayed.lock().unwrap().contains("policy-1-"));
}

#[test]
fn a_vllm_that_would_mislead_is_refused() {
    let described = recording().exchanges.pop_front().unwrap();
    assert!(described.path.starts_with("/server_info"));
    let refusal = |logprobs: &str, policy: &StagedPolicy| {
        let answer = described.answer.clone();
        let server = Double::start(move |asked| {
            assert!(asked.path.starts_with("/server_info"), "{} comes too early", asked.path);
            Reply::new(200, answer.clone())
        });
        let spool = tempfile::tempdir().unwrap();
        let engine = ActorEngine {
            kind: "vllm".into(),
            url: server.url,
            logprobs: logprobs.into(),
            ..ActorEngine::default()
        };
        let factory = ExternalDecoderFactory::new(&engine, spool.path().to_owned(), None);
        let mut decoder = factory.unwrap().build(policy, 1, TOKENS_MAX).unwrap();
        decoder.open(0, Sampling::new(3, 1.0));
        decoder.feed(0, &[1]);
        decoder.step(&[0]).unwrap_err().0
    };
    let error = refusal("processed", &staged(1));
    assert!(error.contains("--logprobs-mode raw_logprobs"), "{error}");
    let error = refusal("raw", &StagedPolicy { tensors: Vec::new(), ..staged(1) });
    assert!(error.contains("tie_word_embeddings"), "{error}");
}

#[test]
fn what_vllm_refuses_is_passed_on() {
    let refusals = recording().exchanges.into_iter().filter(|exchange| exchange.status != 200);
    let refusals: Vec<Exchange> = refusals.collect();
    for (refused, told) in refusals.iter().zip(["max_tokens must be at least 1", "model weights"]) {
        let refusal = refused.clone();
        let server = Double::start(move |asked| {
            if asked.path == refusal.path {
                return Reply::new(refusal.status, refusal.answer.clone());
            }
            Reply::new(200, "{\"success\": true}")
        });
        let spool = tempfile::tempdir().unwrap();
        let engine =
            ActorEngine { kind: "vllm".into(), url: server.url.clone(), ..ActorEngine::default() };
        let factory = ExternalDecoderFactory::new(&engine, spool.path().to_owned(), None);
        let mut decoder = factory.unwrap().build(&staged(1), 1, TOKENS_MAX).unwrap();
        decoder.open(0, Sampling::new(3, 1.0));
        decoder.feed(0, &[1]);
        let error = decoder.step(&[0]).unwrap_err();
        assert!(error.0.contains(told), "{error}");
    }
    assert_eq!(refusals.len(), 2);
}
