//! What the coordinators of one run share: who leads and under which term, who is a member, and a few
//! small documents.
//!
//! [`Store`] says what must be kept where all of them see it: small entries under keys, leases that
//! take entries away with them, guarded writes, and the changes as they happen. It has two
//! implementations: [`Embedded`], the memory of one process, and [`Etcd`]. What is built on it is
//! written once:
//!
//! - [`Cluster`] is what the rest of the coordinator uses.
//! - `election` decides who leads, and is pure; `campaign` runs it. `lease` says until when a leader
//!   may count on its lease.
//! - `registration` keeps a member in its place.
//! - [`Watch`] hears of every change, whatever breaks; `view` says what is news, and is pure.
//!
//! Invariants
//! - L1: a term is the revision at which the leader's key was created, so no two are equal and later
//!   ones are larger; every write of a leader is guarded by its term.
//! - A leader stops on its own clock before its lease can run out in the store: leaderships do not
//!   overlap as long as monotonic clocks run at the same rate. Where they do not, the guard holds.
//! - Whoever watches sees the state the store has, deletions included, whatever broke in between.

mod access;
mod campaign;
mod cluster;
mod documents;
mod election;
mod embedded;
mod entry;
mod error;
mod etcd;
mod keys;
mod lease;
mod membership;
mod outage;
mod registration;
mod view;
mod watch;

use std::{fmt, time::Duration};

pub use self::{
    access::Access,
    campaign::Leadership,
    cluster::{Candidate, Cluster, Leader},
    documents::Document,
    embedded::Embedded,
    entry::{
        Change, Entry, Expect, Grant, Guard, LeaseId, Outcome, Put, Revision, Snapshot,
        VALUE_BYTES_MAX,
    },
    error::StoreError,
    etcd::Etcd,
    membership::{Member, MemberChange, MemberWatch},
    registration::Registration,
    view::View,
    watch::{News, Watch},
};

/// One leadership; larger is later. What carries an older one is refused (L1).
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(transparent)]
pub struct Term(pub u64);

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "term {}", self.0)
    }
}

/// Something that keeps small entries where all coordinators of a run see them. Every call ends
/// within a bound of the implementation's own.
#[tonic::async_trait]
pub trait Store: fmt::Debug + Send + Sync + 'static {
    /// Everything whose key begins with `prefix`, not older than the call.
    async fn read(&self, prefix: &str) -> Result<Snapshot, StoreError>;

    /// Puts a value if all guards hold, in one step.
    async fn put(&self, put: Put, guards: &[Guard]) -> Result<Outcome, StoreError>;

    /// The changes of keys that begin with `prefix` after a revision. Where they are not known any
    /// more, the feed ends with [`StoreError::Gap`].
    async fn follow(&self, prefix: &str, after: Revision) -> Result<Box<dyn Feed>, StoreError>;

    /// A new lease. The store may choose another time to live.
    async fn grant(&self, ttl: Duration) -> Result<Grant, StoreError>;

    /// Starts a lease's time to live again, at some instant of the call.
    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError>;

    /// Ends a lease, and every entry under it. One that is gone already is no error.
    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError>;
}

/// Changes as they happen, in order, each once, until the first error: then it is over.
#[tonic::async_trait]
pub trait Feed: Send {
    /// Waits for the next ones. Cancel-safe.
    async fn next(&mut self) -> Result<Vec<Change>, StoreError>;
}
