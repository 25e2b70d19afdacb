use std::sync::Mutex;

use tokio::time::Instant;

use super::*;
use crate::store::{Embedded, Feed, Grant, Guard, LeaseId, Outcome, Put, Snapshot, Term};

const PATIENCE: Duration = Duration::from_secs(10);

/// A store that can be replaced by another one, as one that was restored from a backup is.
#[derive(Debug)]
struct Replaceable(Mutex<Embedded>);

impl Replaceable {
    fn now(&self) -> Embedded {
        self.0.lock().expect("never poisoned").clone()
    }
}

#[tonic::async_trait]
impl Store for Replaceable {
    async fn read(&self, prefix: &str) -> Result<Snapshot, StoreError> {
        self.now().read(prefix).await
    }
    async fn put(&self, put: Put, guards: &[Guard]) -> Result<Outcome, StoreError> {
        self.now().put(put, guards).await
    }
    async fn follow(&self, prefix: &str, after: Revision) -> Result<Box<dyn Feed>, StoreError> {
        self.now().follow(prefix, after).await
    }
    async fn grant(&self, ttl: Duration) -> Result<Grant, StoreError> {
        self.now().grant(ttl).await
    }
    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.now().keep_alive(lease).await
    }
    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.now().revoke(lease).await
    }
}

async fn put(store: &Embedded, key: String) {
    store.put(Put::new(key, "x").expect("small"), &[]).await.expect("put");
}

fn watch(store: impl Store) -> Watch {
    Watch::start(Arc::new(store), "/w/".into(), PATIENCE, 1)
}

#[tokio::test(start_paused = true)]
async fn a_store_that_went_back_ends_the_watch_with_a_reason() {
    let store = Embedded::new(Term(0));
    for index in 0..5 {
        put(&store, format!("/w/{index}")).await;
    }
    let replaceable = Arc::new(Replaceable(Mutex::new(store)));
    let mut watch = Watch::start(Arc::clone(&replaceable) as _, "/w/".into(), PATIENCE, 1);
    assert_eq!(watch.next().await.expect("news").expect("no error").changes.len(), 5);
    *replaceable.0.lock().expect("never poisoned") = Embedded::new(Term(2));
    let error = watch.next().await.expect("news").expect_err("it went back");
    let (seen, found) = (Revision(5), Revision(2));
    assert_eq!(error, StoreError::Rewound { seen, found });
    assert_eq!(watch.next().await, None);
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_was_slow_has_what_the_store_has_in_the_end() {
    let store = Embedded::new(Term(0));
    let mut watch = watch(store.clone());
    // More than the watch and the store's history hold together.
    for index in 0..4000 {
        put(&store, format!("/w/{}", index % 7)).await;
        if index % 100 == 0 {
            tokio::task::yield_now().await;
        }
    }
    let end = store.read("/w/").await.expect("read");
    let mut view = View::default();
    while view.revision() < end.revision {
        let news = watch.next().await.expect("news").expect("no error");
        view.apply(news.changes);
    }
    assert_eq!(view.entries(), &end.entries);
}

#[tokio::test(start_paused = true)]
async fn a_silent_feed_is_read_anew_after_the_patience() {
    let store = Embedded::new(Term(0));
    let mut watch = watch(store);
    watch.next().await.expect("news").expect("no error");
    let heard = Instant::now();
    let news = watch.next().await.expect("news").expect("no error");
    assert_eq!((news.changes, heard.elapsed()), (vec![], PATIENCE));
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_is_dropped_leaves_the_store_alone() {
    let store = Arc::new(Replaceable(Mutex::new(Embedded::new(Term(0)))));
    let mut watch = Watch::start(Arc::clone(&store) as _, "/w/".into(), PATIENCE, 1);
    watch.next().await.expect("news").expect("no error");
    assert_eq!(Arc::strong_count(&store), 2);
    drop(watch);
    sleep(Duration::from_millis(1)).await;
    assert_eq!(Arc::strong_count(&store), 1);
}
