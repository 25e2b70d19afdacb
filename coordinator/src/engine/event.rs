//! What can happen to a run. Past tense: an event is a fact, the engine cannot refuse that it
//! happened. Events are the content of the journal (ADR 0007), so each carries all that the
//! decisions it leads to depend on.

use std::{collections::BTreeMap, sync::Arc};

use ballast_proto::{
    ActorId, EpisodeId, Generation,
    v1::{AdminChange, CompleteStepRequest, NextBatchRequest, TrajectorySummary},
};
use serde::{Deserialize, Serialize};

/// One actor's stream. A reconnect is a new session, so a late message of an old stream can never
/// be taken for one of the new.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SessionId(pub u64);

/// One learner's stream of batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct StreamId(pub u64);

/// One call that waits for its answer. Means nothing to the coordinator that takes over: its caller
/// is gone, or asks again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CallId(pub u64);

/// How an actor introduces itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Its name.
    pub actor: ActorId,
    /// Its incarnation.
    pub generation: Generation,
    /// Episodes it can run at once.
    pub slots: u32,
    /// Episodes it has from an earlier stream.
    pub claims: Vec<EpisodeId>,
}

/// A fact from outside the engine.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A coordinator took the run over, or began it: no stream of an earlier one is open any more.
    CoordinatorStarted {
        /// Number of its leadership.
        term: u64,
    },
    /// An actor opened a session and said hello.
    ActorConnected {
        /// Its stream.
        session: SessionId,
        /// What it said.
        hello: Hello,
    },
    /// An actor's stream ended.
    ActorDisconnected {
        /// The stream.
        session: SessionId,
    },
    /// Nothing was heard of an actor for the time of a lease.
    LeaseExpired {
        /// Its name.
        actor: ActorId,
        /// Its incarnation.
        generation: Generation,
    },
    /// An actor can run this many more episodes.
    SlotsFreed {
        /// Its stream.
        session: SessionId,
        /// Credits to add.
        slots: u32,
    },
    /// An actor reported a well-formed trajectory (M1 was checked at the door).
    TrajectoryReported {
        /// Its stream.
        session: SessionId,
        /// The trajectory, without its tokens.
        trajectory: Arc<TrajectorySummary>,
    },
    /// An actor reported a trajectory that breaks M1.
    TrajectoryInvalid {
        /// Its stream.
        session: SessionId,
        /// The episode it claims to be.
        episode: EpisodeId,
        /// What is wrong with it.
        fault: String,
    },
    /// An actor gave an episode back.
    EpisodeGivenBack {
        /// Its stream.
        session: SessionId,
        /// The episode.
        episode: EpisodeId,
        /// Why, for people.
        reason: String,
        /// Tokens it had.
        tokens: u32,
    },
    /// A learner asks for batches.
    LearnerConnected {
        /// Its stream.
        stream: StreamId,
        /// What it holds and where it serves weights.
        request: NextBatchRequest,
    },
    /// A learner's stream ended.
    LearnerDisconnected {
        /// The stream.
        stream: StreamId,
    },
    /// A learner finished a batch.
    StepCompleted {
        /// The call to answer.
        call: CallId,
        /// What it reports.
        request: CompleteStepRequest,
        /// What the actors' heartbeats come to now, by metric.
        actors: BTreeMap<String, f64>,
    },
    /// Somebody asked for a change.
    AdminRequested {
        /// The call to answer.
        call: CallId,
        /// Who, as far as it is known.
        who: String,
        /// What, and why.
        change: AdminChange,
    },
    /// The time [`super::Engine::next_deadline`] named has come.
    DeadlineReached,
}
