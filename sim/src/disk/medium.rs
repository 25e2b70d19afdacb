//! The segments: what everybody sees, and what of it is durable.

use std::{collections::BTreeMap, ops::Range};

use ballast_coordinator::journal::{Entry, SegmentNumber, SnapshotName, StorageError};

use crate::dice::Dice;

/// What a disk writes as a whole or not at all.
const SECTOR_BYTES: usize = 512;

/// What the medium is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A file system; a new segment has this much room.
    Directory { segment_bytes: u64 },
    /// An object store: objects do not grow.
    Objects,
}

#[derive(Debug, Default)]
struct Segment {
    /// What a process reads.
    seen: Vec<u8>,
    /// What is left when the power fails, at least.
    durable: Vec<u8>,
    /// What of `seen` was written since it was synced.
    dirty: Vec<Range<usize>>,
    /// With the room that is reserved: zeros behind `seen`.
    size: u64,
    /// Whether its name survives a power cut.
    named: bool,
}

impl Segment {
    fn sync(&mut self) {
        for range in std::mem::take(&mut self.dirty) {
            self.persist(range);
        }
    }

    fn persist(&mut self, range: Range<usize>) {
        let end = range.end.min(self.seen.len());
        let start = range.start.min(end);
        if self.durable.len() < end {
            self.durable.resize(end, 0);
        }
        self.durable[start..end].copy_from_slice(&self.seen[start..end]);
    }

    /// Any of the unsynced sectors become durable, the others are lost.
    fn persist_some(&mut self, dice: &mut Dice) {
        for range in std::mem::take(&mut self.dirty) {
            let mut at = range.start;
            while at < range.end {
                let end = (at / SECTOR_BYTES + 1) * SECTOR_BYTES;
                let sector = at..end.min(range.end);
                at = sector.end;
                if dice.chance(0.5) {
                    self.persist(sector);
                }
            }
        }
    }
}

/// A put that was not answered and comes into effect later.
#[derive(Debug)]
struct LatePut {
    number: SegmentNumber,
    content: Vec<u8>,
    /// Calls of the disk until then.
    calls: u64,
}

/// All segments and snapshots.
#[derive(Debug)]
pub(super) struct Medium {
    kind: Kind,
    segments: BTreeMap<SegmentNumber, Segment>,
    pub(super) snapshots: BTreeMap<SnapshotName, Vec<u8>>,
    late: Vec<LatePut>,
}

impl Medium {
    pub(super) fn new(kind: Kind) -> Self {
        Self { kind, segments: BTreeMap::new(), snapshots: BTreeMap::new(), late: Vec::new() }
    }

    pub(super) fn kind(&self) -> Kind {
        self.kind
    }

    pub(super) fn has(&self, number: SegmentNumber) -> bool {
        self.segments.contains_key(&number)
    }

    pub(super) fn list(&self, from: SegmentNumber) -> Vec<Entry> {
        let entry = |(number, segment): (&SegmentNumber, &Segment)| Entry {
            segment: *number,
            bytes: segment.size,
        };
        self.segments.range(from..).map(entry).collect()
    }

    pub(super) fn size(&self, number: SegmentNumber) -> Result<u64, StorageError> {
        Ok(self.get(number)?.size)
    }

    fn get(&self, number: SegmentNumber) -> Result<&Segment, StorageError> {
        self.segments.get(&number).ok_or_else(|| StorageError::Missing(format!("segment {number}")))
    }

    /// Reads what is seen, or what is durable.
    pub(super) fn read(
        &self,
        number: SegmentNumber,
        offset: u64,
        buffer: &mut [u8],
        durable: bool,
    ) -> Result<usize, StorageError> {
        let segment = self.get(number)?;
        let bytes = if durable { &segment.durable } else { &segment.seen };
        let filled = segment.size.saturating_sub(offset).min(buffer.len() as u64) as usize;
        let there = bytes.get(offset as usize..).unwrap_or_default();
        let there = &there[..there.len().min(filled)];
        buffer[..there.len()].copy_from_slice(there);
        buffer[there.len()..filled].fill(0);
        Ok(filled)
    }

