//! Why the driver's loop ends before its run.

use crate::{rebuild::RebuildError, run_directory::RunDirectoryError};

/// Why the loop ended before the run.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// The journal's thread is gone or its queue is full, which its bounds rule out.
    #[error("the journal writer does not take records any more; the run cannot go on safely")]
    Journal,
    /// The journal cannot be trusted any more.
    #[error("the journal failed: {0}; start again, what was acknowledged is safe")]
    JournalFailed(String),
    /// Somebody else leads the run now.
    #[error("another coordinator has taken the run over: {0}")]
    Deposed(String),
    /// The services ended before the run.
    #[error("the gRPC services ended before the run; start again")]
    Services,
    /// A snapshot cannot be made.
    #[error(transparent)]
    Snapshot(#[from] RebuildError),
    /// The result cannot be written.
    #[error(transparent)]
    Directory(#[from] RunDirectoryError),
}
