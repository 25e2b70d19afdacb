//! What ends a phase beside its number of steps: a count of groups, or a metric over a window.
//!
//! Only steps of the phase itself count, so a phase never ends for what an earlier one did.

use std::collections::{BTreeMap, VecDeque};

use ballast_runtime::config::{PhaseEnd, SchedulePhase};
use serde::{Deserialize, Serialize};

use crate::metrics::name;

/// What has been seen of a phase.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Watch {
    /// First optimizer step of the phase; `None` before it is decided.
    first: Option<u64>,
    /// Steps of the phase decided so far.
    steps: u64,
    all_fail_groups: u64,
    /// Newest values of the metric, oldest first; at most a window.
    values: VecDeque<f64>,
}

impl Watch {
    /// A step of the phase is decided.
    pub(super) fn decide(&mut self, step: u64) {
        self.first.get_or_insert(step);
        self.steps += 1;
    }

    /// Steps of the phase decided so far.
    pub(super) fn steps(&self) -> u64 {
        self.steps
    }

    /// A step is finished and has these metrics.
    pub(super) fn observe(&mut self, end: &PhaseEnd, step: u64, metrics: &BTreeMap<String, f64>) {
        if self.first.is_none_or(|first| step < first) {
            return;
        }
        // A float becomes an integer by saturation.
        let all_fail = metrics.get(name::ALL_FAIL).map_or(0, |groups| *groups as u64);
        self.all_fail_groups = self.all_fail_groups.saturating_add(all_fail);
        let value = metrics.get(&end.metric).copied().filter(|value| value.is_finite());
        self.values.extend(value);
        while self.values.len() as u64 > end.window {
            self.values.pop_front();
        }
    }

    /// Why the phase is over; `None` while it is not. A phase has at least one step.
    pub(super) fn over(&self, phase: &SchedulePhase) -> Option<String> {
        let SchedulePhase { name, steps, until, .. } = phase;
        if self.steps == 0 {
            return None;
        }
        if *steps > 0 && self.steps >= *steps {
            return Some(format!("the {steps} steps of `{name}` are decided"));
        }
        let (failed, bound) = (self.all_fail_groups, until.all_fail_groups);
        if bound > 0 && failed >= bound {
            return Some(format!(
                "`{name}` saw {failed} groups without a success ({bound} end it)"
            ));
        }
        let mean = self.mean(until)?;
        let (metric, window) = (&until.metric, until.window);
        let crossed = |word: &str, bound: f64| {
            Some(format!("{metric} is {mean:.4} over {window} steps, {word} {bound}"))
        };
        match (until.above, until.below) {
            (Some(above), _) if mean >= above => crossed("at least", above),
            (_, Some(below)) if mean <= below => crossed("at most", below),
            _ => None,
        }
    }

    /// What will end the phase, and how far that is.
    pub(super) fn describe(&self, phase: &SchedulePhase) -> String {
        let mut ways = Vec::new();
        if phase.steps > 0 {
            ways.push(format!("{} steps ({} decided)", phase.steps, self.steps));
        }
        let until = &phase.until;
        if until.all_fail_groups > 0 {
            let (bound, seen) = (until.all_fail_groups, self.all_fail_groups);
            ways.push(format!("{bound} groups without a success ({seen} so far)"));
        }
        let bounds = [("at least", until.above), ("at most", until.below)];
        for (word, bound) in bounds {
            let (Some(bound), false) = (bound, until.metric.is_empty()) else { continue };
            let now = self
                .mean(until)
                .map_or("not enough values yet".into(), |mean| format!("now {mean:.4}"));
            let (metric, window) = (&until.metric, until.window);
            ways.push(format!("{metric} {word} {bound} over {window} steps ({now})"));
        }
        ways.join(", or ")
    }

    /// Mean over a whole window.
    fn mean(&self, until: &PhaseEnd) -> Option<f64> {
        let whole = until.window > 0 && self.values.len() as u64 >= until.window;
        whole.then(|| self.values.iter().sum::<f64>() / self.values.len() as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics(pairs: &[(&str, f64)]) -> BTreeMap<String, f64> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect()
    }

    fn phase(steps: u64, until: PhaseEnd) -> SchedulePhase {
        SchedulePhase { name: "p".into(), steps, until, ..SchedulePhase::default() }
    }

    #[test]
    fn steps_end_a_phase_and_a_phase_has_one_at_least() {
        let phase = phase(2, PhaseEnd::default());
        let mut watch = Watch::default();
        assert_eq!(watch.over(&phase), None);
        watch.decide(5);
        assert_eq!(watch.over(&phase), None);
        watch.decide(6);
        assert!(watch.over(&phase).is_some_and(|why| why.contains("2 steps of `p`")));
    }

    #[test]
    fn groups_without_a_success_are_counted_from_the_first_step_on() {
        let phase = phase(0, PhaseEnd { all_fail_groups: 3, ..PhaseEnd::default() });
        let mut watch = Watch::default();
        watch.observe(&phase.until, 4, &metrics(&[(name::ALL_FAIL, 9.0)]));
        watch.decide(5);
        watch.observe(&phase.until, 4, &metrics(&[(name::ALL_FAIL, 9.0)]));
        watch.observe(&phase.until, 5, &metrics(&[(name::ALL_FAIL, 2.0)]));
        assert_eq!(watch.over(&phase), None);
        assert_eq!(watch.describe(&phase), "3 groups without a success (2 so far)");
        watch.observe(&phase.until, 6, &metrics(&[("loss/cross_entropy", 1.0)]));
        watch.observe(&phase.until, 7, &metrics(&[(name::ALL_FAIL, 1.0)]));
        assert!(watch.over(&phase).is_some());
    }

    #[test]
    fn a_metric_ends_a_phase_once_the_mean_of_a_whole_window_is_there() {
        let until = |above, below| PhaseEnd {
            metric: "rollout/success".into(),
            above,
            below,
            window: 2,
            ..PhaseEnd::default()
        };
        for (until, values, ends_at) in [
            (until(Some(0.5), None), [0.9, 0.0, 0.9, 0.2, 0.9], Some(3)),
            (until(None, Some(0.3)), [0.5, 0.4, f64::NAN, 0.1, 0.9], Some(3)),
            (until(Some(0.9), Some(0.1)), [0.5; 5], None),
            (until(Some(0.9), Some(0.5)), [0.5; 5], Some(1)),
        ] {
            let phase = phase(0, until);
            let mut watch = Watch::default();
            watch.decide(0);
            let over = (0..5).find(|step| {
                let value = metrics(&[("rollout/success", values[*step as usize])]);
                watch.observe(&phase.until, *step, &value);
                watch.over(&phase).is_some()
            });
            assert_eq!(over, ends_at, "{values:?}");
        }
    }
}
