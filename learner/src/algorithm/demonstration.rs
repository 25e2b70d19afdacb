//! Supervised fine-tuning: the expert's tokens, each with weight one.

use ballast_proto::v1::Trajectory;

use super::TrainingSample;

/// Samples of demonstrations: cross-entropy on every token the expert chose (M1), none elsewhere.
#[must_use]
pub fn supervised(demonstrations: &[Trajectory]) -> Vec<TrainingSample> {
    demonstrations
        .iter()
        .map(|trajectory| {
            let tokens = trajectory.token_ids.len();
            TrainingSample {
                token_ids: trajectory.token_ids.clone(),
                mask: super::grpo::mask(trajectory),
                advantages: vec![0.0; tokens],
                behavior_logprobs: vec![0.0; tokens],
                on_policy: false,
            }
        })
        .collect()
}
