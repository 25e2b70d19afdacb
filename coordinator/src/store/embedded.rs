//! The store of a single process: its memory. Every call is done at once.
//!
//! Leases stand until they are revoked: whoever holds one lives in this process, and a laptop that
//! slept does not lose its run. Tests and simulations of several processes in one can let them expire.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use super::{
    Feed, Store, StoreError, Term,
    entry::{Change, Entry, Grant, Guard, LeaseId, Outcome, Put, Revision, Snapshot},
};

/// Changes that are kept for feeds; one that is further behind gets a gap.
const HISTORY_MAX: usize = 1024;

/// A store in memory; its clones share it.
#[derive(Clone, Debug)]
pub struct Embedded {
    expires: bool,
    state: Arc<Mutex<State>>,
    /// Revision of the newest change.
    changed: watch::Sender<Revision>,
}

#[derive(Debug, Default)]
struct State {
    revision: Revision,
    entries: BTreeMap<String, Entry>,
    /// When each lease ends, if it ever does on its own.
    leases: BTreeMap<LeaseId, Lease>,
    leases_granted: i64,
    /// Every change after `forgotten`.
    history: VecDeque<Change>,
    forgotten: Revision,
}

#[derive(Debug)]
struct Lease {
    ttl: Duration,
    /// `None`: never on its own.
    ends: Option<Instant>,
}

impl Embedded {
    /// A store whose first term comes after `after`, the last one that the run has on record.
    #[must_use]
    pub fn new(after: Term) -> Self {
        let revision = Revision(after.0);
        let state = State { revision, forgotten: revision, ..State::default() };
        let (changed, _) = watch::channel(revision);
        Self { expires: false, state: Arc::new(Mutex::new(state)), changed }
    }

    /// The same, but leases that are not kept alive end, as they do in a store beside the process.
    #[must_use]
    pub fn expiring(after: Term) -> Self {
        Self { expires: true, ..Self::new(after) }
    }

    /// Forgets all history, as a store does from time to time: feeds that are behind get a gap.
    pub fn compact(&self) {
        let mut state = self.state();
        state.history.clear();
        state.forgotten = state.revision;
    }

    /// The state without what has ended by now.
    fn state(&self) -> MutexGuard<'_, State> {
        // A panic while the lock is held would be between two assignments at worst.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let has_ended = |lease: &Lease| lease.ends.is_some_and(|ends| ends <= now);
        let ended = state.leases.iter().filter(|(_, lease)| has_ended(lease));
        for lease in ended.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.end(&mut state, lease);
        }
        state
    }

    /// Removes a lease and, in one revision, what is under it.
    fn end(&self, state: &mut State, lease: LeaseId) {
        state.leases.remove(&lease);
        let under = state.entries.iter().filter(|(_, entry)| entry.lease == Some(lease));
        let keys: Vec<String> = under.map(|(key, _)| key.clone()).collect();
        if keys.is_empty() {
            return;
        }
        let at = Revision(state.revision.0 + 1);
        for key in keys {
            state.entries.remove(&key);
            state.record(Change { key, at, entry: None });
        }
        self.changed.send_replace(at);
    }
}

impl State {
    fn record(&mut self, change: Change) {
        self.revision = change.at;
        self.history.push_back(change);
        if self.history.len() > HISTORY_MAX {
            self.forgotten = self.history.pop_front().map_or(self.revision, |oldest| oldest.at);
        }
    }

    fn next_end(&self) -> Option<Instant> {
        self.leases.values().filter_map(|lease| lease.ends).min()
    }
}

#[tonic::async_trait]
impl Store for Embedded {
    async fn read(&self, prefix: &str) -> Result<Snapshot, StoreError> {
        let state = self.state();
        let within = state.entries.range(prefix.to_owned()..);
        let within = within.take_while(|(key, _)| key.starts_with(prefix));
        let entries = within.map(|(key, entry)| (key.clone(), entry.clone())).collect();
        Ok(Snapshot { revision: state.revision, entries })
    }

    async fn put(&self, put: Put, guards: &[Guard]) -> Result<Outcome, StoreError> {
        let mut state = self.state();
        if put.lease.is_some_and(|lease| !state.leases.contains_key(&lease)) {
            return Err(StoreError::LeaseGone);
        }
        if !guards.iter().all(|guard| guard.expect.holds(state.entries.get(&guard.key))) {
            let found = guards.iter().map(|guard| state.entries.get(&guard.key).cloned()).collect();
            return Ok(Outcome::Refused { revision: state.revision, found });
        }
        let at = Revision(state.revision.0 + 1);
        let created = state.entries.get(put.key()).map_or(at, |entry| entry.created);
        let entry = Entry { value: put.value().to_vec(), created, modified: at, lease: put.lease };
        state.entries.insert(put.key().to_owned(), entry.clone());
        state.record(Change { key: put.key().to_owned(), at, entry: Some(entry) });
        self.changed.send_replace(at);
        Ok(Outcome::Done(at))
    }

    async fn follow(&self, prefix: &str, after: Revision) -> Result<Box<dyn Feed>, StoreError> {
        let (store, prefix) = (self.clone(), prefix.to_owned());
        let changed = self.changed.subscribe();
        Ok(Box::new(EmbeddedFeed { store, prefix, after, changed }))
    }

    async fn grant(&self, ttl: Duration) -> Result<Grant, StoreError> {
        let mut state = self.state();
        state.leases_granted += 1;
        let lease = LeaseId(state.leases_granted);
        let ends = self.expires.then(|| Instant::now() + ttl);
        state.leases.insert(lease, Lease { ttl, ends });
        // Feeds wait for the end of the lease that ends next.
        self.changed.send_modify(|_| {});
        Ok(Grant { lease, ttl: self.expires.then_some(ttl) })
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        let mut state = self.state();
        let lease = state.leases.get_mut(&lease).ok_or(StoreError::LeaseGone)?;
        lease.ends = lease.ends.map(|_| Instant::now() + lease.ttl);
        Ok(())
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        let mut state = self.state();
        self.end(&mut state, lease);
        Ok(())
    }
}

struct EmbeddedFeed {
    store: Embedded,
    prefix: String,
    after: Revision,
    changed: watch::Receiver<Revision>,
}

impl EmbeddedFeed {
    /// What has happened since the last time, and when a lease may end.
    fn poll(&mut self) -> Result<(Vec<Change>, Option<Instant>), StoreError> {
        self.changed.mark_unchanged();
        let state = self.store.state();
        if self.after < state.forgotten {
            return Err(StoreError::Gap(format!("{} is forgotten", self.after)));
        }
        let is_news =
            |change: &&Change| change.at > self.after && change.key.starts_with(&self.prefix);
        let changes = state.history.iter().filter(is_news).cloned().collect();
        self.after = state.revision;
        Ok((changes, state.next_end()))
    }
}

#[tonic::async_trait]
impl Feed for EmbeddedFeed {
    async fn next(&mut self) -> Result<Vec<Change>, StoreError> {
        loop {
            let (changes, next_end) = self.poll()?;
            if !changes.is_empty() {
                return Ok(changes);
            }
            let ends = async {
                match next_end {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            // Both are cancel-safe. The sender lives in `self.store`.
            tokio::select! {
                _changed = self.changed.changed() => {}
                () = ends => {}
            }
        }
    }
}
