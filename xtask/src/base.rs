//! `cargo xtask base`: makes the small model that the market example starts from, again.
//!
//! A model with random weights imitates experts in three ordinary runs: first requests of one and two
//! calls, on which copying appears; then lists of such clauses; last, for a moment, the whole market.
//! What comes out can do every part of the work and does long tasks badly: what a pretrained
//! language model is to a new domain. It is kept in bf16.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::checkout::Checkout;
use crate::{command, setup};

/// Where the model goes, relative to the checkout.
const TARGET: &str = "examples/market/base";

/// Configurations of the two runs, relative to the checkout.
const STAGES: [&str; 3] = [
    "examples/market/base-stage1.toml",
    "examples/market/base-stage2.toml",
    "examples/market/base-stage3.toml",
];

/// Files of a checkpoint that are not the model.
const TRAINER_FILES: [&str; 2] = ["trainer_state.json", "trainer_state.safetensors"];

/// What the command line says.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Seed of the random weights and of the runs.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Print lines instead of progress bars.
    #[arg(long)]
    plain: bool,
}

/// The part of a run's `result.json` that is needed here.
#[derive(Debug, Deserialize)]
struct RunResult {
    checkpoints: Vec<Checkpoint>,
}

#[derive(Debug, Deserialize)]
struct Checkpoint {
    step: u64,
    path: PathBuf,
}

/// Trains the base model and puts it in its place.
pub(crate) fn run(checkout: &Checkout, options: &Options) -> Result<()> {
    let start = checkout.run_directory("base-stage0");
    for stage in 0..=STAGES.len() {
        let taken = checkout.run_directory(&format!("base-stage{stage}"));
        if taken.exists() {
            bail!("{} is in the way: remove it to make the base model again", taken.display());
        }
    }
    setup::run(checkout)?;
    command::run(command::cargo(checkout).args(["build", "--quiet"]))?;
    let mut learner = command::program(checkout, checkout.program("ballast-learner"));
    learner.args(["new", "--seed", &options.seed.to_string(), "--out"]).arg(&start);
    command::run(&mut learner)?;
    let mut model = start;
    for (stage, config) in (1..).zip(STAGES) {
        model = train(checkout, options, stage, config, &model)?;
    }
    keep(&model, &checkout.root().join(TARGET))?;
    let mut learner = command::program(checkout, checkout.program("ballast-learner"));
    command::run(learner.args(["shrink", "--checkpoint", TARGET]))?;
    println!("the base model is in {TARGET}");
    Ok(())
}

/// One run from `model`; returns its last checkpoint.
fn train(
    checkout: &Checkout,
    options: &Options,
    stage: u32,
    config: &str,
    model: &Path,
) -> Result<PathBuf> {
    let name = format!("base-stage{stage}");
    let mut up = command::program(checkout, checkout.program("ballast"));
    up.args(["up", "--config", config, "--set", &format!("run.name={name}")]);
    up.args(["--set", &format!("run.seed={}", options.seed)]);
    up.args(["--set", &format!("model.checkpoint={}", model.display())]);
    if options.plain {
        up.arg("--plain");
    }
    command::run(&mut up)?;
    let path = checkout.run_directory(&name).join("result.json");
    let text =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let result: RunResult = serde_json::from_str(&text)
        .with_context(|| format!("{} is not as expected", path.display()))?;
    let last = result.checkpoints.into_iter().max_by_key(|checkpoint| checkpoint.step);
    Ok(last.context("the run has no checkpoint")?.path)
}

/// Copies the model's files of a checkpoint, without the trainer's.
fn keep(checkpoint: &Path, target: &Path) -> Result<()> {
    fs::create_dir_all(target).with_context(|| format!("cannot create {}", target.display()))?;
    for entry in fs::read_dir(checkpoint)? {
        let entry = entry?;
        let name = entry.file_name();
        if TRAINER_FILES.iter().all(|file| name != *file) {
            fs::copy(entry.path(), target.join(&name))
                .with_context(|| format!("cannot copy {}", entry.path().display()))?;
        }
    }
    Ok(())
}
