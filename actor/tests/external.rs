//! The external decoder on a real `ballast-actor serve`, against the decoder in this process.

#![cfg(feature = "torch")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[expect(dead_code, reason = "another client speaks HTTP")]
mod support;

use std::{fs, path::Path, time::Duration};

use ballast_actor::{
    assignment::{Assignment, Limits},
    decoder::{Decoder, DecoderFactory, Sampled, Sampling},
    engine::{Engine, Outcome, RunIndex},
    external::ExternalDecoderFactory,
    torch_decoder::TorchDecoderFactory,
    weights::StagedPolicy,
};
use ballast_chat::{TemplateFiles, Tokenizer};
use ballast_policy::{Device, Dtype, Policy, Tensor, tensor_bytes};
use ballast_proto::{
    EpisodeId, GroupId, ManifestHash, PolicyVersion,
    v1::{Mode, StopReason, TensorEntry, Trajectory},
};
use ballast_runtime::config::ActorEngine;
use serde_json::json;

use support::{Server, model};

const TOKENS_MAX: usize = 512;
const SLOTS: usize = 8;

/// The shipped network with its weights scaled: 1 is itself, anything else another network.
fn network(scale: f64) -> Policy {
    let policy = Policy::open(&model(), Device::Cpu, Dtype::F32).unwrap();
    for (_, mut tensor) in policy.named_tensors() {
        let _scaled = tensor.g_mul_scalar_(scale);
    }
    policy
}

fn staged(version: u64, scale: f64) -> StagedPolicy {
    let tensors = network(scale).named_tensors().into_iter().map(|(name, tensor)| {
        let shape = tensor.size().into_iter().map(i64::unsigned_abs).collect();
        let entry = TensorEntry { name, dtype: "F32".into(), shape, hash: Vec::new() };
        (entry, tensor_bytes(&tensor).into())
    });
    StagedPolicy {
        policy_version: PolicyVersion(version),
        manifest_hash: ManifestHash([version as u8; 32]),
        tensors: tensors.collect(),
        config_json: fs::read(model().join("config.json")).unwrap().into(),
        tokenizer_json: fs::read(model().join("tokenizer.json")).unwrap().into(),
        template_files: TemplateFiles::default(),
    }
}

fn factory(server: &Server, spool: &Path, patience_s: f64) -> ExternalDecoderFactory {
    let engine = ActorEngine {
        kind: "ballast".into(),
        url: format!("http://{}/v1", server.address),
        patience_s,
        ..ActorEngine::default()
    };
    ExternalDecoderFactory::new(&engine, spool.to_owned(), None).unwrap()
}

fn external(server: &Server, spool: &Path) -> Box<dyn Decoder> {
    factory(server, spool, 30.0).build(&staged(1, 1.0), SLOTS, TOKENS_MAX).unwrap()
}

fn local() -> Box<dyn Decoder> {
    let mut factory = TorchDecoderFactory::new("cpu", 1).unwrap();
    factory.build(&staged(1, 1.0), SLOTS, TOKENS_MAX).unwrap()
}

fn encoded(text: &str) -> Vec<u32> {
    Tokenizer::of_directory(&model()).unwrap().encode(text).unwrap()
}

fn prompt(slot: usize) -> Vec<u32> {
    encoded(&format!("<|im_start|>user\ncost of {slot} lamp<|im_end|>\n<|im_start|>assistant\n"))
}

fn open(decoder: &mut dyn Decoder, slot: usize, temperature: f32) {
    decoder.open(slot, Sampling::new(slot as u64, temperature));
    decoder.feed(slot, &prompt(slot));
}

/// The next `count` tokens of each slot, which a step may leave out.
fn sample(decoder: &mut dyn Decoder, slots: &[usize], count: usize) -> Vec<Vec<Sampled>> {
    let mut sampled = vec![Vec::new(); SLOTS];
    loop {
        let unfinished = |slot: &usize| sampled[*slot].len() < count;
        let want: Vec<usize> = slots.iter().copied().filter(unfinished).collect();
        if want.is_empty() {
            return sampled;
        }
        let step = decoder.step(&want).unwrap();
        assert!(!step.is_empty() && step.is_sorted_by_key(|one| one.slot));
        for one in step {
            assert!(want.contains(&one.slot));
            sampled[one.slot].push(one);
        }
    }
}

