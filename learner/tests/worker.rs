//! The worker between batches: resuming is exact, bad input is refused by name and changes nothing.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::{fs, path::Path};

use ballast_learner::{
    algorithm::TrainingSample,
    loss::Clip,
    optimizer::{AdamW, Loss, MomentsByLoss},
    train::{LossKind, Part, StepReport, Trainer},
    worker::{self, Completed, Worker, load_policy},
};
use ballast_policy::{ModelConfig, Policy, WEIGHTS_FILE, read_weights, write_weights_bf16};
use ballast_proto::v1::{StepKind, TrainBatch};
use support::{checkpoint, config, model, rl, sft};

const METRICS_DOCUMENT: &str = include_str!("../../docs/metrics.md");

fn perform(worker: &mut Worker, batch: &TrainBatch) -> Completed {
    worker.perform(batch).expect("a step")
}

#[test]
fn a_run_continued_from_a_checkpoint_is_bit_identical() {
    let runs = tempfile::tempdir().unwrap();
    let mut whole = Worker::open(&config(runs.path())).unwrap();
    perform(&mut whole, &sft(1));
    perform(&mut whole, &rl(2));
    let saved = perform(&mut whole, &checkpoint(2)).checkpoint.unwrap();
    assert!(saved.ends_with("run/checkpoints/step-2"));
    let hashes = [rl(3), sft(4)].map(|batch| perform(&mut whole, &batch).manifest_hash);

    let mut resumed = Worker::open(&config(runs.path())).unwrap();
    assert_eq!(resumed.last_step(), 2);
    let again = [rl(3), sft(4)].map(|batch| perform(&mut resumed, &batch).manifest_hash);
    assert_eq!(again, hashes);
}

#[test]
fn a_checkpoint_keeps_the_dtype_it_started_from_and_resumes_what_was_rounded() {
    let (runs, initial) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    copy_of_model(initial.path());
    let weights = initial.path().join(WEIGHTS_FILE);
    let tensors: Vec<_> = read_weights(&weights).unwrap().into_iter().collect();
    write_weights_bf16(&weights, &tensors).unwrap();
    let mut config = config(runs.path());
    config.model.checkpoint = initial.path().to_owned();

    let mut whole = Worker::open(&config).unwrap();
    perform(&mut whole, &sft(1));
    let saved = perform(&mut whole, &checkpoint(1)).checkpoint.unwrap();
    let written = fs::read_to_string(saved.join("config.json")).unwrap();
    assert!(written.contains("\"torch_dtype\": \"bfloat16\""), "{written}");
    let kinds = read_weights(&saved.join(WEIGHTS_FILE)).unwrap().into_values();
    assert!(kinds.map(|tensor| tensor.kind()).all(|kind| kind == tch::Kind::BFloat16));

    let mut resumed = Worker::open(&config).unwrap();
    assert_eq!(resumed.manifest_hash(), whole.manifest_hash());
    let next = [&mut whole, &mut resumed].map(|worker| perform(worker, &rl(2)).manifest_hash);
    assert_eq!(next[0], next[1]);
}

#[test]
fn an_embedding_with_more_rows_than_tokens_is_accepted() {
    let (runs, initial) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    copy_of_model(initial.path());
    let path = initial.path().join("config.json");
    let mut json: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    json["vocab_size"] = 512.into();
    let json = serde_json::to_vec(&json).unwrap();
    fs::write(&path, &json).unwrap();
    let padded = ModelConfig::from_json(&json).unwrap();
    let padded = Policy::random(padded, 1, ballast_policy::Device::Cpu);
    padded.save(initial.path()).unwrap();
    let mut config = config(runs.path());
    config.model.checkpoint = initial.path().to_owned();
    assert!(Worker::open(&config).is_ok());
}

