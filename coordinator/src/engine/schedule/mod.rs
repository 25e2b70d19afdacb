//! The schedule: what the learner does next, and why. Pure: a cursor, told what it needs.
//!
//! cold start (SFT steps, a check every few) -> evaluation -> main part (RL and SFT steps) ->
//! evaluation -> finish; a checkpoint every `checkpoint_every` steps and before each of the two
//! evaluations. The cursor counts steps as they are *planned*; the engine plans at most two batches
//! ahead of the learner and never past an evaluation.
//!
//! Steps of the main part are *decided* before they are planned: as far ahead as admission needs
//! them (`decide_to`), because S1 rests on the step of a group being fixed when its episodes begin.
//! Invariant: a decided step never changes. So whatever acts on the schedule, a phase that ends, a
//! share that moves, a person, acts from the first undecided step on, and no episode is dropped.

mod controller;
mod course;
mod describe;
mod phase_end;
mod stage;

use std::collections::{BTreeMap, VecDeque};

use ballast_proto::v1::StepKind;
use ballast_runtime::config::{self, Config, ScheduleKind};
use serde::{Deserialize, Serialize};

pub(super) use self::{course::kind_name, describe::Description};
use self::{
    course::{Course, Decided},
    stage::{Stage, StageEvent},
};
use super::evaluation::EvaluationName;

/// Steps over which the learning rate of the cold start rises linearly to its value.
const WARM_UP_STEPS: u64 = 10;

/// Part of the run, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Step {
    pub(super) step: u64,
    pub(super) kind: StepKind,
    /// Number of this step among those with demonstrations, from 0.
    pub(super) sft_index: u64,
    pub(super) learning_rate: f64,
    /// Weight of the cross-entropy of a joint step.
    pub(super) sft_weight: f64,
    /// Whether the optimizer forgets its moments first.
    pub(super) reset_optimizer: bool,
    pub(super) phase: Phase,
}

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
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

/// Something the schedule decided, in words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Decision {
    /// First optimizer step it holds for.
    pub(super) step: u64,
    /// "rl step", "sft step", or what begins or moves.
    pub(super) what: String,
    pub(super) reason: String,
}

/// The cursor.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Schedule {
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
    course: Course,
    /// Steps of the main part after `step` that are decided.
    decided: VecDeque<Decided>,
    /// Decisions nobody has taken note of yet.
    notes: Vec<Decision>,
    /// Somebody wants a checkpoint of what is planned.
    checkpoint_requested: bool,
    /// Somebody wants an evaluation after what is planned.
    evaluation_requested: bool,
    stopped: bool,
}

impl Schedule {
    pub(super) fn new(config: &Config) -> Self {
        let settings = config.schedule.clone();
        let (stage, cold_start_steps) = match (settings.kind, settings.cold_start_steps_max) {
            // Nothing was trained that could be evaluated: the control arm starts at once.
            (ScheduleKind::SftOnly, 0) => (Stage::Main, Some(0)),
            (ScheduleKind::RlOnly, _) | (_, 0) => (Stage::AfterColdStart, Some(0)),
            _ => (Stage::ColdStart, None),
        };
        Self {
            sft: config.sft.clone(),
            rl_learning_rate: config.rl.learning_rate,
            checkpoint_every: config.learner.checkpoint_every.max(1),
            stage,
            step: 0,
            sft_batches: 0,
            rl_batches: 0,
            checkpointed: None,
            cold_start_steps,
            course: Course::new(settings),
            decided: VecDeque::new(),
            notes: Vec::new(),
            checkpoint_requested: false,
            evaluation_requested: false,
            stopped: false,
        }
    }

    /// What comes next; decides it if that is still open.
    pub(super) fn next(&mut self) -> Action {
        if self.evaluation_requested {
            return Action::Evaluate(EvaluationName::Requested);
        }
        if self.stage == Stage::Main && self.decided.is_empty() && !self.decide() {
            self.move_on(StageEvent::StepsDone);
        }
        if self.checkpoint_due() {
            return Action::Checkpoint { step: self.step };
        }
        match (self.stage, self.decided.front()) {
            (Stage::ColdStart, _) => Action::Train(self.cold_start_step()),
            (Stage::ColdStartCheck, _) => Action::Evaluate(EvaluationName::ColdStartCheck),
            (Stage::AfterColdStart, _) => Action::Evaluate(EvaluationName::AfterColdStart),
            (Stage::Main, Some(decided)) => Action::Train(self.main_step(decided)),
            (Stage::Main | Stage::Final, _) => Action::Evaluate(EvaluationName::Final),
            (Stage::Finish | Stage::Finished, _) => Action::Finish { step: self.step },
        }
    }