fn assert_same(one: &[Vec<Sampled>], other: &[Vec<Sampled>]) {
    for (one, other) in one.iter().flatten().zip(other.iter().flatten()) {
        assert_eq!((one.slot, one.token), (other.slot, other.token));
        let numbers = |sampled: &Sampled| {
            let three = [sampled.logprob, sampled.policy_logprob, sampled.entropy];
            [&three[..], &sampled.control_probs].concat()
        };
        for (one, other) in numbers(one).into_iter().zip(numbers(other)) {
            assert!((one - other).abs() < 1e-4, "{one} against {other}");
        }
    }
    let tokens = |all: &[Vec<Sampled>]| all.iter().map(Vec::len).collect::<Vec<_>>();
    assert_eq!(tokens(one), tokens(other));
}

#[test]
fn eight_slots_say_what_the_local_decoder_says_also_after_a_tools_result() {
    let (server, spool) = (Server::start(&[]), tempfile::tempdir().unwrap());
    let (mut external, mut local) = (external(&server, spool.path()), local());
    let all: Vec<usize> = (0..SLOTS).collect();
    let tool = encoded("\n<|im_start|>user\n<tool_response>\n42\n</tool_response><|im_end|>\n");
    for slot in &all {
        open(&mut *external, *slot, 0.0);
        open(&mut *local, *slot, 0.0);
    }
    // Past the ends of messages, where the server stops by itself.
    assert_same(&sample(&mut *external, &all, 40), &sample(&mut *local, &all, 40));
    for slot in [1, 6] {
        external.feed(slot, &tool);
        local.feed(slot, &tool);
    }
    external.close(3);
    local.close(3);
    let left = [0, 1, 2, 4, 5, 6, 7];
    assert_same(&sample(&mut *external, &left, 12), &sample(&mut *local, &left, 12));
}

#[test]
fn both_log_probabilities_of_a_warm_sample_are_right() {
    let (server, spool) = (Server::start(&[]), tempfile::tempdir().unwrap());
    let mut external = external(&server, spool.path());
    open(&mut *external, 0, 0.7);
    let sampled = sample(&mut *external, &[0], 20).swap_remove(0);
    let prompt = prompt(0);
    let tokens: Vec<i64> =
        prompt.iter().copied().chain(sampled.iter().map(|s| s.token)).map(i64::from).collect();
    let logits = network(1.0).forward(&Tensor::from_slice(&tokens).unsqueeze(0)).squeeze_dim(0);
    for (at, sampled) in sampled.iter().enumerate() {
        let place = [(prompt.len() + at - 1) as i64, i64::from(sampled.token)];
        let under = |temperature: f64| {
            (&logits / temperature).log_softmax(-1, None).double_value(&place) as f32
        };
        assert!((sampled.policy_logprob - under(1.0)).abs() < 1e-4, "{sampled:?}");
        assert!((sampled.logprob - under(0.7)).abs() < 1e-4, "{sampled:?}");
    }
}

#[test]
fn new_weights_decide_the_very_next_token() {
    let (server, spool) = (Server::start(&[]), tempfile::tempdir().unwrap());
    let (mut external, mut local) = (external(&server, spool.path()), local());
    let mut factory = TorchDecoderFactory::new("cpu", 1).unwrap();
    for slot in [0, 1] {
        open(&mut *external, slot, 0.0);
        open(&mut *local, slot, 0.0);
    }
    let before = sample(&mut *external, &[0, 1], 6);
    let unchanged = sample(&mut *local, &[0, 1], 16);
    external.load(&staged(2, 0.5)).unwrap();
    let after = sample(&mut *external, &[0, 1], 10);
    // A decoder that never had other weights, on the same sequences.
    let mut fresh = factory.build(&staged(2, 0.5), SLOTS, TOKENS_MAX).unwrap();
    for slot in [0, 1] {
        open(&mut *fresh, slot, 0.0);
        let tokens: Vec<u32> = before[slot].iter().map(|sampled| sampled.token).collect();
        fresh.feed(slot, &tokens);
    }
    assert_same(&after, &sample(&mut *fresh, &[0, 1], 10));
    let ids = |sampled: &[Sampled]| sampled.iter().map(|s| s.token).collect::<Vec<_>>();
    assert_ne!(ids(&after[0]), ids(&unchanged[0][6..]), "the weights matter");
    let info = server.get("/model_info").json();
    assert!(info["weight_version"].as_str().unwrap().starts_with("policy-2-"), "{info}");
    assert_eq!(fs::read_dir(spool.path()).unwrap().count(), 1, "the older version is removed");
}

