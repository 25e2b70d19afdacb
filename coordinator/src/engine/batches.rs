//! The sequence of batches and the learner's place in it.
//!
//! Every batch gets an index, in order. A batch is served at most [`SERVED_AHEAD_MAX`] before the
//! learner's answers; that it is in the journal by then is the driver's doing. Batches are kept from
//! the newest finished checkpoint on, so a learner that crashed gets the same ones again, byte for
//! byte (J3, J4).
//!
//! Invariant: `answered <= served <= recorded`, all of them positions in one sequence.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
};

use ballast_proto::{
    EpisodeId, Generation, GroupId,
    v1::{BatchGroup, BatchPlanned, NextBatchRequest, StepKind, TrajectorySummary},
};
use serde::{Deserialize, Serialize};

use super::{event::StreamId, schedule::Phase};

/// Batches the learner may hold unanswered: the one at hand and one ready, so that it never idles.
pub const SERVED_AHEAD_MAX: u64 = 2;

/// Closed siblings of one task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Group {
    /// Its id.
    pub id: GroupId,
    /// What its episodes came to; at least one.
    pub trajectories: Vec<Arc<TrajectorySummary>>,
}

/// One instruction to the learner.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Batch {
    /// Optimizer step, as in `TrainBatch`.
    pub step: u64,
    /// What to do.
    pub kind: StepKind,
    /// Learning rate of the step.
    pub learning_rate: f64,
    /// Part of the run it belongs to.
    pub phase: Phase,
    /// Groups of an RL or a joint batch.
    pub groups: Vec<Group>,
    /// Demonstrations of an SFT or a joint batch.
    pub demonstrations: Vec<Arc<TrajectorySummary>>,
    /// Flat groups that later ones took the place of.
    pub replaced: Vec<Group>,
    /// Weight of the cross-entropy of a joint batch.
    pub sft_weight: f64,
    /// Whether the optimizer forgets its moments before the step.
    pub reset_optimizer: bool,
}

impl Batch {
    /// What the journal says of it.
    #[must_use]
    pub fn to_record(&self, index: u64) -> BatchPlanned {
        let episodes =
            |all: &[Arc<TrajectorySummary>]| all.iter().map(|one| one.episode_id).collect();
        let groups = |all: &[Group]| {
            let record = |group: &Group| BatchGroup {
                group_id: group.id.0,
                episodes: episodes(&group.trajectories),
            };
            all.iter().map(record).collect()
        };
        BatchPlanned {
            index,
            step: self.step,
            kind: self.kind.into(),
            learning_rate_bits: self.learning_rate.to_bits(),
            groups: groups(&self.groups),
            demonstrations: episodes(&self.demonstrations),
            replaced: groups(&self.replaced),
            sft_weight_bits: self.sft_weight.to_bits(),
            reset_optimizer: self.reset_optimizer,
        }
    }

    /// Everything trained on, in order.
    pub fn trajectories(&self) -> impl Iterator<Item = &Arc<TrajectorySummary>> {
        self.groups.iter().flat_map(|group| &group.trajectories).chain(&self.demonstrations)
    }

    /// Ids of [`Batch::trajectories`].
    #[must_use]
    pub fn episodes(&self) -> Vec<EpisodeId> {
        self.trajectories().map(|trajectory| EpisodeId(trajectory.episode_id)).collect()
    }

    /// Place in the order of the sequence: a step before its checkpoint before the end.
    fn order(&self) -> (u64, u8) {
        order(self.step, self.kind)
    }
}

fn order(step: u64, kind: StepKind) -> (u64, u8) {
    let rank = match kind {
        StepKind::Unspecified | StepKind::Rl | StepKind::Sft | StepKind::Joint => 0,
        StepKind::Checkpoint => 1,
        StepKind::Finish => 2,
    };
    (step, rank)
}

/// Why a learner, or its answer, is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error(
        "learner {holder} ({generation}) holds the stream of batches; stop it first, or wait until \
         its connection is found dead"
    )]
    Held { holder: String, generation: Generation },
    #[error(
        "the learner holds step {offered}, but batches are kept only from step {kept} on; start it \
         from the checkpoint of step {kept}"
    )]
    TooOld { offered: u64, kept: u64 },
    #[error(
        "the learner holds step {offered}, but this run has only reached step {newest}; it belongs \
         to another run"
    )]
    TooNew { offered: u64, newest: u64 },
    #[error("{learner} ({generation}) is not the learner of this run at present; call NextBatch")]
    NotTheLearner { learner: String, generation: Generation },
    #[error("the learner is {offered}, but {known} has been seen; this one was replaced")]
    OldGeneration { offered: Generation, known: Generation },
    #[error("an answer for {kind:?} of step {step}, but {expected} is next")]
    OutOfOrder { step: u64, kind: StepKind, expected: String },
}

