//! The end of a run: finish to the learner, drain to the actors, the result, exit.

use std::time::Duration;

use ballast_proto::v1::{Drain, RunEnded, StepKind, coordinator_message::Message, effect};
use serde::{Deserialize, Serialize};

use super::{Batch, Command, Engine, dispatch::Purpose};
use crate::result::{Episodes, Evaluated, RunResult};

/// Time actors and the learner get to leave before the coordinator exits without them.
pub const DRAIN_GRACE: Duration = Duration::from_secs(10);

/// How far the end has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Ending {
    Running,
    /// The finish is planned or, without a learner, not needed; it is served.
    FinishServed,
    /// Everybody was told to leave.
    Draining {
        until: Duration,
    },
    /// Nothing is left to do.
    Ended,
}

impl Ending {
    pub(super) fn is_running(self) -> bool {
        self == Self::Running
    }

    pub(super) fn deadline(self) -> Option<Duration> {
        match self {
            Self::Draining { until } => Some(until),
            Self::Running | Self::FinishServed | Self::Ended => None,
        }
    }

    pub(super) fn finish_served(&mut self) {
        if *self == Self::Running {
            *self = Self::FinishServed;
        }
    }
}

impl Engine {
    pub(super) fn stop(&mut self) {
        if self.schedule.is_stopped() || !self.ending.is_running() {
            return;
        }
        self.push(Command::Inform("stopping: the step at hand, a checkpoint, then drain".into()));
        self.paused = false;
        self.schedule.stop();
        // A partial evaluation is no result.
        if self.evaluation.take().is_some() {
            self.dispatch.forget(|purpose| matches!(purpose, Purpose::Evaluation { .. }));
        }
    }

    /// The last batch, once everything before it is finished. Without a learner there is nobody to
    /// tell, and the run ends at once.
    pub(super) fn finish(&mut self, step: u64) -> Option<Batch> {
        if self.batches.learner().is_none() {
            self.ending.finish_served();
            return None;
        }
        let ready = self.batches.unfinished() == 0;
        ready.then(|| self.bare_batch(step, StepKind::Finish))
    }

    /// Moves the end forward.
    pub(super) fn end(&mut self, now: Duration) {
        // The end does not wait for a learner that is gone: what it did not finish stays undone.
        let ending = self.schedule.is_stopped() || self.schedule.is_finished();
        if ending && self.batches.learner().is_none() {
            self.ending.finish_served();
        }
        if self.ending == Ending::FinishServed {
            self.discard_the_rest();
            let actors: Vec<_> = self.members.iter().map(|(actor, _)| actor.clone()).collect();
            for actor in actors {
                if let Some(session) = self.members.drain(&actor) {
                    self.send(session, Message::Drain(Drain {}));
                }
            }
            self.ending = Ending::Draining { until: now + DRAIN_GRACE };
        }
        let Ending::Draining { until } = self.ending else { return };
        let left = self.members.is_deserted() && self.batches.learner().is_none();
        if left || now >= until {
            self.ending = Ending::Ended;
            let outcome = self.outcome().to_owned();
            self.effect(effect::Effect::Ended(RunEnded { outcome }));
            self.leave(now);
        }
    }

    /// Nobody waits for what still runs.
    fn discard_the_rest(&mut self) {
        for (episode, actor) in self.dispatch.all_in_flight() {
            if let Some(session) = self.members.get(&actor).and_then(|member| member.session) {
                self.discard(session, episode);
            }
            self.cancel(episode, "run_over", None);
        }
    }

    /// Writes the result and leaves.
    pub(super) fn leave(&mut self, now: Duration) {
        self.push(Command::WriteResult(Box::new(self.result(now))));
        self.push(Command::Exit);
    }

    fn outcome(&self) -> &'static str {
        if self.schedule.is_stopped() { "stopped" } else { "finished" }
    }

    fn result(&self, now: Duration) -> RunResult {
        let counts = self.dispatch.counts();
        let evaluated = |one: &ballast_proto::v1::EvaluationResult| Evaluated {
            name: one.name.clone(),
            policy_version: one.policy_version,
            episodes: one.episodes,
            successes: one.successes,
            calls_mean: one.calls_mean,
            invalid_call_rate: one.invalid_call_rate,
        };
        RunResult {
            run: self.config.run.name.clone(),
            seed: self.config.run.seed,
            outcome: self.outcome(),
            steps: self.version.0,
            cold_start_step: self.schedule.cold_start_steps(),
            checkpoints: self.checkpoints.clone(),
            evaluations: self.evaluations.iter().map(evaluated).collect(),
            episodes: Episodes {
                dispatched: counts.dispatched,
                finished: counts.finished,
                cancelled: counts.cancelled,
                in_flight: counts.in_flight,
                cancelled_by_reason: counts.cancelled_by_reason,
                unused_by_reason: self.unused_by_reason.clone(),
            },
            wall_s: now.as_secs_f64(),
            train_tokens: self.meter.train.tokens,
            train_s: self.meter.train.busy.as_secs_f64(),
            rollout_tokens: self.meter.rollout.tokens,
            rollout_s: self.meter.rollout.busy.as_secs_f64(),
        }
    }
}
