//! The rules of `coordinator/src/driver.rs`, without threads: an event is handled, its record goes to
//! the journal, and what it led to waits until the record is durable.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use ballast_coordinator::{
    engine::{Batch, CallId, Command, Engine, Event, SessionEnd, SessionId, StreamId, of_actors},
    entry,
    held::Held,
    journal::{Location, Outcome, Position, ReadError, Reader, Record, Request, StorageError},
    payloads::Payloads,
    rebuild::{self, Rebuilt},
    recovery::Recovered,
    roster::Roster,
    serving::{self, AssemblyError, Order},
};
use ballast_proto::{
    EpisodeId,
    v1::{RunCreated, StepKind, TrainBatch, coordinator_message::Message as ToActor},
};
use bytes::Bytes;
use prost::Message as _;

use super::door::{Door, Input};
use crate::{
    env::Env,
    invariants::Sizes,
    network::{LinkId, Message, Side},
    plant::Plant,
};

/// Why the loop ends.
#[derive(Debug)]
pub(super) enum Leave {
    /// The run is over.
    Finished,
    /// Somebody else leads.
    Deposed,
    /// The journal cannot be trusted.
    Failed,
}

/// The loop and everything it holds.
#[derive(Debug)]
pub(super) struct Driver {
    engine: Engine,
    created: RunCreated,
    roster: Roster,
    payloads: Payloads,
    held: Held,
    /// Episodes whose trajectories are on their way to these positions.
    finishing: BTreeMap<Position, EpisodeId>,
    /// Time of the run when this process began to lead, and what its clock said then.
    base: Duration,
    started: Duration,
    /// Time of the run.
    now: Duration,
    door: Door,
    inbox: VecDeque<Input>,
    reader: Reader,
    blocked: bool,
    unsnapped: u64,
    sessions: BTreeMap<SessionId, LinkId>,
    learners: BTreeMap<StreamId, LinkId>,
    calls: BTreeMap<CallId, (LinkId, u64)>,
    changes: BTreeMap<CallId, LinkId>,
    /// Everything before this is durable.
    durable: Position,
    /// For the journal's thread.
    pub(super) requests: Vec<Request>,
    exit: bool,
}

impl Driver {
    /// Puts the parts together, and makes the beginning of this leadership the first event.
    pub(super) fn new(env: &mut Env, clock: Duration, run: Rebuilt, journal: Ends) -> Self {
        let now = run.now();
        let Rebuilt { engine, created, locations, records, .. } = run;
        let lease = Duration::from_secs_f64(engine.config().coordinator.actor_lease_s);
        let mut roster = Roster::new(lease);
        if !env.has(Plant::NoLease) {
            for (actor, generation) in engine.actors() {
                roster.join(now, actor, generation, None);
            }
        }
        let mut driver = Self {
            engine,
            created,
            roster,
            payloads: Payloads::stored(locations),
            held: Held::new(journal.next),
            finishing: BTreeMap::new(),
            base: now,
            started: clock,
            now,
            door: Door::default(),
            inbox: VecDeque::new(),
            reader: journal.reader,
            blocked: false,
            unsnapped: records,
            sessions: BTreeMap::new(),
            learners: BTreeMap::new(),
            calls: BTreeMap::new(),
            changes: BTreeMap::new(),
            durable: journal.next,
            requests: Vec::new(),
            exit: false,
        };
        driver.handle(env, Event::CoordinatorStarted { term: journal.term }, None);
        driver
    }

    fn set_clock(&mut self, clock: Duration) {
        self.now = entry::whole_micros(self.base + clock.saturating_sub(self.started));
    }

    // === what comes in ===

    pub(super) fn receive(&mut self, env: &mut Env, link: LinkId, message: Message) {
        let run_id = &self.created.run_id;
        let input = self.door.take(env, run_id, link, message);
        self.inbox.extend(input);
    }

    pub(super) fn link_ended(&mut self, link: LinkId) {
        self.inbox.extend(self.door.end(link));
    }

