//! The file journal: every accepted trajectory, every batch, every decision, in order.
//!
//! A segment is a header (magic, format version) and records
//! `[length u32][crc32c u32][kind u8][prost bytes]`, little-endian; length counts kind and bytes, the
//! checksum covers both. [`Journal::append`] is a group commit: one write and one fdatasync for all
//! records given, and it returns only when they are durable (J1).

use std::{
    fs::{self, File},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use ballast_proto::{MESSAGE_BYTES_MAX, v1::Trajectory};
use prost::Message as _;

use crate::engine::Batch;

const MAGIC: &[u8; 8] = b"BALLASTJ";
const FORMAT_VERSION: u32 = 1;
const HEADER_BYTES: u64 = 12;
/// Length and checksum.
const FRAME_BYTES: usize = 8;
/// Largest record: no message is larger, so no record is. Bounds what a reader allocates.
const RECORD_BYTES_MAX: usize = MESSAGE_BYTES_MAX;
const SEGMENT: &str = "segment-000001.log";

/// What was trained in one optimizer step, by reference to trajectories in the journal.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct BatchRecord {
    /// Optimizer step, as in `TrainBatch`.
    #[prost(uint64, tag = "1")]
    pub step: u64,
    /// `StepKind`.
    #[prost(int32, tag = "2")]
    pub kind: i32,
    /// Bits of the learning rate (f64), so that a replay has exactly this one.
    #[prost(fixed64, tag = "3")]
    pub learning_rate_bits: u64,
    /// Episodes trained on, in order.
    #[prost(uint64, repeated, tag = "4")]
    pub episodes: Vec<u64>,
}

impl BatchRecord {
    /// The record of a batch.
    #[must_use]
    pub fn of(batch: &Batch) -> Self {
        Self {
            step: batch.step,
            kind: batch.kind.into(),
            learning_rate_bits: batch.learning_rate.to_bits(),
            episodes: batch.episodes().into_iter().map(|episode| episode.0).collect(),
        }
    }
}

/// An entry of the journal.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// An accepted trajectory.
    Trajectory(Arc<Trajectory>),
    /// A planned batch.
    Batch(BatchRecord),
    /// A decision, as JSON text.
    Note(String),
}

impl Record {
    fn kind(&self) -> u8 {
        match self {
            Self::Trajectory(_) => 1,
            Self::Batch(_) => 2,
            Self::Note(_) => 3,
        }
    }

    fn encode_into(&self, buffer: &mut Vec<u8>) {
        let frame = buffer.len();
        buffer.extend([0; FRAME_BYTES]);
        buffer.push(self.kind());
        match self {
            Self::Trajectory(trajectory) => buffer.extend(trajectory.encode_to_vec()),
            Self::Batch(batch) => buffer.extend(batch.encode_to_vec()),
            Self::Note(text) => buffer.extend(text.as_bytes()),
        }
        let body = &buffer[frame + FRAME_BYTES..];
        let (length, checksum) = (body.len() as u32, crc32c::crc32c(body));
        buffer[frame..frame + 4].copy_from_slice(&length.to_le_bytes());
        buffer[frame + 4..frame + FRAME_BYTES].copy_from_slice(&checksum.to_le_bytes());
    }

    /// `None` for a kind this version does not know or bytes that are not of that kind.
    fn decode(body: &[u8]) -> Option<Self> {
        let (kind, bytes) = body.split_first()?;
        match kind {
            1 => Trajectory::decode(bytes).ok().map(|one| Self::Trajectory(Arc::new(one))),
            2 => BatchRecord::decode(bytes).ok().map(Self::Batch),
            3 => String::from_utf8(bytes.to_vec()).ok().map(Self::Note),
            _ => None,
        }
    }
}

/// The writer of a run's journal. One per directory.
#[derive(Debug)]
pub struct Journal {
    file: File,
    path: PathBuf,
    /// Bytes of the segment that are durable and whole.
    length: u64,
    /// Whether a failed append may have left bytes behind `length`.
    dirty: bool,
    /// Records found when the journal was opened.
    records: usize,
}

