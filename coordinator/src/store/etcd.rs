//! The store of several processes: etcd. The only file that knows its client.
//!
//! The client neither watches again nor recovers a keep-alive. Here a feed ends at its first error,
//! and [`super::Watch`] reads anew; each keep-alive is a stream of its own with one request, so there
//! is nothing to recover. Every call has a timeout: a stopped server takes connections and answers
//! nothing.

use std::{error::Error as _, fmt, future::Future, time::Duration};

use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, Error, Event, GetOptions, Identity,
    KeyValue, KvClient, LeaseClient, PutOptions, TlsOptions, Txn, TxnOp, TxnOpResponse,
    WatchClient, WatchOptions, WatchStream,
};
use tokio::time::timeout;
use tonic::Code;

use super::{
    Feed, Store, StoreError,
    access::Access,
    entry::{Change, Entry, Expect, Grant, Guard, LeaseId, Outcome, Put, Revision, Snapshot},
};

/// Longest wait for one answer. etcd syncs a disk for each write: milliseconds, or a second on a
/// disk that is busy.
const CALL_MAX: Duration = Duration::from_secs(2);
/// An idle connection is asked for a sign of life this often. etcd ends connections that ask more
/// often than every 5 s.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// A connection without a sign of life for this long is given up.
const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of one answer: every member of a run of a hundred thousand.
const ANSWER_BYTES_MAX: usize = 64 << 20;

const CHECK_ACCESS: &str = "check BALLAST_ETCD_USER, BALLAST_ETCD_PASSWORD, and that this user may \
                            read and write under coordinator.store.prefix";
const CHECK_ENDPOINTS: &str = "check coordinator.store.endpoints";
const CHECK_TLS: &str = "check BALLAST_ETCD_CA, the authority that signed etcd's certificate, and, \
                         where etcd asks for one of ours, BALLAST_ETCD_CERTIFICATE and \
                         BALLAST_ETCD_KEY";

/// A connection to etcd, or to the members of an etcd cluster.
#[derive(Clone)]
pub struct Etcd {
    /// For people.
    endpoints: String,
    kv: KvClient,
    lease: LeaseClient,
    watch: WatchClient,
}

impl fmt::Debug for Etcd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Etcd").field("endpoints", &self.endpoints).finish_non_exhaustive()
    }
}

impl Etcd {
    /// A client of the etcd at `endpoints` (`HOST:PORT`, `http://HOST:PORT` or `https://HOST:PORT`).
    /// Without credentials it connects at the first call only.
    ///
    /// # Errors
    /// [`StoreError::Unreachable`] or [`StoreError::Refused`].
    pub async fn connect(endpoints: &[String], access: &Access) -> Result<Self, StoreError> {
        let named = endpoints.join(", ");
        let mut options = ConnectOptions::new()
            .with_connect_timeout(CALL_MAX)
            .with_keep_alive(PING_INTERVAL, PING_TIMEOUT)
            // A member without a leader ends its watches instead of falling silent.
            .with_require_leader(true)
            .with_auto_token_refresh(true);
        if let Some((user, password)) = &access.user {
            options = options.with_user(user, password);
        }
        if endpoints.iter().any(|endpoint| endpoint.starts_with("https://")) {
            options = options.with_tls(tls(&named, access)?);
        }
        let client = bounded(&named, Client::connect(endpoints, Some(options))).await?;
        Ok(Self {
            kv: client.kv_client().max_decoding_message_size(ANSWER_BYTES_MAX),
            watch: client.watch_client().max_decoding_message_size(ANSWER_BYTES_MAX),
            lease: client.lease_client(),
            endpoints: named,
        })
    }

    async fn call<T>(&self, call: impl Future<Output = Result<T, Error>>) -> Result<T, StoreError> {
        bounded(&self.endpoints, call).await
    }
}

