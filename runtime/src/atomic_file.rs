//! Small files that are never seen half written: a reader finds the old content or the new, also
//! after a crash.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::Path,
};

/// Replaces `path` by `bytes`: writes a temporary file beside it, syncs it, renames it over `path`,
/// and syncs the directory so that the rename itself survives a power cut. One writer per path.
///
/// # Errors
/// Any error of the file system; `path` is then unchanged.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let name = path.file_name().ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidInput, format!("{} names no file", path.display()))
    })?;
    let mut temporary_name = name.to_owned();
    temporary_name.push(format!(".tmp-{}", std::process::id()));
    let temporary = path.with_file_name(temporary_name);
    let replaced = write_synced(&temporary, bytes).and_then(|()| fs::rename(&temporary, path));
    if let Err(error) = replaced {
        // Best effort: the first error is the one to report.
        drop(fs::remove_file(&temporary));
        return Err(error);
    }
    sync_directory(path)
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn sync_directory(path: &Path) -> io::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_new_content_replaces_the_old_and_leaves_nothing_beside_it() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("address");
        write(&path, b"old").expect("first write");
        write(&path, b"new").expect("second write");
        assert_eq!(fs::read(&path).expect("content"), b"new");
        assert_eq!(fs::read_dir(directory.path()).expect("listing").count(), 1);
    }

    #[test]
    fn a_failed_write_leaves_the_target_alone() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        // A directory cannot be replaced by a file, so the rename fails after the write.
        let path = directory.path().join("taken");
        fs::create_dir(&path).expect("directory");
        assert!(write(&path, b"new").is_err());
        assert!(path.is_dir());
        assert_eq!(fs::read_dir(directory.path()).expect("listing").count(), 1);
    }
}
