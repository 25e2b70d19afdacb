//! What a store promises, tried on both: in memory, and on a real etcd.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[expect(dead_code, reason = "here etcd stays alive")]
mod etcd_support;

use std::{sync::Arc, time::Duration};

use ballast_coordinator::store::{
    Access, Candidate, Change, Cluster, Embedded, Entry, Etcd, Expect, Guard, Leadership, Member,
    MemberChange, MemberWatch, Outcome, Put, Revision, Store, StoreError, Term, VALUE_BYTES_MAX,
    Watch,
};
use ballast_proto::Generation;
use ballast_runtime::config;
use etcd_support::Server;
use tokio::time::timeout;

/// Anything that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(20);
const TTL: Duration = Duration::from_secs(3);

/// One of the two stores.
struct Kept {
    store: Arc<dyn Store>,
    kind: Kind,
}

enum Kind {
    Embedded(Embedded),
    Etcd(Server),
}

impl Kept {
    async fn embedded() -> Self {
        let store = Embedded::new(Term(0));
        Self { store: Arc::new(store.clone()), kind: Kind::Embedded(store) }
    }

    async fn etcd() -> Self {
        let server = Server::start();
        let store = Etcd::new(&[server.address()], &Access::default()).unwrap();
        Self { store: Arc::new(store), kind: Kind::Etcd(server) }
    }

    fn compact(&self) {
        match &self.kind {
            Kind::Embedded(store) => store.compact(),
            Kind::Etcd(server) => server.compact(),
        }
    }

    fn cluster(&self) -> Cluster {
        Cluster::over(Arc::clone(&self.store), "run", TTL).unwrap()
    }

    async fn put(&self, key: &str, value: &str) -> Revision {
        done(self.store.put(Put::new(key, value).unwrap(), &[]).await.unwrap())
    }
}

