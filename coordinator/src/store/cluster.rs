//! What the rest of the coordinator uses of a store: who leads, and who is a member.

use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Arc,
    time::Duration,
};

use ballast_runtime::{
    backoff::Backoff,
    config::{self, StoreKind},
};
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use super::{
    Access, Embedded, Etcd, Member, MemberWatch, Registration, Store, StoreError, Term, Watch,
    campaign::{self, Leadership},
    election::Timing,
    entry::{Entry, Revision},
    keys::Keys,
    membership, registration,
};

/// Longest wait at the start for a store that does not answer.
const OPEN_MAX: Duration = Duration::from_secs(10);
const OPEN_RETRY_INITIAL: Duration = Duration::from_millis(200);
const OPEN_RETRY_MAX: Duration = Duration::from_secs(2);
/// Candidates spread over this long when the leader's key is gone.
const JITTER_MAX: Duration = Duration::from_millis(200);

/// The store of one run.
#[derive(Clone, Debug)]
pub struct Cluster {
    pub(super) store: Arc<dyn Store>,
    pub(super) keys: Keys,
    /// Time to live of leases.
    ttl: Duration,
    /// The last term that the run has on record: a leadership has a later one, or is none.
    after: Term,
}

/// A coordinator that leads or wants to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidate {
    /// Its name, for people.
    pub id: String,
    /// HOST:PORT where actors and learners reach it.
    pub address: String,
}

/// The coordinator that leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leader {
    /// Who it is and where.
    pub candidate: Candidate,
    /// Since which term.
    pub term: Term,
}

impl Cluster {
    /// Opens the store that the configuration names, for the run of this name. `after` is the last
    /// term that the run has on record.
    ///
    /// # Errors
    /// The store cannot be reached, or refuses.
    pub async fn open(config: &config::Store, run: &str, after: Term) -> Result<Self, StoreError> {
        match config.kind {
            StoreKind::Embedded => Self::embedded(run, after),
            StoreKind::Etcd => {
                let access = Access::from_env()?;
                let keys = Keys::new(&config.prefix, run)?;
                let store = reach(&config.endpoints, &access, &keys).await?;
                let ttl = Duration::from_secs(config.lease_s);
                Ok(Self { store: Arc::new(store), keys, ttl, after })
            }
        }
    }

    /// A store in the memory of this process.
    ///
    /// # Errors
    /// [`StoreError::Name`].
    pub fn embedded(run: &str, after: Term) -> Result<Self, StoreError> {
        let ttl = Duration::from_secs(config::Store::default().lease_s);
        Self::over(Arc::new(Embedded::new(after)), run, ttl)
    }

    /// The run of this name in any store.
    ///
    /// # Errors
    /// [`StoreError::Name`].
    pub fn over(store: Arc<dyn Store>, run: &str, ttl: Duration) -> Result<Self, StoreError> {
        let keys = Keys::new(&config::Store::default().prefix, run)?;
        Ok(Self { store, keys, ttl, after: Term::default() })
    }

    /// Waits until `candidate` leads, for as long as it takes. Dropping the future ends the attempt.
    ///
    /// # Errors
    /// Trying longer will not help: the store refuses, or has lost its history.
    pub async fn campaign(&self, candidate: &Candidate) -> Result<Leadership, StoreError> {
        let key = self.keys.leader();
        let value = encode(&key, candidate)?;
        let seed = seed(&candidate.id);
        let jitter = ChaCha8Rng::seed_from_u64(seed).random_range(Duration::ZERO..=JITTER_MAX);
        let timing = Timing { ttl: self.ttl, jitter, seed };
        let store = Arc::clone(&self.store);
        let leadership = campaign::campaign(store, key, value, timing).await?;
        if leadership.term() > self.after {
            return Ok(leadership);
        }
        let (seen, found) = (Revision(self.after.0), Revision(leadership.term().0));
        leadership.resign().await;
        Err(StoreError::Rewound { seen, found })
    }

