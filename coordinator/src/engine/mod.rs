//! The engine: all decisions of the control plane, pure.
//!
//! Owns: the state of a run. Does not know: time (it is told), files, sockets, tasks. It takes
//! [`Event`]s and pushes [`Command`]s and effects; equal events give equal ones, whatever the
//! machine. So a journal of events is the run, and feeding it to a new engine is recovery (ADR 0007).
//! The wire records (`TrajectorySummary`, `Assignment`) are its records too; streams, status codes
//! and the tokens of a trajectory are not.
//!
//! After each event everything that has become possible is done, in one order (`proceed`), and the
//! promises that can be checked locally are checked.

mod admin;
mod admission;
mod batches;
mod command;
mod corrections;
mod demonstrations;
mod dispatch;
mod ending;
mod evaluation;
mod event;
mod groups;
mod intake;
mod ledger;
mod lengths;
mod membership;
mod meter;
mod records;
mod rollout;
mod schedule;
mod seeds;
mod statistics;
mod status;
mod training;

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use ballast_proto::{
    ActorId, EpisodeId, Generation, PolicyVersion,
    v1::{
        Effect, EpisodeLimits, EvaluationResult, LengthsResponse, ListQuarantinedResponse, Mode,
        PhaseBegan, ScheduleDecision, TrajectoryEntry, effect,
    },
};
use ballast_runtime::config::{Config, Pacing};
use serde::{Deserialize, Serialize};

pub use batches::{Batch, Group, SERVED_AHEAD_MAX};
pub use command::{ChangeAnswer, ChangeRefusal, Command, SessionEnd};
pub use dispatch::EPISODE_ATTEMPTS_MAX;
pub use ending::DRAIN_GRACE;
pub use event::{CallId, Event, Hello, SessionId, StreamId};
pub use schedule::Phase;
pub use statistics::{of_actors, summarize};

use self::{
    batches::Batches, corrections::Corrections, demonstrations::Demonstrations, dispatch::Dispatch,
    ending::Ending, ending::LEARNER_GRACE, evaluation::Evaluation, groups::Groups, ledger::Ledger,
    lengths::Lengths, membership::Membership, meter::Meter, records::Records, schedule::Schedule,
};
use crate::result::CheckpointResult;

/// The state of a run.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct Engine {
    #[serde(with = "config_text")]
    config: Config,
    /// Identity of the run.
    run_id: String,
    /// Time of the newest event.
    now: Duration,
    members: Membership,
    dispatch: Dispatch,
    demonstrations: Demonstrations,
    corrections: Corrections,
    groups: Groups,
    /// The evaluation under way; training waits for it.
    evaluation: Option<Evaluation>,
    evaluations: Vec<EvaluationResult>,
    /// Number of evaluations started.
    evaluations_started: u64,
    schedule: Schedule,
    /// What the schedule decided last, oldest first.
    decisions: VecDeque<ScheduleDecision>,
    /// Live changes of the settings so far.
    revision: u64,
    batches: Batches,
    ledger: Ledger,
    /// Last finished optimizer step: the newest policy version.
    version: PolicyVersion,
    /// Entries of the learner's vocabulary, once it is known.
    vocabulary: Option<u32>,
    /// Trajectories sampled under a version whose step is not reported yet; bounded by admission.
    early: Vec<intake::Open>,
    unused_by_reason: BTreeMap<String, u64>,
    lengths: Lengths,
    records: Records,
    checkpoints: Vec<CheckpointResult>,
    /// Newest value of each metric.
    metrics: BTreeMap<String, f64>,
    meter: Meter,
    paused: bool,
    ending: Ending,
    /// Until then the learner of an earlier coordinator may come back, and the end waits for it.
    learner_awaited: Option<Duration>,
    /// Phase of the last effect that named one.
    noted_phase: Option<Phase>,
    /// What to do, of the event at hand.
    #[serde(skip)]
    commands: VecDeque<Command>,
    /// What the event at hand led to.
    #[serde(skip)]
    effects: Vec<Effect>,
}

