//! What a journal says of a run's training: batches, where their trajectories are, and which weights
//! every step published.
//!
//! Only what events led to is looked at, so a replay does not depend on what this version of the
//! engine would decide. Of the configuration the learner needs what the first record has: the settings
//! that can be changed in a running run reach it in its batches, as the learning rate does, or not at
//! all.

use std::collections::{BTreeMap, BTreeSet};

use ballast_proto::{
    EpisodeId, ManifestHash,
    v1::{
        BatchPlanned, Effect, JournalEntry, NextBatchRequest, RunCreated, StepKind, TrainBatch,
        effect, journal_entry::Event,
    },
};
use prost::Message as _;
use serde::Serialize;

use crate::{
    entry,
    journal::{Location, Position, ReadError, Reader, Stored},
    payloads::Source,
    serving::{self, AssemblyError},
};

/// Why a run cannot be replayed.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The journal cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A record is not an entry.
    #[error("record {0} of the journal cannot be decoded: {1}")]
    Decode(Position, prost::DecodeError),
    /// The first record does not say which run this is.
    #[error("the journal does not begin with the creation of a run; it is not a run's journal")]
    NotARun,
    /// There are no such steps.
    #[error(
        "the steps after {from} up to {to} cannot be replayed: the run has finished {finished} steps"
    )]
    OutOfRange {
        /// Where to start.
        from: u64,
        /// Last step asked for.
        to: u64,
        /// Last finished step.
        finished: u64,
    },
    /// A batch has a trajectory that is nowhere.
    #[error("the batch of step {step} has {episode}, whose trajectory is not in the journal")]
    Missing {
        /// Step of the batch.
        step: u64,
        /// The episode.
        episode: EpisodeId,
    },
}

/// All of a run's training.
#[derive(Debug)]
pub struct Recording {
    created: RunCreated,
    /// In the order they were planned.
    batches: Vec<BatchPlanned>,
    /// Every trajectory.
    places: BTreeMap<EpisodeId, Location>,
    /// Hashes of the weights that learners of the run said they had after a step; 0: initial ones.
    published: BTreeMap<u64, BTreeSet<ManifestHash>>,
    /// Last finished optimizer step.
    finished: u64,
}

impl Recording {
    /// Reads a whole journal. Every byte is checked, trajectories too.
    ///
    /// # Errors
    /// It cannot be read, or is not the journal of a run.
    pub fn read(reader: &Reader) -> Result<Self, ReplayError> {
        let mut records = reader.records_from(Position(0))?;
        let first = records.next().ok_or(ReplayError::NotARun)??;
        let Some(Event::RunCreated(created)) = decode(&first)?.event else {
            return Err(ReplayError::NotARun);
        };
        let mut recording = Self {
            created,
            batches: Vec::new(),
            places: BTreeMap::new(),
            published: BTreeMap::new(),
            finished: 0,
        };
        for stored in records {
            recording.take(&stored?)?;
        }
        Ok(recording)
    }

    fn take(&mut self, stored: &Stored) -> Result<(), ReplayError> {
        let JournalEntry { event, effects, .. } = decode(stored)?;
        if let Some(episode) = entry::finished_episode(&effects) {
            self.places.insert(episode, stored.payload);
        }
        match event {
            Some(Event::LearnerConnected(one)) => {
                let request = one.request.unwrap_or_default();
                self.saw(request.last_step, &request.manifest_hash);
            }
            Some(Event::StepCompleted(one)) => {
                let request = one.request.unwrap_or_default();
                self.saw(request.step, &request.manifest_hash);
            }
            _ => {}
        }
        for Effect { effect } in effects {
            match effect {
                Some(effect::Effect::Batch(batch)) => self.batches.push(batch),
                Some(effect::Effect::Step(step)) => self.finished = step.step,
                _ => {}
            }
        }
        Ok(())
    }

    fn saw(&mut self, step: u64, hash: &[u8]) {
        if let Some(hash) = ManifestHash::from_wire(hash) {
            self.published.entry(step).or_default().insert(hash);
        }
    }

    /// Which run this is.
    #[must_use]
    pub fn created(&self) -> &RunCreated {
        &self.created
    }

    /// Last finished optimizer step.
    #[must_use]
    pub fn finished(&self) -> u64 {
        self.finished
    }

