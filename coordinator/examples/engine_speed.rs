//! How many events the engine decides in a second, alone: no disk, no network, one thread.
//!
//! 10,000 actors with 4 slots each run episodes of very different lengths and report them; a learner
//! finishes a step whenever it has a batch; now and then an actor loses its stream and claims what it
//! has, gives an episode back, or is lost. Only the engine's own time is counted: what the actors do
//! in between is not.
//!
//! `cargo run -p ballast-coordinator --example engine_speed [EVENTS]`

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use ballast_coordinator::engine::{
    Batch, CallId, Command, Engine, Event, Hello, SessionId, StreamId,
};
use ballast_proto::{
    ActorId, EpisodeId, Generation,
    v1::{
        Assignment, CompleteStepRequest, NextBatchRequest, SampledVersion, StepKind, StopReason,
        TrajectorySummary, coordinator_message::Message,
    },
};
use ballast_runtime::{
    config::{Config, ScheduleKind},
    memory::peak_rss_bytes,
};

const ACTORS: usize = 10_000;
const SLOTS: u32 = 4;
/// Events that are made before the clock runs.
const CHUNK: usize = 4096;
const EVENTS_DEFAULT: usize = 4_000_000;
/// One episode in so many ends in another way than with a trajectory.
const FAULT_EVERY: u64 = 1000;
const REPORTS: usize = 8;

fn main() {
    let events = std::env::args().nth(1).and_then(|text| text.parse().ok());
    let events = events.unwrap_or(EVENTS_DEFAULT);
    let mut world = World::new();
    world.start();
    println!(
        "{ACTORS} actors, {SLOTS} slots each: {} episodes in flight, {:.0} MB",
        world.running.len(),
        peak_mb()
    );
    for _ in 0..REPORTS {
        let (begin, busy, steps) = (world.handled, world.busy, world.engine.version().0);
        while world.handled < begin + events / REPORTS {
            world.chunk();
        }
        let (handled, seconds) = (world.handled - begin, (world.busy - busy).as_secs_f64());
        println!(
            "{handled} events in {seconds:.2} s: {:.0} events/s; {} steps; peak {:.0} MB",
            handled as f64 / seconds,
            world.engine.version().0 - steps,
            peak_mb()
        );
    }
    let seconds = world.busy.as_secs_f64();
    let rate = world.handled as f64 / seconds;
    println!("{{\"events_per_s\": {rate:.0}, \"peak_mb\": {:.0}}}", peak_mb());
}

fn peak_mb() -> f64 {
    peak_rss_bytes() as f64 / 1e6
}

/// No demonstrations, no evaluations; groups enough that every slot has an episode.
fn config() -> Config {
    let mut config = Config::default();
    config.schedule.kind = ScheduleKind::RlOnly;
    config.schedule.steps = 1 << 40;
    config.tasks.demonstrations = 0;
    config.evaluation.tasks = 0;
    config.rl.group_size = 8;
    config.rl.groups_per_batch = 512;
    config.rl.staleness_max = 16;
    config
}

struct Actor {
    session: SessionId,
    generation: u64,
}

struct World {
    engine: Engine,
    now: Duration,
    actors: Vec<Actor>,
    by_session: BTreeMap<SessionId, usize>,
    /// (actor, episode).
    running: Vec<(usize, Assignment)>,
    batches: Vec<Arc<Batch>>,
    version: u64,
    random: u64,
    ids: u64,
    handled: usize,
    busy: Duration,
}

impl World {
    fn new() -> Self {
        Self {
            engine: Engine::new(config(), "speed".into()),
            now: Duration::ZERO,
            actors: Vec::new(),
            by_session: BTreeMap::new(),
            running: Vec::new(),
            batches: Vec::new(),
            version: 0,
            random: 0x9e37_79b9_7f4a_7c15,
            ids: 0,
            handled: 0,
            busy: Duration::ZERO,
        }
    }

    /// Everybody comes; the first checkpoint and evaluation are done.
    fn start(&mut self) {
        let stream = StreamId(self.id());
        let request = NextBatchRequest {
            learner_id: "learner".into(),
            manifest_hash: hash(0),
            ..NextBatchRequest::default()
        };
        self.handle(vec![Event::LearnerConnected { stream, request }]);
        self.answer();
        for actor in 0..ACTORS {
            self.actors.push(Actor { session: SessionId(0), generation: 1 });
            let events = self.connect(actor);
            self.handle(events);
        }
        (self.handled, self.busy) = (0, Duration::ZERO);
    }

    /// A chunk of what happens in such a run.
    fn chunk(&mut self) {
        let mut events = Vec::with_capacity(CHUNK + 8);
        while events.len() < CHUNK && !self.running.is_empty() {
            self.end_episode(&mut events);
        }
        self.handle(events);
        self.answer();
    }

