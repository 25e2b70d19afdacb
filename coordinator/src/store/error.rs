//! What can go wrong with a store, by what is to be done about it.

use super::{
    Term,
    entry::{Revision, VALUE_BYTES_MAX},
};

/// Why a store did not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Try again: no answer in time. A write may or may not have been done.
    #[error(
        "cannot reach etcd at {endpoints}: {cause}; start it there, or name where it is in \
         coordinator.store.endpoints"
    )]
    Unreachable {
        /// Where it was looked for.
        endpoints: String,
        /// What the connection says.
        cause: String,
    },
    /// Try again later: the store is there and cannot.
    #[error("etcd at {endpoints} cannot do it now: {cause}; its log says more")]
    Unable {
        /// Where it is.
        endpoints: String,
        /// What it says.
        cause: String,
    },
    /// Read everything again: changes were missed.
    #[error("changes were missed: {0}")]
    Gap(String),
    /// Ask for a new lease: this one ran out or was revoked.
    #[error("the lease is gone: it ran out or was revoked")]
    LeaseGone,
    /// Read, and decide again: another write came first.
    #[error(
        "`{name}` is at revision {found}, not at {expected}: another change came first; read it again"
    )]
    Stale {
        /// What was to be written.
        name: String,
        /// The revision that the change was based on.
        expected: Revision,
        /// The revision it has; 0: it does not exist.
        found: Revision,
    },
    /// Stop leading at once: another term has begun, or none has.
    #[error("{term} is over: {}", successor(.leader))]
    Fenced {
        /// The term of the one who asked.
        term: Term,
        /// The term of the one who leads.
        leader: Option<Term>,
    },
    /// End this process: one that is as new or newer has its name.
    #[error(
        "{role} {id} is registered by {address} with generation {registered}, this one has \
         {generation}; end one of the two, or give them different names"
    )]
    Superseded {
        /// Role of the member.
        role: String,
        /// Its name.
        id: String,
        /// The generation of this process.
        generation: u64,
        /// The generation of the other.
        registered: u64,
        /// Where the other is.
        address: String,
    },
    /// Fix the setting: trying again will not help.
    #[error("etcd at {endpoints} refuses: {cause}; {remedy}")]
    Refused {
        /// Where it is.
        endpoints: String,
        /// What it says.
        cause: String,
        /// What to do.
        remedy: &'static str,
    },
    /// Fix the environment.
    #[error("{0}")]
    Access(String),
    /// Start again: this is not the history that was seen before.
    #[error(
        "the store went back from {seen} to {found}: it lost its data, or was restored from a \
         backup, and terms must grow; go on with a store that is further, or with one coordinator \
         and coordinator.store.kind = \"embedded\""
    )]
    Rewound {
        /// Newest revision seen.
        seen: Revision,
        /// Revision of the store.
        found: Revision,
    },
    /// Keep it elsewhere.
    #[error(
        "`{key}` is {bytes} bytes, more than {VALUE_BYTES_MAX}: the store is for small documents, \
         put the content elsewhere and its address here"
    )]
    TooLarge {
        /// The key.
        key: String,
        /// Size of the value.
        bytes: usize,
    },
    /// Choose another name.
    #[error("`{0}` cannot be part of a key; allowed: 1 to 100 of A-Z a-z 0-9 - _ .")]
    Name(String),
    /// Remove it by hand: something else wrote under our prefix.
    #[error(
        "`{key}` holds nothing that Ballast wrote ({cause}); delete it, or change coordinator.store.prefix"
    )]
    Foreign {
        /// The key.
        key: String,
        /// What is wrong with it.
        cause: String,
    },
}

fn successor(leader: &Option<Term>) -> String {
    leader.map_or_else(|| "nobody leads".into(), |term| format!("{term} leads"))
}

impl StoreError {
    /// Whether the same question may be answered later.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. } | Self::Unable { .. } | Self::Gap(_) | Self::LeaseGone
        )
    }
}
