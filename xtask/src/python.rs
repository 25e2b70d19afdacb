//! The Python environment of the programs we compare ourselves with. Ballast itself runs no Python.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::checkout::Checkout;
use crate::command;

/// Pinned packages, relative to the checkout.
const REQUIREMENTS: &str = "bench/requirements.txt";

/// Oldest Python for which they are all published.
const OLDEST: &str = "import sys; sys.exit(sys.version_info < (3, 10))";

/// A `python` that has the peers' packages, to be given a script.
pub(crate) fn peers(checkout: &Checkout) -> Result<Command> {
    let mut python = command::program(checkout, environment(checkout)?);
    // Checkpoints are local; without this transformers asks the network about them.
    python.env("HF_HUB_OFFLINE", "1");
    Ok(python)
}

/// The environment's interpreter; made and filled at the first call.
fn environment(checkout: &Checkout) -> Result<PathBuf> {
    let folder = checkout.tools().join("python");
    let python = folder.join("bin/python");
    let stamp = folder.join(".stamp");
    let wanted = fs::read_to_string(checkout.root().join(REQUIREMENTS))?;
    if fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
        return Ok(python);
    }
    ensure!(
        command::answers("python3", &["-c", OLDEST]),
        "the peers need `python3` on the PATH to be Python 3.10 or newer"
    );
    println!("installing the peers' Python packages into {} (some GB)", folder.display());
    let mut venv = Command::new("python3");
    command::stdout(venv.args(["-m", "venv"]).arg(&folder)).context(
        "cannot make a Python environment (Debian and Ubuntu: `apt install python3-venv`)",
    )?;
    let mut pip = command::program(checkout, &python);
    command::run(pip.args(["-m", "pip", "install", "--quiet", "--requirement", REQUIREMENTS]))
        .context("cannot install the peers' packages")?;
    fs::write(stamp, wanted)?;
    Ok(python)
}
