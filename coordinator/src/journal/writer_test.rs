use std::sync::{Arc, mpsc as std_mpsc};

use super::*;
use crate::journal::{Directory, Intake, Reader, SegmentNumber, Term};

/// What a journal in a test does, append by append; afterwards it takes all.
struct Scripted {
    script: std::vec::IntoIter<AppendError>,
    next: u64,
    appended: std_mpsc::Sender<usize>,
}

impl Append for Scripted {
    fn append(&mut self, records: &[Record]) -> Result<Vec<Location>, AppendError> {
        if let Some(error) = self.script.next() {
            return Err(error);
        }
        self.appended.send(records.len()).ok();
        let first = self.next;
        self.next += records.len() as u64;
        Ok((first..self.next).map(location).collect())
    }

    fn put_snapshot(&mut self, _: Position, _: &[u8]) -> Result<(), AppendError> {
        self.script.next().map_or(Ok(()), Err)
    }

    fn forget_before(&mut self, _: Position) -> Result<(), AppendError> {
        self.script.next().map_or(Ok(()), Err)
    }

    fn close(self) -> Result<(), AppendError> {
        self.appended.send(0).ok();
        Ok(())
    }
}

fn location(position: u64) -> Location {
    let (position, segment) = (Position(position), SegmentNumber(1));
    Location { position, segment, offset: 0, head_bytes: 1, payload_bytes: 0 }
}

fn request(number: u64) -> Request {
    let record = Record { head: number.to_string().into(), ..Record::default() };
    Request::Append { record, permit: None }
}

fn unavailable() -> AppendError {
    AppendError::Unavailable("cannot write: free space on its disk".into())
}

fn fenced() -> AppendError {
    AppendError::Fenced { term: Term(1), newest: Term(2) }
}

/// A committer without its thread: requests can be queued before it runs.
fn run(script: Vec<AppendError>, requests: Vec<Request>) -> (Vec<Outcome>, Vec<usize>) {
    let (queue, inbox) = mpsc::channel(requests.len().max(1));
    let (outbox, mut outcomes) = mpsc::channel(100);
    let (appended, groups) = std_mpsc::channel();
    for request in requests {
        queue.try_send(request).expect("room");
    }
    drop(queue);
    let journal = Scripted { script: script.into_iter(), next: 0, appended };
    let backoff = Backoff::new(Duration::ZERO, Duration::ZERO, 0);
    Committer { journal, inbox, outbox, backoff, group: Group::default() }.run();
    let mut seen = Vec::new();
    while let Ok(outcome) = outcomes.try_recv() {
        seen.push(outcome);
    }
    (seen, groups.try_iter().collect())
}

fn durable(positions: std::ops::Range<u64>) -> Outcome {
    let up_to = Position(positions.end);
    Outcome::Durable { up_to, locations: positions.map(location).collect() }
}

#[test]
fn what_has_queued_is_one_commit_and_the_end_is_in_order() {
    let (seen, groups) = run(vec![], (0..5).map(request).collect());
    assert_eq!(seen, [durable(0..5)]);
    assert_eq!(groups, [5, 0]);
}

#[test]
fn a_commit_is_bounded_in_records_and_in_bytes() {
    let many = COMMIT_RECORDS_MAX as u64 + 3;
    let (_, groups) = run(vec![], (0..many).map(request).collect());
    assert_eq!(groups, [COMMIT_RECORDS_MAX, 3, 0]);
    let large = |bytes| {
        let record = Record { head: Bytes::new(), payload: vec![0; bytes].into() };
        Request::Append { record, permit: None }
    };
    let sizes = [COMMIT_BYTES_MAX, 1, COMMIT_BYTES_MAX - 1, 1, 3 * COMMIT_BYTES_MAX, 1];
    let (_, groups) = run(vec![], sizes.into_iter().map(large).collect());
    assert_eq!(groups, [1, 2, 1, 1, 1, 0]);
}

