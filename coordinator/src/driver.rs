//! The loop between the pure engine and the world: it feeds events in and runs commands. It decides
//! nothing.
//!
//! Who blocks when full: [`INPUTS_MAX`] blocks the streams of actors and learners and calls of
//! people, until the loop has caught up. The loop itself never waits for a peer: a stream that is
//! not read is closed.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use ballast_proto::{
    EpisodeId,
    v1::{
        CoordinatorMessage, ScheduleResponse, SetScheduleResponse, StatusResponse, StepKind,
        TrainBatch, coordinator_message::Message,
    },
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::sleep_until,
};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::Status;

use crate::{
    engine::{CallId, ChangeRefusal, Command, Engine, Event, SessionEnd, SessionId, StreamId},
    journal::{BatchRecord, Record},
    journal_writer::{Outcome, Permit, Receipt, Request, Writer},
    metrics::MetricsWriter,
    run_directory::{RunDirectory, RunDirectoryError},
};

/// Inputs that wait for the loop.
pub const INPUTS_MAX: usize = 1024;
/// Status is published to watchers at most this often: four times a second.
const STATUS_INTERVAL: Duration = Duration::from_millis(250);

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

/// Where the answer to a change of the schedule goes.
pub type ChangeAnswer = oneshot::Sender<Result<SetScheduleResponse, ChangeRefusal>>;

/// What comes into the loop: an event, with the way back where there is one.
#[derive(Debug)]
pub enum Input {
    /// Nothing to keep.
    Event(Event),
    /// `ActorConnected`, and the way to the actor.
    Session(SessionId, Event, SessionOutbox),
    /// `TrajectoryReported`, and its room in the intake.
    Trajectory(Event, Permit),
    /// `LearnerConnected`, and the way to the learner.
    Learner(StreamId, Event, LearnerOutbox),
    /// `StepCompleted`, and where its answer goes.
    Step(CallId, Event, oneshot::Sender<Result<(), String>>),
    /// `ScheduleChangeRequested`, and where its answer goes.
    Change(CallId, Event, ChangeAnswer),
    /// Somebody asks for the status.
    Status(oneshot::Sender<StatusResponse>),
    /// Somebody asks for the schedule.
    Schedule(oneshot::Sender<ScheduleResponse>),
}

/// Why the loop ended before the run.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// The journal's thread is gone or its queue is full, which its bounds rule out.
    #[error("the journal writer does not take records any more; the run cannot go on safely")]
    Journal,
    /// The services ended before the run.
    #[error("the gRPC services ended before the run; start a new run")]
    Services,
    /// The result cannot be written.
    #[error(transparent)]
    Directory(#[from] RunDirectoryError),
}

/// The loop and everything it holds.
#[derive(Debug)]
pub struct Driver {
    engine: Engine,
    started: Instant,
    inputs: mpsc::Receiver<Input>,
    writer: Writer,
    directory: RunDirectory,
    metrics: MetricsWriter,
    status: watch::Sender<StatusResponse>,
    status_published: Instant,
    sessions: BTreeMap<SessionId, SessionOutbox>,
    learners: BTreeMap<StreamId, LearnerPlace>,
    calls: BTreeMap<CallId, oneshot::Sender<Result<(), String>>>,
    changes: BTreeMap<CallId, ChangeAnswer>,
    /// Room of the trajectory at hand, until its `AppendTrajectory` takes it along.
    permit: Option<Permit>,
    exit: bool,
}

/// A learner before and after it is accepted.
#[derive(Debug)]
enum LearnerPlace {
    Waiting(LearnerOutbox),
    Accepted(mpsc::Sender<Result<TrainBatch, Status>>),
}

impl Driver {
    /// Puts the parts together. Returns the watch of the status too.
    ///
    /// # Errors
    /// `metrics.jsonl` cannot be opened.
    pub fn new(
        engine: Engine,
        inputs: mpsc::Receiver<Input>,
        writer: Writer,
        directory: RunDirectory,
    ) -> Result<(Self, watch::Receiver<StatusResponse>), RunDirectoryError> {
        let (status, watcher) = watch::channel(engine.status(Duration::ZERO));
        let metrics = directory.metrics()?;
        let now = Instant::now();
        let driver = Self {
            engine,
            started: now,
            inputs,
            writer,
            directory,
            metrics,
            status,
            status_published: now,
            sessions: BTreeMap::new(),
            learners: BTreeMap::new(),
            calls: BTreeMap::new(),
            changes: BTreeMap::new(),
            permit: None,
            exit: false,
        };
        Ok((driver, watcher))
    }

