//! What comes into the driver's loop, and the ways back out.

use std::time::Duration;

use ballast_proto::v1::{CoordinatorMessage, Heartbeat, StatusResponse, TrainBatch};
use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::DropGuard;
use tonic::Status;

use crate::{
    engine::{CallId, ChangeAnswer, ChangeRefusal, Engine, Event, SessionId, StreamId},
    journal::Permit,
    payloads::Payloads,
    roster::Roster,
};

/// Inputs that wait for the loop.
pub const INPUTS_MAX: usize = 1024;
/// Questions that wait for the loop.
pub const QUESTIONS_MAX: usize = 64;
/// Way to an actor.
#[derive(Debug)]
pub struct SessionOutbox {
    /// Messages to it.
    pub messages: mpsc::Sender<Result<CoordinatorMessage, Status>>,
    /// Ends the reading side of its stream when dropped.
    pub guard: DropGuard,
}

/// Way to a learner.
#[derive(Debug)]
pub struct LearnerOutbox {
    /// Batches to it.
    pub batches: mpsc::Sender<Result<TrainBatch, Status>>,
    /// Tells it whether it is accepted, or why not.
    pub admission: oneshot::Sender<Result<(), String>>,
}

/// Where the answer to a change goes.
pub type ChangeReply = oneshot::Sender<Result<ChangeAnswer, ChangeRefusal>>;

/// A trajectory that came with an event.
#[derive(Debug)]
pub struct Payload {
    /// Encoded, as the journal keeps it.
    pub bytes: Bytes,
    /// Its room in the intake.
    pub permit: Permit,
}

/// What comes into the loop: an event, with the way back where there is one.
#[derive(Debug)]
pub enum Input {
    /// Nothing to keep.
    Event(Event),
    /// An actor is alive. Not worth a record.
    Heartbeat(SessionId, Heartbeat),
    /// `ActorConnected`, and the way to the actor.
    Session(SessionId, Event, SessionOutbox),
    /// `TrajectoryReported` or `TrajectoryInvalid`, and the trajectory.
    Trajectory(SessionId, Event, Payload),
    /// `LearnerConnected`, and the way to the learner.
    Learner(StreamId, Event, LearnerOutbox),
    /// `StepCompleted`, and where its answer goes.
    Step(CallId, Event, oneshot::Sender<Result<(), String>>),
    /// `AdminRequested`, and where its answer goes.
    Change(CallId, Event, ChangeReply),
}

/// What a question may look at.
#[derive(Debug)]
pub struct View<'a> {
    /// The state of the run.
    pub engine: &'a Engine,
    /// Where trajectories are.
    pub payloads: &'a Payloads,
    pub(crate) roster: &'a Roster,
    pub(crate) now: Duration,
    pub(crate) blocked: Option<&'a str>,
}

impl View<'_> {
    /// The state of the run, for people.
    #[must_use]
    pub fn status(&self) -> StatusResponse {
        self.engine.status(self.now, self.roster, self.blocked)
    }
}

/// Something that looks at the run and changes nothing.
pub type Question = Box<dyn FnOnce(&View<'_>) + Send>;

/// The other ends of what the loop reads.
#[derive(Debug)]
pub struct Inboxes {
    /// Events.
    pub inputs: mpsc::Receiver<Input>,
    /// Questions.
    pub questions: mpsc::Receiver<Question>,
}
