//! `cargo xtask base`: makes the small model that the market example starts from, again.

use anyhow::Result;

use crate::checkout::Checkout;
use crate::{command, setup};

/// What the command line says.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Passed on to `ballast-learner pretrain`.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// Pretrains the base model into examples/market/base, or as `arguments` say.
pub(crate) fn run(checkout: &Checkout, options: &Options) -> Result<()> {
    setup::run(checkout)?;
    command::run(command::cargo(checkout).args(["build", "--quiet"]))?;
    let mut learner = command::program(checkout, checkout.program("ballast-learner"));
    command::run(learner.arg("pretrain").args(&options.arguments))
}
