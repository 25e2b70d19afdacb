//! The journal's thread: takes records from the driver, commits them in groups, keeps trying while
//! the disk refuses.
//!
//! Who blocks whom: nobody waits for this thread except the actors, whose trajectories hold a
//! [`Permit`] until they are durable; without a permit their stream is not read (HTTP/2 flow
//! control does the rest).

use std::{io, sync::Arc, thread, time::Duration};

use ballast_proto::{EpisodeId, MESSAGE_BYTES_MAX};
use ballast_runtime::backoff::Backoff;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::journal::{Journal, Record};

/// Trajectories between an actor's stream and the disk.
pub const INTAKE_TRAJECTORIES_MAX: usize = 1024;
/// Their bytes. Four of the largest messages: one is never too large to get in.
pub const INTAKE_BYTES_MAX: usize = 4 * MESSAGE_BYTES_MAX;
/// Records that are not trajectories and wait for the disk: batches (at most a few) and notes.
const OTHER_RECORDS_MAX: usize = 256;
/// Records in one group commit.
const COMMIT_RECORDS_MAX: usize = 256;
/// Longest pause between two attempts while the disk refuses.
const RETRY_MAX: Duration = Duration::from_secs(5);
const RETRY_INITIAL: Duration = Duration::from_millis(100);

/// Room in the intake, held by a trajectory until it is durable.
#[derive(Debug)]
pub struct Permit {
    _count: OwnedSemaphorePermit,
    _bytes: OwnedSemaphorePermit,
}

/// The room of the intake.
#[derive(Clone, Debug)]
pub struct Intake {
    count: Arc<Semaphore>,
    /// In KiB, because a semaphore counts no further than 2^29 on small machines.
    kibibytes: Arc<Semaphore>,
}

impl Default for Intake {
    fn default() -> Self {
        Self {
            count: Arc::new(Semaphore::new(INTAKE_TRAJECTORIES_MAX)),
            kibibytes: Arc::new(Semaphore::new(INTAKE_BYTES_MAX >> 10)),
        }
    }
}

impl Intake {
    /// Waits for room for a trajectory of this size. `None` when the process is going down.
    pub async fn reserve(&self, bytes: usize) -> Option<Permit> {
        let kibibytes = (bytes.min(INTAKE_BYTES_MAX) >> 10).max(1) as u32;
        let count = Arc::clone(&self.count).acquire_owned().await.ok()?;
        let room = Arc::clone(&self.kibibytes).acquire_many_owned(kibibytes).await.ok()?;
        Some(Permit { _count: count, _bytes: room })
    }
}

/// What to tell the engine once a record is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Receipt {
    /// A trajectory.
    Trajectory(EpisodeId),
    /// The batch of this index.
    Batch(u64),
    /// Nothing waits for it.
    Note,
}

/// A record to append.
#[derive(Debug)]
pub struct Request {
    /// The record.
    pub record: Record,
    /// Its receipt.
    pub receipt: Receipt,
    /// Room it holds in the intake.
    pub permit: Option<Permit>,
}

/// What became of requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// These are durable.
    Durable(Vec<Receipt>),
    /// The disk refuses; the writer keeps trying.
    Blocked(String),
    /// The disk takes records again.
    Recovered,
}

/// Where groups of records go: the journal, or a disk that fails on purpose in a test.
pub trait Append: Send + 'static {
    /// Makes records durable.
    ///
    /// # Errors
    /// The disk refuses; the same records may be appended again.
    fn append(&mut self, records: &[Record]) -> io::Result<()>;
}

impl Append for Journal {
    fn append(&mut self, records: &[Record]) -> io::Result<()> {
        Self::append(self, records)
    }
}

/// The running thread. It ends when [`Writer::requests`] is dropped and all requests are done.
#[derive(Debug)]
pub struct Writer {
    /// Way in; never full as long as trajectories hold permits.
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
    let backoff = Backoff::new(RETRY_INITIAL, RETRY_MAX, 0);
    let (requests, inbox) = mpsc::channel(INTAKE_TRAJECTORIES_MAX + OTHER_RECORDS_MAX);
    let (outbox, outcomes) = mpsc::channel(INTAKE_TRAJECTORIES_MAX);
    let thread = thread::Builder::new()
        .name("journal".into())
        .spawn(move || write(journal, backoff, inbox, outbox))?;
    Ok(Writer { requests, outcomes, thread })
}

