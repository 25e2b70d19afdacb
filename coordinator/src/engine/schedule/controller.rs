//! The share of SFT steps as a controlled variable: it follows structural strain.
//!
//! **Measured.** Each finished RL step gives the strain, the worst of three rates over its limit:
//! `u = max(invalid calls / limit, polluted / limit, control-token mass / limit)`, cut at
//! [`STRAIN_MAX`]. 1 is at the limit. It is smoothed: `v <- v + SMOOTHING (u - v)`; the first one is
//! taken whole.
//!
//! **Law.** An integral controller whose integrator is the share `s` itself. With `e = v - 1`, which
//! lies in [-1, 1]:
//!
//! - `e > dead_band`: `s <- s + gain e`, at once;
//! - `e < -dead_band`, for `hold_steps` RL steps one after the other, this one included:
//!   `s <- s + FALL gain e`;
//! - else `s` is held;
//!
//! and then `share_min <= s <= share_max`.
//!
//! **Why it behaves.** No wind-up: nothing is accumulated but `s`, which is bounded, and the cut
//! keeps a burst from staying in `v`. No chatter: inside the dead band nothing moves, and turning
//! from rising to falling takes a walk through the band and `hold_steps` steps. It rises fast and
//! falls slowly: SFT in a burst alone does not last, the policy relapses once it is over.
//! Stability: what `s` does shows after `L` = staleness + 1 steps and the smoothing, about one more.
//! Where strain falls by `c` per unit of share, the loop is damped while `gain c (L + 1) < 1`, about;
//! the default gain allows `c = 6` at a staleness of 2.
//!
//! **Actuated.** The share becomes whole steps by carrying over what is owed: over any `n` steps the
//! number of SFT steps is the sum of their shares, to within 1.

use std::collections::BTreeMap;

use ballast_runtime::config::{Adaptive, Schedule};
use serde::{Deserialize, Serialize};

use crate::metrics::name;

/// Strain beyond this is no worse: twice the limit.
const STRAIN_MAX: f64 = 2.0;
/// Weight of the newest strain.
const SMOOTHING: f64 = 0.5;
/// Speed of the share's fall relative to its rise.
const FALL: f64 = 0.25;
/// Shares are sums of floats: a step that is owed but for this is owed.
const ROUNDING: f64 = 1e-9;

/// The controller's state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Controller {
    settings: Adaptive,
    share: f64,
    /// Smoothed strain; `None` before the first RL step is finished.
    strain: Option<f64>,
    /// RL steps clear of the limit, one after the other.
    calm_steps: u64,
    /// SFT steps owed; below 1 after each decision.
    owed: f64,
}

impl Controller {
    /// Begins with the share of SFT steps in a cycle of the schedule, as far as the bounds allow.
    pub(super) fn new(schedule: &Schedule) -> Self {
        let (rl, sft) = (schedule.rl_steps as f64, schedule.sft_steps as f64);
        let share = if rl + sft > 0.0 { sft / (rl + sft) } else { 0.0 };
        let settings = schedule.adaptive;
        Self { settings, share: bounded(&settings, share), strain: None, calm_steps: 0, owed: 0.0 }
    }

    /// Takes other limits and constants; the share moves only if its bounds demand it.
    pub(super) fn change(&mut self, settings: Adaptive) {
        self.settings = settings;
        self.share = bounded(&settings, self.share);
    }

    /// The share of SFT steps now.
    pub(super) fn share(&self) -> f64 {
        self.share
    }

    /// Smoothed strain; 1 is at the limit.
    pub(super) fn strain(&self) -> Option<f64> {
        self.strain
    }

    /// Whether the next step is SFT.
    pub(super) fn next_is_sft(&mut self) -> bool {
        self.owed += self.share;
        let due = self.owed >= 1.0 - ROUNDING;
        if due {
            self.owed -= 1.0;
        }
        due
    }

    /// A step is finished. Returns why the share moved, if it did.
    pub(super) fn observe(&mut self, metrics: &BTreeMap<String, f64>) -> Option<String> {
        let (worst, strain) = self.worst(metrics)?;
        let smoothed = match self.strain {
            Some(before) => before + SMOOTHING * (strain.min(STRAIN_MAX) - before),
            None => strain.min(STRAIN_MAX),
        };
        self.strain = Some(smoothed);
        let (error, band) = (smoothed - 1.0, self.settings.dead_band);
        self.calm_steps = if error < -band { self.calm_steps.saturating_add(1) } else { 0 };
        let move_by = if error > band {
            self.settings.gain * error
        } else if self.calm_steps >= self.settings.hold_steps {
            FALL * self.settings.gain * error
        } else {
            0.0
        };
        let before = self.share;
        self.share = bounded(&self.settings, before + move_by);
        (self.share != before).then(|| {
            format!("strain {smoothed:.2} (1 is the limit); {worst} is at {strain:.2} of its limit")
        })
    }

    /// The rate that is worst, over its limit; `None` if none was measured.
    fn worst(&self, metrics: &BTreeMap<String, f64>) -> Option<(&'static str, f64)> {
        let Adaptive { invalid_call_rate, polluted_rate, control_token_mass, .. } = self.settings;
        [
            (name::INVALID_CALL_RATE, invalid_call_rate),
            (name::POLLUTED_RATE, polluted_rate),
            (name::CONTROL_TOKEN_MASS, control_token_mass),
        ]
        .into_iter()
        .filter_map(|(name, limit)| Some((name, metrics.get(name)? / limit)))
        .filter(|(_, strain)| strain.is_finite())
        .max_by(|one, other| one.1.total_cmp(&other.1))
    }
}

/// A share within its bounds. The checked configuration has `share_min <= share_max`; without that
/// the upper one holds.
fn bounded(settings: &Adaptive, share: f64) -> f64 {
    share.max(settings.share_min).min(settings.share_max)
}

#[cfg(test)]
#[path = "controller_test.rs"]
mod tests;