/// The same test on both stores.
macro_rules! on_both {
    ($($(#[$doc:meta])* $name:ident)*) => {
        mod embedded {
            $(#[tokio::test] async fn $name() { bounded(super::$name(Kept::embedded().await)).await })*
            use super::*;
        }
        mod etcd {
            $(#[tokio::test] async fn $name() { bounded(super::$name(Kept::etcd().await)).await })*
            use super::*;
        }
    };
}

on_both! {
    what_was_put_is_read
    a_put_needs_all_its_guards
    entries_go_with_their_lease
    a_feed_tells_every_change_after_its_start
    a_feed_that_starts_before_what_is_kept_has_a_gap
    a_watch_survives_a_compaction
    one_leads_and_the_next_takes_over_at_once
    whoever_looks_sees_who_leads
    a_leader_of_the_past_writes_nothing
    a_document_is_changed_from_where_it_was_read
    a_large_value_is_refused_by_name
    a_member_is_there_until_it_leaves
    the_newest_generation_has_the_name
}

async fn bounded(test: impl Future<Output = ()>) {
    timeout(PATIENCE, test).await.expect("the test does not end");
}

fn done(outcome: Outcome) -> Revision {
    match outcome {
        Outcome::Done(revision) => revision,
        Outcome::Refused { .. } => panic!("{outcome:?}"),
    }
}

fn guard(key: &str, expect: Expect) -> Guard {
    Guard { key: key.into(), expect }
}

fn values(entries: impl IntoIterator<Item = (String, Entry)>) -> Vec<(String, String)> {
    let text = |entry: Entry| String::from_utf8(entry.value).unwrap();
    entries.into_iter().map(|(key, entry)| (key, text(entry))).collect()
}

/// `key=value`, or `-key` for a deletion.
fn told(changes: &[Change]) -> Vec<String> {
    let one = |change: &Change| match &change.entry {
        Some(entry) => format!("{}={}", change.key, String::from_utf8_lossy(&entry.value)),
        None => format!("-{}", change.key),
    };
    changes.iter().map(one).collect()
}

fn candidate(id: &str) -> Candidate {
    Candidate { id: id.into(), address: format!("{id}.example:7711") }
}

async fn lead(cluster: &Cluster, id: &str) -> Leadership {
    cluster.campaign(&candidate(id)).await.unwrap()
}

async fn what_was_put_is_read(kept: Kept) {
    let first = kept.put("/a/1", "one").await;
    let second = kept.put("/a/2", "two").await;
    kept.put("/ab", "not under /a/").await;
    let third = kept.put("/a/1", "three").await;
    assert!(first < second && second < third);
    let snapshot = kept.store.read("/a/").await.unwrap();
    assert_eq!(snapshot.revision, third);
    let entry = &snapshot.entries["/a/1"];
    assert_eq!((entry.created, entry.modified, entry.lease), (first, third, None));
    let expected = [("/a/1", "three"), ("/a/2", "two")].map(|(k, v)| (k.into(), v.into()));
    assert_eq!(values(snapshot.entries), expected);
    assert!(kept.store.read("/nothing").await.unwrap().entries.is_empty());
}

async fn a_put_needs_all_its_guards(kept: Kept) {
    let put = |value: &str| Put::new("/k", value).unwrap();
    let absent = [guard("/k", Expect::Absent)];
    let created = done(kept.store.put(put("1"), &absent).await.unwrap());
    let refused = kept.store.put(put("2"), &absent).await.unwrap();
    let Outcome::Refused { found, revision } = refused else { panic!("{refused:?}") };
    assert_eq!(found[0].as_ref().unwrap().value, b"1");
    assert_eq!(revision, created);
    let modified = [guard("/k", Expect::Modified(created)), guard("/other", Expect::Absent)];
    let changed = done(kept.store.put(put("2"), &modified).await.unwrap());
    // Now the first of them does not hold, and the other does.
    let refused = kept.store.put(put("3"), &modified).await.unwrap();
    let Outcome::Refused { found, .. } = refused else { panic!("{refused:?}") };
    assert_eq!(found[0].as_ref().unwrap().modified, changed);
    assert_eq!((found.len(), &found[1]), (2, &None));
    done(kept.store.put(put("3"), &[guard("/k", Expect::Created(created))]).await.unwrap());
    let refused = kept.store.put(put("4"), &[guard("/k", Expect::Created(changed))]).await;
    assert!(matches!(refused.unwrap(), Outcome::Refused { .. }));
}

async fn entries_go_with_their_lease(kept: Kept) {
    let lease = kept.store.grant(TTL).await.unwrap().lease;
    let under = |key: &str| Put::new(key, "x").unwrap().under(lease);
    done(kept.store.put(under("/l/1"), &[]).await.unwrap());
    done(kept.store.put(under("/l/2"), &[]).await.unwrap());
    kept.put("/l/3", "stays").await;
    kept.store.keep_alive(lease).await.unwrap();
    assert_eq!(kept.store.read("/l/1").await.unwrap().entries["/l/1"].lease, Some(lease));
    // Put again without the lease, it does not go with it.
    kept.put("/l/2", "stays too").await;
    kept.store.revoke(lease).await.unwrap();
    kept.store.revoke(lease).await.unwrap();
    let left: Vec<_> = kept.store.read("/l/").await.unwrap().entries.into_keys().collect();
    assert_eq!(left, ["/l/2", "/l/3"]);
    assert_eq!(kept.store.keep_alive(lease).await, Err(StoreError::LeaseGone));
    assert_eq!(kept.store.put(under("/l/4"), &[]).await, Err(StoreError::LeaseGone));
}

async fn a_feed_tells_every_change_after_its_start(kept: Kept) {
    kept.put("/f/0", "before").await;
    let start = kept.put("/f/1", "before").await;
    kept.put("/f/1", "1").await;
    let mut feed = kept.store.follow("/f/", start).await.unwrap();
    let lease = kept.store.grant(TTL).await.unwrap().lease;
    let under = Put::new("/f/2", "2").unwrap().under(lease);
    done(kept.store.put(under, &[]).await.unwrap());
    kept.put("/elsewhere", "3").await;
    kept.store.revoke(lease).await.unwrap();
    kept.put("/f/3", "4").await;
    let mut heard = Vec::new();
    while heard.len() < 4 {
        heard.extend(feed.next().await.unwrap());
    }
    assert_eq!(told(&heard), ["/f/1=1", "/f/2=2", "-/f/2", "/f/3=4"]);
    assert!(heard.windows(2).all(|pair| pair[0].at < pair[1].at));
}

async fn a_feed_that_starts_before_what_is_kept_has_a_gap(kept: Kept) {
    let start = kept.put("/f/1", "1").await;
    for value in 2..10 {
        kept.put("/f/1", &value.to_string()).await;
    }
    kept.compact();
    let gap = match kept.store.follow("/f/", start).await {
        Ok(mut feed) => feed.next().await.unwrap_err(),
        Err(error) => error,
    };
    assert!(matches!(gap, StoreError::Gap(_)), "{gap:?}");
}

async fn a_watch_survives_a_compaction(kept: Kept) {
    kept.put("/w/1", "1").await;
    let patience = Duration::from_millis(200);
    let mut watch = Watch::start(Arc::clone(&kept.store), "/w/".into(), patience, 1);
    assert_eq!(told(&watch.next().await.unwrap().unwrap().changes), ["/w/1=1"]);
    kept.compact();
    kept.put("/w/2", "2").await;
    let heard = loop {
        let news = watch.next().await.unwrap().unwrap();
        if !news.changes.is_empty() {
            break news.changes;
        }
    };
    assert_eq!(told(&heard), ["/w/2=2"]);
}

async fn one_leads_and_the_next_takes_over_at_once(kept: Kept) {
    let cluster = kept.cluster();
    let first = lead(&cluster, "first").await;
    assert!(first.is_held());
    let waiting = tokio::spawn({
        let cluster = cluster.clone();
        async move { lead(&cluster, "second").await }
    });
    assert!(timeout(TTL, first.lost().cancelled()).await.is_err(), "it stays alive");
    assert!(!waiting.is_finished());
    let term = first.term();
    let lost = first.lost();
    first.resign().await;
    assert!(lost.is_cancelled());
    // Well within the lease: nobody waited for its end.
    let second = timeout(Duration::from_secs(1), waiting).await.expect("at once").unwrap();
    assert!(second.term() > term && second.is_held());
}

async fn whoever_looks_sees_who_leads(kept: Kept) {
    let cluster = kept.cluster();
    assert_eq!(cluster.leader().await.unwrap(), None);
    let mut watched = cluster.watch_leader();
    let first = lead(&cluster, "first").await;
    let leader = cluster.leader().await.unwrap().unwrap();
    assert_eq!((leader.candidate.clone(), leader.term), (candidate("first"), first.term()));
    let seen = watched.wait_for(Option::is_some).await.unwrap().clone();
    assert_eq!(seen, Some(leader));
    first.resign().await;
    watched.wait_for(Option::is_none).await.unwrap();
    let second = lead(&cluster, "second").await;
    let seen = watched.wait_for(Option::is_some).await.unwrap().clone().unwrap();
    assert_eq!((seen.candidate, seen.term), (candidate("second"), second.term()));
}

async fn a_leader_of_the_past_writes_nothing(kept: Kept) {
    let cluster = kept.cluster();
    let first = lead(&cluster, "first").await;
    let written = cluster.write_document(&first, "live", b"1".to_vec(), Revision(0)).await.unwrap();
    let key = kept.store.read("").await.unwrap().entries;
    let lease = key.values().find_map(|entry| entry.lease).unwrap();
    kept.store.revoke(lease).await.unwrap();
    let refused = cluster.write_document(&first, "live", b"2".to_vec(), written).await;
    let fenced = |leader| StoreError::Fenced { term: first.term(), leader };
    assert_eq!(refused, Err(fenced(None)));
    let second = lead(&cluster, "second").await;
    let refused = cluster.write_document(&first, "live", b"2".to_vec(), written).await;
    assert_eq!(refused, Err(fenced(Some(second.term()))));
    // Both are wrong: it is not the leader that matters more.
    let refused = cluster.write_document(&first, "live", b"2".to_vec(), Revision(0)).await;
    assert_eq!(refused, Err(fenced(Some(second.term()))));
    assert_eq!(cluster.document("live").await.unwrap().value, b"1");
    cluster.write_document(&second, "live", b"2".to_vec(), written).await.unwrap();
}

async fn a_document_is_changed_from_where_it_was_read(kept: Kept) {
    let cluster = kept.cluster();
    let leader = lead(&cluster, "first").await;
    let mut watched = cluster.watch_document("live").unwrap();
    let empty = cluster.document("live").await.unwrap();
    assert_eq!((empty.revision, empty.value), (Revision(0), vec![]));
    let write = |value: &str, based_on| {
        let value = value.as_bytes().to_vec();
        cluster.write_document(&leader, "live", value, based_on)
    };
    let first = write("1", Revision(0)).await.unwrap();
    let stale = |expected, found| StoreError::Stale { name: "live".into(), expected, found };
    assert_eq!(write("2", Revision(0)).await, Err(stale(Revision(0), first)));
    let second = write("2", first).await.unwrap();
    assert_eq!(write("3", first).await, Err(stale(first, second)));
    let document = cluster.document("live").await.unwrap();
    assert_eq!((document.revision, document.value.as_slice()), (second, &b"2"[..]));
    let seen = watched.wait_for(|document| document.revision >= second).await.unwrap().clone();
    assert_eq!(seen.value, b"2");
    // Its name is no prefix of another's.
    cluster.write_document(&leader, "live2", b"x".to_vec(), Revision(0)).await.unwrap();
    assert_eq!(cluster.document("live").await.unwrap().revision, second);
}

async fn a_large_value_is_refused_by_name(kept: Kept) {
    let cluster = kept.cluster();
    let leader = lead(&cluster, "first").await;
    let large = vec![b'x'; VALUE_BYTES_MAX + 1];
    let refused = cluster.write_document(&leader, "live", large.clone(), Revision(0)).await;
    let error = refused.unwrap_err().to_string();
    assert!(error.contains("documents/live") && error.contains("65537"), "{error}");
    let largest = large[1..].to_vec();
    cluster.write_document(&leader, "live", largest, Revision(0)).await.unwrap();
}

fn member(id: &str, generation: u64) -> Member {
    Member {
        role: "actor".into(),
        id: id.into(),
        generation: Generation(generation),
        address: format!("{id}-{generation}.example:1"),
    }
}

async fn changes(watch: &mut MemberWatch) -> Vec<MemberChange> {
    loop {
        let changes = watch.next().await.unwrap().unwrap();
        if !changes.is_empty() {
            return changes;
        }
    }
}

async fn a_member_is_there_until_it_leaves(kept: Kept) {
    let cluster = kept.cluster();
    let mut watch = cluster.watch_members();
    let first = cluster.register(member("a", 1)).await.unwrap();
    assert_eq!(changes(&mut watch).await, [MemberChange::Registered(member("a", 1))]);
    let _second = cluster.register(member("b", 1)).await.unwrap();
    assert_eq!(changes(&mut watch).await, [MemberChange::Registered(member("b", 1))]);
    assert_eq!(cluster.members().await.unwrap(), [member("a", 1), member("b", 1)]);
    // Longer than a lease: they are kept.
    assert!(timeout(TTL + TTL / 2, changes(&mut watch)).await.is_err());
    first.leave().await;
    let left = MemberChange::Left { role: "actor".into(), id: "a".into() };
    assert_eq!(changes(&mut watch).await, [left]);
    assert_eq!(cluster.members().await.unwrap(), [member("b", 1)]);
}

async fn the_newest_generation_has_the_name(kept: Kept) {
    let cluster = kept.cluster();
    let older = cluster.register(member("a", 3)).await.unwrap();
    let refused = cluster.register(member("a", 2)).await.unwrap_err();
    assert!(matches!(refused, StoreError::Superseded { registered: 3, .. }), "{refused}");
    assert!(!older.lost().is_cancelled());
    let newer = cluster.register(member("a", 4)).await.unwrap();
    older.lost().cancelled().await;
    assert_eq!(cluster.members().await.unwrap(), [member("a", 4)]);
    // What the older one leaves behind is not the newer one's.
    older.leave().await;
    assert_eq!(cluster.members().await.unwrap(), [member("a", 4)]);
    newer.leave().await;
    assert_eq!(cluster.members().await.unwrap(), []);
}

fn config(endpoint: &str) -> config::Store {
    let endpoints = vec![endpoint.to_owned()];
    config::Store { kind: config::StoreKind::Etcd, endpoints, ..config::Store::default() }
}

#[tokio::test]
async fn an_etcd_that_is_not_there_is_named_with_the_remedy() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = Cluster::open(&config(&free.to_string()), "run", Term(0)).await.unwrap_err();
    let text = error.to_string();
    assert!(error.is_transient(), "{error:?}");
    for part in [free.to_string().as_str(), "refused", "coordinator.store.endpoints"] {
        assert!(text.contains(part), "{text}");
    }
}

#[tokio::test]
async fn a_wrong_password_is_refused_and_a_right_one_works() {
    let server = Server::start();
    server.ctl(&["user", "add", "root:secret"]);
    server.ctl(&["user", "grant-role", "root", "root"]);
    server.ctl(&["auth", "enable"]);
    let endpoints = [server.address()];
    let access = |password: &str| Access {
        user: Some(("root".into(), password.into())),
        ..Access::default()
    };
    let wrong = Etcd::new(&endpoints, &access("wrong")).unwrap();
    let refused = wrong.read("/").await.unwrap_err();
    let nobody = Etcd::new(&endpoints, &Access::default()).unwrap();
    let unknown = nobody.read("/").await.unwrap_err();
    for error in [refused, unknown] {
        let text = error.to_string();
        assert!(matches!(error, StoreError::Refused { .. }), "{error:?}");
        assert!(text.contains("BALLAST_ETCD_PASSWORD") && text.contains(&endpoints[0]), "{text}");
    }
    let store = Etcd::new(&endpoints, &access("secret")).unwrap();
    let cluster = Cluster::over(Arc::new(store), "run", TTL).unwrap();
    let leader = timeout(PATIENCE, lead(&cluster, "first")).await.unwrap();
    // Longer than a lease: it is kept alive with the credentials too.
    assert!(timeout(2 * TTL, leader.lost().cancelled()).await.is_err());
    // Whoever may not lead is told so instead of waiting.
    let cluster = Cluster::over(Arc::new(nobody), "run", TTL).unwrap();
    let refused = timeout(PATIENCE, cluster.campaign(&candidate("nobody"))).await.unwrap();
    assert!(matches!(refused, Err(StoreError::Refused { .. })), "{refused:?}");
}

/// The run goes on in a later term or not at all.
#[tokio::test]
async fn a_store_that_is_behind_the_run_is_refused_with_a_way_on() {
    let server = Server::start();
    let cluster = Cluster::open(&server.config(3), "run", Term(1000)).await.unwrap();
    let refused = timeout(PATIENCE, cluster.campaign(&candidate("first"))).await.unwrap();
    let error = refused.unwrap_err();
    assert!(matches!(error, StoreError::Rewound { seen: Revision(1000), .. }), "{error:?}");
    assert!(error.to_string().contains("embedded") && !error.is_transient(), "{error}");
    // It has not kept what it could not use.
    assert_eq!(cluster.leader().await.unwrap(), None);
}

/// An authority, and certificates that it signed: one for etcd, one for us.
struct Certificates {
    ca: rcgen::CertifiedIssuer<'static, rcgen::KeyPair>,
}

impl Certificates {
    fn new() -> Self {
        let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        Self { ca: rcgen::CertifiedIssuer::self_signed(params, key).unwrap() }
    }

    /// PEM of a certificate and of its key.
    fn sign(&self, name: &str) -> (String, String) {
        let mut params = rcgen::CertificateParams::new(vec![name.into()]).unwrap();
        params.extended_key_usages = vec![
            rcgen::ExtendedKeyUsagePurpose::ServerAuth,
            rcgen::ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = rcgen::KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.ca).unwrap().pem(), key.serialize_pem())
    }

    /// Starts an etcd that shows a certificate and asks for one.
    fn serve(&self) -> Server {
        Server::start_with("https", |folder| {
            let write = |name: &str, pem: &str| {
                let path = folder.path().join(name);
                std::fs::write(&path, pem).unwrap();
                path.to_str().unwrap().to_owned()
            };
            let (certificate, key) = self.sign("localhost");
            let flags = [
                ("cert-file", write("etcd.pem", &certificate)),
                ("key-file", write("etcd.key", &key)),
                ("trusted-ca-file", write("ca.pem", &self.ca.pem())),
            ];
            let flags = flags.map(|(flag, path)| format!("--{flag}={path}"));
            flags.into_iter().chain(["--client-cert-auth".into()]).collect()
        })
    }
}

#[tokio::test]
async fn certificates_are_asked_for_and_shown() {
    let (ours, others) = (Certificates::new(), Certificates::new());
    let server = ours.serve();
    let endpoints = server.config(3).endpoints;
    let pem = |text: String| Some(text.into_bytes());
    let identity =
        |(certificate, key): (String, String)| Some((certificate.into_bytes(), key.into_bytes()));
    let good = Access { ca: pem(ours.ca.pem()), identity: identity(ours.sign("us")), user: None };
    let store = Etcd::new(&endpoints, &good).unwrap();
    let cluster = Cluster::over(Arc::new(store), "run", TTL).unwrap();
    let leader = timeout(PATIENCE, lead(&cluster, "first")).await.unwrap();
    assert!(leader.is_held());
    for (what, access) in [
        ("no authority", Access { ca: None, ..good.clone() }),
        ("another authority", Access { ca: pem(others.ca.pem()), ..good.clone() }),
        ("no certificate", Access { identity: None, ..good.clone() }),
        ("another's certificate", Access { identity: identity(others.sign("us")), ..good.clone() }),
        ("no PEM", Access { identity: identity(("x".into(), "y".into())), ..good.clone() }),
    ] {
        let refused = match Etcd::new(&endpoints, &access) {
            Ok(store) => store.read("/").await.unwrap_err(),
            Err(error) => error,
        };
        println!("{what}: {refused}");
        assert!(matches!(refused, StoreError::Refused { .. }), "{what}: {refused:?}");
        assert!(refused.to_string().contains("BALLAST_ETCD_C"), "{what}: {refused}");
    }
}
