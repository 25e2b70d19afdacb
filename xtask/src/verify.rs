//! `cargo xtask verify`: every check that reads the sources and changes none of them.

use std::io::{self, Write};
use std::time::Instant;

use anyhow::{Result, bail};

use crate::checkout::Checkout;
use crate::{command, kustomize, setup, test};

mod dependencies;
mod tidy;

/// A named check. It fails with everything it found.
type Check = (&'static str, fn(&Checkout) -> Result<()>);

const CHECKS: &[Check] = &[
    ("format", format),
    ("tidy", tidy::check),
    ("dependency direction", dependencies::check),
    ("licences and sources", deny),
    ("k8s renders", |checkout| kustomize::render(checkout, "k8s/base").map(drop)),
    ("clippy", clippy),
    ("documentation", documentation),
];

/// Runs all checks, then gives the verdict.
pub(crate) fn run(checkout: &Checkout) -> Result<()> {
    setup::run(checkout)?;
    let mut failed = Vec::new();
    for (name, check) in CHECKS {
        print!("{name:22} ");
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
        bail!("{} of {} checks failed: {}", failed.len(), CHECKS.len(), failed.join(", "));
    }
    println!("all {} checks passed", CHECKS.len());
    Ok(())
}

fn format(checkout: &Checkout) -> Result<()> {
    command::stdout(command::cargo(checkout).args(["fmt", "--all", "--check"])).map(drop)
}

fn clippy(checkout: &Checkout) -> Result<()> {
    let arguments = "clippy --quiet --workspace --all-targets -- -D warnings";
    command::stdout(command::cargo(checkout).args(arguments.split(' '))).map(drop)
}

fn documentation(checkout: &Checkout) -> Result<()> {
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
