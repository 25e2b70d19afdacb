//! Where to look for a record.

use super::{Position, SegmentNumber};

/// Places that are remembered. With more, every other one is forgotten.
const PLACES_MAX: usize = 1 << 16;

/// In which segment a record is at the earliest. Few places are as right as many, only less near.
#[derive(Debug)]
pub(super) struct Places {
    /// Where to look for records before all others.
    first: SegmentNumber,
    /// First record of a segment, in order.
    starts: Vec<(Position, SegmentNumber)>,
}

impl Places {
    pub(super) fn from(first: SegmentNumber) -> Self {
        Self { first, starts: Vec::new() }
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
        let after = self.starts.partition_point(|(start, _)| *start <= position);
        after.checked_sub(1).map_or(self.first, |index| self.starts[index].1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_in_its_segment_or_a_later_one_however_many_were_forgotten() {
        let mut places = Places::from(SegmentNumber(3));
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
