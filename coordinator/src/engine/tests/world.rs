//! The world around an engine: actors that run episodes when told to, a learner that applies
//! batches, a disk that becomes durable when told to.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use ballast_proto::{
    ActorId, EpisodeId, Generation,
    v1::{
        Assignment, CompleteStepRequest, Mode, NextBatchRequest, Role, SampledVersion,
        SetScheduleRequest, SetScheduleResponse, Span, StepKind, StopReason, StructuralState,
        TrainBatch, Trajectory, coordinator_message::Message,
    },
    verify_trajectory,
};
use ballast_runtime::config::{Config, ScheduleKind};

use crate::{
    engine::{CallId, ChangeRefusal, Command, Engine, Event, SessionEnd, SessionId, StreamId},
    metrics::MetricsLine,
    result::RunResult,
};

#[derive(Debug, Default)]
pub(super) struct Actor {
    pub(super) running: Vec<Assignment>,
    pub(super) acknowledged: Vec<u64>,
    pub(super) sources: Vec<String>,
    pub(super) drained: bool,
}

#[derive(Debug)]
pub(super) struct Learner {
    pub(super) stream: StreamId,
    pub(super) batches: VecDeque<TrainBatch>,
    pub(super) step: u64,
}

pub(super) enum Durable {
    Trajectory(EpisodeId),
    Batch(u64),
}

pub(super) struct World {
    pub(super) engine: Engine,
    pub(super) now: Duration,
    pub(super) actors: BTreeMap<SessionId, Actor>,
    pub(super) ends: Vec<(SessionId, SessionEnd)>,
    pub(super) learner: Option<Learner>,
    pub(super) refused: Vec<String>,
    /// Every batch served, replays included.
    pub(super) served: Vec<TrainBatch>,
    /// Newest version any learner published: actors may sample under it.
    pub(super) published: u64,
    /// Step of the newest checkpoint a learner wrote: where a crashed one starts again.
    pub(super) checkpoint: u64,
    pub(super) disk: VecDeque<Durable>,
    pub(super) answers: Vec<Result<(), String>>,
    pub(super) lines: Vec<MetricsLine>,
    /// Every note in the journal.
    pub(super) notes: Vec<String>,
    pub(super) changed: Option<Result<SetScheduleResponse, ChangeRefusal>>,
    pub(super) result: Option<RunResult>,
    pub(super) exited: bool,
    /// Success rate of evaluated episodes is 1 / this; 0 is none.
    pub(super) success_every: u64,
    /// Whether explored episodes are structurally polluted.
    pub(super) polluted: bool,
    /// Every assignment ever made.
    pub(super) assigned: Vec<Assignment>,
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

pub(super) fn hash(version: u64) -> Vec<u8> {
    vec![version as u8 ^ 0x5a; 32]
}

/// A sound trajectory of an assignment, sampled under one version.
pub(super) fn trajectory(assignment: &Assignment, version: u64, success: bool) -> Trajectory {
    let sampled = assignment.mode() != Mode::Demonstrate;
    let entry = SampledVersion { policy_version: version, manifest_hash: hash(version) };
    let trajectory = Trajectory {
        episode_id: assignment.episode_id,
        group_id: assignment.group_id,
        task: assignment.task.clone(),
        mode: assignment.mode,
        token_ids: vec![1, 2],
        loss_mask: vec![0, 1],
        behavior_logprobs: if sampled { vec![0.0, -0.5] } else { vec![0.0, 0.0] },
        policy_versions: if sampled { vec![0, version] } else { vec![0, 0] },
        sampled_versions: if sampled { vec![entry] } else { Vec::new() },
        spans: vec![
            Span { role: Role::User.into(), start: 0, end: 1, ..Default::default() },
            Span { role: Role::Assistant.into(), start: 1, end: 2, ..Default::default() },
        ],
        stop_reason: StopReason::Done.into(),
        reward: Some(if success { 1.0 } else { 0.0 }),
        success: Some(success || !sampled),
        sampling_seed: assignment.sampling_seed,
        ..Default::default()
    };
    verify_trajectory(&trajectory).expect("the world makes sound trajectories");
    trajectory
}

impl World {
    pub(super) fn new(config: Config) -> Self {
        Self {
            engine: Engine::new(config),
            now: Duration::ZERO,
            actors: BTreeMap::new(),
            ends: Vec::new(),
            learner: None,
            refused: Vec::new(),
            served: Vec::new(),
            published: 0,
            checkpoint: 0,
            disk: VecDeque::new(),
            answers: Vec::new(),
            lines: Vec::new(),
            notes: Vec::new(),
            changed: None,
            result: None,
            exited: false,
            success_every: 2,
            polluted: false,
            assigned: Vec::new(),
            ids: 0,
        }
    }

