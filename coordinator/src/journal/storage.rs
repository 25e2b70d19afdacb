//! What the journal asks of a place that keeps bytes. The protocol is the journal's; a storage only
//! does the single steps.

use std::fmt;

use super::{Position, SegmentNumber};

/// A segment that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its number.
    pub segment: SegmentNumber,
    /// Its size, with what is preallocated: a segment may shrink, but not grow.
    pub bytes: u64,
}

/// The name of a snapshot says where to go on after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SnapshotName {
    /// First record that is not in it.
    pub position: Position,
    /// A segment in or before which there is no need to look for that record.
    pub segment: SegmentNumber,
}

impl SnapshotName {
    /// Reads `POSITION-SEGMENT`.
    pub(super) fn parse(name: &str) -> Option<Self> {
        let (position, segment) = name.split_once('-')?;
        let (position, segment) = (position.parse().ok()?, segment.parse().ok()?);
        Some(Self { position: Position(position), segment: SegmentNumber(segment) })
    }
}

/// Why a storage did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StorageError {
    /// Somebody else has made this segment.
    #[error("{0} is there already")]
    Exists(String),
    /// What was asked for is not there.
    #[error("{0} is not there")]
    Missing(String),
    /// It may work later; what was to be written is not lost. The text has the remedy.
    #[error("{0}")]
    Unavailable(String),
    /// Nothing written since the last success can be trusted.
    #[error("{0}")]
    Fatal(String),
}

/// A place that keeps segments and snapshots. All calls block.
pub trait Storage: fmt::Debug + Send + Sync + 'static {
    /// Whether a segment takes more than it was started with. If not, a segment is always whole.
    fn grows(&self) -> bool;

    /// How to call a segment in a message to a person.
    fn name(&self, segment: SegmentNumber) -> String;

    /// The segments from this number on, in ascending order. Sees everything that was there when the
    /// call began.
    ///
    /// # Errors
    /// The storage cannot be reached.
    fn list(&self, from: SegmentNumber) -> Result<Vec<Entry>, StorageError>;

    /// Whether there is a segment of this number.
    ///
    /// # Errors
    /// The storage cannot be reached.
    fn exists(&self, segment: SegmentNumber) -> Result<bool, StorageError>;

    /// Fills `buffer` from this offset on. Returns fewer bytes only at the segment's end.
    ///
    /// # Errors
    /// There is no such segment, or it cannot be read.
    fn read(
        &self,
        segment: SegmentNumber,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<usize, StorageError>;

    /// How many segments are best asked for at once by [`Storage::read_starts`].
    fn read_ahead(&self) -> usize {
        1
    }

    /// The first `bytes` bytes of several segments, or all of a shorter one.
    ///
    /// # Errors
    /// As for [`Storage::read`].
    fn read_starts(
        &self,
        segments: &[SegmentNumber],
        bytes: usize,
    ) -> Result<Vec<Vec<u8>>, StorageError> {
        let read = |segment: &SegmentNumber| {
            let mut buffer = vec![0; bytes];
            let filled = self.read(*segment, 0, &mut buffer)?;
            buffer.truncate(filled);
            Ok(buffer)
        };
        segments.iter().map(read).collect()
    }

    /// Makes durable whatever anybody wrote to a segment before this call. Reads that follow see
    /// what the medium has, not what a cache remembers.
    ///
    /// # Errors
    /// The storage fails.
    fn settle(&self, segment: SegmentNumber) -> Result<(), StorageError>;

    /// Makes a small segment that never grows, durable when the call returns; whole or not at all.
    ///
    /// # Errors
    /// [`StorageError::Exists`] if anybody made one of this number before.
    fn claim(&self, segment: SegmentNumber, content: &[u8]) -> Result<(), StorageError>;

    /// A writer of segments.
    fn appender(&self) -> Box<dyn Appender>;

    /// Gives back the room of a segment after `end`.
    ///
    /// # Errors
    /// The storage refuses.
    fn trim(&self, segment: SegmentNumber, end: u64) -> Result<(), StorageError>;

    /// Deletes segments in this order. Those that are gone already are no error.
    ///
    /// # Errors
    /// The storage refuses.
    fn delete(&self, segments: &[SegmentNumber]) -> Result<(), StorageError>;

    /// Removes what writers left behind who wanted to make segments up to this one. Best effort.
    fn sweep(&self, newest: SegmentNumber);

    /// The snapshots, in ascending order.
    ///
    /// # Errors
    /// The storage cannot be reached.
    fn snapshots(&self) -> Result<Vec<SnapshotName>, StorageError>;

    /// The bytes of a snapshot.
    ///
    /// # Errors
    /// There is no such snapshot, or it cannot be read.
    fn read_snapshot(&self, name: SnapshotName) -> Result<Vec<u8>, StorageError>;

    /// Makes or replaces a snapshot, durable when the call returns; whole or not at all.
    ///
    /// # Errors
    /// The storage refuses.
    fn write_snapshot(&self, name: SnapshotName, content: &[u8]) -> Result<(), StorageError>;

    /// Deletes a snapshot.
    ///
    /// # Errors
    /// The storage refuses.
    fn delete_snapshot(&self, name: SnapshotName) -> Result<(), StorageError>;
}

/// The segment that is being written.
pub trait Appender: fmt::Debug + Send {
    /// Makes a segment with this content and goes on in it; durable when the call returns, whole or
    /// not at all. After [`StorageError::Unavailable`] the segment may be there or not; the same call
    /// with the same content finds out.
    ///
    /// # Errors
    /// [`StorageError::Exists`] if somebody else made one of this number before.
    fn start(&mut self, segment: SegmentNumber, content: &[u8]) -> Result<(), StorageError>;

    /// Bytes that the segment still takes.
    fn room(&self) -> u64;

    /// Writes behind what was written. After an error nothing counts as written, and the next call
    /// writes to the same place.
    ///
    /// # Errors
    /// The storage refuses.
    fn write(&mut self, bytes: &[u8]) -> Result<(), StorageError>;

    /// Makes durable what was written.
    ///
    /// # Errors
    /// Always [`StorageError::Fatal`]: the system may have dropped what it could not write, and say
    /// next time that all is well.
    fn sync(&mut self) -> Result<(), StorageError>;
}
