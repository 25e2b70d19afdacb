//! Finding a run's coordinator and calling its admin API.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::SystemTime,
};

use anyhow::{Context as _, anyhow, bail};
use ballast_proto::{
    MESSAGE_BYTES_MAX,
    v1::{PauseRequest, ResumeRequest, StopRequest, admin_client::AdminClient},
};
use ballast_runtime::net;
use tonic::{Status, transport::Channel};

use crate::terminal;

/// File in a run directory that holds the coordinator's address.
pub(crate) const ADDRESS_FILE: &str = "coordinator.address";

/// Which coordinator to talk to.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Target {
    /// Address of the coordinator, HOST:PORT.
    #[arg(long, value_name = "ADDR", conflicts_with = "run")]
    coordinator: Option<String>,
    /// Name of a local run; without it and without --coordinator, the newest one.
    #[arg(long, value_name = "NAME")]
    run: Option<String>,
    /// Directory of the local runs.
    #[arg(long, value_name = "DIR", default_value = "runs")]
    directory: PathBuf,
}

impl Target {
    /// The coordinator's address, given or read from the run directory.
    pub(crate) fn address(&self) -> anyhow::Result<String> {
        if let Some(address) = &self.coordinator {
            return Ok(address.clone());
        }
        let file = match &self.run {
            Some(run) => self.directory.join(run).join(ADDRESS_FILE),
            None => newest_address_file(&self.directory).with_context(|| {
                let directory = self.directory.display();
                format!("no run in {directory}; start one with `ballast up`, or give --coordinator HOST:PORT")
            })?,
        };
        read_address(&file)
    }

    /// Connects and checks that somebody answers.
    pub(crate) async fn connect(&self) -> anyhow::Result<AdminClient<Channel>> {
        connect(&self.address()?).await
    }
}

/// Connects to the admin API at `address`.
pub(crate) async fn connect(address: &str) -> anyhow::Result<AdminClient<Channel>> {
    let channel = net::endpoint(address)?.connect().await.map_err(|error| {
        let cause = anyhow!(error).root_cause().to_string();
        anyhow!(
            "no coordinator answers at {address} ({cause}); the run may have ended, \
             or choose another with --run NAME or --coordinator HOST:PORT"
        )
    })?;
    Ok(AdminClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX))
}

/// What a failed call means, for people.
pub(crate) fn explain(status: &Status) -> anyhow::Error {
    anyhow!("the coordinator refused: {} ({:?})", status.message(), status.code())
}

/// `ballast pause`.
pub(crate) async fn pause(target: &Target) -> anyhow::Result<ExitCode> {
    let mut client = target.connect().await?;
    client.pause(PauseRequest {}).await.map_err(|status| explain(&status))?;
    terminal::say(
        "paused: what runs is finished, nothing new starts; continue with `ballast resume`",
    );
    Ok(ExitCode::SUCCESS)
}

/// `ballast resume`.
pub(crate) async fn resume(target: &Target) -> anyhow::Result<ExitCode> {
    let mut client = target.connect().await?;
    client.resume(ResumeRequest {}).await.map_err(|status| explain(&status))?;
    terminal::say("resumed");
    Ok(ExitCode::SUCCESS)
}

/// `ballast stop`.
pub(crate) async fn stop(target: &Target) -> anyhow::Result<ExitCode> {
    let mut client = target.connect().await?;
    client.stop(StopRequest {}).await.map_err(|status| explain(&status))?;
    terminal::say(
        "stopping: the step at hand is finished, a checkpoint is written, actors are drained",
    );
    Ok(ExitCode::SUCCESS)
}

/// The address in `file`, checked.
pub(crate) fn read_address(file: &Path) -> anyhow::Result<String> {
    let text = fs::read_to_string(file)
        .with_context(|| format!("no coordinator address in {}", file.display()))?;
    let address = text.trim();
    if net::endpoint(address).is_err() {
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
        Target { coordinator: None, run: run.map(str::to_owned), directory: directory.to_owned() }
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
        assert_eq!(target(runs.path(), None).address().expect("newest"), "new:7711");
        assert_eq!(target(runs.path(), Some("old")).address().expect("named"), "old:7711");
    }

    #[test]
    fn a_missing_or_broken_address_is_explained() {
        let runs = tempfile::tempdir().expect("a temporary directory");
        let message =
            |run| format!("{:#}", target(runs.path(), run).address().expect_err("no run"));
        assert!(message(None).contains("start one with `ballast up`"));
        assert!(message(Some("absent")).contains("absent/coordinator.address"));
        fs::create_dir(runs.path().join("broken")).expect("a run directory");
        fs::write(runs.path().join("broken").join(ADDRESS_FILE), "nonsense").expect("a file");
        assert!(message(Some("broken")).contains("holds no address"));
    }
}
