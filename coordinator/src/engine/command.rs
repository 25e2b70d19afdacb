//! What the engine wants done. Imperative: the driver runs commands in order and decides nothing. It
//! runs them once the event they follow from is in the journal.

use std::sync::Arc;

use ballast_proto::{ActorId, EpisodeId, Generation, v1::coordinator_message::Message};

use super::{
    batches::Batch,
    event::{CallId, SessionId, StreamId},
};
use crate::{metrics::MetricsLine, result::RunResult};

/// Why the coordinator ends an actor's session.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionEnd {
    /// The actor is an older incarnation than one already seen.
    #[error("actor {actor} is {offered}, but {known} of it has been seen; this one was replaced")]
    OldGeneration {
        /// Its name.
        actor: ActorId,
        /// The generation it offered.
        offered: Generation,
        /// The newest seen.
        known: Generation,
    },
    /// A new session of the same actor took this one's place.
    #[error("actor {0} opened a newer session")]
    Replaced(ActorId),
    /// No message came for the time of the lease.
    #[error(
        "actor {0} sent no heartbeat within its lease; what it ran is run elsewhere, reconnect"
    )]
    LeaseExpired(ActorId),
}

/// What somebody who asked for a change is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeAnswer {
    /// It is done.
    Done,
    /// The settings are changed.
    Set {
        /// Number of live changes, this one included.
        revision: u64,
        /// First optimizer step it can act on.
        step: u64,
    },
    /// A checkpoint will be written after this step.
    Checkpoint {
        /// The step.
        step: u64,
    },
}

/// Why a change that a person asked for is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeRefusal {
    /// The change itself is wrong, whatever the state of the run.
    #[error("{0}")]
    Invalid(String),
    /// The run is not in a state for it.
    #[error("{0}")]
    Untimely(String),
    /// What it is about does not exist.
    #[error("{0}")]
    Unknown(String),
}

/// A side effect.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Send a message to an actor.
    Send {
        /// Its stream.
        session: SessionId,
        /// The message.
        message: Message,
    },
    /// End an actor's stream.
    CloseSession {
        /// Its stream.
        session: SessionId,
        /// What to tell it.
        end: SessionEnd,
    },
    /// Accept a learner: its stream may begin.
    AcceptLearner {
        /// Its stream.
        stream: StreamId,
    },
    /// Refuse a learner.
    RefuseLearner {
        /// Its stream.
        stream: StreamId,
        /// Why, and the remedy.
        reason: String,
    },
    /// Send a batch to the learner.
    ServeBatch {
        /// Its stream.
        stream: StreamId,
        /// The batch.
        batch: Arc<Batch>,
    },
    /// Answer a `CompleteStep` call.
    AnswerStep {
        /// The call.
        call: CallId,
        /// Accepted, or why not.
        answer: Result<(), String>,
    },
    /// Answer somebody who asked for a change.
    AnswerChange {
        /// The call.
        call: CallId,
        /// What was done, or why not.
        answer: Result<ChangeAnswer, ChangeRefusal>,
    },
    /// These trajectories are not needed any more; the journal keeps them.
    Release(Vec<EpisodeId>),
    /// Append a line to `metrics.jsonl`.
    WriteMetrics(MetricsLine),
    /// Write `result.json`.
    WriteResult(Box<RunResult>),
    /// Log a state change.
    Inform(String),
    /// Log something unexpected that was handled.
    Warn(String),
    /// The run is over: leave the loop.
    Exit,
}
