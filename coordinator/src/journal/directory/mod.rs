//! A journal in a directory of a local file system.
//!
//! ```text
//! segments/00000000000000000001   in order; preallocated, so that a commit changes no metadata
//! snapshots/POSITION-SEGMENT
//! new/SEGMENT-RANDOM              files that are being made; what a dead writer left is removed
//! ```
//!
//! A segment is made under `new/`, filled and synced there, and then linked to its name: `link` fails
//! if the name is taken, so of all writers one gets it, and nobody ever sees half a header. The file
//! system has to be a local one: the proof of fencing needs that a name somebody linked is seen by
//! everybody at once, which NFS does not promise.
//!
//! A full disk shows where room is preallocated, before anything is written, and passes. An error of
//! `fdatasync` does not: the kernel may have dropped the pages it could not write and report success
//! next time, so the writer must not go on.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use rustix::fs::Advice;

use self::{
    appender::DirectoryAppender,
    blank::Blank,
    refusal::{fatal, missing_or, unavailable},
};
use super::{
    SegmentNumber,
    storage::{Appender, Entry, SnapshotName, Storage, StorageError},
};

mod appender;
mod blank;
mod refusal;

/// Size of a segment, unless one group needs more.
pub const SEGMENT_BYTES: u64 = 64 << 20;

/// The storage. Cheap to clone; clones are the same place.
#[derive(Clone, Debug)]
pub struct Directory {
    path: PathBuf,
    segment_bytes: u64,
}

impl Directory {
    /// Uses a directory, making it if need be.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn create(path: &Path) -> Result<Self, StorageError> {
        let directory = Self { path: path.to_owned(), segment_bytes: SEGMENT_BYTES };
        for folder in ["segments", "snapshots", "new"] {
            let folder = path.join(folder);
            fs::create_dir_all(&folder).map_err(unavailable("create", &folder))?;
        }
        sync_folder(path)?;
        Ok(directory)
    }

    /// The same place, with segments of another size.
    #[must_use]
    pub fn with_segment_bytes(self, segment_bytes: u64) -> Self {
        Self { segment_bytes, ..self }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn segment_path(&self, segment: SegmentNumber) -> PathBuf {
        self.path.join("segments").join(format!("{:020}", segment.0))
    }

    fn snapshot_path(&self, name: SnapshotName) -> PathBuf {
        let name = format!("{:020}-{:020}", name.position.0, name.segment.0);
        self.path.join("snapshots").join(name)
    }

    fn names(&self, folder: &str) -> Result<Vec<String>, StorageError> {
        let folder = self.path.join(folder);
        let names = |folder: &Path| -> io::Result<Vec<String>> {
            let names = fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name()));
            let names: io::Result<Vec<_>> = names.collect();
            Ok(names?.into_iter().filter_map(|name| name.into_string().ok()).collect())
        };
        names(&folder).map_err(unavailable("list", &folder))
    }

    /// A file that will become this segment, with room for `bytes`.
    fn blank(&self, segment: SegmentNumber, bytes: u64) -> Result<Blank, StorageError> {
        let name = format!("{:020}-{:016x}", segment.0, super::random());
        Blank::create(self.path.join("new").join(name), bytes)
    }

    /// Gives a file its name, unless the name is taken.
    fn link(&self, blank: &Blank, segment: SegmentNumber) -> Result<(), StorageError> {
        let path = self.segment_path(segment);
        blank.file.sync_data().map_err(fatal(&blank.path))?;
        fs::hard_link(&blank.path, &path).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => StorageError::Exists(path.display().to_string()),
            // Whoever has the name may have swept this file away.
            io::ErrorKind::NotFound if path.exists() => {
                StorageError::Exists(path.display().to_string())
            }
            _ => unavailable("create", &path)(error),
        })?;
        sync_folder(&self.path.join("segments"))
    }
}

impl Storage for Directory {
    fn grows(&self) -> bool {
        true
    }

    fn name(&self, segment: SegmentNumber) -> String {
        self.segment_path(segment).display().to_string()
    }

