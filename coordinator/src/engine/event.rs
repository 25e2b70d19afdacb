//! What can happen to a run. Past tense: an event is a fact, the engine cannot refuse that it
//! happened.

use std::sync::Arc;

use ballast_proto::{
    ActorId, EpisodeId, Generation,
    v1::{CompleteStepRequest, Heartbeat, NextBatchRequest, SetScheduleRequest, Trajectory},
};

/// One actor's stream. A reconnect is a new session, so a late message of an old stream can never
/// be taken for one of the new.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SessionId(pub u64);

/// One learner's stream of batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct StreamId(pub u64);

/// One call of `CompleteStep` or `SetSchedule` that waits for its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CallId(pub u64);

/// A fact from outside the engine.
#[derive(Clone, Debug)]
pub enum Event {
    /// An actor opened a session and said hello.
    ActorConnected {
        /// Its stream.
        session: SessionId,
        /// Its name.
        actor: ActorId,
        /// Its incarnation.
        generation: Generation,
        /// Episodes it can run at once.
        slots: u32,
    },
    /// An actor can run this many more episodes.
    SlotsFreed {
        /// Its stream.
        session: SessionId,
        /// Credits to add.
        slots: u32,
    },
    /// An actor is alive.
    HeartbeatReceived {
        /// Its stream.
        session: SessionId,
        /// What it said.
        heartbeat: Heartbeat,
    },
    /// An actor reported a well-formed trajectory (M1 was checked at the door).
    TrajectoryReported {
        /// Its stream.
        session: SessionId,
        /// The trajectory.
        trajectory: Arc<Trajectory>,
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
    EpisodeReturned {
        /// Its stream.
        session: SessionId,
        /// The episode.
        episode: EpisodeId,
        /// Why, for people.
        reason: String,
    },
    /// An actor's stream ended.
    ActorDisconnected {
        /// The stream.
        session: SessionId,
    },
    /// A trajectory is durable in the journal.
    TrajectoryDurable {
        /// Its episode.
        episode: EpisodeId,
    },
    /// A batch record is durable in the journal.
    BatchDurable {
        /// Its index in the sequence of batches.
        index: u64,
    },
    /// The journal cannot be written; the writer keeps trying.
    JournalBlocked {
        /// Why, and what to do.
        problem: String,
    },
    /// The journal can be written again.
    JournalRecovered,
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
    },
    /// A person asked for a pause.
    PauseRequested,
    /// A person ended the pause.
    ResumeRequested,
    /// A person asked for other settings of the schedule.
    ScheduleChangeRequested {
        /// The call to answer.
        call: CallId,
        /// What to change, and why.
        request: SetScheduleRequest,
    },
    /// A person or a signal asked to end the run in order.
    StopRequested,
    /// The time [`super::Engine::next_deadline`] named has come.
    DeadlineReached,
}
