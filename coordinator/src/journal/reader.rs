//! Reads a journal, also while somebody writes it.
//!
//! What a reader gets has been written, but near the end not necessarily acknowledged yet: the
//! newest group may still be on its way to the disk. Who must not act on more than what is durable
//! asks the writer how far that is.

use std::sync::Arc;

use bytes::Bytes;

use super::{
    Location, Position, SegmentNumber,
    format::{Frame, HEADER_BYTES, Header},
    records::Records,
    snapshot::Snapshot,
    storage::{Entry, Storage, StorageError},
};

/// Why a journal cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// Bytes that were acknowledged are not what they were.
    #[error(
        "{name} is damaged at byte {offset}: {what}; put back a copy of it, or start a new run"
    )]
    Damaged {
        /// The file or object.
        name: String,
        /// Where.
        offset: u64,
        /// What is wrong.
        what: String,
    },
    /// A segment between others is gone.
    #[error("{name} is missing; put back a copy of it, or start a new run")]
    Gap {
        /// The file or object.
        name: String,
    },
    /// Records that retention has deleted.
    #[error("record {asked} of the journal was forgotten; the oldest one kept is {oldest}")]
    Forgotten {
        /// What was asked for.
        asked: Position,
        /// The first that is there.
        oldest: Position,
    },
    /// A new leader cut the tail off after it had been read. It was never acknowledged.
    #[error("the journal was cut back to record {0} while it was read; read it again")]
    CutBack(Position),
    /// The storage refuses.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl ReadError {
    pub(super) fn damaged(
        storage: &dyn Storage,
        segment: SegmentNumber,
        offset: u64,
        what: String,
    ) -> Self {
        Self::Damaged { name: storage.name(segment), offset, what }
    }
}

/// Reads a journal without being its writer. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Reader {
    storage: Arc<dyn Storage>,
}

impl Reader {
    /// Reads what is in this storage.
    #[must_use]
    pub fn open(storage: Arc<dyn Storage>) -> Self {
        Self { storage }
    }

    /// The records from `position` on, in order, up to what has been written when the iterator gets
    /// there.
    ///
    /// # Errors
    /// The storage cannot be read, or `position` was forgotten.
    pub fn records_from(&self, position: Position) -> Result<Records, ReadError> {
        let mut entries = data_segments(&*self.storage, SegmentNumber(0))?;
        let start = first_with(&*self.storage, &entries, position)?;
        entries.drain(..start);
        Records::new(Arc::clone(&self.storage), entries.into(), position, None)
    }

    /// The payload of a record.
    ///
    /// # Errors
    /// It was forgotten or is damaged, or the storage cannot be read.
    pub fn payload(&self, location: &Location) -> Result<Bytes, ReadError> {
        let Location { position, segment, offset, head_bytes, payload_bytes } = *location;
        let expected = Frame { offset: 0, head_bytes, payload_bytes };
        let what = || format!("record {position} is not whole");
        let damaged = || ReadError::damaged(&*self.storage, segment, offset, what());
        if !expected.is_bounded() {
            return Err(damaged());
        }
        let mut bytes = vec![0; expected.end()];
        let filled = self.storage.read(segment, offset, &mut bytes)?;
        bytes.truncate(filled);
        let frame = Frame::parse(&bytes, 0, position);
        let frame = frame.filter(|frame| *frame == expected).ok_or_else(damaged)?;
        Ok(Bytes::from(bytes).slice(frame.payload()))
    }

    /// The newest snapshot that is whole.
    ///
    /// # Errors
    /// The storage cannot be read.
    pub fn snapshot(&self) -> Result<Option<Snapshot>, ReadError> {
        Ok(Snapshot::newest(&*self.storage)?.map(|(_, snapshot)| snapshot))
    }
}

/// Segments that hold records. A claim has nothing but its header.
pub(super) fn data_segments(
    storage: &dyn Storage,
    from: SegmentNumber,
) -> Result<Vec<Entry>, StorageError> {
    let mut entries = storage.list(from)?;
    entries.retain(|entry| entry.bytes > HEADER_BYTES as u64);
    Ok(entries)
}

/// What a segment says about itself.
pub(super) fn header(storage: &dyn Storage, segment: SegmentNumber) -> Result<Header, ReadError> {
    let mut bytes = [0; HEADER_BYTES];
    let filled = storage.read(segment, 0, &mut bytes)?;
    Header::parse(&bytes[..filled])
        .map_err(|error| ReadError::damaged(storage, segment, 0, error.to_string()))
}

/// Index of the last segment that begins at or before `position`, else of the first.
fn first_with(
    storage: &dyn Storage,
    entries: &[Entry],
    position: Position,
) -> Result<usize, ReadError> {
    let (mut low, mut high) = (0, entries.len());
    while high - low > 1 {
        let middle = low.midpoint(high);
        if header(storage, entries[middle].segment)?.first <= position {
            low = middle;
        } else {
            high = middle;
        }
    }
    Ok(low)
}
