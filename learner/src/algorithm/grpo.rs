//! Group-relative policy optimization (Shao et al. 2024, DeepSeekMath, eq. 3): the advantage of an
//! episode is its reward relative to its siblings', the same for each of its tokens.

use ballast_proto::{
    PolicyVersion,
    v1::{RolloutGroup, Trajectory},
};

use super::TrainingSample;

/// Keeps the division finite for a group whose rewards are nearly equal.
const STD_EPSILON: f32 = 1e-4;

/// GRPO with or without division by the group's standard deviation.
#[derive(Clone, Copy, Debug)]
pub struct Grpo {
    /// Divide by the standard deviation (GRPO); false leaves the mean-centred reward (Dr.GRPO,
    /// Liu et al. 2025).
    pub divide_by_std: bool,
}

impl Grpo {
    /// Samples of closed groups, for a learner whose weights are `version`. A group whose advantages are all zero teaches nothing and is left
    /// out, which saves its forward pass; a sibling without a reward takes no part (G1).
    #[must_use]
    pub fn samples(&self, groups: &[RolloutGroup], version: PolicyVersion) -> Vec<TrainingSample> {
        groups.iter().flat_map(|group| self.group(group, version)).collect()
    }

    fn group(&self, group: &RolloutGroup, version: PolicyVersion) -> Vec<TrainingSample> {
        let scored: Vec<(&Trajectory, f32)> = group
            .trajectories
            .iter()
            .filter_map(|trajectory| Some((trajectory, trajectory.reward?)))
            .collect();
        let rewards: Vec<f32> = scored.iter().map(|(_, reward)| *reward).collect();
        let advantages = advantages(&rewards, self.divide_by_std);
        if advantages.iter().all(|advantage| *advantage == 0.0) {
            return Vec::new();
        }
        scored
            .iter()
            .zip(advantages)
            .map(|((trajectory, _), advantage)| {
                let mask = mask(trajectory);
                TrainingSample {
                    token_ids: trajectory.token_ids.clone(),
                    advantages: mask.iter().map(|mask| mask * advantage).collect(),
                    behavior_logprobs: trajectory.behavior_logprobs.clone(),
                    on_policy: sampled_under(trajectory, version),
                    mask,
                }
            })
            .collect()
    }
}

/// Group-relative advantages: r - mean, divided by the population standard deviation plus 1e-4 if
/// asked. They sum to zero; equal rewards give exactly zero.
#[must_use]
pub fn advantages(rewards: &[f32], divide_by_std: bool) -> Vec<f32> {
    let count = rewards.len().max(1) as f32;
    if rewards.iter().all(|reward| *reward == rewards[0]) {
        return vec![0.0; rewards.len()];
    }
    let mean = rewards.iter().sum::<f32>() / count;
    let variance = rewards.iter().map(|reward| (reward - mean).powi(2)).sum::<f32>() / count;
    let scale = if divide_by_std { variance.sqrt() + STD_EPSILON } else { 1.0 };
    rewards.iter().map(|reward| (reward - mean) / scale).collect()
}

/// Whether all of a trajectory was sampled under `version`.
fn sampled_under(trajectory: &Trajectory, version: PolicyVersion) -> bool {
    trajectory.sampled_versions.iter().all(|sampled| sampled.policy_version == version.0)
}

/// The loss mask as numbers; the first token has no context to be predicted from.
pub(super) fn mask(trajectory: &Trajectory) -> Vec<f32> {
    let mut mask: Vec<f32> =
        trajectory.loss_mask.iter().map(|bit| if *bit == 0 { 0.0 } else { 1.0 }).collect();
    if let Some(first) = mask.first_mut() {
        *first = 0.0;
    }
    mask
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advantages_are_centred_and_scaled() {
        let with_std = advantages(&[1.0, 0.0, 0.0, 0.0], true);
        // mean 1/4, population standard deviation sqrt(3)/4.
        assert!((with_std[0] - 0.75 / (3f32.sqrt() / 4.0 + 1e-4)).abs() < 1e-6);
        assert!(with_std.iter().sum::<f32>().abs() < 1e-6);
        assert_eq!(advantages(&[1.0, 0.0], false), vec![0.5, -0.5]);
    }

    #[test]
    fn a_group_without_spread_or_without_rewards_is_left_out() {
        let trajectory = |reward| Trajectory {
            token_ids: vec![1, 2],
            loss_mask: vec![0, 1],
            behavior_logprobs: vec![0.0, -1.0],
            reward,
            ..Default::default()
        };
        let grpo = Grpo { divide_by_std: true };
        let group = |rewards: [Option<f32>; 3]| RolloutGroup {
            group_id: 0,
            trajectories: rewards.into_iter().map(trajectory).collect(),
        };
        let samples = |group| grpo.samples(&[group], PolicyVersion(0));
        assert!(samples(group([Some(1.0); 3])).is_empty());
        assert!(samples(group([None; 3])).is_empty());
        // The unscored sibling is absent, not zero.
        let samples = samples(group([Some(1.0), None, Some(0.0)]));
        assert_eq!(samples.len(), 2);
        assert!(samples[0].advantages[1] > 0.0 && samples[1].advantages[1] < 0.0);
        assert_eq!(samples[0].advantages[0], 0.0);
    }
}
