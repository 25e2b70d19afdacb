//! The loop between the pure engine and the world: it feeds events in, hands their records to the
//! journal, and runs what they led to once the records are durable (ADR 0007). It decides nothing.
//!
//! Who blocks when full: [`INPUTS_MAX`] blocks the streams of actors and learners and the changes
//! people ask for, until the loop has caught up; so does a journal that is [`HELD_MAX`] records
//! behind. Questions are answered all the while. The loop itself never waits for a peer: a stream
//! that is not read is closed.
//!
//! [`HELD_MAX`]: crate::held::HELD_MAX
//! [`INPUTS_MAX`]: crate::inputs::INPUTS_MAX

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use ballast_proto::{
    EpisodeId,
    v1::{
        AdminChange, CoordinatorMessage, RunCreated, StatusResponse, StepKind, StopRequest,
        admin_change::Change, coordinator_message::Message,
    },
};
use bytes::Bytes;
use prost::Message as _;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::sleep_until,
};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::{
    driver_error::DriverError,
    engine::{
        Batch, CallId, Command, Engine, Event, SERVED_AHEAD_MAX, SessionEnd, SessionId, StreamId,
        of_actors,
    },
    entry,
    held::Held,
    inputs::{ChangeReply, Inboxes, Input, LearnerOutbox, Payload, SessionOutbox, View},
    journal::{Outcome, Position, Reader, Record, Request, Writer},
    metrics::MetricsWriter,
    payloads::Payloads,
    rebuild::{self, Rebuilt},
    roster::Roster,
    run_directory::RunDirectory,
    serving::{self, Order},
};

/// Status is published to watchers at most this often: four times a second.
const STATUS_INTERVAL: Duration = Duration::from_millis(250);
/// Records between two snapshots: a start reads no more than about twice as many.
const SNAPSHOT_RECORDS: u64 = 20_000;

/// The loop and everything it holds.
#[derive(Debug)]
pub struct Driver {
    engine: Engine,
    created: RunCreated,
    roster: Roster,
    payloads: Payloads,
    held: Held,
    /// Episodes whose trajectories are on their way to these positions.
    finishing: BTreeMap<Position, EpisodeId>,
    /// Time of the run when this process began.
    base: Duration,
    started: Instant,
    inboxes: Inboxes,
    writer: Writer,
    reader: Reader,
    /// Why the journal cannot be written at present.
    blocked: Option<String>,
    /// All records before this one are durable.
    durable: watch::Sender<Position>,
    /// Records since the last snapshot.
    unsnapped: u64,
    directory: RunDirectory,
    metrics: MetricsWriter,
    status: watch::Sender<StatusResponse>,
    status_published: Instant,
    sessions: BTreeMap<SessionId, SessionOutbox>,
    learners: BTreeMap<StreamId, LearnerPlace>,
    calls: BTreeMap<CallId, oneshot::Sender<Result<(), String>>>,
    changes: BTreeMap<CallId, ChangeReply>,
    exit: bool,
}

/// A learner before and after it is accepted.
#[derive(Debug)]
enum LearnerPlace {
    Waiting(LearnerOutbox),
    Accepted(mpsc::Sender<Order>),
}

/// What a signal to this process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnStop {
    /// The run: the step at hand, a checkpoint, drained actors.
    EndRun,
    /// This process: another one goes on with the run from the journal.
    HandOver,
}

/// The journal, taken over by this process.
#[derive(Debug)]
pub struct JournalEnds {
    /// Takes records.
    pub writer: Writer,
    /// Reads what was written.
    pub reader: Reader,
    /// Position of the next record.
    pub next: Position,
    /// Number of this leadership.
    pub term: u64,
}

impl Driver {
    /// Puts the parts together, and makes the beginning of this leadership the first event. Returns
    /// the watch of the status too.
    ///
    /// # Errors
    /// `metrics.jsonl` cannot be opened, or the journal does not take the event.
    pub fn new(
        rebuilt: Rebuilt,
        inboxes: Inboxes,
        journal: JournalEnds,
        directory: RunDirectory,
    ) -> Result<(Self, watch::Receiver<StatusResponse>), DriverError> {
        let metrics = directory.metrics(&rebuilt.lines)?;
        let (now, started) = (rebuilt.now(), Instant::now());
        let Rebuilt { engine, created, locations, records, .. } = rebuilt;
        let lease = Duration::from_secs_f64(engine.config().coordinator.actor_lease_s);
        let mut roster = Roster::new(lease);
        for (actor, generation) in engine.actors() {
            roster.join(now, actor, generation, None);
        }
        let (status, watcher) = watch::channel(engine.status(now, &roster, None));
        let mut driver = Self {
            engine,
            created,
            roster,
            payloads: Payloads::stored(locations),
            held: Held::new(journal.next),
            finishing: BTreeMap::new(),
            base: now,
            started,
            inboxes,
            writer: journal.writer,
            reader: journal.reader,
            blocked: None,
            durable: watch::channel(journal.next).0,
            unsnapped: records,
            directory,
            metrics,
            status,
            status_published: started,
            sessions: BTreeMap::new(),
            learners: BTreeMap::new(),
            calls: BTreeMap::new(),
            changes: BTreeMap::new(),
            exit: false,
        };
        driver.handle(Event::CoordinatorStarted { term: journal.term }, None)?;
        Ok((driver, watcher))
    }

