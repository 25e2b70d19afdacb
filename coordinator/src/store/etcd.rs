//! The store of several processes: etcd. The only file that knows its client.
//!
//! The client neither watches again nor recovers a keep-alive. Here a feed ends at its first error,
//! and [`super::Watch`] reads anew; each keep-alive is a stream of its own with one request, so there
//! is nothing to recover. Every call has a timeout: a stopped server takes connections and answers
//! nothing. The client's balancing would go on asking that one now and then; here all calls go to one
//! member of the cluster, and to the next when one was not answered.

use std::{
    error::Error as _,
    fmt,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, Error, Event, GetOptions, Identity,
    KeyValue, KvClient, PutOptions, TlsOptions, Txn, TxnOp, TxnOpResponse, WatchOptions,
    WatchStream,
};
use tokio::{sync::OnceCell, time::timeout};
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

/// An etcd cluster; its clones share connections.
#[derive(Clone)]
pub struct Etcd {
    /// For people.
    endpoints: String,
    options: ConnectOptions,
    servers: Arc<[Server]>,
    /// Index of the member that is asked.
    asked: Arc<AtomicUsize>,
}

/// One member of the cluster.
struct Server {
    endpoint: String,
    client: OnceCell<Client>,
}

impl fmt::Debug for Etcd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Etcd").field("endpoints", &self.endpoints).finish_non_exhaustive()
    }
}

impl Etcd {
    /// The etcd whose members are at `endpoints` (`HOST:PORT`, `http://HOST:PORT` or
    /// `https://HOST:PORT`). It is connected to at the first call.
    ///
    /// # Errors
    /// [`StoreError::Refused`]: there is no endpoint, or nothing to check its certificate with.
    pub fn new(endpoints: &[String], access: &Access) -> Result<Self, StoreError> {
        let named = endpoints.join(", ");
        if endpoints.is_empty() {
            let cause = "there is none".into();
            let remedy = CHECK_ENDPOINTS;
            return Err(StoreError::Refused { endpoints: named, cause, remedy });
        }
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
        let server =
            |endpoint: &String| Server { endpoint: endpoint.clone(), client: OnceCell::new() };
        let servers = endpoints.iter().map(server).collect();
        Ok(Self { endpoints: named, options, servers, asked: Arc::default() })
    }

    /// Asks one member, and makes the next call go to the next one if there is no answer.
    async fn call<T, F>(&self, ask: impl FnOnce(Client) -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let turn = Turn::take(self);
        let Server { endpoint, client } = &self.servers[turn.index];
        let attempt = async {
            let connect = || Client::connect([endpoint], Some(self.options.clone()));
            ask(client.get_or_try_init(connect).await?.clone()).await
        };
        let answer = match timeout(CALL_MAX, attempt).await {
            Ok(answer) => answer.map_err(|error| judge(self.endpoints.clone(), &error)),
            Err(_) => Err(StoreError::Unreachable {
                endpoints: self.endpoints.clone(),
                cause: format!("no answer in {} s", CALL_MAX.as_secs()),
            }),
        };
        let is_unfit = |error: &StoreError| {
            matches!(error, StoreError::Unreachable { .. } | StoreError::Unable { .. })
        };
        if !answer.as_ref().is_err_and(is_unfit) {
            turn.keep();
        }
        answer
    }

    /// The same with the part of the client that reads and writes.
    async fn kv<T, F>(&self, ask: impl FnOnce(KvClient) -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, Error>>,
    {
        self.call(|client| ask(client.kv_client().max_decoding_message_size(ANSWER_BYTES_MAX)))
            .await
    }
}

/// A member's turn to answer. It is over when this is dropped, also by a caller who would not wait
/// any longer.
struct Turn<'a> {
    etcd: &'a Etcd,
    index: usize,
    is_over: bool,
}

impl<'a> Turn<'a> {
    fn take(etcd: &'a Etcd) -> Self {
        let index = etcd.asked.load(Ordering::Relaxed) % etcd.servers.len();
        Self { etcd, index, is_over: true }
    }

    /// The member answered: the next call is its own too.
    fn keep(mut self) {
        self.is_over = false;
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if self.is_over {
            let next = (self.index + 1) % self.etcd.servers.len();
            let (asked, relaxed) = (&self.etcd.asked, Ordering::Relaxed);
            // Of calls that fail together, one moves on.
            let _moved = asked.compare_exchange(self.index, next, relaxed, relaxed);
        }
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
        let get = |mut kv: KvClient| async move { kv.get(prefix, Some(options)).await };
        let mut response = self.kv(get).await?;
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
        let response = self.kv(|mut kv| async move { kv.txn(txn).await }).await?;
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
        let watch = |client: Client| async move {
            let watch = client.watch_client().max_decoding_message_size(ANSWER_BYTES_MAX);
            { watch }.watch(prefix, Some(options)).await
        };
        let stream = self.call(watch).await?;
        Ok(Box::new(EtcdFeed { stream }))
    }

    async fn grant(&self, ttl: Duration) -> Result<Grant, StoreError> {
        let seconds = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX);
        let grant =
            |client: Client| async move { client.lease_client().grant(seconds, None).await };
        let response = self.call(grant).await?;
        let granted = u64::try_from(response.ttl()).unwrap_or(0);
        Ok(Grant { lease: LeaseId(response.id()), ttl: Some(Duration::from_secs(granted)) })
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        // The client sends one request and waits for its answer; dropping what it returns ends the
        // stream, not the lease.
        let keep = |client: Client| async move { client.lease_client().keep_alive(lease.0).await };
        self.call(keep).await.map(|_stream| ())
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        let revoke = |client: Client| async move { client.lease_client().revoke(lease.0).await };
        match self.call(revoke).await {
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

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// A port that takes connections and answers nothing, and one that takes none.
    fn silent_and_closed() -> (TcpListener, [String; 2]) {
        let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let closed = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = |listener: &TcpListener| listener.local_addr().expect("bound").to_string();
        let addresses = [address(&silent), address(&closed)];
        (silent, addresses)
    }

    #[tokio::test]
    async fn the_next_server_is_asked_after_one_that_did_not_answer() {
        let (_silent, addresses) = silent_and_closed();
        let store = Etcd::new(&addresses, &Access::default()).expect("sound");
        let asked = || store.asked.load(Ordering::Relaxed);
        let short = Duration::from_millis(100);
        timeout(short, store.read("/")).await.expect_err("it is silent");
        assert_eq!(asked(), 1, "whoever would not wait any longer moves on too");
        let error = store.read("/").await.expect_err("it is closed").to_string();
        assert!(error.contains(&addresses.join(", ")) && error.contains("refused"), "{error}");
        assert_eq!(asked(), 0);
        // Of calls that fail together, one moves on.
        let (first, second) = (store.read("/"), store.read("/"));
        let both = async { tokio::join!(first, second) };
        timeout(short, both).await.expect_err("both are silent");
        assert_eq!(asked(), 1);
    }

    #[test]
    fn an_answer_keeps_the_turn() {
        let (_silent, addresses) = silent_and_closed();
        let store = Etcd::new(&addresses, &Access::default()).expect("sound");
        Turn::take(&store).keep();
        assert_eq!(store.asked.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_store_without_members_is_refused() {
        let refused = Etcd::new(&[], &Access::default()).expect_err("nothing to ask");
        assert!(refused.to_string().contains("coordinator.store.endpoints"), "{refused}");
    }
}
