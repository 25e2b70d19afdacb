//! Running other programs: what a failure says, and how cargo is called from under cargo.

use std::env;
use std::process::{Command, Output};

use anyhow::{Context, Result, bail};

use crate::checkout::Checkout;

/// `cargo` in the checkout's root, with the environment a person's shell would give it.
///
/// `cargo xtask` runs under cargo, which describes this crate to it in CARGO_PKG_* and
/// CARGO_MANIFEST_*. Build scripts that watch those variables would rebuild at every switch between
/// a plain `cargo build` and this one, so they are taken out.
pub(crate) fn cargo(checkout: &Checkout) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(checkout.root());
    for (name, _) in env::vars_os() {
        let described = name.to_string_lossy();
        if ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_"]
            .iter()
            .any(|prefix| described.starts_with(prefix))
        {
            command.env_remove(&name);
        }
    }
    command
}

/// A program in the checkout's root.
pub(crate) fn program(checkout: &Checkout, path: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(path);
    command.current_dir(checkout.root());
    command
}

/// Runs `command` on this terminal; fails unless it succeeds.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| cannot_start(command))?;
    if !status.success() {
        bail!("`{}` failed ({status})", line(command));
    }
    Ok(())
}

/// Runs `command` and returns what it printed, whether it succeeded or not.
pub(crate) fn output(command: &mut Command) -> Result<Output> {
    command.output().with_context(|| cannot_start(command))
}

/// Runs `command` and returns its standard output; fails, with what it complained about, unless it
/// succeeds.
pub(crate) fn stdout(command: &mut Command) -> Result<String> {
    let output = output(command)?;
    if !output.status.success() {
        // Most programs complain on standard error; formatters print what they would change.
        let complaint = if output.stderr.is_empty() { &output.stdout } else { &output.stderr };
        let said = String::from_utf8_lossy(complaint);
        bail!("`{}` failed ({}):\n{}", line(command), output.status, said.trim_end());
    }
    String::from_utf8(output.stdout)
        .with_context(|| format!("`{}` printed bytes that are not UTF-8", line(command)))
}

/// Whether `program arguments` can be started and succeeds.
pub(crate) fn answers(program: &str, arguments: &[&str]) -> bool {
    Command::new(program).args(arguments).output().is_ok_and(|output| output.status.success())
}

/// The command as a person would type it.
fn line(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy()];
    words.extend(command.get_args().map(|argument| argument.to_string_lossy()));
    words.join(" ")
}

fn cannot_start(command: &Command) -> String {
    format!("cannot start `{}`", command.get_program().to_string_lossy())
}