    /// Makes a segment, durable and with its name.
    pub(super) fn make(
        &mut self,
        number: SegmentNumber,
        content: &[u8],
    ) -> Result<(), StorageError> {
        self.make_without_name(number, content)?;
        // Syncing the folder is for all names in it.
        self.segments.values_mut().for_each(|segment| segment.named = true);
        Ok(())
    }

    /// Makes a segment whose name does not survive a power cut yet.
    pub(super) fn make_without_name(
        &mut self,
        number: SegmentNumber,
        content: &[u8],
    ) -> Result<(), StorageError> {
        if let Some(there) = self.segments.get(&number) {
            // A put that is made again.
            return match self.kind == Kind::Objects && there.seen == content {
                true => Ok(()),
                false => Err(StorageError::Exists(format!("segment {number}"))),
            };
        }
        let size = match self.kind {
            // A claim has nothing but its header, and no room behind it.
            Kind::Directory { segment_bytes } if content.len() > CLAIM_BYTES => segment_bytes,
            Kind::Directory { .. } | Kind::Objects => 0,
        };
        let segment = Segment {
            seen: content.to_vec(),
            durable: content.to_vec(),
            dirty: Vec::new(),
            size: size.max(content.len() as u64),
            named: self.kind == Kind::Objects,
        };
        self.segments.insert(number, segment);
        Ok(())
    }

    pub(super) fn put_late(&mut self, number: SegmentNumber, content: &[u8], calls: u64) {
        self.late.push(LatePut { number, content: content.to_vec(), calls });
    }

    /// One more call of the disk: puts whose time has come come into effect, if they still can.
    pub(super) fn land_late_puts(&mut self) {
        for mut put in std::mem::take(&mut self.late) {
            if put.calls == 0 {
                self.make(put.number, &put.content).ok();
            } else {
                put.calls -= 1;
                self.late.push(put);
            }
        }
    }

    pub(super) fn write(&mut self, number: SegmentNumber, offset: u64, bytes: &[u8]) {
        let Some(segment) = self.segments.get_mut(&number) else { return };
        let (start, end) = (offset as usize, offset as usize + bytes.len());
        if segment.seen.len() < end {
            segment.seen.resize(end, 0);
        }
        segment.seen[start..end].copy_from_slice(bytes);
        segment.size = segment.size.max(end as u64);
        segment.dirty.push(start..end);
    }

    pub(super) fn sync(&mut self, number: SegmentNumber) {
        if let Some(segment) = self.segments.get_mut(&number) {
            segment.sync();
        }
    }

    /// A sync that fails: some of it is durable, and nothing counts as unsynced any more.
    pub(super) fn sync_some(&mut self, number: SegmentNumber, dice: &mut Dice) {
        if let Some(segment) = self.segments.get_mut(&number) {
            segment.persist_some(dice);
        }
    }

    /// Syncs, and from here on everybody sees what is durable.
    pub(super) fn settle(&mut self, number: SegmentNumber) -> Result<(), StorageError> {
        self.get(number)?;
        if let Some(segment) = self.segments.get_mut(&number) {
            segment.sync();
            segment.seen.clone_from(&segment.durable);
        }
        Ok(())
    }

    pub(super) fn trim(&mut self, number: SegmentNumber, end: u64) {
        if let Some(segment) = self.segments.get_mut(&number) {
            segment.size = end;
            segment.seen.truncate(end as usize);
            segment.durable.truncate(end as usize);
        }
    }

    pub(super) fn remove(&mut self, number: SegmentNumber) {
        self.segments.remove(&number);
    }

    pub(super) fn cut_power(&mut self, dice: &mut Dice) {
        self.segments.retain(|_, segment| segment.named || dice.chance(0.5));
        for segment in self.segments.values_mut() {
            segment.named = true;
            segment.persist_some(dice);
            segment.seen.clone_from(&segment.durable);
        }
    }
}

/// No segment with records is as small.
const CLAIM_BYTES: usize = ballast_coordinator::journal::format::HEADER_BYTES;
