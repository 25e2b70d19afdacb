//! Which records the files of a run have already. The names of the files are the only account of it,
//! so it is right after a crash at any point: tables may be ahead of each other, but each is without
//! gap or overlap from record 0 on.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use super::{CompactionError, Table, part, rows::Sessions};
use crate::journal::Position;

/// How far the files of each table go.
#[derive(Debug)]
pub(super) struct Cover {
    tables: BTreeMap<Table, Reach>,
}

/// The end of a table's files.
#[derive(Debug, Default)]
struct Reach {
    /// First record that is in none of them.
    next: Position,
    newest: Option<PathBuf>,
}

impl Cover {
    /// Looks at the files of a run.
    pub(super) fn read(run: &Path) -> Result<Self, CompactionError> {
        let reach = |table: &Table| Ok((*table, Reach::read(&run.join(table.folder()))?));
        Ok(Self { tables: Table::ALL.iter().map(reach).collect::<Result<_, CompactionError>>()? })
    }

    /// First record that is missing in some table.
    pub(super) fn start(&self) -> Position {
        self.tables.values().map(|reach| reach.next).min().unwrap_or_default()
    }

    /// First record that is missing in this table.
    pub(super) fn next(&self, table: Table) -> Position {
        self.tables.get(&table).map_or(Position(0), |reach| reach.next)
    }

    /// Whose the streams are before record [`Cover::start`].
    pub(super) fn sessions(&self) -> Result<Sessions, CompactionError> {
        let start = self.start();
        let last = self.tables.values().find(|reach| reach.next == start);
        match last.and_then(|reach| reach.newest.as_ref()) {
            Some(path) => part::sessions_after(path),
            None => Ok(Sessions::default()),
        }
    }
}

impl Reach {
    fn read(folder: &Path) -> Result<Self, CompactionError> {
        let mut files = Vec::new();
        for name in names(folder).map_err(CompactionError::io(folder))? {
            // Whatever else people put there is theirs.
            files.extend(part::covered(&name).map(|covers| (covers.start, covers.end, name)));
        }
        files.sort_unstable();
        let mut reach = Self::default();
        for (start, end, name) in files {
            if start != reach.next || end <= start {
                let (folder, position) = (folder.to_owned(), reach.next);
                return Err(CompactionError::Torn { folder, position });
            }
            reach = Self { next: end, newest: Some(folder.join(name)) };
        }
        Ok(reach)
    }
}

/// Names of the files in a folder; none if there is no folder yet.
fn names(folder: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let names: io::Result<Vec<_>> = entries.map(|entry| Ok(entry?.file_name())).collect();
    Ok(names?.into_iter().filter_map(|name| name.into_string().ok()).collect())
}
