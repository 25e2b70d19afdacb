//! S1: no token is older than the bound when it is trained.

use ballast_proto::v1::TrainBatch;

use super::Checked;

/// The bound.
#[derive(Debug)]
pub(super) struct Staleness {
    /// Versions.
    bound: u64,
}

impl Staleness {
    pub(super) fn new(bound: u64) -> Self {
        Self { bound }
    }

    pub(super) fn on_served(&self, batch: &TrainBatch) -> Checked {
        let held = batch.step.saturating_sub(1);
        for trajectory in batch.groups.iter().flat_map(|group| &group.trajectories) {
            let sampled = trajectory.policy_versions.iter().zip(&trajectory.loss_mask);
            let oldest = sampled.filter(|(_, mask)| **mask != 0).map(|(version, _)| *version).min();
            let staleness = oldest.map_or(0, |oldest| held.saturating_sub(oldest));
            if staleness > self.bound {
                let (step, episode) = (batch.step, trajectory.episode_id);
                let bound = self.bound;
                return Err(format!(
                    "step {step} trains e{episode}, {staleness} versions old; the bound is {bound}"
                ));
            }
        }
        Ok(())
    }
}
