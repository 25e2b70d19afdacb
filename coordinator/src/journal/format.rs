//! The bytes of a segment: a header, then groups of records.
//!
//! ```text
//! segment = header group*
//! header  = magic[8] version:u32 segment:u64 term:u64 writer:u64 first:u64
//!           previous:u64 previous_end:u64 crc:u32
//! group   = magic:u32 records:u32 first:u64 bytes:u32 crc:u32 frame{records}
//! frame   = crc:u32 head_bytes:u32 payload_bytes:u32 head payload
//! ```
//!
//! All numbers are little-endian. A group is what one commit wrote, and counts as a whole or not at
//! all. Its checksum is salted with the checksum of the segment's header and that of a frame with the
//! record's position, so bytes of another segment, or a payload that holds a copy of a journal, are
//! never taken for a group of this one.
//!
//! Everything here is pure, and no input makes it panic.

use std::ops::Range;

use ballast_proto::MESSAGE_BYTES_MAX;
use bytes::{Buf as _, BufMut as _};
use crc32c::{crc32c, crc32c_append};

use super::{Position, Record, SegmentNumber, Term};

/// Bytes of a segment's header.
pub const HEADER_BYTES: usize = 64;
/// Bytes in front of a group's frames.
pub const GROUP_HEADER_BYTES: usize = 24;
/// Bytes in front of a record's head and payload.
pub const FRAME_HEADER_BYTES: usize = 12;
/// Largest head. Heads are messages of ours: the ids of a batch, a decision in words.
pub const HEAD_BYTES_MAX: usize = 16 << 20;
/// Largest payload: no message is larger, so no trajectory is.
pub const PAYLOAD_BYTES_MAX: usize = MESSAGE_BYTES_MAX;
/// Largest group, without its header. Bounds what a reader allocates; the largest record fits.
pub const GROUP_BYTES_MAX: usize = 96 << 20;

const MAGIC: &[u8; 8] = b"BALLASTJ";
const FORMAT_VERSION: u32 = 2;
/// First bytes of a group.
pub const GROUP_MAGIC: [u8; 4] = *b"BLGR";
const CHECKSUM_BYTES: usize = 4;

const _: () = assert!(FRAME_HEADER_BYTES + HEAD_BYTES_MAX + PAYLOAD_BYTES_MAX <= GROUP_BYTES_MAX);

/// Where the records of a segment end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// The segment.
    pub segment: SegmentNumber,
    /// Offset of the first byte that does not count any more.
    pub end: u64,
}

/// What a segment says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Its own number.
    pub segment: SegmentNumber,
    /// Leadership that wrote it.
    pub term: Term,
    /// Random number of the writer, so that two writers never make the same bytes.
    pub writer: u64,
    /// Position of its first record.
    pub first: Position,
    /// The segment with the records before these, and where it ends. `None` in the first one.
    pub previous: Option<Link>,
}

/// Why bytes are no header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Something else, or nothing whole.
    #[error("it does not begin like a segment of a journal")]
    Foreign,
    /// Another version.
    #[error("its format has version {0}, this program reads version {FORMAT_VERSION}")]
    Version(u32),
    /// The checksum is wrong.
    #[error("the checksum of its header is wrong")]
    Checksum,
}

impl Header {
    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_BYTES);
        let previous = self.previous.unwrap_or(Link { segment: SegmentNumber(0), end: 0 });
        bytes.put_slice(MAGIC);
        bytes.put_u32_le(FORMAT_VERSION);
        bytes.put_u64_le(self.segment.0);
        bytes.put_u64_le(self.term.0);
        bytes.put_u64_le(self.writer);
        bytes.put_u64_le(self.first.0);
        bytes.put_u64_le(previous.segment.0);
        bytes.put_u64_le(previous.end);
        bytes.put_u32_le(crc32c(&bytes));
        bytes
    }

    /// Reads the header at the start of `bytes`.
    ///
    /// # Errors
    /// There is none, or none that this version reads.
    pub fn parse(bytes: &[u8]) -> Result<Self, HeaderError> {
        let bytes = bytes.get(..HEADER_BYTES).ok_or(HeaderError::Foreign)?;
        let (fields, mut checksum) = bytes.split_at(HEADER_BYTES - CHECKSUM_BYTES);
        let mut fields = fields.strip_prefix(MAGIC).ok_or(HeaderError::Foreign)?;
        let version = fields.get_u32_le();
        if version != FORMAT_VERSION {
            return Err(HeaderError::Version(version));
        }
        if checksum.get_u32_le() != crc32c(&bytes[..HEADER_BYTES - CHECKSUM_BYTES]) {
            return Err(HeaderError::Checksum);
        }
        let mut next = || fields.get_u64_le();
        let (segment, term, writer) = (SegmentNumber(next()), Term(next()), next());
        let first = Position(next());
        let previous = Link { segment: SegmentNumber(next()), end: next() };
        let previous = (previous.segment.0 != 0).then_some(previous);
        Ok(Self { segment, term, writer, first, previous })
    }

    /// What the checksums of this segment's groups start with.
    #[must_use]
    pub fn salt(&self) -> u32 {
        crc32c(&self.encode())
    }
}