    /// Moves past a planned step, checkpoint or finish.
    pub(super) fn advance(&mut self) {
        match self.next() {
            Action::Train(step) => self.advance_step(step),
            Action::Checkpoint { step } => {
                self.checkpointed = Some(step);
                self.checkpoint_requested = false;
            }
            Action::Finish { .. } => self.move_on(StageEvent::FinishPlanned),
            Action::Evaluate(_) => {}
        }
    }

    /// Moves past the evaluation at hand, given its success rate.
    pub(super) fn conclude(&mut self, success: f64) {
        if std::mem::take(&mut self.evaluation_requested) {
            return;
        }
        let needed = self.settings().cold_start_success;
        if self.stage != Stage::ColdStartCheck {
            self.move_on(StageEvent::Passed);
        } else if success < needed {
            self.move_on(StageEvent::Failed);
            let reason = format!("a check came to {success:.3}, below {needed}");
            self.note(self.step + 1, "the cold start goes on", reason);
        } else {
            self.end_cold_start(
                StageEvent::Passed,
                format!("a check came to {success:.3}, at least {needed}"),
            );
        }
    }

    /// Ends the run early: a checkpoint of what is planned, then finish.
    pub(super) fn stop(&mut self) {
        if self.stage != Stage::Finished {
            self.move_on(StageEvent::Stopped);
            self.evaluation_requested = false;
            self.stopped = true;
        }
    }

    /// Decides the main part up to a step, as far as it goes; nothing before the cold start has
    /// ended or after a stop.
    pub(super) fn decide_to(&mut self, horizon: u64) {
        while self.is_main_known() && self.last_decided() < horizon && self.decide() {}
    }

    /// A step is finished and has these metrics.
    pub(super) fn observe(&mut self, step: u64, metrics: &BTreeMap<String, f64>) {
        if self.is_main_known() {
            let next = self.last_decided() + 1;
            self.course.observe(step, metrics, next, &mut self.notes);
        }
    }