#[test]
fn every_kind_of_step_changes_the_weights_and_reports_its_numbers() {
    let runs = tempfile::tempdir().unwrap();
    let mut worker = Worker::open(&config(runs.path())).unwrap();
    let start = worker.manifest_hash();
    let first = perform(&mut worker, &sft(1));
    let second = perform(&mut worker, &rl(2));
    assert!(start != first.manifest_hash && first.manifest_hash != second.manifest_hash);
    assert!(first.metrics["loss/cross_entropy"] > 1.0);
    assert!(second.metrics.contains_key("loss/policy_gradient"));
    assert!(second.metrics["train/gradient_norm"] > 0.0);
    for name in first.metrics.keys().chain(second.metrics.keys()) {
        let row = format!("\n| `{name}` | ");
        assert!(METRICS_DOCUMENT.contains(&row), "docs/metrics.md does not list {name}");
    }
    // The versions of the batch are not the learner's, so there is no gap to measure.
    assert!(!second.metrics.contains_key("train/logprob_gap_max"));
}

#[test]
fn a_batch_out_of_order_or_with_a_broken_trajectory_changes_nothing() {
    let runs = tempfile::tempdir().unwrap();
    let mut worker = Worker::open(&config(runs.path())).unwrap();
    let before = worker.manifest_hash();
    let late = worker.perform(&sft(3)).unwrap_err().to_string();
    assert!(late.contains("step 3 after step 0"), "{late}");
    let mut broken = rl(1);
    broken.groups[0].trajectories[1].loss_mask.pop();
    let invalid = worker.perform(&broken).unwrap_err().to_string();
    assert!(invalid.contains("loss_mask has 8 entries for 9 tokens"), "{invalid}");
    assert_eq!((worker.last_step(), worker.manifest_hash()), (0, before));
}

#[test]
fn a_reward_that_is_not_finite_is_refused_before_it_reaches_the_loss() {
    let runs = tempfile::tempdir().unwrap();
    let mut worker = Worker::open(&config(runs.path())).unwrap();
    let mut batch = rl(1);
    batch.groups[0].trajectories[1].reward = Some(f32::NAN);
    let error = worker.perform(&batch).unwrap_err().to_string();
    assert!(error.contains("reward holds an impossible number"), "{error}");
}

#[test]
fn a_checkpoint_keeps_the_run_it_belongs_to() {
    let of_run = |batch: TrainBatch, run_id: &str| TrainBatch { run_id: run_id.into(), ..batch };
    let runs = tempfile::tempdir().unwrap();
    let mut worker = Worker::open(&config(runs.path())).unwrap();
    assert_eq!(worker.run_id(), "", "initial weights belong to no run");
    perform(&mut worker, &of_run(sft(1), "one"));
    let saved = perform(&mut worker, &of_run(checkpoint(1), "one")).checkpoint.unwrap();
    let mut resumed = Worker::open(&config(runs.path())).unwrap();
    assert_eq!((resumed.run_id(), resumed.last_step()), ("one", 1));
    let foreign = resumed.perform(&of_run(sft(2), "two")).unwrap_err().to_string();
    assert!(foreign.contains("run two") && foreign.contains("run one"), "{foreign}");
    assert_eq!(resumed.last_step(), 1);
    // As it was before runs had an identity.
    let state = saved.join("trainer_state.json");
    let text = fs::read_to_string(&state).unwrap();
    let older = text.replace("\"run_id\": \"one\",", "");
    assert!(older.len() < text.len(), "{text}");
    fs::write(&state, older).unwrap();
    assert_eq!(Worker::open(&config(runs.path())).unwrap().run_id(), "");
}

fn copy_of_model(target: &Path) {
    for entry in fs::read_dir(model()).expect("a model") {
        let entry = entry.expect("a file");
        fs::copy(entry.path(), target.join(entry.file_name())).expect("a copy");
    }
}

