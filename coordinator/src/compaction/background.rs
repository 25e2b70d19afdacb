//! Compaction beside a running coordinator.

use std::{
    io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use tokio::{
    sync::{oneshot, watch},
    time::timeout,
};

use super::{Compacted, CompactionError, compact, covered};
use crate::journal::{Position, Reader};

/// Records the files of a running coordinator may be behind. Fewer would make many small files.
pub const BEHIND_RECORDS_MAX: u64 = 20_000;
/// Time they may be behind, if any record is missing.
pub const BEHIND_TIME_MAX: Duration = Duration::from_secs(600);
/// Time between two looks at how far behind they are.
const INTERVAL: Duration = Duration::from_secs(5);
/// Time the end of a run waits for its last files.
const FINISH_MAX: Duration = Duration::from_secs(20);
/// As nice as can be: it takes what the run leaves of the processor.
const NICENESS: i32 = 19;

/// The thread. Dropped, it ends without the last files.
#[derive(Debug)]
pub struct Background {
    finish: mpsc::SyncSender<()>,
    finished: oneshot::Receiver<Result<Compacted, CompactionError>>,
    abandoned: Arc<AtomicBool>,
}

/// Starts a thread that keeps the files of a run up to date with its journal. It writes only what the
/// writer has acknowledged: all records before `durable`.
///
/// # Errors
/// The system has no thread left.
pub fn spawn(
    reader: Reader,
    durable: watch::Receiver<Position>,
    run: PathBuf,
) -> io::Result<Background> {
    let (finish, asked) = mpsc::sync_channel(1);
    let (tell, finished) = oneshot::channel();
    let abandoned = Arc::new(AtomicBool::new(false));
    let worker = Worker {
        reader,
        durable,
        run,
        abandoned: Arc::clone(&abandoned),
        written: Instant::now(),
        reported: String::new(),
    };
    thread::Builder::new().name("compaction".into()).spawn(move || {
        // Only as good as the system allows.
        rustix::process::nice(NICENESS).ok();
        if let Some(last) = worker.work(&asked) {
            // Nobody waits any more: it took too long.
            drop(tell.send(last));
        }
    })?;
    Ok(Background { finish, finished, abandoned })
}

impl Background {
    /// The run is over and all of its records are durable: writes the last files. Waits, but not for
    /// ever; what is missing then, `ballast-coordinator journal compact` writes.
    pub async fn finish(mut self) {
        // There is a place, since nobody else sends. If the thread is gone, that shows below.
        self.finish.try_send(()).ok();
        match timeout(FINISH_MAX, &mut self.finished).await {
            Ok(Ok(Ok(done))) => {
                tracing::debug!("compacted the journal up to record {}", done.end);
            }
            Ok(Ok(Err(error))) => tracing::warn!("the journal is not compacted: {error}"),
            Ok(Err(_)) => tracing::warn!("the journal is not compacted: its thread ended early"),
            Err(_) => tracing::warn!(
                "the journal is not compacted yet; `ballast-coordinator journal compact` goes on"
            ),
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.abandoned.store(true, Ordering::Relaxed);
    }
}

struct Worker {
    reader: Reader,
    durable: watch::Receiver<Position>,
    run: PathBuf,
    abandoned: Arc<AtomicBool>,
    /// When the newest files were written, or the first ones began to be due.
    written: Instant,
    /// The last problem somebody was told about.
    reported: String,
}

impl Worker {
    /// Compacts now and then until it is asked to finish; `None` if it was abandoned.
    fn work(mut self, asked: &mpsc::Receiver<()>) -> Option<Result<Compacted, CompactionError>> {
        loop {
            match asked.recv_timeout(INTERVAL) {
                Ok(()) => return Some(self.compact()),
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) => self.catch_up(),
            }
        }
    }

    /// Compacts if there is enough to do. A problem is no reason to stop: it may pass, as a full disk
    /// does, and the journal has everything.
    fn catch_up(&mut self) {
        let problem =
            self.compact_if_due().err().map(|error| error.to_string()).unwrap_or_default();
        if !problem.is_empty() && problem != self.reported {
            tracing::warn!("the journal is not compacted: {problem}");
        }
        self.reported = problem;
    }

    fn compact_if_due(&mut self) -> Result<(), CompactionError> {
        let behind = self.durable.borrow().0.saturating_sub(covered(&self.run)?.0);
        if is_due(behind, self.written.elapsed()) {
            self.compact()?;
            self.written = Instant::now();
        }
        Ok(())
    }

    fn compact(&self) -> Result<Compacted, CompactionError> {
        let durable = *self.durable.borrow();
        compact(&self.reader, durable, &self.run, &mut |_| !self.abandoned.load(Ordering::Relaxed))
    }
}

/// Whether files that miss this many records should be written, so long after the last ones.
fn is_due(behind: u64, since: Duration) -> bool {
    behind >= BEHIND_RECORDS_MAX || behind > 0 && since >= BEHIND_TIME_MAX
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::journal::{Directory, Journal, Record};

    #[test]
    fn files_are_due_when_many_records_or_old_ones_are_missing() {
        let (now, late) = (Duration::ZERO, BEHIND_TIME_MAX);
        assert!(!is_due(0, now) && !is_due(0, late), "there is nothing to write");
        assert!(!is_due(1, now) && is_due(1, late));
        assert!(!is_due(BEHIND_RECORDS_MAX - 1, now) && is_due(BEHIND_RECORDS_MAX, now));
    }

    #[test]
    fn a_problem_passes() {
        let run = tempfile::tempdir().expect("a temporary directory");
        let storage = Directory::create(&run.path().join("journal")).expect("made");
        let storage = Arc::new(storage.with_segment_bytes(1 << 16));
        let mut journal = Journal::open(storage, None).expect("opened").journal;
        let record = Record { head: Bytes::new(), payload: Bytes::new() };
        journal.append(&[record.clone(), record]).expect("durable");
        let (_acknowledged, durable) = watch::channel(Position(2));
        let mut worker = Worker {
            reader: journal.reader(),
            durable,
            run: run.path().to_owned(),
            abandoned: Arc::default(),
            written: Instant::now(),
            reported: String::new(),
        };
        worker.catch_up();
        assert_eq!(covered(run.path()).expect("readable"), Position(0), "it is not due");
        worker.written = Instant::now().checked_sub(BEHIND_TIME_MAX).expect("the machine is up");
        let taken = run.path().join("events");
        std::fs::write(&taken, "in the way").expect("written");
        worker.catch_up();
        assert!(worker.reported.contains("events"), "{}", worker.reported);
        std::fs::remove_file(taken).expect("removed");
        worker.catch_up();
        assert_eq!(worker.reported, "");
        assert_eq!(covered(run.path()).expect("readable"), Position(2));
    }
}