fn tls(endpoints: &str, access: &Access) -> Result<TlsOptions, StoreError> {
    let Some(ca) = &access.ca else {
        let cause = "it is an https address, and no authority is trusted".into();
        return Err(StoreError::Refused { endpoints: endpoints.into(), cause, remedy: CHECK_TLS });
    };
    let tls = TlsOptions::new().ca_certificate(Certificate::from_pem(ca));
    Ok(match &access.identity {
        Some((certificate, key)) => tls.identity(Identity::from_pem(certificate, key)),
        None => tls,
    })
}

async fn bounded<T>(
    endpoints: &str,
    call: impl Future<Output = Result<T, Error>>,
) -> Result<T, StoreError> {
    match timeout(CALL_MAX, call).await {
        Ok(answer) => answer.map_err(|error| judge(endpoints.to_owned(), &error)),
        Err(_) => Err(StoreError::Unreachable {
            endpoints: endpoints.to_owned(),
            cause: format!("no answer in {} s", CALL_MAX.as_secs()),
        }),
    }
}

/// What is to be done about an error of the client.
fn judge(endpoints: String, error: &Error) -> StoreError {
    let refused = |remedy| StoreError::Refused {
        endpoints: endpoints.clone(),
        cause: root_cause(error),
        remedy,
    };
    let unreachable = || match root_cause(error) {
        cause if is_about_tls(&cause) => refused(CHECK_TLS),
        cause => StoreError::Unreachable { endpoints: endpoints.clone(), cause },
    };
    match error {
        // The client says this of a lease only.
        Error::LeaseKeepAliveError(_) => StoreError::LeaseGone,
        Error::TransportError(_) | Error::IoError(_) => unreachable(),
        Error::WatchError(cause) => StoreError::Gap(cause.clone()),
        Error::GRpcStatus(status) => match status.code() {
            Code::NotFound if status.message().contains("lease not found") => StoreError::LeaseGone,
            Code::OutOfRange => StoreError::Gap(status.message().to_owned()),
            Code::Unauthenticated | Code::PermissionDenied | Code::InvalidArgument => {
                refused(CHECK_ACCESS)
            }
            // With a source it is this process that speaks, not etcd.
            _ if status.source().is_some() => unreachable(),
            _ => StoreError::Unable { endpoints, cause: status.message().to_owned() },
        },
        _ => refused(CHECK_ENDPOINTS),
    }
}

/// Only the text tells: an alert of the other side, or what this side thinks of a certificate.
fn is_about_tls(cause: &str) -> bool {
    let cause = cause.to_lowercase();
    cause.contains("certificate") || cause.contains("tls")
}