#[test]
fn a_checkpoint_that_cannot_be_used_is_named_with_its_fault() {
    let runs = tempfile::tempdir().unwrap();
    type Fault = (&'static str, fn(&Path));
    let faults: [Fault; 6] = [
        ("model.safetensors is truncated", |directory| {
            let path = directory.join("model.safetensors");
            let bytes = fs::read(&path).unwrap();
            fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        }),
        ("model.safetensors: No such file", |directory| {
            fs::remove_file(directory.join("model.safetensors")).unwrap();
        }),
        ("vocab_size", |directory| {
            let path = directory.join("tokenizer.json");
            let mut json: serde_json::Value =
                serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            let added = json["added_tokens"].as_array_mut().unwrap();
            let mut extra = added[0].clone();
            let last = added.iter().map(|token| token["id"].as_u64().unwrap()).max().unwrap();
            extra["id"] = (last + 1).into();
            extra["content"] = "<|extra|>".into();
            added.push(extra);
            fs::write(&path, serde_json::to_vec(&json).unwrap()).unwrap();
        }),
        ("episode.trajectory_tokens_max is 64; set that to 32 or less", |directory| {
            let path = directory.join("config.json");
            let text = fs::read_to_string(&path).unwrap();
            let (from, to) = ("embeddings\": 64", "embeddings\": 32");
            assert!(text.contains(from), "{text}");
            fs::write(&path, text.replace(from, to)).unwrap();
        }),
        ("<tool_call>", |directory| {
            let path = directory.join("tokenizer.json");
            let text = fs::read_to_string(&path).unwrap();
            fs::write(&path, text.replace("\"<tool_call>\"", "\"<other>\"")).unwrap();
        }),
        ("config.json: not a JSON object", |directory| {
            fs::write(directory.join("config.json"), b"{").unwrap();
        }),
    ];
    for (expected, plant) in faults {
        let directory = tempfile::tempdir().unwrap();
        copy_of_model(directory.path());
        plant(directory.path());
        let mut config = config(runs.path());
        config.model.checkpoint = directory.path().to_owned();
        let message = Worker::open(&config).unwrap_err().to_string();
        assert!(message.contains(expected), "{expected}: {message}");
    }
}

#[test]
fn a_checkpoint_that_was_cut_off_does_not_count() {
    let runs = tempfile::tempdir().unwrap();
    let mut worker = Worker::open(&config(runs.path())).unwrap();
    perform(&mut worker, &sft(1));
    perform(&mut worker, &checkpoint(1));
    // What a kill during the save of step 2 leaves behind.
    let partial = runs.path().join("run/checkpoints/.step-2.partial");
    fs::create_dir_all(&partial).unwrap();
    fs::write(partial.join("config.json"), b"{").unwrap();
    let mut again = Worker::open(&config(runs.path())).unwrap();
    assert_eq!(again.last_step(), 1);
    perform(&mut again, &sft(2));
    assert!(perform(&mut again, &checkpoint(2)).checkpoint.unwrap().is_dir());
    assert!(!partial.exists());
}

#[test]
fn a_save_that_the_disk_refuses_can_be_tried_again() {
    let runs = tempfile::tempdir().unwrap();
    let mut worker = Worker::open(&config(runs.path())).unwrap();
    perform(&mut worker, &sft(1));
    // A file where the directory belongs refuses like a full disk does.
    let root = runs.path().join("run/checkpoints");
    fs::create_dir_all(root.parent().unwrap()).unwrap();
    fs::write(&root, b"").unwrap();
    assert!(matches!(worker.perform(&checkpoint(1)), Err(worker::Error::Checkpoint(_))));
    assert!(!worker.is_saved());
    fs::remove_file(&root).unwrap();
    perform(&mut worker, &checkpoint(1));
    assert!(worker.is_saved());
}

#[test]
fn a_checkpoint_is_whole_though_the_initial_one_is_gone() {
    let runs = tempfile::tempdir().unwrap();
    let initial = tempfile::tempdir().unwrap();
    copy_of_model(initial.path());
    let mut config = config(runs.path());
    config.model.checkpoint = initial.path().to_owned();
    let mut worker = Worker::open(&config).unwrap();
    assert!(worker.is_saved(), "nothing is trained yet");
    drop(initial);
    perform(&mut worker, &sft(1));
    assert!(!worker.is_saved());
    perform(&mut worker, &checkpoint(1));
    assert_eq!(Worker::open(&config).unwrap().last_step(), 1);
}

#[test]
fn a_gradient_that_is_not_finite_is_never_applied() {
    let policy = load_policy(model(), ballast_policy::Device::Cpu).unwrap();
    let before = policy.flat().copy();
    let optimizer = AdamW::new(0.9, 0.95, 0.0, MomentsByLoss::new());
    let mut trainer = Trainer::new(policy, optimizer, 1.0, 64);
    let sample = |advantage: f32| TrainingSample {
        token_ids: vec![1, 2, 3],
        mask: vec![0.0, 1.0, 1.0],
        advantages: vec![0.0, advantage, 1.0],
        behavior_logprobs: vec![0.0, -5.0, -5.0],
        on_policy: false,
    };
    let part =
        |sample| Part::whole(vec![sample], LossKind::PolicyGradient(Clip { low: 0.2, high: 0.2 }));
    let report = trainer.step(&[part(sample(f32::INFINITY))], 1e-2);
    assert!(report.skipped && trainer.policy().flat().equal(&before));
    // Nothing of the bad step stays behind in the gradients or the optimizer.
    let report = trainer.step(&[part(sample(1.0))], 1e-2);
    assert!(!report.skipped && !trainer.policy().flat().equal(&before));
    assert_eq!(trainer.optimizer().moments()[&Loss::PolicyGradient].steps, 1);
}

/// Gradient norm of one step on these parts, and what it said.
fn step_on(parts: &[Part]) -> StepReport {
    let policy = load_policy(model(), ballast_policy::Device::Cpu).unwrap();
    let optimizer = AdamW::new(0.9, 0.95, 0.0, MomentsByLoss::new());
    Trainer::new(policy, optimizer, 1.0, 64).step(parts, 1e-3)
}

#[test]
fn a_joint_step_is_the_weighted_sum_of_its_parts_each_a_mean_over_its_own_tokens() {
    let sample = |tokens: usize| TrainingSample {
        token_ids: (1..=tokens as u32).collect(),
        mask: (0..tokens).map(|at| f32::from(u8::from(at > 0))).collect(),
        advantages: vec![0.5; tokens],
        behavior_logprobs: vec![-6.0; tokens],
        on_policy: false,
    };
    let imitate = |tokens, weight| Part {
        weight,
        ..Part::whole(vec![sample(tokens)], LossKind::CrossEntropy)
    };
    let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-4 * b.abs().max(1.0), "{a} {b}");
    let one = step_on(&[imitate(9, 1.0)]);
    let joint = step_on(&[imitate(9, 1.0), imitate(9, 2.5)]);
    close(joint.gradient_norm, 3.5 * one.gradient_norm);
    close(joint.loss, 3.5 * one.loss);
    // Twice the tokens of one part do not make it weigh more.
    let twice = Part { samples: vec![sample(9), sample(9)], ..imitate(9, 1.0) };
    close(step_on(&[imitate(9, 1.0), twice]).gradient_norm, 2.0 * one.gradient_norm);

    let explore =
        Part::whole(vec![sample(5)], LossKind::PolicyGradient(Clip { low: 0.2, high: 0.2 }));
    let alone = step_on(std::slice::from_ref(&explore));
    close(step_on(&[explore.clone(), imitate(9, 0.0)]).gradient_norm, alone.gradient_norm);
    let joint = step_on(&[explore, imitate(9, 0.3)]);
    close(joint.loss, alone.loss + 0.3 * one.loss);
    assert_eq!(joint.policy_gradient, alone.policy_gradient);
    assert_eq!(joint.cross_entropy, one.cross_entropy);
}

#[test]
fn a_joint_batch_trains_on_both_and_a_reset_forgets_the_moments() {
    let runs = tempfile::tempdir().unwrap();
    let mut worker = Worker::open(&config(runs.path())).unwrap();
    let joint = |step, reset_optimizer| TrainBatch {
        kind: StepKind::Joint.into(),
        demonstrations: sft(step).demonstrations,
        sft_weight: 0.5,
        reset_optimizer,
        ..rl(step)
    };
    let completed = perform(&mut worker, &joint(1, false));
    for name in ["loss/policy_gradient", "loss/cross_entropy"] {
        assert!(completed.metrics.contains_key(name), "{completed:?}");
    }
    // A first step of Adam moves every parameter by the learning rate, whatever came before: with
    // the moments of step 1 it would not.
    let moved = |reset| {
        let runs = tempfile::tempdir().unwrap();
        let mut worker = Worker::open(&config(runs.path())).unwrap();
        perform(&mut worker, &joint(1, false));
        perform(&mut worker, &joint(2, reset)).manifest_hash
    };
    assert_ne!(moved(true), moved(false));
}
