//! `cargo xtask test`: everything that can be tested on this machine.

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::checkout::Checkout;
use crate::{command, python, setup};

/// Sets up, then runs the doc tests and every other test. The runner's summary comes last.
pub(crate) fn run(checkout: &Checkout, arguments: &[String]) -> Result<()> {
    setup::run(checkout)?;
    install(checkout, "cargo-nextest", &["nextest", "--version"])?;
    if arguments.is_empty() {
        command::run(cargo(checkout)?.args(["test", "--quiet", "--doc", "--workspace"]))?;
    }
    // The test that needs it says that it passes over what it was to check.
    if let Err(error) = python::environment(checkout, &python::DATASET) {
        println!("the queries of docs/dataset.md are not tested: {error:#}");
    }
    // Process tests start the programs, which `nextest run` builds only for their own packages.
    command::run(cargo(checkout)?.args(["build", "--quiet"]))?;
    command::run(cargo(checkout)?.args(["nextest", "run", "--workspace"]).args(arguments))
}

/// Makes sure cargo has the subcommand that `probe` asks for.
pub(crate) fn install(checkout: &Checkout, package: &str, probe: &[&str]) -> Result<()> {
    if command::output(cargo(checkout)?.args(probe))?.status.success() {
        return Ok(());
    }
    let root = folder(checkout);
    println!("{package} is not installed: building it into {} (some minutes)", root.display());
    command::run(
        cargo(checkout)?.args(["install", package, "--locked", "--quiet", "--root"]).arg(&root),
    )
    .with_context(|| format!("install it yourself with `cargo install {package} --locked`"))
}

/// Cargo that also finds the subcommands installed in the tool folder.
pub(crate) fn cargo(checkout: &Checkout) -> Result<Command> {
    let mut path = OsString::from(folder(checkout).join("bin"));
    if let Some(inherited) = env::var_os("PATH") {
        let folders = std::iter::once(PathBuf::from(&path)).chain(env::split_paths(&inherited));
        path = env::join_paths(folders)?;
    }
    let mut cargo = command::cargo(checkout);
    cargo.env("PATH", path);
    Ok(cargo)
}

fn folder(checkout: &Checkout) -> PathBuf {
    checkout.tools().join("cargo")
}