#[test]
fn a_server_that_dies_is_told_and_one_that_comes_back_gets_its_weights_again() {
    let (server, spool) = (Server::start(&[]), tempfile::tempdir().unwrap());
    let address = server.address.clone();
    let mut factory = factory(&server, spool.path(), 3.0);
    let mut external = factory.build(&staged(2, 0.5), SLOTS, TOKENS_MAX).unwrap();
    open(&mut *external, 0, 0.0);
    let before = sample(&mut *external, &[0], 4);
    drop(server);
    // What the server sent before it died is sound; then there is nothing more.
    let mut steps = (0..TOKENS_MAX).map(|_| external.step(&[0]));
    let error = steps.find_map(Result::err).unwrap();
    assert!(error.0.contains(&address) && error.0.contains("patience"), "{error}");

    let _server = Server::start_on(&address, &[]);
    open(&mut *external, 1, 0.0);
    open(&mut *external, 0, 0.0);
    let again = sample(&mut *external, &[0, 1], 4);
    assert_same(&before, &again[..1].iter().chain(&vec![vec![]; 7]).cloned().collect::<Vec<_>>());
}

const LIMITS: Limits = Limits {
    turns_max: 6,
    message_tokens_max: 48,
    trajectory_tokens_max: TOKENS_MAX,
    duration_max: Duration::from_secs(120),
};

fn assignment(id: u64, temperature: f32) -> Assignment {
    Assignment {
        episode_id: EpisodeId(id),
        group_id: Some(GroupId(0)),
        task: ballast_arena::task("market", "train", id, 3),
        mode: Mode::Explore,
        min_policy_version: None,
        sampling: Sampling::new(id, temperature),
        limits: LIMITS,
    }
}

/// Whole episodes, with version 2 adopted after `swap_after` steps.
fn episodes(
    factory: impl DecoderFactory + 'static,
    temperature: f32,
    swap_after: Option<usize>,
) -> Vec<Trajectory> {
    let clock = Box::new(|| Duration::ZERO);
    let mut engine = Engine::new(Box::new(factory), SLOTS, TOKENS_MAX, clock);
    engine.adopt(&staged(1, 1.0)).unwrap();
    for id in 0..SLOTS as u64 {
        engine.assign(RunIndex(0), assignment(id, temperature)).unwrap();
    }
    let mut trajectories = Vec::new();
    for step in 0.. {
        if !engine.is_runnable() {
            break;
        }
        if Some(step) == swap_after {
            engine.adopt(&staged(2, 0.9)).unwrap();
        }
        trajectories.extend(engine.step().into_iter().map(|report| match report.outcome {
            Outcome::Finished(trajectory) => *trajectory,
            Outcome::Returned { reason, .. } => panic!("{reason}"),
        }));
    }
    trajectories.sort_by_key(|trajectory| trajectory.episode_id);
    trajectories
}

#[test]
fn whole_episodes_are_those_of_the_local_engine() {
    let (server, spool) = (Server::start(&[]), tempfile::tempdir().unwrap());
    let outside = episodes(factory(&server, spool.path(), 30.0), 0.0, None);
    let inside = episodes(TorchDecoderFactory::new("cpu", 1).unwrap(), 0.0, None);
    assert_eq!(outside.len(), SLOTS);
    for (outside, inside) in outside.iter().zip(&inside) {
        assert_ne!(outside.stop_reason(), StopReason::Infrastructure);
        assert_eq!(outside.token_ids, inside.token_ids);
        assert_eq!(outside.loss_mask, inside.loss_mask);
        assert_eq!((outside.reward, outside.success), (inside.reward, inside.success));
        for (one, other) in outside.behavior_logprobs.iter().zip(&inside.behavior_logprobs) {
            assert!((one - other).abs() < 1e-4, "{one} against {other}");
        }
        let masses = [outside.control_token_mass.unwrap(), inside.control_token_mass.unwrap()];
        assert!((masses[0] - masses[1]).abs() < 1e-4, "{masses:?}");
    }
    let turns = |trajectory: &Trajectory| trajectory.spans.len();
    assert!(outside.iter().any(|trajectory| turns(trajectory) > 4), "some call tools");
}

