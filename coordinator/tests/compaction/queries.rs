//! The queries of `docs/dataset.md`, and its tables, against a run.
//!
//! Needs a Python with `duckdb`, `pandas`, `polars` and `pyarrow`: the one that `cargo xtask test`
//! makes, or the one that `BALLAST_PYTHON` names. Where there is none the test says so and passes.

use std::{collections::BTreeMap, process::Command};

use ballast_coordinator::compaction::Table;
use ballast_proto::v1::{CallStatus, Mode, StepKind, Trajectory, effect::Effect as Kind};
use serde_json::{Value as Json, json};

use crate::{
    round_trip::compact,
    sample::{self, Sampled},
};

const PYTHON: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../.tools/dataset/bin/python");
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/compaction/queries.py");
const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/dataset.md");

#[test]
fn the_document_answers_its_questions() {
    let python = std::env::var("BALLAST_PYTHON").unwrap_or_else(|_| PYTHON.to_owned());
    let packages = "import duckdb, pandas, polars, pyarrow";
    let has_packages = Command::new(&python).args(["-c", packages]).output();
    if !has_packages.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: {python} lacks a package of duckdb, pandas, polars, pyarrow");
        return;
    }
    let run = tempfile::tempdir().unwrap();
    let records = sample::run(9, 30);
    let reader = sample::write(run.path(), &records, 10);
    // Several files of each table.
    for part in 1..=4 {
        compact(&reader, records.len() * part / 4, run.path());
    }
    let output =
        Command::new(python).args([SCRIPT, DOCUMENT]).current_dir(run.path()).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    let answers: Json = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answers["tables"].as_object().unwrap().len(), Table::ALL.len());
    let answer = |question: &str| {
        let all = answers["questions"].as_object().unwrap();
        let found = all.iter().find(|(title, _)| title.contains(question));
        found.unwrap_or_else(|| panic!("no question has `{question}`: {all:?}")).1.clone()
    };
    assert_eq!(answer("number of calls"), success_by_calls(&records));
    assert_eq!(answer("made step 7"), made_step(&records, 7));
    assert_eq!(answer("malformed calls"), malformed(&records));
    assert_eq!(answer("dropped longer")[0][0], "trained");
    assert_eq!(answer("tokens it sampled"), tokens_by_version(&records));
    // The policy of the sample collapses after two thirds of the 30 steps.
    let decisions = answer("worst fall");
    let decisions = decisions.as_array().unwrap();
    assert!(decisions.iter().any(|row| row[1] == "decision" && row[0] == 22), "{decisions:?}");
    let lengths = mean_lengths(&records);
    assert_eq!(answers["programs"], json!({"pandas": lengths, "polars": lengths}));
}

fn trajectories(records: &[Sampled]) -> impl Iterator<Item = &Trajectory> {
    let finished = |one: &&Sampled| {
        one.entry.effects.iter().any(|effect| matches!(effect.effect, Some(Kind::Finished(_))))
    };
    records.iter().filter(finished).filter_map(|one| one.trajectory.as_ref())
}

fn explored(records: &[Sampled]) -> impl Iterator<Item = &Trajectory> {
    trajectories(records).filter(|one| one.mode() == Mode::Explore)
}

fn oldest(one: &Trajectory) -> u64 {
    one.sampled_versions[0].policy_version
}

fn newest(one: &Trajectory) -> u64 {
    one.sampled_versions.last().unwrap().policy_version
}