    /// The steps after `from` up to `to`, with the checkpoints of the run in between, or without
    /// them (`last_only`). There always is one of `to`.
    ///
    /// # Errors
    /// The run has no such steps, or their trajectories are gone.
    pub fn excerpt(self, from: u64, to: u64, last_only: bool) -> Result<Excerpt, ReplayError> {
        let Self { created, batches, places, published, finished } = self;
        if from >= to || to > finished {
            return Err(ReplayError::OutOfRange { from, to, finished });
        }
        let mut records: Vec<_> = batches
            .into_iter()
            .filter(|batch| from < batch.step && batch.step <= to)
            .filter(|batch| match batch.kind() {
                StepKind::Rl | StepKind::Sft | StepKind::Joint => true,
                StepKind::Checkpoint => !last_only || batch.step == to,
                StepKind::Finish | StepKind::Unspecified => false,
            })
            .collect();
        if records.last().is_none_or(|batch| batch.kind() != StepKind::Checkpoint) {
            records.push(bare(to, StepKind::Checkpoint));
        }
        records.push(bare(to, StepKind::Finish));
        let mut sources = BTreeMap::new();
        for batch in &records {
            for episode in episodes(batch) {
                let missing = ReplayError::Missing { step: batch.step, episode };
                sources.insert(episode, Source::Stored(*places.get(&episode).ok_or(missing)?));
            }
        }
        Ok(Excerpt { run_id: created.run_id, from, to, records, sources, published })
    }
}

/// The part of a run that is replayed.
#[derive(Debug)]
pub struct Excerpt {
    run_id: String,
    from: u64,
    to: u64,
    records: Vec<BatchPlanned>,
    sources: BTreeMap<EpisodeId, Source>,
    published: BTreeMap<u64, BTreeSet<ManifestHash>>,
}

/// How weights compare with those the run had after the same step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Weights {
    /// The run published exactly these.
    Same,
    /// The run published others.
    Other,
    /// The journal does not say.
    Unknown,
}

impl Excerpt {
    /// Last step before it.
    #[must_use]
    pub fn from(&self) -> u64 {
        self.from
    }

    /// Its last step.
    #[must_use]
    pub fn to(&self) -> u64 {
        self.to
    }

    /// Whether a learner can be served, and from which record on. One that lost its stream goes on
    /// after what it has.
    ///
    /// # Errors
    /// The reason why not.
    pub fn start(&self, request: &NextBatchRequest) -> Result<usize, String> {
        let NextBatchRequest { last_step, run_id, .. } = request;
        if !run_id.is_empty() && *run_id != self.run_id {
            return Err(format!("its checkpoint belongs to run {run_id}, not {}", self.run_id));
        }
        let (from, to) = (self.from, self.to);
        if !(from..=to).contains(last_step) {
            return Err(format!("it holds step {last_step}; the replay goes from {from} to {to}"));
        }
        let is_done = |batch: &BatchPlanned| {
            let trains = matches!(batch.kind(), StepKind::Rl | StepKind::Sft);
            batch.step < *last_step || (batch.step == *last_step && trains)
        };
        Ok(self.records.iter().position(|batch| !is_done(batch)).unwrap_or(self.records.len()))
    }

    /// The message of a record: the bytes that the run's learner got. `None` after the last one.
    ///
    /// # Errors
    /// The journal cannot be read.
    pub fn message(
        &self,
        index: usize,
        reader: &Reader,
    ) -> Option<Result<TrainBatch, AssemblyError>> {
        let record = self.records.get(index)?;
        Some(serving::message(record, &self.sources, self.run_id.clone(), reader))
    }

    /// How the weights a learner has after a step compare with those of the run.
    #[must_use]
    pub fn compare(&self, step: u64, manifest_hash: &[u8]) -> Weights {
        let hash = ManifestHash::from_wire(manifest_hash);
        match (self.published.get(&step), hash) {
            (Some(published), Some(hash)) if published.contains(&hash) => Weights::Same,
            (Some(_), Some(_)) => Weights::Other,
            _ => Weights::Unknown,
        }
    }
}

fn decode(stored: &Stored) -> Result<JournalEntry, ReplayError> {
    JournalEntry::decode(stored.head.clone())
        .map_err(|error| ReplayError::Decode(stored.position, error))
}

fn bare(step: u64, kind: StepKind) -> BatchPlanned {
    BatchPlanned { step, kind: kind.into(), ..BatchPlanned::default() }
}

fn episodes(batch: &BatchPlanned) -> impl Iterator<Item = EpisodeId> {
    let explored = batch.groups.iter().flat_map(|group| &group.episodes);
    explored.chain(&batch.demonstrations).copied().map(EpisodeId)
}
