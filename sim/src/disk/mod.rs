//! What keeps the journal: a file system or an object store, with everything that can go wrong there.
//!
//! - `medium`: the segments, what of them is durable, and what a power cut leaves
//! - `trouble`: which call fails, and which one is the last of its process
//! - this file: the journal's [`Storage`] over both
//!
//! A file system keeps what was written in memory until it is synced; a power cut leaves any of the
//! sectors that were not. An object store keeps what was put, but its answer may be lost, and then the
//! put may still come into effect later.

mod medium;
mod trouble;

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard},
};

use ballast_coordinator::journal::{
    Appender, Entry, SegmentNumber, SnapshotName, Storage, StorageError,
};

pub(crate) use self::{medium::Kind, trouble::Call};
use self::{
    medium::Medium,
    trouble::{Step, Trouble},
};
use crate::{dice::Dice, plant::Plant};

/// Something that happens between two steps of a process.
pub(crate) type Meanwhile = Box<dyn FnOnce() + Send>;

#[derive(Debug)]
struct Inside {
    medium: Medium,
    trouble: Trouble,
    dice: Dice,
    plant: Option<Plant>,
}

/// The disk that all coordinators share.
#[derive(Clone, Debug)]
pub(crate) struct Disk(Arc<Mutex<Inside>>);

impl Disk {
    pub(crate) fn new(kind: Kind, dice: Dice, plant: Option<Plant>) -> Self {
        let (medium, trouble) = (Medium::new(kind), Trouble::default());
        Self(Arc::new(Mutex::new(Inside { medium, trouble, dice, plant })))
    }

    /// The disk as one process sees it.
    pub(crate) fn drive(&self) -> Arc<Drive> {
        let process = self.lock().trouble.next_process();
        Arc::new(Drive { disk: self.clone(), process: Some(process) })
    }

    /// The disk as it would be if the power failed now and nothing unsynced had made it.
    pub(crate) fn at_worst(&self) -> Arc<Drive> {
        Arc::new(Drive { disk: self.clone(), process: None })
    }

    /// The power fails.
    pub(crate) fn cut_power(&self) {
        let inside = &mut *self.lock();
        inside.medium.cut_power(&mut inside.dice);
    }

    pub(crate) fn set_full(&self, full: bool) {
        self.lock().trouble.full = full;
    }

    pub(crate) fn set_away(&self, away: bool) {
        self.lock().trouble.away = away;
    }

    pub(crate) fn fail_next_sync(&self) {
        self.lock().trouble.fail_sync = true;
    }

    pub(crate) fn fail_next_write(&self) {
        self.lock().trouble.fail_write = true;
    }

    /// Nothing goes wrong any more.
    pub(crate) fn mend(&self) {
        self.lock().trouble.mend();
    }

    /// A lock that is poisoned by a panic is as good as any: the run is over then.
    fn lock(&self) -> MutexGuard<'_, Inside> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// The disk in the hands of one process.
pub(crate) struct Drive {
    disk: Disk,
    /// `None` is the observer: it sees what is durable, and nothing happens to it.
    process: Option<u64>,
}

impl Drive {
    /// Has the process die at a call of the disk some calls from now.
    pub(crate) fn die_after(&self, calls: u64) {
        if let Some(process) = self.process {
            self.disk.lock().trouble.die_after(process, calls);
        }
    }

    /// Has something happen before a call of the disk some calls from now, in the midst of what the
    /// process does.
    pub(crate) fn meanwhile(&self, calls: u64, happens: Meanwhile) {
        if let Some(process) = self.process {
            self.disk.lock().trouble.meanwhile(process, calls, happens);
        }
    }

    /// What was to happen in the midst of what the process did and did not, for want of calls.
    pub(crate) fn take_meanwhile(&self) -> Option<Meanwhile> {
        self.disk.lock().trouble.take_meanwhile(self.process?)
    }