fn thousandths(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

fn success_by_calls(records: &[Sampled]) -> Json {
    let mut cells: BTreeMap<(u32, u64), Vec<bool>> = BTreeMap::new();
    for one in explored(records).filter(|one| one.success.is_some()) {
        let calls = one.task.as_ref().unwrap().calls;
        cells.entry((calls, newest(one) / 5 * 5)).or_default().extend(one.success);
    }
    let row = |((calls, from), all): (&(u32, u64), &Vec<bool>)| {
        let successes = all.iter().filter(|success| **success).count();
        json!([calls, from, all.len(), thousandths(successes as f64 / all.len() as f64)])
    };
    cells.iter().map(row).collect()
}

fn made_step(records: &[Sampled], step: u64) -> Json {
    let effects = records.iter().flat_map(|one| &one.entry.effects);
    let mut batches = effects.filter_map(|effect| match &effect.effect {
        Some(Kind::Batch(batch)) if batch.step == step => Some(batch),
        _ => None,
    });
    let batch = batches.next().unwrap();
    assert_eq!(batch.kind(), StepKind::Rl);
    let mut rows = Vec::new();
    for group in &batch.groups {
        let find = |id: &u64| trajectories(records).find(|one| one.episode_id == *id).unwrap();
        let siblings: Vec<&Trajectory> = group.episodes.iter().map(find).collect();
        let rewards: Vec<f64> = siblings.iter().map(|one| one.reward.unwrap().into()).collect();
        let mean = rewards.iter().sum::<f64>() / rewards.len() as f64;
        for (one, reward) in siblings.into_iter().zip(rewards) {
            let sampled: u64 = one.loss_mask.iter().map(|mask| u64::from(*mask)).sum();
            rows.push(json!([
                group.group_id,
                one.episode_id,
                format!("actor-{}", one.episode_id % 2),
                one.task.as_ref().unwrap().calls,
                sampled,
                reward,
                reward - mean,
                step - 1 - oldest(one),
            ]));
        }
    }
    rows.into()
}

fn malformed(records: &[Sampled]) -> Json {
    let mut texts: BTreeMap<&str, (u64, Vec<u64>, u64)> = BTreeMap::new();
    for one in trajectories(records) {
        for call in one.spans.iter().flat_map(|span| &span.calls) {
            if call.status() == CallStatus::Malformed {
                let (times, episodes, first) =
                    texts.entry(&call.raw).or_insert((0, Vec::new(), u64::MAX));
                *times += 1;
                episodes.push(one.episode_id);
                episodes.dedup();
                *first = newest(one).min(*first);
            }
        }
    }
    let mut rows: Vec<_> = texts.into_iter().collect();
    rows.sort_by_key(|(text, (times, ..))| (u64::MAX - times, *text));
    let row = |(text, (times, episodes, first)): (&str, (u64, Vec<u64>, u64))| {
        json!([text, times, episodes.len(), first])
    };
    rows.into_iter().map(row).collect()
}

fn tokens_by_version(records: &[Sampled]) -> Json {
    let mut tokens: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
    for one in explored(records) {
        for token in (0..one.token_ids.len()).filter(|token| one.loss_mask[*token] == 1) {
            let of_version = tokens.entry(one.policy_versions[token]).or_default();
            of_version.push(one.behavior_logprobs[token].into());
        }
    }
    let mean = |all: &[f64]| (all.iter().sum::<f64>() / all.len() as f64 * 1e4).round() / 1e4;
    tokens.iter().map(|(version, all)| json!([version, all.len(), mean(all)])).collect()
}

fn mean_lengths(records: &[Sampled]) -> Json {
    let mut lengths: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
    for one in explored(records) {
        lengths.entry(one.task.as_ref().unwrap().calls).or_default().push(one.token_ids.len());
    }
    let mean = |all: &[usize]| thousandths(all.iter().sum::<usize>() as f64 / all.len() as f64);
    lengths.iter().map(|(calls, all)| json!([calls, mean(all)])).collect()
}

/// Without Python: every column is described, and none that is not there.
#[test]
fn the_document_describes_every_column() {
    let document = include_str!("../../../docs/dataset.md");
    for table in Table::ALL {
        let title = format!("\n### {table}\n");
        let section = document.split_once(&title).unwrap_or_else(|| panic!("no{title}")).1;
        let section = section.split("\n### ").next().unwrap();
        let rows = section.lines().filter_map(|line| line.strip_prefix("| `"));
        let described: Vec<&str> = rows.map(|row| row.split('`').next().unwrap()).collect();
        let schema = table.schema();
        let columns: Vec<&str> = schema.get_fields().iter().map(|field| field.name()).collect();
        assert_eq!(described, columns, "{table}");
    }
}
