//! Reads one segment, group by group, and knows where it ends.

use std::ops::Range;

use memchr::memmem;

use super::{
    Position,
    format::{
        Frame, GROUP_HEADER_BYTES, GROUP_MAGIC, GroupHeader, HEADER_BYTES, Header, parse_frames,
    },
    reader::ReadError,
    storage::{Entry, Storage},
};

/// Bytes that are read at once, unless a group needs more.
pub(super) const READ_BYTES: usize = 4 << 20;

/// A place between two groups of a segment.
#[derive(Debug)]
pub(super) struct Cursor {
    pub(super) entry: Entry,
    pub(super) header: Header,
    /// Where the next group begins.
    pub(super) offset: u64,
    /// Position of the next record.
    pub(super) position: Position,
    salt: u32,
    /// Bytes of the segment from `buffer_at` on.
    buffer: Vec<u8>,
    buffer_at: u64,
}

/// Where the next group begins, and the position of its first record.
pub(super) type Place = (u64, Position);

/// A group that is whole.
#[derive(Debug)]
pub(super) struct Group {
    /// Position of its first record.
    pub(super) first: Position,
    /// Where its frames begin in the segment.
    pub(super) offset: u64,
    pub(super) frames: Vec<Frame>,
}

impl Cursor {
    /// At the first group of a segment, of which `start` are the first bytes.
    pub(super) fn new(
        storage: &dyn Storage,
        entry: Entry,
        start: Vec<u8>,
    ) -> Result<Self, ReadError> {
        let damaged = |what: String| ReadError::damaged(storage, entry.segment, 0, what);
        let header = Header::parse(&start).map_err(|error| damaged(error.to_string()))?;
        if header.segment != entry.segment {
            return Err(damaged(format!("it says that it is segment {}", header.segment)));
        }
        Ok(Self {
            entry,
            header,
            offset: HEADER_BYTES as u64,
            position: header.first,
            salt: header.salt(),
            buffer: start,
            buffer_at: 0,
        })
    }

    /// At the first group of a segment.
    pub(super) fn open(storage: &dyn Storage, entry: Entry) -> Result<Self, ReadError> {
        let starts = storage.read_starts(&[entry.segment], READ_BYTES)?;
        Self::new(storage, entry, starts.into_iter().next().unwrap_or_default())
    }

    /// Where it is.
    pub(super) fn place(&self) -> Place {
        (self.offset, self.position)
    }

    /// Goes back to where it was, to read again what is there now.
    pub(super) fn return_to(&mut self, (offset, position): Place) {
        (self.offset, self.position) = (offset, position);
        self.buffer.clear();
    }

    /// The next group; `None` at the end. Where the end is not known, it is before the first group
    /// that is not whole: one that was being written when its writer died, or is being written now.
    pub(super) fn next_group(
        &mut self,
        storage: &dyn Storage,
        end: Option<u64>,
    ) -> Result<Option<Group>, ReadError> {
        if end == Some(self.offset) {
            return Ok(None);
        }
        if let Some(group) = self.whole_group(storage, end)? {
            return Ok(Some(group));
        }
        // The buffer may have been filled before a group was written here.
        if let Some(group) = self.group_read_again(storage, end)? {
            return Ok(Some(group));
        }
        if end.is_none() && !self.later_group(storage)? {
            return Ok(None);
        }
        // Before the later group was written, this one was whole, if it ever was.
        if let Some(group) = self.group_read_again(storage, end)? {
            return Ok(Some(group));
        }
        let what = format!("record {} or one committed with it is not whole", self.position);
        Err(ReadError::damaged(storage, self.entry.segment, self.offset, what))
    }

    /// Bytes of a group that was just read.
    pub(super) fn bytes(&self, group: &Group, range: Range<usize>) -> &[u8] {
        let start = (group.offset - self.buffer_at) as usize;
        &self.buffer[start + range.start..start + range.end]
    }

    /// The group at `offset`, if it is whole.
    fn whole_group(
        &mut self,
        storage: &dyn Storage,
        end: Option<u64>,
    ) -> Result<Option<Group>, ReadError> {
        let limit = end.unwrap_or(self.entry.bytes);
        let (salt, first) = (self.salt, self.position);
        let bytes = self.load(storage, self.offset, GROUP_HEADER_BYTES, limit)?;
        let header = GroupHeader::parse(bytes, salt).filter(|header| header.first == first);
        let Some(header) = header else { return Ok(None) };
        let offset = self.offset + GROUP_HEADER_BYTES as u64;
        let bytes = self.load(storage, offset, header.bytes as usize, limit)?;
        let Some(frames) = parse_frames(&header, bytes) else { return Ok(None) };
        self.offset = offset + u64::from(header.bytes);
        self.position = Position(first.0 + u64::from(header.records));
        Ok(Some(Group { first, offset, frames }))
    }

    fn group_read_again(
        &mut self,
        storage: &dyn Storage,
        end: Option<u64>,
    ) -> Result<Option<Group>, ReadError> {
        self.buffer.clear();
        self.whole_group(storage, end)
    }

    /// `length` bytes from `offset` on, or fewer if the segment or `limit` is nearer.
    fn load(
        &mut self,
        storage: &dyn Storage,
        offset: u64,
        length: usize,
        limit: u64,
    ) -> Result<&[u8], ReadError> {
        let length = limit.saturating_sub(offset).min(length as u64) as usize;
        let buffered = self.buffer_at + self.buffer.len() as u64;
        if offset < self.buffer_at || offset + length as u64 > buffered {
            let room = limit.saturating_sub(offset).min(READ_BYTES as u64) as usize;
            self.buffer.resize(room.max(length), 0);
            let filled = storage.read(self.entry.segment, offset, &mut self.buffer);
            self.buffer.truncate(*filled.as_ref().unwrap_or(&0));
            self.buffer_at = offset;
            filled?;
        }
        let start = (offset - self.buffer_at) as usize;
        let rest = self.buffer.get(start..).unwrap_or_default();
        Ok(&rest[..length.min(rest.len())])
    }

    /// Whether a group of later records stands behind `offset`. A writer starts a group only after
    /// the one before is durable, so then a group that is not whole here was damaged afterwards.
    fn later_group(&self, storage: &dyn Storage) -> Result<bool, ReadError> {
        let mut offset = self.offset + 1;
        let mut buffer = vec![0; READ_BYTES];
        loop {
            let filled = storage.read(self.entry.segment, offset, &mut buffer)?;
            let bytes = &buffer[..filled];
            let later = |start: usize| {
                let header = GroupHeader::parse(&bytes[start..], self.salt);
                header.is_some_and(|header| header.first > self.position)
            };
            if memmem::find_iter(bytes, &GROUP_MAGIC).any(later) {
                return Ok(true);
            }
            if filled < buffer.len() {
                return Ok(false);
            }
            // A header may lie across the end of the buffer.
            offset += (filled - GROUP_HEADER_BYTES) as u64;
        }
    }
}
