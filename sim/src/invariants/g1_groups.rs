//! G1: a batch has closed groups only, whole but for siblings that were given up, and an
//! infrastructure failure is no reward.

use std::collections::{BTreeMap, BTreeSet};

use ballast_coordinator::engine::EPISODE_ATTEMPTS_MAX;
use ballast_proto::v1::{EpisodeDispatched, RolloutGroup, StopReason, TrainBatch};

use super::Checked;

/// Episodes of each group.
#[derive(Debug)]
pub(super) struct Groups {
    size: usize,
    episodes: BTreeMap<u64, Vec<u64>>,
}

impl Groups {
    pub(super) fn new(size: u32) -> Self {
        Self { size: size as usize, episodes: BTreeMap::new() }
    }

    pub(super) fn on_dispatched(&mut self, one: &EpisodeDispatched) {
        if let Some(group) = one.group_id {
            self.episodes.entry(group).or_default().push(one.episode_id);
        }
    }

    pub(super) fn on_served(
        &self,
        batch: &TrainBatch,
        is_in_flight: impl Fn(u64) -> bool,
    ) -> Checked {
        batch.groups.iter().try_for_each(|group| self.check(group, &is_in_flight))
    }

    fn check(&self, group: &RolloutGroup, is_in_flight: impl Fn(u64) -> bool) -> Checked {
        let id = group.group_id;
        let known = self.episodes.get(&id).map_or(&[][..], Vec::as_slice);
        if let Some(open) = known.iter().find(|episode| is_in_flight(**episode)) {
            return Err(format!("g{id} is trained, and e{open} of it is in flight"));
        }
        let siblings: BTreeSet<u64> = group.trajectories.iter().map(|one| one.episode_id).collect();
        if siblings.len() != group.trajectories.len() || siblings.len() > self.size {
            return Err(format!("g{id} has {} siblings", group.trajectories.len()));
        }
        let missing = self.size - siblings.len();
        let attempts = siblings.len() + missing * EPISODE_ATTEMPTS_MAX as usize;
        if known.len() < attempts {
            return Err(format!("g{id} lacks {missing} siblings that were not given up"));
        }
        for one in &group.trajectories {
            if !known.contains(&one.episode_id) {
                return Err(format!("e{} is not of g{id}", one.episode_id));
            }
            if one.stop_reason() == StopReason::Infrastructure || one.reward.is_none() {
                return Err(format!("e{} of g{id} has no reward", one.episode_id));
            }
        }
        Ok(())
    }
}
