//! The start of a coordinator: it takes the journal over and has the run as it was, or begins one.

use std::{path::Path, sync::Arc};

use ballast_proto::v1::RunCreated;
use ballast_runtime::{config::Config, config_file};
use prost::Message as _;

use crate::{
    entry,
    journal::{
        self, AppendError, Directory, Journal, OpenError, Opened, Position, ReadError, Reader,
        Record, StorageError, Stored, Term,
    },
    rebuild::{self, RebuildError, Rebuilt},
};

/// Sections of the configuration that make a run what it is. The others, addresses and threads, may
/// differ from one start to the next.
const LASTING: [&str; 8] =
    ["run", "model", "tasks", "schedule", "rl", "sft", "optimizer", "evaluation"];

/// Why a run cannot be begun or taken up again.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    /// There is no place for the journal.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The journal cannot be taken over.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The journal cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The journal does not take its first record.
    #[error(transparent)]
    Append(#[from] AppendError),
    /// The journal is not one of this program.
    #[error(transparent)]
    Rebuild(#[from] RebuildError),
    /// It is another run than the configured one.
    #[error(
        "the run in this directory was started with other settings: {}; use those, change what can \
         be changed with `ballast set`, or choose another name with --set run.name=NAME",
        .0.join("; ")
    )]
    OtherSettings(Vec<String>),
}

impl RecoveryError {
    /// Whether a start in the same place would end the same way: it is not for a disk that is full,
    /// or for another coordinator that was faster.
    #[must_use]
    pub fn is_lasting(&self) -> bool {
        match self {
            Self::Rebuild(_) | Self::OtherSettings(_) => true,
            Self::Read(error) => !matches!(error, ReadError::Storage(_)),
            Self::Storage(_) | Self::Open(_) | Self::Append(_) => false,
        }
    }
}

/// A run and its journal, in this process's hands.
#[derive(Debug)]
pub struct Recovered {
    /// The run.
    pub run: Rebuilt,
    /// Takes records.
    pub journal: Journal,
    /// Reads what was written.
    pub reader: Reader,
    /// Position of the next record.
    pub next: Position,
    /// Number of this leadership.
    pub term: u64,
}

/// Takes the journal over under a term (`None`: the one after the last), and rebuilds its run or
/// begins the configured one.
///
/// # Errors
/// See [`RecoveryError`].
pub fn recover(
    config: &Config,
    directory: &Path,
    term: Option<Term>,
) -> Result<Recovered, RecoveryError> {
    let storage = Arc::new(Directory::create(directory)?);
    take_up(config, Journal::open(storage, term)?)
}

/// Rebuilds the run of a journal that is taken over, or begins the configured one in it.
///
/// # Errors
/// See [`RecoveryError`].
pub fn take_up(config: &Config, opened: Opened) -> Result<Recovered, RecoveryError> {
    let Opened { mut journal, snapshot, records } = opened;
    let reader = journal.reader();
    let rebuilt = match &snapshot {
        None => from_the_first(records)?,
        Some(snapshot) => match rebuild::from_snapshot(snapshot) {
            Some(mut run) => {
                for stored in records {
                    run.replay(&stored?)?;
                }
                Some(run)
            }
            // Not past where this leadership begins: a deposed leader that does not know it yet may
            // still write there, and none of that counts.
            None => {
                let count = usize::try_from(journal.next_position().0).unwrap_or(usize::MAX);
                from_the_first(reader.records_from(Position(0))?.take(count))?
            }
        },
    };
    let run = match rebuilt {
        Some(run) => {
            let differences = differences(config, &run.created)?;
            if !differences.is_empty() {
                return Err(RecoveryError::OtherSettings(differences));
            }
            let (step, records) = (run.engine.version().0, run.records);
            tracing::info!("run {} goes on at step {step} ({records} records)", config.run.name);
            run
        }
        None => {
            let created = created(config);
            let head = entry::created(created.clone()).encode_to_vec().into();
            journal.append(&[Record { head, payload: bytes::Bytes::new() }])?;
            rebuild::from_created(created)?
        }
    };
    let (next, term) = (journal.next_position(), journal.term().0);
    Ok(Recovered { run, journal, reader, next, term })
}

/// Replays these records, which begin with the first; `None` if there is none.
fn from_the_first(
    records: impl Iterator<Item = Result<Stored, ReadError>>,
) -> Result<Option<Rebuilt>, RecoveryError> {
    let mut run: Option<Rebuilt> = None;
    for stored in records {
        let stored = stored?;
        match &mut run {
            None => run = Some(rebuild::from_first(&stored)?),
            Some(run) => run.replay(&stored)?,
        }
    }
    Ok(run)
}

fn created(config: &Config) -> RunCreated {
    let run_id = format!("{:016x}", journal::random());
    let config_toml = config_file::to_toml(config);
    RunCreated { run_id, config_toml, conversations: Vec::new() }
}

/// What the configuration says otherwise than the run was created with.
fn differences(config: &Config, created: &RunCreated) -> Result<Vec<String>, RebuildError> {
    let before = config_file::from_toml(&created.config_toml).map_err(RebuildError::Config)?;
    Ok(config_file::differences(&before, config)
        .into_iter()
        .filter(|one| LASTING.iter().any(|section| one.key.starts_with(&format!("{section}."))))
        .map(|one| format!("{} = {} (now {})", one.key, one.before, one.after))
        .collect())
}
