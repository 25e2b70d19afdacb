//! The segment that is being written, and the next one.

use std::{
    fs::File,
    os::unix::fs::FileExt as _,
    path::PathBuf,
    thread::{self, JoinHandle},
};

use super::{
    Appender, Directory, SegmentNumber, StorageError,
    blank::Blank,
    refusal::{fatal, unavailable},
};

/// Writes segments. The room of the next one is reserved on the side when this one is half full, so
/// that no commit waits for it.
#[derive(Debug)]
pub(super) struct DirectoryAppender {
    directory: Directory,
    spare: Option<JoinHandle<Result<Blank, StorageError>>>,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    segment: SegmentNumber,
    file: File,
    path: PathBuf,
    /// Where the next write goes.
    end: u64,
    bytes: u64,
}

impl DirectoryAppender {
    pub(super) fn new(directory: Directory) -> Self {
        Self { directory, spare: None, open: None }
    }

    /// A file with this much room: the spare one if it is large enough.
    fn take_blank(&mut self, segment: SegmentNumber, bytes: u64) -> Result<Blank, StorageError> {
        // A panic of the thread is worth no more than an error: the room is reserved here instead.
        let spare = self.spare.take().and_then(|thread| thread.join().ok()?.ok());
        let spare = spare.filter(|blank| blank.bytes >= bytes && blank.path.exists());
        let bytes = bytes.max(self.directory.segment_bytes);
        spare.map_or_else(|| self.directory.blank(segment, bytes), Ok)
    }

    fn reserve_ahead(&mut self, segment: SegmentNumber) {
        let directory = self.directory.clone();
        let reserve = move || directory.blank(segment, directory.segment_bytes);
        self.spare = thread::Builder::new().name("journal-reserve".into()).spawn(reserve).ok();
    }
}

impl Appender for DirectoryAppender {
    fn start(&mut self, segment: SegmentNumber, content: &[u8]) -> Result<(), StorageError> {
        let blank = self.take_blank(segment, content.len() as u64)?;
        blank.file.write_all_at(content, 0).map_err(unavailable("write", &blank.path))?;
        let file = blank.file.try_clone().map_err(unavailable("open", &blank.path))?;
        self.directory.link(&blank, segment)?;
        let path = self.directory.segment_path(segment);
        self.open =
            Some(Open { segment, file, path, end: content.len() as u64, bytes: blank.bytes });
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
        let next = SegmentNumber(open.segment.0 + 1);
        if self.spare.is_none() && self.room() < self.directory.segment_bytes / 2 {
            self.reserve_ahead(next);
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<(), StorageError> {
        let Some(open) = &self.open else { return Ok(()) };
        open.file.sync_data().map_err(fatal(&open.path))
    }
}