/// What an answer means.
#[derive(Clone, Debug)]
pub(super) enum Completion {
    /// The batch is finished for the first time.
    First(Arc<Batch>),
    /// The batch was finished before; a restarted learner did it again.
    Again,
    /// This learner has answered it before.
    Duplicate,
}

/// The connected learner.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Learner {
    pub(super) stream: StreamId,
    pub(super) id: String,
    pub(super) generation: Generation,
    pub(super) weights_address: String,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Recorded {
    batch: Arc<Batch>,
    finished: bool,
}

/// All kept batches. Bounded by the steps between two checkpoints, plus [`SERVED_AHEAD_MAX`].
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Batches {
    recorded: VecDeque<Recorded>,
    /// Index of `recorded[0]`.
    first: u64,
    /// Index of the next batch to serve.
    served: u64,
    /// Index of the next batch to be answered.
    answered: u64,
    /// Step of the newest finished checkpoint; 0 for the initial one.
    kept: u64,
    /// Newest recorded optimizer step.
    newest: u64,
    learner: Option<Learner>,
    /// The newest learner that was connected, and its incarnation: its last answer may come while it
    /// has no stream.
    known: Option<String>,
    generation: Generation,
    /// Trajectories of batches that were dropped, until somebody takes note.
    released: Vec<EpisodeId>,
}

impl Batches {
    /// Appends a batch. Returns its index.
    pub(super) fn record(&mut self, batch: Arc<Batch>) -> u64 {
        self.newest = self.newest.max(batch.step);
        self.recorded.push_back(Recorded { batch, finished: false });
        self.end() - 1
    }

    pub(super) fn learner(&self) -> Option<&Learner> {
        self.learner.as_ref()
    }

    /// Batches recorded and not finished.
    pub(super) fn unfinished(&self) -> u64 {
        self.recorded.iter().filter(|recorded| !recorded.finished).count() as u64
    }

    /// Batches served and not answered.
    pub(super) fn outstanding(&self) -> u64 {
        self.served - self.answered
    }

    /// Steps whose weights may be published without our knowing: after .0, up to .1.
    pub(super) fn unconfirmed(&self) -> (u64, u64) {
        let answered = match self.answered.checked_sub(self.first + 1) {
            Some(offset) => self.recorded.get(offset as usize).map_or(0, |one| one.batch.step),
            None => self.kept,
        };
        (answered, self.newest)
    }

    /// Lets a learner in that holds step `last_step`. Returns batches it must have finished although
    /// their answer never arrived (the connection broke in between).
    pub(super) fn connect(
        &mut self,
        stream: StreamId,
        request: &NextBatchRequest,
    ) -> Result<Vec<Arc<Batch>>, Refusal> {
        // Its own stale stream does not keep a learner out.
        let is_other = |held: &&Learner| {
            (held.id.as_str(), held.generation.0) != (&request.learner_id, request.generation)
        };
        if let Some(Learner { id, generation, .. }) = self.learner.as_ref().filter(is_other) {
            return Err(Refusal::Held { holder: id.clone(), generation: *generation });
        }
        if request.generation < self.generation.0 {
            let (offered, known) = (Generation(request.generation), self.generation);
            return Err(Refusal::OldGeneration { offered, known });
        }
        let offered = request.last_step;
        if offered < self.kept {
            return Err(Refusal::TooOld { offered, kept: self.kept });
        }
        // A step counts as reached once its batch was served.
        let served = (self.served - self.first) as usize;
        let reached = |recorded: &Recorded| recorded.batch.step;
        let newest = self.recorded.iter().take(served).map(reached).max().unwrap_or(self.kept);
        if offered > newest {
            return Err(Refusal::TooNew { offered, newest });
        }
        // Covered: steps the learner holds, and checkpoints before or finished at that step.
        let covered = |recorded: &&mut Recorded| match recorded.batch.order() {
            (step, 0) => step <= offered,
            (step, 1) => step < offered || (step == offered && recorded.finished),
            _ => false,
        };
        let (mut position, mut implied) = (self.first, Vec::new());
        for recorded in self.recorded.iter_mut().take_while(covered) {
            if !recorded.finished {
                recorded.finished = true;
                implied.push(Arc::clone(&recorded.batch));
            }
            position += 1;
        }
        self.answered = position;
        self.served = position;
        self.known = Some(request.learner_id.clone());
        self.generation = Generation(request.generation);
        self.learner = Some(Learner {
            stream,
            id: request.learner_id.clone(),
            generation: Generation(request.generation),
            weights_address: request.weights_address.clone(),
        });
        Ok(implied)
    }