    /// Takes other settings; they hold for steps that are not decided. Returns the first of these,
    /// or why it is too late.
    pub(super) fn change(&mut self, config: &Config, why: &str) -> Result<u64, &'static str> {
        let settings = config.schedule.clone();
        if self.stopped || matches!(self.stage, Stage::Final | Stage::Finish | Stage::Finished) {
            return Err("the last step of the run is planned; start a new run");
        }
        let old = self.settings();
        let cold_start = |one: &config::Schedule| {
            let success = one.cold_start_success.to_bits();
            (one.cold_start_steps_max, success, one.cold_start_check_every)
        };
        if self.cold_start_steps.is_some() && cold_start(old) != cold_start(&settings) {
            return Err("the cold start is over; leave out schedule.cold_start_*");
        }
        self.course.change(settings, why);
        self.sft = config.sft.clone();
        self.rl_learning_rate = config.rl.learning_rate;
        let next = self.last_decided() + 1;
        self.note(next, "the settings change", why.to_owned());
        Ok(next)
    }

    /// Plans a checkpoint as soon as possible. Returns the step it will be named after.
    pub(super) fn request_checkpoint(&mut self) -> Result<u64, &'static str> {
        if self.stopped || matches!(self.stage, Stage::Finish | Stage::Finished) {
            return Err("the run ends with a checkpoint anyway");
        }
        if self.step == 0 {
            return Err("nothing is trained yet; the initial checkpoint is all there is");
        }
        self.checkpoint_requested = self.checkpointed != Some(self.step);
        Ok(self.step)
    }

    /// Plans an evaluation as soon as possible.
    pub(super) fn request_evaluation(&mut self) -> Result<(), &'static str> {
        if self.stopped || !matches!(self.stage, Stage::ColdStart | Stage::Main) {
            return Err("the run is evaluated at this point anyway, or it is over");
        }
        self.evaluation_requested = true;
        Ok(())
    }

    /// What was decided since the last call.
    pub(super) fn take_notes(&mut self) -> Vec<Decision> {
        std::mem::take(&mut self.notes)
    }

    /// Whether the finish is planned.
    pub(super) fn is_finished(&self) -> bool {
        self.stage == Stage::Finished
    }

    /// Whether somebody ended the run early.
    pub(super) fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// Whether the next thing to plan is an SFT step.
    pub(super) fn wants_demonstrations(&self) -> bool {
        let sft = |decided: &Decided| decided.kind != StepKind::Rl;
        let next = match self.stage {
            Stage::ColdStart => true,
            Stage::Main => self.decided.front().is_some_and(sft),
            _ => false,
        };
        next && !self.checkpoint_due()
    }

    /// Optimizer step that trains RL batch `index`; `None` if there is no such batch, or if it is
    /// not decided yet.
    pub(super) fn rl_step(&self, index: u64) -> Option<u64> {
        let ahead = usize::try_from(index.checked_sub(self.rl_batches)?).ok()?;
        let steps = (self.step + 1..).zip(&self.decided);
        let mut rl = steps.filter(|(_, decided)| decided.kind != StepKind::Sft);
        rl.nth(ahead).map(|(step, _)| step)
    }

    /// Steps the cold start took, once it has ended.
    pub(super) fn cold_start_steps(&self) -> Option<u64> {
        self.cold_start_steps
    }

    /// The settings it plays.
    pub(super) fn settings(&self) -> &config::Schedule {
        self.course.settings()
    }

    /// Share of SFT steps and smoothed strain, while the share is controlled.
    pub(super) fn control(&self) -> Option<(f64, Option<f64>)> {
        self.cold_start_steps.and_then(|_| self.course.control())
    }

    /// The phase the cursor is in; evaluations and demonstrations are the engine's to tell.
    pub(super) fn phase(&self) -> Phase {
        match (self.cold_start_steps, self.decided.front()) {
            (None, _) => Phase::ColdStart,
            (Some(_), Some(decided)) => decided.phase,
            (Some(_), None) => self.course.phase(),
        }
    }

    /// (steps of the phase finished, steps it takes at most), given the last finished step.
    pub(super) fn progress(&self, finished: u64) -> (u64, u64) {
        match self.cold_start_steps {
            None => (finished, self.settings().cold_start_steps_max),
            Some(cold) => (finished.saturating_sub(cold), self.settings().steps),
        }
    }

    /// Last step that is planned or decided.
    fn last_decided(&self) -> u64 {
        self.step + self.decided.len() as u64
    }

    /// Whether steps of the main part can be decided.
    fn is_main_known(&self) -> bool {
        self.cold_start_steps.is_some() && matches!(self.stage, Stage::AfterColdStart | Stage::Main)
    }

    /// Decides one more step of the main part. Returns whether there is one.
    fn decide(&mut self) -> bool {
        let step = self.last_decided() + 1;
        let decided = self.course.decide(step, &mut self.notes);
        let more = decided.is_some();
        self.decided.extend(decided);
        more
    }

    fn move_on(&mut self, event: StageEvent) {
        self.stage = self.stage.after(event);
    }

    fn note(&mut self, step: u64, what: &str, reason: String) {
        self.notes.push(Decision { step, what: what.into(), reason });
    }

    /// Due every `checkpoint_every` steps, and whenever what comes next must not be lost.
    fn checkpoint_due(&self) -> bool {
        let periodic = self.step > 0 && self.step.is_multiple_of(self.checkpoint_every);
        let milestone = matches!(self.stage, Stage::AfterColdStart | Stage::Final | Stage::Finish);
        let wanted = periodic || milestone || self.checkpoint_requested;
        self.checkpointed != Some(self.step) && wanted
    }

    fn cold_start_step(&self) -> Step {
        let step = self.step + 1;
        let warm_up = (step as f64 / WARM_UP_STEPS as f64).min(1.0);
        let learning_rate = self.sft.cold_start_learning_rate * warm_up;
        Step {
            step,
            kind: StepKind::Sft,
            sft_index: self.sft_batches,
            learning_rate,
            sft_weight: 0.0,
            reset_optimizer: false,
            phase: Phase::ColdStart,
        }
    }

    fn main_step(&self, decided: &Decided) -> Step {
        let learning_rate = match decided.kind {
            StepKind::Sft => self.sft.learning_rate,
            _ => self.rl_learning_rate,
        };
        Step {
            step: self.step + 1,
            kind: decided.kind,
            sft_index: self.sft_batches,
            learning_rate: decided.learning_rate.unwrap_or(learning_rate),
            sft_weight: decided.sft_weight,
            reset_optimizer: decided.reset_optimizer,
            phase: decided.phase,
        }
    }

    fn advance_step(&mut self, planned: Step) {
        self.step = planned.step;
        self.rl_batches += u64::from(planned.kind != StepKind::Sft);
        self.sft_batches += u64::from(planned.kind != StepKind::Rl);
        if self.stage == Stage::Main {
            self.decided.pop_front();
            return;
        }
        self.note(planned.step, "sft step", "the cold start".into());
        let (bound, every) =
            (self.settings().cold_start_steps_max, self.settings().cold_start_check_every);
        if self.step >= bound {
            self.end_cold_start(StageEvent::StepsDone, format!("its {bound} steps are planned"));
        } else if self.step.is_multiple_of(every.max(1)) {
            self.move_on(StageEvent::CheckDue);
        }
    }

    fn end_cold_start(&mut self, event: StageEvent, reason: String) {
        self.cold_start_steps = Some(self.step);
        self.note(self.step + 1, "the cold start ends", reason);
        self.move_on(event);
    }
}

#[cfg(test)]
#[path = "schedule_test.rs"]
mod tests;
