//! The journal's thread: commits records in groups, and keeps trying while the storage refuses.
//!
//! It commits whatever has queued while the last commit ran. Nobody is kept waiting for a group to
//! fill, and the more there is to do the larger the groups are.

use std::{io, mem, thread, time::Duration};

use ballast_runtime::backoff::Backoff;
use bytes::Bytes;
use tokio::sync::mpsc;

use super::{
    Location, Permit, Position, Record,
    appending::{AppendError, Journal},
    intake::INTAKE_RECORDS_MAX,
};

/// Records in one commit.
pub const COMMIT_RECORDS_MAX: usize = 1024;
/// Bytes in one commit, unless one record alone has more.
pub const COMMIT_BYTES_MAX: usize = 8 << 20;
/// Requests that wait for the disk and hold no room in the intake.
const OTHER_REQUESTS_MAX: usize = 1024;
/// Longest pause between two attempts while the storage refuses.
const RETRY_MAX: Duration = Duration::from_secs(5);
const RETRY_INITIAL: Duration = Duration::from_millis(100);

/// Something to do. Requests are served in order.
#[derive(Debug)]
pub enum Request {
    /// Append a record.
    Append {
        /// The record.
        record: Record,
        /// Room it holds in the intake until it is durable.
        permit: Option<Permit>,
    },
    /// Keep a state that has the records before this position in it.
    Snapshot {
        /// First record that is not in it.
        position: Position,
        /// The state.
        bytes: Bytes,
    },
    /// Delete what nobody needs: whole segments before this position and the newest snapshot.
    Forget {
        /// First record that is still needed.
        before: Position,
    },
}

/// What became of requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Some more records are durable.
    Durable {
        /// All records before this position are.
        up_to: Position,
        /// Where the ones of this commit are; the last one is the one before `up_to`.
        locations: Vec<Location>,
    },
    /// A snapshot is durable.
    SnapshotKept(Position),
    /// A snapshot was not kept, or nothing was forgotten. The run can go on as it is.
    Refused(String),
    /// The storage refuses records; the writer keeps trying.
    Blocked(String),
    /// The storage takes records again.
    Recovered,
    /// Another leader has taken over: nothing more will be durable.
    Fenced(String),
    /// The storage cannot be trusted any more: nothing more will be durable.
    Failed(String),
}

/// Where the thread writes: a journal, or one that fails on purpose in a test.
pub trait Append: Send + 'static {
    /// As [`Journal::append`].
    ///
    /// # Errors
    /// As there.
    fn append(&mut self, records: &[Record]) -> Result<Vec<Location>, AppendError>;

    /// As [`Journal::put_snapshot`].
    ///
    /// # Errors
    /// As there.
    fn put_snapshot(&mut self, position: Position, bytes: &[u8]) -> Result<(), AppendError>;

    /// As [`Journal::forget_before`].
    ///
    /// # Errors
    /// As there.
    fn forget_before(&mut self, position: Position) -> Result<(), AppendError>;

    /// As [`Journal::close`].
    ///
    /// # Errors
    /// As there.
    fn close(self) -> Result<(), AppendError>;
}

impl Append for Journal {
    fn append(&mut self, records: &[Record]) -> Result<Vec<Location>, AppendError> {
        Self::append(self, records)
    }

    fn put_snapshot(&mut self, position: Position, bytes: &[u8]) -> Result<(), AppendError> {
        Self::put_snapshot(self, position, bytes)
    }

    fn forget_before(&mut self, position: Position) -> Result<(), AppendError> {
        Self::forget_before(self, position)
    }

    fn close(self) -> Result<(), AppendError> {
        Self::close(self)
    }
}

/// The running thread. It ends when [`Writer::requests`] is dropped and all requests are done, when
/// [`Writer::outcomes`] is dropped, or after [`Outcome::Fenced`] or [`Outcome::Failed`].
#[derive(Debug)]
pub struct Writer {
    /// Way in; never full as long as what comes in numbers holds permits.
    pub requests: mpsc::Sender<Request>,
    /// Way out; must be drained.
    pub outcomes: mpsc::Receiver<Outcome>,
    /// The thread.
    pub thread: thread::JoinHandle<()>,
}

/// Starts the thread.
///
/// # Errors
/// The system has no thread left.
pub fn spawn(journal: impl Append) -> io::Result<Writer> {
    let (requests, inbox) = mpsc::channel(INTAKE_RECORDS_MAX + OTHER_REQUESTS_MAX);
    let (outbox, outcomes) = mpsc::channel(INTAKE_RECORDS_MAX);
    let backoff = Backoff::new(RETRY_INITIAL, RETRY_MAX, 0);
    let committer = Committer { journal, inbox, outbox, backoff, group: Group::default() };
    let thread = thread::Builder::new().name("journal".into()).spawn(move || committer.run())?;
    Ok(Writer { requests, outcomes, thread })
}

