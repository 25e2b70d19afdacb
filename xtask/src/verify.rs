//! `cargo xtask verify`: every check that reads the sources and changes none of them.

use std::io::{self, Write};
use std::time::Instant;

use anyhow::{Result, bail, ensure};

use crate::checkout::Checkout;
use crate::{command, kustomize, setup, test};

mod dependencies;
mod tidy;

/// A named check. It fails with everything it found.
type Check = (&'static str, fn(&Checkout) -> Result<()>);

const CHECKS: &[Check] = &[
    ("format", format),
    ("tidy", tidy::check),
    ("dependencies", dependencies::check),
    ("deny", deny),
    ("k8s", |checkout| kustomize::render(checkout, "k8s/base").map(drop)),
    ("clippy", clippy),
    ("docs", docs),
];

/// What the command line says.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Only these checks: format, tidy, dependencies, deny, k8s, clippy, docs.
    names: Vec<String>,
}

/// Runs the checks, then gives the verdict.
pub(crate) fn run(checkout: &Checkout, options: &Options) -> Result<()> {
    let checks = chosen(&options.names)?;
    setup::run(checkout)?;
    let mut failed = Vec::new();
    for (name, check) in &checks {
        print!("{name:12} ");
        io::stdout().flush()?;
        let start = Instant::now();
        match check(checkout) {
            Ok(()) => println!("ok ({:.0} s)", start.elapsed().as_secs_f64()),
            Err(error) => {
                println!("FAILED\n{error:#}\n");
                failed.push(*name);
            }
        }
    }
    if !failed.is_empty() {
        bail!("{} of {} checks failed: {}", failed.len(), checks.len(), failed.join(", "));
    }
    println!("all {} checks passed", checks.len());
    Ok(())
}

/// The named checks, or all.
fn chosen(names: &[String]) -> Result<Vec<Check>> {
    for name in names {
        ensure!(
            CHECKS.iter().any(|(known, _)| known == name),
            "there is no check named {name}; see `cargo xtask verify --help`"
        );
    }
    let wanted = |check: &&Check| names.is_empty() || names.iter().any(|name| name == check.0);
    Ok(CHECKS.iter().filter(wanted).copied().collect())
}

fn format(checkout: &Checkout) -> Result<()> {
    command::stdout(command::cargo(checkout).args(["fmt", "--all", "--check"])).map(drop)
}

fn clippy(checkout: &Checkout) -> Result<()> {
    let arguments = "clippy --quiet --workspace --all-targets -- -D warnings";
    command::stdout(command::cargo(checkout).args(arguments.split(' '))).map(drop)
}

fn docs(checkout: &Checkout) -> Result<()> {
    let mut cargo = command::cargo(checkout);
    cargo.env("RUSTDOCFLAGS", "-D warnings");
    command::stdout(cargo.args(["doc", "--quiet", "--no-deps", "--workspace"])).map(drop)
}

/// What deny.toml asks for. Advisories are left out: their database is a git repository, which a
/// machine behind a package mirror does not reach.
fn deny(checkout: &Checkout) -> Result<()> {
    test::install(checkout, "cargo-deny", &["deny", "--version"])?;
    let arguments = "deny --log-level error check bans licenses sources";
    command::stdout(test::cargo(checkout)?.args(arguments.split(' '))).map(drop)
}
