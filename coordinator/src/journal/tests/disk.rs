//! A disk in memory that can lose its power: what was written and not synced is then there or not,
//! each little piece for itself.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
};

use rand::Rng;

use super::super::*;

/// Pieces that are written as a whole. Smaller than any real disk's, to tear more.
const PIECE_BYTES: usize = 16;

/// Handles of one disk.
#[derive(Clone, Debug, Default)]
pub(super) struct Disk {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    segments: BTreeMap<SegmentNumber, Segment>,
    snapshots: BTreeMap<SnapshotName, Vec<u8>>,
    /// Times that the power was lost; who started before is dead.
    lives: u64,
}

#[derive(Debug, Default)]
struct Segment {
    /// What a reader sees.
    seen: Vec<u8>,
    /// What a loss of power leaves for sure.
    durable: Vec<u8>,
}

impl Disk {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no test panics while it holds the disk")
    }

    /// Kills every writer and tears what was not synced.
    pub(super) fn lose_power(&self, rng: &mut impl Rng) {
        let mut state = self.state();
        state.lives += 1;
        for segment in state.segments.values_mut() {
            let pieces = segment.seen.chunks_mut(PIECE_BYTES);
            for (seen, durable) in pieces.zip(segment.durable.chunks(PIECE_BYTES)) {
                if rng.random() {
                    seen.copy_from_slice(durable);
                }
            }
            segment.durable.clone_from(&segment.seen);
        }
    }

    fn make(
        &self,
        segment: SegmentNumber,
        content: &[u8],
        bytes: usize,
    ) -> Result<(), StorageError> {
        let mut state = self.state();
        if state.segments.contains_key(&segment) {
            return Err(StorageError::Exists(self.name(segment)));
        }
        let mut seen = content.to_vec();
        seen.resize(bytes.max(content.len()), 0);
        state.segments.insert(segment, Segment { durable: seen.clone(), seen });
        Ok(())
    }
}

impl Storage for Disk {
    fn grows(&self) -> bool {
        true
    }

    fn name(&self, segment: SegmentNumber) -> String {
        format!("segment {segment} of the simulated disk")
    }

    fn list(&self, from: SegmentNumber) -> Result<Vec<Entry>, StorageError> {
        let state = self.state();
        let entries = state.segments.range(from..);
        let entry = |(number, segment): (&SegmentNumber, &Segment)| Entry {
            segment: *number,
            bytes: segment.seen.len() as u64,
        };
        Ok(entries.map(entry).collect())
    }

    fn exists(&self, segment: SegmentNumber) -> Result<bool, StorageError> {
        Ok(self.state().segments.contains_key(&segment))
    }

    fn read(
        &self,
        segment: SegmentNumber,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<usize, StorageError> {
        let state = self.state();
        let found = state.segments.get(&segment);
        let found = found.ok_or_else(|| StorageError::Missing(self.name(segment)))?;
        let rest = found.seen.get(offset as usize..).unwrap_or_default();
        let filled = rest.len().min(buffer.len());
        buffer[..filled].copy_from_slice(&rest[..filled]);
        Ok(filled)
    }

    fn settle(&self, segment: SegmentNumber) -> Result<(), StorageError> {
        if let Some(segment) = self.state().segments.get_mut(&segment) {
            segment.durable.clone_from(&segment.seen);
        }
        Ok(())
    }

    fn claim(&self, segment: SegmentNumber, content: &[u8]) -> Result<(), StorageError> {
        self.make(segment, content, 0)
    }

    fn appender(&self) -> Box<dyn Appender> {
        let life = self.state().lives;
        Box::new(DiskAppender { disk: self.clone(), life, open: None })
    }

    fn trim(&self, segment: SegmentNumber, end: u64) -> Result<(), StorageError> {
        if let Some(segment) = self.state().segments.get_mut(&segment) {
            segment.seen.truncate(end as usize);
            segment.durable.truncate(end as usize);
        }
        Ok(())
    }

    fn delete(&self, segments: &[SegmentNumber]) -> Result<(), StorageError> {
        self.state().segments.retain(|number, _| !segments.contains(number));
        Ok(())
    }

    fn sweep(&self, _: SegmentNumber) {}

    fn snapshots(&self) -> Result<Vec<SnapshotName>, StorageError> {
        Ok(self.state().snapshots.keys().copied().collect())
    }

    fn read_snapshot(&self, name: SnapshotName) -> Result<Vec<u8>, StorageError> {
        let content = self.state().snapshots.get(&name).cloned();
        content.ok_or_else(|| StorageError::Missing("a snapshot".into()))
    }

    fn write_snapshot(&self, name: SnapshotName, content: &[u8]) -> Result<(), StorageError> {
        self.state().snapshots.insert(name, content.to_vec());
        Ok(())
    }

    fn delete_snapshot(&self, name: SnapshotName) -> Result<(), StorageError> {
        self.state().snapshots.remove(&name);
        Ok(())
    }
}

#[derive(Debug)]
struct DiskAppender {
    disk: Disk,
    life: u64,
    /// The segment, its size, and how much of it is used.
    open: Option<(SegmentNumber, usize, usize)>,
}

impl DiskAppender {
    fn alive(&self) -> Result<(), StorageError> {
        match self.disk.state().lives == self.life {
            true => Ok(()),
            false => Err(StorageError::Fatal("the power was lost".into())),
        }
    }
}

impl Appender for DiskAppender {
    fn start(&mut self, segment: SegmentNumber, content: &[u8]) -> Result<(), StorageError> {
        self.alive()?;
        let bytes = content.len().max(super::SEGMENT_BYTES_SMALL as usize);
        self.disk.make(segment, content, bytes)?;
        self.open = Some((segment, bytes, content.len()));
        Ok(())
    }

    fn room(&self) -> u64 {
        self.open.map_or(0, |(_, bytes, used)| (bytes - used) as u64)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), StorageError> {
        self.alive()?;
        let Some((number, _, used)) = &mut self.open else {
            return Err(StorageError::Fatal("no segment is open".into()));
        };
        // A segment that was deleted, or trimmed by somebody who took over, takes no harm.
        if let Some(segment) = self.disk.state().segments.get_mut(number) {
            let end = (*used + bytes.len()).min(segment.seen.len());
            let start = (*used).min(end);
            segment.seen[start..end].copy_from_slice(&bytes[..end - start]);
        }
        *used += bytes.len();
        Ok(())
    }

    fn sync(&mut self) -> Result<(), StorageError> {
        self.alive()?;
        let number = self.open.map_or(SegmentNumber(0), |(number, ..)| number);
        self.disk.settle(number)
    }
}