    pub(super) fn id(&mut self) -> u64 {
        self.ids += 1;
        self.ids
    }

    pub(super) fn handle(&mut self, event: Event) {
        self.now += Duration::from_millis(1);
        self.engine.handle(self.now, event);
        while let Some(command) = self.engine.next_command() {
            self.run(command);
        }
    }

    fn run(&mut self, command: Command) {
        match command {
            Command::Send { session, message } => self.deliver(session, message),
            Command::CloseSession { session, end } => {
                self.actors.remove(&session);
                self.ends.push((session, end));
            }
            Command::AcceptLearner { .. } => {}
            Command::RefuseLearner { reason, .. } => {
                self.learner = None;
                self.refused.push(reason);
            }
            Command::ServeBatch { stream, batch } => {
                let learner = self.learner.as_mut().expect("served to a learner");
                assert_eq!(learner.stream, stream);
                learner.batches.push_back(batch.to_wire());
                self.served.push(batch.to_wire());
            }
            Command::AnswerStep { answer, .. } => self.answers.push(answer),
            Command::AppendTrajectory(one) => {
                self.disk.push_back(Durable::Trajectory(EpisodeId(one.episode_id)));
            }
            Command::AppendBatch { index, .. } => self.disk.push_back(Durable::Batch(index)),
            Command::WriteMetrics(line) => self.lines.push(line),
            Command::WriteResult(result) => self.result = Some(*result),
            Command::Exit => self.exited = true,
            Command::AnswerChange { answer, .. } => self.changed = Some(answer),
            Command::AppendNote(note) => self.notes.push(note),
            Command::Inform(_) | Command::Warn(_) => {}
        }
    }

    fn deliver(&mut self, session: SessionId, message: Message) {
        let Some(actor) = self.actors.get_mut(&session) else {
            panic!("a message to a closed session: {message:?}");
        };
        match message {
            Message::Assignment(assignment) => {
                self.assigned.push(assignment.clone());
                actor.running.push(assignment);
            }
            Message::Acknowledged(one) => actor.acknowledged.push(one.episode_id),
            Message::WeightSource(source) => actor.sources.push(source.address),
            Message::Drain(_) => actor.drained = true,
            Message::Welcome(_) | Message::Discard(_) => {}
        }
    }

    /// An actor says hello and offers its slots.
    pub(super) fn join(&mut self, name: &str, generation: u64, slots: u32) -> SessionId {
        let session = SessionId(self.id());
        self.actors.insert(session, Actor::default());
        self.handle(Event::ActorConnected {
            session,
            actor: ActorId(name.into()),
            generation: Generation(generation),
            slots,
        });
        if self.actors.contains_key(&session) {
            self.handle(Event::SlotsFreed { session, slots });
        }
        session
    }

    pub(super) fn leave(&mut self, session: SessionId) {
        self.actors.remove(&session);
        self.handle(Event::ActorDisconnected { session });
    }

    /// Takes a running episode of an actor, which then has its slot free again.
    pub(super) fn take(&mut self, session: SessionId, index: usize) -> Assignment {
        self.actors.get_mut(&session).expect("open").running.remove(index)
    }

    pub(super) fn report(&mut self, session: SessionId, trajectory: Trajectory) {
        self.handle(Event::TrajectoryReported { session, trajectory: Arc::new(trajectory) });
    }

    /// Finishes a running episode under a version `lag` behind the newest, if that is allowed.
    pub(super) fn finish(&mut self, session: SessionId, index: usize, lag: u64) {
        let assignment = self.take(session, index);
        let oldest = assignment.min_policy_version.unwrap_or(0);
        assert!(oldest <= self.published, "an episode waits for a version that does not exist");
        let version = self.published.saturating_sub(lag).max(oldest);
        let success =
            self.success_every > 0 && assignment.episode_id.is_multiple_of(self.success_every);
        let mut finished = trajectory(&assignment, version, success);
        if self.polluted && assignment.mode() == Mode::Explore {
            finished.spans[1].state = StructuralState::Polluted.into();
        }
        self.report(session, finished);
        self.handle(Event::SlotsFreed { session, slots: 1 });
    }

