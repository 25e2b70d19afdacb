//! The course of the main part: phases one after the other, and in each the kind of every step.
//!
//! Every kind of schedule is a list of phases (`phases_of`), so one state machine plays them all.
//! Steps are decided in order, each once; a decided step stands. What is observed, and a change of
//! the settings, act on the steps that are not decided yet.

use std::collections::BTreeMap;

use ballast_proto::v1::StepKind;
use ballast_runtime::config::{self, PhaseKind, ScheduleKind, SchedulePhase};
use serde::{Deserialize, Serialize};

use super::{Decision, Phase, controller::Controller, phase_end::Watch};

/// A step of the main part that is decided and not planned yet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Decided {
    pub(super) kind: StepKind,
    /// Learning rate of its phase, where it has one of its own.
    pub(super) learning_rate: Option<f64>,
    /// Weight of the cross-entropy of a joint step.
    pub(super) sft_weight: f64,
    /// Whether the optimizer forgets its moments first.
    pub(super) reset_optimizer: bool,
    pub(super) phase: Phase,
    /// Name of its phase.
    pub(super) phase_name: String,
}

/// Place in the list of phases.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Course {
    settings: config::Schedule,
    phases: Vec<SchedulePhase>,
    repeat: bool,
    /// Index of the phase of the next step to decide; past the end when the last phase is over.
    at: usize,
    /// Why that phase is at hand.
    why: String,
    watch: Watch,
    controller: Controller,
    /// Steps decided in the main part.
    steps: u64,
}

impl Course {
    pub(super) fn new(settings: config::Schedule) -> Self {
        let (phases, repeat) = phases_of(&settings);
        Self {
            phases,
            repeat,
            at: 0,
            why: "the main part begins with it".into(),
            watch: Watch::default(),
            controller: Controller::new(&settings),
            steps: 0,
            settings,
        }
    }

    /// Decides the next step, `step`; `None` when the main part is over. Notes what is decided.
    pub(super) fn decide(&mut self, step: u64, notes: &mut Vec<Decision>) -> Option<Decided> {
        if self.steps >= self.settings.steps {
            return None;
        }
        if let Some(why) = self.phases.get(self.at).and_then(|phase| self.watch.over(phase)) {
            self.leave(why);
        }
        let phase = self.phases.get(self.at)?.clone();
        let title = format!("phase `{}`", phase.name);
        if self.watch.steps() == 0 {
            notes.push(Decision { step, what: title.clone(), reason: self.why.clone() });
        }
        let (kind, why) = self.kind_of_next(phase.kind);
        let what = format!("{} step", kind_name(kind));
        notes.push(Decision { step, what, reason: format!("{title}: {why}") });
        let reset_optimizer = phase.reset_optimizer && self.watch.steps() == 0;
        self.watch.decide(step);
        self.steps += 1;
        let sft_weight = if kind == StepKind::Joint { self.settings.sft_weight } else { 0.0 };
        Some(Decided {
            kind,
            sft_weight,
            reset_optimizer,
            learning_rate: (phase.learning_rate > 0.0).then_some(phase.learning_rate),
            phase: shown_as(phase.kind),
            phase_name: phase.name,
        })
    }

    /// A step is finished and has these metrics. `next` is the first step not decided yet.
    pub(super) fn observe(
        &mut self,
        step: u64,
        metrics: &BTreeMap<String, f64>,
        next: u64,
        notes: &mut Vec<Decision>,
    ) {
        let Some(phase) = self.phases.get(self.at) else { return };
        self.watch.observe(&phase.until, step, metrics);
        if phase.kind != PhaseKind::Adaptive {
            return;
        }
        let before = self.controller.share();
        if let Some(reason) = self.controller.observe(metrics) {
            let what = format!("sft share {before:.3} -> {:.3}", self.controller.share());
            notes.push(Decision { step: next, what, reason });
        }
    }

    /// Takes other settings for the steps that are not decided. The phase at hand goes on unless
    /// the phases themselves are others.
    pub(super) fn change(&mut self, settings: config::Schedule, why: &str) {
        let was_adaptive = self.is_adaptive();
        let (phases, repeat) = phases_of(&settings);
        self.repeat = repeat;
        if phases != self.phases || (repeat && self.at >= phases.len()) {
            self.phases = phases;
            self.enter(0, why.to_owned());
        }
        self.settings = settings;
        if self.is_adaptive() && !was_adaptive {
            self.controller = Controller::new(&self.settings);
        } else {
            self.controller.change(self.settings.adaptive);
        }
    }

