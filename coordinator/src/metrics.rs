//! `metrics.jsonl`: one line per finished optimizer step and per evaluation, and the names in it.
//!
//! Lines of a step carry the learner's own metrics beside these; a name that has no value in a step
//! (rollout numbers in an SFT step, for example) is absent from its line.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Write as _},
    path::Path,
};

use serde_json::{Map, Value};

/// A metric the coordinator measures.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// Key in the line.
    pub name: &'static str,
    /// Unit; "1" for shares and plain numbers.
    pub unit: &'static str,
    /// What it is and when it moves.
    pub meaning: &'static str,
}

/// Keys, so that no name is spelled twice.
pub mod name {
    macro_rules! names {
        ($($key:ident = $name:literal, $unit:literal, $meaning:literal;)*) => {
            $(#[doc = $meaning] pub const $key: &str = $name;)*
            /// Every metric the coordinator measures.
            pub const ALL: &[super::Metric] =
                &[$(super::Metric { name: $name, unit: $unit, meaning: $meaning }),*];
        };
    }

    names! {
        SUCCESS = "rollout/success", "1", "Share of the batch's trajectories that are fully right.";
        REWARD_MEAN = "rollout/reward_mean", "1", "Mean reward of the batch.";
        CALLS_MEAN = "rollout/calls_mean", "calls", "Tool calls per trajectory, mean.";
        INVALID_CALL_RATE = "rollout/invalid_call_rate", "1",
            "Share of assistant messages with a malformed, unknown or ill-typed call.";
        POLLUTED_RATE = "rollout/polluted_rate", "1",
            "Share of assistant messages that are polluted or collapsed.";
        CONTROL_TOKEN_MASS = "rollout/control_token_mass", "1",
            "Probability of control tokens where the grammar forbids them, mean over trajectories; \
         absent where the engine cannot tell.";
        TOKENS_MEAN = "rollout/tokens_mean", "tokens", "Length of a trajectory, mean.";
        STALENESS_MAX = "rollout/staleness_max", "versions",
            "Versions the learner was ahead of the oldest token of the batch (S1).";
        ROLLOUT_TOKENS_PER_S = "rollout/tokens_per_s", "tokens/s",
            "Sampled tokens of accepted trajectories over the time with episodes in flight, since the last step.";
        ZERO_VARIANCE = "groups/zero_variance", "groups",
            "Groups of the batch whose siblings all got the same reward.";
        ALL_FAIL = "groups/all_fail", "groups",
            "Groups of the batch in which no sibling was fully right.";
        REPLACED = "groups/replaced", "groups",
            "Groups left out of the batch because all siblings got the same reward; later ones took their place.";
        DROPPED_SIBLINGS = "groups/dropped_siblings", "episodes",
            "Siblings given up after too many attempts, in the run so far.";
        UNUSED = "episodes/unused", "episodes",
            "Durable trajectories that could not be used and were run anew, in the run so far.";
        IDLE_SHARE = "actor/idle_share", "1", "Share of time without an episode, mean over actors.";
        PREFILL_SAVED_SHARE = "actor/prefill_saved_share", "1",
            "Share of prompt and tool-result tokens that needed no computation, because an episode that begins alike had been computed; since the actors started.";
        KV_EVICTIONS = "actor/kv_evictions", "episodes",
            "Times an episode lost its place in a KV cache to another one, since the actors started.";
        SFT_SHARE = "schedule/sft_share", "1",
            "Share of SFT steps that the schedule aims at; absent unless it is adaptive.";
        STRAIN = "schedule/strain", "1",
            "Smoothed structural strain, 1 at its limit; absent unless the schedule is adaptive.";
        TRAIN_TOKENS_PER_S = "train/tokens_per_s", "tokens/s",
            "Tokens of the batch over the time of the step, publishing included.";
        TRAIN_TOKENS = "train/tokens", "tokens", "Tokens of the batch, prompts included.";
        TRAIN_SECONDS = "train/seconds", "s", "Time of the step, publishing included.";
    }
}

/// One line.
#[derive(Clone, Debug, PartialEq)]
pub struct MetricsLine {
    /// Seconds since the coordinator started.
    pub t: f64,
    /// Last finished optimizer step.
    pub step: u64,
    /// "rl", "sft" or "evaluation".
    pub kind: &'static str,
    /// Phase of the schedule.
    pub phase: &'static str,
    /// Name of the evaluation; absent for a step.
    pub name: Option<String>,
    /// Values by name.
    pub values: BTreeMap<String, f64>,
}

impl MetricsLine {
    fn to_json(&self) -> Value {
        let mut line = Map::new();
        line.insert("t".into(), self.t.into());
        line.insert("step".into(), self.step.into());
        line.insert("kind".into(), self.kind.into());
        line.insert("phase".into(), self.phase.into());
        if let Some(name) = &self.name {
            line.insert("name".into(), name.as_str().into());
        }
        // A value that is not finite becomes null: JSON has no word for it.
        line.extend(self.values.iter().map(|(name, value)| (name.clone(), Value::from(*value))));
        Value::Object(line)
    }
}

/// Appends lines; each is complete in the file when `write` returns.
#[derive(Debug)]
pub struct MetricsWriter {
    file: File,
}

impl MetricsWriter {
    /// Opens the file for appending.
    ///
    /// # Errors
    /// The file cannot be created.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { file: File::options().create(true).append(true).open(path)? })
    }

