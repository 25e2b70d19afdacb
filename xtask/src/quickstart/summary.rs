//! The numbers of a quickstart: what the two runs left behind, turned into the table and
//! `summary.json`. Reads no file and starts no process.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::interval::wilson;
use crate::table;

/// A run's `result.json`, as the coordinator writes it at the end. Only what is used here.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct RunResult {
    seed: u64,
    /// Optimizer steps of the whole run.
    steps: u64,
    /// Step at which the cold start ended; none if there was none.
    cold_start_step: Option<u64>,
    checkpoints: Vec<Checkpoint>,
    evaluations: Vec<Evaluation>,
    train_tokens: u64,
    train_s: f64,
    rollout_tokens: u64,
    rollout_s: f64,
}

/// A saved policy.
#[derive(Clone, Debug, Deserialize)]
struct Checkpoint {
    step: u64,
    path: PathBuf,
}

/// One pass over the held-out tasks.
#[derive(Clone, Debug, Deserialize)]
struct Evaluation {
    name: String,
    episodes: u64,
    successes: u64,
    calls_mean: f64,
    invalid_call_rate: f64,
}

/// A run's `cluster.json`, as `ballast up` writes it. Only what is used here.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Cluster {
    /// Sum of the processes' peaks, bytes.
    peak_rss_bytes: u64,
}

/// Both arms' results.
#[derive(Clone, Debug)]
pub(super) struct Arms {
    /// Cold start, then RL interleaved with SFT.
    pub(super) main: (RunResult, Cluster),
    /// SFT alone from the same cold start.
    pub(super) control: (RunResult, Cluster),
}

/// What `summary.json` holds. Rates are of held-out tasks; an interval is 95%, [low, high].
#[derive(Debug, Serialize)]
pub(super) struct Summary {
    success_before: f64,
    success_before_interval: [f64; 2],
    success_sft_only: f64,
    success_sft_only_interval: [f64; 2],
    success_after: f64,
    success_after_interval: [f64; 2],
    /// Both arms, with their evaluations and without the build, seconds.
    wall_s: f64,
    train_tokens_per_s: f64,
    rollout_tokens_per_s: f64,
    /// The larger of the two clusters' peaks.
    peak_rss_bytes: u64,
    seed: u64,
    /// Optimizer steps after the cold start, in each arm.
    steps: u64,
    /// The trained policy, a Hugging Face directory.
    checkpoint: PathBuf,
    machine: String,
}

// === impl RunResult ===

impl RunResult {
    /// Optimizer steps after the cold start.
    pub(super) fn steps_after_cold_start(&self) -> u64 {
        self.steps.saturating_sub(self.cold_start_step.unwrap_or(0))
    }

    /// The policy at the end of the cold start.
    pub(super) fn cold_start_checkpoint(&self) -> Result<&Path> {
        let step = self.cold_start_step.context("the run reports no end of its cold start")?;
        let found = self.checkpoints.iter().find(|checkpoint| checkpoint.step == step);
        let found = found.with_context(|| format!("the run has no checkpoint of step {step}"))?;
        Ok(&found.path)
    }

    fn last_checkpoint(&self) -> Result<&Path> {
        let last = self.checkpoints.iter().max_by_key(|checkpoint| checkpoint.step);
        Ok(&last.context("the run has no checkpoint")?.path)
    }

    fn evaluation(&self, name: &str) -> Result<&Evaluation> {
        let found = self.evaluations.iter().find(|evaluation| evaluation.name == name);
        let found = found.with_context(|| format!("the run has no evaluation named {name}"))?;
        ensure!(found.episodes > 0, "the evaluation named {name} has no episodes");
        Ok(found)
    }
}

// === impl Evaluation ===

impl Evaluation {
    fn success(&self) -> f64 {
        self.successes as f64 / self.episodes as f64
    }

    fn interval(&self) -> [f64; 2] {
        wilson(self.successes, self.episodes)
    }
}

// === impl Arms ===

impl Arms {
    /// The three policies that are compared, with the names people read.
    fn evaluations(&self) -> Result<[(&'static str, &Evaluation); 3]> {
        Ok([
            ("after the cold start", self.main.0.evaluation("after_cold_start")?),
            ("SFT only, as many steps", self.control.0.evaluation("final")?),
            ("RL with SFT (Ballast)", self.main.0.evaluation("final")?),
        ])
    }
}

// === impl Summary ===

impl Summary {
    /// Sums up both arms; `wall_s` is what they took together.
    pub(super) fn new(arms: &Arms, wall_s: f64, machine: String) -> Result<Self> {
        let [(_, before), (_, sft_only), (_, after)] = arms.evaluations()?;
        let (main, cluster) = &arms.main;
        Ok(Self {
            success_before: before.success(),
            success_before_interval: before.interval(),
            success_sft_only: sft_only.success(),
            success_sft_only_interval: sft_only.interval(),
            success_after: after.success(),
            success_after_interval: after.interval(),
            wall_s,
            train_tokens_per_s: rate(main.train_tokens, main.train_s),
            rollout_tokens_per_s: rate(main.rollout_tokens, main.rollout_s),
            peak_rss_bytes: cluster.peak_rss_bytes.max(arms.control.1.peak_rss_bytes),
            seed: main.seed,
            steps: main.steps_after_cold_start(),
            checkpoint: main.last_checkpoint()?.to_owned(),
            machine,
        })
    }

