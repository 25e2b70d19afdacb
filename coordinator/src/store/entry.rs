//! What a store holds and what is asked of it. No I/O.

use std::{collections::BTreeMap, fmt, time::Duration};

use super::StoreError;

/// Longest value, in bytes. A store keeps who is who, not what they made: no blob goes into it.
pub const VALUE_BYTES_MAX: usize = 64 << 10;

/// A point in the store's history: +1 with every change, never back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "r{}", self.0)
    }
}

/// Name of a lease, given by the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LeaseId(pub i64);

/// A lease as granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Its name.
    pub lease: LeaseId,
    /// Time after which the store may drop it, from when it last heard of its holder. `None`: it
    /// stands until it is revoked.
    pub ttl: Option<Duration>,
}

/// What stands under a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// At most [`VALUE_BYTES_MAX`].
    pub value: Vec<u8>,
    /// When the key came to be. A key that is deleted and put again gets a new one.
    pub created: Revision,
    /// When it was last put.
    pub modified: Revision,
    /// The entry goes when this lease goes.
    pub lease: Option<LeaseId>,
}

/// Everything under a prefix at one revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// The revision of the store, not of the newest entry.
    pub revision: Revision,
    /// By key.
    pub entries: BTreeMap<String, Entry>,
}

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The key.
    pub key: String,
    /// When. Of a deletion that was found by reading again: when it was found.
    pub at: Revision,
    /// What stands there now; `None`: it was deleted, by hand or with its lease.
    pub entry: Option<Entry>,
}

/// A value for a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Put {
    key: String,
    value: Vec<u8>,
    /// The entry goes when this lease goes.
    pub lease: Option<LeaseId>,
}

impl Put {
    /// A value that stays until it is overwritten.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`].
    pub fn new(key: impl Into<String>, value: impl Into<Vec<u8>>) -> Result<Self, StoreError> {
        let (key, value) = (key.into(), value.into());
        if value.len() > VALUE_BYTES_MAX {
            return Err(StoreError::TooLarge { key, bytes: value.len() });
        }
        Ok(Self { key, value, lease: None })
    }

    /// The same under a lease.
    #[must_use]
    pub fn under(self, lease: LeaseId) -> Self {
        Self { lease: Some(lease), ..self }
    }

    /// The key.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The value.
    #[must_use]
    pub fn value(&self) -> &[u8] {
        &self.value
    }
}

/// What must hold for a value to be put.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guard {
    /// The key that is looked at.
    pub key: String,
    /// What must stand there.
    pub expect: Expect,
}

/// What must stand under a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Nothing.
    Absent,
    /// An entry that came to be at this revision, whatever it holds by now.
    Created(Revision),
    /// An entry last put at this revision.
    Modified(Revision),
}

impl Expect {
    /// Whether it is met.
    #[must_use]
    pub fn holds(self, entry: Option<&Entry>) -> bool {
        match self {
            Self::Absent => entry.is_none(),
            Self::Created(at) => entry.is_some_and(|entry| entry.created == at),
            Self::Modified(at) => entry.is_some_and(|entry| entry.modified == at),
        }
    }
}

/// What became of a put.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Done, at this revision.
    Done(Revision),
    /// A guard did not hold; nothing was changed.
    Refused {
        /// When it was looked at.
        revision: Revision,
        /// What stood under the key of each guard, in their order.
        found: Vec<Option<Entry>>,
    },
}
