//! Candidates in one process, on virtual time, over connections that break: hours of elections in a
//! second, the same for the same seed.

use std::sync::{
    Mutex,
    atomic::{AtomicBool, Ordering},
};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio::time::sleep;

use super::*;
use crate::store::{Candidate, Cluster, Embedded, Feed, Grant, LeaseId, Revision, Snapshot, Term};

const TTL: Duration = Duration::from_secs(3);
/// The promise: a leader that is gone is replaced in this.
const FAILOVER_MAX: Duration = Duration::from_secs(5);
const SECOND: Duration = Duration::from_secs(1);

/// One candidate's connection to the store.
#[derive(Clone, Debug)]
struct Link {
    store: Embedded,
    /// Nothing passes, and nobody is told.
    cut: Arc<AtomicBool>,
    /// Out of a hundred messages, how many are lost, and how many are slow.
    loss: u32,
    rng: Arc<Mutex<StdRng>>,
}

impl Link {
    fn new(store: &Embedded, loss: u32, seed: u64) -> Self {
        let rng = Arc::new(Mutex::new(StdRng::seed_from_u64(seed)));
        Self { store: store.clone(), cut: Arc::default(), loss, rng }
    }

    fn set_cut(&self, cut: bool) {
        self.cut.store(cut, Ordering::Relaxed);
    }

    /// One way through the network: an error where the message is lost.
    async fn pass(&self) -> Result<(), StoreError> {
        let (delay, is_lost) = {
            let mut rng = self.rng.lock().expect("never poisoned");
            let slowest = if rng.random_range(0..100) < self.loss { 1900 } else { 30 };
            let delay = Duration::from_millis(rng.random_range(0..slowest));
            (delay, rng.random_range(0..100) < self.loss)
        };
        sleep(delay).await;
        if is_lost || self.cut.load(Ordering::Relaxed) {
            sleep(2 * SECOND).await;
            let (endpoints, cause) = ("a test".into(), "it is cut".into());
            return Err(StoreError::Unreachable { endpoints, cause });
        }
        Ok(())
    }
}

/// Passes, does it, passes back.
macro_rules! through {
    ($link:ident, $call:expr) => {{
        $link.pass().await?;
        let answer = $call.await?;
        $link.pass().await?;
        Ok(answer)
    }};
}

#[tonic::async_trait]
impl Store for Link {
    async fn read(&self, prefix: &str) -> Result<Snapshot, StoreError> {
        through!(self, self.store.read(prefix))
    }
    async fn put(&self, put: Put, guards: &[Guard]) -> Result<Outcome, StoreError> {
        through!(self, self.store.put(put, guards))
    }
    async fn follow(&self, prefix: &str, after: Revision) -> Result<Box<dyn Feed>, StoreError> {
        let feed = through!(self, self.store.follow(prefix, after))?;
        Ok(Box::new(LinkFeed { link: self.clone(), feed }))
    }
    async fn grant(&self, ttl: Duration) -> Result<Grant, StoreError> {
        through!(self, self.store.grant(ttl))
    }
    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        through!(self, self.store.keep_alive(lease))
    }
    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        through!(self, self.store.revoke(lease))
    }
}

struct LinkFeed {
    link: Link,
    feed: Box<dyn Feed>,
}

#[tonic::async_trait]
impl Feed for LinkFeed {
    async fn next(&mut self) -> Result<Vec<crate::store::Change>, StoreError> {
        let changes = self.feed.next().await?;
        // A connection that is cut says nothing any more, even when it is mended.
        if self.link.pass().await.is_err() {
            std::future::pending::<()>().await;
        }
        Ok(changes)
    }
}

fn cluster(store: impl Store) -> Cluster {
    Cluster::over(Arc::new(store), "test", TTL).expect("a name")
}

fn candidate(id: &str) -> Candidate {
    Candidate { id: id.into(), address: format!("{id}:1") }
}