/// Nobody listens any more, or nothing can be appended any more.
struct Ended;

struct Committer<J> {
    journal: J,
    inbox: mpsc::Receiver<Request>,
    outbox: mpsc::Sender<Outcome>,
    backoff: Backoff,
    group: Group,
}

/// Records of one commit, and the room they hold.
#[derive(Default)]
struct Group {
    records: Vec<Record>,
    permits: Vec<Permit>,
    bytes: usize,
}

impl Group {
    fn add(&mut self, record: Record, permit: Option<Permit>) {
        self.bytes += record.head.len() + record.payload.len();
        self.records.push(record);
        self.permits.extend(permit);
    }

    fn takes(&self, record: &Record) -> bool {
        let bytes = self.bytes + record.head.len() + record.payload.len();
        self.records.is_empty()
            || self.records.len() < COMMIT_RECORDS_MAX && bytes <= COMMIT_BYTES_MAX
    }
}

impl<J: Append> Committer<J> {
    fn run(mut self) {
        while let Some(request) = self.inbox.blocking_recv() {
            if self.serve_queue(request).is_err() {
                return;
            }
        }
        if let Err(error) = self.journal.close() {
            tracing::debug!(%error, "the journal was not closed in order");
        }
    }

    /// Serves a request and what has queued behind it.
    fn serve_queue(&mut self, request: Request) -> Result<(), Ended> {
        let mut next = Some(request);
        while let Some(request) = next {
            match request {
                Request::Append { record, permit } => {
                    if !self.group.takes(&record) {
                        self.commit()?;
                    }
                    self.group.add(record, permit);
                }
                Request::Snapshot { position, bytes } => {
                    self.commit()?;
                    let kept = self.journal.put_snapshot(position, &bytes);
                    self.answer(kept, Some(Outcome::SnapshotKept(position)))?;
                }
                Request::Forget { before } => {
                    self.commit()?;
                    let forgotten = self.journal.forget_before(before);
                    self.answer(forgotten, None)?;
                }
            }
            next = self.inbox.try_recv().ok();
        }
        self.commit()
    }

    fn answer(
        &self,
        result: Result<(), AppendError>,
        outcome: Option<Outcome>,
    ) -> Result<(), Ended> {
        match result {
            Ok(()) => outcome.map_or(Ok(()), |outcome| self.send(outcome)),
            Err(error @ AppendError::Fenced { .. }) => {
                self.send(Outcome::Fenced(error.to_string()))?;
                Err(Ended)
            }
            Err(error) => self.send(Outcome::Refused(error.to_string())),
        }
    }

    /// Makes the group durable, however long it takes.
    fn commit(&mut self) -> Result<(), Ended> {
        let Group { records, permits, .. } = mem::take(&mut self.group);
        if records.is_empty() {
            return Ok(());
        }
        let locations = self.append(&records)?;
        // Room is given back before anybody looks at the outcome; both are bounded by the intake.
        drop(permits);
        let Some(last) = locations.last() else { return Ok(()) };
        let up_to = Position(last.position.0 + 1);
        self.send(Outcome::Durable { up_to, locations })
    }
    /// Appends until it succeeds.
    fn append(&mut self, records: &[Record]) -> Result<Vec<Location>, Ended> {
        let mut reported = None;
        loop {
            let problem = match self.journal.append(records) {
                Ok(locations) => {
                    self.backoff.reset();
                    if reported.is_some() {
                        self.send(Outcome::Recovered)?;
                    }
                    return Ok(locations);
                }
                Err(error @ AppendError::Unavailable(_)) => error.to_string(),
                Err(error @ AppendError::Fenced { .. }) => {
                    self.send(Outcome::Fenced(error.to_string()))?;
                    return Err(Ended);
                }
                Err(error) => {
                    self.send(Outcome::Failed(error.to_string()))?;
                    return Err(Ended);
                }
            };
            if reported.as_ref() != Some(&problem) {
                let text = format!("{problem}; the run goes on by itself");
                self.send(Outcome::Blocked(text))?;
                reported = Some(problem);
            }
            if self.outbox.is_closed() {
                return Err(Ended);
            }
            thread::sleep(self.backoff.next_delay());
        }
    }

    fn send(&self, outcome: Outcome) -> Result<(), Ended> {
        self.outbox.blocking_send(outcome).map_err(|_| Ended)
    }
}

#[cfg(test)]
#[path = "writer_test.rs"]
mod tests;
