//! The engine: all decisions of the control plane, pure.
//!
//! Owns: the state of a run. Does not know: time (it is told), files, sockets, tasks. It takes
//! [`Event`]s and pushes [`Command`]s; equal events give equal commands, whatever the machine.
//! The wire records (`Trajectory`, `Assignment`, `TrainBatch`) are its records too; streams and
//! status codes are not.
//!
//! After each event everything that has become possible is done, in one order (`proceed`), and the
//! promises that can be checked locally are checked.

mod admission;
mod batches;
mod command;
mod control;
mod demonstrations;
mod dispatch;
mod ending;
mod evaluation;
mod event;
mod groups;
mod intake;
mod ledger;
mod membership;
mod meter;
mod rollout;
mod schedule;
mod seeds;
mod statistics;
mod status;
mod training;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use ballast_proto::{
    PolicyVersion,
    v1::{EpisodeLimits, EvaluationResult, ScheduleDecision, Trajectory},
};
use ballast_runtime::config::Config;

pub use batches::{Batch, Group, SERVED_AHEAD_MAX};
pub use command::{ChangeRefusal, Command, SessionEnd};
pub use dispatch::EPISODE_ATTEMPTS_MAX;
pub use ending::DRAIN_GRACE;
pub use event::{CallId, Event, SessionId, StreamId};
pub use schedule::Phase;

use self::{
    batches::Batches, demonstrations::Demonstrations, dispatch::Dispatch, dispatch::Wanted,
    ending::Ending, evaluation::Evaluation, groups::Groups, ledger::Ledger, membership::Membership,
    meter::Meter, schedule::Schedule,
};
use crate::result::CheckpointResult;

/// The state of a run.
#[derive(Debug)]
pub struct Engine {
    config: Config,
    members: Membership,
    dispatch: Dispatch,
    demonstrations: Demonstrations,
    groups: Groups,
    /// The evaluation under way; training waits for it.
    evaluation: Option<Evaluation>,
    evaluations: Vec<EvaluationResult>,
    /// Number of evaluations started.
    evaluations_started: u64,
    schedule: Schedule,
    /// What the schedule decided last, oldest first.
    decisions: VecDeque<ScheduleDecision>,
    /// Live changes of the schedule so far.
    revision: u64,
    batches: Batches,
    ledger: Ledger,
    /// Last finished optimizer step: the newest policy version.
    version: PolicyVersion,
    /// Trajectories sampled under a version whose step is not reported yet.
    early: Vec<(Wanted, Arc<Trajectory>)>,
    unused_by_reason: BTreeMap<String, u64>,
    checkpoints: Vec<CheckpointResult>,
    /// Newest value of each metric.
    metrics: BTreeMap<String, f64>,
    meter: Meter,
    paused: bool,
    /// Why the journal cannot be written; nothing is admitted meanwhile.
    blocked: Option<String>,
    ending: Ending,
    /// Phase of the last note in the journal.
    noted_phase: Option<Phase>,
    commands: VecDeque<Command>,
}

