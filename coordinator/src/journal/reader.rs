//! Reads a journal, also while somebody writes it.
//!
//! What a reader gets has been written, but near the end not necessarily acknowledged yet: the
//! newest group may still be on its way to the disk. Who must not act on more than what is durable
//! asks the writer how far that is.

use std::{collections::VecDeque, ops::Range, sync::Arc};

use bytes::Bytes;

use super::{
    Location, Position, SegmentNumber, Stored,
    cursor::{Cursor, Group, READ_BYTES},
    format::{Frame, HEADER_BYTES, Header, Link},
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
        let entries = data_segments(&*self.storage, SegmentNumber(0))?;
        let start = first_with(&*self.storage, &entries, position)?;
        Records::new(Arc::clone(&self.storage), entries[start..].to_vec().into(), position, None)
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

/// The records of a journal, in order. After an error there is nothing more.
#[derive(Debug)]
pub struct Records {
    storage: Arc<dyn Storage>,
    /// Records before this one are passed over.
    from: Position,
    /// Where to end, if that is known.
    until: Option<Link>,
    current: Option<Cursor>,
    /// Segments after the current one whose first bytes have been read.
    opened: VecDeque<Cursor>,
    /// Segments after those.
    listed: VecDeque<Entry>,
    /// The group that is being handed out, and how much of it has been.
    group: Option<(Group, usize)>,
    failed: bool,
}

impl Records {
    /// Records of these segments, and of those after the last one unless it says where to end.
    pub(super) fn new(
        storage: Arc<dyn Storage>,
        listed: VecDeque<Entry>,
        from: Position,
        until: Option<Link>,
    ) -> Result<Self, ReadError> {
        let (opened, current, group) = (VecDeque::new(), None, None);
        let mut records =
            Self { storage, from, until, current, opened, listed, group, failed: false };
        records.open_ahead()?;
        records.current = records.opened.pop_front();
        let oldest = records.current.as_ref().map(|cursor| cursor.header.first);
        match oldest {
            Some(oldest) if from < oldest => Err(ReadError::Forgotten { asked: from, oldest }),
            _ => Ok(records),
        }
    }

    /// The next record with its payload, for who would ask for every payload anyway.
    pub fn next_with_payload(&mut self) -> Option<Result<(Stored, Bytes), ReadError>> {
        let next = self.next_place().transpose()?;
        Some(next.map(|(stored, payload)| (stored, Bytes::copy_from_slice(self.bytes(payload)))))
    }

    /// The next record, and where its payload is in the group at hand.
    fn next_place(&mut self) -> Result<Option<(Stored, Range<usize>)>, ReadError> {
        if self.failed {
            return Ok(None);
        }
        self.failed = true;
        let place = loop {
            match self.next_in_group() {
                Some((stored, _)) if stored.payload.position < self.from => {}
                Some(place) => break Some(place),
                None if self.next_group()? => {}
                None => break None,
            }
        };
        self.failed = false;
        Ok(place)
    }

    fn next_in_group(&mut self) -> Option<(Stored, Range<usize>)> {
        let (current, (group, taken)) = (self.current.as_ref()?, self.group.as_mut()?);
        let frame = group.frames.get(*taken)?;
        let position = Position(group.first.0 + *taken as u64);
        *taken += 1;
        let payload = Location {
            position,
            segment: current.entry.segment,
            offset: group.offset + frame.offset as u64,
            head_bytes: frame.head_bytes,
            payload_bytes: frame.payload_bytes,
        };
        let head = Bytes::copy_from_slice(current.bytes(group, frame.head()));
        let (term, place) = (current.header.term, frame.payload());
        Some((Stored { position, term, head, payload }, place))
    }

    fn bytes(&self, range: Range<usize>) -> &[u8] {
        let at_hand = self.current.as_ref().zip(self.group.as_ref());
        at_hand.map_or(&[], |(cursor, (group, _))| cursor.bytes(group, range))
    }

    /// Reads a group; false at the end of the journal.
    fn next_group(&mut self) -> Result<bool, ReadError> {
        self.group = None;
        loop {
            self.open_ahead()?;
            let end = self.end()?;
            let Some(current) = &mut self.current else { return Ok(false) };
            if let Some(group) = current.next_group(&*self.storage, end)? {
                self.group = Some((group, 0));
                return Ok(true);
            }
            if let Some(next) = self.opened.pop_front() {
                if next.header.first != current.position {
                    let what = format!("it does not go on with record {}", current.position);
                    let segment = next.entry.segment;
                    return Err(ReadError::damaged(&*self.storage, segment, 0, what));
                }
                self.current = Some(next);
            } else if self.until.is_some() || !self.look_further()? {
                return Ok(false);
            }
        }
    }

    /// Where the current segment ends: as the next one says, or else as far as it is whole.
    fn end(&self) -> Result<Option<u64>, ReadError> {
        let Some(current) = &self.current else { return Ok(None) };
        let Some(next) = self.opened.front() else {
            let whole = (!self.storage.grows()).then_some(current.entry.bytes);
            return Ok(self.until.map(|link| link.end).or(whole));
        };
        match next.header.previous {
            Some(link) if link.segment == current.entry.segment && link.end < current.offset => {
                Err(ReadError::CutBack(next.header.first))
            }
            Some(link) if link.segment == current.entry.segment => Ok(Some(link.end)),
            Some(link) => Err(ReadError::Gap { name: self.storage.name(link.segment) }),
            None => {
                let what = "it says that no segment is before it".to_owned();
                Err(ReadError::damaged(&*self.storage, next.entry.segment, 0, what))
            }
        }
    }

    /// Opens the next segments, if none is open.
    fn open_ahead(&mut self) -> Result<(), ReadError> {
        if !self.opened.is_empty() || self.listed.is_empty() {
            return Ok(());
        }
        let count = self.storage.read_ahead().min(self.listed.len());
        let entries: Vec<_> = self.listed.drain(..count).collect();
        let numbers: Vec<_> = entries.iter().map(|entry| entry.segment).collect();
        let starts = self.storage.read_starts(&numbers, READ_BYTES)?;
        for (entry, start) in entries.into_iter().zip(starts) {
            self.opened.push_back(Cursor::new(&*self.storage, entry, start)?);
        }
        Ok(())
    }

    /// Looks for segments that were not there when this one was listed.
    fn look_further(&mut self) -> Result<bool, ReadError> {
        let Some(current) = &self.current else { return Ok(false) };
        let after = SegmentNumber(current.entry.segment.0 + 1);
        self.listed = data_segments(&*self.storage, after)?.into();
        Ok(!self.listed.is_empty())
    }
}

impl Iterator for Records {
    type Item = Result<Stored, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        Some(self.next_place().transpose()?.map(|(stored, _)| stored))
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
