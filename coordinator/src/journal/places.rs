//! Where to look for a record.

use super::{Position, SegmentNumber};

/// Places that are remembered. With more, every other one is forgotten.
const PLACES_MAX: usize = 1 << 16;

/// In which segment a record is at the earliest. Few places are as right as many, only less near.
#[derive(Debug)]
pub(super) struct Places {
    /// Where to look for the records of the snapshot's position and after it.
    first: SegmentNumber,
    /// That position: nothing is known of earlier records.
    known_from: Position,
    /// First record of a segment, in order.
    starts: Vec<(Position, SegmentNumber)>,
}

impl Places {
    /// Places from a position on, which is in `first` or behind it.
    pub(super) fn from(known_from: Position, first: SegmentNumber) -> Self {
        Self { first, known_from, starts: Vec::new() }
    }

    pub(super) fn add(&mut self, position: Position, segment: SegmentNumber) {
        if self.starts.len() == PLACES_MAX {
            let mut index = 0;
            self.starts.retain(|_| {
                index += 1;
                index % 2 == 0
            });
        }
        self.starts.push((position, segment));
    }

    pub(super) fn before(&self, position: Position) -> SegmentNumber {
        if position < self.known_from {
            return SegmentNumber(0);
        }
        let after = self.starts.partition_point(|(start, _)| *start <= position);
        after.checked_sub(1).map_or(self.first, |index| self.starts[index].1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_in_its_segment_or_a_later_one_however_many_were_forgotten() {
        let mut places = Places::from(Position(7), SegmentNumber(3));
        assert_eq!(places.before(Position(6)), SegmentNumber(0), "nobody knows");
        assert_eq!(places.before(Position(7)), SegmentNumber(3));
        let segments = PLACES_MAX as u64 * 2 + 9;
        for segment in 0..segments {
            places.add(Position(100 + segment * 10), SegmentNumber(4 + segment));
        }
        assert!(places.starts.len() <= PLACES_MAX);
        assert_eq!(places.before(Position(99)), SegmentNumber(3));
        for segment in (0..segments).step_by(997) {
            let before = places.before(Position(100 + segment * 10 + 9));
            assert!(before <= SegmentNumber(4 + segment));
            assert!(before.0 + 4 > segment, "and not far before: {before} for {segment}");
        }
    }
}