    /// How far the journal is durable: all records before this one are.
    #[must_use]
    pub fn durable(&self) -> watch::Receiver<Position> {
        self.durable.subscribe()
    }

    /// Runs until the run is over. `stop` asks for an orderly end, and `on_stop` says of what;
    /// `deposed` says that another coordinator may lead.
    ///
    /// # Errors
    /// The run cannot go on here; what was acknowledged is in the journal.
    pub async fn run(
        mut self,
        stop: CancellationToken,
        on_stop: OnStop,
        deposed: CancellationToken,
    ) -> Result<(), DriverError> {
        let mut stopping = false;
        let mut status_due = false;
        while !self.exit {
            let takes_input = !self.held.is_full() && self.blocked.is_none();
            let deadline = self.next_deadline().filter(|_| takes_input);
            let publish = self.status_published + STATUS_INTERVAL;
            // Every branch is cancel-safe: receiving from a channel loses nothing, the rest waits.
            tokio::select! {
                biased;
                () = deposed.cancelled() => {
                    return Err(DriverError::Deposed("its leadership ended".into()));
                }
                () = stop.cancelled(), if !stopping => {
                    stopping = true;
                    match on_stop {
                        OnStop::EndRun => self.stop()?,
                        OnStop::HandOver => return self.close().await,
                    }
                }
                Some(outcome) = self.writer.outcomes.recv() => self.on_outcome(outcome)?,
                Some(question) = self.inboxes.questions.recv() => question(&self.view()),
                Some(input) = self.inboxes.inputs.recv(), if takes_input => self.on_input(input)?,
                () = wait(deadline) => self.on_deadline()?,
                () = wait(Some(publish)), if status_due => {}
            }
            self.snapshot_if_due()?;
            status_due = !self.publish_status();
        }
        self.status.send_replace(self.view().status());
        self.close().await
    }

    /// Waits for the journal's last commit.
    async fn close(self) -> Result<(), DriverError> {
        let Writer { requests, mut outcomes, thread } = self.writer;
        drop(requests);
        while outcomes.recv().await.is_some() {}
        drop(outcomes);
        thread.join().map_err(|_| DriverError::Journal)
    }

    fn now(&self) -> Duration {
        entry::whole_micros(self.base + self.started.elapsed())
    }

    fn view(&self) -> View<'_> {
        View {
            engine: &self.engine,
            payloads: &self.payloads,
            roster: &self.roster,
            now: self.now(),
            blocked: self.blocked.as_deref(),
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        let next =
            self.engine.next_deadline().into_iter().chain(self.roster.next_expiry()).min()?;
        Some(self.started + next.saturating_sub(self.base))
    }

    fn on_deadline(&mut self) -> Result<(), DriverError> {
        // Only here, when no message is waiting to be looked at: a coordinator that was stopped for a
        // while must not take its own silence for the actors'.
        for (actor, generation) in self.roster.expire(self.now()) {
            // Many have left in order.
            if self.engine.counts_on(&actor) {
                self.handle(Event::LeaseExpired { actor, generation }, None)?;
            }
        }
        if self.engine.next_deadline().is_some_and(|deadline| self.now() >= deadline) {
            self.handle(Event::DeadlineReached, None)?;
        }
        Ok(())
    }

    fn stop(&mut self) -> Result<(), DriverError> {
        let change = Some(Change::Stop(StopRequest {}));
        let change = AdminChange { reason: "a signal".into(), change };
        let (call, who) = (CallId(u64::MAX), "the system".into());
        self.handle(Event::AdminRequested { call, who, change }, None)
    }

    fn on_input(&mut self, input: Input) -> Result<(), DriverError> {
        let now = self.now();
        match input {
            Input::Heartbeat(session, heartbeat) => {
                self.roster.beat(now, session, heartbeat);
                Ok(())
            }
            Input::Event(event) => {
                match &event {
                    Event::ActorDisconnected { session } => {
                        self.sessions.remove(session);
                        self.roster.disconnect(*session);
                    }
                    Event::LearnerDisconnected { stream } => drop(self.learners.remove(stream)),
                    Event::SlotsFreed { session, .. } | Event::EpisodeGivenBack { session, .. } => {
                        self.roster.hear(now, *session);
                    }
                    _ => {}
                }
                self.handle(event, None)
            }
            Input::Session(session, event, outbox) => {
                self.sessions.insert(session, outbox);
                if let Event::ActorConnected { hello, .. } = &event {
                    self.roster.join(now, &hello.actor, hello.generation, Some(session));
                }
                self.handle(event, None)
            }
            Input::Trajectory(session, event, payload) => {
                self.roster.hear(now, session);
                self.handle(event, Some(payload))
            }
            Input::Learner(stream, event, outbox) => {
                self.learners.insert(stream, LearnerPlace::Waiting(outbox));
                self.handle(event, None)
            }
            Input::Step(call, event, answer) => {
                self.calls.insert(call, answer);
                self.handle(self.with_actors(event), None)
            }
            Input::Change(call, event, answer) => {
                self.changes.insert(call, answer);
                self.handle(event, None)
            }
        }
    }

