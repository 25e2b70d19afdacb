//! The journal as Parquet: a run directory is a dataset that DuckDB, pandas and Polars open directly.
//!
//! Owns: the tables ([`Table`], meant for people, described in `docs/dataset.md`), how entries become
//! rows, which files there are. Does not know: the engine. The journal stays the truth; whatever is
//! here can be deleted and made again as long as the journal has its records.
//!
//! A table is a folder of files, each named after the records it covers: `FIRST-END.parquet` has the
//! rows of all records from `FIRST` up to but not including `END`, and those only. A file is written
//! under another name, synced and then renamed, and never changed afterwards. The next one begins
//! where the names say that the newest one ends. So after a crash at any point no row is missing and
//! none is there twice, although the tables may for a while not reach equally far.
//!
//! Only records that stay may be compacted: the ones the writer has acknowledged, or [`sealed`] ones.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use crate::journal::{Position, ReadError, Reader};

mod background;
mod chunk;
mod columns;
mod cover;
mod part;
mod rows;
mod sealed;
mod tables;
mod trajectory;
mod value;

pub use background::{BEHIND_RECORDS_MAX, BEHIND_TIME_MAX, Background, spawn};
pub use chunk::{CHUNK_BYTES, CHUNK_RECORDS};
pub use rows::Unreadable;
pub use sealed::sealed;
pub use tables::Table;

use self::{chunk::Chunk, cover::Cover};

/// Who holds the lock on this file writes the tables.
const LOCK: &str = "events/.lock";

/// Why a journal is not compacted. What has been written is good; going on later begins there.
#[derive(Debug, thiserror::Error)]
pub enum CompactionError {
    /// The journal cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A record is not an entry.
    #[error(
        "record {position} of the journal cannot be read: {source}; `ballast-coordinator journal \
         check` says more"
    )]
    Unreadable {
        /// The record.
        position: Position,
        /// What is wrong with it.
        source: Unreadable,
    },
    /// Files are gone, or were put there.
    #[error(
        "the files in {} do not follow one another at record {position}; delete that folder and \
         compact again", folder.display()
    )]
    Torn {
        /// The table's folder.
        folder: PathBuf,
        /// First record that is missing or there twice.
        position: Position,
    },
    /// A file is not one of ours.
    #[error("{} was not written by Ballast; delete its folder and compact again", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// A file cannot be written or read as Parquet.
    #[error(
        "cannot write or read {}: {source}; free space on its disk, or delete its folder and compact \
         again", path.display()
    )]
    Parquet {
        /// The file.
        path: PathBuf,
        /// What the library says.
        source: parquet::errors::ParquetError,
    },
    /// The file system refuses.
    #[error("cannot use {}: {source}", path.display())]
    Io {
        /// File or folder.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// What is kept from one file to the next cannot be written down.
    #[error("cannot keep the actors' streams: {0}")]
    Sessions(serde_json::Error),
}

impl CompactionError {
    fn io(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        |source| Self::Io { path: path.to_owned(), source }
    }

    fn parquet(path: &Path) -> impl Fn(parquet::errors::ParquetError) -> Self + '_ {
        |source| Self::Parquet { path: path.to_owned(), source }
    }
}

/// What compaction came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compacted {
    /// First record that was in no file, or not in those of every table.
    pub start: Position,
    /// First record that is in no file now.
    pub end: Position,
}

/// First record that is not in the files of every table.
///
/// # Errors
/// The files are not those of a run.
pub fn covered(run: &Path) -> Result<Position, CompactionError> {
    Ok(Cover::read(run)?.start())
}

/// Writes the records before `up_to` that are in no file yet. `goes_on` hears of every record, and
/// may end it: then only whole files stay.
///
/// # Errors
/// See [`CompactionError`].
pub fn compact(
    reader: &Reader,
    up_to: Position,
    run: &Path,
    goes_on: &mut dyn FnMut(Position) -> bool,
) -> Result<Compacted, CompactionError> {
    let _lock = lock(run)?;
    let cover = Cover::read(run)?;
    let start = cover.start();
    let mut done = Compacted { start, end: start };
    if start >= up_to {
        return Ok(done);
    }
    let mut sessions = cover.sessions()?;
    let mut records = reader.records_from(start)?;
    let mut chunk = Chunk::begin(run, &cover)?;
    while let Some(next) = records.next_with_payload() {
        let (stored, payload) = next?;
        let position = stored.payload.position;
        if position >= up_to {
            break;
        }
        let bytes = stored.head.len() + payload.len();
        let rows = rows::rows(&mut sessions, position, stored.head, payload)
            .map_err(|source| CompactionError::Unreadable { position, source })?;
        chunk.add(position, bytes, rows)?;
        if chunk.is_full() {
            chunk = chunk.roll(run, &sessions)?;
            done.end = Position(position.0 + 1);
        }
        if !goes_on(position) {
            return Ok(done);
        }
    }
    if !chunk.is_empty() {
        done.end = chunk.finish(&sessions)?;
    }
    Ok(done)
}

/// Waits until nobody else writes the tables of this run.
fn lock(run: &Path) -> Result<File, CompactionError> {
    let path = run.join(LOCK);
    let locked = || -> io::Result<File> {
        fs::create_dir_all(path.parent().unwrap_or(run))?;
        let file = File::options().create(true).append(true).open(&path)?;
        file.lock()?;
        Ok(file)
    };
    locked().map_err(CompactionError::io(&path))
}
