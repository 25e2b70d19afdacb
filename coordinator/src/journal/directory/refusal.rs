//! What an error of the file system means, and what to do about it.

use std::{io, path::Path};

use super::StorageError;

pub(super) fn missing_or(
    otherwise: impl FnOnce(io::Error) -> StorageError,
    path: &Path,
) -> impl FnOnce(io::Error) -> StorageError {
    move |error| match error.kind() {
        io::ErrorKind::NotFound => StorageError::Missing(path.display().to_string()),
        _ => otherwise(error),
    }
}

pub(super) fn unavailable<'a>(
    doing: &'a str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> StorageError + 'a {
    move |error| {
        let remedy = match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "free space on its disk",
            io::ErrorKind::PermissionDenied => "give this user the right to write there",
            io::ErrorKind::ReadOnlyFilesystem => "mount its file system for writing",
            _ => "look after its disk",
        };
        StorageError::Unavailable(format!("cannot {doing} {}: {error}; {remedy}", path.display()))
    }
}

pub(super) fn fatal(path: &Path) -> impl FnOnce(io::Error) -> StorageError + '_ {
    move |error| {
        StorageError::Fatal(format!(
            "cannot sync {}: {error}; the system may have dropped what it could not write, so this \
             process must not go on: look after the disk and start it again",
            path.display()
        ))
    }
}
