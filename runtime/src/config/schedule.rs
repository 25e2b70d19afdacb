//! The section `[schedule]`: kinds, phases and what ends them, the constants of the controller.

use serde::{Deserialize, Serialize};

/// Kind of schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleKind {
    /// RL alone, from the initial checkpoint.
    RlOnly,
    /// A cold start of SFT, then RL alone.
    SftThenRl,
    /// A cold start of SFT, then cycles of `rl_steps` RL and `sft_steps` SFT steps.
    Interleave,
    /// A cold start of SFT, then RL with a share of SFT steps that follows the health of what the
    /// policy writes: see [`Adaptive`].
    Adaptive,
    /// A cold start of SFT, then the phases listed in `phases`.
    Phases,
    /// A cold start of SFT, then steps that do both at once: policy gradient plus `sft_weight` times
    /// the cross-entropy.
    Joint,
    /// SFT alone for `steps` steps (the control arm; also plain fine-tuning).
    SftOnly,
}

impl ScheduleKind {
    /// Its name in a configuration.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RlOnly => "rl_only",
            Self::SftThenRl => "sft_then_rl",
            Self::Interleave => "interleave",
            Self::Adaptive => "adaptive",
            Self::Phases => "phases",
            Self::Joint => "joint",
            Self::SftOnly => "sft_only",
        }
    }
}

/// How optimizer steps are divided between RL and SFT.
///
/// The kind of a step is decided when the first episode that may be trained in it can be admitted,
/// `rl.staleness_max` + 1 steps ahead, and then stands. What ends a phase, a live change, or a moved
/// share therefore shows in the steps after those.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Schedule {
    /// Kind of schedule.
    pub kind: ScheduleKind,
    /// Optimizer steps after the cold start, RL and SFT together; with phases, at most.
    pub steps: u64,
    /// Interleave: RL steps in a cycle. Adaptive: with `sft_steps`, the share it begins with.
    pub rl_steps: u64,
    /// Interleave: SFT steps in a cycle. Adaptive: with `rl_steps`, the share it begins with.
    pub sft_steps: u64,
    /// Joint: weight of the cross-entropy beside the policy gradient, each a mean over its own tokens.
    pub sft_weight: f64,
    /// Upper bound of the cold start, in SFT steps; 0 skips it. "rl_only" has none.
    pub cold_start_steps_max: u64,
    /// The cold start ends when a check (on the validation split) reaches this success rate.
    /// Evaluation ends it, not a step count: copying appears suddenly.
    pub cold_start_success: f64,
    /// SFT steps between two checks of the cold start.
    pub cold_start_check_every: u64,
    /// Phases: begins with the first one again when the last one has ended, until `steps` are done.
    pub repeat: bool,
    /// Adaptive: limits of health and constants of the control law.
    pub adaptive: Adaptive,
    /// Phases: one after the other.
    pub phases: Vec<SchedulePhase>,
}

/// The SFT share as a controlled variable; the law is stated where it is computed, in the
/// coordinator's `engine/schedule/controller.rs`.
///
/// Health is measured in every RL step. It is at its limit when one of the three rates is at its own.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Adaptive {
    /// Limit of `rollout/invalid_call_rate`.
    pub invalid_call_rate: f64,
    /// Limit of `rollout/polluted_rate`.
    pub polluted_rate: f64,
    /// Limit of `rollout/control_token_mass`.
    pub control_token_mass: f64,
    /// The share of SFT steps is never below this.
    pub share_min: f64,
    /// The share of SFT steps is never above this.
    pub share_max: f64,
    /// Growth of the share in one RL step whose health is at twice its limit or worse.
    pub gain: f64,
    /// The share is held while health is this close to its limit, relative to the limit.
    pub dead_band: f64,
    /// RL steps that must be clear of the limit, one after the other, before the share may fall.
    pub hold_steps: u64,
}

/// What the steps of a phase are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PhaseKind {
    /// RL alone.
    Rl,
    /// SFT alone.
    Sft,
    /// Cycles of `schedule.rl_steps` RL and `schedule.sft_steps` SFT steps.
    Interleave,
    /// As [`ScheduleKind::Adaptive`]; the share carries over from an earlier phase of this kind.
    Adaptive,
    /// As [`ScheduleKind::Joint`].
    Joint,
}

/// A part of a schedule with a name. It ends after `steps`, or when `until` is met, whichever is
/// first; without either it goes on until `schedule.steps` are done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SchedulePhase {
    /// Name, for people and the journal.
    pub name: String,
    /// What its steps are.
    pub kind: PhaseKind,
    /// Most steps it takes; 0: no bound of its own.
    pub steps: u64,
    /// Learning rate of all its steps; 0: those of `rl` and `sft`.
    pub learning_rate: f64,
    /// The optimizer forgets its moments when the phase begins.
    pub reset_optimizer: bool,
    /// What else ends it.
    pub until: PhaseEnd,
}

/// What ends a phase before its steps are done. Only steps of the phase itself count.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PhaseEnd {
    /// It has trained on this many groups without any success (ReLIFT); 0: no such bound.
    pub all_fail_groups: u64,
    /// A metric as in docs/metrics.md, for example "rollout/success"; empty: none.
    pub metric: String,
    /// Ends the phase once the mean over `window` is at least this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub above: Option<f64>,
    /// Ends the phase once the mean over `window` is at most this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub below: Option<f64>,
    /// Newest steps with a value of the metric that make the mean; fewer decide nothing.
    pub window: u64,
}

impl Default for Schedule {
    fn default() -> Self {
        Self {
            kind: ScheduleKind::Interleave,
            steps: 120,
            rl_steps: 4,
            sft_steps: 1,
            sft_weight: 0.1,
            cold_start_steps_max: 200,
            cold_start_success: 0.4,
            cold_start_check_every: 10,
            repeat: false,
            adaptive: Adaptive::default(),
            phases: Vec::new(),
        }
    }
}

impl Default for Adaptive {
    fn default() -> Self {
        Self {
            invalid_call_rate: 0.1,
            polluted_rate: 0.05,
            control_token_mass: 0.01,
            share_min: 0.1,
            share_max: 0.5,
            gain: 0.04,
            dead_band: 0.25,
            hold_steps: 8,
        }
    }
}

impl Default for SchedulePhase {
    fn default() -> Self {
        Self {
            name: String::new(),
            kind: PhaseKind::Rl,
            steps: 0,
            learning_rate: 0.0,
            reset_optimizer: false,
            until: PhaseEnd::default(),
        }
    }
}

impl PhaseEnd {
    /// Whether it can be met at all.
    #[must_use]
    pub fn is_given(&self) -> bool {
        self.all_fail_groups > 0 || !self.metric.is_empty()
    }
}

impl Default for PhaseEnd {
    fn default() -> Self {
        Self { all_fail_groups: 0, metric: String::new(), above: None, below: None, window: 5 }
    }
}
