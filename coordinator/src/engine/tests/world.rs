//! The world around an engine: a journal, actors and a learner. Like the driver, it keeps commands
//! back until the entries of their events are durable; unlike it, it is told when that is, and when
//! to crash. What actors and the learner do is in `peers`.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use ballast_proto::v1::{
    AdminChange, Assignment, Effect, JournalEntry, TrajectorySummary, admin_change::Change,
    coordinator_message::Message, effect,
};
use ballast_runtime::config::{Config, ScheduleKind};

use crate::{
    engine::{
        Batch, CallId, ChangeAnswer, ChangeRefusal, Command, Engine, Event, SessionEnd, SessionId,
        StreamId,
    },
    entry::{self, Entry},
    metrics::MetricsLine,
    result::RunResult,
};

/// An actor's process. It keeps what it runs, and what nobody acknowledged, while it is away.
#[derive(Debug, Default)]
pub(super) struct Actor {
    pub(super) generation: u64,
    pub(super) slots: u32,
    /// Its stream; `None` while it is away.
    pub(super) session: Option<SessionId>,
    /// Slots offered over this stream that no assignment came for.
    pub(super) offered: u32,
    pub(super) running: Vec<Assignment>,
    pub(super) unacknowledged: Vec<Arc<TrajectorySummary>>,
    pub(super) acknowledged: Vec<u64>,
    pub(super) discarded: Vec<u64>,
    pub(super) sources: Vec<String>,
    pub(super) drained: bool,
}

/// A learner's process.
#[derive(Debug)]
pub(super) struct Learner {
    pub(super) generation: u64,
    /// Its stream; `None` while the coordinator is gone.
    pub(super) stream: Option<StreamId>,
    pub(super) batches: VecDeque<Arc<Batch>>,
    /// Last optimizer step in its parameters.
    pub(super) step: u64,
}

pub(super) struct World {
    config: Config,
    pub(super) engine: Engine,
    /// Another engine that is told the same and must want the same.
    pub(super) twin: Option<Engine>,
    pub(super) now: Duration,
    /// Every event with what it led to.
    pub(super) journal: Vec<JournalEntry>,
    /// Commands of the newest events, which are not durable yet.
    held: VecDeque<Vec<Command>>,
    /// Events that may be handled before they are durable.
    pub(super) lag: usize,
    /// (entries in it, the engine after them).
    snapshot: Option<(usize, Vec<u8>)>,
    terms: u64,
    pub(super) actors: BTreeMap<String, Actor>,
    /// Streams the engine takes for open.
    open: BTreeSet<SessionId>,
    pub(super) ends: Vec<SessionEnd>,
    pub(super) learner: Option<Learner>,
    pub(super) refused: Vec<String>,
    /// Every batch served, those served again included.
    pub(super) served: Vec<Arc<Batch>>,
    /// Newest version any learner published: actors may sample under it.
    pub(super) published: u64,
    /// Step of the newest checkpoint a learner wrote: where a crashed one starts again.
    pub(super) checkpoint: u64,
    pub(super) answers: Vec<Result<(), String>>,
    pub(super) changes: Vec<Result<ChangeAnswer, ChangeRefusal>>,
    pub(super) lines: Vec<MetricsLine>,
    pub(super) warnings: Vec<String>,
    pub(super) released: BTreeSet<u64>,
    pub(super) result: Option<RunResult>,
    pub(super) exited: bool,
    /// Success rate of evaluated episodes is 1 / this; 0 is none.
    pub(super) success_every: u64,
    /// Whether explored episodes are structurally polluted.
    pub(super) polluted: bool,
    /// Every assignment that reached an actor.
    pub(super) assigned: Vec<Assignment>,
    /// Every trajectory an actor was told is durable.
    pub(super) acknowledged: BTreeSet<u64>,
    ids: u64,
}

pub(super) fn config() -> Config {
    let mut config = Config::default();
    config.tasks.demonstrations = 3;
    config.schedule.kind = ScheduleKind::Interleave;
    config.schedule.steps = 5;
    config.schedule.rl_steps = 2;
    config.schedule.sft_steps = 1;
    config.schedule.cold_start_steps_max = 4;
    config.schedule.cold_start_check_every = 2;
    config.schedule.cold_start_success = 0.5;
    config.rl.group_size = 2;
    config.rl.groups_per_batch = 2;
    config.rl.staleness_max = 1;
    config.sft.batch = 2;
    config.evaluation.tasks = 3;
    config.evaluation.check_tasks = 2;
    config.learner.checkpoint_every = 2;
    config
}

