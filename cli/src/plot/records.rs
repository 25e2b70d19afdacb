//! What a run directory says about its run, as series over optimizer steps.

use std::{fs, path::Path};

use anyhow::Context as _;
use serde_json::Value;

use crate::interval::wilson95;

/// One JSON object per finished step or evaluation.
pub(super) const METRICS_FILE: &str = "metrics.jsonl";
const RESULT_FILE: &str = "result.json";

/// The lines of a run, in order.
#[derive(Debug, Default)]
pub(super) struct Records {
    lines: Vec<Value>,
    /// Optimizer steps of the cold start, once known.
    pub(super) cold_start_step: Option<f64>,
}

/// One evaluation of the policy on held-out tasks.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Evaluation {
    pub(super) name: String,
    pub(super) step: f64,
    pub(super) success: f64,
    /// 95% interval of `success`.
    pub(super) interval: (f64, f64),
}

impl Records {
    /// Reads a run directory; `result.json` may be absent, since it is written at the end.
    pub(super) fn read(run: &Path) -> anyhow::Result<Self> {
        let path = run.join(METRICS_FILE);
        let metrics = fs::read_to_string(&path)
            .with_context(|| format!("{} is no run directory: no {METRICS_FILE}", run.display()))?;
        let result = fs::read_to_string(run.join(RESULT_FILE)).unwrap_or_default();
        Ok(Self::parse(&metrics, &result))
    }

    /// A line that is no JSON object is left out: the last one of a running or crashed run may be
    /// cut short.
    fn parse(metrics: &str, result: &str) -> Self {
        let lines = metrics.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let result: Value = serde_json::from_str(result).unwrap_or_default();
        let mut records = Self { lines, cold_start_step: result["cold_start_step"].as_f64() };
        // Before the end of the run, the evaluation after the cold start says where that ended.
        let cold_start = |one: &Evaluation| one.name == "after_cold_start";
        let evaluated = records.evaluations().into_iter().find(cold_start).map(|one| one.step);
        records.cold_start_step = records.cold_start_step.or(evaluated);
        records
    }

    /// Whether no step has finished.
    pub(super) fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// (step, value) of a metric, wherever it has one.
    pub(super) fn series(&self, metric: &str) -> Vec<(f64, f64)> {
        let steps = self.lines.iter().filter(|line| line["kind"] != "evaluation");
        steps.filter_map(|line| Some((line["step"].as_f64()?, line[metric].as_f64()?))).collect()
    }

    /// All evaluations, oldest first.
    pub(super) fn evaluations(&self) -> Vec<Evaluation> {
        let lines = self.lines.iter().filter(|line| line["kind"] == "evaluation");
        lines.filter_map(parse_evaluation).collect()
    }

    /// The last step of the run so far.
    pub(super) fn last_step(&self) -> f64 {
        self.lines.iter().filter_map(|line| line["step"].as_f64()).fold(1.0, f64::max)
    }
}

fn parse_evaluation(line: &Value) -> Option<Evaluation> {
    let count = |value: &Value| value.as_f64().filter(|count| (0.0..=1e9).contains(count));
    let (episodes, successes) = (count(&line["episodes"])?, count(&line["successes"])?);
    if episodes < 1.0 || successes > episodes {
        return None;
    }
    Some(Evaluation {
        name: line["name"].as_str()?.to_owned(),
        step: line["step"].as_f64()?,
        success: successes / episodes,
        interval: wilson95(successes as u32, episodes as u32),
    })
}

/// Mean over the `window` points around each point, fewer at the ends.
pub(super) fn moving_mean(points: &[(f64, f64)], window: usize) -> Vec<(f64, f64)> {
    let half = window / 2;
    let mean = |index: usize| {
        let around = &points[index.saturating_sub(half)..(index + half + 1).min(points.len())];
        around.iter().map(|(_, y)| y).sum::<f64>() / around.len() as f64
    };
    points.iter().enumerate().map(|(index, (x, _))| (*x, mean(index))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const METRICS: &str = r#"{"t":1,"step":1,"kind":"sft","loss/cross_entropy":2.5}
{"t":2,"step":2,"kind":"sft","loss/cross_entropy":null}
{"t":3,"step":2,"kind":"evaluation","name":"after_cold_start","episodes":10,"successes":8}
{"t":4,"step":3,"kind":"rl","rollout/success":0.5}
{"t":5,"step":3,"kind":"evaluation","name":"empty","episodes":0,"successes":0}
{"t":6,"step":4,"kind":"rl","rollo"#;

    #[test]
    fn series_skip_what_has_no_value_and_a_torn_line() {
        let records = Records::parse(METRICS, "");
        assert_eq!(records.series("loss/cross_entropy"), [(1.0, 2.5)]);
        assert_eq!(records.series("rollout/success"), [(3.0, 0.5)]);
        assert_eq!(records.last_step(), 3.0);
    }

    #[test]
    fn evaluations_carry_their_interval_and_mark_the_cold_start() {
        let records = Records::parse(METRICS, "");
        let [evaluation] = records.evaluations().try_into().expect("one evaluation");
        assert_eq!((evaluation.step, evaluation.success), (2.0, 0.8));
        assert!(evaluation.interval.0 < 0.5 && evaluation.interval.1 > 0.9);
        assert_eq!(records.cold_start_step, Some(2.0));
        assert_eq!(Records::parse(METRICS, r#"{"cold_start_step":1}"#).cold_start_step, Some(1.0));
    }

    #[test]
    fn the_moving_mean_shrinks_its_window_at_the_ends() {
        let points = [(1.0, 0.0), (2.0, 3.0), (3.0, 6.0)];
        assert_eq!(moving_mean(&points, 3), [(1.0, 1.5), (2.0, 3.0), (3.0, 4.5)]);
        assert!(moving_mean(&[], 3).is_empty());
    }
}