impl Journal {
    /// Opens the journal of a directory, creating both if need be. A tail torn by a crash, which
    /// was never acknowledged, is cut off.
    ///
    /// # Errors
    /// The directory cannot be used, or the segment is damaged before its tail.
    pub fn open(directory: &Path) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        let path = directory.join(SEGMENT);
        let mut file =
            File::options().read(true).write(true).create(true).truncate(false).open(&path)?;
        let (mut length, mut records) = (0, 0);
        scan(&path, &mut file, |end, _| {
            length = end;
            records += 1;
        })?;
        let mut journal = Self { file, path, length, dirty: true, records };
        journal.repair()?;
        // The entry of a new file is durable only with its directory.
        File::open(directory)?.sync_all()?;
        Ok(journal)
    }

    /// Records that were there when the journal was opened.
    #[must_use]
    pub fn records_found(&self) -> usize {
        self.records
    }

    /// Appends records and makes them durable; all of them or, as far as a reader can tell, none.
    ///
    /// # Errors
    /// The disk is full or failing. The same records can be appended again later.
    pub fn append(&mut self, records: &[Record]) -> io::Result<()> {
        if self.dirty {
            self.repair()?;
        }
        let mut buffer = Vec::new();
        records.iter().for_each(|record| record.encode_into(&mut buffer));
        // Until the sync has succeeded the bytes may be partly there. After a failed sync the
        // kernel may forget them and report success next time, so a retry writes them again.
        self.dirty = true;
        self.file.write_all(&buffer)?;
        self.file.sync_data()?;
        self.length += buffer.len() as u64;
        self.dirty = false;
        Ok(())
    }

    /// Where the journal is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Cuts off what is not whole, and writes the header of an empty segment.
    fn repair(&mut self) -> io::Result<()> {
        self.file.set_len(self.length)?;
        self.file.seek(SeekFrom::Start(self.length))?;
        if self.length < HEADER_BYTES {
            self.file.set_len(0)?;
            self.file.seek(SeekFrom::Start(0))?;
            self.file.write_all(MAGIC)?;
            self.file.write_all(&FORMAT_VERSION.to_le_bytes())?;
            self.length = HEADER_BYTES;
        }
        self.file.sync_all()?;
        self.dirty = false;
        Ok(())
    }
}

/// All whole records of a journal, in order.
///
/// # Errors
/// The journal cannot be read, or is damaged before its tail.
pub fn read_all(directory: &Path) -> io::Result<Vec<Record>> {
    let path = directory.join(SEGMENT);
    let mut records = Vec::new();
    scan(&path, &mut File::open(&path)?, |_, record| records.push(record))?;
    Ok(records)
}

/// Reads a segment from its start and hands out each whole record with the offset of its end. Stops
/// at a torn tail: a record that is cut short, or the last one if its checksum is wrong.
fn scan(path: &Path, file: &mut File, mut each: impl FnMut(u64, Record)) -> io::Result<()> {
    let damaged = |offset: u64, what: &str| {
        let text = format!("{} is damaged at byte {offset}: {what}", path.display());
        io::Error::new(io::ErrorKind::InvalidData, text)
    };
    let size = file.metadata()?.len();
    if size < HEADER_BYTES {
        return Ok(());
    }
    let mut reader = io::BufReader::new(file);
    let mut header = [0; HEADER_BYTES as usize];
    reader.read_exact(&mut header)?;
    if header[..8] != MAGIC[..] || header[8..] != FORMAT_VERSION.to_le_bytes() {
        return Err(damaged(0, "it is not a journal of this version"));
    }
    let (mut offset, mut body) = (HEADER_BYTES, Vec::new());
    while size - offset >= FRAME_BYTES as u64 {
        let (mut length, mut checksum) = ([0; 4], [0; 4]);
        reader.read_exact(&mut length)?;
        reader.read_exact(&mut checksum)?;
        let length = u32::from_le_bytes(length) as usize;
        let end = offset + (FRAME_BYTES + length) as u64;
        if length == 0 || length > RECORD_BYTES_MAX || end > size {
            return Ok(());
        }
        body.resize(length, 0);
        reader.read_exact(&mut body)?;
        if crc32c::crc32c(&body) != u32::from_le_bytes(checksum) {
            return if end == size { Ok(()) } else { Err(damaged(offset, "wrong checksum")) };
        }
        let record = Record::decode(&body).ok_or_else(|| damaged(offset, "unknown record"))?;
        each(end, record);
        offset = end;
    }
    Ok(())
}

#[cfg(test)]
#[path = "journal_test.rs"]
mod tests;