impl Engine {
    /// A run at its beginning. The demonstrations are wanted at once.
    #[must_use]
    pub fn new(config: Config) -> Self {
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
            members: Membership::new(Duration::from_secs_f64(config.coordinator.actor_lease_s)),
            dispatch,
            demonstrations,
            groups: Groups::new(config.rl.group_size, config.rl.groups_per_batch),
            evaluation: None,
            evaluations: Vec::new(),
            evaluations_started: 0,
            schedule: Schedule::new(&config),
            decisions: VecDeque::new(),
            revision: 0,
            batches: Batches::default(),
            ledger: Ledger::default(),
            version: PolicyVersion(0),
            early: Vec::new(),
            unused_by_reason: BTreeMap::new(),
            checkpoints: Vec::new(),
            metrics: BTreeMap::new(),
            meter: Meter::default(),
            paused: false,
            blocked: None,
            ending: Ending::Running,
            noted_phase: None,
            commands: VecDeque::new(),
            config,
        }
    }

    /// Takes a fact in, at `now` (time since the start of the run), and decides what follows.
    pub fn handle(&mut self, now: Duration, event: Event) {
        self.meter.advance(now, !self.dispatch.is_idle());
        match event {
            Event::ActorConnected { session, actor, generation, slots } => {
                self.on_actor_connected(now, session, actor, generation, slots);
            }
            Event::SlotsFreed { session, slots } => {
                if let Some(member) = self.members.hear(now, session) {
                    member.credit(slots);
                }
            }
            Event::HeartbeatReceived { session, heartbeat } => {
                if let Some(member) = self.members.hear(now, session) {
                    member.heartbeat = heartbeat;
                }
            }
            Event::TrajectoryReported { session, trajectory } => {
                self.members.hear(now, session);
                self.on_trajectory_reported(session, trajectory);
            }
            Event::TrajectoryInvalid { session, episode, fault } => {
                self.on_trajectory_invalid(session, episode, &fault);
            }
            Event::EpisodeReturned { session, episode, reason } => {
                self.members.hear(now, session);
                self.on_episode_returned(session, episode, &reason);
            }
            Event::ActorDisconnected { session } => self.on_actor_disconnected(session),
            Event::TrajectoryDurable { episode } => self.on_trajectory_durable(episode),
            Event::BatchDurable { index } => self.batches.mark_durable(index),
            Event::JournalBlocked { problem } => self.on_journal_blocked(problem),
            Event::JournalRecovered => self.on_journal_recovered(),
            Event::LearnerConnected { stream, request } => {
                self.on_learner_connected(now, stream, &request);
            }
            Event::LearnerDisconnected { stream } => self.on_learner_disconnected(stream),
            Event::StepCompleted { call, request } => self.on_step_completed(now, call, request),
            Event::PauseRequested => self.on_pause_requested(),
            Event::ResumeRequested => self.on_resume_requested(),
            Event::ScheduleChangeRequested { call, request } => {
                self.on_schedule_change_requested(call, &request);
            }
            Event::StopRequested => self.on_stop_requested(),
            // Only here, when no message is waiting to be looked at: a coordinator that was stopped
            // for a while must not take its own silence for the actors'.
            Event::DeadlineReached => self.expire_leases(now),
        }
        self.proceed(now);
        self.check_invariants();
    }

    /// The next thing to do, in order.
    pub fn next_command(&mut self) -> Option<Command> {
        self.commands.pop_front()
    }

    /// When to call [`Engine::handle`] with `DeadlineReached` if nothing else happens.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Duration> {
        self.members.next_expiry().into_iter().chain(self.ending.deadline()).min()
    }

    /// Does everything that has become possible.
    fn proceed(&mut self, now: Duration) {
        self.plan(now);
        self.serve();
        self.admit();
        self.assign();
        self.end(now);
        self.note_phase(now);
        self.note_decisions(now);
    }

    /// Whether new work may begin.
    fn is_admitting(&self) -> bool {
        !self.paused && self.blocked.is_none() && self.ending.is_running()
    }

    fn push(&mut self, command: Command) {
        self.commands.push_back(command);
    }

    fn on_journal_blocked(&mut self, problem: String) {
        if self.blocked.is_none() {
            self.push(Command::Warn(format!("admission stops: {problem}")));
        }
        self.blocked = Some(problem);
    }

    fn on_journal_recovered(&mut self) {
        self.blocked = None;
        self.push(Command::Inform("the journal can be written again: admission goes on".into()));
    }

    fn on_pause_requested(&mut self) {
        if !std::mem::replace(&mut self.paused, true) {
            self.note(serde_json::json!({"event": "paused"}));
            self.push(Command::Inform("paused: what runs is finished, nothing new begins".into()));
        }
    }

    fn on_resume_requested(&mut self) {
        if std::mem::replace(&mut self.paused, false) {
            self.note(serde_json::json!({"event": "resumed"}));
            self.push(Command::Inform("resumed".into()));
        }
    }

    /// Journals a decision. Skipped while the journal is blocked: nothing depends on a note.
    fn note(&mut self, note: serde_json::Value) {
        if self.blocked.is_none() {
            self.push(Command::AppendNote(note.to_string()));
        }
    }

    fn note_phase(&mut self, now: Duration) {
        let phase = self.phase();
        if self.noted_phase != Some(phase) {
            self.noted_phase = Some(phase);
            let (t, step) = (now.as_secs_f64(), self.version.0);
            let phase = phase.as_str();
            self.note(serde_json::json!({"event": "phase", "t": t, "step": step, "phase": phase}));
            self.push(Command::Inform(format!("phase {phase} at step {step}")));
        }
    }

    /// J2 and the order of the batch cursors.
    fn check_invariants(&self) {
        let counts = self.dispatch.counts();
        debug_assert_eq!(
            counts.dispatched,
            counts.finished + counts.cancelled + counts.in_flight,
            "J2: an episode was lost or counted twice"
        );
        self.batches.check_invariants();
    }
}

#[cfg(test)]
mod tests;
