//! J3: a sampled trajectory is in at most one step; batches are served as they were recorded, byte for
//! byte however often; and the weights of a learner have seen no trajectory twice.

use std::collections::{BTreeMap, BTreeSet};

use ballast_proto::v1::{BatchPlanned, TrainBatch};
use prost::Message as _;

use super::Checked;
use crate::trace::Fnv;

type Name = (u64, i32);

/// Sampled trajectories, by the step they were trained in.
type Lineage = BTreeMap<u64, Vec<u64>>;

/// Batches and what they are made of.
#[derive(Debug, Default)]
pub(super) struct Trained {
    planned: BTreeMap<Name, (Vec<u64>, Vec<u64>)>,
    batches: u64,
    /// The step each sampled trajectory is for.
    step_of: BTreeMap<u64, u64>,
    /// Bytes of what was served.
    served: BTreeMap<Name, u64>,
    /// What the weights of each learner have seen.
    seen: BTreeMap<usize, Lineage>,
    /// What those of the newest checkpoint have.
    saved: Lineage,
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

    pub(super) fn on_applied(&mut self, learner: usize, batch: &TrainBatch) -> Checked {
        let seen = self.seen.entry(learner).or_default();
        let known: BTreeSet<u64> = seen.values().flatten().copied().collect();
        let sampled: Vec<u64> = samples(batch).collect();
        let again = sampled.iter().find(|episode| known.contains(episode)).copied();
        let is_made = seen.insert(batch.step, sampled).is_some();
        match again {
            Some(episode) => Err(format!("step {} trains e{episode} again", batch.step)),
            None if is_made => Err(format!("step {} is made twice in one lineage", batch.step)),
            None => Ok(()),
        }
    }

    pub(super) fn on_saved(&mut self, learner: usize) {
        self.saved = self.seen.get(&learner).cloned().unwrap_or_default();
    }

    pub(super) fn on_restored(&mut self, learner: usize) {
        self.seen.insert(learner, self.saved.clone());
    }
}

fn samples(batch: &TrainBatch) -> impl Iterator<Item = u64> {
    batch.groups.iter().flat_map(|group| &group.trajectories).map(|one| one.episode_id)
}