    /// A finished step, with what the actors say at that time.
    fn with_actors(&self, event: Event) -> Event {
        match event {
            Event::StepCompleted { call, request, .. } => {
                let actors = of_actors(self.roster.heartbeats());
                Event::StepCompleted { call, request, actors }
            }
            other => other,
        }
    }

    fn on_outcome(&mut self, outcome: Outcome) -> Result<(), DriverError> {
        match outcome {
            Outcome::Durable { up_to, locations } => {
                for location in locations {
                    if let Some(episode) = self.finishing.remove(&location.position) {
                        self.payloads.store(episode, location);
                    }
                }
                self.durable.send_replace(up_to);
                for command in self.held.release(up_to) {
                    self.run_command(command)?;
                }
            }
            Outcome::Blocked(problem) => {
                if self.blocked.is_none() {
                    tracing::warn!("admission stops: {problem}");
                }
                self.blocked = Some(problem);
            }
            Outcome::Recovered => {
                tracing::info!("the journal can be written again: admission goes on");
                self.blocked = None;
            }
            Outcome::SnapshotKept(position) => tracing::debug!("snapshot at record {position}"),
            Outcome::Refused(problem) => tracing::warn!("no snapshot: {problem}"),
            Outcome::Fenced(problem) => return Err(DriverError::Deposed(problem)),
            Outcome::Failed(problem) => return Err(DriverError::JournalFailed(problem)),
        }
        Ok(())
    }

    /// Lets the engine decide, and hands the record to the journal. Nothing is done yet.
    fn handle(&mut self, event: Event, payload: Option<Payload>) -> Result<(), DriverError> {
        let now = self.now();
        let mut entry = entry::of_event(now, &event);
        self.engine.handle(now, event.clone());
        entry.effects = self.engine.take_effects();
        let keeps_payload = entry::keeps_payload(&event, &entry.effects);
        let finished = entry::finished_episode(&entry.effects);
        let mut record = Record { head: entry.encode_to_vec().into(), payload: Bytes::new() };
        let mut permit = None;
        if let Some(payload) = payload.filter(|_| keeps_payload) {
            if let Some(episode) = finished {
                self.payloads.load(episode, payload.bytes.clone());
            }
            (record.payload, permit) = (payload.bytes, Some(payload.permit));
        }
        let commands = std::iter::from_fn(|| self.engine.next_command()).collect();
        let position = self.held.hold(commands);
        self.finishing.extend(finished.map(|episode| (position, episode)));
        self.unsnapped += 1;
        let request = Request::Append { record, permit };
        self.writer.requests.try_send(request).map_err(|_| DriverError::Journal)
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
            Command::ServeBatch { stream, batch } => self.serve_batch(stream, batch),
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
            Command::Release(episodes) => self.payloads.release(&episodes),
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
            let (orders, inbox) = mpsc::channel(SERVED_AHEAD_MAX as usize);
            let run_id = self.created.run_id.clone();
            tokio::spawn(serving::serve(run_id, self.reader.clone(), inbox, batches));
            self.learners.insert(stream, LearnerPlace::Accepted(orders));
        }
    }

    fn serve_batch(&mut self, stream: StreamId, batch: Arc<Batch>) {
        let Some(LearnerPlace::Accepted(orders)) = self.learners.get(&stream) else { return };
        let source = |episode: EpisodeId| Some((episode, self.payloads.source(episode)?));
        let sources = batch.episodes().into_iter().filter_map(source).collect();
        let is_last = batch.kind == StepKind::Finish;
        // Full is ruled out: the engine serves no more than the channel holds. Closed is about to be
        // reported by the stream itself.
        drop(orders.try_send(Order { batch, sources }));
        if is_last {
            self.learners.remove(&stream);
        }
    }

    /// Writes a snapshot now and then, at a moment when every record is durable, so that the places
    /// of all trajectories are known.
    fn snapshot_if_due(&mut self) -> Result<(), DriverError> {
        if self.unsnapped < SNAPSHOT_RECORDS || !self.held.is_empty() {
            return Ok(());
        }
        self.unsnapped = 0;
        let locations = self.payloads.locations();
        let bytes = rebuild::to_snapshot(&self.engine, &self.created, locations)?;
        let snapshot = Request::Snapshot { position: self.held.next(), bytes: bytes.into() };
        self.writer.requests.try_send(snapshot).map_err(|_| DriverError::Journal)
    }

    /// Publishes the status unless it was published just now. Returns whether it is up to date.
    fn publish_status(&mut self) -> bool {
        if self.status_published.elapsed() < STATUS_INTERVAL {
            return false;
        }
        self.status.send_replace(self.view().status());
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
