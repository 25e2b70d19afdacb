//! The files of a run: `<run.directory>/<run.name>/`.

use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use ballast_runtime::{atomic_file, config::Config};

use crate::{
    metrics::{MetricsLine, MetricsWriter},
    result::RunResult,
};

/// Written when the run is over.
const RESULT: &str = "result.json";

/// Why a run directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RunDirectoryError {
    /// It holds a run that is over.
    #[error(
        "{} holds a run that is over; choose another name with --set run.name=NAME, or move the \
         directory away", path.display()
    )]
    Over {
        /// The directory.
        path: PathBuf,
    },
    /// The file system refuses.
    #[error("cannot use {}: {source}", path.display())]
    Io {
        /// File or directory.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

/// The directory of one run.
#[derive(Clone, Debug)]
pub struct RunDirectory {
    path: PathBuf,
}

impl RunDirectory {
    /// The directory of the configured run, which is made if need be.
    ///
    /// # Errors
    /// There is a run in it that is over, or it cannot be written.
    pub fn open(config: &Config) -> Result<Self, RunDirectoryError> {
        let path = config.run.directory.join(&config.run.name);
        fs::create_dir_all(&path).map_err(at(&path))?;
        if path.join(RESULT).exists() {
            return Err(RunDirectoryError::Over { path });
        }
        Ok(Self { path })
    }

    /// Writes the configuration of the run.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_config(&self, config_toml: &str) -> Result<(), RunDirectoryError> {
        self.write("config.toml", config_toml.as_bytes())
    }

    /// Where the journal is unless the configuration says otherwise.
    #[must_use]
    pub fn journal(&self) -> PathBuf {
        self.path.join("journal")
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes the address the coordinator listens on, for whoever starts the other processes.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_address(&self, address: SocketAddr) -> Result<(), RunDirectoryError> {
        self.write("coordinator.address", format!("{address}\n").as_bytes())
    }

    /// Writes what the run came to.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_result(&self, result: &RunResult) -> Result<(), RunDirectoryError> {
        let bytes = serde_json::to_vec_pretty(result).map_err(io::Error::other);
        let bytes = bytes.map_err(at(&self.path.join(RESULT)))?;
        self.write(RESULT, &bytes)
    }

    /// Opens `metrics.jsonl` and completes it: `replayed` are lines of events that were handled again
    /// after a crash, and those that are missing are appended.
    ///
    /// # Errors
    /// The file cannot be read or written.
    pub fn metrics(&self, replayed: &[MetricsLine]) -> Result<MetricsWriter, RunDirectoryError> {
        let path = self.path.join("metrics.jsonl");
        let mut writer = MetricsWriter::open(&path).map_err(at(&path))?;
        writer.complete(&path, replayed).map_err(at(&path))?;
        Ok(writer)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), RunDirectoryError> {
        let path = self.path.join(name);
        fs::create_dir_all(&self.path).map_err(at(&path))?;
        atomic_file::write(&path, bytes).map_err(at(&path))
    }
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> RunDirectoryError {
    let path = path.to_owned();
    move |source| RunDirectoryError::Io { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_of_a_run_that_is_over_is_refused_with_the_remedy() {
        let parent = tempfile::tempdir().expect("a temporary directory");
        let mut config = Config::default();
        config.run.directory = parent.path().to_owned();
        let directory = RunDirectory::open(&config).expect("new");
        directory.write_config("").expect("written");
        RunDirectory::open(&config).expect("a run that is not over may go on");
        fs::write(directory.path().join(RESULT), "{}").expect("written");
        let error = RunDirectory::open(&config).expect_err("over").to_string();
        assert!(error.contains("--set run.name=NAME"), "{error}");
    }
}
