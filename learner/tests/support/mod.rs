//! A small model, and batches for it.

use std::{path::Path, sync::OnceLock};

use ballast_learner::new_model::{self, Shape};
use ballast_proto::v1::{
    Mode, Role, RolloutGroup, SampledVersion, Span, StepKind, StopReason, TaskRef, TrainBatch,
    Trajectory,
};
use ballast_runtime::config::Config;
use tempfile::TempDir;

/// A small model, made once: its tokenizer takes a second to train.
pub(crate) fn model() -> &'static Path {
    static MODEL: OnceLock<TempDir> = OnceLock::new();
    let directory = MODEL.get_or_init(|| {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let shape = Shape {
            vocab_size: 400,
            hidden_size: 16,
            intermediate_size: 24,
            layers: 2,
            heads: 2,
            kv_heads: 1,
            head_dim: 8,
            positions_max: 64,
        };
        new_model::create(directory.path(), "market", &shape, 1).expect("a model");
        directory
    });
    directory.path()
}

pub(crate) fn config(runs: &Path) -> Config {
    let mut config = Config::default();
    config.run.directory = runs.to_owned();
    config.model.checkpoint = model().to_owned();
    // The small model has no more positions.
    config.episode.trajectory_tokens_max = 64;
    config
}

pub(crate) fn trajectory(episode_id: u64, tokens: usize, reward: f32) -> Trajectory {
    let start = 2;
    let sampled = |at: usize| at >= start;
    Trajectory {
        episode_id,
        group_id: Some(0),
        task: Some(TaskRef::default()),
        mode: Mode::Explore.into(),
        token_ids: (0..tokens).map(|at| ((at as u64 * 7 + episode_id) % 300) as u32).collect(),
        loss_mask: (0..tokens).map(|at| u8::from(sampled(at))).collect(),
        behavior_logprobs: (0..tokens).map(|at| if sampled(at) { -5.0 } else { 0.0 }).collect(),
        policy_versions: vec![0; tokens],
        sampled_versions: vec![SampledVersion { policy_version: 0, manifest_hash: vec![0; 32] }],
        spans: vec![
            Span { role: Role::User.into(), start: 0, end: start as u32, ..Default::default() },
            Span {
                role: Role::Assistant.into(),
                start: start as u32,
                end: tokens as u32,
                ..Default::default()
            },
        ],
        stop_reason: StopReason::Done.into(),
        reward: Some(reward),
        success: Some(reward > 0.5),
        ..Default::default()
    }
}

pub(crate) fn sft(step: u64) -> TrainBatch {
    let demonstration =
        |id| Trajectory { mode: Mode::Demonstrate.into(), ..trajectory(id, 12, 1.0) };
    TrainBatch {
        step,
        kind: StepKind::Sft.into(),
        demonstrations: vec![demonstration(step), demonstration(step + 1)],
        learning_rate: 1e-2,
        ..Default::default()
    }
}

pub(crate) fn rl(step: u64) -> TrainBatch {
    let trajectories = (0..4).map(|id| trajectory(id, 8 + id as usize, (id % 2) as f32)).collect();
    TrainBatch {
        step,
        kind: StepKind::Rl.into(),
        groups: vec![RolloutGroup { group_id: 0, trajectories }],
        learning_rate: 1e-3,
        ..Default::default()
    }
}

pub(crate) fn checkpoint(step: u64) -> TrainBatch {
    TrainBatch { step, kind: StepKind::Checkpoint.into(), ..Default::default() }
}
