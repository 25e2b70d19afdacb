//! The schedule: its kind, its phases and what ends them, the constants of its controller.

use std::collections::BTreeSet;

use super::{Faults, LEARNING_RATE, STEPS_MAX};
use crate::config::{Adaptive, Config, PhaseEnd, PhaseKind, Schedule, ScheduleKind, SchedulePhase};

/// Metrics that can end a phase: those that optimizer steps have and that say something about the
/// policy. The coordinator's tests compare them with docs/metrics.md.
pub const PHASE_END_METRICS: [&str; 16] = [
    "rollout/success",
    "rollout/reward_mean",
    "rollout/calls_mean",
    "rollout/invalid_call_rate",
    "rollout/polluted_rate",
    "rollout/control_token_mass",
    "rollout/tokens_mean",
    "groups/zero_variance",
    "groups/all_fail",
    "loss/policy_gradient",
    "loss/cross_entropy",
    "train/clip_fraction",
    "train/behavior_kl",
    "train/importance_ratio",
    "train/entropy",
    "train/gradient_norm",
];
/// What only RL steps have.
const RL_METRICS: [&str; 3] = ["rollout/", "groups/", "loss/policy_gradient"];
const PHASES_MAX: usize = 1024;
const WINDOW_MAX: u64 = 1024;

pub(super) fn check(config: &Config, faults: &mut Faults) {
    let schedule = &config.schedule;
    faults.range("schedule.steps", schedule.steps, 0..=STEPS_MAX);
    faults.range("schedule.cold_start_steps_max", schedule.cold_start_steps_max, 0..=STEPS_MAX);
    faults.range("schedule.cold_start_success", schedule.cold_start_success, 0.0..=1.0);
    faults.range("schedule.cold_start_check_every", schedule.cold_start_check_every, 1..=STEPS_MAX);
    let cycle_min = u64::from(has_kind(schedule, PhaseKind::Interleave));
    faults.range("schedule.rl_steps", schedule.rl_steps, cycle_min..=STEPS_MAX);
    faults.range("schedule.sft_steps", schedule.sft_steps, cycle_min..=STEPS_MAX);
    // A weight of 0 is RL alone, which has a name of its own.
    let weight_min = if has_kind(schedule, PhaseKind::Joint) { 1e-6 } else { 0.0 };
    faults.range("schedule.sft_weight", schedule.sft_weight, weight_min..=1e3);
    check_adaptive(&schedule.adaptive, faults);
    check_phases(schedule, faults);
    let cold_start = schedule.cold_start_steps_max > 0 && schedule.kind != ScheduleKind::RlOnly;
    faults.require(cold_start || schedule.steps > 0, "schedule.steps", || {
        "is 0 and there is no cold start either; nothing would be trained".into()
    });
    let main = schedule.steps > 0
        && [PhaseKind::Sft, PhaseKind::Interleave, PhaseKind::Adaptive, PhaseKind::Joint]
            .into_iter()
            .any(|kind| has_kind(schedule, kind));
    let supervised = cold_start || main;
    faults.require(!supervised || config.tasks.demonstrations > 0, "tasks.demonstrations", || {
        "is 0, but the schedule has SFT steps; record at least 1".into()
    });
}

/// Whether steps of the main part may be of this kind.
fn has_kind(schedule: &Schedule, kind: PhaseKind) -> bool {
    match schedule.kind {
        ScheduleKind::RlOnly | ScheduleKind::SftThenRl => kind == PhaseKind::Rl,
        ScheduleKind::Interleave => kind == PhaseKind::Interleave,
        ScheduleKind::Adaptive => kind == PhaseKind::Adaptive,
        ScheduleKind::Joint => kind == PhaseKind::Joint,
        ScheduleKind::SftOnly => kind == PhaseKind::Sft,
        ScheduleKind::Phases => schedule.phases.iter().any(|phase| phase.kind == kind),
    }
}

