//! How far a journal is final, seen from outside while somebody may be writing it.

use crate::journal::{Position, ReadError, Reader, SegmentNumber, Storage};

/// Looks that may come too late because the writer has gone on to the next segment.
const LOOKS_MAX: usize = 3;

/// The position before which no record will ever be another one, looking at those from `from` on.
///
/// A reader also sees a group that is not durable yet, and one that a deposed leader wrote too late.
/// So this does what a writer does before it acknowledges (see [`crate::journal`]): it makes durable
/// what it has read of the last segment, and *then* looks whether there is a segment of the next number.
/// If not, whoever takes the journal over will find these records, and they stay. If there is, and
/// nothing has been written to it yet, only what lies in the segments before is known to stay.
///
/// # Errors
/// The journal cannot be read.
pub fn sealed(
    storage: &dyn Storage,
    reader: &Reader,
    from: Position,
) -> Result<Position, ReadError> {
    let mut records = reader.records_from(from)?;
    // The segment of the newest record, the first record seen in it, and the one after the newest.
    let mut last = None;
    for _ in 0..LOOKS_MAX {
        for stored in records.by_ref() {
            let place = stored?.payload;
            let begin = match last {
                Some((segment, begin, _)) if segment == place.segment => begin,
                _ => place.position,
            };
            last = Some((place.segment, begin, Position(place.position.0 + 1)));
        }
        let Some((segment, _, end)) = last else { return Ok(from) };
        storage.settle(segment)?;
        if !storage.exists(SegmentNumber(segment.0 + 1))? {
            return Ok(end);
        }
    }
    Ok(last.map_or(from, |(_, begin, _)| begin))
}
