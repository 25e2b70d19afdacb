//! A run's progress on the terminal: one bar per phase where there is a terminal, else lines.
//!
//! The text is made by pure functions; only [`Progress`] draws.

use std::{
    collections::BTreeMap,
    io::IsTerminal as _,
    time::{Duration, Instant},
};

use ballast_proto::v1::{EvaluationResult, RunState, StatusResponse};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::{admin::status::state_name, interval::wilson95, terminal};

/// Without a terminal, at most one line in this time, unless the phase or the state changes.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// The elapsed time moves this often between two statuses.
const TICK: Duration = Duration::from_millis(250);

const EVALUATION: &str = "evaluation";

/// Shows status after status.
#[derive(Debug)]
pub(crate) struct Progress {
    /// `None`: lines.
    bars: Option<Bars>,
    evaluations_shown: usize,
    line_shown: Option<(Instant, String)>,
}

#[derive(Debug, Default)]
struct Bars {
    all: MultiProgress,
    by_phase: BTreeMap<&'static str, ProgressBar>,
    phase: Option<&'static str>,
}

impl Progress {
    /// Bars on stderr; lines on stdout where `plain` asks for them or stderr is no terminal.
    pub(crate) fn new(plain: bool) -> Self {
        let bars = (!plain && std::io::stderr().is_terminal()).then(Bars::default);
        Self { bars, evaluations_shown: 0, line_shown: None }
    }

    /// Shows a new status.
    pub(crate) fn update(&mut self, status: &StatusResponse) {
        for evaluation in status.evaluations.iter().skip(self.evaluations_shown) {
            self.note(&format!("evaluation   {}", evaluation_line(evaluation)));
        }
        self.evaluations_shown = self.evaluations_shown.max(status.evaluations.len());
        match &mut self.bars {
            Some(bars) => bars.update(status),
            None => self.update_line(status),
        }
    }

    fn update_line(&mut self, status: &StatusResponse) {
        // What makes a line urgent.
        let key = format!("{} {}", phase_title(&status.phase), state_name(status.state()));
        let fresh = self
            .line_shown
            .as_ref()
            .is_some_and(|(shown, shown_key)| shown.elapsed() < LINE_INTERVAL && *shown_key == key);
        if !fresh {
            self.note(&progress_line(status));
            self.line_shown = Some((Instant::now(), key));
        }
    }

    /// Prints a line that stays, above the bars.
    pub(crate) fn note(&self, line: &str) {
        match &self.bars {
            Some(bars) => bars.note(line),
            None => drop(terminal::say(line)),
        }
    }

    /// Leaves the bars as they are and ends the drawing.
    pub(crate) fn finish(&mut self) {
        if let Some(bars) = &mut self.bars {
            bars.by_phase.values().filter(|bar| !bar.is_finished()).for_each(ProgressBar::abandon);
        }
    }
}

impl Bars {
    fn update(&mut self, status: &StatusResponse) {
        let title = phase_title(&status.phase);
        if self.phase != Some(title) {
            self.enter(title);
        }
        let Some(bar) = self.by_phase.get(title) else { return };
        bar.set_length(status.phase_steps);
        bar.set_position(status.phase_step);
        bar.set_message(message(status));
    }

    /// A phase that ends keeps its bar as the record of the run, and takes it up again when it comes
    /// back; an evaluation's bar goes, since its result is a line of its own.
    fn enter(&mut self, title: &'static str) {
        match self.phase.replace(title) {
            Some(EVALUATION) => {
                self.by_phase.remove(EVALUATION).inspect(ProgressBar::finish_and_clear);
            }
            Some(left) => {
                self.by_phase.get(left).inspect(|bar| bar.disable_steady_tick());
            }
            None => {}
        }
        let bar = self.by_phase.entry(title).or_insert_with(|| self.all.add(new_bar(title)));
        bar.enable_steady_tick(TICK);
    }

    fn note(&self, line: &str) {
        // `println` draws nothing when stderr went away in the meantime.
        drop(self.all.println(line));
    }
}

fn new_bar(title: &'static str) -> ProgressBar {
    let style = ProgressStyle::with_template(
        "{prefix:<14} {bar:32.cyan/dim} {pos:>4}/{len:<4} {elapsed:>4}\n  {wide_msg}",
    );
    let bar = ProgressBar::new(0).with_prefix(title);
    match style {
        Ok(style) => bar.with_style(style.progress_chars("=> ")),
        Err(_) => bar,
    }
}

