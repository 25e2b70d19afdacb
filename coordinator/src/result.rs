//! `result.json`: what a run came to, written once at its end.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A whole run in numbers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RunResult {
    /// Name of the run.
    pub run: String,
    /// Seed of the run.
    pub seed: u64,
    /// "finished", or "stopped" when somebody ended it early.
    pub outcome: &'static str,
    /// Finished optimizer steps.
    pub steps: u64,
    /// Steps the cold start took; absent when it did not end.
    pub cold_start_step: Option<u64>,
    /// Checkpoints, oldest first.
    pub checkpoints: Vec<CheckpointResult>,
    /// Evaluations, oldest first.
    pub evaluations: Vec<Evaluated>,
    /// Episodes by fate (J2), and durable ones that could not be used, by reason.
    pub episodes: Episodes,
    /// Seconds from the start of the coordinator to the end of the run.
    pub wall_s: f64,
    /// Tokens of all finished optimizer steps, prompts included.
    pub train_tokens: u64,
    /// Seconds the learner had for them.
    pub train_s: f64,
    /// Tokens sampled in durable trajectories, demonstrations not included.
    pub rollout_tokens: u64,
    /// Seconds in which at least one episode was in flight.
    pub rollout_s: f64,
}

/// A checkpoint directory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CheckpointResult {
    /// Last optimizer step in it.
    pub step: u64,
    /// Where it is, as the learner reported it.
    pub path: String,
}

/// One evaluation.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Evaluated {
    /// "cold_start_check", "after_cold_start" or "final".
    pub name: String,
    /// Policy version evaluated.
    pub policy_version: u64,
    /// Episodes scored.
    pub episodes: u32,
    /// Episodes that were fully right.
    pub successes: u32,
    /// Tool calls per episode, mean.
    pub calls_mean: f64,
    /// Share of assistant messages with a malformed, unknown or ill-typed call.
    pub invalid_call_rate: f64,
}

/// Episodes by fate: dispatched = finished + cancelled + in_flight (J2).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Episodes {
    /// Assignments sent.
    pub dispatched: u64,
    /// Trajectories made durable.
    pub finished: u64,
    /// Assignments that ended without a trajectory.
    pub cancelled: u64,
    /// Assignments whose end was not waited for.
    pub in_flight: u64,
    /// Cancelled, by reason.
    pub cancelled_by_reason: BTreeMap<String, u64>,
    /// Finished and not used, by reason; each was dispatched anew.
    pub unused_by_reason: BTreeMap<String, u64>,
}
