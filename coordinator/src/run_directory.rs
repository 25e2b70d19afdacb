//! The files of a run: `<run.directory>/<run.name>/`.

use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use ballast_runtime::{atomic_file, config::Config, config_file};

use crate::{journal::Journal, metrics::MetricsWriter, result::RunResult};

/// Why a run directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RunDirectoryError {
    /// The journal holds records of an earlier run.
    #[error(
        "{} already holds {records} records of an earlier run; choose another name with \
         --set run.name=NAME, or move the directory away", path.display()
    )]
    Taken {
        /// The journal.
        path: PathBuf,
        /// Records in it.
        records: usize,
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
    /// Creates the directory of a new run and writes its config. Returns it with its open journal.
    ///
    /// # Errors
    /// There is a run in it already, or it cannot be written.
    pub fn create(config: &Config) -> Result<(Self, Journal), RunDirectoryError> {
        let path = config.run.directory.join(&config.run.name);
        let journal_path = path.join("journal");
        let journal = Journal::open(&journal_path).map_err(at(&journal_path))?;
        if journal.records_found() > 0 {
            let path = journal.path().to_owned();
            return Err(RunDirectoryError::Taken { path, records: journal.records_found() });
        }
        let directory = Self { path };
        directory.write("config.toml", config_file::to_toml(config).as_bytes())?;
        Ok((directory, journal))
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
        let bytes = bytes.map_err(at(&self.path.join("result.json")))?;
        self.write("result.json", &bytes)
    }

    /// Opens `metrics.jsonl`.
    ///
    /// # Errors
    /// The file cannot be created.
    pub fn metrics(&self) -> Result<MetricsWriter, RunDirectoryError> {
        let path = self.path.join("metrics.jsonl");
        MetricsWriter::open(&path).map_err(at(&path))
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
    use crate::journal::Record;

    #[test]
    fn a_directory_with_records_is_refused_with_the_remedy() {
        let parent = tempfile::tempdir().expect("a temporary directory");
        let mut config = Config::default();
        config.run.directory = parent.path().to_owned();
        let (directory, mut journal) = RunDirectory::create(&config).expect("new");
        assert!(directory.path().join("config.toml").exists());
        drop(RunDirectory::create(&config).expect("still empty"));
        journal.append(&[Record::Note("n".into())]).expect("append");
        let error = RunDirectory::create(&config).expect_err("taken").to_string();
        assert!(error.contains("--set run.name=NAME"), "{error}");
    }
}