    /// Who leads now.
    ///
    /// # Errors
    /// The store does not answer, or something else wrote there.
    pub async fn leader(&self) -> Result<Option<Leader>, StoreError> {
        let key = self.keys.leader();
        let snapshot = self.store.read(&key).await?;
        snapshot.entries.get(&key).map(|entry| leader(&key, entry)).transpose()
    }

    /// Who leads, as it changes. `None` also while it is not known.
    #[must_use]
    pub fn watch_leader(&self) -> watch::Receiver<Option<Leader>> {
        self.watch_entry(self.keys.leader(), |key, entry| {
            let read = entry.map(|entry| leader(key, &entry)).transpose();
            read.unwrap_or_else(|error| {
                tracing::warn!("{error}");
                None
            })
        })
    }

    /// Registers a member and keeps it registered, through outages of the store too.
    ///
    /// # Errors
    /// [`StoreError::Superseded`]: a process that is as new or newer has its name. Else the store
    /// refuses, or has not answered for long.
    pub async fn register(&self, member: Member) -> Result<Registration, StoreError> {
        let seed = seed(&member.id);
        registration::register(Arc::clone(&self.store), &self.keys, member, self.ttl, seed).await
    }

    /// All members, by role and name.
    ///
    /// # Errors
    /// The store does not answer, or refuses.
    pub async fn members(&self) -> Result<Vec<Member>, StoreError> {
        Ok(membership::members(&self.keys, &self.store.read(&self.keys.members()).await?))
    }

    /// The members as they come and go.
    #[must_use]
    pub fn watch_members(&self) -> MemberWatch {
        let seed = seed(&self.keys.members());
        MemberWatch::start(Arc::clone(&self.store), self.keys.clone(), seed)
    }

    /// The newest of what stands under a key, until nobody looks any more.
    pub(super) fn watch_entry<T: Default + Send + Sync + 'static>(
        &self,
        key: String,
        read: impl Fn(&str, Option<Entry>) -> T + Send + 'static,
    ) -> watch::Receiver<T> {
        let (sender, receiver) = watch::channel(T::default());
        let mut watch = Watch::start(Arc::clone(&self.store), key.clone(), self.ttl, seed(&key));
        tokio::spawn(async move {
            loop {
                // Both are cancel-safe.
                let news = tokio::select! {
                    () = sender.closed() => return,
                    news = watch.next() => news,
                };
                let changes = match news {
                    Some(Ok(news)) => news.changes,
                    Some(Err(error)) => return tracing::error!("`{key}` is not watched: {error}"),
                    None => return,
                };
                if let Some(change) = changes.into_iter().rfind(|change| change.key == key) {
                    sender.send_replace(read(&key, change.entry));
                }
            }
        });
        receiver
    }
}

/// Connects, and tries again for a while where nothing answers.
async fn reach(endpoints: &[String], access: &Access, keys: &Keys) -> Result<Etcd, StoreError> {
    let store = Etcd::new(endpoints, access)?;
    let mut backoff = Backoff::new(OPEN_RETRY_INITIAL, OPEN_RETRY_MAX, seed(&endpoints.join(",")));
    let give_up = Instant::now() + OPEN_MAX;
    loop {
        match store.read(&keys.leader()).await {
            Ok(_snapshot) => return Ok(store),
            Err(error) if error.is_transient() && Instant::now() < give_up => {
                tracing::debug!("{error}");
                sleep(backoff.next_delay()).await;
            }
            Err(error) => return Err(error),
        }
    }
}

fn encode(key: &str, candidate: &Candidate) -> Result<Vec<u8>, StoreError> {
    let foreign = |error: serde_json::Error| StoreError::Foreign {
        key: key.to_owned(),
        cause: error.to_string(),
    };
    serde_json::to_vec(candidate).map_err(foreign)
}

fn leader(key: &str, entry: &Entry) -> Result<Leader, StoreError> {
    let candidate = serde_json::from_slice(&entry.value)
        .map_err(|error| StoreError::Foreign { key: key.to_owned(), cause: error.to_string() })?;
    Ok(Leader { candidate, term: Term(entry.created.0) })
}

/// Differs between processes and between their parts, so that they do not all try at once.
fn seed(name: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    (name, std::process::id()).hash(&mut hasher);
    hasher.finish()
}
