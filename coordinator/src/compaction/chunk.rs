//! The files that are written together: one of each table, up to the same record.

use std::{collections::BTreeMap, path::Path};

use super::{CompactionError, Table, cover::Cover, part::Part, rows::Sessions, value::Row};
use crate::journal::Position;

/// Bytes of the journal that go into one file of each table; the last record may go beyond.
pub const CHUNK_BYTES: usize = 64 << 20;
/// Records that go into one file of each table.
pub const CHUNK_RECORDS: u64 = 100_000;

/// Files in the making. Dropped, they are gone.
#[derive(Debug)]
pub(super) struct Chunk {
    /// Each with the first record that is missing in its table.
    parts: BTreeMap<Table, (Position, Part)>,
    /// First record that is not in it.
    end: Position,
    records: u64,
    bytes: usize,
}

impl Chunk {
    /// Begins files that go on where those that are there end.
    pub(super) fn begin(run: &Path, cover: &Cover) -> Result<Self, CompactionError> {
        Self::begin_at(run, cover.start(), |table| cover.next(table))
    }

    /// The files after these.
    fn after(run: &Path, end: Position) -> Result<Self, CompactionError> {
        Self::begin_at(run, end, |_| end)
    }

    fn begin_at(
        run: &Path,
        end: Position,
        next: impl Fn(Table) -> Position,
    ) -> Result<Self, CompactionError> {
        let part = |table: &Table| Ok((*table, (next(*table), Part::begin(run, *table)?)));
        let parts = Table::ALL.iter().map(part).collect::<Result<_, CompactionError>>()?;
        Ok(Self { parts, end, records: 0, bytes: 0 })
    }

    /// Adds a record and its rows. A table that has it already passes it over.
    pub(super) fn add(
        &mut self,
        position: Position,
        bytes: usize,
        rows: Vec<(Table, Row)>,
    ) -> Result<(), CompactionError> {
        for (table, row) in rows {
            if let Some((from, part)) = self.parts.get_mut(&table)
                && position >= *from
            {
                part.add(row)?;
            }
        }
        self.end = Position(position.0 + 1);
        self.records += 1;
        self.bytes += bytes;
        Ok(())
    }

    /// Whether it is time for the next files.
    pub(super) fn is_full(&self) -> bool {
        self.bytes >= CHUNK_BYTES || self.records >= CHUNK_RECORDS
    }

    /// Whether it has a record.
    pub(super) fn is_empty(&self) -> bool {
        self.records == 0
    }

    /// Gives the files their names, one by one, and begins the next ones.
    pub(super) fn roll(self, run: &Path, sessions: &Sessions) -> Result<Self, CompactionError> {
        let end = self.finish(sessions)?;
        Self::after(run, end)
    }

    /// Gives the files their names, one by one. Returns the first record that is not in them.
    pub(super) fn finish(self, sessions: &Sessions) -> Result<Position, CompactionError> {
        let sessions = serde_json::to_string(sessions).map_err(CompactionError::Sessions)?;
        for (from, part) in self.parts.into_values() {
            // A table that was ahead after a crash may have all of these records.
            if from < self.end {
                part.finish(&(from..self.end), &sessions)?;
            }
        }
        Ok(self.end)
    }
}