/// Name of a phase for people; RL and SFT steps alternate within one phase.
pub(crate) fn phase_title(phase: &str) -> &'static str {
    match phase {
        "demonstrations" => "demonstrations",
        "cold_start" => "cold start",
        "rl" | "sft" => "training",
        EVALUATION => EVALUATION,
        _ => "waiting",
    }
}

/// What a bar says behind its numbers.
fn message(status: &StatusResponse) -> String {
    match status.state() {
        RunState::Running | RunState::Unspecified => facts(status),
        state if status.problem.is_empty() => format!("{} {}", state_name(state), facts(status)),
        RunState::Waiting => status.problem.clone(),
        state => format!("{}: {}", state_name(state), status.problem),
    }
}

/// One line on the whole run.
fn progress_line(status: &StatusResponse) -> String {
    let (title, done, all) = (phase_title(&status.phase), status.phase_step, status.phase_steps);
    let uptime = status.uptime_s;
    format!(
        "{uptime:>6.0} s  {title:<14} {done:>4}/{all:<4} v{:<4} {}",
        status.step,
        message(status)
    )
    .trim_end()
    .to_owned()
}

/// The newest metrics in a fixed order; what is not known yet is left out.
pub(crate) fn facts(status: &StatusResponse) -> String {
    type Shape = fn(f64) -> String;
    let percent: Shape = |value| format!("{:.1}%", 100.0 * value);
    let rate: Shape = |value| format!("{value:.0} tok/s");
    let shown: [(&str, &str, Shape); 6] = [
        ("rollout/success", "success", percent),
        ("rollout/calls_mean", "calls", |value| format!("{value:.2}")),
        ("rollout/invalid_call_rate", "invalid", percent),
        ("rollout/control_token_mass", "control", |value| format!("{value:.1e}")),
        ("rollout/tokens_per_s", "rollout", rate),
        ("train/tokens_per_s", "train", rate),
    ];
    let known = shown.iter().filter_map(|(metric, name, shape)| {
        status.metrics.get(*metric).map(|value| format!("{name} {}", shape(*value)))
    });
    known.collect::<Vec<_>>().join("  ")
}

/// An evaluation with its 95% interval.
pub(crate) fn evaluation_line(result: &EvaluationResult) -> String {
    let (low, high) = wilson95(result.successes, result.episodes);
    let rate = f64::from(result.successes) / f64::from(result.episodes.max(1));
    format!(
        "{:<17} v{:<4} success {:5.1}% [{:.1}, {:.1}] ({}/{})  calls {:.2}  invalid {:.1}%",
        result.name.replace('_', " "),
        result.policy_version,
        100.0 * rate,
        100.0 * low,
        100.0 * high,
        result.successes,
        result.episodes,
        result.calls_mean,
        100.0 * result.invalid_call_rate,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_keep_their_order_and_leave_out_the_unknown() {
        let metrics = [
            ("train/tokens_per_s", 5120.4),
            ("rollout/success", 0.4125),
            ("rollout/control_token_mass", 0.000_12),
        ];
        let status = StatusResponse {
            metrics: metrics.map(|(name, value)| (name.to_owned(), value)).into(),
            ..Default::default()
        };
        assert_eq!(facts(&status), "success 41.2%  control 1.2e-4  train 5120 tok/s");
        assert_eq!(facts(&StatusResponse::default()), "");
    }

    #[test]
    fn a_line_says_why_a_run_waits() {
        let status = StatusResponse {
            state: RunState::Blocked.into(),
            problem: "journal: no space left".into(),
            phase: "sft".into(),
            step: 31,
            phase_step: 1,
            phase_steps: 120,
            uptime_s: 61.4,
            ..Default::default()
        };
        let line = "    61 s  training          1/120  v31   blocked: journal: no space left";
        assert_eq!(progress_line(&status), line);
    }

    #[test]
    fn an_evaluation_shows_its_interval() {
        let result = EvaluationResult {
            name: "after_cold_start".into(),
            policy_version: 30,
            episodes: 10,
            successes: 8,
            calls_mean: 2.5,
            invalid_call_rate: 0.021,
        };
        assert_eq!(
            evaluation_line(&result),
            "after cold start  v30   success  80.0% [49.0, 94.3] (8/10)  calls 2.50  invalid 2.1%"
        );
        // An evaluation without episodes must not divide by zero.
        assert!(evaluation_line(&EvaluationResult::default()).contains("success   0.0%"));
    }
}
