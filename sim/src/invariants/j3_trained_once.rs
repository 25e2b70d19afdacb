//! J3: a sampled trajectory is in at most one step; batches are served as they were recorded, byte for
//! byte however often; and the weights of a learner have seen no trajectory twice.

use std::collections::{BTreeMap, BTreeSet};

use ballast_proto::v1::{BatchPlanned, StepKind, TrainBatch};
use prost::Message as _;

use super::Checked;
use crate::trace::Fnv;

type Name = (u64, i32);

/// Batches and what they are made of.
#[derive(Debug, Default)]
pub(super) struct Trained {
    planned: BTreeMap<Name, (Vec<u64>, Vec<u64>)>,
    batches: u64,
    /// The step each sampled trajectory is for.
    step_of: BTreeMap<u64, u64>,
    /// Bytes of what was served.
    served: BTreeMap<Name, u64>,
    /// What the weights of the learner have seen, by step.
    seen: BTreeMap<u64, Vec<u64>>,
}

impl Trained {
    pub(super) fn on_planned(&mut self, batch: &BatchPlanned) -> Checked {
        if batch.index != self.batches {
            let next = self.batches;
            return Err(format!("batch {} is recorded, and batch {next} is next", batch.index));
        }
        self.batches += 1;
        let sampled: Vec<u64> =
            batch.groups.iter().flat_map(|group| group.episodes.iter().copied()).collect();
        for episode in &sampled {
            if let Some(step) = self.step_of.insert(*episode, batch.step) {
                return Err(format!("e{episode} is for step {step} and for step {}", batch.step));
            }
        }
        self.planned.insert((batch.step, batch.kind), (sampled, batch.demonstrations.clone()));
        Ok(())
    }

    pub(super) fn on_served(&mut self, batch: &TrainBatch) -> Checked {
        let (step, kind) = (batch.step, batch.kind());
        let Some((sampled, demonstrations)) = self.planned.get(&(step, batch.kind)) else {
            return Err(format!("{kind:?} of step {step} is served, and is not in the journal"));
        };
        let shown = batch.demonstrations.iter().map(|one| one.episode_id);
        if !samples(batch).eq(sampled.iter().copied()) || !shown.eq(demonstrations.iter().copied())
        {
            return Err(format!("{kind:?} of step {step} is not served as it was recorded"));
        }
        let hash = Fnv::of(&batch.encode_to_vec());
        match self.served.insert((step, batch.kind), hash) {
            Some(before) if before != hash => {
                Err(format!("{kind:?} of step {step} is served with other bytes than before"))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn on_applied(&mut self, batch: &TrainBatch) -> Checked {
        let known: BTreeSet<u64> = self.seen.values().flatten().copied().collect();
        let sampled: Vec<u64> = samples(batch).collect();
        let again = sampled.iter().find(|episode| known.contains(episode));
        let again = again.copied();
        let twice = self.seen.insert(batch.step, sampled).is_some();
        match again {
            Some(episode) => Err(format!("step {} trains e{episode} again", batch.step)),
            // SFT batches may repeat; their steps may not.
            None if twice && batch.kind() != StepKind::Checkpoint => {
                Err(format!("step {} is made twice in one lineage", batch.step))
            }
            None => Ok(()),
        }
    }

    /// The weights are those after this step again.
    pub(super) fn on_restored(&mut self, step: u64) {
        self.seen.retain(|seen, _| *seen <= step);
    }
}

fn samples(batch: &TrainBatch) -> impl Iterator<Item = u64> {
    batch.groups.iter().flat_map(|group| &group.trajectories).map(|one| one.episode_id)
}
