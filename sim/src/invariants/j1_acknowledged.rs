//! J1: what an actor saw acknowledged is in the journal, and is what the actor made. With it M2, what
//! is trained is what was sampled, and S1's other half: no sound trajectory is left out.

use std::collections::{BTreeMap, BTreeSet};

use ballast_proto::{
    EpisodeId,
    v1::{Mode, TrainBatch, Trajectory},
    verify_trajectory,
};
use bytes::Bytes;
use prost::Message as _;

use super::Checked;
use crate::trace::Fnv;

/// What is wrong with a trajectory, on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Blemish {
    /// The world failed.
    Infrastructure,
    /// It could not be scored.
    Unscored,
    /// The expert failed.
    FailedDemonstration,
    /// Its arrays differ in length (M1).
    Mangled,
    /// It is of another task.
    WrongTask,
    /// A token is outside the vocabulary.
    OutsideVocabulary,
    /// It was sampled under weights that nobody published.
    UnknownWeights,
    /// It was sampled under an older version than asked for.
    Stale,
}

#[derive(Debug)]
struct Made {
    hash: u64,
    blemish: Option<Blemish>,
}

/// Trajectories and what became of them.
#[derive(Debug)]
pub(super) struct Trajectories {
    made: BTreeMap<u64, Made>,
    finished: BTreeSet<u64>,
    acknowledged: BTreeSet<u64>,
    learner_repeats: bool,
}

impl Trajectories {
    /// `learner_repeats`: whether a step that is trained again comes out the same.
    pub(super) fn new(learner_repeats: bool) -> Self {
        let (made, finished, acknowledged) = Default::default();
        Self { made, finished, acknowledged, learner_repeats }
    }

    pub(super) fn on_made(&mut self, trajectory: &Trajectory, blemish: Option<Blemish>) {
        let hash = Fnv::of(&trajectory.encode_to_vec());
        self.made.insert(trajectory.episode_id, Made { hash, blemish });
    }

    pub(super) fn on_finished(&mut self, episode: u64, payload: &Bytes) -> Checked {
        self.finished.insert(episode);
        match self.made.get(&episode) {
            None => Err(format!("e{episode} is finished, and no actor has made it")),
            Some(made) if made.hash != Fnv::of(payload) => {
                Err(format!("the trajectory of e{episode} is not the one its actor made"))
            }
            Some(_) => Ok(()),
        }
    }

    pub(super) fn on_acknowledged(&mut self, episode: u64) -> Checked {
        self.acknowledged.insert(episode);
        match self.finished.contains(&episode) {
            true => Ok(()),
            false => Err(format!("e{episode} is acknowledged, and is not in the journal")),
        }
    }

    pub(super) fn on_cancelled(&self, episode: u64, reason: &str) -> Checked {
        let blemish = self.made.get(&episode).and_then(|made| made.blemish);
        let fits = match reason {
            "invalid" => matches!(
                blemish,
                Some(Blemish::Mangled | Blemish::WrongTask | Blemish::OutsideVocabulary)
            ),
            _ => true,
        };
        if fits {
            Ok(())
        } else {
            Err(format!("e{episode} is refused, and nothing is wrong with it"))
        }
    }

    pub(super) fn on_unused(&self, episode: u64, reason: &str) -> Checked {
        let blemish = self.made.get(&episode).and_then(|made| made.blemish);
        let fits = match reason {
            "infrastructure" => blemish == Some(Blemish::Infrastructure),
            "unscored" => blemish == Some(Blemish::Unscored),
            "failed_demonstration" => blemish == Some(Blemish::FailedDemonstration),
            "stale" => blemish == Some(Blemish::Stale),
            // Another set of weights took the place of those it was sampled under.
            "unknown_weights" => blemish == Some(Blemish::UnknownWeights) || !self.learner_repeats,
            _ => false,
        };
        match fits {
            true => Ok(()),
            false => {
                Err(format!("e{episode} is left out ({reason}), and nothing is wrong with it"))
            }
        }
    }

    pub(super) fn on_served(&self, batch: &TrainBatch, vocabulary: u32) -> Checked {
        let sampled = batch.groups.iter().flat_map(|group| &group.trajectories);
        for one in sampled.chain(&batch.demonstrations) {
            let (episode, step) = (one.episode_id, batch.step);
            let hash = Fnv::of(&one.encode_to_vec());
            if self.made.get(&episode).is_none_or(|made| made.hash != hash) {
                return Err(format!("step {step} trains an e{episode} that no actor made"));
            }
            let largest = one.token_ids.iter().copied().max().unwrap_or(0);
            if vocabulary > 0 && largest >= vocabulary && one.mode() != Mode::Demonstrate {
                let what = "outside the vocabulary";
                return Err(format!("step {step} trains e{episode}, with token {largest} {what}"));
            }
        }
        Ok(())
    }

    pub(super) fn acknowledged(&self) -> impl Iterator<Item = EpisodeId> {
        self.acknowledged.iter().map(|episode| EpisodeId(*episode))
    }
}

/// M1, once more where it matters.
pub(super) fn fit_together(batch: &TrainBatch) -> Checked {
    let sampled = batch.groups.iter().flat_map(|group| &group.trajectories);
    let fits = |one| verify_trajectory(one).map_err(|fault| fault.to_string());
    sampled.chain(&batch.demonstrations).try_for_each(fits)
}