    fn end_episode(&mut self, events: &mut Vec<Event>) {
        let index = self.draw() as usize % self.running.len();
        let (actor, assignment) = self.running.swap_remove(index);
        let Actor { session, generation } = self.actors[actor];
        let episode = EpisodeId(assignment.episode_id);
        match self.draw() % (3 * FAULT_EVERY) {
            0 => {
                let (reason, tokens) = ("draining".into(), 100);
                events.push(Event::EpisodeGivenBack { session, episode, reason, tokens });
            }
            1 => {
                self.running.push((actor, assignment));
                events.push(Event::ActorDisconnected { session });
                events.extend(self.connect(actor));
                return;
            }
            2 => {
                let name = actor_id(actor);
                let generation = Generation(generation);
                self.running.retain(|(other, _)| *other != actor);
                events.push(Event::LeaseExpired { actor: name, generation });
                events.extend(self.connect(actor));
                return;
            }
            _ => {
                let trajectory = Arc::new(self.trajectory(&assignment));
                events.push(Event::TrajectoryReported { session, trajectory });
            }
        }
        events.push(Event::SlotsFreed { session, slots: 1 });
    }

    /// An actor's stream begins; it claims what it has and offers the rest of its slots.
    fn connect(&mut self, actor: usize) -> Vec<Event> {
        let session = SessionId(self.id());
        self.by_session.remove(&self.actors[actor].session);
        self.by_session.insert(session, actor);
        self.actors[actor].session = session;
        let mine = self.running.iter().filter(|(other, _)| *other == actor);
        let claims: Vec<_> = mine.map(|(_, one)| EpisodeId(one.episode_id)).collect();
        let slots = SLOTS - claims.len() as u32;
        let generation = Generation(self.actors[actor].generation);
        let hello = Hello { actor: actor_id(actor), generation, slots: SLOTS, claims };
        vec![Event::ActorConnected { session, hello }, Event::SlotsFreed { session, slots }]
    }

    /// The learner finishes what it was served.
    fn answer(&mut self) {
        while let Some(batch) = self.batches.pop() {
            let is_step = matches!(batch.kind, StepKind::Rl | StepKind::Sft);
            self.version = self.version.max(batch.step);
            let request = CompleteStepRequest {
                learner_id: "learner".into(),
                step: batch.step,
                kind: batch.kind.into(),
                manifest_hash: if is_step { hash(batch.step) } else { Vec::new() },
                checkpoint: (!is_step).then(|| format!("checkpoints/step-{}", batch.step)),
                ..CompleteStepRequest::default()
            };
            let (call, actors) = (CallId(0), BTreeMap::new());
            self.handle(vec![Event::StepCompleted { call, request, actors }]);
        }
    }

    /// The engine's time, and nothing else's.
    fn handle(&mut self, events: Vec<Event>) {
        let mut commands = Vec::with_capacity(4 * events.len());
        self.handled += events.len();
        let began = Instant::now();
        for event in events {
            self.now += Duration::from_micros(2);
            self.engine.handle(self.now, event);
            drop(self.engine.take_effects());
            commands.extend(std::iter::from_fn(|| self.engine.next_command()));
        }
        self.busy += began.elapsed();
        commands.into_iter().for_each(|command| self.run(command));
    }

    fn run(&mut self, command: Command) {
        match command {
            Command::Send { session, message: Message::Assignment(assignment) } => {
                if let Some(actor) = self.by_session.get(&session) {
                    self.running.push((*actor, assignment));
                }
            }
            Command::ServeBatch { batch, .. } => self.batches.insert(0, batch),
            Command::AnswerStep { answer: Err(refusal), .. } => eprintln!("refused: {refusal}"),
            Command::RefuseLearner { reason, .. } => eprintln!("refused: {reason}"),
            _ => {}
        }
    }

    fn trajectory(&mut self, assignment: &Assignment) -> TrajectorySummary {
        let tokens = 200 + (self.draw() % 800) as u32;
        let success = self.draw().is_multiple_of(3);
        let version = assignment.min_policy_version.unwrap_or(0).max(self.version);
        TrajectorySummary {
            episode_id: assignment.episode_id,
            group_id: assignment.group_id,
            task: assignment.task.clone(),
            mode: assignment.mode,
            sampling_seed: assignment.sampling_seed,
            stop_reason: StopReason::Done.into(),
            reward: Some(if success { 1.0 } else { 0.0 }),
            success: Some(success),
            tokens,
            tokens_sampled: tokens / 2,
            token_id_max: 1000,
            oldest_version: Some(version),
            sampled_versions: vec![SampledVersion {
                policy_version: version,
                manifest_hash: hash(version),
            }],
            messages: 4,
            calls: 3,
            ..TrajectorySummary::default()
        }
    }

    fn id(&mut self) -> u64 {
        self.ids += 1;
        self.ids
    }

    /// xorshift64.
    fn draw(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }
}

fn actor_id(actor: usize) -> ActorId {
    ActorId(format!("ballast-actor-{actor}"))
}

fn hash(version: u64) -> Vec<u8> {
    let mut hash = vec![0x5a; 32];
    hash[..8].copy_from_slice(&version.to_le_bytes());
    hash
}