    /// Takes what has come in, as far as it may.
    pub(super) fn turn(&mut self, env: &mut Env, clock: Duration) -> Result<(), Leave> {
        self.set_clock(clock);
        while !self.exit && !self.held.is_full() && !self.blocked {
            if let Some(input) = self.inbox.pop_front() {
                self.on_input(env, input);
            } else if !self.on_deadline(env) {
                break;
            }
            self.snapshot_if_due(env);
        }
        if self.exit { Err(Leave::Finished) } else { Ok(()) }
    }

    /// Time until something is to be done although nothing happens.
    pub(super) fn next_deadline(&self) -> Option<Duration> {
        if self.blocked || self.held.is_full() {
            return None;
        }
        let next =
            self.engine.next_deadline().into_iter().chain(self.roster.next_expiry()).min()?;
        Some(next.saturating_sub(self.now))
    }

    /// Returns whether anything was due.
    fn on_deadline(&mut self, env: &mut Env) -> bool {
        let due = |at: Option<Duration>| at.is_some_and(|at| at <= self.now);
        let (lease, engine) = (due(self.roster.next_expiry()), due(self.engine.next_deadline()));
        for (actor, generation) in self.roster.expire(self.now) {
            if self.engine.counts_on(&actor) {
                env.note(format_args!("  the lease of {actor} has ended"));
                self.handle(env, Event::LeaseExpired { actor, generation }, None);
            }
        }
        if engine {
            self.handle(env, Event::DeadlineReached, None);
        }
        lease || engine
    }