#[test]
fn every_token_of_an_episode_is_that_of_its_version() {
    let (server, spool) = (Server::start(&[]), tempfile::tempdir().unwrap());
    let trajectories = episodes(factory(&server, spool.path(), 30.0), 1.0, Some(20));
    let networks = [network(1.0), network(0.9)];
    let mut seen = [0, 0];
    for trajectory in &trajectories {
        let ids: Vec<i64> = trajectory.token_ids.iter().map(|id| i64::from(*id)).collect();
        let batch = Tensor::from_slice(&ids).unsqueeze(0);
        let scored = networks
            .each_ref()
            .map(|network| network.forward(&batch).squeeze_dim(0).log_softmax(-1, None));
        for at in (0..ids.len()).filter(|at| trajectory.loss_mask[*at] == 1) {
            let version = trajectory.policy_versions[at] as usize - 1;
            seen[version] += 1;
            let expected = scored[version].double_value(&[at as i64 - 1, ids[at]]) as f32;
            let told = trajectory.behavior_logprobs[at];
            assert!((told - expected).abs() < 1e-4, "v{}: {told} and {expected}", version + 1);
        }
    }
    // A step samples one token at least.
    assert!(seen.iter().all(|count| *count >= 20), "{seen:?}");
}

#[test]
fn a_directory_that_is_no_checkpoint_of_this_model_changes_nothing() {
    let server = Server::start(&[]);
    let asked = json!({"prompt": "lamp", "max_tokens": 8, "temperature": 0, "ignore_eos": true,
        "return_token_ids": true});
    let tokens =
        || server.post("/v1/completions", &asked).json()["choices"][0]["token_ids"].clone();
    let before = tokens();
    let update = |path: &Path| {
        let body = json!({"model_path": path, "weight_version": "new"});
        server.post("/update_weights_from_disk", &body)
    };

    let directory = tempfile::tempdir().unwrap();
    let refused = |expected: &str| {
        let answer = update(directory.path());
        assert_eq!(answer.status, 400, "{answer:?}");
        assert!(answer.body.contains(expected), "{answer:?} lacks {expected}");
        assert_eq!(answer.json()["success"], false);
        assert_eq!(tokens(), before);
        assert_eq!(server.get("/model_info").json()["weight_version"], "default");
    };
    refused("model.safetensors");
    network(0.5).save(directory.path()).unwrap();
    fs::write(directory.path().join("tokenizer.json"), "{}").unwrap();
    refused("another tokenizer.json");
    fs::remove_file(directory.path().join("tokenizer.json")).unwrap();
    let config = fs::read_to_string(directory.path().join("config.json")).unwrap();
    let other = config.replace("10000.0", "20000.0");
    assert_ne!(config, other);
    fs::write(directory.path().join("config.json"), other).unwrap();
    refused("another config.json than");
    fs::write(directory.path().join("config.json"), config).unwrap();
    network(f64::NAN).save(directory.path()).unwrap();
    refused("NaN");
    let answer = server.post("/update_weights_from_disk", &json!({"path": "x"}));
    assert!(answer.status == 400 && answer.body.contains("model_path"), "{answer:?}");

    network(0.5).save(directory.path()).unwrap();
    assert_eq!(update(directory.path()).json()["success"], true);
    assert_ne!(tokens(), before);
    assert_eq!(server.get("/model_info").json()["weight_version"], "new");
    let elsewhere = Server::start_on("0.0.0.0:0", &[]);
    let answer = elsewhere.post("/update_weights_from_disk", &json!({"model_path": model()}));
    assert_eq!(answer.status, 403, "{answer:?}");
    assert!(answer.body.contains("--allow-weight-updates"), "{answer:?}");
}