/// What is in front of a group's frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupHeader {
    /// Position of its first record.
    pub first: Position,
    /// How many records it has.
    pub records: u32,
    /// Bytes of their frames.
    pub bytes: u32,
}

impl GroupHeader {
    /// Reads the group header at the start of `bytes`, if there is a whole one of this segment.
    #[must_use]
    pub fn parse(bytes: &[u8], salt: u32) -> Option<Self> {
        let bytes = bytes.get(..GROUP_HEADER_BYTES)?;
        let (fields, mut checksum) = bytes.split_at(GROUP_HEADER_BYTES - CHECKSUM_BYTES);
        if checksum.get_u32_le() != crc32c_append(salt, fields) {
            return None;
        }
        let mut fields = fields.strip_prefix(&GROUP_MAGIC)?;
        let records = fields.get_u32_le();
        let (first, bytes) = (Position(fields.get_u64_le()), fields.get_u32_le());
        let whole = bytes as usize <= GROUP_BYTES_MAX
            && records as usize <= bytes as usize / FRAME_HEADER_BYTES
            && first.0.checked_add(records.into()).is_some();
        whole.then_some(Self { first, records, bytes })
    }
}

/// A record's place in the bytes of its group's frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Where the frame begins.
    pub offset: usize,
    /// Bytes of the head.
    pub head_bytes: u32,
    /// Bytes of the payload.
    pub payload_bytes: u32,
}

impl Frame {
    /// Reads the frame at `offset`, if there is a whole one of the record at this position.
    #[must_use]
    pub fn parse(bytes: &[u8], offset: usize, position: Position) -> Option<Self> {
        let mut fields = bytes.get(offset..)?.get(..FRAME_HEADER_BYTES)?;
        let (checksum, head_bytes) = (fields.get_u32_le(), fields.get_u32_le());
        let frame = Self { offset, head_bytes, payload_bytes: fields.get_u32_le() };
        let fits = frame.is_bounded() && frame.end() <= bytes.len();
        let covered = || &bytes[offset + CHECKSUM_BYTES..frame.end()];
        (fits && checksum == crc32c_append(seed(position), covered())).then_some(frame)
    }

    /// Whether a record can be this large.
    #[must_use]
    pub fn is_bounded(&self) -> bool {
        self.head_bytes as usize <= HEAD_BYTES_MAX
            && self.payload_bytes as usize <= PAYLOAD_BYTES_MAX
    }

    /// The head.
    #[must_use]
    pub fn head(&self) -> Range<usize> {
        let start = self.offset + FRAME_HEADER_BYTES;
        start..start + self.head_bytes as usize
    }

    /// The payload.
    #[must_use]
    pub fn payload(&self) -> Range<usize> {
        let start = self.head().end;
        start..start + self.payload_bytes as usize
    }

    /// Where the next frame begins.
    #[must_use]
    pub fn end(&self) -> usize {
        self.payload().end
    }
}

/// The frames of a group, if all of them are whole.
#[must_use]
pub fn parse_frames(header: &GroupHeader, bytes: &[u8]) -> Option<Vec<Frame>> {
    let mut frames = Vec::with_capacity(header.records as usize);
    let mut offset = 0;
    for index in 0..u64::from(header.records) {
        let frame = Frame::parse(bytes, offset, Position(header.first.0 + index))?;
        offset = frame.end();
        frames.push(frame);
    }
    (offset == bytes.len()).then_some(frames)
}

/// Bytes of a record's frame.
#[must_use]
pub fn frame_bytes(record: &Record) -> usize {
    FRAME_HEADER_BYTES + record.head.len() + record.payload.len()
}

/// Adds a group. The caller has checked the sizes against the bounds above.
pub fn encode_group(buffer: &mut Vec<u8>, salt: u32, first: Position, records: &[Record]) {
    let bytes: usize = records.iter().map(frame_bytes).sum();
    buffer.reserve(GROUP_HEADER_BYTES + bytes);
    let start = buffer.len();
    buffer.put_slice(&GROUP_MAGIC);
    buffer.put_u32_le(records.len() as u32);
    buffer.put_u64_le(first.0);
    buffer.put_u32_le(bytes as u32);
    buffer.put_u32_le(crc32c_append(salt, &buffer[start..]));
    for (record, position) in records.iter().zip(first.0..) {
        encode_frame(buffer, record, Position(position));
    }
}

fn encode_frame(buffer: &mut Vec<u8>, record: &Record, position: Position) {
    let start = buffer.len();
    buffer.put_u32_le(0);
    buffer.put_u32_le(record.head.len() as u32);
    buffer.put_u32_le(record.payload.len() as u32);
    buffer.put_slice(&record.head);
    buffer.put_slice(&record.payload);
    let checksum = crc32c_append(seed(position), &buffer[start + CHECKSUM_BYTES..]);
    buffer[start..start + CHECKSUM_BYTES].copy_from_slice(&checksum.to_le_bytes());
}

/// What a frame's checksum starts with.
fn seed(position: Position) -> u32 {
    (position.0 ^ (position.0 >> 32)) as u32
}

#[cfg(test)]
#[path = "format_test.rs"]
mod tests;