    /// What is printed below the table.
    pub(super) fn closing_lines(&self, directory: &Path) -> String {
        let directory = directory.display();
        format!(
            "{:.0} s in all; rollout {:.0} tokens/s, training {:.0} tokens/s; peak memory {:.2} GiB\n\
             checkpoint  {}\n\
             plots       {directory}/plots\n\
             metrics     {directory}/metrics.jsonl\n\
             summary     {directory}/summary.json",
            self.wall_s,
            self.rollout_tokens_per_s,
            self.train_tokens_per_s,
            self.peak_rss_bytes as f64 / (1_u64 << 30) as f64,
            self.checkpoint.display(),
        )
    }
}

/// The table of the three policies.
pub(super) fn table(arms: &Arms) -> Result<String> {
    let rows = arms.evaluations()?.map(|(name, evaluation)| {
        let [low, high] = evaluation.interval();
        [
            name.to_owned(),
            evaluation.episodes.to_string(),
            format!("{:.3}", evaluation.success()),
            format!("{low:.3} - {high:.3}"),
            format!("{:.2}", evaluation.calls_mean),
            format!("{:.3}", evaluation.invalid_call_rate),
        ]
    });
    let header = [
        "policy",
        "held-out tasks",
        "success",
        "95% interval",
        "calls/trajectory",
        "invalid calls",
    ];
    Ok(table::render(header, &rows))
}

fn rate(tokens: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { tokens as f64 / seconds } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn evaluation(name: &str, successes: u64) -> serde_json::Value {
        json!({
            "name": name, "policy_version": 1, "episodes": 400, "successes": successes,
            "calls_mean": 3.5, "invalid_call_rate": 0.01
        })
    }

    fn arms() -> Arms {
        let result = |evaluations: serde_json::Value| {
            serde_json::from_value(json!({
                "run": "quickstart-0", "seed": 7, "steps": 170, "cold_start_step": 50,
                "checkpoints": [
                    {"step": 50, "path": "runs/quickstart-0/checkpoints/step-50"},
                    {"step": 170, "path": "runs/quickstart-0/checkpoints/step-170"},
                ],
                "evaluations": evaluations,
                "episodes": {"dispatched": 9, "finished": 9, "cancelled": 0},
                "wall_s": 200.0, "train_tokens": 3000, "train_s": 2.0,
                "rollout_tokens": 9000, "rollout_s": 3.0,
            }))
            .expect("as the coordinator writes it")
        };
        let cluster = |bytes: u64| Cluster { peak_rss_bytes: bytes };
        let main = json!([evaluation("after_cold_start", 180), evaluation("final", 340)]);
        let control = json!([evaluation("after_cold_start", 180), evaluation("final", 240)]);
        Arms { main: (result(main), cluster(5)), control: (result(control), cluster(6)) }
    }

    #[test]
    fn the_summary_takes_each_number_from_its_arm() {
        let summary = Summary::new(&arms(), 321.0, "a laptop".into()).expect("it is complete");
        let summary = serde_json::to_value(summary).expect("it is plain data");
        assert_eq!(summary["success_before"], 0.45);
        assert_eq!(summary["success_sft_only"], 0.6);
        assert_eq!(summary["success_after"], 0.85);
        assert_eq!(summary["steps"], 120);
        assert_eq!(summary["train_tokens_per_s"], 1500.0);
        assert_eq!(summary["rollout_tokens_per_s"], 3000.0);
        assert_eq!(summary["peak_rss_bytes"], 6);
        assert_eq!(summary["checkpoint"], "runs/quickstart-0/checkpoints/step-170");
        let interval = &summary["success_after_interval"];
        assert!(interval[0].as_f64() < Some(0.85) && interval[1].as_f64() > Some(0.85));
    }

    #[test]
    fn the_control_arm_starts_where_the_cold_start_ended() {
        let (main, _) = arms().main;
        assert_eq!(main.steps_after_cold_start(), 120);
        let path = main.cold_start_checkpoint().expect("there is one");
        assert_eq!(path, Path::new("runs/quickstart-0/checkpoints/step-50"));
    }

    #[test]
    fn a_missing_evaluation_is_named() {
        let mut arms = arms();
        arms.control.0.evaluations.clear();
        let error = Summary::new(&arms, 1.0, String::new()).expect_err("one is missing");
        assert!(error.to_string().contains("final"), "{error}");
    }

    #[test]
    fn the_table_has_a_row_for_each_policy() {
        let table = table(&arms()).expect("it is complete");
        assert_eq!(table.lines().count(), 5, "{table}");
        assert!(table.lines().last().is_some_and(|line| line.contains("0.850")), "{table}");
    }
}
