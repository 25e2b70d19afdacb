//! Compaction that dies, and goes on.

use std::{
    fs, io,
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
};

use ballast_coordinator::{
    compaction::{self, CompactionError, Table},
    journal::{Directory, Journal, Opened, Position, Reader, Storage as _},
};
use tokio::sync::watch;

use crate::{
    expected, files,
    round_trip::compact,
    sample::{self, Sampled},
};

/// Leaves of the newest files only those of the first `named` tables, as if the program had died after
/// it renamed that many; the next one is still under its other name, and only half of it is there.
fn die_after(run: &Path, named: usize) {
    for (index, table) in Table::ALL.into_iter().enumerate().skip(named) {
        let newest = files::paths(run, table).pop().unwrap();
        if index == named {
            let bytes = fs::read(&newest).unwrap();
            let unfinished = newest.with_file_name(".unfinished");
            fs::write(unfinished, &bytes[..bytes.len() / 2]).unwrap();
        }
        fs::remove_file(newest).unwrap();
    }
}

#[test]
fn a_death_between_any_two_files_loses_and_doubles_nothing() {
    let records = sample::run(2, 12);
    let expected = expected::tables(&records);
    let (first, second) = (records.len() / 3, records.len() * 2 / 3);
    for named in 0..=Table::ALL.len() {
        let run = tempfile::tempdir().unwrap();
        let reader = sample::write(run.path(), &records, 10);
        compact(&reader, first, run.path());
        compact(&reader, second, run.path());
        die_after(run.path(), named);
        let done = compact(&reader, records.len(), run.path());
        let begun = if named == Table::ALL.len() { second } else { first };
        assert_eq!(done.start, Position(begun as u64), "after {named} files");
        assert_eq!(files::tables(run.path()), expected, "after {named} files");
    }
}

/// A death of the first files, and one of what follows another death.
#[test]
fn deaths_one_after_the_other_lose_and_double_nothing() {
    let records = sample::run(3, 12);
    let run = tempfile::tempdir().unwrap();
    let reader = sample::write(run.path(), &records, 10);
    for (part, named) in [(1, 5), (2, 9), (2, 0), (3, 2), (4, 12), (4, 12)] {
        compact(&reader, records.len() * part / 5, run.path());
        die_after(run.path(), named);
    }
    compact(&reader, records.len(), run.path());
    assert_eq!(files::tables(run.path()), expected::tables(&records));
}

#[test]
fn compaction_that_is_told_to_stop_leaves_whole_files_only() {
    let records = sample::run(4, 12);
    let run = tempfile::tempdir().unwrap();
    let reader = sample::write(run.path(), &records, 10);
    let up_to = Position(records.len() as u64);
    let stopped = compaction::compact(&reader, up_to, run.path(), &mut |at| at.0 < 50).unwrap();
    assert_eq!(stopped.end, Position(0), "the files were not full");
    assert_eq!(files::tables(run.path()), expected::tables(&[]));
    assert!(!run.path().join("trajectories/.unfinished").exists());
}

#[test]
fn files_that_are_gone_or_foreign_are_named_with_the_remedy() {
    let records = sample::run(5, 6);
    let run = tempfile::tempdir().unwrap();
    let reader = sample::write(run.path(), &records, 10);
    compact(&reader, 20, run.path());
    compact(&reader, 40, run.path());
    fs::write(run.path().join("events/drops/mine.parquet"), "a file of somebody's own").unwrap();
    compact(&reader, 60, run.path());
    let lost = files::paths(run.path(), Table::Steps).remove(1);
    fs::remove_file(lost).unwrap();
    let error = compaction::covered(run.path()).unwrap_err();
    assert!(matches!(error, CompactionError::Torn { position: Position(20), .. }), "{error:?}");
    assert!(error.to_string().contains("events/steps"), "{error}");
    // The remedy helps, and the other tables stay as they are.
    fs::remove_dir_all(run.path().join("events/steps")).unwrap();
    compact(&reader, records.len(), run.path());
    fs::remove_file(run.path().join("events/drops/mine.parquet")).unwrap();
    assert_eq!(files::tables(run.path()), expected::tables(&records));
    assert_eq!(files::paths(run.path(), Table::Steps).len(), 1);
    assert_eq!(files::paths(run.path(), Table::Drops).len(), 4);
}

