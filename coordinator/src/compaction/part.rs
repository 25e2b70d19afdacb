//! One file of a table: it gets its name when it is whole and durable, and is never touched again.

use std::{
    fs::{self, File},
    io,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use parquet::{
    basic::Compression,
    file::{
        metadata::KeyValue,
        properties::{WriterProperties, WriterPropertiesPtr},
        reader::{FileReader as _, SerializedFileReader},
        writer::SerializedFileWriter,
    },
    schema::types::ColumnPath,
};

use super::{CompactionError, Table, columns::Columns, rows::Sessions, value::Row};
use crate::journal::Position;

/// Memory the rows of a row group take before they are written.
const ROW_GROUP_BYTES: usize = 32 << 20;
/// A file that is being written. Readers that look for `*.parquet` do not see it.
const UNFINISHED: &str = ".unfinished";
/// Key of the footer under which [`Sessions`] are kept, as they are after the file's last record.
const SESSIONS: &str = "ballast.sessions";

/// A file in the making. There is one per folder at a time, under the lock of the run's files.
#[derive(Debug)]
pub(super) struct Part {
    folder: PathBuf,
    columns: Columns,
    writer: SerializedFileWriter<File>,
    /// Whether it has its name.
    finished: bool,
}

impl Part {
    /// Begins a file of a table. What a dead writer left of another one goes.
    pub(super) fn begin(run: &Path, table: Table) -> Result<Self, CompactionError> {
        let folder = run.join(table.folder());
        let path = folder.join(UNFINISHED);
        let file = fs::create_dir_all(&folder).and_then(|()| File::create(&path));
        let file = file.map_err(CompactionError::io(&path))?;
        let schema = table.schema();
        let damaged = CompactionError::parquet(&path);
        let columns = Columns::new(schema.clone()).map_err(&damaged)?;
        let writer = SerializedFileWriter::new(file, schema, properties()).map_err(&damaged)?;
        Ok(Self { folder, columns, writer, finished: false })
    }

    /// Adds a row.
    pub(super) fn add(&mut self, row: Row) -> Result<(), CompactionError> {
        let added = self.columns.push(row).and_then(|()| {
            let is_full = self.columns.bytes() >= ROW_GROUP_BYTES;
            if is_full { self.columns.write(&mut self.writer) } else { Ok(()) }
        });
        added.map_err(CompactionError::parquet(&self.path()))
    }

    /// Makes it whole and durable, and names it after the records it covers.
    pub(super) fn finish(
        mut self,
        covers: &Range<Position>,
        sessions: &str,
    ) -> Result<(), CompactionError> {
        let path = self.path();
        let kept = KeyValue::new(SESSIONS.to_owned(), sessions.to_owned());
        self.writer.append_key_value_metadata(kept);
        let written = self.columns.write(&mut self.writer);
        let written = written.and_then(|()| self.writer.finish());
        written.map_err(CompactionError::parquet(&path))?;
        let named = || -> io::Result<()> {
            self.writer.inner().sync_all()?;
            fs::rename(&path, self.folder.join(name(covers)))?;
            File::open(&self.folder)?.sync_all()
        };
        named().map_err(CompactionError::io(&path))?;
        self.finished = true;
        Ok(())
    }

    fn path(&self) -> PathBuf {
        self.folder.join(UNFINISHED)
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.finished {
            // Best effort: the next file of the folder overwrites it.
            drop(fs::remove_file(self.path()));
        }
    }
}

/// The name of a file: its first record and the one after its last. Names sort as the records do.
pub(super) fn name(covers: &Range<Position>) -> String {
    format!("{:012}-{:012}.parquet", covers.start.0, covers.end.0)
}

/// Reads [`name`].
pub(super) fn covered(name: &str) -> Option<Range<Position>> {
    let (start, end) = name.strip_suffix(".parquet")?.split_once('-')?;
    Some(Position(start.parse().ok()?)..Position(end.parse().ok()?))
}

/// Whose the streams were after the last record of a file.
pub(super) fn sessions_after(path: &Path) -> Result<Sessions, CompactionError> {
    let file = File::open(path).map_err(CompactionError::io(path))?;
    let reader = SerializedFileReader::new(file).map_err(CompactionError::parquet(path))?;
    let kept = reader.metadata().file_metadata().key_value_metadata().into_iter().flatten();
    let kept = kept.filter(|one| one.key == SESSIONS).find_map(|one| one.value.as_deref());
    let missing = || CompactionError::Foreign { path: path.to_owned() };
    serde_json::from_str(kept.ok_or_else(missing)?).map_err(|_| missing())
}

fn properties() -> WriterPropertiesPtr {
    let logprobs = ["behavior_logprobs", "list", "element"].map(str::to_owned).to_vec();
    let properties = WriterProperties::builder()
        .set_created_by(concat!("ballast ", env!("CARGO_PKG_VERSION")).to_owned())
        .set_compression(Compression::SNAPPY)
        // No two of them are equal.
        .set_column_dictionary_enabled(ColumnPath::new(logprobs), false);
    Arc::new(properties.build())
}
