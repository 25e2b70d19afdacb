//! The writer of a journal.

use std::{mem, sync::Arc};

use super::{
    Location, Position, Record, SegmentNumber, Term,
    format::{
        GROUP_BYTES_MAX, GROUP_HEADER_BYTES, HEAD_BYTES_MAX, HEADER_BYTES, Header, Link,
        PAYLOAD_BYTES_MAX, encode_group, frame_bytes,
    },
    places::Places,
    reader::{Reader, data_segments, header},
    records::Records,
    snapshot::Snapshot,
    storage::{Appender, SnapshotName, Storage, StorageError},
    takeover::{self, OpenError},
};

/// Snapshots that are kept: the newest, and one more in case it is damaged.
const SNAPSHOTS_KEPT: usize = 2;

/// Why records were not appended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// It may work later, with the same records; the text has the remedy. Until then it is open
    /// whether they are in the journal.
    #[error("the journal cannot be written: {0}")]
    Unavailable(String),
    /// A record, or all of them together, are larger than a reader accepts. Nothing was written.
    #[error("{bytes} bytes are too many for the journal, which takes {bytes_max}")]
    TooLarge {
        /// Size of the part that is too large.
        bytes: usize,
        /// Its bound.
        bytes_max: usize,
    },
    /// Another leader has taken over. This journal appends nothing any more.
    #[error("term {newest} has taken the journal over from term {term}; this process must stop")]
    Fenced {
        /// Our term.
        term: Term,
        /// The one that took over.
        newest: Term,
    },
    /// What is on the disk is not known any more. This journal appends nothing any more.
    #[error("{0}")]
    Fatal(String),
}

/// A journal that was opened, and what was in it.
#[derive(Debug)]
pub struct Opened {
    /// Its writer.
    pub journal: Journal,
    /// The newest state, if any.
    pub snapshot: Option<Snapshot>,
    /// The records after it.
    pub records: Records,
}

/// The writer of a journal, and for as long as nobody takes over, the only one.
#[derive(Debug)]
pub struct Journal {
    storage: Arc<dyn Storage>,
    appender: Box<dyn Appender>,
    term: Term,
    writer: u64,
    /// Position of the next record.
    next: Position,
    /// Number of the next segment.
    free: SegmentNumber,
    /// The segment being written.
    open: Option<Open>,
    /// Where the records before the next segment end.
    end: Option<Link>,
    places: Places,
    buffer: Vec<u8>,
    /// A segment of which is not known whether it was made.
    unsettled: Option<Vec<u8>>,
    ended: Option<AppendError>,
}

#[derive(Clone, Copy, Debug)]
struct Open {
    segment: SegmentNumber,
    salt: u32,
}

impl Journal {
    /// Takes a journal over, or begins one. From here on every earlier term appends nothing. `None`
    /// is the term after the newest: for a process that needs no permission to lead.
    ///
    /// # Errors
    /// A newer term is there, or the journal cannot be read or written.
    pub fn open(storage: Arc<dyn Storage>, term: Option<Term>) -> Result<Opened, OpenError> {
        let writer = super::random();
        let start = |found: &Option<(SnapshotName, Snapshot)>| {
            found.as_ref().map_or(SegmentNumber(0), |(name, _)| name.segment)
        };
        let hint = start(&Snapshot::newest(&*storage)?);
        let claim = takeover::claim(&*storage, term, writer, hint)?;
        storage.sweep(claim.segment);
        // Not before the claim: until then another leader may have forgotten what came before a
        // newer snapshot.
        let snapshot = Snapshot::newest(&*storage)?;
        let found = takeover::find(&*storage, start(&snapshot), claim)?;
        let first = start(&snapshot);
        let snapshot = snapshot.map(|(_, snapshot)| snapshot);
        let from = snapshot.as_ref().map_or(Position(0), |snapshot| snapshot.position);
        let places = Places::from(from, first);
        if from > found.next {
            return Err(OpenError::TailMissing { snapshot: from, end: found.next });
        }
        let segments = found.segments.into();
        let records = Records::new(Arc::clone(&storage), segments, from, found.end)?;
        let journal = Self {
            appender: storage.appender(),
            storage,
            term: claim.term,
            writer,
            next: found.next,
            free: SegmentNumber(claim.segment.0 + 1),
            open: None,
            end: found.end,
            places,
            buffer: Vec::new(),
            unsettled: None,
            ended: None,
        };
        Ok(Opened { journal, snapshot, records })
    }