impl World {
    /// A new run, led by its first coordinator.
    pub(super) fn new(config: Config) -> Self {
        let mut world = Self {
            engine: Engine::new(config.clone(), "run".into()),
            config,
            twin: None,
            now: Duration::ZERO,
            journal: Vec::new(),
            held: VecDeque::new(),
            lag: 0,
            snapshot: None,
            terms: 0,
            actors: BTreeMap::new(),
            open: BTreeSet::new(),
            ends: Vec::new(),
            learner: None,
            refused: Vec::new(),
            served: Vec::new(),
            published: 0,
            checkpoint: 0,
            answers: Vec::new(),
            changes: Vec::new(),
            lines: Vec::new(),
            warnings: Vec::new(),
            released: BTreeSet::new(),
            result: None,
            exited: false,
            success_every: 2,
            polluted: false,
            assigned: Vec::new(),
            acknowledged: BTreeSet::new(),
            ids: 0,
        };
        world.lead();
        world
    }

    pub(super) fn id(&mut self) -> u64 {
        self.ids += 1;
        self.ids
    }

    pub(super) fn session_id(&mut self) -> SessionId {
        SessionId(self.id())
    }

    pub(super) fn actor(&mut self, name: &str) -> &mut Actor {
        self.actors.get_mut(name).expect("an actor of this name")
    }

    /// Writes an event down and hands it to the engine; runs what is durable by then.
    pub(super) fn handle(&mut self, event: Event) {
        self.now += Duration::from_millis(1);
        let mut entry = entry::of_event(self.now, &event);
        if let Event::ActorConnected { session, .. } = &event {
            self.open.insert(*session);
        }
        if let Event::ActorDisconnected { session } = &event {
            self.open.remove(session);
        }
        let twin = self.twin.as_mut().map(|twin| outcome(twin, self.now, event.clone()));
        let (effects, commands) = outcome(&mut self.engine, self.now, event);
        if let Some(twin) = twin {
            assert_eq!((&effects, &commands), (&twin.0, &twin.1), "both want the same");
        }
        entry.effects = effects;
        self.journal.push(entry);
        for command in &commands {
            match command {
                Command::Send { session, message } => {
                    assert!(self.open.contains(session), "to a closed stream: {message:?}");
                }
                Command::CloseSession { session, .. } => assert!(self.open.remove(session)),
                _ => {}
            }
        }
        self.held.push_back(commands);
        while self.held.len() > self.lag {
            self.sync_one();
        }
    }

    /// The oldest entry that is not durable becomes it.
    fn sync_one(&mut self) {
        for command in self.held.pop_front().unwrap_or_default() {
            self.run(command);
        }
    }

    pub(super) fn sync(&mut self) {
        while !self.held.is_empty() {
            self.sync_one();
        }
    }

    fn run(&mut self, command: Command) {
        match command {
            Command::Send { session, message } => self.deliver(session, message),
            Command::CloseSession { session, end } => {
                if let Some(actor) = self.at(session) {
                    actor.session = None;
                }
                self.ends.push(end);
            }
            Command::AcceptLearner { .. } => {}
            Command::RefuseLearner { stream, reason } => {
                self.learner.take_if(|learner| learner.stream == Some(stream));
                self.refused.push(reason);
            }
            Command::ServeBatch { stream, batch } => {
                if let Some(learner) = &mut self.learner
                    && learner.stream == Some(stream)
                {
                    learner.batches.push_back(Arc::clone(&batch));
                    self.served.push(batch);
                }
            }
            Command::AnswerStep { answer, .. } => self.answers.push(answer),
            Command::AnswerChange { answer, .. } => self.changes.push(answer),
            Command::Release(episodes) => {
                for episode in episodes {
                    assert!(self.released.insert(episode.0), "{episode} is released twice");
                }
            }
            Command::WriteMetrics(line) => self.lines.push(line),
            Command::WriteResult(result) => self.result = Some(*result),
            Command::Exit => self.exited = true,
            Command::Warn(text) => self.warnings.push(text),
            Command::Inform(_) => {}
        }
    }

    /// The actor behind a stream that it still has.
    fn at(&mut self, session: SessionId) -> Option<&mut Actor> {
        self.actors.values_mut().find(|actor| actor.session == Some(session))
    }