    /// Makes the oldest waiting record durable.
    pub(super) fn sync_one(&mut self) {
        match self.disk.pop_front() {
            Some(Durable::Trajectory(episode)) => self.handle(Event::TrajectoryDurable { episode }),
            Some(Durable::Batch(index)) => self.handle(Event::BatchDurable { index }),
            None => {}
        }
    }

    pub(super) fn sync(&mut self) {
        while !self.disk.is_empty() {
            self.sync_one();
        }
    }

    pub(super) fn learn(&mut self, last_step: u64) {
        let stream = StreamId(self.id());
        self.learner = Some(Learner { stream, batches: VecDeque::new(), step: last_step });
        let request = NextBatchRequest {
            learner_id: "learner".into(),
            generation: stream.0,
            last_step,
            weights_address: format!("learner-{}:1", stream.0),
            manifest_hash: hash(last_step),
            ..Default::default()
        };
        self.handle(Event::LearnerConnected { stream, request });
    }

    pub(super) fn crash_learner(&mut self) {
        if let Some(learner) = self.learner.take() {
            self.handle(Event::LearnerDisconnected { stream: learner.stream });
        }
    }

    /// The learner applies its next batch and reports it. Returns what it was.
    pub(super) fn step(&mut self) -> Option<StepKind> {
        let call = CallId(self.id());
        let learner = self.learner.as_mut()?;
        let batch = learner.batches.pop_front()?;
        let (step, kind) = (batch.step, batch.kind());
        match kind {
            StepKind::Finish => {
                self.crash_learner();
                return Some(kind);
            }
            StepKind::Checkpoint => {
                assert_eq!(learner.step, step, "a checkpoint between its steps");
                self.checkpoint = step;
            }
            _ => {
                assert_eq!(learner.step + 1, step, "steps are consecutive");
                learner.step = step;
                self.published = self.published.max(step);
            }
        }
        let request = CompleteStepRequest {
            learner_id: "learner".into(),
            generation: learner.stream.0,
            step,
            kind: kind.into(),
            manifest_hash: hash(step),
            skipped: false,
            metrics: [("loss/x".to_owned(), 1.0)].into(),
            checkpoint: (kind == StepKind::Checkpoint).then(|| format!("checkpoints/step-{step}")),
        };
        self.handle(Event::StepCompleted { call, request });
        assert_eq!(self.answers.last(), Some(&Ok(())));
        Some(kind)
    }

    /// A person asks for other settings of the schedule.
    pub(super) fn change(
        &mut self,
        changes: &[&str],
    ) -> Result<SetScheduleResponse, ChangeRefusal> {
        let changes = changes.iter().map(|text| (*text).to_owned()).collect();
        let request = SetScheduleRequest { changes, reason: "a test".into(), revision: None };
        let call = CallId(self.id());
        self.handle(Event::ScheduleChangeRequested { call, request });
        self.changed.take().expect("answered")
    }

    /// Heals everything and plays on until the run is over.
    pub(super) fn play_to_the_end(&mut self) {
        self.play_until(|_| false);
        assert!(self.exited, "the run does not end: {:?}", self.engine.status(self.now));
    }

    /// Heals everything and plays on until this holds or the run is over.
    pub(super) fn play_until(&mut self, until: impl Fn(&Self) -> bool) {
        self.handle(Event::ResumeRequested);
        if self.learner.is_none() && !self.exited {
            self.learn(self.checkpoint);
        }
        for turn in 0..10_000 {
            if self.exited || until(self) {
                return;
            }
            if self.actors.is_empty() {
                self.join(&format!("healed-{turn}"), 1, 4);
            }
            self.sync();
            let busy = self.actors.iter().find(|(_, actor)| !actor.running.is_empty());
            if let Some((session, _)) = busy {
                let session = *session;
                self.finish(session, 0, turn % 3);
            } else if let Some((session, _)) = self.actors.iter().find(|(_, actor)| actor.drained) {
                let session = *session;
                self.leave(session);
            } else if self.learner.is_none() {
                let deadline = self.engine.next_deadline().expect("the end is bounded");
                self.now = self.now.max(deadline);
                self.handle(Event::DeadlineReached);
            }
            self.step();
        }
    }
}