impl Engine {
    /// A run at its beginning. The demonstrations are wanted at once.
    #[must_use]
    pub fn new(config: Config, run_id: String) -> Self {
        let limits = EpisodeLimits {
            turns_max: config.episode.turns_max,
            message_tokens_max: config.episode.message_tokens_max,
            trajectory_tokens_max: config.episode.trajectory_tokens_max,
            duration_ms_max: Duration::from_secs_f64(config.episode.seconds_max).as_millis() as u64,
        };
        let (seed, count) = (config.run.seed, config.tasks.demonstrations);
        let demonstrations = Demonstrations::new(seed, count, config.sft.batch);
        let mut dispatch = Dispatch::new(limits);
        demonstrations.wanted(&config.tasks).into_iter().for_each(|wanted| dispatch.want(wanted));
        Self {
            run_id,
            now: Duration::ZERO,
            members: Membership::default(),
            dispatch,
            demonstrations,
            corrections: Corrections::new(seed, config.sft.batch),
            groups: Groups::new(&config.rl),
            evaluation: None,
            evaluations: Vec::new(),
            evaluations_started: 0,
            schedule: Schedule::new(&config),
            decisions: VecDeque::new(),
            revision: 0,
            batches: Batches::default(),
            ledger: Ledger::default(),
            version: PolicyVersion(0),
            vocabulary: None,
            early: Vec::new(),
            unused_by_reason: BTreeMap::new(),
            lengths: Lengths::default(),
            records: Records::default(),
            checkpoints: Vec::new(),
            metrics: BTreeMap::new(),
            meter: Meter::default(),
            paused: false,
            ending: Ending::Running,
            learner_awaited: None,
            noted_phase: None,
            commands: VecDeque::new(),
            effects: Vec::new(),
            config,
        }
    }

    /// Takes a fact in, at `now` (time since the start of the run), and decides what follows.
    pub fn handle(&mut self, now: Duration, event: Event) {
        self.now = now;
        self.meter.advance(now, !self.dispatch.is_idle() && !self.has_ended());
        match event {
            Event::CoordinatorStarted { term } => self.on_coordinator_started(now, term),
            Event::ActorConnected { session, hello } => self.on_actor_connected(session, hello),
            Event::ActorDisconnected { session } => self.on_actor_disconnected(session),
            Event::LeaseExpired { actor, generation } => self.on_lease_expired(&actor, generation),
            Event::SlotsFreed { session, slots } => self.on_slots_freed(session, slots),
            Event::TrajectoryReported { session, trajectory } => {
                self.on_trajectory_reported(session, trajectory);
            }
            Event::TrajectoryInvalid { session, episode, fault } => {
                self.on_trajectory_invalid(session, episode, &fault);
            }
            Event::EpisodeGivenBack { session, episode, reason, tokens } => {
                self.on_episode_given_back(session, episode, &reason, tokens);
            }
            Event::LearnerConnected { stream, request } => {
                self.on_learner_connected(now, stream, &request);
            }
            Event::LearnerDisconnected { stream } => self.on_learner_disconnected(stream),
            Event::StepCompleted { call, request, actors } => {
                self.on_step_completed(now, call, request, actors);
            }
            Event::AdminRequested { call, who, change } => {
                self.on_admin_requested(now, call, who, &change);
            }
            Event::DeadlineReached => {}
        }
        self.proceed(now);
        self.check_invariants();
    }

    /// The next thing to do, in order.
    pub fn next_command(&mut self) -> Option<Command> {
        self.commands.pop_front()
    }

