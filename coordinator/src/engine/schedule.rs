//! The schedule: what the learner does next. Pure arithmetic on a cursor.
//!
//! cold start (SFT steps, a check every few) -> evaluation -> main part (RL and SFT steps) ->
//! evaluation -> finish; a checkpoint every `checkpoint_every` steps and before each of the two
//! evaluations. The cursor counts steps as they are *planned*; the engine plans at most two batches
//! ahead of the learner and never past an evaluation.

use ballast_proto::v1::StepKind;
use ballast_runtime::config::{self, Config, ScheduleKind};

use super::evaluation::EvaluationName;

/// Steps over which the learning rate of the cold start rises linearly to its value.
const WARM_UP_STEPS: u64 = 10;

/// Part of the run, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Actors record the expert.
    Demonstrations,
    /// SFT from the initial checkpoint.
    ColdStart,
    /// The main part of a schedule with RL.
    Rl,
    /// The main part of a schedule without RL.
    Sft,
    /// Training waits for an evaluation.
    Evaluation,
}

impl Phase {
    /// Name on the wire and in `metrics.jsonl`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Demonstrations => "demonstrations",
            Self::ColdStart => "cold_start",
            Self::Rl => "rl",
            Self::Sft => "sft",
            Self::Evaluation => "evaluation",
        }
    }
}

