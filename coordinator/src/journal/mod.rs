//! The journal's storage: records in order, durable when acknowledged, one writer at a time.
//!
//! Owns: how records become bytes, where they lie, that they survive, that a deposed leader appends
//! nothing. Does not know: what a record means.
//!
//! A journal is a row of numbered *segments* ([`mod@format`] has their bytes). In a directory a segment
//! is a file that takes many commits, in an object store it is one commit. Two kinds:
//!
//! - a **claim** has nothing but a header: with it a leadership begins;
//! - a **data segment** has records, and its header says which segment has the records before and at
//!   which byte those end. The data segments in the order of their numbers are the journal.
//!
//! # One writer at a time (L1)
//!
//! A segment is made with *put-if-absent*: of all who make one of a number, one succeeds. Numbers
//! are taken in order. No clock is asked and no lock is held; who wants to lead does this
//! ([`Journal::open`]):
//!
//! 1. find the newest segment, and give up if its term is not older;
//! 2. make a claim of the next number. If it is taken by then, start again;
//! 3. list again. If there is a segment behind the claim, the view of step 1 was stale: start again;
//! 4. *then* find the end of the last data segment before the claim, reading it up to the first group
//!    that is not whole, and make durable what was read;
//! 5. the first data segment of the new term names that end. Whatever stands behind it, no reader sees.
//!
//! A writer in segment N starts segment N + 1 when N is full, and acknowledges a commit in N only
//! after it is durable *and then* there still is no segment N + 1.
//!
//! *Nothing acknowledged is lost.* Let the old leader acknowledge a group in N. When it looked, there
//! was no N + 1; the group was in N before that. The claim of the new leader has a number above N (step
//! 1 found N or something newer), so it was made later than the look: either it is N + 1, or N + 1 was
//! made before it by somebody else, also after the look. Step 4 reads after the claim is made, so it
//! finds the group whole. If the group is the first one of its segment the same holds, because the
//! segment came into being together with the group.
//!
//! *A deposed leader acknowledges nothing.* Once N + 1 exists, every look of the old leader finds it,
//! and starting N + 1 fails. It needs both to be true for ever: that is why retention never deletes a
//! claim. Only claims have to stay: the number after an old leader's last segment was taken by the
//! claim of whoever deposed it.
//!
//! *Two new leaders.* Both make claims, of different numbers. The one with the lower number is deposed
//! before it started: its first data segment would have to have the number of the other's claim, or
//! the other finds it before its own claim and reads it. A claimer with a stale view may make a claim
//! where retention has deleted a segment; it learns so in step 3, because the newest data segment is
//! never deleted.
//!
//! # Torn tails and damage
//!
//! A group is written only after the one before is durable. So where a segment is not whole, either
//! nothing of a later group follows: then the writer died in the middle, nothing of it was
//! acknowledged, and the journal ends there. Or something does: then acknowledged bytes have changed,
//! and nobody goes on silently. Before a known end everything has to be whole. (The last group of a
//! leader that was killed is the one place where a later change cannot be told from a torn write;
//! one that ends in order closes its segment with an empty group.)

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

mod appending;
mod cursor;
mod directory;
pub mod format;
mod intake;
mod objects;
mod places;
mod reader;
mod records;
mod snapshot;
mod storage;
mod takeover;
mod writer;

pub use appending::{AppendError, Journal, Opened};
pub use directory::{Directory, SEGMENT_BYTES};
pub use intake::{INTAKE_BYTES_MAX, INTAKE_RECORDS_MAX, Intake, Permit};
pub use objects::Objects;
pub use reader::{ReadError, Reader};
pub use records::Records;
pub use snapshot::Snapshot;
pub use storage::{Appender, Entry, SnapshotName, Storage, StorageError};
pub use takeover::OpenError;
pub use writer::{Append, COMMIT_BYTES_MAX, COMMIT_RECORDS_MAX, Outcome, Request, Writer, spawn};

/// Place of a record in the run's journal: from 0, without gaps.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Position(pub u64);

/// Number of a leadership; it only grows.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Term(pub u64);

/// Number of a segment, from 1, in the order they are made.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct SegmentNumber(pub u64);

/// What is appended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// What a start reads of every record: small.
    pub head: Bytes,
    /// What a start only checks, and who needs it fetches: large, or empty.
    pub payload: Bytes,
}

/// Where a record lies. Good for as long as the record is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Location {
    /// Its position.
    pub position: Position,
    /// Its segment.
    pub segment: SegmentNumber,
    /// Offset of its frame in the segment.
    pub offset: u64,
    /// Bytes of its head.
    pub head_bytes: u32,
    /// Bytes of its payload.
    pub payload_bytes: u32,
}

/// What is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Place of the record.
    pub position: Position,
    /// Leadership that wrote it.
    pub term: Term,
    /// Its head.
    pub head: Bytes,
    /// Where to fetch its payload.
    pub payload: Location,
}

impl fmt::Display for Position {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

impl fmt::Display for Term {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

impl fmt::Display for SegmentNumber {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// A number that nobody else has. It decides nothing: it only tells writers and their files apart.
pub(crate) fn random() -> u64 {
    let mut bytes = [0; 8];
    let filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    debug_assert_eq!(filled, Ok(bytes.len()), "the kernel always has eight random bytes");
    u64::from_ne_bytes(bytes)
}

#[cfg(test)]
mod tests;
