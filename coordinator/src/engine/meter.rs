//! Throughput: tokens over the time in which somebody worked on them.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Tokens and the time spent on them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Work {
    pub(super) tokens: u64,
    pub(super) busy: Duration,
}

impl Work {
    /// Tokens per second since `earlier`; `None` when no time was spent.
    pub(super) fn rate_since(&self, earlier: &Self) -> Option<f64> {
        let seconds = (self.busy.saturating_sub(earlier.busy)).as_secs_f64();
        (seconds > 0.0).then(|| (self.tokens - earlier.tokens) as f64 / seconds)
    }
}

/// Both sides of the loop.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Meter {
    now: Duration,
    /// Tokens sampled in durable trajectories; time in which an episode was in flight.
    pub(super) rollout: Work,
    rollout_at_line: Work,
    /// Tokens of finished optimizer steps (each step once); time the learner had for them.
    pub(super) train: Work,
    learner_since: Option<Duration>,
}

impl Meter {
    /// Moves the clock; the time since the last call was spent on rollout or not.
    pub(super) fn advance(&mut self, now: Duration, rolling_out: bool) {
        if rolling_out {
            self.rollout.busy += now.saturating_sub(self.now);
        }
        self.now = self.now.max(now);
    }

    /// The learner has something to do.
    pub(super) fn learner_busy(&mut self) {
        self.learner_since.get_or_insert(self.now);
    }

    /// The learner has answered. Returns the time it took; the next batch starts now, if there is
    /// one.
    pub(super) fn learner_answered(&mut self, outstanding: bool) -> Duration {
        let since = self.learner_since.take().unwrap_or(self.now);
        self.learner_since = outstanding.then_some(self.now);
        self.now.saturating_sub(since)
    }

    /// The learner is gone; what it was doing counts for nothing.
    pub(super) fn learner_gone(&mut self) {
        self.learner_since = None;
    }

    /// Tokens per second of rollout since the last call.
    pub(super) fn rollout_rate(&mut self) -> Option<f64> {
        let earlier = std::mem::replace(&mut self.rollout_at_line, self.rollout);
        self.rollout.rate_since(&earlier)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn rollout_counts_only_the_time_with_episodes_in_flight() {
        let mut meter = Meter::default();
        meter.advance(s(10), false);
        meter.advance(s(12), true);
        meter.rollout.tokens += 100;
        assert_eq!(meter.rollout_rate(), Some(50.0));
        assert_eq!(meter.rollout_rate(), None);
    }

    #[test]
    fn back_to_back_batches_share_no_time() {
        let mut meter = Meter::default();
        meter.advance(s(1), false);
        meter.learner_busy();
        meter.learner_busy();
        meter.advance(s(4), false);
        assert_eq!(meter.learner_answered(true), s(3));
        meter.advance(s(5), false);
        assert_eq!(meter.learner_answered(false), s(1));
        meter.advance(s(9), false);
        meter.learner_busy();
        meter.advance(s(10), false);
        assert_eq!(meter.learner_answered(false), s(1));
    }
}
