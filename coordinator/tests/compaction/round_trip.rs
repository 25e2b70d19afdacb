//! What is read back is what the entries say.

use std::path::Path;

use ballast_coordinator::{
    compaction::{self, Compacted, Table},
    journal::{Position, Reader},
};
use proptest::prelude::*;

use crate::{expected, files, sample};

pub(crate) fn compact(reader: &Reader, up_to: usize, run: &Path) -> Compacted {
    compaction::compact(reader, Position(up_to as u64), run, &mut |_| true).unwrap()
}

#[test]
fn every_table_says_what_the_entries_say() {
    let run = tempfile::tempdir().unwrap();
    let records = sample::run(1, 30);
    let reader = sample::write(run.path(), &records, 10);
    let done = compact(&reader, records.len(), run.path());
    assert_eq!(done, Compacted { start: Position(0), end: Position(records.len() as u64) });
    let expected = expected::tables(&records);
    let read = files::tables(run.path());
    for table in Table::ALL {
        assert!(!expected[&table].is_empty(), "the sample has no {table}");
        assert_eq!(read[&table], expected[&table], "{table}");
    }
}

#[test]
fn a_run_without_records_has_no_files_and_one_without_events_has_empty_ones() {
    let run = tempfile::tempdir().unwrap();
    let records = sample::run(1, 0);
    let reader = sample::write(run.path(), &records[..3], 10);
    assert_eq!(compact(&reader, 0, run.path()), Compacted::default());
    assert!(files::paths(run.path(), Table::Run).is_empty());
    compact(&reader, 3, run.path());
    assert_eq!(files::paths(run.path(), Table::Steps).len(), 1, "so that a query finds a file");
    assert_eq!(files::tables(run.path()), expected::tables(&records[..3]));
}

#[test]
fn files_are_rolled() {
    let run = tempfile::tempdir().unwrap();
    let records = sample::decisions(compaction::CHUNK_RECORDS + 50);
    let reader = sample::write(run.path(), &records, 1000);
    compact(&reader, records.len(), run.path());
    let paths = files::paths(run.path(), Table::Decisions);
    let names: Vec<_> = paths.iter().map(|path| path.file_name().unwrap()).collect();
    assert_eq!(names, ["000000000000-000000100000.parquet", "000000100000-000000100050.parquet"]);
    assert_eq!(files::tables(run.path()), expected::tables(&records));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    /// Whatever the run and wherever compaction stops and goes on.
    #[test]
    fn compaction_in_pieces_is_compaction_in_one(
        seed: u64,
        steps in 0..9_u64,
        cuts in prop::collection::vec(0.0..1.0_f64, 0..5),
    ) {
        let run = tempfile::tempdir().unwrap();
        let records = sample::run(seed, steps);
        let reader = sample::write(run.path(), &records, 7);
        let mut reached = 0;
        for cut in cuts {
            let cut = (cut * records.len() as f64) as usize;
            let done = compact(&reader, cut, run.path());
            reached = reached.max(cut);
            prop_assert_eq!(done.end, Position(reached as u64));
        }
        compact(&reader, records.len(), run.path());
        prop_assert_eq!(files::tables(run.path()), expected::tables(&records));
        let again = compact(&reader, records.len(), run.path());
        prop_assert_eq!(again.start, again.end, "nothing is left to do");
    }
}