    /// Runs until the run is over. `stop` asks for an orderly end.
    ///
    /// # Errors
    /// The run cannot go on; what was acknowledged is in the journal.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), DriverError> {
        let mut stopping = false;
        let mut status_due = false;
        while !self.exit {
            let deadline = self.engine.next_deadline().map(|deadline| self.started + deadline);
            let publish = self.status_published + STATUS_INTERVAL;
            // Every branch is cancel-safe: receiving from a channel loses nothing, the rest waits.
            tokio::select! {
                biased;
                () = stop.cancelled(), if !stopping => {
                    stopping = true;
                    self.handle(Event::StopRequested)?;
                }
                Some(outcome) = self.writer.outcomes.recv() => self.on_outcome(outcome)?,
                Some(input) = self.inputs.recv() => self.on_input(input)?,
                () = wait(deadline) => self.handle(Event::DeadlineReached)?,
                () = wait(Some(publish)), if status_due => {}
            }
            status_due = !self.publish_status();
        }
        self.status.send_replace(self.engine.status(self.started.elapsed()));
        self.close().await
    }

    /// Ends all streams and waits for the journal's last commit, unless the disk is full.
    async fn close(self) -> Result<(), DriverError> {
        let Writer { requests, mut outcomes, thread } = self.writer;
        drop(requests);
        while let Some(Outcome::Durable(_) | Outcome::Recovered) = outcomes.recv().await {}
        drop(outcomes);
        thread.join().map_err(|_| DriverError::Journal)
    }

    fn on_input(&mut self, input: Input) -> Result<(), DriverError> {
        match input {
            Input::Event(event) => {
                if let Event::ActorDisconnected { session } = &event {
                    self.sessions.remove(session);
                }
                if let Event::LearnerDisconnected { stream } = &event {
                    self.learners.remove(stream);
                }
                self.handle(event)
            }
            Input::Session(session, event, outbox) => {
                self.sessions.insert(session, outbox);
                self.handle(event)
            }
            Input::Trajectory(event, permit) => {
                self.permit = Some(permit);
                let handled = self.handle(event);
                self.permit = None;
                handled
            }
            Input::Learner(stream, event, outbox) => {
                self.learners.insert(stream, LearnerPlace::Waiting(outbox));
                self.handle(event)
            }
            Input::Step(call, event, answer) => {
                self.calls.insert(call, answer);
                self.handle(event)
            }
            Input::Change(call, event, answer) => {
                self.changes.insert(call, answer);
                self.handle(event)
            }
            Input::Schedule(answer) => {
                drop(answer.send(self.engine.schedule()));
                Ok(())
            }
            Input::Status(answer) => {
                // Whoever asked may have left.
                drop(answer.send(self.engine.status(self.started.elapsed())));
                Ok(())
            }
        }
    }

    fn on_outcome(&mut self, outcome: Outcome) -> Result<(), DriverError> {
        match outcome {
            Outcome::Blocked(problem) => self.handle(Event::JournalBlocked { problem }),
            Outcome::Recovered => self.handle(Event::JournalRecovered),
            Outcome::Durable(receipts) => receipts.into_iter().try_for_each(|one| match one {
                Receipt::Trajectory(episode) => self.handle(Event::TrajectoryDurable { episode }),
                Receipt::Batch(index) => self.handle(Event::BatchDurable { index }),
                Receipt::Note => Ok(()),
            }),
        }
    }

    fn handle(&mut self, event: Event) -> Result<(), DriverError> {
        self.engine.handle(self.started.elapsed(), event);
        while let Some(command) = self.engine.next_command() {
            self.run_command(command)?;
        }
        Ok(())
    }

    fn run_command(&mut self, command: Command) -> Result<(), DriverError> {
        match command {
            Command::Send { session, message } => self.send(session, message),
            Command::CloseSession { session, end } => self.close_session(session, &end),
            Command::AcceptLearner { stream } => self.accept_learner(stream),
            Command::RefuseLearner { stream, reason } => {
                if let Some(LearnerPlace::Waiting(outbox)) = self.learners.remove(&stream) {
                    drop(outbox.admission.send(Err(reason)));
                }
            }
            Command::ServeBatch { stream, batch } => {
                if let Some(LearnerPlace::Accepted(batches)) = self.learners.get(&stream) {
                    // Full is ruled out: the engine serves no more than the channel holds. Closed
                    // is about to be reported by the stream itself.
                    drop(batches.try_send(Ok(batch.to_wire())));
                    if batch.kind == StepKind::Finish {
                        self.learners.remove(&stream);
                    }
                }
            }
            Command::AnswerStep { call, answer } => {
                if let Some(caller) = self.calls.remove(&call) {
                    drop(caller.send(answer));
                }
            }
            Command::AnswerChange { call, answer } => {
                if let Some(caller) = self.changes.remove(&call) {
                    drop(caller.send(answer));
                }
            }
            Command::AppendTrajectory(trajectory) => {
                let receipt = Receipt::Trajectory(EpisodeId(trajectory.episode_id));
                let permit = self.permit.take();
                let record = Record::Trajectory(trajectory);
                self.append(Request { record, receipt, permit })?;
            }
            Command::AppendBatch { index, batch } => {
                let record = Record::Batch(BatchRecord::of(&batch));
                self.append(Request { record, receipt: Receipt::Batch(index), permit: None })?;
            }
            Command::AppendNote(text) => {
                let record = Record::Note(text);
                self.append(Request { record, receipt: Receipt::Note, permit: None })?;
            }
            Command::WriteMetrics(line) => {
                if let Err(error) = self.metrics.write(&line) {
                    tracing::warn!("a line of metrics.jsonl is lost: {error}");
                }
            }
            Command::WriteResult(result) => self.directory.write_result(&result)?,
            Command::Inform(text) => tracing::info!("{text}"),
            Command::Warn(text) => tracing::warn!("{text}"),
            Command::Exit => self.exit = true,
        }
        Ok(())
    }

    fn append(&mut self, request: Request) -> Result<(), DriverError> {
        self.writer.requests.try_send(request).map_err(|_| DriverError::Journal)
    }

    fn send(&mut self, session: SessionId, message: Message) {
        let Some(outbox) = self.sessions.get(&session) else { return };
        let message = CoordinatorMessage { message: Some(message) };
        if outbox.messages.try_send(Ok(message)).is_err() {
            // Not read, or closed. Its end is reported by the stream's reading side.
            tracing::warn!("an actor does not read its stream; the session is closed");
            self.sessions.remove(&session);
        }
    }

    fn close_session(&mut self, session: SessionId, end: &SessionEnd) {
        if let Some(outbox) = self.sessions.remove(&session) {
            let status = match end {
                SessionEnd::OldGeneration { .. } => Status::failed_precondition(end.to_string()),
                SessionEnd::Replaced(_) => Status::aborted(end.to_string()),
                SessionEnd::LeaseExpired(_) => Status::unavailable(end.to_string()),
            };
            // A full stream is not read anyway.
            drop(outbox.messages.try_send(Err(status)));
        }
    }

    fn accept_learner(&mut self, stream: StreamId) {
        if let Some(LearnerPlace::Waiting(outbox)) = self.learners.remove(&stream) {
            let LearnerOutbox { batches, admission } = outbox;
            drop(admission.send(Ok(())));
            self.learners.insert(stream, LearnerPlace::Accepted(batches));
        }
    }

    /// Publishes the status unless it was published just now. Returns whether it is up to date.
    fn publish_status(&mut self) -> bool {
        if self.status_published.elapsed() < STATUS_INTERVAL {
            return false;
        }
        self.status.send_replace(self.engine.status(self.started.elapsed()));
        self.status_published = Instant::now();
        true
    }
}

/// Waits for a point in time, or for ever.
async fn wait(until: Option<Instant>) {
    match until {
        Some(until) => sleep_until(until.into()).await,
        None => std::future::pending().await,
    }
}
