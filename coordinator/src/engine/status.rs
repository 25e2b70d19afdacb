//! What people are shown of the engine's state.

use std::time::Duration;

use ballast_proto::v1::{ActorStatus, LearnerStatus, RunState, StatusResponse};

use super::{Engine, schedule::Phase};
use crate::roster::Roster;

impl Engine {
    /// The state of the run, for the admin API. `blocked`: why the journal cannot be written.
    #[must_use]
    pub fn status(&self, now: Duration, roster: &Roster, blocked: Option<&str>) -> StatusResponse {
        let phase = self.phase();
        let (phase_step, phase_steps) = self.progress(phase);
        let (state, problem) = self.state(blocked);
        let actors = self.members.iter().map(|(actor, member)| {
            let (age, heartbeat) = roster.seen(now, actor).unzip();
            let heartbeat = heartbeat.copied().unwrap_or_default();
            ActorStatus {
                actor_id: actor.0.clone(),
                generation: member.generation.0,
                episodes_running: heartbeat.episodes_running,
                policy_version: heartbeat.policy_version,
                heartbeat_age_s: age.unwrap_or_default().as_secs_f64(),
                peak_rss_bytes: heartbeat.peak_rss_bytes,
                draining: member.draining,
            }
        });
        let learner = self.batches.learner().map(|learner| LearnerStatus {
            learner_id: learner.id.clone(),
            generation: learner.generation.0,
            weights_address: learner.weights_address.clone(),
        });
        StatusResponse {
            run: self.config.run.name.clone(),
            state: state.into(),
            problem,
            phase: phase.as_str().into(),
            step: self.version.0,
            phase_steps,
            phase_step,
            episodes: Some(self.dispatch.counts()),
            actors: actors.collect(),
            learner,
            metrics: self.metrics.clone(),
            evaluations: self.evaluations.clone(),
            checkpoint: self.checkpoints.last().map(|checkpoint| checkpoint.path.clone()),
            uptime_s: now.as_secs_f64(),
        }
    }

    /// The phase at hand. Demonstrations come first, but only until something is trained.
    pub(super) fn phase(&self) -> Phase {
        let untrained = self.version.0 == 0 && self.batches.outstanding() == 0;
        match &self.evaluation {
            Some(_) => Phase::Evaluation,
            None if untrained && !self.demonstrations.complete() => Phase::Demonstrations,
            None => self.schedule.phase(),
        }
    }

    /// (done, all): episodes in the phases that wait for episodes, optimizer steps in the others.
    fn progress(&self, phase: Phase) -> (u64, u64) {
        match (phase, &self.evaluation) {
            (Phase::Demonstrations, _) => self.demonstrations.progress(),
            (Phase::Evaluation, Some(evaluation)) => evaluation.progress(),
            _ => self.schedule.progress(self.version.0),
        }
    }

    fn state(&self, blocked: Option<&str>) -> (RunState, String) {
        let waiting = |what: &str| (RunState::Waiting, what.to_owned());
        if self.has_ended() {
            return (RunState::Finished, String::new());
        }
        if let Some(problem) = blocked {
            return (RunState::Blocked, problem.to_owned());
        }
        if self.schedule.is_stopped() || !self.ending.is_running() {
            return (RunState::Stopping, String::new());
        }
        if self.paused {
            return (RunState::Paused, String::new());
        }
        match (self.members.is_deserted(), self.batches.learner().is_none()) {
            (true, true) => waiting("waiting for an actor and for the learner"),
            (true, false) => waiting("waiting for an actor"),
            (false, true) => waiting("waiting for the learner"),
            (false, false) if self.lacks_demonstrations() => waiting(
                "no demonstration could be recorded, and the next step needs some; see the log",
            ),
            (false, false) => (RunState::Running, String::new()),
        }
    }

    fn lacks_demonstrations(&self) -> bool {
        self.schedule.wants_demonstrations()
            && self.demonstrations.complete()
            && self.demonstrations.batch(0).is_none()
    }
}