fn sealed(run: &Path) -> u64 {
    let storage = Directory::create(&run.join("journal")).unwrap();
    let reader = Reader::open(Arc::new(storage.clone()));
    compaction::sealed(&storage, &reader, Position(0)).unwrap().0
}

#[test]
fn a_journal_is_sealed_up_to_what_no_successor_can_change() {
    let records = sample::run(6, 12);
    let run = tempfile::tempdir().unwrap();
    let storage = Directory::create(&run.path().join("journal")).unwrap();
    // So small that each group has a segment of its own.
    let storage = Arc::new(storage.with_segment_bytes(1 << 12));
    assert_eq!(sealed(run.path()), 0, "nothing is there");
    let groups: Vec<_> = records
        .chunks(20)
        .map(|group| group.iter().map(Sampled::record).collect::<Vec<_>>())
        .collect();
    let Opened { mut journal, .. } = Journal::open(storage.clone(), None).unwrap();
    for (index, group) in groups.iter().take(4).enumerate() {
        journal.append(group).unwrap();
        assert_eq!(sealed(run.path()), 20 * (index as u64 + 1), "what was acknowledged");
    }
    // A successor has claimed the journal and has not begun: the last segment may still be written by
    // a leader that does not know.
    let segments = storage.list(ballast_coordinator::journal::SegmentNumber(0)).unwrap();
    let Opened { journal: mut successor, .. } = Journal::open(storage.clone(), None).unwrap();
    let sealed_then = sealed(run.path());
    assert!((40..80).contains(&sealed_then), "{sealed_then} of {} segments", segments.len());
    successor.append(&groups[4]).unwrap();
    assert_eq!(sealed(run.path()), 100);
}

/// The program itself, killed while it writes, again and again.
#[test]
fn the_program_that_is_killed_goes_on() {
    let records = sample::run(7, 60);
    let run = tempfile::tempdir().unwrap();
    sample::write(run.path(), &records, 10);
    let program = || {
        let mut program = Command::new(env!("CARGO_BIN_EXE_ballast-coordinator"));
        program.args(["journal", "compact"]).arg(run.path()).stderr(Stdio::null());
        program
    };
    let named =
        || Table::ALL.map(|table| files::paths(run.path(), table).len()).iter().sum::<usize>();
    for _ in 0..5 {
        let before = named();
        let mut running = program().stdout(Stdio::null()).spawn().unwrap();
        // Some of the files have their names, others have not; or it was too fast.
        while named() == before && running.try_wait().unwrap().is_none() {
            std::thread::yield_now();
        }
        running.kill().or_else(gone).unwrap();
        running.wait().unwrap();
    }
    let output = program().output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains(&format!("have all {}", records.len())), "{said}");
    assert_eq!(files::tables(run.path()), expected::tables(&records));
}

fn gone(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::InvalidInput { Ok(()) } else { Err(error) }
}

#[tokio::test]
async fn beside_a_coordinator_only_acknowledged_records_are_compacted() {
    let records = sample::run(8, 12);
    let run = tempfile::tempdir().unwrap();
    let reader = sample::write(run.path(), &records, 10);
    let acknowledged = records.len() - 25;
    let (tell, durable) = watch::channel(Position(3));
    let background = compaction::spawn(reader, durable, run.path().to_owned()).unwrap();
    tell.send_replace(Position(acknowledged as u64));
    background.finish().await;
    assert_eq!(files::tables(run.path()), expected::tables(&records[..acknowledged]));
}
