//! Completions that wait for a slot.

use std::{
    collections::VecDeque,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{mpsc, oneshot};

use super::sequence::{Plan, Update};
use crate::{decoder::DecodeError, weights::StagedPolicy};

/// Completions that may wait; a request beyond them is refused and the client told to retry.
pub const WAITING_MAX: usize = 256;

/// One completion of a request, with the way back to the client that waits for it.
#[derive(Debug)]
pub struct Job {
    /// Which of the request's completions this is.
    pub choice: usize,
    /// What is asked.
    pub plan: Plan,
    /// Where its tokens go.
    pub outlet: Outlet,
}

/// The way back to a client. All completions of a request share one channel with room for all their
/// tokens, so the decoding thread never waits for a client; a client that left has closed it.
pub type Outlet = mpsc::Sender<(usize, Result<Update, DecodeError>)>;

/// Other weights, to be taken between two completions.
#[derive(Debug)]
pub struct WeightUpdate {
    /// The weights.
    pub staged: StagedPolicy,
    /// Ends what runs instead of letting it finish.
    pub cut_off: bool,
    /// What became of it.
    pub done: oneshot::Sender<Result<(), DecodeError>>,
}

/// A bounded first-in, first-out queue between the HTTP handlers and the decoding thread.
#[derive(Debug, Default)]
pub struct Queue {
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Inner {
    jobs: VecDeque<Job>,
    /// Overtakes all jobs.
    update: Option<WeightUpdate>,
    closed: bool,
}

/// Why a request is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueueError {
    /// As many completions wait as may wait.
    #[error("{waiting} completions wait already, of at most {WAITING_MAX}; try again later")]
    Full {
        /// How many wait.
        waiting: usize,
    },
    /// One update of the weights is waiting already.
    #[error("another update of the weights is under way; try again later")]
    Updating,
    /// The server stops, or nobody decodes any more.
    #[error("the server stops, or its decoding thread has ended; see its log")]
    Closed,
}

impl Queue {
    /// Adds all jobs of a request, or none of them.
    ///
    /// # Errors
    /// There is no room, or the server stops.
    pub fn push(&self, jobs: Vec<Job>) -> Result<(), QueueError> {
        let mut inner = self.lock();
        inner.drop_abandoned();
        if inner.closed {
            return Err(QueueError::Closed);
        }
        if inner.jobs.len() + jobs.len() > WAITING_MAX {
            return Err(QueueError::Full { waiting: inner.jobs.len() });
        }
        inner.jobs.extend(jobs);
        self.changed.notify_one();
        Ok(())
    }

    /// Adds an update of the weights.
    ///
    /// # Errors
    /// Another one waits, or the server stops.
    pub fn update(&self, update: WeightUpdate) -> Result<(), QueueError> {
        let mut inner = self.lock();
        if inner.closed {
            return Err(QueueError::Closed);
        }
        if inner.update.is_some() {
            return Err(QueueError::Updating);
        }
        inner.update = Some(update);
        self.changed.notify_one();
        Ok(())
    }

    /// Whether an update waits; if so, whether it cuts off what runs.
    #[must_use]
    pub fn update_waits(&self) -> Option<bool> {
        self.lock().update.as_ref().map(|update| update.cut_off)
    }

    /// Takes the update that waits.
    #[must_use]
    pub fn take_update(&self) -> Option<WeightUpdate> {
        self.lock().update.take()
    }

    /// Takes up to `count` jobs whose clients still wait.
    #[must_use]
    pub fn take(&self, count: usize) -> Vec<Job> {
        let mut inner = self.lock();
        inner.drop_abandoned();
        let count = count.min(inner.jobs.len());
        inner.jobs.drain(..count).collect()
    }

    /// Waits until a job or an update is there; false once the queue is closed and empty.
    #[must_use]
    pub fn wait(&self) -> bool {
        let idle = |inner: &mut Inner| inner.is_empty() && !inner.closed;
        let inner = self.changed.wait_while(self.lock(), idle);
        !inner.unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Refuses further jobs; those that wait are still served.
    pub fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// Refuses further jobs and drops those that wait, whose clients learn of it at once.
    pub fn abort(&self) {
        let mut inner = self.lock();
        inner.closed = true;
        inner.jobs.clear();
        inner.update = None;
        self.changed.notify_all();
    }

    /// Jobs that wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lock().jobs.len()
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A panic while the lock is held cannot leave the queue half written: every change is one
    /// extension, drain or flag.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn is_empty(&self) -> bool {
        self.jobs.is_empty() && self.update.is_none()
    }

    fn drop_abandoned(&mut self) {
        self.jobs.retain(|job| !job.outlet.is_closed());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decoder::Sampling;

    fn job(outlet: &Outlet) -> Job {
        let plan = Plan {
            prompt: [1].into(),
            sampling: Sampling::new(0, 1.0),
            tokens_max: 1,
            stop_tokens: [].into(),
            stop_strings: Vec::new(),
        };
        Job { choice: 0, plan, outlet: outlet.clone() }
    }

    fn jobs(outlet: &Outlet, count: usize) -> Vec<Job> {
        (0..count).map(|_| job(outlet)).collect()
    }

    #[test]
    fn a_request_enters_whole_or_not_at_all() {
        let (queue, (outlet, _inlet)) = (Queue::default(), mpsc::channel(1));
        queue.push(jobs(&outlet, WAITING_MAX - 1)).expect("room");
        let full = QueueError::Full { waiting: WAITING_MAX - 1 };
        assert_eq!(queue.push(jobs(&outlet, 2)), Err(full));
        assert_eq!(queue.push(jobs(&outlet, 1)), Ok(()));
        assert_eq!(queue.take(3).len(), 3);
        assert_eq!(queue.len(), WAITING_MAX - 3);
    }

    #[test]
    fn a_client_that_left_takes_no_room() {
        let (queue, (gone, inlet)) = (Queue::default(), mpsc::channel(1));
        queue.push(jobs(&gone, WAITING_MAX)).expect("room");
        drop(inlet);
        let (outlet, _inlet) = mpsc::channel(1);
        queue.push(jobs(&outlet, WAITING_MAX)).expect("room");
        assert_eq!(queue.len(), WAITING_MAX);
    }

    #[test]
    fn a_closed_queue_serves_what_waits_and_takes_nothing_new() {
        let (queue, (outlet, _inlet)) = (Queue::default(), mpsc::channel(1));
        queue.push(jobs(&outlet, 1)).expect("room");
        queue.close();
        assert_eq!(queue.push(jobs(&outlet, 1)), Err(QueueError::Closed));
        assert!(queue.wait());
        assert_eq!(queue.take(8).len(), 1);
        assert!(!queue.wait());
    }
}
