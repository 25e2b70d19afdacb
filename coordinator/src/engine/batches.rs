//! The sequence of batches and the learner's place in it.
//!
//! Every batch gets an index, in order. A batch is served at most [`SERVED_AHEAD_MAX`] before the
//! learner's answers; that it is in the journal by then is the driver's doing. Batches are kept from
//! the newest finished checkpoint on, so a learner that crashed gets the same ones again, byte for
//! byte (J3, J4).
//!
//! Invariants, on positions in one sequence: `answered <= served <= recorded` and
//! `answered <= finished <= recorded`. A learner that crashed moves `answered` and `served` back;
//! `finished` only grows.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
};

use ballast_proto::{
    EpisodeId, Generation, GroupId, PolicyVersion,
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

/// All kept batches. Bounded by the steps between two checkpoints, plus [`SERVED_AHEAD_MAX`].
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Batches {
    recorded: VecDeque<Arc<Batch>>,
    /// Index of `recorded[0]`.
    first: u64,
    /// Index of the next batch to serve.
    served: u64,
    /// Index of the next batch to be answered.
    answered: u64,
    /// Index of the first batch that no learner has finished.
    finished: u64,
    /// Step of the newest finished checkpoint; 0 for the initial one.
    kept: u64,
    /// Newest recorded optimizer step.
    newest: u64,
    /// Newest optimizer step any learner was served: no learner can hold a newer one.
    reached: u64,
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
        self.recorded.push_back(batch);
        self.end() - 1
    }

    pub(super) fn learner(&self) -> Option<&Learner> {
        self.learner.as_ref()
    }

    /// Batches recorded and not finished.
    pub(super) fn unfinished(&self) -> u64 {
        self.end() - self.finished
    }

    /// Batches served and not answered.
    pub(super) fn outstanding(&self) -> u64 {
        self.served - self.answered
    }

    /// Step of the newest finished checkpoint: no learner begins before it.
    pub(super) fn kept(&self) -> PolicyVersion {
        PolicyVersion(self.kept)
    }

    /// Steps whose weights may be published without our knowing: after .0, up to .1.
    pub(super) fn unconfirmed(&self) -> (u64, u64) {
        (self.last_answered().0, self.newest)
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
        let newest = self.reached.max(self.kept);
        if offered > newest {
            return Err(Refusal::TooNew { offered, newest });
        }
        let position = self.first + self.covered(offered);
        let unanswered = self.finished..position;
        let implied = unanswered.filter_map(|index| self.at(index).map(Arc::clone)).collect();
        self.finished = self.finished.max(position);
        (self.answered, self.served) = (position, position);
        self.known = Some(request.learner_id.clone());
        self.generation = Generation(request.generation);
        self.learner = Some(Learner {
            stream,
            id: request.learner_id.clone(),
            generation: self.generation,
            weights_address: request.weights_address.clone(),
        });
        Ok(implied)
    }

    /// How many of the kept batches a learner that holds this step need not get: steps up to it, and
    /// checkpoints before it. One of that very step is needed unless it is finished.
    fn covered(&self, step: u64) -> u64 {
        let covered = |(index, batch): &(u64, &Arc<Batch>)| match batch.order() {
            (at, 0) => at <= step,
            (at, 1) => at < step || (at == step && *index < self.finished),
            _ => false,
        };
        (self.first..).zip(&self.recorded).take_while(covered).count() as u64
    }

    /// Forgets a learner whose stream ended. Returns whether it was the one connected.
    pub(super) fn disconnect(&mut self, stream: StreamId) -> bool {
        let connected = self.learner.as_ref().is_some_and(|learner| learner.stream == stream);
        if connected {
            self.learner = None;
        }
        connected
    }

    /// Every stream has ended. Returns whether a learner was connected.
    pub(super) fn disconnect_all(&mut self) -> bool {
        self.learner.take().is_some()
    }

    /// The next batch to serve now, and to whom.
    pub(super) fn serve(&mut self) -> Option<(StreamId, Arc<Batch>)> {
        let stream = self.learner.as_ref()?.stream;
        if self.outstanding() >= SERVED_AHEAD_MAX {
            return None;
        }
        let batch = Arc::clone(self.at(self.served)?);
        self.served += 1;
        self.reached = self.reached.max(batch.step);
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
        let next = self.at(self.answered).filter(|_| self.outstanding() > 0).map(Arc::clone);
        let asked_for = next.clone().filter(|next| (next.step, next.kind) == (step, kind));
        let Some(batch) = asked_for else {
            if order(step, kind) <= self.last_answered() {
                return Ok(Completion::Duplicate);
            }
            let text = |next: Arc<Batch>| format!("{:?} of step {}", next.kind, next.step);
            let expected = next.map_or("no answer".into(), text);
            return Err(Refusal::OutOfOrder { step, kind, expected });
        };
        let is_first = self.answered == self.finished;
        self.answered += 1;
        self.finished = self.finished.max(self.answered);
        if kind == StepKind::Checkpoint {
            self.trim(step);
        }
        Ok(if is_first { Completion::First(batch) } else { Completion::Again })
    }

    /// Drops what a checkpoint of `step` makes unnecessary.
    fn trim(&mut self, step: u64) {
        self.kept = step;
        while self.first < self.answered {
            let Some(batch) = self.recorded.pop_front() else { return };
            self.first += 1;
            let sampled = batch.groups.iter().flat_map(|group| &group.trajectories);
            self.released.extend(sampled.map(|one| EpisodeId(one.episode_id)));
        }
    }

    /// Demonstrations in batches that are kept.
    pub(super) fn demonstrations(&self) -> BTreeSet<EpisodeId> {
        let kept = self.recorded.iter().flat_map(|batch| &batch.demonstrations);
        kept.map(|one| EpisodeId(one.episode_id)).collect()
    }

    /// Sampled trajectories that no learner can ask for again, since the last call.
    pub(super) fn take_released(&mut self) -> Vec<EpisodeId> {
        std::mem::take(&mut self.released)
    }

    fn end(&self) -> u64 {
        self.first + self.recorded.len() as u64
    }

    fn at(&self, index: u64) -> Option<&Arc<Batch>> {
        let offset = index.checked_sub(self.first)?;
        self.recorded.get(usize::try_from(offset).ok()?)
    }

    /// Place of the newest answered batch; of the newest checkpoint when nothing came after it.
    fn last_answered(&self) -> (u64, u8) {
        let newest = self.answered.checked_sub(1).and_then(|index| self.at(index));
        newest.map_or_else(|| order(self.kept, StepKind::Checkpoint), |batch| batch.order())
    }

    /// The cursors are ordered. Checked after every event.
    pub(super) fn check_invariants(&self) {
        debug_assert!(self.first <= self.answered, "an unanswered batch was dropped");
        debug_assert!(self.answered <= self.served, "an answer came before its batch");
        debug_assert!(self.served <= self.end(), "a batch was served that is not recorded");
        debug_assert!(self.answered <= self.finished, "an answered batch is not finished");
        debug_assert!(self.finished <= self.end(), "a batch was finished that is not recorded");
    }
}

#[cfg(test)]
#[path = "batches_test.rs"]
mod tests;