    /// What the last event led to, in order.
    pub fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// When to call [`Engine::handle`] with `DeadlineReached` if nothing else happens.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Duration> {
        [self.ending.deadline(), self.learner_awaited].into_iter().flatten().min()
    }

    /// Time of the newest event.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.now
    }

    /// The configuration, live changes included.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Identity of the run.
    #[must_use]
    pub fn run_id(&self) -> &str {
        &self.run_id
    }

    /// Whether nothing is left to do.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        matches!(self.ending, Ending::Ended { .. })
    }

    /// Last finished optimizer step.
    #[must_use]
    pub fn version(&self) -> PolicyVersion {
        self.version
    }

    /// The actors it counts on, with their incarnations; some may be away.
    pub fn actors(&self) -> impl Iterator<Item = (&ActorId, Generation)> {
        self.members.iter().map(|(actor, member)| (actor, member.generation))
    }

    /// Whether it counts on an actor.
    #[must_use]
    pub fn counts_on(&self, actor: &ActorId) -> bool {
        self.members.get(actor).is_some()
    }

    /// The newest finished trajectories of a mode and an outcome, newest first.
    #[must_use]
    pub fn trajectories(
        &self,
        mode: Mode,
        success: Option<bool>,
        limit: usize,
    ) -> Vec<TrajectoryEntry> {
        self.records.trajectories(mode, success, limit)
    }

    /// Trajectories that were refused.
    #[must_use]
    pub fn quarantined(&self) -> ListQuarantinedResponse {
        let (trajectories, total) = self.records.quarantined();
        ListQuarantinedResponse { trajectories, total }
    }

    /// Who changed what, newest first.
    #[must_use]
    pub fn audit_entries(&self) -> Vec<ballast_proto::v1::AuditEntry> {
        self.records.audit_entries()
    }

    /// Checkpoints, oldest first.
    #[must_use]
    pub fn checkpoints(&self) -> &[CheckpointResult] {
        &self.checkpoints
    }

    /// Lengths of what was sampled, trained and dropped.
    #[must_use]
    pub fn lengths(&self) -> LengthsResponse {
        self.lengths.report()
    }

    /// Does everything that has become possible.
    fn proceed(&mut self, now: Duration) {
        self.plan(now);
        self.serve();
        self.admit();
        self.assign();
        self.end(now);
        self.note_phase();
        self.note_decisions(now);
    }

    /// No stream of an earlier coordinator is open any more. What actors run stays theirs until they
    /// are back or their leases end.
    fn on_coordinator_started(&mut self, now: Duration, term: u64) {
        self.push(Command::Inform(format!("term {term} begins at step {}", self.version.0)));
        self.members.disconnect_all();
        if self.batches.disconnect_all() || self.learner_awaited.is_some() {
            self.learner_awaited = Some(now + LEARNER_GRACE);
        }
        self.meter.learner_gone();
        self.resume_end(now);
    }

    /// Whether new work may begin.
    fn is_admitting(&self) -> bool {
        !self.paused && self.ending.is_running()
    }

    /// Versions the learner may be ahead of the oldest token it trains on (S1).
    fn staleness_max(&self) -> u64 {
        match self.config.rl.pacing {
            Pacing::Serial => 0,
            Pacing::OneStep => 1,
            Pacing::Async => self.config.rl.staleness_max,
        }
    }

    fn push(&mut self, command: Command) {
        self.commands.push_back(command);
    }

    fn effect(&mut self, effect: effect::Effect) {
        self.effects.push(Effect { effect: Some(effect) });
    }

    fn release(&mut self, episodes: impl IntoIterator<Item = EpisodeId>) {
        let episodes: Vec<EpisodeId> = episodes.into_iter().collect();
        if !episodes.is_empty() {
            self.push(Command::Release(episodes));
        }
    }

    fn note_phase(&mut self) {
        let phase = self.phase();
        if self.noted_phase != Some(phase) {
            self.noted_phase = Some(phase);
            let (step, phase) = (self.version.0, phase.as_str().to_owned());
            self.push(Command::Inform(format!("phase {phase} at step {step}")));
            self.effect(effect::Effect::Phase(PhaseBegan { phase, step }));
        }
    }

    /// J2 and the order of the batch cursors.
    fn check_invariants(&self) {
        debug_assert!(self.dispatch.is_balanced(), "J2: an episode was lost or counted twice");
        self.batches.check_invariants();
    }
}

/// The configuration in a snapshot: as the text people write, so that it needs no other rules.
mod config_text {
    use ballast_runtime::{config::Config, config_file};
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(config: &Config, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&config_file::to_toml(config))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Config, D::Error> {
        config_file::from_toml(&String::deserialize(from)?).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests;
