//! What actors, the learner and people do in a [`World`].

use std::{collections::VecDeque, sync::Arc};

use ballast_proto::{
    ActorId, EpisodeId, Generation,
    v1::{
        Assignment, CompleteStepRequest, Mode, NextBatchRequest, ResumeRequest, Role,
        SampledVersion, SetRequest, Span, StepKind, StopReason, StructuralState, Trajectory,
        TrajectorySummary, admin_change::Change,
    },
    verify_trajectory,
};

use super::world::{Actor, Learner, World};
use crate::engine::{CallId, ChangeAnswer, ChangeRefusal, Event, Hello, StreamId, summarize};

/// Turns after which a run that plays on without faults must be over.
const TURNS_MAX: u64 = 10_000;

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

/// What the engine sees of it.
pub(super) fn summary(assignment: &Assignment, version: u64, success: bool) -> TrajectorySummary {
    summarize(&trajectory(assignment, version, success))
}

impl World {
    /// An actor's process starts, says hello and offers its slots.
    pub(super) fn join(&mut self, name: &str, generation: u64, slots: u32) {
        let actor = Actor { generation, slots, ..Actor::default() };
        self.actors.insert(name.into(), actor);
        self.reconnect(name);
    }

    /// An actor opens a stream, claims what it has, offers its free slots, and reports again what
    /// nobody acknowledged.
    pub(super) fn reconnect(&mut self, name: &str) {
        let session = self.session_id();
        let actor = self.actor(name);
        (actor.session, actor.offered) = (Some(session), 0);
        let running = actor.running.iter().map(|one| one.episode_id);
        let finished = actor.unacknowledged.iter().map(|one| one.episode_id);
        let hello = Hello {
            actor: ActorId(name.into()),
            generation: Generation(actor.generation),
            slots: actor.slots,
            claims: running.chain(finished).map(EpisodeId).collect(),
        };
        self.handle(Event::ActorConnected { session, hello });
        for trajectory in self.actor(name).unacknowledged.clone() {
            self.report(name, trajectory);
        }
        self.offer(name);
    }

    /// An actor says that its free slots are free, unless it has said so.
    pub(super) fn offer(&mut self, name: &str) {
        let actor = self.actor(name);
        let Some(session) = actor.session else { return };
        let free = actor.slots.saturating_sub(actor.running.len() as u32 + actor.offered);
        if free > 0 && !actor.drained {
            actor.offered += free;
            self.handle(Event::SlotsFreed { session, slots: free });
        }
    }

    /// An actor's stream breaks; its process goes on.
    pub(super) fn disconnect(&mut self, name: &str) {
        if let Some(session) = self.actor(name).session.take() {
            self.handle(Event::ActorDisconnected { session });
        }
    }

    /// An actor's process ends.
    pub(super) fn leave(&mut self, name: &str) {
        self.disconnect(name);
        self.actors.remove(name);
    }

    /// An actor's process ends, and so does its lease.
    pub(super) fn lose(&mut self, name: &str) {
        let generation = Generation(self.actor(name).generation);
        self.leave(name);
        self.handle(Event::LeaseExpired { actor: ActorId(name.into()), generation });
    }

    /// Takes a running episode of an actor.
    pub(super) fn take(&mut self, name: &str, index: usize) -> Assignment {
        self.actor(name).running.remove(index)
    }

    pub(super) fn report(&mut self, name: &str, trajectory: impl Into<Arc<TrajectorySummary>>) {
        if let Some(session) = self.actor(name).session {
            let trajectory = trajectory.into();
            self.handle(Event::TrajectoryReported { session, trajectory });
        }
    }

    /// Finishes a running episode under a version `lag` behind the newest, if that is allowed, and
    /// reports it, now or when the actor has a stream again.
    pub(super) fn finish(&mut self, name: &str, index: usize, lag: u64) {
        let assignment = self.take(name, index);
        let oldest = assignment.min_policy_version.unwrap_or(0);
        assert!(oldest <= self.published, "an episode waits for a version that does not exist");
        let version = self.published.saturating_sub(lag).max(oldest);
        let success =
            self.success_every > 0 && assignment.episode_id.is_multiple_of(self.success_every);
        let mut finished = trajectory(&assignment, version, success);
        if self.polluted && assignment.mode() == Mode::Explore {
            finished.spans[1].state = StructuralState::Polluted.into();
        }
        let finished = Arc::new(summarize(&finished));
        self.actor(name).unacknowledged.push(Arc::clone(&finished));
        self.report(name, finished);
        self.offer(name);
    }

    /// An actor gives a running episode back.
    pub(super) fn give_back(&mut self, name: &str, index: usize) {
        let Some(session) = self.actor(name).session else { return };
        let episode = EpisodeId(self.take(name, index).episode_id);
        let (reason, tokens) = ("draining".into(), 7);
        self.handle(Event::EpisodeGivenBack { session, episode, reason, tokens });
        self.offer(name);
    }

