//! The tables as the Parquet library reads them from the files of a run.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use ballast_coordinator::compaction::Table;
use parquet::{
    file::reader::{FileReader as _, SerializedFileReader},
    record::{Field, Row},
};
use serde_json::{Map, Value as Json, json};

use crate::expected::Tables;

/// Every row of every table, in the order of the files.
pub(crate) fn tables(run: &Path) -> Tables {
    Table::ALL
        .map(|table| (table, paths(run, table).iter().flat_map(|path| rows(path)).collect()))
        .into()
}

/// The files of a table, in order.
pub(crate) fn paths(run: &Path, table: Table) -> Vec<PathBuf> {
    let folder = run.join(table.folder());
    if !folder.exists() {
        return Vec::new();
    }
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut paths: Vec<_> =
        entries.filter(|path| path.extension().is_some_and(|end| end == "parquet")).collect();
    paths.sort();
    paths
}

fn rows(path: &Path) -> Vec<Json> {
    let reader = SerializedFileReader::new(File::open(path).unwrap()).unwrap();
    reader.get_row_iter(None).unwrap().map(|row| object(&row.unwrap())).collect()
}

fn object(row: &Row) -> Json {
    row.get_column_iter()
        .map(|(name, field)| (name.clone(), json_of(field)))
        .collect::<Map<_, _>>()
        .into()
}

fn json_of(field: &Field) -> Json {
    match field {
        Field::Null => Json::Null,
        Field::Bool(value) => (*value).into(),
        Field::Long(value) => (*value).into(),
        Field::UByte(value) => (*value).into(),
        Field::UInt(value) => (*value).into(),
        Field::ULong(value) => (*value).into(),
        Field::Float(value) => json!(value),
        Field::Double(value) => (*value).into(),
        Field::Str(value) => value.as_str().into(),
        Field::Group(row) => object(row),
        Field::ListInternal(list) => list.elements().iter().map(json_of).collect(),
        Field::MapInternal(map) => {
            let name = |key: &Field| match key {
                Field::Str(name) => name.clone(),
                other => panic!("{other:?}"),
            };
            map.entries()
                .iter()
                .map(|(key, value)| (name(key), json_of(value)))
                .collect::<Map<_, _>>()
                .into()
        }
        other => panic!("no table has such a column: {other:?}"),
    }
}