/// An optimizer step to plan.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Step {
    pub(super) step: u64,
    pub(super) kind: StepKind,
    /// Number of this batch among those of its kind, from 0.
    pub(super) index: u64,
    pub(super) learning_rate: f64,
    pub(super) phase: Phase,
}

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Action {
    Train(Step),
    /// Write a checkpoint named after the last planned step.
    Checkpoint {
        step: u64,
    },
    /// Evaluate the newest version; nothing is planned until the result is in.
    Evaluate(EvaluationName),
    Finish {
        step: u64,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    ColdStart,
    ColdStartCheck,
    AfterColdStart,
    Main,
    Final,
    Finish,
    Finished,
}

/// The cursor.
#[derive(Debug)]
pub(super) struct Schedule {
    settings: config::Schedule,
    sft: config::Sft,
    rl_learning_rate: f64,
    checkpoint_every: u64,
    stage: Stage,
    /// Last planned optimizer step.
    step: u64,
    sft_batches: u64,
    rl_batches: u64,
    /// Step the newest planned checkpoint is named after.
    checkpointed: Option<u64>,
    /// Steps the cold start took; `None` until it has ended.
    cold_start_steps: Option<u64>,
    stopped: bool,
}

impl Schedule {
    pub(super) fn new(config: &Config) -> Self {
        let settings = config.schedule.clone();
        let (stage, cold_start_steps) = match (settings.cold_start_steps_max, settings.kind) {
            // Nothing was trained that could be evaluated: the control arm starts at once.
            (0, ScheduleKind::SftOnly) => (Stage::Main, Some(0)),
            (0, ScheduleKind::SftThenRl | ScheduleKind::Interleave) => {
                (Stage::AfterColdStart, Some(0))
            }
            _ => (Stage::ColdStart, None),
        };
        Self {
            settings,
            sft: config.sft.clone(),
            rl_learning_rate: config.rl.learning_rate,
            checkpoint_every: config.learner.checkpoint_every.max(1),
            stage,
            step: 0,
            sft_batches: 0,
            rl_batches: 0,
            checkpointed: None,
            cold_start_steps,
            stopped: false,
        }
        .skip_empty_main()
    }

    /// What comes next. Changes nothing.
    pub(super) fn next(&self) -> Action {
        if self.checkpoint_due() {
            return Action::Checkpoint { step: self.step };
        }
        match self.stage {
            Stage::ColdStart => Action::Train(self.sft_step(Phase::ColdStart)),
            Stage::ColdStartCheck => Action::Evaluate(EvaluationName::ColdStartCheck),
            Stage::AfterColdStart => Action::Evaluate(EvaluationName::AfterColdStart),
            Stage::Main => Action::Train(self.main_step()),
            Stage::Final => Action::Evaluate(EvaluationName::Final),
            Stage::Finish | Stage::Finished => Action::Finish { step: self.step },
        }
    }

    /// Moves past a planned step, checkpoint or finish.
    pub(super) fn advance(&mut self) {
        match self.next() {
            Action::Train(step) => self.advance_step(step),
            Action::Checkpoint { step } => self.checkpointed = Some(step),
            Action::Finish { .. } => self.stage = Stage::Finished,
            Action::Evaluate(_) => {}
        }
    }

    /// Moves past the evaluation at hand, given its success rate.
    pub(super) fn conclude(&mut self, success: f64) {
        match self.stage {
            Stage::ColdStartCheck if success < self.settings.cold_start_success => {
                self.stage = Stage::ColdStart;
            }
            Stage::ColdStartCheck => self.end_cold_start(),
            Stage::AfterColdStart if self.settings.steps == 0 => self.stage = Stage::Final,
            Stage::AfterColdStart => self.stage = Stage::Main,
            Stage::Final => self.stage = Stage::Finish,
            Stage::ColdStart | Stage::Main | Stage::Finish | Stage::Finished => {}
        }
    }

    /// Ends the run early: a checkpoint of what is planned, then finish.
    pub(super) fn stop(&mut self) {
        if self.stage != Stage::Finished {
            self.stage = Stage::Finish;
            self.stopped = true;
        }
    }

    /// Whether the finish is planned.
    pub(super) fn is_finished(&self) -> bool {
        self.stage == Stage::Finished
    }

    /// Whether somebody ended the run early.
    pub(super) fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// Optimizer step that trains RL batch `index`; `None` if there is no such batch, or if it is
    /// not known yet because the cold start has not ended.
    pub(super) fn rl_step(&self, index: u64) -> Option<u64> {
        let main = match self.settings.kind {
            ScheduleKind::SftOnly => return None,
            ScheduleKind::SftThenRl => index,
            ScheduleKind::Interleave => {
                let (rl, sft) = (self.settings.rl_steps, self.settings.sft_steps);
                let cycle = index.checked_div(rl)?;
                cycle * (rl + sft) + index % rl
            }
        };
        (main < self.settings.steps).then_some(self.cold_start_steps? + main + 1)
    }

    /// Steps the cold start took, once it has ended.
    pub(super) fn cold_start_steps(&self) -> Option<u64> {
        self.cold_start_steps
    }

    /// The phase the cursor is in; evaluations and demonstrations are the engine's to tell.
    pub(super) fn phase(&self) -> Phase {
        match (self.cold_start_steps, self.settings.kind) {
            (None, _) => Phase::ColdStart,
            (Some(_), ScheduleKind::SftOnly) => Phase::Sft,
            (Some(_), ScheduleKind::SftThenRl | ScheduleKind::Interleave) => Phase::Rl,
        }
    }

    /// (steps of the phase finished, steps it takes at most), given the last finished step.
    pub(super) fn progress(&self, finished: u64) -> (u64, u64) {
        match self.cold_start_steps {
            None => (finished, self.settings.cold_start_steps_max),
            Some(cold) => (finished.saturating_sub(cold), self.settings.steps),
        }
    }

    /// Due every `checkpoint_every` steps, and whenever what comes next must not be lost.
    fn checkpoint_due(&self) -> bool {
        let periodic = self.step > 0 && self.step.is_multiple_of(self.checkpoint_every);
        let milestone = matches!(self.stage, Stage::AfterColdStart | Stage::Final | Stage::Finish);
        self.checkpointed != Some(self.step) && (periodic || milestone)
    }

    fn sft_step(&self, phase: Phase) -> Step {
        let step = self.step + 1;
        let learning_rate = match phase {
            Phase::ColdStart => {
                let warm_up = (step as f64 / WARM_UP_STEPS as f64).min(1.0);
                self.sft.cold_start_learning_rate * warm_up
            }
            _ => self.sft.learning_rate,
        };
        Step { step, kind: StepKind::Sft, index: self.sft_batches, learning_rate, phase }
    }

    fn main_step(&self) -> Step {
        if self.rl_step(self.rl_batches) != Some(self.step + 1) {
            return self.sft_step(self.phase());
        }
        Step {
            step: self.step + 1,
            kind: StepKind::Rl,
            index: self.rl_batches,
            learning_rate: self.rl_learning_rate,
            phase: Phase::Rl,
        }
    }

    fn advance_step(&mut self, planned: Step) {
        self.step = planned.step;
        match planned.kind {
            StepKind::Rl => self.rl_batches += 1,
            _ => self.sft_batches += 1,
        }
        let main_steps = self.step - self.cold_start_steps.unwrap_or(0);
        match self.stage {
            Stage::ColdStart if self.step >= self.settings.cold_start_steps_max => {
                self.end_cold_start();
            }
            Stage::ColdStart if self.is_check_due() => self.stage = Stage::ColdStartCheck,
            Stage::Main if main_steps >= self.settings.steps => self.stage = Stage::Final,
            _ => {}
        }
    }

    fn is_check_due(&self) -> bool {
        self.step.is_multiple_of(self.settings.cold_start_check_every.max(1))
    }

    fn end_cold_start(&mut self) {
        self.cold_start_steps = Some(self.step);
        self.stage = Stage::AfterColdStart;
    }

    fn skip_empty_main(mut self) -> Self {
        if self.stage == Stage::Main && self.settings.steps == 0 {
            self.stage = Stage::Final;
        }
        self
    }
}

#[cfg(test)]
#[path = "schedule_test.rs"]
mod tests;