    fn on_input(&mut self, env: &mut Env, input: Input) {
        let now = self.now;
        match input {
            Input::Heartbeat(session, heartbeat) => self.roster.beat(now, session, heartbeat),
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
                self.handle(env, event, None);
            }
            Input::Session(session, event, link) => {
                self.sessions.insert(session, link);
                if let Event::ActorConnected { hello, .. } = &event {
                    self.roster.join(now, &hello.actor, hello.generation, Some(session));
                }
                self.handle(env, event, None);
            }
            Input::Trajectory(session, event, payload) => {
                self.roster.hear(now, session);
                self.handle(env, event, Some(payload));
            }
            Input::Learner(stream, event, link) => {
                self.learners.insert(stream, link);
                self.handle(env, event, None);
            }
            Input::Step(call, event, caller) => {
                self.calls.insert(call, caller);
                let event = match event {
                    Event::StepCompleted { call, request, .. } => {
                        let actors = of_actors(self.roster.heartbeats());
                        Event::StepCompleted { call, request, actors }
                    }
                    other => other,
                };
                self.handle(env, event, None);
            }
            Input::Change(call, event, link) => {
                self.changes.insert(call, link);
                self.handle(env, event, None);
            }
        }
    }

    /// What the journal's thread says.
    pub(super) fn on_outcome(&mut self, env: &mut Env, outcome: Outcome) -> Result<(), Leave> {
        match outcome {
            Outcome::Durable { up_to, locations } => self.on_durable(env, up_to, &locations),
            Outcome::Blocked(problem) => {
                env.note(format_args!("  admission stops: {problem}"));
                self.blocked = true;
            }
            Outcome::Recovered => self.blocked = false,
            Outcome::SnapshotKept(_) | Outcome::Refused(_) => {}
            Outcome::Fenced(_) => return Err(Leave::Deposed),
            Outcome::Failed(_) => return Err(Leave::Failed),
        }
        Ok(())
    }

    fn on_durable(&mut self, env: &mut Env, up_to: Position, locations: &[Location]) {
        self.durable = up_to;
        for location in locations {
            if let Some(episode) = self.finishing.remove(&location.position) {
                self.payloads.store(episode, *location);
            }
        }
        let one_more = u64::from(env.has(Plant::ReleaseOneMore));
        for command in self.held.release(Position(up_to.0 + one_more)) {
            self.run_command(env, command);
        }
        self.snapshot_if_due(env);
    }

    /// Lets the engine decide, and hands the record to the journal. Nothing is done yet.
    fn handle(&mut self, env: &mut Env, event: Event, payload: Option<Bytes>) {
        let mut entry = entry::of_event(self.now, &event);
        let is_refused = matches!(event, Event::TrajectoryInvalid { .. });
        self.engine.handle(self.now, event);
        entry.effects = self.engine.take_effects();
        let finished = entry::finished_episode(&entry.effects);
        let mut record = Record { head: entry.encode_to_vec().into(), payload: Bytes::new() };
        if let Some(payload) = payload.filter(|_| is_refused || finished.is_some()) {
            if let Some(episode) = finished {
                self.payloads.load(episode, payload.clone());
            }
            record.payload = payload;
        }
        let mut commands: Vec<_> = std::iter::from_fn(|| self.engine.next_command()).collect();
        if env.has(Plant::AcknowledgeEarly) {
            commands = self.acknowledge_early(env, commands);
        }
        let position = self.held.hold(commands);
        self.finishing.extend(finished.map(|episode| (position, episode)));
        self.unsnapped += 1;
        self.requests.push(Request::Append { record, permit: None });
    }

    /// A planted bug: tells actors that a trajectory is durable when it is not. Returns the rest.
    fn acknowledge_early(&mut self, env: &mut Env, commands: Vec<Command>) -> Vec<Command> {
        let is_early = |command: &Command| {
            matches!(command, Command::Send { message: ToActor::Acknowledged(_), .. })
        };
        let (early, rest): (Vec<_>, Vec<_>) = commands.into_iter().partition(is_early);
        early.into_iter().for_each(|command| self.run_command(env, command));
        rest
    }

    /// A planted bug: does what is not durable.
    pub(super) fn flush(&mut self, env: &mut Env) {
        for command in self.held.release(Position(u64::MAX)) {
            self.run_command(env, command);
        }
    }

    fn snapshot_if_due(&mut self, env: &mut Env) {
        if self.unsnapped < env.scenario.snapshot_records || !self.held.is_empty() {
            return;
        }
        self.unsnapped = 0;
        if env.scenario.foreign_snapshots && self.held.next().0.is_multiple_of(3) {
            // As another version of the program would leave it.
            let (position, bytes) = (self.held.next(), Bytes::from_static(b"another version"));
            return self.requests.push(Request::Snapshot { position, bytes });
        }
        match rebuild::to_snapshot(&self.engine, &self.created, self.payloads.locations()) {
            Ok(bytes) => {
                let (position, bytes) = (self.held.next(), bytes.into());
                self.requests.push(Request::Snapshot { position, bytes });
            }
            Err(error) => env.oracle.broken("J4", error.to_string()),
        }
    }

    // === what goes out ===

    fn run_command(&mut self, env: &mut Env, command: Command) {
        match command {
            Command::Send { session, message } => self.send(env, session, message),
            Command::CloseSession { session, end } => self.close_session(env, session, &end),
            Command::AcceptLearner { stream } => {
                if let Some(link) = self.learners.get(&stream) {
                    env.send(*link, Side::Server, Message::Accepted);
                }
            }
            Command::RefuseLearner { stream, reason } => {
                if let Some(link) = self.learners.get(&stream).copied() {
                    env.send(link, Side::Server, Message::Refused(reason));
                    self.end_learner(env, stream);
                }
            }
            Command::ServeBatch { stream, batch } => self.serve_batch(env, stream, batch),
            Command::AnswerStep { call, answer } => {
                if let Some((link, number)) = self.calls.remove(&call) {
                    env.send(link, Side::Server, Message::StepAnswer(number, answer));
                }
            }
            Command::AnswerChange { call, answer } => {
                if let Some(link) = self.changes.remove(&call) {
                    env.send(link, Side::Server, Message::ChangeAnswer(answer));
                }
            }
            Command::Release(episodes) => self.payloads.release(&episodes),
            Command::Warn(text) => env.note(format_args!("  warning: {text}")),
            Command::Exit => self.exit = true,
            Command::WriteMetrics(_) | Command::WriteResult(_) | Command::Inform(_) => {}
        }
    }

    fn send(&mut self, env: &mut Env, session: SessionId, mut message: ToActor) {
        let Some(link) = self.sessions.get(&session) else { return };
        if let (true, ToActor::Assignment(one)) = (env.has(Plant::ReuseEpisode), &mut message) {
            one.episode_id -= u64::from(one.episode_id % 8 == 7);
        }
        env.send(*link, Side::Server, Message::Coordinator(message));
    }

    fn close_session(&mut self, env: &mut Env, session: SessionId, end: &SessionEnd) {
        let Some(link) = self.sessions.remove(&session) else { return };
        if let SessionEnd::OldGeneration { .. } = end {
            env.send(link, Side::Server, Message::Refused(end.to_string()));
        }
        env.close(link, Side::Server);
        // The reading side reports the end of the stream.
        self.inbox.extend(self.door.end(link));
    }

    fn end_learner(&mut self, env: &mut Env, stream: StreamId) {
        if let Some(link) = self.learners.remove(&stream) {
            env.close(link, Side::Server);
            self.inbox.extend(self.door.end(link));
        }
    }

    fn serve_batch(&mut self, env: &mut Env, stream: StreamId, batch: std::sync::Arc<Batch>) {
        let Some(link) = self.learners.get(&stream).copied() else { return };
        let source = |episode: EpisodeId| Some((episode, self.payloads.source(episode)?));
        let sources = batch.episodes().into_iter().filter_map(source).collect();
        let is_last = batch.kind == StepKind::Finish;
        let order = Order { batch, sources };
        match serving::assemble(&order, self.created.run_id.clone(), &self.reader) {
            Ok(mut message) => {
                env.note(format_args!("  step {} ({:?}) is served", message.step, message.kind()));
                spoil(env, &mut message);
                env.send(link, Side::Server, Message::Batch(Box::new(message)));
            }
            // The disk does not answer: the learner connects again.
            Err(AssemblyError::Read(ReadError::Storage(
                StorageError::Unavailable(_) | StorageError::Fatal(_),
            ))) => return self.end_learner(env, stream),
            Err(error) => return env.oracle.broken("J1", error.to_string()),
        }
        if is_last {
            self.end_learner(env, stream);
        }
    }

    // === for the observers ===

    /// The engine and the position after its last record, if all of that is durable.
    pub(super) fn into_engine(self) -> Option<(Position, Engine)> {
        let next = self.held.next();
        (self.held.is_empty() && self.durable == next).then_some((next, self.engine))
    }

    pub(super) fn sizes(&self) -> Sizes {
        use ballast_coordinator::held::HELD_MAX;
        let size = (self.held.next().0 - self.durable.0) as usize;
        // One more event may be the end of a stream that a command closed.
        Sizes { what: "records held", size, bound: HELD_MAX + 1 }
    }
}

/// Planted bugs in what a learner gets.
fn spoil(env: &Env, batch: &mut TrainBatch) {
    let Some(group) = batch.groups.first_mut() else { return };
    match env.plant {
        Some(Plant::OpenGroup) => drop(group.trajectories.pop()),
        Some(Plant::BatchTwice) => batch.step += 1,
        Some(Plant::OtherTokens) => {
            if let Some(token) = group.trajectories[0].token_ids.first_mut() {
                *token ^= 1;
            }
        }
        _ => {}
    }
}

/// The journal, taken over by this process.
#[derive(Debug)]
pub(super) struct Ends {
    pub(super) reader: Reader,
    pub(super) next: Position,
    pub(super) term: u64,
}

impl Ends {
    pub(super) fn of(recovered: &Recovered) -> Self {
        let (reader, next, term) = (recovered.reader.clone(), recovered.next, recovered.term);
        Self { reader, next, term }
    }
}
