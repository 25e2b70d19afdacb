//! The records of a journal one after the other, over the ends of its segments.

use std::{collections::VecDeque, ops::Range, sync::Arc};

use bytes::Bytes;

use super::{
    Location, Position, ReadError, SegmentNumber, Stored,
    cursor::{Cursor, Group, READ_BYTES},
    format::Link,
    reader::data_segments,
    storage::{Entry, Storage},
};

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
