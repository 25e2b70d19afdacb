//! What the engine's thread is told, and by which it is woken.

use std::{
    mem,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use ballast_proto::EpisodeId;

use super::{AdoptError, ReadyPolicy, RunIndex};
use crate::{assignment::Assignment, weights::StagedPolicy};

/// Episodes to give up that the engine has not looked at, per slot.
const CANCELLED_PER_SLOT: usize = 2;

/// Hand-over from the session and the weights subscriber to the engine's thread. Nothing here
/// blocks: assignments are bounded by the slots, and of staged policies the newest wins.
#[derive(Debug)]
pub struct Mailbox {
    slots: usize,
    inbox: Mutex<Inbox>,
    filled: Condvar,
}

/// Everything that arrived since the last look. The engine takes it in the order of the fields.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    /// Drop all episodes that run.
    pub(super) abandoned: bool,
    /// A policy that was made ready, or why it could not be.
    pub(super) ready: Option<Result<ReadyPolicy, AdoptError>>,
    /// A policy to make ready.
    pub(super) staged: Option<StagedPolicy>,
    /// Episodes to run.
    pub(super) assignments: Vec<(RunIndex, Assignment)>,
    /// Episodes to give up.
    pub(super) cancelled: Vec<EpisodeId>,
    /// Give back what has not started.
    pub(super) draining: bool,
    /// End the thread.
    pub(super) stopped: bool,
}

impl Inbox {
    fn is_empty(&self) -> bool {
        !self.abandoned
            && self.ready.is_none()
            && self.staged.is_none()
            && self.assignments.is_empty()
            && self.cancelled.is_empty()
            && !self.draining
            && !self.stopped
    }
}

/// More assignments, or more cancellations, than the actor's slots allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("more at once than there are slots")]
pub struct MailboxFull;

impl Mailbox {
    /// An empty mailbox for an engine with `slots` slots.
    #[must_use]
    pub fn new(slots: usize) -> Self {
        Self { slots, inbox: Mutex::default(), filled: Condvar::new() }
    }

    /// An episode to run.
    ///
    /// # Errors
    /// The engine has as many to look at as it has slots.
    pub fn assign(&self, run: RunIndex, assignment: Assignment) -> Result<(), MailboxFull> {
        let mut inbox = self.lock();
        if inbox.assignments.len() >= self.slots {
            return Err(MailboxFull);
        }
        inbox.assignments.push((run, assignment));
        self.filled.notify_one();
        Ok(())
    }

    /// Gives up one episode, whatever it is doing; it is reported as returned. Nothing happens if it
    /// is over by then.
    ///
    /// # Errors
    /// The engine has twice as many to give up as it has slots. Each episode given up once, that does
    /// not happen: those it holds and those it is to look at are one per slot each.
    pub fn cancel(&self, episode: EpisodeId) -> Result<(), MailboxFull> {
        let mut inbox = self.lock();
        if inbox.cancelled.len() >= CANCELLED_PER_SLOT * self.slots {
            return Err(MailboxFull);
        }
        inbox.cancelled.push(episode);
        self.filled.notify_one();
        Ok(())
    }

    /// A policy to adopt; it replaces one that the engine has not looked at.
    pub fn stage(&self, staged: StagedPolicy) {
        self.lock().staged = Some(staged);
        self.filled.notify_one();
    }

    /// The policy that the engine had made ready; it has one made at a time.
    pub(super) fn made_ready(&self, ready: Result<ReadyPolicy, AdoptError>) {
        self.lock().ready = Some(ready);
        self.filled.notify_one();
    }

    /// Drops every episode assigned so far.
    pub fn abandon(&self) {
        let mut inbox = self.lock();
        inbox.assignments.clear();
        inbox.cancelled.clear();
        inbox.draining = false;
        inbox.abandoned = true;
        self.filled.notify_one();
    }

    /// Gives back every episode that has not started.
    pub fn drain(&self) {
        self.lock().draining = true;
        self.filled.notify_one();
    }

    /// Ends the engine's thread after its current step.
    pub fn stop(&self) {
        self.lock().stopped = true;
        self.filled.notify_one();
    }

    /// Takes what has arrived, at once.
    pub(super) fn take(&self) -> Inbox {
        mem::take(&mut *self.lock())
    }

    /// Takes what has arrived, waiting at most `patience` for the first.
    pub(super) fn wait(&self, patience: Duration) -> Inbox {
        let inbox = self.lock();
        let waited = self.filled.wait_timeout_while(inbox, patience, |inbox| inbox.is_empty());
        let (mut inbox, _) = waited.unwrap_or_else(PoisonError::into_inner);
        mem::take(&mut *inbox)
    }

    /// A panic while the lock is held cannot leave the inbox half written: every change is one
    /// assignment or push.
    fn lock(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
