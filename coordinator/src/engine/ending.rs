//! The end of a run: finish to the learner, drain to the actors, the result, exit.

use std::time::Duration;

use ballast_proto::v1::{Drain, RunEnded, StepKind, coordinator_message::Message, effect};
use serde::{Deserialize, Serialize};

use super::{
    Batch, Command, Engine,
    dispatch::{Cause, Purpose},
};
use crate::result::{Episodes, Evaluated, RunResult};

/// Time actors and the learner get to leave before the coordinator exits without them.
pub const DRAIN_GRACE: Duration = Duration::from_secs(10);

/// Time the learner gets to come back after a failover before the end goes on without it.
pub(super) const LEARNER_GRACE: Duration = Duration::from_secs(30);

/// How far the end has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Ending {
    Running,
    /// The finish is served or, without a learner, not needed.
    FinishServed,
    /// Everybody was told to leave.
    Draining {
        until: Duration,
    },
    /// Nothing is left to do.
    Ended {
        at: Duration,
    },
}

/// What moves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EndEvent {
    /// The finish is served, or there is nobody to serve it to.
    FinishServed,
    /// Everybody is told to leave.
    Told { until: Duration },
    /// A coordinator took over: who was told may not have heard it, and must find its way here.
    Resumed { until: Duration },
    /// Everybody has left, or had the time to.
    Left { at: Duration },
}

impl Ending {
    /// How far it has come after an event. What cannot happen changes nothing.
    pub(super) fn after(self, event: EndEvent) -> Self {
        match (self, event) {
            (Self::Running, EndEvent::FinishServed) => Self::FinishServed,
            (Self::FinishServed, EndEvent::Told { until })
            | (Self::Draining { .. }, EndEvent::Resumed { until }) => Self::Draining { until },
            (Self::Draining { .. }, EndEvent::Left { at }) => Self::Ended { at },
            (unmoved, _) => unmoved,
        }
    }

    pub(super) fn is_running(self) -> bool {
        self == Self::Running
    }

    pub(super) fn deadline(self) -> Option<Duration> {
        match self {
            Self::Draining { until } => Some(until),
            Self::Running | Self::FinishServed | Self::Ended { .. } => None,
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
        if self.is_learner_gone() {
            self.move_end(EndEvent::FinishServed);
            return None;
        }
        let ready = self.batches.unfinished() == 0;
        ready.then(|| self.bare_batch(step, StepKind::Finish))
    }

    /// Whether the finish is planned: all that a learner can still be told.
    pub(super) fn is_finish_due(&self) -> bool {
        self.schedule.is_finished() && !self.has_ended()
    }

    /// Moves the end forward.
    pub(super) fn end(&mut self, now: Duration) {
        self.learner_awaited.take_if(|until| now >= *until);
        // The end does not wait for a learner that is gone: what it did not finish stays undone.
        let ending = self.schedule.is_stopped() || self.schedule.is_finished();
        if ending && self.is_learner_gone() {
            self.move_end(EndEvent::FinishServed);
        }
        if self.ending == Ending::FinishServed {
            self.discard_the_rest();
            let actors: Vec<_> = self.members.iter().map(|(actor, _)| actor.clone()).collect();
            for actor in actors {
                if let Some(session) = self.members.drain(&actor) {
                    self.send(session, Message::Drain(Drain {}));
                }
            }
            self.move_end(EndEvent::Told { until: now + DRAIN_GRACE });
        }
        let Ending::Draining { until } = self.ending else { return };
        if now >= until || (self.members.is_empty() && self.is_learner_gone()) {
            self.move_end(EndEvent::Left { at: now });
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
            self.cancel(episode, Cause::RunOver, None);
        }
    }

    /// A coordinator took over at whatever point the end had come to.
    pub(super) fn resume_end(&mut self, now: Duration) {
        self.move_end(EndEvent::Resumed { until: now + DRAIN_GRACE });
        if let Ending::Ended { at } = self.ending {
            self.leave(at);
        }
    }

    pub(super) fn move_end(&mut self, event: EndEvent) {
        self.ending = self.ending.after(event);
    }

    /// Whether no learner is here, nor expected back.
    fn is_learner_gone(&self) -> bool {
        self.batches.learner().is_none() && self.learner_awaited.is_none()
    }

    /// Writes the result of a run that ended at `at`, and leaves.
    fn leave(&mut self, at: Duration) {
        self.push(Command::WriteResult(Box::new(self.result(at))));
        self.push(Command::Exit);
    }

    fn outcome(&self) -> &'static str {
        if self.schedule.is_stopped() { "stopped" } else { "finished" }
    }

    fn result(&self, at: Duration) -> RunResult {
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
            wall_s: at.as_secs_f64(),
            train_tokens: self.meter.train.tokens,
            train_s: self.meter.train.busy.as_secs_f64(),
            rollout_tokens: self.meter.rollout.tokens,
            rollout_s: self.meter.rollout.busy.as_secs_f64(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_answers_every_event() {
        use Ending::{Draining, Ended, FinishServed, Running};
        let s = Duration::from_secs;
        let events = [
            EndEvent::FinishServed,
            EndEvent::Told { until: s(1) },
            EndEvent::Resumed { until: s(2) },
            EndEvent::Left { at: s(3) },
        ];
        let draining = |until| Draining { until: s(until) };
        let table = [
            (Running, [FinishServed, Running, Running, Running]),
            (FinishServed, [FinishServed, draining(1), FinishServed, FinishServed]),
            (draining(9), [draining(9), draining(9), draining(2), Ended { at: s(3) }]),
            (Ended { at: s(9) }, [Ended { at: s(9) }; 4]),
        ];
        for (ending, row) in table {
            for (event, expected) in events.into_iter().zip(row) {
                assert_eq!(ending.after(event), expected, "{ending:?} after {event:?}");
            }
        }
    }
}
