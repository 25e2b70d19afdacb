//! What the rest of the coordinator uses of a store: who leads, who is a member, small documents.

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
    time::{Instant, sleep, timeout},
};

use super::{
    Access, Embedded, Etcd, Member, MemberWatch, Registration, Store, StoreError, Term, Watch,
    campaign::{self, Leadership},
    election::Timing,
    entry::{Entry, Expect, Guard, Outcome, Put, Revision},
    keys::Keys,
    membership,
};

/// Longest wait at the start for a store that does not answer.
const OPEN_MAX: Duration = Duration::from_secs(10);
const OPEN_RETRY_INITIAL: Duration = Duration::from_millis(200);
const OPEN_RETRY_MAX: Duration = Duration::from_secs(2);
/// Candidates spread over this long when the leader's key is gone.
const JITTER_MAX: Duration = Duration::from_millis(200);
/// Longest wait for a leadership that cannot be used to be given back.
const GIVE_BACK_MAX: Duration = Duration::from_secs(2);

/// The store of one run.
#[derive(Clone, Debug)]
pub struct Cluster {
    store: Arc<dyn Store>,
    keys: Keys,
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

/// A small document and its version.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Document {
    /// What a change is based on; 0: there is no document yet.
    pub revision: Revision,
    /// Its content.
    pub value: Vec<u8>,
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
        // It ends with its lease where the store does not answer.
        let _late = timeout(GIVE_BACK_MAX, leadership.resign()).await;
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
        membership::register(Arc::clone(&self.store), &self.keys, member, self.ttl, seed).await
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

    /// A document; one that was never written is empty and at revision 0.
    ///
    /// # Errors
    /// The store does not answer, or refuses.
    pub async fn document(&self, name: &str) -> Result<Document, StoreError> {
        let key = self.keys.document(name)?;
        let mut snapshot = self.store.read(&key).await?;
        Ok(document(snapshot.entries.remove(&key)))
    }

    /// A document as it changes; the first one is empty until it is read.
    ///
    /// # Errors
    /// [`StoreError::Name`].
    pub fn watch_document(&self, name: &str) -> Result<watch::Receiver<Document>, StoreError> {
        Ok(self.watch_entry(self.keys.document(name)?, |_key, entry| document(entry)))
    }

    /// Writes a document as the leader, if it is still the one that the change was based on.
    ///
    /// # Errors
    /// [`StoreError::Fenced`]: this is not the leader any more. [`StoreError::Stale`]: the document
    /// has changed. [`StoreError::TooLarge`]. Else the store does not answer, and the document may
    /// have been written: read it.
    pub async fn write_document(
        &self,
        leadership: &Leadership,
        name: &str,
        value: Vec<u8>,
        based_on: Revision,
    ) -> Result<Revision, StoreError> {
        let put = Put::new(self.keys.document(name)?, value)?;
        let expect = match based_on {
            Revision(0) => Expect::Absent,
            revision => Expect::Modified(revision),
        };
        let found = match self.put_as_leader(leadership, put, expect).await? {
            Ok(revision) => return Ok(revision),
            Err(found) => found.map_or(Revision(0), |entry| entry.modified),
        };
        Err(StoreError::Stale { name: name.to_owned(), expected: based_on, found })
    }

    /// The newest of what stands under a key, until nobody looks any more.
    fn watch_entry<T: Default + Send + Sync + 'static>(
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

    /// Puts a value in one step with two checks: the term is still the leader's, and `expect` holds
    /// for the key. Where only the latter does not, returns what stands there.
    async fn put_as_leader(
        &self,
        leadership: &Leadership,
        put: Put,
        expect: Expect,
    ) -> Result<Result<Revision, Option<Entry>>, StoreError> {
        let term = leadership.term();
        let leads = Expect::Created(Revision(term.0));
        let guards = [
            Guard { key: self.keys.leader(), expect: leads },
            Guard { key: put.key().to_owned(), expect },
        ];
        let found = match self.store.put(put, &guards).await? {
            Outcome::Done(revision) => return Ok(Ok(revision)),
            Outcome::Refused { found, .. } => found,
        };
        let mut found = found.into_iter();
        let leader = found.next().flatten();
        if !leads.holds(leader.as_ref()) {
            let leader = leader.map(|entry| Term(entry.created.0));
            return Err(StoreError::Fenced { term, leader });
        }
        Ok(Err(found.next().flatten()))
    }
}

/// Connects, and tries again for a while where nothing answers.
async fn reach(endpoints: &[String], access: &Access, keys: &Keys) -> Result<Etcd, StoreError> {
    let mut backoff = Backoff::new(OPEN_RETRY_INITIAL, OPEN_RETRY_MAX, seed(&endpoints.join(",")));
    let give_up = Instant::now() + OPEN_MAX;
    loop {
        let attempt = async {
            let store = Etcd::connect(endpoints, access).await?;
            store.read(&keys.leader()).await.map(|_snapshot| store)
        };
        match attempt.await {
            Err(error) if error.is_transient() && Instant::now() < give_up => {
                tracing::debug!("{error}");
                sleep(backoff.next_delay()).await;
            }
            ended => return ended,
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

fn document(entry: Option<Entry>) -> Document {
    entry.map_or_else(Document::default, |entry| Document {
        revision: entry.modified,
        value: entry.value,
    })
}

/// Differs between processes and between their parts, so that they do not all try at once.
fn seed(name: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    (name, std::process::id()).hash(&mut hasher);
    hasher.finish()
}