    /// Forgets a learner whose stream ended. Returns whether it was the one connected.
    pub(super) fn disconnect(&mut self, stream: StreamId) -> bool {
        let connected = self.learner.as_ref().is_some_and(|learner| learner.stream == stream);
        if connected {
            self.learner = None;
        }
        connected
    }

    /// Every stream has ended.
    pub(super) fn disconnect_all(&mut self) {
        self.learner = None;
    }

    /// The next batch to serve now, and to whom.
    pub(super) fn serve(&mut self) -> Option<(StreamId, Arc<Batch>)> {
        let stream = self.learner.as_ref()?.stream;
        if self.outstanding() >= SERVED_AHEAD_MAX {
            return None;
        }
        let batch = Arc::clone(&self.at(self.served)?.batch);
        self.served += 1;
        Some((stream, batch))
    }

    /// Takes an answer. Answers come in order; one that was given before changes nothing.
    pub(super) fn complete(
        &mut self,
        learner: &str,
        generation: Generation,
        step: u64,
        kind: StepKind,
    ) -> Result<Completion, Refusal> {
        if self.known.as_deref() != Some(learner) || self.generation != generation {
            return Err(Refusal::NotTheLearner { learner: learner.into(), generation });
        }
        let (position, newest) = (self.answered, self.newest);
        let is_served = position < self.served;
        let expected = self.at(position).filter(|_| is_served);
        match expected {
            Some(recorded) if (recorded.batch.step, recorded.batch.kind) == (step, kind) => {
                let again = std::mem::replace(&mut recorded.finished, true);
                let batch = Arc::clone(&recorded.batch);
                self.answered += 1;
                if kind == StepKind::Checkpoint {
                    self.trim(step);
                }
                Ok(if again { Completion::Again } else { Completion::First(batch) })
            }
            Some(recorded) if order(step, kind) >= recorded.batch.order() => {
                let expected = format!("{:?} of step {}", recorded.batch.kind, recorded.batch.step);
                Err(Refusal::OutOfOrder { step, kind, expected })
            }
            None if step > newest => {
                Err(Refusal::OutOfOrder { step, kind, expected: "no batch".into() })
            }
            Some(_) | None => Ok(Completion::Duplicate),
        }
    }

    /// Drops what a checkpoint of `step` makes unnecessary.
    fn trim(&mut self, step: u64) {
        self.kept = step;
        while self.first < self.answered {
            let Some(recorded) = self.recorded.pop_front() else { return };
            self.first += 1;
            let sampled = recorded.batch.groups.iter().flat_map(|group| &group.trajectories);
            self.released.extend(sampled.map(|one| EpisodeId(one.episode_id)));
        }
    }

    /// Demonstrations in batches that are kept.
    pub(super) fn demonstrations(&self) -> BTreeSet<EpisodeId> {
        let kept = self.recorded.iter().flat_map(|recorded| &recorded.batch.demonstrations);
        kept.map(|one| EpisodeId(one.episode_id)).collect()
    }

    /// Sampled trajectories that no learner can ask for again, since the last call.
    pub(super) fn take_released(&mut self) -> Vec<EpisodeId> {
        std::mem::take(&mut self.released)
    }

    fn end(&self) -> u64 {
        self.first + self.recorded.len() as u64
    }

    fn at(&mut self, index: u64) -> Option<&mut Recorded> {
        let offset = index.checked_sub(self.first)?;
        self.recorded.get_mut(usize::try_from(offset).ok()?)
    }

    /// The cursors are ordered. Checked after every event.
    pub(super) fn check_invariants(&self) {
        debug_assert!(self.first <= self.answered, "an unanswered batch was dropped");
        debug_assert!(self.answered <= self.served, "an answer came before its batch");
        debug_assert!(self.served <= self.end(), "a batch was served that is not recorded");
    }
}

#[cfg(test)]
#[path = "batches_test.rs"]
mod tests;
