//! `cargo xtask compare-transformers`: a checkpoint means the same to Hugging Face transformers as
//! to us.

use std::path::PathBuf;

use anyhow::{Result, ensure};

use crate::checkout::Checkout;
use crate::{command, python, setup};

/// The comparing script, relative to the checkout.
const SCRIPT: &str = "bench/compare_transformers.py";

/// What the command line says.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Checkpoint directory, such as runs/quickstart-0/checkpoints/step-170.
    #[arg(default_value = "examples/market/base")]
    checkpoint: PathBuf,
    /// Write the prompts and transformers' logits here, for the golden test of `policy`.
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
}

/// Loads the checkpoint with both and compares the logits of three prompts.
pub(crate) fn run(checkout: &Checkout, options: &Options) -> Result<()> {
    let checkpoint = checkout.root().join(&options.checkpoint);
    ensure!(
        checkpoint.join("config.json").is_file(),
        "{} is no checkpoint directory: it has no config.json",
        checkpoint.display()
    );
    setup::run(checkout)?;
    command::run(command::cargo(checkout).args(["build", "--quiet"]))?;
    let mut python = python::with(checkout, &python::TRANSFORMERS)?;
    python.arg(SCRIPT).arg(&checkpoint).arg(checkout.program("ballast-learner"));
    if let Some(record) = &options.record {
        python.arg(record);
    }
    command::run(&mut python)
}