    fn deliver(&mut self, session: SessionId, message: Message) {
        let Some(actor) = self.at(session) else { return };
        match message {
            Message::Assignment(assignment) => {
                actor.offered = actor.offered.saturating_sub(1);
                actor.running.push(assignment.clone());
                self.assigned.push(assignment);
            }
            Message::Acknowledged(one) => {
                actor.unacknowledged.retain(|held| held.episode_id != one.episode_id);
                actor.acknowledged.push(one.episode_id);
                self.acknowledged.insert(one.episode_id);
            }
            Message::Discard(one) => {
                actor.unacknowledged.retain(|held| held.episode_id != one.episode_id);
                actor.running.retain(|running| running.episode_id != one.episode_id);
                actor.discarded.push(one.episode_id);
            }
            Message::WeightSource(source) => actor.sources.push(source.address),
            Message::Drain(_) => actor.drained = true,
            Message::Welcome(welcome) => assert_eq!(welcome.run_id, "run"),
        }
    }

    /// A coordinator takes over.
    fn lead(&mut self) {
        self.terms += 1;
        self.handle(Event::CoordinatorStarted { term: self.terms });
    }

    /// Keeps the engine as it is.
    pub(super) fn take_snapshot(&mut self) {
        self.snapshot = Some((self.journal.len(), to_bytes(&self.engine)));
    }

    /// The coordinator dies. Commands that wait for the disk are never run, and the newest `lost` of
    /// their events are not in the journal. Another one takes over; all streams are gone.
    pub(super) fn crash(&mut self, lost: usize, from_snapshot: bool) {
        let lost = lost.min(self.held.len());
        self.held.clear();
        self.journal.truncate(self.journal.len() - lost);
        self.snapshot.take_if(|(entries, _)| *entries > self.journal.len());
        let rebuilt = self.rebuilt(from_snapshot);
        let died = std::mem::replace(&mut self.engine, rebuilt);
        if self.twin.is_some() {
            self.twin = Some(from_bytes(&to_bytes(&self.engine)));
        }
        if lost == 0 {
            assert_eq!(self.engine, died, "a rebuild comes to the engine that died");
        }
        for actor in self.actors.values_mut() {
            (actor.session, actor.offered) = (None, 0);
        }
        if let Some(learner) = &mut self.learner {
            learner.stream = None;
            learner.batches.clear();
        }
        self.open.clear();
        self.lead();
    }

    /// The engine of the journal, from its beginning or from the snapshot on.
    fn rebuilt(&self, from_snapshot: bool) -> Engine {
        let (mut entries, mut engine) = (0, Engine::new(self.config.clone(), "run".into()));
        if let (Some((position, bytes)), true) = (&self.snapshot, from_snapshot) {
            (entries, engine) = (*position, from_bytes(bytes));
        }
        for entry in &self.journal[entries..] {
            let Ok(Entry::Handled { now, event, effects }) = entry::read(entry.clone()) else {
                panic!("an entry that is not an event: {entry:?}");
            };
            engine.handle(now, event);
            assert_eq!(engine.take_effects(), effects, "a rebuild decides the same");
            while engine.next_command().is_some() {}
        }
        engine
    }

    /// What the events so far led to, in order.
    pub(super) fn effects(&self) -> impl Iterator<Item = &effect::Effect> {
        let effects = self.journal.iter().flat_map(|entry| &entry.effects);
        effects.filter_map(|Effect { effect }| effect.as_ref())
    }

    /// Somebody asks for a change.
    pub(super) fn ask(&mut self, change: Change) {
        let call = CallId(self.id());
        let change = AdminChange { reason: "a test".into(), change: Some(change) };
        self.handle(Event::AdminRequested { call, who: "somebody".into(), change });
    }

    /// Somebody asks for a change and waits for the answer.
    pub(super) fn admin(&mut self, change: Change) -> Result<ChangeAnswer, ChangeRefusal> {
        self.ask(change);
        self.sync();
        self.changes.pop().expect("answered")
    }
}

/// Hands an engine an event. Returns what that led to and what it wants done.
fn outcome(engine: &mut Engine, now: Duration, event: Event) -> (Vec<Effect>, Vec<Command>) {
    engine.handle(now, event);
    (engine.take_effects(), std::iter::from_fn(|| engine.next_command()).collect())
}

pub(super) fn to_bytes(engine: &Engine) -> Vec<u8> {
    let mut bytes = Vec::new();
    ciborium::into_writer(engine, &mut bytes).expect("an engine can be written down");
    bytes
}

pub(super) fn from_bytes(bytes: &[u8]) -> Engine {
    ciborium::from_reader(bytes).expect("what was written can be read")
}