/// Time from `since` until somebody leads, and who.
async fn led(since: Instant, cluster: &Cluster, id: &str) -> (Duration, Leadership) {
    let leadership = cluster.campaign(&candidate(id)).await.expect("it leads in the end");
    (since.elapsed(), leadership)
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_is_cut_off_stops_before_another_leads() {
    let store = Embedded::expiring(Term(0));
    let (first_link, second) = (Link::new(&store, 0, 1), cluster(Link::new(&store, 0, 2)));
    let (_, first) = led(Instant::now(), &cluster(first_link.clone()), "first").await;
    assert!(first.is_held());
    sleep(SECOND).await;
    first_link.set_cut(true);
    let cut = Instant::now();
    let (lost, (taken_over, second)) = tokio::join!(
        async {
            first.lost().cancelled().await;
            cut.elapsed()
        },
        led(cut, &second, "second"),
    );
    assert!(lost < taken_over && taken_over < FAILOVER_MAX, "{lost:?}, {taken_over:?}");
    assert!(!first.is_held() && second.is_held());
    assert!(second.term() > first.term());
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_resigns_is_replaced_at_once() {
    let store = Embedded::expiring(Term(0));
    let (first, second) = (cluster(store.clone()), cluster(store));
    let (_, leadership) = led(Instant::now(), &first, "first").await;
    let waiting = tokio::spawn(async move { led(Instant::now(), &second, "second").await.1 });
    sleep(10 * SECOND).await;
    assert!(!waiting.is_finished());
    let resigned = Instant::now();
    leadership.resign().await;
    let second = waiting.await.expect("it leads");
    assert!(resigned.elapsed() < SECOND, "{:?}", resigned.elapsed());
    assert!(second.is_held());
}

#[tokio::test(start_paused = true)]
async fn a_leadership_that_is_dropped_is_given_back() {
    let store = Embedded::new(Term(0));
    let first = cluster(store.clone());
    let (_, leadership) = led(Instant::now(), &first, "first").await;
    let lost = leadership.lost();
    drop(leadership);
    lost.cancelled().await;
    // This store drops no lease by itself.
    let (took, _) = led(Instant::now(), &cluster(store), "second").await;
    assert!(took < SECOND, "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_campaign_that_is_dropped_leaves_nothing_behind() {
    let store = Embedded::new(Term(0));
    let first = cluster(store.clone());
    for wait in 0..40 {
        let candidate = candidate("impatient");
        let attempt = first.campaign(&candidate);
        let _late = timeout(Duration::from_millis(wait * 10), attempt).await;
    }
    let (took, _) = led(Instant::now(), &first, "patient").await;
    assert!(took < SECOND, "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_key_that_is_deleted_by_hand_ends_the_leadership() {
    let store = Embedded::expiring(Term(0));
    let first = cluster(store.clone());
    let (_, leadership) = led(Instant::now(), &first, "first").await;
    let snapshot = store.read("").await.expect("read");
    let lease = snapshot.entries.values().next().and_then(|entry| entry.lease);
    store.revoke(lease.expect("under a lease")).await.expect("revoked");
    timeout(SECOND, leadership.lost().cancelled()).await.expect("it heard");
}

#[tokio::test(start_paused = true)]
async fn terms_go_on_where_the_run_left_them() {
    let (_, leadership) =
        led(Instant::now(), &Cluster::embedded("test", Term(41)).expect("a name"), "first").await;
    assert_eq!(leadership.term(), Term(42));
}

/// When one leadership was held: from the first instant at which it could act to the last.
#[derive(Clone, Copy, Debug)]
struct Held {
    term: Term,
    from: Instant,
    to: Instant,
}

/// Leads again and again until time is over; is cut off, gives up or dies now and then.
async fn lead_and_fail(store: Embedded, id: u64, seed: u64, until: Instant) -> Vec<Held> {
    let mut rng = StdRng::seed_from_u64(seed ^ (id << 32));
    let mut held = Vec::new();
    let name = format!("c{id}");
    for life in 0.. {
        let link = Link::new(&store, 5, seed ^ (id << 32) ^ life);
        let cluster = cluster(link.clone());
        let candidate = candidate(&name);
        let cut_while_waiting = rng.random_bool(0.2);
        if cut_while_waiting {
            link.set_cut(true);
            let heal = link.clone();
            let after = Duration::from_millis(rng.random_range(0..8000));
            tokio::spawn(async move {
                sleep(after).await;
                heal.set_cut(false);
            });
        }
        let Ok(leadership) = tokio::time::timeout_at(until, cluster.campaign(&candidate)).await
        else {
            return held;
        };
        let leadership = leadership.expect("only time ends it");
        let from = Instant::now();
        let end = from + Duration::from_millis(rng.random_range(0..6000));
        let fate = rng.random_range(0..4);
        if fate == 0 {
            link.set_cut(true);
        }
        let mut to = from;
        while leadership.is_held() && (fate == 0 || Instant::now() < end) {
            to = Instant::now();
            sleep(Duration::from_millis(5)).await;
        }
        held.push(Held { term: leadership.term(), from, to });
        match fate {
            // Dies: nothing it does passes any more.
            1 => link.set_cut(true),
            2 => leadership.resign().await,
            _ => {}
        }
    }
    held
}

/// Nobody acts while another may, whatever is lost; and there is always a next leader.
#[test]
fn leaderships_never_overlap_in_hours_of_faults() {
    for seed in 0..8 {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime");
        let mut held: Vec<Held> = runtime.block_on(async {
            let store = Embedded::expiring(Term(0));
            let until = Instant::now() + Duration::from_secs(1800);
            let one = |id| tokio::spawn(lead_and_fail(store.clone(), id, seed, until));
            let candidates: Vec<_> = (0..3).map(one).collect();
            let mut held = Vec::new();
            for candidate in candidates {
                held.extend(candidate.await.expect("no panic"));
            }
            held
        });
        held.sort_by_key(|held| held.from);
        assert!(held.len() > 100, "seed {seed}: {} leaderships", held.len());
        for pair in held.windows(2) {
            let [a, b] = pair else { continue };
            assert!(a.to < b.from && a.term < b.term, "seed {seed}: {a:?} and {b:?}");
            let gap = b.from - a.to;
            assert!(gap < 4 * FAILOVER_MAX, "seed {seed}: nobody led for {gap:?}");
        }
    }
}
