//! Who is a member of the run.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use ballast_proto::Generation;
use serde::{Deserialize, Serialize};

use super::{
    Change, Store, StoreError,
    entry::{Entry, Snapshot},
    keys::Keys,
    watch::Watch,
};

/// All members are read again after this much silence.
const WATCH_PATIENCE: Duration = Duration::from_secs(30);

/// A process of the run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// What it is, for example `actor`.
    pub role: String,
    /// Its name, which it keeps over restarts.
    pub id: String,
    /// Which of its lives this is.
    pub generation: Generation,
    /// HOST:PORT where it is reached.
    pub address: String,
}

/// A member as written in the store.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) generation: u64,
    pub(super) address: String,
}

impl Member {
    pub(super) fn value(&self) -> Result<Vec<u8>, StoreError> {
        let record = Record { generation: self.generation.0, address: self.address.clone() };
        serde_json::to_vec(&record).map_err(|error| StoreError::Foreign {
            key: format!("{}/{}", self.role, self.id),
            cause: error.to_string(),
        })
    }
}

/// A change among the members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemberChange {
    /// It is there, new or in another generation.
    Registered(Member),
    /// It left, or its lease ran out.
    Left {
        /// Its role.
        role: String,
        /// Its name.
        id: String,
    },
}

/// The members as they come and go, until this is dropped.
#[derive(Debug)]
pub struct MemberWatch {
    keys: Keys,
    watch: Watch,
}

impl MemberWatch {
    pub(super) fn start(store: Arc<dyn Store>, keys: Keys, seed: u64) -> Self {
        let watch = Watch::start(store, keys.members(), WATCH_PATIENCE, seed);
        Self { keys, watch }
    }

    /// Waits for changes; the first are all members there are, perhaps none. What breaks in between
    /// is made up for: nobody who left is missed. `None` after an error. Cancel-safe.
    pub async fn next(&mut self) -> Option<Result<Vec<MemberChange>, StoreError>> {
        let news = match self.watch.next().await? {
            Ok(news) => news,
            Err(error) => return Some(Err(error)),
        };
        let change = |change: Change| {
            let (role, id) = self.keys.split_member(&change.key)?;
            let Some(entry) = change.entry else {
                return Some(MemberChange::Left { role: role.into(), id: id.into() });
            };
            member(role, id, &change.key, &entry).map(MemberChange::Registered)
        };
        Some(Ok(news.changes.into_iter().filter_map(change).collect()))
    }
}

/// Everybody in a reading of all members, by key.
pub(super) fn members(keys: &Keys, snapshot: &Snapshot) -> Vec<Member> {
    let entries: &BTreeMap<String, Entry> = &snapshot.entries;
    let read = |(key, entry): (&String, &Entry)| {
        let (role, id) = keys.split_member(key)?;
        member(role, id, key, entry)
    };
    entries.iter().filter_map(read).collect()
}

/// An entry that cannot be read is nobody; it is in the log.
fn member(role: &str, id: &str, key: &str, entry: &Entry) -> Option<Member> {
    match serde_json::from_slice::<Record>(&entry.value) {
        Ok(Record { generation, address }) => Some(Member {
            role: role.to_owned(),
            id: id.to_owned(),
            generation: Generation(generation),
            address,
        }),
        Err(error) => {
            tracing::warn!(
                "{}",
                StoreError::Foreign { key: key.to_owned(), cause: error.to_string() }
            );
            None
        }
    }
}