/// The end of the chain says what happened ("connection refused"); what is before says where.
fn root_cause(error: &Error) -> String {
    let (own, source) = match error {
        Error::GRpcStatus(status) => (status.message().to_owned(), status.source()),
        Error::TransportError(error) => (error.to_string(), error.source()),
        _ => (error.to_string(), None),
    };
    let Some(mut cause) = source else { return own };
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

#[tonic::async_trait]
impl Store for Etcd {
    async fn read(&self, prefix: &str) -> Result<Snapshot, StoreError> {
        let options = GetOptions::new().with_prefix();
        let mut response = self.call(self.kv.clone().get(prefix, Some(options))).await?;
        let revision = response.header().map_or(0, |header| header.revision());
        let entries = response.take_kvs().iter().map(|kv| (key(kv), entry(kv))).collect();
        Ok(Snapshot { revision: from_etcd(revision), entries })
    }

    async fn put(&self, put: Put, guards: &[Guard]) -> Result<Outcome, StoreError> {
        let options = put.lease.map(|lease| PutOptions::new().with_lease(lease.0));
        let txn = Txn::new()
            .when(guards.iter().map(compare).collect::<Vec<_>>())
            .and_then([TxnOp::put(put.key(), put.value(), options)])
            .or_else(guards.iter().map(|guard| TxnOp::get(&*guard.key, None)).collect::<Vec<_>>());
        let response = self.call(self.kv.clone().txn(txn)).await?;
        let revision = from_etcd(response.header().map_or(0, |header| header.revision()));
        if response.succeeded() {
            return Ok(Outcome::Done(revision));
        }
        let found = response.op_responses().into_iter().map(|response| match response {
            TxnOpResponse::Get(found) => found.kvs().first().map(entry),
            _ => None,
        });
        Ok(Outcome::Refused { revision, found: found.collect() })
    }

    async fn follow(&self, prefix: &str, after: Revision) -> Result<Box<dyn Feed>, StoreError> {
        let start = to_etcd(after).saturating_add(1);
        let options = WatchOptions::new().with_prefix().with_start_revision(start);
        let stream = self.call(self.watch.clone().watch(prefix, Some(options))).await?;
        Ok(Box::new(EtcdFeed { stream }))
    }

    async fn grant(&self, ttl: Duration) -> Result<Grant, StoreError> {
        let seconds = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX);
        let response = self.call(self.lease.clone().grant(seconds, None)).await?;
        let granted = u64::try_from(response.ttl()).unwrap_or(0);
        Ok(Grant { lease: LeaseId(response.id()), ttl: Some(Duration::from_secs(granted)) })
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        // The client sends one request and waits for its answer; dropping what it returns ends the
        // stream, not the lease.
        self.call(self.lease.clone().keep_alive(lease.0)).await.map(|_stream| ())
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        match self.call(self.lease.clone().revoke(lease.0)).await {
            Ok(_) | Err(StoreError::LeaseGone) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

struct EtcdFeed {
    stream: WatchStream,
}

#[tonic::async_trait]
impl Feed for EtcdFeed {
    async fn next(&mut self) -> Result<Vec<Change>, StoreError> {
        loop {
            let gap = |cause: &dyn fmt::Display| StoreError::Gap(cause.to_string());
            let response = self.stream.message().await.map_err(|error| gap(&error))?;
            let response = response.ok_or_else(|| gap(&"etcd ended the watch"))?;
            // Also when the revision it should start from was compacted.
            if response.canceled() {
                return Err(gap(&response.cancel_reason()));
            }
            let changes: Vec<Change> = response.events().iter().filter_map(change).collect();
            if !changes.is_empty() {
                return Ok(changes);
            }
        }
    }
}

fn change(event: &Event) -> Option<Change> {
    let kv = event.kv()?;
    // A key that was put has a version; a deletion has none.
    let entry = (kv.version() > 0).then(|| entry(kv));
    Some(Change { key: key(kv), at: from_etcd(kv.mod_revision()), entry })
}

/// Our keys are text; one that is not is somebody else's, and nobody looks for it.
fn key(kv: &KeyValue) -> String {
    String::from_utf8_lossy(kv.key()).into_owned()
}

fn entry(kv: &KeyValue) -> Entry {
    Entry {
        value: kv.value().to_vec(),
        created: from_etcd(kv.create_revision()),
        modified: from_etcd(kv.mod_revision()),
        lease: (kv.lease() != 0).then(|| LeaseId(kv.lease())),
    }
}

fn compare(guard: &Guard) -> Compare {
    let key = guard.key.as_str();
    match guard.expect {
        Expect::Absent => Compare::create_revision(key, CompareOp::Equal, 0),
        Expect::Created(at) => Compare::create_revision(key, CompareOp::Equal, to_etcd(at)),
        Expect::Modified(at) => Compare::mod_revision(key, CompareOp::Equal, to_etcd(at)),
    }
}

/// etcd counts up from 1 in an i64.
fn from_etcd(revision: i64) -> Revision {
    Revision(u64::try_from(revision).unwrap_or(0))
}

fn to_etcd(revision: Revision) -> i64 {
    i64::try_from(revision.0).unwrap_or(i64::MAX)
}