    /// What it plays.
    pub(super) fn settings(&self) -> &config::Schedule {
        &self.settings
    }

    /// How the phase of the next step to decide is shown; the last one's when all are over.
    pub(super) fn phase(&self) -> Phase {
        let phase = self.phases.get(self.at).or(self.phases.last());
        phase.map_or(Phase::Rl, |phase| shown_as(phase.kind))
    }

    /// (name of the phase of the next step to decide, why it is at hand, what ends it).
    pub(super) fn describe(&self) -> (&str, &str, String) {
        let Some(phase) = self.phases.get(self.at) else {
            return ("", &self.why, "the main part is over".into());
        };
        let total =
            format!("the {} steps of the main part ({} decided)", self.settings.steps, self.steps);
        let own = self.watch.describe(phase);
        let ends = if own.is_empty() { total } else { format!("{own}; at the latest {total}") };
        (&phase.name, &self.why, ends)
    }

    /// Share of SFT steps and smoothed strain, in an adaptive phase.
    pub(super) fn control(&self) -> Option<(f64, Option<f64>)> {
        self.is_adaptive().then(|| (self.controller.share(), self.controller.strain()))
    }

    fn is_adaptive(&self) -> bool {
        self.phases.get(self.at).is_some_and(|phase| phase.kind == PhaseKind::Adaptive)
    }

    fn kind_of_next(&mut self, kind: PhaseKind) -> (StepKind, String) {
        match kind {
            PhaseKind::Rl => (StepKind::Rl, "RL alone".into()),
            PhaseKind::Sft => (StepKind::Sft, "SFT alone".into()),
            PhaseKind::Joint => {
                let weight = self.settings.sft_weight;
                (StepKind::Joint, format!("RL and {weight} times SFT"))
            }
            PhaseKind::Interleave => {
                let (rl, sft) = (self.settings.rl_steps, self.settings.sft_steps);
                let cycle = rl.saturating_add(sft).max(1);
                let place = self.watch.steps() % cycle;
                let kind = if place < rl { StepKind::Rl } else { StepKind::Sft };
                let place = place + 1;
                (kind, format!("step {place} of a cycle of {rl} RL and {sft} SFT"))
            }
            PhaseKind::Adaptive => {
                let share = self.controller.share();
                let kind = if self.controller.next_is_sft() { StepKind::Sft } else { StepKind::Rl };
                (kind, format!("the SFT share is {share:.3}"))
            }
        }
    }

    /// Goes on to the phase after the one at hand, if there is one.
    fn leave(&mut self, why: String) {
        let next = self.at + 1;
        let again = self.repeat && next >= self.phases.len();
        self.enter(if again { 0 } else { next }, why);
    }

    fn enter(&mut self, at: usize, why: String) {
        self.at = at;
        self.why = why;
        self.watch = Watch::default();
    }
}

/// The phases a schedule consists of after its cold start, and whether they repeat.
fn phases_of(settings: &config::Schedule) -> (Vec<SchedulePhase>, bool) {
    let one = |name: &str, kind| {
        (vec![SchedulePhase { name: name.into(), kind, ..SchedulePhase::default() }], false)
    };
    match settings.kind {
        ScheduleKind::RlOnly | ScheduleKind::SftThenRl => one("rl", PhaseKind::Rl),
        ScheduleKind::SftOnly => one("sft", PhaseKind::Sft),
        ScheduleKind::Interleave => one("interleave", PhaseKind::Interleave),
        ScheduleKind::Adaptive => one("adaptive", PhaseKind::Adaptive),
        ScheduleKind::Joint => one("joint", PhaseKind::Joint),
        ScheduleKind::Phases => (settings.phases.clone(), settings.repeat),
    }
}

/// Name of a kind of step, in decisions and in metrics.
pub(in crate::engine) fn kind_name(kind: StepKind) -> &'static str {
    match kind {
        StepKind::Rl => "rl",
        StepKind::Joint => "joint",
        _ => "sft",
    }
}

fn shown_as(kind: PhaseKind) -> Phase {
    match kind {
        PhaseKind::Sft => Phase::Sft,
        PhaseKind::Rl | PhaseKind::Interleave | PhaseKind::Adaptive | PhaseKind::Joint => Phase::Rl,
    }
}

#[cfg(test)]
#[path = "course_test.rs"]
mod tests;