    fn list(&self, from: SegmentNumber) -> Result<Vec<Entry>, StorageError> {
        let numbers = self.names("segments")?.into_iter().filter_map(|name| name.parse().ok());
        let mut segments: Vec<_> = numbers.map(SegmentNumber).filter(|one| *one >= from).collect();
        segments.sort_unstable();
        let entry = |segment| match fs::metadata(self.segment_path(segment)) {
            Ok(metadata) => Some(Ok(Entry { segment, bytes: metadata.len() })),
            // Deleted since, by a writer that forgets.
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => Some(Err(unavailable("read", &self.segment_path(segment))(error))),
        };
        segments.into_iter().filter_map(entry).collect()
    }

    fn exists(&self, segment: SegmentNumber) -> Result<bool, StorageError> {
        let path = self.segment_path(segment);
        path.try_exists().map_err(unavailable("look for", &path))
    }

    fn read(
        &self,
        segment: SegmentNumber,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<usize, StorageError> {
        let path = self.segment_path(segment);
        let filled = File::open(&path).and_then(|file| read_at(&file, offset, buffer));
        filled.map_err(missing_or(unavailable("read", &path), &path))
    }

    fn settle(&self, segment: SegmentNumber) -> Result<(), StorageError> {
        let path = self.segment_path(segment);
        let file = File::options().read(true).write(true).open(&path);
        let file = file.map_err(missing_or(unavailable("open", &path), &path))?;
        file.sync_data().map_err(fatal(&path))?;
        // Pages that a failed write left behind look clean; this drops them. A file system without
        // advice keeps no such pages, or there is nothing we could do.
        rustix::fs::fadvise(&file, 0, None, Advice::DontNeed).ok();
        Ok(())
    }

    fn claim(&self, segment: SegmentNumber, content: &[u8]) -> Result<(), StorageError> {
        let blank = self.blank(segment, 0)?;
        blank.file.write_all_at(content, 0).map_err(unavailable("write", &blank.path))?;
        self.link(&blank, segment)
    }

    fn appender(&self) -> Box<dyn Appender> {
        Box::new(DirectoryAppender::new(self.clone()))
    }

    fn trim(&self, segment: SegmentNumber, end: u64) -> Result<(), StorageError> {
        let path = self.segment_path(segment);
        let file = File::options().write(true).open(&path);
        file.and_then(|file| file.set_len(end)).map_err(unavailable("trim", &path))
    }

    fn delete(&self, segments: &[SegmentNumber]) -> Result<(), StorageError> {
        segments.iter().try_for_each(|segment| remove(&self.segment_path(*segment)))
    }

    fn sweep(&self, newest: SegmentNumber) {
        let dead = |name: &str| {
            let segment = name.split('-').next().and_then(|number| number.parse().ok());
            segment.is_none_or(|segment| SegmentNumber(segment) <= newest)
        };
        for name in self.names("new").unwrap_or_default().iter().filter(|name| dead(name)) {
            remove(&self.path.join("new").join(name)).ok();
        }
    }

    fn snapshots(&self) -> Result<Vec<SnapshotName>, StorageError> {
        let names = self.names("snapshots")?;
        let mut names: Vec<_> = names.iter().filter_map(|name| SnapshotName::parse(name)).collect();
        names.sort_unstable();
        Ok(names)
    }

    fn read_snapshot(&self, name: SnapshotName) -> Result<Vec<u8>, StorageError> {
        let path = self.snapshot_path(name);
        fs::read(&path).map_err(missing_or(unavailable("read", &path), &path))
    }

    fn write_snapshot(&self, name: SnapshotName, content: &[u8]) -> Result<(), StorageError> {
        let path = self.snapshot_path(name);
        ballast_runtime::atomic_file::write(&path, content).map_err(unavailable("write", &path))
    }

    fn delete_snapshot(&self, name: SnapshotName) -> Result<(), StorageError> {
        remove(&self.snapshot_path(name))
    }
}

fn read_at(file: &File, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(bytes) => filled += bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

fn remove(path: &Path) -> Result<(), StorageError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(unavailable("delete", path)(error))
        }
        _ => Ok(()),
    }
}

fn sync_folder(path: &Path) -> Result<(), StorageError> {
    File::open(path).and_then(|folder| folder.sync_all()).map_err(fatal(path))
}