    /// Appends those of `lines` that are newer than the last one in the file; a part of a line at its
    /// end, left by a crash, is cut off.
    ///
    /// # Errors
    /// The file cannot be read or written.
    pub fn complete(&mut self, path: &Path, lines: &[MetricsLine]) -> io::Result<()> {
        let text = std::fs::read(path)?;
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        self.file.set_len(whole as u64)?;
        let last = text[..whole].split(|byte| *byte == b'\n').rev().find(|line| !line.is_empty());
        let last = last.and_then(|line| serde_json::from_slice::<Value>(line).ok());
        let newest = last.and_then(|line| line["t"].as_f64()).unwrap_or(f64::NEG_INFINITY);
        lines.iter().filter(|line| line.t > newest).try_for_each(|line| self.write(line))
    }

    /// Appends a line.
    ///
    /// # Errors
    /// The file cannot be written, for example because the disk is full.
    pub fn write(&mut self, line: &MetricsLine) -> io::Result<()> {
        let length = self.file.metadata()?.len();
        let written = self.file.write_all(format!("{}\n", line.to_json()).as_bytes());
        if written.is_err() {
            // Part of a line would spoil the next one. Best effort: the first error is reported.
            drop(self.file.set_len(length));
        }
        written
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names are read by plots, summaries and people's scripts: a change must be deliberate.
    #[test]
    fn the_names_are_stable() {
        let names: Vec<String> =
            name::ALL.iter().map(|metric| format!("{} [{}]", metric.name, metric.unit)).collect();
        assert_eq!(
            names,
            [
                "rollout/success [1]",
                "rollout/reward_mean [1]",
                "rollout/calls_mean [calls]",
                "rollout/invalid_call_rate [1]",
                "rollout/polluted_rate [1]",
                "rollout/control_token_mass [1]",
                "rollout/tokens_mean [tokens]",
                "rollout/staleness_max [versions]",
                "rollout/tokens_per_s [tokens/s]",
                "groups/zero_variance [groups]",
                "groups/all_fail [groups]",
                "groups/replaced [groups]",
                "groups/dropped_siblings [episodes]",
                "episodes/unused [episodes]",
                "actor/idle_share [1]",
                "actor/prefill_saved_share [1]",
                "actor/kv_evictions [episodes]",
                "schedule/sft_share [1]",
                "schedule/strain [1]",
                "train/tokens_per_s [tokens/s]",
                "train/tokens [tokens]",
                "train/seconds [s]",
            ]
        );
    }

    #[test]
    fn every_name_is_documented() {
        let document = include_str!("../../docs/metrics.md");
        for Metric { name, unit, meaning } in name::ALL {
            let row = format!("| `{name}` | {unit} | {meaning} |");
            assert!(document.contains(&row), "docs/metrics.md lacks this row:\n{row}");
        }
    }

    #[test]
    fn every_metric_that_can_end_a_phase_is_documented() {
        let document = include_str!("../../docs/metrics.md");
        for name in ballast_runtime::config_file::PHASE_END_METRICS {
            assert!(document.contains(&format!("| `{name}` |")), "docs/metrics.md lacks {name}");
        }
    }

    #[test]
    fn a_line_is_flat_json() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("metrics.jsonl");
        let line = MetricsLine {
            t: 1.5,
            step: 3,
            kind: "rl",
            phase: "rl",
            name: None,
            values: [(name::SUCCESS.to_owned(), 0.5), ("loss/x".to_owned(), f64::NAN)].into(),
        };
        let mut writer = MetricsWriter::open(&path).expect("open");
        writer.write(&line).expect("write");
        drop(writer);
        MetricsWriter::open(&path).expect("open again").write(&line).expect("append");
        let one =
            r#"{"t":1.5,"step":3,"kind":"rl","phase":"rl","loss/x":null,"rollout/success":0.5}"#;
        let text = std::fs::read_to_string(&path).expect("readable");
        assert_eq!(text, format!("{one}\n{one}\n"));
    }
}