fn write(
    mut journal: impl Append,
    mut backoff: Backoff,
    mut inbox: mpsc::Receiver<Request>,
    outbox: mpsc::Sender<Outcome>,
) {
    while let Some(first) = inbox.blocking_recv() {
        let mut group = vec![first];
        while group.len() < COMMIT_RECORDS_MAX
            && let Ok(next) = inbox.try_recv()
        {
            group.push(next);
        }
        let (mut records, mut receipts, mut permits) = (Vec::new(), Vec::new(), Vec::new());
        for Request { record, receipt, permit } in group {
            records.push(record);
            receipts.push(receipt);
            permits.push(permit);
        }
        if !commit(&mut journal, &records, &mut backoff, &outbox) {
            return;
        }
        // Room is given back before the receipts are looked at; both are bounded by the intake.
        drop(permits);
        if outbox.blocking_send(Outcome::Durable(receipts)).is_err() {
            return;
        }
    }
}

/// Appends until it succeeds. Returns false when nobody listens any more.
fn commit(
    journal: &mut impl Append,
    records: &[Record],
    backoff: &mut Backoff,
    outbox: &mpsc::Sender<Outcome>,
) -> bool {
    let mut blocked = false;
    while let Err(error) = journal.append(records) {
        blocked = true;
        let problem = format!(
            "the journal cannot be written ({error}); free disk space, the run goes on by itself"
        );
        if outbox.blocking_send(Outcome::Blocked(problem)).is_err() {
            return false;
        }
        thread::sleep(backoff.next_delay());
    }
    backoff.reset();
    !blocked || outbox.blocking_send(Outcome::Recovered).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk that is full for the first `failures` appends.
    struct FullDisk {
        failures: u32,
        appended: std::sync::mpsc::Sender<usize>,
    }

    impl Append for FullDisk {
        fn append(&mut self, records: &[Record]) -> io::Result<()> {
            if self.failures > 0 {
                self.failures -= 1;
                return Err(io::Error::from(io::ErrorKind::StorageFull));
            }
            self.appended.send(records.len()).map_err(io::Error::other)
        }
    }

    fn request(receipt: Receipt) -> Request {
        Request { record: Record::Note("n".into()), receipt, permit: None }
    }

    #[test]
    fn nothing_is_durable_while_the_disk_is_full_and_nothing_is_lost() {
        let (appended, groups) = std::sync::mpsc::channel();
        let (requests, inbox) = mpsc::channel(8);
        let (outbox, mut outcomes) = mpsc::channel(64);
        for episode in 0..3 {
            let receipt = Receipt::Trajectory(EpisodeId(episode));
            requests.try_send(request(receipt)).expect("room");
        }
        drop(requests);
        let instant = Backoff::new(Duration::ZERO, Duration::ZERO, 0);
        write(FullDisk { failures: 2, appended }, instant, inbox, outbox);

        let seen: Vec<Outcome> = std::iter::from_fn(|| outcomes.blocking_recv()).collect();
        assert!(matches!(&seen[0], Outcome::Blocked(why) if why.contains("free disk space")));
        assert!(matches!(&seen[1], Outcome::Blocked(_)));
        assert_eq!(seen[2], Outcome::Recovered);
        let receipts = [0, 1, 2].map(|episode| Receipt::Trajectory(EpisodeId(episode)));
        assert_eq!(seen[3], Outcome::Durable(receipts.to_vec()));
        assert_eq!(groups.try_iter().collect::<Vec<_>>(), [3], "one group, once");
    }

    #[tokio::test]
    async fn a_full_intake_makes_the_next_trajectory_wait() {
        let intake = Intake::default();
        let held = intake.reserve(INTAKE_BYTES_MAX).await.expect("open");
        let mut next = Box::pin(intake.reserve(1));
        assert!(futures_ready(next.as_mut()).await.is_none());
        drop(held);
        assert!(next.await.is_some());
    }

    /// The future's value if it is ready at once.
    async fn futures_ready<F: Future>(future: std::pin::Pin<&mut F>) -> Option<F::Output> {
        tokio::select! {
            biased;
            value = future => Some(value),
            () = std::future::ready(()) => None,
        }
    }
}
