//! A journal in a directory of a local file system.
//!
//! ```text
//! segments/00000000000000000001   in order; preallocated, so that a commit changes no metadata
//! snapshots/POSITION-SEGMENT
//! new/                            files that are being made; whatever a dead writer left is removed
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
    thread::{self, JoinHandle},
};

use rustix::fs::{Advice, FallocateFlags};

use super::{
    Position, SegmentNumber,
    storage::{Appender, Entry, SnapshotName, Storage, StorageError},
};

/// Size of a segment, unless one group needs more.
pub const SEGMENT_BYTES: u64 = 64 << 20;
/// Zeros that are written at once where the file system cannot preallocate.
const ZEROS: [u8; 1 << 16] = [0; 1 << 16];

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

    /// A file without a name of its own yet, with room for `bytes`.
    fn blank(&self, bytes: u64) -> Result<Blank, StorageError> {
        let path = self.path.join("new").join(format!("{:016x}", super::random()));
        let file = File::options().read(true).write(true).create_new(true).open(&path);
        let blank = Blank { file: file.map_err(unavailable("create", &path))?, path, bytes };
        blank.reserve().map_err(unavailable("reserve room in", &blank.path))?;
        Ok(blank)
    }

    /// Gives a file its name, unless the name is taken.
    fn link(&self, blank: &Blank, segment: SegmentNumber) -> Result<(), StorageError> {
        let path = self.segment_path(segment);
        blank.file.sync_data().map_err(fatal(&blank.path))?;
        fs::hard_link(&blank.path, &path).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => StorageError::Exists(path.display().to_string()),
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
        let mut read = || read_at(&File::open(&path)?, offset, buffer);
        read().map_err(missing_or(unavailable("read", &path), &path))
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
        let blank = self.blank(0)?;
        blank.file.write_all_at(content, 0).map_err(unavailable("write", &blank.path))?;
        self.link(&blank, segment)
    }

    fn appender(&self) -> Box<dyn Appender> {
        Box::new(DirectoryAppender { directory: self.clone(), spare: None, open: None })
    }

    fn trim(&self, segment: SegmentNumber, end: u64) -> Result<(), StorageError> {
        let path = self.segment_path(segment);
        let file = File::options().write(true).open(&path);
        file.and_then(|file| file.set_len(end)).map_err(unavailable("trim", &path))
    }

    fn delete(&self, segments: &[SegmentNumber]) -> Result<(), StorageError> {
        segments.iter().try_for_each(|segment| remove(&self.segment_path(*segment)))
    }

    fn sweep(&self) {
        for name in self.names("new").unwrap_or_default() {
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

/// A file under `new/`. That name goes when it is dropped; the file stays if it was linked.
#[derive(Debug)]
struct Blank {
    file: File,
    path: PathBuf,
    bytes: u64,
}

impl Blank {
    fn reserve(&self) -> io::Result<()> {
        if self.bytes == 0 {
            return Ok(());
        }
        match rustix::fs::fallocate(&self.file, FallocateFlags::empty(), 0, self.bytes) {
            Err(rustix::io::Errno::OPNOTSUPP) => self.fill()?,
            reserved => reserved?,
        }
        self.file.sync_all()
    }

    fn fill(&self) -> io::Result<()> {
        let mut offset = 0;
        while offset < self.bytes {
            let step = (self.bytes - offset).min(ZEROS.len() as u64);
            self.file.write_all_at(&ZEROS[..step as usize], offset)?;
            offset += step;
        }
        Ok(())
    }
}

impl Drop for Blank {
    fn drop(&mut self) {
        remove(&self.path).ok();
    }
}

/// Writes segments. The room of the next one is reserved on the side when this one is half full, so
/// that no commit waits for it.
#[derive(Debug)]
struct DirectoryAppender {
    directory: Directory,
    spare: Option<JoinHandle<Result<Blank, StorageError>>>,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    file: File,
    path: PathBuf,
    /// Where the next write goes.
    end: u64,
    bytes: u64,
}

impl DirectoryAppender {
    /// A file with this much room: the spare one if it is large enough.
    fn take_blank(&mut self, bytes: u64) -> Result<Blank, StorageError> {
        // A panic of the thread is worth no more than an error: the room is reserved here instead.
        let spare = self.spare.take().and_then(|thread| thread.join().ok()?.ok());
        let spare = spare.filter(|blank| blank.bytes >= bytes && blank.path.exists());
        spare.map_or_else(|| self.directory.blank(bytes.max(self.directory.segment_bytes)), Ok)
    }

    fn reserve_ahead(&mut self) {
        let directory = self.directory.clone();
        let reserve = move || directory.blank(directory.segment_bytes);
        self.spare = thread::Builder::new().name("journal-reserve".into()).spawn(reserve).ok();
    }
}

impl Appender for DirectoryAppender {
    fn start(&mut self, segment: SegmentNumber, content: &[u8]) -> Result<(), StorageError> {
        let blank = self.take_blank(content.len() as u64)?;
        blank.file.write_all_at(content, 0).map_err(unavailable("write", &blank.path))?;
        self.directory.link(&blank, segment)?;
        let file = blank.file.try_clone().map_err(unavailable("open", &blank.path))?;
        let path = self.directory.segment_path(segment);
        self.open = Some(Open { file, path, end: content.len() as u64, bytes: blank.bytes });
        Ok(())
    }

    fn room(&self) -> u64 {
        self.open.as_ref().map_or(0, |open| open.bytes - open.end)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), StorageError> {
        let Some(open) = &mut self.open else {
            return Err(StorageError::Fatal("no segment is open".into()));
        };
        open.file.write_all_at(bytes, open.end).map_err(unavailable("write", &open.path))?;
        open.end += bytes.len() as u64;
        if self.spare.is_none() && self.room() < self.directory.segment_bytes / 2 {
            self.reserve_ahead();
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<(), StorageError> {
        let Some(open) = &self.open else { return Ok(()) };
        open.file.sync_data().map_err(fatal(&open.path))
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
    let folder = File::open(path).map_err(unavailable("open", path))?;
    folder.sync_all().map_err(fatal(path))
}

fn missing_or(
    otherwise: impl FnOnce(io::Error) -> StorageError,
    path: &Path,
) -> impl FnOnce(io::Error) -> StorageError {
    move |error| match error.kind() {
        io::ErrorKind::NotFound => StorageError::Missing(path.display().to_string()),
        _ => otherwise(error),
    }
}

fn unavailable<'a>(doing: &'a str, path: &'a Path) -> impl FnOnce(io::Error) -> StorageError + 'a {
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

fn fatal(path: &Path) -> impl FnOnce(io::Error) -> StorageError + '_ {
    move |error| {
        StorageError::Fatal(format!(
            "cannot sync {}: {error}; the system may have dropped what it could not write, so this \
             process must not go on: look after the disk and start it again",
            path.display()
        ))
    }
}

impl SnapshotName {
    /// Reads `POSITION-SEGMENT`.
    pub(super) fn parse(name: &str) -> Option<Self> {
        let (position, segment) = name.split_once('-')?;
        let (position, segment) = (position.parse().ok()?, segment.parse().ok()?);
        Some(Self { position: Position(position), segment: SegmentNumber(segment) })
    }
}