    /// Whether the process died at a call of the disk.
    pub(crate) fn is_dead(&self) -> bool {
        self.process.is_some_and(|process| self.disk.lock().trouble.is_dead(process))
    }

    /// Takes the disk for one call, unless that fails. The step says whether it is the last one.
    fn begin(&self, call: Call) -> Result<(MutexGuard<'_, Inside>, Step), StorageError> {
        let mut inside = self.disk.lock();
        let Some(process) = self.process else { return Ok((inside, Step::Whole)) };
        if let Some(happens) = inside.trouble.due(process) {
            // Whoever else acts now takes the disk, too.
            drop(inside);
            happens();
            inside = self.disk.lock();
        }
        inside.medium.land_late_puts();
        let Inside { trouble, dice, medium, .. } = &mut *inside;
        let step = trouble.step(process, call, medium.kind(), dice)?;
        Ok((inside, step))
    }

    /// Makes a segment that is whole when it is seen.
    fn make(&self, call: Call, number: SegmentNumber, content: &[u8]) -> Result<(), StorageError> {
        let (mut inside, step) = self.begin(call)?;
        let Inside { medium, dice, trouble, plant } = &mut *inside;
        if *plant == Some(Plant::Unfenced) {
            medium.remove(number);
        }
        match step {
            Step::Whole => medium.make(number, content),
            Step::Last => {
                if dice.chance(0.5) {
                    medium.make_without_name(number, content).ok();
                }
                Err(trouble::died())
            }
            Step::Unanswered => {
                let calls = dice.between(0, 12);
                medium.put_late(number, content, calls);
                Err(trouble::unanswered())
            }
        }
        .inspect_err(|_| trouble.failed += 1)
    }
}

impl Storage for Drive {
    fn grows(&self) -> bool {
        self.disk.lock().medium.kind() != Kind::Objects
    }

    fn name(&self, segment: SegmentNumber) -> String {
        format!("segment {segment}")
    }

    fn list(&self, from: SegmentNumber) -> Result<Vec<Entry>, StorageError> {
        let (inside, _) = self.begin(Call::Look)?;
        Ok(inside.medium.list(from))
    }

    fn exists(&self, segment: SegmentNumber) -> Result<bool, StorageError> {
        let (inside, _) = self.begin(Call::Look)?;
        let unfenced = inside.plant == Some(Plant::Unfenced);
        Ok(inside.medium.has(segment) && !unfenced)
    }