#[test]
fn a_storage_that_refuses_is_tried_again_and_reported_once() {
    let other = AppendError::Unavailable("cannot write: look after its disk".into());
    let script = vec![unavailable(), unavailable(), other];
    let (seen, groups) = run(script, (0..3).map(request).collect());
    assert!(matches!(&seen[0], Outcome::Blocked(text) if text.contains("free space")));
    assert!(matches!(&seen[1], Outcome::Blocked(text) if text.contains("look after its disk")));
    assert_eq!(seen[2..], [Outcome::Recovered, durable(0..3)]);
    assert_eq!(groups, [3, 0], "one group, once");
}

#[test]
fn nothing_is_done_after_another_leader_or_a_failure() {
    let too_large = AppendError::TooLarge { bytes: 2, bytes_max: 1 };
    for error in [fenced(), AppendError::Fatal("sync".into()), too_large] {
        let (seen, groups) = run(vec![error.clone()], (0..3).map(request).collect());
        let expected = match error {
            AppendError::Fenced { .. } => Outcome::Fenced(error.to_string()),
            _ => Outcome::Failed(error.to_string()),
        };
        assert_eq!(seen, [expected]);
        assert!(groups.is_empty(), "not even an orderly end: {groups:?}");
    }
}

#[test]
fn snapshots_wait_for_the_records_before_them_and_their_failure_is_no_disaster() {
    let snapshot =
        |position| Request::Snapshot { position: Position(position), bytes: Bytes::new() };
    let forget = Request::Forget { before: Position(1) };
    let requests = vec![request(0), snapshot(1), request(1), forget, request(2)];
    let (seen, _) = run(vec![], requests);
    let kept = Outcome::SnapshotKept(Position(1));
    assert_eq!(seen, [durable(0..1), kept, durable(1..2), durable(2..3)]);

    let (seen, _) = run(vec![unavailable()], vec![snapshot(0), request(0)]);
    assert!(matches!(&seen[0], Outcome::Refused(text) if text.contains("free space")));
    assert_eq!(seen[1..], [durable(0..1)]);

    let (seen, _) = run(vec![fenced()], vec![snapshot(0), request(0)]);
    assert_eq!(seen, [Outcome::Fenced(fenced().to_string())]);
}

#[test]
fn the_thread_ends_when_nobody_listens_even_while_the_storage_refuses() {
    let (appended, _groups) = std_mpsc::channel();
    let script = vec![unavailable(); 1000].into_iter();
    let writer = spawn(Scripted { script, next: 0, appended }).expect("a thread");
    writer.requests.blocking_send(request(0)).expect("running");
    drop(writer.outcomes);
    writer.thread.join().expect("no panic");
}

#[tokio::test]
async fn a_journal_behind_the_thread_keeps_records_and_gives_their_room_back() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let storage = Arc::new(Directory::create(directory.path()).expect("usable"));
    let journal = Journal::open(storage.clone(), None).expect("free").journal;
    let mut writer = spawn(journal).expect("a thread");
    let intake = Intake::default();
    let mut durable = Position(0);
    for number in 0..3000 {
        let record = Record { head: number.to_string().into(), payload: vec![1; 100].into() };
        // More than there is room for at once: it comes back as records become durable.
        let permit = loop {
            tokio::select! {
                permit = intake.reserve(100) => break permit,
                Some(Outcome::Durable { up_to, .. }) = writer.outcomes.recv() => durable = up_to,
            }
        };
        writer.requests.send(Request::Append { record, permit }).await.expect("running");
    }
    while durable < Position(3000) {
        match writer.outcomes.recv().await {
            Some(Outcome::Durable { up_to, .. }) => durable = up_to,
            other => panic!("{other:?}"),
        }
    }
    drop(writer.requests);
    assert_eq!(writer.outcomes.recv().await, None);
    writer.thread.join().expect("no panic");
    let records = Reader::open(storage).records_from(Position(0)).expect("readable");
    assert_eq!(records.count(), 3000);
}
