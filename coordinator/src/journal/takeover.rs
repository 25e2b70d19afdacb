//! Becoming the writer of a journal: the claim, and the end of what was there. The proof is in the
//! documentation of the module above.

use super::{
    Position, SegmentNumber, Term,
    cursor::{Cursor, Place},
    format::{Header, Link},
    reader::{ReadError, data_segments, header},
    storage::{Entry, Storage, StorageError},
};

/// Claims that may be lost to other writers before a takeover gives up.
const CLAIMS_MAX: usize = 100;

/// Times the end is read again because it was not where it had been. Who is deposed commits once more
/// at most, but may try that for as long as its disk refuses.
const READS_MAX: usize = 100;

/// Why a journal cannot be opened for writing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Somebody with a newer right, or the same, was there first.
    #[error("term {newest} has taken the journal over; term {asked} may not write to it any more")]
    Deposed {
        /// The term that was to begin.
        asked: Term,
        /// The newest one in the journal.
        newest: Term,
    },
    /// Somebody else is taking it over, or writing, all the time.
    #[error(
        "another coordinator keeps writing this journal, {CLAIMS_MAX} attempts to take it over \
         came too late; stop the other one"
    )]
    Contended,
    /// The snapshot is of a journal that was longer.
    #[error(
        "the newest snapshot was taken at record {snapshot}, but the journal ends at record {end}; \
         put back a copy of its newest segments"
    )]
    TailMissing {
        /// Where the snapshot was taken.
        snapshot: Position,
        /// Where the journal ends.
        end: Position,
    },
    /// What is there cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The storage refuses.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// A claim that is made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Claim {
    pub(super) segment: SegmentNumber,
    pub(super) term: Term,
}

/// Begins a term: this one, or the one after the newest. `from` is a number below which there is no
/// need to look.
pub(super) fn claim(
    storage: &dyn Storage,
    asked: Option<Term>,
    writer: u64,
    from: SegmentNumber,
) -> Result<Claim, OpenError> {
    for _ in 0..CLAIMS_MAX {
        let newest = match storage.list(from)?.last() {
            Some(entry) => Some(header(storage, entry.segment)?),
            None => None,
        };
        let (last, term) = newest.map_or_else(Default::default, |one| (one.segment, one.term));
        let segment = SegmentNumber(last.0 + 1);
        let term = match asked {
            Some(asked) if asked <= term => return Err(OpenError::Deposed { asked, newest: term }),
            Some(asked) => asked,
            None => Term(term.0 + 1),
        };
        let header = Header { segment, term, writer, first: Position(0), previous: None };
        match storage.claim(segment, &header.encode()) {
            Ok(()) if storage.list(SegmentNumber(segment.0 + 1))?.is_empty() => {
                return Ok(Claim { segment, term });
            }
            Ok(()) | Err(StorageError::Exists(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(OpenError::Contended)
}

/// What is before a claim.
#[derive(Debug)]
pub(super) struct Found {
    /// The segments with records, in order.
    pub(super) segments: Vec<Entry>,
    /// Where the last one ends; `None` if there is none.
    pub(super) end: Option<Link>,
    /// Position of the next record.
    pub(super) next: Position,
}

/// Finds the end of what earlier terms wrote, and makes it durable.
pub(super) fn find(
    storage: &dyn Storage,
    from: SegmentNumber,
    claim: Claim,
) -> Result<Found, OpenError> {
    let mut segments = data_segments(storage, from)?;
    segments.retain(|entry| entry.segment < claim.segment);
    let Some(last) = segments.last().copied() else {
        return Ok(Found { segments, end: None, next: Position(0) });
    };
    // Before reading, so that what is read is what the disk has.
    storage.settle(last.segment)?;
    let mut cursor = Cursor::open(storage, last)?;
    let mut before_last = read_to_end(storage, &mut cursor)?;
    for _ in 0..READS_MAX {
        // And after it, because a leader that does not know yet that it is deposed may have written in
        // between. Its sync may have failed, too: then the group is not on the disk, and does not count.
        let found = cursor.place();
        storage.settle(last.segment)?;
        if let Some(before_last) = before_last {
            cursor.return_to(before_last);
        }
        before_last = read_to_end(storage, &mut cursor)?.or(before_last);
        if cursor.place() == found {
            let end = Some(Link { segment: last.segment, end: cursor.offset });
            return Ok(Found { segments, end, next: cursor.position });
        }
    }
    Err(OpenError::Contended)
}

/// Returns the place before the last group, if there was one more.
fn read_to_end(storage: &dyn Storage, cursor: &mut Cursor) -> Result<Option<Place>, ReadError> {
    let end = (!storage.grows()).then_some(cursor.entry.bytes);
    let mut before_last = None;
    loop {
        let place = cursor.place();
        if cursor.next_group(storage, end)?.is_none() {
            return Ok(before_last);
        }
        before_last = Some(place);
    }
}
