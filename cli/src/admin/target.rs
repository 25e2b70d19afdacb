//! Which coordinator is meant: addresses that are given, or a run directory.

use std::{
    fs,
    path::{Path, PathBuf},
    time::SystemTime,
};

use anyhow::{Context as _, bail};
use ballast_runtime::leader::Candidates;

/// File in a run directory that holds the coordinator's address.
pub(crate) const ADDRESS_FILE: &str = "coordinator.address";

/// Flags that choose a coordinator.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Target {
    /// Addresses of the coordinator and its standbys; the first one that answers is asked.
    #[arg(long, value_name = "HOST:PORT[,...]", conflicts_with = "run",
        value_parser = Candidates::parse)]
    coordinator: Option<Candidates>,
    /// Name of a local run; without it and without --coordinator, the newest one.
    #[arg(long, value_name = "NAME")]
    run: Option<String>,
    /// Directory of the local runs.
    #[arg(long, value_name = "DIR", default_value = "runs")]
    directory: PathBuf,
}

impl Target {
    /// The addresses to try: as given, or read from the run directory.
    pub(super) fn candidates(&self) -> anyhow::Result<Candidates> {
        if let Some(candidates) = &self.coordinator {
            return Ok(candidates.clone());
        }
        let file = match &self.run {
            Some(run) => self.directory.join(run).join(ADDRESS_FILE),
            None => newest_address_file(&self.directory).with_context(|| {
                let directory = self.directory.display();
                format!("no run in {directory}; start one with `ballast up`, or give --coordinator HOST:PORT")
            })?,
        };
        Ok(Candidates::parse(&read_address(&file)?)?)
    }
}

/// The address in `file`, checked.
pub(crate) fn read_address(file: &Path) -> anyhow::Result<String> {
    let text = fs::read_to_string(file)
        .with_context(|| format!("no coordinator address in {}", file.display()))?;
    let address = text.trim();
    if Candidates::parse(address).is_err() {
        bail!("{} holds no address; give --coordinator HOST:PORT", file.display());
    }
    Ok(address.to_owned())
}

/// The most recently written address file of any run under `directory`.
fn newest_address_file(directory: &Path) -> Option<PathBuf> {
    let written = |path: &PathBuf| -> Option<SystemTime> { path.metadata().ok()?.modified().ok() };
    let files =
        fs::read_dir(directory).ok()?.flatten().map(|entry| entry.path().join(ADDRESS_FILE));
    files.filter(|file| written(file).is_some()).max_by_key(written)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn target(directory: &Path, run: Option<&str>) -> Target {
        let run = run.map(str::to_owned);
        Target { coordinator: None, run, directory: directory.to_owned() }
    }

    #[test]
    fn the_newest_run_is_the_default() {
        let runs = tempfile::tempdir().expect("a temporary directory");
        for (age_s, name) in [(30, "old"), (10, "new"), (20, "middle")] {
            let run = runs.path().join(name);
            fs::create_dir(&run).expect("a run directory");
            let file = fs::File::create(run.join(ADDRESS_FILE)).expect("an address file");
            fs::write(run.join(ADDRESS_FILE), format!("{name}:7711\n")).expect("an address");
            let written = SystemTime::now() - Duration::from_secs(age_s);
            file.set_modified(written).expect("a settable time");
        }
        let first =
            |run| target(runs.path(), run).candidates().expect("an address").next_turn().address;
        assert_eq!((first(None), first(Some("old"))), ("new:7711".into(), "old:7711".into()));
    }

    #[test]
    fn a_missing_or_broken_address_is_explained() {
        let runs = tempfile::tempdir().expect("a temporary directory");
        let message =
            |run| format!("{:#}", target(runs.path(), run).candidates().expect_err("no run"));
        assert!(message(None).contains("start one with `ballast up`"));
        assert!(message(Some("absent")).contains("absent/coordinator.address"));
        fs::create_dir(runs.path().join("broken")).expect("a run directory");
        fs::write(runs.path().join("broken").join(ADDRESS_FILE), "nonsense").expect("a file");
        assert!(message(Some("broken")).contains("holds no address"));
    }
}
