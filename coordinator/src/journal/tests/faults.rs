//! A storage that does something before each step, or fails in it.

use std::{
    fmt,
    sync::{Arc, Mutex},
};

use super::super::*;

/// What happens to a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is done.
    Done,
    /// It is not done, and says that it may work later.
    NotDone,
    /// It is done, and says that it may work later.
    DoneUnknown,
    /// It is not done, and nothing after it.
    Dead,
}

/// Decides about every step that writes or looks.
pub(super) type Decide = Box<dyn FnMut(&'static str) -> Fate + Send>;

#[derive(Clone)]
pub(super) struct Faulty {
    inner: Arc<dyn Storage>,
    decide: Arc<Mutex<Decide>>,
    /// Where the first list ends.
    shown: Arc<Mutex<Option<SegmentNumber>>>,
}

impl fmt::Debug for Faulty {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Faulty")
    }
}

impl Faulty {
    pub(super) fn over(
        inner: &Arc<dyn Storage>,
        decide: impl FnMut(&'static str) -> Fate + Send + 'static,
    ) -> Arc<dyn Storage> {
        Arc::new(Self::around(inner, Box::new(decide), None))
    }

    /// Its first list shows only the segments before one: what somebody saw before being held up.
    pub(super) fn with_stale_view(
        inner: &Arc<dyn Storage>,
        end: SegmentNumber,
    ) -> Arc<dyn Storage> {
        Arc::new(Self::around(inner, Box::new(|_| Fate::Done), Some(end)))
    }

    fn around(inner: &Arc<dyn Storage>, decide: Decide, shown: Option<SegmentNumber>) -> Self {
        let (decide, shown) = (Arc::new(Mutex::new(decide)), Arc::new(Mutex::new(shown)));
        Self { inner: Arc::clone(inner), decide, shown }
    }

    fn step<T>(
        &self,
        name: &'static str,
        step: impl FnOnce() -> Result<T, StorageError>,
    ) -> Result<T, StorageError> {
        let fate = (self.decide.lock().expect("one writer at a time"))(name);
        let later = || StorageError::Unavailable(format!("{name} failed on purpose"));
        match fate {
            Fate::Done => step(),
            Fate::NotDone => Err(later()),
            Fate::DoneUnknown => step().and_then(|_| Err(later())),
            Fate::Dead => Err(StorageError::Fatal("dead".into())),
        }
    }
}

impl Storage for Faulty {
    fn grows(&self) -> bool {
        self.inner.grows()
    }

    fn name(&self, segment: SegmentNumber) -> String {
        self.inner.name(segment)
    }

    fn list(&self, from: SegmentNumber) -> Result<Vec<Entry>, StorageError> {
        let shown = self.shown.lock().expect("one writer at a time").take();
        let from = if shown.is_some() { SegmentNumber(0) } else { from };
        let mut entries = self.step("list", || self.inner.list(from))?;
        entries.retain(|entry| shown.is_none_or(|end| entry.segment < end));
        Ok(entries)
    }

    fn exists(&self, segment: SegmentNumber) -> Result<bool, StorageError> {
        self.step("exists", || self.inner.exists(segment))
    }

    fn read(
        &self,
        segment: SegmentNumber,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<usize, StorageError> {
        self.step("read", || self.inner.read(segment, offset, buffer))
    }

    fn settle(&self, segment: SegmentNumber) -> Result<(), StorageError> {
        self.step("settle", || self.inner.settle(segment))
    }

    fn claim(&self, segment: SegmentNumber, content: &[u8]) -> Result<(), StorageError> {
        self.step("claim", || self.inner.claim(segment, content))
    }

    fn appender(&self) -> Box<dyn Appender> {
        let appender = self.inner.appender();
        Box::new(FaultyAppender { appender, faulty: self.clone(), started: None })
    }

    fn trim(&self, segment: SegmentNumber, end: u64) -> Result<(), StorageError> {
        self.step("trim", || self.inner.trim(segment, end))
    }

    fn delete(&self, segments: &[SegmentNumber]) -> Result<(), StorageError> {
        self.step("delete", || self.inner.delete(segments))
    }

    fn sweep(&self, newest: SegmentNumber) {
        self.inner.sweep(newest);
    }

    fn snapshots(&self) -> Result<Vec<SnapshotName>, StorageError> {
        self.step("snapshots", || self.inner.snapshots())
    }

    fn read_snapshot(&self, name: SnapshotName) -> Result<Vec<u8>, StorageError> {
        self.step("read_snapshot", || self.inner.read_snapshot(name))
    }

    fn write_snapshot(&self, name: SnapshotName, content: &[u8]) -> Result<(), StorageError> {
        self.step("write_snapshot", || self.inner.write_snapshot(name, content))
    }

    fn delete_snapshot(&self, name: SnapshotName) -> Result<(), StorageError> {
        self.step("delete_snapshot", || self.inner.delete_snapshot(name))
    }
}

#[derive(Debug)]
struct FaultyAppender {
    appender: Box<dyn Appender>,
    faulty: Faulty,
    /// What a start whose outcome was not told has made.
    started: Option<(SegmentNumber, Vec<u8>)>,
}

impl Appender for FaultyAppender {
    fn start(&mut self, segment: SegmentNumber, content: &[u8]) -> Result<(), StorageError> {
        let Self { appender, faulty, started } = self;
        // The storage's promise: the same call with the same content finds out.
        if *started == Some((segment, content.to_vec())) {
            return Ok(());
        }
        faulty.step("start", || {
            appender.start(segment, content)?;
            *started = Some((segment, content.to_vec()));
            Ok(())
        })
    }

    fn room(&self) -> u64 {
        self.appender.room()
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), StorageError> {
        let Self { appender, faulty, .. } = self;
        faulty.step("write", || appender.write(bytes))
    }

    fn sync(&mut self) -> Result<(), StorageError> {
        let Self { appender, faulty, .. } = self;
        faulty.step("sync", || appender.sync())
    }
}