    /// A learner's process starts from a checkpoint.
    pub(super) fn learn(&mut self, last_step: u64) {
        let generation = self.id();
        let (stream, batches) = (None, VecDeque::new());
        self.learner = Some(Learner { generation, stream, batches, step: last_step });
        self.reconnect_learner();
    }

    /// How the learner asks for batches.
    pub(super) fn request(&self) -> NextBatchRequest {
        let learner = self.learner.as_ref().expect("a learner");
        NextBatchRequest {
            learner_id: "learner".into(),
            generation: learner.generation,
            last_step: learner.step,
            weights_address: format!("learner-{}:1", learner.generation),
            manifest_hash: hash(learner.step),
            run_id: "run".into(),
            vocabulary: 100,
        }
    }

    /// The learner opens a stream.
    pub(super) fn reconnect_learner(&mut self) {
        let stream = StreamId(self.id());
        let request = self.request();
        self.learner.as_mut().expect("a learner").stream = Some(stream);
        self.handle(Event::LearnerConnected { stream, request });
    }

    /// The learner's process ends.
    pub(super) fn crash_learner(&mut self) {
        if let Some(Learner { stream: Some(stream), .. }) = self.learner.take() {
            self.handle(Event::LearnerDisconnected { stream });
        }
    }

    /// The learner applies its next batch and reports it. Returns what it was.
    pub(super) fn step(&mut self) -> Option<StepKind> {
        let call = CallId(self.id());
        let learner = self.learner.as_mut()?;
        let batch = learner.batches.pop_front()?;
        let (step, kind) = (batch.step, batch.kind);
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
            generation: learner.generation,
            step,
            kind: kind.into(),
            manifest_hash: hash(step),
            skipped: false,
            metrics: [("loss/x".to_owned(), 1.0)].into(),
            checkpoint: (kind == StepKind::Checkpoint).then(|| format!("checkpoints/step-{step}")),
        };
        self.handle(Event::StepCompleted { call, request, actors: [].into() });
        assert!(self.answers.iter().all(Result::is_ok), "{:?}", self.answers);
        Some(kind)
    }

    /// A person asks for other settings, those of the schedule without their section.
    pub(super) fn change(&mut self, changes: &[&str]) -> Result<ChangeAnswer, ChangeRefusal> {
        self.admin(set(changes))
    }

    /// Ends all faults: everybody is here again, and who is not is found lost.
    pub(super) fn heal(&mut self) {
        self.lag = 0;
        self.sync();
        if self.exited {
            return;
        }
        self.ask(Change::Resume(ResumeRequest {}));
        for name in self.actors.keys().cloned().collect::<Vec<_>>() {
            if self.actors[&name].session.is_none() {
                self.reconnect(&name);
            }
        }
        let known = self.engine.actors().map(|(actor, generation)| (actor.clone(), generation));
        for (actor, generation) in known.collect::<Vec<_>>() {
            if !self.actors.contains_key(&actor.0) {
                self.handle(Event::LeaseExpired { actor, generation });
            }
        }
        match &self.learner {
            None => self.learn(self.checkpoint),
            Some(Learner { stream: None, .. }) => self.reconnect_learner(),
            Some(_) => {}
        }
    }

    /// Heals everything and plays on until the run is over.
    pub(super) fn play_to_the_end(&mut self) {
        self.play_until(|_| false);
        assert!(self.exited, "the run does not end: {:?}", self.engine);
    }

    /// Heals everything and plays on until this holds or the run is over.
    pub(super) fn play_until(&mut self, until: impl Fn(&Self) -> bool) {
        self.heal();
        for turn in 0..TURNS_MAX {
            if self.exited || until(self) {
                return;
            }
            if self.actors.is_empty() {
                self.join(&format!("healed-{turn}"), 1, 4);
            }
            let named = |found: Option<(&String, &Actor)>| found.map(|(name, _)| name.clone());
            let busy = named(self.actors.iter().find(|(_, actor)| !actor.running.is_empty()));
            let drained = named(self.actors.iter().find(|(_, actor)| actor.drained));
            if let Some(name) = busy {
                self.finish(&name, 0, turn % 3);
            } else if let Some(name) = drained {
                self.leave(&name);
            } else if let (None, Some(deadline)) = (&self.learner, self.engine.next_deadline()) {
                self.now = self.now.max(deadline);
                self.handle(Event::DeadlineReached);
            }
            self.step();
        }
    }
}

/// A change of settings; those of the schedule without their section.
pub(super) fn set(changes: &[&str]) -> Change {
    let full = |text: &&str| match text.split_once('.') {
        Some(("rl" | "sft" | "run" | "schedule", _)) => (*text).to_owned(),
        _ => format!("schedule.{text}"),
    };
    let changes = changes.iter().map(full).collect();
    Change::Set(SetRequest { changes, reason: "a test".into(), revision: None })
}