    fn read(
        &self,
        segment: SegmentNumber,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<usize, StorageError> {
        let (inside, _) = self.begin(Call::Read)?;
        inside.medium.read(segment, offset, buffer, self.process.is_none())
    }

    /// No more than is there, so that reading a small journal takes no large buffers.
    fn read_starts(
        &self,
        segments: &[SegmentNumber],
        bytes: usize,
    ) -> Result<Vec<Vec<u8>>, StorageError> {
        let (inside, _) = self.begin(Call::Read)?;
        let start = |segment: &SegmentNumber| {
            let size = inside.medium.size(*segment)?;
            let mut buffer = vec![0; bytes.min(size as usize)];
            inside.medium.read(*segment, 0, &mut buffer, self.process.is_none())?;
            Ok(buffer)
        };
        segments.iter().map(start).collect()
    }

    fn settle(&self, segment: SegmentNumber) -> Result<(), StorageError> {
        let (mut inside, _) = self.begin(Call::Read)?;
        inside.medium.settle(segment)
    }

    fn claim(&self, segment: SegmentNumber, content: &[u8]) -> Result<(), StorageError> {
        self.make(Call::Make, segment, content)
    }

    fn appender(&self) -> Box<dyn Appender> {
        let (disk, process) = (self.disk.clone(), self.process);
        Box::new(Pen { drive: Self { disk, process }, open: None })
    }

    fn trim(&self, segment: SegmentNumber, end: u64) -> Result<(), StorageError> {
        let (mut inside, _) = self.begin(Call::Tidy)?;
        inside.medium.trim(segment, end);
        Ok(())
    }

    fn delete(&self, segments: &[SegmentNumber]) -> Result<(), StorageError> {
        let (mut inside, _) = self.begin(Call::Tidy)?;
        segments.iter().for_each(|segment| inside.medium.remove(*segment));
        Ok(())
    }

    fn sweep(&self, _: SegmentNumber) {}

    fn snapshots(&self) -> Result<Vec<SnapshotName>, StorageError> {
        let (inside, _) = self.begin(Call::Look)?;
        Ok(inside.medium.snapshots.keys().copied().collect())
    }

    fn read_snapshot(&self, name: SnapshotName) -> Result<Vec<u8>, StorageError> {
        let (inside, _) = self.begin(Call::Read)?;
        let content = inside.medium.snapshots.get(&name).cloned();
        content.ok_or_else(|| StorageError::Missing(format!("{name:?}")))
    }

    fn write_snapshot(&self, name: SnapshotName, content: &[u8]) -> Result<(), StorageError> {
        let (mut inside, step) = self.begin(Call::Make)?;
        match step {
            Step::Whole => {
                inside.medium.snapshots.insert(name, content.to_vec());
                Ok(())
            }
            Step::Last => Err(trouble::died()),
            Step::Unanswered => Err(trouble::unanswered()),
        }
    }

    fn delete_snapshot(&self, name: SnapshotName) -> Result<(), StorageError> {
        let (mut inside, _) = self.begin(Call::Tidy)?;
        inside.medium.snapshots.remove(&name);
        Ok(())
    }
}

impl fmt::Debug for Drive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Drive({:?})", self.process)
    }
}

/// Writes segments.
#[derive(Debug)]
struct Pen {
    drive: Drive,
    /// The segment at hand, and where the next write goes.
    open: Option<(SegmentNumber, u64)>,
}

impl Appender for Pen {
    fn start(&mut self, segment: SegmentNumber, content: &[u8]) -> Result<(), StorageError> {
        self.drive.make(Call::Make, segment, content)?;
        self.open = Some((segment, content.len() as u64));
        Ok(())
    }

    fn room(&self) -> u64 {
        let Kind::Directory { segment_bytes } = self.drive.disk.lock().medium.kind() else {
            return 0;
        };
        self.open.map_or(0, |(_, end)| segment_bytes.saturating_sub(end))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), StorageError> {
        let Some((segment, end)) = self.open else {
            return Err(StorageError::Fatal("no segment is open".into()));
        };
        let (mut inside, step) = self.drive.begin(Call::Write)?;
        let Inside { medium, dice, .. } = &mut *inside;
        let (written, result) = match step {
            Step::Whole => (bytes.len(), Ok(())),
            Step::Last => (dice.index(bytes.len() + 1), Err(trouble::died())),
            Step::Unanswered => (dice.index(bytes.len() + 1), Err(trouble::unanswered())),
        };
        medium.write(segment, end, &bytes[..written]);
        if result.is_ok() {
            self.open = Some((segment, end + bytes.len() as u64));
        }
        result
    }

    fn sync(&mut self) -> Result<(), StorageError> {
        let Some((segment, _)) = self.open else { return Ok(()) };
        let (mut inside, step) = self.drive.begin(Call::Sync)?;
        let Inside { medium, dice, plant, .. } = &mut *inside;
        match step {
            Step::Whole if *plant == Some(Plant::LyingSync) => Ok(()),
            Step::Whole => {
                medium.sync(segment);
                Ok(())
            }
            Step::Last => {
                if dice.chance(0.5) {
                    medium.sync(segment);
                }
                Err(trouble::died())
            }
            Step::Unanswered => {
                medium.sync_some(segment, dice);
                Err(StorageError::Fatal("cannot sync: look after the disk".into()))
            }
        }
    }
}