    /// Its term.
    #[must_use]
    pub fn term(&self) -> Term {
        self.term
    }

    /// Position of the next record: all before it are durable.
    #[must_use]
    pub fn next_position(&self) -> Position {
        self.next
    }

    /// A reader of the same journal.
    #[must_use]
    pub fn reader(&self) -> Reader {
        Reader::open(Arc::clone(&self.storage))
    }

    /// Appends records. When it returns they are durable: all of them, or as far as any reader can
    /// tell, none. Says where they are.
    ///
    /// # Errors
    /// See [`AppendError`]. After [`AppendError::Unavailable`] the next append must be of the same
    /// records.
    pub fn append(&mut self, records: &[Record]) -> Result<Vec<Location>, AppendError> {
        self.usable()?;
        if records.is_empty() {
            return Ok(Vec::new());
        }
        let bytes = GROUP_HEADER_BYTES + checked_bytes(records)?;
        let fits = self.appender.room() >= bytes as u64 && self.unsettled.is_none();
        let result = match self.open {
            Some(open) if fits => self.extend(open, records),
            _ => self.start(records),
        };
        match result {
            Ok(locations) => {
                self.next.0 += records.len() as u64;
                Ok(locations)
            }
            Err(error @ AppendError::Unavailable(_)) => Err(error),
            Err(error) => {
                self.ended = Some(error.clone());
                Err(error)
            }
        }
    }

    /// Keeps a state that has the records before `position` in it.
    ///
    /// # Errors
    /// The storage refuses, or somebody else has taken over. The journal is as good as before.
    pub fn put_snapshot(&mut self, position: Position, bytes: &[u8]) -> Result<(), AppendError> {
        self.usable()?;
        if position > self.next {
            let text = format!("a snapshot at record {position} is ahead of record {}", self.next);
            return Err(AppendError::Fatal(text));
        }
        self.leading()?;
        let name = SnapshotName { position, segment: self.places.before(position) };
        let put = || {
            self.storage.write_snapshot(name, &Snapshot::encode(position, bytes))?;
            let names = self.storage.snapshots()?;
            let old = names.iter().rev().skip(SNAPSHOTS_KEPT);
            old.into_iter().try_for_each(|name| self.storage.delete_snapshot(*name))
        };
        put().map_err(|error: StorageError| AppendError::Unavailable(error.to_string()))
    }

    /// Deletes segments of which no record is needed any more: all before `position`, and before the
    /// newest snapshot.
    ///
    /// # Errors
    /// The storage refuses, or somebody else has taken over. The journal is as good as before.
    pub fn forget_before(&mut self, position: Position) -> Result<(), AppendError> {
        self.usable()?;
        self.leading()?;
        let forget = || {
            let snapshots = self.storage.snapshots()?;
            // The older one that is kept must stay good too.
            let kept = snapshots.len().saturating_sub(SNAPSHOTS_KEPT);
            let Some(kept) = snapshots.get(kept) else { return Ok(()) };
            let first = self.places.before(position).min(kept.segment);
            let mut old = data_segments(&*self.storage, SegmentNumber(0))?;
            old.retain(|entry| entry.segment < first);
            let old: Vec<_> = old.into_iter().map(|entry| entry.segment).collect();
            self.storage.delete(&old)
        };
        forget().map_err(|error: StorageError| AppendError::Unavailable(error.to_string()))
    }

    /// Ends in order: no later change of the last records can pass for a torn write.
    ///
    /// # Errors
    /// As for [`Journal::append`].
    pub fn close(mut self) -> Result<(), AppendError> {
        self.usable()?;
        if let Some(open) = self.open
            && self.unsettled.is_none()
            && self.appender.room() >= GROUP_HEADER_BYTES as u64
        {
            self.extend(open, &[])?;
            self.trim();
        }
        Ok(())
    }