fn check_adaptive(adaptive: &Adaptive, faults: &mut Faults) {
    let limit = 1e-9..=1.0;
    let key = |name: &str| format!("schedule.adaptive.{name}");
    faults.range(&key("invalid_call_rate"), adaptive.invalid_call_rate, limit.clone());
    faults.range(&key("polluted_rate"), adaptive.polluted_rate, limit.clone());
    faults.range(&key("control_token_mass"), adaptive.control_token_mass, limit);
    // Health is measured in RL steps: some must be left.
    faults.range(&key("share_max"), adaptive.share_max, 0.0..=0.9);
    faults.range(&key("share_min"), adaptive.share_min, 0.0..=0.9);
    faults.range(&key("gain"), adaptive.gain, 0.0..=1.0);
    faults.range(&key("dead_band"), adaptive.dead_band, 0.0..=0.9);
    faults.range(&key("hold_steps"), adaptive.hold_steps, 1..=STEPS_MAX);
    let (low, high) = (adaptive.share_min, adaptive.share_max);
    faults.require(low.is_nan() || high.is_nan() || low <= high, &key("share_min"), || {
        format!("is {low}, more than schedule.adaptive.share_max = {high}")
    });
}

fn check_phases(schedule: &Schedule, faults: &mut Faults) {
    let count = schedule.phases.len();
    if schedule.kind == ScheduleKind::Phases {
        faults.require(count > 0, "schedule.phases", || {
            "is empty, but schedule.kind is phases; write at least one [[schedule.phases]]".into()
        });
    }
    faults.require(count <= PHASES_MAX, "schedule.phases", || {
        format!("has {count} phases; allowed: {PHASES_MAX}, and schedule.repeat = true")
    });
    let mut names = BTreeSet::new();
    for (index, phase) in schedule.phases.iter().enumerate().take(PHASES_MAX) {
        let key = |name: &str| format!("schedule.phases[{index}].{name}");
        faults.require(!phase.name.trim().is_empty(), &key("name"), || {
            "is empty; write a name, for example \"explore\"".into()
        });
        faults.require(names.insert(&phase.name), &key("name"), || {
            format!("is `{}`, the name of an earlier phase too", phase.name)
        });
        faults.range(&key("steps"), phase.steps, 0..=STEPS_MAX);
        if phase.learning_rate != 0.0 {
            faults.range(&key("learning_rate"), phase.learning_rate, LEARNING_RATE);
        }
        check_end(phase, &key, faults);
        let endless = phase.steps == 0 && !phase.until.is_given();
        let is_last = index + 1 == count && !schedule.repeat;
        faults.require(is_last || !endless, &key("steps"), || {
            "is 0 and until is empty: the phase never ends, and what follows never begins".into()
        });
    }
}

fn check_end(phase: &SchedulePhase, key: &impl Fn(&str) -> String, faults: &mut Faults) {
    let PhaseEnd { all_fail_groups, metric, above, below, window } = &phase.until;
    let has_rl = phase.kind != PhaseKind::Sft;
    faults.range(&key("until.all_fail_groups"), *all_fail_groups, 0..=STEPS_MAX);
    faults.require(has_rl || *all_fail_groups == 0, &key("until.all_fail_groups"), || {
        "counts groups, but the phase has no RL steps; use steps".into()
    });
    faults.range(&key("until.window"), *window, 1..=WINDOW_MAX);
    for (name, bound) in [("until.above", above), ("until.below", below)] {
        faults.require(bound.is_none_or(f64::is_finite), &key(name), || {
            "is not finite; write a number".into()
        });
        faults.require(bound.is_none() || !metric.is_empty(), &key(name), || {
            "is a bound without until.metric; name the metric".into()
        });
    }
    if metric.is_empty() {
        return;
    }
    faults.one_of(&key("until.metric"), metric, &PHASE_END_METRICS);
    faults.require(above.is_some() || below.is_some(), &key("until.metric"), || {
        "has no bound; write until.above or until.below".into()
    });
    let measured = has_rl || !RL_METRICS.iter().any(|prefix| metric.starts_with(prefix));
    faults.require(measured, &key("until.metric"), || {
        format!("is `{metric}`, which only RL steps have, and the phase has none")
    });
}