    /// Commits to the segment that is open.
    fn extend(&mut self, open: Open, records: &[Record]) -> Result<Vec<Location>, AppendError> {
        let start = self.end.map_or(0, |end| end.end);
        self.buffer.clear();
        encode_group(&mut self.buffer, open.salt, self.next, records);
        self.appender.write(&self.buffer).map_err(|error| self.failed(error))?;
        self.appender.sync().map_err(|error| self.failed(error))?;
        // Only now: see the proof. Not to know is as bad as to know the worst.
        match self.storage.exists(self.free) {
            Ok(false) => {}
            Ok(true) => return Err(self.fenced()),
            Err(error) => return Err(AppendError::Fatal(error.to_string())),
        }
        self.end = Some(Link { segment: open.segment, end: start + self.buffer.len() as u64 });
        Ok(self.locations(open.segment, start, records))
    }

    /// Commits as the beginning of a new segment.
    fn start(&mut self, records: &[Record]) -> Result<Vec<Location>, AppendError> {
        let (segment, term, writer) = (self.free, self.term, self.writer);
        let header = Header { segment, term, writer, first: self.next, previous: self.end };
        let mut content = mem::take(&mut self.buffer);
        content.clear();
        content.extend(header.encode());
        encode_group(&mut content, header.salt(), self.next, records);
        if self.unsettled.take().is_some_and(|unsettled| unsettled != content) {
            let text = "other records were appended before the fate of the last ones was known";
            return Err(AppendError::Fatal(text.into()));
        }
        if let Err(error) = self.appender.start(segment, &content) {
            self.unsettled = matches!(error, StorageError::Unavailable(_)).then_some(content);
            return Err(self.failed(error));
        }
        self.trim();
        self.open = Some(Open { segment, salt: header.salt() });
        self.end = Some(Link { segment, end: content.len() as u64 });
        self.free.0 += 1;
        self.places.add(self.next, segment);
        self.buffer = content;
        Ok(self.locations(segment, HEADER_BYTES as u64, records))
    }

    /// Where records are whose group begins at `start`.
    fn locations(&self, segment: SegmentNumber, start: u64, records: &[Record]) -> Vec<Location> {
        let mut offset = start + GROUP_HEADER_BYTES as u64;
        let location = |(record, position): (&Record, u64)| {
            let position = Position(position);
            let (head_bytes, payload_bytes) = (record.head.len(), record.payload.len());
            let (head_bytes, payload_bytes) = (head_bytes as u32, payload_bytes as u32);
            let location = Location { position, segment, offset, head_bytes, payload_bytes };
            offset += frame_bytes(record) as u64;
            location
        };
        records.iter().zip(self.next.0..).map(location).collect()
    }

    /// Gives back the room behind the end of the last segment, which nobody writes any more.
    fn trim(&self) {
        if let Some(end) = self.end
            && let Err(error) = self.storage.trim(end.segment, end.end)
        {
            tracing::debug!(%error, "room of a journal segment was not given back");
        }
    }

    fn usable(&self) -> Result<(), AppendError> {
        self.ended.clone().map_or(Ok(()), Err)
    }

    /// Whether nobody has taken over, as far as can be known.
    fn leading(&self) -> Result<(), AppendError> {
        match self.storage.exists(self.free) {
            Ok(false) => Ok(()),
            Ok(true) if self.unsettled.is_some() => Ok(()),
            Ok(true) => Err(self.fenced()),
            Err(error) => Err(AppendError::Unavailable(error.to_string())),
        }
    }

    fn failed(&self, error: StorageError) -> AppendError {
        match error {
            StorageError::Exists(_) => self.fenced(),
            StorageError::Unavailable(text) => AppendError::Unavailable(text),
            error => AppendError::Fatal(error.to_string()),
        }
    }

    fn fenced(&self) -> AppendError {
        // For the text alone: that it is there is enough.
        let newest =
            header(&*self.storage, self.free).map_or(Term(self.term.0 + 1), |one| one.term);
        AppendError::Fenced { term: self.term, newest }
    }
}

/// Bytes of the frames of records, if a reader accepts them.
fn checked_bytes(records: &[Record]) -> Result<usize, AppendError> {
    let check = |bytes, bytes_max| match bytes > bytes_max {
        true => Err(AppendError::TooLarge { bytes, bytes_max }),
        false => Ok(()),
    };
    for record in records {
        check(record.head.len(), HEAD_BYTES_MAX)?;
        check(record.payload.len(), PAYLOAD_BYTES_MAX)?;
    }
    let bytes = records.iter().map(frame_bytes).sum();
    check(bytes, GROUP_BYTES_MAX)?;
    Ok(bytes)
}
